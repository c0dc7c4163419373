"""The table of calls is complete, and what two mappings of one file do to each other."""

from __future__ import annotations

import errno
import json
from typing import get_args

import pytest
import xarray as xr

from workbench import scenario as sc
from workbench.engine.calls import CALLS, apply
from workbench.engine.generators import ConvertMany, expand
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.scenario import Scenario
from workbench.simulation import simulate

PAGE = 4096
HOST = {
    "name": "two nodes",
    "nodes": [{"id": i, "memory_bytes": "1 GiB", "cpus": [i]} for i in range(2)],
    "distances": [[10, 20], [20, 10]],
}


def scenario(operations: list[dict[str, object]]) -> Scenario:
    return Scenario.from_mapping({"host": HOST, "guest": {"memory": "1 MiB"}, "operations": operations})


def run(operations: list[dict[str, object]]) -> xr.Dataset:
    return simulate(scenario(operations))


def test_every_operation_has_one_function_of_its_name() -> None:
    operations = set(get_args(get_args(sc.AnyOperation)[0]))
    assert operations - set(CALLS) == {sc.ConvertStream, sc.Prefault}, "generators, expanded before the run"
    assert set(CALLS) - operations == {ConvertMany}, "what a long stream becomes"
    assert len(set(CALLS.values())) == len(CALLS)
    for operation, call in CALLS.items():
        op = operation.model_fields["op"].default
        assert call.__name__ == {"policy": "set_policy", "convert_stream": "convert_many"}.get(op, op)


def test_generators_expand_into_operations_of_the_table() -> None:
    for generator in ({"op": "first_touch"}, {"op": "prefault"}, {"op": "convert_stream", "stream": "bad_guest"}):
        expanded = expand(scenario([{"op": "create"}, generator]))
        assert {type(operation) for operation in expanded} <= set(CALLS)


def test_inodes_are_equal_if_they_are_the_same() -> None:
    first, second = (Inode("guest", 4, "guest_memfd") for _ in range(2))
    assert first != second and len({first, second, first}) == 2


def test_munmap_takes_away_the_mapping_that_it_names() -> None:
    """Both mappings hold the pages; after the second is gone they are mapped once, and only the first still faults."""
    move = {"op": "move_pages", "file": "guest", "node": 1, "length": 2 * PAGE}
    fault = {"op": "fault", "length": 2 * PAGE}
    operations = [
        {"op": "create"},
        {"op": "alias", "file": "again", "of": "guest"},
        {**fault, "file": "guest"},
        {**fault, "file": "again"},
        move,
        {"op": "munmap", "file": "again"},
        move,
        {**fault, "file": "guest"},
        {**fault, "file": "again"},
        {"op": "mbind", "file": "again", "mode": "bind", "nodes": "1"},
        {"op": "mbind", "file": "guest", "mode": "bind", "nodes": "1"},
    ]
    dataset = run(operations)
    detail = [json.loads(text) for text in dataset["event_detail"].values]
    assert detail[4]["status_first"] == -errno.EACCES  # another mapping has it too, and MOVE_ALL was not asked for
    assert detail[6]["status_first"] != -errno.EACCES
    assert dataset["event_ret"].values[7:9].tolist() == [2, 0]
    assert dataset["event_errno"].values[[5, 9, 10]].tolist() == [0, errno.EFAULT, 0]


def test_close_leaves_the_file_to_a_second_mapping() -> None:
    """The pages are freed with the last user: a mapping without a name keeps them, and nothing else does."""
    for second, left in (([], 0), ([{"op": "mmap"}], 2)):
        dataset = run([{"op": "create"}, *second, {"op": "fault", "length": 2 * PAGE}, {"op": "close"}])
        assert (dataset["event_errno"].values == 0).all()
        taken = dataset["free_pages"].values[0] - dataset["free_pages"].values[-1]
        assert int(taken.sum()) == left


@pytest.mark.parametrize("metadata", ["off", "taken"])
def test_every_mapping_can_be_unmapped(metadata: str) -> None:
    """Those of further mmaps have no name: munmap takes them with ``unnamed``, and leaves an alias its own."""

    def free(*operations: dict[str, object]) -> list[int]:
        dataset = simulate(scenario([{"op": "create"}, *operations]).replace(metadata=metadata))
        assert (dataset["event_errno"].values == 0).all()
        pages: list[int] = dataset["free_pages"].values.sum(axis=1).tolist()
        return pages

    fault: dict[str, object] = {"op": "fault", "length": 2 * PAGE}
    gone: dict[str, object] = {"op": "munmap", "unnamed": True}
    extra = ({"op": "mmap"}, {"op": "mmap"}, fault)
    plain = free(fault, {"op": "close"})[-1]
    assert free(*extra, {"op": "close"})[-1] < plain
    for ends in ([{"op": "close"}, gone], [gone, {"op": "close"}], [{"op": "munmap"}, {"op": "close"}, gone, gone]):
        assert free(*extra, *ends)[-1] == plain
    again: list[dict[str, object]] = [{"op": "alias", "file": "again", "of": "guest"}, {"op": "mmap", "file": "again"}]
    kept = free(*extra, *again, gone, {"op": "close"}, {**fault, "file": "again"}, {"op": "close", "file": "again"})
    assert kept[-2] < kept[-1] == plain


def test_closing_an_alias_frees_nothing_while_the_file_is_open() -> None:
    alias = [{"op": "alias", "file": "again", "of": "guest"}, {"op": "fault", "length": 2 * PAGE}]
    dataset = run([{"op": "create"}, *alias, {"op": "close", "file": "again"}, {"op": "close", "file": "guest"}])
    assert (dataset["event_errno"].values == 0).all()
    free = dataset["free_pages"].values.sum(axis=1)
    assert (free - free[0]).tolist() == [0, 0, -2, -2, 0]


def test_a_killed_process_calls_nothing_more() -> None:
    """Bound to one node and larger than it: the OOM killer ends the process and its files."""
    big = Scenario.from_mapping(
        {
            "host": HOST,
            "guest": {"memory": "1 GiB"},
            "operations": [
                {"op": "create"},
                {"op": "mbind", "mode": "bind", "nodes": "0"},
                {"op": "fault"},
                {"op": "observe"},
            ],
        }
    )
    system = System(big)
    before = system.free.copy()
    results = [apply(system, operation) for operation in big.operations]
    assert [result.errno for result in results] == [0, 0, errno.ENOMEM, errno.ESRCH]
    assert (system.free == before).all()

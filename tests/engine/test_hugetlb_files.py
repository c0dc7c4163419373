"""memfd_create(MFD_HUGETLB): huge pages of ordinary memory backends, out of the pools of the host."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.simulation import simulate

HOST = {
    "name": "two nodes",
    "nodes": [{"id": i, "memory_bytes": "4 GiB", "cpus": [i]} for i in range(2)],
    "distances": [[10, 20], [20, 10]],
}
FILE = {"op": "memfd", "file": "ram", "size": "1 GiB", "hugetlb": True}
TOUCH = {"op": "fault", "file": "ram", "by": "host"}


def run(*operations: dict[str, Any], **fields: Any) -> xr.Dataset:
    guest = {"memory": "1 GiB", "page_size": "2 MiB", "design": "hugetlb", "vcpus": [{"node": 0}]}
    return simulate(Scenario.from_mapping({"host": HOST, "guest": guest, "operations": list(operations), **fields}))


def test_pages_come_from_the_pools_and_interleave_by_their_offset() -> None:
    """mm/hugetlb.c: dequeue_hugetlb_folio_vma: the index counts huge pages, whatever the order of the touches."""
    bind = {"op": "mbind", "file": "ram", "mode": "interleave", "nodes": "0-1"}
    result = run(FILE, bind, {**TOUCH, "order": "reverse"})
    assert result["pages_per_node"].values.tolist() == [[256, 256]]
    assert result["run_node"].values.tolist() == [0, 1] * 256
    free = result["free_pages"].values
    assert (free[0] - free[-1]).tolist() == [256, 256] and list(map(str, result["zone"].values)) == [
        "0/hugetlb",
        "1/hugetlb",
    ]
    tables = result["metadata_pages"].isel(event=-1).sel(kind="page_tables")
    assert int(tables.sum()) == 1, "PMDs map 2 MiB each: no PTE table"


def test_a_pool_that_is_empty_refuses_instead_of_taking_another_node() -> None:
    pools = {"hugetlb_pages": {0: 100, 1: 600}}
    bind = {"op": "mbind", "file": "ram", "mode": "bind", "nodes": "0"}
    result = run(FILE, bind, TOUCH, boot=pools)
    assert result["event_errno"].values.tolist() == [0, 0, errno.ENOMEM]
    assert result["pages_per_node"].values.tolist() == [[100, 0]]
    back = run(FILE, TOUCH, {"op": "munmap", "file": "ram"}, {"op": "close", "file": "ram"}, boot=pools)
    assert back["free_pages"].values[-1].tolist() == [100, 600]


def test_a_mapping_that_the_pools_cannot_promise_is_refused() -> None:
    small = {"hugetlb_pages": {0: 100, 1: 100}}
    assert run(FILE, boot=small)["event_errno"].values.tolist() == [errno.ENOMEM]
    assert run({**FILE, "size": "3 MiB"})["event_errno"].values.tolist() == [errno.EINVAL]


def test_huge_pages_need_a_size_and_a_pool() -> None:
    with pytest.raises(WorkbenchError, match=r"memfd.hugetlb: 'ram' .* guest.page_size is 4 KiB"):
        simulate(Scenario.from_mapping({"host": HOST, "guest": {"memory": "1 GiB"}, "operations": [FILE]}))


def test_pages_that_would_move_are_refused_in_one_line() -> None:
    bind = {"op": "mbind", "file": "ram", "mode": "bind", "nodes": "1", "flags": ["move"]}
    with pytest.raises(WorkbenchError, match="ram: moving pages of a hugetlb file is not simulated"):
        run(FILE, TOUCH, bind)


@pytest.mark.parametrize("call", [
    {"op": "migrate_pages", "source": 0, "target": 1}, {"op": "set_mems_allowed", "mems": "1"},
])  # fmt: skip
@pytest.mark.parametrize("first", [0, 3])
def test_what_migrate_pages_and_cpusets_move_is_counted_in_huge_pages(call: dict[str, Any], first: int) -> None:
    """Wherever in the file they lie, once each, and only those of the node that is left."""
    huge = 2 << 20
    touches = [{**TOUCH, "offset": first * huge + 4096 * page, "length": 4096} for page in (0, 7)]
    touches += [{**TOUCH, "offset": (first + 5) * huge, "length": huge}]
    elsewhere = [{"op": "sched_setaffinity", "cpu": 1}, {**TOUCH, "offset": 300 * huge, "length": huge}]
    result = run(FILE, *touches, *elsewhere, call)
    assert result["pages_per_node"].values.tolist() == [[0, 3]]
    assert result["event_pages"].values[-1].tolist() == [0, 2]

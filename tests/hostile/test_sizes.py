"""What costs pages or squares is refused before memory is taken, or costs what its runs do: in bytes and work, not in seconds."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reference.growth import costs_less, seconds
from workbench.data import datasets_path
from workbench.engine import handover
from workbench.engine.generators import in_turns
from workbench.errors import WorkbenchError
from workbench.kernels import zonelist
from workbench.running import run
from workbench.scenario import Scenario
from workbench.tracking import traces
from workbench.tracking.light_file import LightFile
from workbench.truth import recording, verify

MIB = 1 << 20
NODES = [{"id": node, "memory_bytes": "8 TiB", "cpus": str(node)} for node in (0, 1)]
IN_PLACE = {"vm_type": "snp", "conversion": {"mode": "in-place"}}
VCPUS = {"vcpus": [{"node": node} for node in (0, 1)]}


def at_16_tib(guest: dict[str, Any], *operations: dict[str, Any]) -> Scenario:
    return Scenario.from_mapping({
        "host": {"name": "h", "nodes": NODES, "distances": [[10, 20], [20, 10]]}, "output": "counts",
        "guest": {"memory": "15 TiB", **guest}, "operations": [{"op": "create"}, *operations],
    })  # fmt: skip


def most_memory(call: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("guest", "operation"),
    [
        ({}, {"op": "fault", "order": "random"}),
        ({}, {"op": "fault", "order": "strided", "stride": 7}),
        (VCPUS, {"op": "first_touch", "turn": 1}),
        (VCPUS, {"op": "first_touch", "turn": 1, "shared": True}),
        ({}, {"op": "move_pages", "node": 0}),
        (IN_PLACE, {"op": "convert", "to": "shared"}),
        (IN_PLACE, {"op": "convert_stream", "stream": "boot"}),
        ({}, {"op": "hwpoison"}),
        ({"design": "pfn-range"}, {"op": "pin"}),
    ],
)
def test_refused_before_memory_is_taken(guest: dict[str, Any], operation: dict[str, Any]) -> None:
    def refused() -> None:
        with pytest.raises(WorkbenchError, match=r"^[^\n]*\d+ (pages|folios|conversions)[^\n]*at most \d+") as caught:
            run(at_16_tib(guest, operation))
        assert "memory" in str(caught.value)

    assert most_memory(refused) < 32 * MIB


@pytest.mark.parametrize(
    ("guest", "operations", "most"),
    [
        ({}, [{"op": "fallocate"}, {"op": "fault"}, {"op": "punch_hole", "length": "8 TiB"}], 16),
        (
            {"memory": "7 TiB", "vm_type": "snp", "conversion": {"mode": "out-of-place"}},
            [{"op": "fallocate"}, {"op": "convert", "to": "shared"}, {"op": "convert", "to": "private"}],
            16,
        ),
    ],
)
def test_memory_follows_runs(guest: dict[str, Any], operations: list[dict[str, Any]], most: int) -> None:
    given = at_16_tib(guest, *operations)
    run(given)  # what is imported and compiled is no part of it
    assert most_memory(lambda: run(given)) < most * MIB


def test_a_boot_at_16_tib_takes_its_conversions_alone() -> None:
    from workbench.engine import conversion_streams as gen

    guest = gen.BootGuest(16 << 40, 16)
    made = 8 * 6 * (16 << 40) // gen.ACCEPT_CHUNK
    assert most_memory(lambda: gen.boot(guest)) < 1.5 * made


def test_a_turn_ends_with_the_share() -> None:
    """A turn of 2^30 pages made a list of as many for a guest of 16 KiB."""
    made: list[tuple[list[int], list[int]]] = []
    assert most_memory(lambda: made.extend((p.tolist(), o.tolist()) for p, o in in_turns(0, 5, 2, 1 << 38))) < MIB
    assert made == [([0, 1, 2, 3, 4], [0, 0, 1, 1, 1])]


def test_the_lists_of_1024_nodes_take_no_minute() -> None:
    """mm/page_alloc.c looks n times at n nodes, each time along a list, for each of n lists; here each list is sorted once."""

    def lists(nodes: int) -> float:
        distance = np.random.default_rng(1).integers(11, 60, (nodes, nodes))
        np.fill_diagonal(distance, 10)
        order, load = np.empty((nodes, nodes), np.int64), np.empty(nodes, np.int64)
        zones = np.repeat(np.arange(nodes), 2)
        end, listed = np.empty(nodes + 1, np.int64), np.empty(2 * nodes, np.int64)
        out = np.empty((nodes, 2 * nodes + 1), np.int64)
        everywhere: npt.NDArray[np.bool_] = np.ones(nodes, bool)

        def both() -> None:
            zonelist.fallback_order(distance, everywhere, ~everywhere, load, order)
            zonelist.zonelists(order, zones, np.tile([1, 2], nodes), np.ones(2 * nodes, np.int64), 2, end, listed, out)

        both()
        assert (np.sort(out[:, :-1], axis=1) == np.arange(2 * nodes)).all()
        return seconds(both)

    assert lists(1024) < 5


def test_a_handover_takes_no_call_for_each_extent() -> None:
    def calls(extents: int) -> int:
        rows: npt.NDArray[np.int64] = np.zeros((extents, 4), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = np.arange(extents), 1, np.arange(extents) * 2
        state = handover.Preserved(extents, 0, rows)
        made = 0

        def count(_frame: object, event: str, _what: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            data = handover.serialise(state, "kho")
        finally:
            sys.setprofile(None)
        assert handover.deserialise(data).same_as(state)
        return made

    assert calls(20_000) < calls(2_000) + 500


def test_pins_cost_what_is_pinned() -> None:
    """Pages pinned one after another and dropped again; each asked for all before: 64 times as much for eight times the pages."""

    def pins(pages: int) -> float:
        file = LightFile(4096 * pages, "4 KiB", shared=True)
        assert file.host_fault(0, 4096 * pages) == (0, None)

        def pin_and_drop() -> None:
            half = 2048 * pages
            for offset in (0, half):
                assert file.pin(offset, half) == (0, None)
            assert len(file.pinned()) == pages
            assert file.unpin(0, 2 * half) == (0, None)

        taken = min(seconds(pin_and_drop) for _ in range(3))
        assert len(file.state.nodes) < 32 * pages, "only the table of pins has grown"
        return taken

    assert costs_less(lambda: pins(64_000), lambda: pins(8_000), 25)


def test_a_table_is_not_unpacked_beyond_what_traces_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that a Parquet file lists once and means often, and long ones that compress well."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(traces, "TRACE_UNPACKED", 1 << 20)
    zeros = pa.array([0] * 4000)
    for texts in (pa.array(["x" * 600] * 4000).dictionary_encode(), pa.array(["x" * 600] * 4000)):
        table = pa.table({"offset": zeros, "length": zeros, "to": texts})
        pq.write_table(table, tmp_path / "t.parquet", use_dictionary=texts.type != pa.string())
        assert (tmp_path / "t.parquet").stat().st_size < 1 << 18
        with pytest.raises(WorkbenchError, match=r"unpacks to more than 1 MiB$"):
            traces.read_trace(tmp_path / "t.parquet")


@pytest.mark.parametrize(("name", "verb"), [("facts-F_semantics", "place g0 32 "), ("conversion/1g", "touch a ")])
def test_a_line_of_a_recording_lists_no_more_pages_than_a_scenario(name: str, verb: str, tmp_path: Path) -> None:
    document = recording.load(datasets_path("recordings") / f"{name}.json.gz")
    script = next(one for one in document["scenarios"] if any(line["op"].startswith(verb) for line in one["ops"]))
    line = next(line for line in script["ops"] if line["op"].startswith(verb))
    line["op"] = f"{line['op'].rsplit(' ', 1)[0]} 999999999999"
    document["scenarios"] = [script]
    (tmp_path / "x.json").write_text(json.dumps(document))
    (report,) = verify.verify([tmp_path / "x.json"])
    assert "pages would be listed one by one" in str(report.scenarios[0].mismatches)

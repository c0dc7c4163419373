"""Streams of conversions in place: many at once are what they are one by one, in every design and for every kind of guest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.engine import bulk_in_place
from workbench.errors import WorkbenchError

MIB, GIB = 1 << 20, 1 << 30
HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 8 * GIB, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}
DESIGNS: dict[str, dict[str, Any]] = {
    "4 KiB": {"kernel_profile": "7.4", "guest": {}},
    "2 MiB, C": {"kernel_profile": "proposal-hugetlb", "guest": {"page_size": "2 MiB", "design": "hugetlb-hvo"}},
    "2 MiB, B": {"kernel_profile": "proposal-hugetlb-rfc2", "guest": {"page_size": "2 MiB", "design": "hugetlb-hvo"}},
    "pfn ranges": {"kernel_profile": "proposal-no-struct-page", "guest": {"page_size": "2 MiB", "design": "pfn-range"}},
}


def run(
    design: str,
    vm_type: str,
    every: int | None,
    stream: str = "bounce_buffers",
    task: str | None = None,
    touched: bool | None = None,
    also: tuple[dict[str, Any], ...] = (),
    **settings: Any,
) -> xr.Dataset:
    """A guest whose memory the vCPU has touched, and of which the host has some shared pages mapped and holds two."""
    chosen = DESIGNS[design]
    guest = {"memory": 32 * MIB, "vm_type": vm_type, "vcpus": [{"node": 0}, {"node": 1}], **chosen["guest"]}
    boot = {"hugetlb_pages": {0: 64, 1: 64}} if "page_size" in guest else {}
    host = {"by": "host", "op": "fault", "offset": 4 * MIB, "length": MIB}
    pin = {"op": "pin", "offset": 4 * MIB + 8192, "length": 8192}
    many = {"op": "convert_stream", "stream": stream, "count": 120, "every": every, "seed": 3, "task": task}
    hosts = [host] if touched or design != "2 MiB, B" else []
    operations = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest"},
        {"op": "convert", "to": "shared", "offset": 4 * MIB, "length": 2 * MIB}, *hosts,
        *([] if design == "2 MiB, B" else [pin]), *also, many, {"op": "fault", "by": "guest", "task": "vcpu1", "length": 4 * MIB},
        *hosts,
    ]  # fmt: skip
    values = {"host": HOST, "boot": boot, "guest": guest, "operations": operations, "output": "pages"}
    values |= {"kernel_profile": chosen["kernel_profile"], "strict": False} | settings
    return wb.simulate(wb.Scenario.from_mapping(values))


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("design", DESIGNS)
def test_many_at_once_are_what_they_are_one_by_one(design: str, vm_type: str) -> None:
    """All that is counted, metadata included, where every page is, what the host has mapped, and who was refused."""
    single, many = run(design, vm_type, 1), run(design, vm_type, 50)
    assert single.sizes["event"] > 3 * many.sizes["event"]
    assert int(many["converted_pages"][-1]) > 1000
    for name in single.data_vars:
        if "event" in single[name].dims and not str(name).startswith("event_"):
            np.testing.assert_array_equal(single[name].isel(event=-1), many[name].isel(event=-1), str(name))
        elif name in ("page_node", "content_lost", "pages_per_node"):
            np.testing.assert_array_equal(single[name], many[name], str(name))
    for row in (-1,) if design == "2 MiB, B" else (-1, -2):  # what the last touches of guest and host found
        assert str(single["event_detail"].values[row]) == str(many["event_detail"].values[row])
        assert int(single["event_errno"].values[row]) == int(many["event_errno"].values[row])
    if design == "4 KiB":  # the pinned pages are in the way of somebody
        assert int(many["failed_conversions"][-1]) == int(single["failed_conversions"][-1])


def test_a_long_stream_is_some_250_events_with_metadata() -> None:
    """Refused before: conversions in place were events of their own."""
    guest = {"memory": "1 GiB", "vm_type": "sw_protected", "page_size": "2 MiB", "design": "hugetlb-hvo"}
    stream = {"op": "convert_stream", "stream": "uniform_random", "count": 120_000}
    values = {
        "host": HOST, "kernel_profile": "proposal-hugetlb", "boot": {"hugetlb_pages": {0: 512, 1: 512}}, "guest": guest,
        "operations": [{"op": "create"}, {"op": "fault", "by": "guest"}, stream],
    }  # fmt: skip
    dataset = wb.simulate(wb.Scenario.from_mapping(values))
    assert dataset.sizes["event"] == 252 and int(dataset["conversions"][-1]) == 120_000
    held = dataset["metadata_pages"].sel(kind="vmemmap").values
    np.testing.assert_array_equal(held, dataset["vmemmap_pages"].values)
    assert held[-1].sum() > 0


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("stream", ["uniform_random", "ballooning"])
def test_what_devices_and_the_host_see_and_what_a_balloon_takes_is_the_same(design: str, stream: str) -> None:
    """Metadata taken, a device's area, pages that the host has mapped in generation B, and a task of its own."""
    single, many = (
        run(
            design, "snp", every, stream, task="vcpu1", metadata="taken", touched=True,
            also=({"op": "iommu_map", "offset": 5 * MIB, "length": MIB // 2},),
        )
        for every in (1, 50)
    )  # fmt: skip
    assert single.sizes["event"] > many.sizes["event"] + 5
    for name in single.data_vars:
        if "event" in single[name].dims and not str(name).startswith("event_"):
            np.testing.assert_array_equal(single[name].isel(event=-1), many[name].isel(event=-1), str(name))
        elif name in ("page_node", "content_lost", "pages_per_node"):
            np.testing.assert_array_equal(single[name], many[name], str(name))
    for row in (-1, -2):
        assert str(single["event_detail"].values[row]) == str(many["event_detail"].values[row])
    if stream == "uniform_random":
        assert int(many["user_mapped_pages"].sel(user="iommu").max()) == 128


def test_the_task_of_a_stream_makes_its_calls() -> None:
    """It was the first task's, whatever the operation said: what becomes shared out of place lies where its host touch does."""
    for every in (1, 40):
        guest = {"memory": 32 * MIB, "vm_type": "snp", "vcpus": [{"node": 0}, {"node": 1}]}
        stream = {"op": "convert_stream", "stream": "uniform_random", "count": 80, "every": every, "task": "vcpu1"}
        values = {"host": HOST, "kernel_profile": "7.3", "guest": guest}
        found = wb.simulate(wb.Scenario.from_mapping(values | {"operations": [{"op": "create"}, stream]}))
        assert found["pages_per_node"].sel(file="guest.shared").values[0] == 0
        assert found["pages_per_node"].sel(file="guest.shared").values[1] > 1000
        assert set(found["event_task"].values[1:]) == {"vcpu1"}


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"every": 1}, r"every: 1: 1000001 conversions would be 1000001 events, .* GiB of memory; .* take 2 or more"),
        (
            {"stream": "ballooning", "fraction": 1.0},
            r"fraction: 1 of 32 TiB are 33554432 calls of 2 MiB, .* 280 minutes",
        ),
    ],
)
def test_what_would_take_too_long_says_how_long(stream: dict[str, Any], said: str) -> None:
    stream = {"op": "convert_stream", "stream": "uniform_random", "count": 1_000_001} | stream
    guest = {"memory": 32 << 40 if "fraction" in stream else 32 * MIB, "vm_type": "snp"}
    for kernel in ("7.3", "7.4"):
        values = {"host": HOST, "guest": guest, "kernel_profile": kernel, "operations": [stream]}
        with pytest.raises(WorkbenchError, match=f"convert_stream.{said}"):
            wb.simulate(wb.Scenario.from_mapping(values))


def test_a_long_stream_with_metadata_taken_runs_at_once() -> None:
    """It was refused, and so were those of guests with devices, of generation B with host faults, and balloons."""
    guest = {"memory": 32 * MIB, "vm_type": "tdx"}
    stream = {"op": "convert_stream", "stream": "bad_guest", "count": 100_001}
    values = {"host": HOST, "guest": guest, "kernel_profile": "7.4", "metadata": "taken"}
    found = wb.simulate(wb.Scenario.from_mapping(values | {"operations": [{"op": "create"}, stream]}))
    assert found.sizes["event"] == 251 and int(found["conversions"][-1]) == 100_001


def test_rows_apart_are_as_many_as_have_no_unit_in_common() -> None:
    first, end = np.array([0, 2, 5, 1, 9, 9, 3]), np.array([2, 3, 5, 2, 12, 10, 4])  # the third names nothing
    assert bulk_in_place._apart(first, end) == [(0, 3), (3, 5), (5, 7)]
    assert bulk_in_place._apart(first[:0], end[:0]) == []


@pytest.mark.parametrize("design", DESIGNS)
def test_what_stays_whole_is_the_same_where_blocks_are_looked_at_together(
    design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random ranges: up to 16 blocks of 2 MiB are seldom named twice within a few rows."""
    monkeypatch.setattr(bulk_in_place, "_FEW", 1)
    monkeypatch.setattr(bulk_in_place, "WIDE", 0)  # rows of two blocks and more are looked at by themselves
    single, many = run(design, "snp", 1, "uniform_random"), run(design, "snp", 60, "uniform_random")
    assert int(many["rmp_updates"][-1]) > 1000
    for name in ("rmp_updates", "rmp_smashes", "rmp_entries_2m", "direct_map_splits", "rmpopt_regions"):
        np.testing.assert_array_equal(single[name].isel(event=-1), many[name].isel(event=-1), name)


def test_unions_of_ranges() -> None:
    first, end = np.array([5, 1, 9, 3, 20, 7]), np.array([6, 3, 12, 4, 20, 9])
    assert bulk_in_place.union(first, end).tolist() == [[1, 4], [5, 6], [7, 12]]
    assert bulk_in_place.union(first[:0], end[:0]).tolist() == []
    assert bulk_in_place.union(np.array([0, 2]), np.array([10, 3])).tolist() == [[0, 10]]

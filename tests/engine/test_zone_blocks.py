"""Huge memory from the zones: exact in what each node can give, down to its watermarks, and shared with 4 KiB requests."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.design import DESIGNS
from workbench.topology.zones import default_zones

FROM_ZONES = [name for name, design in DESIGNS.items() if design.from_zones]


def scenario(operations: list[dict[str, object]], design: str, node: dict[str, object] | None = None, **guest: object):
    nodes = [{"id": i, "memory_bytes": "4 GiB", "cpus": [i]} | (node or {}) for i in range(2)]
    host = {"name": "two", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    mine = {"memory": "1 GiB", "page_size": "2 MiB", "design": design, "vm_type": "snp"} | guest
    create = {"op": "create", "flags": ["mmap"]}
    return wb.Scenario.from_mapping({"host": host, "guest": mine, "operations": [create, *operations]})


def blocks_of(free: np.ndarray, kept: np.ndarray) -> int:
    """Zone by zone and block by block, as __zone_watermark_ok asks before each."""
    count = 0
    for pages, mark in zip(free.tolist(), kept.tolist(), strict=True):
        while pages - 511 > mark:  # free_pages -= (1 << order) - 1; false if what is left is not above the mark
            pages, count = pages - 512, count + 1
    return count


@pytest.mark.parametrize("design", FROM_ZONES)
def test_a_node_gives_blocks_down_to_the_min_marks_of_its_zones(design: str) -> None:
    given_ = scenario(
        [{"op": "mbind", "mode": "bind", "nodes": "1"}, {"op": "fault", "by": "guest"}], design, memory="5 GiB"
    )
    table = default_zones(given_.host)
    mine = table.zone_node == 1
    blocks = blocks_of(table.free[mine], (table.min + table.lowmem_reserve_normal)[mine])
    dataset = wb.simulate(given_.replace(strict=False))
    assert dataset["event_pages"].values[-1].tolist() == [0, blocks]
    if design == FROM_ZONES[-1]:  # 4 KiB pages stand in down to the same marks, and then nothing is left
        small = int(dataset["event_small_pages"].values[-1].sum())
        assert small == (table.free - table.min - table.lowmem_reserve_normal).clip(0)[mine].sum() - 512 * blocks


@pytest.mark.parametrize("design", FROM_ZONES)
def test_others_break_blocks_up_and_give_them_back(design: str) -> None:
    """A process takes 1 GiB of node 0: what was left over goes first, then blocks; afterwards they are whole again."""
    look = {"op": "zones"}
    dataset = wb.simulate(
        scenario([look, {"op": "hog", "node": 0, "size": "1 GiB"}, look, {"op": "unhog"}, look], design)
    )
    free = [json.loads(str(text))["free"] for text in dataset["event_detail"].values[[1, 3, 5]]]
    label = f"0/{DESIGNS[design].pool}"
    total = [512 * row[label] + sum(row[f"0/{zone}"] for zone in ("DMA", "DMA32", "Normal")) for row in free]
    assert total[0] - total[1] == (1 << 30) // 4096 and free[0] == free[2]
    left_over = free[0]["0/Normal"]  # the hog takes the highest zone first
    mark = int(dataset["zone_low"].sel(zone="0/Normal"))
    assert left_over < mark + 512 and 0 <= (1 << 18) - 512 * (free[0][label] - free[1][label]) < 512


def test_stated_free_blocks_are_all_there_is() -> None:
    """/proc/buddyinfo of a fragmented host: 100 blocks of 2 MiB and 50 of 4 MiB; all else is 4 KiB pages."""
    zone = {"name": "Normal", "managed": 1 << 20, "free": 900_000, "min": 1000, "low": 2000, "high": 3000}
    zone |= {"free_blocks": [900_000 - 512 * 200, *[0] * 8, 100, 50]}
    dataset = wb.simulate(scenario([{"op": "fault", "by": "guest"}], "thp", {"zones": [zone]}, memory="2 GiB"))
    assert dataset["pages_per_node"].values.sum() == 400
    assert dataset["small_pages_per_node"].values.sum() == (1024 - 400) * 512
    assert dataset["event_errno"].values.tolist() == [0, 0]


@pytest.mark.parametrize("design", FROM_ZONES)
def test_movable_zones_give_nothing(design: str) -> None:
    zones = [
        {"name": name, "managed": 1 << 19, "free": 1 << 19, "min": 100, "low": 200, "high": 300}
        for name in ("Normal", "Movable")
    ]
    dataset = wb.simulate(scenario([{"op": "fault", "by": "guest"}], design, {"zones": zones}, memory="3 GiB"))
    assert dataset["pages_per_node"].values.tolist() == [[1023, 513]]


POLICIES = st.sampled_from([("bind", "0"), ("bind", "1"), ("preferred", "1"), ("local", "")])


@given(policy=POLICIES, seed=st.integers(0, 1000), by=st.sampled_from(["host", "guest"]))
@settings(max_examples=8)
def test_contiguous_folios_are_placed_as_those_of_filemap(policy: tuple[str, str], seed: int, by: str) -> None:
    """4 KiB at a time: in everything. In ranges: on the same nodes, where the policy does not change within one."""
    mode, nodes = policy
    operations = [
        {"op": "mbind", "mode": mode} | ({"nodes": nodes} if nodes else {}),
        {"op": "fault", "by": by, "order": "random", "seed": seed, "length": "256 MiB"},
        {"op": "punch_hole", "offset": "16 MiB", "length": "32 MiB"},
        {"op": "mbind", "mode": "interleave", "nodes": "0-1", "offset": "128 MiB"},
        {"op": "fault", "by": by, "offset": "16 MiB", "length": "64 MiB"},
    ]
    both = wb.simulate(
        scenario(operations, "filemap", page_size="4 KiB", vm_type="none"), designs=["filemap", "contiguous-4k"]
    )
    xr.testing.assert_equal(both.isel(design=0, drop=True), both.isel(design=1, drop=True))
    ranges = wb.simulate(scenario(operations, "contiguous-4k", vm_type="none"))
    np.testing.assert_array_equal(ranges["pages_per_node"].values * 512, both["pages_per_node"].values[0])
    np.testing.assert_array_equal(ranges["event_errno"].values, both["event_errno"].values[0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_thp_that_never_runs_dry_maps_as_hugetlb_does(seed: int) -> None:
    """A guest that converts: the same mappings, splits and merges after every call, and no struct page to restore."""
    made = {"op": "convert_stream", "stream": "uniform_random", "seed": seed, "count": 100}
    operations = [{"op": "fault", "by": "guest"}, made]
    run = scenario(operations, "hugetlb")
    dataset = wb.simulate(run, designs=["hugetlb", "thp"])
    names = [
        name
        for name in dataset.data_vars
        if str(name).startswith(("mapped", "lost", "split", "merge", "regain", "return"))
    ]
    names += ["mapping_share", "stage2_tables", "invalidations", "vmemmap_pages", "event_errno", "shared_pages"]
    for name in names:
        np.testing.assert_array_equal(dataset[name].values[0], dataset[name].values[1], str(name))
    assert not dataset["vmemmap_taken"].values.any()


def test_what_files_take_and_zones_keep_is_what_there_was() -> None:
    """Conservation over faults, holes, conversions, a hog and the file's end, for both designs from the zones."""
    operations = [
        {"op": "fault", "by": "guest", "length": "512 MiB"},
        {"op": "convert", "offset": "2 MiB", "length": "5 MiB", "to": "shared"},
        {"op": "hog", "node": 0, "size": "100 MiB"},
        {"op": "punch_hole", "offset": "64 MiB", "length": "8 MiB"},
        {"op": "fault", "by": "guest", "offset": "512 MiB", "length": "256 MiB"},
        {"op": "unhog"},
        {"op": "convert", "offset": "2 MiB", "length": "5 MiB", "to": "private"},
        {"op": "close", "unmap": True},
    ]
    for design in FROM_ZONES:
        dataset = wb.simulate(scenario(operations, design))
        pages = dataset["free_pages"].values * (dataset["zone_page_size"].values // 4096)
        held = np.cumsum(dataset["event_pages"].values.sum(axis=1)) * 512
        assert not dataset["event_errno"].values.any()
        assert (
            pages[-1].sum() == pages[0].sum()
            and (dataset["free_pages"].values[-1] == dataset["free_pages"].values[0]).all()
        )
        assert pages[0].sum() - pages[1].sum() == held[1] == 512 << 8
        assert pages[2].sum() - pages[3].sum() == 25_600

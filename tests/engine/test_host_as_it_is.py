"""A host that says what is free and pooled now: the run starts from that, not from an empty machine."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb

GIB = 1 << 30
NODE = {"memory_bytes": "16 GiB"}
POOL = {"page_bytes": GIB, "total": 8, "free": 3}


def run(
    pool: dict[str, int] | None, *, boot: dict[str, Any] | None = None, free: str | None = "4 GiB", guest: str = "4 GiB"
):
    first: dict[str, Any] = {"id": 0, "cpus": "0-3", **NODE}
    if pool is not None:
        first["hugetlb"] = [{"page_bytes": 2 << 20, "total": 7, "free": 7}, pool]
    if free is not None:
        first["free_bytes"] = free
    host = {"name": "busy", "nodes": [first, {"id": 1, "cpus": "4-7", **NODE}], "distances": [[10, 20], [20, 10]]}
    scenario = wb.Scenario.from_mapping({
        "host": host, "boot": boot or {}, "guest": {"memory": guest, "page_size": "1 GiB", "design": "hugetlb"},
        "operations": [{"op": "create"}, {"op": "fault"}, {"op": "memfd", "file": "other", "size": "1 MiB"}],
    })  # fmt: skip
    return wb.simulate(scenario)


def test_the_pool_is_the_hosts() -> None:
    result = run(POOL, guest="2 GiB")
    assert result.zone_managed.sel(zone="0/hugetlb") == 3
    assert result.zone_managed.sel(zone="1/hugetlb") == 0
    assert result.pages_per_node.sel(file="guest").values.tolist() == [2, 0]


def test_a_stated_pool_goes_before_the_hosts() -> None:
    result = run(POOL, boot={"hugetlb_pages": {1: 4}})
    assert result.zone_managed.sel(zone="0/hugetlb") == 0
    assert result.pages_per_node.sel(file="guest").values.tolist() == [0, 4]


def test_a_pool_of_the_host_is_not_taken_from_what_is_free_beside_it() -> None:
    """MemFree does not count free huge pages; without MemFree the pool is part of an otherwise empty node."""
    free = {}
    for said in ("4 GiB", None):
        result = run(POOL, free=said, guest="1 GiB")
        zones = [zone for zone in result.zone.values if zone.startswith("0/") and not zone.endswith("hugetlb")]
        free[said] = int(result.free_pages.sel(zone=zones).isel(event=0).sum()) << 12
    assert free["4 GiB"] == 4 * GIB
    assert free[None] == pytest.approx(13 * GIB, rel=0.02)


def test_a_host_without_pools_keeps_the_assumed_one() -> None:
    assert run(None, free=None).zone_managed.sel(zone="0/hugetlb") > 8

"""Memory of a process without a file: transparent huge pages, where they come from, and what is left when there are none."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.simulation import simulate

FOLIO = 512
RAM = {"op": "memfd", "file": "ram", "size": "1 GiB", "anonymous": True}
PLAIN = {"managed": 1 << 20, "free": 1 << 20, "min": 1000, "low": 2000, "high": 3000}


def host(*zones: dict[str, Any], **of_node: Any) -> dict[str, Any]:
    node = {"id": 0, "memory_bytes": "4 GiB", "cpus": [0], **of_node}
    if zones:
        node["zones"] = list(zones)
    return {
        "name": "two nodes",
        "nodes": [node, {"id": 1, "memory_bytes": "4 GiB", "cpus": [1]}],
        "distances": [[10, 20], [20, 10]],
    }


def run(*operations: dict[str, Any], on: dict[str, Any] | None = None, **guest: Any) -> xr.Dataset:
    huge = {"memory": "1 GiB", "page_size": "2 MiB", "design": "thp", "vcpus": [{"node": 0}, {"node": 1}]}
    mapping = {"host": on or host(), "guest": huge | guest, "operations": list(operations)}
    return simulate(Scenario.from_mapping(mapping))


def touch(task: str = "vcpu0", offset: int = 0, length: int = 4096, by: str = "host") -> dict[str, Any]:
    return {"op": "fault", "file": "ram", "by": by, "task": task, "offset": offset, "length": length}


def test_one_touch_brings_two_mebibytes_of_its_node() -> None:
    """mm/huge_memory.c: do_huge_pmd_anonymous_page; no page cache, and a PTE table kept for each (pgtable_trans_huge_deposit)."""
    result = run(RAM, touch("vcpu0", 4096 * 5), touch("vcpu1", 4096 * 600), touch("vcpu1", 0))
    assert result["pages_per_node"].values.tolist() == [[1, 1]]
    assert result["run_start"].values.tolist() == [0, 1] and result["run_node"].values.tolist() == [0, 1]
    kinds = result["metadata_pages"].isel(event=-1).sum("node").to_series()
    assert (kinds["page_cache"], kinds["page_tables"]) == (0, 2 + 1), "and one of PMDs"


def test_interleaving_goes_by_address_in_steps_of_a_folio() -> None:
    """mm/mempolicy.c: get_vma_policy: the index counts folios, whichever page is touched first."""
    policy = {"op": "set_mempolicy", "task": "vcpu0", "mode": "interleave", "nodes": "0-1"}
    order = [touch(offset=n * FOLIO * 4096) for n in (3, 0, 2, 1)]
    result = run(RAM, policy, *order)
    assert result["run_node"].values.tolist() == [0, 1, 0, 1]


def test_without_a_descriptor_calls_on_one_are_refused() -> None:
    refused = [
        {"op": "fallocate", "file": "ram"},
        {"op": "alias", "file": "b", "of": "ram"},
        {"op": "close", "file": "ram"},
    ]
    result = run(RAM, *refused, touch(length=1 << 21), {"op": "munmap", "file": "ram"})
    assert result["event_errno"].values.tolist() == [0, *[errno.EBADF] * 3, 0, 0]
    free = result["free_pages"].values
    assert (free[0] == free[-1]).all(), "the memory goes with its mapping"


def test_dontneed_frees_whole_folios_and_remove_is_for_files() -> None:
    advice = {"op": "madvise", "file": "ram", "offset": 4096, "length": 4 << 20}
    result = run(RAM, touch(length=8 << 20), {**advice, "advice": 4}, {**advice, "advice": 9})
    assert result["event_errno"].values.tolist() == [0, 0, 0, errno.EINVAL]
    assert result["pages_per_node"].values.tolist() == [[3, 0]], "of four, one lies whole in the range"


def blocks(large: int, rest: int = 0) -> tuple[int, ...]:
    return (rest, *[0] * 9, large)


@pytest.mark.parametrize(
    ("zone", "folios"),
    [
        ({}, 40),
        ({"free_blocks": blocks(10, 1 << 19)}, 20),
        ({"free_blocks": blocks(20), "free_by_type": {"Movable": blocks(15), "HighAtomic": blocks(5)}}, 30),
        ({"free_blocks": blocks(20), "free_by_type": {"Unmovable": blocks(12), "Isolate": blocks(8)}}, 24),
        (
            {"free_blocks": blocks(20), "free_cma": 8 << 10, "free_by_type": {"Movable": blocks(12), "CMA": blocks(8)}},
            40,
        ),
    ],
)
def test_folios_come_from_the_blocks_that_the_host_has(zone: dict[str, Any], folios: int) -> None:
    """Of blocks that nobody may have none is given: the rest of the memory comes in 4 KiB pages."""
    stated = host({"name": "Normal", **PLAIN, **zone})
    bind = {"op": "mbind", "file": "ram", "mode": "bind", "nodes": "0"}
    result = run(RAM, bind, touch(length=80 << 20), on=stated)
    assert result["pages_per_node"].values.tolist() == [[folios, 0]]
    assert result["small_pages_per_node"].values.tolist() == [[(40 - folios) * FOLIO, 0]]


def test_what_can_move_comes_from_zone_movable_too_and_a_guest_memfd_does_not() -> None:
    movable = host({"name": "Movable", **PLAIN})
    assert run(RAM, touch(length=4 << 20), on=movable)["pages_per_node"].values.tolist() == [[2, 0]]
    gmem = {"op": "create", "file": "ram", "size": "1 GiB"}
    fixed = run(gmem, touch(length=4 << 20, by="guest"), on=movable)
    assert fixed["pages_per_node"].values.tolist() == [[0, 2]]


def test_pages_kept_for_atomic_requests_count_as_used() -> None:
    """mm/page_alloc.c: __zone_watermark_unusable_free."""
    kept = {"free_blocks": blocks(1 << 10), "free_by_type": {"HighAtomic": (0, 0, 0, 250)}}
    guest = {"memory": "16 GiB", "page_size": "4 KiB", "design": "filemap"}
    memory = {"op": "memfd", "file": "ram", "size": "4 GiB"}

    def on_node_0(zone: dict[str, Any]) -> int:
        stated = host({"name": "Normal", **PLAIN, **zone})
        result = run(memory, touch(length=4 << 30), on=stated, **guest)
        return int(result["pages_per_node"].values[0, 0])

    assert on_node_0({}) - on_node_0(kept) == 250 * 8


def test_small_files_stand_beside_huge_ones() -> None:
    """Private memory of 4 KiB pages beside huge pages of the shared part, on a released kernel."""
    private = {"op": "create", "file": "private", "size": "64 MiB", "page_size": "4 KiB"}
    guest_touch = {"op": "fault", "file": "private", "by": "guest", "task": "vcpu1"}
    result = run(RAM, private, touch(length=2 << 20), guest_touch, vm_type="snp")
    assert result["file_page_size"].sel(file=["ram", "private"]).values.tolist() == [2 << 20, 4096]
    assert result["pages_per_node"].sel(file="private").values.tolist() == [0, 16384]
    assert result["pages_per_node"].sel(file="ram").values.tolist() == [1, 0]
    second = int(result["metadata_pages"].isel(event=-1).sel(kind="second_stage").sum())
    assert second >= 32, "PTE tables for what has 4 KiB pages"


def test_it_is_one_kind_of_memory() -> None:
    with pytest.raises(WorkbenchError, match="neither an inode nor pages of hugetlb"):
        run({**RAM, "hugetlb": True})
    with pytest.raises(WorkbenchError, match="not whole pages of 2 MiB"):
        run({**RAM, "size": "1 MiB"})
    small = {"op": "create", "file": "p", "page_size": "4 KiB"}
    with pytest.raises(WorkbenchError, match="tracked page by page"):
        run(
            small,
            {"op": "convert", "file": "p", "to": "private", "length": 4096},
            vm_type="sw_protected",
            conversion={"mode": "in-place"},
        )


def test_weights_and_promises_of_the_host_are_taken() -> None:
    """mempolicy/weighted_interleave/nodeN, and huge pages that are free but somebody else's (resv_hugepages)."""
    weighted = host(weight=3)
    weighted["nodes"][1]["weight"] = 1
    policy = {"op": "set_mempolicy", "task": "vcpu0", "mode": "weighted_interleave", "nodes": "0-1"}
    result = run(RAM, policy, touch(length=16 << 20), on=weighted)
    assert result["pages_per_node"].values.tolist() == [[6, 2]]
    pool = {"page_bytes": 2 << 20, "total": 10, "free": 10}
    pooled = host(hugetlb=[pool]) | {"hugetlb_promised": {2 << 20: 4}}
    want = {"op": "memfd", "file": "ram", "hugetlb": True}
    for pages, error in ((6, 0), (7, errno.ENOMEM)):
        result = run({**want, "size": pages << 21}, on=pooled, design="hugetlb")
        assert result["event_errno"].values.tolist() == [error]

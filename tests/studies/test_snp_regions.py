"""Regions without SNP memory on mixed hosts: what the kernel marks is what lists of pages say, and packing helps."""

from __future__ import annotations

import numpy as np
import pytest

from reference import vm_churn as reference
from workbench.errors import WorkbenchError
from workbench.kernels import vm_churn as kernel
from workbench.plots import designs as plots_designs
from workbench.studies import snp_regions, vm_churn
from workbench.studies.snp_regions import WAYS
from workbench.studies.vm_churn import GIB_PAGES

MEMORY, NODES = "16 GiB", 2
PER_NODE = 8 * GIB_PAGES


def walked(host: vm_churn.Allocating, snp: np.ndarray) -> tuple[set[int], int]:
    """Regions and pages of SNP machines, extent by extent in plain Python."""
    regions, total = set(), 0
    for machine in np.flatnonzero(snp).tolist():
        row = int(host.vms[machine, kernel.VM_FIRST])
        while row >= 0:
            if host.page_pages:
                first, pages, following = row * host.page_pages, host.page_pages, int(host.following[row])
            else:
                one = host.held.ranges[row].tolist()
                first, pages, following = one[kernel.ROW_PFN], one[kernel.ROW_PAGES], one[kernel.ROW_NEXT]
                first += one[kernel.ROW_NODE] * PER_NODE if host.counted_by_node else 0
            regions |= {first // GIB_PAGES, *range(first // GIB_PAGES, (first + pages - 1) // GIB_PAGES + 1)}
            total += pages
            row = following
    return regions, total


@pytest.mark.parametrize("allocator", vm_churn.ALLOCATORS)
def test_marks_are_those_of_a_walk(allocator: str) -> None:
    churn = vm_churn.generate(MEMORY, 40, nodes=NODES, seed=3)
    host = vm_churn.Allocating(churn.machines, MEMORY, NODES, allocator)
    snp = np.arange(churn.machines) % 2 == 0
    for part in np.array_split(churn.events, 6):
        host.run(part)
        held, pages = snp_regions._regions(host, snp)
        expected, total = walked(host, snp)
        assert set(np.flatnonzero(held.ravel()).tolist()) == expected
        assert pages.sum() == total
    assert not expected  # all machines have left


def test_a_stream_in_parts_is_the_stream() -> None:
    churn = vm_churn.generate(MEMORY, 40, nodes=NODES, seed=3)
    for allocator in ("first-fit", "kernel buddy", "hugetlb 2 MiB"):
        whole, parts = (vm_churn.Allocating(churn.machines, MEMORY, NODES, allocator) for _ in range(2))
        half = churn.events[: len(churn.events) // 2]
        whole.run(half)
        for part in np.array_split(half, 7):
            parts.run(part)
        np.testing.assert_array_equal(whole.counts, parts.counts)
        np.testing.assert_array_equal(whole.vms, parts.vms)


def test_one_machine_in_ranges_takes_its_own_regions() -> None:
    """3 GiB and a page of SNP memory from node 0, against the reference host's pages: four regions."""
    events = np.array([[0, 3 * GIB_PAGES + 1, 0]])
    host = vm_churn.Allocating(1, MEMORY, NODES, "first-fit")
    host.run(events)
    held, pages = snp_regions._regions(host, np.array([True]))
    twin = reference.RangeHost(PER_NODE // 4096, NODES, "first", [GIB_PAGES // 4096, 1])
    got = twin.take(3 * GIB_PAGES // 4096 + 1, [0, 1])
    assert held[0].tolist() == [True] * 4 + [False] * 4
    assert {pfn * 4096 // GIB_PAGES for _, first, count in got for pfn in (first, first + count - 1)} <= {0, 1, 2, 3}
    assert pages.tolist() == [3 * GIB_PAGES + 1, 0]
    assert not held[1].any()


def test_nodes_of_their_own_keep_regions_free() -> None:
    churn = vm_churn.generate("64 GiB", 300, nodes=4, fill=0.5, seed=1)
    made = snp_regions.snp_regions(churn, "64 GiB", 4, ("first-fit", "hugetlb 2 MiB", "kernel buddy"), samples=8)
    clear = made["regions_without_snp"].sum("node").mean("sample")
    assert (clear.sel(way=WAYS[1]) > clear.sel(way=WAYS[0])).all()
    assert (made["regions_without_snp"] + made["regions_needed"] <= 16).all()
    assert len(plots_designs.snp_regions(made).axes) == 4


@pytest.mark.parametrize(("share", "nodes"), [(0.0, 4), (1.0, 4), (0.5, 1)])
def test_bad_input(share: float, nodes: int) -> None:
    churn = vm_churn.generate("64 GiB", 10, nodes=nodes)
    with pytest.raises(WorkbenchError, match="share: "):
        snp_regions.snp_regions(churn, "64 GiB", nodes, share=share)

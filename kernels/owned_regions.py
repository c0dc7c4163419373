"""Which 1 GiB regions of a host hold memory of chosen machines, from what :mod:`workbench.kernels.vm_churn` says they hold.

RMPOPT (``arch/x86/virt/svm/sev.c``, 7.4) skips the check of the reverse map table for regions that hold no SNP guest memory; the
owner of each extent decides. A region counts as held if one page in it belongs to a chosen machine.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel
from workbench.kernels.vm_churn import ROW_NEXT, ROW_NODE, ROW_PAGES, ROW_PFN, VM_FIRST

REGION_SHIFT = 18


@kernel
def held_by_extents(
    ranges: np.ndarray,
    by_node: bool,
    vms: np.ndarray,
    chosen: np.ndarray,
    node_pages: Int,
    held: np.ndarray,
    pages: np.ndarray,
) -> None:
    """Mark regions in which a machine with ``chosen`` bool (machines,) has an extent.

    Parameters
    ----------
    ranges, vms : :class:`workbench.kernels.vm_churn.Held`
    by_node : pfns count from the start of their node
    held : bool (regions of the host,), receives the marks
    pages : int64 (nodes,), receives the pages of these machines on each node
    """
    for machine in range(vms.shape[0]):
        row = vms[machine, VM_FIRST] if chosen[machine] else np.int64(-1)
        while row >= 0:
            node = ranges[row, ROW_NODE]
            first = ranges[row, ROW_PFN] + (node * node_pages if by_node else 0)
            for region in range(first >> REGION_SHIFT, ((first + ranges[row, ROW_PAGES] - 1) >> REGION_SHIFT) + 1):
                held[region] = True
            pages[node] += ranges[row, ROW_PAGES]
            row = ranges[row, ROW_NEXT]


@kernel
def held_by_huge_pages(
    following: np.ndarray,
    page_pages: Int,
    vms: np.ndarray,
    chosen: np.ndarray,
    node_pages: Int,
    held: np.ndarray,
    pages: np.ndarray,
) -> None:
    """The same of machines on huge pages of ``page_pages`` pages, which are on lists (``following`` int32)."""
    for machine in range(vms.shape[0]):
        page = vms[machine, VM_FIRST] if chosen[machine] else np.int64(-1)
        while page >= 0:
            held[(page * page_pages) >> REGION_SHIFT] = True
            pages[page * page_pages // node_pages] += page_pages
            page = np.int64(following[page])


@kernel
def pages_by_region(
    ranges: np.ndarray, by_node: bool, vms: np.ndarray, chosen: np.ndarray, node_pages: Int, pages: np.ndarray
) -> None:
    """Count the pages that machines hold in each region: ``pages`` int64 (2, regions), of those not chosen and of the chosen.

    The other arguments are those of :func:`held_by_extents`.
    """
    for machine in range(vms.shape[0]):
        kind = np.int64(chosen[machine])
        row = vms[machine, VM_FIRST]
        while row >= 0:
            first = ranges[row, ROW_PFN] + (ranges[row, ROW_NODE] * node_pages if by_node else 0)
            end = first + ranges[row, ROW_PAGES]
            while first < end:
                region = first >> REGION_SHIFT
                stop = min(end, (region + 1) << REGION_SHIFT)
                pages[kind, region] += stop - first
                first = stop
            row = ranges[row, ROW_NEXT]

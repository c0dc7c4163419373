"""Scratch areas that a kernel with ``kho=on`` sets aside at boot, as MIGRATE_CMA: pages that cannot move never get them.

Linux: ``kernel/liveupdate/kexec_handover.c`` (``scratch_size_update``, ``scratch_size_node``, ``kho_reserve_scratch``). One
area below 4 GiB, one anywhere, one on each node, each twice (``kho_scratch``: 200 %) what the kernel had reserved there,
in whole page blocks. The first two come from the top of the memory they may lie in.

What a kernel reserves is modelled: the struct pages of each node and :data:`PER_NODE_BYTES`, and :data:`IMAGE_BYTES` on the
node where memory begins. The two constants were set on the two hosts of ``datasets/recordings/private`` (k2eq and k3uneq: 2
and 3 nodes of 320 to 512 MiB, all below 4 GiB, one build of Linux 7.3.4 with a kernel of 14 MiB): of the seven areas that
were made there four come out and three are one page block (2 MiB) off. That is a fit. k4asym, recorded afterwards (4 nodes
of 256 to 448 MiB, the same sources), is no part of it: its nodes have 10240, 3072, 3072 and 22528 pages in areas, and 9728,
3584, 3072 and 23040 come out, one page block off at most. What is not covered: memory above 4 GiB, other kernels and
initramfs (a distribution's reserve more, so that areas are larger), ``crashkernel=`` and hugetlb pages reserved at boot. A
host that states ``free_cma`` of its zones is taken by its word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.units import PAGE_SIZE

Int64s = npt.NDArray[np.int64]

SCALE_PERCENT = 200
PAGEBLOCK_PAGES = 512
"""CMA_MIN_ALIGNMENT_PAGES."""
STRUCT_PAGE_SHARE = 64
PER_NODE_BYTES = 1_115_000
IMAGE_BYTES = 11_380_000
FOUR_GIB_PFN = (4 << 30) // PAGE_SIZE


def scratch_pages(zone_node: Int64s, start_pfn: Int64s, managed: Int64s, nodes: int) -> Int64s:
    """Pages of all scratch areas in each zone, int64 (zones,); none anywhere if one of them does not fit.

    Zones lie at ``start_pfn`` and are as long as their memory with its struct pages; those of the engine's layout.
    """
    if not len(managed):
        return np.zeros(0, np.int64)
    present = managed + managed // (STRUCT_PAGE_SHARE - 1)
    reserved = np.bincount(zone_node, present, nodes) // STRUCT_PAGE_SHARE + PER_NODE_BYTES / PAGE_SIZE
    reserved[np.bincount(zone_node, present, nodes) == 0] = 0
    first = int(np.argmin(start_pfn))
    reserved[zone_node[first]] += IMAGE_BYTES / PAGE_SIZE
    below = start_pfn + present <= FOUR_GIB_PFN
    # A node allocates its struct pages from its top: below 4 GiB only if all of it lies there.
    whole = np.array([bool(below[zone_node == node].all()) for node in range(nodes)])
    low = float(reserved[whole].sum()) + (0.0 if whole[zone_node[first]] else IMAGE_BYTES / PAGE_SIZE)
    out = np.zeros(len(managed), np.int64)
    low_pages = _blocks(low)
    wanted = [(low_pages, below), (_blocks(float(reserved.sum()), low_pages), np.ones(len(managed), bool))]
    wanted += [(_blocks(float(reserved[node])), zone_node == node) for node in range(nodes)]
    for pages, eligible in wanted:
        for zone in np.argsort(-start_pfn, kind="stable"):
            if pages and eligible[zone] and managed[zone] - out[zone] >= pages:
                out[zone] += pages
                pages = 0
        if pages:  # kho_reserve_scratch fails, and handover is off
            return np.zeros(len(managed), np.int64)
    return out


def _blocks(reserved: float, less: int = 0) -> int:
    """Twice the pages reserved, less what an area has already, in whole page blocks."""
    pages = reserved * SCALE_PERCENT / 100 - less
    return max(0, int(-(-pages // PAGEBLOCK_PAGES)) * PAGEBLOCK_PAGES)

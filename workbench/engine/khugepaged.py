"""khugepaged: the 4 KiB folios of 2 MiB are copied into a huge folio that is free now, wherever they lie.

Linux: ``mm/khugepaged.c`` (``hpage_collapse_scan_file``, ``hpage_collapse_find_target_node``, ``alloc_charge_folio``,
``collapse_file``). One aligned 2 MiB after the other, each wholly inside the range:

- up to ``max_ptes_none`` pages may be missing; they are there afterwards, zeroed;
- a folio that is not on the LRU list or has a reference beside the page cache's ends the scan: pinned, poisoned, preserved
  by a live-update session. Batches are drained first (``khugepaged_do_scan: lru_add_drain_all``);
- the new folio is on the node with most of the pages, whatever policy put them there; where several have as many, it may be any
  of these, the first in the fallback order of the first. No other node: where none of them has a block, nothing happens
  (vmstat ``thp_collapse_alloc_failed``). No cpuset and no policy of a task counts, for khugepaged is none of the guest's;
- the new folio is taken before the old ones are free: for a moment both are.

No kernel has THP of guest_memfd: ``collapse_file`` is for tmpfs and files that are only read. What is proposed here is the same
for private memory of VMs whose memory the host can read. That of SNP and TDX guests nobody can copy: the key depends on the
frame, and Linux uses neither SNP_PAGE_MOVE nor TDH.MEM.PAGE.RELOCATE. Shared pages have users that hold 4 KiB folios, so that
a 2 MiB with any stays as it is. Unlike khugepaged's own mask (GFP_TRANSHUGE, which is movable) the mapping's keeps to zones
for what cannot move. Taken for granted: ``node_reclaim_mode`` 0, as it is by default (``hpage_collapse_scan_abort``), blocks that
are free without reclaim or compaction, and a pass that goes on after an allocation has failed, as khugepaged's next one does.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.conversions import NOTHING_HELD, Conversions
from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode, Thread
from workbench.intervals import Int64s
from workbench.kernels.folios.run import PAGES_2M
from workbench.kernels.placement import ALLOCATIONS, START
from workbench.tracking.confidential import ENCRYPTED
from workbench.tracking.folio_file import ConversionFile
from workbench.units import PAGE_ORDERS, PAGE_SIZE


def can_copy(system: HostState, inode: Inode) -> bool:
    """Whether a file has 4 KiB folios in place of huge ones of the page allocator, in memory that the host can read."""
    buddy = system.design.folios == "buddy" and inode.order == PAGE_ORDERS["2 MiB"] and inode.small is not None
    return buddy and system.scenario.guest.vm_type not in ENCRYPTED


def collapse(
    system: HostState, conversions: Conversions, task: Thread, inode: Inode, first: int, end: int, max_ptes_none: int
) -> dict[str, int]:
    """Collapse what can be of pages [first, end). Counts, by the names of vmstat and of ``enum scan_result``."""
    file, small = inode.tracked, inode.small
    assert isinstance(file, ConversionFile) and small is not None
    counts = dict.fromkeys(
        ("collapsed_2m", "copied_pages", "thp_collapse_alloc_failed", "exceed_none_pte", "page_count"), 0
    )
    blocks = file.small_blocks(-(-first // PAGES_2M), end // PAGES_2M)
    if not len(blocks):
        return counts
    file.lru_drain()
    held = np.unique(np.concatenate((file.pinned(), file.poisoned())) // PAGES_2M)
    for block in blocks.tolist():
        page = block * PAGES_2M
        zones = small.zone_of(np.arange(page, page + PAGES_2M))
        load = np.bincount(system.zone_node[zones[zones >= 0]], minlength=system.nodes)
        if inode.frozen or block in held:
            counts["page_count"] += 1
        elif load.sum() < PAGES_2M - max_ptes_none:
            counts["exceed_none_pte"] += 1
        elif not _take(system, task, inode, block, load):
            counts["thp_collapse_alloc_failed"] += 1
        else:
            inode.entered[0] = int(inode.map.progress[ALLOCATIONS])
            zone = int(inode.map.zone_of(np.array([block]))[0])
            outcome = file.collapse(page * PAGE_SIZE, int(system.zone_node[zone]))
            assert not outcome.errno
            if inode.users is not None:
                inode.users.invalidate(page, page + PAGES_2M)
            conversions.erase_small(inode, file, page, page + PAGES_2M, NOTHING_HELD)
            counts["collapsed_2m"] += 1
            counts["copied_pages"] += int(load.sum())
    return counts


def _take(system: HostState, task: Thread, inode: Inode, block: int, load: Int64s) -> bool:
    """A huge folio for a 2 MiB of which so many pages lie on each node, int64 (nodes,). False: none is free there."""
    most = load == load.max()
    asked = START, int(np.argmax(load)), 1, most, np.stack((most, most))
    requests = system.request_table([(task.index, -1, asked)])
    return system.place_pieces(inode, np.array([[block, 1, 1, 0]], np.int64), requests, inode.order)

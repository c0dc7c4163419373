"""Compaction: pages that can move go up to free frames of their zone, so that free blocks form below.

Linux: ``mm/compaction.c`` (``compact_node``, ``compact_zone``, ``isolate_migratepages``, ``isolate_freepages``), as
``/sys/devices/system/node/nodeN/compact`` starts it: whole zones, synchronously, without hints of earlier passes. The
migrate scanner takes movable pages from the start of the zone up, the free scanner free pages from its end down, page
block by page block (2 MiB), until they meet (``compact_scanners_met``). A page block that is wholly free is no target, nor
is one of another migrate type (``suitable_migration_target``).

Which pages move, and which frames are filled, is exact for the frames that the run keeps. Taken for granted: a page block with
a page that cannot move is not of type MOVABLE, which is so where such memory has claimed it; of the frames that one page block
gives, which page gets which (the kernel shuffles them within a batch of 32); and frames are where
:mod:`workbench.kernels.pfns` puts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode
from workbench.engine.placing import check_listed
from workbench.intervals import Int64s, in_intervals, true_intervals
from workbench.kernels.placement import ALLOCATIONS
from workbench.units import PAGE_ORDERS

BLOCK = PAGE_ORDERS["2 MiB"]
"""pageblock_order."""


@dataclass(frozen=True)
class Frames:
    """What one zone's frames hold: ascending pfns, int64 (n,), of pages that can move, of those that cannot, and of free ones."""

    moves: Int64s
    stays: Int64s
    free: Int64s


def scanned(frames: Frames) -> tuple[Int64s, Int64s]:
    """Frames that are emptied and frames that are filled, int64 (n,) each, the k-th into the k-th."""
    source, free = frames.moves, frames.free
    blocks, size = np.unique(free >> BLOCK, return_counts=True)
    target = blocks[(size < 1 << BLOCK) & ~np.isin(blocks, frames.stays >> BLOCK)]
    free = free[np.isin(free >> BLOCK, target)]
    free = free[np.lexsort((free, -(free >> BLOCK)))]  # page blocks from the end of the zone, frames in each upwards
    most = min(len(source), len(free))
    source, free = source[:most], free[:most]
    apart = source >> BLOCK < free >> BLOCK  # the scanners have not met; once they have, they never part again
    return source[apart], free[apart]


def scanned_blocks(moves: Int64s, stays: Int64s, free: Int64s) -> tuple[Int64s, Int64s]:
    """:func:`scanned` of the frames of each page block, int64 (blocks,) each: how many are emptied and how many are filled."""
    target = np.flatnonzero((free > 0) & (free < 1 << BLOCK) & (stays == 0))[::-1]
    emptied, filled = np.cumsum(moves), np.cumsum(free[target])
    done, most = 0, min(int(moves.sum()), int(free[target].sum()))
    while done < most:  # page k goes from a block to one above it as long as k is below the number that do
        middle = (done + most) // 2
        source, into = np.searchsorted(emptied, middle, "right"), target[np.searchsorted(filled, middle, "right")]
        done, most = (middle + 1, most) if source < into else (done, middle)
    out = np.zeros((2, len(moves)), np.int64)
    out[0] = np.diff(np.minimum(emptied, done), prepend=0)
    out[1, target] = np.diff(np.minimum(filled, done), prepend=0)
    return out[0], out[1]


def compact(system: HostState, zones: Sequence[int]) -> dict[str, int]:
    """Compact these zones. Counts: pages moved, and free blocks of 2 MiB and 1 GiB before and after."""
    assert system.free_pfns is not None
    inodes = [inode for inode in system.inodes() if inode.pfns is not None]
    check_listed(sum(inode.extent for inode in inodes) + int(system.free[list(zones)].sum()), "compact")
    pfns = {inode: _pfns(system, inode) for inode in inodes}
    where = {inode: inode.map.zone_of(np.arange(inode.extent)) for inode in inodes}
    can = {inode: _can_move(inode) for inode in inodes}
    counts = dict.fromkeys(("moved", "blocks_2m_before", "blocks_2m", "blocks_1g_before", "blocks_1g"), 0)
    moved = {inode: np.zeros(inode.extent, bool) for inode in inodes}
    for zone in zones:
        free = system.free_pfns.free_in(zone)
        here = {inode: where[inode] == zone for inode in inodes}
        moves = _sorted([pfns[inode][here[inode] & can[inode]] for inode in inodes])
        stays = _sorted([pfns[inode][here[inode] & ~can[inode]] for inode in inodes])
        source, target = scanned(Frames(moves, stays, free))
        after = np.union1d(np.setdiff1d(free, target, assume_unique=True), source)
        for name, order in (("blocks_2m", BLOCK), ("blocks_1g", PAGE_ORDERS["1 GiB"])):
            counts[f"{name}_before"] += _whole(free, order)
            counts[name] += _whole(after, order)
        counts["moved"] += len(source)
        if len(source):
            system.free_pfns.replace(zone, after)
        for inode in inodes if len(source) else ():
            mine = np.flatnonzero(here[inode] & can[inode])  # other zones may have frames of the same numbers
            at = np.minimum(np.searchsorted(source, pfns[inode][mine]), len(source) - 1)
            hit = source[at] == pfns[inode][mine]
            pfns[inode][mine[hit]] = target[at[hit]]
            moved[inode][mine[hit]] = True
    for inode in inodes:
        if moved[inode].any():
            _enter(system, inode, pfns[inode], where[inode])
            if inode.users is not None:
                for start, end in true_intervals(moved[inode], 0).tolist():
                    inode.users.moved(start, end)
    return counts


def _pfns(system: HostState, inode: Inode) -> Int64s:
    assert system.free_pfns is not None and inode.pfns is not None
    return system.free_pfns.of_file(inode.map, inode.pfns, inode.extent)


def _can_move(inode: Inode) -> np.ndarray:
    """Pages that migration would take, bool (pages,): not those that a device, a pin or a live-update session holds."""
    can = np.full(inode.extent, inode.movable and not inode.frozen)
    if inode.tracked is not None:
        pinned = inode.tracked.pinned()
        can[pinned[pinned < len(can)]] = False
    if len(inode.device_areas):
        can &= ~in_intervals(np.arange(len(can)), inode.device_areas)
    return can


def _sorted(parts: list[Int64s]) -> Int64s:
    joined: Int64s = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
    return joined


def _whole(free: Int64s, order: int) -> int:
    """Aligned blocks of which every frame is free."""
    _, size = np.unique(free >> order, return_counts=True)
    return int((size == 1 << order).sum())


def _enter(system: HostState, inode: Inode, pfns: Int64s, zones: Int64s) -> None:
    """Put the new frames into the inode's book, page by page."""
    assert inode.pfns is not None
    map_ = inode.map
    present = true_intervals(zones >= 0, 0)
    map_.erase(0, inode.extent, len(system.free))
    before = int(map_.progress[ALLOCATIONS])
    map_.add_list(present, zones.astype(np.int16), 0)
    for row, (start, end) in enumerate(present.tolist(), before):
        inode.pfns.listed[row] = pfns[start:end].copy()

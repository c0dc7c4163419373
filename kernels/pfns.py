"""Which pfn each placed folio gets, kept as extents: the order in which zones hand out their free memory.

A zone hands out ascending pfns from what was free at boot; what is freed comes back last in, first out, as from a
per-CPU list (``mm/page_alloc.c``: ``free_frozen_page_commit`` pushes at the head, ``rmqueue_pcplist`` takes from it). The
model does not flush lists into the buddy and does not know which blocks the boot left free: nodes are exact, pfns are
modelled. :mod:`workbench.kernels.buddy` has the exact lists of one zone, page by page.

State of a zone: a stack of free extents. ``stack`` int64 (entries, 4) holds first pfn, folios, step (+1 or -1) and the
row below; ``top`` int64 (zones,) the row of each zone's newest extent, -1 if none; ``unused`` int64 (2,) the head of the
list of unused rows (linked by the last column) and how many there are. Pfns count folios of the pool's own size.

What an allocation (a row of :mod:`workbench.kernels.filemap`) got is ``extents`` int64 (rows, 3): pfn, folios, step, in the order
in which the zone handed them out. ``first`` int64 (allocations, zones) names the first extent of each zone.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel
from workbench.kernels.filemap import COUNT, FIRST, OFFSET, PERIOD, STEP


@kernel
def push(zone: Int, pfn: Int, count: Int, step: Int, stack: np.ndarray, top: np.ndarray, unused: np.ndarray) -> Int:
    """Free an extent: its first pfn is the next that the zone hands out. Returns 0, or -1 if no row is unused."""
    newest = top[zone]
    if newest >= 0 and stack[newest, 0] == pfn + count * step and (stack[newest, 2] == step or stack[newest, 1] == 1):
        stack[newest, 0] = pfn
        stack[newest, 1] += count
        stack[newest, 2] = step
        return 0
    row = unused[0]
    if row < 0:
        return -1
    unused[0] = stack[row, 3]
    unused[1] -= 1
    stack[row, 0] = pfn
    stack[row, 1] = count
    stack[row, 2] = step
    stack[row, 3] = newest
    top[zone] = row
    return 0


@kernel
def hand_out(
    allocations: np.ndarray,
    tiles: np.ndarray,
    begin: Int,
    end: Int,
    stack: np.ndarray,
    top: np.ndarray,
    unused: np.ndarray,
    counts: np.ndarray,
    first: np.ndarray,
    extents: np.ndarray,
    used: Int,
) -> Int:
    """Give the folios of allocations ``[begin, end)`` their pfns, zone by zone in the order they were placed.

    ``counts`` int64 (zones,) is working space; ``first`` and ``extents`` receive the answer, ``extents`` from row
    ``used`` on. Returns the rows then used, or -1 if ``extents`` is too short (nothing has changed for the allocation
    that did not fit; the caller grows ``extents`` so that every stack row could be used up once).
    """
    for row in range(begin, end):
        counts[:] = 0
        offset, period, total = allocations[row, OFFSET], allocations[row, PERIOD], allocations[row, COUNT]
        whole = total // period
        for position in range(period):
            counts[tiles[offset + position]] += whole + (position < total - whole * period)
        for zone in range(counts.shape[0]):
            first[row, zone] = used
            left = counts[zone]
            while left > 0:
                source = top[zone]
                if source < 0 or used == extents.shape[0]:
                    return -1
                part = min(left, stack[source, 1])
                extents[used, 0] = stack[source, 0]
                extents[used, 1] = part
                extents[used, 2] = stack[source, 2]
                used += 1
                left -= part
                _shrink(zone, source, part, stack, top, unused)
    return used


@kernel
def hand_out_list(
    zones: np.ndarray,
    pages: np.ndarray,
    base: Int,
    stack: np.ndarray,
    top: np.ndarray,
    unused: np.ndarray,
    out: np.ndarray,
) -> Int:
    """Give folios placed one by one their pfns: ``out[page - base]`` int64 receives the pfn of each.

    ``zones`` int16 (n,) and ``pages`` int64 (n,) are in the order of the touches. Returns 0, or -1 if a zone is empty.
    """
    for position in range(pages.shape[0]):
        zone = zones[position]
        source = top[zone]
        if source < 0:
            return -1
        out[pages[position] - base] = stack[source, 0]
        _shrink(zone, source, 1, stack, top, unused)
    return 0


@kernel
def _shrink(zone: Int, row: Int, part: Int, stack: np.ndarray, top: np.ndarray, unused: np.ndarray) -> None:
    """Take ``part`` folios off the front of an extent that is on top of its zone's stack."""
    if part < stack[row, 1]:
        stack[row, 0] += part * stack[row, 2]
        stack[row, 1] -= part
        return
    top[zone] = stack[row, 3]
    stack[row, 3] = unused[0]
    unused[0] = row
    unused[1] += 1


@kernel
def pfns_of_run(
    run: np.ndarray,
    allocations: np.ndarray,
    tiles: np.ndarray,
    first: np.ndarray,
    extents: np.ndarray,
    rank: np.ndarray,
    at: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the pfn of every folio of one run: ``out`` int64 (folios,) in ascending order of index.

    ``run`` int64 (3,) is a row of the file's runs. ``rank`` and ``at`` int64 (zones,) are working space: the folios of
    each zone passed so far within its current extent, and that extent.
    """
    row = run[2]
    offset, period, step = allocations[row, OFFSET], allocations[row, PERIOD], allocations[row, STEP]
    low = (run[0] - allocations[row, FIRST]) * step
    if step < 0:
        low -= run[1] - 1
    _seek(row, low, allocations, tiles, first, extents, rank, at)
    for position in range(run[1]):
        zone = tiles[offset + (low + position) % period]
        while rank[zone] == extents[at[zone], 1]:
            at[zone] += 1
            rank[zone] = 0
        pfn = extents[at[zone], 0] + rank[zone] * extents[at[zone], 2]
        rank[zone] += 1
        out[position if step > 0 else run[1] - 1 - position] = pfn


@kernel
def _seek(
    row: Int,
    position: Int,
    allocations: np.ndarray,
    tiles: np.ndarray,
    first: np.ndarray,
    extents: np.ndarray,
    rank: np.ndarray,
    at: np.ndarray,
) -> None:
    """Set ``rank`` and ``at`` of every zone to what ``position`` folios of an allocation have used."""
    offset, period = allocations[row, OFFSET], allocations[row, PERIOD]
    whole = position // period
    rank[:] = 0
    for place in range(period):
        rank[tiles[offset + place]] += whole + (place < position - whole * period)
    for zone in range(rank.shape[0]):
        at[zone] = first[row, zone]
        while rank[zone] > 0 and rank[zone] >= extents[at[zone], 1]:
            rank[zone] -= extents[at[zone], 1]
            at[zone] += 1


@kernel
def release(
    run: np.ndarray,
    allocations: np.ndarray,
    tiles: np.ndarray,
    first: np.ndarray,
    extents: np.ndarray,
    rank: np.ndarray,
    at: np.ndarray,
    counts: np.ndarray,
    stack: np.ndarray,
    top: np.ndarray,
    unused: np.ndarray,
) -> Int:
    """Free the folios of one run in ascending order of index; the last one freed is the next one handed out.

    Returns 0, or -1 when ``stack`` has no unused row left (the caller keeps enough).
    """
    row = run[2]
    offset, period, step = allocations[row, OFFSET], allocations[row, PERIOD], allocations[row, STEP]
    low = (run[0] - allocations[row, FIRST]) * step
    if step < 0:
        low -= run[1] - 1
    _seek(row, low, allocations, tiles, first, extents, rank, at)
    counts[:] = 0
    whole = run[1] // period
    for place in range(period):
        counts[tiles[offset + (low + place) % period]] += whole + (place < run[1] - whole * period)
    for zone in range(counts.shape[0]):
        if counts[zone] > 0 and _release_zone(zone, counts[zone], step, rank, at, extents, stack, top, unused) < 0:
            return -1
    return 0


@kernel
def _release_zone(
    zone: Int,
    count: Int,
    step: Int,
    rank: np.ndarray,
    at: np.ndarray,
    extents: np.ndarray,
    stack: np.ndarray,
    top: np.ndarray,
    unused: np.ndarray,
) -> Int:
    """Push ``count`` folios of one zone from (``at``, ``rank``) on; parts in the order in which they are freed."""
    begin, skip, last, left = at[zone], rank[zone], at[zone], count
    while left > extents[last, 1] - (skip if last == begin else 0):
        left -= extents[last, 1] - (skip if last == begin else 0)
        last += 1
    # Rank order is index order when pages were touched upwards, and its reverse when they were touched downwards.
    parts = last - begin + 1
    for number in range(parts):
        extent = begin + number if step > 0 else last - number
        low = skip if extent == begin else 0
        high = low + left if extent == begin == last else (left if extent == last else extents[extent, 1])
        pfn, direction = extents[extent, 0], extents[extent, 2]
        if step > 0:
            failed = push(zone, pfn + (high - 1) * direction, high - low, -direction, stack, top, unused)
        else:
            failed = push(zone, pfn + low * direction, high - low, direction, stack, top, unused)
        if failed < 0:
            return -1
    return 0


@kernel
def release_list(zones: np.ndarray, pfns: np.ndarray, stack: np.ndarray, top: np.ndarray, unused: np.ndarray) -> Int:
    """Free folios one by one: ``zones`` int16 (n,) and ``pfns`` int64 (n,) in ascending order of index."""
    for position in range(pfns.shape[0]):
        zone, pfn = zones[position], pfns[position]
        newest = top[zone]
        # A neighbour of the newest extent joins it; the direction of a single folio is free to choose.
        step = 1 if newest >= 0 and stack[newest, 0] == pfn + 1 else -1
        if push(zone, pfn, 1, step, stack, top, unused) < 0:
            return -1
    return 0

"""Offset -> pfn in a table of ranges sorted by index: 24 bytes per extent, found by binary search.

The lightest structure that keeps one record per extent; insertion in the middle moves the records behind it. There
is no such table in Linux; the closest relatives are the memslot array of old kernels and memblock
(``mm/memblock.c: memblock_add_range``).

State: ``start``, ``length``, ``pfn`` int64 (extents,) and ``top`` int64 (2,): extents in use, records moved so far.
The caller sees to it that :data:`STORE_ROOM` records are left before a store.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

EXTENT_BYTES = 24
STORE_ROOM = 2
"""Records one store can add: the range itself and the outer part of an extent it cuts in two."""
COUNT, MOVED = 0, 1
TOP_FIELDS = 2
DIRECTORY_SHIFT = 9
"""One directory entry per 2 MiB."""


@kernel
def clear(top: np.ndarray) -> None:
    """Make the map empty."""
    top[COUNT] = 0
    top[MOVED] = 0


@inlined_kernel
def _position_between(start: np.ndarray, low: np.uint32, high: np.uint32, index: Int) -> np.uint32:
    """Number of extents that start at ``index`` or before it, known to be ``low`` to ``high``."""
    while low < high:
        middle = np.uint32((low + high) >> np.uint32(1))
        if start[middle] <= index:
            low = np.uint32(middle + np.uint32(1))
        else:
            high = middle
    return low


@kernel
def position(start: np.ndarray, top: np.ndarray, index: Int) -> Int:
    """Number of extents that start at ``index`` or before it."""
    return np.int64(_position_between(start, np.uint32(0), np.uint32(top[COUNT]), index))


@inlined_kernel
def load(start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray, index: Int) -> Int:
    """Return the pfn of page ``index``, -1 if there is none."""
    extent = position(start, top, index) - 1
    if extent < 0:
        return -1
    offset = index - start[extent]
    return pfn[extent] + offset if offset < length[extent] else -1  # type: ignore[return-value]


@kernel
def load_many(
    start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray, indices: np.ndarray, out: np.ndarray
) -> None:
    """:func:`load` for each of ``indices`` (int64) into ``out`` (int64)."""
    for k in range(indices.shape[0]):
        out[k] = load(start, length, pfn, top, indices[k])


@kernel
def depth(top: np.ndarray) -> Int:
    """Records a binary search touches at most: ceil(log2(extents + 1))."""
    touched = 0
    while 1 << touched < top[COUNT] + 1:
        touched += 1
    return touched


@kernel
def find(
    start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray, index: Int, found: np.ndarray
) -> bool:
    """Find the extent that holds ``index`` or the first one after it: first index, pages, pfn into ``found``."""
    extent = position(start, top, index) - 1
    if extent < 0 or index >= start[extent] + length[extent]:
        extent += 1
    if extent >= top[COUNT]:
        return False
    found[0] = start[extent]
    found[1] = length[extent]
    found[2] = pfn[extent]
    return True


@kernel
def _make_gap(start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray, at: Int, change: Int) -> None:
    """Move the records from ``at`` on by ``change`` places (a negative change removes records before ``at``)."""
    count = top[COUNT]
    top[MOVED] += count - at
    if change > 0:
        for k in range(count - 1, at - 1, -1):
            start[k + change] = start[k]
        for k in range(count - 1, at - 1, -1):
            length[k + change] = length[k]
        for k in range(count - 1, at - 1, -1):
            pfn[k + change] = pfn[k]
    elif change < 0:
        for k in range(at, count):
            start[k + change] = start[k]
        for k in range(at, count):
            length[k + change] = length[k]
        for k in range(at, count):
            pfn[k + change] = pfn[k]
    top[COUNT] = count + change


@kernel
def store(
    start: np.ndarray,
    length: np.ndarray,
    pfn: np.ndarray,
    top: np.ndarray,
    index: Int,
    pages: Int,
    first_pfn: Int,
) -> Int:
    """Map ``[index, index + pages)`` to ``first_pfn`` on, or to nothing if it is -1; replaces what was there.

    Extents cut at a border keep their outer part. Returns the number of extents removed or cut.
    """
    end = index + pages
    low = position(start, top, index) - 1
    if low < 0 or start[low] + length[low] <= index:
        low += 1
    high = position(start, top, end - 1)  # extents low .. high - 1 overlap the range
    removed = high - low
    head: Int = 0
    tail: Int = 0
    tail_pfn: Int = 0
    if removed > 0:
        head = max(0, index - start[low])  # type: ignore[assignment]
        tail = max(0, start[high - 1] + length[high - 1] - end)
        tail_pfn = pfn[high - 1] + length[high - 1] - tail
    added = (1 if first_pfn >= 0 else 0) + (1 if tail > 0 else 0)
    keep = low + (1 if head > 0 else 0)
    _make_gap(start, length, pfn, top, high, keep + added - high)
    if head > 0:
        length[low] = head
    at = keep
    if first_pfn >= 0:
        start[at] = index
        length[at] = pages
        pfn[at] = first_pfn
        at += 1
    if tail > 0:
        start[at] = end
        length[at] = tail
        pfn[at] = tail_pfn
    return removed


@kernel
def split(start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray, index: Int, order: Int) -> Int:
    """Cut the extent that holds ``index`` at every multiple of ``2**order``.

    Returns the number of extents it became, 0 if there is none, or minus the room it would need.
    """
    extent = position(start, top, index) - 1
    if extent < 0 or index >= start[extent] + length[extent]:
        return 0
    first = start[extent]
    end = first + length[extent]
    first_pfn = pfn[extent]
    pieces = ((end - 1) >> order) - (first >> order) + 1
    if top[COUNT] + pieces - 1 > start.shape[0]:
        return -(pieces - 1)
    _make_gap(start, length, pfn, top, extent + 1, pieces - 1)
    at = first
    for k in range(extent, extent + pieces):
        border = min(end, ((at >> order) + 1) << order)
        start[k] = at
        length[k] = border - at
        pfn[k] = first_pfn + at - first
        at = border
    return pieces


@kernel
def fill_directory(start: np.ndarray, top: np.ndarray, directory: np.ndarray) -> None:
    """Build the directory: ``directory[c]`` (int32) is the number of extents that start before 2 MiB chunk ``c``."""
    extent = 0
    for chunk in range(directory.shape[0]):
        while extent < top[COUNT] and start[extent] < chunk << DIRECTORY_SHIFT:
            extent += 1
        directory[chunk] = extent


@kernel
def load_many_directory(
    start: np.ndarray,
    length: np.ndarray,
    pfn: np.ndarray,
    directory: np.ndarray,
    indices: np.ndarray,
    out: np.ndarray,
) -> None:
    """Look up through the directory, which has one entry more than there are chunks; every index is inside."""
    for k in range(indices.shape[0]):
        index = indices[k]
        chunk = np.uint32(index >> DIRECTORY_SHIFT)
        low = np.uint32(directory[chunk])
        low = _position_between(start, low, np.uint32(directory[chunk + np.uint32(1)]), index)
        out[k] = -1
        if low > np.uint32(0):
            extent = np.uint32(low - np.uint32(1))
            offset = index - start[extent]
            if offset < length[extent]:
                out[k] = pfn[extent] + offset

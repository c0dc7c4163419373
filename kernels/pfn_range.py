"""Page frames without struct page: ranges of memory taken out of the page allocator's hands and served per node.

The allocator the proposals ask for (guest_memfd "PFN range allocators", live update with kexec handover). It keeps
free ranges, not pages: its cost follows the number of free ranges. Three ways to choose a range:

``FIRST_FIT``
    the lowest address that fits;
``BEST_FIT``
    the smallest range that fits, the lowest address among equals;
``BUDDY``
    power-of-two blocks split and coalesced as in ``mm/page_alloc.c`` (``expand``, ``__free_one_page``), the lowest
    address of the smallest order; odd sizes give back the tail, as ``alloc_pages_exact`` does. Unlike Linux it
    knows orders up to 1 GiB and beyond, and keeps no list in struct page.

State of the two fits: ``start``, ``end`` int64 (nodes, capacity), free ranges of each node in ascending order,
never touching each other; ``count`` int64 (nodes,).
State of the buddy: ``blocks`` int64 (nodes, orders, capacity), first pfns of the free blocks of each order in
ascending order; ``blocks_count`` int64 (nodes, orders).

An allocation asks for ``pages`` with an alignment of ``align`` pages (a power of two): 1, 512, 262,144 for the three
page sizes, anything for odd sizes. The caller sees to it that one free slot per node (per order) is left.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

FIRST_FIT, BEST_FIT, BUDDY = 0, 1, 2
NAMES = ("first-fit", "best-fit", "buddy")
ONE = np.uint64(1)
OK, NO_MEMORY, NEEDS_ROOM, NOT_ALLOCATED = 0, -1, -2, -3
"""Return codes: done; no range fits; the table of free ranges is full; the range freed was (partly) free."""


# One node's ranges are two rows, low to high. Indices are unsigned, so that none is taken for one counted from the end:
# twice as fast. The helpers are compiled into their callers, because handing them the arrays costs as much as they do.


@inlined_kernel
def _open_gap(row: np.ndarray, at: np.uint64, count: np.uint64) -> None:
    """Move the elements from ``at`` on up by one."""
    k = count
    while k > at:
        row[k] = row[k - ONE]
        k -= ONE


@inlined_kernel
def _close_gap(row: np.ndarray, at: np.uint64, count: np.uint64) -> None:
    """Move the elements behind ``at`` down by one."""
    k = at + ONE
    while k < count:
        row[k - ONE] = row[k]
        k += ONE


@inlined_kernel
def _position(row: np.ndarray, count: np.uint64, pfn: Int) -> np.uint64:
    """Number of ranges that start at ``pfn`` or before."""
    low = np.uint64(0)
    high = count
    while low < high:
        middle = (low + high) >> ONE
        if row[middle] <= pfn:
            low = middle + ONE
        else:
            high = middle
    return low


@inlined_kernel
def _choose(start: np.ndarray, end: np.ndarray, count: np.uint64, fit: Int, pages: Int, align: Int) -> Int:
    """Range that serves ``pages`` at ``align``, -1 if none does."""
    mask = align - 1
    k = np.uint64(0)
    if fit == FIRST_FIT:
        while k < count:
            if end[k] - ((start[k] + mask) & ~mask) >= pages:
                return np.int64(k)
            k += ONE
        return -1
    best: Int = -1
    best_size = np.int64(2**62)
    while k < count:
        size = end[k] - start[k]
        if pages <= size < best_size and end[k] - ((start[k] + mask) & ~mask) >= pages:
            best = np.int64(k)
            best_size = size
        k += ONE
    return best


@inlined_kernel
def _part(start: np.ndarray, end: np.ndarray, count: np.uint64, fit: Int, unit: Int) -> Int:
    """Range to take part of a request from: the first with a whole unit, or the one with most units; -1 if none."""
    mask = unit - 1
    best: Int = -1
    most = mask  # less than a unit is nothing
    k = np.uint64(0)
    while k < count:
        whole = (end[k] - ((start[k] + mask) & ~mask)) & ~mask
        if whole > most:
            best = np.int64(k)
            most = whole
            if fit == FIRST_FIT:
                return best
        k += ONE
    return best


@inlined_kernel
def _carve(start: np.ndarray, end: np.ndarray, count: np.uint64, at: Int, first: Int, last: Int) -> Int:
    """Take ``[first, last)`` out of free range ``at``; returns the number of ranges now, NEEDS_ROOM if it has no room."""
    k = np.uint64(at)
    high = end[k]
    if first > start[k]:
        if last < high:
            if count == np.uint64(start.shape[0]):
                return NEEDS_ROOM
            _open_gap(start, k + ONE, count)
            _open_gap(end, k + ONE, count)
            start[k + ONE] = last
            end[k + ONE] = high
            count += ONE
        end[k] = first
    elif last < high:
        start[k] = last
    else:
        _close_gap(start, k, count)
        _close_gap(end, k, count)
        count -= ONE
    return np.int64(count)


@kernel
def alloc(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: Int, fit: Int, pages: Int, align: Int) -> Int:
    """Allocate ``pages`` contiguous pages on ``node``. Returns the first pfn, NO_MEMORY or NEEDS_ROOM."""
    row_start, row_end, n = start[node], end[node], np.uint64(count[node])
    k = _choose(row_start, row_end, n, fit, pages, align)
    if k < 0:
        return NO_MEMORY
    first = (row_start[k] + align - 1) & ~(align - 1)
    left = _carve(row_start, row_end, n, k, first, first + pages)
    if left < 0:
        return NEEDS_ROOM
    count[node] = left
    return first


@kernel
def free(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: Int, pfn: Int, pages: Int) -> Int:
    """Give back a range (any part of what was allocated), joining free neighbours. Also takes over new memory.

    Returns OK, NEEDS_ROOM or NOT_ALLOCATED (nothing changed).
    """
    row_start, row_end, n = start[node], end[node], np.uint64(count[node])
    k = _position(row_start, n, pfn)
    last = pfn + pages
    before = k > np.uint64(0)
    after = k < n
    if (before and row_end[k - ONE] > pfn) or (after and row_start[k] < last):
        return NOT_ALLOCATED
    joins_left = before and row_end[k - ONE] == pfn
    joins_right = after and row_start[k] == last
    if joins_left and joins_right:
        row_end[k - ONE] = row_end[k]
        _close_gap(row_start, k, n)
        _close_gap(row_end, k, n)
        count[node] -= 1
    elif joins_left:
        row_end[k - ONE] = last
    elif joins_right:
        row_start[k] = pfn
    else:
        if n == np.uint64(start.shape[1]):
            return NEEDS_ROOM
        _open_gap(row_start, k, n)
        _open_gap(row_end, k, n)
        row_start[k] = pfn
        row_end[k] = last
        count[node] += 1
    return OK


@kernel
def take(
    start: np.ndarray,
    end: np.ndarray,
    count: np.ndarray,
    node: Int,
    fit: Int,
    pages: Int,
    unit: Int,
    out: np.ndarray,
) -> Int:
    """Allocate up to ``pages``, whole units of ``unit`` pages, as few ranges: one that fits all, else the best there is.

    ``out`` (int64 (rows, 2)) receives first pfn and pages of each range. Returns the number of ranges; the caller
    compares the pages received with those wanted. With FIRST_FIT ranges are taken in address order, with BEST_FIT
    the largest first, so that a request is cut into as few ranges as possible.
    """
    n: Int
    row_start, row_end, n = start[node], end[node], np.int64(count[node])
    rows = np.uint64(0)
    mask = unit - 1
    pages &= ~mask
    while pages > 0 and rows < np.uint64(out.shape[0]):
        k = _choose(row_start, row_end, np.uint64(n), fit, pages, unit)
        if k < 0:
            k = _part(row_start, row_end, np.uint64(n), fit, unit)
            if k < 0:
                break
        first = (row_start[np.uint64(k)] + mask) & ~mask
        given = min(pages, (row_end[np.uint64(k)] - first) & ~mask)
        left = _carve(row_start, row_end, np.uint64(n), k, first, first + given)
        if left < 0:
            break
        n = left
        out[rows, 0] = first
        out[rows, 1] = given
        rows += ONE
        pages -= given
    count[node] = n
    return np.int64(rows)


@kernel
def usable_pages(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: Int, unit: Int) -> Int:
    """Free pages of ``node`` in aligned blocks of ``unit`` pages."""
    total = 0
    for k in range(count[node]):
        first = (start[node, k] + unit - 1) & ~(unit - 1)
        if end[node, k] > first:
            total += (end[node, k] - first) & ~(unit - 1)
    return total


@kernel
def largest(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: Int) -> Int:
    """Pages of the largest free range of ``node``."""
    most = 0
    for k in range(count[node]):
        most = max(most, end[node, k] - start[node, k])
    return most


@kernel
def free_pages(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: Int) -> Int:
    """Free pages of ``node``."""
    total = 0
    for k in range(count[node]):
        total += end[node, k] - start[node, k]
    return total


@kernel
def _block_position(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, order: Int, pfn: Int) -> Int:
    """Number of blocks of ``order`` that start before ``pfn``."""
    low = 0
    high = blocks_count[node, order]
    while low < high:
        middle = (low + high) >> 1
        if blocks[node, order, middle] < pfn:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _add_block(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, order: Int, pfn: Int) -> None:
    at = _block_position(blocks, blocks_count, node, order, pfn)
    for k in range(blocks_count[node, order], at, -1):
        blocks[node, order, k] = blocks[node, order, k - 1]
    blocks[node, order, at] = pfn
    blocks_count[node, order] += 1


@kernel
def _remove_block(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, order: Int, at: Int) -> None:
    for k in range(at, blocks_count[node, order] - 1):
        blocks[node, order, k] = blocks[node, order, k + 1]
    blocks_count[node, order] -= 1


@kernel
def buddy_alloc(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, pages: Int, align: Int) -> Int:
    """Allocate ``pages`` pages from power-of-two blocks. Returns the first pfn, NO_MEMORY or NEEDS_ROOM."""
    orders = blocks_count.shape[1]
    order = 0
    while 1 << order < pages or 1 << order < align:
        order += 1
    found = order
    while found < orders and blocks_count[node, found] == 0:
        found += 1
    if found >= orders:
        return NO_MEMORY
    for k in range(found):
        if blocks_count[node, k] >= blocks.shape[2] - 1:
            return NEEDS_ROOM
    pfn = blocks[node, found, 0]
    _remove_block(blocks, blocks_count, node, found, 0)
    while found > order:
        found -= 1
        _add_block(blocks, blocks_count, node, found, pfn + (1 << found))
    if pages < 1 << order:
        buddy_free(blocks, blocks_count, node, pfn + pages, (1 << order) - pages)
    return pfn


@kernel
def buddy_free(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, pfn: Int, pages: Int) -> Int:
    """Give back a range, as aligned blocks that join their buddies. Returns OK, NEEDS_ROOM or NOT_ALLOCATED."""
    orders = blocks_count.shape[1]
    for k in range(orders):
        if blocks_count[node, k] >= blocks.shape[2] - 1:
            return NEEDS_ROOM
        at = _block_position(blocks, blocks_count, node, k, pfn)
        if at < blocks_count[node, k] and blocks[node, k, at] < pfn + pages:
            return NOT_ALLOCATED
        if at > 0 and blocks[node, k, at - 1] + (1 << k) > pfn:
            return NOT_ALLOCATED
    while pages > 0:
        order = 0
        while order + 1 < orders and pfn & ((2 << order) - 1) == 0 and 2 << order <= pages:
            order += 1
        block = pfn
        pfn += 1 << order
        pages -= 1 << order
        while order + 1 < orders:
            buddy = block ^ (1 << order)
            at = _block_position(blocks, blocks_count, node, order, buddy)
            if at == blocks_count[node, order] or blocks[node, order, at] != buddy:
                break
            _remove_block(blocks, blocks_count, node, order, at)
            block = min(block, buddy)
            order += 1
        _add_block(blocks, blocks_count, node, order, block)
    return OK


@kernel
def buddy_take(blocks: np.ndarray, blocks_count: np.ndarray, node: Int, pages: Int, unit: Int, out: np.ndarray) -> Int:
    """Allocate up to ``pages``, whole units of ``unit`` pages, as few power-of-two blocks, the largest first.

    ``out`` and the return value are those of :func:`take`.
    """
    rows = 0
    while pages >= unit and rows < out.shape[0]:
        size = unit
        while size * 2 <= pages:
            size *= 2
        pfn = buddy_alloc(blocks, blocks_count, node, size, unit)
        while pfn == NO_MEMORY and size > unit:
            size >>= 1
            pfn = buddy_alloc(blocks, blocks_count, node, size, unit)
        if pfn < 0:
            break
        if rows > 0 and out[rows - 1, 0] + out[rows - 1, 1] == pfn:
            out[rows - 1, 1] += size
        else:
            out[rows, 0] = pfn
            out[rows, 1] = size
            rows += 1
        pages -= size
    return rows


@kernel
def buddy_usable_pages(blocks_count: np.ndarray, node: Int, unit: Int) -> Int:
    """Free pages of ``node`` in blocks of at least ``unit`` pages."""
    total = 0
    for order in range(blocks_count.shape[1]):
        if 1 << order >= unit:
            total += blocks_count[node, order] << order
    return total

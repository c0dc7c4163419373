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

from kernels.compile import kernel

FIRST_FIT, BEST_FIT, BUDDY = 0, 1, 2
NAMES = ("first-fit", "best-fit", "buddy")
ONE = np.uint64(1)
OK, NO_MEMORY, NEEDS_ROOM, NOT_ALLOCATED = 0, -1, -2, -3
"""Return codes: done; no range fits; the table of free ranges is full; the range freed was (partly) free."""


# Indices are unsigned inside these loops, so that none is taken for one counted from the end: twice as fast.


@kernel
def _place(start: np.ndarray, node: int, at: int, count: int) -> None:
    """Open a gap at ``at`` in one column."""
    row = start[node]
    k = np.uint64(count)
    stop = np.uint64(at)
    while k > stop:
        row[k] = row[k - ONE]
        k -= ONE


@kernel
def _close(start: np.ndarray, node: int, at: int, count: int) -> None:
    row = start[node]
    k = np.uint64(at)
    stop = np.uint64(count - 1)
    while k < stop:
        row[k] = row[k + ONE]
        k += ONE


@kernel
def _position(start: np.ndarray, node: int, count: int, pfn: int) -> int:
    """Number of ranges that start at ``pfn`` or before."""
    row = start[node]
    low = np.uint64(0)
    high = np.uint64(count)
    while low < high:
        middle = (low + high) >> ONE
        if row[middle] <= pfn:
            low = middle + ONE
        else:
            high = middle
    return np.int64(low)


@kernel
def _choose(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int, fit: int, pages: int, align: int) -> int:
    mask = align - 1
    row_start = start[node]
    row_end = end[node]
    stop = np.uint64(count[node])
    k = np.uint64(0)
    if fit == FIRST_FIT:
        while k < stop:
            if row_end[k] - ((row_start[k] + mask) & ~mask) >= pages:
                return np.int64(k)
            k += ONE
        return -1
    best = -1
    best_size = np.int64(2**62)
    while k < stop:
        size = row_end[k] - row_start[k]
        if pages <= size < best_size and row_end[k] - ((row_start[k] + mask) & ~mask) >= pages:
            best = np.int64(k)
            best_size = size
        k += ONE
    return best


@kernel
def alloc(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int, fit: int, pages: int, align: int) -> int:
    """Allocate ``pages`` contiguous pages on ``node``. Returns the first pfn, NO_MEMORY or NEEDS_ROOM."""
    k = _choose(start, end, count, node, fit, pages, align)
    if k < 0:
        return NO_MEMORY
    first = (start[node, k] + align - 1) & ~(align - 1)
    last = first + pages
    if first > start[node, k] and last < end[node, k]:
        n = count[node]
        if n == start.shape[1]:
            return NEEDS_ROOM
        _place(start, node, k + 1, n)
        _place(end, node, k + 1, n)
        start[node, k + 1] = last
        end[node, k + 1] = end[node, k]
        end[node, k] = first
        count[node] = n + 1
    elif first > start[node, k]:
        end[node, k] = first
    elif last < end[node, k]:
        start[node, k] = last
    else:
        _close(start, node, k, count[node])
        _close(end, node, k, count[node])
        count[node] -= 1
    return first


@kernel
def free(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int, pfn: int, pages: int) -> int:
    """Give back a range (any part of what was allocated), joining free neighbours. Also takes over new memory.

    Returns OK, NEEDS_ROOM or NOT_ALLOCATED (nothing changed).
    """
    n = count[node]
    k = _position(start, node, n, pfn)
    last = pfn + pages
    if (k > 0 and end[node, k - 1] > pfn) or (k < n and start[node, k] < last):
        return NOT_ALLOCATED
    joins_left = k > 0 and end[node, k - 1] == pfn
    joins_right = k < n and start[node, k] == last
    if joins_left and joins_right:
        end[node, k - 1] = end[node, k]
        _close(start, node, k, n)
        _close(end, node, k, n)
        count[node] = n - 1
    elif joins_left:
        end[node, k - 1] = last
    elif joins_right:
        start[node, k] = pfn
    else:
        if n == start.shape[1]:
            return NEEDS_ROOM
        _place(start, node, k, n)
        _place(end, node, k, n)
        start[node, k] = pfn
        end[node, k] = last
        count[node] = n + 1
    return OK


@kernel
def take(
    start: np.ndarray,
    end: np.ndarray,
    count: np.ndarray,
    node: int,
    fit: int,
    units: int,
    unit: int,
    out: np.ndarray,
) -> int:
    """Allocate up to ``units`` blocks of ``unit`` pages as few ranges: one that fits all, else the best there is.

    ``out`` (int64 (rows, 2)) receives first pfn and pages of each range. Returns the number of ranges; the caller
    compares the pages received with those wanted. With FIRST_FIT ranges are taken in address order, with BEST_FIT
    the largest first, so that a request is cut into as few ranges as possible.
    """
    rows = 0
    row_start = start[node]
    row_end = end[node]
    while units > 0 and rows < out.shape[0]:
        chosen = _choose(start, end, count, node, fit, units * unit, unit)
        pages = units * unit
        if chosen < 0:
            chosen = _part(start, end, count, node, fit, unit)
            if chosen < 0:
                break
        k = np.uint64(chosen)
        low = row_start[k]
        high = row_end[k]
        first = (low + unit - 1) & ~(unit - 1)
        pages = min(pages, (high - first) & ~(unit - 1))
        last = first + pages
        if first > low and last < high:
            n = count[node]
            if n == start.shape[1]:
                break
            _place(start, node, chosen + 1, n)
            _place(end, node, chosen + 1, n)
            row_start[k + ONE] = last
            row_end[k + ONE] = high
            row_end[k] = first
            count[node] = n + 1
        elif first > low:
            row_end[k] = first
        elif last < high:
            row_start[k] = last
        else:
            _close(start, node, chosen, count[node])
            _close(end, node, chosen, count[node])
            count[node] -= 1
        out[np.uint64(rows), 0] = first
        out[np.uint64(rows), 1] = pages
        rows += 1
        units -= pages // unit
    return rows


@kernel
def _part(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int, fit: int, unit: int) -> int:
    """Range to take part of a request from: the first with a whole unit, or the one with most units."""
    mask = unit - 1
    row_start = start[node]
    row_end = end[node]
    stop = np.uint64(count[node])
    k = np.uint64(0)
    best = -1
    most = mask  # less than a unit is nothing
    while k < stop:
        whole = (row_end[k] - ((row_start[k] + mask) & ~mask)) & ~mask
        if whole > most:
            best = np.int64(k)
            most = whole
            if fit == FIRST_FIT:
                return best
        k += ONE
    return best


@kernel
def free_units(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int, unit: int) -> int:
    """Aligned blocks of ``unit`` pages that could be allocated on ``node``."""
    total = 0
    for k in range(count[node]):
        first = (start[node, k] + unit - 1) & ~(unit - 1)
        if end[node, k] > first:
            total += (end[node, k] - first) // unit
    return total


@kernel
def largest(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int) -> int:
    """Pages of the largest free range of ``node``."""
    most = 0
    for k in range(count[node]):
        most = max(most, end[node, k] - start[node, k])
    return most


@kernel
def free_pages(start: np.ndarray, end: np.ndarray, count: np.ndarray, node: int) -> int:
    """Free pages of ``node``."""
    total = 0
    for k in range(count[node]):
        total += end[node, k] - start[node, k]
    return total


@kernel
def _block_position(blocks: np.ndarray, blocks_count: np.ndarray, node: int, order: int, pfn: int) -> int:
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
def _add_block(blocks: np.ndarray, blocks_count: np.ndarray, node: int, order: int, pfn: int) -> None:
    at = _block_position(blocks, blocks_count, node, order, pfn)
    for k in range(blocks_count[node, order], at, -1):
        blocks[node, order, k] = blocks[node, order, k - 1]
    blocks[node, order, at] = pfn
    blocks_count[node, order] += 1


@kernel
def _remove_block(blocks: np.ndarray, blocks_count: np.ndarray, node: int, order: int, at: int) -> None:
    for k in range(at, blocks_count[node, order] - 1):
        blocks[node, order, k] = blocks[node, order, k + 1]
    blocks_count[node, order] -= 1


@kernel
def buddy_alloc(blocks: np.ndarray, blocks_count: np.ndarray, node: int, pages: int, align: int) -> int:
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
def buddy_free(blocks: np.ndarray, blocks_count: np.ndarray, node: int, pfn: int, pages: int) -> int:
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
def buddy_take(blocks: np.ndarray, blocks_count: np.ndarray, node: int, units: int, unit: int, out: np.ndarray) -> int:
    """Allocate up to ``units`` blocks of ``unit`` pages as few power-of-two blocks, the largest first.

    ``out`` and the return value are those of :func:`take`.
    """
    rows = 0
    while units > 0 and rows < out.shape[0]:
        pages = 1
        while pages * 2 <= units:
            pages *= 2
        pages *= unit
        pfn = buddy_alloc(blocks, blocks_count, node, pages, unit)
        while pfn == NO_MEMORY and pages > unit:
            pages >>= 1
            pfn = buddy_alloc(blocks, blocks_count, node, pages, unit)
        if pfn < 0:
            break
        if rows > 0 and out[rows - 1, 0] + out[rows - 1, 1] == pfn:
            out[rows - 1, 1] += pages
        else:
            out[rows, 0] = pfn
            out[rows, 1] = pages
            rows += 1
        units -= pages // unit
    return rows


@kernel
def churn(
    events: np.ndarray,
    order_of_nodes: np.ndarray,
    fit: int,
    unit: int,
    start: np.ndarray,
    end: np.ndarray,
    count: np.ndarray,
    blocks: np.ndarray,
    blocks_count: np.ndarray,
    ranges: np.ndarray,
    vm_first: np.ndarray,
    vm_rows: np.ndarray,
    free_rows: np.ndarray,
    scratch: np.ndarray,
    samples: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Virtual machines arriving and leaving, their memory taken in units and given back.

    Parameters
    ----------
    events : int64 (n, 3): machine, units (0: it leaves), node to start at
    order_of_nodes : int64 (nodes, nodes), fallback order per node, -1 filled
    fit : FIRST_FIT, BEST_FIT or BUDDY
    unit : pages per unit
    start, end, count, blocks, blocks_count : the allocators' state (module docstring); one of the two is used
    ranges : int64 (rows, 4): first pfn, pages, node, next row; ``free_rows`` int64 (rows + 1,) is a stack of unused
        rows whose last element is its height
    vm_first, vm_rows : int64 (machines,): first row (-1) and number of rows of each machine; -1, 0 at the start
    scratch : int64 (rows, 2), working space
    samples : int64 (s, 4), receives at evenly spread events: free pages, largest free range, free ranges, free units
    counts : int64 (4,): arrivals, refused arrivals, ranges handed out, ranges given back

    Returns
    -------
    OK, NEEDS_ROOM, or NOT_ALLOCATED if the bookkeeping is broken.
    """
    n = events.shape[0]
    nodes = order_of_nodes.shape[0]
    every = max(1, n // max(1, samples.shape[0]))
    height = free_rows.shape[0] - 1
    for event in range(n):
        machine = events[event, 0]
        units = events[event, 1]
        if units > 0:
            counts[0] += 1
            for position in range(nodes):
                node = order_of_nodes[events[event, 2], position]
                if node < 0 or units == 0:
                    break
                if fit == BUDDY:
                    rows = buddy_take(blocks, blocks_count, node, units, unit, scratch)
                else:
                    rows = take(start, end, count, node, fit, units, unit, scratch)
                for k in range(rows):
                    if free_rows[height] == 0:
                        return NEEDS_ROOM
                    free_rows[height] -= 1
                    row = free_rows[free_rows[height]]
                    ranges[row, 0] = scratch[k, 0]
                    ranges[row, 1] = scratch[k, 1]
                    ranges[row, 2] = node
                    ranges[row, 3] = vm_first[machine]
                    vm_first[machine] = row
                    vm_rows[machine] += 1
                    units -= scratch[k, 1] // unit
                    counts[2] += 1
            if units > 0:
                counts[1] += 1
        if units > 0 or events[event, 1] == 0:
            # It leaves, or it did not get all it asked for and is turned away.
            row = vm_first[machine]
            while row >= 0:
                if fit == BUDDY:
                    code = buddy_free(blocks, blocks_count, ranges[row, 2], ranges[row, 0], ranges[row, 1])
                else:
                    code = free(start, end, count, ranges[row, 2], ranges[row, 0], ranges[row, 1])
                if code != OK:
                    return code
                counts[3] += 1
                free_rows[free_rows[height]] = row
                free_rows[height] += 1
                row = ranges[row, 3]
            vm_first[machine] = -1
            vm_rows[machine] = 0
        if event % every == every - 1 and event // every < samples.shape[0]:
            sample = event // every
            for node in range(nodes):
                if fit == BUDDY:
                    for order in range(blocks_count.shape[1]):
                        samples[sample, 0] += blocks_count[node, order] << order
                        samples[sample, 2] += blocks_count[node, order]
                        if blocks_count[node, order] > 0:
                            samples[sample, 1] = max(samples[sample, 1], 1 << order)
                        if 1 << order >= unit:
                            samples[sample, 3] += blocks_count[node, order] << order
                else:
                    samples[sample, 0] += free_pages(start, end, count, node)
                    samples[sample, 1] = max(samples[sample, 1], largest(start, end, count, node))
                    samples[sample, 2] += count[node]
                    samples[sample, 3] += free_units(start, end, count, node, unit) * unit
    return OK

"""Sorted disjoint runs of pages in blocks: what a file holds, or what a page table maps, while operations change it.

Linux keeps such sets in trees (``lib/maple_tree.c``, ``lib/xarray.c``); the answer is the same here. A row is first page, pages
and a value. Rows lie in ascending order in blocks of :data:`BLOCK`, the blocks in the order that ``order`` says, so that a
change costs the logarithm of the rows and one block, wherever it is: 10^5 faults in any order do not cost their square.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record

FIRST, LENGTH, VALUE = 0, 1, 2
"""Columns of ``rows``."""
USED, COUNT = 0, 1
"""Fields of ``head``."""
BLOCK = 256


@record
class Runs(NamedTuple):
    """One set of runs."""

    rows: np.ndarray
    """int64 (blocks * BLOCK, 3)."""
    fill: np.ndarray
    """int64 (blocks,), rows of each block."""
    order: np.ndarray
    """int64 (blocks,), which block comes when: those in use, then the free ones."""
    head: np.ndarray
    """int64 (2,), blocks in use and rows in all."""


@kernel
def enter(runs: Runs, allocations: np.ndarray, begin: Int, end: Int) -> Int:
    """Add rows ``[begin, end)`` of an allocation table (:mod:`workbench.kernels.placement`); their index is the value.

    Returns the row at which there was no block free any more: give more, and call again from there.
    """
    for row in range(begin, end):
        first = allocations[row, 0]
        if allocations[row, 2] < 0:
            first -= allocations[row, 1] - 1
        if not _insert(runs, first, allocations[row, 1], row):
            return row
    return end


@kernel
def erase(runs: Runs, start: Int, end: Int) -> Int:
    """Remove pages ``[start, end)``, and say how many there were. One block must be free, for a run that becomes two."""
    used = runs.head[USED]
    rows, fill, order = runs.rows, runs.fill, runs.order
    if used == 0 or end <= start:
        return 0
    position = _block_at(runs, start)
    at = _row_beyond(runs, order[position], start)
    if at == fill[order[position]]:
        position, at = position + 1, 0
        if position == used:
            return 0
    row, gone = order[position] * BLOCK + at, np.int64(0)
    if rows[row, FIRST] < start:
        stop = rows[row, FIRST] + rows[row, LENGTH]
        rows[row, LENGTH] = start - rows[row, FIRST]
        if stop > end:
            _insert(runs, end, stop - end, rows[row, VALUE])
            return end - start
        gone = stop - start
        at += 1
    first_emptied, emptied = position, False
    while position < used:
        block = order[position]
        base, last = block * BLOCK, at
        while last < fill[block] and rows[base + last, FIRST] + rows[base + last, LENGTH] <= end:
            gone += rows[base + last, LENGTH]
            last += 1
        complete = last < fill[block]
        if complete and rows[base + last, FIRST] < end:
            gone += end - rows[base + last, FIRST]
            rows[base + last, LENGTH] -= end - rows[base + last, FIRST]
            rows[base + last, FIRST] = end
        if last > at:
            for row in range(last, fill[block]):
                _copy(rows, base + row, base + at + row - last)
            fill[block] -= last - at
            runs.head[COUNT] -= last - at
            emptied |= fill[block] == 0
        if complete:
            break
        position, at = position + 1, 0
    if emptied:
        _set_aside_empty(runs, first_emptied)
    return gone


@kernel
def join(runs: Runs, start: Int, end: Int) -> Int:
    """Add pages ``[start, end)`` to a set without values, and say how many were missing; runs that touch become one.

    One block must be free.
    """
    if end <= start:
        return 0
    low, high = start, end
    there: Int = np.int64(0)
    if runs.head[USED] > 0:
        rows, fill = runs.rows, runs.fill
        block = runs.order[_block_at(runs, start)]
        at = _row_beyond(runs, block, start - 1)  # it ends at `start` or beyond
        if at < fill[block]:
            row = block * BLOCK + at
            if rows[row, FIRST] <= start:
                low = rows[row, FIRST]
                if low + rows[row, LENGTH] >= end:
                    return 0
        block = runs.order[_block_at(runs, end)]
        at = _row_beyond(runs, block, end)
        if at < fill[block]:
            row = block * BLOCK + at
            if rows[row, FIRST] <= end:
                high = rows[row, FIRST] + rows[row, LENGTH]
        there = erase(runs, low, high)
    _insert(runs, low, high - low, 0)
    return high - low - there


@kernel
def cut(runs: Runs, start: Int, end: Int, out: np.ndarray) -> Int:
    """Runs clipped to ``[start, end)``, into ``out`` int64 (n, 3). Returns their number; beyond n, none are written."""
    used, rows, count = runs.head[USED], runs.rows, 0
    if used == 0 or end <= start:
        return 0
    position = _block_at(runs, start)
    at = _row_beyond(runs, runs.order[position], start)
    while position < used:
        block = runs.order[position]
        for row in range(block * BLOCK + at, block * BLOCK + runs.fill[block]):
            first = rows[row, FIRST]
            if first >= end:
                return count
            if count < out.shape[0]:
                low = max(first, start)
                out[count, FIRST] = low
                out[count, LENGTH] = min(first + rows[row, LENGTH], end) - low
                out[count, VALUE] = rows[row, VALUE]
            count += 1
        position, at = position + 1, 0
    return count


@kernel
def value_at(runs: Runs, page: Int) -> Int:
    """Value of the run that holds a page; -1: none does."""
    if runs.head[USED] == 0:
        return -1
    block = runs.order[_block_at(runs, page)]
    at = _row_beyond(runs, block, page)
    if at == runs.fill[block] or runs.rows[block * BLOCK + at, FIRST] > page:
        return -1
    return runs.rows[block * BLOCK + at, VALUE]


@kernel
def pages_in(runs: Runs, start: Int, end: Int) -> Int:
    """How many pages of ``[start, end)`` runs hold."""
    used, rows, pages = runs.head[USED], runs.rows, 0
    if used == 0 or end <= start:
        return 0
    position = _block_at(runs, start)
    at = _row_beyond(runs, runs.order[position], start)
    while position < used:
        block = runs.order[position]
        for row in range(block * BLOCK + at, block * BLOCK + runs.fill[block]):
            if rows[row, FIRST] >= end:
                return pages
            pages += min(rows[row, FIRST] + rows[row, LENGTH], end) - max(rows[row, FIRST], start)
        position, at = position + 1, 0
    return pages


@kernel
def next_page(runs: Runs, page: Int) -> Int:
    """First page at ``page`` or beyond that a run holds; -1: none."""
    if runs.head[USED] == 0:
        return -1
    position = _block_at(runs, page)
    block = runs.order[position]
    at = _row_beyond(runs, block, page)
    if at == runs.fill[block]:
        if position + 1 == runs.head[USED]:
            return -1
        block, at = runs.order[position + 1], 0
    return max(page, runs.rows[block * BLOCK + at, FIRST])


@kernel
def gaps(runs: Runs, start: Int, end: Int, out: np.ndarray) -> Int:
    """What of ``[start, end)`` no run holds, into ``out`` int64 (n, 2) as start and end. Returns the number, as :func:`cut`."""
    used, rows, count, page = runs.head[USED], runs.rows, 0, start
    position = _block_at(runs, start)
    at = _row_beyond(runs, runs.order[position], start) if used > 0 else 0
    while position < used and page < end:
        block = runs.order[position]
        for row in range(block * BLOCK + at, block * BLOCK + runs.fill[block]):
            if rows[row, FIRST] >= end:
                break
            if rows[row, FIRST] > page:
                if count < out.shape[0]:
                    out[count, 0] = page
                    out[count, 1] = rows[row, FIRST]
                count += 1
            page = rows[row, FIRST] + rows[row, LENGTH]
        if runs.fill[block] > 0 and rows[block * BLOCK + runs.fill[block] - 1, FIRST] >= end:
            break
        position, at = position + 1, 0
    if page < end:
        if count < out.shape[0]:
            out[count, 0] = page
            out[count, 1] = end
        count += 1
    return count


@kernel
def _block_at(runs: Runs, page: Int) -> Int:
    """Position of the last block that begins at or below a page; 0 if none does."""
    low, high = 0, runs.head[USED]
    while low < high:
        middle = (low + high) // 2
        if runs.rows[runs.order[middle] * BLOCK, FIRST] <= page:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > 0 else 0


@kernel
def _row_beyond(runs: Runs, block: Int, page: Int) -> Int:
    """First row of a block whose end is above a page; ``fill`` if none is."""
    low, high, base = 0, runs.fill[block], block * BLOCK
    while low < high:
        middle = (low + high) // 2
        if runs.rows[base + middle, FIRST] + runs.rows[base + middle, LENGTH] <= page:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _insert(runs: Runs, first: Int, length: Int, value: Int) -> bool:
    """Put a row where it belongs; False, and nothing is changed, if no block is free (though one may not be needed)."""
    used = runs.head[USED]
    rows, fill, order = runs.rows, runs.fill, runs.order
    if used == order.shape[0]:
        return False
    if used == 0:
        fill[order[0]] = 0
        runs.head[USED] = 1
    position = _block_at(runs, first)
    block = order[position]
    at = _row_beyond(runs, block, first) if fill[block] > 0 else 0
    if fill[block] == BLOCK:
        new = order[used]
        for place in range(used, position + 1, -1):
            order[place] = order[place - 1]
        order[position + 1] = new
        runs.head[USED] += 1
        # Behind the last row the next block begins: runs that come in order fill their blocks.
        kept = BLOCK if position == used - 1 and at == BLOCK else BLOCK // 2
        for row in range(kept, BLOCK):
            _copy(rows, block * BLOCK + row, new * BLOCK + row - kept)
        fill[block], fill[new] = kept, BLOCK - kept
        if at > kept or kept == BLOCK:
            block, at = new, at - kept
    base = block * BLOCK
    for row in range(base + fill[block], base + at, -1):
        _copy(rows, row - 1, row)
    rows[base + at, FIRST] = first
    rows[base + at, LENGTH] = length
    rows[base + at, VALUE] = value
    fill[block] += 1
    runs.head[COUNT] += 1
    return True


@kernel
def _set_aside_empty(runs: Runs, position: Int) -> None:
    """Blocks without rows, from a position on, come behind those in use."""
    kept = position
    for place in range(position, runs.head[USED]):
        block = runs.order[place]
        if runs.fill[block] > 0:
            runs.order[place] = runs.order[kept]
            runs.order[kept] = block
            kept += 1
    runs.head[USED] = kept


@kernel
def _copy(rows: np.ndarray, source: Int, target: Int) -> None:
    for column in range(3):
        rows[target, column] = rows[source, column]

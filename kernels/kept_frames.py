"""Frames that left a file while somebody held them: which of the pins on what was at a page go, and which frames with them.

Rows are int64 (n, 5): page, zone, long-term pins, pins of devices, frame; they ascend by page, those of one page by when they
left. Of the pins of one kind those on what left first go first (:func:`workbench.kernels.folios.access.unpin`).
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, natural_kernel

PAGE, ZONE, PINS, BY_DEVICE, FRAME = range(5)
POISONED = 2
"""Column of the rows of pages that are still in the file, of which pins come after it: page, zone, whether it is poisoned."""
NOWHERE = -1
"""Zone that a poisoned page goes back to."""
NO_FRAME = -1
"""Pfn of a page whose frame has no number here."""


@natural_kernel
def hold(pages: np.ndarray, poisoned: np.ndarray, zones: np.ndarray, pins: np.ndarray, held: np.ndarray) -> Int:
    """Rows of pages int64 (n,), ascending, that somebody holds, of those of a zone; ``poisoned`` ascends as well.

    ``pins`` int64 (n, 2) by kind. Returns how many rows of ``held`` int64 (n, 5) are written.
    """
    count, at = 0, 0
    for number in range(pages.shape[0]):
        while at < poisoned.shape[0] and poisoned[at] < pages[number]:
            at += 1
        if zones[number] >= 0:
            held[count, PAGE], held[count, ZONE] = pages[number], zones[number]
            held[count, POISONED] = at < poisoned.shape[0] and poisoned[at] == pages[number]
            held[count, POISONED + 1], held[count, POISONED + 2] = pins[number, 0], pins[number, 1]
            count += 1
    return count


@natural_kernel
def leave(held: np.ndarray, frames: np.ndarray, free: np.ndarray, rows: np.ndarray) -> Int:
    """Pages that somebody holds leave the file: into ``rows`` those that can be free one day, for nobody else is told of them.

    ``frames`` int64 (n,), of pages that were taken out one by one; (0,): they went back to ``free`` int64 (zones,) with the
    others, and are taken again. Returns how many rows are written.
    """
    count = 0
    for at in range(held.shape[0]):
        numbered, poisoned = frames.shape[0] > 0, held[at, POISONED] != 0
        if not numbered:
            free[held[at, ZONE]] -= 1
        if poisoned and held[at, POISONED + 1] == 0 and held[at, POISONED + 2] == 0:
            continue
        rows[count, PAGE], rows[count, ZONE] = held[at, PAGE], NOWHERE if poisoned else held[at, ZONE]
        rows[count, PINS], rows[count, BY_DEVICE] = held[at, POISONED + 1], held[at, POISONED + 2]
        rows[count, FRAME] = frames[at] if numbered else NO_FRAME
        count += 1
    return count


@natural_kernel
def give_back(rows: np.ndarray, free: np.ndarray) -> None:
    """Pages that nobody holds any more go back to their zones."""
    for row in range(rows.shape[0]):
        if rows[row, ZONE] != NOWHERE:
            free[rows[row, ZONE]] += 1


@natural_kernel
def pages_between(rows: np.ndarray, first: Int, end: Int, pages: np.ndarray) -> Int:
    """Pages of [first, end) that rows are of, each once, into int64 (rows,). Returns their number."""
    count = 0
    for row in range(_row_at(rows, first), rows.shape[0]):
        page = rows[row, PAGE]
        if page >= end:
            break
        if count == 0 or pages[count - 1] != page:
            pages[count] = page
            count += 1
    return count


@natural_kernel
def merge(before: np.ndarray, after: np.ndarray, rows: np.ndarray) -> None:
    """Rows of both into ``rows``; of one page those of ``before`` come first."""
    one, other = 0, 0
    for row in range(rows.shape[0]):
        from_before = other == after.shape[0] or (one < before.shape[0] and before[one, PAGE] <= after[other, PAGE])
        for column in range(5):
            rows[row, column] = before[one, column] if from_before else after[other, column]
        one, other = one + from_before, other + (not from_before)


@natural_kernel
def drop_to(rows: np.ndarray, pages: np.ndarray, left: np.ndarray, gone: np.ndarray) -> Int:
    """So many pins are left on what was at ``pages`` int64 (m,), ascending, int64 (m, 2) by kind.

    Rows of those pages that nobody holds any more go to ``gone`` int64 (n, 5), the others close up. Returns how many went.
    """
    begin, went = _row_at(rows, pages[0]), 0
    kept = begin
    for at in range(pages.shape[0]):
        while begin < rows.shape[0] and rows[begin, PAGE] < pages[at]:
            _copy(rows, begin, rows, kept)
            begin, kept = begin + 1, kept + 1
        end = begin
        while end < rows.shape[0] and rows[end, PAGE] == pages[at]:
            end += 1
        for kind in range(2):
            _drop_oldest(rows, begin, end, PINS + kind, left[at, kind])
        for row in range(begin, end):
            if rows[row, PINS] == 0 and rows[row, BY_DEVICE] == 0:
                _copy(rows, row, gone, went)
                went += 1
            else:
                _copy(rows, row, rows, kept)
                kept += 1
        begin = end
    if went > 0:
        for row in range(begin, rows.shape[0]):
            _copy(rows, row, rows, kept + row - begin)
    return went


@natural_kernel
def _drop_oldest(rows: np.ndarray, begin: Int, end: Int, column: Int, left: Int) -> None:
    """No more than ``left`` pins of a kind stay in rows [begin, end)."""
    more: Int = -left
    for row in range(begin, end):
        more += rows[row, column]
    for row in range(begin, end):
        if more <= 0:
            return
        dropped = min(more, rows[row, column])
        rows[row, column] -= dropped
        more -= dropped


@natural_kernel
def _row_at(rows: np.ndarray, page: Int) -> Int:
    """First row of a page, or of one beyond it."""
    low, high = 0, rows.shape[0]
    while low < high:
        middle = (low + high) // 2
        if rows[middle, PAGE] < page:
            low = middle + 1
        else:
            high = middle
    return low


@natural_kernel
def _copy(source: np.ndarray, row: Int, target: np.ndarray, at: Int) -> None:
    for column in range(5):
        target[at, column] = source[row, column]

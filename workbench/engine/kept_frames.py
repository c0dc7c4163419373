"""4 KiB pages that left a file while somebody held them, and who holds them still.

They are taken until the last pin is dropped (``mm/gup.c: unpin_user_pages``); of the pins of one kind those on what left first
go first (:func:`workbench.kernels.folios.access.unpin`). Rows are int64 (n, 5): page, zone (:data:`NOWHERE`: poisoned), long-term
pins, pins of devices, frame (:data:`NO_FRAME`: it has no number here); they ascend by page, those of one page by when they left.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.intervals import Int64s
from workbench.kernels.folios import run as folio

NOWHERE = -1
"""Zone that a poisoned page goes back to."""
NO_FRAME = -1
"""Pfn of a page whose frame has no number here."""
PAGE, ZONE, PINS, BY_DEVICE, FRAME = range(5)
_NONE = np.zeros((0, 5), np.int64)


class KeptFrames:
    """Those of one file, in blocks of 2 MiB, so that a call costs what it touches."""

    def __init__(self) -> None:
        self._blocks: dict[int, Int64s] = {}

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def clear(self) -> None:
        """Nobody looks at them any more."""
        self._blocks.clear()

    def rows(self) -> Int64s:
        """All of them."""
        return np.concatenate([_NONE, *(self._blocks[block] for block in sorted(self._blocks))])

    def between(self, first: int, end: int) -> Int64s:
        """Those of pages [first, end)."""
        parts = [rows[(rows[:, PAGE] >= first) & (rows[:, PAGE] < end)] for _, rows in self._touched(first, end)]
        return np.concatenate(parts) if parts else _NONE

    def keep(self, rows: Int64s) -> None:
        """Pages, ascending, have left the file, after all that left it before."""
        block = rows[:, PAGE] >> folio.ORDER_2M
        edges = np.flatnonzero(np.diff(block, prepend=-1, append=-1))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            before = self._blocks.get(int(block[low]), _NONE)
            both = np.concatenate((before, rows[low:high]))
            self._blocks[int(block[low])] = both[np.argsort(both[:, PAGE], kind="stable")]

    def drop_to(self, pages: Int64s, left: Int64s) -> Int64s:
        """So many pins are left on what was at ``pages`` (n,), ascending, int64 (n, 2) by kind: what nobody holds any more.

        It is kept no more, and free, but for what is poisoned.
        """
        gone = [_NONE]
        for block, rows in self._touched(int(pages[0]), int(pages[-1]) + 1) if len(pages) else ():
            at = np.minimum(np.searchsorted(pages, rows[:, PAGE]), len(pages) - 1)
            mine = pages[at] == rows[:, PAGE]
            for kind, column in enumerate((PINS, BY_DEVICE)):
                _drop_oldest_first(rows, column, np.where(mine, left[at, kind], np.iinfo(np.int64).max))
            held = (rows[:, PINS] | rows[:, BY_DEVICE]) != 0
            gone.append(rows[mine & ~held])
            self._put(block, rows[~mine | held])
        return np.concatenate(gone)

    def unpin(self, first: int, end: int) -> Int64s:
        """A long-term pin on what was at each of pages [first, end), if there is one, is dropped: as :meth:`drop_to`."""
        rows = self.between(first, end)
        rows = rows[rows[:, PINS] > 0]
        pages, of_page = np.unique(rows[:, PAGE], return_inverse=True)
        left = np.full((len(pages), 2), np.iinfo(np.int64).max)
        left[:, 0] = np.bincount(of_page, rows[:, PINS], len(pages)) - 1
        return self.drop_to(pages, left)

    def replace(self, pages: Int64s, rows: Int64s) -> None:
        """Of ``pages`` (n,), ascending, these are kept now and no others; ``rows`` ascend, those of a page by when they left."""
        for block, before in list(self._touched(int(pages[0]), int(pages[-1]) + 1)) if len(pages) else ():
            at = np.minimum(np.searchsorted(pages, before[:, PAGE]), len(pages) - 1)
            self._put(block, before[pages[at] != before[:, PAGE]])
        self.keep(rows)

    def _touched(self, first: int, end: int) -> Iterator[tuple[int, Int64s]]:
        """Blocks that pages [first, end) touch, ascending, with their rows."""
        low, high = first >> folio.ORDER_2M, (end - 1) >> folio.ORDER_2M
        few = high - low < len(self._blocks)
        for block in range(low, high + 1) if few else sorted(self._blocks):
            if low <= block <= high and block in self._blocks:
                yield block, self._blocks[block]

    def _put(self, block: int, rows: Int64s) -> None:
        if len(rows):
            self._blocks[block] = rows
        else:
            del self._blocks[block]


def _drop_oldest_first(rows: Int64s, column: int, left: Int64s) -> None:
    """Of each page's pins in a column no more than ``left`` (n,) stay: the same number in all rows of a page."""
    pins = rows[:, column]
    before = np.cumsum(pins) - pins
    begins = np.diff(rows[:, PAGE], prepend=-1) != 0
    of_page = np.cumsum(begins) - 1
    before -= before[begins][of_page]
    total = np.bincount(of_page, pins).astype(np.int64)[of_page]
    rows[:, column] -= np.clip(total - left - before, 0, pins)

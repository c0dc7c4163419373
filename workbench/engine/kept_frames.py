"""4 KiB pages that left a file while somebody held them, and who holds them still.

They are taken until the last pin is dropped (``mm/gup.c: unpin_user_pages``). Rows are int64 (n, 5), as
:mod:`workbench.kernels.kept_frames` has them; zone :data:`NOWHERE`: the page is poisoned, frame :data:`NO_FRAME`: it has no
number here.
"""

from __future__ import annotations

import itertools

import numpy as np

from workbench.intervals import Int64s
from workbench.kernels import kept_frames as kernels
from workbench.kernels.folios import run as folio
from workbench.kernels.kept_frames import FRAME as FRAME
from workbench.kernels.kept_frames import NO_FRAME as NO_FRAME
from workbench.kernels.kept_frames import NOWHERE as NOWHERE
from workbench.kernels.kept_frames import PAGE as PAGE
from workbench.kernels.kept_frames import PINS as PINS
from workbench.kernels.kept_frames import ZONE as ZONE

_NONE = np.zeros((0, 5), np.int64)
_NO_PAGES = np.zeros(0, np.int64)


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
        return _together(parts, _NONE)

    def pages(self, first: int, end: int) -> Int64s:
        """Pages of [first, end) of which some are kept, ascending, int64 (n,)."""
        parts = []
        for _, rows in self._touched(first, end):
            part = np.empty(len(rows), np.int64)
            parts.append(part[: kernels.pages_between.direct(rows, first, end, part)])
        return _together(parts, _NO_PAGES)

    def keep(self, rows: Int64s) -> None:
        """Pages, ascending, have left the file, after all that left it before."""
        for block, low, high in _by_block(rows[:, PAGE]):
            before, after = self._blocks.get(block), rows[low:high]
            if before is None:
                self._blocks[block] = after.copy()
                continue
            self._blocks[block] = np.empty((len(before) + len(after), 5), np.int64)
            kernels.merge.direct(before, after, self._blocks[block])

    def drop_to(self, pages: Int64s, left: Int64s) -> Int64s:
        """So many pins are left on what was at ``pages`` (n,), ascending, int64 (n, 2) by kind: what nobody holds any more.

        It is kept no more, and free, but for what is poisoned.
        """
        parts = []
        for block, low, high in _by_block(pages):
            rows = self._blocks.get(block)
            if rows is not None:
                gone = np.empty_like(rows)
                count = kernels.drop_to.direct(rows, pages[low:high], left[low:high], gone)
                self._put(block, rows[: len(rows) - count])
                parts.append(gone[:count])
        return _together(parts, _NONE)

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
        for block, before in self._touched(int(pages[0]), int(pages[-1]) + 1) if len(pages) else ():
            at = np.minimum(np.searchsorted(pages, before[:, PAGE]), len(pages) - 1)
            self._put(block, before[pages[at] != before[:, PAGE]])
        self.keep(rows)

    def _touched(self, first: int, end: int) -> list[tuple[int, Int64s]]:
        """Blocks that pages [first, end) touch, ascending, with their rows."""
        low, high = first >> folio.ORDER_2M, (end - 1) >> folio.ORDER_2M
        if low == high:  # as most calls have it
            rows = self._blocks.get(low)
            return [] if rows is None else [(low, rows)]
        few = high - low < len(self._blocks)
        blocks = range(low, high + 1) if few else sorted(self._blocks)
        return [(block, self._blocks[block]) for block in blocks if low <= block <= high and block in self._blocks]

    def _put(self, block: int, rows: Int64s) -> None:
        if len(rows):
            self._blocks[block] = rows
        else:
            del self._blocks[block]


def _by_block(pages: Int64s) -> list[tuple[int, int, int]]:
    """Blocks that ascending pages (n,) are of, and from where to where those of each stand."""
    count = len(pages)
    if not count:
        return []
    first, last = int(pages[0]) >> folio.ORDER_2M, int(pages[-1]) >> folio.ORDER_2M
    if first == last:  # as most often
        return [(first, 0, count)]
    blocks = pages >> folio.ORDER_2M
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1)).tolist()
    return [(int(blocks[low]), low, high) for low, high in itertools.pairwise(edges)]


def _together(parts: list[Int64s], nothing: Int64s) -> Int64s:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else nothing

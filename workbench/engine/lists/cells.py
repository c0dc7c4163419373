"""What is known of the pages of a tracked file while a list of calls goes on, row by row.

Pages that each row of the list meets together, and that were alike before it, are a cell: they stay alike.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.kept_frames import PAGE
from workbench.engine.lists.held_pages import HeldPages
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode
from workbench.intervals import Int64s, in_intervals, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at

NO, YES, UNSURE = range(3)


class Cells:
    """Cells of the pages [first, end) of rows, ``span`` int64 (n, 2), and of what lies between them, which nobody looks at."""

    def __init__(self, inode: Inode, tracked: ConversionFile, mapping: Mapping | None, span: Int64s) -> None:
        self._inode, self._tracked, self._host = inode, tracked, mapping
        edges = self._cut_where_pages_differ(np.unique(span), span)
        self.of_rows = np.searchsorted(edges, span)
        """int64 (n, 2), the cells [low, high) of each row."""
        first = edges.tolist()
        known = self._known(np.minimum(edges, inode.pages - 1))
        self.shared, self.there, self.mapped, self.poisoned = (
            bytearray(one.astype(np.uint8).tobytes()) for one in known[:4]
        )
        """Of each cell, YES, NO or UNSURE; whether it is poisoned is certain, and so is whether it is there."""
        self.held = HeldPages(inode, first, known[4:])
        self.first = first
        """The first page of each cell; the last one is after all of them."""

    def _cut_where_pages_differ(self, edges: Int64s, span: Int64s) -> Int64s:
        """Edges of cells, where edges of rows are given."""
        low, high = np.searchsorted(edges, span).T
        begins = np.bincount(low, minlength=len(edges)) - np.bincount(high, minlength=len(edges))
        some = np.flatnonzero((np.cumsum(begins)[:-1] > 0) & (np.diff(edges) > 1))
        if not len(some):
            return edges
        cell, page = pages_of(edges[some], edges[some + 1])
        known = self._known(page)
        differs = (known[:, 1:] != known[:, :-1]).any(axis=0) & (cell[1:] == cell[:-1])
        left = np.unique(self._inode.kept.between(int(edges[0]), int(edges[-1]))[:, PAGE])
        left = left[in_intervals(left, np.column_stack((edges[some], edges[some + 1])))]
        out: Int64s = np.unique(np.concatenate((edges, page[1:][differs], left, left + 1)))
        return out

    def _known(self, pages: Int64s) -> Int64s:
        """Of each page: whether it is shared, there, mapped by the host, poisoned, and its pins of each kind, int64 (7, n)."""
        tracked, state = self._tracked, self._tracked.state
        out = np.zeros((7, len(pages)), np.int64)
        out[0], out[1] = bits_at(state.shared, pages), bits_at(state.present, pages)
        if self._host is not None:
            out[2] = in_intervals(pages, self._host.mapped())
        if tracked.count("poisoned_pages"):
            out[3] = np.isin(pages, tracked.poisoned())
        if state.numbers[folio.N_ROWS]:
            rows = state.reference_row[pages >> folio.ORDER_2M], pages & (folio.PAGES_2M - 1)
            out[4:] = state.references[rows][:, [folio.TRANSIENT, folio.LONG_TERM, folio.DEVICE]].T
        return out

    def refuses(self, low: int, high: int, drains: bool) -> int:
        """Whether a conversion of cells to private is refused, to somebody one is shared and held: YES, NO or UNSURE.

        ``drains``: of batches that hold what was placed; else they hold it.
        """
        shared, there, poisoned, held = self.shared, self.there, self.poisoned, self.held
        if drains and poisoned.find(1, low, high) < 0 and not held.any(low, high):
            return NO
        found = NO
        for cell in range(low, high):
            if shared[cell] == NO or not there[cell]:
                continue
            if poisoned[cell] or any(counts[cell] for counts in held.pins):
                if shared[cell] == YES:
                    return YES
                found = UNSURE
            elif held.unsure[cell] or not drains:
                found = UNSURE
        return found

"""Sorted disjoint runs of pages that operations change: memory around :mod:`workbench.kernels.runs`."""

from __future__ import annotations

import numpy as np

from workbench.intervals import Int64s, no_intervals
from workbench.kernels import runs as kernels

_LOWEST, _HIGHEST = -(1 << 62), 1 << 62
_FOUND = 64  # rows that an answer has room for at first


class Runs:
    """Runs int64 (n, 3): first page, pages and a value, ascending.

    A change costs the logarithm of the runs; :meth:`all` costs the runs and is remembered until the next change.
    """

    def __init__(self) -> None:
        self._table = _NOTHING
        self._all: Int64s | None = None
        self._found = np.empty((_FOUND, 2), np.int64)
        """Where :meth:`gaps` has its answer written first, to be copied."""

    def __len__(self) -> int:
        return int(self._table.head[kernels.COUNT])

    def enter(self, allocations: Int64s, begin: int, end: int) -> None:
        """Add rows ``[begin, end)`` of an allocation table, each with its index as the value."""
        self._all = None
        self._make_room()
        while True:
            begin = int(kernels.enter.direct(self._table, allocations, begin, end))
            if begin == end:
                return
            self._grow()

    def replace(self, runs: Int64s) -> None:
        """These sorted disjoint runs int64 (n, 3) in place of all that there were."""
        self._all = None
        blocks = -(-len(runs) // kernels.BLOCK)
        self._table = _table(blocks + 1)
        self._table.rows[: len(runs)] = runs
        self._table.fill[:blocks] = kernels.BLOCK
        self._table.fill[blocks - 1 : blocks] -= blocks * kernels.BLOCK - len(runs)
        self._table.head[:] = blocks, len(runs)

    def join(self, start: int, end: int) -> int:
        """Add pages ``[start, end)`` without a value; what touches becomes one run. Returns how many were missing."""
        self._make_room()
        missing = int(kernels.join.direct(self._table, start, end))
        if missing:
            self._all = None
        return missing

    def erase(self, start: int, end: int) -> int:
        """Remove pages ``[start, end)``. Returns how many there were."""
        if self._table is _NOTHING:
            return 0
        self._make_room()
        gone = int(kernels.erase.direct(self._table, start, end))
        if gone:
            self._all = None
        return gone

    def cut(self, start: int, end: int) -> Int64s:
        """Runs int64 (n, 3) clipped to ``[start, end)``."""
        out = np.empty((_FOUND, 3), np.int64)
        count = kernels.cut.direct(self._table, start, end, out)
        if count > _FOUND:
            out = np.empty((count, 3), np.int64)
            kernels.cut.direct(self._table, start, end, out)
        return out[:count]

    def value_at(self, page: int) -> int:
        """Value of the run that holds a page, where values are natural numbers; -1: none does."""
        return int(kernels.value_at.direct(self._table, page))

    def any(self, start: int, end: int) -> bool:
        """Whether a run holds a page of ``[start, end)``."""
        page = int(kernels.next_page.direct(self._table, start))
        return 0 <= page < end

    def gaps(self, start: int, end: int) -> Int64s:
        """What of ``[start, end)`` no run holds, as intervals int64 (n, 2)."""
        if self._table is _NOTHING and start < end:
            return np.array([[start, end]], np.int64)
        count = kernels.gaps.direct(self._table, start, end, self._found)
        if not count:
            return no_intervals()
        if count <= _FOUND:
            return self._found[:count].copy()
        out = np.empty((count, 2), np.int64)
        kernels.gaps.direct(self._table, start, end, out)
        return out

    def pages_missing(self, start: int, end: int) -> int:
        """How many pages of ``[start, end)`` no run holds."""
        if self._table is _NOTHING:
            return max(0, end - start)
        count = kernels.gaps.direct(self._table, start, end, self._found)
        if not count:
            return 0
        return _pages(self._found[:count] if count <= _FOUND else self.gaps(start, end))

    def holds(self, start: int, end: int) -> bool:
        """Whether runs hold every page of ``[start, end)``."""
        return start >= end or (
            self._table is not _NOTHING and not kernels.gaps.direct(self._table, start, end, self._found)
        )

    def all(self) -> Int64s:
        """All runs, not to be written to."""
        if self._all is None:
            self._all = self.cut(_LOWEST, _HIGHEST)
        return self._all

    def end(self) -> int:
        """End of the last run; 0 if there is none."""
        table = self._table
        used = int(table.head[kernels.USED])
        if not used:
            return 0
        block = int(table.order[used - 1])
        first, length, _ = table.rows[block * kernels.BLOCK + int(table.fill[block]) - 1].tolist()
        return int(first + length)

    @property
    def table(self) -> kernels.Runs:
        """The table, for a kernel that reads it."""
        return self._table

    def room(self, blocks: int) -> kernels.Runs:
        """The table, with so many free blocks at least, for a kernel that changes it."""
        self._all = None
        while len(self._table.order) - self._table.head[kernels.USED] < blocks:
            self._grow()
        return self._table

    def _make_room(self) -> None:
        """A block is free."""
        if self._table.head[kernels.USED] == len(self._table.order):
            self._grow()

    def _grow(self) -> None:
        """Twice the blocks, or the first one."""
        old = self._table
        if old is _NOTHING:
            self._table = _table(1)
            return
        new = _table(2 * len(old.order))
        new.rows[: len(old.rows)] = old.rows
        new.fill[: len(old.fill)] = old.fill
        new.order[: len(old.order)] = old.order
        new.head[:] = old.head
        self._table = new


class PageSet:
    """Pages without a value, as intervals int64 (n, 2); each change and question costs the logarithm of the intervals."""

    def __init__(self, intervals: Int64s | None = None) -> None:
        self._runs = Runs()
        self.pages = 0
        """How many pages there are."""
        if intervals is not None and len(intervals):
            length = intervals[:, 1] - intervals[:, 0]
            self._runs.replace(np.column_stack((intervals[:, 0], length, np.zeros_like(length))))
            self.pages = int(length.sum())

    @property
    def run_count(self) -> int:
        """How many intervals there are."""
        return len(self._runs)

    def add(self, start: int, end: int) -> int:
        """Add pages ``[start, end)``. Returns how many were missing."""
        missing = self._runs.join(start, end)
        self.pages += missing
        return missing

    def remove(self, start: int, end: int) -> int:
        """Remove pages ``[start, end)``. Returns how many there were."""
        gone = self._runs.erase(start, end)
        self.pages -= gone
        return gone

    def holds(self, start: int, end: int) -> bool:
        """Whether every page of ``[start, end)`` is there."""
        return self._runs.holds(start, end)

    def inside(self, start: int, end: int) -> Int64s:
        """What of ``[start, end)`` is there, as intervals."""
        return _intervals(self._runs.cut(start, end))

    def outside(self, start: int, end: int) -> Int64s:
        """What of ``[start, end)`` is not, as intervals."""
        return self._runs.gaps(start, end)

    def intervals(self) -> Int64s:
        """All of it, ascending."""
        return _intervals(self._runs.cut(_LOWEST, _HIGHEST))


def _intervals(runs: Int64s) -> Int64s:
    runs[:, 1] += runs[:, 0]
    return runs[:, :2]


def _pages(intervals: Int64s) -> int:
    return sum(end - start for start, end in intervals.tolist())


def _table(blocks: int) -> kernels.Runs:
    return kernels.Runs(
        np.empty((blocks * kernels.BLOCK, 3), np.int64),
        np.zeros(blocks, np.int64),
        np.arange(blocks, dtype=np.int64),
        np.zeros(2, np.int64),
    )


_NOTHING = _table(0)

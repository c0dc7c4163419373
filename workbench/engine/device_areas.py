"""Areas of a file that are mapped for devices (``drivers/iommu/iommufd/io_pagetable.c``: an interval tree of ``iopt_area``)."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from workbench.intervals import Int64s, no_intervals


class DeviceAreas:
    """Disjoint areas [first page, end), as they were mapped: neighbours stay apart."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        self._table: Int64s | None = no_intervals()

    def __len__(self) -> int:
        return len(self._starts)

    def copy(self) -> DeviceAreas:
        """The same areas, to be changed on their own."""
        other = DeviceAreas()
        other._starts, other._ends, other._table = self._starts.copy(), self._ends.copy(), self._table
        return other

    def touched(self, first: int, end: int) -> list[tuple[int, int]]:
        """Areas that have a page of [first, end), ascending."""
        starts, ends = self._starts, self._ends
        at = bisect_left(starts, first)
        if at and ends[starts[at - 1]] > first:
            at -= 1
        out: list[tuple[int, int]] = []
        while at < len(starts) and starts[at] < end:
            out.append((starts[at], ends[starts[at]]))
            at += 1
        return out

    def add(self, first: int, end: int) -> None:
        """An area that has no page of another."""
        insort(self._starts, first)
        self._ends[first] = end
        self._table = None

    def remove(self, first: int) -> None:
        """The area that begins at a page."""
        del self._starts[bisect_left(self._starts, first)]
        del self._ends[first]
        self._table = None

    def intervals(self) -> Int64s:
        """All of them, int64 (n, 2), ascending; not to be written to."""
        if self._table is None:
            ends = self._ends
            self._table = np.array([(start, ends[start]) for start in self._starts], np.int64).reshape(-1, 2)
        return self._table

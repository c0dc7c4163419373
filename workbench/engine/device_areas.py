"""Areas of a file that are mapped for devices (``drivers/iommu/iommufd/io_pagetable.c``: an interval tree of ``iopt_area``)."""

from __future__ import annotations

import numpy as np

from workbench.engine.runs import Runs
from workbench.intervals import Int64s
from workbench.kernels.runs import FIRST, LENGTH, VALUE
from workbench.kernels.runs import Runs as Table

_LEAST_ROWS = 64


class DeviceAreas:
    """Disjoint areas [first page, end), as they were mapped: neighbours stay apart."""

    def __init__(self) -> None:
        self._runs = Runs()
        self._rows = np.zeros((_LEAST_ROWS, 3), np.int64)
        """First page, pages, step of each area, as runs take them, which name it by its row; areas that are gone included."""
        self._used = 0

    def __len__(self) -> int:
        return len(self._runs)

    def copy(self) -> DeviceAreas:
        """The same areas, to be changed on their own."""
        other = DeviceAreas()
        areas = self.intervals()
        other._make_room(len(areas))
        other._rows[: len(areas)] = np.column_stack(
            (areas[:, 0], areas[:, 1] - areas[:, 0], np.ones(len(areas), np.int64))
        )
        other._used = len(areas)
        other._runs.enter(other._rows, 0, len(areas))
        return other

    def touched(self, first: int, end: int) -> list[tuple[int, int]]:
        """Areas that have a page of [first, end), ascending."""
        runs = self._runs.cut(first, end)
        if not len(runs):
            return []
        return [(low, low + pages) for low, pages, _ in self._rows[runs[:, VALUE]].tolist()]

    def add(self, first: int, end: int) -> None:
        """An area that has no page of another."""
        self._make_room(1)
        self._rows[self._used] = first, end - first, 1
        self._used += 1
        self._runs.enter(self._rows, self._used - 1, self._used)

    def remove(self, first: int) -> None:
        """The area that begins at a page."""
        ((_, end),) = self.touched(first, first + 1)
        self._runs.erase(first, end)

    def intervals(self) -> Int64s:
        """All of them, int64 (n, 2), ascending; not to be written to."""
        runs = self._runs.all()
        return np.column_stack((runs[:, FIRST], runs[:, FIRST] + runs[:, LENGTH]))

    def lend(self, more: int) -> tuple[Table, Int64s, int]:
        """The runs, their rows, with room for so many more, and how many are in use: for a kernel, until :meth:`take_back`."""
        self._make_room(more)
        return self._runs.room(more), self._rows, self._used

    def take_back(self, used: int) -> None:
        """So many rows are in use."""
        self._used = used

    def _make_room(self, more: int) -> None:
        """Rows of areas that are gone go first."""
        if self._used + more <= len(self._rows):
            return
        runs = self._runs.all().copy()
        longer = np.zeros((max(_LEAST_ROWS, 2 * (len(runs) + more)), 3), np.int64)
        longer[: len(runs)] = self._rows[runs[:, VALUE]]
        runs[:, VALUE] = np.arange(len(runs))
        self._rows, self._used = longer, len(runs)
        self._runs.replace(runs)

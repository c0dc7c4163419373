"""Sums over all files of a host, of which only those are looked at again that may have changed.

A call names one file, and a host may have thousands: what is noted after each call costs what the call changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from workbench.engine.objects import Inode
from workbench.intervals import Int64s
from workbench.kernels import sums as kernel


class Sums:
    """Sums of ``width`` columns; ``enter`` puts what an inode adds into a row int64 (width,), False: nothing any more.

    Columns that it never writes are 0.
    """

    def __init__(self, width: int, enter: Callable[[Inode, Int64s], bool]) -> None:
        self.enter = enter
        self.rows: dict[Inode, Int64s] = {}
        self.total = np.zeros(width, np.int64)
        self._row, self._nothing = np.zeros((2, width), np.int64)

    def look(self, changed: Iterable[Inode] | None, inodes: Iterable[Inode]) -> Int64s:
        """The sums now, int64 (width,): of all ``inodes``, where nobody knows which have changed (None)."""
        total, now, nothing = self.total, self._row, self._nothing
        for inode in dict.fromkeys((*self.rows, *inodes)) if changed is None else changed:
            before = self.rows.get(inode)
            if self.enter(inode, now):
                if before is None:
                    before = self.rows[inode] = np.zeros_like(now)
                kernel.replace.direct(total, before, now)
            elif before is not None:
                kernel.replace.direct(total, before, nothing)
                del self.rows[inode]
        return total

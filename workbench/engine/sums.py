"""Sums over all files of a host, of which only those are looked at again that may have changed.

A call names one file, and a host may have thousands: what is noted after each call costs what the call changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from workbench.engine.objects import Inode
from workbench.intervals import Int64s


class Sums:
    """Sums of ``width`` columns; ``row_of`` gives what an inode adds, int64 (width,), or None: nothing any more."""

    def __init__(self, width: int, row_of: Callable[[Inode], Int64s | None]) -> None:
        self.row_of = row_of
        self.rows: dict[Inode, Int64s] = {}
        self.total = np.zeros(width, np.int64)

    def look(self, changed: Iterable[Inode] | None, inodes: Iterable[Inode]) -> Int64s:
        """The sums now, int64 (width,): of all ``inodes``, where nobody knows which have changed (None)."""
        for inode in dict.fromkeys((*self.rows, *inodes)) if changed is None else changed:
            now, before = self.row_of(inode), self.rows.get(inode)
            if now is not None:
                self.total += now
                self.rows[inode] = now
            elif before is not None:
                del self.rows[inode]
            if before is not None:
                self.total -= before
        return self.total

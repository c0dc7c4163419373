"""The pfns of a run's folios: the free extents of every zone, around :mod:`workbench.kernels.pfns`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.engine.filemap import FileMap, Int16s
from workbench.intervals import Int64s
from workbench.kernels import pfns as kernels
from workbench.kernels.placement import ALLOCATIONS

_MORE = 1024


@dataclass
class FilePfns:
    """What the allocations of one inode got: ``first`` and ``extents`` of :mod:`workbench.kernels.pfns`, and single folios."""

    first: Int64s
    extents: Int64s = field(default_factory=lambda: np.empty((_MORE, 3), np.int64))
    used: int = 0
    listed: dict[int, Int64s] = field(default_factory=dict)  # allocation row -> pfn of each folio, for place_list


class FreePfns:
    """The stacks of free extents of all zones."""

    def __init__(self, start_pfn: Int64s, free: Int64s) -> None:
        zones = len(free)
        self.stack = np.zeros((0, 4), np.int64)
        self.top = np.full(zones, -1, np.int64)
        self.unused = np.array([-1, 0], np.int64)
        self._keep_room(zones)
        for zone in range(zones):
            if free[zone]:
                kernels.push(zone, int(start_pfn[zone]), int(free[zone]), 1, self.stack, self.top, self.unused)

    def new_file(self) -> FilePfns:
        """The book of an inode that holds nothing yet."""
        return FilePfns(np.zeros((16, len(self.top)), np.int64))

    def hand_out(self, map_: FileMap, book: FilePfns, begin: int) -> None:
        """Pfns for the allocations that were written since row ``begin``."""
        end = int(map_.progress[ALLOCATIONS])
        self._grow_first(book, end)
        rows = (end - begin) * len(self.top) + len(self.stack)
        if book.used + rows > len(book.extents):
            longer = np.empty((book.used + 2 * rows, 3), np.int64)
            longer[: book.used] = book.extents[: book.used]
            book.extents = longer
        used = kernels.hand_out(
            map_.allocations, map_.tiles, begin, end, self.stack, self.top, self.unused,
            np.empty(len(self.top), np.int64), book.first, book.extents, book.used,
        )  # fmt: skip
        if used < 0:
            raise AssertionError("a zone gave more folios than it had free")
        book.used = int(used)

    @staticmethod
    def _grow_first(book: FilePfns, rows: int) -> None:
        if rows > len(book.first):
            longer = np.zeros((max(rows, 2 * len(book.first)), book.first.shape[1]), np.int64)
            longer[: len(book.first)] = book.first
            book.first = longer

    def hand_out_list(self, zones: Int16s, pages: Int64s, base: int, out: Int64s) -> None:
        """Pfns for folios placed one by one, into ``out`` (indexed from ``base``)."""
        if kernels.hand_out_list(zones, pages, base, self.stack, self.top, self.unused, out) < 0:
            raise AssertionError("a zone gave more folios than it had free")

    def release(self, map_: FileMap, book: FilePfns, runs: Int64s) -> None:
        """Free the folios of runs int64 (n, 3), in ascending order."""
        folios = int(runs[0, 1]) if len(runs) == 1 else int(runs[:, 1].sum())
        if not book.listed:  # a run that begins or ends within an extent cuts it
            folios = min(folios, book.used + 2 * len(runs) * len(self.top))
        self._keep_room(folios)
        first, second, third = np.empty((3, len(self.top)), np.int64)
        for run in runs:
            row = int(run[2])
            if row in book.listed:
                self._release_listed(map_, book, run)
                continue
            if kernels.release(
                run,
                map_.allocations,
                map_.tiles,
                book.first,
                book.extents,
                first,
                second,
                third,
                self.stack,
                self.top,
                self.unused,
            ):
                raise AssertionError("no room on the stack of free extents")

    def _release_listed(self, map_: FileMap, book: FilePfns, run: Int64s) -> None:
        start, count, row = (int(value) for value in run)
        first, _, _, offset, _ = (int(value) for value in map_.allocations[row])
        skip = start - first
        kernels.release_list(
            map_.tiles[offset + skip : offset + skip + count],
            book.listed[row][skip : skip + count],
            self.stack,
            self.top,
            self.unused,
        )

    def _keep_room(self, rows: int) -> None:
        """See that so many rows of the stack are unused."""
        if self.unused[1] >= rows:
            return
        old = len(self.stack)
        more = max(rows, old, _MORE)
        longer = np.zeros((old + more, 4), np.int64)
        longer[:old] = self.stack
        longer[old:, 3] = np.arange(old + 1, old + more + 1)
        longer[-1, 3] = self.unused[0]
        self.stack = longer
        self.unused[:] = old, self.unused[1] + more

    def give_back(self, zone: int, pfn: int) -> None:
        """A frame that somebody had held is free: the next that its zone hands out."""
        self._keep_room(1)
        kernels.push(zone, pfn, 1, 1, self.stack, self.top, self.unused)

    def free_in(self, zone: int) -> Int64s:
        """The free frames of a zone, ascending."""
        parts, row = [np.empty(0, np.int64)], int(self.top[zone])
        while row >= 0:
            first, count, step, row = self.stack[row].tolist()
            parts.append(first + step * np.arange(count))
        return np.sort(np.concatenate(parts))

    def replace(self, zone: int, frames: Int64s) -> None:
        """These frames, ascending, are what a zone has free; the lowest is handed out first."""
        row = int(self.top[zone])
        while row >= 0:
            below = int(self.stack[row, 3])
            self.stack[row, 3], self.unused[0] = self.unused[0], row
            self.unused[1] += 1
            row = below
        self.top[zone] = -1
        edges = np.flatnonzero(np.diff(frames) != 1) + 1
        begin, end = np.append(0, edges), np.append(edges, len(frames))
        self._keep_room(len(begin))
        for first, count in zip(frames[begin][::-1].tolist(), (end - begin)[::-1].tolist(), strict=True):
            kernels.push(zone, first, count, 1, self.stack, self.top, self.unused)

    def of_file(self, map_: FileMap, book: FilePfns, size: int) -> Int64s:
        """Pfn of every folio of an inode, int64 (size,), -1 where absent."""
        return self.of_pages(map_, book, 0, size)

    def of_pages(self, map_: FileMap, book: FilePfns, low: int, high: int) -> Int64s:
        """Pfn of each folio of [low, high) of an inode, int64 (high - low,), -1 where absent."""
        out = np.full(high - low, -1, np.int64)
        rank, at = np.empty(len(self.top), np.int64), np.empty(len(self.top), np.int64)
        for run in map_.cut(low, high):
            start, count, row = (int(value) for value in run)
            part = out[start - low : start - low + count]
            if row in book.listed:
                skip = start - int(map_.allocations[row, 0])
                part[:] = book.listed[row][skip : skip + count]
            else:
                kernels.pfns_of_run(run, map_.allocations, map_.tiles, book.first, book.extents, rank, at, part)
        return out

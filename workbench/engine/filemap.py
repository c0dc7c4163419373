"""Which pages of one inode are present and which zone backs each: tables of runs around :mod:`workbench.kernels.filemap`.

Indices are folios of the inode's own size (4 KiB pages for the filemap design, 2 MiB or 1 GiB for huge ones).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.engine.runs import Runs
from workbench.intervals import Int64s, intervals_in, no_intervals, pages_of, true_intervals
from workbench.kernels import filemap as kernels
from workbench.kernels.placement import ALLOCATIONS, TILES, Output
from workbench.kernels.runs import Runs as Table

Int16s = npt.NDArray[np.int16]
_KNOWN = 1 << 16  # single indices that a map remembers
_FOUND = 8  # runs that an erased range is looked at by
_BLOCKS = 8  # free ones of a table that a kernel adds runs to


class FileMap:
    """Present folios of one inode.

    ``runs`` int64 (runs, 3) and ``allocations`` int64 (rows, 5), ``tiles`` int16 (entries,) are the tables that
    :mod:`workbench.kernels.filemap` describes; the latter two have room to grow, ``progress`` says how much is used.
    """

    def __init__(self) -> None:
        self._runs = Runs()
        self.allocations: Int64s = np.empty((16, 5), np.int64)
        self.tiles: Int16s = np.empty(256, np.int16)
        self.progress: Int64s = np.zeros(4, np.int64)
        self.output: Output | None = None
        """These tables as the kernel that places folios has them, kept by whoever calls it."""
        self._folios: int | None = 0
        """How many are present; None: a kernel has changed the table since somebody asked."""
        self._whole = (0, 0)
        """An interval without holes, the last one found: what comes next is often in it, as with tables of pages."""
        self._found = np.empty((_FOUND, 3), np.int64)
        """Working space of a kernel."""
        self._known: set[int] = set()
        """Single indices that were found present, for those that come in no order."""

    def grow(self, rows: int = 0, entries: int = 0) -> None:
        """Make room for at least so many more allocation rows and tile entries, doubling what is there."""
        _, _, used_rows, used_entries = self.progress.tolist()
        if used_rows + rows > len(self.allocations):
            bigger = np.empty((max(2 * len(self.allocations), used_rows + rows), 5), np.int64)
            bigger[:used_rows] = self.allocations[:used_rows]
            self.allocations = bigger
        if used_entries + entries > len(self.tiles):
            longer = np.empty(max(2 * len(self.tiles), used_entries + entries), np.int16)
            longer[:used_entries] = self.tiles[:used_entries]
            self.tiles = longer

    def room(self, erases: bool = False) -> Table:
        """The table of runs, for a kernel that adds some, or ``erases`` some as well."""
        self._folios = None
        if erases:
            self._whole = (0, 0)
            self._known.clear()
        return self._runs.room(_BLOCKS)

    def placed_by(self, first: int, end: int) -> tuple[Int64s, Int64s, Int64s]:
        """What allocation rows [first, end) placed, folio by folio, int64 (m,) each: row from ``first`` on, folio, zone."""
        return self._each_of(self.allocations[first:end])

    def _each_of(self, rows: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Folios of allocation rows in the order in which they were placed: row, folio, zone, int64 (m,) each."""
        row, place = pages_of(np.zeros(len(rows), np.int64), rows[:, kernels.COUNT])
        of = rows[row]
        zones = self.tiles[of[:, kernels.OFFSET] + place % of[:, kernels.PERIOD]].astype(np.int64)
        return row, of[:, kernels.FIRST] + place * of[:, kernels.STEP], zones

    def add_singles(self, indices: Int64s, zones: Int64s) -> None:
        """Enter single folios int64 (n,), which were absent, with the zone of each."""
        first_row, offset = int(self.progress[ALLOCATIONS]), int(self.progress[TILES])
        self.grow(len(indices), len(indices))
        rows = self.allocations[first_row : first_row + len(indices)]
        rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 4] = indices, 1, 1, 1
        rows[:, 3] = np.arange(offset, offset + len(indices))
        self.tiles[offset : offset + len(indices)] = zones
        self.progress[ALLOCATIONS] += len(indices)
        self.progress[TILES] += len(indices)
        self.add_new_allocations(first_row)

    def add_new_allocations(self, first_row: int) -> None:
        """Enter the allocation rows written since ``first_row`` as present runs."""
        end = int(self.progress[ALLOCATIONS])
        self._runs.enter(self.allocations, first_row, end)
        counts = self.allocations[first_row:end, kernels.COUNT].tolist()
        if self._folios is not None:
            self._folios += sum(counts)
        if counts == [1]:
            self._knows(int(self.allocations[first_row, kernels.FIRST]))

    def replace(self, runs: Int64s) -> None:
        """These runs int64 (n, 3) are what is present, of allocation rows that are there."""
        self._whole = (0, 0)
        self._known.clear()
        self._runs.replace(runs)
        self._folios = None

    def zone_of_runs(self, runs: Int64s, which: Int64s, folios: Int64s) -> Int64s:
        """Zones of ``folios`` int64 (n,), each in the run int64 (r, 3) whose index ``which`` int64 (n,) names."""
        rows = self.allocations[runs[which, 2]]
        place = (folios - rows[:, kernels.FIRST]) * rows[:, kernels.STEP]
        return self.tiles[rows[:, kernels.OFFSET] + place % rows[:, kernels.PERIOD]].astype(np.int64)

    def add_list(self, holes: Int64s, zones: Int16s, base: int) -> None:
        """Enter folios whose zones were found one by one.

        ``holes`` int64 (n, 2) are the intervals that were absent, ``zones`` int16 holds the zone of each folio from
        ``base`` on, -1 where none was placed.
        """
        first_row = int(self.progress[ALLOCATIONS])
        for start, end in self._placed(holes, zones, base):
            self.grow(1, int(end - start))
            row, offset = int(self.progress[ALLOCATIONS]), int(self.progress[TILES])
            self.allocations[row] = (start, end - start, 1, offset, end - start)
            self.tiles[offset : offset + end - start] = zones[start - base : end - base]
            self.progress[ALLOCATIONS] += 1
            self.progress[TILES] += end - start
        self.add_new_allocations(first_row)

    def add_run(self, start: int, end: int, zone: int) -> None:
        """Enter folios ``[start, end)``, which were absent, all of one zone."""
        if end <= start:
            return
        row = self.row_of(end - start, zone)
        self.allocations[row, 0] = start
        self.add_new_allocations(row)

    def row_of(self, folios: int, zone: int) -> int:
        """A new allocation row of folios [0, ``folios``) that are all of one zone; what is present stays as it is."""
        self.grow(1, 1)
        row, offset = int(self.progress[ALLOCATIONS]), int(self.progress[TILES])
        self.allocations[row] = (0, folios, 1, offset, 1)
        self.tiles[offset] = zone
        self.progress[ALLOCATIONS] += 1
        self.progress[TILES] += 1
        return row

    def take_rows_from(self, first: int) -> Int64s:
        """Leave out allocation rows of indices from ``first`` on; the zones of what they placed, in their order."""
        used = int(self.progress[ALLOCATIONS])
        rows = self.allocations[:used]
        beyond = rows[:, kernels.FIRST] >= first
        taken, kept = rows[beyond], rows[~beyond]
        zones = self._each_of(taken)[2]
        self.allocations[: len(kept)] = kept
        self.progress[ALLOCATIONS] = len(kept)
        return zones

    def add_rows_of(self, other: FileMap) -> None:
        """Enter what another map's allocation rows placed, which was absent here."""
        rows, entries = int(other.progress[ALLOCATIONS]), int(other.progress[TILES])
        self.grow(rows, entries)
        row, offset = int(self.progress[ALLOCATIONS]), int(self.progress[TILES])
        self.allocations[row : row + rows] = other.allocations[:rows]
        self.allocations[row : row + rows, kernels.OFFSET] += offset
        self.tiles[offset : offset + entries] = other.tiles[:entries]
        self.progress[ALLOCATIONS] += rows
        self.progress[TILES] += entries
        self.add_new_allocations(row)

    def tiled(self) -> Int64s:
        """The zone of every folio of all allocation rows, in the order in which they were placed."""
        rows = self.allocations[: int(self.progress[ALLOCATIONS])].tolist()
        if len(rows) == 1 and rows[0][kernels.PERIOD] == 1:  # of one zone, as most often
            return np.full(rows[0][kernels.COUNT], self.tiles[rows[0][kernels.OFFSET]], np.int64)
        parts = [
            np.tile(self.tiles[offset : offset + period], -(-count // period))[:count]
            for _, count, _, offset, period in rows
        ]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

    @staticmethod
    def _placed(holes: Int64s, zones: Int16s, base: int) -> Int64s:
        if (zones >= 0).all():
            return holes
        placed = true_intervals(zones >= 0, base)
        parts = [intervals_in(int(start), int(end), placed) for start, end in holes]
        return np.concatenate(parts) if parts else no_intervals()

    @property
    def runs(self) -> Int64s:
        """What is present, for readers: the whole table, made when it is asked for."""
        return self._runs.all()

    @property
    def folios(self) -> int:
        """How many are present."""
        if self._folios is None:
            self._folios = int(self.runs[:, 1].sum())
        return self._folios

    @property
    def run_count(self) -> int:
        """How many runs are present."""
        return len(self._runs)

    @property
    def empty(self) -> bool:
        """Whether nothing is present."""
        return not len(self._runs)

    @property
    def end(self) -> int:
        """End of the last folio that is present."""
        return self._runs.end()

    @property
    def present(self) -> Int64s:
        """Present intervals int64 (n, 2), sorted; neighbours may touch."""
        runs = self.runs
        return np.column_stack((runs[:, 0], runs[:, 0] + runs[:, 1]))

    def absent(self, start: int, end: int) -> Int64s:
        """Holes in ``[start, end)`` as int64 (n, 2)."""
        if self.is_known(start, end):
            return no_intervals()
        holes = self._runs.gaps(start, end)
        if not len(holes):
            self._whole = (start, end)
            if end - start == 1:
                self._knows(start)
        return holes

    def _knows(self, index: int) -> None:
        """A single index is there."""
        if len(self._known) < _KNOWN:
            self._known.add(index)

    def is_known(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` was found without holes before; False says nothing."""
        return (self._whole[0] <= start and end <= self._whole[1]) or (end - start == 1 and start in self._known)

    def _forget_found(self, start: int, end: int) -> None:
        """Folios [start, end) may be absent from now on."""
        if self._whole[0] < end and start < self._whole[1]:
            self._whole = (0, 0)
        if end - start == 1:  # what else was found is still there: where nodes come and go one by one, most of it
            self._known.discard(start)
        else:
            self._known.clear()

    def cut(self, start: int, end: int) -> Int64s:
        """Runs int64 (n, 3) clipped to ``[start, end)``."""
        return self._runs.cut(start, end)

    def cut_each(self, parts: Int64s) -> Int64s:
        """Runs clipped to each of ascending ``parts`` int64 (n, 2), one part after the other."""
        runs = self.cut(int(parts[0, 0]), int(parts[-1, 1])) if len(parts) else self.cut(0, 0)
        if len(parts) <= 1:
            return runs
        first, end = runs[:, 0], runs[:, 0] + runs[:, 1]
        part, run = pages_of(np.searchsorted(end, parts[:, 0], "right"), np.searchsorted(first, parts[:, 1]))
        low = np.maximum(first[run], parts[part, 0])
        return np.column_stack((low, np.minimum(end[run], parts[part, 1]) - low, runs[run, 2]))

    def any(self, start: int, end: int) -> bool:
        """Whether anything of ``[start, end)`` is there."""
        return self._runs.any(start, end)

    def counts(self, zones: int, start: int = 0, end: int = np.iinfo(np.int64).max) -> Int64s:
        """Folios of ``[start, end)`` in each zone, int64 (zones,)."""
        return self.counts_of(zones, self.cut(start, end))

    def counts_of(self, zones: int, runs: Int64s) -> Int64s:
        """Folios of parts of the runs in each zone, int64 (zones,)."""
        out = np.zeros(zones, np.int64)
        kernels.count_zones(runs, self.allocations, self.tiles, out)
        return out

    def erase(self, start: int, end: int, zones: int) -> Int64s:
        """Remove ``[start, end)``; return what was freed in each zone, int64 (zones,)."""
        if self.empty:  # as files are that are closed as they were made
            return np.zeros(zones, np.int64)
        freed = np.zeros(zones, np.int64)
        self._forget_found(start, end)
        kernels.erase.direct(self._runs.room(1), self.allocations, self.tiles, start, end, self._found, freed)
        if self._folios is not None:
            self._folios -= sum(freed.tolist())
        return freed

    def zone_at(self, page: int) -> int:
        """Zone of one folio index, -1 if absent."""
        return int(kernels.zone_at.direct(self._runs.table, self.allocations, self.tiles, page))

    def zone_of(self, pages: Int64s) -> Int64s:
        """Zone of each folio index, -1 if absent."""
        if len(pages) == 1:
            return np.array([self.zone_at(int(pages[0]))], np.int64)
        out = np.empty(len(pages), np.int64)
        if len(pages):
            runs = self.cut(int(pages.min()), int(pages.max()) + 1)
            kernels.zone_of_pages(np.asarray(pages, np.int64), runs, self.allocations, self.tiles, out)
        return out

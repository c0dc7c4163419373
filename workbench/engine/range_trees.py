"""Maple trees of guest_memfd files: ranges of private and shared pages, and the offset -> pfn map of memory without struct page.

A file that converts in place keeps the state of its pages in a maple tree over the whole file, equal neighbours one range
(in-place conversion as posted; the huge-page series likewise). Under ``pfn-range`` what is private is found in a second one, the
light map: a range for each extent of frames that lie together. A hole is a range too, and so is what follows the file.

How many nodes hold so many ranges depends on the order of the stores: a node has 6 to 16 slots (``lib/maple_tree.c``). The
light map of a file that converts is there node for node (:mod:`workbench.kernels.light_map`). Elsewhere nodes are as many
as stores in ascending order leave, 14 ranges in each (:mod:`workbench.kernels.maps.maple`): modelled, like both trees.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.engine.filemap import FileMap
from workbench.engine.objects import Inode
from workbench.intervals import Int64s, pages_of
from workbench.kernels import filemap as kernels
from workbench.kernels import light_map, state_ranges
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple
from workbench.kernels.placement import ALLOCATIONS
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import TrackedFile
from workbench.units import PAGE_SIZE


class MapleSlab:
    """``struct maple_node`` has 256 bytes; a slab of its cache is a page."""

    OBJECTS, PAGES = 16, 1


_ONE, _TOP = np.uint64(1), np.uint64(63)
_FEW_RUNS = 8
_FEW_WORDS = 64
"""Words of 64 pages that are one integer rather than an array."""


def _as_one(words: np.ndarray, low: int, end: int) -> int:
    """Words [low, end) as one number."""
    return int(words[low]) if end - low == 1 else int.from_bytes(words[low:end].tobytes(), "little")


def nodes_of(ranges: int) -> int:
    """Nodes of a tree of so many ranges that were stored in ascending order; none where nothing is stored."""
    nodes = 0
    while ranges > 1:
        ranges = 1 if ranges <= maple.SLOTS else 2 + (ranges - maple.SLOTS - 1) // maple.PUSH_TO
        nodes += ranges
    return nodes


@dataclass(eq=False)
class Tree:
    """One tree and where its nodes are."""

    nodes: Int64s
    """Nodes by the NUMA node of the task that stored, int64 (nodes,)."""
    ranges: int = 1

    def wanted(self) -> int:
        """Nodes that it has now."""
        return nodes_of(self.ranges)

    def along(self, changes: Int64s) -> Int64s:
        """Nodes after each of n calls by which the number of ranges changed so much, int64 (n,)."""
        ranges = self.ranges + np.cumsum(changes)
        self.ranges = int(ranges[-1])
        different, which = np.unique(ranges, return_inverse=True)
        return np.array([nodes_of(count) for count in different.tolist()], np.int64)[which]


@dataclass(eq=False)
class StateTree(Tree):
    """Which pages of a tracked file are shared, by ranges; what conversions name is looked at again, and nothing else."""

    file: TrackedFile | None = None
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """uint64 (W,), state as it was at the last look."""
    _of_ranges: tuple[int, int] = (1, 0)
    """So many ranges have so many nodes."""

    @classmethod
    def of(cls, file: TrackedFile, nodes: int) -> StateTree:
        """The tree of a new file, from whose beginning it hears of every conversion."""
        file.converted = []
        shared, words = file.count("shared_pages"), file.state.shared
        # As a file begins: of a private one nothing is read, and memory for it is taken as it is written.
        tree = cls(np.zeros(nodes, np.int64), 2, file, words.copy() if shared else np.zeros_like(words))
        if 0 < shared < file.size // PAGE_SIZE:
            tree.ranges += tree._borders(words, np.arange(tree._words()))
        return tree

    def wanted(self) -> int:
        """Nodes after the conversions since the last look."""
        assert self.file is not None and self.file.converted is not None
        if self.file.converted:
            rows = self.file.converted[0] if len(self.file.converted) == 1 else np.concatenate(self.file.converted)
            self.file.converted.clear()
            if len(rows) > 1 or not self._look_at_few(int(rows[0, folio.OFFSET]), int(rows[0, folio.LENGTH])):
                self._look(rows[:, folio.OFFSET] // PAGE_SIZE, rows[:, folio.LENGTH] // PAGE_SIZE)
        if self._of_ranges[0] != self.ranges:
            self._of_ranges = self.ranges, super().wanted()
        return self._of_ranges[1]

    def follow(self, first: Int64s, end: Int64s, to_shared: np.ndarray) -> Int64s:
        """Nodes after each of n conversions of pages [first, end) since the last look, int64 (n,)."""
        assert self.file is not None
        changes = np.empty(len(first), np.int64)
        first = np.ascontiguousarray(first)  # else the kernel would be compiled anew
        state_ranges.follow(self.seen, self.file.size // PAGE_SIZE, first, end, to_shared, changes)
        return self.along(changes)

    def _words(self) -> int:
        assert self.file is not None
        return (self.file.size // PAGE_SIZE + 63) >> 6

    def _look(self, first: Int64s, pages: Int64s) -> None:
        """Count again in the words of 64 pages that conversions of ``pages`` from ``first`` on touch, int64 (n,) each."""
        assert self.file is not None
        words, now = self._words(), self.file.state.shared
        good = (first >= 0) & (pages > 0) & (first < words << 6)
        low = first[good] >> 6
        count = np.minimum((first[good] + pages[good]) >> 6, words - 1) + 1 - low
        if int(count.sum()) >= words:
            touched = np.arange(words)
        elif len(low) == 1:
            touched = np.arange(low[0], low[0] + count[0])
        else:
            touched = np.unique(pages_of(low, low + count)[1])
        self.ranges += self._borders(now, touched) - self._borders(self.seen, touched)
        self.seen[touched] = now[touched]

    def _look_at_few(self, offset: int, length: int) -> bool:
        """:meth:`_look` at one conversion of few pages, without arrays; False: they are more."""
        assert self.file is not None
        first, pages = offset // PAGE_SIZE, length // PAGE_SIZE
        low, end = first >> 6, min(((first + pages) >> 6) + 1, self._words())
        if offset < 0 or pages <= 0 or low >= end or end - low > _FEW_WORDS:
            return False
        state, seen = self.file.state.shared, self.seen
        now, before = _as_one(state, low, end), _as_one(seen, low, end)
        if now != before:
            named = (1 << min((end - low) << 6, self.file.size // PAGE_SIZE - (low << 6))) - 1
            now_last, last = (int(state[low - 1]) >> 63, int(seen[low - 1]) >> 63) if low else (now & 1, before & 1)
            self.ranges += ((now ^ (now << 1 | now_last)) & named).bit_count()
            self.ranges -= ((before ^ (before << 1 | last)) & named).bit_count()
            seen[low:end] = state[low:end]
        return True

    def _borders(self, state: np.ndarray, words: Int64s) -> int:
        """Pages in these words, ascending, whose state is not that of the page before."""
        assert self.file is not None
        if not len(words):
            return 0
        part = state[words]
        before = state[np.maximum(words - 1, 0)] >> _TOP
        if words[0] == 0:
            before[0] = part[0] & _ONE
        differ = part ^ ((part << _ONE) | before)
        over = self.file.size // PAGE_SIZE & 63
        if over and words[-1] == self._words() - 1:
            differ[-1] &= (_ONE << np.uint64(over)) - _ONE
        return int(np.bitwise_count(differ).sum(dtype=np.int64))


@dataclass(eq=False)
class LightMap(Tree):
    """Extents of private pages, of a file that keeps no map of its own because it never converts."""

    inode: Inode | None = None
    entered: int = 0
    """Allocations of the file that are counted."""
    stale: bool = False
    """Whether pages went since the last look."""

    def wanted(self) -> int:
        """Nodes of the map: those that the file counts, or that its extents need."""
        assert self.inode is not None
        if isinstance(self.inode.tracked, LightFile):
            return int(self.inode.tracked.state.top[maple.NODES])
        map_ = self.inode.map
        if self.stale or self.entered != int(map_.progress[ALLOCATIONS]):
            self.ranges = ranges_in(map_, 0, map_.end)
            self.entered, self.stale = int(map_.progress[ALLOCATIONS]), False
        return super().wanted()

    def before(self, first: int, last: int) -> int | None:
        """What :meth:`after` is to be told of folios [first, last) that are about to be placed, or freed."""
        assert self.inode is not None
        if self.stale or self.inode.tracked is not None or self.entered != int(self.inode.map.progress[ALLOCATIONS]):
            return None
        return ranges_in(self.inode.map, first, last)

    def after(self, first: int, last: int, before: int | None) -> None:
        """Folios [first, last) may have been placed, or are freed."""
        assert self.inode is not None
        if before is not None:
            self.ranges += ranges_in(self.inode.map, first, last) - before
            self.entered = int(self.inode.map.progress[ALLOCATIONS])

    def follow(self, more: Int64s, entered: int) -> Int64s:
        """Nodes after each of n calls since the last look, by which there were so many ranges more, int64 (n,).

        ``entered``: the file's allocations after the last of them.
        """
        self.entered = entered
        return self.along(more)


@dataclass(eq=False)
class SharedNodes(Tree):
    """xarray nodes of what a file without struct page shares, which is in the page cache."""

    file: LightFile | None = None
    seen: tuple[int, int] = (0, 0)
    count: int = 0

    def wanted(self) -> int:
        """Nodes of all levels: groups of 64 pages with struct pages are the lowest, and the file's own counts say the others."""
        assert self.file is not None
        counts = self.file.state.counts
        seen = int(counts[light_map.N_VMEMMAP]), int(counts[light_map.N_CONVERTED])
        if seen != self.seen:
            self.seen, self.count = seen, seen[0]
            if seen[0]:
                self.count += sum(int(np.count_nonzero(level)) for level in self.levels()) + 1  # the highest
        return self.count

    def levels(self) -> list[Int64s]:
        """Of each node above the lowest level how many children it has, level by level; of the first how many 2 MiB of 16 MiB are
        shared at all. Levels of one node are left out."""
        assert self.file is not None
        out: list[Int64s] = []
        below, each = self.file.state.shared_2m > 0, 8
        while len(below) > each:
            out.append(np.add.reduceat(below, np.arange(0, len(below), each), dtype=np.int64))
            below, each = out[-1] > 0, 64
        return out

    def followed(self, count: int) -> None:
        """Somebody else has counted: so many there are now."""
        assert self.file is not None
        counts = self.file.state.counts
        self.seen, self.count = (int(counts[light_map.N_VMEMMAP]), int(counts[light_map.N_CONVERTED])), count


def ranges_in(map_: FileMap, first: int, last: int) -> int:
    """Ranges of a light map that begin at one of folios [first, last], ``last`` included: extents and holes.

    Frames come first fit: folios of one zone that follow one another in the file, placed one right after the other, lie together.
    """
    low = max(first - 1, 0)
    runs = map_.cut(low, last + 1)
    if not len(runs):
        return int(first == 0)
    if len(runs) <= _FEW_RUNS:
        return _ranges_in_few(map_, runs.tolist(), first, last)
    start, end = runs[:, 0], runs[:, 0] + runs[:, 1]
    count = 0
    edges = np.concatenate(([low], end))
    holes = edges < np.append(start, last + 1)
    count += int(holes[1:].sum()) + int(holes[0] and first == 0)
    joined = (start[1:] == end[:-1]) & (runs[1:, 2] == runs[:-1, 2] + 1)
    if joined.any():
        at = np.flatnonzero(joined)
        joined[at] = map_.zone_of_runs(runs, at, end[at] - 1) == map_.zone_of_runs(runs, at + 1, start[at + 1])
    begins = int(start[0] >= first)
    count += begins + int((~joined).sum())
    periods = map_.allocations[runs[:, 2], kernels.PERIOD]
    for run in runs[periods > 1].tolist():
        count += _changes(map_, *run)
    return count


def _ranges_in_few(map_: FileMap, runs: list[list[int]], first: int, last: int) -> int:
    """:func:`ranges_in` of few runs, one by one."""
    low = max(first - 1, 0)
    count, stop, before, zone = 0, low, -1, -1
    for number, (begin, pages, row) in enumerate(runs):
        if stop < begin:
            count += number > 0 or first == 0
        start, _, step, offset, period = map_.allocations[row].tolist()
        here = map_.tiles[offset + (begin - start) * step % period]
        if number == 0:
            count += begin >= first
        else:
            count += not (begin == stop and row == before + 1 and here == zone)
        stop, before = begin + pages, row
        zone = map_.tiles[offset + (stop - 1 - start) * step % period]
        if period > 1:
            count += _changes(map_, begin, pages, row)
    return count + (stop <= last)


def _changes(map_: FileMap, first: int, pages: int, row: int) -> int:
    """Folios of a run, but for its first, that lie in another zone than the one before."""
    begin, _, step, offset, period = map_.allocations[row].tolist()
    low = (first - begin if step > 0 else begin - (first + pages - 1)) % period
    tile = map_.tiles[offset : offset + period]
    changes = np.append(0, np.cumsum(tile != np.roll(tile, -1)))
    whole, rest = divmod(pages - 1, period)
    total = whole * int(changes[-1])
    stop = low + rest
    if stop > period:
        return total + int(changes[-1] - changes[low] + changes[stop - period])
    return total + int(changes[stop] - changes[low])

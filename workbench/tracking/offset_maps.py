"""Offset -> pfn maps as objects: the kernels' four structures behind one interface, with room made as they grow.

All four answer the same questions; they differ in memory, in the nodes a look-up touches and in what a split costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from workbench.errors import WorkbenchError
from workbench.kernels.maps import flat_table, maple, pagemap, range_table, xarray_map

STRUCTURES = pagemap.NAMES
"""Names of the structures: xarray, maple, ranges, flat."""


class Extent(NamedTuple):
    """A contiguous piece of a map: pages ``start .. start + pages`` of the file are ``pfn .. pfn + pages``."""

    start: int
    pages: int
    pfn: int


class OffsetMap(ABC):
    """An offset -> pfn map of a file of ``pages`` 4 KiB pages."""

    name: str
    node_bytes: int
    """Bytes of one node (or record, or table entry)."""

    def __init__(self, pages: int, max_order: int = 18) -> None:
        if pages <= 0:
            raise WorkbenchError(f"pages: {pages} is not a file size; at least one page")
        self.pages = pages
        self.max_order = max_order
        self._found = np.zeros(xarray_map.FOUND_FIELDS, np.int64)

    def insert(self, start: int, pages: int, pfn: int) -> None:
        """Map a range, replacing what was there."""
        self._check(start, pages)
        if pfn < 0:
            raise WorkbenchError(f"pfn: {pfn} is negative")
        self._run(np.array([[start, pages, pfn]], np.int64))

    def erase(self, start: int, pages: int) -> None:
        """Unmap a range; entries cut at its borders keep their outer part."""
        self._check(start, pages)
        self._run(np.array([[start, pages, -1]], np.int64))

    def run(self, stream: np.ndarray) -> None:
        """Run many insertions and erasures: int64 (n, 3) of start, pages, pfn (-1 erases)."""
        stream = np.ascontiguousarray(stream, np.int64)
        if stream.ndim != 2 or stream.shape[1] != 3:
            raise WorkbenchError(f"stream: shape {stream.shape} is not (operations, 3)")
        if stream.size and (
            stream[:, 0].min() < 0 or stream[:, 1].min() <= 0 or (stream[:, 0] + stream[:, 1]).max() > self.pages
        ):
            raise WorkbenchError(f"stream: an operation reaches outside the file of {self.pages} pages")
        self._run(stream)

    def extents(self) -> Iterator[Extent]:
        """Maximal contiguous extents in ascending order, whatever the structure's own entries are."""
        pending: Extent | None = None
        for entry in self.entries():
            if (
                pending is not None
                and entry.start == pending.start + pending.pages
                and entry.pfn == pending.pfn + pending.pages
            ):
                pending = Extent(pending.start, pending.pages + entry.pages, pending.pfn)
                continue
            if pending is not None:
                yield pending
            pending = entry
        if pending is not None:
            yield pending

    def lookup(self, indices: np.ndarray) -> np.ndarray:
        """Pfns (int64) of page indices, -1 where nothing is mapped."""
        indices = np.ascontiguousarray(indices, np.int64)
        out = np.empty(indices.shape, np.int64)
        self._lookup(indices, out)
        return out

    def _check(self, start: int, pages: int) -> None:
        if start < 0 or pages <= 0 or start + pages > self.pages:
            raise WorkbenchError(f"range: {start}+{pages} is not inside the file of {self.pages} pages")

    def entries(self) -> Iterator[Extent]:
        """The structure's own entries in ascending order."""
        entry = self.entry_from(0)
        while entry is not None:
            yield entry
            entry = self.entry_from(entry.start + entry.pages)

    def split(self, index: int, order: int) -> int:
        """Cut the entry that holds ``index`` into entries of ``2**order`` pages; returns how many it became."""
        self._check(index, 1)
        made = self._split(index, order)
        if made == 0:
            raise WorkbenchError(f"split: no entry holds page {index}")
        return made

    def merge(self, start: int, pages: int) -> int:
        """Join a contiguously mapped range into one entry; returns how many entries it was."""
        pfn, joined = self._joined(start, pages)
        self.insert(start, pages, pfn)
        return joined

    @property
    @abstractmethod
    def nodes(self) -> int:
        """Nodes (or records, or table entries) in use."""

    @property
    def bytes(self) -> int:
        """Bytes in use, counted node by node."""
        return self.nodes * self.node_bytes

    @abstractmethod
    def depth(self, index: int) -> int:
        """Nodes (or records) that a look-up of ``index`` touches."""

    @abstractmethod
    def entry_from(self, index: int) -> Extent | None:
        """The entry that holds ``index``, or the first one after it."""

    @abstractmethod
    def _run(self, stream: np.ndarray) -> None: ...

    @abstractmethod
    def _lookup(self, indices: np.ndarray, out: np.ndarray) -> None: ...

    @abstractmethod
    def _split(self, index: int, order: int) -> int:
        """Number of entries that the one holding ``index`` became, 0 if there is none."""

    def _extent(self, there: bool) -> Extent | None:
        """What a kernel's ``find`` left in ``found``."""
        start, pages, pfn = (int(value) for value in self._found[:3])
        return Extent(start, pages, pfn) if there else None

    def _joined(self, start: int, pages: int) -> tuple[int, int]:
        """Pfn of a range that must be mapped contiguously, and the number of entries it consists of."""
        self._check(start, pages)
        position, pfn, entries = start, -1, 0
        while position < start + pages:
            entry = self.entry_from(position)
            at = -1 if entry is None else entry.pfn + position - entry.start
            if position == start:
                pfn = at
            if entry is None or entry.start > position or at != pfn + position - start:
                raise WorkbenchError(f"merge: {start}+{pages} is not mapped contiguously")
            position = entry.start + entry.pages
            entries += 1
        return pfn, entries


class XarrayMap(OffsetMap):
    """The page cache's structure: aligned entries of at most ``max_order``."""

    name = "xarray"
    node_bytes = xarray_map.NODE_BYTES

    def __init__(self, pages: int, max_order: int = 18) -> None:
        super().__init__(pages, max_order)
        self._top = np.zeros(xarray_map.TOP_FIELDS, np.int64)
        self._slots = np.empty((0, xarray_map.SLOTS), np.int64)
        self._header = np.empty((0, 4), np.int64)
        xarray_map.clear(self._top)

    def _make_room(self, nodes: int) -> None:
        have = self._header.shape[0]
        need = int(self._top[xarray_map.NODES]) + nodes
        if need > have:
            new = max(need, 2 * have, 1024)
            self._slots = np.concatenate([self._slots, np.empty((new - have, xarray_map.SLOTS), np.int64)])
            self._header = np.concatenate([self._header, np.empty((new - have, 4), np.int64)])

    def _run(self, stream: np.ndarray) -> None:
        at = 0
        while True:
            at = int(pagemap.run_xarray(stream, at, self.max_order, self._slots, self._header, self._top, self._found))
            if at == stream.shape[0]:
                return
            self._make_room(int(xarray_map.insert_nodes(int(stream[at, 1]), self.max_order)))

    def _lookup(self, indices: np.ndarray, out: np.ndarray) -> None:
        xarray_map.load_many(self._slots, self._header, self._top, indices, out)

    def entry_from(self, index: int) -> Extent | None:
        return self._extent(xarray_map.find(self._slots, self._header, self._top, index, self._found))

    def _split(self, index: int, order: int) -> int:
        self._make_room(int(xarray_map.insert_nodes(1 << self.max_order, order)))
        made = int(xarray_map.split(self._slots, self._header, self._top, index, order, self._found))
        if made == xarray_map.REFUSED:
            raise WorkbenchError(
                f"split: xas_split cannot go to order {order} at once from this entry; split in steps or reinsert"
            )
        if made < 0:
            raise WorkbenchError(f"split: no entry of at least order {order} holds page {index}")
        return made

    def merge(self, start: int, pages: int) -> int:
        if pages & (pages - 1) or start % pages:
            raise WorkbenchError(f"merge: {start}+{pages} is not an aligned power of two, as an XArray entry is")
        self._check(start, pages)
        self._make_room(int(xarray_map.insert_nodes(0, 0)))
        order = pages.bit_length() - 1
        joined = int(xarray_map.merge(self._slots, self._header, self._top, start, order, self._found))
        if joined < 0:
            raise WorkbenchError(f"merge: {start}+{pages} is not mapped contiguously")
        return joined

    @property
    def nodes(self) -> int:
        return int(self._top[xarray_map.NODES])

    def depth(self, index: int) -> int:
        return int(xarray_map.depth(self._slots, self._header, self._top, index))


class MapleMap(OffsetMap):
    """A maple tree of ranges."""

    name = "maple"
    node_bytes = maple.NODE_BYTES

    def __init__(self, pages: int, max_order: int = 18) -> None:
        super().__init__(pages, max_order)
        self._top = np.zeros(maple.TOP_FIELDS, np.int64)
        self._path = np.zeros((2, 32), np.int64)
        self._nodes = np.empty((0, maple.NODE_WORDS), np.int64)
        maple.clear(self._top)

    def _make_room(self, nodes: int) -> None:
        have = self._nodes.shape[0]
        need = int(self._top[maple.NODES]) + nodes
        if need > have:
            new = max(need, 2 * have, 256)
            self._nodes = np.concatenate([self._nodes, np.empty((new - have, maple.NODE_WORDS), np.int64)])

    def _run(self, stream: np.ndarray) -> None:
        at = 0
        while True:
            at = int(pagemap.run_maple(stream, at, self._nodes, self._top, self._found, self._path))
            if at == stream.shape[0]:
                return
            self._make_room(int(maple.store_nodes(self._top)))

    def _lookup(self, indices: np.ndarray, out: np.ndarray) -> None:
        maple.load_many(self._nodes, self._top, indices, out)

    def entry_from(self, index: int) -> Extent | None:
        there = maple.find(self._nodes, self._top, index, self._found, self._path)
        if there:
            self._found[1] += 1 - self._found[0]  # the kernel names the last page
        return self._extent(there)

    def _split(self, index: int, order: int) -> int:
        self._make_room(int(maple.store_nodes(self._top)) + (self.pages >> order) // 4 + 64)
        return int(maple.split(self._nodes, self._top, index, order, self._found, self._path))

    @property
    def nodes(self) -> int:
        return int(self._top[maple.NODES])

    def depth(self, index: int) -> int:
        return int(maple.depth(self._top))


class RangeMap(OffsetMap):
    """A sorted table of ranges."""

    name = "ranges"
    node_bytes = range_table.EXTENT_BYTES

    def __init__(self, pages: int, max_order: int = 18) -> None:
        super().__init__(pages, max_order)
        self._top = np.zeros(range_table.TOP_FIELDS, np.int64)
        self._columns = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)

    def _make_room(self, records: int) -> None:
        have = len(self._columns[0])
        need = int(self._top[range_table.COUNT]) + records
        if need > have:
            new = max(need, 2 * have, 256)
            first, pages, pfn = (np.resize(column, new) for column in self._columns)
            self._columns = first, pages, pfn

    def _run(self, stream: np.ndarray) -> None:
        at = 0
        while True:
            at = int(pagemap.run_ranges(stream, at, *self._columns, self._top))
            if at == stream.shape[0]:
                return
            self._make_room(range_table.STORE_ROOM)

    def _lookup(self, indices: np.ndarray, out: np.ndarray) -> None:
        range_table.load_many(*self._columns, self._top, indices, out)

    def entry_from(self, index: int) -> Extent | None:
        return self._extent(range_table.find(*self._columns, self._top, index, self._found))

    def _split(self, index: int, order: int) -> int:
        made = int(range_table.split(*self._columns, self._top, index, order))
        if made < 0:
            self._make_room(-made)
            made = int(range_table.split(*self._columns, self._top, index, order))
        return made

    @property
    def nodes(self) -> int:
        return int(self._top[range_table.COUNT])

    def depth(self, index: int) -> int:
        return int(range_table.depth(self._top))


class FlatMap(OffsetMap):
    """A flat table with one entry per block of ``2**order`` pages."""

    name = "flat"
    node_bytes = flat_table.ENTRY_BYTES

    def __init__(self, pages: int, max_order: int = 18, order: int = 0) -> None:
        super().__init__(pages, max_order)
        if pages & ((1 << order) - 1):
            raise WorkbenchError(f"pages: {pages} is not a multiple of the block of {1 << order} pages")
        self.order = order
        self._table = np.full(pages >> order, -1, np.int64)

    def _run(self, stream: np.ndarray) -> None:
        if np.any(stream[:, :2] & ((1 << self.order) - 1)):
            raise WorkbenchError(f"range: not made of blocks of {1 << self.order} pages, which this flat table holds")
        pagemap.run_flat(stream, self.order, self._table)

    def _lookup(self, indices: np.ndarray, out: np.ndarray) -> None:
        flat_table.load_many(self._table, self.order, indices, out)

    def entry_from(self, index: int) -> Extent | None:
        return self._extent(flat_table.find(self._table, self.order, index, self._found))

    def _split(self, index: int, order: int) -> int:
        return int(self.lookup(np.array([index]))[0] >= 0)  # a flat table has no entries to cut

    def merge(self, start: int, pages: int) -> int:
        return self._joined(start, pages)[1]

    @property
    def nodes(self) -> int:
        return int(self._table.shape[0])

    def depth(self, index: int) -> int:
        return 1


def offset_map(structure: str, pages: int, max_order: int = 18) -> OffsetMap:
    """An empty map of the given structure for a file of ``pages`` pages."""
    classes: dict[str, type[OffsetMap]] = {
        "xarray": XarrayMap,
        "maple": MapleMap,
        "ranges": RangeMap,
        "flat": FlatMap,
    }
    if structure not in classes:
        raise WorkbenchError(f"structure: {structure!r} is not one of {', '.join(classes)}")
    return classes[structure](pages, max_order)

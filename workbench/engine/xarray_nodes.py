"""xarray nodes of the page cache and of a VM's memory attributes: which are there, and which pages need them.

``lib/xarray.c: xas_expand, xas_alloc, xas_delete_node``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from workbench.engine.attributes import Attributes
from workbench.engine.filemap import FileMap
from workbench.engine.kernel_pages import ATTRIBUTES, PAGE_CACHE, length
from workbench.engine.objects import Inode, Thread
from workbench.engine.page_tables import PageTables
from workbench.intervals import Int64s, no_intervals

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState

XA_CHUNK_SHIFT = 6


class XarrayNodes(PageTables):
    """Nodes of each file's pages, and of the attributes of VMs."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system)
        self.caches: dict[Inode, list[FileMap]] = {}
        self.attribute_nodes: dict[Inode, list[FileMap]] = {}

    def _is_in_no_cache(self, inode: Inode) -> bool:
        return inode.anonymous or (self.light and (inode.private or inode.tracked is not None))

    def _nodes_known(self, inode: Inode, start: int, end: int) -> bool:
        """Whether pages [start, end) were found to need no more nodes of the page cache; False says nothing."""
        if self._is_in_no_cache(inode):
            return True
        maps, shift = self.caches.get(inode), lowest_shift(inode.order)
        first, last = start >> inode.order, -(-end >> inode.order)
        if not maps or (last - 1) >> (shift + XA_CHUNK_SHIFT * (len(maps) - 1)):
            return False
        return maps[0].is_known(first >> shift, ((last - 1) >> shift) + 1)  # and these hang on others

    def _missing_nodes(self, inode: Inode, start: int, end: int) -> list[Int64s]:
        """Nodes that pages [start, end) need in the tree of the page cache, level by level, the lowest first.

        Private memory of pfn ranges has none: it is not in the page cache. Nor is anonymous memory. What files that convert
        have there follows from their own state (:meth:`settle`).
        """
        if self._is_in_no_cache(inode):
            return []
        first, last = start >> inode.order, -(-end >> inode.order)
        maps = self.caches.setdefault(inode, [])
        return _missing_nodes(maps, lowest_shift(inode.order), first, last, lambda: inode.map.any(0, 1))

    def enter_nodes(self, task: Thread, inode: Inode, start: int, end: int) -> bool:
        """Pages [start, end) of the file are there: the nodes that hold them too. False: no memory for a slab."""
        if end <= start or self._nodes_known(inode, start, end):
            return True
        missing = self._missing_nodes(inode, start, end)
        return self._enter_nodes(task, PAGE_CACHE, self.caches.get(inode, []), missing)

    def _enter_nodes(self, task: Thread, kind: int, maps: list[FileMap], missing: list[Int64s]) -> bool:
        nid = task.nid
        objects = length(missing)
        if not objects:
            return True
        for map_, intervals in zip(maps, missing, strict=True):
            for low, high in intervals.tolist():
                map_.add_run(low, high, nid)
        self.xarray.parts[kind - PAGE_CACHE, nid] += objects
        return self._take_objects(task, self.xarray, objects)

    def page_cache(self, inode: Inode) -> list[list[FileMap]]:
        """The tree of the page cache, level by level; none for what is in no page cache."""
        return [] if self._is_in_no_cache(inode) else [self.caches.setdefault(inode, [])]

    def has_tree(self, inode: Inode) -> bool:
        """Whether there is a tree of the page cache that needs nothing but its missing nodes while it does not grow, or none."""
        maps = self.caches.get(inode, [])
        return self._is_in_no_cache(inode) or (
            bool(maps) and (maps[0].empty or not any(map_.empty for map_ in maps[1:]))
        )

    def foreseen(self, inode: Inode, ends: Int64s) -> int:
        """How many faults, which reach up to ``ends`` (n,), come before one for which the tree of the page cache grows."""
        if self._is_in_no_cache(inode):
            return len(ends)
        levels = len(self.caches[inode])
        beyond = np.flatnonzero((ends - 1) >> (lowest_shift(inode.order) + XA_CHUNK_SHIFT * (levels - 1)))
        return int(beyond[0]) if len(beyond) else len(ends)

    def erased(self, inode: Inode, first: int, last: int) -> None:
        """Folios [first, last) left the file: nodes that hold none any more are freed."""
        maps = self.caches.get(inode)
        if maps:
            self._free_nodes(PAGE_CACHE, maps, lowest_shift(inode.order), first, last, inode.map.any)

    def _free_nodes(
        self,
        kind: int,
        maps: list[FileMap],
        lowest: int,
        first: int,
        last: int,
        present: Callable[[int, int], bool] | None,
    ) -> None:
        freed = None
        for level, map_ in enumerate(maps):
            shift = lowest + XA_CHUNK_SHIFT * level
            low, high = first >> shift, ((last - 1) >> shift) + 1
            if present is not None and low < high:
                low += present(low << shift, (low + 1) << shift)
                high -= low < high and present((high - 1) << shift, high << shift)
                if low >= high:  # each holds something yet, and so does each node above
                    break
            if low < high:
                went = map_.erase(low, high, self.system.nodes)
                freed = went if freed is None else freed + went
        if freed is None or not any(freed.tolist()):
            return
        self.xarray.parts[kind - PAGE_CACHE] -= freed
        self._free_objects(self.xarray, freed)
        self._count_slabs(self.xarray)

    def _settle_attributes(
        self, task: Thread, inode: Inode, states: Attributes, start: int, end: int, shared: bool
    ) -> bool:
        """An entry of the xarray for each of private gfns [start, end), none for shared ones."""
        maps = self.attribute_nodes.setdefault(inode, [])
        if not shared:
            missing = _missing_nodes(maps, XA_CHUNK_SHIFT, start, end, lambda: not states.shared.holds(0, 1))
            return self._enter_nodes(task, ATTRIBUTES, maps, missing)

        def any_private(first: int, last: int) -> bool:
            return not states.shared.holds(first, min(last, inode.pages))

        self._free_nodes(ATTRIBUTES, maps, XA_CHUNK_SHIFT, start, end, any_private)
        return True


def lowest_shift(order: int) -> int:
    """log2 of the folios below the lowest node of a page cache of such folios."""
    return XA_CHUNK_SHIFT * (order // XA_CHUNK_SHIFT + 1) - order


def _missing_nodes(
    maps: list[FileMap], lowest: int, first: int, last: int, has_first: Callable[[], bool]
) -> list[Int64s]:
    """Nodes that entries [first, last) need and that are not there, level by level; ``maps`` grows as the tree does.

    lib/xarray.c: xas_expand: the nodes of a tree with more levels stand above what is there, if anything is. ``has_first``:
    whether the entry of index 0 is.
    """
    if last <= first:
        return [no_intervals() for _ in maps]
    levels, stands = len(maps), bool(maps) and not maps[0].empty
    while not maps or (last - 1) >> (lowest + XA_CHUNK_SHIFT * (len(maps) - 1)):
        maps.append(FileMap())
    if len(maps) == 1 and last == 1 and lowest == XA_CHUNK_SHIFT:  # a single entry needs no node
        return [no_intervals()]
    out = []
    alone = levels <= 1 < len(maps) and not stands and lowest == XA_CHUNK_SHIFT and has_first()
    for level, map_ in enumerate(maps):
        shift = lowest + XA_CHUNK_SHIFT * level
        missing = map_.absent(first >> shift, ((last - 1) >> shift) + 1)
        above = map_.empty and (alone or (stands and level > 0))
        if above and (not len(missing) or missing[0, 0] > 0):
            missing = np.concatenate((np.array([[0, 1]], np.int64), missing))
        out.append(missing)
        if not len(missing) and len(maps) == levels:  # nodes that are there hang on others
            out += [missing] * (len(maps) - level - 1)
            break
    return out

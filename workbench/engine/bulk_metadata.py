"""Page-cache and attribute nodes of two files while a stream of conversions runs in the kernel (:mod:`.bulk_conversions`).

A conversion allocates no page table: what changes beside the pages are xarray nodes, of the guest_memfd, of the backend for
what is shared, and of the VM's attributes. While the stream lasts the node of each 64 pages, and of the levels above, is an
entry of an array: on which NUMA node its object lies, -1 if there is none. After each event only what its conversions touched
is looked at. Slabs follow the net change of an event, where calls one by one may keep up to five empty slabs more or fewer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.engine.filemap import FileMap
from workbench.engine.kernel_pages import ATTRIBUTES, PAGE_CACHE
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Inode, Thread
from workbench.engine.xarray_nodes import XA_CHUNK_SHIFT
from workbench.intervals import Int64s, equal_intervals, pages_of
from workbench.kernels import two_backends as kernel
from workbench.kernels.folios import run as folio
from workbench.units import PAGE_SIZE

Present = Callable[[int, Int64s], "np.ndarray"]
"""Takes a map of :mod:`workbench.kernels.two_backends` and numbers of 64 pages; whether anything is in each."""
TREES = ((kernel.PRIVATE, PAGE_CACHE), (kernel.SHARED, PAGE_CACHE), (kernel.ATTRIBUTES, ATTRIBUTES))


class _Tree:
    """One xarray: for each level the NUMA node of each of its nodes, int16 (n,), -1 where there is none."""

    def __init__(self, maps: list[FileMap], pages: int) -> None:
        self.maps, self.pages = maps, pages
        self.levels: list[np.ndarray] = []
        for level, map_ in enumerate(maps):
            self.levels.append(map_.zone_of(np.arange(self._nodes(level), dtype=np.int64)).astype(np.int16))

    def _nodes(self, level: int) -> int:
        """Room for the nodes of a level, whole nodes of the next one up."""
        return -(-self.pages >> (XA_CHUNK_SHIFT * (level + 2))) << XA_CHUNK_SHIFT

    def grow(self, highest: int) -> None:
        """As high as the last page that was ever stored asks."""
        while not self.levels or (highest - 1) >> (XA_CHUNK_SHIFT * len(self.levels)):
            self.levels.append(np.full(self._nodes(len(self.levels)), -1, np.int16))

    def update(self, nodes: Int64s, there: np.ndarray, nid: int, changes: Int64s) -> None:
        """Nodes of the lowest level are there or not from now on; adds what comes and goes to ``changes`` int64 (NUMA nodes,)."""
        for level, owner in enumerate(self.levels):
            before = owner[nodes]
            gone, came = (before >= 0) & ~there, (before < 0) & there
            np.subtract.at(changes, before[gone], 1)
            changes[nid] += int(came.sum())
            owner[nodes[gone]], owner[nodes[came]] = -1, nid
            changed = nodes[gone | came]
            if level + 1 == len(self.levels) or not len(changed):
                return
            nodes = _once(changed >> XA_CHUNK_SHIFT)
            there = owner.reshape(-1, 1 << XA_CHUNK_SHIFT)[nodes].max(axis=1) >= 0

    def settle(self) -> None:
        """Write the arrays back to the maps."""
        for level, owner in enumerate(self.levels):
            if level == len(self.maps):
                self.maps.append(FileMap())
            map_, rows = FileMap(), np.zeros(int(owner.max(initial=-1)) + 1, np.int64)
            for nid in np.unique(owner[owner >= 0]).tolist():
                rows[nid] = map_.row_of(len(owner), nid)
            runs = equal_intervals(owner)
            runs = runs[owner[runs[:, 0]] >= 0]
            map_.replace(np.column_stack((runs[:, 0], runs[:, 1] - runs[:, 0], rows[owner[runs[:, 0]]])))
            self.maps[level] = map_


def _once(ascending: Int64s) -> Int64s:
    """Each of ascending numbers once."""
    return ascending[np.append(True, ascending[1:] != ascending[:-1])]


class BulkMetadata:
    """What one stream changes beside the pages of a guest's two files."""

    def __init__(self, metadata: Metadata, inode: Inode, backend: Inode) -> None:
        self.metadata, self.inode = metadata, inode
        trees = (
            metadata.caches.setdefault(inode, []),
            metadata.caches.setdefault(backend, []),
            metadata.attribute_nodes.setdefault(inode, []),
        )
        self.trees = [_Tree(maps, inode.pages) for maps in trees]

    def count(self, task: Thread, stream: Int64s, present: Present) -> None:
        """After the conversions of a part of the stream, int64 (n, 6)."""
        pages = self.inode.pages
        start = np.clip(stream[:, folio.OFFSET] // PAGE_SIZE, 0, pages)
        end = np.clip((stream[:, folio.OFFSET] + stream[:, folio.LENGTH]) // PAGE_SIZE, start, pages)
        start, end = start[start < end], end[start < end]
        if not len(start):
            return
        nodes = _once(np.sort(pages_of(start >> XA_CHUNK_SHIFT, ((end - 1) >> XA_CHUNK_SHIFT) + 1)[1]))
        changes = np.zeros((2, self.metadata.system.nodes), np.int64)
        for tree, (which, kind) in zip(self.trees, TREES, strict=True):
            if len(tree.levels) <= 1 and int(end.max()) == 1:
                continue  # a single entry, of index 0, needs no node
            there = present(which, nodes)
            if there.any():
                tree.grow(min(pages, (int(nodes[there][-1]) + 1) << XA_CHUNK_SHIFT))
            tree.update(nodes, there, task.nid, changes[kind - PAGE_CACHE])
        self.metadata.change_nodes(task, changes)

    def settle(self) -> None:
        """Give everything back to :class:`workbench.engine.metadata.Metadata`."""
        for tree in self.trees:
            tree.settle()
        if self.inode.attributes is not None:
            self.inode.attributes.was_followed()

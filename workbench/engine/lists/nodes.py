"""xarray nodes while a list of operations runs in the kernel: those of the trees that its rows touch, and slabs after each.

Which came and went the kernels say (:mod:`workbench.kernels.faults`, :mod:`workbench.kernels.backend_nodes`), as events.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.engine.filemap import FileMap
from workbench.engine.kernel_pages import ATTRIBUTES, PAGE_CACHE
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Thread
from workbench.engine.xarray_nodes import XA_CHUNK_SHIFT
from workbench.intervals import Int64s, pages_of, stretches


class ListNodes:
    """Nodes of ``trees``, level by level each, that rows on pages [first, end), int64 (n,) each, touch."""

    def __init__(self, metadata: Metadata, trees: Sequence[list[FileMap]], first: Int64s, end: Int64s) -> None:
        self.metadata, self.trees = metadata, trees
        levels = max((1, *map(len, trees)))  # none would say that nothing is followed
        self.touched: list[Int64s] = []
        """int64 (m,) of each level, numbers of the nodes."""
        self.begins = np.empty((len(first), levels), np.int64)
        """Where those of each row begin, by level."""
        before = 0
        for level in range(levels):
            shift = XA_CHUNK_SHIFT * (level + 1)
            touched = np.unique(pages_of(first >> shift, ((end - 1) >> shift) + 1)[1])
            self.begins[:, level] = before + np.searchsorted(touched, first >> shift)
            self.touched.append(touched)
            before += len(touched)
        self.before = np.full((len(trees), before), -1, np.int64)
        """NUMA node of each, -1: there is none."""
        for tree, maps in enumerate(trees):
            for level, map_ in enumerate(maps):
                self._part(self.before[tree], level)[:] = map_.zone_of(self.touched[level])

    def _part(self, nodes: Int64s, level: int) -> Int64s:
        begin = sum(map(len, self.touched[:level]))
        return nodes[begin : begin + len(self.touched[level])]

    def held_after(self, events: Int64s, done: int, tasks: Sequence[Thread], free: Int64s, rotations: Int64s) -> Int64s:
        """What is held after each of the first ``done`` rows, int64 (done, kinds, nodes).

        ``events`` int64 (m, 4): row, whether it is of attributes, NUMA node, and how many nodes came (went: negative); ``free``
        int64 (m, zones) before each. ``tasks`` of the rows, ``rotations`` int64 (done, 2) after each.
        """
        metadata = self.metadata
        held = np.empty((done, *metadata.held.shape), np.int64)
        held[:] = metadata.held
        parts = self._parts_after(events, done)
        slabs, filled = metadata.xarray, 0
        room: dict[int, int] = {}
        for number, (row, _, nid, came) in enumerate(events.tolist()):
            room[nid] = (room[nid] if nid in room else slabs.room(nid)) - came
            if 0 <= room[nid] < slabs.most_room:
                slabs.live[nid] += came
                continue
            self._fill(held[filled:row], parts[filled:row])
            filled = row
            metadata.change_objects(tasks[row], nid, came, free[number], rotations[row])
            room[nid] = slabs.room(nid)
        self._fill(held[filled:], parts[filled:])
        if done:
            slabs.parts[:] = parts[-1]
            metadata.held[:] = held[-1]
        return held

    def _parts_after(self, events: Int64s, done: int) -> Int64s:
        """Objects of page cache and attributes after each row, int64 (done, 2, nodes)."""
        parts = np.zeros((done, *self.metadata.xarray.parts.shape), np.int64)
        if done:
            parts[0] = self.metadata.xarray.parts
        row, part, nid, came = events.T
        np.add.at(parts, (row, part, nid), came)
        return np.cumsum(parts, axis=0, out=parts)

    def _fill(self, held: Int64s, parts: Int64s) -> None:
        """Pages of slabs after rows between which no slab came or went."""
        if len(held):
            held[:, [PAGE_CACHE, ATTRIBUTES]] = self.metadata.slab_pages(parts)

    def enter(self, owner: Int64s) -> None:
        """Write what came and went back to the trees; ``owner`` int64 (trees, nodes) is :attr:`before` as it is now."""
        for tree, maps in enumerate(self.trees):
            for level, map_ in enumerate(maps):
                old, new = self._part(self.before[tree], level), self._part(owner[tree], level)
                number = self.touched[level]
                gone = number[(old >= 0) & (new != old)]
                for low, high in stretches(gone).tolist():
                    map_.erase(low, high, len(self.metadata.xarray.live))
                came = (new >= 0) & (new != old)
                if came.any():
                    map_.add_singles(number[came], new[came])

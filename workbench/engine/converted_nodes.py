"""xarray nodes and tables while conversions out of place, attributes and guest faults run one by one in the kernel.

Trees are those of a guest's two files and of the VM's attributes (:mod:`workbench.engine.metadata`); only nodes that the list
touches are looked up. The kernel (:mod:`workbench.kernels.backend_nodes`) says which came and went; here they fill slabs, call
by call. Tables of the second stage are made by the first fault that needs them, and stay.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.metadata import ATTRIBUTES, PAGE_CACHE, XA_CHUNK_SHIFT, Metadata
from workbench.engine.objects import Inode, Thread
from workbench.intervals import Int64s, equal_intervals, pages_of
from workbench.kernels import backend_nodes as kernel
from workbench.kernels.folios import run as folio
from workbench.units import PAGE_SIZE


class ConvertedNodes:
    """Nodes that calls on pages [first, end), int64 (n,) each, touch. ``nid`` int64 (tasks,): NUMA node of each task."""

    def __init__(
        self, metadata: Metadata, inode: Inode, backend: Inode | None, first: Int64s, end: Int64s, nid: Int64s
    ) -> None:
        self.metadata, self.inode = metadata, inode
        self.trees = (
            metadata.caches.setdefault(inode, []),
            [] if backend is None else metadata.caches.setdefault(backend, []),
            metadata.attribute_nodes.setdefault(inode, []),
        )
        levels = max(1, *map(len, self.trees))  # none would say that nothing is followed
        self.touched: list[Int64s] = []
        """int64 (m,) of each level, numbers of the nodes."""
        begins = np.empty((len(first), levels), np.int64)
        before = 0
        for level in range(levels):
            shift = XA_CHUNK_SHIFT * (level + 1)
            touched = np.unique(pages_of(first >> shift, ((end - 1) >> shift) + 1)[1])
            begins[:, level] = before + np.searchsorted(touched, first >> shift)
            self.touched.append(touched)
            before += len(touched)
        self.before = np.full((kernel.TREES, before), -1, np.int64)
        for tree, maps in enumerate(self.trees):
            for level, map_ in enumerate(maps):
                self._part(self.before[tree], level)[:] = map_.zone_of(self.touched[level])
        self.nodes = kernel.Nodes(
            self.before.copy(), begins, np.array([len(maps) for maps in self.trees], np.int64), nid,
            np.empty((4 * len(first) + 2 * metadata.system.nodes + 2, 4), np.int64),
        )  # fmt: skip

    def _part(self, nodes: Int64s, level: int) -> Int64s:
        begin = sum(map(len, self.touched[:level]))
        return nodes[begin : begin + len(self.touched[level])]

    def held_after(self, nodes: kernel.Nodes, given: kernel.Calls, done: int, tasks: list[Thread]) -> Int64s:
        """What is held after each of the first ``done`` calls, int64 (done, kinds, nodes); enters what came and went.

        ``tasks`` of the scenario, by the number that the stream has of each.
        """
        metadata = self.metadata
        events = nodes.events[: int(given.at[kernel.EVENTS])]
        held = np.empty((done, *metadata.held.shape), np.int64)
        held[:] = metadata.held
        parts = self._parts_after(events, done)
        slabs, filled = metadata.xarray, 0
        room: dict[int, int] = {}
        for row, when, nid, came in events.tolist():
            room[nid] = (room[nid] if nid in room else slabs.room(nid)) - came
            if 0 <= room[nid] < slabs.most_room:
                slabs.live[nid] += came
                continue
            self._fill(held[filled:row], parts[filled:row])
            filled = row
            task, free = tasks[int(given.stream[row, folio.CPU])], given.free[row]
            if when == kernel.ENTERED:
                free = free + given.placed[row]  # before the pages that the nodes are of were placed
            metadata.change_objects(task, nid, came, free, given.rotations[row])
            room[nid] = slabs.room(nid)
        self._fill(held[filled:], parts[filled:])
        if done:
            slabs.parts[:] = parts[-1]
            metadata.held[:] = held[-1]
            self._add_tables(held, given, done, tasks)
        self._enter(nodes.owner)
        return held

    def _add_tables(self, held: Int64s, given: kernel.Calls, done: int, tasks: list[Thread]) -> None:
        """Tables of the second stage that guest faults need, in ``held`` too."""
        some = np.flatnonzero(given.stream[:done, folio.OP] == folio.GUEST_FAULT)
        if not len(some):
            return
        metadata, stream = self.metadata, given.stream[some]
        first = stream[:, folio.OFFSET] // PAGE_SIZE
        end = first + stream[:, folio.LENGTH] // PAGE_SIZE
        rows = np.column_stack((first, end, np.ones_like(first), stream[:, folio.CPU]))
        whose = [tasks[number] for number in stream[:, folio.CPU].tolist()]
        before, was = given.free[some] + given.placed[some], metadata.held.copy()
        walk = metadata.of_guest(self.inode)
        after = metadata.count_faults(None, walk, rows, whose, before, given.rotations[some])
        held[some[0] :] += (after - was)[np.searchsorted(some, np.arange(some[0], done), side="right") - 1]

    def _parts_after(self, events: Int64s, done: int) -> Int64s:
        """Objects of page cache and attributes after each call, int64 (done, 2, nodes)."""
        parts = np.zeros((done, *self.metadata.xarray.parts.shape), np.int64)
        if done:
            parts[0] = self.metadata.xarray.parts
        row, when, nid, came = events.T
        np.add.at(parts, (row, (when == kernel.SETTLED).astype(np.int64), nid), came)
        return np.cumsum(parts, axis=0, out=parts)

    def _fill(self, held: Int64s, parts: Int64s) -> None:
        """Pages of slabs after calls between which no slab came or went."""
        if len(held):
            held[:, [PAGE_CACHE, ATTRIBUTES]] = self.metadata.slab_pages(parts)

    def _enter(self, owner: Int64s) -> None:
        """Write what came and went back to the trees."""
        for tree, maps in enumerate(self.trees):
            for level, map_ in enumerate(maps):
                old, new = self._part(self.before[tree], level), self._part(owner[tree], level)
                number = self.touched[level]
                gone = number[(old >= 0) & (new != old)]
                for low, high in _stretches(gone):
                    map_.erase(low, high, len(self.metadata.xarray.live))
                came = (new >= 0) & (new != old)
                if came.any():
                    map_.add_singles(number[came], new[came])


def _stretches(ascending: Int64s) -> list[list[int]]:
    """Numbers one after another as intervals."""
    if not len(ascending):
        return []
    parts = equal_intervals(ascending - np.arange(len(ascending)))
    out: list[list[int]] = np.column_stack((ascending[parts[:, 0]], ascending[parts[:, 1] - 1] + 1)).tolist()
    return out

"""Slabs of one cache of the kernel by the node of the task that allocates (``mm/slub.c``): objects in use, pages, where they lie.

What is not known: how much of a slab was free before; the model starts with none. Of slabs that become empty a node keeps five
(``set_min_partial``).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from workbench.intervals import Int64s

MIN_PARTIAL = 5
Number = TypeVar("Number", int, Int64s)


class Slabs:
    """A cache of ``objects`` to a slab of ``pages`` 4 KiB pages that serves metadata of the kinds ``kinds``, two of them.

    nodes, zones : NUMA nodes, and zones that slabs can come from
    """

    def __init__(self, kinds: tuple[int, int], objects: int, pages: int, nodes: int, zones: int) -> None:
        self.kinds, self.objects, self.pages = kinds, objects, pages
        self.live = np.zeros(nodes, np.int64)
        """Objects in use of the slabs of each node."""
        self.zones = np.zeros((nodes, zones), np.int64)
        """Pages of the slabs of each node, by zone."""
        self.parts = np.zeros((2, nodes), np.int64)
        """Objects of each kind, by node."""
        self._lie: list[list[tuple[int, int]] | None] = [None] * nodes

    @property
    def most_room(self) -> int:
        """Room, in objects, with which a slab that becomes empty is given back."""
        return (MIN_PARTIAL + 1) * self.objects

    def take(self, nid: int, pages: Int64s) -> None:
        """New slabs of a node, whose pages are of these zones, int64 (zones,)."""
        self.zones[nid] += pages
        self._lie[nid] = None

    def count(self) -> Int64s:
        """Slabs of each node."""
        return self.zones.sum(axis=1) // self.pages

    def _slabs_of(self, nid: int) -> int:
        return sum(self.zones[nid].tolist()) // self.pages  # of few zones, without a reduction

    def room(self, nid: int) -> int:
        """Objects that the slabs of a node have room for."""
        return self._slabs_of(nid) * self.objects - int(self.live[nid])

    def wanted(self, nid: int, objects: int) -> int:
        """Slabs that so many more objects need; not positive: there is room."""
        return -(-(objects - self.room(nid)) // self.objects)

    def free(self, freed: Int64s) -> Int64s:
        """Objects int64 (nodes,) are freed; the pages that are given back, int64 (zones,)."""
        self.live -= freed
        out = np.zeros(self.zones.shape[1], np.int64)
        for nid in np.flatnonzero(freed).tolist():
            empty = self._slabs_of(nid) - -(-int(self.live[nid]) // self.objects)
            if empty > MIN_PARTIAL:
                back = last_of(self.zones[nid], (empty - MIN_PARTIAL) * self.pages)
                self.zones[nid] -= back
                self._lie[nid] = None
                out += back
        return out

    def held(self, zone_node: Int64s, nodes: int) -> Int64s:
        """Pages by kind and node, int64 (2, nodes): the second kind has its share, the first what is over."""
        out = np.zeros((2, nodes), np.int64)
        for nid in range(nodes):
            if not (lie := self._where(nid, zone_node)):
                continue
            first, second = self.parts[:, nid].tolist()
            for node, pages in lie:
                share = _share(pages, first, second)
                out[1, node] += share
                out[0, node] += pages - share
        return out

    def held_along(self, zone_node: Int64s, nodes: int, parts: Int64s) -> Int64s:
        """:meth:`held` with each of n times so many objects of each kind and node, int64 (n, 2, nodes)."""
        out = np.zeros((len(parts), 2, nodes), np.int64)
        for nid in range(nodes):
            for node, pages in self._where(nid, zone_node):
                share = _share(pages, parts[:, 0, nid], parts[:, 1, nid])
                out[:, 1, node] += share
                out[:, 0, node] += pages - share
        return out

    def _where(self, nid: int, zone_node: Int64s) -> list[tuple[int, int]]:
        lie = self._lie[nid]
        if lie is None:
            lie = self._lie[nid] = self._by_node(nid, zone_node)
        return lie

    def _by_node(self, nid: int, zone_node: Int64s) -> list[tuple[int, int]]:
        """Where the slabs of a node lie: node and pages; remembered until it takes or gives back a slab."""
        by_node: dict[int, int] = {}
        for zone in np.flatnonzero(self.zones[nid]).tolist():
            node = int(zone_node[zone])
            by_node[node] = by_node.get(node, 0) + int(self.zones[nid, zone])
        return list(by_node.items())


def _share(pages: int, first: Number, second: Number) -> Number:
    """What of the pages of slabs is the second kind's, by how many objects of both there are."""
    both = first + second
    return pages * second // (both + (both == 0))


def last_of(by_place: Int64s, count: int) -> Int64s:
    """``count`` of what lies in each place, int64 (places,), of the fullest first."""
    out = np.zeros_like(by_place)
    for place in np.argsort(-by_place, kind="stable").tolist():
        if count <= 0:
            break
        out[place] = min(int(by_place[place]), count)
        count -= int(out[place])
    return out

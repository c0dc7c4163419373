"""4 KiB pages that the kernel takes for itself in a call: from which zones, counted or taken, and slabs of objects.

``mm/mempolicy.c: alloc_pages_noprof``, ``mm/slub.c: new_slab``. What they are for is :mod:`workbench.engine.metadata`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from workbench.engine.filemap import FileMap
from workbench.engine.objects import Thread
from workbench.engine.range_trees import MapleSlab
from workbench.engine.slabs import Slabs
from workbench.intervals import Int64s
from workbench.kernels import placement

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState

KINDS = ("page_tables", "second_stage", "second_stage_ready", "page_cache", "attributes", "vmemmap", "pamt", "state_tree",
         "light_map")  # fmt: skip
PAGE_TABLES, SECOND_STAGE, READY, PAGE_CACHE, ATTRIBUTES, VMEMMAP, PAMT, STATE_TREE, LIGHT_MAP = range(len(KINDS))
NODES_IN_SLAB, SLAB_PAGES = 28, 4
"""``struct xa_node`` has 576 bytes; a slab of its cache has 16 KiB."""


class KernelPages:
    """Pages of the kernel's own by kind and node, the zones that they come from, and slabs."""

    def __init__(self, system: HostState) -> None:
        self.system = system
        self.taking = system.scenario.metadata == "taken"
        self.light = system.design.store == "pfn map"
        self.in_place = system.scenario.in_place
        nodes = system.nodes
        self.held = np.zeros((len(KINDS), nodes), np.int64)
        """4 KiB pages now, by kind and node."""
        self.before: Int64s | None = None
        """Free pages of each zone when the call began that is being counted."""
        # Pools of huge pages have no 4 KiB pages: what they leave free on each node stands in.
        pools = system.order > 0 and len(system.free) == nodes
        self.zones = _left_zones(system) if pools else None
        count = nodes if pools else len(system.free)
        self.xarray = Slabs((PAGE_CACHE, ATTRIBUTES), NODES_IN_SLAB, SLAB_PAGES, nodes, count)
        kinds = (LIGHT_MAP, STATE_TREE) if self.light else (STATE_TREE, LIGHT_MAP)
        self.maple = Slabs(kinds, MapleSlab.OBJECTS, MapleSlab.PAGES, nodes, count)
        self._stock: Int64s | None = None
        """Pages beside the pools that struct pages come from, and how many there were at the last look."""
        self._left = np.zeros(nodes, np.int64)

    def only_counts(self, in_turn: bool = False) -> bool:
        """Whether metadata change nothing in a run, and slabs hold nodes of the page cache alone.

        ``in_turn``: what stands in for zones beside pools may change, as what is counted is taken in its turn.
        """
        return not self.taking and (in_turn or self.zones is None) and not self.xarray.parts[1].any()

    @contextmanager
    def as_of(self, task: Thread, free: Int64s, rotation: Int64s) -> Iterator[None]:
        """What is only counted is taken with ``free`` int64 (zones,) pages, and the task's rotation int64 (2,) as it was."""
        kept = self.system.rotations[task.index].copy()
        self.before, self.system.rotations[task.index] = free, rotation
        yield
        self.before, self.system.rotations[task.index] = None, kept

    def hold_after(self, held: Int64s, kind: int, pages: Int64s) -> None:
        """So many pages int64 (n, nodes) of a kind are there after each of n calls, in ``held`` int64 (n, kinds, nodes) too."""
        held[:, kind] = pages
        self.held[kind] = pages[-1]

    # ------------------------------------------------------------------------------------------------------- the zones

    def request(self, task: Thread, by_policy: bool = True) -> tuple[int, int, int, np.ndarray, np.ndarray]:
        """One row of the request table for pages of the kernel's own: (kind, start, passes, nodes, filters)."""
        return self.system.kernel_request(task, by_policy)

    def _zones(self) -> placement.Zones:
        if self.zones is not None:
            return self.zones
        system = self.system
        return placement.Zones(system.free, system.marks(), system.zone_node, system.zonelists["guest_memfd"])

    def _zones_now(self) -> placement.Zones:
        """The zones to take from; where metadata are only counted, as they were before the pages they belong to."""
        zones = self._zones()
        if self.taking or self.zones is not None:
            return zones
        return zones._replace(free=self.system.free_of_small() if self.before is None else self.before.copy())

    def _count(self) -> int:
        return int(self.xarray.zones.shape[1])

    def share(self, stock: Int64s) -> None:
        """``stock`` int64 (nodes,): 4 KiB pages beside the pools that struct pages come from, and these pages from now on too."""
        if self.taking and self.zones is not None:
            self.zones.free[:] += stock - self.system.left_free
            self._stock, self._left = stock, self.zones.free.copy()

    def _share_left(self) -> None:
        """What struct pages took since the last look is gone from what other kinds can take, and the other way round."""
        if self.zones is None or self._stock is None:
            return
        now = self._stock + self.zones.free - self._left
        self._stock[:] = self.zones.free[:] = self._left = now

    def _break_up(self) -> None:
        """Metadata come in 4 KiB pages, of which the zones have more than lie outside their blocks of huge memory."""
        if self.taking and self.zones is None:
            self.system.settle_blocks(broken_up=True)

    def _put_together(self) -> None:
        if self.taking and self.zones is None:
            self.system.settle_blocks()

    # ----------------------------------------------------------------------------------------------------------- pages

    def _place(
        self, task: Thread, map_: FileMap, intervals: Int64s, step: int, kind: int, by_policy: bool = True
    ) -> bool:
        """Place one page for each index of ``intervals`` and enter it in ``map_``."""
        self._break_up()
        before = int(map_.progress[placement.ALLOCATIONS])
        zones = self._zones_now()
        free = zones.free.copy()
        count = length([intervals])
        complete = self._run(task, map_, intervals, step, zones, by_policy)
        self._put_together()
        map_.add_new_allocations(before)
        used = free - zones.free
        self.held[kind] += np.bincount(zones.zone_node, used, self.system.nodes).astype(np.int64)
        if not complete and not self.taking:  # nothing is left: counted where the task runs
            self._overflow(task, map_, intervals, kind, count - int(used.sum()))
            return True
        return complete

    def _overflow(self, task: Thread, map_: FileMap, intervals: Int64s, kind: int, count: int) -> None:
        zone = self._own_zone(task)
        for low, high in intervals.tolist():
            for first, last in map_.absent(low, high).tolist():
                map_.add_run(first, last, zone)
        self.held[kind, self._zones().zone_node[zone]] += count

    def _own_zone(self, task: Thread) -> int:
        zones = self._zones()
        return int(zones.zonelists[task.nid, 0])

    def _run(
        self,
        task: Thread,
        map_: FileMap,
        intervals: Int64s,
        step: int,
        zones: placement.Zones,
        by_policy: bool,
        rotations: Int64s | None = None,
        requests: placement.Requests | None = None,
    ) -> bool:
        system = self.system
        pieces = np.zeros((len(intervals), 4), np.int64)
        pieces[:, 0], pieces[:, 1] = intervals[:, 0], intervals[:, 1] - intervals[:, 0]
        pieces[:, 2] = step
        if step < 0:
            pieces[:, 0] = intervals[:, 1] - 1
            pieces = np.ascontiguousarray(pieces[::-1])
        if requests is None:
            requests = system.kernel_requests(task, by_policy)
        if rotations is None:
            rotations = system.rotations if self.taking else system.rotations.copy()
        turns = placement.Interleaving(rotations, system.weights)
        return system.run_pieces(map_, pieces, requests, turns, zones)

    def _allocate(self, task: Thread, count: int, by_policy: bool = True) -> Int64s:
        """Zones of so many pages in the order in which they are handed out; fewer: no memory."""
        if count <= 0:
            return np.empty(0, np.int64)
        self._break_up()
        scratch = FileMap()
        complete = self._run(task, scratch, np.array([[0, count]], np.int64), 1, self._zones_now(), by_policy)
        self._put_together()
        found = scratch.tiled()
        if not complete and not self.taking:
            found = np.append(found, np.full(count - len(found), self._own_zone(task), np.int64))
        return found

    def _allocate_anywhere(self, task: Thread, count: int, by_policy: bool) -> Int64s:
        """:meth:`_allocate`, but how many come from each zone, int64 (zones,)."""
        self._break_up()
        zones = self._zones_now()
        free = zones.free.copy()
        complete = self._run(task, FileMap(), np.array([[0, count]], np.int64), 1, zones, by_policy)
        found = free - zones.free
        self._put_together()
        if not complete and not self.taking:
            found[self._own_zone(task)] += count - int(found.sum())
        return found

    def fits(self, task: Thread, tables: int, slabs: int, free: Int64s) -> bool:
        """Take what :meth:`need` says from ``free`` int64 (zones,), and from nothing else. False: it is not there."""
        zones = self._zones()._replace(free=free)
        rotations = self.system.rotations.copy()
        for count, by_policy in ((tables, True), (slabs, self.system.scenario.kernel.slabs_by_policy)):
            pages = np.array([[0, count]], np.int64)
            if count and not self._run(task, FileMap(), pages, 1, zones, by_policy, rotations):
                return False
        return True

    def _hold(self, kind: int, zones: Int64s, sign: int = 1) -> None:
        node = self._zones().zone_node[zones]
        self.held[kind] += sign * np.bincount(node, minlength=self.system.nodes)

    def _release(self, kind: int, pages: Int64s) -> None:
        self.held[kind] -= np.bincount(self._zones().zone_node, pages, self.system.nodes).astype(np.int64)
        self._give_back(pages)

    def _give_back(self, pages: Int64s) -> None:
        if self.taking or self.zones is not None:
            self._break_up()
            self._zones().free[:] += pages
            self._put_together()

    # ------------------------------------------------------------------------------------------------ objects of slabs

    def slabs_of(self, kind: int) -> Slabs:
        """The cache of which the nodes of trees of a kind are objects."""
        return self.xarray if kind in self.xarray.kinds else self.maple

    def _take_objects(self, task: Thread, slabs: Slabs, objects: int) -> bool:
        """So many more objects of the slabs of the task's node. False: no memory for a slab."""
        nid = task.nid
        wanted = slabs.wanted(nid, objects)
        if wanted > 0:
            by_policy = self.system.scenario.kernel.slabs_by_policy
            # By policy a slab is one step of the rotation; its other pages follow the first.
            pages = self._allocate_anywhere(task, wanted if by_policy else wanted * slabs.pages, by_policy)
            if by_policy and self.taking:
                self._zones().free[:] -= pages * (slabs.pages - 1)
            pages *= slabs.pages if by_policy else 1
            slabs.take(nid, pages)
            if pages.sum() < wanted * slabs.pages:
                return False
        slabs.live[nid] += objects
        if any(slabs.parts[1].tolist()):
            self._count_slabs(slabs)
        elif wanted > 0:  # else only the fill of slabs has changed
            zone_node = self._zones().zone_node
            self.held[slabs.kinds[0]] += np.bincount(zone_node, pages, self.system.nodes).astype(np.int64)
        return True

    def _free_objects(self, slabs: Slabs, freed: Int64s) -> None:
        """Objects that went from the slabs of each node, int64 (nodes,)."""
        self._give_back(slabs.free(freed))

    def change_nodes(self, task: Thread, changes: Int64s) -> None:
        """xarray nodes that came, by the hand of a task, and went, int64 (2, nodes) for page cache and attributes."""
        self.xarray.parts += changes
        net = changes.sum(axis=0)
        self._free_objects(self.xarray, np.maximum(-net, 0))
        if net[task.nid] > 0:
            self._take_objects(task, self.xarray, int(net[task.nid]))
        else:
            self._count_slabs(self.xarray)

    def change_objects(self, task: Thread, nid: int, came: int, free: Int64s, rotation: Int64s) -> None:
        """So many xarray nodes of a NUMA node came, by the hand of a task, or went (negative), as to slabs alone.

        They are only counted: with ``free`` int64 (zones,) pages, and the task's rotation int64 (2,) as it was.
        """
        rotations = self.system.rotations
        kept = rotations[task.index].copy()
        self.before, rotations[task.index] = free, rotation
        if came > 0:
            self._take_objects(task, self.xarray, came)
        else:
            freed = np.zeros(self.system.nodes, np.int64)
            freed[nid] = -came
            self._free_objects(self.xarray, freed)
        self.before, rotations[task.index] = None, kept

    def slab_pages(self, parts: Int64s) -> Int64s:
        """Pages of slabs, int64 (n, 2, nodes), with so many nodes of page cache and attributes, int64 (n, 2, nodes)."""
        return self.xarray.held_along(self._zones().zone_node, self.system.nodes, parts)

    def hold_objects_after(self, held: Int64s, slabs: Slabs, parts: Int64s) -> None:
        """Slabs have so many objects int64 (n, 2, nodes) after each of n calls: pages, in ``held`` int64 (n, kinds, nodes)."""
        held[:, list(slabs.kinds)] = slabs.held_along(self._zones().zone_node, self.system.nodes, parts)

    def _count_slabs(self, slabs: Slabs) -> None:
        """Pages of slabs by node and by what their objects are for."""
        first, second = slabs.kinds
        self.held[first], self.held[second] = slabs.held(self._zones().zone_node, self.system.nodes)


def _left_zones(system: HostState) -> placement.Zones:
    """What pools leave of each node, as one zone a node."""
    nodes = np.arange(system.nodes)
    lists = np.full((system.nodes, system.nodes + 1), -1, np.int64)
    lists[:, :-1] = np.where(system.fallback >= 0, system.fallback, -1)
    return placement.Zones(system.left_free.copy(), np.zeros((2, system.nodes), np.int64), nodes, lists)


def length(intervals: list[Int64s]) -> int:
    length = 0
    for one in intervals:
        if len(one) == 1:  # most often, and without a reduction
            length += int(one[0, 1] - one[0, 0])
        elif len(one):
            length += int((one[:, 1] - one[:, 0]).sum())
    return length

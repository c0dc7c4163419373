"""Pages that the kernel allocates beside a guest's memory: how many, of which kind, and on which node.

=================== ================================================================== ==============================
kind                what                                                               where
=================== ================================================================== ==============================
``page_tables``     PTE tables, one for each 2 MiB that a mapping of the host has      policy and CPU of the task that
                    touched, and the levels above (``pte_alloc_one``, ``__pmd_alloc``) touches, its rotation included
``second_stage``    tables of KVM, one for each 2 MiB that the guest has touched, and  policy and CPU of the vCPU's
                    the levels above (``tdp_mmu_map_handle_target_level``)             thread
``second_stage_ready`` pages that a vCPU keeps for tables to come, 40 at a time, and   as above, whoever runs
                    the root (``kvm_mmu_topup_memory_cache``)                          the vCPU then
``page_cache``      xarray nodes of the file's pages, one for each 64, in slabs        CPU of the task that allocates
                    (``xas_alloc``, ``mm/slub.c: refill_objects``)
``attributes``      xarray nodes of ``kvm->mem_attr_array``, one for each 64 private   CPU of the task that sets them
                    gfns, in the same slabs (``kvm_vm_set_mem_attributes``)
``vmemmap``         struct pages that splits of huge pages brought back                node of the huge page
                    (``hugetlb_vmemmap_restore_folio``)
``pamt``            pairs of PAMT pages of a TDX guest, one pair for each 2 MiB with   node of the memory (modelled)
                    private memory (dynamic PAMT); an RMP is made at boot
``state_tree``      maple-tree nodes of a file that converts in place, by ranges of    CPU of the task that converts
                    one state (modelled: :mod:`workbench.engine.range_trees`)
``light_map``       maple-tree nodes of the offset -> pfn map of a file without        CPU of the task that allocates
                    struct page, by extents, in the same slabs (modelled)
=================== ================================================================== ==============================

``Scenario.metadata`` says what becomes of them. ``counted``: they are placed beside the run and change nothing in it.
``taken``: they come out of the zones, in the order in which the kernel asks for them, move the task's rotation on and go
back when the kernel gives them back: page tables with their mapping, second-stage tables with the process, nodes with
the pages they hold.

What cannot be known: how much of a slab was free before (:mod:`workbench.engine.slabs`), at which address a file is mapped
(the model aligns it to 2 MiB and gives it a PMD table of its own). Tables are those of x86-64. What pools of huge pages leave
of a node is one stock for struct pages and all other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench import profiles
from workbench.engine.attributes import Attributes
from workbench.engine.filemap import FileMap
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode, Thread
from workbench.engine.policy_request import policy_nodemask
from workbench.engine.range_trees import LightMap, MapleSlab, SharedNodes, StateTree, Tree
from workbench.engine.slabs import Slabs, last_of
from workbench.intervals import Int64s, no_intervals, pages_of
from workbench.kernels import placement
from workbench.tracking.light_file import LightFile
from workbench.units import PAGE_ORDERS

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState

KINDS = ("page_tables", "second_stage", "second_stage_ready", "page_cache", "attributes", "vmemmap", "pamt", "state_tree",
         "light_map")  # fmt: skip
PAGE_TABLES, SECOND_STAGE, READY, PAGE_CACHE, ATTRIBUTES, VMEMMAP, PAMT, STATE_TREE, LIGHT_MAP = range(len(KINDS))
LEVELS = (27, 18, 9)
"""log2 of the 4 KiB pages below one table, the highest level first: 512 GiB, 1 GiB and 2 MiB."""
XA_CHUNK_SHIFT = 6
NODES_IN_SLAB, SLAB_PAGES = 28, 4
"""``struct xa_node`` has 576 bytes; a slab of its cache has 16 KiB."""
CACHE_OBJECTS, CACHE_LEAST = 40, 5
"""KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE, PT64_ROOT_MAX_LEVEL."""


@dataclass(eq=False)
class Tables:
    """A tree of page tables over 4 KiB pages: for each of ``shifts`` which tables are there, and the zone of each."""

    shifts: tuple[int, ...]
    first_free: bool = False
    """Whether the process has the first table of the highest level anyway, as it has around its other mappings."""
    maps: list[FileMap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.maps = [FileMap() for _ in self.shifts]

    def above(self, leaf: int) -> Tables:
        """The same tree for what is mapped by leaves of this order: without the tables below them."""
        if not leaf:
            return self
        part = Tables((), self.first_free)
        part.shifts = tuple(shift for shift in self.shifts if shift > leaf)
        part.maps = self.maps[: len(part.shifts)]
        return part

    def known(self, start: int, end: int) -> bool:
        """Whether pages [start, end) were found to need no more tables; False says nothing."""
        for shift, map_ in zip(self.shifts, self.maps, strict=True):
            low, high = start >> shift, ((end - 1) >> shift) + 1
            if not map_.is_known(low, high) and not (self.first_free and shift == LEVELS[0] and high == 1):
                return False
        return True

    def missing(self, start: int, end: int) -> list[Int64s]:
        """Tables that pages [start, end) need and that are not there: intervals int64 (n, 2) of each level."""
        out = []
        for shift, map_ in zip(self.shifts, self.maps, strict=True):
            low = start >> shift
            if self.first_free and shift == LEVELS[0]:
                low = max(low, 1)
            high = ((end - 1) >> shift) + 1
            out.append(map_.absent(low, high) if low < high else no_intervals())
        return out


@dataclass(eq=False)
class Walk:
    """Through what pages are reached: the host's page tables of one mapping, or the guest's second stage."""

    tables: Tables
    kind: int
    base: int = 0
    """4 KiB page of the tables at which the file begins."""


_Level = tuple[int, int, list[list[int]]]
"""log2 of the pages below one object, page at which they begin to count, and objects that are missing, as intervals."""


class Prospect(NamedTuple):
    """Tables and nodes that a stretch of a file lacks, level by level, and how many tables its vCPU keeps (None: the host's)."""

    tables: list[_Level]
    nodes: list[_Level]
    ready: int | None

    def need(self, start: int, end: int) -> tuple[int, int]:
        """No more than so many pages are taken for tables, and for slabs, when pages [start, end) of it are touched."""
        tables, objects = (_within(levels, start, end) for levels in (self.tables, self.nodes))
        if self.ready is not None and tables + CACHE_LEAST > self.ready:
            tables += CACHE_OBJECTS + 1
        return tables, (-(-objects // NODES_IN_SLAB) + 1) * SLAB_PAGES * (objects > 0)


def _within(levels: list[_Level], start: int, end: int) -> int:
    count = 0
    for shift, base, missing in levels:
        low, high = (base + start) >> shift, ((base + end - 1) >> shift) + 1
        for first, last in missing:
            count += max(0, min(last, high) - max(first, low))
    return count


class Metadata:
    """What one host holds beside the pages of files."""

    def __init__(self, system: HostState) -> None:
        self.system = system
        scenario = system.scenario
        self.taking = scenario.metadata == "taken"
        self.light = system.design.store == "pfn map"
        self.in_place = scenario.in_place
        nodes = system.nodes
        self.held = np.zeros((len(KINDS), nodes), np.int64)
        """4 KiB pages now, by kind and node."""
        self.mapped: dict[Mapping, Tables] = {}
        self.bases: dict[Inode, int] = {}
        self.next_base = 0
        self.caches: dict[Inode, list[FileMap]] = {}
        self.attribute_nodes: dict[Inode, list[FileMap]] = {}
        self.second: list[Tables] = []
        self.ready: dict[str, list[int]] = {}
        """Zones of the pages that each vCPU keeps for tables to come, the next one last."""
        self.roots: list[int] = []
        """Zones of the roots, and of what vCPUs of machines before had kept."""
        self.before: Int64s | None = None
        """Free pages of each zone when the call began that is being counted."""
        self.new_machine()
        # Pools of huge pages have no 4 KiB pages: what they leave free on each node stands in.
        pools = system.order > 0 and len(system.free) == nodes
        self.zones = _left_zones(system) if pools else None
        count = nodes if pools else len(system.free)
        self.xarray = Slabs((PAGE_CACHE, ATTRIBUTES), NODES_IN_SLAB, SLAB_PAGES, nodes, count)
        kinds = (LIGHT_MAP, STATE_TREE) if self.light else (STATE_TREE, LIGHT_MAP)
        self.maple = Slabs(kinds, MapleSlab.OBJECTS, MapleSlab.PAGES, nodes, count)
        self.trees: dict[Inode, dict[int, Tree]] = {}
        """Maple trees of each guest_memfd, by kind."""
        self._stock: Int64s | None = None
        """Pages beside the pools that struct pages come from, and how many there were at the last look."""
        self._left = np.zeros(nodes, np.int64)
        self.pamt = np.zeros((nodes, count), np.int64)
        """PAMT pages for the memory of each node, by the zone they come from."""

    # ------------------------------------------------------------------------------------------------ who walks

    def new_machine(self) -> None:
        """KVM_CREATE_VM: tables of its own; those of a machine before live on with its files."""
        self.second.append(Tables(LEVELS))
        self.roots += [zone for kept in self.ready.values() for zone in kept]  # until the process ends
        self.bases.clear()
        self.next_base = 0
        self.ready = {}

    def _vcpu(self, task: Thread) -> str:
        """Whose pages for tables a task takes: a vCPU's own thread that vCPU's, any other (one that runs it in turn) the first's.

        arch/x86/include/asm/kvm_host.h: mmu_shadow_page_cache is part of the vCPU, whichever thread entered it.
        """
        return task.name if task.name in self.system.vcpus else self.system.vcpus[0]

    def of_host(self, mapping: Mapping | None) -> Walk | None:
        """The walk through a mapping of the host."""
        if mapping is None:
            return None
        tables = self.mapped.get(mapping)
        if tables is None:
            tables = self.mapped[mapping] = Tables(
                tuple(shift for shift in LEVELS if shift > mapping.leaf), first_free=True
            )
        return Walk(tables, PAGE_TABLES)

    def of_guest(self, inode: Inode) -> Walk:
        """The walk of the guest; files lie one after another in its address space, each on a 2 MiB boundary."""
        if inode not in self.bases:
            self.bases[inode] = self.next_base
            self.next_base += -(-inode.pages >> 9) << 9
        # A leaf is as large as the file's pages, where its kind of VM can map them so.
        largest = profiles.VM_TYPES[self.system.scenario.guest.vm_type].largest_leaf
        return Walk(self.second[-1].above(min(inode.order, PAGE_ORDERS[largest])), SECOND_STAGE, self.bases[inode])

    # ------------------------------------------------------------------------------------------- what is wanted

    def need(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> tuple[int, int]:
        """No more than so many pages are taken for tables, and for slabs, when pages [start, end) are touched."""
        tables = 0
        if walk is not None:
            tables = _length(walk.tables.missing(walk.base + start, walk.base + end))
            if walk.kind == SECOND_STAGE and tables + CACHE_LEAST > len(self.ready.get(self._vcpu(task), ())):
                tables += CACHE_OBJECTS + 1
        objects = _length(self._missing_nodes(inode, start, end))
        return tables, (-(-objects // NODES_IN_SLAB) + 1) * SLAB_PAGES * (objects > 0)

    def prospect(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> Prospect:
        """What :meth:`need` says of parts of pages [start, end) of a file of 4 KiB pages, with one look at what is there."""
        tables: list[_Level] = []
        if walk is not None:
            missing = walk.tables.missing(walk.base + start, walk.base + end)
            tables = [(shift, walk.base, one.tolist()) for shift, one in zip(walk.tables.shifts, missing, strict=True)]
        nodes: list[_Level] = [
            (_lowest(0) + XA_CHUNK_SHIFT * level, 0, one.tolist())
            for level, one in enumerate(self._missing_nodes(inode, start, end))
        ]
        return Prospect(tables, nodes, self.kept_ready(task, walk))

    def kept_ready(self, task: Thread, walk: Walk | None) -> int | None:
        """How many tables to come the vCPU keeps; None: the walk is the host's."""
        if walk is None or walk.kind != SECOND_STAGE:
            return None
        return len(self.ready.get(self._vcpu(task), ()))

    def fits(self, task: Thread, tables: int, slabs: int, free: Int64s) -> bool:
        """Take what :meth:`need` says from ``free`` int64 (zones,), and from nothing else. False: it is not there."""
        zones = self._zones()._replace(free=free)
        rotations = self.system.rotations.copy()
        for count, by_policy in ((tables, True), (slabs, self.system.scenario.kernel.slabs_by_policy)):
            pages = np.array([[0, count]], np.int64)
            if count and not self._run(task, FileMap(), pages, 1, zones, by_policy, rotations):
                return False
        return True

    def known(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> bool:
        """Whether pages [start, end) were found to need neither tables nor nodes; False says nothing."""
        if walk is not None and (
            not walk.tables.known(walk.base + start, walk.base + end)
            or (walk.kind == SECOND_STAGE and self._vcpu(task) not in self.ready)
        ):
            return False
        return self._nodes_known(inode, start, end)

    def _nodes_known(self, inode: Inode, start: int, end: int) -> bool:
        """Whether pages [start, end) were found to need no more nodes of the page cache; False says nothing."""
        if self._is_in_no_cache(inode):
            return True
        maps, shift = self.caches.get(inode), _lowest(inode.order)
        first, last = start >> inode.order, -(-end >> inode.order)
        if not maps or (last - 1) >> (shift + XA_CHUNK_SHIFT * (len(maps) - 1)):
            return False
        return maps[0].is_known(first >> shift, ((last - 1) >> shift) + 1)  # and these hang on others

    def _is_in_no_cache(self, inode: Inode) -> bool:
        return inode.anonymous or (self.light and (inode.private or inode.tracked is not None))

    def _missing_nodes(self, inode: Inode, start: int, end: int) -> list[Int64s]:
        """Nodes that pages [start, end) need in the tree of the page cache, level by level, the lowest first.

        Private memory of pfn ranges has none: it is not in the page cache. Nor is anonymous memory. What files that convert
        have there follows from their own state (:meth:`settle`).
        """
        if self._is_in_no_cache(inode):
            return []
        first, last = start >> inode.order, -(-end >> inode.order)
        maps = self.caches.setdefault(inode, [])
        return _missing_nodes(maps, _lowest(inode.order), first, last, lambda: inode.map.any(0, 1))

    # --------------------------------------------------------------------------------------------- what is taken

    def enter_tables(self, task: Thread, walk: Walk | None, start: int, end: int, step: int = 1) -> bool:
        """The tables that pages [start, end) need are allocated. False: no memory."""
        if walk is None or end <= start:
            return True
        if walk.tables.known(walk.base + start, walk.base + end) and (
            walk.kind != SECOND_STAGE or self._vcpu(task) in self.ready
        ):
            return True
        missing = walk.tables.missing(walk.base + start, walk.base + end)
        if walk.kind == SECOND_STAGE:
            return self._enter_second_stage(task, walk, missing, step)
        for map_, intervals in zip(walk.tables.maps, missing, strict=True):
            if len(intervals) and not self._place(task, map_, intervals, step, walk.kind):
                return False
        return True

    def _enter_second_stage(self, task: Thread, walk: Walk, missing: list[Int64s], step: int) -> bool:
        if not self._make_ready(task):
            return False
        ready = self.ready[self._vcpu(task)]
        batch = CACHE_OBJECTS - CACHE_LEAST + 1
        whole = (_length(missing) - (len(ready) - CACHE_LEAST + 1)) // batch - 1
        if whole > 0 and not _rotates(task):
            # Pages that all come in one order need no list: whole batches go to their tables as they are handed out.
            direct = whole * batch
            for level in range(len(missing) - 1, -1, -1):
                if not direct:
                    break
                count = _length([missing[level]])
                missing[level], others = _split(missing[level], max(0, count - direct), step)
                direct -= _length([others])
                if len(others) and not self._place(task, walk.tables.maps[level], others, step, SECOND_STAGE):
                    return False
        popped = self._take_ready(task, _length(missing))
        if popped is None:
            return False
        at = 0
        for map_, intervals in zip(walk.tables.maps, missing, strict=True):
            count = _length([intervals])
            _enter(map_, intervals, popped[at : at + count], step)
            at += count
        return True

    def _make_ready(self, task: Thread) -> bool:
        """The pages that a vCPU keeps from its first fault on, and the root. False: no memory."""
        vcpu = self._vcpu(task)
        if vcpu not in self.ready:
            first = self._allocate(task, CACHE_OBJECTS)
            if len(first) < CACHE_OBJECTS:
                return False
            self.ready[vcpu] = first[:-1].tolist()
            self.roots.append(int(first[-1]))
            self._hold(READY, first)
        return True

    def _take_ready(self, task: Thread, wanted: int) -> Int64s | None:
        """Zones of so many of the pages that the vCPU keeps, which are tables now. None: no memory to fill it up."""
        popped = np.empty(wanted, np.int64)
        if not wanted:
            return popped
        ready = self.ready[self._vcpu(task)]
        done = 0
        while done < wanted:
            some = min(wanted - done, max(1, len(ready) - CACHE_LEAST + 1))
            popped[done : done + some] = ready[-1 : -some - 1 : -1]
            del ready[-some:]
            done += some
            if len(ready) < CACHE_LEAST:
                new = self._allocate(task, CACHE_OBJECTS - len(ready))
                self._hold(READY, new)
                ready += new.tolist()
                if len(ready) < CACHE_OBJECTS:
                    return None
        moved = np.bincount(self._zones().zone_node[popped], minlength=self.system.nodes)
        self.held[READY] -= moved
        self.held[SECOND_STAGE] += moved
        return popped

    def enter_turns(self, tasks: list[Thread], inode: Inode, walk: Walk | None, folios: Int64s, rows: Int64s) -> bool:
        """Tables and nodes of ``folios`` (n,), each by the task of ``rows`` that touches the first folio of it.

        Each vCPU fills its cache when it faults, needing a table or not (mmu.c: mmu_topup_memory_caches).
        """
        pages = folios << inode.order
        base = 0 if walk is None else walk.base
        units = [(base + pages) >> LEVELS[-1]] if walk is not None else []
        units.append(pages >> XA_CHUNK_SHIFT)
        for number, unit in enumerate(units):
            index, first = np.unique(unit, return_index=True)
            edges = np.flatnonzero((np.diff(rows[first]) != 0) | (np.diff(index) != 1)) + 1
            for low, high in zip(np.append(0, edges).tolist(), np.append(edges, len(index)).tolist(), strict=True):
                task = tasks[int(rows[first[low]])]
                begin, end = int(index[low]), int(index[high - 1]) + 1
                if walk is not None and number == 0:
                    # A walk begins at its file's own page 0.
                    done = self.enter_tables(task, walk, (begin << LEVELS[-1]) - base, (end << LEVELS[-1]) - base)
                else:
                    last = min(end << XA_CHUNK_SHIFT, inode.pages)
                    done = self.enter_nodes(task, inode, begin << XA_CHUNK_SHIFT, last)
                if not done:
                    return False
        for at in np.sort(np.unique(rows, return_index=True)[1]).tolist():
            if not self.enter_tables(tasks[int(rows[at])], walk, int(pages[at]), int(pages[at]) + 1):
                return False
        return True

    def enter_nodes(self, task: Thread, inode: Inode, start: int, end: int) -> bool:
        """Pages [start, end) of the file are there: the nodes that hold them too. False: no memory for a slab."""
        if end <= start or self._nodes_known(inode, start, end):
            return True
        missing = self._missing_nodes(inode, start, end)
        return self._enter_nodes(task, PAGE_CACHE, self.caches.get(inode, []), missing)

    def _enter_nodes(self, task: Thread, kind: int, maps: list[FileMap], missing: list[Int64s]) -> bool:
        nid = task.nid
        objects = _length(missing)
        if not objects:
            return True
        for map_, intervals in zip(maps, missing, strict=True):
            for low, high in intervals.tolist():
                map_.add_run(low, high, nid)
        self.xarray.parts[kind - PAGE_CACHE, nid] += objects
        return self._take_objects(task, self.xarray, objects)

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
        if slabs.parts[1].any():
            self._count_slabs(slabs)
        elif wanted > 0:  # else only the fill of slabs has changed
            zone_node = self._zones().zone_node
            self.held[slabs.kinds[0]] += np.bincount(zone_node, pages, self.system.nodes).astype(np.int64)
        return True

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

    def _count_slabs(self, slabs: Slabs) -> None:
        """Pages of slabs by node and by what their objects are for."""
        first, second = slabs.kinds
        self.held[first], self.held[second] = slabs.held(self._zones().zone_node, self.system.nodes)

    # ------------------------------------------------------------------------------------------ of many faults

    def only_counts(self, in_turn: bool = False) -> bool:
        """Whether metadata change nothing in a run, and slabs hold nodes of the page cache alone.

        ``in_turn``: what stands in for zones beside pools may change, as what is counted is taken in its turn.
        """
        return not self.taking and (in_turn or self.zones is None) and not self.xarray.parts[1].any()

    def follows_states(self, inode: Inode) -> bool:
        """Whether of what conversions change nothing but the tree of a file's states is metadata, and it changes nothing."""
        return not self.taking and not self.light and (not self.in_place or STATE_TREE in self.trees.get(inode, {}))

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
        beyond = np.flatnonzero((ends - 1) >> (_lowest(inode.order) + XA_CHUNK_SHIFT * (levels - 1)))
        return int(beyond[0]) if len(beyond) else len(ends)

    def count_faults(self, walk: Walk, rows: Int64s, tasks: list[Thread], free: Int64s, rotations: Int64s) -> Int64s:
        """Tables of faults that have placed their pages: what is held after each, int64 (n, kinds, nodes).

        ``rows`` int64 (n, 4) as :mod:`workbench.kernels.faults` takes them, of a file of 4 KiB pages; ``free`` int64 (n, zones)
        before each of them, ``rotations`` int64 (n, 2) of its task after it.
        """
        held = np.empty((len(rows), *self.held.shape), np.int64)
        tables = self._need_tables(walk, rows, tasks)
        popped: list[Int64s] = []
        kept, filled = self.system.rotations.copy(), 0
        for number in sorted(tables):
            task = tasks[number]
            held[filled:number] = self.held
            filled = number
            self.before, self.system.rotations[task.index] = free[number], rotations[number]
            if walk.kind != SECOND_STAGE:
                self.enter_tables(task, walk, *rows[number, :3].tolist())
            else:
                self._make_ready(task)
                zones = self._take_ready(task, len(tables[number]))
                assert zones is not None  # what is only counted is always there
                popped.append(zones)
        held[filled:] = self.held
        self.before = None
        self.system.rotations[:] = kept
        if popped:
            wanted = np.array([table for number in sorted(tables) for table in tables[number]], np.int64).reshape(-1, 2)
            taken = np.concatenate(popped)
            for level, map_ in enumerate(walk.tables.maps):
                mine = wanted[:, 0] == level
                map_.add_singles(wanted[mine, 1], taken[mine])
        return held

    @contextmanager
    def as_of(self, task: Thread, free: Int64s, rotation: Int64s) -> Iterator[None]:
        """What is only counted is taken with ``free`` int64 (zones,) pages, and the task's rotation int64 (2,) as it was."""
        kept = self.system.rotations[task.index].copy()
        self.before, self.system.rotations[task.index] = free, rotation
        yield
        self.before, self.system.rotations[task.index] = None, kept

    def first_to_need(self, walk: Walk, rows: Int64s, tasks: list[Thread]) -> list[int]:
        """Which faults, rows int64 (n, 4) as :meth:`count_faults` has them, find a table missing, or nothing kept ready."""
        return sorted(self._need_tables(walk, rows, tasks))

    def hold_after(self, held: Int64s, kind: int, pages: Int64s) -> None:
        """So many pages int64 (n, nodes) of a kind are there after each of n calls, in ``held`` int64 (n, kinds, nodes) too."""
        held[:, kind] = pages
        self.held[kind] = pages[-1]

    def _need_tables(self, walk: Walk, rows: Int64s, tasks: list[Thread]) -> dict[int, list[tuple[int, int]]]:
        """Which faults are the first to need tables, and which: level and number, in the order in which they are made.

        The first fault of a vCPU is there too, for the pages that it keeps.
        """
        found: dict[int, list[tuple[int, int]]] = {}
        if walk.kind == SECOND_STAGE:
            ready = set(self.ready)
            for number, task in enumerate(tasks):
                if (vcpu := self._vcpu(task)) not in ready:
                    ready.add(vcpu)
                    found[number] = []
        for level, (shift, map_) in enumerate(zip(walk.tables.shifts, walk.tables.maps, strict=True)):
            fault, table = _first_of((walk.base + rows[:, 0]) >> shift, (walk.base + rows[:, 1] - 1) >> shift)
            absent = map_.zone_of(table) < 0
            if walk.tables.first_free and shift == LEVELS[0]:
                absent &= table > 0
            ways = rows[fault[absent], 2]
            for number, one in sorted(zip(fault[absent].tolist(), (table[absent] * ways).tolist(), strict=True)):
                found.setdefault(number, []).append((level, abs(one)))
        return found

    # ----------------------------------------------------------------------------------------- what is given back

    def erased(self, inode: Inode, first: int, last: int) -> None:
        """Folios [first, last) left the file: nodes that hold none any more are freed."""
        maps = self.caches.get(inode)
        if maps:
            self._free_nodes(PAGE_CACHE, maps, _lowest(inode.order), first, last, inode.map.any)

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

    def _free_objects(self, slabs: Slabs, freed: Int64s) -> None:
        """Objects that went from the slabs of each node, int64 (nodes,)."""
        self._give_back(slabs.free(freed))

    def unmapped(self, mapping: Mapping) -> None:
        """free_pgtables: the tables go with their mapping."""
        tables = self.mapped.pop(mapping, None)
        if tables is not None:
            self._clear(tables, PAGE_TABLES)

    def advised_away(self, mapping: Mapping, start: int, end: int) -> None:
        """MADV_DONTNEED over 2 MiB and more frees PTE tables that it empties (mm/pt_reclaim.c), from 6.14 on."""
        tables = self.mapped.get(mapping)
        shift = LEVELS[-1]
        low, high = -(-start >> shift), end >> shift
        if tables is not None and low < high and self.system.scenario.kernel.reclaims_tables:
            self._release(PAGE_TABLES, tables.maps[-1].erase(low, high, self._count()))

    def forget(self, inode: Inode) -> None:
        """The inode died."""
        for kind, trees in ((PAGE_CACHE, self.caches), (ATTRIBUTES, self.attribute_nodes)):
            maps = trees.pop(inode, None)
            if maps:
                self._free_nodes(kind, maps, _lowest(inode.order), 0, 1 << 52, None)
        for kind, tree in self.trees.pop(inode, {}).items():
            self._free_tree_nodes(kind, tree.nodes)

    def processes_end(self) -> None:
        """exit_mm, kvm_destroy_vm: mappings, machines and what their vCPUs keep."""
        for mapping in list(self.mapped):
            self.unmapped(mapping)
        for tables in self.second:
            self._clear(tables, SECOND_STAGE)
        kept = [zone for zones in self.ready.values() for zone in zones] + self.roots
        self._release(READY, np.bincount(np.array(kept, np.int64), minlength=self._count()))
        self.second, self.roots, self.ready = [], [], {}
        self.new_machine()

    def _clear(self, tables: Tables, kind: int) -> None:
        for map_ in tables.maps:
            self._release(kind, map_.erase(0, 1 << 60, self._count()))

    # ------------------------------------------------------------------------------------------- after each call

    def settle(self, task: Thread, vmemmap: Int64s | None, pamt: Int64s | None = None) -> bool:
        """What follows from the state after a call: attributes of the VM, struct pages that splits brought back."""
        complete = True
        having, changed = self.system.attributed, self.system.changed
        for inode in having if changed is None else changed:
            if inode in having and inode.attributes is not None:
                for part in inode.attributes.take_changed(inode.pages):
                    complete &= self._settle_attributes(task, inode, inode.attributes, *part)
        if vmemmap is not None:
            self.held[VMEMMAP] = vmemmap
        if pamt is not None and self.system.scenario.guest.vm_type == "tdx":
            complete &= self._settle_pamt(task, pamt)
        if self.light or self.in_place:
            complete &= self._settle_trees(task)
        self._share_left()
        return complete

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

    def _settle_pamt(self, task: Thread, pamt: Int64s) -> bool:
        """So many PAMT pages are for memory of each node, int64 (nodes,): from that node, or where its zonelist leads."""
        if not self.taking:
            self.held[PAMT] = pamt
            return True
        complete = True
        for nid in np.flatnonzero(pamt != self.pamt.sum(axis=1)).tolist():
            more = int(pamt[nid] - self.pamt[nid].sum())
            if more < 0:
                back = last_of(self.pamt[nid], -more)
                self.pamt[nid] -= back
                self._give_back(back)
                continue
            nodes = self.system.has_normal_memory.astype(bool)
            asked = policy_nodemask(None, nid, self.system.node_ids, np.ones(self.system.nodes, bool), nodes)
            requests = self.system.request_table([(task.index, -1, asked)])
            zones = self._zones()
            free = zones.free.copy()
            complete &= self._run(task, FileMap(), np.array([[0, more]], np.int64), 1, zones, True, requests=requests)
            self.pamt[nid] += free - zones.free
        self.held[PAMT] = np.bincount(self._zones().zone_node, self.pamt.sum(axis=0), self.system.nodes)
        return complete

    def light_map(self, inode: Inode) -> LightMap | None:
        """The offset -> pfn map of a file, if its design has one."""
        if not self.light or inode.kind != "guest_memfd":
            return None
        trees = self.trees.setdefault(inode, {})
        tree = trees.get(LIGHT_MAP)
        if tree is None and (inode.private or inode.tracked is not None):
            tree = trees[LIGHT_MAP] = LightMap(np.zeros(self.system.nodes, np.int64), 1, inode)
        return tree if isinstance(tree, LightMap) else None

    def _settle_trees(self, task: Thread) -> bool:
        """Nodes of maple trees that came, by the hand of the task, or went."""
        complete = True
        named, changed = self.system.guest_memfds, self.system.changed
        for inode in named if changed is None else changed:
            if inode.evicted or inode not in named:
                continue
            self.light_map(inode)
            trees = self.trees.setdefault(inode, {})
            if self.in_place and inode.tracked is not None and STATE_TREE not in trees:
                trees[STATE_TREE] = StateTree.of(inode.tracked, self.system.nodes)
            if self.light and isinstance(inode.tracked, LightFile) and PAGE_CACHE not in trees:
                trees[PAGE_CACHE] = SharedNodes(np.zeros(self.system.nodes, np.int64), file=inode.tracked)
            for kind, tree in trees.items():
                complete &= self.resize(task, kind, tree, tree.wanted())
        return complete

    def resize(self, task: Thread, kind: int, tree: Tree, wanted: int) -> bool:
        """A tree has so many nodes now. False: no memory for a slab."""
        more = wanted - sum(tree.nodes.tolist())
        if more < 0:  # which went is not known: where most of them are
            gone = last_of(tree.nodes, -more)
            tree.nodes -= gone
            self._free_tree_nodes(kind, gone)
        elif more:
            slabs = self.slabs_of(kind)
            parts = slabs.parts[slabs.kinds.index(kind)]
            parts[task.nid] += more
            if not self._take_objects(task, slabs, more):
                parts[task.nid] -= more
                return False
            tree.nodes[task.nid] += more
        return True

    def follow_states(
        self,
        inode: Inode,
        tasks: list[Thread],
        first: Int64s,
        end: Int64s,
        to_shared: npt.NDArray[np.bool_],
        found: tuple[Int64s, Int64s] | None = None,
    ) -> Int64s:
        """Conversions of pages [first, end), (n,) each, by these tasks: what is held after each, int64 (n, kinds, nodes).

        They are only counted. ``found``: free pages of each zone and rotations of the task after each, if these change meanwhile.
        """
        tree = self.trees.get(inode, {}).get(STATE_TREE)
        if tree is None:  # of kernels that do not convert in place
            return np.tile(self.held, (len(tasks), 1, 1))
        assert isinstance(tree, StateTree)
        return self.follow_nodes(STATE_TREE, tree, tree.follow(first, end, to_shared), tasks, found)

    def follow_nodes(
        self, kind: int, tree: Tree, nodes: Int64s, tasks: list[Thread], found: tuple[Int64s, Int64s] | None = None
    ) -> Int64s:
        """A tree has ``nodes`` (n,) after each of n calls by these tasks: what is held after each, int64 (n, kinds, nodes)."""
        kept = self.system.rotations.copy()
        held = np.empty((len(nodes), *self.held.shape), np.int64)
        filled = 0
        for number in np.flatnonzero(np.diff(nodes, prepend=tree.nodes.sum())).tolist():
            held[filled:number] = self.held
            filled = number
            if found is not None:
                self.before, self.system.rotations[tasks[number].index] = (of[number] for of in found)
            self.resize(tasks[number], kind, tree, int(nodes[number]))
        held[filled:] = self.held
        self.before, self.system.rotations[:] = None, kept
        return held

    def _free_tree_nodes(self, kind: int, nodes: Int64s) -> None:
        slabs = self.slabs_of(kind)
        slabs.parts[slabs.kinds.index(kind)] -= nodes
        self._free_objects(slabs, nodes)
        self._count_slabs(slabs)

    def hold_objects_after(self, held: Int64s, slabs: Slabs, parts: Int64s) -> None:
        """Slabs have so many objects int64 (n, 2, nodes) after each of n calls: pages, in ``held`` int64 (n, kinds, nodes)."""
        held[:, list(slabs.kinds)] = slabs.held_along(self._zones().zone_node, self.system.nodes, parts)

    def slabs_of(self, kind: int) -> Slabs:
        """The cache of which the nodes of trees of a kind are objects."""
        return self.xarray if kind in self.xarray.kinds else self.maple

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

    # --------------------------------------------------------------------------------------- between two pages

    def steps_between_pages(self, task: Thread, walk: Walk | None, start: int, end: int) -> bool:
        """Whether tables move the rotation that places the pages: the task's own, of an interleave policy."""
        return (
            walk is not None and _rotates(task) and _length(walk.tables.missing(walk.base + start, walk.base + end)) > 0
        )

    def inserts(self, task: Thread, walk: Walk, pages: Int64s | range) -> tuple[Int64s, Int64s]:
        """What ``pages`` (n,), in the order of their touches, need before which of them: positions, and tables there.

        Positions int64 (m,) ascend. The second stage takes them from what its vCPU keeps ready, filled up before a fault.
        """
        where = [first for _, first in _absent_tables(walk, pages)]
        positions, counts = np.unique(np.concatenate(where), return_counts=True)
        if walk.kind != SECOND_STAGE:
            return positions.astype(np.int64), counts.astype(np.int64)
        ready = len(self.ready.get(self._vcpu(task), ()))
        out: list[tuple[int, int]] = []
        if self._vcpu(task) not in self.ready and len(pages):
            out.append((0, CACHE_OBJECTS))
            ready = CACHE_OBJECTS - 1
        elif ready < CACHE_LEAST and len(pages):  # the last fault of the call before took them
            out.append((0, CACHE_OBJECTS - ready))
            ready = CACHE_OBJECTS
        for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
            ready -= count
            if ready < CACHE_LEAST and position + 1 < len(pages):  # before the fault after this one
                out.append((position + 1, CACHE_OBJECTS - ready))
                ready = CACHE_OBJECTS
        table_ = np.array(out, np.int64).reshape(-1, 2)
        return table_[:, 0], table_[:, 1]

    def enter_inserted(self, task: Thread, walk: Walk, pages: Int64s | range, zones: Int64s) -> None:
        """Tables whose pages were placed between those of a file: ``zones`` int64 (m,) in the order of :meth:`inserts`."""
        at = 0
        if walk.kind == SECOND_STAGE:
            self._hold(READY, zones)
            self.roots += (
                zones[CACHE_OBJECTS - 1 : CACHE_OBJECTS].tolist() if self._vcpu(task) not in self.ready else []
            )
            if self._vcpu(task) not in self.ready:
                self.ready[self._vcpu(task)] = zones[: CACHE_OBJECTS - 1].tolist()
                at = CACHE_OBJECTS
        ready = self.ready.get(self._vcpu(task), [])
        parts = _absent_tables(walk, pages)
        level = np.repeat(np.arange(len(parts)), [len(first) for _, first in parts])
        order = np.lexsort((level, np.concatenate([first for _, first in parts])))
        taken = np.empty(len(order), np.int64)
        if walk.kind == SECOND_STAGE:
            at = _pop_ready(ready, zones, at, taken)
        else:
            taken[:] = zones[at : at + len(order)]
        zone_of = np.empty_like(taken)
        zone_of[order] = taken
        for number, (map_, (table, _)) in enumerate(zip(walk.tables.maps, parts, strict=True)):
            if len(table):
                map_.add_singles(table, zone_of[level == number])
        if walk.kind == SECOND_STAGE:
            if len(ready) < CACHE_LEAST and at < len(zones):
                ready += zones[at:].tolist()
            self._hold(READY, taken, -1)
            self._hold(SECOND_STAGE, taken)
        else:
            self._hold(PAGE_TABLES, zones)

    # ------------------------------------------------------------------------------------------------- the zones

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

    def _place(
        self, task: Thread, map_: FileMap, intervals: Int64s, step: int, kind: int, by_policy: bool = True
    ) -> bool:
        """Place one page for each index of ``intervals`` and enter it in ``map_``."""
        self._break_up()
        before = int(map_.progress[placement.ALLOCATIONS])
        zones = self._zones_now()
        free = zones.free.copy()
        count = _length([intervals])
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

    def _break_up(self) -> None:
        """Metadata come in 4 KiB pages, of which the zones have more than lie outside their blocks of huge memory."""
        if self.taking and self.zones is None:
            self.system.settle_blocks(broken_up=True)

    def _put_together(self) -> None:
        if self.taking and self.zones is None:
            self.system.settle_blocks()


def _absent_tables(walk: Walk, pages: Int64s | range) -> list[tuple[Int64s, Int64s]]:
    """Of each level the tables that ``pages`` need and that are not there, ascending, and which page needs each first."""
    out = []
    for shift, map_ in zip(walk.tables.shifts, walk.tables.maps, strict=True):
        table, first = _first_touches(walk.base, pages, shift)
        absent = map_.zone_of(table) < 0
        if walk.tables.first_free and shift == LEVELS[0]:
            absent &= table > 0
        out.append((table[absent], first[absent]))
    return out


def _first_touches(base: int, pages: Int64s | range, shift: int) -> tuple[Int64s, Int64s]:
    """Tables of 1 << ``shift`` pages that ``pages`` from ``base`` on need, ascending, and the position of the first of each."""
    if not isinstance(pages, range):
        table, position = np.unique((base + pages) >> shift, return_index=True)
        return table, position.astype(np.int64)
    low, high = base + min(pages[0], pages[-1]), base + max(pages[0], pages[-1])
    table = np.arange(low >> shift, (high >> shift) + 1)
    if pages.step > 0:
        return table, np.maximum(table << shift, low) - low
    return table, high - np.minimum(((table + 1) << shift) - 1, high)


def _pop_ready(ready: list[int], zones: Int64s, at: int, out: Int64s) -> int:
    """Tables from what a vCPU keeps, filled up from ``zones[at:]`` before a fault; where the rest begins."""
    done = 0
    while done < len(out):
        if len(ready) < CACHE_LEAST:
            batch = CACHE_OBJECTS - len(ready)
            ready += zones[at : at + batch].tolist()
            at += batch
        some = min(len(out) - done, len(ready) - CACHE_LEAST + 1)
        out[done : done + some] = ready[-1 : -some - 1 : -1]
        del ready[-some:]
        done += some
    return at


def _left_zones(system: HostState) -> placement.Zones:
    """What pools leave of each node, as one zone a node."""
    nodes = np.arange(system.nodes)
    lists = np.full((system.nodes, system.nodes + 1), -1, np.int64)
    lists[:, :-1] = np.where(system.fallback >= 0, system.fallback, -1)
    return placement.Zones(system.left_free.copy(), np.zeros((2, system.nodes), np.int64), nodes, lists)


def _lowest(order: int) -> int:
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


def _first_of(low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
    """Of intervals [low, high] (n,) which is the first to have which index: int64 (m,) intervals and indices, which ascend."""
    if (low == high).all():
        index, first = np.unique(low, return_index=True)
        return first.astype(np.int64), index
    interval, each = pages_of(low, high + 1)
    index, first = np.unique(each, return_index=True)
    return interval[first].astype(np.int64), index


def _outside(intervals: Int64s, end: int) -> Int64s:
    edges = np.concatenate(([0], intervals.ravel(), [end])).reshape(-1, 2)
    return edges[edges[:, 0] < edges[:, 1]]


def _rotates(task: Thread) -> bool:
    return task.policy is not None and task.policy.interleaves


def _split(intervals: Int64s, count: int, step: int) -> tuple[Int64s, Int64s]:
    """The first ``count`` members of sorted intervals in the order of ``step``, and the others."""
    ends = np.cumsum(intervals[:, 1] - intervals[:, 0])
    total = int(ends[-1]) if len(ends) else 0
    cut = count if step > 0 else total - count
    row = int(np.searchsorted(ends, cut, side="left")) if cut else -1
    below = intervals[: row + 1].copy()
    above = intervals[max(row, 0) :].copy()
    if row >= 0:
        at = int(intervals[row, 1]) - int(ends[row]) + cut
        below[-1, 1] = above[0, 0] = at
    above = above[above[:, 0] < above[:, 1]]
    return (below, above) if step > 0 else (above, below)


def _length(intervals: list[Int64s]) -> int:
    length = 0
    for one in intervals:
        if len(one) == 1:  # most often, and without a reduction
            length += int(one[0, 1] - one[0, 0])
        elif len(one):
            length += int((one[:, 1] - one[:, 0]).sum())
    return length


def _enter(map_: FileMap, intervals: Int64s, zones: Int64s, step: int) -> None:
    """Enter tables of ``intervals`` with their zones in the order of the touches."""
    if not len(zones):
        return
    if (zones == zones[0]).all():
        for low, high in intervals.tolist():
            map_.add_run(low, high, int(zones[0]))
        return
    at = 0
    for low, high in (intervals if step > 0 else intervals[::-1]).tolist():
        part = zones[at : at + high - low]
        map_.add_list(np.array([[low, high]], np.int64), (part if step > 0 else part[::-1]).astype(np.int16), low)
        at += high - low

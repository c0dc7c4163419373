"""Page tables of the host's mappings and of the guest's second stage: which are there, which a touch needs, where they come from.

``mm/memory.c: pte_alloc_one``, ``arch/x86/kvm/mmu/mmu.c: mmu_topup_memory_caches``, ``arch/x86/kvm/mmu/tdp_mmu.c:
tdp_mmu_map_handle_target_level``. Tables are those of x86-64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench import profiles
from workbench.engine.filemap import FileMap
from workbench.engine.kernel_pages import PAGE_TABLES, READY, SECOND_STAGE, KernelPages, length
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode, Thread
from workbench.intervals import Int64s, no_intervals, pages_of
from workbench.units import PAGE_ORDERS

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState

LEVELS = (27, 18, 9)
"""log2 of the 4 KiB pages below one table, the highest level first: 512 GiB, 1 GiB and 2 MiB."""
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
        shift = self.shifts[-1]  # these hang on others
        return self.maps[-1].is_known(start >> shift, ((end - 1) >> shift) + 1)

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


class PageTables(KernelPages):
    """The tables of all mappings and machines, and what vCPUs keep ready."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system)
        self.mapped: dict[Mapping, Tables] = {}
        self.walks: dict[Inode, Walk] = {}
        """Of the guest, through the tables of the machine that is there."""
        self.next_base = 0
        self.second: list[Tables] = []
        self.ready: dict[str, list[int]] = {}
        """Zones of the pages that each vCPU keeps for tables to come, the next one last."""
        self.roots: list[int] = []
        """Zones of the roots, and of what vCPUs of machines before had kept."""
        self.new_machine()

    # ------------------------------------------------------------------------------------------------------- who walks

    def new_machine(self) -> None:
        """KVM_CREATE_VM: tables of its own; those of a machine before live on with its files."""
        self.second.append(Tables(LEVELS))
        self.roots += [zone for kept in self.ready.values() for zone in kept]  # until the process ends
        self.walks.clear()
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
        walk = self.walks.get(inode)
        if walk is None:
            # A leaf is as large as the file's pages, where its kind of VM can map them so.
            largest = profiles.VM_TYPES[self.system.scenario.guest.vm_type].largest_leaf
            tables = self.second[-1].above(min(inode.order, PAGE_ORDERS[largest]))
            walk = self.walks[inode] = Walk(tables, SECOND_STAGE, self.next_base)
            self.next_base += -(-inode.pages >> 9) << 9
        return walk

    # --------------------------------------------------------------------------------------------------- what is taken

    def kept_ready(self, task: Thread, walk: Walk | None) -> int | None:
        """How many tables to come the vCPU keeps; None: the walk is the host's."""
        if walk is None or walk.kind != SECOND_STAGE:
            return None
        return len(self.ready.get(self._vcpu(task), ()))

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
        whole = (length(missing) - (len(ready) - CACHE_LEAST + 1)) // batch - 1
        if whole > 0 and not _rotates(task):
            # Pages that all come in one order need no list: whole batches go to their tables as they are handed out.
            direct = whole * batch
            for level in range(len(missing) - 1, -1, -1):
                if not direct:
                    break
                count = length([missing[level]])
                missing[level], others = _split(missing[level], max(0, count - direct), step)
                direct -= length([others])
                if len(others) and not self._place(task, walk.tables.maps[level], others, step, SECOND_STAGE):
                    return False
        popped = self._take_ready(task, length(missing))
        if popped is None:
            return False
        at = 0
        for map_, intervals in zip(walk.tables.maps, missing, strict=True):
            count = length([intervals])
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

    # -------------------------------------------------------------------------------------------------- of many faults

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

    def first_to_need(self, walk: Walk, rows: Int64s, tasks: list[Thread]) -> list[int]:
        """Which faults, rows int64 (n, 4) as :meth:`count_faults` has them, find a table missing, or nothing kept ready."""
        return sorted(self._need_tables(walk, rows, tasks))

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

    # ----------------------------------------------------------------------------------------------- between two pages

    def steps_between_pages(self, task: Thread, walk: Walk | None, start: int, end: int) -> bool:
        """Whether tables move the rotation that places the pages: the task's own, of an interleave policy."""
        return (
            walk is not None and _rotates(task) and length(walk.tables.missing(walk.base + start, walk.base + end)) > 0
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

    # ---------------------------------------------------------------------------------------------- what is given back

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


def _first_of(low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
    """Of intervals [low, high] (n,) which is the first to have which index: int64 (m,) intervals and indices, which ascend."""
    if (low == high).all():
        index, first = np.unique(low, return_index=True)
        return first.astype(np.int64), index
    interval, each = pages_of(low, high + 1)
    index, first = np.unique(each, return_index=True)
    return interval[first].astype(np.int64), index


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


def _enter(map_: FileMap, intervals: Int64s, zones: Int64s, step: int) -> None:
    """Enter tables of ``intervals`` with their zones in the order of the touches."""
    if not len(zones):
        return
    if len(zones) == 1 or (zones == zones[0]).all():
        for low, high in intervals.tolist():
            map_.add_run(low, high, int(zones[0]))
        return
    at = 0
    for low, high in (intervals if step > 0 else intervals[::-1]).tolist():
        part = zones[at : at + high - low]
        map_.add_list(np.array([[low, high]], np.int64), (part if step > 0 else part[::-1]).astype(np.int16), low)
        at += high - low

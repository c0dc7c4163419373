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

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workbench.engine.filemap import FileMap
from workbench.engine.kernel_pages import (
    ATTRIBUTES,
    NODES_IN_SLAB,
    PAGE_CACHE,
    PAMT,
    SECOND_STAGE,
    SLAB_PAGES,
    VMEMMAP,
    length,
)
from workbench.engine.maple_nodes import MapleNodes
from workbench.engine.objects import Inode, Thread
from workbench.engine.page_tables import CACHE_LEAST, CACHE_OBJECTS, LEVELS, Walk
from workbench.engine.policy_request import policy_nodemask
from workbench.engine.slabs import last_of
from workbench.engine.xarray_nodes import XA_CHUNK_SHIFT, lowest_shift
from workbench.intervals import Int64s

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState

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


class Metadata(MapleNodes):
    """What one host holds beside the pages of files."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system)
        self.pamt = np.zeros(self.xarray.zones.shape, np.int64)
        """PAMT pages for the memory of each node, by the zone they come from, int64 (nodes, zones)."""
        self._pamt_settled = b""
        """For how many by node they were settled last, if all were found."""

    def need(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> tuple[int, int]:
        """No more than so many pages are taken for tables, and for slabs, when pages [start, end) are touched."""
        tables = 0
        if walk is not None:
            tables = length(walk.tables.missing(walk.base + start, walk.base + end))
            if walk.kind == SECOND_STAGE and tables + CACHE_LEAST > len(self.ready.get(self._vcpu(task), ())):
                tables += CACHE_OBJECTS + 1
        objects = length(self._missing_nodes(inode, start, end))
        return tables, (-(-objects // NODES_IN_SLAB) + 1) * SLAB_PAGES * (objects > 0)

    def prospect(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> Prospect:
        """What :meth:`need` says of parts of pages [start, end) of a file of 4 KiB pages, with one look at what is there."""
        tables: list[_Level] = []
        if walk is not None:
            missing = walk.tables.missing(walk.base + start, walk.base + end)
            tables = [(shift, walk.base, one.tolist()) for shift, one in zip(walk.tables.shifts, missing, strict=True)]
        nodes: list[_Level] = [
            (lowest_shift(0) + XA_CHUNK_SHIFT * level, 0, one.tolist())
            for level, one in enumerate(self._missing_nodes(inode, start, end))
        ]
        return Prospect(tables, nodes, self.kept_ready(task, walk))

    def known(self, task: Thread, inode: Inode, walk: Walk | None, start: int, end: int) -> bool:
        """Whether pages [start, end) were found to need neither tables nor nodes; False says nothing."""
        if walk is not None and (
            not walk.tables.known(walk.base + start, walk.base + end)
            or (walk.kind == SECOND_STAGE and self._vcpu(task) not in self.ready)
        ):
            return False
        return self._nodes_known(inode, start, end)

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

    def settle(self, task: Thread, vmemmap: Int64s | None, pamt: Int64s | None = None) -> bool:
        """What follows from the state after a call: attributes of the VM, struct pages that splits brought back.

        ``pamt``: PAMT pages of a TDX guest by node.
        """
        complete = True
        having, changed = self.system.attributed, self.system.changed
        for inode in having if changed is None or not having else changed:
            if inode in having and inode.attributes is not None:
                for part in inode.attributes.take_changed(inode.pages):
                    complete &= self._settle_attributes(task, inode, inode.attributes, *part)
        if vmemmap is not None:
            self.held[VMEMMAP] = vmemmap
        if pamt is not None:
            complete &= self._settle_pamt(task, pamt)
        if self.light or self.in_place:
            complete &= self._settle_trees(task)
        self._share_left()
        return complete

    def _settle_pamt(self, task: Thread, pamt: Int64s) -> bool:
        """So many PAMT pages are for memory of each node, int64 (nodes,): from that node, or where its zonelist leads."""
        if not self.taking:
            self.held[PAMT] = pamt
            return True
        if pamt.tobytes() == self._pamt_settled:
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
        self._pamt_settled = pamt.tobytes() if complete else b""
        return complete

    def forget(self, inode: Inode) -> None:
        """The inode died."""
        for kind, trees in ((PAGE_CACHE, self.caches), (ATTRIBUTES, self.attribute_nodes)):
            maps = trees.pop(inode, None)
            if maps:
                self._free_nodes(kind, maps, lowest_shift(inode.order), 0, 1 << 52, None)
        for kind, tree in self.trees.pop(inode, {}).items():
            self._free_tree_nodes(kind, tree.nodes)

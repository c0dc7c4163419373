"""The state of a simulated Linux host: zones and pools, tasks, open files, and how folios are placed in memory.

Zones come from the host's nodes (``mm/mm_init.c``, :mod:`workbench.topology.zones`), fallback orders from
``mm/page_alloc.c: build_zonelists``, pools of huge pages from ``mm/hugetlb.c``. Which zone backs a folio is decided by
:mod:`workbench.kernels.placement`; what system calls do with it is in the modules that :mod:`workbench.engine.calls` lists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.design import DESIGNS
from workbench.engine.attributes import Attributes
from workbench.engine.filemap import FileMap
from workbench.engine.mappings import Mapping
from workbench.engine.metadata import Metadata, Prospect, Walk
from workbench.engine.objects import Inode, OpenFile, Thread
from workbench.engine.pfns import FreePfns
from workbench.engine.policy_request import mask_of, policy_nodemask
from workbench.engine.zone_blocks import ZoneBlocks
from workbench.errors import Cancelled, WorkbenchError
from workbench.intervals import Int64s, in_intervals, intervals_add, intervals_minus, no_intervals
from workbench.kernels import fault_order, mempolicy, placement, zonelist
from workbench.limits import LISTED_PAGES
from workbench.topology.host import Host
from workbench.topology.kho_scratch import scratch_pages
from workbench.topology.zones import LOWMEM_BYTES, STRUCT_PAGE_SHARE, default_zones
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.generations import GENERATIONS
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes

Turns = Iterator[tuple[Int64s, Int64s]]
"""Chunks of indices in the order they are touched, and the row of the task that touches each."""
_LISTED_BYTES = 24  # of arrays for each page listed: its index in the order, in the chunk that is kept, its zone
_LIST_CHUNK = 1 << 22  # pages placed one by one between two looks at the clock
_FEW = 4096  # pages that show how fast zones fall
_NEARBY = 0.9  # of the way to a mark, from where its distance is seen exactly
_INSERTED = 1 << 60  # "page" of a table that is placed between two pages of a file
_FAR = 1 << 52  # pages: beyond any file
_TOGETHER = 64  # pages placed before the slabs they need, where a zone reaches a mark
_LOOKED_UP = 1 << 18  # entries of zonelists that are looked at to see where a rotation goes
_LOOKS = 4  # at what pages need beside themselves: each comes a few hundred times closer to a mark
_LARGEST_WEIGHT = 255
_NO_POLICY: list[mp.Mempolicy | None] = [None]
_SMALL, _REMEMBERED = 16, 256  # rows of request tables that are remembered, and how many tables are


Row = tuple[int, int, int, np.ndarray, np.ndarray]
"""What a request asks: kind, start node, passes, nodes, filters (:class:`workbench.kernels.placement.Requests`)."""


class OutOfMemory(Exception):
    """No eligible zone gives a page: the OOM killer ends the process (4 KiB pages)."""


class _Layout(NamedTuple):
    """What a boot makes of a host: zones (zones,), marks (3, zones), nodes (nodes,), the fallback order (nodes, nodes)."""

    zone_node: Int64s
    zone_type: Int64s
    managed: Int64s
    free: Int64s
    watermarks: Int64s
    reserve: Int64s
    start_pfn: Int64s
    cma: Int64s
    highatomic: Int64s
    has_memory: np.ndarray
    has_normal_memory: np.ndarray
    fallback: Int64s
    labels: list[str]
    n_memory: int
    zonelists: dict[str, Int64s]


class _Course(NamedTuple):
    """What a file's pages ask for on a stretch, and what its tables and slabs ask for."""

    requests: placement.Requests
    row: int
    nodes: Int64s
    """Where the pages' requests begin, in turns if they rotate, with ``weights``."""
    weights: Int64s
    beside: tuple[placement.Requests, ...]
    prospect: Prospect
    """What the stretch lacked when it began: of a part that comes later no less than what it lacks then."""


class _Steady(NamedTuple):
    """Where a file's pages and what they need beside themselves come from while no zone reaches a mark."""

    pages: dict[int, int]
    """Of each zone the pages that one turn of the file's policy takes; one without a rotation."""
    tables: int
    slabs: int


class _Same:
    """A host as a key: two are equal if they are the same object, for comparing all of two hosts takes longer than a run."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __hash__(self) -> int:
        return id(self.host)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.host is self.host


@functools.lru_cache(maxsize=64)
def _layout(same: _Same, lowmem: int, transparent_hugepages: bool, hotplug: bool, kho: bool) -> _Layout:
    """The same for every run on a host that boots in the same way; kept because many short runs share a host."""
    host = same.host
    nodes = len(host.nodes)
    table = default_zones(host, lowmem, transparent_hugepages)
    zone_node, zone_type = table.zone_node.astype(np.int64), table.zone_type.astype(np.int64)
    managed = table.managed.astype(np.int64)
    has_memory, has_normal_memory = np.zeros(nodes, bool), np.zeros(nodes, bool)
    has_memory[zone_node[managed > 0]] = True
    has_normal_memory[zone_node[(managed > 0) & (zone_type <= zonelist.ZONE_NORMAL)]] = True
    if not has_normal_memory.any():
        raise WorkbenchError("host.nodes: no node has memory that the kernel can use")
    penalised = np.zeros(nodes, bool)
    if hotplug:
        penalised[:] = [bool(node.cpus) for node in host.nodes]
    order, load = np.empty((nodes, nodes), np.int64), np.empty(nodes, np.int64)
    zonelist.fallback_order(np.asarray(host.distance_matrix, np.int64), has_memory, penalised, load, order)
    cma = table.free_cma.astype(np.int64)
    if kho and not cma.any():
        cma = np.minimum(scratch_pages(zone_node, table.start_pfn, managed, nodes), table.free)
    watermarks = np.stack((table.min, table.low, table.high)).astype(np.int64)
    labels = [
        f"{host.nodes[node].id}/{('DMA', 'DMA32', 'Normal', 'Movable')[kind]}"
        for node, kind in zip(zone_node, zone_type, strict=True)
    ]
    lists = {
        "guest_memfd": _zonelists(order, zone_node, zone_type, managed, zonelist.ZONE_NORMAL),
        "memfd": _zonelists(order, zone_node, zone_type, managed, zonelist.ZONE_MOVABLE),
    }
    n_memory = mp.nodemask(host.nodes[node].id for node in np.flatnonzero(has_memory))
    return _Layout(
        zone_node, zone_type, managed, table.free.astype(np.int64), watermarks,
        table.lowmem_reserve_normal.astype(np.int64), table.start_pfn, cma, table.highatomic, has_memory, has_normal_memory,
        order, labels, n_memory, lists,
    )  # fmt: skip


def _zonelists(fallback: Int64s, zone_node: Int64s, zone_type: Int64s, managed: Int64s, highest: int) -> Int64s:
    nodes, zones = len(fallback), len(managed)
    out = np.empty((nodes, zones + 1), np.int64)
    end, listed = np.empty(nodes + 1, np.int64), np.empty(zones, np.int64)
    zonelist.zonelists(fallback, zone_node, zone_type, managed, highest, end, listed, out)
    return out


class HostState:
    """The host while a scenario runs."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.scenario = scenario
        self.host = scenario.host
        self.cancelled = cancelled
        self.node_ids = np.asarray(self.host.node_ids, np.int64)
        if (np.diff(self.node_ids) <= 0).any():
            raise WorkbenchError("host.nodes: must be in ascending order of id")
        self.index_of_node = {int(node): index for index, node in enumerate(self.node_ids)}
        self.nodes = len(self.node_ids)
        self.order = PAGE_ORDERS[scenario.guest.page_size]
        self.design = DESIGNS[scenario.guest.design]
        self.rules = GENERATIONS[scenario.generation]
        self.hugetlb = self.order > 0 and self.design.pool == "hugetlb"
        self.blocks: ZoneBlocks | None = None
        self._pools_of_host = False
        self._marks: tuple[Int64s, Int64s, Int64s, Int64s] | None = None
        self._init_zones()
        self._init_weights()
        self._init_tasks()
        self._asked: dict[tuple[Any, ...], tuple[placement.Requests, Int64s]] = {}
        self._scratch = (
            np.empty(_LARGEST_WEIGHT * self.nodes + 256, np.int64), np.empty(self.nodes, np.int64),
            np.empty(len(self.free), np.int64),
        )  # fmt: skip
        self._piece = np.empty((1, 4), np.int64)
        self._has_cma = bool(self.all_cma.any())
        self._turns_and_zones: dict[str, tuple[placement.Interleaving, placement.Zones]] = {}
        self.files: dict[str, OpenFile] = {}
        self.guest_memfds: dict[Inode, None] = {}
        """Those that have a name, in the order in which they got their first."""
        self.changed: dict[Inode, None] | None = {}
        """Inodes that calls since the last event may have changed; None: nobody knows which."""
        self.attributed: dict[Inode, None] = {}
        """Inodes that have a name and attributes of the VM, in the order in which they got these."""
        self.placed = np.zeros(len(self.free), np.int64)
        pools = self.nodes if self.order else 0
        self.zone_page_size = np.where(np.arange(len(self.free)) < pools, PAGE_SIZE << self.order, PAGE_SIZE)
        kexec = self.order == 0 and sc.Kexec in scenario.kinds
        if scenario.pfns and self.order and self._needs_zones():
            raise WorkbenchError("pfns: true cannot be used with huge pages beside 4 KiB pages (fallback, tmpfs files)")
        self.free_pfns = FreePfns(self.start_pfn, self.free) if scenario.pfns or kexec else None
        self.metadata = Metadata(self) if scenario.metadata != "off" else None

    # ------------------------------------------------------------------------------------------------- set-up

    def _init_zones(self) -> None:
        boot = self.scenario.boot
        lowmem = LOWMEM_BYTES if boot.lowmem is None else boot.lowmem
        layout = _layout(_Same(self.host), lowmem, boot.transparent_hugepages, boot.zonelists == "hotplug", boot.kho)
        # What a run changes is its own; the rest is shared with other runs on this host.
        self.zone_node, self.zone_type, self.managed = layout[:3]
        self.free, self.watermarks, self.reserve, self.start_pfn, self.cma = (a.copy() for a in layout[3:8])
        self.highatomic, self.has_memory, self.has_normal_memory, self.fallback = layout[8:12]
        self.zone_labels, self.n_memory, self.zonelists = layout[12:]
        self.all_cma = self.cma.copy()
        """CMA pages of each zone when none is in use; ``cma`` are those free now."""
        self.mems_allowed = self.n_memory
        self.cpusets_enabled = False
        left = np.bincount(self.zone_node, np.maximum(self.free - self.watermarks[0], 0), self.nodes).astype(np.int64)
        if self.order and self.design.from_zones:
            self._init_blocks()
        elif self.order:
            left -= self._init_pools()
        self.left_free = np.maximum(left, 0)
        """int64 (nodes,), 4 KiB pages that pools leave above the min watermark."""

    def _host_pools(self) -> Int64s | None:
        """Free huge pages of the guest's size in the pools that the host has now; None if it says nothing of pools."""
        if not self.hugetlb or not any(node.hugetlb for node in self.host.nodes):
            return None
        size = PAGE_SIZE << self.order
        return np.array(
            [sum(pool.free for pool in node.hugetlb if pool.page_bytes == size) for node in self.host.nodes], np.int64
        )

    def _pool_pages(self) -> Int64s:
        """Huge pages of the guest's size in the pool of each node (mm/hugetlb.c keeps a free list for each node).

        Without a stated pool each node keeps 1/16 of its free memory for the kernel and gives the rest. 1 GiB pages are
        whole aligned ranges of one zone (:meth:`_gigantic_ranges`).
        """
        size = PAGE_SIZE << self.order
        free = np.bincount(self.zone_node, self.free, self.nodes).astype(np.int64)
        stated = self.scenario.boot.hugetlb_pages
        ranges = self._gigantic_ranges() if self.hugetlb and self.order == PAGE_ORDERS["1 GiB"] else None
        if stated is None:
            pages = (free - free // 16) * PAGE_SIZE // size
            return pages if ranges is None else np.minimum(pages, ranges)
        for node, count in stated.items():
            if node not in self.index_of_node or count < 0:
                raise WorkbenchError(f"boot.hugetlb_pages: {node}: {count} is not a page count of a node of this host")
            if count * (size // PAGE_SIZE) > free[self.index_of_node[node]]:
                raise WorkbenchError(
                    f"boot.hugetlb_pages: {count} pages of {self.scenario.guest.page_size} do not fit the "
                    f"{format_bytes(int(free[self.index_of_node[node]]) * PAGE_SIZE)} free on node {node}"
                )
            if ranges is not None and count > ranges[self.index_of_node[node]]:
                movable = "" if self.scenario.boot.movable_gigantic_pages else " outside of ZONE_MOVABLE"
                raise WorkbenchError(
                    f"boot.hugetlb_pages: {count} pages of 1 GiB on node {node}; its zones{movable} hold "
                    f"{ranges[self.index_of_node[node]]} aligned ranges of that size"
                )
        return np.array([stated.get(int(node), 0) for node in self.node_ids], np.int64)

    def _gigantic_ranges(self) -> Int64s:
        """Aligned 1 GiB ranges that lie in one zone of each node, int64 (nodes,).

        mm/page_alloc.c: alloc_contig_frozen_pages; without vm.movable_gigantic_pages not in ZONE_MOVABLE
        (include/linux/hugetlb.h: hugepage_movable_supported). Zones are as long as their memory with its struct pages.
        """
        ranges = self._aligned_ranges()
        if not self.scenario.boot.movable_gigantic_pages:
            ranges[self.zone_type == zonelist.ZONE_MOVABLE] = 0
        return np.bincount(self.zone_node, ranges, self.nodes).astype(np.int64)

    def _aligned_ranges(self) -> Int64s:
        """Ranges of the guest's page size that lie in each zone, int64 (zones,), free or not."""
        pages = 1 << self.order
        present = self.managed + self.managed // (STRUCT_PAGE_SHARE - 1)
        ranges: Int64s = np.maximum((self.start_pfn + present) // pages - -(-self.start_pfn // pages), 0)
        return ranges

    def _init_blocks(self) -> None:
        """Huge memory without a pool: what the zones can give in blocks of the guest's size stands where pools do."""
        ranges = self._aligned_ranges()
        movable = self._huge_pages_move()
        self.blocks = ZoneBlocks.of(
            self.host, self.zone_node, self.zone_type, self.marks(movable), ranges, self.order, movable
        )
        low, lowest = self.blocks.within(self.free)
        pages, above = (np.bincount(self.zone_node, n, self.nodes).astype(np.int64) for n in (lowest, lowest - low))
        self._put_pools_first(pages, self.free, keep=True)
        self.free[: self.nodes] = 0
        marks = self.watermarks.copy()
        marks[1:, : self.nodes] = above
        self.watermarks = marks
        self.blocks.settle(self.free)

    def _init_pools(self) -> Int64s:
        """Pools of huge pages, one per node, become the first zones; 4 KiB zones follow only where they are wanted.

        Returns the 4 KiB pages that they take of each node's free memory, int64 (nodes,): none where the host says
        what is free beside its own pools, as MemFree does.
        """
        found = self._host_pools() if self.scenario.boot.hugetlb_pages is None else None
        self._pools_of_host = found is not None
        pages = self._pool_pages() if found is None else found
        taken = pages << self.order
        if found is not None:
            taken[[node.free_bytes is not None or node.zones is not None for node in self.host.nodes]] = 0
        self._put_pools_first(pages, _left_by(taken, self.zone_node, self.free), keep=self._needs_zones())
        return taken

    def _put_pools_first(self, pages: Int64s, left: Int64s, keep: bool) -> None:
        """Pools of so many huge pages, one per node, before the zones, of which ``left`` is free and which stay if wanted."""
        old = (
            self.zone_node, self.zone_type, self.managed, left, self.reserve, self.start_pfn, self.cma, self.highatomic
        )  # fmt: skip
        nothing = np.zeros(self.nodes, np.int64)
        first = nothing.copy()
        for zone in range(len(self.zone_node) - 1, -1, -1):
            first[self.zone_node[zone]] = self.start_pfn[zone]
        new = (np.arange(self.nodes), nothing + zonelist.ZONE_NORMAL, pages, pages, nothing, -(-first >> self.order),
               nothing, nothing)  # fmt: skip
        labels = [f"{node}/{self.design.pool}" for node in self.node_ids]
        shifted = {name: np.where(zones >= 0, zones + self.nodes, -1) for name, zones in self.zonelists.items()}
        self.zone_node, self.zone_type, self.managed, *_ = new
        pools = _zonelists(self.fallback, self.zone_node, self.zone_type, self.managed, zonelist.ZONE_NORMAL)
        self.zonelists = (shifted if keep else dict.fromkeys(shifted, pools)) | {"hugetlb": pools}
        kept = slice(None) if keep else slice(0)
        (
            self.zone_node, self.zone_type, self.managed, self.free, self.reserve, self.start_pfn, self.cma, self.highatomic
        ) = (np.concatenate((a, b[kept])).astype(np.int64) for a, b in zip(new, old, strict=True))  # fmt: skip
        self.all_cma = self.cma.copy()
        marks = np.zeros((3, self.nodes), np.int64)
        self.watermarks = np.concatenate((marks, self.watermarks[:, kept]), axis=1)
        self.zone_labels = labels + self.zone_labels[kept]

    def _needs_zones(self) -> bool:
        """Whether 4 KiB pages are wanted beside the pools: as a fallback, or for files that have no others."""
        return self.scenario.guest.small_pages or any(
            (isinstance(made, sc.Memfd) and not made.hugetlb) or (isinstance(made, sc.Create) and made.page_size)
            for made in self.scenario.operations
        )

    def _huge_pages_move(self) -> bool:
        """Whether all huge pages from the zones are of anonymous memory, which may come from CMA and ZONE_MOVABLE."""
        creates = [made for made in self.scenario.operations if isinstance(made, sc.Create)]
        return not any(made.page_size is None for made in creates) and any(
            isinstance(made, sc.Memfd) and made.anonymous for made in self.scenario.operations
        )

    def _init_weights(self) -> None:
        """Interleave weights at boot: up to 6.15 all 1, from 6.16 on by the bandwidths that firmware tells.

        mm/mempolicy.c: mempolicy_set_node_perf, reduce_interleave_weights.
        """
        bandwidth = np.zeros(self.nodes, np.int64)
        for access in self.host.access:
            if access.read_bandwidth is None or access.write_bandwidth is None:
                continue
            target = self.index_of_node[access.target]
            best = min(access.read_bandwidth, access.write_bandwidth)
            bandwidth[target] = max(bandwidth[target], int(best))
        self.boot_weights = np.ones(self.nodes, np.int64)
        if bandwidth.any() and self.scenario.kernel.auto_weights:
            mempolicy.auto_weights(bandwidth, self.has_memory, self.boot_weights)
        for index, of_host in enumerate(self.host.nodes):
            if of_host.weight is not None:
                self.boot_weights[index] = of_host.weight
        for node, weight in (self.scenario.boot.weights or {}).items():
            if node not in self.index_of_node or not 1 <= weight <= 255:
                raise WorkbenchError(f"boot.weights: {node}: {weight}; weights are 1 to 255 for nodes of the host")
            self.boot_weights[self.index_of_node[node]] = weight
        self.weights = self.boot_weights.copy()
        self.firmware_weights = self.boot_weights if bandwidth.any() or self.scenario.boot.weights else None
        """What the bandwidths say (those stated for the boot are taken to come from them); None: nobody tells them."""

    def _init_tasks(self) -> None:
        tasks = list(self.scenario.tasks)
        vcpus = self.scenario.guest.vcpus
        if not vcpus:
            with_cpus = [node.id for node in self.host.nodes if node.cpus] or [self.host.nodes[0].id]
            vcpus = (sc.Vcpu(node=with_cpus[0]),)
        if not tasks:
            tasks = [sc.Task(name="vmm", cpu=vcpus[0].cpu, node=vcpus[0].node)]
        names = {task.name for task in tasks}
        tasks += [
            sc.Task(name=f"vcpu{i}", cpu=vcpu.cpu, node=vcpu.node)
            for i, vcpu in enumerate(vcpus)
            if f"vcpu{i}" not in names
        ]
        self.vcpus = [f"vcpu{i}" for i in range(len(vcpus))]
        self.tasks = {task.name: Thread(task.name, index, self._nid(task)) for index, task in enumerate(tasks)}
        self.first_nid = {name: task.nid for name, task in self.tasks.items()}
        self.rotations = np.empty((len(tasks), 2), np.int64)
        for index, task in enumerate(tasks):
            self.rotations[index] = (self._rotation_index(task.il_prev), task.il_weight)

    def _nid(self, place: sc.Task) -> int:
        if place.cpu is not None:
            return self.index_of_node[self.host.node_of_cpu(place.cpu)]
        return self.index_of_node[place.node] if place.node is not None else 0

    def _rotation_index(self, il_prev: int) -> int:
        """Index such that the next set bit after it is the next node id after ``il_prev``."""
        return (int(np.searchsorted(self.node_ids, il_prev, side="right")) - 1) % self.nodes

    # ----------------------------------------------------------------------------------------------- look-ups

    def task(self, operation: sc.Operation) -> Thread:
        """The thread that makes a call."""
        if operation.task is None:
            return next(iter(self.tasks.values()))
        if operation.task not in self.tasks:
            names = ", ".join(list(self.tasks)[:8])
            raise WorkbenchError(f"operations.task: {operation.task!r} is not a task of this scenario ({names}, ...)")
        return self.tasks[operation.task]

    def inodes(self) -> list[Inode]:
        """Every inode that has a name, once."""
        return list(dict.fromkeys(file.inode for file in self.files.values()))

    def has_changed(self, inode: Inode) -> None:
        """Note that something of a file changes which the call at hand may not have named."""
        if self.changed is not None:
            self.changed[inode] = None

    def give_attributes(self, inode: Inode, states: Attributes) -> None:
        """From now on the VM's attributes say what of the file is private."""
        inode.attributes = states
        self.attributed[inode] = None

    def loses_a_name(self, inode: Inode) -> None:
        """A name of the scenario that meant this file means another, or none."""
        inode.names -= 1
        if not inode.names:
            self.attributed.pop(inode, None)
            self.guest_memfds.pop(inode, None)

    @staticmethod
    def pages(operation: Any, pages: int) -> tuple[int, int]:
        """First page and end of an operation's range, in whole 4 KiB pages of the file."""
        first = operation.offset // PAGE_SIZE
        if operation.length is None:
            return first, max(first, pages)
        return first, first + -(-operation.length // PAGE_SIZE)

    def mask(self, mask: int) -> np.ndarray:
        """A bitmask of node ids as bool (nodes,)."""
        return mask_of(mask, self.node_ids)

    # ---------------------------------------------------------------------------------------------- placement

    def touch(
        self,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None = None,
        walk: Walk | None = None,
    ) -> bool:
        """Make pages ``[start, end)`` present, as ``task``, in the operation's order. False: no huge page is left.

        virt/kvm/guest_memfd.c: kvm_gmem_get_folio: a present folio is found and nothing else happens; for an absent one
        the shared policy at its index, or the task's, decides. ``walk``: the page tables through which they are reached.
        """
        metadata = self.metadata
        if metadata is None or end <= start:
            return self._touch(task, inode, start, end, operation)
        light, first, last = metadata.light_map(inode), start >> inode.order, -(-end >> inode.order)
        if light is None or inode.map.is_known(first, last):
            return self._touch_and_count(metadata, task, inode, start, end, operation, walk)
        before = light.before(first, last)
        try:
            return self._touch_and_count(metadata, task, inode, start, end, operation, walk)
        finally:
            light.after(first, last, before)

    def _touch_and_count(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None,
        walk: Walk | None,
    ) -> bool:
        if metadata.taking and inode.order == 0 and inode.tracked is None:
            # Page tables of a tmpfs file keep to other marks and zones than its pages; these come in halves as well.
            self._touch_taking(metadata, task, inode, start, end, operation, walk)
            return True
        if metadata.known(task, inode, walk, start, end):
            return self._touch(task, inode, start, end, operation)
        metadata.before = self.free_of_small()
        complete = self._touch(task, inode, start, end, operation)
        step = -1 if operation is not None and operation.order == "reverse" else 1
        parts = [(start, end)] if complete else self._present(inode, start, end)
        for low, high in parts:
            if not metadata.enter_tables(task, walk, low, high, step) or not metadata.enter_nodes(
                task, inode, low, high
            ):
                raise OutOfMemory
        metadata.before = None
        return complete

    @staticmethod
    def _present(inode: Inode, start: int, end: int) -> list[tuple[int, int]]:
        """4 KiB pages of [start, end) that huge folios back."""
        order = inode.order
        cut = inode.map.cut(start >> order, -(-end >> order)).tolist()
        return [(max(start, low << order), min(end, (low + count) << order)) for low, count, _ in cut]

    def _touch(self, task: Thread, inode: Inode, start: int, end: int, operation: sc.Fault | None) -> bool:
        first, last = start >> inode.order, -(-end >> inode.order) if inode.order else end
        holes = self._holes(inode, first, last)
        order = operation.order if operation is not None else "sequential"
        complete = True
        if last - first == 1 and len(holes) and self._plain(inode) and order in ("sequential", "reverse"):
            return self._place_one(task, inode, first, -1 if order == "reverse" else 1)
        if len(holes) and order in ("sequential", "reverse"):
            complete = self._place_all(task, inode, holes, -1 if order == "reverse" else 1, (start, end))
        elif len(holes):
            assert operation is not None
            complete = self._place_list(inode, holes, self._listed(task, operation, first, last, holes))
        return complete if inode.small is None else self._touch_small(task, inode, start, end, operation)

    # ..................................................................................... pages and their metadata

    def _touch_taking(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None,
        walk: Walk | None,
    ) -> None:
        """:meth:`touch` of 4 KiB pages where their metadata come from the same zones, in the kernel's order.

        Tables come before the page, nodes after it. As long as no zone reaches a mark and no table moves the rotation,
        the order makes no difference and all of a kind are taken at once; else the range is cut before the mark.
        """
        order = operation.order if operation is not None else "sequential"
        step = -1 if order == "reverse" else 1
        if order not in ("sequential", "reverse"):
            assert operation is not None
            self._touch_listed(metadata, task, inode, start, end, operation, walk)
            return
        if walk is not None and metadata.steps_between_pages(task, walk, start, end):
            self._place_between(metadata, task, inode, walk, range(start, end)[::step])
            self._need(metadata.enter_nodes(task, inode, start, end))
            return
        look = False
        course = self._course(metadata, task, inode, start, end, step, walk) if end - start > _TOGETHER else None
        while start < end:
            # A part that is less than all ends shortly before a mark: the next few pages reach it.
            look = not look
            few = min(end - start, _TOGETHER)
            if look:
                few = self._together(metadata, task, inode, start, end, step, walk, course)
            low, high = (start, start + few) if step > 0 else (end - few, end)
            start, end = (high, end) if step > 0 else (start, low)
            self._need(metadata.enter_tables(task, walk, low, high, step))
            holes = self._holes(inode, low, high)
            if len(holes):
                self._place_all(task, inode, holes, step, (low, high))
            self._need(metadata.enter_nodes(task, inode, low, high))

    @staticmethod
    def _need(found: bool) -> None:
        if not found:
            raise OutOfMemory

    def _undisturbed(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> bool:
        """Whether no zone reaches a mark while pages [start, end) and their metadata are placed, whatever comes first."""
        wanted = metadata.need(task, inode, walk, start, end)
        tables, slabs = wanted
        if not tables + slabs:
            return True
        marks = self.marks()
        above = self.free > marks
        most = end - start + tables + slabs
        if ((self.free - most > marks) == above)[:, above[1]].all():
            return True
        free = self._free_after(metadata, task, inode, start, end, step, walk, wanted)
        # Free memory only falls: marks that are not reached at the end were reached at no time before.
        return free is not None and bool(((free > marks) == above).all())

    def _free_after(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        step: int,
        walk: Walk | None,
        wanted: tuple[int, int] | None = None,
    ) -> Int64s | None:
        """Free pages of each zone once pages [start, end) and their metadata were placed; None if they cannot be."""
        free = self.free.copy()
        holes = self._holes(inode, start, end)
        if len(holes):
            ranges, policies = self.policy_ranges(inode, 0, holes, (start, end), step)
            pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, 0)
            turns, zones = self.turns_and_zones(inode, 0)
            turns = turns._replace(rotations=turns.rotations.copy())
            if not self.run_pieces(FileMap(), pieces, requests, turns, zones._replace(free=free)):
                return None
        tables, slabs = wanted or metadata.need(task, inode, walk, start, end)
        return free if metadata.fits(task, tables, slabs, free) else None

    def _together(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        step: int,
        walk: Walk | None,
        course: _Course | None,
    ) -> int:
        """Pages of [start, end), from where it begins, that are placed at once: up to shortly before a zone's next mark.

        What some pages take says how fast each zone falls; where it falls otherwise further on, the part is halved.
        """
        pages = end - start
        if pages <= _TOGETHER:
            return pages
        steady = None if course is None else self._steady_zones(inode, course)
        if steady is not None:
            assert course is not None
            prospect = course.prospect._replace(ready=metadata.kept_ready(task, walk))
            return self._together_steadily(prospect, start, end, step, steady)
        if self._undisturbed(metadata, task, inode, start, end, step, walk):
            return pages
        first = self._until_a_mark(metadata, task, inode, start, end, step, walk)
        while first > _TOGETHER:
            low, high = (start, start + first) if step > 0 else (end - first, end)
            if self._undisturbed(metadata, task, inode, low, high, step, walk):
                return first
            first >>= 1
        return _TOGETHER

    def _course(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> _Course | None:
        """What pages [start, end), their tables and their slabs ask for, if that is the same all the way.

        None: several policies are in force, some pages are there, or tables or slabs move a rotation.
        """
        holes = self._holes(inode, start, end)
        if inode.movable or self.blocks is not None or len(holes) != 1 or holes[0].tolist() != [start, end]:
            return None
        ranges, policies = self.policy_ranges(inode, 0, holes, (start, end), step)
        pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, 0)
        if len(pieces) > 1:
            return None
        row = int(pieces[0, 3])
        nodes, weights = requests.start[row : row + 1], np.ones(1, np.int64)
        if requests.kind[row] != placement.START:
            nodes = np.flatnonzero(requests.nodes[row])
            weights = self.weights[nodes] if requests.kind[row] == placement.WEIGHTED else np.ones_like(nodes)
        if not len(nodes) or len(nodes) * len(self.free) > _LOOKED_UP:
            return None
        beside = tuple(
            self.kernel_requests(task, by_policy) for by_policy in (True, self.scenario.kernel.slabs_by_policy)
        )
        if any(requests.kind[0] != placement.START for requests in beside):
            return None
        return _Course(requests, row, nodes, weights, beside, metadata.prospect(task, inode, walk, start, end))

    def _steady_zones(self, inode: Inode, course: _Course) -> _Steady | None:
        """Where it all comes from as long as no zone reaches a mark. None: nothing is left for one of the three."""
        zones = self.turns_and_zones(inode, 0)[1]
        pages: dict[int, int] = {}
        found = _zones_now(zones, course.requests, course.row, course.nodes).tolist()
        for zone, weight in zip(found, course.weights.tolist(), strict=True):
            pages[zone] = pages.get(zone, 0) + weight
        tables, slabs = (int(_zones_now(zones, asked, 0, asked.start)[0]) for asked in course.beside)
        return _Steady(pages, tables, slabs) if min(*pages, tables, slabs) >= 0 else None

    def _together_steadily(self, prospect: Prospect, start: int, end: int, step: int, steady: _Steady) -> int:
        """:meth:`_together` where it is known which zones pages, tables and slabs come from: what they leave is a sum."""
        marks, pages = self.marks(), end - start
        reached = np.where(self.free > marks, marks, np.iinfo(np.int64).min >> 1).max(axis=0)
        room = {zone: int(self.free[zone] - reached[zone]) - 1 for zone in (*steady.pages, steady.tables, steady.slabs)}
        turn = sum(steady.pages.values())
        few, best = min(pages, *(room[zone] // weight * turn for zone, weight in steady.pages.items())), 0
        for _ in range(_LOOKS):
            if few <= best:
                break
            low, high = (start, start + few) if step > 0 else (end - few, end)
            beside = dict.fromkeys(room, 0)
            for zone, count in zip((steady.tables, steady.slabs), prospect.need(low, high), strict=True):
                beside[zone] += count
            turns = -(-few // turn)
            if all(turns * steady.pages.get(zone, 0) + beside[zone] <= left for zone, left in room.items()):
                best = few
            fits = [(room[zone] - beside[zone]) // weight * turn for zone, weight in steady.pages.items()]
            fits += [few * room[zone] // n for zone, n in beside.items() if n and zone not in steady.pages]
            few = min(pages, *fits)
        return max(best, _TOGETHER)

    def _until_a_mark(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> int:
        """So many pages of [start, end), from where it begins, probably come before a zone reaches its next mark."""
        marks, pages = self.marks(), end - start
        above = self.free > marks
        reached = np.where(above, marks, np.iinfo(np.int64).min >> 1).max(axis=0)
        few, best = min(_FEW, pages >> 1), 0
        while few > best:
            low, high = (start, start + few) if step > 0 else (end - few, end)
            free = self._free_after(metadata, task, inode, low, high, step, walk)
            if free is None or ((free > marks) != above).any():  # too many
                if best or few <= _TOGETHER:
                    break
                few >>= 3
                continue
            falls = free < self.free
            left = ((free - reached)[falls] / (self.free - free)[falls]).min() * few if falls.any() else pages
            # Far from the mark few pages do not say it exactly: the second look is from nearby.
            near = left < few >> 3
            best, few = few, int(min(few + (left - _TOGETHER / 2 if near else left * _NEARBY), pages - 1))
            if near:
                return few
        return best

    def _touch_listed(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault,
        walk: Walk | None,
    ) -> None:
        """Pages in an order of their own: their tables come before them, their nodes when all are there."""
        holes = self._holes(inode, start, end)
        if walk is not None and metadata.steps_between_pages(task, walk, start, end):
            pages = start + self.touch_order(operation, end - start)
            self._list_between(metadata, task, inode, walk, pages)
        else:
            self._need(metadata.enter_tables(task, walk, start, end))
            if len(holes):
                self._place_list(inode, holes, self._listed(task, operation, start, end, holes))
        self._need(metadata.enter_nodes(task, inode, start, end))

    def _between(
        self, metadata: Metadata, task: Thread, inode: Inode, low: int, high: int
    ) -> tuple[placement.Requests, Int64s, Int64s, int]:
        """Requests of pages [low, high) of a file and, the last row, of tables; policy ranges, the row of each, that last row."""
        ranges, policies = self.policy_ranges(inode, 0, np.array([[low, high]]))
        rows, row_of = self._request_rows(inode, [task], policies, 0)
        rows.append((task.index, -1, metadata.request(task)))
        return self.request_table(rows), ranges, row_of[0], len(rows) - 1

    def _place_between(self, metadata: Metadata, task: Thread, inode: Inode, walk: Walk, pages: range) -> None:
        """Pages one after another, up or down, with the tables they need between them, one rotation for both.

        Pieces of pages and of tables follow one another as they are taken; the cost is that of the pieces.
        """
        low, high = min(pages[0], pages[-1]), max(pages[0], pages[-1]) + 1
        holes = self._holes(inode, low, high)
        requests, ranges, row_of, tables_row = self._between(metadata, task, inode, low, high)
        positions, counts = metadata.inserts(task, walk, pages)
        pieces = np.empty((len(counts), 4), np.int64)
        pieces[:, 0], pieces[:, 1] = _INSERTED + np.cumsum(counts) - counts, counts
        pieces[:, 2:] = 1, tables_row
        at = positions
        if len(holes):
            begin, end, which = _split_at(holes, ranges)
            first, last = (begin - low, end - low) if pages.step > 0 else (high - end, high - begin)
            order = np.argsort(first)
            first, last, asked = first[order], last[order], row_of[which[order]]
            cuts = np.unique(np.concatenate((first, last, positions)))
            part = np.searchsorted(first, cuts[:-1], side="right") - 1
            kept = (part >= 0) & (cuts[:-1] < last[part])
            starts, ends = cuts[:-1][kept], cuts[1:][kept]
            own = np.column_stack((pages[0] + pages.step * starts, ends - starts, np.full_like(starts, pages.step),
                                   asked[part[kept]]))  # fmt: skip
            pieces, at = np.concatenate((pieces, own)), np.concatenate((positions, starts))
        pieces = np.ascontiguousarray(pieces[np.argsort(at, kind="stable")])
        scratch, free = FileMap(), self.free.copy()
        self._need(self.run_pieces(scratch, pieces, requests, *self.turns_and_zones(inode, 0)))
        tables = scratch.take_rows_from(_INSERTED)
        before = int(inode.map.progress[placement.ALLOCATIONS])
        inode.map.add_rows_of(scratch)
        if self.free_pfns is not None and inode.pfns is not None:
            self.free_pfns.hand_out(inode.map, inode.pfns, before)
        self.placed += free - self.free - np.bincount(tables, minlength=len(free))
        metadata.enter_inserted(task, walk, pages, tables)

    def _list_between(self, metadata: Metadata, task: Thread, inode: Inode, walk: Walk, pages: Int64s) -> None:
        """:meth:`_place_between` of pages in an order of their own, one by one."""
        check_listed(len(pages), "placing pages and page tables of a task that interleaves")
        holes = self._holes(inode, int(pages.min()), int(pages.max()) + 1)
        requests, ranges, row_of, tables_row = self._between(
            metadata, task, inode, int(pages.min()), int(pages.max()) + 1
        )
        positions, counts = metadata.inserts(task, walk, pages)
        absent = in_intervals(pages, holes) if len(holes) else np.zeros(len(pages), bool)
        kept = np.flatnonzero(absent)
        at = np.concatenate((np.repeat(positions, counts), kept))
        asked = np.concatenate((np.full(int(counts.sum()), tables_row), row_of[_covering(pages[kept], ranges)]))
        listed = np.concatenate((np.full(int(counts.sum()), -1), pages[kept]))
        order = np.argsort(at, kind="stable")
        listed, asked = np.ascontiguousarray(listed[order]), np.ascontiguousarray(asked[order])
        out = np.full(len(listed), -1, np.int16)
        free = self.free.copy()
        turns, zones = self.turns_and_zones(inode, 0)
        cached = np.empty((len(requests.kind), self.nodes), np.int64)
        done = placement.place_list(listed, asked, requests, turns, zones, cached, out)
        self._need(done == len(listed))
        tables = listed < 0
        base = int(pages.min())
        found = np.full(int(pages.max()) + 1 - base, -1, np.int16)
        found[listed[~tables] - base] = out[~tables]
        before = int(inode.map.progress[placement.ALLOCATIONS])
        if len(kept):
            inode.map.add_list(holes, found, base)
        if self.free_pfns is not None and inode.pfns is not None:
            pfns = np.empty(len(found), np.int64)
            self.free_pfns.hand_out_list(out[~tables], listed[~tables], base, pfns)
            self._keep_listed(inode, before, base, pfns)
        metadata.enter_inserted(task, walk, pages, out[tables].astype(np.int64))
        self.placed += np.bincount(out[~tables], minlength=len(self.free))
        assert int((free - self.free).sum()) == len(listed)

    def host_walk(self, mapping: Mapping | None) -> Walk | None:
        """The page tables of a mapping, where they are kept."""
        return None if self.metadata is None else self.metadata.of_host(mapping)

    def enter_host_tables(self, task: Thread, mapping: Mapping, start: int, end: int) -> None:
        """The page tables that a mapping needs for pages [start, end), which are there already."""
        if self.metadata is not None:
            self._need(self.metadata.enter_tables(task, self.host_walk(mapping), start, end))

    def guest_walk(self, inode: Inode) -> Walk | None:
        """The second-stage tables of a file, where they are kept."""
        return None if self.metadata is None else self.metadata.of_guest(inode)

    def touch_in_turns(
        self, inode: Inode, first: int, last: int, turns: Callable[[], Turns], walk: Walk | None = None
    ) -> bool:
        """Make folios [first, last) present in the order of ``turns``: chunks of folio indices and rows of tasks."""
        complete = self._touch_in_turns(inode, first, last, turns)
        if self.metadata is not None and complete:
            tasks = list(self.tasks.values())
            for folios, rows in turns():
                self._need(self.metadata.enter_turns(tasks, inode, walk, folios, rows))
        return complete

    def _touch_in_turns(self, inode: Inode, first: int, last: int, turns: Callable[[], Turns]) -> bool:
        holes = self._holes(inode, first, last)
        complete = not len(holes) or self._place_list(inode, holes, _within(turns(), holes))
        if inode.small is None:
            return complete
        holes = self._small_holes(inode, first << inode.order, last << inode.order)
        if not len(holes):
            return True
        step, pages = max(1, _LIST_CHUNK >> inode.order), np.arange(1 << inode.order)

        def small() -> Turns:
            for folios, tasks in turns():
                for low in range(0, len(folios), step):
                    index = (folios[low : low + step, None] << inode.order) + pages
                    yield index.ravel(), np.repeat(tasks[low : low + step], len(pages))

        return self._place_list(inode, holes, _within(small(), holes), small=True)

    @staticmethod
    def _holes(inode: Inode, first: int, last: int) -> Int64s:
        """Folios of [first, last) that nothing backs, not even in part."""
        holes = inode.map.absent(first, last)
        if inode.small is None:
            return holes
        partly = _units_of(inode.small.present, inode.order)
        return np.concatenate([no_intervals(), *(intervals_minus(int(low), int(high), partly) for low, high in holes)])

    @staticmethod
    def _small_holes(inode: Inode, start: int, end: int) -> Int64s:
        """4 KiB pages of [start, end) that nothing backs."""
        assert inode.small is not None
        order = inode.order
        units = inode.map.absent(start >> order, -(-end >> order))
        parts = [inode.small.absent(max(start, int(low) << order), min(end, int(high) << order)) for low, high in units]
        return np.concatenate([no_intervals(), *parts])

    def _touch_small(self, task: Thread, inode: Inode, start: int, end: int, operation: sc.Fault | None) -> bool:
        """4 KiB pages for what of ``[start, end)`` no huge page backs: its pool was empty when it was touched."""
        holes = self._small_holes(inode, start, end)
        order = operation.order if operation is not None else "sequential"
        if not len(holes):
            return True
        if order in ("sequential", "reverse"):
            return self.place(task, inode, holes, -1 if order == "reverse" else 1, small=True)
        assert operation is not None
        return self._place_list(inode, holes, self._listed(task, operation, start, end, holes), small=True)

    def _listed(self, task: Thread, operation: sc.Fault, first: int, last: int, holes: Int64s) -> Turns:
        """Indices of [first, last) inside ``holes`` in the operation's order, and the row of the task, in chunks."""
        within = self.touch_order(operation, last - first)
        chunks = (first + within[low : low + _LIST_CHUNK] for low in range(0, len(within), _LIST_CHUNK))
        return _within(((pages, np.full(len(pages), task.index)) for pages in chunks), holes)

    def touch_order(self, operation: sc.Fault, count: int) -> Int64s:
        """The order in which an operation touches so many pages, int64 (count,)."""
        if operation.order != "sequential":
            check_listed(count, f"fault: {operation.order} order")
        if operation.order == "reverse":
            return np.arange(count - 1, -1, -1, dtype=np.int64)
        out = np.arange(count, dtype=np.int64)
        if operation.order == "strided":
            fault_order.strided_order(operation.stride, out)
        elif operation.order == "random":
            fault_order.random_order(np.uint64(operation.seed), out)
        return out

    def _place_all(self, task: Thread, inode: Inode, holes: Int64s, step: int, span: tuple[int, int]) -> bool:
        """:meth:`place`; where 4 KiB pages may stand in, a policy whose pools are empty does not end it for others."""
        while not self.place(task, inode, holes, step, span=span):
            if inode.small is None:
                return False
            ranges, policies = self.policy_ranges(inode, inode.order, holes, span, step)
            parts = [inode.map.absent(int(low), int(high)) for low, high in holes]
            low, high, which = _split_at(np.concatenate(parts), ranges)
            dry = policies[which[0 if step > 0 else -1]]
            others = np.array([policies[row] != dry for row in which])
            holes = np.column_stack((low, high))[others]
            if not len(holes):
                return False
        return True

    def is_plain_4k(self, inode: Inode) -> bool:
        """Whether pages of the file need nothing but a zone: no huge ones, no blocks, pfns or CMA to settle."""
        return inode.order == 0 and self.is_plain(inode)

    def is_plain(self, inode: Inode) -> bool:
        """Likewise of huge pages, all of one pool or none."""
        return (
            inode.small is None and self.blocks is None and self.free_pfns is None
            and not (inode.movable and self._has_cma)
        )  # fmt: skip

    def _plain(self, inode: Inode) -> bool:
        """Whether a single page of the file needs nothing but a zone, and no policy of the file says which."""
        return not inode.shared_policy and self.is_plain_4k(inode)

    def output_of(self, map_: FileMap) -> placement.Output:
        """Where pages of a map are placed to."""
        return placement.Output(map_.progress, map_.allocations, map_.tiles, *self._scratch)

    def _place_one(self, task: Thread, inode: Inode, page: int, step: int) -> bool:
        """:meth:`place` of one page of which :meth:`_plain` holds, as most calls of a long list of them are."""
        map_, piece = inode.map, self._piece
        requests, row_of = self.requests(inode, [task], _NO_POLICY, 0)
        piece[0] = page, 1, step, row_of[0, 0]
        before = int(map_.progress[placement.ALLOCATIONS])
        self._placed(self.run_pieces(map_, piece, requests, *self.turns_and_zones(inode, 0)), 0)
        self.placed[map_.tiles[map_.allocations[before, 3]]] += 1
        map_.add_new_allocations(before)
        return True

    def place(
        self,
        task: Thread,
        inode: Inode,
        holes: Int64s,
        step: int = 1,
        override: mp.Mempolicy | None = None,
        small: bool = False,
        span: tuple[int, int] | None = None,
    ) -> bool:
        """Back every folio of ``holes`` int64 (n, 2), upwards or downwards, under the file's policies or ``override``.

        ``small``: holes are 4 KiB pages of a file of huge folios. ``span``: the 4 KiB pages that are touched. False: a huge
        page was not to be had.
        """
        order = 0 if small else inode.order
        self.settle_blocks(broken_up=order == 0)
        ranges, policies = no_intervals(), [override]
        if override is None:
            ranges, policies = self.policy_ranges(inode, order, holes, span, step)
        pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, order)
        return self.place_pieces(inode, pieces, requests, order, small)

    def place_pieces(
        self, inode: Inode, pieces: Int64s, requests: placement.Requests, order: int, small: bool = False
    ) -> bool:
        """:meth:`place` of pieces as :func:`workbench.kernels.placement.place_pieces` takes them, under these requests."""
        map_ = _map_of(inode, small)
        before, free = int(map_.progress[placement.ALLOCATIONS]), self.free.copy()
        complete = self.run_pieces(map_, pieces, requests, *self.turns_and_zones(inode, order))
        map_.add_new_allocations(before)
        if self.free_pfns is not None and inode.pfns is not None and not small:
            self.free_pfns.hand_out(map_, inode.pfns, before)
        self.placed += free - self.free
        self.settle_blocks()
        if inode.movable:
            self.settle_cma(free)
        return self._placed(complete, order)

    def _pieces(
        self,
        task: Thread,
        inode: Inode,
        holes: Int64s,
        step: int,
        ranges: Int64s,
        policies: list[mp.Mempolicy | None],
        order: int,
    ) -> tuple[Int64s, placement.Requests]:
        """Runs of absent folios as :func:`workbench.kernels.placement.place_pieces` takes them, and their requests."""
        requests, row_of = self.requests(inode, [task], policies, order)
        if len(holes) == 1 and not len(ranges):
            first, end = holes[0].tolist()
            start = first if step > 0 else end - 1
            return np.array([[start, end - first, step, row_of[0, 0]]], np.int64), requests
        low, high, which = _split_at(holes, ranges)
        pieces = np.empty((len(low), 4), np.int64)
        pieces[:, 0] = low if step > 0 else high - 1
        pieces[:, 1], pieces[:, 2], pieces[:, 3] = high - low, step, row_of[0][which]
        if step < 0:
            pieces = np.ascontiguousarray(pieces[::-1])
        return pieces, requests

    def run_pieces(
        self,
        map_: FileMap,
        pieces: Int64s,
        requests: placement.Requests,
        turns: placement.Interleaving,
        zones: placement.Zones,
    ) -> bool:
        """Place pieces into the allocation rows of a map, which grows as it must. False: out of memory."""
        map_.progress[:2] = 0
        map_.grow(len(pieces) + 8, 64)
        while True:
            status = placement.place_pieces(pieces, requests, turns, zones, self.output_of(map_))
            if status != placement.NEEDS_ROOM:
                return bool(status == placement.DONE)
            map_.grow(max(64, len(pieces)), len(self._scratch[0]))
            self._check_cancelled()

    def _place_list(self, inode: Inode, holes: Int64s, chunks: Turns, small: bool = False) -> bool:
        """Place folios one by one; each chunk holds indices and the row of the task that touches each."""
        order, map_ = 0 if small else inode.order, _map_of(inode, small)
        self.settle_blocks(broken_up=order == 0)
        ranges, policies = self.policy_ranges(inode, order, holes)
        requests, row_of = self.requests(inode, list(self.tasks.values()), policies, order)
        base = int(holes[0, 0])
        check_listed(int(holes[-1, 1]) - base, "placing pages one by one")
        found = np.full(int(holes[-1, 1]) - base, -1, np.int16)
        cached = np.empty((len(requests.kind), self.nodes), np.int64)
        pfns = np.empty(len(found), np.int64) if inode.pfns is not None and not small else None
        free = self.free.copy()
        dry: set[int] = set()  # requests for which nothing is left
        for pages, tasks in chunks:
            asked = row_of[tasks, _covering(pages, ranges)]
            while len(pages):
                out = np.empty(len(pages), np.int16)
                turns, zones = self.turns_and_zones(inode, order)
                done = placement.place_list(pages, asked, requests, turns, zones, cached, out)
                found[pages[:done] - base] = out[:done]
                if self.free_pfns is not None and pfns is not None:
                    self.free_pfns.hand_out_list(out[:done], pages[:done], base, pfns)
                self._check_cancelled()
                if done == len(pages):
                    break
                dry.add(int(asked[done]))
                if inode.small is None:
                    break
                others = ~np.isin(asked[done:], list(dry))
                pages, asked = pages[done:][others], asked[done:][others]
            if dry and inode.small is None:
                break
        before = int(map_.progress[placement.ALLOCATIONS])
        map_.add_list(holes, found, base)
        if pfns is not None:
            self._keep_listed(inode, before, base, pfns)
        self.placed += free - self.free
        self.settle_blocks()
        if inode.movable:
            self.settle_cma(free)
        return self._placed(not dry, order)

    @staticmethod
    def _keep_listed(inode: Inode, before: int, base: int, pfns: Int64s) -> None:
        """Frames of folios that were placed one by one, int64 (n,) from ``base`` on, in rows from ``before`` on."""
        assert inode.pfns is not None
        for row in range(before, int(inode.map.progress[placement.ALLOCATIONS])):
            start, count = inode.map.allocations[row, :2] - (base, 0)
            inode.pfns.listed[row] = pfns[start : start + count]

    def turns_and_zones(self, inode: Inode, order: int) -> tuple[placement.Interleaving, placement.Zones]:
        """The host as the placement kernel sees it for pages of a file."""
        name = "hugetlb" if order else "memfd" if inode.movable else inode.kind
        marks, known = self.marks(inode.movable), self._turns_and_zones.get(name)
        if known is not None:  # arrays are written to, or replaced
            turns, zones = known
            if zones.free is self.free and zones.marks is marks and turns.weights is self.weights:
                return known
        made = (
            placement.Interleaving(self.rotations, self.weights),
            placement.Zones(self.free, marks, self.zone_node, self.zonelists[name]),
        )
        self._turns_and_zones[name] = made
        return made

    @staticmethod
    def _placed(complete: bool, order: int) -> bool:
        if not complete and not order:
            raise OutOfMemory
        return complete

    def _check_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled

    def marks(self, movable: bool = False) -> Int64s:
        """Low and min watermark of each zone, each plus lowmem_reserve: int64 (2, zones), pages, not to be written to.

        What cannot move never gets CMA pages, and nobody who may wait those of HighAtomic: they count as used
        (mm/page_alloc.c: __zone_watermark_unusable_free).
        """
        known = self._marks
        if (
            known is None or known[0] is not self.watermarks or known[1] is not self.cma
        ):  # both are replaced, not changed
            marks = self.watermarks[1::-1] + self.reserve + self.highatomic
            known = self._marks = (self.watermarks, self.cma, marks + self.cma, marks)
        return known[3] if movable else known[2]

    def settle_cma(self, before: Int64s) -> None:
        """Pages that can move were taken, or given back: how many of the free pages are CMA, from what was free ``before``.

        mm/page_alloc.c: __rmqueue: CMA pages go first as long as they are more than half of what is free. What comes back
        is taken to come back in the same proportion.
        """
        if self.all_cma.any():
            half = -(-self.free // 2)
            less = self.free < before
            more = np.minimum(self.all_cma, np.maximum(self.cma, half))
            self.cma = np.where(less, np.minimum(self.cma, half), np.where(self.free > before, more, self.cma))

    def policy_ranges(
        self, inode: Inode, order: int, holes: Int64s, span: tuple[int, int] | None = None, step: int = 1
    ) -> tuple[Int64s, list[mp.Mempolicy | None]]:
        """Shared policy ranges near ``holes`` in folios, int64 (n, 2), and their policies; the last one is None, for the rest.

        A huge folio gets the policy of the 4 KiB page of it that is touched first: its first one, or upwards the first of
        ``span``, downwards (``step`` -1) its last one or the last of ``span``.
        """
        if not inode.shared_policy or (order and inode.kind != "memfd" and not self.rules.file_policy):
            return no_intervals(), [None]
        extents = inode.shared_policy.between(int(holes[0, 0]) << order, int(holes[-1, 1]) << order)
        policies = [*(policy for _, _, policy in extents), None]
        pages = np.array([(start, end) for start, end, _ in extents], np.int64).reshape(-1, 2)
        if not order or not extents:
            return pages, policies
        ranges = -(-pages >> order) if step > 0 else pages >> order
        if span is None:
            return ranges, policies
        touched = span[0] if step > 0 else span[1] - 1
        if touched & ((1 << order) - 1) == (0 if step > 0 else (1 << order) - 1):
            return ranges, policies
        return _with_folio_of(ranges, touched >> order, _covering(np.array([touched]), pages)[0], policies)

    def requests(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[placement.Requests, Int64s]:
        """The request table for these tasks and policies, and int64 (tasks, policies) rows of it.

        Remembered: faults one after another mostly ask for the same.
        """
        if len(tasks) * len(policies) > _SMALL:
            return self._new_requests(inode, tasks, policies, order)
        key = (
            inode.ilx_base if inode.kind == "memfd" else -1, inode.movable, order > 0, self.cpusets_enabled, self.mems_allowed,
            *policies, *((task.index, task.nid, task.policy) for task in tasks),
        )  # fmt: skip
        if key not in self._asked:
            if len(self._asked) > _REMEMBERED:
                self._asked.clear()
            self._asked[key] = self._new_requests(inode, tasks, policies, order)
        return self._asked[key]

    def _new_requests(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[placement.Requests, Int64s]:
        rows, row_of = self._request_rows(inode, tasks, policies, order)
        return self.request_table(rows), row_of

    def _request_rows(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[list[tuple[int, int, Row]], Int64s]:
        """Rows for :meth:`request_table`, and int64 (tasks, policies) which of them each pair has.

        Equal policies share a row, so that a thousand ranges with one policy are one request.
        """
        distinct: dict[tuple[int, mp.Mempolicy | None], int] = {}
        row_of = np.empty((len(tasks), len(policies)), np.int64)
        rows: list[tuple[int, int, Row]] = []
        base = inode.ilx_base if inode.kind == "memfd" else -1
        for t, task in enumerate(tasks):
            for p, policy in enumerate(policies):
                key = (task.index, policy)
                if key not in distinct:
                    distinct[key] = len(rows)
                    effective = policy if policy is not None else task.policy
                    rows.append((task.index, base, self._policy_nodemask(effective, task.nid, inode, order)))
                row_of[t, p] = distinct[key]
        return rows, row_of

    def request_table(self, rows: list[tuple[int, int, Row]]) -> placement.Requests:
        """The request table of rows: row of the rotation, base of the interleave index (-1: the rotation), what is asked."""
        if len(rows) == 1:
            ((task, index_base, one),) = rows
            ints = np.array([*one[:3], task, index_base], np.int64).reshape(5, 1)
            return placement.Requests(
                ints[0], ints[1], one[3][None].copy(), one[4][None].copy(), ints[2], ints[3], ints[4]
            )
        kind, start, passes, task_row, base = (np.zeros(len(rows), np.int64) for _ in range(5))
        nodes, filters = np.zeros((len(rows), self.nodes), bool), np.zeros((len(rows), 2, self.nodes), bool)
        for row, (task, index_base, asked) in enumerate(rows):
            task_row[row], base[row] = task, index_base
            kind[row], start[row], passes[row], nodes[row], filters[row] = asked
        return placement.Requests(kind, start, nodes, filters, passes, task_row, base)

    def kernel_requests(self, task: Thread, by_policy: bool) -> placement.Requests:
        """The request table of :meth:`kernel_request` alone, remembered."""
        key = (
            task.index,
            task.nid,
            task.policy if by_policy else None,
            by_policy,
            self.cpusets_enabled,
            self.mems_allowed,
        )
        if key not in self._asked:
            requests = self.request_table([(task.index, -1, self.kernel_request(task, by_policy))])
            self._asked[key] = requests, np.zeros((1, 1), np.int64)
        return self._asked[key][0]

    def kernel_request(self, task: Thread, by_policy: bool) -> Row:
        """What pages ask that the kernel allocates for itself in a call of ``task``: by its policy, or on its own node.

        mm/mempolicy.c: alloc_pages_noprof; with a node given (mm/slub.c: new_slab) no policy counts.
        """
        allowed = self.mask(self.mems_allowed) if self.cpusets_enabled and by_policy else np.ones(self.nodes, bool)
        policy = task.policy if by_policy else None
        return policy_nodemask(policy, task.nid, self.node_ids, allowed, self.has_normal_memory.astype(bool))

    def _policy_nodemask(
        self, policy: mp.Mempolicy | None, nid: int, inode: Inode, order: int
    ) -> tuple[int, int, int, np.ndarray, np.ndarray]:
        """What a policy asks of the engine for a folio of this inode: (kind, start, passes, nodes, filters)."""
        allowed = self.mask(self.mems_allowed) if self.cpusets_enabled else np.ones(self.nodes, bool)
        # apply_policy_zone: BIND to nodes whose memory is all ZONE_MOVABLE is ignored for guest_memfd.
        everywhere = inode.movable or (order > 0 and not self.design.from_zones)
        bindable: np.ndarray = np.ones(self.nodes, bool) if everywhere else self.has_normal_memory
        return policy_nodemask(policy, nid, self.node_ids, allowed, bindable)

    def reserved_huge_pages(self) -> int:
        """Huge pages of the pools that files were promised when they were created and that they have not taken yet.

        Those that others on the host were promised count too, where its own pools are taken as they are.

        mm/hugetlb.c: a subpool with minimum and maximum size; it lives until its last page is back.
        """
        others = self.host.hugetlb_promised.get(PAGE_SIZE << self.order, 0) if self._pools_of_host else 0
        return others + sum(self._unused_reserve(inode) for inode in self.inodes())

    def _unused_reserve(self, inode: Inode) -> int:
        if not inode.reserve:
            return 0
        taken = int(inode.map.runs[:, 1].sum())
        if isinstance(inode.tracked, ConversionFile):
            taken += inode.tracked.count("pinned_huge_pages")
        gone = not inode.mappings and all(
            file.descriptor is None for file in self.files.values() if file.inode is inode
        )
        return 0 if gone and not taken else inode.reserve - taken

    def reserve_pool(self, inode: Inode) -> bool:
        """Promise the file all huge pages it can need (mm/hugetlb.c: hugepage_new_subpool); False: not so many are left."""
        pages = inode.pages >> inode.order
        if pages > int(self.free[: self.nodes].sum()) - self.reserved_huge_pages():
            return False
        inode.reserve = pages
        return True

    def settle_blocks(self, broken_up: bool = False) -> None:
        """4 KiB pages have come or gone (or, ``broken_up``, will): which of the zones' blocks are whole now.

        Of designs that take huge memory from the zones (:mod:`workbench.engine.zone_blocks`).
        """
        if self.blocks is not None:
            self.blocks.settle(self.free, broken_up)

    def free_of_small(self) -> Int64s:
        """Free pages of each zone, int64 (zones,), as who asks for 4 KiB sees them: blocks of huge memory are broken up."""
        free = self.free.copy()
        if self.blocks is not None:
            self.blocks.break_up(free)
        return free

    def leave(self, inode: Inode, first: int, last: int) -> Int64s:
        """Folios ``[first, last)`` are no longer the file's, and their frames are free; what each zone gets, int64 (zones,)."""
        if self.free_pfns is not None and inode.pfns is not None:
            self.free_pfns.release(inode.map, inode.pfns, inode.map.cut(first, last))
        return inode.map.erase(first, last, len(self.free))

    def take_frame(self, inode: Inode, page: int) -> int:
        """A 4 KiB page is no longer the file's, and its frame, which somebody holds, is not free: the frame's pfn."""
        assert self.free_pfns is not None and inode.pfns is not None
        pfn = int(self.free_pfns.of_pages(inode.map, inode.pfns, page, page + 1)[0])
        inode.map.erase(page, page + 1, len(self.free))
        return pfn

    def erase(self, inode: Inode, first: int, last: int, moving: bool = False) -> int:
        """Free folios ``[first, last)`` and say how many there were, huge ones of a file of huge folios.

        ``moving``: others take their places at once, so that the tree keeps its nodes.
        """
        before = self.free.copy() if inode.movable else self.free
        light = None if self.metadata is None or moving else self.metadata.light_map(inode)
        near = min(last, _FAR)
        ranges = None if light is None else light.before(first, near)
        freed = self.leave(inode, first, last)
        if light is not None:
            light.after(first, near, ranges)
            light.stale |= ranges is None
        self.free += freed
        if inode.movable:
            self.settle_cma(before)
        if inode.small is not None:
            limit = inode.pages >> inode.order
            self.free += inode.small.erase(first << inode.order, min(last, limit) << inode.order, len(self.free))
        if self.metadata is not None and not moving:
            self.metadata.erased(inode, first, near)
        self.settle_blocks()
        return sum(freed.tolist())


def check_listed(pages: int, what: str) -> None:
    """Refuse, before memory is taken, what needs an array entry for each of too many pages. Raises WorkbenchError."""
    if pages > LISTED_PAGES:
        raise WorkbenchError(
            f"{what}: {pages} pages would be listed one by one, in some {format_bytes(pages * _LISTED_BYTES)} of memory; "
            f"at most {LISTED_PAGES} are"
        )


def _map_of(inode: Inode, small: bool) -> FileMap:
    if not small:
        return inode.map
    assert inode.small is not None
    return inode.small


def _units_of(pages: Int64s, order: int) -> Int64s:
    """Sorted disjoint intervals of huge folios that 4 KiB intervals int64 (n, 2) lie in."""
    units = no_intervals()
    for low, high in pages.tolist():
        units = intervals_add(low >> order, -(-high >> order), units)
    return units


def _within(chunks: Turns, holes: Int64s) -> Turns:
    for index, tasks in chunks:
        keep = in_intervals(index, holes)
        yield index[keep], tasks[keep]


def _zones_now(zones: placement.Zones, requests: placement.Requests, row: int, starts: Int64s) -> Int64s:
    """The zones that give a page to a request that begins at nodes int64 (n,), as :func:`placement.place_pieces` finds them.

    -1: none has one.
    """
    order = zones.zonelists[starts]
    for allowed in requests.filters[row, : requests.passes[row]]:
        for mark in zones.marks:
            eligible = np.zeros(len(mark) + 1, bool)  # -1 ends a list
            np.logical_and(allowed[zones.zone_node], zones.free > mark, out=eligible[:-1])
            if eligible.any():
                first: Int64s = eligible[order].argmax(axis=1)
                return order[np.arange(len(order)), first]
    return np.full(len(starts), -1, np.int64)


def _left_by(pools: Int64s, zone_node: Int64s, free: Int64s) -> Int64s:
    """Free pages of each zone after pools of so many 4 KiB pages a node: the highest zones give first."""
    left, wanted = free.copy(), pools.copy()
    for zone in range(len(free) - 1, -1, -1):
        node = zone_node[zone]
        given = min(left[zone], wanted[node])
        left[zone] -= given
        wanted[node] -= given
    return left


def _with_folio_of(
    ranges: Int64s, index: int, row: int, policies: list[mp.Mempolicy | None]
) -> tuple[Int64s, list[mp.Mempolicy | None]]:
    """The same ranges and policies, but folio ``index`` under the policy of ``row`` alone (the last: none)."""
    out, chosen = [], []
    for position, (low, high) in enumerate(ranges.tolist()):
        for part in ((low, min(high, index)), (max(low, index + 1), high)):
            if part[0] < part[1]:
                out.append(part)
                chosen.append(policies[position])
    if row < len(ranges):
        out.append((index, index + 1))
        chosen.append(policies[row])
    order = np.argsort([low for low, _ in out], kind="stable") if out else np.empty(0, np.int64)
    sorted_ranges = np.array([out[k] for k in order], np.int64).reshape(-1, 2)
    return sorted_ranges, [*(chosen[k] for k in order), policies[-1]]


def _covering(pages: Int64s, ranges: Int64s) -> Int64s:
    """Index of the range that covers each page; ``len(ranges)`` where none does."""
    position = np.searchsorted(ranges[:, 0], pages, side="right") - 1
    ends = np.concatenate((ranges[:, 1], [np.iinfo(np.int64).min]))
    return np.where(pages < ends[position], position, len(ranges))


def _split_at(holes: Int64s, ranges: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Cut holes where policy ranges begin and end: (start, end, index of the covering range), ascending."""
    if not len(ranges):
        return holes[:, 0], holes[:, 1], np.zeros(len(holes), np.int64)
    if len(ranges) == 1 and ranges[0, 0] <= holes[0, 0] and holes[-1, 1] <= ranges[0, 1]:
        return holes[:, 0], holes[:, 1], np.zeros(len(holes), np.int64)
    near = ranges[(ranges[:, 1] > holes[0, 0]) & (ranges[:, 0] < holes[-1, 1])]
    edges = np.unique(np.concatenate((holes.ravel(), near.ravel())))
    low, high = edges[:-1], edges[1:]
    keep = in_intervals(low, holes)
    return low[keep], high[keep], _covering(low[keep], ranges)

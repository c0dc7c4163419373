"""A simulated Linux host as it has booted: zones and pools of huge pages, interleave weights, tasks, and what is free.

Zones come from the host's nodes (``mm/mm_init.c``, :mod:`workbench.topology.zones`), fallback orders from
``mm/page_alloc.c: build_zonelists``, pools of huge pages from ``mm/hugetlb.c``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.design import DESIGNS
from workbench.engine.objects import Thread
from workbench.engine.policy_request import mask_of
from workbench.engine.zone_blocks import ZoneBlocks
from workbench.errors import Cancelled, WorkbenchError
from workbench.intervals import Int64s
from workbench.kernels import mempolicy, zonelist
from workbench.topology.host import Host
from workbench.topology.kho_scratch import scratch_pages
from workbench.topology.zones import LOWMEM_BYTES, STRUCT_PAGE_SHARE, default_zones
from workbench.tracking.generations import GENERATIONS
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes


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


class BootedHost:
    """The host's memory and who runs on it; what a run changes of it is its own."""

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
        pools = self.nodes if self.order else 0
        self.zone_page_size = np.where(np.arange(len(self.free)) < pools, PAGE_SIZE << self.order, PAGE_SIZE)

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

    # --------------------------------------------------------------------------------------------- pools of huge pages

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

    # ----------------------------------------------------------------------------------------------- weights and tasks

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
        self._first_task = next(iter(self.tasks.values()))
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

    def task(self, operation: sc.Operation) -> Thread:
        """The thread that makes a call."""
        if operation.task is None:
            return self._first_task
        if operation.task not in self.tasks:
            names = ", ".join(list(self.tasks)[:8])
            raise WorkbenchError(f"operations.task: {operation.task!r} is not a task of this scenario ({names}, ...)")
        return self.tasks[operation.task]

    def mask(self, mask: int) -> np.ndarray:
        """A bitmask of node ids as bool (nodes,)."""
        return mask_of(mask, self.node_ids)

    def _check_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled

    # ---------------------------------------------------------------------------------------------------- what is free

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


def _left_by(pools: Int64s, zone_node: Int64s, free: Int64s) -> Int64s:
    """Free pages of each zone after pools of so many 4 KiB pages a node: the highest zones give first."""
    left, wanted = free.copy(), pools.copy()
    for zone in range(len(free) - 1, -1, -1):
        node = zone_node[zone]
        given = min(left[zone], wanted[node])
        left[zone] -= given
        wanted[node] -= given
    return left

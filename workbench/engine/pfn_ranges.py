"""Ranges of page frames out of the kernel's hands: taken at boot or at run time, served per node under a mempolicy.

===================== ======================================= ===================== ====================================
taken                 as                                      struct pages          granularity
===================== ======================================= ===================== ====================================
at boot, without      ``memmap=nn$ss`` (arch/x86/kernel/      gone for whole        4 KiB; sections of 128 MiB for the
                      e820.c: the page allocator never        sections (mm/sparse.c:  struct pages
                      sees it)                                sparse_init)
at boot, with         ``reserve_mem=``, memblock_reserve      there, PageReserved   4 KiB
at run time, without  offline and remove the memory block     gone                  memory block, at least 128 MiB
                      (mm/memory_hotplug.c: offline_pages,
                      try_remove_memory)
at run time, with     mm/page_alloc.c: alloc_contig_pages     there                 4 KiB; aligned to a power-of-two size
===================== ======================================= ===================== ====================================

At run time only free memory can be had: this model moves nothing, and guest memory and most of the kernel's cannot be
moved in Linux either. What is refused comes back as a positive errno.

Which node serves each page is decided by :mod:`workbench.kernels.placement`, as for every other memory of this project; a pool is
a zone with marks of 0 in units of the page size. :mod:`workbench.kernels.pfn_range` picks the pfns.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench import policy as mp
from workbench.engine.policy_request import policy_nodemask
from workbench.errors import WorkbenchError
from workbench.kernels import pfn_range, placement, zonelist
from workbench.topology.host import Host
from workbench.topology.zones import ZoneTable, default_zones
from workbench.tracking.struct_pages import STRUCT_PAGE
from workbench.units import PAGE_ORDERS, PAGE_SIZE, parse_bytes

Int64s = npt.NDArray[np.int64]
SECTION_PAGES = 1 << 15
"""128 MiB: SECTION_SIZE_BITS 27 (arch/x86/include/asm/sparsemem.h)."""
FITS = pfn_range.NAMES
_CAPACITY = 1 << 12


@dataclass(frozen=True)
class Taken:
    """A range the kernel gave up; pages of 4 KiB."""

    node: int
    """Linux node id."""
    pfn: int
    pages: int
    at_boot: bool
    struct_pages: bool

    @property
    def struct_page_bytes(self) -> int:
        """Bytes of struct pages that are still there for the range."""
        if self.struct_pages:
            return self.pages * STRUCT_PAGE
        whole = _whole_sections(self.pfn, self.pages)
        return (self.pages - whole) * STRUCT_PAGE


@dataclass(frozen=True)
class Allocation:
    """Memory handed out, in the order of guest offsets.

    ``extents`` int64 (n, 4): first 4 KiB page of the guest, pfn, pages, Linux node id.
    """

    extents: Int64s

    @property
    def pages(self) -> int:
        """4 KiB pages."""
        return int(self.extents[:, 2].sum())

    def pages_per_node(self) -> dict[int, int]:
        """4 KiB pages by Linux node id."""
        nodes, where = np.unique(self.extents[:, 3], return_inverse=True)
        return dict(zip(nodes.tolist(), np.bincount(where, self.extents[:, 2]).astype(int).tolist(), strict=True))


class PfnRanges:
    """Memory taken from a host's kernel, and the allocator that serves it."""

    def __init__(
        self,
        host: Host,
        fit: str = "first-fit",
        *,
        weights: Mapping[int, int] | None = None,
        memory_block: int | str = "128 MiB",
        zones: ZoneTable | None = None,
    ) -> None:
        """An empty allocator beside a kernel that has all memory.

        Parameters
        ----------
        host : its nodes, distances and free memory
        fit : how a range is chosen, one of ``FITS``
        weights : interleave weights by Linux node id, 1 if left out
        memory_block : what /sys/devices/system/memory/block_size_bytes says; a power of two from 128 MiB on
        zones : zones of the host if not those of :func:`workbench.topology.zones.default_zones`
        """
        if fit not in FITS:
            raise WorkbenchError(f"fit: {fit!r} is not one of {', '.join(FITS)}")
        block = parse_bytes(memory_block, "memory_block") // PAGE_SIZE
        if block < SECTION_PAGES or block & (block - 1):
            raise WorkbenchError(f"memory_block: {memory_block!r}; a power of two from 128 MiB on")
        self.fit = FITS.index(fit)
        self.block_pages = block
        self.node_ids = np.asarray(host.node_ids, np.int64)
        self.nodes = len(self.node_ids)
        table = default_zones(host) if zones is None else zones
        self._kernel = _Ranges(self.nodes)
        table_rows = zip(table.zone_node.tolist(), table.start_pfn.tolist(), table.free.tolist(), strict=True)
        self._spans = [(node, first, first + pages) for node, first, pages in table_rows if pages > 0]
        for node, first, end in self._spans:
            self._kernel.give(node, first, end - first)
        self._pool: _Ranges | _Blocks
        if self.fit == pfn_range.BUDDY:
            self._pool = _Blocks(self.nodes, max(end for _, _, end in self._spans))
        else:
            self._pool = _Ranges(self.nodes, self.fit)
        self.taken: list[Taken] = []
        self.running = False
        self.weights = np.ones(self.nodes, np.int64)
        for node, weight in (weights or {}).items():
            if not 1 <= weight <= 255:
                raise WorkbenchError(f"weights: {node}: {weight}; weights are 1 to 255")
            self.weights[self._index(node)] = weight
        self.rotation = np.array([[self.nodes - 1, 0]], np.int64)
        """il_prev and il_weight of the task that allocates, as set_mempolicy leaves them."""
        has_memory = np.bincount(table.zone_node, table.managed, self.nodes) > 0
        order = np.empty((self.nodes, self.nodes), np.int64)
        distance = np.asarray(host.distance_matrix, np.int64)
        no_penalty, load = np.zeros(self.nodes, bool), np.empty(self.nodes, np.int64)
        zonelist.fallback_order(distance, has_memory, no_penalty, load, order)
        self._zone_node = np.arange(self.nodes, dtype=np.int64)
        self._zonelists = np.empty((self.nodes, self.nodes + 1), np.int64)
        kinds = np.full(self.nodes, zonelist.ZONE_NORMAL, np.int64)
        zonelist.zonelists(
            order, self._zone_node, kinds, has_memory.astype(np.int64), zonelist.ZONE_NORMAL, self._zonelists
        )

    # ------------------------------------------------------------------------------------- from and to the kernel

    def occupy(self, node: int, size: int | str, pfn: int | None = None) -> int:
        """The kernel uses ``size`` bytes of a node, at ``pfn`` or at the lowest free address. Returns 0 or ENOMEM, EBUSY."""
        return self._from_kernel(self._index(node), _pages(size), 1, pfn)[1]

    def release(self, pfn: int, size: int | str) -> int:
        """The kernel is done with memory it used. Returns 0, or EINVAL if it was free or is not the kernel's."""
        pages = _pages(size)
        inside = [index for index, first, end in self._spans if first <= pfn and pfn + pages <= end]
        if not inside or any(_overlap(pfn, pages, taken) for taken in self.taken):
            return errno.EINVAL
        return 0 if self._kernel.give(inside[0], pfn, pages) else errno.EINVAL

    def take_at_boot(
        self, node: int, size: int | str, pfn: int | None = None, struct_pages: bool = False
    ) -> Taken | int:
        """Reserve memory before the page allocator gets it.

        Parameters
        ----------
        node, size, pfn : Linux node id, bytes, first pfn (None: the lowest free address)
        struct_pages : with (``reserve_mem=``) or without (``memmap=nn$ss``)

        Returns the range, or ENOMEM / EBUSY when it is not there or in use. :class:`WorkbenchError` once the host runs.
        """
        if self.running:
            raise WorkbenchError("take_at_boot: the host is running; its page allocator has the memory, use take")
        return self._take(self._index(node), _pages(size), 1, pfn, True, struct_pages)

    def take(self, node: int, size: int | str, pfn: int | None = None, struct_pages: bool = False) -> Taken | int:
        """Take free memory from the running kernel.

        Without struct pages whole memory blocks are offlined and removed: ``size`` and ``pfn`` must be multiples of the
        memory block. With them any number of pages is isolated; a power of two is aligned to its size.

        Returns the range, EINVAL (alignment), EBUSY (the range at ``pfn`` is partly in use) or ENOMEM (there is none).
        """
        self.running = True
        pages = _pages(size)
        align = self.block_pages
        if struct_pages:
            align = pages if pages & (pages - 1) == 0 else 1
        elif pages % align or (pfn or 0) % align:
            return errno.EINVAL
        if pfn is not None:
            align = 1
        return self._take(self._index(node), pages, align, pfn, False, struct_pages)

    def give_back(self, pfn: int, size: int | str) -> int:
        """Return memory to the kernel: add and online it, or free it.

        Returns 0, EBUSY (part of it is allocated), or EINVAL: it was not taken as one range, or has no struct pages and
        is not made of whole memory blocks (``check_hotplug_memory_range``).
        """
        self.running = True
        pages = _pages(size)
        owner = next((t for t in self.taken if t.pfn <= pfn and pfn + pages <= t.pfn + t.pages), None)
        if owner is None:
            return errno.EINVAL
        if not owner.struct_pages and (pfn % self.block_pages or pages % self.block_pages):
            return errno.EINVAL
        node = self._index(owner.node)
        if not self._pool.remove(node, pfn, pages):
            return errno.EBUSY
        self._kernel.give(node, pfn, pages)
        self.taken.remove(owner)
        for first, end in ((owner.pfn, pfn), (pfn + pages, owner.pfn + owner.pages)):
            if end > first:
                self.taken.append(Taken(owner.node, first, end - first, owner.at_boot, owner.struct_pages))
        return 0

    def struct_page_bytes(self) -> int:
        """Bytes of struct pages that the ranges taken still have."""
        return sum(taken.struct_page_bytes for taken in self.taken)

    def struct_page_bytes_saved(self) -> int:
        """Bytes of struct pages that are gone with the ranges taken."""
        return sum(taken.pages * STRUCT_PAGE - taken.struct_page_bytes for taken in self.taken)

    # ------------------------------------------------------------------------------------------------ allocations

    def alloc(
        self, size: int | str, page_size: str = "2 MiB", policy: mp.Mempolicy | None = None, node: int | None = None
    ) -> Allocation | int:
        """Allocate memory for a guest.

        Parameters
        ----------
        size : bytes, whole 4 KiB pages. What is left over from whole pages of ``page_size`` comes in smaller ones
        page_size : "4 KiB", "2 MiB" or "1 GiB"; each page is aligned to its size and lies on one node
        policy : mempolicy in force; None is the default, local allocation
        node : Linux node id the task runs on; the first if left out

        Returns the allocation, or ENOMEM with nothing taken; like the kernel's, the task's rotation has then moved on.
        """
        self.running = True
        if page_size not in PAGE_ORDERS:
            raise WorkbenchError(f"page_size: {page_size!r} is not one of {', '.join(PAGE_ORDERS)}")
        pages = _pages(size)
        nid = 0 if node is None else self._index(node)
        if policy is not None:
            for wanted in [*mp.nodes_of(policy.nodes), *([] if policy.home_node is None else [policy.home_node])]:
                self._index(wanted)
            if not policy.nodes and policy.mode not in (mp.DEFAULT, mp.LOCAL):
                raise WorkbenchError(f"policy: {policy.describe()} has no nodes")
        parts: list[Int64s] = []
        offset = 0
        for order in sorted(PAGE_ORDERS.values(), reverse=True):
            units = (pages - offset) >> order
            if order > PAGE_ORDERS[page_size] or units == 0:
                continue
            runs = self._place(units, order, policy, nid)
            extents = None if runs is None else self._pick(runs, order, offset)
            if extents is None:
                self._free(parts)
                return errno.ENOMEM
            parts.append(extents)
            offset += units << order
        return Allocation(_joined(np.concatenate(parts)))

    def free(self, allocation: Allocation) -> None:
        """Give an allocation back to the pools. :class:`WorkbenchError` if part of it is not allocated."""
        self._free([allocation.extents])

    def free_pages(self, node: int) -> int:
        """Free 4 KiB pages in a node's pool."""
        return self._pool.usable(self._index(node), 1)

    def fragmentation(self, node: int) -> dict[str, float]:
        """Free and largest range in bytes, number of free ranges, and Linux's unusable free space index at two sizes.

        Linux: mm/vmstat.c: unusable_free_index, here as a share of 1.
        """
        index = self._index(node)
        free = self._pool.usable(index, 1)
        result: dict[str, float] = {
            "free_bytes": free * PAGE_SIZE,
            "largest_bytes": self._pool.largest(index) * PAGE_SIZE,
            "free_ranges": self._pool.ranges(index),
        }
        for name, order in (("unusable_2mib", 9), ("unusable_1gib", 18)):
            result[name] = 1 - self._pool.usable(index, 1 << order) / free if free else 0.0
        return result

    # -------------------------------------------------------------------------------------------------- internals

    def _index(self, node: int) -> int:
        index = int(np.searchsorted(self.node_ids, node))
        if index == self.nodes or self.node_ids[index] != node:
            raise WorkbenchError(f"node: {node} is not a node of this host; nodes are {self.node_ids.tolist()}")
        return index

    def _from_kernel(self, node: int, pages: int, align: int, pfn: int | None) -> tuple[int, int]:
        """Take a range out of the kernel's free memory: (pfn, errno)."""
        if pfn is None:
            pfn = self._kernel.alloc(node, pages, align)
            return pfn, 0 if pfn >= 0 else errno.ENOMEM
        return pfn, 0 if self._kernel.remove(node, pfn, pages) else errno.EBUSY

    def _take(
        self, node: int, pages: int, align: int, pfn: int | None, at_boot: bool, struct_pages: bool
    ) -> Taken | int:
        pfn, error = self._from_kernel(node, pages, align, pfn)
        if error:
            return error
        taken = Taken(int(self.node_ids[node]), pfn, pages, at_boot, struct_pages)
        self.taken.append(taken)
        self._pool.give(node, pfn, pages)
        return taken

    def _place(self, units: int, order: int, policy: mp.Mempolicy | None, nid: int) -> Int64s | None:
        """Runs of units on one node, int64 (n, 2) node index and units, decided by the engine; None if they do not fit."""
        allowed = np.ones(self.nodes, bool)
        kind, start, passes, nodes, filters = policy_nodemask(policy, nid, self.node_ids, allowed, allowed)
        requests = placement.Requests(
            np.array([kind]), np.array([start]), nodes[None], filters[None], np.array([passes]), np.zeros(1, np.int64),
            np.full(1, -1),
        )  # fmt: skip
        free = np.array([self._pool.usable(node, 1 << order) >> order for node in range(self.nodes)], np.int64)
        pieces = np.array([[0, units, 1, 0]], np.int64)
        scratch = np.empty(int(self.weights.sum()) + self.nodes + 256, np.int64)
        target, taken = np.empty(self.nodes, np.int64), np.empty(self.nodes, np.int64)
        progress = np.zeros(4, np.int64)
        rows, tiles = np.empty((64, 5), np.int64), np.empty(4096, np.int16)
        turns = placement.Interleaving(self.rotation, self.weights)
        zones = placement.Zones(free, np.zeros((2, self.nodes), np.int64), self._zone_node, self._zonelists)
        while True:
            output = placement.Output(progress, rows, tiles, scratch, target, taken)
            status = placement.place_pieces(pieces, requests, turns, zones, output)
            if status != placement.NEEDS_ROOM:
                break
            rows, tiles = np.concatenate((rows, rows)), np.concatenate((tiles, tiles))
        if status != placement.DONE:
            return None
        runs = []
        for _, count, _, at, period in rows[: progress[placement.ALLOCATIONS]]:
            nodes = np.resize(tiles[at : at + period], count if period > 1 else 1).astype(np.int64)
            runs.append(np.column_stack((nodes, np.ones_like(nodes) if period > 1 else [count])))
        return np.concatenate(runs)

    def _pick(self, runs: Int64s, order: int, offset: int) -> Int64s | None:
        """Pfns for runs of units whose nodes are known, as extents (offset, pfn, pages, node id)."""
        at = (np.cumsum(runs[:, 1]) - runs[:, 1]) << order
        parts: list[Int64s] = []
        for node in np.unique(runs[:, 0]).tolist():
            mine = runs[:, 0] == node
            wanted = runs[mine, 1] << order
            ranges = self._pool.take(node, int(wanted.sum()), 1 << order)
            have = np.cumsum(ranges[:, 1])
            if len(have) == 0 or have[-1] != wanted.sum():
                held = np.column_stack((ranges[:, 0], ranges, np.full(len(ranges), self.node_ids[node])))
                self._free([*parts, held])
                return None
            # A run may need several ranges and a range may serve several runs: cut at the borders of both.
            need = np.cumsum(wanted)
            edges = np.unique(np.concatenate(([0], need, have)))
            low, pages = edges[:-1], np.diff(edges)
            run, taken = np.searchsorted(need, low, side="right"), np.searchsorted(have, low, side="right")
            start = at[mine][run] + low - (need - wanted)[run]
            pfn = ranges[taken, 0] + low - (have - ranges[:, 1])[taken]
            parts.append(np.column_stack((offset + start, pfn, pages, np.full(len(low), self.node_ids[node]))))
        extents = np.concatenate(parts)
        return extents[np.argsort(extents[:, 0])]

    def _free(self, parts: list[Int64s]) -> None:
        for extents in parts:
            for _, pfn, pages, node in extents.tolist():
                index = self._index(node)
                if not any(t.node == node and t.pfn <= pfn < t.pfn + t.pages for t in self.taken):
                    raise WorkbenchError(f"free: pfn {pfn} was not taken from the kernel")
                if not self._pool.give(index, pfn, pages):
                    raise WorkbenchError(f"free: pfns {pfn} to {pfn + pages} are not all allocated")


class _Ranges:
    """Free ranges of each node, with room made as they grow."""

    def __init__(self, nodes: int, fit: int = pfn_range.FIRST_FIT) -> None:
        self.fit = fit
        self._start = np.zeros((nodes, _CAPACITY), np.int64)
        self._end = np.zeros_like(self._start)
        self._count = np.zeros(nodes, np.int64)

    def _state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays, with room for one more operation."""
        if int(self._count.max()) + 2 > self._start.shape[1]:
            more = np.zeros_like(self._start)
            self._start, self._end = np.concatenate((self._start, more), 1), np.concatenate((self._end, more), 1)
        return self._start, self._end, self._count

    def give(self, node: int, pfn: int, pages: int) -> bool:
        return bool(pfn_range.free(*self._state(), node, pfn, pages) == pfn_range.OK)

    def remove(self, node: int, pfn: int, pages: int) -> bool:
        return bool(pfn_range.remove(*self._state(), node, pfn, pages) == pfn_range.OK)

    def alloc(self, node: int, pages: int, align: int) -> int:
        return int(pfn_range.alloc(*self._state(), node, self.fit, pages, align))

    def take(self, node: int, pages: int, unit: int) -> Int64s:
        """Ranges (pfn, pages) of whole units, as few as possible; fewer pages than asked for if there are no more."""
        return _take_all(
            lambda left, out: int(pfn_range.take(*self._state(), node, self.fit, left, unit, out[:1])), pages
        )

    def usable(self, node: int, unit: int) -> int:
        return int(pfn_range.usable_pages(self._start, self._end, self._count, node, unit))

    def largest(self, node: int) -> int:
        return int(pfn_range.largest(self._start, self._end, self._count, node))

    def ranges(self, node: int) -> int:
        return int(self._count[node])


class _Blocks:
    """Free power-of-two blocks of each node, with room made as they grow; the methods are those of :class:`_Ranges`."""

    def __init__(self, nodes: int, end: int) -> None:
        self._count = np.zeros((nodes, end.bit_length()), np.int64)
        self._blocks = np.zeros((nodes, end.bit_length(), _CAPACITY), np.int64)

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        if int(self._count.max()) + 4 > self._blocks.shape[2]:
            self._blocks = np.concatenate((self._blocks, np.zeros_like(self._blocks)), 2)
        return self._blocks, self._count

    def give(self, node: int, pfn: int, pages: int) -> bool:
        return bool(pfn_range.buddy_free(*self._state(), node, pfn, pages) == pfn_range.OK)

    def remove(self, node: int, pfn: int, pages: int) -> bool:
        return bool(pfn_range.buddy_remove(*self._state(), node, pfn, pages) == pfn_range.OK)

    def take(self, node: int, pages: int, unit: int) -> Int64s:
        return _take_all(lambda left, out: int(pfn_range.buddy_take(*self._state(), node, left, unit, out[:1])), pages)

    def usable(self, node: int, unit: int) -> int:
        return int(pfn_range.buddy_usable_pages(self._count, node, unit))

    def largest(self, node: int) -> int:
        orders = np.flatnonzero(self._count[node])
        return 1 << int(orders[-1]) if len(orders) else 0

    def ranges(self, node: int) -> int:
        return int(self._count[node].sum())


def _take_all(take: Callable[[int, Int64s], int], pages: int) -> Int64s:
    """Call ``take`` range by range, so that room can be made in between."""
    out = np.empty((1, 2), np.int64)
    parts: list[Int64s] = []
    while pages > 0 and take(pages, out):
        parts.append(out.copy())
        pages -= int(out[0, 1])
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)


def _pages(size: int | str) -> int:
    number = parse_bytes(size, "size")
    if number == 0 or number % PAGE_SIZE:
        raise WorkbenchError(f"size: {size!r} is not a whole number of 4 KiB pages above 0")
    return number // PAGE_SIZE


def _whole_sections(pfn: int, pages: int) -> int:
    """Pages in 128 MiB sections that lie wholly inside a range."""
    first = -(-pfn // SECTION_PAGES)
    return max(0, (pfn + pages) // SECTION_PAGES - first) * SECTION_PAGES


def _overlap(pfn: int, pages: int, taken: Taken) -> bool:
    return pfn < taken.pfn + taken.pages and taken.pfn < pfn + pages


def _joined(extents: Int64s) -> Int64s:
    """Extents with those that continue the one before them joined to it."""
    offset, pfn, pages, node = extents.T
    continues = (pfn[1:] == pfn[:-1] + pages[:-1]) & (node[1:] == node[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~continues)))
    return np.column_stack((offset[first], pfn[first], np.add.reduceat(pages, first), node[first]))

"""Virtual machines arriving at a host and leaving it, their memory handed out and taken back by four allocators.

====================== ===============================================================================================
:func:`churn_ranges`   the PFN range allocator with each of its fits (:mod:`workbench.kernels.pfn_range`)
:func:`churn_buddy`    the kernel's buddy allocator (:mod:`workbench.kernels.buddy`): unmovable blocks, as guest_memfd takes them,
                       without per-CPU lists and watermarks
:func:`churn_hugetlb`  a pool of huge pages per node, filled at boot (``mm/hugetlb.c``: ``enqueue_hugetlb_folio`` puts a
                       freed page at the head of its node's list, ``dequeue_hugetlb_folio_node_exact`` takes from there)
====================== ===============================================================================================

A machine comes if the host has as many free pages as it wants. As much of its memory as possible is taken in the
largest blocks, from the node it starts at and then from the others in fallback order; only what no node has in that
size is taken in smaller blocks, as an allocation of a high order goes through its zonelist before a lower one is tried.
Guest offsets follow the order in which it gets its memory.

``events`` is int64 (n, 3) in order of time: machine, pages it wants (0: it leaves), node it starts at.
``order_of_nodes`` is int64 (nodes, nodes), fallback order of each node, -1 filled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels import buddy, pfn_range
from workbench.kernels.buddy import Buddy
from workbench.kernels.compile import Int, inlined_kernel, kernel, record
from workbench.kernels.pfn_range import NEEDS_ROOM, OK, ONE

ARRIVED, REFUSED, GIVEN, RETURNED = 0, 1, 2, 3
"""Running counts: machines that came, machines turned away, extents handed out, extents taken back."""
MACHINES, EXTENTS, PAGES, MAPPABLE_2M, MAPPABLE_1G, LOCAL = 4, 5, 6, 7, 8, 9
"""Held now: machines, their extents, their pages, the pages that 2 MiB and 1 GiB mappings can cover, and those on the
node where their machine started."""
COUNTS = 10
FREE, LARGEST, FREE_BLOCKS, USABLE_2M, USABLE_1G, AREAS_1G = 10, 11, 12, 13, 14, 15
"""Free memory: pages, pages of the largest block that can be handed out, number of free blocks, pages in blocks that
serve a request for 2 MiB and for 1 GiB, pages in 1 GiB areas that are wholly free whoever could hand them out."""
FIELDS = 16
VM_FIRST, VM_EXTENTS, VM_PAGES, VM_2M, VM_1G, VM_LOCAL = 0, 1, 2, 3, 4, 5
VM_FIELDS = 6
ROW_PFN, ROW_PAGES, ROW_NODE, ROW_NEXT, ROW_ORDER, ROW_OFFSET = 0, 1, 2, 3, 4, 5
ROW_FIELDS = 6
PAGES_2M, PAGES_1G = 1 << 9, 1 << 18
BUDDY_ORDERS = (10, 9, 0)
"""Orders in which a machine's memory is asked for."""
BUDDIES = 8
"""The tuple of buddy systems is padded with empty ones to a multiple of this: each length is compiled anew."""


@record
class Held(NamedTuple):
    """What machines hold."""

    ranges: np.ndarray
    """int64 (rows, :data:`ROW_FIELDS`), one row for each extent held."""
    pool: np.ndarray
    """int64 (2,) = [0, -1] at the start: rows used so far, head of the list of rows given back."""
    vms: np.ndarray
    """int64 (machines, :data:`VM_FIELDS`), what each machine holds; ``vms[:, VM_FIRST]`` is -1 at the start."""
    scratch: np.ndarray
    """int64 (rows, 2), working space."""


@record
class Sampling(NamedTuple):
    """What is counted."""

    at: np.ndarray
    """int64 (s,), ascending: after these events a row of ``samples`` is written."""
    samples: np.ndarray
    """int64 (s, :data:`FIELDS`): the running counts, then the state of free memory."""
    counts: np.ndarray
    """int64 (COUNTS,), zero at the start."""


@record
class FreeRanges(NamedTuple):
    """State of the PFN range allocator (:mod:`workbench.kernels.pfn_range`): ranges, or blocks for its fit BUDDY."""

    start: np.ndarray
    end: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    blocks: np.ndarray
    blocks_count: np.ndarray


@inlined_kernel
def _mappable(offset: Int, pfn: Int, pages: Int, size: Int) -> Int:
    """Pages of an extent that mappings of ``size`` pages can cover: guest offset and pfn must agree below ``size``."""
    if (offset ^ pfn) & (size - 1):
        return 0
    return max(0, ((pfn + pages) & ~(size - 1)) - ((pfn + size - 1) & ~(size - 1)))


@inlined_kernel
def _hold(
    ranges: np.ndarray,
    pool: np.ndarray,
    vm: np.ndarray,
    counts: np.ndarray,
    pfn: Int,
    pages: Int,
    node: Int,
    order: Int,
    home: Int,
    largest: Int,
) -> bool:
    """Give a machine an extent; False when ``ranges`` is full. One that continues its last one lengthens that."""
    row = vm[VM_FIRST]
    offset = vm[VM_PAGES]
    vm[VM_PAGES] += pages
    if node == home:
        vm[VM_LOCAL] += pages
    k = np.uint64(row)
    continues = row >= 0 and ranges[k, ROW_PFN] + ranges[k, ROW_PAGES] == pfn
    if continues and ranges[k, ROW_NODE] == node and ranges[k, ROW_ORDER] == order:
        first, held = ranges[k, ROW_PFN], ranges[k, ROW_PAGES]
        offset -= held
        if largest >= PAGES_2M:
            vm[VM_2M] -= _mappable(offset, first, held, PAGES_2M)
        if largest >= PAGES_1G:
            vm[VM_1G] -= _mappable(offset, first, held, PAGES_1G)
        pfn = first
        pages += held
        ranges[k, ROW_PAGES] = pages
    else:
        if pool[1] >= 0:
            k = np.uint64(pool[1])
            pool[1] = ranges[k, ROW_NEXT]
        else:
            k = np.uint64(pool[0])
            if k == np.uint64(ranges.shape[0]):
                return False
            pool[0] += 1
        ranges[k, ROW_PFN] = pfn
        ranges[k, ROW_PAGES] = pages
        ranges[k, ROW_NODE] = node
        ranges[k, ROW_NEXT] = row
        ranges[k, ROW_ORDER] = order
        ranges[k, ROW_OFFSET] = offset
        vm[VM_FIRST] = np.int64(k)
        vm[VM_EXTENTS] += 1
        counts[GIVEN] += 1
    if largest >= PAGES_2M:
        vm[VM_2M] += _mappable(offset, pfn, pages, PAGES_2M)
    if largest >= PAGES_1G:
        vm[VM_1G] += _mappable(offset, pfn, pages, PAGES_1G)
    return True


@inlined_kernel
def _count_machine(vm: np.ndarray, counts: np.ndarray, sign: Int) -> None:
    """Add what a machine holds to the running counts, or take it off."""
    counts[MACHINES] += sign
    counts[EXTENTS] += sign * vm[VM_EXTENTS]
    counts[PAGES] += sign * vm[VM_PAGES]
    counts[MAPPABLE_2M] += sign * vm[VM_2M]
    counts[MAPPABLE_1G] += sign * vm[VM_1G]
    counts[LOCAL] += sign * vm[VM_LOCAL]


@inlined_kernel
def _settle(vm: np.ndarray, counts: np.ndarray, wanted: Int, left: Int) -> bool:
    """Count a machine that came (it ``wanted`` pages, and ``left`` of them it did not get) or leaves.

    Returns whether what it holds goes back: it leaves, or it did not get all and is turned away.
    """
    if wanted > 0 and left > 0:
        counts[REFUSED] += 1
        return True
    if wanted > 0:
        _count_machine(vm, counts, 1)
        return False
    if vm[VM_FIRST] >= 0:
        _count_machine(vm, counts, -1)
        return True
    return False


@inlined_kernel
def _recycle(ranges: np.ndarray, pool: np.ndarray, counts: np.ndarray, row: Int) -> Int:
    """Put the row of an extent given back on the list of unused ones; returns the machine's next row."""
    k = np.uint64(row)
    following = ranges[k, ROW_NEXT]
    ranges[k, ROW_NEXT] = pool[1]
    pool[1] = row
    counts[RETURNED] += 1
    return following


@inlined_kernel
def _forget(vm: np.ndarray) -> None:
    vm[VM_FIRST] = -1
    vm[VM_EXTENTS] = 0
    vm[VM_PAGES] = 0
    vm[VM_2M] = 0
    vm[VM_1G] = 0
    vm[VM_LOCAL] = 0


@kernel
def _start_sample(counts: np.ndarray, out: np.ndarray) -> None:
    for field in range(FIELDS):
        out[field] = counts[field] if field < COUNTS else 0


@kernel
def churn_ranges(
    events: np.ndarray,
    order_of_nodes: np.ndarray,
    fit: Int,
    units: np.ndarray,
    strict: bool,
    memory: FreeRanges,
    held: Held,
    sampling: Sampling,
) -> Int:
    """Carry out ``events`` with the PFN range allocator.

    Parameters
    ----------
    events, order_of_nodes : module docstring
    fit : FIRST_FIT, BEST_FIT or BUDDY
    units : int64 (u,), pages, descending powers of two, the sizes of blocks (module docstring); every size in ``events``
        is a multiple of the last
    strict : turn a machine away rather than take in smaller blocks what could be in larger ones
    memory, held, sampling : see there

    Returns
    -------
    OK, NEEDS_ROOM, or NOT_ALLOCATED if the bookkeeping is broken.
    """
    k: Int
    start, end, count = memory.start, memory.end, memory.count
    blocks, blocks_count = memory.blocks, memory.blocks_count
    ranges, pool, vms, scratch = held.ranges, held.pool, held.vms, held.scratch
    sample_at, samples, counts = sampling.at, sampling.samples, sampling.counts
    room = counts[PAGES]
    for node in range(order_of_nodes.shape[0]):
        if fit == pfn_range.BUDDY:
            room += pfn_range.buddy_usable_pages(blocks_count, node, 1)
        else:
            room += pfn_range.free_pages(start, end, count, node)
    sample = np.uint64(0)
    for number in range(events.shape[0]):
        event = events[np.uint64(number)]
        vm = vms[np.uint64(event[0])]
        left = event[1]
        if left > 0:
            counts[ARRIVED] += 1
            if left <= room - counts[PAGES]:
                fallback = order_of_nodes[np.uint64(event[2])]
                for which in range(units.shape[0]):
                    unit = units[np.uint64(which)]
                    for position in range(fallback.shape[0]):
                        node = fallback[np.uint64(position)]
                        if node < 0 or left < unit:
                            break
                        if fit == pfn_range.BUDDY:
                            rows = pfn_range.buddy_take(blocks, blocks_count, node, left, unit, scratch)
                        else:
                            rows = pfn_range.take(start, end, count, node, fit, left, unit, scratch)
                        for k in range(rows):
                            pfn, given = scratch[np.uint64(k), 0], scratch[np.uint64(k), 1]
                            if not _hold(ranges, pool, vm, counts, pfn, given, node, 0, event[2], PAGES_1G):
                                return NEEDS_ROOM
                            left -= given
                    if strict and left >= unit:
                        break
        if _settle(vm, counts, event[1], left):
            row = vm[VM_FIRST]
            while row >= 0:
                k = np.uint64(row)
                node, pfn, given = ranges[k, ROW_NODE], ranges[k, ROW_PFN], ranges[k, ROW_PAGES]
                if fit == pfn_range.BUDDY:
                    code = pfn_range.buddy_free(blocks, blocks_count, node, pfn, given)
                else:
                    code = pfn_range.free(start, end, count, node, pfn, given)
                if code != OK:
                    return code
                row = _recycle(ranges, pool, counts, row)
            _forget(vm)
        if sample < np.uint64(sample_at.shape[0]) and sample_at[sample] == number:
            _sample_ranges(fit, memory, counts, samples[sample])
            sample += ONE
    return OK


@kernel
def _sample_ranges(fit: Int, memory: FreeRanges, counts: np.ndarray, out: np.ndarray) -> None:
    start, end, count, blocks_count = memory.start, memory.end, memory.count, memory.blocks_count
    _start_sample(counts, out)
    for node in range(count.shape[0]):
        if fit == pfn_range.BUDDY:
            for order in range(blocks_count.shape[1]):
                blocks = blocks_count[node, order]
                out[FREE_BLOCKS] += blocks
                if blocks > 0:
                    out[LARGEST] = max(out[LARGEST], 1 << order)
            out[FREE] += pfn_range.buddy_usable_pages(blocks_count, node, 1)
            out[USABLE_2M] += pfn_range.buddy_usable_pages(blocks_count, node, PAGES_2M)
            out[USABLE_1G] += pfn_range.buddy_usable_pages(blocks_count, node, PAGES_1G)
        else:
            out[FREE] += pfn_range.free_pages(start, end, count, node)
            out[LARGEST] = max(out[LARGEST], pfn_range.largest(start, end, count, node))
            out[FREE_BLOCKS] += count[node]
            out[USABLE_2M] += pfn_range.usable_pages(start, end, count, node, PAGES_2M)
            out[USABLE_1G] += pfn_range.usable_pages(start, end, count, node, PAGES_1G)
    out[AREAS_1G] = out[USABLE_1G]


@kernel
def churn_buddy(
    events: np.ndarray,
    order_of_nodes: np.ndarray,
    buddies: tuple[Buddy, ...],
    held: Held,
    sampling: Sampling,
    order_counts: np.ndarray,
) -> Int:
    """Carry out ``events`` with the kernel's buddy allocator, one per node, each with one zone.

    Blocks are of orders 10, 9 and 0; they go back in the order of guest offsets, as truncation frees them.

    Parameters
    ----------
    buddies : one for each node, padded (:data:`BUDDIES`); page numbers count from the node's start
    order_counts : int64 (2, 3), receives for each of BUDDY_ORDERS: pages handed out, blocks that no node had

    The others are those of :func:`churn_ranges`. Returns OK or NEEDS_ROOM.
    """
    ranges, pool, vms = held.ranges, held.pool, held.vms
    sample_at, samples, counts = sampling.at, sampling.samples, sampling.counts
    room = counts[PAGES]
    for node in range(order_of_nodes.shape[0]):
        room += buddies[node].free_pages[0]
    sample = np.uint64(0)
    for number in range(events.shape[0]):
        event = events[np.uint64(number)]
        vm = vms[np.uint64(event[0])]
        left = event[1]
        if left > 0:
            counts[ARRIVED] += 1
            if left <= room - counts[PAGES]:
                fallback = order_of_nodes[np.uint64(event[2])]
                for which in range(len(BUDDY_ORDERS)):
                    order = BUDDY_ORDERS[which]
                    for position in range(fallback.shape[0]):
                        node = fallback[np.uint64(position)]
                        if node < 0 or left >> order == 0:
                            break
                        taken = _take_blocks(buddies[node], order, left >> order, held, vm, counts, node, event[2])
                        if taken < 0:
                            return NEEDS_ROOM
                        left -= taken
                        order_counts[0, which] += taken
                    order_counts[1, which] += left >> order
        if _settle(vm, counts, event[1], left):
            row = _in_order_of_offsets(ranges, vm[VM_FIRST])
            while row >= 0:
                order = ranges[row, ROW_ORDER]
                first, stop = ranges[row, ROW_PFN], ranges[row, ROW_PFN] + ranges[row, ROW_PAGES]
                _free_blocks(buddies[ranges[row, ROW_NODE]], first, stop, order)
                row = _recycle(ranges, pool, counts, row)
            _forget(vm)
        if sample < np.uint64(sample_at.shape[0]) and sample_at[sample] == number:
            out = samples[sample]
            _start_sample(counts, out)
            for node in range(order_of_nodes.shape[0]):
                _sample_buddy(buddies[node], out)
            sample += ONE
    return OK


@kernel
def _take_blocks(
    zone: Buddy,
    order: Int,
    wanted: Int,
    held: Held,
    vm: np.ndarray,
    counts: np.ndarray,
    node: Int,
    home: Int,
) -> Int:
    """Take up to ``wanted`` blocks from one node for a machine. Returns the pages it got or NEEDS_ROOM."""
    scratch = held.scratch
    rows = scratch.shape[0] - 1
    progress = scratch[rows]
    progress[0] = 0
    progress[1] = 0
    more: Int = 1
    while more == 1:
        more = buddy.allocate_extents(zone, 0, order, buddy.UNMOVABLE, False, wanted, scratch[:rows], progress)
        for k in range(progress[0]):
            pfn, pages = scratch[k, 0], scratch[k, 1]
            if not _hold(held.ranges, held.pool, vm, counts, pfn, pages, node, order, home, 1 << order):
                return NEEDS_ROOM
        progress[0] = 0
    return progress[1] << order


@kernel
def _in_order_of_offsets(ranges: np.ndarray, row: Int) -> Int:
    """Turn a machine's chain of extents round; returns its new head."""
    previous: Int = np.int64(-1)
    while row >= 0:
        following = ranges[row, ROW_NEXT]
        ranges[row, ROW_NEXT] = previous
        previous = row
        row = following
    return previous


@kernel
def _free_blocks(zone: Buddy, first: Int, stop: Int, order: Int) -> None:
    if order == buddy.MAX_PAGE_ORDER:
        buddy.free_largest(zone, 0, first, stop)
    else:
        for page in range(first, stop, 1 << order):
            buddy.free_block(zone, 0, page, order, False)


@kernel
def _sample_buddy(zone: Buddy, out: np.ndarray) -> None:
    """Free blocks by order from the counters, wholly free 1 GiB areas from the states of the pageblocks."""
    out[FREE] += zone.free_pages[0]
    for order in range(buddy.ORDERS):
        blocks = zone.free_blocks[0, order]
        out[FREE_BLOCKS] += blocks
        if blocks > 0:
            out[LARGEST] = max(out[LARGEST], 1 << order)
        if order >= buddy.PAGEBLOCK_ORDER:
            out[USABLE_2M] += blocks << order
    pageblocks = zone.block_type.shape[0]
    states = zone.state[pageblocks << buddy.PAGEBLOCK_ORDER :]
    per_area = PAGES_1G >> buddy.PAGEBLOCK_ORDER
    for area in range(pageblocks // per_area):
        whole = True
        for block in range(area * per_area, (area + 1) * per_area, 2):
            if states[block] != buddy.MAX_PAGE_ORDER + 1:
                whole = False
                break
        if whole:
            out[AREAS_1G] += PAGES_1G


@kernel
def churn_hugetlb(
    events: np.ndarray,
    order_of_nodes: np.ndarray,
    page_pages: Int,
    following: np.ndarray,
    head: np.ndarray,
    free: np.ndarray,
    area_free: np.ndarray,
    vms: np.ndarray,
    sampling: Sampling,
) -> Int:
    """Carry out ``events`` with pools of huge pages of ``page_pages`` pages (a power of two, 512 or 262,144).

    Parameters
    ----------
    following : int32 (huge pages,), the next page on its list, -1 at its end: free pages of a node, pages of a machine
    head : int64 (nodes,), first free huge page of each node
    free : int64 (nodes,), how many there are
    area_free : int64 (areas of 1 GiB,), free pages in each
    vms : as in :class:`Held`

    Huge page ``k`` starts at pfn ``k * page_pages``; the nodes have equal shares. A machine that wants part of a huge
    page gets a whole one. The others are those of :func:`churn_ranges`. Returns OK.
    """
    sample_at, samples, counts = sampling.at, sampling.samples, sampling.counts
    sample = np.uint64(0)
    per_node = following.shape[0] // head.shape[0]
    for number in range(events.shape[0]):
        event = events[np.uint64(number)]
        vm = vms[np.uint64(event[0])]
        if event[1] > 0:
            counts[ARRIVED] += 1
            left = (event[1] + page_pages - 1) // page_pages
            total = np.int64(0)
            for node in range(free.shape[0]):
                total += free[node]
            if total < left:  # as hugetlb_acct_memory does before any page is taken
                counts[REFUSED] += 1
            else:
                _take_huge_pages(
                    order_of_nodes[np.uint64(event[2])], left, page_pages, following, head, free, area_free, vm
                )
                counts[GIVEN] += vm[VM_EXTENTS]
                _count_machine(vm, counts, 1)
        elif vm[VM_FIRST] >= 0:
            _count_machine(vm, counts, -1)
            counts[RETURNED] += vm[VM_EXTENTS]
            page = vm[VM_FIRST]
            while page >= 0:
                node = page // per_node
                after = np.int64(following[np.uint64(page)])
                following[np.uint64(page)] = head[node]
                head[node] = page
                free[node] += 1
                area_free[(page * page_pages) >> 18] += page_pages
                page = after
            _forget(vm)
        if sample < np.uint64(sample_at.shape[0]) and sample_at[sample] == number:
            _sample_hugetlb(page_pages, free, area_free, counts, samples[sample])
            sample += ONE
    return OK


@kernel
def _take_huge_pages(
    fallback: np.ndarray,
    left: Int,
    page_pages: Int,
    following: np.ndarray,
    head: np.ndarray,
    free: np.ndarray,
    area_free: np.ndarray,
    vm: np.ndarray,
) -> None:
    """Move the first ``left`` huge pages of the nodes' lists to a machine's list; there are enough."""
    tail = np.int64(-1)
    for position in range(fallback.shape[0]):
        node = fallback[position]
        if node < 0 or left == 0:
            break
        last = np.int64(-2)
        taken = min(left, free[node])
        free[node] -= taken
        left -= taken
        vm[VM_PAGES] += taken * page_pages
        if position == 0:
            vm[VM_LOCAL] += taken * page_pages
        page = head[node]
        for _ in range(taken):
            if tail < 0:
                vm[VM_FIRST] = page
            else:
                following[np.uint64(tail)] = page
            vm[VM_EXTENTS] += page != last + 1
            area_free[np.uint64((page * page_pages) >> 18)] -= page_pages
            last = page
            tail = page
            page = np.int64(following[np.uint64(page)])
        head[node] = page
    following[np.uint64(tail)] = -1
    vm[VM_2M] = vm[VM_PAGES]
    vm[VM_1G] = vm[VM_PAGES] if page_pages >= PAGES_1G else 0


@kernel
def _sample_hugetlb(
    page_pages: Int, free: np.ndarray, area_free: np.ndarray, counts: np.ndarray, out: np.ndarray
) -> None:
    _start_sample(counts, out)
    for node in range(free.shape[0]):
        out[FREE] += free[node] * page_pages
        out[FREE_BLOCKS] += free[node]
    out[LARGEST] = page_pages if out[FREE] > 0 else 0
    out[USABLE_2M] = out[FREE]
    out[USABLE_1G] = out[FREE] if page_pages >= PAGES_1G else 0
    for area in range(area_free.shape[0]):
        if area_free[area] == PAGES_1G:
            out[AREAS_1G] += PAGES_1G

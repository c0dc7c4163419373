"""Per-CPU page lists in front of the buddy allocator: which page a CPU gets, and when it goes back to the zone.

Linux: ``mm/page_alloc.c`` (``rmqueue``, ``rmqueue_pcplist``, ``rmqueue_bulk``, ``nr_pcp_alloc``,
``free_frozen_page_commit``, ``nr_pcp_high``, ``nr_pcp_free``, ``free_pcppages_bulk``, ``zone_batchsize``,
``zone_highsize``). Every CPU keeps, for every zone, lists of orders 0 to 3 and 9. A page is taken from the head; an
empty list is refilled with a batch in one go, appended at the tail in the sequence the zone gives it. A freed page goes
to the head, so a punched range comes back with the page freed last. The lists use the links of
:class:`workbench.kernels.buddy.Buddy`, as Linux uses the same list head in ``struct page``.

Not modelled: the lag of NR_FREE_PAGES by per-CPU deltas, reclaim (ZONE_RECLAIM_ACTIVE), draining by the vmstat worker,
PCPF_FREE_HIGH_BATCH (CPUs with little cache).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.buddy import (
    MOVABLE,
    NO_PAGE,
    ORDERS,
    PAGEBLOCK_ORDER,
    PCP_LISTS,
    RMQUEUE_NORMAL,
    TYPES,
    Buddy,
    allocate_block,
    free_block,
    link_entries,
    next_entry,
    previous_entry,
    rmqueue,
)
from workbench.kernels.compile import Int, inlined_kernel, kernel

BATCH_SCALE_MAX = 5
"""CONFIG_PCP_BATCH_SCALE_MAX."""
COSTLY_ORDER = 3
"""PAGE_ALLOC_COSTLY_ORDER."""


class Pcp(NamedTuple):
    """``struct per_cpu_pages`` of every zone and CPU, and the zone flag that steers them. All int64."""

    batch: np.ndarray
    """(zones,), pages moved at once."""
    high_min: np.ndarray
    """(zones,), lower bound of ``high``."""
    high_max: np.ndarray
    """(zones,), upper bound of ``high``; equal to ``high_min`` when ``high`` is not tuned."""
    high_mark: np.ndarray
    """(zones,), high watermark plus lowmem_reserve."""
    below_high: np.ndarray
    """(zones,), ZONE_BELOW_HIGH, 0 or 1."""
    count: np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    """(zones, cpus), pages on the lists."""
    high: np.ndarray
    """(zones, cpus), pages at which lists are flushed."""
    alloc_factor: np.ndarray
    """(zones, cpus), doublings of the next refill."""
    free_count: np.ndarray
    """(zones, cpus), pages freed lately."""
    freed_high_order: np.ndarray
    """(zones, cpus), PCPF_PREV_FREE_HIGH_ORDER, 0 or 1."""


def new_pcp(buddy: Buddy, batch: np.ndarray, high_min: np.ndarray, high_max: np.ndarray, high_mark: np.ndarray) -> Pcp:
    """Empty lists for a :class:`Buddy` made with room for them. All arguments are int64 (zones,), in pages."""
    zones = len(buddy.zone_start)
    heads = len(buddy.links) // 2 - len(buddy.state)
    cpus = (heads // max(zones, 1) - ORDERS * TYPES) // PCP_LISTS
    per_cpu = (zones, cpus)
    return Pcp(
        batch=np.array(batch, np.int64),
        high_min=np.array(high_min, np.int64),
        high_max=np.array(high_max, np.int64),
        high_mark=np.array(high_mark, np.int64),
        below_high=np.zeros(zones, np.int64),
        count=np.zeros(per_cpu, np.int64),
        high=np.repeat(np.array(high_min, np.int64)[:, None], cpus, axis=1),
        alloc_factor=np.zeros(per_cpu, np.int64),
        free_count=np.zeros(per_cpu, np.int64),
        freed_high_order=np.zeros(per_cpu, np.int64),
    )


@kernel
def zone_batchsize(managed: Int) -> Int:
    """Pages moved at once between a zone of ``managed`` pages and a CPU's lists."""
    batch = min(managed >> 12, 64)
    if batch <= 1:
        return 1
    target = batch + batch // 2
    power = 1
    while 2 * power <= target:
        power *= 2
    return power - 1


@kernel
def zone_highsize(pages: Int, batch: Int, cpus: Int) -> Int:
    """Bound of the pages that one of ``cpus`` CPUs keeps, out of ``pages``.

    For ``high_min`` the low watermark, for ``high_max`` managed pages / 8; with percpu_pagelist_high_fraction ``f``
    set, managed pages / f for both. ``cpus``: those of the node, or all online CPUs when it has none.
    """
    return max(pages // cpus, 4 * batch)


@kernel
def allocate_page(
    buddy: Buddy,
    pcp: Pcp,
    zone: Int,
    cpu: Int,
    order: Int,
    migratetype: Int,
    nofragment: bool,
    mark: Int,
) -> Int:
    """Take a block as ``get_page_from_freelist`` does from one zone, if the zone passes its watermark.

    ``mark`` is the watermark of the attempt plus lowmem_reserve, in pages. Returns the first page, or NO_PAGE: below
    the mark, or nothing there.
    """
    if pcp.below_high[zone] == 0 and not watermark_ok(buddy, zone, order, pcp.high_mark[zone]):
        pcp.below_high[zone] = 1
    if pcp.below_high[zone] != 0 and not watermark_ok(buddy, zone, order, mark):
        return NO_PAGE
    if order <= COSTLY_ORDER or order == PAGEBLOCK_ORDER:
        page = take_page(buddy, pcp, zone, cpu, order, migratetype, nofragment)
        if page >= 0:
            return page
    return allocate_block(buddy, zone, order, migratetype, nofragment)


@kernel
def watermark_ok(buddy: Buddy, zone: Int, order: Int, mark: Int) -> bool:
    """Whether the zone stays above ``mark`` and, for order 1 and up, has a block. Linux: ``__zone_watermark_ok``."""
    if buddy.free_pages[zone] - ((1 << order) - 1) <= mark:
        return False
    if order == 0:
        return True
    for current in range(order, ORDERS):
        if buddy.free_blocks[zone, current] > 0:
            return True
    return False


@kernel
def take_page(buddy: Buddy, pcp: Pcp, zone: Int, cpu: Int, order: Int, migratetype: Int, nofragment: bool) -> Int:
    """Take a block of order 0 to 3 or 9 from the CPU's list, refilling it first when it is empty, or NO_PAGE.

    Linux: ``rmqueue_pcplist``.
    """
    pcp.free_count[zone, cpu] >>= 1
    head = _list(buddy, pcp, zone, cpu, _index(order, migratetype))
    if next_entry(buddy, head) == head:
        _refill(buddy, pcp, zone, cpu, order, migratetype, nofragment, head)
    page = next_entry(buddy, head)
    if page == head:
        return NO_PAGE
    link_entries(buddy, head, next_entry(buddy, page))
    pcp.count[zone, cpu] -= 1 << order
    return np.int64(page)


@kernel
def free_page(buddy: Buddy, pcp: Pcp, zone: Int, cpu: Int, page: Int, order: Int) -> None:
    """Free a block to the CPU's list, and a batch of the list to the zone when it is full.

    Blocks of order 4 to 8 and 10 go to the zone at once. Linux: ``__free_frozen_pages``, ``free_frozen_page_commit``.
    """
    if order > COSTLY_ORDER and order != PAGEBLOCK_ORDER:
        free_block(buddy, zone, page, order, False)
        return
    index = _index(order, np.int64(buddy.block_type[page >> PAGEBLOCK_ORDER]))
    head = _list(buddy, pcp, zone, cpu, index)
    first, entry = next_entry(buddy, head), np.uint32(page)
    link_entries(buddy, head, entry)
    link_entries(buddy, entry, first)
    pcp.alloc_factor[zone, cpu] >>= 1
    pcp.count[zone, cpu] += 1 << order

    batch = pcp.batch[zone]
    # Blocks of order 1 to 3 fragment memory while they wait here, so a long run of such frees flushes them.
    flush_all = False
    if 0 < order <= COSTLY_ORDER:
        enough = pcp.free_count[zone, cpu] >= batch + pcp.high_min[zone] // 2
        flush_all = enough and pcp.freed_high_order[zone, cpu] != 0
        pcp.freed_high_order[zone, cpu] = 1
    else:
        pcp.freed_high_order[zone, cpu] = 0
    if pcp.free_count[zone, cpu] < batch << BATCH_SCALE_MAX:
        pcp.free_count[zone, cpu] += 1 << order

    high = _flush_level(pcp, zone, cpu, flush_all)
    if pcp.count[zone, cpu] < high:
        return
    to_free = _flush_count(pcp, zone, cpu, high, flush_all)
    while to_free > 0 and pcp.count[zone, cpu] > 0:
        some = min(to_free, batch)
        flush(buddy, pcp, zone, cpu, some, index)
        to_free -= some
    if watermark_ok(buddy, zone, 0, pcp.high_mark[zone]):
        pcp.below_high[zone] = 0


@kernel
def flush(buddy: Buddy, pcp: Pcp, zone: Int, cpu: Int, count: Int, index: Int) -> None:
    """Give ``count`` pages back to the zone: from the tails, list ``index`` first, then the next lists in turn.

    Linux: ``free_pcppages_bulk``. ``count`` may be larger than the lists: then all pages go back.
    """
    count = min(count, pcp.count[zone, cpu])
    while count > 0:
        head = _list(buddy, pcp, zone, cpu, index)
        order = index // TYPES if index < 4 * TYPES else PAGEBLOCK_ORDER
        while count > 0 and previous_entry(buddy, head) != head:
            page = previous_entry(buddy, head)
            link_entries(buddy, previous_entry(buddy, page), head)
            count -= 1 << order
            pcp.count[zone, cpu] -= 1 << order
            free_block(buddy, zone, np.int64(page), order, False)
        index = (index + 1) % PCP_LISTS


@kernel
def list_entries(buddy: Buddy, pcp: Pcp, zone: Int, cpu: Int, index: Int, out: np.ndarray) -> Int:
    """Write the pages of one list, first entry first, to ``out`` and return how many there are."""
    head = _list(buddy, pcp, zone, cpu, index)
    entry, count = next_entry(buddy, head), 0
    while entry != head:
        if count < out.shape[0]:
            out[count] = entry
        count += 1
        entry = next_entry(buddy, entry)
    return count


@inlined_kernel
def _index(order: Int, migratetype: Int) -> Int:
    """``order_to_pindex``"""
    if order == PAGEBLOCK_ORDER:
        return 4 * TYPES + (1 if migratetype == MOVABLE else 0)
    return order * TYPES + migratetype


@inlined_kernel
def _list(buddy: Buddy, pcp: Pcp, zone: Int, cpu: Int, index: Int) -> np.uint32:
    zones, cpus = pcp.count.shape
    return np.uint32(buddy.state.shape[0] + zones * ORDERS * TYPES + (zone * cpus + cpu) * PCP_LISTS + index)


@kernel
def _refill(
    buddy: Buddy,
    pcp: Pcp,
    zone: Int,
    cpu: Int,
    order: Int,
    migratetype: Int,
    nofragment: bool,
    head: np.uint32,
) -> None:
    """``rmqueue_bulk``"""
    mode: Int = RMQUEUE_NORMAL
    for _ in range(_refill_count(pcp, zone, cpu, order)):
        page, mode = rmqueue(buddy, zone, order, migratetype, nofragment, mode)
        if page < 0:
            break
        last, entry = previous_entry(buddy, head), np.uint32(page)
        link_entries(buddy, last, entry)
        link_entries(buddy, entry, head)
        pcp.count[zone, cpu] += 1 << order


@kernel
def _refill_count(pcp: Pcp, zone: Int, cpu: Int, order: Int) -> Int:
    """``nr_pcp_alloc``"""
    base = pcp.batch[zone]
    high = min(max(pcp.high[zone, cpu], pcp.high_min[zone]), pcp.high_max[zone])
    pcp.high[zone, cpu] = high
    if high < base:
        return 1
    batch = base
    if order == 0:
        batch <<= pcp.alloc_factor[zone, cpu]
    if pcp.high_min[zone] != pcp.high_max[zone] and pcp.below_high[zone] == 0:
        high = min(high + batch, pcp.high_max[zone])
        pcp.high[zone, cpu] = high
    if order == 0:
        most = max(high - pcp.count[zone, cpu] - base, base)
        if batch <= most and pcp.alloc_factor[zone, cpu] < BATCH_SCALE_MAX:
            pcp.alloc_factor[zone, cpu] += 1
        batch = min(batch, most)
    return max(batch >> order, 2) if batch > 1 else batch


@kernel
def _flush_level(pcp: Pcp, zone: Int, cpu: Int, flush_all: bool) -> Int:
    """``nr_pcp_high``"""
    batch, high_min, high_max = pcp.batch[zone], pcp.high_min[zone], pcp.high_max[zone]
    high = min(max(pcp.high[zone, cpu], high_min), high_max)
    pcp.high[zone, cpu] = high
    if high == 0:
        return 0
    if flush_all:
        pcp.high[zone, cpu] = max(high - (batch << BATCH_SCALE_MAX), high_min)
        return 0
    if high_min == high_max:
        return high
    if pcp.below_high[zone] != 0:
        pcp.high[zone, cpu] = max(high - max(pcp.free_count[zone, cpu], batch), high_min)
        return max(pcp.count[zone, cpu], high_min)
    wanted = pcp.free_count[zone, cpu] + batch
    if pcp.count[zone, cpu] >= high and high < wanted:
        pcp.high[zone, cpu] = min(max(wanted, high_min), high_max)
    return high


@kernel
def _flush_count(pcp: Pcp, zone: Int, cpu: Int, high: Int, flush_all: bool) -> Int:
    """``nr_pcp_free``"""
    batch = pcp.batch[zone]
    if flush_all:
        return min(pcp.count[zone, cpu], batch << BATCH_SCALE_MAX)
    if high < batch:
        return 1
    return min(max(pcp.free_count[zone, cpu], batch), high - batch)

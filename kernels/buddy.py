"""The buddy allocator of every zone, with free lists in the order Linux keeps them.

Linux: ``mm/page_alloc.c`` (``__rmqueue``, ``__rmqueue_smallest``, ``__rmqueue_claim``, ``__rmqueue_steal``, ``expand``,
``__free_one_page``, ``buddy_merge_likely``, ``split_large_buddy``, ``__free_pages_core``, ``try_to_claim_block``) and
``mm/memblock.c`` (``__free_pages_memory``). Free blocks have orders 0 to 10 and lie on one list per zone, order and
migratetype; which entry a list has first decides which pfn comes next, so the lists are kept link by link.

All zones share one set of arrays, :class:`Buddy`. A *page* is pfn minus a base that is a multiple of 1024. What lies
on a list is an *entry*: the first page of a block up to order 8, or ``pages + pageblock`` for orders 9 and 10, so that
a terabyte of free memory is a list of a few megabytes, side by side. List heads are the entries behind these, as
``struct list_head`` in ``struct free_area``.

Not modelled: CMA, MIGRATE_HIGHATOMIC and MIGRATE_ISOLATE lists, shuffling, compaction capture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

MAX_PAGE_ORDER = 10
ORDERS = 11
PAGEBLOCK_ORDER = 9
MAX_BLOCK_PAGES = 1024
UNMOVABLE, MOVABLE, RECLAIMABLE = 0, 1, 2
"""enum migratetype, include/linux/mmzone.h."""
TYPES = 3
RMQUEUE_NORMAL, RMQUEUE_CLAIM, RMQUEUE_STEAL = 0, 2, 3
"""enum rmqueue_mode: where the next page of one refill is looked for first."""
NO_PAGE = -1

_FALLBACKS = ((RECLAIMABLE, MOVABLE), (RECLAIMABLE, UNMOVABLE), (UNMOVABLE, MOVABLE))


class Buddy(NamedTuple):
    """State of all zones. ``pages`` is a multiple of 1024."""

    links: np.ndarray
    """uint32 (2 * entries,): previous and next of each entry: pages, pageblocks, and 33 heads per zone."""
    state: np.ndarray
    """uint8 (pages + pageblocks,): order + 1 in the entry of a free block, 0 elsewhere."""
    block_type: np.ndarray
    """uint8 (pages / 512,): migratetype of each pageblock."""
    lru_pages: np.ndarray
    """int64 (pageblocks,): allocated pages on LRU lists, which count as movable when the pageblock is to be claimed. The
    owner of the pages keeps it, with :func:`add_lru`."""
    zone_start: np.ndarray
    """int64 (zones,): first page."""
    zone_end: np.ndarray
    """int64 (zones,): page after the last."""
    free_blocks: np.ndarray
    """int64 (zones, 11): free blocks of each order (``free_area.nr_free``)."""
    free_pages: np.ndarray
    """int64 (zones,): NR_FREE_PAGES."""
    partial_claims: np.ndarray
    """int64 (zones,): attempts to claim a pageblock that was not wholly free; each boosts the watermark in Linux."""


def new_buddy(zone_start: np.ndarray, zone_end: np.ndarray, block_type: int = MOVABLE) -> Buddy:
    """Arrays for zones that cover ``[zone_start, zone_end)`` (int64 (zones,), pages), with empty free lists.

    ``block_type`` is that of every pageblock, MOVABLE after boot.
    """
    zones = len(zone_start)
    pages = -(-int(max(zone_end, default=0)) // MAX_BLOCK_PAGES) * MAX_BLOCK_PAGES
    entries = pages + (pages >> PAGEBLOCK_ORDER)
    buddy = Buddy(
        links=np.empty(2 * (entries + zones * ORDERS * TYPES), np.uint32),
        state=np.zeros(entries, np.uint8),
        block_type=np.full(pages >> PAGEBLOCK_ORDER, block_type, np.uint8),
        lru_pages=np.zeros(pages >> PAGEBLOCK_ORDER, np.int64),
        zone_start=np.array(zone_start, np.int64),
        zone_end=np.array(zone_end, np.int64),
        free_blocks=np.zeros((zones, ORDERS), np.int64),
        free_pages=np.zeros(zones, np.int64),
        partial_claims=np.zeros(zones, np.int64),
    )
    empty_lists(buddy)
    return buddy


@kernel
def empty_lists(buddy: Buddy) -> None:
    """Make every free list empty. The other fields are left alone."""
    for entry in range(buddy.state.shape[0], buddy.links.shape[0] // 2):
        buddy.links[2 * entry] = entry
        buddy.links[2 * entry + 1] = entry


@kernel
def release_range(buddy: Buddy, zone: Int, start: Int, end: Int) -> None:
    """Give ``[start, end)`` to the allocator as boot and memory hotplug do: largest aligned blocks, at the tail.

    Linux: ``__free_pages_memory``, ``__free_pages_core``.
    """
    page = start
    while page < end:
        order = MAX_PAGE_ORDER
        while page & ((1 << order) - 1) or page + (1 << order) > end:
            order -= 1
        free_block(buddy, zone, page, order, True)
        page += 1 << order


@inlined_kernel
def allocate_block(buddy: Buddy, zone: Int, order: Int, migratetype: Int, nofragment: bool) -> Int:
    """Take one block and return its first page, or NO_PAGE.

    Parameters
    ----------
    order : 0 to 10
    migratetype : UNMOVABLE (guest_memfd), MOVABLE (tmpfs, anonymous) or RECLAIMABLE
    nofragment : ALLOC_NOFRAGMENT: only whole pageblocks may change their type
    """
    return rmqueue(buddy, zone, order, migratetype, nofragment, RMQUEUE_NORMAL)[0]


@kernel
def allocate_blocks(
    buddy: Buddy, zone: Int, order: Int, migratetype: Int, nofragment: bool, count: Int, out: np.ndarray
) -> Int:
    """Take ``count`` blocks one by one; their first pages go to ``out``. Returns how many there were."""
    for position in range(count):
        page = allocate_block(buddy, zone, order, migratetype, nofragment)
        if page < 0:
            return position
        out[position] = page
    return count


@inlined_kernel
def rmqueue(buddy: Buddy, zone: Int, order: Int, migratetype: Int, nofragment: bool, mode: Int) -> tuple[Int, Int]:
    """Take one block: (first page or NO_PAGE, mode for the next block of the same refill). Linux: ``__rmqueue``."""
    if mode == RMQUEUE_NORMAL:
        page = _take_smallest(buddy, zone, order, migratetype)
        if page >= 0:
            return page, RMQUEUE_NORMAL
    if mode != RMQUEUE_STEAL:
        page = _claim(buddy, zone, order, migratetype, nofragment)
        if page >= 0:
            return page, RMQUEUE_NORMAL
    if not nofragment:
        page = _steal(buddy, zone, order, migratetype)
        if page >= 0:
            return page, RMQUEUE_STEAL
    return NO_PAGE, mode


@inlined_kernel
def free_block(buddy: Buddy, zone: Int, page: Int, order: Int, to_tail: bool) -> None:
    """Free one block of the zone and merge it with its free buddies.

    ``to_tail`` is FPI_TO_TAIL: memory that comes from boot or hotplug. The block must be allocated.
    Linux: ``split_large_buddy`` (a block of order 10 is freed as two pageblocks), ``__free_one_page``.
    """
    part = min(order, PAGEBLOCK_ORDER)
    for first in range(page, page + (1 << order), 1 << part):
        _free_one_page(buddy, zone, first, part, to_tail)


@kernel
def free_largest(buddy: Buddy, zone: Int, start: Int, end: Int) -> None:
    """Free the blocks of order 10 in ``[start, end)`` one by one: what :func:`free_block` leaves, without its detour.

    Of the two pageblocks of such a block the second finds the first free, and the whole takes its own migratetype.
    """
    for page in range(start, end, MAX_BLOCK_PAGES):
        pageblock = page >> PAGEBLOCK_ORDER
        migratetype = np.int64(buddy.block_type[np.uint32(pageblock + 1)])
        buddy.block_type[np.uint32(pageblock)] = migratetype
        _insert(buddy, zone, _entry_of(buddy, page, MAX_PAGE_ORDER), MAX_PAGE_ORDER, migratetype, False)
    buddy.free_pages[np.uint64(zone)] += end - start


@kernel
def free_blocks(buddy: Buddy, zone: Int, pages: np.ndarray, order: Int) -> None:
    """Free the blocks of one order that start at ``pages``, one by one in that order."""
    for position in range(pages.shape[0]):
        free_block(buddy, zone, pages[position], order, False)


@kernel
def churn(
    buddy: Buddy,
    zone: Int,
    migratetype: Int,
    slots: np.ndarray,
    orders: np.ndarray,
    held: np.ndarray,
    held_order: np.ndarray,
) -> Int:
    """A stream of frees and allocations by slot; the load that other users put on a zone.

    Step ``i`` frees the block held by ``slots[i]``, if there is one, then takes one of ``orders[i]`` (-1: none).

    Parameters
    ----------
    slots, orders : int32 (steps,), int8 (steps,)
    held, held_order : int64 (slots,), int8 (slots,), first page (-1: none) and order of the block in each slot

    Returns
    -------
    Number of requests that found no block.
    """
    refused: Int = 0
    for step in range(slots.shape[0]):
        slot = np.uint32(slots[step])
        if held[slot] >= 0:
            free_block(buddy, zone, held[slot], np.int64(held_order[slot]), False)
            held[slot] = NO_PAGE
        if orders[step] >= 0:
            page = allocate_block(buddy, zone, np.int64(orders[step]), migratetype, False)
            held[slot] = page
            held_order[slot] = orders[step]
            refused += page < 0
    return refused


@kernel
def allocate_extents(
    buddy: Buddy,
    zone: Int,
    order: Int,
    migratetype: Int,
    nofragment: bool,
    count: Int,
    extents: np.ndarray,
    progress: np.ndarray,
) -> Int:
    """Take ``count`` blocks at once: the same blocks in the same sequence as :func:`allocate_blocks`, as extents.

    While the lists below the smallest sufficient block are empty, that block is handed out from its first page to its
    last before another one is touched. So it is taken off its list whole.

    Parameters
    ----------
    extents : int64 (rows, 2), receives first page and pages of each extent, in the sequence they are taken
    progress : int64 (2,), zero at first: rows written, blocks taken; carries on when ``extents`` was full

    Returns
    -------
    0 when ``count`` blocks were taken or none is left (``progress[1]`` tells), 1 when ``extents`` is full.
    """
    while progress[1] < count:
        if progress[0] == extents.shape[0]:
            return 1
        current = _smallest_order(buddy, zone, order, migratetype)
        if current < 0:
            taken = _claim_list(buddy, zone, order, migratetype, count - progress[1], extents, progress)
            progress[1] += taken
            if taken > 0:
                continue
            page = rmqueue(buddy, zone, order, migratetype, nofragment, RMQUEUE_CLAIM)[0]
            if page < 0:
                return 0
            _add_extent(extents, progress, page, 1 << order)
            progress[1] += 1
            continue
        whole = (count - progress[1]) >> (current - order)
        if whole > 0:
            progress[1] += _take_list(buddy, zone, current, migratetype, whole, extents, progress) << (current - order)
        else:
            page = _first_page(buddy, zone, current, migratetype)
            taken = (count - progress[1]) << order
            _remove(buddy, zone, _entry_of(buddy, page, current), current)
            _insert_rest(buddy, zone, page, current, taken, migratetype)
            _add_extent(extents, progress, page, taken)
            progress[1] = count
    return 0


@inlined_kernel
def _add_extent(extents: np.ndarray, progress: np.ndarray, page: Int, pages: Int) -> None:
    row = progress[0]
    if row > 0 and extents[row - 1, 0] + extents[row - 1, 1] == page:
        extents[row - 1, 1] += pages
    else:
        extents[row, 0] = page
        extents[row, 1] = pages
        progress[0] = row + 1


@kernel
def _take_list(
    buddy: Buddy, zone: Int, order: Int, migratetype: Int, most: Int, extents: np.ndarray, progress: np.ndarray
) -> Int:
    """Take whole blocks from one list, first entry first, until ``most``, the end or full ``extents``."""
    head = list_head(buddy, zone, order, migratetype)
    entry, taken = next_entry(buddy, head), 0
    while entry != head and taken < most and progress[0] < extents.shape[0]:
        buddy.state[entry] = 0
        _add_extent(extents, progress, _page_of(buddy, entry, order), 1 << order)
        taken += 1
        entry = next_entry(buddy, entry)
    link_entries(buddy, head, entry)
    buddy.free_blocks[zone, order] -= taken
    buddy.free_pages[zone] -= taken << order
    return taken


@kernel
def _claim_list(
    buddy: Buddy, zone: Int, order: Int, migratetype: Int, count: Int, extents: np.ndarray, progress: np.ndarray
) -> Int:
    """Claim and take whole blocks of order 9 or 10 from one list, as :func:`_claim` would with all own lists empty.

    ``count`` is in blocks of ``order``, and so is what is returned.
    """
    for current in range(MAX_PAGE_ORDER, max(order, PAGEBLOCK_ORDER) - 1, -1):
        fallback = _fallback_type(buddy, zone, current, migratetype)
        if fallback < 0:
            continue
        whole = count >> (current - order)
        if whole == 0:
            return 0
        head = list_head(buddy, zone, current, fallback)
        entry = next_entry(buddy, head)  # the links of what is taken stay as they were
        taken = _take_list(buddy, zone, current, fallback, whole, extents, progress)
        for _ in range(taken):
            _set_block_types(buddy, _page_of(buddy, entry, current), current, migratetype)
            entry = next_entry(buddy, entry)
        return taken << (current - order)
    return 0


@kernel
def recount(buddy: Buddy, zone: Int, counts: np.ndarray) -> Int:
    """Walk all lists of a zone and count their blocks: int64 (11, 3) by order and migratetype.

    Returns 0, or -1 when a link, a page's state, a pageblock's type or a counter disagrees with the lists.
    """
    counts[:, :] = 0
    total = 0
    for order in range(ORDERS):
        blocks = 0
        for migratetype in range(TYPES):
            head = list_head(buddy, zone, order, migratetype)
            previous, entry = head, next_entry(buddy, head)
            while entry != head:
                page = _page_of(buddy, entry, order)
                if previous_entry(buddy, entry) != previous or buddy.state[entry] != order + 1:
                    return -1
                if buddy.block_type[page >> PAGEBLOCK_ORDER] != migratetype or page & ((1 << order) - 1):
                    return -1
                counts[order, migratetype] += 1
                previous, entry = entry, next_entry(buddy, entry)
            blocks += counts[order, migratetype]
        if blocks != buddy.free_blocks[zone, order]:
            return -1
        total += blocks << order
    return 0 if total == buddy.free_pages[zone] else -1


@kernel
def list_pages(buddy: Buddy, zone: Int, order: Int, migratetype: Int, out: np.ndarray) -> Int:
    """Write the first pages of one free list, first entry first, to ``out`` and return how many there are."""
    head = list_head(buddy, zone, order, migratetype)
    entry, count = next_entry(buddy, head), 0
    while entry != head:
        if count < out.shape[0]:
            out[count] = _page_of(buddy, entry, order)
        count += 1
        entry = next_entry(buddy, entry)
    return count


@kernel
def add_lru(buddy: Buddy, page: Int, pages: Int, sign: Int) -> None:
    """Say that allocated pages were put on LRU lists (``sign`` 1), or taken off them (-1) before they are freed."""
    while pages > 0:
        here = min(pages, (1 << PAGEBLOCK_ORDER) - (page & ((1 << PAGEBLOCK_ORDER) - 1)))
        buddy.lru_pages[page >> PAGEBLOCK_ORDER] += sign * here
        page += here
        pages -= here


# One list entry. Indices are unsigned, because Numba adds a test for negative ones to every signed index.


@inlined_kernel
def list_head(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> np.uint32:
    return np.uint32(buddy.state.shape[0] + (zone * ORDERS + order) * TYPES + migratetype)


@inlined_kernel
def previous_entry(buddy: Buddy, entry: np.uint32) -> np.uint32:
    return buddy.links[np.uint64(entry) << np.uint64(1)]


@inlined_kernel
def next_entry(buddy: Buddy, entry: np.uint32) -> np.uint32:
    return buddy.links[(np.uint64(entry) << np.uint64(1)) | np.uint64(1)]


@inlined_kernel
def link_entries(buddy: Buddy, before: np.uint32, after: np.uint32) -> None:
    buddy.links[(np.uint64(before) << np.uint64(1)) | np.uint64(1)] = after
    buddy.links[np.uint64(after) << np.uint64(1)] = before


@inlined_kernel
def _entry_of(buddy: Buddy, page: Int, order: Int) -> np.uint32:
    if order < PAGEBLOCK_ORDER:
        return np.uint32(page)
    return np.uint32((buddy.block_type.shape[0] << PAGEBLOCK_ORDER) + (page >> PAGEBLOCK_ORDER))


@inlined_kernel
def _page_of(buddy: Buddy, entry: np.uint32, order: Int) -> Int:
    if order < PAGEBLOCK_ORDER:
        return np.int64(entry)
    return (np.int64(entry) << PAGEBLOCK_ORDER) - (buddy.block_type.shape[0] << (2 * PAGEBLOCK_ORDER))


@inlined_kernel
def _first_page(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> Int:
    return _page_of(buddy, next_entry(buddy, list_head(buddy, zone, order, migratetype)), order)


@inlined_kernel
def _insert(buddy: Buddy, zone: Int, entry: np.uint32, order: Int, migratetype: Int, to_tail: bool | np.bool_) -> None:
    """``__add_to_free_list``"""
    head = list_head(buddy, zone, order, migratetype)
    buddy.state[entry] = order + 1
    if to_tail:
        last = previous_entry(buddy, head)
        link_entries(buddy, last, entry)
        link_entries(buddy, entry, head)
    else:
        first = next_entry(buddy, head)
        link_entries(buddy, head, entry)
        link_entries(buddy, entry, first)
    buddy.free_blocks[np.uint64(zone), np.uint64(order)] += 1


@inlined_kernel
def _remove(buddy: Buddy, zone: Int, entry: np.uint32, order: Int) -> None:
    """``__del_page_from_free_list``; NR_FREE_PAGES is the caller's."""
    link_entries(buddy, previous_entry(buddy, entry), next_entry(buddy, entry))
    buddy.state[entry] = 0
    buddy.free_blocks[np.uint64(zone), np.uint64(order)] -= 1


@inlined_kernel
def _smallest_order(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> Int:
    for current in range(order, ORDERS):
        head = list_head(buddy, zone, current, migratetype)
        if next_entry(buddy, head) != head:
            return current
    return -1


@inlined_kernel
def _take_smallest(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> Int:
    """``__rmqueue_smallest``"""
    current = _smallest_order(buddy, zone, order, migratetype)
    if current < 0:
        return NO_PAGE
    return _remove_and_expand(buddy, zone, order, current, migratetype)


@inlined_kernel
def _remove_and_expand(buddy: Buddy, zone: Int, order: Int, current: Int, migratetype: Int) -> Int:
    """``page_del_and_expand`` of the first block of a list: upper halves go to the heads of their lists."""
    entry = next_entry(buddy, list_head(buddy, zone, current, migratetype))
    page = _page_of(buddy, entry, current)
    _remove(buddy, zone, entry, current)
    buddy.free_pages[np.uint64(zone)] -= 1 << order
    if order < current == MAX_PAGE_ORDER:
        current = PAGEBLOCK_ORDER
        upper = page + (1 << PAGEBLOCK_ORDER)
        _insert(buddy, zone, _entry_of(buddy, upper, PAGEBLOCK_ORDER), PAGEBLOCK_ORDER, migratetype, False)
    while current > order:
        current -= 1
        _insert(buddy, zone, np.uint32(page + (1 << current)), current, migratetype, False)
    return page


@kernel
def _insert_rest(buddy: Buddy, zone: Int, page: Int, order: Int, taken: Int, migratetype: Int) -> None:
    """Keep what is left of a block of ``order`` whose first ``taken`` pages are handed out."""
    buddy.free_pages[zone] -= taken
    rest = (1 << order) - taken
    page += taken
    for current in range(order):
        if rest & (1 << current):
            _insert(buddy, zone, _entry_of(buddy, page, current), current, migratetype, False)
            page += 1 << current


@kernel
def _fallback_type(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> Int:
    """First fallback migratetype that has a free block of ``order``, or -1. ``find_suitable_fallback``"""
    if buddy.free_blocks[zone, order] > 0:
        for fallback in _FALLBACKS[migratetype]:
            head = list_head(buddy, zone, order, fallback)
            if next_entry(buddy, head) != head:
                return fallback
    return -1


@kernel
def _claim(buddy: Buddy, zone: Int, order: Int, migratetype: Int, nofragment: bool) -> Int:
    """``__rmqueue_claim``: take from the largest foreign block and let its pageblock change its type."""
    lowest = order
    if nofragment and order < PAGEBLOCK_ORDER:
        lowest = PAGEBLOCK_ORDER
    if migratetype == MOVABLE:  # should_try_claim_block: small movable requests do not pollute less by claiming
        lowest = max(lowest, PAGEBLOCK_ORDER // 2)
    for current in range(MAX_PAGE_ORDER, lowest - 1, -1):
        fallback = _fallback_type(buddy, zone, current, migratetype)
        if fallback >= 0:
            page = _first_page(buddy, zone, current, fallback)
            if current >= PAGEBLOCK_ORDER:
                _remove(buddy, zone, _entry_of(buddy, page, current), current)
                _set_block_types(buddy, page, current, migratetype)
                _insert(buddy, zone, _entry_of(buddy, page, current), current, migratetype, False)
                return _remove_and_expand(buddy, zone, order, current, migratetype)
            if _claim_part(buddy, zone, page, fallback, migratetype):
                return _take_smallest(buddy, zone, order, migratetype)
    return NO_PAGE


@kernel
def _set_block_types(buddy: Buddy, page: Int, order: Int, migratetype: Int) -> None:
    """``change_pageblock_range``"""
    for block in range(page >> PAGEBLOCK_ORDER, (page + (1 << order)) >> PAGEBLOCK_ORDER):
        buddy.block_type[block] = migratetype


@kernel
def _claim_part(buddy: Buddy, zone: Int, page: Int, block_type: Int, migratetype: Int) -> bool:
    """``try_to_claim_block`` for less than a pageblock: change its type if at least half of it is compatible."""
    buddy.partial_claims[zone] += 1
    block_pages = 1 << PAGEBLOCK_ORDER
    start = page & ~(block_pages - 1)
    end = start + block_pages
    if start < buddy.zone_start[zone] or end > buddy.zone_end[zone]:
        return False
    free: Int = 0
    movable: Int = buddy.lru_pages[start >> PAGEBLOCK_ORDER]
    current = start
    while current < end:
        state = np.int64(buddy.state[current])
        if state == 0:
            current += 1
        else:
            free += 1 << (state - 1)
            current += 1 << (state - 1)
    alike: Int = 0
    if migratetype == MOVABLE:
        alike = movable
    elif block_type == MOVABLE:
        alike = block_pages - (free + movable)
    if free + alike < block_pages // 2:
        return False
    current = start
    while current < end:
        state = np.int64(buddy.state[current])
        if state == 0:
            current += 1
        else:
            order = state - 1
            _remove(buddy, zone, np.uint32(current), order)
            _insert(buddy, zone, np.uint32(current), order, migratetype, True)
            current += 1 << order
    buddy.block_type[start >> PAGEBLOCK_ORDER] = migratetype
    return True


@kernel
def _steal(buddy: Buddy, zone: Int, order: Int, migratetype: Int) -> Int:
    """``__rmqueue_steal``: split the smallest sufficient foreign block; its pageblock keeps its type."""
    for current in range(order, ORDERS):
        fallback = _fallback_type(buddy, zone, current, migratetype)
        if fallback >= 0:
            return _remove_and_expand(buddy, zone, order, current, fallback)
    return NO_PAGE


@inlined_kernel
def _is_free(buddy: Buddy, page: Int, order: Int, start: Int, end: Int) -> bool | np.bool_:
    """``page_is_buddy``, for a zone that covers ``[start, end)``"""
    return start <= page < end and buddy.state[_entry_of(buddy, page, order)] == order + 1


@inlined_kernel
def _free_one_page(buddy: Buddy, zone: Int, page: Int, order: Int, to_tail: bool | np.bool_) -> None:
    """``__free_one_page``"""
    migratetype = np.int64(buddy.block_type[np.uint32(page >> PAGEBLOCK_ORDER)])
    start, end = buddy.zone_start[np.uint64(zone)], buddy.zone_end[np.uint64(zone)]
    buddy.free_pages[np.uint64(zone)] += 1 << order
    while order < PAGEBLOCK_ORDER:
        other = page ^ (1 << order)
        if other < start or other >= end or buddy.state[np.uint32(other)] != order + 1:
            break
        _remove(buddy, zone, np.uint32(other), order)
        page &= other
        order += 1
    if order == PAGEBLOCK_ORDER:
        other = page ^ (1 << PAGEBLOCK_ORDER)
        if _is_free(buddy, other, PAGEBLOCK_ORDER, start, end):
            _remove(buddy, zone, _entry_of(buddy, other, PAGEBLOCK_ORDER), PAGEBLOCK_ORDER)
            buddy.block_type[np.uint32(other >> PAGEBLOCK_ORDER)] = migratetype
            page &= other
            order = MAX_PAGE_ORDER
    # If the block above is likely to become free soon, this one goes to the tail to stay whole for the merge.
    if not to_tail and order < MAX_PAGE_ORDER - 1:
        above = page & ~(1 << order)
        to_tail = _is_free(buddy, above ^ (2 << order), order + 1, start, end)
    _insert(buddy, zone, _entry_of(buddy, page, order), order, migratetype, to_tail)

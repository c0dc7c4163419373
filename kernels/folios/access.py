"""Faults, pins, memory failure, punched holes and the end of a file of :mod:`workbench.kernels.folios.run`.

Faults follow ``virt/kvm/guest_memfd.c`` (``kvm_gmem_fault_user_mapping``, ``kvm_gmem_get_pfn``,
``kvm_gmem_error_folio``) with the proposals' private/shared state; the end of a file follows generation B's
``guestmem_hugetlb`` (a page goes back to hugetlb when the last reference to any of its 4 KiB is gone). A hole is punched
huge page by huge page in B; C looks at all of the range before it frees any.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import ALL, ONE, ZERO, popcount, test_bit
from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.content import forget_content, touch_content, touch_unmapped
from workbench.kernels.folios.poison import add_poison, any_poison, forget_poison, never_handed_out
from workbench.kernels.folios.references import first_referenced, lru_add, row_of_references, spin
from workbench.kernels.folios.second_stage import (
    has_huge_leaf,
    is_mapped,
    map_alike,
    map_page,
    returned,
    unmap_range,
)
from workbench.kernels.folios.split import enter_pool, insert, leave_file, merge_range, split_2m, split_at
from workbench.kernels.folios.state import *


@inlined_natural_kernel
def _single(s: FolioState, page: int) -> bool:
    """Whether a 4 KiB folio that was allocated singly is there; where the level is BASE."""
    return (s.pages[page >> 6, PRESENT] >> np.uint64(page & 63)) & ONE == ONE


@natural_kernel
def is_present(s: FolioState, page: int) -> bool:
    level = s.blocks[page >> 9, LEVEL]
    return level >= SPLIT or (level == BASE and _single(s, page))


@natural_kernel
def _is_poisoned(s: FolioState, page: int) -> bool:
    """Whether the folio of the page has the mark of poison: a folio in one piece on its first page only."""
    if s.numbers[N_POISONED] == 0:
        return False
    page = _head(s, page)
    return any_poison(s, page, page + 1)


@natural_kernel
def _head(s: FolioState, page: int) -> int:
    """First page of the folio that a page is part of."""
    level = s.blocks[page >> 9, LEVEL]
    return page & -(PAGES_1G if level == HUGE_1G else PAGES_2M if level == HUGE_2M else 1)


@natural_kernel
def populate(s: FolioState, page: int, node: int, cpu: int) -> int:
    """Give the page a folio of the file's size, or of the next smaller size where that is allowed."""
    block = page >> 9
    giga = block >> 9
    if is_present(s, page):
        return 0
    if node < 0 or node >= s.host.shape[0]:
        return EINVAL
    fallback = s.options[FALLBACK] == 1
    blocks = np.int64(0)
    if s.options[BACKING] == ORDER_1G and s.blocks[block, LEVEL] == NONE:
        free_block = True
        if fallback:
            for other in range(giga << 9, (giga + 1) << 9):
                free_block = free_block and s.blocks[other, LEVEL] == NONE
        if free_block and s.host[node, POOL + 1] > never_handed_out(s, node, 1):
            blocks = BLOCKS_1G
        elif not fallback:
            return ENOMEM
    if blocks == 0 and s.options[BACKING] >= ORDER_2M and s.blocks[block, LEVEL] == NONE:
        if s.host[node, POOL] > never_handed_out(s, node, 0):
            blocks = 1
        elif not fallback:
            return ENOMEM
    if blocks > 0:
        return insert(s, block // blocks * blocks, blocks, node, cpu)
    s.blocks[block, LEVEL] = BASE
    s.backing[block, HOME] = node
    s.pages[page >> 6, PRESENT] |= ONE << np.uint64(page & 63)
    s.numbers[N_PRESENT] += 1
    lru_add(s, page, cpu)
    return 0


@natural_kernel
def access(s: FolioState, op: int, offset: int, length: int, argument: int, node: int, cpu: int) -> int:
    """HOST_FAULT, GUEST_FAULT and PIN.

    A long-term pin is pin_user_pages() of the host mapping, so of shared pages only (EFAULT); a transient reference can
    be taken on any page present.
    """
    first, end = offset >> 12, (offset + length + 4095) >> 12
    if offset < 0 or length <= 0 or (op == PIN and (argument < TRANSIENT or argument > DEVICE)):
        return EINVAL
    if op == PIN:
        for block in range(first >> 9, ((min(end, s.options[PAGES]) - 1) >> 9) + 1):
            if row_of_references(s, block) == 0:
                return NEEDS_ROOM
    if op == PIN and argument == TRANSIENT:
        for page in range(first, end):
            if page >= s.options[PAGES] or not is_present(s, page):
                s.numbers[AT] = page
                return ENOENT
    else:
        guest = op == GUEST_FAULT
        error = _touch(s, first, end, guest, argument if guest else 0, node, cpu)
        if error != 0:
            return EFAULT if op == PIN and error == SIGBUS else error
    if op == PIN:
        for page in range(first, end):
            row = s.reference_row[page >> 9]
            s.reference_counts[row, page & 511, argument] += 1
            s.reference_counts[row, PAGES_2M, TRANSIENT] += 1
    return 0


@natural_kernel
def _touch(s: FolioState, page: int, end: int, guest: bool, argument: int, node: int, cpu: int) -> int:
    """Touch each page through the host mapping or from the guest; the first that fails ends it.

    EFAULT: the guest's idea of the page differs, KVM_EXIT_MEMORY_FAULT.
    """
    while page < end:
        error = np.int64(0)
        shared = test_bit(s.shared, page) if argument == AS_IT_IS and page < s.options[PAGES] else argument != 1
        if page >= s.options[PAGES] or test_bit(s.shared, page) != shared:
            error = EFAULT if guest else SIGBUS
        if error == 0:
            error = populate(s, page, node, cpu)
        block = page >> 9
        if error == 0 and s.numbers[N_POISONED] > 0 and not (guest and is_mapped(s, page)) and _is_poisoned(s, page):
            error = EHWPOISON if guest else SIGBUS
        if error == 0 and not guest and s.blocks[block, LEVEL] >= HUGE_2M:
            # A folio in one piece under a shared page: its split waits for the host, or failed when it was fresh.
            error = split_at(s, block) if s.options[SPLIT_AT] == AT_HOST_FAULT else SIGBUS
        if error != 0:
            s.numbers[AT] = page
            return error
        if guest and s.options[MERGING] == LAZY and s.blocks[block, LEVEL] == SPLIT and s.blocks[block, SHARED] == 0:
            merge_range(s, page, page + 1)
        if not guest:
            touch_content(s, page, page + 1)
        elif not is_mapped(s, page):
            touch_content(s, page, page + 1)
            map_page(s, page)
        alike = (
            s.numbers[N_POISONED] == 0
            and s.blocks[block, LEVEL] >= SPLIT
            and s.blocks[block, SHARED] == (PAGES_2M if shared else 0)
        )
        following = (block + 1) << 9 if alike else page + 1
        if alike and not guest:
            touch_content(s, page, min(end, following))
        elif alike and s.marks[block] & LEAF_MASK == LEAF_4K:
            if has_huge_leaf(s, block):  # the first page without a leaf brings the huge one back
                following = page + 1
            else:
                touch_unmapped(s, page, min(end, following))
                map_alike(s, page, min(end, following))
        page = following
    return 0


@natural_kernel
def unpin(s: FolioState, offset: int, length: int, kind: int) -> int:
    """EINVAL if a page of the range is not pinned in this way; nothing is changed then.

    Of the pins of one kind those on a page that has left the file go first.
    """
    first, end = offset >> 12, (offset + length + 4095) >> 12
    if offset < 0 or length <= 0 or end > s.options[PAGES] or kind < TRANSIENT or kind > DEVICE:
        return EINVAL
    orphan = DEVICE_ORPHAN if kind == DEVICE else ORPHAN
    for page in range(first, end):
        row = s.reference_row[page >> 9]
        held = np.int64(s.reference_counts[row, page & 511, kind]) if row != 0 else 0
        if row != 0 and kind != TRANSIENT:
            held += s.reference_counts[row, page & 511, orphan]
        if held == 0:
            s.numbers[AT] = page
            return EINVAL
    for page in range(first, end):
        row = s.reference_row[page >> 9]
        if kind != TRANSIENT and s.reference_counts[row, page & 511, orphan] > 0:
            s.reference_counts[row, page & 511, orphan] -= 1
            s.reference_counts[row, PAGES_2M, ORPHAN] -= 1
            s.numbers[N_ORPHANED] -= 1
        else:
            s.reference_counts[row, page & 511, kind] -= 1
            s.reference_counts[row, PAGES_2M, TRANSIENT] -= 1
            if s.blocks[page >> 9, LEVEL] == LEFT and s.reference_counts[row, PAGES_2M, TRANSIENT] == 0:
                _last_unpin(s, page >> 9)
    return 0


@natural_kernel
def _last_unpin(s: FolioState, block: int) -> None:
    """mm/hugetlb.c: free_huge_folio() of a page whose file is closed, once none of its 4 KiB is pinned any more."""
    blocks = BLOCKS_1G if s.gigas[block >> 9, LEVEL] == 1 else 1
    first_block = block // blocks * blocks
    if not _any_pin(s, first_block, blocks):
        s.numbers[N_PINNED] -= 1
        enter_pool(s, first_block, blocks)


@natural_kernel
def _any_pin(s: FolioState, first_block: int, blocks: int) -> bool:
    for block in range(first_block, first_block + blocks):
        row = s.reference_row[block]
        if row != 0 and s.reference_counts[row, PAGES_2M, TRANSIENT] > 0:
            return True
    return False


@natural_kernel
def poison_page(s: FolioState, offset: int) -> int:
    """memory_failure(): ENOENT if there is no page.

    The range of a 4 KiB folio is invalidated and it stays in the file; a huge folio of the page allocator is split first;
    hugetlb-backed pages are only marked: EBUSY.
    """
    page = offset >> 12
    if offset < 0 or page >= s.options[PAGES] or not is_present(s, page):
        return ENOENT
    small = s.blocks[page >> 9, LEVEL] == BASE or s.options[FOLIOS] != HUGETLB_FOLIOS
    if s.options[FOLIOS] == BUDDY_FOLIOS and s.blocks[page >> 9, LEVEL] == HUGE_2M:
        split_2m(s, page >> 9)
    page = _head(s, page)
    if not any_poison(s, page, page + 1):
        add_poison(s, page)
        if small:
            unmap_range(s, page, page + 1)
            s.numbers[N_INVALIDATIONS] += 1
            s.numbers[N_INVALIDATED] += 4096
    return 0 if small else EBUSY


@natural_kernel
def unmap_slot(s: FolioState, offset: int, length: int) -> int:
    """The memslot of a range goes: nothing of it is mapped any more."""
    first, end = offset >> 12, min(s.options[PAGES], (offset + length + 4095) >> 12)
    if offset < 0 or length <= 0:
        return EINVAL
    if first < end:
        unmap_range(s, first, end)
    return 0


@natural_kernel
def merge_pass(s: FolioState, offset: int, length: int) -> int:
    """The worker of a lazy policy; merges whatever can be merged, whatever the policy."""
    first, end = offset >> 12, min(s.options[PAGES], (offset + length + 4095) >> 12)
    if offset < 0 or length <= 0:
        return EINVAL
    if first < end:
        merge_range(s, first, end)
    return 0


@natural_kernel
def collapse_small(s: FolioState, offset: int, node: int, cpu: int) -> int:
    """mm/khugepaged.c: collapse_file: what 4 KiB folios of 2 MiB hold is copied into a folio of that size in their place.

    The folio is one that somebody else has taken from ``node``; the small ones are his to free. EINVAL where no such folios lie
    or some page is shared, whose users hold 4 KiB; EAGAIN and the page where one has a reference that is not the page cache's
    (pinned, poisoned, in a batch). What was not there is there afterwards, and all of it has been written.
    """
    page, block = offset >> 12, offset >> 21
    if offset < 0 or offset & ((PAGES_2M << 12) - 1) != 0 or page + PAGES_2M > s.options[PAGES]:
        return EINVAL
    if s.options[FOLIOS] != BUDDY_FOLIOS or s.blocks[block, LEVEL] != BASE or s.blocks[block, SHARED] != 0:
        return EINVAL
    held = first_referenced(s, page, page + PAGES_2M, False)
    if held >= 0:
        s.numbers[AT] = held
        return EAGAIN
    unmap_range(s, page, page + PAGES_2M)
    s.numbers[N_INVALIDATIONS] += 1
    s.numbers[N_INVALIDATED] += PAGES_2M << 12
    copied, pages = np.int64(0), s.pages
    for word in range(block << 3, (block + 1) << 3):
        copied += popcount(pages[word, PRESENT])
        pages[word, PRESENT] = ZERO
    s.blocks[block, LEVEL] = HUGE_2M
    s.backing[block, HOME] = node
    touch_content(s, page, page + PAGES_2M)
    lru_add(s, -1, cpu)
    s.numbers[N_PRESENT] += PAGES_2M - copied
    s.numbers[N_MAPPED_2M] += 1
    s.numbers[N_COLLAPSED] += 1
    s.numbers[N_COPIED] += copied
    returned(s, block, False)
    return 0


@natural_kernel
def punch_hole(s: FolioState, offset: int, length: int) -> int:
    """fallocate(PUNCH_HOLE). The private/shared state stays; what lies past the end is ignored."""
    if offset < 0 or length <= 0 or (offset | length) & 4095 != 0:
        return EINVAL
    pages = np.int64(1) << s.options[BACKING]
    if s.options[GENERATION] == GENERATION_C and (offset | length) & (pages * 4096 - 1) != 0:
        return EINVAL
    page, end = offset >> 12, min(s.options[PAGES], (offset + length) >> 12)
    if page >= end:
        return 0
    unmap_range(s, page, end)
    if s.options[GENERATION] == GENERATION_C and s.options[BACKING] > 0:  # the whole range is checked first (recorded)
        held = _first_held(s, page, end)
        if held >= 0:
            s.numbers[AT] = held
            return EAGAIN
    s.numbers[N_INVALIDATIONS] += 1
    s.numbers[N_INVALIDATED] += (end - page) << 12
    while page < end:
        block = page >> 9
        level = s.blocks[block, LEVEL]
        size = PAGES_1G if s.gigas[block >> 9, LEVEL] == 1 else PAGES_2M
        stop = min(end, (page // size + 1) * size)
        if level == BASE:
            _punch_base(s, page, stop)
        elif level != NONE and stop - page < size:
            s.numbers[N_ZEROED] += stop - page
        elif level != NONE:
            wholly_private = s.gigas[block >> 9, SHARED] == 0 if size == PAGES_1G else s.blocks[block, SHARED] == 0
            if s.options[GENERATION] == GENERATION_B and not wholly_private:
                held = first_referenced(s, page, stop, s.options[FOLIOS] != HUGETLB_FOLIOS)
                if held >= 0:
                    s.numbers[AT] = held
                    return EAGAIN
            spin(s, block, stop >> 9)
            blocks = size >> 9
            leave_file(s, block // blocks * blocks, blocks)
            enter_pool(s, block // blocks * blocks, blocks)
        page = stop
    return 0


@natural_kernel
def _first_held(s: FolioState, page: int, end: int) -> int:
    """First page of [page, end) of a huge folio, whole or split, that somebody refers to; -1: none."""
    while page < end:
        stop = min(end, ((page >> 9) + 1) << 9)
        if s.blocks[page >> 9, LEVEL] > BASE:
            held = first_referenced(s, page, stop, s.options[FOLIOS] != HUGETLB_FOLIOS)
            if held >= 0:
                return held
        page = stop
    return -1


@natural_kernel
def _punch_base(s: FolioState, first: int, end: int) -> None:
    """4 KiB folios leave the file whoever holds them; a pinned page stays allocated until it is unpinned."""
    block = first >> 9
    for page in range(first, end):
        if not _single(s, page):
            continue
        s.pages[page >> 6, PRESENT] &= ALL ^ (ONE << np.uint64(page & 63))
        s.numbers[N_PRESENT] -= 1
        forget_content(s, page, page + 1)
        row = s.reference_row[block]
        if row != 0 and s.reference_counts[row, PAGES_2M, TRANSIENT] > 0:
            counts = s.reference_counts[row, page & 511]
            transient = np.int64(counts[TRANSIENT])
            pins = np.int64(counts[LONG_TERM]) + np.int64(counts[DEVICE])
            counts[ORPHAN] += counts[LONG_TERM]
            counts[DEVICE_ORPHAN] += counts[DEVICE]
            counts[TRANSIENT] = counts[LONG_TERM] = counts[DEVICE] = 0
            s.reference_counts[row, PAGES_2M, TRANSIENT] -= transient + pins
            s.reference_counts[row, PAGES_2M, ORPHAN] += pins
            s.numbers[N_ORPHANED] += pins
        for cpu in range(s.batch.shape[0]):
            for slot in range(s.batch[cpu, BATCH]):
                if s.batch[cpu, slot] == page:
                    s.batch[cpu, slot] = -1
                    s.numbers[N_LRU] -= 1
    forget_poison(s, first, end)
    for word in range(block << 3, min((block + 1) << 3, s.pages.shape[0])):
        if s.pages[word, PRESENT] != ZERO:
            return
    s.blocks[block, LEVEL] = NONE
    forget_content(s, block << 9, (block + 1) << 9)


@natural_kernel
def release(s: FolioState) -> int:
    """The file is closed: everything leaves it, and huge pages go back to their pools.

    Transient references are waited for. A 4 KiB folio with a long-term pin stays allocated until it is unpinned; a huge
    page with one stays out of the pool, with the vmemmap it has then, until the last pin on any of its 4 KiB is dropped
    (``mm/hugetlb.c: free_huge_folio`` is called for the last reference). UNPIN is the only operation left.
    """
    s.numbers[RELEASED] = 1
    s.numbers[N_INVALIDATIONS] += 1
    s.numbers[N_INVALIDATED] += s.options[PAGES] << 12
    unmap_range(s, 0, s.options[PAGES])
    block = 0
    while block < s.reference_row.shape[0]:
        level = s.blocks[block, LEVEL]
        blocks = BLOCKS_1G if s.gigas[block >> 9, LEVEL] == 1 else 1
        if level == BASE:
            _punch_base(s, block << 9, (block + 1) << 9)
        elif level != NONE:
            spin(s, block, block + blocks)
            leave_file(s, block, blocks)
            if _any_pin(s, block, blocks):
                s.numbers[N_PINNED] += 1
            else:
                enter_pool(s, block, blocks)
        block += blocks
    return 0

"""Split, merge and the pools of huge pages, with the vmemmap pages they take and give back.

The restructuring of the proposals (``kvm_gmem_split_folio_in_filemap``, ``kvm_gmem_merge_folio_in_filemap``) on top of
``mm/hugetlb_vmemmap.c``: a split restores the vmemmap that HVO had freed (``hugetlb_vmemmap_restore_folio``: all or
nothing, the folio's node first, may spill), a merge and the way back into the pool give it up again
(``hugetlb_vmemmap_optimize_folio``: one page must be free to start with, otherwise the folio stays unoptimised). Pools
are ``mm/hugetlb.c``'s free lists, without surplus pages.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.content import forget_content, merge_content
from workbench.kernels.folios.poison import any_poison, forget_poison, from_pool, to_pool
from workbench.kernels.folios.references import lru_add, lru_add_many, spin
from workbench.kernels.folios.second_stage import count_uniform, forget_returned, returned, unmap_range
from workbench.kernels.folios.state import *


@inlined_natural_kernel
def row_1g(s: FolioState, giga: int) -> int:
    """Row of ``backing`` of a 1 GiB block."""
    return s.reference_row.shape[0] + giga


@inlined_natural_kernel
def _free_vmemmap(s: FolioState) -> int:
    pages = np.int64(0)
    for node in range(s.host.shape[0]):
        pages += s.host[node, FREE]
    return pages


@natural_kernel
def _take(s: FolioState, home: int, pages: int, row: int) -> bool:
    """Take vmemmap pages for the block of a row, from the folio's node first; all or nothing."""
    if _free_vmemmap(s) < pages:
        return False
    left = np.int64(pages)
    for position in range(s.host.shape[0]):
        node = s.host[home, ORDER + position]
        here = min(left, s.host[node, FREE])
        if here <= 0:
            continue
        s.host[node, FREE] -= here
        s.numbers[TAKEN + node] += here
        s.backing[row, EXTRA + node] += here
        left -= here
        if node != home:
            s.numbers[N_SPILLED] += here
        if left == 0:
            break
    s.numbers[N_TAKEN] += pages
    return True


@natural_kernel
def _give_back(s: FolioState, row: int) -> None:
    nodes = s.host.shape[0]
    for node in range(nodes):
        here = np.int64(s.backing[row, EXTRA + node])
        s.host[node, FREE] += here
        s.numbers[TAKEN + nodes + node] += here
        s.numbers[N_FREED] += here
        s.backing[row, EXTRA + node] = 0


@natural_kernel
def _take_slabs(s: FolioState, giga: int) -> bool:
    """Memory for the xarray nodes of a 1 GiB split, by node in the order of vmemmap; all or nothing."""
    if s.options[XARRAY] == XARRAY_TWO_LEVELS:
        return False
    if s.options[XARRAY] == XARRAY_FREE:
        return True
    if _free_vmemmap(s) < XARRAY_PAGES_1G:
        return False
    home, left = np.int64(s.backing[giga << 9, HOME]), np.int64(XARRAY_PAGES_1G)
    for position in range(s.host.shape[0]):
        node = s.host[home, ORDER + position]
        here = max(np.int64(0), min(left, s.host[node, FREE]))
        s.host[node, FREE] -= here
        s.gigas[giga, SLABS + node] += here
        left -= here
    s.numbers[N_XARRAY_PAGES] += XARRAY_PAGES_1G
    return True


@natural_kernel
def _give_slabs_back(s: FolioState, giga: int) -> None:
    for node in range(s.host.shape[0]):
        here = np.int64(s.gigas[giga, SLABS + node])
        s.host[node, FREE] += here
        s.gigas[giga, SLABS + node] = 0
        s.numbers[N_XARRAY_PAGES] -= here


@natural_kernel
def _leave_pool(s: FolioState, home: int, size: int, pages: int, row: int) -> None:
    """Take a huge page; unoptimised ones go first and bring their vmemmap pages along."""
    nodes = s.host.shape[0]
    s.host[home, POOL + size] -= 1
    if s.host[home, POOL_FULL + size] == 0:
        return
    s.host[home, POOL_FULL + size] -= 1
    s.backing[row, FULL] = 1
    left = np.int64(pages)
    for node in range(nodes):
        column = ORDER + (1 + size) * nodes + node
        here = min(left, s.host[home, column])
        s.host[home, column] -= here
        s.backing[row, EXTRA + node] += here
        left -= here


@inlined_natural_kernel
def split_range(s: FolioState, first: int, end: int) -> int:
    """Split the huge folios of the blocks touched, unless that waits for the first host fault."""
    if s.options[SPLIT_AT] == AT_HOST_FAULT:
        return 0
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        if s.blocks[block, LEVEL] >= HUGE_2M:
            error = split_at(s, block)
            if error != 0:
                return error
    return 0


@natural_kernel
def split_at(s: FolioState, block: int) -> int:
    """Split whatever huge folio covers a 2 MiB block until the block is 4 KiB folios."""
    if s.blocks[block, LEVEL] == HUGE_1G:
        error = _split_1g(s, block >> 9)
        if error != 0:
            return error
    if s.blocks[block, LEVEL] == HUGE_2M:
        return split_2m(s, block)
    return 0


@natural_kernel
def _split_1g(s: FolioState, giga: int) -> int:
    first_block, row = giga << 9, row_1g(s, giga)
    two_stage = s.options[SPLITTING] != ONE_STEP
    if not two_stage and not _take_slabs(s, giga):
        return ENOMEM
    if s.options[HVO] != 0 and s.backing[row, FULL] == 0:
        if s.options[SPLITTING] == TWO_STAGE_FULL:
            if _free_vmemmap(s) < RESTORE_1G:
                return ENOMEM
            s.numbers[N_PEAK] = max(s.numbers[N_PEAK], RESTORE_1G)
        if not _take(s, s.backing[first_block, HOME], HEADS_1G if two_stage else RESTORE_1G, row):
            _give_slabs_back(s, giga)
            return ENOMEM
        if not two_stage:
            s.backing[row, FULL] = 1
    elif s.options[HVO] != 0 and two_stage:
        _share_out(s, giga)
    spin(s, first_block, first_block + BLOCKS_1G)
    mapped = 0
    for block in range(first_block, first_block + BLOCKS_1G):
        s.blocks[block, LEVEL] = HUGE_2M if two_stage else SPLIT
        mapped += s.blocks[block, SHARED] == 0
    s.numbers[N_SPLITS_1G] += 1
    if two_stage:
        s.numbers[N_MAPPED_2M] += mapped
    if s.gigas[giga, SHARED] == 0:
        s.numbers[N_MAPPED_1G] -= 1
        s.numbers[N_LOST_1G] += not forget_returned(s, first_block, True)
    return 0


@natural_kernel
def _share_out(s: FolioState, giga: int) -> None:
    """An unoptimised 1 GiB page falls into unoptimised 2 MiB folios: 7 pages go with each, the 511 heads stay."""
    row = row_1g(s, giga)
    node = 0
    for block in range(giga << 9, (giga + 1) << 9):
        left = np.int64(RESTORE_2M)
        while left > 0:
            here = min(left, np.int64(s.backing[row, EXTRA + node]))
            s.backing[row, EXTRA + node] -= here
            s.backing[block, EXTRA + node] += here
            left -= here
            node += left > 0
        s.backing[block, FULL] = 1
    s.backing[row, FULL] = 0


@natural_kernel
def split_2m(s: FolioState, block: int) -> int:
    if s.options[HVO] != 0 and s.backing[block, FULL] == 0:
        if not _take(s, s.backing[block, HOME], RESTORE_2M, block):
            return ENOMEM
        s.backing[block, FULL] = 1
    spin(s, block, block + 1)
    s.blocks[block, LEVEL] = SPLIT
    s.numbers[N_SPLITS_2M] += 1
    if s.blocks[block, SHARED] == 0:
        s.numbers[N_MAPPED_2M] -= 1
        s.numbers[N_LOST_2M] += not forget_returned(s, block, False)
    return 0


@inlined_natural_kernel
def merge_range(s: FolioState, first: int, end: int) -> int:
    """Merge every block touched that is wholly private again; returns the number of merges.

    A split folio of the page allocator with a poisoned page stays split; folios that were never huge stay small.
    """
    merges = 0
    if s.options[FOLIOS] == SMALL_FOLIOS:
        return 0
    two_stage = s.options[SPLITTING] != ONE_STEP
    last = (end - 1) >> 9
    block = first >> 9
    while block <= last:
        giga = block >> 9
        whole = s.gigas[giga, LEVEL] == 1
        following = block + 1
        if whole and not two_stage:
            following = (giga + 1) << 9
        elif s.blocks[block, SHARED] == 0 and s.blocks[block, LEVEL] == SPLIT and not _keeps_poison(s, block, 1):
            merges += _merge_2m(s, block)
        if whole and s.gigas[giga, SHARED] == 0 and (following > last or (following & 511) == 0):
            merges += _merge_1g(s, giga)
        block = following
    return merges


@inlined_natural_kernel
def _keeps_poison(s: FolioState, first_block: int, blocks: int) -> bool:
    """Whether memory of the page allocator has a poisoned page, which no larger folio and no other user gets."""
    if s.options[FOLIOS] == HUGETLB_FOLIOS or s.numbers[N_POISONED] == 0:
        return False
    return any_poison(s, first_block << 9, (first_block + blocks) << 9)


@natural_kernel
def _merge_2m(s: FolioState, block: int) -> int:
    spin(s, block, block + 1)
    if s.backing[block, FULL] == 1:
        if _free_vmemmap(s) > 0:
            _give_back(s, block)
            s.backing[block, FULL] = 0
        else:
            s.numbers[N_UNOPTIMISED] += 1
    s.blocks[block, LEVEL] = HUGE_2M
    merge_content(s, block, 1)
    s.numbers[N_MERGES_2M] += 1
    s.numbers[N_MAPPED_2M] += 1
    returned(s, block, False)
    return 1


@natural_kernel
def _merge_1g(s: FolioState, giga: int) -> int:
    first_block, row = giga << 9, row_1g(s, giga)
    expected = SPLIT if s.options[SPLITTING] == ONE_STEP else HUGE_2M
    for block in range(first_block, first_block + BLOCKS_1G):
        if s.blocks[block, LEVEL] != expected:
            return 0
    spin(s, first_block, first_block + BLOCKS_1G)
    if expected == HUGE_2M:
        # One of the 512 head pages serves the whole, so nothing has to be allocated first.
        s.numbers[N_MAPPED_2M] -= BLOCKS_1G
        _give_back(s, row)
        for block in range(first_block, first_block + BLOCKS_1G):
            forget_returned(s, block, False)
            if s.backing[block, FULL] == 1:
                _give_back(s, block)
                s.backing[block, FULL] = 0
    elif s.backing[row, FULL] == 1:
        if _free_vmemmap(s) > 0:
            _give_back(s, row)
            s.backing[row, FULL] = 0
        else:
            s.numbers[N_UNOPTIMISED] += 1
    for block in range(first_block, first_block + BLOCKS_1G):
        s.blocks[block, LEVEL] = HUGE_1G
    merge_content(s, first_block, BLOCKS_1G)
    _give_slabs_back(s, giga)
    s.numbers[N_MERGES_1G] += 1
    s.numbers[N_MAPPED_1G] += 1
    returned(s, first_block, True)
    return 1


@natural_kernel
def insert(s: FolioState, first_block: int, blocks: int, node: int, cpu: int) -> int:
    """A page of the pool of a node enters the file, 2 MiB (``blocks`` 1) or 1 GiB (512).

    Where the file is shared it is split at once. If that fails, ENOMEM: generation B gives it back to the pool, in C it
    stays in the file in one piece (recorded; only another conversion splits it).
    """
    giga = blocks == BLOCKS_1G
    row = row_1g(s, first_block >> 9) if giga else first_block
    _leave_pool(s, node, int(giga), RESTORE_1G if giga else RESTORE_2M, row)
    from_pool(s, node, int(giga), first_block << 9)
    shared = np.int64(s.blocks[first_block, SHARED])
    if giga:
        s.gigas[first_block >> 9, LEVEL] = 1
        shared = np.int64(s.gigas[first_block >> 9, SHARED])
    small = s.options[FOLIOS] == SMALL_FOLIOS
    for block in range(first_block, first_block + blocks):
        s.blocks[block, LEVEL] = SPLIT if small else HUGE_1G if giga else HUGE_2M
        s.backing[block, HOME] = node
    s.numbers[N_PRESENT] += blocks << 9
    if small:
        count_uniform(s, first_block, blocks, 1)
        lru_add_many(s, first_block << 9, blocks << 9, cpu)
        return 0
    lru_add(s, -1, cpu)
    if shared == 0:
        s.numbers[N_MAPPED_1G if giga else N_MAPPED_2M] += 1
        return 0
    if s.options[SPLIT_AT] == AT_HOST_FAULT:
        return 0
    for block in range(first_block, first_block + blocks):
        if s.blocks[block, SHARED] > 0:
            error = split_at(s, block)
            if error != 0:
                if s.options[GENERATION] == GENERATION_B:
                    leave_file(s, first_block, blocks)
                    enter_pool(s, first_block, blocks)
                return error
    return 0


@natural_kernel
def leave_file(s: FolioState, first_block: int, blocks: int) -> None:
    """A huge page, 1 block or 512, leaves the file in whatever state; :func:`enter_pool` must follow at some time."""
    giga = first_block >> 9
    unmap_range(s, first_block << 9, (first_block + blocks) << 9)
    if s.options[FOLIOS] == SMALL_FOLIOS:
        count_uniform(s, first_block, blocks, -1)
    if blocks == BLOCKS_1G and s.gigas[giga, SHARED] == 0 and s.blocks[first_block, LEVEL] == HUGE_1G:
        s.numbers[N_MAPPED_1G] -= 1
        forget_returned(s, first_block, True)
    for block in range(first_block, first_block + blocks):
        if s.blocks[block, LEVEL] == HUGE_2M and s.blocks[block, SHARED] == 0:
            s.numbers[N_MAPPED_2M] -= 1
            forget_returned(s, block, False)
        s.blocks[block, LEVEL] = LEFT
    forget_content(s, first_block << 9, (first_block + blocks) << 9)
    s.numbers[N_PRESENT] -= blocks << 9


@natural_kernel
def enter_pool(s: FolioState, first_block: int, blocks: int) -> None:
    """Merge what is left of a huge page outside the file and give it back, optimised if a vmemmap page is free.

    Poisoned pages in it go along (recorded: the pool hands them out again). Memory of the page allocator with a poisoned
    page is not given to anybody in one piece again: it is withheld.
    """
    nodes = s.host.shape[0]
    home, size, row = s.backing[first_block, HOME], 0, first_block
    s.blocks[first_block, LEVEL] = NONE
    if blocks == BLOCKS_1G:
        size, row = 1, row_1g(s, first_block >> 9)
        s.gigas[first_block >> 9, LEVEL] = NONE
        _give_slabs_back(s, first_block >> 9)
        for block in range(first_block, first_block + BLOCKS_1G):
            if s.backing[block, FULL] == 1:
                _give_back(s, block)
                s.backing[block, FULL] = 0
            s.blocks[block, LEVEL] = NONE
    full = s.backing[row, FULL] == 1
    s.backing[row, FULL] = 0
    if _keeps_poison(s, first_block, blocks):
        forget_poison(s, first_block << 9, (first_block + blocks) << 9)
        s.numbers[N_WITHHELD] += 1
        return
    to_pool(s, home, size, first_block << 9, (first_block + blocks) << 9)
    s.host[home, POOL + size] += 1
    if not full or _free_vmemmap(s) > 0:
        _give_back(s, row)
        return
    s.numbers[N_UNOPTIMISED] += 1
    s.host[home, POOL_FULL + size] += 1
    for node in range(nodes):
        s.host[home, ORDER + (1 + size) * nodes + node] += s.backing[row, EXTRA + node]
        s.backing[row, EXTRA + node] = 0

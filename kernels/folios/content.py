"""Which folios are up to date: zeroed at the first touch and in use since. A huge page that merges can lose what is in it.

``virt/kvm/guest_memfd.c: kvm_gmem_get_pfn``, ``kvm_gmem_fault_user_mapping``: the first touch of a folio that is not up to
date zeroes all of it and sets its flag (fallocate does neither; what the guest reaches through leaves that it has is no
fault). Of hugetlb-backed files a split hands the flag to all pieces and a merge takes that of the first 4 KiB (recorded,
every merge of both generations, on the merge of generation C): if that one was not touched, the next fault zeroes the huge
page, and the content of all others is lost; if it was, pages that nothing had zeroed count as if they were. Files of other
memory are what-ifs that keep what there is: the merged page is up to date if any of it was.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import ALL, ONE, ZERO, mask, popcount
from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.state import *

_ANY = UPTODATE_ALL | UPTODATE_SOME
_NEITHER = np.uint8(0xFF ^ _ANY)


@inlined_natural_kernel
def touch_content(s: FolioState, first: int, end: int) -> None:
    """Pages [first, end) of one 2 MiB range are touched: their folios are up to date from now on."""
    if s.marks[first >> 9] & UPTODATE_ALL == 0:
        _zero(s, first, end)


@natural_kernel
def touch_unmapped(s: FolioState, first: int, end: int) -> None:
    """The guest touches pages of one 2 MiB range of small leaves: only those that have none fault."""
    block = first >> 9
    if s.marks[block] & UPTODATE_ALL != 0:
        return
    for word in range(first >> 6, ((end - 1) >> 6) + 1):
        bits = (s.small[word] ^ ALL) & mask(word, first, end)
        if bits == ZERO:
            continue
        if s.blocks[block, LEVEL] >= HUGE_2M:
            _zero(s, first, end)
            return
        s.marks[block] |= np.uint8(UPTODATE_SOME)
        s.pages[word, UPTODATE] |= bits


@natural_kernel
def _zero(s: FolioState, first: int, end: int) -> None:
    block = first >> 9
    level = s.blocks[block, LEVEL]
    if level < HUGE_2M and end - first < PAGES_2M:
        s.marks[block] |= np.uint8(UPTODATE_SOME)
        for word in range(first >> 6, ((end - 1) >> 6) + 1):
            s.pages[word, UPTODATE] |= mask(word, first, end)
        return
    blocks = np.int64(BLOCKS_1G if level == HUGE_1G else 1)
    _set(s, block // blocks * blocks, blocks, True)


@natural_kernel
def _set(s: FolioState, first_block: int, blocks: int, uptodate: bool) -> None:
    """All of these 2 MiB ranges are up to date, or none of them."""
    marks, pages, all_of_it = s.marks, s.pages, np.uint8(UPTODATE_ALL if uptodate else 0)
    for block in range(first_block, first_block + blocks):
        if marks[block] & UPTODATE_SOME != 0:
            for word in range(block << 3, (block + 1) << 3):
                pages[word, UPTODATE] = ZERO
        marks[block] = (marks[block] & _NEITHER) | all_of_it


@natural_kernel
def _uptodate(s: FolioState, block: int) -> int:
    """Pages of a 2 MiB range whose folios are up to date."""
    if s.marks[block] & UPTODATE_ALL != 0:
        return PAGES_2M
    pages = np.int64(0)
    if s.marks[block] & UPTODATE_SOME != 0:
        for word in range(block << 3, (block + 1) << 3):
            pages += popcount(s.pages[word, UPTODATE])
    return pages


@natural_kernel
def merge_content(s: FolioState, first_block: int, blocks: int) -> None:
    """These 2 MiB ranges have become one folio."""
    pages = np.int64(0)
    for block in range(first_block, first_block + blocks):
        pages += _uptodate(s, block)
    head = s.marks[first_block] & UPTODATE_ALL != 0 or (
        s.marks[first_block] & UPTODATE_SOME != 0 and s.pages[first_block << 3, UPTODATE] & ONE == ONE
    )
    if s.options[FOLIOS] != HUGETLB_FOLIOS:
        head = pages > 0
    elif head:
        s.numbers[N_CONTENT_STALE] += (blocks << 9) - pages
    elif pages > 0:
        s.numbers[N_CONTENT_LOST] += pages
        for block in range(first_block, first_block + blocks):
            if s.marks[block] & _ANY != 0:
                whole = s.marks[block] & UPTODATE_ALL != 0
                for word in range(block << 3, (block + 1) << 3):
                    s.pages[word, CONTENT_LOST] |= ALL if whole else s.pages[word, UPTODATE]
    if pages > 0:
        _set(s, first_block, blocks, head)


@natural_kernel
def forget_content(s: FolioState, first: int, end: int) -> None:
    """Pages [first, end) leave the file."""
    block = first >> 9
    if end - first < PAGES_2M:
        for word in range(first >> 6, ((end - 1) >> 6) + 1):
            s.pages[word, UPTODATE] &= ALL ^ mask(word, first, end)
            s.pages[word, CONTENT_LOST] &= ALL ^ mask(word, first, end)
        return
    _set(s, block, (end - first) >> 9, False)
    if s.numbers[N_CONTENT_LOST] > 0:
        for word in range(first >> 6, end >> 6):
            s.pages[word, CONTENT_LOST] = ZERO

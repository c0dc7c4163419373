"""Poisoned pages: those of a file, and those inside huge pages that went back to their pool and are handed out again.

``mm/memory-failure.c``. Of a 4 KiB folio the failure keeps a reference, so it neither converts nor is used again. For
hugetlb-backed pages the recorded kernel answers EBUSY and only marks the page: it stays mapped, converts, merges, goes
back to the pool and is handed out again. The mark of a folio in one piece is its first page's; only a huge page with
that mark is passed over (``mm/hugetlb.c: dequeue_hugetlb_folio_node_exact``), although it counts as free.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.state import *
from workbench.kernels.page_lists import first_from, put_in, take_out


@natural_kernel
def first_poison(s: FolioState, page: int) -> int:
    """Row of the first poisoned page of the file from ``page`` on."""
    return first_from(s.poison, s.numbers[N_POISONED], page)


@natural_kernel
def any_poison(s: FolioState, first: int, end: int) -> bool:
    row = first_poison(s, first)
    return bool(row < s.numbers[N_POISONED] and s.poison[row] < end)


@natural_kernel
def _add(s: FolioState, page: int) -> None:
    put_in(s.poison, s.numbers[N_POISONED], page)
    s.numbers[N_POISONED] += 1


@natural_kernel
def _remove(s: FolioState, first: int, end: int) -> int:
    gone = take_out(s.poison, s.numbers[N_POISONED], first, end)
    s.numbers[N_POISONED] -= gone
    return gone


@natural_kernel
def add_poison(s: FolioState, page: int) -> None:
    """A page of the file is poisoned that was not."""
    _add(s, page)
    s.host[0, POISONED] += 1


@natural_kernel
def forget_poison(s: FolioState, first: int, end: int) -> bool:
    """Pages [first, end) are gone with their marks; whether there were any."""
    if s.numbers[N_POISONED] == 0:
        return False
    gone = _remove(s, first, end)
    s.host[0, POISONED] -= gone
    return bool(gone > 0)


@inlined_natural_kernel
def lacks_room_for_poison(s: FolioState) -> bool:
    """Whether the next poisoned page could find no row: any file and the pools must have one for all there are on the host."""
    return s.host[0, POISONED] >= s.poison.shape[0] or s.host[0, POISONED] >= s.pool_poison.shape[0]


@natural_kernel
def never_handed_out(s: FolioState, node: int, size: int) -> int:
    """Huge pages of a pool that count as free but are passed over: their first page is poisoned."""
    pages = np.int64(0)
    for row in range(s.pool_poison.shape[0]):
        r = s.pool_poison[row]
        pages += r[POISON_NODE] == node and r[POISON_SIZE] == size and r[POISON_PAGE] == 0
    return pages


@natural_kernel
def to_pool(s: FolioState, node: int, size: int, first: int, end: int) -> None:
    """A huge page, pages [first, end) of the file, goes on top of its pool, with its poisoned pages."""
    for row in range(s.pool_poison.shape[0]):
        if s.pool_poison[row, POISON_NODE] == node and s.pool_poison[row, POISON_SIZE] == size:
            s.pool_poison[row, POISON_DEPTH] += 1
    if s.numbers[N_POISONED] == 0 or not any_poison(s, first, end):
        return
    s.numbers[N_POISONED_TO_POOL] += 1
    free = 0
    for entry in range(first_poison(s, first), first_poison(s, end)):
        while s.pool_poison[free, POISON_NODE] >= 0:
            free += 1
        s.pool_poison[free, POISON_NODE] = node
        s.pool_poison[free, POISON_SIZE] = size
        s.pool_poison[free, POISON_DEPTH] = 0
        s.pool_poison[free, POISON_PAGE] = s.poison[entry] - first
    _remove(s, first, end)


@natural_kernel
def from_pool(s: FolioState, node: int, size: int, first: int) -> None:
    """The huge page on top of a pool comes into the file at page ``first``; those with a poisoned first page are passed over."""
    depth = np.int64(0)
    passed_over = True
    while passed_over:
        passed_over = False
        for row in range(s.pool_poison.shape[0]):
            r = s.pool_poison[row]
            if r[POISON_NODE] == node and r[POISON_SIZE] == size and r[POISON_DEPTH] == depth and r[POISON_PAGE] == 0:
                passed_over = True
        depth += passed_over
    for row in range(s.pool_poison.shape[0]):
        r = s.pool_poison[row]
        if r[POISON_NODE] != node or r[POISON_SIZE] != size or r[POISON_DEPTH] < depth:
            continue
        if r[POISON_DEPTH] > depth:
            r[POISON_DEPTH] -= 1
            continue
        _add(s, first + r[POISON_PAGE])
        r[POISON_NODE] = -1

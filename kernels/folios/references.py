"""References to folios: what stands in the way of a conversion.

The checks are those of the proposals (``kvm_gmem_has_safe_refcount`` and its kin): a folio of the range may hold only
the page cache's reference and the checker's own. Extra references are long-term pins (``mm/gup.c:
pin_user_pages``), transient ones, the one that ``memory_failure()`` keeps on a 4 KiB folio, and the one of the per-CPU
batch a fresh small folio waits in (``mm/swap.c: folio_add_lru``, 31 entries).
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import test_bit
from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.poison import first_poison
from workbench.kernels.folios.state import *


@natural_kernel
def spin(s: FolioState, first_block: int, last_block: int) -> None:
    """Freezing waits for transient references to go; each one waited for is counted and gone afterwards."""
    if s.numbers[N_ROWS] == 0:
        return
    for block in range(first_block, last_block):
        row = s.reference_row[block]
        if row == 0 or s.reference_counts[row, PAGES_2M, TRANSIENT] == 0:
            continue
        for page in range(PAGES_2M):
            waited = np.int64(s.reference_counts[row, page, TRANSIENT])
            s.numbers[N_SPINS] += waited
            s.reference_counts[row, PAGES_2M, TRANSIENT] -= waited
            s.reference_counts[row, page, TRANSIENT] = 0


@inlined_natural_kernel
def first_referenced(s: FolioState, first: int, end: int, shared_only: bool) -> int:
    """First page of [first, end) with references the conversion does not expect, or -1.

    ``shared_only``: look at pages that are to change (generation B), not at every folio of the range (C).
    """
    if s.numbers[N_ROWS] == 0 and s.numbers[N_LRU] == 0 and s.numbers[N_POISONED] == 0:
        return -1
    page = _first_referenced_now(s, first, end, shared_only)
    if page >= 0 and s.options[DRAIN] == 1 and s.numbers[N_LRU] > 0:
        lru_drain(s)
        page = _first_referenced_now(s, first, end, shared_only)
    return page


@natural_kernel
def _first_referenced_now(s: FolioState, first: int, end: int, shared_only: bool) -> int:
    found = end
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        row = s.reference_row[block]
        if row == 0 or s.reference_counts[row, PAGES_2M, TRANSIENT] == 0:
            continue
        for page in range(max(first, block << 9), min(end, (block + 1) << 9)):
            counts = s.reference_counts[row, page & 511]
            if counts[TRANSIENT] + counts[LONG_TERM] + counts[DEVICE] > 0 and (
                not shared_only or test_bit(s.shared, page)
            ):
                found = page
                break
        if found < end:
            break
    # A poisoned 4 KiB folio keeps the reference memory_failure() took; one in an lru_add batch keeps the batch's.
    for row in range(first_poison(s, first), s.numbers[N_POISONED]):
        page = s.poison[row]
        if page >= found:
            break
        if (s.blocks[page >> 9, LEVEL] == BASE or s.options[FOLIOS] != HUGETLB_FOLIOS) and (
            not shared_only or test_bit(s.shared, page)
        ):
            found = page
    if s.numbers[N_LRU] > 0:
        for cpu in range(s.batch.shape[0]):
            for slot in range(s.batch[cpu, BATCH]):
                page = s.batch[cpu, slot]
                if first <= page < found and (not shared_only or test_bit(s.shared, page)):
                    found = page
    return found if found < end else -1


@natural_kernel
def pages_referenced(rows: np.ndarray, counts: np.ndarray, first: int, end: int, kinds: int, pages: np.ndarray) -> int:
    """Pages of [first, end) with references of a kind whose bit is set in ``kinds``, ascending, into int64 (n,).

    ``rows``, ``counts``: ``reference_row`` and ``reference_counts`` of a file. Returns their number; beyond n none are written.
    """
    found = 0
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        row = rows[block]
        if row == 0 or (counts[row, PAGES_2M, TRANSIENT] == 0 and counts[row, PAGES_2M, ORPHAN] == 0):
            continue
        for page in range(max(first, block << 9), min(end, (block + 1) << 9)):
            held = False
            for kind in range(KINDS):
                held |= (kinds >> kind) & 1 == 1 and counts[row, page & 511, kind] > 0
            if held:
                if found < pages.shape[0]:
                    pages[found] = page
                found += 1
    return found


@natural_kernel
def references_on(
    rows: np.ndarray, counts: np.ndarray, pages: np.ndarray, first_kind: int, second_kind: int, out: np.ndarray
) -> None:
    """References of two kinds on pages int64 (n,), into int64 (n, 2); the rest is as for :func:`pages_referenced`."""
    for at in range(pages.shape[0]):
        page = pages[at]
        row = rows[page >> 9]
        out[at, 0], out[at, 1] = counts[row, page & 511, first_kind], counts[row, page & 511, second_kind]


@natural_kernel
def row_of_references(s: FolioState, block: int) -> int:
    """Row of ``reference_counts`` for a 2 MiB block, 0 if there is no room for another."""
    if s.reference_row[block] == 0 and s.numbers[N_ROWS] + 1 < s.reference_counts.shape[0]:
        s.numbers[N_ROWS] += 1
        s.reference_row[block] = s.numbers[N_ROWS]
    return s.reference_row[block]


@natural_kernel
def lru_drain(s: FolioState) -> int:
    """lru_add_drain_all()."""
    s.numbers[N_DRAINS] += 1
    s.numbers[N_LRU] = 0
    s.batch[:, BATCH] = 0
    return 0


@natural_kernel
def lru_add(s: FolioState, page: int, cpu: int) -> None:
    """mm/swap.c: folio_add_lru(). A small folio waits in the batch; a full batch or a large folio (-1) empties it."""
    if page >= 0:
        s.batch[cpu, s.batch[cpu, BATCH]] = page
        s.batch[cpu, BATCH] += 1
        s.numbers[N_LRU] += 1
    if page < 0 or s.batch[cpu, BATCH] == BATCH:
        for slot in range(s.batch[cpu, BATCH]):
            s.numbers[N_LRU] -= s.batch[cpu, slot] >= 0
        s.batch[cpu, BATCH] = 0


@natural_kernel
def lru_add_many(s: FolioState, first: int, pages: int, cpu: int) -> None:
    """So many small folios one after the other: those that fill a batch have left it, the rest wait in it."""
    room = BATCH - s.batch[cpu, BATCH]
    if pages >= room:
        lru_add(s, -1, cpu)
        first += pages - (pages - room) % BATCH
        pages = (pages - room) % BATCH
    for page in range(first, first + pages):
        lru_add(s, page, cpu)

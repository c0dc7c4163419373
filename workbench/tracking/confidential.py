"""Metadata of confidential memory: AMD's reverse map table (RMP), Intel's PAMT, and what conversions do to both.

SEV-SNP: ``arch/x86/virt/svm/sev.c`` and ``arch/x86/kvm/svm/sev.c``. 16 bytes per 4 KiB of the host and 16 KiB of
bookkeeping. Entries are of 4 KiB or 2 MiB; there is no 1 GiB state. PSMASH turns a 2 MiB entry into 512 of 4 KiB and
there is no way back except to make all 512 shared and private again.

TDX: ``arch/x86/virt/vmx/tdx/tdx.c`` (``tdmr_get_pamt_sz``) and the Dynamic PAMT and huge-page series, which are not in
Linux 7.3. The size of a PAMT entry comes from the TDX module; 16 bytes is what published totals agree with.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workbench.errors import WorkbenchError
from workbench.profiles import VM_TYPES
from workbench.units import PAGE_SHIFT, PAGE_SIZE

Counts = int | npt.NDArray[np.int64]
RMP_ENTRY = 16
RMP_BOOKKEEPING = 0x4000
PAMT_ENTRY = 16
DPAMT_PAGES_PER_2M = 2
PAGES_2M = 512
PSC_MAX_ENTRIES = 253
"""Entries of a page-state-change request in the GHCB buffer (VMGEXIT_PSC_MAX_COUNT)."""
ACCEPT_CHUNK = 4 << 20
"""Memory a guest accepts at a time when it does so lazily."""

SHARED, PRIVATE_4K, PRIVATE_2M = 0, 1, 2

LARGEST_LEAF = {name: made.largest_leaf for name, made in VM_TYPES.items()}


def leaves(mapped_1g: Counts, mapped_2m: Counts, largest: str) -> tuple[Counts, Counts]:
    """Leaves of 1 GiB and of 2 MiB where so many whole private blocks could have one, and none is above ``largest``."""
    if largest == "1 GiB":
        return mapped_1g, mapped_2m
    return 0 * mapped_1g, mapped_2m + PAGES_2M * mapped_1g if largest == "2 MiB" else 0 * mapped_2m


def rmp_bytes(memory: int) -> int:
    """Size of a contiguous RMP for ``memory`` bytes of host memory (``setup_contiguous_rmptable``)."""
    return (memory // PAGE_SIZE << 4) + RMP_BOOKKEEPING


def rmp_reserved(first: int, size: int) -> tuple[int, int]:
    """What the kernel reserves of a table at byte ``first``: start and end rounded out to 2 MiB."""
    huge = PAGES_2M * PAGE_SIZE
    return first // huge * huge, -(-(first + size) // huge) * huge


def rmp_segments(memory: int, segment: int) -> tuple[int, int]:
    """Number of segments and bytes of all their tables for the segmented RMP; ``segment`` is a power of two of GiB."""
    if segment < 1 << 30 or segment & (segment - 1):
        raise WorkbenchError(f"segment: {segment} is not a power of two of at least 1 GiB")
    count = -(-memory // segment)
    return count, memory // PAGE_SIZE * RMP_ENTRY


def pamt_bytes(regions: Sequence[int], entry: int = PAMT_ENTRY) -> int:
    """Static PAMT for TDMRs of the given sizes in bytes: arrays for 4 KiB, 2 MiB and 1 GiB, each in whole pages."""
    return sum(-(-((size >> shift) * entry) // PAGE_SIZE) * PAGE_SIZE for size in regions for shift in (12, 21, 30))


def dynamic_pamt_bytes(memory: int, private_2m: int, sept_pages: int = 0, entry: int = PAMT_ENTRY) -> tuple[int, int]:
    """Dynamic PAMT: bytes always there and bytes given on demand.

    Parameters
    ----------
    memory : bytes of the host in TDMRs. Always there: the 2 MiB and 1 GiB arrays and one bit per 4 KiB page
    private_2m : 2 MiB ranges held privately at 4 KiB, each of which needs a pair of pages
    sept_pages : pages of secure page tables, whose 2 MiB ranges need a pair too (counted as given, 512 at best)
    """
    always = (
        sum(-(-((memory >> shift) * entry) // PAGE_SIZE) * PAGE_SIZE for shift in (21, 30))
        + (memory >> PAGE_SHIFT) // 8
    )
    ranges = private_2m + -(-sept_pages // PAGES_2M)
    return always, ranges * DPAMT_PAGES_PER_2M * PAGE_SIZE


def accept_exits(page_size: int, chunk: int = ACCEPT_CHUNK, prefaulted: bool = False) -> float:
    """Extra exits while a guest accepts one chunk of memory: one per page that backs it, none if it was prefaulted.

    Below 1 when the page is larger than the chunk: one exit serves several chunks.
    """
    return 0.0 if prefaulted else chunk / page_size


def psc_requests(ranges: int) -> int:
    """Exits needed to name ``ranges`` ranges (4 KiB or 2 MiB each) in page-state-change requests."""
    return -(-ranges // PSC_MAX_ENTRIES)


@dataclass
class RmpCounts:
    """Operations on the table so far."""

    rmpupdate: int = 0
    psmash: int = 0
    faults: int = 0
    """RMP faults because the sizes of the entry and of the mapping differ."""
    leaked_pages: int = 0
    """Pages whose update failed and that are never used again."""


class Rmp:
    """State of the table for one guest's memory: per 4 KiB page shared, private at 4 KiB, or part of a 2 MiB entry."""

    def __init__(self, pages: int) -> None:
        if pages <= 0 or pages % PAGES_2M:
            raise WorkbenchError(f"pages: {pages} is not a whole number of 2 MiB blocks")
        self.state = np.zeros(pages, np.uint8)
        self.counts = RmpCounts()
        self.direct_map_split: set[int] = set()
        """2 MiB blocks whose direct map had to be split to 4 KiB (``adjust_direct_map``)."""

    def make_private(self, start: int, pages: int, folio_pages: int = PAGES_2M) -> None:
        """``sev_gmem_make_private`` for each page of a range, in folios of ``folio_pages``.

        A 2 MiB entry is made if the folio has that many pages and all of the aligned block is shared in the table.
        Pages assigned already are left alone.
        """
        end = self._checked(start, pages)
        for block in range(start // PAGES_2M, -(-end // PAGES_2M)):
            low, high = max(start, block * PAGES_2M), min(end, (block + 1) * PAGES_2M)
            part = self.state[low:high]
            if not (part == SHARED).any():
                continue
            whole = high - low == PAGES_2M and folio_pages >= PAGES_2M
            if whole and not part.any():
                part[:] = PRIVATE_2M
                self.counts.rmpupdate += 1
                continue
            fresh = part == SHARED
            self.counts.rmpupdate += int(fresh.sum())
            part[fresh] = PRIVATE_4K
            self.direct_map_split.add(block)

    def make_shared(self, start: int, pages: int) -> None:
        """``sev_gmem_make_shared``: one update for a whole 2 MiB entry; PSMASH first if only part of it goes."""
        end = self._checked(start, pages)
        for block in range(start // PAGES_2M, -(-end // PAGES_2M)):
            low, high = max(start, block * PAGES_2M), min(end, (block + 1) * PAGES_2M)
            part = self.state[low:high]
            if not part.any():
                continue
            if part[0] == PRIVATE_2M:
                if high - low == PAGES_2M:
                    part[:] = SHARED
                    self.counts.rmpupdate += 1
                    continue
                self.psmash(block)
            self.counts.rmpupdate += int((part != SHARED).sum())
            part[:] = SHARED

    def psmash(self, block: int) -> None:
        """Turn the 2 MiB entry of a block into 512 entries of 4 KiB."""
        part = self.state[block * PAGES_2M : (block + 1) * PAGES_2M]
        if part[0] != PRIVATE_2M:
            raise WorkbenchError(f"psmash: block {block} has no 2 MiB entry")
        part[:] = PRIVATE_4K
        self.counts.psmash += 1
        self.direct_map_split.add(block)

    def guest_access(self, page: int, mapped_2m: bool) -> None:
        """The guest uses a private page; a 4 KiB validation under a 2 MiB entry faults, is smashed and zapped."""
        if self.state[page] == PRIVATE_2M and not mapped_2m:
            self.counts.faults += 1
            self.psmash(page // PAGES_2M)

    def max_mapping_level(self, page: int) -> int:
        """Largest leaf for a page: 2 MiB (1) under a 2 MiB entry, else 4 KiB (0). Never 1 GiB."""
        return 1 if self.state[page] == PRIVATE_2M else 0

    @property
    def entries_2m(self) -> int:
        return int((self.state[::PAGES_2M] == PRIVATE_2M).sum())

    @property
    def direct_map_tables(self) -> int:
        """Page tables added to the host's direct map: one per split 2 MiB, one per GiB with any of them."""
        return len(self.direct_map_split) + len({block // PAGES_2M for block in self.direct_map_split})

    def _checked(self, start: int, pages: int) -> int:
        if start < 0 or pages <= 0 or start + pages > len(self.state):
            raise WorkbenchError(f"range: {start}+{pages} is not inside {len(self.state)} pages")
        return start + pages


@dataclass
class SecureEpt:
    """Secure page tables of a TD: what demotes, promotions and removals cost.

    ``huge`` True follows the huge-page series (2 MiB leaves, demote on a partial change); False is Linux 7.3, which
    maps everything at 4 KiB. Promotion is not proposed for KVM in those series, so :meth:`promote` refuses.
    """

    pages: int
    huge: bool = False
    dynamic_pamt: bool = False
    demotes: int = 0
    sept_pages: int = 0
    pamt_pages: int = 0
    removed_pages: int = 0
    """Private pages removed: their content is gone and the guest must accept them again."""
    accepted_pages: int = 0
    small: np.ndarray = field(init=False)
    private: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if self.pages <= 0 or self.pages % PAGES_2M:
            raise WorkbenchError(f"pages: {self.pages} is not a whole number of 2 MiB blocks")
        blocks = self.pages // PAGES_2M
        self.small = np.full(blocks, not self.huge)
        self.private = np.zeros(self.pages, bool)

    def add(self, start: int, pages: int) -> None:
        """Map private pages (TDH.MEM.PAGE.AUG); a block touched only in part is mapped at 4 KiB."""
        before = self._small_in_use()
        for block in range(start // PAGES_2M, -(-(start + pages) // PAGES_2M)):
            low, high = block * PAGES_2M, (block + 1) * PAGES_2M
            if start > low or start + pages < high:
                self._demote(block)
        self.accepted_pages += int((~self.private[start : start + pages]).sum())
        self.private[start : start + pages] = True
        self._account(before)

    def remove(self, start: int, pages: int) -> None:
        """Take pages away for sharing: huge leaves are split at the borders first."""
        before = self._small_in_use()
        for block in {start // PAGES_2M, (start + pages - 1) // PAGES_2M}:
            low, high = block * PAGES_2M, (block + 1) * PAGES_2M
            if start > low or start + pages < high:
                self._demote(block)
        self.removed_pages += int(self.private[start : start + pages].sum())
        self.private[start : start + pages] = False
        self._account(before)

    def promote(self, block: int) -> int:
        """TDH.MEM.PAGE.PROMOTE is not used by KVM: EOPNOTSUPP."""
        return errno.EOPNOTSUPP

    def _demote(self, block: int) -> None:
        if self.small[block]:
            return
        self.small[block] = True
        if self.private[block * PAGES_2M : (block + 1) * PAGES_2M].any():
            self.demotes += 1

    def _small_in_use(self) -> np.ndarray:
        result: np.ndarray = self.small & self.private.reshape(-1, PAGES_2M).any(axis=1)
        return result

    def _account(self, before: np.ndarray) -> None:
        change = int(self._small_in_use().sum()) - int(before.sum())
        self.sept_pages += change
        if self.dynamic_pamt:
            self.pamt_pages += change * DPAMT_PAGES_PER_2M

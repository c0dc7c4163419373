"""The RMP and the secure page tables of one guest, page by page: the slow twins of :mod:`workbench.tracking.whole`."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import numpy as np

from workbench.errors import WorkbenchError
from workbench.tracking.confidential import DPAMT_PAGES_PER_2M, PAGES_2M

SHARED, PRIVATE_4K, PRIVATE_2M = 0, 1, 2


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

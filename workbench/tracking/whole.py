"""What of a guest's memory stays whole as it converts: RMP entries, 1 GiB regions without SNP memory, pairs of PAMT pages.

One row per 2 MiB of a file, looked at again after each call; what a call does within a row is taken as one step. Of many calls
at once each is followed, page by page of the blocks it names (:meth:`Whole.follow`).

* The reverse map table has entries of 4 KiB and 2 MiB (``arch/x86/kvm/svm/sev.c: sev_gmem_prepare``): a 2 MiB entry where all
  512 pages become private at once in memory that lies together; PSMASH where part of one is shared, with no way back but to share
  all of it; an RMPUPDATE for each entry that changes hands. A 2 MiB of the direct map is split where it has entries of 4 KiB
  (``arch/x86/virt/svm/sev.c: adjust_direct_map``).
* RMPOPT (7.4): the check of the table is skipped for 1 GiB regions that hold no SNP guest memory. Which pages share a region is
  known of 1 GiB pages; others are taken to lie in the order of the file on their node, from the start of a region on.
* Dynamic PAMT (TDX): a pair of pages for each 2 MiB with private memory, which is mapped at 4 KiB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.kernels import whole as kernel
from workbench.kernels.folios import run as folio
from workbench.tracking.confidential import DPAMT_PAGES_PER_2M
from workbench.tracking.tracked_file import Blocks, Int64s, TrackedFile
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
WATCHED = ("snp", "tdx")
"""VM types for which it matters; of "snp" what each call did, of "tdx" only the state."""
WIDE = 64
"""Blocks of one call that are looked at together rather than bit by bit."""
BYTES_OF_A_PAIR = DPAMT_PAGES_PER_2M * PAGE_SIZE
"""Of PAMT pages, for each 2 MiB with private memory."""
_ALL = (1 << folio.PAGES_2M) - 1


class Whole:
    """One file: arrays over its 2 MiB blocks, and what has been done to the RMP so far."""

    def __init__(self, file: TrackedFile, nodes: int) -> None:
        blocks = -(-(file.size // PAGE_SIZE) // folio.PAGES_2M)
        self.file, self.nodes = file, nodes
        self.state = kernel.new_whole(blocks, nodes)

    @property
    def updates(self) -> int:
        """Entries of the RMP that were written so far."""
        return int(self.state.row[kernel.UPDATES])

    @property
    def smashes(self) -> int:
        """Entries of 2 MiB that were taken apart so far."""
        return int(self.state.row[kernel.SMASHES])

    def row(self) -> Int64s:
        """Updates, smashes, blocks with a 2 MiB entry, blocks whose direct map is split, then by node 1 GiB regions that hold
        private memory, then bytes of pairs of PAMT pages for it, int64 (4 + 2 nodes,)."""
        return self.rows_of(self.state.row.copy())

    def rows_of(self, kept: Int64s) -> Int64s:
        """:meth:`row` of rows as the kernel has them, int64 (..., 4 + 2 nodes), which are changed."""
        kept[..., kernel.REGIONS + self.nodes :] *= BYTES_OF_A_PAIR
        return kept

    def look(self, first: int, end: int) -> None:
        """Pages [first, end) of the file may have changed."""
        low, high = first // folio.PAGES_2M, min(len(self.state.private), -(-end // folio.PAGES_2M))
        if low < high:
            self.file.look_at(self.state, low, high)

    def look_at(self, blocks: Int64s) -> None:
        """Blocks int64 (n,), each once, may have changed, as by one call each."""
        self._look(blocks, self.file.blocks_at(blocks), True)

    def look_after(self, blocks: Int64s) -> None:
        """Blocks int64 (n,), each once, are as :meth:`follow` left them, or nobody asks what was done to the RMP."""
        self._look(blocks, self.file.blocks_at(blocks), False)

    def _look(self, blocks: Int64s, now: Blocks, counts: bool) -> None:
        present, private, node, _, whole = now
        kernel.look(self.state, blocks, present, private, node, np.ascontiguousarray(whole), counts)

    def follow(self, first: Int64s, end: Int64s, to_shared: Bools, bits: dict[int, tuple[int, int]]) -> int:
        """What conversions of pages [first, end), (n,) each, do one after the other; returns how many were followed.

        ``bits``: of each block that they touch, which pages are there and which of them are private, as
        :meth:`TrackedFile.bits` says before the first of them; it is changed as they change it. Whoever calls looks at these
        blocks afterwards. It ends before a call after which it depends on the folios whether one entry can stand for a block.
        """
        folios, entries = not self.file.stays_whole, self.file.order > 0
        blocks = np.fromiter(bits, np.int64, len(bits))
        large = dict(zip(blocks.tolist(), self.state.large[blocks].tolist(), strict=True))
        split: set[int] = set()
        done = updates = smashes = 0
        for low, high, shares in zip(first.tolist(), end.tolist(), to_shared.tolist(), strict=True):
            changes, depends = [], False
            for block in range(low >> folio.ORDER_2M, ((high - 1) >> folio.ORDER_2M) + 1 if low < high else 0):
                base = block << folio.ORDER_2M
                named = (1 << min(high - base, folio.PAGES_2M)) - (1 << max(low - base, 0))
                there, before = bits[block]
                after = before & ~named if shares else before | (there & named)
                if after != before:
                    changes.append((block, there, before, after))
                    depends |= not before and after == _ALL
            if folios and depends:
                break
            for block, there, before, after in changes:
                bits[block] = there, after
                was, made = large[block], entries and not before and after == _ALL
                updates += 1 if made or (was and not after) else (before ^ after).bit_count()
                if was and after:
                    smashes += 1
                    split.add(block)
                elif not made and after & ~before:
                    split.add(block)
                large[block] = made
            done += 1
        state = self.state
        state.large[blocks] = list(large.values())
        state.direct_split[list(split)] = 1
        state.row[: kernel.REGIONS] += updates, smashes, 0, 0
        state.row[kernel.LARGE : kernel.REGIONS] = state.large.sum(), state.direct_split.sum()
        return done

    def device_leaves(self, areas: Int64s) -> Int64s:
        """Leaves of 4 KiB, 2 MiB, 1 GiB that map areas int64 (n, 2) of pages for a device, as large as memory
        lies together: page tables of devices batch pages, not folios (``drivers/iommu/iommufd/pages.c``)."""
        pages, blocks_2m, blocks_1g = 0, 0, 0
        for first, end in areas.tolist():
            low, high = -(-first // folio.PAGES_2M), end // folio.PAGES_2M
            pages += end - first
            if low >= high or self.file.order == 0:
                continue
            present, private, _, together, _ = self.file.blocks(low, high)
            whole = together & (present == folio.PAGES_2M) & ((private == 0) | (private == folio.PAGES_2M))
            blocks_2m += int(whole.sum())
            for giga in (
                range(-(-low // folio.BLOCKS_1G), high // folio.BLOCKS_1G) if self.file.order == folio.ORDER_1G else ()
            ):
                at = slice(giga * folio.BLOCKS_1G - low, (giga + 1) * folio.BLOCKS_1G - low)
                blocks_1g += bool(whole[at].all() and len(np.unique(private[at])) == 1)
        small = pages - blocks_2m * folio.PAGES_2M
        return np.array([small, blocks_2m - blocks_1g * folio.BLOCKS_1G, blocks_1g], np.int64)

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

from workbench.kernels.folios import run as folio
from workbench.tracking.confidential import DPAMT_PAGES_PER_2M
from workbench.tracking.tracked_file import Blocks, Int64s, TrackedFile
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
WATCHED = ("snp", "tdx")
"""VM types for which it matters; of "snp" what each call did, of "tdx" only the state."""
WIDE = 64
"""Blocks of one call that are looked at together rather than bit by bit."""
_ALL = (1 << folio.PAGES_2M) - 1


class Whole:
    """One file: arrays over its 2 MiB blocks, and what has been done to the RMP so far."""

    def __init__(self, file: TrackedFile, nodes: int) -> None:
        blocks = -(-(file.size // PAGE_SIZE) // folio.PAGES_2M)
        self.file, self.nodes = file, nodes
        self.present, self.private = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
        self.node = np.full(blocks, -1, np.int64)
        self.large: Bools = np.zeros(blocks, bool)
        """The block has a 2 MiB entry."""
        self.direct_split: Bools = np.zeros(blocks, bool)
        """The direct map of the block is split."""
        self.updates = self.smashes = 0
        self._region = np.full(blocks, -1, np.int64)
        self._most = -(-blocks // folio.BLOCKS_1G) + 1
        self._held = np.zeros(nodes * self._most, np.int64)
        self._row: Int64s | None = None

    def row(self) -> Int64s:
        """Updates, smashes, blocks with a 2 MiB entry, blocks whose direct map is split, then :meth:`regions` and
        :meth:`pamt_bytes`, int64 (4 + 2 nodes,); not to be written to."""
        if self._row is None:
            sums = (self.updates, self.smashes, self.large.sum(), self.direct_split.sum())
            self._row = np.concatenate((np.array(sums, np.int64), self.regions(), self.pamt_bytes()))
        return self._row

    def look(self, first: int, end: int) -> None:
        """Pages [first, end) of the file may have changed."""
        low, high = first // folio.PAGES_2M, min(len(self.private), -(-end // folio.PAGES_2M))
        if low >= high:
            return
        if high - low == 1 and self._look_at_one(low):
            return
        self._compare(slice(low, high), self.file.blocks(low, high))

    def look_at(self, blocks: Int64s) -> None:
        """Blocks int64 (n,), each once, may have changed, as by one call each."""
        self._compare(blocks, self.file.blocks_at(blocks))

    def follow(self, first: Int64s, end: Int64s, to_shared: Bools, bits: dict[int, tuple[int, int]]) -> int:
        """What conversions of pages [first, end), (n,) each, do one after the other; returns how many were followed.

        ``bits``: of each block that they touch, which pages are there and which of them are private, as
        :meth:`TrackedFile.bits` says before the first of them; it is changed as they change it. Whoever calls looks at these
        blocks afterwards. It ends before a call after which it depends on the folios whether one entry can stand for a block.
        """
        folios, entries = not self.file.stays_whole, self.file.order > 0
        blocks = np.fromiter(bits, np.int64, len(bits))
        large = dict(zip(blocks.tolist(), self.large[blocks].tolist(), strict=True))
        split: set[int] = set()
        done = 0
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
                self.updates += 1 if made or (was and not after) else (before ^ after).bit_count()
                if was and after:
                    self.smashes += 1
                    split.add(block)
                elif not made and after & ~before:
                    split.add(block)
                large[block] = made
            done += 1
        self.large[blocks] = list(large.values())
        self.direct_split[list(split)] = True
        return done

    def _compare(self, blocks: slice | Int64s, now: Blocks) -> None:
        present, private, _, _, whole = now
        before, large = self.private[blocks], self.large[blocks]
        same = np.array_equal(present, self.present[blocks])
        if same and np.array_equal(private, before):
            return
        made = (before == 0) & (private == folio.PAGES_2M) & whole
        gone, smashed = large & (private == 0), large & (private > 0) & (private < folio.PAGES_2M)
        single = np.where(made | gone, 0, np.abs(private - before))
        self.updates += int(made.sum() + gone.sum() + single.sum())
        self.smashes += int(smashed.sum())
        self.large[blocks] = (large & ~gone & ~smashed) | made
        self.direct_split[blocks] |= smashed | ((private > before) & ~made)
        self._take_over(blocks, now)

    def look_after(self, blocks: Int64s) -> None:
        """Blocks int64 (n,), each once, are as :meth:`follow` left them, or nobody asks what was done to the RMP."""
        self._take_over(blocks, self.file.blocks_at(blocks))

    def _take_over(self, blocks: slice | Int64s, now: Blocks) -> None:
        """These blocks are now so: regions and pairs of PAMT pages follow."""
        present, private, node, _, _ = now
        before = self.private[blocks]
        self._row = None
        moved = not np.array_equal(present, self.present[blocks]) or not np.array_equal(node, self.node[blocks])
        if not moved:
            self._count(blocks, before > 0, -1)
            self._count(blocks, private > 0, 1)
        self.present[blocks], self.private[blocks], self.node[blocks] = present, private, node
        if moved:
            self._lay_out()

    def _look_at_one(self, block: int) -> bool:
        """:meth:`look` at one block of which only the states of pages may have changed; False: more may have."""
        found = self.file.block(block)
        if found is None or (found.present, found.node) != (int(self.present[block]), int(self.node[block])):
            return False
        private, before, large = found.private, int(self.private[block]), bool(self.large[block])
        if private == before:
            return True
        made = before == 0 and private == folio.PAGES_2M and found.whole
        gone = large and private == 0
        smashed = large and 0 < private < folio.PAGES_2M
        updates = made + gone + (0 if made or gone else abs(private - before))
        self.updates += updates
        self.smashes += smashed
        self.large[block] = (large and not gone and not smashed) or made
        split = bool(self.direct_split[block]) or smashed or (private > before and not made)
        held, region = (private > 0) - (before > 0), int(self._region[block])
        if self._row is not None and not held and bool(self.direct_split[block]) == split:
            self._row = self._row.copy()
            self._row[:3] += updates, smashed, int(self.large[block]) - large
        else:
            self._row = None
        self.direct_split[block] = split
        if held and region >= 0:
            self._held[region] += held
        self.private[block] = private
        return True

    def regions(self) -> Int64s:
        """1 GiB regions of each node that hold private memory, int64 (nodes,)."""
        return np.asarray((self._held.reshape(self.nodes, -1) > 0).sum(axis=1), np.int64)

    def pamt_bytes(self) -> Int64s:
        """Bytes of pairs of PAMT pages for private memory on each node, int64 (nodes,)."""
        used = np.bincount(self.node[(self.private > 0) & (self.node >= 0)], minlength=self.nodes)
        return used.astype(np.int64) * DPAMT_PAGES_PER_2M * PAGE_SIZE

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

    def _count(self, blocks: slice | Int64s, holds: Bools, sign: int) -> None:
        region = self._region[blocks]
        np.add.at(self._held, region[holds & (region >= 0)], sign)

    def _lay_out(self) -> None:
        """Give every block the region that its first page lies in, and count those that hold private memory."""
        for node in range(self.nodes):
            mine = np.flatnonzero(self.node == node)
            start = np.cumsum(self.present[mine]) - self.present[mine]
            self._region[mine] = node * self._most + start // folio.PAGES_1G
        self._region[self.node < 0] = -1
        self._held[:] = 0
        self._count(slice(None), self.private > 0, 1)

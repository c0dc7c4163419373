"""Folios that are not hugetlb's, the slow way: huge folios of the page allocator, and 4 KiB folios that lie together."""

from __future__ import annotations

import errno

from reference.folio import PAGES_1G, PAGES_2M, Block, Failure, File, Folio, Page


class BuddyFile(File):
    """A poisoned page is split off and belongs to nobody any more; only what somebody holds of the shared pages counts."""

    withheld = 0

    def held(self, index: int) -> bool:
        page = self.pages[index]
        return super().held(index) or (index in self.poisoned and page.folio is not None)

    def check_references(self, low: int, high: int, first: int, end: int, shared_only: bool) -> None:
        punching = (low, high) == (first, end)
        super().check_references(low, high, first, end, shared_only or (punching and self.punching))

    punching = False

    def punch(self, offset: int, length: int) -> None:
        self.punching = True
        try:
            super().punch(offset, length)
        finally:
            self.punching = False

    def poison(self, offset: int) -> None:
        index = offset // 4096
        if index >= self.pages_total or self.pages[index].folio is None:
            raise Failure(errno.ENOENT)
        self.split(index)
        if index not in self.poisoned:
            self.poisoned.add(index)
            self.zap(index, index + 1)
            self.total["invalidations"] += 1
            self.total["invalidated_bytes"] += 4096

    def merge_part(self, block: Block, first: int, pages: int) -> None:
        if not any(first <= index < first + pages for index in self.poisoned):
            super().merge_part(block, first, pages)

    def merged_uptodate(self, members: list[Page]) -> bool:
        return any(page.folio.uptodate for page in members)

    def collapse(self, offset: int, node: int, cpu: int) -> None:
        """Copy the small folios of 2 MiB into a huge one that somebody took from a node."""
        first = offset // 4096
        members = self.pages[first : first + PAGES_2M]
        there = [page for page in members if page.folio is not None]
        if offset % (PAGES_2M * 4096) or len(members) < PAGES_2M or not there:
            raise Failure(errno.EINVAL)
        if any(page.shared for page in members) or any(page.folio.block is not None for page in there):
            raise Failure(errno.EINVAL)
        self.check_references(first, first + PAGES_2M, first, first + PAGES_2M, False)
        self.zap(first, first + PAGES_2M)
        self.total["invalidations"] += 1
        self.total["invalidated_bytes"] += PAGES_2M * 4096
        folio = Folio(first, PAGES_2M, Block(first, PAGES_2M, node), True)
        for page in members:
            page.folio = folio
        self.batches[cpu] = []
        self.awaiting.add((first, PAGES_2M))
        self.total["collapsed_2m"] += 1
        self.total["copied_pages"] += len(there)

    def enter_pool(self, block: Block) -> None:
        lost = {index for index in self.poisoned if block.first <= index < block.first + block.pages}
        self.poisoned -= lost
        if lost:
            self.withheld += 1
        else:
            super().enter_pool(block)


class SmallFile(BuddyFile):
    """4 KiB folios in ranges of the pool: what is in one state is mapped as one, nothing is split or merged."""

    def split(self, index: int) -> None: ...

    def merge(self, first: int, end: int) -> None: ...

    def collapse(self, offset: int, node: int, cpu: int) -> None:
        """Nothing is ever huge."""
        raise Failure(errno.EINVAL)

    def populate(self, index: int, node: int, cpu: int) -> None:
        if self.pages[index].folio is not None:
            return
        for pages in (PAGES_1G, PAGES_2M):
            first = index // pages * pages
            members = self.pages[first : first + pages]
            if pages > self.backing or any(page.folio is not None for page in members):
                continue
            block = self.host.dequeue(node, pages)
            if block is None:
                if self.fallback:
                    continue
                raise Failure(errno.ENOMEM)
            block.first = first
            for inner, page in enumerate(members, first):
                page.folio = Folio(inner, 1, block)
                self.add_to_batch(inner, cpu)
            return
        self.pages[index].folio = Folio(index, 1, None)
        self.add_to_batch(index, cpu)

    def add_to_batch(self, index: int, cpu: int) -> None:
        self.batches[cpu].append(index)
        if len(self.batches[cpu]) == 31:
            self.batches[cpu] = []

    def uniform(self, first: int, pages: int) -> bool:
        members = self.pages[first : first + pages]
        together = all(p.folio is not None and p.folio.block is not None for p in members) and len(members) == pages
        return together and members[0].folio.block.pages >= pages and len({page.shared for page in members}) == 1

    def mappable(self, pages: int) -> int:
        firsts = range(0, self.pages_total, pages)
        giga = [first for first in range(0, self.pages_total, PAGES_1G) if self.uniform(first, PAGES_1G)]
        if pages == PAGES_1G:
            return len(giga)
        return sum(self.uniform(first, pages) and first // PAGES_1G * PAGES_1G not in giga for first in firsts)

    def convert(self, offset: int, length: int, to_shared: bool) -> None:
        backing, self.backing = self.backing, 1  # as 4 KiB folios do
        try:
            super().convert(offset, length, to_shared)
        finally:
            self.backing = backing

    def convert_whole(self, first: int, end: int, to_shared: bool) -> None:
        ranges = self.sub_ranges(first, end, to_shared)
        for low, high in ranges:
            self.total["invalidations"] += 1
            self.total["invalidated_bytes"] += (high - low) * 4096
        if to_shared:
            self.split_leaf(first)
            self.split_leaf(end)
        else:
            for low, high in ranges:
                self.check_references(low, high, first, end, True)
        self.zap(first, end)
        gigas = range(first // PAGES_1G * PAGES_1G, end, PAGES_1G)
        blocks = range(first // PAGES_2M * PAGES_2M, end, PAGES_2M)
        keys = [(at, PAGES_1G) for at in gigas] + [(at, PAGES_2M) for at in blocks]
        before = {key: self.uniform(*key) for key in keys}
        for low, high in ranges:
            for page in self.pages[low:high]:
                page.shared = to_shared
        for key in keys:
            at, pages = key
            after, giga = self.uniform(*key), (at // PAGES_1G * PAGES_1G, PAGES_1G)
            if before[key] and not after:
                self.lose_key(key)
            elif after and not before[key]:
                if pages == PAGES_1G:
                    self.awaiting = {k for k in self.awaiting if not at <= k[0] < at + PAGES_1G}
                    self.awaiting.add(key)
                elif not self.uniform(*giga):
                    self.awaiting.add(key)

    def lose_key(self, key: tuple[int, int]) -> None:
        if key in self.awaiting:
            self.awaiting.remove(key)
        else:
            self.total["lost_1g" if key[1] == PAGES_1G else "lost_2m"] += 1

    def map_page(self, index: int) -> None:
        if self.leaf[index]:
            return
        for pages in (PAGES_1G, PAGES_2M, 1):
            key = index // pages * pages, pages
            clean = not any(key[0] <= bad < key[0] + pages for bad in self.poisoned)
            if pages == 1 or (self.uniform(*key) and clean):
                if key in self.awaiting:
                    self.awaiting.remove(key)
                    self.total["regained_1g" if pages == PAGES_1G else "regained_2m"] += 1
                self.leaf[key[0] : key[0] + pages] = [pages] * pages
                return

"""Huge folios under conversion, the slow way: one object per 4 KiB page, everything recounted when asked.

Written from the rules of the proposals, not from :mod:`workbench.kernels.folios.run`; nothing here keeps a counter that could be
recounted from the pages. Errors are errnos, as the kernel's; SIGBUS is -7.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field

PAGES_2M, PAGES_1G = 512, 262144
EHWPOISON, SIGBUS = 133, -7


@dataclass
class Folio:
    """A folio of the page cache: ``pages`` pages from ``first``; ``block`` is the pool page it is part of."""

    first: int
    pages: int
    block: Block | None
    uptodate: bool = False


@dataclass(eq=False)
class Block:
    """A huge page taken from the pool, in whatever state; ``extra`` lists the node of each vmemmap page restored."""

    first: int
    pages: int
    node: int
    restored: bool = False
    extra: list[int] = field(default_factory=list)
    poison: set[int] = field(default_factory=set)  # pages of it, while it is in the pool
    slabs: list[int] = field(default_factory=list)


@dataclass
class Page:
    """One 4 KiB page of the file."""

    shared: bool = False
    content_lost: bool = False
    folio: Folio | None = None
    transient: int = 0
    pins: int = 0
    orphans: int = 0


@dataclass
class Host:
    """What files share: free vmemmap pages by node and the pools of huge pages (blocks lying in them)."""

    vmemmap: list[int]
    order: list[list[int]]
    pool: dict[tuple[int, int], list[Block]]

    def take(self, home: int, count: int) -> list[int] | None:
        if sum(self.vmemmap) < count:
            return None
        got: list[int] = []
        for node in self.order[home]:
            while self.vmemmap[node] and len(got) < count:
                self.vmemmap[node] -= 1
                got.append(node)
        return got

    def give_back(self, pages: list[int]) -> None:
        for node in pages:
            self.vmemmap[node] += 1

    def dequeue(self, node: int, pages: int) -> Block | None:
        """The page given back last, but none whose first 4 KiB is poisoned; one that is not optimised counts as first."""
        pool = self.pool[node, pages]
        usable = [block for block in pool if 0 not in block.poison]
        if not usable:
            return None
        block = usable[-1]
        for other in pool:
            if other.restored:
                block.restored, other.restored = other.restored, block.restored
                block.extra, other.extra = other.extra, block.extra
                break
        pool.remove(block)
        return block


class Failure(Exception):
    """An operation refused: errno and the page it names."""

    def __init__(self, error: int, page: int | None = None) -> None:
        self.error, self.page = error, page


@dataclass
class File:
    pages_total: int
    backing: int
    generation: str  # "B" or "C"
    host: Host
    two_stage: bool = False
    through_full: bool = False
    at_host_fault: bool = False
    merging: str = "eager"
    hvo: bool = True
    fallback: bool = False
    drain: bool = False
    cpus: int = 1
    xarray: str = "free"  # or "slabs", "two levels"

    def __post_init__(self) -> None:
        self.pages = [Page() for _ in range(self.pages_total)]
        self.stages: dict[tuple[int, int], Block] = {}  # 2 MiB parts of a 1 GiB block split in two stages
        self.poisoned: set[int] = set()
        self.batches: list[list[int | None]] = [[] for _ in range(self.cpus)]
        self.total: Counter[str] = Counter()
        self.released = False
        self.left: list[Block] = []  # huge pages of the closed file that wait for their pins
        self.leaf = [0] * self.pages_total  # pages of the second-stage leaf that maps each page
        self.awaiting: set[tuple[int, int]] = set()  # merged folios whose huge mapping is still to come back
        self.changed: set[int] = set()  # pages whose state the conversion under way has changed

    # -------------------------------------------------------------- what can be counted

    def folios(self) -> list[Folio]:
        seen: dict[int, Folio] = {}
        for page in self.pages:
            if page.folio is not None:
                seen[id(page.folio)] = page.folio
        return list(seen.values())

    def all_private(self, first: int, pages: int) -> bool:
        return not any(page.shared for page in self.pages[first : first + pages])

    def leaves(self, pages: int) -> int:
        return sum(1 for size in self.leaf if size == pages) // pages

    def mappable(self, pages: int) -> int:
        return sum(1 for folio in self.folios() if folio.pages == pages and self.all_private(folio.first, pages))

    def held_vmemmap(self) -> Counter[int]:
        blocks = {id(folio.block): folio.block for folio in self.folios() if folio.block is not None}
        held: Counter[int] = Counter()
        for block in [*blocks.values(), *self.stages.values()]:
            held.update(block.extra)
            held.update(block.slabs)
        return held

    def lru_held(self) -> int:
        return sum(1 for batch in self.batches for page in batch if page is not None)

    # -------------------------------------------------------------- operations

    def operate(self, operation: str, *arguments: object) -> tuple[int, int]:
        """Returns errno and the byte offset named by it, or -1."""
        try:
            if self.released and operation not in ("unpin", "lru_drain"):
                raise Failure(errno.EBADF)
            getattr(self, operation)(*arguments)
        except Failure as failure:
            return failure.error, -1 if failure.page is None else failure.page * 4096
        return 0, -1

    def convert(self, offset: int, length: int, to_shared: bool) -> None:
        smallest = 0 if self.generation == "B" and self.backing > 1 else 1
        if offset < 0 or length < smallest or offset % 4096 or length % 4096:
            raise Failure(errno.EINVAL)
        if offset + length > self.pages_total * 4096:
            raise Failure(errno.EINVAL)
        first, end = offset // 4096, (offset + length) // 4096
        if not self.sub_ranges(first, end, to_shared):
            return
        try:
            if self.generation == "B" or self.backing == 1:
                self.convert_whole(first, end, to_shared)
                return
            while first < end:
                stop = min(end, first // self.backing * self.backing + self.backing)
                self.convert_block(first, stop, to_shared)
                first = stop
        finally:
            self.changed = set()

    def sub_ranges(self, first: int, end: int, to_shared: bool) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for index in range(first, end):
            if self.pages[index].shared != to_shared:
                if ranges and ranges[-1][1] == index:
                    ranges[-1] = (ranges[-1][0], index + 1)
                else:
                    ranges.append((index, index + 1))
        return ranges

    def convert_whole(self, first: int, end: int, to_shared: bool) -> None:
        ranges = self.sub_ranges(first, end, to_shared)
        for low, high in ranges:
            low, high = low // self.backing * self.backing, -(-high // self.backing) * self.backing
            self.total["invalidations"] += 1
            self.total["invalidated_bytes"] += (high - low) * 4096
        if not to_shared:
            for low, high in ranges:
                self.check_references(low, high, first, end, True)
        if self.backing == 1:
            self.zap(first, end)
        else:
            for index in range(first, end):
                if self.pages[index].shared != to_shared:
                    self.zap(index, index + 1)
        done: list[tuple[int, int]] = []
        try:
            for low, high in ranges:
                done.append((low, high))
                self.store(range(low, high), to_shared)
                self.restructure(low, high, to_shared)
        except Failure as failure:
            for low, high in done:
                for index in range(low, high):
                    self.pages[index].shared = not to_shared
            self.total["rollbacks"] += 1
            self.total["private_pages_lost"] += sum(high - low for low, high in ranges)
            if self.merging == "eager":
                self.merge(first, end)
            raise Failure(failure.error) from None

    def convert_block(self, first: int, end: int, to_shared: bool) -> None:
        ranges = self.sub_ranges(first, end, to_shared)
        if not ranges:
            self.zap(first, end)
            return
        if not to_shared:
            self.check_references(first, end, first, end, False)
        else:
            self.split_leaf(first)
            self.split_leaf(end)
        self.zap(first, end)
        self.total["invalidations"] += 1
        self.total["invalidated_bytes"] += (end - first) * 4096
        changed = [index for low, high in ranges for index in range(low, high)]
        self.store(changed, to_shared)
        try:
            self.restructure(first, end, to_shared)
        except Failure as failure:
            for index in changed:
                self.pages[index].shared = not to_shared
            self.total["private_pages_lost"] += len(changed)
            if self.merging == "eager":
                self.merge(first, end)
            raise Failure(failure.error, first) from None

    def store(self, changed: range | list[int], to_shared: bool) -> None:
        """Change the state; a folio that stays in one piece loses its huge mapping with that, or may have it again."""
        self.changed = set(changed)
        whole = {id(self.pages[i].folio): self.pages[i].folio for i in changed}
        folios = [folio for folio in whole.values() if folio is not None and folio.pages > 1]
        private = {id(folio): self.all_private(folio.first, folio.pages) for folio in folios}
        for index in changed:
            self.pages[index].shared = to_shared
        for folio in folios:
            if to_shared and private[id(folio)] and self.at_host_fault:
                self.lose(folio)
            if not to_shared and self.all_private(folio.first, folio.pages):
                self.awaiting.add((folio.first, folio.pages))

    def lose(self, folio: Folio) -> None:
        """A huge mapping is gone, if it was there."""
        if (folio.first, folio.pages) in self.awaiting:
            self.awaiting.remove((folio.first, folio.pages))
        else:
            self.total["lost_1g" if folio.pages == PAGES_1G else "lost_2m"] += 1

    def restructure(self, first: int, end: int, to_shared: bool) -> None:
        if not to_shared:
            if self.merging == "eager":
                self.merge(first, end)
        elif not self.at_host_fault:
            for index in range(first, end):
                self.split(index)

    # -------------------------------------------------------------- split and merge

    def split(self, index: int) -> None:
        """Split the huge folio of a page until the page is a 4 KiB folio."""
        folio = self.pages[index].folio
        if folio is None or folio.pages == 1:
            return
        block, parts = folio.block, PAGES_2M if folio.pages == PAGES_1G and self.two_stage else 1
        assert block is not None
        members = self.pages[folio.first : folio.first + folio.pages]
        if folio.pages == PAGES_1G and parts == 1 and self.xarray != "free":
            slabs = None if self.xarray == "two levels" else self.host.take(block.node, 596)
            if slabs is None:
                raise Failure(errno.ENOMEM)
            block.slabs = slabs
        holder = self.stages.get((block.first, folio.first), block)
        if self.hvo and not holder.restored:
            if parts == PAGES_2M and self.through_full and sum(self.host.vmemmap) < 4095:
                raise Failure(errno.ENOMEM)
            count = 511 if parts == PAGES_2M else folio.pages // 64 - 1
            got = self.host.take(block.node, count)
            if got is None:
                self.host.give_back(block.slabs)
                block.slabs = []
                raise Failure(errno.ENOMEM)
            holder.extra += got
            holder.restored = parts == 1
        self.wait(members)
        span = range(folio.first, folio.first + folio.pages)
        if not any(self.pages[i].shared and i not in self.changed for i in span):  # private before this conversion
            self.lose(folio)
        for first in range(folio.first, folio.first + folio.pages, parts):
            part = Folio(first, parts, block, folio.uptodate)
            if parts == PAGES_2M:
                self.stages[block.first, first] = Block(first, PAGES_2M, block.node)
            for page in self.pages[first : first + parts]:
                page.folio = part
        if parts == PAGES_2M and block.restored:
            pages = sorted(block.extra)
            for number in range(PAGES_1G // PAGES_2M):
                stage = self.stages[block.first, block.first + number * PAGES_2M]
                stage.extra, stage.restored = pages[7 * number : 7 * number + 7], True
            block.extra, block.restored = pages[7 * 512 :], False
        self.total["splits_1g" if folio.pages == PAGES_1G else "splits_2m"] += 1
        self.split(index)

    def wait(self, members: list[Page]) -> None:
        for page in members:
            self.total["spins"] += page.transient
            page.transient = 0

    def merge(self, first: int, end: int) -> None:
        """Merge each block that [first, end) touches and that is wholly private."""
        index = first
        while index < end:
            folio = self.pages[index].folio
            index += 1
            if folio is None or folio.pages != 1 or folio.block is None:
                continue
            block = folio.block
            if block.pages == PAGES_1G and self.two_stage:
                self.merge_part(block, (index - 1) // PAGES_2M * PAGES_2M, PAGES_2M)
                index = (index - 1) // PAGES_2M * PAGES_2M + PAGES_2M
            else:
                self.merge_part(block, block.first, block.pages)
                index = block.first + block.pages
        for giga in range(first // PAGES_1G, -(-end // PAGES_1G)):
            if not self.two_stage or self.backing != PAGES_1G:
                continue
            parts = {id(p.folio): p.folio for p in self.pages[giga * PAGES_1G : (giga + 1) * PAGES_1G]}
            if all(f is not None and f.pages == PAGES_2M and f.block.pages == PAGES_1G for f in parts.values()):
                self.merge_part(self.pages[giga * PAGES_1G].folio.block, giga * PAGES_1G, PAGES_1G)

    def merge_part(self, block: Block, first: int, pages: int) -> None:
        members = self.pages[first : first + pages]
        if any(page.shared for page in members):
            return
        self.wait(members)
        self.host.give_back(block.slabs)
        block.slabs = []
        if pages == PAGES_1G and self.two_stage:
            for key in [key for key in self.stages if key[0] == block.first]:
                block.extra += self.stages.pop(key).extra
            self.host.give_back(block.extra)
            block.extra = []
        else:
            holder = self.stages.get((block.first, first), block)
            if holder.restored and self.hvo:
                if sum(self.host.vmemmap) > 0:
                    self.host.give_back(holder.extra)
                    holder.extra, holder.restored = [], False
                else:
                    self.total["unoptimised_merges"] += 1
        folio = Folio(first, pages, block, self.merged_uptodate(members))
        for page in members:
            page.folio = folio
        self.awaiting = {key for key in self.awaiting if not first <= key[0] < first + pages} | {(first, pages)}
        self.total["merges_1g" if pages == PAGES_1G else "merges_2m"] += 1

    def merged_uptodate(self, members: list[Page]) -> bool:
        """The first page's flag is that of the whole; what the others had is lost, or counts as zeroed."""
        for page in members:
            if page.folio.uptodate and not members[0].folio.uptodate:
                page.content_lost = True
                self.total["content_lost_pages"] += 1
            if members[0].folio.uptodate and not page.folio.uptodate:
                self.total["content_stale_pages"] += 1
        return members[0].folio.uptodate

    def collapse(self, offset: int, node: int, cpu: int) -> None:
        """Nobody copies pages of hugetlb."""
        raise Failure(errno.EINVAL)

    def merge_pass(self, offset: int, length: int) -> None:
        self.merge(offset // 4096, min(self.pages_total, -(-(offset + length) // 4096)))

    # -------------------------------------------------------------- references

    def held(self, index: int) -> bool:
        page, in_batch = self.pages[index], any(index in batch for batch in self.batches)
        poisoned = index in self.poisoned and page.folio is not None and page.folio.block is None
        return bool(page.transient or page.pins or poisoned or in_batch)

    def check_references(self, low: int, high: int, first: int, end: int, shared_only: bool) -> None:
        for attempt in range(2):
            found = [i for i in range(low, high) if (not shared_only or self.pages[i].shared) and self.held(i)]
            if found and attempt == 0 and self.drain and self.lru_held():
                self.lru_drain()
                continue
            if found:
                raise Failure(errno.EAGAIN, found[0])
            return

    def lru_drain(self) -> None:
        self.batches = [[] for _ in self.batches]

    def pin(self, offset: int, length: int, long_term: bool, node: int, cpu: int) -> None:
        span = range(offset // 4096, -(-(offset + length) // 4096))
        for index in span:
            if not long_term:
                if index >= self.pages_total or self.pages[index].folio is None:
                    raise Failure(errno.ENOENT, index)
                continue
            try:
                self.host_touch(index, node, cpu)
            except Failure as failure:
                raise Failure(errno.EFAULT if failure.error == SIGBUS else failure.error, index) from None
        for index in span:
            if long_term:
                self.pages[index].pins += 1
            else:
                self.pages[index].transient += 1

    def unpin(self, offset: int, length: int, long_term: bool) -> None:
        span = range(offset // 4096, -(-(offset + length) // 4096))
        if span.stop > self.pages_total:
            raise Failure(errno.EINVAL)
        for index in span:
            page = self.pages[index]
            if (page.pins + page.orphans if long_term else page.transient) == 0:
                raise Failure(errno.EINVAL, index)
        for index in span:
            page = self.pages[index]
            if not long_term:
                page.transient -= 1
            elif page.orphans:
                page.orphans -= 1
            else:
                page.pins -= 1
        for block in list(self.left):
            if not any(page.pins for page in self.pages[block.first : block.first + block.pages]):
                self.left.remove(block)
                self.enter_pool(block)

    # -------------------------------------------------------------- faults

    def populate(self, index: int, node: int, cpu: int) -> None:
        if self.pages[index].folio is not None:
            return
        for pages in (PAGES_1G, PAGES_2M):
            if pages > self.backing:
                continue
            first = index // pages * pages
            members = self.pages[first : first + pages]
            if any(page.folio is not None for page in members):
                continue
            block = self.host.dequeue(node, pages)
            if block is None:
                if self.fallback:
                    continue
                raise Failure(errno.ENOMEM)
            block.first = first
            self.poisoned |= {first + page for page in block.poison}
            block.poison = set()
            folio = Folio(first, pages, block)
            for page in members:
                page.folio = folio
            self.batches[cpu] = []
            if not self.at_host_fault:
                try:
                    for inner in range(first, first + pages):
                        if self.pages[inner].shared:
                            self.split(inner)
                except Failure:
                    if self.generation == "B":
                        self.free(block)
                    raise
            return
        self.pages[index].folio = Folio(index, 1, None)
        self.batches[cpu].append(index)
        if len(self.batches[cpu]) == 31:
            self.batches[cpu] = []

    def free(self, block: Block) -> None:
        self.zap(block.first, block.first + block.pages)
        self.awaiting = {key for key in self.awaiting if not block.first <= key[0] < block.first + block.pages}
        for page in self.pages[block.first : block.first + block.pages]:
            page.folio, page.content_lost = None, False
        self.enter_pool(block)

    def enter_pool(self, block: Block) -> None:
        block.poison = {index - block.first for index in self.poisoned if 0 <= index - block.first < block.pages}
        self.poisoned -= {block.first + page for page in block.poison}
        self.total["poisoned_to_pool"] += bool(block.poison)
        self.host.give_back(block.slabs)
        block.slabs = []
        for key in [key for key in self.stages if key[0] == block.first]:
            self.host.give_back(self.stages.pop(key).extra)
        if not block.restored or sum(self.host.vmemmap) > 0:
            self.host.give_back(block.extra)
            block.extra, block.restored = [], False
        else:
            self.total["unoptimised_merges"] += 1
        self.host.pool[block.node, block.pages].append(block)

    def folio_poisoned(self, index: int) -> bool:
        """A folio in one piece has the mark on its first page."""
        return self.pages[index].folio.first in self.poisoned

    # -------------------------------------------------------------- second stage

    def zap(self, first: int, end: int) -> None:
        for index in range(first, end):
            size = self.leaf[index]
            for mapped in range(index // size * size, index // size * size + size) if size else ():
                self.leaf[mapped] = 0

    def split_leaf(self, index: int) -> None:
        if index >= self.pages_total or self.leaf[index] <= 1:
            return
        if self.leaf[index] == PAGES_1G:
            giga = index // PAGES_1G * PAGES_1G
            self.leaf[giga : giga + PAGES_1G] = [PAGES_2M] * PAGES_1G
        block = index // PAGES_2M * PAGES_2M
        self.leaf[block : block + PAGES_2M] = [1] * PAGES_2M

    def map_page(self, index: int) -> None:
        folio = self.pages[index].folio
        if self.leaf[index]:
            return
        if folio.pages == 1 or not self.all_private(folio.first, folio.pages):
            self.leaf[index] = 1
            return
        if (folio.first, folio.pages) in self.awaiting:
            self.awaiting.remove((folio.first, folio.pages))
            self.total["regained_1g" if folio.pages == PAGES_1G else "regained_2m"] += 1
        self.leaf[folio.first : folio.first + folio.pages] = [folio.pages] * folio.pages

    def unmap_slot(self, offset: int, length: int) -> None:
        self.zap(offset // 4096, min(self.pages_total, -(-(offset + length) // 4096)))

    def host_touch(self, index: int, node: int, cpu: int) -> None:
        if index >= self.pages_total or not self.pages[index].shared:
            raise Failure(SIGBUS, index)
        try:
            self.populate(index, node, cpu)
            if self.folio_poisoned(index) or (self.pages[index].folio.pages > 1 and not self.at_host_fault):
                raise Failure(SIGBUS)
            self.split(index)
        except Failure as failure:
            raise Failure(failure.error, index) from None
        self.pages[index].folio.uptodate = True

    def host_fault(self, offset: int, length: int, node: int, cpu: int) -> None:
        for index in range(offset // 4096, -(-(offset + length) // 4096)):
            self.host_touch(index, node, cpu)

    def guest_fault(self, offset: int, length: int, private: bool | None, node: int, cpu: int) -> None:
        """As private or as shared; None: as each page is."""
        for index in range(offset // 4096, -(-(offset + length) // 4096)):
            if index >= self.pages_total or self.pages[index].shared == private:
                raise Failure(errno.EFAULT, index)
            try:
                self.populate(index, node, cpu)
            except Failure as failure:
                raise Failure(failure.error, index) from None
            if self.folio_poisoned(index) and not self.leaf[index]:
                raise Failure(EHWPOISON, index)
            if self.merging == "lazy":
                self.merge(index, index + 1)
            if not self.leaf[index]:
                self.pages[index].folio.uptodate = True
            self.map_page(index)

    def poison(self, offset: int) -> None:
        index = offset // 4096
        if index >= self.pages_total or self.pages[index].folio is None:
            raise Failure(errno.ENOENT)
        folio = self.pages[index].folio
        if folio.first not in self.poisoned:
            self.poisoned.add(folio.first)
            if folio.block is None:
                self.zap(index, index + 1)
                self.total["invalidations"] += 1
                self.total["invalidated_bytes"] += 4096
        if folio.block is not None:
            raise Failure(errno.EBUSY)

    # -------------------------------------------------------------- punch

    def punch(self, offset: int, length: int) -> None:
        unit = self.backing * 4096 if self.generation == "C" else 4096
        if offset < 0 or length <= 0 or offset % unit or length % unit:
            raise Failure(errno.EINVAL)
        index, end = offset // 4096, min(self.pages_total, (offset + length) // 4096)
        if index >= end:
            return
        self.zap(index, end)
        if self.generation == "C":
            for page in range(index, end):
                folio = self.pages[page].folio
                if folio is not None and folio.block is not None:
                    self.check_references(page, page + 1, page, page + 1, False)
        self.total["invalidations"] += 1
        self.total["invalidated_bytes"] += (end - index) * 4096
        while index < end:
            folio = self.pages[index].folio
            if folio is None:
                index += 1
            elif folio.block is None:
                self.punch_base(index)
                index += 1
            else:
                block = folio.block
                stop = min(end, block.first + block.pages)
                if stop - index < block.pages:
                    self.total["zeroed_pages"] += stop - index
                else:
                    if self.generation == "B" and not self.all_private(block.first, block.pages):
                        self.check_references(index, stop, index, stop, False)
                    self.wait(self.pages[index:stop])
                    self.free(block)
                index = stop

    def punch_base(self, index: int) -> None:
        page = self.pages[index]
        page.orphans += page.pins
        page.pins = page.transient = 0
        page.folio, page.content_lost = None, False
        self.poisoned.discard(index)
        self.batches = [[None if i == index else i for i in batch] for batch in self.batches]

    # -------------------------------------------------------------- the end

    def release(self) -> None:
        self.released = True
        self.zap(0, self.pages_total)
        self.awaiting = set()
        self.total["invalidations"] += 1
        self.total["invalidated_bytes"] += self.pages_total * 4096
        for index, first_page in enumerate(self.pages):
            if first_page.folio is None:
                continue
            block = first_page.folio.block
            if block is None:
                self.punch_base(index)
                continue
            members = self.pages[block.first : block.first + block.pages]
            self.wait(members)
            for page in members:
                page.folio, page.content_lost = None, False
            if any(page.pins for page in members):
                self.left.append(block)
            else:
                self.enter_pool(block)

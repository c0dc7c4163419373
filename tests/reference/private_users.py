"""Those who use private ranges: they ask for the pfns of an offset and are told when pfns go away.

The protocol of the proposal, and of KVM today (``virt/kvm/kvm_main.c: mmu_invalidate_retry_gfn``): a user notes a
sequence number, asks for the pfn, and installs its mapping only if no invalidation of that range ran in between.
An invalidation announces itself, removes mappings and flushes what hardware may have cached, lets the pfns go, and
ends. So no user can reach a frame that has been given away, in whatever order the steps of both sides interleave.

Every operation exists as a generator that yields where another CPU may run (``*_steps``), which is what the property
test interleaves, and as a plain method that runs it through.

The IOMMU exists twice: as it is today, pinning pages through the host mapping (``drivers/iommu/iommufd``,
``mm/gup.c``), which makes a conversion to private fail with EAGAIN; and as the proposal has it, asking and being
notified.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from reference import stage2
from workbench.errors import WorkbenchError
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.tracking.offset_maps import OffsetMap, offset_map
from workbench.units import PAGE_ORDERS

Steps = Generator[str, None, int]
"""Yields the name of the step just done; returns 0 or an errno."""

MAX_LEVELS = {kind: PAGE_ORDERS[largest] // 9 for kind, largest in LARGEST_LEAF.items()}
"""Level of the largest leaf by kind of guest: ``stage2.LEVEL_4K``, ``LEVEL_2M`` or ``LEVEL_1G``."""


class Operations(NamedTuple):
    """What a user's page tables cost so far; leaves by level 4 KiB, 2 MiB, 1 GiB."""

    mapped: tuple[int, int, int]
    unmapped: tuple[int, int, int]
    flushes: int
    table_pages: int


class PageTable:
    """A four-level table with the hardware's cached translations beside it."""

    def __init__(self) -> None:
        self._tables = np.zeros((4, 512), np.int64)
        self._top = np.zeros(stage2.TOP_FIELDS, np.int64)
        stage2.clear(self._tables, self._top)
        self.cached: dict[int, int] = {}
        """Translations that a TLB may hold: filled by :meth:`access`, emptied only by a flush."""

    def _make_room(self, tables: int) -> None:
        need = int(self._top[stage2.TABLES]) + tables
        have = self._tables.shape[0]
        if need > have:
            self._tables = np.concatenate([self._tables, np.zeros((max(need, 2 * have) - have, 512), np.int64)])

    def install(self, gfn: int, pages: int, pfn: int, low: int, high: int, max_level: int) -> None:
        done = 0
        while done < pages:
            self._make_room(stage2.TABLES_PER_LEAF)
            done += int(
                stage2.install_range(
                    self._tables, self._top, gfn + done, pages - done, pfn + done, low, high, max_level
                )
            )

    def zap(self, gfn: int, pages: int) -> int:
        """Remove the leaves that touch a range; cached translations stay until :meth:`flush`."""
        return int(stage2.zap(self._tables, self._top, gfn, pages))

    def flush(self) -> None:
        self.cached.clear()

    def translate(self, gfn: int) -> int:
        return int(stage2.translate(self._tables, gfn))

    def level(self, gfn: int) -> int:
        return int(stage2.level_of(self._tables, gfn))

    def access(self, gfn: int) -> int:
        """What the hardware does: use a cached translation, else walk and cache. Returns the pfn, -1: a fault."""
        if gfn not in self.cached:
            pfn = self.translate(gfn)
            if pfn < 0:
                return -1
            self.cached[gfn] = pfn
        return self.cached[gfn]

    @property
    def operations(self) -> Operations:
        top = [int(value) for value in self._top]
        return Operations((top[3], top[4], top[5]), (top[6], top[7], top[8]), top[stage2.FLUSHES], top[stage2.TABLES])

    @property
    def leaves(self) -> tuple[int, int, int]:
        out = np.zeros(3, np.int64)
        stage2.count_leaves(self._tables, out)
        return int(out[0]), int(out[1]), int(out[2])


@dataclass
class User:
    """Somebody who maps private offsets at ``gfn = offset + base`` and takes part in the invalidation protocol."""

    memory: PrivateMemory
    base: int = 0
    max_level: int = stage2.LEVEL_1G
    name: str = "kvm"
    checks_sequence: bool = True
    """False leaves out the retry check: the negative control of the property test."""
    table: PageTable = field(default_factory=PageTable)
    retries: int = 0
    invalidations: int = 0
    _sequence: int = 0
    _in_progress: int = 0

    def map_steps(self, index: int, pages: int = 1) -> Steps:
        """Fault or map a range: ask for pfns, then install unless an invalidation came in between."""
        done = 0
        while done < pages:
            sequence = self._sequence
            in_progress = self._in_progress
            yield "sequence noted"
            answer = self.memory.ask(index + done)
            if answer is None:
                return errno.EFAULT
            pfn, low, high = answer
            yield "pfn asked"
            if self.checks_sequence and (in_progress or self._in_progress or sequence != self._sequence):
                self.retries += 1
                yield "retry"
                continue
            count = min(pages - done, high - index - done)
            self.table.install(index + done + self.base, count, pfn, low + self.base, high + self.base, self.max_level)
            done += count
            yield "installed"
        return 0

    def invalidate_begin(self) -> None:
        self._in_progress += 1

    def invalidate_end(self) -> None:
        self._sequence += 1
        self._in_progress -= 1

    def zap(self, index: int, pages: int) -> None:
        if self.table.zap(index + self.base, pages):
            self.invalidations += 1

    def map(self, index: int, pages: int = 1) -> int:
        return run(self.map_steps(index, pages))


@dataclass
class PinningIommu:
    """The IOMMU as it is today: pages are pinned through the host mapping, for as long as they are mapped."""

    memory: PrivateMemory
    base: int = 0
    max_level: int = stage2.LEVEL_1G
    table: PageTable = field(default_factory=PageTable)

    def map(self, index: int, pages: int = 1) -> int:
        """IOMMU_IOAS_MAP by address: every page must be shared, for only those can be reached by GUP."""
        found = [self.memory.shared_pfn(index + k) for k in range(pages)]
        if any(pfn < 0 for pfn in found):
            return errno.EFAULT
        for k, pfn in enumerate(found):
            at = index + k + self.base
            self.table.install(at, 1, pfn, at, at + 1, stage2.LEVEL_4K)
            self.memory.pins[index + k] = self.memory.pins.get(index + k, 0) + 1
        return 0

    def unmap(self, index: int, pages: int = 1) -> int:
        """IOMMU_IOAS_UNMAP: remove, flush, unpin."""
        for k in range(index, index + pages):
            if self.table.translate(k + self.base) < 0:
                return errno.ENOENT
        self.table.zap(index + self.base, pages)
        self.table.flush()
        for k in range(index, index + pages):
            self.memory.pins[k] -= 1
            if self.memory.pins[k] == 0:
                del self.memory.pins[k]
        return 0


class PrivateMemory:
    """A file whose private ranges are a light offset -> pfn map and whose shared ranges are in the page cache.

    ``owner`` says for each pfn what offset holds it; a pfn that is not in it has been given away.
    """

    def __init__(self, pages: int, structure: str = "maple", max_order: int = 18) -> None:
        self.pages = pages
        self.private: OffsetMap = offset_map(structure, pages, max_order)
        self.filemap: OffsetMap = offset_map("xarray", pages, max_order)
        self.is_private = np.ones(pages, bool)
        self.poisoned: set[int] = set()
        self.pins: dict[int, int] = {}
        self.owner: dict[int, int] = {}
        self.users: list[User] = []
        self.shared_mapped: dict[int, int] = {}
        """Host user mappings of shared pages: index -> pfn."""
        self.flushes_before_release = True
        """False lets pfns go before hardware caches are flushed: the other negative control."""

    def populate(self, start: int, pages: int, pfn: int) -> None:
        """Back a range, private or shared as its state says."""
        for index in range(start, start + pages):
            self.owner[pfn + index - start] = index
        for first, count, private in _runs(self.is_private, start, pages):
            (self.private if private else self.filemap).insert(first, count, pfn + first - start)

    def ask(self, index: int) -> tuple[int, int, int] | None:
        """Pfn of a private offset and the offsets ``[low, high)`` around it that are private and contiguous."""
        if not 0 <= index < self.pages or index in self.poisoned:
            return None
        for extent in self.private.extents():
            if extent.start <= index < extent.start + extent.pages:
                low, high = extent.start, extent.start + extent.pages
                for bad in self.poisoned:
                    if low <= bad < index:
                        low = bad + 1
                    elif index < bad < high:
                        high = bad
                return extent.pfn + index - extent.start, low, high
        return None

    def shared_pfn(self, index: int) -> int:
        """Pfn of a shared offset, -1 if it is private or absent: what GUP finds."""
        return int(self.filemap.lookup(np.array([index]))[0])

    def add_user(self, user: User) -> User:
        self.users.append(user)
        return user

    def _invalidate_steps(self, start: int, pages: int) -> Iterator[str]:
        for user in self.users:
            user.invalidate_begin()
        yield "invalidation announced"
        for user in self.users:
            user.zap(start, pages)
            yield "zapped"
            if self.flushes_before_release:
                user.table.flush()
                yield "flushed"

    def _end_invalidation(self) -> None:
        for user in self.users:
            user.table.flush()
            user.invalidate_end()

    def punch_steps(self, start: int, pages: int) -> Steps:
        """Punch a hole: users are told, then the pfns go back to the allocator."""
        yield from self._invalidate_steps(start, pages)
        self._release(start, pages)
        yield "pfns given away"
        self._end_invalidation()
        return 0

    def poison_steps(self, index: int) -> Steps:
        """Memory failure: users are told, the page stays but nobody gets it any more."""
        yield from self._invalidate_steps(index, 1)
        self.poisoned.add(index)
        self.owner.pop(int(self.private.lookup(np.array([index]))[0]), None)
        yield "poisoned"
        self._end_invalidation()
        return 0

    def convert_steps(self, start: int, pages: int, to_private: bool) -> Steps:
        """Convert a range in place: the pfns stay, the tracking changes sides.

        To private fails with EAGAIN while a page is pinned; :attr:`pins` then has it. Pages that become shared leave
        the private users, whose mappings of them would be stale.
        """
        if to_private:
            for index in range(start, start + pages):
                self.shared_mapped.pop(index, None)
            yield "host unmapped"
            if any(index in self.pins for index in range(start, start + pages)):
                return errno.EAGAIN
            changed = [(first, count) for first, count, private in _runs(self.is_private, start, pages) if not private]
            for first, count in changed:
                _move(self.filemap, self.private, first, count)
            self.is_private[start : start + pages] = True
            yield "state stored"
            return 0
        yield from self._invalidate_steps(start, pages)
        for first, count, private in list(_runs(self.is_private, start, pages)):
            if private:
                _move(self.private, self.filemap, first, count)
        self.is_private[start : start + pages] = False
        yield "state stored"
        self._end_invalidation()
        return 0

    def punch(self, start: int, pages: int) -> int:
        return run(self.punch_steps(start, pages))

    def convert(self, start: int, pages: int, to_private: bool) -> int:
        if start < 0 or pages <= 0 or start + pages > self.pages:
            raise WorkbenchError(f"convert: {start}+{pages} is not inside the file of {self.pages} pages")
        return run(self.convert_steps(start, pages, to_private))

    def poison(self, index: int) -> int:
        return run(self.poison_steps(index))

    def _release(self, start: int, pages: int) -> None:
        for tracking in (self.private, self.filemap):
            for pfn in tracking.lookup(np.arange(start, start + pages)):
                self.owner.pop(int(pfn), None)
            tracking.erase(start, pages)

    def stale(self) -> int:
        """Mappings, cached ones too, through which a user reaches a frame that is not the private page it asked for.

        A frame counts while it is given away, poisoned, or shared: what the window of the protocol must never show.
        """
        count = 0
        for user in self.users:
            reached = set(user.table.cached.items())
            for gfn in range(user.base, user.base + self.pages):
                pfn = user.table.translate(gfn)
                if pfn >= 0:
                    reached.add((gfn, pfn))
            for gfn, pfn in reached:
                index = gfn - user.base
                if self.owner.get(pfn) != index or not self.is_private[index]:
                    count += 1
        return count


def _runs(flags: np.ndarray, start: int, pages: int) -> Iterator[tuple[int, int, bool]]:
    """Maximal runs (start, pages, value) of equal flags in a range."""
    part = flags[start : start + pages]
    borders = np.flatnonzero(np.diff(part)) + 1
    firsts = [0, *borders.tolist()]
    for first, end in zip(firsts, [*firsts[1:], pages], strict=True):
        yield start + first, end - first, bool(part[first])


def _move(source: OffsetMap, target: OffsetMap, start: int, pages: int) -> None:
    """Move the tracking of a range; holes stay holes."""
    for extent in list(source.extents()):
        first = max(start, extent.start)
        end = min(start + pages, extent.start + extent.pages)
        if first < end:
            source.erase(first, end - first)
            target.insert(first, end - first, extent.pfn + first - extent.start)


def run(steps: Steps) -> int:
    """Run the steps of one operation through, with nobody in between."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return int(stop.value)

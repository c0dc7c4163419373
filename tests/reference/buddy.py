"""Buddy allocator and per-CPU lists in plain Python, written after mm/page_alloc.c with Python lists, and slow."""

from __future__ import annotations

UNMOVABLE, MOVABLE, RECLAIMABLE = 0, 1, 2
FALLBACKS = {UNMOVABLE: [RECLAIMABLE, MOVABLE], MOVABLE: [RECLAIMABLE, UNMOVABLE], RECLAIMABLE: [UNMOVABLE, MOVABLE]}


class Zone:
    """One zone, pages ``start`` to ``end`` (exclusive). Lists are Python lists, first entry first."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.lists: dict[tuple[int, int], list[int]] = {(o, t): [] for o in range(11) for t in range(3)}
        self.free_order: dict[int, int] = {}
        self.block_type: dict[int, int] = {}
        self.lru: set[int] = set()
        self.partial_claims = 0

    def type_of(self, page: int) -> int:
        return self.block_type.get(page // 512, MOVABLE)

    @property
    def free_pages(self) -> int:
        return sum(1 << order for order in self.free_order.values())

    def add(self, page: int, order: int, to_tail: bool) -> None:
        entries = self.lists[order, self.type_of(page)]
        entries.insert(len(entries) if to_tail else 0, page)
        self.free_order[page] = order

    def delete(self, page: int) -> int:
        order = self.free_order.pop(page)
        self.lists[order, self.type_of(page)].remove(page)
        return order

    # Allocation

    def take(self, page: int, order: int) -> int:
        """Take the front of a free block and give the upper halves back."""
        current = self.delete(page)
        while current > order:
            current -= 1
            self.add(page + (1 << current), current, False)
        return page

    def smallest(self, order: int, kind: int) -> int | None:
        for current in range(order, 11):
            if self.lists[current, kind]:
                return self.take(self.lists[current, kind][0], order)
        return None

    def fallback(self, order: int, kind: int) -> tuple[int, int] | None:
        return next(((self.lists[order, t][0], t) for t in FALLBACKS[kind] if self.lists[order, t]), None)

    def claim(self, order: int, kind: int, nofragment: bool) -> int | None:
        for current in range(10, order - 1, -1):
            if nofragment and current < 9:
                return None
            if current < 4 and kind == MOVABLE:
                return None
            found = self.fallback(current, kind)
            if found is None:
                continue
            page, old = found
            if current >= 9:
                self.delete(page)
                for block in range(page // 512, (page + (1 << current)) // 512):
                    self.block_type[block] = kind
                self.add(page, current, False)
                return self.take(page, order)
            if self.claim_pageblock(page, old, kind):
                return self.smallest(order, kind)
        return None

    def claim_pageblock(self, page: int, old: int, kind: int) -> bool:
        self.partial_claims += 1
        block = range(page // 512 * 512, page // 512 * 512 + 512)
        if block.start < self.start or block.stop > self.end:
            return False
        members = [p for p in block if p in self.free_order]
        free = sum(1 << self.free_order[p] for p in members)
        movable = len(self.lru & set(block))
        compatible = {True: movable}.get(kind == MOVABLE, 512 - free - movable if old == MOVABLE else 0)
        if free + compatible < 256:
            return False
        orders = {p: self.delete(p) for p in members}
        self.block_type[page // 512] = kind
        for p in members:
            self.add(p, orders[p], True)
        return True

    def steal(self, order: int, kind: int) -> int | None:
        for current in range(order, 11):
            found = self.fallback(current, kind)
            if found is not None:
                return self.take(found[0], order)
        return None

    def rmqueue(self, order: int, kind: int, nofragment: bool, mode: str = "normal") -> tuple[int | None, str]:
        if mode == "normal":
            page = self.smallest(order, kind)
            if page is not None:
                return page, "normal"
        if mode in ("normal", "claim"):
            page = self.claim(order, kind, nofragment)
            if page is not None:
                return page, "normal"
        page = None if nofragment else self.steal(order, kind)
        return page, mode if page is None else "steal"

    def allocate(self, order: int, kind: int, nofragment: bool = False) -> int | None:
        return self.rmqueue(order, kind, nofragment)[0]

    # Freeing

    def is_buddy(self, page: int, order: int) -> bool:
        return self.start <= page < self.end and self.free_order.get(page) == order

    def free(self, page: int, order: int, to_tail: bool = False) -> None:
        self.lru -= set(range(page, page + (1 << order)))
        if order == 10:
            self.free_one(page, 9, to_tail)
            self.free_one(page + 512, 9, to_tail)
        else:
            self.free_one(page, order, to_tail)

    def free_one(self, page: int, order: int, to_tail: bool) -> None:
        kind = self.type_of(page)
        while order < 10 and self.is_buddy(page ^ (1 << order), order):
            other = page ^ (1 << order)
            self.delete(other)
            if order >= 9:
                self.block_type[other // 512] = kind
            page = min(page, other)
            order += 1
        if order < 9:
            parent = page // (2 << order) * (2 << order)
            to_tail = to_tail or self.is_buddy(parent ^ (2 << order), order + 1)
        self.add(page, order, to_tail)

    def release(self, start: int, end: int) -> None:
        while start < end:
            order = max(o for o in range(11) if start % (1 << o) == 0 and start + (1 << o) <= end)
            self.free(start, order, True)
            start += 1 << order


class CpuLists:
    """Lists of one CPU in front of a zone."""

    def __init__(self, zone: Zone, batch: int, high_min: int, high_max: int, high_mark: int) -> None:
        self.zone, self.batch, self.high_min, self.high_max = zone, batch, high_min, high_max
        self.high_mark, self.below_high = high_mark, False
        self.high = high_min
        self.lists: list[list[int]] = [[] for _ in range(14)]
        self.alloc_factor = self.free_count = 0
        self.previous_was_high_order = False

    @staticmethod
    def index(order: int, kind: int) -> int:
        return (13 if kind == MOVABLE else 12) if order == 9 else 3 * order + kind

    @staticmethod
    def order(index: int) -> int:
        return 9 if index >= 12 else index // 3

    @property
    def count(self) -> int:
        return sum(len(entries) << self.order(index) for index, entries in enumerate(self.lists))

    def watermark_ok(self, order: int, mark: int) -> bool:
        above = self.zone.free_pages - (2**order - 1) > mark
        return above and (order == 0 or any(o >= order for o in self.zone.free_order.values()))

    def allocate(self, order: int, kind: int, nofragment: bool, mark: int) -> int | None:
        if not self.below_high and not self.watermark_ok(order, self.high_mark):
            self.below_high = True
        if self.below_high and not self.watermark_ok(order, mark):
            return None
        if order in (0, 1, 2, 3, 9):
            page = self.take(order, kind, nofragment)
            if page is not None:
                return page
        return self.zone.allocate(order, kind, nofragment)

    def take(self, order: int, kind: int, nofragment: bool) -> int | None:
        self.free_count //= 2
        entries = self.lists[self.index(order, kind)]
        if not entries:
            mode = "normal"
            for _ in range(self.refill(order)):
                page, mode = self.zone.rmqueue(order, kind, nofragment, mode)
                if page is None:
                    break
                entries.append(page)
        return entries.pop(0) if entries else None

    def clamp_high(self) -> int:
        self.high = min(max(self.high, self.high_min), self.high_max)
        return self.high

    def refill(self, order: int) -> int:
        high = self.clamp_high()
        if high < self.batch:
            return 1
        number = self.batch if order else self.batch * 2**self.alloc_factor
        if self.high_min != self.high_max and not self.below_high:
            high = self.high = min(high + number, self.high_max)
        if order == 0:
            limit = max(high - self.count - self.batch, self.batch)
            if number <= limit and self.alloc_factor < 5:
                self.alloc_factor += 1
            number = min(number, limit)
        return max(number >> order, 2) if number > 1 else number

    def free(self, page: int, order: int) -> None:
        if order not in (0, 1, 2, 3, 9):
            self.zone.free(page, order)
            return
        index = self.index(order, self.zone.type_of(page))
        self.lists[index].insert(0, page)
        self.alloc_factor //= 2
        everything = False
        if order in (1, 2, 3):
            everything = self.free_count >= self.batch + self.high_min // 2 and self.previous_was_high_order
            self.previous_was_high_order = True
        else:
            self.previous_was_high_order = False
        if self.free_count < self.batch * 32:
            self.free_count += 2**order
        high = self.flush_level(everything)
        if self.count < high:
            return
        if everything:
            number = min(self.count, self.batch * 32)
        elif high < self.batch:
            number = 1
        else:
            number = min(max(self.free_count, self.batch), high - self.batch)
        while number > 0 and self.count > 0:
            self.flush(min(number, self.batch), index)
            number -= self.batch
        if self.zone.free_pages > self.high_mark:
            self.below_high = False

    def flush_level(self, everything: bool) -> int:
        high = self.clamp_high()
        if high == 0:
            return 0
        if everything:
            self.high = max(high - self.batch * 32, self.high_min)
            return 0
        if self.high_min == self.high_max:
            return high
        if self.below_high:
            self.high = max(high - max(self.free_count, self.batch), self.high_min)
            return max(self.count, self.high_min)
        if self.count >= high:
            need = self.free_count + self.batch
            if self.high < need:
                self.high = min(max(need, self.high_min), self.high_max)
        return high

    def flush(self, number: int, index: int) -> None:
        number = min(number, self.count)
        while number > 0:
            while not self.lists[index]:
                index = (index + 1) % 14
            order = self.order(index)
            while number > 0 and self.lists[index]:
                self.zone.free(self.lists[index].pop(), order)
                number -= 1 << order
            index = (index + 1) % 14

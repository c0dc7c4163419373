"""Buddy allocator in plain Python, written after mm/page_alloc.c with Python lists, and slow."""

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

"""Machines arriving and leaving, on Python lists: every page of every machine is written down, nothing is counted up."""

from __future__ import annotations

from collections.abc import Iterable

from reference.buddy import Zone
from reference.pfn_range import buddy_blocks, buddy_fit, fit, free_runs

UNMOVABLE = 0
Piece = tuple[int, int, int]
"""Node, pfn, pages."""


class RangeHost:
    """Free pages of each node as a set. ``kind``: first, best or buddy."""

    def __init__(self, per_node: int, nodes: int, kind: str, units: Iterable[int], strict: bool = False) -> None:
        self.kind, self.units, self.strict = kind, list(units), strict
        self.orders = per_node.bit_length()
        self.free = [set(range(node * per_node, (node + 1) * per_node)) for node in range(nodes)]

    def free_pages(self) -> int:
        return sum(len(free) for free in self.free)

    def take(self, pages: int, fallback: list[int]) -> list[Piece]:
        got: list[Piece] = []
        for unit in self.units:
            for node in fallback:
                while pages >= unit:
                    piece = self._one(self.free[node], pages // unit * unit, unit)
                    if piece is None:
                        break
                    pfn, count = piece
                    self.free[node] -= set(range(pfn, pfn + count))
                    got.append((node, pfn, count))
                    pages -= count
            if self.strict and pages >= unit:
                break
        return got

    def give(self, pieces: list[Piece]) -> None:
        for node, pfn, pages in pieces:
            self.free[node] |= set(range(pfn, pfn + pages))

    def _one(self, free: set[int], pages: int, unit: int) -> tuple[int, int] | None:
        if self.kind == "buddy":
            size = unit << ((pages // unit).bit_length() - 1)
            while size >= unit:
                pfn = buddy_fit(free, self.orders, size, unit)
                if pfn >= 0:
                    return pfn, size
                size >>= 1
            return None
        pfn = fit(free, self.kind == "best", pages, unit)
        if pfn >= 0:
            return pfn, pages
        parts = []
        for first, end in free_runs(free):
            aligned = -(-first // unit) * unit
            if end - aligned >= unit:
                parts.append((aligned, (end - aligned) // unit * unit))
        if not parts:
            return None
        return parts[0] if self.kind == "first" else max(parts, key=lambda part: (part[1], -part[0]))

    def blocks(self) -> list[int]:
        """Sizes of the free ranges or blocks."""
        if self.kind == "buddy":
            return [
                1 << order
                for free in self.free
                for order, blocks in enumerate(buddy_blocks(free, self.orders))
                for _ in blocks
            ]
        return [end - first for free in self.free for first, end in free_runs(free)]


class BuddyHost:
    """One zone of the reference buddy allocator per node."""

    def __init__(self, per_node: int, nodes: int) -> None:
        self.zones = []
        for _ in range(nodes):
            zone = Zone(0, per_node)
            zone.release(0, per_node)
            self.zones.append(zone)

    def free_pages(self) -> int:
        return sum(zone.free_pages for zone in self.zones)

    def take(self, pages: int, fallback: list[int]) -> list[tuple[int, int, int]]:
        got: list[tuple[int, int, int]] = []
        for order in (10, 9, 0):
            for node in fallback:
                while pages >> order:
                    page = self.zones[node].allocate(order, UNMOVABLE)
                    if page is None:
                        break
                    got.append((node, page, 1 << order))
                    pages -= 1 << order
        return got

    def give(self, pieces: list[tuple[int, int, int]]) -> None:
        # An extent of order-9 or order-10 blocks may join several; each is freed as the kernel frees folios.
        for node, page, pages in pieces:
            self.zones[node].free(page, pages.bit_length() - 1)


class HugetlbHost:
    """A list of free huge pages per node, taken from and given back at its head."""

    def __init__(self, per_node: int, nodes: int, size: int) -> None:
        self.size = size
        count = per_node // size
        self.lists = [[(node * count + k) * size for k in range(count)] for node in range(nodes)]

    def free_pages(self) -> int:
        return sum(map(len, self.lists)) * self.size

    def take(self, pages: int, fallback: list[int]) -> list[Piece]:
        got = []
        left = -(-pages // self.size)
        if left * self.size > self.free_pages():
            return []
        for node in fallback:
            while left and self.lists[node]:
                got.append((node, self.lists[node].pop(0), self.size))
                left -= 1
        return got

    def give(self, pieces: list[Piece]) -> None:
        for node, pfn, _ in pieces:
            self.lists[node].insert(0, pfn)


def extents(pieces: list[Piece], sizes_apart: bool = False) -> list[Piece]:
    """Pieces joined where one continues the one before it; ``sizes_apart`` keeps blocks of different orders apart."""
    joined: list[tuple[int, int, int, int]] = []
    for node, pfn, pages in pieces:
        kind = pages if sizes_apart else 0
        if joined and joined[-1][0] == node and joined[-1][1] + joined[-1][2] == pfn and joined[-1][3] == kind:
            joined[-1] = (node, joined[-1][1], joined[-1][2] + pages, kind)
        else:
            joined.append((node, pfn, pages, kind))
    return [extent[:3] for extent in joined]


def mappable(pieces: list[Piece], size: int) -> int:
    """Pages that mappings of ``size`` pages cover: look at every aligned block of guest offsets."""
    pages = [(node, pfn + k) for node, pfn, count in pieces for k in range(count)]
    covered = 0
    for offset in range(0, len(pages) - size + 1, size):
        node, pfn = pages[offset]
        if pfn % size == 0 and pages[offset : offset + size] == [(node, pfn + k) for k in range(size)]:
            covered += size
    return covered

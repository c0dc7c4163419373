"""A PFN range allocator on a set of free pages: looks at every page, decides as the three fits are described."""

from __future__ import annotations


def free_runs(free: set[int]) -> list[tuple[int, int]]:
    """Maximal runs (first, end) of free pages."""
    runs: list[tuple[int, int]] = []
    for pfn in sorted(free):
        if runs and runs[-1][1] == pfn:
            runs[-1] = (runs[-1][0], pfn + 1)
        else:
            runs.append((pfn, pfn + 1))
    return runs


def fit(free: set[int], best: bool, pages: int, align: int) -> int:
    """First pfn of the range chosen, -1 if none fits."""
    candidates = []
    for first, end in free_runs(free):
        aligned = -(-first // align) * align
        if end - aligned >= pages:
            candidates.append((end - first if best else 0, first, aligned))
    return min(candidates)[2] if candidates else -1


def buddy_blocks(free: set[int], orders: int) -> list[set[int]]:
    """The blocks a fully coalesced buddy system of ``orders`` orders keeps for a set of free pages."""
    left = set(free)
    blocks: list[set[int]] = [set() for _ in range(orders)]
    for order in range(orders - 1, -1, -1):
        size = 1 << order
        for first in sorted(pfn for pfn in left if pfn % size == 0):
            if all(first + k in left for k in range(size)):
                blocks[order].add(first)
                left -= set(range(first, first + size))
    return blocks


def buddy_fit(free: set[int], orders: int, pages: int, align: int) -> int:
    """First pfn the buddy variant gives, -1 if none: lowest block of the smallest order that is large enough."""
    order = 0
    while 1 << order < max(pages, align):
        order += 1
    blocks = buddy_blocks(free, orders)
    for candidate in range(order, orders):
        if blocks[candidate]:
            return min(blocks[candidate])
    return -1

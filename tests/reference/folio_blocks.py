"""Conversions of whole 2 MiB ranges in a populated file, with little vmemmap free: one list entry for each 2 MiB.

Coarser than :mod:`reference.folio` so that 1 GiB pages can be tried with every number of free pages; written from the
same rules.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise


class NoMemory(Exception):
    """A split found too few free pages."""


@dataclass
class Blocks:
    """``size``: 2 MiB ranges per huge page, 1 or 512; ``homes``: node of each huge page."""

    size: int
    homes: list[int]
    vmemmap: list[int]
    order: list[list[int]]
    generation: str = "C"
    stages: str = "one"  # or "two", "through"
    merging: str = "eager"
    hvo: bool = True
    held: dict[tuple[str, int], list[int]] = field(default_factory=dict)  # nodes of the pages by what they describe
    total: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        count = self.size * len(self.homes)
        self.level = ["1G" if self.size == 512 else "2M"] * count
        self.shared = [False] * count

    def take(self, what: tuple[str, int], home: int, count: int) -> None:
        if not self.hvo or self.held.get(what):
            return
        if sum(self.vmemmap) < count:
            raise NoMemory
        got: list[int] = []
        for node in self.order[home]:
            here = min(self.vmemmap[node], count - len(got))
            self.vmemmap[node] -= here
            got += [node] * here
        self.held[what] = got

    def give_back(self, what: tuple[str, int]) -> bool:
        """Optimised again; that needs one free page to start with, unless nothing was held."""
        if self.held.get(what) and sum(self.vmemmap) == 0:
            self.total["unoptimised"] += 1
            return False
        for node in self.held.pop(what, []):
            self.vmemmap[node] += 1
        return True

    def split(self, block: int) -> None:
        page = block // self.size
        whole = range(page * self.size, (page + 1) * self.size)
        if self.level[block] == "1G" and self.stages == "one":
            self.take(("1G", page), self.homes[page], 4095)
            self.total["splits_1g"] += 1
            for other in whole:
                self.level[other] = "4K"
        elif self.level[block] == "1G":
            if self.hvo and self.stages == "through" and sum(self.vmemmap) < 4095:
                raise NoMemory
            self.take(("1G", page), self.homes[page], 511)
            self.total["splits_1g"] += 1
            for other in whole:
                self.level[other] = "2M"
        if self.level[block] == "2M":
            self.take(("2M", block), self.homes[page], 7)
            self.total["splits_2m"] += 1
            self.level[block] = "4K"

    def merge(self, first: int, end: int) -> None:
        for page in range(first // self.size, -(-end // self.size)):
            whole = range(page * self.size, (page + 1) * self.size)
            if self.size == 1 or self.stages != "one":
                for block in whole:
                    if first <= block < end and self.level[block] == "4K" and not self.shared[block]:
                        self.give_back(("2M", block))
                        self.total["merges_2m"] += 1
                        self.level[block] = "2M"
            if self.size == 512 and not any(self.shared[block] for block in whole):
                if self.stages == "one" and self.level[whole[0]] == "4K":
                    self.give_back(("1G", page))
                elif self.stages != "one" and all(self.level[block] == "2M" for block in whole):
                    for what in [("1G", page), *(("2M", block) for block in whole)]:
                        for node in self.held.pop(what, []):
                            self.vmemmap[node] += 1
                else:
                    continue
                self.total["merges_1g"] += 1
                for block in whole:
                    self.level[block] = "1G"

    def convert(self, first: int, end: int, to_shared: bool) -> tuple[int, int | None]:
        """Errno and the block it names."""
        pieces = [(first, end)]
        if self.generation == "C":
            edges = [first, *range((first // self.size + 1) * self.size, end, self.size), end]
            pieces = list(pairwise(edges))
        for low, high in pieces:
            if all(self.shared[block] == to_shared for block in range(low, high)):
                continue
            try:
                if to_shared:
                    for block in range(low, high):
                        self.split(block)
            except NoMemory:
                if self.merging == "eager":
                    self.merge(low, high)
                return errno.ENOMEM, None if self.generation == "B" else low
            self.shared[low:high] = [to_shared] * (high - low)
            if not to_shared and self.merging == "eager":
                self.merge(low, high)
        return 0, None

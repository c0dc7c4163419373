"""A file without struct page for private ranges, the slow way: one object per 4 KiB page, everything recounted.

Written from the rules in :mod:`workbench.kernels.light_map`'s docstrings, with sets and dictionaries; frames come from
plain lists of free units of each node, lowest first. Errors are errnos; SIGBUS is -7.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

EHWPOISON, SIGBUS = 133, -7


@dataclass
class Withheld:
    """A unit that left the file while pages of it were pinned."""

    pfn: int
    node: int
    poisoned: bool
    pins: dict[int, int] = field(default_factory=dict)


@dataclass
class LightFile:
    """``free[node]`` lists first pfns of free units; ``vmemmap[node]`` counts free pages for struct pages."""

    pages: int
    unit: int
    group: int
    all_or_nothing: bool
    free: list[list[int]]
    vmemmap: list[int]
    order: list[list[int]]

    def __post_init__(self) -> None:
        self.shared = [False] * self.pages
        self.pfn: dict[int, int] = {}
        self.node: dict[int, int] = {}
        self.pins: dict[int, int] = {}
        self.transient: dict[int, int] = {}
        self.poisoned: set[int] = set()
        self.withheld: list[Withheld] = []
        self.group_node: dict[int, int] = {}

    # ------------------------------------------------------------------------------------------------ recounts

    def groups(self) -> set[int]:
        """Groups of pages that have struct pages: some page is present and shared, or left the file pinned."""
        found = {
            page // self.group for page in range(self.pages) if self.shared[page] and page // self.unit in self.pfn
        }
        return found | {page // self.group for unit in self.withheld for page in unit.pins}

    def extents(self) -> list[tuple[int, int, int]]:
        """Maximal extents (first page, pages, pfn) of private present pages."""
        out: list[list[int]] = []
        for page in range(self.pages):
            unit = page // self.unit
            if self.shared[page] or unit not in self.pfn:
                continue
            pfn = self.pfn[unit] + page % self.unit
            if out and out[-1][0] + out[-1][1] == page and out[-1][2] + out[-1][1] == pfn:
                out[-1][1] += 1
            else:
                out.append([page, 1, pfn])
        return [tuple(extent) for extent in out]

    def mappings(self) -> tuple[int, int]:
        """Huge mappings possible: (1 GiB, 2 MiB)."""
        by_1g = by_2m = 0
        for unit in self.pfn:
            pages = range(unit * self.unit, (unit + 1) * self.unit)
            if self.unit == 1 << 18 and not any(self.shared[page] for page in pages):
                by_1g += 1
            elif self.unit >= 512:
                by_2m += sum(
                    not any(self.shared[p] for p in range(b, b + 512)) for b in range(pages[0], pages[-1], 512)
                )
        return by_1g, by_2m

    def _settle(self) -> None:
        """Struct pages come and go with what needs them."""
        needed, cost = self.groups(), self.group // 64
        for group in sorted(set(self.group_node) - needed):
            self.vmemmap[self.group_node.pop(group)] += cost
        for group in sorted(needed - set(self.group_node)):
            pages = range(group * self.group, min(self.pages, (group + 1) * self.group))
            home = next(self.node[p // self.unit] for p in pages if self.shared[p] and p // self.unit in self.pfn)
            node = next(node for node in self.order[home] if self.vmemmap[node] >= cost)
            self.vmemmap[node] -= cost
            self.group_node[group] = node

    def _room(self, new: set[int]) -> bool:
        cost = self.group // 64
        return len(new - self.groups()) <= sum(free // cost for free in self.vmemmap)

    # ---------------------------------------------------------------------------------------------- operations

    def convert(self, offset: int, length: int, to_shared: bool) -> tuple[int, int]:
        if offset < 0 or length <= 0 or offset % 4096 or length % 4096 or offset + length > self.pages * 4096:
            return errno.EINVAL, -1
        first, end = offset // 4096, (offset + length) // 4096
        whole = self.all_or_nothing or self.unit == 1
        block = self.pages if whole else self.unit
        while first < end:
            stop = min(end, (first // block + 1) * block)
            pages = [page for page in range(first, stop) if self.shared[page] != to_shared]
            if pages and not to_shared:
                held = [p for p in range(first, stop) if self.shared[p] and self.held(p)]
                if held:
                    return errno.EAGAIN, held[0] * 4096
            elif pages and not self._room({p // self.group for p in range(first, stop) if p // self.unit in self.pfn}):
                return errno.ENOMEM, -1 if whole else first * 4096
            for page in pages:
                self.shared[page] = to_shared
            self._settle()
            first = stop
        return 0, -1

    def _populate(self, page: int, node: int) -> int:
        unit = page // self.unit
        if unit in self.pfn:
            return 0
        if not 0 <= node < len(self.free):
            return errno.EINVAL
        pages = range(unit * self.unit, min(self.pages, (unit + 1) * self.unit))
        if not self._room({p // self.group for p in pages if self.shared[p]}) or not self.free[node]:
            return errno.ENOMEM
        self.pfn[unit], self.node[unit] = self.free[node].pop(0), node
        self._settle()
        return 0

    def host_page(self, page: int, node: int) -> int:
        if page >= self.pages or not self.shared[page]:
            return SIGBUS
        return self._populate(page, node) or (SIGBUS if page in self.poisoned else 0)

    def host_fault(self, offset: int, length: int, node: int) -> tuple[int, int]:
        if offset < 0 or length <= 0:
            return errno.EINVAL, -1
        for page in range(offset // 4096, -(-(offset + length) // 4096)):
            error = self.host_page(page, node)
            if error:
                return error, page * 4096
        return 0, -1

    def guest_fault(self, offset: int, length: int, private: bool, node: int) -> tuple[int, int]:
        if offset < 0 or length <= 0:
            return errno.EINVAL, -1
        for page in range(offset // 4096, -(-(offset + length) // 4096)):
            if page >= self.pages or self.shared[page] == private:
                return errno.EFAULT, page * 4096
            error = self._populate(page, node) or (EHWPOISON if page in self.poisoned else 0)
            if error:
                return error, page * 4096
        return 0, -1

    def held(self, page: int) -> bool:
        return bool(page in self.pins or page in self.transient or page in self.poisoned)

    def pin(self, offset: int, length: int, long_term: bool, node: int) -> tuple[int, int]:
        if offset < 0 or length <= 0:
            return errno.EINVAL, -1
        pages = range(offset // 4096, -(-(offset + length) // 4096))
        for page in pages:
            if long_term:
                error = self.host_page(page, node)
            else:
                there = page < self.pages and self.shared[page] and page // self.unit in self.pfn
                error = 0 if there else errno.ENOENT
            if error:
                return errno.EFAULT if error == SIGBUS else error, page * 4096
        table = self.pins if long_term else self.transient
        for page in pages:
            table[page] = table.get(page, 0) + 1
        return 0, -1

    def unpin(self, offset: int, length: int, long_term: bool) -> tuple[int, int]:
        pages = range(offset // 4096, -(-(offset + length) // 4096))
        if offset < 0 or length <= 0 or pages.stop > self.pages:
            return errno.EINVAL, -1
        for page in pages:
            left = long_term and any(page in unit.pins for unit in self.withheld)
            if page not in (self.pins if long_term else self.transient) and not left:
                return errno.EINVAL, page * 4096
        for page in pages:
            unit = next((unit for unit in self.withheld if page in unit.pins), None) if long_term else None
            table = unit.pins if unit is not None else self.pins if long_term else self.transient
            table[page] -= 1
            if table[page] == 0:
                del table[page]
            if unit is not None and not unit.pins:
                self.withheld.remove(unit)
                if not unit.poisoned:
                    self._free(unit.node, unit.pfn)
        self._settle()
        return 0, -1

    def poison(self, offset: int) -> tuple[int, int]:
        page = offset // 4096
        if offset < 0 or page >= self.pages or page // self.unit not in self.pfn:
            return errno.ENOENT, -1
        self.poisoned.add(page)
        return 0, -1

    def punch(self, offset: int, length: int) -> tuple[int, int]:
        if offset < 0 or length <= 0 or offset % 4096 or length % 4096:
            return errno.EINVAL, -1
        if not self.all_or_nothing and (offset % (self.unit * 4096) or length % (self.unit * 4096)):
            return errno.EINVAL, -1
        first, end = offset // 4096, min(self.pages, (offset + length) // 4096)
        for unit in range(first // self.unit, -(-end // self.unit)):
            low, high = unit * self.unit, min(self.pages, (unit + 1) * self.unit)
            if unit not in self.pfn or low < first or high > end:
                continue
            held = [p for p in range(low, high) if self.shared[p] and self.held(p)]
            if held and self.unit > 1:
                return errno.EAGAIN, held[0] * 4096
            self.drop(unit)
        return 0, -1

    def drop(self, unit: int) -> None:
        """A unit leaves the file."""
        pages = range(unit * self.unit, min(self.pages, (unit + 1) * self.unit))
        poisoned = any(page in self.poisoned for page in pages)
        self.poisoned -= set(pages)
        pfn, node = self.pfn.pop(unit), self.node.pop(unit)
        pins = {page: self.pins.pop(page) for page in pages if page in self.pins}
        self.transient = {page: count for page, count in self.transient.items() if page not in pages}
        if pins:
            self.withheld.append(Withheld(pfn, node, poisoned, pins))
        elif not poisoned:
            self._free(node, pfn)
        self._settle()

    def release(self) -> None:
        """The file is closed for the last time."""
        for unit in sorted(self.pfn):
            self.drop(unit)

    def _free(self, node: int, pfn: int) -> None:
        self.free[node] = sorted([*self.free[node], pfn])

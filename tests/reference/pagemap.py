"""Plain dictionaries in place of the offset -> pfn structures: page by page, nothing clever."""

from __future__ import annotations


class DictMap:
    """One dictionary entry per page."""

    def __init__(self) -> None:
        self.pfn: dict[int, int] = {}

    def insert(self, start: int, pages: int, pfn: int) -> None:
        for k in range(pages):
            self.pfn[start + k] = pfn + k

    def erase(self, start: int, pages: int) -> None:
        for k in range(pages):
            self.pfn.pop(start + k, None)

    def lookup(self, index: int) -> int:
        return self.pfn.get(index, -1)

    def extents(self) -> list[tuple[int, int, int]]:
        """Maximal contiguous extents (start, pages, pfn)."""
        result: list[tuple[int, int, int]] = []
        for index in sorted(self.pfn):
            if result:
                start, pages, pfn = result[-1]
                if start + pages == index and pfn + pages == self.pfn[index]:
                    result[-1] = (start, pages + 1, pfn)
                    continue
            result.append((index, 1, self.pfn[index]))
        return result


def xarray_nodes(entries: list[tuple[int, int]]) -> int:
    """Nodes of an XArray holding ``entries`` (start, order), counted as the set of distinct (level, index prefix)."""
    if not entries:
        return 0
    highest = 0
    for start, order in entries:
        last = start + (1 << order) - 1
        if order > 0 and start == 0:
            last += 1
        highest = max(highest, last)
    if highest == 0:
        return 0
    top = 0
    while highest >> top >= 64:
        top += 6
    nodes = set()
    for start, order in entries:
        for shift in range(order // 6 * 6, top + 1, 6):
            nodes.add((shift, start >> (shift + 6)))
    return len(nodes)

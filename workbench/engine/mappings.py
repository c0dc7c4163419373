"""Mappings of a file into the tasks' address space: VMAs, their policies, and the page tables that STRICT looks at.

Linux: ``mm/mempolicy.c`` (``mbind_range``, ``vma_replace_policy``, ``queue_pages_range``), ``mm/vma.c``
(``vma_modify_policy``). A mapping covers the whole file and has holes on both sides, so its VMAs merge with nothing else.
Offsets are 4 KiB pages of the file, which are also pages of the mapping.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.engine.runs import Runs
from workbench.intervals import Int64s
from workbench.kernels.runs import Runs as Table
from workbench.policy import Mempolicy, mpol_equal


@dataclass
class Vma:
    """``struct vm_area_struct``: pages ``[start, end)`` with one ``vm_policy``."""

    start: int
    end: int
    policy: Mempolicy | None = None


_FAR = 1 << 62
_BLOCKS = 8  # free ones of a table that a kernel adds to


@dataclass(eq=False)
class Mapping:
    """One mapping of a whole file, equal to itself only."""

    pages: int
    vmas: list[Vma] = field(default_factory=list)
    leaf: int = 0
    """Order of the largest page that its page tables map at once: those of hugetlb files (hugetlb_fault)."""
    _page_tables: Runs = field(default_factory=Runs)
    _ends: list[int] = field(default_factory=list)
    """Of each VMA, to look it up."""

    def __post_init__(self) -> None:
        if not self.vmas:
            self.vmas = [Vma(0, self.pages)]
        self._ends = [vma.end for vma in self.vmas]

    def vma_at(self, page: int) -> Vma | None:
        """The VMA that holds a page, or None."""
        position = bisect.bisect_right(self._ends, page)
        return self.vmas[position] if position < len(self.vmas) and self.vmas[position].start <= page else None

    def restore(self, vmas: list[Vma]) -> None:
        """Take these VMAs, of the whole mapping, for those that there are."""
        self.vmas, self._ends = vmas, [vma.end for vma in vmas]

    def map(self, start: int, end: int) -> None:
        """Enter pages into the page tables."""
        self._page_tables.join(start, min(end, self.pages))

    def room(self) -> Table:
        """The table of what is mapped, for a kernel that adds to it."""
        return self._page_tables.room(_BLOCKS)

    def zap(self, start: int, end: int) -> None:
        """Remove pages from the page tables."""
        self._page_tables.erase(start, end)

    @property
    def empty(self) -> bool:
        """Whether the page tables map nothing."""
        return not len(self._page_tables)

    def maps(self, page: int) -> bool:
        """Whether a page has an entry in the page tables."""
        return self._page_tables.holds(page, page + 1)

    def mapped(self, start: int = 0, end: int = _FAR) -> Int64s:
        """Pages of ``[start, end)`` that have an entry in the page tables, as intervals int64 (n, 2)."""
        runs = self._page_tables.cut(start, end)[:, :2]
        runs[:, 1] += runs[:, 0]
        return runs

    def unmapped(self, start: int, end: int) -> Int64s:
        """Pages of ``[start, end)`` that have none, likewise."""
        return self._page_tables.gaps(start, end)

    def set_policy(
        self, start: int, end: int, policy: Mempolicy | None, set_shared: Callable[[int, int, Mempolicy | None], None]
    ) -> None:
        """mbind_range over every VMA of ``[start, end)``; ``set_shared`` is the VMA operation ``set_policy``.

        Three consequences that surprise people, all seen on a real kernel: a VMA whose policy is already equal is
        skipped, whatever another mapping has stored meanwhile; merging with an equal neighbour stores the policy for the
        neighbour's pages too; DEFAULT through a fresh mapping changes nothing.
        """
        position = bisect.bisect_right(self._ends, start)
        while position < len(self.vmas) and self.vmas[position].start < end:
            vma = self.vmas[position]
            if mpol_equal(vma.policy, policy):
                position += 1
                continue
            position = self._modify(position, max(start, vma.start), min(end, vma.end), policy)
            changed = self.vmas[position]
            changed.policy = policy
            set_shared(changed.start, changed.end, policy)
            position += 1

    def _modify(self, position: int, start: int, end: int, policy: Mempolicy | None) -> int:
        """vma_modify_policy: merge ``[start, end)`` of one VMA with equal neighbours or split it off; its new index."""
        vma = self.vmas[position]
        previous = self.vmas[position - 1] if position else None
        following = self.vmas[position + 1] if position + 1 < len(self.vmas) else None
        with_previous = (
            start == vma.start
            and previous is not None
            and previous.end == start
            and mpol_equal(previous.policy, policy)
        )
        with_following = (
            end == vma.end and following is not None and following.start == end and mpol_equal(following.policy, policy)
        )
        parts: list[Vma] = []
        if vma.start < start:
            parts.append(Vma(vma.start, start, vma.policy))
        low, high, first, last = start, end, position, position + 1
        if with_previous and previous is not None:
            low, first = previous.start, position - 1
        if with_following and following is not None:
            high, last = following.end, position + 2
        parts.append(Vma(low, high, policy))
        index = first + len(parts) - 1
        if vma.end > end:
            parts.append(Vma(end, vma.end, vma.policy))
        self.vmas[first:last] = parts
        self._ends[first:last] = [part.end for part in parts]
        return index

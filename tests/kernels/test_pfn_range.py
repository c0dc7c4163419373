"""The PFN range allocator against a set of free pages, and what must hold whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference.pfn_range import buddy_blocks, buddy_fit, fit, free_runs
from workbench.kernels import pfn_range

PAGES = 512
ORDERS = 10
HOLE = (200, 230)
"""Pages of the node that the allocator was not given."""


class Allocator:
    """The three variants behind one interface."""

    def __init__(self, kind: int, capacity: int = 600) -> None:
        self.kind = kind
        self.start = np.zeros((1, capacity), np.int64)
        self.end = np.zeros((1, capacity), np.int64)
        self.count = np.zeros(1, np.int64)
        self.blocks = np.zeros((1, ORDERS, capacity), np.int64)
        self.blocks_count = np.zeros((1, ORDERS), np.int64)

    def alloc(self, pages: int, align: int) -> int:
        if self.kind == pfn_range.BUDDY:
            return int(pfn_range.buddy_alloc(self.blocks, self.blocks_count, 0, pages, align))
        return int(pfn_range.alloc(self.start, self.end, self.count, 0, self.kind, pages, align))

    def free(self, pfn: int, pages: int) -> int:
        if self.kind == pfn_range.BUDDY:
            return int(pfn_range.buddy_free(self.blocks, self.blocks_count, 0, pfn, pages))
        return int(pfn_range.free(self.start, self.end, self.count, 0, pfn, pages))

    def take(self, pages: int, unit: int) -> list[tuple[int, int]]:
        out = np.zeros((64, 2), np.int64)
        if self.kind == pfn_range.BUDDY:
            rows = pfn_range.buddy_take(self.blocks, self.blocks_count, 0, pages, unit, out)
        else:
            rows = pfn_range.take(self.start, self.end, self.count, 0, self.kind, pages, unit, out)
        return [(int(a), int(b)) for a, b in out[:rows]]


class AllocatorMachine(RuleBasedStateMachine):
    """Allocate and free at random; every answer is the one found by looking at every page."""

    kind = pfn_range.FIRST_FIT

    @initialize()
    def start(self) -> None:
        self.allocator = Allocator(self.kind)
        self.free_set: set[int] = set()
        self.taken: list[tuple[int, int]] = []
        for first, end in ((0, HOLE[0]), (HOLE[1], PAGES)):
            assert self.allocator.free(first, end - first) == pfn_range.OK
            self.free_set |= set(range(first, end))

    @rule(pages=st.one_of(st.sampled_from([1, 8, 64]), st.integers(1, 100)), align=st.sampled_from([1, 8, 64]))
    def alloc(self, pages: int, align: int) -> None:
        if self.kind == pfn_range.BUDDY:
            expected = buddy_fit(self.free_set, ORDERS, pages, align)
        else:
            expected = fit(self.free_set, self.kind == pfn_range.BEST_FIT, pages, align)
        pfn = self.allocator.alloc(pages, align)
        assert pfn == expected
        if pfn >= 0:
            assert pfn % align == 0
            self.free_set -= set(range(pfn, pfn + pages))
            self.taken.append((pfn, pages))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        pfn, pages = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        part = data.draw(st.integers(1, pages))
        assert self.allocator.free(pfn, part) == pfn_range.OK
        self.free_set |= set(range(pfn, pfn + part))
        if part < pages:
            self.taken.append((pfn + part, pages - part))

    @precondition(lambda self: self.free_set)
    @rule(data=st.data(), pages=st.integers(1, 20))
    def double_free_is_refused(self, data: st.DataObject, pages: int) -> None:
        first = data.draw(st.sampled_from(sorted(self.free_set)))
        assert self.allocator.free(first - pages + 1, pages) == pfn_range.NOT_ALLOCATED

    @rule(pages=st.integers(1, 300), unit=st.sampled_from([1, 8]))
    def take(self, pages: int, unit: int) -> None:
        whole = sum(max(0, (end - -(-first // unit) * unit) // unit) for first, end in free_runs(self.free_set))
        got = self.allocator.take(pages, unit)
        assert sum(pages for _, pages in got) == min(pages // unit, whole) * unit
        for pfn, pages in got:
            assert pfn % unit == 0
            assert set(range(pfn, pfn + pages)) <= self.free_set
            self.free_set -= set(range(pfn, pfn + pages))
            self.taken.append((pfn, pages))

    @invariant()
    def state_is_the_free_set(self) -> None:
        if self.kind == pfn_range.BUDDY:
            for order, expected in enumerate(buddy_blocks(self.free_set, ORDERS)):
                count = self.allocator.blocks_count[0, order]
                assert list(self.allocator.blocks[0, order, :count]) == sorted(expected)
            assert pfn_range.buddy_usable_pages(self.allocator.blocks_count, 0, 1) == len(self.free_set)
            return
        a = self.allocator
        runs = [(int(s), int(e)) for s, e in zip(a.start[0], a.end[0], strict=True)][: a.count[0]]
        assert runs == free_runs(self.free_set)
        for unit in (1, 8, 64):
            usable = sum(max(0, end // unit - -(-first // unit)) * unit for first, end in runs)
            assert pfn_range.usable_pages(a.start, a.end, a.count, 0, unit) == usable
        assert pfn_range.free_pages(a.start, a.end, a.count, 0) == len(self.free_set)
        assert pfn_range.largest(a.start, a.end, a.count, 0) == max((e - s for s, e in runs), default=0)


class BestFitMachine(AllocatorMachine):
    kind = pfn_range.BEST_FIT


class BuddyMachine(AllocatorMachine):
    kind = pfn_range.BUDDY


TestFirstFit = AllocatorMachine.TestCase
TestBestFit = BestFitMachine.TestCase
TestBuddy = BuddyMachine.TestCase
for _case in (TestFirstFit, TestBestFit, TestBuddy):
    _case.settings = settings(max_examples=20, stateful_step_count=25)
del _case  # or it is collected again


@pytest.mark.parametrize("kind", [pfn_range.FIRST_FIT, pfn_range.BEST_FIT, pfn_range.BUDDY])
@pytest.mark.parametrize("order", [0, 9, 18])
def test_page_sizes_are_aligned_and_everything_comes_back(kind: int, order: int) -> None:
    allocator = Allocator(kind)
    allocator.blocks = np.zeros((1, 23, 600), np.int64)
    allocator.blocks_count = np.zeros((1, 23), np.int64)
    assert allocator.free(1 << 18, 4 << 18) == pfn_range.OK
    assert allocator.alloc(3, 1) >= 0
    got = [allocator.alloc(1 << order, 1 << order) for _ in range(3)]
    assert all(pfn % (1 << order) == 0 for pfn in got)
    assert len(set(got)) == 3
    assert allocator.alloc(4 << 18, 1 << 18) == pfn_range.NO_MEMORY


def test_a_full_table_says_so_and_changes_nothing() -> None:
    allocator = Allocator(pfn_range.FIRST_FIT, capacity=2)
    assert allocator.free(0, 4) == pfn_range.OK
    assert allocator.free(8, 4) == pfn_range.OK
    assert allocator.free(16, 4) == pfn_range.NEEDS_ROOM
    assert allocator.count[0] == 2
    allocator.free(4, 4)
    assert allocator.free(20, 4) == pfn_range.OK
    assert allocator.alloc(1, 8) == 0

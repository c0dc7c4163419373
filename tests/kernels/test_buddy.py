"""The buddy allocator against a slow reference in plain Python, whole state compared, and its invariants."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference.buddy import Zone
from reference.scale import AS_PEOPLE_RUN_THEM, examples
from workbench.kernels import buddy as kernel
from workbench.kernels import code_cache
from workbench.kernels import compile as compile_module
from workbench.kernels.buddy import MAX_BLOCK_PAGES, MOVABLE, NO_PAGE, RECLAIMABLE, UNMOVABLE, Buddy, new_buddy

TYPES = [UNMOVABLE, MOVABLE, RECLAIMABLE]
ORDERS = [0, 0, 0, 0, 1, 2, 3, 5, 8, 9, 10]


def lists_of(buddy: Buddy, zone: int) -> dict[tuple[int, int], list[int]]:
    """All free lists, read by following the links."""
    lists = {}
    for order in range(11):
        for kind in TYPES:
            out = np.full(len(buddy.block_type) * 512, -1)
            count = kernel.list_pages(buddy, zone, order, kind, out)
            lists[order, kind] = out[:count].tolist()
    return lists


def check_same(buddy: Buddy, zones: list[Zone]) -> None:
    counts = np.zeros((11, 3), np.int64)
    for number, zone in enumerate(zones):
        assert kernel.recount(buddy, number, counts) == 0
        assert lists_of(buddy, number) == zone.lists
        assert buddy.free_pages[number] == zone.free_pages
        assert buddy.partial_claims[number] == zone.partial_claims
        for block in range(zone.start // 512, -(-zone.end // 512)):
            if zone.start <= block * 512:  # a pageblock that two zones share has one type in the kernel
                assert buddy.block_type[block] == zone.type_of(block * 512)


def contents(buddy: Buddy) -> list[Any]:
    """What two equal allocators share: everything but the links of pages that are not free."""
    lists = [lists_of(buddy, zone) for zone in range(len(buddy.zone_start))]
    return [lists, *(array.tolist() for array in buddy[1:])]


def boot(bounds: list[tuple[int, int]], holes: list[tuple[int, int]] = ()) -> tuple[Buddy, list[Zone]]:  # type: ignore[assignment]
    """Zones with all memory free except ``holes``."""
    buddy = new_buddy(np.array([a for a, _ in bounds]), np.array([b for _, b in bounds]))
    zones = [Zone(a, b) for a, b in bounds]
    for number, zone in enumerate(zones):
        at = zone.start
        for start, end in [*sorted(h for h in holes if zone.start <= h[0] < zone.end), (zone.end, zone.end)]:
            kernel.release_range(buddy, number, at, start)
            zone.release(at, start)
            at = end
    return buddy, zones


@pytest.mark.parametrize(
    ("bounds", "holes"),
    [
        ([(0, 4096)], []),
        ([(1, 160), (1024, 3000)], [(1100, 1101), (2048, 2100)]),
        ([(512, 1536), (1536, 2048)], []),
        ([(0, 1024), (1024, 1024), (1024, 5000)], [(0, 1)]),
    ],
)
def test_boot_frees_largest_blocks_at_the_tail(bounds: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    buddy, zones = boot(bounds, holes)
    check_same(buddy, zones)
    assert sum(zone.free_pages for zone in zones) == sum(b - a for a, b in bounds) - sum(b - a for a, b in holes)


def test_consecutive_pages_of_a_fresh_zone_ascend() -> None:
    buddy, _ = boot([(0, 4096)])
    out = np.zeros(4096, np.int64)
    assert kernel.allocate_blocks(buddy, 0, 0, UNMOVABLE, False, 5000, out) == 4096
    assert out.tolist() == list(range(4096))
    assert set(buddy.block_type.tolist()) == {UNMOVABLE}


@pytest.mark.parametrize("seed", range(examples(60, without_jit=6)))
def test_random_load_agrees_with_the_reference(seed: int) -> None:
    """Allocate and free at random, in zones that may meet inside a block, down to exhaustion, and compare all."""
    rng = random.Random(seed)
    bounds = rng.choice([[(0, 3072)], [(100, 1500), (1500, 3000)], [(512, 1536), (2048, 3584)]])
    holes = [(a, a + rng.randint(1, 40)) for a in rng.sample(range(200, 1400, 50), rng.randint(0, 4))]
    buddy, zones = boot(bounds, holes)
    used: list[tuple[int, int, int]] = []
    kinds = rng.choice([TYPES, [UNMOVABLE], [UNMOVABLE, MOVABLE], [MOVABLE, MOVABLE, MOVABLE, RECLAIMABLE]])
    for step in range(examples(1500, without_jit=400)):
        draining = (step // 200) % 2 == 0
        if used and rng.random() < (0.3 if draining else 0.7):
            number, page, order = used.pop(rng.randrange(len(used)))
            if page in zones[number].lru:
                kernel.add_lru(buddy, page, 1 << order, -1)
            if order == 10 and step % 2:
                kernel.free_largest(buddy, number, page, page + MAX_BLOCK_PAGES)
            else:
                kernel.free_block(buddy, number, page, order, False)
            zones[number].free(page, order)
        else:
            number, order, kind = rng.randrange(len(zones)), rng.choice(ORDERS), rng.choice(kinds)
            nofragment = rng.random() < 0.2
            page = kernel.allocate_block(buddy, number, order, kind, nofragment)
            expected = zones[number].allocate(order, kind, nofragment)
            assert page == (NO_PAGE if expected is None else expected)
            if page >= 0:
                used.append((number, page, order))
                if kind == MOVABLE and rng.random() < 0.5:
                    kernel.add_lru(buddy, page, 1 << order, 1)
                    zones[number].lru |= set(range(page, page + (1 << order)))
        if step % 100 == 0:
            check_same(buddy, zones)
    check_same(buddy, zones)


def fragmented(rng: random.Random, end: int = 4096) -> Buddy:
    """A zone after a random life, with mixed pageblock types."""
    buddy, _ = boot([(0, end)])
    used = []
    for _ in range(rng.randint(0, 400)):
        order = rng.choice(ORDERS)
        page = kernel.allocate_block(buddy, 0, order, rng.choice(TYPES), False)
        if page >= 0:
            used.append((page, order))
    rng.shuffle(used)
    for page, order in used[: rng.randint(0, len(used))]:
        kernel.free_block(buddy, 0, page, order, False)
    return buddy


@pytest.mark.parametrize("group", range(20))
def test_bulk_drain_gives_the_pages_of_one_by_one(group: int) -> None:
    for seed in range(examples(100, without_jit=1)):
        rng = random.Random(f"{group} {seed}")
        one, order, kind = fragmented(rng), rng.choice([0, 0, 0, 1, 3, 9]), rng.choice(TYPES)
        bulk = Buddy(*(array.copy() for array in one))
        nofragment, count = rng.random() < 0.2, rng.randint(0, 5000)
        out = np.zeros(count, np.int64)
        got = kernel.allocate_blocks(one, 0, order, kind, nofragment, count, out)

        progress, pages = np.zeros(2, np.int64), []
        room, full = rng.choice([3, 50, 5000]), 1
        while full:
            extents = np.zeros((room, 2), np.int64)
            progress[0] = 0
            full = kernel.allocate_extents(bulk, 0, order, kind, nofragment, count, extents, progress)
            for first, length in extents[: progress[0]].tolist():
                pages += range(first, first + length, 1 << order)
        assert progress[1] == got
        assert pages == out[:got].tolist()
        assert contents(bulk) == contents(one)


@settings(max_examples=examples(100, without_jit=10))
@given(st.data())
def test_freeing_everything_restores_the_blocks_of_boot(data: st.DataObject) -> None:
    """Whatever was taken and in which sequence it comes back: full coalescing, each page on exactly one list."""
    start = data.draw(st.integers(0, 600))
    end = data.draw(st.integers(start + 1, 2600))
    buddy, zones = boot([(start, end)])
    before = {key: sorted(pages) for key, pages in zones[0].lists.items()}
    used = []
    for order in data.draw(st.lists(st.sampled_from(ORDERS), max_size=80)):
        page = kernel.allocate_block(buddy, 0, order, MOVABLE, False)
        if page >= 0:
            used.append((page, order))
    owned = [p for page, order in used for p in range(page, page + (1 << order))]
    assert len(owned) == len(set(owned))
    assert len(owned) + buddy.free_pages[0] == end - start
    assert all(start <= page < end for page in owned)
    for page, order in data.draw(st.permutations(used)):
        kernel.free_block(buddy, 0, page, order, False)
    assert {key: sorted(pages) for key, pages in lists_of(buddy, 0).items()} == before


def test_draining_and_freeing_in_reverse_restores_the_lists_of_boot() -> None:
    buddy, _ = boot([(0, 4 * MAX_BLOCK_PAGES)])
    before = contents(buddy)
    out = np.zeros(4 * MAX_BLOCK_PAGES, np.int64)
    kernel.allocate_blocks(buddy, 0, 0, MOVABLE, False, len(out), out)
    kernel.free_blocks(buddy, 0, out[::-1].copy(), 0)
    assert contents(buddy) == before


def test_churn_is_frees_and_allocations_by_slot() -> None:
    rng = np.random.default_rng(1)
    slots = rng.integers(0, 300, 2000).astype(np.int32)
    orders = rng.choice([-1, 0, 0, 3, 9, 10], 2000).astype(np.int8)
    buddy, zones = boot([(0, 8192)])
    held, held_order = np.full(300, NO_PAGE), np.zeros(300, np.int8)
    refused = kernel.churn(buddy, 0, UNMOVABLE, slots, orders, held, held_order)
    expected: dict[int, tuple[int, int]] = {}
    failures = 0
    for slot, order in zip(slots.tolist(), orders.tolist(), strict=True):
        if slot in expected:
            zones[0].free(*expected.pop(slot))
        if order >= 0:
            page = zones[0].allocate(order, UNMOVABLE)
            failures += page is None
            if page is not None:
                expected[slot] = (page, order)
    assert refused == failures > 0
    assert {slot: (page, held_order[slot]) for slot, page in enumerate(held.tolist()) if page >= 0} == expected
    check_same(buddy, zones)


def test_recount_notices_a_wrong_counter_and_a_wrong_link() -> None:
    counts = np.zeros((11, 3), np.int64)
    for damage in ("free_pages", "free_blocks", "state", "block_type"):
        buddy, _ = boot([(0, 4096)])
        assert kernel.recount(buddy, 0, counts) == 0
        assert counts[10, MOVABLE] == counts.sum() == 4
        # the entry of the first block is behind the 4096 pages
        getattr(buddy, damage).ravel()[4096 if damage == "state" else 0] += 1
        assert kernel.recount(buddy, 0, counts) == -1, damage


@pytest.mark.skipif(not AS_PEOPLE_RUN_THEM, reason="kernels are not compiled as people run them")
def test_hot_kernels_count_no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "cache_directory", lambda: None)  # code from the cache cannot be looked at
    allocate, free, drain = (
        compile_module.kernel(function.py_func)
        for function in (kernel.allocate_blocks, kernel.free_blocks, kernel.allocate_extents)
    )
    buddy, _ = boot([(0, 4096)])
    out = np.zeros(10, np.int64)
    allocate(buddy, 0, 0, UNMOVABLE, False, 10, out)
    free(buddy, 0, out, 0)
    drain(buddy, 0, 0, UNMOVABLE, False, 10, np.zeros((10, 2), np.int64), np.zeros(2, np.int64))
    for function in (allocate, free, drain):
        assert compile_module.reference_count_calls(function) == 0


class BuddyMachine(RuleBasedStateMachine):
    """Any sequence of operations: kernel and reference stay equal, and no page is lost or owned twice."""

    @initialize(end=st.integers(1024, 2500))
    def start(self, end: int) -> None:
        self.end = end
        self.buddy, self.zones = boot([(0, end)])
        self.used: list[tuple[int, int]] = []

    @rule(order=st.sampled_from(ORDERS), kind=st.sampled_from(TYPES), nofragment=st.booleans())
    def allocate(self, order: int, kind: int, nofragment: bool) -> None:
        page = kernel.allocate_block(self.buddy, 0, order, kind, nofragment)
        expected = self.zones[0].allocate(order, kind, nofragment)
        assert page == (NO_PAGE if expected is None else expected)
        if page >= 0:
            self.used.append((page, order))

    @rule(count=st.integers(1, 700), kind=st.sampled_from(TYPES))
    def drain(self, count: int, kind: int) -> None:
        extents, progress = np.zeros((count, 2), np.int64), np.zeros(2, np.int64)
        assert kernel.allocate_extents(self.buddy, 0, 0, kind, False, count, extents, progress) == 0
        pages = [p for first, length in extents[: progress[0]].tolist() for p in range(first, first + length)]
        expected = [self.zones[0].allocate(0, kind) for _ in range(count)]
        assert pages == [page for page in expected if page is not None]
        self.used += [(page, 0) for page in pages]

    @precondition(lambda self: self.used)
    @rule(data=st.data(), many=st.booleans())
    def free(self, data: st.DataObject, many: bool) -> None:
        for _ in range(min(len(self.used), 200 if many else 1)):
            index = data.draw(st.integers(0, len(self.used) - 1)) if not many else 0
            page, order = self.used.pop(index)
            kernel.free_block(self.buddy, 0, page, order, False)
            self.zones[0].free(page, order)

    @invariant()
    def equal_and_complete(self) -> None:
        if not hasattr(self, "used"):
            return
        check_same(self.buddy, self.zones)
        owned = [p for page, order in self.used for p in range(page, page + (1 << order))]
        free = [p for page, order in self.zones[0].free_order.items() for p in range(page, page + (1 << order))]
        assert sorted(owned + free) == list(range(self.end))


TestBuddyMachine = BuddyMachine.TestCase
TestBuddyMachine.settings = settings(max_examples=examples(40, without_jit=4), stateful_step_count=30)

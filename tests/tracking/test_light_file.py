"""A file without struct pages: what is asked of one page, of few and of many is the same; leaves of KVM that map it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench.engine.objects import Inode
from workbench.engine.users import Users
from workbench.tracking.light_file import LightFile
from workbench.units import PAGE_SIZE

PAGES = 200
SPAN = st.lists(st.integers(0, PAGES), min_size=2, max_size=2, unique=True).map(sorted)
CALL = st.tuples(
    st.sampled_from(["pin", "pin", "unpin", "punch_hole"]), st.integers(0, PAGES - 1), st.integers(1, 40),
    st.sampled_from(["long_term", "long_term", "transient"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(CALL, max_size=25))
def test_pins_are_the_same_one_by_one_and_among_all(calls: list[tuple[str, int, int, str]]) -> None:
    file = LightFile(PAGES * PAGE_SIZE, "4 KiB", shared=True)
    file.insert(np.arange(PAGES), np.zeros(PAGES, np.int64))
    for call, first, pages, kind in calls:
        span = first * PAGE_SIZE, min(pages, PAGES - first) * PAGE_SIZE
        file.punch_hole(*span) if call == "punch_hole" else getattr(file, call)(*span, kind)
    pages = np.arange(PAGES)
    for left_file in (False, True):
        rows = [file.references(np.array([page]), left_file).tolist()[0] for page in range(PAGES)]
        assert rows == file.references(pages, left_file).tolist()
    alone = [page for page in range(PAGES) if len(file.pinned(page, page + 1))]
    assert alone == file.pinned(0, PAGES).tolist() == file.pinned().tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SPAN, st.sampled_from(["shared", "private"])), max_size=5), SPAN)
def test_states_are_those_of_the_pages(conversions: list[tuple[list[int], str]], asked: list[int]) -> None:
    file = LightFile(PAGES * PAGE_SIZE, "4 KiB")
    for (first, end), to in conversions:
        file.convert(first * PAGE_SIZE, (end - first) * PAGE_SIZE, to)
    first, end = asked
    states = file.states(first, end)
    assert [page for low, high, _ in states for page in range(low, high)] == list(range(first, end))
    assert [shared for low, high, shared in states for _ in range(low, high)] == file.is_shared()[first:end].tolist()
    assert all(one[2] != other[2] for one, other in itertools.pairwise(states))
    for shared in (False, True):
        assert file.in_state(first, end, shared) == [(low, high) for low, high, here in states if here == shared]


GIGA, BLOCK = 1 << 18, 512
IN_TWO = st.integers(0, 2 * GIGA - 1) | st.integers(0, 1023).map(lambda block: block * BLOCK)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["2 MiB", "1 GiB"]), st.lists(IN_TWO, max_size=3), st.lists(IN_TWO, max_size=2),
    st.lists(st.lists(IN_TWO, min_size=2, max_size=2, unique=True).map(sorted), min_size=1, max_size=3),
)  # fmt: skip
@example("1 GiB", [], [GIGA + 300 * BLOCK], [[100 * BLOCK, GIGA + 200 * BLOCK]])
def test_leaves_are_as_large_as_what_is_private_and_whole(
    page_size: str, shared: list[int], poisoned: list[int], touched: list[list[int]]
) -> None:
    """arch/x86/kvm/mmu/mmu.c: kvm_mmu_max_mapping_level, 2 MiB by 2 MiB."""
    file = LightFile(2 * GIGA * PAGE_SIZE, page_size)
    inode = Inode("g", 2 * GIGA, "guest_memfd", order=file.order)
    units = (2 * GIGA) >> file.order
    file.insert(np.arange(units), np.zeros(units, np.int64))
    inode.map.add_run(0, units, 0)
    for page in shared:
        file.convert(page * PAGE_SIZE, PAGE_SIZE, "shared")
    for page in poisoned:
        file.hwpoison(page * PAGE_SIZE)
    users, bad = Users(inode, file, told=False), {*shared, *poisoned}
    expected = np.full(1024, -1)
    for low, high in touched:
        for first, end in file.in_state(low, high, False):
            users.guest_fault(first, end, True)
            for block in range(first // BLOCK, -(-end // BLOCK)):
                giga = block // 512
                if page_size == "1 GiB" and not any(page // GIGA == giga for page in bad):
                    expected[giga * 512 : (giga + 1) * 512] = 2
                else:
                    expected[block] = int(not any(page // BLOCK == block for page in bad))
    found = np.full(1024, -1)
    for first, count, _, level in users.kvm.runs().tolist():
        found[first // BLOCK : -(-(first + count) // BLOCK)] = level
    assert found.tolist() == expected.tolist()

"""Intervals against sets of pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.runs import PageSet
from workbench.intervals import (
    Int64s,
    equal_intervals,
    in_intervals,
    intervals_add,
    intervals_in,
    intervals_minus,
    no_intervals,
    set_intervals,
    true_intervals,
)

FLAGS = st.lists(st.booleans(), max_size=40)
SPAN = st.tuples(st.integers(0, 45), st.integers(0, 45))


def pages(intervals: Int64s) -> set[int]:
    return {page for low, high in intervals.tolist() for page in range(low, high)}


@given(FLAGS, st.integers(0, 100))
def test_true_intervals_are_the_pages_that_are_set_and_maximal(flags: list[bool], base: int) -> None:
    found = true_intervals(np.array(flags, bool), base)
    assert found.dtype == np.int64 and found.shape == (len(found), 2)
    assert pages(found) == {base + i for i, flag in enumerate(flags) if flag}
    assert (found[:, 0] < found[:, 1]).all() and (found[1:, 0] > found[:-1, 1]).all()


@given(st.lists(st.sampled_from([0, 1, 5, 1 << 63, (1 << 64) - 1, 0xF0F0F0F0F0F0F0F0]), max_size=6), st.integers(0, 63))
def test_set_intervals_are_the_true_intervals_of_the_bits(words: list[int], cut: int) -> None:
    end = max(0, 64 * len(words) - cut)
    bits = [bool(word >> bit & 1) for word in words for bit in range(64)]
    found = set_intervals(np.array(words, np.uint64), end)
    assert found.dtype == np.int64
    assert found.tolist() == true_intervals(np.array(bits[:end], bool)).tolist()


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 100))
def test_equal_intervals_cover_all_and_change_at_each_border(values: list[int], base: int) -> None:
    found = equal_intervals(np.array(values, np.int64), base).tolist()
    assert [page for low, high in found for page in range(low, high)] == [base + i for i in range(len(values))]
    for low, high in found:
        assert len(set(values[low - base : high - base])) == 1
        assert high - base == len(values) or values[high - base] != values[high - base - 1]


@given(FLAGS, SPAN)
def test_intervals_are_sets(flags: list[bool], span: tuple[int, int]) -> None:
    held, (start, end) = true_intervals(np.array(flags, bool)), span
    mine, asked = pages(held), set(range(start, end))
    assert pages(intervals_add(start, end, held)) == mine | asked
    if start <= end:
        assert pages(intervals_in(start, end, held)) == mine & asked
        assert pages(intervals_minus(start, end, held)) == asked - mine
    every = np.arange(50)
    assert in_intervals(every, held).tolist() == [page in mine for page in every.tolist()]


@given(FLAGS, st.lists(st.tuples(st.booleans(), SPAN), max_size=12))
def test_a_set_of_pages_is_one(flags: list[bool], changes: list[tuple[bool, tuple[int, int]]]) -> None:
    held = PageSet(true_intervals(np.array(flags, bool)))
    mine = pages(held.intervals())
    for add, (start, end) in changes:
        asked = set(range(start, end))
        assert pages(held.inside(start, end)) == mine & asked
        assert pages(held.outside(start, end)) == asked - mine
        assert held.holds(start, end) == (asked <= mine)
        mine = mine | asked if add else mine - asked
        before = held.pages
        assert (held.add if add else held.remove)(start, end) == abs(len(mine) - before)
        assert held.intervals().tolist() == true_intervals(np.isin(np.arange(50), list(mine))).tolist()
        assert held.pages == len(mine)


@pytest.mark.parametrize("function", [true_intervals, equal_intervals])
def test_nothing_has_no_intervals(function: object) -> None:
    assert function(np.empty(0, bool)).shape == no_intervals().shape == (0, 2)  # type: ignore[operator]

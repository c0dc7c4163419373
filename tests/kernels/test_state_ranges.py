"""Ranges of one state along conversions, against a list of pages."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.kernels import state_ranges


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(0, (1 << 200) - 1),
    st.lists(st.tuples(st.integers(0, 210), st.integers(0, 140), st.booleans()), min_size=1, max_size=12),
)
def test_ranges_are_those_of_a_list_of_pages(pages: int, state: int, conversions: list[tuple[int, int, bool]]) -> None:
    listed = [bool(state >> page & 1) for page in range(pages)]
    words = np.array([state >> 64 * word & (1 << 64) - 1 for word in range((pages + 63) // 64)], np.uint64)
    if pages % 64:
        words[-1] &= np.uint64((1 << pages % 64) - 1)
    first, end = (np.array([low for low, _, _ in conversions]), np.array([low + n for low, n, _ in conversions]))
    changes, wanted = np.empty(len(first), np.int64), []
    ranges = 1 + sum(one != two for one, two in itertools.pairwise(listed))
    for low, count, to_shared in conversions:
        listed[low : low + count] = [to_shared] * len(listed[low : low + count])
        now = 1 + sum(one != two for one, two in itertools.pairwise(listed))
        wanted.append(now - ranges)
        ranges = now
    state_ranges.follow(words, pages, first, end, np.array([to for _, _, to in conversions]), changes)
    assert changes.tolist() == wanted
    assert [int(words[page >> 6]) >> (page & 63) & 1 for page in range(pages)] == [int(bit) for bit in listed]

"""Nested walks, TLB reach and shares of runs against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import traffic as reference
from workbench.kernels import translation


@pytest.mark.parametrize("guest", range(2, 6))
@pytest.mark.parametrize("host", range(6))
def test_references_counted_by_walking(guest, host):
    total = translation.nested_walk_references(guest, host)
    assert total == reference.walk_references(guest, host)
    parts = translation.guest_table_references(guest) + translation.host_table_references(guest, host)
    assert total == parts


@pytest.mark.parametrize(("order", "levels"), [(0, 4), (9, 3), (18, 2), (3, -1), (27, 1), (36, -1)])
def test_levels_of_page_sizes(order, levels):
    assert translation.page_table_levels(order, 4) == levels


def test_reach():
    assert translation.tlb_reach(1536, 0) == 1536 * 4096
    assert translation.tlb_reach(16, 18) == 16 << 30


@given(st.integers(0, 5000), st.floats(0.0, 3.0))
def test_harmonic(count, exponent):
    expected = reference.harmonic(count, exponent)
    assert translation.harmonic(float(count), exponent) == pytest.approx(expected, rel=1e-11)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(-1, 3)), min_size=1, max_size=8),
    st.floats(0.0, 2.0),
    st.integers(0, 60),
)
def test_shares_page_by_page(runs, exponent, first):
    length = np.array([r[0] for r in runs], np.int64)
    node = np.array([r[1] for r in runs], np.int64)
    start = np.cumsum(length) - length
    share = np.zeros(4)
    reached = translation.shares_of_runs(start, length, node, float(first), exponent, share)
    mass, everything, page = [0.0] * 4, 0.0, 0
    for pages, where in runs:
        for _ in range(pages):
            if where >= 0:
                everything += (page + 1) ** -exponent
                mass[where] += (page + 1) ** -exponent if page >= first else 0.0
            page += 1
    total = sum(mass)
    assert reached == pytest.approx(total / everything if everything else 0.0, abs=1e-9)
    assert share == pytest.approx([m / total if total else 0.0 for m in mass], abs=1e-9)


def misses(mapped, entries=(1536.0, 1536.0, 16.0)):
    out = np.zeros(3)
    total = translation.mapped_miss_fractions(
        np.array(mapped, np.float64), np.array([0, 9, 18]), np.array(entries), np.array([0, 0, 1]), out
    )
    return total, out


def test_nothing_misses_within_reach():
    assert misses([1 << 20, 1 << 30, 4 << 30])[0] == 0.0


def test_splitting_one_gigabyte_pages_costs_misses():
    whole, _ = misses([0, 0, 16 << 30])
    split, per_size = misses([2 << 30, 0, 14 << 30])
    assert whole == 0.0
    assert per_size == pytest.approx([1 - 1536 * 4096 / (2 << 30), 0.0, 0.0])
    assert split == pytest.approx(per_size[0] / 8)


@given(st.floats(1e6, 1e12), st.floats(1e6, 1e12))
def test_larger_footprint_never_misses_less(small, large):
    small, large = sorted((small, large))
    assert translation.tlb_miss_fraction(small, 6e6) <= translation.tlb_miss_fraction(large, 6e6)


def test_leaf_tables_of_huge_pages_stay_cached():
    assert translation.leaf_memory_fraction(64 << 30, 0, 2 << 20) == pytest.approx(1 - 1 / 64)
    assert translation.leaf_memory_fraction(64 << 30, 18, 2 << 20) == 0.0

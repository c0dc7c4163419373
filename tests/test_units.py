"""Sizes as texts: read, shown, and exact both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.units import PAGE_ORDERS, PAGE_SHIFT, PAGE_SIZE, byte_unit, exact_bytes, format_bytes, parse_bytes


def test_page_sizes_have_the_size_of_their_name() -> None:
    assert PAGE_SIZE == 1 << PAGE_SHIFT == 4096
    for name, order in PAGE_ORDERS.items():
        assert parse_bytes(name) == PAGE_SIZE << order
    assert list(PAGE_ORDERS.values()) == sorted(PAGE_ORDERS.values())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 << 20, "1.5 GiB"), (1000 << 20, "1000 MiB"),
        ((1 << 30) - 1, "1024 MiB"), (1 << 50, "1 PiB"), (-2048, "-2 KiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(number: int, text: str) -> None:
    assert format_bytes(number) == text


def test_one_unit_for_an_axis() -> None:
    assert byte_unit(3 << 30) == (float(1 << 30), "GiB") and byte_unit(0) == (1.0, "B")


@given(st.integers(0, 1 << 60))
def test_exact_sizes_read_back(number: int) -> None:
    assert parse_bytes(exact_bytes(number)) == number

"""Sizes as texts: read, shown, and exact both ways."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.units import (
    PAGE_ORDERS,
    PAGE_SHIFT,
    PAGE_SIZE,
    byte_unit,
    check_processes,
    check_seconds,
    exact_bytes,
    format_bytes,
    parse_bytes,
)


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


@pytest.mark.parametrize(
    ("text", "number"), [("1.5 GiB", 3 << 29), ("1e3", 1000), ("4 kB", 4000), ("2 mebibyte", 2 << 20)]
)
def test_a_size_is_one_number_and_one_unit(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9 B", "9**999999999", "2^2^2^2^2^2 B", "((1)) B", "2 MiB * 3", "1 " + "B" * 100, "", "9e999 B", "1 B B"],
)
def test_expressions_are_no_sizes(text: str) -> None:
    """pint works expressions out, which may take for ever."""
    with pytest.raises(WorkbenchError, match="is not a size such as"):
        parse_bytes(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 0, 1e308, 31_622_401, 10**400])
def test_no_time_limits(value: float) -> None:
    """NaN never passes, and timers of the system overflow."""
    with pytest.raises(WorkbenchError, match=r"^x: .* seconds; a number above 0 and up to 31,622,400 is needed$"):
        check_seconds(value, "x")


def test_time_limits_and_processes() -> None:
    assert [check_seconds(value, "x") for value in (0.5, 1, 31_622_400)] == [0.5, 1, 31_622_400]
    assert [check_processes(value, "x", 0) for value in (0, 1, 1024)] == [0, 1, 1024]
    for value, least in ((0, 1), (-1, 0), (1025, 1), (1 << 64, 1)):
        with pytest.raises(WorkbenchError, match=rf"^x: {value} at once; {least} to 1,024 are allowed$"):
            check_processes(value, "x", least)

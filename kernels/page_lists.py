"""Ascending lists of pages, in the first entries of an array that is longer: those that are poisoned, of either kind of file."""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, natural_kernel


@natural_kernel
def first_from(pages: np.ndarray, count: Int, page: Int) -> Int:
    """Entry of the first of ``count`` pages that is ``page`` or beyond it."""
    low, high = np.int64(0), np.int64(count)
    while low < high:
        middle = (low + high) >> 1
        if pages[middle] < page:
            low = middle + 1
        else:
            high = middle
    return low


@natural_kernel
def put_in(pages: np.ndarray, count: Int, page: Int) -> None:
    """One more page than the ``count`` that are there, among which it is not; there is room for it."""
    at = first_from(pages, count, page)
    for entry in range(count, at, -1):
        pages[entry] = pages[entry - 1]
    pages[at] = page


@natural_kernel
def take_out(pages: np.ndarray, count: Int, first: Int, end: Int) -> Int:
    """Pages [first, end) are left out of ``count``; how many there were."""
    low, high = first_from(pages, count, first), first_from(pages, count, end)
    if low < high:
        for entry in range(high, count):
            pages[entry - high + low] = pages[entry]
    return high - low

"""How many ranges of one state the pages of a file form, along conversions: a bit a page, equal neighbours one range.

As posted, a file that converts in place keeps its pages' states in a maple tree, of which the ranges are the entries
(:mod:`workbench.engine.range_trees`).
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import ALL, ONE, ZERO, mask, popcount
from workbench.kernels.compile import Int, kernel

_TOP = np.uint64(63)


@kernel
def follow(
    words: np.ndarray, pages: Int, first: np.ndarray, end: np.ndarray, to_shared: np.ndarray, changes: np.ndarray
) -> None:
    """Set pages [first, end) of a file of ``pages`` to shared or private, int64 (n,), int64 (n,) and bool (n,), in this order.

    ``words`` uint64 (W,) has a bit for each shared page; ``changes`` int64 (n,) receives how many more ranges there are after it.
    """
    for row in range(first.shape[0]):
        low, high = first[row], min(end[row], pages)
        if low >= high:
            changes[row] = 0
            continue
        begin, stop = max(low, 1), min(high + 1, pages)
        before = _borders(words, begin, stop)
        for word in range(low >> 6, ((high - 1) >> 6) + 1):
            bits = mask(word, low, high)
            words[word] = words[word] | bits if to_shared[row] else words[word] & (bits ^ ALL)
        changes[row] = _borders(words, begin, stop) - before


@kernel
def _borders(words: np.ndarray, begin: Int, stop: Int) -> Int:
    """Pages of [begin, stop) whose state is not that of the page before; ``begin`` is not the first page."""
    count = np.int64(0)
    for word in range(begin >> 6, ((stop - 1) >> 6) + 1 if begin < stop else 0):
        before = words[word - 1] >> _TOP if word > 0 else ZERO
        differ = words[word] ^ ((words[word] << ONE) | before)
        count += popcount(differ & mask(word, begin, stop))
    return count

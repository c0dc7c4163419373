"""Bitmaps of one bit per 4 KiB page in 64-bit words: the private/shared state that the conversion kernels keep.

Linux keeps that state as ranges in a maple tree (``virt/kvm/guest_memfd.c``: proposals); a bitmap gives the same answers.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel
from workbench.kernels.compile import popcount as popcount

ZERO = np.uint64(0)
ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@inlined_kernel
def mask(word: Int, first: Int, end: Int) -> Int:
    """Bits of word number ``word`` that lie in pages [first, end)."""
    bits = ALL
    if first > word * 64:
        bits = bits & (ALL << np.uint64(first - word * 64))
    if end < word * 64 + 64:
        bits = bits & (ALL >> np.uint64(word * 64 + 64 - end))
    return bits


@kernel
def test_bit(words: np.ndarray, page: Int) -> bool:
    """Whether the bit of a page is set in ``words``, uint64 (W,)."""
    return (words[page >> 6] >> np.uint64(page & 63)) & ONE != ZERO

"""Bitmaps of one bit per 4 KiB page in 64-bit words: the private/shared state that the conversion kernels keep.

Linux keeps that state as ranges in a maple tree (``virt/kvm/guest_memfd.c``: proposals); a bitmap gives the same answers.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

ZERO = np.uint64(0)
ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _M7 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x7F)
_S2, _S4, _S8, _S16, _S32 = np.uint64(2), np.uint64(4), np.uint64(8), np.uint64(16), np.uint64(32)


@inlined_kernel
def popcount(x: Int) -> Int:
    """Bits set in a uint64 (adds only: a product would overflow when run as plain Python)."""
    x = x - ((x >> ONE) & _M1)
    x = (x & _M2) + ((x >> _S2) & _M2)
    x = (x + (x >> _S4)) & _M4
    x = x + (x >> _S8)
    x = x + (x >> _S16)
    x = x + (x >> _S32)
    return np.int64(x & _M7)


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

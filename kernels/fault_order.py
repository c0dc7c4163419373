"""Orders in which a task touches the pages of a range. The probe that records a real kernel uses the same ones."""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

GOLDEN = 0x9E3779B97F4A7C15
"""Start of the random order when the seed is 0, which xorshift would keep at 0."""


@kernel
def random_order(seed: Int, out: np.ndarray) -> None:
    """Fisher-Yates over 0..n-1 from the last index down, j = x mod (i + 1), x from xorshift64 (13, 7, 17).

    ``out`` int64 (n,) receives the order; ``seed`` is uint64.
    """
    for i in range(out.shape[0]):
        out[i] = i
    x = np.uint64(seed)
    if x == np.uint64(0):
        x = np.uint64(GOLDEN)
    for i in range(out.shape[0] - 1, 0, -1):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        j = np.int64(x % np.uint64(i + 1))
        swap = out[i]
        out[i] = out[j]
        out[j] = swap


@kernel
def strided_order(stride: Int, out: np.ndarray) -> None:
    """0, K, 2K, ..., then 1, K+1, ...: ``out`` int64 (n,) receives the order."""
    filled = 0
    for first in range(min(stride, out.shape[0])):
        for i in range(first, out.shape[0], stride):
            out[filled] = i
            filled += 1

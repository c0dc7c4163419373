"""Sums of rows, of which one after another is replaced by what it is now."""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import natural_kernel


@natural_kernel
def replace(total: np.ndarray, before: np.ndarray, now: np.ndarray) -> None:
    """The row that was ``before`` is ``now``, of rows that add up to ``total``: int64 (width,), the first two are changed."""
    for column in range(total.shape[0]):
        total[column] += now[column] - before[column]
        before[column] = now[column]

"""How much to test: kernels run as plain Python are some hundred times slower, so fewer cases go through them."""

from __future__ import annotations

import os

JIT_DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def examples(count: int, *, without_jit: int | None = None) -> int:
    """``count`` random cases when kernels are compiled, a tenth (or ``without_jit``) when they are plain Python."""
    if not JIT_DISABLED:
        return count
    return max(1, count // 10) if without_jit is None else without_jit

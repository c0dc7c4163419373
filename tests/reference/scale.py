"""How much to test: kernels run as plain Python are some hundred times slower, so fewer cases go through them.

Where every index is checked the same code is run a second time, on every other random case.
"""

from __future__ import annotations

import os

JIT_DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
INDICES_CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")
AS_PEOPLE_RUN_THEM = not JIT_DISABLED and not INDICES_CHECKED
"""What is asked of machine code itself is asked once."""


def examples(count: int, *, without_jit: int | None = None) -> int:
    """``count`` random cases when kernels are compiled, half with indices checked, a tenth (or ``without_jit``) as Python."""
    if not JIT_DISABLED:
        return max(1, count // 2) if INDICES_CHECKED else count
    return max(1, count // 10) if without_jit is None else without_jit

"""What something costs in CPU time, compared with less of it: for what must not grow with its square.

The machine does other work too, and a figure of milliseconds may be off by a multiple. So a comparison is made anew until one
holds: what grows too fast fails each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 8


def seconds(call: Callable[[], object]) -> float:
    """CPU time of this process for a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def costs_less(much: Callable[[], float], little: Callable[[], float], times: float) -> bool:
    """Whether ``much`` takes less than so many times what ``little`` takes; each gives its own seconds."""
    return any(much() < times * little() for _ in range(TRIES))

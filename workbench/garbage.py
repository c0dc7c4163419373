"""When Python looks for garbage: seldom, while many objects are made that stay."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_YOUNG = 2_000_000
"""Objects made between two searches; at some 100 bytes each, what may lie about before one."""
_guard = threading.Lock()
_inside = 0
_before = (0, 0, 0)


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Search for garbage every two million objects at most, in whatever threads; the last one out puts back what was."""
    global _inside, _before
    with _guard:
        if not _inside:
            _before = gc.get_threshold()
            if _before[0]:  # who has switched it off wants it off
                gc.set_threshold(max(_YOUNG, _before[0]), *_before[1:])
        _inside += 1
    try:
        yield
    finally:
        with _guard:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_before)

"""Whoever wants to say that kernels are being compiled is told here. Importing this costs nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Tell = Callable[[int, int, bool], None]
"""Called with (entries compiled, entries to compile, whether this process works on meanwhile) while compilers work: at
once, twice a second, and at the end."""

listeners: list[Tell] = []


def tell(done: int, total: int, beside: bool) -> None:
    """Tell all who listen."""
    for listener in list(listeners):
        listener(done, total, beside)


def say(done: int, total: int, beside: bool) -> str:
    """What a person reads meanwhile."""
    how = " beside the slower first answer" if beside else ""
    return f"compiling kernels{how}, once for this machine and version: {done} of {total}"


class Line:
    """Says it on standard error: in place on a terminal where this process waits for it, else every two seconds."""

    def __init__(self, *, every: float = 2.0) -> None:
        self._every = every
        self._last: float | None = None

    def __call__(self, done: int, total: int, beside: bool) -> None:
        """A :data:`Tell`."""
        now = time.monotonic()
        due = self._last is None or now - self._last >= self._every
        text = say(done, total, beside)
        if sys.stderr.isatty() and not beside:
            print(f"\r{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif due:
            print(text, file=sys.stderr, flush=True)
        if due:
            self._last = now

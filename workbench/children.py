"""Programs that are started here: they end with this process, whatever ends it and at whatever moment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tied(how: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn``: the child gets this signal when the thread that started it ends (prctl PR_SET_PDEATHSIG)."""
    return partial(tie, os.getpid(), how, _prctl())  # found before the fork, after which less is allowed


def tie(parent: int, how: signal.Signals, prctl: Callable[[int, int], int] | None = None) -> None:
    """This process gets a signal when its parent ends; if that has ended, the process does at once."""
    prctl = prctl or _prctl()
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(how))
        if os.getppid() != parent:
            os._exit(130)


def _prctl() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "prctl", None)


def run(command: list[Any], how: signal.Signals = signal.SIGKILL, **options: Any) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` of a program that gets a signal when this process ends."""
    return subprocess.run(command, check=False, preexec_fn=tied(how), **options)


class Waiting:
    """Signals that arrived inside :func:`interrupts_wait`."""

    def __init__(self) -> None:
        self.arrived: list[int] = []


@contextlib.contextmanager
def interrupts_wait() -> Iterator[Waiting]:
    """Ctrl-C, and other signals that end a command, only take note inside; what they do comes at the end.

    Python raises KeyboardInterrupt in the main thread at any place, whichever thread the system interrupts: inside
    ``Popen`` it would leave a process that nobody knows, and a second one what the first was ending. Whoever waits in
    here looks at ``arrived``. Signals that Python does not handle do what they always do.
    """
    waiting = Waiting()
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda which, _: waiting.arrived.append(which))
        yield waiting
    finally:
        for ours, handler in before.items():
            signal.signal(ours, handler)
        if waiting.arrived and waiting.arrived[0] in before:
            before[waiting.arrived[0]](waiting.arrived[0], None)

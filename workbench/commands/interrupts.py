"""Ctrl-C is one line on standard error and exit code 130, whatever was under way."""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import time
from typing import Any

import typer

EXIT_CODE = 130
AGAIN = 2.0
"""Seconds in which a signal that comes again is the same one: a terminal that closes sends it, and so does its shell."""
came: list[float] = []
"""When signals to end came."""
_told: list[str] = []
_last: list[int] = []


_SOON = 0.1
"""Seconds after which a signal that nobody could answer comes again, in which the callback ends."""


def heard(number: int, _: object = None) -> None:
    """A signal handler: KeyboardInterrupt, once for signals in a row, else what is being removed would stay.

    That one came is kept: pydantic makes a SchemaError of the exception, and others what they like.
    """
    came.append(time.monotonic())
    _last[:] = [number]
    if len(came) == 1 or came[-1] - came[-2] > AGAIN:
        raise KeyboardInterrupt


def swallowed(unraisable: Any) -> None:
    """``sys.unraisablehook``: a signal that was answered in a callback of Python's own, such as importing has, comes again.

    What is raised there ends nothing: Python would print it, and go on.
    """
    if not (came and isinstance(unraisable.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)
        return
    came.clear()
    _thread.start_new_thread(_again, (_last[0],))  # which does not wait for it


def _again(number: int) -> None:
    time.sleep(_SOON)
    os.kill(os.getpid(), number)


def tell(what: str) -> typer.Exit:
    """Say once that Ctrl-C ended the command, and what there is; returns what the command then raises."""
    if not _told:
        _told.append(what)
        with contextlib.suppress(OSError):  # of a terminal that was closed
            typer.echo(f"workbench: interrupted; {what}", err=True)
    return typer.Exit(EXIT_CODE)

"""Ctrl-C is one line on standard error and exit code 130, whatever was under way."""

from __future__ import annotations

import contextlib
import time

import typer

EXIT_CODE = 130
AGAIN = 2.0
"""Seconds in which a signal that comes again is the same one: a terminal that closes sends it, and so does its shell."""
came: list[float] = []
"""When signals to end came."""
_told: list[str] = []


def heard(*_: object) -> None:
    """A signal handler: KeyboardInterrupt, once for signals in a row, else what is being removed would stay.

    That one came is kept: pydantic makes a SchemaError of the exception, and others what they like.
    """
    came.append(time.monotonic())
    if len(came) == 1 or came[-1] - came[-2] > AGAIN:
        raise KeyboardInterrupt


def tell(what: str) -> typer.Exit:
    """Say once that Ctrl-C ended the command, and what there is; returns what the command then raises."""
    if not _told:
        _told.append(what)
        with contextlib.suppress(OSError):  # of a terminal that was closed
            typer.echo(f"workbench: interrupted; {what}", err=True)
    return typer.Exit(EXIT_CODE)

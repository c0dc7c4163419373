"""Exceptions with a meaning of their own: the input is wrong, and here is the line that says so; or nobody wants the answer.

Whoever reads a file names what is wrong and what was expected; the line it is in goes along as ``at``, and the file is
put before it in one place, :func:`of_file`: ``FILE: line 3: what``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 900
"""Characters of a message."""
_HAS_LINE = re.compile(r"\blines? [0-9]")


class WorkbenchError(ValueError):
    """Bad input. ``str(error)`` is one line that names the field, the value and what is allowed.

    ``at`` is the line of the file that is read, counted from 1; 0 where the whole of it is meant. Values are shown as
    they were given, so that their controls are escaped here, and of what is longer than anybody reads the middle is left
    out: the field stands at its begin, what is allowed at its end.
    """

    def __init__(self, message: str = "", at: int = 0) -> None:
        if len(message) > MOST:
            message = f"{message[: MOST // 2]} [...] {message[-MOST // 4 :]}"
        if not message.isprintable():
            message = " ".join(message.splitlines())
            message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(message[: 2 * MOST])
        self.at = at


class Cancelled(Exception):
    """Whoever asked for a run wants it no longer. Nothing is wrong with the input, and Ctrl-C is something else."""


def reason(error: BaseException, most: int = 120) -> str:
    """The first line of what an error of a library says, cut to ``most`` characters; its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


@contextmanager
def of_file(name: str) -> Iterator[None]:
    """What is refused inside is refused of this file: its name comes first, then the line if one is known."""
    shown = "".join(character if character.isprintable() else "?" for character in name)[:200]
    try:
        yield
    except WorkbenchError as error:
        message = str(error)
        if message.startswith(f"{shown}: "):
            message = message.removeprefix(f"{shown}: ")
        if error.at and not _HAS_LINE.search(message):
            message = f"line {error.at}: {message}"
        raise WorkbenchError(f"{shown}: {message}", error.at) from None


@contextmanager
def at_line(number: int) -> Iterator[None]:
    """What is refused inside stands in this line, if it does not know its own."""
    try:
        yield
    except WorkbenchError as error:
        error.at = error.at or number
        raise

"""What an output may replace: only what the workbench made, in one step; ``--force`` replaces the rest, and nothing a link.

Every command with an output asks :func:`check` before it begins. Texts that people may go on to edit say the digest of
what was written (:func:`signed`): one that was edited since is no longer ours.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files import read_file
from workbench.texts import without_controls

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_MADE_BY = "# made by workbench "
_DIGEST = "; SHA-256 of the lines below: "


def check(
    target: Path,
    ours: Callable[[Path], bool],
    what: str,
    *,
    force: bool = False,
    field: str = "-o",
    folder: bool = False,
) -> None:
    """Whether an output may be written to ``target``: nothing is there, or what we made. Raises WorkbenchError if not.

    Nor may its name take over a terminal that lists it.

    Parameters
    ----------
    target : where the output goes
    ours : whether what is there was made by the same command
    what : the kind of output, for the line that refuses
    force : whatever file is there may be replaced, and a directory where the output may be one
    field : the option that named the place
    folder : the output may be a directory
    """
    check_names(target, field)
    try:
        if target.is_symlink():
            raise WorkbenchError(f"{field}: {str(target)!a} is a link; name the place itself")
        if not target.exists():
            return
        if target.is_dir() and not folder:
            raise WorkbenchError(f"{field}: cannot write {str(target)!a}: it is a directory")
        if not (target.is_dir() or target.is_file()):
            raise WorkbenchError(f"{field}: {str(target)!a} is not a regular file")
    except OSError as error:
        raise WorkbenchError(f"{field}: {str(target)[:200]!a}: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(f"{field}: {str(target)[:200]!a}: not a file name") from None
    if not force and not ours(target):
        raise WorkbenchError(f"{field}: {str(target)!a} is there and no {what}; --force replaces it")


def check_names(target: Path, field: str = "-o") -> None:
    """Refuse names, of what is made and of directories made for it, that take over a terminal that lists them."""
    for place in (target, *target.parents):
        if place == target or not os.path.exists(place):
            try:
                without_controls(place.name)
            except ValueError as error:
                raise WorkbenchError(f"{field}: {error}") from None


def exchange(made: Path, target: Path) -> None:
    """Put ``made`` in the place of ``target`` in one step; what was there is where ``made`` was.

    Whoever is killed in between leaves the old or the new. A directory cannot be renamed onto a full one, so the two
    change names (renameat2 with RENAME_EXCHANGE); file systems without it get two renames.
    """
    if not target.is_dir() and not made.is_dir():
        os.replace(made, target)
        return
    if not target.exists():
        os.rename(made, target)
        return
    try:
        swapped = ctypes.CDLL(None, use_errno=True).renameat2(
            _AT_FDCWD, os.fsencode(made), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE
        )
    except AttributeError:  # a C library without it
        swapped = -1
    if swapped != 0:
        aside = made.with_name(f"{made.name}.before")
        os.rename(target, aside)
        try:
            os.rename(made, target)
        except OSError:
            os.rename(aside, target)
            raise


def signed(command: str, text: str) -> str:
    """A text under a comment that says which command made it, and the digest of what it wrote."""
    return f"{_MADE_BY}{command}{_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_signed(path: Path, command: str, most: int) -> bool:
    """Whether a file of at most ``most`` bytes is as :func:`signed` made it: nobody has edited it since."""
    try:
        text = read_file(path, most, "-o").decode("utf-8")
    except (WorkbenchError, UnicodeDecodeError):
        return False
    return text == signed(command, text.partition("\n")[2])


def begins(path: Path, mark: bytes, most: int = 4096) -> bool:
    """Whether ``mark`` stands in the first ``most`` bytes of a file."""
    try:
        with path.open("rb") as file:
            return mark in file.read(most)
    except OSError:
        return False

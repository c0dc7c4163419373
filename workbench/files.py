"""Files: written whole or not at all, beside their place and then renamed onto it; read only if regular and not too long."""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; rename it to ``path`` at the end, remove it on any failure.

    The directory is made if it is missing, and tried at once, so that a place nobody may write to, and one that is full, is
    refused before the work is done. Raises WorkbenchError for a read-only or full directory.
    """
    path = Path(path)
    if path.is_dir():
        raise WorkbenchError(f"cannot write {str(path)!r}: it is a directory")
    if path.exists() and not path.is_file():  # whoever may write to /dev would put a file in the place of a device
        raise WorkbenchError(f"cannot write {str(path)!r}: it is not a regular file")
    temporary = path.parent.absolute() / f".{path.name}.{_word()}.tmp"
    _unfinished[temporary] = os.getpid()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _try_to_write(temporary)
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        except OSError as error:
            raise WorkbenchError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # of a place that is none
            temporary.unlink(missing_ok=True)
        _unfinished.pop(temporary, None)


def _try_to_write(path: Path) -> None:
    """Make an empty file for its owner alone, where there is room for one block. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(os.fstat(descriptor).st_blksize))
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _word() -> str:
    """Eight random letters and digits. Who makes a file lets nobody choose its name: an interrupt might come when it is there
    and its name not yet told."""
    return base64.b32encode(os.urandom(5)).decode().lower()


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new directory beside ``path`` (whose own is made if it is missing), gone at the end with all that is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.absolute() / f".{path.name}.{_word()}"
    looks = 1
    _unfinished[folder] = os.getpid()
    try:
        os.mkdir(folder, 0o700)
        yield folder
    except KeyboardInterrupt:
        looks = LATE_LOOKS
        raise
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            for _ in range(1, looks):  # a thread of Zarr's ends what it is writing, and makes the directories for it
                time.sleep(LATE / LATE_LOOKS)
                shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            _unfinished.pop(folder, None)


_unfinished: dict[Path, int] = {}
"""What is being written, and by which process: a fork has its parent's."""


@atexit.register
def _remove_unfinished() -> None:
    """What threads that nobody waits for were writing when the process ended, such as a report of the explorer's."""
    for path, process in list(_unfinished.items()):
        if process == os.getpid():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


LATE, LATE_LOOKS = 0.5, 20
"""Seconds after an interrupt in which files may still come into such a directory, and how often they are removed."""


def real_path(path: str | Path) -> Path:
    """Where a path leads; ``Path.resolve`` ends in a RuntimeError at links that lead round in a circle."""
    return Path(os.path.realpath(path))


def is_there(path: str | Path) -> bool:
    """Whether anything has this name; what no file can be named, and where nobody may look, is not there."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_file(path: str | Path) -> bool:
    """Whether a regular file has this name; what no file can be named, and where nobody may look, is none."""
    return is_there(path) and Path(path).is_file()


def read_file(path: Path, most: int, field: str) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes (procfs says 0 and is read all the same).

    Raises WorkbenchError, with ``field`` first, for a directory, FIFO, device or socket, for what is not there or
    may not be read, and for a longer file.
    """
    shown = repr(str(path)[:200])
    try:
        # A FIFO without a writer would block the open; devices such as /dev/zero have no end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise WorkbenchError(f"{field}: {shown} is not a regular file")
            content = file.read(most + 1)
            if content is None:  # /proc/kmsg, for one, waits for more
                raise WorkbenchError(f"{field}: {shown} has nothing to be read now")
    except (OSError, ValueError) as error:
        if isinstance(error, WorkbenchError):
            raise
        reason = getattr(error, "strerror", None) or "not a file name"
        raise WorkbenchError(f"{field}: {shown}: {reason}") from None
    if len(content) > most:
        raise WorkbenchError(f"{field}: {shown} has more than {most >> 10:,} KiB; no more are read")
    return content

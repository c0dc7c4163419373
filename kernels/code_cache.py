"""Where machine code is kept between processes, and what happens when it is not there yet.

One file for each entry point and argument types, in a directory named after the content of all kernel sources: code
compiled against an older helper is never found. A file is read only if its checksum is right; one that is not, for
whatever reason, is compiled and written anew. Files are written to a temporary name and renamed. While a process
compiles an entry the others wait for it instead of compiling it too.

What is read here is run, so the directory must be ours alone: owned by this user, no symbolic link, writable by
nobody else, and below a directory that nobody else can exchange. Otherwise the next candidate is taken. Directories of
older sources are removed, except for the newest and those used lately.

Environment: ``WORKBENCH_CACHE_DIR`` chooses the directory in which the directory is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numba
from numba.core import config

logger = logging.getLogger(__name__)

KEPT, LATELY = 4, 24 * 3600.0
"""Directories of older sources that stay: so many, and all that were used in so many seconds."""
PATIENCE = 120.0
"""Seconds to wait for another process that compiles the same entry."""


WITHOUT_CODE = ("first_use.py", "interpreted.py", "warm.py")
"""Sources that no machine code depends on."""


@functools.cache
def source_digest() -> str:
    """Hexadecimal digest of all kernel sources, Numba's version and the compile-time switches."""
    digest = hashlib.sha256(f"{numba.__version__} {config.BOUNDSCHECK}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.name in WITHOUT_CODE:
            continue
        digest.update(path.relative_to(Path(__file__).parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _candidate_directories() -> list[Path]:
    chosen = os.environ.get("WORKBENCH_CACHE_DIR")
    candidates = [Path(chosen)] if chosen else []
    candidates.append(Path(__file__).parent / "__pycache__")
    with contextlib.suppress(RuntimeError):  # nobody's home
        candidates.append(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "guest-memfd-workbench")
    candidates.append(Path(tempfile.gettempdir()) / f"guest-memfd-workbench-{os.getuid()}")
    return candidates


@functools.cache
def cache_directory() -> Path | None:
    """The first candidate directory that is ours alone and can be written, or None if there is none."""
    name = f"kernels-{source_digest()}"
    for base in _candidate_directories():
        try:
            _make(base)
            _check_base(base)
            _make(base / name)
            _check_ours(base / name)
            with tempfile.TemporaryFile(dir=base / name):
                pass
            os.utime(base / name)
        except OSError as error:
            say = logger.warning if str(base) == os.environ.get("WORKBENCH_CACHE_DIR") else logger.debug
            say("compiled kernels are not kept in %s: %s", base, error.strerror or error)
            continue
        _prune(base, name)
        return base / name
    logger.warning("no directory for compiled kernels can be written; every process compiles them again")
    return None


def _make(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)


def _check_ours(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(None, "it is not a directory itself")
    if status.st_uid != os.geteuid():
        raise PermissionError(None, "it belongs to somebody else")
    if status.st_mode & 0o022:
        raise PermissionError(None, "others can write there")


def _check_base(directory: Path) -> None:
    """Nobody else can put another directory in the place of one in here."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(None, "it is not a directory itself")
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(None, "it belongs to somebody else")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(None, "others can write there")


def _prune(base: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        others = [entry for entry in os.scandir(base) if entry.name.startswith("kernels-") and entry.name != name]
        others = [entry for entry in others if entry.is_dir(follow_symlinks=False)]
        others.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in others[KEPT:]:
            if entry.stat().st_mtime < time.time() - LATELY:
                shutil.rmtree(entry.path, ignore_errors=True)


def read(path: Path) -> bytes | None:
    """Content of a file of :func:`write`, None if there is none or if it is not what was written."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            content = file.read()
    except OSError:
        return None
    checksum, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == checksum else None


def write(path: Path, data: bytes) -> None:
    """Keep ``data``; a full disk is no reason to stop. A directory that somebody removed meanwhile does not come back."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        say = logger.warning if path.parent.exists() else logger.debug
        say("compiled kernel is not kept in %s: %s", path.parent, error.strerror or error)


@functools.cache
def _lock_file(directory: Path) -> int | None:
    try:
        return os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


@contextlib.contextmanager
def only_one(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the right to compile what ``path`` keeps; False if another process holds it (after a while, with ``wait``)."""
    file = _lock_file(path.parent)
    place = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:6])
    end = time.monotonic() + (PATIENCE if wait else 0.0)
    while file is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                yield False
                return
            time.sleep(0.02)
        except OSError:  # a file system without locks: everybody compiles
            file = None
    try:
        yield True
    finally:
        if file is not None:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, place)

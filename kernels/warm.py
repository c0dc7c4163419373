"""Compiling before the first call: which entries a run needs, in several processes, and telling about it.

``entries.json`` lists the entry points that the workbench calls, with the types of their arguments. :func:`prepare`
compiles what is missing of some modules: this process from the front of the list, others from its end, none twice. An
entry that nobody prepared is prepared with its module when it is called.

``python -m workbench.kernels.warm`` compiles everything, with a line that says how far it is. With ``--list`` it writes
the list anew from what has been compiled since the sources changed: run every ready scenario and notebook before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from workbench.kernels import code_cache, dispatch, first_use

LIST = Path(__file__).with_name("entries.json")
_state = threading.local()
_prepared: set[tuple[Path, str]] = set()
"""Modules that this process has looked at: what goes missing later is compiled when it is called."""


class Specialisation(NamedTuple):
    """One entry point and the types of its arguments."""

    kernel: str
    """Module below ``workbench.kernels`` and name of the function."""
    signature: tuple[str, ...]
    """:func:`workbench.kernels.dispatch.code` of each argument."""


@functools.cache
def listed() -> dict[str, list[Specialisation]]:
    """Entries by their module below ``workbench.kernels``."""
    modules: dict[str, list[Specialisation]] = {}
    for kernel, codes in json.loads(LIST.read_text()):
        modules.setdefault(kernel.rpartition(".")[0], []).append(Specialisation(kernel, tuple(codes)))
    return modules


def kept() -> list[Specialisation]:
    """Entries that have been compiled for these sources so far, in any process."""
    found = set()
    for path in (code_cache.cache_directory() or Path()).glob("[!.]*"):
        data = code_cache.read(path)
        if data is not None:
            kernel, codes, _ = pickle.loads(data)
            found.add(Specialisation(kernel, codes))
    return sorted(found)


def prepare(modules: Iterable[str]) -> None:
    """Compile what is not kept yet of some modules, in as many processes as there are CPUs."""
    directory = code_cache.cache_directory()
    if not dispatch.COMPILED or directory is None or getattr(_state, "preparing", False):
        return
    unprepared = [module for module in modules if (directory, module) not in _prepared]
    if not unprepared:
        return
    _prepared.update((directory, module) for module in unprepared)
    entries = [entry for module in unprepared for entry in listed().get(module, ())]
    missing = [entry for entry in dict.fromkeys(entries) if not _path(entry).exists()]
    if not missing:
        return
    _state.preparing = True
    try:
        with _telling(missing), _helpers(missing):
            take(missing)
            while any(not _path(entry).exists() for entry in missing) and _busy(missing):
                time.sleep(0.05)
    finally:
        _state.preparing = False


def _prepare_module_of(kernel: str) -> None:
    """An entry is called that nobody prepared: its module is next."""
    prepare([kernel.rpartition(".")[0]])


dispatch.before_compiling = _prepare_module_of


def _path(entry: Specialisation) -> Path:
    path = dispatch.path_of(entry.kernel, entry.signature)
    assert path is not None
    return path


def _busy(missing: Sequence[Specialisation]) -> bool:
    """Whether another process is compiling one of them."""
    for entry in missing:
        if not _path(entry).exists():
            with code_cache.only_one(_path(entry), wait=False) as free:
                if not free:
                    return True
    return False


def take(entries: Iterable[Specialisation]) -> None:
    """Compile entries one after the other, except those that are kept or that another process compiles just now."""
    for entry in entries:
        path = _path(entry)
        if path.exists():
            continue
        with code_cache.only_one(path, wait=False) as first:
            if first and not path.exists():
                dispatch.compile_entry(entry.kernel, entry.signature)


@contextlib.contextmanager
def _helpers(missing: Sequence[Specialisation]) -> Iterator[None]:
    """Other processes that compile the same entries from the end of the list; they end with this one."""
    count = min(len(os.sched_getaffinity(0)), len(missing), 8) - 1
    text = json.dumps(list(reversed(missing))).encode() + b"\n"
    started = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                helper = subprocess.Popen(
                    [sys.executable, "-m", "workbench.kernels.warm", "--help-out"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                started.append(helper)
                assert helper.stdin is not None
                helper.stdin.write(text)
                helper.stdin.flush()
        yield
    finally:
        for helper in started:
            helper.kill()
            with contextlib.suppress(OSError):
                helper.stdin.close()  # type: ignore[union-attr]
            helper.wait()


def _help_out() -> None:
    """What a helper does: take a list from standard input, and end with whoever gave it."""
    entries = [Specialisation(kernel, tuple(codes)) for kernel, codes in json.loads(sys.stdin.buffer.readline())]

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _state.preparing = True
    take(entries)


@contextlib.contextmanager
def _telling(missing: Sequence[Specialisation]) -> Iterator[None]:
    over = threading.Event()

    def tell() -> None:
        first_use.tell(sum(_path(entry).exists() for entry in missing), len(missing))

    def work() -> None:
        while not over.wait(0.5):
            tell()

    tell()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)
        tell()


def main() -> None:
    """Compile everything that is listed."""
    if sys.argv[1:] == ["--help-out"]:
        _help_out()
        return
    if sys.argv[1:] == ["--list"]:
        LIST.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in kept()) + "\n]\n")
        return
    first_use.listeners.append(first_use.Line())
    prepare(listed())
    print(f"compiled kernels are in {code_cache.cache_directory()}")


if __name__ == "__main__":
    importlib.import_module("workbench.kernels.warm").main()  # the one that the dispatcher calls, not a copy of it

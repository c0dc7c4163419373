"""Compiling before the first call: which entries a run needs, in several processes, and telling about it.

``entries.json`` lists the entry points that the workbench calls, with the types of their arguments. :func:`prepare`
compiles what is missing of some modules: this process from the front of the list, others from its end, none twice. An
entry that nobody prepared is prepared with its module when it is called. For a first answer only the others compile, and
this process interprets what is not there yet (:mod:`workbench.kernels.interpreted`).

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.kernels import code_cache, dispatch, first_use, interpreted

LIST = Path(__file__).with_name("entries.json")
LOOK_AGAIN = 0.25
"""Seconds between looks whether a kernel that is interpreted has been compiled."""
_state = threading.local()
_prepared: set[tuple[Path, str]] = set()
"""Modules that this process has looked at: what goes missing later is compiled when it is called."""
_begun: set[tuple[Path, str]] = set()
"""Modules that others compile for this process, which has not waited for them."""


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


def prepare(modules: Iterable[str], *, wait: bool = True) -> None:
    """Compile what is not kept yet of some modules, in as many processes as there are CPUs.

    Without ``wait`` others begin with it, and from now on this process interprets what they have not come to yet, within
    the limits of :mod:`workbench.kernels.interpreted`: for who wants the answer of one run, and not of a thousand.
    """
    if not wait and dispatch.COMPILED:
        interpreted.allow()
    directory = code_cache.cache_directory()
    if not dispatch.COMPILED or directory is None or getattr(_state, "preparing", False):
        return
    beside = not wait and interpreted.permitted()
    known = _begun if beside else _prepared
    wanted = [module for module in dict.fromkeys([*modules, *(() if beside else _begun_in(directory))])]
    wanted = [module for module in wanted if (directory, module) not in known]
    if not wanted:
        return
    known.update((directory, module) for module in wanted)
    entries = [entry for module in wanted for entry in listed().get(module, ())]
    missing = [entry for entry in dict.fromkeys(entries) if not _path(entry).exists()]
    if not missing:
        return
    if beside:
        _begin(missing)
        return
    _state.preparing = True
    try:
        with _telling(missing), _helpers(missing):
            take(missing)
            while any(not _path(entry).exists() for entry in missing) and _busy(missing):
                time.sleep(0.05)
    finally:
        _state.preparing = False


def _begun_in(directory: Path) -> list[str]:
    return [module for base, module in sorted(_begun) if base == directory]


def _prepare_module_of(kernel: str) -> None:
    """An entry is called that nobody prepared: its module is next."""
    prepare([kernel.rpartition(".")[0]], wait=not interpreted.permitted())


dispatch.before_compiling = _prepare_module_of


def _interpret(kernel: dispatch.Kernel, values: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The kernel as plain Python, if somebody waits for a first answer and its machine code is not there."""
    if not interpreted.permitted(kernel.name):
        return None
    if time.monotonic() >= _look_again.get(kernel.name, 0.0):
        entry = Specialisation(kernel.name, tuple(map(dispatch.code, kernel.types_of(values))))
        if entry not in listed().get(kernel.name.rpartition(".")[0], ()):
            return None  # nobody else will compile it
        if code_cache.cache_directory() is not None and _path(entry).exists():
            return None
        _prepare_module_of(kernel.name)
        _look_again[kernel.name] = time.monotonic() + LOOK_AGAIN
    return functools.partial(interpreted.call, kernel)


_look_again: dict[str, float] = {}
dispatch.instead_of_compiling = _interpret


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
    started = [_start(missing) for _ in range(min(_cpus(), len(missing), 8) - 1)]
    try:
        yield
    finally:
        for helper in filter(None, started):
            helper.kill()
            with contextlib.suppress(OSError):
                helper.stdin.close()  # type: ignore[union-attr]
            helper.wait()


def _begin(missing: Sequence[Specialisation]) -> None:
    """Have others compile entries beside what this process does; somebody is told until they are done."""
    helpers = [_start(missing) for _ in range(max(min(_cpus(), len(missing), 8) - 1, 1))]
    _beside.extend(filter(None, helpers))  # their standard input stays open as long as this process lives

    def tell() -> None:
        with _telling(missing, beside=True):
            for helper in filter(None, helpers):
                helper.wait()

    threading.Thread(target=tell, daemon=True).start()


_beside: list[subprocess.Popen[bytes]] = []


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _start(missing: Sequence[Specialisation]) -> subprocess.Popen[bytes] | None:
    text = json.dumps(list(reversed(missing))).encode() + b"\n"
    with contextlib.suppress(OSError):
        helper = subprocess.Popen(
            [sys.executable, "-m", "workbench.kernels.warm", "--help-out"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert helper.stdin is not None
        helper.stdin.write(text)
        helper.stdin.flush()
        return helper
    return None


def _help_out() -> None:
    """What a helper does: take a list from standard input. The entry in hand is the last when whoever gave it has ended,
    or when somebody has removed the directory."""
    entries = [Specialisation(kernel, tuple(codes)) for kernel, codes in json.loads(sys.stdin.buffer.readline())]
    alone = threading.Event()

    def notice() -> None:
        sys.stdin.buffer.read()
        alone.set()

    threading.Thread(target=notice, daemon=True).start()
    os.nice(5)
    _state.preparing = True
    for entry in entries:
        if alone.is_set() or not _path(entry).parent.exists():
            break
        take([entry])
    os._exit(0)


@contextlib.contextmanager
def _telling(missing: Sequence[Specialisation], beside: bool = False) -> Iterator[None]:
    over = threading.Event()
    paths = [_path(entry) for entry in missing]

    def tell() -> None:
        first_use.tell(sum(path.exists() for path in paths), len(paths), beside)

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

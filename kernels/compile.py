"""How every kernel is compiled and where its machine code is kept: the only module that names Numba's options.

Three decorators:

``@kernel``
    for functions that allocate no array. They are compiled without Numba's reference-counting runtime,
    because counting references to array arguments between small helpers costs a factor of 17 to 50.
``@inlined_kernel``
    for small helpers of such functions that take many arrays, a named tuple of them for instance: passing them
    costs more than the helper does (3 times slower on the buddy allocator), so they are always inlined.
``@allocating_kernel``
    for the few entry points that create arrays themselves.

All compile lazily (importing compiles nothing), release the GIL and keep machine code on disk. The cache
directory is named after the content of all kernel sources, because Numba checks only the file of the
function it compiles and would keep serving a caller compiled against an older helper of another file.
Numba writes cache files to a temporary name and renames them, so several processes may start at once.
Where the preferred directory cannot be written, another one is chosen and said so through ``logging``.

Environment: ``WORKBENCH_CACHE_DIR`` chooses the cache directory; ``NUMBA_DISABLE_JIT=1`` runs the kernels as
plain Python, ``NUMBA_BOUNDSCHECK=1`` checks every index (the two ways the tests run them besides compiled).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba
from numba.core import caching, config
from numba.core.dispatcher import Dispatcher

logger = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., object])


@functools.cache
def source_digest() -> str:
    """Hexadecimal digest of all kernel sources, Numba's version and the compile-time switches."""
    digest = hashlib.sha256(f"{numba.__version__} {config.BOUNDSCHECK}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.relative_to(Path(__file__).parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _candidate_directories() -> list[Path]:
    chosen = os.environ.get("WORKBENCH_CACHE_DIR")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [
        *([Path(chosen)] if chosen else []),
        Path(__file__).parent / "__pycache__",
        user_cache / "guest-memfd-workbench",
        Path(tempfile.gettempdir()) / f"guest-memfd-workbench-{os.getuid()}",
    ]


@functools.cache
def cache_directory() -> Path | None:
    """The first candidate directory that can be written, or None if there is none."""
    for number, base in enumerate(_candidate_directories()):
        directory = base / f"kernels-{source_digest()}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            logger.debug("no compiled code kept in %s: %s", directory, error)
            continue
        if number > 0 and "WORKBENCH_CACHE_DIR" not in os.environ:
            logger.info("compiled kernels are kept in %s", directory)
        return directory
    logger.warning("no directory for compiled kernels can be written; every process compiles them again")
    return None


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # Numba is untyped
    def __init__(self, py_func: Callable[..., object], directory: Path) -> None:
        self._stem = f"{py_func.__module__}.{py_func.__qualname__}"
        self._directory = directory

    def get_cache_path(self) -> str:
        return str(self._directory)

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        return self._stem

    @classmethod
    def from_function(cls, py_func: Callable[..., object], py_file: str) -> _Locator | None:
        directory = cache_directory()
        return None if directory is None else cls(py_func, directory)


class _CacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Locator]


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheImpl


def _compiled(function: _Function, **options: object) -> _Function:
    dispatcher = numba.njit(nogil=True, **options)(function)
    if isinstance(dispatcher, Dispatcher) and cache_directory() is not None:  # not when JIT is disabled
        dispatcher._cache = _Cache(function)
    return cast(_Function, dispatcher)


def kernel(function: _Function) -> _Function:
    """Compile a function that allocates nothing, without the reference-counting runtime."""
    return _compiled(function, _nrt=False)


def inlined_kernel(function: _Function) -> _Function:
    """Like :func:`kernel`, and compiled into every caller."""
    return _compiled(function, _nrt=False, forceinline=True)


def allocating_kernel(function: _Function) -> _Function:
    """Compile an entry point that creates arrays."""
    return _compiled(function)


def reference_count_calls(function: Callable[..., object]) -> int:
    """Number of reference-count calls in the compiled forms of ``function``; must be 0 for a ``@kernel``.

    The function must have been called once, so that there is a compiled form to look at.
    """
    texts = cast(Dispatcher, function).inspect_llvm().values()
    return sum(text.count("call void @NRT_incref") + text.count("call void @NRT_decref") for text in texts)

"""xarray asks of every array whether it is one of Dask's or pint's, and imports both to ask: half a second of a short run.

An array of a library that nobody has imported yet cannot exist. So until somebody has, the answer is no.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from xarray.namedarray import pycompat, utils

ARRAYS = {"dask": "dask.array", "pint": "pint"}
"""Library -> module that defines its arrays."""


class _Unimported:
    """Stands for xarray's record of a library, and makes the real one when there is something to find out."""

    def __init__(self, library: str) -> None:
        self._library = library

    @functools.cached_property
    def _record(self) -> Any:
        return pycompat.DuckArrayModule(self._library)  # type: ignore[arg-type]

    @property
    def type(self) -> tuple[type, ...]:
        return self._record.type if ARRAYS[self._library] in sys.modules else ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._record, name)


def ask_without_importing() -> None:
    """Do so from now on in this process. An xarray that keeps its records elsewhere goes on as ever."""
    ask = getattr(utils, "is_dask_collection", None)
    if ask is not None:
        vars(utils)["is_dask_collection"] = lambda value: "dask" in sys.modules and ask(value)
    records = getattr(pycompat, "_cached_duck_array_modules", None)
    if isinstance(records, dict) and hasattr(pycompat, "DuckArrayModule"):
        for library in ARRAYS:
            records.setdefault(library, _Unimported(library))

"""The compiled form of a kernel, made anew: code that comes from the cache has no text to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workbench.kernels import code_cache
from workbench.kernels import compile as compile_module


def reference_count_calls(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., object], *arguments: Any) -> int:
    """Compile a ``@kernel`` with the cache off, call it once, and count its reference-count calls."""
    monkeypatch.setattr(code_cache, "cache_directory", lambda: None)
    fresh = compile_module.kernel(kernel.py_func)  # type: ignore[attr-defined]
    fresh(*arguments)
    texts = fresh.inspect_llvm()  # type: ignore[attr-defined]
    assert texts
    assert all("define " in text for text in texts.values())
    return compile_module.reference_count_calls(fresh)

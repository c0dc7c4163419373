"""Examples in docstrings say what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(("workbench", *path.relative_to(ROOT / top).with_suffix("").parts) if top == "workbench"
             else ("workbench.kernels", *path.relative_to(ROOT / top).with_suffix("").parts))
    for top in ("workbench", "kernels")
    for path in (ROOT / top).rglob("*.py")
    if ">>> " in path.read_text()
)  # fmt: skip


def test_there_are_examples() -> None:
    assert {"workbench.units", "workbench.policy", "workbench.bitmap_lists", "workbench.ready"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed

"""Cells for the tests of sweeps: quick, and leaving a trace of being computed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

SMALL_BASE = """\
base:
  name: small
  host: epyc1-naples-2s
  operations: [{op: create}, {op: mmap}, {op: mbind, mode: bind, nodes: "0"}, {op: fallocate}]
"""
"""Of a grid as a file has it."""
BASE = {"name": "base", "host": "two", "guest": {"memory": 64}}


def grid(count: int = 12, **more: Any) -> dict[str, Any]:
    """A grid of count x 3 cells whose value everybody can compute, each written on its own."""
    return {
        "base": BASE,
        "axes": {"seed": {"range": [0, count]}, "guest.memory": [64, 128, 256]},
        "metrics": {"y": {"variable": "y", "reduce": "sum"}},
        "chunk": 1,
        **more,
    }


def value(seed: int, memory: int) -> float:
    """What a cell's metric y must be."""
    return float(np.sin(seed) + memory)


def run(mapping: Mapping[str, Any]) -> xr.Dataset:
    """Compute a cell; a line goes to $CELL_LOG, and $CELL_SECONDS pass."""
    time.sleep(float(os.environ.get("CELL_SECONDS", "0")))
    seed, memory = mapping["seed"], mapping["guest"]["memory"]
    if log := os.environ.get("CELL_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{seed} {memory}\n")
    if seed == 5:
        raise ValueError(f"five is refused, as object at {hex(id(mapping))}")
    return xr.Dataset({"y": ("part", [np.sin(seed), memory])})

"""``report --check`` compares what is computed, never times taken on the machine: those differ from run to run."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr

from workbench.designs import sweeps
from workbench.reports.report import digest
from workbench.variables import CLOCK

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_says_its_data(path: Path) -> None:
    """A figure without data is compared by its picture, and a picture shows clocks too."""
    found = 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for call in ast.walk(ast.parse(cell.source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "report.figure":
                assert "data" in [keyword.arg for keyword in call.keywords], ast.unparse(call)
                found += 1
    assert found


def test_two_runs_that_take_different_times_have_one_digest() -> None:
    first, second = (sweeps.structures((10, 100), memory=1 << 26) for _ in range(2))
    assert (first["lookup_time"] != second["lookup_time"]).any()
    assert digest(first) == digest(second)
    assert digest(first) != digest(first.assign(map_bytes=first["map_bytes"] + 1))


def test_only_the_clock_is_left_out() -> None:
    def made(seconds: float, pages: int) -> xr.Dataset:
        spent = xr.DataArray(np.array([seconds]), dims="x", attrs={"basis": "measured", "source": CLOCK})
        read = xr.DataArray(np.array([pages]), dims="x", attrs={"basis": "measured", "source": "a published table"})
        return xr.Dataset({"seconds": spent, "pages": read})

    assert digest(made(1.0, 7)) == digest(made(2.0, 7)) != digest(made(1.0, 8))

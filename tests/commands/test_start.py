"""What a short command does not wait for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOADED = """
import contextlib, io, sys
from workbench.commands.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    sys.argv = ["workbench", *sys.argv[1:]]
    main()
print(*sys.modules)
"""


@pytest.mark.parametrize("scenario", ["weighted-interleave-cxl", "snp-guest-boots"])
def test_a_run_that_is_only_printed_imports_no_xarray(scenario: str) -> None:
    """xarray and pandas are half of such a command's time; the tables come from the run's plain arrays."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "run", scenario],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ.copy(),
    )
    loaded = set(done.stdout.split())
    assert "workbench.running" in loaded
    assert not loaded & {"xarray", "pandas"}
    assert not loaded & {"coverage.control", "numpy.ma", "webbrowser", "workbench.commands.docs"}

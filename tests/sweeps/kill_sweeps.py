"""Kill a sweep again and again while it writes, then let it end: kill_sweeps.py STORE COUNT KILLS SEED.

Every run is a fork of this process, which has done a small sweep before: a start costs milliseconds. It is killed at a random
moment after its first cell of that run. Prints how many cells were there after each kill.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from sweeps.cells import grid, run

from workbench.sweeps import sweep as sweeps
from workbench.sweeps.store import PENDING, open_store

CHUNK = 16
MOMENT = 0.04
"""Seconds after the first cell, at most, that a run is let live."""


def _forked(work: Any) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def main(store: str, count: int, kills: int, seed: int) -> None:
    """Kill, look, and finish."""
    draw = random.Random(seed)
    cells = grid(count, chunk=CHUNK)
    sweeps.sweep(grid(2), run=run, workers=0)
    for number in range(kills):
        began, begins = os.pipe()

        def told(mapping: Mapping[str, Any], begins: int = begins) -> xr.Dataset:
            os.write(begins, b".")
            return run(mapping)

        def killed(number: int = number, told: Any = told) -> None:
            sweeps.WRITE_SECONDS = 0.5 if number % 2 else 0.001  # whole chunks, or parts of chunks
            sweeps.sweep(cells, out=store, run=told, workers=0, progress=False)

        child = _forked(killed)
        os.close(begins)
        assert os.read(began, 1), "it ended before its first cell"
        time.sleep(draw.uniform(0, MOMENT))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was over before it was killed"
        os.close(began)
        if number % 10 == 9:
            with open_store(Path(store), sweeps.as_grid(cells), ()) as found:
                print(int((found.status != PENDING).sum()))
    sweeps.sweep(cells, out=store, run=run, workers=0, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

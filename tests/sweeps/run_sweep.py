"""A sweep in a process of its own, for tests that end it from outside: run_sweep.py STORE COUNT WORKERS [SCHEDULER]."""

from __future__ import annotations

import os
import sys

from sweeps.cells import grid, run

from workbench.errors import WorkbenchError
from workbench.sweeps.sweep import sweep

if __name__ == "__main__":
    store, count, workers, *scheduler = sys.argv[1:]
    try:
        sweep(
            grid(int(count), chunk=int(os.environ.get("CELL_CHUNK", "1"))),
            out=store,
            run=run,
            workers=None if scheduler else int(workers),
            scheduler=scheduler[0] if scheduler else None,
        )
    except WorkbenchError as error:
        sys.exit(f"refused: {error}")

"""Sweeps: cells a second on one and on two worker processes, and what 10^5 small cells cost beside their own work.

``python tests/bench/bench_sweep.py`` prints Markdown. Rates are of wall time, since processes are what is measured: on a
machine that does other work the ratio of two workers to one says more than the rates.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from distributed import Client, LocalCluster

from workbench.sweeps.store import read_store
from workbench.sweeps.sweep import run_cell, sweep

ROUNDS = 5
CELLS = 200
MANY = 100_000


def scenarios(count: int) -> dict[str, Any]:
    """Cells that are simulations: a guest of 64 MiB to 4 GiB, interleaved over four nodes of a real machine."""
    return {
        "name": "bench",
        "base": {
            "name": "bench",
            "host": "epyc1-naples-2s",
            "guest": {"vcpus": [{"node": 0}, {"node": 1}]},
            "operations": [
                {"op": "create"},
                {"op": "mmap"},
                {"op": "mbind", "mode": "interleave", "nodes": "0-3"},
                {"op": "first_touch"},
            ],
        },
        "axes": {"memory": {"field": "guest.memory", "range": [64 << 20, (64 << 20) + count * (16 << 20), 16 << 20]}},
    }


def nothing(mapping: Mapping[str, Any]) -> xr.Dataset:
    """A cell that takes no time: what is left is the sweep itself."""
    return xr.Dataset({"y": mapping["seed"]})


def scaling() -> None:
    """Same cells on one and on two workers that are already up, interleaved."""
    clusters = {
        count: LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        )
        for count in (1, 2)
    }
    clients = {count: Client(cluster) for count, cluster in clusters.items()}
    grid = scenarios(CELLS)
    try:
        for client in clients.values():  # kernels are read from disk, imports are made
            sweep(grid, client, run=run_cell, progress=False)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for count, client in clients.items():
                begun = time.perf_counter()
                sweep(grid, client, run=run_cell, progress=False)
                seconds[count].append(time.perf_counter() - begun)
    finally:
        for client in clients.values():
            client.close()
        for cluster in clusters.values():
            cluster.close()
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"\n{CELLS} simulations, store included, workers up; median of {ROUNDS} interleaved rounds\n")
    print("| workers | cells/s | speed-up |\n|---|---|---|")
    for count in (1, 2):
        rate = CELLS / statistics.median(seconds[count])
        print(f"| {count} | {rate:.0f} | {1 if count == 1 else ratio:.2f} |")
    print(f"\n({os.cpu_count()} processors; load {os.getloadavg()[0]:.1f} from everything on the machine)")


def many() -> None:
    """10^5 cells that do nothing, on two workers: the cost of handing out, collecting and writing."""
    grid = {
        "name": "many",
        "base": {"name": "many", "guest": {"memory": 4096}},
        "axes": {"seed": {"range": [0, MANY // 100]}, "place": {"field": "guest.memory", "range": [1, 101]}},
        "metrics": {"y": {"variable": "y", "reduce": "last"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "many.zarr"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        sweep(grid, out=store, run=nothing, workers=2, progress=False)
        seconds = time.perf_counter() - begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        begun = time.perf_counter()
        read_store(store)
        reading = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        files = sum(1 for path in store.rglob("*") if path.is_file())
    print(f"\n{MANY:,} cells that do nothing, 2 workers, start of the workers included\n")
    print("| seconds | cells/s | memory grown, this process | store | files | read again |\n|---|---|---|---|---|---|")
    print(
        f"| {seconds:.1f} | {MANY / seconds:,.0f} | {grown:.0f} MiB | {size / 2**10:.0f} KiB | {files} | {reading:.2f} s |"
    )


def main() -> None:
    """Print both tables."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    scaling()
    many()


if __name__ == "__main__":
    main()

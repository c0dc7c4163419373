"""Sweeps: what a cell costs beside its own work, cells a second on one and on two workers, and in threads.

``python tests/bench/bench_sweep.py`` prints Markdown. What one process does is given in CPU time. Rates of workers are of wall
time, since processes are what is measured: on a machine that does other work the ratio of two workers to one says more than
the rates.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from distributed import Client, LocalCluster

from workbench.running import run
from workbench.scenario import Scenario
from workbench.sweeps.store import read_store
from workbench.sweeps.sweep import run_cell, sweep

ROUNDS = 3
CELLS = 8_000
MANY = 100_000
SMALL = {"host": "epyc1-naples-2s", "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}, {"node": 1}]}}


def grid(count: int) -> dict[str, Any]:
    """Cells that are simulations of a small scenario."""
    return {"name": "bench", "base": SMALL, "axes": {"seed": {"range": [0, count]}}}


def nothing(mapping: Mapping[str, Any]) -> xr.Dataset:
    """A cell that takes no time: what is left is the sweep itself."""
    return xr.Dataset({"y": mapping["seed"]})


def beside() -> None:
    """CPU time of a sweep in this process, less that of a loop around the same cells; and peak memory."""
    sweep(grid(4), workers=0)
    print("\nSmall scenario, in one process, CPU time\n")
    print("| cells | a cell in a loop | a cell in a sweep | beside | peak memory |\n|---|---|---|---|---|")
    for count in (1_000, 5_000, 20_000):
        loops, swept = [], []
        for _ in range(ROUNDS if count < 5_000 else 1):
            begun = time.process_time()
            for seed in range(count):
                found = run_cell({"seed": seed, "metadata": "off", **SMALL})
                for name in ("pages_per_node", "local_share", "event_errno"):
                    found[name].sum()
            loops.append((time.process_time() - begun) / count * 1e6)
            with tempfile.TemporaryDirectory() as folder:
                begun = time.process_time()
                sweep(grid(count), out=Path(folder) / "s.zarr", workers=0, progress=False)
                swept.append((time.process_time() - begun) / count * 1e6)
        loop, cell = min(loops), min(swept)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {count:,} | {loop:.0f} µs | {cell:.0f} µs | {cell - loop:.0f} µs | {peak:.0f} MiB |", flush=True)


def scaling() -> None:
    """Same cells on one and on two workers that are already up, interleaved."""
    clusters = {
        count: LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        )
        for count in (1, 2)
    }
    clients = {count: Client(cluster) for count, cluster in clusters.items()}
    try:
        for client in clients.values():  # kernels are read from disk, imports are made
            sweep(grid(100), client, progress=False)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        own: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for count, client in clients.items():
                begun, used = time.perf_counter(), time.process_time()
                sweep(grid(CELLS), client, progress=False)
                seconds[count].append(time.perf_counter() - begun)
                own[count].append(time.process_time() - used)
    finally:
        for client in clients.values():
            client.close()
        for cluster in clusters.values():
            cluster.close()
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"\n{CELLS:,} simulations, store included, workers up; median of {ROUNDS} interleaved rounds\n")
    print("| workers | cells/s | speed-up | driver and scheduler, CPU | 10^6 cells |\n|---|---|---|---|---|")
    for count in (1, 2):
        each = statistics.median(seconds[count]) / CELLS
        used = statistics.median(own[count]) / CELLS * 1e6
        print(
            f"| {count} | {1 / each:.0f} | {1 if count == 1 else ratio:.2f} | {used:.0f} µs a cell | {each * 1e6 / 60:.1f} min |"
        )
    print(f"\n({os.cpu_count()} processors; load {os.getloadavg()[0]:.1f} from everything on the machine)")


def threads() -> None:
    """One and two threads of this process, where kernels take nearly all of the time and where Python does."""
    kernels = {
        "host": "epyc1-naples-2s",
        "guest": {"memory": "16 GiB", "vcpus": [{"node": 0}]},
        "metadata": "off",
        "output": "counts",
        "operations": [
            {"op": "create"}, {"op": "mmap"}, {"op": "set_mempolicy", "mode": "interleave", "nodes": "0-3"},
            {"op": "fault", "order": "random"},
        ],
    }  # fmt: skip

    def timed(scenario: Scenario, runs: int, count: int) -> float:
        def work() -> None:
            for _ in range(runs // count):
                run(scenario)

        begun = time.perf_counter()
        workers = [threading.Thread(target=work) for _ in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return (time.perf_counter() - begun) / runs

    print("\nThreads of one process, a run\n")
    print("| scenario | 1 thread | 2 threads | speed-up |\n|---|---|---|---|")
    for name, mapping, runs in (
        ("4 Mi pages in random order: kernels", kernels, 6),
        ("small: Python", {**SMALL, "metadata": "off"}, 1_000),
    ):
        scenario = Scenario.from_mapping(mapping)
        run(scenario)
        rounds = [(timed(scenario, runs, 1), timed(scenario, runs, 2)) for _ in range(ROUNDS)]
        ratio = statistics.median(one / two for one, two in rounds)
        one, two = (statistics.median(column) * 1e3 for column in zip(*rounds, strict=True))
        print(f"| {name} | {one:.3g} ms | {two:.3g} ms | {ratio:.2f} |")


def many() -> None:
    """10^5 cells that do nothing, on two workers: the cost of handing out, collecting and writing."""
    cells = {
        "name": "many",
        "base": {"name": "many", "guest": {"memory": 4096}},
        "axes": {"seed": {"range": [0, MANY // 100]}, "place": {"field": "guest.memory", "range": [1, 101]}},
        "metrics": {"y": {"variable": "y", "reduce": "last"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "many.zarr"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun, used = time.perf_counter(), time.process_time()
        sweep(cells, out=store, run=nothing, workers=2, progress=False)
        seconds, own = time.perf_counter() - begun, (time.process_time() - used) / MANY * 1e6
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        begun = time.perf_counter()
        read_store(store)
        reading = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        files = sum(1 for path in store.rglob("*") if path.is_file())
    print(f"\n{MANY:,} cells that do nothing, 2 workers, start of the workers included\n")
    print(
        "| seconds | cells/s | driver, CPU | memory grown, driver | store | files | read again |\n|---|---|---|---|---|---|---|"
    )
    print(
        f"| {seconds:.1f} | {MANY / seconds:,.0f} | {own:.0f} µs a cell | {grown:.0f} MiB | {size / 2**10:.0f} KiB | {files} "
        f"| {reading:.2f} s |"
    )


def main() -> None:
    """Print the tables."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    beside()
    threads()
    scaling()
    many()


if __name__ == "__main__":
    main()

"""Grids of scenarios: every cell simulated, on this machine or on any Dask scheduler, into one Zarr store.

Cells go to the workers in tasks of about a second, a few tasks per worker at a time, so that neither the scheduler nor
memory fills up however many cells there are. What comes back is written by this process alone, in blocks of many quick
cells or few slow ones (:mod:`workbench.sweeps.store`); killed at any moment, the same call does what is left.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.sweeps.grid import MAX_CHUNK, Grid, measure
from workbench.sweeps.store import FAILED, PENDING, SweepStore, open_store, read_store
from workbench.units import check_processes

if TYPE_CHECKING:
    from distributed import Client

    from workbench.answer import Answer

ComputeCell = Callable[[Mapping[str, Any]], "Answer | xr.Dataset | dict[str, float]"]
"""What computes a cell: a scenario as plain mappings in, what it found out; or the numbers by name, of a run of another kind."""
Found = tuple[dict[str, np.ndarray], dict[int, str], dict[int, str]]
"""Values of each metric, cells first; errors of the cells that failed, and warnings of others, by their place among them."""

TASK_SECONDS = 1.0
LEAST_SECONDS = 0.05
"""A task is not shorter, even at the end: to hand it out takes some milliseconds."""
WRITE_SECONDS = 0.5
"""Cells that this process computes are written when they took so long, or are a whole chunk."""
SMALL_SECONDS = 4.0
"""A sweep shorter than this is run in this process: starting workers would take longer."""
PER_WORKER = 3
"""Tasks in flight per worker thread: one at work, the others on their way."""

__all__ = ["Estimate", "Grid", "estimate", "read_store", "run_cell", "sweep"]


def run_cell(mapping: Mapping[str, Any]) -> Answer:
    """Run one cell: what it found as plain arrays, worked out for the metrics that ask, without the map of pages."""
    from workbench.running import run
    from workbench.scenario import Scenario

    host = mapping.get("host")
    if isinstance(host, str):
        host = _machine(host)
    elif isinstance(host, Mapping):
        host = _described(json.dumps(host))
    return run(Scenario.from_mapping({"output": "counts", **mapping, "host": host}), wait=True)


@functools.lru_cache(maxsize=64)
def _described(text: str) -> Any:
    """A host written into the grid; validating it once per process and not once per cell."""
    from workbench.topology.host import Host

    try:
        return Host.model_validate_json(text)
    except ValueError:
        return json.loads(text)  # the scenario says what is wrong with it


@functools.lru_cache(maxsize=64)
def _machine(name: str) -> Any:
    """A ready host; reading its YAML once per process and not once per cell."""
    from workbench.topology.host import Host

    return Host.from_machine(name)


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take, from running a few of its cells here."""

    cells: int
    pending: int
    chunks: int
    cell_seconds: float
    store_bytes: int
    process_bytes: int
    tried: int
    """Cells that were run."""
    failed: Mapping[tuple[int, ...], str]
    """Errors of those that failed, by their place in the grid."""

    def seconds(self, workers: int) -> float:
        """Seconds for the pending cells on so many workers like this one."""
        return self.pending * self.cell_seconds / max(workers, 1)


def sweep(
    grid: Grid | Mapping[str, Any] | str | Path,
    client: Client | None = None,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    run: ComputeCell = run_cell,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run every cell of a grid and return the Dataset of its metrics, with one dimension per axis.

    Parameters
    ----------
    grid : a Grid, a mapping (see :meth:`Grid.from_mapping`), or a path to YAML
    client : a Dask client to run on; otherwise ``scheduler`` (an address), otherwise processes of this machine. Batch
        systems come in as cluster objects: ``Client(dask_jobqueue.SLURMCluster(...))``,
        ``Client(dask_kubernetes.operator.KubeCluster(...))``
    out : the Zarr store. When it is there, only what it lacks is computed. Without one the result is in memory only
    workers : processes on this machine; 0 runs in this process. By default this process for a short sweep and one
        process per processor for others
    run : what computes a cell; a function that workers can import, or that cloudpickle can send
    retry_failed : compute cells that failed before again
    progress : a bar with rate and time left; by default in a terminal or notebook

    Returns
    -------
    Dataset with the metrics, ``status`` (0 pending, 1 done, 2 failed), ``error`` and ``warnings`` (text) over the axes.

    Raises WorkbenchError for a bad grid, a store that is another sweep's or in use, or a scheduler that is not there.
    A cell that fails is recorded and stops nothing.
    """
    grid = as_grid(grid)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            store = Path(folder) / "sweep.zarr"
            _fill(grid, store, client, workers, scheduler, run, retry_failed, progress)
            return read_store(store)
    _fill(grid, Path(out), client, workers, scheduler, run, retry_failed, progress)
    return read_store(out)


def as_grid(grid: Grid | Mapping[str, Any] | str | Path) -> Grid:
    """Read or validate a grid."""
    if isinstance(grid, Grid):
        return grid
    return Grid.from_mapping(grid) if isinstance(grid, Mapping) else Grid.from_yaml(grid)


def estimate(grid: Grid, out: Path | None = None, run: ComputeCell = run_cell) -> Estimate:
    """Run the first, the middle and the last cell and say what the sweep will take."""
    import resource

    nodes = _nodes(grid)
    pending = grid.cells
    if out is not None and out.exists():
        with open_store(out, grid, nodes) as store:
            pending = int(np.count_nonzero(store.status == PENDING))
    times: list[float] = []
    failed: dict[tuple[int, ...], str] = {}
    for number in dict.fromkeys([0, grid.cells // 2, grid.cells - 1]):
        index = np.unravel_index(number, grid.shape)
        one = tuple(slice(int(at), int(at) + 1) for at in index)
        if not times:
            _run_cells(grid.part(one), np.zeros(1, np.int64), nodes, run)  # compiles the kernels, or reads them
        begun = time.perf_counter()
        _, errors, _ = _run_cells(grid.part(one), np.zeros(1, np.int64), nodes, run)
        times.append(time.perf_counter() - begun)
        failed |= {tuple(map(int, index)): error for error in errors.values()}
    width = sum(8 * (len(nodes) if metric.per_node else 1) for metric in grid.metrics) + 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    chunks = sum(1 for _ in grid.chunks())
    return Estimate(grid.cells, pending, chunks, float(np.mean(times)), grid.cells * width, peak, len(times), failed)


def _nodes(grid: Grid) -> tuple[int, ...]:
    return tuple(grid.node_ids()) if any(metric.per_node for metric in grid.metrics) else ()


# ---------------------------------------------------------------------------------------------- what a worker does


def _run_cells(part: Grid, cells: np.ndarray, nodes: Sequence[int], run: ComputeCell) -> Found:
    """Compute cells of a block, int64 (cells,) in its order. A cell that raises leaves its error and NaN."""
    values, errors, warnings = _nothing(part, len(cells), nodes), {}, {}
    uncounted = run is run_cell and all(metric.variable != "metadata_pages" for metric in part.metrics)
    for at, inside in enumerate(zip(*np.unravel_index(cells, part.shape), strict=True)):
        try:
            cell = part.cell(inside)
            if uncounted:
                cell.setdefault("metadata", "off")  # what nobody asks for is not counted: most of a small cell's time
            found = run(cell)
            row = [measure(metric, found, nodes) for metric in part.metrics]
        except Exception as error:
            errors[at] = _one_line(error)
            continue
        for metric, value in zip(part.metrics, row, strict=True):
            values[metric.name][at] = value
        if said := found.attrs.get("warnings", "") if isinstance(found, xr.Dataset) else getattr(found, "warnings", ""):
            warnings[at] = said
    return values, errors, warnings


def _nothing(grid: Grid, cells: int, nodes: Sequence[int]) -> dict[str, np.ndarray]:
    return {metric.name: np.full((cells, len(nodes)) if metric.per_node else cells, np.nan) for metric in grid.metrics}


def _one_line(error: BaseException) -> str:
    """The error for the store: one line, and the same on every run (no addresses of objects)."""
    text = " ".join(str(error).split())
    return re.sub(r"\b0x[0-9a-f]{6,}", "0x...", f"{type(error).__name__}: {text}"[:500])


class OtherVersions(Exception):
    """This worker is of another installation than the driver: what it computes may differ."""


def _run_task(
    pieces: Sequence[tuple[Grid, np.ndarray]], nodes: Sequence[int], run: ComputeCell, versions: Mapping[str, str]
) -> tuple[list[Found], float]:
    """What a worker does; ``versions`` are the driver's, for workers may join at any time."""
    if differs := _differences(versions, versions_here()):
        raise OtherVersions(differs)
    begun = time.perf_counter()
    found = [_run_cells(part, cells, nodes, run) for part, cells in pieces]
    return found, time.perf_counter() - begun


# ---------------------------------------------------------------------------------------------- what drives it


def _fill(
    grid: Grid,
    out: Path,
    client: Client | None,
    workers: int | None,
    scheduler: str | None,
    run: ComputeCell,
    retry_failed: bool,
    progress: bool | None,
) -> None:
    if client is not None and scheduler is not None:
        raise WorkbenchError("sweep: give a client or the address of a scheduler, not both")
    if workers is not None:
        check_processes(workers, "sweep.workers", least=0)
    nodes = _nodes(grid)
    with open_store(out, grid, nodes) as store:
        left = _Left(store, (PENDING, FAILED) if retry_failed else (PENDING,))
        with _bar(grid, grid.cells - left.cells, progress) as bar:
            driver = _Driver(grid, nodes, store, run, left, bar)
            local = client is None and scheduler is None
            if local and workers != 1 and left.cells:
                # the first cells here: they compile the kernels before many processes want them, and show the pace
                driver.alone(cells=min(MAX_CHUNK, left.cells) if workers else None)
            if not left.cells:
                return
            if local and (workers == 0 or (workers is None and driver.seconds_left() < SMALL_SECONDS)):
                driver.alone()
            else:
                with _gone_in_one_line(), _connected(client, scheduler, workers) as connected:
                    driver.spread(connected)


class Piece(NamedTuple):
    """Cells of one chunk: where the chunk is, and which of its cells, int64 (cells,) in its order."""

    place: tuple[slice, ...]
    cells: np.ndarray


class _Left:
    """The cells that are still to be handed out, in order; which they are is looked up chunk by chunk."""

    def __init__(self, store: SweepStore, states: Sequence[int]) -> None:
        self._store, self._states = store, states
        self._places = store.grid.chunks(store.chunk_shape)
        self._piece: Piece | None = None
        self.cells = int(np.isin(store.status, states).sum())

    def take(self, most: int) -> Piece:
        """The next cells of one chunk, so many at most; there must be some left."""
        while self._piece is None or not len(self._piece.cells):
            place = next(self._places)
            self._piece = Piece(place, np.flatnonzero(np.isin(self._store.status[place], self._states)))
        place, cells = self._piece
        self._piece = Piece(place, cells[most:])
        self.cells -= len(cells[:most])
        return Piece(place, cells[:most])


@contextlib.contextmanager
def _bar(grid: Grid, done: int, progress: bool | None) -> Iterator[Any]:
    from tqdm.auto import tqdm

    terminal = sys.stderr.isatty()
    if progress is None:
        progress = terminal or "ipykernel" in sys.modules
    with tqdm(
        total=grid.cells,
        initial=done,
        unit="cell",
        desc=grid.name[:30],
        disable=not progress,
        mininterval=0.2 if terminal else 5.0,
        smoothing=0.1,
        file=sys.stderr,
    ) as bar:
        yield bar


class _Driver:
    """Hands out cells and writes what comes back."""

    def __init__(
        self, grid: Grid, nodes: Sequence[int], store: SweepStore, run: ComputeCell, left: _Left, bar: Any
    ) -> None:
        self.grid, self.nodes, self.store, self.run, self.left, self.bar = grid, nodes, store, run, left, bar
        self._cell_seconds: float | None = None
        self._failed = 0

    def _write(self, piece: Piece, found: Found) -> None:
        values, errors, warnings = found
        self.store.write(*piece, values, errors, warnings)
        if errors:
            self._failed += len(errors)
            self.bar.set_postfix(failed=self._failed, refresh=False)
        self.bar.update(len(piece.cells))

    def _pace(self, seconds: float, cells: int) -> None:
        """Learn what a cell takes: at once when it is less than thought, for the first ones load and compile kernels."""
        new, known = seconds / cells, self._cell_seconds
        self._cell_seconds = new if known is None or new < known else 0.7 * known + 0.3 * new

    def seconds_left(self) -> float:
        """Seconds that one process needs for what is left."""
        return (self._cell_seconds or 0.0) * self.left.cells

    def alone(self, cells: int | None = None) -> None:
        """Compute cells in this process: all of them, or at least one and until so many are done or it took long."""
        end = self.left.cells - cells if cells is not None else 0
        size, started = 1, time.perf_counter()
        while self.left.cells > end:
            piece = self.left.take(size)
            begun = time.perf_counter()
            found = _run_cells(self.grid.part(piece.place), piece.cells, self.nodes, self.run)
            now = time.perf_counter()
            self._pace(now - begun, len(piece.cells))
            self._write(piece, found)
            if cells is not None and now - started >= WRITE_SECONDS:
                return
            size = max(min(int(WRITE_SECONDS / (self._cell_seconds or 1e-6)), 16 * size), 1)

    def _take(self, workers: int) -> list[Piece]:
        """The next task: cells worth about TASK_SECONDS, fewer near the end so that all workers finish together."""
        pace = self._cell_seconds or TASK_SECONDS
        wanted = max(int(max(min(TASK_SECONDS / pace, self.left.cells / (2 * workers)), LEAST_SECONDS / pace)), 1)
        pieces: list[Piece] = []
        while wanted > 0 and self.left.cells:
            pieces.append(self.left.take(wanted))
            wanted -= len(pieces[-1].cells)
        return pieces

    def spread(self, client: Client) -> None:
        """Compute what is left on the workers of a Dask cluster."""
        from distributed import as_completed

        versions = versions_here()
        flying: dict[Any, list[Piece]] = {}
        single: list[list[Piece]] = []  # cells of tasks whose workers died, tried one by one
        finished = as_completed(loop=client.loop)
        try:
            while self.left.cells or single or flying:
                threads = _wait_for_workers(client) if not flying else max(sum(client.nthreads().values()), 1)
                while (self.left.cells or single) and len(flying) < PER_WORKER * threads:
                    pieces = self._take(threads) if self.left.cells else single.pop()
                    parts = [(self.grid.part(place), cells) for place, cells in pieces]  # the whole grid may be large
                    future = client.submit(
                        _run_task, parts, self.nodes, self.run, versions, pure=False, key=_task_key()
                    )
                    flying[future] = pieces
                    finished.add(future)
                future = next(finished)
                single += self._landed(future, flying.pop(future))
                future.release()
        finally:
            with contextlib.suppress(Exception):
                client.cancel(list(flying), force=True)

    def _landed(self, future: Any, pieces: list[Piece]) -> list[list[Piece]]:
        """Write a task that came back; return what of it has to be tried again."""
        from distributed.scheduler import KilledWorker

        if future.status == "finished":
            found, seconds = future.result()
            self._pace(seconds, sum(len(piece.cells) for piece in pieces))
            for piece, one in zip(pieces, found, strict=True):
                self._write(piece, one)
            return []
        if future.status in ("cancelled", "lost"):
            raise WorkbenchError(_GONE)
        error = future.exception()
        if isinstance(error, KilledWorker):
            alone = [Piece(place, cells[at : at + 1]) for place, cells in pieces for at in range(len(cells))]
            if len(alone) > 1:
                return [[piece] for piece in alone]
            error = RuntimeError("its worker died again and again (out of memory?)")
        elif isinstance(error, OtherVersions):
            raise WorkbenchError(f"sweep: a worker that joined has {error}; install the same versions there")
        elif error is None:
            raise WorkbenchError("sweep: a task ended without result or error")
        for piece in pieces:
            count = len(piece.cells)
            failed = dict.fromkeys(range(count), _one_line(error))
            self._write(piece, (_nothing(self.grid, count, self.nodes), failed, {}))
        return []


_GONE = "sweep: the scheduler went away; the same command goes on where this one stopped"


@contextlib.contextmanager
def _gone_in_one_line() -> Iterator[None]:
    """A scheduler that is killed shows at whatever was asked of it at that moment."""
    from asyncio import CancelledError

    from distributed.comm.core import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError, TimeoutError) as error:
        raise WorkbenchError(_GONE) from error


def _task_key() -> str:
    import uuid

    return f"cells-{uuid.uuid4().hex}"


def _wait_for_workers(client: Client) -> int:
    told = False
    while True:
        try:
            threads = sum(client.nthreads().values())
        except (OSError, TimeoutError) as error:
            raise WorkbenchError(
                "sweep: the scheduler does not answer; the same command goes on where this one stopped"
            ) from error
        if threads:
            return threads
        if not told:
            print("sweep: the scheduler has no workers; waiting for one", file=sys.stderr)
            told = True
        time.sleep(0.5)


_SPOKEN = ("python", "dask", "distributed")
"""Versions that a scheduler must have as well; it computes nothing, and needs no workbench."""


def versions_here() -> dict[str, str]:
    """Versions that must be equal in the driver and every worker: they decide the numbers, or how these travel."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("guest-memfd-workbench", "numpy", "numba", "dask", "distributed")
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **{name: version(name) for name in names}}


def _differences(mine: Mapping[str, str], theirs: Mapping[str, str | None]) -> str:
    return ", ".join(
        f"{name} {theirs.get(name)} (here {mine[name]})" for name in mine if theirs.get(name) != mine[name]
    )


def _check_versions(client: Client) -> None:
    """A scheduler and workers of another installation: say so in one line before any cell is computed."""
    mine = versions_here()
    versions: Any = client.get_versions()
    told = versions["scheduler"]
    scheduler = {**told["packages"], "python": ".".join(str(told["packages"]["python"]).split(".")[:2])}
    if differs := _differences({name: mine[name] for name in _SPOKEN}, scheduler):
        raise WorkbenchError(f"sweep: the scheduler has {differs}; install the same versions there")
    _wait_for_workers(client)
    try:
        theirs = client.run(versions_here)
    except Exception as error:  # they cannot even unpickle the function
        raise WorkbenchError(
            f"sweep: the workers of this scheduler cannot run guest-memfd-workbench {mine['guest-memfd-workbench']}: "
            f"{_one_line(error)}"
        ) from error
    for worker, found in sorted(theirs.items()):
        if differs := _differences(mine, found):
            raise WorkbenchError(f"sweep: worker {worker} has {differs}; install the same versions there")


@contextlib.contextmanager
def _connected(client: Client | None, scheduler: str | None, workers: int | None) -> Iterator[Client]:
    if client is not None:
        _check_versions(client)
        yield client
        return
    import logging
    import warnings

    from distributed import Client as DaskClient
    from distributed import LocalCluster

    # Those below "distributed" have levels of their own (distributed/config.py).
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado.application", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other versions, as a table; they are compared here
                connected = DaskClient(scheduler, timeout="10s")
        except (OSError, TimeoutError, ValueError) as error:
            raise WorkbenchError(f"sweep: no scheduler answers at {scheduler!r}") from error
        with contextlib.closing(connected):
            _check_versions(connected)
            yield connected
        return
    count = workers or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        try:
            with _interrupt_ignored():
                cluster = LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    local_directory=folder,
                    silence_logs=logging.CRITICAL,
                    preload=["workbench.sweeps.sweep"],
                )
        except RuntimeError as error:
            # new processes import the script that starts them, which must not start a sweep again
            raise WorkbenchError(
                "sweep: worker processes did not start; in a script, call it below \"if __name__ == '__main__':\", "
                "or run in one process with workers=0"
            ) from error
        connected = DaskClient(cluster)
        try:
            yield connected
        finally:
            # Of processes that do not end (the machine slept) nothing is said over what the sweep itself ended with.
            with contextlib.suppress(TimeoutError, OSError):
                connected.close()
            with contextlib.suppress(TimeoutError, OSError):
                cluster.close(timeout=5)


def dask_setup(worker: object) -> None:
    """Called in every worker of this machine (as a preload): Ctrl-C is for the process that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C from their first moment on; and so does this one, until they are up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Where the comparison of designs turns: how much is shared and how scattered, how fragmented free memory is, page size.

Every point is a run as :mod:`workbench.designs.compare` carries it out, on a small guest whose costs are given for each GiB of
it: under each design a cell of a sweep (:mod:`workbench.sweeps.sweep`). The structures of the map are filled and timed on their
own, because a guest with so many extents would be too large to run, and one after another in this process, because what runs
beside would be in their times.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.design import DESIGNS, choose
from workbench.designs.accounting import map_size
from workbench.designs.dataset import METADATA
from workbench.designs.runs import FileWorkload, carry_out
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.sweeps.grid import Axis, Grid, Metric
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.tracking.offset_maps import OffsetMap, offset_map
from workbench.tracking.tracked_file import choice
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes, parse_bytes
from workbench.variables import DesignSharing, MapStructures

GUESTS = {"4 KiB": 32 << 20, "2 MiB": 64 << 20, "1 GiB": 1 << 30}
"""Memory of the guest by page size: small, for it is run some hundred times."""
SHARES = (1 / 1024, 1 / 256, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
RUNS = (4 << 10, 64 << 10, 2 << 20)
CASES = {"4 KiB": ("whole", "4 KiB"), "2 MiB": ("whole", "2 MiB"), "1 GiB": ("whole",)}
"""Free ranges that the PFN range allocator starts with: one, or many with memory in use between them."""
_KEPT = ("metadata_bytes", "struct_page_bytes", "private_map_bytes", "page_cache_bytes", "stage2_table_bytes")


@functools.lru_cache(maxsize=1)
def _run(page_size: str, share: float, run: int, free: str, confidential: str, seed: int) -> FileWorkload:
    """The designs of a point, which are cells one after another, read the same."""
    memory = GUESTS[page_size]
    stream = np.concatenate((gen.prefault(memory, page_size, 1), gen.shared_for_good(memory, share, run, seed=seed)))
    free_run = 0 if free == "whole" else parse_bytes(free) // PAGE_SIZE
    pages = memory // PAGE_SIZE
    return FileWorkload(pages, page_size, (pages,), stream, confidential, free_run=free_run)


def run_cell(cell: Mapping[str, Any]) -> dict[str, float]:
    """One design at one point: what is kept of it, as it is counted; ``extents`` if it has a light map."""
    run = _run(*(cell[name] for name in ("page_size", "share", "run", "free", "confidential", "seed")))
    (design,) = choose([cell["design"]])
    borders = np.array([0, len(run.stream)])
    values = carry_out(run, design, borders, "maple", "256 KiB", structures=("maple",)).values
    found = {name: values[name] for name in _KEPT if name in values}
    return found | {"metadata_bytes": sum(values[name] for name in METADATA), "extents": values.get("extents", np.nan)}


def _grid(
    cases: Sequence[tuple[str, str]], shares: Sequence[float], runs: Sequence[int], confidential: str, seed: int
) -> Grid:
    """Cells of :func:`sharing`: plain numbers and texts, in the order of its dimensions."""
    axes: dict[str, list[dict[str, Any]]] = {
        "case": [{"page_size": size, "free": free} for size, free in cases],
        "run": [{"run": int(run)} for run in runs],
        "share": [{"share": float(share)} for share in shares],
        "design": [{"design": name} for name in DESIGNS],
    }
    return Grid(
        "sharing",
        {"confidential": confidential, "seed": seed},
        tuple(
            Axis(name, tuple(points[0]), tuple(tuple(point.values()) for point in points), tuple(range(len(points))))
            for name, points in axes.items()
        ),
        tuple(Metric(name, name, "sum") for name in (*_KEPT, "extents")),
    )


def sharing(
    page_sizes: Sequence[str] = tuple(PAGE_ORDERS),
    shares: Sequence[float] = SHARES,
    runs: Sequence[int] = RUNS,
    *,
    confidential: str = "none",
    seed: int = 0,
    out: str | Path | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Costs of each design over share of memory shared, length of its runs, page size and fragmentation.

    Dimensions ``case`` (page size and free ranges), ``run`` (bytes), ``share``, ``design``; bytes for each GiB of guest.
    ``filemap`` stands for huge page designs at 4 KiB, which are the same there. ``out``, ``workers`` and ``progress`` are those
    of :func:`workbench.sweeps.sweep.sweep`: a store to go on with when this was ended, processes, a bar.
    """
    from workbench.sweeps.sweep import sweep

    for size in page_sizes:
        choice("page_size", size, CASES)
    choice("confidential", confidential, LARGEST_LEAF)
    cases = [(size, free) for size in page_sizes for free in CASES[size]]
    for name, along in (("page_sizes", page_sizes), ("shares", shares), ("runs", runs)):
        if not len(along):
            raise WorkbenchError(f"sharing.{name}: needs at least one")
    swept = sweep(
        _grid(cases, shares, runs, confidential, seed), out=out, workers=workers, run=run_cell, progress=progress
    )
    if failed := [str(text) for text in swept["error"].values.ravel() if text]:
        raise WorkbenchError(f"sharing: {len(failed)} of {swept['error'].size} cells failed, the first: {failed[0]}")
    scale = np.array([(1 << 30) / GUESTS[size] for size, _ in cases])[:, None, None, None]
    values = {name: swept[name].values * scale for name in (*_KEPT, "extents")}
    mapped = next(at for at, design in enumerate(DESIGNS.values()) if design.store == "pfn map")
    return results.make(
        DesignSharing,
        {**values, "extents": values["extents"][..., mapped]},
        {
            "case": [f"{size} pages, free ranges {free}" for size, free in cases],
            "run": list(runs),
            "share": list(shares),
            "design": list(DESIGNS),
            "page_size": ("case", [size for size, _ in cases]),
        },
        provenance=results.provenance(
            command="designs.sweeps.sharing", page_sizes=page_sizes, shares=shares, runs=runs,
            confidential=confidential, seed=seed,
        ),
        attributes={"confidential": confidential},
    )  # fmt: skip


@dataclass(frozen=True)
class _Filled:
    tree: OffsetMap
    nanoseconds: float


def _filled(name: str, pages: int, extents: np.ndarray, indices: np.ndarray, max_order: int) -> _Filled:
    tree = offset_map(name, pages, max_order)
    tree.run(extents)
    tree.lookup(indices[:16])
    times = []
    for _ in range(5):
        start = time.perf_counter_ns()
        tree.lookup(indices)
        times.append((time.perf_counter_ns() - start) / len(indices))
    return _Filled(tree, statistics.median(times))


def structures(
    counts: Sequence[int] = (10, 100, 1_000, 10_000, 100_000), memory: int = 4 << 30, seed: int = 0
) -> xr.Dataset:
    """The light map with so many extents over ``memory``, against the page cache of the same guest on 4 KiB folios.

    Bytes, nodes of a look-up and nanoseconds of one, at random offsets; dimensions ``extents`` and ``structure``.
    ``page cache`` is an XArray of single pages. Times are measured here and now: look at ratios.
    """
    pages = memory // PAGE_SIZE
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, pages, 100_000)
    whole = _filled("xarray", pages, np.array([[0, pages, 1]], np.int64), indices, 0)
    names = ("maple", "ranges", "flat", "page cache")
    size, depth, spent = (np.empty((len(counts), len(names))) for _ in range(3))
    for row, count in enumerate(counts):
        borders = np.concatenate(([0], np.sort(rng.choice(pages - 1, count - 1, replace=False)) + 1, [pages]))
        pfn = (rng.permutation(count).astype(np.int64) + 1) << 24
        extents = np.column_stack((borders[:-1], np.diff(borders), pfn))
        for column, name in enumerate(names):
            made = whole if name == "page cache" else _filled(name, pages, extents, indices, folio.ORDER_1G)
            size[row, column] = made.tree.bytes
            depth[row, column] = made.tree.depth(pages // 2)
            spent[row, column] = made.nanoseconds
    return results.make(
        MapStructures,
        {"map_bytes": size, "map_depth": depth, "lookup_time": spent},
        {"extents": list(counts), "structure": list(names)},
        provenance=results.provenance(command="designs.sweeps.structures", counts=counts, memory=memory, seed=seed),
        attributes={"guest_bytes": memory},
    )


def flat_wins_from(memory: int = 1 << 30) -> float:
    """Pages for each extent (equal ones) at which a maple tree takes as much as 8 bytes for every page."""
    pages = memory // PAGE_SIZE
    low, high = 1, 1024  # pages of an extent: the tree is larger at low, smaller at high
    while high - low > 1:
        middle = (low + high) // 2
        starts = np.arange(0, pages - middle + 1, middle, dtype=np.int64)
        extents = np.column_stack((starts, np.full(len(starts), middle), np.arange(len(starts)) * 2 * middle))
        if map_size("maple", pages, extents)[0] > pages * 8:
            low = middle
        else:
            high = middle
    return float(high)


def answers(swept: xr.Dataset) -> pd.DataFrame:
    """From which share of memory on the light map no longer has less, by length of the runs shared, or how close it is.

    ``swept`` is what :func:`sharing` returns. Cells are "5.6 %" or "never, at most 0.95 of it".
    """
    rows = {}
    for name, other, what in (
        ("metadata_bytes", "hugetlb-hvo", "all metadata of hugetlb-hvo"),
        ("metadata_bytes", "filemap", "all metadata of filemap"),
        ("stage2_table_bytes", "hugetlb-hvo", "stage-2 tables of hugetlb-hvo"),
    ):
        for case in swept["case"].values:
            cells = []
            for length in swept["run"].values:
                line = swept[name].sel(case=case, run=length)
                ratio = (line.sel(design="pfn-range") / line.sel(design=other)).values
                at, most = turning_point(swept["share"].values, ratio)
                if at is None:
                    cells.append(f"never, at most {most:.2f} of it")
                else:
                    cells.append("always" if at == swept["share"].values[0] else f"{at:.1%}, at most {most:.2f} times")
            rows[what, str(case)] = cells
    columns = [f"runs of {format_bytes(int(length))}" for length in swept["run"].values]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).set_axis(pd.MultiIndex.from_tuples(rows))


def cycles_ratio(swept: xr.Dataset, other: str = "hugetlb-hvo") -> pd.DataFrame:
    """Modelled cycles of conversions, light map over another design: least and most over all draws and rates.

    ``swept`` is what :func:`workbench.designs.compare.sweep` returns.
    """
    cost = swept["conversion_cycles"]
    ratio = cost.sel(design="pfn-range") / cost.sel(design=other)
    table = {"as given": ratio.isel(draw=0), "least": ratio.min("draw"), "most": ratio.max("draw")}
    return pd.DataFrame(
        {
            (str(size), name): part.sel(page_size=size).values
            for size in swept["page_size"].values
            for name, part in table.items()
        },
        pd.Index(swept["conversions"].values, name="conversions"),
    ).round(4)


def turning_point(steps: np.ndarray, ratio: np.ndarray) -> tuple[float | None, float]:
    """Where a ratio first reaches 1, between two steps on a log axis (None: nowhere), and the largest ratio."""
    most = float(ratio.max())
    at = int(np.argmax(ratio >= 1))
    if most < 1:
        return None, most
    if at == 0:
        return float(steps[0]), most
    below, above = np.log(ratio[at - 1 : at + 1])
    weight = -below / (above - below)
    return float(steps[at - 1] * (steps[at] / steps[at - 1]) ** weight), most

"""Where the comparison of designs turns: how much is shared and how scattered, how fragmented free memory is, page size.

Every point is a run of :mod:`workbench.designs.compare` on a small guest whose costs are given for each GiB of it; the structures
of the map are filled and timed on their own, because a guest with so many extents would be too large to run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.design import DESIGNS
from workbench.designs.accounting import map_size
from workbench.designs.compare import FileWorkload, compare
from workbench.engine import conversion_streams as gen
from workbench.kernels.folios import run as folio
from workbench.tracking.offset_maps import OffsetMap, offset_map
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes, parse_bytes
from workbench.variables import DesignSharing, MapStructures

GUESTS = {"4 KiB": 32 << 20, "2 MiB": 64 << 20, "1 GiB": 1 << 30}
"""Memory of the guest by page size: small, for it is run some hundred times."""
SHARES = (1 / 1024, 1 / 256, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
RUNS = (4 << 10, 64 << 10, 2 << 20)
CASES = {"4 KiB": ("whole", "4 KiB"), "2 MiB": ("whole", "2 MiB"), "1 GiB": ("whole",)}
"""Free ranges that the PFN range allocator starts with: one, or many with memory in use between them."""
_KEPT = ("metadata_bytes", "struct_page_bytes", "private_map_bytes", "page_cache_bytes", "stage2_table_bytes")


def _run(page_size: str, share: float, run: int, free: str, confidential: str, seed: int) -> FileWorkload:
    memory = GUESTS[page_size]
    stream = np.concatenate((gen.prefault(memory, page_size, 1), gen.shared_for_good(memory, share, run, seed=seed)))
    free_run = 0 if free == "whole" else parse_bytes(free) // PAGE_SIZE
    pages = memory // PAGE_SIZE
    return FileWorkload(pages, page_size, (pages,), stream, confidential, free_run=free_run)


def sharing(
    page_sizes: Sequence[str] = tuple(PAGE_ORDERS),
    shares: Sequence[float] = SHARES,
    runs: Sequence[int] = RUNS,
    *,
    confidential: str = "none",
    seed: int = 0,
) -> xr.Dataset:
    """Costs of each design over share of memory shared, length of its runs, page size and fragmentation.

    Dimensions ``case`` (page size and free ranges), ``run`` (bytes), ``share``, ``design``; bytes for each GiB of guest.
    ``filemap`` stands for huge page designs at 4 KiB, which are the same there.
    """
    cases = [(size, free) for size in page_sizes for free in CASES[size]]
    shape = (len(cases), len(runs), len(shares), len(DESIGNS))
    values = {name: np.empty(shape) for name in _KEPT}
    extents = np.empty(shape[:3])
    for i, (size, free) in enumerate(cases):
        for j, length in enumerate(runs):
            for k, share in enumerate(shares):
                result = compare(_run(size, share, length, free, confidential, seed), samples=1)
                scale = (1 << 30) / result.attrs["guest_bytes"]
                for name, out in values.items():
                    out[i, j, k] = result[name].values * scale
                extents[i, j, k] = float(result["extents"]) * scale
    return results.make(
        DesignSharing,
        {**values, "extents": extents},
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

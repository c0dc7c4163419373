"""Virtual machines arriving at a host and leaving it: what days of that do to each way of handing out memory.

Sizes follow the published mix of Azure's 2019 trace (``azure_vm_memory``), lifetimes are log-normal with most machines
short-lived and some that stay, arrivals a Poisson process. The same stream is served by the PFN range allocator with
each of its fits, by a hugetlb pool (whole huge pages, nothing to fragment) and by the buddy allocator's largest order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from kernels import pfn_range
from workbench.errors import WorkbenchError
from workbench.published import read_table
from workbench.units import PAGE_SIZE, parse_bytes

GIB_PAGES = 1 << 18
FITS = pfn_range.NAMES
_BUCKETS = {"0-2": (1, 2), "2-4": (2, 4), "4-8": (4, 8), "8-32": (8, 32), "32-64": (32, 64), ">64": (64, 512)}
"""GiB; the last one is open in the source, 512 GiB is our bound."""


@dataclass(frozen=True)
class Churn:
    """Events in order of time: int64 (n, 3) machine, units (0: it leaves), node; and the time of each in hours."""

    events: np.ndarray
    hours: np.ndarray
    machines: int
    unit_pages: int


def vm_sizes(count: int, rng: np.random.Generator, column: str = "all Azure 2019") -> np.ndarray:
    """Memory of ``count`` machines in GiB: the published share of each bucket, log-uniform within a bucket."""
    table = read_table("azure_vm_memory")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    if column not in table.columns[1:]:
        raise WorkbenchError(f"column: {column!r} is not one of {', '.join(table.columns[1:])}")
    share = np.array([rows[bucket][column] for bucket in _BUCKETS], float)
    which = rng.choice(len(share), count, p=share / share.sum())
    low, high = np.array(list(_BUCKETS.values()), float)[which].T
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def generate(
    memory: int | str = "16 TiB",
    machines: int = 100_000,
    *,
    nodes: int = 8,
    unit: str = "2 MiB",
    fill: float = 0.85,
    seed: int = 0,
    column: str = "all Azure 2019",
) -> Churn:
    """A stream that keeps a host about ``fill`` full once it has filled up.

    The mean lifetime follows from Little's law: machines alive x mean size = ``fill`` x memory.
    """
    size = parse_bytes(memory, "memory")
    unit_pages = parse_bytes(unit, "unit") // PAGE_SIZE
    if machines <= 0 or not 0 < fill <= 2 or nodes <= 0:
        raise WorkbenchError(f"machines: {machines}, nodes: {nodes}, fill: {fill}; counts above 0 and a fill of 0 to 2")
    if unit_pages not in (1, 512, GIB_PAGES):
        raise WorkbenchError(f"unit: {unit!r} is not 4 KiB, 2 MiB or 1 GiB")
    rng = np.random.default_rng(seed)
    pages = np.ceil(vm_sizes(machines, rng, column) * GIB_PAGES / unit_pages).astype(np.int64)
    alive = fill * (size // PAGE_SIZE) / (pages.mean() * unit_pages)
    arrival = np.cumsum(rng.exponential(1.0, machines))  # one unit of time per arrival
    lifetime = rng.lognormal(0.0, 1.5, machines)
    lifetime *= alive / lifetime.mean()
    leave = arrival + lifetime
    when = np.concatenate((arrival, leave))
    order = np.argsort(when, kind="stable")
    machine = np.tile(np.arange(machines), 2)[order]
    units = np.concatenate((pages, np.zeros(machines, np.int64)))[order]
    node = np.tile(rng.integers(0, nodes, machines), 2)[order]
    # The trace covers 14 days; the last machines leave after its end.
    hours = when[order] * (14 * 24 / arrival[-1])
    return Churn(np.ascontiguousarray(np.stack((machine, units, node), axis=1)), hours, machines, unit_pages)


def serve(
    churn: Churn, memory: int | str = "16 TiB", nodes: int = 8, fits: tuple[str, ...] = FITS, samples: int = 200
) -> xr.Dataset:
    """Serve a stream with each fit; a Dataset over ``fit`` and ``sample`` with fragmentation as it develops.

    ``seconds`` is what this machine needed, compiled code warm.
    """
    size = parse_bytes(memory, "memory") // PAGE_SIZE
    results = [_serve(churn, size, nodes, fit, samples) for fit in fits]
    every = max(1, len(churn.events) // samples)
    taken = np.arange(samples) * every + every - 1
    names = ("free_pages", "largest_free_pages", "free_ranges", "usable_pages")
    variables: dict[str, Any] = {
        name: (
            ("fit", "sample"),
            np.array([r["samples"][:, k] for r in results]),
            {"units": "4 KiB pages" if "pages" in name else "1", "long_name": name.replace("_", " "), "basis": "counted"},
        )
        for k, name in enumerate(names)
    }
    for name, long_name in (
        ("arrivals", "machines that came"),
        ("refused", "machines turned away"),
        ("ranges_given", "ranges handed out"),
    ):
        variables[name] = (
            "fit",
            np.array([r[name] for r in results], np.int64),
            {"units": "1", "long_name": long_name, "basis": "counted"},
        )
    variables["seconds"] = (
        "fit",
        np.array([r["seconds"] for r in results]),
        {"units": "s", "long_name": "time to serve the stream", "basis": "modelled", "source": "measured on this machine"},
    )
    hours = churn.hours[np.minimum(taken, len(churn.hours) - 1)]
    return xr.Dataset(variables, {"fit": list(fits), "sample": taken, "hours": ("sample", hours)})


def hugetlb_refused(churn: Churn, memory: int | str = "16 TiB", nodes: int = 8) -> int:
    """Machines a hugetlb pool of the same units turns away: it counts free pages and nothing can fragment."""
    free = np.full(nodes, parse_bytes(memory, "memory") // PAGE_SIZE // nodes // churn.unit_pages)
    held: dict[int, np.ndarray] = {}
    refused = 0
    total = int(free.sum())
    for machine, units, node in churn.events.tolist():
        if units:
            if units > total:
                refused += 1
                continue
            given = np.zeros(nodes, np.int64)
            for k in range(nodes):
                at = (node + k) % nodes
                given[at] = min(units, int(free[at]))
                units -= int(given[at])
            free -= given
            held[machine] = given
        elif machine in held:
            free += held.pop(machine)
        total = int(free.sum())
    return refused


def _serve(churn: Churn, pages: int, nodes: int, fit: str, samples: int) -> dict[str, Any]:
    if fit not in FITS:
        raise WorkbenchError(f"fit: {fit!r} is not one of {', '.join(FITS)}")
    kind = FITS.index(fit)
    per_node = pages // nodes
    capacity, orders, rows = 1 << 15, max(1, per_node.bit_length()), 1 << 21
    buddy = kind == pfn_range.BUDDY
    start = np.zeros((nodes, 4 if buddy else capacity), np.int64)
    end = np.zeros_like(start)
    count = np.zeros(nodes, np.int64)
    blocks = np.zeros((nodes, orders, capacity if buddy else 4), np.int64)
    blocks_count = np.zeros((nodes, orders), np.int64)
    for node in range(nodes):
        if buddy:
            pfn_range.buddy_free(blocks, blocks_count, node, node * per_node, per_node)
        else:
            pfn_range.free(start, end, count, node, node * per_node, per_node)
    fallback = (np.arange(nodes)[:, None] + np.arange(nodes)) % nodes
    stack = np.append(np.arange(rows), rows)
    ranges = np.zeros((rows, 4), np.int64)
    first, vm_rows = np.full(churn.machines, -1), np.zeros(churn.machines, np.int64)
    table, counts = np.zeros((samples, 4), np.int64), np.zeros(4, np.int64)
    scratch = np.zeros((capacity, 2), np.int64)
    state = (fallback, kind, churn.unit_pages, start, end, count, blocks, blocks_count, ranges, first, vm_rows, stack)
    pfn_range.churn(churn.events[:0], *state, scratch, table[:0], counts)  # compiles
    begin = time.perf_counter()
    code = pfn_range.churn(churn.events, *state, scratch, table, counts)
    seconds = time.perf_counter() - begin
    if code != pfn_range.OK:
        raise WorkbenchError(f"churn: code {code}; more than {capacity} free ranges on a node or {rows} ranges in use")
    return {
        "samples": table, "arrivals": counts[0], "refused": counts[1], "ranges_given": counts[2], "seconds": seconds,
    }  # fmt: skip

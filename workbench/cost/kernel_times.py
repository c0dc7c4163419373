"""Times of kernel work on memory: clearing pages, initialising struct pages, setting up huge pages at boot.

One thread's time comes from published measurements on several machines and has a range that covers them. Several threads
divide the work, and wait longer for memory the busier they make it (the curves of the machine), until it is as fast as it
gets: clearing writes whole lines (read for ownership included where the instruction does not avoid it), a struct page is 64
bytes that are read and written back. On a remote node one thread is slower by the ratio of latencies at most, and many share
the link.

Times of SNP and TDX work (accepting pages, RMPUPDATE, PSMASH, encryption) are not here: no measurement of them was found
that says what it was measured on. All times are modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost import curves
from workbench.cost.machine import Machine, machine, sampled
from workbench.errors import WorkbenchError
from workbench.tracking.struct_pages import STRUCT_PAGE
from workbench.units import PAGE_ORDERS, PAGE_SIZE
from workbench.variables import KernelTimes

if TYPE_CHECKING:
    from workbench.topology.host import Host

CLEAR = {"4 KiB": "clear_page_4k", "2 MiB": "clear_page_2m", "1 GiB": "clear_page_1g"}
KEPT_BY_HVO = 64
"""struct pages of a huge page that are initialised where HVO leaves the rest to one shared page of vmemmap."""
KERNEL_SAMPLED = (*CLEAR.values(), "struct_page_init", "struct_page_bytes_moved", "ept_fault", "remote_wait")
_HALVINGS = 40
CLEAR_BYTES = 2.0
"""Bytes that memory moves for each byte cleared: read for ownership, and written back."""


def _rate_cap(host: Machine, node: int, source: int) -> float:
    """MB/s that CPUs of ``source`` write to memory of ``node`` at most, at equal reads and writes."""
    half = host.memory_shape.shape[1] // 2
    memory = host.bandwidth[node] * host.memory_shape[node, half]
    near, far = host.home[source], host.home[node]
    if near == far:
        return float(memory)
    return float(min(memory, host.link_bandwidth[near, far] * host.link_shape[near, far, half]))


def seconds(
    one: float, units: float, threads: int, moved: float, host: Machine, node: int, source: int, wait: float = 1.0
) -> float:
    """Seconds of ``units`` units of ``one`` ns and ``moved`` bytes each, by ``threads`` threads.

    ``one`` is what a unit takes one thread on memory that nobody else uses. With more of them each waits by as much longer as
    latency grows with the load they make together; the load at which both agree is found on the curve. ``wait`` is the part of
    what remote memory is later by that a unit waits for.
    """
    idle = float(host.latency[source, node])
    alone = one * (1.0 + wait * (idle / float(host.latency[:, node].min()) - 1.0))
    fastest = 1000.0 * moved / _rate_cap(host, node, source)
    slower = 1.0 + host.families[host.memory_family[node]].delays[len(curves.MIXES) // 2] / idle
    per_unit = alone / threads / np.interp(min(1.0, fastest / alone), curves.LOADS, slower)
    low, high = 0.0, 1.0  # of the load: threads take longer the higher it is, and make it by being fast
    for _ in range(_HALVINGS):
        load = (low + high) / 2
        low, high = (load, high) if load * per_unit * np.interp(load, curves.LOADS, slower) < fastest else (low, load)
    return float(units * fastest / high * 1e-9)


def kernel_times(
    host: Host,
    size: int,
    page: str = "1 GiB",
    *,
    threads: int = 1,
    node: int | None = None,
    source: int | None = None,
    hvo: bool = False,
    samples: int = 64,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Seconds of kernel work on ``size`` bytes in pages of one size, with their spread.

    Parameters
    ----------
    host : the host
    size : bytes
    page : page size, a name of :data:`workbench.units.PAGE_ORDERS`
    threads : that share the work, on CPUs of ``source``
    node, source : node ids of the memory and of the CPUs; the first with memory, and the nearest CPUs, if left out
    hvo : struct pages of huge pages that HVO frees are not initialised
    samples, seed : draws over the ranges of the parameters
    costs : parameter values instead of the registry's

    Returns a Dataset over ``sample`` (sample 0: the values themselves): ``clear``, and ``struct_pages``, which is also what
    setting up a pool of such pages at boot takes (pages are cleared when they are given out).
    """
    if page not in CLEAR:
        raise WorkbenchError(f"page: {page!r} is not one of {', '.join(CLEAR)}")
    cost_table.whole("samples", samples)
    if cost_table.whole("size", size) % (PAGE_SIZE << PAGE_ORDERS[page]):
        raise WorkbenchError(f"size: {size!r} bytes are not whole pages of {page}")
    cost_table.whole("threads", threads)
    machines, draws = (
        sampled(host, samples, seed, costs) if samples > 1 else (machine(host, costs).alone, [dict(costs or {})])
    )
    kernel = cost_table.sample(KERNEL_SAMPLED, samples, seed + 1)
    at = machines[0].index_of(node) if node is not None else int(np.argmax([n.memory_bytes > 0 for n in host.nodes]))
    with_cpus = machines[0].cpus > 0 if machines[0].cpus.any() else np.ones(machines[0].nodes, bool)
    near = np.where(with_cpus, machines[0].latency[:, at], np.inf)
    by = machines[0].index_of(source) if source is not None else int(near.argmin())
    small = size / PAGE_SIZE
    order = PAGE_ORDERS[page]
    initialised = small if not (hvo and order) else small / (1 << order) * KEPT_BY_HVO
    times = np.empty((2, samples))
    for k, (model, values) in enumerate(zip(machines, draws, strict=True)):

        def cost(name: str, k: int = k, values: Mapping[str, float] = values) -> float:
            return float((costs or {}).get(name, kernel[name][k]))

        wait = cost("remote_wait")
        times[0, k] = seconds(cost(CLEAR[page]), small, threads, CLEAR_BYTES * PAGE_SIZE, model, at, by, wait)
        moved = cost("struct_page_bytes_moved") * STRUCT_PAGE / 64.0
        times[1, k] = seconds(cost("struct_page_init"), initialised, threads, moved, model, at, by, wait)
    pick = slice(None) if samples > 1 else 0
    return results.make(
        KernelTimes,
        {"clear": times[0][pick], "struct_pages": times[1][pick]},
        {},
        provenance=results.provenance(
            command="cost.kernel_times.kernel_times", host=host, size=size, page=page, threads=threads, node=node,
            source=source, hvo=hvo, samples=samples, seed=seed, costs=costs,
        ),
        source=machines[0].source,
        attributes={"host": host.name, "page": page, "threads": threads},
    )  # fmt: skip

"""The guest's own view of NUMA: virtual nodes, their distances, and what a view that does not fit the host costs.

A guest places its data by what it is told. Each vCPU's data goes to the virtual node of the vCPU while there is room,
then along the guest's own zonelist (the same code as the host's, ``mm/page_alloc.c: build_zonelists``), which is built
from the virtual distances. Where those virtual nodes really lie is the host's business: :func:`cost` puts the two
together and asks :mod:`workbench.cost.traffic` what the vCPUs get.

Views:

``flat``        the guest sees one node and spreads its data over all of its memory
``no distances``  the guest sees its nodes, all equally far (what a VMM does that passes nodes without a SLIT)
``distances``   the guest sees its nodes with the host's distances
``permuted``    the guest sees nodes and distances, but its memory lies one node further than it is told
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost import traffic
from workbench.cost.machine import sampled
from workbench.errors import WorkbenchError
from workbench.variables import VirtualNodes

if TYPE_CHECKING:
    from workbench.scenario import Access
    from workbench.topology.host import Host

VIEWS = ("distances", "no distances", "flat", "permuted")
LOCAL, REMOTE = 10, 20
"""Distances Linux assumes without a SLIT: LOCAL_DISTANCE, REMOTE_DISTANCE (include/linux/topology.h)."""


@dataclass(frozen=True)
class Cell:
    """One virtual node: the host node its vCPUs run on and how many, its memory, and the data its vCPUs work on.

    memory, data : bytes
    """

    host_node: int
    vcpus: int
    memory: int
    data: int


def guest_placement(cells: Sequence[Cell], distances: np.ndarray) -> np.ndarray:
    """Where the guest puts each virtual node's data: float64 (cells, cells), rows sum to 1.

    Own node first, then the guest's zonelist; virtual nodes take turns in the order of their ids. Data that fits
    nowhere is an error.
    """
    from workbench.kernels import zonelist

    count = len(cells)
    order = np.empty((count, count), np.int64)
    zonelist.fallback_order(
        np.ascontiguousarray(distances, np.int64), np.ones(count, bool), np.zeros(count, bool),
        np.zeros(count, np.int64), order,
    )  # fmt: skip
    free = np.array([cell.memory for cell in cells], float)
    placed = np.zeros((count, count))
    left = np.array([cell.data for cell in cells], float)
    for rank in range(count):  # everybody's own node before anybody's fallback
        for me in range(count):
            target = order[me, rank]
            taken = min(left[me], free[target])
            placed[me, target] += taken
            free[target] -= taken
            left[me] -= taken
    if left.any():
        raise WorkbenchError(
            f"cells: {sum(c.data for c in cells)} bytes of data do not fit {sum(c.memory for c in cells)}"
        )
    total = placed.sum(axis=1, keepdims=True)
    return np.divide(placed, total, out=np.zeros_like(placed), where=total > 0)


def view_distances(view: str, host: Host, cells: Sequence[Cell]) -> np.ndarray:
    """Distances the guest is given under a view, int64 (cells, cells)."""
    if view not in VIEWS:
        raise WorkbenchError(f"view: {view!r} is not one of {', '.join(VIEWS)}")
    count = len(cells)
    if view == "no distances":
        return np.where(np.eye(count, dtype=bool), LOCAL, REMOTE).astype(np.int64)
    nodes = [host.index_of(cell.host_node) for cell in cells]
    out = np.asarray(host.distance_matrix)[np.ix_(nodes, nodes)].astype(np.int64)
    np.fill_diagonal(out, LOCAL)
    return out


def cost(
    host: Host,
    cells: Sequence[Cell],
    backing: np.ndarray | None = None,
    *,
    views: Sequence[str] = VIEWS,
    access: Access | Mapping[str, object] | str | None = None,
    samples: int | None = None,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Bandwidth and latency of every virtual node's vCPUs under several views.

    Parameters
    ----------
    host : the host
    cells : the guest's virtual nodes
    backing : float64 (cells, nodes), share of each virtual node's memory on each host node, for example
        :func:`backing_of` a result; each on its own host node if left out
    views : names from :data:`VIEWS`
    access : pattern of the vCPUs; streaming if left out
    samples : draws over the ranges of the parameters; with more than 1 the modelled variables get a ``sample`` dimension,
        of which sample 0 has the parameters' values; with 1 they are those values, and if left out they have ends
        (``latency_low``)
    seed : of the draws
    costs : parameter values instead of the registry's

    Returns a Dataset over ``view`` and ``cell``: ``bandwidth`` (MB/s), ``latency`` (ns), ``local_share`` (of the
    accesses), and ``slowdown`` (view), total bandwidth of the first view over this one's.
    """
    if not cells:
        raise WorkbenchError("cells: a guest has at least one virtual node")
    draws = cost_table.draws_of(samples)
    machines, chosen = (
        sampled(host, draws, seed, costs) if draws > 1 else (traffic.machine(host, costs).alone, [dict(costs or {})])
    )
    own = [machines[0].index_of(cell.host_node) for cell in cells]
    if backing is None:
        backing = np.eye(machines[0].nodes)[own]
    backing = np.asarray(backing, float)
    if backing.shape != (len(cells), machines[0].nodes):
        raise WorkbenchError(f"backing: {backing.shape} values for {len(cells)} cells and {machines[0].nodes} nodes")
    bandwidth, latency = np.empty((2, draws, len(views), len(cells)))
    local = np.empty((len(views), len(cells)))
    for row, view in enumerate(views):
        if view == "flat":
            size = np.array([cell.memory for cell in cells], float)
            placed = np.tile(size / size.sum(), (len(cells), 1))
        else:
            placed = guest_placement(cells, view_distances(view, host, cells))
        real = np.roll(backing, -1, axis=0) if view == "permuted" else backing
        shares = placed @ real
        local[row] = shares[np.arange(len(cells)), own]
        for draw, (machine, values) in enumerate(zip(machines, chosen, strict=True)):
            parts = [
                traffic.streams(machine, shares[k], {cell.host_node: float(cell.vcpus)}, access, costs=values)
                for k, cell in enumerate(cells)
            ]
            solution = traffic.solve(machine, traffic.together(parts))
            bandwidth[draw, row], latency[draw, row] = solution.bandwidth[0], solution.latency[0]
    total = bandwidth.sum(axis=2)
    every = {"bandwidth": bandwidth, "latency": latency, "slowdown": total[:, :1] / total}
    return results.make(
        VirtualNodes,
        {"local_share": local, **cost_table.presented(every, samples)},
        {"view": list(views), "cell": np.arange(len(cells))},
        provenance=results.provenance(
            command="studies.vnuma.cost",
            host=host,
            cells=cells,
            backing=backing,
            views=views,
            access=access,
            samples=samples,
            seed=seed,
            costs=costs,
        ),
        source=machines[0].source,
    )


def backing_of(dataset: xr.Dataset, cells: Sequence[Cell], file: str = "guest") -> np.ndarray:
    """Share of each virtual node's memory on each host node in a result: cells lie in the file one after another.

    Returns float64 (cells, nodes). Memory that is not present counts for nothing.
    """
    size = int(dataset["page_size"])
    edges = np.concatenate(([0], np.cumsum([cell.memory // size for cell in cells]))).astype(np.int64)
    counts = results.node_counts(dataset, file, edges).astype(float)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)

"""What a placement costs the guest: achieved bandwidth and loaded latency, modelled.

A :class:`Machine` holds what the model needs of a host: idle latency and link bandwidth for every pair of nodes,
bandwidth of every node, and which measured bandwidth-latency curve each follows. Figures the host brings along (HMAT
access class, or a benchmark written into its file) are taken as they are; all others are estimated from kinds of
memory and distances by the parameters of :mod:`workbench.costs`, and say so.

The accesses of a guest are *streams*, one for each node that runs vCPUs. Where its pages lie decides in which
proportions a stream visits nodes and links; :mod:`workbench.kernels.traffic` finds rates and latencies that agree with the
curves and share capacities max-min fairly.

Everything here is modelled: it carries a source, and ``samples`` runs it over the ranges of its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import yaml

from workbench import costs as cost_table
from workbench import results
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.variables import AccessCost, Weights

if TYPE_CHECKING:
    from workbench.scenario import Access
    from workbench.topology.host import Host

CURVES = ("dram", "hbm", "cxl", "link")
"""Rows of the curve tables."""
CURVE_OF_KIND = {"dram": 0, "hbm": 1, "cxl": 2, "nvm": 2, "gpu": 1}
PATTERNS = ("uniform", "zipf", "streaming", "pointer_chasing")
LINE_BYTES = 64
TOLERANCE = 1e-6
"""Greatest change of any node's or link's load, as part of its capacity, in the last step of the fixed point."""
MAX_ITERATIONS = 500
ZIPF_EXPONENT = 0.99
"""Exponent of the zipf pattern (that of the YCSB benchmark)."""
SAMPLED = (
    "dram_latency", "dram_bandwidth", "hbm_latency", "hbm_bandwidth", "cxl_latency", "cxl_bandwidth", "gpu_latency",
    "gpu_bandwidth", "remote_latency_ratio", "remote_bandwidth_ratio", "link_ports", "write_weight",
    "lines_streaming", "lines_random", "cache_bytes", "nvm_latency", "nvm_bandwidth",
)  # fmt: skip
"""Parameters that ``samples`` varies."""


@functools.cache
def curve_tables() -> tuple[np.ndarray, np.ndarray]:
    """Loads (part of the highest measured bandwidth) and delays (ns over idle), float64 (curves, points) each.

    The part of a measured curve beyond its highest bandwidth, where more requests only wait longer, becomes a step at
    load 1. Shorter curves are padded with their last point.
    """
    document = yaml.safe_load(datasets_path("curves", "bandwidth-latency.yaml").read_text(encoding="utf-8"))
    by_use = {entry["use"]: np.array(entry["points"], float) for entry in document["curves"].values()}
    tables = []
    for use in CURVES:
        points = by_use[use]
        rising = points[: int(points[:, 0].argmax()) + 1]
        load = np.concatenate(([0.0], rising[:, 0] / rising[-1, 0], [1.0]))
        delay = np.concatenate(([rising[0, 1]], rising[:, 1], [points[:, 1].max()])) - rising[0, 1]
        tables.append((load, np.maximum.accumulate(delay)))
    width = max(len(load) for load, _ in tables)
    pad = [np.pad(np.stack(table), ((0, 0), (0, width - len(table[0]))), mode="edge") for table in tables]
    return np.stack([p[0] for p in pad]), np.stack([p[1] for p in pad])


@functools.cache
def machine_figures() -> dict[str, dict[str, Any]]:
    """Documented figures of machines in ``datasets/machines`` by their name; see the file."""
    text = datasets_path("curves", "machine-figures.yaml").read_text(encoding="utf-8")
    figures: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return figures


def peak_delay(kind: str) -> float:
    """ns over the idle latency at the highest bandwidth measured on memory of this kind (or ``link``)."""
    loads, delays = curve_tables()
    row = CURVES.index(kind)
    return float(delays[row, int(np.flatnonzero(loads[row] == 1.0)[0])])


@dataclass(frozen=True)
class Machine:
    """A host as the cost model sees it. Indices are positions in the host's node list.

    node_ids : int64 (nodes,); kinds : kind of memory of each node
    bandwidth : float64 (nodes,), MB/s a node's memory delivers
    latency : float64 (nodes, nodes), idle ns from CPUs of the row to memory of the column
    link_bandwidth : float64 (nodes, nodes), MB/s between home nodes
    port_bandwidth : float64 (nodes,), MB/s of all links of a home node together
    home : int64 (nodes,), node whose links lead to the memory
    write_weight : float64 (nodes,), bandwidth a written byte takes, in read bytes
    cpus : int64 (nodes,), CPUs of each node
    measured : bool (nodes,), whether bandwidth and latency of a node's memory come with the host
    source : where the figures come from
    """

    node_ids: np.ndarray
    kinds: tuple[str, ...]
    bandwidth: np.ndarray
    latency: np.ndarray
    link_bandwidth: np.ndarray
    port_bandwidth: np.ndarray
    home: np.ndarray
    write_weight: np.ndarray
    cpus: np.ndarray
    measured: np.ndarray
    source: str

    @property
    def nodes(self) -> int:
        return len(self.node_ids)

    @property
    def estimated(self) -> bool:
        """Whether any node's figures are estimates."""
        return not bool(self.measured.all())

    def index_of(self, node: int) -> int:
        """Position of a node id."""
        found = np.flatnonzero(self.node_ids == node)
        if len(found) == 0:
            raise WorkbenchError(f"node: {node} is not a node of this host ({', '.join(map(str, self.node_ids))})")
        return int(found[0])

    def capacities(self) -> np.ndarray:
        """float64 (resources,): memory, links and ports in the order of :mod:`workbench.kernels.traffic`."""
        return np.concatenate((self.bandwidth, self.link_bandwidth.ravel(), self.port_bandwidth))

    def curves(self) -> np.ndarray:
        """int64 (resources,): row of the curve tables; ports share the links' delay, so they have none of their own."""
        memory = np.array([CURVE_OF_KIND[kind] for kind in self.kinds], np.int64)
        links = np.full(self.nodes**2, CURVES.index("link"), np.int64)
        return np.concatenate((memory, links, np.full(self.nodes, len(CURVES), np.int64)))


def machine(host: Host, costs: Mapping[str, float] | None = None) -> Machine:
    """The cost model's view of a host: its own figures where it has them, estimates elsewhere.

    Parameters
    ----------
    host : the host
    costs : values instead of those of :data:`workbench.costs.COSTS`, by name

    A node's latency from the nearest CPUs is that of its kind of memory. Each unit of SLIT distance beyond the nearest
    adds what it adds on the machine whose remote curve was measured, and link bandwidth falls with it down to the
    measured remote bandwidth. Both are estimates.
    """

    def cost(name: str) -> float:
        return cost_table.value(name, costs)

    distance = np.asarray(host.distance_matrix, float)
    count = len(host.nodes)
    cpus = np.array([len(node.cpus) for node in host.nodes], np.int64)
    kinds = tuple(node.kind for node in host.nodes)
    with_cpus = np.flatnonzero(cpus > 0) if cpus.any() else np.arange(count)
    home = np.arange(count)
    for index in range(count):
        if index not in with_cpus:
            home[index] = with_cpus[int(distance[with_cpus, index].argmin())]
    nearest = distance[with_cpus].min(axis=0)
    excess = np.maximum(distance - nearest, 0.0)
    beyond = cost("reference_distance") - 10.0
    step = cost("dram_latency") * (cost("remote_latency_ratio") - 1.0) / beyond
    bandwidth = np.array([cost(f"{kind}_bandwidth") for kind in kinds])
    latency = np.array([cost(f"{kind}_latency") for kind in kinds]) + excess * step
    write_weight = np.full(count, cost("write_weight"))
    measured = np.zeros(count, bool)

    ids = {node.id: index for index, node in enumerate(host.nodes)}
    given = [(ids[a.initiator], ids[a.target], a) for a in host.access or ()]
    for target in range(count):
        mine = [(source, a) for source, where, a in given if where == target and a.read_bandwidth]
        if not mine:
            continue
        source, best = max(mine, key=lambda pair: (pair[1].read_bandwidth, -distance[pair[0], target]))
        bandwidth[target] = best.read_bandwidth
        if best.write_bandwidth:
            write_weight[target] = best.read_bandwidth / best.write_bandwidth
        if best.read_latency:
            latency[:, target] = best.read_latency + excess[:, target] * step
            measured[target] = True
    figures = machine_figures().get(host.name, {})
    for index, kind in enumerate(kinds):
        if not measured[index] and kind in figures.get("node_bandwidth", {}):
            bandwidth[index] = figures["node_bandwidth"][kind]
        if not measured[index] and kind in figures.get("node_latency", {}):
            latency[:, index] = figures["node_latency"][kind] + excess[:, index] * step
    dram = [bandwidth[i] for i in range(count) if kinds[i] == "dram"] or [cost("dram_bandwidth")]
    reference = float(np.max(dram))
    ratio = cost("remote_bandwidth_ratio")
    between = distance[:, home] - 10.0
    link = reference * ratio ** np.clip(between / beyond, 0.0, 1.0)
    for slit, speed in figures.get("link_bandwidth", {}).items():
        link[(distance[:, home] == float(slit)) & ~np.eye(count, dtype=bool)] = speed
    port = np.full(count, figures.get("port_bandwidth", reference * ratio * cost("link_ports")), float)
    for source, target, a in given:
        if a.read_latency:
            latency[source, target] = a.read_latency
        if a.read_bandwidth and home[source] != home[target] and kinds[target] == "dram":
            link[home[source], home[target]] = a.read_bandwidth
    port = np.maximum(port, np.where(np.eye(count, dtype=bool), 0.0, link).max(axis=1, initial=0.0))
    unknown = sorted({kinds[i] for i in range(count) if not measured[i]})
    source = (
        f"host {host.name}"
        + (f" ({figures['source']})" if figures else "")
        + (f"; estimate for {', '.join(unknown)} nodes from kind and distance (workbench.costs)" if unknown else "")
    )
    ids_array = np.array([node.id for node in host.nodes], np.int64)
    return Machine(
        ids_array, kinds, bandwidth, latency, link, port, home, write_weight, cpus, measured, source
    )  # fmt: skip


def with_figures(
    base: Machine,
    bandwidth: Mapping[int, float] | None = None,
    latency: Mapping[int, float] | None = None,
    source: str = "",
) -> Machine:
    """The machine with measured figures for some nodes: node id -> MB/s, node id -> idle ns from the nearest CPUs."""
    speeds, delays, measured = base.bandwidth.copy(), base.latency.copy(), base.measured.copy()
    for node, value in (bandwidth or {}).items():
        speeds[base.index_of(node)] = value
        measured[base.index_of(node)] = True
    for node, value in (latency or {}).items():
        column = delays[:, base.index_of(node)]
        column += value - column.min()
    return replace(base, bandwidth=speeds, latency=delays, measured=measured, source=source or base.source)


# ------------------------------------------------------------------------------------------------- accesses


def access_pattern(access: Access | Mapping[str, object] | str | None) -> Access:
    """An access operation from itself, from its fields, or from the name of a pattern (None: streaming)."""
    from workbench.scenario import Access

    if isinstance(access, Access):
        return access
    given = {"pattern": access or "streaming"} if access is None or isinstance(access, str) else dict(access)
    if given.get("pattern", "uniform") not in PATTERNS:
        raise WorkbenchError(f"access.pattern: {given['pattern']!r} is not one of {', '.join(PATTERNS)}")
    try:
        return Access.model_validate(given)
    except ValueError as error:
        raise WorkbenchError(f"access: {str(error).splitlines()[-2].strip()}") from error


def lines_in_flight(pattern: str, costs: Mapping[str, float] | None = None) -> float:
    """Cache lines one vCPU keeps in flight under a pattern."""
    name = {"streaming": "lines_streaming", "pointer_chasing": "lines_pointer_chasing"}.get(pattern, "lines_random")
    return cost_table.value(name, costs)


def memory_shares(
    dataset: xr.Dataset,
    access: Access | Mapping[str, object] | str | None = None,
    *,
    costs: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, float]:
    """Share of a file's accesses that each node serves, and the part of all accesses that reaches memory at all.

    Parameters
    ----------
    dataset : a result of :func:`workbench.simulate`
    access : which file, which range, which pattern
    Returns float64 (nodes,), which sums to 1 or, where no page is present, to 0; and a number between 0 and 1

    Uniform, streaming and pointer-chasing accesses touch every page alike. Under zipf the first page of the range is
    the hottest, and the hottest pages, as many as the caches hold, do not reach memory. Uniform accesses hit the caches
    for the part of the range they hold; streaming never does, because it evicts what it will need.
    """
    from workbench import results

    access = access_pattern(access)
    if access.file not in dataset["file"].values:
        raise WorkbenchError(f"access.file: {access.file!r} is not in this result")
    pages = int(dataset["file_pages"].sel(file=access.file))

    def count(edges: np.ndarray) -> np.ndarray:
        return results.node_counts(dataset, access.file, edges)

    return shares_of(count, pages, int(dataset["page_size"]), access, costs)


def shares_of(
    count: Callable[[np.ndarray], np.ndarray],
    pages: int,
    page_size: int,
    access: Access,
    costs: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, float]:
    """:func:`memory_shares` of a file of ``pages`` folios; ``count(edges)`` gives folios per node between edges."""
    from workbench.kernels import translation

    first = min(pages, access.offset // page_size)
    last = pages if access.length is None else min(pages, -(-(access.offset + access.length) // page_size))
    if first >= last:
        return count(np.array([first, first], np.int64))[0] * 0.0, 0.0
    cached = cost_table.value("cache_bytes", costs) // page_size
    exponent = ZIPF_EXPONENT if access.pattern == "zipf" else 0.0
    edges = np.array([first, last], np.int64)
    if exponent:
        # Pages of one bucket count alike; buckets grow with rank, so the error in the weight stays below 5 %.
        near = np.arange(min(64, last - first))
        far = np.unique(np.geomspace(64, max(65, last - first), 400).astype(np.int64))
        edges = np.unique(np.concatenate((near, far, [min(int(cached), last - first), last - first])))
        edges = edges[edges <= last - first] + first
    counts = count(edges).astype(float)
    weight = np.empty(len(edges) - 1)
    kept = np.empty(len(edges) - 1)
    for row in range(len(weight)):
        begin, end = float(edges[row] - first), float(edges[row + 1] - first)
        weight[row] = (translation.harmonic(end, exponent) - translation.harmonic(begin, exponent)) / (end - begin)
        kept[row] = 0.0 if exponent and end <= cached else weight[row]
    everything = float((counts * weight[:, None]).sum())
    share = (counts * kept[:, None]).sum(axis=0)
    total = float(share.sum())
    reached = total / everything if everything > 0 else 0.0
    if not exponent and access.pattern != "streaming" and everything > 0:
        reached = max(0.0, 1.0 - cached / float(counts.sum()))
    return (share / total if total > 0 else share), reached


def initiators_of(access: Access, vcpus: Mapping[int, float]) -> dict[int, float]:
    """vCPUs per node that take part in an access."""
    if not access.initiators:
        return dict(vcpus)
    from workbench.policy import parse_nodes

    mask = parse_nodes(access.initiators)
    asked = [node for node in range(mask.bit_length()) if mask >> node & 1]
    missing = [node for node in asked if node not in vcpus]
    if missing:
        raise WorkbenchError(f"access.initiators: node {missing[0]} runs no vCPU (vCPUs run on {sorted(vcpus)})")
    return {node: vcpus[node] for node in asked}


# ------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Streams:
    """Streams to be solved together: one row per initiator and access operation.

    shares : float64 (..., streams, nodes); initiator : int64 (streams,), node index; vcpus : float64 (streams,)
    window : float64 (streams,), bytes in flight; wanted : float64 (streams,), MB/s at most
    write_fraction, extra_latency : float64 (streams,)
    """

    shares: np.ndarray
    initiator: np.ndarray
    vcpus: np.ndarray
    window: np.ndarray
    wanted: np.ndarray
    write_fraction: np.ndarray
    extra_latency: np.ndarray


@dataclass(frozen=True)
class Solution:
    """Rates and latencies of streams, leading dimension placements.

    bandwidth, latency, idle_latency : (placements, streams), MB/s and ns
    node_used, node_load : (placements, nodes), MB/s and part of capacity
    iterations : (placements,)
    """

    bandwidth: np.ndarray
    latency: np.ndarray
    idle_latency: np.ndarray
    node_used: np.ndarray
    node_load: np.ndarray
    link_load: np.ndarray
    iterations: np.ndarray


def streams(
    host: Machine,
    shares: np.ndarray,
    vcpus: Mapping[int, float],
    access: Access | Mapping[str, object] | str | None = None,
    *,
    costs: Mapping[str, float] | None = None,
    extra_latency: float = 0.0,
) -> Streams:
    """Streams of one access pattern: every vCPU node touches memory in the same proportions.

    Parameters
    ----------
    shares : float64 (nodes,) or (placements, nodes), share of the accesses each node serves
    vcpus : node id -> number of vCPUs there
    extra_latency : ns per access besides memory, for page walks
    """
    access = access_pattern(access)
    if not vcpus:
        raise WorkbenchError("vcpus: no node runs a vCPU")
    initiator = np.array([host.index_of(node) for node in vcpus], np.int64)
    number = np.array(list(vcpus.values()), float)
    if (number <= 0).any():
        raise WorkbenchError(f"vcpus: {min(vcpus.values())!r} vCPUs on a node; counts are above 0")
    count = len(initiator)
    shares = np.atleast_2d(np.asarray(shares, float))
    if shares.shape[-1] != host.nodes:
        raise WorkbenchError(f"shares: {shares.shape[-1]} values for {host.nodes} nodes")
    return Streams(
        np.repeat(shares[:, None, :], count, axis=1),
        initiator,
        number,
        number * lines_in_flight(access.pattern, costs) * LINE_BYTES,
        np.full(count, np.inf if access.demand_mbps is None else access.demand_mbps),
        np.full(count, access.write_fraction),
        np.full(count, extra_latency),
    )


def together(parts: Sequence[Streams]) -> Streams:
    """Streams of several accesses that run at the same time."""
    return Streams(
        *(
            np.concatenate([getattr(part, f.name) for part in parts], axis=1 if f.name == "shares" else 0)
            for f in fields(Streams)
        )
    )


def solve(host: Machine, demand: Streams) -> Solution:
    """Rates and latencies of streams that run at the same time."""
    from workbench.kernels import traffic

    loads, delays = curve_tables()
    # A last row without delay, for ports.
    loads = np.vstack((loads, np.linspace(0.0, 1.0, loads.shape[1])))
    delays = np.vstack((delays, np.zeros(delays.shape[1])))
    capacity = host.capacities()
    rate, latency, idle, used, iterations = traffic.solve_placements(
        np.ascontiguousarray(demand.shares, float), demand.initiator, host.home, host.latency, host.write_weight,
        demand.write_fraction, demand.extra_latency, capacity, host.curves(), loads, delays, demand.window,
        demand.wanted, demand.vcpus, TOLERANCE, MAX_ITERATIONS,
    )  # fmt: skip
    n = host.nodes
    with np.errstate(divide="ignore", invalid="ignore"):
        load = np.where(capacity > 0, used / capacity, 0.0)
    return Solution(
        rate, latency, idle, used[:, :n], load[:, :n], load[:, n : n + n * n].reshape(-1, n, n), iterations
    )  # fmt: skip


def sampled_machines(
    host: Host, samples: int, seed: int = 0, costs: Mapping[str, float] | None = None
) -> tuple[list[Machine], list[dict[str, float]]]:
    """The machine under ``samples`` draws of the parameters (sample 0: their values), and the draws."""
    draws = cost_table.sample(SAMPLED, samples, seed)
    chosen = [{**{name: float(values[k]) for name, values in draws.items()}, **(costs or {})} for k in range(samples)]
    return [machine(host, values) for values in chosen], chosen


def access_cost(
    dataset: xr.Dataset,
    host: Host,
    access: Access | Mapping[str, object] | str | None = None,
    *,
    vcpus: Mapping[int, float] | None = None,
    samples: int = 1,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
    extra_latency: float = 0.0,
) -> xr.Dataset:
    """Bandwidth and latency that each vCPU node gets from the placement in a result, for one access pattern.

    Parameters
    ----------
    dataset : a result of :func:`workbench.simulate`
    host : its host
    access : pattern, range, write fraction, initiators; a name of a pattern will do
    vcpus : node id -> vCPUs there; those of the guest if left out
    samples : draws over the ranges of the parameters; with more than 1 the variables get a ``sample`` dimension
    seed : of the draws
    costs : parameter values instead of the registry's
    extra_latency : ns per access besides memory, for example page walks

    Returns a Dataset with ``bandwidth``, ``latency``, ``idle_latency`` (initiator), ``node_share``, ``node_used`` and
    ``node_load`` (node) and ``memory_fraction``, all ``modelled``.
    """
    access = access_pattern(access)
    if vcpus is None:
        found, number = np.unique(dataset["vcpu_node"].values, return_counts=True)
        vcpus = {int(node): float(n) for node, n in zip(found, number, strict=True)}
    vcpus = initiators_of(access, vcpus)
    if samples > 1:
        machines, chosen = sampled_machines(host, samples, seed, costs)
    else:
        machines, chosen = [machine(host, costs)], [dict(costs or {})]
    share, reached, solutions = [], [], []
    for model, values in zip(machines, chosen, strict=True):
        if not share or access.pattern == "zipf":
            nodes, part = memory_shares(dataset, access, costs=values)
        share.append(nodes)
        reached.append(part)
        demand = streams(model, nodes, vcpus, access, costs=values, extra_latency=extra_latency)
        solutions.append(solve(model, demand))
    provenance = results.provenance(
        command="cost.traffic.access_cost", dataset=dataset, host=host, access=access, vcpus=vcpus, samples=samples,
        seed=seed, costs=costs, extra_latency=extra_latency,
    )  # fmt: skip
    return _cost_dataset(machines[0], list(vcpus), solutions, np.array(share), np.array(reached), samples, provenance)


def _cost_dataset(
    model: Machine,
    initiators: list[int],
    solutions: list[Solution],
    share: np.ndarray,
    reached: np.ndarray,
    samples: int,
    provenance: str,
) -> xr.Dataset:
    pick = slice(None) if samples > 1 else 0
    values = {
        name: np.concatenate([getattr(solution, name) for solution in solutions])[pick]
        for name in ("bandwidth", "latency", "idle_latency", "node_used", "node_load")
    }
    return results.make(
        AccessCost,
        values | {"node_share": share[pick], "memory_fraction": reached[pick]},
        {"initiator": initiators, "node": model.node_ids},
        provenance=provenance,
        source=model.source,
        attributes={"estimated": int(model.estimated)},
    )


# ----------------------------------------------------------------------------------------------------- weights


def automatic_weights(host: Host | Machine) -> np.ndarray:
    """The kernel's automatic interleave weights, int64 (nodes,), from the bandwidth of each node.

    A :class:`Host` counts as the kernel sees it: only nodes with an HMAT access class have a bandwidth, and without any
    the weights are all 1. A :class:`Machine` counts with the model's bandwidths, estimates included.
    """
    from workbench.kernels import mempolicy

    if isinstance(host, Machine):
        bandwidth = np.round(host.bandwidth).astype(np.int64)
    else:
        ids = {node.id: index for index, node in enumerate(host.nodes)}
        bandwidth = np.zeros(len(host.nodes), np.int64)
        for a in host.access or ():
            best = min(a.read_bandwidth or 0, a.write_bandwidth or a.read_bandwidth or 0)
            bandwidth[ids[a.target]] = max(bandwidth[ids[a.target]], int(best))
    out = np.ones(len(bandwidth), np.int64)
    if bandwidth.any():
        mempolicy.auto_weights(bandwidth, np.ones(len(bandwidth), bool), out)
    return out


def _totals(
    model: Machine, shares: np.ndarray, vcpus: Mapping[int, float], access: Access, costs: Mapping[str, float] | None
) -> np.ndarray:
    """What is to be large, for each row of shares: MB/s of all streams; for pointer chasing, 1 / mean latency."""
    solution = solve(model, streams(model, shares, vcpus, access, costs=costs))
    if access.pattern == "pointer_chasing":
        number = np.array(list(vcpus.values()), float)
        return np.asarray(number.sum() / (solution.latency @ number))
    return np.asarray(solution.bandwidth.sum(axis=1))


def _separate_shares(
    model: Machine, allowed: np.ndarray, vcpus: Mapping[int, float], access: Access, costs: Mapping[str, float] | None
) -> np.ndarray:
    """Shares if every node could be used at its own speed: what one stream for each vCPU node and target takes.

    Returns float64 (2, nodes): with all bytes in flight for every target, and divided among them.
    """
    targets = np.flatnonzero(allowed)
    out = []
    for part in (1.0, 1.0 / len(targets)):
        few = {node: number * part for node, number in vcpus.items()}
        flows = [streams(model, row, few, access, costs=costs) for row in np.eye(model.nodes)[targets]]
        out.append(solve(model, together(flows)).node_used[0])
    used = np.array(out)
    return used / used.sum(axis=1, keepdims=True)


def _best_shares(
    model: Machine,
    starts: np.ndarray,
    allowed: np.ndarray,
    vcpus: Mapping[int, float],
    access: Access,
    costs: Mapping[str, float] | None,
) -> np.ndarray:
    """Shares with the greatest total bandwidth found by changing one node's share at a time, from several starts."""
    totals = _totals(model, starts, vcpus, access, costs)
    best, best_total = starts[int(totals.argmax())], float(totals.max())
    nodes = np.flatnonzero(allowed)
    # Many nodes start from a good guess and take few rounds: a round costs four solutions for each node.
    for factor in (4.0, 2.0, 1.3, 1.1, 1.03, 1.01):
        for _ in range(60 if len(nodes) <= 16 else 6):
            moves = []
            for node in nodes:
                for value in (best[node] * factor, best[node] / factor, 0.0, 1.0 / len(nodes)):
                    moved = best.copy()
                    moved[node] = value
                    if moved.sum() > 0:
                        moves.append(moved / moved.sum())
            totals = _totals(model, np.array(moves), vcpus, access, costs)
            if totals.max() <= best_total * (1 + 2e-4):
                break
            best, best_total = moves[int(totals.argmax())], float(totals.max())
    return best


def best_weights(
    host: Host | Machine,
    access: Access | Mapping[str, object] | str | None = None,
    *,
    nodes: Sequence[int] | None = None,
    vcpus: Mapping[int, float] | None = None,
    costs: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Interleave weights that give the most bandwidth, beside the kernel's automatic ones, plain interleave and local.

    Parameters
    ----------
    host : the host, or a :class:`Machine` with measured figures
    access : pattern of the guest; streaming if left out
    nodes : nodes the policy may use; all if left out
    vcpus : node id -> vCPUs; one for every CPU of the host if left out
    costs : parameter values instead of the registry's

    Returns a Dataset over ``policy`` (optimum, automatic, interleave, local) and ``node``: ``weight`` (0: not in the
    nodemask), ``bandwidth`` in MB/s of all vCPUs together and ``latency`` in ns, averaged over vCPUs. The optimum is
    found by search; its weights are the smallest whole numbers within 0.5 % of it. For pointer chasing, which waits
    for every access, the least mean latency is sought instead of the most bandwidth.
    """
    access = access_pattern(access)
    model = host if isinstance(host, Machine) else machine(host, costs)
    if vcpus is None:
        vcpus = {int(n): float(c) for n, c in zip(model.node_ids, model.cpus, strict=True) if c > 0}
    allowed = np.zeros(model.nodes, bool)
    allowed[[model.index_of(node) for node in (model.node_ids if nodes is None else nodes)]] = True
    automatic = automatic_weights(host) * allowed
    from_estimates = not isinstance(host, Machine) and not any(a.read_bandwidth for a in host.access or ())
    if from_estimates:
        automatic = automatic_weights(model) * allowed
    local = np.zeros(model.nodes)
    for node, number in vcpus.items():
        near = np.where(allowed, model.latency[model.index_of(node)], np.inf)
        local[int(near.argmin())] += number
    starts = np.array([automatic, allowed, local, np.where(allowed, model.bandwidth, 0.0)], float)
    starts /= starts.sum(axis=1, keepdims=True)
    starts = np.vstack((starts, _separate_shares(model, allowed, vcpus, access, costs)))
    best = _best_shares(model, starts, allowed, vcpus, access, costs)
    candidates = []
    for largest in range(1, 65):
        weight = np.round(best / best.max() * largest)
        candidates.append(np.where((weight == 0) & (best > 0.002), 1.0, weight))
    whole = np.array(candidates)
    totals = _totals(model, whole / whole.sum(axis=1, keepdims=True), vcpus, access, costs)
    good = np.flatnonzero(totals >= totals.max() * 0.995)
    optimum = whole[good[whole[good].sum(axis=1).argmin()]].astype(np.int64)
    optimum //= np.gcd.reduce(optimum[optimum > 0])
    weights = np.array([optimum, automatic, allowed.astype(np.int64), np.ceil(local).astype(np.int64)])
    solution = solve(model, streams(model, weights / weights.sum(axis=1, keepdims=True), vcpus, access, costs=costs))
    number = np.array(list(vcpus.values()))
    return results.make(
        Weights,
        {
            "weight": weights,
            "bandwidth": solution.bandwidth.sum(axis=1),
            "latency": solution.latency @ number / number.sum(),
        },
        {"policy": ["optimum", "automatic", "interleave", "local"], "node": model.node_ids},
        provenance=results.provenance(
            command="cost.traffic.best_weights", host=host, access=access, nodes=nodes, vcpus=vcpus, costs=costs
        ),
        source=model.source,
        attributes={
            "automatic_from": "estimated bandwidth; the host reports none, so its kernel keeps 1"
            if from_estimates
            else model.source,
            "pattern": access.pattern,
        },
    )

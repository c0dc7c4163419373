"""What a placement costs the guest: achieved bandwidth and loaded latency, modelled.

A :class:`~workbench.cost.machine.Machine` holds what the model needs of a host. The accesses of a guest are *streams*,
one for each node that runs vCPUs. Where its pages lie decides in which proportions a stream visits nodes and links, and
where its page tables lie does the same for page walks; :mod:`workbench.kernels.host_traffic` finds rates and latencies
that agree with the curves and share capacities max-min fairly.

Bandwidth is memory traffic as the benchmarks behind the curves count it: reads and writes, ``write_fraction`` the part
that is written. An ordinary store makes two transfers, a read for ownership and a write-back, so a loop that only stores
has a write fraction of 0.5. Page-table references take their part of the memory and are not in ``bandwidth``.

Everything here is modelled: it carries a source, and ``samples`` runs it over the ranges of its parameters.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from pydantic import ValidationError

from workbench import costs as cost_table
from workbench import results
from workbench.cost import curves
from workbench.cost.machine import LINE_BYTES, Draws, Machine, machine, sampled
from workbench.errors import WorkbenchError
from workbench.validation import first_line
from workbench.variables import AccessCost

if TYPE_CHECKING:
    from workbench.cost.profile import Profile
    from workbench.scenario import Access
    from workbench.topology.host import Host

PATTERNS = ("uniform", "zipf", "streaming", "pointer_chasing")
LINES = dict.fromkeys(PATTERNS, "lines_random") | {
    "streaming": "lines_streaming", "pointer_chasing": "lines_pointer_chasing",
}  # fmt: skip
"""Parameter that says how many cache lines one vCPU keeps in flight, by pattern."""
TOLERANCE = 1e-6
"""Greatest change of any node's or link's load, as part of its capacity, in the last step of the fixed point."""
MAX_ITERATIONS = 500
MAX_PASSES = 60
"""Solutions of the fixed point until mixes of reads and writes and the waits in shared queues have settled."""
MANY_STREAMS = 256
"""Streams from which on it is looked whether some are alike: to look takes as long as to solve fewer."""
ZIPF_EXPONENT = 0.99
"""Exponent of the zipf pattern (that of the YCSB benchmark)."""


# ------------------------------------------------------------------------------------------------- accesses


def access_pattern(access: Access | Mapping[str, object] | str | None) -> Access:
    """An access operation from itself, from its fields, or from the name of a pattern (None: streaming)."""
    from workbench.scenario import Access

    if isinstance(access, Access):
        return access
    if not (access is None or isinstance(access, str | Mapping)):
        raise WorkbenchError(f"access: {repr(access)[:60]} is neither the name of a pattern nor fields of an access")
    given = {"pattern": access} if isinstance(access, str) else dict(access or {"pattern": "streaming"})
    if given.get("pattern", "uniform") not in PATTERNS:
        raise WorkbenchError(f"access.pattern: {repr(given['pattern'])[:60]} is not one of {', '.join(PATTERNS)}")
    try:
        return Access.model_validate(given)
    except ValidationError as error:
        raise WorkbenchError(first_line(error, Access, "access")) from None


def lines_in_flight(host: Machine, pattern: str, costs: Mapping[str, float] | None = None) -> float:
    """Cache lines one vCPU keeps in flight under a pattern."""
    name = LINES[pattern]
    if costs is not None and name in costs:
        return cost_table.value(name, costs)
    return {"streaming": host.lines_streaming, "pointer_chasing": 1.0}.get(pattern, host.lines_random)


def lines_drawn(hosts: Draws, pattern: str, chosen: Sequence[Mapping[str, float]]) -> np.ndarray:
    """:func:`lines_in_flight` of every draw, float64 (draws,), with the parameters that each has."""
    own = np.broadcast_to(lines_in_flight(hosts, pattern), len(hosts)).tolist()
    return np.array([values.get(LINES[pattern], one) for values, one in zip(chosen, own, strict=True)], float)


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
    for the part of the range they hold; streaming never does, because it evicts what it will need. Where all hits, rates
    and latencies are those that accesses would get that did not.
    """
    cache = cost_table.value("cache_bytes", costs)
    share, reached = reach(dataset, access_pattern(access), cache).of(np.array([cache]))
    return share[0], float(reached[0])


@dataclass(frozen=True)
class Reach:
    """What an access touches, from which :meth:`of` says what of it reaches memory beside caches of some size.

    edges : float64 (buckets + 1,), folios from the first that is touched, the hottest under zipf
    heat : float64 (buckets + 1,), sum of the weights of all folios before each edge
    counts : float64 (buckets, nodes), folios that are present
    """

    edges: np.ndarray
    heat: np.ndarray
    counts: np.ndarray
    page_size: int
    pattern: str

    def of(self, caches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of nodes, float64 (n, nodes), and part of the accesses that reaches memory, (n,), with ``caches`` bytes.

        A bucket that the caches hold a part of counts for the rest, as if its nodes were mixed evenly within it.
        """

        none = np.zeros((len(caches), self.counts.shape[1]))
        if len(self.edges) < 2:
            return none, np.zeros(len(caches))
        cached = caches // self.page_size
        below, above = self.heat[:-1], self.heat[1:]
        size = np.diff(self.edges)
        everything = float(((above - below) / size) @ self.counts.sum(axis=1))
        if everything <= 0.0:
            return none, np.zeros(len(caches))
        if self.pattern != "zipf":
            share = np.broadcast_to(((above - below) / size) @ self.counts / everything, none.shape)
            if self.pattern == "streaming":
                return share, np.ones(len(caches))
            return share, np.maximum(0.0, 1.0 - cached / self.counts.sum())
        most = self.edges[-1]
        held = np.array([_heat(float(min(one, most))) for one in cached])
        kept = (above - np.clip(held[:, None], below, above)) / size @ self.counts
        total = kept.sum(axis=1)
        share = np.divide(kept, total[:, None], out=none, where=total[:, None] > 0)
        return share, total / everything

    def split(self, edge: float, before: np.ndarray) -> Reach:
        """With an edge more, before which so many folios of its bucket lie, float64 (nodes,)."""
        at = int(np.searchsorted(self.edges, edge))
        if self.edges[at] == edge:
            return self
        halves = (before, self.counts[at - 1] - before)
        return replace(
            self,
            edges=np.concatenate((self.edges[:at], (edge,), self.edges[at:])),
            heat=np.concatenate((self.heat[:at], (_heat(edge),), self.heat[at:])),
            counts=np.concatenate((self.counts[: at - 1], halves, self.counts[at:])),
        )


class SharesBeside:
    """Shares of the nodes in an access beside caches of many sizes, each as :meth:`Reach.of` of its own :func:`reach`."""

    def __init__(self, dataset: xr.Dataset, access: Access) -> None:
        self._dataset, self._access = dataset, access
        self._reach = reach(dataset, access, None)
        size = self._reach.page_size
        self._first, _ = touched(_pages(dataset, access), size, access)
        self._found: dict[float, np.ndarray] = {}  # by folios that the caches hold

    def of(self, caches: np.ndarray) -> np.ndarray:
        """float64 (n, nodes)."""
        edges = self._reach.edges
        held = np.minimum(caches // self._reach.page_size, edges[-1])
        new = np.setdiff1d(held, list(self._found))
        if len(new):
            begin = edges[np.maximum(np.searchsorted(edges, new) - 1, 0)]  # of the bucket in which an edge lies
            between = np.union1d(begin, new)
            counts = results.node_counts(self._dataset, self._access.file, between.astype(np.int64) + self._first)
            before = np.vstack((np.zeros(counts.shape[1]), counts.cumsum(axis=0)))
            parts = before[np.searchsorted(between, new)] - before[np.searchsorted(between, begin)]
            for edge, part in zip(new, parts, strict=True):
                self._found[edge] = self._reach.split(edge, part).of(edge[None] * self._reach.page_size)[0][0]
        return np.array([self._found[one] for one in held])


def reach(dataset: xr.Dataset, access: Access, cache: float | None) -> Reach:
    """:func:`reach_of` of a file in a result."""
    return reach_of(
        lambda edges: results.node_counts(dataset, access.file, edges), _pages(dataset, access),
        int(dataset.variables["page_size"].values), access, cache,
    )  # fmt: skip


def _pages(dataset: xr.Dataset, access: Access) -> int:
    files = dataset.variables["file"].values.tolist()  # read past xarray: one ``sel`` takes as long as all of a reach
    if access.file not in files:
        raise WorkbenchError(f"access.file: {access.file!r} is not in this result")
    return int(dataset.variables["file_pages"].values[files.index(access.file)])


@functools.lru_cache(1 << 14)
def _heat(pages: float) -> float:
    """Weight of so many of the hottest pages under zipf."""
    from workbench.kernels import translation

    return float(translation.harmonic(pages, ZIPF_EXPONENT))


def reach_of(
    count: Callable[[np.ndarray], np.ndarray], pages: int, page_size: int, access: Access, cache: float | None
) -> Reach:
    """What an access touches of a file of ``pages`` folios; buckets of zipf have an edge where ``cache`` bytes end, if given.

    count : ``count(edges)`` gives folios per node between edges
    """

    first, last = touched(pages, page_size, access)
    if first >= last:
        nothing = count(np.array([first, first], np.int64))
        return Reach(np.zeros(1), np.zeros(1), nothing[:0].astype(float), page_size, access.pattern)
    edges = np.array([0, last - first], np.int64)
    if access.pattern != "zipf":
        return Reach(
            edges.astype(float), edges.astype(float), count(edges + first).astype(float), page_size, access.pattern
        )
    # Pages of one bucket count alike; buckets grow with rank, so the error in the weight stays below 5 %.
    near = np.arange(min(64, last - first))
    far = np.unique(np.geomspace(64, max(65, last - first), 400).astype(np.int64))
    held = [] if cache is None else [min(int(cache // page_size), last - first)]
    edges = np.unique(np.concatenate((near, far, held, [last - first]))).astype(np.int64)
    edges = edges[edges <= last - first]
    heat = np.array([_heat(float(edge)) for edge in edges])
    return Reach(edges.astype(float), heat, count(edges + first).astype(float), page_size, access.pattern)


def touched(pages: int, page_size: int, access: Access) -> tuple[int, int]:
    """First folio of a file of ``pages`` that an access touches, and the one after the last."""
    first = min(pages, access.offset // page_size)
    last = pages if access.length is None else min(pages, -(-(access.offset + access.length) // page_size))
    return first, max(first, last)


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

    Under several draws of parameters (:meth:`drawn`) what is drawn has a first dimension for them.

    shares : float64 (..., streams, nodes); initiator : int64 (streams,), node index; vcpus : float64 (streams,)
    walks : float64 (..., streams, nodes), page-table references in memory that one access makes, by node
    window : float64 (streams,), bytes in flight; wanted : float64 (streams,), MB/s at most
    write_fraction, extra_latency : float64 (streams,)
    beside : float64 (streams,), walks that accesses which caches serve make for each one of an access that reaches memory
    """

    shares: np.ndarray
    walks: np.ndarray
    initiator: np.ndarray
    vcpus: np.ndarray
    window: np.ndarray
    wanted: np.ndarray
    write_fraction: np.ndarray
    extra_latency: np.ndarray
    beside: np.ndarray

    def drawn(self, lines: np.ndarray, share: np.ndarray | None = None, **others: np.ndarray) -> Streams:
        """The same streams of one access under draws of the lines in flight (draws,), of shares (draws, nodes), of others."""
        if share is not None:
            others["shares"] = np.broadcast_to(share[:, None, None], (len(share), *self.shares.shape))
        return replace(self, window=self.vcpus * (lines[:, None] * LINE_BYTES), **others)

    def draws(self, *names: str) -> list[str]:
        """Which fields of those differ from draw to draw; all that may if none is named."""
        return [name for name in names or _DRAWN if getattr(self, name).ndim > _DRAWN[name]]

    def side_by_side(self) -> Streams:
        """The streams of all placements as those of one, at the same time."""
        count, rows = len(self.shares), (1, -1, self.shares.shape[2])
        others = {f.name: np.tile(getattr(self, f.name), count) for f in fields(self) if f.name not in _ROWS}
        return Streams(shares=self.shares.reshape(rows), walks=self.walks.reshape(rows), **others)

    def some(self, at: np.ndarray) -> Streams:
        """The draws at these positions."""
        return replace(self, **{name: getattr(self, name)[at] for name in self.draws()})

    def of_draws(self, name: str, count: int) -> np.ndarray:
        """A field with a dimension for so many draws."""
        value = getattr(self, name)
        return np.broadcast_to(value, (count, *value.shape[-_DRAWN[name] :]))


_ROWS = ("shares", "walks")
"""Of :class:`Streams`, what has a row of nodes for each stream of each placement."""
_DRAWN = {"shares": 3, "walks": 3, "window": 1, "extra_latency": 1, "beside": 1}
"""Of :class:`Streams`, what may differ from draw to draw, and how many dimensions it has besides."""


@dataclass(frozen=True)
class Solution:
    """Rates and latencies of streams, leading dimension placements.

    bandwidth, latency, idle_latency : (placements, streams), MB/s and ns; an access that reaches memory, with its page walk
    walk : (placements, streams), ns of the latency spent in page walks (and whatever extra latency was given)
    walk_traffic : (placements, streams), MB/s of page-table references, also for accesses whose data caches serve: their
        walks take bandwidth and keep lines of the vCPU, and are in no latency
    node_used, node_load : (placements, nodes), MB/s with walks and part of capacity at the mix of reads and writes
    link_load : (placements, nodes, nodes)
    queue_wait : (placements, nodes), ns of every request in the queue of its home node
    iterations : (placements,); nothing in this class is a number where they are -1
    """

    bandwidth: np.ndarray
    latency: np.ndarray
    idle_latency: np.ndarray
    walk: np.ndarray
    walk_traffic: np.ndarray
    node_used: np.ndarray
    node_load: np.ndarray
    link_load: np.ndarray
    queue_wait: np.ndarray
    iterations: np.ndarray


def _shares(name: str, given: np.ndarray, nodes: int) -> np.ndarray:
    try:
        values = np.atleast_2d(np.asarray(given, float))
    except (TypeError, ValueError):
        raise WorkbenchError(f"{name}: {repr(given)[:60]} are no numbers, one for each of {nodes} nodes") from None
    if values.shape[-1] != nodes or values.ndim != 2:
        count = values.shape[-1] if values.ndim == 2 else f"{values.ndim} dimensions of"
        raise WorkbenchError(f"{name}: {count} values for {nodes} nodes")
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise WorkbenchError(f"{name}: {float(values[bad][0])!r}; numbers from 0 on are allowed")
    return values


def _data_shares(given: np.ndarray, nodes: int) -> np.ndarray:
    """Shares of nodes in the accesses, of which each row is whole, or nothing where no page is present."""
    shares = _shares("shares", given, nodes)
    total = shares.sum(axis=1)
    off = (np.abs(total - 1.0) > _ROUNDED) & (total > 0.0)
    if off.any():
        raise WorkbenchError(f"shares: a row sums to {float(total[off][0]):g}; shares of all nodes sum to 1, or to 0")
    return shares


_ROUNDED = 1e-3
"""By how much shares may miss their sum."""


def streams(
    host: Machine,
    shares: np.ndarray,
    vcpus: Mapping[int, float],
    access: Access | Mapping[str, object] | str | None = None,
    *,
    costs: Mapping[str, float] | None = None,
    extra_latency: float = 0.0,
    walks: np.ndarray | None = None,
    beside: float = 0.0,
) -> Streams:
    """Streams of one access pattern: every vCPU node touches memory in the same proportions.

    Parameters
    ----------
    shares : float64 (nodes,) or (placements, nodes), share of the accesses each node serves
    vcpus : node id -> number of vCPUs there
    extra_latency : ns per access besides memory, such as the part of page walks that caches serve
    walks : float64, shape of ``shares``: page-table references in memory that an access makes, by node; none if left out
    beside : walks, each of as many references and ns, of accesses whose data caches serve, for each access that reaches
        memory (:func:`workbench.cost.translation.walks_beside`)
    """
    access = access_pattern(access)
    cost_table.check(costs)
    number = running(vcpus)
    initiator = np.array([host.index_of(node) for node in vcpus], np.int64)
    extra_latency = cost_table.number("extra_latency", extra_latency, "ns", zero=True)
    beside = cost_table.number("beside", beside, zero=True)
    count = len(initiator)
    shares = _data_shares(shares, host.nodes)
    walked = np.zeros_like(shares) if walks is None else _shares("walks", walks, host.nodes)
    if len(walked) not in (1, len(shares)):
        raise WorkbenchError(f"walks: {len(walked)} rows for {len(shares)} placements")
    walked = np.broadcast_to(walked, shares.shape)
    return Streams(
        np.repeat(shares[:, None, :], count, axis=1),
        np.repeat(walked[:, None, :], count, axis=1),
        initiator,
        number,
        number * lines_in_flight(host, access.pattern, costs) * LINE_BYTES,
        np.full(count, np.inf if access.demand_mbps is None else access.demand_mbps),
        np.full(count, access.write_fraction),
        np.full(count, extra_latency),
        np.full(count, beside),
    )


def running(vcpus: Mapping[int, float]) -> np.ndarray:
    """float64, how many vCPUs each of the nodes runs; there is one node or more, and every count is above 0."""
    if vcpus is not None and not isinstance(vcpus, Mapping):
        raise WorkbenchError(f"vcpus: {repr(vcpus)[:60]} is no mapping of nodes to numbers of vCPUs")
    if not vcpus:
        raise WorkbenchError("vcpus: no node runs a vCPU")
    for node, count in vcpus.items():
        if not cost_table.is_number(count) or count <= 0:
            raise WorkbenchError(f"vcpus: {repr(count)[:60]} vCPUs on node {node!r}; counts are above 0")
    return np.array(list(vcpus.values()), float)


def together(parts: Sequence[Streams]) -> Streams:
    """Streams of several accesses that run at the same time."""
    return Streams(
        *(
            np.concatenate([getattr(part, f.name) for part in parts], axis=-2 if f.name in _ROWS else -1)
            for f in fields(Streams)
        )
    )


def met(hosts: Draws, demand: Streams) -> list[bytes]:
    """For each draw of a host a digest of all that its solution takes from the draw.

    Two draws with one digest have one solution: what changes a node, a link or cores that nobody uses, or what mixes of reads
    and writes get where all is read, does not change it.
    """
    n, source = hosts.nodes, demand.initiator
    shares, walks = demand.shares.reshape(-1, n), demand.walks.reshape(-1, n)
    target = np.flatnonzero(shares.any(axis=0) | walks.any(axis=0))
    near, far = hosts.home[source][:, None], hosts.home[target]
    between = near != far
    links = (n + near * n + far)[between]
    ports = n + n * n + np.concatenate(((near + 0 * far)[between], (far + 0 * near)[between]))
    rows = np.unique(np.concatenate((target, links, ports)))
    only_reads = not demand.write_fraction.any() and not walks.any()
    mixes = slice(-1, None) if only_reads else slice(None)
    parts = [
        hosts.fixed_peaks[:, rows, mixes],
        hosts.group_bandwidth[:, source, mixes],
        hosts.latency[:, source][:, :, np.union1d(target, source)],
        hosts.queue[:, near],
        *(getattr(demand, name) for name in demand.draws()),
    ]
    together = np.ascontiguousarray(np.concatenate([part.reshape(len(hosts), -1) for part in parts], axis=1))
    return [hashlib.blake2b(row, digest_size=16).digest() for row in together]


def solve(host: Machine, demand: Streams, *, unsolved: str = "error") -> Solution:
    """Rates and latencies of streams that run at the same time.

    unsolved : what becomes of placements for which the fixed point is not met: "error", or "nan" for numbers that are none
    """
    return solve_draws(host.alone, demand, unsolved=unsolved)


def solve_draws(hosts: Draws, demand: Streams, *, unsolved: str = "error") -> Solution:
    """:func:`solve` of streams under several draws of parameters: of one host, by the same vCPUs.

    Placements of the solution are those of the first draw, then those of the second, and so on. Where streams are many, those
    that are alike are solved as one: the same but for what the tolerance leaves open.
    """
    from workbench.kernels import host_traffic

    if len(demand.initiator) >= MANY_STREAMS:
        each, which = _classes(demand)
        if 2 * len(each) <= len(which):
            return _solve_classes(hosts, demand, each, which, unsolved)
    n = hosts.nodes
    busy = np.zeros(n)
    np.add.at(busy, demand.initiator, demand.vcpus)
    shares, walks, window, extra, beside = (demand.of_draws(name, len(hosts)) for name in _DRAWN)
    if beside.any():
        every = 1.0 + beside  # walks for each of an access that reaches memory
        walks, extra = walks * every[:, None, :, None], extra * every
    shares, walks, extra, window = (np.require(value, float, ("C", "W")) for value in (shares, walks, extra, window))
    arrays = host_traffic.MachineArrays(
        hosts.home, hosts.latency, hosts.peaks(busy), hosts.curve_rows, curves.LOADS, hosts.delays, hosts.queue
    )
    asked = host_traffic.Demand(
        shares, walks, demand.initiator, demand.write_fraction, extra, window, demand.wanted, demand.vcpus
    )
    rate, latency, idle, walk, used, capacity, wait, iterations = host_traffic.solve_placements(
        arrays, asked, TOLERANCE, MAX_ITERATIONS, MAX_PASSES
    )
    failed = iterations < 0
    if failed.any():
        if unsolved == "error":
            draw, at = divmod(int(np.flatnonzero(failed)[0]), shares.shape[1])
            raise WorkbenchError(
                f"traffic: no fixed point found for placement {at} of {shares.shape[1]} after {MAX_ITERATIONS} steps; "
                f"shares {repr(np.round(shares[draw, at], 4).tolist())[:120]}"
            )
        for values in (rate, latency, idle, walk, used, wait):
            values[failed] = np.nan
    load = used / capacity
    if beside.any():  # what those walks took is not spent by the accesses whose latency this is
        more = np.repeat(beside, shares.shape[1], axis=0)
        own = (demand.of_draws("walks", len(hosts)) * hosts.latency[:, None, demand.initiator]).sum(axis=3)
        own = np.where(shares.sum(axis=3) > 0, own, 0.0) + demand.of_draws("extra_latency", len(hosts))[:, None]
        latency = latency - walk * more / (1.0 + more)
        walk = walk / (1.0 + more)
        idle = idle - own.reshape(idle.shape) * more
    return Solution(
        rate, latency, idle, walk, rate * walks.sum(axis=3).reshape(rate.shape), used[:, :n], load[:, :n],
        load[:, n : n + n * n].reshape(-1, n, n), wait, iterations,
    )  # fmt: skip


def _classes(demand: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Classes of streams that are alike in every draw: the first stream of each, and the class of every stream."""
    rows = [np.moveaxis(getattr(demand, field.name), -2 if field.name in _ROWS else -1, 0) for field in fields(Streams)]
    table = np.concatenate([row.reshape(len(demand.initiator), -1).astype(float) for row in rows], axis=1)
    numbers: dict[bytes, int] = {}
    which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in table])
    return np.unique(which, return_index=True)[1], which


def _solve_classes(hosts: Draws, demand: Streams, first: np.ndarray, which: np.ndarray, unsolved: str) -> Solution:
    """:func:`solve_draws` of one stream for each class, which has the vCPUs and the bytes in flight of all of the class."""
    count = np.bincount(which).astype(float)
    few = Streams(
        *(
            np.take(getattr(demand, field.name), first, axis=-2 if field.name in _ROWS else -1)
            for field in fields(Streams)
        )
    )
    few = replace(few, vcpus=few.vcpus * count, window=few.window * count, wanted=few.wanted * count)
    found = solve_draws(hosts, few, unsolved=unsolved)
    return replace(
        found, latency=found.latency[:, which], idle_latency=found.idle_latency[:, which], walk=found.walk[:, which],
        bandwidth=(found.bandwidth / count)[:, which], walk_traffic=(found.walk_traffic / count)[:, which],
    )  # fmt: skip


def access_cost(
    dataset: xr.Dataset,
    host: Host,
    access: Access | Mapping[str, object] | str | None = None,
    *,
    vcpus: Mapping[int, float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
    extra_latency: float = 0.0,
    walks: np.ndarray | None = None,
    profile: Profile | str | None = None,
) -> xr.Dataset:
    """Bandwidth and latency that each vCPU node gets from the placement in a result, for one access pattern.

    Parameters
    ----------
    dataset : a result of :func:`workbench.simulate`
    host : its host
    access : pattern, range, write fraction, initiators; a name of a pattern will do
    vcpus : node id -> vCPUs there; those of the guest if left out
    samples : draws over the ranges of the parameters; with more than 1 the variables get a ``sample`` dimension, with 1 they
        are the values, and if left out they have ends of their ranges (``latency_low``, ``latency_high``)
    seed : of the draws
    costs : parameter values instead of the registry's
    extra_latency : ns per access besides memory, such as the part of page walks that caches serve
    walks : float64 (nodes,), page-table references in memory that an access makes, by node
    profile : of the machine, see :func:`workbench.cost.machine.machine`

    Returns a Dataset with ``bandwidth``, ``latency``, ``idle_latency`` (initiator), ``node_share``, ``node_used`` and
    ``node_load`` (node) and ``memory_fraction``, all ``modelled``.
    """
    access = access_pattern(access)
    number = cost_table.draws_of(samples)
    if vcpus is None:
        found, count = np.unique(dataset.variables["vcpu_node"].values, return_counts=True)
        vcpus = {int(node): float(n) for node, n in zip(found, count, strict=True)}
    vcpus = initiators_of(access, vcpus)
    if number > 1:
        drawn, chosen = sampled(host, number, seed, costs, profile)
    else:
        drawn, chosen = machine(host, costs, profile).alone, [dict(costs or {})]
    caches = np.array([cost_table.value("cache_bytes", values) for values in chosen])
    share, reached = reach(dataset, access, float(caches[0])).of(caches)
    demand = streams(drawn[0], share[0], vcpus, access, costs=costs, extra_latency=extra_latency, walks=walks)
    solution = solve_draws(drawn, demand.drawn(lines_drawn(drawn, access.pattern, chosen), share))
    every = {
        name: getattr(solution, name) for name in ("bandwidth", "latency", "idle_latency", "node_used", "node_load")
    }
    return results.make(
        AccessCost,
        cost_table.presented(every | {"node_share": share, "memory_fraction": reached}, samples),
        {"initiator": list(vcpus), "node": drawn.node_ids},
        provenance=results.provenance(
            command="cost.traffic.access_cost", dataset=dataset, host=host, access=access, vcpus=vcpus, samples=samples,
            seed=seed, costs=costs, extra_latency=extra_latency, walks=None if walks is None else list(walks),
            profile=profile if isinstance(profile, str) or profile is None else profile.name,
        ),
        source=drawn.source,
        attributes={"estimated": int(drawn.estimated)},
    )  # fmt: skip

"""A host as the cost model sees it: latencies, capacities by mix of reads and writes, caps of cores, shared queues.

Figures come, in this order, from a *profile* (measured curves and figures of that machine, :mod:`workbench.cost.profile`),
from the host itself (HMAT access class), and for all others from its *class* (processor generation, memory type and
channels) or, where not even that is known, from the ranges of :mod:`workbench.costs`. What is estimated says so.

SLIT distances say which nodes are alike, seldom how much slower they are: the nearest node of another socket has the
remote latency and bandwidth of the class, whatever its distance, and the others lie on the line through it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from workbench import costs as cost_table
from workbench.cost import curves
from workbench.cost import profile as profiles
from workbench.errors import WorkbenchError
from workbench.topology.common import LOCAL_DISTANCE

if TYPE_CHECKING:
    from workbench.cost.profile import Profile
    from workbench.topology.host import AccessCoordinate, Host

USE_OF_KIND = {"dram": "dram", "hbm": "hbm", "cxl": "cxl", "nvm": "cxl", "gpu": "hbm"}
"""Which generic family of curves stands in for a kind of memory."""
OTHER_SOCKET = 20
"""Least SLIT distance taken for another socket: 10 is local, 11 to 19 are parts of one socket."""
LINE_BYTES = 64


@dataclass(frozen=True)
class Machine:
    """A host as the cost model sees it. Indices are positions in the host's node list.

    node_ids : int64 (nodes,); kinds : kind of memory of each node
    bandwidth : float64 (nodes,), MB/s a node's memory delivers to reads alone
    memory_shape : float64 (nodes, mixes), bandwidth at :data:`curves.MIXES` relative to reads alone
    latency : float64 (nodes, nodes), idle ns from CPUs of the row to memory of the column
    link_bandwidth : float64 (nodes, nodes), MB/s of reads from home node of the row to memory homed at the column
    link_shape : float64 (nodes, nodes, mixes), as ``memory_shape``
    port_bandwidth : float64 (nodes,), MB/s of all links of a home node together
    home : int64 (nodes,), node whose links lead to the memory
    core_groups : float64 (nodes,), groups of cores of each node; group_bandwidth : float64 (nodes, mixes), MB/s that the
        cores of one group pull at most; inf if nothing caps them
    queue : float64 (nodes,), bytes the requests of a home node's cores hold at most; inf if not limited
    lines_streaming, lines_random : 64-byte lines that one vCPU keeps in flight
    families : families of curves; memory_family, link_family : int64 (nodes,) and (nodes, nodes), rows of it
    cpus : int64 (nodes,), CPUs of each node
    measured : bool (nodes,), whether bandwidth and latency of a node's memory are measured on this machine
    source : where the figures come from
    """

    node_ids: np.ndarray
    kinds: tuple[str, ...]
    bandwidth: np.ndarray
    memory_shape: np.ndarray
    latency: np.ndarray
    link_bandwidth: np.ndarray
    link_shape: np.ndarray
    port_bandwidth: np.ndarray
    home: np.ndarray
    core_groups: np.ndarray
    group_bandwidth: np.ndarray
    queue: np.ndarray
    lines_streaming: float
    lines_random: float
    families: tuple[curves.Family, ...]
    memory_family: np.ndarray
    link_family: np.ndarray
    cpus: np.ndarray
    measured: np.ndarray
    source: str

    def __post_init__(self) -> None:
        _check(self)

    @property
    def nodes(self) -> int:
        return len(self.node_ids)

    @property
    def estimated(self) -> bool:
        """Whether any node's figures are estimates."""
        return not bool(self.measured.all())

    def index_of(self, node: int) -> int:
        """Position of a node id, a whole number."""
        whole = isinstance(node, int | np.integer) and not isinstance(node, bool)
        if not whole or node not in self._positions:
            known = ", ".join(map(str, self.node_ids))
            raise WorkbenchError(f"node: {repr(node)[:60]} is not a node of this host ({known})")
        return self._positions[node]

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {node: at for at, node in enumerate(self.node_ids.tolist())}

    def peaks(self, vcpus: np.ndarray | None = None) -> np.ndarray:
        """float64 (resources, mixes), MB/s: memory, links, ports, cores in the order of
        :mod:`workbench.kernels.host_traffic`.

        vcpus : float64 (nodes,), busy CPUs of each node, spread over its groups; all if left out
        """
        groups = self.core_groups if vcpus is None else np.minimum(np.maximum(vcpus, 1.0), self.core_groups)
        return np.concatenate((self.fixed_peaks, groups[:, None] * self.group_bandwidth), axis=-2)

    @functools.cached_property
    def fixed_peaks(self) -> np.ndarray:
        """Of :meth:`peaks` what does not depend on who is busy."""
        memory = self.bandwidth[..., None] * self.memory_shape
        links = self.link_bandwidth[..., None] * self.link_shape
        # A port carries both ways as its links do; what it has for reads alone is port_bandwidth.
        ports = self.port_bandwidth[..., None] * self.link_shape.max(axis=-2)
        return np.concatenate((memory, links.reshape(*memory.shape[:-2], -1, memory.shape[-1]), ports), axis=-2)

    @functools.cached_property
    def curve_rows(self) -> np.ndarray:
        """int64 (resources,): row of :meth:`delays`; ports and cores share the links' and memories' delay."""
        flat = np.full(2 * self.nodes, len(self.families), np.int64)
        return np.concatenate((self.memory_family, self.link_family.ravel(), flat))

    @functools.cached_property
    def delays(self) -> np.ndarray:
        """float64 (families + 1, mixes, loads), ns over idle; the last row is zero."""
        rows = [family.delays for family in self.families]
        return np.stack([*rows, np.zeros((len(curves.MIXES), len(curves.LOADS)))])

    @functools.cached_property
    def alone(self) -> Draws:
        """This machine as the only draw."""
        return self._with(Draws, {name: np.asarray(getattr(self, name))[None] for name in _CHOSEN})

    def _with(self, kind: type[_Kind], chosen: Mapping[str, object]) -> _Kind:
        """A machine with other figures that choices decide; it is made of one that is checked, and shares what is alike."""
        made = object.__new__(kind)
        made.__dict__.update(self.__dict__, curve_rows=self.curve_rows, delays=self.delays)
        made.__dict__.pop("alone", None)
        made.__dict__.update(chosen)
        return made


class Draws(Machine):
    """A machine under several choices of parameters: what they decide has a first dimension for them, lines in flight too.

    Each of them is a :class:`Machine`: ``draws[k]``.
    """

    lines_streaming: np.ndarray  # type: ignore[assignment]
    lines_random: np.ndarray  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Nothing: whoever puts a machine together checks it when all its figures are there."""

    def __len__(self) -> int:
        return len(self.bandwidth)

    def __iter__(self) -> Iterator[Machine]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, at: int) -> Machine:
        figures: dict[str, object] = {name: getattr(self, name)[at] for name in _CHOSEN}
        return self._with(Machine, figures | {name: float(getattr(self, name)[at]) for name in _LINES})

    def some(self, at: np.ndarray) -> Draws:
        """Those at these positions."""
        return self._with(Draws, {name: getattr(self, name)[at] for name in _CHOSEN})


_Kind = TypeVar("_Kind", bound=Machine)
_LINES = ("lines_streaming", "lines_random")
_CHOSEN = (
    "bandwidth", "memory_shape", "latency", "link_bandwidth", "link_shape", "port_bandwidth", "group_bandwidth", "queue",
    "fixed_peaks", *_LINES,
)  # fmt: skip
"""What choices of parameters decide, and what is worked out of it alone."""


def _check(of: Machine) -> None:
    """Refuse figures that no machine has."""
    _positive("bandwidth", of.bandwidth, of.node_ids)
    _positive("port_bandwidth", of.port_bandwidth, of.node_ids)
    _positive("latency", of.latency, of.node_ids)
    if not (of.queue > 0).all():
        raise WorkbenchError("queue: lengths are above 0")
    if not (of.group_bandwidth > 0).all():
        raise WorkbenchError("group_bandwidth: caps are above 0")
    between = of.link_bandwidth[..., ~np.eye(of.nodes, dtype=bool)]
    if not (np.isfinite(between) & (between > 0)).all():
        raise WorkbenchError("link_bandwidth: a number above 0 MB/s for every pair of nodes")


def _positive(name: str, values: np.ndarray, nodes: np.ndarray) -> None:
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        where = int(np.argwhere(bad)[0][-1])
        raise WorkbenchError(f"{name}: {float(values[bad][0])!r} at node {nodes[where]}; numbers above 0 are allowed")


# --------------------------------------------------------------------------------------------- from a host


def class_of(host: Host) -> profiles.MachineClass | None:
    """Class of a host: that of its ``hardware``, or the one that lists it, or what is known of memory as fast as its own."""
    known = profiles.class_of((host.hardware and host.hardware.generation) or "", host.name)
    if known is None and host.hardware is not None and (host.hardware.mts or host.hardware.channels):
        return profiles.class_of_memory(host.hardware.channels, host.hardware.mts)
    return known


def parameters(host: Host) -> dict[str, cost_table.Cost]:
    """The cost parameters as far as they are known for this host: those of its class where it has one."""
    known = class_of(host)
    if known is None:
        return dict(cost_table.COSTS)
    return known.parameters(
        sockets=_sockets(host),
        dram_nodes=sum(node.kind == "dram" and node.memory_bytes > 0 for node in host.nodes),
        channels=host.hardware.channels if host.hardware else None,
        mts=host.hardware.mts if host.hardware else None,
    )


def _sockets(host: Host) -> int:
    """Groups of CPU nodes that are nearer to each other than :data:`OTHER_SOCKET`."""
    distance = host.distance_matrix
    left = [index for index, node in enumerate(host.nodes) if node.cpus] or list(range(len(host.nodes)))
    groups = 0
    while left:
        first = left[0]
        left = [index for index in left if index != first and distance[first, index] >= OTHER_SOCKET]
        groups += 1
    return groups


def profile_for(host: Host, profile: Profile | str | Path | None = None) -> Profile | None:
    """The profile that holds for a host: the one asked for, or that of its ``hardware``, or the one that names it."""
    if profile is None and host.hardware is not None:
        profile = host.hardware.profile
    if not (profile is None or isinstance(profile, str | Path | profiles.Profile)):
        raise WorkbenchError(f"profile: {repr(profile)[:60]} is neither a profile nor the name or file of one")
    if isinstance(profile, str | Path):
        profile = profiles.read_profile(profile)
    return profile or profiles.profile_of(host.name)


def machine(host: Host, costs: Mapping[str, float] | None = None, profile: Profile | str | None = None) -> Machine:
    """The cost model's view of a host.

    Parameters
    ----------
    host : the host
    costs : values instead of those of :data:`workbench.costs.COSTS` and of the host's class, by name
    profile : measured figures of this machine, or the name or file of a profile; if left out, the one that the host's
        ``hardware`` names, or the one in ``datasets/profiles`` that names this host
    """
    cost_table.check(costs)
    given = profile_for(host, profile)
    if costs or cost_table.drawing():
        return _machines(host, costs or {}, 1, given)[0]
    asked = (host, given)
    for kept, before in list(_MADE_BEFORE):
        if kept == asked:
            return before
    made = _machines(host, {}, 1, given)[0]
    if len(host.nodes) <= _KEPT_NODES:
        _MADE_BEFORE.appendleft((asked, made))
    return made


def machines(host: Host, costs: Mapping[str, np.ndarray], profile: Profile | str | None = None) -> Draws:
    """:func:`machine` under several choices of parameters, float64 (choices,) of each: what is of the host is found once."""
    for end in (np.min, np.max):
        cost_table.check({name: float(end(values)) for name, values in costs.items()})
    lengths = {len(values) for values in costs.values()}
    if len(lengths) != 1:
        raise WorkbenchError("costs: as many values of each parameter, and of one at least")
    return _machines(host, costs, lengths.pop(), profile_for(host, profile))


def _machines(
    host: Host,
    costs: Mapping[str, float] | Mapping[str, np.ndarray],
    choices: int,
    given: Profile | None,
) -> Draws:
    """:func:`machine` under each of so many choices of parameters; those of which one value is given have it in all."""
    known, known_class = parameters(host), class_of(host)
    on_machine = given.costs if given is not None else {}

    @functools.cache
    def cost(name: str) -> np.ndarray:
        now = costs[name] if name in costs else cost_table.drawn_value(name)
        out = np.empty(choices)
        out[:] = on_machine.get(name, known[name].value) if now is None else now
        return out

    def of_nodes(of_kinds: Iterable[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(np.array(list(of_kinds)).swapaxes(0, 1))

    def shape(name: str) -> np.ndarray:
        return curves.duplex_shape(cost(name)[:, None])

    distance = np.asarray(host.distance_matrix, float)
    count, mixes = len(host.nodes), len(curves.MIXES)
    cpus = np.array([len(node.cpus) for node in host.nodes], np.int64)
    kinds = tuple(node.kind for node in host.nodes)
    with_cpus = np.flatnonzero(cpus > 0) if cpus.any() else np.arange(count)
    home = np.arange(count)
    for index in range(count):
        if index not in with_cpus:
            home[index] = with_cpus[int(distance[with_cpus, index].argmin())]
    nearest = distance[with_cpus].min(axis=0)
    # Of memory whose kind nobody says, all that is known is how far it is: as DRAM at that distance.
    nearest[["kind" in node.assumed for node in host.nodes]] = LOCAL_DISTANCE
    excess = np.maximum(distance - nearest, 0.0)
    sockets = distance[np.ix_(with_cpus, with_cpus)]
    others = sockets[sockets >= OTHER_SOCKET]
    beyond = (np.full(choices, others.min()) if others.size else cost("reference_distance")) - 10.0
    step = cost("dram_latency") * (cost("remote_latency_ratio") - 1.0) / beyond
    farther = excess * step[:, None, None]
    bandwidth = of_nodes(cost(f"{kind}_bandwidth") for kind in kinds)
    latency = of_nodes(cost(f"{kind}_latency") for kind in kinds)[:, None] + farther
    measured = np.zeros(count, bool)
    generic = curves.generic()
    uses = list(generic)
    families = list(generic.values())
    memory_family = np.array([uses.index(USE_OF_KIND[kind]) for kind in kinds], np.int64)
    duplex = {"cxl": shape("cxl_duplex"), "gpu": shape("link_duplex")}
    bus = curves.bus_shape(cost("mixed_bandwidth")[:, None])
    memory_shape = of_nodes(duplex.get(kind, bus) for kind in kinds)
    if known_class is not None and known_class.family is not None:
        families.append(known_class.family)
        memory_family[[kind == "dram" for kind in kinds]] = len(families) - 1

    estimate = (bandwidth.copy(), latency.copy())
    ids = {node.id: index for index, node in enumerate(host.nodes)}
    reported = [(ids[a.initiator], ids[a.target], a) for a in host.access or ()]
    for target in range(count):
        mine = [(source, a) for source, where, a in reported if where == target and a.read_bandwidth]
        if mine:
            source, best = max(mine, key=lambda pair: (pair[1].read_bandwidth or 0, -distance[pair[0], target]))
            read = best.read_bandwidth or 0
            bandwidth[:, target] = read
            if best.write_bandwidth and best.write_bandwidth != best.read_bandwidth:
                ratio = read / best.write_bandwidth
                memory_shape[:, target] = 1.0 / (curves.MIXES + (1.0 - curves.MIXES) * ratio)
            if best.read_latency:
                latency[:, :, target] = best.read_latency + farther[:, :, target]
                measured[target] = True

    dram = [i for i in range(count) if kinds[i] == "dram"]
    reference = bandwidth[:, dram].max(axis=1) if dram else cost("dram_bandwidth")
    remote = reference * cost("remote_bandwidth_ratio")
    nearness = np.clip((distance[:, home] - 10.0) / beyond[:, None, None], 0.0, 1.0)
    link = reference[:, None, None] * cost("remote_bandwidth_ratio")[:, None, None] ** nearness
    estimated_link = link.copy()
    link_shape = np.broadcast_to(shape("link_duplex")[:, None, None], (choices, count, count, mixes))
    if given is not None:
        link_shape = link_shape.copy()
    link_family = np.full((count, count), uses.index("link"), np.int64)
    port = np.repeat((remote * cost("link_ports"))[:, None], count, axis=1)
    groups, group = np.ones(count), np.full((choices, count, mixes), np.inf)
    if known_class is not None and known_class.core_group:
        groups = np.maximum(1.0, np.ceil(cpus / known_class.threads / known_class.core_group))
        group[:] = (cost("core_group_bandwidth")[:, None] * shape("core_group_duplex"))[:, None]
    for source, target, a in reported:
        if a.read_latency:
            latency[:, source, target] = a.read_latency
        if a.read_bandwidth and home[source] != home[target] and kinds[target] == "dram":
            link[:, home[source], home[target]] = a.read_bandwidth
    lines: tuple[Any, Any] = cost("lines_streaming"), cost("lines_random")
    made = Draws(
        np.array([node.id for node in host.nodes], np.int64), kinds, bandwidth, memory_shape, latency, link, link_shape,
        _with_links(port, link), home, groups, group, np.full((choices, count), np.inf),
        *lines, (), memory_family, link_family, cpus, measured, "",
    )  # fmt: skip
    text = f"host {host.name}"
    if given is not None:
        families += _apply(made, given, len(families), distance, farther)
        text = f"{text} ({given.source})"
    _draw_around(made, given, (*estimate, estimated_link), cost("given_bandwidth"), cost("given_latency"))
    unknown = sorted({kinds[i] for i in range(count) if not made.measured[i]})
    if unknown:
        basis = f"class {known_class.name}" if known_class is not None else "kind and distance (workbench.costs)"
        text = f"{text}; estimate for {', '.join(unknown)} nodes from {basis}"
    made = replace(made, families=tuple(families), source=text)
    if np.isinf(made.queue).all():
        made.queue[:] = _queues(made, cost("queue_factor"))
    _check(made)
    return made


def _with_links(port: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Ports, (..., nodes), that carry at least what the fastest of their links (..., nodes, nodes) does."""
    between = np.where(np.eye(link.shape[-1], dtype=bool), 0.0, link)
    return np.maximum(port, between.max(axis=-1, initial=0.0))


def _draw_around(
    made: Draws,
    given: Profile | None,
    estimate: tuple[np.ndarray, np.ndarray, np.ndarray],
    bandwidth: np.ndarray,
    latency: np.ndarray,
) -> None:
    """What is given of a machine becomes what draws of its measurement have; estimates stay as they are.

    estimate : bandwidth, latency and link bandwidth without anything that is given
    bandwidth, latency : parameters ``given_bandwidth`` and ``given_latency``; memory that states its spread has its latency
        drawn within twice as much to both sides
    """
    width = np.ones(made.nodes)
    for memory in given.memories if given is not None else ():
        if memory.spread is not None:
            mine = [kind == memory.kind for kind in made.kinds]
            if memory.nodes is not None:
                mine = [int(node) in memory.nodes for node in made.node_ids]
            width[mine] = np.log1p(2.0 * memory.spread) / np.log(cost_table.COSTS["given_latency"].high)
    late = (latency[:, None] ** width)[:, None]
    for figures, plain, factor in (
        (made.bandwidth, estimate[0], bandwidth[:, None]),
        (made.latency, estimate[1], late),
        (made.link_bandwidth, estimate[2], bandwidth[:, None, None]),
    ):
        np.multiply(figures, factor, out=figures, where=figures != plain)


def _queues(made: Draws, factor: np.ndarray) -> np.ndarray:
    """Bytes of each home node's queue: ``factor`` times what its fastest memory needs at its peak."""
    need = np.zeros_like(made.bandwidth)
    for index in range(made.nodes):
        home = made.home[index]
        at_peak = made.latency[:, home, index] + made.families[made.memory_family[index]].delays[-1, -1]
        need[:, home] = np.maximum(need[:, home], made.bandwidth[:, index] * at_peak / 1000.0)
    return np.where(need > 0, factor[:, None] * need, np.inf)


def _apply(made: Draws, given: Profile, known: int, distance: np.ndarray, farther: np.ndarray) -> list[curves.Family]:
    """Give a machine the figures of a profile, and return the families of curves that it adds to as many as are known.

    Parameters
    ----------
    distance : float64 (nodes, nodes), SLIT
    farther : float64 (choices, nodes, nodes), ns over the latency from the nearest CPUs, where the profile has no figure
    """
    bandwidth, latency, memory_shape = made.bandwidth, made.latency, made.memory_shape
    link, link_shape = made.link_bandwidth, made.link_shape
    families: list[curves.Family] = []
    _nodes_exist(made.node_ids, given)

    def peaks(of: Mapping[float, float], fast: np.ndarray, shape: np.ndarray) -> None:
        for k in range(len(fast)):
            fast[k], shape[k] = profiles.peaks_of(of, shape[k])

    for memory in given.memories:
        chosen = [
            i for i in range(made.nodes)
            if (memory.nodes is None and made.kinds[i] == memory.kind) or int(made.node_ids[i]) in (memory.nodes or ())
        ]  # fmt: skip
        family = memory.family()
        if family is not None:
            families.append(family)
        for index in chosen:
            if family is not None:
                made.memory_family[index] = known + len(families) - 1
                memory_shape[:, index] = family.shape
                bandwidth[:, index] = family.peaks[-1]
            if memory.peaks:
                peaks(memory.peaks, bandwidth[:, index], memory_shape[:, index])
            elif memory.bandwidth is not None:
                bandwidth[:, index] = memory.bandwidth
            idle = memory.idle_latency or (family.idle if family is not None else None)
            if idle is not None:
                latency[:, :, index] = idle + farther[:, :, index]
            made.measured[index] |= idle is not None and (family is not None or bool(memory.peaks or memory.bandwidth))
    for entry in given.links:
        pairs = np.zeros((made.nodes, made.nodes), bool)
        if entry.distance is not None:
            pairs = (distance == entry.distance) & ~np.eye(made.nodes, dtype=bool)
        elif entry.initiator is not None and entry.target is not None:
            pairs[made.index_of(entry.initiator), made.index_of(entry.target)] = True
        family = entry.family()
        if family is not None:
            families.append(family)
        for source, target in np.argwhere(pairs):
            near, far = made.home[source], made.home[target]
            idle = entry.idle_latency or (family.idle if family is not None else None)
            if idle is not None:
                latency[:, source, target] = idle
            if near == far or far != target:
                continue  # memory without CPUs is reached over the links of its home, which other pairs describe
            if family is not None:
                made.link_family[near, far] = known + len(families) - 1
                link[:, near, far], link_shape[:, near, far] = family.peaks[-1], family.shape
            if entry.peaks:
                peaks(entry.peaks, link[:, near, far], link_shape[:, near, far])
            elif entry.bandwidth is not None:
                link[:, near, far] = entry.bandwidth
    if given.port_bandwidth is not None:
        made.port_bandwidth[:] = given.port_bandwidth
    made.port_bandwidth[:] = _with_links(made.port_bandwidth, link)
    if given.cores is not None and given.cores.group is not None:
        made.core_groups[:] = np.maximum(1.0, np.ceil(made.cpus / given.cores.threads / given.cores.group))
        read, mixed = profiles.peaks_of(given.cores.group_peaks, np.ones(len(curves.MIXES)))
        made.group_bandwidth[:] = read * mixed
    if given.queue_lines is not None:
        made.queue[:] = given.queue_lines * LINE_BYTES
    if given.cores is not None:
        for name in _LINES:
            if lines := getattr(given.cores, name):
                getattr(made, name)[:] = lines
    return families


def _nodes_exist(node_ids: np.ndarray, given: Profile) -> None:
    """Refuse a profile that describes nodes which the host has not: it is another machine's."""
    described = [(f"memories.{at}.nodes", memory.nodes or ()) for at, memory in enumerate(given.memories)]
    for at, link in enumerate(given.links):
        ends = {"initiator": link.initiator, "target": link.target}
        described += [(f"links.{at}.{name}", (node,)) for name, node in ends.items() if node is not None]
    for field, nodes in described:
        for node in nodes:
            if node not in node_ids:
                raise WorkbenchError(
                    f"profile: {given.name}: {field}: {node} is not a node of this host "
                    f"({', '.join(map(str, node_ids))})"
                )


def with_figures(
    base: Machine,
    bandwidth: Mapping[int, float] | None = None,
    latency: Mapping[int, float] | None = None,
    source: str = "",
) -> Machine:
    """The machine with measured figures for some nodes: node id -> MB/s, node id -> idle ns from the nearest CPUs.

    Within :func:`workbench.costs.drawn` they are drawn, too (``given_bandwidth``, ``given_latency``).
    """
    spread, late = (cost_table.drawn_value(name) or 1.0 for name in ("given_bandwidth", "given_latency"))
    speeds, delays, measured = base.bandwidth.copy(), base.latency.copy(), base.measured.copy()
    for node, value in (bandwidth or {}).items():
        speeds[base.index_of(node)] = spread * cost_table.number("bandwidth", value, f"MB/s of node {node}")
        measured[base.index_of(node)] = True
    for node, value in (latency or {}).items():
        column = delays[:, base.index_of(node)]
        column += late * cost_table.number("latency", value, f"ns of node {node}") - column.min()
    return replace(base, bandwidth=speeds, latency=delays, measured=measured, source=source or base.source)


def sampled(
    host: Host | Machine,
    samples: int,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
    profile: Profile | str | None = None,
) -> tuple[Draws, list[dict[str, float]]]:
    """The machine under ``samples`` draws of the parameters (sample 0: their values), and the draws.

    What a profile or the host gives is drawn too: within its stated spread where it has one, and within the range of
    ``given_bandwidth`` and ``given_latency`` otherwise. All of a :class:`Machine` is given.
    """
    cost_table.check(costs)
    cost_table.whole("samples", samples)
    if isinstance(host, Machine):
        given = cost_table.sample(("given_bandwidth", "given_latency"), samples, seed)
        same, fast = host.alone.some(np.zeros(samples, np.int64)), given["given_bandwidth"][:, None]
        made_of = replace(
            same, bandwidth=same.bandwidth * fast, latency=same.latency * given["given_latency"][:, None, None],
            link_bandwidth=same.link_bandwidth * fast[:, None], port_bandwidth=same.port_bandwidth * fast,
        )  # fmt: skip
        return made_of, [dict(costs or {}) for _ in range(samples)]
    given_profile, known = profile_for(host, profile), parameters(host)
    asked = (samples, seed, host, given_profile)
    plain = not costs and not cost_table.drawing()
    if plain:
        for kept in list(_DRAWN_BEFORE):
            if kept[0] == asked:
                return kept[1], [dict(values) for values in kept[2]]
    for name, value in (given_profile.costs if given_profile is not None else {}).items():
        spread = cost_table.COSTS["given_latency"].high
        known[name] = known[name]._replace(value=value, low=value / spread, high=value * spread)
    draws = cost_table.sample(SAMPLED, samples, seed, known)
    chosen = [{**{name: float(values[k]) for name, values in draws.items()}, **(costs or {})} for k in range(samples)]
    columns = {name: np.array([values[name] for values in chosen], float) for name in chosen[0]}
    made_of = _machines(host, columns, samples, given_profile)
    for values, *lines in zip(chosen, made_of.lines_streaming.tolist(), made_of.lines_random.tolist(), strict=True):
        values |= {**dict(zip(_LINES, lines, strict=True)), **(costs or {})}  # a profile may know the cores
    if plain and len(host.nodes) <= _KEPT_NODES:
        _DRAWN_BEFORE.appendleft((asked, made_of, [dict(values) for values in chosen]))
    return made_of, chosen


def at_hand(host: Host) -> bool:
    """Whether draws of this host, as many as ends are taken from, were made before."""
    return any(kept[0][:3] == (cost_table.DRAWS, 0, host) for kept in list(_DRAWN_BEFORE))


_KEPT_NODES = 128
_DRAWN_BEFORE: deque[tuple[tuple[object, ...], Draws, list[dict[str, float]]]] = deque(maxlen=3)
_MADE_BEFORE: deque[tuple[tuple[Host, Profile | None], Machine]] = deque(maxlen=3)
"""What was drawn and made last: who edits a scenario asks for the same hosts again, and to draw takes longer than to use it."""


SAMPLED = (
    "dram_latency", "dram_bandwidth", "hbm_latency", "hbm_bandwidth", "cxl_latency", "cxl_bandwidth", "gpu_latency",
    "gpu_bandwidth", "remote_latency_ratio", "remote_bandwidth_ratio", "link_ports", "mixed_bandwidth", "cxl_duplex",
    "link_duplex", "core_group_bandwidth", "core_group_duplex", "queue_factor", "lines_streaming", "lines_random",
    "cache_bytes", "nvm_latency", "nvm_bandwidth", "given_bandwidth", "given_latency",
)  # fmt: skip
"""Parameters that ``samples`` varies."""


def reported_bandwidth(access: AccessCoordinate) -> float:
    """What the kernel takes for automatic weights: the lesser of read and write bandwidth, MB/s; 0 if unknown."""
    return min(access.read_bandwidth or 0.0, access.write_bandwidth or access.read_bandwidth or 0.0)

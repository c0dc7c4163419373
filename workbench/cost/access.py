"""The ``access`` operation: what the vCPUs of a running scenario get from its memory at that moment.

Access operations that directly follow one another run at the same time and share nodes and links; any other operation
between them separates them. Placement is that of the moment of the call; bandwidth and latency are modelled
(:mod:`workbench.cost.traffic`). Patterns that jump (all but streaming) walk page tables (:mod:`workbench.cost.translation`),
and references of a walk that no cache holds load the node of the table: the guest's own table lies like the guest's
memory, the second stage where the run's metadata says: by policy and CPU of the vCPUs that faulted
(arch/x86/kvm/mmu/mmu.c: kvm_mmu_topup_memory_cache, :mod:`workbench.engine.metadata`). The guest is taken to map its
memory with pages as large as the host's, and conversions that split huge mappings count.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench import costs as cost_table
from workbench import scenario as sc
from workbench.cost import traffic, translation
from workbench.engine.host_state import HostState
from workbench.engine.kernel_pages import SECOND_STAGE
from workbench.engine.objects import Inode
from workbench.tracking.tracked_file import TrackedFile, mapping_share
from workbench.units import PAGE_ORDERS, PAGE_SIZE


@dataclass(frozen=True)
class Seen:
    """What an access finds under one choice of parameters: shares of the nodes (nodes,), what reaches memory, page walks.

    walks : float64 (nodes,), page-table references in memory by node; cached : ns per access of the others
    beside : walks of accesses that caches serve, for each of one that reaches memory
    """

    share: np.ndarray
    reached: float
    walks: np.ndarray
    cached: float
    beside: float


@dataclass(frozen=True)
class AccessRecord:
    """One access: the operation, its vCPUs by node, and what was there at the moment of the call.

    Only that is kept; what follows is worked out when it is first asked for.

    counters : of the file, int64, if some of its huge mappings may be lost; largest_leaf : what its guest may map at once
    guest_folios : (nodes,), where the file's memory lies; table_pages : (nodes,), where its second-stage tables do, or will
    drawn : what else the parameters were at that moment than their own values
    """

    operation: sc.Access
    vcpus: dict[int, float]
    reach: traffic.Reach
    page_size: str
    vm_type: str
    counters: np.ndarray | None
    largest_leaf: str
    guest_folios: np.ndarray
    table_pages: np.ndarray
    drawn: Mapping[str, float]

    @functools.cached_property
    def mapped(self) -> dict[str, float]:
        """Bytes by the size they are mapped at; empty where nothing is walked."""
        present = float(self.reach.counts.sum()) * self.reach.page_size
        if self.operation.pattern == "streaming" or present <= 0:
            return {}
        if self.counters is None:
            return {self.page_size: present}
        share = mapping_share(self.counters[None], self.largest_leaf)[0]
        return dict(zip(PAGE_ORDERS, (share * present).tolist(), strict=True))

    @functools.cached_property
    def seen(self) -> Seen:
        """What it finds with the parameters of the moment; worked out when it is first asked for."""
        return contextvars.Context().run(self._alone)

    def _alone(self) -> Seen:
        with cost_table.drawn(self.drawn):
            return self.under([{}])[0]

    def under(self, chosen: Sequence[Mapping[str, float]]) -> tuple[Seen, ...]:
        """What it finds under each choice of parameters."""
        shares, reached = self.reach.of(np.array([cost_table.value("cache_bytes", values) for values in chosen]))
        hot = self.operation.pattern == "zipf"
        none = np.zeros(shares.shape[1])
        if not self.mapped:
            return tuple(Seen(share, float(part), none, 0.0, 0.0) for share, part in zip(shares, reached, strict=True))
        exponent = traffic.ZIPF_EXPONENT if hot else 0.0
        # The guest allocates its tables from its memory as from any.
        guest_tables = self.guest_folios / self.guest_folios.sum()
        host_tables = self.table_pages / self.table_pages.sum()
        costs = translation.walks_of(self.mapped, self.page_size, self.vm_type, exponent, chosen)
        found = []
        for share, part, cost in zip(shares, reached.tolist(), costs, strict=True):
            walks, cached = translation.table_walks(cost, guest_tables, host_tables, reached=part if hot else 1.0)
            found.append(Seen(share, part, walks, cached, translation.walks_beside(cost, part, hot=hot)))
        return tuple(found)


def record(system: HostState, operation: sc.Access, inode: Inode, conversion: TrackedFile | None) -> AccessRecord:
    """What an access finds at this moment; ``conversion`` has the huge mappings left, if there can be others."""

    def count(edges: np.ndarray) -> np.ndarray:
        zones = [inode.folios_by_zone(len(system.free), int(a), int(b)) for a, b in itertools.pairwise(edges)]
        return np.array([np.bincount(system.zone_node, row, system.nodes) for row in zones])

    size = PAGE_SIZE << inode.order
    touched = traffic.reach_of(count, inode.pages >> inode.order, size, operation, cost_table.value("cache_bytes"))
    places = sorted(system.tasks[name].nid for name in system.vcpus)
    vcpus = {int(system.node_ids[place]): float(places.count(place)) for place in dict.fromkeys(places)}
    initiators = traffic.initiators_of(operation, vcpus)
    guest = system.scenario.guest
    nobody = np.zeros(system.nodes, np.int64)  # walks
    walks = operation.pattern != "streaming"
    return AccessRecord(
        operation, initiators, touched, guest.page_size, guest.vm_type,
        None if conversion is None else conversion.counts.copy(), "" if conversion is None else conversion.largest_leaf,
        _folios(system, inode) if walks else nobody, _table_pages(system) if walks else nobody, cost_table.drawn_values(),
    )  # fmt: skip


def _folios(system: HostState, inode: Inode) -> np.ndarray:
    """(nodes,): where the file's memory lies."""
    zones = inode.folios_by_zone(len(system.free), 0, inode.pages >> inode.order)
    return np.bincount(system.zone_node, zones, system.nodes)


def _table_pages(system: HostState) -> np.ndarray:
    """(nodes,): where second-stage tables lie: where the run put them, or where vCPU threads will put them.

    A run that counts no metadata, or whose guest has touched nothing yet, has them on the nodes of its vCPUs.
    """
    if system.metadata is not None and system.metadata.held[SECOND_STAGE].any():
        held: np.ndarray = system.metadata.held[SECOND_STAGE].copy()
        return held
    return np.bincount([system.tasks[name].nid for name in system.vcpus], minlength=system.nodes)


NAMES = (
    *(f"stream_{name}" for name in ("event", "node", "vcpus", "bandwidth", "latency", "idle_latency", "walk", "walk_traffic",
                                    "memory_fraction", "share")), "access_used",
)  # fmt: skip
"""What :func:`variables` gives."""


def variables(system: HostState, events: int, records: dict[int, AccessRecord]) -> dict[str, np.ndarray]:
    """The variables of all accesses of a run, keyed by event number; there is at least one."""
    machine = traffic.machine(system.host)
    columns: dict[str, list[np.ndarray]] = {}
    used = np.zeros((events, system.nodes))
    for phase in _phases(sorted(records)):
        chosen = [records[event] for event in phase]
        parts = [_streams(machine, r) for r in chosen]
        figures, found = _figures(machine.alone, traffic.together(parts), parts, [(r.seen,) for r in chosen])
        used[phase] = found[0]
        values = {
            "event": np.repeat(phase, [len(part.initiator) for part in parts]),
            "node": np.concatenate([machine.node_ids[part.initiator] for part in parts]),
            "vcpus": np.concatenate([part.vcpus for part in parts]),
            "share": np.concatenate([part.shares[0] for part in parts]),
            **dict(zip(DRAWN, figures[0], strict=True)),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {f"stream_{name}": np.concatenate(pieces) for name, pieces in columns.items()} | {"access_used": used}


def _streams(machine: traffic.Machine, r: AccessRecord) -> traffic.Streams:
    seen = r.seen
    return traffic.streams(
        machine, seen.share, r.vcpus, r.operation, extra_latency=seen.cached, walks=seen.walks, beside=seen.beside
    )


def _figures(
    machines: traffic.Draws,
    demand: traffic.Streams,
    parts: Sequence[traffic.Streams],
    seen: Sequence[Sequence[Seen]],
) -> tuple[np.ndarray, np.ndarray]:
    """What accesses at the same time get: float64 (draws, :data:`DRAWN`, streams), and MB/s of each node (draws, 1, nodes).

    demand : all streams; parts : the streams of each access; seen : for each access what each draw has
    """
    found = traffic.solve_draws(machines, demand)
    reached = np.array([[one.reached for one in each[: len(machines)]] for each in seen]).T
    rows = [getattr(found, name) for name in DRAWN if name != "memory_fraction"]
    rows.append(np.repeat(reached, [len(part.initiator) for part in parts], axis=1))
    return np.stack(rows, axis=1), found.node_used[:, None]


DRAWN = ("bandwidth", "latency", "idle_latency", "walk", "walk_traffic", "memory_fraction")
"""What a stream has that is drawn."""
RANGES = tuple(
    f"{name}_{end}" for name in (*(f"stream_{name}" for name in DRAWN), "access_used") for end in ("low", "high")
)
"""What :func:`ranges` gives."""


def ranges(system: HostState, events: int, records: dict[int, AccessRecord]) -> dict[str, np.ndarray]:
    """Where nine in ten draws of the parameters have what :func:`variables` says. The ends hold the values.

    Placement is that of the run; what memory, links, cores, caches and page walks do with it is drawn.
    """
    machines, chosen = traffic.sampled(system.host, cost_table.DRAWS)
    walked = cost_table.sample(translation.TABLE_PARAMETERS, cost_table.DRAWS, seed=1)
    for k, values in enumerate(chosen):
        values |= {name: float(drawn[k]) for name, drawn in walked.items()}
    pieces: list[np.ndarray] = []
    used = np.zeros((len(machines), events, system.nodes))
    for phase in _phases(sorted(records)):
        those = [records[event] for event in phase]
        base = [_streams(machines[0], r) for r in those]
        seen = [r.under(chosen) for r in those]
        parts = [
            part.drawn(
                traffic.lines_drawn(machines, r.operation.pattern, chosen), np.array([one.share for one in each]),
                walks=np.array([np.broadcast_to(one.walks, part.walks.shape) for one in each]),
                extra_latency=np.array([np.full_like(part.extra_latency, one.cached) for one in each]),
                beside=np.array([np.full_like(part.beside, one.beside) for one in each]),
            )
            for part, r, each in zip(base, those, seen, strict=True)
        ]  # fmt: skip
        figures, used[:, phase] = _figures(machines, traffic.together(parts), base, seen)
        pieces.append(figures)
    every = np.concatenate(pieces, axis=2)  # draws, figures, streams
    low, high = cost_table.ends(every)
    ends = itertools.chain.from_iterable(zip(low, high, strict=True))
    return dict(zip(RANGES, (*ends, *cost_table.ends(used)), strict=True))


def _phases(events: list[int]) -> list[list[int]]:
    phases: list[list[int]] = []
    for event in events:
        if phases and phases[-1][-1] == event - 1:
            phases[-1].append(event)
        else:
            phases.append([event])
    return phases

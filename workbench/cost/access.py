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

import itertools
from dataclasses import dataclass

import numpy as np

from workbench import scenario as sc
from workbench.cost import traffic, translation
from workbench.engine.host_state import HostState
from workbench.engine.metadata import SECOND_STAGE
from workbench.engine.objects import Inode
from workbench.tracking.tracked_file import TrackedFile
from workbench.units import PAGE_ORDERS, PAGE_SIZE


@dataclass(frozen=True)
class AccessRecord:
    """One access: the operation, the shares of the nodes (nodes,), what reaches memory, page walks, vCPUs.

    walks : float64 (nodes,), page-table references in memory by node; cached : ns per access of the others
    beside : walks of accesses that caches serve, for each of one that reaches memory
    """

    operation: sc.Access
    share: np.ndarray
    reached: float
    walks: np.ndarray
    cached: float
    beside: float
    vcpus: dict[int, float]


def record(system: HostState, operation: sc.Access, inode: Inode, conversion: TrackedFile | None) -> AccessRecord:
    """What an access finds at this moment; ``conversion`` has the huge mappings left, if there can be others."""

    def count(edges: np.ndarray) -> np.ndarray:
        zones = [inode.folios_by_zone(len(system.free), int(a), int(b)) for a, b in itertools.pairwise(edges)]
        return np.array([np.bincount(system.zone_node, row, system.nodes) for row in zones])

    size = PAGE_SIZE << inode.order
    share, reached = traffic.shares_of(count, inode.pages >> inode.order, size, operation)
    places, number = np.unique([system.tasks[name].nid for name in system.vcpus], return_counts=True)
    vcpus = {int(system.node_ids[n]): float(k) for n, k in zip(places, number, strict=True)}
    walks, cached, beside = np.zeros(system.nodes), 0.0, 0.0
    initiators = traffic.initiators_of(operation, vcpus)
    first, last = traffic.touched(inode.pages >> inode.order, size, operation)
    present = float(inode.folios_by_zone(len(system.free), first, last).sum()) * size
    if operation.pattern != "streaming" and present > 0:
        guest = system.scenario.guest
        mapped: dict[str, float] = {guest.page_size: present}
        if conversion is not None:  # some of the huge mappings may be lost
            mapped = dict(zip(PAGE_ORDERS, conversion.mapping_share * present, strict=True))
        exponent = traffic.ZIPF_EXPONENT if operation.pattern == "zipf" else 0.0
        cost = translation.walk_cost(mapped, guest.page_size, confidential=guest.vm_type, exponent=exponent)
        walks, cached = translation.table_walks(
            cost, guest_table_share(system, inode), host_table_share(system), reached=reached if exponent else 1.0
        )
        beside = translation.walks_beside(cost, reached, hot=exponent > 0)
    return AccessRecord(operation, share, reached, walks, cached, beside, initiators)


def guest_table_share(system: HostState, inode: Inode) -> np.ndarray:
    """float64 (nodes,): where the guest's own page tables lie. The guest allocates them from its memory as from any."""
    zones = inode.folios_by_zone(len(system.free), 0, inode.pages >> inode.order)
    pages = np.bincount(system.zone_node, zones, system.nodes)
    return pages / pages.sum()


def host_table_share(system: HostState) -> np.ndarray:
    """float64 (nodes,): where second-stage tables lie: where the run put them, or where vCPU threads will put them.

    A run that counts no metadata, or whose guest has touched nothing yet, has them on the nodes of its vCPUs.
    """
    if system.metadata is not None:
        tables = system.metadata.held[SECOND_STAGE]
        if tables.any():
            share: np.ndarray = tables / tables.sum()
            return share
    nodes = np.bincount([system.tasks[name].nid for name in system.vcpus], minlength=system.nodes).astype(float)
    return nodes / nodes.sum()


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
        parts = [
            traffic.streams(
                machine, r.share, r.vcpus, r.operation, extra_latency=r.cached, walks=r.walks, beside=r.beside
            )
            for r in (records[event] for event in phase)
        ]
        solution = traffic.solve(machine, traffic.together(parts))
        used[phase] = solution.node_used[0]
        rows = [len(part.initiator) for part in parts]
        chosen = [records[event] for event in phase]
        values = {
            "event": np.repeat(phase, rows),
            "node": np.concatenate([machine.node_ids[part.initiator] for part in parts]),
            "vcpus": np.concatenate([part.vcpus for part in parts]),
            "bandwidth": solution.bandwidth[0],
            "latency": solution.latency[0],
            "idle_latency": solution.idle_latency[0],
            "walk": solution.walk[0],
            "walk_traffic": solution.walk_traffic[0],
            "memory_fraction": np.repeat([r.reached for r in chosen], rows),
            "share": np.concatenate([part.shares[0] for part in parts]),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {f"stream_{name}": np.concatenate(pieces) for name, pieces in columns.items()} | {"access_used": used}


RANGES = ("stream_bandwidth_low", "stream_bandwidth_high", "stream_latency_low", "stream_latency_high")
"""What :func:`ranges` gives."""
DRAWS = 25
"""Draws of the machine's parameters (the first has their values) that the ranges are taken from."""
ENDS = (0.05, 0.95)


def ranges(system: HostState, records: dict[int, AccessRecord]) -> dict[str, np.ndarray]:
    """Where nine in ten draws of the machine's parameters have the streams of :func:`variables`, float64 (streams,) each.

    Placement and page walks are those of the run; what memory, links and cores do with them is drawn. The ends hold the values.
    """
    machines, chosen = traffic.sampled(system.host, DRAWS)
    pieces: list[np.ndarray] = []
    for phase in _phases(sorted(records)):
        rows = []
        for machine, drawn in zip(machines, chosen, strict=True):
            parts = [
                traffic.streams(
                    machine,
                    r.share,
                    r.vcpus,
                    r.operation,
                    costs=drawn,
                    extra_latency=r.cached,
                    walks=r.walks,
                    beside=r.beside,
                )
                for r in (records[event] for event in phase)
            ]
            solution = traffic.solve(machine, traffic.together(parts))
            rows.append((solution.bandwidth[0], solution.latency[0]))
        pieces.append(np.array(rows))
    every = np.concatenate(pieces, axis=2)  # draws, bandwidth and latency, streams
    low, high = np.quantile(every[1:], ENDS, axis=0)
    low, high = np.minimum(low, every[0]), np.maximum(high, every[0])
    return dict(zip(RANGES, (low[0], high[0], low[1], high[1]), strict=True))


def _phases(events: list[int]) -> list[list[int]]:
    phases: list[list[int]] = []
    for event in events:
        if phases and phases[-1][-1] == event - 1:
            phases[-1].append(event)
        else:
            phases.append([event])
    return phases

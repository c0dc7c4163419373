"""The ``access`` operation: what the vCPUs of a running scenario get from its memory at that moment.

Access operations that directly follow one another run at the same time and share nodes and links; any other operation
between them separates them. Placement is that of the moment of the call; bandwidth and latency are modelled
(:mod:`workbench.cost.traffic`), page walks included for patterns that jump (:mod:`workbench.cost.translation`); there the guest
is taken to map its memory with pages as large as the host's, and conversions that split huge mappings count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench import scenario as sc
from workbench.cost import traffic, translation
from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode
from workbench.tracking.folio_file import ConversionFile
from workbench.units import PAGE_ORDERS, PAGE_SIZE


@dataclass(frozen=True)
class Record:
    """One access: the operation, the shares of the nodes (nodes,), what reaches memory, ns of page walks, vCPUs."""

    operation: sc.Access
    share: np.ndarray
    reached: float
    walk: float
    vcpus: dict[int, float]


def record(system: HostState, operation: sc.Access, inode: Inode, conversion: ConversionFile | None) -> Record:
    """What an access finds at this moment; ``conversion`` has the huge mappings left, if there can be others."""

    def count(edges: np.ndarray) -> np.ndarray:
        zones = [inode.folios_by_zone(len(system.free), int(a), int(b)) for a, b in itertools.pairwise(edges)]
        return np.array([np.bincount(system.zone_node, row, system.nodes) for row in zones])

    size = PAGE_SIZE << inode.order
    share, reached = traffic.shares_of(count, inode.pages >> inode.order, size, operation)
    places, number = np.unique([system.tasks[name].nid for name in system.vcpus], return_counts=True)
    vcpus = {int(system.node_ids[n]): float(k) for n, k in zip(places, number, strict=True)}
    walk = 0.0
    present = float(inode.folios_by_zone(len(system.free), 0, inode.pages >> inode.order).sum()) * size
    if operation.pattern in ("uniform", "pointer_chasing") and present > 0:
        guest = system.scenario.guest
        mapped = {guest.page_size: present}
        if conversion is not None:  # some of the huge mappings may be lost
            mapped = dict(zip(PAGE_ORDERS, conversion.mapping_share * present, strict=True))
        cost = translation.walk_cost(mapped, guest.page_size, confidential=guest.vm_type)
        walk = float(cost["walk"])
    return Record(operation, share, reached, walk, traffic.initiators_of(operation, vcpus))


def put_variables(
    system: HostState, events: int, records: dict[int, Record], put: Callable[[str, object], None]
) -> None:
    """Add the variables of all accesses of a run, keyed by event number; nothing without any."""
    if not records:
        return
    machine = traffic.machine(system.host)
    columns: dict[str, list[np.ndarray]] = {}
    used = np.zeros((events, system.nodes))
    for phase in _phases(sorted(records)):
        parts = [
            traffic.streams(machine, r.share, r.vcpus, r.operation, extra_latency=r.walk)
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
            "walk": np.repeat([r.walk for r in chosen], rows),
            "memory_fraction": np.repeat([r.reached for r in chosen], rows),
            "share": np.concatenate([part.shares[0] for part in parts]),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    for name, pieces in columns.items():
        put(f"stream_{name}", np.concatenate(pieces))
    put("access_used", used)


def _phases(events: list[int]) -> list[list[int]]:
    phases: list[list[int]] = []
    for event in events:
        if phases and phases[-1][-1] == event - 1:
            phases[-1].append(event)
        else:
            phases.append([event])
    return phases

"""What a guest_memfd whose pages can move gives back (series of June 2026, VMs without private memory), beside tmpfs.

Node 0 is full of something else when the guest is populated, so that its memory lies on node 1; then node 0 becomes free and
somebody asks for the pages: mbind with MPOL_MF_MOVE, migrate_pages, or a cpuset. Calls find pages through the page tables of the
process (``mm/mempolicy.c: queue_folios_pte_range``): what only the guest has touched is in none, and stays, under every kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench import scenario as sc
from workbench.errors import WorkbenchError
from workbench.simulation import simulate
from workbench.units import PAGE_SIZE, parse_bytes
from workbench.variables import Migration

BACKINGS = ("guest_memfd, 7.4", "guest_memfd, migratable", "tmpfs")
TOUCHED = ("host", "guest")
CALLS: dict[str, dict[str, Any]] = {
    "mbind, MPOL_MF_MOVE": {"op": "mbind", "mode": "bind", "nodes": "0", "flags": ["move"]},
    "migrate_pages": {"op": "migrate_pages", "source": 1, "target": 0},
    "cpuset": {"op": "set_mems_allowed", "mems": "0"},
}
_HOST = {
    "name": "two nodes",
    "nodes": [{"id": n, "memory_bytes": 4 << 30, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}


def migration(memory: int | str = "64 MiB") -> xr.Dataset:
    """Share of the memory on the guest's own node after each call: dimensions ``backing``, ``touched`` and ``call``."""
    size = parse_bytes(memory, "memory")
    if size == 0 or size % PAGE_SIZE or size > 1 << 30:
        raise WorkbenchError(f"memory: {memory}; whole pages, at most 1 GiB (a node of this host has 4 GiB)")
    shape = (len(BACKINGS), len(TOUCHED), len(CALLS))
    share, before, returned = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for i, backing in enumerate(BACKINGS):
        for j, touched in enumerate(TOUCHED):
            for k, call in enumerate(CALLS):
                one = simulate(scenario(size, backing, touched, call))
                on_node = one["event_pages"].values[3]
                before[i, j, k] = on_node[0] / on_node.sum()
                pages = one["pages_per_node"].sel(file="memory").values
                share[i, j, k] = pages[0] / pages.sum()
                returned[i, j, k] = one["event_ret"][-1]
    return results.make(
        Migration,
        {"local_before": before, "local_share": share, "returned": returned},
        {"backing": list(BACKINGS), "touched": list(TOUCHED), "call": list(CALLS)},
        provenance=results.provenance(command="studies.migratable.migration", memory=memory),
        attributes={"guest_bytes": size},
    )


def scenario(size: int, backing: str, touched: str, call: str) -> sc.Scenario:
    """The guest of one cell of :func:`migration`."""
    tmpfs = backing == "tmpfs"
    made = {"op": "memfd", "size": size} if tmpfs else {"op": "create", "flags": ["mmap", "init_shared"]}
    on_file = {"file": "memory"} if call.startswith("mbind") else {}
    operations = [
        {"op": "hog", "node": 0, "size": 4 << 30},
        {"file": "memory", **made},
        {"op": "sched_setaffinity", "cpu": 0},
        {"op": "fault", "by": touched, "file": "memory"},
        {"op": "unhog"},
        {**CALLS[call], **on_file},
    ]
    guest = {"memory": size, "vcpus": [{"node": 0}], "vm_type": "none"}
    kernel = "proposal-migratable" if backing == BACKINGS[1] else "7.4"
    return sc.Scenario.from_mapping(
        {"host": _HOST, "guest": guest, "kernel_profile": kernel, "operations": operations, "strict": False,
         "metadata": "off"}
    )  # fmt: skip

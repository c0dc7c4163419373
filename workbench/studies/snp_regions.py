"""Hosts on which SNP and other guests are mixed: how many 1 GiB regions stay without SNP memory, node by node.

RMPOPT (Linux 7.4) skips checks of the reverse map table for regions of 1 GiB that hold no SNP guest memory. Machines come and go
as in :mod:`workbench.studies.vm_churn`, each allocator serves the same stream, and each extent has the type of its machine. SNP
machines start anywhere, or on nodes of their own; where a node is full, both go on to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench.errors import WorkbenchError
from workbench.kernels import owned_regions as kernel
from workbench.kernels import vm_churn as churn_kernel
from workbench.studies import vm_churn
from workbench.studies.vm_churn import ALLOCATORS, GIB_PAGES, TRACE_DAYS, Churn
from workbench.variables import SnpRegions

WAYS = ("anywhere", "nodes of their own")


def snp_regions(
    churn: Churn,
    memory: int | str,
    nodes: int = 8,
    allocators: tuple[str, ...] = ALLOCATORS,
    *,
    share: float = 0.5,
    samples: int = 40,
    days: float = TRACE_DAYS,
    seed: int = 0,
) -> xr.Dataset:
    """Carry out a stream with each allocator, with SNP machines anywhere and on nodes of their own.

    Parameters
    ----------
    churn, memory, nodes, allocators : as for :func:`workbench.studies.vm_churn.serve`
    share : share of the machines that are SNP guests, drawn with ``seed``, above 0 and below 1
    samples : moments at which regions are counted, evenly spread over ``days``

    Returns
    -------
    Dataset over ``allocator``, ``way`` (:data:`WAYS`), ``sample`` (coordinate ``day``) and ``node``. ``regions_needed`` is
    what the SNP memory on the node would take if it were packed.
    """
    if not 0 < share < 1 or nodes < 2:
        raise WorkbenchError(f"share: {share} on {nodes} nodes; above 0 and below 1, on at least 2 nodes")
    sample_at = vm_churn.moments(churn, samples, days)
    snp = np.random.default_rng(seed).random(churn.machines) < share
    own = min(max(1, round(share * nodes)), nodes - 1)
    apart = churn.events.copy()
    mine = snp[apart[:, 0]]
    apart[:, 2] = np.where(mine, apart[:, 2] % own, own + apart[:, 2] % (nodes - own))
    shape = (len(allocators), len(WAYS), len(sample_at), nodes)
    clear, needed = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    refused = np.zeros(shape[:2], np.int64)
    for i, name in enumerate(allocators):
        for j, events in enumerate((churn.events, apart)):
            host = vm_churn.Allocating(churn.machines, memory, nodes, name)
            before = 0
            for k, at in enumerate(sample_at.tolist()):
                host.run(events[before : at + 1])
                before = at + 1
                held, pages = _regions(host, snp)
                clear[i, j, k] = held.shape[1] - held.sum(axis=1)
                needed[i, j, k] = -(-pages // GIB_PAGES)
            refused[i, j] = host.counts[churn_kernel.REFUSED]
    return results.make(
        SnpRegions,
        {"regions_without_snp": clear, "regions_needed": needed, "refused": refused},
        {
            "allocator": list(allocators),
            "way": list(WAYS),
            "sample": sample_at,
            "node": np.arange(nodes),
            "day": ("sample", churn.hours[sample_at] / 24),
        },
        provenance=results.provenance(
            command="studies.snp_regions.snp_regions", churn=churn, memory=memory, nodes=nodes, allocators=allocators,
            share=share, samples=samples, days=days, seed=seed,
        ),
        attributes={"host_bytes": host.pages * 4096, "nodes": nodes, "snp_share": share, "events": len(churn.events)},
    )  # fmt: skip


def _regions(host: vm_churn.Allocating, snp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regions with SNP memory, bool (nodes, regions), and pages of it on each node, int64 (nodes,)."""
    held, pages = np.zeros(host.pages // GIB_PAGES, bool), np.zeros(host.nodes, np.int64)
    arguments: tuple[Any, ...] = (host.vms, snp, host.pages // host.nodes, held, pages)
    if host.page_pages:
        kernel.held_by_huge_pages(host.following, host.page_pages, *arguments)
    else:
        kernel.held_by_extents(host.held.ranges, host.counted_by_node, *arguments)
    return held.reshape(host.nodes, -1), pages

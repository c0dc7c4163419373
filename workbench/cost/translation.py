"""What address translation costs a guest: nested walks, TLB reach, and huge mappings lost to conversions.

Counts of references are exact for a walk without caches; how many accesses miss the TLB and how long a walk takes are
modelled, with the parameters of :mod:`workbench.costs`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.errors import WorkbenchError
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.units import PAGE_ORDERS, PAGE_SIZE
from workbench.variables import WalkCost, WalkReferences

TLB_PARAMETERS = ("tlb_entries_4k", "tlb_entries_2m", "tlb_entries_1g")


def walk_references(top_levels: int = 4) -> xr.Dataset:
    """References of a nested walk for every pair of guest and host page size, in tables of 4 or 5 levels."""
    from workbench.kernels import translation

    sizes = list(PAGE_ORDERS)
    levels = [translation.page_table_levels(order, top_levels) for order in PAGE_ORDERS.values()]
    table = [[translation.nested_walk_references(g, h) for h in levels] for g in levels]
    return results.make(
        WalkReferences,
        {"references": np.array(table, np.int64)},
        {"guest_page": sizes, "host_page": sizes},
        provenance=results.provenance(command="cost.translation.walk_references", top_levels=top_levels),
    )


def _order(page: str) -> int:
    if page not in PAGE_ORDERS:
        raise WorkbenchError(f"page size: {page!r} is not one of {', '.join(PAGE_ORDERS)}")
    return PAGE_ORDERS[page]


def walk_cost(
    mapped: Mapping[str, float],
    guest_page: str = "4 KiB",
    *,
    confidential: str = "none",
    table_latency: float | None = None,
    local_share: float = 1.0,
    remote_latency: float | None = None,
    costs: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Page-walk cost of uniformly random accesses to memory mapped at one or several host page sizes.

    Parameters
    ----------
    mapped : host page size -> bytes mapped at it, such as ``{"1 GiB": 60 << 30, "4 KiB": 4 << 30}``
    guest_page : page size of the guest's own mappings
    confidential : "none", "snp" (private memory is never mapped above 2 MiB) or "tdx" (4 KiB)
    table_latency : ns of a page-table reference that reaches local memory; the DRAM latency if left out
    local_share : part of the leaf entries that lie on the local node
    remote_latency : ns of one on a remote node; by the registry's ratio if left out

    Returns a Dataset over ``host_page``: ``miss`` (part of the accesses to memory of that size), ``references`` (of a
    walk without caches), and scalars ``misses_per_access``, ``memory_references``, ``remote_references`` and ``walk``
    (ns per access).
    """
    from workbench.kernels import translation

    def cost(name: str) -> float:
        return cost_table.value(name, costs)

    if confidential not in LARGEST_LEAF:
        raise WorkbenchError(f"confidential: {confidential!r} is not one of {', '.join(LARGEST_LEAF)}")
    if not 0.0 <= local_share <= 1.0:
        raise WorkbenchError(f"local_share: {local_share!r} is not between 0 and 1")
    guest_order = _order(guest_page)
    by_order = dict.fromkeys(PAGE_ORDERS.values(), 0.0)
    for page, size in mapped.items():
        if size < 0:
            raise WorkbenchError(f"mapped: {size!r} bytes of {page}; sizes are 0 or more")
        by_order[min(_order(page), PAGE_ORDERS[LARGEST_LEAF[confidential]])] += float(size)
    orders = np.array(list(by_order), np.int64)
    covered = np.minimum(orders, guest_order)  # one TLB entry covers no more than the smaller of the two pages
    entries = np.array([cost(name) for name in TLB_PARAMETERS])
    merged = np.array([sum(size for order, size in by_order.items() if min(order, guest_order) == o) for o in orders])
    merged = np.where(orders <= guest_order, merged, 0.0)
    miss = np.zeros(3)
    misses = translation.mapped_miss_fractions(merged, orders, entries, np.array([0, 0, 1]), miss)
    guest_levels = translation.page_table_levels(guest_order, 4)
    host_levels = [translation.page_table_levels(int(order), 4) for order in orders]
    references = np.array([translation.nested_walk_references(guest_levels, h) for h in host_levels], np.int64)
    local = cost("dram_latency") if table_latency is None else table_latency
    remote = local * cost("remote_latency_ratio") if remote_latency is None else remote_latency
    total = sum(by_order.values())
    cached_tables, reach = cost("table_cache_bytes"), cost("walk_memory_fraction")
    guest_leaf = translation.leaf_memory_fraction(total, guest_order, cached_tables)
    per_size_miss = miss[np.searchsorted(orders, covered)]
    leaf = 0.0
    for index, order in enumerate(orders):
        host_leaf = translation.leaf_memory_fraction(by_order[int(order)], int(order), cached_tables)
        weight = by_order[int(order)] / total if total > 0 else 0.0
        leaf += weight * per_size_miss[index] * (guest_leaf + host_leaf) * reach
    mean_latency = local_share * local + (1.0 - local_share) * remote
    walk = translation.walk_latency(2.0 * misses, leaf, mean_latency, cost("walk_cached_latency"))
    return results.make(
        WalkCost,
        {
            "miss": per_size_miss,
            "references": references,
            "misses_per_access": misses,
            "memory_references": leaf,
            "remote_references": leaf * (1.0 - local_share),
            "walk": walk,
        },
        {"host_page": list(PAGE_ORDERS)},
        provenance=results.provenance(
            command="cost.translation.walk_cost", mapped=mapped, guest_page=guest_page, confidential=confidential,
            table_latency=table_latency, local_share=local_share, remote_latency=remote_latency, costs=costs,
        ),
    )  # fmt: skip


def split_loss(
    memory: int, split_blocks: int, block: str = "1 GiB", into: str = "4 KiB", **options: object
) -> xr.Dataset:
    """Walk cost before and after ``split_blocks`` huge mappings of a guest became small ones.

    Parameters
    ----------
    memory : bytes of the guest, all mapped at ``block`` before
    split_blocks : blocks mapped at ``into`` afterwards
    options : passed to :func:`walk_cost`
    Returns the Dataset of :func:`walk_cost` with a dimension ``state`` (whole, split).
    """
    size = PAGE_SIZE << _order(block)
    blocks = memory // size
    if not 0 <= split_blocks <= blocks:
        raise WorkbenchError(f"split_blocks: {split_blocks!r} of {blocks} blocks of {block}")
    whole = walk_cost({block: memory}, **options)  # type: ignore[arg-type]
    split = walk_cost({block: memory - split_blocks * size, into: split_blocks * size}, **options)  # type: ignore[arg-type]
    text = results.provenance(
        command="cost.translation.split_loss",
        memory=memory,
        split_blocks=split_blocks,
        block=block,
        into=into,
        **options,
    )
    return results.stack(WalkCost, [whole, split], "state", ["whole", "split"], provenance=text)

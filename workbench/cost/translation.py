"""What address translation costs a guest: nested walks, TLB reach, and huge mappings lost to conversions.

Counts of references are exact for a walk without caches; how many accesses miss the TLB and how long a walk takes are
modelled, with the parameters of :mod:`workbench.costs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.errors import WorkbenchError
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.units import PAGE_ORDERS, PAGE_SIZE
from workbench.variables import WalkCost, WalkReferences

SAMPLED = (
    "tlb_entries_4k", "tlb_entries_2m", "tlb_entries_1g", "walk_memory_fraction", "table_cache_bytes",
    "walk_cached_latency", "dram_latency", "remote_latency_ratio",
)  # fmt: skip
"""Parameters that ``samples`` varies."""
TABLE_PARAMETERS = SAMPLED[:6]
"""Those that what :func:`table_walks` says depends on."""
TLB_PARAMETERS = ("tlb_entries_4k", "tlb_entries_2m", "tlb_entries_1g")


def walk_references(top_levels: int = 4) -> xr.Dataset:
    """References of a nested walk for every pair of guest and host page size, in tables of 4 or 5 levels."""
    from workbench.kernels import translation

    if top_levels not in (4, 5) or isinstance(top_levels, float):
        raise WorkbenchError(f"top_levels: {repr(top_levels)[:60]} is not 4 or 5")
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
    exponent: float = 0.0,
    costs: Mapping[str, float] | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Page-walk cost of random accesses to memory mapped at one or several host page sizes.

    Parameters
    ----------
    mapped : host page size -> bytes mapped at it, such as ``{"1 GiB": 60 << 30, "4 KiB": 4 << 30}``
    guest_page : page size of the guest's own mappings
    confidential : "none", "snp" (private memory is never mapped above 2 MiB) or "tdx" (4 KiB)
    table_latency : ns of a page-table reference that reaches local memory; the DRAM latency if left out
    local_share : part of the leaf entries that lie on the local node
    remote_latency : ns of one on a remote node; by the registry's ratio if left out
    samples, seed : draws over the ranges of the parameters (sample 0: their values); with more than 1 all modelled
        variables get a ``sample`` dimension, with 1 they are the values, and if left out they have ends (``walk_low``)
    exponent : of the Zipf law by which 4 KiB pages are touched, the first being the hottest; 0 is uniform

    Returns a Dataset over ``host_page``: ``miss`` (part of the accesses to memory of that size), ``references`` (of a
    walk without caches), and scalars ``misses_per_access``, ``memory_references`` and their parts ``guest_references``
    (to the guest's own page table) and ``host_references`` (to the second stage), ``remote_references``, ``cached`` (ns
    per access of references that a cache serves) and ``walk`` (ns per access of all).
    """
    from workbench.kernels import translation

    text = results.provenance(
        command="cost.translation.walk_cost", mapped=mapped, guest_page=guest_page, confidential=confidential,
        table_latency=table_latency, local_share=local_share, remote_latency=remote_latency, exponent=exponent,
        costs=costs, samples=samples, seed=seed,
    )  # fmt: skip
    number = cost_table.draws_of(samples)
    exponent = cost_table.number("exponent", exponent, zero=True)
    cost_table.check(costs)
    for name, given in (("table_latency", table_latency), ("remote_latency", remote_latency)):
        if given is not None:
            cost_table.number(name, given, "ns")
    if not cost_table.is_number(local_share) or not 0.0 <= local_share <= 1.0:
        raise WorkbenchError(f"local_share: {local_share!r} is not between 0 and 1")
    guest_order = _order(guest_page)
    by_order = _by_order(mapped, confidential)
    draws = cost_table.sample(SAMPLED, number, seed) if number > 1 else {}
    each = [
        _walked(
            by_order, guest_order, local_share, table_latency, remote_latency, exponent,
            {**{name: float(values[k]) for name, values in draws.items()}, **(costs or {})},
        )
        for k in range(number)
    ]  # fmt: skip
    levels = [translation.page_table_levels(order, 4) for order in (guest_order, *by_order)]
    references = [translation.nested_walk_references(levels[0], host) for host in levels[1:]]
    every = {name: np.array([one[name] for one in each]) for name in each[0]}
    return results.make(
        WalkCost,
        {"references": np.array(references, np.int64), **cost_table.presented(every, samples)},
        {"host_page": list(PAGE_ORDERS)},
        provenance=text,
    )


def walks_of(
    mapped: Mapping[str, float],
    guest_page: str,
    confidential: str,
    exponent: float,
    chosen: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """What :func:`walk_cost` says under several choices of parameters, as plain numbers: what :func:`table_walks` takes."""
    by_order, order = _by_order(mapped, confidential), _order(guest_page)
    return [_walked(by_order, order, 1.0, None, None, exponent, values) for values in chosen]


def _by_order(mapped: Mapping[str, float], confidential: str) -> dict[int, float]:
    """Bytes by the order of the host's mappings; larger ones than this kind of guest has are of its largest."""
    if not isinstance(mapped, Mapping):
        raise WorkbenchError(f"mapped: {repr(mapped)[:60]} is no mapping of page sizes to bytes")
    if confidential not in LARGEST_LEAF:
        raise WorkbenchError(f"confidential: {confidential!r} is not one of {', '.join(LARGEST_LEAF)}")
    by_order = dict.fromkeys(PAGE_ORDERS.values(), 0.0)
    for page, size in mapped.items():
        if not cost_table.is_number(size) or size < 0:
            raise WorkbenchError(f"mapped: {repr(size)[:60]} bytes of {page}; sizes are 0 or more")
        by_order[min(_order(page), PAGE_ORDERS[LARGEST_LEAF[confidential]])] += float(size)
    return by_order


def _walked(
    by_order: Mapping[int, float],
    guest_order: int,
    local_share: float,
    table_latency: float | None,
    remote_latency: float | None,
    exponent: float,
    costs: Mapping[str, float],
) -> dict[str, Any]:
    """The modelled variables of :func:`walk_cost` under one choice of parameters."""
    from workbench.kernels import translation

    def cost(name: str) -> float:
        return cost_table.value(name, costs)

    orders = np.array(list(by_order), np.int64)
    covered = np.minimum(orders, guest_order)  # one TLB entry covers no more than the smaller of the two pages
    entries = np.array([cost(name) for name in TLB_PARAMETERS])
    merged = np.array([sum(size for order, size in by_order.items() if min(order, guest_order) == o) for o in orders])
    merged = np.where(orders <= guest_order, merged, 0.0)
    miss = np.zeros(3)
    misses = translation.mapped_miss_fractions(merged, orders, entries, np.array([0, 0, 1]), miss)
    local = cost("dram_latency") if table_latency is None else table_latency
    remote = local * cost("remote_latency_ratio") if remote_latency is None else remote_latency
    total = sum(by_order.values())
    cached_tables, reach = cost("table_cache_bytes"), cost("walk_memory_fraction")
    cold, hot = 1.0, 1.0
    if exponent > 0.0 and total > 0.0:
        cold, hot = _zipf_factors(total, misses, cached_tables, guest_order, exponent)
        misses, miss = misses * cold, miss * cold
    guest_leaf = translation.leaf_memory_fraction(total, guest_order, cached_tables)
    per_size_miss = miss[np.searchsorted(orders, covered)]
    guest_references = host_references = 0.0
    for index, order in enumerate(orders):
        host_leaf = translation.leaf_memory_fraction(by_order[int(order)], int(order), cached_tables)
        weight = by_order[int(order)] / total if total > 0 else 0.0
        guest_references += weight * per_size_miss[index] * guest_leaf * reach * hot
        host_references += weight * per_size_miss[index] * host_leaf * reach * hot
    leaf = guest_references + host_references
    mean_latency = local_share * local + (1.0 - local_share) * remote
    return {
        "miss": per_size_miss,
        "misses_per_access": misses,
        "memory_references": leaf,
        "guest_references": guest_references,
        "host_references": host_references,
        "remote_references": leaf * (1.0 - local_share),
        "cached": translation.walk_latency(2.0 * misses, leaf, 0.0, cost("walk_cached_latency")),
        "walk": translation.walk_latency(2.0 * misses, leaf, mean_latency, cost("walk_cached_latency")),
    }


def _zipf_factors(
    total: float, misses: float, cached_tables: float, guest_order: int, exponent: float
) -> tuple[float, float]:
    """How much less a Zipf law misses than uniform accesses: in the TLB, and then in the caches of leaf entries.

    The TLB and the caches keep the hottest pages, as many as they hold. ``misses`` is that of uniform accesses, whose
    complement is the part of all pages that the TLB covers.
    """
    from workbench.kernels import translation

    pages = max(1.0, np.ceil(total / 4096.0))
    everything = translation.harmonic(pages, exponent)

    def beyond(part: float) -> float:
        return 1.0 - translation.harmonic(np.floor(min(1.0, part) * pages), exponent) / everything

    if misses <= 0.0:
        return 1.0, 1.0
    in_tlb = 1.0 - misses
    in_cache = max(in_tlb, cached_tables / (8.0 * total / (4096.0 * 2.0**guest_order)))
    cold = beyond(in_tlb)
    uniform = max(0.0, 1.0 - in_cache)
    conditional = beyond(in_cache) / cold if cold > 0.0 else 0.0
    return cold / misses, conditional / uniform if uniform > 0.0 else 1.0


def table_walks(
    cost: xr.Dataset | Mapping[str, Any], guest_tables: np.ndarray, host_tables: np.ndarray, *, reached: float = 1.0
) -> tuple[np.ndarray, float]:
    """What page walks load: references in memory by node, and ns that caches serve, for each access that reaches memory.

    Parameters
    ----------
    cost : of :func:`walk_cost`, or one of :func:`walks_of`
    guest_tables : float64 (nodes,), where the pages of the guest's own page table lie; sums to 1
    host_tables : float64 (nodes,), where those of the second stage lie
    reached : part of the accesses that data caches do not serve, under a law that makes the same pages hot for them and for the
        TLB: cold pages then miss in both, and who reaches memory walks first. 1 where hits are by chance. What other accesses
        walk is :func:`walks_beside`.
    """
    if not cost_table.is_number(reached) or not 0.0 <= reached <= 1.0:
        raise WorkbenchError(f"reached: {repr(reached)[:60]} is not between 0 and 1")
    for name, tables in (("guest_tables", guest_tables), ("host_tables", host_tables)):
        if np.asarray(tables).dtype.kind not in "fiu" or not (np.isfinite(tables) & (np.asarray(tables) >= 0)).all():
            raise WorkbenchError(f"{name}: {repr(tables)[:60]} are no shares; numbers from 0 on are allowed")
    if np.shape(guest_tables) != np.shape(host_tables) or not np.size(guest_tables):
        raise WorkbenchError(f"host_tables: {np.size(host_tables)} values, guest_tables has {np.size(guest_tables)}")
    guest, host = float(cost["guest_references"]), float(cost["host_references"])
    walks = guest * np.asarray(guest_tables, float) + host * np.asarray(host_tables, float)
    each = 1.0 / max(reached, float(cost["misses_per_access"])) if 0.0 < reached < 1.0 else 1.0  # one walk at most
    return walks * each, float(cost["cached"]) * each


def walks_beside(cost: xr.Dataset | Mapping[str, Any], reached: float, *, hot: bool) -> float:
    """Walks of accesses whose data a cache holds and the TLB does not, for each one of an access that reaches memory.

    Parameters
    ----------
    cost : of :func:`walk_cost`, or one of :func:`walks_of`
    reached : part of the accesses that data caches do not serve; where that is none there is nothing to count by, and it is 0
    hot : whether the same pages are hot for both, so that what misses the TLB hits a cache only where the caches keep more
        pages; by chance otherwise, and an access that a cache serves walks as often as any
    """
    if not cost_table.is_number(reached) or not 0.0 <= reached <= 1.0:
        raise WorkbenchError(f"reached: {repr(reached)[:60]} is not between 0 and 1")
    if reached == 0.0:
        return 0.0
    return max(0.0, float(cost["misses_per_access"]) / reached - 1.0) if hot else 1.0 / reached - 1.0


def split_loss(memory: int, split_blocks: int, block: str = "1 GiB", into: str = "4 KiB", **options: Any) -> xr.Dataset:
    """Walk cost before and after ``split_blocks`` huge mappings of a guest became small ones.

    Parameters
    ----------
    memory : bytes of the guest, all mapped at ``block`` before
    split_blocks : blocks mapped at ``into`` afterwards
    options : passed to :func:`walk_cost`
    Returns the Dataset of :func:`walk_cost` with a dimension ``state`` (whole, split).
    """
    size = PAGE_SIZE << _order(block)
    blocks = cost_table.whole("memory", memory, 0) // size
    if not 0 <= cost_table.whole("split_blocks", split_blocks, 0) <= blocks:
        raise WorkbenchError(f"split_blocks: {split_blocks!r} of {blocks} blocks of {block}")
    whole = walk_cost({block: memory}, **options)
    split = walk_cost({block: memory - split_blocks * size, into: split_blocks * size}, **options)
    text = results.provenance(
        command="cost.translation.split_loss",
        memory=memory,
        split_blocks=split_blocks,
        block=block,
        into=into,
        **options,
    )
    return results.stack(WalkCost, [whole, split], "state", ["whole", "split"], provenance=text)

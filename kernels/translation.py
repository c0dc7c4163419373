"""Nested page walks, TLB reach, and how accesses spread over the pages of a guest.

A guest virtual address is translated by the guest's page table (``g`` levels), every step of which is itself a guest
physical address that the second-stage table (EPT, NPT; ``h`` levels) translates. A walk without any cache makes
``(g + 1) * (h + 1) - 1`` memory references (Bhargava et al., ASPLOS 2008): ``g`` of the guest's table and the rest of
the second stage. With the usual page-walk caches only the two leaf entries go to memory, which is what vMitosis
(ASPLOS 2021) measures, and only where the tables are larger than the caches (:func:`leaf_memory_fraction`).

Linux has the second-stage walk in ``arch/x86/kvm/mmu/`` (levels are chosen by ``kvm_mmu_max_mapping_level``); the walk
itself is the processor's.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

EXACT_TERMS = 64
"""Terms of a generalized harmonic number that are added one by one before the Euler-Maclaurin remainder."""


@kernel
def page_table_levels(order: Int, top_levels: Int) -> Int:
    """Levels a walk goes through for a page of 2**order small pages, in a table of ``top_levels`` (4 or 5) levels.

    order 0 is 4 KiB, 9 is 2 MiB, 18 is 1 GiB; -1 for another order.
    """
    if order % 9 != 0 or order < 0 or order // 9 >= top_levels:
        return -1
    return top_levels - order // 9


@kernel
def nested_walk_references(guest_levels: Int, host_levels: Int) -> Int:
    """Memory references of one nested walk without caches: (g + 1)(h + 1) - 1; h = 0 means no second stage."""
    return (guest_levels + 1) * (host_levels + 1) - 1


@kernel
def guest_table_references(guest_levels: Int) -> Int:
    """How many of a walk's references go to the guest's own page table."""
    return guest_levels


@kernel
def host_table_references(guest_levels: Int, host_levels: Int) -> Int:
    """How many of a walk's references go to the second-stage table: h for each guest entry and for the data."""
    return (guest_levels + 1) * host_levels


@kernel
def tlb_reach(entries: Int, order: Int) -> Int:
    """Bytes covered by ``entries`` translations of pages of 2**order small pages."""
    return entries << (12 + order)


@kernel
def tlb_miss_fraction(footprint: float, reach: float) -> float:
    """Part of uniformly random accesses over ``footprint`` bytes that miss a TLB covering ``reach`` bytes."""
    if footprint <= reach or footprint <= 0.0:
        return 0.0
    return 1.0 - reach / footprint


@kernel
def mapped_miss_fractions(
    mapped: np.ndarray, order: np.ndarray, entries: np.ndarray, shared: np.ndarray, miss: np.ndarray
) -> float:
    """TLB misses of uniformly random accesses to memory mapped at several page sizes; returns misses per access.

    Sizes that share one TLB (same value of ``shared``) get its entries in proportion to their misses' pressure, for
    which we take their mapped bytes; a size that needs fewer leaves the rest to the others.

    Parameters
    ----------
    mapped : float64 (sizes,), bytes mapped at each size
    order : int64 (sizes,), orders of the sizes
    entries : float64 (sizes,), entries of the TLB each size uses
    shared : int64 (sizes,), number of the TLB each size uses
    miss : float64 (sizes,), output, part of the accesses to memory of that size that miss
    """
    sizes = mapped.shape[0]
    total = 0.0
    for size in range(sizes):
        total += mapped[size]
        miss[size] = 0.0
    if total <= 0.0:
        return 0.0
    missed = 0.0
    for size in range(sizes):
        page = 4096.0 * 2.0 ** order[size]
        others_bytes = 0.0
        others_pages = 0.0
        for other in range(sizes):
            if other != size and shared[other] == shared[size]:
                others_bytes += mapped[other]
                others_pages += mapped[other] / (4096.0 * 2.0 ** order[other])
        if mapped[size] <= 0.0:
            continue
        fair = entries[size] * mapped[size] / (mapped[size] + others_bytes)
        left = entries[size] - others_pages
        miss[size] = tlb_miss_fraction(mapped[size], max(fair, left) * page)
        missed += miss[size] * mapped[size] / total
    return missed


@kernel
def leaf_memory_fraction(mapped: float, order: Int, cache_bytes: float) -> float:
    """Part of uniformly random references to leaf entries that miss a cache holding ``cache_bytes`` of page tables.

    Leaf tables take 8 bytes for each of the ``mapped`` bytes' pages: 2 MiB per GiB at 4 KiB, 8 bytes at 1 GiB, which is
    why walks of huge mappings seldom reach memory.
    """
    return tlb_miss_fraction(8.0 * mapped / (4096.0 * 2.0**order), cache_bytes)


@kernel
def walk_latency(references: float, memory_references: float, memory_latency: float, cached_latency: float) -> float:
    """ns of one walk of ``references`` of which ``memory_references`` go to memory and the rest hit a cache."""
    return memory_references * memory_latency + max(0.0, references - memory_references) * cached_latency


@kernel
def harmonic(count: float, exponent: float) -> float:
    """Sum of k**-exponent for k = 1..count, to about 1e-12 (Euler-Maclaurin beyond the first terms).

    Parameters
    ----------
    count : a whole number >= 0, as float so that 2**40 pages are no problem
    exponent : >= 0
    """
    total = 0.0
    first = min(count, float(EXACT_TERMS))
    k = 1.0
    while k <= first:
        total += k**-exponent
        k += 1.0
    if count <= EXACT_TERMS:
        return total
    a = float(EXACT_TERMS)
    if abs(exponent - 1.0) < 1e-12:
        integral = np.log(count / a)
    else:
        integral = (count ** (1.0 - exponent) - a ** (1.0 - exponent)) / (1.0 - exponent)
    ends = (count**-exponent - a**-exponent) / 2.0
    slopes = -exponent * (count ** (-exponent - 1.0) - a ** (-exponent - 1.0)) / 12.0
    third = exponent * (exponent + 1.0) * (exponent + 2.0)
    third *= (count ** (-exponent - 3.0) - a ** (-exponent - 3.0)) / 720.0
    return total + integral + ends + slopes + third


@kernel
def shares_of_runs(
    run_start: np.ndarray,
    run_length: np.ndarray,
    run_node: np.ndarray,
    first: float,
    exponent: float,
    share: np.ndarray,
) -> float:
    """Weight of every node when page ``k`` of the range (from 0) is touched in proportion to (k + 1)**-exponent.

    exponent 0 is uniform. The first ``first`` pages, the hottest, are left out: they stay in the caches.

    Parameters
    ----------
    run_start, run_length : int64 (runs,), pages, relative to the touched range
    run_node : int64 (runs,), index of the node; -1 is skipped
    first : whole number of hottest pages that do not reach memory
    exponent : of the Zipf law
    share : float64 (nodes,), output; sums to 1 unless nothing is left
    Returns the part of all accesses to present pages that reaches memory.
    """
    share[:] = 0.0
    total = 0.0
    everything = 0.0
    for run in range(run_start.shape[0]):
        if run_node[run] < 0:
            continue
        begin = float(run_start[run])
        end = begin + float(run_length[run])
        whole = harmonic(end, exponent) - harmonic(begin, exponent)
        begin = max(begin, min(first, end))
        mass = harmonic(end, exponent) - harmonic(begin, exponent)
        everything += whole
        share[run_node[run]] += mass
        total += mass
    if total > 0.0:
        for node in range(share.shape[0]):
            share[node] /= total
    if everything <= 0.0:
        return 0.0
    return total / everything

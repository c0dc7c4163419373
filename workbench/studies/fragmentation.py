"""What weeks of other allocations do to guests on 2 MiB folios of the page allocator, and what moving pages gives back.

Guests come and go as in :mod:`workbench.studies.vm_churn`; beside them small unmovable allocations of the kernel (slabs, page
tables, socket buffers) come and go on the same nodes, 4 KiB pages at a time. Both go through the same buddy allocator as pages of
guest_memfd do, which are unmovable too, so that they share page blocks (``mm/page_alloc.c: __rmqueue``). How much of the kernel's
own there is, and how long it stays, is an assumption; what the allocator makes of it is counted.

Guests without private memory can be moved under the series of June 2026. Then two things can be had again:

- 1 GiB areas, by compaction (``mm/page_alloc.c: alloc_contig_pages``): an area with nothing unmovable in it is emptied into what
  else is free on its node. Areas that hold least are emptied first, which is the least that must be copied. The two scanners
  of /proc/sys/vm/compact_memory (:mod:`workbench.engine.compaction`) look for no area: they fill broken blocks and none that is
  wholly free, so that where the allocator has kept 2 MiB together they find next to nothing to do.
- 2 MiB folios (``mm/khugepaged.c: collapse_file``): 512 small pages are copied into a block that is free now.

Private memory can do neither: the host cannot copy it.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench import results
from workbench.engine.compaction import BLOCK, scanned_blocks
from workbench.errors import WorkbenchError
from workbench.kernels import owned_regions
from workbench.kernels import vm_churn as churn_kernel
from workbench.studies import vm_churn
from workbench.studies.vm_churn import GIB_PAGES, TRACE_DAYS
from workbench.units import PAGE_SIZE, parse_bytes
from workbench.variables import Fragmentation

_LARGEST_SMALL = 256
"""Pages of the largest of the kernel's allocations here: 1 MiB in single pages."""
_MEAN_DAYS = 7.0
_MOST = 2_000_000
"""Allocations of the kernel in one run."""


def fragmentation(
    memory: int | str = "64 GiB",
    machines: int = 400,
    *,
    nodes: int = 1,
    background: tuple[float, ...] = (0.0, 0.02, 0.05),
    weeks: float = 6,
    fill: float = 1.0,
    samples: int = 28,
    seed: int = 0,
) -> xr.Dataset:
    """Serve the same guests beside more and more small allocations of the kernel.

    Parameters
    ----------
    memory, nodes : the host, a whole number of GiB on each node
    machines : guests that arrive within ``weeks``
    background : shares of the host's memory that the kernel's small allocations hold at any moment; their sizes are log-uniform
        from 4 KiB to 1 MiB, they stay a week on average (exponential). Assumptions
    fill : share of the host that guests would fill
    samples : moments at which memory is looked at

    Returns
    -------
    Dataset over ``background`` and ``sample`` (coordinate ``day``). ``mappable_2mib`` is the share of the guests' memory in
    folios of 2 MiB (not a number while no guest is there); ``mappable_collapsed`` the same after a pass of khugepaged, if
    guests may move. ``areas_free``, ``areas_compacted`` and ``areas_packed`` are 1 GiB areas: free as they are, after
    compaction if guests may move, and if everything could; ``areas_scanned`` after a write to compact_memory, with the free 2 MiB
    blocks before and after it (``blocks_free``, ``blocks_scanned``) and ``scanned_pages`` that it copies. Left out: watermarks,
    per-CPU lists, and page cache in what is free, which has to go first.
    """
    if any(not 0 <= share < 0.5 for share in background) or not 0 < weeks <= 520:
        raise WorkbenchError(f"background: {background}, weeks: {weeks}; shares from 0 to below 0.5, up to 520 weeks")
    churn = vm_churn.generate(memory, machines, nodes=nodes, fill=fill, seed=seed)
    days = 7 * weeks
    guest_days = churn.hours / 24 * (days / TRACE_DAYS)
    shape = (len(background), samples)
    counted = {
        name: np.zeros(shape, np.int64) for name in ("areas_free", "areas_compacted", "areas_packed", "moved_pages")
    }
    packed = {
        name: np.zeros(shape, np.int64) for name in ("blocks_free", "blocks_scanned", "areas_scanned", "scanned_pages")
    }
    shares = {name: np.full(shape, np.nan) for name in ("mappable_2mib", "mappable_collapsed")}
    refused = np.zeros(len(background), np.int64)
    moments = np.linspace(0, days, samples + 1)[1:]
    pages = parse_bytes(memory, "memory") // PAGE_SIZE
    for i, share in enumerate(background):
        rng = np.random.default_rng([seed, i])
        mine, mine_days = _small_allocations(share * pages, days, nodes, machines, rng)
        host = vm_churn.Allocating(machines + len(mine) // 2, memory, nodes, "kernel buddy")
        when = np.concatenate((mine_days, guest_days))
        order = np.argsort(when, kind="stable")
        events = np.ascontiguousarray(np.concatenate((mine, churn.events))[order])
        ends = np.searchsorted(when[order], moments, side="right")
        guests = np.arange(len(host.vms)) < machines
        begin, row = 0, np.zeros((1, churn_kernel.FIELDS), np.int64)
        for k, end in enumerate(ends.tolist()):
            host.run(events[begin:end], np.array([end - begin - 1]), row)
            begin = end
            regions = np.zeros((2, host.pages // GIB_PAGES), np.int64)
            owned_regions.pages_by_region(host.held.ranges, True, host.vms, guests, host.pages // nodes, regions)
            found = compacted(regions.reshape(2, nodes, -1))
            for name, value in zip(counted, found, strict=True):
                counted[name][i, k] = value
            for name, value in zip(packed, scanned_nodes(blocks_held(host, guests)), strict=True):
                packed[name][i, k] = value
            held, large = (
                int(host.vms[:machines, field].sum()) for field in (churn_kernel.VM_PAGES, churn_kernel.VM_2M)
            )
            small = sum(int(n) >> 9 << 9 for n in host.vms[:machines, churn_kernel.VM_PAGES].tolist()) - large
            again = min(small, int(row[0, churn_kernel.USABLE_2M]))
            if held:
                shares["mappable_2mib"][i, k], shares["mappable_collapsed"][i, k] = large / held, (large + again) / held
        refused[i] = host.counts[churn_kernel.REFUSED]
    return results.make(
        Fragmentation,
        {**counted, **packed, **shares, "refused": refused},
        {"background": np.array(background), "sample": np.arange(samples), "day": ("sample", moments)},
        provenance=results.provenance(
            command="studies.fragmentation.fragmentation", memory=memory, machines=machines, nodes=nodes,
            background=background, weeks=weeks, fill=fill, samples=samples, seed=seed,
        ),
        attributes={"host_bytes": host.pages * PAGE_SIZE, "nodes": nodes},
    )  # fmt: skip


def compacted(held: np.ndarray) -> tuple[int, int, int, int]:
    """1 GiB areas that are free, those after compaction, those if everything moved, and the pages that compaction copies.

    held : int64 (2, nodes, areas), pages held in each area: what cannot move, and what can
    """
    free = compact = packed = moved = 0
    for stays, moves in zip(held[0], held[1], strict=True):
        room = GIB_PAGES * len(stays) - int(stays.sum() + moves.sum())
        packed += room // GIB_PAGES
        clean = np.sort(moves[stays == 0])
        # Emptying the first k of these leaves room only if what they held fits into what is free elsewhere.
        copied = np.cumsum(clean)
        fits = room >= GIB_PAGES * np.arange(1, len(clean) + 1)
        free += int((clean == 0).sum())
        compact += int(fits.sum())
        moved += int(copied[fits][-1]) if fits.any() else 0
    return free, compact, packed, moved


def blocks_held(host: vm_churn.Allocating, chosen: np.ndarray) -> np.ndarray:
    """Pages held in each 2 MiB of each node, int64 (2, nodes, blocks): by machines that are not chosen, and by those that are."""
    rows, kinds = host.vms[:, churn_kernel.VM_FIRST], chosen.astype(np.int64)
    found = []
    while (rows >= 0).any():  # the next extent of every machine that has one
        rows, kinds = rows[rows >= 0], kinds[rows >= 0]
        at = host.held.ranges[rows]
        first = at[:, churn_kernel.ROW_PFN] + at[:, churn_kernel.ROW_NODE] * (host.pages // host.nodes)
        found.append(np.stack((kinds, first, first + at[:, churn_kernel.ROW_PAGES])))
        rows = at[:, churn_kernel.ROW_NEXT]
    kind, first, end = np.concatenate([np.zeros((3, 0), np.int64), *found], axis=1)
    edges = np.arange(0, host.pages + 1, 1 << BLOCK)
    below = [_below(np.sort(first[kind == k]), edges) - _below(np.sort(end[kind == k]), edges) for k in (0, 1)]
    return np.diff(below, axis=1).reshape(2, host.nodes, -1)


def _below(starts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Pages below each edge of ranges that begin at ``starts``, ascending, and have no end."""
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(starts)))
    count = np.searchsorted(starts, edges)
    return count * edges - sums[count]


def scanned_nodes(held: np.ndarray) -> tuple[int, int, int, int]:
    """Free 2 MiB blocks, those after compact_memory, free 1 GiB areas then, and the pages that it copies.

    held : int64 (2, nodes, blocks), pages held in each page block: what cannot move, and what can
    """
    before = after = areas = copied = 0
    for stays, moves in zip(held[0], held[1], strict=True):
        free = (1 << BLOCK) - stays - moves
        emptied, filled = scanned_blocks(moves, stays, free)
        whole = free + emptied - filled == 1 << BLOCK
        before += int((free == 1 << BLOCK).sum())
        after += int(whole.sum())
        areas += int(whole.reshape(-1, GIB_PAGES >> BLOCK).all(axis=1).sum())
        copied += int(emptied.sum())
    return before, after, areas, copied


def _small_allocations(
    pages: float, days: float, nodes: int, first: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's allocations as events int64 (n, 3) of machines ``first`` and up, and the day of each float64 (n,)."""
    mean = (_LARGEST_SMALL - 1) / np.log(_LARGEST_SMALL)
    alive = pages / mean
    count = round(alive * (1 + days / _MEAN_DAYS))
    if count > _MOST:
        raise WorkbenchError(
            f"background: {count} allocations of the kernel; at most {_MOST}: a smaller host, or fewer weeks"
        )
    size = np.exp(rng.uniform(0, np.log(_LARGEST_SMALL), count)).astype(np.int64)
    come = np.concatenate((np.zeros(min(count, round(alive))), rng.uniform(0, days, max(0, count - round(alive)))))
    leave = come + rng.exponential(_MEAN_DAYS, count)
    machine = first + np.arange(count)
    node = rng.integers(0, nodes, count)
    events = np.concatenate((np.stack((machine, size, node), 1), np.stack((machine, np.zeros_like(size), node), 1)))
    return events, np.concatenate((come, leave))

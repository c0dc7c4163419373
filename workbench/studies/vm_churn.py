"""Virtual machines arriving at a host and leaving it: what days of that do to each way of handing out memory.

Sizes follow the published mix of Azure's 2019 trace (``azure_vm_memory``), lifetimes are log-normal with most machines
short-lived and some that stay, arrivals a Poisson process. The same stream is carried out by six allocators:

======================= ==============================================================================================
``first-fit``,          the PFN range allocator with each of its fits: whole GiB of a machine as aligned GiB, then
``best-fit``,           2 MiB, then 4 KiB; memory taken from the kernel at boot, without struct pages
``buddy in ranges``
``kernel buddy``        the page allocator: blocks of orders 10, 9 and 0 (``mm/page_alloc.c``)
``hugetlb 2 MiB``,      pools that hold all memory from boot on (``mm/hugetlb.c``)
``hugetlb 1 GiB``
======================= ==============================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench.design import HUGETLB, HUGETLB_HVO
from workbench.errors import WorkbenchError
from workbench.kernels import buddy, pfn_range
from workbench.kernels import vm_churn as kernel
from workbench.kernels.zonelist import fallback_order
from workbench.tracking.struct_pages import vmemmap_pages
from workbench.truth.published import read_table
from workbench.units import PAGE_SIZE, parse_bytes
from workbench.variables import MachineChurn

GIB_PAGES = 1 << 18
ALLOCATORS = ("first-fit", "best-fit", "buddy in ranges", "kernel buddy", "hugetlb 2 MiB", "hugetlb 1 GiB")
RANGE_FITS = {"first-fit": pfn_range.FIRST_FIT, "best-fit": pfn_range.BEST_FIT, "buddy in ranges": pfn_range.BUDDY}
_HUGE_PAGES = {"hugetlb 2 MiB": 512, "hugetlb 1 GiB": GIB_PAGES}
_BLOCKS = ("4 MiB", "2 MiB", "4 KiB")
"""What the kernel's buddy allocator is asked for, in this order (``workbench.kernels.vm_churn.BUDDY_ORDERS``)."""
TRACE_DAYS = 14
_BUCKETS = {"0-2": (1, 2), "2-4": (2, 4), "4-8": (4, 8), "8-32": (8, 32), "32-64": (32, 64), ">64": (64, 512)}
"""GiB; the last one is open in the source, 512 GiB is our bound."""


@dataclass(frozen=True)
class Churn:
    """Events in order of time: int64 (n, 3) machine, pages (0: it leaves), node; and the time of each in hours."""

    events: np.ndarray
    hours: np.ndarray
    machines: int
    unit_pages: int


def vm_sizes(count: int, rng: np.random.Generator, column: str = "all Azure 2019") -> np.ndarray:
    """Memory of ``count`` machines in GiB: the published share of each bucket, log-uniform within a bucket."""
    table = read_table("azure_vm_memory")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    if column not in table.columns[1:]:
        raise WorkbenchError(f"column: {column!r} is not one of {', '.join(table.columns[1:])}")
    share = np.array([rows[bucket][column] for bucket in _BUCKETS], float)
    which = rng.choice(len(share), count, p=share / share.sum())
    low, high = np.array(list(_BUCKETS.values()), float)[which].T
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def generate(
    memory: int | str = "16 TiB",
    machines: int = 100_000,
    *,
    nodes: int = 8,
    unit: str = "4 KiB",
    fill: float = 0.85,
    seed: int = 0,
    column: str = "all Azure 2019",
) -> Churn:
    """A stream that keeps a host about ``fill`` full once it has filled up.

    The mean lifetime follows from Little's law: machines alive x mean size = ``fill`` x memory.
    """
    size = parse_bytes(memory, "memory")
    unit_pages = parse_bytes(unit, "unit") // PAGE_SIZE
    if machines <= 0 or not 0 < fill <= 2 or nodes <= 0:
        raise WorkbenchError(f"machines: {machines}, nodes: {nodes}, fill: {fill}; counts above 0 and a fill of 0 to 2")
    if unit_pages not in (1, 512, GIB_PAGES):
        raise WorkbenchError(f"unit: {unit!r} is not 4 KiB, 2 MiB or 1 GiB")
    rng = np.random.default_rng(seed)
    pages = np.ceil(vm_sizes(machines, rng, column) * GIB_PAGES / unit_pages).astype(np.int64) * unit_pages
    alive = fill * (size // PAGE_SIZE) / pages.mean()
    arrival = np.cumsum(rng.exponential(1.0, machines))  # one unit of time per arrival
    lifetime = rng.lognormal(0.0, 1.5, machines)
    lifetime *= alive / lifetime.mean()
    leave = arrival + lifetime
    when = np.concatenate((arrival, leave))
    order = np.argsort(when, kind="stable")
    machine = np.tile(np.arange(machines), 2)[order]
    wanted = np.concatenate((pages, np.zeros(machines, np.int64)))[order]
    node = np.tile(rng.integers(0, nodes, machines), 2)[order]
    # The last machines leave after the trace's end.
    hours = when[order] * (TRACE_DAYS * 24 / arrival[-1])
    return Churn(np.ascontiguousarray(np.stack((machine, wanted, node), axis=1)), hours, machines, unit_pages)


_SAMPLED = {
    "free_pages": kernel.FREE,
    "largest_free_pages": kernel.LARGEST,
    "free_blocks": kernel.FREE_BLOCKS,
    "free_areas_1gib_pages": kernel.AREAS_1G,
    "machines": kernel.MACHINES,
    "extents": kernel.EXTENTS,
    "held_pages": kernel.PAGES,
    "refused_so_far": kernel.REFUSED,
}
_RATIOS = {
    "mappable_2mib": (kernel.MAPPABLE_2M, kernel.PAGES),
    "mappable_1gib": (kernel.MAPPABLE_1G, kernel.PAGES),
    "local": (kernel.LOCAL, kernel.PAGES),
    "extents_per_machine": (kernel.EXTENTS, kernel.MACHINES),
}
_UNUSABLE = {"unusable_2mib": kernel.USABLE_2M, "unusable_1gib": kernel.USABLE_1G}
"""Variables and the fields of a sample that they are, are a ratio of, or are 1 less a share of free memory."""
RANGE_BYTES, EXTENT_BYTES, BLOCK_BYTES = 16, 24, 8
"""Bytes of one free range, of one extent in its owner's table, of one free block of the power-of-two variant."""


def serve(
    churn: Churn,
    memory: int | str = "16 TiB",
    nodes: int = 8,
    allocators: tuple[str, ...] = ALLOCATORS,
    samples: int = 200,
    days: float | None = TRACE_DAYS,
    largest_unit: str = "1 GiB",
) -> xr.Dataset:
    """Carry out a stream with each allocator, on the same host and in the same order.

    Parameters
    ----------
    churn : the stream (:func:`generate`)
    memory, nodes : the host; each node has an equal, whole number of GiB. Memory that is far away is tried last, nodes
        lie on a ring
    allocators : of :data:`ALLOCATORS`
    samples : moments at which the state of memory is taken, evenly spread over ``days`` (None: over the whole stream)
    largest_unit : "1 GiB": the range allocators are asked for whole aligned GiB first; "2 MiB": for 2 MiB at once

    Returns
    -------
    Dataset over ``allocator`` and ``sample`` (coordinate ``day``). Every variable has units, long_name and basis.
    ``unusable_2mib`` and ``unusable_1gib`` are Linux's unusable free space index (``mm/vmstat.c: unusable_free_index``):
    the share of free memory that cannot serve a request of that size. ``seconds`` is what this machine needed.

    Left out everywhere: watermarks, per-CPU lists, other users of the host's memory.
    """
    pages = _host_pages(memory, nodes)
    if largest_unit not in ("1 GiB", "2 MiB"):
        raise WorkbenchError(f"largest_unit: {largest_unit!r} is not 1 GiB or 2 MiB")
    sample_at = moments(churn, samples, days)
    first_unit = GIB_PAGES if largest_unit == "1 GiB" else 512
    outcomes = [_carry_out(churn, pages, nodes, name, sample_at, first_unit) for name in allocators]
    table = np.stack([outcome.samples for outcome in outcomes])  # (allocator, sample, field)
    counts = np.stack([outcome.counts for outcome in outcomes])
    orders = np.stack([outcome.order_counts for outcome in outcomes])
    values: dict[str, np.ndarray] = {name: table[:, :, field] for name, field in _SAMPLED.items()}
    for name, (part, whole) in _RATIOS.items():
        below = table[:, :, whole]
        values[name] = np.divide(table[:, :, part], below, out=np.zeros(below.shape), where=below > 0)
    free = table[:, :, kernel.FREE]
    for name, field in _UNUSABLE.items():
        usable = np.divide(table[:, :, field], free, out=np.zeros(free.shape), where=free > 0)
        values[name] = np.where(free > 0, 1 - usable, 0.0)
    values["allocator_bytes"] = np.stack([_own_bytes(name, row) for name, row in zip(allocators, table, strict=True)])
    for name, field in (("arrivals", kernel.ARRIVED), ("refused", kernel.REFUSED), ("extents_given", kernel.GIVEN)):
        values[name] = counts[:, field]
    values["refused_1gib"] = np.array(
        [_refused_1gib(churn, pages, nodes, name, outcome) for name, outcome in zip(allocators, outcomes, strict=True)],
        np.int64,
    )
    values["asked_pages"], values["blocks_missing"] = orders[:, 0], orders[:, 1]
    for name, hvo in (("struct_page_bytes", False), ("struct_page_bytes_hvo", True)):
        sizes = [_struct_page_bytes(allocator, pages * PAGE_SIZE, hvo) for allocator in allocators]
        values[name] = np.array(sizes, np.int64)
    values["seconds"] = np.array([outcome.seconds for outcome in outcomes])
    return results.make(
        MachineChurn,
        values,
        {
            "allocator": list(allocators),
            "sample": sample_at,
            "block": list(_BLOCKS),
            "day": ("sample", churn.hours[sample_at] / 24),
        },
        provenance=results.provenance(
            command="studies.vm_churn.serve", churn=churn, memory=memory, nodes=nodes, allocators=allocators,
            samples=samples, days=days, largest_unit=largest_unit,
        ),
        attributes={"host_bytes": pages * PAGE_SIZE, "nodes": nodes, "events": len(churn.events)},
    )  # fmt: skip


def moments(churn: Churn, samples: int, days: float | None) -> np.ndarray:
    """Numbers of the events after which samples are taken, evenly spread over ``days`` (None: over the whole stream)."""
    if samples <= 0:
        raise WorkbenchError(f"samples: {samples}; at least 1")
    hours = np.linspace(0, churn.hours[-1] if days is None else days * 24, samples + 1)[1:]
    return np.unique((np.searchsorted(churn.hours, hours, side="right") - 1).clip(min=0))


def _host_pages(memory: int | str, nodes: int) -> int:
    pages = parse_bytes(memory, "memory") // PAGE_SIZE
    if nodes <= 0 or pages <= 0 or pages % (nodes * GIB_PAGES):
        raise WorkbenchError(f"memory: {memory!r} on {nodes} nodes; each node needs a whole number of GiB")
    return pages


def _struct_page_bytes(allocator: str, size: int, hvo: bool) -> int:
    """Ranges are taken at boot without struct pages; everything else has them, huge pages with HVO only their heads."""
    if allocator in RANGE_FITS:
        return 0
    if hvo and allocator in _HUGE_PAGES:
        return vmemmap_pages(HUGETLB_HVO.name, size, allocator.removeprefix("hugetlb ")).total * PAGE_SIZE
    return vmemmap_pages(HUGETLB.name, size).total * PAGE_SIZE


def _own_bytes(allocator: str, table: np.ndarray) -> np.ndarray:
    """Free lists of the page allocator and of hugetlb lie in struct pages, and so does what the machines hold."""
    if allocator not in RANGE_FITS:
        return np.zeros(len(table), np.int64)
    each = BLOCK_BYTES if allocator == "buddy in ranges" else RANGE_BYTES
    return each * table[:, kernel.FREE_BLOCKS] + EXTENT_BYTES * table[:, kernel.EXTENTS]


@dataclass(frozen=True)
class _Result:
    samples: np.ndarray
    counts: np.ndarray
    order_counts: np.ndarray
    seconds: float


def fallback(nodes: int) -> np.ndarray:
    """Fallback orders of nodes on a ring, as Linux builds them from distances."""
    step = np.abs(np.arange(nodes)[:, None] - np.arange(nodes))
    distance = 10 + 2 * np.minimum(step, nodes - step)
    out = np.empty((nodes, nodes), np.int64)
    fallback_order(distance, np.ones(nodes, bool), np.zeros(nodes, bool), np.zeros(nodes, np.int64), out)
    return out


def _refused_1gib(churn: Churn, pages: int, nodes: int, allocator: str, usual: _Result) -> int:
    """Machines turned away if whole GiB must be 1 GiB pages, which the page allocator and 2 MiB pools do not have."""
    if allocator in RANGE_FITS:
        none = np.zeros(0, np.int64)
        return int(_carry_out(churn, pages, nodes, allocator, none, GIB_PAGES, True).counts[kernel.REFUSED])
    if allocator == "hugetlb 1 GiB":
        return int(usual.counts[kernel.REFUSED])
    return int((churn.events[:, 1] >= GIB_PAGES).sum())


class Allocating:
    """A host that one allocator serves: what is free, what each machine holds, and the running counts.

    Parameters
    ----------
    machines : how many a stream names
    memory, nodes, allocator : as for :func:`serve`
    first_unit : pages of the largest block that the range allocators are asked for
    strict : turn machines away rather than take smaller blocks (:func:`workbench.kernels.vm_churn.churn_ranges`)
    """

    def __init__(
        self,
        machines: int,
        memory: int | str,
        nodes: int,
        allocator: str,
        first_unit: int = GIB_PAGES,
        strict: bool = False,
    ) -> None:
        if allocator not in ALLOCATORS:
            raise WorkbenchError(f"allocators: {allocator!r} is not one of {', '.join(ALLOCATORS)}")
        self.allocator, self.nodes, self.pages = allocator, nodes, _host_pages(memory, nodes)
        self.page_pages = _HUGE_PAGES.get(allocator, 0)
        """Pages of each huge page of a pool, 0 where there is none; they are on lists (``following``)."""
        self.counted_by_node = allocator == "kernel buddy"
        """Pfns count from the start of their node."""
        self.vms = np.zeros((machines, kernel.VM_FIELDS), np.int64)
        self.vms[:, kernel.VM_FIRST] = -1
        self.counts = np.zeros(kernel.COUNTS, np.int64)
        self.order_counts = np.zeros((2, len(_BLOCKS)), np.int64)
        # Rows for extents that are never used are never touched, so there may be many.
        rows = 0 if self.page_pages else 1 << 24
        self.held = kernel.Held(
            np.zeros((rows, kernel.ROW_FIELDS), np.int64),
            np.array([0, -1]),
            self.vms,
            np.zeros((1 << 16, 2), np.int64),
        )
        self._order_of_nodes = fallback(nodes)
        self._kernel: Callable[..., Any]
        self._before: tuple[Any, ...]
        self._after: tuple[Any, ...] = ()
        if self.page_pages:
            self._kernel = kernel.churn_hugetlb
            pools = _huge_page_pools(self.pages, nodes, self.page_pages)
            self.following = pools[1]
            self._before = (*pools, self.vms)
        elif allocator in RANGE_FITS:
            self._kernel = kernel.churn_ranges
            units = np.array([unit for unit in (GIB_PAGES, 512, 1) if unit <= first_unit], np.int64)
            fit = RANGE_FITS[allocator]
            free = kernel.FreeRanges(*free_ranges(self.pages, nodes, fit))
            self._before = (fit, units, strict, free, self.held)
        else:
            self._kernel = kernel.churn_buddy
            self._before, self._after = (_buddies(self.pages, nodes), self.held), (self.order_counts,)

    def run(self, events: np.ndarray, sample_at: np.ndarray | None = None, samples: np.ndarray | None = None) -> None:
        """Carry out events that follow those before; ``samples`` (s, fields) receives the state after ``sample_at`` (s,)."""
        if sample_at is None or samples is None:
            sample_at, samples = np.zeros(0, np.int64), np.zeros((0, kernel.FIELDS), np.int64)
        sampling = kernel.Sampling(sample_at, samples, self.counts)
        code = self._kernel(events, self._order_of_nodes, *self._before, sampling, *self._after)
        if code != pfn_range.OK:
            raise WorkbenchError(
                f"churn: {self.allocator} ended with code {code}: it needs more free ranges or extents than fit"
            )


def _carry_out(
    churn: Churn,
    pages: int,
    nodes: int,
    allocator: str,
    sample_at: np.ndarray,
    first_unit: int,
    strict: bool = False,
) -> _Result:
    host = Allocating(churn.machines, pages * PAGE_SIZE, nodes, allocator, first_unit, strict)
    samples = np.zeros((len(sample_at), kernel.FIELDS), np.int64)
    host.run(churn.events[:0], sample_at, samples)  # compiles
    begin = time.process_time()
    host.run(churn.events, sample_at, samples)
    return _Result(samples, host.counts, host.order_counts, time.process_time() - begin)


def _huge_page_pools(pages: int, nodes: int, page_pages: int) -> tuple[Any, ...]:
    """All memory in free lists with the lowest page first, the best case for the first machines."""
    per_node = pages // page_pages // nodes
    following = np.arange(1, nodes * per_node + 1, dtype=np.int32)
    following[per_node - 1 :: per_node] = -1
    head = np.arange(nodes, dtype=np.int64) * per_node
    area_free = np.full(pages // GIB_PAGES, GIB_PAGES, np.int64)
    return page_pages, following, head, np.full(nodes, per_node, np.int64), area_free


def free_ranges(pages: int, nodes: int, fit: int, capacity: int = 1 << 16) -> tuple[np.ndarray, ...]:
    """State of the range allocator (start, end, count, blocks, blocks_count) with all memory of each node free."""
    per_node = pages // nodes
    is_buddy = fit == pfn_range.BUDDY
    start = np.zeros((nodes, 1 if is_buddy else capacity), np.int64)
    end, count = np.zeros_like(start), np.zeros(nodes, np.int64)
    orders = per_node.bit_length() if is_buddy else 1
    blocks = np.zeros((nodes, orders, capacity if is_buddy else 1), np.int64)
    blocks_count = np.zeros((nodes, orders), np.int64)
    for node in range(nodes):
        if is_buddy:
            pfn_range.buddy_free(blocks, blocks_count, node, node * per_node, per_node)
        else:
            pfn_range.free(start, end, count, node, node * per_node, per_node)
    return start, end, count, blocks, blocks_count


def _buddies(pages: int, nodes: int) -> tuple[buddy.Buddy, ...]:
    """One buddy system per node, because page numbers are 32 bits; arrays are mostly never touched."""
    per_node = pages // nodes
    made = [buddy.new_buddy(np.zeros(1, np.int64), np.array([per_node])) for _ in range(nodes)]
    for zone in made:
        buddy.release_range(zone, 0, 0, per_node)
    empty = [buddy.new_buddy(np.zeros(1, np.int64), np.zeros(1, np.int64))] * (-nodes % kernel.BUDDIES)
    return (*made, *empty)

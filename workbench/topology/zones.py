"""Zones, watermarks and reserves that x86-64 Linux makes of a host's memory.

Linux: ``mm/page_alloc.c`` (``calculate_min_free_kbytes``, ``__setup_per_zone_wmarks``,
``setup_per_zone_lowmem_reserve``), ``mm/khugepaged.c`` (``set_recommended_min_free_kbytes``). The physical layout is
modelled: nodes lie one after another in ascending order of id, the memory below 4 GiB ends at ``lowmem``, and of each
page 64 bytes go to its struct page. Zones that a host states are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.kernels.zonelist import ZONE_DMA, ZONE_DMA32, ZONE_MOVABLE, ZONE_NORMAL
from workbench.topology.host import Host
from workbench.units import PAGE_SIZE

Int64s = npt.NDArray[np.int64]

ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable")
DMA_BYTES = 16 << 20
LOWMEM_BYTES = 2 << 30
"""Memory below the 4 GiB hole, if nothing else is said: what servers with a large PCI hole have."""
FOUR_GIB = 4 << 30
STRUCT_PAGE_SHARE = 64
"""One page of struct pages for so many pages: 64 bytes each."""
WATERMARK_SCALE_FACTOR = 10
PAGEBLOCK_PAGES = 512
MIGRATE_PCPTYPES = 3
LOWMEM_RESERVE_RATIO = {ZONE_DMA: 256, ZONE_DMA32: 256, ZONE_NORMAL: 32}


@dataclass(frozen=True)
class ZoneTable:
    """All zones of a host, one row each; pages unless said otherwise, int64 (zones,)."""

    zone_node: Int64s  # index into host.nodes
    zone_type: Int64s  # ZONE_*
    managed: Int64s
    free: Int64s
    min: Int64s
    low: Int64s
    high: Int64s
    lowmem_reserve_normal: Int64s  # kept from requests whose highest zone is NORMAL
    start_pfn: Int64s  # of the modelled layout; zones that a host states follow one another from 4 GiB on
    free_cma: Int64s  # of free, what pages that cannot move never get; as the host states it
    highatomic: Int64s  # of free, what only atomic allocations get; where /proc/pagetypeinfo says it


def default_zones(host: Host, lowmem_bytes: int = LOWMEM_BYTES, thp: bool = False) -> ZoneTable:
    """The zones of a host after boot.

    Nodes with stated ``zones`` keep them. For the others the layout is modelled; free pages are ``free_bytes`` if the
    node states them (spread over its zones from the highest down), else all that is managed. ``thp`` says whether
    transparent huge pages are enabled, which raises the watermarks.
    """
    rows: list[tuple[int, int, int]] = []  # node index, type, present pages
    starts: dict[tuple[int, int], int] = {}
    address = 0
    for index, node in enumerate(host.nodes):
        if node.zones is not None:
            continue
        kinds: dict[int, int] = {}
        left = node.memory_bytes
        while left > 0:
            kind, room = _zone_at(address, lowmem_bytes)
            part = min(left, room)
            if node.movable:
                kind = ZONE_MOVABLE
            starts.setdefault((index, kind), address // PAGE_SIZE)
            kinds[kind] = kinds.get(kind, 0) + part // PAGE_SIZE
            address += part
            left -= part
            if address == lowmem_bytes and lowmem_bytes < FOUR_GIB:
                address = FOUR_GIB
        rows += [(index, kind, pages) for kind, pages in sorted(kinds.items())]
    table = np.array(rows, np.int64).reshape(-1, 3)
    managed = table[:, 2] - table[:, 2] // STRUCT_PAGE_SHARE
    marks = watermarks(managed, table[:, 1], thp)
    free = _free(host, table, managed)
    modelled = np.column_stack((table[:, :2], managed, free, *marks, np.zeros((len(table), 2), np.int64))).tolist()
    stated = [
        [index, ZONE_NAMES.index(zone.name), zone.managed, zone.free, zone.min, zone.low, zone.high, zone.free_cma,
         min(zone.pages_of_type("HighAtomic"), zone.free - zone.free_cma)]
        for index, node in enumerate(host.nodes)
        for zone in node.zones or ()
    ]  # fmt: skip
    columns = np.array(sorted(modelled + stated), np.int64).reshape(-1, 9).T
    reserve = lowmem_reserve(columns[0], columns[1], columns[2])
    beyond = max(FOUR_GIB, address) // PAGE_SIZE + np.concatenate(([0], np.cumsum(columns[2])))
    start_pfn = [
        starts.get((int(node), int(kind)), int(after))
        for node, kind, after in zip(columns[0], columns[1], beyond[:-1], strict=True)
    ]
    firsts = np.array(start_pfn, np.int64)
    return ZoneTable(
        columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], columns[6],
        reserve, firsts, columns[7], columns[8],
    )  # fmt: skip


def _zone_at(address: int, lowmem_bytes: int) -> tuple[int, int]:
    """Zone of a physical address and the bytes up to the next boundary."""
    if address < DMA_BYTES:
        return ZONE_DMA, DMA_BYTES - address
    if address < lowmem_bytes and address < FOUR_GIB:
        return ZONE_DMA32, min(lowmem_bytes, FOUR_GIB) - address
    return ZONE_NORMAL, 1 << 62


def _free(host: Host, table: Int64s, managed: Int64s) -> Int64s:
    free = managed.copy()
    for index, node in enumerate(host.nodes):
        if node.free_bytes is None:
            continue
        left = node.free_bytes // PAGE_SIZE
        for row in np.flatnonzero(table[:, 0] == index)[::-1]:
            free[row] = min(left, managed[row])
            left -= free[row]
    return free


def min_free_kbytes(managed: Int64s, high: Int64s) -> int:
    """calculate_min_free_kbytes over zones that are not movable; ``high`` are the high watermarks of that moment."""
    lowmem_kbytes = int((managed - high).clip(min=0).sum()) * (PAGE_SIZE >> 10)
    return min(max(math.isqrt(lowmem_kbytes * 16), 128), 262144)


def watermarks(managed: Int64s, zone_type: Int64s, thp: bool = False) -> tuple[Int64s, Int64s, Int64s]:
    """Min, low and high watermark of each zone, int64 (zones,) each.

    The kernel evaluates min_free_kbytes while all high marks are 0, and again when khugepaged starts, with the marks of
    the first pass taken off. With transparent huge pages khugepaged asks for room to keep page blocks apart instead,
    and for no more than a twentieth of memory; the larger value counts.
    """
    usable = zone_type != ZONE_MOVABLE
    first = min_free_kbytes(managed[usable], np.zeros(usable.sum(), np.int64))
    marks = _watermarks(managed, zone_type, first)
    if not thp:
        return _watermarks(managed, zone_type, min_free_kbytes(managed[usable], marks[2][usable]))
    wanted = PAGEBLOCK_PAGES * int(usable.sum()) * (2 + MIGRATE_PCPTYPES * MIGRATE_PCPTYPES)
    buffer_pages = int((managed - marks[2])[usable].clip(min=0).sum())
    return _watermarks(managed, zone_type, max(first, min(wanted, buffer_pages // 20) * (PAGE_SIZE >> 10)))


def _watermarks(managed: Int64s, zone_type: Int64s, kbytes: int) -> tuple[Int64s, Int64s, Int64s]:
    pages_min = kbytes // (PAGE_SIZE >> 10)
    movable = zone_type == ZONE_MOVABLE
    lowmem = max(int(managed[~movable].sum()), 1)
    base = np.array([pages_min * int(pages) // lowmem for pages in managed], np.int64)
    low_mark = np.where(movable, (managed // 1024).clip(32, 128), base)
    gap = np.maximum(base // 4, managed * WATERMARK_SCALE_FACTOR // 10000)
    return low_mark, low_mark + gap, low_mark + 2 * gap


def lowmem_reserve(zone_node: Int64s, zone_type: Int64s, managed: Int64s, highest: int = ZONE_NORMAL) -> Int64s:
    """Pages each zone keeps from requests whose highest zone is ``highest``: int64 (zones,)."""
    out = np.zeros(len(managed), np.int64)
    for row in range(len(managed)):
        kind = int(zone_type[row])
        if kind >= highest:
            continue
        above = (zone_node == zone_node[row]) & (zone_type > kind) & (zone_type <= highest)
        out[row] = int(managed[above].sum()) // LOWMEM_RESERVE_RATIO[kind]
    return out

"""Huge memory that comes from the zones themselves: how many free blocks of its order each zone can give.

``mm/page_alloc.c: __zone_watermark_ok``: a request of order n is served while the zone keeps its mark, its lowmem reserve and
a free block of that order. Memory of a guest_memfd is unmovable: it never comes from ZONE_MOVABLE, nor from CMA; anonymous
memory can move. Blocks stand in the table of zones where pools of hugetlb do, one row per node, and the pages that they leave
in the rows of the zones; 4 KiB requests take those first and then break blocks up (``rmqueue_smallest``: the smallest block
that is large enough). 4 KiB pages that are freed are taken to lie together again: where each one lay is not kept (modelled).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.intervals import Int64s
from workbench.kernels import zone_blocks as kernel
from workbench.kernels import zonelist
from workbench.topology.host import Host, Zone

_NAMES = ("DMA", "DMA32", "Normal", "Movable")


@dataclass
class ZoneBlocks:
    """Blocks of ``order`` in each zone, arrays int64 (zones,) without the rows of pools.

    ``most``: free blocks that the zone has when nothing is taken; ``used``: how many of them files have; ``held``: how many
    stand in the rows of pools; ``kept`` int64 (2, zones): pages that it keeps, at its low and at its min mark.
    """

    order: int
    zone_node: Int64s
    kept: Int64s
    most: Int64s
    used: Int64s
    held: Int64s

    @classmethod
    def of(
        cls,
        host: Host,
        zone_node: Int64s,
        zone_type: Int64s,
        kept: Int64s,
        ranges: Int64s,
        order: int,
        movable: bool = False,
    ) -> ZoneBlocks:
        """The zones of a host: with the blocks that it states (/proc/buddyinfo), else as if free memory lay together.

        ``ranges``: aligned ranges of that size in each zone. ``movable``: whatever asks for them can move. Where the host says
        of which migrate type its blocks are (/proc/pagetypeinfo), those that nobody gets do not count.
        """
        most = ranges.copy()
        for zone, (node, kind) in enumerate(zip(zone_node.tolist(), zone_type.tolist(), strict=True)):
            if kind > zonelist.ZONE_NORMAL and not movable:
                most[zone] = 0
                continue
            for stated in host.nodes[node].zones or ():
                if stated.name == _NAMES[kind] and stated.free_blocks is not None:
                    most[zone] = min(most[zone], _stated(stated, min(order, 10), movable) >> order)
        nothing = np.zeros(len(zone_node), np.int64)
        return cls(order, zone_node, kept, most, nothing, nothing.copy())

    def within(self, pages: Int64s) -> Int64s:
        """Blocks, int64 (2, zones), that zones with so many free pages can give: down to their low mark, to their min mark."""
        nodes, held = int(self.zone_node.max()) + 1, np.zeros_like(self.kept)
        for kept, blocks in zip(self.kept, held, strict=True):
            rows = np.append(np.zeros(nodes, np.int64), pages)
            kernel.settle.direct(rows, self.zone_node, kept, self.most, self.used, blocks, self.order, False)
        return held

    def settle(self, free: Int64s, broken_up: bool = False) -> None:
        """Bring the rows of ``free`` (blocks by node, then pages by zone) in step with each other, in place.

        ``broken_up``: leave all pages with the zones, for 4 KiB requests; the next call takes the whole blocks out again.
        """
        kernel.settle.direct(free, self.zone_node, self.kept[1], self.most, self.used, self.held, self.order, broken_up)

    def break_up(self, free: Int64s) -> None:
        """Leave all pages of a copy of ``free`` with the zones; what stands in step stays as it is."""
        nodes = len(free) - len(self.zone_node)
        free[nodes:] += self.held << self.order
        free[:nodes] = 0


_KEPT_FROM_ALL = ("HighAtomic", "Isolate")


def _stated(zone: Zone, order: int, movable: bool) -> int:
    """Pages in free blocks of ``order`` and more that a request may get, as the host says.

    mm/page_alloc.c: fallbacks: blocks of HighAtomic are for atomic requests, those of Isolate for nobody, those of CMA for
    what can move; any other type lends its blocks to the others. Where types are not stated all CMA pages lie in such blocks.
    """
    assert zone.free_blocks is not None
    whole = _pages(zone.free_blocks, order)
    if zone.free_by_type is None:
        return whole if movable else max(0, whole - zone.free_cma)
    withheld = (*_KEPT_FROM_ALL, *(() if movable else ("CMA",)))
    return max(0, whole - sum(_pages(blocks, order) for kind, blocks in zone.free_by_type.items() if kind in withheld))


def _pages(blocks: tuple[int, ...], order: int) -> int:
    return sum(count << n for n, count in enumerate(blocks) if n >= order)

"""Host memory that guest_memfd files share: what struct pages are restored from, and what folios and units come from.

Linux: ``mm/hugetlb.c`` (pools, reservations), ``mm/hugetlb_vmemmap.c`` (where restored vmemmap comes from). Ranges of
memory without struct page are the seed mail's proposal (:mod:`workbench.kernels.pfn_range`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workbench.kernels import pfn_range
from workbench.kernels.folios import run as folio
from workbench.tracking.tracked_file import Int64s

UNLIMITED = 1 << 40


class HostMemory:
    """Memory that huge folios and their vmemmap are taken from.

    Parameters
    ----------
    vmemmap : int64 (nodes,), free 4 KiB pages that vmemmap can be restored from
    order : int64 (nodes, nodes), nodes tried for memory wanted on each node
    pool : int64 (nodes, 2), free 2 MiB and 1 GiB pages
    """

    def __init__(self, vmemmap: Int64s, order: Int64s, pool: Int64s) -> None:
        self.array = folio.new_host(vmemmap, order, pool)
        self.pool_poison = folio.new_pool_poison()

    @classmethod
    def make(
        cls,
        nodes: int = 1,
        *,
        vmemmap_pages: int | Sequence[int] = UNLIMITED,
        pool_2m: int | Sequence[int] = UNLIMITED,
        pool_1g: int | Sequence[int] = UNLIMITED,
        order: Int64s | None = None,
    ) -> HostMemory:
        """Host memory by plain numbers (one for all nodes, or one each); nodes spill to the next higher, then wrap."""
        pool = np.empty((nodes, 2), np.int64)
        pool[:, 0], pool[:, 1] = pool_2m, pool_1g
        order = spill_order(nodes) if order is None else np.asarray(order, np.int64)
        return cls(np.array(np.broadcast_to(vmemmap_pages, nodes), np.int64), order, pool)

    @property
    def vmemmap(self) -> Int64s:
        """int64 (nodes,), free pages that vmemmap can be restored from; a view."""
        return self.array[:, folio.FREE]

    @property
    def pool(self) -> Int64s:
        """int64 (nodes, 2), free 2 MiB and 1 GiB pages; a view."""
        return self.array[:, folio.POOL : folio.POOL_FULL]

    @property
    def held_vmemmap(self) -> int:
        """vmemmap pages of huge pages that are in their pool without being optimised."""
        nodes = len(self.array)
        return int(self.array[:, folio.ORDER + nodes :].sum())

    @property
    def poisoned(self) -> bool:
        """Whether any page of a file or a pool is poisoned."""
        return bool(self.array[0, folio.POISONED])

    def never_handed_out(self, order: int) -> Int64s:
        """int64 (nodes,), huge pages in the pools that count as free but are passed over: their first page is poisoned."""
        rows = self.pool_poison[(self.pool_poison[:, folio.POISON_SIZE] == (order == folio.ORDER_1G))]
        rows = rows[(rows[:, folio.POISON_NODE] >= 0) & (rows[:, folio.POISON_PAGE] == 0)]
        return np.bincount(rows[:, folio.POISON_NODE], minlength=len(self.array)).astype(np.int64)


class RangeMemory:
    """Ranges of page frames without struct page, and memory for the struct pages of what is shared.

    Parameters
    ----------
    ranges : for each node (first pfn, end) of its free ranges, ascending and not touching
    vmemmap, order : as for :class:`HostMemory`
    zones : how many whoever hands out the units himself takes them from
    """

    def __init__(
        self, ranges: Sequence[Sequence[tuple[int, int]]], vmemmap: Int64s, order: Int64s, zones: int = 0
    ) -> None:
        room = 64 + max((len(node) for node in ranges), default=0)
        self.start, self.end = (np.zeros((len(ranges), room), np.int64) for _ in range(2))
        self.count = np.array([len(node) for node in ranges], np.int64)
        for node, free in enumerate(ranges):
            for row, (first, end) in enumerate(free):
                self.start[node, row], self.end[node, row] = first, end
        self.vmemmap = np.ascontiguousarray(vmemmap, np.int64)
        self.order = np.ascontiguousarray(order, np.int64)
        self.known = self.free_pages
        """int64 (nodes,), of these what whoever hands out the units himself knows of, whichever file they were of."""
        self.given_back = np.zeros(zones, np.int64)
        """int64 (zones,), pages of 4 KiB that are free again, of those that stayed taken when they left their file."""

    @classmethod
    def make(cls, nodes: int = 1, *, pages: int = 1 << 36, vmemmap_pages: int = UNLIMITED) -> RangeMemory:
        """``pages`` free pages on each node, from pfn (node + 1) << 36 on."""
        ranges = [[((node + 1) << 36, ((node + 1) << 36) + pages)] for node in range(nodes)]
        return cls(ranges, np.full(nodes, vmemmap_pages, np.int64), spill_order(nodes))

    @property
    def free_pages(self) -> Int64s:
        """int64 (nodes,), pages in free ranges."""
        return np.array(
            [pfn_range.free_pages(self.start, self.end, self.count, node) for node in range(len(self.count))], np.int64
        )


def spill_order(nodes: int) -> npt.NDArray[np.int64]:
    """int64 (nodes, nodes): each node itself, then the next higher ones, wrapping round."""
    return (np.arange(nodes)[:, None] + np.arange(nodes)) % nodes

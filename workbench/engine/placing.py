"""How folios of a file come to lie in zones: which of its pages are absent, in which order they come, and where they go.

Linux: ``mm/mempolicy.c: alloc_pages_mpol``, ``mm/page_alloc.c: get_page_from_freelist``, ``mm/hugetlb.c: alloc_hugetlb_folio``.
Which zone backs a folio is decided by :mod:`workbench.kernels.placement`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine.filemap import FileMap
from workbench.engine.objects import Inode, Thread
from workbench.engine.pfns import FreePfns
from workbench.engine.request_tables import RequestTables, covering, split_at
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s, in_intervals, intervals_add, intervals_minus, no_intervals
from workbench.kernels import fault_order, placement
from workbench.limits import LISTED_PAGES
from workbench.units import format_bytes

Turns = Iterator[tuple[Int64s, Int64s]]
"""Chunks of indices in the order they are touched, and the row of the task that touches each."""
_LISTED_BYTES = 24  # of arrays for each page listed: its index in the order, in the chunk that is kept, its zone
_LIST_CHUNK = 1 << 22  # pages placed one by one between two looks at the clock
_LARGEST_WEIGHT = 255
_NO_POLICY: list[mp.Mempolicy | None] = [None]


class OutOfMemory(Exception):
    """No eligible zone gives a page: the OOM killer ends the process (4 KiB pages)."""


class Placing(RequestTables):
    """The host that places folios: free pages of its zones become pages of files."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(scenario, cancelled)
        self._scratch = (
            np.empty(_LARGEST_WEIGHT * self.nodes + 256, np.int64), np.empty(self.nodes, np.int64),
            np.empty(len(self.free), np.int64),
        )  # fmt: skip
        self._piece = np.empty((1, 4), np.int64)
        self._has_cma = bool(self.all_cma.any())
        self._turns_and_zones: dict[str, tuple[placement.Interleaving, placement.Zones]] = {}
        self.placed = np.zeros(len(self.free), np.int64)
        """int64 (zones,), what the call at hand has placed."""
        kexec = self.order == 0 and sc.Kexec in scenario.kinds
        if scenario.pfns and self.order and self._needs_zones():
            raise WorkbenchError("pfns: true cannot be used with huge pages beside 4 KiB pages (fallback, tmpfs files)")
        self.free_pfns = FreePfns(self.start_pfn, self.free) if scenario.pfns or kexec else None

    # -------------------------------------------------------------------------------------------- what is to be placed

    def _touch(self, task: Thread, inode: Inode, start: int, end: int, operation: sc.Fault | None) -> bool:
        first, last = start >> inode.order, -(-end >> inode.order) if inode.order else end
        holes = self._holes(inode, first, last)
        order = operation.order if operation is not None else "sequential"
        complete = True
        if last - first == 1 and len(holes) and self._plain(inode) and order in ("sequential", "reverse"):
            return self._place_one(task, inode, first, -1 if order == "reverse" else 1)
        if len(holes) and order in ("sequential", "reverse"):
            complete = self._place_all(task, inode, holes, -1 if order == "reverse" else 1, (start, end))
        elif len(holes):
            assert operation is not None
            complete = self._place_list(inode, holes, self._listed(task, operation, first, last, holes))
        return complete if inode.small is None else self._touch_small(task, inode, start, end, operation)

    @staticmethod
    def _holes(inode: Inode, first: int, last: int) -> Int64s:
        """Folios of [first, last) that nothing backs, not even in part."""
        holes = inode.map.absent(first, last)
        if inode.small is None:
            return holes
        partly = _units_of(inode.small.present, inode.order)
        return np.concatenate([no_intervals(), *(intervals_minus(int(low), int(high), partly) for low, high in holes)])

    @staticmethod
    def _small_holes(inode: Inode, start: int, end: int) -> Int64s:
        """4 KiB pages of [start, end) that nothing backs."""
        assert inode.small is not None
        order = inode.order
        units = inode.map.absent(start >> order, -(-end >> order))
        parts = [inode.small.absent(max(start, int(low) << order), min(end, int(high) << order)) for low, high in units]
        return np.concatenate([no_intervals(), *parts])

    def _touch_small(self, task: Thread, inode: Inode, start: int, end: int, operation: sc.Fault | None) -> bool:
        """4 KiB pages for what of ``[start, end)`` no huge page backs: its pool was empty when it was touched."""
        holes = self._small_holes(inode, start, end)
        order = operation.order if operation is not None else "sequential"
        if not len(holes):
            return True
        if order in ("sequential", "reverse"):
            return self.place(task, inode, holes, -1 if order == "reverse" else 1, small=True)
        assert operation is not None
        return self._place_list(inode, holes, self._listed(task, operation, start, end, holes), small=True)

    def _touch_in_turns(self, inode: Inode, first: int, last: int, turns: Callable[[], Turns]) -> bool:
        holes = self._holes(inode, first, last)
        complete = not len(holes) or self._place_list(inode, holes, _within(turns(), holes))
        if inode.small is None:
            return complete
        holes = self._small_holes(inode, first << inode.order, last << inode.order)
        if not len(holes):
            return True
        step, pages = max(1, _LIST_CHUNK >> inode.order), np.arange(1 << inode.order)

        def small() -> Turns:
            for folios, tasks in turns():
                for low in range(0, len(folios), step):
                    index = (folios[low : low + step, None] << inode.order) + pages
                    yield index.ravel(), np.repeat(tasks[low : low + step], len(pages))

        return self._place_list(inode, holes, _within(small(), holes), small=True)

    def _listed(self, task: Thread, operation: sc.Fault, first: int, last: int, holes: Int64s) -> Turns:
        """Indices of [first, last) inside ``holes`` in the operation's order, and the row of the task, in chunks."""
        within = self.touch_order(operation, last - first)
        chunks = (first + within[low : low + _LIST_CHUNK] for low in range(0, len(within), _LIST_CHUNK))
        return _within(((pages, np.full(len(pages), task.index)) for pages in chunks), holes)

    def touch_order(self, operation: sc.Fault, count: int) -> Int64s:
        """The order in which an operation touches so many pages, int64 (count,)."""
        if operation.order != "sequential":
            check_listed(count, f"fault: {operation.order} order")
        if operation.order == "reverse":
            return np.arange(count - 1, -1, -1, dtype=np.int64)
        out = np.arange(count, dtype=np.int64)
        if operation.order == "strided":
            fault_order.strided_order(operation.stride, out)
        elif operation.order == "random":
            fault_order.random_order(np.uint64(operation.seed), out)
        return out

    # ------------------------------------------------------------------------- one after another, upwards or downwards

    def _place_all(self, task: Thread, inode: Inode, holes: Int64s, step: int, span: tuple[int, int]) -> bool:
        """:meth:`place`; where 4 KiB pages may stand in, a policy whose pools are empty does not end it for others."""
        while not self.place(task, inode, holes, step, span=span):
            if inode.small is None:
                return False
            ranges, policies = self.policy_ranges(inode, inode.order, holes, span, step)
            parts = [inode.map.absent(int(low), int(high)) for low, high in holes]
            low, high, which = split_at(np.concatenate(parts), ranges)
            dry = policies[which[0 if step > 0 else -1]]
            others = np.array([policies[row] != dry for row in which])
            holes = np.column_stack((low, high))[others]
            if not len(holes):
                return False
        return True

    def is_plain_4k(self, inode: Inode) -> bool:
        """Whether pages of the file need nothing but a zone: no huge ones, no blocks, pfns or CMA to settle."""
        return inode.order == 0 and self.is_plain(inode)

    def is_plain(self, inode: Inode) -> bool:
        """Likewise of huge pages, all of one pool or none."""
        return (
            inode.small is None and self.blocks is None and self.free_pfns is None
            and not (inode.movable and self._has_cma)
        )  # fmt: skip

    def _plain(self, inode: Inode) -> bool:
        """Whether a single page of the file needs nothing but a zone, and no policy of the file says which."""
        return not inode.shared_policy and self.is_plain_4k(inode)

    def _place_one(self, task: Thread, inode: Inode, page: int, step: int) -> bool:
        """:meth:`place` of one page of which :meth:`_plain` holds, as most calls of a long list of them are."""
        map_, piece = inode.map, self._piece
        requests, row_of = self.requests(inode, [task], _NO_POLICY, 0)
        piece[0, 0], piece[0, 1], piece[0, 2], piece[0, 3] = page, 1, step, row_of[0, 0]
        before: int = map_.progress.item(placement.ALLOCATIONS)
        self._placed(self.run_pieces(map_, piece, requests, *self.turns_and_zones(inode, 0)), 0)
        self.placed[map_.tiles[map_.allocations[before, 3]]] += 1
        map_.add_new_allocations(before)
        return True

    def place(
        self,
        task: Thread,
        inode: Inode,
        holes: Int64s,
        step: int = 1,
        override: mp.Mempolicy | None = None,
        small: bool = False,
        span: tuple[int, int] | None = None,
    ) -> bool:
        """Back every folio of ``holes`` int64 (n, 2), upwards or downwards, under the file's policies or ``override``.

        ``small``: holes are 4 KiB pages of a file of huge folios. ``span``: the 4 KiB pages that are touched. False: a huge
        page was not to be had.
        """
        order = 0 if small else inode.order
        self.settle_blocks(broken_up=order == 0)
        ranges, policies = no_intervals(), [override]
        if override is None:
            ranges, policies = self.policy_ranges(inode, order, holes, span, step)
        pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, order)
        return self.place_pieces(inode, pieces, requests, order, small)

    def place_pieces(
        self, inode: Inode, pieces: Int64s, requests: placement.Requests, order: int, small: bool = False
    ) -> bool:
        """:meth:`place` of pieces as :func:`workbench.kernels.placement.place_pieces` takes them, under these requests."""
        map_ = _map_of(inode, small)
        before, free = int(map_.progress[placement.ALLOCATIONS]), self.free.copy()
        complete = self.run_pieces(map_, pieces, requests, *self.turns_and_zones(inode, order))
        map_.add_new_allocations(before)
        if self.free_pfns is not None and inode.pfns is not None and not small:
            self.free_pfns.hand_out(map_, inode.pfns, before)
        self.placed += free - self.free
        self.settle_blocks()
        if inode.movable:
            self.settle_cma(free)
        return self._placed(complete, order)

    def _pieces(
        self,
        task: Thread,
        inode: Inode,
        holes: Int64s,
        step: int,
        ranges: Int64s,
        policies: list[mp.Mempolicy | None],
        order: int,
    ) -> tuple[Int64s, placement.Requests]:
        """Runs of absent folios as :func:`workbench.kernels.placement.place_pieces` takes them, and their requests."""
        requests, row_of = self.requests(inode, [task], policies, order)
        if len(holes) == 1 and not len(ranges):
            first, end = holes[0].tolist()
            start = first if step > 0 else end - 1
            return np.array([[start, end - first, step, row_of[0, 0]]], np.int64), requests
        low, high, which = split_at(holes, ranges)
        pieces = np.empty((len(low), 4), np.int64)
        pieces[:, 0] = low if step > 0 else high - 1
        pieces[:, 1], pieces[:, 2], pieces[:, 3] = high - low, step, row_of[0][which]
        if step < 0:
            pieces = np.ascontiguousarray(pieces[::-1])
        return pieces, requests

    def run_pieces(
        self,
        map_: FileMap,
        pieces: Int64s,
        requests: placement.Requests,
        turns: placement.Interleaving,
        zones: placement.Zones,
    ) -> bool:
        """Place pieces into the allocation rows of a map, which grows as it must. False: out of memory."""
        map_.progress[placement.PIECE] = map_.progress[placement.IN_PIECE] = 0
        map_.grow(len(pieces) + 8, 64)
        while True:
            status = placement.place_pieces.direct(pieces, requests, turns, zones, self.output_of(map_))
            if status != placement.NEEDS_ROOM:
                return bool(status == placement.DONE)
            map_.grow(max(64, len(pieces)), len(self._scratch[0]))
            self._check_cancelled()

    def output_of(self, map_: FileMap) -> placement.Output:
        """Where pages of a map are placed to: the same as before, unless the map has grown."""
        made = map_.output
        if made is None or made.allocations is not map_.allocations or made.tiles is not map_.tiles:
            made = map_.output = placement.Output(map_.progress, map_.allocations, map_.tiles, *self._scratch)
        return made

    # ---------------------------------------------------------------------------------------- in an order of their own

    def _place_list(self, inode: Inode, holes: Int64s, chunks: Turns, small: bool = False) -> bool:
        """Place folios one by one; each chunk holds indices and the row of the task that touches each."""
        order, map_ = 0 if small else inode.order, _map_of(inode, small)
        self.settle_blocks(broken_up=order == 0)
        ranges, policies = self.policy_ranges(inode, order, holes)
        requests, row_of = self.requests(inode, list(self.tasks.values()), policies, order)
        base = int(holes[0, 0])
        check_listed(int(holes[-1, 1]) - base, "placing pages one by one")
        found = np.full(int(holes[-1, 1]) - base, -1, np.int16)
        cached = np.empty((len(requests.kind), self.nodes), np.int64)
        pfns = np.empty(len(found), np.int64) if inode.pfns is not None and not small else None
        free = self.free.copy()
        dry: set[int] = set()  # requests for which nothing is left
        for pages, tasks in chunks:
            asked = row_of[tasks, covering(pages, ranges)]
            while len(pages):
                out = np.empty(len(pages), np.int16)
                turns, zones = self.turns_and_zones(inode, order)
                done = placement.place_list(pages, asked, requests, turns, zones, cached, out)
                found[pages[:done] - base] = out[:done]
                if self.free_pfns is not None and pfns is not None:
                    self.free_pfns.hand_out_list(out[:done], pages[:done], base, pfns)
                self._check_cancelled()
                if done == len(pages):
                    break
                dry.add(int(asked[done]))
                if inode.small is None:
                    break
                others = ~np.isin(asked[done:], list(dry))
                pages, asked = pages[done:][others], asked[done:][others]
            if dry and inode.small is None:
                break
        before = int(map_.progress[placement.ALLOCATIONS])
        map_.add_list(holes, found, base)
        if pfns is not None:
            self._keep_listed(inode, before, base, pfns)
        self.placed += free - self.free
        self.settle_blocks()
        if inode.movable:
            self.settle_cma(free)
        return self._placed(not dry, order)

    @staticmethod
    def _keep_listed(inode: Inode, before: int, base: int, pfns: Int64s) -> None:
        """Frames of folios that were placed one by one, int64 (n,) from ``base`` on, in rows from ``before`` on."""
        assert inode.pfns is not None
        for row in range(before, int(inode.map.progress[placement.ALLOCATIONS])):
            start, count = inode.map.allocations[row, :2] - (base, 0)
            inode.pfns.listed[row] = pfns[start : start + count]

    # ------------------------------------------------------------------------------- what the kernel is given and says

    def turns_and_zones(self, inode: Inode, order: int) -> tuple[placement.Interleaving, placement.Zones]:
        """The host as the placement kernel sees it for pages of a file."""
        name = "hugetlb" if order else "memfd" if inode.movable else inode.kind
        marks, known = self.marks(inode.movable), self._turns_and_zones.get(name)
        if known is not None:  # arrays are written to, or replaced
            turns, zones = known
            if zones.free is self.free and zones.marks is marks and turns.weights is self.weights:
                return known
        made = (
            placement.Interleaving(self.rotations, self.weights),
            placement.Zones(self.free, marks, self.zone_node, self.zonelists[name]),
        )
        self._turns_and_zones[name] = made
        return made

    @staticmethod
    def _placed(complete: bool, order: int) -> bool:
        if not complete and not order:
            raise OutOfMemory
        return complete


def check_listed(pages: int, what: str) -> None:
    """Refuse, before memory is taken, what needs an array entry for each of too many pages. Raises WorkbenchError."""
    if pages > LISTED_PAGES:
        raise WorkbenchError(
            f"{what}: {pages} pages would be listed one by one, in some {format_bytes(pages * _LISTED_BYTES)} of memory; "
            f"at most {LISTED_PAGES} are"
        )


def _map_of(inode: Inode, small: bool) -> FileMap:
    if not small:
        return inode.map
    assert inode.small is not None
    return inode.small


def _units_of(pages: Int64s, order: int) -> Int64s:
    """Sorted disjoint intervals of huge folios that 4 KiB intervals int64 (n, 2) lie in."""
    units = no_intervals()
    for low, high in pages.tolist():
        units = intervals_add(low >> order, -(-high >> order), units)
    return units


def _within(chunks: Turns, holes: Int64s) -> Turns:
    for index, tasks in chunks:
        keep = in_intervals(index, holes)
        yield index[keep], tasks[keep]

"""Placing 4 KiB pages where page tables and slabs come from the same zones, in the kernel's order (``metadata: taken``).

Tables come before a page and nodes of the page cache after it (``mm/memory.c: do_fault``, ``mm/filemap.c: filemap_add_folio``),
so that what stands between two pages may be the one that reaches a zone's mark.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench import scenario as sc
from workbench.engine.filemap import FileMap
from workbench.engine.metadata import Metadata, Prospect
from workbench.engine.objects import Inode, Thread
from workbench.engine.page_tables import Walk
from workbench.engine.placing import OutOfMemory, Placing, check_listed
from workbench.engine.request_tables import covering, split_at
from workbench.intervals import Int64s, in_intervals
from workbench.kernels import placement

_FEW = 4096  # pages that show how fast zones fall
_NEARBY = 0.9  # of the way to a mark, from where its distance is seen exactly
_INSERTED = 1 << 60  # "page" of a table that is placed between two pages of a file
_TOGETHER = 64  # pages placed before the slabs they need, where a zone reaches a mark
_LOOKED_UP = 1 << 18  # entries of zonelists that are looked at to see where a rotation goes
_LOOKS = 4  # at what pages need beside themselves: each comes a few hundred times closer to a mark


class _Course(NamedTuple):
    """What a file's pages ask for on a stretch, and what its tables and slabs ask for."""

    requests: placement.Requests
    row: int
    nodes: Int64s
    """Where the pages' requests begin, in turns if they rotate, with ``weights``."""
    weights: Int64s
    beside: tuple[placement.Requests, ...]
    prospect: Prospect
    """What the stretch lacked when it began: of a part that comes later no less than what it lacks then."""


class _Steady(NamedTuple):
    """Where a file's pages and what they need beside themselves come from while no zone reaches a mark."""

    pages: dict[int, int]
    """Of each zone the pages that one turn of the file's policy takes; one without a rotation."""
    tables: int
    slabs: int


class PlacingBetween(Placing):
    """The host that places pages with their metadata between them."""

    def _touch_taking(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None,
        walk: Walk | None,
    ) -> None:
        """:meth:`touch` of 4 KiB pages where their metadata come from the same zones, in the kernel's order.

        Tables come before the page, nodes after it. As long as no zone reaches a mark and no table moves the rotation,
        the order makes no difference and all of a kind are taken at once; else the range is cut before the mark.
        """
        order = operation.order if operation is not None else "sequential"
        step = -1 if order == "reverse" else 1
        if order not in ("sequential", "reverse"):
            assert operation is not None
            self._touch_listed(metadata, task, inode, start, end, operation, walk)
            return
        if walk is not None and metadata.steps_between_pages(task, walk, start, end):
            self._place_between(metadata, task, inode, walk, range(start, end)[::step])
            self._need(metadata.enter_nodes(task, inode, start, end))
            return
        look = False
        course = self._course(metadata, task, inode, start, end, step, walk) if end - start > _TOGETHER else None
        while start < end:
            # A part that is less than all ends shortly before a mark: the next few pages reach it.
            look = not look
            few = min(end - start, _TOGETHER)
            if look:
                few = self._together(metadata, task, inode, start, end, step, walk, course)
            low, high = (start, start + few) if step > 0 else (end - few, end)
            start, end = (high, end) if step > 0 else (start, low)
            self._need(metadata.enter_tables(task, walk, low, high, step))
            holes = self._holes(inode, low, high)
            if len(holes):
                self._place_all(task, inode, holes, step, (low, high))
            self._need(metadata.enter_nodes(task, inode, low, high))

    @staticmethod
    def _need(found: bool) -> None:
        if not found:
            raise OutOfMemory

    # ------------------------------------------------------------------------------------------------ how many at once

    def _undisturbed(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> bool:
        """Whether no zone reaches a mark while pages [start, end) and their metadata are placed, whatever comes first."""
        wanted = metadata.need(task, inode, walk, start, end)
        tables, slabs = wanted
        if not tables + slabs:
            return True
        marks = self.marks()
        above = self.free > marks
        most = end - start + tables + slabs
        if ((self.free - most > marks) == above)[:, above[1]].all():
            return True
        free = self._free_after(metadata, task, inode, start, end, step, walk, wanted)
        # Free memory only falls: marks that are not reached at the end were reached at no time before.
        return free is not None and bool(((free > marks) == above).all())

    def _free_after(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        step: int,
        walk: Walk | None,
        wanted: tuple[int, int] | None = None,
    ) -> Int64s | None:
        """Free pages of each zone once pages [start, end) and their metadata were placed; None if they cannot be."""
        free = self.free.copy()
        holes = self._holes(inode, start, end)
        if len(holes):
            ranges, policies = self.policy_ranges(inode, 0, holes, (start, end), step)
            pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, 0)
            turns, zones = self.turns_and_zones(inode, 0)
            turns = turns._replace(rotations=turns.rotations.copy())
            if not self.run_pieces(FileMap(), pieces, requests, turns, zones._replace(free=free)):
                return None
        tables, slabs = wanted or metadata.need(task, inode, walk, start, end)
        return free if metadata.fits(task, tables, slabs, free) else None

    def _together(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        step: int,
        walk: Walk | None,
        course: _Course | None,
    ) -> int:
        """Pages of [start, end), from where it begins, that are placed at once: up to shortly before a zone's next mark.

        What some pages take says how fast each zone falls; where it falls otherwise further on, the part is halved.
        """
        pages = end - start
        if pages <= _TOGETHER:
            return pages
        steady = None if course is None else self._steady_zones(inode, course)
        if steady is not None:
            assert course is not None
            prospect = course.prospect._replace(ready=metadata.kept_ready(task, walk))
            return self._together_steadily(prospect, start, end, step, steady)
        if self._undisturbed(metadata, task, inode, start, end, step, walk):
            return pages
        first = self._until_a_mark(metadata, task, inode, start, end, step, walk)
        while first > _TOGETHER:
            low, high = (start, start + first) if step > 0 else (end - first, end)
            if self._undisturbed(metadata, task, inode, low, high, step, walk):
                return first
            first >>= 1
        return _TOGETHER

    def _course(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> _Course | None:
        """What pages [start, end), their tables and their slabs ask for, if that is the same all the way.

        None: several policies are in force, some pages are there, or tables or slabs move a rotation.
        """
        holes = self._holes(inode, start, end)
        if inode.movable or self.blocks is not None or len(holes) != 1 or holes[0].tolist() != [start, end]:
            return None
        ranges, policies = self.policy_ranges(inode, 0, holes, (start, end), step)
        pieces, requests = self._pieces(task, inode, holes, step, ranges, policies, 0)
        if len(pieces) > 1:
            return None
        row = int(pieces[0, 3])
        nodes, weights = requests.start[row : row + 1], np.ones(1, np.int64)
        if requests.kind[row] != placement.START:
            nodes = np.flatnonzero(requests.nodes[row])
            weights = self.weights[nodes] if requests.kind[row] == placement.WEIGHTED else np.ones_like(nodes)
        if not len(nodes) or len(nodes) * len(self.free) > _LOOKED_UP:
            return None
        beside = tuple(
            self.kernel_requests(task, by_policy) for by_policy in (True, self.scenario.kernel.slabs_by_policy)
        )
        if any(requests.kind[0] != placement.START for requests in beside):
            return None
        return _Course(requests, row, nodes, weights, beside, metadata.prospect(task, inode, walk, start, end))

    def _steady_zones(self, inode: Inode, course: _Course) -> _Steady | None:
        """Where it all comes from as long as no zone reaches a mark. None: nothing is left for one of the three."""
        zones = self.turns_and_zones(inode, 0)[1]
        pages: dict[int, int] = {}
        found = _zones_now(zones, course.requests, course.row, course.nodes).tolist()
        for zone, weight in zip(found, course.weights.tolist(), strict=True):
            pages[zone] = pages.get(zone, 0) + weight
        tables, slabs = (int(_zones_now(zones, asked, 0, asked.start)[0]) for asked in course.beside)
        return _Steady(pages, tables, slabs) if min(*pages, tables, slabs) >= 0 else None

    def _together_steadily(self, prospect: Prospect, start: int, end: int, step: int, steady: _Steady) -> int:
        """:meth:`_together` where it is known which zones pages, tables and slabs come from: what they leave is a sum."""
        marks, pages = self.marks(), end - start
        reached = np.where(self.free > marks, marks, np.iinfo(np.int64).min >> 1).max(axis=0)
        room = {zone: int(self.free[zone] - reached[zone]) - 1 for zone in (*steady.pages, steady.tables, steady.slabs)}
        turn = sum(steady.pages.values())
        few, best = min(pages, *(room[zone] // weight * turn for zone, weight in steady.pages.items())), 0
        for _ in range(_LOOKS):
            if few <= best:
                break
            low, high = (start, start + few) if step > 0 else (end - few, end)
            beside = dict.fromkeys(room, 0)
            for zone, count in zip((steady.tables, steady.slabs), prospect.need(low, high), strict=True):
                beside[zone] += count
            turns = -(-few // turn)
            if all(turns * steady.pages.get(zone, 0) + beside[zone] <= left for zone, left in room.items()):
                best = few
            fits = [(room[zone] - beside[zone]) // weight * turn for zone, weight in steady.pages.items()]
            fits += [few * room[zone] // n for zone, n in beside.items() if n and zone not in steady.pages]
            few = min(pages, *fits)
        return max(best, _TOGETHER)

    def _until_a_mark(
        self, metadata: Metadata, task: Thread, inode: Inode, start: int, end: int, step: int, walk: Walk | None
    ) -> int:
        """So many pages of [start, end), from where it begins, probably come before a zone reaches its next mark."""
        marks, pages = self.marks(), end - start
        above = self.free > marks
        reached = np.where(above, marks, np.iinfo(np.int64).min >> 1).max(axis=0)
        few, best = min(_FEW, pages >> 1), 0
        while few > best:
            low, high = (start, start + few) if step > 0 else (end - few, end)
            free = self._free_after(metadata, task, inode, low, high, step, walk)
            if free is None or ((free > marks) != above).any():  # too many
                if best or few <= _TOGETHER:
                    break
                few >>= 3
                continue
            falls = free < self.free
            left = ((free - reached)[falls] / (self.free - free)[falls]).min() * few if falls.any() else pages
            # Far from the mark few pages do not say it exactly: the second look is from nearby.
            near = left < few >> 3
            best, few = few, int(min(few + (left - _TOGETHER / 2 if near else left * _NEARBY), pages - 1))
            if near:
                return few
        return best

    # ------------------------------------------------------------------------------------------------------ one by one

    def _touch_listed(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault,
        walk: Walk | None,
    ) -> None:
        """Pages in an order of their own: their tables come before them, their nodes when all are there."""
        holes = self._holes(inode, start, end)
        if walk is not None and metadata.steps_between_pages(task, walk, start, end):
            pages = start + self.touch_order(operation, end - start)
            self._list_between(metadata, task, inode, walk, pages)
        else:
            self._need(metadata.enter_tables(task, walk, start, end))
            if len(holes):
                self._place_list(inode, holes, self._listed(task, operation, start, end, holes))
        self._need(metadata.enter_nodes(task, inode, start, end))

    def _between(
        self, metadata: Metadata, task: Thread, inode: Inode, low: int, high: int
    ) -> tuple[placement.Requests, Int64s, Int64s, int]:
        """Requests of pages [low, high) of a file and, the last row, of tables; policy ranges, the row of each, that last row."""
        ranges, policies = self.policy_ranges(inode, 0, np.array([[low, high]]))
        rows, row_of = self._request_rows(inode, [task], policies, 0)
        rows.append((task.index, -1, metadata.request(task)))
        return self.request_table(rows), ranges, row_of[0], len(rows) - 1

    def _place_between(self, metadata: Metadata, task: Thread, inode: Inode, walk: Walk, pages: range) -> None:
        """Pages one after another, up or down, with the tables they need between them, one rotation for both.

        Pieces of pages and of tables follow one another as they are taken; the cost is that of the pieces.
        """
        low, high = min(pages[0], pages[-1]), max(pages[0], pages[-1]) + 1
        holes = self._holes(inode, low, high)
        requests, ranges, row_of, tables_row = self._between(metadata, task, inode, low, high)
        positions, counts = metadata.inserts(task, walk, pages)
        pieces = np.empty((len(counts), 4), np.int64)
        pieces[:, 0], pieces[:, 1] = _INSERTED + np.cumsum(counts) - counts, counts
        pieces[:, 2:] = 1, tables_row
        at = positions
        if len(holes):
            begin, end, which = split_at(holes, ranges)
            first, last = (begin - low, end - low) if pages.step > 0 else (high - end, high - begin)
            order = np.argsort(first)
            first, last, asked = first[order], last[order], row_of[which[order]]
            cuts = np.unique(np.concatenate((first, last, positions)))
            part = np.searchsorted(first, cuts[:-1], side="right") - 1
            kept = (part >= 0) & (cuts[:-1] < last[part])
            starts, ends = cuts[:-1][kept], cuts[1:][kept]
            own = np.column_stack((pages[0] + pages.step * starts, ends - starts, np.full_like(starts, pages.step),
                                   asked[part[kept]]))  # fmt: skip
            pieces, at = np.concatenate((pieces, own)), np.concatenate((positions, starts))
        pieces = np.ascontiguousarray(pieces[np.argsort(at, kind="stable")])
        scratch, free = FileMap(), self.free.copy()
        self._need(self.run_pieces(scratch, pieces, requests, *self.turns_and_zones(inode, 0)))
        tables = scratch.take_rows_from(_INSERTED)
        before = int(inode.map.progress[placement.ALLOCATIONS])
        inode.map.add_rows_of(scratch)
        if self.free_pfns is not None and inode.pfns is not None:
            self.free_pfns.hand_out(inode.map, inode.pfns, before)
        self.placed += free - self.free - np.bincount(tables, minlength=len(free))
        metadata.enter_inserted(task, walk, pages, tables)

    def _list_between(self, metadata: Metadata, task: Thread, inode: Inode, walk: Walk, pages: Int64s) -> None:
        """:meth:`_place_between` of pages in an order of their own, one by one."""
        check_listed(len(pages), "placing pages and page tables of a task that interleaves")
        holes = self._holes(inode, int(pages.min()), int(pages.max()) + 1)
        requests, ranges, row_of, tables_row = self._between(
            metadata, task, inode, int(pages.min()), int(pages.max()) + 1
        )
        positions, counts = metadata.inserts(task, walk, pages)
        absent = in_intervals(pages, holes) if len(holes) else np.zeros(len(pages), bool)
        kept = np.flatnonzero(absent)
        at = np.concatenate((np.repeat(positions, counts), kept))
        asked = np.concatenate((np.full(int(counts.sum()), tables_row), row_of[covering(pages[kept], ranges)]))
        listed = np.concatenate((np.full(int(counts.sum()), -1), pages[kept]))
        order = np.argsort(at, kind="stable")
        listed, asked = np.ascontiguousarray(listed[order]), np.ascontiguousarray(asked[order])
        out = np.full(len(listed), -1, np.int16)
        free = self.free.copy()
        turns, zones = self.turns_and_zones(inode, 0)
        cached = np.empty((len(requests.kind), self.nodes), np.int64)
        done = placement.place_list(listed, asked, requests, turns, zones, cached, out)
        self._need(done == len(listed))
        tables = listed < 0
        base = int(pages.min())
        found = np.full(int(pages.max()) + 1 - base, -1, np.int16)
        found[listed[~tables] - base] = out[~tables]
        before = int(inode.map.progress[placement.ALLOCATIONS])
        if len(kept):
            inode.map.add_list(holes, found, base)
        if self.free_pfns is not None and inode.pfns is not None:
            pfns = np.empty(len(found), np.int64)
            self.free_pfns.hand_out_list(out[~tables], listed[~tables], base, pfns)
            self._keep_listed(inode, before, base, pfns)
        metadata.enter_inserted(task, walk, pages, out[tables].astype(np.int64))
        self.placed += np.bincount(out[~tables], minlength=len(self.free))
        assert int((free - self.free).sum()) == len(listed)


def _zones_now(zones: placement.Zones, requests: placement.Requests, row: int, starts: Int64s) -> Int64s:
    """The zones that give a page to a request that begins at nodes int64 (n,), as :func:`placement.place_pieces` finds them.

    -1: none has one.
    """
    order = zones.zonelists[starts]
    for allowed in requests.filters[row, : requests.passes[row]]:
        for mark in zones.marks:
            eligible = np.zeros(len(mark) + 1, bool)  # -1 ends a list
            np.logical_and(allowed[zones.zone_node], zones.free > mark, out=eligible[:-1])
            if eligible.any():
                first: Int64s = eligible[order].argmax(axis=1)
                return order[np.arange(len(order)), first]
    return np.full(len(starts), -1, np.int64)

"""Many calls on the pages of a file that is tracked, one after another: conversions, pins, what drops pins, and poison.

These place and free nothing, so that they are one stream of the tracked file, whose counters after each row are those after
each call; of larger folios than 4 KiB it is conversions and poison that do. What else follows is followed here: entries of the
host's page tables, the tree of states, and for SNP and TDX what stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine.kept_frames import NOWHERE, PAGE, ZONE
from workbench.engine.lists.faults import LEAST, MOST, Done
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.tracked_faults import (
    CALLS,
    POISONED_PAGES,
    Call,
    after_each,
    converts_in_place,
    first_among,
    maps_and_zaps,
    page_by_page,
    pages_of_calls,
    pins_possible,
    result_of_call,
    result_of_poison,
    row_of_call,
    row_of_poison,
)
from workbench.engine.lists.waiting import Wait
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.intervals import Int64s, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at
from workbench.units import PAGE_SIZE

_Call = Call | sc.Hwpoison
_CALLS: frozenset[type[_Call]] = frozenset((*CALLS, sc.Hwpoison))


class BulkTracked:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most, self._wait = 0, MOST, Wait()

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first = self.operations[number]
        if self.system.conversions is None or number < self._not_before or not is_among(first, _CALLS):
            return None
        last = number + LEAST - 1
        if last >= len(self.operations) or not is_among(self.operations[last], _CALLS):
            return None  # no list that is worth it
        inode = self._inode(first)
        if inode is None:
            self._not_before = number + 1
            return None
        calls, stream = self._alike(first, inode, self.operations[number : number + self._most])
        count = self._together(inode, stream) if len(calls) >= LEAST else len(calls)
        if count < LEAST:  # what ends it would end one that begins later, too
            self._not_before, self._most = number + count + self._wait.longer(), LEAST
            return None
        self._wait.over()
        self._not_before = number + count + (count < len(calls))
        self._most = min(2 * self._most, MOST) if count == len(calls) else 2 * count
        return self._run(inode, calls[:count], stream[:count])

    def _inode(self, first: _Call) -> Inode | None:
        """The file that a call is about, if such calls need nothing but what is followed here."""
        file = self.system.files.get(first.file)
        return file.inode if file is not None and pins_possible(self.system, file) else None

    def _alike(self, first: _Call, inode: Inode, operations: Sequence[sc.Operation]) -> tuple[list[_Call], Int64s]:
        """Calls on the same file up to whatever is something else, or reaches out of the file, or is long; rows of a stream."""
        tasks, name, most = self.system.tasks, first.file, 1 if inode.order else POISONED_PAGES
        converts = converts_in_place(self.system, self.system.files[name])
        calls: list[_Call] = []
        rows: list[tuple[int, ...]] = []
        for call in operations:
            if not is_among(call, _CALLS) or call.file != name or (call.task is not None and call.task not in tasks):
                break
            row = row_of_poison(call, inode, most) if isinstance(call, sc.Hwpoison) else row_of_call(call, inode)
            if row is None or (isinstance(call, sc.Convert) and not converts):
                break
            if inode.order and isinstance(call, (sc.Pin, sc.Unpin)):
                break  # folios that nobody holds any more go back to pools
            calls.append(call)
            rows.append(row)
        return calls, np.array(rows, np.int64).reshape(-1, 6)

    def _together(self, inode: Inode, stream: Int64s) -> int:
        """How many calls come before one that has to place pages, or is asked what it has lost."""
        assert isinstance(inode.tracked, ConversionFile)
        if not inode.order:
            ends = _first_pin_of_absent(inode.tracked, stream), _first_pin_of_poison(inode.tracked, stream)
            return min(*ends, len(stream) if self.system.is_plain_4k(inode) else _first_of_kept(inode, stream))
        unmapped = self.system.rules.kernel == "B" and not all(mapping.empty for mapping in inode.mappings)
        return _first_merge_that_is_asked(inode.tracked, stream, unmapped)

    def _run(self, inode: Inode, calls: list[_Call], stream: Int64s) -> Done:
        """Carry out such calls."""
        system, metadata, count = self.system, self.system.metadata, len(calls)
        first, _ = pages_of_calls(stream)
        rows, of = page_by_page(stream, np.arange(count))
        end = np.searchsorted(of, np.arange(count), side="right")
        errors, offsets, marked, states = after_each(system, inode, rows, end)
        self._map(inode, stream, errors, offsets)
        free = self._give_back(inode, stream, errors)
        held = None
        if metadata is not None:
            tasks = [system.task(call) for call in calls]
            to_shared = stream[:, folio.ARGUMENT] == 1
            found = free, system.rotations[[task.index for task in tasks]]
            reached = self._reached(inode, stream, errors, offsets)
            held = metadata.follow_states(inode, tasks, first, reached, to_shared, found)
            states.hold(metadata, held)
        results = [
            result_of_poison(error, pages) if isinstance(call, sc.Hwpoison) else result_of_call(error, offset)
            for call, error, offset, pages in zip(
                calls, errors.tolist(), offsets.tolist(), marked.tolist(), strict=True
            )
        ]
        return Done(results, np.zeros_like(free), free, held, states)

    def _give_back(self, inode: Inode, stream: Int64s, errors: Int64s) -> Int64s:
        """Free pages of each zone after each row, int64 (n, zones): what left the file is free once nobody has it pinned."""
        free = np.tile(self.system.free, (len(stream), 1))
        unpins = (stream[:, folio.OP] == folio.UNPIN) & (stream[:, folio.ARGUMENT] == folio.LONG_TERM) & (errors == 0)
        for row in np.flatnonzero(unpins).tolist() if inode.kept else ():
            zones = inode.kept.unpin(*np.concatenate(pages_of_calls(stream[row : row + 1])).tolist())[:, ZONE]
            gained = np.bincount(zones[zones != NOWHERE], minlength=len(self.system.free))
            free[row:] += gained
            self.system.free += gained
        return free

    def _reached(self, inode: Inode, stream: Int64s, errors: Int64s, offsets: Int64s) -> Int64s:
        """Where what each row has converted ends: of refused ones, in generation C, before the block that refused."""
        first, end = pages_of_calls(stream)
        block_by_block = self.system.rules.kernel == "C" and inode.order > 0
        unit = offsets // PAGE_SIZE >> inode.order << inode.order
        stopped = np.where(block_by_block & (offsets >= 0), np.maximum(unit, first), first)
        return np.where(stream[:, folio.OP] != folio.CONVERT, first, np.where(errors == 0, end, stopped))

    @staticmethod
    def _map(inode: Inode, stream: Int64s, errors: Int64s, offsets: Int64s) -> None:
        """The host's page tables. Of a unit in which somebody holds a page nothing is unmapped beyond it."""
        first, _ = pages_of_calls(stream)
        maps, zaps, stop = maps_and_zaps(stream, errors, offsets)
        if inode.order:
            unit = offsets // PAGE_SIZE >> inode.order
            stop = np.where(errors == 0, stop, np.minimum(stop, (unit + 1) << inode.order))
        some = np.flatnonzero((maps | zaps) & (stop > first))
        for low, high, is_mapped in zip(first[some].tolist(), stop[some].tolist(), maps[some].tolist(), strict=True):
            for mapping in inode.mappings:
                if is_mapped:
                    mapping.map(low, high)
                elif not mapping.empty:
                    mapping.zap(low, high)


def _first_pin_of_absent(tracked: ConversionFile, stream: Int64s) -> int:
    """The first row that pins a page which is not there, and so may have to be placed; how many rows there are if none does."""
    pins = np.flatnonzero((stream[:, folio.OP] == folio.PIN) & (stream[:, folio.ARGUMENT] != folio.TRANSIENT))
    first, end = pages_of_calls(stream[pins])
    row, page = pages_of(first, end)
    absent = ~bits_at(tracked.state.present, page)
    if not ((stream[:, folio.OP] == folio.CONVERT) & (stream[:, folio.ARGUMENT] == 1)).any():
        absent &= bits_at(tracked.state.shared, page)  # those of private pages are refused
    found = pins[row[absent]]
    return int(found[0]) if len(found) else len(stream)


def _first_of_kept(inode: Inode, stream: Int64s) -> int:
    """The first row that unpins a page which left the file while somebody held it, and may be free then; else their number.

    What was held in passing is so no more.
    """
    if not inode.kept:
        return len(stream)
    span, unpins = np.column_stack(pages_of_calls(stream)), stream[:, folio.OP] == folio.UNPIN
    unpins &= stream[:, folio.ARGUMENT] != folio.TRANSIENT
    return first_among(span, np.unique(inode.kept.rows()[:, PAGE]), unpins)


def _first_pin_of_poison(tracked: ConversionFile, stream: Int64s) -> int:
    """The first row that pins a page which is poisoned, or will be in this list, and maps it all the same."""
    poisons, pins = (np.flatnonzero(stream[:, folio.OP] == op) for op in (folio.POISON, folio.PIN))
    bad = np.union1d(tracked.poisoned(), pages_of(*pages_of_calls(stream[poisons]))[1])
    at = first_among(np.column_stack(pages_of_calls(stream[pins])), bad)
    return int(pins[at]) if at < len(pins) else len(stream)


def _first_merge_that_is_asked(tracked: ConversionFile, stream: Int64s, unmapped: bool) -> int:
    """The first row to private after which it has to be asked what a merge has lost; how many rows there are if none is.

    Nothing is lost of a unit in which all is up to date, or nothing, nor of memory of the page allocator. ``unmapped``: a refused
    one unmaps by what it found shared.
    """
    private = np.flatnonzero((stream[:, folio.OP] == folio.CONVERT) & (stream[:, folio.ARGUMENT] == 0))
    if unmapped and len(private):
        return int(private[0])
    if tracked.state.options[folio.FOLIOS] != folio.HUGETLB_FOLIOS:
        return len(stream)
    first, end = pages_of_calls(stream[private])
    row, unit = pages_of(first >> tracked.order, -(-end >> tracked.order))
    each, which = np.unique(unit, return_inverse=True)
    shift = tracked.order - folio.ORDER_2M
    marks = tracked.state.marks[(each[:, None] << shift) + np.arange(1 << shift)]
    whole = (marks & folio.UPTODATE_ALL != 0).all(axis=1)
    untouched = (marks & (folio.UPTODATE_ALL | folio.UPTODATE_SOME) == 0).all(axis=1)
    asked = private[row[~(whole | untouched)[which]]]
    return int(asked[0]) if len(asked) else len(stream)

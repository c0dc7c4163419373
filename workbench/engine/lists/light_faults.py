"""Many calls on a file of 4 KiB pages without struct pages, of which some place or free pages: faults, allocations, holes;
what converts and pins comes between.

Pages are placed and freed first, as for any list of faults (:mod:`workbench.engine.lists.faults`); what was placed becomes rows
of the stream that carries the calls out (:mod:`workbench.engine.lists.light`). A fault of the host places a page that is shared
when its turn comes, and so does a pin. As struct pages suffice, no conversion to shared is refused; one to private is where
somebody holds a page, which then is there: of a single page the state is as good as known before, of others of its range not.
A list ends before a hole that may take a page which somebody holds, and so stays allocated, and before an unpin of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.engine.lists.faults import (
    LEAST,
    MOST,
    TOO_MANY_POLICIES,
    BulkFaults,
    Done,
    asked_for,
    followed_nodes,
    pages_of_touch,
    place,
    reach,
    way,
)
from workbench.engine.lists.light import (
    OF_STATES,
    Placed,
    carry_out,
    first_of_poison,
    held_after,
    map_for_host,
    may_call,
    possible,
    results_of,
    row_of,
)
from workbench.engine.lists.tracked_faults import MOST_PAGES, Call, first_of_kept, pages_of_calls
from workbench.engine.metadata import LIGHT_MAP, PAGE_CACHE
from workbench.engine.objects import Inode, OpenFile
from workbench.engine.system import System
from workbench.intervals import Int64s, pages_of
from workbench.kernels import faults as kernel
from workbench.kernels import light_map, placement
from workbench.kernels.folios import run as folio
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import bits_at
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
_Call = Call | sc.Hwpoison | sc.IommuMap | sc.IommuUnmap | sc.Fault | sc.Fallocate | sc.PunchHole
_CALLS = (*OF_STATES, sc.Fault, sc.Fallocate, sc.PunchHole)
_NO, _YES, _UNSURE = range(3)


class _List(NamedTuple):
    """Calls that are to be carried out together."""

    calls: list[_Call]
    rows: Int64s
    """int64 (n, 5), as :mod:`workbench.kernels.faults` takes them: what they place."""
    stream: Int64s
    """int64 (n, 6), as :mod:`workbench.kernels.light_rows` takes them: what they do."""


class BulkLightFaults:
    """Looks ahead in the operations of a run; ``before`` knows what has gone well."""

    def __init__(self, system: System, operations: Sequence[sc.Operation], before: BulkFaults) -> None:
        self.system, self.operations, self.before = system, operations, before
        self._not_before, self._most = 0, MOST

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        conversions, last = self.system.conversions, number + LEAST - 1
        if conversions is None or not conversions.light or number < self._not_before or last >= len(self.operations):
            return None
        first = self.operations[number]
        if not isinstance(first, _CALLS) or not isinstance(self.operations[last], _CALLS):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + LEAST  # what is asked changes seldom
        if file is None or not _possible(self.system, file):
            return None
        listed, certain = self._alike(file, first.file, self.operations[number : number + self._most])
        self._not_before = number + len(listed.calls) + 1
        self._most = self._most if certain else max(len(listed.calls), LEAST)
        if len(listed.calls) < LEAST or not _suffices(self.system, file.inode, listed):
            return None
        done, status = self._run(file, listed)
        if status == TOO_MANY_POLICIES:  # to find out again would cost their number
            self._most = MOST
            return None
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if certain and status == placement.DONE else max(2 * count, LEAST)
        self._not_before = number + count + (status != placement.DONE)
        return done

    def _alike(self, file: OpenFile, name: str, operations: Sequence[sc.Operation]) -> tuple[_List, bool]:
        """Calls on a file up to whatever is something else, or has not gone well before; whether that, not doubt, ends them."""
        system, inode, calls_too = self.system, file.inode, may_call(self.system, file)
        ends = {of: reach(file, of) for at, of in self.before.went_well if at == name}
        holes_to = inode.pages if file.descriptor is not None else 0
        of_task: dict[str | None, int] = {task: row for row, task in enumerate(system.tasks)}
        of_task[None] = 0
        calls: list[_Call] = []
        rows: list[tuple[int, int, int, int, int]] = []
        streams: list[tuple[int, int, int, int, int, int]] = []
        pages = 0
        for one in operations:
            if not isinstance(one, _CALLS) or one.file != name or one.task not in of_task or pages > MOST_PAGES:
                break
            first = end = 0
            if isinstance(one, OF_STATES):
                row = row_of(one, file, calls_too)
            else:
                row = _row_of_touch(one, holes_to if isinstance(one, sc.PunchHole) else ends.get(way(one), 0))
            if row is not None and _places(row):
                first, end = row[folio.OFFSET] // PAGE_SIZE, -(-(row[folio.OFFSET] + row[folio.LENGTH]) // PAGE_SIZE)
            if row is None:
                break
            pages += end - first
            calls.append(one)
            does = kernel.HOLE if isinstance(one, sc.PunchHole) else kernel.TOUCHES
            rows.append((first, end, 1, of_task[one.task], does))
            streams.append(row)
        table, stream = np.array(rows, np.int64).reshape(-1, 5), np.array(streams, np.int64).reshape(-1, 6)
        if not calls:
            return _List(calls, table, stream), True
        nothing, count = _look_ahead(inode, stream)
        table[nothing, 1] = table[nothing, 0]
        return _List(calls[:count], table[:count], stream[:count]), count == len(calls)

    def _run(self, file: OpenFile, listed: _List) -> tuple[Done | None, int]:
        """Carry out such calls, as far as their pages are placed, and whether that was all."""
        system, inode, metadata = self.system, file.inode, self.system.metadata
        tasks = list(system.tasks.values())
        asked = asked_for(system, inode, listed.rows, tasks)
        if asked is None:
            return None, TOO_MANY_POLICIES
        given, requests = asked
        before = system.free.copy()
        nowhere = followed_nodes(None, len(listed.rows), np.array([task.nid for task in tasks], np.int64))
        status = place(system, given, nowhere, file, requests)
        done = int(given.at[kernel.FAULT])
        if status == placement.OUT_OF_MEMORY:  # asked again alone, it is refused
            system.begun[:] = given.placed[done]
        if not done:
            return None, status
        calls, stream = listed.calls[:done], listed.stream[:done]
        found, states = carry_out(system, inode, _with_what_was_placed(system, inode, stream, given.entered[:done]))
        is_call = found.stream[:, folio.OP] != folio.INSERT
        found = found._replace(
            stream=stream, errors=found.errors[is_call], offsets=found.offsets[is_call], ends=found.ends[is_call]
        )
        errors, free = found.errors.astype(np.int64), given.free[:done]
        walked = map_for_host(file, stream, errors, found.offsets, found.ends)
        held = None
        if metadata is not None:
            placed = Placed(np.concatenate((before[None], free[:-1])), free, given.rotations[:done])
            held = held_after(system, metadata, file, calls, found, walked, states, placed)
        results = results_of(calls, stream, errors, found.offsets)
        return Done(results, given.placed[:done], free, held, states), status


def _possible(system: System, file: OpenFile) -> bool:
    """Whether calls on a file place pages that need nothing but zones, and change nothing else but what is followed."""
    inode, metadata = file.inode, system.metadata
    if not possible(system, file) or not system.is_plain_4k(inode) or inode.backend is not None:
        return False
    if metadata is None:
        return True
    return metadata.only_counts() and metadata.trees.get(inode, {}).keys() >= {LIGHT_MAP, PAGE_CACHE}


def _places(row: tuple[int, int, int, int, int, int]) -> bool:
    """Whether a row of a stream may place pages, or free some."""
    if row[folio.OP] == folio.PIN:
        return row[folio.ARGUMENT] != folio.TRANSIENT
    return row[folio.OP] in (folio.HOST_FAULT, folio.GUEST_FAULT, folio.PUNCH, folio.MERGE)


def _row_of_touch(
    touch: sc.Fault | sc.Fallocate | sc.PunchHole, end: int
) -> tuple[int, int, int, int, int, int] | None:
    """What places or frees pages as a row of a stream; None: it goes not upwards, is long (of the host: no page), or beyond."""
    first, stop, step = pages_of_touch(touch)
    if step != 1 or first >= stop or stop > end:
        return None
    op, argument = folio.PUNCH if isinstance(touch, sc.PunchHole) else folio.MERGE, 0
    if isinstance(touch, sc.Fault):
        if touch.by == "host" and stop - first > 1:
            return None
        op, argument = (folio.HOST_FAULT, 0) if touch.by == "host" else (folio.GUEST_FAULT, folio.AS_IT_IS)
    return op, first * PAGE_SIZE, (stop - first) * PAGE_SIZE, argument, 0, 0


def _look_ahead(inode: Inode, stream: Int64s) -> tuple[Bools, int]:
    """Which faults of the host and pins place nothing, and how many rows come before one of which that is not certain, or that
    may free what somebody holds."""
    tracked = inode.tracked
    assert isinstance(tracked, LightFile)
    state, op, to_shared = tracked.state, stream[:, folio.OP], stream[:, folio.ARGUMENT] == 1
    first, end = pages_of_calls(stream)
    alone = end - first == 1
    refers, holes = (op == folio.PIN) | (op == folio.UNPIN), op == folio.PUNCH
    pins = (op == folio.PIN) & (stream[:, folio.ARGUMENT] != folio.TRANSIENT)
    touches = (op == folio.HOST_FAULT) | (pins & alone)
    converts = (op == folio.CONVERT) & ((stream[:, folio.OFFSET] | stream[:, folio.LENGTH]) % PAGE_SIZE == 0)
    may_be_held = bool(state.counts[light_map.N_PINS] or (op == folio.PIN).any())
    may_be_bad = bool(state.counts[light_map.N_POISONED] or (op == folio.POISON).any())
    unsure = converts & ~to_shared & ~alone & (may_be_held or may_be_bad)
    shared = bits_at(state.shared, first)
    count = _first_absent(state.unit_pfn, first, end, np.flatnonzero(pins & ~alone), len(stream))
    count = min(count, first_of_kept(inode, stream), first_of_poison(inode, stream))
    pages, at = np.unique(first[touches], return_index=True)
    held = _Held(tracked, pages) if may_be_held and holes.any() else None
    some = np.flatnonzero(touches | converts | ((holes | refers) & (held is not None)))
    if held is not None or (len(pages) and converts.any()):
        there, now = state.unit_pfn[pages] >= 0, shared[touches][at].astype(np.int8)
        low, high = np.searchsorted(pages, first[some]), np.searchsorted(pages, end[some])
        lists = (some, low, high, touches[some], converts[some], unsure[some], to_shared[some])
        for number, begin, stop, touch, converted, may_stay, shares in zip(
            *(one.tolist() for one in lists), strict=True
        ):
            if touch and now[begin] == _UNSURE and not there[begin]:
                count = min(count, number)
                break
            if held is not None and not held.follow(stream[number], begin, stop, now, there):
                count = min(count, number)
                break
            if touch:
                shared[number] = now[begin] == _YES
            elif converted and may_stay:
                now[begin:stop][now[begin:stop] == _YES] = _UNSURE
            elif converted:
                now[begin:stop] = _YES if shares else _NO
    return (touches & ~shared) | (pins & ~alone), count


class _Held:
    """Which pages somebody may hold, call by call, beside the state of ``pages``, ascending, that are touched one by one.

    How many references a page has is known at most: a pin may be refused.
    """

    def __init__(self, tracked: LightFile, pages: Int64s) -> None:
        self.number_of = {page: number for number, page in enumerate(pages.tolist())}
        self.most: dict[tuple[int, int], int] = {}
        """References by page and kind."""
        self.open: set[int] = set()
        """Pages that count as private, and may be shared yet: somebody may have held them when they were converted."""
        self.gone: set[int] = set()
        """Pages that a hole has taken; of one list they are few (:data:`MOST_PAGES`)."""
        for row in tracked.state.pins[: tracked.state.counts[light_map.N_PINS]].tolist():
            if row[light_map.PIN_PFN] < 0:
                self.most[row[light_map.PIN_PAGE], row[light_map.PIN_KIND]] = row[light_map.PIN_COUNT]

    def follow(self, row: Int64s, begin: int, stop: int, now: npt.NDArray[np.int8], there: Bools) -> bool:
        """A row of the stream, and which of the pages it names; False: what it does is not certain.

        now, there : of each of the pages, before the row; what of it the row leaves open is entered
        """
        op, offset, length, argument = row[:4].tolist()
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        if op == folio.PUNCH:
            return self._punch(first, end, begin, stop, now, there)
        if op == folio.PIN:
            return self._pin(first, end, argument, now)
        if op == folio.UNPIN and end - first == 1:
            self._drop(first, argument)
        elif op == folio.CONVERT and argument == 1 and self.open:
            self.open.difference_update(range(first, end))
        elif op == folio.CONVERT and end - first == 1 and self._may_be_shared(first, now):
            kept = any((first, kind) in self.most for kind in (folio.TRANSIENT, folio.LONG_TERM))
            (self.open.add if kept else self.open.discard)(first)
        return True

    def _may_be_shared(self, page: int, now: npt.NDArray[np.int8]) -> bool:
        number = self.number_of.get(page)
        return number is None or now[number] != _NO or page in self.open

    def _pin(self, first: int, end: int, kind: int, now: npt.NDArray[np.int8]) -> bool:
        if end - first > 1 and kind != folio.TRANSIENT and not self.gone.isdisjoint(range(first, end)):
            return False
        if end - first > 1 or self._may_be_shared(first, now):
            for page in range(first, end):
                self.most[page, kind] = self.most.get((page, kind), 0) + 1
        return True

    def _drop(self, page: int, kind: int) -> None:
        count = self.most.get((page, kind), 0) - 1
        if count > 0:
            self.most[page, kind] = count
        else:
            self.most.pop((page, kind), None)

    def _punch(self, first: int, end: int, begin: int, stop: int, now: npt.NDArray[np.int8], there: Bools) -> bool:
        """What is held in passing is so no more when it leaves."""
        pages = range(first, end)
        if any((page, folio.LONG_TERM) in self.most for page in pages):
            return False
        for page in pages:
            self.most.pop((page, folio.TRANSIENT), None)
        there[begin:stop] = False
        for page in self.open.intersection(pages):
            if page in self.number_of:
                now[self.number_of[page]] = _UNSURE
        self.gone.update(pages)
        return True


def _first_absent(unit_pfn: Int64s, first: Int64s, end: Int64s, some: Int64s, count: int) -> int:
    """The first of some rows of which a page is not there; ``count`` if there is none."""
    row, page = pages_of(first[some], end[some])
    absent = some[row[unit_pfn[page] < 0]]
    return int(absent[0]) if len(absent) else count


def _suffices(system: System, inode: Inode, listed: _List) -> bool:
    """Whether there are struct pages for whatever may be shared, and frames for whatever may be placed."""
    tracked = inode.tracked
    assert isinstance(tracked, LightFile)
    state = tracked.state
    shift = int(state.options[light_map.GROUP_SHIFT])
    first, end = pages_of_calls(listed.stream)
    groups = np.unique(pages_of(first >> shift, ((end - 1) >> shift) + 1)[1])
    if len(groups) > (state.vmemmap >> (shift - light_map.GROUP_256K)).sum():
        return False
    wanted = int((listed.rows[:, 1] - listed.rows[:, 0]).sum())
    free = np.bincount(system.zone_node, system.free, system.nodes)
    return bool((tracked.memory.free_pages >= np.minimum(wanted, free)).all())


def _with_what_was_placed(system: System, inode: Inode, stream: Int64s, entered: Int64s) -> Int64s:
    """Each row of a stream after rows that put in what was placed for it; ``entered``: where the allocation rows of each end."""
    begin, end = inode.entered[0], int(entered[-1])
    allocation, page, zone = inode.map.placed_by(begin, end)
    inode.entered[0] = end
    put = np.zeros((len(page), 6), np.int64)
    put[:, folio.OP], put[:, folio.OFFSET] = folio.INSERT, page * PAGE_SIZE
    put[:, folio.NODE] = system.zone_node[zone]
    of = np.concatenate((np.searchsorted(entered, begin + allocation, side="right"), np.arange(len(stream))))
    return np.concatenate((put, stream))[np.argsort(of, kind="stable")]

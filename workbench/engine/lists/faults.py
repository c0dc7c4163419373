"""Many faults of a scenario at once: operations one after another that touch the same file, allocate in it, or punch holes.

Calls that set policies of the file come between (:mod:`workbench.engine.lists.policies`), and where it converts in place
conversions and pins (:mod:`workbench.engine.lists.tracked_faults`). The kernel (:mod:`workbench.kernels.faults`) carries them out
in their order, as far as nothing but a page's zone has to be decided; what it is not sure of is left to the function of the
operation. Metadata that are only counted decide nothing, so that they follow from what was placed
(:class:`workbench.engine.metadata.Metadata` counts them, fault by fault where there are any) and from nodes of the page cache
that come and go (:mod:`workbench.engine.lists.nodes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeGuard

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import calls_mm
from workbench.engine.kernel_pages import LIGHT_MAP, STATE_TREE
from workbench.engine.lists.nodes import ListNodes
from workbench.engine.lists.policies import POLICY_CALLS, THREAD_CALLS, Found, PolicyCall, ThreadCall, Threads
from workbench.engine.lists.tracked_faults import (
    ALLOCATED,
    BY_GUEST,
    BY_HOST,
    CALLED,
    CALLS,
    POISONED_PAGES,
    PUNCHED,
    Call,
    Outcomes,
    States,
    TrackedFaults,
    converts_in_place,
    pages_of_calls,
    pins_possible,
    result_of_call,
    result_of_poison,
    row_of_call,
    row_of_device,
    row_of_poison,
)
from workbench.engine.lists.tracked_faults import possible as tracked_possible
from workbench.engine.lists.waiting import Wait
from workbench.engine.objects import Inode, OpenFile, Result, Thread
from workbench.engine.page_tables import Walk
from workbench.engine.range_trees import LightMap
from workbench.engine.system import System
from workbench.errors import Cancelled
from workbench.intervals import Int64s, no_intervals
from workbench.kernels import faults as kernel
from workbench.kernels import placement
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.units import PAGE_SIZE

LEAST, MOST = 32, 4096
"""Calls that are worth a list (it costs as much as some 40 alone), and calls of one list: between two a run can be cancelled."""
MOST_PAGES_OF_ONE = 2048  # of one fault
_ROOM = 64  # pieces of one fault
_SMALL_TABLE = 64  # rows of requests
TOO_MANY_POLICIES = -1
_STEPS = {"sequential": 1, "reverse": -1}
_Touch = sc.Fault | sc.Fallocate | sc.Madvise
_Call = Call | sc.Hwpoison | sc.IommuMap | sc.IommuUnmap
_TOUCHES = (sc.Fault, sc.Fallocate, sc.Madvise)
_PLACES = (*_TOUCHES, sc.PunchHole)
"""What places pages, or frees some."""
_DEVICES = (sc.IommuMap, sc.IommuUnmap)
_OF_STATES = (*CALLS, *_DEVICES)
_CALLS = (*_OF_STATES, sc.Hwpoison)
_LOOKS = (sc.Observe, sc.Access, sc.GetMempolicy, sc.MovePages, sc.MigratePages)
_LEAVE_WAYS = frozenset((*_CALLS, *POLICY_CALLS, *THREAD_CALLS, *_LOOKS, sc.PunchHole))
"""After which all is allowed that was before."""
_Alike = _Touch | sc.PunchHole | _Call | PolicyCall
_ALIKE = frozenset((*_PLACES, *_CALLS, *POLICY_CALLS))
_DOES = np.zeros(5, np.int64)
_DOES[[BY_HOST, PUNCHED]] = kernel.MAPS, kernel.HOLE
_Way = tuple[str, str | int | None]
"""File, and how it is touched: ``host``, ``populate``, ``guest``, ``prefault``, or the mode of a call that allocates."""


class Done(NamedTuple):
    """What many operations returned, and the state after each."""

    results: list[Result]
    placed: Int64s
    """int64 (n, zones)."""
    free: Int64s
    """int64 (n, zones)."""
    metadata: Int64s | None
    """int64 (n, kinds, nodes)."""
    states: States | None = None
    """Of conversions, where there are any."""
    attributes: Int64s | None = None
    """int64 (n, counters), of the file that was converted out of place (:data:`workbench.engine.attributes.COUNTERS`)."""


class _List(NamedTuple):
    """Operations that are to be carried out together, as far as they are looked at."""

    operations: list[_Alike | ThreadCall]
    rows: Int64s
    """int64 (m, 5), as :mod:`workbench.kernels.faults` takes them."""
    of: Int64s
    """int64 (m,), the operation that each row is of; each has one row at least."""
    kind: Int64s
    calls: Int64s
    """int64 (n, 6), rows of streams of a tracked file."""
    tracked: TrackedFaults | None
    policies: Found
    threads: Threads

    @property
    def length(self) -> int:
        """How many operations have rows."""
        return int(self.of[-1]) + 1 if len(self.of) else 0


class BulkFaults:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most, self._wait = 0, MOST, Wait()
        self._alike_to = self._touch = 0
        """Where operations alike end, and the next one that touches the file."""
        self.went_well: set[_Way] = set()
        """What was allowed since something else was done: it is allowed again."""

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        if number < self._not_before or isinstance(self.operations[number], THREAD_CALLS) or not self._goes_on(number):
            return None
        if not self.went_well and not isinstance(self.operations[number], (sc.PunchHole, sc.Pin, sc.IommuMap)):
            return None
        file = self.system.files.get(self.operations[number].file)  # type: ignore[attr-defined]
        if file is None or not _possible(self.system, file):
            self._not_before = number + LEAST  # what is asked changes seldom
            return None
        given = self._list(file, self.operations[number : number + self._most])
        count = given.length
        certain = count == len(given.operations)
        if count < LEAST:  # what ends it would end one that begins later, too
            self._not_before, self._most = number + count + self._wait.longer(), self._most if certain else LEAST
            return None
        self._wait.over()
        done, status = self._run(file, given)
        if status == TOO_MANY_POLICIES:  # to find out again would cost their number
            self._not_before, self._most = number + count, MOST
            return None
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if certain and status == placement.DONE else max(2 * count, LEAST)
        self._not_before = number + count + (status != placement.DONE)
        return done

    def note(self, number: int, result: Result) -> None:
        """What is known of the operations to come by the last one, which has returned that, alone or as the last of a list."""
        last = self.operations[number]
        if type(last) in _TOUCHES and result.errno in (0, folio.EHWPOISON):  # what is poisoned is reached, too
            self.went_well.add((last.file, way(last)))  # type: ignore[attr-defined,arg-type]
        elif type(last) not in _LEAVE_WAYS:
            self.went_well.clear()

    def _goes_on(self, number: int) -> bool:
        """Whether a list that is worth it may begin here: operations on a file, early ones of which place or free pages."""
        operations = self.operations
        if self._alike_to <= number:  # each operation is looked at once
            file, end = vars(operations[number]).get("file"), number
            while end < len(operations) and _is_of(file, operations[end]):
                end += 1
            self._alike_to = max(end, number + 1)
        if self._alike_to - number < LEAST:
            return False
        self._touch = max(self._touch, number)
        while self._touch < self._alike_to and not self._may_place(operations[self._touch]):
            self._touch += 1
        return self._touch < number + LEAST

    def _may_place(self, operation: sc.Operation) -> bool:
        """Whether an operation places or frees pages, as it looks now; other lists have pins of pages that are there."""
        if not isinstance(operation, (sc.Pin, sc.IommuMap)):
            return isinstance(operation, _PLACES)
        file, page = self.system.files.get(operation.file), operation.offset // PAGE_SIZE
        tracked = None if file is None else file.inode.tracked
        if not isinstance(tracked, ConversionFile) or page >= tracked.size // PAGE_SIZE:
            return False
        return not int(tracked.state.present[page >> 6]) >> (page & 63) & 1

    def _list(self, file: OpenFile, operations: Sequence[sc.Operation]) -> _List:
        """Operations on a file up to whatever is something else, or has not gone well before.

        Faults that are not all in the file are something else, as are long ones and those that go to and fro.
        """
        system, inode = self.system, file.inode
        name, calls = getattr(operations[0], "file", None), inode.tracked is not None and pins_possible(system, file)
        converts = converts_in_place(system, file)
        holes, devices = file.descriptor is not None, system.design.device_access == "pinned"
        ends = {of: reach(file, of) for at, of in self.went_well if at == name}
        threads = Threads(system)
        does = _DOES.tolist()
        if inode.tracked is not None:  # what the host has mapped follows from its states
            does[BY_HOST] = kernel.TOUCHES
        taken: list[_Alike | ThreadCall] = []
        policies = Found(system, file)
        rows: list[tuple[int, int, int, int, int]] = []
        kinds: list[int] = []
        streams: list[tuple[int, int, int, int, int, int]] = []
        for one in operations:
            if isinstance(one, THREAD_CALLS):
                if not threads.set(len(taken), one):
                    break
                policies.touch(0, 0)
                taken.append(one)
                rows.append((*_NO_PAGES, 0, does[ALLOCATED]))
                kinds.append(ALLOCATED)
                streams.append(_NO_CALL)
                continue
            if not _is_alike(one) or one.file != name:
                break
            task, call, pages = threads.row(one.task), _NO_CALL, _NO_PAGES
            changes: PolicyCall | None = None
            if isinstance(one, _TOUCHES):  # the most usual first: to find that one is none of them takes long
                pages, of_way = pages_of_touch(one), way(one)
                whole = pages[1] <= ends.get(of_way, 0) and pages != _NO_PAGES
                of = BY_HOST if of_way in ("host", "populate") else BY_GUEST if isinstance(one, sc.Fault) else ALLOCATED
            elif isinstance(one, _CALLS):
                found = (
                    _row_of_call(one, inode, devices) if calls and (converts or type(one) is not sc.Convert) else None
                )
                call = _NO_CALL if found is None else found
                whole, of = found is not None, CALLED
                if isinstance(one, (sc.Pin, sc.IommuMap)):
                    pages = _pages_of_pin(call)
            elif isinstance(one, sc.PunchHole):
                pages = pages_of_touch(one)
                whole, of = holes and pages != _NO_PAGES and pages[1] <= inode.pages, PUNCHED
            else:
                whole, of, changes = True, ALLOCATED, one
            if not whole or task < 0:
                break
            if not (policies.touch(*pages[:2]) if changes is None else policies.set(changes)):
                break
            taken.append(one)
            rows.append((*pages, task, does[of]))
            kinds.append(of)
            streams.append(call)
        policies.undo()
        table, kind = np.array(rows, np.int64).reshape(-1, 5), np.array(kinds, np.int64)
        stream = np.array(streams, np.int64).reshape(-1, 6)
        if system.metadata is not None:
            grows = np.where(kind == PUNCHED, 1, np.maximum(table[:, 1], 1))
            table = table[: system.metadata.foreseen(inode, grows)]
        tracked = None
        if system.conversions is not None and len(table) >= LEAST:
            tracked = TrackedFaults(system, inode, table, kind, stream, file.mapping)
            table = tracked.rows
        return _List(
            taken,
            table,
            np.arange(len(table)) if tracked is None else tracked.of,
            kind,
            stream,
            tracked,
            policies,
            threads,
        )

    def _run(self, file: OpenFile, listed: _List) -> tuple[Done | None, int]:
        """Carry out operations of a list, as far as they can be together, and whether that was all."""
        system, inode, rows, tracked = self.system, file.inode, listed.rows, listed.tracked
        tasks, of = listed.threads.states, listed.of
        policies = [listed.policies.policies[one] for one in of.tolist()] if listed.policies.change else None
        asked = asked_for(system, inode, rows, tasks, policies)
        if asked is None:
            return None, TOO_MANY_POLICIES
        given, requests = asked
        before, light = system.free.copy(), _light_map(system, inode)
        listed_nodes = None
        if light is not None:
            light.wanted()  # what is placed now is counted from here
        if system.metadata is not None:
            listed_nodes = ListNodes(system.metadata, system.metadata.page_cache(inode), rows[:, 0], rows[:, 1])
        nid = np.array([task.nid for task in tasks], np.int64)
        nodes = followed_nodes(listed_nodes, len(rows), np.repeat(nid, len(given.row_of) // len(tasks)))
        status = place(system, given, nodes, file, requests)
        ran = int(given.at[kernel.FAULT])
        done = listed.length if ran == len(rows) else int(of[ran])
        begin = np.searchsorted(of, np.arange(done + 1))
        """The first row of each operation that was done, and of the one after them."""
        if status == placement.OUT_OF_MEMORY:  # asked again alone, it is refused
            system.begun[:] = given.placed[begin[done] : ran + 1].sum(axis=0)
        if not ran:
            return None, status
        last = begin[1:] - 1
        found = None if tracked is None or not done else tracked.carry_out(given.entered[last], given.faults)
        if tracked is None:
            self._zap_others(file, rows[:ran])
        held = None
        if listed_nodes is not None:
            whose = [tasks[row] for row in rows[:ran, 3].tolist()]
            held = _held_after(system, file, listed, found, whose, before, given, (listed_nodes, nodes), last)
        if not done:
            return None, status
        listed.policies.redo(listed.operations[:done])
        listed.threads.redo(listed.operations[:done])
        results = results_of(listed.operations[:done], found, listed.policies.results | listed.threads.results)
        states = None if found is None else found.states
        placed = np.add.reduceat(given.placed[:ran], begin[:-1], axis=0)
        placed[-1] -= given.placed[begin[done] : ran].sum(axis=0)  # of one that was begun
        return Done(results, placed, given.free[last], held, states), status

    @staticmethod
    def _zap_others(file: OpenFile, rows: Int64s) -> None:
        """Holes are taken out of other mappings of the file as well, by which nobody has touched it meanwhile."""
        others = [other for other in file.inode.mappings if other is not file.mapping and not other.empty]
        if others:
            for first, end in rows[rows[:, 4] == kernel.HOLE, :2].tolist():
                for mapping in others:
                    mapping.zap(first, end)


_NO_CALL = (0, 0, 0, 0, 0, 0)
_NO_PAGES = (0, 0, 1)


def asked_for(
    system: System,
    inode: Inode,
    rows: Int64s,
    tasks: list[Thread],
    found: list[mp.Mempolicy | None] | None = None,
) -> tuple[kernel.Faults, placement.Requests] | None:
    """What the kernel of faults is given for ``rows`` of a list; None: there are too many policies.

    ``found``: the policy of each row, where policies change between them: then there are no ranges, but as many rows of
    ``row_of`` for each task as there are different policies.
    """
    whole = np.array([[rows[:, 0].min(), rows[:, 1].max()]], np.int64)
    if found is None:
        ranges, policies = system.policy_ranges(inode, inode.order, whole)
    else:
        place: dict[mp.Mempolicy | None, int] = {}
        which = np.array([place.setdefault(policy, len(place)) for policy in found[: len(rows)]], np.int64)
        ranges, policies = no_intervals(), list(place)
    if len(policies) * len(tasks) > _SMALL_TABLE + len(rows):
        return None
    requests, row_of = system.requests(inode, tasks, policies, inode.order)
    if found is not None:
        rows, row_of = rows.copy(), row_of.reshape(-1, 1)
        rows[:, 3] = rows[:, 3] * len(policies) + which
    zones, light = len(system.free), inode.tracked is None and _light_map(system, inode) is not None
    given = kernel.Faults(
        rows, np.ascontiguousarray(ranges), row_of, np.zeros(6, np.int64),
        np.empty((_ROOM, 2), np.int64), np.empty((_ROOM, 4), np.int64), np.empty(len(rows), np.int64),
        np.empty((len(rows), zones), np.int64), np.empty((len(rows), zones), np.int64), np.empty((len(rows), 2), np.int64),
        np.empty(len(rows) if light else 0, np.int64),
    )  # fmt: skip
    return given, requests


def place(
    system: System, given: kernel.Faults, nodes: kernel.Nodes, file: OpenFile, requests: placement.Requests
) -> int:
    """Run the kernel until it has done all, or comes to a fault that has to be carried out alone; returns its status."""
    map_, mapping = file.inode.map, file.mapping
    turns, zones = system.turns_and_zones(file.inode, 0)
    maps = bool(given.faults[:, 4].any()) and file.inode.tracked is None
    holes = bool((given.faults[:, 4] >= kernel.HOLE).any())
    while True:
        present = map_.room(erases=holes)
        mapped = mapping.room() if maps and mapping is not None else present
        status = kernel.run.direct(given, nodes, present, mapped, requests, turns, zones, system.output_of(map_))
        if status != placement.NEEDS_ROOM:
            return int(status)
        map_.grow(1024, 4 * len(system.output_of(map_).cycle))
        if system.cancelled():
            raise Cancelled


def followed_nodes(listed: ListNodes | None, count: int, nid: Int64s) -> kernel.Nodes:
    """Nodes of the page cache that ``count`` rows touch, as the kernel follows them; ``nid`` int64 (tasks,)."""
    if listed is None or not listed.trees:
        nothing = np.empty((0, 3), np.int64)
        return kernel.Nodes(np.empty(0, np.int64), np.empty((count, 0), np.int64), nid, nothing)
    owner = listed.before[0].copy()
    different = len(np.unique(np.concatenate((owner, nid))))
    return kernel.Nodes(owner, listed.begins, nid, np.empty((count * different, 3), np.int64))


def pages_of_touch(touch: _Touch | sc.PunchHole) -> tuple[int, int, int]:
    """First page, end and step of what is touched or freed; none, where a call is refused, or goes to and fro."""
    start, count = touch.offset // PAGE_SIZE, 0 if touch.length is None else touch.length // PAGE_SIZE
    if isinstance(touch, sc.Fault):
        step = 1 if count == 1 else _STEPS.get(touch.order, 0)
    else:
        step = int((touch.offset | (touch.length or 0)) % PAGE_SIZE == 0)
    return (start, start + count, step) if step and 0 < count <= MOST_PAGES_OF_ONE else _NO_PAGES


def _row_of_call(call: _Call, inode: Inode, devices: bool) -> tuple[int, int, int, int, int, int] | None:
    """A call as a row of a stream of the tracked file; None: it is not followed. ``devices``: those that pin what they map."""
    if isinstance(call, sc.Hwpoison):
        return row_of_poison(call, inode, POISONED_PAGES)
    if isinstance(call, _DEVICES):
        return row_of_device(call, inode) if devices else None
    return row_of_call(call, inode)


def _pages_of_pin(call: tuple[int, ...]) -> tuple[int, int, int]:
    """Of a row of a stream, the pages that it pins, if they stay pinned."""
    first = call[folio.OFFSET] // PAGE_SIZE
    end = -(-(call[folio.OFFSET] + call[folio.LENGTH]) // PAGE_SIZE)
    return (first, end, 1) if end > first and call[folio.ARGUMENT] != folio.TRANSIENT else _NO_PAGES


def whole_pages(offset: int, length: int, size: int) -> bool:
    """Whether bytes of a call are whole pages of a file of ``size`` bytes, and no more than a list takes of one call."""
    return (
        0 < length <= MOST_PAGES_OF_ONE * PAGE_SIZE and offset + length <= size and (offset | length) % PAGE_SIZE == 0
    )


def _is_alike(operation: sc.Operation) -> TypeGuard[_Alike]:
    """Whether a list may have an operation at all."""
    return type(operation) in _ALIKE and (not isinstance(operation, sc.Madvise) or way(operation) == "populate")


def _is_of(file: str | None, operation: sc.Operation) -> bool:
    """Whether a list of operations on that file may have an operation."""
    return isinstance(operation, THREAD_CALLS) or (_is_alike(operation) and operation.file == file)


def way(touch: _Touch) -> str | int | None:
    """How a file is touched."""
    if isinstance(touch, sc.Fault):
        return touch.by
    if isinstance(touch, sc.Fallocate):
        return touch.mode
    return "populate" if touch.advice in (calls_mm.MADV_POPULATE_READ, calls_mm.MADV_POPULATE_WRITE) else "not at all"


def reach(file: OpenFile, by: str | int | None) -> int:
    """Up to which page of a file something that went well needs nothing but zones for its pages; 0: nowhere."""
    inode = file.inode
    if by == "not at all" or (by == "populate" and inode.tracked is not None):
        return 0
    if by in ("host", "populate"):
        if file.mapping is None or (inode.private and inode.tracked is None):
            return 0
        return min(inode.pages, file.mapping.pages)
    if by in ("guest", "prefault") and inode.kind != "guest_memfd":
        return 0
    return inode.pages


def _possible(system: System, file: OpenFile) -> bool:
    """Whether faults of a file can be carried out together: it needs nothing but zones, and metadata are only counted."""
    inode, metadata = file.inode, system.metadata
    if system.killed or system.bulk is not None or inode.frozen or not tracked_possible(system, inode):
        return False
    if inode.attributes is not None or inode.backend is not None or not system.is_plain_4k(inode):
        return False
    if any(owner in system.attributed for owner in inode.backs):
        return False  # what it holds is counted of another file
    if metadata is None:
        return True
    if inode.tracked is not None and metadata.light_map(inode) is not None:
        return False
    return metadata.only_counts() and metadata.has_tree(inode)


def _light_map(system: System, inode: Inode) -> LightMap | None:
    """The offset -> pfn map of a file, if its design has one and it is counted: nodes follow from what is placed."""
    return None if system.metadata is None else system.metadata.light_map(inode)


def results_of(
    operations: Sequence[_Alike | ThreadCall],
    found: Outcomes | None,
    alone: Mapping[int, Result] = MappingProxyType({}),
) -> list[Result]:
    """What each operation returned, those that were carried out ``alone`` by their number.

    Of what the host touches together all pages were shared, but for single ones.
    """
    said: dict[tuple[str | int | None, int], Result] = {}
    out: list[Result] = []
    errors = [0] * len(operations) if found is None else found.errors.tolist()
    offsets = errors if found is None else found.offsets.tolist()
    told = (None if found is None else found.said) or {}
    marked = [] if found is None else found.marked.tolist()
    for number, (one, error, offset) in enumerate(zip(operations, errors, offsets, strict=True)):
        if number in told:
            out.append(told[number])
        elif isinstance(one, sc.Fault) and not error:
            pages = (one.length or 0) // PAGE_SIZE
            key = (one.by, pages)
            if key not in said:
                said[key] = calls_mm.touched(one, pages)
            out.append(said[key])
        elif number in alone:
            out.append(alone[number])
        elif isinstance(one, _OF_STATES):
            out.append(result_of_call(error, offset))
        elif isinstance(one, sc.Hwpoison):
            out.append(result_of_poison(error, marked[number]))
        elif error and isinstance(one, sc.Fault) and one.by != "host":  # of a poisoned page
            out.append(result_of_call(error, offset))
        elif error:
            out.append(Result(0, 0, {"bad": 1, "first": offset // PAGE_SIZE}))
        else:
            out.append(said.setdefault((None, 0), Result()))
    return out


def _held_after(
    system: System,
    file: OpenFile,
    listed: _List,
    found: Outcomes | None,
    tasks: list[Thread],
    before: Int64s,
    given: kernel.Faults,
    of_nodes: tuple[ListNodes, kernel.Nodes],
    last: Int64s,
) -> Int64s:
    """Metadata after each of n operations, int64 (n, kinds, nodes), whose last rows are ``last`` of those that ran.

    ``tasks`` of the rows.
    """
    metadata, inode, ran = system.metadata, file.inode, len(tasks)
    assert metadata is not None
    rows, kind = listed.rows[:ran], listed.kind[listed.of[:ran]]
    free, rotations = given.free[:ran], given.rotations[:ran]
    free_before = np.concatenate((before[None], free[:-1]))
    nodes, followed = of_nodes
    events = followed.events[: int(given.at[kernel.EVENTS])]
    events = np.insert(events, 1, 0, axis=1)  # all of the page cache
    held = nodes.held_after(events, ran, tasks, free_before[events[:, 0]], rotations)
    nodes.enter(followed.owner[None])
    light = metadata.light_map(inode)
    if light is not None:
        extents = light.follow(given.ranges_more[:ran], int(given.entered[ran - 1]))
        grown = metadata.follow_nodes(LIGHT_MAP, light, extents, tasks, (free, rotations))
        held[:, [STATE_TREE, LIGHT_MAP]] = grown[:, [STATE_TREE, LIGHT_MAP]]

    def count_tables(walk: Walk | None, pages: Int64s) -> None:
        """What is held more by faults on these pages (n, 2), of those that have any."""
        some = np.flatnonzero(pages[:, 1] > pages[:, 0])
        if walk is None or not len(some):
            return
        which = np.column_stack((pages, rows[: len(pages), 2:]))[some]
        whose = [tasks[row] for row in some.tolist()]
        was = metadata.held.copy()
        after = metadata.count_faults(walk, which, whose, free_before[some], rotations[some])
        held[some[0] :] += (after - was)[np.searchsorted(some, np.arange(some[0], ran), side="right") - 1]

    done = int(last[-1]) + 1 if len(last) else 0
    by_host, by_guest = kind[:done] == BY_HOST, kind[:done] == BY_GUEST
    walked = rows[:done, :2] if found is None else found.walked
    if by_host.any():
        count_tables(system.host_walk(file.mapping), walked * by_host[:, None])
    if by_guest.any():
        count_tables(system.guest_walk(inode), rows[:done, :2] * by_guest[:, None])
    held = held[last]
    is_call = listed.kind[: len(last)] == CALLED
    if found is not None and is_call.any():
        calls, whose = listed.calls[: len(last)], [tasks[row] for row in last.tolist()]
        first, end = pages_of_calls(calls)
        converted = is_call & (calls[:, folio.OP] == folio.CONVERT) & (found.errors == 0)
        to_shared = calls[:, folio.ARGUMENT] == 1
        trees = metadata.follow_states(
            inode, whose, first, np.where(converted, end, first), to_shared, (free[last], rotations[last])
        )
        held[:, [STATE_TREE, LIGHT_MAP]] = trees[:, [STATE_TREE, LIGHT_MAP]]
    if found is not None:
        found.states.hold(metadata, held)
    return held

"""Many faults on pages that are there and conversions, of a file of huge pages that converts in place.

Nothing is placed. The file has them as one stream (leaves of the second stage, content). Tables of those who walk are entered
call by call. Conversions are in it while none can be refused, up to one after which a merge may have lost content. Files without
struct pages are :mod:`workbench.engine.lists.light`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.engine import calls_mm
from workbench.engine.kernel_pages import LIGHT_MAP, STATE_TREE
from workbench.engine.lists.faults import LEAST, MOST, BulkFaults, Done, reach, way, whole_pages
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.tracked_faults import after_each, converts_in_place, possible, result_of_call
from workbench.engine.lists.waiting import Wait
from workbench.engine.objects import Inode, OpenFile, Result
from workbench.engine.system import System
from workbench.intervals import Int64s, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at
from workbench.units import PAGE_SIZE

_PAGES = 2048  # of one call
_GUEST, _HOST, _TO_PRIVATE, _TO_SHARED = range(4)
_OPS = np.array([folio.GUEST_FAULT, folio.HOST_FAULT, folio.CONVERT, folio.CONVERT])
_ARGUMENTS = np.array([folio.AS_IT_IS, 0, 0, 1])
_NOTHING = np.empty(0, np.int64)

Bools = npt.NDArray[np.bool_]
_Call = sc.Fault | sc.Convert
_CALLS: frozenset[type[_Call]] = frozenset((sc.Fault, sc.Convert))


class _List(NamedTuple):
    """Calls that are to be carried out together."""

    calls: list[_Call]
    first: Int64s
    end: Int64s
    kind: Int64s
    shared: Bools
    """Whether the page was shared before, of calls on one page."""

    def begin(self, count: int) -> _List:
        """The first of them."""
        return _List(self.calls[:count], self.first[:count], self.end[:count], self.kind[:count], self.shared[:count])


class BulkPresent:
    """Looks ahead in the operations of a run; ``before`` knows what has gone well."""

    def __init__(self, system: System, operations: Sequence[sc.Operation], before: BulkFaults) -> None:
        self.system, self.operations, self.before = system, operations, before
        self._not_before, self._most, self._wait = 0, MOST, Wait()

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first, last = self.operations[number], number + LEAST - 1
        if self.system.conversions is None or number < self._not_before or not is_among(first, _CALLS):
            return None
        if last >= len(self.operations) or not is_among(self.operations[last], _CALLS):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + LEAST  # what is asked changes seldom
        if file is None or not _possible(self.system, file):
            return None
        listed = self._alike(file, first.file, self.operations[number : number + self._most])
        count = len(listed.calls)
        self._most = min(2 * self._most, MOST) if count == self._most else max(2 * count, LEAST)
        if count < LEAST:
            self._not_before = number + count + self._wait.longer()
            return None
        self._not_before = number + count + 1
        self._wait.over()
        return self._run(file, listed)

    def _alike(self, file: OpenFile, name: str, operations: Sequence[sc.Operation]) -> _List:
        """Calls on a file up to whatever is something else."""
        inode, tasks = file.inode, self.system.tasks
        ends = {of: reach(file, of) for at, of in self.before.went_well if at == name}
        converts = converts_in_place(self.system, file)
        calls: list[_Call] = []
        rows: list[tuple[int, int, int]] = []
        for one in operations:
            if not is_among(one, _CALLS) or one.file != name or one.length is None:
                break
            if one.task is not None and one.task not in tasks:
                break
            start, count = one.offset // PAGE_SIZE, one.length // PAGE_SIZE
            if isinstance(one, sc.Convert):
                if not converts or not whole_pages(one.offset, one.length, inode.pages * PAGE_SIZE):
                    break
                rows.append((start, start + count, _TO_SHARED if one.to == "shared" else _TO_PRIVATE))
            else:
                by_host = one.by == "host"
                if one.order != "sequential" and count > 1:
                    break
                if not 0 < count <= (1 if by_host else _PAGES) or start + count > ends.get(way(one), 0):
                    break
                rows.append((start, start + count, _HOST if by_host else _GUEST))
            calls.append(one)
        if len(calls) < LEAST:  # what ends it would end one that begins later, too
            return _List(calls, _NOTHING, _NOTHING, _NOTHING, _NOTHING == 1)
        first, end, kind = np.array(rows, np.int64).reshape(-1, 3).T
        there = _there(inode, first) & _there(inode, end - 1)  # no fault is longer than four blocks
        for middle in range(folio.PAGES_2M, _PAGES, folio.PAGES_2M):
            there &= _there(inode, np.minimum(first + middle, end - 1))
        goes_on = there | (kind >= _TO_PRIVATE)
        if (kind >= _TO_PRIVATE).any() and not _may_convert(self.system, inode):
            goes_on &= kind < _TO_PRIVATE
        shared, asked = _states_before(inode, first, end, kind)
        goes_on &= ~asked
        count = len(kind) if goes_on.all() else int(np.argmin(goes_on))
        return _List(calls, first, end, kind, shared).begin(count)

    def _run(self, file: OpenFile, listed: _List) -> Done:
        """Carry out such calls."""
        system, inode, metadata, count = self.system, file.inode, self.system.metadata, len(listed.calls)
        stream = np.zeros((count, 6), np.int64)
        stream[:, folio.OP], stream[:, folio.ARGUMENT] = _OPS[listed.kind], _ARGUMENTS[listed.kind]
        stream[:, folio.OFFSET] = listed.first * PAGE_SIZE
        stream[:, folio.LENGTH] = listed.end * PAGE_SIZE - stream[:, folio.OFFSET]
        errors, offsets, _, states = after_each(system, inode, stream, np.arange(1, count + 1))
        held = self._enter(file, listed, errors)
        converts = listed.kind >= _TO_PRIVATE
        if metadata is not None and held is not None and converts.any():
            tasks = [system.task(call) for call in listed.calls]
            converted = np.where(converts, listed.end, listed.first)
            trees = metadata.follow_states(inode, tasks, listed.first, converted, listed.kind == _TO_SHARED)
            held[:, [STATE_TREE, LIGHT_MAP]] = trees[:, [STATE_TREE, LIGHT_MAP]]
            states.hold(metadata, held)
        free = np.broadcast_to(system.free, (count, len(system.free)))
        return Done(_results(listed, errors, offsets), np.zeros_like(free), free, held, states)

    def _enter(self, file: OpenFile, listed: _List, errors: Int64s) -> Int64s | None:
        """What faults enter in the host's page tables and conversions take out, and tables of both; what is held after each."""
        system, inode, metadata, kind = self.system, file.inode, self.system.metadata, listed.kind
        held = None if metadata is None else np.empty((len(kind), *metadata.held.shape), np.int64)
        host = system.host_walk(file.mapping) if (kind == _HOST).any() and file.mapping is not None else None
        guest = system.guest_walk(inode) if (kind == _GUEST).any() else None
        columns = (listed.first, listed.end, kind, errors, listed.shared)
        of_all = zip(listed.calls, *(column.tolist() for column in columns), strict=True)
        for number, (one, start, end, does, error, is_shared) in enumerate(of_all):
            walks = does == _GUEST
            if does == _TO_PRIVATE:
                for mapping in inode.mappings:
                    if not mapping.empty:
                        mapping.zap(start, end)
            elif does == _HOST:
                walks = True
                if file.mapping is not None:
                    walks = is_shared and len(file.mapping.unmapped(start, end)) > 0
                    if walks and not error:
                        file.mapping.map(start, end)
            if metadata is not None and held is not None:
                if walks:
                    metadata.enter_tables(system.task(one), host if does == _HOST else guest, start, end)
                held[number] = metadata.held
        return held


def _results(listed: _List, errors: Int64s, offsets: Int64s) -> list[Result]:
    said: dict[tuple[int, int], Result] = {}
    results: list[Result] = []
    columns = (listed.first, listed.end, errors, offsets)
    for one, start, end, error, offset in zip(listed.calls, *(of.tolist() for of in columns), strict=True):
        if isinstance(one, sc.Convert):
            results.append(result_of_call(error, offset))
        elif error:
            results.append(Result(0, 0, {"bad": 1, "first": start}))
        else:
            key = (one.by, end - start)
            if key not in said:
                said[key] = calls_mm.touched(one, end - start)
            results.append(said[key])
    return results


def _possible(system: System, file: OpenFile) -> bool:
    """Whether faults on pages that are there change nothing but what is followed here."""
    inode, conversions, metadata = file.inode, system.conversions, system.metadata
    settings = system.scenario.guest.conversion
    if system.killed or system.bulk is not None or inode.frozen or conversions is None:
        return False
    if not isinstance(inode.tracked, ConversionFile) or not inode.order or not possible(system, inode):
        return False
    if inode.tracked.count("poisoned_pages"):
        return False
    if settings.merge == "lazy" or settings.split_on == "host_fault":
        return False
    return inode.attributes is None and (metadata is None or not metadata.taking)


def _may_convert(system: System, inode: Inode) -> bool:
    """Whether conversions are followed here, too, none of which is refused."""
    metadata = system.metadata
    assert isinstance(inode.tracked, ConversionFile)
    return (metadata is None or metadata.follows_states(inode)) and not inode.tracked.may_refuse()


def _there(inode: Inode, pages: Int64s) -> Bools:
    """Whether pages (n,) are in units that are there."""
    assert isinstance(inode.tracked, ConversionFile)
    return np.asarray(inode.tracked.state.level[pages >> folio.ORDER_2M] > folio.BASE)


def _states_before(inode: Inode, first: Int64s, end: Int64s, kind: Int64s) -> tuple[Bools, Bools]:
    """Of calls on pages [first, end), whether the host's found its page shared, and whether it has to be asked what a
    conversion has lost, bool (n,) each.
    """
    tracked = inode.tracked
    assert isinstance(tracked, ConversionFile)
    state, converts = tracked.state, kind >= _TO_PRIVATE
    row, page = pages_of(first, np.where(kind == _GUEST, first, end))
    order = np.lexsort((row, page))
    row, page = row[order], page[order]
    place, sets = np.arange(len(row)), converts[row]
    last_set = np.append(-1, np.maximum.accumulate(np.where(sets, place, -1))[:-1]) if len(row) else place
    known = last_set >= np.searchsorted(page, page)
    is_shared = np.where(known, kind[row[last_set]] == _TO_SHARED, bits_at(state.shared, page))
    shared = np.zeros(len(kind), bool)
    shared[row] = is_shared
    more = np.where(sets, (kind[row] == _TO_SHARED).astype(np.int64) - is_shared, 0)
    asked = np.zeros(len(kind), bool)
    if state.options[folio.FOLIOS] == folio.HUGETLB_FOLIOS:
        loses = _may_lose(inode, first, end, kind, row, page, more)
        asked[row[loses]] = True
    return shared, asked


def _may_lose(inode: Inode, first: Int64s, end: Int64s, kind: Int64s, row: Int64s, page: Int64s, more: Int64s) -> Bools:
    """Of pages of calls, by page, which are of a unit that may merge then, though not all of it is up to date, nor nothing.

    ``more``: 1 where a page became shared, -1 private.
    """
    tracked = inode.tracked
    assert isinstance(tracked, ConversionFile)
    state = tracked.state
    in_steps = state.options[folio.SPLITTING] != folio.ONE_STEP
    size = folio.ORDER_2M if in_steps else tracked.order
    units, unit = np.unique(page >> size, return_inverse=True)
    words = state.shared[(units[:, None] << (size - 6)) + np.arange(1 << (size - 6))]
    shared = np.bitwise_count(words).sum(axis=1).astype(np.int64)
    order = np.lexsort((row, unit))
    along = np.cumsum(more[order])
    begin = np.searchsorted(unit[order], np.arange(len(units)))
    left = np.empty_like(more)
    left[order] = along - (along[begin] - more[order][begin])[unit[order]] + shared[unit[order]]
    blocks = 1 << (tracked.order - folio.ORDER_2M)
    folios = units >> (tracked.order - size)
    marks = state.marks[folios[:, None] * blocks + np.arange(blocks)]
    whole = (marks & folio.UPTODATE_ALL != 0).all(axis=1)
    faults = kind <= _HOST
    touched = pages_of(first[faults] >> tracked.order, ((end[faults] - 1) >> tracked.order) + 1)[1]
    untouched = (marks & (folio.UPTODATE_ALL | folio.UPTODATE_SOME) == 0).all(axis=1) & ~np.isin(folios, touched)
    works = np.zeros(len(kind), bool)
    works[row[more < 0]] = True
    return (left == 0) & works[row] & ~(whole | untouched)[unit]

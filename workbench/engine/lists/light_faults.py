"""Many calls on a file without struct pages, of which some place or free memory: faults, allocations, holes; what converts and
pins comes between.

One kernel carries them out (:mod:`workbench.engine.lists.light`): what a call places depends on the states that it finds, so that
units are placed, and freed, in its turn. What is not certain ends a list: a touch of the host that places below several page
tables, or struct pages that may not suffice for what is placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from workbench import scenario as sc
from workbench.engine.kernel_pages import LIGHT_MAP, PAGE_CACHE
from workbench.engine.lists.faults import (
    LEAST,
    MOST,
    TOO_MANY_POLICIES,
    BulkFaults,
    Done,
    asked_for,
    reach,
    way,
)
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.light import (
    OF_STATES,
    Placed,
    Placing,
    carry_out,
    held_after,
    map_for_host,
    may_call,
    possible,
    results_of,
    row_of,
    row_of_fault,
)
from workbench.engine.lists.policies import POLICY_CALLS, Found, PolicyCall
from workbench.engine.lists.tracked_faults import MOST_PAGES, Call
from workbench.engine.objects import OpenFile
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.kernels import faults
from workbench.kernels import light_rows as kernel
from workbench.kernels.folios import run as folio
from workbench.tracking.light_file import LightFile
from workbench.units import PAGE_SIZE

_Call = Call | sc.Hwpoison | sc.IommuMap | sc.IommuUnmap | sc.Fault | sc.Fallocate | sc.PunchHole | PolicyCall
_CALLS: frozenset[type[_Call]] = frozenset((*OF_STATES, sc.Fault, sc.Fallocate, sc.PunchHole, *POLICY_CALLS))
_NOTHING = folio.MERGE, 0, 0, 0, 0, 0
"""What a call that sets policies does to pages."""
_TOUCHED = 2048 * PAGE_SIZE  # bytes that one call allocates or frees at most, of a file of 4 KiB pages


class _List(NamedTuple):
    """Calls that are to be carried out together."""

    calls: list[_Call]
    rows: Int64s
    """int64 (n, 5), as :mod:`workbench.kernels.faults` takes them: what they place."""
    stream: Int64s
    """int64 (n, 6), as :mod:`workbench.kernels.light_rows` takes them: what they do."""
    policies: Found


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
        if not is_among(first, _CALLS) or not is_among(self.operations[last], _CALLS):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + LEAST  # what is asked changes seldom
        if file is None or not _possible(self.system, file):
            return None
        listed = self._alike(file, first.file, self.operations[number : number + self._most])
        self._not_before = number + len(listed.calls) + 1
        if len(listed.calls) < LEAST:
            return None
        assert isinstance(file.inode.tracked, LightFile)
        if not _suffices(self.system, file.inode.tracked, int((listed.rows[:, 1] - listed.rows[:, 0]).sum())):
            return None
        done, status = self._run(file, listed)
        if status == TOO_MANY_POLICIES:  # to find out again would cost their number
            self._most = MOST
            return None
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if status == kernel.DONE else max(2 * count, LEAST)
        self._not_before = number + count + (status != kernel.DONE)
        return done

    def _alike(self, file: OpenFile, name: str, operations: Sequence[sc.Operation]) -> _List:
        """Calls on a file up to whatever is something else, or has not gone well before."""
        system, inode, calls_too = self.system, file.inode, may_call(self.system, file)
        ends = {of: reach(file, of) for at, of in self.before.went_well if at == name}
        holes_to, generation = inode.pages if file.descriptor is not None else 0, system.rules.kernel
        of_task: dict[str | None, int] = {task: row for row, task in enumerate(system.tasks)}
        of_task[None] = 0
        turns = [task.policy is not None and task.policy.interleaves for task in system.tasks.values()]
        calls: list[_Call] = []
        rows: list[tuple[int, int, int, int, int]] = []
        streams: list[tuple[int, int, int, int, int, int]] = []
        pages, policies = 0, Found(system, file)
        for one in operations:
            if not is_among(one, _CALLS) or one.file != name or one.task not in of_task or pages > MOST_PAGES:
                break
            if isinstance(one, POLICY_CALLS):
                row = _NOTHING if policies.set(one) else None
            elif isinstance(one, OF_STATES):
                row = row_of(one, file, calls_too)
            else:
                reached = holes_to if isinstance(one, sc.PunchHole) else ends.get(way(one), 0)
                row = _row_of_touch(one, reached, inode.order, turns[of_task[one.task]])
            units = None if row is None else _units(row, inode.order, generation)
            if row is None or units is None:
                break
            first, end = units
            if not isinstance(one, POLICY_CALLS) and not _under_one(policies, row, end - first, inode.order):
                break
            pages += end - first
            calls.append(one)
            does = faults.HOLE if isinstance(one, sc.PunchHole) else faults.TOUCHES
            rows.append((first, end, 1, of_task[one.task], does))
            streams.append(row)
        policies.undo()
        table, stream = np.array(rows, np.int64).reshape(-1, 5), np.array(streams, np.int64).reshape(-1, 6)
        return _List(calls, table, stream, policies)

    def _run(self, file: OpenFile, listed: _List) -> tuple[Done | None, int]:
        """Carry out such calls, up to one that is left, and whether that was all."""
        system, inode, metadata = self.system, file.inode, self.system.metadata
        policies = listed.policies
        by_row = policies.change or (inode.order > 0 and bool(inode.shared_policy))
        by_row &= inode.order == 0 or system.rules.file_policy
        asked = asked_for(
            system, inode, listed.rows, list(system.tasks.values()), policies.policies if by_row else None
        )
        if asked is None:
            return None, TOO_MANY_POLICIES
        placed, requests = asked
        before = system.free.copy()
        found, states, status = carry_out(system, inode, listed.stream, Placing(placed, requests))
        done = len(found.stream)
        if status == kernel.OUT_OF_MEMORY:  # asked again alone, it is refused
            system.begun[:] = placed.placed[done]
        if states is None:
            return None, status
        calls = listed.calls[:done]
        policies.redo(calls)
        free = placed.free[:done]
        walked = map_for_host(file, found)
        held = None
        if metadata is not None:
            after = Placed(np.concatenate((before[None], free[:-1])), free, placed.rotations[:done])
            held = held_after(system, metadata, file, calls, found, walked, states, after)
        results = results_of(calls, found)
        for row in [row for row in policies.results if row < done]:
            results[row] = policies.results[row]
        return Done(results, placed.placed[:done], free, held, states), status


def _possible(system: System, file: OpenFile) -> bool:
    """Whether calls on a file place pages that need nothing but zones, and change nothing else but what is followed."""
    inode, metadata = file.inode, system.metadata
    if not possible(system, file) or not system.is_plain(inode) or inode.backend is not None:
        return False
    if metadata is None:
        return True
    return metadata.only_counts(in_turn=True) and metadata.trees.get(inode, {}).keys() >= {LIGHT_MAP, PAGE_CACHE}


def _units(row: tuple[int, int, int, int, int, int], order: int, generation: str) -> tuple[int, int] | None:
    """Units that a row of a stream may place, or take away; None: it is of parts of them, and so not followed."""
    op, size = row[folio.OP], PAGE_SIZE << order
    first, end = row[folio.OFFSET] // size, -(-(row[folio.OFFSET] + row[folio.LENGTH]) // size)
    if op in (folio.HOST_FAULT, folio.GUEST_FAULT) or (op == folio.PIN and row[folio.ARGUMENT] != folio.TRANSIENT):
        return first, end
    if op not in (folio.PUNCH, folio.MERGE):
        return 0, 0
    if (row[folio.OFFSET] | row[folio.LENGTH]) % size == 0:
        return first, end
    return (0, 0) if op == folio.PUNCH and generation == "C" else None  # which is refused


def _under_one(policies: Found, row: tuple[int, int, int, int, int, int], units: int, order: int) -> bool:
    """Whether one policy, if any, decides for all units that a row may place: of a huge one, that of the page touched first."""
    if not units or row[folio.OP] == folio.PUNCH:
        return policies.touch(0, 0)
    first, end = row[folio.OFFSET] // PAGE_SIZE, -(-(row[folio.OFFSET] + row[folio.LENGTH]) // PAGE_SIZE)
    if order and units == 1 and row[folio.OP] != folio.HOST_FAULT:  # of which the first may be private
        end = first + 1
    return policies.touch(first, end) and not (order and policies.mixed)


def _row_of_touch(
    touch: sc.Fault | sc.Fallocate | sc.PunchHole, end: int, order: int, turns: bool
) -> tuple[int, int, int, int, int, int] | None:
    """What places or frees pages as a row of a stream; None: it goes not upwards, is long, or beyond."""
    if isinstance(touch, sc.Fault):
        return row_of_fault(touch, end, turns)
    offset, length = touch.offset, touch.length
    if length is None or not 0 < length <= _TOUCHED << order or offset + length > end * PAGE_SIZE:
        return None
    if (offset | length) % PAGE_SIZE:
        return None
    return folio.PUNCH if isinstance(touch, sc.PunchHole) else folio.MERGE, offset, length, 0, 0, 0


def _suffices(system: System, tracked: LightFile, units: int) -> bool:
    """Whether there are frames for so many units, where there is memory for them."""
    mine = system.zone_page_size == PAGE_SIZE << tracked.order
    free = np.bincount(system.zone_node[mine], system.free[mine], system.nodes)
    return bool((tracked.memory.free_pages >> tracked.order >= np.minimum(units, free)).all())

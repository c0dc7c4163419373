"""Many faults of a scenario at once: operations one after another that touch the same file in the same way, or allocate in it.

The kernel (:mod:`workbench.kernels.faults`) carries them out in their order, as far as nothing but a page's zone has to be
decided; what it is not sure of is left to the function of the operation. Metadata that are only counted decide nothing, so
that they follow from what was placed (:class:`workbench.engine.metadata.Metadata` counts them, fault by fault where there are
any).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from workbench import scenario as sc
from workbench.engine import calls_mm
from workbench.engine.metadata import PAMT
from workbench.engine.objects import OpenFile, Result
from workbench.engine.system import System
from workbench.engine.tracked_faults import States, TrackedFaults
from workbench.engine.tracked_faults import possible as tracked_possible
from workbench.errors import Cancelled
from workbench.intervals import Int64s
from workbench.kernels import faults as kernel
from workbench.kernels import placement
from workbench.units import PAGE_SIZE

LEAST, MOST = 16, 4096
"""Faults that are worth a call of the kernel, and of one call: between calls a run can be cancelled."""
_PAGES = 2048  # of one fault
_ROOM = 64  # pieces of one fault
_SMALL_TABLE = 64  # rows of requests
_TOO_MANY_POLICIES = -1
_STEPS = {"sequential": 1, "reverse": -1}
_Touch = sc.Fault | sc.Fallocate


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


class BulkFaults:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most = 1, MOST
        self.begun = np.zeros(len(system.free), np.int64)
        """int64 (zones,), pages that the operation that has to be done alone has been given already."""

    def run(self, number: int, before: Result | None) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone.

        The operation before was one of them, with the result ``before``: what was allowed to it is allowed to them.
        """
        if number < self._not_before or before is None or before.errno:
            return None
        first = self.operations[number - 1]
        if not isinstance(first, _Touch) or not self._goes_on(number, first):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + 1
        if file is None or not _possible(self.system, first, file):
            return None
        rows = _rows(self.system, file, first, self.operations[number : number + self._most])
        if len(rows) < LEAST:
            return None
        done, status = self._run(first, file, rows)
        if status == _TOO_MANY_POLICIES:  # to find out again would cost their number
            self._not_before, self._most = number + len(rows), MOST
            return None
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if status == placement.DONE else max(2 * count, LEAST)
        self._not_before = number + count + (status != placement.DONE)
        return done

    def _goes_on(self, number: int, first: _Touch) -> bool:
        """Whether a list that is worth it may begin here: where it had to reach there is another like the first one."""
        last = number + LEAST - 1
        if last >= len(self.operations):
            return False
        there = self.operations[last]
        return isinstance(there, _Touch) and type(there) is type(first) and there.file == first.file

    def _run(self, first: _Touch, file: OpenFile, rows: Int64s) -> tuple[Done | None, int]:
        """Carry out faults like the first one, as far as they can be together, and whether that was all."""
        system, inode = self.system, file.inode
        tasks = list(system.tasks.values())
        by = _by(first)
        walk = None if by is None else system.host_walk(file.mapping) if by == "host" else system.guest_walk(inode)
        if system.metadata is not None:
            rows = rows[: system.metadata.foreseen(inode, rows[:, 1])]
        tracked = None
        if system.conversions is not None:
            tracked = TrackedFaults(system, inode, rows, by, file.mapping)
            rows = rows[: tracked.count]
        if len(rows) < LEAST:
            return None, kernel.LEFT
        whole = np.array([[rows[:, 0].min(), rows[:, 1].max()]], np.int64)
        ranges, policies = system.policy_ranges(inode, 0, whole)
        if len(policies) * len(tasks) > _SMALL_TABLE + len(rows):
            return None, _TOO_MANY_POLICIES
        requests, row_of = system.requests(inode, tasks, policies, 0)
        zones = len(system.free)
        given = kernel.Faults(
            rows, np.ascontiguousarray(ranges), row_of, np.zeros(5, np.int64),
            np.empty((_ROOM, 2), np.int64), np.empty((_ROOM, 4), np.int64),
            np.empty((len(rows), zones), np.int64), np.empty((len(rows), zones), np.int64), np.empty((len(rows), 2), np.int64),
        )  # fmt: skip
        before = system.free.copy()
        status = self._place(given, file, by == "host", requests)
        done = int(given.at[kernel.FAULT])
        if status == placement.OUT_OF_MEMORY:  # asked again alone, it is refused
            self.begun[:] = given.placed[done]
        if not done:
            return None, status
        states = None if tracked is None else tracked.carry_out(done)
        held = None
        if system.metadata is not None:
            free = np.concatenate((before[None], given.free[: done - 1]))
            whose = [tasks[row] for row in rows[:done, 3].tolist()]
            held = system.metadata.count_faults(inode, walk, rows[:done], whose, free, given.rotations)
            if states is not None and states.pamt is not None:
                system.metadata.hold_after(held, PAMT, states.pamt)
        said = {pages: _result(first, pages) for pages in np.unique(rows[:, 1] - rows[:, 0]).tolist()}
        results = [said[pages] for pages in (rows[:done, 1] - rows[:done, 0]).tolist()]
        return Done(results, given.placed[:done], given.free[:done], held, states), status

    def _place(self, given: kernel.Faults, file: OpenFile, maps: bool, requests: placement.Requests) -> int:
        """Run the kernel until it has done all, or comes to a fault that has to be carried out alone; returns its status."""
        system, map_, mapping = self.system, file.inode.map, file.mapping
        turns, zones = system.turns_and_zones(file.inode, 0)
        while True:
            present = map_.room()
            mapped = mapping.room() if maps and mapping is not None else present
            status = kernel.run(given, present, mapped, maps, requests, turns, zones, system.output_of(map_))
            if status != placement.NEEDS_ROOM:
                return int(status)
            map_.grow(1024, 4 * len(system.output_of(map_).cycle))
            if system.cancelled():
                raise Cancelled


def _by(first: _Touch) -> str | None:
    """Who touches; nobody does what is allocated by a call on the file."""
    return first.by if isinstance(first, sc.Fault) else None


def _result(first: _Touch, pages: int) -> Result:
    return calls_mm.touched(first, pages) if isinstance(first, sc.Fault) else Result()


def _possible(system: System, first: _Touch, file: OpenFile) -> bool:
    """Whether faults like one that went well need nothing but zones for their pages, and metadata that are only counted."""
    inode, metadata = file.inode, system.metadata
    if system.killed or system.bulk is not None or inode.frozen or not tracked_possible(system, inode):
        return False
    if inode.attributes is not None or inode.backend is not None or not system.is_plain_4k(inode):
        return False
    by = _by(first)
    if by == "host" and (file.mapping is None or (inode.private and inode.tracked is None)):
        return False
    if by in ("guest", "prefault") and inode.kind != "guest_memfd":
        return False
    if metadata is None:
        return True
    if metadata.light_map(inode) is not None:  # its nodes follow from what is there after each fault
        return False
    return metadata.only_counts() and metadata.has_tree(inode)


def _rows(system: System, file: OpenFile, first: _Touch, operations: Sequence[sc.Operation]) -> Int64s:
    """First page, end, step and row of the task of each fault like the first one, up to whatever is something else.

    Faults that are not all in the file are something else, as are long ones and those that go to and fro.
    """
    pages, kind, by, mode = file.inode.pages, type(first), _by(first), getattr(first, "mode", None)
    if by == "host" and file.mapping is not None:
        pages = min(pages, file.mapping.pages)
    of_task: dict[str | None, int] = {name: row for row, name in enumerate(system.tasks)}
    of_task[None] = 0
    out: list[tuple[int, int, int, int]] = []
    for fault in operations:
        if not isinstance(fault, _Touch) or type(fault) is not kind or fault.file != first.file or fault.length is None:
            break
        if isinstance(fault, sc.Fault):
            step = _STEPS.get(fault.order, 0) if fault.by == by else 0
        else:
            step = int(fault.mode == mode and (fault.offset | fault.length) % PAGE_SIZE == 0)
        start, count, task = fault.offset // PAGE_SIZE, fault.length // PAGE_SIZE, of_task.get(fault.task, -1)
        if not 0 < count <= _PAGES or start + count > pages or task < 0 or not step:
            break
        out.append((start, start + count, step, task))
    return np.array(out, np.int64).reshape(-1, 4)

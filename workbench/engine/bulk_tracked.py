"""Many calls on the pages of a file that converts in place, one after another: conversions, pins and what drops pins.

Of 4 KiB folios these place and free nothing, so that they are one stream of the tracked file, whose counters after each row are
those after each call; of larger ones it is conversions to shared that do. What else follows is followed here: entries of the
host's page tables, the tree of states, and for SNP and TDX what stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine.bulk_faults import LEAST, MOST, Done
from workbench.engine.metadata import PAMT, VMEMMAP
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.engine.tracked_faults import (
    CALLS,
    Call,
    after_each,
    calls_possible,
    maps_and_zaps,
    pages_of_calls,
    result_of_call,
    row_of_call,
)
from workbench.intervals import Int64s, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at
from workbench.units import PAGE_SIZE


class BulkTracked:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most = 0, MOST

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first = self.operations[number]
        if self.system.conversions is None or number < self._not_before or not isinstance(first, CALLS):
            return None
        last = number + LEAST - 1
        if last >= len(self.operations) or not isinstance(self.operations[last], CALLS):
            return None  # no list that is worth it
        inode = self._inode(first)
        if inode is None:
            self._not_before = number + 1
            return None
        calls, stream = self._alike(first, inode, self.operations[number : number + self._most])
        self._not_before = number + max(len(calls), 1)
        if len(calls) < LEAST:
            return None
        done = self._run(inode, calls, stream)
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if count == len(calls) else max(2 * count, LEAST)
        self._not_before = number + count + (count < len(calls))
        return done

    def _inode(self, first: Call) -> Inode | None:
        """The file that a call is about, if such calls need nothing but what is followed here."""
        file = self.system.files.get(first.file)
        return file.inode if file is not None and calls_possible(self.system, file) else None

    def _alike(self, first: Call, inode: Inode, operations: Sequence[sc.Operation]) -> tuple[list[Call], Int64s]:
        """Calls on the same file up to whatever is something else, or reaches out of the file, or is long; rows of a stream."""
        tasks, name = self.system.tasks, first.file
        calls: list[Call] = []
        rows: list[tuple[int, ...]] = []
        for call in operations:
            if not isinstance(call, CALLS) or call.file != name or (call.task is not None and call.task not in tasks):
                break
            row = row_of_call(call, inode)
            if row is None or (inode.order and not (isinstance(call, sc.Convert) and call.to == "shared")):
                break  # a merge is asked what it lost, and folios that nobody holds any more go back to pools
            calls.append(call)
            rows.append(row)
        return calls, np.array(rows, np.int64).reshape(-1, 6)

    def _run(self, inode: Inode, calls: list[Call], stream: Int64s) -> Done | None:
        """Carry out such calls up to the first that has to place pages."""
        system, metadata, tracked = self.system, self.system.metadata, inode.tracked
        assert isinstance(tracked, ConversionFile)
        stream = stream[: _first_pin_of_absent(tracked, stream)]
        count = len(stream)
        if count < LEAST:
            return None
        first, _ = pages_of_calls(stream)
        errors, offsets, states = after_each(system, inode, stream, np.arange(1, count + 1))
        self._map(inode, stream, errors, offsets)
        held = None
        if metadata is not None:
            tasks = [system.task(call) for call in calls[:count]]
            to_shared = stream[:, folio.ARGUMENT] == 1
            held = metadata.follow_states(inode, tasks, first, self._reached(inode, stream, errors, offsets), to_shared)
            metadata.hold_after(held, VMEMMAP, states.counters[:, len(folio.COUNTERS) :])
            if states.pamt is not None:
                metadata.hold_after(held, PAMT, states.pamt)
        results = [result_of_call(*row) for row in zip(errors.tolist(), offsets.tolist(), strict=True)]
        free = np.broadcast_to(system.free, (count, len(system.free)))
        return Done(results, np.zeros_like(free), free, held, states)

    def _reached(self, inode: Inode, stream: Int64s, errors: Int64s, offsets: Int64s) -> Int64s:
        """Where what each row has converted ends: of refused ones, in generation C, before the block that refused."""
        first, end = pages_of_calls(stream)
        block_by_block = self.system.rules.kernel == "C" and inode.order > 0
        stopped = np.where(block_by_block & (offsets >= 0), np.maximum(offsets // PAGE_SIZE, first), first)
        return np.where(stream[:, folio.OP] != folio.CONVERT, first, np.where(errors == 0, end, stopped))

    @staticmethod
    def _map(inode: Inode, stream: Int64s, errors: Int64s, offsets: Int64s) -> None:
        """The host's page tables."""
        first, _ = pages_of_calls(stream)
        maps, zaps, stop = maps_and_zaps(stream, errors, offsets)
        some = np.flatnonzero((maps | zaps) & (stop > first))
        for low, high, is_mapped in zip(first[some].tolist(), stop[some].tolist(), maps[some].tolist(), strict=True):
            for mapping in inode.mappings:
                if is_mapped:
                    mapping.map(low, high)
                elif not mapping.empty:
                    mapping.zap(low, high)


def _first_pin_of_absent(tracked: ConversionFile, stream: Int64s) -> int:
    """The first row that pins a page which is not there, and so would have to be placed; how many rows there are if none does."""
    pins = np.flatnonzero((stream[:, folio.OP] == folio.PIN) & (stream[:, folio.ARGUMENT] != folio.TRANSIENT))
    first, end = pages_of_calls(stream[pins])
    row, page = pages_of(first, end)
    absent = pins[row[~bits_at(tracked.state.present, page)]]
    return int(absent[0]) if len(absent) else len(stream)

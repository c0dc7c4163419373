"""Many calls on a guest whose conversions are out of place, one after another: in the kernel, the state after each.

Where the two files hold 4 KiB pages that nobody has mapped, conversions, attributes, faults and what allocates or punches holes
are attributes, holes, pages, xarray nodes and tables
(:mod:`workbench.engine.bulk_conversions`, :mod:`workbench.engine.lists.converted_nodes`), and single pages of a tracked file, if
somebody looks at those (:mod:`workbench.engine.lists.backend_states`). The files stay with the kernel from one
list to the next, until something else looks at them. There may be a guest_memfd alone, whose pages are of
private gfns, or where it can be mapped of all.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine import bulk_conversions, calls_files, calls_mm
from workbench.engine.attributes import COUNTERS
from workbench.engine.lists import backend_states as states
from workbench.engine.lists.converted_nodes import ConvertedNodes
from workbench.engine.lists.faults import LEAST, MOST, Done, whole_pages
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.tracked_faults import result_of_call, result_of_poison
from workbench.engine.objects import Inode, Result, failed
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.kernels import backend_nodes as kernel
from workbench.kernels.folios import run as folio
from workbench.kernels.two_backends import ALLOCATE, LOOK, SET_ATTRIBUTES, SHARED_NOW
from workbench.units import PAGE_SIZE

_Call = sc.Convert | sc.SetMemoryAttributes | sc.Fault | sc.Fallocate | sc.PunchHole | states.Call
_CALLS: frozenset[type[_Call]] = frozenset(
    (sc.Convert, sc.SetMemoryAttributes, sc.Fault, sc.Fallocate, sc.PunchHole, *states.CALLS)
)
_NO_ROW = (0, 0, 0, 0, 0, 0)
_RUNS = 256
"""Runs of the two files to a call, up to which it is worth it to give them to the kernel and have them back: 0.35 us each, where
a call alone costs 100 and more."""


class BulkBackends:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most, self._wait = 1, MOST, 1
        scenario = system.scenario
        # Where files convert in place, those of which single pages are looked at have states of their own.
        in_place = scenario.conversion_mode == "in-place" and system.conversions is not None
        self._possible = scenario.vm_attributes and not in_place

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first = self.operations[number]
        if not self._possible or number < self._not_before or not is_among(first, _CALLS):
            return None
        last = number + LEAST - 1
        if last >= len(self.operations) or not is_among(self.operations[last], _CALLS):
            return None  # no list that is worth it
        inode = self._inode(first)
        least = LEAST if inode is None else self._worth_it(inode)
        most = max(self._most, min(least, MOST))
        rows, alone = ([], []) if inode is None else self._rows(first, inode, self.operations[number : number + most])
        self._not_before = number + max(len(rows), 1)
        if inode is None or len(rows) < least:
            return None
        calls, table = self.operations[number : number + len(rows)], np.array(alone, np.int64)
        done, complete = self._run(inode, calls, np.array(rows, np.int64), table)
        count = 0 if done is None else len(done.results)
        self._most = min(2 * self._most, MOST) if complete else max(2 * count, LEAST)
        self._wait = 1 if complete or count >= least else min(2 * self._wait, MOST)
        self._not_before = number + count + (0 if complete else self._wait)
        return done

    def _inode(self, first: _Call) -> Inode | None:
        """The file that a call is about, if such calls need nothing but what is followed here."""
        system, file, metadata = self.system, self.system.files.get(first.file), self.system.metadata
        if file is None or file.descriptor is None or file.inode.kind != "guest_memfd" or system.killed:
            return None
        inode, backend = file.inode, file.inode.backend
        if inode.frozen or not system.is_plain_4k(inode) or not (backend is None or system.is_plain_4k(backend)):
            return None
        if not bulk_conversions.can_be_lent(system, inode) or not states.possible(system, inode):
            return None
        if metadata is None:
            return inode
        followed = inode.attributes is not None and inode.attributes.looked_at and not inode.attributes.changed
        return inode if followed and metadata.zones is None and not metadata.light else None

    def _rows(
        self, first: _Call, inode: Inode, operations: Sequence[sc.Operation]
    ) -> tuple[list[states.Row], list[states.Row]]:
        """Rows of a stream for calls on the same file, up to whatever is something else, is refused, or is long.

        Those of calls on single pages are of the tracked file, beside rows that do nothing or poison.
        """
        size, name = inode.pages * PAGE_SIZE, first.file
        rows: list[states.Row] = []
        alone: list[states.Row] = []
        tasks: dict[str | None, int] = {task: row for row, task in enumerate(self.system.tasks)}
        tasks[None] = 0
        file, converts = self.system.files[name], inode.backend is not None
        faults, seen = self.system.vcpu_open and not file.process, file.mapping is not None and not inode.private
        can_be_private = self.system.scenario.guest.private_memory
        for call in operations:
            if not is_among(call, _CALLS) or call.file != name or (task := tasks.get(call.task)) is None:
                break
            offset, length = call.offset, call.length
            if length is None or not whole_pages(offset, length, size):
                break
            single = _NO_ROW
            if isinstance(call, sc.SetMemoryAttributes):
                if call.raw_attributes is not None or call.raw_flags or (call.private and not can_be_private):
                    break
                rows.append((SET_ATTRIBUTES, offset, length, int(not call.private), 0, task))
            elif isinstance(call, sc.Convert):
                if not converts:
                    break
                rows.append((folio.CONVERT, offset, length, int(call.to == "shared"), 0, task))
            elif isinstance(call, states.CALLS):
                found = states.row_of(call, inode) if inode.tracked is not None else None
                if found is None:
                    break
                single = found
                rows.append((folio.POISON if isinstance(call, sc.Hwpoison) else LOOK, offset, length, 0, 0, task))
            elif isinstance(call, sc.PunchHole):
                rows.append((folio.PUNCH, offset, length, 0, 0, task))
            elif isinstance(call, sc.Fallocate):
                if call.mode not in (None, calls_files.FALLOC_FL_KEEP_SIZE):
                    break
                rows.append((ALLOCATE, offset, length, 0, 0, task))
            elif call.order != "sequential" and length > PAGE_SIZE:
                break
            elif call.by == "host" and not seen:
                rows.append((LOOK, offset, length, 0, 0, task))
            elif faults and call.by != "host":
                rows.append((folio.GUEST_FAULT, offset, length, 0, 0, task))
            else:
                break
            alone.append(single)
        return rows, alone

    def _worth_it(self, inode: Inode) -> int:
        """So many calls at least make up for giving the files to the kernel."""
        if self.system.bulk is not None and self.system.bulk.inode is inode:
            return LEAST
        assert inode.attributes is not None
        runs = 0 if inode.backend is None else inode.backend.map.run_count
        return max(LEAST, -(-(inode.map.run_count + runs + inode.attributes.run_count) // _RUNS))

    def _run(
        self, inode: Inode, calls: Sequence[sc.Operation], stream: Int64s, alone: Int64s
    ) -> tuple[Done | None, bool]:
        """Carry out calls, as far as they can be here, and whether that was all; ``alone``: rows of those on single pages."""
        system, count = self.system, len(stream)
        tasks = list(system.tasks.values())
        bulk = system.lend(inode)
        bulk.end_streams()
        given = kernel.Calls(
            stream, np.zeros(count, np.int32), np.zeros(5, np.int64), np.empty((count, len(COUNTERS)), np.int64),
            np.empty((count, len(system.free)), np.int64), np.empty((count, len(system.free)), np.int64),
            np.empty((count, 2), np.int64), np.empty((count, 4), np.int64),
        )  # fmt: skip
        shared = int(bulk.state.counts[SHARED_NOW])
        followed, nid = None, np.array([task.nid for task in tasks], np.int64)
        nodes = kernel.Nodes(
            np.empty((kernel.TREES, 0), np.int64), np.empty((count, 0), np.int64), np.zeros(kernel.TREES, np.int64),
            nid, np.empty((0, 4), np.int64),
        )  # fmt: skip
        if system.metadata is not None:
            first = stream[:, folio.OFFSET] // PAGE_SIZE
            end = first + stream[:, folio.LENGTH] // PAGE_SIZE
            followed = ConvertedNodes(system.metadata, inode, inode.backend, first, end, nid)
            nodes = followed.nodes
        nodes = bulk.run_each(given, nodes)
        done = int(given.at[kernel.ROW])
        if bulk.ran_out:
            system.begun[:] = given.placed[done]
        held = None if followed is None else followed.held_after(nodes, given, done, tasks)
        found = None
        if system.conversions is not None and (done or bulk.ran_out):
            found = states.carry_out(system, inode, given, alone, shared, done, bulk.ran_out)
        if not done:
            return None, False
        if held is not None and found is not None and system.metadata is not None:
            found.states.hold(system.metadata, held)
        holes = stream[:done, folio.OP] == folio.PUNCH
        for mapping in inode.mappings if holes.any() else ():
            if not mapping.empty:
                for offset, length in stream[:done][holes, folio.OFFSET : folio.LENGTH + 1].tolist():
                    mapping.zap(offset // PAGE_SIZE, (offset + length) // PAGE_SIZE)
        counts = given.counts[:done] if inode.backend is not None else np.zeros_like(given.counts[:done])
        results, after = _results(calls[:done], found), None if found is None else found.states
        return Done(results, given.placed[:done], given.free[:done], held, after, counts), done == count


def _results(calls: Sequence[sc.Operation], found: states.Outcomes | None) -> list[Result]:
    """What each call returned: refused are those on single pages and on poisoned ones. The host reaches no page."""
    said: dict[tuple[str, int], Result] = {}
    out: list[Result] = []
    for number, call in enumerate(calls):
        if found is not None and isinstance(call, states.CALLS):
            error = found.errors[number]
            if isinstance(call, sc.Hwpoison):
                out.append(result_of_poison(error, found.marked[number]))
            elif isinstance(call, sc.IommuUnmap):
                out.append(failed(errno.ENOENT))
            else:
                out.append(result_of_call(error, found.offsets[number]))
            continue
        if isinstance(call, sc.Fault) and call.by == "host":
            out.append(Result(0, 0, {"bad": (call.length or 0) // PAGE_SIZE, "first": call.offset // PAGE_SIZE}))
            continue
        if found is not None and isinstance(call, sc.Fault) and found.errors[number]:
            out.append(result_of_call(found.errors[number], found.offsets[number]))
            continue
        key = (call.by, call.length or 0) if isinstance(call, sc.Fault) else ("", 0)
        if key not in said:
            said[key] = calls_mm.touched(call, key[1] // PAGE_SIZE) if isinstance(call, sc.Fault) else Result()
        out.append(said[key])
    return out

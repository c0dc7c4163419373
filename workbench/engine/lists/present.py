"""Many faults at once on pages that are there, of a file of huge pages that converts in place.

Nothing is placed. The file has them as one stream (leaves of the second stage, content). Tables of those who walk are entered
call by call. Files without struct pages are :mod:`workbench.engine.lists.light`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine import calls_mm
from workbench.engine.lists.faults import LEAST, MOST, BulkFaults, Done, reach, way
from workbench.engine.lists.tracked_faults import after_each, possible
from workbench.engine.objects import Inode, OpenFile, Result
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at
from workbench.units import PAGE_SIZE

_PAGES = 2048  # of one fault


class BulkPresent:
    """Looks ahead in the operations of a run; ``before`` knows what has gone well."""

    def __init__(self, system: System, operations: Sequence[sc.Operation], before: BulkFaults) -> None:
        self.system, self.operations, self.before = system, operations, before
        self._not_before, self._most = 0, MOST

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first, last = self.operations[number], number + LEAST - 1
        if self.system.conversions is None or number < self._not_before or not isinstance(first, sc.Fault):
            return None
        if last >= len(self.operations) or not isinstance(self.operations[last], sc.Fault):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + LEAST  # what is asked changes seldom
        if file is None or not _possible(self.system, file):
            return None
        faults, rows = self._alike(file, first.file, self.operations[number : number + self._most])
        self._not_before = number + len(rows) + 1
        self._most = min(2 * self._most, MOST) if len(rows) == self._most else max(2 * len(rows), LEAST)
        return self._run(file, faults, rows) if len(rows) >= LEAST else None

    def _alike(self, file: OpenFile, name: str, operations: Sequence[sc.Operation]) -> tuple[list[sc.Fault], Int64s]:
        """Faults on a file up to whatever is something else; int64 (n, 3): first page, end, whether the host touches it."""
        inode, tasks = file.inode, self.system.tasks
        ends = {of: reach(file, of) for at, of in self.before.went_well if at == name}
        faults: list[sc.Fault] = []
        rows: list[tuple[int, int, bool]] = []
        for one in operations:
            if not isinstance(one, sc.Fault) or one.file != name or one.length is None:
                break
            start, count, by_host = one.offset // PAGE_SIZE, one.length // PAGE_SIZE, one.by == "host"
            if one.order != "sequential" and count > 1:
                break
            if not 0 < count <= (1 if by_host else _PAGES) or start + count > ends.get(way(one), 0):
                break
            if one.task is not None and one.task not in tasks:
                break
            faults.append(one)
            rows.append((start, start + count, by_host))
        table = np.array(rows, np.int64).reshape(-1, 3)
        there = _there(inode, table[:, 0]) & _there(inode, table[:, 1] - 1)  # no fault is longer than four blocks
        for middle in range(folio.PAGES_2M, _PAGES, folio.PAGES_2M):
            there &= _there(inode, np.minimum(table[:, 0] + middle, table[:, 1] - 1))
        count = len(table) if there.all() else int(np.argmin(there))
        return faults[:count], table[:count]

    def _run(self, file: OpenFile, faults: list[sc.Fault], rows: Int64s) -> Done:
        """Carry out such faults."""
        system, inode, count = self.system, file.inode, len(rows)
        assert inode.tracked is not None and system.conversions is not None
        by_host = rows[:, 2] == 1
        shared = bits_at(inode.tracked.state.shared, rows[:, 0])
        stream = np.zeros((count, 6), np.int64)
        stream[:, folio.OP] = np.where(by_host, folio.HOST_FAULT, folio.GUEST_FAULT)
        stream[:, folio.OFFSET], stream[:, folio.LENGTH] = rows[:, 0] * PAGE_SIZE, (rows[:, 1] - rows[:, 0]) * PAGE_SIZE
        stream[:, folio.ARGUMENT] = np.where(by_host, 0, folio.AS_IT_IS)
        errors, _, _, states = after_each(system, inode, stream, np.arange(1, count + 1))
        held = self._enter(file, faults, rows, errors, shared)
        said: dict[tuple[str, int], Result] = {}
        results: list[Result] = []
        for one, (start, end, _), error in zip(faults, rows.tolist(), errors.tolist(), strict=True):
            if error:
                results.append(Result(0, 0, {"bad": 1, "first": start}))
                continue
            key = (one.by, end - start)
            if key not in said:
                said[key] = calls_mm.touched(one, end - start)
            results.append(said[key])
        free = np.broadcast_to(system.free, (count, len(system.free)))
        return Done(results, np.zeros_like(free), free, held, states)

    def _enter(
        self, file: OpenFile, faults: list[sc.Fault], rows: Int64s, errors: Int64s, shared: np.ndarray
    ) -> Int64s | None:
        """What faults enter in the host's page tables, and tables of both; what is held after each."""
        system, inode, metadata = self.system, file.inode, self.system.metadata
        held = None if metadata is None else np.empty((len(rows), *metadata.held.shape), np.int64)
        by_host = bool((rows[:, 2] == 1).any())
        host = system.host_walk(file.mapping) if by_host and file.mapping is not None else None
        guest = system.guest_walk(inode) if (rows[:, 2] == 0).any() else None
        of_all = zip(faults, rows.tolist(), errors.tolist(), shared.tolist(), strict=True)
        for number, (one, (start, end, touches), error, is_shared) in enumerate(of_all):
            walks = True
            if touches and file.mapping is not None:
                walks = is_shared and len(file.mapping.unmapped(start, end)) > 0
                if walks and not error:
                    file.mapping.map(start, end)
            if metadata is not None and held is not None:
                if walks:
                    metadata.enter_tables(system.task(one), host if touches else guest, start, end)
                held[number] = metadata.held
        return held


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


def _there(inode: Inode, pages: Int64s) -> np.ndarray:
    """Whether pages (n,) are in units that are there."""
    assert isinstance(inode.tracked, ConversionFile)
    return np.asarray(inode.tracked.state.level[pages >> folio.ORDER_2M] > folio.BASE)

"""Many calls on a file that converts in place: the state after each, and what faults do to it that were placed together.

A fault puts in the file what was placed for it, and touches its pages: rows of one stream of the tracked file, whose counters
after each row are those after each fault. For SNP and TDX what stays whole is looked at after each one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.engine.conversions import Conversions
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.intervals import Int64s, in_intervals, pages_of
from workbench.kernels.folios import run as folio
from workbench.kernels.placement import ALLOCATIONS
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import TrackedFile, bits_at
from workbench.tracking.whole import WATCHED
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
MOST_PAGES = 1 << 14
"""Of one list of faults: each has rows of its own."""


class States(NamedTuple):
    """Of conversions after each of n faults."""

    counters: Int64s
    """int64 (n, counters + nodes), as :meth:`workbench.engine.conversions.Conversions.count` has them."""
    users: list[list[list[int]]]
    """:meth:`workbench.engine.conversions.Conversions.users_row` of each."""
    whole: Int64s | None
    """int64 (n, 4 + 2 nodes), what stays whole; None: nobody asks."""
    pamt: Int64s | None
    """int64 (n, nodes), PAMT pages of a TDX guest."""


def possible(system: System, inode: Inode) -> bool:
    """Whether faults of a file of 4 KiB pages do nothing but what is followed here: nothing is poisoned, no device maps pages."""
    conversions, tracked = system.conversions, inode.tracked
    if conversions is None:
        return True
    if not isinstance(tracked, ConversionFile) or inode.evicted or conversions.devices:
        return False
    return tracked.count("poisoned_pages") == 0


class TrackedFaults:
    """A list of faults ``rows`` int64 (n, 4) as :mod:`workbench.kernels.faults` takes them, of a tracked file.

    ``by``: ``host``, through ``mapping``; ``guest`` and ``prefault``; None for calls that only allocate.
    """

    def __init__(self, system: System, inode: Inode, rows: Int64s, by: str | None, mapping: Mapping | None) -> None:
        assert system.conversions is not None and isinstance(inode.tracked, ConversionFile)
        self.system, self.inode, self.by = system, inode, by
        self.tracked = inode.tracked
        length = rows[:, 1] - rows[:, 0]
        rows = rows[: int(np.searchsorted(np.cumsum(length), MOST_PAGES, side="right"))]
        rows = rows[: _first_true(rows[:, 2] != 1)]  # upwards, as folios are put in
        self.fault, self.page = pages_of(rows[:, 0], rows[:, 1])
        _, first = np.unique(self.page, return_index=True)
        self.is_first: Bools = np.zeros(len(self.page), bool)
        """Whether no fault before has the page."""
        self.is_first[first] = True
        self.shared = bits_at(self.tracked.state.shared, self.page)
        self.touched: Bools = np.full(len(self.page), by is not None)
        """Pages that are touched, and not found in the host's page tables."""
        self.count = len(rows)
        """So many of the rows can be carried out together."""
        if by == "host" and mapping is not None:
            self.touched = self.is_first & ~in_intervals(self.page, mapping.mapped())
            begins = self.touched & ~np.append(False, self.touched[:-1] & (np.diff(self.fault) == 0))
            parts = np.bincount(self.fault[begins], minlength=len(rows))
            refused = np.bincount(self.fault[~self.shared], minlength=len(rows)) > 0
            self.count = _first_true(refused | (parts > 1))

    def carry_out(self, done: int) -> States:
        """After the first ``done`` faults were placed: enter what is new, and touch."""
        inode = self.inode
        stream, fault = self._stream(self.fault < done)
        inode.entered[0] = int(inode.map.progress[ALLOCATIONS])
        errors, _, states = after_each(
            self.system, inode, stream, np.searchsorted(fault, np.arange(done), side="right")
        )
        assert not errors.any()
        return states

    def _stream(self, mine: Bools) -> tuple[Int64s, Int64s]:
        """Rows int64 (m, 6) of faults, each first what is put in and then what is touched, and the fault of each row."""
        system, fault, page = self.system, self.fault, self.page
        new = np.flatnonzero(mine & self.is_first & ~bits_at(self.tracked.state.present, page))
        kind = self.touched & mine
        alike = (np.diff(fault) == 0) & (np.diff(page) == 1) & kind[1:] & kind[:-1] & (np.diff(self.shared) == 0)
        begin = np.flatnonzero(kind & ~np.append(False, alike)[: len(kind)])
        last = np.flatnonzero(kind & ~np.append(alike, False)[: len(kind)])
        put, touch = np.zeros((len(new), 6), np.int64), np.zeros((len(begin), 6), np.int64)
        put[:, folio.OP], put[:, folio.OFFSET] = folio.INSERT, page[new] * PAGE_SIZE
        put[:, folio.NODE] = system.zone_node[self.inode.map.zone_of(page[new])]
        touch[:, folio.OP] = folio.HOST_FAULT if self.by == "host" else folio.GUEST_FAULT
        touch[:, folio.OFFSET] = page[begin] * PAGE_SIZE
        touch[:, folio.LENGTH] = (page[last] - page[begin] + 1) * PAGE_SIZE
        touch[:, folio.ARGUMENT] = 0 if self.by == "host" else ~self.shared[begin]
        of = np.concatenate((fault[new], fault[begin]))
        order = np.argsort(of, kind="stable")
        return np.concatenate((put, touch))[order], of[order]


def after_each(system: System, inode: Inode, stream: Int64s, end: Int64s) -> tuple[Int64s, Int64s, States]:
    """Carry out a stream int64 (m, 6) on a tracked file: errors and byte offsets of each row, and states after each of n calls.

    ``end`` int64 (n,): where the rows of each call end. Nothing but the file changes in any counter, and no device maps pages.
    """
    conversions, tracked = system.conversions, inode.tracked
    assert conversions is not None and tracked is not None
    before = np.zeros(len(folio.COUNTERS) + tracked.nodes, np.int64)
    conversions.count(before)
    own = np.concatenate((tracked.counts, tracked.vmemmap_taken))
    vm_type = system.scenario.guest.vm_type
    whole = pamt = None
    if vm_type in WATCHED:
        errors, offsets, series, whole = _one_by_one(conversions, inode, tracked, stream, end)
    else:
        found = tracked.carry_out(stream, every=1)
        errors, offsets, series = found.errors.astype(np.int64), found.offsets, found.series
        if len(series) != len(end) or end[0] != 1:  # a call may have several rows, or none
            series = np.concatenate((own[None], series))[end]
    if whole is not None and vm_type == "tdx":
        pamt = whole[:, -tracked.nodes :] // PAGE_SIZE
    series += before - own
    return errors, offsets, States(series, [conversions.users_row(row) for row in series], whole, pamt)


def _one_by_one(
    conversions: Conversions, inode: Inode, tracked: TrackedFile, stream: Int64s, end: Int64s
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Each call as a stream of its own: errors, offsets, counters after each, and what stays whole of all files."""
    whole = conversions.whole(inode)
    others = [other for other in conversions.inodes if other is not inode and not other.evicted]
    rows = np.empty((len(end), len(whole.row())), np.int64)
    rows[:] = sum((conversions.whole(other).row() for other in others), np.zeros(rows.shape[1], np.int64))
    series = np.empty((len(end), len(folio.COUNTERS) + tracked.nodes), np.int64)
    errors, offsets = np.zeros(len(stream), np.int64), np.zeros(len(stream), np.int64)
    low_page = stream[:, folio.OFFSET] // PAGE_SIZE
    end_page = -(-(stream[:, folio.OFFSET] + np.maximum(stream[:, folio.LENGTH], 1)) // PAGE_SIZE)
    low = 0
    for number, high in enumerate(end.tolist()):
        if low < high:
            found = tracked.carry_out(stream[low:high])
            errors[low:high], offsets[low:high] = found.errors, found.offsets
            whole.look(int(low_page[low:high].min()), int(end_page[low:high].max()))
        series[number, : len(folio.COUNTERS)] = tracked.counts
        series[number, len(folio.COUNTERS) :] = tracked.vmemmap_taken
        rows[number] += whole.row()
        low = high
    return errors, offsets, series, rows


def _first_true(flags: Bools) -> int:
    """Position of the first flag that is set; how many there are if none is."""
    return int(np.argmax(flags)) if flags.any() else len(flags)

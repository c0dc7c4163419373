"""Many calls that map pages of a tracked file for devices, and unmap them, one after another.

Of 4 KiB pages that are there nothing is placed and no state changes, so that it is known beforehand what is refused: what is
pinned is one stream of the tracked file, and areas follow call by call. Who is told takes no reference: there is no stream.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.engine.bulk_in_place import union
from workbench.engine.conversion_counts import KVM_PAGES, MAPPED
from workbench.engine.device_areas import DeviceAreas
from workbench.engine.lists.faults import LEAST, MOST, MOST_PAGES_OF_ONE, Done, whole_pages
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.tracked_faults import States
from workbench.engine.lists.waiting import Wait
from workbench.engine.objects import Inode, Result, failed
from workbench.engine.system import System
from workbench.engine.users import Users
from workbench.intervals import Int64s, in_intervals, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import bits_at
from workbench.tracking.whole import WATCHED
from workbench.units import PAGE_SIZE

_Call = sc.IommuMap | sc.IommuUnmap
_CALLS: frozenset[type[_Call]] = frozenset((sc.IommuMap, sc.IommuUnmap))
_NO_RANGE = (0, 0)


class _List(NamedTuple):
    """Calls that are to be carried out together, and what they lead to."""

    results: list[Result]
    end: list[int]
    """Where the rows of the stream of each end."""
    pages: list[int]
    """What devices map after each."""
    stream: list[tuple[int, int, int, int, int, int]]
    areas: DeviceAreas
    """As they are after the last one."""
    added: dict[int, int]
    """Areas that there were not before."""
    removed: list[tuple[int, int]]
    """Areas that there were."""
    reached: list[tuple[int, int]]
    """Pages that pins went to, those of refused ones too."""


class BulkDevices:
    """Looks ahead in the operations of a run."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._not_before, self._most, self._wait = 0, MOST, Wait()

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        first, last = self.operations[number], number + LEAST - 1
        if self.system.conversions is None or number < self._not_before or not is_among(first, _CALLS):
            return None
        if last >= len(self.operations) or not is_among(self.operations[last], _CALLS):
            return None  # no list that is worth it
        inode = self._inode(first)
        if inode is None or inode.users is None:
            self._not_before = number + LEAST  # what is asked changes seldom
            return None
        calls, spans = self._alike(first, inode, self.operations[number : number + self._most])
        listed = self._list(inode, inode.users, calls, spans)
        count = len(listed.results)
        self._most = min(2 * self._most, MOST) if count == self._most else max(2 * count, LEAST)
        if count < LEAST:
            self._not_before = number + count + self._wait.longer()
            return None
        self._wait.over()
        self._not_before = number + count + (count < len(calls))
        return self._run(inode, inode.users, listed)

    def _inode(self, first: _Call) -> Inode | None:
        """The file that a call is about, if such calls need nothing but what is followed here."""
        system, file = self.system, self.system.files.get(first.file)
        if file is None or file.descriptor is None or file.inode.tracked is None or system.bulk is not None:
            return None
        inode, tracked = file.inode, file.inode.tracked
        if system.killed or inode.evicted or inode.frozen or inode.kept or inode.order or inode.small is not None:
            return None
        if self._pins and not isinstance(tracked, ConversionFile):
            return None
        return inode

    @property
    def _pins(self) -> bool:
        return self.system.design.device_access == "pinned"

    def _alike(self, first: _Call, inode: Inode, operations: Sequence[sc.Operation]) -> tuple[list[_Call], Int64s]:
        """Calls on the same file up to whatever is something else, or is long; their pages, none of what is no range of it."""
        tasks, name, size = self.system.tasks, first.file, inode.pages * PAGE_SIZE
        calls: list[_Call] = []
        spans: list[tuple[int, int]] = []
        for call in operations:
            if not is_among(call, _CALLS) or call.file != name or (call.task is not None and call.task not in tasks):
                break
            offset, length = call.offset, call.length
            if length is None or length > MOST_PAGES_OF_ONE * PAGE_SIZE:
                break
            calls.append(call)
            whole = whole_pages(offset, length, size)
            spans.append((offset // PAGE_SIZE, (offset + length) // PAGE_SIZE) if whole else _NO_RANGE)
        return calls, np.array(spans, np.int64).reshape(-1, 2)

    def _reach(self, inode: Inode, spans: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Of pages [first, end), int64 (n, 2), where the first lies that a device cannot have (or the end), and whether what
        comes before it is there.
        """
        tracked = inode.tracked
        assert tracked is not None
        row, page = pages_of(spans[:, 0], spans[:, 1])
        there = np.zeros(0, bool)
        if len(page):
            runs = inode.map.cut(int(page.min()), int(page.max()) + 1)
            there = in_intervals(page, np.column_stack((runs[:, 0], runs[:, 0] + runs[:, 1])))
        bad = ~there
        if self._pins and isinstance(tracked, ConversionFile):
            there &= bits_at(tracked.state.present, page)
            bad = ~bits_at(tracked.state.shared, page)
        if tracked.count("poisoned_pages"):
            bad |= np.isin(page, tracked.poisoned())
        stop = spans[:, 1].copy()
        np.minimum.at(stop, row[bad], page[bad])
        return stop, np.bincount(row[~there & (page < stop[row])], minlength=len(spans)) == 0

    def _list(self, inode: Inode, users: Users, calls: list[_Call], spans: Int64s) -> _List:
        """Follow areas call by call, up to one that maps what has to be placed."""
        (stops, there), pages = self._reach(inode, spans), users.iommu.pages
        listed = _List([], [], [], [], inode.areas.copy(), {}, [], [])
        areas, stream = listed.areas, listed.stream
        unmapped = Result()
        refused = {error: failed(error) for error in (errno.EINVAL, errno.EEXIST, errno.ENOENT)}
        mapped: dict[int, Result] = {}
        of_all = zip(calls, spans.tolist(), stops.tolist(), there.tolist(), strict=True)
        for call, (first, end), stop, is_there in of_all:
            touched = areas.touched(first, end)
            if first == end:
                result = refused[errno.EINVAL]
            elif isinstance(call, sc.IommuMap):
                if not touched and not is_there:
                    break
                result, count = refused[errno.EEXIST], end - first
                if not touched:
                    listed.reached.append((first, stop))
                    stream.append((folio.PIN, first * PAGE_SIZE, count * PAGE_SIZE, folio.DEVICE, 0, 0))
                if not touched and stop < end:
                    result = failed(errno.EFAULT, error_offset=stop * PAGE_SIZE)
                elif not touched:
                    if count not in mapped:
                        mapped[count] = Result(0, 0, {"pinned_pages": count if self._pins else 0})
                    result = mapped[count]
                    areas.add(first, end)
                    listed.added[first] = end
                    pages += count
            elif not touched or touched[0][0] < first or touched[-1][1] > end:
                result = refused[errno.ENOENT]
            else:
                result = unmapped
                for low, high in touched:
                    areas.remove(low)
                    if listed.added.pop(low, None) is not None:
                        pages -= high - low
                    else:
                        listed.removed.append((low, high))
                        pages -= users.iommu.pages_in(low, high)
                    stream.append((folio.UNPIN, low * PAGE_SIZE, (high - low) * PAGE_SIZE, folio.DEVICE, 0, 0))
            listed.results.append(result)
            listed.end.append(len(stream))
            listed.pages.append(pages)
        return listed

    def _run(self, inode: Inode, users: Users, listed: _List) -> Done:
        """Carry out such calls."""
        system, conversions, count = self.system, self.system.conversions, len(listed.results)
        assert conversions is not None
        states = self._states(inode, users, listed)
        inode.areas = listed.areas
        for low, high in listed.removed:
            users.iommu_unmap(low, high)
        users.iommu_map_many(np.array(sorted(listed.added.items()), np.int64).reshape(-1, 2))
        if any("pinned_pages" in result.detail for result in listed.results):
            conversions.devices = True
        reached = np.array([span for span in listed.reached if span[0] < span[1]], np.int64).reshape(-1, 2)
        for low, high in union(*reached.T).tolist() if self._pins else ():
            for mapping in inode.mappings:
                mapping.map(low, high)
        held = None
        if system.metadata is not None:
            held = np.broadcast_to(system.metadata.held, (count, *system.metadata.held.shape))
        free = np.broadcast_to(system.free, (count, len(system.free)))
        return Done(listed.results, np.zeros_like(free), free, held, states)

    def _states(self, inode: Inode, users: Users, listed: _List) -> States:
        """What conversions would say after each call, whose pins are carried out here."""
        system, conversions, tracked = self.system, self.system.conversions, inode.tracked
        assert conversions is not None and tracked is not None
        counters = conversions.rows(len(listed.results))
        if self._pins and listed.stream:
            before = np.concatenate((tracked.counts, tracked.vmemmap_taken))
            found = tracked.carry_out(np.array(listed.stream, np.int64), every=1)
            refused = [result.errno for result in listed.results if result.errno == errno.EFAULT]
            assert found.errors[found.errors != 0].tolist() == refused  # as was known
            counters[:, :KVM_PAGES] += np.concatenate((before[None], found.series))[listed.end] - before
        counters[:, MAPPED] += np.array(listed.pages, np.int64) - users.iommu.pages
        leaves = np.zeros((len(counters), 3), np.int64)
        leaves[:, 0] = listed.pages
        whole = conversions.whole_of_others(inode)
        if system.scenario.guest.vm_type in WATCHED:
            whole = whole + conversions.whole(inode).row()
        for other in conversions.inodes:
            if other is not inode and not other.evicted and other.users is not None and other.users.iommu.pages:
                leaves += conversions.device_leaves(other, other.users.iommu)
        return States(counters, np.tile(whole, (len(counters), 1)), None, leaves)

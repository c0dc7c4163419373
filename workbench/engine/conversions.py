"""Conversions inside the engine: keeps a :class:`workbench.tracking.tracked_file.TrackedFile` beside each guest_memfd inode.

The engine places folios (policy, zones, pools); the tracked file knows the state of every page, holds pins, and splits and
merges huge folios, or (design ``pfn-range``) moves pages between the light map and the page cache. Files have one only in
scenarios that convert, pin or poison, since Linux 7.3 itself knows none of it. Struct pages that a conversion brings back
come from what the pools of huge pages leave free on each node, plus what the design gave back when the pools were made
(``boot.vmemmap_pages`` sets other numbers).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.engine.filemap import FileMap
from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode, OpenFile, Result
from workbench.errors import WorkbenchError
from workbench.kernels import placement as placed
from workbench.kernels.folios import run as folio
from workbench.tracking import struct_pages
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.host_memory import HostMemory, RangeMemory
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import Outcome, TrackedFile
from workbench.units import PAGE_SIZE

Int64s = npt.NDArray[np.int64]
_CHUNK = 1 << 22  # folios entered in one call
_OPERATIONS = (sc.Convert, sc.ConvertStream, sc.Pin, sc.Unpin, sc.Hwpoison, sc.IommuMap, sc.IommuUnmap)

_NOW = np.isin(folio.COUNTERS, ("shared_pages", "present_pages", "mapped_1g", "mapped_2m", "orphaned_pins", "lru_held",
                                "poisoned_pages"))  # fmt: skip
"""Counters of a present state; the others are sums since the start."""


def wanted(scenario: sc.Scenario) -> bool:
    """Whether a scenario has an operation that needs the state of single pages."""
    needing = (*_OPERATIONS, sc.Kexec) if scenario.guest.design == "pfn-range" else _OPERATIONS
    return any(isinstance(operation, needing) for operation in scenario.operations)


class Conversions:
    """The tracked files of one host, by inode."""

    def __init__(self, system: HostState) -> None:
        self.system = system
        guest, nodes = system.scenario.guest, system.nodes
        self.light = guest.design == "pfn-range"
        self.hvo = guest.design == "hugetlb-hvo" and system.order > 0
        mine = system.zone_page_size == PAGE_SIZE << system.order  # pools, or zones of 4 KiB pages
        free = np.bincount(system.zone_node[mine], system.free[mine], nodes).astype(np.int64)
        vmemmap = system.left_free.copy()
        if self.light:  # struct pages of the ranges are given back when these are taken
            vmemmap += (free << system.order) // 64
        elif self.hvo:
            vmemmap += free * (struct_pages.full(system.order) - 1)
        for node, count in (system.scenario.boot.vmemmap_pages or {}).items():
            if node not in system.index_of_node or count < 0:
                raise WorkbenchError(f"boot.vmemmap_pages: {node}: {count} is not a page count of a node of this host")
            vmemmap[system.index_of_node[node]] = count
        order = np.array([[*row[row >= 0], *sorted(set(range(nodes)) - set(row.tolist()))] for row in system.fallback])
        # Pools stay with the engine: what a tracked file gives back to them is handed on (:meth:`_take_back`).
        self.folios = HostMemory(vmemmap, order.astype(np.int64), np.zeros((nodes, 2), np.int64))
        self.ranges = RangeMemory(_free_ranges(system, mine), vmemmap, order) if self.light else None
        self.files: dict[int, TrackedFile] = {}
        self.inodes: dict[int, Inode] = {}
        self.closed: dict[int, Inode] = {}  # of closed files that still have pinned pages
        self.past = np.zeros(len(folio.COUNTERS), np.int64)
        self.entered: dict[int, list[int]] = {}  # allocation rows already entered, of the map and of 4 KiB pages
        self.kept: dict[int, dict[int, list[int]]] = {}  # 4 KiB pages that left a file while pinned: zones, by page

    def add(self, inode: Inode) -> None:
        """A new guest_memfd inode."""
        guest = self.system.scenario.guest
        settings = guest.conversion
        size, generation = inode.pages * PAGE_SIZE, "C" if settings.generation == "two-stage" else settings.generation
        file: TrackedFile
        if self.ranges is not None:
            file = LightFile(size, guest.page_size, self.ranges, generation=generation, shared=not inode.private)
        else:
            file = ConversionFile(
                size,
                guest.page_size,
                self.folios,
                generation=generation,
                split="two-stage" if settings.generation == "two-stage" else "one-step",
                split_on=settings.split_on,
                merge=settings.merge,
                hvo=self.hvo,
                fallback=guest.small_page_fallback,
                drain_lru=settings.drain_lru,
                shared=not inode.private,
            )
        self.files[id(inode)], self.inodes[id(inode)], self.entered[id(inode)] = file, inode, [0, 0]

    def of(self, inode: Inode | None) -> TrackedFile | None:
        """The tracked file of an inode, if it has one."""
        return None if inode is None else self.files.get(id(inode))

    def inode_of(self, operation: Any, *, closed: bool = False) -> Inode | None:
        """The guest_memfd that an operation names, if it is open (or, with ``closed``, still has pinned pages)."""
        file = self.system.files.get(operation.file)
        if file is None or (file.descriptor is None and not closed) or id(file.inode) not in self.files:
            return None
        return file.inode

    # ------------------------------------------------------------------------------------- placement comes in

    def enter_all(self) -> bool:
        """Enter the folios that the engine placed since the last call. False: no vmemmap to split a fresh one."""
        complete = [self._enter(inode) for inode in self.inodes.values()]  # all of them, also after a failure
        return all(complete)

    def _enter(self, inode: Inode) -> bool:
        file = self.files[id(inode)]
        seen = self.entered[id(inode)]
        complete = True
        for folios, nodes in self._new(inode.map, seen[0]):
            done = file.insert(folios, nodes)
            for index in folios[done:]:
                self.system.erase(inode, int(index), int(index) + 1)
            complete &= done == len(folios)
        seen[0] = int(inode.map.progress[placed.ALLOCATIONS])
        if inode.small is not None and isinstance(file, ConversionFile):
            for pages, nodes in self._new(inode.small, seen[1]):
                file.insert_small(pages, nodes)
            seen[1] = int(inode.small.progress[placed.ALLOCATIONS])
        return complete

    def _new(self, map_: FileMap, first_row: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Folios placed since allocation row ``first_row`` that are still there, and their nodes, in chunks."""
        for row in range(first_row, int(map_.progress[placed.ALLOCATIONS])):
            first, count, step = (int(value) for value in map_.allocations[row, :3])
            low = first if step > 0 else first - count + 1
            for start in range(low, low + count, _CHUNK):
                folios = np.arange(start, min(start + _CHUNK, low + count), dtype=np.int64)
                zones = map_.zone_of(folios)
                yield folios[zones >= 0], self.system.zone_node[zones[zones >= 0]]

    def _runs(self, file: TrackedFile, start: int, end: int, shared: bool) -> Int64s:
        """Runs int64 (n, 2) of pages of [start, end) in one state."""
        edges = np.diff(np.concatenate(([False], file.is_shared(start, end) == shared, [False])).astype(np.int8))
        return np.column_stack((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1))) + start

    # ------------------------------------------------------------------------------------------- operations

    def convert(self, operation: sc.Convert, inode: Inode) -> Result:
        """KVM_GMEM_CONVERT_* (section 4.10 of the rules): the conversion file does it all."""
        return _result(self.files[id(inode)].convert(*byte_span(operation, inode), operation.to))

    def pin(self, operation: sc.Pin, task: Any, inode: Inode) -> Result:
        """GUP faults absent shared pages in, up to the first private one."""
        file = self.files[id(inode)]
        offset, length = byte_span(operation, inode)
        if operation.kind == "long_term" and length > 0:
            start, end = offset // PAGE_SIZE, min(inode.pages, -(-(offset + length) // PAGE_SIZE))
            runs = self._runs(file, start, end, True) if start < end else np.empty((0, 2), np.int64)
            if len(runs) and runs[0, 0] == start:
                if not self.system.touch(task, inode, start, int(runs[0, 1])) or not self.enter_all():
                    return _result(Outcome(errno.ENOMEM, offset))
        return _result(file.pin(offset, length, operation.kind))

    def unpin(self, operation: sc.Unpin, inode: Inode) -> Result:
        """Drop references; what had left the file meanwhile is free now."""
        file = self.files[id(inode)]
        outcome = file.unpin(*byte_span(operation, inode), operation.kind)
        self._take_back(inode, file)
        if id(inode) not in self.inodes and not len(file.withheld()):
            self._retire(inode, file)
        return _result(outcome)

    def hwpoison(self, operation: sc.Hwpoison, inode: Inode) -> Result:
        """Memory failure on every page of the range that is there; ENOENT if none is."""
        file = self.files[id(inode)]
        offset, length = byte_span(operation, inode)
        stream = np.zeros((-(-length // PAGE_SIZE), 6), np.int64)
        stream[:, folio.OP] = folio.POISON
        stream[:, folio.OFFSET] = offset + PAGE_SIZE * np.arange(len(stream))
        errors = file.run_stream(stream).errors
        hit = int((errors == 0).sum())
        return _result(Outcome(0 if hit else errno.ENOENT, None), pages=hit)

    def host_fault(self, operation: sc.Fault, task: Any, file: OpenFile, start: int, count: int) -> Result:
        """Pages that are private, poisoned or past the end raise SIGBUS; the others are there afterwards."""

        conversion = self.files[id(file.inode)]
        end = max(start, min(start + count, file.inode.pages))
        good = 0
        first = -1
        for low, high in self._runs(conversion, start, end, True) if file.mapping is not None else ():
            low, high = int(low), int(high)
            if not self.system.touch(task, file.inode, low, high) or not self.enter_all():
                return _result(Outcome(errno.ENOMEM, low * PAGE_SIZE), bad=count - good, first=low)
            while low < high:
                error, offset = conversion.host_fault(low * PAGE_SIZE, (high - low) * PAGE_SIZE)
                stop = high if offset is None else offset // PAGE_SIZE
                good += stop - low
                assert file.mapping is not None
                file.mapping.map(low, stop)
                if error > 0:
                    return _result(Outcome(error, offset), bad=count - good, first=stop)
                if error:
                    first = stop if first < 0 else min(first, stop)
                low = stop + bool(error)
        bad = count - good
        if bad:
            private = self._runs(conversion, start, end, False) if file.mapping is not None else [(start, end)]
            candidates = [first] if first >= 0 else []
            candidates += [int(private[0][0])] if len(private) else []
            first = min(candidates) if candidates else end
        return Result(good, 0, {"bad": bad, "first": first if bad else -1})

    def guest_fault(self, inode: Inode, start: int, end: int) -> Result | None:
        """The guest touches pages as what they are: EHWPOISON on a poisoned folio; lazy merges happen here."""
        if not self.enter_all():
            return _result(Outcome(errno.ENOMEM, None))
        file = self.files[id(inode)]
        for low, high in zip(*self._states(file, start, end), strict=True):
            private = not bool(file.is_shared(low, low + 1)[0])
            outcome = file.guest_fault(low * PAGE_SIZE, (high - low) * PAGE_SIZE, private)
            if outcome.errno:
                return _result(outcome)
        return None

    @staticmethod
    def _states(file: TrackedFile, start: int, end: int) -> tuple[list[int], list[int]]:
        bits = file.is_shared(start, end)
        cuts = [start, *(np.flatnonzero(bits[1:] != bits[:-1]) + start + 1).tolist(), end]
        return (cuts[:-1], cuts[1:]) if end > start else ([], [])

    def punch_hole(self, inode: Inode, offset: int, length: int) -> Result:
        """Folios that left the file go back to the engine's zones and pools, unless they are poisoned or pinned."""
        file = self.files[id(inode)]
        shift = inode.order
        first = offset // PAGE_SIZE >> shift
        last = -(-min(inode.pages, -(-(offset + length) // PAGE_SIZE)) // (1 << shift))
        start, end = offset // PAGE_SIZE, min(inode.pages, (offset + length) // PAGE_SIZE)
        held = self._held(inode, file)
        outcome = file.punch_hole(offset, length)
        if outcome.errno:  # what lies before the folio that somebody holds is gone
            end = start if outcome.offset is None else max(start, outcome.offset // PAGE_SIZE >> shift << shift)
        if start < end:
            self._erase_small(inode, file, start, end, held)
        if first < last and shift:
            gone = ~file.present(first, last)
            edges = np.diff(np.concatenate(([False], gone, [False])).astype(np.int8))
            for low, high in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
                inode.map.erase(first + int(low), first + int(high), len(self.system.free))
            self._take_back(inode, file)
        if start < end:
            for mapping in inode.mappings:
                mapping.zap(start, end)
        return _result(outcome)

    def forget(self, inode: Inode) -> None:
        """The inode died: its memory is free, but for pages that are poisoned or still pinned."""
        if id(inode) not in self.inodes:
            return
        file = self.files[id(inode)]
        del self.inodes[id(inode)], self.entered[id(inode)]
        self.closed[id(inode)] = inode
        held = self._held(inode, file)
        file.release()
        self._erase_small(inode, file, 0, inode.pages, held)
        if inode.order:
            inode.map.erase(0, inode.pages >> inode.order, len(self.system.free))
            self._take_back(inode, file)
        if not len(file.withheld()):
            self._retire(inode, file)

    def _retire(self, inode: Inode, file: TrackedFile) -> None:
        """Nothing is left of the file but what it has counted."""
        del self.files[id(inode)], self.closed[id(inode)]
        self.kept.pop(id(inode), None)
        self.past += np.where(_NOW, 0, file.counts)

    @staticmethod
    def _held(inode: Inode, file: TrackedFile) -> Int64s:
        """4 KiB folios that stay taken when they leave the file: rows of page, zone, and whether a pin will go."""
        if inode.base_map is None:
            return np.empty((0, 3), np.int64)
        poisoned = file.poisoned()
        pinned = np.setdiff1d(file.pinned(), poisoned)
        pages = np.concatenate((poisoned, pinned))
        rows = np.column_stack((pages, inode.base_map.zone_of(pages), np.arange(len(pages)) >= len(poisoned)))
        return rows[rows[:, 1] >= 0]

    def _erase_small(self, inode: Inode, file: TrackedFile, start: int, end: int, held: Int64s) -> None:
        """Free 4 KiB folios [start, end) but for those held; what was held only in passing is freed too."""
        system = self.system
        held = held[(held[:, 0] >= start) & (held[:, 0] < end)]
        if inode.order == 0:
            system.erase(inode, start, end)
        elif inode.small is not None:
            system.free += inode.small.erase(start, end, len(system.free))
        system.free -= np.bincount(held[:, 1], minlength=len(system.free))
        kept = self.kept.setdefault(id(inode), {})
        for page, zone, pin in held.tolist():
            if pin:
                kept.setdefault(page, []).append(zone)
        self._take_back(inode, file)

    def _take_back(self, inode: Inode, file: TrackedFile) -> None:
        """What the file has given up since the last look goes to the engine's pools, or its 4 KiB pages to their zones."""
        system = self.system
        if inode.order:
            system.free[: system.nodes] += file.returned()
        kept = self.kept.get(id(inode), {})
        for page in set(kept) - set(file.withheld().tolist()):
            for zone in kept.pop(page):
                system.free[zone] += 1

    # -------------------------------------------------------------------------------------------- counting

    def row(self) -> Int64s:
        """Counters of all files together and vmemmap pages by node, int64 (counters + nodes,)."""
        out = np.zeros(len(folio.COUNTERS) + self.system.nodes, np.int64)
        out[: len(folio.COUNTERS)] = self.past
        for file in self.files.values():
            out[: len(folio.COUNTERS)] += file.counts
            out[len(folio.COUNTERS) :] += file.vmemmap_taken
        return out


def byte_span(operation: Any, inode: Inode) -> tuple[int, int]:
    """Offset and length of an operation in bytes; without a length, to the end of the file."""
    length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
    return operation.offset, length


def _free_ranges(system: HostState, zones: npt.NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Free pfns of each node, as ranges: what these zones (or, in larger pages, pools) have free at boot."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(system.nodes)]
    at = np.flatnonzero(zones)
    for zone in at[np.argsort(system.start_pfn[at], kind="stable")]:
        first = int(system.start_pfn[zone]) << system.order
        end = first + (int(system.free[zone]) << system.order)
        ranges = out[int(system.zone_node[zone])]
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], end)
        elif end > first:
            ranges.append((first, end))
    return out


def _result(outcome: Outcome, **detail: Any) -> Result:
    if outcome.offset is not None:
        detail["error_offset"] = outcome.offset
    return Result(-1, outcome.errno, detail) if outcome.errno else Result(0, 0, detail)

"""Conversions inside the engine: keeps a :class:`workbench.tracking.tracked_file.TrackedFile` beside each guest_memfd inode.

The engine places folios (policy, zones, pools); the tracked file knows the state of every page, holds pins, and splits and
merges huge folios, or (design ``pfn-range``) moves pages between the light map and the page cache. Files have one only in
scenarios that convert, pin or poison, since Linux 7.3 itself knows none of it. Struct pages that a conversion brings back
come from what the pools of huge pages leave free on each node, plus what the design gave back when the pools were made
(``boot.vmemmap_pages`` sets other numbers).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.design import DESIGNS
from workbench.engine.conversion_counts import ConversionCounts
from workbench.engine.filemap import FileMap
from workbench.engine.host_state import HostState
from workbench.engine.kept_frames import FRAME, NO_FRAME, NOWHERE, ZONE
from workbench.engine.objects import Inode
from workbench.engine.users import Users
from workbench.errors import WorkbenchError
from workbench.kernels import kept_frames
from workbench.kernels import placement as placed
from workbench.limits import TRACKED_FOLIOS, TRACKED_PAGES
from workbench.tracking import struct_pages
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.host_memory import HostMemory, RangeMemory
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import TrackedFile
from workbench.units import PAGE_SIZE, format_bytes

Int64s = npt.NDArray[np.int64]
_CHUNK = 1 << 16  # folios entered in one call: their rows stay in a cache
_STATE_BYTES, _UNIT_BYTES = 0.66, 10  # of a file's arrays for each page; of the light map's for each unit
_OPERATIONS = (sc.Convert, sc.ConvertStream, sc.Pin, sc.Unpin, sc.Hwpoison, sc.Collapse, sc.IommuMap,
               sc.IommuUnmap)  # fmt: skip

NOTHING_HELD = np.empty((0, 5), np.int64)
"""What :meth:`Conversions.held` says of a file of which nobody holds a page."""


def wanted(scenario: sc.Scenario) -> bool:
    """Whether a scenario has an operation that needs the state of single pages."""
    found = scenario.kinds.intersection(_OPERATIONS)
    if found and scenario.conversion_mode == "out-of-place":  # conversions leave the file itself alone
        found -= {sc.Convert, sc.ConvertStream}
    return bool(found) or (sc.Kexec in scenario.kinds and DESIGNS[scenario.guest.design].store == "pfn map")


class Conversions(ConversionCounts):
    """The tracked files of one host, by inode."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system)
        nodes = system.nodes
        self.hvo = system.design.struct_pages == "optimised" and system.order > 0
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
        # Pools stay with the engine: what a tracked file gives back to them is handed on (:meth:`take_back`).
        self.folios = HostMemory(vmemmap, order.astype(np.int64), np.zeros((nodes, 2), np.int64))
        self.ranges = RangeMemory(_free_ranges(system, mine), vmemmap, order, len(system.free)) if self.light else None
        if system.metadata is not None and not system.scenario.boot.vmemmap_pages:
            system.metadata.share((self.ranges or self.folios).vmemmap)
        self.unusable, self._passed_over = np.zeros(nodes, np.int64), False

    def add(self, inode: Inode) -> None:
        """A new guest_memfd inode. Raises WorkbenchError if its state would take too much memory."""
        guest = self.system.scenario.guest
        folios = inode.pages >> inode.order
        if folios > TRACKED_FOLIOS or inode.pages > TRACKED_PAGES:
            needed = inode.pages * _STATE_BYTES + folios * (_UNIT_BYTES if self.light else 0)
            raise WorkbenchError(
                f"create: {folios} folios of {guest.page_size} would be tracked one by one, in some {format_bytes(needed)} of "
                f"memory; at most {TRACKED_FOLIOS} are, and {format_bytes(TRACKED_PAGES * PAGE_SIZE)} of a file"
            )
        settings = guest.conversion
        size, rules = inode.pages * PAGE_SIZE, self.system.rules
        file: TrackedFile
        if self.ranges is not None:
            file = LightFile(size, guest.page_size, self.ranges, generation=rules.kernel, shared=not inode.private,
                             confidential=guest.vm_type)  # fmt: skip
        else:
            file = ConversionFile(
                size,
                guest.page_size,
                self.folios,
                generation=rules.kernel,
                split=rules.split,
                split_on=settings.split_on,
                merge=settings.merge,
                hvo=self.hvo,
                fallback=guest.small_pages,
                drain_lru=settings.drain_lru,
                shared=not inode.private,
                confidential=guest.vm_type,
                xarray=rules.xarray,
                folios=self.system.design.folios,
            )
        inode.tracked = file
        inode.users = Users(inode, file, told=self.system.design.device_access == "told")
        self.inodes.append(inode)

    def files(self) -> list[TrackedFile]:
        """All tracked files, in the order in which they were created."""
        return [inode.tracked for inode in self.inodes if inode.tracked is not None]

    # ------------------------------------------------------------------------------------- placement comes in

    def enter_all(self) -> bool:
        """Enter the folios that the engine placed since the last call. False: no vmemmap to split a fresh one."""
        complete = True
        changed = self.system.changed
        for inode in self.inodes if changed is None else changed:  # all of them, also after a failure
            if inode.tracked is not None and not inode.evicted:
                complete &= self._enter(inode, inode.tracked)
        return complete

    def _enter(self, inode: Inode, file: TrackedFile) -> bool:
        seen = inode.entered
        complete = True
        if (placed_now := int(inode.map.progress[placed.ALLOCATIONS])) != seen[0]:
            for folios, nodes in self._new(inode.map, seen[0]):
                done = file.insert(folios, nodes)
                for index in folios[done:]:
                    if not file.present(int(index), int(index) + 1)[0]:  # the one that could not be split may be there
                        self.system.erase(inode, int(index), int(index) + 1)
                complete &= done == len(folios)
            seen[0] = placed_now
        if inode.small is not None and isinstance(file, ConversionFile):
            for pages, nodes in self._new(inode.small, seen[1]):
                file.insert_small(pages, nodes)
            seen[1] = int(inode.small.progress[placed.ALLOCATIONS])
        return complete

    def _new(self, map_: FileMap, first_row: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Folios placed since allocation row ``first_row`` that are still there, and their nodes, in chunks."""
        for row in range(first_row, int(map_.progress[placed.ALLOCATIONS])):
            first, count, step = map_.allocations[row, :3].tolist()
            if count == 1:  # most calls touch one
                zone = map_.zone_at(first)
                if zone >= 0:
                    yield np.array([first], np.int64), self.system.zone_node[zone : zone + 1]
                continue
            low = first if step > 0 else first - count + 1
            for start in range(low, low + count, _CHUNK):
                folios = np.arange(start, min(start + _CHUNK, low + count), dtype=np.int64)
                zones = map_.zone_of(folios)
                there = zones >= 0
                if not there.all():
                    folios, zones = folios[there], zones[there]
                yield folios, self.system.zone_node[zones]

    # ------------------------------------------------------------------------------------------ memory goes back

    def forget(self, inode: Inode) -> None:
        """The inode died: its memory is free, but for pages that are poisoned or still pinned."""
        file = inode.tracked
        if file is None or inode.evicted:
            return
        inode.evicted = True
        held = self.held(inode, file, 0, inode.pages)
        file.release()
        self.keep_whole(inode)
        if inode.users is not None:
            inode.users.invalidate(0, inode.pages)
        self.erase_small(inode, file, 0, inode.pages, held)
        if inode.order:
            self.system.leave(inode, 0, inode.pages >> inode.order)
            self.take_back(inode, file, 0, inode.pages)
        if not len(file.withheld()):
            self.retire(inode, file)

    def retire(self, inode: Inode, file: TrackedFile) -> None:
        """Nothing is left of the file but what it has counted."""
        self.inodes.remove(inode)
        inode.tracked = None
        inode.kept.clear()
        self.keep_counts(inode, file)
        inode.users = None

    @staticmethod
    def held(inode: Inode, file: TrackedFile, start: int, end: int) -> Int64s:
        """4 KiB folios of [start, end) that stay taken when they leave the file.

        Rows of page, zone, whether it is poisoned, pins by kind.
        """
        if inode.base_map is None:
            return NOTHING_HELD
        poisoned, pinned = file.poisoned(start, end), file.pinned(start, end)
        if not len(poisoned) and not len(pinned):
            return NOTHING_HELD
        pages = np.union1d(poisoned, pinned) if len(poisoned) and len(pinned) else poisoned if len(poisoned) else pinned
        zones, pins = inode.base_map.zone_of(pages), file.references(pages, left_file=False)
        rows = np.empty((len(pages), 5), np.int64)
        return rows[: kept_frames.hold.direct(pages, poisoned, zones, pins, rows)]

    def erase_small(self, inode: Inode, file: TrackedFile, start: int, end: int, held: Int64s) -> None:
        """Free 4 KiB folios [start, end) but for those held; what was held only in passing is freed too."""
        system = self.system
        if len(held) and not start <= held[0, 0] <= held[-1, 0] < end:
            held = held[(held[:, 0] >= start) & (held[:, 0] < end)]
        numbered = system.free_pfns is not None and inode.pfns is not None and inode.order == 0
        frames = [system.take_frame(inode, page) for page in held[:, 0].tolist()] if numbered else []
        if inode.order == 0:
            system.erase(inode, start, end)
        elif inode.small is not None:
            system.free += inode.small.erase(start, end, len(system.free))
        if isinstance(file, LightFile) and len(held) and not numbered:  # knows itself which are held
            stays = file.stay_taken(held[:, :2]) | (held[:, 2] != 0)
            system.free -= np.bincount(held[stays, 1], minlength=len(system.free))
        elif len(held):
            rows = np.empty_like(held)
            count = kept_frames.leave.direct(held, np.array(frames, np.int64), system.free, rows)
            inode.kept.keep(rows[:count])
        self.take_back(inode, file, start, end)

    def take_back(self, inode: Inode, file: TrackedFile, start: int, end: int) -> None:
        """What the file has given up since the last look goes to the engine's pools, or its 4 KiB pages to their zones.

        ``start``, ``end``: pages that may have lost their last pin.
        """
        system = self.system
        if inode.order:
            system.free[: system.nodes] += file.returned()
            if self.ranges is None and (self.folios.poisoned or self._passed_over):
                # Pages that the pools have but never hand out.
                unusable = self.folios.never_handed_out(inode.order)
                system.free[: system.nodes] += self.unusable - unusable
                self.unusable, self._passed_over = unusable, bool(unusable.any())
        elif self.ranges is not None:
            system.free += self.ranges.given_back
            self.ranges.given_back[:] = 0
        if inode.kept:
            self._let_go(inode, file, start, end)
        system.settle_blocks()

    def _let_go(self, inode: Inode, file: TrackedFile, start: int, end: int) -> None:
        """Pages of [start, end) that left the file are free once nobody has them pinned."""
        pages = inode.kept.pages(start, end)
        if not len(pages):
            return
        system = self.system
        gone = inode.kept.drop_to(pages, file.references(pages, left_file=True))
        kept_frames.give_back.direct(gone, system.free)
        if system.free_pfns is not None:
            gone = gone[(gone[:, ZONE] != NOWHERE) & (gone[:, FRAME] != NO_FRAME)]
            for zone, pfn in gone[:, [ZONE, FRAME]].tolist():
                system.free_pfns.give_back(zone, pfn)


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

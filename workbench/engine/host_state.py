"""The state of a simulated Linux host: its files, and how their pages come and go.

What it has booted with is :mod:`workbench.engine.booted_host`, how folios are placed :mod:`workbench.engine.placing`; what
system calls do with it is in the modules that :mod:`workbench.engine.calls` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench import scenario as sc
from workbench.engine.attributes import Attributes
from workbench.engine.mappings import Mapping
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Inode, OpenFile, Thread
from workbench.engine.page_tables import Walk
from workbench.engine.placing import OutOfMemory, Turns
from workbench.engine.placing_between import PlacingBetween
from workbench.intervals import Int64s
from workbench.tracking.folio_file import ConversionFile
from workbench.units import PAGE_SIZE

_FAR = 1 << 52  # pages: beyond any file


class HostState(PlacingBetween):
    """The host while a scenario runs."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(scenario, cancelled)
        self.files: dict[str, OpenFile] = {}
        self.guest_memfds: dict[Inode, None] = {}
        """Those that have a name, in the order in which they got their first."""
        self.changed: dict[Inode, None] | None = {}
        """Inodes that calls since the last event may have changed; None: nobody knows which."""
        self.attributed: dict[Inode, None] = {}
        """Inodes that have a name and attributes of the VM, in the order in which they got these."""
        self.metadata = Metadata(self) if scenario.metadata != "off" else None

    # ----------------------------------------------------------------------------------------------------------- files

    def inodes(self) -> list[Inode]:
        """Every inode that has a name, once."""
        return list(dict.fromkeys(file.inode for file in self.files.values()))

    def has_changed(self, inode: Inode) -> None:
        """Note that something of a file changes which the call at hand may not have named."""
        if self.changed is not None:
            self.changed[inode] = None

    def give_attributes(self, inode: Inode, states: Attributes) -> None:
        """From now on the VM's attributes say what of the file is private."""
        inode.attributes = states
        self.attributed[inode] = None

    def loses_a_name(self, inode: Inode) -> None:
        """A name of the scenario that meant this file means another, or none."""
        inode.names -= 1
        if not inode.names:
            self.attributed.pop(inode, None)
            self.guest_memfds.pop(inode, None)

    @staticmethod
    def pages(operation: Any, pages: int) -> tuple[int, int]:
        """First page and end of an operation's range, in whole 4 KiB pages of the file."""
        first = operation.offset // PAGE_SIZE
        if operation.length is None:
            return first, max(first, pages)
        return first, first + -(-operation.length // PAGE_SIZE)

    # ------------------------------------------------------------------------------------------------------ pages come

    def touch(
        self,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None = None,
        walk: Walk | None = None,
    ) -> bool:
        """Make pages ``[start, end)`` present, as ``task``, in the operation's order. False: no huge page is left.

        virt/kvm/guest_memfd.c: kvm_gmem_get_folio: a present folio is found and nothing else happens; for an absent one
        the shared policy at its index, or the task's, decides. ``walk``: the page tables through which they are reached.
        """
        metadata = self.metadata
        if metadata is None or end <= start:
            return self._touch(task, inode, start, end, operation)
        light, first, last = metadata.light_map(inode), start >> inode.order, -(-end >> inode.order)
        if light is None or inode.map.is_known(first, last):
            return self._touch_and_count(metadata, task, inode, start, end, operation, walk)
        before = light.before(first, last)
        try:
            return self._touch_and_count(metadata, task, inode, start, end, operation, walk)
        finally:
            light.after(first, last, before)

    def _touch_and_count(
        self,
        metadata: Metadata,
        task: Thread,
        inode: Inode,
        start: int,
        end: int,
        operation: sc.Fault | None,
        walk: Walk | None,
    ) -> bool:
        if metadata.taking and inode.order == 0 and inode.tracked is None:
            # Page tables of a tmpfs file keep to other marks and zones than its pages; these come in halves as well.
            self._touch_taking(metadata, task, inode, start, end, operation, walk)
            return True
        if metadata.known(task, inode, walk, start, end):
            return self._touch(task, inode, start, end, operation)
        metadata.before = self.free_of_small()
        complete = self._touch(task, inode, start, end, operation)
        step = -1 if operation is not None and operation.order == "reverse" else 1
        parts = [(start, end)] if complete else self._present(inode, start, end)
        for low, high in parts:
            if not metadata.enter_tables(task, walk, low, high, step) or not metadata.enter_nodes(
                task, inode, low, high
            ):
                raise OutOfMemory
        metadata.before = None
        return complete

    @staticmethod
    def _present(inode: Inode, start: int, end: int) -> list[tuple[int, int]]:
        """4 KiB pages of [start, end) that huge folios back."""
        order = inode.order
        cut = inode.map.cut(start >> order, -(-end >> order)).tolist()
        return [(max(start, low << order), min(end, (low + count) << order)) for low, count, _ in cut]

    def touch_in_turns(
        self, inode: Inode, first: int, last: int, turns: Callable[[], Turns], walk: Walk | None = None
    ) -> bool:
        """Make folios [first, last) present in the order of ``turns``: chunks of folio indices and rows of tasks."""
        complete = self._touch_in_turns(inode, first, last, turns)
        if self.metadata is not None and complete:
            tasks = list(self.tasks.values())
            for folios, rows in turns():
                self._need(self.metadata.enter_turns(tasks, inode, walk, folios, rows))
        return complete

    def host_walk(self, mapping: Mapping | None) -> Walk | None:
        """The page tables of a mapping, where they are kept."""
        return None if self.metadata is None else self.metadata.of_host(mapping)

    def enter_host_tables(self, task: Thread, mapping: Mapping, start: int, end: int) -> None:
        """The page tables that a mapping needs for pages [start, end), which are there already."""
        if self.metadata is not None:
            self._need(self.metadata.enter_tables(task, self.host_walk(mapping), start, end))

    def guest_walk(self, inode: Inode) -> Walk | None:
        """The second-stage tables of a file, where they are kept."""
        return None if self.metadata is None else self.metadata.of_guest(inode)

    # -------------------------------------------------------------------------------------------------------- pages go

    def leave(self, inode: Inode, first: int, last: int) -> Int64s:
        """Folios ``[first, last)`` are no longer the file's, and their frames are free; what each zone gets, int64 (zones,)."""
        if self.free_pfns is not None and inode.pfns is not None:
            self.free_pfns.release(inode.map, inode.pfns, inode.map.cut(first, last))
        return inode.map.erase(first, last, len(self.free))

    def take_frame(self, inode: Inode, page: int) -> int:
        """A 4 KiB page is no longer the file's, and its frame, which somebody holds, is not free: the frame's pfn."""
        assert self.free_pfns is not None and inode.pfns is not None
        pfn = int(self.free_pfns.of_pages(inode.map, inode.pfns, page, page + 1)[0])
        inode.map.erase(page, page + 1, len(self.free))
        return pfn

    def erase(self, inode: Inode, first: int, last: int, moving: bool = False) -> int:
        """Free folios ``[first, last)`` and say how many there were, huge ones of a file of huge folios.

        ``moving``: others take their places at once, so that the tree keeps its nodes.
        """
        before = self.free.copy() if inode.movable else self.free
        light = None if self.metadata is None or moving else self.metadata.light_map(inode)
        near = min(last, _FAR)
        ranges = None if light is None else light.before(first, near)
        freed = self.leave(inode, first, last)
        if light is not None:
            light.after(first, near, ranges)
            light.stale |= ranges is None
        self.free += freed
        if inode.movable:
            self.settle_cma(before)
        if inode.small is not None:
            limit = inode.pages >> inode.order
            self.free += inode.small.erase(first << inode.order, min(last, limit) << inode.order, len(self.free))
        if self.metadata is not None and not moving:
            self.metadata.erased(inode, first, near)
        self.settle_blocks()
        return sum(freed.tolist())

    # ----------------------------------------------------------------------------------------------- promises of pools

    def reserve_pool(self, inode: Inode) -> bool:
        """Promise the file all huge pages it can need (mm/hugetlb.c: hugepage_new_subpool); False: not so many are left."""
        pages = inode.pages >> inode.order
        if pages > int(self.free[: self.nodes].sum()) - self.reserved_huge_pages():
            return False
        inode.reserve = pages
        return True

    def reserved_huge_pages(self) -> int:
        """Huge pages of the pools that files were promised when they were created and that they have not taken yet.

        Those that others on the host were promised count too, where its own pools are taken as they are.

        mm/hugetlb.c: a subpool with minimum and maximum size; it lives until its last page is back.
        """
        others = self.host.hugetlb_promised.get(PAGE_SIZE << self.order, 0) if self._pools_of_host else 0
        return others + sum(self._unused_reserve(inode) for inode in self.inodes())

    def _unused_reserve(self, inode: Inode) -> int:
        if not inode.reserve:
            return 0
        taken = int(inode.map.runs[:, 1].sum())
        if isinstance(inode.tracked, ConversionFile):
            taken += inode.tracked.count("pinned_huge_pages")
        gone = not inode.mappings and all(
            file.descriptor is None for file in self.files.values() if file.inode is inode
        )
        return 0 if gone and not taken else inode.reserve - taken

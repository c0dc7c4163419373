"""Who uses a guest_memfd's pages besides the host: KVM's second stage and the IOMMU, what each maps and what each is told.

KVM is told of every invalidation, whatever the design (``virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin``).
Where folios are in the page cache, the tracked file has the leaves of the second stage itself
(:mod:`workbench.kernels.folios.second_stage`); of a light map they are kept here. The IOMMU pins what it maps and is told of
nothing (``drivers/iommu/iommufd/pages.c``), or, as the seed mail proposes, takes no reference and is told too: what went away
is not mapped any more, and its area stays until somebody unmaps it.

A frame is known by the allocation that made it, not by its number: a page that is freed and faulted again has another.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from workbench.engine.runs import Runs
from workbench.intervals import Int64s, equal_intervals, pages_of
from workbench.kernels import light_map
from workbench.kernels.folios import run as folio
from workbench.kernels.runs import Runs as Table
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import Outcome, TrackedFile
from workbench.units import PAGE_ORDERS

if TYPE_CHECKING:
    from workbench.engine.objects import Inode

NAMES = ("kvm", "iommu")
IOMMU = NAMES.index("iommu")
_ORDERS = (0, folio.ORDER_2M, folio.ORDER_1G)
_LEAVES = tuple(zip((folio.N_LEAVES_4K, folio.N_LEAVES_2M, folio.N_LEAVES_1G), _ORDERS, strict=True))
_FRAME, _LEVEL = 3, 4
_ROW = struct.Struct("=5q")
_LEAST_ROWS = 64


def pages_under(counts: Int64s) -> Int64s:
    """4 KiB pages under the leaves of the second stage that counters int64 (..., counters) have, int64 (...,)."""
    pages: Int64s = np.sum([counts[..., leaf] << order for leaf, order in _LEAVES], axis=0)
    return pages


class Mapped:
    """Pages that one user has in its page tables, by runs, with the frame and the size of the leaf behind each."""

    def __init__(self) -> None:
        self.pages = 0
        self._runs = Runs()
        self._rows = np.zeros((_LEAST_ROWS, 5), np.int64)
        self._used = 0

    def add(self, frames: Int64s, level: int = 0) -> None:
        """Map frames int64 (n, 3) (first page, pages, frame), in place of what was there; ``level``: 4 KiB, 2 MiB, 1 GiB."""
        if not len(frames):
            return
        self._make_room(len(frames))
        begin, rows = self._used, self._rows.data
        for first, pages, frame in frames.tolist():
            self.pages += pages - self._runs.erase(first, first + pages)
            _ROW.pack_into(rows, _ROW.size * self._used, first, pages, 1, frame, level)
            self._used += 1
        self._runs.enter(self._rows, begin, self._used)

    def zap(self, start: int, end: int) -> int:
        """Take away the leaves that pages [start, end) touch, huge ones whole. Returns how many pages went."""
        if end <= start or not self.pages:
            return 0
        alone = end - start == 1
        for border in (start,) if alone else (start, end - 1):
            order = self._order_at(border)
            if order > 0:
                start, end = min(start, border >> order << order), max(end, ((border >> order) + 1) << order)
            elif order < 0 and alone:
                return 0
        gone = self._runs.erase(start, end)
        self.pages -= gone
        return gone

    def _order_at(self, page: int) -> int:
        """Order of the leaf that maps a page; -1: none does."""
        row = self._runs.value_at(page)
        return -1 if row < 0 else _ORDERS[int(self._rows[row, _LEVEL])]

    def gaps(self, start: int, end: int) -> Int64s:
        """What of pages [start, end) is not mapped, int64 (n, 2)."""
        return self._runs.gaps(start, end)

    def runs(self) -> Int64s:
        """All of it, int64 (n, 4): first page, pages, frame, level of the leaves."""
        runs = self._runs.all()
        rows = self._rows[runs[:, 2]]
        return np.column_stack((runs[:, :2], rows[:, _FRAME], rows[:, _LEVEL]))

    def intervals(self) -> Int64s:
        """What is mapped, as intervals int64 (n, 2), neighbours joined."""
        runs = self._runs.all()
        ends = runs[:, 0] + runs[:, 1]
        first = np.append(True, runs[1:, 0] != ends[:-1])[: len(runs)]
        return np.column_stack((runs[first, 0], ends[np.append(first[1:], True)[: len(runs)]]))

    def pages_in(self, start: int, end: int) -> int:
        """How many of pages [start, end) are mapped."""
        return end - start - self._runs.pages_missing(start, end)

    def lend(self, blocks: int, rows: int) -> tuple[Table, Int64s, int]:
        """The runs and their rows, with room for so many blocks and rows: for a kernel, until :meth:`take_back`."""
        self._make_room(rows)
        return self._runs.room(blocks), self._rows, self._used

    def take_back(self, used: int, pages: int) -> None:
        """So many rows are in use, and so many pages are mapped."""
        self._used, self.pages = used, pages

    def _make_room(self, rows: int) -> None:
        """Rows that no run names any more go first."""
        if self._used + rows <= len(self._rows):
            return
        runs = self._runs.all().copy()
        kept, runs[:, 2] = np.unique(runs[:, 2], return_inverse=True)
        longer = np.zeros((max(_LEAST_ROWS, 2 * (len(kept) + rows)), 5), np.int64)
        longer[: len(kept)] = self._rows[kept]
        self._rows, self._used = longer, len(kept)
        self._runs.replace(runs)


class Users:
    """The users of one file. ``told`` says whether its IOMMU is told of invalidations, or pins."""

    def __init__(self, inode: Inode, file: TrackedFile, told: bool) -> None:
        self.inode, self.file, self.told = inode, file, told
        self.light = file if isinstance(file, LightFile) else None
        self.iommu = Mapped()
        self.kvm = Mapped()
        """Empty where the tracked file has the leaves itself."""
        self.calls = self.lost = 0
        """Invalidations that the IOMMU was told of, and pages that it lost by them."""

    # -------------------------------------------------------------------------------------------------- mapping

    def guest_fault(self, start: int, end: int, private: bool) -> None:
        """The guest has faulted on pages that are there and in one state: what it had not mapped gets leaves.

        ``arch/x86/kvm/mmu/mmu.c: kvm_mmu_max_mapping_level``: as large as the unit, its state and the kind of guest allow.
        """
        if self.light is None:
            return
        for low, high in self.kvm.gaps(start, end).tolist():
            for page, stop, level in self._leaves(low, high) if private else ((low, high, 0),):
                order = _ORDERS[level]
                self.kvm.add(self.frames(page >> order << order, -(-stop >> order) << order), level)

    def iommu_map(self, start: int, end: int) -> None:
        """A device maps pages that are all there."""
        self.iommu.add(self.frames(start, end))

    def iommu_map_many(self, areas: Int64s) -> None:
        """Areas int64 (n, 2), ascending, of a file of 4 KiB pages that are all there."""
        if not len(areas):
            return
        runs = self.inode.map.cut(int(areas[0, 0]), int(areas[-1, 1]))
        ends = runs[:, 0] + runs[:, 1]
        area, run = pages_of(
            np.searchsorted(ends, areas[:, 0], side="right"), np.searchsorted(runs[:, 0], areas[:, 1], side="left")
        )
        low, high = np.maximum(areas[area, 0], runs[run, 0]), np.minimum(areas[area, 1], ends[run])
        self.iommu.add(np.column_stack((low, high - low, 2 * runs[run, 2])))

    def iommu_unmap(self, start: int, end: int) -> None:
        """An area is unmapped."""
        self.iommu.zap(start, end)

    def frames(self, start: int, end: int) -> Int64s:
        """What backs pages [start, end) now, int64 (n, 3): first page, pages, frame."""
        inode, order = self.inode, self.inode.order
        out = inode.map.cut(start >> order, -(-end >> order))
        out[:, 2] *= 2
        if order and len(out):
            out[:, :2] <<= order
            before = max(0, start - int(out[0, 0]))
            out[0, :2] += before, -before
            out[-1, 1] = min(int(out[-1, 1]), end - int(out[-1, 0]))
        if inode.small is not None:
            small = inode.small.cut(start, end)
            small[:, 2] = 2 * small[:, 2] + 1
            out = np.concatenate((out, small))
            out = out[np.argsort(out[:, 0])]
        return out

    def _leaves(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """Parts of private pages [low, high) in which a fault installs leaves of one level, and the level."""
        file = self.light
        assert file is not None
        largest = PAGE_ORDERS[file.largest_leaf]
        if file.order == 0 or largest == 0:
            return [(low, high, 0)]
        base, end = low >> folio.ORDER_2M, ((high - 1) >> folio.ORDER_2M) + 1
        levels = self._none_shared(file.state.shared_2m, folio.ORDER_2M, base, end).astype(np.int64)
        if file.order == folio.ORDER_1G == largest:
            first, last = low >> folio.ORDER_1G, ((high - 1) >> folio.ORDER_1G) + 1
            giga = np.repeat(self._none_shared(file.state.shared_1g, folio.ORDER_1G, first, last), folio.BLOCKS_1G)
            levels[giga[base - first * folio.BLOCKS_1G :][: len(levels)]] = 2
        return [
            (max(low, first << folio.ORDER_2M), min(high, last << folio.ORDER_2M), int(levels[first - base]))
            for first, last in equal_intervals(levels, base).tolist()
        ]

    def _none_shared(self, shared: np.ndarray, order: int, first: int, end: int) -> np.ndarray:
        """Which blocks [first, end) of this order have no page that is shared, or poisoned; ``shared``: how many of each are."""
        assert self.light is not None
        out: np.ndarray = shared[first:end] == 0
        bad = self.light.poisoned(first << order, end << order)
        if len(bad):
            out[(bad >> order) - first] = False
        return out

    # ---------------------------------------------------------------------------------------------- invalidations

    def differing(self, start: int, end: int, to_shared: bool) -> list[tuple[int, int]] | None:
        """Pages of [start, end) that a conversion would change, as intervals; None: nobody here loses any, or is told."""
        told = self.told and len(self.inode.areas)  # also of areas of which nothing is mapped any more
        if self.light is None or not (self.kvm.pages or told) or end <= start:
            return None
        return self.file.in_state(start, end, not to_shared)

    def converted(self, parts: list[tuple[int, int]], outcome: Outcome) -> None:
        """A conversion that was to change these pages is over: what it announced is not mapped any more.

        All of them, also where it failed then, if it is all or nothing (generation B, 4 KiB units); in generation C unit by
        unit, up to the one that failed.
        """
        if not parts:
            return
        stop = parts[-1][1]
        if outcome.errno:
            assert self.light is not None
            at_once = self.light.state.options[light_map.GENERATION] == folio.GENERATION_B or not self.file.order
            if at_once:
                stop = stop if outcome.offset is not None else 0
            elif outcome.offset is not None:
                stop = outcome.offset >> 12 >> self.file.order << self.file.order
        for low, high in parts:
            self.invalidate(low, min(high, stop))

    def invalidate(self, start: int, end: int, page_by_page: bool = False) -> None:
        """Pages [start, end) go away, or change sides; each for itself, of which a device is told as often, or all at once."""
        if end <= start:
            return
        self.kvm.zap(start, end)
        if not (self.told and len(self.inode.areas)):
            return
        areas = self.inode.device_areas
        touched = areas[(areas[:, 0] < end) & (areas[:, 1] > start)]
        if len(touched):
            pages = np.minimum(touched[:, 1], end) - np.maximum(touched[:, 0], start)
            self.calls += int(pages.sum()) if page_by_page else 1
            self.lost += self.iommu.zap(start, end)

    def moved(self, start: int, end: int) -> None:
        """Pages of [start, end) get other frames (``kvm_gmem_migrate_folio``): KVM drops what maps any of them."""
        self.invalidate(start, end)
        if isinstance(self.file, ConversionFile):
            self.file.unmap_guest(start << 12, (end - start) << 12)

    def unmapped(self, start: int, end: int) -> None:
        """KVM drops what it maps of pages, which stay where they are."""
        self.kvm.zap(start, end)
        if isinstance(self.file, ConversionFile) and end > start:
            self.file.unmap_guest(start << 12, (end - start) << 12)

    def machine_gone(self) -> None:
        """The VM is closed: its second stage goes with it, and nobody is told."""
        self.kvm.zap(0, self.inode.pages)
        if isinstance(self.file, ConversionFile):
            self.file.unmap_guest()

    # --------------------------------------------------------------------------------------------------- counting

    @property
    def kvm_pages(self) -> int:
        """4 KiB pages under leaves of the second stage."""
        if self.light is not None:
            return self.kvm.pages
        return int(pages_under(self.file.counts))

    def iommu_row(self) -> tuple[int, int, int]:
        """Of the IOMMU: invalidations it was told of, pages it maps now, pages it lost."""
        return self.calls, self.iommu.pages, self.lost

"""What is counted of conversions after each call, of all tracked files of a host together, and what of their memory stays whole.

A row is int64 (counters + nodes + 4,): counters by position in :data:`workbench.kernels.folios.run.COUNTERS`, vmemmap pages by
node (:data:`VMEMMAP_PAGES`), then what users map and were told (:data:`KVM_PAGES` ...). Files that are gone leave what they have
counted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode
from workbench.engine.sums import Sums
from workbench.engine.users import Mapped, pages_under
from workbench.intervals import Int64s
from workbench.kernels.folios import run as folio
from workbench.kernels.whole import REGIONS
from workbench.tracking.tracked_file import TrackedFile
from workbench.tracking.whole import BYTES_OF_A_PAIR, WATCHED, Whole

KVM_PAGES, TOLD, MAPPED, LOST = range(-4, 0)
"""Columns: pages that KVM maps of light maps (of other files they follow from counters); invalidations that the IOMMU was told
of, pages that it maps now, pages that it lost."""
VMEMMAP_PAGES = slice(len(folio.COUNTERS), KVM_PAGES)
LEAVES = slice(-3, None)
"""Of what stays whole: leaves of devices."""
_NOW = np.isin(folio.COUNTERS, ("shared_pages", "present_pages", "mapped_1g", "mapped_2m", "orphaned_pins", "lru_held",
                                "poisoned_pages", "pinned_huge_pages", "returned_1g", "returned_2m", "leaves_4k",
                                "leaves_2m", "leaves_1g", "xarray_pages"))  # fmt: skip
"""Counters of a present state; the others are sums since the start."""


class OfUsers(NamedTuple):
    """KVM and the IOMMU, int64 (calls, 2). What KVM loses is not counted: the guest faults it in again."""

    told: Int64s
    """Invalidations that they were told of."""
    mapped: Int64s
    """Pages that they map now."""
    lost: Int64s
    """Pages that the IOMMU lost to a notice, (calls,)."""


class ConversionCounts:
    """The counts of one host; after a call those of the files are looked at again that it may have changed."""

    def __init__(self, system: HostState) -> None:
        self.system = system
        self.light = system.design.store == "pfn map"
        self.devices = False  # until one maps pages
        self.inodes: list[Inode] = []  # those with a tracked file, closed ones that still have pinned pages included
        self.width = len(folio.COUNTERS) + system.nodes - KVM_PAGES
        """Entries of a row."""
        self._past = np.zeros(self.width, np.int64)
        self._now = Sums(self.width, self._counts_of)
        self._watched = system.scenario.guest.vm_type in WATCHED
        self._stays_whole = Sums(REGIONS + 2 * system.nodes + 3, self._whole_of)
        self._past_whole = np.zeros(REGIONS + 2 * system.nodes + 3, np.int64)
        self._whole: dict[Inode, Whole] = {}

    def count(self, row: Int64s) -> Int64s:
        """The counts as they are, into ``row`` int64 (counters + nodes + 4,); of it vmemmap pages by node."""
        np.add(self._now.look(self.system.changed, self.inodes), self._past, out=row)
        return row[VMEMMAP_PAGES]

    def rows(self, calls: int) -> Int64s:
        """The counts as they are, for each of so many calls, int64 (calls, counters + nodes + 4)."""
        row = np.empty(self.width, np.int64)
        self.count(row)
        return np.tile(row, (calls, 1))

    def keep_counts(self, inode: Inode, file: TrackedFile) -> None:
        """Nothing is left of a file but what it has counted."""
        self._past[: len(folio.COUNTERS)] += np.where(_NOW, 0, file.counts)
        if inode.users is not None:
            calls, _, lost = inode.users.iommu_row()
            self._past[TOLD] += calls
            self._past[LOST] += lost

    def _counts_of(self, inode: Inode, row: Int64s) -> bool:
        """What a file adds, if it is tracked."""
        if inode.tracked is None:
            return False
        inode.tracked.count_into(row)
        row[KVM_PAGES:] = 0
        users = inode.users
        if users is not None:
            if self.light:
                row[KVM_PAGES] = users.kvm_pages
            if any(of_devices := users.iommu_row()):
                row[TOLD:] = of_devices
        return True

    def of_users(self, rows: Int64s) -> OfUsers:
        """What rows (calls, counters + nodes + 4) say of users."""
        mapped = rows[:, KVM_PAGES] if self.light else pages_under(rows)
        return OfUsers(
            np.stack((rows[:, folio.N_INVALIDATIONS], rows[:, TOLD]), axis=1),
            np.stack((mapped, rows[:, MAPPED]), axis=1),
            rows[:, LOST],
        )

    # ------------------------------------------------------------------------------------------------ what stays whole

    def whole(self, inode: Inode) -> Whole:
        """What of a tracked file stays whole, as it was when somebody last looked."""
        found = self._whole.get(inode)
        if found is None:
            assert inode.tracked is not None
            found = self._whole[inode] = Whole(inode.tracked, self.system.nodes)
        return found

    def device_leaves(self, inode: Inode, iommu: Mapped) -> Int64s:
        """Leaves of 4 KiB, 2 MiB, 1 GiB that map pages of a tracked file for devices."""
        if not inode.order:  # nothing lies together
            return np.array([iommu.pages, 0, 0])
        return self.whole(inode).device_leaves(iommu.intervals())

    def stays_whole(self, row: Int64s) -> None:
        """What of all files stays whole, then by node, then leaves of devices, into ``row`` int64 (4 + 2 * nodes + 3,)."""
        np.add(self._stays_whole.look(self.system.changed, self.inodes), self._past_whole, out=row)

    def whole_of_others(self, inode: Inode) -> Int64s:
        """What :meth:`Whole.row` says of all files but one, together, int64 (4 + 2 * nodes,)."""
        others = (one for one in self.inodes if self._watched and one is not inode and not one.evicted)
        return sum((self.whole(one).row() for one in others), self._past_whole[:-3].copy())

    def keep_whole(self, inode: Inode) -> None:
        """All pages have left a file: their entries changed hands, and what was done to the RMP and the direct map stays done.

        ``arch/x86/kvm/svm/sev.c: sev_gmem_invalidate``; nobody puts the direct map together again.
        """
        if self._watched:
            self.whole(inode).look(0, inode.pages)
            self._past_whole[:-3] += self.whole(inode).row()

    def _whole_of(self, inode: Inode, row: Int64s) -> bool:
        if inode.tracked is None or inode.evicted:
            return False
        if self._watched:
            row[:-3] = self.whole(inode).state.row
            row[REGIONS + self.system.nodes : -3] *= BYTES_OF_A_PAIR
        if self.devices:
            row[LEAVES] = 0
            if inode.users is not None and inode.users.iommu.pages:
                row[LEAVES] = self.device_leaves(inode, inode.users.iommu)
        return True

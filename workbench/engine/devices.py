"""Devices inside the engine: IOMMU mappings of guest memory, as they are today and as the seed mail proposes.

Today (every design but ``pfn-range``) a device reaches guest memory through the host mapping and pins it for as long as
it is mapped (``drivers/iommu/iommufd/io_pagetable.c``, ``mm/gup.c``): private pages give EFAULT, and converting a mapped
page to private gives EAGAIN. Under ``pfn-range`` the IOMMU asks for pfns, takes no reference and is told when they go
away, so nothing blocks. :mod:`workbench.tracking.private_users` has the page tables and the protocol.
"""

from __future__ import annotations

import errno

import numpy as np

from workbench import scenario as sc
from workbench.engine.conversions import Conversions, byte_span
from workbench.engine.filemap import Int64s
from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode, Result, failed
from workbench.units import PAGE_SIZE


class Devices:
    """The areas mapped for devices: for each inode int64 (n, 2), first page and end, in ascending order."""

    def __init__(self, system: HostState) -> None:
        self.system = system
        self.areas: dict[int, Int64s] = {}
        self.inodes: dict[int, Inode] = {}

    def map(self, operation: sc.IommuMap, conversions: Conversions, inode: Inode) -> Result:
        """IOMMU_IOAS_MAP at the file's own offsets: EEXIST over an area that is there (iopt_check_iova)."""
        span = _pages_of(operation, inode)
        if span is None:
            return failed(errno.EINVAL)
        (first, end), areas = span, self.areas.get(id(inode), np.empty((0, 2), np.int64))
        if ((areas[:, 0] < end) & (areas[:, 1] > first)).any():
            return failed(errno.EEXIST)
        pinned = 0
        if self.system.scenario.guest.design != "pfn-range":
            pin = sc.Pin(task=operation.task, file=operation.file, **_bytes_of(first, end))
            result = conversions.pin(pin, self.system.task(operation), inode)
            if result.errno:
                return result
            pinned = end - first
        else:
            holes = inode.map.absent(first >> inode.order, -(-end >> inode.order))
            if len(holes):
                return failed(errno.EFAULT, error_offset=max(first, int(holes[0, 0]) << inode.order) * PAGE_SIZE)
        areas = np.concatenate((areas, [[first, end]]))
        self.areas[id(inode)] = areas[np.argsort(areas[:, 0])]
        self.inodes[id(inode)] = inode
        return Result(0, 0, {"pinned_pages": pinned})

    def unmap(self, operation: sc.IommuUnmap, conversions: Conversions, inode: Inode) -> Result:
        """IOMMU_IOAS_UNMAP of whole areas: ENOENT if there is none, or one is cut (iopt_unmap_iova_range)."""
        span = _pages_of(operation, inode)
        if span is None:
            return failed(errno.EINVAL)
        (first, end), areas = span, self.areas.get(id(inode), np.empty((0, 2), np.int64))
        touched = (areas[:, 0] < end) & (areas[:, 1] > first)
        if not touched.any() or (areas[touched, 0] < first).any() or (areas[touched, 1] > end).any():
            return failed(errno.ENOENT)
        if self.system.scenario.guest.design != "pfn-range":
            for low, high in areas[touched].tolist():
                conversions.unpin(sc.Unpin(file=operation.file, **_bytes_of(low, high)), inode)
        self.areas[id(inode)] = areas[~touched]
        return Result()

    def pages(self, inode: Inode) -> list[int]:
        """First page of each area of the file that is mapped for a device."""
        areas = self.areas.get(id(inode))
        return [] if areas is None else [int(first) for first in areas[:, 0]]


def _pages_of(operation: sc.IommuMap | sc.IommuUnmap, inode: Inode) -> tuple[int, int] | None:
    """First page and end of an operation's range; None if it is not whole pages of the file."""
    offset, length = byte_span(operation, inode)
    if (offset | length) % PAGE_SIZE or length <= 0 or offset + length > inode.pages * PAGE_SIZE:
        return None
    return offset // PAGE_SIZE, (offset + length) // PAGE_SIZE


def _bytes_of(first: int, end: int) -> dict[str, int]:
    return {"offset": first * PAGE_SIZE, "length": (end - first) * PAGE_SIZE}

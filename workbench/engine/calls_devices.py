"""Calls that map guest memory for devices, as they are today and as the seed mail proposes.

Today (every design but ``pfn-range``) a device reaches guest memory through the host mapping and pins it for as long as
it is mapped (``drivers/iommu/iommufd/io_pagetable.c``, ``mm/gup.c``): private pages give EFAULT, and converting a mapped
page to private gives EAGAIN. Under ``pfn-range`` the IOMMU asks for pfns, takes no reference and is told when they go
away, so nothing blocks (:mod:`workbench.engine.users`).
"""

from __future__ import annotations

import errno

from workbench import scenario as sc
from workbench.engine import calls_conversion
from workbench.engine.calls_conversion import byte_span, tracked_inode
from workbench.engine.objects import Inode, Result, failed
from workbench.engine.system import System
from workbench.units import PAGE_SIZE


def iommu_map(system: System, operation: sc.IommuMap) -> Result:
    """IOMMU_IOAS_MAP at the file's own offsets: EEXIST over an area that is there (iopt_check_iova)."""
    inode = tracked_inode(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    span = _pages_of(operation, inode)
    if span is None:
        return failed(errno.EINVAL)
    first, end = span
    if inode.areas.touched(first, end):
        return failed(errno.EEXIST)
    pinned = 0
    if system.design.device_access == "pinned":
        result = calls_conversion.pin_range(system, operation, inode, *_bytes_of(first, end), "device")
        if result.errno:
            return result
        pinned = end - first
    else:
        missing = _first_without_pfn(inode, first, end)
        if missing < end:
            return failed(errno.EFAULT, error_offset=missing * PAGE_SIZE)
    inode.areas.add(first, end)
    if inode.users is not None and system.conversions is not None:
        inode.users.iommu_map(first, end)
        system.conversions.devices = True
    return Result(0, 0, {"pinned_pages": pinned})


def iommu_unmap(system: System, operation: sc.IommuUnmap) -> Result:
    """IOMMU_IOAS_UNMAP of whole areas: ENOENT if there is none, or one is cut (iopt_unmap_iova_range)."""
    inode = tracked_inode(system, operation, closed=True)
    if inode is None:
        return failed(errno.EBADF)
    span = _pages_of(operation, inode)
    if span is None:
        return failed(errno.EINVAL)
    first, end = span
    touched = inode.areas.touched(first, end)
    if not touched or touched[0][0] < first or touched[-1][1] > end:
        return failed(errno.ENOENT)
    for low, high in touched:
        if inode.users is not None:
            inode.users.iommu_unmap(low, high)
        if system.design.device_access == "pinned" and inode.tracked is not None:  # else its last page has just gone
            calls_conversion.unpin_range(system, inode, *_bytes_of(low, high), "device")
        inode.areas.remove(low)
    return Result()


def _pages_of(operation: sc.IommuMap | sc.IommuUnmap, inode: Inode) -> tuple[int, int] | None:
    """First page and end of an operation's range; None if it is not whole pages of the file."""
    offset, length = byte_span(operation, inode)
    if (offset | length) % PAGE_SIZE or length <= 0 or offset + length > inode.pages * PAGE_SIZE:
        return None
    return offset // PAGE_SIZE, (offset + length) // PAGE_SIZE


def _bytes_of(first: int, end: int) -> tuple[int, int]:
    return first * PAGE_SIZE, (end - first) * PAGE_SIZE


def _first_without_pfn(inode: Inode, first: int, end: int) -> int:
    """First page of [first, end) that is absent or poisoned, whose pfn nobody is given; ``end``: there is none."""
    holes = inode.map.absent(first >> inode.order, -(-end >> inode.order))
    missing = max(first, int(holes[0, 0]) << inode.order) if len(holes) else end
    if inode.tracked is not None and len(bad := inode.tracked.poisoned(first, missing)):
        return int(bad[0])
    return missing

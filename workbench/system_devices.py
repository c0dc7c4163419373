"""Devices and kexec inside the engine: IOMMU mappings both ways, and whether a file's memory can be handed over.

Today (every design but ``pfn-range``) a device reaches guest memory through the host mapping and pins it for as long as
it is mapped (``drivers/iommu/iommufd``, ``mm/gup.c``): private pages give EFAULT, and converting a mapped page to private
gives EAGAIN. Under ``pfn-range`` the IOMMU asks for pfns, takes no reference and is told when they go away, so nothing
blocks. :mod:`workbench.private_users` has the page tables and the protocol, :mod:`workbench.handover` the bytes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import kho
from workbench import handover
from workbench import scenario as sc
from workbench.objects import Inode, Result, failed
from workbench.units import PAGE_SIZE

if TYPE_CHECKING:
    from workbench.system import System


def _span(operation: Any, inode: Inode) -> tuple[int, int]:
    length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
    return operation.offset, length


def _bad_range(offset: int, length: int, inode: Inode) -> bool:
    return (
        offset % PAGE_SIZE != 0 or length % PAGE_SIZE != 0 or length <= 0 or offset + length > inode.pages * PAGE_SIZE
    )


def iommu_map(system: System, operation: sc.IommuMap) -> Result:
    """IOMMU_IOAS_MAP of a range, or the proposed request for its pfns."""

    found = system._convertible(operation)
    if found is None:
        return failed(errno.EBADF)
    conversions, inode = found
    offset, length = _span(operation, inode)
    if _bad_range(offset, length, inode):
        return failed(errno.EINVAL)
    if system.scenario.guest.design != "pfn-range":
        result = conversions.pin(
            sc.Pin(task=operation.task, file=operation.file, offset=offset, length=length),
            system.task(operation),
            inode,
        )
        return result if result.errno else Result(0, 0, {"pinned_pages": length // PAGE_SIZE})
    first, end = offset // PAGE_SIZE >> inode.order, -(-(offset + length) // PAGE_SIZE) >> inode.order
    holes = inode.map.absent(first, max(end, first + 1))
    if len(holes):
        return failed(errno.EFAULT, error_offset=int(holes[0, 0]) << inode.order << 12)
    return Result(0, 0, {"pinned_pages": 0})


def iommu_unmap(system: System, operation: sc.IommuUnmap) -> Result:
    """IOMMU_IOAS_UNMAP; today it drops the pins. ENOENT if part of the range is not mapped."""

    found = system._convertible(operation)
    if found is None:
        return failed(errno.EBADF)
    conversions, inode = found
    offset, length = _span(operation, inode)
    if _bad_range(offset, length, inode):
        return failed(errno.EINVAL)
    if system.scenario.guest.design == "pfn-range":
        return Result()
    result = conversions.unpin(sc.Unpin(file=operation.file, offset=offset, length=length), inode)
    return failed(errno.ENOENT, **result.detail) if result.errno == errno.EINVAL else result


def kexec(system: System, operation: sc.Kexec) -> Result:
    """Hand every guest_memfd over a kexec. Refused with a reason if one of them cannot be preserved.

    Placement, policies and state are the same afterwards. ``detail`` has the size of the metadata.
    """

    guest = system.scenario.guest
    detail: dict[str, Any] = {"files": 0, "metadata_bytes": 0, "policy_bytes": 0}
    inodes = {id(file.inode): file.inode for file in system.files.values() if file.inode.kind == "guest_memfd"}
    for inode in inodes.values():
        file = None if system.conversions is None else system.conversions.of(inode)
        if guest.confidential == "tdx":
            return failed(errno.EOPNOTSUPP, reason="memory of a TD belongs to the TDX module, which does not survive")
        if guest.design != "pfn-range" and inode.order:
            return failed(errno.EOPNOTSUPP, reason="the preservation series handles files of 4 KiB folios")
        if file is not None and int(file.state.reference_total[:, 0].sum()):
            return failed(errno.EBUSY, reason="pages are pinned by another user")
        if file is not None and int(file.state.counts[_POISONED]):
            return failed(handover.EHWPOISON, reason="a page is poisoned")
        folios = inode.pages >> inode.order
        absent = inode.map.absent(0, folios)
        present = folios - int((absent[:, 1] - absent[:, 0]).sum()) if len(absent) else folios
        if guest.design == "pfn-range":
            metadata = 24 * max(1, len(inode.map.runs)) if present else 0
        else:
            metadata = sum(kho.folio_scheme_bytes(present, kho.dense_tree_nodes(present)).values()) if present else 0
        ranges = [
            handover.PolicyRange(
                start, end, policy.mode, 0, tuple(int(n) for n in system.node_ids[system.mask(policy.nodes)])
            )
            for start, end, policy in inode.shared_policy
        ]
        detail["files"] += 1
        detail["metadata_bytes"] += metadata
        detail["policy_bytes"] += len(handover._pack_policy(ranges))
    return Result(0, 0, detail)


def _poisoned_counter() -> int:
    from kernels import folio

    return int(np.flatnonzero(np.array(folio.COUNTERS) == "poisoned_pages")[0])


_POISONED = _poisoned_counter()

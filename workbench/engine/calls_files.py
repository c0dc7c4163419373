"""Calls that make, map and unmap files, and that add and free their pages.

Linux: ``virt/kvm/guest_memfd.c`` (``kvm_gmem_create``, ``kvm_gmem_mmap``, ``kvm_gmem_fallocate``), ``mm/memfd.c``.
"""

from __future__ import annotations

import errno
from typing import Any

from workbench import profiles
from workbench import scenario as sc
from workbench.engine import attributes, calls_conversion
from workbench.engine.calls_mempolicy import policy_of
from workbench.engine.filemap import FileMap
from workbench.engine.mappings import Mapping
from workbench.engine.objects import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    Inode,
    OpenFile,
    Result,
    allocated,
    failed,
)
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.tracking.generations import GENERATIONS
from workbench.units import PAGE_SIZE

FALLOC_FL_KEEP_SIZE = 1
_MAX_LFS_FILESIZE = (1 << 63) - 1

FROZEN = "the file is in a live-update session, which freezes it"


def create(system: System, operation: sc.Create) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_create; then mmap if the file has the flag.

    Up to 6.17: flags 0 only (EINVAL). From 6.18 on: MMAP, and INIT_SHARED for types without private memory. From 7.4 on:
    INIT_SHARED for every type while pages convert in place. Huge pages: in no released kernel (posted series).
    """
    size = system.scenario.guest.memory if operation.size is None else operation.size
    flags = flags_word(system.scenario, operation)
    order = system.order if operation.page_size is None else 0
    if order != system.order and system.conversions is not None:
        raise WorkbenchError(
            f"operations.create.page_size: {operation.file!r} is tracked page by page, which is done in guest.page_size alone"
        )
    detail = {"mmap_errno": 0} if flags & GUEST_MEMFD_FLAG_MMAP else {}
    known = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
    if flags & ~known or size <= 0 or size % (PAGE_SIZE << order):
        return failed(errno.EINVAL, **detail)
    kernel = system.scenario.kernel
    if flags and not kernel.maps:
        return failed(errno.EINVAL, reason=f"mapping and init_shared: not on {kernel.name}; from 6.18 on", **detail)
    if order and not kernel.huge_pages:
        places = profiles.having(profiles.with_huge_pages())
        return failed(errno.EINVAL, reason=f"huge pages: not on {kernel.name}; on {places}", **detail)
    if flags & GUEST_MEMFD_FLAG_INIT_SHARED and not system.scenario.init_shared_allowed:
        places = profiles.having(profiles.with_private_init_shared())
        reason = f"init_shared: not for VM type {system.scenario.guest.vm_type} on {kernel.name}; in place on {places}"
        return failed(errno.EINVAL, reason=reason, **detail)
    if flags & GUEST_MEMFD_FLAG_INIT_SHARED and not _huge_pages_start_shared(system, operation, order):
        places = profiles.having(
            made for made in profiles.with_huge_pages() if GENERATIONS[made.generation].shared_huge_files
        )
        return failed(errno.EINVAL, reason=f"init_shared: not with huge pages on {kernel.name}; on {places}", **detail)
    policy, error = policy_of(system, operation)
    if system.scenario.guest.policy_interface == "create" and error:
        return failed(error)
    inode = Inode(operation.file, size // PAGE_SIZE, "guest_memfd", flags, order)
    inode.migratable = kernel.migratable and not system.scenario.guest.private_memory and not order
    if order and system.scenario.guest.small_pages:
        inode.small = FileMap()
    elif order and system.hugetlb and not system.reserve_pool(inode):
        return failed(errno.ENOMEM, **detail)
    if system.scenario.guest.policy_interface == "create" and policy is not None:
        inode.shared_policy.set(0, inode.pages, policy)
    if system.conversions is not None and inode.pages:
        system.conversions.add(inode)
    opened = _open(system, operation.file, inode, mapped=bool(flags & GUEST_MEMFD_FLAG_MMAP), **detail)
    if attributes.wanted(system.scenario):
        system.give_attributes(inode, attributes.Attributes())
        backend = attributes.backend_name(operation.file)
        memfd(system, sc.Memfd(file=backend, size=size))
        inode.give_backend(system.files[backend].inode)
    return opened


def flags_word(scenario: sc.Scenario, operation: sc.Create) -> int:
    """The flags word: as given, or what the VMM of the scenario asks for."""
    if operation.raw_flags is not None:
        return operation.raw_flags
    names: tuple[str, ...] | None = operation.flags
    if names is None:
        vmm = profiles.VMM_PROFILES[scenario.guest.vmm_profile or "own"]
        names = (vmm.private_flags if scenario.guest.private_memory else vmm.ordinary_flags) or ()
        if not scenario.kernel.maps or attributes.wanted(scenario):
            names = ()  # a file that can be mapped would serve shared accesses too, and the second backend none
    words = {"mmap": GUEST_MEMFD_FLAG_MMAP, "init_shared": GUEST_MEMFD_FLAG_INIT_SHARED}
    return sum(words[name] for name in dict.fromkeys(names or ()))


def _huge_pages_start_shared(system: System, operation: sc.Create, order: int) -> bool:
    """Whether HUGETLB goes with INIT_SHARED: in generation C for no VM type, who asks for both is refused.

    What no kernel has starts shared: 4 KiB pages in place of huge ones, and the file that an ordinary VM gets when flags are
    left out (assumed), of which a host that may not touch it could ask nothing.
    """
    guest = system.scenario.guest
    huge = order > 0 and system.hugetlb
    asked = operation.flags is not None or operation.raw_flags is not None
    return system.rules.shared_huge_files or not huge or guest.small_pages or not (guest.private_memory or asked)


def memfd(system: System, operation: sc.Memfd) -> Result:
    """memfd_create: a tmpfs inode, whose interleave index is shifted by its inode number.

    With MFD_HUGETLB (fs/hugetlbfs/inode.c) a file of the pools: whole huge pages, all promised when it is mapped, and an
    interleave index that counts huge pages from the start of its mapping (mm/hugetlb.c: dequeue_hugetlb_folio_vma). Anonymous
    memory (mm/mempolicy.c: get_vma_policy) has an index that counts from its address, taken as 0 (modelled); under ``design:
    thp`` it comes in huge folios of the zones (mm/huge_memory.c: vma_alloc_anon_folio_pmd), CMA and ZONE_MOVABLE included, and in
    4 KiB ones where none is left.
    """
    if operation.anonymous:
        return _anonymous(system, operation)
    system.memfds += 1
    number = system.memfds if operation.inode is None else operation.inode
    inode = Inode(operation.file, -(-operation.size // PAGE_SIZE), "memfd", ilx_base=number)
    if operation.hugetlb:
        if not system.hugetlb:
            raise WorkbenchError(
                f"operations.memfd.hugetlb: {operation.file!r} has pages of guest.page_size out of a pool; "
                f"guest.page_size is {system.scenario.guest.page_size}, guest.design {system.scenario.guest.design!r}"
            )
        if inode.pages % (1 << system.order):
            return failed(errno.EINVAL)
        inode = Inode(operation.file, inode.pages, "memfd", order=system.order)
        if not system.reserve_pool(inode):
            return failed(errno.ENOMEM)
    return _open(system, operation.file, inode, mapped=True)


def _anonymous(system: System, operation: sc.Memfd) -> Result:
    """mmap(MAP_PRIVATE | MAP_ANONYMOUS): a mapping and nothing else. Its huge pages keep a PTE table each (pgtable_deposit)."""
    order = system.order if system.design.from_zones else 0
    pages = -(-operation.size // PAGE_SIZE)
    if pages % (1 << order):
        raise WorkbenchError(
            f"operations.memfd.size: {operation.file!r}: {operation.size} bytes are not whole pages of "
            f"{system.scenario.guest.page_size}, in which design {system.design.name!r} gives it"
        )
    inode = Inode(operation.file, pages, "memfd", order=order, anonymous=True)
    if order:
        inode.small = FileMap()
    mapping = Mapping(pages) if pages else None
    if mapping is not None:
        inode.mappings.append(mapping)
    if system.free_pfns is not None:
        inode.pfns = system.free_pfns.new_file()
    system.open_as(operation.file, OpenFile(inode, None, mapping))
    return Result()


def _open(system: System, name: str, inode: Inode, mapped: bool, **detail: Any) -> Result:
    if system.free_pfns is not None:
        inode.pfns = system.free_pfns.new_file()
    leaf = inode.order if inode.kind == "memfd" else 0
    mapping = Mapping(inode.pages, leaf=leaf) if mapped and inode.pages else None
    if mapping is not None:
        inode.mappings.append(mapping)
    descriptor = system.new_descriptor()
    system.open_as(name, OpenFile(inode, descriptor, mapping))
    return Result(descriptor, 0, detail)


def alias(system: System, operation: sc.Alias) -> Result:
    source = system.files.get(operation.of)
    if source is None or source.descriptor is None:
        return failed(errno.EBADF)
    if source.inode.kind == "guest_memfd" and not source.inode.flags & GUEST_MEMFD_FLAG_MMAP:
        return failed(errno.ENODEV)
    mapping = Mapping(source.inode.pages, leaf=source.inode.order if source.inode.kind == "memfd" else 0)
    source.inode.mappings.append(mapping)
    system.open_as(operation.file, OpenFile(source.inode, system.new_descriptor(), mapping))
    return Result()


def pass_fd(system: System, operation: sc.PassFd) -> Result:
    """net/core/scm.c: scm_detach_fds: the lowest free descriptor of the receiver, and no mapping."""
    source = system.files.get(operation.of)
    if source is None or source.descriptor is None:
        return failed(errno.EBADF)
    descriptor = system.new_descriptor(operation.process)
    system.open_as(operation.file, OpenFile(source.inode, descriptor, None, operation.process))
    return Result(descriptor)


def mmap(system: System, operation: sc.Mmap) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_mmap."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    if file.inode.kind == "guest_memfd":
        if not file.inode.flags & GUEST_MEMFD_FLAG_MMAP:
            return failed(errno.ENODEV)
        if operation.private:
            return failed(errno.EINVAL)
    mapping = Mapping(file.inode.pages)
    file.inode.mappings.append(mapping)
    if file.mapping is None:
        file.mapping = mapping
    return Result()


def munmap(system: System, operation: sc.Munmap) -> Result:
    """The file dies with its last mapping if no descriptor is left.

    Linux: mm/vma.c: do_vmi_munmap takes an address: each mmap made a VMA of its own, and a scenario's file is one of them.
    """
    file = system.files.get(operation.file)
    if file is None:
        return Result()
    leaving = [file.mapping] if file.mapping is not None else []
    if operation.unnamed:
        named = [other.mapping for other in system.files.values() if other.inode is file.inode]
        leaving += [mapping for mapping in file.inode.mappings if mapping not in named]
    for mapping in leaving:
        file.inode.mappings.remove(mapping)
        if system.metadata is not None:
            system.metadata.unmapped(mapping)
    file.mapping = None
    if leaving and file.descriptor is None:
        put(system, file.inode)
    return Result()


def put(system: System, inode: Inode) -> None:
    """Drop a reference; without any descriptor and mapping the inode dies, unless a live-update session has it.

    kernel/liveupdate/luo_file.c: luo_preserve_file (fget) in the kernel before, luo_retrieve_file (get_file) in the next.
    """
    held = (*system.session.values(), *system.handed_over.values())
    if not inode.mappings and not inode.descriptors and inode not in held:
        system.free_inode(inode)


def close(system: System, operation: sc.Close) -> Result:
    """The last descriptor and mapping gone, the inode dies and its pages are freed."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    if operation.unmap:
        munmap(system, sc.Munmap(file=operation.file))
    system.close_descriptor(file)
    put(system, file.inode)
    return Result()


def _outside(offset: int, length: int) -> int:
    """fs/open.c: vfs_fallocate: errno of a range that is no range of a file; 0 if it is one."""
    if length <= 0 or max(offset, length) > _MAX_LFS_FILESIZE:
        return errno.EINVAL
    return errno.EFBIG if offset + length > _MAX_LFS_FILESIZE else 0


def fallocate(system: System, operation: sc.Fallocate) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_fallocate, kvm_gmem_allocate; mm/shmem.c: shmem_fallocate.

    tmpfs grows instead of refusing; with KEEP_SIZE the pages lie beyond its end.
    """
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    inode = file.inode
    gmem = inode.kind == "guest_memfd"
    mode = operation.mode
    if mode is None:
        mode = FALLOC_FL_KEEP_SIZE if gmem else 0
    length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
    if error := _outside(operation.offset, length):
        return failed(error)
    if gmem:
        if mode != FALLOC_FL_KEEP_SIZE:
            return failed(errno.EOPNOTSUPP)
        rounded = inode.order > 0 and system.rules.fallocate_rounds_down
        size = PAGE_SIZE << (0 if rounded else inode.order)
        if operation.offset % size or length % size:
            return failed(errno.EINVAL)
        if operation.offset + length > inode.pages * PAGE_SIZE:
            return failed(errno.EINVAL)
    elif mode not in (0, FALLOC_FL_KEEP_SIZE):
        return failed(errno.EOPNOTSUPP)
    if inode.frozen:
        return failed(errno.EPERM, reason=FROZEN)
    start, end = operation.offset // PAGE_SIZE, -(-(operation.offset + length) // PAGE_SIZE)
    if gmem and rounded:
        start, end = start >> inode.order << inode.order, end >> inode.order << inode.order
        if start == end:
            return Result()
    complete = system.touch(system.task(operation), inode, start, end)
    if not gmem and mode != FALLOC_FL_KEEP_SIZE:
        inode.pages = max(inode.pages, end)
    return allocated(complete)


def punch_hole(system: System, operation: sc.PunchHole) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_punch_hole."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    inode = file.inode
    length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
    if error := _outside(operation.offset, length):
        return failed(error)
    if inode.frozen:
        return failed(errno.EPERM, reason=FROZEN)
    if inode.tracked is not None:
        if system.scenario.conversion_mode == "out-of-place" and (operation.offset | length) % PAGE_SIZE == 0:
            note_hole(inode, operation.offset // PAGE_SIZE, (operation.offset + length) // PAGE_SIZE)
        return calls_conversion.punch_hole(system, inode, operation.offset, length)
    size = PAGE_SIZE << inode.order
    if inode.kind == "guest_memfd" and (operation.offset % size or length % size):
        return failed(errno.EINVAL)
    punch(system, inode, -(-operation.offset // PAGE_SIZE), (operation.offset + length) // PAGE_SIZE)
    return Result()


def read(system: System, operation: sc.Read) -> Result:
    """fs/read_write.c: vfs_read, ksys_pread64: a guest_memfd has no read_iter (EINVAL) and no position (ESPIPE)."""
    return _without_bytes(system, operation)


def write(system: System, operation: sc.Write) -> Result:
    """fs/read_write.c: vfs_write, ksys_pwrite64: as :func:`read`."""
    return _without_bytes(system, operation)


def _without_bytes(system: System, operation: sc.Read | sc.Write) -> Result:
    if operation.at is not None and operation.at > _MAX_LFS_FILESIZE:
        return failed(errno.EINVAL)
    if _guest_memfd(system, operation) is None:
        return failed(errno.EBADF)
    return failed(errno.EINVAL if operation.at is None else errno.ESPIPE)


def fstat(system: System, operation: sc.Fstat) -> Result:
    """fs/stat.c: generic_fillattr: i_size, and of 4 KiB pages the block size of the superblock.

    Not here: st_blocks and st_ino, and the block size where pages are huge, of which no recording tells.
    """
    inode = _guest_memfd(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    block = {} if inode.order else {"blksize": PAGE_SIZE}
    return Result(0, 0, {"size": inode.pages * PAGE_SIZE, **block})


def _guest_memfd(system: System, operation: sc.Read | sc.Write | sc.Fstat) -> Inode | None:
    """The guest_memfd that a descriptor is of; None: it is closed. Bytes and sizes of memfds are not kept."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return None
    if file.inode.kind != "guest_memfd":
        raise WorkbenchError(f"operations.{operation.op}.file: {operation.file!r} is a memfd; must be a guest_memfd")
    return file.inode


def note_hole(inode: Inode, start: int, end: int) -> None:
    """Before pages [start, end) are freed: what is private of them is to be faulted in again."""
    if inode.attributes is not None:
        inode.attributes.note_hole(inode.map, inode.order, start, end)


def punch(system: System, inode: Inode, start: int, end: int) -> None:
    """Free whole folios of pages [start, end) and take them out of every page table."""
    if end <= start:
        return
    note_hole(inode, start, end)
    if inode.tracked is not None:
        calls_conversion.punch_hole(system, inode, start * PAGE_SIZE, (end - start) * PAGE_SIZE)
        return
    # Of folios that lie in the range in part nothing is freed (fs/hugetlbfs/inode.c: hugetlbfs_punch_hole).
    system.erase(inode, -(-start >> inode.order), max(-(-start >> inode.order), end >> inode.order))
    for mapping in inode.mappings:
        mapping.zap(start, end)

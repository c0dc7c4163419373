"""Calls and accesses that fault pages in, and advice about mapped ranges.

Linux: ``virt/kvm/guest_memfd.c`` (``kvm_gmem_fault_user_mapping``, ``kvm_gmem_get_pfn``), ``mm/madvise.c``.
"""

from __future__ import annotations

import errno

import numpy as np

from workbench import scenario as sc
from workbench.engine import bulk_conversions, calls_conversion
from workbench.engine.calls_files import FROZEN, punch
from workbench.engine.generators import in_turns, shared_turns
from workbench.engine.objects import GUEST_MEMFD_FLAG_MMAP, Inode, OpenFile, Result, allocated, failed
from workbench.engine.placing import Turns, check_listed
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.intervals import in_intervals
from workbench.kernels.folios import run as folio
from workbench.units import PAGE_SIZE

MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED = 4, 9, 22, 23, 24
_MADV_MARKS_ONLY = {*range(4), *range(10, 18), 19, 20, 21}
_MADV_NOT_FOR_FILES = {8, 18}  # FREE and WIPEONFORK: refused once a mapping is found
KVM_EXIT_HLT, KVM_EXIT_MMIO, KVM_EXIT_MEMORY_FAULT = 5, 6, 39


def fault(system: System, operation: sc.Fault) -> Result:
    """Touch pages through the host mapping or as the guest."""
    file = system.files.get(operation.file)
    pages = file.inode.pages if file else 0
    start = operation.offset // PAGE_SIZE
    count = max(0, pages - start) if operation.length is None else operation.length // PAGE_SIZE
    if count == 1 and operation.order != "sequential":  # there is but one
        operation = operation.model_copy(update={"order": "sequential"})
    if file is not None and file.inode.frozen and file.inode.kind == "guest_memfd":
        return _fault_frozen(system, operation, file, start, count)
    if operation.by == "host":
        return _host_fault(system, operation, file, start, count)
    return _guest_fault(system, operation, file, start, count)


def _fault_frozen(system: System, operation: sc.Fault, file: OpenFile, start: int, count: int) -> Result:
    """Nothing new comes into a file of a live-update session: EPERM for the guest, SIGBUS for the host; what is there is."""
    end = max(start, min(start + count, file.inode.pages))
    holes = file.inode.map.absent(start, end)
    if operation.by == "host" and len(holes):
        parts = np.column_stack((np.append(start, holes[:, 1]), np.append(holes[:, 0], end)))
        good = 0
        for low, high in parts[parts[:, 0] < parts[:, 1]].tolist():
            good += _host_fault(system, operation, file, low, high - low).ret
        check_listed(end - start, "fault")
        order = start + system.touch_order(operation, count)
        absent = in_intervals(order, holes) | (order >= file.inode.pages)
        return Result(good, 0, {"bad": count - good, "first": int(order[absent][0])})
    if operation.by == "host":
        return _host_fault(system, operation, file, start, count)
    if not len(holes):
        return _guest_fault(system, operation, file, start, count)
    done = int(holes[0, 0]) - start
    if done:
        before = _guest_fault(system, operation, file, start, done)
        if before.errno:
            return before
    left = {"left": count - done} if operation.by == "prefault" else {"done": done}
    return failed(errno.EPERM, reason=FROZEN, **left)


def _host_fault(system: System, operation: sc.Fault, file: OpenFile | None, start: int, count: int) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_fault_user_mapping. Pages that raise a signal are counted as bad."""
    if file is not None and file.inode.tracked is not None:
        return calls_conversion.host_fault(system, operation, file, start, count)
    inside = 0
    if file is not None and host_reaches(file):
        assert file.mapping is not None
        # What the mapping does not reach raises SIGSEGV, what is beyond the end of the file SIGBUS.
        inside = max(0, min(count, min(file.inode.pages, file.mapping.pages) - start))
    first = start + _first_from(system, operation, inside, count) if inside < count else -1
    if inside:
        assert file is not None and file.mapping is not None
        walk = system.host_walk(file.mapping)
        if not system.touch(system.task(operation), file.inode, start, start + inside, operation, walk):
            return failed(errno.ENOMEM, bad=count, first=start)
        file.mapping.map(start, start + inside)
    return _host_result(inside, count, first)


def host_reaches(file: OpenFile) -> bool:
    """Whether the host reaches any page of a file: it has it mapped, and not all of it is private for life."""
    return file.mapping is not None and (file.inode.tracked is not None or not file.inode.private)


def touched(operation: sc.Fault, count: int) -> Result:
    """What a fault returns whose pages are all in the file and found memory."""
    return _host_result(count, count, -1) if operation.by == "host" else _guest_result(operation, count, count)


def _host_result(inside: int, count: int, first: int) -> Result:
    return Result(inside, 0, {"bad": count - inside, "first": first})


def _guest_result(operation: sc.Fault, inside: int, count: int) -> Result:
    if operation.by == "prefault":
        # kvm_vcpu_pre_fault_memory: partial progress is success, with what is left.
        return Result(0, 0, {"left": count - inside}) if inside or not count else failed(errno.ENOENT, left=count)
    return Result(0, 0, {"done": inside, "exit": KVM_EXIT_HLT if inside == count else KVM_EXIT_MMIO})


def _first_from(system: System, operation: sc.Fault, inside: int, count: int) -> int:
    """Which of pages [inside, count) is touched first, when [0, count) are in the operation's order."""
    if operation.order == "sequential":
        return inside
    if operation.order == "reverse":
        return count - 1
    if operation.order == "strided":  # the first pass reaches every multiple of the stride
        multiple = -(-inside // operation.stride) * operation.stride
        return multiple if multiple < count else inside
    order = system.touch_order(operation, count)
    return int(order[order >= inside][0])


def _guest_fault(system: System, operation: sc.Fault, file: OpenFile | None, start: int, count: int) -> Result:
    """KVM_RUN or KVM_PRE_FAULT_MEMORY: the calling thread's CPU, policy and rotation count."""
    refused = _refused_to_guest(system, operation.by, file, start, count)
    if refused is not None:
        return refused
    assert file is not None
    inode = file.inode
    inside = _inside(file, start, count)
    complete = not inside or _touch_as_guest(system, operation, inode, start, start + inside)
    if inode.tracked is not None:
        error = calls_conversion.guest_fault(system, inode, start, start + inside)
        if error is not None:
            return error
    if not complete:
        return failed(errno.ENOMEM)
    if inode.kind == "memfd" and file.mapping is not None:
        # virt/kvm/kvm_main.c: hva_to_pfn: the page is faulted in through the mapping, whose tables it needs as well.
        system.enter_host_tables(system.task(operation), file.mapping, start, start + inside)
        file.mapping.map(start, start + inside)
    return _guest_result(operation, inside, count)


def _inside(file: OpenFile, start: int, count: int) -> int:
    """How many pages from ``start`` on the guest can reach."""
    inode = file.inode
    end = inode.pages if file.mapping is None or inode.kind == "guest_memfd" else min(inode.pages, file.mapping.pages)
    return max(0, min(count, end - start))


def _refused_to_guest(system: System, by: str, file: OpenFile | None, start: int, count: int) -> Result | None:
    """Why a guest cannot touch a range of a file; None: it can.

    Up to 6.17 only VMs with private memory have a memslot to run in; from 6.18 on every VM may.
    """
    gmem = file is None or file.inode.kind == "guest_memfd"
    nothing = {"left": 0} if by == "prefault" else {"done": 0}
    if gmem and not (system.scenario.kernel.maps or system.scenario.guest.private_memory):
        # There is no memslot to run in: KVM_SET_USER_MEMORY_REGION2 refuses KVM_MEM_GUEST_MEMFD for such a VM.
        return failed(errno.EINVAL, reason=calls_conversion.without_slot(system), **nothing)
    if file is None or (file.descriptor is None and not file.inode.anonymous):
        return failed(errno.EBADF, **nothing)
    inode = file.inode
    if file.process and inode.kind == "guest_memfd":
        # virt/kvm/guest_memfd.c: kvm_gmem_bind: a memslot takes only a file of its own VM.
        return failed(
            errno.EINVAL, reason="a guest_memfd belongs to the VM that made it; another process can only map it"
        )
    if not system.vcpu_open:
        system.vcpu_open = True
        system.new_descriptor()  # KVM_CREATE_VCPU returns one too
    inside = _inside(file, start, count)
    if inode.kind == "guest_memfd":
        # a memslot of a file made with MMAP is of guest_memfd alone; another has only private pages from it
        shared_too = inode.attributes is not None and (inode.backend is not None or inode.attributes.elsewhere)
        mapped = bool(inode.flags & GUEST_MEMFD_FLAG_MMAP)
        reachable = mapped or shared_too or system.scenario.guest.private_memory
    else:
        reachable = file.mapping is not None
    states = inode.attributes
    if (
        states is not None
        and inode.kind == "guest_memfd"
        and inode.backend is None
        and not (states.elsewhere or inode.flags & GUEST_MEMFD_FLAG_MMAP)
    ):
        reachable &= not len(states.shared_parts(start, start + inside))  # nothing backs what is shared
    if states is not None and inode.kind == "memfd" and len(states.private_parts(start, start + inside)):
        return failed(errno.EFAULT, done=0, exit=KVM_EXIT_MEMORY_FAULT)  # a slot without a guest_memfd
    if not reachable:
        return failed(errno.EFAULT, **({"left": count} if by == "prefault" else {"done": 0}))
    return None


def _touch_as_guest(system: System, operation: sc.Fault, inode: Inode, start: int, end: int) -> bool:
    """arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn: the attribute of the gfn says which backend has the page.

    A memslot whose guest_memfd was made with MMAP is of guest_memfd alone (KVM_MEMSLOT_GMEM_ONLY): shared pages come from
    there as well.
    """
    task, attributes, backend = system.task(operation), inode.attributes, inode.backend
    walk = system.guest_walk(inode)
    if attributes is None or inode.kind != "guest_memfd":
        return system.touch(task, inode, start, end, operation, walk)
    parts = [(start, end, False)] if inode.flags & GUEST_MEMFD_FLAG_MMAP else attributes.states(start, end)
    if not any(shared for _, _, shared in parts):
        complete = system.touch(task, inode, start, end, operation, walk)
        attributes.note_fault(start, end)
        return complete
    if end - start > 1 and system.metadata is None and operation.order == "sequential":
        row = np.array([[folio.GUEST_FAULT, start * PAGE_SIZE, (end - start) * PAGE_SIZE, 0, 0, 0]], np.int64)
        if bulk_conversions.possible(system, inode, row):
            row[0, folio.CPU] = list(system.tasks.values()).index(task)
            together = bulk_conversions.BulkConversions(system, inode)
            try:
                together.run(row)
            finally:
                together.settle()
            return True
    for low, high, shared in parts:
        source = backend if shared else inode
        if source is not None and not system.touch(task, source, low, high, operation, walk):
            return False
        if not shared:
            attributes.note_fault(low, high)
    return True


def first_touch(system: System, operation: sc.FirstTouch) -> Result:
    """Generator: vCPUs take turns (shares one after another are expanded into faults before the run)."""
    file = system.files.get(operation.file)
    if file is None:
        return failed(errno.EBADF)
    inode = file.inode
    start, end = system.pages(operation, inode.pages)
    if operation.by != "host":
        refused = _refused_to_guest(system, operation.by, file, start, end - start)
        if refused is not None:
            return refused
        end = start + _inside(file, start, end - start)
    if inode.frozen and inode.kind == "guest_memfd" and len(inode.map.absent(start, end)):
        return failed(errno.EPERM, reason=FROZEN)
    first, last = start >> inode.order, min(-(-end >> inode.order), inode.pages >> inode.order)
    if inode.attributes is not None and len(inode.attributes.shared_parts(start, end)):
        raise WorkbenchError(
            "first_touch: by turns it cannot touch memory that was converted out of place; use turn: 0"
        )
    if operation.by == "host" and not calls_conversion.host_reaches(file, start, end):
        raise WorkbenchError("first_touch: by turns the host cannot touch what is private or not mapped; use turn: 0")

    def turns() -> Turns:
        tasks = np.array([system.tasks[name].index for name in system.vcpus])
        chunks = in_turns if not operation.shared else shared_turns
        for folios, turn_of in chunks(first, last, len(tasks), operation.turn):
            yield folios, tasks[turn_of]

    walk = system.host_walk(file.mapping) if operation.by == "host" else system.guest_walk(inode)
    complete = system.touch_in_turns(inode, first, last, turns, walk)
    if inode.attributes is not None and inode.kind == "guest_memfd":
        inode.attributes.note_fault(start, end)
    if operation.by != "host" and inode.kind == "memfd" and file.mapping is not None:
        system.enter_host_tables(system.task(operation), file.mapping, start, end)
    if complete and inode.tracked is not None:
        return calls_conversion.touched(system, operation, file, start, end)
    if file.mapping is not None and (operation.by == "host" or inode.kind == "memfd"):
        file.mapping.map(start, end)
    return allocated(complete)


def madvise(system: System, operation: sc.Madvise) -> Result:
    """mm/madvise.c for the advice that reaches the file's pages; other advice only marks the VMA."""
    file = system.files.get(operation.file)
    acts = {MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED}
    known = acts | _MADV_MARKS_ONLY | _MADV_NOT_FOR_FILES
    if operation.offset % PAGE_SIZE or operation.advice not in known:
        return failed(errno.EINVAL)
    start, end = system.pages(operation, file.inode.pages if file else 0)
    if start == end:
        return Result()
    if file is None or file.mapping is None or start >= file.mapping.pages:
        return failed(errno.ENOMEM)
    if operation.advice in _MADV_NOT_FOR_FILES:
        return failed(errno.EINVAL)
    inside = min(end, file.mapping.pages)
    if operation.advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        if (
            file.inode.anonymous
        ):  # of a huge page that is only in part in the range the rest stays, and so does its memory
            punch(system, file.inode, start, inside)
        file.mapping.zap(start, inside)
        if system.metadata is not None:
            system.metadata.advised_away(file.mapping, start, inside)
    elif operation.advice == MADV_REMOVE:
        if file.inode.anonymous:
            return failed(errno.EINVAL)
        punch(system, file.inode, start, inside)
    elif operation.advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        if file.inode.tracked is not None:
            found = calls_conversion.populate(system, operation, file, start, inside)
            return failed(errno.ENOMEM) if not found.errno and inside < end else found
        if file.inode.private:
            return failed(errno.EFAULT)
        walk = system.host_walk(file.mapping)
        if not system.touch(system.task(operation), file.inode, start, inside, walk=walk):
            return failed(errno.ENOMEM)
        file.mapping.map(start, inside)
    return Result() if inside == end else failed(errno.ENOMEM)

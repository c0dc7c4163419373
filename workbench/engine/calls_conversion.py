"""Calls on files whose pages change sides between private and shared: convert, pin, poison, and faults and holes there.

Proposed in-place conversion; not in Linux 7.3. The tracked file (:mod:`workbench.tracking.tracked_file`) does the work and knows
the rules; here its answers become results, and what it takes and gives back is entered in the engine's memory.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench import profiles
from workbench import scenario as sc
from workbench.engine import khugepaged
from workbench.engine.attributes import Attributes
from workbench.engine.attributes import wanted as two_backends
from workbench.engine.conversions import Conversions
from workbench.engine.mappings import Mapping
from workbench.engine.objects import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    Inode,
    OpenFile,
    Result,
    failed,
)
from workbench.engine.placing import check_listed
from workbench.engine.runs import PageSet
from workbench.engine.system import System
from workbench.errnos import EHWPOISON
from workbench.intervals import Int64s, ranges_text, set_intervals, true_intervals
from workbench.kernels.folios import run as folio
from workbench.limits import FILE_BYTES
from workbench.tracking.tracked_file import Outcome, TrackedFile
from workbench.units import PAGE_SIZE

_FAR = 1 << 60
"""Bytes: beyond any file."""

_MERGES = [folio.COUNTERS.index(name) for name in ("merges_2m", "merges_1g")]

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3


def tracked_inode(system: System, operation: Any, *, closed: bool = False) -> Inode | None:
    """The guest_memfd that an operation names, if it is tracked and open (or, with ``closed``, still has pinned pages)."""
    file = system.files.get(operation.file)
    if file is None or (file.descriptor is None and not closed) or file.inode.tracked is None:
        return None
    return file.inode


def _tracking(system: System, inode: Inode) -> tuple[Conversions, TrackedFile]:
    """The memory that tracked files take from and give to, and the one of this inode, which is known to have one."""
    assert system.conversions is not None and inode.tracked is not None
    return system.conversions, inode.tracked


def converts(scenario: sc.Scenario) -> bool:
    """Whether any file of a run can be converted: the kernel has the call, and there is private memory."""
    if scenario.conversion_mode not in scenario.kernel.conversion:
        return False
    if scenario.conversion_mode == "out-of-place":  # a file that has two backends
        return two_backends(scenario) or sc.Memslot in scenario.kinds
    return scenario.guest.private_memory


def convert(system: System, operation: sc.Convert) -> Result:
    """virt/kvm/guest_memfd.c: kvm_gmem_set_attributes (series for 7.4): the tracked file does it all.

    From 7.4 on. Before: ENOTTY, the file has no such ioctl. EINVAL for a VM whose type has no private memory.
    """
    scenario = system.scenario
    if scenario.conversion_mode == "out-of-place":
        return _convert_out_of_place(system, operation)
    inode = tracked_inode(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    if "in-place" not in scenario.kernel.conversion:
        places = profiles.having(profiles.with_in_place_conversion())
        return failed(errno.ENOTTY, reason=f"conversion in place: not on {scenario.kernel.name}; on {places}")
    if not scenario.guest.private_memory:
        return failed(errno.EINVAL, reason=profiles.without_private_memory(scenario.guest.vm_type))
    _, file = _tracking(system, inode)
    offset, length = byte_span(operation, inode)
    first, last = min(offset // PAGE_SIZE, inode.pages), min(-(-(offset + length) // PAGE_SIZE), inode.pages)
    users, to_shared = inode.users, operation.to == "shared"
    mappings = [] if to_shared else [mapping for mapping in inode.mappings if not mapping.empty]
    shared = file.in_state(first, last, True) if mappings else []
    losing = None if users is None else users.differing(first, last, to_shared)
    before = None if to_shared else file.uptodate_words(first, last)
    outcome = file.convert(offset, length, operation.to)
    if users is not None and losing is not None and outcome.errno != errno.EINVAL:
        users.converted(losing, outcome)
    if mappings and outcome.errno in (0, errno.EAGAIN):
        end = _unmapped_to(system, inode, offset + length, outcome, shared)
        for low, high in shared:
            for mapping in mappings:
                mapping.zap(low, min(high, end))
    return result_of(outcome, **_content_lost(file, first, last, before))


def _content_lost(file: TrackedFile, first: int, last: int, before: npt.NDArray[np.uint64] | None) -> dict[str, Any]:
    """Pages with content before a conversion that the next touch will zero, for a result's detail: none, no detail."""
    if before is None or not len(before):
        return {}
    lost = before & ~file.uptodate_words(first, last)
    if not lost.any():
        return {}
    start = file.first_word(first) << 6
    ranges = set_intervals(lost, len(lost) << 6) + start
    return {"content_lost_pages": int(np.bitwise_count(lost).sum()), "content_lost": ranges_text(ranges)}


def _unmapped_to(system: System, inode: Inode, end: int, outcome: Outcome, shared: list[tuple[int, int]]) -> int:
    """First page that a conversion to private left in the host's page tables: it stops unmapping where it fails.

    Block by block in generation C, run by run in B, all at once with 4 KiB folios.
    """
    stop = -(-end // PAGE_SIZE)
    if outcome.offset is None or not inode.order:
        return stop
    page = outcome.offset // PAGE_SIZE
    if system.rules.kernel == "C":
        return min(stop, ((page >> inode.order) + 1) << inode.order)
    return min(stop, next(high for low, high in shared if low <= page < high))


def check_extension(system: System, operation: sc.CheckExtension) -> Result:
    """virt/kvm/kvm_main.c: kvm_vm_ioctl_check_extension_generic: 0 for what the VM has not. Recorded on 6.12 to 7.3.

    Up to 6.17 KVM_CAP_GUEST_MEMFD is for types with private memory, and its flags are no capability yet. A kernel whose
    pages change sides in place has no attributes of the VM but of the file (KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, whose number
    differs from series to series). That the hugetlb flag of posted series is among the flags, and its bit, differs, too: it is
    left out.
    """
    scenario = system.scenario
    kernel, private = scenario.kernel, scenario.guest.private_memory
    answer = 1  # KVM_PRE_FAULT_MEMORY, with two-dimensional paging
    if operation.capability == "guest_memfd":
        answer = int(kernel.maps or private)
    elif operation.capability == "guest_memfd_flags":
        shared = GUEST_MEMFD_FLAG_INIT_SHARED if scenario.init_shared_allowed else 0
        answer = GUEST_MEMFD_FLAG_MMAP | shared if kernel.maps else 0
    elif operation.capability == "memory_attributes":
        answer = KVM_MEMORY_ATTRIBUTE_PRIVATE if private and scenario.vm_attributes else 0
    elif operation.capability == "guest_memfd_memory_attributes":
        answer = KVM_MEMORY_ATTRIBUTE_PRIVATE if private and scenario.in_place else 0
    return Result(answer, 0, {"capability": operation.capability})


def create_vm(system: System, operation: sc.CreateVm) -> Result:
    """KVM_CREATE_VM: the new machine's descriptor first, then the one before is closed, which was there from the start."""
    before = system.new_descriptor() if system.vm_descriptor is None else system.vm_descriptor
    system.vm_descriptor, system.vcpu_open = system.new_descriptor(), False
    system.slots.clear()
    for inode in system.conversions.inodes if system.conversions is not None else ():
        if inode.users is not None:
            inode.users.machine_gone()
    if system.metadata is not None:
        system.metadata.new_machine()
    system.descriptors[""].give_back(before)
    return Result()


def memslot(system: System, operation: sc.Memslot) -> Result:
    """virt/kvm/kvm_main.c: kvm_set_memory_region, kvm_gmem_bind: all gfns of the slot are shared until somebody says else.

    Up to 6.17 KVM_MEM_GUEST_MEMFD is for VMs with private memory (EINVAL for others), from 6.18 on for every VM.
    """
    if not (system.scenario.kernel.maps or system.scenario.guest.private_memory):
        return failed(errno.EINVAL, reason=without_slot(system))
    file = system.files.get(operation.file)
    backend = None if operation.backend is None else system.files.get(operation.backend)
    if file is None or file.descriptor is None or (operation.backend is not None and backend is None):
        return failed(errno.EBADF)
    if file.inode.attributes is not None:
        return failed(errno.EINVAL)  # a slot that is there can only be deleted
    states = _attributes_of(system, operation.file, file.inode)
    states.elsewhere = backend is None
    system.give_attributes(file.inode, states)
    if backend is not None:
        file.inode.give_backend(backend.inode)
    return Result()


def without_slot(system: System) -> str:
    """Why there is no memslot of a guest_memfd on this kernel."""
    guest, kernel = system.scenario.guest, system.scenario.kernel
    return f"memslot of a guest_memfd: not for VM type {guest.vm_type} on {kernel.name}; from 6.18 on"


def _attributes_of(system: System, name: str, inode: Inode) -> Attributes:
    """Attributes are the VM's, by gfn: a file that takes another's place (same name, same slot) finds those that were set."""
    before = system.slots.get(name)
    shared = np.array([[0, inode.pages]], np.int64) if before is None else before.shared.intervals()
    system.slots[name] = Attributes(shared=PageSet(shared))
    return system.slots[name]


def set_memory_attributes(system: System, operation: sc.SetMemoryAttributes) -> Result:
    """virt/kvm/kvm_main.c: kvm_vm_ioctl_set_mem_attributes.

    Every released kernel that has guest_memfd (6.8 on; recorded from 6.12 on). EINVAL for attributes that the VM's type
    has not, flags, a length of 0 or what is not aligned; ENOTTY while the kernel converts in place (7.4 and posted series).
    """
    file = system.files.get(operation.file)
    if not system.scenario.vm_attributes:
        return failed(errno.ENOTTY, reason=_without_attributes(system))
    length = operation.length
    if length is None:
        length = 0 if file is None else file.inode.pages * PAGE_SIZE - operation.offset
    word = operation.raw_attributes
    if word is None:
        word = KVM_MEMORY_ATTRIBUTE_PRIVATE if operation.private else 0
    known = KVM_MEMORY_ATTRIBUTE_PRIVATE if system.scenario.guest.private_memory else 0
    if word & ~known and not known:
        return failed(errno.EINVAL, reason=profiles.without_private_memory(system.scenario.guest.vm_type))
    if word & ~known or operation.raw_flags or length <= 0 or operation.offset % PAGE_SIZE or length % PAGE_SIZE:
        return failed(errno.EINVAL)
    if file is None:
        return Result()  # gfns that nothing backs have attributes too
    inode = file.inode
    if inode.attributes is None:  # a slot without a mapping of the host
        system.give_attributes(inode, _attributes_of(system, operation.file, inode))
        assert inode.attributes is not None
    start, end = operation.offset // PAGE_SIZE, min(inode.pages, (operation.offset + length) // PAGE_SIZE)
    if inode.attributes.set_state(start, end, shared=not word):
        _unmapped_by_attributes(system, inode, start, end)
    return Result()


def _unmapped_by_attributes(system: System, inode: Inode, start: int, end: int) -> None:
    """virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes: KVM unmaps a range of which any gfn changes, and nobody else is told."""
    if inode.users is not None:
        inode.users.unmapped(start, end)


def _without_attributes(system: System) -> str:
    kernel, places = system.scenario.kernel, profiles.having(profiles.with_attributes())
    if "out-of-place" in kernel.conversion:
        return f"memory attributes of the VM: not on {kernel.name} while guest.conversion.mode is in-place; with out-of-place"
    return f"memory attributes of the VM: not on {kernel.name}; on {places}"


def _convert_out_of_place(system: System, operation: sc.Convert) -> Result:
    """What a VMM does where pages cannot change sides (:mod:`workbench.engine.attributes`); the first call is the ioctl.

    virt/kvm/kvm_main.c: kvm_vm_ioctl_set_mem_attributes: EINVAL for a type without private memory, a length of 0 or what
    is not aligned; ENOTTY where the kernel converts in place only.
    """
    scenario = system.scenario
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None or file.inode.kind != "guest_memfd":
        return failed(errno.EBADF)
    if "out-of-place" not in scenario.kernel.conversion:
        return failed(errno.ENOTTY, reason=_without_attributes(system))
    inode, attributes, backend = file.inode, file.inode.attributes, file.inode.backend
    if attributes is None or backend is None:
        return failed(errno.EINVAL, reason=profiles.without_private_memory(scenario.guest.vm_type))
    offset, length = byte_span(operation, inode)
    attributes.counts["conversions"] += 1
    if length <= 0 or offset % PAGE_SIZE or length % PAGE_SIZE:
        attributes.counts["failed_conversions"] += 1
        return failed(errno.EINVAL)
    start, end = offset // PAGE_SIZE, min(inode.pages, (offset + length) // PAGE_SIZE)
    to_shared = operation.to == "shared"
    parts = attributes.parts(start, end, shared=not to_shared)
    if parts:
        _unmapped_by_attributes(system, inode, start, end)
    for low, high in parts:
        leaving, counter = (inode, "punched_pages") if to_shared else (backend, "discarded_pages")
        attributes.counts["converted_pages"] += high - low
        attributes.counts["invalidations"] += 2 if to_shared else 1  # by the attribute, and by the hole
        attributes.set_state(low, high, to_shared)
        if to_shared:
            attributes.note_hole(inode.map, inode.order, low, high)
        before = leaving.map.folios
        if leaving.tracked is None:
            system.erase(leaving, low, high)
        else:
            punch_hole(system, leaving, low * PAGE_SIZE, (high - low) * PAGE_SIZE)
        attributes.counts[counter] += before - leaving.map.folios
        for mapping in leaving.mappings:
            mapping.zap(low, high)
        if to_shared and not system.touch(system.task(operation), backend, low, high):
            return failed(errno.ENOMEM, reason="no memory for the shared backend")
    return Result()


def pin(system: System, operation: sc.Pin) -> Result:
    """GUP faults absent shared pages in, up to the first private one."""
    inode = tracked_inode(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    return pin_range(system, operation, inode, *byte_span(operation, inode), operation.kind)


def pin_range(system: System, operation: sc.Operation, inode: Inode, offset: int, length: int, kind: str) -> Result:
    """:func:`pin` of bytes of a tracked file, by the task that makes a call.

    ``kind`` of :data:`workbench.tracking.tracked_file.KINDS`; a device's pins are its own.
    """
    conversions, file = _tracking(system, inode)
    if kind != "transient" and length > 0:
        start = offset // PAGE_SIZE
        stop, _ = _faultin(file, start, min(inode.pages, -(-(offset + length) // PAGE_SIZE)))
        if start < stop:
            if not system.touch(system.task(operation), inode, start, stop) or not conversions.enter_all():
                return result_of(Outcome(errno.ENOMEM, offset))
            for mapping in inode.mappings:
                mapping.map(start, stop)
    return result_of(file.pin(offset, length, kind))


def unpin(system: System, operation: sc.Unpin) -> Result:
    """Drop references of one kind; what had left the file meanwhile is free once nobody holds it."""
    inode = tracked_inode(system, operation, closed=True)
    if inode is None:
        return failed(errno.EBADF)
    return unpin_range(system, inode, *byte_span(operation, inode), operation.kind)


def unpin_range(system: System, inode: Inode, offset: int, length: int, kind: str) -> Result:
    """:func:`unpin` of bytes of a tracked file."""
    conversions, file = _tracking(system, inode)
    outcome = file.unpin(offset, length, kind)
    conversions.take_back(inode, file, offset // PAGE_SIZE, min(inode.pages, -(-(offset + length) // PAGE_SIZE)))
    if inode.evicted and not len(file.withheld()):
        conversions.retire(inode, file)
    return result_of(outcome)


def hwpoison(system: System, operation: sc.Hwpoison) -> Result:
    """Memory failure on every page of the range that is there; ENOENT if none is, EBUSY for hugetlb-backed pages.

    EBUSY is no refusal: the pages are marked, and stay mapped.
    """
    inode = tracked_inode(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    _, file = _tracking(system, inode)
    offset, length = byte_span(operation, inode)
    pages = -(-min(length, inode.pages * PAGE_SIZE - offset) // PAGE_SIZE)
    if pages <= 0:
        return failed(errno.ENOENT, pages=0)
    page = offset // PAGE_SIZE
    if pages == 1:
        errors = [file.hwpoison(offset).errno]
        gone = [] if errors[0] else [[page, page + 1]]
    else:
        of_each = _poisoned(file, offset, pages)
        errors, gone = of_each.tolist(), true_intervals(of_each == 0, page).tolist()
    for low, high in gone:
        for mapping in inode.mappings:
            if not mapping.empty:
                mapping.zap(low, high)
        if inode.users is not None:
            inode.users.invalidate(low, high, page_by_page=True)
    marked = [error for error in errors if error in (0, errno.EBUSY)]
    return result_of(Outcome(max(marked, default=errno.ENOENT), None), pages=len(marked))


def _poisoned(file: TrackedFile, offset: int, pages: int) -> npt.NDArray[np.int32]:
    """Errors of memory failure on so many pages, one after another."""
    check_listed(pages, "hwpoison")
    stream = np.zeros((pages, 6), np.int64)
    stream[:, folio.OP] = folio.POISON
    stream[:, folio.OFFSET] = offset + PAGE_SIZE * np.arange(len(stream))
    return file.run_stream(stream).errors


def host_fault(system: System, operation: sc.Fault, file: OpenFile, start: int, count: int) -> Result:
    """Pages that are private, poisoned or past the end raise SIGBUS; the others are there afterwards.

    Where a hugetlb-backed file finds no huge page on the nodes of its policy, the fault is retried for ever: ``retried``
    names the page, and no page after it is touched.
    """
    conversions, tracked = _tracking(system, file.inode)
    end = max(start, min(start + count, file.inode.pages))
    good, retried = 0, -1
    bad_pages: list[int] = []
    if operation.order != "sequential" and file.mapping is not None and start < end:
        _place_in_order(system, operation, file.inode, tracked.in_state(start, end, True), start, count)
    walk = None if file.mapping is None else system.host_walk(file.mapping)
    for low, high in tracked.in_state(start, end, True) if file.mapping is not None else ():
        assert file.mapping is not None
        for first, last, mapped in _mapped_parts(file.mapping, low, high):
            if mapped:
                good += last - first
                continue
            placed = system.touch(system.task(operation), file.inode, first, last, walk=walk)
            conversions.enter_all()
            stop = last if placed else _first_absent(file.inode, first, last)
            page = first
            while page < stop:
                error, offset = tracked.host_fault(page * PAGE_SIZE, (stop - page) * PAGE_SIZE)
                reached = stop if offset is None else offset // PAGE_SIZE
                good += reached - page
                file.mapping.map(page, reached)
                if error:
                    bad_pages.append(reached)
                page = reached + bool(error)
            if not placed:
                retried = stop
                break
        if retried >= 0:
            break
    bad = count - good
    detail: dict[str, Any] = {"bad": bad, "first": -1}
    if retried >= 0 and not (system.hugetlb and system.rules.host_fault_retries):
        return result_of(Outcome(errno.ENOMEM, retried * PAGE_SIZE), bad=bad, first=retried)
    if bad:
        private = tracked.in_state(start, end, False) if file.mapping is not None else [(start, end)]
        candidates = [*bad_pages, *(low for low, _ in private[:1]), *([retried] if retried >= 0 else [])]
        detail["first"] = min(candidates) if candidates else end
        if operation.order == "reverse":
            ends = [high - 1 for _, high in private[-1:]]
            detail["first"] = start + count - 1 if start + count > end else max([*candidates, *ends])
        elif operation.order != "sequential":
            pages = start + system.touch_order(operation, count)
            outside = (pages >= end) | np.isin(pages, bad_pages) | _in_any(pages, private)
            detail["first"] = int(pages[outside][0])
    if retried >= 0:
        detail["retried"] = retried
    return Result(good, 0, detail)


def host_reaches(file: OpenFile, start: int, end: int) -> bool:
    """Whether all of pages [start, end) can be touched through the mapping of the host."""
    inode, tracked = file.inode, file.inode.tracked
    if file.mapping is None or end > min(inode.pages, file.mapping.pages):
        return False
    return not inode.private if tracked is None else bool(np.all(tracked.is_shared(start, end)))


def touched(system: System, operation: sc.FirstTouch, file: OpenFile, start: int, end: int) -> Result:
    """What a touch of pages that are there does to a tracked file."""
    if operation.by == "host":
        touch = sc.Fault(task=operation.task, file=operation.file)
        return host_fault(system, touch, file, start, end - start)
    return guest_fault(system, file.inode, start, end) or Result()


def _faultin(file: TrackedFile, start: int, end: int) -> tuple[int, int]:
    """mm/gup.c: faultin_page: up to which of pages [start, end) faults go, and why not farther: EFAULT, EHWPOISON, or 0."""
    if start >= end:
        return start, 0
    _, stop, shared = file.states(start, end)[0]
    if not shared:
        return start, errno.EFAULT
    bad = file.poisoned(start, stop)
    if len(bad):
        return int(bad[0]), EHWPOISON
    return stop, errno.EFAULT if stop < end else 0


def populate(system: System, operation: sc.Madvise | sc.GetMempolicy, file: OpenFile, start: int, end: int) -> Result:
    """mm/madvise.c: madvise_populate: touched page by page up to one that is private (EFAULT) or poisoned (EHWPOISON)."""
    _, tracked = _tracking(system, file.inode)
    stop, error = _faultin(tracked, start, end)
    if start < stop:
        touch = sc.Fault(
            task=operation.task, file=operation.file, offset=start * PAGE_SIZE, length=(stop - start) * PAGE_SIZE
        )
        found = host_fault(system, touch, file, start, stop - start)
        if found.errno or "retried" in found.detail:
            return found
    return failed(error) if error else Result()


def _place_in_order(
    system: System, operation: sc.Fault, inode: Inode, shared: list[tuple[int, int]], start: int, count: int
) -> None:
    """Back the shared pages of a range in the order in which they are touched, which is that of the rotation's steps."""
    if operation.order == "reverse":  # what lies beyond the file comes first, and is not there
        count = max(0, min(count, inode.pages - start))
    pages = start + system.touch_order(operation, count)
    folios = pages[_in_any(pages, shared)] >> inode.order
    _, first = np.unique(folios, return_index=True)
    folios = folios[np.sort(first)]
    if not len(folios):
        return
    rows = np.full(len(folios), system.task(operation).index)
    system.touch_in_turns(inode, int(folios.min()), int(folios.max()) + 1, lambda: iter([(folios, rows)]))


def _in_any(pages: Int64s, intervals: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Whether each page lies in one of ascending intervals."""
    if not intervals:
        return np.zeros(len(pages), bool)
    runs = np.array(intervals, np.int64)
    row = np.searchsorted(runs[:, 0], pages, side="right") - 1
    inside: npt.NDArray[np.bool_] = (row >= 0) & (pages < runs[np.maximum(row, 0), 1])
    return inside


def _mapped_parts(mapping: Mapping, low: int, high: int) -> list[tuple[int, int, bool]]:
    """Pages [low, high) cut into parts that the page tables have and parts that they have not."""
    if high - low == 1:  # as most calls have it
        return [(low, high, mapping.maps(low))]
    parts, page = [], low
    for first, last in mapping.mapped(low, high).tolist():
        parts += [(page, first, False)] if page < first else []
        parts.append((first, last, True))
        page = last
    return parts + ([(page, high, False)] if page < high else [])


def collapse(system: System, operation: sc.Collapse) -> Result:
    """What khugepaged can do to a guest's memory, and the worker of a lazy merge in the huge-page series does.

    A folio of this file that was split still lies in one piece: its pages become one folio again where all are private, every
    page stays in its frame, and so no mapping goes stale. Memory of the page allocator with a poisoned page stays small. Small
    folios that stood in for huge ones are copied into a new folio where the host can read them
    (:mod:`workbench.engine.khugepaged`), and stay small where it cannot. ``merges_2m`` and ``merges_1g`` count folios of the
    first kind, ``collapsed_2m`` those of the second; none is no error.
    """
    inode = tracked_inode(system, operation)
    if inode is None:
        return failed(errno.EBADF)
    conversions, file = _tracking(system, inode)
    offset, length = byte_span(operation, inode)
    if not conversions.enter_all():
        return result_of(Outcome(errno.ENOMEM, offset))
    first, last = (min(page, inode.pages) for page in (offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)))
    uptodate = file.uptodate_words(first, last)
    before = file.counts[_MERGES]
    outcome = file.merge(offset, length)
    made = file.counts[_MERGES] - before
    lost = _content_lost(file, first, last, uptodate)
    copied = {}
    if not outcome.errno and khugepaged.can_copy(system, inode):
        copied = khugepaged.collapse(
            system, conversions, system.task(operation), inode, first, last, operation.max_ptes_none
        )
    return result_of(outcome, merges_2m=int(made[0]), merges_1g=int(made[1]), **lost, **copied)


def _first_absent(inode: Inode, start: int, end: int) -> int:
    """First page of [start, end) that nothing backs."""
    if inode.small is None:
        holes = inode.map.absent(start >> inode.order, -(-end >> inode.order))
        return max(start, int(holes[0, 0]) << inode.order) if len(holes) else end
    pages = np.arange(start, end, dtype=np.int64)
    absent = inode.zones_of(pages) < 0
    return start + int(np.argmax(absent)) if absent.any() else end


def guest_fault(system: System, inode: Inode, start: int, end: int) -> Result | None:
    """The guest touches pages as what they are: EHWPOISON on a poisoned folio; lazy merges happen here."""
    conversions, file = _tracking(system, inode)
    if not conversions.enter_all():
        return result_of(Outcome(errno.ENOMEM, None))
    end = _first_absent(inode, start, end)
    attributes, alone = inode.attributes, inode.flags & GUEST_MEMFD_FLAG_MMAP
    if attributes is not None and not alone and system.scenario.conversion_mode == "out-of-place":
        for low, high in attributes.parts(start, end, shared=False) if end > start else ():
            error = _touched_by_guest(inode, file, low, high)
            if error is not None:
                return error
        return None
    return _touched_by_guest(inode, file, start, end)


def _touched_by_guest(inode: Inode, file: TrackedFile, start: int, end: int) -> Result | None:
    """The guest touches pages that are there."""
    for low, high, shared in file.states(start, end):
        outcome = file.guest_fault(low * PAGE_SIZE, (high - low) * PAGE_SIZE, not shared)
        if inode.users is not None:
            reached = high if outcome.offset is None else outcome.offset // PAGE_SIZE
            inode.users.guest_fault(low, reached, not shared)
        if outcome.errno:
            return result_of(outcome)
    return None


def punch_hole(system: System, inode: Inode, offset: int, length: int) -> Result:
    """Folios that left the file go back to the engine's zones and pools, unless they are poisoned or pinned."""
    conversions, file = _tracking(system, inode)
    shift = inode.order
    first = offset // PAGE_SIZE >> shift
    last = -(-min(inode.pages, -(-(offset + length) // PAGE_SIZE)) // (1 << shift))
    start, end = offset // PAGE_SIZE, min(inode.pages, (offset + length) // PAGE_SIZE)
    held = conversions.held(inode, file, start, end)
    outcome = file.punch_hole(offset, length)
    if outcome.errno:  # in generation B what lies before the folio that somebody holds is gone
        stays = outcome.offset is None or system.rules.kernel == "C"
        end = start if stays else max(start, (outcome.offset or 0) // PAGE_SIZE >> shift << shift)
    if start < end:
        conversions.erase_small(inode, file, start, end, held)
    if first < last and shift:
        for low, high in true_intervals(~file.present(first, last), first).tolist():
            system.leave(inode, low, high)
        conversions.take_back(inode, file, start, end)
    if outcome.errno in (0, errno.EAGAIN):
        if inode.users is not None:  # told of the whole range before anything leaves
            inode.users.invalidate(offset // PAGE_SIZE, min(inode.pages, (offset + length) // PAGE_SIZE))
        low, high = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        if shift and system.rules.kernel == "B":  # whole huge pages one by one, up to the one that somebody holds
            low, high = -(-low >> shift) << shift, high >> shift << shift
            if outcome.offset is not None:
                high = min(high, ((outcome.offset // PAGE_SIZE >> shift) + 1) << shift)
        for mapping in inode.mappings:
            mapping.zap(low, high)
    return result_of(outcome)


def byte_span(operation: Any, inode: Inode) -> tuple[int, int]:
    """Offset and length of an operation in bytes; without a length, to the end of the file."""
    size = inode.pages * PAGE_SIZE
    length = size - operation.offset if operation.length is None else operation.length
    if 0 <= length <= size and operation.offset < _FAR:  # as nearly all are
        return operation.offset, length
    if length > size + PAGE_SIZE:  # past the end is past the end, however far: nothing is made as long as it says
        length = size + PAGE_SIZE + length % PAGE_SIZE
    return _in_int64(operation.offset), _in_int64(max(0, length))


def _in_int64(number: int) -> int:
    """A number that no file reaches as another that none does, as well aligned, small enough for sums in int64."""
    return number if number < _FAR else _FAR + number % FILE_BYTES


def result_of(outcome: Outcome, **detail: Any) -> Result:
    """A tracked file's answer as the result of a call."""
    if outcome.offset is not None:
        detail["error_offset"] = outcome.offset
    return Result(-1, outcome.errno, detail) if outcome.errno else Result(0, 0, detail)

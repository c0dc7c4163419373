"""Which function carries out which operation, and how one is carried out.

A call is a function ``call(system, operation) -> Result``, in a file by its subject (``calls_*.py``), named as the operation is.
A refused call is a result with an errno, not an exception. A new operation is a class in :mod:`workbench.scenario`, a function
in one of those files and a line in :data:`CALLS`; generators are expanded into others before the run
(:mod:`workbench.engine.generators`). Sources are named at each call; the kernel of record is Linux 7.3.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np

from workbench import scenario as sc
from workbench.engine import (
    bulk_conversions,
    bulk_in_place,
    calls_conversion,
    calls_devices,
    calls_files,
    calls_host,
    calls_kexec,
    calls_mempolicy,
    calls_migration,
    calls_mm,
    conversion_streams,
)
from workbench.engine.generators import ConvertMany
from workbench.engine.objects import Inode, Result, failed
from workbench.engine.placing import OutOfMemory
from workbench.engine.system import System
from workbench.errors import Cancelled
from workbench.intervals import Int64s, equal_intervals

Call = Callable[[System, Any], Result]
_LOOKS = (sc.Observe, sc.Access, sc.CheckExtension, sc.Fstat, sc.Read, sc.Write)
LEAST_AT_ONCE = 64
"""Rows that it takes to make up for what running some at once costs, on average."""
ROWS_BETWEEN = 256
"""A run can be cancelled after so many rows that are calls of their own."""
CALLS: dict[type[sc.Operation], Call] = {
    sc.Create: calls_files.create,
    sc.Memfd: calls_files.memfd,
    sc.Alias: calls_files.alias,
    sc.PassFd: calls_files.pass_fd,
    sc.Mmap: calls_files.mmap,
    sc.Munmap: calls_files.munmap,
    sc.Close: calls_files.close,
    sc.Fallocate: calls_files.fallocate,
    sc.PunchHole: calls_files.punch_hole,
    sc.Read: calls_files.read,
    sc.Write: calls_files.write,
    sc.Fstat: calls_files.fstat,
    sc.Mbind: calls_mempolicy.mbind,
    sc.Fbind: calls_mempolicy.fbind,
    sc.SetPolicy: calls_mempolicy.set_policy,
    sc.SetMempolicy: calls_mempolicy.set_mempolicy,
    sc.ResetRotation: calls_mempolicy.reset_rotation,
    sc.GetMempolicy: calls_mempolicy.get_mempolicy,
    sc.SetMempolicyHomeNode: calls_mempolicy.set_mempolicy_home_node,
    sc.SetWeights: calls_mempolicy.set_weights,
    sc.SetAutoWeights: calls_mempolicy.set_auto_weights,
    sc.SetMemsAllowed: calls_mempolicy.set_mems_allowed,
    sc.Fault: calls_mm.fault,
    sc.FirstTouch: calls_mm.first_touch,
    sc.Madvise: calls_mm.madvise,
    sc.MovePages: calls_migration.move_pages,
    sc.MigratePages: calls_migration.migrate_pages,
    sc.Compact: calls_migration.compact,
    sc.Convert: calls_conversion.convert,
    sc.CheckExtension: calls_conversion.check_extension,
    sc.CreateVm: calls_conversion.create_vm,
    sc.Memslot: calls_conversion.memslot,
    sc.SetMemoryAttributes: calls_conversion.set_memory_attributes,
    sc.Pin: calls_conversion.pin,
    sc.Unpin: calls_conversion.unpin,
    sc.Hwpoison: calls_conversion.hwpoison,
    sc.Collapse: calls_conversion.collapse,
    sc.IommuMap: calls_devices.iommu_map,
    sc.IommuUnmap: calls_devices.iommu_unmap,
    sc.Preserve: calls_kexec.preserve,
    sc.Kexec: calls_kexec.kexec,
    sc.Retrieve: calls_kexec.retrieve,
    sc.Finish: calls_kexec.finish,
    sc.CloseSession: calls_kexec.close_session,
    sc.SchedSetaffinity: calls_host.sched_setaffinity,
    sc.Hog: calls_host.hog,
    sc.Unhog: calls_host.unhog,
    sc.Zones: calls_host.zones,
    sc.Observe: calls_host.observe,
    sc.Access: calls_host.access,
}


def idle(scenario: sc.Scenario) -> tuple[type[sc.Operation], ...]:
    """Calls that change nothing, and answer by what no list changes: whether a file is open, and how large a guest_memfd is.

    Some the guest of a scenario has not, or they do nothing there.
    """
    out: list[type[sc.Operation]] = [sc.CheckExtension, sc.Fstat, sc.Read, sc.Write]
    interface = scenario.guest.policy_interface
    if interface != "fbind":
        out.append(sc.Fbind)
    if interface not in ("fbind", "mbind"):
        out.append(sc.SetPolicy)
    if not scenario.vm_attributes:
        out.append(sc.SetMemoryAttributes)
    if not calls_conversion.converts(scenario):
        out.append(sc.Convert)
    return tuple(out)


def changes_no_page(system: System, operation: sc.Operation) -> bool:
    """Whether a call leaves pages, who has them, and what is free as they are, whatever it answers."""
    leaves_them = _LEAVES_PAGES.get(type(operation))
    return leaves_them is not None and leaves_them(system, operation)


def _always(system: System, operation: sc.Operation) -> bool:
    return True


def _asks_no_page(system: System, operation: sc.GetMempolicy) -> bool:
    return operation.file is None or not operation.node  # for the node of a page the page is touched


def _reaches_nothing(system: System, operation: sc.Fault) -> bool:
    if operation.by != "host":
        return False
    file = system.files.get(operation.file)
    return file is None or not calls_mm.host_reaches(file)


def _converts_nothing(system: System, operation: sc.Convert) -> bool:
    return not calls_conversion.converts(system.scenario)


def _moves_none(system: System, operation: sc.MovePages | sc.Mbind) -> bool:
    file = system.files.get(operation.file)
    return file is None or not file.inode.movable


def _binds_no_page(system: System, operation: sc.Mbind) -> bool:
    return not calls_mempolicy.flags_word(operation) or _moves_none(system, operation)


def _advises_nothing(system: System, operation: sc.Madvise) -> bool:
    file = system.files.get(operation.file)
    return file is None or file.mapping is None


def _migrates_none(system: System, operation: sc.MigratePages) -> bool:
    return calls_migration.nothing_moves(system.scenario)


_SETS_POLICIES = (
    sc.Fbind, sc.SetPolicy, sc.SetMempolicyHomeNode, sc.SetMempolicy, sc.ResetRotation, sc.SetWeights, sc.SetAutoWeights,
    sc.SchedSetaffinity,
)  # fmt: skip
_LEAVES_PAGES: dict[type[sc.Operation], Callable[[System, Any], bool]] = {
    **dict.fromkeys((*_LOOKS, *_SETS_POLICIES), _always),
    sc.GetMempolicy: _asks_no_page,
    sc.Fault: _reaches_nothing,
    sc.Convert: _converts_nothing,
    sc.MovePages: _moves_none,
    sc.Mbind: _binds_no_page,
    sc.Madvise: _advises_nothing,
    sc.MigratePages: _migrates_none,
}
"""Of each kind of call that may leave all pages as they are, when it does."""


def convert_many(system: System, operation: ConvertMany) -> Result:
    """Operations of a stream one after another: in the kernel where that can be, else each as a call of its own.

    Returns how many were carried out; the errno is that of the first that was refused.
    """
    file = system.files.get(operation.file)
    if file is not None and file.descriptor is not None and bulk_in_place.possible(system, file.inode, operation.rows):
        errors = _in_place(system, operation, file.inode)
    elif file is not None and bulk_conversions.possible(system, file.inode, operation.rows):
        bulk = system.lend(file.inode)
        errors = bulk.run(operation.rows, system.task(operation))
        bulk.count_metadata(system.task(operation), operation.rows)
    else:
        errors = _one_by_one(system, operation, operation.rows)
    refused = int(np.count_nonzero(errors))
    first = int(errors[np.flatnonzero(errors)[0]]) if refused else 0
    return Result(len(errors) - refused, first, {"conversions": len(errors), "refused": refused})


def _in_place(system: System, operation: ConvertMany, inode: Inode) -> Int64s:
    """At once what can run at once; in between, one by one, rows that have to find the state as it is."""
    rows = operation.rows
    alone = bulk_in_place.alone(system, inode, rows)
    parts = equal_intervals(alone)
    if len(parts) > max(2, len(rows) // LEAST_AT_ONCE):
        return _one_by_one(system, operation, rows)
    errors = np.zeros(len(rows), np.int64)
    for low, high in parts.tolist():
        part = rows[low:high]
        errors[low:high] = (
            _one_by_one(system, operation, part) if alone[low] else bulk_in_place.run(system, inode, part)
        )
    return errors


def _one_by_one(system: System, operation: ConvertMany, rows: Int64s) -> Int64s:
    """Each row as a call of its own, with all that follows from one; nothing is kept of it but its errno."""
    system.settle()
    errors = np.zeros(len(rows), np.int64)
    for number, one in enumerate(conversion_streams.operations(rows, operation.file, operation.task)):
        errors[number] = apply(system, one).errno
        system.look(one)
        if system.killed:
            errors[number + 1 :] = errno.ESRCH
            break
        if number % ROWS_BETWEEN == 0 and system.cancelled():
            raise Cancelled
    return errors


CALLS[ConvertMany] = convert_many


def apply(system: System, operation: sc.Operation) -> Result:
    """Carry out one operation on the system."""
    if system.killed:
        return failed(errno.ESRCH, killed=True)
    try:
        if system.bulk is not None and not isinstance(operation, ConvertMany):
            system.settle()
        system.will_change(operation)
        result = CALLS[type(operation)](system, operation)
    except OutOfMemory:
        system.settle()
        system.oom_kill()
        return failed(errno.ENOMEM, killed=True)
    if system.conversions is not None and not system.conversions.enter_all() and not result.errno:
        return failed(errno.ENOMEM, vmemmap=True)
    return result

"""Kexec inside the engine: every guest_memfd is handed over through real bytes and taken up again, or the call is refused.

memfds go the way that Linux has for them (from 6.19 on): into a live-update session before, out of it afterwards
(``kernel/liveupdate/luo_file.c``, ``mm/memfd_luo.c``). No released kernel takes a guest_memfd into a session; a posted series
does (``preserves_guest_memfd``), and then those that are in none are gone. Recorded on 7.3.4: ``datasets/recordings/handover``.

What goes from one kernel to the next is :mod:`workbench.engine.handover`: the offset -> pfn map, the private/shared state and the
shared policy of each file. Up to :data:`MOST_FOLIOS` folios the bytes are written, read back and compared, and the file
goes on with what was read; above, the size of the metadata is computed and ``verified`` is False.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import handover
from workbench.engine.calls_files import put
from workbench.engine.calls_host import unhog
from workbench.engine.handover import CannotPreserve, Format, PolicyRange, Preserved
from workbench.engine.host_state import HostState
from workbench.engine.mappings import Mapping
from workbench.engine.objects import GUEST_MEMFD_FLAG_MMAP, Inode, OpenFile, Result, failed
from workbench.engine.system import System
from workbench.errnos import EHWPOISON
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s
from workbench.kernels import kho
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import TrackedFile

MOST_FOLIOS = 1 << 20
_NO_EXTENTS = np.empty((0, 4), np.int64)


def preserve(system: System, operation: sc.Preserve) -> Result:
    """kernel/liveupdate/luo_file.c: luo_preserve_file; mm/memfd_luo.c: memfd_luo_preserve.

    EINVAL on the session of the kernel before, EEXIST for a token in use, ENOENT for a file that no handler takes, EBUSY for
    one that is in the session already. The calling task allocates what a memfd lacks (memfd_pin_folios). That pages in
    ZONE_MOVABLE or in scratch areas are migrated out first is not modelled.

    A guest_memfd keeps its holes; its VM goes into the session with it (``vm``). The posted series, read in its source
    (``virt/kvm/guest_memfd_luo.c: kvm_gmem_luo_can_preserve``, ``kvm_gmem_luo_preserve``): its handler takes only files that
    were created with INIT_SHARED, of 4 KiB folios, of a VM without private memory, others find no handler; EHWPOISON if one of
    its folios is poisoned.
    """
    if error := _open_session(system, retrieved=False):
        return failed(
            error, reason="live update: the session is that of the kernel before; close_session, then preserve"
        )
    file = system.files.get(operation.file)
    if operation.token in system.session:
        return failed(errno.EEXIST)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    inode = file.inode
    gmem = inode.kind == "guest_memfd"
    if gmem and not system.scenario.kernel.preserves_guest_memfd:
        return failed(errno.ENOENT, reason="live update: no released kernel preserves a guest_memfd (series posted)")
    if inode in system.session.values():
        return failed(errno.EBUSY)
    if gmem and (inode.order or inode.private or system.scenario.guest.private_memory):
        reason = "live update: files of 4 KiB folios, with INIT_SHARED, of a VM without private memory"
        return failed(errno.ENOENT, reason=reason)
    if gmem and inode.tracked is not None and len(inode.tracked.poisoned()):
        return failed(EHWPOISON, reason="live update: a folio of the file is poisoned")
    if not gmem and not system.touch(system.task(operation), inode, 0, inode.pages):
        return failed(errno.ENOMEM)
    inode.frozen = True
    system.session[operation.token] = inode
    system.vm_in_session |= gmem and operation.vm
    return Result()


def retrieve(system: System, operation: sc.Retrieve) -> Result:
    """luo_retrieve_file, memfd_luo_retrieve: a new inode with the old pages; no policy, and nothing is frozen.

    ENOENT for a token that no file of the kernel before has, or where no session came from there or it was finished; EINVAL on
    a session of this kernel. Whoever asks twice gets the same file again, which the session holds until it is finished.
    """
    if error := _open_session(system, retrieved=True):
        return failed(error)
    inode = system.handed_over.get(operation.token)
    if inode is None:
        return failed(errno.ENOENT)
    if inode.frozen:
        if inode.kind == "memfd":
            system.memfds += 1
            inode.ilx_base = system.memfds if operation.inode is None else operation.inode
        inode.frozen = False
    mapping = None
    if inode.kind == "memfd" or inode.flags & GUEST_MEMFD_FLAG_MMAP:
        mapping = Mapping(inode.pages)
        inode.mappings.append(mapping)
    descriptor = system.new_descriptor()
    system.open_as(operation.file, OpenFile(inode, descriptor, mapping))
    return Result(descriptor, 0, {"pages": inode.pages})


def finish(system: System, operation: sc.Finish) -> Result:
    """luo_session_finish, luo_file_finish, memfd_luo_finish: EINVAL on a session of this kernel, ENOENT where none came.

    Recorded on 7.3.4. The session stays open and is empty then: a second time changes nothing. No handler of 7.3.4 refuses
    (``can_finish``). The posted series for guest_memfd discards what nobody retrieved just so (``kvm_gmem_luo_finish``).
    """
    if error := _open_session(system, retrieved=True):
        return failed(error)
    _let_go(system, system.handed_over)
    return Result()


def close_session(system: System, operation: sc.CloseSession) -> Result:
    """luo_session_release: finishes a session of the kernel before, else luo_file_unpreserve_files. EBADF if none is open."""
    if system.session_descriptor is None:
        return failed(errno.EBADF)
    if system.session_retrieved:
        _let_go(system, system.handed_over)
        system.session_waits = False
    else:
        _let_go(system, system.session)
        system.vm_in_session = False
    system.descriptors[""].give_back(system.session_descriptor)
    system.session_descriptor, system.session_retrieved = None, False
    return Result()


def _let_go(system: System, files: dict[int, Inode]) -> None:
    """The last file first: nothing freezes it any more, and if nobody else has it, its pages are freed."""
    while files:
        _, inode = files.popitem()
        inode.frozen = False
        put(system, inode)


def _open_session(system: System, *, retrieved: bool) -> int:
    """LIVEUPDATE_IOCTL_CREATE_SESSION, or RETRIEVE_SESSION: the device is open for as long as that takes. Returns an errno.

    One that is open is taken as it is, and refuses the calls of the other kind (luo_session.c: luo_ioctl_type_valid).
    """
    if system.session_descriptor is None:
        if retrieved and not system.session_waits:
            return errno.ENOENT
        device = system.new_descriptor()
        system.session_descriptor = system.new_descriptor()
        system.descriptors[""].give_back(device)
        system.session_retrieved = retrieved
    return 0 if system.session_retrieved == retrieved else errno.EINVAL


def kexec(system: System, operation: sc.Kexec) -> Result:
    """Files are taken up again under their names; all else in memory is gone with the kernel that knew it."""
    result = _hand_over(system)
    if not result.errno and (lost := _start_again(system)):
        result.detail["policy_lost"] = lost
    return result


def _hand_over(system: System) -> Result:
    """Hand all open guest_memfd files over. ``detail``: files, metadata and policy bytes, whether bytes were compared.

    Refused, and nothing changes, with EOPNOTSUPP, EBUSY or EHWPOISON and a ``reason`` if one of them cannot be preserved; with
    ENOENT if a guest_memfd is in the session and its VM is not: the posted series looks the VM's token up at the freeze
    (``virt/kvm/guest_memfd_luo.c: kvm_gmem_luo_freeze``, read in its source), and ``liveupdate_get_token_outgoing`` returns
    ENOENT for a file that is not in the session. No kernel was run that has it.
    """
    opened = (file.inode for file in system.files.values() if file.descriptor is not None)
    alone = system.scenario.kernel.preserves_guest_memfd  # a file that is in no session is not handed over
    in_session = set(system.session.values())
    inodes = [one for one in dict.fromkeys(opened) if one.kind == "guest_memfd" and (one in in_session or not alone)]
    if not system.vm_in_session and any(inode.kind == "guest_memfd" for inode in in_session):
        return failed(errno.ENOENT, reason="kexec: a guest_memfd is in the session without its VM")
    for file in system.conversions.files() if system.conversions is not None else ():
        if len(left := file.withheld()):  # whoever holds it may still write there when the frame is somebody else's
            return failed(errno.EBUSY, reason=f"kexec: page {int(left[0])} left its file and is still pinned")
    format: Format = system.design.handover
    states = []
    for inode in inodes:
        tracked = inode.tracked
        state = preserved(system, inode, tracked)
        try:
            handover.check_preservable(
                state,
                pinned=tracked.pinned().tolist() if tracked is not None and not len(inode.device_areas) else (),
                poisoned=tracked.poisoned().tolist() if tracked is not None else (),
                mapped_by_device=inode.device_areas[:, 0].tolist(),
                confidential=system.scenario.guest.vm_type,
                format=format,
                huge=inode.order > 0 and system.design.folios != "small",
            )
        except CannotPreserve as error:
            return failed(error.errno, reason=str(error))
        states.append((inode, state))
    detail: dict[str, Any] = {"files": len(states), "metadata_bytes": 0, "policy_bytes": 0, "verified": True}
    for inode, state in states:
        if inode.pages >> inode.order <= MOST_FOLIOS:
            _take_up(system, inode, state, handover.deserialise(handover.serialise(state, format)))
        else:
            detail["verified"] = False
        if system.scenario.kernel.preserves_policy:
            detail["policy_bytes"] += handover.sizes(replace(state, extents=_NO_EXTENTS), format)["policy"]
        detail["metadata_bytes"] += _metadata_bytes(system, inode, state, inode.tracked)
    return Result(0, 0, detail)


def _start_again(system: System) -> dict[str, list[str]]:
    """New processes: no task policy, no page tables, on the CPUs they started on; other memory use is gone, weights as at boot.

    So is tmpfs, but for the files of the session. Returns the policies that files are handed over without, by file: the posted
    series and memfd_luo.c carry none.
    """
    unhog(system, sc.Unhog())
    system.weights = system.boot_weights.copy()
    system.mems_allowed, system.cpusets_enabled = system.n_memory, False
    for task in system.tasks.values():
        task.policy = None
        task.nid = system.first_nid[task.name]
        system.rotations[task.index] = (system.nodes - 1, 0)
    kept = {file.inode for file in system.files.values() if file.descriptor and file.inode.kind == "guest_memfd"}
    if system.scenario.kernel.preserves_guest_memfd:
        kept = set()
    unfinished = system.handed_over.values()  # nobody hands a session over a second time
    system.handed_over, system.session, system.vm_in_session = system.session, {}, False
    system.session_waits = system.session_descriptor is not None and not system.session_retrieved
    waiting = dict.fromkeys(system.handed_over.values())
    if system.session_descriptor is not None:
        system.descriptors[""].give_back(system.session_descriptor)
        system.session_descriptor, system.session_retrieved = None, False
    system.memfds = 0
    if system.metadata is not None:
        system.metadata.processes_end()
    lost: dict[str, list[str]] = {}
    for inode in dict.fromkeys(
        [*system.inodes(), *waiting, *unfinished]
    ):  # of a session's files all names may be others' by now
        inode.mappings = []
        if inode in waiting or (inode in kept and not system.scenario.kernel.preserves_policy):
            if had := list(dict.fromkeys(policy.describe() for *_, policy in inode.shared_policy)):
                lost[inode.name] = had
            inode.shared_policy = mp.SharedPolicy()
        if inode in waiting:
            if inode.users is not None:
                inode.users.machine_gone()
        elif inode not in kept:
            system.free_inode(inode)
        elif inode.users is not None:
            inode.users.machine_gone()
    for name, file in list(system.files.items()):
        if file.inode in waiting:
            system.close_descriptor(file)
            file.mapping = None
        elif file.inode not in kept or file.descriptor is None:
            system.close_descriptor(system.files.pop(name))
            system.loses_a_name(file.inode)
        elif file.mapping is not None:
            file.mapping = Mapping(file.inode.pages)
            file.inode.mappings.append(file.mapping)
    return lost


def preserved(system: HostState, inode: Inode, file: TrackedFile | None) -> Preserved:
    """What a file has to hand over; without its extents if they are too many to list."""
    extents = _NO_EXTENTS
    if isinstance(file, LightFile):
        units = np.flatnonzero(file.state.unit_pfn >= 0)
        extents = _runs(units, file.state.unit_pfn[units] >> inode.order, inode.order)
    elif inode.pages >> inode.order <= MOST_FOLIOS and system.free_pfns is not None and inode.pfns is not None:
        pfns = system.free_pfns.of_file(inode.map, inode.pfns, inode.pages >> inode.order)
        present = np.flatnonzero(pfns >= 0)
        extents = _runs(present, pfns[present], inode.order)
    if file is not None:
        shared = file.shared_ranges()
    else:
        shared = np.array([[0, inode.pages]] if not inode.private else [], np.int64).reshape(-1, 2)
    return Preserved(inode.pages, inode.flags, extents, tuple(_policy_ranges(inode)), shared)


def _runs(index: Int64s, pfn: Int64s, order: int) -> Int64s:
    """Extents int64 (n, 4) of :class:`Preserved` from folio indices (ascending) and pfns counted in folios."""
    if not len(index):
        return _NO_EXTENTS
    first = np.flatnonzero(np.concatenate(([True], (np.diff(index) != 1) | (np.diff(pfn) != 1))))
    count = np.diff(np.append(first, len(index)))
    rows = np.column_stack((index[first], count, pfn[first])) << order
    return np.column_stack((rows, np.full(len(first), order)))


def _policy_ranges(inode: Inode) -> list[PolicyRange]:
    return [
        PolicyRange(
            start,
            end,
            policy.mode,
            policy.flags,
            tuple(mp.nodes_of(policy.nodes)),
            -1 if policy.home_node is None else policy.home_node,
            tuple(mp.nodes_of(policy.user_nodes)) if policy.keeps_user_nodes else (),
        )
        for start, end, policy in inode.shared_policy
    ]


def _take_up(system: HostState, inode: Inode, before: Preserved, after: Preserved) -> None:
    """The next kernel's file: the policy is what was read; the map must be the one that was written."""
    if not after.same_as(before):
        raise WorkbenchError(f"kexec: {inode.name} was not read back as it was written")
    restored = mp.SharedPolicy()
    for r in after.policy:
        nodes = mp.nodemask(r.nodes)
        policy = mp.Mempolicy(
            r.mode,
            r.flags,
            nodes,
            mp.nodemask(r.user_nodes) if r.user_nodes else nodes,
            system.n_memory,
            None if r.home_node < 0 else r.home_node,
        )
        restored.set(r.start, r.end, policy)
    inode.shared_policy = restored


def _metadata_bytes(system: HostState, inode: Inode, state: Preserved, file: TrackedFile | None) -> int:
    """Bytes without the policy: 24 for each extent of a light map, the folio scheme for pages in the page cache.

    Where the pfns are not listed, their radix tree is counted as dense as it can be.
    """
    if isinstance(file, LightFile):
        return 24 * len(file.extents()) + _folio_scheme(file.count("shared_pages"))
    if len(state.extents):
        parts = handover.sizes(state, "kho")
        return sum(parts[name] for name in ("records", "chunks", "tree"))
    pieces = inode.order if system.design.folios == "small" else 0
    return _folio_scheme(int(inode.map.counts(len(system.free)).sum()) << pieces)


def _folio_scheme(folios: int) -> int:
    return sum(kho.folio_scheme_bytes(folios, kho.dense_tree_nodes(folios)).values()) if folios else 0

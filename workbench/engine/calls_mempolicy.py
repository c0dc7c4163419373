"""Calls that set and read NUMA policies: of ranges, tasks, weights and cpusets.

Linux: ``mm/mempolicy.c``, ``kernel/cgroup/cpuset.c``; ``fbind`` and the policy of ``create`` are of earlier generations of the
guest_memfd series.
"""

from __future__ import annotations

import errno
import functools
from dataclasses import replace
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import calls_conversion, migration
from workbench.engine.objects import OpenFile, Result, Thread, failed
from workbench.engine.system import System
from workbench.intervals import no_intervals
from workbench.kernels import mempolicy
from workbench.units import PAGE_SIZE


def policy_of(system: System, operation: Any) -> tuple[mp.Mempolicy | None, int]:
    """mpol_new and mpol_set_nodemask for an operation's mode and nodes: (policy, errno)."""
    nodes, error = _nodes(operation)
    return (None, error) if error else _new(operation.mode_word, nodes, system.mems_allowed & system.n_memory)


@functools.lru_cache(1024)
def _new(mode_word: int, nodes: int, allowed: int) -> tuple[mp.Mempolicy | None, int]:
    mode, flags, error = mp.sanitize_mpol_flags(mode_word)
    if error:
        return None, error
    policy, error = mp.mpol_new(mode, flags, nodes)
    return (None, error) if error else mp.mpol_set_nodemask(policy, allowed)


def _nodes(operation: Any) -> tuple[int, int]:
    """(nodemask, errno): what the kernel reads of the operation's mask."""
    maxnode = operation.maxnode if isinstance(operation, (sc.Mbind, sc.SetMempolicy)) else None
    return mp.get_nodes(_parsed(operation.nodes), maxnode)


_parsed = functools.lru_cache(1024)(mp.parse_nodes)


def mbind(system: System, operation: sc.Mbind) -> Result:
    """mm/mempolicy.c: kernel_mbind, do_mbind.

    On a guest_memfd: up to 6.17 there is no mapping (EFAULT); 6.18 takes the call and places by the task's policy all the
    same; from 6.19 on the policy is the file's and decides.
    """
    return _mbind(system, operation, flags_word(operation))


def flags_word(operation: sc.Mbind) -> int:
    """The flags of a call as it makes them."""
    flags = operation.raw_flags
    return sum(mp.MBIND_FLAGS[f] for f in set(operation.flags)) if flags is None else flags


def _mbind(system: System, operation: sc.Mbind | sc.SetPolicy, flags: int) -> Result:
    interface = system.scenario.guest.policy_interface
    file = system.files.get(operation.file)
    if interface != "mbind" and file is not None and file.inode.kind == "guest_memfd":
        # Before v4 of the series the VMA of a guest_memfd had no set_policy: the call succeeds, nothing changes.
        return Result(0, 0, {"no_effect": True})
    mode, _, error = mp.sanitize_mpol_flags(operation.mode_word)
    nodes, unreadable = _nodes(operation)
    if error or unreadable:
        return failed(errno.EINVAL)
    if flags & ~(mp.MF_STRICT | mp.MF_MOVE | mp.MF_MOVE_ALL) or operation.offset % PAGE_SIZE:
        return failed(errno.EINVAL)
    if mode == mp.DEFAULT:
        flags &= ~mp.MF_STRICT
    if file is None and operation.length is None:
        return failed(errno.EFAULT, **_why_unmapped(system, operation.file, file))  # to the end of what is not there
    start, end = system.pages(operation, file.inode.pages if file else 0)
    if start == end:
        return Result()
    policy, error = policy_of(system, operation)
    if error:
        return failed(error)
    if file is None or file.mapping is None:
        return failed(errno.EFAULT, **_why_unmapped(system, operation.file, file))
    mapping = file.mapping
    if start >= mapping.pages or (end > mapping.pages and policy is not None):
        return failed(errno.EFAULT)
    end = min(end, mapping.pages)
    misplaced, parts, wrong = 0, no_intervals(), np.empty(0, bool)
    moving = flags & (mp.MF_MOVE | mp.MF_MOVE_ALL)
    if flags:  # queue_pages_range: pages in the page tables on other nodes than the raw user mask
        wrong = ~_zones_on(system, nodes)
        once = bool(moving) and not flags & mp.MF_MOVE_ALL
        parts = migration.seen_by(file.inode, mapping, start, end, mapped_once=once)
        misplaced = migration.count_on(system, file.inode, parts, wrong)
    if misplaced and flags == mp.MF_STRICT:
        return failed(errno.EIO)
    mapping.set_policy(start, end, policy, file.inode.shared_policy.set if _on_file(system, file) else _nowhere)
    if moving and file.inode.movable:
        migration.refuse_huge(file.inode, parts)
        migration.move_to_policy(system, system.task(operation), file.inode, parts, wrong)
        misplaced = 0
    return failed(errno.EIO) if misplaced and flags & mp.MF_STRICT else Result()


def _why_unmapped(system: System, name: str, file: OpenFile | None) -> dict[str, str]:
    kernel = system.scenario.kernel
    if file is not None and file.inode.kind == "guest_memfd" and not kernel.maps:
        return {"reason": f"a guest_memfd has no mapping on {kernel.name}; from 6.18 on"}
    if file is None and system.scenario.conversion_mode == "in-place":
        return {"reason": f"{name} is not mapped: converted in place, shared pages stay in the guest_memfd"}
    return {"reason": f"{name} is not mapped"}


def _on_file(system: System, file: OpenFile) -> bool:
    """Whether a policy set through a mapping is the file's (virt/kvm/guest_memfd.c: kvm_gmem_set_policy, from 6.19 on).

    Linux 6.18 kept that of a guest_memfd in the VMA. tmpfs has had policies of files in every version.
    """
    return file.inode.kind != "guest_memfd" or system.scenario.kernel.file_policy


def _nowhere(start: int, end: int, policy: mp.Mempolicy | None) -> None:
    """The VMA alone keeps the policy."""


def _zones_on(system: System, mask: int) -> np.ndarray:
    return system.mask(mask)[system.zone_node]


def fbind(system: System, operation: sc.Fbind | sc.SetPolicy) -> Result:
    """fbind (v3 of the series): as mbind, but on the descriptor and exactly the range that was asked for.

    In no released kernel.
    """
    if system.scenario.guest.policy_interface != "fbind":
        return failed(errno.ENOSYS, reason="fbind: in version 3 of the series only (policy_interface: fbind)")
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    policy, error = policy_of(system, operation)
    start, end = system.pages(operation, file.inode.pages)
    if error or operation.offset % PAGE_SIZE or end > file.inode.pages:
        return failed(error or errno.EINVAL)
    file.inode.shared_policy.set(start, end, policy)
    return Result()


def set_policy(system: System, operation: sc.SetPolicy) -> Result:
    """Set a range policy through the interface that the guest has, whichever generation it is of."""
    interface = system.scenario.guest.policy_interface
    if interface == "fbind":
        return fbind(system, operation)
    if interface == "mbind":
        return _mbind(system, operation, 0)
    if interface == "create":
        return failed(errno.EOPNOTSUPP, reason="the policy was fixed when the file was created")
    return Result(0, 0, {"no_effect": True})


def set_mempolicy(system: System, operation: sc.SetMempolicy) -> Result:
    """mm/mempolicy.c: do_set_mempolicy."""
    policy, error = policy_of(system, operation)
    if error:
        return failed(error)
    task = system.task(operation)
    task.policy = policy
    if policy is not None and policy.interleaves:
        system.rotations[task.index] = (system.nodes - 1, 0)
    return Result()


def reset_rotation(system: System, operation: sc.ResetRotation) -> Result:
    task = system.task(operation)
    task.policy = None
    system.rotations[task.index] = (system.nodes - 1, 0)
    return Result()


def get_mempolicy(system: System, operation: sc.GetMempolicy) -> Result:
    """mm/mempolicy.c: do_get_mempolicy."""
    task = system.task(operation)
    if operation.file is None:
        return _get_task_policy(system, task, operation.node)
    file = system.files.get(operation.file)
    page = operation.offset // PAGE_SIZE
    mapping = file.mapping if file else None
    vma = mapping.vma_at(page) if mapping else None
    if file is None or mapping is None or vma is None:
        return failed(errno.EFAULT, **({} if operation.node else _reported(None)))
    if not operation.node:
        kept = file.inode.shared_policy.lookup(page) if _on_file(system, file) else vma.policy
        return Result(0, 0, _reported(kept))
    if file.inode.tracked is not None:
        if (error := calls_conversion.populate(system, operation, file, page, page + 1).errno) != 0:
            return failed(errno.ENOMEM if error == errno.ENOMEM else errno.EFAULT)
    elif file.inode.private:
        return failed(errno.EFAULT)
    else:
        system.touch(task, file.inode, page, page + 1, walk=system.host_walk(mapping))
        mapping.map(page, page + 1)
    zone = int(file.inode.zones_of(np.array([page]))[0])
    return Result(0, 0, {"node": int(system.node_ids[system.zone_node[zone]])})


def _get_task_policy(system: System, task: Thread, node: bool) -> Result:
    if not node:
        return Result(0, 0, _reported(task.policy))
    if task.policy is None or not task.policy.interleaves:
        return failed(errno.EINVAL)
    rotation = system.rotations[task.index]
    following = int(rotation[0])
    if task.policy.mode == mp.INTERLEAVE or rotation[1] == 0:
        following = int(mempolicy.next_node_in(following, system.mask(task.policy.nodes)))
    return Result(0, 0, {"node": int(system.node_ids[following])})


def set_mempolicy_home_node(system: System, operation: sc.SetMempolicyHomeNode) -> Result:
    """mm/mempolicy.c: set_mempolicy_home_node: works on vm_policy, VMA by VMA."""
    file = system.files.get(operation.file)
    if operation.offset % PAGE_SIZE or operation.home_node not in system.index_of_node:
        return failed(errno.EINVAL)
    start, end = system.pages(operation, file.inode.pages if file else 0)
    if start == end:
        return Result()
    if file is None or file.mapping is None:
        return failed(errno.ENOENT)
    error = errno.ENOENT
    for vma in list(file.mapping.vmas):
        if vma.end <= start or vma.start >= end or vma.policy is None:
            continue
        if vma.policy.mode not in (mp.BIND, mp.PREFERRED_MANY):
            error = errno.EOPNOTSUPP
            break
        new = replace(vma.policy, home_node=operation.home_node)
        low, high = max(start, vma.start), min(end, vma.end)
        file.mapping.set_policy(low, high, new, file.inode.shared_policy.set if _on_file(system, file) else _nowhere)
        error = 0
    return failed(error) if error else Result()


def set_weights(system: System, operation: sc.SetWeights) -> Result:
    """mm/mempolicy.c: node_store; without values, the weights found at boot come back.

    From 6.16 on a weight of 0 is EINVAL; 6.12 takes it for the default weight.
    """
    if operation.weights is None:
        system.weights = system.boot_weights.copy()
        return Result(0, 0, {"errno": {}, "weights": _weights_by_node(system)})
    errors = {}
    for node, weight in operation.weights.items():
        errors[str(node)] = 0
        if node not in system.index_of_node or not system.has_memory[system.index_of_node[node]]:
            errors[str(node)] = errno.ENOENT  # only nodes with memory have a file
        elif weight == 0 and not system.scenario.kernel.auto_weights:
            system.weights[system.index_of_node[node]] = 1  # 6.12: 0 stands for the default weight
        elif not 1 <= weight <= 255:
            errors[str(node)] = errno.EINVAL
        else:
            system.weights[system.index_of_node[node]] = weight
    return Result(0, 0, {"errno": errors, "weights": _weights_by_node(system)})


_TRUE, _FALSE = ("y", "Y", "t", "T", "1"), ("n", "N", "f", "F", "0")


def set_auto_weights(system: System, operation: sc.SetAutoWeights) -> Result:
    """mm/mempolicy.c: weighted_interleave_auto_store, lib/kstrtox.c: kstrtobool.

    Turned on, the weights are what the bandwidths say, and ENODEV if firmware told none; turned off they stay as they are.
    """
    word = operation.value[:1]
    switch = operation.value[:2].lower() if word in ("o", "O") else word
    error = 0
    if not system.scenario.kernel.auto_weights:
        error = errno.ENOENT
    elif switch in _TRUE or switch == "on":
        if system.firmware_weights is None:
            error = errno.ENODEV
        else:
            system.weights = system.firmware_weights.copy()
    elif switch not in _FALSE and switch != "of":
        error = errno.EINVAL
    return Result(0, 0, {"errno": {"auto": error}, "weights": _weights_by_node(system)})


def _weights_by_node(system: System) -> dict[str, int]:
    return {str(system.node_ids[i]): int(system.weights[i]) for i in np.flatnonzero(system.has_memory)}


def set_mems_allowed(system: System, operation: sc.SetMemsAllowed) -> Result:
    """kernel/cgroup/cpuset.c: task and VMA policies are rebound, shared policies of inodes never are; tmpfs pages move.

    So a policy that was set on a guest_memfd is rebound on 6.18, where the VMA keeps it, and not from 6.19 on.
    """
    mems = system.n_memory if operation.mems is None else mp.parse_nodes(operation.mems) & system.n_memory
    if not mems:
        return failed(errno.EINVAL)
    system.cpusets_enabled = True
    if mems == system.mems_allowed:
        return Result()  # cpuset_attach leaves tasks alone when neither CPUs nor mems change
    before, system.mems_allowed = system.mems_allowed, mems
    for task in system.tasks.values():
        task.policy = mp.mpol_rebind(task.policy, mems)
    for file in system.files.values():
        for mapping in file.inode.mappings:
            for vma in mapping.vmas:
                vma.policy = mp.mpol_rebind(vma.policy, mems)
    migration.follow_mems(system, system.task(operation), before, mems)
    return Result()


def _reported(policy: mp.Mempolicy | None) -> dict[str, Any]:
    if policy is None:
        return {"mode": mp.DEFAULT, "nodes": ""}
    return {"mode": policy.mode_word, "nodes": mp.format_nodes(policy.reported_nodes)}

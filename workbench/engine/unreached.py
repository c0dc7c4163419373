"""Policies that do not reach pages, said in words: what people ask of a run before anything else.

A guest_memfd that its VMM cannot map takes no policy from mbind: its pages follow the policy, the cpuset and the CPU of
the thread that allocates them. A policy of the ordinary backend beside it binds that alone. A file that a kexec hands over
has none of its policies afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import profiles
from workbench import scenario as sc
from workbench.engine.objects import GUEST_MEMFD_FLAG_MMAP, Inode, Result
from workbench.engine.system import System


def unreached(system: System, operations: Sequence[sc.Operation], results: Sequence[Result]) -> list[str]:
    """One line for each policy that a scenario sets and that its private memory does not get."""
    names: dict[Inode, str] = {}  # of a file with several, the first
    for name, file in system.files.items():
        names.setdefault(file.inode, name)
    private = {name for name, file in system.files.items() if _cannot_be_bound(file.inode)}
    if not private:
        return []
    amounts = {inode: _nodes(system, inode) for inode in names}
    hidden = np.sum([amount for inode, amount in amounts.items() if _cannot_be_bound(inode)], axis=0)
    total = np.sum(list(amounts.values()), axis=0)
    if not hidden.sum():
        return []
    where = ", ".join(
        f"{_percent(pages / hidden.sum())} on node {node}"
        for node, pages in zip(system.node_ids, hidden, strict=True)
        if pages
    )
    share = _percent(hidden.sum() / total.sum())
    out: list[str] = []
    for inode, name in names.items():
        for policy in (
            dict.fromkeys(policy.describe() for *_, policy in inode.shared_policy) if name not in private else ()
        ):
            out.append(
                f"policy {policy} of {name}: reaches {name} only; private memory ({share} of what is allocated) follows the "
                f"threads that touch it: {where}; {profiles.WAY_TO_BIND_PRIVATE_MEMORY}"
            )
    for operation, result in zip(operations, results, strict=True):
        if isinstance(operation, sc.Mbind | sc.SetPolicy | sc.Fbind) and operation.file in private and result.errno:
            line = (
                f"{operation.op} {operation.mode} {operation.nodes} of {operation.file}: refused, its VMM cannot map it; "
                f"its memory follows the threads that touch it: {where}; {profiles.WAY_TO_BIND_PRIVATE_MEMORY}"
            )
            if line not in out:
                out.append(line)
    return out


_NAMED = 3
"""Policies of a file that a line names; of more it says how many."""


def lost_at_kexec(results: Sequence[Result]) -> list[str]:
    """One line for each file whose policies did not go through a kexec with its pages."""
    keep = [
        f"kernel_profile {profile.name}" for profile in profiles.KERNEL_PROFILES.values() if profile.preserves_policy
    ]
    out: list[str] = []
    for name, policies in (one for result in results for one in result.detail.get("policy_lost", {}).items()):
        more = f" and {len(policies) - _NAMED} more" if len(policies) > _NAMED else ""
        out.append(
            f"kexec: {name} is handed over without its policy ({', '.join(policies[:_NAMED])}{more}): its pages stay where they "
            f"are, those that come afterwards follow the threads that touch them; set the policy again after the kexec "
            f"(handed over under {', '.join(keep)} alone)"
        )
    return list(dict.fromkeys(out))


def _cannot_be_bound(inode: Inode) -> bool:
    return inode.kind == "guest_memfd" and not inode.flags & GUEST_MEMFD_FLAG_MMAP


def _nodes(system: System, inode: Inode) -> np.ndarray:
    """4 KiB pages of a file on each node, int64 (nodes,)."""
    zones = inode.map.counts(len(system.free)) << inode.order
    return np.bincount(system.zone_node, zones, system.nodes).astype(np.int64)


def _percent(share: float) -> str:
    return "< 1 %" if share < 0.005 else f"{share * 100:.0f} %"

"""Which setting of a virtual machine's configuration reaches which of its pages.

The rules are those of the VMM's profile. mbind of a memory backend binds that backend's mapping; a guest_memfd without
a mapping takes no policy, its pages follow the policy, the cpuset and the CPU of the thread that allocates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from workbench.amounts import bytes_per_node
from workbench.profiles import WAY_TO_BIND_PRIVATE_MEMORY
from workbench.units import PAGE_SIZE
from workbench.vmconfig.machine import VirtualMachine
from workbench.vmconfig.placement import file_name, has_private_memory, private_file

Pages = Literal["all", "private", "shared", "none"]


@dataclass(frozen=True)
class Reach:
    """One setting, the pages that it reaches, and a sentence about it. ``warning``: less than its writer may think."""

    setting: str
    pages: Pages
    text: str
    warning: bool = False

    def line(self) -> str:
        """For people."""
        return f"{self.setting}: {self.text}"


def reach(vm: VirtualMachine, result: xr.Dataset) -> list[Reach]:
    """What each setting of a machine reaches, with the shares that its run found."""
    private = has_private_memory(vm)
    names = [file_name(backend, position) for position, backend in enumerate(vm.backends)]
    where = _where(result, [private_file(name) for name in names] if private else names)
    follows = _follows(vm)
    out: list[Reach] = []
    for policy in (vm.task_policy, vm.cpuset_mems):
        if policy is None:
            continue
        kind = "cpuset of all threads" if policy is vm.cpuset_mems else "policy of all threads"
        own = any(backend.policy is not None for backend in vm.backends)
        if private:
            text = f"{kind}: reaches private memory ({where})"
            if policy is vm.task_policy and own:
                text += "; shared backends with a policy of their own keep it"
            out.append(Reach(policy.setting, "all" if policy is vm.cpuset_mems or not own else "private", text))
        else:
            text = f"{kind}: reaches the guest's memory ({where})"
            if policy is vm.task_policy and own:
                text = f"{kind}: memory backends with a policy of their own keep it ({where})"
            out.append(Reach(policy.setting, "all", text))
    for backend, name in zip(vm.backends, names, strict=True):
        files = [private_file(name)] if private else [name]
        here = _where(result, files)
        if backend.policy is not None and private:
            share = _private_share(result, names)
            text = (
                f"reaches the shared backend only; private memory ({_percent(share)} of the guest) {follows}: "
                f"{here}; {WAY_TO_BIND_PRIVATE_MEMORY}"
            )
            out.append(Reach(backend.policy.setting, "shared", text, warning=True))
        elif backend.policy is not None:
            out.append(Reach(backend.policy.setting, "all", f"reaches all of this memory ({here})"))
        if backend.preallocated and private:
            text = "allocates the whole shared backend beside private memory, which is allocated when a vCPU touches it"
            out.append(Reach(f"{name}: prealloc", "shared", text, warning=True))
        if backend.page_bytes > PAGE_SIZE and private:
            text = "reaches the shared backend only; private memory has pages of 4 KiB"
            out.append(Reach(f"{name}: huge pages", "shared", text, warning=True))
    if vm.vcpu_pins:
        reaches: Pages = "private" if private else "all"
        what = "private memory" if private else "memory without a policy"
        text = f"{what} lands where its vCPU runs, unless a policy or cpuset of the threads says otherwise ({where})"
        out.append(Reach("vCPU pinning", reaches, text))
    if not out:
        what = "private memory" if private else "the guest's memory"
        out.append(Reach("no setting for memory", "none", f"{what} {follows}: {where}"))
    return out


def _follows(vm: VirtualMachine) -> str:
    if vm.task_policy is not None:
        return f"follows {vm.task_policy.setting}"
    if vm.cpuset_mems is not None:
        return "follows the vCPU threads within their cpuset"
    return "follows the vCPU threads"


def _where(result: xr.Dataset, files: list[str]) -> str:
    """``61 % on node 0, 39 % on node 1`` of some files together."""
    amounts = _bytes(result, files).sum(axis=0)
    total = int(amounts.sum())
    if not total:
        return "nothing allocated"
    parts = [(int(node), int(amount) / total) for node, amount in zip(result["node"].values, amounts, strict=True)]
    return ", ".join(f"{_percent(share)} on node {node}" for node, share in parts if share)


def _percent(share: float) -> str:
    if share < 0.005:
        return "< 1 %"
    return f"{share * 100:.0f} %"


def _private_share(result: xr.Dataset, names: list[str]) -> float:
    """Share of the guest's memory that is private: what of it is backed by a guest_memfd."""
    sizes = result["file_pages"].values * result["file_page_size"].values
    whole = sizes[np.isin(result["file"].values, names)].sum()
    return float(_bytes(result, [private_file(name) for name in names]).sum() / whole)


def _bytes(result: xr.Dataset, files: list[str]) -> np.ndarray:
    """Bytes of some files on each node, int64 (files, nodes)."""
    return bytes_per_node(result)[np.isin(result["file"].values, files)]

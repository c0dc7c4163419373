"""What a device that maps guest memory does to conversion, and what KVM and the IOMMU are told, under each design.

The engine carries out one guest three times: a device wants all of its private memory; a device maps all of a guest that shares
everything, which then takes parts back; and the VMM maps only what is shared, for as long as it is (as QEMU does it, which
unmaps a range before it converts it: ``system/physmem.c``, ``RamDiscardManager``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench import scenario as sc
from workbench.design import DESIGNS, choose
from workbench.errors import WorkbenchError
from workbench.simulation import simulate
from workbench.units import PAGE_SIZE, parse_bytes
from workbench.variables import DeviceUsers

WAYS = ("all, of a private guest", "all, of a shared guest", "what is shared, while it is")
_RANGE = 64 << 10
"""Bytes of one conversion: a bounce buffer."""


def device_users(
    memory: int | str = "256 MiB", conversions: int = 40, *, designs: Sequence[str] = tuple(DESIGNS), seed: int = 0
) -> xr.Dataset:
    """Carry out a guest on 2 MiB pages (4 KiB under ``filemap``) whose memory a device maps in each of :data:`WAYS`.

    ``conversions``: ranges of 64 KiB, drawn with ``seed``, that change sides and back (or, where all is shared, become private).
    """
    size = parse_bytes(memory, "memory")
    chosen = choose(designs)
    if size % (2 << 20) or not 0 < conversions <= size // (2 << 20):
        raise WorkbenchError(f"conversions: {conversions} of {memory}; whole 2 MiB, and at most one conversion in each")
    at = np.random.default_rng(seed).permutation(size // (2 << 20))[:conversions] * (2 << 20)
    shape = (len(chosen), len(WAYS))
    refused, asked, mapped, lost, calls = (np.zeros(shape, np.int64) for _ in range(5))
    told = np.zeros((*shape, 2), np.int64)
    for i, design in enumerate(chosen):
        for j, way in enumerate(WAYS):
            page_size = "2 MiB" if "2 MiB" in design.page_sizes else "4 KiB"
            one = simulate(_scenario(size, design.name, page_size, way, at.tolist()))
            ops, errors = one["event_op"].values, one["event_errno"].values
            # Where the device maps all, counted from there on: before that all designs have populated and shared alike.
            first = 2 if way == WAYS[2] else int(np.argmax(ops == "iommu_map"))
            converting = (ops == "convert") & (np.arange(len(ops)) >= first)
            asked[i, j], refused[i, j] = converting.sum(), (errors[converting] != 0).sum()
            mapped[i, j] = one["user_mapped_pages"].sel(user="iommu").max()
            lost[i, j] = one["iommu_lost_pages"][-1]
            calls[i, j] = np.isin(ops, ("iommu_map", "iommu_unmap")).sum()
            told[i, j] = (one["user_invalidations"][-1] - one["user_invalidations"][first - 1]).values
    return results.make(
        DeviceUsers,
        {
            "conversions": asked,
            "refused": refused,
            "device_mapped_pages": mapped,
            "device_lost_pages": lost,
            "device_calls": calls,
            "told": told,
        },
        {"design": [design.name for design in chosen], "way": list(WAYS), "user": list(one["user"].values)},
        provenance=results.provenance(
            command="studies.device_users.device_users",
            memory=memory,
            conversions=conversions,
            designs=designs,
            seed=seed,
        ),
        attributes={"guest_bytes": size},
    )


def _scenario(size: int, design: str, page_size: str, way: str, at: list[int]) -> sc.Scenario:
    to_shared: list[dict[str, Any]] = []
    operations: list[dict[str, Any]] = [{"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest"}]
    if way == WAYS[0]:
        operations.append({"op": "iommu_map"})
    elif way == WAYS[1]:
        operations += [{"op": "convert", "to": "shared"}, {"op": "iommu_map"}]
    for offset in at:
        where = {"offset": offset, "length": _RANGE}
        to_shared = [] if way == WAYS[1] else [{"op": "convert", "to": "shared", **where}]
        device = [{"op": "iommu_map", **where}, {"op": "iommu_unmap", **where}] if way == WAYS[2] else []
        operations += [*to_shared, *device, {"op": "convert", "to": "private", **where}]
    host = {
        "name": "two nodes",
        "nodes": [
            {"id": n, "memory_bytes": 4 * size // PAGE_SIZE * PAGE_SIZE + (4 << 30), "cpus": [n]} for n in range(2)
        ],
        "distances": [[10, 20], [20, 10]],
    }
    guest = {"memory": size, "page_size": page_size, "design": design, "vm_type": "sw_protected"}
    return sc.Scenario.from_mapping(
        {"host": host, "guest": guest, "operations": operations, "strict": False, "metadata": "off", "output": "counts"}
    )

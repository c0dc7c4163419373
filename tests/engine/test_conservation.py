"""No page is lost or owned twice: under every kernel profile, VM type, design and way to convert, metadata on or off.

After each call, every zone (or pool) has free what it had at boot but for what files, hogs, the guest's tables and slabs, and
frames that are held or poisoned have of it; when the process is gone and nothing is held, it is all there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench import profiles
from workbench import scenario as sc
from workbench.engine.calls import apply
from workbench.engine.generators import expand
from workbench.engine.kept_frames import NOWHERE, ZONE
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Thread
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.tracking.folio_file import ConversionFile

MIB, GIB = 1 << 20, 1 << 30
HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 4 * GIB, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}
PLACES = [0, 4096, 2 * MIB - 4096, 2 * MIB, 3 * MIB + 8192, 6 * MIB, GIB]
LENGTHS = [4096, 3 * 4096, MIB, 2 * MIB, 5 * MIB, GIB]
DESIGNS = ["filemap", "hugetlb", "hugetlb-hvo", "pfn-range", "thp", "contiguous-4k"]


@st.composite
def calls(draw: st.DrawFn, file: str = "guest") -> dict[str, Any]:
    span = {"file": file, "offset": draw(st.sampled_from(PLACES)), "length": draw(st.sampled_from(LENGTHS))}
    task = draw(st.sampled_from([None, "vcpu0", "vcpu1"]))
    return draw(
        st.one_of(
            st.sampled_from(["guest", "host"]).map(lambda by: {"op": "fault", "by": by, **span}),
            st.sampled_from(["private", "shared"]).map(lambda to: {"op": "convert", "to": to, **span}),
            st.sampled_from(["fallocate", "punch_hole", "pin", "unpin", "iommu_map", "iommu_unmap", "collapse"]).map(
                lambda op: {"op": op, **span}
            ),
            st.sampled_from(["bounce_buffers", "uniform_random", "ballooning"]).map(
                lambda stream: {"op": "convert_stream", "stream": stream, "count": 8, "every": 3}
            ),
            st.sampled_from(["bind", "interleave", "preferred"]).map(
                lambda mode: {"op": "mbind", "mode": mode, "nodes": "1" if mode != "interleave" else "0-1", **span}
            ),
            st.sampled_from([4, 9]).map(lambda advice: {"op": "madvise", "advice": advice, **span}),
            st.sampled_from(
                [
                    {"op": "hog", "node": 0, "size": 64 * MIB}, {"op": "unhog"}, {"op": "create_vm"},
                    {"op": "migrate_pages", "source": 0, "target": 1}, {"op": "move_pages", "node": 1, **span},
                    {"op": "hwpoison", "file": file, "offset": span["offset"], "length": 4096},
                    {"op": "close", "file": file}, {"op": "munmap", "file": file}, {"op": "kexec"},
                    {"op": "set_memory_attributes", "private": True, **span},
                ]
            ),
        )
    ) | ({"task": task} if task else {})  # fmt: skip


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    design = draw(st.sampled_from(DESIGNS))
    pooled = design.startswith("hugetlb")
    sizes = ["4 KiB"] if design == "filemap" else ["2 MiB", "1 GiB"] if pooled else ["4 KiB", "2 MiB"]
    size = draw(st.sampled_from(sizes))
    vm_type = draw(st.sampled_from(list(profiles.VM_TYPES)))
    vmms = [made.name for made in profiles.VMM_PROFILES.values() if made.private_flags is not None or vm_type == "none"]
    kernels = profiles.KERNEL_PROFILES.values() if size == "4 KiB" else profiles.with_huge_pages()
    kernel = draw(st.sampled_from([made.name for made in kernels]))
    guest = {
        "memory": 2 * GIB if size == "1 GiB" else 8 * MIB, "page_size": size, "design": design,
        "vm_type": vm_type, "vmm_profile": draw(st.sampled_from([None, *vmms])), "vcpus": [{"node": 0}, {"node": 1}],
    }  # fmt: skip
    mode = draw(st.sampled_from([None, "in-place", "out-of-place"]))
    if mode is not None:
        guest["conversion"] = {"mode": mode}
    if pooled:
        guest["small_page_fallback"] = draw(st.sampled_from([False, False, True]))
    pool = {0: 1, 1: 1} if size == "1 GiB" else {0: 3, 1: 2}
    create = {"op": "create", "flags": ["mmap"]} if draw(st.booleans()) else {"op": "create"}
    return {
        "host": HOST, "kernel_profile": kernel, "guest": guest, "strict": False,
        "boot": {"hugetlb_pages": pool} if pooled else {},
        "operations": [create, *draw(st.lists(calls(), min_size=3, max_size=12))],
    }  # fmt: skip


def tables_and_slabs(metadata: Metadata, zones: int) -> np.ndarray:
    """4 KiB pages of each zone that tables and slabs have, found again where each is kept, int64 (zones,)."""
    trees = [*metadata.mapped.values(), *metadata.second]
    used = sum((map_.counts(zones) for tree in trees for map_ in tree.maps), np.zeros(zones, np.int64))
    kept = [zone for ready in metadata.ready.values() for zone in ready] + metadata.roots
    slabs = metadata.xarray.zones.sum(axis=0) + metadata.maple.zones.sum(axis=0) + metadata.pamt.sum(axis=0)
    return used + np.bincount(np.array(kept, np.int64), minlength=zones) + slabs


class Books:
    """What every zone had when the host had booted."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.free, self.poisoned = system.free.copy(), 0
        self.left = (
            None if system.metadata is None or system.metadata.zones is None else system.metadata.zones.free.copy()
        )

    def balance(self) -> None:
        """All of it is free, or somebody has it, who is found; poisoned pages are missing in some zone."""
        system, zones = self.system, len(self.free)
        assert (system.free >= 0).all()
        missing = self.free - system.free - sum((taken for _, taken in system.hogs), np.zeros(zones, np.int64))
        tracked = set() if system.conversions is None else set(system.conversions.inodes)
        inodes = set() if system.killed else set(system.inodes())
        inodes |= {inode.backend for inode in inodes if inode.backend is not None}
        for inode in inodes:
            missing -= inode.map.counts(zones)
            if inode.small is not None:
                missing -= inode.small.counts(zones)
        for zone in (zone for inode in tracked for zone in inode.kept.rows()[:, ZONE].tolist() if zone != NOWHERE):
            missing[zone] -= 1
        withheld = self.poisoned  # some of them came back, for nobody looks at them in a pool
        withheld += sum(inode.tracked.count("pinned_huge_pages") for inode in tracked if inode.tracked is not None)
        if system.conversions is not None:
            missing[: system.nodes] -= system.conversions.unusable
        if self.left is not None:
            mine = tables_and_slabs(system.metadata, len(self.left))
            # Where metadata are only counted, struct pages have a stock of their own.
            taken = system.metadata.taking and system.conversions is not None
            for file in system.conversions.files() if taken else ():
                if isinstance(file, ConversionFile):  # what its splits took: struct pages, nodes of a 1 GiB split
                    mine += file.held_vmemmap + file.state.slabs_1g.sum(axis=0)
                else:  # struct pages of what is shared
                    mine += file.vmemmap_taken
            np.testing.assert_array_equal(self.left - system.metadata.zones.free, mine)
        elif system.metadata is not None and system.metadata.taking:
            missing -= tables_and_slabs(system.metadata, zones)
        if system.blocks is not None:  # blocks of 2 MiB fall apart and come together again within a node
            pages = missing * (system.zone_page_size // 4096)
            missing = np.bincount(system.zone_node, pages, system.nodes).astype(np.int64)
            withheld <<= system.order  # whole folios are
        assert (missing >= 0).all() and missing.sum() <= withheld, missing


def _settle(system: System, task: Thread) -> None:
    """What metadata follow from the state, as after each event of a run."""
    if system.metadata is not None:
        system.metadata.settle(task, None)


def books_balance(values: dict[str, Any]) -> int:
    """Run a scenario call by call and balance after each; returns how many were carried out."""
    try:
        scenario = wb.Scenario.from_mapping(values)
        system, operations = System(scenario), expand(scenario)
    except WorkbenchError:
        return 0
    books, done = Books(system), 0
    for operation in operations:
        try:
            result = apply(system, operation)
        except WorkbenchError:  # one line, as for any operation that cannot be carried out on such a guest
            continue
        system.settle()
        _settle(system, system.task(operation))
        books.poisoned += result.detail.get("pages", 0) if isinstance(operation, sc.Hwpoison) else 0
        books.balance()
        done += 1
    if not system.killed:
        system.oom_kill()
        _settle(system, next(iter(system.tasks.values())))
    books.balance()
    return done


@pytest.mark.parametrize("metadata", ["off", "counted", "taken"])
def test_no_page_is_lost_or_owned_twice(metadata: str) -> None:
    balanced = []

    @settings(max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(scenarios())
    def each(values: dict[str, Any]) -> None:
        balanced.append(books_balance(values | {"metadata": metadata}))

    each()
    assert np.count_nonzero(balanced) > 15, "most are scenarios that a host can run"

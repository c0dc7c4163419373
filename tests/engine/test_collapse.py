"""The operation ``collapse``: what khugepaged can re-form of a guest on huge folios, and what it cannot."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench import scenario as sc
from workbench.engine.calls import apply
from workbench.engine.system import System
from workbench.kernels.folios import run as folio

MIB2, PAGE = 2 << 20, 4096
HOST: dict[str, Any] = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": [0]}, {"id": 1, "memory_bytes": 1 << 30, "cpus": [1]}],
    "distances": [[10, 21], [21, 10]],
}
THERE_AND_BACK = [
    {"op": "fault", "by": "guest"},
    *(
        {"op": "convert", "to": to, "offset": block * MIB2 + 5 * PAGE, "length": PAGE}
        for block in (0, 1, 3)
        for to in ("shared", "private")
    ),
    {"op": "convert", "to": "shared", "offset": 3 * MIB2, "length": PAGE},
]
"""Of eight folios three are split, of which two are private again."""


def run(operations: list[dict[str, Any]], *, design: str = "thp", merge: str = "never", **rest: Any) -> Any:
    guest = {
        "memory": 8 * MIB2,
        "page_size": "2 MiB",
        "design": design,
        "vm_type": "snp",
        "conversion": {"merge": merge},
    }
    scenario = {"host": HOST, "guest": guest | rest.pop("guest", {}), "strict": False} | rest
    return wb.simulate(
        wb.Scenario.from_mapping(scenario | {"operations": [{"op": "create", "flags": ["mmap"]}, *operations]})
    )


def whole(dataset: Any) -> float:
    """Share of the memory that is mapped by 2 MiB, at the end."""
    return float(dataset["mapping_share"].sel(level="2 MiB").values[-1])


@pytest.mark.parametrize("merge", ["never", "lazy"])
def test_split_folios_become_whole_again_where_all_is_private(merge: str) -> None:
    before = run(THERE_AND_BACK, merge=merge)
    assert whole(before) == 5 / 8
    after = run([*THERE_AND_BACK, {"op": "collapse"}], merge=merge)
    assert after["event_errno"].values[-1] == 0
    assert whole(after) == 7 / 8, "the one with a shared page stays"
    for name in ("page_node", "run_node"):
        if name in after:
            np.testing.assert_array_equal(after[name].values, before[name].values, "no page moves")


def test_afterwards_it_is_as_if_each_conversion_had_merged() -> None:
    late, eager = run([*THERE_AND_BACK, {"op": "collapse"}]), run(THERE_AND_BACK, merge="eager")
    assert whole(late) == whole(eager)
    for name in ("metadata_pages", "free_pages", "shared_pages", "stage2_tables"):
        np.testing.assert_array_equal(late[name].values[-1], eager[name].values[-1], name)


def test_only_the_range_is_looked_at_and_a_second_pass_finds_nothing() -> None:
    made = run(
        [
            *THERE_AND_BACK,
            {"op": "collapse", "offset": MIB2, "length": MIB2},
            {"op": "collapse"},
            {"op": "collapse"},
            {"op": "collapse", "length": 0},
        ]
    )
    shares = made["mapping_share"].sel(level="2 MiB").values[-5:].tolist()
    assert shares == [5 / 8, 6 / 8, 7 / 8, 7 / 8, 7 / 8]
    assert made["event_errno"].values[-4:].tolist() == [0, 0, 0, errno.EINVAL]


def test_small_folios_that_stood_in_stay_small() -> None:
    """/proc/buddyinfo has two blocks of 2 MiB a node: the other four are 4 KiB folios, which private memory stays in."""
    zone = {"name": "Normal", "managed": 1 << 18, "free": 200_000, "min": 1000, "low": 2000, "high": 3000}
    zone |= {"free_blocks": [200_000 - 512 * 2, *[0] * 8, 2, 0]}
    host = HOST | {"nodes": [node | {"zones": [zone]} for node in HOST["nodes"]]}
    made = run([*THERE_AND_BACK, {"op": "collapse"}], host=host)
    assert made["small_pages_per_node"].values.sum() == 4 * 512
    shares = made["mapping_share"].sel(level="2 MiB").values
    assert shares[-2:].tolist() == [1 / 8, 3 / 8], "of four folios three were split, of which one has a shared page"


@pytest.mark.parametrize("design", ["hugetlb", "hugetlb-hvo", "pfn-range", "contiguous-4k"])
def test_other_designs(design: str) -> None:
    """Pages of hugetlb are re-formed by the worker of the series; where nothing is restructured nothing is to be done."""
    pools = {"boot": {"hugetlb_pages": {0: 8, 1: 8}}} if design.startswith("hugetlb") else {}
    made = run([*THERE_AND_BACK, {"op": "collapse"}], design=design, **pools)
    assert made["event_errno"].values[-1] == 0
    before, after = made["mapping_share"].sel(level="2 MiB").values[-2:]
    assert (before, after) == ((5 / 8, 7 / 8) if design.startswith("hugetlb") else (7 / 8, 7 / 8))


def test_without_a_file_there_is_nothing_to_collapse() -> None:
    made = run([{"op": "close"}, {"op": "collapse"}])
    assert made["event_errno"].values[-1] == errno.EBADF


# ------------------------------------------------------------------------------- what is copied into a folio that is free now

BLOCKS, NODES = 6, 3
DISTANCES = [[10, 21, 31], [21, 10, 21], [31, 21, 10]]


def dry_host(blocks: int) -> dict[str, Any]:
    """Nodes of which each has so many free blocks of 2 MiB, and the rest of its memory in single pages."""
    free = 100_000
    zone = {"name": "Normal", "managed": 1 << 17, "free": free, "min": 1000, "low": 2000, "high": 3000}
    zone |= {"free_blocks": [free - 512 * blocks, *[0] * 8, blocks, 0]}
    nodes = [{"id": n, "memory_bytes": 1 << 29, "cpus": [n], "zones": [zone]} for n in range(NODES)]
    return {"name": "dry", "nodes": nodes, "distances": DISTANCES}


def system_without_blocks(vm_type: str = "sw_protected") -> System:
    """Another file has all blocks, two of each node: whatever the guest touches is 4 KiB folios."""
    guest = {"memory": BLOCKS * MIB2, "page_size": "2 MiB", "design": "thp", "vm_type": vm_type}
    other = {"file": "other", "flags": ["mmap"]}
    made: list[dict[str, Any]] = [{"op": "create", "size": BLOCKS * MIB2, **other}]
    for node in range(NODES):
        part = {"file": "other", "offset": node * 2 * MIB2, "length": 2 * MIB2}
        made += [{"op": "mbind", "mode": "bind", "nodes": str(node), **part}, {"op": "fault", "by": "guest", **part}]
    made += [{"op": "create", "flags": ["mmap"]}, {"op": "collapse"}]
    given = {"host": dry_host(2), "guest": guest, "strict": False, "metadata": "off", "operations": made}
    scenario = wb.Scenario.from_mapping(given)
    system = System(scenario)
    for operation in scenario.operations[:-1]:
        assert apply(system, operation).errno == 0
    assert not system.free[:NODES].any()
    return system


def twin(
    nodes: list[int], bad: set[int], free: list[int], max_ptes_none: int
) -> tuple[dict[int, int], Counter[str], list[int]]:
    """mm/khugepaged.c page by page: which 2 MiB gets a folio of which node, what became of the rest, and what is free then.

    nodes : node of each page, -1 where there is none; bad : pages with a reference that is not the page cache's
    """
    found: dict[int, int] = {}
    became: Counter[str] = Counter()
    free = list(free)
    for block in range(len(nodes) // 512):
        load = [0] * NODES
        present, result = 0, ""
        for page in range(block * 512, block * 512 + 512):
            if nodes[page] < 0:
                continue
            if page in bad:
                result = "page_count"
                break
            load[nodes[page]] += 1
            present += 1
        if not result and not present:
            continue
        if not result and present < 512 - max_ptes_none:
            result = "exceed_none_pte"
        if not result:
            target, most = 0, 0
            for node in range(NODES):
                if load[node] > most:
                    target, most = node, load[node]
            nodemask = [node for node in range(NODES) if load[node] == most]
            zonelist = sorted(range(NODES), key=lambda node: (DISTANCES[target][node], node))
            node = next((node for node in zonelist if node in nodemask and free[node]), None)
            result = "thp_collapse_alloc_failed" if node is None else "collapsed_2m"
            if node is not None:
                free[node] -= 1
                found[block] = node
                became["copied_pages"] += present
        became[result] += 1
    return found, became, free


def test_agrees_with_khugepaged_page_by_page() -> None:
    """Small folios on any node, holes, pages that somebody holds: which 2 MiB is copied to which node."""
    seen = Counter[str]()
    for seed in range(10):
        seen += compare_with_twin(np.random.default_rng(seed))
    assert all(seen[name] for name in ("collapsed_2m", "thp_collapse_alloc_failed", "exceed_none_pte", "page_count"))
    assert seen["elsewhere"], "where several nodes have most, one of them that is not the first"


def compare_with_twin(rng: np.random.Generator) -> Counter[str]:
    """What became of the 2 MiB of one drawn guest; they are compared one by one."""
    system = system_without_blocks()
    for _ in range(30):
        first = int(rng.integers(0, BLOCKS)) * 512 + int(rng.choice([0, 0, 100, 256]))
        length = min(int(rng.choice([40, 256, 512, 700])), BLOCKS * 512 - first)
        where = {"offset": first * PAGE, "length": length * PAGE}
        nodes = ",".join(map(str, np.flatnonzero(rng.random(NODES) < 0.5))) or "0-2"
        assert apply(system, sc.Mbind(mode=str(rng.choice(["bind", "interleave"])), nodes=nodes, **where)).errno == 0
        assert apply(system, sc.Fault(by="guest", **where)).errno == 0
    bad: set[int] = set()
    for page, held in zip(rng.integers(0, BLOCKS * 512, 2).tolist(), (sc.Hwpoison, sc.Pin), strict=True):
        kind = {"kind": "transient"} if held is sc.Pin else {}
        if rng.random() < 0.5 and apply(system, held(offset=page * PAGE, length=PAGE, **kind)).errno == 0:
            bad.add(page)
    assert apply(system, sc.PunchHole(file="other", length=int(rng.integers(1, 7)) * MIB2)).errno == 0
    inode = system.files["guest"].inode
    zones = inode.zones_of(np.arange(BLOCKS * 512))
    on_node = np.where(zones >= 0, system.zone_node[np.maximum(zones, 0)], -1).tolist()
    free, max_ptes_none = system.free.copy(), int(rng.choice([0, 100, 511]))
    found, became, left = twin(on_node, bad, free[:NODES].tolist(), max_ptes_none)
    result = apply(system, sc.Collapse(max_ptes_none=max_ptes_none))
    counts = {name: count for name, count in result.detail.items() if not name.startswith("merges")}
    assert result.errno == 0 and counts == {name: became[name] for name in counts} and set(became) <= set(counts)
    huge = inode.map.zone_of(np.arange(BLOCKS)).tolist()
    assert {block: int(system.zone_node[zone]) for block, zone in enumerate(huge) if zone >= 0} == found
    # The 4 KiB folios went back to their nodes, and nobody lost a page.
    back = Counter(node for page, node in enumerate(on_node) if node >= 0 and page // 512 in found)
    np.testing.assert_array_equal(system.free[:NODES], left)
    np.testing.assert_array_equal(system.free[NODES:] - free[NODES:], [back[node] for node in range(NODES)])
    there = [512 if page // 512 in found else int(node >= 0) * 512 for page, node in enumerate(on_node)]
    assert inode.tracked is not None and inode.tracked.count("present_pages") * 512 == sum(there)
    loads = {block: Counter(on_node[block * 512 : block * 512 + 512]) for block in found}
    became["elsewhere"] = sum(node != max(range(NODES), key=lambda n: loads[b][n]) for b, node in found.items())
    return became


@pytest.mark.parametrize("vm_type", ["snp", "tdx"])
def test_nobody_copies_private_memory_of_encrypted_guests(vm_type: str) -> None:
    system = system_without_blocks(vm_type)
    assert apply(system, sc.Fault(by="guest")).errno == 0
    assert apply(system, sc.Close(file="other")).errno == 0
    free = system.free.copy()
    result = apply(system, sc.Collapse())
    assert (result.errno, result.detail) == (0, {"merges_2m": 0, "merges_1g": 0})
    np.testing.assert_array_equal(system.free, free)


def test_shared_pages_a_pin_and_a_part_of_2_mib_stand_in_the_way() -> None:
    system = system_without_blocks()
    for node in range(NODES):
        part = {"offset": node * 2 * MIB2, "length": 2 * MIB2}
        assert apply(system, sc.Mbind(mode="bind", nodes=str(node), **part)).errno == 0
    assert apply(system, sc.Fault(by="guest")).errno == 0
    assert apply(system, sc.Close(file="other")).errno == 0
    for operation in (
        sc.Convert(to="shared", offset=5 * PAGE, length=PAGE),  # of the first: mixed
        sc.Convert(to="shared", offset=MIB2, length=MIB2),  # all of the second
        sc.Convert(to="shared", offset=2 * MIB2, length=PAGE),
        sc.Pin(offset=2 * MIB2, length=PAGE),
    ):
        assert apply(system, operation).errno == 0
    counts = lambda **of: apply(system, sc.Collapse(**of)).detail["collapsed_2m"]  # noqa: E731
    assert counts(length=3 * MIB2) == 0
    assert counts(offset=3 * MIB2 + PAGE, length=2 * MIB2) == 1, "the one that lies wholly in the range"
    assert apply(system, sc.Convert(to="private", offset=5 * PAGE, length=PAGE)).errno == 0
    assert counts() == 3, "the first is private again, two more were never mixed"
    assert apply(system, sc.Unpin(offset=2 * MIB2, length=PAGE)).errno == 0
    assert apply(system, sc.Convert(to="private", length=3 * MIB2)).errno == 0
    assert counts() == 2
    assert apply(system, sc.Convert(to="shared", offset=MIB2, length=PAGE)).errno == 0
    inode = system.files["guest"].inode
    assert inode.tracked is not None and inode.tracked.count("splits_2m") == 1, "a folio as any other from then on"
    apply(system, sc.Close())
    assert int((system.free[:NODES] * 512 + system.free[NODES:]).sum()) == 100_000 * NODES, "everything is free again"


def test_nobody_maps_the_frames_that_were_copied() -> None:
    """KVM is told and faults the huge folio in; what a device has pinned stays where it is, and its mapping with it."""
    system = system_without_blocks()
    guest = sc.Fault(by="guest", length=2 * MIB2)
    device = {"offset": MIB2, "length": PAGE}
    assert apply(system, guest).errno == 0
    for operation in (sc.Convert(to="shared", **device), sc.IommuMap(**device), sc.Close(file="other")):
        assert apply(system, operation).errno == 0
    inode = system.files["guest"].inode
    users, file = inode.users, inode.tracked
    assert users is not None and file is not None
    assert (users.kvm_pages, file.count("leaves_2m")) == (1023, 0)
    told, frame = file.count("invalidations"), users.frames(MIB2 // PAGE, MIB2 // PAGE + 1).tolist()
    assert apply(system, sc.Collapse()).detail["collapsed_2m"] == 1
    assert (users.kvm_pages, file.count("invalidations") - told) == (511, 1), "the other 2 MiB is as it was"
    assert users.iommu.runs()[:, :3].tolist() == frame == users.frames(MIB2 // PAGE, MIB2 // PAGE + 1).tolist()
    assert apply(system, sc.Fault(by="guest", length=PAGE)).errno == 0
    assert (users.kvm_pages, file.count("leaves_2m"), file.count("regained_2m")) == (1023, 1, 1)


def mapped_by_kvm(state: Any) -> np.ndarray:
    """Pages that the second stage maps, bool (pages,), from its leaves."""
    leaf = np.repeat(state.marks[:BLOCKS] & folio.LEAF_MASK, 512)
    small = np.unpackbits(state.small[: BLOCKS * 8].astype("<u8").view(np.uint8), bitorder="little").astype(bool)
    mapped: np.ndarray = (leaf > folio.LEAF_4K) | ((leaf == folio.LEAF_4K) & small)
    return mapped


def frames_of(runs: list[list[int]]) -> dict[int, int]:
    """The frame of every page of runs (first page, pages, frame)."""
    return {page: frame for first, pages, frame, *_ in runs for page in range(first, first + pages)}


def test_no_mapping_is_stale_whenever_khugepaged_comes_by() -> None:
    """Calls in any order on small and huge folios: KVM and the device map the frame that is there, page by page."""
    copied = 0
    for seed in range(6):
        rng = np.random.default_rng([16, seed])
        system = system_without_blocks()
        inode = system.files["guest"].inode
        users, file = inode.users, inode.tracked
        assert users is not None and file is not None
        at_fault: dict[int, int] = {}  # the frame that KVM mapped, by page
        for step in range(60):
            where = {"offset": int(rng.integers(0, BLOCKS)) * MIB2, "length": MIB2}
            if rng.random() < 0.5:
                where = {"offset": where["offset"] + int(rng.integers(0, 500)) * PAGE, "length": PAGE}
            calls = [
                sc.Fault(by="guest", **where),
                sc.Convert(to=str(rng.choice(["shared", "private"])), **where),
                sc.IommuMap(**where),
                sc.IommuUnmap(**where),
                sc.Pin(**where),
                sc.Unpin(**where),
                sc.PunchHole(**where),
                sc.PunchHole(file="other", length=int(rng.integers(1, 7)) * MIB2),
                sc.Collapse(),
            ]
            call = calls[rng.choice(len(calls), p=[0.3, 0.2, 0.1, 0.06, 0.06, 0.06, 0.04, 0.03, 0.15])]
            result = apply(system, call)
            copied += result.detail.get("collapsed_2m", 0) if isinstance(call, sc.Collapse) else 0
            there = frames_of(users.frames(0, BLOCKS * 512).tolist())
            mapped = np.flatnonzero(mapped_by_kvm(file.state)).tolist()
            if isinstance(call, sc.Fault):
                at_fault |= {page: there[page] for page in mapped if page not in at_fault}
            assert set(mapped) <= set(at_fault), f"{seed}, {step}: only a fault maps, not {call}"
            at_fault = {page: at_fault[page] for page in mapped}
            assert all(there[page] == frame for page, frame in at_fault.items()), (seed, step, call)
            withheld = set(file.withheld().tolist())
            for page, frame in frames_of(users.iommu.runs().tolist()).items():
                assert there.get(page) == frame or page in withheld, (seed, step, call)
    assert copied > 3

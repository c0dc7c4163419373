"""Pages mapped for devices, and unmapped, together leave the same, event by event, as call after call."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.answer import Answer
from workbench.engine.device_areas import DeviceAreas
from workbench.engine.lists import devices, faults
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
TASKS = st.sampled_from(["vcpu0", "vcpu1", None])
RANGE = {
    "offset": (st.integers(0, 8) | st.integers(0, 8) | st.integers(0, PAGES - 1)).map(lambda page: page * 4096),
    "length": st.sampled_from([1, 1, 1, 2, 3, 16, 64, 700]).map(lambda pages: pages * 4096) | st.just(100),
    "task": TASKS,
}
CALL = st.fixed_dictionaries({"op": st.sampled_from(["iommu_map", "iommu_map", "iommu_unmap"]), **RANGE})
OTHER = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["punch_hole", "fault", "fallocate", "pin", "unpin", "hwpoison"]), **RANGE}),
    st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.sampled_from(["shared", "private"])}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.just("host"), **RANGE}),
    st.fixed_dictionaries({"op": st.just("iommu_map"), **RANGE, "file": st.just("other")}),
    st.fixed_dictionaries({"op": st.sampled_from(["close", "munmap"])}),
).map(
    lambda call: call | {"offset": call["offset"] // 4096 * 4096, "length": -(-call["length"] // 4096) * 4096}
    if "offset" in call
    else call
)  # fmt: skip
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}


def scenario(operations: list[dict[str, Any]], vm_type: str = "sw_protected", **fields: object) -> wb.Scenario:
    guest = {"memory": MEMORY, "vcpus": [{"node": 0}, {"node": 1}], "vm_type": vm_type}
    return wb.Scenario.from_mapping({"host": HOST, "guest": guest, "operations": operations, **fields})


def assert_equal(given_: wb.Scenario) -> int:
    """Also what the next call would find: areas, frames that devices have, and who holds which page."""
    one, _ = one_after_another.together(devices, given_, 1 << 30)
    other, _ = one_after_another.together(devices, given_, 2)
    assert _devices(one) == _devices(other)
    return one_after_another.assert_equal(devices, given_)


def _devices(answer: Answer) -> list[Any]:
    out = []
    for inode in answer.system.inodes():
        if inode.tracked is None or inode.users is None:
            continue
        frames = [
            (page, frame)
            for first, pages, frame, _ in inode.users.iommu.runs().tolist()
            for page in range(first, first + pages)
        ]
        pinned = inode.tracked.pinned()
        held = inode.tracked.references(pinned, left_file=False)
        out.append((inode.device_areas.tolist(), frames, pinned.tolist(), held.tolist(), inode.users.iommu_row()))
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL, min_size=1, max_size=15), st.lists(OTHER, max_size=2)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from(["filemap", "filemap", "pfn-range"]), st.sampled_from([(), ("mmap",), ("mmap", "init_shared")]),
    st.sampled_from(["", "shared", "all"]),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    vm_type: str,
    design: str,
    flags: tuple[str, ...],
    filled: str,
) -> None:
    calls = [call for some, others in parts for call in (*some, *others)]
    before: list[dict[str, Any]] = [
        {"op": "create", "file": "other", "size": "2 MiB"},
        {"op": "create", "flags": list(flags)},
        {"op": "fallocate", "file": "other"},
        {"op": "convert", "file": "other", "to": "shared"},
    ]
    before += [{"op": "convert", "to": "shared", "length": (PAGES // 2) * 4096}] * (filled != "")
    before += [{"op": "fallocate"}] * (filled == "all")
    kernel = "7.4" if design == "filemap" else "proposal-no-struct-page"
    given_ = scenario([*before, *calls], vm_type, metadata=metadata, kernel_profile=kernel)
    assert_equal(given_.replace(**{"guest.design": design}))


@pytest.mark.parametrize(
    ("design", "kernel", "metadata"),
    [("filemap", "7.4", "counted"), ("pfn-range", "proposal-no-struct-page", "taken")],
)
def test_long_lists_are_carried_out_together(design: str, kernel: str, metadata: str) -> None:
    """Areas of a device that comes and goes, some mapped twice, or taken away that are not there, or that it cannot have.

    Without struct pages they are another list's (:mod:`workbench.engine.lists.light`) where metadata are counted.
    """
    calls: list[dict[str, Any]] = []
    for number in range(900):
        page = {"offset": 4096 * (number * 37 % (PAGES // 2)), "task": f"vcpu{number % 2}"}
        calls += [{"op": "iommu_map", "length": 4096 * (1 + number % 3), **page}]
        calls += [{"op": "iommu_unmap", "length": 4096 * (1 + number % 4), **page}] * (number % 5 != 0)
        calls += [{"op": "check_extension", "capability": "guest_memfd"}] * (
            number % 100 == 0
        )  # what is mapped stays so
    calls += [{"op": op, "offset": 4096, "length": PAGES * 4096} for op in ("iommu_map", "iommu_unmap")]
    before: list[dict[str, Any]] = [{"op": "convert", "to": "shared"}, {"op": "fallocate"}]
    before += [{"op": "convert", "to": "private", "offset": 40 * 4096, "length": 4096 * 20}]
    before += [{"op": "hwpoison", "offset": page * 4096, "length": 4096} for page in (70, 90)]
    given_ = scenario([{"op": "create"}, *before, *calls], kernel_profile=kernel, metadata=metadata)
    given_ = given_.replace(**{"guest.design": design})
    assert assert_equal(given_) == len(calls) - 9  # those between
    answer = run(given_)
    assert {"EEXIST", "EFAULT", "EINVAL", "ENOENT"} <= set(answer["event_error"].tolist())
    assert answer["device_leaves"][-1].tolist() == [answer.system.inodes()[0].users.iommu.pages, 0, 0]


def test_maps_of_pages_that_are_to_be_placed_are_carried_out_together() -> None:
    """A device pins them, which faults them in; nothing else has touched the file."""
    maps = [{"op": "iommu_map", "offset": 4096 * (page * 37 % PAGES), "length": 4096} for page in range(400)]
    given_ = scenario([{"op": "create"}, *maps], vm_type="none", kernel_profile="7.4")
    assert one_after_another.assert_equal(faults, given_) >= 390
    assert int(run(given_)["event_pages"].sum()) == 400


def test_an_area_of_which_a_device_has_lost_pages_unmaps_the_others() -> None:
    calls: list[dict[str, Any]] = [{"op": "iommu_map", "offset": 16384 * row, "length": 16384} for row in range(20)]
    calls += [{"op": "punch_hole", "offset": 16384 * row, "length": 4096} for row in range(20)]
    calls += [{"op": "iommu_unmap", "offset": 16384 * row, "length": 16384} for row in range(20)]
    before: list[dict[str, Any]] = [{"op": "convert", "to": "shared"}, {"op": "fallocate"}]
    given_ = scenario([{"op": "create"}, *before, *calls], kernel_profile="proposal-no-struct-page", metadata="taken")
    assert assert_equal(given_.replace(**{"guest.design": "pfn-range"})) == 40


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 6)), max_size=60))
def test_areas_are_those_of_a_table(calls: list[tuple[bool, int, int]]) -> None:
    """Each page named by the area that has it."""
    areas, table = DeviceAreas(), {}
    for adds, first, pages in calls:
        touched = sorted({table[page] for page in range(first, first + pages) if page in table})
        assert areas.touched(first, first + pages) == touched
        if adds and not touched:
            areas.add(first, first + pages)
            table |= dict.fromkeys(range(first, first + pages), (first, first + pages))
        for low, high in () if adds else touched:
            areas.remove(low)
            table = {page: of for page, of in table.items() if of != (low, high)}
        assert areas.intervals().tolist() == [list(of) for of in sorted(set(table.values()))]
        assert len(areas) == len(set(table.values()))

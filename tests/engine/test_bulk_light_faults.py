"""Calls that place pages of a file without struct pages leave together, conversions between, what they leave one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine.kernel_pages import LIGHT_MAP, PAGE_CACHE, PAGE_TABLES, SECOND_STAGE, STATE_TREE
from workbench.engine.lists import light_faults
from workbench.engine.range_trees import MapleSlab
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
RANGE = {
    "offset": (st.integers(0, PAGES - 1) | st.integers(0, 9)).map(lambda page: page * 4096),
    "length": st.sampled_from([1, 1, 1, 1, 2, 3, 64, 513]).map(lambda pages: pages * 4096),
    "task": st.sampled_from(["vcpu0", "vcpu1", None]),
}
CONVERT = st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.sampled_from(["shared", "private"])})
BAD = st.sampled_from(
    [{"offset": 100, "length": 4096}, {"offset": 4096, "length": 100}, {"offset": MEMORY, "length": 4096}]
)
GUEST = st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "guest", "prefault"]), **RANGE})
HOST = st.fixed_dictionaries({"op": st.just("fault"), "by": st.just("host"), **RANGE})
PUNCH = st.fixed_dictionaries({"op": st.just("punch_hole"), **RANGE})
PIN = st.fixed_dictionaries(
    {"op": st.sampled_from(["pin", "pin", "unpin"]), **RANGE, "kind": st.sampled_from(["long_term", "transient"])}
)
DEVICE = st.fixed_dictionaries({"op": st.sampled_from(["iommu_map", "iommu_map", "iommu_unmap"]), **RANGE})
POISON = st.fixed_dictionaries({"op": st.just("hwpoison"), **RANGE}).map(
    lambda call: call | {"length": min(call["length"], 8192)}
)
MODES = st.sampled_from(["bind", "preferred", "interleave", "weighted_interleave"])
NODES = st.sampled_from(["0", "1", "0-1"])
MBIND = st.fixed_dictionaries({"op": st.just("mbind"), **RANGE, "mode": MODES, "nodes": NODES})
CALL = st.one_of(
    CONVERT, CONVERT, st.tuples(CONVERT, BAD).map(lambda two: two[0] | two[1]),
    GUEST, GUEST, HOST.map(lambda call: call | {"length": 4096}), HOST.map(lambda call: call | {"length": 4096}), HOST,
    st.fixed_dictionaries({"op": st.just("fallocate"), **RANGE}), PIN, PIN,
    PUNCH, PUNCH, st.tuples(PUNCH, BAD).map(lambda two: two[0] | two[1]),
    DEVICE, DEVICE, st.tuples(DEVICE, BAD).map(lambda two: two[0] | two[1]), POISON,
    MBIND, st.fixed_dictionaries({"op": st.sampled_from(["policy", "fbind"]), **RANGE, "mode": MODES, "nodes": NODES}),
)  # fmt: skip
OTHER = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["punch_hole", "pin", "unpin", "hwpoison", "iommu_map"]), **RANGE}),
    MBIND.map(lambda call: call | {"flags": ["move"]}),
    st.fixed_dictionaries({"op": st.just("set_mempolicy"), "task": RANGE["task"], "mode": MODES, "nodes": NODES}),
)
MACHINE: dict[str, Any] = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}
WELL = [
    {"op": "convert", "offset": MEMORY - 8192, "length": 4096, "to": "shared"},
    *[{"op": "fault", "by": by, "offset": MEMORY - 8192, "length": 4096} for by in ("guest", "prefault", "host")],
    {"op": "fallocate", "offset": MEMORY - 8192, "length": 4096},
]
"""Each way to touch the file goes well once."""


def scenario(
    operations: list[dict[str, Any]],
    vm_type: str = "sw_protected",
    memory: int = MEMORY,
    page_size: str = "4 KiB",
    **fields: Any,
) -> wb.Scenario:
    guest = {"memory": memory, "vcpus": [{"node": 0}, {"node": 1}], "vm_type": vm_type, "design": "pfn-range"}
    return wb.Scenario.from_mapping(
        {"host": MACHINE, "guest": {**guest, "page_size": page_size}, "operations": operations, **fields}
    )


def assert_equal(given_: wb.Scenario) -> int:
    return one_after_another.assert_equal(light_faults, given_)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL, min_size=2, max_size=20), st.lists(OTHER, max_size=2)), min_size=1, max_size=4),
    st.sampled_from(["counted", "counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from(["", "", "proposal-hugetlb", "proposal-hugetlb-rfc2", "7.4"]),
    st.sampled_from([("mmap",), ("mmap",), ("mmap", "init_shared")]), st.none() | st.integers(0, 60), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    vm_type: str,
    kernel: str,
    flags: tuple[str, ...],
    left: int | None,
    full: bool,
    single: bool,
) -> None:
    """Some find no memory, or none for struct pages; policies change in between, pages are held, poisoned and punched out."""
    hogs = [{"op": "hog", "node": 0, "leave_free": "4 MiB"}, {"op": "hog", "node": 1, "leave_free": "2 MiB"}]
    before: list[dict[str, Any]] = [
        {"op": "create", "file": "other", "size": "2 MiB", "flags": ["mmap"]},
        {"op": "create", "flags": list(flags)}, *hogs * full,
        {"op": "convert", "file": "other", "to": "shared"}, {"op": "fault", "file": "other", "by": "guest"},
    ]  # fmt: skip
    calls = [call for some, others in parts for call in (*WELL, *some, *others)]
    boot = {} if left is None else {"vmemmap_pages": {0: left, 1: left}}
    fields = {"metadata": metadata, "boot": boot} | ({"kernel_profile": kernel} if kernel else {})
    with pytest.MonkeyPatch.context() as patch:
        if single:  # each node of a maple tree is a page
            patch.setattr(MapleSlab, "OBJECTS", 1)
        assert_equal(scenario([*before, *calls], vm_type, **fields))


FEW = st.builds(
    lambda op, first, pages, task: {"length": pages * 4096} | op | {"offset": first * 4096, "task": task},
    st.sampled_from([
        *[{"op": "convert", "to": to} for to in ("shared", "private", "private")],
        *[{"op": "fault", "by": by} for by in ("host", "host", "host", "guest", "prefault")],
        {"op": "fallocate"}, {"op": "pin"}, {"op": "pin"}, {"op": "pin", "kind": "transient"}, {"op": "unpin"},
        {"op": "unpin", "kind": "transient"}, {"op": "punch_hole"}, {"op": "punch_hole"},
        {"op": "iommu_map"}, {"op": "iommu_map"}, {"op": "iommu_unmap"}, {"op": "hwpoison", "length": 4096}, {"op": "hwpoison"},
        *[{"op": "mbind", "mode": mode, "nodes": nodes} for mode, nodes in (("bind", "1"), ("interleave", "0-1"))],
    ]),
    st.integers(0, 5), st.sampled_from([1, 1, 1, 1, 2, 3]), RANGE["task"],
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(FEW, min_size=4, max_size=40), st.sampled_from(["sw_protected", "tdx"]), st.booleans())
def test_the_same_on_few_pages(calls: list[dict[str, Any]], vm_type: str, shared: bool) -> None:
    """Each call finds what several before it have left: conversions that pins refuse, and who touches what is absent then."""
    share = [{"op": "convert", "to": "shared", "length": 6 * 4096}] * shared
    assert_equal(scenario([{"op": "create"}, *share, *WELL, *calls], vm_type))


UNIT, UNITS = 2 << 20, 6
SPAN = st.one_of(
    st.tuples(st.integers(0, UNITS - 1), st.sampled_from([1, 1, 1, 2])).map(
        lambda span: {"offset": span[0] * UNIT, "length": span[1] * UNIT}
    ),
    st.tuples(st.integers(0, UNITS * 512 - 1), st.sampled_from([1, 1, 2, 16])).map(
        lambda span: {"offset": span[0] * 4096, "length": span[1] * 4096}
    ),
    st.tuples(st.integers(0, UNITS - 1), st.integers(0, 3)).map(
        lambda span: {"offset": span[0] * UNIT + span[1] * 4096, "length": 4096}
    ),
)
OF_UNITS = st.builds(
    lambda op, span, task: {**span, "task": task} | op,
    st.sampled_from([
        *[{"op": "convert", "to": to} for to in ("shared", "private", "private")],
        *[{"op": "fault", "by": by} for by in ("host", "host", "host", "guest", "prefault")],
        {"op": "fallocate"}, {"op": "pin"}, {"op": "pin"}, {"op": "pin", "kind": "transient"}, {"op": "unpin"},
        {"op": "unpin", "kind": "transient"}, {"op": "punch_hole"}, {"op": "punch_hole"}, {"op": "hwpoison", "length": 4096},
        {"op": "hwpoison"}, {"op": "iommu_map"}, {"op": "iommu_map"}, {"op": "iommu_unmap"},
        *[{"op": "mbind", "mode": mode, "nodes": nodes} for mode, nodes in (("bind", "1"), ("interleave", "0-1"))],
    ]),
    SPAN, RANGE["task"],
)  # fmt: skip
UNITS_WELL = [
    {"op": "convert", "to": "shared", "offset": 0, "length": 4096},
    *[{"op": "fault", "by": by, "offset": 0, "length": 4096} for by in ("guest", "prefault", "host")],
    {"op": "fallocate", "offset": 0, "length": UNIT},
]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(OF_UNITS, min_size=4, max_size=40), st.lists(OF_UNITS, max_size=10),
    st.sampled_from(["sw_protected", "snp", "tdx"]), st.booleans(),
    st.sampled_from(["", "", "proposal-hugetlb", "proposal-hugetlb-rfc2"]), st.none() | st.integers(0, 30), st.booleans(),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from([{}, {0: 3, 1: 2}, {0: 1, 1: 8}]),
)  # fmt: skip
def test_the_same_in_units_of_2_mib(
    calls: list[dict[str, Any]],
    more: list[dict[str, Any]],
    vm_type: str,
    shared: bool,
    kernel: str,
    left: int | None,
    interleaved: bool,
    metadata: str,
    pools: dict[int, int],
) -> None:
    """Of whole units, parts of them, and pages; ranges run out, struct pages are few, and another file has units of its own."""
    share = [{"op": "convert", "to": "shared", "offset": 0, "length": UNITS * UNIT}] * shared
    policy = [{"op": "set_mempolicy", "mode": "interleave", "nodes": "0-1"}] * interleaved
    other = {"file": "other", "length": UNIT}
    before = [{"op": "create", "file": "other", "size": "4 MiB"}, *policy, {"op": "fallocate", **other}, *share]
    boot = ({"hugetlb_pages": pools} if pools else {}) | ({} if left is None else {"vmemmap_pages": {0: left, 1: left}})
    fields = {"metadata": metadata, "boot": boot} | ({"kernel_profile": kernel} if kernel else {})
    operations = [{"op": "create"}, *before, *UNITS_WELL, *calls, {"op": "punch_hole", **other}, *more]
    assert_equal(scenario(operations, vm_type, UNITS * UNIT, "2 MiB", **fields))


def test_units_of_2_mib_and_1_gib_stand_in_lists() -> None:
    """Held, a unit stays; poisoned, it leaves the file and is not free; the host touches whole units."""
    for page_size, size in (("2 MiB", UNIT), ("1 GiB", 1 << 30)):
        unit, page = {"offset": size, "length": size}, {"offset": size + 4096, "length": 4096}
        well = [one | unit for one in ({"op": "fallocate"}, {"op": "fault", "by": "guest"})]
        host: dict[str, Any] = {"op": "fault", "by": "host", **(unit if size == UNIT else page)}
        calls: list[dict[str, Any]] = [
            {"op": "convert", "to": "shared", **page}, {"op": "fault", "by": "host", **page},
            {"op": "punch_hole", **unit}, {"op": "pin", **page}, {"op": "punch_hole", **unit}, {"op": "unpin", **page},
            {"op": "punch_hole", **page}, {"op": "punch_hole", **unit}, {"op": "fault", "by": "guest", **page},
            {"op": "fault", "by": "guest", "order": "reverse", **page},
            {"op": "convert", "to": "shared", **page}, {"op": "convert", "to": "private", **page},
            {"op": "fault", "by": "host", **page}, {"op": "hwpoison", **page}, {"op": "punch_hole", **unit},
            {"op": "convert", "to": "shared", **(page if size > UNIT else unit)}, host, host,
        ]  # fmt: skip
        nodes = [{**node, "memory_bytes": "6 GiB"} for node in MACHINE["nodes"]]
        given_ = scenario([{"op": "create"}, *well, host, *calls], memory=4 * size, page_size=page_size,
                          host={**MACHINE, "nodes": nodes}, boot={"hugetlb_pages": {0: 5, 1: 0}})  # fmt: skip
        assert assert_equal(given_) >= len(calls) - 1, page_size
        answer = run(given_)
        free, errors = (
            answer["free_pages"][-len(calls) - 1 :].sum(axis=1),
            answer["event_error"][-len(calls) :].tolist(),
        )
        assert np.diff(free).tolist() == [0, 0, 1, -1, 0, 0, 0, 1, -1, 0, 0, 0, 0, 0, 0, 0, -1, 0], page_size
        assert [number for number, error in enumerate(errors) if error] == [4, 6]
        assert errors[4] == "EAGAIN"
        assert answer.log.results[-1].detail["bad"] == 0 and answer.log.results[-6].detail["bad"] == 1


def test_a_conversion_that_a_pin_may_refuse_leaves_the_state_of_other_pages_open() -> None:
    """The host places what a refused conversion left shared; a list ends before it, or before a pin of several such pages."""
    page, next_page = {"offset": 0, "length": 4096}, {"offset": 4096, "length": 4096}
    both = {"offset": 0, "length": 8192}
    host = {"op": "fault", "by": "host"}
    calls: list[dict[str, Any]] = [
        {"op": "convert", "to": "shared", **both}, {"op": "pin", **page}, {"op": "convert", "to": "private", **page},
        {"op": "convert", "to": "private", **both}, host | next_page, {"op": "unpin", **page},
        {"op": "convert", "to": "private", **both}, host | next_page, {"op": "pin", "offset": 8192, "length": 8192},
        {"op": "convert", "to": "shared", "offset": 8192, "length": 8192}, host | {"offset": 8192, "length": 4096},
        {"op": "pin", "offset": 8192, "length": 8192}, {"op": "unpin", "offset": 8192, "length": 8192},
    ]  # fmt: skip
    given_ = scenario([{"op": "create"}, *WELL, *calls])
    assert assert_equal(given_) >= len(calls) - 4
    answer = run(given_)
    errors = answer["event_error"][1 + len(WELL) :].tolist()
    assert [number for number, error in enumerate(errors) if error == "EAGAIN"] == [2, 3]
    assert [result.detail.get("bad") for result in answer.log.results[1 + len(WELL) :]][4:8:3] == [0, 1]


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("full", [False, True])
def test_long_lists_are_carried_out_together(vm_type: str, full: bool) -> None:
    """Pages that go over all of a file are placed by all who touch it; the host finds private ones, and gets none of them."""
    memory = 24 << 20
    calls: list[dict[str, Any]] = []
    for number in range(500):
        page = {"offset": 4096 * (37 * number % (memory // 4096)), "length": 4096, "task": f"vcpu{number % 2}"}
        touches = [{"op": "fault", "by": "host"}, {"op": "fallocate"}, {"op": "fault", "by": "guest"}]
        calls += [{"op": "fault", "by": "host", **page}] * (number % 4 == 0)  # private
        calls += [{"op": "convert", "to": "shared", **page}] * (number % 3 < 2)
        calls += [touches[number % 3] | page]
        calls += [{"op": "convert", "to": "private", **page}] * (number % 5 == 0)
        calls += [{"op": "fault", "by": "prefault", **page}] * (number % 7 == 0)
    hogs = [{"op": "hog", "node": 0, "leave_free": "5 MiB"}] * full
    given_ = scenario([{"op": "create"}, *hogs, *WELL, *calls], vm_type, memory)
    assert assert_equal(given_) == len(calls)
    answer = run(given_)
    refused = [result.detail.get("bad") for result in answer.log.results[len(WELL) + 1 :]].count(1)
    assert refused > 100
    assert (answer["free_pages"][0] - answer["free_pages"][-1]).sum() > 450
    steps = [np.diff(answer["metadata_pages"].sum(axis=-1)[:, kind]) for kind in (LIGHT_MAP, STATE_TREE, PAGE_CACHE)]
    assert all((one > 0).any() for one in steps)


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
def test_holes_and_what_fills_them_are_carried_out_together(vm_type: str) -> None:
    """Pages leave the file, with their struct pages, the guest's leaves and the host's mappings, and come back, or do not."""
    calls: list[dict[str, Any]] = []
    for number in range(300):
        page = {"offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        wide = {"op": "punch_hole", "offset": page["offset"] & ~0xFFFF, "length": 0x10000}
        calls += [{"op": "convert", "to": "shared", **page}, {"op": "fault", "by": "host", **page}] * (number % 3 == 0)
        calls += [{"op": "fault", "by": "guest", **page}] * (number % 2)
        calls += [{"op": "punch_hole", **page}, {"op": "fault", "by": ["guest", "host"][number % 4 // 2], **page}]
        calls += [wide] * (number % 11 == 0)
    given_ = scenario([{"op": "create"}, {"op": "fault", "by": "guest"}, *WELL, *calls, *calls[:9]], vm_type)
    assert assert_equal(given_) > len(calls)
    answer = run(given_)
    free = answer["free_pages"].sum(axis=1)[len(WELL) + 2 :]
    mapped = answer["user_mapped_pages"][len(WELL) + 2 :, 0]
    assert np.diff(free).max() > 10 and (np.diff(free) < 0).any() and free[-1] > free[0] + 100
    assert mapped[0] > mapped[-1] > 0 and (np.diff(mapped) > 0).any()


def test_pages_placed_in_turns_by_policy() -> None:
    """Rows of one fault are put in where the policy has placed them, and the guest has them mapped by frame."""
    policy = [
        {"op": "set_mempolicy", "task": task, "mode": "interleave", "nodes": "0-1"} for task in ("vcpu0", "vcpu1")
    ]
    calls = [
        {"op": "fault", "by": "guest", "offset": 4096 * (97 * number % 1900), "length": 4096 * (1 + number % 9)}
        for number in range(100)
    ]
    given_ = scenario([{"op": "create"}, *policy, *WELL, *calls])
    assert assert_equal(given_) == len(calls)


def test_what_is_counted_is_where_there_was_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node comes to its mark while the list runs: page tables and nodes of trees, a page each, are on it until then."""
    monkeypatch.setattr(MapleSlab, "OBJECTS", 1)
    # The last page above the mark is a host's, whose table comes from there, too.
    hogs = [{"op": "hog", "node": 0, "leave_free": (3 << 20) + 6 * 4096}]
    calls: list[dict[str, Any]] = []
    for number in range(90):
        page = 512 * number
        calls += [{"op": "convert", "to": "shared", "offset": 4096 * page, "length": 4096}]
        calls += [{"op": "fault", "by": "host", "offset": 4096 * page, "length": 4096}]
        calls += [{"op": "fault", "by": "guest", "offset": 4096 * (page + 2), "length": 4096 * 8}]
    given_ = scenario([{"op": "create"}, *hogs, *WELL, *calls], memory=192 << 20)
    assert assert_equal(given_) == len(calls)
    pages = run(given_)["metadata_pages"]
    assert (pages[-1][[PAGE_TABLES, SECOND_STAGE, LIGHT_MAP, STATE_TREE]] > 0).all()


def test_what_finds_no_memory_is_refused_alone() -> None:
    hogs = [{"op": "hog", "node": node, "leave_free": "3 MiB"} for node in (0, 1)]
    calls = [{"op": "fallocate", "offset": 4096 * 7 * number, "length": 4096 * 7} for number in range(250)]
    given_ = scenario([{"op": "create"}, *hogs, *WELL, *calls], metadata="off")
    assert assert_equal(given_) > 100
    answer = run(given_)
    killed = int(np.argmax(answer["event_error"] == "ESRCH")) - 1
    assert answer["event_error"][killed] == "ENOMEM"
    assert 0 < answer.log.placed[killed].sum() < 7


def test_struct_pages_of_what_the_host_touches_have_nodes_above_them() -> None:
    """Nothing is converted in the list; the file is large enough for two levels above the groups of struct pages."""
    share = {"op": "convert", "to": "shared", "length": 20 << 20}
    calls = [
        {"op": "fault", "by": "host", "offset": 4096 * (101 * number % 5000), "length": 4096} for number in range(50)
    ]
    given_ = scenario([{"op": "create"}, *WELL, share, *calls], memory=24 << 20)
    assert assert_equal(given_) == len(calls)
    (nodes,) = [trees[PAGE_CACHE].nodes.sum() for trees in run(given_).system.metadata.trees.values()]  # type: ignore[union-attr]
    assert nodes == len({101 * number % 5000 // 64 for number in range(50)}) + 2 + 1


def test_what_somebody_holds_leaves_the_file_and_is_free_later() -> None:
    """Its hole and its last unpin stand in lists, as all around them."""
    page, other = {"offset": 4096 * 40, "length": 4096}, {"offset": 4096 * 41, "length": 4096}
    convert = {"op": "convert", "to": "shared"}
    around = [{"op": op, "offset": 8192 * n, "length": 4096} for n in range(9) for op in ("fallocate", "punch_hole")]
    calls: list[dict[str, Any]] = [
        convert | page, {"op": "pin", **page}, {"op": "pin", **other}, {"op": "punch_hole", **other},
        {"op": "pin", "kind": "transient", **page}, *around, {"op": "punch_hole", **page},
        *around, {"op": "unpin", "kind": "transient", **page}, convert | other, {"op": "pin", **page}, {"op": "unpin", **page},
        *around, {"op": "unpin", **page}, {"op": "punch_hole", **page}, *around,
    ]  # fmt: skip
    given_ = scenario([{"op": "create"}, *WELL, *calls])
    assert assert_equal(given_) == len(calls)
    answer = run(given_)
    errors = answer["event_error"][1 + len(WELL) :].tolist()
    assert [(number, error) for number, error in enumerate(errors) if error] == [(2, "EFAULT"), (42, "EINVAL")]
    free = np.diff(answer["free_pages"].sum(axis=1)[len(WELL) :])
    drops = [
        number
        for number, one in enumerate(calls)
        if one["op"] in ("punch_hole", "unpin") and one["offset"] == page["offset"]
    ]
    assert free[drops].tolist() == [
        0,
        0,
        1,
        0,
        1,
    ]  # a hole, a reference that there is not, the oldest, the last one, a hole


def test_a_conversion_that_a_pin_refused_leaves_the_state_of_a_hole_open() -> None:
    """What somebody held when it was to be private is shared yet when it has left, and the host places it again."""
    page = {"offset": 0, "length": 4096}
    private, host = {"op": "convert", "to": "private", **page}, {"op": "fault", "by": "host", **page}
    for kind in ("transient", "long_term"):
        calls: list[dict[str, Any]] = [
            {"op": "convert", "to": "shared", **page}, host, {"op": "pin", "kind": kind, **page}, private,
            *[{"op": "unpin", "kind": kind, **page}] * (kind == "long_term"), {"op": "punch_hole", **page}, host,
            private, host, {"op": "punch_hole", **page}, host,
        ]  # fmt: skip
        given_ = scenario([{"op": "create"}, *WELL, *calls])
        assert assert_equal(given_) >= len(calls) - 1
        bad = [result.detail.get("bad") for result in run(given_).log.results[1 + len(WELL) :]]
        assert [one for one in bad if one is not None] == [0, 0, 1, 1]


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp"])
def test_what_devices_map_is_followed(vm_type: str) -> None:
    """Areas come and go, some mapped twice, absent or not there; what is converted or leaves is lost, and told; neighbours stay
    apart, and an area of which nothing is mapped any more is told all the same."""
    calls: list[dict[str, Any]] = [{"op": "iommu_map", "file": "other", "length": 8192}]
    for number in range(400):
        page = {"offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        wide = {"op": ["iommu_map", "iommu_unmap"][number % 2], "offset": page["offset"] & ~0x3FFF, "length": 0x4000}
        calls += [{"op": "fault", "by": "guest", **page}] * (number % 4 < 3)
        calls += [{"op": "iommu_map", **page}] * (number % 3 < 2)
        calls += [wide] * (number % 5 == 0)
        calls += [{"op": "convert", "to": ["shared", "private"][number % 2], **page}] * (number % 3 == 0)
        calls += [{"op": "punch_hole", **page}] * (number % 7 == 0)
        calls += [{"op": "iommu_unmap", **page}] * (number % 4 == 1)
    calls += [
        {"op": "convert", "to": to, "offset": 4096 * 64, "length": 4096 * 600} for to in ("shared", "private", "shared")
    ]
    fill = [{"op": "fault", "by": "guest", "length": MEMORY // 2}]
    other = [{"op": "create", "file": "other", "size": "2 MiB"}, {"op": "fallocate", "file": "other"}]
    given_ = scenario([*other, {"op": "create"}, *fill, *WELL, *calls], vm_type)
    assert assert_equal(given_) >= len(calls) - 1
    answer = run(given_)
    assert {"EEXIST", "ENOENT", "EFAULT"} <= set(answer["event_error"].tolist())
    told, mapped = (answer[name][:, 1] for name in ("user_invalidations", "user_mapped_pages"))
    lost = answer["iommu_lost_pages"]
    assert told[-1] > 100 and lost[-1] > 100 and mapped.max() > mapped[-1] > 2
    assert answer["device_leaves"][:, 0].tolist() == mapped.tolist()


@pytest.mark.parametrize("vm_type", ["sw_protected", "tdx"])
def test_poison_is_followed(vm_type: str) -> None:
    """Neither the guest nor a device gets poisoned pages, and a range that has one stays shared. To the host one is bad, nobody
    pins it, and when it leaves the file it is not free."""
    calls: list[dict[str, Any]] = []
    for number in range(300):
        page = {"offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        wide = {"offset": page["offset"] & ~0xFFFF, "length": 0x10000}
        calls += [{"op": "fault", "by": "guest", **page}] * (number % 3 < 2)
        calls += [{"op": "convert", "to": "shared", **page}] * (number % 2 or number % 8 == 4)
        calls += [{"op": "iommu_map", **page}] * (number % 5 < 2)
        calls += [{"op": "hwpoison", **page}] * (number % 4 == 0)
        calls += [{"op": "convert", "to": "private", **(page if number % 3 else wide)}] * (number % 8 > 0)
        calls += [{"op": "fault", "by": ["guest", "prefault"][number % 2], **(page if number % 3 else wide)}]
        calls += [{"op": "pin", "kind": "transient", **page}, {"op": "iommu_map", **wide}] * (number % 6 == 0)
    page = {"offset": 4096 * 37 * 4, "length": 4096}
    alone: list[dict[str, Any]] = [{"op": "fault", "by": "host"}, {"op": "pin"}, {"op": "punch_hole"}]
    calls += [one | page for one in alone for _ in range(2)]
    given_ = scenario([{"op": "create"}, *WELL, *calls], vm_type)
    assert assert_equal(given_) == len(calls)
    answer = run(given_)
    errors = answer["event_error"].tolist()
    assert {"EHWPOISON", "ENOENT", "EAGAIN", "EEXIST"} <= set(errors)
    assert [result.detail.get("bad") for result in answer.log.results[-6:]] == [1, 1, None, None, None, None]
    assert errors[-6:] == ["", "", "EFAULT", "EFAULT", "", ""]
    assert not np.diff(answer["free_pages"][-4:], axis=0).any()
    assert errors.count("EHWPOISON") > 50 and errors.count("") > 500


def test_a_conversion_that_poison_may_refuse_leaves_the_state_of_other_pages_open() -> None:
    page, next_page = {"offset": 0, "length": 4096}, {"offset": 4096, "length": 4096}
    both = {"op": "convert", "offset": 0, "length": 8192}
    calls: list[dict[str, Any]] = [
        both | {"to": "shared"}, {"op": "fault", "by": "guest", **page}, {"op": "hwpoison", **page}, both | {"to": "private"},
        {"op": "fault", "by": "host", **next_page},
    ]  # fmt: skip
    given_ = scenario([{"op": "create"}, *WELL, *calls, *calls])
    assert assert_equal(given_) >= 2 * len(calls) - 4
    answer = run(given_)
    assert answer["event_error"].tolist().count("EAGAIN") == 2
    assert [result.detail.get("bad") for result in answer.log.results][1 + len(WELL) + 4 :: 5] == [0, 0]


def test_a_list_goes_on_where_struct_pages_do_not_suffice() -> None:
    calls = [
        {"op": op, "offset": 8192 * number, "length": 4096} | ({"to": "shared"} if op == "convert" else {"by": "guest"})
        for number in range(40)
        for op in ("convert", "fault")
    ]
    given_ = scenario(
        [{"op": "create", "flags": ["mmap"]}, *WELL, *WELL[1:4], *calls], boot={"vmemmap_pages": {0: 1, 1: 1}}
    )
    assert len(calls) - 20 < assert_equal(given_) < len(calls)
    errors = run(given_)["event_error"].tolist()
    assert errors.count("ENOMEM") > 4
    assert "ENOMEM" in run(given_)["event_error"]


@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB"])
def test_calls_that_set_policies_end_no_list(page_size: str) -> None:
    """Each touch places by what was set before it; of a huge unit the page touched first decides."""
    size = UNIT if page_size == "2 MiB" else 4096
    calls: list[dict[str, Any]] = []
    for number in range(40):
        unit = {"offset": (1 + number % 3) * size, "length": size}
        page = {"offset": unit["offset"] + size // 2 // 4096 * 4096, "length": 4096}
        calls += [
            {"op": "mbind", **unit, "mode": "bind", "nodes": str(number % 2)},
            {"op": "mbind", **page, "mode": "bind", "nodes": str(number // 2 % 2)},
            {"op": "punch_hole", **unit}, {"op": "fault", "by": "guest", **page}, {"op": "fallocate", **unit},
        ]  # fmt: skip
    well = [{"op": "fallocate", "length": size}, {"op": "fault", "by": "guest", "length": 4096}]
    boot = {"hugetlb_pages": {0: 8, 1: 8}} if size == UNIT else {}
    operations = [{"op": "create"}, *well, *calls, {"op": "convert", "to": "shared", "length": 4096}]
    given_ = scenario(operations, memory=6 * UNIT, page_size=page_size, boot=boot)
    assert assert_equal(given_) >= len(calls)
    placed = run(given_)["event_pages"][3 + 3 : 3 + len(calls) : 5]
    assert [int(np.argmax(row)) for row in placed] == [number // 2 % 2 for number in range(40)]


@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB"])
def test_the_host_touches_pages_of_either_state_and_poisoned_ones(page_size: str) -> None:
    """It gets what is shared and not poisoned, and goes through its page tables for what is; a unit is placed for any of it."""
    unit: dict[str, Any] = {"op": "fault", "by": "host", "offset": UNIT, "length": UNIT}
    page = {"offset": UNIT + 7 * 4096, "length": 4096}
    there = [{"op": "fallocate", "offset": UNIT, "length": UNIT}]
    calls: list[dict[str, Any]] = [
        unit, {"op": "convert", "to": "shared", "offset": UNIT + 3 * 4096, "length": 9 * 4096}, unit,
        {"op": "hwpoison", **page}, unit, {"op": "convert", "to": "shared", "offset": UNIT, "length": UNIT}, unit,
        {"op": "convert", "to": "private", "offset": UNIT, "length": 4096}, unit, unit | {"offset": UNIT // 2},
        {"op": "fallocate", "offset": 2 * UNIT, "length": 2 * UNIT},
        {"op": "convert", "to": "shared", "offset": 2 * UNIT, "length": 2 * UNIT},
        {"op": "hwpoison", "offset": 2 * UNIT + 4096, "length": 4096}, {**unit, "offset": 2 * UNIT, "length": 2 * UNIT},
        *[{"op": "pin", **page}, unit] * 4,
    ]  # fmt: skip
    well: list[dict[str, Any]] = [
        {"op": "convert", "to": "shared", "length": 4096}, {"op": "fault", "by": "host", "length": 4096},
        {"op": "fallocate", "length": 4096 if page_size == "4 KiB" else UNIT},
    ]  # fmt: skip
    boot = {"hugetlb_pages": {0: 8, 1: 8}} if page_size == "2 MiB" else {}
    late, early = [*well, *calls[:2], *there, *calls[2:]], [*well, *there, *calls]
    for operations in (early, late):
        given_ = scenario([{"op": "create"}, *operations], memory=4 * UNIT, page_size=page_size, boot=boot)
        assert assert_equal(given_) >= len(operations) - 3
        touches = [
            result.detail
            for result, one in zip(run(given_).log.results[1:], operations, strict=True)
            if one["op"] == "fault" and one["length"] == UNIT
        ]
        assert [(one["bad"], one["first"] - 512) for one in touches[:3]] == [(512, 0), (503, 0), (504, 0)]
        assert [(one["bad"], one["first"] - 512) for one in touches[3:5]] == [(1, 7), (2, 0)]
        assert (touches[5]["bad"], touches[5]["first"]) == (258, 256)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_host_places_part_by_part_what_is_shared(interleaved: bool) -> None:
    """Private pages between stay absent; it is alone where page tables come between, of several or by the rotation of tasks."""
    policy = [{"op": "set_mempolicy", "mode": "interleave", "nodes": "0-1"}] * interleaved
    calls: list[dict[str, Any]] = []
    for number in range(30):
        start = (16 * number + 3) * 4096
        calls += [
            *[{"op": "convert", "to": "shared", "offset": start + at * 4096, "length": 4096} for at in (1, 2, 4, 7)],
            {"op": "fault", "by": "host", "offset": start + 2 * 4096, "length": 4096},
            {"op": "fault", "by": "host", "offset": start, "length": 10 * 4096},
        ]  # fmt: skip
    calls += [{"op": "convert", "to": "shared", "offset": 2 * UNIT + at * 4096, "length": 4096} for at in (1, 4)]
    calls += [{"op": "fault", "by": "host", "offset": 2 * UNIT, "length": 6 * 4096}]
    across = {"offset": UNIT - 3 * 4096, "length": 6 * 4096}
    calls += [{"op": "convert", "to": "shared", **across}, {"op": "fault", "by": "host", **across}, *calls[:12]]
    given_ = scenario([{"op": "create"}, *policy, *WELL, *calls])
    assert assert_equal(given_) >= len(calls) - (32 if interleaved else 1)
    results = run(given_).log.results[1 + len(policy) + len(WELL) :]
    touches = [result for result, one in zip(results, calls, strict=True) if one["length"] == 10 * 4096]
    assert {(touch.ret, touch.detail["bad"]) for touch in touches} == {(4, 6)}


def test_what_a_pin_has_mapped_needs_no_page_table_when_it_is_touched() -> None:
    """A touch of that page and a private one goes through none; one of that page and a shared one, through that of the other."""
    calls: list[dict[str, Any]] = []
    for start in (UNIT - 4096, 2 * UNIT - 4096):
        page, both = {"offset": start, "length": 4096}, {"offset": start, "length": 8192}
        calls += [
            {"op": "convert", "to": "shared", **page}, {"op": "pin", **page}, {"op": "fault", "by": "host", **both},
            {"op": "fallocate", **both}, {"op": "convert", "to": "shared", **both}, {"op": "fault", "by": "host", **both},
        ]  # fmt: skip
    given_ = scenario([{"op": "create"}, *WELL, *calls])
    assert assert_equal(given_) >= len(calls)
    tables = run(given_)["metadata_pages"][-len(calls) - 1 :, PAGE_TABLES].sum(axis=1)
    assert np.diff(tables).tolist() == [0, 0, 0, 0, 0, 1] * 2

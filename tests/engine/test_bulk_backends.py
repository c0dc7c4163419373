"""Calls on a guest whose conversions are out of place leave the same carried out together, event by event, as one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine.kernel_pages import NODES_IN_SLAB
from workbench.engine.lists import backends
from workbench.running import run

MEMORY = 34 << 20
PAGES = MEMORY // 4096
"""More than 8,192: pages beyond 4,096 need a third level of nodes."""
TASKS = st.sampled_from(["vcpu0", "vcpu1", None])
RANGE = {
    "offset": st.sampled_from([0, 0, 1, 62, 63, 64, 500, 4095, 4096, 5000, PAGES - 1]).map(lambda page: page * 4096)
    | st.integers(0, PAGES).map(lambda page: page * 4096)
    | st.just(100),
    "length": st.sampled_from([1, 1, 1, 2, 3, 64, 65, 128, 700, PAGES]).map(lambda pages: pages * 4096) | st.just(100),
    "task": TASKS,
}
TO = st.sampled_from(["shared", "private"])
CONVERT = st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": TO})
FAULT = st.fixed_dictionaries(
    {"op": st.just("fault"), **RANGE, "by": st.sampled_from(["guest", "guest", "prefault", "host"])}
)
SET = st.fixed_dictionaries(
    {"op": st.just("set_memory_attributes"), **RANGE, "private": st.booleans()},
    optional={"raw_attributes": st.sampled_from([0, 8, 1]), "raw_flags": st.sampled_from([0, 0, 1])},
)
HOLE = st.fixed_dictionaries({"op": st.sampled_from(["punch_hole", "fallocate"]), **RANGE})
CALL = st.one_of(CONVERT, CONVERT, FAULT, SET, HOLE)
PIN = {"op": st.sampled_from(["pin", "unpin"]), **RANGE}
SINGLE = st.one_of(
    st.fixed_dictionaries(PIN | {"kind": st.sampled_from(["long_term", "long_term", "transient"])}),
    st.fixed_dictionaries({"op": st.sampled_from(["iommu_map", "iommu_unmap", "hwpoison"]), **RANGE}),
)
ALONE = st.one_of(SET, SET, FAULT, HOLE)
OTHER = st.one_of(
    st.fixed_dictionaries({"op": st.just("fallocate"), **RANGE, "mode": st.sampled_from([0, 1])}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.just("guest"), **RANGE, "order": st.just("reverse")}),
    st.fixed_dictionaries({"op": st.just("convert_stream"), "stream": st.just("uniform_random"), "count": st.just(20)}),
    st.fixed_dictionaries({"op": st.just("set_mempolicy"), "mode": st.just("interleave"), "nodes": st.just("0-1"),
                           "task": TASKS}),
    st.fixed_dictionaries({"op": st.just("mmap"), "file": st.just("guest.shared")}),
).map(
    lambda call: {**call, "offset": call["offset"] // 4096 * 4096, "length": -(-call["length"] // 4096) * 4096}
    if "offset" in call and call["op"] != "fault"
    else call
)  # fmt: skip


def scenario(operations: list[dict[str, Any]], memory: str = "256 MiB", **fields: object) -> wb.Scenario:
    host = {
        "name": "two",
        "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": memory, "cpus": [1]}],
        "distances": [[10, 20], [20, 10]],
    }
    guest = {"memory": MEMORY, "vcpus": [{"node": 0}, {"node": 1}], "vm_type": "sw_protected"}
    return wb.Scenario.from_mapping(
        {"host": host, "guest": guest, "operations": operations, "kernel_profile": "7.3", **fields}
    )


def assert_equal(given_: wb.Scenario) -> int:
    return one_after_another.assert_equal(backends, given_)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL, min_size=1, max_size=15), st.lists(OTHER, max_size=2)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["6.12", "6.18", "7.3"]), st.booleans(),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], metadata: str, kernel: str, filled: bool
) -> None:
    calls = [call for some, others in parts for call in (*some, *others)]
    before: list[dict[str, Any]] = [{"op": "create"}, *([{"op": "fallocate"}] * filled)]
    assert_equal(scenario([*before, *calls], metadata=metadata, kernel_profile=kernel))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL | SINGLE, min_size=1, max_size=15), st.lists(OTHER, max_size=1)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["6.18", "7.3", "7.4"]), st.booleans(),
    st.sampled_from(["sw_protected", "snp", "tdx"]),
)  # fmt: skip
def test_pages_that_are_looked_at_one_by_one_are_the_same(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    kernel: str,
    filled: bool,
    vm_type: str,
) -> None:
    """Pins, poison and devices: the tracked file is told of what comes and goes."""
    calls = [call for some, others in parts for call in (*some, *others)] + [{"op": "hwpoison", "length": 4096}]
    before: list[dict[str, Any]] = [{"op": "create"}, *([{"op": "fallocate"}] * filled)]
    given_ = scenario([*before, *calls], metadata=metadata, kernel_profile=kernel)
    assert_equal(given_.replace(**{"guest.vm_type": vm_type, "guest.conversion.mode": "out-of-place"}))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.lists(ALONE, min_size=1, max_size=15), st.lists(OTHER, max_size=1)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["6.18", "7.3", "7.4"]), st.booleans(),
    st.sampled_from(["sw_protected", "sw_protected", "tdx", "none"]), st.sampled_from([None, [], ["mmap"]]),
)  # fmt: skip
def test_a_guest_memfd_alone_is_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    kernel: str,
    slot: bool,
    vm_type: str,
    flags: list[str] | None,
) -> None:
    """Without conversions nothing backs what is shared, or with a slot's own mapping something that is not simulated."""
    calls = [call for some, others in parts for call in (*some, *others)]
    calls = [call for call in calls if call["op"] not in ("mmap", "convert_stream")]
    before: list[dict[str, Any]] = [{"op": "create", "flags": flags}, *([{"op": "memslot"}] * slot)]
    given_ = scenario([*before, *calls], metadata=metadata, kernel_profile=kernel)
    assert_equal(given_.replace(**{"guest.vm_type": vm_type}))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(CALL.map(lambda call: call | {"to": "shared"} if "to" in call else call), min_size=20, max_size=60),
    st.integers(0, 20), st.booleans(),
)  # fmt: skip
def test_memory_that_runs_out_ends_the_guest_as_it_would(calls: list[dict[str, Any]], left: int, pinned: bool) -> None:
    """Pages are private and absent at first, so that what is shared is new: some MiB more than the host has."""
    host = [{"op": "hog", "node": node, "leave_free": f"{left} MiB"} for node in (0, 1)]
    host += [{"op": "pin", "length": 4096}] * pinned  # single pages are looked at
    assert_equal(scenario([{"op": "create"}, *host, *calls], "64 MiB"))


@pytest.mark.parametrize("metadata", ["counted", "off"])
def test_long_lists_are_carried_out_together(metadata: str) -> None:
    """Pages that go to and fro; trees grow, and empty, and slabs are taken and given back."""
    calls: list[dict[str, Any]] = []
    for low in range(0, PAGES, 40):
        calls += [
            {"op": "convert", "to": "shared", "offset": 4096 * low, "length": 4096, "task": f"vcpu{low // 40 % 2}"}
        ]
    for low in range(0, PAGES, 40):
        page = (low * 37) % PAGES // 40 * 40
        calls += [{"op": "convert", "to": ["private", "shared"][low % 3 == 0], "offset": 4096 * page, "length": 4096}]
    given_ = scenario([{"op": "create"}, {"op": "fallocate"}, *calls], metadata=metadata)
    # Of a list the first is made alone if its tree of pages is yet to grow.
    assert assert_equal(given_) >= len(calls) - 4
    if metadata == "counted":
        held = run(given_)["metadata_pages"].sum(axis=2)
        assert held.max() > 4 * (PAGES // 64) // NODES_IN_SLAB
        assert len(set(held[:, 3].tolist())) > 3


def test_a_page_that_goes_to_and_fro_alone_is_carried_out_together() -> None:
    """Nothing else is shared: each time the tree of what is shared is empty before, or after."""
    for page in (0, 1, 5000):
        calls = [
            {"op": "convert", "to": to, "offset": 4096 * page, "length": 4096} for to in ["shared", "private"] * 40
        ]
        given_ = scenario([{"op": "create"}, {"op": "fallocate"}, *calls])
        assert assert_equal(given_) >= len(calls) - 2


def test_the_first_page_alone_needs_no_node_until_the_tree_grows() -> None:
    calls = [{"op": "convert", "to": "shared", "offset": 4096 * page, "length": 4096} for page in [0] * 40 + [64] * 40]
    given_ = scenario([{"op": "create"}, *calls])
    assert assert_equal(given_) >= 70
    metadata = run(given_).system.metadata
    assert metadata is not None
    assert metadata.xarray.parts[0].sum() == 3


def test_conversions_and_faults_in_turns_are_carried_out_together() -> None:
    """To shared, back, and touched again: fresh pages each time, and the tables that the first touch needs."""
    calls: list[dict[str, Any]] = []
    for number in range(300):
        page = {"offset": 4096 * (number * 37 % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "convert", "to": "shared", **page}, {"op": "fault", "by": "guest", **page}]
        calls += [{"op": "convert", "to": "private", **page}, {"op": "fault", "by": "prefault", **page}]
    given_ = scenario([{"op": "create"}, {"op": "fault", "by": "guest", "length": 4096}, *calls])
    assert assert_equal(given_) >= len(calls) - 8
    assert run(given_)["refaulted_pages"].tolist()[-1] == 300


@pytest.mark.parametrize("metadata", ["counted", "off"])
def test_holes_and_faults_of_the_host_run_with_conversions(metadata: str) -> None:
    """The host reaches no page of the guest_memfd; what is allocated under shared gfns stays there until a hole frees it."""
    calls: list[dict[str, Any]] = []
    for number in range(200):
        page = {"offset": 4096 * (number * 37 % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "fallocate", **page}, {"op": "fault", **page}, {"op": "punch_hole", **page}]
        calls += [{"op": "convert", "to": "shared", **page}, {"op": "fallocate", **page}]
        calls += [{"op": "punch_hole", **page}] * (number % 3 == 0)
        calls += [{"op": "convert", "to": "private", **page}, {"op": "fault", "by": "guest", **page}]
        calls += [{"op": "punch_hole", **page}, {"op": "fault", "by": "guest", **page}] * (number % 2)
    given_ = scenario([{"op": "create"}, {"op": "fault", "by": "guest", "length": 4096}, *calls], metadata=metadata)
    idle = sum(call["op"] == "fault" and "by" not in call for call in calls)  # stand in no list, and end none
    assert assert_equal(given_) >= len(calls) - idle - 12
    answer = run(given_)
    assert answer["refaulted_pages"][-1] == 300
    assert answer["private_backend_pages"][-1] == 200
    assert [result.detail.get("bad", 0) for result in answer.log.results].count(1) == 200


@pytest.mark.parametrize("vm_type", ["sw_protected", "tdx"])
def test_pins_poison_and_devices_run_with_conversions(vm_type: str) -> None:
    """The host maps nothing that it could pin."""
    calls: list[dict[str, Any]] = []
    for number in range(120):
        page = {"offset": 4096 * (number * 37 % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "fault", "by": "guest", **page}, {"op": "pin", **page}, {"op": "unpin", **page}]
        calls += [{"op": "convert", "to": "shared", **page}, {"op": "iommu_map", **page}]
        calls += [{"op": "hwpoison" if number % 3 else "iommu_unmap", **page}] * 2
        calls += [{"op": "fault", "by": "guest", "offset": 4096 * (4 + number * 37 % PAGES), "length": 8192}]
        calls += [{"op": "hwpoison", "offset": 4096 * (4 + number * 37 % PAGES), "length": 4096}] * (number % 2)
    given_ = scenario([{"op": "create"}, {"op": "fault", "by": "guest", "length": 4096}, *calls])
    given_ = given_.replace(**{"guest.vm_type": vm_type})
    assert assert_equal(given_) >= len(calls) - 8
    answer = run(given_)
    assert {"EFAULT", "EINVAL", "ENOENT", "", "EHWPOISON"} >= set(answer["event_error"].tolist())
    assert answer["user_mapped_pages"][-1].tolist() == [180, 0]
    assert answer["user_invalidations"][-1].tolist() == [180, 0]


POISON_MET = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["hwpoison", "hwpoison", "punch_hole", "fallocate", "pin", "iommu_map"])}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "guest", "prefault", "host"])}),
    st.fixed_dictionaries({"op": st.just("convert"), "to": TO}),
    st.fixed_dictionaries({"op": st.just("set_memory_attributes"), "private": st.booleans()}),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(POISON_MET, st.integers(60, 67), st.sampled_from([1, 1, 1, 2, 3, 70]), TASKS), min_size=20, max_size=70),
    st.sampled_from(["counted", "off"]), st.sampled_from(["7.3", "7.4"]), st.booleans(),
    st.sampled_from(["sw_protected", "snp"]),
)  # fmt: skip
def test_what_comes_to_poisoned_pages_is_the_same(
    calls: list[tuple[dict[str, Any], int, int, str | None]], metadata: str, kernel: str, filled: bool, vm_type: str
) -> None:
    """Few pages, many of which are poisoned: those stay taken when they leave the file, and fresh ones come in their place."""
    few = [{**call, "offset": page << 12, "length": pages << 12, "task": task} for call, page, pages, task in calls]
    given_ = scenario(
        [{"op": "create"}, *[{"op": "fallocate"}] * filled, *few], metadata=metadata, kernel_profile=kernel
    )
    assert_equal(given_.replace(**{"guest.vm_type": vm_type, "guest.conversion.mode": "out-of-place"}))


def test_poisoned_pages_end_no_list() -> None:
    """Each is met by the guest, and taken out by a conversion or a hole, which frees the others of its range alone."""
    calls: list[dict[str, Any]] = []
    for number in range(60):
        page = {"offset": 4096 * 4 * number, "length": 4096}
        calls += [{"op": "hwpoison", **page, "length": 8192}, {"op": "fault", "by": "guest", **page}]
        away = {"op": "convert", "to": "shared"} if number % 2 else {"op": "punch_hole"}
        calls += [{**away, **page, "length": 4 * 4096}, {"op": "fault", "by": "guest", **page}]
    given_ = scenario([{"op": "create"}, {"op": "fallocate"}, *calls], metadata="off")
    assert assert_equal(given_) >= len(calls) - 8
    answer = run(given_)
    assert (answer["event_error"] == "EHWPOISON").sum() == 60
    free = answer["free_pages"].sum(axis=1)[2:].reshape(60, 4)
    assert (free[:, 2] - free[:, 1]).tolist() == [2, -2] * 30


def test_attributes_that_change_for_a_part_of_a_range_unmap_all_of_it() -> None:
    calls: list[dict[str, Any]] = [
        {"op": "set_memory_attributes"},
        {"op": "pin", "length": 4096},
        {"op": "fault", "by": "guest", "length": 4096},
    ]
    for page in range(0, 80, 2):
        calls += [{"op": "fault", "by": "guest", "offset": 4096 * page, "length": 4096}]
        calls += [{"op": "set_memory_attributes", "private": False, "offset": 4096 * (page + 1), "length": 4096}]
        calls += [{"op": "set_memory_attributes", "private": True, "offset": 4096 * page, "length": 8192}] * 2
    given_ = scenario([{"op": "create", "flags": []}, *calls])
    assert assert_equal(given_) >= len(calls) - 5
    assert run(given_)["user_mapped_pages"][:, 0].tolist()[-4:] == [1, 1, 0, 0]


def test_slabs_come_from_where_they_would_when_a_node_fills_up() -> None:
    """A fault of 32 nodes needs a slab: it is taken from what was free before its pages, which are too many for the node."""
    calls = [
        {"op": "fault", "by": "guest", "offset": row << 23, "length": 8 << 20, "task": "vcpu0"} for row in range(4)
    ]
    grow: list[dict[str, Any]] = [{"op": "convert", "to": "shared", "offset": 0, "length": 4096}]
    grow += [{"op": "fault", "by": "guest", "offset": 4096 * (PAGES - 1), "length": 4096}] * 8
    given_ = scenario([{"op": "create"}, {"op": "hog", "node": 0, "leave_free": "20 MiB"}, *grow, *calls])
    assert assert_equal(given_) >= 7
    answer = run(given_)
    assert answer.system.metadata is not None
    assert (answer.system.metadata.xarray.zones.sum(axis=0) > 0).sum() == 3  # two of node 0
    assert (answer["event_pages"].sum(axis=0) > 0).all()


def test_slabs_follow_the_rotation_of_the_task_that_touches() -> None:
    """By policy a slab is on the node whose turn it is after the pages: one for every 28 nodes, after some rows of two pages."""
    calls: list[dict[str, Any]] = [
        {"op": "set_mempolicy", "mode": "interleave", "nodes": "0-1", "task": "vcpu0"},
        {"op": "convert", "to": "shared", "offset": 0, "length": 4096},
    ]
    for row in (PAGES // 64 - 1, *range(PAGES // 64)):  # the first one makes the tree grow
        length = 4096 * (1 + (row % 3 == 0))
        calls.append({"op": "fault", "by": "guest", "offset": (row << 18) + 8192, "length": length, "task": "vcpu0"})
    given_ = scenario([{"op": "create"}, *calls], kernel_profile="6.18")
    assert given_.kernel.slabs_by_policy
    assert assert_equal(given_) >= 100


def test_slabs_that_become_empty_are_given_back() -> None:
    calls = [{"op": "convert", "to": to, "offset": row << 18, "length": 1 << 18, "task": "vcpu0"}
             for to in ("shared", "private") for row in range(256)]  # fmt: skip
    given_ = scenario([{"op": "create"}, {"op": "fallocate"}, *calls]).replace(**{"guest.memory": "64 MiB"})
    assert assert_equal(given_) >= 500
    held = run(given_)["metadata_pages"][:, 3:5].sum(axis=(1, 2))
    assert held[-1] < held.max()


def test_what_a_conversion_was_given_before_memory_ran_out_is_its_own() -> None:
    calls = [{"op": "convert", "to": "shared", "offset": row << 18, "length": 1 << 18} for row in range(40)]
    host = [{"op": "hog", "node": node, "leave_free": "5 MiB"} for node in (0, 1)]
    given_ = scenario([{"op": "create"}, *host, *calls], "64 MiB")
    assert assert_equal(given_) >= 20
    answer = run(given_)
    last = answer["event_error"].tolist().index("ENOMEM")
    assert 0 < answer["event_pages"][last].sum() < 64


@pytest.mark.parametrize(
    ("metadata", "flags", "kernel"),
    [("counted", [], "7.3"), ("off", [], "7.3"), ("counted", ["mmap"], "7.3"), ("counted", ["mmap"], "7.4")],
)
def test_attributes_and_faults_in_turns_are_carried_out_together(metadata: str, flags: list[str], kernel: str) -> None:
    """Of a guest_memfd alone, which can be mapped or not: gfns become private, are touched, and all are shared again."""
    calls: list[dict[str, Any]] = []
    for number in range(300):
        page = {"offset": 4096 * (number * 37 % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "set_memory_attributes", **page}, {"op": "fault", "by": "guest", **page}]
    for number in range(300):
        page = {"offset": 4096 * (number * 37 % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "set_memory_attributes", "private": False, **page}]
    given_ = scenario([{"op": "create", "flags": flags}, *calls], metadata=metadata, kernel_profile=kernel)
    given_ = given_.replace(**{"guest.conversion.mode": "out-of-place"})
    assert assert_equal(given_) >= len(calls) - 8
    if metadata == "counted":
        held = run(given_)["metadata_pages"].sum(axis=2)[:, 4]
        assert held.max() > 0 == held[-1]


def test_holes_are_taken_out_of_the_hosts_page_tables() -> None:
    """Of a guest_memfd alone the host may have mapped pages."""
    calls = [{"op": "set_memory_attributes", "private": False, "length": 4096}] * 10
    calls += [{"op": "punch_hole", "offset": page * 4096, "length": 8192} for page in range(0, 40, 4)]
    before = [{"op": "create", "flags": ["mmap", "init_shared"]}, {"op": "fault", "length": 40 * 4096}, *calls[:1]]
    given_ = scenario([*before, *calls], metadata="off").replace(**{"guest.vm_type": "none"})
    assert assert_equal(given_) >= 20
    (mapping,) = run(given_).system.files["guest"].inode.mappings
    assert len(mapping.mapped()) == 10


def test_trees_that_have_no_level_yet_are_followed() -> None:
    """What is shared needs no node of attributes, and of the file nothing is there before the last call."""
    calls: list[dict[str, Any]] = [{"op": "fault", "by": "guest", "length": 100}]
    calls += [{"op": "set_memory_attributes", "private": False, "length": 4096}] * 5
    calls += [{"op": "fault", "by": "guest", "length": 8192}]
    given_ = scenario([{"op": "create"}, *calls])
    assert assert_equal(given_) >= 4
    assert run(given_)["metadata_pages"][-1, 3].sum() > 0


def test_nodes_that_lie_on_more_numa_nodes_than_there_are_tasks_go_at_once() -> None:
    """The task was on each node in turn: each conversion frees nodes of all of them, and each is an event."""
    nodes, areas = range(8), range(32)
    host = {
        "name": "eight",
        "nodes": [{"id": node, "memory_bytes": "64 MiB", "cpus": [node]} for node in nodes],
        "distances": [[10 if one == other else 20 for other in nodes] for one in nodes],
    }
    calls: list[dict[str, Any]] = []
    for node in nodes:
        calls += [{"op": "sched_setaffinity", "cpu": node}]
        calls += [
            {"op": "fault", "by": "guest", "offset": (8 * area + node) << 18, "length": 4096}
            for area in reversed(areas)
        ]
    calls += [{"op": "convert", "to": "shared", "offset": area << 21, "length": 7 << 18}
              for area in reversed(areas)]  # fmt: skip
    guest = {"memory": "64 MiB", "vcpus": [{"node": 0}], "vm_type": "sw_protected"}
    given_ = wb.Scenario.from_mapping(
        {"host": host, "guest": guest, "operations": [{"op": "create"}, *calls], "kernel_profile": "7.3"}
    )
    assert assert_equal(given_) >= 250

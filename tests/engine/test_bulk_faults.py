"""Faults carried out together leave the same results, event by event, as the same faults one after another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine import bulk_faults
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
LENGTHS = st.sampled_from([1, 1, 1, 2, 3, 64, 700])
BY = st.sampled_from(["host", "guest", "guest", "prefault", "nobody"])
TASKS = st.sampled_from(["vcpu0", "vcpu1"])
FAULT = st.builds(
    lambda first, pages, order, task: {
        "op": "fault", "offset": first * 4096, "length": pages * 4096, "order": order, "task": task},
    st.integers(0, PAGES), LENGTHS, st.sampled_from(["sequential", "sequential", "reverse", "strided"]), TASKS,
)  # fmt: skip
MODES = st.sampled_from(["bind", "preferred", "interleave", "weighted_interleave"])
NODES = st.sampled_from(["0", "1", "0-1"])
OTHER = st.one_of(
    st.builds(lambda first, pages: {"op": "punch_hole", "offset": first * 4096, "length": pages * 4096},
              st.integers(0, PAGES - 1), LENGTHS),
    st.builds(lambda first, mode, nodes: {"op": "mbind", "offset": first * 4096, "length": 65536, "mode": mode, "nodes": nodes},
              st.integers(0, PAGES - 16), MODES, NODES),
    st.builds(lambda task, mode, nodes: {"op": "set_mempolicy", "task": task, "mode": mode, "nodes": nodes}, TASKS, MODES, NODES),
)  # fmt: skip
PARTS = st.tuples(BY, st.lists(FAULT, min_size=1, max_size=12), st.lists(OTHER, max_size=2))
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}


def allocation(fault: dict[str, object]) -> dict[str, object]:
    """A call on the file in the place of a fault; those that went to and fro are refused, for their length or mode."""
    order = fault.get("order")
    length, mode = int(str(fault["length"])) + (order == "strided"), 2 if order == "reverse" else None
    return {"op": "fallocate", "offset": fault["offset"], "length": length, "mode": mode, "task": fault["task"]}


def scenario(
    parts: list[tuple[str, list[dict[str, object]], list[dict[str, object]]]], **fields: object
) -> wb.Scenario:
    operations: list[dict[str, object]] = [{"op": "create"}]
    for by, faults, others in parts:
        operations += [allocation(fault) if by == "nobody" else fault | {"by": by} for fault in faults] + others
    return wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": MEMORY, "vcpus": [{"node": 0}, {"node": 1}]}, "operations": operations, **fields,
    })  # fmt: skip


def assert_equal(given: wb.Scenario) -> int:
    return one_after_another.assert_equal(bulk_faults, given)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(PARTS, min_size=1, max_size=6), st.sampled_from(["counted", "counted", "off", "taken"]), st.booleans(),
    st.sampled_from([("none", "7.3"), ("sw_protected", "7.4"), ("snp", "7.4"), ("tdx", "7.3")]),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[str, list[dict[str, object]], list[dict[str, object]]]],
    metadata: str,
    full: bool,
    guest: tuple[str, str],
) -> None:
    given_ = scenario(parts, metadata=metadata, kernel_profile=guest[1]).replace(**{"guest.vm_type": guest[0]})
    if full:  # the first node is at its mark, and in the end the host
        hogs = [{"op": "hog", "node": 0, "leave_free": "4 MiB"}, {"op": "hog", "node": 1, "leave_free": "4 MiB"}]
        given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    assert_equal(given_)


CONVERSION = st.one_of(
    st.builds(lambda first, pages, to: {"op": "convert", "offset": first * 4096, "length": pages * 4096, "to": to},
              st.integers(0, PAGES - 1), st.sampled_from([1, 64, 512, 1024]), st.sampled_from(["shared", "private"])),
    st.builds(lambda op, first, pages: {"op": op, "offset": first * 4096, "length": pages * 4096},
              st.sampled_from(["pin", "pin", "unpin", "punch_hole", "hwpoison", "madvise", "iommu_map"]),
              st.integers(0, PAGES - 1), st.sampled_from([1, 1, 3])).map(
                  lambda call: call | ({"advice": 4} if call["op"] == "madvise" else {})),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(BY, st.lists(FAULT, min_size=1, max_size=12), st.lists(CONVERSION, max_size=3)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([(), ("mmap",), ("mmap", "init_shared")]),
)  # fmt: skip
def test_the_same_of_a_file_that_converts(
    parts: list[tuple[str, list[dict[str, object]], list[dict[str, object]]]],
    metadata: str,
    vm_type: str,
    flags: tuple[str, ...],
) -> None:
    given_ = scenario(parts, metadata=metadata, kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    half = {"op": "convert", "offset": MEMORY // 2, "length": MEMORY // 2, "to": "shared"}
    other = {"op": "create", "file": "other", "size": "2 MiB"}
    operations = given_.to_mapping()["operations"][1:]
    assert_equal(given_.replace(operations=[{"op": "create", "flags": list(flags)}, other, half, *operations]))


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize(
    ("by", "to"), [("host", "shared"), ("guest", "shared"), ("guest", "private"), ("nobody", "shared")]
)
def test_long_lists_of_a_file_that_converts_are_carried_out_together(vm_type: str, by: str, to: str) -> None:
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        for number in range(200)
    ]
    given_ = scenario([(by, faults, [])], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    operations = given_.to_mapping()["operations"]
    convert = {"op": "convert", "offset": 4096, "length": MEMORY - 4096, "to": to}
    assert assert_equal(given_.replace(operations=[operations[0], convert, *operations[1:]])) > 180


@pytest.mark.parametrize("by", ["host", "guest"])
def test_a_poisoned_page_and_a_device_are_met_one_by_one(by: str) -> None:
    """A fault on the page fails; what a device maps is looked at after each call."""
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (PAGES - 64 + number), "length": 4096, "task": "vcpu0", "by": by}
        for number in range(64)
    ]
    for call, error in (("hwpoison", by == "guest"), ("iommu_map", False)):
        state = [
            {"op": "create"},
            {"op": "convert", "to": "shared"},
            faults[40],
            {"op": call, "offset": faults[40]["offset"], "length": 4096},
        ]
        given_ = scenario([], kernel_profile="7.4").replace(
            **{"guest.vm_type": "sw_protected", "operations": [*state, *faults]}
        )
        assert not assert_equal(given_)
        assert assert_equal(given_.replace(operations=[*state[:3], *faults])) > 60
        assert (run(given_)["event_error"][4:] == "EHWPOISON").sum() == error


@pytest.mark.parametrize(
    ("by", "memory"), [("host", "4 GiB"), ("guest", "8 MiB"), ("prefault", "4 GiB"), ("nobody", "4 GiB")]
)
def test_long_lists_are_carried_out_together(by: str, memory: str) -> None:
    """All but the first, and those for which the tree of the page cache grows."""
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        for number in range(200)
    ]
    given_ = scenario([(by, faults, [])]).replace(**{"guest.memory": memory})
    assert assert_equal(given_) > 180
    if by != "host":  # the host maps nothing of it
        assert assert_equal(given_.replace(**{"guest.vm_type": "snp", "kernel_profile": "7.4"})) > 180


def test_memory_that_runs_out_ends_the_process_at_the_same_fault() -> None:
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 65536 * number, "length": 65536} for number in range(128)
    ]
    given_ = scenario([("host", faults, [])])
    hogs = [{"op": "hog", "node": node, "leave_free": "3 MiB"} for node in (0, 1)]
    given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    assert assert_equal(given_) > 10
    errors = run(given_)["event_error"].tolist()
    assert errors[3] == "" and errors[-1] == "ESRCH" and "ENOMEM" in errors


@pytest.mark.parametrize("mode", [None, 0, 1])
def test_a_file_of_tmpfs_that_is_allocated_grows_where_it_does_alone(mode: int | None) -> None:
    """Without KEEP_SIZE; what lies past its end is no part of a list."""
    calls: list[dict[str, object]] = [
        {"op": "fallocate", "file": "m", "offset": 4096 * (37 * number % (PAGES + 64)), "length": 8192, "mode": mode}
        for number in range(400)
    ]
    operations = [{"op": "memfd", "file": "m", "size": MEMORY}, *calls]
    assert assert_equal(scenario([]).replace(operations=operations)) > 250

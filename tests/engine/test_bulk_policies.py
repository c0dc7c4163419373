"""Policies of files and threads that are set between faults that are carried out together: each finds what it finds alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine.lists import faults
from workbench.running import run

PAGES = 1024
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}
GUESTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "7.3": ("7.3", {"vm_type": "none"}, ["mbind", "policy"]),
    "6.18": ("6.18", {"vm_type": "none"}, ["mbind"]),
    "fbind": ("7.3", {"vm_type": "sw_protected", "policy_interface": "fbind"}, ["fbind", "policy"]),
    "in place": ("7.4", {"vm_type": "sw_protected"}, ["mbind"]),
    "snp": ("7.4", {"vm_type": "snp"}, ["mbind", "policy"]),
    "never converts": ("7.3", {"vm_type": "sw_protected", "design": "pfn-range"}, ["mbind", "policy"]),
}
MODES = [
    ("bind", "0"), ("bind", "1"), ("interleave", "0-1"), ("weighted_interleave", "0-1"), ("preferred", "0"), ("default", ""),
    ("local", ""),
]  # fmt: skip
SPAN = st.tuples(st.integers(0, 30) | st.integers(0, PAGES - 1), st.sampled_from([1, 1, 1, 2, 3, 16]))
POLICY = st.tuples(st.sampled_from(["mbind", "mbind", "set"]), SPAN, st.sampled_from(MODES), st.integers(0, 15))
TOUCH = st.tuples(
    st.sampled_from(["guest", "guest", "host", "allocate", "hole", "shared", "pin"]), SPAN, st.integers(0, 1)
)
OF_TASK = st.sampled_from(["vcpu0", "vcpu1", None])
OF_THREADS = st.one_of(
    st.fixed_dictionaries({"op": st.just("set_mempolicy"), "mode": st.just(mode), "nodes": st.just(nodes), "task": OF_TASK})
    for mode, nodes in [*MODES, ("bind", "0"), ("default", "1"), ("preferred_many", "1")]
) | st.fixed_dictionaries(
    {"op": st.just("sched_setaffinity"), "cpu": st.sampled_from([0, 1, 0, 1, -1]), "task": OF_TASK}
)  # fmt: skip


def at(span: tuple[int, int]) -> dict[str, Any]:
    return {"offset": span[0] * 4096, "length": span[1] * 4096}


def touch(guest: str, one: tuple[str, tuple[int, int], int]) -> dict[str, Any]:
    kind, span, task = one
    if kind in ("shared", "pin") and GUESTS[guest][0] != "7.4":
        kind = "guest"
    op = {
        "guest": {"op": "fault", "by": "guest"}, "host": {"op": "fault", "by": "host"}, "allocate": {"op": "fallocate"},
        "hole": {"op": "punch_hole"}, "shared": {"op": "convert", "to": "shared"}, "pin": {"op": "pin"},
    }[kind]  # fmt: skip
    return {**op, **at(span), "task": f"vcpu{task}"}


def policy(guest: str, one: tuple[str, tuple[int, int], tuple[str, str], int]) -> dict[str, Any]:
    kind, span, (mode, nodes), rare = one
    call: dict[str, Any] = {"op": "mbind", **at(span), "mode": mode, "nodes": nodes}
    if kind != "mbind":
        return call | {"op": GUESTS[guest][2][-1]}
    if rare == 1:
        return call | {"offset": call["offset"] + 1}
    flags = {0: ["move"], 2: ["move_all"], 3: ["strict"], 4: ["move", "strict"]}
    return call | ({"flags": flags[rare]} if rare in flags else {})


def on_file(call: dict[str, Any]) -> dict[str, Any]:
    return call if call["op"] in ("set_mempolicy", "sched_setaffinity") else {"file": "guest", **call}


def scenario(guest: str, calls: list[dict[str, Any]], **fields: Any) -> wb.Scenario:
    profile, of_guest, _ = GUESTS[guest]
    kernel = {} if of_guest.get("design") == "pfn-range" else {"kernel_profile": profile}
    return wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": PAGES * 4096, "vcpus": [{"node": 0}, {"node": 1}], **of_guest},
        "operations": [{"op": "create"}, *(on_file(call) for call in calls)], **kernel, **fields,
    })  # fmt: skip


@pytest.mark.parametrize("guest", GUESTS)
@settings(max_examples=12, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.lists(POLICY | TOUCH | TOUCH | OF_THREADS, min_size=1, max_size=24)),
        min_size=1, max_size=3,
    ),
    metadata=st.sampled_from(["counted", "counted", "off"]), full=st.booleans(),
)  # fmt: skip
def test_the_same_as_one_after_another(
    guest: str, parts: list[tuple[bool, bool, list[Any]]], metadata: str, full: bool
) -> None:
    calls: list[dict[str, Any]] = []
    for single, of_files, part in parts:
        for one in part:
            if isinstance(one, dict):
                calls.append(one)
                continue
            if len(one) == 4 and not of_files:
                continue
            kind, (first, pages), *rest = one
            short = (kind, (first, 1 if single else pages), *rest)
            calls.append(policy(guest, short) if len(one) == 4 else touch(guest, short))
    given_ = scenario(guest, calls, metadata=metadata)
    if full:  # the first node is at its mark, and in the end the host
        hogs = [{"op": "hog", "node": node, "leave_free": "4 MiB"} for node in (0, 1)]
        given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    one_after_another.assert_equal(faults, given_)


@pytest.mark.parametrize("guest", GUESTS)
def test_policies_end_no_list(guest: str) -> None:
    """Of 400 operations in turn each fault is placed by the call before it, or that before, replaced in part."""
    calls: list[dict[str, Any]] = []
    for number in range(200):
        moves = 0 if number % 4 else 9  # what asks for pages to move ends none either, as those of a guest_memfd do not
        calls.append(policy(guest, ("mbind" if number % 2 else "set", (number, 4), MODES[number % 5], moves)))
        calls.append(touch(guest, ("guest", (number + number % 3, 1), number % 2)))
    given_ = scenario(guest, calls)
    assert one_after_another.assert_equal(faults, given_) >= 396


@pytest.mark.parametrize("ending", ["memory", "mixed", "moves"])
def test_calls_behind_the_end_of_a_list_are_made_later(ending: str) -> None:
    """Memory ends, or a fault is under two policies, or a call moves pages: what was followed beyond it does not stay."""
    calls: list[dict[str, Any]] = []
    for number in range(120):
        calls.append({"op": "mbind", **at((4 * number, 4)), "mode": "bind", "nodes": str(number % 2)})
        calls.append({"op": "fault", "by": "guest", **at((4 * number, 4))})
        if number == 60 and ending == "mixed":
            calls.append({"op": "fault", "by": "guest", **at((0, 1000))})
        if number == 60 and ending == "moves":
            calls.append({"op": "mbind", **at((0, 100)), "mode": "bind", "nodes": "1", "flags": ["move", "strict"]})
    given_ = scenario("7.3", calls)
    if ending == "memory":
        hogs = [{"op": "hog", "node": node, "leave_free": "2 MiB"} for node in (0, 1)]
        given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    many = one_after_another.assert_equal(faults, given_)
    assert 100 < many < len(calls)


def test_a_call_that_moves_pages_is_made_alone() -> None:
    """Pages of tmpfs move when the call says so; pages that the list has placed before it, too."""
    calls: list[dict[str, Any]] = []
    for number in range(60):
        calls.append({"op": "mbind", **at((number, 1)), "mode": "bind", "nodes": str(number % 2)})
        calls.append({"op": "fault", **at((number, 1))})
        if number == 40:
            calls.append({"op": "mbind", **at((0, 30)), "mode": "bind", "nodes": "1", "flags": ["move"]})
    given_ = scenario("7.3", [{"op": "memfd", "size": PAGES * 4096}, {"op": "mmap"}, *calls])
    given_ = given_.replace(operations=[{**one, "file": "m"} for one in given_.to_mapping()["operations"][1:]])
    assert one_after_another.assert_equal(faults, given_) >= 116
    alone = one_after_another.together(faults, given_, 1 << 30)[0]
    assert alone["pages_per_node"].sum() == 60


@pytest.mark.parametrize("guest", [name for name in GUESTS if name != "never converts"])
def test_calls_of_threads_end_no_list(guest: str) -> None:
    """In turn each fault is placed by the call of its thread before it; one that interleaves is made alone."""
    calls: list[dict[str, Any]] = []
    for number in range(100):
        of = {"task": f"vcpu{number % 2}"}
        calls += [{"op": "set_mempolicy", "mode": "bind", "nodes": str(number // 2 % 2), **of}]
        calls += [touch(guest, ("guest", (2 * number, 1), number % 2))]
        calls += [{"op": "set_mempolicy", "mode": "default", "nodes": "", **of}] * (number % 3 == 0)
        calls += [
            {"op": "sched_setaffinity", "cpu": number // 3 % 2, **of},
            touch(guest, ("allocate", (2 * number + 1, 1), number % 2)),
        ]
    given_ = scenario(guest, calls)
    assert one_after_another.assert_equal(faults, given_) >= len(calls) - 12
    interleaves = {"op": "set_mempolicy", "mode": "interleave", "nodes": "0-1", "task": "vcpu0"}
    touches = [touch(guest, ("guest", (400 + number, 1), 0)) for number in range(80)]
    in_turns = [*touches[:40], interleaves, *touches[40:43], interleaves, *touches[43:]]
    one_after_another.assert_equal(faults, scenario(guest, in_turns))
    given_ = scenario(guest, [*calls[:40], interleaves, *calls[40:]])
    assert len(calls) - 16 <= one_after_another.assert_equal(faults, given_) <= len(calls)


@pytest.mark.parametrize("flags", [["strict"], ["move", "strict"]])
def test_strict_is_asked_of_pages_that_the_list_has_placed(flags: list[str]) -> None:
    calls: list[dict[str, Any]] = []
    for number in range(60):
        calls.append({"op": "mbind", **at((number, 1)), "mode": "bind", "nodes": "0"})
        calls.append({"op": "fault", **at((number, 1))})
        if number % 20 == 10:
            calls.append({"op": "mbind", **at((number, 1)), "mode": "bind", "nodes": "1", "flags": flags})
    given_ = scenario("7.3", calls)
    assert one_after_another.assert_equal(faults, given_) > 90
    assert run(given_)["event_error"].tolist().count("EIO") == 3

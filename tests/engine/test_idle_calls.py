"""Calls that change nothing leave the lists they stand in as they are; each has what the calls one after another leave."""

from __future__ import annotations

import errno
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench import scenario as sc
from workbench.engine.calls import CALLS, idle
from workbench.engine.lists import backends, devices, faults, light, light_faults, tracked
from workbench.engine.system import System
from workbench.running import run

PAGES = 2048
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}
IDLE: list[dict[str, Any]] = [
    {"op": "fbind", "mode": "bind", "nodes": "1"},
    {"op": "policy", "mode": "bind", "nodes": "1"},
    {"op": "set_memory_attributes", "private": True, "length": 4096},
    {"op": "convert", "to": "shared", "length": 4096},
    {"op": "check_extension", "capability": "guest_memfd"},
    {"op": "fstat"},
    {"op": "read", "at": 4096},
    {"op": "write"},
]
LOOKS: list[dict[str, Any]] = [
    {"op": "observe"},
    {"op": "access", "pattern": "streaming"},
    {"op": "access", "pattern": "zipf"},
    {"op": "get_mempolicy"},
    {"op": "get_mempolicy", "node": True},
    {"op": "move_pages", "node": 1},
    {"op": "move_pages", "node": 0, "move_all": True},
    {"op": "migrate_pages", "source": 0, "target": 1},
    {"op": "madvise", "advice": 22},
    {"op": "mbind", "mode": "bind", "nodes": "1"},
]
POLICIES: list[dict[str, Any]] = [
    {"op": "mbind", "mode": "interleave", "nodes": "0,1", "flags": ["move"]},
    {"op": "mbind", "mode": "bind", "nodes": "0", "flags": ["strict", "move_all"]},
    {"op": "mbind", "mode": "preferred", "nodes": "1", "file": "other", "flags": ["move"]},
    {"op": "mbind", "mode": "bind", "nodes": "1", "file": "other"},
    {"op": "fbind", "mode": "bind", "nodes": "1"},
    {"op": "policy", "mode": "bind", "nodes": "1"},
    {"op": "set_mempolicy_home_node", "home_node": 1},
    {"op": "set_mempolicy", "mode": "weighted_interleave", "nodes": "0,1"},
    {"op": "reset_rotation"},
    {"op": "set_weights", "weights": {0: 3, 1: 1}},
    {"op": "set_auto_weights"},
    {"op": "sched_setaffinity", "cpu": 1},
]
_OF_NO_FILE = (
    "check_extension", "migrate_pages", "set_mempolicy", "reset_rotation", "set_weights", "set_auto_weights", "sched_setaffinity",
)  # fmt: skip
_OF_NO_RANGE = (*_OF_NO_FILE, "fstat", "read", "write")
BUSY: list[dict[str, Any]] = [
    {"op": "fault", "by": "guest"},
    {"op": "fault", "by": "host"},
    {"op": "convert", "to": "shared"},
    {"op": "convert", "to": "private"},
    {"op": "pin"},
    {"op": "unpin"},
    {"op": "iommu_map"},
    {"op": "iommu_unmap"},
    {"op": "punch_hole"},
]
GUESTS: dict[str, tuple[str, dict[str, Any], list[ModuleType]]] = {
    "ordinary": ("7.3", {"vm_type": "none"}, [faults]),
    "nothing private": ("7.4", {"vm_type": "none"}, [faults, tracked, devices]),
    "7.3": ("7.3", {"vm_type": "sw_protected", "policy_interface": "none"}, [backends, faults]),
    "in place": ("7.4", {"vm_type": "sw_protected"}, [faults, tracked, devices]),
    "snp": ("7.4", {"vm_type": "snp", "policy_interface": "none"}, [faults, tracked]),
    "tdx": ("7.4", {"vm_type": "tdx", "policy_interface": "create"}, [faults, tracked]),
    "pfn-range": ("7.4", {"vm_type": "sw_protected", "design": "pfn-range"}, [light, light_faults]),
}


def scenario(guest: str, calls: list[dict[str, Any]], metadata: str = "counted") -> wb.Scenario:
    profile, fields, _ = GUESTS[guest]
    profile = {} if "design" in fields else {"kernel_profile": profile}
    on_file = [call if call["op"] in _OF_NO_FILE else {"file": "guest", **call} for call in calls]
    return wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": PAGES * 4096, **fields}, "metadata": metadata, **profile,
        "operations": [{"op": "create"}, *on_file],
    })  # fmt: skip


def at(call: dict[str, Any], page: int) -> dict[str, Any]:
    if call["op"] in _OF_NO_RANGE:
        return call
    return {**call, "offset": page * 4096, **({} if call["op"] == "get_mempolicy" else {"length": 4096})}


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Alike operations for a while, with idle ones in between."""
    out: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        kinds = draw(st.lists(st.sampled_from(BUSY), min_size=1, max_size=3)) + draw(
            st.lists(st.sampled_from(IDLE), min_size=1, max_size=2)
        )
        chosen = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 40)), min_size=1, max_size=24))
        out += [at(call, page) for call, page in chosen]
    return out


@pytest.mark.parametrize("guest", GUESTS)
@settings(max_examples=12, deadline=None)
@given(calls=streams(), metadata=st.sampled_from(["counted", "counted", "off", "taken"]))
def test_the_same_as_one_after_another(guest: str, calls: list[dict[str, Any]], metadata: str) -> None:
    given_ = scenario(guest, calls, metadata)
    for module in GUESTS[guest][2]:
        one_after_another.assert_equal(module, given_)


@pytest.mark.parametrize("guest", GUESTS)
@settings(max_examples=8, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from([*BUSY, *LOOKS]), st.integers(0, 9)), min_size=10, max_size=60),
    flags=st.sampled_from([[], ["mmap"]]), again=st.booleans(),
)  # fmt: skip
def test_what_looks_answers_as_it_would_alone(
    guest: str, calls: list[tuple[dict[str, Any], int]], flags: list[str], again: bool
) -> None:
    given_ = scenario(guest, [at(call, page) for call, page in calls])
    made = [sc.Create(flags=tuple(flags))]
    made += [sc.Close(), sc.Create(flags=("mmap",))] * again
    given_ = given_.replace(operations=[*made, *given_.operations[1:]])
    for module in GUESTS[guest][2]:
        one_after_another.assert_equal(module, given_)
    together = run(given_).log.results
    with mock.patch("workbench.running.LookAhead.run", return_value=None):
        alone = run(given_).log.results
    assert together == alone


@pytest.mark.parametrize("guest", ["7.3", "in place", "snp"])
def test_calls_through_no_mapping_end_no_list(guest: str) -> None:
    between = [call for call in LOOKS if call["op"] in ("get_mempolicy", "move_pages", "madvise", "mbind")]
    calls = [between[number // 2 % len(between)] if number % 2 else BUSY[0] for number in range(300)]
    given_ = scenario(guest, [at(call, number) for number, call in enumerate(calls)])
    given_ = given_.replace(operations=[sc.Create(flags=()), *given_.operations[1:]])
    assert one_after_another.assert_equal(faults, given_) >= 148


def test_calls_through_a_mapping_are_carried_out_in_their_turn() -> None:
    operations: list[sc.Operation] = [sc.Create(flags=("mmap", "init_shared")), sc.Fault(by="guest", length=4096)]
    for page in range(1, 121, 3):
        at_page = {"offset": page * 4096, "length": 4096}
        operations += [sc.Mbind(mode="bind", nodes=str(page % 2), **at_page), sc.Fault(by="guest", **at_page)]
        operations += [
            sc.GetMempolicy(file="guest", offset=4096),
            sc.Mbind(mode="bind", nodes=str(page % 2), offset=4096, length=4096),
        ]
        operations += [sc.Madvise(advice=22, offset=(page + 1) * 4096, length=8192)]
    answer = run(scenario("in place", []).replace(operations=operations))
    asked = [result.detail["nodes"] for result in answer.log.results if "nodes" in result.detail]
    assert asked == ["1", *(str(page % 2) for page in range(1, 118, 3))]
    assert answer.log.placed.sum(axis=1).tolist() == [0, 1, *[0, 1, 0, 0, 2] * 40]


def idle_calls(guest: str) -> list[dict[str, Any]]:
    given_ = scenario(guest, IDLE)
    return [one for one, call in zip(IDLE, given_.operations[1:], strict=True) if isinstance(call, idle(given_))]


def test_which_calls_are_idle() -> None:
    found = {guest: [str(one["op"]) for one in idle_calls(guest)] for guest in GUESTS}
    always = ["check_extension", "fstat", "read", "write"]
    assert found["ordinary"] == ["fbind", "convert", *always]
    assert found["nothing private"] == ["fbind", "set_memory_attributes", "convert", *always]
    assert found["7.3"] == ["fbind", "policy", *always]
    assert found["in place"] == found["pfn-range"] == ["fbind", "set_memory_attributes", *always]
    assert found["snp"] == found["tdx"] == ["fbind", "policy", "set_memory_attributes", *always]


@pytest.mark.parametrize("guest", GUESTS)
def test_idle_calls_end_no_list(guest: str) -> None:
    """Of 300 operations, a third of which change nothing, the others are one list, but for the first that finds out."""
    between = idle_calls(guest)
    calls = [between[number // 3 % len(between)] if number % 3 == 2 else BUSY[0] for number in range(300)]
    given_ = scenario(guest, [at(call, number) for number, call in enumerate(calls)])
    assert one_after_another.assert_equal(faults, given_) >= 198


@pytest.mark.parametrize("guest", GUESTS)
def test_idle_calls_change_nothing(guest: str) -> None:
    """Whatever the state is, and whether there is a file: before one is made, while it is used, when it is closed."""
    given_ = scenario(guest, [])
    between = idle_calls(guest)
    uses = [at(BUSY[0], 3), {"op": "close", "unmap": False}]
    plain = [{"op": "create"}, *[{"file": "guest", **use} for use in uses]]
    strewn: list[dict[str, Any]] = []
    for one in plain:
        strewn += [*between, one]
    strewn += between
    # What is followed of a file is known by the kinds of calls that there are.
    first, second = (run(given_.replace(operations=operations)) for operations in ([*plain, *between], strewn))
    step, count = len(between) + 1, len(plain)
    np.testing.assert_array_equal(first.log.free[:count], second.log.free[step - 1 :: step])
    np.testing.assert_array_equal(first.log.placed[:count], second.log.placed[step - 1 :: step])
    np.testing.assert_array_equal(first.log.metadata[:count], second.log.metadata[step - 1 :: step])
    errors = {result.errno for number, result in enumerate(second.log.results) if number % step != step - 1}
    system = System(given_)
    closed = {CALLS[type(op)](system, op).errno for op in scenario(guest, between).operations[1:]}
    assert closed <= errors <= closed | {0, errno.EINVAL, errno.ESPIPE}  # of a file that is open


@pytest.mark.parametrize(("guest", "module", "of"), [("7.3", backends, BUSY[2:4]), ("in place", faults, BUSY[6:8])])
def test_idle_calls_stand_between_all_that_changes(guest: str, module: ModuleType, of: list[dict[str, Any]]) -> None:
    """What conversions out of place count, and what devices map, is known of each event."""
    between = idle_calls(guest)
    calls = [at({"op": "fault", "by": "host"}, page) for page in range(20)] if guest == "in place" else []
    calls = [at(BUSY[2], page) for page in range(20)] + calls
    for number in range(60):
        calls += [at(of[number % 7 % 2], number % 20), at(between[number % len(between)], number)]
    assert one_after_another.assert_equal(module, scenario(guest, calls)) >= 59


@pytest.mark.parametrize("guest", GUESTS)
@settings(max_examples=8, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from([*BUSY, *LOOKS, *LOOKS, *IDLE, *POLICIES]), st.integers(0, 40)), max_size=60),
    metadata=st.sampled_from(["counted", "counted", "off", "taken"]),
    flags=st.sampled_from([[], ["mmap"], ["mmap", "init_shared"]]), memfd=st.booleans(),
)  # fmt: skip
def test_after_calls_that_look_all_is_as_before(
    guest: str, calls: list[tuple[dict[str, Any], int]], metadata: str, flags: list[str], memfd: bool
) -> None:
    """What is noted of them is noted again, not looked for; pages of a memfd do move. So it is of calls that set policies."""
    given_ = scenario(guest, [at(call, page) for call, page in calls], metadata)
    others = [sc.Memfd(file="other", size=1 << 20), sc.Fallocate(file="other"), sc.Fault(file="other")] if memfd else []
    given_ = given_.replace(operations=[sc.Create(flags=tuple(flags)), *others, *given_.operations[1:]])
    one = run(given_)
    with mock.patch("workbench.answer.changes_no_page", return_value=False):
        other = run(given_)
    assert one.names == other.names
    for name in one.names:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


ADVICE: list[dict[str, Any]] = [{"op": "madvise", "advice": advice} for advice in (4, 9, 22, 23)]


@pytest.mark.parametrize("guest", GUESTS)
@settings(max_examples=10, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from([*BUSY, *ADVICE, *ADVICE[1:]]), st.integers(0, 9)), max_size=60),
    metadata=st.sampled_from(["counted", "counted", "off", "taken"]), flags=st.sampled_from([["mmap"], ["mmap", "init_shared"]]),
    unmaps=st.none() | st.integers(0, 60), poisons=st.booleans(),
)  # fmt: skip
def test_advice_stands_in_lists_as_what_it_does(
    guest: str, calls: list[tuple[dict[str, Any], int]], metadata: str, flags: list[str], unmaps: int | None, poisons: bool
) -> None:  # fmt: skip
    given_ = scenario(guest, [at(call, page) for call, page in calls], metadata)
    operations = [sc.Create(flags=tuple(flags)), *given_.operations[1:]]
    if unmaps is not None:
        operations[unmaps + 1 : unmaps + 1] = [sc.Munmap()]
    if poisons:
        operations[1:1] = [
            sc.Fault(by="guest", offset=4 * 4096, length=4096),
            sc.Hwpoison(offset=4 * 4096, length=4096),
        ]
    given_ = given_.replace(operations=operations)
    for module in GUESTS[guest][2]:
        one_after_another.assert_equal(module, given_)


@pytest.mark.parametrize("guest", [name for name in GUESTS if name not in ("7.3", "nothing private")])
def test_advice_ends_no_list(guest: str) -> None:
    """Holes and touches through the mapping, of pages a third of which is private."""
    calls = [[ADVICE[1], BUSY[0], ADVICE[2], BUSY[2 + number // 90 % 2]][number % 4] for number in range(360)]
    given_ = scenario(guest, [at(call, number % 100) for number, call in enumerate(calls)])
    if guest == "ordinary":  # without conversions
        given_ = given_.replace(operations=[one for one in given_.operations if not isinstance(one, sc.Convert)])
    flags = ("mmap", "init_shared") if guest == "ordinary" else ("mmap",)
    given_ = given_.replace(operations=[sc.Create(flags=flags), *given_.operations[1:]])
    taken = sum(one_after_another.assert_equal(module, given_) for module in GUESTS[guest][2])
    assert taken >= len(given_.operations) - 24


def test_advice_stands_as_what_it_does_only_while_that_is_so() -> None:
    """Not without a mapping, nor where pages are poisoned, on which one that populates has an errno of its own."""
    begin = [sc.Create(flags=("mmap", "init_shared")), sc.Fault(by="host", length=30 * 4096)]
    touches = [sc.Fault(by="guest", offset=page * 4096, length=4096) for page in range(20)]
    holes = [sc.Madvise(advice=9, offset=page * 4096, length=4096) for page in range(20)]
    fills = [sc.Madvise(advice=22, offset=page * 4096, length=4096) for page in range(20)]
    marked = [sc.Hwpoison(offset=4 * 4096, length=4096)]
    given_ = scenario("in place", [])
    unmapped = run(given_.replace(operations=[*begin, *holes[:1], sc.Munmap(), *touches, *holes]))
    assert unmapped["event_error"][-20:].tolist() == ["ENOMEM"] * 20
    (inode,) = unmapped.system.inodes()
    assert inode.map.folios == 30
    for guest in ("in place", "pfn-range"):
        bad = run(scenario(guest, []).replace(operations=[*begin, *marked, *touches, *fills, *fills]))
        assert [number for number, error in enumerate(bad["event_error"][-40:].tolist()) if error] == [4, 24]
        assert set(bad["event_error"][-40:].tolist()) == {"", "EHWPOISON"}


TOUCHES: list[dict[str, Any]] = [
    {"op": "fault", "by": "guest"}, {"op": "fault", "by": "host"}, {"op": "fault", "by": "host", "order": "reverse"},
    {"op": "fault", "by": "host", "order": "random", "seed": 3}, {"op": "fallocate"}, {"op": "punch_hole"},
    {"op": "set_memory_attributes", "private": True}, {"op": "madvise", "advice": 22},
]  # fmt: skip
FLAGS: list[tuple[str, ...]] = [(), ("mmap",), ("mmap", "init_shared")]
NAMED: list[sc.Operation] = [
    *(sc.Create(flags=flags) for flags in FLAGS), *(sc.Create(file="other", flags=flags) for flags in FLAGS),
    sc.Memfd(file="guest", size=1 << 20), sc.Alias(file="guest", of="other"), sc.PassFd(file="guest", of="other", process="p"),
    sc.Close(), sc.Close(unmap=False), sc.Mmap(), sc.Munmap(), sc.Hog(node=0, leave_free=0), sc.Hog(node=1, leave_free=0),
]  # fmt: skip
HANDED_OVER: list[sc.Operation] = [
    sc.Preserve(file="guest", token=1),
    sc.Kexec(),
    sc.Retrieve(file="guest", token=1),
    sc.Finish(),
    sc.CloseSession(),
    sc.Memslot(file="guest"),
]


@pytest.mark.parametrize("guest", ["ordinary", "7.3", "in place", "handed over"])
@settings(max_examples=20, deadline=None)
@given(
    flags=st.sampled_from(FLAGS[:2]), other=st.sampled_from(FLAGS), data=st.data(),
    last=st.sampled_from([None, None, None, sc.Convert(to="shared", length=4096), sc.Hwpoison(length=4096)]),
    metadata=st.sampled_from(["counted", "off", "taken"]),
)  # fmt: skip
def test_touches_of_the_host_that_reach_nothing(
    guest: str, flags: tuple[str, ...], other: tuple[str, ...], last: sc.Operation | None, data: st.DataObject, metadata: str
) -> None:  # fmt: skip
    """Of a file that is private for life, by whatever name, until a name means another file."""
    given_ = scenario("7.3" if guest == "handed over" else guest, [], metadata)
    rare = NAMED + HANDED_OVER if guest == "handed over" else NAMED
    if guest == "handed over":
        given_ = given_.replace(kernel_profile="proposal-preservation")
    operations: list[sc.Operation] = [sc.Create(file="other", flags=other), sc.Create(flags=flags)]
    for _ in range(data.draw(st.integers(1, 4))):
        kinds = [TOUCHES[1], *data.draw(st.lists(st.sampled_from(TOUCHES), min_size=1, max_size=2))]
        touches = st.tuples(st.sampled_from(kinds), st.integers(0, 9), st.sampled_from([1, 1, 2]))
        for call, page, pages in data.draw(st.lists(touches, min_size=4, max_size=24)):
            on_range = {"file": "guest", **call, "offset": page * 4096, "length": pages * 4096}
            operations += given_.replace(operations=[on_range]).operations
        operations.append(data.draw(st.sampled_from(rare)))
    operations += [] if last is None else [last]
    given_ = given_.replace(operations=operations)
    for module in GUESTS[guest][2] if guest in GUESTS else [backends, faults]:
        one_after_another.assert_equal(module, given_)
    one = run(given_)
    with (
        mock.patch("workbench.answer.changes_no_page", return_value=False),
        mock.patch("workbench.running.LookAhead.run", return_value=None),
    ):
        alone = run(given_)
    assert one.names == alone.names
    assert one.log.results == alone.log.results
    for name in one.names:
        np.testing.assert_array_equal(one[name], alone[name], err_msg=name)


@pytest.mark.parametrize(("guest", "flags"), [("ordinary", ["mmap"]), ("7.3", []), ("7.3", ["mmap"])])
def test_touches_of_the_host_that_reach_nothing_end_no_list(guest: str, flags: list[str]) -> None:
    calls = [BUSY[number % 3 == 1] for number in range(300)]
    given_ = scenario(guest, [at(call, number) for number, call in enumerate(calls)])
    given_ = given_.replace(operations=[sc.Create(flags=tuple(flags)), *given_.operations[1:]])
    assert one_after_another.assert_equal(faults, given_) >= 198
    assert {result.detail["bad"] for result in run(given_).log.results if "bad" in result.detail} == {1}

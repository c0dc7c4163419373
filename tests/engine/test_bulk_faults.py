"""Faults carried out together leave the same results, event by event, as the same faults one after another."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine import range_trees
from workbench.engine.kernel_pages import KINDS, LIGHT_MAP
from workbench.engine.lists import faults as lists_of_faults
from workbench.engine.range_trees import MapleSlab
from workbench.errnos import EHWPOISON
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
LENGTHS = st.sampled_from([1, 1, 1, 2, 3, 64, 700])
BY = st.lists(st.sampled_from(["host", "guest", "guest", "prefault", "nobody", "populate"]), min_size=1, max_size=3)
"""Who touches in turn; one most of the time."""
TASKS = st.sampled_from(["vcpu0", "vcpu1"])
FAULT = st.builds(
    lambda first, pages, order, task: {
        "op": "fault", "offset": first * 4096, "length": pages * 4096, "order": order, "task": task},
    st.integers(0, PAGES) | st.integers(0, 7), LENGTHS,
    st.sampled_from(["sequential", "sequential", "reverse", "strided"]), TASKS,
)  # fmt: skip
HOLE = st.builds(
    lambda first, pages, task: {"op": "punch_hole", "offset": first * 4096, "length": pages * 4096, "task": task},
    st.integers(0, PAGES - 1) | st.integers(0, 7), LENGTHS, TASKS,
)  # fmt: skip
MODES = st.sampled_from(["bind", "preferred", "interleave", "weighted_interleave"])
NODES = st.sampled_from(["0", "1", "0-1"])
OTHER = st.one_of(
    HOLE,
    st.builds(lambda first, mode, nodes: {"op": "mbind", "offset": first * 4096, "length": 65536, "mode": mode, "nodes": nodes},
              st.integers(0, PAGES - 16), MODES, NODES),
    st.builds(lambda task, mode, nodes: {"op": "set_mempolicy", "task": task, "mode": mode, "nodes": nodes}, TASKS, MODES, NODES),
)  # fmt: skip
PARTS = st.tuples(BY, st.lists(FAULT | FAULT | HOLE, min_size=1, max_size=12), st.lists(OTHER, max_size=2))
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


def in_turn(by: list[str], number: int, fault: dict[str, object]) -> dict[str, object]:
    one = by[number % len(by)]
    if fault["op"] == "punch_hole":
        return fault
    if one == "populate":  # MADV_POPULATE_WRITE, and where a fault goes to and fro MADV_DONTNEED
        where = {name: fault[name] for name in ("offset", "length", "task")}
        return {"op": "madvise", "advice": 4 if fault.get("order") == "strided" else 22 + number % 2, **where}
    return allocation(fault) if one == "nobody" else fault | {"by": one}


def scenario(
    parts: list[tuple[list[str], list[dict[str, object]], list[dict[str, object]]]], **fields: object
) -> wb.Scenario:
    operations: list[dict[str, object]] = [{"op": "create"}]
    for by, faults, others in parts:
        operations += [in_turn(by, number, fault) for number, fault in enumerate(faults)] + others
    return wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": MEMORY, "vcpus": [{"node": 0}, {"node": 1}]}, "operations": operations, **fields,
    })  # fmt: skip


def assert_equal(given: wb.Scenario) -> int:
    return one_after_another.assert_equal(lists_of_faults, given)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(PARTS, min_size=1, max_size=6), st.sampled_from(["counted", "counted", "off", "taken"]), st.booleans(),
    st.sampled_from([("none", "7.3"), ("sw_protected", "7.4"), ("snp", "7.4"), ("tdx", "7.3")]),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[str], list[dict[str, object]], list[dict[str, object]]]],
    metadata: str,
    full: bool,
    guest: tuple[str, str],
) -> None:
    given_ = scenario(parts, metadata=metadata, kernel_profile=guest[1]).replace(**{"guest.vm_type": guest[0]})
    if full:  # the first node is at its mark, and in the end the host
        hogs = [{"op": "hog", "node": 0, "leave_free": "4 MiB"}, {"op": "hog", "node": 1, "leave_free": "4 MiB"}]
        given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    assert_equal(given_)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(BY, st.lists(FAULT | FAULT | HOLE, min_size=3, max_size=24), st.lists(OTHER, max_size=2)),
        min_size=1, max_size=4,
    ),
    st.sampled_from(["counted", "counted", "counted", "off", "taken"]), st.booleans(),
    st.sampled_from([("none", "7.3"), ("sw_protected", "7.4"), ("snp", "7.4"), ("tdx", "7.3")]),
)  # fmt: skip
def test_the_same_of_a_file_without_struct_pages(
    parts: list[tuple[list[str], list[dict[str, object]], list[dict[str, object]]]],
    metadata: str,
    full: bool,
    guest: tuple[str, str],
) -> None:
    """Nodes of its offset -> pfn map follow from what lies together after each call; each range is a node, and a page, here."""
    design = {"guest.vm_type": guest[0], "guest.design": "pfn-range", "guest.page_size": "4 KiB"}
    given_ = scenario(parts, metadata=metadata, kernel_profile=guest[1]).replace(**design)
    if full:
        hogs = [{"op": "hog", "node": 0, "leave_free": "4 MiB"}, {"op": "hog", "node": 1, "leave_free": "2 MiB"}]
        given_ = given_.replace(operations=[*hogs, *given_.to_mapping()["operations"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MapleSlab, "OBJECTS", 1)
        patch.setattr(range_trees, "nodes_of", lambda ranges: ranges)
        assert_equal(given_)


CONVERSION = st.one_of(
    st.builds(lambda first, pages, to: {"op": "convert", "offset": first * 4096, "length": pages * 4096, "to": to},
              st.integers(0, PAGES - 1) | st.integers(0, 7), st.sampled_from([1, 1, 2, 64, 512, 1024]),
              st.sampled_from(["shared", "private"])),
    st.builds(lambda op, first, pages, kind: {"op": op, "offset": first * 4096, "length": pages * 4096, "kind": kind},
              st.sampled_from(["pin", "pin", "unpin"]), st.integers(0, 7), st.sampled_from([1, 1, 3]),
              st.sampled_from(["long_term", "transient"])),
    st.builds(lambda op, first, pages: {"op": op, "offset": first * 4096, "length": pages * 4096},
              st.sampled_from(["pin", "pin", "unpin", "punch_hole", "hwpoison", "madvise", "iommu_map", "iommu_unmap"]),
              st.integers(0, PAGES - 1), st.sampled_from([1, 1, 3])).map(
                  lambda call: call | ({"advice": 4} if call["op"] == "madvise" else {})),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(BY, st.lists(FAULT, min_size=1, max_size=12), st.lists(CONVERSION, max_size=6)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([(), ("mmap",), ("mmap", "init_shared")]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_same_of_a_file_that_converts(
    parts: list[tuple[list[str], list[dict[str, object]], list[dict[str, object]]]],
    metadata: str,
    vm_type: str,
    flags: tuple[str, ...],
    random: Random,
) -> None:
    """Faults and what converts, pins or takes pages away, in any order."""
    given_ = scenario(parts, metadata=metadata, kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    half = {"op": "convert", "offset": MEMORY // 2, "length": MEMORY // 2, "to": "shared"}
    other = {"op": "create", "file": "other", "size": "2 MiB"}
    operations = given_.to_mapping()["operations"][1:]
    if random.random() < 0.7:
        random.shuffle(operations)
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
    given_ = scenario([([by], faults, [])], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    operations = given_.to_mapping()["operations"]
    convert = {"op": "convert", "offset": 4096, "length": MEMORY - 4096, "to": to}
    assert assert_equal(given_.replace(operations=[operations[0], convert, *operations[1:]])) > 180


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("filled", [False, True])
def test_conversions_and_faults_in_turns_are_carried_out_together(vm_type: str, filled: bool) -> None:
    """A page is shared, touched and pinned by the host, and private again once nobody holds it, as the guest finds."""
    turns: list[dict[str, Any]] = []
    for number in range(60):
        page = {"offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        private = {"op": "convert", "to": "private", **page}
        turns += [
            {"op": "convert", "to": "shared", **page}, {"op": "fault", "by": "host", **page},
            *([{"op": "pin", **page}, private, {"op": "fault", "by": "host", **page}] * (number % 3 == 0)),
            *([{"op": "unpin", **page}] * (number % 3 == 0)), private,
            {"op": "fault", "by": "host", **page}, {"op": "fault", "by": "guest", **page},
        ]  # fmt: skip
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    first = {"op": "fault", "by": "guest", **({} if filled else {"offset": MEMORY // 2, "length": 4096})}
    given_ = given_.replace(operations=[{"op": "create"}, first, *turns])
    assert assert_equal(given_) > len(turns) - 10
    results = run(given_).log.results
    assert sum(result.errno == errno.EAGAIN for result in results) == 20
    assert sum(result.detail.get("bad") == 1 for result in results) == 60


def on_few_pages(op: dict[str, Any], first: int, pages: int, task: str) -> dict[str, Any]:
    return op | {"offset": first * 4096, "length": pages * 4096, "task": task}


FEW = st.builds(
    on_few_pages,
    st.sampled_from([
        *[{"op": "convert", "to": to} for to in ("shared", "private")] * 2,
        *[{"op": "fault", "by": by} for by in ("host", "host", "host", "guest", "prefault")],
        {"op": "fallocate"}, *[{"op": "pin"}, {"op": "unpin"}] * 2, {"op": "pin", "kind": "transient"},
        {"op": "unpin", "kind": "transient"}, {"op": "hwpoison"}, *[{"op": "iommu_map"}, {"op": "iommu_unmap"}] * 2,
        *[{"op": "punch_hole"}] * 3,
    ]),
    st.integers(0, 5) | st.integers(0, 90), st.sampled_from([1, 1, 1, 1, 2, 3, 9, 80, 200]), TASKS,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(FEW, min_size=4, max_size=40),
    st.sampled_from(["sw_protected", "tdx"]),
    st.sampled_from([(), ("mmap",)]),
    st.booleans(),
)
def test_the_same_on_few_pages(
    calls: list[dict[str, Any]], vm_type: str, flags: tuple[str, ...], drain_lru: bool
) -> None:
    """Each call finds what several before it have left: host's faults on absent pages, on held ones, on those of both sides."""
    far = {"offset": MEMORY - 4096, "length": 4096}
    before = [{"op": "create", "flags": list(flags)}, {"op": "convert", "to": "shared", **far}]
    before += [{"op": "fault", "by": by, **far} for by in ("guest", "prefault", "host")] + [{"op": "fallocate", **far}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(**{"guest.conversion": {"drain_lru": drain_lru}})
    assert_equal(given_.replace(operations=[*before, *calls]))


def page(first: int, pages: int = 1) -> dict[str, Any]:
    return {"offset": first * 4096, "length": pages * 4096}


@pytest.mark.parametrize(
    "calls",
    [
        # a refused conversion leaves the page beside the held one shared, and absent
        [{"op": "pin", **page(0)}, {"op": "convert", "to": "private", **page(0, 2)}, {"op": "fault", "by": "host", **page(1)}],
        [{"op": "pin", **page(0)}, {"op": "convert", "to": "private", **page(0, 2)}, {"op": "pin", **page(1)}],
        # what a pin has mapped leaves two parts, each with a table of its own
        [{"op": "fault", "by": "guest", **page(511, 3)}, {"op": "pin", **page(512)},
         {"op": "fault", "by": "host", **page(511, 3)}],
        # a pin of a page that is absent, and of one that was put there before
        [{"op": "pin", **page(3)}, {"op": "fault", "by": "guest", **page(5)}, {"op": "pin", **page(5)},
         {"op": "pin", **page(5, 2)}],
        # as many rows as calls, but not one of each: the guest's has a page put in and touches it, the last one has none
        [{"op": "fallocate", **page(PAGES - 1)}, {"op": "fault", "by": "host", **page(0)},
         {"op": "fault", "by": "guest", **page(1)}, {"op": "fallocate", **page(1)}],
        # a page that left the file is absent for a pin, and not mapped for the host
        [{"op": "punch_hole", **page(0)}, {"op": "pin", **page(0)}],
        [{"op": "punch_hole", **page(0)}, {"op": "fault", "by": "guest", **page(0)}, {"op": "fault", "by": "host", **page(0)}],
        [{"op": "fault", "by": "host", **page(0, 3)}, {"op": "punch_hole", **page(1)},
         {"op": "fault", "by": "host", **page(0, 3)}],
        [{"op": "convert", "to": "private", **page(0, 2)}, {"op": "punch_hole", **page(0)},
         {"op": "fault", "by": "host", **page(0)}],
        # one that somebody holds stays allocated
        [{"op": "fault", "by": "host", **page(5, 2)}, {"op": "pin", **page(5)}, {"op": "punch_hole", **page(5, 2)},
         {"op": "unpin", **page(5)}],
        # what left the file while somebody held it is free with the last pin, whatever is there in its place
        [{"op": "pin", **page(5)}, {"op": "punch_hole", **page(5)}, {"op": "fault", "by": "host", **page(5)},
         {"op": "pin", **page(6)}, {"op": "unpin", **page(6)}, {"op": "unpin", **page(5)}, {"op": "unpin", **page(5)}],
        # one held in passing converts when that is over, and is free with its hole
        [{"op": "fault", "by": "host", **page(5)}, {"op": "pin", "kind": "transient", **page(5)},
         {"op": "convert", "to": "private", **page(5)}, {"op": "punch_hole", **page(5)},
         {"op": "fault", "by": "host", **page(5)}],
        # a poisoned page does not become private, though the guest finds no way to it
        [{"op": "fault", "by": "host", **page(5, 2)}, {"op": "hwpoison", **page(5)},
         {"op": "convert", "to": "private", **page(5)}, {"op": "hwpoison", **page(5)}, {"op": "pin", **page(6)},
         {"op": "unpin", **page(5)}, {"op": "pin", **page(5)}],
        [{"op": "hwpoison", **page(0)}, {"op": "convert", "to": "private", **page(0, 2)},
         {"op": "fault", "by": "host", **page(1)}, {"op": "fault", "by": "host", **page(0)}],
        [{"op": "hwpoison", **page(0)}, {"op": "fault", "by": "guest", **page(0)}, {"op": "punch_hole", **page(0)}],
        [{"op": "hwpoison", **page(0)}, {"op": "punch_hole", **page(0)}, {"op": "fault", "by": "guest", **page(0)}],
        # a device can have a page that somebody holds, which stays shared, and one that is shared again, and no private one
        [{"op": "fault", "by": "host", **page(5)}, {"op": "pin", **page(5)}, {"op": "convert", "to": "private", **page(5)},
         {"op": "iommu_map", **page(5)}, {"op": "convert", "to": "private", **page(6)}, {"op": "iommu_map", **page(6)},
         {"op": "convert", "to": "shared", **page(6)}, {"op": "iommu_map", **page(6)}, {"op": "iommu_map", **page(4, 4)}],
        [{"op": "iommu_map", **page(0)}, {"op": "iommu_map", **page(3)}, {"op": "pin", **page(1)},
         {"op": "iommu_unmap", **page(0, 9)}],
        # areas go as they came; their pages are free once no device has them
        [{"op": "iommu_map", **page(5)}, {"op": "iommu_map", **page(7)}, {"op": "iommu_unmap", **page(5, 2)},
         {"op": "punch_hole", **page(5)}, {"op": "iommu_map", **page(5)}, {"op": "iommu_map", **page(6)},
         {"op": "iommu_unmap", **page(5, 3)}, {"op": "iommu_map", **page(5, 3)}, {"op": "iommu_unmap", **page(6)},
         {"op": "punch_hole", **page(6)}, {"op": "iommu_unmap", **page(0, 9)}, {"op": "iommu_unmap", **page(0, 9)}],
        [{"op": "iommu_map", **page(0)}, {"op": "punch_hole", **page(0)}, {"op": "fault", "by": "guest", **page(0)},
         {"op": "iommu_map", **page(0)}, {"op": "iommu_map", **page(3)}, {"op": "iommu_unmap", **page(0, 9)}],
        # what a device has as well is not free with the last pin, nor what it alone has
        [{"op": "fault", "by": "host", **page(5)}, {"op": "pin", **page(5)}, {"op": "iommu_map", **page(5, 2)},
         {"op": "punch_hole", **page(5, 2)}, {"op": "unpin", **page(5)}, {"op": "fault", "by": "host", **page(5, 2)},
         {"op": "unpin", **page(6)}, {"op": "punch_hole", **page(5)}, {"op": "iommu_unmap", **page(5, 2)}],
        # what a device has is not what takes its place in the file, nor what had it before the list
        [{"op": "iommu_map", **page(0)}, {"op": "punch_hole", **page(0)}, {"op": "fault", "by": "host", **page(0)},
         {"op": "iommu_map", **page(3)}, {"op": "punch_hole", **page(3)}, {"op": "fault", "by": "host", **page(3)}],
        # a page that is private again is not placed
        [{"op": "convert", "to": "private", **page(7)}, {"op": "fault", "by": "host", **page(7)}],
    ],
)  # fmt: skip
def test_what_is_not_certain_beforehand_is_found_as_it_is(calls: list[dict[str, Any]]) -> None:
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fault", "by": "guest", **page(PAGES - 1)}]
    before += [{"op": "fault", "by": "host", **page(PAGES - 1)}, {"op": "fault", "by": "host", **page(0)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "sw_protected"})
    assert_equal(given_.replace(operations=[*before, *calls]))


def test_pages_of_one_call_that_were_not_alike_before_it_are_told_apart() -> None:
    """One of those that the host touches is mapped; of others one is private, absent, poisoned, held, or left the file before."""
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fallocate", **page(0, 64)}]
    before += [
        {"op": "fallocate", **page(508, 8)},
        *[{"op": "fault", "by": by, **page(510)} for by in ("guest", "host")],
    ]
    before += [
        {"op": "convert", "to": "private", **page(2)},
        {"op": "punch_hole", **page(6)},
        {"op": "hwpoison", **page(10)},
    ]
    before += [{"op": "pin", **page(30)}, {"op": "convert", "to": "private", **page(30)}]
    before += [
        {"op": "pin", **page(40, 4)},
        {"op": "punch_hole", **page(42)},
        {"op": "pin", **page(42)},
        {"op": "observe"},
    ]
    calls = [{"op": "fault", "by": "host", **page(508, 8)}, *[{"op": "pin", **page(first, 4)} for first in (0, 4, 8)]]
    calls += [{"op": "unpin", **page(40, 4)}] + [{"op": "punch_hole", **page(first, 4)} for first in (0, 4, 8, 28)]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "snp"})
    assert assert_equal(given_.replace(operations=[*before, *calls])) >= len(calls)


def test_what_waits_in_a_batch_that_is_not_drained_stays_shared() -> None:
    """Its conversion is refused, so that the host's fault after a hole places the page again."""
    calls = [{"op": "convert", "to": "private"}, {"op": "punch_hole"}, {"op": "fault", "by": "host"}]
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fault", "by": "host", **page(5)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "sw_protected"})
    given_ = given_.replace(**{"guest.conversion": {"drain_lru": False}})
    given_ = given_.replace(operations=[*before, *[call | page(5) for call in calls]])
    assert_equal(given_)
    assert run(given_)["event_error"].tolist()[3:] == ["EAGAIN", "", ""]


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp"])
@pytest.mark.parametrize("ops", [["pin"], ["pin", "unpin", "fault", "convert"]])
def test_pins_of_pages_that_are_absent_are_carried_out_together(ops: list[str], vm_type: str) -> None:
    """A pin of a shared page places it, one of a private page is refused; what was converted meanwhile is known."""
    drawn = Random(5)
    calls = [{"op": drawn.choice(ops), **page(drawn.randrange(PAGES))} for _ in range(600)]
    for call in calls:
        if call["op"] == "fault":
            call["by"] = drawn.choice(["guest", "host"])
        elif call["op"] == "convert":
            call["to"] = drawn.choice(["shared", "private"])
    before = [{"op": "create"}, {"op": "convert", "to": "shared", **page(0, PAGES // 2)}]
    before += [{"op": "fault", "by": by, **page(PAGES - 1)} for by in ("guest", "host")]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(operations=[*before, *calls])
    assert assert_equal(given_) > 550
    errors = {result.errno for result in run(given_).log.results[len(before) :]}
    assert {0, errno.EFAULT} <= errors


@pytest.mark.parametrize("vm_type", ["sw_protected", "tdx"])
def test_pins_and_holes_of_other_pages_are_carried_out_together(vm_type: str) -> None:
    """Also while pages that were held when they left the file stay allocated."""
    drawn = Random(7)
    kinds: list[dict[str, Any]] = [{"op": op} for op in ("pin", "unpin", "punch_hole")]
    kinds += [{"op": "fault", "by": by} for by in ("guest", "host")]
    kinds += [{"op": "convert", "to": to} for to in ("shared", "private")]
    calls = [drawn.choice(kinds) | page(drawn.randrange(8, PAGES)) for _ in range(600)]
    held = [{"op": "fault", "by": "host", **page(5, 3)}, {"op": "pin", **page(5, 3)}, {"op": "punch_hole", **page(6)}]
    before = [{"op": "create"}, {"op": "convert", "to": "shared", **page(0, PAGES // 2)}]
    before += [{"op": "fault", "by": by, **page(PAGES - 1)} for by in ("guest", "host")]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(operations=[*before, *held, *calls, {"op": "unpin", **page(5, 3)}])
    assert assert_equal(given_) > 560
    answer = run(given_)
    errors = [result.errno for result in answer.log.results[-601:]]
    assert {0, errno.EFAULT, errno.EAGAIN, errno.EINVAL} <= set(errors) and errors[-1] == 0
    assert np.diff(answer["free_pages"].sum(axis=1))[-1] == 1, "of the three pages, that which was punched out"


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize(("pages", "lengths"), [(24, [1, 1, 1, 2, 5]), (512, [1, 1, 1, 2, 5]), (1024, [1, 3, 70, 500])])
def test_many_calls_on_few_pages_are_carried_out_together(vm_type: str, pages: int, lengths: list[int]) -> None:
    """Each page is pinned more than once, leaves the file while it is, comes back and leaves again before the first pin goes."""
    drawn = Random(pages)
    kinds: list[dict[str, Any]] = [
        {"op": op} for op in ("pin", "unpin", "punch_hole", "pin", "unpin", "punch_hole", "fallocate")
    ]
    kinds += [{"op": "fault", "by": by} for by in ("guest", "host")] + [{"op": "pin", "kind": "transient"}]
    kinds += [{"op": "convert", "to": to} for to in ("shared", "private")] + [{"op": "unpin", "kind": "transient"}]
    kinds += [{"op": "hwpoison"}, {"op": "iommu_map"}, {"op": "iommu_unmap"}]
    calls = [
        drawn.choice(kinds) | page(drawn.randrange(pages), drawn.choice(lengths))
        for _ in range(6000 // max(lengths) + 1800)
    ]
    calls = [
        call | {"task": drawn.choice(["vcpu0", "vcpu1"])}
        for call in calls
        if call["op"] != "hwpoison" or call["length"] <= 65536
    ]
    before = [{"op": "create"}, {"op": "convert", "to": "shared", **page(0, pages)}]
    before += [{"op": "set_mempolicy", "task": "vcpu1", "mode": "interleave", "nodes": "0-1"}]
    before += [{"op": "fault", "by": by, **page(PAGES - 1)} for by in ("guest", "prefault")] + [
        {"op": "fallocate", **page(PAGES - 1)}
    ]
    before += [{"op": "fault", "by": "host", **page(PAGES // 2)}, {"op": "convert", "to": "shared", **page(PAGES // 2)}]
    before += [{"op": "fault", "by": "host", **page(PAGES // 2)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(operations=[*before, *calls])
    assert assert_equal(given_) >= len(calls)
    assert {"", "EFAULT", "EAGAIN", "EINVAL", "EHWPOISON", "ENOENT", "EEXIST"} == set(
        run(given_)["event_error"].tolist()
    )


def test_memory_of_pages_that_left_the_file_is_there_again_with_their_last_unpin() -> None:
    """What is pinned and leaves takes all memory of both nodes; a page that an unpin frees is the next one that is placed."""
    pages = [page(number) for number in range(64)]
    takes = [call | one for _ in range(40) for one in pages for call in ({"op": "pin"}, {"op": "punch_hole"})]
    hogs = [{"op": "hog", "node": node, "leave_free": "3 MiB"} for node in (0, 1)]
    before = [*hogs, {"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fallocate", **page(PAGES - 1)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "sw_protected"})
    most = run(given_.replace(operations=[*before, *takes]))["event_error"].tolist().index("ENOMEM") - len(before)
    assert most > 1000
    swaps = [
        call | one for one in pages for call in ({"op": "unpin"}, {"op": "fallocate"}, {"op": "unpin"}, *takes[:2])
    ]
    drops = [{"op": "unpin"} | one for _ in range(most // 128 - 2) for one in pages]
    then = [call | {"task": "vcpu1"} for call in (*swaps, *drops)]
    given_ = given_.replace(operations=[*before, *takes[:most], *then])
    assert assert_equal(given_) >= most + len(swaps)
    answer = run(given_)
    assert not any(answer["event_error"])
    more = np.diff(answer["free_pages"], axis=0)[-len(then) :]
    assert more.sum(axis=1).tolist() == [1, -1, 1, 0, 0] * 64 + [1] * len(drops)
    assert more.any(axis=0).all(), "each page goes back to its own zone, of which there are three"


def test_slabs_for_states_come_from_where_memory_is_at_that_call() -> None:
    """The node of the task falls to its mark by the faults between the conversions."""
    calls: list[dict[str, Any]] = []
    for number in range(700):
        calls += [
            {"op": "convert", "to": "shared", **page(2 * number)},
            {"op": "fault", "by": "guest", **page(2 * number, 2)},
        ]
    before = [{"op": "hog", "node": 0, "leave_free": "4 MiB"}, {"op": "create"}]
    before += [{"op": "fault", "by": "guest", **page(PAGES - 1)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "sw_protected"})
    given_ = given_.replace(operations=[*before, *calls])
    assert assert_equal(given_) == len(calls)
    trees = run(given_)["metadata_pages"][-1, KINDS.index("state_tree")]
    assert (trees > 0).all()


EDGES = [0, 1, 2, 62, 63, 64, 65, 128, 4094, 4095, 4096, 4097, 4160, 8191, 8192]
"""Pages around those at which a node of the page cache begins, of each level."""
AT_EDGES = st.builds(
    on_few_pages,
    st.sampled_from([
        *[{"op": "punch_hole"}] * 4, {"op": "fallocate"}, {"op": "fault", "by": "guest"}, {"op": "fault", "by": "host"},
        {"op": "fault", "by": "prefault", "order": "reverse"},
    ]),
    st.sampled_from(EDGES), st.sampled_from([1, 1, 1, 1, 2, 3, 64, 2048]), TASKS,
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    st.lists(AT_EDGES, min_size=4, max_size=60), st.sampled_from([1, 2, 64, 65, 4096, 16384]),
    st.sampled_from(["guest_memfd", "memfd", "tracked"]), st.sampled_from([(), ("mmap",), ("mmap", "init_shared")]),
)  # fmt: skip
def test_holes_leave_the_nodes_that_hold_something(
    calls: list[dict[str, Any]], highest: int, kind: str, flags: tuple[str, ...]
) -> None:
    """Trees of one level up to three; what another mapping has of a page goes as well."""
    before: list[dict[str, Any]] = [{"op": "create", "flags": list(flags)}]
    if kind == "memfd":
        before = [{"op": "memfd", "file": "guest", "size": "64 MiB"}]
    if kind == "memfd" or flags:
        before.append({"op": "alias", "file": "other", "of": "guest"})
    last = page(highest - 1)
    before += [{"op": "fault", "by": by, **last} for by in ("guest", "prefault", "host")] + [
        {"op": "fallocate", **last}
    ]
    before += [{"op": "fault", "by": "host", "file": "other", **page(0, 3)}] * (kind == "memfd" or bool(flags))
    before += [{"op": "fault", "by": by, **last} for by in ("guest", "prefault", "host")] + [
        {"op": "fallocate", **last}
    ]
    given_ = scenario([], kernel_profile="7.3" if kind == "memfd" else "7.4").replace(**{"guest.memory": "64 MiB"})
    if kind == "tracked":
        shared = {"op": "convert", "to": "shared", **page(64, 8192)}
        given_ = given_.replace(
            **{"guest.vm_type": "sw_protected", "operations": [before[0], shared, *before[1:], *calls]}
        )
    else:
        given_ = given_.replace(operations=[*before, *calls])
    assert_equal(given_)


@pytest.mark.parametrize("profile", ["7.3", "7.4"])
@pytest.mark.parametrize("by", ["guest", "nobody", "host"])
def test_holes_and_what_fills_them_are_carried_out_together(profile: str, by: str) -> None:
    """All but the first, and those for which the tree grows; slabs of nodes come and go."""
    calls: list[dict[str, Any]] = []
    for turn in range(2):
        for number in range(250):
            fault: dict[str, Any] = {**page(64 * (250 - number)), "task": f"vcpu{int(number % 8 == 0)}"}
            calls.append({"op": "fallocate", **fault} if by == "nobody" else {"op": "fault", "by": by, **fault})
            if turn:
                calls.append({"op": "punch_hole", **fault})
        calls += [{"op": "punch_hole", **page(64 * number)} for number in range(250)] * (turn == 0)
    convert = {"op": "convert", "to": "shared"} if profile == "7.4" else {"op": "fstat"}
    flags = ["mmap", "init_shared"] if profile == "7.3" else ["mmap"]
    given_ = scenario([], kernel_profile=profile).replace(**{"guest.memory": "64 MiB"})
    given_ = given_.replace(**{"guest.vm_type": "sw_protected" if profile == "7.4" else "none"})
    given_ = given_.replace(operations=[{"op": "create", "flags": flags}, convert, *calls])
    assert assert_equal(given_) > len(calls) - 20
    nodes = run(given_)["metadata_pages"][:, KINDS.index("page_cache")].sum(axis=1)
    assert nodes.max() > nodes[-1] > 0


@pytest.mark.parametrize("mode", ["default", "interleave"])
def test_holes_of_a_file_without_struct_pages_are_carried_out_together(mode: str) -> None:
    """Extents are cut and joined; what one call fills in lies together, and two zones never do."""
    policy = {"op": "mbind", **page(0, PAGES), "mode": mode, "nodes": "0-1" * (mode != "default")}
    calls: list[dict[str, Any]] = []
    for number in range(200):
        at = page(37 * number % (PAGES - 4), 1 + number % 3)
        calls += [{"op": "punch_hole", **at}, {"op": "fault", "by": "guest", **at}][: 1 + number % 2]
    calls += [{"op": "punch_hole", **page(0, 400)}, {"op": "fault", "by": "guest", **page(0, 400)}]
    before = [{"op": "create"}, *[policy] * (mode != "default"), {"op": "fault", "by": "guest"}]
    given_ = scenario([]).replace(**{"guest.vm_type": "sw_protected", "guest.design": "pfn-range"})
    given_ = given_.replace(**{"guest.page_size": "4 KiB", "operations": [*before, *calls, {"op": "fstat"}, *calls]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MapleSlab, "OBJECTS", 1)
        patch.setattr(range_trees, "nodes_of", lambda ranges: ranges)
        assert assert_equal(given_) > 2 * len(calls) - 4
        answer = run(given_)
    (tree,) = answer.system.metadata.trees.values()  # type: ignore[union-attr]
    light, map_ = tree[LIGHT_MAP], answer.system.inodes()[0].map
    assert isinstance(light, range_trees.LightMap) and not light.stale
    assert light.ranges == range_trees.ranges_in(map_, 0, map_.end) > 200
    ranges = answer["metadata_pages"][len(before) :, LIGHT_MAP].sum(axis=1)
    assert (np.diff(ranges) > 0).any() and (np.diff(ranges) < 0).any()


@pytest.mark.parametrize("kind", ["7.3", "7.4", "memfd"])
def test_holes_of_a_file_that_holds_nothing_are_carried_out_together(kind: str) -> None:
    """Also beyond all that its tree ever held; what a list took away, a fault alone finds absent."""
    guest = {"op": "fault", "by": "host" if kind == "memfd" else "guest"}
    fstat = {"op": "fstat", "file": "third"}
    holes = [{"op": "punch_hole", **page(100 * number)} for number in range(60)]
    calls = [
        {"op": "create", "file": "third"}, guest | page(0, 2), guest | page(100), fstat, guest | page(0),
        {"op": "punch_hole", **page(0, 2)},
        *holes, fstat, guest | page(0), guest | page(1), {"op": "punch_hole", **page(0, 2)}, fstat, *holes,
        {"op": "punch_hole", "offset": (1 << 63) - 8192, "length": 16384}, guest | page(0),
    ]  # fmt: skip
    file = {"op": "memfd", "file": "guest", "size": "64 MiB"} if kind == "memfd" else {"op": "create"}
    convert = [{"op": "convert", "to": "shared"}] * (kind == "7.4")
    given_ = scenario([], kernel_profile="7.3" if kind == "memfd" else kind).replace(**{"guest.memory": "64 MiB"})
    given_ = given_.replace(**{"guest.vm_type": "none" if kind == "memfd" else "sw_protected"})
    given_ = given_.replace(operations=[file, *convert, *calls])
    assert assert_equal(given_) > 2 * len(holes)
    assert run(given_)["event_error"][-2] == "EFBIG"


@pytest.mark.parametrize("profile", ["7.3", "7.4"])
def test_a_hole_of_many_runs_frees_them_all_and_keeps_the_nodes_at_its_ends(profile: str) -> None:
    calls = [{"op": "fault", "by": "guest", **page(number)} for number in range(300)]
    calls += [{"op": "punch_hole", **page(10, 260)}, {"op": "fault", "by": "guest", **page(100)}]
    convert = [{"op": "convert", "to": "shared"}] * (profile == "7.4")
    given_ = scenario([], kernel_profile=profile).replace(**{"guest.vm_type": "sw_protected"})
    given_ = given_.replace(operations=[{"op": "create"}, *convert, *calls])
    assert assert_equal(given_) > len(calls) - 5
    free = run(given_)["free_pages"].sum(axis=1)
    assert free[-2] - free[-3] == 260


def test_a_file_that_is_closed_has_no_holes() -> None:
    calls = [
        {"op": op, **page(number)} | ({"by": "host"} if op == "fault" else {})
        for number in range(20)
        for op in ("fault", "punch_hole")
    ]
    given_ = scenario([]).replace(operations=[{"op": "create"}, *calls, {"op": "close", "unmap": False}, *calls])
    assert assert_equal(given_) == len(calls) - 1
    assert (run(given_)["event_error"] == "EBADF").sum() == 20


@pytest.mark.parametrize("vm_type", ["none", "sw_protected"])
def test_faults_of_all_kinds_in_turns_are_carried_out_together(vm_type: str) -> None:
    by = ["guest", "nobody", "prefault"] + ["host", "populate"] * (vm_type == "none")
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        for number in range(200)
    ]
    given_ = scenario([(by, faults, [])]).replace(**{"guest.vm_type": vm_type})
    assert assert_equal(given_) > 180


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("filled", [False, True])
def test_poison_of_pages_and_what_is_about_others_are_carried_out_together(vm_type: str, filled: bool) -> None:
    """Also conversions and the guest's faults of poisoned pages, which are refused; an absent page has no poison."""
    drawn = Random(11)
    kinds: list[dict[str, Any]] = [{"op": "hwpoison"}, *[{"op": "convert", "to": to} for to in ("shared", "private")]]
    kinds += [{"op": "fault", "by": by} for by in ("guest", "prefault")] + [{"op": "fallocate"}]
    places: list[dict[str, Any]] = [{"op": "fault", "by": "host"}, {"op": "pin"}]
    calls = [drawn.choice(kinds) | page(2 * drawn.randrange(PAGES // 2)) for _ in range(400)]
    calls += [drawn.choice(places) | page(2 * drawn.randrange(PAGES // 2) + 1) for _ in range(200)]
    drawn.shuffle(calls)
    before = [
        {"op": "create"},
        {"op": "convert", "to": "shared", **page(0, PAGES // 2)},
        *[{"op": "fallocate"}] * filled,
    ]
    before += [{"op": "fault", "by": by, **page(PAGES - 1)} for by in ("guest", "prefault", "host")]
    before += [{"op": "fallocate", **page(PAGES - 1)}]
    before += [{"op": "hwpoison", **page(2 * number)} for number in range(20)]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(operations=[*before, *calls])
    assert assert_equal(given_) >= len(calls)
    errors = [result.errno for result in run(given_).log.results]
    assert (errors.count(errno.ENOENT) > 50) != filled
    assert (errno.EAGAIN in errors) >= filled and EHWPOISON in errors


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("filled", [False, True])
def test_pages_for_devices_and_what_is_about_others_are_carried_out_together(vm_type: str, filled: bool) -> None:
    """Those that are refused, too: private pages, areas that are there, or are not, or would be cut."""
    drawn = Random(13)
    kinds: list[dict[str, Any]] = [{"op": "iommu_map"}] * 2 + [{"op": "iommu_unmap"}]
    kinds += [{"op": "convert", "to": to} for to in ("shared", "private")]
    kinds += [{"op": "fault", "by": by} for by in ("guest", "host")]
    calls = [drawn.choice(kinds) | page(drawn.randrange(40, PAGES)) for _ in range(600)]
    areas = [{"op": "iommu_map", **page(2 * number, 2)} for number in range(20)]
    calls += [{"op": "iommu_unmap", **page(3 * number, 3)} for number in range(10)]
    calls += [{"op": "iommu_unmap", **page(2 * number, 2)} for number in range(10)] + [
        {"op": "iommu_unmap", **page(20, 10)}
    ]
    before = [
        {"op": "create"},
        {"op": "convert", "to": "shared", **page(0, PAGES // 2)},
        *[{"op": "fallocate"}] * filled,
    ]
    before += [{"op": "fallocate", **page(0, 40)}] + [
        {"op": "fault", "by": by, **page(PAGES - 1)} for by in ("guest", "host")
    ]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": vm_type})
    given_ = given_.replace(operations=[*before, *areas, *calls])
    assert assert_equal(given_) > len(calls) - 20
    errors = {result.errno for result in run(given_).log.results}
    assert {0, errno.EFAULT, errno.EEXIST, errno.ENOENT, errno.EAGAIN} <= errors


@pytest.mark.parametrize("by", ["host", "guest"])
def test_a_poisoned_page_and_what_a_device_maps_are_met_with_the_others(by: str) -> None:
    """A fault on the page fails; what a device has mapped stays mapped."""
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (PAGES - 64 + number), "length": 4096, "task": "vcpu0", "by": by}
        for number in range(64)
    ]
    for call in ("hwpoison", "iommu_map"):
        state = [
            {"op": "create"},
            {"op": "convert", "to": "shared"},
            faults[40],
            {"op": call, "offset": faults[40]["offset"], "length": 4096},
        ]
        given_ = scenario([], kernel_profile="7.4").replace(
            **{"guest.vm_type": "sw_protected", "operations": [*state, *faults]}
        )
        assert assert_equal(given_) == 65
        assert assert_equal(given_.replace(operations=[*state[:3], *faults])) > 60
        assert (run(given_)["event_error"][4:] == "EHWPOISON").sum() == (call == "hwpoison" and by == "guest")


@pytest.mark.parametrize(
    ("by", "memory"), [("host", "4 GiB"), ("guest", "8 MiB"), ("prefault", "4 GiB"), ("nobody", "4 GiB")]
)
def test_long_lists_are_carried_out_together(by: str, memory: str) -> None:
    """All but the first, and those for which the tree of the page cache grows."""
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        for number in range(200)
    ]
    given_ = scenario([([by], faults, [])]).replace(**{"guest.memory": memory})
    assert assert_equal(given_) > 180
    if by != "host":  # the host maps nothing of it
        assert assert_equal(given_.replace(**{"guest.vm_type": "snp", "kernel_profile": "7.4"})) > 180


def test_memory_that_runs_out_ends_the_process_at_the_same_fault() -> None:
    faults: list[dict[str, object]] = [
        {"op": "fault", "offset": 65536 * number, "length": 65536} for number in range(128)
    ]
    given_ = scenario([(["host"], faults, [])])
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


@pytest.mark.parametrize("by", ["host", "guest"])
def test_one_page_in_any_order_is_one_page(by: str) -> None:
    faults: list[dict[str, Any]] = [
        {"op": "fault", "by": by, **page(37 * number % PAGES), "order": order}
        for number, order in enumerate(["reverse", "strided", "random"] * 20)
    ]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "snp"})
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fault", "by": by, "length": 4096}]
    in_order = given_.replace(operations=[*before, *[fault | {"order": "sequential"} for fault in faults]])
    given_ = given_.replace(operations=[*before, *faults])
    assert assert_equal(given_) == assert_equal(in_order) >= len(faults) - 1
    assert run(given_)["stretch_step"].tolist() == run(in_order)["stretch_step"].tolist()


def test_the_host_touches_pages_of_both_states_together() -> None:
    """Of sixteen pages some are private, some mapped already, some poisoned: the others are placed, part by part."""
    own_table = [{"op": "hwpoison", **page(1500)}, {"op": "fault", **page(1500)}]
    calls: list[dict[str, Any]] = []
    for number in range(40):
        at = 16 * number
        calls += [{"op": "convert", "to": "private", **page(at + 2, 3)}, {"op": "fault", "by": "host", **page(at + 7)}]
        calls += [{"op": "hwpoison", **page(at + 7)}, {"op": "fault", "by": "host", **page(at + 7)}]
        calls += [{"op": "fault", "by": "host", **page(at, 16)}, {"op": "pin", **page(at + 7)}]
        calls += [{"op": "hwpoison", **page(at + 8, 3)}, {"op": "punch_hole", **page(at, 16)}]
    given_ = scenario([], kernel_profile="7.4").replace(**{"guest.vm_type": "snp"})
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fallocate", **page(1500)}]
    before += [{"op": "fault", "by": "host", "length": 4096}]
    given_ = given_.replace(operations=[*before, *calls, *own_table])
    assert assert_equal(given_) >= len(calls) + 1
    answer = run(given_)
    results = answer.log.results[len(before) : -2]
    assert [(one.ret, one.detail) for one in results[4::8]] == [
        (12, {"bad": 4, "first": 16 * row + 2}) for row in range(40)
    ]
    assert {one.detail["bad"] for one in results[3::8]} == {1}
    assert {one.errno for one in results[5::8]} == {errno.EFAULT}
    free = answer["free_pages"].sum(axis=1)[len(before) : -2].reshape(40, 8)
    assert (free[:, 7] - free[:, 6]).tolist() == [13 - 4] * 40

"""Conversions, faults and pins of a file without struct pages carried out together leave the same as one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine.kernel_pages import LIGHT_MAP, PAGE_CACHE, STATE_TREE
from workbench.engine.lists import light
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
RANGE = {
    "offset": st.integers(0, PAGES - 1).map(lambda page: page * 4096) | st.sampled_from([0, 512 * 4096, 1024 * 4096]),
    "length": st.sampled_from([1, 1, 1, 2, 64, 512, 513, 700]).map(lambda pages: pages * 4096),
    "task": st.sampled_from(["vcpu0", "vcpu1", None]),
}
CONVERT = st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.sampled_from(["shared", "private"])})
BAD = st.sampled_from(
    [{"offset": 100, "length": 4096}, {"offset": 4096, "length": 100}, {"offset": MEMORY, "length": 4096}]
)
PIN = st.fixed_dictionaries(
    {"op": st.sampled_from(["pin", "unpin"]), **RANGE, "kind": st.sampled_from(["long_term", "long_term", "transient"])}
).map(lambda call: call | {"length": min(call["length"], 64 * 4096)})
DEVICE = st.fixed_dictionaries({"op": st.sampled_from(["iommu_map", "iommu_map", "iommu_unmap"]), **RANGE})
POISON = st.fixed_dictionaries({"op": st.just("hwpoison"), **RANGE}).map(lambda call: call | {"length": 4096})
CALL = st.one_of(
    CONVERT, CONVERT, CONVERT, PIN, PIN, st.tuples(PIN, BAD).map(lambda two: two[0] | two[1]),
    st.tuples(CONVERT, BAD).map(lambda two: two[0] | two[1]),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "guest", "prefault"]), **RANGE}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "prefault"]), **RANGE}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.just("host"), **RANGE}).map(lambda call: call | {"length": 4096}),
    DEVICE, DEVICE, POISON,
)  # fmt: skip
OTHER = st.fixed_dictionaries({"op": st.sampled_from(["punch_hole", "fault", "fallocate"]), **RANGE})
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "4 GiB", "cpus": [0]}, {"id": 1, "memory_bytes": "4 GiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}


def scenario(
    operations: list[dict[str, Any]],
    vm_type: str = "sw_protected",
    page_size: str = "4 KiB",
    memory: int | str = MEMORY,
    **fields: Any,
) -> wb.Scenario:
    guest = {"memory": memory, "vcpus": [{"node": 0}, {"node": 1}], "vm_type": vm_type, "design": "pfn-range"}
    return wb.Scenario.from_mapping(
        {"host": HOST, "guest": {**guest, "page_size": page_size}, "operations": operations, **fields}
    )


def assert_equal(given_: wb.Scenario) -> int:
    return one_after_another.assert_equal(light, given_)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL, min_size=2, max_size=20), st.lists(OTHER, max_size=2)), min_size=1, max_size=3),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from(["4 KiB", "4 KiB", "2 MiB", "2 MiB", "1 GiB"]),
    st.sampled_from(["", "", "proposal-hugetlb", "proposal-hugetlb-rfc2", "7.4"]),
    st.sampled_from([("mmap",), ("mmap",), ("mmap", "init_shared")]),
    st.sampled_from(["", "nobody", "guest", "guest", "guest"]), st.none() | st.integers(0, 40), st.booleans(),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    vm_type: str,
    page_size: str,
    kernel: str,
    flags: tuple[str, ...],
    filled: str,
    left: int | None,
    pfns: bool,
) -> None:
    """Some find no memory for struct pages, or pages that somebody holds; pages are punched out in between, also held ones."""
    before: list[dict[str, Any]] = [
        {"op": "create", "file": "other", "size": "2 MiB" if page_size != "1 GiB" else "1 GiB", "flags": ["mmap"]},
        {"op": "create", "flags": list(flags)},
        {"op": "convert", "file": "other", "to": "shared"},
        {"op": "fault", "file": "other", "by": "guest"},
        {"op": "fault", "by": "guest", "offset": MEMORY // 2, "length": 4096},
        {"op": "convert", "offset": MEMORY // 4, "length": 8192, "to": "shared"},
        {"op": "fault", "offset": MEMORY // 4, "length": 8192},
    ]
    before += [{"op": "fallocate"}] if filled == "nobody" else [{"op": "fault", "by": "guest"}] * (filled == "guest")
    calls = [call for some, others in parts for call in (*some, *others)]
    boot = {} if left is None else {"vmemmap_pages": {0: left, 1: left}}
    memory = "1 GiB" if page_size == "1 GiB" else MEMORY
    fields = {"metadata": metadata, "boot": boot, "pfns": pfns} | ({"kernel_profile": kernel} if kernel else {})
    assert_equal(scenario([*before, *calls], vm_type, page_size, memory, **fields))


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB"])
def test_long_lists_are_carried_out_together(vm_type: str, page_size: str) -> None:
    """Pages that go over all of a file and come back, touched in between: slabs of its trees are taken and given back."""
    memory = 24 << 20
    pages = [{"offset": 4096 * (2 * number * 37 % (memory // 4096)), "length": 4096} for number in range(700)]
    calls: list[dict[str, Any]] = []
    for number, page in enumerate(pages):
        calls += [{"op": "convert", "to": "shared", "task": f"vcpu{number % 2}", **page}]
        calls += [{"op": "fault", "by": "guest", "task": f"vcpu{number % 3 % 2}", **page}] * (number % 2)
        calls += [{"op": "fault", "by": "host", "task": f"vcpu{number % 3 % 2}", **page}] * (number % 5 == 0)
    calls += [{"op": "convert", "to": "private", **page} for page in pages]
    calls += [{"op": "fault", "by": by, **page} for page in pages[::5] for by in ("guest", "host")]
    calls.append({"op": "convert", "to": "private", **pages[0]})
    host = {"op": "fault", "offset": pages[3]["offset"], "length": 4096}
    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest", "task": "vcpu1"},
        {"op": "convert", "to": "shared", **pages[3]}, host,
    ]  # fmt: skip
    given_ = scenario([*before, *calls], vm_type, page_size, memory)
    assert assert_equal(given_) == len(calls)
    answer = run(given_)
    held = answer["metadata_pages"].sum(axis=-1)
    for kind in (LIGHT_MAP, STATE_TREE):
        steps = np.sign(np.diff(held[:, kind]))
        assert (steps > 0).any() and (steps < 0).any()
    assert not [mapping for inode in answer.system.inodes() for mapping in inode.mappings if not mapping.empty]


def test_faults_alone_are_carried_out_together() -> None:
    """Some get leaves, of pages that changed sides; also where a page is pinned."""
    touches = [
        {"op": "fault", "by": by, "offset": 4096 * (37 * number % (PAGES - 1)), "length": 4096 * (1 + (by == "guest"))}
        for number in range(200)
        for by in ("guest", "host")
    ]
    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fallocate"}, {"op": "convert", "to": "shared", "length": MEMORY // 2},
        {"op": "fault", "by": "guest"}, {"op": "convert", "to": "private", "length": MEMORY // 4},
        {"op": "pin", "offset": MEMORY // 4, "length": 4096}, {"op": "fault", "offset": MEMORY // 4, "length": 4096},
    ]  # fmt: skip
    given_ = scenario([*before, *touches], page_size="2 MiB")
    assert assert_equal(given_) > 390
    mapped = run(given_)["user_mapped_pages"][len(before) - 1 :, 0]
    assert mapped[0] == PAGES - MEMORY // 4 // 4096 and mapped[-1] == PAGES


def test_nodes_of_what_is_shared_along_a_large_file() -> None:
    """A page of each 16 MiB of 3 GiB is shared and private again: three levels of nodes above the groups of struct pages."""
    memory, step = 3 << 30, 16 << 20
    there = [{"op": "fault", "by": "guest", "offset": at, "length": 4096} for at in range(0, memory, step)]
    shared = [{"op": "convert", "to": "shared", "offset": at, "length": 4096} for at in range(0, memory, step)]
    private = [one | {"to": "private"} for one in shared]
    other = {"op": "observe", "length": 4096}  # what places pages is another list
    given_ = scenario([{"op": "create"}, *there, other, *shared, *private], memory=memory)
    assert assert_equal(given_) == 2 * len(shared)
    answer = run(given_)
    nodes = next(iter(answer.system.metadata.trees.values()))[PAGE_CACHE]  # type: ignore[union-attr]
    pages = answer["metadata_pages"][:, PAGE_CACHE].sum(axis=1)
    # 192 groups, as many nodes of 16 MiB, 3 of 1 GiB and one above: 388 objects, 28 to a slab of 4 pages.
    assert pages[2 + 2 * len(shared) - 1] == 14 * 4
    assert nodes.nodes.sum() == 0


@pytest.mark.parametrize("kind", ["long_term", "transient"])
def test_pins_of_pages_that_are_absent_are_calls(kind: str) -> None:
    """A pin that lasts places them; one in passing is refused, and so part of a list."""
    calls = [{"op": "pin", "kind": kind, "offset": 4096 * number, "length": 4096} for number in range(40)]
    given_ = scenario([{"op": "create"}, {"op": "convert", "to": "shared", "length": MEMORY}, *calls])
    assert assert_equal(given_) == (0 if kind == "long_term" else 1 + len(calls))
    assert set(run(given_)["event_error"].tolist()[2:]) == {"" if kind == "long_term" else "ENOENT"}


@pytest.mark.parametrize("kernel", ["proposal-hugetlb", "proposal-hugetlb-rfc2"])
@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB"])
def test_pins_are_carried_out_together(page_size: str, kernel: str) -> None:
    """Pages are held once and twice, by both kinds, and given back; conversions around them are refused, and unmap what they may.

    The table of pins grows.
    """
    pages = [{"offset": 4096 * (37 * number % PAGES), "length": 4096} for number in range(150)]
    kinds = ["long_term", "transient"]
    calls: list[dict[str, Any]] = [
        {"op": "convert", "to": "shared", "length": MEMORY},
        {"op": "convert", "to": "private", "offset": 4096 * 700, "length": 4096},
    ]
    for number, page in enumerate(pages):
        one = {**page, "kind": kinds[number % 3 % 2]}
        calls += [{"op": "pin", **one}, {"op": "pin", **one}][: 1 + number % 2]
        calls += [{"op": "convert", "to": "private", "offset": page["offset"] & ~0x7FFF, "length": 0x8000}] * (
            number % 5 == 0
        )
    calls += [{"op": "convert", "to": "private", "offset": 64 * 4096, "length": MEMORY // 2}]
    for number, page in enumerate(pages[:60:2]):
        calls += [
            {"op": "unpin", **page, "kind": kinds[2 * number % 3 % 2]},
            {"op": "convert", "to": "private", **page},
        ]
    calls += [{"op": "pin", **page} for page in pages[1::2]]
    given_ = scenario(
        [{"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest"}, *calls],
        page_size=page_size,
        kernel_profile=kernel,
    )
    assert assert_equal(given_) == len(calls)
    answer = run(given_)
    errors = answer["event_error"].tolist()[2:]
    assert errors.count("EAGAIN") > 25 and errors.count("") > 300
    (mapping,) = [mapping for inode in answer.system.inodes() for mapping in inode.mappings]
    assert len(mapping.mapped()) > 10


def test_pages_that_left_pinned_are_let_go_alone() -> None:
    """What else is called meanwhile goes on together; where frames have numbers, each goes back by its own."""
    page = {"offset": 4096 * 600, "length": 4096}
    left: list[dict[str, Any]] = [{"op": "convert", "to": "shared", **page}]
    left += [{"op": op, **page} for op in ("pin", "pin", "punch_hole")]
    calls = [{"op": "convert", "to": "shared", "offset": 4096 * number, "length": 4096} for number in range(40)]
    drop = [{"op": "unpin", "kind": "transient", **page}, {"op": "unpin", **page}]
    given_ = scenario([
        {"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest"}, *left, *calls, *drop, *calls, *drop, *calls,
    ], pfns=True)  # fmt: skip
    assert assert_equal(given_) >= 3 * len(calls)
    answer = run(given_)
    assert answer["event_error"].tolist().count("EINVAL") == 2
    assert np.flatnonzero(np.diff(answer["free_pages"].sum(axis=1))).tolist()[-1] == 2 + len(left) + 2 * len(calls) + 2


@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB", "1 GiB"])
def test_poison_and_devices_are_followed(page_size: str) -> None:
    """A block with a poisoned page has no huge leaf any more; a device has one where 2 MiB, or 1 GiB, are in one state."""
    memory = 1 << 30 if page_size == "1 GiB" else 4 * MEMORY
    guest = {"op": "fault", "by": "guest"}
    calls: list[dict[str, Any]] = []
    for number in range(120):
        page = {"offset": 4096 * (4099 * number % (memory // 4096)), "length": 4096}
        calls += [{"op": "hwpoison", **page}] * (number % 5 == 0)
        calls += [{"op": "convert", "to": ["shared", "private"][number % 2], **page}] * (number % 3 == 0)
        calls += [guest | page, guest | {"offset": page["offset"] & ~0x3FFFFF, "length": 4 << 20}]
    device = [
        {"op": "iommu_map", "offset": 4096 * 100, "length": 8192},
        {"op": "iommu_map", "offset": 6 << 20, "length": 6 << 20},
    ]
    given_ = scenario(
        [{"op": "create", "flags": ["mmap"]}, guest, *calls, *device, *calls], page_size=page_size, memory=memory
    )
    assert assert_equal(given_) == 2 * len(calls) + len(device)
    answer = run(given_)
    errors = answer["event_error"].tolist()
    assert errors.count("EHWPOISON") > 50
    leaves, pages = answer["device_leaves"], answer["user_mapped_pages"][:, 1]
    assert (leaves @ [1, 512, 512 * 512] == pages).all()
    assert page_size == "1 GiB" or leaves[-1].tolist() == ([1538, 0, 0] if page_size == "4 KiB" else [2, 3, 0])

"""Conversions and pins carried out together leave the same results, event by event, as one after another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from reference import one_after_another
from workbench.engine.lists import light, present, tracked
from workbench.running import run

MEMORY = 8 << 20
PAGES = MEMORY // 4096
TASKS = st.sampled_from(["vcpu0", "vcpu1", None])
RANGE = {
    "offset": st.integers(0, PAGES - 1).map(lambda page: page * 4096) | st.sampled_from([0, 512 * 4096, 4095]),
    "length": st.sampled_from([1, 1, 1, 2, 3, 64, 65, 512, 700]).map(lambda pages: pages * 4096) | st.just(100),
    "task": TASKS,
}
CALL = st.one_of(
    st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.sampled_from(["shared", "private"])}),
    st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.sampled_from(["shared", "private"])}),
    st.fixed_dictionaries({
        "op": st.sampled_from(["pin", "pin", "unpin"]), **RANGE,
        "kind": st.sampled_from(["long_term", "long_term", "transient"]),
    }),
    st.fixed_dictionaries({"op": st.just("hwpoison"), **RANGE}),
)  # fmt: skip
DEVICE = st.fixed_dictionaries({"op": st.sampled_from(["iommu_map", "iommu_map", "iommu_unmap"]), **RANGE})
OTHER = (st.fixed_dictionaries({"op": st.sampled_from(["punch_hole", "fault", "fallocate"]), **RANGE}) | DEVICE).map(
    lambda call: call | {"offset": call["offset"] // 4096 * 4096, "length": -(-call["length"] // 4096) * 4096}
)
TOUCHES = st.lists(
    st.fixed_dictionaries({"op": st.just("convert"), **RANGE, "to": st.just("shared")})
    | st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "host"]), **RANGE}) | DEVICE, max_size=4,
).map(lambda calls: [call | {"offset": call["offset"] // 4096 * 4096, "length": -(-call["length"] // 4096) * 4096}
                     for call in calls])  # fmt: skip
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}


def scenario(operations: list[dict[str, Any]], vm_type: str = "sw_protected", **fields: object) -> wb.Scenario:
    guest = {"memory": MEMORY, "vcpus": [{"node": 0}, {"node": 1}], "vm_type": vm_type}
    return wb.Scenario.from_mapping(
        {"host": HOST, "guest": guest, "operations": operations, "kernel_profile": "7.4", **fields}
    )


def assert_equal(given_: wb.Scenario) -> int:
    return one_after_another.assert_equal(tracked, given_)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.lists(CALL, min_size=1, max_size=15), st.lists(OTHER, max_size=2)), max_size=5),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([(), ("mmap",), ("mmap", "init_shared")]), st.booleans(), st.sampled_from(["7.4", "7.4", "7.3"]),
)  # fmt: skip
def test_the_same_as_one_after_another(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    vm_type: str,
    flags: tuple[str, ...],
    filled: bool,
    kernel: str,
) -> None:
    calls = [call for some, others in parts for call in (*some, *others)]
    before: list[dict[str, Any]] = [
        {"op": "create", "file": "other", "size": "2 MiB"},
        {"op": "create", "flags": list(flags)},
    ]
    before += [{"op": "fallocate"}] * filled
    assert_equal(scenario([*before, *calls], vm_type, metadata=metadata, kernel_profile=kernel))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(CALL | CALL.map(lambda call: call | {"to": "shared"} if call["op"] == "convert" else call), min_size=2, max_size=25),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([("2 MiB", "hugetlb"), ("2 MiB", "hugetlb-hvo"), ("2 MiB", "thp"), ("2 MiB", "contiguous-4k"),
                     ("2 MiB", "pfn-range"), ("1 GiB", "hugetlb-hvo")]),
    st.sampled_from(["", "proposal-hugetlb", "proposal-hugetlb-rfc2", "proposal-two-stage"]),
    st.none() | st.integers(0, 40), st.sampled_from(["", "nobody", "nobody", "guest"]), TOUCHES,
)  # fmt: skip
def test_the_same_of_huge_pages(
    calls: list[dict[str, Any]],
    metadata: str,
    vm_type: str,
    pages: tuple[str, str],
    kernel: str,
    left: int | None,
    filled: str,
    touched: list[dict[str, Any]],
) -> None:
    """Conversions of huge pages, of which some find no memory for struct pages; some pages were touched before, or are mapped."""
    memory = 2 << 30 if pages[0] == "1 GiB" else MEMORY
    before: list[dict[str, Any]] = [{"op": "create", "flags": ["mmap"]}]
    before += [{"op": "fallocate"}] if filled == "nobody" else [{"op": "fault", "by": "guest"}] * (filled == "guest")
    given_ = scenario([*before, *touched, *calls], vm_type, metadata=metadata, kernel_profile=kernel or None)
    host = {**HOST, "nodes": [node | {"memory_bytes": "4 GiB"} for node in HOST["nodes"]]}  # type: ignore[attr-defined]
    given_ = given_.replace(
        host=host, **{"guest.memory": memory, "guest.page_size": pages[0], "guest.design": pages[1]},
        boot={} if left is None else {"vmemmap_pages": {0: left, 1: left}},
    )  # fmt: skip
    assert_equal(given_)


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
def test_long_lists_are_carried_out_together(vm_type: str) -> None:
    """Pages that go to and fro, some of them pinned meanwhile; the tree of states grows to several levels and shrinks."""
    calls: list[dict[str, Any]] = []
    for number in range(600):
        page = {"offset": 4096 * (2 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [{"op": "convert", "to": "shared", **page}] + [{"op": "pin", **page}] * (number % 3 == 0)
    calls += [
        {"op": "convert", "to": "private", "offset": 8192 * (599 - number), "length": 4096} for number in range(600)
    ]
    calls += [{"op": "unpin", "offset": 8192 * number, "length": 4096} for number in range(0, 600, 3)]
    given_ = scenario([{"op": "create"}, {"op": "fallocate"}, *calls], vm_type)
    assert assert_equal(given_) == len(calls)
    errors = run(given_)["event_error"].tolist()
    assert errors.count("EAGAIN") == 200 == len(errors) - errors.count("")


def test_pins_of_private_pages_that_are_not_there_are_refused_together() -> None:
    """Nothing is placed for them; of a shared page it is, and where one may become shared in the list it may be."""
    pins = [{"op": "pin", "offset": 4096 * (page * 37 % PAGES), "length": 4096 * (1 + page % 3)} for page in range(300)]
    given_ = scenario([{"op": "create"}, *pins])
    assert assert_equal(given_) == 300
    answer = run(given_)
    assert set(answer["event_error"][1:].tolist()) == {"EFAULT"} and not answer["event_pages"].any()
    shared: dict[str, Any] = {"op": "convert", "to": "shared", "offset": 4096 * 37, "length": 4096}
    for early in (0, 150):
        given_ = scenario([{"op": "create"}, *pins[:early], shared, *pins])
        assert assert_equal(given_) >= early + 250


@pytest.mark.parametrize("metadata", ["counted", "off"])
def test_lists_on_other_files_leave_counts_of_conversions_out_of_place(metadata: str) -> None:
    """Private pages that are pinned in vain, and memory that backs what is shared and is freed by calls on its own file."""
    pages = [{"offset": 4096 * page, "length": 4096} for page in range(40)]
    before: list[dict[str, Any]] = [{"op": "create"}, {"op": "fallocate"}]
    before += [{"op": "convert", "to": "shared", "length": 65536}]
    pins, maps, unpins = ([{"op": op, **page} for page in pages] for op in ("pin", "iommu_map", "unpin"))
    frees = [{"op": op, "file": "guest.shared", **page} for op in ("fallocate", "punch_hole") for page in pages]
    for calls, backed in (
        *((same, [16] * 40) for same in (pins, maps, unpins)),
        (frees, [*[16] * 16, *range(17, 41), *range(39, -1, -1)]),
    ):
        answer = run(scenario([*before, *calls], metadata=metadata, kernel_profile="7.3"))
        assert answer["shared_backend_pages"].tolist() == [0, 0, 16, *backed]


def test_a_pin_of_a_poisoned_page_is_carried_out_alone_and_pages_of_a_device_stay_mapped() -> None:
    """The pin is refused, and has mapped what lies before that page.

    By conversions KVM loses what the guest had touched, the device nothing.
    """

    def page(number: int, pages: int = 1) -> dict[str, Any]:
        return {"offset": 4096 * number, "length": 4096 * pages}

    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "mmap"}, {"op": "convert", "to": "shared"}, {"op": "fault", "by": "guest"},
        {"op": "iommu_map", **page(100, 3)}, {"op": "fault", **page(30)},
    ]  # fmt: skip
    poison = [{"op": "hwpoison", **page(number)} for number in (7, 30)]
    pins = [{"op": "pin", **page(number, 1 + 3 * (number == 6))} for number in range(14) if number != 7]
    converts = [{"op": "convert", "to": "private", **page(number)} for number in range(90, 110)]
    given_ = scenario([*before, *poison, *pins, *converts])
    assert assert_equal(given_) == 2 + len(pins) - 1 + len(converts)
    answer = run(given_)
    assert [error for error in answer["event_error"].tolist() if error] == ["EFAULT"] + 3 * ["EAGAIN"]
    assert answer["user_mapped_pages"].tolist()[-1] == [PAGES - 2 - 17, 3]
    assert answer["device_leaves"].tolist()[-1] == [3, 0, 0]
    mapped = [mapping.mapped().tolist() for inode in answer.system.inodes() for mapping in inode.mappings]
    assert mapped[0] == [[0, 7], [8, 14]], "nor is a poisoned page mapped any more"


@pytest.mark.parametrize(
    ("vm_type", "kernel", "error"),
    [("none", "7.4", "EINVAL"), ("sw_protected", "6.17", ""), ("sw_protected", "7.4", "")],
)
def test_who_cannot_convert_in_place_is_answered_call_by_call(vm_type: str, kernel: str, error: str) -> None:
    calls = [{"op": "convert", "to": "shared", "offset": 4096 * number, "length": 4096} for number in range(40)]
    given_ = scenario([{"op": "create"}, *calls], vm_type, kernel_profile=kernel)
    assert assert_equal(given_) == (40 if (vm_type, kernel) == ("sw_protected", "7.4") else 0)
    assert set(run(given_)["event_error"].tolist()[1:]) == {error}


@pytest.mark.parametrize("kernel", ["proposal-hugetlb", "proposal-hugetlb-rfc2"])
@pytest.mark.parametrize("design", ["hugetlb-hvo", "thp"])
def test_huge_pages_that_go_to_and_fro_are_carried_out_together(kernel: str, design: str) -> None:
    """But for one whose merge loses what a page has; of pages that the host has mapped, and of one that somebody holds."""
    page, block = {"offset": 5 * 4096, "length": 4096}, 2 << 20
    beyond = {"offset": 3 * block + 4096 * 100, "length": 4096}
    flips = [
        {
            "op": "convert",
            "to": to,
            "offset": block * (1 + number % 3) + 4096 * number,
            "length": 4096 * (1 + number % 2),
        }
        for number in range(40)
        for to in ("shared", "private")
    ]
    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fallocate"}, {"op": "convert", "to": "shared", **page},
        {"op": "fault", "by": "guest", "offset": block, "length": 3 * block}, {"op": "fault", **page},
        {"op": "convert", "to": "shared", "offset": 2 * block + 4096 * 100, "length": block + 4096},
        {"op": "pin", "offset": 2 * block + 4096 * 100, "length": 4096}, {"op": "fault", **beyond},
    ]  # fmt: skip
    held = {"op": "convert", "to": "private", "offset": 2 * block, "length": block + 4096 * 110}
    loses = {"op": "convert", "to": "private", **page}
    given_ = scenario([*before, *flips[:40], held, *flips[40:], loses, *flips], kernel_profile=kernel)
    given_ = given_.replace(**{"guest.page_size": "2 MiB", "guest.design": design})
    together = assert_equal(given_)
    answer = run(given_)
    mapped = [mapping.mapped().tolist() for inode in answer.system.inodes() for mapping in inode.mappings]
    assert mapped[0] == [[1636, 1637]]
    lost = [result.detail.get("content_lost_pages") for result in answer.log.results]
    assert lost.count(1) == (design == "hugetlb-hvo")
    assert answer["event_error"].tolist().count("EAGAIN") > 0
    assert (together > 140) == (kernel == "proposal-hugetlb")  # of generation B it is asked what was shared


FAULT = st.fixed_dictionaries({
    "op": st.just("fault"), "by": st.sampled_from(["guest", "host", "host", "prefault"]),
    "offset": st.integers(0, PAGES - 1).map(lambda page: page * 4096) | st.sampled_from([0, 512 * 4096]),
    "length": st.sampled_from([1, 1, 1, 2, 700]).map(lambda pages: pages * 4096), "task": TASKS,
    "order": st.sampled_from(["sequential", "sequential", "sequential", "reverse"]),
})  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.lists(FAULT, min_size=2, max_size=12), st.lists(CALL, max_size=3)), min_size=1, max_size=4),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([("2 MiB", "hugetlb-hvo"), ("2 MiB", "thp"), ("2 MiB", "contiguous-4k"), ("2 MiB", "pfn-range"),
                     ("4 KiB", "pfn-range")]),
    st.sampled_from(["", "proposal-hugetlb-rfc2", "proposal-two-stage"]), st.sampled_from(["", "nobody", "guest", "guest"]),
)  # fmt: skip
def test_the_same_of_faults_of_pages_that_are_there(
    parts: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    metadata: str,
    vm_type: str,
    pages: tuple[str, str],
    kernel: str,
    filled: str,
) -> None:
    before: list[dict[str, Any]] = [{"op": "create", "flags": ["mmap"]}]
    before += [{"op": "fallocate"}] if filled == "nobody" else [{"op": "fault", "by": "guest"}] * (filled == "guest")
    before += [{"op": "convert", "to": "shared", "offset": MEMORY // 2, "length": MEMORY // 4}]
    calls = [call for faults, others in parts for call in (*faults, *others)]
    given_ = scenario([*before, *calls], vm_type, metadata=metadata, kernel_profile=kernel or None)
    given_ = given_.replace(**{"guest.page_size": pages[0], "guest.design": pages[1]})
    one_after_another.assert_equal(light if pages[1] == "pfn-range" else present, given_)


@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
@pytest.mark.parametrize("pages", [("2 MiB", "hugetlb-hvo"), ("2 MiB", "pfn-range"), ("4 KiB", "pfn-range")])
def test_long_lists_of_faults_of_pages_that_are_there(vm_type: str, pages: tuple[str, str]) -> None:
    """Of the host on both sides, each table of whose page tables is made by the first; of the guest with and without leaves."""
    faults = [
        {"op": "fault", "by": by, "offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        for by in ("host", "guest")
        for number in range(200)
    ]
    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fault", "by": "guest"},
        {"op": "convert", "to": "shared", "offset": 0, "length": MEMORY // 2},
        {"op": "pin", "offset": 37 * 14 * 4096, "length": 4096},  # mapped, without a table that was counted
    ]  # fmt: skip
    given_ = scenario([*before, *faults, *faults], vm_type)
    given_ = given_.replace(**{"guest.page_size": pages[0], "guest.design": pages[1], "kernel_profile": None})
    together = one_after_another.assert_equal(light if pages[1] == "pfn-range" else present, given_)
    assert together > 780
    results = run(given_).log.results
    assert sum(result.detail.get("bad") == 1 for result in results) == 178


FEW = {"offset": st.sampled_from([0, 0, 1, 2, 511, 512, 513, 1024]).map(lambda page: page * 4096), "task": TASKS}
FEW_PAGES = st.sampled_from([1, 1, 1, 2, 3, 512]).map(lambda pages: pages * 4096)
OF_FEW = st.one_of(
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["guest", "host"]), **FEW, "length": st.just(4096)}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.just("guest"), **FEW, "length": FEW_PAGES}),
    *[st.fixed_dictionaries({"op": st.just("convert"), "to": st.just(to), **FEW, "length": FEW_PAGES})
      for to in ("shared", "private")],
)  # fmt: skip
BETWEEN: list[dict[str, Any]] = [
    {"op": "pin", "offset": 512 * 4096, "length": 4096}, {"op": "unpin", "offset": 512 * 4096, "length": 4096},
    {"op": "hwpoison", "offset": 2 * 4096, "length": 4096}, {"op": "punch_hole", "offset": 0, "length": 2 << 20},
    {"op": "convert", "to": "shared", "offset": 100, "length": 4096}, {"op": "alias", "file": "other", "of": "guest"},
    {"op": "set_mempolicy", "mode": "interleave", "nodes": "0-1"}, {"op": "madvise", "advice": 4},
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(OF_FEW, min_size=2, max_size=25), st.sampled_from([None, None, *BETWEEN])), max_size=4),
    st.sampled_from(["counted", "counted", "off", "taken"]), st.sampled_from(["sw_protected", "snp", "tdx"]),
    st.sampled_from([("2 MiB", "hugetlb"), ("2 MiB", "hugetlb-hvo"), ("2 MiB", "thp"), ("2 MiB", "contiguous-4k"),
                     ("1 GiB", "hugetlb-hvo")]),
    st.sampled_from(["", "proposal-hugetlb", "proposal-hugetlb-rfc2", "proposal-two-stage"]),
    st.none() | st.integers(0, 40), st.sampled_from(["", "nobody", "nobody", "guest"]), st.sampled_from([[], ["init_shared"]]),
)  # fmt: skip
def test_the_same_of_faults_and_conversions_of_huge_pages(
    parts: list[tuple[list[dict[str, Any]], dict[str, Any] | None]],
    metadata: str,
    vm_type: str,
    pages: tuple[str, str],
    kernel: str,
    left: int | None,
    filled: str,
    flags: list[str],
) -> None:
    """Units that split and merge, of which content is lost, while the guest and the host touch their pages."""
    before: list[dict[str, Any]] = [{"op": "create", "flags": ["mmap", *flags]}]
    before += [{"op": "fallocate"}] if filled == "nobody" else [{"op": "fault", "by": "guest"}] * (filled == "guest")
    # What goes well once may do so again.
    before += [{"op": "fault", "by": by, "offset": 1024 * 4096, "length": 4096} for by in ("guest", "host")]
    calls = [call for some, other in parts for call in (*some, *([other] if other else []))]
    calls = [call if call["op"] in ("alias", "set_mempolicy") else {"file": "guest", **call} for call in calls]
    given_ = scenario([*before, *calls], vm_type, metadata=metadata, kernel_profile=kernel or None)
    host = {**HOST, "nodes": [node | {"memory_bytes": "4 GiB"} for node in HOST["nodes"]]}  # type: ignore[attr-defined]
    memory = 1 << 30 if pages[0] == "1 GiB" else MEMORY
    given_ = given_.replace(
        host=host, **{"guest.memory": memory, "guest.page_size": pages[0], "guest.design": pages[1]},
        boot={} if left is None else {"vmemmap_pages": {0: left, 1: left}},
    )  # fmt: skip
    one_after_another.assert_equal(present, given_)


@pytest.mark.parametrize("design", ["hugetlb", "hugetlb-hvo", "thp"])
def test_long_lists_of_faults_and_conversions_of_huge_pages(design: str) -> None:
    """Of units in which some pages are shared throughout, so that none merges; of one that does it is asked what it has lost."""
    calls: list[dict[str, Any]] = []
    for number in range(150):
        page = {"offset": 4096 * (37 * number % PAGES), "length": 4096, "task": f"vcpu{number % 2}"}
        calls += [
            {"op": "convert", "to": "shared", **page},
            {"op": "fault", **page},
            {"op": "fault", "by": "guest", **page},
        ]
        calls += [{"op": "convert", "to": "private", **page}] * (number % 2)
    block = 2 << 20
    before = [
        {"op": "create", "flags": ["mmap"]}, {"op": "fallocate"},
        *({"op": "convert", "to": "shared", "offset": of * block + 5 * 4096, "length": 4096} for of in range(4)),
        {"op": "fault", "offset": 5 * 4096, "length": 4096}, {"op": "fault", "by": "guest", "offset": 0, "length": 4096},
    ]  # fmt: skip
    merges = [{"op": "convert", "to": "private", "offset": 3 * block, "length": block}]
    given_ = scenario([*before, *calls, *merges, *calls], kernel_profile=None)
    given_ = given_.replace(**{"guest.page_size": "2 MiB", "guest.design": design})
    together = one_after_another.assert_equal(present, given_)
    assert together >= 2 * len(calls) - 40
    lost = [result.detail.get("content_lost_pages") for result in run(given_).log.results]
    assert sum(one is not None for one in lost) >= (design != "thp")

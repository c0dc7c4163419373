"""What is noted after a call is looked at again of files only that the call may have changed: no other has changed."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.engine.conversion_counts import ConversionCounts
from workbench.engine.lists import backends, devices, faults, light, light_faults, look_ahead, present, tracked
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.running import run

PAGES = 1024
LISTS = [backends, devices, faults, light, light_faults, look_ahead, present, tracked]
HOST = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}, {"id": 1, "memory_bytes": "256 MiB", "cpus": [1]}],
    "distances": [[10, 20], [20, 10]],
}
GUESTS: list[dict[str, Any]] = [
    {"kernel_profile": "7.4", "guest": {"vm_type": "sw_protected"}},
    {"kernel_profile": "7.4", "guest": {"vm_type": "tdx"}},
    {"kernel_profile": "7.3", "guest": {"vm_type": "snp"}},
    {"kernel_profile": "proposal-preservation", "guest": {"vm_type": "sw_protected"}},
    {"kernel_profile": "proposal-hugetlb", "guest": {"vm_type": "snp", "page_size": "2 MiB", "design": "hugetlb"},
     "boot": {"hugetlb_pages": {0: 6, 1: 6}}},
    {"kernel_profile": "proposal-no-struct-page", "guest": {"vm_type": "snp", "page_size": "2 MiB", "design": "pfn-range"}},
]  # fmt: skip
FILES = st.sampled_from(["guest", "a", "b"])
SPANS = {"offset": st.sampled_from([0, 4096, 2 << 20]), "length": st.sampled_from([4096, 12288, 2 << 20])}
BACKENDS = st.sampled_from(["guest.shared", "a.shared"])  # on 7.3
CALLS = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["fallocate", "punch_hole", "fault", "mmap"]), "file": BACKENDS}),
    st.fixed_dictionaries({"op": st.just("get_mempolicy"), "file": FILES, "node": st.booleans()}),
    st.fixed_dictionaries({"op": st.just("set_memory_attributes"), "file": FILES, "private": st.booleans(), **SPANS}),
    st.fixed_dictionaries({"op": st.sampled_from(["fallocate", "punch_hole", "pin", "unpin", "iommu_map", "iommu_unmap"]),
                           "file": FILES, **SPANS}),
    st.fixed_dictionaries({"op": st.just("fault"), "by": st.sampled_from(["host", "guest"]), "file": FILES, **SPANS}),
    st.fixed_dictionaries({"op": st.just("convert"), "to": st.sampled_from(["shared", "private"]), "file": FILES, **SPANS}),
    st.fixed_dictionaries({"op": st.just("convert"), "to": st.sampled_from(["shared", "private"]), "file": FILES, **SPANS}),
    st.fixed_dictionaries({"op": st.just("hwpoison"), "file": FILES, "length": st.just(4096)}),
    st.fixed_dictionaries({"op": st.just("convert_stream"), "stream": st.just("uniform_random"), "count": st.just(6),
                           "every": st.just(3), "file": FILES}),
    st.fixed_dictionaries({"op": st.sampled_from(["create", "memfd"]), "file": FILES}),
    st.fixed_dictionaries({"op": st.sampled_from(["munmap", "mmap", "close", "memslot"]), "file": FILES}),
    st.fixed_dictionaries({"op": st.just("alias"), "file": FILES, "of": FILES}),
    st.fixed_dictionaries({"op": st.just("preserve"), "file": FILES, "token": st.just(7)}),
    st.fixed_dictionaries({"op": st.just("retrieve"), "file": FILES, "token": st.just(7)}),
    st.fixed_dictionaries({"op": st.sampled_from(["kexec", "create_vm", "finish", "close_session"])}),
    st.fixed_dictionaries({"op": st.just("migrate_pages"), "source": st.just(0), "target": st.just(1)}),
    st.fixed_dictionaries({"op": st.just("hog"), "node": st.sampled_from([0, 1]), "leave_free": st.just("2 MiB")}),
    st.fixed_dictionaries({"op": st.just("set_mempolicy"), "mode": st.just("bind"), "nodes": st.sampled_from(["0", "1"])}),
)  # fmt: skip


def scenario(guest: dict[str, Any], calls: list[dict[str, Any]], metadata: str = "counted") -> wb.Scenario:
    made = {"create": {"size": PAGES * 4096, "flags": ["mmap"]}, "memfd": {"size": PAGES * 4096}}
    first = [{"op": "create", "file": name} for name in ("guest", "a", "b")]
    return wb.Scenario.from_mapping({
        "host": HOST, **guest, "guest": {"memory": PAGES * 4096, **guest["guest"]}, "metadata": metadata, "strict": False,
        "operations": [{**call, **made.get(call["op"], {})} for call in [*first, *calls]],
    })  # fmt: skip


def nobody_knows(system: System, operation: object) -> None:
    """In place of :meth:`System.will_change`."""
    system.changed = None


def assert_all_is_seen(given_: wb.Scenario) -> None:
    found = run(given_)
    with mock.patch.object(System, "will_change", nobody_knows):
        wanted = run(given_)
    assert found.names == wanted.names
    for name in wanted.names:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@settings(max_examples=150, phases=(Phase.explicit, Phase.generate))
@given(
    st.sampled_from(GUESTS), st.lists(CALLS, min_size=4, max_size=25), st.sampled_from(["counted", "taken", "off"]),
    st.booleans(),
)  # fmt: skip
def test_what_calls_on_several_files_change_is_seen(
    guest: dict[str, Any], calls: list[dict[str, Any]], metadata: str, lists: bool
) -> None:
    with contextlib.ExitStack() as shorter:
        for module in LISTS if lists else ():
            shorter.enter_context(mock.patch.object(module, "LEAST", 2))
        assert_all_is_seen(scenario(guest, calls, metadata))


@pytest.mark.parametrize("guest", GUESTS)
@pytest.mark.parametrize("last", ["create", "close", "kexec", "create_vm", "hog"])
def test_a_file_that_a_call_does_not_name_changes_too(guest: dict[str, Any], last: str) -> None:
    """Its name means another file, its descriptor goes, the kernel or the VM is another, the process is killed."""
    shared = [
        {"op": "convert", "to": "shared", "file": "a", "length": 2 << 20},
        {"op": "fault", "file": "a", "length": 2 << 20},
    ]
    touched = [{"op": "fault", "by": "guest", "file": name} for name in ("a", "b")]
    held = [{"op": "pin", "file": "a", "length": 8192}] if last != "kexec" else []  # which would refuse it
    ends = {
        "create": [{"op": "create", "file": "a"}],
        "close": [{"op": "close", "file": "a"}, {"op": "unpin", "file": "a"}],
        "hog": [{"op": "hog", "node": node, "leave_free": 0} for node in (0, 1)]
        + [{"op": "fault", "by": "guest", "file": "guest"}],
    }
    assert_all_is_seen(scenario(guest, [*shared, *touched, *held, *ends.get(last, [{"op": last}])]))


@pytest.mark.parametrize("guest", GUESTS)
def test_what_lists_change_is_seen_after_a_call_on_another_file(guest: dict[str, Any]) -> None:
    size = 2 << 20 if "page_size" in guest["guest"] else 4096
    calls: list[dict[str, Any]] = []
    for name in ("a", "b"):
        for op, *more in (("fault", ("by", "guest")), ("convert", ("to", "shared")), ("fault",), ("pin",)):
            calls += [
                {"op": op, **dict(more), "file": name, "offset": page % 2 * size, "length": size} for page in range(20)
            ]
            calls += [{"op": "fallocate", "file": name, "length": 1}]  # is refused, and in no list
            calls += [{"op": "punch_hole", "file": "guest"}]
    assert_all_is_seen(scenario(guest, calls))


def test_what_a_backend_loses_is_counted_of_the_file_that_it_backs() -> None:
    given_ = scenario(GUESTS[2], [
        {"op": "convert", "to": "shared", "file": "a"}, {"op": "fault", "by": "guest", "file": "b"},
        {"op": "punch_hole", "file": "a.shared", "length": 40960}, {"op": "memfd", "file": "a.shared"},
    ])  # fmt: skip
    assert_all_is_seen(given_)
    assert run(given_)["shared_backend_pages"].tolist()[-4:] == [1024, 1024, 1014, 1014]


@pytest.mark.parametrize("guest", [GUESTS[0], GUESTS[1], GUESTS[5]])
def test_a_call_looks_at_the_file_that_it_names(guest: dict[str, Any]) -> None:
    """Of 200 files: after each of so many calls at two at most, the one that had the name before and the one that has it."""
    looked: list[Inode] = []
    counts_of = ConversionCounts._counts_of

    def counted(counts: ConversionCounts, inode: Inode, row: Int64s) -> bool:
        looked.append(inode)
        return counts_of(counts, inode, row)

    calls = [{"op": "create", "file": f"f{number}"} for number in range(200)]
    calls += [{"op": "convert", "to": "shared", "file": f"f{number}"} for number in range(200)]
    with mock.patch.object(ConversionCounts, "_counts_of", counted):
        run(scenario(guest, calls))
    assert 400 <= len(looked) <= 4 * 403
    assert len(set(looked)) == 203

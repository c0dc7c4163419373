"""What the kernel's own selftests of guest_memfd assert, as scenarios under every profile and VM type.

``tools/testing/selftests/kvm``: ``guest_memfd_test.c`` and, with the series for 7.4, ``x86/guest_memfd_conversions_test.c``.
The cases are theirs, the scripts ours; each says which function it is from. mbind and NUMA placement are the ready scenarios
``kernel-selftest-*`` as well. Of the bytes of a page only this is simulated: whether it holds what was written or zeros. Inode
numbers are not.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import workbench as wb
from workbench import profiles
from workbench.errnos import errno_name

PAGE = 4096
PAGES = 4
SIZE = PAGES * PAGE
HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 4 << 30, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}
RELEASED = [name for name in profiles.KERNEL_PROFILES if name[0].isdecimal()]
IN_PLACE = [
    profile.name for profile in profiles.with_in_place_conversion() if profile.name != "proposal-no-struct-page"
]
VM_TYPES = list(profiles.VM_TYPES)
MMAP, INIT_SHARED = 1, 2


def run(kernel: str, vm_type: str, operations: Sequence[Mapping[str, Any]], size: int = SIZE) -> list[dict[str, Any]]:
    """Errno by name ("" for success), return value and what else each call said."""
    guest = {"memory": size, "vm_type": vm_type, "vcpus": [{"node": 0}]}
    values = {"host": HOST, "kernel_profile": kernel, "guest": guest, "operations": list(operations)}
    dataset = wb.simulate(wb.Scenario.from_mapping(values))
    columns = (dataset[f"event_{name}"].values for name in ("errno", "ret", "detail"))
    return [
        {"errno": errno_name(int(error)) if error else "", "ret": int(ret), **json.loads(str(detail))}
        for error, ret, detail in zip(*columns, strict=True)
    ]


def allowed(kernel: str, vm_type: str) -> int:
    """Flags of KVM_CAP_GUEST_MEMFD_FLAGS: none up to 6.17, INIT_SHARED for types with private memory from 7.4 on."""
    profile = profiles.KERNEL_PROFILES[kernel]
    if not profile.maps:
        return 0
    return MMAP | (INIT_SHARED if profile.private_init_shared or not profiles.VM_TYPES[vm_type].private_memory else 0)


def span(page: int = 0, count: int = 1) -> dict[str, int]:
    return {"offset": page * PAGE, "length": count * PAGE}


def host(page: int = 0) -> dict[str, object]:
    return {"op": "fault", "by": "host", **span(page)}


def guest(page: int = 0) -> dict[str, object]:
    return {"op": "fault", "by": "guest", **span(page)}


def made(flags: int, size: int = SIZE) -> dict[str, object]:
    return {"op": "create", "raw_flags": flags, "size": size}


# ----------------------------------------------------------------------------------------------- guest_memfd_test


@pytest.mark.parametrize("vm_type", VM_TYPES)
@pytest.mark.parametrize("kernel", RELEASED)
def test_flags(kernel: str, vm_type: str) -> None:
    """test_guest_memfd_flags: each single bit, and the two together; the VM says which there are."""
    words = [*(1 << bit for bit in range(64)), MMAP | INIT_SHARED]
    asked = {"op": "check_extension", "capability": "guest_memfd_flags"}
    said, *answers = run(kernel, vm_type, [asked, *({**made(flags), "file": f"f{flags}"} for flags in words)])
    assert said["ret"] == allowed(kernel, vm_type)
    expected = ["EINVAL" if flags & ~said["ret"] else "" for flags in words]
    assert [answer["errno"] for answer in answers] == expected


@pytest.mark.parametrize("vm_type", ["none", "sw_protected"])
@pytest.mark.parametrize("kernel", RELEASED)
def test_sizes(kernel: str, vm_type: str) -> None:
    """test_create_guest_memfd_invalid_sizes: with each set of flags that there is."""
    sets = [flags for flags in (0, MMAP, MMAP | INIT_SHARED) if not flags & ~allowed(kernel, vm_type)]
    files = [{**made(flags, size), "file": f"f{flags}"} for flags in sets for size in (1, 2, 511, 2048, PAGE - 1)]
    assert {answer["errno"] for answer in run(kernel, vm_type, files)} == {"EINVAL"}


@pytest.mark.parametrize("kernel", RELEASED)
def test_two_files(kernel: str) -> None:
    """test_create_guest_memfd_multiple: two descriptors, two files of their own sizes."""
    first, second = {**made(0, PAGE), "file": "a"}, {**made(0, 2 * PAGE), "file": "b"}
    sizes = [{"op": "fstat", "file": name} for name in "aba"]
    beyond = [{"op": "fallocate", "file": name, "offset": PAGE, "length": PAGE} for name in "ba"]
    answers = run(kernel, "none", [first, sizes[0], second, *sizes[1:], *beyond])
    assert [answer["errno"] for answer in answers] == ["", "", "", "", "", "", "EINVAL"]
    assert [answers[number]["size"] for number in (1, 3, 4)] == [PAGE, 2 * PAGE, PAGE]
    assert answers[0]["ret"] != answers[2]["ret"]


@pytest.mark.parametrize("vm_type", ["none", "sw_protected", "snp"])
@pytest.mark.parametrize("kernel", RELEASED)
def test_a_descriptor_has_a_size_and_no_bytes(kernel: str, vm_type: str) -> None:
    """test_file_read_write, test_file_size: of each kind of file, and by pread and pwrite."""
    bytes_of = [{"op": op, **at} for op in ("read", "write") for at in ({}, {"at": 0}, {"at": 1 << 63})]
    for flags in (0, MMAP, MMAP | INIT_SHARED):
        if flags & ~allowed(kernel, vm_type):
            continue
        answers = run(kernel, vm_type, [made(flags), *bytes_of, {"op": "fstat"}, {"op": "close"}, {"op": "fstat"}])
        assert [answer["errno"] for answer in answers[1:7]] == ["EINVAL", "ESPIPE", "EINVAL"] * 2
        assert (answers[7]["size"], answers[7]["blksize"]) == (SIZE, PAGE)
        assert answers[9]["errno"] == "EBADF"


FALLOCATE = [
    ("fallocate", 0, SIZE, ""),
    ("punch_hole", PAGE - 1, PAGE, "EINVAL"),
    ("fallocate", SIZE, PAGE, "EINVAL"),
    ("fallocate", SIZE + PAGE, PAGE, "EINVAL"),
    ("punch_hole", SIZE, PAGE, ""),
    ("punch_hole", SIZE + PAGE, PAGE, ""),
    ("punch_hole", PAGE, PAGE - 1, "EINVAL"),
    ("punch_hole", PAGE, PAGE, ""),
    ("fallocate", PAGE, PAGE, ""),
    # test_invalid_punch_hole
    *(
        ("punch_hole", offset, length, "EINVAL")
        for offset, length in [
            *((0, length) for length in (1, PAGE - 1, PAGE + 1)),
            *((1, length) for length in (1, PAGE - 1, PAGE, PAGE + 1)),
            *((PAGE, length) for length in (1, PAGE - 1, PAGE + 1)),
        ]
    ),
]
"""test_fallocate: call, offset, length, errno."""


@pytest.mark.parametrize("flags", [0, MMAP, MMAP | INIT_SHARED])
@pytest.mark.parametrize("vm_type", ["none", "sw_protected", "snp"])
@pytest.mark.parametrize("kernel", RELEASED)
def test_fallocate_and_holes(kernel: str, vm_type: str, flags: int) -> None:
    if flags & ~allowed(kernel, vm_type):
        pytest.skip("test_flags: there is no such file")
    calls = [{"op": op, "offset": offset, "length": length} for op, offset, length, _ in FALLOCATE]
    answers = run(kernel, vm_type, [made(flags), *calls])
    assert [answer["errno"] for answer in answers[1:]] == [error for *_, error in FALLOCATE]


@pytest.mark.parametrize("vm_type", ["none", "sw_protected", "tdx"])
@pytest.mark.parametrize("kernel", RELEASED)
def test_mapping_and_faults(kernel: str, vm_type: str) -> None:
    """test_mmap_not_supported, test_mmap_cow, test_fault_private, test_mmap_supported, test_fault_overflow, test_collapse."""
    touch = {"op": "fault", "by": "host", "length": SIZE}
    beyond = {"op": "fault", "by": "host", "length": SIZE + PAGE}
    mapped = {"op": "mmap"}
    cow = {"op": "mmap", "private": True}
    huge, collapse, dontneed = ({"op": "madvise", "advice": advice} for advice in (14, 25, 4))
    plain = run(kernel, vm_type, [made(0), mapped, touch])
    assert [answer["errno"] for answer in plain[:2]] == ["", "ENODEV"]
    assert plain[2]["bad"] == PAGES
    if allowed(kernel, vm_type) & MMAP:
        private = run(kernel, vm_type, [made(MMAP), cow, touch, beyond])
        assert private[1]["errno"] == "EINVAL"
        assert (private[2]["bad"], private[2]["first"]) == (PAGES, 0)
        assert private[3]["bad"] == PAGES + 1
    if allowed(kernel, vm_type) & INIT_SHARED:
        hole = [{"op": "punch_hole", "length": PAGE}, touch, {"op": "munmap"}]
        shared = run(kernel, vm_type, [made(MMAP | INIT_SHARED), cow, touch, beyond, collapse, *hole])
        advised = run(kernel, vm_type, [made(MMAP | INIT_SHARED), touch, huge, collapse, dontneed, touch])
        assert [answer["errno"] for answer in advised] == ["", "", "", "EINVAL", "", ""]
        assert (advised[5]["bad"], advised[5]["ret"]) == (0, PAGES)
        assert shared[1]["errno"] == "EINVAL"
        assert shared[2]["bad"] == 0
        assert (shared[3]["bad"], shared[3]["first"]) == (1, PAGES)
        assert shared[4]["errno"] == "EINVAL"
        assert [answer["errno"] for answer in shared[5:]] == [""] * 3
        assert shared[6]["bad"] == 0, "the page that was a hole is there again"


@pytest.mark.parametrize("kernel", RELEASED)
def test_a_guest_runs_on_a_shared_file(kernel: str) -> None:
    """test_guest_memfd_guest: the host writes, the guest reads and writes back; up to 6.17 there is no such memslot."""
    if not profiles.KERNEL_PROFILES[kernel].maps:
        answers = run(kernel, "none", [made(0), {"op": "memslot"}, {"op": "fault", "by": "guest"}])
        assert [answer["errno"] for answer in answers] == ["", "EINVAL", "EINVAL"]
        return
    touches = [{"op": "fault", "by": by} for by in ("host", "guest", "host")]
    answers = run(kernel, "none", [made(MMAP | INIT_SHARED), *touches])
    assert [answer["errno"] for answer in answers] == [""] * 4
    assert answers[2]["done"] == PAGES


def kept_by_files(kernel: str) -> bool:
    return profiles.KERNEL_PROFILES[kernel].file_policy


@pytest.mark.parametrize("flags", [MMAP, MMAP | INIT_SHARED])
@pytest.mark.parametrize("vm_type", ["none", "sw_protected"])
@pytest.mark.parametrize("kernel", RELEASED)
def test_mbind(kernel: str, vm_type: str, flags: int) -> None:
    """test_mbind: a policy is read back where it was set, DEFAULT clears it; on 6.18 the VMA keeps it, not the file."""
    if flags & ~allowed(kernel, vm_type):
        pytest.skip("test_flags: there is no such file")
    first, second = {"offset": 0}, {"offset": 2 * PAGE}
    asked = [{"op": "get_mempolicy", "file": "guest", **at} for at in (first, second)]
    operations = [
        {"op": "mbind", **first, "length": 2 * PAGE, "mode": "interleave", "nodes": "0"},
        asked[0],
        {"op": "mbind", **second, "length": 2 * PAGE, "mode": "bind", "nodes": "0"},
        asked[1],
        {"op": "mbind"},
        *asked,
        {"op": "mbind", "length": PAGE, "mode": 999, "nodes": "0"},
    ]
    answers = run(kernel, vm_type, [made(flags), *operations])[1:]
    assert [answer["errno"] for answer in answers] == [""] * 7 + ["EINVAL"]
    assert [(answers[number]["mode"], answers[number]["nodes"]) for number in (1, 3, 5, 6)] == [
        (3, "0"),
        (2, "0"),
        (0, ""),
        (0, ""),
    ]


@pytest.mark.parametrize("kernel", RELEASED)
def test_numa_allocation(kernel: str) -> None:
    """test_numa_allocation: pages come where the file's policy says, from 6.19 on; before, where the task runs."""
    if not profiles.KERNEL_PROFILES[kernel].maps:
        pytest.skip("test_mapping_and_faults: there is no mapping to bind")
    bound = [
        {"op": "mbind", "offset": first * PAGE, "length": 2 * PAGE, "mode": "bind", "nodes": node}
        for first, node in ((0, "1"), (2, "0"), (0, "0"), (2, "1"))
    ]
    late = {"op": "mbind", "length": PAGE, "mode": "bind", "nodes": "0"}
    touch, hole = {"op": "fault"}, {"op": "punch_hole"}
    nodes = [{"op": "get_mempolicy", "file": "guest", "node": True, "offset": page * PAGE} for page in range(PAGES)]
    operations = [
        {**touch, "length": PAGE},
        late,
        {**hole, "length": PAGE},
        *bound[:2],
        touch,
        *nodes,
        hole,
        *bound[2:],
    ]
    answers = run(kernel, "none", [made(MMAP | INIT_SHARED), *operations, touch, *nodes])
    assert not any(answer["errno"] for answer in answers)
    found = [answer["node"] for answer in answers if "node" in answer]
    assert found == ([1, 1, 0, 0, 0, 0, 1, 1] if kept_by_files(kernel) else [0] * 8)


@pytest.mark.parametrize("vm_type", ["none", "sw_protected"])
@pytest.mark.parametrize("kernel", [name for name in RELEASED if profiles.KERNEL_PROFILES[name].maps])
def test_memory_failure(kernel: str, vm_type: str) -> None:
    """test_memory_failure, test_memory_failure_guest: SIGBUS for the host, mapped before or not, EHWPOISON for the guest."""
    if ~allowed(kernel, vm_type) & INIT_SHARED:
        pytest.skip("test_flags: there is no such file")
    poison, away = {"op": "hwpoison", **span(1)}, {"op": "madvise", "advice": 4, **span(1)}
    for before in ([host(1)], [host(1), away], [host(1), {"op": "munmap"}, guest(1)]):
        operations = [*before, poison, host(1), guest(1), host(0), {"op": "munmap"}, {"op": "punch_hole"}]
        answers = seen(run(kernel, vm_type, [made(MMAP | INIT_SHARED), *operations]))[1 + len(before) :]
        others = "SIGBUS" if len(before) == 3 else "fine"  # there is no mapping any more
        assert answers == ["fine", "SIGBUS", "EHWPOISON", others, "fine", "fine"]


# --------------------------------------------------------------------------------------- guest_memfd_conversions_test


def convert(to: str, first: int = 0, count: int = 1) -> dict[str, object]:
    return {"op": "convert", "to": to, **span(first, count)}


def seen(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each answer as the selftests look at it: an errno, SIGBUS, or fine."""
    return [answer["errno"] or ("SIGBUS" if answer.get("bad") else "fine") for answer in answers]


def in_place(kernel: str, flags: int, operations: Sequence[Mapping[str, Any]], pages: int = 1) -> list[dict[str, Any]]:
    return run(kernel, "sw_protected", [made(flags, pages * PAGE), *operations], size=pages * PAGE)[1:]


@pytest.mark.parametrize("kernel", IN_PLACE)
def test_one_page_to_and_fro(kernel: str) -> None:
    """init_private, init_shared, before_allocation_*: a private page is SIGBUS for the host, a shared one is for both."""
    both = [host(), guest(), host()]
    assert seen(in_place(kernel, MMAP, both)) == ["SIGBUS", "fine", "SIGBUS"]
    there_and_back = [convert("shared"), *both, convert("private"), *both]
    answers = seen(in_place(kernel, MMAP, there_and_back))
    assert answers == ["fine"] * 4 + ["fine", "SIGBUS", "fine", "SIGBUS"]
    back_and_there = [*both, convert("private"), *both, convert("shared"), *both]
    answers = seen(in_place(kernel, MMAP | INIT_SHARED, back_and_there))
    assert answers == ["fine"] * 4 + ["SIGBUS", "fine", "SIGBUS"] + ["fine"] * 4


@pytest.mark.parametrize("page", range(4))
@pytest.mark.parametrize("kernel", IN_PLACE)
def test_only_the_page_that_was_named(kernel: str, page: int) -> None:
    """indexing: neighbours keep their state, whether pages are there yet or not."""
    all_pages = [host(number) for number in range(4)]
    for touched in ([], [host(0), host(3)], all_pages):
        answers = in_place(kernel, MMAP | INIT_SHARED, [*touched, convert("private", page), *all_pages], pages=4)
        expected = ["SIGBUS" if number == page else "fine" for number in range(4)]
        assert seen(answers)[len(touched) + 1 :] == expected
    back = [convert("private", page), convert("shared", page), *all_pages]
    assert seen(in_place(kernel, MMAP | INIT_SHARED, back, pages=4)) == ["fine"] * 6


@pytest.mark.parametrize("page", range(4))
@pytest.mark.parametrize("kernel", IN_PLACE)
def test_what_host_and_guest_reach_of_each_page(kernel: str, page: int) -> None:
    """indexing: all are shared, last page first; one becomes private, is used by the guest alone, and comes back."""

    def each(pages: Sequence[int]) -> list[dict[str, object]]:
        return [touch(number) for number in pages for touch in (host, guest, host)]

    operations = [
        *each(range(3, -1, -1)),
        convert("private", page),
        guest(page),
        *each(range(4)),
        convert("shared", page),
    ]
    answers = in_place(kernel, MMAP | INIT_SHARED, [*operations, *each(range(4))], pages=4)
    private = ["SIGBUS", "fine", "SIGBUS"]
    seen_of_each = [said for number in range(4) for said in (private if number == page else ["fine"] * 3)]
    assert seen(answers) == ["fine"] * 14 + seen_of_each + ["fine"] * 13
    assert not any("content_lost_pages" in answer for answer in answers)


@pytest.mark.parametrize("page", range(8))
@pytest.mark.parametrize("kernel", IN_PLACE)
def test_a_range_with_holes(kernel: str, page: int) -> None:
    """unallocated_folios: all eight pages convert, of which two are there, and nothing of what these hold is lost."""
    each = [host(number) for number in range(8)]
    guests = [guest(number) for number in range(8)]
    to_private = [host(page), host(4), convert("private", 0, 8), *each, *guests]
    operations = [
        *to_private,
        convert("shared", 0, 8),
        *(touch for pair in zip(each, guests, strict=True) for touch in pair),
    ]
    answers = in_place(kernel, MMAP | INIT_SHARED, operations, pages=8)
    assert seen(answers[:3]) == ["fine"] * 3
    assert seen(answers[3:11]) == ["SIGBUS"] * 8
    assert seen(answers[11:]) == ["fine"] * (8 + 1 + 16)
    assert not any("content_lost_pages" in answer for answer in answers)


@pytest.mark.parametrize("kernel", IN_PLACE)
def test_a_second_process(kernel: str) -> None:
    """forked_accesses: what one converts is gone out of the tables of both; here the other maps a descriptor of its own."""
    other = {"op": "fault", "file": "theirs", **span()}
    passed = [{"op": "pass_fd", "of": "guest", "file": "theirs", "process": "child"}, {"op": "mmap", "file": "theirs"}]
    operations = [*passed, host(), guest(), host(), other, convert("private"), host(), guest(), host(), other, other]
    answers = seen(in_place(kernel, MMAP | INIT_SHARED, operations))
    assert answers == ["fine"] * 7 + ["SIGBUS", "fine"] + ["SIGBUS"] * 3


@pytest.mark.parametrize("kernel", IN_PLACE)
def test_a_hole_changes_no_state(kernel: str) -> None:
    """truncate."""
    hole = {"op": "punch_hole", "offset": 0, "length": PAGE}
    operations = [host(), hole, host(), convert("private"), guest(), hole, host(), guest()]
    answers = seen(in_place(kernel, MMAP | INIT_SHARED, operations))
    assert answers == ["fine", "fine", "fine", "fine", "fine", "fine", "SIGBUS", "fine"]


@pytest.mark.parametrize("page", range(4))
@pytest.mark.parametrize("kernel", IN_PLACE)
def test_a_page_that_somebody_holds(kernel: str, page: int) -> None:
    """elevated_refcount: EAGAIN with the offset of the page, alone and in bulk; after the reference is gone all convert."""
    others = [number for number in range(4) if number != page]
    operations = [
        {"op": "pin", **span(page)},
        *(host(number) for number in range(4)),
        convert("private", 0, 4),
        convert("private", page),
        *(convert("private", number) for number in others),
        {"op": "unpin", **span(page)},
        convert("private", 0, 4),
        *(host(number) for number in range(4)),
    ]
    answers = in_place(kernel, MMAP | INIT_SHARED, operations, pages=4)
    assert seen(answers[:5]) == ["fine"] * 5
    for refused in answers[5:7]:
        assert (refused["errno"], refused["error_offset"]) == ("EAGAIN", page * PAGE)
    assert seen(answers[7:12]) == ["fine"] * 5
    assert seen(answers[12:]) == ["SIGBUS"] * 4


@pytest.mark.parametrize("kernel", list(profiles.KERNEL_PROFILES))
def test_where_there_is_no_such_ioctl(kernel: str) -> None:
    """KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: the selftest is skipped there; the ioctl is ENOTTY, and says where it exists."""
    profile = profiles.KERNEL_PROFILES[kernel]
    guest_of = {"memory": SIZE, "vm_type": "sw_protected", "conversion": {"mode": "in-place"}}
    values = {"host": HOST, "kernel_profile": kernel, "guest": guest_of, "operations": [made(0), convert("shared")]}
    dataset = wb.simulate(wb.Scenario.from_mapping(values))
    has = "in-place" in profile.conversion
    assert int(dataset["event_errno"].values[1]) == (0 if has else errno.ENOTTY)
    assert has or "on 7.4" in json.loads(str(dataset["event_detail"].values[1]))["reason"]

"""What a running kernel with in-place conversion and huge pages did and the text of the series did not say, row by row.

Each test is one row of the table that the recordings of the series gave (``datasets/recordings/conversion``), as a scenario
of its own under the profile that has the rule, beside the profile that has another.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import workbench as wb

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
HUGE = 2 * MIB
C, B, STOCK = "proposal-hugetlb", "proposal-hugetlb-rfc2", "proposal-hugetlb-stock-xarray"
ALLOCATE: dict[str, Any] = {"op": "fallocate"}


class Call(NamedTuple):
    error: str
    detail: dict[str, Any]


def run(
    kernel: str, operations: list[dict[str, Any]], pages: int = 4, pool: int = 8, **settings: Any
) -> tuple[list[Call], xr.Dataset]:
    """Each call's errno by name ("" for success) and detail, and the Dataset. Pools of 2 MiB on two nodes."""
    guest = {
        "memory": pages * HUGE, "page_size": "2 MiB", "design": "hugetlb", "vm_type": "sw_protected",
        "vcpus": [{"node": 0}],
    } | settings.pop("guest", {})  # fmt: skip
    nodes = [{"id": n, "memory_bytes": 16 * GIB, "cpus": [n]} for n in range(2)]
    values = {
        "host": {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]},
        "boot": {"hugetlb_pages": {0: pool, 1: pool}}, "kernel_profile": kernel, "guest": guest,
        "operations": operations,
    } | settings  # fmt: skip
    dataset = wb.simulate(wb.Scenario.from_mapping(values))
    columns = zip(dataset["event_error"].values, dataset["event_detail"].values, strict=True)
    return [Call(str(error), json.loads(str(detail))) for error, detail in columns], dataset


def convert(to: str, offset: int = 0, length: int = PAGE) -> dict[str, Any]:
    return {"op": "convert", "to": to, "offset": offset, "length": length}


def touch(by: str, offset: int = 0, length: int = PAGE) -> dict[str, Any]:
    return {"op": "fault", "by": by, "offset": offset, "length": length}


CREATE: dict[str, Any] = {"op": "create", "flags": ["mmap"]}


@pytest.mark.parametrize(("kernel", "left"), [(C, 4), (B, 3)])
def test_1_punch_over_several_blocks_a_later_one_pinned(kernel: str, left: int) -> None:
    """C looks at the whole range first and frees nothing; B frees the blocks before the pinned one."""
    pinned = HUGE + 5 * PAGE
    calls, dataset = run(kernel, [
        CREATE, ALLOCATE, convert("shared", pinned), {"op": "pin", "offset": pinned, "length": PAGE},
        {"op": "punch_hole", "offset": 0, "length": 3 * HUGE},
    ])  # fmt: skip
    assert calls[-1].error == "EAGAIN"
    assert int(dataset["pages_per_node"].sum()) == left


@pytest.mark.parametrize("kernel", [C, B])
def test_2_a_file_larger_than_the_pool_or_over_another_ones_reservation(kernel: str) -> None:
    calls, _ = run(kernel, [CREATE | {"size": 17 * HUGE}])
    assert calls[-1].error == "ENOMEM"
    first = CREATE | {"size": 10 * HUGE}
    calls, _ = run(kernel, [first, CREATE | {"file": "b", "size": 7 * HUGE}, CREATE | {"file": "c", "size": 6 * HUGE}])
    assert [call.error for call in calls] == ["", "ENOMEM", ""]


@pytest.mark.parametrize(("kernel", "error", "there"), [(B, "", [0, 1]), (C, "EINVAL", [])])
def test_3_fallocate_that_is_not_aligned_to_the_huge_page(kernel: str, error: str, there: list[int]) -> None:
    """B cuts start and end down to whole huge pages."""
    calls, dataset = run(kernel, [CREATE, ALLOCATE | {"offset": 3 * PAGE, "length": 2 * HUGE}])
    assert calls[-1].error == error
    assert np.flatnonzero(dataset["page_node"].values[0] >= 0).tolist() == there


@pytest.mark.parametrize(("kernel", "error"), [(C, "EINVAL"), (B, "")])
def test_4_huge_pages_that_start_shared(kernel: str, error: str) -> None:
    calls, _ = run(kernel, [CREATE | {"flags": ["mmap", "init_shared"]}])
    assert calls[-1].error == error
    calls, _ = run(kernel, [{"op": "create"}])  # and no VMM asks for it
    assert calls[-1].error == ""


def test_5_a_border_of_the_policy_inside_a_huge_page() -> None:
    """The policy at the 4 KiB index that is touched decides where the huge page comes from, not that of its first page."""
    bind = {"op": "mbind", "mode": "bind", "nodes": [1], "offset": 64 * PAGE, "length": HUGE}
    for page, node in ((0, 0), (63, 0), (64, 1), (511, 1)):
        _, dataset = run(C, [CREATE, bind, touch("guest", page * PAGE)])
        assert dataset["page_node"].values[0, 0] == node, page


@pytest.mark.parametrize(("kernel", "node"), [(B, 0), (C, 1)])
def test_6_the_policy_of_the_file(kernel: str, node: int) -> None:
    """B takes mbind and looks at the task's policy alone."""
    calls, dataset = run(kernel, [CREATE, {"op": "mbind", "mode": "bind", "nodes": [1]}, touch("guest")])
    assert not calls[1].error and dataset["page_node"].values[0, 0] == node


def test_7_a_fresh_huge_page_that_cannot_be_split() -> None:
    """It stays in the file in one piece: the next fallocate succeeds, and the host gets SIGBUS for the shared page."""
    operations = [CREATE, convert("shared", 5 * PAGE), ALLOCATE, ALLOCATE, touch("host", 5 * PAGE)]
    # 1 GiB, whose page-cache entry the xarray of 7.3 cannot split
    guest = {"memory": GIB, "page_size": "1 GiB"}
    calls, dataset = run(STOCK, operations, guest=guest, boot={"hugetlb_pages": {0: 2}})
    assert [call.error for call in calls[2:4]] == ["ENOMEM", ""] and calls[4].detail["bad"] == 1
    assert int(dataset["pages_per_node"].sum()) == 1
    # 2 MiB, without a page for its struct pages; B gives the huge page back each time
    boot = {"hugetlb_pages": {0: 8}, "vmemmap_pages": {0: 0, 1: 0}}
    hvo = {"design": "hugetlb-hvo", "memory": HUGE}
    calls, dataset = run(C, operations, guest=hvo, boot=boot)
    assert [call.error for call in calls[2:4]] == ["ENOMEM", ""] and calls[4].detail["bad"] == 1
    assert int(dataset["pages_per_node"].sum()) == 1
    calls, dataset = run(B, operations, guest=hvo, boot=boot)
    assert [call.error for call in calls[2:4]] == ["ENOMEM", "ENOMEM"]
    assert int(dataset["pages_per_node"].sum()) == 0


@pytest.mark.parametrize(("kernel", "error"), [(B, ""), (C, "EINVAL"), ("7.4", "EINVAL")])
def test_8_a_conversion_of_size_0(kernel: str, error: str) -> None:
    guest = {"page_size": "4 KiB", "design": "filemap"} if kernel == "7.4" else {}
    calls, _ = run(
        kernel, [CREATE, convert("shared", 0, 0)], guest=guest, boot={} if guest else {"hugetlb_pages": {0: 8}}
    )
    assert calls[-1].error == error


def test_9_a_host_touch_without_a_huge_page_on_the_policys_nodes() -> None:
    """The fault is retried for ever; fallocate and the guest get ENOMEM in the same place."""
    bind = {"op": "mbind", "mode": "bind", "nodes": [1]}
    setup = [CREATE, bind, convert("shared", 0, 12 * HUGE), touch("host", 0, 8 * HUGE)]
    calls, _ = run(C, [*setup, touch("host", 8 * HUGE, HUGE)], pages=12)
    assert calls[-1].detail["retried"] == 8 * 512 and calls[-1].detail["first"] == 8 * 512
    calls, _ = run(C, [*setup, ALLOCATE | {"offset": 8 * HUGE, "length": HUGE}, touch("guest", 8 * HUGE)], pages=12)
    assert [call.error for call in calls[-2:]] == ["ENOMEM", "ENOMEM"]


def test_10_memory_failure_of_a_page_of_hugetlb() -> None:
    """EBUSY, marked and nothing else: it is converted, merged, back in the pool, and handed out again."""
    bad = 5 * PAGE
    calls, dataset = run(C, [
        CREATE | {"size": HUGE}, ALLOCATE, convert("shared", bad), touch("host", bad),
        {"op": "hwpoison", "offset": bad, "length": PAGE},
        touch("host", bad),  # mapped still
        convert("private", bad), convert("shared", bad), convert("private", bad),
        {"op": "punch_hole"}, ALLOCATE, convert("shared", bad), touch("host", bad), convert("private", bad),
    ], pages=1, pool=1)  # fmt: skip
    assert calls[4].error == "EBUSY"
    assert calls[5].detail["bad"] == 0
    assert not any(call.error for call in calls[6:12])
    assert calls[12].detail["bad"] == 1  # SIGBUS: the very page is poisoned, in a huge page that came out of the pool
    assert int(dataset["pages_per_node"].sum()) == 1


@pytest.mark.parametrize("to", ["shared", "private"])
@pytest.mark.parametrize("kernel", ["7.3", "7.4", C, B])
def test_11_a_vm_type_without_private_memory_converts_neither_way(kernel: str, to: str) -> None:
    small = {"page_size": "4 KiB", "design": "filemap"} if kernel.startswith("7") else {}
    boot = {} if small else {"hugetlb_pages": {0: 8}}
    calls, _ = run(kernel, [{"op": "create"}, convert(to)], guest={"vm_type": "none"} | small, boot=boot)
    assert calls[-1].error == "EINVAL"


@pytest.mark.parametrize(("unmap", "free"), [(False, 4), (True, 8)])
def test_12_close_while_the_mapping_is_there(unmap: bool, free: int) -> None:
    """The file lives on with its mapping; ``unmap`` (what a process that ends does) takes that away as well."""
    later = [touch("host"), {"op": "munmap"}]
    close = {"op": "close", "unmap": unmap}
    calls, dataset = run(C, [CREATE, ALLOCATE, convert("shared"), close, *later])
    assert dataset["free_pages"].values[3].sum() == 8 + free
    assert calls[4].detail["bad"] == int(unmap)
    assert dataset["free_pages"].values[-1].sum() == 16


def test_memory_for_a_1g_split_comes_before_its_struct_pages() -> None:
    """4,161 xarray nodes in 149 slabs of 4 pages: 596 pages, then 4,095 of vmemmap. With one page fewer: ENOMEM."""
    for free, error in ((596 + 4095, ""), (596 + 4094, "ENOMEM")):
        guest = {"memory": GIB, "page_size": "1 GiB", "design": "hugetlb-hvo"}
        boot = {"hugetlb_pages": {0: 1}, "vmemmap_pages": {0: free, 1: 0}}
        calls, _ = run(C, [CREATE, ALLOCATE, convert("shared")], guest=guest, boot=boot)
        assert calls[-1].error == error, free


def test_a_merged_page_is_mapped_small_until_the_guest_faults_the_page_that_came_back() -> None:
    _, dataset = run(C, [
        CREATE, touch("guest", 0, HUGE), convert("shared", 5 * PAGE), touch("guest", 0, 5 * PAGE),
        convert("private", 5 * PAGE), touch("guest", 0, PAGE), touch("guest", 5 * PAGE, PAGE),
    ])  # fmt: skip
    assert dataset["merges_2m"].values.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert dataset["returned_2m"].values.tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert dataset["regained_2m"].values.tolist() == [0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kernel", [C, B])
def test_content_of_a_huge_page_that_merges(kernel: str, first: bool) -> None:
    """The merged page is up to date as its first 4 KiB was: where that one was never touched, what the others hold is lost."""
    shared = [0, 1, 2, 7] if first else [1, 2, 7]
    operations = [CREATE, ALLOCATE, convert("shared", 0, HUGE)]
    operations += [touch("host", page * PAGE) for page in shared]
    calls, dataset = run(kernel, [*operations, convert("private", 0, HUGE), {"op": "punch_hole", "length": HUGE}])
    lost = {} if first else {"content_lost_pages": 3, "content_lost": "1-2,7"}
    assert calls[-2].detail == lost
    assert int(dataset["content_lost_pages"][-2]) == len(lost and [1, 2, 7])
    assert int(dataset["content_stale_pages"][-2]) == (512 - 4 if first else 0)
    assert str(dataset["content_lost"].values[0]) == ""  # they left the file


def test_content_stays_in_files_of_4k_and_where_everything_was_touched() -> None:
    calls, dataset = run(C, [
        CREATE, touch("guest", 0, HUGE), convert("shared", 3 * PAGE), convert("private", 3 * PAGE),
    ])  # fmt: skip
    assert calls[-1].detail == {} and int(dataset["content_lost_pages"][-1]) == 0
    small = {"page_size": "4 KiB", "design": "filemap"}
    calls, dataset = run("7.4", [
        CREATE, convert("shared", 0, HUGE), touch("host", PAGE), convert("private", 0, HUGE),
    ], guest=small, boot={})  # fmt: skip
    assert calls[-1].detail == {} and int(dataset["content_lost_pages"][-1]) == 0


def test_content_lost_at_a_merge_is_listed_until_it_leaves_the_file() -> None:
    _, dataset = run(C, [
        CREATE, ALLOCATE, convert("shared", PAGE), touch("host", PAGE), convert("private", PAGE),
        convert("shared", HUGE + 9 * PAGE, 2 * PAGE), touch("host", HUGE + 9 * PAGE, 2 * PAGE),
        convert("private", HUGE + 9 * PAGE, 2 * PAGE),
    ])  # fmt: skip
    assert dataset["content_lost_pages"].values.tolist() == [0, 0, 0, 0, 1, 1, 1, 3]
    assert str(dataset["content_lost"].values[0]) == "1,521-522"

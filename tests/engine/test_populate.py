"""Calls that touch pages for the host (mm/gup.c) end at the first one that is private or poisoned, in place as elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb

PAGE = 4096
HOST = {
    "name": "h",
    "nodes": [{"id": node, "memory_bytes": "256 MiB", "cpus": [node]} for node in (0, 1)],
    "distances": [[10, 20], [20, 10]],
}


def run(calls: list[dict[str, Any]], **guest: Any) -> wb.answer.Answer:
    """The first 8 pages shared, the others private."""
    begin = [{"op": "create", "flags": ["mmap"]}, {"op": "convert", "offset": 0, "length": 8 * PAGE, "to": "shared"}]
    scenario = wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": "1 MiB", "vm_type": "sw_protected", **guest},
        **({} if "design" in guest else {"kernel_profile": "7.4"}),
        "operations": [*begin, *({"file": "guest", **call} for call in calls)],
    })  # fmt: skip
    return wb.running.run(scenario)


def populate(first: int, pages: int, advice: int = 23) -> dict[str, Any]:
    return {"op": "madvise", "advice": advice, "offset": first * PAGE, "length": pages * PAGE}


@pytest.mark.parametrize("advice", [22, 23])
@pytest.mark.parametrize(
    ("first", "pages", "error", "there"),
    [(0, 8, 0, 8), (2, 3, 0, 3), (4, 8, 14, 4), (8, 1, 14, 0), (100, 4, 14, 0), (250, 20, 14, 0)],
)
def test_populate_ends_at_a_private_page(first: int, pages: int, error: int, there: int, advice: int) -> None:
    """Pages before it are there, and in the page tables; after it nothing is touched."""
    answer = run([populate(first, pages, advice)])
    assert answer.log.results[-1].errno == error
    (inode,) = answer.system.inodes()
    assert inode.mappings[0].mapped().tolist() == ([[first, first + there]] if there else [])
    assert answer.log.placed[-1].sum() == there


def test_populate_ends_at_a_poisoned_page() -> None:
    """EHWPOISON, as faultin_page_range asks for it; a page behind it is not touched."""
    fault = {"op": "fault", "offset": 3 * PAGE, "length": PAGE}
    answer = run([fault, {**fault, "op": "hwpoison"}, populate(0, 8)])
    assert [result.errno for result in answer.log.results[-2:]] == [0, 133]
    (inode,) = answer.system.inodes()
    assert inode.mappings[0].mapped().tolist() == [[0, 3]]


@pytest.mark.parametrize(("page", "error"), [(0, 0), (7, 0), (8, 14), (200, 14)])
def test_a_question_for_the_node_of_a_private_page_is_refused(page: int, error: int) -> None:
    """MPOL_F_NODE with MPOL_F_ADDR (mm/mempolicy.c: lookup_node): the page is faulted in first."""
    answer = run([{"op": "get_mempolicy", "offset": page * PAGE, "node": True}])
    assert answer.log.results[-1].errno == error
    (inode,) = answer.system.inodes()
    assert inode.mappings[0].mapped().tolist() == ([] if error else [[page, page + 1]])
    assert answer.log.placed[-1].sum() == (error == 0)


def test_populate_of_huge_pages_that_are_partly_private() -> None:
    answer = run([populate(0, 1024)], memory="4 MiB", page_size="2 MiB", design="thp")
    assert answer.log.results[-1].errno == 14
    (inode,) = answer.system.inodes()
    assert inode.map.present.tolist() == [[0, 1]]  # a folio of 2 MiB

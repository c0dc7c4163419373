"""Calls that touch pages for the host (mm/gup.c) end at the first one that is private or poisoned, in place as elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.engine.kernel_pages import SECOND_STAGE

PAGE = 4096
HOST = {
    "name": "h",
    "nodes": [{"id": node, "memory_bytes": "256 MiB", "cpus": [node]} for node in (0, 1)],
    "distances": [[10, 20], [20, 10]],
}


def run(calls: list[dict[str, Any]], kernel: str = "7.4", **guest: Any) -> wb.answer.Answer:
    """The first 8 pages shared, the others private."""
    begin = [{"op": "create", "flags": ["mmap"]}, {"op": "convert", "offset": 0, "length": 8 * PAGE, "to": "shared"}]
    scenario = wb.Scenario.from_mapping({
        "host": HOST, "guest": {"memory": "1 MiB", "vm_type": "sw_protected", **guest},
        **({} if "design" in guest else {"kernel_profile": kernel}),
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


def test_a_pin_ends_at_a_poisoned_page() -> None:
    """With the errno of one who did not ask for poison; what is behind it is neither placed nor mapped."""
    fault = {"op": "fault", "offset": 3 * PAGE, "length": PAGE}
    answer = run([fault, {**fault, "op": "hwpoison"}, {"op": "pin", "offset": 0, "length": 8 * PAGE}])
    assert [result.errno for result in answer.log.results[-2:]] == [0, 14]
    (inode,) = answer.system.inodes()
    assert inode.mappings[0].mapped().tolist() == [[0, 3]]
    assert answer.log.placed[-1].sum() == 3
    assert inode.tracked is not None
    assert not len(inode.tracked.pinned())


@pytest.mark.parametrize(("page", "error"), [(0, 0), (7, 0), (8, 14), (200, 14)])
def test_a_question_for_the_node_of_a_private_page_is_refused(page: int, error: int) -> None:
    """MPOL_F_NODE with MPOL_F_ADDR (mm/mempolicy.c: lookup_node): the page is faulted in first."""
    answer = run([{"op": "get_mempolicy", "offset": page * PAGE, "node": True}])
    assert answer.log.results[-1].errno == error
    (inode,) = answer.system.inodes()
    assert inode.mappings[0].mapped().tolist() == ([] if error else [[page, page + 1]])
    assert answer.log.placed[-1].sum() == (error == 0)


@pytest.mark.parametrize("by", ["guest", "host"])
@pytest.mark.parametrize("vm_type", ["sw_protected", "snp", "tdx"])
def test_touched_by_turns_a_file_is_as_it_is_touched_share_by_share(by: str, vm_type: str) -> None:
    """What each folio remembers of its pages, and what the host has mapped."""
    pages = {"offset": 0, "length": 8 * PAGE} if by == "host" else {}
    calls = [
        {"op": "first_touch", "by": by, **pages},
        *({"op": "convert", "offset": page * PAGE, "length": PAGE, "to": "shared"} for page in (2, 9, 10)),
        {"op": "convert", "offset": 0, "length": 4 * PAGE, "to": "private"},
    ]
    shares, turns = (run([{**calls[0], "turn": turn}, *calls[1:]], vm_type=vm_type) for turn in (0, 1))
    left, right = (next(iter(answer.system.inodes())) for answer in (shares, turns))
    assert left.tracked.counts.tolist() == right.tracked.counts.tolist()
    assert left.mappings[0].mapped().tolist() == right.mappings[0].mapped().tolist()
    assert [result.errno for result in shares.log.results[-4:]] == [result.errno for result in turns.log.results[-4:]]


@pytest.mark.parametrize("guest", [{}, {"kernel": "7.3"}])
def test_by_turns_the_host_touches_nothing_that_is_private(guest: dict[str, Any]) -> None:
    with pytest.raises(wb.errors.WorkbenchError, match="first_touch: by turns the host cannot touch what is private"):
        run([{"op": "first_touch", "by": "host", "turn": 1, "offset": 8 * PAGE}], **guest)


MMAP = {"op": "mmap", "file": "m"}
MEMFD = {"op": "memfd", "file": "m", "size": 16 * PAGE}
TOUCHES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "a slot needs the flag mmap": ({}, [{"op": "create", "flags": []}], {}),
    "no slot before 6.18": ({"kernel_profile": "6.12"}, [{"op": "create"}], {}),
    "tmpfs through its mapping": ({}, [MEMFD, MMAP], {"file": "m"}),
    "tmpfs by the host": ({}, [MEMFD, MMAP], {"file": "m", "by": "host"}),
    "another process": ({}, [{"op": "create"}, {"op": "pass_fd", "of": "guest", "file": "other"}], {"file": "other"}),
    "closed": ({}, [{"op": "create"}, {"op": "close", "unmap": False}], {}),
    "closed, by the host": ({}, [{"op": "create"}, {"op": "close", "unmap": False}], {"by": "host"}),
    "punched out of place": (
        {"guest": {"vm_type": "snp"}},
        [{"op": "create"}, {"op": "first_touch"}, {"op": "convert", "offset": 0, "length": 4 * PAGE, "to": "shared"},
         {"op": "convert", "offset": 0, "length": 4 * PAGE, "to": "private"}], {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOUCHES)
def test_by_turns_is_refused_what_is_refused_share_by_share(case: str) -> None:
    """The same errors, pages, counters and page tables, whoever goes first."""
    fields, before, touch = TOUCHES[case]
    guest = {"memory": 16 * PAGE, "vm_type": "none", "vcpus": [{"node": 0}, {"node": 1}], **fields.get("guest", {})}
    found = []
    for turn in (0, 1):
        answer = wb.running.run(wb.Scenario.from_mapping({
            "host": HOST, "kernel_profile": "7.3", **fields, "guest": guest,
            "operations": [*before, {"op": "first_touch", **touch, "turn": turn}],
        }))  # fmt: skip
        files = [
            [inode.map.absent(0, 32).tolist(), [one.mapped().tolist() for one in inode.mappings],
             None if inode.attributes is None else inode.attributes.counts]
            for inode in answer.system.inodes()
        ]  # fmt: skip
        held = None if answer.system.metadata is None else answer.system.metadata.held.sum(1).tolist()
        found.append((answer.log.results[-1].errno, answer.log.placed[len(before) :].sum(), files, held))
    assert found[0] == found[1]


def test_populate_of_huge_pages_that_are_partly_private() -> None:
    answer = run([populate(0, 1024)], memory="4 MiB", page_size="2 MiB", design="thp")
    assert answer.log.results[-1].errno == 14
    (inode,) = answer.system.inodes()
    assert inode.map.present.tolist() == [[0, 1]]  # a folio of 2 MiB


def test_tables_are_of_the_vcpu_that_comes_first() -> None:
    """Turns of 1,000 pages: of eight tables of 512 pages each vCPU is first in four, and the first one needs two above."""
    answer = wb.running.run(wb.Scenario.from_mapping({
        "host": HOST, "kernel_profile": "7.3",
        "guest": {"memory": 4096 * PAGE, "vm_type": "none", "vcpus": [{"node": 0}, {"node": 1}]},
        "operations": [{"op": "create"}, {"op": "first_touch", "turn": 1000, "shared": True}],
    }))  # fmt: skip
    metadata = answer.system.metadata
    assert metadata is not None
    assert metadata.held[SECOND_STAGE].tolist() == [6, 4]
    assert len(metadata.ready) == 2


def test_by_turns_the_host_meets_a_poisoned_page() -> None:
    """It counts as bad, and is in no page table, as share by share."""
    fault = {"op": "fault", "offset": 3 * PAGE, "length": PAGE}
    found = []
    for turn in (0, 1):
        touch = {"op": "first_touch", "by": "host", "turn": turn, "length": 8 * PAGE}
        answer = run([fault, {**fault, "op": "hwpoison"}, touch])
        (inode,) = answer.system.inodes()
        found.append((answer.log.results[-1].detail["bad"], inode.mappings[0].mapped().tolist()))
    assert found[0] == found[1] == (1, [[0, 3], [4, 8]])

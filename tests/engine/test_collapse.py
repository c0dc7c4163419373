"""The operation ``collapse``: what khugepaged can re-form of a guest on huge folios, and what it cannot."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

import workbench as wb

MIB2, PAGE = 2 << 20, 4096
HOST: dict[str, Any] = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": [0]}, {"id": 1, "memory_bytes": 1 << 30, "cpus": [1]}],
    "distances": [[10, 21], [21, 10]],
}
THERE_AND_BACK = [
    {"op": "fault", "by": "guest"},
    *(
        {"op": "convert", "to": to, "offset": block * MIB2 + 5 * PAGE, "length": PAGE}
        for block in (0, 1, 3)
        for to in ("shared", "private")
    ),
    {"op": "convert", "to": "shared", "offset": 3 * MIB2, "length": PAGE},
]
"""Of eight folios three are split, of which two are private again."""


def run(operations: list[dict[str, Any]], *, design: str = "thp", merge: str = "never", **rest: Any) -> Any:
    guest = {
        "memory": 8 * MIB2,
        "page_size": "2 MiB",
        "design": design,
        "vm_type": "snp",
        "conversion": {"merge": merge},
    }
    scenario = {"host": HOST, "guest": guest | rest.pop("guest", {}), "strict": False} | rest
    return wb.simulate(
        wb.Scenario.from_mapping(scenario | {"operations": [{"op": "create", "flags": ["mmap"]}, *operations]})
    )


def whole(dataset: Any) -> float:
    """Share of the memory that is mapped by 2 MiB, at the end."""
    return float(dataset["mapping_share"].sel(level="2 MiB").values[-1])


@pytest.mark.parametrize("merge", ["never", "lazy"])
def test_split_folios_become_whole_again_where_all_is_private(merge: str) -> None:
    before = run(THERE_AND_BACK, merge=merge)
    assert whole(before) == 5 / 8
    after = run([*THERE_AND_BACK, {"op": "collapse"}], merge=merge)
    assert after["event_errno"].values[-1] == 0
    assert whole(after) == 7 / 8, "the one with a shared page stays"
    for name in ("page_node", "run_node"):
        if name in after:
            np.testing.assert_array_equal(after[name].values, before[name].values, "no page moves")


def test_afterwards_it_is_as_if_each_conversion_had_merged() -> None:
    late, eager = run([*THERE_AND_BACK, {"op": "collapse"}]), run(THERE_AND_BACK, merge="eager")
    assert whole(late) == whole(eager)
    for name in ("metadata_pages", "free_pages", "shared_pages", "stage2_tables"):
        np.testing.assert_array_equal(late[name].values[-1], eager[name].values[-1], name)


def test_only_the_range_is_looked_at_and_a_second_pass_finds_nothing() -> None:
    made = run(
        [
            *THERE_AND_BACK,
            {"op": "collapse", "offset": MIB2, "length": MIB2},
            {"op": "collapse"},
            {"op": "collapse"},
            {"op": "collapse", "length": 0},
        ]
    )
    shares = made["mapping_share"].sel(level="2 MiB").values[-5:].tolist()
    assert shares == [5 / 8, 6 / 8, 7 / 8, 7 / 8, 7 / 8]
    assert made["event_errno"].values[-4:].tolist() == [0, 0, 0, errno.EINVAL]


def test_small_folios_that_stood_in_stay_small() -> None:
    """/proc/buddyinfo has two blocks of 2 MiB a node: the other four are 4 KiB folios, which private memory stays in."""
    zone = {"name": "Normal", "managed": 1 << 18, "free": 200_000, "min": 1000, "low": 2000, "high": 3000}
    zone |= {"free_blocks": [200_000 - 512 * 2, *[0] * 8, 2, 0]}
    host = HOST | {"nodes": [node | {"zones": [zone]} for node in HOST["nodes"]]}
    made = run([*THERE_AND_BACK, {"op": "collapse"}], host=host)
    assert made["small_pages_per_node"].values.sum() == 4 * 512
    shares = made["mapping_share"].sel(level="2 MiB").values
    assert shares[-2:].tolist() == [1 / 8, 3 / 8], "of four folios three were split, of which one has a shared page"


@pytest.mark.parametrize("design", ["hugetlb", "hugetlb-hvo", "pfn-range", "contiguous-4k"])
def test_other_designs(design: str) -> None:
    """Pages of hugetlb are re-formed by the worker of the series; where nothing is restructured nothing is to be done."""
    pools = {"boot": {"hugetlb_pages": {0: 8, 1: 8}}} if design.startswith("hugetlb") else {}
    made = run([*THERE_AND_BACK, {"op": "collapse"}], design=design, **pools)
    assert made["event_errno"].values[-1] == 0
    before, after = made["mapping_share"].sel(level="2 MiB").values[-2:]
    assert (before, after) == ((5 / 8, 7 / 8) if design.startswith("hugetlb") else (7 / 8, 7 / 8))


def test_without_a_file_there_is_nothing_to_collapse() -> None:
    made = run([{"op": "close"}, {"op": "collapse"}])
    assert made["event_errno"].values[-1] == errno.EBADF

"""Every operation on a range takes any offset and length: an errno or a result, never an exception of another kind."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from workbench import scenario as sc
from workbench.errors import WorkbenchError
from workbench.simulation import simulate

OPERATIONS = get_args(get_args(sc.AnyOperation)[0])
ON_RANGE = sorted({kind.model_fields["op"].default for kind in OPERATIONS if "offset" in kind.model_fields})
NEEDS = {
    "set_mempolicy_home_node": {"home_node": 0},
    "move_pages": {"node": 0},
    "madvise": {"advice": 23},
    "convert": {"to": "shared"},
    "policy": {"mode": "bind", "nodes": "0"},
    "mbind": {"mode": "bind", "nodes": "0"},
    "fbind": {"mode": "bind", "nodes": "0"},
}
EDGES = [
    0,
    4095,
    4096,
    8192,
    1 << 30,
    1 << 50,
    (1 << 62) - 4096,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 4096,
    (1 << 64) - 1,
]
NODES = [{"id": node, "memory_bytes": "256 MiB", "cpus": str(node)} for node in (0, 1)]
HOST = {"name": "h", "nodes": NODES, "distances": [[10, 20], [20, 10]]}
GUESTS: dict[str, dict[str, Any]] = {
    "filemap": {"memory": "8 KiB"},
    "fbind": {"memory": "8 KiB", "policy_interface": "fbind"},
    "hugetlb": {"memory": "4 MiB", "page_size": "2 MiB", "design": "hugetlb"},
    "pfn-range": {"memory": "4 MiB", "page_size": "2 MiB", "design": "pfn-range"},
    "hugetlb in place": {"memory": "8 MiB", "page_size": "2 MiB", "design": "hugetlb", "vm_type": "tdx",
                         "conversion": {"mode": "in-place"}},
    "in place": {"memory": "8 KiB", "vm_type": "snp", "conversion": {"mode": "in-place"}},
    "out of place": {"memory": "8 KiB", "vm_type": "snp", "conversion": {"mode": "out-of-place"}},
}  # fmt: skip


@pytest.mark.parametrize("guest", GUESTS)
@pytest.mark.parametrize("op", ON_RANGE)
def test_any_range(op: str, guest: str) -> None:
    lengths = [None, *EDGES] if op != "get_mempolicy" else [None]
    operations: list[dict[str, Any]] = [{"op": "create"}, {"op": "memfd", "file": "t", "size": "6 KiB"}]
    tries = [
        {
            "op": op,
            "offset": offset,
            **NEEDS.get(op, {}),
            **({} if length is None else {"length": length}),
            "file": file,
        }
        for offset in EDGES
        for length in lengths
        for file in ("guest", "t")
    ]
    if op == "fault":  # from the last page on: that of an array of 2^50 pages is not asked for
        tries += [{**one, "order": "reverse"} for one in tries]
    if op in ("fallocate", "madvise"):  # more than the host has ends the process, after which nothing is tried
        tries = [t for t in tries if t["file"] == "guest" or not 1 << 28 < t.get("length", 0) < 1 << 63]
    scenario = {"host": HOST, "guest": GUESTS[guest], "strict": False, "pfns": guest == "filemap"}
    if op == "move_pages":  # one of the few calls that take a list of pages
        tries = [t for t in tries if t.get("length", 0) <= 1 << 24 and t["offset"] + t.get("length", 0) < 1 << 64]
    dataset = simulate(sc.Scenario.from_mapping({**scenario, "operations": operations + tries}))
    assert (dataset["free_pages"] >= 0).all()
    for file in dataset["file"].values:
        assert int(dataset["pages_per_node"].sel(file=file).sum()) <= int(dataset["file_pages"].sel(file=file))


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "move_pages", "node": 0, "length": 1 << 50},
        {"op": "fault", "order": "random", "length": 1 << 50},
    ],
)
def test_lists_of_too_many_pages_are_refused_before_memory_is_taken(operation: dict[str, Any]) -> None:
    scenario = {"host": HOST, "guest": {"memory": "8 KiB"}, "operations": [{"op": "create"}, operation]}
    with pytest.raises(WorkbenchError, match=r"\d+ pages would be listed one by one, in some .*iB of memory"):
        simulate(sc.Scenario.from_mapping(scenario))

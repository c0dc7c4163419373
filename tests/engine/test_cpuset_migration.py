"""Pages that follow a cpuset's memory nodes: which node's go to which, and that only tmpfs pages do (recorded)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench import policy as mp
from workbench.data import datasets_path
from workbench.engine import migration
from workbench.engine.migration import migration_pairs
from workbench.running import run
from workbench.truth.recording import read
from workbench.truth.verify import verify_scenario


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        ("0", "2", [(0, 2)]),
        ("0-2", "0", [(1, 0), (2, 0)]),
        ("2", "0-2", []),
        ("0-1", "0-1", []),
        ("2-4", "3-5", [(4, 5), (3, 4), (2, 3)]),  # the example of mm/mempolicy.c: everything moves, the last first
        ("0-7", "3-5", [(0, 3), (1, 4), (2, 5), (6, 3), (7, 4)]),  # and the other one: only 0, 1, 2, 6, 7
        ("0,1", "1,0", []),
        ("0-1", "2-3", [(0, 2), (1, 3)]),
        ("1,3", "0,2", [(1, 0), (3, 2)]),
    ],
)
def test_pairs(before, after, pairs):
    found = migration_pairs(mp.parse_nodes(before), mp.parse_nodes(after))
    assert sorted(found) == sorted(pairs)
    if before == "2-4":
        assert found == pairs


@pytest.mark.parametrize("host", ["h3cxl", "h4asym"])
def test_recorded(host):
    """Linux 7.3: tmpfs pages went along with the cpuset, guest_memfd pages stayed."""
    recording = read(datasets_path("recordings", "history") / f"7.3.4-{host}.json.gz")
    (script,) = [script for script in recording.scenarios if script.name == "fact_cpuset"]
    report = verify_scenario(recording, script)
    assert not report.mismatches and report.pages == 2 * 96


@settings(max_examples=40, deadline=None)
@given(
    filled=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9), st.sampled_from(["interleave", "bind"])), max_size=8),
    ends=st.sets(st.integers(0, 100), max_size=12), zones=st.lists(st.booleans(), min_size=8, max_size=8),
)  # fmt: skip
def test_pages_of_parts_in_zones(filled: list[tuple[int, int, str]], ends: set[int], zones: list[bool]) -> None:
    """Of several parts at once, as of each page alone."""
    operations: list[dict[str, object]] = [{"op": "create", "size": 100 * 4096}]
    for page, count, mode in filled:
        part = {"file": "guest", "offset": page * 4096, "length": count * 4096}
        operations += [{"op": "set_mempolicy", "mode": mode, "nodes": "0-1" if mode == "interleave" else "1"}]
        operations += [
            {"op": "fallocate", **part},
            {"op": "punch_hole", "file": "guest", "offset": 16384, "length": 4096},
        ]
    nodes = [{"id": node, "memory_bytes": "1 GiB", "cpus": [node]} for node in (0, 1)]
    host = {"name": "two", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    system = run(
        wb.Scenario.from_mapping({"host": host, "guest": {"memory": 100 * 4096}, "operations": operations})
    ).system
    (inode,) = system.inodes()
    listed = sorted(ends)[: len(ends) // 2 * 2]
    parts, marked = np.array(listed, np.int64).reshape(-1, 2), np.array(zones[: len(system.free)])
    pages = [page for low, high in parts.tolist() for page in range(low, high)]
    wanted = [page for page in pages if (zone := inode.map.zone_at(page)) >= 0 and marked[zone]]
    assert migration.pages_on(inode, parts, marked).tolist() == wanted
    assert migration.count_on(system, inode, parts, marked) == len(wanted)

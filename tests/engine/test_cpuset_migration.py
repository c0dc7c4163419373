"""Pages that follow a cpuset's memory nodes: which node's go to which, and that only tmpfs pages do (recorded)."""

from __future__ import annotations

import pytest

from workbench import policy as mp
from workbench.data import datasets_path
from workbench.engine.migration import migration_pairs
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

"""Pools of huge pages as Linux fills and reserves them: scenarios with the facts they must show, each with its source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.engine.calls import apply
from workbench.engine.generators import expand
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario

CASES = Path(__file__).with_name("cases")
EXPECTED = json.loads((CASES / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_case(name):
    expected = EXPECTED[name]
    scenario = wb.Scenario.from_yaml(CASES / name)
    if "or_error" in expected:
        with pytest.raises(WorkbenchError, match=expected["or_error"]):
            wb.simulate(scenario)
        return
    dataset = wb.simulate(scenario)
    for event, errno in expected.get("errnos", {}).items():
        assert dataset["event_errno"].values[int(event)] == errno
    for file, pages in expected.get("pages", {}).items():
        assert dataset["pages_per_node"].sel(file=file).values.tolist() == pages
    for node in expected.get("pages_not_on", ()):
        assert not dataset["pages_per_node"].sel(node=node).values.any()
    for event, detail in expected.get("detail", {}).items():
        assert detail.items() <= json.loads(str(dataset["event_detail"].values[int(event)])).items()


def test_movable_gigantic_pages_lets_1_gib_pages_come_from_a_movable_node():
    scenario = wb.Scenario.from_yaml(CASES / "gigantic-not-from-movable.yaml")
    dataset = wb.simulate(scenario.replace(**{"boot.movable_gigantic_pages": True}))
    assert dataset["pages_per_node"].sel(file="guest").values.tolist() == [0, 0, 4]


def test_every_aligned_range_is_to_be_had_and_none_more():
    scenario = wb.Scenario.from_yaml(CASES / "gigantic-straddles-nodes.yaml")
    fits = scenario.replace(**{"boot.hugetlb_pages": {1: 30}, "guest.memory": 30 << 30})
    dataset = wb.simulate(fits)
    assert dataset["pages_per_node"].sel(node=1).sum() == 30
    pfns = dataset["page_pfn"].values if "page_pfn" in dataset else np.zeros(0)
    assert len(np.unique(pfns[pfns >= 0])) == 30
    with pytest.raises(WorkbenchError, match=r"31 pages of 1 GiB on node 1; .* 30 aligned ranges"):
        wb.simulate(scenario)


@pytest.mark.parametrize("design", ["hugetlb", "pfn-range"])
@pytest.mark.parametrize("last", [{"op": "punch_hole"}, {"op": "close"}])
def test_frames_of_huge_pages_that_left_a_tracked_file_are_free(design: str, last: dict[str, str]) -> None:
    """They were handed out once and never again: the next that wanted them found none."""
    nodes = [{"id": node, "memory_bytes": 16 << 20, "cpus": [node], "kind": "dram"} for node in (0, 1)]
    scenario = Scenario.from_mapping(
        {
            "host": {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]},
            "guest": {"memory": "8 MiB", "page_size": "2 MiB", "design": design, "conversion": {"mode": "in-place"}},
            "pfns": True,
            "operations": [{"op": "create"}, *2 * [{"op": "prefault"}, {"op": "punch_hole"}], {"op": "prefault"}, last],
        }
    )
    system = System(scenario)
    assert system.free_pfns is not None
    at_first = system.free.tolist()
    for operation in expand(scenario):
        result = apply(system, operation)
        assert not result.errno
        assert [len(system.free_pfns.free_in(zone)) for zone in range(len(system.free))] == system.free.tolist()
    assert system.free.tolist() == at_first

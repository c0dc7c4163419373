"""The strip under the address space shows what kind of guest it is: pages are mapped no larger than it allows."""

from __future__ import annotations

import pytest

from workbench.explorer.controller import ShownRun
from workbench.explorer.pictures import states
from workbench.scenario import Scenario
from workbench.simulation import simulate


@pytest.mark.parametrize(("confidential", "largest"), [("sw_protected", "1 GiB"), ("snp", "2 MiB"), ("tdx", "4 KiB")])
def test_mapped_sizes(confidential: str, largest: str) -> None:
    """4 GiB in 1 GiB pages, private; one 4 KiB page of the second is shared, which splits all of it."""
    scenario = Scenario.from_mapping(
        {
            "host": {
                "name": "one",
                "nodes": [{"id": 0, "memory_bytes": "16 GiB", "cpus": [0]}],
                "distances": [[10]],
            },
            "guest": {"memory": "4 GiB", "page_size": "1 GiB", "design": "hugetlb", "confidential": confidential},
            "operations": [
                {"op": "create", "flags": []},
                {"op": "fault", "by": "guest"},
                {"op": "convert", "offset": "1 GiB", "length": "4 KiB", "to": "shared"},
            ],
        }
    )
    sizes = next(band for band in states(ShownRun(scenario, simulate(scenario), 0.0)) if band["name"] == "page size")
    assert [part["label"] for part in sizes["parts"]] == [largest, "4 KiB", largest]
    assert [(part["start"] >> 30, part["end"] >> 30) for part in sizes["parts"]] == [(0, 1), (1, 2), (2, 4)]

"""Memory without CPUs whose kind nobody says is as slow as it is far, not as fast as local DRAM."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.cost.machine import machine
from workbench.topology.host import Host

NODES = [{"id": 0, "memory_bytes": "1 GiB", "cpus": "0-3"}, {"id": 1, "memory_bytes": "1 GiB"}]


def latency(distance: int, **node: object) -> tuple[float, float]:
    """ns from the CPUs of node 0 to node 0 and to node 1."""
    host = Host.from_mapping(
        {"name": "h", "nodes": [NODES[0], NODES[1] | node], "distances": [[10, distance], [distance, 10]]}
    )
    near, far = machine(host).latency[0][:2]
    return float(near), float(far)


def test_latency_follows_the_distance() -> None:
    found = [latency(distance, assumed=["kind", "movable"])[1] for distance in (11, 14, 20, 24, 40)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert found[0] > latency(11, assumed=["kind"])[0]


@pytest.mark.parametrize("kind", ["dram", "cxl"])
def test_a_kind_that_is_known_has_its_own(kind: str) -> None:
    assert latency(14, kind=kind)[1] == latency(24, kind=kind)[1]


def test_cxl_of_a_numactl_text_is_no_local_dram() -> None:
    path = Path(__file__).parents[1] / "topology/cases/numactl/cxl-unindented.txt"
    made = machine(Host.from_file(path))
    assert made.latency[1][2] > made.latency[1][1]
    assert made.latency[0][2] > made.latency[1][2]

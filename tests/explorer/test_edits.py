"""Edits of a scenario's mapping, and the workload as parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.bitmap_lists import format_list
from workbench.errors import WorkbenchError
from workbench.explorer import edits
from workbench.explorer.editors import parse_cpus
from workbench.scenario import Scenario
from workbench.topology.host import Host, machine_names
from workbench.units import exact_bytes, parse_bytes

GIB = 1 << 30


def mapping(**guest: object) -> dict[str, object]:
    scenario = Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": {"memory": "8 GiB", **guest}})
    return scenario.to_mapping()


@pytest.mark.parametrize("name", machine_names())
def test_a_guest_moves_to_every_machine(name: str) -> None:
    made = mapping(
        vcpus=[{"node": 7}, {"cpu": 3}],
        policies=[
            {"mode": "bind", "nodes": "5-7", "home_node": 6},
            {"mode": "interleave", "nodes": "0-7", "offset": "1 GiB"},
        ],
    )
    made["operations"] = [{"op": "hog", "node": 7, "leave_free": "1 GiB"}, {"op": "first_touch"}]
    made["boot"] = {"weights": {0: 3, 7: 2}}
    made["tasks"] = [{"name": "t", "node": 7}]
    host = Host.from_machine(name)
    edits.use_host(made, host)
    scenario = Scenario.from_mapping(made)
    assert scenario.host == host
    assert len(scenario.guest.vcpus) == 2
    assert all(policy.nodes for policy in scenario.guest.policies)


@given(
    touch=st.sampled_from(["first_touch", "prefault"]),
    by=st.sampled_from(["guest", "host"]),
    order=st.sampled_from(["sequential", "random"]),
    turn=st.integers(0, 8),
    hogs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4).map(lambda n: n * GIB)), max_size=2),
    percent=st.sampled_from([0.0, 6.25, 12.5, 50.0]),
    back=st.booleans(),
    pinned=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_a_workload_is_read_back_from_its_operations(
    touch: str,
    by: str,
    order: str,
    turn: int,
    hogs: list[tuple[int, int]],
    percent: float,
    back: bool,
    pinned: int,
    seed: int,
) -> None:
    pinned = pinned if percent else 0
    faults = {"by": by, "order": order, "turn": turn} if touch == "first_touch" else {}
    workload = edits.Workload(
        touch=touch,
        **faults,
        hogs=tuple(hogs),
        convert_percent=percent,
        convert_size=64 << 20 if percent else 2 << 20,
        convert_back=back if percent else True,
        pinned=pinned,
    )
    made = mapping()
    made["seed"] = seed
    edits.set_workload(made, workload)
    again = Scenario.from_mapping(made).to_mapping()
    assert edits.workload_of(again) == workload


def test_conversions_follow_seed_and_memory() -> None:
    made = mapping()
    edits.set_workload(made, edits.Workload(convert_percent=10, convert_size=64 << 20))
    before = [o["offset"] for o in made["operations"] if o.get("to") == "shared"]
    edits.set_seed(made, 5)
    after = [o["offset"] for o in made["operations"] if o.get("to") == "shared"]
    assert before != after
    edits.set_memory(made, 2 * GIB)
    assert max(o["offset"] for o in made["operations"] if o.get("to") == "shared") < 2 * GIB
    assert edits.workload_of(made) is not None


def test_written_operations_are_left_alone() -> None:
    made = mapping()
    made["operations"] = [{"op": "create"}, {"op": "fault", "length": "1 GiB"}]
    assert edits.workload_of(made) is None
    edits.set_seed(made, 4)
    assert made["operations"] == [{"op": "create"}, {"op": "fault", "length": "1 GiB"}]


@pytest.mark.parametrize(("percent", "size", "text"), [(50, 4096, "at most"), (0.5, GIB, "less than one piece")])
def test_conversions_out_of_bounds(percent: float, size: int, text: str) -> None:
    with pytest.raises(WorkbenchError, match=text):
        edits.set_workload(mapping(), edits.Workload(convert_percent=percent, convert_size=size))


def test_policy_bounds_become_whole_folios() -> None:
    made = mapping(page_size="2 MiB", design="hugetlb", policies=[{"mode": "bind", "nodes": "1"}])
    edits.move_policy(made, 0, 3 << 20, 5 << 20)
    assert edits.policy_range(made["guest"]["policies"][0], 8 * GIB) == (2 << 20, 6 << 20)
    edits.move_policy(made, 0, 0, 8 * GIB)
    assert "length" not in made["guest"]["policies"][0]
    for start, end in ((-1, 5), (5, 5), (0, 9 * GIB)):
        with pytest.raises(WorkbenchError, match="must be a range"):
            edits.move_policy(made, 0, start, end)
    with pytest.raises(WorkbenchError, match="no range 3"):
        edits.move_policy(made, 3, 0, 4096)


def test_less_memory_cuts_policies() -> None:
    made = mapping(
        policies=[{"mode": "bind", "nodes": "1", "length": "6 GiB"}, {"mode": "bind", "nodes": "2", "offset": "6 GiB"}]
    )
    edits.set_memory(made, 4 * GIB)
    scenario = Scenario.from_mapping(made)
    assert [(policy.offset, policy.length) for policy in scenario.guest.policies] == [(0, None)]


def test_vcpus_are_dealt_in_groups() -> None:
    made = mapping()
    edits.spread_vcpus(made, [1, 4], 5)
    assert [vcpu["node"] for vcpu in made["guest"]["vcpus"]] == [1, 1, 1, 4, 4]
    for nodes, count in (([], 4), ([0], 0), ([0], 5000)):
        with pytest.raises(WorkbenchError, match="vcpus"):
            edits.spread_vcpus(made, nodes, count)


@given(st.integers(0, 1 << 50))
def test_sizes_are_written_exactly(number: int) -> None:
    assert parse_bytes(exact_bytes(number)) == number


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists(cpus: set[int]) -> None:
    assert parse_cpus(format_list(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize("text", ["x", "3-1", "1-2-3", "-", "99999999999999999999"])
def test_cpu_lists_that_are_none(text: str) -> None:
    with pytest.raises(WorkbenchError, match="cpus"):
        parse_cpus(text)

"""Scenarios through ``simulate``: what the kernel does at the interfaces, and a Dataset that holds it without loss."""

from __future__ import annotations

import errno
import itertools
import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import results
from workbench.errors import Cancelled, WorkbenchError
from workbench.scenario import Scenario
from workbench.simulation import simulate

GIB = 1 << 30


def host(nodes: int = 4, memory: str = "1 GiB", **more):
    return {
        "name": "test",
        "nodes": [{"id": i, "memory_bytes": memory, "cpus": [i], **more.get(f"node{i}", {})} for i in range(nodes)],
        "distances": [[10 if i == j else 20 for j in range(nodes)] for i in range(nodes)],
    }


def run(operations=(), guest=None, **more) -> xr.Dataset:
    fields = {"host": host(), "guest": {"memory": "1 MiB", **(guest or {})}, "operations": list(operations), **more}
    return simulate(Scenario.from_mapping(fields))


def nodes(dataset, file="guest"):
    return results.page_nodes(dataset, file).tolist()


def event(dataset, number):
    detail = json.loads(str(dataset["event_detail"].values[number]))
    return int(dataset["event_ret"][number]), int(dataset["event_errno"][number]), detail


PAGE = 4096


def test_interleave_follows_the_task_and_not_the_offset():
    dataset = run(
        [
            {"op": "create"},
            {"op": "mbind", "mode": "interleave", "nodes": "0-3"},
            {"op": "fault", "length": 16 * PAGE, "order": "reverse"},
        ]
    )
    assert nodes(dataset)[:16] == [3, 2, 1, 0] * 4


def test_two_tasks_have_their_own_rotation():
    dataset = run(
        [
            {"op": "create"},
            {"op": "mbind", "mode": "interleave", "nodes": "0-3"},
            {"op": "first_touch", "length": 8 * PAGE, "turn": 1, "shared": True},
        ],
        guest={"vcpus": [{"cpu": 0}, {"cpu": 1}]},
    )
    assert nodes(dataset)[:8] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pages_stay_where_they_are_when_the_policy_changes():
    dataset = run(
        [
            {"op": "create"},
            {"op": "mbind", "mode": "bind", "nodes": "1"},
            {"op": "fault", "length": 4 * PAGE},
            {"op": "mbind", "mode": "bind", "nodes": "2", "flags": ["move"]},
            {"op": "mbind", "mode": "bind", "nodes": "3", "flags": ["move", "strict"]},
            {"op": "fault", "length": 8 * PAGE},
        ]
    )
    assert nodes(dataset)[:8] == [1] * 4 + [3] * 4
    assert event(dataset, 3)[:2] == (0, 0)
    assert event(dataset, 4)[:2] == (-1, errno.EIO)


POLICY = [{"mode": "bind", "nodes": "2"}]


@pytest.mark.parametrize(("interface", "expected"), [("none", 0), ("create", 2), ("fbind", 2), ("mbind", 2)])
def test_the_four_policy_interfaces(interface, expected):
    dataset = run(guest={"policy_interface": interface, "policies": POLICY, "vcpus": [{"cpu": 0}]})
    assert set(nodes(dataset)) == {expected}


def test_bind_to_a_movable_node_is_ignored_by_guest_memfd_and_not_by_tmpfs():
    machine = host(node3={"kind": "cxl", "movable": True, "cpus": []})
    dataset = run(
        [
            {"op": "create"},
            {"op": "memfd", "file": "tmpfs", "size": "1 MiB"},
            {"op": "mbind", "mode": "bind", "nodes": "3"},
            {"op": "mbind", "file": "tmpfs", "mode": "bind", "nodes": "3"},
            {"op": "fault"},
            {"op": "fault", "file": "tmpfs"},
        ],
        host=machine,
    )
    assert event(dataset, 2)[:2] == (0, 0), "the call itself succeeds"
    assert set(nodes(dataset)) == {0}
    assert set(nodes(dataset, "tmpfs")) == {3}


def test_preferred_leaves_low_and_preferred_many_leaves_min():
    def left_on_node_1(mode):
        dataset = run(
            [
                {"op": "create", "size": "1280 MiB"},
                {"op": "mbind", "mode": mode, "nodes": "1"},
                {"op": "fallocate"},
            ],
            guest={"memory": "1280 MiB"},
        )
        zone = list(dataset["zone"].values).index("1/DMA32")
        return int(dataset["free_pages"][-1, zone]), dataset.isel(zone=zone)

    free, zone = left_on_node_1("preferred")
    assert free == int(zone["zone_low"])
    free, zone = left_on_node_1("preferred_many")
    assert free == int(zone["zone_min"])


def test_out_of_memory_ends_the_process_and_gives_everything_back():
    dataset = run(
        [{"op": "create"}, {"op": "mbind", "mode": "bind", "nodes": "1"}, {"op": "fallocate"}, {"op": "fault"}],
        guest={"memory": "2 GiB"},
    )
    assert event(dataset, 2)[2]["killed"] and event(dataset, 3)[1] == errno.ESRCH
    assert int(dataset["pages_per_node"].sum()) == 0
    assert (dataset["free_pages"][-1] == dataset["free_pages"][0]).all()


def test_private_memory_cannot_be_touched_by_the_host_but_can_be_allocated():
    dataset = run(
        [
            {"op": "create", "flags": ["mmap"]},
            {"op": "fault", "length": 4 * PAGE},
            {"op": "fallocate", "length": 4 * PAGE},
        ]
    )
    assert event(dataset, 1) == (0, 0, {"bad": 4, "first": 0})
    assert event(dataset, 2)[:2] == (0, 0) and int(dataset["pages_per_node"].sum()) == 4


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ({"op": "create", "file": "x", "size": 100}, errno.EINVAL),
        ({"op": "create", "file": "x", "size": "4 KiB", "raw_flags": 4}, errno.EINVAL),
        ({"op": "fallocate", "offset": 100, "length": PAGE}, errno.EINVAL),
        ({"op": "fallocate", "length": "2 MiB"}, errno.EINVAL),
        ({"op": "fallocate", "length": PAGE, "mode": 0}, errno.EOPNOTSUPP),
        ({"op": "punch_hole", "offset": 100, "length": PAGE}, errno.EINVAL),
        ({"op": "mbind", "offset": 100, "length": PAGE, "mode": "bind", "nodes": "1"}, errno.EINVAL),
        ({"op": "mbind", "length": "2 MiB", "mode": "bind", "nodes": "1"}, errno.EFAULT),
        ({"op": "mbind", "mode": "bind", "nodes": "1", "raw_flags": 8}, errno.EINVAL),
        ({"op": "mbind", "mode": 7, "nodes": "1"}, errno.EINVAL),
        ({"op": "set_mempolicy_home_node", "home_node": 1}, errno.ENOENT),
        ({"op": "fbind", "mode": "bind", "nodes": "1"}, errno.ENOSYS),
        ({"op": "sched_setaffinity", "cpu": 77}, errno.EINVAL),
        ({"op": "get_mempolicy", "node": True}, errno.EINVAL),
        ({"op": "mmap", "private": True}, errno.EINVAL),
        ({"op": "close", "file": "absent"}, errno.EBADF),
    ],
)
def test_refused_operations_are_results(operation, error):
    dataset = run([{"op": "create"}, operation, {"op": "fault", "length": PAGE}])
    assert event(dataset, 1)[:2] == (-1, error)
    assert event(dataset, 2)[:2] == (1, 0), "the run goes on"


def test_huge_pages_are_placed_one_step_of_the_rotation_each():
    dataset = run(
        guest={
            "memory": "16 GiB",
            "page_size": "1 GiB",
            "design": "hugetlb",
            "policies": [{"mode": "interleave", "nodes": "0-3"}],
        },
        host=host(memory="8 GiB"),
    )
    assert nodes(dataset) == [0, 1, 2, 3] * 4


def test_huge_page_pool_runs_dry_with_an_error_and_not_with_a_kill():
    dataset = run(
        [{"op": "create"}, {"op": "mbind", "mode": "bind", "nodes": "1"}, {"op": "fallocate"}, {"op": "zones"}],
        guest={"memory": "16 GiB", "page_size": "1 GiB", "design": "hugetlb"},
        host=host(memory="8 GiB"),
        boot={"hugetlb_pages": {0: 4, 1: 3, 2: 7, 3: 2}},
    )
    assert event(dataset, 2)[:2] == (-1, errno.ENOMEM) and event(dataset, 3)[:2] == (0, 0)
    assert dataset["pages_per_node"].sum("file").values.tolist() == [0, 3, 0, 0]


def test_a_huge_page_pool_is_reserved_when_the_file_is_created():
    """mm/hugetlb.c: what one file was promised is not there for another, though nothing of it is taken yet."""
    half = {"op": "create", "size": "4 GiB"}
    dataset = run(
        [half, half | {"file": "b"}, half | {"file": "c"}, {"op": "close"}, half | {"file": "c"}],
        guest={"memory": "4 GiB", "page_size": "1 GiB", "design": "hugetlb"},
        host=host(memory="8 GiB"),
        boot={"hugetlb_pages": {0: 5, 1: 4}},
    )
    assert dataset["event_errno"].values.tolist() == [0, 0, errno.ENOMEM, 0, 0]


def test_a_closed_file_lives_on_in_its_mapping():
    dataset = run([{"op": "create", "size": 4 * PAGE}, {"op": "close", "unmap": False}, {"op": "fault"}, {"op": "zones"},
                   {"op": "munmap"}, {"op": "zones"}])  # fmt: skip
    assert dataset["event_errno"].values.tolist() == [0] * 6
    free = dataset["free_pages"].sum("zone").values
    assert free[5] - free[3] == 4


def test_pfns_ascend_in_a_zone_and_come_back_last_in_first_out():
    dataset = run(
        [
            {"op": "create", "size": 16 * PAGE},
            {"op": "mbind", "mode": "interleave", "nodes": "0-1"},
            {"op": "fault"},
            {"op": "punch_hole", "offset": 4 * PAGE, "length": 4 * PAGE},
            {"op": "fault"},
        ],
        pfns=True,
    )
    pfn, node = dataset["page_pfn"].sel(file="guest").values, dataset["page_node"].sel(file="guest").values
    first = [pfn[0], pfn[1]]
    rest = [page for page in range(16) if not 4 <= page < 8]
    assert [pfn[p] - first[node[p]] for p in rest] == [0, 0, 1, 1, 4, 4, 5, 5, 6, 6, 7, 7]
    assert [pfn[p] - first[node[p]] for p in range(4, 8)] == [3, 3, 2, 2]
    assert dataset["page_pfn"].attrs["basis"] == "modelled"


OPERATIONS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "op": st.just("mbind"),
                "offset": st.integers(0, 63).map(lambda p: p * PAGE),
                "length": st.integers(0, 64).map(lambda p: p * PAGE),
                "mode": st.sampled_from(["default", "bind", "preferred", "interleave", "weighted_interleave"]),
                "nodes": st.sampled_from(["", "0", "1-2", "0-3"]),
            }
        ),
        st.fixed_dictionaries(
            {
                "op": st.sampled_from(["fault", "fallocate", "punch_hole"]),
                "offset": st.integers(0, 63).map(lambda p: p * PAGE),
                "length": st.integers(1, 64).map(lambda p: p * PAGE),
                "task": st.sampled_from(["vcpu0", "vcpu1"]),
            }
        ),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_parts_counted_at_once_are_those_counted_one_by_one(seed):
    """Runs with gaps, cut from allocations that go up and down, over edges of which some meet none."""
    random = np.random.default_rng(seed)
    bounds = np.unique(random.integers(0, 200, 2 * random.integers(1, 8)))
    bounds = bounds[: len(bounds) // 2 * 2].reshape(-1, 2)
    step, period = random.choice([1, -1], len(bounds)), random.integers(1, 9, len(bounds))
    before = random.integers(0, 20, len(bounds))  # folios of the allocation that are no longer there
    first = np.where(step > 0, bounds[:, 0] - before, bounds[:, 1] - 1 + before)
    size = bounds[:, 1] - bounds[:, 0] + before
    allocations = np.column_stack((first, size, step, np.cumsum(period) - period, period)).astype(np.int64)
    runs = np.column_stack((bounds[:, 0], bounds[:, 1] - bounds[:, 0], np.arange(len(bounds)))).astype(np.int64)
    tiles = random.integers(0, 5, int(period.sum())).astype(np.int16)
    edges = np.sort(random.integers(0, 210, 12))
    dataset = SimpleNamespace(sizes={"node": 5})
    answers = []
    for most in (results._ADDED_UP, 0):
        with mock.patch.object(results, "_ADDED_UP", most):
            answers.append(results._counts(dataset, (runs, allocations, tiles), edges).tolist())
    assert answers[0] == answers[1]
    present = sum(
        int(((runs[:, 0] <= page) & (page < runs[:, 0] + runs[:, 1])).sum()) for page in range(edges[0], edges[-1])
    )
    assert np.sum(answers[0]) == present


@settings(max_examples=60)
@given(OPERATIONS, st.sampled_from(["auto", "runs", "pages"]))
def test_no_page_is_lost_and_counters_agree_with_a_recount(operations, output):
    dataset = run(
        [{"op": "create", "size": 64 * PAGE}, *operations],
        guest={"vcpus": [{"cpu": 0}, {"cpu": 2}]},
        strict=False,
        output=output,
    )
    listed = results.page_nodes(dataset)
    counts = [int((listed == node).sum()) for node in range(4)]
    assert dataset["pages_per_node"].sel(file="guest").values.tolist() == counts
    assert results.node_counts(dataset)[0].tolist() == counts
    edges = [0, 5, 5, 33, 64]
    by_part = [[int((listed[a:b] == n).sum()) for n in range(4)] for a, b in itertools.pairwise(edges)]
    assert results.node_counts(dataset, edges=edges).tolist() == by_part
    taken = dataset["free_pages"][0] - dataset["free_pages"][-1]
    by_node = [int(taken[dataset["zone_node"].values == node].sum()) for node in range(4)]
    assert by_node == counts
    if "page_node" in dataset:
        assert (dataset["page_node"].sel(file="guest").values == listed).all()
    if "run_start" in dataset:
        rebuilt = np.full(64, -1)
        for first, length, node in zip(dataset["run_start"], dataset["run_length"], dataset["run_node"], strict=True):
            rebuilt[int(first) : int(first) + int(length)] = int(node)
        assert (rebuilt == listed).all()


def test_every_variable_says_what_it_is():
    dataset = run()
    for name, variable in dataset.data_vars.items():
        assert {"units", "long_name", "basis"} <= set(variable.attrs), name
        assert variable.attrs["basis"] in ("exact", "counted", "modelled")
        assert variable.attrs["basis"] != "modelled" or variable.attrs["source"]
    provenance = results.read_provenance(dataset)
    assert Scenario.from_mapping(provenance["scenario"]) == Scenario.from_mapping(
        {"host": host(), "guest": {"memory": "1 MiB"}}
    )


@pytest.mark.parametrize("name", ["result.zarr", "result.zarr.zip", "result.nc"])
def test_storage_round_trip(tmp_path, name):
    dataset = run(guest={"policies": [{"mode": "interleave", "nodes": "0-3"}]})
    path = results.save(dataset, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name], "no temporary name is left"
    xr.testing.assert_identical(results.load(path), dataset)
    results.save(run(), path)
    assert set(nodes(results.load(path))) == {0}, "an older result is replaced"


def test_storage_errors_are_one_line(tmp_path):
    with pytest.raises(WorkbenchError, match=r"must end in"):
        results.save(run(), tmp_path / "x.csv")
    with pytest.raises(WorkbenchError, match="does not exist"):
        results.load(tmp_path / "absent.nc")
    (tmp_path / "bad.nc").write_bytes(b"not netcdf")
    with pytest.raises(WorkbenchError, match="cannot be read") as caught:
        results.load(tmp_path / "bad.nc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip", "x.nc"])
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            {"schema_version": 2, "software": {"guest-memfd-workbench": "9.1"}},
            r"has schema version 2, written by .* 9\.1; this",
        ),
        (
            {"schema_version": "1", "software": 7},
            r"has schema version '1', written by .* None; this one, .*, reads version 1$",
        ),
        ({}, "has schema version None"),
        ([1], "no provenance"),
        ("{", "no provenance"),
        ("[" * 100_000, "no provenance"),
    ],
)
def test_results_of_another_schema_are_refused(tmp_path, name, made, said):
    dataset = run()
    dataset.attrs["provenance"] = made if isinstance(made, str) else json.dumps(made)
    place = results.save(dataset, tmp_path / name)
    with pytest.raises(WorkbenchError, match=said) as caught:
        results.load(place)
    assert str(caught.value).isprintable()


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(WorkbenchError, match="No space left"):
        results.save(run(), tmp_path / "x.nc")
    assert list(tmp_path.iterdir()) == []


def test_cancelling_ends_the_run():
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(Cancelled):
        simulate(Scenario.from_mapping({"host": host(), "operations": [{"op": "zones"}] * 5}), cancelled=cancelled)


def test_cancelled_is_neither_bad_input_nor_ctrl_c():
    assert not issubclass(Cancelled, (WorkbenchError, ValueError, KeyboardInterrupt))


def test_ctrl_c_in_a_run_is_not_taken_for_cancelled():
    def pressed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(Scenario.from_mapping({"host": host(), "operations": [{"op": "zones"}] * 5}), progress=pressed)


def test_same_scenario_same_dataset():
    scenario = Scenario.from_mapping(
        {
            "host": host(),
            "seed": 7,
            "guest": {"memory": "4 MiB", "vcpus": [{"cpu": 0}, {"cpu": 1}]},
            "operations": [{"op": "first_touch", "order": "random"}],
        }
    )
    xr.testing.assert_identical(simulate(scenario), simulate(scenario))


def test_mean_distance_and_local_share_on_paper():
    """48 of 64 MiB on node 0 and 16 on node 1, SLIT 10 and 20: 12.5 from node 0 and 17.5 from node 1."""
    nodes = [{"id": n, "memory_bytes": 8 << 30, "cpus": [n]} for n in range(2)]
    found = simulate(
        Scenario.from_mapping(
            {
                "host": {"name": "two", "nodes": nodes, "distances": [[10, 20], [20, 10]]},
                "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}, {"node": 1}]},
                "operations": [
                    {"op": "create"},
                    {"op": "mbind", "mode": "bind", "nodes": "0", "length": "48 MiB"},
                    {"op": "mbind", "mode": "bind", "nodes": "1", "offset": "48 MiB"},
                    {"op": "fallocate"},
                ],
            }
        )
    )
    assert found["mean_distance"].values.tolist() == [12.5, 17.5]
    assert found["local_share"].values.tolist() == [0.75, 0.25]

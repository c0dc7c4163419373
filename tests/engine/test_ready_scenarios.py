"""Every ready scenario runs, keeps its promise, and says what to look at."""

from __future__ import annotations

import errno
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from workbench import results
from workbench.data import datasets_path
from workbench.scenario import Scenario
from workbench.simulation import simulate

READY = sorted(datasets_path("scenarios").glob("*.yaml"))


@functools.cache
def run(name: str) -> xr.Dataset:
    return simulate(Scenario.from_yaml(datasets_path("scenarios", f"{name}.yaml")))


def counts(name: str, file: str = "guest") -> dict[int, int]:
    pages = run(name)["pages_per_node"].sel(file=file)
    return {int(node): int(count) for node, count in zip(pages["node"], pages, strict=True) if count}


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    scenario = Scenario.from_yaml(path)
    assert scenario.name == path.stem
    assert scenario.comment
    assert run(path.stem).sizes["event"] > 0


def test_ten_are_ready_and_explain_themselves() -> None:
    explained = [path for path in READY if "# Look at:" in path.read_text()]
    assert len(explained) >= 10


def test_four_interfaces() -> None:
    half = (8 << 30) // 4096
    assert counts("interface-none") == {0: 2 * half}
    assert counts("interface-create") == {1: 2 * half}
    for name in ("interface-fbind", "interface-mbind"):
        assert counts(name) == {1: half, 6: half}


def test_weights_and_rotation_of_each_thread() -> None:
    dataset = run("weighted-interleave-cxl")
    pattern = [0] * 5 + [1] * 4 + [2]
    assert results.page_nodes(dataset, "guest", 0, 20).tolist() == pattern * 2
    middle = (4 << 30) // 4096
    assert results.page_nodes(dataset, "guest", middle, middle + 10).tolist() == pattern


def test_movable_memory_is_not_used() -> None:
    name = "cxl-movable-ignored"
    assert set(counts(name)) == {1}
    assert set(counts(name, "tmpfs")) == {2}
    assert not run(name)["event_errno"].any()


def test_full_node() -> None:
    dataset = run("full-node")
    assert list(counts("full-node")) == [1, 2, 3]
    left = dataset["free_pages"].sel(zone="1/Normal")[-1]
    low = dataset["zone_low"].sel(zone="1/Normal")
    assert int(dataset["zone_min"].sel(zone="1/Normal")) < int(left) <= int(low)
    assert set(np.flatnonzero(dataset["event_pages"][-1].values)) == {3}


def test_nothing_moves_after_allocation() -> None:
    dataset = run("policy-after-allocation")
    by_event = [int(event) for event in dataset["observed_run_event"].values]
    nodes = {event: set() for event in by_event}
    for event, node in zip(by_event, dataset["observed_run_node"].values, strict=True):
        nodes[event].add(int(node))
    assert list(nodes.values()) == [{0}, {0}, {0, 1}]
    assert dataset["event_errno"].values.tolist().count(errno.EIO) == 1


def test_four_threads_make_groups_of_four() -> None:
    pages = run("vcpus-interleave-at-once")["page_node"].sel(file="guest").values
    assert pages.tolist() == [page // 4 % 4 for page in range(256)]


def test_the_manager_decides() -> None:
    assert set(counts("manager-prefault")) == {0}
    assert set(counts("manager-prefault", "with-policy")) == {4, 5}


def test_tmpfs_goes_by_offset() -> None:
    dataset = run("same-policy-on-tmpfs")
    tmpfs, guest = (dataset["page_node"].sel(file=file).values for file in ("tmpfs", "guest"))
    assert tmpfs.tolist() == [page % 4 for page in range(256)]
    assert guest.tolist() != tmpfs.tolist()
    assert np.bincount(guest).tolist() == [64] * 4


def test_pool_runs_dry() -> None:
    dataset = run("pool-runs-dry")
    assert counts("pool-runs-dry") == {0: 2048, 1: 4096}
    assert dataset["small_pages_per_node"].values.tolist() == [[0, 4 << 18, 0, 0, 0, 0, 0, 0]]
    scenario = Scenario.from_yaml(datasets_path("scenarios", "pool-runs-dry.yaml"))
    without = simulate(scenario.replace(**{"guest.small_page_fallback": False}))
    assert without["event_errno"].values[0] == errno.ENOMEM  # create: the whole file is reserved in the pool


def test_kexec_handover() -> None:
    dataset = run("kexec-handover")
    kexecs = [json.loads(str(d)) for op, d in zip(dataset["event_op"].values, dataset["event_detail"].values, strict=True)
              if op == "kexec"]  # fmt: skip
    assert "mapped by a device" in kexecs[0]["reason"]
    assert kexecs[1]["verified"]
    assert kexecs[1]["metadata_bytes"] == 24 * 1024  # every interleaved 2 MiB is an extent, the rest is one on one node
    assert kexecs[2]["metadata_bytes"] > kexecs[1]["metadata_bytes"]
    placed = dataset["event_pages"].sel(node=1).values
    assert placed[9] == 512  # after the kexec the home node of the policy still decides


def test_snp_guest_boots() -> None:
    """A handful of shared places cost whole 1 GiB pages, and 4095 vmemmap pages for each."""
    last = run("snp-guest-boots").isel(event=-1)
    assert (int(last["splits_1g"]), int(last["merges_1g"]), int(last["invalidations"])) == (4, 0, 71)
    split = 4
    assert int(last["mapped_1g"]) == 16 - split
    assert int(last["vmemmap_pages"].sum()) == 4095 * split
    assert int(run("snp-guest-boots")["failed_conversions"].max()) == 0

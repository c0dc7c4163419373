"""The explorer with the real engine and no browser: every field, every view, no leak."""

from __future__ import annotations

import io
import itertools
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import pytest

from workbench import amounts, profiles, results
from workbench.commands.summary import accesses, summarise
from workbench.errors import WorkbenchError
from workbench.explorer import Explorer, explore, pictures
from workbench.plots import placement
from workbench.plots.palette import METADATA_COLOUR
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.sweeps import grid
from workbench.units import format_bytes

GIB = 1 << 30


@pytest.fixture
def explorer() -> Iterator[Explorer]:
    made = explore(
        Scenario.from_mapping(
            {
                "name": "small",
                "host": "epyc1-naples-2s",
                "guest": {
                    "memory": "1 GiB",
                    "vcpus": [{"node": 0}, {"node": 4}],
                    "policies": [{"mode": "interleave", "nodes": "0-3"}],
                },
            }
        )
    )
    yield made
    made.close()


def on_nodes(explorer: Explorer) -> dict[int, float]:
    """GiB of the guest on each node that has any."""
    return {node: amount / GIB for node, amount in pictures.guest_bytes(explorer.result).items() if amount}


def test_the_engine_runs_what_the_editors_say(explorer: Explorer) -> None:
    assert on_nodes(explorer) == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}
    explorer.policy.mode.value = "bind"
    explorer.policy.nodes.selected = [5]
    assert on_nodes(explorer) == {5: 1.0}
    assert explorer.scenario.guest.policies[0].mode == "bind"
    explorer.guest.memory.value = "2 GiB"
    assert on_nodes(explorer) == {5: 2.0}
    assert simulate(explorer.scenario).identical(explorer.result)


def test_the_kernel_decides_what_a_policy_does(explorer: Explorer) -> None:
    """6.18 takes the policy and places by the vCPUs; on 6.12 nothing can be placed, and the status says why."""
    kernel = explorer.guest.kernel
    assert [value for _, value in kernel.options][1:] == list(profiles.KERNEL_PROFILES)
    kernel.value = "6.18"
    assert on_nodes(explorer) == {0: 0.5, 4: 0.5}
    kernel.value = "6.12"
    refused = "None of 1 GiB is present: EFAULT, a guest_memfd has no mapping on 6.12; from 6.18 on."
    assert pictures.summary(explorer.result) == refused
    kernel.value = "6.19"
    assert on_nodes(explorer) == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}


def test_another_machine_takes_the_guest_along(explorer: Explorer) -> None:
    explorer.policy.nodes.selected = [5, 6]
    explorer.machine.machine.value = "xeon-e5-2680-2s"
    assert explorer.scenario.host.name == "xeon-e5-2680-2s"
    assert set(on_nodes(explorer)) <= {0, 1}
    assert [node["id"] for node in explorer.policy.nodes.nodes] == [0, 1]
    explorer.controller.undo()
    assert explorer.machine.machine.value == "epyc1-naples-2s"
    assert explorer.policy.nodes.selected == [5, 6]


def test_every_machine_can_be_chosen(explorer: Explorer) -> None:
    for name in explorer.machine.machine.options:
        explorer.machine.machine.value = name
        assert not explorer.controller.errors, name
        assert explorer.result.sizes["node"] == len(explorer.scenario.host.nodes)
        assert explorer.machine.matrix.ids == explorer.scenario.host.node_ids.tolist()


def test_nodes_can_be_edited_added_and_removed(explorer: Explorer) -> None:
    machine = explorer.machine
    machine.node.value = 3
    machine.memory.value = "8 GiB"
    assert explorer.scenario.host.nodes[3].memory_bytes == 8 * GIB
    assert explorer.scenario.host.name.endswith("(edited)")
    machine.kind.value = "cxl"
    machine.cpus.value = ""
    assert explorer.scenario.host.nodes[3].cpus == ()
    machine.movable.value = True
    assert 3 not in on_nodes(explorer)
    machine.add.click()
    assert [node.id for node in explorer.scenario.host.nodes] == list(range(9))
    machine.node.value = 8
    machine.remove.click()
    machine.remove.click()
    assert len(explorer.scenario.host.nodes) == 7
    assert not explorer.controller.errors


def test_distances_can_be_edited(explorer: Explorer) -> None:
    rows = [list(row) for row in explorer.machine.matrix.values]
    rows[0][1] = rows[1][0] = 99
    explorer.machine.matrix.values = rows
    assert explorer.result["distance"].values[0, 1] == 99
    rows = [list(row) for row in rows]
    rows[0][1] = "near"
    explorer.machine.matrix.values = rows
    assert "whole number from 10 to 255" in explorer.controller.errors["host.distances"]
    assert explorer.result["distance"].values[0, 1] == 99


HWLOC_OR_NOT = "this is no topology"


@pytest.mark.parametrize(
    ("name", "content", "good"),
    [
        ("host.yaml", "name: two\nnodes:\n- {id: 0, memory_bytes: 4 GiB, cpus: '0'}\n- {id: 1, memory_bytes: 4 GiB}\n"
         "distances: [[10, 20], [20, 10]]\n", True),
        ("host.txt", "available: 1 nodes (0)\nnode 0 cpus: 0 1\nnode 0 size: 8000 MB\nnode 0 free: 7000 MB\n"
         "node distances:\nnode   0\n  0:  10\n", True),
        ("host.yaml", "name: [", False),
        ("host.xml", HWLOC_OR_NOT, False),
        ("host.txt", HWLOC_OR_NOT, False),
        ("host." + "y" * 300, HWLOC_OR_NOT, False),
        ("host.\0", HWLOC_OR_NOT, False),
    ],
)  # fmt: skip
def test_a_machine_from_a_file(explorer: Explorer, name: str, content: str, good: bool) -> None:
    before = explorer.scenario
    upload = {
        "name": name,
        "content": memoryview(content.encode()),
        "size": len(content),
        "type": "",
        "last_modified": None,
    }
    edit_made = explorer.machine.try_edit("host", lambda: explorer.machine._read((upload,)))
    assert edit_made is good
    assert (explorer.scenario != before) is good
    assert bool(explorer.controller.errors) is not good


def test_ranges_can_be_drawn_moved_and_removed(explorer: Explorer) -> None:
    explorer.space.gesture = {"serial": 1, "index": -1, "start": GIB // 2, "end": 3 * GIB // 4}
    policies = explorer.scenario.guest.policies
    assert [(p.offset, p.length) for p in policies] == [(0, None), (GIB // 2, GIB // 4)]
    assert explorer.policy.selected == 1
    explorer.policy.mode.value = "bind"
    explorer.policy.nodes.selected = [7]
    assert on_nodes(explorer)[7] == 0.25
    explorer.space.gesture = {"serial": 2, "index": 1, "start": 0, "end": GIB}
    assert on_nodes(explorer) == {7: 1.0}
    explorer.policy.start.value = "512 MiB"
    assert on_nodes(explorer)[7] == 0.5
    explorer.policy.remove.click()
    explorer.policy.remove.click()
    assert explorer.scenario.guest.policies == ()
    assert explorer.policy.details.layout.display == "none"
    # Without a policy memory follows the vCPUs.
    assert on_nodes(explorer) == {0: 0.5, 4: 0.5}


def test_weights_are_the_kernels_until_they_are_changed(explorer: Explorer) -> None:
    explorer.policy.mode.value = "weighted_interleave"
    assert explorer.policy.nodes.weighted
    assert set(on_nodes(explorer).values()) == {0.25}
    explorer.policy.automatic.value = False
    explorer.policy.nodes.weights = {**explorer.policy.nodes.weights, "0": 5}
    assert explorer.scenario.boot.weights is not None
    assert on_nodes(explorer)[0] == pytest.approx(5 / 8, abs=1e-4)
    explorer.policy.automatic.value = True
    assert explorer.scenario.boot.weights is None


def test_dragging_a_weight_leaves_the_automatic_ones(explorer: Explorer) -> None:
    explorer.policy.mode.value = "weighted_interleave"
    explorer.policy.nodes.weights = {**explorer.policy.nodes.weights, "1": 7}
    assert explorer.scenario.boot.weights is not None
    assert explorer.scenario.boot.weights[1] == 7
    assert explorer.policy.automatic.value is False
    assert on_nodes(explorer)[1] == pytest.approx(0.7, abs=1e-4)


INVALID = [
    ("guest", "memory", "12 parsecs", "guest.memory"),
    ("guest", "memory", "-4 GiB", "guest.memory"),
    ("guest", "memory", "5 KiB", "guest.memory"),
    ("policy", "start", "2 GiB", "guest.policies.range"),
    ("policy", "end", "x", "guest.policies.range"),
    ("policy.nodes", "selected", [], "guest.policies"),
    ("policy.nodes", "weights", {"0": 0}, "boot.weights"),
    ("machine", "memory", "lots", "host.node"),
    ("machine", "memory", "3 B", "host.node"),
    ("machine", "cpus", "0-", "host.node"),
    ("machine", "cpus", "999999999", "host.node"),
    ("workload", "percent", 0.05, "conversions"),
    ("workload", "piece", "5 KiB", "conversions"),
    ("workload", "text", "- op: levitate", "operations.text"),
    ("workload", "text", "{", "operations.text"),
    ("workload", "text", "- op: create\nguest: {memory: 1 MiB}", "operations.text"),
    ("guest.vcpu_nodes", "selected", [], "guest.vcpus"),
]


@pytest.mark.parametrize(("editor", "name", "value", "field"), INVALID)
def test_invalid_input_is_explained_beside_the_field(
    explorer: Explorer, editor: str, name: str, value: object, field: str
) -> None:
    before, result = explorer.scenario, explorer.result
    target: object = explorer
    for part in editor.split("."):
        target = getattr(target, part)
    if name == "weights":
        explorer.policy.automatic.value = False
        before, result = explorer.scenario, explorer.result
    if name in ("selected", "weights"):
        setattr(target, name, value)
    else:
        getattr(target, name).value = value
    assert field in explorer.controller.errors, explorer.controller.errors
    message = next(e._messages[field] for e in explorer.editors if field in e._messages)
    assert message.layout.display == ""
    assert "role=" in message.value
    assert explorer.scenario == before
    assert explorer.result is result
    explorer.controller.undo()
    assert message.layout.display == "none"


def test_workload_fields(explorer: Explorer) -> None:
    workload = explorer.workload
    workload.touch.value = "prefault"
    assert "fallocate" in explorer.result["event_op"].values
    workload.touch.value = "first_touch"
    workload.order.value = "random"
    workload.turn.value = 4
    assert explorer.scenario.operations[0].turn == 4
    workload.hog_node.value = 0
    workload.hog_free.value = "0 B"
    assert explorer.result["event_op"].values.tolist().count("hog") == 1
    assert on_nodes(explorer).get(0, 0) < 0.25
    workload.text.value = "- op: create\n- op: fault\n  length: 4 MiB\n"
    assert workload.touch.value == "written"
    assert sum(on_nodes(explorer).values()) == 4 / 1024
    workload.seed.value = 12
    assert explorer.scenario.seed == 12


def test_a_share_that_needs_larger_pieces_shows_the_field_for_them(explorer: Explorer) -> None:
    workload = explorer.workload
    explorer.guest.memory.value = "4 GiB"
    assert workload.piece.layout.display == "none"
    workload.percent.value = 50.0
    assert "larger pieces" in explorer.controller.errors["conversions"]
    assert workload.piece.layout.display == ""
    workload.piece.value = "64 MiB"
    assert not explorer.controller.errors
    assert sum(getattr(o, "to", "") == "shared" for o in explorer.scenario.operations) == 32


def test_guest_fields(explorer: Explorer) -> None:
    guest = explorer.guest
    guest.page_size.value = "2 MiB"
    assert explorer.scenario.guest.design == "hugetlb"
    assert int(explorer.result["page_size"]) == 2 << 20
    guest.interface.value = "none"
    guest.vm_type.value = "snp"
    guest.vcpus.value = 12
    guest.vcpu_nodes.selected = [1, 2, 3]
    assert [vcpu.node for vcpu in explorer.scenario.guest.vcpus] == [1] * 4 + [2] * 4 + [3] * 4
    assert not explorer.controller.errors


def test_setting_the_scenario_moves_the_widgets(explorer: Explorer) -> None:
    explorer.scenario = explorer.scenario.replace(**{"guest.memory": "4 GiB", "seed": 5})
    assert explorer.guest.memory.value == "4 GiB"
    assert explorer.workload.seed.value == 5
    assert sum(on_nodes(explorer).values()) == 4
    explorer.scenario = "conversion-drifts"
    assert explorer.guest.memory.value == "64 MiB"
    with pytest.raises(WorkbenchError, match="dict is none; a Scenario, a ready one's name or a file is"):
        explorer.scenario = {"guest": {}}  # type: ignore[assignment]


def test_zoom_down_to_one_page(explorer: Explorer) -> None:
    explorer.space.viewport = [0.0, 16 * 4096.0]
    frame = explorer.space.frame
    assert (frame["start"], frame["stop"]) == (0, 16 * 4096)
    columns = np.frombuffer(explorer.space.shares, np.uint8).reshape(16, 9)
    nodes = results.page_nodes(explorer.result, "guest", 0, 16)
    assert (columns.argmax(axis=1) == nodes).all()
    assert (columns.max(axis=1) == 255).all()
    explorer.space.viewport = [8192.0, 12288.0]
    assert np.frombuffer(explorer.space.shares, np.uint8).reshape(1, 9).max() == 255
    explorer.goto.value = "512 MiB"
    assert explorer.space.frame["start"] <= GIB // 2 < explorer.space.frame["stop"]
    explorer.goto.value = "2 GiB"
    assert "beyond" in explorer.goto_error.value


def test_shares_agree_with_a_count_of_every_page(explorer: Explorer) -> None:
    explorer.space.gesture = {"serial": 1, "index": -1, "start": 12288, "end": 300 * 4096}
    explorer.policy.nodes.selected = [7]
    dataset = explorer.result
    pages = results.page_nodes(dataset, "guest")
    columns = pictures.shares(dataset, list(range(8)), 0, GIB, 100)
    edges = np.linspace(0, len(pages), 101).round().astype(int)
    for column, (low, high) in zip(columns, pairwise(edges), strict=True):
        expected = [255 * (pages[low:high] == node).mean() for node in range(8)]
        assert np.abs(column[:8] - expected).max() <= 1


def test_a_frame_goes_to_the_browser_once(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a run that its edit waits for has the new ranges; the bars are drawn from what the host's picture got."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("workbench.explorer.controller.DRAG", 0.0)
    explorer.controller._breath = 30.0
    explorer.space.observe(lambda change: sent.append(change["new"]), "frame")
    explorer.policy.nodes.selected = [1, 2]
    assert [[part["label"] for part in frame["ranges"]] for frame in sent] == [["interleave 1-2"]]
    assert explorer.bars_chart.source is explorer.host_chart and explorer.host_chart.data["nodes"][1]["guest"]
    assert not explorer.bars_chart.data


def test_the_time_slider_shows_the_beginning_of_the_run(explorer: Explorer) -> None:
    explorer.policy.remove.click()
    explorer.controller.wait()
    whole = explorer.result
    ops = whole["event_op"].values.tolist()
    explorer.time.value = ops.index("fault")
    explorer._replay.wait()
    assert explorer.shown is not None
    part = explorer.shown.dataset
    assert part.sizes["event"] == explorer.time.value + 1
    assert sum(pictures.guest_bytes(part).values()) == GIB // 2
    for name in ("event_ret", "event_errno", "event_op"):
        assert (part[name].values == whole[name].values[: part.sizes["event"]]).all()
    explorer.time.value = explorer.time.max
    assert explorer.shown.dataset is whole
    # Back where it stood: nothing is replayed anew, and the views show the beginning all the same.
    runs = explorer._replay.runs_started
    explorer.time.value = ops.index("fault")
    assert explorer._replay.runs_started == runs
    assert explorer.host_chart.data["summary"] == pictures.summary(part)
    assert "wb-old" not in explorer.root._dom_classes


def test_compare(explorer: Explorer) -> None:
    explorer.pin.click()
    explorer.tabs.selected_index = 4
    explorer.policy.nodes.selected = [0, 1]
    explorer.controller.wait()
    assert explorer.space.frame["compare"] is True
    assert explorer.space.shares_a != explorer.space.shares
    assert "+256 MiB" in explorer.compare.value
    assert "−256 MiB" in explorer.compare.value
    assert "guest.policies.0.nodes" in explorer.compare.value
    explorer.machine.machine.value = "xeon-e5-2680-2s"
    assert explorer.result.sizes["node"] == 2
    assert [node["id"] for node in explorer.space.frame["nodes"]] == list(range(8))
    explorer.unpin.click()
    assert explorer.space.frame["compare"] is False


def test_a_view_that_is_slowly_drawn_does_not_replace_a_newer_one(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing takes a while; an edit meanwhile is drawn by the run's thread, and must be what stays."""
    drawing, drawn = threading.Event(), threading.Event()
    differences = pictures.differences

    def slow_at_first(*arguments: Any) -> str:
        text = differences(*arguments)
        if not drawing.is_set():
            drawing.set()
            drawn.wait(1)
        return text

    monkeypatch.setattr(pictures, "differences", slow_at_first)
    explorer.pin.click()
    opening = threading.Thread(target=lambda: setattr(explorer.tabs, "selected_index", 4))
    opening.start()
    assert drawing.wait(20)
    explorer.policy.mode.value = "local"
    explorer.controller.wait()
    drawn.set()
    opening.join()
    assert "guest.policies.0.mode" in explorer.compare.value


def test_every_view_of_every_kind_of_run(explorer: Explorer) -> None:
    for edit in (
        lambda: None,
        lambda: setattr(explorer.workload.text, "value", "- op: create\n  size: 3 KiB\n"),  # refused: no file
        lambda: setattr(
            explorer.workload.text, "value", "- op: create\n- op: convert\n  length: 2 MiB\n  to: private\n"
        ),
        lambda: setattr(explorer.machine.machine, "value", "altix-ia64-64n"),
    ):
        edit()
        explorer.controller.wait()
        for index in range(len(explorer.tabs.children)):
            explorer.tabs.selected_index = index
        explorer.tabs.selected_index = 0
        assert "Traceback" not in explorer.status.value
        assert json.dumps(explorer.host_chart.data)
        assert explorer._repr_mimebundle_()[0]["text/html"]


def test_downloads_hold_the_scenario_and_the_result(explorer: Explorer, tmp_path: Path) -> None:
    name, content = explorer.file("yaml")
    assert Scenario.from_yaml(content.decode()) == explorer.scenario
    for kind in ("zip", "nc"):
        name, content = explorer.file(kind)
        (tmp_path / name).write_bytes(content)
        assert results.load(tmp_path / name).identical(explorer.result) or kind == "nc"
    assert zipfile.is_zipfile(io.BytesIO(explorer.file("zip")[1]))
    page = explorer.file("html")[1].decode()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(WorkbenchError, match="exe"):
        explorer.file("exe")


def test_figures_and_tables_can_be_taken_along(explorer: Explorer) -> None:
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    explorer.figure.value = "Compare"
    for kind in ("figure svg", "table csv"):
        with pytest.raises(WorkbenchError, match="pin a run as A first"):
            explorer.file(kind)
    explorer.pin.click()
    explorer.policy.mode.value = "bind"
    explorer.controller.wait()
    # Every figure, and every format; not each in each, which draws all figures three times.
    for view, kind in zip(explorer.figure.options, itertools.cycle(starts)):
        explorer.figure.value = view
        name, content = explorer.file(f"figure {kind}")
        assert name.endswith(f"{view.lower().replace(' ', '-')}.{kind}")
        assert content.startswith(starts[kind])
        assert kind != "pdf" or b"/Type3" not in content
    explorer.figure.value = "Compare"
    name, content = explorer.file("table csv")
    table = pd.read_csv(io.BytesIO(content), index_col="quantity")
    assert name == "small-compare.csv" and table["basis"].value_counts()["modelled"] == 12
    assert table.loc["guest on node 0"].tolist() == ["B", "exact", str(GIB // 4), str(GIB), 0.75 * GIB]
    assert table.loc["guest.policies.0.mode", ["basis", "A", "B"]].tolist() == ["setting", "interleave", "bind"]
    explorer.undo.click()
    explorer.unpin.click()
    explorer.controller.wait()
    explorer.figure.value = "Nodes"
    rows = explorer.file("table csv")[1].decode().splitlines()
    assert rows[0].startswith("node,kind,memory (B),guest (B),free (B)")
    assert rows[1].split(",")[3] == str(GIB // 4)
    calls = explorer.file("calls csv")[1].decode().splitlines()
    assert calls[1].startswith("0,create")
    assert len(calls) == 1 + explorer.result.sizes["event"]


def test_sizes_are_written_with_units_and_read_back(explorer: Explorer) -> None:
    explorer.guest.memory.value = "3 GiB"
    explorer.policy.end.value = "512 MiB"
    text = explorer.file("yaml")[1].decode()
    assert "memory: 3 GiB" in text
    assert "length: 512 MiB" in text
    assert Scenario.from_yaml(text) == explorer.scenario


def test_the_policies_are_ranked(explorer: Explorer) -> None:
    from workbench.explorer import ranking

    found = ranking.rank(explorer.scenario, "streaming", partitioned=False)
    text = ranking.table(found, explorer.scenario)
    best = found["policy"].values[found["bandwidth"].values[1:].mean(axis=0).argmax()]
    assert text.count("<tr>") == 1 + found.sizes["policy"]
    assert "5 to 95 %" in text and "hypothetical" in text  # this machine has no HMAT
    assert str(best) in text.split("</b>")[0]
    with pytest.raises(WorkbenchError, match="rank the policies first"):
        explorer.file("ranking csv")
    explorer._ranking = found
    lines = explorer.file("ranking csv")[1].decode().splitlines()
    assert lines[0].startswith("policy,place,median (GB/s of all vCPUs)") and len(lines) == 1 + found.sizes["policy"]
    nobody = explorer.scenario.replace(**{"guest.vcpus": []})
    with pytest.raises(WorkbenchError, match="no vCPUs"):
        ranking.rank(nobody, "streaming", partitioned=False)


def test_nothing_present_is_not_a_distance_of_nothing(explorer: Explorer) -> None:
    explorer.pin.click()
    explorer.workload.touch.value = "nothing"
    explorer.tabs.selected_index = 4
    assert not explorer.result["pages_per_node"].any()
    assert explorer.workload.touch.value == "nothing"
    explorer.controller.wait()
    assert "0.000" not in explorer.compare.value
    assert pictures.NOTHING in explorer.compare.value
    assert "latency of the vCPUs on node 0 (streaming, modelled)" in explorer.compare.value


def test_what_vcpus_pay_has_the_range_that_a_run_prints(explorer: Explorer) -> None:
    explorer.tabs.selected_index = 1
    said = accesses(explorer.result, explorer.scenario.host)["0"]
    row = explorer.vcpu_chart.data["rows"][0]
    ns, low, high = (said[f"latency_ns{end}"] for end in ("", "_low", "_high"))
    assert low < ns < high
    numbers = re.search(
        r"; ([\d.]+) \[([\d.]+), ([\d.]+)\] ns, [\d.]+ \[[\d.]+, [\d.]+\] GB/s \(modelled\)", row["note"]
    )
    assert numbers is not None and [float(each) for each in numbers.groups()] == pytest.approx(
        [ns, low, high], rel=0.01
    )
    explorer.figure.value = "vCPUs"
    table = pd.read_csv(io.BytesIO(explorer.file("table csv")[1]))
    assert table["latency (ns, modelled, streaming, 5 % of draws above)"][0] == pytest.approx(high, rel=0.01)


def test_python_and_commands_to_copy(explorer: Explorer) -> None:
    explorer.tabs.selected_index = 6
    for kind in explorer.share_kind.options:
        explorer.share_kind.value = kind
        assert "interleave" in explorer.share.text
    explorer.share_kind.value = "Python"
    space: dict[str, object] = {}
    exec(explorer.share.text, space)
    assert space["scenario"] == explorer.scenario


def test_nodes_show_what_the_kernel_allocates_beside_the_guest(explorer: Explorer) -> None:
    run = explorer.shown
    assert run is not None
    shown = pictures.host(run, None, 1)["nodes"]
    counted = np.asarray(run.dataset["metadata_pages"].isel(event=-1).sum("kind")) * 4096
    assert [node["metadata"] for node in shown] == counted.tolist() and counted.sum() > 3 << 20
    assert f"other metadata {format_bytes(int(counted[0]))}" in shown[0]["title"]
    table = pictures.nodes_table(run)
    assert "in all" in table and format_bytes(int(counted[0]) + GIB // 4) in table
    assert explorer._repr_mimebundle_()[0]["text/html"].count(METADATA_COLOUR) == int((counted > 0).sum())


def test_the_static_twin_shows_the_result_without_script(explorer: Explorer) -> None:
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "25 % on node 0" in data["text/html"]
    assert "<script" not in data["text/html"]
    assert data["text/html"].count("<rect") > 8


def test_500_edits_leave_nothing_behind(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.explorer.controller.ONE_STEP", 600.0)  # a busy machine may pause between two edits

    def live() -> int:
        return len(ipywidgets.widgets.widget._instances)

    explorer.policy.nodes.selected = [1]
    explorer.controller.wait()
    before = live()
    for number in range(500):
        explorer.policy.nodes.selected = [number % 8]
    explorer.controller.wait()
    assert live() == before
    assert on_nodes(explorer) == {499 % 8: 1.0}
    explorer.controller.undo()  # one step, since the edits came as quickly as those of a drag
    assert explorer.policy.nodes.selected == [0, 1, 2, 3]


def test_close_leaves_no_widget_and_no_thread() -> None:
    before = set(ipywidgets.widgets.widget._instances)
    made = explore()
    made.guest.memory.value = "2 GiB"
    thread = made.controller._thread
    made.close()
    assert thread is not None
    assert not thread.is_alive()
    left = [w for key, w in ipywidgets.widgets.widget._instances.items() if key not in before]
    assert {type(w).__name__ for w in left} <= {
        "Layout", "ButtonStyle", "DescriptionStyle", "TextStyle", "HTMLStyle", "CheckboxStyle", "SliderStyle",
        "ProgressStyle", "ToggleButtonsStyle",
    }  # fmt: skip


def test_two_names_of_one_file_are_counted_once(explorer: Explorer) -> None:
    """alias, then munmap or close of either name: status line, figures and sums keep to the 64 MiB that there are."""
    operations: list[dict[str, Any]] = [
        {"op": "create"},
        {"op": "alias", "file": "b", "of": "guest"},
        {"op": "memfd", "file": "c", "size": "64 MiB"},
        {"op": "mbind", "file": "c", "mode": "bind", "nodes": "1"},
        {"op": "fault", "length": "32 MiB"},
        {"op": "fault", "file": "c", "length": "32 MiB"},
    ]
    for rest in ([], *([{"op": op, "file": file}] for op in ("munmap", "close") for file in ("b", "guest"))):
        explorer.scenario = Scenario.from_mapping(
            {
                "name": "two names",
                "host": "epyc1-naples-2s",
                "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}]},
                "metadata": "counted",
                "operations": [*operations, *rest],
            }
        )
        found = explorer.result
        assert not found["event_errno"].values.any()
        assert pictures.summary(found) == "64 MiB present: 50 % on node 0, 50 % on node 1."
        assert on_nodes(explorer) == {0: 1 / 32, 1: 1 / 32}
    assert found["file_inode"].values.tolist() == [0, 0, 2]
    assert found["local_share"].values.tolist() == [0.5]
    assert amounts.bytes_per_node(found)[1].sum() == 32 << 20  # by name, both have it
    assert grid.measure(grid.METRICS["pages_per_node"], found, range(8)).tolist() == [8192, 8192, *[0] * 6]
    beside = amounts.metadata_of_nodes(found).sum()
    assert sum(summarise(found)["bytes_in_all_per_node"].values()) == (64 << 20) + beside
    assert list(placement._by_file(found)) == ["guest", "c"]
    assert sum(rows.sum() for rows in placement._by_policy(found).values()) == 64 << 20

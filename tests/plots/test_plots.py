"""Figures say what the Dataset says: asserted on what was drawn, at 1 to 64 nodes and up to 16 TiB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.figure import Figure

from workbench import amounts as amounts_of
from workbench import results
from workbench.bitmap_lists import format_list
from workbench.errors import WorkbenchError
from workbench.plots import common as plots_common
from workbench.plots import designs as plots_designs
from workbench.plots import palette
from workbench.plots import placement as plots
from workbench.plots import recording as plots_recording
from workbench.plots import topology as plots_topology
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.studies.history import history
from workbench.topology.host import Host, machine_names
from workbench.units import byte_unit, format_bytes


def run(host: object = "epyc1-naples-2s", **fields: Any) -> xr.Dataset:
    return simulate(Scenario.from_mapping({"name": "test", "host": host, **fields}))


@pytest.fixture(scope="module")
def two_policies() -> xr.Dataset:
    policies = [
        {"length": "1 GiB", "mode": "preferred", "nodes": "3"},
        {"offset": "1 GiB", "length": "1 GiB", "mode": "interleave", "nodes": "4-7"},
    ]
    guest = {"memory": "4 GiB", "vcpus": [{"node": 0}, {"node": 5}], "policies": policies}
    return run(guest=guest, operations=[{"op": "fault", "task": "vcpu0", "length": "3 GiB"}])


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    labels = [label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return found + labels + legends


def corner(figure: Figure) -> str:
    return figure.get_supxlabel()


def drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def picture_of(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_map_shows_each_page(two_policies: xr.Dataset) -> None:
    """One folio a column: the colour of every column is that of the node that the Dataset names."""
    folios = 64
    start = (1 << 30) - 32 * 4096
    figure = plots.placement_map(two_policies, start=start, stop=start + folios * 4096)
    colours = plots_common.colours_of(two_policies)
    nodes = results.page_nodes(two_policies, "guest", start // 4096, start // 4096 + folios)
    expected = np.array([mcolors.to_rgb(colours[int(node)]) for node in nodes])
    middle = picture_of(figure)[plots._STRIP + plots._BAR // 2]
    assert np.allclose(middle, expected)
    assert "preferred 3" in texts(figure) and "interleave 4-7" in texts(figure)


def test_map_fills_columns_with_shares(two_policies: xr.Dataset) -> None:
    figure = plots.placement_map(two_policies)
    picture = picture_of(figure)
    colours = [mcolors.to_rgb(colour) for colour in plots_common.colours_of(two_policies).values()]
    assert figure.axes[0].get_yticklabels()[1].get_text() == "1 GiB"  # four lines of 1 GiB
    line = plots._STRIP + plots._BAR + plots._GAP
    column = picture[line + plots._STRIP : line + plots._STRIP + plots._BAR, 10]
    shares = [int(np.isclose(column, colour).all(axis=1).sum()) for colour in colours]
    assert shares == [0, 0, 0, 0, 15, 15, 15, 15]
    assert "absent: 1 GiB" in texts(figure)
    assert corner(figure) == "test · basis: exact"


def test_pages_per_node_adds_up(two_policies: xr.Dataset) -> None:
    figure = plots.pages_per_node(two_policies)
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    beside = amounts_of.metadata_of_nodes(two_policies)
    named = f"page tables and other metadata ({format_bytes(int(beside.sum()))})"
    assert sorted(labels) == ["capacity", "interleave 4-7", "no policy of the file", named, "preferred 3"]
    assert "GiB" in axes.get_ylabel() or "MiB" in axes.get_ylabel()
    unit, _ = byte_unit(1 << 30)
    *stacks, metadata = axes.containers[1:]
    assert [bar.get_height() > 0 for bar in metadata] == (beside > 0).tolist() and (beside > 0).any()
    assert {tuple(bar.get_facecolor()) for bar in metadata} == {mcolors.to_rgba(palette.METADATA_COLOUR)}
    bars = [bar for container in stacks for bar in container]
    total = sum(bar.get_height() for bar in bars) * unit
    assert total == pytest.approx(int(two_policies["pages_per_node"].sum()) * 4096)


def test_by_policy_counts_every_page(two_policies: xr.Dataset) -> None:
    amounts = plots._by_policy(two_policies)
    assert np.array_equal(np.sum(list(amounts.values()), axis=0), two_policies["pages_per_node"].sum("file") * 4096)
    assert amounts["preferred 3"].tolist() == [0, 0, 0, float(1 << 30), 0, 0, 0, 0]


def test_many_policies_are_drawn_by_mode() -> None:
    policies = [
        {"offset": i << 20, "length": 1 << 20, "mode": "interleave", "nodes": f"{i % 4}-{4 + i % 3}"} for i in range(48)
    ]
    dataset = run(guest={"memory": 64 << 20, "policies": policies})
    assert set(plots._by_policy(dataset)) == {"interleave", "no policy of the file"}
    drawn(plots.placement_map(dataset))


def test_fallback_shows_the_low_watermark() -> None:
    hog = {"op": "hog", "node": 1, "leave_free": "1 GiB"}
    faults = [{"op": "fault", "task": "vcpu0", "offset": i << 30, "length": "1 GiB"} for i in range(3)]
    guest = {"memory": "3 GiB", "vcpus": [{"node": 1}]}
    dataset = run(guest=guest, operations=[hog, *faults])
    figure = plots.fallback(dataset)
    _, lower = figure.axes
    unit, _ = byte_unit(float(dataset["node_memory"].max()))
    low = int(dataset["zone_low"].sel(zone="1/Normal")) * 4096 / unit
    marks = [line.get_ydata()[0] for line in lower.lines if len(set(line.get_ydata())) == 1]
    assert any(mark == pytest.approx(low) for mark in marks)
    ticks = [label.get_text() for label in lower.get_xticklabels()]
    assert ticks == ["0 create", "1 hog", "2 fault", "3 fault", "4 fault"]
    assert corner(figure) == "test · basis: exact and counted"


def test_refused_calls_are_named() -> None:
    operations = [{"op": "create"}, {"op": "punch_hole", "offset": 1}]
    dataset = run(guest={"memory": "1 MiB"}, operations=operations)
    assert "1 punch_hole EINVAL" in texts(plots.fallback(dataset))
    table = plots.events(dataset)
    assert table["errno"].tolist() == ["", "EINVAL"]
    assert table["operation"].tolist() == ["create", "punch_hole"]


def test_local_remote_shares(two_policies: xr.Dataset) -> None:
    axes = plots.local_remote(two_policies).axes[0]
    rows: dict[float, float] = {}
    for bar in axes.patches:
        rows[round(bar.get_y(), 3)] = rows.get(round(bar.get_y(), 3), 0.0) + bar.get_width()
    assert list(rows.values()) == [pytest.approx(100), pytest.approx(100)]
    means = [text.get_text() for text in axes.texts if text.get_text().startswith("mean")]
    assert means == [f"mean {value:.1f}" for value in two_policies["mean_distance"].values]


def test_nodes_that_see_the_same_are_one_bar() -> None:
    vcpus = [{"node": node} for node in range(8)]
    policies = [{"mode": "interleave", "nodes": "0-7"}]
    figure = plots.local_remote(run(guest={"memory": "1 GiB", "vcpus": vcpus, "policies": policies}))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["nodes 0-7 (8 vCPUs)"]


def test_compare(two_policies: xr.Dataset) -> None:
    figure = plots.compare({"a": two_policies, "b": two_policies})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    # A host of two nodes beside one of eight: the colours of the larger, and a bar of the nodes that are there.
    small = run("xeon-e5-2680-2s")
    axes = plots.compare({"a": small, "b": two_policies}).axes[0]
    colours = plots_common.colours_of(two_policies)
    bars = [bar for bar in axes.patches if bar.get_width() and bar.get_y() < 0.5]
    (there,) = np.nonzero(small.pages_per_node.sum("file").values)
    assert [bar.get_facecolor()[:3] for bar in bars] == [mcolors.to_rgb(colours[node]) for node in there]
    assert len(plots_common.colours_of_all(run("power9-ac922-6gpu"), two_policies)) > 8  # neither has all of them
    with pytest.raises(WorkbenchError, match="at least one"):
        plots.compare({})


def test_bad_requests_are_one_line(two_policies: xr.Dataset) -> None:
    with pytest.raises(WorkbenchError, match="'other' is not in this result"):
        plots.placement_map(two_policies, "other")
    with pytest.raises(WorkbenchError, match="no folio"):
        plots.placement_map(two_policies, start=4 << 30)
    without = run(operations=[{"op": "hog", "node": 0, "size": "1 GiB"}])
    with pytest.raises(WorkbenchError, match="no file"):
        plots.placement_map(without)


def test_sixty_four_nodes_and_sixteen_tebibytes() -> None:
    """All figures of a guest of 2^32 pages on 64 nodes."""
    distances = [[10 if i == j else 16 if i // 8 == j // 8 else 32 for j in range(64)] for i in range(64)]
    nodes = [{"id": 3 * i, "memory_bytes": "512 GiB", "cpus": [i]} for i in range(64)]
    host = {"name": "large", "nodes": nodes, "distances": distances}
    vcpus = [{"node": 3 * i} for i in range(64)]
    dataset = run(host, guest={"memory": "16 TiB", "vcpus": vcpus})
    figure = plots.placement_map(dataset)
    shown = texts(figure)
    assert {str(3 * i) for i in range(64)} <= set(shown), "each node's number stands in its stretch"
    assert "node 189: 256 GiB" in shown
    for made in (figure, plots.pages_per_node(dataset), plots.local_remote(dataset), plots.topology(dataset)):
        assert drawn(made).startswith(b"\x89PNG")


@pytest.mark.parametrize("page_size", ["2 MiB", "1 GiB"])
def test_huge_pages(page_size: str) -> None:
    guest = {"memory": "8 GiB", "page_size": page_size, "design": "hugetlb", "vcpus": [{"node": 2}]}
    dataset = run(guest=guest)
    assert f"node 2: {format_bytes(8 << 30)}" in texts(plots.placement_map(dataset))
    for make in (plots.pages_per_node, plots.fallback, plots.local_remote):
        drawn(make(dataset))


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_is_drawn(name: str) -> None:
    host = Host.from_machine(name)
    dataset = plots_topology.host_dataset(host)
    figure = plots_topology.topology(dataset, title=host.title, assumed=", ".join(host.assumed))
    shown = texts(figure)
    assert {str(node.id) for node in host.nodes} <= set(shown)
    matrix = figure.axes[1].images[0].get_array()
    assert matrix.shape == (len(host.nodes), len(host.nodes))
    if len(host.nodes) <= 40:
        assert str(max(map(max, host.distances))) in shown
    colours = plots_common.colours_of(dataset)
    assert len(set(colours.values())) == len(host.nodes)


def test_groups_are_sockets_with_their_memory() -> None:
    def groups(name: str) -> list[list[int]]:
        host = Host.from_machine(name)
        cpus = np.array([len(node.cpus) for node in host.nodes])
        return [[int(host.node_ids[i]) for i in part] for part in palette.groups(host.distance_matrix, cpus)]

    assert groups("epyc1-naples-2s") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups("gh200-x4")[1] == [1, *range(12, 20)]
    assert groups("spr-aurora-hbm-flat") == [[0, 2], [1, 3]]
    assert sorted(node for part in groups("altix-ia64-64n") for node in part) == list(range(64))
    assert len(groups("altix-ia64-64n")) == 4


def test_neighbouring_colours_differ_in_lightness_or_hue() -> None:
    """Up to eight nodes: colours that stay apart for every form of colour blindness (smallest distance of all pairs)."""
    rgb = np.array([mcolors.to_rgb(colour) for colour in palette.NODE_COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Vienot, Brettel and Mollon 1999: protanopia and deuteranopia in linear RGB
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None, :], axis=2)[~np.eye(8, dtype=bool)]
        assert apart.min() > 0.12


@pytest.mark.parametrize("name", machine_names())
def test_marks_stand_out_and_words_can_be_read(name: str) -> None:
    """WCAG: 3:1 for marks against the paper, 4.5:1 for the words on them."""
    colours = plots_common.colours_of(plots_topology.host_dataset(Host.from_machine(name))).values()
    for colour in (*colours, *plots.POLICY_COLOURS.values()):
        mark = palette.luminance(mcolors.to_rgb(colour))
        assert palette.contrast(mark, 1.0) >= 3
        assert palette.contrast(mark, palette.luminance(mcolors.to_rgb(plots_common.text_colour(colour)))) >= 4.5
    for words in (plots_common.INK, plots_common.MUTED):
        assert palette.contrast(palette.luminance(mcolors.to_rgb(words)), 1.0) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert palette.contrast(palette.luminance((0, 0, 0)), palette.luminance((1, 1, 1))) == pytest.approx(21)
    assert palette.contrast(palette.luminance(mcolors.to_rgb("#767676")), 1.0) == pytest.approx(4.54, abs=0.01)


def test_the_reserve_of_a_small_zone_is_no_more_than_the_zone() -> None:
    """A node that can be emptied ends at its dashed line, not below it."""
    host = Host.from_machine("epyc1-naples-2s")
    hog = {"op": "hog", "node": 0, "leave_free": "64 MiB"}
    fault = {"op": "fault", "task": "vcpu0", "length": "128 MiB"}
    dataset = run(host.name, guest={"memory": "128 MiB", "vcpus": [{"node": 0}]}, operations=[hog, fault])
    free, reserve = plots._free_bytes(dataset)
    mine = dataset["zone_node"].values == 0
    whole = float(dataset["zone_managed"].values[mine].sum() * 4096)
    kept = (dataset["zone_low"] + dataset["zone_lowmem_reserve"]).values[mine]
    assert (kept > dataset["zone_managed"].values[mine]).any()  # DMA is smaller than what it keeps
    assert reserve[0] < whole
    # Batches of the per-CPU lists are all that lies between.
    assert 0 <= free[-1, 0] - reserve[0] < 1 << 20


def test_node_list() -> None:
    assert format_list([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert format_list([]) == ""


def test_byte_unit() -> None:
    assert byte_unit(3 << 30) == (float(1 << 30), "GiB")
    assert format_bytes(1536 << 20) == "1.5 GiB"


def test_a_guest_that_was_killed() -> None:
    """Nothing is present: every figure says so and none divides by it."""
    guest = {"memory": "20 GiB", "vcpus": [{"node": 0}], "policies": [{"mode": "bind", "nodes": "0"}]}
    dataset = run("xeon-e5-2680-2s", guest=guest)
    assert int(dataset["pages_per_node"].sum()) == 0
    assert "absent: 20 GiB" in texts(plots.placement_map(dataset))
    assert "nothing present" in texts(plots.local_remote(dataset))
    assert "nothing present" in texts(plots.compare({"a": dataset}))
    bars = plots.pages_per_node(dataset)
    assert bars.axes[0].get_ylabel() == "memory (GiB)"
    drawn(bars)
    drawn(plots.fallback(dataset))
    assert plots.events(dataset)["errno"].iloc[-1] == "ENOMEM"


def test_placement_by_kernel() -> None:
    """One line for each kernel: colours where its pages lie, and the refused call where there are none."""
    scenario = Scenario.from_mapping(
        {
            "name": "test",
            "host": "epyc1-naples-2s",
            "guest": {"memory": "1 GiB", "vcpus": [{"node": 0}, {"node": 4}]},
            "operations": [
                {"op": "create", "flags": ["mmap", "init_shared"]},
                {"op": "mbind", "mode": "bind", "nodes": "2"},
                {"op": "fault", "by": "guest", "task": "vcpu0", "length": 1 << 29},
                {"op": "fault", "by": "guest", "task": "vcpu1", "offset": 1 << 29, "length": 1 << 29},
            ],
        }
    )
    kernels = ["6.12", "6.18", "7.3"]
    dataset = history(scenario, kernels)
    whole, half = (1 << 30) // 4096, (1 << 29) // 4096
    for kernel, expected in zip(kernels, ([], [(0, 0), (1, 4)], [(0, 2), (1, 2)]), strict=True):
        counts = results.node_counts(dataset.sel(kernel=kernel), "guest", [0, half, whole])
        assert [(part, node) for part, node in np.argwhere(counts == half)] == expected
    (axes,) = plots.placement_maps(dataset).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == kernels
    texts = [text.get_text() for text in axes.texts]
    assert "create: EINVAL (mapping and init_shared: not on 6.12; from 6.18 on)" in texts
    assert [text for text in texts if text.isdecimal()] == ["0", "4", "2"]
    with pytest.raises(WorkbenchError, match="no dimension 'design'"):
        plots.placement_maps(dataset, "design")


def test_a_result_by_kernel_survives_a_file(tmp_path: Path) -> None:
    dataset = history(Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": {"memory": "1 MiB"}}), ["6.12", "7.3"])
    for name in ("h.nc", "h.zarr"):
        results.save(dataset, tmp_path / name)
        back = results.load(tmp_path / name)
        assert back["page_node"].dtype == np.int8
        assert results.node_counts(back.sel(kernel="7.3"), "guest").sum() == 256
        assert results.node_counts(back.sel(kernel="6.12"), "guest").sum() == 0


def test_a_pdf_has_truetype_fonts_and_none_of_type_3() -> None:
    """As the how-to of a figure for a paper saves it: outside of any style."""
    host = Host.from_machine("epyc1-naples-2s")
    made = plots_topology.topology(plots_topology.host_dataset(host), title=host.title)
    made.savefig(buffer := io.BytesIO(), format="pdf")
    assert b"/Type3" not in buffer.getvalue() and b"/FontFile2" in buffer.getvalue()


def test_recordings_have_the_colours_of_their_host() -> None:
    """Pages of nodes 1 and 3 alone: each has its own colour and words that can be read on it, not the first two."""
    host = {"name": "four", "nodes": [{"id": n, "memory_bytes": "1 GiB", "cpus": [n]} for n in range(4)]}
    scenario = Scenario.from_mapping(
        {"name": "s", "host": {**host, "distances": [[10 + 10 * (i != j) for j in range(4)] for i in range(4)]}}
    )
    seen = xr.Dataset(
        {name: ("page", np.array([1, 3, -1], np.int16)) for name in ("recorded_node", "simulated_node")},
        attrs={"provenance": results.provenance(scenario)},
    )
    made = plots_recording.strips({"a": seen}, 3)
    assert [mcolors.to_hex(patch.get_facecolor()) for patch in made.legends[0].get_patches()][:2] == [
        palette.NODE_COLOURS[n] for n in (1, 3)
    ]
    assert [(text.get_text(), text.get_color()) for text in made.axes[0].texts[:2]] == [
        (str(node), plots_common.text_colour(palette.NODE_COLOURS[node])) for node in (1, 3)
    ]


def test_shares_of_mappings_are_of_files_not_of_their_names() -> None:
    """A second name of the file that a device maps halves no share."""
    page = [{"op": "create"}, {"op": "fallocate"}, {"op": "iommu_map"}]
    host = {"name": "h", "distances": [[10]], "nodes": [{"id": 0, "memory_bytes": 4 << 30, "cpus": "0"}]}
    guest: dict[str, Any] = {"memory": "8 MiB", "page_size": "2 MiB", "vcpus": [{"node": 0}]}

    def of(vm_type: str, *operations: dict[str, Any]) -> xr.Dataset:
        fields = {
            "host": host,
            "guest": guest | {"vm_type": vm_type, "design": "hugetlb"},
            "operations": [*page, *operations],
        }
        fields |= {"kernel_profile": "proposal-hugetlb", "metadata": "off"}
        return simulate(Scenario.from_mapping(fields), designs=["hugetlb", "hugetlb-hvo"])

    tdx = of("tdx")
    lines = [
        [line.get_ydata()[-1] for axes in plots_designs.mappings(made, tdx).axes for line in axes.get_lines()]
        for made in (of("none"), of("none", {"op": "alias", "file": "again", "of": "guest"}))
    ]
    assert lines[0] == lines[1] and lines[0][6:8] == [100.0, 100.0]

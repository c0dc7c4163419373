"""Profiles, classes, imports of Mess and MLC, and what the cost model refuses."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench import costs
from workbench.cost import calibrate, curves, kernel_times, measure, profile, traffic, translation, weights
from workbench.cost.machine import machine, parameters, sampled, with_figures
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.topology.host import Hardware, Host, Node

TWO = Host(
    name="two", distances=((10, 21), (21, 10)),
    nodes=tuple(Node(id=i, memory_bytes=1 << 36, cpus=tuple(range(16 * i, 16 * i + 16))) for i in range(2)),
)  # fmt: skip
FAMILIES = {
    "epyc-7742": "epyc-7742-8ch-ddr4-3200-local.csv",
    "xeon-8460y": "xeon-8460y-8ch-ddr5-local.csv",
    "grace": "grace-lpddr5-local.csv",
}


def rows_of(name):
    with datasets_path("profiles", name).open() as file:
        return [tuple(float(v) for v in row.values()) for row in csv.DictReader(file)]


# ------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", FAMILIES)
def test_measured_families_are_met_at_their_points(name):
    """Every measured point before the peak: latency within 3 % (grids of 5 % reads and 28 loads), peaks within 4 %."""
    family = profile.read_profile(name).memories[0].family()
    points = rows_of(FAMILIES[name])
    errors = []
    for share in sorted({row[0] for row in points}):
        mine = [(1000 * speed, ns) for percent, speed, ns in points if percent == share]
        peak = max(speed for speed, _ in mine)
        assert np.interp(share / 100, curves.MIXES, family.peaks) == pytest.approx(peak, rel=0.06)
        for speed, ns in mine:
            if 0 < speed < 0.9 * peak:
                errors.append(abs(family.latency(speed, share / 100) / ns - 1))
    assert np.median(errors) < 0.02 and np.quantile(errors, 0.95) < 0.06
    assert (np.diff(family.delays, axis=1) >= 0).all() and (family.delays[:, 0] == 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_import_of_the_three_families_and_back(name, tmp_path):
    """The CSV of Mess becomes a profile, the profile a file, the file the same profile, and a machine uses it."""
    made = calibrate.calibrate(datasets_path("profiles", FAMILIES[name]), name)
    profile.write_profile(made, tmp_path / "p.yaml")
    again = profile.read_profile(tmp_path / "p.yaml")
    assert again == made
    shipped = profile.read_profile(name).memories[0].family()
    family = again.memories[0].family()
    assert np.array_equal(family.peaks, shipped.peaks) and np.array_equal(family.delays, shipped.delays)
    where = machine(TWO, profile=str(tmp_path / "p.yaml"))
    assert where.measured.all() and where.bandwidth == pytest.approx([family.peaks[-1]] * 2)
    assert where.latency[0, 0] == pytest.approx(family.idle)


def test_files_of_mess_with_its_own_columns(tmp_path):
    """memory_curves.csv as the benchmark writes it: smoothed columns go before means, rows of full traffic first."""
    path = tmp_path / "memory_curves.csv"
    path.write_text(
        "pause,bandwidth_mean,latency_mean,bandwidth_smooth,latency_smooth,read_pct_rounded\n"
        "0,99,500,100,200,100\n50,49,130,50,120,100\n1000,0.9,101,1,100,100\n0,1,1,80,300,50\n1000,1,1,1,100,50\n"
        "7,1,1,1,100,60\n"
    )
    made = calibrate.calibrate(path)
    assert made.memories[0].curves[100.0] == ((1000.0, 100.0), (50_000.0, 120.0), (100_000.0, 200.0))
    family = made.memories[0].family()
    assert family.idle == 100 and family.peaks[-1] == 100_000 and family.peaks[10] == 80_000
    assert made.not_measured == ("one point only at 60 % reads",)


MLC = """Intel(R) Memory Latency Checker - v3.11
Measuring idle latencies for random access (in ns)...
\t\tNuma node
Numa node\t     0\t     1\t     2\t
       0\t  80.0\t 140.0\t 300.0
       1\t 141.0\t  81.0\t -

Measuring Peak Injection Memory Bandwidths for the system
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
ALL Reads        :\t200000.0
3:1 Reads-Writes :\t180000.0
2:1 Reads-Writes :\t176000.0
1:1 Reads-Writes :\t160000.0
Stream-triad like:\t150000.0

Measuring Memory Bandwidths between nodes within system
Using Read-only traffic type
\t\tNuma node
Numa node\t     0\t     1\t     2\t
       0\t102000.0\t45000.0\t20000.0
       1\t44000.0\t101000.0\t19000.0

Measuring Loaded Latencies for the system
Inject\tLatency\tBandwidth
Delay\t(ns)\tMB/sec
==========================
 00000\t250.00\t 200000.0
 00002\t251.00\t 200100.0
 00100\t160.00\t 190000.0
 00500\t100.00\t  90000.0
 20000\t 80.50\t   2000.0

Measuring cache-to-cache transfer latency (in ns)...
Local Socket L2->L2 HIT  latency\t55.5
"""


def test_text_of_mlc(tmp_path):
    path = tmp_path / "mlc.txt"
    path.write_text(MLC)
    made = calibrate.calibrate(path)
    by_node = {memory.nodes[0]: memory for memory in made.memories}
    assert [by_node[n].idle_latency for n in (0, 1, 2)] == [80, 81, 300]
    assert [by_node[n].bandwidth for n in (0, 1, 2)] == [102_000, 101_000, 20_000]
    assert by_node[2].kind == "cxl" and not by_node[2].peaks
    assert by_node[0].peaks[50.0] == pytest.approx(160_000 * 102 / 200)  # a node's part of both, at its own scale
    curve = by_node[0].curves[100.0]
    assert curve[0] == (1000.0, 80.5) and max(speed for speed, _ in curve) == 100_050.0
    links = {(link.initiator, link.target): link for link in made.links}
    assert links[0, 1].idle_latency == 140 and links[1, 0].bandwidth == 44_000
    assert (1, 2) in links and links[1, 2].idle_latency is None
    where = machine(
        Host(
            name="mlc", distances=((10, 21, 24), (21, 10, 34), (24, 34, 10)),
            nodes=(*TWO.nodes, Node(id=2, memory_bytes=1 << 36, kind="cxl")),
        ),
        profile=made,
    )  # fmt: skip
    assert where.latency[0].tolist() == [80, 140, 300] and where.link_bandwidth[1, 0] == 44_000
    assert where.bandwidth.tolist() == [102_000, 101_000, 20_000]
    half = len(curves.MIXES) // 2
    assert where.memory_shape[0, half] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "column for share of reads"),
        ("read_percent,bandwidth\n1,2\n", "column for latency"),
        ("read_percent,bandwidth,latency\n100,one,2\n", "line 2"),
        ("read_percent,bandwidth,latency\n100,1,2\n", "two points"),
        ("read_percent,bandwidth,latency\n100,1,nan\n100,2,3\n", "must be numbers"),
        ("read_percent,bandwidth,latency\n100,1,0\n100,2,3\n", "latencies above 0"),
        ("read_percent,bandwidth,latency\n120,1,100\n120,2,101\n", "120"),
        ("Intel(R) Memory Latency Checker - v3.11\nnothing\n", "no matrix"),
    ],
)
def test_files_that_are_neither(text, match, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=match) as caught:
        calibrate.calibrate(path)
    assert str(caught.value).startswith("x.csv: ") and str(caught.value).count("x.csv") == 1


def test_refusals_of_files_name_file_and_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nsource: y\nmemories:\n- kind: dram\n  idle_latency: -3\n")
    with pytest.raises(WorkbenchError, match=r"^x\.yaml: line 5: profile: memories\.0\.idle_latency"):
        profile.read_profile(path)
    path = tmp_path / "x.txt"
    path.write_text(
        "Intel(R) Memory Latency Checker - v3.11\nMeasuring Loaded Latencies for the system\n 00000 1.0 x\n"
    )
    with pytest.raises(WorkbenchError, match=r"^x\.txt: line 3: calibrate: loaded latencies"):
        calibrate.calibrate(path)


def test_calibrate_command(tmp_path):
    import typer

    from workbench.commands import machines

    app = typer.Typer()
    machines.register(app)
    path = tmp_path / "mlc.txt"
    path.write_text(MLC)
    shown = CliRunner().invoke(app, ["machines", "calibrate", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "dram of node 0: 80.0 ns idle" in shown.output and "node 0 -> 1: 140.0 ns idle; 45.0 GB/s" in shown.output
    assert profile.read_profile(tmp_path / "mlc.profile.yaml").source.startswith("Intel Memory Latency Checker")
    wrong = CliRunner().invoke(app, ["machines", "calibrate", str(path), "-o", str(tmp_path / "p.txt")])
    assert isinstance(wrong.exception, WorkbenchError) and "must end in .yaml" in str(wrong.exception)


# ------------------------------------------------------------------------------------------------- profiles


def test_shipped_profiles_can_be_read_and_say_who_measured():
    for name in profile.profile_names():
        found = profile.read_profile(name)
        assert found.name == name and len(found.source) > 10 and (found.memories or found.links)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"name": "x"}, "source"),
        ({"name": "x", "source": "y", "memorys": []}, "memorys"),
        ({"name": "x", "source": "y", "memories": [{"kind": "dram"}]}, "needs idle_latency"),
        ({"name": "x", "source": "y", "memories": [{"idle_latency": -3}]}, "idle_latency"),
        ({"name": "x", "source": "y", "memories": [{"bandwidth": float("nan")}]}, "bandwidth"),
        ({"name": "x", "source": "y", "memories": [{"curves": {100: [[1, 2]]}}]}, "two points"),
        ({"name": "x", "source": "y", "links": [{"bandwidth": 3.0}]}, "distance"),
        ({"name": "x", "source": "y", "cores": {"group": 4}}, "group_peaks"),
        ({"name": "x", "source": "y", "costs": {"dram_latnecy": 3.0}}, "dram_latnecy"),
        (["x"], "no mapping"),
    ],
)
def test_bad_profiles_are_one_line_that_names_the_field(document, match):
    with pytest.raises(WorkbenchError, match=match) as error:
        profile.from_mapping(document)
    assert "\n" not in str(error.value)


def test_profiles_are_found_by_name_file_and_host(tmp_path):
    assert machine(TWO, profile="epyc-7742").latency[0, 0] == pytest.approx(120.1, abs=0.5)
    with pytest.raises(WorkbenchError, match="is not known, nor is it a file"):
        machine(TWO, profile="nonsense")
    with pytest.raises(WorkbenchError, match="does not exist"):
        machine(TWO, profile=str(tmp_path / "none.yaml"))
    named = profile.with_profile(TWO, "grace")
    assert machine(named).latency[0, 0] == pytest.approx(176.5, abs=0.5)
    assert machine(Host.from_machine("epyc1-naples-2s")).bandwidth[0] == 42_750


# -------------------------------------------------------------------------------------------------- classes


def test_classes_state_ranges_that_hold_their_value_and_are_honest_about_their_source():
    for found in profile.classes().values():
        for cost in found.costs.values():
            assert cost.low <= cost.value <= cost.high, cost
            assert len(cost.source) > len(found.title) + 5
            # 5 to 95 % of draws that are uniform in the logarithm: no wider than a factor of 2.6
            assert (cost.high / cost.low) ** 0.9 <= 2.6, cost


def test_what_is_known_of_a_host_narrows_its_class():
    """Twelve channels of 4800 MT/s in a socket of one node, eight of 5600 in a socket of two."""
    base = {"generation": "genoa"}
    whole = parameters(TWO.model_copy(update={"hardware": Hardware(**base)}))["dram_bandwidth"]
    assert whole.value == pytest.approx(12 * 4800 * 8 * 0.79)
    halves = Host(
        name="snc", distances=((10, 12), (12, 10)), nodes=TWO.nodes, hardware={**base, "channels": 8, "mts": 5600}
    )
    assert parameters(halves)["dram_bandwidth"].value == pytest.approx(8 * 5600 * 8 * 0.79 / 2)
    with pytest.raises(WorkbenchError, match="zen9"):
        profile.class_of("zen9")


@pytest.mark.parametrize(
    ("name", "figures", "local", "remote", "gbps"),
    [
        # what others measured on machines of the class, none of it read into the class's values here
        ("skylake", {}, 81.3, 131.1, 108.4),
        ("cascadelake", {}, 77.9, 143.2, 113.1),
        ("haswell", {"mts": 1866}, 93.5, 133.8, 49.0),
        ("sapphire-rapids", {}, 110.7, None, 267.0),
        ("genoa", {}, 113.0, 200.7, 354.5),
        ("rome", {}, 120.1, None, 142.0),
        ("graviton3", {}, 98.1, None, 283.2),
        ("grace", {}, 176.6, None, 442.1),
    ],
)
def test_class_defaults_hold_what_was_measured(name, figures, local, remote, gbps):
    where = TWO.model_copy(update={"hardware": Hardware(generation=name, **figures)})
    machines, _ = sampled(where, 200, seed=1)
    value = machines[0]
    latencies, speeds = machines.latency[1:, 0], machines.bandwidth[1:, 0] / 1000
    for drawn, middle, published in (
        (latencies[:, 0], value.latency[0, 0], local), (latencies[:, 1], value.latency[0, 1], remote),
        (speeds, value.bandwidth[0] / 1000, gbps),
    ):  # fmt: skip
        if published is None:
            continue
        low, high = np.quantile(drawn, (0.05, 0.95))
        assert low <= published <= high, (low, published, high)
        assert high / low <= 2.5
        assert middle == pytest.approx(published, rel=0.25)


# --------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"dram_latnecy": 99}, "dram_latnecy.*did you mean 'dram_latency'"),
        ({"dram_latency": float("nan")}, "dram_latency"),
        ({"dram_bandwidth": -1.0}, "dram_bandwidth"),
        ({"dram_bandwidth": 0}, "dram_bandwidth"),
        ({"cxl_latency": float("inf")}, "cxl_latency"),
        ({"cxl_latency": "fast"}, "cxl_latency"),
    ],
)
def test_wrong_parameters_are_refused_wherever_they_are_given(wrong, match):
    where = machine(TWO)
    for call in (
        lambda: machine(TWO, wrong),
        lambda: sampled(TWO, 3, costs=wrong),
        lambda: traffic.streams(where, np.array([1.0, 0.0]), {0: 1}, costs=wrong),
        lambda: weights.best_weights(TWO, costs=wrong),
    ):
        with pytest.raises(WorkbenchError, match=match):
            call()


def test_wrong_streams_and_figures_are_refused():
    where = machine(TWO)
    one = np.array([1.0, 0.0])
    for shares, vcpus, more, match in (
        (one, {}, {}, "no node runs"),
        (one, {0: -1}, {}, "counts are above 0"),
        (one, {0: float("nan")}, {}, "counts are above 0"),
        (one, {7: 1}, {}, "node: 7"),
        (np.array([1.0]), {0: 1}, {}, "1 values for 2 nodes"),
        (np.array([np.nan, 1.0]), {0: 1}, {}, "shares"),
        (np.array([-1.0, 2.0]), {0: 1}, {}, "shares"),
        (one, {0: 1}, {"extra_latency": -1000.0}, "extra_latency"),
        (one, {0: 1}, {"extra_latency": float("nan")}, "extra_latency"),
        (one, {0: 1}, {"walks": np.array([-1.0, 0.0])}, "walks"),
    ):
        with pytest.raises(WorkbenchError, match=match):
            traffic.streams(where, shares, vcpus, **more)
    for figures in (
        {"bandwidth": {0: 0.0}},
        {"bandwidth": {0: float("nan")}},
        {"latency": {0: 0.0}},
        {"latency": {1: -5}},
    ):
        with pytest.raises(WorkbenchError, match=next(iter(figures))):
            with_figures(where, **figures)
    with pytest.raises(WorkbenchError, match="node: 9"):
        weights.best_weights(TWO, nodes=[9])
    with pytest.raises(WorkbenchError, match="nodes"):
        weights.best_weights(TWO, nodes=[])


def test_what_does_not_converge_is_no_number(monkeypatch):
    where = machine(TWO)
    demand = traffic.streams(where, np.array([0.5, 0.5]), {0: 16, 1: 16})
    monkeypatch.setattr(traffic, "MAX_ITERATIONS", 2)
    for many in (1, 100):  # a line, however many streams there are
        with pytest.raises(WorkbenchError, match=r"no fixed point.{,240}$"):
            traffic.solve(where, traffic.together([demand] * many))
    marked = traffic.solve(where, demand, unsolved="nan")
    assert (marked.iterations == -1).all() and np.isnan(marked.bandwidth).all() and np.isnan(marked.node_used).all()


def test_a_draw_holds_only_within_its_block():
    assert costs.value("dram_latency") == costs.COSTS["dram_latency"].value
    with costs.drawn({"dram_latency": 77.0}):
        assert costs.value("dram_latency") == 77.0 == machine(TWO).latency[0, 0]
        assert costs.value("dram_latency", {"dram_latency": 88.0}) == 88.0
    assert costs.value("dram_latency") != 77.0
    with pytest.raises(WorkbenchError, match="nonsense"), costs.drawn({"nonsense": 1.0}):
        pass


ONE = np.array([1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: machine(TWO, [1]), r"costs: \[1\] is no mapping"),
        (lambda: traffic.streams(machine(TWO), ONE, {0: 1}, extra_latency="5"), "extra_latency: '5' ns; numbers from 0"),
        (lambda: traffic.streams(machine(TWO), ONE, {0: "4"}), "vcpus: '4' vCPUs on node 0; counts are above 0"),
        (lambda: traffic.streams(machine(TWO), ONE, [0, 1]), r"vcpus: \[0, 1\] is no mapping"),
        (lambda: traffic.streams(machine(TWO), ["a", "b"], {0: 1}), "shares: .* are no numbers"),
        (lambda: traffic.streams(machine(TWO), [[[1, 0]]], {0: 1}), "shares: 3 dimensions of values"),
        (lambda: traffic.streams(machine(TWO), [5, 5], {0: 1}), "shares: a row sums to 10; shares of all nodes sum to 1"),
        (lambda: traffic.streams(machine(TWO), ONE, {0: 1}, walks=[[1, 0], [0, 1]]), "walks: 2 rows for 1 placements"),
        (lambda: traffic.streams(machine(TWO), ONE, {0: 1}, 5), "access: 5 is neither the name of a pattern"),
        (lambda: traffic.streams(machine(TWO), ONE, {0: 1}, ""), "access.pattern: '' is not one of"),
        (lambda: traffic.access_pattern({"write_fraction": float("nan")}), "access.write_fraction: .*less than or equal to 1"),
        (lambda: with_figures(machine(TWO), {0: "5"}), "bandwidth: '5' MB/s of node 0"),
        (lambda: with_figures(machine(TWO), None, {0: True}), "latency: True ns of node 0"),
        (lambda: weights.best_weights(TWO, nodes=[0, 0]), r"nodes: \[0, 0\] names a node twice"),
        (lambda: weights.best_weights(TWO, samples=2.5), "samples: 2.5; whole numbers from 1 on"),
        (lambda: weights.best_weights(TWO, seed="a"), "seed: 'a'; whole numbers from 0 on"),
        (lambda: sampled(TWO, True), "samples: True"),
        (lambda: kernel_times.kernel_times(TWO, 1 << 34, threads=2.5), "threads: 2.5; whole numbers from 1 on"),
        (lambda: kernel_times.kernel_times(TWO, "1GiB"), "size: '1GiB'; whole numbers"),
        (lambda: translation.walk_cost([]), r"mapped: \[\] is no mapping"),
        (lambda: translation.walk_cost({"4 KiB": "x"}), "mapped: 'x' bytes of 4 KiB"),
        (lambda: translation.walk_cost({"4 KiB": 1}, exponent=float("inf")), "exponent: inf; numbers from 0 on"),
        (lambda: translation.walk_cost({"4 KiB": 1}, local_share="x"), "local_share: 'x' is not between 0 and 1"),
        (lambda: translation.walk_references(3), "top_levels: 3 is not 4 or 5"),
        (lambda: translation.split_loss(1 << 34, 1.5), "split_blocks: 1.5"),
        (lambda: translation.table_walks(translation.walk_cost({"4 KiB": 1 << 34}), [-1, 2], [1, 0]), "guest_tables"),
        (lambda: curves.family({50: [("a", 1), (2, 2)]}), "curves at 50 % reads: .* are no points"),
        (lambda: curves.family({"50": [(1, 1), (2, 2)]}), "a share of reads is 0 to 100"),
        (lambda: curves.family({50: [(1, 100), (2, 50), (3, 20)]}), "100 ns without load and 20 under it; latency grows"),
        (lambda: curves.family({50: [(3, 100), (2, 150)]}), "begins with its highest bandwidth"),
    ],
)  # fmt: skip
def test_what_is_no_number_or_no_node_is_one_line(call, says):
    """Texts, truth values, lists and fractions of a thread, at every entry: one line that names the field and the value."""
    with pytest.raises(WorkbenchError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"memories": [{"bandwidth": 5, "nodes": []}]}, "memories.0: nodes: none"),
        ({"memories": [{"bandwidth": 5, "nodes": "0,0"}]}, "memories.0: nodes: 0, 0 names a node twice"),
        ({"memories": [{"bandwidth": 5, "nodes": [-1]}]}, "memories.0: nodes: -1 is no node"),
        ({"memories": [{"bandwidth": 5}, {"bandwidth": 6}]}, "memories.1: all dram nodes is described twice"),
        ({"memories": [{"bandwidth": True}]}, "memories.0.bandwidth: must be a number, not true"),
        ({"memories": [{"bandwidth": 5, "spread": 50}]}, "memories.0.spread: .*less than or equal to 1"),
        ({"memories": [{"curves": {50: [[1, 1]]}}]}, "memories.0: curves at 50 % reads"),
        ({"links": [{"bandwidth": 5, "initiator": 0, "target": 0}]}, "links.0: target: 0 is the initiator"),
        ({"links": [{"bandwidth": 5, "distance": 20}, {"bandwidth": 6, "distance": 20}]}, "links.1: distance 20 .* twice"),
        ({"cores": {"by_threads": {0: 5}}}, "cores.by_threads.0"),
        ({"first_touch": {"5 KiB": 4}}, "first_touch.5 KiB"),
        ({"memories": [{"bandwidth": 5, "nodes": [99]}]}, r"p: memories.0.nodes: 99 is not a node of this host \(0, 1\)"),
        ({"links": [{"bandwidth": 5, "initiator": 7, "target": 0}]}, "p: links.0.initiator: 7 is not a node of this host"),
    ],
)  # fmt: skip
def test_a_profile_says_everything_once_and_of_nodes_that_are_there(fields, says):
    with pytest.raises(WorkbenchError, match=says):
        machine(TWO, profile=profile.from_mapping({"name": "p", "source": "s", **fields}))


@pytest.mark.parametrize(
    ("hardware", "nominal", "width"),
    [
        ({"channels": 8, "mts": 4800}, 307_200, 1.6),
        ({"channels": 4, "mts": 1600}, 51_200, 2.5),
        ({"mts": 4800}, 376_241, 2.5),  # 8 to 12 channels: sqrt(8 * 12) of them
        ({"channels": 12}, 532_086, 2.5),  # 4800 to 6400 MT/s
    ],
)
def test_channels_and_speed_are_enough_to_narrow_memory(hardware, nominal, width):
    """Bandwidth is channels times MT/s times 8 bytes times the part that classes with such memory use; no generation given."""
    host = TWO.model_copy(update={"hardware": Hardware(**hardware)})
    found = parameters(host)
    speed, late, used = (found[name] for name in ("dram_bandwidth", "dram_latency", "channel_efficiency"))
    assert speed.value == pytest.approx(nominal * used.value, rel=1e-5)
    assert speed.high / speed.low < width and late.high / late.low < 2.5
    for known in profile.classes().values():  # what the memory of a class may be lies within what its kind may be
        if known.mts and not known.buffered:
            kind = profile.class_of_memory(None, known.mts)
            assert (
                kind.costs["dram_latency"].low <= known.costs["dram_latency"].value <= kind.costs["dram_latency"].high
            )
    assert "estimate for dram nodes from class" in machine(host).source


def test_ranges_of_every_class_are_narrow_enough():
    """At most a factor of 2.5, and around the value."""
    for name, known in profile.classes().items():
        for cost in known.parameters(2, 2).values():
            if cost.name in ("dram_latency", "dram_bandwidth", "remote_latency_ratio"):
                assert cost.low < cost.value < cost.high <= 2.5 * cost.low, (name, cost)


def test_given_figures_are_drawn_and_estimates_by_their_own_range():
    """A figure of a profile varies within its spread where it states one, by 5 % otherwise; sample 0 is the figure itself."""
    fields = {"name": "p", "source": "s", "memories": [
        {"nodes": [0], "idle_latency": 100.0, "bandwidth": 2e5, "spread": 0.01}, {"nodes": [1], "idle_latency": 100.0},
    ]}  # fmt: skip
    machines, _ = sampled(TWO, 65, profile=profile.from_mapping(fields))
    latency = np.array([[one.latency[0, 0], one.latency[1, 1]] for one in machines])
    speed = np.array([one.bandwidth for one in machines])
    assert latency[0].tolist() == [100.0, 100.0] and speed[0, 0] == 2e5
    assert 1.03 < latency[:, 0].max() / latency[:, 0].min() < 1.02**2 + 1e-9  # twice 1 % to both sides
    assert 1.08 < latency[:, 1].max() / latency[:, 1].min() < 1.05**2 + 1e-9
    assert 1.08 < speed[:, 0].max() / speed[:, 0].min() < 1.05**2 + 1e-9
    assert speed[:, 1].max() / speed[:, 1].min() > 10  # nobody says what the other node has
    alone, _ = sampled(machines[0], 9)
    assert alone[0].bandwidth.tolist() == machines[0].bandwidth.tolist()
    assert np.ptp([one.bandwidth[0] for one in alone]) > 0
    drawn = weights.best_weights(machines[0], vcpus={0: 4}, samples=5)
    assert drawn["bandwidth"].dims[0] == "sample" and np.ptp(drawn["bandwidth"].values, axis=0).max() > 0


MATRIX = "Intel(R) Memory Latency Checker - v3.11\nMeasuring idle latencies (in ns)...\n{}\n"


@pytest.mark.parametrize(
    "printed",
    [
        "\t\tNuma node\nNuma node\t     0\t     1\t\n       0\t  82.1\t 141.0\t\n       1\t 141.5\t  81.5\t",
        "\tMemory node\nSocket\t     0\t     1\t\n     0\t    82.1\t141.0\t\n     1\t    141.5\t81.5",  # version 3.5
        "\n      Numa node\n\nNuma node   0       1\n\n   0     82.1  141.0\n\n   1     141.5 81.5\n",  # a serial console
        "> \t\tNuma node\n> Numa node\t     0\t     1\t\n>        0\t  82.1\t 141.0\t\n>        1\t 141.5\t  81.5\t",
    ],
)
def test_matrices_of_mlc_are_read_as_people_have_them(printed, tmp_path):
    path = tmp_path / "mlc.txt"
    path.write_text(MATRIX.format(printed))
    made = calibrate.calibrate(path)
    assert [(memory.kind, memory.nodes, memory.idle_latency) for memory in made.memories] == [
        ("dram", (0,), 82.1), ("dram", (1,), 81.5),
    ]  # fmt: skip
    assert [(link.initiator, link.target, link.idle_latency) for link in made.links] == [(0, 1, 141.0), (1, 0, 141.5)]


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        (
            "Numa node 0 1\n0 -5 141.0\n1 141.5 81.5",
            "line 4: calibrate: '-5' from node 0 to node 0 is no number above 0",
        ),
        ("Numa node 0 1\n0 82.1 nan\n1 141.5 81.5", "line 4: calibrate: 'nan' from node 0 to node 1"),
        ("Numa node 0 0\n0 82.1 141.0", "line 3: calibrate: 'Numa node 0 0' names a node twice"),
        ("Numa node 0 1\n0 82.1 141.0\n0 141.5 81.5", "line 5: calibrate: '0 141.5 81.5' is no row for 2 nodes"),
        ("Numa node 0 1\n0 82.1 141.0 99", "line 4: calibrate: '0 82.1 141.0 99' is no row for 2 nodes"),
        ("Numa node 0 1\n0 82.1\n1 141.5 81.5", "line 4: calibrate: '0 82.1' is no row for 2 nodes"),
    ],
)
def test_a_matrix_with_holes_is_no_other_machine(printed, says, tmp_path):
    """A cell that is no number used to be left out, and its node became memory without CPUs."""
    path = tmp_path / "mlc.txt"
    path.write_text(MATRIX.format(printed))
    with pytest.raises(WorkbenchError, match=f"mlc.txt: {says}"):
        calibrate.calibrate(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Measuring Peak Injection Memory Bandwidths for the system\nALL Reads : 160000.0000.0",
         "line 3: calibrate: '160000.0000.0' is no number"),
        ("Each iteration took 200.1 core clocks (\t1.2.3\tns)", "line 2: calibrate: '1.2.3' is no number"),
    ],
)  # fmt: skip
def test_digits_and_points_that_are_no_number_are_named(line, says, tmp_path):
    path = tmp_path / "mlc.txt"
    path.write_text(f"Intel(R) Memory Latency Checker - v3.11\n{line}\n")
    with pytest.raises(WorkbenchError, match=f"mlc.txt: {says}"):
        calibrate.calibrate(path)


def test_shares_of_reads_may_be_parts_and_files_may_begin_with_a_mark(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(
        "\ufeffread_ratio,bandwidth,latency\n0.5,1,100\n0.5,20,150\n1.0,1,100\n1.0,30,140\n", encoding="utf-8"
    )
    made = calibrate.calibrate(path)
    assert made.memories[0].family().measured == (0.5, 1.0)
    path.write_text("read_ratio,bandwidth,latency\n50,1,100\n50,20,0\n")
    with pytest.raises(WorkbenchError, match=r"m\.csv: line 3: calibrate: 20 GB/s at 0 ns"):
        calibrate.calibrate(path)


def test_curves_that_end_below_the_bandwidth_keep_their_latencies():
    """A machine of two CPUs: one chases, the other loads 4 GB/s, and both pull 16. At 4 GB/s latency is as measured there."""
    points = [(0.0, 100.0), (2000.0, 110.0), (4000.0, 140.0)]
    short = {"name": "p", "source": "s", "memories": [{"curves": {100: points}, "bandwidth": 16_000.0}]}
    family = profile.from_mapping(short).memories[0].family()
    assert family.peaks[-1] == 16_000.0 and family.idle == 100.0
    assert [family.latency(speed, 1.0) for speed in (2000.0, 4000.0, 15_000.0)] == pytest.approx(
        [110, 140, 140], rel=0.02
    )
    where = machine(TWO, profile=profile.from_mapping(short))
    assert where.bandwidth.tolist() == [16_000.0, 16_000.0]
    alone = traffic.streams(where, ONE, {0: 1}, {"demand_mbps": 2000.0})
    assert traffic.solve(where, alone).latency[0, 0] == pytest.approx(110.0, rel=0.02)


def test_what_all_threads_pull_is_the_bandwidth_of_their_node():
    report = measure.NotMeasured()
    memories = [{"nodes": [0], "curves": {100.0: [(0.0, 100.0), (4000.0, 140.0)]}}, {"nodes": [1], "bandwidth": 5.0}]
    measure._beyond_the_curves(memories, 0, {"by_threads": {1: 8000.0, 2: 16_000.0}}, report)
    assert [memory.get("bandwidth") for memory in memories] == [16_000.0, 5.0]
    assert report.missing == [
        "node 0: the curves end at 4.0 GB/s of 16.0: too few CPUs load the memory while one of them chases"
    ]
    measure._beyond_the_curves(memories, 0, {}, report)
    assert len(report.missing) == 1


@pytest.mark.parametrize("damage", ["1" * 200_000, "1\r2"])
def test_a_damaged_csv_is_one_line(damage, tmp_path):
    """A field beyond the csv module's limit, a line break it does not know."""
    path = tmp_path / "m.csv"
    path.write_text(f"read_percent,bandwidth_gb_per_s,latency_ns\n100,{damage},3\n", newline="")
    for call in (calibrate.calibrate, profile.read_curves):
        with pytest.raises(WorkbenchError, match=r"m\.csv"):
            call(path)


def test_the_first_draw_is_the_machine_as_its_profile_has_it():
    """Cores and parameters that a profile states are the first draw's, and the others lie around them."""
    given = profile.from_mapping({
        "name": "p", "source": "s", "cores": {"lines_streaming": 50.0, "lines_random": 7.0}, "costs": {"dram_latency": 150.0},
    })  # fmt: skip
    plain = machine(TWO, profile=given)
    machines, chosen = sampled(TWO, 17, profile=given)
    for name in ("bandwidth", "latency", "link_bandwidth", "lines_streaming", "lines_random", "queue"):
        assert np.array_equal(getattr(machines[0], name), getattr(plain, name)), name
    assert {values["lines_streaming"] for values in chosen} == {50.0}
    drawn = np.array([values["dram_latency"] for values in chosen])
    assert drawn[0] == 150.0 and 142 < drawn.min() < 147 < 153 < drawn.max() < 158


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"memories": 3}, r"memories: "),
        ({"memories": None}, r"memories: "),
        ({"memories": [{"nodes": [True], "idle_latency": 90}]}, r"memories\.0\.nodes\.0: must be a number, not true"),
        ({"links": [{"initiator": True, "target": 0, "bandwidth": 9}]}, r"links\.0\.initiator: must be a number"),
        ({"cores": {"threads": True}}, r"cores\.threads: must be a number, not true"),
        ({"cores": {"threads": 2.0, "lines_random": 9}}, r"cores\.threads: must be a whole number, not 2\.0$"),
        (
            {"memories": [{"nodes": ["0"], "idle_latency": 9}]},
            r"memories\.0\.nodes\.0: must be a number, not the text '0'$",
        ),
        ({"memories": [{"idle_latency": "90"}]}, r"memories\.0\.idle_latency: must be a number, not the text '90'$"),
        (
            {"memories": [{"curves": {100: [[1, True], [2, 3]]}}]},
            r"memories\.0\.curves\.100\.0\.1: must be a number, not true$",
        ),
        ({"cores": {"by_threads": {True: 9}}}, r"cores\.by_threads.*: must be a number, not true$"),
        ({"links": [{"distance": True, "bandwidth": 9}]}, r"links\.0\.distance: must be a number, not true"),
        ({}, "describes nothing; it needs one of memories, links"),
        ({"note": "n", "not_measured": ["all"]}, "describes nothing; it needs one of memories, links"),
        ({"cores": {}}, "cores: says nothing; it needs one of lines_streaming"),
        (
            {"queue_lines": 9, "machines": ["epyc5"]},
            "machines: 'epyc5' is unknown; did you mean 'epyc5-.* there are altix-",
        ),
        ({"queue_lines": 9, "machines": ["gh200-x4", "gh200-x4"]}, "machines: gh200-x4 is named twice"),
    ],
)
def test_fields_of_another_kind_are_refused_by_name(fields, match):
    with pytest.raises(WorkbenchError, match=match):
        profile.from_mapping({"name": "p", "source": "s", **fields})

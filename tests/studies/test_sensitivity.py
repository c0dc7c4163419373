"""Sensitivity: indices of a function whose indices are known, and the cost of a placement over the registry's ranges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import workbench as wb
from workbench.cost import machine, traffic
from workbench.cost.traffic import PATTERNS, access_cost
from workbench.costs import COSTS
from workbench.errors import WorkbenchError
from workbench.plots import sweep as plots_sweep
from workbench.studies import sensitivity as studies
from workbench.studies.sensitivity import sensitivity, sobol
from workbench.topology.host import Host


def test_indices_of_the_ishigami_function():
    def ishigami(unit):
        x = np.pi * (2 * unit.T - 1)
        return np.array([np.sin(x[0]) + 7 * np.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * np.sin(x[0])]).T

    first, total = sobol(ishigami, 3, 4096)
    # Ishigami and Homma 1990, a = 7, b = 0.1
    np.testing.assert_allclose(first[0], [0.3139, 0.4424, 0.0], atol=0.05)
    np.testing.assert_allclose(total[0], [0.5576, 0.4424, 0.2437], atol=0.05)


def test_a_function_that_does_not_vary_has_no_indices():
    first, total = sobol(lambda unit: np.full((len(unit), 1), 3.0), 2, 8)
    assert np.isnan(first).all()
    assert np.isnan(total).all()


@pytest.fixture(scope="module")
def scenario():
    return wb.Scenario.from_mapping(
        {
            "host": "spr-8468v-cxl",
            "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}] * 8},
            "operations": [
                {"op": "create"}, {"op": "mmap"}, {"op": "mbind", "mode": "bind", "nodes": "0"}, {"op": "first_touch"},
            ],
        }
    )  # fmt: skip


def test_memory_that_is_not_used_does_not_matter(scenario):
    names = ["cxl_latency", "dram_bandwidth", "dram_latency"]
    found = sensitivity(scenario, ["idle_latency", "latency"], names, samples=64)
    ends = found["one_at_a_time"].sel(output="idle_latency")
    moves = np.ptp(ends.values, axis=1)
    by_name = dict(zip(found["parameter"].values, moves, strict=True))
    assert by_name["dram_latency"] == pytest.approx(COSTS["dram_latency"].high - COSTS["dram_latency"].low)
    assert by_name["cxl_latency"] == 0
    assert found["parameter"].values[0] == "dram_latency"
    total = found["total"].sel(output="idle_latency", parameter="dram_latency")
    assert float(total) == pytest.approx(1.0, abs=0.35)
    assert found["total"].attrs["basis"] == "modelled"
    assert {"low", "high"} == set(found["end"].values)
    again = sensitivity(scenario, ["idle_latency", "latency"], names, samples=64)
    assert found.drop_attrs().equals(again.drop_attrs())


def test_a_model_and_ranges_of_ones_own(scenario):
    found = sensitivity(
        scenario, ["area"], {"a": (1.0, 4.0), "b": (2.0, 2.0)}, samples=64, model=lambda v: {"area": v["a"] * v["b"]}
    )
    assert float(found["base"].item()) == 4.0
    np.testing.assert_array_equal(found["one_at_a_time"].sel(parameter="a").values[0], [2.0, 8.0])
    assert float(found["total"].sel(parameter="b").item()) == 0.0


def test_parameters_vary_uniformly_in_the_logarithm(scenario):
    """ln a + ln b, a over six decades and b over one: variances 36 to 1, so indices 36/37 and 1/37.

    Drawn evenly between the ends instead, most of a is of the last decade, and the first index would be about 3/4.
    """

    def model(values):
        return {"sum": np.log(values["a"]) + np.log(values["b"])}

    found = sensitivity(scenario, ["sum"], {"a": (1.0, 1e6), "b": (1.0, 10.0)}, samples=4096, model=model)
    first = found["first_order"].sel(output="sum")
    assert float(first.sel(parameter="a")) == pytest.approx(36 / 37, abs=0.03)
    assert float(first.sel(parameter="b")) == pytest.approx(1 / 37, abs=0.03)


def test_refusals(scenario):
    for arguments, says in [
        ({"outputs": ["speed"]}, "'speed' is unknown; known are latency"),
        ({"parameters": ["dram_latncy"]}, "'dram_latncy' is unknown"),
        ({"parameters": {"dram_latency": (2.0, 1.0)}}, "is not"),
        ({"parameters": []}, "needs names"),
        ({"samples": -1}, "samples"),
        ({"outputs": ["y"], "model": lambda values: {"x": 1.0}}, "has no 'y'"),
    ]:
        with pytest.raises(WorkbenchError, match=says):
            sensitivity(scenario, **{"samples": 0, **arguments})


def test_the_tornado_shows_what_matters_strongest_on_top(scenario):
    found = sensitivity(scenario, ["idle_latency"], samples=2)
    made = plots_sweep.tornado(found, "idle_latency")
    bars, shares = made.axes
    assert bars.get_yticklabels()[0].get_text() == "dram_latency"
    assert "cxl_latency" not in [label.get_text() for label in bars.get_yticklabels()]
    assert bars.get_xlabel() == "idle_latency [ns]"
    assert shares.get_xlabel() == "share of the variance"
    with pytest.raises(WorkbenchError, match="no output"):
        plots_sweep.tornado(found, "bandwidth")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["spr-8468v-cxl", "epyc1-naples-2s", "xeon-e5-2680-2s"])
def test_choices_solved_at_once_cost_what_access_cost_says_of_each(name, pattern):
    """One after the other, changed in one parameter only, and all again: what is solved once for several is the same."""
    host = Host.from_machine(name)
    rng = np.random.default_rng([len(name), PATTERNS.index(pattern)])
    ids = [node.id for node in host.nodes]
    nodes = ",".join(map(str, sorted(rng.choice(ids, rng.integers(1, len(ids) + 1), replace=False))))
    cpus = [node.id for node in host.nodes if node.cpus]
    scenario = wb.Scenario.from_mapping(
        {
            "host": host,
            "guest": {"memory": "64 MiB", "vcpus": [{"node": int(rng.choice(cpus))} for _ in range(int(rng.integers(1, 9)))]},
            "operations": [
                {"op": "create"}, {"op": "mmap"}, {"op": "mbind", "mode": "interleave", "nodes": nodes}, {"op": "first_touch"},
            ],
        }
    )  # fmt: skip
    access = {"pattern": pattern, "write_fraction": float(rng.choice([0.0, 0.3]))}
    low, high = (np.array([getattr(COSTS[n], end) for n in machine.SAMPLED]) for end in ("low", "high"))
    a, b = low * (high / low) ** rng.random((2, 3, len(low)))
    rows = [*a, *(np.where(np.arange(len(low)) == at, b[0], a[0]) for at in range(len(low))), *a]
    read: set[str] = set()
    columns = dict(zip(machine.SAMPLED, np.ascontiguousarray(np.array(rows).T), strict=True))
    priced = studies._AccessModel(scenario, access)
    at_once, placed = priced.rows(columns, len(rows), read), wb.simulate(scenario)
    for k, row in enumerate(rows):
        values = dict(zip(machine.SAMPLED, row.tolist(), strict=True))
        one = access_cost(placed, host, access, costs=values, samples=1)
        for output, (_, _, how) in studies.OUTPUTS.items():
            assert at_once[output][k] == getattr(np, how)(one[output].values), (output, k)
    changed = [any(at_once[o][3 + at] != at_once[o][0] for o in studies.OUTPUTS) for at in range(len(low))]
    assert {n for n, moves in zip(machine.SAMPLED, changed, strict=True) if moves} <= read
    assert len(priced._kept) <= 3 + len(read)


ALWAYS = {"dram_latency", "dram_bandwidth", "queue_factor", "lines_streaming"}


@pytest.mark.parametrize(
    ("nodes", "write_fraction", "more"),
    [
        ("0", 0.0, set()),
        ("0", 0.25, {"mixed_bandwidth"}),
        ("0,1", 0.0, {"remote_latency_ratio", "remote_bandwidth_ratio", "link_ports"}),
        (
            "0,1",
            0.25,
            {"remote_latency_ratio", "remote_bandwidth_ratio", "link_ports", "mixed_bandwidth", "link_duplex"},
        ),
    ],
)
def test_what_nobody_meets_is_not_solved_again(scenario, nodes, write_fraction, more):
    """Of their own node vCPUs meet latency, bandwidth and queue; of another's the way there; who writes meets mixes too."""
    names = machine.SAMPLED
    value = np.array([COSTS[name].value for name in names])
    rows = value * np.where(np.eye(len(names), dtype=bool), 1.01, 1.0)
    operations = [
        {"op": "create"},
        {"op": "mmap"},
        {"op": "mbind", "mode": "interleave", "nodes": nodes},
        {"op": "first_touch"},
    ]
    placed = scenario.replace(operations=operations)
    priced = studies._AccessModel(placed, {"pattern": "streaming", "write_fraction": write_fraction})
    priced(dict(zip(names, value.tolist(), strict=True)))
    met = set()
    for name, row in zip(names, rows.tolist(), strict=True):
        before = len(priced._kept)
        priced(dict(zip(names, row, strict=True)))
        met |= {name} if len(priced._kept) > before else set()
    assert met == ALWAYS | more


def test_where_no_page_is_choices_solved_at_once_are_those_one_by_one(scenario):
    empty = scenario.replace(operations=[{"op": "create"}])
    values = {"dram_latency": np.array([70.0, 70.0, 100.0])}
    for pattern, more in (("streaming", {}), ("zipf", {"cache_bytes": np.array([2e7, 0.0, 2e7])})):
        found = studies._AccessModel(empty, pattern).rows(values | more, 3, set())
        np.testing.assert_array_equal(found["idle_latency"], [70.0, 70.0, 100.0])
        assert not found["bandwidth"].any()


@pytest.mark.parametrize("part", [{}, {"offset": 5 << 20, "length": 33 << 20}, {"offset": 1 << 40}])
def test_shares_beside_many_caches_are_those_beside_each(part):
    """Cut where a bucket begins, within one, twice within one, before the first page and behind the last."""
    placed = wb.simulate(
        wb.Scenario.from_mapping(
            {
                "host": "spr-8468v-cxl",
                "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}]},
                "operations": [
                    {"op": "create"}, {"op": "mmap"}, {"op": "mbind", "mode": "interleave", "nodes": "0-2", "length": "20 MiB"},
                    {"op": "first_touch", "length": "50 MiB"},
                ],
            }
        )
    )  # fmt: skip
    access = traffic.access_pattern({"pattern": "zipf", **part})
    beside = traffic.SharesBeside(placed, access)
    for seed in (1, 2):  # what is found first is kept
        caches = 4096.0 * np.array([0, 1, 63, 64, 65, 66, 1e3, 16383, 16384, 1e6])
        caches = np.concatenate((caches, np.random.default_rng(seed).uniform(0, 7e7, 40), [4097.0]))
        each = [traffic.reach(placed, access, one).of(np.array([one]))[0][0] for one in caches]
        np.testing.assert_array_equal(beside.of(caches), each)


def test_machines_made_at_once_are_those_made_one_by_one():
    host = Host.from_machine("spr-8468v-cxl")
    near = host.model_copy(update={"distances": [[min(16, far) for far in row] for row in host.distances]})
    rng = np.random.default_rng(4)
    values = {
        n: COSTS[n].low * (COSTS[n].high / COSTS[n].low) ** rng.random(4)
        for n in (*machine.SAMPLED, "reference_distance")
    }
    for of, name in ((host, None), (host, "epyc-7742"), (near, None)):
        made = machine.machines(of, values, name)
        for k, at_once in enumerate(made):
            one = machine.machine(of, {n: float(column[k]) for n, column in values.items()}, name)
            for field in (
                *(f.name for f in dataclasses.fields(one) if f.name != "families"),
                "curve_rows",
                "delays",
                "fixed_peaks",
            ):
                np.testing.assert_array_equal(getattr(at_once, field), getattr(one, field), err_msg=field)
    with pytest.raises(WorkbenchError, match="dram_latency"):
        machine.machines(host, {"dram_latency": np.array([90.0, -1.0])})
    with pytest.raises(WorkbenchError, match="dram_latency"):
        machine.machines(host, {"dram_latency": np.array([90.0, np.nan])})
    with pytest.raises(WorkbenchError, match="as many values of each"):
        machine.machines(host, {"dram_latency": np.ones(2), "cxl_latency": np.ones(3)})


def test_every_modelled_parameter_of_a_host_is_taken_when_none_is_named(scenario):
    found = sensitivity(scenario, ("latency",), samples=2)
    assert set(found["parameter"].values) == set(machine.SAMPLED)


def test_parameters_that_nobody_reads_are_not_tried_and_the_indices_are_the_same(scenario):
    model, asked = studies._AccessModel(scenario, None), []

    def counted(values):
        asked.append(values)
        return model(values)

    plain = sensitivity(scenario, samples=16, model=counted)
    quick = sensitivity(scenario, samples=16)
    assert plain.drop_attrs().equals(quick.drop_attrs())
    unread = [name for name in plain["parameter"].values if name.startswith(("hbm", "gpu"))]
    assert unread and not plain["total"].sel(parameter=unread).values.any()
    names = len(plain["parameter"])
    assert len(asked) == 1 + 2 * names + 16 * (names + 2)  # what a model of somebody else may read is not known

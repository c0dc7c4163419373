"""Sensitivity: indices of a function whose indices are known, and the cost of a placement over the registry's ranges."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.cost import machine
from workbench.costs import COSTS
from workbench.errors import WorkbenchError
from workbench.plots import sweep as plots_sweep
from workbench.studies.sensitivity import sensitivity, sobol


def test_indices_of_the_ishigami_function():
    def ishigami(unit):
        x = np.pi * (2 * unit - 1)
        return np.array([np.sin(x[0]) + 7 * np.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * np.sin(x[0])])

    first, total = sobol(ishigami, 3, 4096)
    # Ishigami and Homma 1990, a = 7, b = 0.1
    np.testing.assert_allclose(first[0], [0.3139, 0.4424, 0.0], atol=0.05)
    np.testing.assert_allclose(total[0], [0.5576, 0.4424, 0.2437], atol=0.05)


def test_a_function_that_does_not_vary_has_no_indices():
    first, total = sobol(lambda unit: np.array([3.0]), 2, 8)
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


@pytest.mark.parametrize("pattern", ["streaming", "zipf", "pointer_chasing"])
def test_the_lean_model_prices_as_access_cost_does(pattern):
    from workbench.cost.traffic import access_cost
    from workbench.simulation import simulate
    from workbench.studies import sensitivity as study

    scenario = scenario_of_the_lean_model()
    model, placed = study._access_model(scenario, pattern), simulate(scenario)
    for values in ({}, {"dram_latency": 70.0, "cache_bytes": 1 << 20}):
        priced = access_cost(placed, scenario.host, pattern, costs=values)
        for name, value in model(values).items():
            how = study.OUTPUTS[name][2]
            assert value == pytest.approx(float(getattr(priced[name], how)()), rel=1e-12), name


def scenario_of_the_lean_model():
    from workbench.scenario import Scenario
    from workbench.topology.host import Host

    host = Host.from_machine("epyc1-naples-2s")
    return Scenario.from_mapping({"host": host, "guest": {"memory": "64 MiB", "vcpus": [{"node": 0}, {"node": 3}]}})


def test_every_modelled_parameter_of_a_host_is_taken_when_none_is_named(scenario):
    found = sensitivity(scenario, ("latency",), samples=2)
    assert set(found["parameter"].values) == set(machine.SAMPLED)


def test_parameters_that_nobody_reads_are_not_tried_and_the_indices_are_the_same(scenario):
    from workbench.studies import sensitivity as studies

    model, asked = studies._access_model(scenario, None), []

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

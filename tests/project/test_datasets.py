"""Every Dataset that a public function returns is made in one place and says what it holds."""

from __future__ import annotations

import ast
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from workbench import results, variables
from workbench.cost import kernel_times, traffic, translation, weights
from workbench.data import datasets_path
from workbench.designs import compare, stalls
from workbench.designs import sweeps as design_sweeps
from workbench.engine import conversion_streams as streams
from workbench.plots.topology import host_dataset
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.studies import (
    boot_stalls,
    capacity,
    conversion_studies,
    device_users,
    fragmentation,
    migratable,
    placement_cost,
    sensitivity,
    snp_regions,
    vm_churn,
    vnuma,
)
from workbench.sweeps.store import read_store
from workbench.sweeps.sweep import sweep
from workbench.topology.host import Host
from workbench.tracking import folio_file
from workbench.truth import published, verify

ROOT = Path(__file__).parents[2]
BASES = {"exact", "counted", "modelled", "measured"}


def host() -> Host:
    return Host.from_machine("epyc1-naples-2s")


def scenario(name: str = "weighted-interleave-cxl") -> Scenario:
    return Scenario.from_yaml(datasets_path("scenarios", f"{name}.yaml"))


def small(**guest: object) -> Scenario:
    return Scenario.from_mapping({"host": host(), "guest": {"memory": "4 MiB", **guest}})


def accessed() -> Scenario:
    operations = [{"op": "create"}, {"op": "fallocate"}, {"op": "access", "pattern": "uniform"}]
    return Scenario.from_mapping({"host": host(), "guest": {"memory": "4 MiB"}, "pfns": True, "operations": operations})


def named_twice() -> Scenario:
    operations = [{"op": "create"}, {"op": "alias", "file": "again", "of": "guest"}, {"op": "fallocate"}]
    return Scenario.from_mapping({"host": host(), "guest": {"memory": "4 MiB"}, "operations": operations})


def grid() -> dict[str, object]:
    return {
        "base": {"host": "epyc1-naples-2s", "guest": {"memory": "4 MiB", "design": "hugetlb", "page_size": "2 MiB"}},
        "axes": {
            "memory": {"field": "guest.memory", "values": [4 << 20, 8 << 20]},
            "pair": {"zip": {"guest.design": ["hugetlb", "pfn-range"], "seed": [1, 2]}},
        },
        "metrics": ["pages_per_node", "errors", "local_share", "page_size"],
    }


def swept(tmp_path: Path) -> xr.Dataset:
    sweep(grid(), out=tmp_path / "s.zarr", workers=0)
    return read_store(tmp_path / "s.zarr")


def converted() -> xr.Dataset:
    file = folio_file.ConversionFile(1 << 30, "1 GiB")
    return conversion_studies.run(file, folio_file.populate(1 << 30), samples=3)


def recording() -> Path:
    return next(path for path in sorted(datasets_path("recordings").glob("m*.json.gz")))


def recorded_name() -> str:
    from workbench.truth.recording import read

    return next(r.name for r in read(recording()).scenarios if any("place" in o.seen for o in r.operations))


CELLS = [vnuma.Cell(0, 2, 1 << 30, 1 << 29), vnuma.Cell(1, 2, 1 << 30, 1 << 29)]
GUEST = streams.BootGuest(memory=1 << 30)

MAKERS: dict[str, Callable[[Path], xr.Dataset]] = {
    "simulate": lambda _: simulate(scenario()),
    "simulate, conversions": lambda _: simulate(scenario("snp-guest-boots")),
    "simulate, TDX": lambda _: simulate(
        scenario("snp-guest-boots").replace(**{"guest.vm_type": "tdx", "guest.memory": "4 GiB"})
    ),
    "simulate, kernels": lambda _: simulate(scenario("conversion-drifts"), kernel_profiles=["7.3", "7.2"]),
    "simulate, accesses and pfns": lambda _: simulate(accessed()),
    "simulate, a file of two names": lambda _: simulate(named_twice()),
    "simulate, designs": lambda _: simulate(
        small(page_size="2 MiB", design="hugetlb"), designs=["hugetlb", "pfn-range"]
    ),
    "conversion_studies.run": lambda _: converted(),
    "conversion_modes": lambda _: conversion_studies.conversion_modes(
        Host.from_machine("xeon-e5-2680-2s"), 8 << 20, 10, samples=3
    ),
    "host_dataset": lambda _: host_dataset(host()),
    "access_cost": lambda _: traffic.access_cost(simulate(small()), host()),
    "access_cost, samples": lambda _: traffic.access_cost(simulate(small()), host(), samples=3),
    "best_weights": lambda _: weights.best_weights(host()),
    "walk_references": lambda _: translation.walk_references(),
    "walk_cost": lambda _: translation.walk_cost({"1 GiB": 1 << 30}),
    "best_weights, samples": lambda _: weights.best_weights(host(), samples=2),
    "walk_cost, samples": lambda _: translation.walk_cost({"1 GiB": 1 << 30}, samples=2),
    "kernel_times": lambda _: kernel_times.kernel_times(host(), 1 << 30),
    "kernel_times, one": lambda _: kernel_times.kernel_times(host(), 1 << 30, samples=1),
    "verdict": lambda _: placement_cost.verdict(placement_cost.policy_costs(host(), memory="1 GiB", samples=3)),
    "split_loss": lambda _: translation.split_loss(1 << 30, 1),
    "boot_stalls": lambda _: boot_stalls.boot_stalls(3, "2 MiB"),
    "stalls": lambda _: stalls.stalls(compare.guest_run("1 GiB", conversions=10)),
    "capacity": lambda _: capacity.capacity(host(), policies=["bind"]),
    "compare": lambda _: compare.compare(compare.guest_run("1 GiB", conversions=10), samples=2),
    "compare.sweep": lambda _: compare.sweep("1 GiB", page_sizes=["1 GiB"], conversions=[1, 2]),
    "designs.sharing": lambda _: design_sweeps.sharing(["2 MiB"], [1 / 4], [4096]),
    "designs.structures": lambda _: design_sweeps.structures([10], 1 << 27),
    "policy_costs": lambda _: placement_cost.policy_costs(host(), memory="1 GiB"),
    "policy_costs, samples": lambda _: placement_cost.policy_costs(host(), memory="1 GiB", samples=2),
    "vnuma.cost": lambda _: vnuma.cost(host(), CELLS),
    "sensitivity": lambda _: sensitivity.sensitivity(small(), samples=2),
    "vm_churn.serve": lambda _: vm_churn.serve(
        vm_churn.generate("64 GiB", 50, nodes=2), "64 GiB", 2, ("first-fit", "hugetlb 2 MiB"), samples=3
    ),
    "snp_regions": lambda _: snp_regions.snp_regions(
        vm_churn.generate("64 GiB", 50, nodes=2), "64 GiB", 2, ("first-fit", "hugetlb 2 MiB"), samples=3
    ),
    "fragmentation": lambda _: fragmentation.fragmentation("4 GiB", 9, background=(0.01,), weeks=0.2, samples=2),
    "migration": lambda _: migratable.migration("1 MiB"),
    "device_users": lambda _: device_users.device_users("8 MiB", 2, designs=["hugetlb", "pfn-range"]),
    "boot_sources": lambda _: conversion_studies.boot_sources(GUEST),
    "boot_against_published": lambda _: conversion_studies.boot_against_published(samples=2),
    "scattered_pages": lambda _: conversion_studies.scattered_pages((1, 2)),
    "pinned_pages": lambda _: conversion_studies.pinned_pages(1 << 30, (0, 1), 4),
    "recorded_hvo": lambda _: conversion_studies.recorded_hvo(),
    "side_by_side": lambda _: verify.side_by_side(recording(), recorded_name()),
    "reproduce": lambda _: published.reproduce("gmem_conversion_profile"),
    "reproduce_all": lambda _: published.reproduce_all(["gmem_conversion_profile", "azure_vm_memory"]),
    "sweep in memory": lambda _: sweep(grid(), workers=0),
    "read_store": swept,
}


@functools.cache
def made(name: str) -> xr.Dataset:
    with tempfile.TemporaryDirectory() as folder:
        return MAKERS[name](Path(folder))


@pytest.mark.parametrize("name", MAKERS)
def test_a_dataset_says_what_it_holds_and_is_stored_without_loss(name: str, tmp_path: Path) -> None:
    dataset = made(name)
    assert dataset.data_vars
    for key, variable in dataset.variables.items():
        where = f"{key}: {variable.attrs}"
        assert variable.attrs["long_name"], where
        assert variable.attrs["units"] or variable.dtype.kind in "UO", where
    for key, variable in dataset.data_vars.items():
        assert variable.attrs["basis"] in BASES, key
        assert variable.attrs["basis"] in ("exact", "counted") or variable.attrs["source"], key
    provenance = json.loads(dataset.attrs["provenance"])
    assert {"software", "python", "schema_version", "kernel_of_record"} <= set(provenance)
    assert "scenario" in provenance or (provenance["command"] and "inputs" in provenance) or name == "recorded_hvo"
    for file in ("r.zarr", "r.nc"):
        loaded = results.load(results.save(dataset, tmp_path / file))
        xr.testing.assert_identical(loaded, dataset.map(lambda v: v.astype(str) if v.dtype == object else v))


def test_every_dataset_is_made_in_results() -> None:
    for path in [*(ROOT / "workbench").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("xr.Dataset", "xr.concat") or path.name == "results.py", f"{path}:{node.lineno}"


SCHEMAS = [
    value for value in vars(variables).values()
    if isinstance(value, type) and issubclass(value, variables.Schema) and value is not variables.Schema
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_a_declared_variable_is_whole(schema: type[variables.Schema]) -> None:
    assert schema.__doc__
    for name, variable in schema.variables.items():
        assert variable.name == name and variable.long_name and variable.basis in BASES
        assert bool(variable.source) == (variable.basis in ("modelled", "measured")), name
    for name, coordinate in schema.coordinates.items():
        assert coordinate.name == name and coordinate.long_name


def test_every_declared_variable_is_in_some_dataset() -> None:
    """Nothing is declared that nobody makes."""
    datasets = [made(name) for name in MAKERS] + [simulate(scenario("pool-runs-dry"))]
    found = {str(name) for dataset in datasets for name in dataset.variables}
    declared = {name for schema in SCHEMAS for name in (*schema.variables, *schema.coordinates)}
    assert declared - found == set()


def test_make_takes_declared_names_and_dimensions_only() -> None:
    class Kind(variables.Schema):
        x = variables.Coordinate("1", "place")
        value = variables.modelled("x", "B", "value", "a model")

    def make(values: dict[str, object], coordinates: dict[str, object], **more: str) -> xr.Dataset:
        return results.make(Kind, values, coordinates, provenance=results.provenance(command="test"), **more)

    made = make({"value": np.zeros((2, 3))}, {"x": [1, 2, 3]}, source="here")
    assert made["value"].dims == ("sample", "x") and made["value"].attrs["source"] == "a model; here"
    with pytest.raises(ValueError, match="other is not a variable of Kind"):
        make({"other": [1]}, {})
    with pytest.raises(ValueError, match="other is not a coordinate of Kind"):
        make({"value": [1]}, {"other": [1]})
    with pytest.raises(ValueError, match="value has 3 dimensions"):
        make({"value": np.zeros((1, 1, 1))}, {})


def test_a_dataset_is_as_the_constructor_of_xarray_would_make_it() -> None:
    """``results.make`` puts it together itself, which takes a third of the time."""
    dataset = made("simulate, conversions")
    public = xr.Dataset(
        {name: (v.dims, v.values, v.attrs) for name, v in dataset.data_vars.items()},
        {name: (v.dims, v.values, v.attrs) for name, v in dataset.coords.items()},
        dataset.attrs,
    )
    xr.testing.assert_identical(dataset, public)
    assert {name: v.dtype for name, v in dataset.variables.items()} == {n: v.dtype for n, v in public.variables.items()}
    assert list(dataset.xindexes) == list(public.xindexes)
    assert dataset.sel(node=1).equals(public.sel(node=1)) and dataset.copy(deep=True).equals(public)
    with pytest.raises(ValueError, match="node_load has 1 along node, others have 2"):
        results.make(
            variables.PolicyCosts,
            {"node_share": np.zeros((1, 2))} | {"node_load": np.zeros((1, 1))},
            {"node": [0]},
            provenance="",
        )

"""Grids: what they accept, what they refuse and with which words, and that their chunks are their cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.sweeps.grid import Grid, Metric, measure

BASE = {"name": "base", "guest": {"memory": 64}}


def axis(given: object, name: str = "seed") -> tuple:
    return Grid.from_mapping({"base": BASE, "axes": {name: given}}).axes[0].settings


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([3, 1, 2], [3, 1, 2]),
        ({"field": "seed", "values": [7]}, [7]),
        ({"range": [4]}, [0, 1, 2, 3]),
        ({"range": [1, 4]}, [1, 2, 3]),
        ({"range": [1, 8, 3]}, [1, 4, 7]),
        ({"range": [3, 0, -1]}, [3, 2, 1]),
        ({"range": ["1 GiB", "3 GiB", "1 GiB"]}, [1 << 30, 2 << 30]),
        ({"linspace": [0, 1, 3]}, [0.0, 0.5, 1.0]),
        ({"geomspace": [1, 100, 3]}, [1.0, 10.0, 100.0]),
    ],
)
def test_values(given, values):
    assert [row[0] for row in axis(given)] == pytest.approx(values)


def test_zip_changes_fields_together():
    grid = Grid.from_mapping(
        {"base": BASE, "axes": {"case": {"zip": {"seed": [1, 2], "guest.memory": [10, 20]}, "labels": ["a", "b"]}}}
    )
    assert grid.shape == (2,)
    assert grid.cell([1])["seed"] == 2
    assert grid.cell([1])["guest"]["memory"] == 20
    assert grid.axes[0].labels == ("a", "b")


@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_sample_uses_every_part_of_each_range_once(count, seed):
    fields = {"a": {"uniform": [2.0, 3.0]}, "b": {"loguniform": [1, 1024]}, "c": {"normal": [0, 1]}}
    given = {"sample": {f"guest.memory.{name}": how for name, how in fields.items()}, "count": count, "seed": seed}
    columns = np.array(axis(given, "draw"))
    parts = [columns[:, 0] - 2.0, np.log2(columns[:, 1]) / 10]
    for level in parts:
        assert sorted(np.floor(level * count - 1e-9 * (level == 1)).astype(int)) == list(range(count))
    half = count // 2
    assert abs(int((columns[:, 2] < 0).sum()) - half) <= 1


def test_spawned_seeds_differ_and_repeat():
    one = [row[0] for row in axis({"spawn": 100})]
    assert len(set(one)) == 100
    assert one == [row[0] for row in axis({"spawn": 100})]
    assert all(0 <= seed < 1 << 63 for seed in one)


@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), chunk=st.none() | st.integers(1, 300))
def test_chunks_are_the_cells_each_once_and_not_too_many(shape, chunk):
    fields = ["seed", "name", "comment", "strict"]
    axes = {field: {"values": [{"name": str(i)} for i in range(n)]} for field, n in zip(fields, shape, strict=False)}
    grid = Grid.from_mapping({"base": BASE, "axes": axes, **({"chunk": chunk} if chunk else {})})
    seen = np.zeros(shape, int)
    flat = np.arange(math.prod(shape)).reshape(shape)
    largest = 0
    for place in grid.chunks():
        seen[place] += 1
        numbers = flat[place].ravel()
        largest = max(largest, len(numbers))
        assert numbers[-1] - numbers[0] == len(numbers) - 1  # neighbours in the order of the cells
    assert (seen == 1).all()
    assert largest <= (chunk or 256)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"base": BASE}, "at least one axis"),
        ({"axes": {"seed": [1]}}, "grid.base"),
        ({"base": "no-such-scenario", "axes": {"seed": [1]}}, "no-such-scenario"),
        ({"base": BASE, "axes": {"seed": []}}, "no values"),
        ({"base": BASE, "axes": {"seed": 3}}, "is not a list"),
        ({"base": BASE, "axes": {"seed": [1, 1]}}, "twice"),
        ({"base": BASE, "axes": {"sede": [1]}}, "no field 'sede'"),
        ({"base": BASE, "axes": {"guest.memroy": [1]}}, "no field 'memroy'"),
        ({"base": BASE, "axes": {"a/b": {"field": "seed", "values": [1]}}}, "without '/'"),
        ({"base": BASE, "axes": {"status": {"field": "seed", "values": [1]}}}, "taken by the store"),
        ({"base": BASE, "axes": {"seed": [1], "again": {"field": "seed", "values": [2]}}}, "set by two axes"),
        ({"base": BASE, "axes": {"seed": {"range": [0, 9, 0]}}}, "no end"),
        ({"base": BASE, "axes": {"seed": {"range": [0, 1e12]}}}, "no end, or more"),
        ({"base": BASE, "axes": {"seed": {"range": ["x", 2]}}}, "range"),
        ({"base": BASE, "axes": {"seed": {"range": [0, float("nan")]}}}, "not a number"),
        ({"base": BASE, "axes": {"seed": {"geomspace": [0, 1, 3]}}}, "above 0"),
        ({"base": BASE, "axes": {"seed": {"linspace": [0, 1]}}}, "count"),
        ({"base": BASE, "axes": {"seed": {"values": [1], "range": [2]}}}, "exactly one"),
        ({"base": BASE, "axes": {"seed": {"values": [1], "lables": ["a"]}}}, "lables"),
        ({"base": BASE, "axes": {"seed": {"values": [1], "labels": ["a", "b"]}}}, "needs 1 labels"),
        ({"base": BASE, "axes": {"z": {"zip": {"seed": [1], "name": ["a", "b"]}}}}, "differ in length"),
        ({"base": BASE, "axes": {"z": {"sample": {"seed": {"gauss": [0, 1]}}, "count": 2}}}, "uniform"),
        ({"base": BASE, "axes": {"z": {"sample": {"seed": {"uniform": [1, 1]}}, "count": 2}}}, "not a range"),
        ({"base": BASE, "axes": {"z": {"sample": {"seed": {"uniform": [0, 1]}}}}}, "count"),
        ({"base": BASE, "axes": {"seed": [1]}, "metrics": {"a": {"reduce": "median"}}}, "median"),
        ({"base": BASE, "axes": {"seed": [1]}, "metrics": 3}, "metrics"),
        ({"base": BASE, "axes": {"seed": [1]}, "chunk": 0}, "chunk"),
        ({"base": BASE, "axes": {"seed": [1]}, "axis": {}}, "no key 'axis'"),
        ({"base": BASE, "axes": {"seed": {"range": [10_000]}, "name": {"values": [str(i) for i in range(2000)]}}},
         "20,000,000 cells"),
        ([1], "mapping"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(mapping, says):
    with pytest.raises(WorkbenchError) as caught:
        Grid.from_mapping(mapping)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"axes": {"a\x1b[2J": {"field": "seed", "values": [1]}}}, "grid.axes: .* has a control character"),
        ({"axes": {"a": {"field": "seed", "values": [1], "labels": ["\x1b[2J"]}}}, "grid.axes.a.labels: .*U.001B"),
        ({"axes": {"name": ["a", "b\x00"]}}, "grid.axes.name.values: .*U.0000"),
        ({"axes": {"a": {"field": "seed", "values": [1]}}, "metrics": ["a\x9b"]}, "grid.metrics: .*U.009B"),
        ({"axes": {"a": {"field": "seed", "values": [1]}}, "name": "\u202eb"}, "grid.name: .* has a turn of direction"),
    ],
)
def test_names_of_a_grid_reach_terminals_and_have_no_control_characters(mapping, says):
    with pytest.raises(WorkbenchError, match=says):
        Grid.from_mapping({"base": BASE, **mapping})


def test_a_metric_of_nothing_names_what_there_is():
    import xarray as xr

    with pytest.raises(WorkbenchError, match="no variable 'x'; it has y"):
        measure(Metric("m", "x", "mean"), xr.Dataset({"y": 1}), [])


def test_reductions():
    import xarray as xr

    dataset = xr.Dataset({"v": (("file", "node"), [[1, 2, 3], [4, 5, 6]])}, {"node": [0, 2, 5]})
    assert measure(Metric("m", "v", "sum"), dataset, []) == 21
    assert measure(Metric("m", "v", "max"), dataset, []) == 6
    assert measure(Metric("m", "v", "last"), dataset, []) == 6
    per_node = measure(Metric("m", "v", "sum", per_node=True), dataset, [0, 1, 2, 5])
    np.testing.assert_array_equal(per_node, [5, np.nan, 7, 9])

"""The guest's view of NUMA: where it puts its data, and what a wrong view costs."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.studies import vnuma

GIB = 1 << 30
HOST = wb.Host.from_machine("epyc1-naples-2s")


def cells(data=8, memory=16, nodes=(0, 1, 4, 5)):
    return [vnuma.Cell(host_node=n, vcpus=8, memory=memory * GIB, data=data * GIB) for n in nodes]


def test_data_that_fits_stays_on_its_own_virtual_node():
    placed = vnuma.guest_placement(cells(), vnuma.view_distances("no distances", HOST, cells()))
    assert placed.tolist() == np.eye(4).tolist()


def test_spilled_data_follows_the_virtual_distances():
    """One virtual node needs more than it has: with distances it spills next door, without by node id."""
    mine = cells()
    mine[3] = vnuma.Cell(host_node=5, vcpus=8, memory=16 * GIB, data=24 * GIB)
    near = vnuma.guest_placement(mine, vnuma.view_distances("distances", HOST, mine))
    blind = vnuma.guest_placement(mine, vnuma.view_distances("no distances", HOST, mine))
    assert near[3].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3])  # host node 4, same socket
    assert blind[3].tolist() == pytest.approx([1 / 3, 0, 0, 2 / 3])  # host node 0, the other socket


def test_right_view_is_local_and_wrong_views_cost_bandwidth():
    cost = vnuma.cost(HOST, cells(), access="pointer_chasing")
    local = cost["local_share"]
    assert (local.sel(view="distances") == 1).all()
    assert local.sel(view="flat").values == pytest.approx([0.25] * 4)
    assert (local.sel(view="permuted") == 0).all()
    assert float(cost["slowdown"].sel(view="distances")) == 1.0
    assert float(cost["slowdown"].sel(view="permuted")) > 1.2
    assert (cost["latency"].sel(view="permuted") > cost["latency"].sel(view="distances")).all()


def test_permuted_memory_lies_one_virtual_node_further():
    """Cells on host nodes 0, 1, 1: cell 0's memory is where cell 1's should be, cell 1's with cell 2, cell 2's with cell 0."""
    cost = vnuma.cost(HOST, cells(nodes=(0, 1, 1)), access="pointer_chasing")
    assert cost["local_share"].sel(view="permuted").values.tolist() == [0, 1, 0]


def test_backing_comes_from_a_placement():
    scenario = wb.Scenario.model_validate(
        {
            "host": HOST,
            "guest": {"memory": "64 MiB"},
            "operations": [
                {"op": "create"},
                {"op": "mbind", "mode": "bind", "nodes": "4", "length": "32 MiB"},
                {"op": "mbind", "mode": "interleave", "nodes": "0-1", "offset": "32 MiB"},
                {"op": "fallocate"},
            ],
        }
    )
    two = [vnuma.Cell(host_node=0, vcpus=4, memory=32 << 20, data=16 << 20)] * 2
    backing = vnuma.backing_of(wb.simulate(scenario), two)
    assert backing[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert backing[1].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0]


def test_bad_views_are_one_line():
    with pytest.raises(WorkbenchError, match="upside down"):
        vnuma.cost(HOST, cells(), views=["upside down"])
    with pytest.raises(WorkbenchError, match="do not fit"):
        vnuma.cost(HOST, cells(data=17))
    with pytest.raises(WorkbenchError, match="backing"):
        vnuma.cost(HOST, cells(), np.ones((2, 2)))

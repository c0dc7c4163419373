"""Figures of sweeps: what is drawn is what is in the Dataset, and what is missing is said, not drawn."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from workbench.errors import WorkbenchError
from workbench.plots import sweep as plots_sweep
from workbench.plots.palette import NODE_COLOURS
from workbench.topology.host import Host


@pytest.fixture
def cells() -> xr.Dataset:
    values = np.array([[[1.0, 2.0], [3.0, 5.0]], [[2.0, 2.0], [np.nan, np.nan]]])
    return xr.Dataset(
        {"d": (("machine", "policy", "size"), values, {"units": "1", "long_name": "distance, mean"})},
        {"machine": ["m", "n"], "policy": ["p", "q"], "size": [1, 2]},
    )


def test_ranks_share_and_skip(cells):
    array = xr.DataArray([[1.0, 3.0], [1.0 + 1e-15, np.nan], [2.0, 1.0]], dims=("policy", "machine"))
    ranks = plots_sweep.ranks(array, "policy").values
    np.testing.assert_array_equal(ranks, [[1, 2], [1, np.nan], [3, 1]])
    downwards = plots_sweep.ranks(array, "policy", smallest_first=False).values
    np.testing.assert_array_equal(downwards, [[2, 1], [2, np.nan], [1, 2]])


def test_facets_draw_the_means(cells):
    made = plots_sweep.facets(cells, "d", y="policy", col="machine")
    first, second = made.axes
    assert [bar.get_width() for bar in first.patches] == [1.5, 4.0]
    assert [bar.get_width() for bar in second.patches if bar.get_width() > 0] == [2.0]
    assert (first.get_title(), second.get_title()) == ("m", "n")
    assert made._supxlabel.get_text() == "distance"
    assert plots_sweep.facets(cells, "d", y="policy", hue="size").legends


def test_a_ranking_says_what_is_missing(cells):
    made = plots_sweep.ranking(cells["d"].mean("size"), of="policy", per="machine", missing="nothing")
    texts = [text.get_text() for text in made.axes[0].texts]
    assert texts == ["1.   1.5", "1.   2", "2.   4", "nothing"]


def test_shares_of_nodes_add_up():
    pages = xr.DataArray(
        [[3.0, 1.0, np.nan], [0.0, 0.0, 0.0]], {"policy": ["p", "q"], "node": [0, 4, 7]}, ("policy", "node")
    )
    host = Host.from_machine("epyc1-naples-2s")
    made = plots_sweep.pages_by_node(pages, host, y="policy")
    widths = [[bar.get_width() for bar in container] for container in made.axes[0].containers]
    np.testing.assert_allclose(np.sum(widths, axis=0), [1.0, 0.0])
    assert "killed" in made.axes[0].texts[0].get_text()
    wide = xr.DataArray(np.ones((2, 64)), {"policy": ["p", "q"], "node": np.arange(64)}, ("policy", "node"))
    wide_host = Host.from_machine("altix-ia64-64n")
    assert len(plots_sweep.pages_by_node(wide, wide_host, y="policy").axes[0].containers) == 64


def test_a_node_has_the_colour_it_has_in_every_figure():
    """Also where only some of the host's nodes are in the table: by node, not by position."""
    pages = xr.DataArray([[3.0, 1.0]], {"policy": ["p"], "node": [4, 7]}, ("policy", "node"))
    made = plots_sweep.pages_by_node(pages, Host.from_machine("epyc1-naples-2s"), y="policy")
    assert [to_hex(box.patches[0].get_facecolor()) for box in made.axes[0].containers] == [
        NODE_COLOURS[4],
        NODE_COLOURS[7],
    ]
    with pytest.raises(WorkbenchError, match="epyc4-genoa-2s-nps1 has no node 4, 7"):
        plots_sweep.pages_by_node(pages, Host.from_machine("epyc4-genoa-2s-nps1"), y="policy")


def test_refusals(cells):
    with pytest.raises(WorkbenchError, match="no variable 'x'"):
        plots_sweep.facets(cells, "x", y="policy")
    with pytest.raises(WorkbenchError, match="no axis 'z'"):
        plots_sweep.facets(cells, "d", y="z")
    with pytest.raises(WorkbenchError, match="only"):
        plots_sweep.ranking(cells["d"], of="policy", per="machine")
    with pytest.raises(WorkbenchError, match="only"):
        plots_sweep.pages_by_node(cells["d"], Host.from_machine("epyc1-naples-2s"), y="policy")

"""One guest under every policy, the figures drawn from it, and the reproduce command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.text import Text
from typer.testing import CliRunner

import workbench as wb
from workbench.cost import translation, weights
from workbench.errors import WorkbenchError
from workbench.plots import traffic as plots_traffic
from workbench.plots.common import colours_of_host
from workbench.studies import placement_cost, vnuma
from workbench.topology.host import Host
from workbench.truth import published

HOST = wb.Host.from_machine("epyc1-naples-2s")
CXL = wb.Host.from_machine("spr-8468v-cxl")


@pytest.fixture(scope="module")
def streaming():
    return placement_cost.policy_costs(CXL, memory="1 GiB", partitioned=True, samples=5, seed=2)


def test_policies_put_pages_where_they_say(streaming):
    share = streaming["node_share"]
    assert share.sum("node").values == pytest.approx(np.ones(streaming.sizes["policy"]))
    assert share.sel(policy="none, prefault").values.tolist() == [1, 0, 0, 0]
    assert share.sel(policy="interleave").values == pytest.approx([0.25] * 4, abs=1e-4)
    assert share.sel(policy="bind by part").values.tolist() == [0.5, 0.5, 0, 0]
    assert streaming["local_share"].sel(policy="bind by part") == 1
    assert streaming["node_share"].attrs["basis"] == "counted"
    assert streaming["bandwidth"].attrs["basis"] == "modelled" and streaming["bandwidth"].attrs["source"]


@pytest.mark.parametrize("machine", ["cascadelake-hmat-test", "epyc1-7551-2s-sparse"])
def test_vcpus_on_nodes_without_memory_have_policies_of_the_nearest_that_have_some(machine):
    """mbind refuses a node without memory, so who writes a policy names another."""
    host = wb.Host.from_machine(machine)
    costs = placement_cost.policy_costs(
        host, memory="8 MiB", vcpus=placement_cost.default_vcpus(host, 4), samples=1, seed=1
    )
    assert list(costs["policy"].values) == list(placement_cost.POLICIES)
    holders = [int(node) for node in costs["node"].values[costs["node_share"].sel(policy="bind by part").values > 0]]
    assert holders and all(host.nodes[host.index_of(node)].memory_bytes for node in holders)


def test_numa_aware_placement_wins_for_memory_intensive_guests(streaming):
    """The claim of the guest_memfd series, for every draw of the parameters."""
    without, aware = (streaming["bandwidth"].sel(policy=p) for p in placement_cost.SEED_CLAIM)
    assert (aware > without * 1.05).all()
    assert "bind by part" in placement_cost.winners(streaming)


def draws_of(rows, names=("a", "b"), pattern="streaming", parameters=None):
    """A result of two policies with given bandwidths per draw; sample 0 is none of them."""
    rows = np.array(rows, float)
    samples = rows.shape[1]
    drawn = np.array(parameters if parameters is not None else [range(samples)], float)
    return xr.Dataset(
        {
            "bandwidth": (("policy", "sample"), rows, {"source": "test"}),
            "latency": (("policy", "sample"), 1.0 / rows),
            "draw": (("parameter", "sample"), drawn),
        },
        coords={"policy": list(names), "parameter": [f"p{k}" for k in range(len(drawn))]},
        attrs={"pattern": pattern},
    )


def test_verdicts_come_from_the_draws_and_not_from_sample_0():
    """Sample 0 favours b ten times over; in the five draws a wins three times, and p1 decides: it orders a / b."""
    found = placement_cost.verdict(
        draws_of(
            [[1, 10, 11, 12, 9, 8], [10, 10.5, 10.5, 10.5, 10.5, 10.0]],
            parameters=[[0, 1, 5, 2, 4, 3], [0, 3, 4, 5, 2, 1]],
        )
    )
    assert found["policy"].values.tolist() == ["b", "a"] and found["wins"].values == pytest.approx([0.6, 0.4])
    assert found["decides"].values.tolist() == ["p1", "p1"]
    assert found["correlation"].sel(policy="a") == pytest.approx(1.0)
    assert "“b” wins in 60 % of 5 draws; “a” in 40 %" in placement_cost.sentence(found)
    assert "p1 decides" in placement_cost.sentence(found)


def test_policies_that_cost_the_same_win_together():
    found = placement_cost.verdict(draws_of([[1, 2, 3], [1, 2, 3], [1, 1, 4]], names="abc"))
    assert found["wins"].sel(policy="a") == found["wins"].sel(policy="b") == 0.5
    assert "“a” = “b” wins in 50 % of 2 draws" in placement_cost.sentence(found)


def test_verdicts_need_draws():
    one = draws_of([[1.0], [2.0]])
    with pytest.raises(WorkbenchError, match="samples"):
        placement_cost.verdict(one)


def test_weighted_interleave_with_a_slow_node_is_no_sure_winner():
    """Shared streaming on the CXL machine: what wins at the parameters' values wins in part of the draws only."""
    dataset = placement_cost.policy_costs(
        CXL, memory="1 GiB", samples=40, seed=3,
        policies={name: placement_cost.POLICIES[name] for name in ("interleave vCPU nodes", "weighted, automatic")},
    )  # fmt: skip
    found = placement_cost.verdict(dataset)
    assert 0.5 < float(found["wins"].max()) < 1.0
    assert "wins in" in placement_cost.sentence(found)


def test_streaming_and_chasing_want_different_policies():
    options = {"memory": "1 GiB", "vcpus": {0: 16}}
    stream = placement_cost.policy_costs(HOST, access="streaming", **options)
    chase = placement_cost.policy_costs(HOST, access="pointer_chasing", **options)
    assert set(placement_cost.winners(stream)) <= {"interleave", "weighted, automatic", "weighted, optimum"}
    assert "bind" in placement_cost.winners(chase) and "interleave" not in placement_cost.winners(chase)


def test_samples_do_not_depend_on_the_policies_compared(streaming):
    one = {"interleave": placement_cost.POLICIES["interleave"]}
    again = placement_cost.policy_costs(CXL, memory="1 GiB", partitioned=True, samples=5, seed=2, policies=one)
    assert again["bandwidth"].sel(policy="interleave").identical(streaming["bandwidth"].sel(policy="interleave"))


def test_bad_input_is_one_line():
    with pytest.raises(WorkbenchError, match="node 77"):
        placement_cost.policy_costs(HOST, vcpus={77: 1})
    with pytest.raises(WorkbenchError, match="memory"):
        placement_cost.policy_costs(HOST, memory="much")


# ------------------------------------------------------------------------------------------------- figures


def test_policy_bars_are_the_values(streaming):
    made = plots_traffic.policies({"a": streaming, "b": streaming})
    first = made.axes[0]
    assert [bar.get_width() for bar in first.patches] == pytest.approx(
        (streaming["bandwidth"].isel(sample=slice(1, None)).median("sample") / 1000).values
    )
    assert [text.get_text() for text in first.get_yticklabels()] == list(streaming["policy"].values)


def test_verdicts_are_drawn_as_they_are(streaming):
    made = plots_traffic.verdicts({"own parts": {"a": streaming, "b": streaming}})
    found = placement_cost.verdict(streaming).sel(policy=list(streaming["policy"].values))
    widths = [bar.get_width() for bar in made.axes[0].patches]
    assert widths == pytest.approx([*(100 * found["close"].values), *(100 * found["wins"].values)])
    assert made.axes[0].get_xlabel() == "part of the draws, %"


def test_deviations_show_every_compared_value():
    table = published.reproduce("wi_stream")
    made = plots_traffic.deviations(table)
    points = sum(len(collection.get_offsets()) for collection in made.axes[0].collections)
    assert points == table.sizes["row"]


def test_weights_and_views_and_walks_have_axes_with_units():
    best = weights.best_weights(CXL, "streaming")
    figure = plots_traffic.weights(best)
    left, right = figure.axes
    lines = [line for shown in right.collections for line in shown.get_segments()]
    assert [line[:, 0].tolist() for line in lines] == pytest.approx(
        np.column_stack((best["bandwidth_low"], best["bandwidth_high"])) / 1000
    )
    assert [text.get_text() for text in right.texts] == [f"best in {100 * wins:.0f} %" for wins in best["wins"].values]
    assert weights.sentence(best)[:40] in " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    drawn = {bars.get_label(): to_hex(bars.patches[0].get_facecolor()) for bars in left.containers}
    assert drawn == {f"node {node}": colour for node, colour in colours_of_host(CXL).items()}
    cells = [vnuma.Cell(n, 2, 1 << 30, 1 << 30) for n in (0, 4)]
    assert "ns" in plots_traffic.views(vnuma.cost(HOST, cells)).axes[1].get_ylabel()
    seen = vnuma.cost(HOST, cells, samples=5)
    one = vnuma.cost(HOST, cells)
    assert np.array_equal(seen["latency"].isel(sample=0), one["latency"]) and "sample" not in seen["local_share"].dims
    right = plots_traffic.views(seen).axes[1]
    low, high = np.quantile(seen["latency"].sel(view="distances", cell=0).values[1:], (0.05, 0.95))
    assert (
        low < high
    )  # and the line over the bar of the first virtual node under its first view goes from one to the other
    assert sorted(right.lines[0].get_ydata()) == pytest.approx([low, high])
    walks = xr.concat([translation.walk_cost({"1 GiB": k << 30}, "1 GiB") for k in (1, 64)], dim="guests")
    made = plots_traffic.walks(walks.assign_coords(guests=[1, 64]), "guests", "GiB")
    assert made.axes[0].get_ylabel() == "page walks, ns per access" and not made.axes[0].collections
    drawn = xr.concat([translation.walk_cost({"4 KiB": k << 30}, samples=5) for k in (1, 64)], dim="guests")
    banded = plots_traffic.walks(drawn.assign_coords(guests=[1, 64]), "guests", "GiB").axes[0]
    (band,) = banded.collections  # from 5 to 95 % of the four draws, about their median
    low, high = np.quantile(drawn["walk"].values[0, 1:], (0.05, 0.95))
    at_one = [y for x, y in band.get_paths()[0].vertices if x == 1]
    assert (min(at_one), max(at_one)) == pytest.approx((low, high))
    assert banded.lines[0].get_ydata()[0] == pytest.approx(np.median(drawn["walk"].values[0, 1:]))


def test_other_figures_are_drawn():
    lock = published.reproduce("buddy_vs_llfree_cores")
    assert len(plots_traffic.contention(lock).axes) == 2
    assert len(plots_traffic.generic_curves().axes[0].lines) == 4
    table = published.reproduce("wi_stream")
    assert len(plots_traffic.comparison(table).axes) == 4 == len(plots_traffic.comparison(table, log=True).axes)
    ratio = xr.DataArray(np.ones((2, 3)), dims=("case", "sample"), coords={"case": ["x", "y"]})
    assert plots_traffic.speedups(ratio, "t", "x").axes[0].get_xlabel() == "x"


# ------------------------------------------------------------------------------------------------- command


@pytest.fixture
def command():
    import typer

    from workbench.commands import reproduce as commands_reproduce

    app = typer.Typer()
    commands_reproduce.register(app)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_reproduce_prints_rows_and_a_summary(command):
    shown = command("walk_refs", "wi_stream")
    assert shown.exit_code == 0
    assert "guest 4K, host 1G" in shown.output and "9 exact values (9 formula), 0 wrong" in shown.output
    assert "source: LKML: Gregory Price" in shown.output


def test_reproduce_speaks_json(command):
    document = json.loads(command("--json", "walk_refs").output)
    assert document[0]["summary"]["exact"] == 9
    assert document[0]["rows"][0]["published"] == 24


def test_reproduce_lists_tables_and_kinds(command):
    assert len(command("--list").output.splitlines()) == len(published.table_names())
    assert "nested_walks: " in command("--kinds").output


def test_a_wrong_exact_value_is_exit_code_1(command, tmp_path):
    text = published.datasets_path("published", "walk_refs.yaml").read_text()
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace("4, 4, 24", "4, 4, 25"))
    assert command(str(path)).exit_code == 1


def test_an_unknown_table_is_bad_input(command):
    assert isinstance(command("nonsense").exception, WorkbenchError)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"samples": 2.5}, "samples: 2.5; whole numbers from 1 on"),
        ({"vcpus": {}}, "vcpus: no node runs a vCPU"),
        ({"vcpus": {0: "a"}}, "vcpus: 'a' vCPUs on node 0"),
        ({"vcpus": {0: 2.5}}, "vcpus of node 0: 2.5; whole numbers"),
        ({"policies": {}}, "policies: none"),
        ({"policies": {"x": 1}}, "policies: 'x' is 1, which is no Choice"),
        ({"memory": 0}, "guest.memory"),
        ({"page_size": "3 KiB"}, "guest.page_size: .*'4 KiB', '2 MiB' or '1 GiB'"),
        ({"confidential": "sgx"}, "guest.vm_type"),
        ({"extra_latency": "a"}, "extra_latency: 'a' ns"),
    ],
)
def test_what_no_guest_can_be_is_one_line(given, says):
    with pytest.raises(WorkbenchError, match=says) as caught:
        placement_cost.policy_costs(Host.from_machine("epyc4-genoa-2s-nps1"), **given)
    assert "\n" not in str(caught.value)

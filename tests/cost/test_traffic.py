"""From hosts and placements to bandwidth and latency; cost parameters; weights; translation."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import costs
from workbench.cost import curves, machine, traffic, translation, weights
from workbench.cost.machine import with_figures
from workbench.errors import WorkbenchError
from workbench.studies import placement_cost, vnuma
from workbench.topology.host import AccessCoordinate, Host, Node

GIB = 1 << 30


def host(kinds, distances, cpus=None, access=()):
    nodes = tuple(
        Node(id=i, memory_bytes=64 * GIB, kind=kind, cpus=tuple(range(i * 16, i * 16 + (cpus or [16] * len(kinds))[i])))
        for i, kind in enumerate(kinds)
    )
    return Host(name="test", nodes=nodes, distances=tuple(map(tuple, distances)), access=access)


TWO = host(["dram", "dram"], [[10, 21], [21, 10]])
CXL = host(["dram", "cxl"], [[10, 24], [24, 10]], cpus=[16, 0])


def guest(policy_nodes, mode, machine=TWO, vcpu_nodes=(0,), pages=1024, **more):
    return wb.Scenario.model_validate(
        {
            "host": machine,
            "guest": {"memory": pages * 4096, "vcpus": [{"node": n} for n in vcpu_nodes]},
            "operations": [
                {"op": "create"},
                {"op": "mbind", "mode": mode, "nodes": policy_nodes},
                {"op": "fallocate"},
            ],
            **more,
        }
    )


# ----------------------------------------------------------------------------------------------- parameters


def test_every_cost_has_a_source_or_is_called_an_estimate():
    for cost in costs.COSTS.values():
        published = any(mark in cost.source for mark in ("github:", "LKML", "arXiv", "Documentation"))
        assert published or cost.estimated, cost
        assert cost.low <= cost.value <= cost.high, cost
        assert cost.unit


def test_unknown_cost_is_an_error():
    with pytest.raises(WorkbenchError, match="dram_latency"):
        costs.value("dram_latancy")


@given(st.integers(1, 40), st.integers(0, 5))
def test_samples_stay_in_range_and_begin_with_the_value(samples, seed):
    draws = costs.sample(("dram_latency", "cxl_latency"), samples, seed)
    for name, values in draws.items():
        cost = costs.COSTS[name]
        assert values[0] == cost.value and len(values) == samples
        assert ((cost.low <= values) & (values <= cost.high)).all()
    again = costs.sample(("dram_latency", "cxl_latency"), samples, seed)
    assert all((again[name] == draws[name]).all() for name in draws)


# -------------------------------------------------------------------------------------------------- machine


def test_estimates_follow_kind_and_distance_and_say_so():
    machine = traffic.machine(CXL)
    assert machine.estimated and "estimate" in machine.source
    assert machine.latency[0, 0] == costs.value("dram_latency")
    assert machine.latency[0, 1] == costs.value("cxl_latency")
    assert machine.home.tolist() == [0, 0]
    two = traffic.machine(TWO)
    # SLIT 21 is another socket, so the registry's ratios hold as they are.
    assert two.latency[0, 1] == pytest.approx(costs.value("dram_latency") * costs.value("remote_latency_ratio"))
    expected = costs.value("dram_bandwidth") * costs.value("remote_bandwidth_ratio")
    assert two.link_bandwidth[0, 1] == pytest.approx(expected)


def test_figures_of_the_host_are_taken_as_they_are():
    access = tuple(
        AccessCoordinate(
            initiator=i, target=t, read_bandwidth=b, write_bandwidth=b // 2, read_latency=ns, write_latency=ns
        )
        for (i, t), (b, ns) in {(0, 0): (200_000, 80), (1, 1): (200_000, 80), (0, 1): (60_000, 140)}.items()
    )
    machine = traffic.machine(host(["dram", "dram"], [[10, 21], [21, 10]], access=access))
    assert not machine.estimated
    assert machine.bandwidth.tolist() == [200_000, 200_000]
    assert machine.latency[0, 1] == 140 and machine.link_bandwidth[0, 1] == 60_000
    # 100 GB/s of writes, 200 of reads: equal parts take 1/2 + 2/2 of the time of reads alone
    half = len(curves.MIXES) // 2
    assert machine.memory_shape[0, [0, half, -1]] == pytest.approx([0.5, 2 / 3, 1.0])


def test_curves_begin_at_zero_and_rise():
    for family in curves.generic().values():
        assert (family.delays[:, 0] == 0).all() and (np.diff(family.delays, axis=1) >= 0).all()
    assert curves.LOADS[0] == 0 and curves.LOADS[-1] == 1


@pytest.mark.parametrize(
    "name", ["epyc1-naples-2s", "spr-8468v-cxl", "gh200-x4", "power9-ac922-6gpu", "altix-ia64-64n"]
)
def test_every_kind_of_machine_can_be_solved(name):
    machine = traffic.machine(Host.from_machine(name))
    with_cpus = machine.node_ids[machine.cpus > 0] if machine.cpus.any() else machine.node_ids[:1]
    vcpus = {int(node): 4.0 for node in with_cpus}
    shares = np.full(machine.nodes, 1 / machine.nodes)
    solution = traffic.solve(machine, traffic.streams(machine, shares, vcpus, "streaming"))
    assert (solution.iterations > 0).all()
    assert (solution.bandwidth > 0).all() and (solution.latency >= solution.idle_latency - 1e-9).all()
    assert (solution.node_load <= 1 + 1e-6).all() and (solution.link_load <= 1 + 1e-6).all()
    assert solution.bandwidth.sum() == pytest.approx(np.nansum(solution.node_used), rel=1e-6)


# ------------------------------------------------------------------------------------------------ placement


def test_local_pages_are_faster_than_remote_and_interleaved_ones():
    cost = {}
    for name, (mode, nodes) in {"local": ("bind", "0"), "remote": ("bind", "1"), "both": ("interleave", "0-1")}.items():
        cost[name] = traffic.access_cost(wb.simulate(guest(nodes, mode)), TWO, "pointer_chasing")
    latency = {name: float(c["latency"].values[0]) for name, c in cost.items()}
    assert latency["local"] < latency["both"] < latency["remote"]
    assert cost["both"]["node_share"].values == pytest.approx([0.5, 0.5])


def test_variables_say_what_they_are():
    cost = traffic.access_cost(wb.simulate(guest("0", "bind")), TWO)
    for variable in cost.data_vars.values():
        assert variable.attrs["basis"] == "modelled" and variable.attrs["source"] and variable.attrs["units"]
    assert cost.attrs["estimated"] == 1


def test_samples_are_a_dimension_and_the_same_each_time():
    dataset = wb.simulate(guest("0-1", "interleave"))
    one = traffic.access_cost(dataset, TWO, samples=12, seed=3)
    two = traffic.access_cost(dataset, TWO, samples=12, seed=3)
    plain = traffic.access_cost(dataset, TWO)
    assert one.sizes["sample"] == 12 and one.identical(two)
    assert float(one["bandwidth"].isel(sample=0, initiator=0)) == pytest.approx(float(plain["bandwidth"][0]))
    assert float(one["bandwidth"].std()) > 0


@given(st.integers(1, 3000), st.sampled_from(["uniform", "zipf"]), st.integers(0, 400), st.integers(1, 3000))
def test_shares_count_page_by_page(pages, pattern, first, length):
    from workbench import results

    dataset = wb.simulate(guest("0-1", "weighted_interleave", pages=pages, boot={"weights": {0: 3, 1: 2}}))
    access = {"pattern": pattern, "offset": first * 4096, "length": length * 4096}
    share, reached = traffic.memory_shares(dataset, access, costs={"cache_bytes": 0})
    nodes = results.page_nodes(dataset, "guest", first, min(pages, first + length))
    weight = np.arange(1.0, len(nodes) + 1) ** -(traffic.ZIPF_EXPONENT if pattern == "zipf" else 0.0)
    expected = np.bincount(nodes, weight, 2) / max(weight.sum(), 1e-300) if len(nodes) else np.zeros(2)
    assert share == pytest.approx(expected, abs=0.02 if pattern == "zipf" else 1e-12)
    assert reached == pytest.approx(1.0 if len(nodes) else 0.0)


def test_caches_take_the_hottest_pages():
    dataset = wb.simulate(guest("0-1", "interleave", pages=4096))
    everything = traffic.memory_shares(dataset, "zipf", costs={"cache_bytes": 0})[1]
    cached = traffic.memory_shares(dataset, "zipf", costs={"cache_bytes": 64 * 4096})[1]
    assert everything == pytest.approx(1.0)
    assert 0.3 < cached < 0.6


def test_bad_access_is_one_line():
    with pytest.raises(WorkbenchError, match="zipf"):
        traffic.access_pattern("zipff")
    with pytest.raises(WorkbenchError, match="runs no vCPU"):
        traffic.access_cost(wb.simulate(guest("0", "bind")), TWO, {"initiators": "1"})


@pytest.mark.parametrize("name", ["spr-8468v-cxl", "epyc1-naples-2s"])
def test_streams_that_are_alike_are_solved_as_one(name, monkeypatch):
    """A class gets what its streams get one by one: each as much, in all as many times as there are of them."""
    where = Host.from_machine(name)
    machines, chosen = machine.sampled(where, 3)
    rng = np.random.default_rng(len(name))
    vcpus = {node.id: float(rng.integers(1, 5)) for node in where.nodes if node.cpus}
    for pattern in ("streaming", "uniform"):
        kinds = []
        for _ in range(3):
            shares, walks = rng.dirichlet(np.ones(len(where.nodes)), (2, 2))
            access = {
                "pattern": pattern,
                "write_fraction": rng.choice([0.0, 0.3]),
                "demand_mbps": rng.choice([None, 500.0]),
            }
            kinds.append(
                traffic.streams(machines[0], shares, vcpus, access, walks=walks * rng.choice([0, 1]), extra_latency=3.0,
                                beside=rng.choice([0.0, 0.5]))
            )  # fmt: skip
        base = traffic.together([kinds[k] for k in rng.integers(3, size=24)])
        demand = base.drawn(traffic.lines_drawn(machines, pattern, chosen))
        alone = traffic.solve_draws(machines, demand, unsolved="nan")
        monkeypatch.setattr(traffic, "MANY_STREAMS", 2)
        solved = []
        monkeypatch.setattr(traffic, "_solve_classes", noted(traffic._solve_classes, solved))
        together = traffic.solve_draws(machines, demand, unsolved="nan")
        monkeypatch.undo()
        assert len(solved) == 1 and len(solved[0][2]) <= 3 * len(vcpus)
        met = (alone.iterations >= 0) & (together.iterations >= 0)  # nearly all: demands like these are nobody's
        assert met.mean() > 0.6
        for field in dataclasses.fields(traffic.Solution):
            if field.name != "iterations":
                one, other = getattr(alone, field.name), getattr(together, field.name)
                assert other[met] == pytest.approx(one[met], rel=1e-6, abs=1e-9), field.name


def noted(function, calls):
    """The function, which notes what it is called with."""

    def called(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return called


# -------------------------------------------------------------------------------------------------- weights


def test_optimum_is_the_best_of_all_small_weights():
    machine = with_figures(traffic.machine(CXL), {0: 200_000, 1: 25_000})
    best = weights.best_weights(machine, "streaming", vcpus={0: 64})
    tried = [
        traffic.solve(machine, traffic.streams(machine, np.array(w) / sum(w), {0: 64})).bandwidth.sum()
        for w in itertools.product(range(17), repeat=2)
        if sum(w)
    ]
    assert float(best["bandwidth"].sel(policy="optimum")) >= max(tried) * 0.995
    assert best["weight"].sel(policy="optimum").values.tolist() == [8, 1]


@pytest.mark.parametrize("pattern", ["streaming", "pointer_chasing"])
def test_ends_of_weights_hold_the_value_and_are_one_where_nothing_is_drawn(pattern):
    for where in (TWO, CXL, host(["dram", "hbm", "cxl"], [[10, 12, 24], [12, 10, 24], [24, 24, 10]], cpus=[16, 0, 0])):
        best = weights.best_weights(where, pattern, vcpus={0: 16})
        weight, share = best["weight"].values, best["share"].values
        assert share == pytest.approx(weight / weight.sum(axis=1, keepdims=True))
        for name, value in (("share", share), ("weight", weight)):
            assert (best[f"{name}_low"].values <= value * (1 + 1e-12)).all()
            assert (best[f"{name}_high"].values >= value * (1 - 1e-12)).all()
        assert ((best["wins"].values >= 0) & (best["wins"].values <= 1)).all()
        fixed = {name: costs.COSTS[name].value for name in machine.SAMPLED}
        same = weights.best_weights(where, pattern, vcpus={0: 16}, costs=fixed)
        for name in ("share", "weight", "bandwidth", "latency"):
            assert (same[f"{name}_low"].values == same[f"{name}_high"].values).all(), name
        assert same["wins"].values.tolist()[0] == 1.0
    lost = best.assign(wins=0 * best["wins"])
    assert weights.sentence(lost).startswith("none wins in any of 24 draws. The best weights give node 0 ")
    alone = weights.best_weights(TWO, pattern, vcpus={0: 16}, samples=1)
    assert "wins" not in alone and "share_low" not in alone
    with pytest.raises(WorkbenchError, match="needs draws"):
        weights.sentence(alone)


def test_figures_that_are_drawn_alike_leave_weights_as_they_are():
    """All bandwidths and all latencies of a machine are drawn by one factor each: the best shares keep their ratio."""
    where = with_figures(traffic.machine(CXL), {0: 200_000, 1: 25_000})
    best = weights.best_weights(where, "streaming", vcpus={0: 64})
    assert best["weight"].sel(policy="optimum").values.tolist() == [8, 1]
    low, high = (best[f"share_{end}"].sel(policy="optimum").values for end in ("low", "high"))
    assert low.tolist() == high.tolist() == pytest.approx([8 / 9, 1 / 9])
    assert best["wins"].sel(policy="optimum").item() == 1.0 and weights.sentence(best).startswith(
        "optimum wins in 100 %"
    )


def test_latency_bound_guests_want_the_near_node():
    best = weights.best_weights(CXL, "pointer_chasing", vcpus={0: 1})
    assert best["weight"].sel(policy="optimum").values.tolist() == [1, 0]


def test_automatic_weights_are_those_of_the_kernel():
    access = tuple(
        AccessCoordinate(initiator=0, target=t, read_bandwidth=b, write_bandwidth=b, read_latency=80, write_latency=80)
        for t, b in enumerate((204_800, 204_800, 61_440))
    )
    machine = host(["dram", "dram", "cxl"], [[10, 20, 24], [20, 10, 24], [24, 24, 10]], cpus=[16, 16, 0], access=access)
    assert weights.automatic_weights(machine).tolist() == [13, 13, 4]
    assert weights.automatic_weights(CXL).tolist() == [1, 1]  # no bandwidth recorded: mode auto keeps 1


def test_streams_side_by_side_are_those_of_all_placements_together():
    where = machine.machine(TWO)
    rows, access = np.array([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]), {"pattern": "uniform", "demand_mbps": 900.0}
    asked = {"vcpus": {0: 2.0, 1: 3.0}, "access": access, "extra_latency": 4.0, "beside": 0.5}
    found = traffic.streams(where, rows, **asked, walks=0.5 * rows).side_by_side()
    wanted = traffic.together([traffic.streams(where, row, **asked, walks=0.5 * row) for row in rows])
    for field in dataclasses.fields(wanted):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name), err_msg=field.name)


def test_a_search_for_weights_solves_no_shares_twice(monkeypatch):
    solved = []

    def noted(model, demand, **others):
        solved.extend(row.tobytes() for row in demand.shares if demand.shares.shape[1] == 2)
        return traffic.solve(model, demand, **others)

    monkeypatch.setattr(weights, "solve", noted)
    weights.best_weights(TWO, "streaming", vcpus={0: 4, 1: 4}, samples=1)
    assert len(solved) == len(set(solved)) > 20


def test_sixty_four_nodes_have_best_weights():
    best = weights.best_weights(Host.from_machine("altix-ia64-64n"), vcpus={0: 2}, nodes=list(range(8)))
    assert float(best["bandwidth"].sel(policy="optimum")) >= float(best["bandwidth"].max()) * 0.995


# ---------------------------------------------------------------------------------------------- translation


def test_walks_of_split_mappings_cost_more():
    lost = translation.split_loss(64 * GIB, 32, guest_page="1 GiB")
    assert lost["references"].sel(host_page="1 GiB").values.tolist() == [8, 8]
    assert float(lost["walk"].sel(state="split")) > float(lost["walk"].sel(state="whole"))


def test_snp_guests_get_no_gigabyte_mapping():
    plain = translation.walk_cost({"1 GiB": 16 * GIB}, "1 GiB")
    snp = translation.walk_cost({"1 GiB": 16 * GIB}, "1 GiB", confidential="snp")
    tdx = translation.walk_cost({"1 GiB": 16 * GIB}, "1 GiB", confidential="tdx")
    assert float(plain["misses_per_access"]) == 0.0
    assert 0.0 < float(snp["misses_per_access"]) < float(tdx["misses_per_access"])


def test_remote_tables_cost_the_latency_ratio():
    near = translation.walk_cost({"4 KiB": 1024 * GIB}, local_share=1.0)
    far = translation.walk_cost({"4 KiB": 1024 * GIB}, local_share=0.0)
    assert float(far["remote_references"]) == float(near["memory_references"])
    # almost all of a walk's time is in memory, where the remote node takes the ratio's time
    assert float(far["walk"] / near["walk"]) == pytest.approx(costs.value("remote_latency_ratio"), rel=0.01)


@pytest.mark.parametrize(("bad", "text"), [({"guest_page": "16 KiB"}, "16 KiB"), ({"confidential": "sgx"}, "sgx"),
                                           ({"local_share": 2.0}, "local_share")])  # fmt: skip
def test_bad_translation_input(bad, text):
    with pytest.raises(WorkbenchError, match=text):
        translation.walk_cost({"4 KiB": GIB}, **bad)


# ------------------------------------------------------------------------------------------- access operation


def run(*operations, **more):
    base = guest("0", "bind", vcpu_nodes=(0, 1), **more)
    return wb.simulate(base.model_copy(update={"operations": (*base.operations, *map(access_op, operations))}))


def access_op(fields):
    from workbench import scenario

    kinds = {"access": scenario.Access, "close": scenario.Close, "observe": scenario.Observe}
    return kinds[fields["op"]].model_validate(fields)


def test_access_operation_measures_the_moment():
    result = run({"op": "access", "pattern": "streaming"})
    assert result["event_op"].values[-1] == "access" and result["event_errno"].values[-1] == 0
    assert result["stream_node"].values.tolist() == [0, 1]
    assert result["stream_share"].values.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    near, far = result["stream_idle_latency"].values
    assert far > near
    assert result["access_used"].values[-1].sum() == pytest.approx(result["stream_bandwidth"].values.sum())
    assert result["stream_bandwidth"].attrs["basis"] == "modelled"


def test_every_modelled_figure_of_an_access_has_a_range_that_holds_it():
    # 4 GiB in 4 KiB pages: caches of 16 to 384 MiB serve less than a tenth, and every access walks.
    result = run({"op": "access", "pattern": "uniform"}, pages=1 << 20)
    modelled = [
        name
        for name, v in result.data_vars.items()
        if v.attrs["basis"] == "modelled" and name[-4:] not in ("_low", "high")
    ]
    assert len(modelled) == 7
    for name in modelled:
        low, value, high = (result[f"{name}{end}"].values[-1] for end in ("_low", "", "_high"))
        wide = 1.01 if name == "stream_memory_fraction" else 1.1
        at = value > 0
        assert (low <= value).all() and (value <= high).all() and at.any() and (high[at] > wide * low[at]).all(), name
    size = float(result["pages_per_node"].sum()) * 4096
    caches = costs.COSTS["cache_bytes"]
    assert result["stream_memory_fraction"].values == pytest.approx(1 - caches.value / size)
    low, high = result["stream_memory_fraction_low"].values[0], result["stream_memory_fraction_high"].values[0]
    assert (
        1 - caches.high / size < low < 1 - 0.6 * caches.high / size
        and 1 - 2 * caches.low / size < high < 1 - caches.low / size
    )


def test_what_nobody_asks_draws_of_has_the_ends_that_draws_have():
    placed = wb.simulate(guest("0-1", "interleave"))
    cells = [vnuma.Cell(0, 2, GIB, GIB // 2), vnuma.Cell(1, 2, GIB, GIB // 2)]
    one = {"interleave": placement_cost.POLICIES["interleave"]}
    for make in (
        lambda **draws: traffic.access_cost(placed, TWO, "zipf", **draws),
        lambda **draws: weights.best_weights(TWO, "streaming", vcpus={0: 2}, **draws),
        lambda **draws: translation.walk_cost({"4 KiB": 64 * GIB}, exponent=0.99, **draws),
        lambda **draws: vnuma.cost(TWO, cells, views=["distances", "flat"], **draws),
        lambda **draws: placement_cost.policy_costs(TWO, memory="16 MiB", access="uniform", policies=one, **draws),
    ):
        alone, every, ends = make(samples=1), make(samples=costs.DRAWS), make()
        drawn = [name for name, variable in every.data_vars.items() if "sample" in variable.dims and name != "draw"]
        assert drawn and not any(str(name).endswith("_low") for name in alone)
        for name in drawn:
            values = every[name].transpose("sample", ...).values
            assert ends[name].values == pytest.approx(values[0]) and alone[name].values == pytest.approx(values[0])
            for end, part in (("low", 0.05), ("high", 0.95)):
                limit = np.quantile(values[1:], part, axis=0)
                limit = np.minimum(limit, values[0]) if end == "low" else np.maximum(limit, values[0])
                assert ends[f"{name}_{end}"].values == pytest.approx(limit), name


@pytest.mark.parametrize("node", ["0", 0.0, True, None, 7])
def test_only_a_whole_number_is_a_node(node):
    with pytest.raises(WorkbenchError, match=f"^node: {node!r} is not a node of this host .0, 1.$"):
        machine.machine(TWO).index_of(node)
    assert machine.machine(TWO).index_of(np.int64(1)) == 1


def test_machines_drawn_before_are_those_that_would_be_drawn():
    first, values = machine.sampled(TWO, 3, 8)
    values[1]["dram_latency"] = 1e9  # what one caller does to his draws is not seen by others
    again, drawn = machine.sampled(TWO, 3, 8)
    assert again is first and drawn[1]["dram_latency"] < 1e3
    other = machine.sampled(TWO, 3, 8, {"dram_latency": 90.0})[0]
    with costs.drawn({"dram_latency": 91.0}):
        inside = machine.sampled(TWO, 3, 8)[0]
    assert other is not first and inside is not first and machine.sampled(TWO, 3, 9)[0] is not first
    assert not machine.at_hand(TWO.model_copy(update={"name": "another"}))


def test_accesses_that_follow_each_other_share_the_memory():
    stream = {"op": "access", "pattern": "streaming"}
    alone = run({**stream, "initiators": "1"})
    apart = run({**stream, "initiators": "0"}, {"op": "observe"}, {**stream, "initiators": "1"})
    both = run({**stream, "initiators": "0"}, {**stream, "initiators": "1"})
    assert float(apart["stream_latency"][1]) == pytest.approx(float(alone["stream_latency"][0]))
    assert float(both["stream_latency"][1]) > float(alone["stream_latency"][0])


def test_wanted_demand_is_not_exceeded():
    result = run({"op": "access", "demand_mbps": 100.0})
    assert result["stream_bandwidth"].values == pytest.approx([100.0, 100.0])


def test_access_to_a_closed_file_is_refused():
    import errno

    result = run({"op": "close"}, {"op": "access"})
    assert result["event_errno"].values[-1] == errno.EBADF
    assert "stream_node" not in result


def test_conversions_make_page_walks_dearer():
    def walk(*operations):
        scenario = wb.Scenario.model_validate(
            {
                "host": TWO,
                "guest": {"memory": "16 GiB", "page_size": "1 GiB", "design": "hugetlb", "vm_type": "sw_protected"},
                "operations": [{"op": "create"}, {"op": "fault", "by": "guest"}, *operations, {"op": "access"}],
            }
        )
        result = wb.simulate(scenario)
        assert (result["event_errno"].values == 0).all()
        return float(result["stream_walk"][0])

    private = {"op": "convert", "to": "private", "length": "16 GiB"}
    split = [{"op": "convert", "to": "shared", "offset": k << 30, "length": 4096} for k in range(8)]
    assert walk(private) == 0.0
    assert walk(private, *split) > 5.0


def test_access_variables_survive_storage(tmp_path):
    from workbench import results

    result = run({"op": "access", "pattern": "zipf"})
    for name in ("result.nc", "result.zarr"):
        again = results.load(results.save(result, tmp_path / name))
        assert again["stream_bandwidth"].identical(result["stream_bandwidth"])

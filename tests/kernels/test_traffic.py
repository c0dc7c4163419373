"""Fair sharing and its fixed point with bandwidth-latency curves: closed forms, invariants, plain Python twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import traffic as reference
from workbench.kernels import traffic

FLAT = np.array([[0.0, 1.0]]), np.array([[0.0, 0.0]])
KNEE = np.array([[0.0, 0.8, 1.0]]), np.array([[0.0, 20.0, 400.0]])
INF = float("inf")


def rows(streams):
    start = np.cumsum([0] + [len(s) for s in streams]).astype(np.int64)
    resource = np.array([r for s in streams for r in s], np.int64)
    usage = np.array([u for s in streams for u in s.values()], np.float64)
    return start, resource, usage


def problem(streams, capacity, *, idle=0.0, window=0.0, wanted=INF, weight=1.0, curves=FLAT, scale=1.0):
    """Streams and resources of the kernel; a visit counts as much as it takes."""
    start, resource, usage = rows(streams)
    full = lambda value, count: np.full(count, value, float) if np.isscalar(value) else np.array(value, float)  # noqa: E731
    asked = traffic.Streams(
        start, resource, usage, usage, *(full(value, len(streams)) for value in (idle, window, wanted, weight))
    )
    resources = len(capacity)
    there = traffic.Resources(np.array(capacity, float), np.zeros(resources, np.int64), *curves, full(scale, resources))
    return asked, there


def fair(streams, capacity, weight=1.0, demand=INF):
    asked, there = problem(streams, capacity, weight=weight)
    count, resources = len(streams), len(capacity)
    solution, work = traffic.room(count, resources), traffic.scratch(count, resources, len(asked.resource))
    work.demand[:] = demand
    traffic.transpose(asked, resources, work.resource_start, work.resource_stream)
    traffic.max_min_fair(asked, there, resources, solution, work)
    return solution.rate, solution.used


def solved(streams, capacity, window, idle=100.0, curves=FLAT, wanted=INF, weight=1.0, tolerance=1e-8, scale=1.0):
    given = {"idle": idle, "window": window, "wanted": wanted, "weight": weight, "curves": curves, "scale": scale}
    solution, iterations = traffic.solve_streams(*problem(streams, capacity, **given), tolerance)
    assert iterations > 0 and solution.residual[0] <= tolerance
    return solution.rate, solution.latency, solution.used, solution.delay


networks = st.integers(1, 6).flatmap(
    lambda resources: st.tuples(
        st.lists(
            st.dictionaries(st.integers(0, resources - 1), st.floats(0.01, 1.0), min_size=1, max_size=resources),
            min_size=1,
            max_size=12,
        ),
        st.lists(st.floats(1.0, 1e5), min_size=resources, max_size=resources),
    )
)


def test_one_bottleneck_is_shared_equally():
    rate, used = fair([{0: 1.0}] * 4, [100.0])
    assert rate == pytest.approx([25.0] * 4) and used == pytest.approx([100.0])


def test_weights_are_proportions():
    rate, _ = fair([{0: 1.0}, {0: 1.0}], [90.0], weight=[1.0, 2.0])
    assert rate == pytest.approx([30.0, 60.0])


def test_small_demand_leaves_the_rest_to_the_others():
    rate, _ = fair([{0: 1.0}] * 3, [100.0], demand=[10.0, INF, INF])
    assert rate == pytest.approx([10.0, 45.0, 45.0])


def test_long_flow_of_the_textbook():
    # Bertsekas and Gallager: one flow over both links, one over each; the tight link decides first.
    rate, _ = fair([{0: 1.0, 1: 1.0}, {0: 1.0}, {1: 1.0}], [10.0, 100.0])
    assert rate == pytest.approx([5.0, 5.0, 95.0])


def test_a_spread_stream_goes_as_fast_as_its_slowest_share():
    rate, _ = fair([{0: 0.9, 1: 0.1}], [200e3, 22e3])
    assert rate == pytest.approx([min(200e3 / 0.9, 22e3 / 0.1)])


def test_no_capacity_means_no_rate():
    rate, _ = fair([{0: 1.0}, {1: 1.0}], [0.0, 7.0])
    assert rate == pytest.approx([0.0, 7.0])


@given(networks, st.data())
def test_same_as_plain_python(network, data):
    streams, capacity = network
    weight = data.draw(st.lists(st.floats(0.1, 8.0), min_size=len(streams), max_size=len(streams)))
    demand = data.draw(
        st.lists(st.one_of(st.just(INF), st.floats(0.0, 1e5)), min_size=len(streams), max_size=len(streams))
    )
    rate, _ = fair(streams, capacity, weight, demand)
    assert rate == pytest.approx(reference.max_min_fair(streams, capacity, weight, demand), rel=1e-7, abs=1e-7)


@given(networks)
def test_conservation_and_max_min_property(network):
    streams, capacity = network
    rate, used = fair(streams, capacity)
    assert (rate >= 0).all()
    assert (used <= np.array(capacity) * (1 + 1e-9)).all()
    again = [sum(r * s.get(k, 0.0) for r, s in zip(rate, streams, strict=True)) for k in range(len(capacity))]
    assert used == pytest.approx(again, rel=1e-9, abs=1e-9)
    for s, stream in enumerate(streams):  # a full resource where nobody goes faster: why this stream cannot
        assert any(
            used[r] >= capacity[r] * (1 - 1e-7)
            and all(rate[o] <= rate[s] * (1 + 1e-7) for o, other in enumerate(streams) if r in other)
            for r in stream
        )


@given(networks, st.randoms(use_true_random=False))
def test_order_of_the_flows_does_not_matter(network, random):
    streams, capacity = network
    order = list(range(len(streams)))
    random.shuffle(order)
    rate, latency, _, _ = solved(streams, capacity, 4096.0, curves=KNEE)
    shuffled, shuffled_latency, _, _ = solved([streams[s] for s in order], capacity, 4096.0, curves=KNEE)
    assert shuffled == pytest.approx(rate[order], rel=1e-4, abs=1e-6)
    assert shuffled_latency == pytest.approx(latency[order], rel=1e-4)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.floats(1.0, 1e5), min_size=4, max_size=4),
    st.integers(0, 3),
    st.floats(1.0, 4.0),
)
def test_more_capacity_never_lowers_the_total(targets, capacity, which, factor):
    """For flows that each touch one node; with links in series a longer flow may gain at others' expense."""
    streams = [{t: 1.0} for t in targets]
    before, *_ = solved(streams, capacity, 4096.0, curves=KNEE)
    more = [c * factor if r == which else c for r, c in enumerate(capacity)]
    after, *_ = solved(streams, more, 4096.0, curves=KNEE)
    assert after.sum() >= before.sum() * (1 - 1e-5)


@given(networks, st.floats(1.0, 4.0))
def test_all_capacities_scaled_never_lower_a_total(network, factor):
    streams, capacity = network
    before, *_ = solved(streams, capacity, 4096.0, curves=KNEE)
    after, *_ = solved(streams, [c * factor for c in capacity], 4096.0, curves=KNEE)
    assert after.sum() >= before.sum() * (1 - 1e-5)


def test_idle_machine_runs_at_window_over_latency():
    rate, latency, _, _ = solved([{0: 1.0}], [1e6], window=640.0, idle=80.0)
    assert rate == pytest.approx([8000.0]) and latency == pytest.approx([80.0])


def test_saturated_latency_is_window_over_rate():
    _, latency, used, _ = solved([{0: 1.0}] * 2, [1000.0], window=4000.0, idle=80.0)
    assert used == pytest.approx([1000.0])
    assert latency == pytest.approx([8000.0] * 2)


def test_one_stream_on_the_knee_in_closed_form():
    # Below the knee delay = 25 * load ns; rate x solves x (100 + 25 x / 10000) = 640 * 1000.
    rate, latency, _, _ = solved([{0: 1.0}], [10_000.0], window=640.0, idle=100.0, curves=KNEE)
    b = 100.0
    expected = (-b + np.sqrt(b * b + 4 * 0.0025 * 640e3)) / (2 * 0.0025)
    assert rate == pytest.approx([expected], rel=1e-6)
    assert latency == pytest.approx([640e3 / expected], rel=1e-6)


@given(networks, st.floats(64.0, 1e5), st.floats(50.0, 500.0))
def test_solution_agrees_with_itself(network, window, idle):
    """Loads give delays, delays demands, demands fair rates, rates the same loads: all redone in plain Python."""
    streams, capacity = network
    tolerance = 1e-7
    _, _, used, _ = solved(streams, capacity, window, idle, curves=KNEE, tolerance=tolerance)
    points = list(zip(KNEE[0][0], KNEE[1][0], strict=True))

    def loads(offset):
        delay = [reference.interpolate(u / c + offset, points) for u, c in zip(used, capacity, strict=True)]
        demand = [window / (idle + sum(v * delay[r] for r, v in s.items())) * 1000 for s in streams]
        rate = reference.max_min_fair(streams, capacity, [1.0] * len(streams), demand)
        return np.array([sum(x * s.get(r, 0.0) for x, s in zip(rate, streams, strict=True)) for r in range(len(used))])

    # The curve's slope turns an error of the tolerance in the load into this much in the demand.
    slack = 50 * tolerance * 1900.0 / idle * np.array(capacity).sum() + 1e-6 * np.array(capacity)
    assert (np.abs(loads(0.0) - used) <= slack).all()


def test_symmetric_machine_gives_symmetric_rates():
    streams = [{n: 0.5, (n + 1) % 4: 0.5} for n in range(4)]
    rate, latency, used, _ = solved(streams, [5e4] * 4, window=3000.0, curves=KNEE)
    assert np.ptp(rate) < 1e-3 and np.ptp(latency) < 1e-3 and np.ptp(used) < 1e-2


@given(st.floats(-0.5, 2.0))
def test_curve_is_the_interpolation_of_its_points(load):
    loads, delays = KNEE
    points = list(zip(loads[0], delays[0], strict=True))
    assert traffic.curve_delay(load, loads[0], delays[0]) == pytest.approx(reference.interpolate(load, points))


@pytest.mark.parametrize("window", [64.0, 300.0, 1536.0, 1e5])
def test_large_machine_converges(window):
    rng = np.random.default_rng(5)
    streams = [{int(rng.integers(64)): 1.0} for _ in range(1500)]
    rate, _, used, _ = solved(streams, rng.uniform(1e3, 3e4, 64), window, curves=KNEE, tolerance=1e-6)
    assert rate.sum() == pytest.approx(used.sum())

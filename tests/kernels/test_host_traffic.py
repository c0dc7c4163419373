"""Streams on a host in closed form: links, ports, page walks, mixes of reads and writes, caps of cores, shared queues."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.kernels import host_traffic

INF = float("inf")
LOADS = np.array([0.0, 1.0])
FLAT = np.zeros((1, 2, 2))


def machine(memory=(1e5, 1e5), link=1e4, latency=((70.0, 130.0), (130.0, 70.0)), cores=INF, queue=INF, delays=FLAT):
    """Two nodes; every capacity a number or (writes alone, reads alone); ports carry twice a link."""
    both = lambda value: np.broadcast_to(np.asarray(value, float), (2,))  # noqa: E731
    links = [both(link)] * 4
    ports = [2 * both(link)] * 2
    peaks = np.array([*(both(m) for m in memory), *links, *ports, both(cores), both(cores)])
    return host_traffic.MachineArrays(
        np.arange(2), np.array(latency, float), peaks, np.zeros(len(peaks), np.int64), LOADS, delays, np.full(2, queue)
    )


def demand(shares, walks=None, writes=0.0, window=640.0, wanted=INF, extra=0.0, initiator=(0, 1)):
    """Streams of every row of ``shares`` (placements, streams, nodes)."""
    shares = np.array(shares, float)
    count = shares.shape[1]
    full = lambda value: np.full(count, value, float) if np.isscalar(value) else np.array(value, float)  # noqa: E731
    return host_traffic.Demand(
        shares, np.zeros_like(shares) if walks is None else np.array(walks, float), np.array(initiator, np.int64),
        full(writes), full(extra), full(window), full(wanted), full(1.0),
    )  # fmt: skip


def draws(hosts, demands):
    """Machines and streams as those of one host and one set of vCPUs under as many draws."""
    of = lambda field, parts: np.array([getattr(part, field) for part in parts])  # noqa: E731
    machines = {field: of(field, hosts) for field in ("latency", "peaks", "queue")}
    streams = {field: of(field, demands) for field in ("shares", "walks", "extra_latency", "window")}
    return hosts[0]._replace(**machines), demands[0]._replace(**streams)


def solve(host, asked, tolerance=1e-8):
    rate, latency, idle, walk, used, capacity, wait, iterations = host_traffic.solve_placements(
        *draws([host], [asked]), tolerance, 500, 60
    )
    assert (iterations > 0).all()
    return rate, latency, idle, walk, used, capacity, wait


def for_both(rows):
    return np.repeat(np.array(rows, float)[:, None, :], 2, axis=1)


def test_placements_in_closed_form():
    rate, latency, idle, _, used, _, _ = solve(machine(), demand(for_both([[1, 0], [0, 1], [0.5, 0.5], [0, 0]])))
    assert idle[0].tolist() == [70, 130] and idle[2].tolist() == [100, 100]
    assert rate[0] == pytest.approx([640e3 / 70, 640e3 / 130])
    assert rate[2] == pytest.approx([6400, 6400]) and latency[2] == pytest.approx([100, 100])
    assert used[0, :2] == pytest.approx([rate[0].sum(), 0])
    # links 0 -> 1 and 1 -> 0, then the ports of both nodes, which carry both directions
    assert used[2, 3:5] == pytest.approx([3200, 3200]) and used[2, 6:8] == pytest.approx([6400, 6400])
    assert rate[3].tolist() == [0, 0] and used[3].tolist() == [0] * 10


def test_a_short_link_slows_the_stream_that_crosses_it():
    rate, latency, _, _, used, _, _ = solve(machine(link=1000.0), demand(for_both([[1, 0]])))
    assert rate[0] == pytest.approx([640e3 / 70, 1000.0])
    assert latency[0, 1] == pytest.approx(640.0) and used[0, 4] == pytest.approx(1000.0)


def test_a_port_carries_all_links_of_its_node():
    # Node 0 reads from node 1 and node 1 from node 0: 2 x 1000 MB/s of links, and ports of 1500.
    host = machine(link=1000.0)
    host.peaks[6:8] = 1500.0
    rate, *_ = solve(host, demand([[[0, 1], [1, 0]]]))
    assert rate[0] == pytest.approx([750.0, 750.0])


def test_each_placement_is_solved_on_its_own():
    rows = for_both(np.random.default_rng(3).dirichlet(np.ones(2), 20))
    together = solve(machine(), demand(rows, window=64e3))
    for row in range(20):
        alone = solve(machine(), demand(rows[row : row + 1], window=64e3))
        for all_, one in zip(together, alone, strict=True):
            assert np.array_equal(all_[row], one[0])


# ----------------------------------------------------------------------------------------------- page walks


def test_walks_take_their_part_of_the_node():
    """1.97 references an access: a node of 101,007 MB/s gives 101,007 / 2.97 MB/s of data, not all of it."""
    rate, _, _, _, used, _, _ = solve(
        machine(memory=(101_007.0, 1e5)), demand([[[1, 0]]], walks=[[[1.97, 0]]], window=1e6, initiator=(0,))
    )
    assert rate[0, 0] == pytest.approx(101_007 / 2.97) and used[0, 0] == pytest.approx(101_007)


def test_walks_go_where_the_tables_lie():
    """Data on node 0, tables on node 1, half a reference an access: 70 + 0.5 x 130 ns, and the link carries half."""
    asked = demand([[[1, 0]]], walks=[[[0, 0.5]]], extra=5.0, initiator=(0,))
    rate, latency, idle, walk, used, _, _ = solve(machine(), asked)
    assert idle[0, 0] == latency[0, 0] == pytest.approx(70 + 0.5 * 130 + 5)
    assert walk[0, 0] == pytest.approx(0.5 * 130 + 5)
    assert rate[0, 0] == pytest.approx(640e3 / 140)
    assert used[0, [0, 1, 3]] == pytest.approx(rate[0, 0] * np.array([1, 0.5, 0.5]))


def test_walks_shorten_what_a_slow_table_node_leaves():
    """Data fit into node 0, but the tables' node carries 1000 MB/s: 1000 / 0.5 MB/s of data."""
    rate, *_ = solve(machine(memory=(1e5, 1000.0)), demand([[[1, 0]]], walks=[[[0, 0.5]]], initiator=(0,), window=1e5))
    assert rate[0, 0] == pytest.approx(2000.0)


shares_ = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).filter(lambda s: sum(s) > 0.01)


@given(shares_, shares_, st.floats(0.0, 4.0), st.floats(0.0, 1.0), st.floats(64.0, 1e5))
def test_nothing_is_lost_and_nothing_exceeds_its_capacity(data, tables, references, writes, window):
    """Conservation with walks charged: what memories deliver is data and walks, for any placement of either."""
    data, tables = np.array(data) / sum(data), references * np.array(tables) / sum(tables)
    host = machine(memory=((6e4, 9e4), (2e4, 3e4)), link=(8e3, 1e4), cores=7e4, queue=3e4)
    asked = demand([[data, data]], walks=[[tables, tables]], writes=writes, window=window)
    rate, latency, idle, walk, used, capacity, wait = solve(host, asked)
    assert used[0, :2].sum() == pytest.approx(rate[0].sum() * (1 + references), rel=1e-6)
    assert used[0, :2] == pytest.approx(rate[0].sum() * (data + tables), rel=1e-6)
    assert used[0, 8:] == pytest.approx(rate[0] * (1 + references), rel=1e-6)
    assert (used <= capacity * (1 + 1e-6)).all()
    assert (latency >= idle * (1 - 1e-9)).all() and (walk <= latency).all()
    # Little: bytes in flight are what the window holds
    assert (rate * latency <= 1000 * window * (1 + 1e-6)).all()
    # and the queue of each socket holds what is under way, data and walks; nobody waits for one that has room
    inside = rate[0] * (latency[0] - (1 + references) * wait[0]) / 1000
    assert (inside <= 3e4 * (1 + 2e-4)).all() and inside[wait[0] > 0] == pytest.approx(3e4, rel=2e-4)


@given(st.sampled_from(["memory", "link", "cores"]), st.floats(1.0, 3.0), st.floats(0.0, 1.0), st.floats(0.0, 2.0))
def test_more_of_anything_never_costs_bandwidth(what, factor, remote, references):
    """One stream: whichever capacity grows, it does not get slower."""
    asked = demand([[[1 - remote, remote]]], walks=[[[0.3 * references, 0.7 * references]]], initiator=(0,), window=2e4)
    few = {"memory": np.array((5e4, 4e4)), "link": 1e4, "cores": 3e4}
    more = {name: value * factor if name == what else value for name, value in few.items()}
    before, after = (solve(machine(**sizes), asked)[0].sum() for sizes in (few, more))
    assert after >= before * (1 - 1e-6)


# ------------------------------------------------------------------------------------------ reads and writes


def test_a_resource_has_the_capacity_of_the_mix_it_carries():
    """Reads alone 100 GB/s, writes alone 50, linear between: a quarter written gives 87.5."""
    host = machine(memory=((50_000.0, 100_000.0), 1e5))
    rate, _, _, _, _, capacity, _ = solve(host, demand([[[1, 0]]], writes=0.25, window=1e6, initiator=(0,)))
    assert rate[0, 0] == capacity[0, 0] == pytest.approx(87_500)


def test_mixes_of_several_streams_and_walks_settle():
    """One stream reads, one writes, both as fast: half the data is written; walks only read and shift the mix."""
    host = machine(memory=((50_000.0, 100_000.0), 1e5))
    both = [[[1, 0], [1, 0]]]
    rate, _, _, _, used, capacity, _ = solve(host, demand(both, writes=[0, 1], window=1e6, initiator=(0, 0)))
    assert rate[0] == pytest.approx([37_500, 37_500]) and capacity[0, 0] == pytest.approx(75_000)
    walked = demand(both, walks=[[[1, 0], [1, 0]]], writes=[0, 1], window=1e6, initiator=(0, 0))
    rate, _, _, _, used, capacity, _ = solve(host, walked)
    # rates r, r and walks 2 r: 3 of 4 parts are reads, 87.5 GB/s for 4 r
    assert capacity[0, 0] == used[0, 0] == pytest.approx(87_500)
    assert rate[0] == pytest.approx([87_500 / 4] * 2)


def test_a_duplex_link_carries_more_when_both_directions_are_used():
    """10 GB/s each way: reads alone 10, writes alone 10, half and half 20."""
    host = machine()
    half = np.array([10_000.0, 20_000.0, 10_000.0])
    peaks = np.repeat(host.peaks[:, :1], 3, axis=1)
    peaks[2:6], peaks[6:8] = half, 2 * half
    host = host._replace(peaks=peaks, delays=np.zeros((1, 3, 2)))
    for writes, expected in ((0.0, 10_000), (1.0, 10_000), (0.5, 20_000), (0.25, 15_000)):
        rate, *_ = solve(host, demand([[[0, 1]]], writes=writes, window=1e6, initiator=(0,)))
        assert rate[0, 0] == pytest.approx(expected)


def test_delays_follow_the_mix():
    """Full load adds 100 ns to reads and 300 ns to writes; a wish of half the capacity at a mix of one half: 100 ns."""
    delays = np.array([[[0.0, 300.0], [0.0, 100.0]]])
    asked = demand([[[1, 0]]], writes=0.5, window=1e6, wanted=50_000.0, initiator=(0,))
    _, latency, *_ = solve(machine(delays=delays), asked)
    # the cores' row carries the same curve but has no capacity to be loaded against
    assert latency[0, 0] == pytest.approx(70 + 0.5 * 200)


# ------------------------------------------------------------------------------------------- cores and queues


def test_cores_together_pull_no_more_than_their_cap():
    rate, *_ = solve(machine(cores=20_000.0, link=1e6), demand([[[1, 0], [1, 0]]], window=1e6))
    assert rate[0] == pytest.approx([20_000, 20_000])
    walked = demand([[[1, 0], [1, 0]]], walks=[[[1, 0], [0, 0]]], window=1e6)
    rate, *_ = solve(machine(cores=20_000.0, link=1e6), walked)
    assert rate[0] == pytest.approx([10_000, 20_000])  # walks pass the cores too


def test_a_slow_memory_slows_a_fast_one_behind_the_same_queue():
    """Two streams of one socket, 10,000 bytes in flight each, a queue of 8,000: fast memory 100 ns, slow 1000 MB/s.

    Without the queue the fast stream has 10,000 / 100 ns = 100 GB/s. With it both wait T before they enter:
    T = (20,000 - 8,000) / (r + 1) ns and r = 10,000 / (T + 100), in B/ns.
    """
    host = machine(memory=(1e6, 1000.0), link=1e6, latency=((100.0, 100.0), (100.0, 100.0)))
    asked = demand([[[1, 0], [0, 1]]], window=10_000.0, initiator=(0, 0))
    assert solve(host, asked)[0][0] == pytest.approx([100_000, 1000])
    rate, latency, _, _, _, _, wait = solve(host._replace(queue=np.array([8000.0, INF])), asked)
    fast = max(np.roots([100, 12_000 + 100 - 10_000, -10_000]).real)  # r (12,000 / (r + 1) + 100) = 10,000
    assert rate[0] == pytest.approx([1000 * fast, 1000], rel=1e-3)
    assert wait[0, 0] == pytest.approx(12_000 / (fast + 1), rel=1e-3)
    assert latency[0, 0] == pytest.approx(10_000 / fast, rel=1e-3)


def test_page_walks_wait_in_the_queue_like_data():
    """Two streams of one socket, 10,000 bytes in flight each, all 100 ns away; the second walks once an access.

    Both wait T for each request: r = 10,000 / (100 + T) and 10,000 / (200 + 2 T), of which 100 r + 200 r' are inside. A queue of
    10,000 bytes makes T 100 ns, 50 and 25 GB/s. A stream that spends 100 ns besides memory instead keeps nothing in the queue
    meanwhile: r' = 10,000 / (200 + T), inside 100 r + 100 r', so 8,333 bytes make T 100 ns.
    """
    host = machine(memory=(1e6, 1e6), latency=((100.0, 100.0), (100.0, 100.0)))
    rows = [[[1, 0], [1, 0]]]
    walking = demand(rows, walks=[[[0, 0], [1, 0]]], window=10_000.0, initiator=(0, 0))
    rate, latency, _, walk, used, _, wait = solve(host._replace(queue=np.array([10_000.0, INF])), walking)
    assert wait[0, 0] == pytest.approx(100, rel=1e-3)
    assert rate[0] == pytest.approx([50_000, 25_000], rel=1e-3) and latency[0] == pytest.approx([200, 400], rel=1e-3)
    assert walk[0] == pytest.approx([0, 200], rel=1e-3) and used[0, 0] == pytest.approx(100_000, rel=1e-3)
    beside = demand(rows, extra=[0.0, 100.0], window=10_000.0, initiator=(0, 0))
    rate, latency, _, walk, _, _, wait = solve(host._replace(queue=np.array([25_000 / 3, INF])), beside)
    assert wait[0, 0] == pytest.approx(100, rel=1e-3) and rate[0] == pytest.approx([50_000, 100_000 / 3], rel=1e-3)
    assert walk[0] == pytest.approx([0, 100], rel=1e-3) and latency[0] == pytest.approx([200, 300], rel=1e-3)


def test_a_queue_that_is_long_enough_changes_nothing():
    host = machine(memory=(1e6, 1000.0), link=1e6)
    asked = demand([[[1, 0], [0, 1]]], window=10_000.0, initiator=(0, 0))
    free = solve(host, asked)
    for wide, unlimited in zip(solve(host._replace(queue=np.full(2, 20_001.0)), asked), free, strict=True):
        assert np.array_equal(wide, unlimited)


def test_queues_of_two_sockets_that_move_each_other_settle():
    """Both sockets wait, and each wait moves the other: brackets of one that were left behind held no solution, 15 in 100."""
    host = machine(memory=(2e5, 2e5), link=4e4, queue=2e4)
    rng = np.random.default_rng(2)
    rows = rng.dirichlet(np.ones(2), (200, 4))
    walks = rng.dirichlet(np.ones(2), (200, 4)) * rng.uniform(0, 3, (200, 4, 1)) * np.array([0, 0, 1, 1])[:, None]
    solve(
        host, demand(rows, walks=walks, window=np.array([6e4, 6e4, 2e4, 2e4]), initiator=(0, 1, 0, 1)), tolerance=1e-6
    )


def test_what_cannot_be_solved_is_marked():
    """A stream that wants 1000 MB/s through a queue of one byte, and has no window that waiting would shrink."""
    asked = demand([[[1, 0]]], window=0.0, wanted=1000.0, initiator=(0,))
    *_, iterations = host_traffic.solve_placements(*draws([machine(queue=1.0)], [asked]), 1e-8, 500, 60)
    assert iterations.tolist() == [-1]


def test_draws_at_once_are_draws_one_by_one():
    """Each has figures, queues, lines in flight, shares and walks of its own; none leaves anything to the next."""
    rng = np.random.default_rng(7)
    hosts, demands = [], []
    for queue in (INF, 8000.0, 3e4, INF):
        memory, link = rng.uniform(1e3, 1e5, (2, 2)), rng.uniform(1e3, 3e4, 2)
        delays = np.broadcast_to([[[0.0, 80.0]], [[0.0, 90.0]]], (1, 2, 2, 2))[0]
        hosts.append(machine(memory, link, rng.uniform(70, 200, (2, 2)), queue=queue, delays=FLAT + delays[:1]))
        shares = rng.dirichlet(np.ones(2), (3, 4)) * rng.choice([0.0, 1.0], (3, 1, 1), p=[0.3, 0.7])
        walks = rng.uniform(0, 1, (3, 4, 2)) * np.array([0, 0, 1, 1])[:, None]
        window, extra = rng.uniform(500, 6e4, (2, 4)) * np.array([[1.0], [1e-3]])
        demands.append(demand(shares, walks, writes=[0, 0.3, 0, 1], window=window, extra=extra, initiator=(0, 1, 0, 1)))
    found = host_traffic.solve_placements(*draws(hosts, demands), 1e-8, 500, 60)
    assert (found[-1] > 0).all()
    for k, pair in enumerate(zip(hosts, demands, strict=True)):
        for together, alone in zip(found, solve(*pair), strict=False):
            assert np.array_equal(together[3 * k : 3 * k + 3], alone)

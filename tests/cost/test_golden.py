"""Figures of the cost model worked out on paper: machines without delays under load, so that every number is one line."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench import costs
from workbench.cost import curves, profile, traffic, translation, weights
from workbench.cost.kernel_times import kernel_times
from workbench.cost.machine import SAMPLED, machine, parameters
from workbench.errors import WorkbenchError
from workbench.topology.host import Host, Node, machine_names
from workbench.truth.published import read_table

GIB = 1 << 30


def flat(ns, mbps):
    """A curve without delay: idle latency up to the peak."""
    return {100.0: [[0.0, ns], [mbps, ns]]}


def host(*kinds, cpus=None, remote=21, name="golden", hardware=None):
    count = len(kinds)
    nodes = tuple(
        Node(id=i, memory_bytes=128 * GIB, kind=kind, cpus=tuple(range(16 * i, 16 * i + (cpus or [16] * count)[i])))
        for i, kind in enumerate(kinds)
    )
    distances = tuple(tuple(10 if i == j else remote for j in range(count)) for i in range(count))
    return Host(name=name, nodes=nodes, distances=distances, hardware=hardware)


# Two sockets: 100 ns and 100 GB/s at home, 200 ns and 20 GB/s of link to the other one, 30 GB/s of all links.
TWO = {
    "name": "two", "source": "paper", "port_bandwidth": 30_000,
    "memories": [{"curves": flat(100.0, 100_000.0)}],
    "links": [{"distance": 21, "curves": flat(200.0, 20_000.0)}],
    "cores": {"lines_streaming": 20, "lines_random": 10}, "queue_lines": 1e9,
}  # fmt: skip
# One socket and a CXL device that carries 20 GB/s one way and 32 GB/s both ways.
EXPANDED = {
    "name": "expanded", "source": "paper",
    "memories": [
        {"curves": flat(100.0, 100_000.0)},
        {"kind": "cxl", "nodes": [1], "curves": {100.0: [[0, 300], [20_000, 300]], 50.0: [[0, 300], [32_000, 300]]}},
    ],
    "cores": {"lines_streaming": 20, "lines_random": 10}, "queue_lines": 1e9,
}  # fmt: skip
# One socket of two groups of eight cores, 30 GB/s each.
GROUPED = {
    "name": "grouped", "source": "paper", "memories": [{"curves": flat(100.0, 100_000.0)}],
    "cores": {"lines_streaming": 50, "lines_random": 10, "group": 8, "group_peaks": {100: 30_000}}, "queue_lines": 1e9,
}  # fmt: skip


def made(document, where):
    return machine(where, profile=profile.from_mapping(document))


def solved(where, shares, vcpus, access, **more):
    solution = traffic.solve(where, traffic.streams(where, np.array(shares, float), vcpus, access, **more))
    return solution.bandwidth[0], solution.latency[0], solution


@pytest.mark.parametrize(
    ("shares", "vcpus", "access", "mbps", "ns"),
    [
        # pointer chasing: one line of 64 bytes each 100, 200 or (100 + 200) / 2 ns
        ([1, 0], {0: 1}, "pointer_chasing", 640.0, 100.0),
        ([0, 1], {0: 1}, "pointer_chasing", 320.0, 200.0),
        ([0.5, 0.5], {0: 1}, "pointer_chasing", 64_000 / 150, 150.0),
        # random: 10 lines each, 2 vCPUs: 1280 B in flight
        ([1, 0], {0: 2}, "uniform", 12_800.0, 100.0),
        # streaming: 20 lines each, 4 vCPUs: 5120 B in flight; the link gives 20 GB/s, and waiting for it is latency
        ([1, 0], {0: 4}, "streaming", 51_200.0, 100.0),
        ([0, 1], {0: 4}, "streaming", 20_000.0, 256.0),
        ([0.5, 0.5], {0: 4}, "streaming", 5_120_000 / 150, 150.0),
        # 16 vCPUs: 20,480 B want 204.8 GB/s of a memory of 100
        ([1, 0], {0: 16}, "streaming", 100_000.0, 204.8),
        # half the data over the link: at most 40 GB/s in all
        ([0.5, 0.5], {0: 16}, "streaming", 40_000.0, 512.0),
    ],
)
def test_two_sockets(shares, vcpus, access, mbps, ns):
    bandwidth, latency, _ = solved(made(TWO, host("dram", "dram")), shares, vcpus, access)
    assert bandwidth == pytest.approx([mbps], rel=1e-5) and latency == pytest.approx([ns], rel=1e-5)


def test_ports_carry_what_comes_and_what_goes():
    """Each socket reads from the other: 2 x 20 GB/s of links, 30 GB/s a port, which both directions share: 15 each."""
    where = made(TWO, host("dram", "dram"))
    crossed = traffic.together(
        [traffic.streams(where, np.array(row, float), {node: 16}) for node, row in ((0, [0, 1]), (1, [1, 0]))]
    )
    assert traffic.solve(where, crossed).bandwidth[0] == pytest.approx([15_000, 15_000], rel=1e-5)


@pytest.mark.parametrize(
    ("shares", "writes", "mbps"),
    [
        ([0, 1], 0.0, 20_000.0),
        ([0, 1], 0.5, 32_000.0),
        ([0, 1], 0.25, 26_000.0),  # half way between the measured mixes
        ([0.9, 0.1], 0.0, 100_000 / 0.9),  # 111 GB/s: DRAM 100, CXL 11 of 20
        ([0.5, 0.5], 0.5, 64_000.0),
    ],
)
def test_a_socket_with_a_duplex_device(shares, writes, mbps):
    where = made(EXPANDED, host("dram", "cxl", cpus=[64, 0]))
    access = {"pattern": "streaming", "write_fraction": writes}
    bandwidth, _, solution = solved(where, shares, {0: 64}, access)
    assert bandwidth == pytest.approx([mbps], rel=1e-5)
    assert solution.node_used[0] == pytest.approx(np.array(shares) * mbps, rel=1e-5)


@pytest.mark.parametrize(("vcpus", "mbps"), [(1, 30_000.0), (2, 60_000.0), (16, 60_000.0)])
def test_groups_of_cores_have_caps(vcpus, mbps):
    """50 lines in 100 ns are 32 GB/s a core, 30 a group; two vCPUs run in two groups, sixteen share them."""
    bandwidth, _, _ = solved(made(GROUPED, host("dram")), [1], {0: vcpus}, "streaming")
    assert bandwidth == pytest.approx([mbps], rel=1e-5)


# ----------------------------------------------------------------------------------------------- page walks

MISS = 1 - 1536 * 4096 / (64 * GIB)
"""64 GiB in pages of 4 KiB, 1536 entries."""
LEAF = 1 - (2 << 20) / (8 * 64 * GIB / 4096)
"""128 MiB of leaf entries, 2 MiB cached."""
EVERY = 1 / (1 - 32 / 65536)
"""Walks for each access that reaches memory: those that 32 MiB of cache serve walk as often."""


def test_walk_of_small_pages_on_paper():
    """Two leaf references of an access that misses, nearly all in memory; 90 ns each where they are local."""
    cost = translation.walk_cost({"4 KiB": 64 * GIB}, "4 KiB", table_latency=90.0)
    assert float(cost["misses_per_access"]) == pytest.approx(MISS)
    assert float(cost["guest_references"]) == float(cost["host_references"]) == pytest.approx(MISS * LEAF)
    cached = 2 * MISS * (1 - LEAF) * 15.0
    assert float(cost["cached"]) == pytest.approx(cached)
    assert float(cost["walk"]) == pytest.approx(2 * MISS * LEAF * 90.0 + cached)  # 177.6 ns
    assert float(cost["walk"]) == pytest.approx(177.6, abs=0.1)


def test_walk_over_mixed_page_sizes_on_paper():
    """8 GiB of 2 MiB and 8 GiB of 4 KiB pages under 2 MiB guest pages: small ones miss, large ones mostly do."""
    cost = translation.walk_cost({"2 MiB": 8 * GIB, "4 KiB": 8 * GIB}, "2 MiB", table_latency=100.0)
    small = 1 - 768 * 4096 / (8 * GIB)  # half of 1536 shared entries
    large = 1 - 768 * (2 << 20) / (8 * GIB)
    assert cost["miss"].values[:2] == pytest.approx([small, large])
    # second stage: 16 MiB of entries for the small pages, 32 KiB for the large ones, which stay cached
    host_leaf = 0.5 * small * (1 - 2 / 16)
    assert float(cost["host_references"]) == pytest.approx(host_leaf)
    assert float(cost["guest_references"]) == 0.0  # 64 KiB of guest entries
    misses = (small + large) / 2
    assert float(cost["walk"]) == pytest.approx(host_leaf * 100 + (2 * misses - host_leaf) * 15)


def test_zipf_walks_miss_what_is_cold():
    """Pages touched as 1 / k: of N pages the hottest E stay in the TLB, and H(E) / H(N) of the accesses hit."""
    pages, entries = GIB // 4096, 1536
    cost = translation.walk_cost({"4 KiB": GIB}, "4 KiB", exponent=1.0)
    sums = np.cumsum(1.0 / np.arange(1, pages + 1))
    assert float(cost["misses_per_access"]) == pytest.approx(1 - sums[entries - 1] / sums[-1], rel=1e-3)


def test_walks_of_hot_pages_are_charged_to_what_reaches_memory():
    """Zipf: caches serve the hottest pages, which the TLB has too; whoever reaches memory walked, and did so once."""
    cost = translation.walk_cost({"4 KiB": 64 * GIB}, "4 KiB", exponent=0.99)
    misses, references = float(cost["misses_per_access"]), float(cost["memory_references"])
    plain, cached = translation.table_walks(cost, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    for reached in (0.3, 0.9, 1.0):  # fewer or more than miss the TLB
        walks, kept = translation.table_walks(cost, np.array([1.0, 0.0]), np.array([0.0, 1.0]), reached=reached)
        each = 1.0 / max(reached, misses) if reached < 1.0 else 1.0
        assert walks == pytest.approx(plain * each) and kept == pytest.approx(cached * each)
        assert walks.sum() <= references / misses * (1 + 1e-9)  # of one walk
    with pytest.raises(WorkbenchError, match="reached: 2 is not between 0 and 1"):
        translation.table_walks(cost, np.array([1.0]), np.array([1.0]), reached=2)


@pytest.mark.parametrize(
    ("vcpu_nodes", "policy", "tables"),
    [
        ((0,), "0", [2.0, 0.0]),  # guest and second-stage table on node 0, like the vCPU
        ((1,), "0", [1.0, 1.0]),  # the guest's table lies in its memory, the second stage where the vCPU runs
    ],
)
def test_access_operation_charges_walks_where_tables_lie(tmp_path, vcpu_nodes, policy, tables):
    """64 GiB bound to node 0, 4 KiB pages, one vCPU at random: latencies and traffic of the two nodes on paper."""
    path = tmp_path / "two.yaml"
    profile.write_profile(profile.from_mapping(TWO), path)
    where = host("dram", "dram", hardware={"profile": str(path)})
    result = wb.simulate(
        wb.Scenario.model_validate(
            {
                "host": where, "output": "runs",
                "guest": {"memory": 64 * GIB, "vcpus": [{"node": n} for n in vcpu_nodes]},
                "operations": [
                    {"op": "create"}, {"op": "mbind", "mode": "bind", "nodes": policy}, {"op": "fallocate"},
                    {"op": "access", "pattern": "uniform"},
                ],
            }
        )
    )  # fmt: skip
    near = np.array([100.0, 200.0]) if vcpu_nodes == (0,) else np.array([200.0, 100.0])
    references = MISS * LEAF * np.array(tables)
    cached = 2 * MISS * (1 - LEAF) * 15.0
    latency = near[0] + references @ near + cached
    rate = 640e3 / (near[0] + (latency - near[0]) * EVERY)
    assert result["stream_latency"].values == pytest.approx([latency], rel=1e-6)
    assert result["stream_walk"].values == pytest.approx([latency - near[0]], rel=1e-6)
    assert result["stream_bandwidth"].values == pytest.approx([rate], rel=1e-6)
    every = references * EVERY
    assert result["stream_walk_traffic"].values == pytest.approx([rate * every.sum()], rel=1e-6)
    assert result["access_used"].values[-1] == pytest.approx(rate * (np.array([1.0, 0.0]) + every), rel=1e-6)


def test_accesses_that_hit_a_data_cache_walk_too(tmp_path):
    """64 MiB in 4 KiB pages, 32 of them cached: half of the accesses reach memory, and every other misses the TLB as often.

    All of 128 KiB of tables is cached: a walk takes 2 x 15 ns. One of an access's own is in its latency; ten lines are held by
    two, so 640 bytes take 100 ns and two walks. A part of a larger guest is walked like a guest of that size.
    """
    path = tmp_path / "two.yaml"
    profile.write_profile(profile.from_mapping(TWO), path)
    where = host("dram", "dram", hardware={"profile": str(path)})
    given = {"host": where, "guest": {"memory": GIB, "vcpus": [{"node": 0}]}}
    before = [{"op": "create"}, {"op": "mbind", "mode": "bind", "nodes": "0"}, {"op": "fallocate"}]
    part = {"op": "access", "pattern": "uniform", "offset": 512 << 20, "length": 64 << 20}
    result = wb.simulate(wb.Scenario.model_validate({**given, "operations": [*before, part]}))
    walk = 2 * (1 - 1536 / 16384) * 15.0
    assert result["stream_walk"].values == pytest.approx([walk], rel=1e-6)
    assert result["stream_idle_latency"].values == pytest.approx([100 + walk])
    assert result["stream_latency"].values == pytest.approx([100 + walk], rel=1e-6)
    assert result["stream_bandwidth"].values == pytest.approx([640e3 / (100 + 2 * walk)], rel=1e-6)


@pytest.mark.parametrize(("vcpus", "mbps", "ns"), [(1, 640e3 / 500, 300.0), (256, 20_000.0, 300 / 500 * 8192)])
def test_walks_beside_take_bandwidth_and_lines_but_no_latency(vcpus, mbps, ns):
    """Each access in memory makes two references, and another walk of two is made beside it: 5 transfers and 500 ns, 300 of
    them its own. 256 vCPUs of 640 bytes wait for a node of 100 GB/s, 8192 ns for all five."""
    where = made(TWO, host("dram", "dram"))
    bandwidth, latency, solution = solved(where, [1, 0], {0: vcpus}, "uniform", walks=np.array([2.0, 0]), beside=1.0)
    assert bandwidth == pytest.approx([mbps], rel=1e-5) and latency == pytest.approx([ns], rel=1e-5)
    assert solution.idle_latency[0] == pytest.approx([300.0]) and solution.walk[0] == pytest.approx(
        [ns * 2 / 3], rel=1e-5
    )
    assert solution.node_used[0] == pytest.approx([5 * mbps, 0], rel=1e-5)
    assert solution.walk_traffic[0] == pytest.approx([4 * mbps], rel=1e-5)


def test_which_walks_are_beside():
    """By chance all others walk; where the hottest pages are kept by both, only those that the TLB lacks and a cache has."""
    cost = translation.walk_cost({"4 KiB": 64 * GIB}, "4 KiB", exponent=0.99)
    misses = float(cost["misses_per_access"])
    assert translation.walks_beside(cost, 0.25, hot=False) == pytest.approx(3.0)
    assert translation.walks_beside(cost, misses / 4, hot=True) == pytest.approx(3.0)
    assert translation.walks_beside(cost, 1.0, hot=True) == translation.walks_beside(cost, 0.0, hot=False) == 0.0
    own, _ = translation.table_walks(cost, np.array([1.0]), np.array([1.0]), reached=misses / 4)
    # every counted reference is charged: own ones and those beside, for each access of all
    beside = translation.walks_beside(cost, misses / 4, hot=True)
    assert float(own[0]) * (1 + beside) * misses / 4 == pytest.approx(float(cost["memory_references"]))
    with pytest.raises(WorkbenchError, match="reached: 2 is not between 0 and 1"):
        translation.walks_beside(cost, 2, hot=True)


def test_walks_load_the_nodes_that_the_run_put_the_tables_on(tmp_path):
    """The vCPU's thread was bound to the far node when it faulted: its tables are there, and each walk goes there."""
    path = tmp_path / "two.yaml"
    profile.write_profile(profile.from_mapping(TWO), path)
    where = host("dram", "dram", hardware={"profile": str(path)})
    operations = [
        {"op": "create"}, {"op": "mbind", "mode": "bind", "nodes": "0"},
        {"op": "set_mempolicy", "task": "vcpu0", "mode": "bind", "nodes": "1"},
        {"op": "fault", "by": "guest", "task": "vcpu0"}, {"op": "access", "pattern": "uniform"},
    ]  # fmt: skip
    given = {"host": where, "output": "runs", "guest": {"memory": 64 * GIB, "vcpus": [{"node": 0}]}}
    result = wb.simulate(wb.Scenario.model_validate({**given, "operations": operations}))
    second = result["metadata_pages"].isel(event=-1).sel(kind="second_stage").values
    assert second[0] == 0 and second[1] == 64 * 512 + 64 + 1
    references = MISS * LEAF * np.array([1.0, 1.0])  # the guest's table in its memory, the second stage on node 1
    latency = 100.0 + references @ np.array([100.0, 200.0]) + 2 * MISS * (1 - LEAF) * 15.0
    assert result["stream_latency"].values == pytest.approx([latency], rel=1e-5)
    used = 640e3 / (100.0 + (latency - 100.0) * EVERY) * (np.array([1.0, 0.0]) + references * EVERY)
    assert result["access_used"].values[-1] == pytest.approx(used, rel=1e-6)
    uncounted = wb.simulate(wb.Scenario.model_validate({**given, "operations": operations, "metadata": "off"}))
    assert uncounted["stream_latency"].values < result["stream_latency"].values


def test_many_random_vcpus_get_what_walks_leave():
    """64 vCPUs over 64 GiB of 4 KiB pages: 100 GB/s serve 1 + 1.97 references an access, so 33.7 GB/s of data."""
    where = made(TWO, host("dram", "dram"))
    cost = translation.walk_cost({"4 KiB": 64 * GIB}, "4 KiB")
    walks, cached = translation.table_walks(cost, np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    bandwidth, _, solution = solved(where, [1, 0], {0: 64}, "uniform", walks=walks, extra_latency=cached)
    assert bandwidth == pytest.approx([100_000 / (1 + 2 * MISS * LEAF)], rel=1e-5)
    assert solution.node_used[0, 0] == pytest.approx(100_000, rel=1e-5)


# --------------------------------------------------------------------------------------------- real machines


def test_idle_latencies_of_shipped_machines_on_paper():
    """Class values: Naples 90 ns, 2.3 times that at SLIT 32 and on the line between at 16; SPR 111 ns, CXL 284 and
    what ten more of SLIT add."""
    naples = machine(Host.from_machine("epyc1-naples-2s"))
    assert naples.latency[0, [0, 1, 4]] == pytest.approx([90, 90 + 90 * 1.3 * 6 / 22, 90 * 2.3])
    assert naples.bandwidth.tolist() == [42_750.0] * 8 and naples.port_bandwidth.tolist() == [164_000.0] * 8
    spr = machine(Host.from_machine("spr-8468v-cxl"))
    assert spr.latency[0, :3] == pytest.approx([111, 111 * 1.72, 284 + 10 * 111 * 0.72 / 11])
    assert spr.latency[1, 2] == pytest.approx(284)
    assert spr.bandwidth[:2] == pytest.approx([8 * 4800 * 8 * 0.85] * 2)
    rome = machine(Host.from_machine("epyc2-rome-2s-nps1"))
    assert rome.latency[0] == pytest.approx([114, 114 * 1.85])
    assert rome.bandwidth == pytest.approx([8 * 3200 * 8 * 0.76] * 2)


@pytest.mark.parametrize("name", machine_names())
def test_ports_and_links_of_every_machine(name):
    """A port carries ``link_ports`` full links of the remote ratio, or what the profile says; never less than a link."""
    where = Host.from_machine(name)
    found = machine(where)
    known = parameters(where)
    given = profile.profile_of(name)
    # The profile's bandwidths come after links and ports are estimated, and replace only what they name.
    empty = profile.from_mapping({"name": "none", "source": "no memory", "first_touch": {"4 KiB": 1.0}})
    dram = [b for b, kind in zip(machine(where, profile=empty).bandwidth, found.kinds, strict=True) if kind == "dram"]
    reference = max(dram, default=known["dram_bandwidth"].value)
    expected = reference * known["remote_bandwidth_ratio"].value * known["link_ports"].value
    if given is not None and given.port_bandwidth is not None:
        expected = given.port_bandwidth
    off = ~np.eye(found.nodes, dtype=bool)
    most = np.where(off, found.link_bandwidth, 0.0).max(axis=1, initial=0.0)
    assert found.port_bandwidth == pytest.approx(np.maximum(expected, most))


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_has_a_class_and_figures_of_it(name):
    """No machine falls back to what holds for all of them."""
    where = Host.from_machine(name)
    known = parameters(where)
    assert known["dram_latency"] is not costs.COSTS["dram_latency"]
    assert known["dram_bandwidth"] is not costs.COSTS["dram_bandwidth"]


def test_latency_has_no_jump_where_memory_saturates():
    """One more streamer adds no more than its share once the memory is full: latency is bytes in flight over bandwidth."""
    where = machine(host("dram", "dram"), profile="skylake-6ch-ddr4")
    latency = [solved(where, [1, 0], {0: n}, "streaming", costs={"lines_streaming": 14})[1][0] for n in range(1, 41)]
    steps = np.diff(latency)
    assert (steps > 0).all()
    share = 14 * 64 / 101.007  # ns that one streamer's lines take at the peak
    assert steps.max() <= share * 1.01
    assert latency[-1] == pytest.approx(40 * share, rel=1e-3)


def test_ddr_beside_a_saturated_device_loses_most_of_its_bandwidth():
    """arXiv 2503.17864 measured up to 81 % on servers with CXL; without a shared queue the model would say 0 %."""
    where = machine(Host.from_machine("spr-8468v-cxl"))
    fast = traffic.streams(where, np.array([1.0, 0, 0, 0]), {0: 32})
    slow = traffic.streams(where, np.array([0, 0, 1.0, 0]), {0: 32})
    alone = traffic.solve(where, fast).bandwidth[0, 0]
    beside = traffic.solve(where, traffic.together([fast, slow])).bandwidth[0, 0]
    assert 0.5 <= 1 - beside / alone <= 0.9


def test_kernel_times_on_paper():
    """1 GiB: 262,144 struct pages of 21.1 ns are 5.53 ms; cleared at 234 ns for 4 KiB in 61.3 ms; two threads take half, longer
    by what latency grows between the loads of one (35 %) and of two; sixty-four are held by the memory: 2 bytes moved for each
    cleared, 100 GB/s at any mix."""
    where = host("dram", "dram")
    flat_bus = {"mixed_bandwidth": 1.0, "dram_bandwidth": 100_000.0, "dram_latency": 100.0}
    one = kernel_times(where, GIB, samples=1, costs=flat_bus)
    assert float(one["struct_pages"]) == pytest.approx(262_144 * 21.1e-9)
    assert float(one["clear"]) == pytest.approx(262_144 * 234e-9)
    two = kernel_times(where, GIB, samples=1, threads=2, costs=flat_bus)
    alone, both = float(one["clear"]), float(two["clear"])
    family = curves.generic()["dram"]
    waits = [100 + family.latency(family.peaks[10] * 2 * GIB / 100e9 / t, 0.5) - family.idle for t in (alone, both)]
    assert both == pytest.approx(alone / 2 * waits[1] / waits[0], rel=1e-6)
    assert alone / 2 < both < 0.6 * alone
    many = kernel_times(where, GIB, samples=1, threads=64, costs=flat_bus)
    assert float(many["clear"]) == pytest.approx(2 * GIB / 100e9)
    kept = kernel_times(where, GIB, samples=1, hvo=True, costs=flat_bus)
    assert float(kept["struct_pages"]) == pytest.approx(64 * 21.1e-9)
    remote = kernel_times(where, GIB, samples=1, node=1, source=0, costs={**flat_bus, "remote_latency_ratio": 2.0})
    assert float(remote["clear"]) == pytest.approx(2 * float(one["clear"]))
    half = {
        **flat_bus,
        "remote_latency_ratio": 2.0,
        "remote_wait": 0.5,
    }  # waits for half of the 100 ns that it is later by
    assert float(kernel_times(where, GIB, samples=1, node=1, source=0, costs=half)["clear"]) == pytest.approx(
        1.5 * float(one["clear"])
    )
    assert one["clear"].attrs["basis"] == "modelled"


def test_published_kernel_times_lie_in_the_range():
    """One thread: clearing at 2 to 40 GB/s, a struct page in 2 to 52 ns."""
    where = host("dram", hardware={"generation": "milan"})
    drawn = kernel_times(where, GIB, samples=400)
    per_page = drawn["struct_pages"].values[1:] / 262_144 * 1e9
    assert np.quantile(per_page, 0.05) <= 2.3 and np.quantile(per_page, 0.95) >= 50
    for page, published in (("4 KiB", (2.3, 13.7)), ("2 MiB", (6.2, 11.82, 15.1, 16.48)), ("1 GiB", (17.51, 38.1))):
        rate = GIB / 1e9 / kernel_times(where, GIB, page, samples=400)["clear"].values[1:]
        low, high = np.quantile(rate, (0.05, 0.95))
        assert all(low <= value <= high for value in published), (page, low, high)


def test_published_clearing_of_remote_memory_lies_in_the_range():
    """One thread clears 100 GiB of its own node in 41.13 s; with 128 GiB a node the rest of 200, 400, 800 is on others."""
    rows = [row for row in read_table("hugetlb_runtime").rows if row[:2] == ("E7-8895 v3", "1 GiB") and row[5] == 1]
    alone = rows[0][6] / rows[0][4]
    slower = [(seconds - 128 * alone) / (gib - 128) / alone for *_, gib, _, seconds in rows[1:]]
    assert slower == pytest.approx([1.25, 1.21, 1.38], abs=0.01)
    where = host("dram", "dram")
    near, far = (kernel_times(where, GIB, samples=400, node=node, source=0)["clear"].values[1:] for node in (0, 1))
    low, high = np.quantile(far / near, (0.05, 0.95))
    assert low < min(slower) and max(slower) < high < 2.3


# -------------------------------------------------------------------------------------------------- weights


def test_best_weights_on_paper():
    """Two nodes of 100 and 25 GB/s and more in flight than both take: 4:1 fills both, 125 GB/s."""
    where = made(
        {
            **EXPANDED,
            "memories": [{"curves": flat(100.0, 100_000.0)}, {"kind": "cxl", "curves": flat(100.0, 25_000.0)}],
        },
        host("dram", "cxl", cpus=[64, 0]),
    )
    best = weights.best_weights(where, "streaming", vcpus={0: 64})
    assert best["weight"].sel(policy="optimum").values.tolist() == [4, 1]
    assert float(best["bandwidth"].sel(policy="optimum")) == pytest.approx(125_000, rel=1e-4)
    assert curves.MIXES[-1] == 1.0


def test_ranges_of_weights_on_paper():
    """DRAM of 142 GB/s, CXL drawn from 17 to 60, all else given: a draw's best shares are as the bandwidths, c : 142.

    Shares a + b = 1 get min(142 / a, c / b) in a draw, local memory alone 142, one page each 2 c.
    """
    where = host("dram", "cxl", cpus=[256, 0])
    given = {name: costs.COSTS[name].value for name in SAMPLED if name != "cxl_bandwidth"}
    given |= {"queue_factor": 1e6, "lines_streaming": 1e4}  # neither queues nor cores limit anything
    dram, drawn = 142_000.0, costs.sample(SAMPLED, 25)["cxl_bandwidth"]
    best = weights.best_weights(where, "streaming", costs=given, samples=25)
    share = best["share"].sel(policy="optimum").transpose("sample", "node").values
    got = np.minimum(dram / share[:, 0], drawn / share[:, 1])
    assert (
        share.sum(axis=1) == pytest.approx(1.0)
        and (got >= 0.994 * (dram + drawn)).all()
        and (got <= dram + drawn).all()
    )
    weight = best["weight"].sel(policy="optimum").values
    near, far = weight / weight.sum()
    assert [near, far] == pytest.approx(share[0])
    kept = np.minimum(dram / near, drawn / far)
    four = np.array([kept, 2 * drawn, np.full(25, dram)])
    best = best.sel(policy=["optimum", "interleave", "local"])
    assert best["bandwidth"].transpose("policy", "sample").values == pytest.approx(four, rel=1e-3)
    wins = (four >= 0.995 * got)[:, 1:].mean(axis=1)
    assert 0.0 < wins[0] < 0.5 and best["wins"].values == pytest.approx(wins)
    ends = weights.best_weights(where, "streaming", costs=given)
    for end, part in (("low", 0.05), ("high", 0.95)):
        at = ends[f"share_{end}"].sel(policy="optimum", node=1).item()
        assert at == pytest.approx(np.quantile(drawn[1:] / (dram + drawn[1:]), part), rel=0.05)
        scaled = ends[f"weight_{end}"].sel(policy="optimum").values
        assert scaled == pytest.approx(ends[f"share_{end}"].sel(policy="optimum").values * weight.sum())
    fixed = ends.sel(policy=["interleave", "local"])
    assert (fixed["share_low"].values == fixed["share_high"].values).all()
    assert f"node 1 {100 * far:.0f} % [" in weights.sentence(ends)

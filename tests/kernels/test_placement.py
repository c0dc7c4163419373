"""workbench.kernels.placement, .zonelist, .mempolicy and .filemap against the plain-Python reference, page for page."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import placement as reference
from reference.scale import examples
from workbench.engine.runs import Runs
from workbench.kernels import fault_order, filemap, mempolicy, placement, zonelist


def random_case(rng: np.random.Generator):
    """A random host, request table and list of pieces, as (reference objects, arrays)."""
    nodes = int(rng.integers(1, 7))
    weights = rng.integers(1, 6, nodes)
    zones = []
    for node in range(nodes):
        for _ in range(int(rng.integers(0, 3))):
            low = int(rng.integers(0, 20))
            zones.append(reference.Zone(node, int(rng.integers(0, 120)), low, int(rng.integers(0, low + 1))))
    if not zones:
        zones.append(reference.Zone(0, 50, 3, 1))
    lists = []
    for _ in range(nodes):
        order = rng.permutation(nodes)
        lists.append([z for n in order for z, zone in enumerate(zones) if zone.node == n])
    tasks = [reference.Task(int(rng.integers(0, nodes)), int(rng.integers(0, 4))) for _ in range(2)]
    policies = []
    for _ in range(int(rng.integers(1, 5))):
        mask = set(np.flatnonzero(rng.integers(0, 2, nodes)).tolist()) or {0}
        kind = ("start", "interleave", "weighted")[int(rng.integers(0, 3))]
        everything = set(range(nodes))
        filters = ((mask, everything), (mask,), (everything,))[int(rng.integers(0, 3))]
        base = int(rng.integers(0, 50)) if rng.integers(0, 3) == 0 and kind != "start" else None
        policies.append(
            reference.Policy(kind, int(rng.integers(0, nodes)), mask, filters, int(rng.integers(0, 2)), base)
        )
    pieces, page = [], 0
    for _ in range(int(rng.integers(1, 8))):
        count = int(rng.integers(1, 60))
        step = 1 if rng.integers(0, 2) else -1
        pieces.append((page if step > 0 else page + count - 1, count, step, int(rng.integers(0, len(policies)))))
        page += count + int(rng.integers(0, 3))
    return nodes, weights, zones, lists, tasks, policies, pieces


def arrays(nodes, weights, zones, lists, tasks, policies):
    count = len(policies)
    masks, filters = np.zeros((count, nodes), bool), np.zeros((count, 2, nodes), bool)
    for row, policy in enumerate(policies):
        masks[row, list(policy.nodes)] = True
        for number, allowed in enumerate(policy.filters):
            filters[row, number, list(allowed)] = True
    kinds = {"start": placement.START, "interleave": placement.INTERLEAVE, "weighted": placement.WEIGHTED}
    requests = placement.Requests(
        np.array([kinds[p.kind] for p in policies]),
        np.array([p.start for p in policies]),
        masks,
        filters,
        np.array([len(p.filters) for p in policies]),
        np.array([p.task for p in policies]),
        np.array([-1 if p.index_base is None else p.index_base for p in policies]),
    )
    table = np.full((nodes, len(zones) + 1), -1)
    for row, order in zip(table, lists, strict=True):
        row[: len(order)] = order
    state = {
        "rotations": np.array([(t.il_prev, t.il_weight) for t in tasks]),
        "weights": weights.astype(np.int64),
        "free": np.array([z.free for z in zones]),
        "marks": np.array([[z.low for z in zones], [z.min for z in zones]]),
        "zone_node": np.array([z.node for z in zones]),
        "zonelists": table,
    }
    return requests, state


def records(state):
    return (
        placement.Interleaving(state["rotations"], state["weights"]),
        placement.Zones(state["free"], state["marks"], state["zone_node"], state["zonelists"]),
    )


def run_pieces(pieces, requests, state, room=3):
    nodes = state["zonelists"].shape[0]
    progress = np.zeros(4, np.int64)
    allocations, tiles = np.empty((room, 5), np.int64), np.empty(64, np.int16)
    scratch = (np.empty(1024, np.int64), np.empty(nodes, np.int64), np.empty(len(state["free"]), np.int64))
    while True:
        output = placement.Output(progress, allocations, tiles, *scratch)
        status = placement.place_pieces(np.array(pieces), requests, *records(state), output)
        if status != placement.NEEDS_ROOM:
            break
        allocations = np.concatenate((allocations, np.empty((room, 5), np.int64)))
        tiles = np.concatenate((tiles, np.empty(64, np.int16)))
    return status, allocations[: progress[placement.ALLOCATIONS]], tiles


def zones_in_order(allocations, tiles):
    """(page, zone) of every page in the order it was placed."""
    return [
        (int(first + step * i), int(tiles[offset + i % period]))
        for first, count, step, offset, period in allocations
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(examples(1500)))
def test_pieces_and_list_agree_with_reference(seed):
    rng = np.random.default_rng(seed)
    nodes, weights, zones, lists, tasks, policies, pieces = random_case(rng)
    requests, state = arrays(nodes, weights, zones, lists, tasks, policies)
    same_state = {name: value.copy() for name, value in state.items()}

    status, allocations, tiles = run_pieces(pieces, requests, state)
    faults = [(first + step * i, policy) for first, count, step, policy in pieces for i in range(count)]
    expected = reference.place(faults, policies, tasks, zones, lists, weights.tolist())

    assert zones_in_order(allocations, tiles) == [
        (page, zone) for (page, _), zone in zip(faults, expected, strict=False)
    ]
    assert (status == placement.DONE) == (len(expected) == len(faults))
    assert state["free"].tolist() == [zone.free for zone in zones]
    if status == placement.DONE:
        assert state["rotations"].tolist() == [[task.il_prev, task.il_weight] for task in tasks]

    out = np.empty(len(faults), np.int16)
    cached = np.empty((len(policies), nodes), np.int64)
    done = placement.place_list(
        np.array([page for page, _ in faults]),
        np.array([policy for _, policy in faults]),
        requests,
        *records(same_state),
        cached,
        out,
    )
    assert out[:done].tolist() == expected
    assert same_state["free"].tolist() == state["free"].tolist()


def runs_of(runs):
    """A table of runs int64 (n, 3)."""
    table = Runs()
    table.replace(runs)
    return table.room(1)


@pytest.mark.parametrize("seed", range(examples(300)))
def test_filemap_tables_agree_with_a_dictionary(seed):
    rng = np.random.default_rng(seed)
    nodes, weights, zones, lists, tasks, policies, pieces = random_case(rng)
    requests, state = arrays(nodes, weights, zones, lists, tasks, policies)
    _, allocations, tiles = run_pieces(pieces, requests, state)
    pages = dict(zones_in_order(allocations, tiles))
    low = np.where(allocations[:, 2] > 0, allocations[:, 0], allocations[:, 0] - allocations[:, 1] + 1)
    runs = np.column_stack((low, allocations[:, 1], np.arange(len(allocations))))
    runs = runs[np.argsort(runs[:, 0])]
    # Cut every run at both ends, as punching holes does.
    runs[:, 0] += runs[:, 1] // 4
    runs[:, 1] -= runs[:, 1] // 4 + runs[:, 1] // 3
    runs = runs[runs[:, 1] > 0]
    kept = {page: pages[page] for start, count, _ in runs for page in range(start, start + count)}

    size = max(pages, default=0) + 3
    asked = np.arange(size)
    found = np.empty(size, np.int64)
    filemap.zone_of_pages(asked, runs, allocations, tiles, found)
    assert found.tolist() == [kept.get(page, -1) for page in asked]

    counts = np.zeros(len(zones), np.int64)
    filemap.count_zones(runs, allocations, tiles, counts)
    assert counts.tolist() == [list(kept.values()).count(zone) for zone in range(len(zones))]

    table = runs_of(runs)
    assert [filemap.zone_at(table, allocations, tiles, page) for page in range(size)] == found.tolist()
    start, end = np.sort(rng.integers(0, size + 1, 2)).tolist()
    freed = np.zeros(len(zones), np.int64)
    filemap.erase(table, allocations, tiles, start, end, np.empty((int(rng.integers(1, 4)), 3), np.int64), freed)
    gone = [zone for page, zone in kept.items() if start <= page < end]
    assert freed.tolist() == [gone.count(zone) for zone in range(len(zones))]
    left = {page: zone for page, zone in kept.items() if not start <= page < end}
    assert [filemap.zone_at(table, allocations, tiles, page) for page in range(size)] == [
        left.get(p, -1) for p in asked
    ]

    base = int(rng.integers(0, size))
    out = np.full(size - base, -1, np.int8)
    filemap.render(runs, allocations, tiles, np.arange(len(zones), dtype=np.int8), base, out)
    assert out.tolist() == [kept.get(page, -1) for page in range(base, size)]

    rows = np.empty((size, 3), np.int64)
    needed = filemap.node_runs(runs, allocations, tiles, state["zone_node"], rows)
    listed = {p: n for first, count, n in rows[:needed] for p in range(first, first + count)}
    assert listed == {page: zones[zone].node for page, zone in kept.items()}
    assert all(a[2] != b[2] or a[0] + a[1] != b[0] for a, b in itertools.pairwise(rows[:needed])), "runs are maximal"
    short = np.empty((max(needed - 1, 0), 3), np.int64)
    assert filemap.node_runs(runs, allocations, tiles, state["zone_node"], short) == needed
    assert short.tolist() == rows[: len(short)].tolist()


def test_render_copies_blocks_longer_than_the_pattern_buffer():
    allocations = np.array([[5, 200_000, 1, 0, 7], [300_000, 90_000, -1, 7, 3]])
    tiles = np.array([0, 0, 1, 2, 1, 0, 2, 1, 2, 0], np.int16)
    runs = np.array([[5, 200_000, 0], [210_001, 90_000, 1]])
    out = np.full(310_000, -1, np.int8)
    filemap.render(runs, allocations, tiles, np.array([10, 11, 12], np.int8), 0, out)
    forward = np.resize(tiles[:7] + 10, 200_000)
    backward = np.resize(tiles[7:] + 10, 90_000)[::-1]
    assert (out[5:200_005] == forward).all() and (out[210_001:300_001] == backward).all()
    assert (out[:5] == -1).all() and (out[200_005:210_001] == -1).all() and (out[300_001:] == -1).all()


@pytest.mark.parametrize("seed", range(examples(200)))
def test_fallback_order_agrees_with_reference(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 13))
    distance = rng.integers(11, 16, (size, size))
    np.fill_diagonal(distance, 10)
    has_memory, has_cpus = rng.integers(0, 3, size) > 0, rng.integers(0, 2, size).astype(bool)
    out = np.empty((size, size), np.int64)
    for penalised in (np.zeros(size, bool), has_cpus):
        zonelist.fallback_order(distance, has_memory, penalised, np.empty(size, np.int64), out)
        expected = reference.fallback_order(distance.tolist(), has_memory.tolist(), penalised.tolist())
        assert [row[row >= 0].tolist() for row in out] == expected


def test_boot_and_hotplug_lists_differ():
    distance = np.array([[10, 20, 20], [20, 10, 20], [20, 20, 10]])
    has_memory, load, out = np.ones(3, bool), np.empty(3, np.int64), np.empty((3, 3), np.int64)
    zonelist.fallback_order(distance, has_memory, np.zeros(3, bool), load, out)
    assert out[0].tolist() == [0, 1, 2]
    zonelist.fallback_order(distance, has_memory, np.array([True, True, False]), load, out)
    assert out[0].tolist() == [0, 2, 1], "after hotplug the node without CPUs is preferred"


def test_zonelists_go_from_high_to_low_zones_and_leave_movable_out_for_guest_memfd():
    order = np.array([[0, 1], [1, 0]])
    zone_node, zone_type = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 3])
    managed = np.array([5, 5, 5, 5, 5])
    end, listed, out = np.empty(3, np.int64), np.empty(5, np.int64), np.empty((2, 6), np.int64)
    zonelist.zonelists(order, zone_node, zone_type, managed, zonelist.ZONE_NORMAL, end, listed, out)
    assert out.tolist() == [[2, 1, 0, 3, -1, -1], [3, 2, 1, 0, -1, -1]]
    zonelist.zonelists(order, zone_node, zone_type, managed, zonelist.ZONE_MOVABLE, end, listed, out)
    assert out.tolist() == [[2, 1, 0, 4, 3, -1], [4, 3, 2, 1, 0, -1]]


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.booleans()), min_size=1, max_size=12))
def test_automatic_weights(nodes):
    bandwidth, memory = np.array([b for b, _ in nodes]), np.array([m for _, m in nodes])
    out = np.empty(len(nodes), np.int64)
    mempolicy.auto_weights(bandwidth, memory, out)
    assert out.tolist() == reference.automatic_weights(bandwidth.tolist(), memory.tolist())


def test_automatic_weights_of_a_recorded_boot():
    out = np.empty(3, np.int64)
    mempolicy.auto_weights(np.array([204800, 204800, 61440]), np.ones(3, bool), out)
    assert out.tolist() == [13, 13, 4]


@given(st.integers(0, 2**64 - 1), st.integers(1, 300))
def test_random_order_is_the_probes(seed, count):
    x = seed or 0x9E3779B97F4A7C15
    expected = list(range(count))
    for i in range(count - 1, 0, -1):
        x = (x ^ (x << 13)) & (2**64 - 1)
        x ^= x >> 7
        x = (x ^ (x << 17)) & (2**64 - 1)
        j = x % (i + 1)
        expected[i], expected[j] = expected[j], expected[i]
    out = np.empty(count, np.int64)
    fault_order.random_order(np.uint64(seed), out)
    assert out.tolist() == expected


@given(st.integers(1, 40), st.integers(0, 300))
def test_strided_order(stride, count):
    out = np.empty(count, np.int64)
    fault_order.strided_order(stride, out)
    assert out.tolist() == [i for first in range(stride) for i in range(first, count, stride)]

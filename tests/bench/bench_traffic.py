"""Fair sharing and the fixed point against plain NumPy, and how fast placements go through the model."""

from __future__ import annotations

import sys

import numpy as np

from bench.harness import Variant, duration, measure, print_table, verdict
from workbench.cost import curves, traffic
from workbench.kernels import traffic as kernel
from workbench.topology.host import Host

TOLERANCE = 1e-6


def numpy_fair(row, resource, usage, capacity, demand):
    """Progressive filling with arrays: every round stops the streams of the tightest resource or demand."""
    rate = np.zeros(len(demand))
    growing = np.ones(len(demand), bool)
    used = np.zeros(len(capacity))
    while growing.any():
        on = growing[row]
        slope = np.bincount(resource[on], usage[on], len(capacity))
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(slope > 0, np.maximum(capacity - used, 0) / slope, np.inf)
        tightest = int(level.argmin())
        below = growing & (demand <= level[tightest])
        if below.any():
            stopped, speed = below, demand[below]
        else:
            stopped = np.zeros(len(demand), bool)
            stopped[row[on & (resource == tightest)]] = True
            speed = level[tightest]
        rate[stopped] = speed
        growing &= ~stopped
        used += np.bincount(resource[stopped[row]], (rate[row] * usage)[stopped[row]], len(capacity))
    return rate, used


def numpy_solve(streams, resources):
    """The same fixed point on arrays: one bracketed secant step for all resources at once."""
    row = np.repeat(np.arange(len(streams.window)), np.diff(streams.start))
    resource, visits, capacity = streams.resource, streams.visits, resources.capacity
    load, low, high = np.zeros(len(capacity)), np.zeros(len(capacity)), np.full(len(capacity), 2.0)
    last_load, last_gap = np.zeros(len(capacity)), np.zeros(len(capacity))
    for iteration in range(1, 501):
        delay = np.empty(len(capacity))
        for curve in range(len(resources.curve_loads)):
            mine = resources.curve == curve
            delay[mine] = np.interp(load[mine], resources.curve_loads[curve], resources.curve_delays[curve])
        latency = streams.idle_latency + np.bincount(row, visits * delay[resource], len(streams.window))
        rate, used = numpy_fair(row, resource, streams.usage, capacity, streams.window / latency * 1000.0)
        gap = used / capacity - load
        if np.abs(gap).max() <= TOLERANCE:
            return rate
        moving = np.abs(gap) > 0.25 * TOLERANCE
        up = moving & (gap > 0)
        down = moving & ~up
        low[up] = load[up]
        high[up & (high - load < TOLERANCE)] = 1.0
        high[down] = load[down]
        low[down & (load - low < TOLERANCE)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (gap - last_gap) / (load - last_load)
        known = (last_gap != 0) & (load != last_load)
        moved = load + np.where(known, gap / np.maximum(1.0, -np.where(known, slope, 0)), 0.5 * gap)
        full = (load + gap >= 1.0 - TOLERANCE) & ((high == 2.0) | (iteration % 4 == 0))
        outside = (moved <= low) | (moved >= high)
        moved = np.where(outside, 0.5 * (low + np.minimum(1.0, high)), moved)
        last_load[moving], last_gap[moving] = load[moving], gap[moving]
        load[moving] = np.where(full, 1.0, moved)[moving]
    return rate


def problem(nodes, flows, lines, seed=1):
    """Flows between random nodes of a machine whose capacities differ."""
    rng = np.random.default_rng(seed)
    families = [curves.generic()[use] for use in ("dram", "link")]
    delays = np.array([family.delays[-1] for family in families])
    loads = np.tile(curves.LOADS, (2, 1))
    source, target = rng.integers(nodes, size=(2, flows))
    rows, numbers = [], {}
    for s, t in zip(source, target, strict=True):
        visited = [("memory", t)] + ([("link", s, t)] if s != t else [])
        rows.append([numbers.setdefault(v, len(numbers)) for v in visited])
    memory = np.array([name[0] == "memory" for name in numbers])
    capacity = np.where(memory, rng.uniform(5e4, 3e5, len(numbers)), rng.uniform(2e4, 7e4, len(numbers)))
    resource = np.concatenate(rows)
    streams = kernel.Streams(
        start=np.cumsum([0] + [len(r) for r in rows]), resource=resource, visits=np.ones(len(resource)),
        usage=np.ones(len(resource)), idle_latency=np.where(source == target, 66.0, 133.0),
        window=64.0 * lines * rng.uniform(0.5, 2, flows), wanted=np.full(flows, np.inf), weight=np.ones(flows),
    )  # fmt: skip
    return streams, kernel.Resources(capacity, np.where(memory, 0, 1), loads, delays, np.ones(len(numbers)))


def main() -> int:
    """Print both tables; 1 if a goal is missed."""
    cases = {
        "2 nodes, 32 flows": (2, 32, 24),
        "8 nodes, 1000 flows": (8, 1000, 10),
        "64 nodes, 10^4 flows, idle": (64, 10_000, 1),
        "64 nodes, 10^4 flows, loaded": (64, 10_000, 5),
        "64 nodes, 10^4 flows, saturated": (64, 10_000, 24),
    }
    rows, missed = [], False
    for name, (nodes, flows, lines) in cases.items():
        p = problem(nodes, flows, lines)
        solution, iterations = kernel.solve_streams(*p)
        assert iterations > 0, f"{name}: no convergence"
        assert np.allclose(solution.rate, numpy_solve(*p), rtol=1e-3), name
        times = measure(
            {
                "numba": Variant(lambda p=p: kernel.solve_streams(*p)),
                "numpy": Variant(lambda p=p: numpy_solve(*p)),
            }
        )
        goal = 0.05 if flows == 10_000 else None
        missed |= goal is not None and times["numba"] > goal
        rows.append(
            (name, duration(times["numba"]), duration(times["numpy"]), f"{times['numpy'] / times['numba']:.0f} x",
             str(iterations), verdict(times["numba"], goal))
        )  # fmt: skip
    header = ("network", "kernel", "plain NumPy", "NumPy / kernel", "iterations", "goal 50 ms")
    print_table("Bandwidth and latency of flows, to 1e-6 of a load", header, rows)

    rows = []
    for name in ("epyc4-genoa-2s-nps1", "epyc1-naples-2s", "altix-ia64-64n"):
        machine = traffic.machine(Host.from_machine(name))
        cpus = machine.node_ids[machine.cpus > 0] if machine.cpus.any() else machine.node_ids
        vcpus = {int(node): 8.0 for node in cpus[:8]}
        shares = np.random.default_rng(2).dirichlet(np.ones(machine.nodes), 1000)
        demand = traffic.streams(machine, shares, vcpus, "streaming")
        times = measure({"model": Variant(lambda m=machine, d=demand: traffic.solve(m, d))})
        seconds = times["model"] * 10
        missed |= seconds > 60
        rows.append(
            (name, str(machine.nodes), duration(times["model"] / 1000), duration(seconds), verdict(seconds, 60))
        )
    header = ("machine", "nodes", "one placement", "10^4 placements, one core", "goal 60 s")
    print_table("Placements through the model", header, rows)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

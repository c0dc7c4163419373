"""Achieved bandwidth and loaded latency of streams of memory accesses that share nodes and links.

A *stream* is what one initiator (the vCPUs of a node) does to memory. It visits *resources*, the memory of a node or a
link between nodes, in fixed proportions: a stream whose pages lie 9:1 on two nodes needs both nodes at once and goes
as fast as the slower one lets it. Streams that touch one node each are the ordinary flows of a network.

Two things hold at the solution:

*Little's law and the curves.* A stream keeps a fixed number of bytes in flight; its demand is that number over its
latency, and its latency is the idle latency plus the delay of every resource it visits, read off the resource's
measured bandwidth-latency curve at the resource's load.

*Max-min fairness.* Where demands exceed a capacity, all streams that want more get the same rate per unit of weight,
and no stream's rate can be raised without lowering that of one that has no more than it (progressive filling). For
streams with unequal visits "the same rate" is the rate of the whole stream.

The two are solved together by iterating on the loads of the resources (:func:`solve`). Linux models nothing of this;
the mechanism is that of the Mess memory simulator (curves) and of fair sharing in networks (Bertsekas and Gallager,
Data Networks, 6.5.2).

Sparse matrices are compressed rows: visits of stream ``s`` are ``resource[start[s]:start[s + 1]]``. Bandwidths are
MB/s (10^6 bytes), latencies and delays ns, windows bytes; 1 B/ns = 1000 MB/s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record

MBPS_PER_BYTE_PER_NS = 1000.0
UNTRIED = 2.0
"""Upper bracket of a load before any load has been found too high."""


@record
class Streams(NamedTuple):
    """What every stream asks of which resources, as compressed rows; there may be room behind the last visit.

    start, resource : int64 (streams + 1,), int64 (visits,)
    visits : float64 (visits,), part of the stream's accesses that pass the resource; delays count so often
    usage : float64 (visits,), bandwidth taken from the resource per unit of the stream's own rate, > 0
    idle_latency : float64 (streams,), ns
    window : float64 (streams,), bytes in flight; 0 if only ``wanted`` limits the stream
    wanted : float64 (streams,), MB/s at most; inf for as much as it gets
    weight : float64 (streams,), fairness weight > 0, for example the number of vCPUs
    """

    start: np.ndarray
    resource: np.ndarray
    visits: np.ndarray
    usage: np.ndarray
    idle_latency: np.ndarray
    window: np.ndarray
    wanted: np.ndarray
    weight: np.ndarray


@record
class Resources(NamedTuple):
    """What there is; there may be room behind the last.

    capacity : float64 (resources,), MB/s
    curve : int64 (resources,), row of the curve tables
    curve_loads, curve_delays : float64 (curves, points), load 0..1 and ns over idle
    delay_scale : float64 (resources,), factor on the curve's delays
    """

    capacity: np.ndarray
    curve: np.ndarray
    curve_loads: np.ndarray
    curve_delays: np.ndarray
    delay_scale: np.ndarray


@record
class Solution(NamedTuple):
    """Outputs.

    rate, latency : float64 (streams,), MB/s and ns (loaded)
    used, delay : float64 (resources,), MB/s taken from every resource, and ns
    residual : float64 (1,), the greatest change of a load in the last iteration
    """

    rate: np.ndarray
    latency: np.ndarray
    used: np.ndarray
    delay: np.ndarray
    residual: np.ndarray


@record
class Scratch(NamedTuple):
    """Working space.

    load, low, high, last_load, last_gap, active, level : float64 (resources,)
    demand, turn : float64 (streams,), what a stream asks for, and its key in the queue of those that wait
    resource_start, resource_stream : int64 (resources + 1,), int64 (visits,), streams of every resource
    active_streams, unfilled : int64 (resources,)
    waiting, frozen : int64 (streams,)
    """

    load: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last_load: np.ndarray
    last_gap: np.ndarray
    active: np.ndarray
    level: np.ndarray
    demand: np.ndarray
    turn: np.ndarray
    resource_start: np.ndarray
    resource_stream: np.ndarray
    active_streams: np.ndarray
    unfilled: np.ndarray
    waiting: np.ndarray
    frozen: np.ndarray


def room(streams: int, resources: int) -> Solution:
    """Room for the solution of so many of each, all zero."""
    return Solution(np.zeros(streams), np.zeros(streams), np.zeros(resources), np.zeros(resources), np.zeros(1))


def scratch(streams: int, resources: int, visits: int) -> Scratch:
    """Room for so many of each."""
    floats = [np.empty(resources) for _ in range(7)] + [np.empty(streams) for _ in range(2)]
    rows = [np.empty(resources + 1, np.int64), np.empty(visits, np.int64)]
    integers = [np.empty(count, np.int64) for count in (resources, resources, streams, streams)]
    return Scratch(*floats, *rows, *integers)


@kernel
def curve_delay(load: float, loads: np.ndarray, delays: np.ndarray) -> float:
    """Delay in ns over the idle latency at a load between 0 and 1, linear between the points of one curve.

    Parameters
    ----------
    load : used bandwidth over capacity
    loads, delays : float64 (points,), both ascending; the last delay counts beyond the last load
    """
    if load <= loads[0]:
        return delays[0]
    for point in range(1, loads.shape[0]):
        if load < loads[point]:
            step = (load - loads[point - 1]) / (loads[point] - loads[point - 1])
            return delays[point - 1] + step * (delays[point] - delays[point - 1])
    return delays[loads.shape[0] - 1]


@kernel
def transpose(streams: Streams, resources: Int, resource_start: np.ndarray, resource_stream: np.ndarray) -> None:
    """Streams of every resource, from resources of every stream, both as compressed rows.

    Parameters
    ----------
    resources : how many there are
    resource_start, resource_stream : int64 (resources + 1,), int64 (visits,), outputs
    """
    start, resource = streams.start, streams.resource
    last = start.shape[0] - 1
    for index in range(resources + 1):
        resource_start[index] = 0
    for visit in range(start[last]):
        resource_start[resource[visit]] += 1
    total = np.int64(0)
    for index in range(resources + 1):
        total += resource_start[index]
        resource_start[index] = total
    for stream in range(last - 1, -1, -1):
        for visit in range(start[stream], start[stream + 1]):
            index = resource[visit]
            resource_start[index] -= 1
            resource_stream[resource_start[index]] = stream


@kernel
def _sift_down(heap: np.ndarray, key: np.ndarray, size: Int, position: Int) -> None:
    item = heap[position]
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and key[heap[child + 1]] < key[heap[child]]:
            child += 1
        if key[heap[child]] >= key[item]:
            break
        heap[position] = heap[child]
        position = child
    heap[position] = item


@kernel
def _heapify(heap: np.ndarray, key: np.ndarray, size: Int) -> None:
    for position in range(size // 2 - 1, -1, -1):
        _sift_down(heap, key, size, position)


@kernel
def _pop(heap: np.ndarray, key: np.ndarray, size: Int) -> Int:
    heap[0] = heap[size - 1]
    _sift_down(heap, key, size - 1, 0)
    return size - 1


@kernel
def _freeze(stream: Int, speed: float, streams: Streams, solution: Solution, work: Scratch) -> None:
    solution.rate[stream] = speed
    for visit in range(streams.start[stream], streams.start[stream + 1]):
        index, usage = streams.resource[visit], streams.usage[visit]
        solution.used[index] += speed * usage
        work.active[index] -= streams.weight[stream] * usage
        work.active_streams[index] -= 1


@kernel
def _level(capacity: float, used: float, active: float, active_streams: Int) -> float:
    """Rate per unit of weight at which a resource is full, if all its active streams rise together."""
    if active_streams == 0 or active <= 0.0:
        return np.inf
    return max(0.0, capacity - used) / active


@kernel
def max_min_fair(streams: Streams, resources: Resources, count: Int, solution: Solution, work: Scratch) -> None:
    """Weighted max-min fair rates by progressive filling, in O((visits + streams) log streams).

    Parameters
    ----------
    count : how many resources there are
    solution : receives ``rate`` and ``used``
    work : ``demand`` is what the streams ask for at most, in MB/s, and may be inf; ``resource_start`` and
        ``resource_stream`` are those of :func:`transpose`
    """
    index: Int
    start, resource, usage, weight = streams.start, streams.resource, streams.usage, streams.weight
    capacity, rate, used = resources.capacity, solution.rate, solution.used
    demand, active, active_streams, frozen = work.demand, work.active, work.active_streams, work.frozen
    resource_start, resource_stream = work.resource_start, work.resource_stream
    resource_heap, resource_key = work.unfilled, work.level
    stream_heap, stream_key = work.waiting, work.turn
    everyone = start.shape[0] - 1

    # A resource that could serve all demands never fills; streams that visit only such resources get their demand.
    for index in range(count):
        used[index] = 0.0
    for stream in range(everyone):
        for visit in range(start[stream], start[stream + 1]):
            used[resource[visit]] += demand[stream] * usage[visit]
    unfilled: Int = 0
    for index in range(count):
        active[index] = 0.0
        active_streams[index] = 0
        if used[index] > capacity[index]:
            resource_heap[unfilled] = index
            unfilled += 1
    waiting: Int = 0
    for stream in range(everyone):
        frozen[stream] = 1
        for visit in range(start[stream], start[stream + 1]):
            if used[resource[visit]] > capacity[resource[visit]]:
                frozen[stream] = 0
        if frozen[stream]:
            # A stream without demand limit that visits nothing limited has no rate to speak of.
            rate[stream] = demand[stream] if demand[stream] < np.inf else 0.0
            continue
        stream_heap[waiting] = stream
        stream_key[stream] = demand[stream] / weight[stream]
        waiting += 1
        for visit in range(start[stream], start[stream + 1]):
            active[resource[visit]] += weight[stream] * usage[visit]
            active_streams[resource[visit]] += 1
    if unfilled == 0:
        return
    for index in range(count):
        used[index] = 0.0
    for stream in range(everyone):
        if frozen[stream]:
            for visit in range(start[stream], start[stream + 1]):
                used[resource[visit]] += rate[stream] * usage[visit]
    for position in range(unfilled):
        index = resource_heap[position]
        resource_key[index] = _level(capacity[index], used[index], active[index], active_streams[index])
    _heapify(stream_heap, stream_key, waiting)
    _heapify(resource_heap, resource_key, unfilled)

    while waiting > 0:
        stream = stream_heap[0]
        if frozen[stream]:
            waiting = _pop(stream_heap, stream_key, waiting)
            continue
        full_at = np.inf
        index = np.int64(-1)
        while unfilled > 0:
            # Levels only rise while others stop, so a stale key at the top is renewed in place.
            index = resource_heap[0]
            full_at = _level(capacity[index], used[index], active[index], active_streams[index])
            if full_at <= resource_key[index]:
                break
            resource_key[index] = full_at
            _sift_down(resource_heap, resource_key, unfilled, 0)
            if resource_heap[0] == index:
                break
        if stream_key[stream] <= full_at:
            frozen[stream] = 1
            waiting = _pop(stream_heap, stream_key, waiting)
            _freeze(stream, demand[stream], streams, solution, work)
            continue
        unfilled = _pop(resource_heap, resource_key, unfilled)
        for position in range(resource_start[index], resource_start[index + 1]):
            sharing = resource_stream[position]
            if not frozen[sharing]:
                frozen[sharing] = 1
                speed = full_at * weight[sharing]
                _freeze(sharing, speed, streams, solution, work)


@kernel
def _demands(streams: Streams, solution: Solution, work: Scratch) -> None:
    """Latency of every stream from the delays, and what it asks for: the lesser of window / latency and its wish."""
    start, window, wanted = streams.start, streams.window, streams.wanted
    for stream in range(start.shape[0] - 1):
        total = streams.idle_latency[stream]
        for visit in range(start[stream], start[stream + 1]):
            total += streams.visits[visit] * solution.delay[streams.resource[visit]]
        solution.latency[stream] = total
        work.demand[stream] = wanted[stream]
        if window[stream] > 0.0:
            work.demand[stream] = min(wanted[stream], window[stream] / total * MBPS_PER_BYTE_PER_NS)


@kernel
def _cut_demands(streams: Streams, resources: Resources, count: Int, solution: Solution, work: Scratch) -> Int:
    """Rates as if every stream got its demand, loads cut at the capacities; returns how many resources are short."""
    start, demand, used, capacity = streams.start, work.demand, solution.used, resources.capacity
    for index in range(count):
        used[index] = 0.0
    for stream in range(start.shape[0] - 1):
        solution.rate[stream] = demand[stream] if demand[stream] < np.inf else 0.0
        for visit in range(start[stream], start[stream + 1]):
            used[streams.resource[visit]] += demand[stream] * streams.usage[visit]
    short = 0
    for index in range(count):
        if used[index] > capacity[index]:
            used[index] = capacity[index]
            short += 1
    return short


@kernel
def solve(
    streams: Streams,
    resources: Resources,
    count: Int,
    solution: Solution,
    work: Scratch,
    tolerance: float,
    max_iterations: Int,
) -> Int:
    """Rates, latencies and loads that agree with each other; returns iterations, or -1 if the tolerance is not met.

    The unknown is the load of every resource. More load means more delay, less demand and so less load: the map is
    decreasing, and its slope is steep near saturation. Every resource therefore takes its own secant step, limited
    by a bracket of loads known to be too low and too high. As long as loads are far from the solution, they are
    computed from demands cut at the capacities, which is cheap; sharing begins from there, if anything is short.

    Parameters
    ----------
    streams, resources, solution, work : see there
    count : how many resources there are
    tolerance : greatest change of any resource's load (as part of its capacity) that counts as converged
    """
    capacity, curve, used, delay = resources.capacity, resources.curve, solution.used, solution.delay
    load, low, high, residual = work.load, work.low, work.high, solution.residual
    last_load, last_gap = work.last_load, work.last_gap

    transpose(streams, count, work.resource_start, work.resource_stream)
    for index in range(count):
        load[index], low[index], high[index], last_gap[index] = 0.0, 0.0, UNTRIED, 0.0
    iterations = -1
    sharing = False
    short: Int = 0
    for iteration in range(1, max_iterations + 1):
        for index in range(count):
            row = curve[index]
            delay[index] = resources.delay_scale[index] * curve_delay(
                load[index], resources.curve_loads[row], resources.curve_delays[row]
            )
        _demands(streams, solution, work)
        if sharing:
            max_min_fair(streams, resources, count, solution, work)
        else:
            short = _cut_demands(streams, resources, count, solution, work)
        residual[0] = 0.0
        for index in range(count):
            gap = (used[index] / capacity[index] if capacity[index] > 0.0 else 0.0) - load[index]
            residual[0] = max(residual[0], abs(gap))
        near = residual[0] <= tolerance or iteration == max_iterations // 2
        if near and not sharing and short > 0:
            # Near enough to share fairly what is short; brackets were those of another map.
            sharing = True
            for index in range(count):
                low[index], high[index], last_gap[index] = 0.0, UNTRIED, 0.0
            continue
        if residual[0] <= tolerance:
            iterations = iteration
            break
        for index in range(count):
            gap = (used[index] / capacity[index] if capacity[index] > 0.0 else 0.0) - load[index]
            load_now = load[index]
            if abs(gap) <= 0.25 * tolerance:
                continue
            if gap > 0.0:
                low[index] = load_now
                if high[index] - load_now < tolerance:
                    high[index] = 1.0  # the others moved: the bracket no longer holds
            else:
                high[index] = load_now
                if load_now - low[index] < tolerance:
                    low[index] = 0.0
            step = 0.5 * gap
            if last_gap[index] != 0.0 and load_now != last_load[index]:
                slope = (gap - last_gap[index]) / (load_now - last_load[index])
                step = gap / max(1.0, -slope)
            last_load[index] = load_now
            last_gap[index] = gap
            moved = load_now + step
            if load_now + gap >= 1.0 - tolerance and (high[index] == UNTRIED or iteration % 4 == 0):
                moved = 1.0  # full at this load: mostly it is full at the solution, so try that exactly
            elif moved <= low[index] or moved >= high[index]:
                moved = 0.5 * (low[index] + min(1.0, high[index]))
            load[index] = moved
    rate, window, wanted = solution.rate, streams.window, streams.wanted
    for stream in range(streams.start.shape[0] - 1):
        if window[stream] > 0.0 and rate[stream] > 0.0 and rate[stream] < wanted[stream]:
            # Where sharing, not the curves, sets the rate, the bytes in flight wait for their turn.
            waits = window[stream] / rate[stream] * MBPS_PER_BYTE_PER_NS
            solution.latency[stream] = max(solution.latency[stream], waits)
    return iterations


def solve_streams(
    streams: Streams, resources: Resources, tolerance: float = 1e-6, max_iterations: int = 500
) -> tuple[Solution, int]:
    """:func:`solve` with its outputs allocated: they, and the iterations."""
    count = len(resources.capacity)
    solution = room(len(streams.start) - 1, count)
    work = scratch(len(streams.start) - 1, count, len(streams.resource))
    return solution, int(solve(streams, resources, count, solution, work, tolerance, max_iterations))

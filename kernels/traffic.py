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

import numpy as np

from workbench.kernels.compile import Int, allocating_kernel, kernel

MBPS_PER_BYTE_PER_NS = 1000.0
UNTRIED = 2.0
"""Upper bracket of a load before any load has been found too high."""


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
def transpose(start: np.ndarray, resource: np.ndarray, resource_start: np.ndarray, resource_stream: np.ndarray) -> None:
    """Streams of every resource, from resources of every stream, both as compressed rows.

    Parameters
    ----------
    start, resource : int64 (streams + 1,), int64 (visits,)
    resource_start, resource_stream : int64 (resources + 1,), int64 (visits,), outputs
    """
    resources = resource_start.shape[0] - 1
    resource_start[:] = 0
    for visit in range(resource.shape[0]):
        resource_start[resource[visit]] += 1
    total = np.int64(0)
    for index in range(resources + 1):
        total += resource_start[index]
        resource_start[index] = total
    for stream in range(start.shape[0] - 2, -1, -1):
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
def _freeze(
    stream: Int,
    speed: float,
    start: np.ndarray,
    resource: np.ndarray,
    usage: np.ndarray,
    weight: np.ndarray,
    rate: np.ndarray,
    used: np.ndarray,
    active: np.ndarray,
    active_streams: np.ndarray,
) -> None:
    rate[stream] = speed
    for visit in range(start[stream], start[stream + 1]):
        index = resource[visit]
        used[index] += speed * usage[visit]
        active[index] -= weight[stream] * usage[visit]
        active_streams[index] -= 1


@kernel
def _level(capacity: float, used: float, active: float, active_streams: Int) -> float:
    """Rate per unit of weight at which a resource is full, if all its active streams rise together."""
    if active_streams == 0 or active <= 0.0:
        return np.inf
    return max(0.0, capacity - used) / active


@kernel
def max_min_fair(
    start: np.ndarray,
    resource: np.ndarray,
    usage: np.ndarray,
    resource_start: np.ndarray,
    resource_stream: np.ndarray,
    capacity: np.ndarray,
    weight: np.ndarray,
    demand: np.ndarray,
    rate: np.ndarray,
    used: np.ndarray,
    float_work: np.ndarray,
    int_work: np.ndarray,
) -> None:
    """Weighted max-min fair rates by progressive filling, in O((visits + streams) log streams).

    Parameters
    ----------
    start, resource, usage : int64 (streams + 1,), int64 (visits,), float64 (visits,): bandwidth a stream takes from a
        resource per unit of its own rate, > 0
    resource_start, resource_stream : the transposed rows (:func:`transpose`)
    capacity : float64 (resources,), MB/s
    weight : float64 (streams,), > 0
    demand : float64 (streams,), MB/s the stream asks for at most; may be inf
    rate : float64 (streams,), output, MB/s
    used : float64 (resources,), output, MB/s taken from every resource
    float_work : float64 (2 * resources + streams,), scratch
    int_work : int64 (3 * resources + 2 * streams,), scratch
    """
    index: Int
    streams = rate.shape[0]
    resources = capacity.shape[0]
    active = float_work[:resources]
    resource_key = float_work[resources : 2 * resources]
    stream_key = float_work[2 * resources : 2 * resources + streams]
    active_streams = int_work[:resources]
    resource_heap = int_work[resources : 2 * resources]
    stream_heap = int_work[3 * resources : 3 * resources + streams]
    frozen = int_work[3 * resources + streams : 3 * resources + 2 * streams]

    # A resource that could serve all demands never fills; streams that visit only such resources get their demand.
    used[:] = 0.0
    for stream in range(streams):
        for visit in range(start[stream], start[stream + 1]):
            used[resource[visit]] += demand[stream] * usage[visit]
    unfilled: Int = 0
    for index in range(resources):
        active[index] = 0.0
        active_streams[index] = 0
        if used[index] > capacity[index]:
            resource_heap[unfilled] = index
            unfilled += 1
    waiting: Int = 0
    for stream in range(streams):
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
    for index in range(resources):
        used[index] = 0.0
    for stream in range(streams):
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
            _freeze(stream, demand[stream], start, resource, usage, weight, rate, used, active, active_streams)
            continue
        unfilled = _pop(resource_heap, resource_key, unfilled)
        for position in range(resource_start[index], resource_start[index + 1]):
            sharing = resource_stream[position]
            if not frozen[sharing]:
                frozen[sharing] = 1
                speed = full_at * weight[sharing]
                _freeze(sharing, speed, start, resource, usage, weight, rate, used, active, active_streams)


@kernel
def _demands(
    start: np.ndarray,
    resource: np.ndarray,
    visits: np.ndarray,
    idle_latency: np.ndarray,
    window: np.ndarray,
    wanted: np.ndarray,
    delay: np.ndarray,
    latency: np.ndarray,
    demand: np.ndarray,
) -> None:
    """Latency of every stream from the delays, and what it asks for: the lesser of window / latency and its wish."""
    for stream in range(latency.shape[0]):
        total = idle_latency[stream]
        for visit in range(start[stream], start[stream + 1]):
            total += visits[visit] * delay[resource[visit]]
        latency[stream] = total
        demand[stream] = wanted[stream]
        if window[stream] > 0.0:
            demand[stream] = min(wanted[stream], window[stream] / total * MBPS_PER_BYTE_PER_NS)


@kernel
def _cut_demands(
    start: np.ndarray,
    resource: np.ndarray,
    usage: np.ndarray,
    capacity: np.ndarray,
    demand: np.ndarray,
    rate: np.ndarray,
    used: np.ndarray,
) -> Int:
    """Rates as if every stream got its demand, loads cut at the capacities; returns how many resources are short."""
    used[:] = 0.0
    for stream in range(rate.shape[0]):
        rate[stream] = demand[stream] if demand[stream] < np.inf else 0.0
        for visit in range(start[stream], start[stream + 1]):
            used[resource[visit]] += demand[stream] * usage[visit]
    short = 0
    for index in range(capacity.shape[0]):
        if used[index] > capacity[index]:
            used[index] = capacity[index]
            short += 1
    return short


@kernel
def solve(
    start: np.ndarray,
    resource: np.ndarray,
    visits: np.ndarray,
    usage: np.ndarray,
    capacity: np.ndarray,
    curve: np.ndarray,
    curve_loads: np.ndarray,
    curve_delays: np.ndarray,
    delay_scale: np.ndarray,
    idle_latency: np.ndarray,
    window: np.ndarray,
    wanted: np.ndarray,
    weight: np.ndarray,
    tolerance: float,
    max_iterations: Int,
    rate: np.ndarray,
    latency: np.ndarray,
    used: np.ndarray,
    delay: np.ndarray,
    residual: np.ndarray,
    float_work: np.ndarray,
    int_work: np.ndarray,
) -> Int:
    """Rates, latencies and loads that agree with each other; returns iterations, or -1 if the tolerance is not met.

    The unknown is the load of every resource. More load means more delay, less demand and so less load: the map is
    decreasing, and its slope is steep near saturation. Every resource therefore takes its own secant step, limited
    by a bracket of loads known to be too low and too high. As long as loads are far from the solution, they are
    computed from demands cut at the capacities, which is cheap; sharing begins from there, if anything is short.

    Parameters
    ----------
    start, resource : int64 (streams + 1,), int64 (visits,)
    visits : float64 (visits,), part of the stream's accesses that pass the resource; delays count so often
    usage : float64 (visits,), bandwidth taken from the resource per unit of the stream's rate
    capacity : float64 (resources,), MB/s
    curve : int64 (resources,), row of the curve tables
    curve_loads, curve_delays : float64 (curves, points), load 0..1 and ns over idle
    delay_scale : float64 (resources,), factor on the curve's delays
    idle_latency : float64 (streams,), ns
    window : float64 (streams,), bytes in flight; 0 if only ``wanted`` limits the stream
    wanted : float64 (streams,), MB/s at most; inf for as much as it gets
    weight : float64 (streams,), fairness weight, for example the number of vCPUs
    tolerance : greatest change of any resource's load (as part of its capacity) that counts as converged
    rate, latency : float64 (streams,), outputs, MB/s and ns (loaded)
    used, delay : float64 (resources,), outputs, MB/s and ns
    residual : float64 (1,), output, the greatest change of a load in the last iteration
    float_work : float64 (7 * resources + 2 * streams,), scratch
    int_work : int64 (4 * resources + 2 * streams + 1 + visits,), scratch
    """
    streams = rate.shape[0]
    resources = capacity.shape[0]
    load = float_work[:resources]
    low = float_work[resources : 2 * resources]
    high = float_work[2 * resources : 3 * resources]
    last_load = float_work[3 * resources : 4 * resources]
    last_gap = float_work[4 * resources : 5 * resources]
    demand = float_work[5 * resources : 5 * resources + streams]
    fill_floats = float_work[5 * resources + streams :]
    resource_start = int_work[: resources + 1]
    resource_stream = int_work[resources + 1 : resources + 1 + resource.shape[0]]
    fill_ints = int_work[resources + 1 + resource.shape[0] :]

    transpose(start, resource, resource_start, resource_stream)
    load[:] = 0.0
    low[:] = 0.0
    high[:] = UNTRIED
    last_gap[:] = 0.0
    iterations = -1
    sharing = False
    short: Int = 0
    for iteration in range(1, max_iterations + 1):
        for index in range(resources):
            row = curve[index]
            delay[index] = delay_scale[index] * curve_delay(load[index], curve_loads[row], curve_delays[row])
        _demands(start, resource, visits, idle_latency, window, wanted, delay, latency, demand)
        if sharing:
            max_min_fair(
                start, resource, usage, resource_start, resource_stream, capacity, weight, demand, rate, used,
                fill_floats, fill_ints,
            )  # fmt: skip
        else:
            short = _cut_demands(start, resource, usage, capacity, demand, rate, used)
        residual[0] = 0.0
        for index in range(resources):
            gap = (used[index] / capacity[index] if capacity[index] > 0.0 else 0.0) - load[index]
            residual[0] = max(residual[0], abs(gap))
        near = residual[0] <= tolerance or iteration == max_iterations // 2
        if near and not sharing and short > 0:
            # Near enough to share fairly what is short; brackets were those of another map.
            sharing = True
            low[:] = 0.0
            high[:] = UNTRIED
            last_gap[:] = 0.0
            continue
        if residual[0] <= tolerance:
            iterations = iteration
            break
        for index in range(resources):
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
    for stream in range(streams):
        if window[stream] > 0.0 and rate[stream] > 0.0 and rate[stream] < wanted[stream]:
            # Where sharing, not the curves, sets the rate, the bytes in flight wait for their turn.
            latency[stream] = max(latency[stream], window[stream] / rate[stream] * MBPS_PER_BYTE_PER_NS)
    return iterations


@allocating_kernel
def solve_streams(
    start: np.ndarray,
    resource: np.ndarray,
    visits: np.ndarray,
    usage: np.ndarray,
    capacity: np.ndarray,
    curve: np.ndarray,
    curve_loads: np.ndarray,
    curve_delays: np.ndarray,
    delay_scale: np.ndarray,
    idle_latency: np.ndarray,
    window: np.ndarray,
    wanted: np.ndarray,
    weight: np.ndarray,
    tolerance: float = 1e-6,
    max_iterations: Int = 500,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Int, float]:
    """:func:`solve` with its outputs allocated: rate, latency, used, delay, iterations, residual."""
    streams, resources = start.shape[0] - 1, capacity.shape[0]
    rate = np.zeros(streams)
    latency = np.zeros(streams)
    used = np.zeros(resources)
    delay = np.zeros(resources)
    residual = np.zeros(1)
    float_work = np.empty(7 * resources + 2 * streams)
    int_work = np.empty(4 * resources + 2 * streams + 1 + resource.shape[0], np.int64)
    iterations = solve(
        start, resource, visits, usage, capacity, curve, curve_loads, curve_delays, delay_scale, idle_latency,
        window, wanted, weight, tolerance, max_iterations, rate, latency, used, delay, residual, float_work, int_work,
    )  # fmt: skip
    return rate, latency, used, delay, iterations, residual[0]

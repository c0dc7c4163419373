"""Streams of accesses on a host: which memory, links and ports they load, page walks included.

Resources of a host, in this order: memory of each node (``n``); links from the CPUs of home node i to the memory of
home node h (``n * n``, row ``n + i * n + h``); ports of each home node, which all its links share (``n``); cores of
each node, which together pull no more than the caps of their groups allow (``n``; core complexes, sub-clusters).

*Page walks are traffic.* A reference to a page-table page that no cache holds loads the node where that page lies, like
a reference to data: it takes 64 bytes of bandwidth there and on the way, and waits in the same queues.

*Reads and writes.* What memory or a link delivers depends on the share of reads in its traffic; a duplex link delivers
most when both directions are used. Capacity and delays of a resource are therefore read off at the mix that its streams
bring, and the mix follows from their rates: the two are iterated (:func:`solve_placements`).

*One queue.* Requests of a socket to all memories wait in one queue of limited length. A slow memory that is full keeps
its requests there, and those to a fast memory wait behind them. The wait is the same for every request of the socket,
be it for data or for a page table, and as long as needed for what is inside to fit, in bytes by Little's law:
``sum(rate * (latency - requests * wait - extra_latency)) <= length``, where an access makes one request and one more
for each reference to a page table in memory, and what it spends besides memory holds no place in the queue.

Bandwidths are MB/s (10^6 bytes), latencies ns, queues and windows bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import inlined_kernel, kernel, record
from workbench.kernels.traffic import MBPS_PER_BYTE_PER_NS, Resources, Scratch, Solution, Streams, room, scratch, solve

MIX_TOLERANCE = 1e-5
"""Greatest change of a resource's share of reads that counts as settled."""
QUEUE_TOLERANCE = 1e-4
"""Greatest part of a queue's length by which what is inside may exceed it."""
NARROW = 1e-6
"""Width of a bracket of waits, as part of the longer, at which it holds no solution."""
LONGEST_WAIT = 1e7
"""ns; a queue that is still too short then is not solved."""


@record
class MachineArrays(NamedTuple):
    """A host in arrays, under one or several draws of what is not known for sure.

    home : int64 (nodes,), node whose links lead to the node's memory (itself where it has CPUs)
    latency : float64 (draws, nodes, nodes), idle ns from CPUs of the row to memory of the column
    peaks : float64 (draws, resources, mixes), MB/s at shares of reads 0, 1/(mixes-1), ... 1; inf where nothing limits
    family : int64 (resources,), row of ``delays``
    loads : float64 (points,), loads 0..1 of the points of all curves
    delays : float64 (families, mixes, points), ns over idle
    queue : float64 (draws, nodes), bytes the shared queue of a home node holds; inf for no limit
    """

    home: np.ndarray
    latency: np.ndarray
    peaks: np.ndarray
    family: np.ndarray
    loads: np.ndarray
    delays: np.ndarray
    queue: np.ndarray


@record
class Demand(NamedTuple):
    """Streams in arrays, under as many draws.

    shares : float64 (draws, placements, streams, nodes), share of the data accesses; each row sums to 1, or to 0
    walks : float64 (draws, placements, streams, nodes), references to page tables in memory that one access makes
    initiator : int64 (streams,), node index of the CPUs
    write_fraction : float64 (streams,), part of the stream's data traffic that is written
    extra_latency : float64 (draws, streams), ns per access besides memory
    window : float64 (draws, streams), bytes in flight
    wanted, weight : float64 (streams,), MB/s at most, fairness weight
    """

    shares: np.ndarray
    walks: np.ndarray
    initiator: np.ndarray
    write_fraction: np.ndarray
    extra_latency: np.ndarray
    window: np.ndarray
    wanted: np.ndarray
    weight: np.ndarray


@record
class Found(NamedTuple):
    """What :func:`solve_placements` returns, in its order."""

    rate: np.ndarray
    latency: np.ndarray
    idle: np.ndarray
    walk: np.ndarray
    used: np.ndarray
    capacity: np.ndarray
    wait: np.ndarray
    iterations: np.ndarray


@record
class Work(NamedTuple):
    """Scratch of :func:`solve_placements`, besides that of one solution.

    reads, walked : float64 (visits,), parts of a visit that read and that go to page tables
    number, touched : int64 (resources,), int64 (visited resources,), see :func:`_renumber`
    mix, flows : float64 (visited resources,), float64 (2 * visited resources,), see :func:`read_shares`
    idle_walk, requests : float64 (streams,), see :func:`build_streams`
    low, high, inside, drain : float64 (nodes,), of each queue
    last : float64 (nodes, 2), see :func:`next_wait`
    """

    reads: np.ndarray
    walked: np.ndarray
    number: np.ndarray
    touched: np.ndarray
    mix: np.ndarray
    flows: np.ndarray
    idle_walk: np.ndarray
    requests: np.ndarray
    low: np.ndarray
    high: np.ndarray
    inside: np.ndarray
    drain: np.ndarray
    last: np.ndarray


@inlined_kernel
def _visit(
    row: int, share: float, reads: float, walk: float,
    at: int, rows: np.ndarray, by: np.ndarray, read: np.ndarray, walked: np.ndarray,
) -> int:  # fmt: skip
    rows[at] = row
    by[at] = share
    read[at] = reads
    walked[at] = walk
    return at + 1


@kernel
def build_streams(
    machine: MachineArrays, demand: Demand, draw: int, placement: int, streams: Streams, work: Work, idle: np.ndarray
) -> int:
    """Visits of every stream from the shares of its accesses and walks per node; returns the number of visits.

    Parameters
    ----------
    streams : its ``start``, ``resource`` and ``visits`` are written; room for streams * (4 * nodes + 1) visits. A visit
        takes as much bandwidth as it counts.
    work : ``reads``, ``walked``, ``idle_walk`` and ``requests`` are written; these are the part of ``idle`` that is spent
        in walks, ``extra_latency`` included, and how often an access goes to memory, page tables included
    idle : float64 (streams,), output, ns
    """
    home, latency, write_fraction = machine.home, machine.latency[draw], demand.write_fraction
    shares, walks = demand.shares[draw, placement], demand.walks[draw, placement]
    start, resource, visits = streams.start, streams.resource, streams.visits
    reads, walked = work.reads, work.walked
    nodes = shares.shape[1]
    at = 0
    start[0] = 0
    for stream in range(shares.shape[0]):
        source = demand.initiator[stream]
        near = home[source]
        nearness = 0.0
        total = 0.0
        in_walks = 0.0
        everything = 0.0
        for target in range(nodes):
            share, walk = max(0.0, shares[stream, target]), max(0.0, walks[stream, target])
            if share + walk <= 0.0:
                continue
            total += share
            everything += share + walk
            nearness += share * latency[source, target]
            in_walks += walk * latency[source, target]
            read = share * (1.0 - write_fraction[stream]) + walk
            at = _visit(target, share + walk, read, walk, at, resource, visits, reads, walked)
            far = home[target]
            if near != far:
                at = _visit(nodes + near * nodes + far, share + walk, read, walk, at, resource, visits, reads, walked)
                at = _visit(nodes + nodes * nodes + near, share + walk, read, walk, at, resource, visits, reads, walked)
                at = _visit(nodes + nodes * nodes + far, share + walk, read, walk, at, resource, visits, reads, walked)
        if total <= 0.0:  # touches nothing, so it walks nowhere
            at = start[stream]
            in_walks = 0.0
        else:
            read = total * (1.0 - write_fraction[stream]) + everything - total
            cores = 2 * nodes + nodes * nodes + source
            at = _visit(cores, everything, read, everything - total, at, resource, visits, reads, walked)
        start[stream + 1] = at
        data = nearness / total if total > 0.0 else latency[source, source]
        work.idle_walk[stream] = in_walks + demand.extra_latency[draw, stream]
        work.requests[stream] = 1.0 + everything - total
        idle[stream] = data + work.idle_walk[stream]
    return at


@kernel
def _renumber(resource: np.ndarray, count: int, number: np.ndarray, touched: np.ndarray) -> int:
    """Number the resources that are visited from 0 on, in place; a host of 64 nodes has 4288, one stream visits 192.

    ``number`` is all -1 before; ``touched[k]`` receives the resource of number k. Returns how many there are.
    """
    few = 0
    for visit in range(count):
        index = resource[visit]
        if number[index] < 0:
            number[index] = few
            touched[few] = index
            few += 1
        resource[visit] = number[index]
    return few


@kernel
def read_shares(
    streams: Streams, reads: np.ndarray, rate: np.ndarray, few: int, flows: np.ndarray, mix: np.ndarray
) -> float:
    """Share of reads in the traffic of every resource at the given rates; returns the greatest change of ``mix``.

    Parameters
    ----------
    reads : float64 (visits,), part of each visit that reads
    rate : float64 (streams,)
    few : how many resources there are
    flows : float64 (2 * resources,), scratch
    mix : float64 (resources,), in and out; stays as it was where nothing flows
    """
    start, resource = streams.start, streams.resource
    for index in range(2 * few):
        flows[index] = 0.0
    for stream in range(rate.shape[0]):
        for visit in range(start[stream], start[stream + 1]):
            flows[resource[visit]] += rate[stream] * reads[visit]
            flows[few + resource[visit]] += rate[stream] * streams.visits[visit]
    change = 0.0
    for index in range(few):
        if flows[few + index] > 0.0:
            share = flows[index] / flows[few + index]
            change = max(change, abs(share - mix[index]))
            mix[index] = share
    return change


@kernel
def at_mix(mix: float, peaks: np.ndarray, delays: np.ndarray, curve: np.ndarray) -> float:
    """Capacity at a share of reads, linear between the measured ones, and the curve there in ``curve``.

    Parameters
    ----------
    mix : 0..1
    peaks : float64 (mixes,); delays : float64 (mixes, points); curve : float64 (points,), output
    """
    last = peaks.shape[0] - 1
    place = min(max(mix, 0.0), 1.0) * last
    below = min(int(place), max(0, last - 1))
    above = min(below + 1, last)
    part = place - below
    for point in range(curve.shape[0]):
        curve[point] = (1.0 - part) * delays[below, point] + part * delays[above, point]
    if peaks[below] == np.inf or peaks[above] == np.inf:
        return np.inf
    return (1.0 - part) * peaks[below] + part * peaks[above]


@kernel
def next_wait(
    wait: float, gap: float, drain: float, low: np.ndarray, high: np.ndarray, last: np.ndarray, queue: int
) -> float:
    """Next guess of a queue's wait in ns: a secant step inside the bracket, or what drains the excess.

    Parameters
    ----------
    wait : ns now
    gap : bytes inside over the queue's length, negative if there is room
    drain : MB/s of all requests that use the queue
    low, high : float64 (queues,), waits known to be too short and too long (inf: none yet)
    last : float64 (queues, 2), wait and gap of the guess before; a wait below 0 says there is none
    """
    if gap > 0.0:
        low[queue] = max(low[queue], wait)
    else:
        high[queue] = min(high[queue], wait)
    if high[queue] - low[queue] <= NARROW * high[queue]:  # the others moved: the bracket no longer holds
        low[queue], high[queue] = 0.0, np.inf
    step = gap / drain * MBPS_PER_BYTE_PER_NS if drain > 0.0 else 0.0
    if last[queue, 0] >= 0.0 and wait != last[queue, 0] and gap != last[queue, 1]:
        slope = (gap - last[queue, 1]) / (wait - last[queue, 0])
        if slope < 0.0:
            step = -gap / slope
    last[queue, 0], last[queue, 1] = wait, gap
    moved = wait + step
    if high[queue] == np.inf:
        return max(0.0, min(moved, 8.0 * wait + 4.0 * max(step, 0.0) + 1.0))
    if moved <= low[queue] or moved >= high[queue]:
        moved = 0.5 * (low[queue] + high[queue])
    return moved


def solve_placements(
    machine: MachineArrays, demand: Demand, tolerance: float, max_iterations: int, max_passes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solve many placements of the same streams on one host, under every draw of it.

    Parameters
    ----------
    machine, demand : see there
    tolerance, max_iterations : of each solution, see :func:`workbench.kernels.traffic.solve`
    max_passes : solutions of one placement until mixes and queues have settled

    Returns
    -------
    The placements under the first draw, then those under the second, and so on:
    rate, latency, idle latency, walk : float64 (placements, streams), MB/s of data, ns of an access with its walk, and
        the part of the loaded latency that is spent in walks; a wait for one's turn counts in proportion
    used, capacity : float64 (placements, resources), MB/s; the capacity at the mix found
    wait : float64 (placements, nodes), ns in the queue of each home node
    iterations : int64 (placements,), of all passes together; -1 where the tolerance was not met
    """
    draws, placements, streams, nodes = demand.shares.shape
    resources, points = machine.peaks.shape[1], machine.loads.shape[0]
    rows = draws * placements
    visited = streams * (4 * nodes + 1)
    most = min(visited, resources)
    found = Found(
        rate=np.zeros((rows, streams)),
        latency=np.zeros((rows, streams)),
        idle=np.zeros((rows, streams)),
        walk=np.zeros((rows, streams)),
        used=np.zeros((rows, resources)),
        capacity=np.repeat(machine.peaks[:, :, -1], placements, axis=0),
        wait=np.zeros((rows, nodes)),
        iterations=np.zeros(rows, np.int64),
    )
    work = Work(
        reads=np.empty(visited),
        walked=np.empty(visited),
        number=np.full(resources, -1, np.int64),
        touched=np.empty(most, np.int64),
        mix=np.empty(most),
        flows=np.empty(2 * most),
        idle_walk=np.empty(streams),
        requests=np.empty(streams),
        low=np.empty(nodes),
        high=np.empty(nodes),
        inside=np.empty(nodes),
        drain=np.empty(nodes),
        last=np.empty((nodes, 2)),
    )
    visits = np.empty(visited)
    asked = Streams(
        start=np.zeros(streams + 1, np.int64),
        resource=np.empty(visited, np.int64),
        visits=visits,
        usage=visits,
        idle_latency=np.empty(streams),
        window=np.empty(streams),
        wanted=np.empty(streams),
        weight=demand.weight,
    )
    there = Resources(
        capacity=np.empty(most),
        curve=np.arange(most),
        curve_loads=np.repeat(machine.loads[None], most, axis=0),
        curve_delays=np.empty((most, points)),
        delay_scale=np.ones(most),
    )
    _solve_placements(
        machine, demand, found, work, asked, there, room(streams, most), scratch(streams, most, visited),
        tolerance, max_iterations, max_passes,
    )  # fmt: skip
    return tuple(found)  # type: ignore[return-value]


@kernel
def _solve_placements(
    machine: MachineArrays,
    demand: Demand,
    found: Found,
    work: Work,
    streams: Streams,
    resources: Resources,
    solution: Solution,
    scratch: Scratch,
    tolerance: float,
    max_iterations: int,
    max_passes: int,
) -> None:
    """:func:`solve_placements` into ``found``."""
    home = machine.home
    mix, low, high, inside, drain, requests = work.mix, work.low, work.high, work.inside, work.drain, work.requests
    rate, loaded, delay = solution.rate, solution.latency, solution.delay
    placements = demand.shares.shape[1]
    for row in range(demand.shares.shape[0] * placements):
        draw = row // placements
        queue, extra_latency = machine.queue[draw], demand.extra_latency[draw]
        idle, wait = found.idle[row], found.wait[row]
        count = build_streams(machine, demand, draw, row - draw * placements, streams, work, idle)
        for stream in range(rate.shape[0]):
            streams.window[stream] = demand.window[draw, stream]
            visited = streams.start[stream + 1] > streams.start[stream]
            streams.wanted[stream] = demand.wanted[stream] if visited else 0.0
        few = _renumber(streams.resource, count, work.number, work.touched)
        mix[:few] = 1.0
        read_shares(streams, work.reads, demand.weight, few, work.flows, mix)
        low[:] = 0.0
        high[:] = np.inf
        work.last[:] = -1.0
        done = 0
        settled = False
        for _ in range(max_passes):
            for index in range(few):
                of = work.touched[index]
                resources.capacity[index] = at_mix(
                    mix[index],
                    machine.peaks[draw, of],
                    machine.delays[machine.family[of]],
                    resources.curve_delays[index],
                )
            for stream in range(rate.shape[0]):
                streams.idle_latency[stream] = idle[stream] + requests[stream] * wait[home[demand.initiator[stream]]]
            steps = solve(streams, resources, few, solution, scratch, tolerance, max_iterations)
            if steps < 0:
                break
            done += steps
            settled = True
            inside[:] = 0.0
            drain[:] = 0.0
            for stream in range(rate.shape[0]):
                node = home[demand.initiator[stream]]
                outside = requests[stream] * wait[node] + extra_latency[stream]
                inside[node] += rate[stream] * max(0.0, loaded[stream] - outside) / MBPS_PER_BYTE_PER_NS
                drain[node] += rate[stream] * requests[stream]
            for node in range(queue.shape[0]):
                length = queue[node]
                if length == np.inf or drain[node] <= 0.0:
                    continue
                gap = inside[node] - length
                if gap > QUEUE_TOLERANCE * length or (wait[node] > 0.0 and gap < -QUEUE_TOLERANCE * length):
                    settled = False
                    wait[node] = next_wait(wait[node], gap, drain[node], low, high, work.last, node)
                    if wait[node] > LONGEST_WAIT:
                        steps = -1
            if read_shares(streams, work.reads, rate, few, work.flows, mix) > MIX_TOLERANCE:
                settled = False
            if settled or steps < 0:
                break
        found.iterations[row] = done if settled else -1
        for stream in range(rate.shape[0]):
            total, part = streams.idle_latency[stream], work.idle_walk[stream]
            part += (requests[stream] - 1.0) * wait[home[demand.initiator[stream]]]
            for visit in range(streams.start[stream], streams.start[stream + 1]):
                total += streams.visits[visit] * delay[streams.resource[visit]]
                part += work.walked[visit] * delay[streams.resource[visit]]
            found.rate[row, stream], found.latency[row, stream] = rate[stream], loaded[stream]
            found.walk[row, stream] = loaded[stream] * part / total if total > 0.0 else 0.0
        for index in range(few):
            found.used[row, work.touched[index]] = solution.used[index]
            found.capacity[row, work.touched[index]] = resources.capacity[index]
            work.number[work.touched[index]] = -1

"""Plain Python twins of kernels/traffic.py and kernels/translation.py: obvious, slow, lists and dicts only."""

from __future__ import annotations

import math
from itertools import pairwise

Stream = dict[int, float]
"""resource -> bandwidth taken per unit of the stream's rate."""


def max_min_fair(streams: list[Stream], capacity: list[float], weight: list[float], demand: list[float]) -> list[float]:
    """Raise all rates together until a stream has its demand or a resource is full; stop those; repeat."""
    rate = [0.0] * len(streams)
    growing = set(range(len(streams)))
    while growing:
        steps = {}
        for s in growing:
            steps["demand", s] = (demand[s] - rate[s]) / weight[s]
        for r, limit in enumerate(capacity):
            slope = sum(weight[s] * streams[s].get(r, 0.0) for s in growing)
            if slope > 0:
                used = sum(rate[s] * streams[s].get(r, 0.0) for s in range(len(streams)))
                steps["resource", r] = max(0.0, limit - used) / slope
        step = min(steps.values())
        if math.isinf(step):
            break
        for s in growing:
            rate[s] += weight[s] * step
        for (kind, number), value in steps.items():
            if value <= step * (1 + 1e-12):
                growing -= {number} if kind == "demand" else {s for s in growing if streams[s].get(number, 0.0) > 0}
    return rate


def interpolate(load: float, points: list[tuple[float, float]]) -> float:
    """Delay at a load on a piecewise linear curve that is flat beyond its ends."""
    if load <= points[0][0]:
        return points[0][1]
    for (left, before), (right, after) in pairwise(points):
        if load < right:
            return before + (load - left) / (right - left) * (after - before)
    return points[-1][1]


def harmonic(count: int, exponent: float) -> float:
    """Generalized harmonic number, term by term."""
    return math.fsum(k**-exponent for k in range(1, count + 1))


def walk_references(guest_levels: int, host_levels: int) -> int:
    """Count the references of a nested walk by walking: every guest-physical address is translated first."""
    references = 0
    for _ in range(guest_levels):
        references += host_levels  # translate the address of the guest's table
        references += 1  # read the guest's entry
    return references + host_levels  # translate the address of the data

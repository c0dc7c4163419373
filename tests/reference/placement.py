"""Placement of guest memory one page at a time, in plain Python: slow and obvious, the oracle of workbench.kernels.placement."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Zone:
    node: int
    free: int
    low: int  # low watermark plus lowmem_reserve
    min: int


@dataclass
class Task:
    il_prev: int
    il_weight: int = 0


@dataclass
class Policy:
    kind: str  # "start", "interleave", "weighted"
    start: int = 0
    nodes: set[int] = field(default_factory=set)
    filters: tuple[set[int], ...] = ()
    task: int = 0
    index_base: int | None = None


def next_in(node: int, mask: set[int]) -> int:
    later = [n for n in mask if n > node]
    return min(later) if later else min(mask)


def choose(policy: Policy, task: Task, weights: list[int], page: int) -> int:
    if policy.kind == "start":
        return policy.start
    ordered = sorted(policy.nodes)
    if policy.index_base is not None:
        spread = [n for n in ordered for _ in range(weights[n] if policy.kind == "weighted" else 1)]
        return spread[(policy.index_base + page) % len(spread)]
    if policy.kind == "interleave":
        task.il_prev = next_in(task.il_prev, policy.nodes)
        return task.il_prev
    if task.il_weight == 0 or task.il_prev not in policy.nodes:
        task.il_prev = next_in(task.il_prev, policy.nodes)
        task.il_weight = weights[task.il_prev]
    task.il_weight -= 1
    return task.il_prev


def take(zones: list[Zone], zonelist: list[int], filters: tuple[set[int], ...]) -> int | None:
    """Zone that gives a page: every filter at the low mark, then at the min mark."""
    for allowed in filters:
        for mark in ("low", "min"):
            for number in zonelist:
                zone = zones[number]
                if zone.node in allowed and zone.free > getattr(zone, mark):
                    zone.free -= 1
                    return number
    return None


def place(
    faults: list[tuple[int, int]],
    policies: list[Policy],
    tasks: list[Task],
    zones: list[Zone],
    zonelists: list[list[int]],
    weights: list[int],
) -> list[int]:
    """Zones of the pages ``(page, policy)`` touched in order; shorter than ``faults`` when memory ran out."""
    placed: list[int] = []
    for page, number in faults:
        policy = policies[number]
        node = choose(policy, tasks[policy.task], weights, page)
        zone = take(zones, zonelists[node], policy.filters)
        if zone is None:
            break
        placed.append(zone)
    return placed


def fallback_order(distance: list[list[int]], has_memory: list[bool], has_cpus: list[bool]) -> list[list[int]]:
    """Fallback order of each node, straight from the text of build_zonelists and find_next_best_node."""
    size = len(distance)
    load = [0] * size
    lists = []
    for me in range(size):
        order: list[int] = []
        previous = me
        while len(order) < sum(has_memory):
            if not order and has_memory[me]:
                best = me
            else:
                best, best_value = -1, math.inf
                for n in range(size):
                    if has_memory[n] and n not in order:
                        value = (distance[me][n] + (n < me) + has_cpus[n]) * 1024 + load[n]
                        if value < best_value:
                            best, best_value = n, value
            if distance[me][best] != distance[me][previous]:
                load[best] += 1
            order.append(best)
            previous = best
        lists.append(order)
    return lists


def automatic_weights(bandwidth: list[int], has_memory: list[bool]) -> list[int]:
    """reduce_interleave_weights in exact integers; the kernel's 32-bit product does not wrap for these inputs."""
    total = sum(b for b, memory in zip(bandwidth, has_memory, strict=True) if memory)
    weights = [
        max(1, 32 * b // total) if memory and total else 1 for b, memory in zip(bandwidth, has_memory, strict=True)
    ]
    divisor = math.gcd(*[w for w, memory in zip(weights, has_memory, strict=True) if memory] or [1])
    return [w // divisor if memory else 1 for w, memory in zip(weights, has_memory, strict=True)]

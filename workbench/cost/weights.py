"""Interleave weights: what the kernel computes from bandwidths, and what gives most bandwidth in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost.machine import Machine, machine, reported_bandwidth, sampled
from workbench.cost.traffic import access_pattern, initiators_of, running, solve, streams, together
from workbench.errors import WorkbenchError
from workbench.variables import Weights

if TYPE_CHECKING:
    from workbench.scenario import Access
    from workbench.topology.host import Host


def automatic_weights(host: Host | Machine) -> np.ndarray:
    """The kernel's automatic interleave weights, int64 (nodes,), from the bandwidth of each node.

    A :class:`Host` counts as the kernel sees it: only nodes with an HMAT access class have a bandwidth, and without any
    the weights are all 1. A :class:`Machine` counts with the model's bandwidths, estimates included.
    """
    from workbench.kernels import mempolicy

    if isinstance(host, Machine):
        bandwidth = np.round(host.bandwidth).astype(np.int64)
    else:
        ids = {node.id: index for index, node in enumerate(host.nodes)}
        bandwidth = np.zeros(len(host.nodes), np.int64)
        for a in host.access or ():
            bandwidth[ids[a.target]] = max(bandwidth[ids[a.target]], int(reported_bandwidth(a)))
    out = np.ones(len(bandwidth), np.int64)
    if bandwidth.any():
        mempolicy.auto_weights(bandwidth, np.ones(len(bandwidth), bool), out)
    return out


def _totals(
    model: Machine, shares: np.ndarray, vcpus: Mapping[int, float], access: Access, costs: Mapping[str, float] | None
) -> np.ndarray:
    """What is to be large, for each row of shares: MB/s of all streams; for pointer chasing, 1 / mean latency."""
    solution = solve(model, streams(model, shares, vcpus, access, costs=costs), unsolved="nan")
    solution = replace(
        solution, bandwidth=np.nan_to_num(solution.bandwidth), latency=np.nan_to_num(solution.latency, nan=np.inf)
    )
    if access.pattern == "pointer_chasing":
        number = np.array(list(vcpus.values()), float)
        return np.asarray(number.sum() / (solution.latency @ number))
    return np.asarray(solution.bandwidth.sum(axis=1))


def _separate_shares(
    model: Machine, allowed: np.ndarray, vcpus: Mapping[int, float], access: Access, costs: Mapping[str, float] | None
) -> np.ndarray:
    """Shares if every node could be used at its own speed: what one stream for each vCPU node and target takes.

    Returns float64 (2, nodes): with all bytes in flight for every target, and divided among them.
    """
    targets = np.flatnonzero(allowed)
    out = []
    for part in (1.0, 1.0 / len(targets)):
        few = {node: number * part for node, number in vcpus.items()}
        flows = [streams(model, row, few, access, costs=costs) for row in np.eye(model.nodes)[targets]]
        out.append(solve(model, together(flows)).node_used[0])
    used = np.array(out)
    return used / used.sum(axis=1, keepdims=True)


def _best_shares(
    model: Machine,
    starts: np.ndarray,
    allowed: np.ndarray,
    vcpus: Mapping[int, float],
    access: Access,
    costs: Mapping[str, float] | None,
) -> np.ndarray:
    """Shares with the greatest total bandwidth found by changing one node's share at a time, from several starts."""
    totals = _totals(model, starts, vcpus, access, costs)
    best, best_total = starts[int(totals.argmax())], float(totals.max())
    nodes = np.flatnonzero(allowed)
    # Many nodes start from a good guess and take few rounds: a round costs four solutions for each node.
    for factor in (4.0, 2.0, 1.3, 1.1, 1.03, 1.01):
        for _ in range(60 if len(nodes) <= 16 else 6):
            moves = []
            for node in nodes:
                for value in (best[node] * factor, best[node] / factor, 0.0, 1.0 / len(nodes)):
                    moved = best.copy()
                    moved[node] = value
                    if moved.sum() > 0:
                        moves.append(moved / moved.sum())
            totals = _totals(model, np.array(moves), vcpus, access, costs)
            if totals.max() <= best_total * (1 + 2e-4):
                break
            best, best_total = moves[int(totals.argmax())], float(totals.max())
    return best


def best_weights(
    host: Host | Machine,
    access: Access | Mapping[str, object] | str | None = None,
    *,
    nodes: Sequence[int] | None = None,
    vcpus: Mapping[int, float] | None = None,
    costs: Mapping[str, float] | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Interleave weights that give the most bandwidth, beside the kernel's automatic ones, plain interleave and local.

    Parameters
    ----------
    host : the host, or a :class:`Machine` with measured figures
    access : pattern of the guest; streaming if left out
    nodes : nodes the policy may use; all if left out
    vcpus : node id -> vCPUs; one for every CPU of the host if left out
    costs : parameter values instead of the registry's
    samples, seed : draws over the ranges of the parameters for the weights found (sample 0: their values), of a
        :class:`Machine` over those of given figures; with more than 1, bandwidth and latency get a ``sample`` dimension, with 1
        they are the values, and if left out they have ends (``bandwidth_low``)

    Returns a Dataset over ``policy`` (optimum, automatic, interleave, local) and ``node``: ``weight`` (0: not in the
    nodemask), ``bandwidth`` in MB/s of all vCPUs together and ``latency`` in ns, averaged over vCPUs. The optimum is
    found by search; its weights are the smallest whole numbers within 0.5 % of it. For pointer chasing, which waits
    for every access, the least mean latency is sought instead of the most bandwidth.
    """
    access = access_pattern(access)
    draws = cost_table.draws_of(samples)
    cost_table.whole("seed", seed, 0)
    if nodes is not None and not len(nodes):
        raise WorkbenchError("nodes: none; a policy needs a node")
    if nodes is not None and len(set(nodes)) < len(nodes):
        raise WorkbenchError(f"nodes: {list(nodes)!r} names a node twice")
    model = host if isinstance(host, Machine) else machine(host, costs)
    if vcpus is None:
        vcpus = {int(n): float(c) for n, c in zip(model.node_ids, model.cpus, strict=True) if c > 0}
    running(vcpus)
    vcpus = initiators_of(access, vcpus)
    number = running(vcpus)
    allowed = np.zeros(model.nodes, bool)
    allowed[[model.index_of(node) for node in (model.node_ids if nodes is None else nodes)]] = True
    automatic = automatic_weights(host) * allowed
    from_estimates = not isinstance(host, Machine) and not any(a.read_bandwidth for a in host.access or ())
    if from_estimates:
        automatic = automatic_weights(model) * allowed
    local = np.zeros(model.nodes)
    for node, count in vcpus.items():
        near = np.where(allowed, model.latency[model.index_of(node)], np.inf)
        local[int(near.argmin())] += count
    starts = np.array([automatic, allowed, local, np.where(allowed, model.bandwidth, 0.0)], float)
    starts /= starts.sum(axis=1, keepdims=True)
    starts = np.vstack((starts, _separate_shares(model, allowed, vcpus, access, costs)))
    best = _best_shares(model, starts, allowed, vcpus, access, costs)
    candidates = []
    for largest in range(1, 65):
        weight = np.round(best / best.max() * largest)
        candidates.append(np.where((weight == 0) & (best > 0.002), 1.0, weight))
    whole = np.array(candidates)
    totals = _totals(model, whole / whole.sum(axis=1, keepdims=True), vcpus, access, costs)
    good = np.flatnonzero(totals >= totals.max() * 0.995)
    optimum = whole[good[whole[good].sum(axis=1).argmin()]].astype(np.int64)
    optimum //= np.gcd.reduce(optimum[optimum > 0])
    weights = np.array([optimum, automatic, allowed.astype(np.int64), np.ceil(local).astype(np.int64)])
    if draws > 1:
        machines, chosen = sampled(host, draws, seed, costs)
    else:
        machines, chosen = [model], [dict(costs or {})]
    shares = weights / weights.sum(axis=1, keepdims=True)
    bandwidth, latency = np.empty((2, draws, len(weights)))
    for k, (drawn, values) in enumerate(zip(machines, chosen, strict=True)):
        solution = solve(drawn, streams(drawn, shares, vcpus, access, costs=values))
        bandwidth[k] = solution.bandwidth.sum(axis=1)
        latency[k] = solution.latency @ number / number.sum()
    return results.make(
        Weights,
        {"weight": weights, **cost_table.presented({"bandwidth": bandwidth, "latency": latency}, samples)},
        {"policy": ["optimum", "automatic", "interleave", "local"], "node": model.node_ids},
        provenance=results.provenance(
            command="cost.weights.best_weights", host=host, access=access, nodes=nodes, vcpus=vcpus, costs=costs,
            samples=samples, seed=seed,
        ),
        source=model.source,
        attributes={
            "automatic_from": "estimated bandwidth; the host reports none, so its kernel keeps 1"
            if from_estimates
            else model.source,
            "pattern": access.pattern,
        },
    )  # fmt: skip

"""Interleave weights: what the kernel computes from bandwidths, and what gives most bandwidth in the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost.machine import Machine, machine, reported_bandwidth, sampled
from workbench.cost.traffic import (
    access_pattern,
    initiators_of,
    lines_drawn,
    met,
    running,
    solve,
    solve_draws,
    streams,
)
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


class _Model:
    """What shares of the nodes give on one machine; each is solved once, though searches ask for many again."""

    def __init__(
        self, machine: Machine, vcpus: Mapping[int, float], access: Access, costs: Mapping[str, float] | None
    ) -> None:
        self._machine, self._vcpus, self._access, self._costs = machine, vcpus, access, costs
        self._known: dict[bytes, float] = {}

    def totals(self, shares: np.ndarray) -> np.ndarray:
        """What is to be large, for each row of shares: MB/s of all streams; for pointer chasing, 1 / mean latency."""
        keys = [row.tobytes() for row in shares]
        new = {key: at for at, key in enumerate(keys) if key not in self._known}
        if new:
            self._known.update(zip(new, self._solved(shares[list(new.values())]).tolist(), strict=True))
        return np.array([self._known[key] for key in keys])

    def _solved(self, shares: np.ndarray) -> np.ndarray:
        demand = streams(self._machine, shares, self._vcpus, self._access, costs=self._costs)
        solution = solve(self._machine, demand, unsolved="nan")
        if self._access.pattern == "pointer_chasing":
            number = np.array(list(self._vcpus.values()), float)
            return np.asarray(number.sum() / (np.nan_to_num(solution.latency, nan=np.inf) @ number))
        return np.asarray(np.nan_to_num(solution.bandwidth).sum(axis=1))

    def separate_shares(self, targets: np.ndarray) -> np.ndarray:
        """Shares if every node could be used at its own speed: what one stream for each vCPU node and target takes.

        Returns float64 (2, nodes): with all bytes in flight for every target, and divided among them.
        """
        out = []
        for part in (1.0, 1.0 / len(targets)):
            few = {node: number * part for node, number in self._vcpus.items()}
            each = np.eye(self._machine.nodes)[targets]
            flows = streams(self._machine, each, few, self._access, costs=self._costs).side_by_side()
            out.append(solve(self._machine, flows).node_used[0])
        used = np.array(out)
        return used / used.sum(axis=1, keepdims=True)


def _best_shares(model: _Model, starts: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Shares with the greatest total bandwidth found by changing one node's share at a time, from several starts."""
    totals = model.totals(starts)
    best, best_total = starts[int(totals.argmax())], float(totals.max())
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
            totals = model.totals(np.array(moves))
            if totals.max() <= best_total * (1 + 2e-4):
                break
            best, best_total = moves[int(totals.argmax())], float(totals.max())
    return best


def _optimum(
    model: _Model,
    starts: np.ndarray,
    allowed: np.ndarray,
    *,
    found: np.ndarray | None = None,
    search: bool = True,
) -> np.ndarray:
    """The smallest weights within 0.5 % of the best that were found, int64 (nodes,).

    starts : float64 (n, nodes), weights to begin with
    found : weights that are taken if they are as near to the best
    search : whether shares are changed from there, or only the best of what there is to begin with is taken
    """
    starts = starts / starts.sum(axis=1, keepdims=True)
    nodes = np.flatnonzero(allowed)
    starts = np.vstack((starts, model.separate_shares(nodes)))
    best = _best_shares(model, starts, nodes) if search else starts[int(model.totals(starts).argmax())]
    candidates = []
    for largest in range(1, 65):
        weight = np.round(best / best.max() * largest)
        candidates.append(np.where((weight == 0) & (best > 0.002), 1.0, weight))
    whole = np.array(candidates if found is None else [found, *candidates])
    totals = model.totals(whole / whole.sum(axis=1, keepdims=True))
    good = np.flatnonzero(totals >= totals.max() * (1 - NEAR))
    if found is not None and good[0] == 0:
        return found
    optimum = whole[good[whole[good].sum(axis=1).argmin()]].astype(np.int64)
    return np.asarray(optimum // np.gcd.reduce(optimum[optimum > 0]))


SEARCHED_NODES = 16
"""Nodes of a policy up to which every draw's best weights are searched for; of more, draws take the best of the guesses that
a search begins with, as a search takes seconds."""
NEAR = 0.005
"""Weights that give less by so small a part than the best that were found are as good."""


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
    samples, seed : draws over the ranges of the parameters (sample 0: their values), of a :class:`Machine` over those of given
        figures; with more than 1, share, bandwidth and latency get a ``sample`` dimension, with 1 they are the values, and if
        left out they have ends (``bandwidth_low``)

    Returns a Dataset over ``policy`` (optimum, automatic, interleave, local) and ``node``: ``weight`` (0: not in the
    nodemask), ``share`` of the pages, ``bandwidth`` in MB/s of all vCPUs together and ``latency`` in ns, averaged over vCPUs.
    The optimum is found by search; its weights are the smallest whole numbers within 0.5 % of it. For pointer chasing, which
    waits for every access, the least mean latency is sought instead of the most bandwidth.

    Draws have weights of their own: ``share`` of a draw is that of the weights which are best if the machine is as drawn (and of
    those that a kernel would compute from estimated bandwidths); the ends of ``weight`` are its ends times the sum of the
    weights. Where ``weight`` is within 0.5 % of a draw's best, too, it is taken. ``bandwidth`` and ``latency`` of a draw are
    those of ``weight``, which a guest keeps whatever the machine is like. ``wins`` is the part of the draws in which a policy
    with its ``weight`` is within 0.5 % of the best that was found for the draw.
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
    from_estimates = not isinstance(host, Machine) and not any(a.read_bandwidth for a in host.access or ())
    local = np.zeros(model.nodes)
    for node, count in vcpus.items():
        near = np.where(allowed, model.latency[model.index_of(node)], np.inf)
        local[int(near.argmin())] += count

    def of_kernel(drawn: Machine) -> np.ndarray:
        if isinstance(host, Machine) or from_estimates:
            return automatic_weights(drawn) * allowed
        return automatic_weights(host) * allowed

    def table(
        drawn: Machine, values: Mapping[str, float] | None, found: np.ndarray | None = None, search: bool = True
    ) -> np.ndarray:
        """Weights of the four policies on one machine, int64 (policies, nodes)."""
        automatic = of_kernel(drawn)
        starts = np.array([automatic, allowed, local, np.where(allowed, drawn.bandwidth, 0.0)], float)
        if found is not None:
            starts = np.vstack((starts, found))
        optimum = _optimum(_Model(drawn, vcpus, access, values), starts, allowed, found=found, search=search)
        return np.array([optimum, automatic, allowed.astype(np.int64), np.ceil(local).astype(np.int64)])

    weights = table(model, costs)
    if draws > 1:
        machines, chosen = sampled(host, draws, seed, costs)
    else:
        machines, chosen = model.alone, [dict(costs or {})]
    # Draws that look alike from the nodes of the policy have one optimum.
    anywhere = streams(machines[0], allowed / allowed.sum(), vcpus, access, costs=chosen[0])
    lines = lines_drawn(machines, access.pattern, chosen)
    alike = met(machines, anywhere.drawn(lines))
    best, tables = {alike[0]: weights[0]}, [weights]
    search = int(allowed.sum()) <= SEARCHED_NODES
    for one, values, key in itertools.islice(zip(machines, chosen, alike, strict=True), 1, None):
        if key in best:
            tables.append(np.array([best[key], of_kernel(one), *weights[2:]]))
        else:
            tables.append(table(one, values, weights[0], search))
            best[key] = tables[-1][0]
    share = np.array([each / each.sum(axis=1, keepdims=True) for each in tables])
    rows = np.concatenate((np.broadcast_to(share[0], share.shape), share[:, :1]), axis=1)
    asked = streams(machines[0], rows[0], vcpus, access, costs=chosen[0])
    shares = np.broadcast_to(rows[:, :, None], (draws, *asked.shares.shape))
    solution = solve_draws(machines, asked.drawn(lines, shares=shares))
    bandwidth = solution.bandwidth.sum(axis=1).reshape(draws, -1)  # of the four, and of a draw's own optimum
    latency = (solution.latency @ number / number.sum()).reshape(draws, -1)
    every = {"share": share, "bandwidth": bandwidth[:, :-1], "latency": latency[:, :-1]}
    found = cost_table.presented(every, samples)
    if samples is None:
        for end in ("low", "high"):
            found[f"weight_{end}"] = found[f"share_{end}"] * weights.sum(axis=1, keepdims=True)
    if draws > 1:
        value = (1.0 / latency if access.pattern == "pointer_chasing" else bandwidth)[1:]
        found["wins"] = (value >= value.max(axis=1, keepdims=True) * (1 - NEAR)).mean(axis=0)[:-1]
    return results.make(
        Weights,
        {"weight": weights, **found},
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
            "draws": draws - 1,
        },
    )  # fmt: skip


def sentence(found: xr.Dataset) -> str:
    """:func:`best_weights` in words: which policy wins how often, and what each node gets of the pages.

    The dataset has draws, or ends that were taken from some.
    """
    if "wins" not in found:
        raise WorkbenchError("sentence: needs draws; call best_weights without samples or with more than 1")
    wins = found["wins"].values
    order = np.argsort(-wins, kind="stable")
    names = found["policy"].values
    winning = [(names[k], f"{100 * wins[k]:.0f} %") for k in order if wins[k] > 0]
    text = "; ".join(f"{name} {'in' if number else 'wins in'} {part}" for number, (name, part) in enumerate(winning))
    share = found["share"].sel(policy="optimum")
    if "sample" in share.dims:
        low, high = cost_table.ends(share.transpose("sample", "node").values)
        share = share.isel(sample=0)
    else:
        low, high = (found[f"share_{end}"].sel(policy="optimum").values for end in ("low", "high"))
    parts = [
        f"node {node} {100 * value:.0f} % [{100 * a:.0f}, {100 * b:.0f}]"
        for node, value, a, b in zip(found["node"].values, share.values, low, high, strict=True)
        if b > 0
    ]
    return f"{text or 'none wins in any'} of {found.attrs['draws']} draws. The best weights give {', '.join(parts)} of the pages"

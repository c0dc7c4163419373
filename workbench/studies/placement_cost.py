"""One guest under every policy: simulate each placement, then ask what its vCPUs get from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost import traffic, translation
from workbench.cost import weights as cost_weights
from workbench.cost.machine import sampled
from workbench.design import FILEMAP, HUGETLB
from workbench.errors import WorkbenchError
from workbench.units import PAGE_ORDERS, PAGE_SIZE, parse_bytes
from workbench.variables import PolicyCosts, Verdict

if TYPE_CHECKING:
    from workbench.scenario import Access
    from workbench.topology.host import Host


@dataclass(frozen=True)
class Choice:
    """One way to place a guest: who makes its pages present, and the policy set before.

    mode : MPOL_* name, or "" for none
    nodes : "all", "vcpus" (nodes that run vCPUs), "first" (the first vCPU's node), or "parts" (each vCPU node's part of
        the guest on that node); of a node without memory, which mbind refuses, the nearest that has some
    prefault : the VMM makes all pages present by fallocate, from the first vCPU's node; otherwise vCPUs fault them in
    weights : "ones", "automatic" or "optimum", for weighted_interleave
    """

    mode: str = ""
    nodes: str = "all"
    prefault: bool = True
    weights: str = "ones"


POLICIES: dict[str, Choice] = {
    "none, prefault": Choice(),
    "none, first touch": Choice(prefault=False),
    "local": Choice("local"),
    "preferred": Choice("preferred", "first"),
    "preferred many": Choice("preferred_many", "vcpus"),
    "bind": Choice("bind", "vcpus"),
    "interleave": Choice("interleave", "all"),
    "interleave vCPU nodes": Choice("interleave", "vcpus"),
    "weighted, automatic": Choice("weighted_interleave", "all", weights="automatic"),
    "weighted, optimum": Choice("weighted_interleave", "all", weights="optimum"),
    "bind by part": Choice("bind", "parts"),
}
"""Policies that :func:`policy_costs` compares. Today's VMMs prefault; without any policy the pages then lie where the
VMM's thread ran. "bind by part" is what mbind on guest_memfd makes possible: a virtual node's memory on its own node."""

SEED_CLAIM = ("none, prefault", "bind by part")
"""What the guest_memfd series compares: a policy that has no effect, and NUMA-aware placement."""


@dataclass(frozen=True)
class _Guest:
    memory: int
    vcpus: dict[int, int]
    page_size: str
    confidential: str
    extra: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[int, tuple[int, int]]:
        """Offset and length in bytes of each vCPU node's part, in proportion to its vCPUs."""
        unit = PAGE_SIZE << PAGE_ORDERS[self.page_size]
        total, done, out, begin = sum(self.vcpus.values()), 0, {}, 0
        for node, number in self.vcpus.items():
            done += number
            end = self.memory * done // total // unit * unit
            out[node] = (begin, end - begin)
            begin = end
        return out


def _memory_node(host: Host, node: int) -> int:
    """The node itself where it has memory, otherwise the nearest that has some."""
    ids = host.node_ids.tolist()
    row = host.distance_matrix[ids.index(node)]
    return min(
        (int(row[k]) if each.id != node else -1, each.id) for k, each in enumerate(host.nodes) if each.memory_bytes
    )[1]


def _node_text(nodes: Sequence[int]) -> str:
    return ",".join(map(str, nodes))


def scenario_of(
    host: Host, guest: _Guest, choice: Choice, access: Access, costs: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The scenario, as a mapping, that places the guest by one choice."""
    machine = traffic.machine(host, costs)
    memory_of = {node: _memory_node(host, node) for node in guest.vcpus}
    vcpu_nodes = list(dict.fromkeys(memory_of.values()))
    operations: list[dict[str, Any]] = [{"op": "create"}]
    nodes = {
        "all": [int(n) for n in machine.node_ids],
        "vcpus": vcpu_nodes,
        "first": vcpu_nodes[:1],
    }
    weights = None
    if choice.mode == "weighted_interleave":
        if choice.weights == "optimum":
            best = cost_weights.best_weights(host, access, vcpus=guest.vcpus, costs=costs, samples=1)["weight"].sel(
                policy="optimum"
            )
            weights = {int(n): int(w) for n, w in zip(best["node"].values, best.values, strict=True) if w > 0}
        else:
            numbers = cost_weights.automatic_weights(host)
            if (numbers == 1).all():
                numbers = cost_weights.automatic_weights(machine)  # what the kernel would compute, had firmware told it
            weights = {int(n): int(w) for n, w in zip(machine.node_ids, numbers, strict=True)}
        nodes["all"] = sorted(weights)
        operations.append({"op": "set_weights", "weights": weights})
    if choice.nodes == "parts":
        for node, (offset, length) in guest.parts().items():
            if length:
                operations.append(
                    {
                        "op": "mbind",
                        "mode": choice.mode,
                        "nodes": str(memory_of[node]),
                        "offset": offset,
                        "length": length,
                    }
                )
    elif choice.mode:
        chosen = "" if choice.mode == "local" else _node_text(nodes[choice.nodes])
        operations.append({"op": "mbind", "mode": choice.mode, "nodes": chosen})
    operations.append({"op": "fallocate"} if choice.prefault else {"op": "first_touch"})
    vcpus = [{"node": node} for node, number in guest.vcpus.items() for _ in range(number)]
    return {
        "name": f"cost of placement on {host.name}", "host": host, "output": "runs", "operations": operations,
        "guest": {"memory": guest.memory, "page_size": guest.page_size, "vm_type": guest.confidential,
                  "vcpus": vcpus, "design": (FILEMAP if guest.page_size in FILEMAP.page_sizes else HUGETLB).name},
    }  # fmt: skip


def default_vcpus(host: Host, vcpus: int = 32, nodes: int = 2) -> dict[int, int]:
    """``vcpus`` spread over the first ``nodes`` nodes that have CPUs."""
    with_cpus = [node.id for node in host.nodes if node.cpus][:nodes] or [host.nodes[0].id]
    share, rest = divmod(vcpus, len(with_cpus))
    return {node: share + (k < rest) for k, node in enumerate(with_cpus) if share + (k < rest)}


def policy_costs(
    host: Host,
    *,
    memory: int | str = "16 GiB",
    vcpus: Mapping[int, int] | None = None,
    policies: Mapping[str, Choice] | None = None,
    access: Access | Mapping[str, object] | str | None = None,
    partitioned: bool = False,
    samples: int | None = None,
    seed: int = 0,
    page_size: str = "4 KiB",
    confidential: str = "none",
    extra_latency: float = 0.0,
) -> xr.Dataset:
    """Bandwidth and latency of one guest on one host, placed by every policy.

    Parameters
    ----------
    host : the host
    memory : of the guest
    vcpus : node id -> vCPUs; 32 on the first two nodes with CPUs if left out
    policies : name -> :class:`Choice`; :data:`POLICIES` if left out
    access : pattern of the vCPUs; streaming if left out
    partitioned : each vCPU node touches its own part of the guest only; otherwise all touch all of it
    samples, seed : draws over the ranges of the parameters, the same for every policy; with 1 there are values alone, and if
        left out they have ends (``bandwidth_low``)
    page_size, confidential : of the guest
    extra_latency : ns per access besides memory

    Returns a Dataset over ``policy`` and, with more than one, ``sample``: ``bandwidth`` (MB/s of all vCPUs),
    ``latency`` (ns, averaged over vCPUs), ``local_share`` (counted), ``node_share`` (policy, node) and ``node_load``; with
    samples also ``draw`` (parameter, sample), which :func:`verdict` reads. Patterns that jump walk page tables, whose
    references load the nodes where the tables lie (:mod:`workbench.cost.translation`).
    """
    from workbench.scenario import Scenario
    from workbench.simulation import simulate

    access = traffic.access_pattern(access)
    draws = cost_table.draws_of(samples)
    extra_latency = cost_table.number("extra_latency", extra_latency, "ns", zero=True)
    if vcpus is not None:
        traffic.running(vcpus)
        for node, count in vcpus.items():
            cost_table.whole(f"vcpus of node {node!r}", count)
    number = dict(vcpus) if vcpus is not None else default_vcpus(host)
    unknown = [node for node in number if node not in {n.id for n in host.nodes}]
    if unknown:
        raise WorkbenchError(f"vcpus: node {unknown[0]} is not a node of {host.name}")
    guest = _Guest(parse_bytes(memory, "memory"), number, page_size, confidential)
    machines, chosen = sampled(host, draws, seed) if draws > 1 else (traffic.machine(host).alone, [{}])
    if draws > 1 and access.pattern != "streaming":  # which walks no page table
        walked_with = cost_table.sample(translation.TABLE_PARAMETERS, draws, seed + 1)
        for k, values in enumerate(chosen):
            values |= {name: float(drawn[k]) for name, drawn in walked_with.items()}
    names = list(POLICIES if policies is None else policies)
    for name, chosen_policy in (policies or {}).items():
        if not isinstance(chosen_policy, Choice):
            raise WorkbenchError(f"policies: {name!r} is {repr(chosen_policy)[:60]}, which is no Choice")
    if not names:
        raise WorkbenchError("policies: none; one or more are needed")
    total = np.zeros((draws, len(names)))
    latency = np.zeros((draws, len(names)))
    local = np.zeros(len(names))
    share = np.zeros((len(names), len(host.nodes)))
    load = np.zeros((draws, len(names), len(host.nodes)))
    weight = np.array(list(number.values()), float)
    for row, name in enumerate(names):
        choice = (POLICIES if policies is None else policies)[name]
        dataset = simulate(Scenario.from_mapping(scenario_of(host, guest, choice, access)))
        refused = np.flatnonzero(dataset["event_errno"].values)
        if len(refused):
            op = str(dataset["event_op"].values[refused[0]])
            raise WorkbenchError(f"policy {name!r}: {op} is refused, errno {int(dataset['event_errno'][refused[0]])}")
        ranges = guest.parts() if partitioned else dict.fromkeys(number, (0, guest.memory))
        own_part = {
            node: access.model_copy(update={"offset": begin, "length": length})
            for node, (begin, length) in ranges.items()
        }
        parts = {node: traffic.memory_shares(dataset, part)[0] for node, part in own_part.items()}
        touched = np.array([parts[node] for node in number])
        share[row] = weight @ touched / weight.sum()
        own = [host.index_of(node) for node in number]
        local[row] = weight @ touched[np.arange(len(own)), own] / weight.sum()
        whole = traffic.memory_shares(
            dataset, access.model_copy(update={"pattern": "uniform", "offset": 0, "length": None})
        )
        second_stage = _second_stage(dataset, own, weight)
        walked: dict[int, list[tuple[np.ndarray, float, float]]] = {}  # by length of the part
        for node in number:
            length = ranges[node][1]
            if length not in walked:
                walked[length] = _walks(dataset, own_part[node], guest, whole[0], second_stage, chosen)
        for k, (model, drawn) in enumerate(zip(machines, chosen, strict=True)):
            streams = []
            for node, n in number.items():
                walks, cached, beside = walked[ranges[node][1]][k]
                streams.append(
                    traffic.streams(
                        model, parts[node], {node: float(n)}, access, costs=drawn, walks=walks, beside=beside,
                        extra_latency=extra_latency + cached,
                    )
                )  # fmt: skip
            solution = traffic.solve(model, traffic.together(streams))
            total[k, row] = solution.bandwidth.sum()
            latency[k, row] = solution.latency[0] @ weight / weight.sum()
            load[k, row] = solution.node_load[0]
    every = {"bandwidth": total, "latency": latency, "node_load": load}
    made = {"local_share": local, "node_share": share, **cost_table.presented(every, samples)}
    coordinates: dict[str, object] = {"policy": names, "node": host.node_ids}
    if samples is not None and samples > 1:
        coordinates["parameter"] = list(chosen[0])
        made["draw"] = np.array([list(draw.values()) for draw in chosen])
    return results.make(
        PolicyCosts,
        made,
        coordinates,
        provenance=results.provenance(
            command="studies.placement_cost.policy_costs", host=host, memory=memory, vcpus=number,
            policies=POLICIES if policies is None else policies, access=access, partitioned=partitioned,
            samples=samples, seed=seed, page_size=page_size, confidential=confidential, extra_latency=extra_latency,
        ),
        source=machines[0].source,
        attributes={
            "host": host.name,
            "pattern": access.pattern,
            "sharing": "own parts" if partitioned else "all of it",
            "estimated": int(machines[0].estimated),
        },
    )  # fmt: skip


def _walks(
    dataset: xr.Dataset,
    part: Access,
    guest: _Guest,
    tables: np.ndarray,
    second_stage: np.ndarray,
    chosen: Sequence[Mapping[str, float]],
) -> list[tuple[np.ndarray, float, float]]:
    """References to page tables in memory by node, float64 (nodes,), ns of the others, and walks beside, of an access to a
    part of the guest under each choice of parameters; see :mod:`workbench.cost.translation`."""
    if part.pattern == "streaming" or not part.length:
        return [(np.zeros(len(tables)), 0.0, 0.0)] * len(chosen)
    hot = part.pattern == "zipf"
    exponent = traffic.ZIPF_EXPONENT if hot else 0.0
    costs = translation.walks_of({guest.page_size: part.length}, guest.page_size, guest.confidential, exponent, chosen)
    caches = np.array([cost_table.value("cache_bytes", drawn) for drawn in chosen])
    reached = traffic.reach(dataset, part, float(caches[0])).of(caches)[1].tolist()
    found = []
    for cost, reaches in zip(costs, reached, strict=True):
        walks, cached = translation.table_walks(cost, tables, second_stage, reached=reaches if hot else 1.0)
        found.append((walks, cached, translation.walks_beside(cost, reaches, hot=hot)))
    return found


def _second_stage(dataset: xr.Dataset, own: list[int], weight: np.ndarray) -> np.ndarray:
    """float64 (nodes,): where the second-stage tables of a run lie; on the nodes of the vCPUs if they were not counted."""
    if "metadata_pages" in dataset and dataset.sizes["event"]:
        tables = dataset["metadata_pages"].isel(event=-1).sel(kind="second_stage").values.astype(float)
        if tables.any():
            share: np.ndarray = tables / tables.sum()
            return share
    by_vcpu = np.zeros(dataset.sizes["node"])
    by_vcpu[own] = weight / weight.sum()
    return by_vcpu


def _value(dataset: xr.Dataset) -> np.ndarray:
    """What is to be large, float64 (policies, draws): bandwidth, or 1 / latency for pointer chasing. Sample 0, which has
    the parameters' own values, is no draw and counts only where there is nothing else."""
    if dataset.attrs["pattern"] == "pointer_chasing":
        value = 1.0 / dataset["latency"]
    else:
        value = dataset["bandwidth"]
    if "sample" not in value.dims:
        return value.values[:, None]
    drawn = value.transpose("policy", "sample").values
    return drawn[:, 1:] if drawn.shape[1] > 1 else drawn


def winners(dataset: xr.Dataset, within: float = 0.02, least: float = 0.5) -> list[str]:
    """Policies within ``within`` of the best in at least ``least`` of the draws; the one most often, if none is."""
    value = _value(dataset)
    close = (value >= value.max(axis=0) * (1 - within)).mean(axis=1)
    chosen = close >= min(least, close.max())
    return [str(name) for name in dataset["policy"].values[chosen]]


def verdict(dataset: xr.Dataset, within: float = 0.02) -> xr.Dataset:
    """How often each policy wins over the draws, and which parameter decides.

    Parameters
    ----------
    dataset : of :func:`policy_costs` with ``samples`` above 1
    within : policies so close to the best count as ``close``

    Returns a Dataset over ``policy``, most wins first: ``wins`` (alone or with policies that cost the same) and ``close``
    (parts of the draws), ``alike`` (the first of the policies that cost the same in every draw), ``median`` of the ratio
    to the best policy that is not alike, ``decides`` (the parameter whose rank correlates most with that ratio) and
    ``correlation`` (Spearman's, -1 to 1; positive: the policy gains as the parameter grows).
    """
    value = _value(dataset)
    if value.shape[1] < 2:
        raise WorkbenchError("verdict: needs draws; call policy_costs with samples above 1")
    wins = (value >= value.max(axis=0) * (1 - SAME)).mean(axis=1)
    same = (np.abs(value[:, None] / value[None] - 1.0) <= SAME).all(axis=2)
    close = (value >= value.max(axis=0) * (1 - within)).mean(axis=1)
    others = np.array([value[~alike].max(axis=0) if not alike.all() else value[0] for alike in same])
    ratio = value / others
    draws = dataset["draw"].transpose("parameter", "sample").values[:, 1:]
    correlation = np.array([[_rank_correlation(row, parameter) for parameter in draws] for row in ratio])
    decides = np.abs(correlation).argmax(axis=1)
    order = np.lexsort((-close, -wins))
    first = same.argmax(axis=1)  # of policies that are alike, the first one stands for all
    return results.make(
        Verdict,
        {
            "wins": wins[order],
            "close": close[order],
            "median": np.median(ratio, axis=1)[order],
            "decides": dataset["parameter"].values.astype(str)[decides][order],
            "correlation": correlation[np.arange(len(decides)), decides][order],
            "alike": dataset["policy"].values.astype(str)[first][order],
        },
        {"policy": dataset["policy"].values[order]},
        provenance=results.provenance(
            command="studies.placement_cost.verdict", dataset=dataset, within=within, pattern=dataset.attrs["pattern"]
        ),
        attributes={**{k: v for k, v in dataset.attrs.items() if k != "provenance"}, "draws": value.shape[1]},
    )


def sentence(found: xr.Dataset) -> str:
    """A verdict in words: who wins how often, and what decides."""
    first = found.isel(policy=0)
    groups: dict[str, list[str]] = {}
    for name, alike in zip(found["policy"].values, found["alike"].values, strict=True):
        groups.setdefault(str(alike), []).append(str(name))
    parts: list[str] = []
    for names in groups.values():
        wins = float(found["wins"].sel(policy=names[0]))
        label = " = ".join(f"“{name}”" for name in names)  # names have commas of their own
        if not parts:
            parts.append(f"{label} wins in {100 * wins:.0f} % of {found.attrs['draws']} draws")
        elif wins >= 0.05:
            parts.append(f"{label} in {100 * wins:.0f} %")
    text = "; ".join(parts)
    if abs(float(first["correlation"])) >= DECIDES:
        text += f"; {first['decides'].item()} decides (rank correlation {float(first['correlation']):+.2f})"
    else:
        text += "; no single parameter decides"
    return text


SAME = 1e-4
"""Relative difference below which two policies cost the same."""
DECIDES = 0.3
"""Least rank correlation at which one parameter is said to decide."""


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation; ties keep the mean of their ranks, and what does not vary correlates with nothing."""
    if np.ptp(one) <= 1e-12 * np.abs(one).max() or np.ptp(other) <= 0:
        return 0.0
    ranks = []
    for values in (one, other):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2.0)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])

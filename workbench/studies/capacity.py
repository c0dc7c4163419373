"""How large a guest can be: under each policy, until a call is refused or the OOM killer comes, and what is lost to what.

For each policy a guest as large as all memory is created and populated by a vCPU on its first node, with everything that
the kernel allocates beside it (``metadata: taken``); the page that finds no memory says how large it could have been. A
guest of that size is then run for what was left where. Nothing is assumed beyond the engine's rules; what the host has
free is its own, or all that a boot leaves (:mod:`workbench.topology.zones`).

On the three hosts of ``datasets/recordings/private`` with ``fill`` (in steps of 256 pages, with and without kexec handover) the
engine's answer is within 0.2 % of what guest_memfd really took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import garbage, profiles, results
from workbench import scenario as sc
from workbench.bitmap_lists import format_list
from workbench.design import DESIGNS
from workbench.engine.kernel_pages import KINDS
from workbench.errors import WorkbenchError
from workbench.simulation import run
from workbench.topology.host import Host
from workbench.units import PAGE_ORDERS, PAGE_SIZE
from workbench.variables import Capacity

if TYPE_CHECKING:
    from workbench.answer import Answer

POLICIES = ("default", "bind", "preferred", "preferred_many", "interleave", "weighted_interleave")
_KINDS = {
    "page tables": ("page_tables", "second_stage", "second_stage_ready"),
    "page cache": ("page_cache",),
    "attributes": ("attributes",),
    "struct pages and states": ("vmemmap", "pamt", "state_tree", "light_map"),
}
"""Which kinds of metadata go by which name."""
LOSSES = ("other nodes", "watermarks and reserves", "CMA", *_KINDS, "rest")
"""Where the free memory of a host went that the guest did not get."""
_BOUND = "bind"
BY_THREADS = (
    "policies here are those of the thread that touches private memory; mbind and the policies of a memory backend do not "
    f"reach it where the VMM cannot map it (qemu-11); {profiles.WAY_TO_BIND_PRIVATE_MEMORY}"
)
"""What has to be said with the largest confidential guest under each policy."""
_LAST_PAGES = 64
"""Pages that the engine places before the nodes that hold them, where memory ends."""


def capacity(
    host: Host,
    *,
    page_size: str = "4 KiB",
    policies: Sequence[str] | None = None,
    kho: bool = False,
    confidential: bool = False,
    by: str = "guest",
    design: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The largest guest under each policy.

    Parameters
    ----------
    host : the host, with what it has free
    page_size : of the guest's memory; larger ones than 4 KiB come from pools of hugetlb
    policies : names of :data:`POLICIES`; ``bind`` stands for one row a node and one for all nodes with memory
    kho : scratch areas for kexec handover are set aside
    confidential : private memory of an SNP guest, with its memory attributes
    by : who populates it: ``guest`` (second-stage tables) or ``host`` (page tables)
    design : of :data:`workbench.design.DESIGNS`; filemap for 4 KiB, hugetlb for larger pages if left out

    Returns
    -------
    Dataset of :class:`workbench.variables.Capacity`, bytes. Raises WorkbenchError for what is not known.
    """
    if page_size not in PAGE_ORDERS:
        raise WorkbenchError(f"page size: {page_size!r}; one of {', '.join(PAGE_ORDERS)}")
    if policies is not None and len(set(policies)) < len(policies):
        raise WorkbenchError(f"policies: {', '.join(policies)}; each of them once")
    for name in policies or ():
        if name not in POLICIES:
            raise WorkbenchError(f"policy: {name!r}; one of {', '.join(POLICIES)}")
    if confidential and by == "host":
        raise WorkbenchError("confidential: the host cannot populate private memory")
    if design is not None and design not in DESIGNS:
        raise WorkbenchError(f"design: {design!r}; one of {', '.join(DESIGNS)}")
    chosen = design or ("filemap" if page_size == "4 KiB" else "hugetlb")
    rows = _rows(host, policies or POLICIES)
    ids = list(host.node_ids)
    shape = (len(rows), len(ids))
    guest, free = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    lost = np.zeros((len(rows), len(LOSSES)), np.int64)
    ends = []
    # Runs of one study: garbage is looked for once, when all are done.
    with garbage.seldom():
        for row, (_, mode, nodes) in enumerate(rows):
            answer, end, before = _largest(host, page_size, mode, nodes, kho, confidential, by, chosen)
            ends.append(end)
            free[row] = before
            if answer is not None:
                guest[row] = _by_node(answer["pages_per_node"][:1].sum(axis=0), page_size)
                lost[row] = _losses(answer, nodes, guest[row])
            else:
                lost[row, -1] = before.sum()
            if progress is not None:
                progress(row + 1, len(rows))
    return results.make(
        Capacity,
        {
            "capacity": guest.sum(axis=1),
            "capacity_per_node": guest,
            "free_at_start": free,
            "lost": lost,
            "ends_with": np.array(ends, dtype=str),
        },
        {
            "policy": np.array([name for name, _, _ in rows], dtype=str),
            "node": np.array(ids, np.int64),
            "loss": np.array(LOSSES, dtype=str),
        },
        provenance=results.provenance(
            command="studies.capacity.capacity", host=host.name, page_size=page_size, kho=kho, confidential=confidential,
            by=by, design=chosen,
        ),
        attributes={"scenario": host.name, "page_size": page_size, "kho": str(kho), "confidential": str(confidential),
                    "design": chosen}
        | ({"warnings": BY_THREADS} if confidential and any(mode != "default" for _, mode, _ in rows) else {}),
    )  # fmt: skip


def _rows(host: Host, policies: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, mode and nodes of each row."""
    with_memory = [node.id for node in host.nodes if node.memory_bytes]
    every = ",".join(map(str, with_memory))
    rows: list[tuple[str, str, str]] = []
    for mode in policies:
        if mode == _BOUND:
            rows += [(f"bind {node}", mode, str(node)) for node in with_memory]
            if len(with_memory) > 1:
                rows.append((f"bind {format_list(with_memory)}", mode, every))
        elif mode == "default":
            rows.append((mode, mode, ""))
        elif mode == "preferred":
            rows.append((f"preferred {with_memory[0]}", mode, str(with_memory[0])))
        else:
            rows.append((f"{mode} {format_list(with_memory)}", mode, every))
    return rows


def kind_of(policy: str) -> str:
    """The kind of policy that a row's name stands for: its mode, of ``bind`` also whether to one node or to several."""
    mode, _, nodes = policy.partition(" ")
    if mode != _BOUND:
        return mode
    return "bind to all" if nodes and not nodes.isdecimal() else "bind to one"


def _scenario(
    host: Host, page_size: str, mode: str, nodes: str, kho: bool, confidential: bool, by: str, design: str, size: int
) -> sc.Scenario:
    with_cpus = [node.id for node in host.nodes if node.cpus] or [host.nodes[0].id]
    wanted = [int(node) for node in nodes.split(",") if node]
    near = next((node for node in wanted if node in with_cpus), with_cpus[0])
    flags = [] if confidential else ["mmap"] if page_size != "4 KiB" else ["mmap", "init_shared"]
    operations: list[dict[str, Any]] = [{"op": "create", "file": "guest", "size": size, "flags": flags}]
    tasks: list[dict[str, Any]] = [{"name": "vmm", "node": near}]
    if mode != "default":
        # Private memory without a mapping follows the policy of the thread that touches it.
        bound = {"mode": mode, "nodes": nodes}
        operations.append({"op": "set_mempolicy", "task": "vmm", **bound} if confidential
                          else {"op": "mbind", "file": "guest", **bound})  # fmt: skip
    if confidential and design == "filemap":  # the others convert in place: memory of the file starts private
        operations += [{"op": "memslot", "file": "guest"}, {"op": "set_memory_attributes", "file": "guest"}]
    operations.append({"op": "fault", "file": "guest", "by": by, "task": "vmm"})
    guest: dict[str, Any] = {"memory": size, "page_size": page_size, "design": design, "vcpus": [{"node": near}]}
    if confidential:
        guest["vm_type"] = "snp"
    return sc.Scenario.from_mapping(
        {"name": "capacity", "host": host, "boot": {"kho": kho}, "guest": guest, "tasks": tasks, "output": "counts",
         "operations": operations, "metadata": "taken", "strict": False}
    )  # fmt: skip


def _of_size(scenario: sc.Scenario, size: int) -> sc.Scenario:
    """The same guest with so many bytes; nothing else is read or checked anew."""
    create, *others = scenario.operations
    return scenario.model_copy(
        update={
            "guest": scenario.guest.model_copy(update={"memory": size}),
            "operations": (create.model_copy(update={"size": size}), *others),
        }
    )


def _largest(
    host: Host, page_size: str, mode: str, nodes: str, kho: bool, confidential: bool, by: str, design: str
) -> tuple[Answer | None, str, np.ndarray]:
    """The run of the largest guest, how a larger one ends, and free bytes of each node before."""
    unit = PAGE_SIZE << PAGE_ORDERS[page_size]
    every = max(1, sum(node.memory_bytes for node in host.nodes) // unit)
    below, above, units, guess = 0, every + 1, every, -1
    largest: Answer | None = None
    ending = "all of it fits"
    before = np.zeros(len(host.nodes), np.int64)
    scenario = _scenario(host, page_size, mode, nodes, kho, confidential, by, design, every * unit)
    while units > below:
        answer = run(_of_size(scenario, units * unit))
        log = answer.log
        if above > every:
            zone_bytes = (log.free[0] + log.placed[0]) * answer.system.zone_page_size
            before = np.bincount(answer.system.zone_node, zone_bytes, len(before)).astype(np.int64)
        errors = [result.errno for result in log.results]
        if not any(errors):
            below, largest = units, answer
            if units == guess and not confidential:  # what the larger one placed is all that there is
                break
        else:
            if units >= above - 1 or above > every:
                killed = any(result.detail.get("killed") for result in log.results)
                refused = "ENOMEM when it is created" if errors[0] else "ENOMEM when it is populated"
                ending = "OOM killer" if killed else refused
            above = units
        placed = int(log.placed[-1].sum()) if any(errors) and not errors[0] else 0
        # All of it is there and what the kernel needs beside it is not: that says nothing of the largest.
        if placed == units:
            placed = 0
        if not answer.system.order:
            placed -= _LAST_PAGES  # the last pages were placed, and their nodes found no memory
        guess = placed if below < placed < above else -1
        if above - below <= max(1, every >> 12) and (confidential or guess < 0):
            break
        units = guess if guess > 0 else (below + above) // 2
    return largest, ending, before


def _by_node(folios: np.ndarray, page_size: str) -> np.ndarray:
    return folios.astype(np.int64) * (PAGE_SIZE << PAGE_ORDERS[page_size])


def _losses(answer: Answer, nodes: str, guest: np.ndarray) -> np.ndarray:
    """Bytes of free memory that the guest of this run left or that went beside it, by :data:`LOSSES`."""
    system = answer.system
    out = dict.fromkeys(LOSSES, 0)
    wanted = [system.index_of_node[int(node)] for node in nodes.split(",") if node]
    unit = system.zone_page_size
    left = system.free * unit
    named = np.isin(system.zone_node, wanted) if wanted else np.ones(len(left), bool)
    marks = (system.watermarks[0] + system.reserve) * unit
    cma = np.minimum(system.cma * unit, left)
    kept = np.minimum(marks, left - cma)
    out["other nodes"] = int(left[~named].sum())
    out["CMA"] = int(cma[named].sum())
    out["watermarks and reserves"] = int(kept[named].sum())
    metadata = system.metadata
    if metadata is not None and metadata.zones is None:
        held = dict(zip(KINDS, (metadata.held.sum(axis=1) * PAGE_SIZE).tolist(), strict=True))
        for name, kinds in _KINDS.items():
            out[name] = sum(held[kind] for kind in kinds)
    out["rest"] = int(left[named].sum()) - out["CMA"] - out["watermarks and reserves"]
    return np.array([out[name] for name in LOSSES], np.int64)


def table(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The rows as plain values: policy, capacity and its parts by node, what was lost to what, and how a larger one ends."""
    nodes = [str(int(node)) for node in dataset["node"].values]
    return [
        {
            "policy": str(policy),
            "capacity": int(one["capacity"]),
            "per_node": dict(zip(nodes, one["capacity_per_node"].values.tolist(), strict=True)),
            "free_at_start": dict(zip(nodes, one["free_at_start"].values.tolist(), strict=True)),
            "lost": dict(zip(map(str, dataset["loss"].values), one["lost"].values.tolist(), strict=True)),
            "ends_with": str(one["ends_with"].values),
        }
        for policy in dataset["policy"].values
        for one in [dataset.sel(policy=policy)]
    ]

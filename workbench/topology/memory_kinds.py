"""What kind of memory a node without CPUs has, from what Linux exposes of it.

Linux: ``drivers/dax/bus.c`` (``target_node``, and what a dax device hangs off: ``drivers/dax/hmem``, ``cxl``,
``drivers/nvdimm``), ``drivers/cxl/core/region.c``, ``mm/memory-tiers.c`` (``memory_tierN/nodelist``; DRAM is tier 4, a
higher number is slower), HMAT figures of access classes; the NVIDIA driver (``/proc/driver/nvidia/gpus/*/numa_status``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.bitmap_lists import is_whole, parse_list
from workbench.errors import WorkbenchError
from workbench.topology.trees import Tree

FASTER = 1.9
"""HBM has at least so many times the bandwidth of the DRAM beside it; what is between is DRAM of another channel count."""


def kinds(tree: Tree, nodes: list[dict[str, Any]], access: list[dict[str, Any]]) -> dict[int, tuple[str, bool]]:
    """Kind by node id and whether it is sure, for nodes with memory and no CPUs that Linux says something of."""
    without = {node["id"] for node in nodes if node["memory_bytes"] and not node["cpus"]}
    if not without:
        return {}
    with_cpus = {node["id"] for node in nodes if node["cpus"] and node["memory_bytes"]}
    gpus, dax, tiers = _gpus(tree), _dax(tree), _tiers(tree)
    out: dict[int, tuple[str, bool]] = {}
    for node in without:
        pace = _by_figures(node, with_cpus, access) or _by_tier(node, with_cpus, tiers)
        if node in gpus:
            out[node] = "gpu", True
        elif node in dax and dax[node] != "any":
            out[node] = dax[node], True
        elif pace == "fast":
            out[node] = "hbm", True
        elif node in dax:  # specific-purpose memory that is not faster than DRAM
            out[node] = "cxl", pace == "slow"
        elif pace == "slow":  # CXL and NVM look the same from here
            out[node] = "cxl", False
    return out


def kinds_by_figures(nodes: list[dict[str, Any]], access: list[dict[str, Any]]) -> dict[int, tuple[str, bool]]:
    """As :func:`kinds`, from bandwidths alone."""
    with_cpus = {node["id"] for node in nodes if node["cpus"] and node["memory_bytes"]}
    paces = {node["id"]: _by_figures(node["id"], with_cpus, access) for node in nodes if not node["cpus"]}
    return {node: ("hbm", True) if pace == "fast" else ("cxl", False) for node, pace in paces.items() if pace}


def _dax(tree: Tree) -> dict[int, str]:
    """Nodes that a dax device would be, or is, onlined as: ``cxl``, ``nvm``, or ``any`` where its place says neither."""
    devices = [f"sys/bus/dax/devices/{name}/target_node" for name in tree.names("sys/bus/dax/devices")]
    some_cxl = any(name.startswith("region") for name in tree.names("sys/bus/cxl/devices"))
    out: dict[int, str] = {}
    for path in [*devices, *tree.found("target_node")]:
        text = tree.text(path)
        if text is None or not is_whole(text):
            continue  # -1: no node
        place = tree.place(path)
        if "ndbus" in place:
            kind = "nvm"
        elif "hmem" in place:
            kind = "any"
        elif some_cxl or "dax_region" in place or "ACPI0017" in place:
            kind = "cxl"
        else:
            kind = "any"
        if out.get(int(text), "any") == "any":
            out[int(text)] = kind
    return out


def _gpus(tree: Tree) -> set[int]:
    """Nodes whose memory is that of a GPU: ``Node: 252`` in the driver's numa_status."""
    nodes = set()
    for name in tree.names("proc/driver/nvidia/gpus"):
        for line in (tree.text(f"proc/driver/nvidia/gpus/{name}/numa_status") or "").splitlines():
            field, _, value = line.partition(":")
            if field.strip() == "Node" and is_whole(value.strip()):
                nodes.add(int(value))
    return nodes


def _tiers(tree: Tree) -> dict[int, int]:
    out: dict[int, int] = {}
    for folder in tree.names("sys/devices/virtual/memory_tiering"):
        tier = folder.removeprefix("memory_tier")
        listed = tree.text(f"sys/devices/virtual/memory_tiering/{folder}/nodelist")
        if not is_whole(tier) or listed is None:
            continue
        try:
            out |= dict.fromkeys(parse_list(listed), int(tier))
        except ValueError as error:
            raise WorkbenchError(f"sysfs: memory_tiering/{folder}/nodelist: {error}") from None
    return out


def _by_tier(node: int, with_cpus: set[int], tiers: Mapping[int, int]) -> str | None:
    known = [tiers[other] for other in with_cpus if other in tiers]
    if node not in tiers or not known or tiers[node] == min(known):
        return None
    return "fast" if tiers[node] < min(known) else "slow"


def _by_figures(node: int, with_cpus: set[int], access: list[dict[str, Any]]) -> str | None:
    """By the bandwidth that the nearest CPUs see, against what CPUs see of their own node."""

    def best(target: int, initiators: set[int]) -> float | None:
        values = [entry["read_bandwidth"] for entry in access
                  if entry["target"] == target and entry["initiator"] in initiators and entry.get("read_bandwidth")]  # fmt: skip
        return max(values, default=None)

    mine = best(node, {entry["initiator"] for entry in access})
    others = [value for other in with_cpus if (value := best(other, {other})) is not None]
    if mine is None or not others:
        return None
    usual = sorted(others)[(len(others) - 1) // 2]
    return "fast" if mine >= FASTER * usual else "slow" if mine < usual else None

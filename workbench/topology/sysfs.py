"""A host from a tree of sysfs and procfs files: this machine, a snapshot, or an archive of one.

Linux: ``drivers/base/node.c`` writes ``/sys/devices/system/node``. What Linux does not always have (cpulist, access
classes, free memory) is left out; a tree that lacks what makes a host is refused with one line.
"""

from __future__ import annotations

import re
from typing import Any

from workbench.bitmap_lists import is_whole, parse_list, parse_mask
from workbench.errors import WorkbenchError
from workbench.limits import MAX_NUMNODES
from workbench.topology import free_memory, memory_kinds
from workbench.topology.common import default_distances, label, lowest_node_keeps, mark_memory_only, page_bytes
from workbench.topology.trees import Tree

_NODE = re.compile(r"node([0-9]{1,6})$")
_CPU = re.compile(r"cpu([0-9]{1,6})$")
_FIELD = re.compile(r"(?:Node [0-9]{1,6} )?(MemTotal|MemFree):\s+([0-9]{1,18})\s")
_FIGURES = ("read_bandwidth", "write_bandwidth", "read_latency", "write_latency")


def read_tree(tree: Tree) -> dict[str, Any]:
    """The mapping of a host. Memory is MemTotal; zones and pools are those of this moment where the tree has them."""
    name = label(tree.text("proc/sys/kernel/hostname") or tree.name)
    ids = sorted(int(m.group(1)) for m in map(_NODE.match, tree.names("node")) if m)
    now = {
        "transparent_hugepages": _chosen(tree.text("sys/kernel/mm/transparent_hugepage/enabled")),
        "hugetlb_promised": free_memory.promised_pages(tree),
    }
    if not ids:
        return {**_without_numa(tree), **now, "name": name}
    if len(ids) > MAX_NUMNODES:
        raise WorkbenchError(f"sysfs: {len(ids)} node directories; Linux has at most {MAX_NUMNODES}")
    nodes = [_node(node, tree) for node in ids]
    assumed: list[str] = []
    rows = _distances(ids, tree, assumed)
    access = [entry for node in ids for entry in _access(node, tree, set(ids))]
    memory, normal = _node_list("has_memory", tree), _node_list("has_normal_memory", tree)
    known_movable = memory is not None and normal is not None
    for node in nodes:
        node["movable"] = known_movable and node["id"] in (memory or set()) - (normal or set())
    zones = free_memory.node_zones(tree, {node["id"]: node["memory_bytes"] for node in nodes})
    _add_zones(nodes, zones)
    mark_memory_only(nodes, memory_kinds.kinds(tree, nodes, access), set(zones) if not known_movable else set(ids))
    lowest_node_keeps(nodes)
    return {
        **now,
        "name": name,
        "nodes": nodes,
        "distances": rows,
        "access": access,
        "assumed": assumed,
        "source": "sysfs of this machine" if tree.name == "/sys" else f"sysfs of {label(tree.name)}",
    }


def _without_numa(tree: Tree) -> dict[str, Any]:
    """A kernel without CONFIG_NUMA has no node directory: all memory and CPUs are one node."""
    meminfo, online = tree.text("proc/meminfo"), tree.text("sys/devices/system/cpu/online")
    fields = dict(_FIELD.findall((meminfo or "") + "\n"))
    # Kernels before 2.6.26 have no list of CPUs, only their folders.
    cpus = sorted(int(m.group(1)) for m in map(_CPU.match, tree.names("sys/devices/system/cpu")) if m)
    if "MemTotal" not in fields or (online is None and not cpus):
        raise WorkbenchError(
            "sysfs: devices/system/node has no node directory, as in a kernel without CONFIG_NUMA; then "
            "proc/meminfo beside sys/ and devices/system/cpu are needed"
        )
    node: dict[str, Any] = {"id": 0, "memory_bytes": page_bytes(int(fields["MemTotal"]) << 10)}
    node["cpus"] = cpus if online is None else _listed(online, "devices/system/cpu/online")
    _add_free(node, fields)
    pools = free_memory.node_pools(tree, free_memory.WHOLE_HOST)
    if pools:
        node["hugetlb"] = pools
    _add_zones([node], free_memory.node_zones(tree, {0: node["memory_bytes"]}))
    return {"nodes": [node], "distances": [[10]], "source": "procfs of a kernel without NUMA"}


def _chosen(text: str | None) -> str | None:
    """The word in brackets of ``always [madvise] never``."""
    found = re.search(r"\[(always|madvise|never)\]", text or "")
    return found.group(1) if found else None


def _node(node: int, tree: Tree) -> dict[str, Any]:
    meminfo = tree.text(f"node/node{node}/meminfo")
    if meminfo is None:
        raise WorkbenchError(f"sysfs: node{node}/meminfo is missing; the tree is truncated")
    fields = dict(_FIELD.findall(meminfo + "\n"))
    if "MemTotal" not in fields:
        raise WorkbenchError(f"sysfs: node{node}/meminfo has no MemTotal; the tree is truncated")
    total = page_bytes(int(fields["MemTotal"]) << 10)
    out: dict[str, Any] = {"id": node, "memory_bytes": total, "cpus": _cpus(node, tree)}
    _add_free(out, fields)
    pools = free_memory.node_pools(tree, f"node/node{node}/hugepages")
    weight = tree.text(f"sys/kernel/mm/mempolicy/weighted_interleave/node{node}")
    if weight is not None and is_whole(weight) and int(weight):
        out["weight"] = int(weight)
    if pools:
        out["hugetlb"] = pools
    return out


def _add_free(node: dict[str, Any], fields: dict[str, str]) -> None:
    if "MemFree" in fields:
        node["free_bytes"] = min(node["memory_bytes"], page_bytes(int(fields["MemFree"]) << 10))


def _add_zones(nodes: list[dict[str, Any]], zones: dict[int, list[dict[str, Any]]]) -> None:
    for node in nodes:
        if node["id"] in zones:
            node["zones"] = zones[node["id"]]
            node["movable"] = all(zone["name"] == "Movable" for zone in node["zones"])


def _cpus(node: int, tree: Tree) -> tuple[int, ...]:
    text = tree.text(f"node/node{node}/cpulist")
    if text is not None:
        return _listed(text, f"node{node}/cpulist")
    mask = tree.text(f"node/node{node}/cpumap")
    try:
        return parse_mask(mask) if mask else ()
    except ValueError as error:
        raise WorkbenchError(f"sysfs: node{node}/cpumap: {error}") from None


def _listed(text: str, file: str) -> tuple[int, ...]:
    try:
        return parse_list(text)
    except ValueError as error:
        raise WorkbenchError(f"sysfs: {file}: {error}") from None


def _node_list(file: str, tree: Tree) -> set[int] | None:
    text = tree.text(f"node/{file}")
    return None if text is None else set(_listed(text, file))


def _distances(ids: list[int], tree: Tree, assumed: list[str]) -> list[list[int]]:
    """The matrix; 10 and 20 where firmware gave none, as ``__node_distance`` has it without a SLIT."""
    texts = {node: tree.text(f"node/node{node}/distance") for node in ids}
    if not any(texts.values()):
        if len(ids) > 1:
            assumed.append("distances")
        return default_distances(len(ids))
    rows = []
    for node, text in texts.items():
        if text is None:
            raise WorkbenchError(f"sysfs: node{node}/distance is missing; the tree is truncated")
        words = text.split()
        if len(words) != len(ids) or not all(map(is_whole, words)):
            raise WorkbenchError(f"sysfs: node{node}/distance: {text[:40]!r} is not {len(ids)} distances")
        rows.append([int(word) for word in words])
    if not any(value for row in rows for value in row):  # ia64 without a SLIT
        if len(ids) > 1:
            assumed.append("distances")
        return default_distances(len(ids))
    return rows


def _access(target: int, tree: Tree, ids: set[int]) -> list[dict[str, Any]]:
    """HMAT figures: access class 1 (CPU initiators) if it is there, else class 0 (any initiator). 0 means not given."""
    for kind in ("access1", "access0"):
        folder = f"node/node{target}/{kind}/initiators"
        figures = {
            name: float(text)
            for name in _FIGURES
            if (text := tree.text(f"{folder}/{name}")) and is_whole(text) and int(text)
        }
        if not figures:
            continue
        names = [m.group(1) for m in map(_NODE.match, tree.names(folder)) if m]
        return [{"initiator": int(i), "target": target, **figures} for i in names if int(i) in ids]
    return []

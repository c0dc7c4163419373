"""A host from hwloc's XML (``lstopo --of xml``), of hwloc 1, 2 and 3.

hwloc: ``topology-xml.c``, ``memattrs.c``. From version 2 on NUMA nodes hang beside the objects that are local to them
and carry their CPU set; in version 1 (no ``version`` attribute) they contain them, and distances are divided by a base.
"""

from __future__ import annotations

from typing import Any

from workbench.bitmap_lists import is_whole, parse_mask
from workbench.errors import WorkbenchError, at_line
from workbench.limits import MAX_NUMNODES
from workbench.topology.common import (
    LOCAL_DISTANCE,
    Described,
    default_distances,
    label,
    lines_of,
    mark_memory_only,
    page_bytes,
)
from workbench.topology.memory_kinds import kinds_by_figures
from workbench.units import parse_number

LATENCY = 1 << 2
"""Bit of a matrix's ``kind``: HWLOC_DISTANCES_KIND_MEANS_LATENCY."""
_CPUS_FIRST = ("dram", "hbm", "cxl", "nvm", "gpu")
"""Of nodes with the same CPUs next to them, which has them: memory that hangs off a bus or a device never."""
_FIGURES = {
    "Bandwidth": ("read_bandwidth", "write_bandwidth"),
    "ReadBandwidth": ("read_bandwidth",),
    "WriteBandwidth": ("write_bandwidth",),
    "Latency": ("read_latency", "write_latency"),
    "ReadLatency": ("read_latency",),
    "WriteLatency": ("write_latency",),
}


def read_hwloc(root: Any, name: str) -> Described:
    """The mapping of a host from the ``topology`` element of a file called ``name``."""
    first = root.get("version") is None
    elements = list(_numa_nodes(root, first))
    if not elements:
        raise WorkbenchError("hwloc: no NUMANode object and no memory; lstopo --of xml writes them", root.line)
    if len(elements) > MAX_NUMNODES:
        said = f"hwloc: {len(elements)} NUMANode objects; Linux has at most {MAX_NUMNODES}"
        raise WorkbenchError(said, elements[MAX_NUMNODES].line)
    nodes: dict[int, dict[str, Any]] = {}
    for element in elements:
        number = _integer(element, "os_index", 0 if len(elements) == 1 else None)
        if number in nodes:
            said = f"hwloc: two NUMANode objects have os_index={number}; one of each number is expected"
            raise WorkbenchError(said, element.line)
        with at_line(element.line):
            nodes[number] = _node(number, element)
    ids = sorted(nodes)
    rows = _distances_of_version_1(root, nodes) if first else _distances(root, elements, ids)
    assumed = []
    if rows is None:
        rows = default_distances(len(ids))
        if len(ids) > 1:
            assumed.append("distances")
    listed = [nodes[node] for node in ids]
    _own_cpus(listed)
    access = _access(root, nodes)
    known = {node["id"]: (node["kind"], node.pop("named")) for node in listed}
    for node, (kind, sure) in kinds_by_figures(listed, access).items():
        if not known[node][1] or known[node][0] == "spm":
            known[node] = kind, sure
    # Memory for a purpose that nobody named: on released machines mostly HBM.
    known = {node: ("hbm", False) if kind == "spm" else (kind, sure) for node, (kind, sure) in known.items()}
    for described in listed:
        described["kind"] = known[described["id"]][0]
    mark_memory_only(listed, known, set())
    fields = {
        "name": label(name.removesuffix(".xml")),
        "nodes": listed,
        "distances": rows,
        "access": access,
        "assumed": assumed,
        "source": f"hwloc XML {label(name)}",
    }
    by_id = {_integer(element, "os_index", 0): element.line for element in elements}
    matrix = next((element.line for tag in ("distances2", "distances") for element in root.iter(tag)), root.line)
    return Described(fields, lines_of([by_id[node] for node in ids], [matrix] * len(ids)))


def _numa_nodes(root: Any, first: bool) -> list[Any]:
    found = [element for element in root.iter("object") if element.get("type") in ("NUMANode", "Node")]
    if not found and first:  # hwloc 1 has no NUMA object for a machine that is one node
        found = [element for element in root.iter("object") if element.get("type") in ("Machine", "System")
                 and (element.get("local_memory") or element.get("memory_kB"))][:1]  # fmt: skip
    return found


def _node(number: int, element: Any) -> dict[str, Any]:
    kind = _kind(element)
    node: dict[str, Any] = {
        "id": number,
        "memory_bytes": page_bytes(_integer(element, "local_memory", _integer(element, "memory_kB", 0) << 10)),
        "cpus": _mask(element.get("cpuset") or "0x0"),
        "kind": kind or "dram",
        "named": kind is not None,
    }
    pools = [_pool(child) for child in element.findall("page_type")]
    pools = [pool for pool in pools if pool["page_bytes"] >= 1 << 20 and pool["total"]]
    if pools:
        node["hugetlb"] = pools
    return node


def _pool(element: Any) -> dict[str, int]:
    total = _integer(element, "count", 0)
    return {"page_bytes": _integer(element, "size", 0), "total": total, "free": total}


def _integer(element: Any, name: str, default: int | None = None) -> int:
    value = element.get(name)
    if value is None and default is not None:
        return default
    if value is None or not is_whole(value):
        said = f"hwloc: {element.get('type') or element.tag} {name}={str(value)[:40]!r} is not a number"
        raise WorkbenchError(said, element.line)
    return int(value)


def _kind(element: Any) -> str | None:
    """By ``subtype``, or the ``Type`` of hwloc 1; None if neither says anything."""
    named = [info.get("value") or "" for info in element.findall("info") if info.get("name") in ("Type", "MemoryTier")]
    for text in (element.get("subtype") or "", *named):
        words = text.lower().replace("memory", "").split("-")
        if "cxl" in words:
            return "cxl"
        for word, kind in (
            ("gpu", "gpu"),
            ("hbm", "hbm"),
            ("mcdram", "hbm"),
            ("nvm", "nvm"),
            ("spm", "spm"),
            ("dram", "dram"),
        ):
            if any(part.startswith(word) for part in words):
                return kind
    return None


def _mask(text: str) -> tuple[int, ...]:
    try:
        return parse_mask(text)
    except ValueError as error:
        raise WorkbenchError(f"hwloc: cpuset {error!s}") from None


def _own_cpus(nodes: list[dict[str, Any]]) -> None:
    """Memory-side nodes carry the CPUs of the package they hang off; those belong to its ordinary memory."""
    seen: dict[int, str] = {}
    order = {kind: rank for rank, kind in enumerate(_CPUS_FIRST)}
    for node in sorted(nodes, key=lambda node: (order.get(node["kind"], len(order)), node["id"])):
        if any(seen.get(cpu) == node["kind"] == "dram" for cpu in node["cpus"]):  # numa=fake, not memory beside
            node["assumed"] = ["cpus"]
        node["cpus"] = tuple(cpu for cpu in node["cpus"] if cpu not in seen)
        seen.update(dict.fromkeys(node["cpus"], node["kind"]))


# ------------------------------------------------------------------------------------------------------ distances


def _words(parts: Any) -> list[str]:
    return [word for part in parts for word in (part.text or "").split()]


def _distances(root: Any, elements: list[Any], ids: list[int]) -> list[list[int]] | None:
    """The first matrix over all nodes that says what the SLIT says: latency, 10 for a node itself."""
    by_gp = {element.get("gp_index"): element.get("os_index") for element in elements}
    for element in root.iter("distances2"):
        kind = element.get("kind") or ""
        if element.get("type") != "NUMANode" or (is_whole(kind) and not int(kind) & LATENCY):
            continue
        order = _words(element.iter("indexes"))
        if element.get("indexing") == "gp":
            order = [by_gp.get(word) or "" for word in order]
        values = _words(element.iter("u64values"))
        if not all(map(is_whole, (*order, *values))):
            wrong = next(word for word in (*order, *values) if not is_whole(word))
            raise WorkbenchError(f"hwloc: distances2: {wrong[:20]!r} is not a number", element.line)
        if sorted(map(int, order)) != ids or len(values) != len(ids) ** 2:
            continue
        if set(values[:: len(ids) + 1]) == {str(LOCAL_DISTANCE)}:
            at = {int(node): position for position, node in enumerate(order)}
            return [[int(values[at[a] * len(ids) + at[b]]) for b in ids] for a in ids]
    return None


def _distances_of_version_1(root: Any, nodes: dict[int, Any]) -> list[list[int]] | None:
    """``<distances>``: values over a base, between the objects of a level in the order of the file."""
    order = list(nodes)  # as in the file
    for element in root.iter("distances"):
        values = [latency.get("value") or "" for latency in element.findall("latency")]
        if len(values) != len(order) ** 2 or element.get("nbobjs") != str(len(order)):
            continue
        try:
            base = parse_number(element.get("latency_base", "1"))
            scaled = [parse_number(value) * base for value in values]
            if not all(0 <= value < 1 << 16 for value in scaled):
                raise ValueError
        except ValueError:
            raise WorkbenchError("hwloc: distances: a latency or its base is not a number", element.line) from None
        rounded = [int(value + 0.5) for value in scaled]
        if set(rounded[:: len(order) + 1]) == {LOCAL_DISTANCE}:
            at = {node: position for position, node in enumerate(order)}
            return [[rounded[at[a] * len(order) + at[b]] for b in sorted(nodes)] for a in sorted(nodes)]
    return None


# -------------------------------------------------------------------------------------------------------- figures


def _access(root: Any, nodes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """``memattr`` elements as figures of initiator and target nodes, in MB/s and ns."""
    targets = {element.get("gp_index"): element for element in root.iter("object") if element.get("gp_index")}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for attribute in root.iter("memattr"):
        fields = _FIGURES.get(attribute.get("name") or "")
        for value in attribute.iter("memattr_value") if fields else ():
            target = targets.get(value.get("target_obj_gp_index"))
            if target is None or target.get("type") != "NUMANode":
                continue
            number = _integer(target, "os_index", 0)
            figure = _integer(value, "value")
            with at_line(value.line):
                initiators = _initiators(value, targets, nodes) if figure else []
            for initiator in initiators:
                entry = found.setdefault((number, initiator), {"initiator": initiator, "target": number})
                for field in fields or ():
                    # What says read or write is more exact than what says neither.
                    if len(fields or ()) == 1 or field not in entry:
                        entry[field] = float(figure)
    return [found[key] for key in sorted(found)]


def _initiators(value: Any, objects: dict[str | None, Any], nodes: dict[int, dict[str, Any]]) -> list[int]:
    """Nodes whose CPUs are among the initiators; where these are fewer than a node's, nodes that have some of them."""
    cpuset = value.get("initiator_cpuset")
    if cpuset is None:
        holder = objects.get(value.get("initiator_obj_gp_index"))
        cpuset = None if holder is None else holder.get("cpuset")
    if cpuset is None:
        return []
    cpus = set(_mask(cpuset))
    having = {number: set(node["cpus"]) for number, node in nodes.items() if node["cpus"]}
    whole = [number for number, own in having.items() if own <= cpus]
    return whole or [number for number, own in having.items() if own & cpus]

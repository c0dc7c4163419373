"""A host from ``virsh capabilities`` (libvirt: ``src/conf/capabilities.c``, ``virCapabilitiesHostNUMAFormat``)."""

from __future__ import annotations

from typing import Any

from workbench.bitmap_lists import is_whole
from workbench.errors import WorkbenchError, at_line
from workbench.topology.common import (
    Described,
    default_distances,
    label,
    lines_of,
    lowest_node_keeps,
    mark_memory_only,
    page_bytes,
)
from workbench.topology.memory_kinds import kinds_by_figures

_UNITS = {"b": 1, "bytes": 1, "kib": 1 << 10, "k": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_PER_MB = 10**6
_FIGURES = {"access": ("read", "write"), "read": ("read",), "write": ("write",)}


def read_capabilities(root: Any, name: str) -> Described:
    """The mapping of a host from the ``capabilities`` element of a file called ``name``."""
    cells = root.findall("./host/topology/cells/cell")
    if not cells:
        raise WorkbenchError("capabilities: no host/topology/cells/cell; libvirt was built without NUMA", root.line)
    all_cells = root.find("./host/topology/cells")
    stated = all_cells.get("num")
    with at_line(all_cells.line):
        if stated is not None and _whole(stated, "cells num") != len(cells):
            raise WorkbenchError(f"capabilities: cells num={stated}, but there are {len(cells)}")
    nodes: dict[int, dict[str, Any]] = {}
    rows: dict[int, dict[int, int]] = {}
    for cell in cells:
        with at_line(cell.line):
            _add_cell(cell, nodes, rows)
    ids = sorted(nodes)
    assumed: list[str] = []
    if not any(rows.values()):
        distances = default_distances(len(ids))
        assumed = ["distances"] if len(ids) > 1 else []
    else:
        for node in ids:
            if set(ids) - set(rows[node]):
                line = next(cell.line for cell in cells if int(cell.get("id")) == node)
                missing = min(set(ids) - set(rows[node]))
                raise WorkbenchError(f"capabilities: cell {node} has no distance to cell {missing}", line)
        distances = [[rows[a][b] for b in ids] for a in ids]
    listed = [nodes[node] for node in ids]
    access = _access(root, set(ids))
    mark_memory_only(listed, kinds_by_figures(listed, access), set())
    lowest_node_keeps(listed)
    fields = {
        "name": label(name.removesuffix(".xml")),
        "nodes": listed,
        "distances": distances,
        "access": access,
        "assumed": assumed,
        "source": "virsh capabilities",
    }
    by_id = {int(cell.get("id")): cell.line for cell in cells}
    return Described(fields, lines_of([by_id[node] for node in ids], [by_id[node] for node in ids]))


def _add_cell(cell: Any, nodes: dict[int, dict[str, Any]], rows: dict[int, dict[int, int]]) -> None:
    node = _whole(cell.get("id"), "cell id")
    if node in nodes:
        raise WorkbenchError(f"capabilities: two cells have id={node}; one of each is expected")
    for part in ("memory", "distances", "cpus"):
        if len(cell.findall(part)) > 1:
            raise WorkbenchError(f"capabilities: cell {node} has {part} twice")
    nodes[node] = {
        "id": node,
        "memory_bytes": page_bytes(_size(cell.find("memory"), f"cell {node} memory")),
        "cpus": [_whole(cpu.get("id"), "cpu id") for cpu in cell.findall("cpus/cpu")],
    }
    pools = [_pool(pages, node) for pages in cell.findall("pages")]
    if pools := [pool for pool in pools if pool["page_bytes"] >= 1 << 20]:
        nodes[node]["hugetlb"] = pools
    rows[node] = {}
    for sibling in cell.findall("distances/sibling"):
        other, distance = _whole(sibling.get("id"), "sibling id"), _whole(sibling.get("value"), "distance")
        if rows[node].setdefault(other, distance) != distance:
            raise WorkbenchError(f"capabilities: cell {node} is {rows[node][other]} and {distance} from cell {other}")


def _whole(text: str | None, what: str) -> int:
    if text is None or not is_whole(text.strip()):
        raise WorkbenchError(f"capabilities: {what}: {str(text)[:40]!r} is not a number")
    return int(text)


def _size(element: Any, what: str) -> int:
    if element is None:
        return 0
    unit = (element.get("unit") or "KiB").lower()
    if unit not in _UNITS:
        raise WorkbenchError(f"capabilities: {what}: unit {unit[:20]!r} is none of {', '.join(_UNITS)}")
    return _whole(element.text, what) * _UNITS[unit]


def _pool(pages: Any, node: int) -> dict[str, int]:
    """``<pages unit='KiB' size='2048'>512</pages>``: the pool; how many of it are free is not said."""
    unit = _UNITS.get((pages.get("unit") or "KiB").lower(), 1 << 10)
    total = _whole(pages.text, f"cell {node} pages")
    return {"page_bytes": _whole(pages.get("size"), f"cell {node} page size") * unit, "total": total, "free": total}


def _access(root: Any, ids: set[int]) -> list[dict[str, Any]]:
    """``<interconnects>``: libvirt hands the figures of sysfs on, latencies in ns, bandwidths in KiB/s."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for quantity in ("latency", "bandwidth"):
        for element in root.findall(f"./host/topology/interconnects/{quantity}"):
            if element.get("cache") not in (None, "0"):
                continue
            with at_line(element.line):
                initiator, target = (_whole(element.get(end), end) for end in ("initiator", "target"))
                value = _whole(element.get("value"), quantity)
            ways = _FIGURES.get(element.get("type") or "access", ())
            if not {initiator, target} <= ids or not value or not ways:
                continue
            scale = 1.0
            if quantity == "bandwidth":
                scale = _UNITS.get((element.get("unit") or "KiB").lower(), 1 << 10) / _PER_MB
            entry = found.setdefault((initiator, target), {"initiator": initiator, "target": target})
            for way in ways:
                entry[f"{way}_{quantity}"] = value * scale
    return [found[key] for key in sorted(found)]

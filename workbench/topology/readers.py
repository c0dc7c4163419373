"""What people have of a host, as mappings for :class:`workbench.topology.host.Host`: sysfs, ``numactl --hardware``, hwloc XML.

Linux: ``drivers/base/node.c`` writes ``/sys/devices/system/node``. Everything missing that Linux does not always have
(cpulist, access classes, free memory) is left out; a tree without what makes a host is refused with one line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from workbench.bitmap_lists import parse_list
from workbench.errors import WorkbenchError
from workbench.units import PAGE_SIZE

_NODE = re.compile(r"node(\d+)$")
_MAX_XML = 64 << 20


# --------------------------------------------------------------------------------------------------------- sysfs


def read_sysfs(root: Path) -> dict[str, Any]:
    """Read ``root/devices/system/node``. Memory is MemTotal, free memory MemFree."""
    base = root / "devices/system/node"
    if not base.is_dir():
        raise WorkbenchError(f"sysfs: {base} is not there; root is the directory that holds devices/")
    folders = {int(m.group(1)): base / m.group(0) for m in map(_NODE.match, sorted(os.listdir(base))) if m}
    if not folders:
        raise WorkbenchError(f"sysfs: {base} holds no node directory")
    ids = sorted(folders)
    nodes = [_sysfs_node(node, folders[node], root) for node in ids]
    rows = [_distances(node, folders[node], len(ids)) for node in ids]
    access = [entry for node in ids for entry in _access(node, folders[node], set(ids))]
    memory, normal = _node_list(base / "has_memory"), _node_list(base / "has_normal_memory")
    if memory is not None and normal is not None:
        for node in nodes:
            node["movable"] = node["id"] in memory - normal
    name = "this machine" if root == Path("/sys") else root.resolve().name or "snapshot"
    return {"name": name, "nodes": nodes, "distances": rows, "access": access, "source": f"sysfs {root.name}"}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\x00\n ")
    except OSError:
        return None


def _node_list(path: Path) -> set[int] | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return set(parse_list(text))
    except ValueError as error:
        raise WorkbenchError(f"sysfs: {path.name}: {error}") from None


def _sysfs_node(node: int, folder: Path, root: Path) -> dict[str, Any]:
    meminfo = _text(folder / "meminfo")
    if meminfo is None:
        raise WorkbenchError(f"sysfs: node{node}/meminfo is missing; the tree is truncated")
    fields = dict(re.findall(r"Node \d+ (\w+):\s+(\d+)", meminfo))
    if "MemTotal" not in fields:
        raise WorkbenchError(f"sysfs: node{node}/meminfo has no MemTotal; the tree is truncated")
    total = int(fields["MemTotal"]) * 1024 // PAGE_SIZE * PAGE_SIZE
    out: dict[str, Any] = {"id": node, "memory_bytes": total, "cpus": _sysfs_cpus(node, folder)}
    if "MemFree" in fields:
        out["free_bytes"] = min(total, int(fields["MemFree"]) * 1024 // PAGE_SIZE * PAGE_SIZE)
    return out


def _sysfs_cpus(node: int, folder: Path) -> tuple[int, ...]:
    listed = _text(folder / "cpulist")
    if listed is not None:
        try:
            return parse_list(listed)
        except ValueError as error:
            raise WorkbenchError(f"sysfs: node{node}/cpulist: {error}") from None
    mask = _text(folder / "cpumap")
    if not mask:
        return ()
    digits = mask.replace(",", "")
    if not re.fullmatch(r"[0-9a-fA-F]+", digits):
        raise WorkbenchError(f"sysfs: node{node}/cpumap: {mask[:40]!r} is not a hexadecimal mask")
    bits = int(digits, 16)
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def _distances(node: int, folder: Path, size: int) -> list[int]:
    text = _text(folder / "distance")
    if text is None:
        raise WorkbenchError(f"sysfs: node{node}/distance is missing; the tree is truncated")
    words = text.split()
    if len(words) != size or not all(word.isdecimal() for word in words):
        raise WorkbenchError(f"sysfs: node{node}/distance: {text[:40]!r} is not {size} distances")
    return [int(word) for word in words]


def _access(target: int, folder: Path, ids: set[int]) -> list[dict[str, Any]]:
    """HMAT figures: access class 1 (CPU initiators) if it is there, else class 0 (any initiator)."""
    for kind in ("access1", "access0"):
        initiators = folder / kind / "initiators"
        if not initiators.is_dir():
            continue
        figures = {
            name: float(text)
            for name in ("read_bandwidth", "write_bandwidth", "read_latency", "write_latency")
            if (text := _text(initiators / name)) and text.isdecimal()
        }
        if not figures:
            continue
        names = [m.group(1) for m in map(_NODE.match, sorted(os.listdir(initiators))) if m]
        return [{"initiator": int(i), "target": target, **figures} for i in names if int(i) in ids]
    return []


# ------------------------------------------------------------------------------------------------------- numactl


def read_numactl(text: str) -> dict[str, Any]:
    """Read the output of ``numactl --hardware`` (``node N cpus/size/free`` lines and the matrix)."""
    if len(text) > 1 << 22:
        raise WorkbenchError(f"numactl: {len(text) >> 20} MiB of text is not the output of numactl --hardware")
    nodes: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        matched = re.match(r"\s*node\s+(\d+)\s+(cpus|size|free):\s*(.*)$", line)
        if not matched:
            continue
        number, field, value = int(matched.group(1)), matched.group(2), matched.group(3).strip()
        entry = nodes.setdefault(number, {"id": number, "memory_bytes": 0})
        if field == "cpus":
            if not all(word.isdecimal() for word in value.split()):
                raise WorkbenchError(f"numactl: node {number} cpus: {value[:40]!r} is not a list of CPUs")
            entry["cpus"] = tuple(int(word) for word in value.split())
            continue
        size = re.fullmatch(r"(\d+)\s*MB", value)
        if not size:
            raise WorkbenchError(f"numactl: node {number} {field}: {value[:40]!r} is not a size in MB")
        entry["memory_bytes" if field == "size" else "free_bytes"] = int(size.group(1)) << 20
    if not nodes:
        raise WorkbenchError("numactl: no 'node N size:' line; this is not the output of numactl --hardware")
    columns, rows = _numactl_matrix(text)
    ids = sorted(nodes)
    if columns != ids or sorted(rows) != ids:
        raise WorkbenchError(f"numactl: distances are given for nodes {columns}, memory for {ids}")
    for entry in nodes.values():
        if "free_bytes" in entry:
            entry["free_bytes"] = min(entry["free_bytes"], entry["memory_bytes"])
    return {
        "name": "numactl",
        "nodes": [nodes[node] for node in ids],
        "distances": [rows[node] for node in ids],
        "source": "numactl --hardware",
    }


def _numactl_matrix(text: str) -> tuple[list[int], dict[int, list[int]]]:
    _, found, tail = text.partition("node distances:")
    if not found:
        raise WorkbenchError("numactl: no 'node distances:'; the text is truncated")
    columns: list[int] = []
    rows: dict[int, list[int]] = {}
    for line in tail.splitlines():
        header = re.match(r"\s*node\s+((?:\d+\s*)+)$", line)
        row = re.match(r"\s*(\d+):\s*((?:\d+\s*)+)$", line)
        if header:
            columns += [int(word) for word in header.group(1).split()]
        elif row:
            rows.setdefault(int(row.group(1)), []).extend(int(word) for word in row.group(2).split())
    return columns, rows


# --------------------------------------------------------------------------------------------------------- hwloc


def read_hwloc_xml(path: Path) -> dict[str, Any]:
    """Read hwloc 2 XML: NUMANode objects, their CPU sets, and the latency distances of NUMA nodes."""
    import defusedxml.ElementTree as ElementTree

    try:
        if path.stat().st_size > _MAX_XML:
            raise WorkbenchError(f"hwloc: {path.name} is larger than {_MAX_XML >> 20} MiB")
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise WorkbenchError(f"hwloc: {path}: {error.strerror}") from None
    except WorkbenchError:
        raise
    except Exception as error:  # defusedxml has its own exceptions for entities and DTDs
        raise WorkbenchError(f"hwloc: {path.name} is not XML that can be read: {str(error).splitlines()[0]}") from None
    if root.tag != "topology":
        raise WorkbenchError(f"hwloc: {path.name}: the top element is {root.tag!r}, not 'topology'")
    nodes: dict[int, dict[str, Any]] = {}
    for element in root.iter("object"):
        if element.get("type") == "NUMANode":
            number = _integer(element, "os_index")
            nodes[number] = {
                "id": number,
                "memory_bytes": _integer(element, "local_memory", 0) // PAGE_SIZE * PAGE_SIZE,
                "cpus": _bitmap(element.get("cpuset", "0x0")),
                "kind": _hwloc_kind(element),
            }
    if not nodes:
        raise WorkbenchError(f"hwloc: {path.name} has no NUMANode object; hwloc 2 writes them (lstopo --of xml)")
    ids = sorted(nodes)
    _own_cpus([nodes[node] for node in ids])
    return {
        "name": path.stem,
        "nodes": [nodes[node] for node in ids],
        "distances": _hwloc_distances(root, ids, path.name),
        "source": f"hwloc XML {path.name}",
    }


def _integer(element: Any, name: str, default: int | None = None) -> int:
    value = element.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise WorkbenchError(f"hwloc: NUMANode {name}={value!r} is not a number")
    return int(value)


def _hwloc_kind(element: Any) -> str:
    subtype = (element.get("subtype") or "").lower()
    if "gpu" in subtype:
        return "gpu"
    return {"hbm": "hbm", "mcdram": "hbm", "cxl-dram": "cxl", "cxl": "cxl"}.get(subtype, "dram")


def _bitmap(text: str) -> tuple[int, ...]:
    """hwloc writes 32-bit words, highest first: ``0x0000ffff,0xffffffff``."""
    bits = 0
    for word in text.split(","):
        if word and not re.fullmatch(r"0x[0-9a-fA-F]+", word):
            raise WorkbenchError(f"hwloc: cpuset {text[:40]!r} is not a bitmap")
        bits = bits << 32 | (int(word, 16) if word else 0)
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def _own_cpus(nodes: list[dict[str, Any]]) -> None:
    """Memory-side nodes (HBM, CXL) carry the CPU set of the package they hang off; CPUs belong to its DRAM node."""
    seen: set[int] = set()
    for node in sorted(nodes, key=lambda node: node["kind"] != "dram"):
        node["cpus"] = tuple(cpu for cpu in node["cpus"] if cpu not in seen)
        seen |= set(node["cpus"])


def _hwloc_distances(root: Any, ids: list[int], name: str) -> list[list[int]]:
    for element in root.iter("distances2"):
        if element.get("type") != "NUMANode":
            continue
        order = [int(word) for part in element.iter("indexes") for word in (part.text or "").split()]
        values = [int(float(word)) for part in element.iter("u64values") for word in (part.text or "").split()]
        if sorted(order) != ids or len(values) != len(ids) ** 2:
            continue
        if values[:: len(ids) + 1] != [10] * len(ids):
            continue  # a matrix of another kind, such as bandwidth
        at = {node: position for position, node in enumerate(order)}
        return [[values[at[a] * len(ids) + at[b]] for b in ids] for a in ids]
    if len(ids) == 1:
        return [[10]]
    raise WorkbenchError(f"hwloc: {name} has no latency matrix over its {len(ids)} NUMA nodes")

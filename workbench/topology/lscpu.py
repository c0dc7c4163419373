"""The CPUs of nodes from ``lscpu`` (text or ``-J``), which says nothing of memory: it goes with ``numactl --hardware``.

util-linux: ``sys-utils/lscpu.c`` (``NUMA node(s):``, ``NUMA node0 CPU(s):``).
"""

from __future__ import annotations

import json
from typing import Any

from workbench.bitmap_lists import is_whole, parse_list
from workbench.errors import WorkbenchError
from workbench.topology.common import Described


def split(text: str) -> tuple[dict[int, tuple[int, ...]], str]:
    """(CPUs by node, the text without them) of a text that may hold the output of lscpu, as JSON or as lines."""
    cpus: dict[int, tuple[int, ...]] = {}
    start = text.find("{")
    if start >= 0 and '"lscpu"' in text[start : start + 200]:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            at = text.count("\n", 0, getattr(error, "pos", start)) + 1
            reason = getattr(error, "msg", "nested too deeply")
            raise WorkbenchError(f"lscpu: not JSON that can be read: {reason}", at) from None
        for field, data in _entries(value.get("lscpu") if isinstance(value, dict) else None):
            place = text.find(f'"{field}"', start, end)  # the line of it
            _add(cpus, field, data, text.count("\n", 0, max(place, start)) + 1)
        return cpus, text[:start] + "\n" * text.count("\n", start, end) + text[end:]
    rest = []
    for number, line in enumerate(text.splitlines(), 1):
        field, colon, data = line.partition(":")
        rest.append("" if colon and _add(cpus, field, data, number) else line)  # lines keep their numbers
    return cpus, "\n".join(rest)


def _entries(entries: Any, depth: int = 0) -> list[tuple[str, str]]:
    """Fields and data; from util-linux 2.37 on some entries hold others as ``children``."""
    out: list[tuple[str, str]] = []
    for entry in entries if isinstance(entries, list) and depth < 4 else ():
        if isinstance(entry, dict):
            out.append((str(entry.get("field", "")), str(entry.get("data", ""))))
            out += _entries(entry.get("children"), depth + 1)
    return out


def _add(cpus: dict[int, tuple[int, ...]], field: str, data: str, number: int) -> bool:
    """``NUMA node0 CPU(s)`` and its list; whether the line was one."""
    words = field.rstrip(":").split()
    if len(words) < 3 or words[-3] != "NUMA" or words[-1] != "CPU(s)" or not words[-2].startswith("node"):
        return False
    node = words[-2].removeprefix("node")
    if not is_whole(node):
        return False
    try:
        listed = parse_list("" if data.strip() == "-" else data)
    except ValueError as error:
        raise WorkbenchError(f"lscpu: NUMA node{node} CPU(s): {error}", number) from None
    if int(node) in cpus:
        raise WorkbenchError(f"lscpu: the CPUs of node {node} are given twice; once is expected", number)
    cpus[int(node)] = listed
    return True


def complete(host: Described, cpus: dict[int, tuple[int, ...]]) -> Described:
    """A host of numactl with the CPUs that lscpu lists; nodes that numactl does not know are an error."""
    if not cpus:
        return host
    nodes = {node["id"]: node for node in host["nodes"]}
    unknown = sorted(set(cpus) - set(nodes))
    if unknown:
        raise WorkbenchError(f"lscpu: node {unknown[0]} is not among the nodes of numactl: {sorted(nodes)[:20]}")
    for number, node in nodes.items():
        listed = sorted(cpus.get(number, ()))
        if node["cpus"] and sorted(node["cpus"]) != listed:
            raise WorkbenchError(
                f"lscpu: node {number}: CPUs {listed[:8]}..., numactl has {sorted(node['cpus'])[:8]}..."
            )
        node["cpus"] = tuple(listed)
        if listed:
            node.pop("assumed", None)
            node["kind"] = "dram"
    host["assumed"] = [field for field in host["assumed"] if field != "cpus"]
    host["source"] = f"lscpu and {host['source']}"
    return host

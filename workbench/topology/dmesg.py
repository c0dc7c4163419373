"""A host from the lines a kernel writes at boot about SRAT, SLIT and HMAT.

Linux: ``drivers/acpi/numa/srat.c``, ``drivers/acpi/numa/hmat.c``, ``arch/x86/mm/srat.c``, ``mm/mm_init.c`` (``Early
memory node ranges``), ``arch/x86/kernel/smpboot.c`` (``.... node  #0, CPUs: #1 #2``). The kernel does not print the
SLIT; where no matrix is in the text, distances are what Linux takes without one, and named as assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import WorkbenchError
from workbench.limits import MAX_CPUS, MAX_NUMNODES
from workbench.topology.common import Described, default_distances, lines_of, mark_memory_only, page_bytes
from workbench.topology.memory_kinds import kinds_by_figures

_CPU = re.compile(
    r"SRAT: PXM ([0-9]{1,9}) -> (?:APIC|X2APIC|MPIDR|ACPI_ID|.{0,12}) ?"
    r"(0x[0-9a-f]{1,16}|[0-9]{1,9}) -> Node ([0-9]{1,9})"
)
_MEMORY = re.compile(
    r"SRAT: Node ([0-9]{1,9}) PXM ([0-9]{1,9}) \[?(?:mem )?(?:0x)?([0-9a-f]{1,16})-(?:0x)?([0-9a-f]{1,16})\]?(.{0,40})"
)
_RANGE = re.compile(r"^ {0,4}node {1,5}([0-9]{1,9}): (?:\[mem )?0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\]?")
_BOOTED = re.compile(r"node {1,4}#([0-9]{1,9}), CPUs: {1,9}(#.{1,9999})")
_LOCALITY = re.compile(r"Locality: Flags:([0-9a-f]{1,8}) Type:(Access|Read|Write) (Latency|Bandwidth) ")
_ENTRY = re.compile(r"Initiator-Target\[([0-9]{1,9})-([0-9]{1,9})\]:([0-9]{1,15}) ?(nsec|MB/s|)")
_STAMP = re.compile(
    r"^(?:[>|#]{1,9} ?)?(?:<[0-9]{1,3}>)?(?:[^\[\]]{0,99}kernel: ?)?"
    r"(?:\[ {0,12}[0-9]{1,12}\.[0-9]{1,9}\](?:\[ {0,8}[TC][0-9]{1,8}\])? ?)?"
)
_WAYS = {"Access": ("read", "write"), "Read": ("read",), "Write": ("write",)}


@dataclass
class _Log:
    node_of_pxm: dict[int, int] = field(default_factory=dict)
    srat: dict[int, list[tuple[int, int, str, int]]] = field(default_factory=dict)
    """Ranges of a node: the first byte, the end, what is said of it, and the line."""
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    processors: dict[int, list[str]] = field(default_factory=dict)
    booted: dict[int, list[int]] = field(default_factory=dict)
    figures: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    earlier: list[list[int]] = field(default_factory=list)
    matrix_line: int = 0


def is_kernel_log(text: str) -> bool:
    """Whether a text has lines of the SRAT in it."""
    return "SRAT: " in text


def read_dmesg(text: str) -> Described:
    """The mapping of a host from a kernel log."""
    log = _Log()
    kind: tuple[tuple[str, ...], str] | None = None
    slit = False
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > 20_000:
            raise WorkbenchError(f"dmesg: {len(line)} characters in one line; a kernel log is expected", number)
        plain = line[_STAMP.match(line).end() :]  # type: ignore[union-attr]  # matches nothing as well
        if found := _CPU.search(plain):
            node = _node(found[3], number)
            log.node_of_pxm[int(found[1])] = node
            log.processors.setdefault(node, []).append(found[2])
        elif found := _MEMORY.search(plain):
            _add_memory(log, found, number)
        elif found := _RANGE.match(plain):
            first, last = int(found[2], 16), int(found[3], 16)
            log.ranges.setdefault(_node(found[1], number), []).append((first, last + last % 2))
        elif found := _BOOTED.search(plain):
            numbers = [word.lstrip("#") for word in found[2].split() if word.startswith("#")]
            log.booted.setdefault(_node(found[1], number), []).extend(
                int(word) for word in numbers if word.isascii() and word.isdecimal() and len(word) < 6
            )
        elif found := _LOCALITY.search(plain):
            # The hierarchy of the flags: 0 is memory, 1 to 3 are the caches before it.
            kind = (_WAYS[found[2]], found[3].lower()) if not int(found[1], 16) & 0xF else None
        elif kind and (found := _ENTRY.search(plain)):
            entry = log.figures.setdefault((int(found[1]), int(found[2])), {})
            for way in kind[0]:
                entry[f"{way}_{kind[1]}"] = float(found[3])
        slit = _slit_row(log, plain, slit, number)
    return _host(log)


def _node(word: str, number: int) -> int:
    node = int(word)
    if node >= MAX_NUMNODES:
        raise WorkbenchError(f"dmesg: node {node}; ids are 0 to {MAX_NUMNODES - 1}", number)
    return node


def _add_memory(log: _Log, found: re.Match[str], number: int) -> None:
    node, first, last = _node(found[1], number), int(found[3], 16), int(found[4], 16)
    if last < first:
        raise WorkbenchError(
            f"dmesg: range {found[3]}-{found[4]} ends before it starts; first-last is expected", number
        )
    log.node_of_pxm[int(found[2])] = node
    # Kernels before 3.x print the end, later ones the last byte.
    log.srat.setdefault(node, []).append((first, last + last % 2, found[5], number))


def _slit_row(log: _Log, plain: str, inside: bool, number: int) -> bool:
    """Rows of a matrix under a line that names the SLIT, as some firmware tools and old kernels print it."""
    if "SLIT" in plain and ("distances" in plain or plain.rstrip().endswith(":")):
        log.earlier, log.rows, log.matrix_line = log.rows or log.earlier, [], number
        return True
    if not inside:
        return False
    words = plain.split()
    values = words[1:] if words and words[0].endswith(":") else words
    if not values or not all(word.isascii() and word.isdecimal() and len(word) < 4 for word in values):
        return False
    log.rows.append([int(word) for word in values])
    return True


# ----------------------------------------------------------------------------------------------------------- host


def _host(log: _Log) -> Described:
    ids = sorted({*log.srat, *log.ranges, *log.processors})
    if not ids or not (log.srat or log.ranges):
        raise WorkbenchError("dmesg: no line 'SRAT: Node N PXM N [mem ...]'; the log of the boot is expected")
    if log.earlier and log.rows and log.earlier != log.rows:
        said = "dmesg: two matrices of distances differ; the log of one boot is expected"
        raise WorkbenchError(said, log.matrix_line)
    _refuse_overlaps(log.srat)
    nodes: list[dict[str, Any]] = []
    assumed: list[str] = []
    cpus = _cpus(log, ids, assumed)
    for node in ids:
        srat = [part for part in log.srat.get(node, []) if "hotplug" not in part[2]]
        parts = (
            log.ranges.get(node, []) if log.ranges else [(part[0], part[1]) for part in srat or log.srat.get(node, [])]
        )
        entry: dict[str, Any] = {"id": node, "memory_bytes": page_bytes(_covered(parts)), "cpus": cpus[node]}
        if any("non-volatile" in part[2] for part in srat):
            entry["kind"] = "nvm"
        nodes.append(entry)
    # What the kernel keeps for itself is not taken off.
    assumed.append("memory")
    distances = default_distances(len(ids))
    if len(log.rows) == len(ids) and all(len(row) == len(ids) for row in log.rows):
        distances = log.rows
    elif len(ids) > 1:
        assumed.append("distances")
    access = [
        {
            "initiator": log.node_of_pxm[initiator],
            "target": log.node_of_pxm[target],
            **{k: v for k, v in entry.items() if v},
        }
        for (initiator, target), entry in sorted(log.figures.items())
        if {initiator, target} <= set(log.node_of_pxm) and any(entry.values())
    ]
    by_figures = kinds_by_figures(nodes, access)
    mark_memory_only(
        nodes, {node["id"]: ("nvm", True) for node in nodes if node.get("kind") == "nvm"} | by_figures, set()
    )
    fields = {"name": "dmesg", "nodes": nodes, "distances": distances, "access": access, "assumed": assumed,
              "source": "kernel log (SRAT, HMAT)"}  # fmt: skip
    lines = [log.srat[node][0][3] if node in log.srat else 0 for node in ids]
    return Described(fields, lines_of(lines, [log.matrix_line] * len(ids)))


def _refuse_overlaps(srat: dict[int, list[tuple[int, int, str, int]]]) -> None:
    """Memory is of one node; the kernel takes no SRAT at all else (arch/x86/mm/srat.c, mm/numa_memblks.c: conflicting_memblk)."""
    parts = sorted((first, last, node, line) for node, ranges in srat.items() for first, last, _, line in ranges)
    reached, owner = 0, -1
    for first, last, node, line in parts:
        if first < reached and node != owner:
            raise WorkbenchError(f"dmesg: SRAT: {first:#x} is memory of node {owner} and of node {node}", line)
        if last > reached:
            reached, owner = last, node


def _covered(parts: list[tuple[int, int]]) -> int:
    """Bytes in at least one of some ranges."""
    total, reached = 0, 0
    for first, last in sorted(parts):
        total += max(0, last - max(first, reached))
        reached = max(reached, last)
    return total


def _cpus(log: _Log, ids: list[int], assumed: list[str]) -> dict[int, list[int]]:
    """CPU numbers from the lines of the processors' start; else counted in the order of the SRAT, which is assumed."""
    if log.booted:
        numbers = {node: sorted(set(log.booted.get(node, []))) for node in ids}
        started = {cpu for cpus in numbers.values() for cpu in cpus}
        first = min(log.processors or ids)
        if 0 not in started:  # the boot CPU is running already and is not in the list
            numbers[first] = [0, *numbers[first]]
        if all(cpu < MAX_CPUS for cpus in numbers.values() for cpu in cpus):
            return numbers
    if log.processors:
        assumed.append("cpus")
    out: dict[int, list[int]] = {}
    count = 0
    for node in ids:
        here = len(dict.fromkeys(log.processors.get(node, [])))
        out[node] = list(range(count, count + here))
        count += here
    return out

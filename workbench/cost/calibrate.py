"""Profiles from what other benchmarks print: curves of Mess (``memory_curves.csv``) and the text of Intel MLC.

Mess measures one memory from one socket: its curves become those of the memory. MLC measures all nodes at once; in its
loaded latencies every node's CPUs read their own memory, so the total bandwidth is divided evenly by the nodes with
CPUs, and so are the peaks by mix of reads and writes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.bitmap_lists import is_whole
from workbench.cost.profile import Profile, from_mapping
from workbench.errors import WorkbenchError, of_file
from workbench.files import read_file
from workbench.limits import PROFILE_BYTES
from workbench.units import parse_number

READ_COLUMNS = ("read_percent", "read_pct_rounded", "rd_percentage", "read_pct", "read_ratio")
BANDWIDTH_COLUMNS = ("bandwidth_gb_per_s", "bandwidth_smooth", "bandwidth_mean", "bandwidth")
LATENCY_COLUMNS = ("latency_ns", "latency_smooth", "latency_mean", "latency")
"""Columns of Mess's files by preference: smoothed before averaged before raw. Bandwidths are GB/s."""
MIXES_OF_MLC = {"ALL Reads": 100.0, "3:1 Reads-Writes": 75.0, "2:1 Reads-Writes": 200.0 / 3.0, "1:1 Reads-Writes": 50.0}
"""Share of reads in per cent, as seen by the memory controller, of MLC's kinds of traffic."""
LEAST_STEP = 0.005
"""Points of a curve that differ by less than this part of its peak in bandwidth say the same."""


def calibrate(path: Path, name: str | None = None, kind: str = "dram") -> Profile:
    """A profile from a file: CSV of Mess or text of MLC, told apart by what is in it.

    Parameters
    ----------
    name : of the profile; that of the file if left out
    kind : of the memory that Mess's curves describe, or of MLC's nodes that have CPUs
    """
    try:
        text = read_file(path, PROFILE_BYTES, "calibrate").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WorkbenchError(f"calibrate: {path} is not text") from None
    name = name or path.stem
    with of_file(path.name):
        if re.search(r"Memory Latency Checker|Measuring (idle|loaded|peak|memory|maximum)", text, re.IGNORECASE):
            return from_mlc(text, name, kind)
        return from_mess(text, name, kind)


def from_mess(text: str, name: str, kind: str = "dram") -> Profile:
    """A profile of one memory from the curves of Mess."""
    try:
        return _from_table(csv.DictReader(io.StringIO(text)), name, kind)
    except csv.Error as error:
        raise WorkbenchError(f"calibrate: no CSV: {error}") from None


def _from_table(reader: csv.DictReader[str], name: str, kind: str) -> Profile:
    columns = [str(column).strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    chosen = []
    for what, known in (
        ("share of reads", READ_COLUMNS),
        ("bandwidth", BANDWIDTH_COLUMNS),
        ("latency", LATENCY_COLUMNS),
    ):
        found = [column for column in known if column in columns]
        if not found:
            raise WorkbenchError(
                f"calibrate: neither output of MLC nor a CSV with a column for {what} ({', '.join(known)})", 1
            )
        chosen.append(found[0])
    curves: dict[float, list[tuple[float, float]]] = {}
    for line, row in enumerate(reader, 2):
        try:
            share, speed, latency = (parse_number(row[column].strip()) for column in chosen)
        except (AttributeError, ValueError):
            raise WorkbenchError(f"calibrate: {', '.join(chosen)} must be numbers", line) from None
        if not (np.isfinite((share, speed, latency)).all() and speed >= 0 and latency > 0):
            raise WorkbenchError(
                f"calibrate: {speed:g} GB/s at {latency:g} ns; bandwidths are numbers from 0 on, latencies above 0",
                line,
            )
        curves.setdefault(round(share, 2), []).append((1000.0 * speed, latency))
    if curves and 0.0 < max(curves) <= 1.0:  # a part, not per cent
        curves = {round(100.0 * share, 2): points for share, points in curves.items()}
    few = {share: points for share, points in curves.items() if len(points) < 2}
    for share in few:  # a single point is no curve
        del curves[share]
    if not curves:
        raise WorkbenchError("calibrate: no share of reads has two points or more; a curve needs them")
    return from_mapping(
        {
            "name": name,
            "source": f"Mess benchmark: {', '.join(chosen)} of {name}",
            "memories": [{"kind": kind, "curves": {share: _ordered(points) for share, points in curves.items()}}],
            "not_measured": [f"one point only at {share:g} % reads" for share in sorted(few)],
        },
        name,
    )


def _ordered(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points in the order of growing traffic: as they are, or turned round if they begin with the most."""
    return list(points) if points[0][0] <= points[-1][0] else list(reversed(points))


def from_mlc(text: str, name: str, kind: str = "dram") -> Profile:
    """A profile of a machine from what ``mlc`` prints: latency and bandwidth matrices, peaks by mix, loaded latencies."""
    lines = [re.sub(r"^(?:[>|]\s?)+", "", line.strip()).strip() for line in text.splitlines()]
    latency = _matrix(lines, r"Measuring idle latencies")
    bandwidth = _matrix(lines, r"Measuring Memory Bandwidths between nodes")
    peaks = _peaks(lines)
    loaded = _loaded(lines)
    single = re.search(r"Each iteration took [0-9.]+ \w+ (?:frequency )?clocks \(\s*([0-9.]+)\s*ns\)", text)
    if not latency and single:
        latency = {0: {0: _number(single.group(1), text.count("\n", 0, single.start()) + 1)}}
    if not (latency or bandwidth or peaks or loaded):
        raise WorkbenchError("calibrate: MLC's text has no matrix, no peaks and no loaded latencies")
    initiators = sorted(set(latency) | set(bandwidth)) or [0]
    targets = sorted({t for rows in (latency, bandwidth) for row in rows.values() for t in row} | set(initiators))
    curves: dict[float, list[tuple[float, float]]] = {}
    if loaded:
        curves[100.0] = _thinned(
            [(speed / len(initiators), ns) for speed, ns, _ in sorted(loaded, key=lambda p: -p[2])]
        )
    total = peaks.get(100.0)
    memories: list[dict[str, Any]] = []
    for target in targets:
        entry: dict[str, Any] = {"kind": kind if target in initiators else "cxl", "nodes": [target]}
        near = min((row[target] for row in latency.values() if target in row), default=None)
        if near is not None:
            entry["idle_latency"] = near
        fast = max((row[target] for row in bandwidth.values() if target in row), default=None)
        if fast is not None:
            entry["bandwidth"] = fast
        if target in initiators and curves:
            entry["curves"] = curves
        if target in initiators and peaks:
            # Peaks are of all nodes together; a node's own figure for reads alone, where known, sets the scale.
            scale = 1.0 / len(initiators) if fast is None or not total else fast / total
            entry["peaks"] = {share: value * scale for share, value in peaks.items()}
        if len(entry) > 2:
            memories.append(entry)
    links = []
    for source in initiators:
        for target in targets:
            if source == target:
                continue
            link: dict[str, Any] = {"initiator": source, "target": target}
            if target in latency.get(source, {}):
                link["idle_latency"] = latency[source][target]
            if target in bandwidth.get(source, {}):
                link["bandwidth"] = bandwidth[source][target]
            if len(link) > 2:
                links.append(link)
    missing = [
        what
        for what, found in (
            ("latency matrix", latency), ("bandwidth matrix", bandwidth), ("peaks by mix", peaks),
            ("loaded latencies", loaded),
        )
        if not found
    ]  # fmt: skip
    return from_mapping(
        {
            "name": name, "source": f"Intel Memory Latency Checker: output {name}", "memories": memories, "links": links,
            "not_measured": [f"{what}: not in the output" for what in missing],
        },
        name,
    )  # fmt: skip


def _section(lines: Sequence[str], heading: str) -> Iterator[tuple[int, str]]:
    """Lines after a heading, up to the next one, with their numbers."""
    inside = False
    for number, line in enumerate(lines, 1):
        if re.match(heading, line):
            inside = True
        elif inside and (line.startswith("Measuring ") or line.startswith("$") or line.startswith("Command line")):
            return
        elif inside:
            yield number, line


def _numeric(word: str) -> bool:
    """Whether a word has digits of any script: it is a number, or what should be one."""
    return any(character.isdigit() for character in word)


def _matrix(lines: Sequence[str], heading: str) -> dict[int, dict[int, float]]:
    """A matrix by initiator and target node; a cell that was not measured (``-``) is left out.

    Old versions name nodes by socket. What was printed to a serial console or copied from a mail has empty lines between rows.
    """
    columns: list[int] = []
    out: dict[int, dict[int, float]] = {}
    for number, line in _section(lines, heading):
        words = line.split()
        nodes = re.fullmatch(r"(?:numa node|socket)\s+(\S.*)", line, re.IGNORECASE)
        if nodes and all(map(_numeric, nodes[1].split())):
            if not all(map(is_whole, nodes[1].split())):
                raise WorkbenchError(f"calibrate: {line[:60]!r} names nodes by what is no number", number)
            columns = [int(word) for word in nodes[1].split()]
            if len(set(columns)) < len(columns):
                raise WorkbenchError(f"calibrate: {line[:60]!r} names a node twice", number)
        elif columns and len(words) >= 2 and (is_whole(words[0]) or _is_row(words, columns)):
            if not is_whole(words[0]) or int(words[0]) in out or len(words) - 1 != len(columns):
                said = f"calibrate: {line[:60]!r} is no row for {len(columns)} nodes, or one that was there before"
                raise WorkbenchError(said, number)
            row = {}
            for column, word in zip(columns, words[1:], strict=True):
                if word == "-":
                    continue
                try:
                    row[column] = parse_number(word)
                except ValueError:
                    row[column] = math.nan
                if not 0 < row[column] < math.inf:
                    said = f"calibrate: {word[:30]!r} from node {words[0]} to node {column} is no number above 0"
                    raise WorkbenchError(said, number)
            out[int(words[0])] = row
        elif columns and out and line:
            break
    return {node: row for node, row in out.items() if row}


def _is_row(words: Sequence[str], columns: Sequence[int]) -> bool:
    return len(words) == 1 + len(columns) and _numeric(words[0])


def _peaks(lines: Sequence[str]) -> dict[float, float]:
    """Highest MB/s of all nodes together by share of reads in per cent."""
    found: dict[float, float] = {}
    for heading in (r"Measuring Peak Injection Memory Bandwidths", r"Measuring Maximum Memory Bandwidths"):
        for number, line in _section(lines, heading):
            for text, share in MIXES_OF_MLC.items():
                match = re.match(re.escape(text) + r"(?:\s*:\s*|\s+)(\S+)$", line)
                if match and match[1] != "-":
                    found[share] = max(found.get(share, 0.0), _number(match[1], number))
    return {share: speed for share, speed in found.items() if speed > 0}


def _number(text: str, line: int) -> float:
    try:
        return parse_number(text)
    except ValueError:
        raise WorkbenchError(f"calibrate: {text[:30]!r} is no number", line) from None


def _loaded(lines: Sequence[str]) -> list[tuple[float, float, float]]:
    """(MB/s of all nodes, ns, injected delay) of the loaded latencies."""
    out = []
    for number, line in _section(lines, r"Measuring Loaded Latencies"):
        words = line.split()
        if len(words) == 3 and _numeric(words[0]):
            try:
                out.append((parse_number(words[2]), parse_number(words[1]), parse_number(words[0])))
            except ValueError:
                said = f"calibrate: loaded latencies: {line[:60]!r} is no delay, ns and MB/s"
                raise WorkbenchError(said, number) from None
    return [point for point in out if np.isfinite(point).all() and point[0] > 0 and point[1] > 0]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points without those that repeat the load before: MLC's first delays all saturate."""
    peak = max(speed for speed, _ in points)
    kept: list[tuple[float, float]] = []
    for speed, ns in points:
        if not kept or speed > kept[-1][0] + LEAST_STEP * peak or speed == peak:
            kept.append((speed, ns))
    return kept

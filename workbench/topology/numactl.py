"""A host from the output of ``numactl --hardware``, as mails, logs and documents carry it.

numactl: ``numactl.c`` (``hardware``, ``print_node_cpus``, ``print_distances``). Quotes, comment signs, prompts and the
prefixes of logs are passed over; wrapped lines belong to the line they continue. Every line is looked at once, by its
words: the time follows the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from workbench.bitmap_lists import format_list, is_whole, parse_list
from workbench.errors import WorkbenchError
from workbench.limits import MAX_CPUS, MAX_NUMNODES
from workbench.topology.common import Described, default_distances, lines_of, lowest_node_keeps, mark_memory_only

_QUOTES = set(">|#*/;:%!-+.")
_FIELDS = ("cpus", "size", "free")
_PROMPTS = ("$", "#", "%", ">")
"""What a shell's prompt ends with."""
NO_DISTANCES = "No distance information available"


@dataclass
class _Text:
    """What has been read so far, and where."""

    nodes: dict[int, dict[str, Any]] = field(default_factory=dict)
    lines: dict[tuple[int, str], int] = field(default_factory=dict)
    columns: list[int] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)
    row_lines: dict[int, int] = field(default_factory=dict)
    whole_rows: int = 0
    last: int = 0
    """The last line that there is."""
    stated: tuple[int, ...] | None = None
    matrix_line: int = 0
    no_distances: bool = False


def read_numactl(text: str) -> Described:
    """The mapping of a host from ``node N cpus/size/free`` lines and the matrix. Errors quote the line."""
    read = _Text()
    open_list: list[int] | None = None  # where a line of nothing but numbers goes on
    prefix: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        read.last = number
        at = _key(words)
        if at is not None:
            prefix = words[:at]
            open_list = _node_line(read, number, line, words[at:])
        elif _says(words, "node", "distances:"):
            _refuse_second_matrix(read, number)
            prefix, open_list = words[:-2], None
        elif read.matrix_line and not _finished(read):
            open_list = _matrix_line(read, number, line, words, open_list, prefix)
        elif read.matrix_line and len(words) > 1 and words[0].endswith(":") and _row_again(read, words):
            node = int(words[0][:-1])
            raise WorkbenchError(
                f"numactl: line {read.row_lines[node]} and line {number} both give the distances of node {node}"
            )
        elif NO_DISTANCES in line:
            read.no_distances, open_list = True, None
        elif open_list is not None and not read.matrix_line:
            if not _is_prefix(words, prefix):
                open_list.extend(_continued(read, number, line, words, prefix))
        elif len(words) >= 4 and "available:" in words:
            stated = _available(words[words.index("available:") :], number)
            if read.stated not in (None, stated):
                raise WorkbenchError("numactl: other nodes are available than an earlier line says", number)
            read.stated = stated
        elif read.nodes and not read.matrix_line and not _is_prefix(words, prefix):
            raise WorkbenchError(
                f"numactl: {line.strip()[:60]!r} stands between the nodes; "
                "'node N cpus:', 'node N size:' or 'node distances:' is expected",
                number,
            )
    return _host(read)


# ----------------------------------------------------------------------------------------------------- node lines


def _row_again(read: _Text, words: list[str]) -> bool:
    """Whether a line after the matrix is a row that was there."""
    return (
        is_whole(words[0][:-1])
        and int(words[0][:-1]) in read.rows
        and len(words) == 1 + len(read.columns)
        and all(map(is_whole, words[1:]))
    )


def _key(words: list[str]) -> int | None:
    """Where ``node N cpus:`` starts in a line."""
    for at in range(min(len(words) - 2, 16)):
        if words[at] == "node" and is_whole(words[at + 1]) and words[at + 2].rstrip(":") in _FIELDS:
            return at if words[at + 2].endswith(":") else None
    return None


def _says(words: list[str], *end: str) -> bool:
    return tuple(words[-len(end) :]) == end


def _node_line(read: _Text, number: int, line: str, words: list[str]) -> list[int] | None:
    if read.matrix_line:
        raise WorkbenchError(
            f"numactl: {line.strip()[:60]!r} comes after the distances of line {read.matrix_line}; "
            "one machine is expected",
            number,
        )
    node, name, values = int(words[1]), words[2].rstrip(":"), words[3:]
    if node >= MAX_NUMNODES:
        raise WorkbenchError(f"numactl: node {node}; ids are 0 to {MAX_NUMNODES - 1}", number)
    if (node, name) in read.lines:
        raise WorkbenchError(
            f"numactl: line {read.lines[node, name]} and line {number} both give the {name} of node {node}"
        )
    read.lines[node, name] = number
    entry = read.nodes.setdefault(node, {"id": node, "memory_bytes": 0})
    if name == "cpus":
        entry["cpus"] = _cpus(node, number, values)
        return entry["cpus"]
    if len(values) != 2 or values[1] not in ("MB", "MiB") or not is_whole(values[0]):
        raise WorkbenchError(
            f"numactl: node {node} {name}: {' '.join(values)[:40]!r} is not a size in MB",
            number,
        )
    entry["memory_bytes" if name == "size" else "free_bytes"] = int(values[0]) << 20
    return None


def _cpus(node: int, number: int, values: list[str]) -> list[int]:
    """Numbers, or the ranges and the count that ``--cpu-compress`` writes: ``0-15, 32-47 (32)``."""
    text = " ".join(values)
    listed, _, count = text.partition("(")
    try:
        cpus = list(parse_list(",".join(word.strip(",") for word in listed.split())))
    except ValueError:
        raise WorkbenchError(f"numactl: node {node} cpus: {text[:40]!r} is not a list of CPUs", number) from None
    if count and count.strip(") ") != str(len(cpus)):
        raise WorkbenchError(
            f"numactl: node {node} cpus: {len(cpus)} are listed, ({count[:20]} is stated",
            number,
        )
    return cpus


def _continued(read: _Text, number: int, line: str, words: list[str], prefix: list[str]) -> list[int]:
    """The numbers of a line that goes on with the CPUs of the line before."""
    numbers = _trailing_numbers(words)
    if not numbers or not _is_prefix(words[: len(words) - len(numbers)], prefix) or len(numbers) > MAX_CPUS:
        raise WorkbenchError(
            f"numactl: {line.strip()[:60]!r} stands between the nodes; more CPUs or 'node N' is expected",
            number,
        )
    return [int(word) for word in numbers]


def _trailing_numbers(words: list[str]) -> list[str]:
    start = len(words)
    while start and is_whole(words[start - 1]):
        start -= 1
    return words[start:]


def _is_prefix(words: list[str], prefix: list[str]) -> bool:
    """Whether words are what stands before every line: quotes, comment signs, or a log's prefix but for its digits."""
    return not words or set("".join(words)) <= _QUOTES or _shape(words) == _shape(prefix)


def _shape(words: list[str]) -> str:
    return re.sub("[0-9]+", "0", "".join(words))


def _available(words: list[str], number: int) -> tuple[int, ...]:
    """The ids of ``available: 3 nodes (0-1,4)``."""
    try:
        ids = parse_list(words[3].strip("()")) if len(words) > 3 else ()
    except ValueError:
        ids = ()
    if not ids or not is_whole(words[1]):
        raise WorkbenchError(f"numactl: {' '.join(words)[:60]!r} is not such as 'available: 2 nodes (0-1)'", number)
    if int(words[1]) != len(ids):
        raise WorkbenchError(f"numactl: {' '.join(words)[:60]!r} lists {len(ids)} nodes", number)
    return ids


# --------------------------------------------------------------------------------------------------------- matrix


def _refuse_second_matrix(read: _Text, number: int) -> None:
    if read.matrix_line:
        raise WorkbenchError(f"numactl: line {read.matrix_line} and line {number} both say 'node distances:'")
    read.matrix_line = number


def _finished(read: _Text) -> bool:
    return read.whole_rows == len(read.columns) >= len(read.nodes)


def _without_prompt(read: _Text, words: list[str]) -> list[str]:
    """The last row alone, where the shell's next prompt was copied with it: ``1:  21  10 user@host:~$``."""
    if read.whole_rows + 1 != len(read.columns):
        return words
    for at, word in enumerate(words):
        end = at + 1 + len(read.columns)
        if word.endswith(":") and is_whole(word[:-1]):
            row, last = words[at + 1 : end - 1], words[end - 1 : end]
            digits = len(last[0]) - len(last[0].lstrip("0123456789")) if last else 0
            rest = [last[0][digits:], *words[end:]] if digits else []
            if all(map(is_whole, row)) and any(part.endswith(_PROMPTS) for part in rest):
                return [*words[: end - 1], last[0][:digits]]
            break
    return words


def _matrix_line(
    read: _Text, number: int, line: str, words: list[str], open_list: list[int] | None, prefix: list[str]
) -> list[int] | None:
    """The header, a row, or the rest of a wrapped one. Anything else ends the matrix, which is then not whole."""
    words = _without_prompt(read, words)
    numbers = _trailing_numbers(words)
    head = words[: len(words) - len(numbers)]
    if not numbers and _is_prefix(words, prefix):
        return open_list
    values = [int(word) for word in numbers]
    if numbers and head and head[-1] == "node":
        read.columns.extend(values)
        return read.columns
    row: list[int] | None
    label = head[-1].rstrip(":") if head and head[-1].endswith(":") else ""
    if numbers and is_whole(label):
        node = int(label)
        if node in read.rows and len(read.rows[node]) >= len(read.columns):
            raise WorkbenchError(
                f"numactl: line {read.row_lines[node]} and line {number} both give the distances of node {node}"
            )
        read.row_lines.setdefault(node, number)
        row = read.rows.setdefault(node, [])
    else:
        row = open_list if numbers and _is_prefix(head, prefix) else None
    if row is not None:
        row.extend(values)
        if row is not read.columns and len(row) >= len(read.columns):
            read.whole_rows += 1
        return row
    raise WorkbenchError(
        f"numactl: {line.strip()[:60]!r} is no row of {len(read.nodes)} distances: 'N: distance ...'",
        number,
    )


# ----------------------------------------------------------------------------------------------------------- host


def _host(read: _Text) -> Described:
    ids = sorted(read.nodes)
    if not ids:
        raise WorkbenchError("numactl: no 'node N size:' line; this is not the output of numactl --hardware")
    assumed: list[str] = []
    for node in ids:
        if (node, "size") not in read.lines:
            line = max(read.lines.get((node, name), 0) for name in _FIELDS)
            raise WorkbenchError(f"numactl: node {node} has no 'size:' line; the text is truncated", line)
    with_cpus = [node for node in ids if (node, "cpus") in read.lines]
    if not with_cpus:  # numactl before 2.0.3 did not list them
        assumed.append("cpus")
    elif len(with_cpus) < len(ids):
        missing = min(set(ids) - set(with_cpus))
        line = read.lines[missing, "size"]
        raise WorkbenchError(f"numactl: node {missing} has no 'cpus:' line; the text is truncated", line)
    distances = _matrix(read, ids, assumed)
    nodes = [read.nodes[node] for node in ids]
    for entry in nodes:
        entry.setdefault("cpus", [])
        if "free_bytes" in entry:
            entry["free_bytes"] = min(entry["free_bytes"], entry["memory_bytes"])
    if with_cpus:
        mark_memory_only(nodes, {}, set())
    lowest_node_keeps(nodes)
    hidden = sorted(set(read.columns) - set(ids))
    fields = {
        "name": "numactl",
        "note": f"without nodes {format_list(hidden)}: numactl's caller may not use them" if hidden else None,
        "nodes": nodes,
        "distances": distances,
        "assumed": assumed,
        "source": "numactl --hardware",
    }
    lines = [read.lines[node, "size"] for node in ids]
    return Described(fields, lines_of(lines, [read.row_lines.get(node, 0) for node in ids]))


def _matrix(read: _Text, ids: list[int], assumed: list[str]) -> list[list[int]]:
    if not read.matrix_line:
        if not read.no_distances and not (len(ids) == 1 and read.stated == tuple(ids)):
            raise WorkbenchError("numactl: no 'node distances:'; the text is truncated", read.last)
        if read.stated is not None and not set(read.stated) <= set(ids):
            raise WorkbenchError(
                f"numactl: nodes {list(read.stated)[:20]} are available, lines are there for {ids[:20]}", read.last
            )
        if len(ids) > 1:
            assumed.append("distances")
        return default_distances(len(ids))
    if sorted(read.columns) != ids or sorted(read.rows) != ids:
        shown = read.columns if sorted(read.columns) != ids else sorted(read.rows)
        # Lines are there for the nodes that the caller may allocate on, the matrix has all.
        if not (
            set(ids) < set(read.columns) == set(read.rows) and read.stated is not None and set(read.stated) == set(ids)
        ):
            said = f"numactl: distances are given for nodes {shown[:20]}, memory for {ids[:20]}"
            raise WorkbenchError(said, read.matrix_line)
    for node in ids:
        if len(read.rows[node]) != len(read.columns):
            raise WorkbenchError(
                f"numactl: node {node} has {len(read.rows[node])} distances for {len(read.columns)} nodes; "
                "the matrix must be square",
                read.row_lines[node],
            )
    position = {node: index for index, node in enumerate(read.columns)}
    return [[read.rows[a][position[b]] for b in ids] for a in ids]

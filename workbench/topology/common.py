"""What every reader of a host does alike: pages, default distances, CPUs of several nodes, memory without CPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.units import PAGE_SIZE

LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20
"""include/linux/topology.h; what ``__node_distance`` (mm/numa_memblks.c) answers where there is no SLIT."""


class Described(dict[str, Any]):
    """A host as a reader found it; ``line_of`` tells the line of the text where a field (its keys) was read."""

    def __init__(self, fields: Mapping[str, Any], line_of: Callable[[Sequence[str]], int]) -> None:
        super().__init__(fields)
        self.line_of = line_of

    def called(self, name: str) -> Described:
        """The same under another name."""
        return Described({**self, "name": name}, self.line_of)


def lines_of(nodes: Sequence[int], distances: Sequence[int]) -> Callable[[Sequence[str]], int]:
    """For :class:`Described`: the lines of the nodes and of the rows of the matrix, both in the order of the host."""

    def line_of(keys: Sequence[str]) -> int:
        known = {"nodes": nodes, "distances": distances}.get(keys[0] if keys else "", ())
        at = int(keys[1]) if len(keys) > 1 and keys[1].isdecimal() else 0
        return known[at] if at < len(known) else 0

    return line_of


def page_bytes(size: int) -> int:
    """Whole pages of a size in bytes."""
    return size // PAGE_SIZE * PAGE_SIZE


def default_distances(count: int) -> list[list[int]]:
    """The matrix that Linux takes without a SLIT."""
    return [[LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in range(count)] for i in range(count)]


def lowest_node_keeps(nodes: list[dict[str, Any]]) -> None:
    """CPUs that several nodes list stay on the lowest: with ``numa=fake`` that is what ``numa_node_id()`` answers.

    The others name ``cpus`` in ``assumed``.
    Linux: ``arch/x86/mm/numa.c`` and ``drivers/base/arch_numa.c``: ``numa_emu_update_cpu_to_node``.
    """
    seen: set[int] = set()
    for node in sorted(nodes, key=lambda node: int(node["id"])):
        listed = dict.fromkeys(node["cpus"])
        node["cpus"] = tuple(cpu for cpu in listed if cpu not in seen)
        if len(node["cpus"]) < len(listed):
            node["assumed"] = [*node.get("assumed", []), "cpus"]
        seen.update(node["cpus"])


def mark_memory_only(
    nodes: list[dict[str, Any]], kinds: Mapping[int, tuple[str, bool]], known_movable: set[int]
) -> None:
    """Give nodes with memory and no CPUs their kind, and name in ``assumed`` what the source does not say of them.

    To be called while ``cpus`` still is what the source lists: a node that shares its CPUs is not memory alone.
    """
    for node in nodes:
        if node["cpus"] or not node["memory_bytes"]:
            continue
        kind, sure = kinds.get(node["id"], (node.get("kind", "dram"), False))
        node["kind"] = kind
        guessed = [] if sure else ["kind"]
        if node["id"] not in known_movable:
            guessed.append("movable")
        if guessed:
            node["assumed"] = [*node.get("assumed", []), *guessed]


def label(text: str) -> str:
    """A name without control characters, of a length that fits."""
    return "".join(character for character in text if character.isprintable()).strip()[:200] or "host"

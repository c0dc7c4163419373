"""What every reader of a host does alike: pages, default distances, CPUs of several nodes, memory without CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.units import PAGE_SIZE

LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20
"""include/linux/topology.h; what ``__node_distance`` (mm/numa_memblks.c) answers where there is no SLIT."""


def page_bytes(size: int) -> int:
    """Whole pages of a size in bytes."""
    return size // PAGE_SIZE * PAGE_SIZE


def default_distances(count: int) -> list[list[int]]:
    """The matrix that Linux takes without a SLIT."""
    return [[LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in range(count)] for i in range(count)]


def lowest_node_keeps(nodes: list[dict[str, Any]]) -> None:
    """CPUs that several nodes list stay on the lowest: with ``numa=fake`` that is what ``numa_node_id()`` answers.

    Linux: ``arch/x86/mm/numa.c`` and ``drivers/base/arch_numa.c``: ``numa_emu_update_cpu_to_node``.
    """
    seen: set[int] = set()
    for node in sorted(nodes, key=lambda node: int(node["id"])):
        node["cpus"] = tuple(cpu for cpu in dict.fromkeys(node["cpus"]) if cpu not in seen)
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
            node["assumed"] = guessed


def label(text: str) -> str:
    """A name without control characters, of a length that fits."""
    return "".join(character for character in text if character.isprintable()).strip()[:200] or "host"

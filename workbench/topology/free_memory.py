"""What is free on a host now: zones, free blocks and huge page pools as the kernel prints them.

Linux: ``mm/vmstat.c`` (``zoneinfo_show_print``, ``frag_show_print``, ``pagetypeinfo_showfree_print``), ``mm/hugetlb.c``
(``hstate_kobjs`` of a node). Counts are pages of the host's base page size and are turned into pages of 4 KiB.
"""

from __future__ import annotations

from typing import Any

from workbench.bitmap_lists import is_whole
from workbench.errors import WorkbenchError
from workbench.topology.trees import Tree
from workbench.units import PAGE_SIZE

_MARKS = {"min", "low", "high", "managed"}
ZONES = ("DMA", "DMA32", "Normal", "Movable")
MIGRATE_TYPES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")
_BASE_PAGES = (1, 4, 16)
"""Base pages of 4, 16 and 64 KiB in 4 KiB pages."""


def node_zones(tree: Tree, memory: dict[int, int]) -> dict[int, list[dict[str, Any]]]:
    """Zones of the nodes that have ``memory`` (bytes by id), as :class:`workbench.topology.host.Zone` takes them.

    Nodes are left out whose zones are not those of a 64-bit machine or do not add up to their memory.
    """
    text = tree.text("proc/zoneinfo")
    if text is None:
        return {}
    zones = _zoneinfo(text)
    blocks = _buddyinfo(tree.text("proc/buddyinfo") or "")
    types = _pagetypeinfo(tree.text("proc/pagetypeinfo") or "")
    out: dict[int, list[dict[str, Any]]] = {}
    for node, named in zones.items():
        present = {name: zone for name, zone in named.items() if zone.get("managed")}
        scale = _base_page(sum(zone["managed"] for zone in present.values()), memory.get(node, 0))
        if not present or scale is None or not set(present) <= set(ZONES):
            continue
        rows = []
        for name in (name for name in ZONES if name in present):
            zone = present[name]
            row: dict[str, Any] = {"name": name}
            row |= {field: zone.get(field, 0) * scale for field in ("managed", "free", "min", "low", "high")}
            row["free"] = min(row["free"], row["managed"])
            row["free_cma"] = min(zone.get("nr_free_cma", 0) * scale, row["free"])
            if scale == 1 and (node, name) in blocks:
                row["free_blocks"] = blocks[node, name]
            if scale == 1 and (node, name) in types:
                row["free_by_type"] = types[node, name]
            rows.append(row)
        out[node] = rows
    return out


def _base_page(managed: int, memory: int) -> int | None:
    for scale in _BASE_PAGES:
        if managed and abs(managed * scale * PAGE_SIZE - memory) <= memory >> 6:
            return scale
    return None


def _zoneinfo(text: str) -> dict[int, dict[str, dict[str, int]]]:
    out: dict[int, dict[str, dict[str, int]]] = {}
    zone: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) == 4 and words[0] == "Node" and words[2] == "zone":
            node = _whole(words[1].rstrip(","), "zoneinfo", number, line)
            named = out.setdefault(node, {})
            if words[3] in named:
                raise WorkbenchError(f"zoneinfo: line {number}: zone {words[3][:20]!r} of node {node} is there twice")
            zone = named.setdefault(words[3], {})
        elif len(words) == 3 and words[:2] == ["pages", "free"]:
            zone["free"] = _whole(words[2], "zoneinfo", number, line)
        elif len(words) == 2 and (words[0] in _MARKS or words[0] == "nr_free_cma"):
            zone[words[0]] = _whole(words[1], "zoneinfo", number, line)
    return out


def _buddyinfo(text: str) -> dict[tuple[int, str], tuple[int, ...]]:
    """``Node 0, zone   Normal    633   2147 ...``: free blocks of each order."""
    out: dict[tuple[int, str], tuple[int, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) > 4 and words[0] == "Node" and words[2] == "zone":
            key = _whole(words[1].rstrip(","), "buddyinfo", number, line), words[3]
            out[key] = tuple(_whole(word, "buddyinfo", number, line) for word in words[4:])
    return out


def _pagetypeinfo(text: str) -> dict[tuple[int, str], dict[str, tuple[int, ...]]]:
    """``Node    0, zone   Normal, type    Movable      0 ...``; the kernel stops counting at 100000 and writes ``>``."""
    out: dict[tuple[int, str], dict[str, tuple[int, ...]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) > 6 and words[0] == "Node" and words[4] == "type" and words[5] in MIGRATE_TYPES:
            key = _whole(words[1].rstrip(","), "pagetypeinfo", number, line), words[3].rstrip(",")
            counts = tuple(_whole(word.lstrip(">"), "pagetypeinfo", number, line) for word in words[6:])
            out.setdefault(key, {})[words[5]] = counts
    return out


def _whole(word: str, file: str, number: int, line: str) -> int:
    if not is_whole(word):
        raise WorkbenchError(f"{file}: line {number}: {line.strip()[:60]!r}: {word[:20]!r} is not a count")
    return int(word)


WHOLE_HOST = "sys/kernel/mm/hugepages"


def promised_pages(tree: Tree) -> dict[int, int]:
    """Huge pages that are free and promised, by their bytes (``hugepages-2048kB/resv_hugepages``): of no node."""
    out = {}
    for folder in tree.names(WHOLE_HOST):
        size = folder.removeprefix("hugepages-").removesuffix("kB")
        text = tree.text(f"{WHOLE_HOST}/{folder}/resv_hugepages") or "0"
        if not is_whole(size) or not int(size):
            continue
        if not is_whole(text):
            raise WorkbenchError(f"sysfs: hugepages/{folder}/resv_hugepages: {text[:20]!r} is not a count")
        if int(text):
            out[int(size) << 10] = int(text)
    return out


def node_pools(tree: Tree, base: str) -> list[dict[str, int]]:
    """Huge page pools of one node, smallest page first (``nodeN/hugepages/hugepages-2048kB/``), or of the whole host."""
    pools = []
    for folder in tree.names(base):
        size = folder.removeprefix("hugepages-").removesuffix("kB")
        if not is_whole(size) or not int(size):
            continue
        counts = {}
        for field, file in (("total", "nr_hugepages"), ("free", "free_hugepages"), ("surplus", "surplus_hugepages")):
            text = tree.text(f"{base}/{folder}/{file}") or "0"
            if not is_whole(text):
                what = base.removeprefix("node/").removeprefix("sys/kernel/mm/")
                raise WorkbenchError(f"sysfs: {what}/{folder}/{file}: {text[:20]!r} is not a count")
            counts[field] = int(text)
        counts["free"] = min(counts["free"], counts["total"])
        pools.append({"page_bytes": int(size) << 10, **counts})
    return sorted(pools, key=lambda pool: pool["page_bytes"])

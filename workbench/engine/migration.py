"""Asking for pages to move: MPOL_MF_MOVE, move_pages, migrate_pages.

Linux: ``mm/mempolicy.c`` (``queue_pages_range``, ``do_migrate_pages``), ``mm/migrate.c`` (``do_pages_move``,
``move_to_new_folio``). guest_memfd pages never move: they are queued and isolated, and then their mapping is
inaccessible. tmpfs pages do. Only pages in the page tables of the calling process are seen, and without MOVE_ALL a page
that another mapping holds too is passed over.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine.filemap import Int64s, in_intervals, intervals_in, intervals_minus, no_intervals
from workbench.engine.host_state import HostState
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode, Thread

UNWRITTEN = -9999
"""What a status entry of move_pages holds when the call did not write it."""


def seen_by(inode: Inode, mapping: Mapping, start: int, end: int, mapped_once: bool) -> Int64s:
    """Intervals int64 (n, 2) of ``[start, end)`` that a walk of this mapping's page tables considers."""
    parts = intervals_in(start, end, mapping.mapped)
    if not mapped_once:
        return parts
    for other in inode.mappings:
        if other is not mapping and len(parts):
            parts = np.concatenate([intervals_minus(int(a), int(b), other.mapped) for a, b in parts])
    return parts


def count_on(system: HostState, inode: Inode, parts: Int64s, zones: np.ndarray) -> int:
    """Folios of ``parts`` that lie in zones marked in ``zones`` bool (zones,)."""
    order = inode.order
    ends = [(int(a) >> order, -(-int(b) >> order)) for a, b in parts]
    return sum(int(inode.map.counts(len(system.free), low, high)[zones].sum()) for low, high in ends)


def move_to_policy(system: HostState, task: Thread, inode: Inode, parts: Int64s, zones: np.ndarray) -> None:
    """Migrate tmpfs pages of ``parts`` that lie in ``zones``: the policy in force at their index chooses anew."""
    _relocate(system, task, inode, _pages_on(inode, parts, zones), None)


def move_to_node(system: HostState, task: Thread, inode: Inode, pages: Int64s, node: int) -> int:
    """Migrate tmpfs pages to node index ``node`` (__GFP_THISNODE); returns how many found no room there."""
    on_node = system.zone_node == node
    room = int((system.free - system.watermarks[0] - system.reserve)[on_node].clip(min=0).sum())
    policy = mp.Mempolicy(mp.BIND, nodes=1 << int(system.node_ids[node]))
    _relocate(system, task, inode, pages[:room], policy)
    return max(0, len(pages) - room)


def _pages_on(inode: Inode, parts: Int64s, zones: np.ndarray) -> Int64s:
    pages = np.concatenate([np.arange(a, b) for a, b in parts]) if len(parts) else np.empty(0, np.int64)
    found = inode.map.zone_of(pages)
    return pages[(found >= 0) & zones[found]]


def _relocate(system: HostState, task: Thread, inode: Inode, pages: Int64s, policy: mp.Mempolicy | None) -> None:
    if not len(pages):
        return
    edges = np.flatnonzero(np.diff(pages) != 1) + 1
    first = np.concatenate(([0], edges))
    last = np.concatenate((edges, [len(pages)])) - 1
    holes = np.column_stack((pages[first], pages[last] + 1)) if len(pages) else no_intervals()
    for start, end in holes:
        system.erase(inode, int(start), int(end))
    system.place(task, inode, holes, override=policy)


def move_pages(system: HostState, operation: sc.MovePages) -> tuple[int, int, dict[str, Any]]:
    """do_pages_move of a range to one node: (ret, errno, detail).

    ``status_first`` and ``status_last`` are what the call wrote for the first and last page, UNWRITTEN if nothing, and
    ``status_same`` how many equal the first.
    """
    file = system.files.get(operation.file)
    start, end = system.pages(operation, file.inode.pages if file else 0)
    status = np.full(end - start, UNWRITTEN, np.int64)
    target = system.index_of_node.get(operation.node)
    if target is None or not system.has_memory[target]:
        return -1, errno.ENODEV, _statuses(status)
    if not system.mems_allowed >> operation.node & 1:
        return -1, errno.EACCES, _statuses(status)
    kind = _kinds(system, file, start, end, target, operation.move_all)
    queued, settled = np.flatnonzero(kind == 1), np.flatnonzero(kind != 1)
    ret = 0
    if len(queued) and file is not None and file.inode.kind == "memfd":
        move_to_node(system, system.task(operation), file.inode, start + queued, target)
        status[queued] = operation.node
    elif len(queued):
        # The queue is flushed at the next page that needs no move, or at the end; its failure ends the call.
        first = int(queued[0])
        later = settled[settled > first]
        stop = int(later[0]) + 1 if len(later) else len(status)
        ret = len(status) - first - (1 if len(later) else 0)
        settled = settled[settled < stop]
    status[settled] = np.where(kind[settled] == 0, operation.node, -kind[settled])
    return ret, 0, _statuses(status)


def _kinds(system: HostState, file: Any, start: int, end: int, target: int, move_all: bool) -> Int64s:
    """Per page of the range: 0 already there, 1 queued for migration, else the errno written to its status."""
    if file is None or file.mapping is None:
        return np.full(end - start, errno.EFAULT, np.int64)
    kind = np.full(end - start, errno.ENOENT, np.int64)
    pages = np.arange(start, end)
    zones = file.inode.zones_of(pages)
    here = in_intervals(pages, file.mapping.mapped) & (zones >= 0)
    kind[here] = np.where(system.zone_node[zones[here]] == target, 0, 1)
    if not move_all:
        for other in file.inode.mappings:
            if other is not file.mapping:
                kind[here & in_intervals(pages, other.mapped) & (kind == 1)] = errno.EACCES
    kind[pages >= file.mapping.pages] = errno.EFAULT
    return kind


def migrate_pages(system: HostState, operation: sc.MigratePages) -> tuple[int, int]:
    """do_migrate_pages: (number of pages that could not be moved, errno)."""
    source, target = (system.index_of_node.get(node) for node in (operation.source, operation.target))
    if source is None or target is None:
        return -1, errno.EINVAL
    stuck = 0
    if source != target:
        on_source = system.zone_node == source
        for inode in {id(file.inode): file.inode for file in system.files.values()}.values():
            for mapping in inode.mappings:
                if inode.kind == "guest_memfd":
                    stuck += count_on(system, inode, mapping.mapped, on_source)
                else:
                    pages = _pages_on(inode, mapping.mapped, on_source)
                    stuck += move_to_node(system, system.task(operation), inode, pages, target)
    return stuck, 0


def _statuses(status: Int64s) -> dict[str, int]:
    if not len(status):
        return {}
    return {
        "status_first": int(status[0]),
        "status_last": int(status[-1]),
        "status_same": int((status == status[0]).sum()),
    }

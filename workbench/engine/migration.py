"""Pages that are asked to move, by MPOL_MF_MOVE, move_pages or migrate_pages.

Linux: ``mm/mempolicy.c`` (``queue_pages_range``, ``do_migrate_pages``), ``mm/migrate.c`` (``do_pages_move``,
``move_to_new_folio``). guest_memfd pages never move: they are queued and isolated, and then their mapping is
inaccessible. tmpfs pages do, and those of a guest_memfd without private memory under the series of June 2026
(``Inode.migratable``), but for pinned ones. Only pages in the page tables of the calling process are seen, and without
MOVE_ALL a page that another mapping holds too is passed over.
"""

from __future__ import annotations

import numpy as np

from workbench import policy as mp
from workbench.engine.host_state import HostState
from workbench.engine.mappings import Mapping
from workbench.engine.objects import Inode, Thread
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s, intervals_minus, no_intervals, pages_of, stretches
from workbench.kernels import filemap


def refuse_huge(inode: Inode, pages: Int64s) -> None:
    """Pages of hugetlb files are not moved here. Raises WorkbenchError if there are any to move."""
    if inode.kind == "memfd" and inode.order and len(pages):
        raise WorkbenchError(f"{inode.name}: moving pages of a hugetlb file is not simulated")


def seen_by(inode: Inode, mapping: Mapping, start: int, end: int, mapped_once: bool) -> Int64s:
    """Intervals int64 (n, 2) of ``[start, end)`` that a walk of this mapping's page tables considers."""
    parts = mapping.mapped(start, end)
    if not mapped_once:
        return parts
    for other in inode.mappings:
        if other is not mapping and len(parts):
            theirs = other.mapped(start, end)
            parts = np.concatenate([intervals_minus(int(a), int(b), theirs) for a, b in parts])
    return parts


def count_on(system: HostState, inode: Inode, parts: Int64s, zones: np.ndarray) -> int:
    """Folios of ``parts`` that lie in zones marked in ``zones`` bool (zones,)."""
    if not len(parts):
        return 0
    order = inode.order
    folios = np.column_stack((parts[:, 0] >> order, -(-parts[:, 1] >> order)))
    return int(inode.map.counts_of(len(system.free), inode.map.cut_each(folios))[zones].sum())


def move_to_policy(system: HostState, task: Thread, inode: Inode, parts: Int64s, zones: np.ndarray) -> None:
    """Migrate tmpfs pages of ``parts`` that lie in ``zones``: the policy in force at their index chooses anew."""
    _relocate(system, task, inode, pages_on(inode, parts, zones), None)


def move_to_node(system: HostState, task: Thread, inode: Inode, pages: Int64s, node: int) -> int:
    """Migrate tmpfs pages to node index ``node`` (__GFP_THISNODE); returns how many found no room there."""
    if not len(pages):
        return 0
    on_node = system.zone_node == node
    room = int((system.free - system.watermarks[0] - system.reserve)[on_node].clip(min=0).sum())
    policy = mp.Mempolicy(mp.BIND, nodes=1 << int(system.node_ids[node]))
    _relocate(system, task, inode, pages[:room], policy)
    return max(0, len(pages) - room)


def follow_mems(system: HostState, task: Thread, before: int, after: int) -> None:
    """Migrate mapped tmpfs pages of the process when its memory nodes change from one nodemask to another.

    kernel/cgroup/cpuset.c: cpuset_migrate_mm, which cgroup v2 always does, also for pages that other mappings hold.
    """
    for source, target in migration_pairs(before, after):
        on_source = system.zone_node == system.index_of_node[source]
        for inode in system.inodes():
            if not inode.movable:
                continue
            for mapping in inode.mappings:
                pages = pages_on(inode, mapping.mapped(), on_source)
                move_to_node(system, task, inode, pages, system.index_of_node[target])


def migration_pairs(before: int, after: int) -> list[tuple[int, int]]:
    """Which node's pages go to which, in order (mm/mempolicy.c: do_migrate_pages).

    The n-th node of the old mask goes to the n-th of the new one, modulo their number; where the numbers differ, nodes of
    both masks stay. A pair whose target is not itself waiting to be emptied comes first.
    """
    old, new = mp.nodes_of(before), mp.nodes_of(after)
    stays = set(new) if len(old) != len(new) else set()
    waiting = [node for node in old if node not in stays and new]
    target = {node: new[old.index(node) % len(new)] for node in waiting}
    emptied = set(old)
    pairs: list[tuple[int, int]] = []
    while moving := [node for node in waiting if node in emptied and target[node] != node]:
        source = next((node for node in moving if target[node] not in emptied), moving[-1])
        emptied.discard(source)
        pairs.append((source, target[source]))
    return pairs


def pages_on(inode: Inode, parts: Int64s, zones: np.ndarray) -> Int64s:
    """Folios int64 (n,), of which ``parts`` have pages, that lie in zones marked in ``zones`` bool (zones,)."""
    map_ = inode.map
    if inode.order:
        parts = stretches(np.unique(pages_of(parts[:, 0] >> inode.order, -(-parts[:, 1] >> inode.order))[1]))
    runs = map_.cut_each(parts)
    mine = map_.allocations[runs[:, 2]]
    all_alike = mine[:, filemap.PERIOD] == 1
    runs = runs[~all_alike | zones[map_.tiles[mine[:, filemap.OFFSET]]]]
    _, pages = pages_of(runs[:, 0], runs[:, 0] + runs[:, 1])
    return pages[zones[map_.zone_of(pages)]]


def _relocate(system: HostState, task: Thread, inode: Inode, pages: Int64s, policy: mp.Mempolicy | None) -> None:
    if inode.tracked is not None:  # folio_expected_ref_count: pinned pages stay
        pages = np.setdiff1d(pages, inode.tracked.pinned())
    if not len(pages):
        return
    if inode.users is not None:
        inode.users.moved(int(pages[0]), int(pages[-1]) + 1)
    edges = np.flatnonzero(np.diff(pages) != 1) + 1
    first = np.concatenate(([0], edges))
    last = np.concatenate((edges, [len(pages)])) - 1
    holes = np.column_stack((pages[first], pages[last] + 1)) if len(pages) else no_intervals()
    for start, end in holes:
        system.erase(inode, int(start), int(end), moving=True)
    system.place(task, inode, holes, override=policy)

"""Calls that ask for pages to move: move_pages, migrate_pages and compaction.

Linux: ``mm/migrate.c`` (``do_pages_move``), ``mm/mempolicy.c`` (``do_migrate_pages``), ``mm/compaction.c`` (``compact_store``).
What moves, and what never does, is :mod:`workbench.engine.migration` and :mod:`workbench.engine.compaction`.
"""

from __future__ import annotations

import errno

import numpy as np

from workbench import scenario as sc
from workbench.engine import attributes, compaction, migration
from workbench.engine.objects import OpenFile, Result, failed
from workbench.engine.placing import check_listed
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s, in_intervals

UNWRITTEN = -9999
"""What a status entry of move_pages holds when the call did not write it."""


def move_pages(system: System, operation: sc.MovePages) -> Result:
    """do_pages_move of a range to one node: the result's detail has statuses.

    ``status_first`` and ``status_last`` are what the call wrote for the first and last page, UNWRITTEN if nothing, and
    ``status_same`` how many equal the first.
    """
    file = system.files.get(operation.file)
    start, end = system.pages(operation, file.inode.pages if file else 0)
    check_listed(end - start, "move_pages")
    status = np.full(end - start, UNWRITTEN, np.int64)
    target = system.index_of_node.get(operation.node)
    if target is None or not system.has_memory[target]:
        return failed(errno.ENODEV, **_statuses(status))
    if not system.mems_allowed >> operation.node & 1:
        return failed(errno.EACCES, **_statuses(status))
    kind = _kinds(system, file, start, end, target, operation.move_all)
    queued, settled = np.flatnonzero(kind == 1), np.flatnonzero(kind != 1)
    ret = 0
    if len(queued) and file is not None and file.inode.movable:
        migration.refuse_huge(file.inode, queued)
        migration.move_to_node(system, system.task(operation), file.inode, start + queued, target)
        status[queued] = operation.node
    elif len(queued):
        # The queue is flushed at the next page that needs no move, or at the end; its failure ends the call.
        first = int(queued[0])
        later = settled[settled > first]
        stop = int(later[0]) + 1 if len(later) else len(status)
        ret = len(status) - first - (1 if len(later) else 0)
        settled = settled[settled < stop]
    status[settled] = np.where(kind[settled] == 0, operation.node, -kind[settled])
    return Result(ret, 0, _statuses(status))


def _kinds(system: System, file: OpenFile | None, start: int, end: int, target: int, move_all: bool) -> Int64s:
    """Per page of the range: 0 already there, 1 queued for migration, else the errno written to its status."""
    if file is None or file.mapping is None:
        return np.full(end - start, errno.EFAULT, np.int64)
    if end - start == 1:  # as in most calls
        return np.array([_kind(system, file, start, target, move_all)], np.int64)
    kind = np.full(end - start, errno.ENOENT, np.int64)
    pages = np.arange(start, end)
    zones = file.inode.zones_of(pages)
    here = in_intervals(pages, file.mapping.mapped(start, end)) & (zones >= 0)
    kind[here] = np.where(system.zone_node[zones[here]] == target, 0, 1)
    if not move_all:
        for other in file.inode.mappings:
            if other is not file.mapping:
                kind[here & in_intervals(pages, other.mapped(start, end)) & (kind == 1)] = errno.EACCES
    kind[pages >= file.mapping.pages] = errno.EFAULT
    return kind


def _kind(system: System, file: OpenFile, page: int, target: int, move_all: bool) -> int:
    """:func:`_kinds` of one page."""
    inode, mapping = file.inode, file.mapping
    if mapping is None or page >= mapping.pages:
        return errno.EFAULT
    if len(mapping.unmapped(page, page + 1)):
        return errno.ENOENT
    zone = inode.map.zone_at(page >> inode.order)
    if zone < 0 and inode.small is not None:
        zone = inode.small.zone_at(page)
    if zone < 0:
        return errno.ENOENT
    if system.zone_node[zone] == target:
        return 0
    others = inode.mappings if not move_all else []
    return errno.EACCES if any(not len(one.unmapped(page, page + 1)) for one in others if one is not mapping) else 1


def migrate_pages(system: System, operation: sc.MigratePages) -> Result:
    """do_migrate_pages: the number of pages that could not be moved."""
    source, target = (system.index_of_node.get(node) for node in (operation.source, operation.target))
    if source is None or target is None:
        return failed(errno.EINVAL)
    stuck = 0
    if source != target:
        on_source = system.zone_node == source
        for inode in system.inodes():
            for mapping in inode.mappings:
                if not inode.movable:
                    stuck += migration.count_on(system, inode, mapping.mapped(), on_source)
                else:
                    pages = migration.pages_on(inode, mapping.mapped(), on_source)
                    stuck += migration.move_to_node(system, system.task(operation), inode, pages, target)
    return Result(stuck)


def nothing_moves(scenario: sc.Scenario) -> bool:
    """Whether a run makes no file whose pages could (:attr:`workbench.engine.objects.Inode.movable`)."""
    migratable = scenario.kernel.migratable and not scenario.guest.private_memory
    return not migratable and not attributes.wanted(scenario) and scenario.kinds.isdisjoint((sc.Memfd, sc.Retrieve))


def compact(system: System, operation: sc.Compact) -> Result:
    """Write to a node's ``compact`` file, or to /proc/sys/vm/compact_memory: the detail says what moved and what is free then.

    Raises WorkbenchError where the run keeps no frames, or not all of them.
    """
    if operation.node is not None and operation.node not in system.index_of_node:
        return failed(errno.ENOENT)  # there is no such file
    if system.free_pfns is None or system.order or system.hogs:
        raise WorkbenchError(
            "operations.compact: needs pfns: true and 4 KiB pages, and no hog (whose memory has no frames of its own here)"
        )
    node = None if operation.node is None else system.index_of_node[operation.node]
    zones = [zone for zone, of in enumerate(system.zone_node.tolist()) if node is None or of == node]
    return Result(0, 0, compaction.compact(system, zones))


def _statuses(status: Int64s) -> dict[str, int]:
    if not len(status):
        return {}
    return {
        "status_first": int(status[0]),
        "status_last": int(status[-1]),
        "status_same": int((status == status[0]).sum()),
    }

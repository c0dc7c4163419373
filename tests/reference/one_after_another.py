"""Operations that a run carries out together, against the same ones carried out one after another."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

import workbench as wb
from workbench.answer import Answer
from workbench.engine.filemap import FileMap
from workbench.engine.lists import faults, look_ahead
from workbench.engine.objects import Inode, Result
from workbench.engine.range_trees import StateTree
from workbench.kernels import light_map
from workbench.running import run
from workbench.tracking.light_file import LightFile

_DONE = faults.Done


def together(module: ModuleType, given: wb.Scenario, least: int) -> tuple[Answer, int]:
    """The answer where a module of the engine takes lists of at least so many operations, and how many it took."""
    many: list[int] = []

    def done(results: list[Result], *state: Any) -> faults.Done:
        many.append(len(results))
        return _DONE(results, *state)

    with (
        mock.patch.object(look_ahead, "LEAST", 2),
        mock.patch.object(module, "LEAST", least),
        mock.patch.object(module, "Done", done),
    ):
        return run(given), sum(many)


def assert_equal(module: ModuleType, given: wb.Scenario) -> int:
    """Every variable is the same, event by event, and so is what the next operation would find; how many were taken together."""
    (one, none), (other, many) = together(module, given, 1 << 30), together(module, given, 2)
    assert not none
    assert one.names == other.names
    for name in one.names:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_array_equal(one.system.rotations, other.system.rotations)
    assert one.system.tasks == other.system.tasks
    for first, second in zip(one.system.inodes(), other.system.inodes(), strict=True):
        assert list(first.shared_policy) == list(second.shared_policy)
        for left, right in zip(first.mappings, second.mappings, strict=True):
            np.testing.assert_array_equal(left.mapped(), right.mapped())
            assert left.vmas == right.vmas
        if first.users is not None and second.users is not None:
            np.testing.assert_array_equal(first.users.kvm.runs(), second.users.kvm.runs())
            assert first.users.iommu_row() == second.users.iommu_row()
        assert _references(first) == _references(second)
    assert _held(one) == _held(other)
    assert _trees(one) == _trees(other)
    assert _nodes(one) == _nodes(other)
    return many


def _references(inode: Inode) -> list[Any]:
    """What is poisoned, who holds what has left the file, and, without struct pages, where each unit lies."""
    tracked = inode.tracked
    if tracked is None:
        return []
    left = tracked.withheld()
    out: list[Any] = [tracked.poisoned().tolist(), left.tolist(), tracked.references(left, left_file=True).tolist()]
    if isinstance(tracked, LightFile):
        rows = tracked.state.pins[: int(tracked.state.counts[light_map.N_PINS])]
        rows = rows[rows[:, light_map.PIN_PFN] >= 0]
        out.append(sorted(np.delete(rows, light_map.PIN_NEXT, axis=1).tolist()))
        out += [tracked.state.unit_pfn.tolist(), tracked.extents().tolist(), tracked.memory.free_pages.tolist()]
    return out


def _held(answer: Answer) -> list[Any]:
    """Who holds which pages, of the file and of what left it; what devices map, and whether the file has it still."""
    out: list[Any] = []
    for inode in answer.system.inodes():
        if inode.tracked is None or inode.users is None:
            continue
        pinned = inode.tracked.pinned()
        held = inode.tracked.references(pinned, left_file=False)
        mapped = [
            (page, frame, frame == [there for _, _, there in inode.users.frames(page, page + 1).tolist()])
            for first, pages, *frame, _ in inode.users.iommu.runs().tolist()
            for page in range(first, first + pages)
        ]
        out.append((inode.kept.rows().tolist(), inode.device_areas.tolist(), mapped, pinned.tolist(), held.tolist()))
    return out


def _nodes(answer: Answer) -> list[Any]:
    """Where each xarray node lies, and how full the slabs are."""
    metadata = answer.system.metadata
    if metadata is None:
        return []
    trees = [*metadata.caches.items(), *metadata.attribute_nodes.items()]
    # A tree without levels is a tree of one that is empty.
    nodes = [(inode.name, [_zones(map_) for map_ in maps] or [[]]) for inode, maps in trees]
    slabs = [[one.live.tolist(), one.parts.tolist(), one.zones.tolist()] for one in (metadata.xarray, metadata.maple)]
    return [sorted(one for one in nodes if one[1] != [[]]), slabs]


def _zones(map_: FileMap) -> list[list[int]]:
    """Each that is present, and its zone."""
    present = [page for low, high in map_.present.tolist() for page in range(low, high)]
    return [[page, map_.zone_at(page)] for page in present]


def _trees(answer: Answer) -> list[tuple[int, list[int]]]:
    """Ranges and nodes of all maple trees; a tree of states has seen those that there are."""
    metadata = answer.system.metadata
    listed = [] if metadata is None else [tree for of in metadata.trees.values() for tree in of.values()]
    for tree in listed:
        if isinstance(tree, StateTree) and tree.file is not None:
            np.testing.assert_array_equal(tree.seen, tree.file.state.shared)
    return [(tree.ranges, tree.nodes.tolist()) for tree in listed]

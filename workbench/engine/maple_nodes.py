"""Nodes of maple trees beside files: of the state of pages that convert in place, and of the offset -> pfn map (modelled).

The trees themselves are :mod:`workbench.engine.range_trees`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from workbench.engine.kernel_pages import LIGHT_MAP, PAGE_CACHE, STATE_TREE
from workbench.engine.objects import Inode, Thread
from workbench.engine.range_trees import LightMap, SharedNodes, StateTree, Tree
from workbench.engine.slabs import last_of
from workbench.engine.xarray_nodes import XarrayNodes
from workbench.intervals import Int64s
from workbench.tracking.light_file import LightFile

if TYPE_CHECKING:
    from workbench.engine.host_state import HostState


class MapleNodes(XarrayNodes):
    """Nodes of the maple trees of each guest_memfd."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system)
        self.trees: dict[Inode, dict[int, Tree]] = {}
        """By kind."""
        self._most_trees = 2 * self.light + self.in_place
        """Of one file."""

    def light_map(self, inode: Inode) -> LightMap | None:
        """The offset -> pfn map of a file, if its design has one."""
        if not self.light or inode.kind != "guest_memfd":
            return None
        trees = self.trees.setdefault(inode, {})
        tree = trees.get(LIGHT_MAP)
        if tree is None and (inode.private or inode.tracked is not None):
            tree = trees[LIGHT_MAP] = LightMap(np.zeros(self.system.nodes, np.int64), 1, inode)
        return tree if isinstance(tree, LightMap) else None

    def _settle_trees(self, task: Thread) -> bool:
        """Nodes of maple trees that came, by the hand of the task, or went."""
        complete = True
        named, changed = self.system.guest_memfds, self.system.changed
        for inode in named if changed is None else changed:
            if inode.evicted or inode not in named:
                continue
            trees = self.trees.setdefault(inode, {})
            if len(trees) < self._most_trees:
                self.light_map(inode)
                if self.in_place and inode.tracked is not None and STATE_TREE not in trees:
                    trees[STATE_TREE] = StateTree.of(inode.tracked, self.system.nodes)
                if self.light and isinstance(inode.tracked, LightFile) and PAGE_CACHE not in trees:
                    trees[PAGE_CACHE] = SharedNodes(np.zeros(self.system.nodes, np.int64), file=inode.tracked)
            for kind, tree in trees.items():
                complete &= self.resize(task, kind, tree, tree.wanted())
        return complete

    def resize(self, task: Thread, kind: int, tree: Tree, wanted: int) -> bool:
        """A tree has so many nodes now. False: no memory for a slab."""
        more = wanted - sum(tree.nodes.tolist())
        if not more:
            return True
        if more < 0:  # which went is not known: where most of them are
            gone = last_of(tree.nodes, -more)
            tree.nodes -= gone
            self._free_tree_nodes(kind, gone)
        else:
            slabs = self.slabs_of(kind)
            parts = slabs.parts[slabs.kinds.index(kind)]
            parts[task.nid] += more
            if not self._take_objects(task, slabs, more):
                parts[task.nid] -= more
                return False
            tree.nodes[task.nid] += more
        return True

    def _free_tree_nodes(self, kind: int, nodes: Int64s) -> None:
        slabs = self.slabs_of(kind)
        slabs.parts[slabs.kinds.index(kind)] -= nodes
        self._free_objects(slabs, nodes)
        self._count_slabs(slabs)

    # --------------------------------------------------------------------------------------------------- of many calls

    def follows_states(self, inode: Inode) -> bool:
        """Whether of what conversions change nothing but the tree of a file's states is metadata, and it changes nothing."""
        return not self.taking and not self.light and (not self.in_place or STATE_TREE in self.trees.get(inode, {}))

    def follow_states(
        self,
        inode: Inode,
        tasks: list[Thread],
        first: Int64s,
        end: Int64s,
        to_shared: npt.NDArray[np.bool_],
        found: tuple[Int64s, Int64s] | None = None,
    ) -> Int64s:
        """Conversions of pages [first, end), (n,) each, by these tasks: what is held after each, int64 (n, kinds, nodes).

        They are only counted. ``found``: free pages of each zone and rotations of the task after each, if these change meanwhile.
        """
        tree = self.trees.get(inode, {}).get(STATE_TREE)
        if tree is None:  # of kernels that do not convert in place
            return np.tile(self.held, (len(tasks), 1, 1))
        assert isinstance(tree, StateTree)
        return self.follow_nodes(STATE_TREE, tree, tree.follow(first, end, to_shared), tasks, found)

    def follow_nodes(
        self, kind: int, tree: Tree, nodes: Int64s, tasks: list[Thread], found: tuple[Int64s, Int64s] | None = None
    ) -> Int64s:
        """A tree has ``nodes`` (n,) after each of n calls by these tasks: what is held after each, int64 (n, kinds, nodes)."""
        kept = self.system.rotations.copy()
        held = np.empty((len(nodes), *self.held.shape), np.int64)
        filled = 0
        for number in np.flatnonzero(np.diff(nodes, prepend=tree.nodes.sum())).tolist():
            held[filled:number] = self.held
            filled = number
            if found is not None:
                self.before, self.system.rotations[tasks[number].index] = (of[number] for of in found)
            self.resize(tasks[number], kind, tree, int(nodes[number]))
        held[filled:] = self.held
        self.before, self.system.rotations[:] = None, kept
        return held

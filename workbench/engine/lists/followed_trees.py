"""Nodes of a file's trees along many calls: how full slabs are after each, and where one comes or goes.

As long as none does the kernel goes on (:mod:`workbench.kernels.tree_nodes`); a call that takes a slab, or gives one back, is
carried out as any (:meth:`workbench.engine.metadata.Metadata.resize`), in its turn with tables that faults make.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np

from workbench.engine.metadata import Metadata
from workbench.engine.objects import Thread
from workbench.engine.range_trees import Tree
from workbench.engine.slabs import MIN_PARTIAL
from workbench.intervals import Int64s
from workbench.kernels import tree_nodes as kernel


class FollowedTrees:
    """``trees`` by kind, ``wanted`` int64 (n, trees): the nodes of each after each of n calls, made by ``tasks``.

    ``found``: free pages of each zone int64 (n, zones) and rotations of the task int64 (n, 2) after each, if these change.
    """

    def __init__(
        self,
        metadata: Metadata,
        trees: dict[int, Tree],
        wanted: Int64s,
        tasks: list[Thread],
        found: tuple[Int64s, Int64s] | None = None,
    ) -> None:
        self.metadata, self.trees, self.tasks, self.found = metadata, trees, tasks, found
        self.slabs = (metadata.xarray, metadata.maple)
        nodes, caches = metadata.system.nodes, len(self.slabs)
        kinds = [
            (self.slabs.index(slabs), slabs.kinds.index(kind)) for kind in trees for slabs in [metadata.slabs_of(kind)]
        ]
        self.state = kernel.Trees(
            wanted=np.ascontiguousarray(wanted), nid=np.array([task.nid for task in tasks], np.int64),
            kinds=np.array(kinds, np.int64), nodes=np.zeros((len(trees), nodes), np.int64),
            live=np.zeros((caches, nodes), np.int64), parts=np.zeros((caches, 2, nodes), np.int64),
            slabs=np.zeros((caches, nodes), np.int64), objects=np.array([one.objects for one in self.slabs], np.int64),
            gone=np.zeros(nodes, np.int64), log=np.zeros((len(wanted), caches, 2, nodes), np.int64),
        )  # fmt: skip
        self.held = np.empty((len(wanted), *metadata.held.shape), np.int64)
        self._filled = 0

    def run(self, stops: list[int], stop: Callable[[int], None]) -> Int64s:
        """What is held after each call, int64 (n, kinds, nodes). At rows ``stops``, ascending, ``stop`` is called first."""
        calls, trees = self.state.wanted.shape
        kinds, order = list(self.trees), list(self.trees.values())
        change = 0
        self._read()
        for end in [*stops, calls]:
            while (change := int(kernel.follow.direct(self.state, change, end * trees, MIN_PARTIAL))) < end * trees:
                row, tree = divmod(change, trees)
                self._fill(row)
                self._write()
                task = self.tasks[row]
                found = None if self.found is None else self.metadata.as_of(task, *(of[row] for of in self.found))
                with found or nullcontext():
                    self.metadata.resize(task, kinds[tree], order[tree], int(self.state.wanted[row, tree]))
                self._read()
                if tree == trees - 1:
                    self.state.log[row] = self.state.parts
                change += 1
            if end < calls:
                self._fill(end)
                stop(end)
        self._write()
        self._fill(calls)
        self.metadata.held[:] = self.held[-1]
        return self.held

    def _read(self) -> None:
        for number, tree in enumerate(self.trees.values()):
            self.state.nodes[number] = tree.nodes
        for number, slabs in enumerate(self.slabs):
            self.state.live[number], self.state.parts[number] = slabs.live, slabs.parts
            self.state.slabs[number] = slabs.count()

    def _write(self) -> None:
        for number, tree in enumerate(self.trees.values()):
            tree.nodes[:] = self.state.nodes[number]
        for number, slabs in enumerate(self.slabs):
            slabs.live[:], slabs.parts[:] = self.state.live[number], self.state.parts[number]

    def _fill(self, end: int) -> None:
        """What is held after calls between which no slab and no table came or went."""
        rows = slice(self._filled, end)
        if self._filled < end:
            self.held[rows] = self.metadata.held
            for number, slabs in enumerate(self.slabs):
                self.metadata.hold_objects_after(self.held[rows], slabs, self.state.log[rows, number])
        self._filled = end

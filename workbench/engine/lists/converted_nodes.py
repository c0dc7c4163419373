"""xarray nodes and tables while conversions out of place, attributes and guest faults run one by one in the kernel.

Trees are those of a guest's two files and of the VM's attributes (:mod:`workbench.engine.metadata`); only nodes that the list
touches are looked up. The kernel (:mod:`workbench.kernels.backend_nodes`) says which came and went; here they fill slabs, call
by call. Tables of the second stage are made by the first fault that needs them, and stay.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.lists.nodes import ListNodes
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Inode, Thread
from workbench.intervals import Int64s
from workbench.kernels import backend_nodes as kernel
from workbench.kernels.folios import run as folio
from workbench.units import PAGE_SIZE


class ConvertedNodes:
    """Nodes that calls on pages [first, end), int64 (n,) each, touch. ``nid`` int64 (tasks,): NUMA node of each task."""

    def __init__(
        self, metadata: Metadata, inode: Inode, backend: Inode | None, first: Int64s, end: Int64s, nid: Int64s
    ) -> None:
        self.metadata, self.inode = metadata, inode
        trees = (
            metadata.caches.setdefault(inode, []),
            [] if backend is None else metadata.caches.setdefault(backend, []),
            metadata.attribute_nodes.setdefault(inode, []),
        )
        self.listed = ListNodes(metadata, trees, first, end)
        self.nodes = kernel.Nodes(
            self.listed.before.copy(), self.listed.begins, np.array([len(maps) for maps in trees], np.int64), nid,
            np.empty((4 * len(first) + 2 * metadata.system.nodes + 2, 4), np.int64),
        )  # fmt: skip

    def held_after(self, nodes: kernel.Nodes, given: kernel.Calls, done: int, tasks: list[Thread]) -> Int64s:
        """What is held after each of the first ``done`` calls, int64 (done, kinds, nodes); enters what came and went.

        ``tasks`` of the scenario, by the number that the stream has of each.
        """
        events = nodes.events[: int(given.at[kernel.EVENTS])].copy()
        row, when = events[:, 0], events[:, 1]
        # Nodes that come with the pages placed came before these were.
        free = given.free[row] + given.placed[row] * (when == kernel.ENTERED)[:, None]
        events[:, 1] = when == kernel.SETTLED
        whose = [tasks[number] for number in given.stream[:done, folio.CPU].tolist()]
        held = self.listed.held_after(events, done, whose, free, given.rotations)
        if done:
            self._add_tables(held, given, done, tasks)
        self.listed.enter(nodes.owner)
        return held

    def _add_tables(self, held: Int64s, given: kernel.Calls, done: int, tasks: list[Thread]) -> None:
        """Tables of the second stage that guest faults need, in ``held`` too."""
        some = np.flatnonzero(given.stream[:done, folio.OP] == folio.GUEST_FAULT)
        if not len(some):
            return
        metadata, stream = self.metadata, given.stream[some]
        first = stream[:, folio.OFFSET] // PAGE_SIZE
        end = first + stream[:, folio.LENGTH] // PAGE_SIZE
        rows = np.column_stack((first, end, np.ones_like(first), stream[:, folio.CPU]))
        whose = [tasks[number] for number in stream[:, folio.CPU].tolist()]
        before, was = given.free[some] + given.placed[some], metadata.held.copy()
        walk = metadata.of_guest(self.inode)
        after = metadata.count_faults(walk, rows, whose, before, given.rotations[some])
        held[some[0] :] += (after - was)[np.searchsorted(some, np.arange(some[0], done), side="right") - 1]

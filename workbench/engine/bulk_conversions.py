"""Many conversions out of place at once: the engine's files as :mod:`workbench.kernels.two_backends` has them, and back.

One conversion costs the engine some milliseconds; a stream of a million runs in the kernel. While a stream lasts, what
backs the two files and what their gfns are is in the kernel's maps; :meth:`BulkConversions.settle` writes it back before
anything else looks. Free pages and rotations are the system's own all the time.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.bulk_metadata import BulkMetadata
from workbench.engine.filemap import FileMap
from workbench.engine.host_state import HostState
from workbench.engine.objects import GUEST_MEMFD_FLAG_MMAP, Inode, Thread
from workbench.engine.placing import OutOfMemory
from workbench.engine.runs import PageSet
from workbench.engine.xarray_nodes import XA_CHUNK_SHIFT
from workbench.errors import Cancelled
from workbench.intervals import Int64s, no_intervals, stretches
from workbench.kernels import backend_nodes as each
from workbench.kernels import placement
from workbench.kernels import two_backends as kernel
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple

ROWS_AT_ONCE = 1 << 16
"""Rows of a stream in one call of the kernel; between calls a run can be cancelled."""
_Files = tuple[
    placement.Output, placement.Output, kernel.Asking, kernel.Asking, placement.Requests, placement.Requests,
    placement.Zones, placement.Zones, placement.Interleaving,
]  # fmt: skip
"""Of the guest_memfd and the ordinary file, each, and what turns."""


def possible(system: HostState, inode: Inode, stream: Int64s) -> bool:
    """Whether a stream can run in the kernel: two backends of 4 KiB pages that no page table of the host has entries of."""
    # A guest's faults need tables that each asks for itself.
    kinds = (folio.CONVERT,) if system.metadata is not None else (folio.CONVERT, folio.GUEST_FAULT)
    if inode.tracked is not None:  # which has to be told of each
        return False
    return inode.backend is not None and can_be_lent(system, inode) and bool(np.isin(stream[:, folio.OP], kinds).all())


def can_be_lent(system: HostState, inode: Inode) -> bool:
    """Whether the kernel can have a guest's files: of 4 KiB pages, and if there are two the host has mapped pages of neither."""
    if inode.attributes is None or inode.order or (inode.backend is not None and inode.flags):
        return False
    if system.free_pfns is not None or system.blocks is not None:
        return False
    if system.metadata is not None and system.metadata.taking:
        return False
    files = () if inode.backend is None else (inode, inode.backend)
    return not any(len(mapping.mapped()) for one in files for mapping in one.mappings)


class BulkConversions:
    """One guest's two files in the kernel's maps, from its construction to :meth:`settle`; the second may be none."""

    def __init__(self, system: HostState, inode: Inode) -> None:
        assert inode.attributes is not None
        self.system, self.inode, self.backend, self.attributes = system, inode, inode.backend, inode.attributes
        self._maps = (inode.map, FileMap() if inode.backend is None else inode.backend.map)
        given = [
            inode.map.runs,
            self._maps[1].runs,
            _as_runs(self.attributes.shared.intervals()),
            _as_runs(self.attributes.punched.intervals()),
            self.attributes.known_runs(kernel.NO_ROW),
            _as_runs(no_intervals() if inode.tracked is None else stretches(inode.tracked.poisoned())),
        ]
        zones, size = len(system.free), 4096 + max(map(len, given)) // 4
        self.state = kernel.Backends(
            nodes=np.empty((kernel.MAPS, size, maple.NODE_WORDS), np.int64),
            tops=np.zeros((kernel.MAPS, maple.TOP_FIELDS), np.int64),
            found=np.zeros(3, np.int64),
            path=np.zeros((2, maple.MAX_HEIGHT + 1), np.int64),
            counts=np.array([self.attributes.counts[name] for name in kernel.COUNTERS], np.int64),
            where=np.zeros(6, np.int64),
            placed=np.zeros(zones, np.int64),
            piece=np.zeros((1, 4), np.int64),
        )
        for which, runs in enumerate(given):
            maple.clear(self.state.tops[which])
            kernel.load(self.state, which, np.ascontiguousarray(runs))
        self.state.counts[kernel.SHARED_NOW] = self.attributes.shared.pages
        self.state.counts[kernel.PRIVATE_NOW] = inode.map.folios
        self.state.counts[kernel.SHARED_BACKEND_NOW] = self._maps[1].folios
        if inode.backend is None:
            one_file = inode.flags & GUEST_MEMFD_FLAG_MMAP
            self.state.where[kernel.BACKING] = kernel.SAME_FILE if one_file else kernel.NOTHING
        self.state.where[kernel.ENTERED_PRIVATE] = inode.map.progress[placement.ALLOCATIONS]
        self.state.where[kernel.ENTERED_SHARED] = self._maps[1].progress[placement.ALLOCATIONS]
        asked = [self._ask(one) for one in (inode, self.backend or inode)]
        self._asking, self._requests = (asked[0][0], asked[1][0]), (asked[0][1], asked[1][1])
        self._scratch = (
            np.empty(max(int(system.weights.sum()), system.nodes, 256) + 1, np.int64),
            np.empty(system.nodes, np.int64),
            np.empty(len(system.free), np.int64),
        )
        self.ran_out = False
        """Memory ran out in a conversion that was begun: whoever has the files next is told (:meth:`settle`)."""
        self._metadata: BulkMetadata | None = None
        """Of streams; made for the first one."""

    def _ask(self, inode: Inode) -> tuple[kernel.Asking, placement.Requests]:
        """Policies of a file's pages, and what the tasks ask for under each."""
        ranges, policies = self.system.policy_ranges(inode, 0, np.array([[0, max(1, inode.extent)]]))
        requests, row_of = self.system.requests(inode, list(self.system.tasks.values()), policies, 0)
        return kernel.Asking(np.ascontiguousarray(ranges), row_of), requests

    def run(self, stream: Int64s, task: Thread | None = None) -> Int64s:
        """Carry out a stream int64 (n, 6) and return the errno of each row. Raises OutOfMemory where the host has none.

        ``task`` makes all the calls; left out, each is made by the one whose number its row names.
        """
        assert self.backend is not None
        if self._metadata is None and self.system.metadata is not None:
            self._metadata = BulkMetadata(self.system.metadata, self.inode, self.backend)
        errors = np.zeros(len(stream), np.int32)
        stream = np.ascontiguousarray(stream, np.int64).copy()
        stream[:, folio.CPU] = stream[:, folio.CPU] % len(self.system.tasks) if task is None else task.index
        for low in range(0, len(stream), ROWS_AT_ONCE):
            self._run(stream[low : low + ROWS_AT_ONCE], errors[low : low + ROWS_AT_ONCE])
        return errors.astype(np.int64)

    def count_metadata(self, task: Thread, stream: Int64s) -> None:
        """Nodes that came and went with the part of a stream that was just run."""
        if self._metadata is not None:
            self._metadata.count(task, stream, self._holds)

    def _holds(self, which: int, numbers: Int64s) -> np.ndarray:
        out = np.zeros(len(numbers), np.uint8)
        kernel.holds.direct(self.state, which, numbers, XA_CHUNK_SHIFT, self.inode.pages, out)
        return out.astype(bool)

    def run_each(self, given: each.Calls, nodes: each.Nodes) -> each.Nodes:
        """Carry out conversions one by one (:mod:`workbench.kernels.backend_nodes`); what became of the nodes.

        What streams know of nodes has to be given back before (:meth:`end_streams`).
        """
        while True:
            status = int(each.run_each(given, nodes, self.inode.pages, self.state, *self._files()))
            if self.system.cancelled():
                raise Cancelled
            if status != placement.NEEDS_ROOM:
                self.ran_out = status == placement.OUT_OF_MEMORY
                return nodes
            self._grow()
            if len(nodes.events) // 2 < given.at[each.EVENTS] + 2 * self.system.nodes + 2:
                nodes = nodes._replace(events=np.concatenate((nodes.events, nodes.events)))

    def _run(self, stream: Int64s, errors: np.ndarray) -> None:
        system, state = self.system, self.state
        state.where[kernel.AT] = 0
        while True:
            status = kernel.run.direct(stream, errors, self.inode.pages, self.state, *self._files())
            if system.cancelled():
                raise Cancelled
            if status != placement.NEEDS_ROOM:
                break
            self._grow()
        system.placed += self.state.placed
        self.state.placed[:] = 0
        if status == placement.OUT_OF_MEMORY:
            raise OutOfMemory

    def _files(self) -> _Files:
        """What the kernel needs of the two files and the host, as it is now."""
        system = self.system
        mine, other = (placement.Output(one.progress, one.allocations, one.tiles, *self._scratch) for one in self._maps)
        turns, private = system.turns_and_zones(self.inode, 0)
        _, shared = system.turns_and_zones(self.backend or self.inode, 0)  # the same zones in an order of their own
        return mine, other, *self._asking, *self._requests, private, shared, turns

    def _grow(self) -> None:
        """Longer arrays for whatever is nearly full."""
        for map_ in self._maps:
            map_.grow(1024, 1024 + 2 * len(self._scratch[0]))
        nodes = self.state.nodes
        if (self.state.tops[:, maple.NODES] > nodes.shape[1] // 2).any():
            longer = np.empty((kernel.MAPS, 2 * nodes.shape[1], maple.NODE_WORDS), np.int64)
            longer[:, : nodes.shape[1]] = nodes
            self.state = self.state._replace(nodes=longer)

    def row(self) -> dict[str, int]:
        """The counters as they are now (:data:`workbench.engine.attributes.COUNTERS`)."""
        return dict(zip(kernel.COUNTERS, self.state.counts.tolist(), strict=True))

    def end_streams(self) -> None:
        """Give back what streams know of nodes."""
        if self._metadata is not None:
            self._metadata.settle()
            self._metadata = None

    def settle(self) -> None:
        """Write everything back to the files."""
        for which, map_ in zip((kernel.PRIVATE, kernel.SHARED), self._maps, strict=True):
            map_.replace(self._listed(which))
        self.attributes.shared = PageSet(_as_intervals(self._listed(kernel.ATTRIBUTES)))
        self.attributes.punched = PageSet(_as_intervals(self._listed(kernel.PUNCHED)))
        self.attributes.keep_known(self._listed(kernel.ORIGINS), kernel.NO_ROW)
        self.attributes.counts |= self.row()
        self.end_streams()

    def _listed(self, which: int) -> Int64s:
        out = np.empty((int(self.state.tops[which, maple.ENTRIES]), 3), np.int64)
        return out[: kernel.list_runs(self.state, which, out)]


def _as_runs(intervals: Int64s) -> Int64s:
    return np.column_stack(
        (intervals[:, 0], intervals[:, 1] - intervals[:, 0], np.zeros(len(intervals), np.int64))
    ).astype(np.int64)


def _as_intervals(runs: Int64s) -> Int64s:
    return np.column_stack((runs[:, 0], runs[:, 0] + runs[:, 1])).astype(np.int64)

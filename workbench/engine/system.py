"""One simulated Linux host with its tasks and files: everything that operations read and change.

The state is what the kernel has: zones with free pages and marks, tasks with a policy and a rotation, inodes with a
shared policy and present pages, mappings with VMAs. Which zone backs a page is decided by :mod:`workbench.kernels.placement`.
What each operation does with it is a function in one of the modules that :mod:`workbench.engine.calls` lists.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from workbench import scenario as sc
from workbench.engine import conversions
from workbench.engine.attributes import Attributes
from workbench.engine.bulk_conversions import BulkConversions
from workbench.engine.conversions import Conversions
from workbench.engine.host_state import HostState
from workbench.engine.objects import Inode, OpenFile
from workbench.engine.placing import OutOfMemory
from workbench.intervals import Int64s
from workbench.tracking.whole import WATCHED

_FIRST_DESCRIPTOR = 3  # after stdin, stdout and stderr
_OF_NO_FILE = frozenset((
    sc.SetMempolicy, sc.ResetRotation, sc.SetWeights, sc.SetAutoWeights, sc.SchedSetaffinity, sc.Hog, sc.Unhog,
    sc.Zones, sc.CheckExtension,
))  # fmt: skip
"""Calls that change no page of any file, unless memory runs out and the process is killed."""


class Descriptors:
    """The file descriptors of a process (fs/file.c: alloc_fd): the lowest free one is taken."""

    def __init__(self) -> None:
        self._next = _FIRST_DESCRIPTOR
        self._given_back: list[int] = []

    def take(self) -> int:
        """The lowest free descriptor."""
        if self._given_back:
            return heapq.heappop(self._given_back)
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        """Close one that was taken."""
        heapq.heappush(self._given_back, number)


class System(HostState):
    """The host while a scenario runs, with the process whose calls the scenario lists."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(scenario, cancelled)
        self.descriptors: dict[str, Descriptors] = defaultdict(Descriptors)
        """Of each process; the scenario's own is ''."""
        self.conversions = Conversions(self) if conversions.wanted(scenario) else None
        self.hogs: list[tuple[int, Int64s]] = []
        self.memfds = 0
        self.vcpu_open = False
        self.vm_descriptor: int | None = None
        self.slots: dict[str, Attributes] = {}
        """Memory attributes by the name of the file in the slot."""
        self.session: dict[int, Inode] = {}
        """Files that are to be handed over by the live-update session, by token."""
        self.vm_in_session = False
        self.handed_over: dict[int, Inode] = {}
        """Files of the kernel before, by token, until their session is finished; nobody has one who did not retrieve it."""
        self.session_descriptor: int | None = None
        self.session_retrieved = False
        """The open session is that of the kernel before."""
        self.session_waits = False
        """The kernel before handed a session over, which nobody has closed."""
        self.killed = False
        self.begun = np.zeros(len(self.free), np.int64)
        """int64 (zones,), pages that an operation which was begun together with others, and is done alone, has already."""
        self.bulk: BulkConversions | None = None
        """A stream of conversions that the kernel holds the files of, until something else looks at them."""

    def will_change(self, operation: sc.Operation) -> None:
        """Note which files a call may change: that which its name means, or any. Those that it opens :meth:`open_as` notes."""
        if self.changed is None or type(operation) in _OF_NO_FILE:
            return
        name = vars(operation).get("file")
        if name is None:
            if type(operation) is not sc.GetMempolicy:  # which asks for the policy of the task
                self.changed = None
        elif (file := self.files.get(name)) is not None:
            self.changed[file.inode] = None
            for inode in file.inode.backs:
                self.changed[inode] = None

    def was_looked_at(self) -> None:
        """What the calls so far have changed is known."""
        self.changed = {}

    def lend(self, inode: Inode) -> BulkConversions:
        """Let the kernel have the two files of a guest."""
        if self.bulk is None or self.bulk.inode is not inode:
            self.settle()
            self.bulk = BulkConversions(self, inode)
        return self.bulk

    def settle(self) -> None:
        """Have the files of a stream back. Raises OutOfMemory if the conversion that was made last found none."""
        if self.bulk is not None:
            bulk, self.bulk = self.bulk, None
            self.has_changed(bulk.inode)
            bulk.settle()
            if bulk.ran_out:
                raise OutOfMemory

    def look(self, operation: Any) -> None:
        """After one of many calls that are one event: what else depends on the state that each left, the VM's attributes too.

        ``operation``: a call on a range of one file.
        """
        if self.metadata is not None:
            self.metadata.settle(self.task(operation), None)
        file = self.files.get(operation.file)
        if self.conversions is None or file is None or self.killed:
            return
        inode = file.inode
        if inode.tracked is not None and not inode.evicted and self.scenario.guest.vm_type in WATCHED:
            self.conversions.whole(inode).look(*self.pages(operation, inode.pages))

    def new_descriptor(self, process: str = "") -> int:
        """The lowest free file descriptor of a process, taken (fs/file.c: alloc_fd)."""
        return self.descriptors[process].take()

    def open_as(self, name: str, file: OpenFile) -> None:
        """A name of the scenario means this file from now on; whatever it meant before cannot be reached any more."""
        before = self.files.get(name)
        if before is not None and before.descriptor is not None:
            before.inode.descriptors -= 1
        file.inode.names += 1
        if file.inode.kind == "guest_memfd":
            self.guest_memfds[file.inode] = None
        if before is not None:
            self.loses_a_name(before.inode)
        file.inode.descriptors += file.descriptor is not None
        self.files[name] = file
        for inode in (file.inode, *file.inode.backs):
            self.has_changed(inode)

    def close_descriptor(self, file: OpenFile) -> None:
        """fs/open.c: filp_close."""
        if file.descriptor is not None:
            self.descriptors[file.process].give_back(file.descriptor)
            file.descriptor = None
            file.inode.descriptors -= 1

    def free_inode(self, inode: Inode) -> None:
        """The inode dies and its pages are freed."""
        self.has_changed(inode)
        if self.conversions is not None and inode.tracked is not None:
            self.conversions.forget(inode)
        else:
            self.erase(inode, 0, np.iinfo(np.int64).max)
        if self.metadata is not None:
            self.metadata.forget(inode)

    def oom_kill(self) -> None:
        """mm/oom_kill.c: the process ends, and with it all its files."""
        self.killed = True
        given = self.handed_over.values() if self.session_retrieved else ()  # a session nobody asked for waits on
        for inode in dict.fromkeys([*self.inodes(), *self.session.values(), *given]):
            self.free_inode(inode)
        if self.metadata is not None:
            self.metadata.processes_end()

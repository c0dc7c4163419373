"""Calls that set policies of a file between its faults (``mm/mempolicy.c``: ``do_mbind``): which policy each fault finds.

Calls by which threads get another policy or CPU stand between them as well: each fault is of a thread as it is then. What such a
call does depends on nothing that a fault changes: those of a list are carried out first, to see what each fault will
find, and undone. When the faults are placed they are carried out again, as far as the list came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import calls_host, calls_mempolicy
from workbench.engine.mappings import Vma
from workbench.engine.objects import Inode, OpenFile, Result, Thread
from workbench.engine.system import System

PolicyCall = sc.Mbind | sc.Fbind | sc.SetPolicy
POLICY_CALLS = (sc.Mbind, sc.Fbind, sc.SetPolicy)
ThreadCall = sc.SetMempolicy | sc.SchedSetaffinity
THREAD_CALLS = (sc.SetMempolicy, sc.SchedSetaffinity)


def moves_nothing(call: PolicyCall, inode: Inode) -> bool:
    """Whether a call does nothing to pages that are there, and answers by none: MPOL_MF_STRICT does."""
    flags = calls_mempolicy.flags_word(call) if isinstance(call, sc.Mbind) else 0
    return not flags or (not inode.movable and not flags & ~(mp.MF_MOVE | mp.MF_MOVE_ALL))


def set_policy(system: System, call: PolicyCall) -> Result:
    """Carry out such a call."""
    if isinstance(call, sc.Mbind):
        return calls_mempolicy.mbind(system, call)
    if isinstance(call, sc.Fbind):
        return calls_mempolicy.fbind(system, call)
    return calls_mempolicy.set_policy(system, call)


class Found:
    """What faults of a list find, whose operations are given in their order; after :meth:`undo` everything is as it was."""

    def __init__(self, system: System, file: OpenFile) -> None:
        self.system, self.file = system, file
        self.policies: list[mp.Mempolicy | None] = []
        """Of each operation so far; None also for those that place nothing."""
        self.results: dict[int, Result] = {}
        """Of calls, by their number."""
        self._mixed = False
        self._state = self._taken()

    @property
    def change(self) -> bool:
        """Whether policies change between the operations."""
        return bool(self.results)

    @property
    def mixed(self) -> bool:
        """Whether something is placed under several policies."""
        return self._mixed

    def set(self, call: PolicyCall) -> bool:
        """Carry out a call; returns whether it can be one of the list."""
        if self._mixed or not moves_nothing(call, self.file.inode):
            return False
        if not self.results:
            policy, vmas = self._state
            self._give(policy.copy(), None if vmas is None else vmas.copy())
        self.results[len(self.policies)] = set_policy(self.system, call)
        self.policies.append(None)
        return True

    def touch(self, first: int, end: int) -> bool:
        """Pages [first, end) are placed; returns whether they can be one of the list: once policies change, under one each."""
        policy = self.file.inode.shared_policy
        between = policy.between(first, end) if policy and end > first else []
        one = not between or (len(between) == 1 and between[0][0] <= first and between[0][1] >= end)
        self._mixed |= not one
        self.policies.append(between[0][2] if between and one else None)
        return one or not self.change

    def undo(self) -> None:
        """Leave policies as they were."""
        if self.change:
            before, self._state = self._state, self._taken()
            self._give(*before)

    def redo(self, operations: Sequence[sc.Operation]) -> None:
        """Carry out the calls among the first operations again."""
        if self.results and len(operations) > max(self.results):  # all: what came of them is known
            self._give(*self._state)
            return
        for operation in operations:
            if isinstance(operation, POLICY_CALLS):
                set_policy(self.system, operation)

    def _taken(self) -> tuple[mp.SharedPolicy, list[Vma] | None]:
        return self.file.inode.shared_policy, None if self.file.mapping is None else self.file.mapping.vmas

    def _give(self, policy: mp.SharedPolicy, vmas: list[Vma] | None) -> None:
        self.file.inode.shared_policy = policy
        if self.file.mapping is not None and vmas is not None:
            self.file.mapping.restore(vmas)


class Threads:
    """The threads of a list, each in every state that calls of the list give it; those of the system stay as they are."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.states: list[Thread] = list(system.tasks.values())
        self.results: dict[int, Result] = {}
        """Of calls, by their number."""
        self._now: dict[str | None, int] = {task: row for row, task in enumerate(system.tasks)}
        self._first = next(iter(system.tasks))
        self._known = {(one.index, one.nid, one.policy): row for row, one in enumerate(self.states)}

    def row(self, task: str | None) -> int:
        """The row of :attr:`states` that a thread has now; -1: there is none of that name."""
        return self._now.get(task or self._first, -1)

    def set(self, number: int, call: ThreadCall) -> bool:
        """Carry out a call, the list's ``number``-th; returns whether it can be one of the list."""
        if self.row(call.task) < 0:
            return False
        if isinstance(call, sc.SetMempolicy):
            policy, _ = calls_mempolicy.policy_of(self.system, call)
            if policy is not None and policy.interleaves:  # which sets the rotation back
                return False
        thread = self.system.task(call)
        before, now = replace(thread), self.states[self.row(call.task)]
        thread.policy, thread.nid = now.policy, now.nid
        self.results[number] = _of_thread(self.system, call)
        after = replace(thread)
        thread.policy, thread.nid = before.policy, before.nid
        row = self._known.setdefault((after.index, after.nid, after.policy), len(self.states))
        if row == len(self.states):
            self.states.append(after)
        self._now[thread.name] = row
        return True

    def redo(self, operations: Sequence[sc.Operation]) -> None:
        """Carry out the calls among the first operations."""
        for operation in operations if self.results else ():
            if isinstance(operation, THREAD_CALLS):
                _of_thread(self.system, operation)


def _of_thread(system: System, call: ThreadCall) -> Result:
    if isinstance(call, sc.SetMempolicy):
        return calls_mempolicy.set_mempolicy(system, call)
    return calls_host.sched_setaffinity(system, call)

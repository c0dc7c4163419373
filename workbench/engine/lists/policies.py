"""Calls that set policies of a file between its faults (``mm/mempolicy.c``: ``do_mbind``): which policy each fault finds.

What such a call does depends on nothing that a fault changes: those of a list are carried out first, to see what each fault will
find, and undone. When the faults are placed they are carried out again, as far as the list came.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import calls_mempolicy
from workbench.engine.mappings import Vma
from workbench.engine.objects import OpenFile, Result
from workbench.engine.system import System

PolicyCall = sc.Mbind | sc.Fbind | sc.SetPolicy
POLICY_CALLS = (sc.Mbind, sc.Fbind, sc.SetPolicy)


def moves_nothing(call: PolicyCall) -> bool:
    """Whether a call does nothing to pages that are there."""
    return not isinstance(call, sc.Mbind) or not (call.flags or call.raw_flags)


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
        if self._mixed or not moves_nothing(call):
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

"""Which operations ahead are carried out together: the lists that there are, asked in turn, the most usual first.

Calls that change nothing whatever the state is (:func:`workbench.engine.calls.idle`) end no list: they are left out of what the
lists are given, and what was before each of them is after it as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine.calls import CALLS, idle
from workbench.engine.lists.backends import BulkBackends
from workbench.engine.lists.devices import BulkDevices
from workbench.engine.lists.faults import BulkFaults, Done
from workbench.engine.lists.light import BulkLight
from workbench.engine.lists.light_faults import BulkLightFaults
from workbench.engine.lists.present import BulkPresent
from workbench.engine.lists.tracked import BulkTracked
from workbench.engine.objects import Result
from workbench.engine.system import System
from workbench.intervals import Int64s

_LOOKS = (sc.Observe, sc.Access, sc.GetMempolicy, sc.MovePages, sc.MigratePages)
"""What no list has."""


class LookAhead:
    """The lists of a run; each remembers from where on it is worth asking again."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._idle = frozenset(idle(system.scenario))
        busy = [type(operation) not in self._idle for operation in operations]
        self._all_busy = all(busy)
        self._place = np.cumsum(busy) - 1
        """Of each operation, its place among those that may change something, or that of the last one before it."""
        self._places = np.flatnonzero(busy)
        given = operations if self._all_busy else [operations[place] for place in self._places.tolist()]
        self._faults = BulkFaults(system, given)
        self._others = (
            BulkTracked(system, given),
            BulkLight(system, given, self._faults),
            BulkLightFaults(system, given, self._faults),
            BulkPresent(system, given, self._faults),
            BulkBackends(system, given),
            BulkDevices(system, given),
        )

    def run(self, number: int, results: Sequence[Result]) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone.

        results : of the operations before it
        """
        if type(self.operations[number]) in self._idle or isinstance(self.operations[number], _LOOKS):
            return None
        place = int(self._place[number])
        done = self._faults.run(place, results[int(self._places[place - 1])] if place else None)
        for one in self._others:
            if done is not None:
                break
            done = one.run(place)
        return done if done is None or self._all_busy else self._with_idle(number, done)

    def _with_idle(self, number: int, done: Done) -> Done:
        """A list with the calls between and after its own that change nothing."""
        place = int(self._place[number])
        end = int(np.searchsorted(self._place, place + len(done.results)))
        of = self._place[number:end] - place
        """The row of the list that each is, or comes after."""
        is_idle = np.append(False, of[1:] == of[:-1])
        results = [done.results[row] for row in of.tolist()]
        for row in np.flatnonzero(is_idle).tolist():
            operation = self.operations[number + row]
            results[row] = CALLS[type(operation)](self.system, operation)
        placed = done.placed[of]
        placed[is_idle] = 0
        states = done.states
        if states is not None:
            states = states._replace(
                counters=states.counters[of], users=[states.users[row] for row in of.tolist()],
                whole=_rows(states.whole, of), pamt=_rows(states.pamt, of), leaves=_rows(states.leaves, of),
            )  # fmt: skip
        return Done(results, placed, done.free[of], _rows(done.metadata, of), states, _rows(done.attributes, of))


def _rows(array: Int64s | None, of: Int64s) -> Int64s | None:
    return None if array is None else array[of]

"""Which operations ahead are carried out together: the lists that there are, asked in turn, the most usual first."""

from __future__ import annotations

from collections.abc import Sequence

from workbench import scenario as sc
from workbench.engine.lists.backends import BulkBackends
from workbench.engine.lists.devices import BulkDevices
from workbench.engine.lists.faults import BulkFaults, Done
from workbench.engine.lists.light import BulkLight
from workbench.engine.lists.light_faults import BulkLightFaults
from workbench.engine.lists.present import BulkPresent
from workbench.engine.lists.tracked import BulkTracked
from workbench.engine.objects import Result
from workbench.engine.system import System


class LookAhead:
    """The lists of a run; each remembers from where on it is worth asking again."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self._faults = BulkFaults(system, operations)
        self._others = (
            BulkTracked(system, operations),
            BulkLight(system, operations, self._faults),
            BulkLightFaults(system, operations, self._faults),
            BulkPresent(system, operations, self._faults),
            BulkBackends(system, operations),
            BulkDevices(system, operations),
        )

    def run(self, number: int, before: Result | None) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone.

        before : what the operation before it left
        """
        done = self._faults.run(number, before)
        for one in self._others:
            if done is not None:
                break
            done = one.run(number)
        return done

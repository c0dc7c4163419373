"""Run a scenario: operations on a :class:`workbench.engine.system.System`, and what they found as plain arrays."""

from __future__ import annotations

from collections.abc import Callable

from workbench import garbage
from workbench import scenario as sc
from workbench.answer import Answer, Log
from workbench.design import DESIGNS
from workbench.engine import attributes, conversions
from workbench.engine.calls import apply
from workbench.engine.generators import expand
from workbench.engine.lists.faults import LEAST
from workbench.engine.lists.look_ahead import LookAhead
from workbench.engine.system import System
from workbench.errors import Cancelled
from workbench.kernels.compile import prepare
from workbench.tracking.whole import WATCHED

Progress = Callable[[int, int], None]


def run(
    scenario: sc.Scenario,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    wait: bool = False,
) -> Answer:
    """Run a scenario; parameters and errors are those of :func:`workbench.simulation.simulate`.

    wait : for kernels that are not compiled yet, instead of interpreting them: one run of many is not the answer
    """
    prepare(kernels_needed(scenario), wait=wait)
    with garbage.seldom():
        system = System(scenario, cancelled)
        operations = list(expand(scenario))
        log = Log(system, operations)
        lists, number = LookAhead(system, operations), 0
        while number < len(operations):
            system.will_change(operations[number])
            done = lists.run(number, log.results)
            if done is None:
                system.placed[:], system.begun[:] = system.begun, 0
                log.keep(system, operations[number], apply(system, operations[number]))
                number += 1
            else:
                log.keep_many(system, done)
                number += len(done.results)
            if progress is not None:
                progress(number, len(operations))
            if cancelled():
                raise Cancelled
        system.settle()
        return Answer(system, log)


def kernels_needed(scenario: sc.Scenario) -> list[str]:
    """Modules of :mod:`workbench.kernels` whose entry points a run calls, in the order of their first call."""
    modules = ["zonelist", "placement", "fault_order", "filemap", "runs"]
    if not scenario.kinds.isdisjoint((sc.Fault, sc.Fallocate, sc.PunchHole)) and len(scenario.operations) > LEAST:
        modules += ["faults"]
    lists = len(scenario.operations) > LEAST and _lists_of_backends(scenario)
    if lists or attributes.wanted(scenario):
        modules += ["two_backends"] + ["backend_nodes"] * lists
    if DESIGNS[scenario.guest.design].from_zones:
        modules.append("zone_blocks")
    if conversions.wanted(scenario) or attributes.wanted(scenario):
        modules.append("sums")
    if conversions.wanted(scenario):
        modules.append("kept_frames")
        if DESIGNS[scenario.guest.design].store == "pfn map":
            modules += ["maps.maple", "pfn_range", "light_map"]
            if len(scenario.operations) > LEAST or scenario.guest.vm_type in WATCHED:
                modules += ["light_rows"]
            if len(scenario.operations) > LEAST:
                modules += ["state_ranges", "tree_nodes"]
        else:
            modules += ["folios.run", "folios.references", "state_ranges"]
        if scenario.guest.vm_type in WATCHED:
            modules.append("whole")
    return modules


def _lists_of_backends(scenario: sc.Scenario) -> bool:
    """Whether conversions out of place, or attributes, may run together."""
    no_lists = scenario.conversion_mode != "out-of-place" or DESIGNS[scenario.guest.design].store == "pfn map"
    if conversions.wanted(scenario) and no_lists:
        return False
    return (sc.SetMemoryAttributes in scenario.kinds and scenario.vm_attributes) or (
        sc.Convert in scenario.kinds and attributes.wanted(scenario)
    )

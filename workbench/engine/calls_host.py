"""What else happens on the host: threads move, other processes take memory, and somebody looks."""

from __future__ import annotations

import errno

import numpy as np

from workbench import scenario as sc
from workbench.engine.objects import Result, failed
from workbench.engine.system import System
from workbench.errors import WorkbenchError
from workbench.units import PAGE_SIZE


def sched_setaffinity(system: System, operation: sc.SchedSetaffinity) -> Result:
    """kernel/sched/syscalls.c: the thread runs on the node of that CPU from now on."""
    if operation.cpu < 0:
        return Result()
    if all(operation.cpu not in node.cpus for node in system.host.nodes):
        return failed(errno.EINVAL)
    system.task(operation).nid = system.index_of_node[system.host.node_of_cpu(operation.cpu)]
    return Result()


def hog(system: System, operation: sc.Hog) -> Result:
    """Anonymous memory of another process, preferred on (or bound to) one node."""
    node = system.index_of_node.get(operation.node)
    if node is None:
        return failed(errno.EINVAL)  # the other process's mbind is refused
    system.settle_blocks(broken_up=True)
    zones = [zone for zone in system.zonelists["memfd"][node] if zone >= 0 and system.zone_node[zone] == node]
    unit = int(system.zone_page_size[zones[0]]) if zones else PAGE_SIZE
    if operation.leave_free is not None:
        wanted = int(system.free[zones].sum()) - operation.leave_free // unit
    else:
        wanted = (operation.size or 0) // unit
    mark = system.watermarks[0 if operation.bind else 1] + system.reserve
    taken = np.zeros(len(system.free), np.int64)
    for zone in zones:
        taken[zone] = max(0, min(wanted - int(taken.sum()), int(system.free[zone] - mark[zone])))
    before = system.free.copy()
    system.free -= taken
    system.settle_cma(before)
    system.hogs.append((node, taken))
    system.settle_blocks()
    return Result(0, 0, {"pages": int(taken.sum())})


def unhog(system: System, operation: sc.Unhog) -> Result:
    """Give back what was taken."""
    for _, taken in system.hogs:
        before = system.free.copy()
        system.free += taken
        system.settle_cma(before)
    system.hogs.clear()
    system.settle_blocks()
    return Result()


def zones(system: System, operation: sc.Zones) -> Result:
    """Read the counters, or take those of a real kernel over (its background use is not in the scenario)."""
    if operation.observed and system.free_pfns is not None:
        raise WorkbenchError("zones.observed: cannot be taken over together with pfns: true or kexec")
    system.settle_blocks(broken_up=bool(operation.observed))
    marks = system.watermarks.copy()
    for label, state in (operation.observed or {}).items():
        if label in system.zone_labels:
            zone = system.zone_labels.index(label)
            system.free[zone] = state.free
            marks[:, zone] = (state.min, state.low, state.high)
    system.watermarks = marks
    system.settle_blocks()
    return Result(0, 0, {"free": dict(zip(system.zone_labels, system.free.tolist(), strict=True))})


def observe(system: System, operation: sc.Observe) -> Result:
    """Changes nothing; which node backs each page at this moment is recorded beside the call."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    return Result()


def access(system: System, operation: sc.Access) -> Result:
    """Changes nothing; what the vCPUs find at this moment is for the cost model, which the engine does not know."""
    file = system.files.get(operation.file)
    if file is None or file.descriptor is None:
        return failed(errno.EBADF)
    return Result()

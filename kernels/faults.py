"""Many faults of one file, one after another: which zone backs what each of them is the first to touch.

Linux: ``virt/kvm/guest_memfd.c`` (``kvm_gmem_get_folio``), ``mm/shmem.c``: a present page is found; of the others each is placed
by :func:`workbench.kernels.placement.place_pieces` under the policy at its index. A fault is what one operation of a scenario
touches, upwards or downwards; here a list of them costs what the pages cost, without a call from Python for each. One that has
no pages does nothing: of another operation between them the state is wanted as well.

=============== ============================ =====================================================================
``faults``      int64 (n, 5)                 first page, end, step (+1 or -1), row of ``row_of``, whether it maps
``ranges``      int64 (r, 2)                 policy ranges, ascending and disjoint
``row_of``      int64 (tasks, r + 1)         row of the request table under each range; the last one outside of all
=============== ============================ =====================================================================

"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels import runs as tables
from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.placement import (
    ALLOCATIONS,
    DONE,
    IN_PIECE,
    NEEDS_ROOM,
    OUT_OF_MEMORY,
    PIECE,
    Interleaving,
    Output,
    Requests,
    Zones,
    place_pieces,
)

LEFT = 3
"""Returned for a fault that has more pieces than there is room for: it is to be carried out alone."""
FAULT, STAGE, PIECES, ENTERED, STATUS = 0, 1, 2, 3, 4
"""Fields of ``at``: fault, what is done of it next, its pieces, allocation row entered next, and how placing ended."""
_BEGIN, _PLACE, _ENTER = 0, 1, 2
FREE_BLOCKS = 2
"""Of each set of runs, before a fault begins."""


@record
class Faults(NamedTuple):
    """A list of faults, what decides for them, and what they lead to."""

    faults: np.ndarray
    ranges: np.ndarray
    row_of: np.ndarray
    at: np.ndarray
    """int64 (5,), zero at the first call; carries on after NEEDS_ROOM."""
    holes: np.ndarray
    """int64 (room, 2), working space."""
    pieces: np.ndarray
    """int64 (room, 4), working space."""
    placed: np.ndarray
    """int64 (n, zones), receives the pages that each fault places."""
    free: np.ndarray
    """int64 (n, zones), receives the free pages after each."""
    rotations: np.ndarray
    """int64 (n, 2), receives the rotation of the fault's task after each."""


@kernel
def run(
    given: Faults,
    present: tables.Runs,
    mapped: tables.Runs,
    requests: Requests,
    turns: Interleaving,
    zones: Zones,
    output: Output,
) -> Int:
    """Carry out faults in their order; those that map enter their pages in the page table ``mapped`` as well.

    Returns DONE, NEEDS_ROOM (for allocation rows, tiles or runs), OUT_OF_MEMORY or LEFT, for the fault at ``at``.
    """
    at, faults, progress = given.at, given.faults, output.progress
    while at[FAULT] < faults.shape[0]:
        fault = at[FAULT]
        if at[STAGE] == _BEGIN:
            if _blocks(present) < FREE_BLOCKS or _blocks(mapped) < FREE_BLOCKS:
                return NEEDS_ROOM
            count = _find_pieces(given, fault, present)
            if count < 0:
                return LEFT
            at[PIECES], at[ENTERED], at[STAGE] = count, progress[ALLOCATIONS], _PLACE
            progress[PIECE], progress[IN_PIECE] = 0, 0
            for zone in range(zones.free.shape[0]):
                given.free[fault, zone] = zones.free[zone]
        if at[STAGE] == _PLACE:
            at[STATUS] = DONE
            if at[PIECES] > 0:
                at[STATUS] = place_pieces(given.pieces[: at[PIECES]], requests, turns, zones, output)
                if at[STATUS] == NEEDS_ROOM:
                    return NEEDS_ROOM
            at[STAGE] = _ENTER
        if at[ENTERED] < progress[ALLOCATIONS]:
            at[ENTERED] = tables.enter(present, output.allocations, at[ENTERED], progress[ALLOCATIONS])
            if at[ENTERED] < progress[ALLOCATIONS]:
                return NEEDS_ROOM
        for zone in range(zones.free.shape[0]):
            given.placed[fault, zone] = given.free[fault, zone] - zones.free[zone]
            given.free[fault, zone] = zones.free[zone]
        task = requests.task[given.row_of[faults[fault, 3], 0]]
        given.rotations[fault, 0], given.rotations[fault, 1] = turns.rotations[task, 0], turns.rotations[task, 1]
        if at[STATUS] == OUT_OF_MEMORY:
            return OUT_OF_MEMORY
        if faults[fault, 4] != 0:
            tables.join(mapped, faults[fault, 0], faults[fault, 1])
        at[STAGE] = _BEGIN
        at[FAULT] += 1
    return DONE


@kernel
def _blocks(runs: tables.Runs) -> Int:
    return runs.order.shape[0] - runs.head[tables.USED]


@kernel
def _find_pieces(given: Faults, fault: Int, present: tables.Runs) -> Int:
    """What of a fault's pages is absent, cut where policy ranges begin and end, in its order; -1: more than there is room for."""
    holes, pieces, ranges = given.holes, given.pieces, given.ranges
    first, end = given.faults[fault, 0], given.faults[fault, 1]
    step, task = given.faults[fault, 2], given.faults[fault, 3]
    found = tables.gaps(present, first, end, holes)
    if found > holes.shape[0]:
        return -1
    count = 0
    for number in range(found):
        low, stop = holes[number, 0], holes[number, 1]
        covering = _range_beyond(ranges, low)
        while low < stop:
            high, row = stop, ranges.shape[0]
            if covering < ranges.shape[0] and ranges[covering, 0] < stop:
                if ranges[covering, 0] > low:
                    high = ranges[covering, 0]
                else:
                    high, row = min(stop, ranges[covering, 1]), covering
                    covering += 1
            if count == pieces.shape[0]:
                return -1
            pieces[count, 0], pieces[count, 1] = low if step > 0 else high - 1, high - low
            pieces[count, 2], pieces[count, 3] = step, given.row_of[task, row]
            count += 1
            low = high
    if step < 0:
        for number in range(count // 2):
            for column in range(4):
                kept = pieces[number, column]
                pieces[number, column] = pieces[count - 1 - number, column]
                pieces[count - 1 - number, column] = kept
    return count


@kernel
def _range_beyond(ranges: np.ndarray, page: Int) -> Int:
    """First range whose end is above a page."""
    low, high = 0, ranges.shape[0]
    while low < high:
        middle = (low + high) // 2
        if ranges[middle, 1] <= page:
            low = middle + 1
        else:
            high = middle
    return low

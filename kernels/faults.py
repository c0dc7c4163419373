"""Many faults and holes of one file, one after another: which zone backs what is touched first, and what goes back.

Linux: ``virt/kvm/guest_memfd.c`` (``kvm_gmem_get_folio``), ``mm/shmem.c``: a present page is found; of the others each is placed
by :func:`workbench.kernels.placement.place_pieces` under the policy at its index. A fault is what one operation of a scenario
touches, upwards or downwards; here a list of them costs what the pages cost, without a call from Python for each. One that has
no pages does nothing: of another operation between them the state is wanted as well. A hole
(``virt/kvm/guest_memfd.c``: ``kvm_gmem_punch_hole``) frees what is there.

Nodes of the file's xarray come and go with its pages (``lib/xarray.c``: ``xas_create``, ``xas_delete_node``). Only those that
the list touches are known here. Ranges of an offset -> pfn map come and go, too (:mod:`workbench.engine.range_trees`).

=============== ============================ =====================================================================
``faults``      int64 (n, 5)                 first page, end, step (+1 or -1), row of ``row_of``, what it does; in the place of
                                             steps :data:`LEAVES` receives its zone, and :data:`GIVES_BACK` has the row that
                                             left, or -1 minus a zone
``ranges``      int64 (r, 2)                 policy ranges, ascending and disjoint
``row_of``      int64 (tasks, r + 1)         row of the request table under each range; the last one outside of all
=============== ============================ =====================================================================

"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels import runs as tables
from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.filemap import PERIOD, add_between, zone_of_page
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
FAULT, STAGE, PIECES, ENTERED, STATUS, EVENTS = range(6)
"""Fields of ``at``: fault, what is done of it next, its pieces, allocation row entered next, how placing ended, and events of
nodes that are written."""
TOUCHES, MAPS, HOLE, LEAVES, GIVES_BACK = range(5)
"""What a row does: has its pages placed, enters them in a page table as well, or frees them and takes them out of it; or takes
them out of file and table, and they stay taken (poisoned, or pinned: one page); or frees a page that left the file so
(``mm/gup.c: unpin_user_pages``)."""
NODES_SHIFT = 6
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
    """int64 (6,), zero at the first call; carries on after NEEDS_ROOM."""
    holes: np.ndarray
    """int64 (room, 2), working space."""
    pieces: np.ndarray
    """int64 (room, 4), working space."""
    entered: np.ndarray
    """int64 (n,), receives where the allocation rows of each end."""
    placed: np.ndarray
    """int64 (n, zones), receives the pages that each fault places."""
    free: np.ndarray
    """int64 (n, zones), receives the free pages after each."""
    rotations: np.ndarray
    """int64 (n, 2), receives the rotation of the fault's task after each."""
    ranges_more: np.ndarray
    """int64 (n,), receives by how many ranges the file's offset -> pfn map has more after each; (0,): it has none."""


@record
class Nodes(NamedTuple):
    """Nodes of the file's xarray that the rows touch, level after level from the lowest, of each level ascending."""

    owner: np.ndarray
    """int64 (nodes,), the NUMA node of each; -1: there is none."""
    first: np.ndarray
    """int64 (n, levels), where those of each row begin; without levels nothing is followed."""
    nid: np.ndarray
    """int64 (tasks,), NUMA node of each task."""
    events: np.ndarray
    """int64 (n times different NUMA nodes, 3), receives: row, NUMA node, and how many nodes came (went: negative)."""


@kernel
def run(
    given: Faults,
    nodes: Nodes,
    present: tables.Runs,
    mapped: tables.Runs,
    requests: Requests,
    turns: Interleaving,
    zones: Zones,
    output: Output,
) -> Int:
    """Carry out faults and holes in their order. ``mapped`` is the page table, or ``present`` again where there is none.

    Returns DONE, NEEDS_ROOM (for allocation rows, tiles or runs), OUT_OF_MEMORY or LEFT, for the fault at ``at``.
    """
    while given.at[FAULT] < given.faults.shape[0]:
        status = carry_out(given, nodes, present, mapped, requests, turns, zones, output)
        if status != DONE:
            return status
    return DONE


@kernel
def carry_out(
    given: Faults,
    nodes: Nodes,
    present: tables.Runs,
    mapped: tables.Runs,
    requests: Requests,
    turns: Interleaving,
    zones: Zones,
    output: Output,
) -> Int:
    """:func:`run` of one row."""
    at, faults, progress = given.at, given.faults, output.progress
    fault = at[FAULT]
    if faults[fault, 4] == GIVES_BACK:
        _give_back(given, fault, zones)
        _keep(given, fault, requests, turns, zones, progress[ALLOCATIONS])
        at[FAULT] += 1
        return DONE
    if at[STAGE] == _BEGIN:
        if _blocks(present) < FREE_BLOCKS or _blocks(mapped) < FREE_BLOCKS:
            return NEEDS_ROOM
        _count_ranges(given, fault, present, output, -1)
        if faults[fault, 4] >= HOLE:
            _punch(given, fault, present, mapped, zones, output)
            _count_ranges(given, fault, present, output, 1)
            _free_nodes(given, nodes, fault, present)
            _keep(given, fault, requests, turns, zones, progress[ALLOCATIONS])
            at[FAULT] += 1
            return DONE
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
    _keep(given, fault, requests, turns, zones, progress[ALLOCATIONS])
    if at[STATUS] == OUT_OF_MEMORY:
        return OUT_OF_MEMORY
    _count_ranges(given, fault, present, output, 1)
    if faults[fault, 4] == MAPS:
        tables.join(mapped, faults[fault, 0], faults[fault, 1])
    _enter_nodes(given, nodes, fault)
    at[STAGE] = _BEGIN
    at[FAULT] += 1
    return DONE


@kernel
def _keep(given: Faults, fault: Int, requests: Requests, turns: Interleaving, zones: Zones, allocations: Int) -> None:
    """The state after a row."""
    for zone in range(zones.free.shape[0]):
        given.free[fault, zone] = zones.free[zone]
    task = requests.task[given.row_of[given.faults[fault, 3], 0]]
    given.rotations[fault, 0], given.rotations[fault, 1] = turns.rotations[task, 0], turns.rotations[task, 1]
    given.entered[fault] = allocations


@kernel
def _punch(given: Faults, fault: Int, present: tables.Runs, mapped: tables.Runs, zones: Zones, output: Output) -> None:
    """Pages of a hole go back to their zones, if they do not stay taken."""
    first, end, found = given.faults[fault, 0], given.faults[fault, 1], given.pieces
    for zone in range(zones.free.shape[0]):
        given.placed[fault, zone] = 0
    if given.faults[fault, 4] == LEAVES:
        if tables.cut(present, first, end, found) > 0:
            given.faults[fault, 2] = zone_of_page(found[0, 0], found[0, 2], output.allocations, output.tiles)
    else:
        add_between(present, output.allocations, output.tiles, first, end, found, zones.free)
    tables.erase(present, first, end)
    tables.erase(mapped, first, end)


@kernel
def _give_back(given: Faults, fault: Int, zones: Zones) -> None:
    """A page that nobody holds any more goes back to its zone."""
    left = given.faults[fault, 2]
    for zone in range(zones.free.shape[0]):
        given.placed[fault, zone] = 0
    zones.free[given.faults[left, 2] if left >= 0 else -1 - left] += 1


@kernel
def _count_ranges(given: Faults, fault: Int, present: tables.Runs, output: Output, sign: Int) -> None:
    """Add (or take away) the ranges of the offset -> pfn map that begin at a page of a row, or right after its last one.

    Extents and holes: pages lie together that one call placed in one zone, or one call right after the other.
    """
    first, end = given.faults[fault, 0], given.faults[fault, 1]
    if given.ranges_more.shape[0] == 0:
        return
    if sign < 0:
        given.ranges_more[fault] = 0
    if first >= end:
        return
    count: Int = np.int64(first == 0)
    found, page = given.pieces, max(first - 1, 0)
    last: Int = np.int64(-1)  # page before, if it is there
    row: Int = np.int64(-1)
    zone: Int = np.int64(-1)
    while page <= end:
        parts = tables.cut(present, page, end + 1, found)
        page = end + 1 if parts <= found.shape[0] else found[found.shape[0] - 1, 0] + found[found.shape[0] - 1, 1]
        for part in range(min(parts, found.shape[0])):
            begin, pages, of = found[part, 0], found[part, 1], found[part, 2]
            at_begin = zone_of_page(begin, of, output.allocations, output.tiles)
            if last >= 0 and begin == last + 1:
                count += not (0 <= of - row <= 1 and zone == at_begin)
            else:
                count += np.int64(last >= 0) + np.int64(begin > max(first - 1, 0))
            last, row, zone = begin + pages - 1, of, at_begin
            if output.allocations[of, PERIOD] > 1:
                for place in range(begin + 1, begin + pages):
                    here = zone_of_page(place, of, output.allocations, output.tiles)
                    count += here != zone
                    zone = here
    count += 0 <= last < end
    given.ranges_more[fault] += sign * count


@kernel
def _enter_nodes(given: Faults, nodes: Nodes, fault: Int) -> None:
    """Nodes that pages which were touched need and that are not there; those that are hang on others.

    A single entry, of index 0, needs none.
    """
    first, end, levels = given.faults[fault, 0], given.faults[fault, 1], nodes.first.shape[1]
    if end <= first or levels == 0 or (levels == 1 and end == 1):
        return
    nid, begin = nodes.nid[given.faults[fault, 3]], given.at[EVENTS]
    for level in range(levels):
        shift, came = NODES_SHIFT * (level + 1), 0
        place = nodes.first[fault, level] - (first >> shift)
        for node in range(first >> shift, ((end - 1) >> shift) + 1):
            if nodes.owner[place + node] < 0:
                nodes.owner[place + node] = nid
                came += 1
        if came == 0:
            return
        _note(given, nodes, fault, begin, nid, came)


@kernel
def _free_nodes(given: Faults, nodes: Nodes, fault: Int, present: tables.Runs) -> None:
    """Nodes of a hole go; those at its ends stay if they hold anything yet, and so does each node above."""
    first, end, begin = given.faults[fault, 0], given.faults[fault, 1], given.at[EVENTS]
    for level in range(nodes.first.shape[1]):
        shift = NODES_SHIFT * (level + 1)
        low, high = first >> shift, ((end - 1) >> shift) + 1
        if _holds(present, low, shift):
            low += 1
        if low < high and _holds(present, high - 1, shift):
            high -= 1
        if low >= high:
            return
        place = nodes.first[fault, level] - (first >> shift)
        for node in range(low, high):
            nid = nodes.owner[place + node]
            if nid >= 0:
                nodes.owner[place + node] = -1
                _note(given, nodes, fault, begin, nid, -1)


@kernel
def _holds(present: tables.Runs, node: Int, shift: Int) -> bool:
    """Whether a page below a node is there."""
    page = tables.next_page(present, node << shift)
    return bool(0 <= page < (node + 1) << shift)


@kernel
def _note(given: Faults, nodes: Nodes, fault: Int, begin: Int, nid: Int, came: Int) -> None:
    """Nodes of one NUMA node that come, or go, with one row are one event."""
    for event in range(begin, given.at[EVENTS]):
        if nodes.events[event, 1] == nid:
            nodes.events[event, 2] += came
            return
    event = given.at[EVENTS]
    nodes.events[event, 0], nodes.events[event, 1], nodes.events[event, 2] = fault, nid, came
    given.at[EVENTS] += 1


@kernel
def has_room(runs: tables.Runs) -> bool:
    """Whether a row may begin."""
    return bool(_blocks(runs) >= FREE_BLOCKS)


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

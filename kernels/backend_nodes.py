"""Calls on a guest whose conversions are out of place, one by one: the state after each, and xarray nodes that come and go.

What they do to the two files is in :mod:`workbench.kernels.two_backends`. Beside the pages three trees change, in this order
(``lib/xarray.c``: ``xas_create``, ``xas_delete_node``): that of the file which loses pages, that of the file which gains some,
and the VM's attributes (``virt/kvm/kvm_main.c``: ``kvm_vm_set_mem_attributes``), which have an entry for each private gfn.
Of each only nodes that the calls of a list touch are known here, each with the NUMA node it lies on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.folios.state import ARGUMENT, CONVERT, CPU, LENGTH, OFFSET, OP, POISON, PUNCH
from workbench.kernels.placement import (
    ALLOCATIONS,
    DONE,
    NEEDS_ROOM,
    OUT_OF_MEMORY,
    Interleaving,
    Output,
    Requests,
    Zones,
)
from workbench.kernels.two_backends import (
    ALLOCATE,
    AT,
    ATTRIBUTES,
    BACKING,
    LOOK,
    NOTHING,
    PRIVATE,
    SAME_FILE,
    SET_ATTRIBUTES,
    SHARED,
    Asking,
    Backends,
    end_of_set,
    find,
    run,
)

LEFT = 3
"""Returned for a call of more than one part, or one for which a tree grows: it is to be carried out alone."""
NODES_SHIFT = 6
TREES = 3
"""Of the files PRIVATE and SHARED, and of the ATTRIBUTES."""
ERASED, ENTERED, SETTLED = range(3)
"""When nodes come or go: with the pages freed, with the pages placed, and with the attributes."""
PART_LOW, PART_HIGH, PART_TREE, PART_ROWS = range(4)
"""Columns of ``parts``."""
ROW, STAGE, LOW, HIGH, EVENTS = range(5)
"""Fields of ``at``: call, what is done of it next, its part that changes sides or is touched, events written."""
_BEGIN, _RUN = 0, 1
_PAGE_SHIFT = 12


@record
class Calls(NamedTuple):
    """A list of calls, whose ranges are whole pages inside the file, and what they lead to."""

    stream: np.ndarray
    """int64 (n, 6), as :func:`workbench.kernels.two_backends.run` takes them."""
    errors: np.ndarray
    """int32 (n,), stay 0."""
    at: np.ndarray
    """int64 (5,), zero at the first call; carries on after NEEDS_ROOM."""
    counts: np.ndarray
    """int64 (n, counters), receives the counters after each."""
    placed: np.ndarray
    """int64 (n, zones), receives the pages that each places."""
    free: np.ndarray
    """int64 (n, zones), receives the free pages after each."""
    rotations: np.ndarray
    """int64 (n, 2), receives the rotation of its task after each."""
    parts: np.ndarray
    """int64 (n, 4), receives of each the part that changes sides or is touched, its tree, and where the guest_memfd's allocation
    rows end."""


@record
class Nodes(NamedTuple):
    """Nodes of the three trees that the calls touch, level after level from the lowest, of each level ascending."""

    owner: np.ndarray
    """int64 (TREES, nodes), the NUMA node of each; -1: there is none."""
    first: np.ndarray
    """int64 (n, levels), where those of each call begin; without levels nothing is followed."""
    height: np.ndarray
    """int64 (TREES,), levels in use."""
    nid: np.ndarray
    """int64 (tasks,), NUMA node of each task."""
    events: np.ndarray
    """int64 (room, 4), receives: call, when, NUMA node, and how many nodes came (went: negative)."""


@kernel
def run_each(
    given: Calls,
    nodes: Nodes,
    pages: Int,
    b: Backends,
    private: Output,
    shared: Output,
    asking_private: Asking,
    asking_shared: Asking,
    requests_private: Requests,
    requests_shared: Requests,
    zones_private: Zones,
    zones_shared: Zones,
    turns: Interleaving,
) -> Int:
    """Carry out the calls on a guest of ``pages`` pages in their order.

    Returns DONE, NEEDS_ROOM (of the maps, rows or events), OUT_OF_MEMORY or LEFT, for the call at ``at``.
    """
    at, stream = given.at, given.stream
    while at[ROW] < stream.shape[0]:
        row = at[ROW]
        if at[STAGE] == _BEGIN:
            status = _look(given, nodes, row, zones_private.zonelists.shape[0], b)
            if status != DONE:
                return status
            given.parts[row, PART_LOW], given.parts[row, PART_HIGH] = at[LOW], at[HIGH]
            at[STAGE], b.where[AT] = _RUN, 0
        status = run(
            stream[row : row + 1],
            given.errors[row : row + 1],
            pages,
            b,
            private,
            shared,
            asking_private,
            asking_shared,
            requests_private,
            requests_shared,
            zones_private,
            zones_shared,
            turns,
        )
        if status == NEEDS_ROOM:
            return NEEDS_ROOM
        for zone in range(b.placed.shape[0]):
            given.placed[row, zone], given.free[row, zone] = b.placed[zone], zones_private.free[zone]
            b.placed[zone] = 0
        given.parts[row, PART_ROWS] = private.progress[ALLOCATIONS]
        for counter in range(b.counts.shape[0]):
            given.counts[row, counter] = b.counts[counter]
        task = stream[row, CPU]
        given.rotations[row, 0], given.rotations[row, 1] = turns.rotations[task, 0], turns.rotations[task, 1]
        if status == OUT_OF_MEMORY:
            return OUT_OF_MEMORY
        if nodes.first.shape[1] > 0 and at[LOW] < at[HIGH]:
            _follow(given, nodes, row, pages, b)
        at[STAGE] = _BEGIN
        at[ROW] += 1
    return DONE


@kernel
def _look(given: Calls, nodes: Nodes, row: Int, numa: Int, b: Backends) -> Int:
    """Find the part of a call that changes sides, or is touched; DONE, or why the call cannot be carried out here or now.

    ``numa``: NUMA nodes, each of which may be one event of what comes or goes.
    """
    at, to_shared, op = given.at, given.stream[row, ARGUMENT] != 0, given.stream[row, OP]
    start = given.stream[row, OFFSET] >> _PAGE_SHIFT
    end = start + (given.stream[row, LENGTH] >> _PAGE_SHIFT)
    low, high, beyond = end, end, end
    tree: Int = ATTRIBUTES
    if op == SET_ATTRIBUTES or op == PUNCH:
        low, high = start, end
    elif op == ALLOCATE:
        low, high, tree = start, end, PRIVATE
    elif op == LOOK or op == POISON:
        at[LOW], at[HIGH] = end, end
        return DONE
    elif op != CONVERT:
        low, high, tree = start, end, _touched(b, start, end)
        if tree == ATTRIBUTES or (tree == SHARED and b.where[BACKING] == NOTHING):  # no file has all of it
            return LEFT
    elif to_shared:
        tree = SHARED
        low = end_of_set(b, ATTRIBUTES, start, end)
        if find(b, ATTRIBUTES, low, end):
            high = b.found[0]
            beyond = end_of_set(b, ATTRIBUTES, high, end)
    elif find(b, ATTRIBUTES, start, end):
        low = max(start, b.found[0])
        high = end_of_set(b, ATTRIBUTES, low, end)
        if find(b, ATTRIBUTES, high, end):
            beyond = b.found[0]
    if beyond < end:
        return LEFT
    at[LOW], at[HIGH] = low, high
    given.parts[row, PART_TREE] = tree
    if nodes.first.shape[1] == 0 or low >= high:
        return DONE
    if nodes.events.shape[0] - at[EVENTS] < 2 * numa + 2:
        return NEEDS_ROOM
    if op == PUNCH or (op == SET_ATTRIBUTES and to_shared):  # no tree grows
        return DONE
    if (high - 1) >> (NODES_SHIFT * nodes.height[tree]) != 0:
        return LEFT
    return DONE


@kernel
def _follow(given: Calls, nodes: Nodes, row: Int, pages: Int, b: Backends) -> None:
    """Nodes that a call, which was just carried out, made and freed."""
    if given.stream[row, OP] == SET_ATTRIBUTES:
        if given.stream[row, ARGUMENT]:
            _free(given, nodes, row, ATTRIBUTES, SETTLED, pages, b)
        else:
            _enter(given, nodes, row, ATTRIBUTES, SETTLED)
    elif given.stream[row, OP] == PUNCH:
        _free(given, nodes, row, PRIVATE, ERASED, pages, b)
    elif given.stream[row, OP] == ALLOCATE:
        _enter(given, nodes, row, PRIVATE, ENTERED)
    elif given.stream[row, OP] != CONVERT:
        _enter(given, nodes, row, _touched(b, given.at[LOW], given.at[HIGH]), ENTERED)
    elif given.stream[row, ARGUMENT]:
        _free(given, nodes, row, PRIVATE, ERASED, pages, b)
        _enter(given, nodes, row, SHARED, ENTERED)
        _free(given, nodes, row, ATTRIBUTES, SETTLED, pages, b)
    else:
        _free(given, nodes, row, SHARED, ERASED, pages, b)
        _enter(given, nodes, row, ATTRIBUTES, SETTLED)


@kernel
def _free(given: Calls, nodes: Nodes, row: Int, tree: Int, when: Int, pages: Int, b: Backends) -> None:
    """Of the nodes of what changed sides, those at its ends stay if they hold anything yet, and so does each node above."""
    at, start = given.at, given.stream[row, OFFSET] >> _PAGE_SHIFT
    begin = at[EVENTS]
    for level in range(nodes.height[tree]):
        shift = NODES_SHIFT * (level + 1)
        low, high = at[LOW] >> shift, ((at[HIGH] - 1) >> shift) + 1
        if _holds(b, tree, low, shift, pages):
            low += 1
        if low < high and _holds(b, tree, high - 1, shift, pages):
            high -= 1
        if low >= high:
            return
        place = nodes.first[row, level] - (start >> shift)
        for node in range(low, high):
            nid = nodes.owner[tree, place + node]
            if nid >= 0:
                nodes.owner[tree, place + node] = -1
                _note(given, nodes, row, begin, when, nid, -1)


@kernel
def _enter(given: Calls, nodes: Nodes, row: Int, tree: Int, when: Int) -> None:
    """Nodes that what changed sides, or was touched, needs and that are not there; those that are hang on others.

    A single entry, of index 0, needs none.
    """
    at, start = given.at, given.stream[row, OFFSET] >> _PAGE_SHIFT
    if nodes.height[tree] <= 1 and at[HIGH] == 1:
        return
    nid, begin = nodes.nid[given.stream[row, CPU]], at[EVENTS]
    for level in range(nodes.height[tree]):
        shift, came = NODES_SHIFT * (level + 1), 0
        place = nodes.first[row, level] - (start >> shift)
        for node in range(at[LOW] >> shift, ((at[HIGH] - 1) >> shift) + 1):
            if nodes.owner[tree, place + node] < 0:
                nodes.owner[tree, place + node] = nid
                came += 1
        if came == 0:
            return
        _note(given, nodes, row, begin, when, nid, came)


@kernel
def _note(given: Calls, nodes: Nodes, row: Int, begin: Int, when: Int, nid: Int, came: Int) -> None:
    """Nodes of one NUMA node that come, or go, at one time are one event."""
    for event in range(begin, given.at[EVENTS]):
        if nodes.events[event, 2] == nid:
            nodes.events[event, 3] += came
            return
    event = given.at[EVENTS]
    nodes.events[event, 0], nodes.events[event, 1] = row, when
    nodes.events[event, 2], nodes.events[event, 3] = nid, came
    given.at[EVENTS] += 1


@kernel
def _touched(b: Backends, start: Int, end: Int) -> Int:
    """Which file has gfns [start, end), PRIVATE or SHARED; ATTRIBUTES if they are of both kinds."""
    if b.where[BACKING] == SAME_FILE:
        return PRIVATE
    shared_end = end_of_set(b, ATTRIBUTES, start, end)
    if shared_end == end:
        return SHARED
    if shared_end > start or find(b, ATTRIBUTES, start, end):
        return ATTRIBUTES
    return PRIVATE


@kernel
def _holds(b: Backends, tree: Int, node: Int, shift: Int, pages: Int) -> bool:
    """Whether a node has an entry: a page of a file, or the attribute of a private gfn."""
    start, end = node << shift, (node + 1) << shift
    if tree != ATTRIBUTES:
        return find(b, tree, start, end)
    end = min(end, pages)
    return bool(end_of_set(b, ATTRIBUTES, start, end) < end)

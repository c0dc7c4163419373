"""From faults to zones: which zone backs each page that a task touches for the first time.

Linux: ``mm/mempolicy.c`` (``policy_nodemask``, ``alloc_pages_mpol``, ``alloc_pages_preferred_many``) and
``mm/page_alloc.c`` (``get_page_from_freelist``, ``__alloc_pages_slowpath``). A request first tries every zone of its
zonelist that its filter allows down to the low watermark, then again down to the min watermark; PREFERRED_MANY does
both with the nodemask and both again without. A zone gives a page iff ``free > mark + lowmem_reserve``.

The cost follows events, not pages. Between two events (a zone reaching its mark, a policy range ending) the nodes
chosen repeat with the period of the rotation, so :func:`place_pieces` advances in closed form and emits one row per
stretch: the zones of one period (a *tile*) and how many pages it covers. :func:`place_list` evaluates page by page,
for fault orders that are not runs; both give the same answer.

Per-CPU free lists are not modelled: they move the page at which a zone is left by at most the pages they hold, and what they
hold when a task begins no file of a host tells (``workbench/docs/explanation/exact.md`` has the figures). The same code
serves hugetlb pools and PFN ranges: a pool is a zone with marks of 0, counted in its own page size.

Requests are rows of a table (:class:`Requests`), one for each pair of task and policy in use:

=============== ============================ =====================================================================
``kind``        int64 (requests,)            START, INTERLEAVE or WEIGHTED
``start``       int64 (requests,)            node index whose zonelist is followed (START only)
``nodes``       bool (requests, nodes)       nodes interleaved over
``filters``     bool (requests, 2, nodes)    nodes allowed in the first and in the second pass
``passes``      int64 (requests,)            1, or 2 for PREFERRED_MANY
``task``        int64 (requests,)            row of ``rotations``
``index_base``  int64 (requests,)            -1: the task's rotation decides; else ilx = index_base + page (tmpfs)
=============== ============================ =====================================================================

"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.mempolicy import (
    interleave_next,
    interleave_nid,
    next_node_in,
    weighted_interleave_next,
    weighted_interleave_nid,
)

START, INTERLEAVE, WEIGHTED = 0, 1, 2
DONE, NEEDS_ROOM, OUT_OF_MEMORY = 0, 1, 2
"""What the two kernels return."""

PIECE, IN_PIECE, ALLOCATIONS, TILES = 0, 1, 2, 3
"""Fields of the ``progress`` array: current piece, pages of it done, rows and tile entries written."""


@record
class Requests(NamedTuple):
    """The request table, see above."""

    kind: np.ndarray
    start: np.ndarray
    nodes: np.ndarray
    filters: np.ndarray
    passes: np.ndarray
    task: np.ndarray
    index_base: np.ndarray


@record
class Zones(NamedTuple):
    """Where pages are: zones of a kernel, pools of huge pages or PFN ranges."""

    free: np.ndarray
    """int64 (zones,), pages; reduced by what is placed."""
    marks: np.ndarray
    """int64 (2, zones), low and min watermark, each plus lowmem_reserve."""
    zone_node: np.ndarray
    """int64 (zones,)."""
    zonelists: np.ndarray
    """int64 (nodes, zones + 1) from :func:`workbench.kernels.zonelist.zonelists`."""


@record
class Interleaving(NamedTuple):
    """What turns."""

    rotations: np.ndarray
    """int64 (tasks, 2), [il_prev, il_weight] of each task; advanced."""
    weights: np.ndarray
    """int64 (nodes,), interleave weights, 1..255."""


@record
class Output(NamedTuple):
    """Where :func:`place_pieces` is, what it has written, and its working space."""

    progress: np.ndarray
    """int64 (4,), zero at the first call; carries on after NEEDS_ROOM."""
    allocations: np.ndarray
    """int64 (rows, 5), receives: first page touched, pages, step, tile offset, period."""
    tiles: np.ndarray
    """int16 (entries,), receives the zones of one period in the order they are touched."""
    cycle: np.ndarray
    """int64 (at least the sum of weights and of nodes,), working space."""
    target: np.ndarray
    """int64 (nodes,), working space."""
    taken: np.ndarray
    """int64 (zones,), working space."""


@kernel
def place_pieces(pieces: np.ndarray, requests: Requests, turns: Interleaving, zones: Zones, output: Output) -> Int:
    """Place runs of absent pages in the order they are touched.

    Parameters
    ----------
    pieces : int64 (pieces, 4): first page, pages, step (+1 or -1), request
    requests, turns, zones, output : see there

    Returns
    -------
    DONE, NEEDS_ROOM (give it longer ``allocations`` or ``tiles`` and call again) or OUT_OF_MEMORY (``progress`` says where).
    """
    progress, allocations, tiles = output.progress, output.allocations, output.tiles
    cycle, target, taken = output.cycle, output.target, output.taken
    free, weights = zones.free, turns.weights
    while progress[PIECE] < pieces.shape[0]:
        piece = progress[PIECE]
        request = pieces[piece, 3]
        step = pieces[piece, 2]
        remaining = pieces[piece, 1] - progress[IN_PIECE]
        if remaining == 0:
            progress[PIECE] += 1
            progress[IN_PIECE] = 0
            continue
        page = pieces[piece, 0] + step * progress[IN_PIECE]
        rotation = turns.rotations[requests.task[request]]
        leftover = (
            requests.kind[request] == WEIGHTED
            and requests.index_base[request] < 0
            and rotation[1] > 0
            and requests.nodes[request, rotation[0]]
        )
        if leftover:
            remaining = min(remaining, rotation[1])
        period = _fill_cycle(cycle, requests, request, rotation, weights, page, step, remaining, leftover)
        length = min(period, remaining)
        if progress[ALLOCATIONS] == allocations.shape[0] or progress[TILES] + length > tiles.shape[0]:
            return NEEDS_ROOM

        level = _eligible_level(zones, cycle[0], requests, request)
        if level < 0:
            return OUT_OF_MEMORY
        allowed = requests.filters[request, level // 2]
        mark = zones.marks[level % 2]
        target[:] = -1
        taken[:] = 0
        for position in range(length):
            node = cycle[position]
            if target[node] < 0:
                target[node] = _first_zone(zones, node, allowed, mark)
            taken[target[node]] += 1

        cycles = remaining // period
        for zone in range(taken.shape[0]):
            if taken[zone] > 0:
                cycles = min(cycles, (free[zone] - mark[zone]) // taken[zone])
        if cycles > 0:
            count = cycles * period
        else:
            # Less than one period fits or is left: go on to the page at which a zone reaches its mark.
            cycles = 1
            count = _prefix_until_mark(cycle, length, target, taken, free, mark)
            length = count
        offset = progress[TILES]
        for position in range(length):
            tiles[offset + position] = target[cycle[position]]
        for zone in range(taken.shape[0]):
            free[zone] -= taken[zone] * cycles
        _advance(rotation, requests, request, weights, cycle, (count - 1) % period, count, leftover)

        row = progress[ALLOCATIONS]
        allocations[row, 0] = page
        allocations[row, 1] = count
        allocations[row, 2] = step
        allocations[row, 3] = offset
        allocations[row, 4] = length
        progress[ALLOCATIONS] += 1
        progress[TILES] += length
        progress[IN_PIECE] += count
    return DONE


@kernel
def place_list(
    pages: np.ndarray,
    asked: np.ndarray,
    requests: Requests,
    turns: Interleaving,
    zones: Zones,
    cached: np.ndarray,
    out: np.ndarray,
) -> Int:
    """Place absent pages one by one, in any order and by any mix of tasks.

    Parameters
    ----------
    pages : int64 (n,), page indices in the order they are touched
    asked : int64 (n,), the request of each
    requests, turns, zones : see there
    cached : int64 (requests, nodes), working space: the zone a start node leads to, until a zone reaches a mark
    out : int16 (n,), receives the zone of each

    Returns
    -------
    Number of pages placed; less than ``n`` means that the next one found no memory.
    """
    free, marks = zones.free, zones.marks
    cached[:, :] = -1
    for position in range(pages.shape[0]):
        request = asked[position]
        rotation = turns.rotations[requests.task[request]]
        node = _choose_node(requests, request, pages[position], rotation, turns.weights)
        zone = cached[request, node]
        if zone < 0:
            level = _eligible_level(zones, node, requests, request)
            if level < 0:
                return position
            zone = _first_zone(zones, node, requests.filters[request, level // 2], marks[level % 2])
            cached[request, node] = zone
        free[zone] -= 1
        if free[zone] == marks[0, zone] or free[zone] <= marks[1, zone]:
            cached[:, :] = -1
        out[position] = zone
    return pages.shape[0]


@kernel
def _choose_node(requests: Requests, request: Int, page: Int, rotation: np.ndarray, weights: np.ndarray) -> Int:
    if requests.kind[request] == START:
        return requests.start[request]
    mask = requests.nodes[request]
    if requests.index_base[request] >= 0:
        ilx = requests.index_base[request] + page
        if requests.kind[request] == INTERLEAVE:
            return interleave_nid(ilx, mask)
        return weighted_interleave_nid(ilx, mask, weights)
    if requests.kind[request] == INTERLEAVE:
        return interleave_next(rotation, mask)
    return weighted_interleave_next(rotation, mask, weights)


@kernel
def _eligible_level(zones: Zones, node: Int, requests: Requests, request: Int) -> Int:
    """First of: pass 0 low, pass 0 min, pass 1 low, pass 1 min at which a zone gives a page; -1 if none.

    All zonelists hold the same zones in different orders, so the level does not depend on the start node.
    """
    for level in range(2 * requests.passes[request]):
        if _first_zone(zones, node, requests.filters[request, level // 2], zones.marks[level % 2]) >= 0:
            return level
    return -1


@kernel
def _first_zone(zones: Zones, node: Int, allowed: np.ndarray, mark: np.ndarray) -> Int:
    for position in range(zones.zonelists.shape[1]):
        zone = zones.zonelists[node, position]
        if zone < 0:
            return -1
        if allowed[zones.zone_node[zone]] and zones.free[zone] > mark[zone]:
            return zone
    return -1


@kernel
def _fill_cycle(
    cycle: np.ndarray,
    requests: Requests,
    request: Int,
    rotation: np.ndarray,
    weights: np.ndarray,
    page: Int,
    step: Int,
    remaining: Int,
    leftover: bool,
) -> Int:
    """Write the start nodes of the coming pages into ``cycle`` and return their period.

    At most ``remaining`` entries are written. ``leftover``: the node that still has il_weight pages is served first,
    as a stretch of its own, because after a change of weights or of policy it does not belong to the period.
    """
    node: Int
    if requests.kind[request] == START:
        cycle[0] = requests.start[request]
        return 1
    if leftover:
        for position in range(min(rotation[1], remaining)):
            cycle[position] = rotation[0]
        return rotation[1]
    weighted = requests.kind[request] == WEIGHTED
    mask = requests.nodes[request]
    period = 0
    for node in range(mask.shape[0]):
        if mask[node]:
            period += weights[node] if weighted else 1
    length = min(period, remaining)
    if requests.index_base[request] >= 0:
        ilx = (requests.index_base[request] + page) % period
        for position in range(length):
            if weighted:
                cycle[position] = weighted_interleave_nid(ilx, mask, weights)
            else:
                cycle[position] = interleave_nid(ilx, mask)
            ilx = (ilx + step) % period
        return period
    node, position = rotation[0], 0
    while position < length:
        node = next_node_in(node, mask)
        run = weights[node] if weighted else 1
        for _ in range(min(run, length - position)):
            cycle[position] = node
            position += 1
    return period


@kernel
def _prefix_until_mark(
    cycle: np.ndarray, length: Int, target: np.ndarray, taken: np.ndarray, free: np.ndarray, mark: np.ndarray
) -> Int:
    """Pages of ``cycle[:length]`` that fit before a zone reaches its mark; ``taken`` becomes what they take."""
    taken[:] = 0
    for position in range(length):
        zone = target[cycle[position]]
        if free[zone] - taken[zone] <= mark[zone]:
            return position
        taken[zone] += 1
    return length


@kernel
def _advance(
    rotation: np.ndarray,
    requests: Requests,
    request: Int,
    weights: np.ndarray,
    cycle: np.ndarray,
    last: Int,
    count: Int,
    leftover: bool,
) -> None:
    """Move the task's rotation past ``count`` pages, the last of which was entry ``last`` of the cycle."""
    if requests.kind[request] == START or requests.index_base[request] >= 0:
        return
    if leftover:
        rotation[1] -= count
        return
    node = cycle[last]
    rotation[0] = node
    if requests.kind[request] == WEIGHTED:
        used = 1
        while used <= last and cycle[last - used] == node:
            used += 1
        rotation[1] = weights[node] - used

"""Calls on a file without struct page one after another: conversions, faults, holes, pins, and what devices map.

:mod:`workbench.kernels.faults` places what a call needs that is not there, and frees what a hole takes, if that is wanted.
:mod:`workbench.kernels.light_map` converts; here is what follows from each row: the guest's leaves that go and come
(``virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin``, ``arch/x86/kvm/mmu/mmu.c: kvm_mmu_max_mapping_level``), nodes of the
map and of what is in the page cache, and what of the memory stays whole. A device takes no reference and is told of what goes
away (:mod:`workbench.engine.users`). What is not certain is left to who asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels import faults, light_map, placement, runs
from workbench.kernels.bits import test_bit
from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.filemap import COUNT, zone_of_page
from workbench.kernels.filemap import FIRST as FIRST_PLACED
from workbench.kernels.filemap import STEP as STEP_PLACED
from workbench.kernels.folios.run import (
    ARGUMENT,
    CONVERT,
    EAGAIN,
    EFAULT,
    EHWPOISON,
    EINVAL,
    ENOENT,
    GENERATION_B,
    GUEST_FAULT,
    HOST_FAULT,
    INSERT,
    LENGTH,
    MERGE,
    NEEDS_ROOM,
    OFFSET,
    OP,
    ORDER_1G,
    ORDER_2M,
    PAGES_1G,
    PAGES_2M,
    PIN,
    POISON,
    PUNCH,
    SIGBUS,
    UNPIN,
)
from workbench.kernels.light_map import LightState, next_in, next_poisoned, run_end
from workbench.kernels.maps import maple
from workbench.kernels.runs import FIRST, VALUE, Runs
from workbench.kernels.whole import Whole, change, lay_out

ROW, USED, MAPPED, LARGEST, WANTED, STAGE, CAME, DEVICE_USED, DEVICE_PAGES, AREAS_USED = range(10)
TOLD, LOST, ENTERED, REACHED, PART = range(10, 15)
"""Entries of ``at``: the next row, rows of ``leaves`` in use, pages that the guest has mapped, order of the largest leaf that its
kind allows, how much there is too little of, what of the row is done, units that came or went; rows of ``device_leaves`` in use,
pages that devices have mapped, rows of ``areas`` in use, invalidations that devices were told of, pages that they lost;
allocation rows of the file before the first row; rows of ``reached`` in use; where of a call that places
part by part the next part begins."""
DONE, LACKS_STATE, LACKS_BLOCKS, LACKS_LEAVES, REFUSED, LACKS_DEVICE_BLOCKS, LACKS_DEVICE_LEAVES, LACKS_AREAS = range(8)
LACKS_PLACES, OUT_OF_MEMORY, LEFT, LACKS_REACHED = 8, 9, 10, 11
"""Return codes: all rows are done; the map, the table of what is mapped, or that of its leaves must grow; a unit that was placed
cannot be put in; what is mapped for devices, their leaves, or their areas must grow; what is placed must; there is no memory for
the row, or it is left to be carried out alone; ``reached`` must grow."""
_BEGIN, _PLACES, _COMES, _IN = range(4)
DEVICE_MAP, DEVICE_UNMAP = 30, 31
"""Operations of devices, beyond those of :mod:`workbench.kernels.folios.run`."""
EEXIST = 17
LEVEL = 4
"""Column of ``leaves``."""
GROUP_SHIFT = 12
"""log2 of the pages below a node of the second level of an xarray: 64 of 64 pages."""


@record
class Rows(NamedTuple):
    """N nodes, n calls, each of which names at most k - 2 pages: what is left after each, and what the guest has mapped."""

    stream: np.ndarray
    """int64 (m, 6), columns as :mod:`workbench.kernels.folios.run` has them: CONVERT, HOST_FAULT of a page, GUEST_FAULT, PIN,
    UNPIN, PUNCH, POISON of a page, DEVICE_MAP, DEVICE_UNMAP, or MERGE, which does nothing but place. Each is a call."""
    errors: np.ndarray
    """int32 (m,)."""
    offsets: np.ndarray
    """int64 (m,), byte offsets that errors name, or of the first page that the host does not get, -1: none; of poison how many
    pages have it."""
    ends: np.ndarray
    """int64 (m,), up to which page a conversion to private, a hole, refused or not, or poison takes the host's mappings away; of
    a fault of the host how many pages it does not get."""
    reached: np.ndarray
    """int64 (r, 4), of faults of the host that get some of their pages only: row, pages that are shared, and whether they may be
    mapped (0: a poisoned one)."""
    counters: np.ndarray
    """int64 (n, COUNTERS + N), of the file, then vmemmap pages that it holds by node."""
    nodes: np.ndarray
    """int64 (n, 2), of the map, and of what is in the page cache."""
    mapped: np.ndarray
    """int64 (n,), pages that the guest has mapped."""
    whole: np.ndarray
    """int64 (n, 4 + 2 N), what stays whole; (0, ...): nobody asks."""
    leaves: np.ndarray
    """int64 (rows, 5), as :class:`workbench.engine.users.Mapped` has them."""
    device_leaves: np.ndarray
    """Likewise, of devices."""
    areas: np.ndarray
    """int64 (rows, 3), as :class:`workbench.engine.device_areas.DeviceAreas` has them."""
    devices: np.ndarray
    """int64 (n, 5), invalidations that devices were told of, pages that they have mapped, pages that they lost; of huge units how
    many 2 MiB, and 1 GiB, of these pages lie together in one state."""
    pieces: np.ndarray
    """int64 (k, 3), working space."""
    gaps: np.ndarray
    """int64 (k, 2), working space."""
    children: np.ndarray
    """int64 (cells,), of each node of the page cache above the lowest how many children it has, level by level; but that the
    lowest of these levels counts 2 MiB of its 16 MiB that are shared at all. Levels of one node are left out."""
    levels: np.ndarray
    """int64 (L,), where each level begins in ``children``."""
    there: np.ndarray
    """int64 (L,), nodes of each level that have any."""
    at: np.ndarray
    """int64 (15,), ROW ..."""
    before: np.ndarray
    """int64 (zones,), free pages before a call that places part by part."""


@kernel
def run(
    given: Rows,
    state: LightState,
    mapped: Runs,
    placed: Runs,
    watched: Whole,
    theirs: Runs,
    areas: Runs,
    touched: faults.Faults,
    nodes: faults.Nodes,
    requests: placement.Requests,
    turns: placement.Interleaving,
    zones: placement.Zones,
    output: placement.Output,
) -> Int:
    """Carry out rows from ``at[ROW]`` on.

    mapped : what the guest has mapped
    placed : what backs the file's units
    theirs, areas : what devices have mapped, and the areas in which they are told what goes away
    touched : rows (m, 5), units that each call may place or free; none: what is touched is there, and nothing leaves the file
    nodes, requests, turns, zones, output : as for :func:`workbench.kernels.faults.run`
    """
    places = touched.faults.shape[0] > 0
    order = state.options[light_map.UNIT_ORDER]
    for row in range(given.at[ROW], given.stream.shape[0]):
        given.at[ROW] = row
        call = given.stream[row]
        first = call[OFFSET] >> 12
        end = min((call[OFFSET] + call[LENGTH] + 4095) >> 12, state.options[light_map.PAGES])
        if call[OP] == HOST_FAULT and end - first > 1 and not _placed_together(state, call, first, end):
            return LEFT
        if places and call[OP] == PUNCH:
            if not faults.has_room(placed):
                return LACKS_PLACES
        elif places and given.at[STAGE] != _IN:
            status = _place(given, state, placed, touched, nodes, requests, turns, zones, output, row, first, end)
            if status != DONE:
                return status
        before = state.counts[light_map.N_CONVERTED]
        if call[OP] == CONVERT:
            status = _convert(given, state, mapped, theirs, areas, row, first, end)
        elif call[OP] == PIN or call[OP] == UNPIN:
            light_map.run(state, given.stream[: row + 1], given.errors, given.offsets, row)
            status = LACKS_STATE if given.errors[row] == NEEDS_ROOM else DONE
            if places and call[OP] == UNPIN and status == DONE:
                _take_back(state, touched, zones, row)
        elif call[OP] == HOST_FAULT:
            status = _touch_by_host(given, state, row, first, end)
        elif call[OP] == GUEST_FAULT:
            status = _fault(given, state, mapped, placed, row, first, end)
        elif call[OP] == PUNCH and places:
            status = _punch(
                given,
                state,
                mapped,
                placed,
                theirs,
                areas,
                touched,
                nodes,
                requests,
                turns,
                zones,
                output,
                row,
                first,
                end,
            )
        elif call[OP] == POISON:
            status = _poison(given, state, mapped, theirs, areas, row, first, end)
        elif call[OP] == DEVICE_MAP:
            status = _map_for_device(given, state, placed, theirs, areas, row, first, end)
        elif call[OP] == DEVICE_UNMAP:
            status = _unmap_for_device(given, theirs, areas, row, first, end)
        else:
            status = DONE if call[OP] == MERGE else LEFT
        if status != DONE:
            return status
        converted = state.counts[light_map.N_CONVERTED] != before
        if converted:
            _count_shared(given, state, first, end)
        if given.whole.shape[0] > 0 and (converted or given.at[CAME] > 0):
            if given.at[CAME] > 0:
                first, end = first >> order << order, ((end - 1) >> order) + 1 << order
            look_at(state, watched, first >> ORDER_2M, ((end - 1) >> ORDER_2M) + 1)
        _note(given, state, watched, theirs, row, converted or given.at[CAME] > 0)
        given.at[CAME], given.at[STAGE] = 0, _BEGIN
    given.at[ROW] = given.stream.shape[0]
    return DONE


# -------------------------------------------------------------------------------------------------------- places


@kernel
def _placed_together(s: LightState, call: np.ndarray, first: Int, end: Int) -> bool:
    """Whether page tables come before all that the host places, or after: of one unit, or none, of 4 KiB pages below one table.

    ARGUMENT 1: the rotation that places the pages places tables, too.
    """
    order = s.options[light_map.UNIT_ORDER]
    if first >> order == (end - 1) >> order:
        return True
    page = next_in(s, first, end, True)
    if order == 0 and call[ARGUMENT] == 0 and first >> ORDER_2M == (end - 1) >> ORDER_2M:
        return True
    while page < end:
        if s.unit_pfn[page >> order] < 0:
            return False
        page = next_in(s, min(end, ((page >> order) + 1) << order), end, True)
    return True


@kernel
def _touch_by_host(given: Rows, s: LightState, row: Int, first: Int, end: Int) -> Int:
    """The host gets what is shared of pages that are there, but for poisoned ones."""
    begin = used = given.at[REACHED]
    if used + 2 * (end - first) > given.reached.shape[0]:
        given.at[WANTED] = used + 2 * (end - first)
        return LACKS_REACHED
    page, gets = next_in(s, first, end, True), np.int64(0)
    bad: Int = first if page > first else end  # the first page that it does not get
    while page < end:
        stop = min(run_end(s, page, end, True), next_poisoned(s, page, end))
        poisoned = stop == page
        stop = page + 1 if poisoned else stop
        reached = given.reached[used]
        reached[0], reached[1], reached[2], reached[3] = row, page, stop, np.int64(not poisoned)
        used += 1
        gets += 0 if poisoned else stop - page
        if bad == end and (poisoned or (stop < end and not test_bit(s.shared, stop))):
            bad = page if poisoned else stop
        page = next_in(s, stop, end, True)
    given.errors[row] = 0 if used > begin else SIGBUS
    given.ends[row] = end - first - gets
    if gets < end - first:
        given.offsets[row] = bad << 12
        given.at[REACHED] = used
    return DONE


@kernel
def _place(
    given: Rows,
    s: LightState,
    placed: Runs,
    touched: faults.Faults,
    nodes: faults.Nodes,
    requests: placement.Requests,
    turns: placement.Interleaving,
    zones: placement.Zones,
    output: placement.Output,
    row: Int,
    first: Int,
    end: Int,
) -> Int:
    """Back what a call needs of its units, as its pages are now; they come into the file as they are placed."""
    order = s.options[light_map.UNIT_ORDER]
    if given.at[STAGE] == _BEGIN:
        low = touched.faults[row, 0]
        high = _placed_to(given, s, row, first, end, touched.faults[row, 1])
        touched.faults[row, 1] = max(low, high)
        if low < high and light_map.lacks_groups(s, low << order, min(high << order, s.options[light_map.PAGES])):
            return LEFT
        given.at[PART] = first
        for one in range(zones.free.shape[0]):
            given.before[one] = zones.free[one]
        if given.stream[row, OP] == HOST_FAULT:
            _next_part(given, s, touched, row, end)
        given.at[STAGE] = _PLACES
    while given.at[STAGE] == _PLACES:
        status = faults.carry_out(touched, nodes, placed, placed, requests, turns, zones, output)
        for one in range(zones.free.shape[0]):
            touched.placed[row, one] = given.before[one] - zones.free[one]
        if status != placement.DONE:
            if status == placement.NEEDS_ROOM:
                return LACKS_PLACES
            return OUT_OF_MEMORY if status == placement.OUT_OF_MEMORY else LEFT
        if given.stream[row, OP] == HOST_FAULT and _next_part(given, s, touched, row, end):
            touched.at[faults.FAULT] -= 1
        else:
            given.at[STAGE] = _COMES
    came = 0
    for allocation in range(given.at[ENTERED] if row == 0 else touched.entered[row - 1], touched.entered[row]):
        rows = output.allocations[allocation]
        for place in range(rows[COUNT]):
            unit = rows[FIRST_PLACED] + place * rows[STEP_PLACED]
            zone = zone_of_page(unit, allocation, output.allocations, output.tiles)
            error = light_map.one(s, INSERT, unit << order << 12, 0, 0, zones.zone_node[zone])
            if error != 0:
                return LACKS_STATE if error == NEEDS_ROOM else REFUSED
            came += 1
    given.at[CAME] += came
    given.at[STAGE] = _IN
    return DONE


@kernel
def _placed_to(given: Rows, s: LightState, row: Int, first: Int, end: Int, high: Int) -> Int:
    """Up to which unit a call places those that are absent: the host reaches what is shared, a pin what lies before it is not."""
    call = given.stream[row]
    if call[OP] == HOST_FAULT:
        return high if next_in(s, first, end, True) < end else 0
    if call[OP] == PIN:
        stop = min(run_end(s, first, end, True), next_poisoned(s, first, end))
        return 0 if stop == first else min(high, ((stop - 1) >> s.options[light_map.UNIT_ORDER]) + 1)
    return high


@kernel
def _next_part(given: Rows, s: LightState, touched: faults.Faults, row: Int, end: Int) -> bool:
    """The next run of shared pages that the host touches: what it has of units may be placed."""
    order = s.options[light_map.UNIT_ORDER]
    page = next_in(s, given.at[PART], end, True)
    given.at[PART] = stop = run_end(s, page, end, True)
    touched.faults[row, 0], touched.faults[row, 1] = 0, 0
    if page < end:
        touched.faults[row, 0], touched.faults[row, 1] = page >> order, ((stop - 1) >> order) + 1
    return bool(page < end)


@kernel
def _punch(
    given: Rows,
    s: LightState,
    mapped: Runs,
    placed: Runs,
    theirs: Runs,
    areas: Runs,
    touched: faults.Faults,
    nodes: faults.Nodes,
    requests: placement.Requests,
    turns: placement.Interleaving,
    zones: placement.Zones,
    output: placement.Output,
    row: Int,
    first: Int,
    end: Int,
) -> Int:
    """Units of a hole leave the file, up to one that somebody holds; a poisoned one is not free then."""
    if _lacks_blocks(given, mapped, 1):
        return LACKS_BLOCKS
    if _lacks_blocks(given, theirs, 1):
        return LACKS_DEVICE_BLOCKS
    order = s.options[light_map.UNIT_ORDER]
    low, high = touched.faults[row, 0], touched.faults[row, 1]
    spoiled = _not_free(given, s, placed, output, low, high)
    light_map.run(s, given.stream[: row + 1], given.errors, given.offsets, row)
    error, held = given.errors[row], given.offsets[row] >> 12
    if error == NEEDS_ROOM:
        return LACKS_STATE
    given.ends[row] = end
    if error == EAGAIN:
        high = min(high, held >> order)
        if s.options[light_map.GENERATION] == GENERATION_B:
            given.ends[row] = min(end, ((held >> order) + 1) << order)
    elif error != 0:
        high = low
    if error == 0 or error == EAGAIN:
        _invalidate(given, mapped, theirs, areas, first, end)
    touched.faults[row, 1] = max(low, high)
    faults.carry_out(touched, nodes, placed, placed, requests, turns, zones, output)
    for number in range(spoiled):
        unit, zone = given.gaps[number, 0], given.gaps[number, 1]
        poisoned = zone < 0
        zone = ~zone if poisoned else zone
        held_still = order == 0 and light_map.stays_taken(s, unit, zone)
        if unit < high and (poisoned or held_still):
            zones.free[zone] -= 1
            touched.free[row, zone] -= 1
    given.at[CAME] += low < high
    return DONE


@kernel
def _not_free(given: Rows, s: LightState, placed: Runs, output: placement.Output, low: Int, high: Int) -> Int:
    """Units [low, high) that may stay taken when they leave the file, and zones (~zone: poisoned), into ``gaps``; how many."""
    order, count = s.options[light_map.UNIT_ORDER], 0
    if s.counts[light_map.N_POISONED] == 0 and (order > 0 or s.counts[light_map.N_PINS] == 0):
        return 0
    for unit in range(low, high):
        poisoned = next_poisoned(s, unit << order, (unit + 1) << order) < (unit + 1) << order
        if not poisoned and (order > 0 or not light_map.is_held(s, unit)):
            continue
        if runs.cut(placed, unit, unit + 1, given.pieces) > 0:
            zone = zone_of_page(unit, given.pieces[0, VALUE], output.allocations, output.tiles)
            given.gaps[count, 0], given.gaps[count, 1] = unit, ~zone if poisoned else zone
            count += 1
    return count


@kernel
def _take_back(s: LightState, touched: faults.Faults, zones: placement.Zones, row: Int) -> None:
    """What had left the file and is held by nobody any more is free."""
    for zone in range(s.given_back.shape[0]):
        zones.free[zone] += s.given_back[zone]
        touched.free[row, zone] += s.given_back[zone]
        s.given_back[zone] = 0


@kernel
def _note(given: Rows, s: LightState, watched: Whole, theirs: Runs, call: Int, changed: bool) -> None:
    counters = s.counts.shape[0]
    for counter in range(counters):
        given.counters[call, counter] = s.counts[counter]
    for node in range(s.taken.shape[0]):
        given.counters[call, counters + node] = s.taken[node] - s.freed[node]
    given.nodes[call, 0] = s.top[maple.NODES]
    given.nodes[call, 1] = _shared_nodes(given, s)
    given.mapped[call] = given.at[MAPPED]
    given.devices[call, 0], given.devices[call, 1] = given.at[TOLD], given.at[DEVICE_PAGES]
    given.devices[call, 2] = given.at[LOST]
    if s.options[light_map.UNIT_ORDER] > 0:
        if not changed and call > 0 and given.devices[call - 1, 1] == given.at[DEVICE_PAGES]:
            given.devices[call, 3], given.devices[call, 4] = given.devices[call - 1, 3], given.devices[call - 1, 4]
        else:
            _count_leaves(given, s, theirs, call)
    if given.whole.shape[0] > 0:
        for entry in range(watched.row.shape[0]):
            given.whole[call, entry] = watched.row[entry]


@kernel
def _lacks_blocks(given: Rows, mapped: Runs, changes: Int) -> bool:
    """Whether so many runs that are put in may need more blocks than are free: a block that is full becomes two."""
    used = mapped.head[runs.USED]
    given.at[WANTED] = min(changes, used + changes // (runs.BLOCK // 2) + 1) + 1
    return bool(mapped.order.shape[0] - used < given.at[WANTED])


# ------------------------------------------------------------------------------------------------------ conversions


@kernel
def _convert(
    given: Rows, s: LightState, mapped: Runs, theirs: Runs, areas: Runs, row: Int, first: Int, end: Int
) -> Int:
    to_shared = given.stream[row, ARGUMENT] == 1
    parts = 0
    page = next_in(s, first, end, not to_shared)
    while page < end:
        stop = run_end(s, page, end, not to_shared)
        given.gaps[parts, 0], given.gaps[parts, 1] = page, stop
        parts += 1
        page = next_in(s, stop, end, not to_shared)
    if _lacks_blocks(given, mapped, parts):
        return LACKS_BLOCKS
    if _lacks_blocks(given, theirs, parts):
        return LACKS_DEVICE_BLOCKS
    light_map.run(s, given.stream[: row + 1], given.errors, given.offsets, row)
    error, offset = given.errors[row], given.offsets[row]
    if error == NEEDS_ROOM:
        return LACKS_STATE
    given.ends[row] = _unmapped_to(s, offset >> 12, end) if error == EAGAIN else end
    if parts == 0 or error == EINVAL:
        return DONE
    stop = given.gaps[parts - 1, 1]
    order = s.options[light_map.UNIT_ORDER]
    if error != 0 and (s.options[light_map.GENERATION] == GENERATION_B or order == 0):
        stop = stop if offset >= 0 else 0
    elif error != 0 and offset >= 0:
        stop = offset >> 12 >> order << order
    for part in range(parts):
        _invalidate(given, mapped, theirs, areas, given.gaps[part, 0], min(given.gaps[part, 1], stop))
    return DONE


@kernel
def _unmapped_to(s: LightState, held: Int, end: Int) -> Int:
    """End of what is unmapped before a conversion finds that somebody holds a page: run by run, unit by unit, or all at once."""
    order = s.options[light_map.UNIT_ORDER]
    if order == 0:
        return end
    if s.options[light_map.GENERATION] == GENERATION_B:
        return run_end(s, held, end, True)
    return min(end, ((held >> order) + 1) << order)


@kernel
def _invalidate(given: Rows, mapped: Runs, theirs: Runs, areas: Runs, start: Int, end: Int) -> None:
    """Pages [start, end) change sides, or go away: the guest loses its leaves, and devices are told of what an area has."""
    if end <= start:
        return
    _zap(given, mapped, given.leaves, MAPPED, start, end)
    if _any(areas, start, end):
        before = given.at[DEVICE_PAGES]
        _zap(given, theirs, given.device_leaves, DEVICE_PAGES, start, end)
        given.at[TOLD] += 1
        given.at[LOST] += before - given.at[DEVICE_PAGES]


@kernel
def _any(table: Runs, start: Int, end: Int) -> bool:
    """Whether a run has a page of [start, end)."""
    page = runs.next_page(table, start)
    return bool(0 <= page < end)


@kernel
def _zap(given: Rows, mapped: Runs, leaves: np.ndarray, count: Int, start: Int, end: Int) -> None:
    """Take away the leaves that pages [start, end) touch, huge ones whole; ``count``: the entry of ``at`` that counts them."""
    if end <= start or given.at[count] == 0:
        return
    low, high = start, end
    for side in range(1 if end - start == 1 else 2):
        border = start if side == 0 else end - 1
        order = _order_at(given, mapped, leaves, border)
        if order > 0:
            low, high = min(low, border >> order << order), max(high, ((border >> order) + 1) << order)
    _erase(given, mapped, count, low, high)


@kernel
def _order_at(given: Rows, mapped: Runs, leaves: np.ndarray, page: Int) -> Int:
    """Order of the leaf that maps a page; -1: none does."""
    if runs.cut(mapped, page, page + 1, given.pieces) == 0:
        return -1
    return _order_of(leaves[given.pieces[0, VALUE], LEVEL])


@kernel
def _order_of(level: Int) -> Int:
    return 0 if level == 0 else ORDER_2M if level == 1 else ORDER_1G


@kernel
def _erase(given: Rows, mapped: Runs, count: Int, start: Int, end: Int) -> None:
    gone = runs.pages_in(mapped, start, end)
    if gone > 0:
        runs.erase(mapped, start, end)
        given.at[count] -= gone


@kernel
def _poison(given: Rows, s: LightState, mapped: Runs, theirs: Runs, areas: Runs, row: Int, first: Int, end: Int) -> Int:
    """Pages that are there are poisoned, each for itself: nobody has them mapped any more."""
    if _lacks_blocks(given, mapped, end - first):
        return LACKS_BLOCKS
    if _lacks_blocks(given, theirs, end - first):
        return LACKS_DEVICE_BLOCKS
    for bad in range(first, end):
        if light_map.one(s, POISON, bad << 12, 4096, 0, 0) == NEEDS_ROOM:
            return LACKS_STATE
    order, marked = s.options[light_map.UNIT_ORDER], np.int64(0)
    page: Int = first
    while page < end:
        stop: Int = page
        while stop < end and s.unit_pfn[stop >> order] >= 0:
            stop += 1
        if page < stop:
            told = given.at[TOLD] + runs.pages_in(areas, page, stop)
            _invalidate(given, mapped, theirs, areas, page, stop)
            given.at[TOLD] = told
        marked += stop - page
        page = stop + 1
    given.ends[row], given.offsets[row] = end, marked
    given.errors[row] = 0 if marked > 0 else ENOENT
    return DONE


# ------------------------------------------------------------------------------------------------------ devices


@kernel
def _map_for_device(
    given: Rows, s: LightState, placed: Runs, theirs: Runs, areas: Runs, row: Int, first: Int, end: Int
) -> Int:
    """A new area of pages that are all there; nobody is given the pfn of a poisoned one (``iopt_check_iova``)."""
    if _any(areas, first, end):
        given.errors[row] = EEXIST
        return DONE
    order, page = s.options[light_map.UNIT_ORDER], first
    while page < end and s.unit_pfn[page >> order] >= 0:
        page = ((page >> order) + 1) << order
    missing = min(page, next_poisoned(s, first, end))
    if missing < end:
        given.errors[row], given.offsets[row] = EFAULT, missing << 12
        return DONE
    most = end - first + 1
    if given.at[DEVICE_USED] + most > given.device_leaves.shape[0]:
        given.at[WANTED] = most
        return LACKS_DEVICE_LEAVES
    if _lacks_blocks(given, theirs, 2 * most):
        return LACKS_DEVICE_BLOCKS
    used = given.at[AREAS_USED]
    if used == given.areas.shape[0] or _lacks_blocks(given, areas, 1):
        given.at[WANTED] = 2
        return LACKS_AREAS
    given.areas[used, 0], given.areas[used, 1], given.areas[used, 2] = first, end - first, 1
    runs.enter(areas, given.areas, used, used + 1)
    given.at[AREAS_USED] += 1
    _add(given, s, theirs, placed, given.device_leaves, DEVICE_USED, first, end, 0)
    return DONE


@kernel
def _count_leaves(given: Rows, s: LightState, theirs: Runs, call: Int) -> None:
    """Page tables of devices batch what lies together (:meth:`workbench.tracking.whole.Whole.device_leaves`)."""
    counts, pages = given.devices[call], s.options[light_map.PAGES]
    counts[3], counts[4] = 0, 0
    if given.at[DEVICE_PAGES] == 0:
        return
    page, begin, stop = np.int64(0), np.int64(0), np.int64(0)
    while page < pages:
        count = runs.cut(theirs, page, pages, given.pieces)
        for piece in range(min(count, given.pieces.shape[0])):
            if given.pieces[piece, FIRST] != stop:
                _count_together(s, begin, stop, counts)
                begin = given.pieces[piece, FIRST]
            stop = given.pieces[piece, FIRST] + given.pieces[piece, runs.LENGTH]
        page = pages if count <= given.pieces.shape[0] else stop
    _count_together(s, begin, stop, counts)


@kernel
def _count_together(s: LightState, first: Int, end: Int, counts: np.ndarray) -> None:
    order, low, high = s.options[light_map.UNIT_ORDER], (first + PAGES_2M - 1) >> ORDER_2M, end >> ORDER_2M
    for block in range(low, high):
        alike = s.shared_2m[block] == 0 or s.shared_2m[block] == PAGES_2M
        counts[3] += alike and s.unit_pfn[block >> (order - ORDER_2M)] >= 0
    if order == ORDER_1G:
        for giga in range((first + PAGES_1G - 1) >> ORDER_1G, end >> ORDER_1G):
            alike = s.shared_1g[giga] == 0 or s.shared_1g[giga] == PAGES_1G
            counts[4] += alike and s.unit_pfn[giga] >= 0


@kernel
def _unmap_for_device(given: Rows, theirs: Runs, areas: Runs, row: Int, first: Int, end: Int) -> Int:
    """Whole areas go (``iopt_unmap_iova_range``)."""
    if _lacks_blocks(given, theirs, 1):
        return LACKS_DEVICE_BLOCKS
    count = runs.cut(areas, first, end, given.pieces)
    if count > 0:
        last = given.areas[given.pieces[count - 1, VALUE]]
        if given.areas[given.pieces[0, VALUE], 0] < first or last[0] + last[1] > end:
            count = 0
    if count == 0:
        given.errors[row] = ENOENT
        return DONE
    _erase(given, theirs, DEVICE_PAGES, first, end)
    runs.erase(areas, first, end)
    return DONE


# ------------------------------------------------------------------------------------------------------- faults


@kernel
def _fault(given: Rows, s: LightState, mapped: Runs, placed: Runs, row: Int, first: Int, end: Int) -> Int:
    """The guest touches pages that are there: what it had not mapped gets leaves, up to a poisoned page."""
    most = 3 * (end - first) + 2  # each page a gap of its own, and units at both ends
    if given.at[USED] + most > given.leaves.shape[0]:
        given.at[WANTED] = most
        return LACKS_LEAVES
    if _lacks_blocks(given, mapped, 2 * most):
        return LACKS_BLOCKS
    bad = next_poisoned(s, first, end)
    if bad < end:
        given.errors[row], given.offsets[row] = EHWPOISON, bad << 12
    page = first
    while page < bad:
        shared = test_bit(s.shared, page)
        stop = run_end(s, page, bad, shared)
        for gap in range(runs.gaps(mapped, page, stop, given.gaps)):
            _map(given, s, mapped, placed, given.gaps[gap, 0], given.gaps[gap, 1], shared)
        page = stop
    return DONE


@kernel
def _map(given: Rows, s: LightState, mapped: Runs, placed: Runs, page: Int, end: Int, shared: bool) -> None:
    """Leaves for pages [page, end) of one state, as large as the unit, its state and the kind of guest allow."""
    while page < end:
        level = 0 if shared else _level(given, s, page >> ORDER_2M)
        stop = min(end, ((page >> ORDER_2M) + 1) << ORDER_2M)
        while stop < end and (shared or _level(given, s, stop >> ORDER_2M) == level):
            stop = min(end, stop + PAGES_2M)
        order = _order_of(level)
        low, high = page >> order << order, (stop + (1 << order) - 1) >> order << order
        _add(given, s, mapped, placed, given.leaves, USED, low, high, level)
        page = stop


@kernel
def _level(given: Rows, s: LightState, block: Int) -> Int:
    """Level of the leaf that a fault on private pages of a block of 2 MiB installs."""
    order, largest = s.options[light_map.UNIT_ORDER], given.at[LARGEST]
    if order == 0 or largest == 0:
        return 0
    giga = block >> (ORDER_1G - ORDER_2M)
    if order == ORDER_1G and largest == ORDER_1G and s.shared_1g[giga] == 0 and not _bad(s, giga, ORDER_1G):
        return 2
    return 1 if s.shared_2m[block] == 0 and not _bad(s, block, ORDER_2M) else 0


@kernel
def _bad(s: LightState, block: Int, order: Int) -> bool:
    """Whether a block has a poisoned page."""
    end = (block + 1) << order
    return bool(next_poisoned(s, block << order, end) < end)


@kernel
def _add(
    given: Rows,
    s: LightState,
    mapped: Runs,
    placed: Runs,
    leaves: np.ndarray,
    uses: Int,
    start: Int,
    end: Int,
    level: Int,
) -> None:
    """Map pages [start, end), in place of what was there, by the frames that back them.

    ``uses``: the entry of ``at`` that says how many rows of ``leaves`` are in use; the next one counts pages.
    What a hole of this list takes away again has no frame any more.
    """
    order = s.options[light_map.UNIT_ORDER]
    begin, page, used = given.at[uses], start, given.at[uses]
    count = runs.cut(placed, start >> order, (end + (1 << order) - 1) >> order, given.pieces)
    for piece in range(count):
        unit = given.pieces[piece, FIRST]
        low = max(unit << order, start)
        pages = min((unit + given.pieces[piece, runs.LENGTH]) << order, end) - low
        if page < low:
            _set_leaf(leaves, used, page, low - page, -1, level)
            used += 1
        _set_leaf(leaves, used, low, pages, 2 * given.pieces[piece, VALUE], level)
        used += 1
        page = low + pages
    if page < end and order == 0:
        _set_leaf(leaves, used, page, end - page, -1, level)
        used += 1
    for leaf in range(begin, used):
        _erase(given, mapped, uses + 1, leaves[leaf, 0], leaves[leaf, 0] + leaves[leaf, 1])
        given.at[uses + 1] += leaves[leaf, 1]
    given.at[uses] = used
    runs.enter(mapped, leaves, begin, used)


@kernel
def _set_leaf(leaves: np.ndarray, number: Int, page: Int, pages: Int, frame: Int, level: Int) -> None:
    row = leaves[number]
    row[0], row[1], row[2], row[3], row[LEVEL] = page, pages, 1, frame, level


# ------------------------------------------------------------------------------------------- nodes, and what is whole


@kernel
def _shared_nodes(given: Rows, s: LightState) -> Int:
    """xarray nodes of what is in the page cache: groups of struct pages are the lowest, and one is the highest."""
    count = s.counts[light_map.N_VMEMMAP]
    if count > 0:
        for level in range(given.there.shape[0]):
            count += given.there[level]
        count += 1
    return count


@kernel
def _count_shared(given: Rows, s: LightState, first: Int, end: Int) -> None:
    """Pages [first, end) have changed sides: nodes above them have children, or none."""
    if given.levels.shape[0] == 0:
        return
    blocks = 1 << (GROUP_SHIFT - ORDER_2M)
    for cell in range(first >> GROUP_SHIFT, ((end - 1) >> GROUP_SHIFT) + 1):
        before, now = given.children[cell], np.int64(0)
        for block in range(cell * blocks, min((cell + 1) * blocks, s.shared_2m.shape[0])):
            now += s.shared_2m[block] > 0
        given.children[cell] = now
        level, number = 0, cell
        while (before > 0) != (now > 0):
            change = 1 if now > 0 else -1
            given.there[level] += change
            level, number = level + 1, number >> 6
            if level == given.levels.shape[0]:
                break
            at = given.levels[level] + number
            before = given.children[at]
            now = before + change
            given.children[at] = now


@kernel
def look_at(s: LightState, watched: Whole, low: Int, end: Int) -> None:
    """2 MiB blocks [low, end) of a file are as its state says, as one call has left them."""
    order, moved = s.options[light_map.UNIT_ORDER], False
    for block in range(low, min(end, watched.private.shape[0])):
        present, private, node, there = np.int64(0), np.int64(0), np.int64(-1), False
        if order > 0:
            unit = block >> (order - ORDER_2M)
            there = s.unit_pfn[unit] >= 0
            if there:
                present, private = np.int64(PAGES_2M), np.int64(PAGES_2M - s.shared_2m[block])
                node = np.int64(s.unit_node[unit])
        else:
            first = block << ORDER_2M
            for page in range(first, min(first + PAGES_2M, s.options[light_map.PAGES])):
                if s.unit_pfn[page] >= 0:
                    if present == 0:
                        node = np.int64(s.unit_node[page])
                    present += 1
                    private += not test_bit(s.shared, page)
        moved |= change(watched, block, present, private, node, there, True)
    if moved:
        lay_out(watched)

"""One guest_memfd file without struct page for its private ranges: the way out that the seed mail proposes.

Private ranges are extents of an offset -> pfn map (a maple tree, :mod:`workbench.kernels.maps.maple`) and carry no
reference count; shared ranges are in the page cache as ever, and struct pages exist for groups of pages with a shared
page only. Nothing is split or merged: a conversion cuts or joins extents. Frames come from a PFN range allocator
(:mod:`workbench.kernels.pfn_range`, first fit) in units of the guest's page size.

Not in Linux. Where the proposal is silent it follows the huge-page series, generation B (all or nothing) or C (unit by
unit) as the option says, and a punched part of a unit is zeroed, not freed, so that a guest sees the same answers as
under :mod:`workbench.kernels.folios.run` with that generation; streams have the columns and codes of that module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels import pfn_range
from workbench.kernels.bits import ALL, ONE, ZERO, mask, popcount, test_bit
from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.folios.run import (
    ARGUMENT,
    BLOCKS_1G,
    CONVERT,
    EAGAIN,
    EFAULT,
    EHWPOISON,
    EINVAL,
    ENOENT,
    ENOMEM,
    GENERATION_B,
    GUEST_FAULT,
    HOST_FAULT,
    INSERT,
    LENGTH,
    LRU_DRAIN,
    MERGE,
    NEEDS_ROOM,
    NODE,
    OFFSET,
    OP,
    ORDER_1G,
    ORDER_2M,
    PAGES_1G,
    PAGES_2M,
    PIN,
    POISON,
    PUNCH,
    RELEASE,
    SIGBUS,
    UNPIN,
)
from workbench.kernels.maps import maple
from workbench.kernels.page_lists import first_from, put_in, take_out

# options
PAGES, UNIT_ORDER, GROUP_SHIFT, GENERATION = 0, 1, 2, 3
OPTIONS = 4
GROUP_256K, GROUP_128M = 6, 15
"""Pages (as a shift) whose struct pages come and go together: one vmemmap page, or one PMD of vmemmap."""

COUNTERS = (
    "shared_pages",  # now, present or not
    "present_pages",  # now
    "conversions",
    "converted_pages",
    "conversions_without_work",
    "failed_conversions",
    "invalidations",
    "invalidated_bytes",
    "zeroed_pages",
    "vmemmap_pages",  # now
    "vmemmap_peak",
    "vmemmap_taken",
    "vmemmap_freed",
    "vmemmap_spilled",
    "pins",  # rows of the table of pins
    "poisoned_pages",  # now
    "map_operations",  # stores into the private map
    "moved_to_filemap",  # pages whose tracking changed sides
    "moved_to_map",
    "tracker_peak",  # nodes of the private map
    "mapped_1g",  # huge mappings possible now: present, aligned and all private
    "mapped_2m",
    "lost_1g",  # so far, by conversions
    "lost_2m",
    "regained_1g",
    "regained_2m",
    "withheld_units",  # now: punched out of the file, but a page of them is still pinned
)
(
    N_SHARED,
    N_PRESENT,
    N_CONVERSIONS,
    N_CONVERTED,
    N_WITHOUT_WORK,
    N_FAILED,
    N_INVALIDATIONS,
    N_INVALIDATED,
    N_ZEROED,
    N_VMEMMAP,
    N_VMEMMAP_PEAK,
    N_TAKEN,
    N_FREED,
    N_SPILLED,
    N_PINS,
    N_POISONED,
    N_STORES,
    N_TO_FILEMAP,
    N_TO_MAP,
    N_TRACKER_PEAK,
    N_MAPPED_1G,
    N_MAPPED_2M,
    N_LOST_1G,
    N_LOST_2M,
    N_REGAINED_1G,
    N_REGAINED_2M,
    N_WITHHELD,
) = range(27)

PIN_PAGE, PIN_COUNT, PIN_PFN, PIN_NODE, PIN_NEXT, PIN_LEFT, PIN_KIND, PIN_ZONE = range(8)
PIN_COLUMNS = 8
_TRANSIENT, _LONG_TERM = 0, 1
"""Columns of ``pins``. Once the page has left the file: first pfn of its unit (else -1) and the node that the unit
returns to (-1: it is poisoned and never does). PIN_NEXT: the next row of the chain that ``pin_heads`` begins,
-1: none. PIN_LEFT: how many units had left the file pinned when the page did, so that the oldest is known.
PIN_KIND: transient references, which are gone when the page leaves, or long-term pins.
PIN_ZONE: where who places the units has taken a page that left, -1: nobody has said (:func:`stays_taken`)."""


NAMED = 3
"""In ``scratch``: the page that an error names, -1: none."""
_LACKS_NODES, _LACKS_RANGES, _LACKS_PINS, _LACKS_POISON = range(4)
"""What NEEDS_ROOM is about."""

UNHASHED = -2
"""In ``pin_heads`` of a table that has grown: the chains are made anew."""


@record
class LightState(NamedTuple):
    """Arrays of one file: W words of 64 pages, B1, B2 blocks of 1 GiB, 2 MiB, U units, G groups of struct pages, N nodes.

    ``start``, ``end``, ``count``, ``vmemmap``, ``vmemmap_order`` and ``given_back`` belong to the host and may be shared between
    files.
    """

    shared: np.ndarray
    """uint64 (W,), bit set = page shared."""
    shared_2m: np.ndarray
    """int16 (B2,), shared pages of each 2 MiB."""
    shared_1g: np.ndarray
    """int32 (B1,), shared pages of each 1 GiB."""
    unit_pfn: np.ndarray
    """int64 (U,), first pfn of each unit, -1 where none is present."""
    unit_node: np.ndarray
    """int16 (U,), node index of the unit."""
    group: np.ndarray
    """int32 (G,), pages of each group that need their struct page: present and shared, or gone but pinned."""
    group_node: np.ndarray
    """int16 (G,), node that the vmemmap of the group was taken from."""
    nodes: np.ndarray
    """int64 (n, 32), nodes of the maple tree."""
    top: np.ndarray
    """int64 (6,), its root."""
    path: np.ndarray
    """int64 (2, 32), working space."""
    start: np.ndarray
    """int64 (N, r), free ranges of the host's allocator, with ``end`` and ``count``."""
    end: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    vmemmap: np.ndarray
    """int64 (N,), free pages that vmemmap can be taken from."""
    vmemmap_order: np.ndarray
    """int64 (N, N), row n: nodes tried in this order for memory wanted on n."""
    given_back: np.ndarray
    """int64 (zones,), units that had left a file while somebody held them and that nobody holds any more, by PIN_ZONE."""
    taken: np.ndarray
    """int64 (N,), vmemmap pages this file took from each node so far."""
    freed: np.ndarray
    """int64 (N,), and gave back."""
    pins: np.ndarray
    """int64 (rows, 8), columns PIN_PAGE ...: references by page and kind."""
    pin_heads: np.ndarray
    """int64 (rows,), rows a power of two: first row of ``pins`` for the pages of each hash, -1: none."""
    poison: np.ndarray
    """int64 (rows,), poisoned pages, ascending."""
    options: np.ndarray
    counts: np.ndarray
    scratch: np.ndarray
    """int64 (8,): 0-2 for the maple tree, 3 the page an error names, 4 what there is no room for, 5 rows of pins wanted, 6 units
    that have left the file pinned."""


def new_state(
    options: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    count: np.ndarray,
    vmemmap: np.ndarray,
    vmemmap_order: np.ndarray,
    given_back: np.ndarray,
) -> LightState:
    """An empty, all-private file with the given options; the other arguments are the host's (:class:`LightState`)."""
    pages = int(options[PAGES])
    words = -(-pages // 64)
    groups = -(-pages // (1 << int(options[GROUP_SHIFT])))
    top = np.zeros(maple.TOP_FIELDS, np.int64)
    maple.clear(top)
    return LightState(
        shared=np.zeros(words, np.uint64),
        shared_2m=np.zeros(-(-pages // PAGES_2M), np.int16),
        shared_1g=np.zeros(-(-pages // PAGES_1G), np.int32),
        unit_pfn=np.full(_units(options), -1, np.int64),
        unit_node=np.zeros(_units(options), np.int16),
        group=np.zeros(groups, np.int32),
        group_node=np.zeros(groups, np.int16),
        nodes=np.zeros((256, maple.NODE_WORDS), np.int64),
        top=top,
        path=np.zeros((2, 32), np.int64),
        start=start,
        end=end,
        count=count,
        vmemmap=vmemmap,
        vmemmap_order=vmemmap_order,
        given_back=given_back,
        taken=np.zeros(len(vmemmap), np.int64),
        freed=np.zeros(len(vmemmap), np.int64),
        pins=np.zeros((64, PIN_COLUMNS), np.int64),
        pin_heads=np.full(64, -1, np.int64),
        poison=np.zeros(64, np.int64),
        options=options,
        counts=np.zeros(len(COUNTERS), np.int64),
        scratch=np.zeros(8, np.int64),
    )


def _units(options: np.ndarray) -> int:
    unit = 1 << int(options[UNIT_ORDER])
    return -(-int(options[PAGES]) // unit)


def grown(state: LightState) -> LightState:
    """The same state with more room for what the last operation lacked room for (after NEEDS_ROOM), and for that alone.

    Free ranges belong to the host: what one file wants of its own must not make them longer for all.
    """

    def twice(array: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.concatenate((array, np.zeros_like(array)), axis=axis)

    lacking = int(state.scratch[4])
    if lacking == _LACKS_NODES:
        return state._replace(nodes=twice(state.nodes))
    if lacking == _LACKS_RANGES:
        return state._replace(start=twice(state.start, 1), end=twice(state.end, 1))
    if lacking == _LACKS_POISON:
        return state._replace(poison=twice(state.poison))
    rows = 1 << (int(state.scratch[5]) - 1).bit_length()
    pins = np.zeros((rows, state.pins.shape[1]), np.int64)
    pins[: len(state.pins)] = state.pins
    return state._replace(pins=pins, pin_heads=np.full(rows, UNHASHED, np.int64))


@kernel
def _lacks(s: LightState, what: Int) -> Int:
    s.scratch[4] = what
    return NEEDS_ROOM


@kernel
def run(state: LightState, stream: np.ndarray, errors: np.ndarray, offsets: np.ndarray, first: Int) -> Int:
    """Carry out operations ``first`` ... of a stream (columns and results as for :func:`workbench.kernels.folios.run.run`).

    INSERT backs a unit from the ranges of its node. Returns the number of operations done; less than all if the state must
    grow (:func:`grown`) first (the error there is NEEDS_ROOM), or if an INSERT finds no memory for struct pages.
    """
    for i in range(first, stream.shape[0]):
        row = stream[i]
        error = one(state, row[OP], row[OFFSET], row[LENGTH], row[ARGUMENT], row[NODE])
        errors[i] = error
        if error == NEEDS_ROOM or (row[OP] == INSERT and error != 0):
            return i
        offsets[i] = state.scratch[NAMED] * 4096 if error != 0 and state.scratch[NAMED] >= 0 else -1
    return stream.shape[0]


@kernel
def count(
    counts: np.ndarray, taken: np.ndarray, freed: np.ndarray, here: np.ndarray, both: np.ndarray, row: np.ndarray
) -> None:
    """The counters of a file where others have theirs, then vmemmap pages by node that are taken, into the beginning of ``row``.

    ``here``: which of ``counts`` stands at each place; ``both``: 1 where there is one at all, else 0.
    """
    for place in range(here.shape[0]):
        row[place] = counts[here[place]] * both[place]
    for node in range(taken.shape[0]):
        row[here.shape[0] + node] = taken[node] - freed[node]


@kernel
def one(s: LightState, op: Int, offset: Int, length: Int, argument: Int, node: Int) -> Int:
    """One operation, columns as of a stream; its error, which may name a page (NAMED).

    NEEDS_ROOM: as for :func:`run`.
    """
    if s.pin_heads[0] == UNHASHED:
        _hash_pins(s)
    s.scratch[NAMED] = -1
    error = _operate(s, op, offset, length, argument, node)
    s.counts[N_TRACKER_PEAK] = max(s.counts[N_TRACKER_PEAK], s.top[maple.NODES])
    return error


@kernel
def lacks_groups(s: LightState, first: Int, end: Int) -> bool:
    """Whether there may be too few struct pages for what units put in at pages [first, end) have shared."""
    if s.counts[N_SHARED] == 0:
        return False
    order, shift, needed = s.options[UNIT_ORDER], s.options[GROUP_SHIFT], np.int64(0)
    page = next_in(s, first, end, True)
    while page < end:
        needed += s.unit_pfn[page >> order] < 0 and s.group[page >> shift] == 0
        page = next_in(s, min(end, ((page >> shift) + 1) << shift), end, True)
    return bool(needed > _groups_free(s))


@kernel
def is_held(s: LightState, page: Int) -> bool:
    """Whether somebody has a page of the file pinned for long."""
    if s.pin_heads[0] == UNHASHED:
        _hash_pins(s)
    return bool(_pin_row(s, page, False, _LONG_TERM) >= 0)


@kernel
def stays_taken(s: LightState, page: Int, zone: Int) -> bool:
    """Whether a page of 4 KiB that has just left the file is held, and so in its zone until the last pin is dropped."""
    row = s.pin_heads[_pin_head(s, page)]
    while row >= 0:
        if s.pins[row, PIN_PAGE] == page and s.pins[row, PIN_PFN] >= 0 and s.pins[row, PIN_ZONE] < 0:
            s.pins[row, PIN_ZONE] = zone
            return True
        row = s.pins[row, PIN_NEXT]
    return False


@kernel
def stay_taken(s: LightState, pages: np.ndarray, stays: np.ndarray) -> None:
    """:func:`stays_taken` of pages int64 (n, 2), each with its zone, bool (n,)."""
    if s.pin_heads[0] == UNHASHED:
        _hash_pins(s)
    for row in range(pages.shape[0]):
        stays[row] = stays_taken(s, pages[row, 0], pages[row, 1])


@kernel
def _release(state: LightState) -> Int:
    """The file is gone: its units go back, those with a pinned page when the last pin is dropped."""
    order = state.options[UNIT_ORDER]
    for unit in range(state.unit_pfn.shape[0]):
        if state.unit_pfn[unit] < 0:
            continue
        if maple.room(state.nodes, state.top) < 64 * maple.store_nodes(state.top):
            return _lacks(state, _LACKS_NODES)
        if state.count[state.unit_node[unit]] + 2 > state.start.shape[1]:
            return _lacks(state, _LACKS_RANGES)
        low = unit << order
        _free_unit(state, unit, low, min(low + (np.int64(1) << order), state.options[PAGES]))
    return 0


@kernel
def _operate(s: LightState, op: Int, offset: Int, length: Int, argument: Int, node: Int) -> Int:
    pages = s.options[PAGES]
    unit = np.int64(1) << s.options[UNIT_ORDER]
    # A conversion or a punch must not run out of room half-way: one extent (or free range) per unit, and the borders.
    # Faults ask before each unit, and can be carried on.
    units = min(max(length, 0), pages << 12) // (unit << 12) + 2 if op == CONVERT or op == PUNCH else 2
    if maple.room(s.nodes, s.top) < units // 4 + 64 * maple.store_nodes(s.top):
        return _lacks(s, _LACKS_NODES)
    returned = units if op == PUNCH else s.counts[N_WITHHELD] if op == UNPIN else 0
    for k in range(s.count.shape[0]):
        if s.count[k] + returned + 2 > s.start.shape[1]:
            return _lacks(s, _LACKS_RANGES)
    if op == PIN and s.counts[N_PINS] + min(max(length, 0) >> 12, pages) + 2 > s.pins.shape[0]:
        s.scratch[5] = s.counts[N_PINS] + min(max(length, 0) >> 12, pages) + 2
        return _lacks(s, _LACKS_PINS)
    if op == CONVERT:
        return _convert(s, offset, length, argument == 1)
    if op == PIN:
        return _pin(s, offset, length, argument, node)
    if op == UNPIN:
        return _unpin(s, offset, length, argument)
    if op == HOST_FAULT:
        return _host_fault(s, offset, length, node)
    if op == GUEST_FAULT:
        return _guest_fault(s, offset, length, argument == 1, node)
    if op == PUNCH:
        return _punch(s, offset, length)
    if op == POISON:
        return _poison(s, offset)
    if op == INSERT:
        return _populate(s, offset >> 12, node)
    if op == RELEASE:
        return _release(s)
    if op == MERGE or op == LRU_DRAIN:
        return 0  # nothing is split, and private pages are on no list
    return EINVAL


@kernel
def _present(s: LightState, page: Int) -> bool:
    return s.unit_pfn[page >> s.options[UNIT_ORDER]] >= 0


@kernel
def run_end(s: LightState, page: Int, end: Int, shared: bool) -> Int:
    """End of the run of pages in one state that starts at ``page``, at most ``end``."""
    while page < end:
        word = s.shared[page >> 6]
        if not shared:
            word ^= ALL
        if page & 63 == 0 and word == ALL and page + 64 <= end:
            page += 64
            continue
        if (word >> np.uint64(page & 63)) & ONE == ZERO:
            return page
        page += 1
    return end


@kernel
def next_in(s: LightState, page: Int, end: Int, shared: bool) -> Int:
    """First page of [page, end) in the given state, ``end`` if there is none."""
    return run_end(s, page, end, not shared)


@kernel
def _hash_pins(s: LightState) -> None:
    """Chains of all rows of pins anew, after the table has grown."""
    s.pin_heads[:] = -1
    for row in range(s.counts[N_PINS]):
        _chain_pin(s, row)


@kernel
def _pin_head(s: LightState, page: Int) -> Int:
    """Neighbouring pages have neighbouring chains."""
    return page & (s.pin_heads.shape[0] - 1)


@kernel
def _chain_pin(s: LightState, row: Int) -> None:
    head = _pin_head(s, s.pins[row, PIN_PAGE])
    s.pins[row, PIN_NEXT] = s.pin_heads[head]
    s.pin_heads[head] = row


@kernel
def _unchain_pin(s: LightState, row: Int) -> None:
    head = _pin_head(s, s.pins[row, PIN_PAGE])
    if s.pin_heads[head] == row:
        s.pin_heads[head] = s.pins[row, PIN_NEXT]
        return
    before = s.pin_heads[head]
    while s.pins[before, PIN_NEXT] != row:
        before = s.pins[before, PIN_NEXT]
    s.pins[before, PIN_NEXT] = s.pins[row, PIN_NEXT]


@kernel
def _pin_row(s: LightState, page: Int, left_file: bool, kind: Int) -> Int:
    """Row of the references of one kind on a page of the file, or on the first that left it; -1: none."""
    found, row = -1, s.pin_heads[_pin_head(s, page)]
    while row >= 0:
        here = s.pins[row, PIN_PAGE] == page and s.pins[row, PIN_KIND] == kind
        if here and (s.pins[row, PIN_PFN] >= 0) == left_file:
            if found < 0 or s.pins[row, PIN_LEFT] < s.pins[found, PIN_LEFT]:
                found = row
        row = s.pins[row, PIN_NEXT]
    return found


@kernel
def _first_referenced(s: LightState, first: Int, end: Int) -> Int:
    """First shared page of [first, end) that somebody holds, -1: private pages have nothing to hold."""
    found = end
    if end - first < s.counts[N_PINS]:  # what is fewer is looked through
        for page in range(first, end):
            if test_bit(s.shared, page) and (
                _pin_row(s, page, False, _LONG_TERM) >= 0 or _pin_row(s, page, False, _TRANSIENT) >= 0
            ):
                found = page
                break
    else:
        for row in range(s.counts[N_PINS]):
            page = s.pins[row, PIN_PAGE]
            if s.pins[row, PIN_PFN] < 0 and first <= page < found and test_bit(s.shared, page):
                found = page
    at = _poison_row(s, first)
    while at < s.counts[N_POISONED] and s.poison[at] < found:
        if test_bit(s.shared, s.poison[at]):
            found = s.poison[at]
        at += 1
    return found if found < end else -1


@kernel
def _store(s: LightState, first: Int, pages: Int, pfn: Int) -> None:
    """Store an extent into the private map, joined with neighbours that continue it; ``pfn`` -1 erases."""
    s.counts[N_STORES] += 1
    if pfn >= 0:
        if first > 0 and maple.load(s.nodes, s.top, first - 1) == pfn - 1 and pfn > 0:
            maple.find(s.nodes, s.top, first - 1, s.scratch, s.path)
            pages += first - s.scratch[0]
            pfn -= first - s.scratch[0]
            first = s.scratch[0]
        if maple.load(s.nodes, s.top, first + pages) == pfn + pages:
            maple.find(s.nodes, s.top, first + pages, s.scratch, s.path)
            pages = s.scratch[1] + 1 - first
    maple.store(s.nodes, s.top, first, pages, pfn, s.scratch, s.path)


@kernel
def _can_share(s: LightState, first: Int, end: Int) -> bool | np.bool_:
    """Whether vmemmap for the present pages of [first, end) can be taken; that of a group comes from one node."""
    shift = s.options[GROUP_SHIFT]
    needed = 0
    for group in range(first >> shift, ((end - 1) >> shift) + 1):
        if s.group[group] == 0:
            page = max(first, group << shift)
            high = min(end, (group + 1) << shift)
            while page < high:
                if _present(s, page):
                    needed += 1
                    break
                page = ((page >> s.options[UNIT_ORDER]) + 1) << s.options[UNIT_ORDER]
    return needed <= _groups_free(s)


@kernel
def _groups_free(s: LightState) -> Int:
    """Groups whose vmemmap could be taken now."""
    groups = np.int64(0)
    for node in range(s.vmemmap.shape[0]):
        groups += s.vmemmap[node] >> (s.options[GROUP_SHIFT] - 6)
    return groups


@kernel
def _take_group(s: LightState, group: Int, home: Int) -> None:
    """Take the vmemmap of a group, from its node first; there is enough (:func:`_can_share`)."""
    cost = np.int64(1) << (s.options[GROUP_SHIFT] - 6)
    for position in range(s.vmemmap.shape[0]):
        node = s.vmemmap_order[home, position]
        if s.vmemmap[node] >= cost:
            s.vmemmap[node] -= cost
            s.taken[node] += cost
            s.group_node[group] = node
            if node != home:
                s.counts[N_SPILLED] += cost
            break
    s.counts[N_TAKEN] += cost
    s.counts[N_VMEMMAP] += cost
    s.counts[N_VMEMMAP_PEAK] = max(s.counts[N_VMEMMAP_PEAK], s.counts[N_VMEMMAP])


@kernel
def _give_back_group(s: LightState, node: Int) -> None:
    cost = np.int64(1) << (s.options[GROUP_SHIFT] - 6)
    s.vmemmap[node] += cost
    s.freed[node] += cost
    s.counts[N_FREED] += cost
    s.counts[N_VMEMMAP] -= cost


@kernel
def _count_groups(s: LightState, first: Int, end: Int, sign: Int) -> None:
    """Add (or take away) the shared pages of [first, end), all of one unit, to their groups of struct pages."""
    shift = s.options[GROUP_SHIFT]
    for word in range(first >> 6, ((end - 1) >> 6) + 1):
        pages = popcount(s.shared[word] & mask(word, first, end))
        if pages == 0:
            continue
        group = word >> (shift - 6)
        before = s.group[group]
        s.group[group] = before + sign * pages
        if before == 0:
            _take_group(s, group, s.unit_node[first >> s.options[UNIT_ORDER]])
        elif s.group[group] == 0:
            _give_back_group(s, s.group_node[group])


@kernel
def _set_state(s: LightState, first: Int, end: Int, to_shared: bool) -> None:
    """Store the new state and keep the counters and the huge mappings possible in step."""
    value = ALL if to_shared else ZERO
    sign = 1 if to_shared else -1
    order = s.options[UNIT_ORDER]
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        low = max(first, block << 9)
        high = min(end, (block + 1) << 9)
        changed = np.int64(0)
        for word in range(low >> 6, ((high - 1) >> 6) + 1):
            bits = (s.shared[word] ^ value) & mask(word, low, high)
            changed += popcount(bits)
            s.shared[word] ^= bits
        if changed == 0:
            continue
        giga = block >> 9
        before, before_1g = np.int64(s.shared_2m[block]), np.int64(s.shared_1g[giga])
        after, after_1g = before + sign * changed, before_1g + sign * changed
        s.shared_2m[block] = after
        s.shared_1g[giga] = after_1g
        if order < ORDER_2M or s.unit_pfn[low >> order] < 0:
            continue
        if order == ORDER_1G and before_1g == 0:
            s.counts[N_MAPPED_1G] -= 1
            s.counts[N_LOST_1G] += 1
            s.counts[N_MAPPED_2M] += BLOCKS_1G
        if before == 0:
            s.counts[N_MAPPED_2M] -= 1
            s.counts[N_LOST_2M] += 1
        elif after == 0:
            s.counts[N_MAPPED_2M] += 1
            s.counts[N_REGAINED_2M] += 1
        if order == ORDER_1G and after_1g == 0:
            s.counts[N_MAPPED_1G] += 1
            s.counts[N_REGAINED_1G] += 1
            s.counts[N_MAPPED_2M] -= BLOCKS_1G


@kernel
def _count_mappings(s: LightState, unit: Int, sign: Int) -> None:
    """Add (or take away) the huge mappings that a unit allows as it comes (or goes)."""
    order = s.options[UNIT_ORDER]
    if order == ORDER_1G and s.shared_1g[unit] == 0:
        s.counts[N_MAPPED_1G] += sign
    elif order >= ORDER_2M:
        for block in range((unit << order) >> 9, ((unit + 1) << order) >> 9):
            s.counts[N_MAPPED_2M] += sign * np.int64(s.shared_2m[block] == 0)


@kernel
def _convert(s: LightState, offset: Int, length: Int, to_shared: bool) -> Int:
    size = s.options[PAGES] * 4096
    s.counts[N_CONVERSIONS] += 1
    if offset < 0 or length <= 0 or (offset | length) & 4095 != 0 or offset > size or length > size - offset:
        s.counts[N_FAILED] += 1
        return EINVAL
    first = offset >> 12
    end = first + (length >> 12)
    order = s.options[UNIT_ORDER]
    block = np.int64(1) << order
    if s.options[GENERATION] == GENERATION_B or order == 0:
        block = s.options[PAGES]
    error: Int = 0
    worked = False
    while first < end and error == 0:
        stop = min(end, (first // block + 1) * block)
        if next_in(s, first, stop, not to_shared) < stop:
            worked = True
            error = _convert_block(s, first, stop, to_shared)
        first = stop
    if error != 0:
        s.counts[N_FAILED] += 1
    elif not worked:
        s.counts[N_WITHOUT_WORK] += 1
    return error


@kernel
def _convert_block(s: LightState, first: Int, end: Int, to_shared: bool) -> Int:
    """All of [first, end) or nothing; some page of it is in the other state."""
    page = next_in(s, first, end, not to_shared)
    if not to_shared:
        held = _first_referenced(s, first, end)
        if held >= 0:
            if s.options[GENERATION] == GENERATION_B or s.options[UNIT_ORDER] == 0:
                _count_invalidations(s, page, end, to_shared)
            s.scratch[NAMED] = held
            return EAGAIN
    elif not _can_share(s, first, end):
        if s.options[GENERATION] != GENERATION_B and s.options[UNIT_ORDER] > 0:
            s.scratch[NAMED] = first
        return ENOMEM
    _count_invalidations(s, page, end, to_shared)
    order = s.options[UNIT_ORDER]
    while page < end:
        stop = run_end(s, page, end, not to_shared)
        # One run of pages in the other state, unit by unit where units are present.
        at = page
        while at < stop:
            high = min(stop, ((at >> order) + 1) << order)
            if s.unit_pfn[at >> order] >= 0:
                if to_shared:
                    s.counts[N_TO_FILEMAP] += high - at
                    _store(s, at, high - at, -1)
                    _set_state(s, at, high, True)
                    _count_groups(s, at, high, 1)
                else:
                    s.counts[N_TO_MAP] += high - at
                    _count_groups(s, at, high, -1)
                    _set_state(s, at, high, False)
                    _store(s, at, high - at, s.unit_pfn[at >> order] + at - ((at >> order) << order))
            else:
                _set_state(s, at, high, to_shared)
            at = high
        s.counts[N_CONVERTED] += stop - page
        s.counts[N_SHARED] += stop - page if to_shared else page - stop
        page = next_in(s, stop, end, not to_shared)
    return 0


@kernel
def _count_invalidations(s: LightState, page: Int, end: Int, to_shared: bool) -> None:
    """One notification per run that changes, of exactly that run: there is no block to round out to."""
    while page < end:
        stop = run_end(s, page, end, not to_shared)
        s.counts[N_INVALIDATIONS] += 1
        s.counts[N_INVALIDATED] += (stop - page) << 12
        page = next_in(s, stop, end, not to_shared)


@kernel
def _populate(s: LightState, page: Int, node: Int) -> Int:
    order = s.options[UNIT_ORDER]
    unit = page >> order
    if s.unit_pfn[unit] >= 0:
        return 0
    if node < 0 or node >= s.count.shape[0]:
        return EINVAL
    pages = np.int64(1) << order
    first = unit << order
    end = min(first + pages, s.options[PAGES])
    runs = 0  # private ones: each becomes an extent
    at = next_in(s, first, end, False)
    while at < end:
        runs += 1
        at = next_in(s, run_end(s, at, end, False), end, False)
    if maple.room(s.nodes, s.top) < runs // 4 + 64 * maple.store_nodes(s.top):
        return _lacks(s, _LACKS_NODES)
    if s.count[node] + 2 > s.start.shape[1]:
        return _lacks(s, _LACKS_RANGES)
    needed = 0
    shift = s.options[GROUP_SHIFT]
    at = next_in(s, first, end, True)
    while at < end:
        needed += s.group[at >> shift] == 0
        at = next_in(s, min(end, ((at >> shift) + 1) << shift), end, True)
    if needed > _groups_free(s):
        return ENOMEM
    pfn = pfn_range.alloc(s.start, s.end, s.count, node, pfn_range.FIRST_FIT, pages, pages)
    if pfn < 0:
        return ENOMEM
    s.unit_pfn[unit] = pfn
    s.unit_node[unit] = node
    s.counts[N_PRESENT] += end - first
    _count_mappings(s, unit, 1)
    at = next_in(s, first, end, False)
    while at < end:
        stop = run_end(s, at, end, False)
        _store(s, at, stop - at, pfn + at - first)
        at = next_in(s, stop, end, False)
    _count_groups(s, first, end, 1)
    return 0


@kernel
def _poison_row(s: LightState, page: Int) -> Int:
    """Row of the first poisoned page at ``page`` or beyond."""
    return first_from(s.poison, s.counts[N_POISONED], page)


@kernel
def next_poisoned(s: LightState, page: Int, end: Int) -> Int:
    """First poisoned page of [page, end), ``end`` if there is none."""
    row = _poison_row(s, page) if s.counts[N_POISONED] > 0 else np.int64(0)
    return min(s.poison[row], end) if row < s.counts[N_POISONED] else end


@kernel
def _poisoned(s: LightState, page: Int) -> bool:
    row = _poison_row(s, page)
    return bool(row < s.counts[N_POISONED] and s.poison[row] == page)


@kernel
def _host_fault_page(s: LightState, page: Int, node: Int) -> Int:
    if page >= s.options[PAGES] or not test_bit(s.shared, page):
        return SIGBUS
    error = _populate(s, page, node)
    if error != 0:
        return error
    return SIGBUS if _poisoned(s, page) else 0


@kernel
def _host_fault(s: LightState, offset: Int, length: Int, node: Int) -> Int:
    if offset < 0 or length <= 0:
        return EINVAL
    page, end = offset >> 12, (offset + length + 4095) >> 12
    while page < end:
        error = _host_fault_page(s, page, node)
        if error != 0:
            s.scratch[NAMED] = page
            return error
        if s.counts[N_POISONED] == 0:
            unit_end = min(((page >> s.options[UNIT_ORDER]) + 1) << s.options[UNIT_ORDER], s.options[PAGES])
            page = run_end(s, page, min(end, unit_end), True)
        else:
            page += 1
    return 0


@kernel
def _guest_fault(s: LightState, offset: Int, length: Int, private: bool, node: Int) -> Int:
    if offset < 0 or length <= 0:
        return EINVAL
    page, end = offset >> 12, (offset + length + 4095) >> 12
    while page < end:
        s.scratch[NAMED] = page
        if page >= s.options[PAGES] or test_bit(s.shared, page) == private:
            return EFAULT
        error = _populate(s, page, node)
        if error != 0:
            return error
        if _poisoned(s, page):
            return EHWPOISON
        if s.counts[N_POISONED] == 0:
            unit_end = min(((page >> s.options[UNIT_ORDER]) + 1) << s.options[UNIT_ORDER], s.options[PAGES])
            page = run_end(s, page, min(end, unit_end), not private)
        else:
            page += 1
    return 0


@kernel
def _pin(s: LightState, offset: Int, length: Int, kind: Int, node: Int) -> Int:
    """Long-term pins of shared pages through the host mapping, or transient references to those that are there.

    A private page has no struct page to refer to.
    """
    if offset < 0 or length <= 0 or (kind != _TRANSIENT and kind != _LONG_TERM):
        return EINVAL
    first, end = offset >> 12, (offset + length + 4095) >> 12
    error: Int
    for page in range(first, end):
        if kind == _TRANSIENT:
            there = page < s.options[PAGES] and test_bit(s.shared, page)
            there = there and s.unit_pfn[page >> s.options[UNIT_ORDER]] >= 0
            error = 0 if there else ENOENT
        else:
            error = _host_fault_page(s, page, node)
        if error != 0:
            s.scratch[NAMED] = page
            return EFAULT if error == SIGBUS else error
    for page in range(first, end):
        row = _pin_row(s, page, False, kind)
        if row < 0:
            row = s.counts[N_PINS]
            s.counts[N_PINS] += 1
            s.pins[row, PIN_PAGE] = page
            s.pins[row, PIN_COUNT] = 0
            s.pins[row, PIN_PFN] = -1
            s.pins[row, PIN_KIND] = kind
            s.pins[row, PIN_ZONE] = -1
            _chain_pin(s, row)
        s.pins[row, PIN_COUNT] += 1
    return 0


@kernel
def _unpin(s: LightState, offset: Int, length: Int, kind: Int) -> Int:
    """Drop references of one kind, those on pages that left the file first; EINVAL names the first page that has none."""
    first, end = offset >> 12, (offset + length + 4095) >> 12
    if offset < 0 or length <= 0 or end > s.options[PAGES] or (kind != _TRANSIENT and kind != _LONG_TERM):
        return EINVAL
    for page in range(first, end):
        if _pin_row(s, page, False, kind) < 0 and _pin_row(s, page, True, kind) < 0:
            s.scratch[NAMED] = page
            return EINVAL
    for page in range(first, end):
        row = _pin_row(s, page, True, kind)
        if row < 0:
            row = _pin_row(s, page, False, kind)
        s.pins[row, PIN_COUNT] -= 1
        if s.pins[row, PIN_COUNT] == 0:
            _drop_row(s, row)
    return 0


@kernel
def _drop_row(s: LightState, row: Int) -> None:
    """The last pin on a page is gone; if it had left the file, its struct pages and its unit may follow it."""
    page, pfn, node, zone = s.pins[row, PIN_PAGE], s.pins[row, PIN_PFN], s.pins[row, PIN_NODE], s.pins[row, PIN_ZONE]
    _unchain_pin(s, row)
    s.counts[N_PINS] -= 1
    last = s.counts[N_PINS]
    if row != last:
        _unchain_pin(s, last)
        for column in range(s.pins.shape[1]):
            s.pins[row, column] = s.pins[last, column]
        _chain_pin(s, row)
    if pfn < 0:
        return
    group = page >> s.options[GROUP_SHIFT]
    s.group[group] -= 1
    if s.group[group] == 0:
        _give_back_group(s, s.group_node[group])
    if _unit_pinned(s, row, page, pfn):
        return
    s.counts[N_WITHHELD] -= 1
    if node >= 0:
        pfn_range.free(s.start, s.end, s.count, node, pfn, np.int64(1) << s.options[UNIT_ORDER])
        if zone >= 0:
            s.given_back[zone] += 1


@kernel
def _unit_pinned(s: LightState, near: Int, page: Int, pfn: Int) -> bool:
    """Whether a page of the unit that was at ``page`` and has left the file is pinned still."""
    order = s.options[UNIT_ORDER]
    rows, pages = s.counts[N_PINS], np.int64(1) << order
    if pages < rows:
        first = page >> order << order
        for at in range(first, first + pages):
            row = s.pin_heads[_pin_head(s, at)]
            while row >= 0:
                if s.pins[row, PIN_PFN] == pfn:
                    return True
                row = s.pins[row, PIN_NEXT]
        return False
    for step in range(rows):  # pages of one unit are mostly pinned, and stand, together
        if s.pins[(near + step) % rows, PIN_PFN] == pfn:
            return True
    return False


@kernel
def _poison(s: LightState, offset: Int) -> Int:
    page = offset >> 12
    if offset < 0 or page >= s.options[PAGES] or not _present(s, page):
        return ENOENT
    at = _poison_row(s, page)
    if at < s.counts[N_POISONED] and s.poison[at] == page:
        return 0
    if s.counts[N_POISONED] == s.poison.shape[0]:
        return _lacks(s, _LACKS_POISON)
    put_in(s.poison, s.counts[N_POISONED], page)
    s.counts[N_POISONED] += 1
    s.counts[N_INVALIDATIONS] += 1
    s.counts[N_INVALIDATED] += 4096
    return 0


@kernel
def _punch(s: LightState, offset: Int, length: Int) -> Int:
    """Whole units go back to the range allocator; part of a unit is zeroed. The private/shared state stays."""
    if offset < 0 or length <= 0 or (offset | length) & 4095 != 0:
        return EINVAL
    if (
        s.options[GENERATION] != GENERATION_B
        and (offset | length) & ((np.int64(4096) << s.options[UNIT_ORDER]) - 1) != 0
    ):
        return EINVAL
    page, end = offset >> 12, min(s.options[PAGES], (offset + length) >> 12)
    if page >= end:
        return 0
    s.counts[N_INVALIDATIONS] += 1
    s.counts[N_INVALIDATED] += (end - page) << 12
    order = s.options[UNIT_ORDER]
    while page < end:
        unit = page >> order
        first = unit << order
        unit_end = min(first + (np.int64(1) << order), s.options[PAGES])
        stop = min(end, unit_end)
        if s.unit_pfn[unit] >= 0:
            if page > first or stop < unit_end:
                s.counts[N_ZEROED] += stop - page
            else:
                if order > 0:
                    held = _first_referenced(s, first, unit_end)
                    if held >= 0:
                        s.scratch[NAMED] = held
                        return EAGAIN
                _free_unit(s, unit, first, unit_end)
        page = stop
    return 0


@kernel
def _free_unit(s: LightState, unit: Int, first: Int, end: Int) -> None:
    gone = take_out(s.poison, s.counts[N_POISONED], first, end)
    s.counts[N_POISONED] -= gone
    poisoned = gone > 0
    _count_mappings(s, unit, -1)
    pfn, node = s.unit_pfn[unit], np.int64(s.unit_node[unit])
    withheld = _withhold_pinned(s, first, end, pfn, np.int64(-1) if poisoned else node)
    _count_groups(s, first, end, -1)
    _store(s, first, end - first, -1)
    if not poisoned and not withheld:
        pfn_range.free(s.start, s.end, s.count, node, pfn, np.int64(1) << s.options[UNIT_ORDER])
    s.unit_pfn[unit] = -1
    s.counts[N_PRESENT] -= end - first


@kernel
def _withhold_pinned(s: LightState, first: Int, end: Int, pfn: Int, node: Int) -> bool:
    """Pinned pages of a unit leave the file: unit and struct pages stay taken until the last pin is dropped."""
    withheld = False
    pages, rows = end - first, s.counts[N_PINS]
    for step in range(min(pages, rows)):  # what is fewer is looked through
        row = rows - 1 - step  # from the last, which takes the place of one that is dropped
        if pages < rows:
            row = _pin_row(s, first + step, False, _TRANSIENT)
            if row >= 0:
                _drop_row(s, row)
            row = _pin_row(s, first + step, False, _LONG_TERM)
        if row < 0:
            continue
        page = s.pins[row, PIN_PAGE]
        if s.pins[row, PIN_PFN] >= 0 or not first <= page < end:
            continue
        if s.pins[row, PIN_KIND] == _TRANSIENT:
            _drop_row(s, row)
        else:
            s.pins[row, PIN_PFN] = pfn
            s.pins[row, PIN_NODE] = node
            s.pins[row, PIN_LEFT] = s.scratch[6]
            s.group[page >> s.options[GROUP_SHIFT]] += 1
            withheld = True
    s.counts[N_WITHHELD] += withheld
    s.scratch[6] += withheld
    return withheld

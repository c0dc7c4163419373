"""Many calls on a file without struct pages, one after another: conversions, poison, what devices map, and faults and pins of
pages that are there.

They place and free no memory of the file. One kernel carries them out (:mod:`workbench.kernels.light_rows`) and says what is left
after each: counters, nodes, what the guest and devices have mapped, what stays whole. The host's page tables are entered here,
and tables of both in their turn. An unpin of a page that has left the file is a call of its own, as is what the kernel leaves.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from workbench import scenario as sc
from workbench.engine import calls_mm
from workbench.engine.conversion_counts import KVM_PAGES, TOLD
from workbench.engine.kernel_pages import LIGHT_MAP, PAGE_CACHE, STATE_TREE
from workbench.engine.lists.faults import LEAST, MOST, BulkFaults, Done, reach, way, whole_pages
from workbench.engine.lists.followed_trees import FollowedTrees
from workbench.engine.lists.kinds import is_among
from workbench.engine.lists.tracked_faults import (
    CALLS,
    Call,
    States,
    converts_in_place,
    first_among,
    maps_and_zaps,
    pages_of_calls,
    result_of_call,
    row_of_call,
)
from workbench.engine.lists.waiting import Wait
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Inode, OpenFile, Result
from workbench.engine.page_tables import Walk
from workbench.engine.range_trees import SharedNodes, StateTree
from workbench.engine.system import System
from workbench.errors import Cancelled
from workbench.intervals import Int64s, in_intervals, pages_of
from workbench.kernels import faults, light_map, placement
from workbench.kernels import light_rows as kernel
from workbench.kernels import whole as kernel_of_whole
from workbench.kernels.folios import run as folio
from workbench.tracking.light_file import LightFile
from workbench.tracking.whole import BYTES_OF_A_PAIR, WATCHED
from workbench.units import PAGE_ORDERS, PAGE_SIZE


class Placing(NamedTuple):
    """What calls may place or free: rows as :mod:`workbench.kernels.faults` takes them, in units of the file, and who asks."""

    given: faults.Faults
    requests: placement.Requests


class Placed(NamedTuple):
    """Of n calls that placed pages: free pages int64 (n, zones) before and after each, its task's rotation int64 (n, 2) after."""

    before: Int64s
    free: Int64s
    rotations: Int64s


_Device = sc.IommuMap | sc.IommuUnmap
_Call = Call | sc.Hwpoison | _Device
OF_STATES = (*CALLS, sc.Hwpoison, sc.IommuMap, sc.IommuUnmap)
"""What places nothing, but for a pin."""
_KINDS: frozenset[type[_Call | sc.Fault]] = frozenset((*OF_STATES, sc.Fault))
_PAGES = 2048  # of one fault
_TREES = {LIGHT_MAP, STATE_TREE, PAGE_CACHE}


class BulkLight:
    """Looks ahead in the operations of a run; ``before`` knows what has gone well."""

    def __init__(self, system: System, operations: Sequence[sc.Operation], before: BulkFaults) -> None:
        self.system, self.operations, self.before = system, operations, before
        self._not_before, self._most, self._wait = 0, MOST, Wait()

    def run(self, number: int) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone."""
        conversions, last = self.system.conversions, number + LEAST - 1
        if conversions is None or not conversions.light or number < self._not_before or last >= len(self.operations):
            return None
        first = self.operations[number]
        if not is_among(first, _KINDS) or not is_among(self.operations[last], _KINDS):
            return None
        file = self.system.files.get(first.file)
        self._not_before = number + LEAST  # what is asked changes seldom
        if file is None or not possible(self.system, file):
            return None
        calls, stream = self._alike(file, first.file, self.operations[number : number + self._most])
        if len(calls) < LEAST:
            self._not_before, self._most = number + len(calls) + self._wait.longer(), LEAST
            return None
        self._wait.over()
        self._not_before = number + len(calls) + (len(calls) < self._most)
        self._most = min(2 * self._most, MOST) if len(calls) == self._most else 2 * len(calls)
        done = self._run(file, calls, stream)
        count = 0 if done is None else len(done.results)
        if len(calls) != count:
            self._not_before, self._most = number + count + 1, max(2 * count, LEAST)
        return done

    def _alike(
        self, file: OpenFile, name: str, operations: Sequence[sc.Operation]
    ) -> tuple[list[_Call | sc.Fault], Int64s]:
        """Calls on a file up to whatever is something else, or reaches out of the file, or is long; rows of a stream."""
        inode, tasks, calls_too = file.inode, self.system.tasks, may_call(self.system, file)
        ends = {of: reach(file, of) for at, of in self.before.went_well if at == name}
        calls: list[_Call | sc.Fault] = []
        rows: list[tuple[int, int, int, int, int, int]] = []
        for one in operations:
            if not is_among(one, _KINDS) or one.file != name or (one.task is not None and one.task not in tasks):
                break
            if isinstance(one, OF_STATES):
                row = row_of(one, file, calls_too)
            else:
                row = row_of_fault(one, ends.get(way(one), 0))
            if row is None:
                break
            calls.append(one)
            rows.append(row)
        stream = np.array(rows, np.int64).reshape(-1, 6)
        count = min(_first_absent(inode, stream), _first_given_back(inode, stream))
        return calls[:count], stream[:count]

    def _run(self, file: OpenFile, calls: list[_Call | sc.Fault], stream: Int64s) -> Done | None:
        """Carry out such calls, up to one that is left."""
        system, inode, metadata = self.system, file.inode, self.system.metadata
        given, states, _ = carry_out(system, inode, stream)
        if states is None:
            return None
        stream = given.stream
        calls = calls[: len(stream)]
        walked = map_for_host(file, given)
        held = None if metadata is None else held_after(system, metadata, file, calls, given, walked, states)
        free = np.broadcast_to(system.free, (len(calls), len(system.free)))
        return Done(results_of(calls, given), np.zeros_like(free), free, held, states)


def possible(system: System, file: OpenFile) -> bool:
    """Whether calls on a file change nothing but what is followed here."""
    inode, conversions, metadata = file.inode, system.conversions, system.metadata
    tracked = inode.tracked
    if conversions is None or not isinstance(tracked, LightFile) or inode.users is None:
        return False
    if system.killed or system.bulk is not None or inode.frozen or inode.evicted:
        return False
    if inode.small is not None or inode.attributes is not None:
        return False
    return metadata is None or not metadata.taking


def may_call(system: System, file: OpenFile) -> bool:
    """Whether conversions and pins of such a file do not, either."""
    inode, metadata = file.inode, system.metadata
    assert isinstance(inode.tracked, LightFile)
    if not converts_in_place(system, file):
        return False
    return metadata is None or metadata.trees.get(inode, {}).keys() == _TREES


def row_of(one: _Call, file: OpenFile, calls_too: bool) -> tuple[int, int, int, int, int, int] | None:
    """A call on states of a file as a row of a stream; None: it is not followed, reaches out of the file, or is long.

    calls_too : whether conversions and pins are possible
    """
    inode = file.inode
    if isinstance(one, CALLS):
        return row_of_call(one, inode) if calls_too else None
    if file.descriptor is None:
        return None
    length = one.length
    if isinstance(one, sc.Hwpoison):
        first, end = one.offset // PAGE_SIZE, inode.pages
        if length is None or one.offset >= end * PAGE_SIZE:
            return None
        count = -(-min(length, end * PAGE_SIZE - one.offset) // PAGE_SIZE)
        return (folio.POISON, first * PAGE_SIZE, count * PAGE_SIZE, 0, 0, 0) if 0 < count <= _PAGES else None
    if length is None or not whole_pages(one.offset, length, inode.pages * PAGE_SIZE):
        return None
    return kernel.DEVICE_MAP if isinstance(one, sc.IommuMap) else kernel.DEVICE_UNMAP, one.offset, length, 0, 0, 0


def results_of(calls: Sequence[sc.Operation], given: kernel.Rows) -> list[Result]:
    """What each call returned."""
    said: dict[tuple[str, int], Result] = {}
    out: list[Result] = []
    lists = (given.errors.tolist(), given.offsets.tolist(), given.stream[:, folio.LENGTH].tolist(), given.ends.tolist())
    for one, error, offset, length, bad in zip(calls, *lists, strict=True):
        if isinstance(one, sc.Fault) and one.by == "host" and bad:
            out.append(Result(length // PAGE_SIZE - bad, 0, {"bad": bad, "first": offset // PAGE_SIZE}))
        elif isinstance(one, sc.Fault) and not error:
            key = (one.by, length)
            if key not in said:
                said[key] = calls_mm.touched(one, length // PAGE_SIZE)
            out.append(said[key])
        elif isinstance(one, sc.Hwpoison):
            out.append(Result(-1 if error else 0, error, {"pages": offset}))
        elif isinstance(one, sc.IommuMap) and not error:
            out.append(_MAPPED)
        elif isinstance(one, _DONE_OR_NOT) and not error:
            out.append(_DONE)
        else:
            out.append(result_of_call(error, offset))
    return out


_DONE_OR_NOT = (sc.IommuUnmap, sc.Fallocate, sc.PunchHole)
_DONE, _MAPPED = Result(), Result(0, 0, {"pinned_pages": 0})


def row_of_fault(fault: sc.Fault, end: int, turns: bool = False) -> tuple[int, int, int, int, int, int] | None:
    """A fault as a row of a stream; None: it goes to and fro, is long, or reaches beyond ``end``.

    turns : whether the policy of the task interleaves
    """
    if fault.length is None:
        return None
    start, count = fault.offset // PAGE_SIZE, fault.length // PAGE_SIZE
    if not 0 < count <= _PAGES or start + count > end or (fault.order != "sequential" and count > 1):
        return None
    op, argument = (folio.HOST_FAULT, int(turns)) if fault.by == "host" else (folio.GUEST_FAULT, folio.AS_IT_IS)
    return op, start * PAGE_SIZE, count * PAGE_SIZE, argument, 0, 0


def _first_absent(inode: Inode, stream: Int64s) -> int:
    """The first fault or pin of a page that is not there; how many rows there are if none is."""
    assert isinstance(inode.tracked, LightFile)
    op, argument = stream[:, folio.OP], stream[:, folio.ARGUMENT]
    places = np.isin(op, (folio.HOST_FAULT, folio.GUEST_FAULT)) | ((op == folio.PIN) & (argument != folio.TRANSIENT))
    some = np.flatnonzero(places)
    first, end = pages_of_calls(stream[some])
    row, unit = pages_of(first >> inode.order, -(-end >> inode.order))
    absent = some[row[inode.tracked.state.unit_pfn[unit] < 0]]
    return int(absent[0]) if len(absent) else len(stream)


def _first_given_back(inode: Inode, stream: Int64s) -> int:
    """The first unpin of a page that has left the file, and may be free then; how many rows there are if none is."""
    assert isinstance(inode.tracked, LightFile)
    unpins = (stream[:, folio.OP] == folio.UNPIN) & (stream[:, folio.ARGUMENT] != folio.TRANSIENT)
    if not unpins.any():
        return len(stream)
    return first_among(np.column_stack(pages_of_calls(stream)), inode.tracked.withheld(), unpins)


def carry_out(
    system: System, inode: Inode, stream: Int64s, placing: Placing | None = None
) -> tuple[kernel.Rows, States | None, int]:
    """Run the kernel; what became of the calls that it has carried out, states after each (None: of none), and how it ended."""
    conversions, tracked, users = system.conversions, inode.tracked, inode.users
    assert conversions is not None and users is not None and isinstance(tracked, LightFile)
    counters = len(light_map.COUNTERS)
    before = conversions.rows(1)
    own, mapped = np.concatenate((tracked.counts, tracked.vmemmap_taken)), users.kvm.pages
    told_of = np.array(users.iommu_row(), np.int64)
    watched = system.scenario.guest.vm_type in WATCHED
    whole = conversions.whole(inode).state if watched else _NO_WHOLE
    others = conversions.whole_of_others(inode)
    given = _rows(system, inode, tracked, stream, len(whole.row) if watched else 0)
    at = given.at
    at[kernel.TOLD], at[kernel.LOST], at[kernel.ENTERED] = users.calls, users.lost, inode.entered[0]
    touched = _nothing_touched(system, inode) if placing is None else placing
    turns, zones = system.turns_and_zones(inode, inode.order)
    holes, units = bool((stream[:, folio.OP] == folio.PUNCH).any()), tracked.memory.free_pages
    status, wanted = kernel.DONE, 1
    while True:
        blocks, rows, their_blocks, their_rows, more = (wanted if status == lacks else 1 for lacks in _LACKS)
        table, leaves, at[kernel.USED] = users.kvm.lend(blocks, rows)
        theirs, device_leaves, at[kernel.DEVICE_USED] = users.iommu.lend(their_blocks, their_rows)
        areas, area_rows, at[kernel.AREAS_USED] = inode.areas.lend(more)
        given = given._replace(leaves=leaves, device_leaves=device_leaves, areas=area_rows)
        placed = inode.map.room(erases=holes)
        status = tracked.carry_out_rows(
            given,
            (table, placed, whole, theirs, areas, touched.given, _NO_NODES, touched.requests, turns, zones,
             system.output_of(inode.map)),
        )  # fmt: skip
        users.kvm.take_back(int(at[kernel.USED]), int(at[kernel.MAPPED]))
        users.iommu.take_back(int(at[kernel.DEVICE_USED]), int(at[kernel.DEVICE_PAGES]))
        inode.areas.take_back(int(at[kernel.AREAS_USED]))
        if status in (kernel.DONE, kernel.OUT_OF_MEMORY, kernel.LEFT):
            break
        assert status != kernel.REFUSED  # whoever places has seen to it that there is room
        wanted = int(at[kernel.WANTED])
        if status == kernel.LACKS_REACHED:
            given = given._replace(reached=np.concatenate((given.reached, np.empty((2 * wanted, 4), np.int64))))
        if status == kernel.LACKS_PLACES:
            inode.map.grow(1024, 4 * len(system.output_of(inode.map).cycle))
            if system.cancelled():
                raise Cancelled
    tracked.memory.known += tracked.memory.free_pages - units
    done = int(at[kernel.ROW])
    given = _first_rows(given, done)
    if placing is not None and done:
        inode.entered[0] = int(placing.given.entered[done - 1])
    users.calls, users.lost = int(at[kernel.TOLD]), int(at[kernel.LOST])
    if not done:
        return given, None, status
    conversions.devices |= bool(((given.stream[:, folio.OP] == kernel.DEVICE_MAP) & (given.errors == 0)).any())
    series = np.tile(before, (done, 1))
    series[:, :KVM_PAGES] += (
        np.concatenate((tracked.counts_of(given.counters[:, :counters]), given.counters[:, counters:]), axis=1) - own
    )
    series[:, KVM_PAGES] += given.mapped - mapped
    series[:, TOLD:] += given.devices[:, :3] - told_of
    leaves_of_devices = None
    if conversions.devices:
        leaves_of_devices = np.zeros((len(series), len(PAGE_ORDERS)), np.int64)
        of_2m, of_1g = given.devices[:, 3:].T
        leaves_of_devices[:, 0] = given.devices[:, 1] - of_2m * folio.PAGES_2M
        leaves_of_devices[:, 1], leaves_of_devices[:, 2] = of_2m - of_1g * folio.BLOCKS_1G, of_1g
        for one in conversions.inodes:
            if one is not inode and one.users is not None and one.users.iommu.pages and not one.evicted:
                leaves_of_devices += conversions.device_leaves(one, one.users.iommu)
    if not watched:
        return given, States(series, None, None, leaves_of_devices), status
    given.whole[:, kernel_of_whole.REGIONS + tracked.nodes :] *= BYTES_OF_A_PAIR
    stays = given.whole + others
    pamt = stays[:, -tracked.nodes :] // PAGE_SIZE if system.scenario.guest.vm_type == "tdx" else None
    return given, States(series, stays, pamt, leaves_of_devices), status


_NO_NODES = faults.Nodes(
    np.empty(0, np.int64), np.empty((0, 0), np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int64)
)


def _nothing_touched(system: System, inode: Inode) -> Placing:
    """Nothing is placed, and nothing leaves the file."""
    requests, row_of = system.requests(inode, [next(iter(system.tasks.values()))], [None], inode.order)
    nothing, table = np.empty(0, np.int64), np.empty((0, 2), np.int64)
    given = faults.Faults(
        np.empty((0, 5), np.int64), table, row_of, np.zeros(6, np.int64), table, np.empty((0, 4), np.int64),
        nothing, table, table, table, nothing,
    )  # fmt: skip
    return Placing(given, requests)


def _first_rows(given: kernel.Rows, done: int) -> kernel.Rows:
    """Of what the kernel was given the first rows, which are done."""
    if done == len(given.stream):
        return given
    names = ("stream", "errors", "offsets", "counters", "ends", "nodes", "mapped", "whole", "devices")
    return given._replace(**{name: getattr(given, name)[:done] for name in names})


_LACKS = (
    kernel.LACKS_BLOCKS, kernel.LACKS_LEAVES, kernel.LACKS_DEVICE_BLOCKS, kernel.LACKS_DEVICE_LEAVES, kernel.LACKS_AREAS
)  # fmt: skip


def _rows(system: System, inode: Inode, tracked: LightFile, stream: Int64s, watched: int) -> kernel.Rows:
    """What the kernel is given, but for the rows of leaves."""
    rows, longest = len(stream), int(stream[:, folio.LENGTH].max()) // PAGE_SIZE + 4
    levels: list[Int64s] = []
    if system.metadata is not None and PAGE_CACHE in system.metadata.trees.get(inode, {}):
        shared = system.metadata.trees[inode][PAGE_CACHE]
        assert isinstance(shared, SharedNodes)
        levels = shared.levels()
    at = np.zeros(15, np.int64)
    at[kernel.LARGEST] = PAGE_ORDERS[tracked.largest_leaf]
    assert inode.users is not None
    at[kernel.MAPPED], at[kernel.DEVICE_PAGES] = inode.users.kvm.pages, inode.users.iommu.pages
    return kernel.Rows(
        stream=stream, errors=np.zeros(rows, np.int32), offsets=np.full(rows, -1, np.int64),
        counters=np.empty((rows, len(light_map.COUNTERS) + tracked.nodes), np.int64),
        ends=np.zeros(rows, np.int64), reached=np.empty((4 * longest, 4), np.int64),
        nodes=np.empty((rows, 2), np.int64), mapped=np.empty(rows, np.int64),
        whole=np.empty((rows if watched else 0, watched), np.int64), leaves=np.zeros((0, 5), np.int64),
        device_leaves=np.zeros((0, 5), np.int64), areas=np.zeros((0, 3), np.int64), devices=np.zeros((rows, 5), np.int64),
        pieces=np.empty((longest, 3), np.int64), gaps=np.empty((longest, 2), np.int64),
        children=np.concatenate([np.zeros(0, np.int64), *levels]),
        levels=np.cumsum([0, *map(len, levels)])[:-1].astype(np.int64),
        there=np.array([np.count_nonzero(level) for level in levels], np.int64), at=at,
        before=np.empty(len(system.free), np.int64),
    )  # fmt: skip


_NO_WHOLE = kernel_of_whole.nobody_asks()


def map_for_host(file: OpenFile, given: kernel.Rows) -> Int64s:
    """The host's page tables: row, first page and end of what faults of the host may have gone through them for, int64 (n, 3)."""
    inode, stream, errors = file.inode, given.stream, given.errors.astype(np.int64)
    by_host = (stream[:, folio.OP] == folio.HOST_FAULT) & (errors == 0)
    pins, private, end = maps_and_zaps(stream, errors, given.offsets)
    private |= (stream[:, folio.OP] == folio.PUNCH) & np.isin(errors, (0, errno.EAGAIN))
    first, end = pages_of_calls(stream)[0], np.where(private, given.ends, end)
    pins &= end > first
    walked: list[tuple[int, int, int]] = []
    if not file.inode.mappings:
        return np.zeros((0, 3), np.int64)
    if not (by_host.any() or pins.any()):  # what is mapped there is from the start
        some = np.flatnonzero(private)
        row, page = pages_of(first[some], end[some])
        there = [mapping.mapped() for mapping in inode.mappings if not mapping.empty]
        zaps = [some[row[in_intervals(page, one)]] for one in there]
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *zaps]))
    else:
        rows = np.flatnonzero(by_host | pins | private)
    parts: dict[int, list[list[int]]] = {}
    for number, *part in given.reached[: int(given.at[kernel.REACHED])].tolist():
        parts.setdefault(number, []).append(part)
    lists = (rows.tolist(), first[rows].tolist(), end[rows].tolist(), by_host[rows].tolist(), pins[rows].tolist())
    for number, low, high, touches, pinned in zip(*lists, strict=True):
        if pinned:
            for mapping in inode.mappings:
                mapping.map(low, high)
        elif not touches:
            for mapping in inode.mappings:
                if not mapping.empty:
                    mapping.zap(low, high)
        elif file.mapping is not None and len(file.mapping.unmapped(low, high)):
            for begin, stop, maps in parts.get(number, [[low, high, 1]]):
                # What a pin has mapped may have no page tables.
                walked += [(number, *part) for part in file.mapping.unmapped(begin, stop).tolist()]
                if maps:  # a poisoned page is looked for, and mapped by nobody
                    file.mapping.map(begin, stop)
    return np.array(walked, np.int64).reshape(-1, 3)


def held_after(
    system: System,
    metadata: Metadata,
    file: OpenFile,
    calls: Sequence[sc.Operation],
    given: kernel.Rows,
    walked: Int64s,
    states: States,
    placed: Placed | None = None,
) -> Int64s:
    """What is held after each call, int64 (n, kinds, nodes): nodes of trees, tables, struct pages and PAMT."""
    inode, stream = file.inode, given.stream
    trees = metadata.trees[inode]
    first, end = pages_of_calls(stream)
    wanted = {kind: np.full(len(stream), tree.nodes.sum()) for kind, tree in trees.items()}
    converted = stream[:, folio.OP] == folio.CONVERT
    if converted.any() or placed is not None:
        shared = trees[PAGE_CACHE]
        assert isinstance(shared, SharedNodes)
        wanted[LIGHT_MAP], wanted[PAGE_CACHE] = given.nodes[:, 0], given.nodes[:, 1]
        shared.followed(int(given.nodes[-1, 1]))
    if converted.any():
        of_states = trees[STATE_TREE]
        assert isinstance(of_states, StateTree)
        block_by_block = system.rules.kernel == "C" and inode.order > 0
        unit = given.offsets // PAGE_SIZE >> inode.order << inode.order
        stopped = np.where(block_by_block & (given.offsets >= 0), np.maximum(unit, first), first)
        reached = np.where(~converted, first, np.where(given.errors == 0, end, stopped))
        wanted[STATE_TREE] = of_states.follow(first, reached, stream[:, folio.ARGUMENT] == 1)
    tasks = [system.task(one) for one in calls]
    after = None if placed is None else (placed.free, placed.rotations)
    followed = FollowedTrees(metadata, trees, np.column_stack([*wanted.values()]), tasks, after)
    walks: dict[int, list[tuple[Walk, int, int]]] = {}
    by_guest = np.flatnonzero(stream[:, folio.OP] == folio.GUEST_FAULT)
    touched_by_guest = np.column_stack((by_guest, first[by_guest], end[by_guest]))
    for touched, walk in (
        (touched_by_guest, system.guest_walk(inode) if len(by_guest) else None),
        (walked, system.host_walk(file.mapping) if len(walked) else None),
    ):
        if walk is not None:
            rows = np.column_stack((touched[:, 1:], np.ones_like(touched[:, 0]), np.zeros_like(touched[:, 0])))
            needed = metadata.first_to_need(walk, rows, [tasks[number] for number in touched[:, 0].tolist()])
            for number, low, high in touched[needed].tolist():
                walks.setdefault(number, []).append((walk, low, high))

    def enter(row: int) -> None:
        as_of = None if placed is None else metadata.as_of(tasks[row], placed.before[row], placed.rotations[row])
        with as_of or nullcontext():
            for walk, low, high in walks[row]:
                metadata.enter_tables(tasks[row], walk, low, high)

    held = followed.run(sorted(walks), enter)
    states.hold(metadata, held)
    return held

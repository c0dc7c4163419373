"""Many calls on a file that converts in place: the state after each, and what they do to it that were placed together.

A fault puts in the file what was placed for it, and touches its pages; conversions, pins and holes come between. All are rows of
one stream of the tracked file, whose counters after each row are those after each call. For SNP and TDX what stays whole is
looked at after each one.

What a host's fault places depends on the states that it finds, and so on conversions before it. Of a single page that is known
beforehand: one to private is refused where somebody holds the page, which then is there. So is whether anybody may hold a page
that is to leave the file.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.engine.conversion_counts import KVM_PAGES, MAPPED, VMEMMAP_PAGES
from workbench.engine.conversions import Conversions
from workbench.engine.device_areas import DeviceAreas
from workbench.engine.kernel_pages import PAMT, VMEMMAP
from workbench.engine.lists.cells import NO, UNSURE, YES, Cells
from workbench.engine.lists.held_pages import HeldPages, Part
from workbench.engine.mappings import Mapping
from workbench.engine.metadata import Metadata
from workbench.engine.objects import Inode, OpenFile, Result, failed
from workbench.engine.system import System
from workbench.intervals import Int64s, pages_of
from workbench.kernels import faults as kernel
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import KINDS, StreamResult
from workbench.tracking.whole import WATCHED
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
Call = sc.Convert | sc.Pin | sc.Unpin
CALLS = (sc.Convert, sc.Pin, sc.Unpin)
_OPS: dict[type[Call], int] = {sc.Convert: folio.CONVERT, sc.Pin: folio.PIN, sc.Unpin: folio.UNPIN}
ALLOCATED, BY_GUEST, BY_HOST, CALLED, PUNCHED = range(5)
"""What a row of a list does: allocates by a call on the file, touches as the guest or as the host, is one of :data:`CALLS` or
memory failure, or punches a hole."""
MOST_PAGES = 1 << 14
"""Of one list of faults: each has rows of its own."""
POISONED_PAGES = 64
"""Of one call of a list, each of which is a row."""
_CALL_PAGES = 2048  # of any other
_MOST_LOOKED_AT = 1 << 18
"""Pages of all rows of a list together."""
_ADDS, _REMOVES, _LEAVES = range(3)
_OP_OF = np.zeros(5, np.int64)
_OP_OF[[BY_GUEST, BY_HOST, PUNCHED]] = folio.GUEST_FAULT, folio.HOST_FAULT, folio.PUNCH


class States(NamedTuple):
    """Of conversions after each of n faults."""

    counters: Int64s
    """int64 (n, counters + nodes + 4), rows of :mod:`workbench.engine.conversion_counts`."""
    whole: Int64s | None
    """int64 (n, 4 + 2 nodes), what stays whole; None: nobody asks."""
    pamt: Int64s | None
    """int64 (n, nodes), PAMT pages of a TDX guest."""
    leaves: Int64s | None = None
    """int64 (n, 3), of devices; None: there are none."""

    def hold(self, metadata: Metadata, held: Int64s) -> None:
        """Struct pages and PAMT pages as of each call, in ``held`` int64 (n, kinds, nodes)."""
        metadata.hold_after(held, VMEMMAP, self.counters[:, VMEMMAP_PAGES])
        if self.pamt is not None:
            metadata.hold_after(held, PAMT, self.pamt)


def possible(system: System, inode: Inode) -> bool:
    """Whether calls on a file do nothing but what is followed here: what a device maps of it is leaves of 4 KiB, or nothing."""
    conversions, tracked = system.conversions, inode.tracked
    if conversions is None:
        return True
    if not isinstance(tracked, ConversionFile) or inode.evicted:
        return False
    return not (inode.order and inode.users is not None and inode.users.iommu.pages)


def pins_possible(system: System, file: OpenFile) -> bool:
    """Whether pins and poison of a file need nothing but its own state, and what is followed here and by who asks."""
    inode, metadata = file.inode, system.metadata
    if file.descriptor is None or system.killed or system.bulk is not None:
        return False
    if not isinstance(inode.tracked, ConversionFile) or not possible(system, inode):
        return False
    return metadata is None or metadata.follows_states(inode)


def converts_in_place(system: System, file: OpenFile) -> bool:
    """Whether the ioctl that converts is there, and nothing keeps it from the file."""
    scenario = system.scenario
    if file.descriptor is None or system.killed or system.bulk is not None or not scenario.guest.private_memory:
        return False
    return scenario.in_place


def row_of_call(call: Call, inode: Inode) -> tuple[int, int, int, int, int, int] | None:
    """A call as a row of a stream of the tracked file; None: it reaches out of the file, or is long."""
    length = call.length
    if length is None or not 0 < length <= _CALL_PAGES * PAGE_SIZE or call.offset + length > inode.pages * PAGE_SIZE:
        return None
    argument = int(call.to == "shared") if isinstance(call, sc.Convert) else KINDS[call.kind]
    return _OPS[type(call)], call.offset, length, argument, 0, 0


def row_of_device(call: sc.IommuMap | sc.IommuUnmap, inode: Inode) -> tuple[int, int, int, int, int, int] | None:
    """What a device pins, or lets go, as a row of a stream of the tracked file; None: no whole pages of it, or many."""
    offset, length = call.offset, call.length
    if length is None or not 0 < length <= _CALL_PAGES * PAGE_SIZE or (offset | length) % PAGE_SIZE:
        return None
    if offset + length > inode.pages * PAGE_SIZE:
        return None
    return folio.PIN if isinstance(call, sc.IommuMap) else folio.UNPIN, offset, length, folio.DEVICE, 0, 0


def pages_of_calls(stream: Int64s) -> tuple[Int64s, Int64s]:
    """First page and end of each row's range."""
    first = stream[:, folio.OFFSET] // PAGE_SIZE
    return first, -(-(stream[:, folio.OFFSET] + stream[:, folio.LENGTH]) // PAGE_SIZE)


def maps_and_zaps(stream: Int64s, errors: Int64s, offsets: Int64s) -> tuple[Bools, Bools, Int64s]:
    """Which calls map their pages for the host, which unmap them, and up to where.

    What is pinned is mapped, up to a private page; what is to be private is not, held or not, nor is a poisoned page.
    """
    op, argument = stream[:, folio.OP], stream[:, folio.ARGUMENT]
    maps = (op == folio.PIN) & (argument != folio.TRANSIENT)
    zaps = (op == folio.CONVERT) & (argument == 0) & np.isin(errors, (0, errno.EAGAIN))
    zaps |= (op == folio.POISON) & (errors == 0)
    return maps, zaps, np.where(maps & (errors != 0), offsets // PAGE_SIZE, pages_of_calls(stream)[1])


def row_of_poison(call: sc.Hwpoison, inode: Inode, most: int = 1) -> tuple[int, int, int, int, int, int] | None:
    """Memory failure of some pages as a row of a list; None: of more than ``most``, or out of the file.

    A stream of the tracked file has a row for each page (:func:`page_by_page`).
    """
    length = min(call.length or 0, inode.pages * PAGE_SIZE - call.offset)
    if not 0 < length <= most * PAGE_SIZE:
        return None
    return folio.POISON, call.offset // PAGE_SIZE * PAGE_SIZE, -(-length // PAGE_SIZE) * PAGE_SIZE, 0, 0, 0


def page_by_page(stream: Int64s, of: Int64s) -> tuple[Int64s, Int64s]:
    """A stream int64 (n, 6) and the call that each row is of, with as many rows as pages for memory failure on several."""
    pages = np.where(stream[:, folio.OP] == folio.POISON, stream[:, folio.LENGTH] // PAGE_SIZE, 1)
    if (pages == 1).all():
        return stream, of
    row, page = pages_of(np.zeros_like(pages), pages)
    several = pages[row] > 1
    stream, of = stream[row], of[row]
    stream[several, folio.OFFSET] += page[several] * PAGE_SIZE
    stream[several, folio.LENGTH] = PAGE_SIZE
    return stream, of


def result_of_poison(error: int, marked: int | None = None) -> Result:
    """What memory failure returned that marked so many pages: those of huge ones are, although that is an error.

    ``marked`` is left out of a call on one page.
    """
    pages = {"pages": int(error in (0, errno.EBUSY)) if marked is None else marked}
    return Result(-1, error, pages) if error else Result(0, 0, pages)


def result_of_call(error: int, offset: int) -> Result:
    detail = {"error_offset": offset} if offset >= 0 else {}
    return Result(-1, error, detail) if error else Result(0, 0, detail)


class Ended(NamedTuple):
    """How each of n calls ended."""

    errors: Int64s
    offsets: Int64s
    """Byte offsets that errors name, -1: none."""
    marked: Int64s
    """Pages that memory failure marked."""
    states: States


class Outcomes(NamedTuple):
    """What came of n rows of a list."""

    errors: Int64s
    offsets: Int64s
    """Byte offsets that errors name."""
    marked: Int64s
    """Pages that memory failure marked."""
    walked: Int64s
    """int64 (parts, 2), pages [first, end) of each row of the kernel for which a host's fault went through its page tables: what
    it had not mapped."""
    states: States
    said: dict[int, Result] | None = None
    """What rows returned whose errors do not say it."""


class _Placed:
    """What each row of a list has placed: ``begin``, ``entered`` int64 (n,) are the first allocation row, and where those of each
    of its rows end.
    """

    def __init__(self, inode: Inode, begin: int, entered: Int64s) -> None:
        self._ends = [begin, *entered.tolist()]
        self._of: dict[int, list[int]] = {}
        rows, pages, _ = inode.map.placed_by(begin, self._ends[-1])
        for row, page in zip((begin + rows).tolist(), pages.tolist(), strict=True):
            self._of.setdefault(page, []).append(row)

    def before(self, page: int, row: int, frame: int) -> int:
        """The frame that a page has when the turn of a row comes; ``frame``: before all of them."""
        return max((2 * one for one in self._of.get(page, ()) if one < self._ends[row]), default=frame)


class DeviceRows:
    """What a list maps for a device that pins, and takes away: areas of a file are followed row by row, and entered at its end.

    Frames are then what they were, but for those of pages that have left the file meanwhile.
    """

    def __init__(self, inode: Inode) -> None:
        self._inode = inode
        self._areas: DeviceAreas | None = None
        self._steps: list[tuple[int, int, int, int]] = []
        """Row, and which area it adds or removes; or the page that leaves the file, and the frame that it had before the list."""
        self.said: dict[int, Result] = {}

    def leave(self, row: int, first: list[int], pins: list[int], low: int, high: int) -> None:
        """Cells leave the file, of which a device has those with pins; ``first``: the first page of each."""
        for page in [page for cell in range(low, high) if pins[cell] for page in range(first[cell], first[cell + 1])]:
            before = self._inode.map.cut(page, page + 1)
            self._steps.append((row, _LEAVES, page, 2 * int(before[0, 2]) if len(before) else -1))

    def map(self, row: int, first: int, end: int, may: bool) -> bool:
        """Whether pages are to be pinned: not where an area is. ``may``: they are shared, and not poisoned."""
        areas = self._followed()
        if areas.touched(first, end):
            self.said[row] = failed(errno.EEXIST)
            return False
        if may:
            self.said[row] = Result(0, 0, {"pinned_pages": end - first})
            areas.add(first, end)
            self._steps.append((row, _ADDS, first, end))
        return True

    def unmap(self, row: int, first: int, end: int) -> list[tuple[int, int]]:
        """Areas that are let go; none: it is refused."""
        areas = self._followed()
        touched = areas.touched(first, end)
        if not touched or touched[0][0] < first or touched[-1][1] > end:
            self.said[row] = failed(errno.ENOENT)
            return []
        for start, stop in touched:
            areas.remove(start)
            self._steps.append((row, _REMOVES, start, stop))
        self.said[row] = Result()
        return touched

    def _followed(self) -> DeviceAreas:
        if self._areas is None:
            self._areas = self._inode.areas.copy()
        return self._areas

    def carry_out(self, system: System, inode: Inode, states: States, begin: int, entered: Int64s) -> States:
        """Enter what the rows of ``states`` have done, and what devices map after each.

        ``begin``, ``entered`` int64 (n,): the first allocation row of the list, and where those of each of its rows end.
        """
        users, conversions = inode.users, system.conversions
        steps = [step for step in self._steps if step[0] < len(states.counters)]
        if not steps or users is None or conversions is None:
            return states
        more = np.zeros(len(states.counters), np.int64)
        added: dict[int, int] = {}
        removed: list[tuple[int, int]] = []
        left: dict[int, tuple[int, int]] = {}
        for row, does, first, end in steps:
            if does == _LEAVES:
                left[first] = row, end
            elif does == _ADDS:
                inode.areas.add(first, end)
                added[first] = end
                more[row] += end - first
            else:
                inode.areas.remove(first)
                if added.pop(first, None) is None:
                    removed.append((first, end))
                more[row] -= end - first
                for page in range(first, end):
                    left.pop(page, None)
        for first, end in removed:
            users.iommu_unmap(first, end)
        users.iommu_map_many(np.array(sorted(added.items()), np.int64).reshape(-1, 2))
        if left:
            placed = _Placed(inode, begin, entered)
            users.iommu.add(np.array([[page, 1, placed.before(page, *at)] for page, at in sorted(left.items())]))
        conversions.devices = True
        more = np.cumsum(more)
        states.counters[:, MAPPED] += more
        leaves = np.zeros((len(more), 3), np.int64) if states.leaves is None else states.leaves.copy()
        leaves[:, 0] += more
        return states._replace(leaves=leaves)


class TrackedFaults:
    """A list of operations on a tracked file of 4 KiB pages.

    ``rows`` int64 (n, 5): of faults as :mod:`workbench.kernels.faults` takes them; of calls their task, and the pages that
    are pinned, which are placed if they are not there (``mm/gup.c: faultin_page``).
    ``kind`` (n,) says which they are, ``calls`` int64 (n, 6) has rows of streams, ``mapping`` is the host's.
    """

    def __init__(
        self, system: System, inode: Inode, rows: Int64s, kind: Int64s, calls: Int64s, mapping: Mapping | None
    ) -> None:
        assert system.conversions is not None and isinstance(inode.tracked, ConversionFile)
        self.system, self.inode, self.mapping = system, inode, mapping
        self.tracked = inode.tracked
        count = int(np.searchsorted(np.cumsum(rows[:, 1] - rows[:, 0]), MOST_PAGES, side="right"))
        count = _first_true(rows[:count, 2] != 1)  # upwards, as folios are put in
        self.rows = rows[:count].copy()
        """As far as it is certain beforehand what they place, which is all that is left of each."""
        self.kind, self.calls = kind[:count], calls[:count]
        self.span = self.rows[:, :2].copy()
        is_call = self.kind == CALLED
        self.span[is_call] = np.column_stack(pages_of_calls(self.calls[is_call]))
        self.rows[is_call, :2] = 0  # but for what is pinned and is not there
        looked_at = np.cumsum(self.span[:, 1] - self.span[:, 0])
        self.rows = self.rows[: np.searchsorted(looked_at, _MOST_LOOKED_AT, side="right")]
        op = self.calls[:, folio.OP]
        asked = (self.kind == BY_HOST) | (is_call & ((op == folio.PIN) | (op == folio.POISON))) | self._device_rows()
        asked |= (self.kind == PUNCHED) & (self._held_before() | (self.tracked.count("poisoned_pages") > 0))
        asked |= is_call & (op == folio.UNPIN) & bool(inode.kept)
        self.devices = DeviceRows(inode)
        self.said = self.devices.said
        """What rows return whose errors do not say it."""
        self._acts: dict[int, list[tuple[int, int]]] = {}
        """Of the host's faults what it reaches that it had not mapped, of a device the areas that it lets go."""
        self._bad: set[int] = set()
        """Faults of the host on a poisoned page."""
        self._parts: dict[int, list[Part]] = {}
        """What the kernel is given in the place of a row."""
        self._held: HeldPages | None = None  # nobody asks
        if asked.any():
            self.rows = self.rows[: self._look_ahead()]
        self.rows, self.of = self._cut()

    def _cut(self) -> tuple[Int64s, Int64s]:
        """Rows of the kernel, and the row that each is of."""
        count = len(self.rows)
        if not self._parts:
            return self.rows, np.arange(count)
        many = np.ones(count, np.int64)
        many[list(self._parts)] = [max(1, len(parts)) for parts in self._parts.values()]
        of = np.repeat(np.arange(count), many)
        rows, at = self.rows[of], np.cumsum(many) - many
        starts = at.tolist()
        place: list[int] = []
        what: list[tuple[int, int, int, int]] = []
        for number, parts in self._parts.items():
            rows[at[number], 1] = rows[at[number], 0]  # without parts nothing is placed
            for row, (first, end, origin, does) in enumerate(parts, starts[number]):
                place.append(row)
                step = origin if isinstance(origin, int) else starts[origin[0]] + origin[1]
                what.append((first, end, step, does))
        rows[np.array(place, np.int64)[:, None], [0, 1, 2, 4]] = np.array(what, np.int64).reshape(-1, 4)
        return rows, of

    def _held_before(self) -> Bools:
        """Whether somebody holds a page of each hole now."""
        held = np.zeros(len(self.span), bool)
        if not self.tracked.state.numbers[folio.N_ROWS]:
            return held
        asked = np.flatnonzero(self.kind == PUNCHED)
        row, page = pages_of(self.span[asked, 0], self.span[asked, 1])
        held[asked[row[self.tracked.referenced(page)]]] = True
        return held

    def _device_rows(self) -> Bools:
        return (
            (self.kind == CALLED)
            & (self.calls[:, folio.OP] != folio.CONVERT)
            & (self.calls[:, folio.ARGUMENT] == folio.DEVICE)
        )

    def _look_ahead(self) -> int:
        """How many rows come before one that finds what is not certain; leaves of the host's faults what they place."""
        count = len(self.rows)
        cells = Cells(self.inode, self.tracked, self.mapping, self.span[:count])
        self._held = cells.held
        device_rows = self._device_rows().tolist()
        drains = bool(self.tracked.state.options[folio.DRAIN])
        of_rows = np.column_stack((self.kind[:count], self.calls[:count, :4], cells.of_rows)).tolist()
        for number, (kind, op, offset, length, argument, low, high) in enumerate(of_rows):
            certain = True
            if low == high:
                continue
            if kind == PUNCHED:
                certain = self._hole(number, cells, low, high)
            elif kind == BY_HOST:
                certain = self._host_touches(number, cells, low, high)
            elif kind != CALLED:
                cells.there[low:high] = bytes((YES,)) * (high - low)
            elif device_rows[number]:
                certain = self._device(number, cells, op, low, high)
            elif op == folio.PIN:
                certain = self._pin(number, cells, argument, low, high)
            elif op == folio.UNPIN:
                certain = self._unpin(number, cells, argument, low, high)
            elif op == folio.POISON:
                for cell in range(low, high):
                    if cells.there[cell]:
                        cells.poisoned[cell], cells.mapped[cell] = 1, NO
            elif (offset | length) % PAGE_SIZE == 0:
                self._convert(cells, argument == 1, drains, low, high)
            if not certain:
                return number
        return count

    def _hole(self, number: int, cells: Cells, low: int, high: int) -> bool:
        """What is pinned or poisoned stays allocated when it leaves the file."""
        held, none = cells.held, bytes((NO,)) * (high - low)
        if held.unsure.find(1, low, high) >= 0:
            return False
        _, pinned, of_device = held.pins
        has = any(of_device[low:high])
        if has:
            self.devices.leave(number, cells.first, of_device, low, high)
        if has or any(pinned[low:high]) or cells.poisoned.find(1, low, high) >= 0:
            self._parts[number] = held.leave(number, low, high, cells.poisoned)
        held.forget(low, high)
        cells.poisoned[low:high] = cells.there[low:high] = cells.mapped[low:high] = none
        return True

    @staticmethod
    def _convert(cells: Cells, to_shared: bool, drains: bool, low: int, high: int) -> None:
        """All of it or nothing; what is to be private is not mapped any more, held or not."""
        shared = cells.shared
        if to_shared:
            shared[low:high] = bytes((YES,)) * (high - low)
            return
        cells.mapped[low:high] = bytes((NO,)) * (high - low)
        refused = cells.refuses(low, high, drains)
        if refused == NO:
            shared[low:high] = bytes((NO,)) * (high - low)
        elif refused == UNSURE:
            for cell in range(low, high):
                shared[cell] = NO if shared[cell] == NO else UNSURE

    def _pin(self, number: int, cells: Cells, kind: int, low: int, high: int) -> bool:
        """Pages are placed and mapped up to one that is private or poisoned; in passing those are held that are there."""
        there, size = cells.there, high - low
        if kind == folio.TRANSIENT:
            if there.find(NO, low, high) < 0:
                cells.held.pin(low, high, kind, True)
            return True
        if cells.shared.find(UNSURE, low, high) >= 0:
            if there.find(NO, low, high) >= 0:
                return False
            cells.held.pin(low, high, kind, False)
            cells.mapped[low:high] = bytes((UNSURE,)) * size
            return True
        ends = (cells.shared.find(NO, low, high), cells.poisoned.find(1, low, high))
        stop = min((end for end in ends if end >= 0), default=high)
        if there.find(NO, low, stop) >= 0:
            self.rows[number, :2] = cells.first[low], cells.first[stop]
        there[low:stop] = cells.mapped[low:stop] = bytes((YES,)) * (stop - low)
        if stop == high:
            cells.held.pin(low, high, kind, True)
        return True

    def _unpin(self, number: int, cells: Cells, kind: int, low: int, high: int) -> bool:
        """What left the file while pinned is free with its last pin."""
        given_back = cells.held.drop(number, low, high, kind)
        if given_back:
            self._parts[number] = given_back
        return given_back is not None

    def _device(self, number: int, cells: Cells, op: int, low: int, high: int) -> bool:
        """Follow the areas that a device maps, and what of them a row takes away."""
        first, end = self.span[number].tolist()
        if op == folio.PIN:
            if cells.shared.find(UNSURE, low, high) >= 0:
                return False
            may = cells.shared.find(NO, low, high) < 0 and cells.poisoned.find(1, low, high) < 0
            if self.devices.map(number, first, end, may):
                return self._pin(number, cells, folio.DEVICE, low, high)
            self.kind[number] = ALLOCATED  # and nothing is
            return True
        areas = self.devices.unmap(number, first, end)
        if areas:
            self._acts[number] = areas
        else:
            self.kind[number] = ALLOCATED
        given_back: list[Part] = []
        for start, stop in areas:  # they begin and end where cells do: other pages have no pin of a device
            found = cells.held.drop(
                number, bisect_left(cells.first, start), bisect_left(cells.first, stop), folio.DEVICE
            )
            if found is None:
                return False
            given_back += found
        if given_back:
            self._parts[number] = given_back
        return True

    def _host_touches(self, number: int, cells: Cells, low: int, high: int) -> bool:
        """The host touches pages: what it has not mapped of what is shared is placed, part by part.

        False: it is not certain of some.
        """
        shared, mapped, there, poisoned, first = cells.shared, cells.mapped, cells.there, cells.poisoned, cells.first
        if high - low == 1:
            if shared[low] == YES and not poisoned[low]:
                there[low] = mapped[low] = YES
                return True
            if first[high] - first[low] == 1:
                return self._host_touches_one_in_vain(number, cells, low)
        parts: list[Part] = []
        acts: list[tuple[int, int]] = []
        missing = begin = reached = -1  # the first page that raises a signal, the part, what of it is reached
        good, end = 0, first[high]
        for cell in range(low, high):
            page, now, in_map, bad = first[cell], shared[cell], mapped[cell], poisoned[cell]
            if now == UNSURE or (now == YES and in_map == UNSURE):
                return False
            if now == YES and not bad:
                good += first[cell + 1] - page
            elif missing < 0:
                missing = page
            touched = now == YES and in_map != YES
            if touched and begin < 0:
                begin = page
            if reached >= 0 and (not touched or bad):
                acts.append((reached, page))
                reached = -1
            if touched and not bad and reached < 0:
                reached = page
            if begin >= 0 and not touched:
                parts.append((begin, page, 1, kernel.TOUCHES))
                begin = -1
        if begin >= 0:
            parts.append((begin, end, 1, kernel.TOUCHES))
        if reached >= 0:
            acts.append((reached, end))
        self._parts[number], self._acts[number] = parts, acts
        if missing >= 0:
            self.said[number] = Result(good, 0, {"bad": end - first[low] - good, "first": missing})
        for cell in range(low, high):
            if shared[cell] == YES:
                there[cell], mapped[cell] = YES, NO if poisoned[cell] else YES
        return True

    def _host_touches_one_in_vain(self, number: int, cells: Cells, cell: int) -> bool:
        """A page that is private, or may be, or is poisoned: nothing is placed."""
        found = cells.shared[cell]
        if found == UNSURE and (cells.poisoned[cell] or not cells.there[cell]):
            return False
        if found == YES:
            self._bad.add(number)
        else:
            self.rows[number, 1] = self.rows[number, 0]
            cells.mapped[cell] = UNSURE if found == UNSURE else NO
        return True

    def carry_out(self, entered: Int64s, faults: Int64s) -> Outcomes:
        """After some rows were placed: enter what is new, touch, convert, pin and punch.

        ``entered`` int64 (done,): where the allocation rows of each end; ``faults``: the rows of the kernel, after it ran.
        """
        inode, done = self.inode, len(entered)
        stream, row = self._stream(entered)
        begin = inode.entered[0]
        inode.entered[0] = int(entered[-1])
        end = np.searchsorted(row, np.arange(done), side="right")
        errors, offsets, marked, states = after_each(self.system, inode, stream, end)
        if self._held is not None:
            at = np.searchsorted(self.of, np.arange(done))
            self._held.carry_out(done, lambda left: int(faults[at[left[0]] + left[1], 2]))
        states = self.devices.carry_out(self.system, inode, states, begin, entered)
        return Outcomes(errors, offsets, marked, self._map(done, errors, offsets), states, self.said)

    def _stream(self, entered: Int64s) -> tuple[Int64s, Int64s]:
        """Stream int64 (m, 6) of rows, each first what is put in and then what is done, and the row that each is of."""
        begin, done = self.inode.entered[0], len(entered)
        allocation, page, zone = self.inode.map.placed_by(begin, int(entered[-1]))
        put = np.zeros((len(page), 6), np.int64)
        put[:, folio.OP], put[:, folio.OFFSET] = folio.INSERT, page * PAGE_SIZE
        put[:, folio.NODE] = self.system.zone_node[zone]
        fault = np.searchsorted(entered, begin + allocation, side="right")
        act = np.flatnonzero(self.kind[:done] != ALLOCATED)
        kind, rows = self.kind[act], self.calls[act]
        touch = kind != CALLED
        rows[touch, folio.OP] = _OP_OF[kind[touch]]
        rows[touch, folio.OFFSET] = self.span[act[touch], 0] * PAGE_SIZE
        rows[touch, folio.LENGTH] = (self.span[act[touch], 1] - self.span[act[touch], 0]) * PAGE_SIZE
        rows[touch, folio.ARGUMENT] = np.where(kind[touch] == BY_GUEST, folio.AS_IT_IS, 0)
        rows, act = self._one_by_one(rows, act)
        rows, act = page_by_page(rows, act)
        of = np.concatenate((fault, act))
        order = np.argsort(of, kind="stable")
        return np.concatenate((put, rows))[order], of[order]

    def _one_by_one(self, rows: Int64s, act: Int64s) -> tuple[Int64s, Int64s]:
        """Rows of a stream, and what they are of, with as many of one as it has pieces."""
        if not self._acts:
            return rows, act
        many = np.array([len(self._acts.get(number, (None,))) for number in act.tolist()], np.int64)
        of = np.repeat(np.arange(len(act)), many)
        rows, act, begin = rows[of], act[of], np.cumsum(many) - many
        for number, at in zip(act[begin[many > 0]].tolist(), begin[many > 0].tolist(), strict=True):
            for row, (low, high) in enumerate(self._acts.get(number, ()), at):
                rows[row, folio.OFFSET], rows[row, folio.LENGTH] = low * PAGE_SIZE, (high - low) * PAGE_SIZE
        return rows, act

    def _map(self, done: int, errors: Int64s, offsets: Int64s) -> Int64s:
        """The host's page tables; returns which pages were not there when its faults came (see :class:`Outcomes`)."""
        place = np.searchsorted(self.of, np.arange(done + 1))
        walked = np.zeros((int(place[-1]), 2), np.int64)
        kind = self.kind[:done]
        maps, zaps, stop = maps_and_zaps(self.calls[:done], errors, offsets)
        faults = kind == BY_HOST
        maps, zaps = maps & (kind == CALLED), (zaps & (kind == CALLED)) | (kind == PUNCHED)
        stop = np.where(kind == CALLED, stop, self.span[:done, 1])
        some = np.flatnonzero(faults | maps | zaps)
        first = self.span[some, 0].tolist()
        for number, low, high in zip(some.tolist(), first, stop[some].tolist(), strict=True):
            if faults[number]:
                assert self.mapping is not None
                if number in self._acts:
                    parts = self._parts[number]
                    for part, (begin, end, *_) in enumerate(parts, int(place[number])):
                        walked[part] = begin, end
                    for begin, end in self._acts[number]:
                        self.mapping.map(begin, end)
                    continue
                if errors[number] and number not in self._bad:
                    continue
                missing = self.mapping.unmapped(low, high)
                if len(missing):
                    walked[place[number]] = missing[0]
                    if not errors[number]:
                        self.mapping.map(low, high)
            elif low < high:
                for mapping in self.inode.mappings:
                    if maps[number]:
                        mapping.map(low, high)
                    elif not mapping.empty:
                        mapping.zap(low, high)
        return walked


def after_each(system: System, inode: Inode, stream: Int64s, end: Int64s) -> Ended:
    """Carry out a stream int64 (m, 6) on a tracked file: how each of n calls ended, and the states after it.

    ``end`` int64 (n,): where the rows of each call end, the last of which says how it did. Memory failure has a row for each
    page, and went well if any did. Nothing but the file changes in any counter.
    """
    conversions, tracked = system.conversions, inode.tracked
    assert conversions is not None and isinstance(tracked, ConversionFile)
    counters = conversions.rows(len(end))
    own = np.concatenate((tracked.counts, tracked.vmemmap_taken))
    vm_type = system.scenario.guest.vm_type
    whole = pamt = None
    if vm_type in WATCHED:
        found, whole = _watched(conversions, inode, tracked, stream, end)
    else:
        found = tracked.carry_out_calls(stream, end)
    if whole is not None and vm_type == "tdx":
        pamt = whole[:, -tracked.nodes :] // PAGE_SIZE
    last = np.where(np.diff(end, prepend=0) > 0, end - 1, -1)
    errors = np.append(found.errors, 0)[last].astype(np.int64)
    counters[:, :KVM_PAGES] += found.series - own
    marks = (stream[:, folio.OP] == folio.POISON) & np.isin(found.errors, (0, errno.EBUSY))
    marked = np.diff(np.append(0, np.cumsum(marks))[end], prepend=0)
    errors[(marked > 0) & (errors == errno.ENOENT)] = 0
    leaves = None
    if conversions.devices:
        mapped = [inode for inode in conversions.inodes if inode.users is not None and inode.users.iommu.pages]
        now = sum(
            (conversions.device_leaves(one, one.users.iommu) for one in mapped if one.users), np.zeros(3, np.int64)
        )
        leaves = np.tile(now, (len(end), 1))
    states = States(counters, whole, pamt, leaves)
    return Ended(errors, np.append(found.offsets, -1)[last], marked, states)


def _watched(
    conversions: Conversions, inode: Inode, tracked: ConversionFile, stream: Int64s, end: Int64s
) -> tuple[StreamResult, Int64s]:
    """The stream, and what stays whole of all files after each call."""
    whole = conversions.whole(inode)
    rows = np.zeros((len(end), len(whole.state.row)), np.int64)
    found = tracked.carry_out_calls(stream, end, whole.state, rows)
    return found, whole.rows_of(rows) + conversions.whole_of_others(inode)


def first_among(span: Int64s, pages: Int64s, asked: Bools | None = None) -> int:
    """The first of pages [first, end), int64 (n, 2), that has one of ascending ``pages``; n if none has.

    ``asked``: which of them are.
    """
    at = np.searchsorted(pages, span)
    among = at[:, 0] < at[:, 1]
    return _first_true(among if asked is None else among & asked)


def _first_true(flags: Bools) -> int:
    """Position of the first flag that is set; how many there are if none is."""
    return int(np.argmax(flags)) if flags.any() else len(flags)

"""Which operations ahead are carried out together: the lists that there are, asked in turn, the most usual first.

Calls that change nothing whatever the state is (:func:`workbench.engine.calls.idle`) end no list: they are left out of what the
lists are given, and what was before each of them is after it as well. Calls through a mapping that do what another call does
stand there as that one (:class:`StandIns`).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np

from workbench import scenario as sc
from workbench.engine import attributes, calls_files, calls_mm
from workbench.engine.calls import CALLS, idle
from workbench.engine.lists.backends import BulkBackends
from workbench.engine.lists.devices import BulkDevices
from workbench.engine.lists.faults import LEAST, BulkFaults, Done
from workbench.engine.lists.light import BulkLight
from workbench.engine.lists.light_faults import BulkLightFaults
from workbench.engine.lists.policies import POLICY_CALLS, THREAD_CALLS
from workbench.engine.lists.present import BulkPresent
from workbench.engine.lists.tracked import BulkTracked
from workbench.engine.objects import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, Result, failed
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.units import PAGE_SIZE

_THROUGH_MAPPING = frozenset((sc.Madvise, sc.Mbind, sc.MovePages, sc.GetMempolicy))
_NAMES_OTHERS = frozenset((sc.Memfd, sc.Alias, sc.PassFd, sc.Retrieve))
_POPULATES = (calls_mm.MADV_POPULATE_READ, calls_mm.MADV_POPULATE_WRITE)
_List = BulkFaults | BulkTracked | BulkLight | BulkLightFaults | BulkPresent | BulkBackends | BulkDevices
_LISTED = frozenset((
    sc.Fault, sc.Fallocate, sc.PunchHole, sc.Convert, sc.SetMemoryAttributes, sc.Pin, sc.Unpin, sc.Hwpoison, sc.IommuMap,
    sc.IommuUnmap, *POLICY_CALLS,
))  # fmt: skip
"""What lists have, beside some advice."""


class StandIns:
    """Advice about a mapped file that does what another call does, which lists are given while the mapping is there.

    MADV_REMOVE is a hole (``mm/madvise.c: madvise_remove``), MADV_POPULATE of a page the host's touch of it: of one that is
    private it is refused (one that is poisoned has another errno, which the touch does not tell).
    """

    def __init__(self, system: System, given: list[sc.Operation]) -> None:
        self.system, self.given = system, given
        self._of: dict[str, list[tuple[int, sc.Madvise, sc.PunchHole | sc.Fault]]] = {}
        self._asked: dict[int, sc.Madvise] = {}
        self._reached: dict[str, tuple[bool, bool]] = {}
        poison = any(type(one) is sc.Hwpoison for one in given)
        for place, one in enumerate(given):
            if type(one) is not sc.Madvise or one.length is None or (one.offset | one.length) % PAGE_SIZE:
                continue
            if one.advice == calls_mm.MADV_REMOVE and one.length:
                other: sc.PunchHole | sc.Fault = sc.PunchHole(
                    file=one.file, offset=one.offset, length=one.length, task=one.task
                )
            elif one.advice in _POPULATES and one.length == PAGE_SIZE and not poison:
                other = sc.Fault(file=one.file, offset=one.offset, length=one.length, task=one.task)
            else:
                continue
            self._of.setdefault(one.file, []).append((place, one, other))
            self._asked[place] = one

    def look(self) -> None:
        """Enter them in what lists are given, or the calls themselves, by what each file is now."""
        for name, listed in self._of.items():
            file = self.system.files.get(name)
            mapped = file is not None and file.mapping is not None and file.inode.kind == "guest_memfd"
            mapped = mapped and file is not None and file.mapping is not None and file.mapping.pages >= file.inode.pages
            tracked = file is not None and file.inode.tracked is not None  # else a populate is known to lists as it is
            if self._reached.get(name, (False, False)) == (mapped, tracked):
                continue
            self._reached[name] = mapped, tracked
            for place, one, other in listed:
                self.given[place] = other if mapped and (tracked or isinstance(other, sc.PunchHole)) else one

    def answer(self, place: int, results: list[Result]) -> None:
        """What came of calls from ``place`` on, as those that stood there answer."""
        if self._asked:
            for row in range(len(results)):
                if place + row in self._asked and self.given[place + row] is not self._asked[place + row]:
                    results[row] = failed(errno.EFAULT) if results[row].detail.get("bad") else Result()

    def before(self, place: int, result: Result) -> Result:
        """What the call before ``place`` has returned, as what lists were given does: a touch that was bad is no refusal."""
        if self._asked and place - 1 in self._asked and result.errno == errno.EFAULT:
            return Result()
        return result


class LookAhead:
    """The lists of a run; each remembers from where on it is worth asking again."""

    def __init__(self, system: System, operations: Sequence[sc.Operation]) -> None:
        self.system, self.operations = system, operations
        self._idle = _idle_ones(system, operations)
        busy = [not is_idle for is_idle in self._idle]
        self._all_busy = all(busy)
        self._place = np.cumsum(busy) - 1
        """Of each operation, its place among those that may change something, or that of the last one before it."""
        self._places = np.flatnonzero(busy)
        given = list(operations) if self._all_busy else [operations[place] for place in self._places.tolist()]
        self._stand_ins = StandIns(system, given)
        self._faults = BulkFaults(system, given)
        self._lists = _lists(system, given, self._faults)
        names: list[str | None] = []
        light = system.conversions is not None and system.conversions.light
        follows_threads = self._faults in self._lists and not light and not attributes.wanted(system.scenario)
        of_threads = THREAD_CALLS if follows_threads else ()
        for operation in given:
            in_a_list = type(operation) in of_threads and names
            names.append(names[-1] if in_a_list else _file_of_list(operation))
        self._same_file_to = _ends_of_equal(names)

    def run(self, number: int, results: Sequence[Result]) -> Done | None:
        """Carry out operation ``number`` and those after it that are alike; None: it has to be done alone.

        results : of the operations before it
        """
        if self._idle[number] or not self._lists:
            return None
        place, stand_ins = int(self._place[number]), self._stand_ins
        if place:  # whatever this one is: what went well before may do so no more
            self._faults.note(place - 1, stand_ins.before(place, results[int(self._places[place - 1])]))
        if self._same_file_to[place] - place < LEAST:
            return None
        stand_ins.look()
        done = None
        for one in self._lists:
            done = one.run(place)
            if done is not None:
                break
        if done is None:
            return None
        stand_ins.answer(place, done.results)
        return done if self._all_busy else self._with_idle(number, done)

    def _with_idle(self, number: int, done: Done) -> Done:
        """A list with the calls between and after its own that change nothing."""
        place = int(self._place[number])
        end = int(np.searchsorted(self._place, place + len(done.results)))
        of = self._place[number:end] - place
        """The row of the list that each is, or comes after."""
        is_idle = np.append(False, of[1:] == of[:-1])
        results = [done.results[row] for row in of.tolist()]
        for row in np.flatnonzero(is_idle).tolist():
            operation = self.operations[number + row]
            results[row] = CALLS[type(operation)](self.system, operation)
        placed = done.placed[of]
        placed[is_idle] = 0
        states = done.states
        if states is not None:
            states = states._replace(
                counters=states.counters[of],
                whole=_rows(states.whole, of),
                pamt=_rows(states.pamt, of),
                leaves=_rows(states.leaves, of),
            )
        return Done(results, placed, done.free[of], _rows(done.metadata, of), states, _rows(done.attributes, of))


def _lists(system: System, given: Sequence[sc.Operation], faults: BulkFaults) -> list[_List]:
    """Those that a run may have: hardly any where metadata take memory, or frames are followed."""
    taking = system.metadata is not None and system.metadata.taking
    plain = not taking and system.free_pfns is None and system.blocks is None
    out: list[_List] = [faults] if plain else []
    if system.conversions is not None and not taking:
        out.append(BulkTracked(system, given))
        if system.conversions.light:
            out += [BulkLight(system, given, faults), BulkLightFaults(system, given, faults)]
        elif system.order:
            out.append(BulkPresent(system, given, faults))
    if plain:
        out.append(BulkBackends(system, given))
    if system.conversions is not None:
        out.append(BulkDevices(system, given))
    return out


def _file_of_list(operation: sc.Operation) -> str | None:
    """The file of which a list may have a call; None: no list has it."""
    if type(operation) is sc.Madvise:
        return operation.file if operation.advice in (calls_mm.MADV_REMOVE, *_POPULATES) else None
    return operation.file if type(operation) in _LISTED else None  # type: ignore[attr-defined]


def _ends_of_equal(names: list[str | None]) -> Int64s:
    """Of each name, the place of the first after it that is another, int64 (n,); None is equal to no other."""
    numbers: dict[str, int] = {}
    known = [-1 - place if name is None else numbers.setdefault(name, len(numbers)) for place, name in enumerate(names)]
    changes = np.append(np.flatnonzero(np.diff(np.array(known, np.int64))) + 1, len(names))
    return changes[np.searchsorted(changes, np.arange(len(names)), side="right")]


def _idle_ones(system: System, operations: Sequence[sc.Operation]) -> list[bool]:
    """Of each operation, whether it changes nothing and answers by what no list changes.

    That is so of calls through a mapping that is never there, of touches of the host that reach nothing, and of questions for
    policies that nobody sets any more.
    """
    types = frozenset(idle(system.scenario))
    unmapped = _never_made(system, operations, with_flag=GUEST_MEMFD_FLAG_MMAP)
    private = _never_made(system, operations, with_flag=GUEST_MEMFD_FLAG_INIT_SHARED)
    # Where single pages are followed the host reaches those that are shared.
    unreached = unmapped | private if system.conversions is None else set()
    out = [
        type(one) in types
        or (type(one) in _THROUGH_MAPPING and one.file in unmapped)  # type: ignore[attr-defined]
        or (type(one) is sc.Fault and one.by == "host" and one.length is not None and one.file in unreached)
        for one in operations
    ]
    last = max(
        (number for number, one in enumerate(operations) if type(one) in POLICY_CALLS and not out[number]), default=-1
    )
    for number, one in enumerate(operations):
        if type(one) is sc.GetMempolicy and not one.node:
            out[number] |= number > last or one.file is None
    return out


def _never_made(system: System, operations: Sequence[sc.Operation], with_flag: int) -> set[str]:
    """Names of guest_memfds that are made without a flag each time: with that of MMAP none is mapped later either."""
    creates = [one for one in operations if type(one) is sc.Create]
    made = {one.file for one in creates}
    if attributes.wanted(system.scenario):
        made -= {attributes.backend_name(name) for name in made}  # memfds, each made beside another file
    made -= {one.file for one in creates if calls_files.flags_word(system.scenario, one) & with_flag}
    return made - {one.file for one in operations if type(one) in _NAMES_OTHERS}  # type: ignore[attr-defined]


def _rows(array: Int64s | None, of: Int64s) -> Int64s | None:
    return None if array is None else array[of]

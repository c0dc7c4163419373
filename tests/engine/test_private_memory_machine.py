"""One file under four designs at once, with KVM and an IOMMU as users of its private ranges, through kexec and on.

After every step: the designs answered alike, but for what :func:`documented` says; no frame is lost and none is owned
twice; counters equal a recount; no user reaches a page that is not its own; every page holds what was last written to
it.
"""

from __future__ import annotations

import copy
import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reference.private_users import MAX_LEVELS, PageTable, PinningIommu, User
from workbench.engine import handover
from workbench.engine.handover import CannotPreserve, PolicyRange, Preserved
from workbench.kernels import light_map
from workbench.kernels.folios import run as folio
from workbench.kernels.folios.run import EHWPOISON
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.host_memory import HostMemory, RangeMemory, spill_order
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import Outcome, TrackedFile

NODES, PER_NODE, SMALL_PAGES, UNITS = 2, 1 << 13, 160, 4
PLACES = (0, 1, 2, 63, 64, 65, 300, 511)
DESIGNS = ("filemap", "hugetlb", "hugetlb-hvo", "pfn-range")
GOOD = Outcome(0, None)
Answers = dict[str, Outcome]


def light_memory(taken: np.ndarray | None = None) -> RangeMemory:
    """All of both nodes but for the pfns in ``taken``."""
    ranges = []
    for node in range(NODES):
        base = (node + 1) << 36
        free = np.ones(PER_NODE + 2, bool)
        free[[0, -1]] = False
        if taken is not None:
            inside = taken[(taken >= base) & (taken < base + PER_NODE)] - base
            free[inside + 1] = False
        edges = np.flatnonzero(np.diff(free.astype(np.int8)))
        ranges.append([(base + int(first), base + int(end)) for first, end in edges.reshape(-1, 2)])
    return RangeMemory(ranges, np.full(NODES, 1 << 20), spill_order(NODES))


class Backing:
    """The light file as users see it: they ask for pfns and take part in invalidations."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pages = machine.pages
        self.pins: dict[int, int] = {}
        self.users: list[User] = []

    def pfn(self, index: int) -> int:
        state = self.machine.light.state
        unit = state.unit_pfn[index >> self.machine.order]
        return -1 if unit < 0 else int(unit) + index - (index >> self.machine.order << self.machine.order)

    def ask(self, index: int) -> tuple[int, int, int] | None:
        poisoned = self.machine.light.poisoned()
        if index in poisoned:
            return None
        for first, pages, pfn in self.machine.light.extents().tolist():
            if first <= index < first + pages:
                low = max([first, *(int(bad) + 1 for bad in poisoned if bad < index)])
                high = min([first + pages, *(int(bad) for bad in poisoned if bad > index)])
                return pfn + index - first, low, high
        return None

    def shared_pfn(self, index: int) -> int:
        machine = self.machine
        reachable = machine.shared[index] and index not in machine.poison and machine.present[index >> machine.order]
        return self.pfn(index) if reachable else -1


class Machine(RuleBasedStateMachine):
    """``order`` 9: 2 MiB units, under 4 KiB folios (filemap) as under huge ones. ``order`` 0: 4 KiB everywhere."""

    order = folio.ORDER_2M

    # ------------------------------------------------------------------------------------------------- set up

    @initialize(confidential=st.sampled_from(sorted(MAX_LEVELS)), units=st.lists(st.integers(0, UNITS - 1), max_size=4))
    def start(self, confidential: str, units: list[int]) -> None:
        self.unit = 1 << self.order
        self.pages = UNITS << self.order if self.order else SMALL_PAGES
        self.page_size = "2 MiB" if self.order else "4 KiB"
        self.files: dict[str, TrackedFile] = {design: self.new_file(design) for design in DESIGNS}
        self.shared = np.zeros(self.pages, bool)
        self.present = np.zeros(self.pages >> self.order, bool)
        self.home = np.zeros(self.pages >> self.order, np.int64)
        self.poison: set[int] = set()
        self.lost: set[int] = set()
        self.content = np.zeros(self.pages, np.int64)
        self.frames = np.zeros((NODES, PER_NODE), np.int64)
        self.token = 0
        self.policy: tuple[PolicyRange, ...] = ()
        self.orphans: dict[int, int] = {}
        self.level = MAX_LEVELS[confidential]
        self.confidential = confidential
        self.backing = Backing(self)
        self.plug_in()
        for number, unit in enumerate(units):  # some of it in use from the start
            page = (unit << 9) % self.pages
            self.guest_fault(page, True, number % NODES)
            for which in range(2):
                self.map_user(page, self.unit, which)
                self.user_writes(page, which)

    def plug_in(self) -> None:
        """Users of the file, with nothing mapped."""
        self.kvm = User(self.backing, max_level=self.level)  # type: ignore[arg-type]
        self.iommu = User(self.backing, base=1 << 20, name="iommu")  # type: ignore[arg-type]
        self.pinning = PinningIommu(self.backing)  # type: ignore[arg-type]
        self.backing.users = [self.kvm, self.iommu]

    def new_file(self, design: str) -> TrackedFile:
        size = self.pages * 4096
        if design == "pfn-range":
            return LightFile(size, self.page_size, light_memory(), generation="B")
        pool = PER_NODE >> 9
        host = HostMemory.make(NODES, vmemmap_pages=1 << 20, pool_2m=pool, pool_1g=0)
        page_size = "4 KiB" if design == "filemap" else self.page_size
        return ConversionFile(size, page_size, host, generation="B", hvo=design == "hugetlb-hvo")

    @property
    def light(self) -> LightFile:
        file = self.files["pfn-range"]
        assert isinstance(file, LightFile)
        return file

    # --------------------------------------------------------------------------------- answers of the four designs

    def poison_of(self, unit: int) -> list[int]:
        return [page for page in sorted(self.poison) if page >> self.order == unit]

    def whole(self, unit: int) -> bool:
        """The unit is one huge folio under the huge-page designs."""
        file = self.files["hugetlb"]
        assert isinstance(file, ConversionFile)
        return bool(self.order) and bool(file.state.level[unit] == folio.HUGE_2M)

    def documented(self, what: str, first: int, end: int, to: str = "") -> Answers | None:
        """What each design answers where they differ on purpose, None where all must answer alike.

        Poison: hugetlb-backed pages are only marked and the answer is EBUSY (recorded); the light map and 4 KiB folios lose
        the page. A hole: 4 KiB folios leave the file whoever holds them; a huge page does not while any page of a
        part-shared unit is held, the light map knows holders of shared pages only.
        """
        if self.order == 0:
            return None
        units = range(first >> self.order, ((end - 1) >> self.order) + 1)
        if what == "hwpoison" and self.present[first >> self.order]:
            huge = Outcome(errno.EBUSY, None)
            return {"filemap": GOOD, "hugetlb": huge, "hugetlb-hvo": huge, "pfn-range": GOOD}
        if what == "punch_hole":
            part_shared = [unit for unit in units if self.shared[unit << self.order : (unit + 1) << self.order].any()]
            held = sorted(self.poison | set(self.backing.pins))
            huge_held = [page for page in held if page >> self.order in part_shared]
            light_held = [page for page in huge_held if self.shared[page]]
            if huge_held:
                huge = Outcome(errno.EAGAIN, huge_held[0] * 4096)
                light = Outcome(errno.EAGAIN, light_held[0] * 4096) if light_held else GOOD
                return {"filemap": GOOD, "hugetlb": huge, "hugetlb-hvo": huge, "pfn-range": light}
        return None

    def ask_all(self, what: str, *arguments: Any, files: dict[str, TrackedFile] | None = None) -> Answers:
        files = self.files if files is None else files
        return {design: getattr(file, what)(*arguments) for design, file in files.items()}

    def differ(self, expected: Answers, what: str, *arguments: Any) -> None:
        """Carry out on copies what the designs answer differently: exactly as documented, and the files stay alike."""
        answers = self.ask_all(what, *arguments, files={name: copy.deepcopy(file) for name, file in self.files.items()})
        assert answers == expected

    def alike(self, what: str, *arguments: Any) -> Outcome:
        answers = self.ask_all(what, *arguments)
        assert len(set(answers.values())) == 1, answers
        return answers["filemap"]

    def complete(self, page: int, node: int) -> None:
        """A fault brought the whole unit where units are huge; 4 KiB folios get theirs page by page."""
        unit = page >> self.order
        if self.present[unit]:
            return
        self.present[unit], self.home[unit] = True, node
        first = unit << self.order
        if self.order:
            pages = np.arange(first, first + self.unit)
            stream = np.zeros((self.unit, 6), np.int64)
            stream[:, folio.OP], stream[:, folio.OFFSET], stream[:, folio.LENGTH] = (
                folio.GUEST_FAULT,
                pages * 4096,
                4096,
            )
            stream[:, folio.ARGUMENT], stream[:, folio.NODE] = ~self.shared[pages], node
            assert not self.files["filemap"].run_stream(stream).errors.any()
            self.files["filemap"].lru_drain()
        self.content[first : first + self.unit] = 0
        pfn = self.backing.pfn(first)
        self.frames[frame(pfn)[0], frame(pfn)[1] : frame(pfn)[1] + self.unit] = 0

    # -------------------------------------------------------------------------------------------------- operations

    # Few places, so that operations meet.
    pages_ = st.builds(lambda unit, at: (unit << 9) + at, st.integers(0, UNITS - 1), st.sampled_from(PLACES))
    nodes_ = st.integers(0, NODES - 1)
    lengths = st.sampled_from([1, 2, 63, 64, 65, 300, 512, 700, 1 << 11])

    def place(self, page: int, length: int) -> tuple[int, int]:
        page %= self.pages
        return page, min(page + length, self.pages)

    @rule(page=pages_, private=st.booleans(), node=nodes_)
    def guest_fault(self, page: int, private: bool, node: int) -> None:
        page %= self.pages
        arguments = (page * 4096, 4096, private, node)
        expected = self.documented("guest_fault", page, page + 1) if private else None
        if expected is not None:
            return self.differ(expected, "guest_fault", *arguments)
        answer = self.alike("guest_fault", *arguments)
        if private == self.shared[page]:
            assert answer == Outcome(errno.EFAULT, page * 4096)
        else:
            self.complete(page, node)
            assert answer.errno == (EHWPOISON if page in self.poison else 0)

    @rule(page=pages_, node=nodes_)
    def host_fault(self, page: int, node: int) -> None:
        page %= self.pages
        answer = self.alike("host_fault", page * 4096, 4096, node)
        if self.shared[page]:
            self.complete(page, node)
        assert (answer.errno == 0) == bool(self.shared[page] and page not in self.poison)

    def convert(self, page: int, length: int, to: str) -> None:
        first, end = self.place(page, length)
        arguments = (first * 4096, (end - first) * 4096, to)
        expected = self.documented("convert", first, end, to)
        if expected is not None:
            return self.differ(expected, "convert", *arguments)
        if to == "shared":
            self.invalidate_begin(first, end)
        answer = self.alike("convert", *arguments)
        held = sorted(
            page for page in self.poison | set(self.backing.pins) if first <= page < end and self.shared[page]
        )
        if to == "private" and held:
            assert answer == Outcome(errno.EAGAIN, held[0] * 4096)
        else:
            assert answer == GOOD
            self.shared[first:end] = to == "shared"
        if to == "shared":
            self.invalidate_end()

    @rule(page=pages_, length=lengths)
    def share(self, page: int, length: int) -> None:
        self.convert(page, length, "shared")

    @rule(page=pages_, length=lengths)
    def make_private(self, page: int, length: int) -> None:
        self.convert(page, length, "private")

    @rule(offset=st.sampled_from([1, 4095, -4096]), beyond=st.booleans())
    def convert_badly(self, offset: int, beyond: bool) -> None:
        end = self.pages * 4096
        answer = self.alike("convert", *((end - 4096, 8192) if beyond else (offset, 4096)), "shared")
        assert answer == Outcome(errno.EINVAL, None)

    @rule(unit=st.integers(0, SMALL_PAGES - 1), count=st.integers(1, 3))
    def punch(self, unit: int, count: int) -> None:
        unit %= len(self.present)
        first, end = unit << self.order, min(self.pages, (unit + count) << self.order)
        arguments = (first * 4096, (end - first) * 4096)
        expected = self.documented("punch_hole", first, end)
        if expected is not None:
            return self.differ(expected, "punch_hole", *arguments)
        self.invalidate_begin(first, end)
        assert self.alike("punch_hole", *arguments) == GOOD
        for index in range(first, end):
            pfn = self.light_pfns_before.get(index >> self.order)
            if pfn is not None and pfn >= 0 and self.poison_of(index >> self.order):
                self.lost.add(pfn)  # the first of the unit, which nobody gets any more
            if index in self.backing.pins:  # 4 KiB only: the page stays allocated until it is unpinned
                self.orphans[index] = self.orphans.get(index, 0) + self.backing.pins.pop(index)
        self.poison = {page for page in self.poison if not first <= page < end}
        self.present[first >> self.order : end >> self.order] = False
        self.content[first:end] = 0
        self.invalidate_end()

    @rule(page=pages_)
    def memory_failure(self, page: int) -> None:
        page %= self.pages
        expected = self.documented("hwpoison", page, page + 1)
        if expected is not None:
            return self.differ(expected, "hwpoison", page * 4096)
        self.invalidate_begin(page, page + 1)
        answer = self.alike("hwpoison", page * 4096)
        if self.present[page >> self.order]:
            assert answer == GOOD
            self.poison.add(page)
        else:
            assert answer.errno == errno.ENOENT
        self.invalidate_end()

    @rule(page=pages_, length=st.integers(1, 3))
    def map_pinning(self, page: int, length: int) -> None:
        """Today's IOMMU: GUP of shared, present pages."""
        first, end = self.place(page, length)
        mapped = any(self.pinning.table.translate(k) >= 0 for k in range(first, end))
        if mapped or not self.present[first >> self.order : ((end - 1) >> self.order) + 1].all():
            return
        answer = self.alike("pin", first * 4096, (end - first) * 4096)
        assert answer.errno == self.pinning.map(first, end - first)

    @rule(page=pages_, length=st.integers(1, 3))
    def unmap_pinning(self, page: int, length: int) -> None:
        first, end = self.place(page, length)
        mapped = [self.pinning.table.translate(k) >= 0 for k in range(first, end)]
        if all(mapped) and not any(k in self.orphans for k in range(first, end)):
            assert self.alike("unpin", first * 4096, (end - first) * 4096) == GOOD
            assert self.pinning.unmap(first, end - first) == 0
        elif not any(k in self.backing.pins or k in self.orphans for k in range(first, end)):
            assert self.alike("unpin", first * 4096, (end - first) * 4096) == Outcome(errno.EINVAL, first * 4096)

    @precondition(lambda self: self.orphans)
    @rule(data=st.data())
    def unpin_orphan(self, data: st.DataObject) -> None:
        """The last reference to a page that has left the file."""
        page = data.draw(st.sampled_from(sorted(self.orphans)))
        while page in self.orphans:
            assert self.alike("unpin", page * 4096, 4096) == GOOD
            self.orphans[page] -= 1
            if self.orphans[page] == 0:
                del self.orphans[page]
        if page not in self.backing.pins:
            self.pinning.table.zap(page, 1)
            self.pinning.table.flush()

    # ------------------------------------------------------------------------------------------------------- users

    def invalidate_begin(self, first: int, end: int) -> None:
        self.light_pfns_before = dict(enumerate(self.light.state.unit_pfn.tolist()))
        for user in self.backing.users:
            user.invalidate_begin()
            user.zap(first, end - first)
            user.table.flush()

    def invalidate_end(self) -> None:
        for user in self.backing.users:
            user.invalidate_end()

    @rule(page=pages_, length=lengths, which=st.integers(0, 1))
    def map_user(self, page: int, length: int, which: int) -> None:
        first, end = self.place(page, length)
        reachable = ~self.shared[first:end] & self.present[np.arange(first, end) >> self.order]
        reachable &= ~np.isin(np.arange(first, end), sorted(self.poison))
        assert self.backing.users[which].map(first, end - first) == (0 if reachable.all() else errno.EFAULT)

    @rule(page=pages_, length=lengths, which=st.integers(0, 1))
    def unmap_user(self, page: int, length: int, which: int) -> None:
        first, end = self.place(page, length)
        user = self.backing.users[which]
        user.table.zap(first + user.base, end - first)
        user.table.flush()

    @rule(page=pages_, which=st.integers(0, 1))
    def user_writes(self, page: int, which: int) -> None:
        """A guest or a device writes through what it has mapped, TLB included."""
        page %= self.pages
        user = self.backing.users[which]
        pfn = user.table.access(page + user.base)
        if pfn >= 0:
            self.token += 1
            self.frames[frame(pfn)] = self.content[page] = self.token

    @rule(page=pages_)
    def host_writes(self, page: int) -> None:
        page %= self.pages
        pfn = self.backing.shared_pfn(page)
        if pfn >= 0:
            self.token += 1
            self.frames[frame(pfn)] = self.content[page] = self.token

    # ------------------------------------------------------------------------------------------------------- kexec

    @rule(
        start=st.integers(0, 30), pages=st.integers(1, 30), nodes=st.sets(st.integers(0, 300), min_size=1), home=nodes_
    )
    def set_policy(self, start: int, pages: int, nodes: set[int], home: int) -> None:
        self.policy = (PolicyRange(start, start + pages, 2, 0, tuple(sorted(nodes)), home),)

    @precondition(lambda self: not self.orphans)
    @rule(format=st.sampled_from(handover.FORMATS), quiesce=st.booleans())
    def kexec(self, format: Any, quiesce: bool) -> None:
        """Handed over through bytes on disk, or refused with nothing changed."""
        if quiesce:
            for user in self.backing.users:
                user.table.zap(user.base, self.pages)
                user.table.flush()
        units = np.flatnonzero(self.light.state.unit_pfn >= 0)
        pfns = self.light.state.unit_pfn[units]
        rows = np.column_stack(
            (units << self.order, np.full(len(units), self.unit), pfns, np.full(len(units), self.order))
        )
        state = Preserved(self.pages, 3, rows.astype(np.int64).reshape(-1, 4), self.policy, self.light.shared_ranges())
        devices = [k for k in range(self.pages) if self.iommu.table.translate(k + self.iommu.base) >= 0]
        reason = 0
        if self.poison:
            reason = EHWPOISON
        elif self.backing.pins or devices:
            reason = errno.EBUSY
        elif (self.order and format == "kho") or self.confidential == "tdx":
            reason = errno.EOPNOTSUPP
        before = copy.deepcopy(self.files)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "file.kho")
            holders = {
                "pinned": self.light.pinned().tolist(), "poisoned": self.light.poisoned().tolist(),
                "mapped_by_device": devices, "confidential": self.confidential, "huge": self.order > 0,
            }  # fmt: skip
            if reason:
                with pytest.raises(CannotPreserve) as caught:
                    handover.preserve(path, state, format, **holders)
                assert caught.value.errno == reason
                assert not list(Path(directory).iterdir())
                return self.unchanged(before)
            handover.preserve(path, state, format, **holders)
            after = handover.restore(path)
        np.testing.assert_array_equal(after.pfn_of(np.arange(self.pages)), self.all_pfns())
        assert after.policy == self.policy
        np.testing.assert_array_equal(after.shared, self.light.shared_ranges())
        self.take_up(after)

    def unchanged(self, before: dict[str, TrackedFile]) -> None:
        for design, file in self.files.items():
            for was, now in zip(before[design].state, file.state, strict=True):  # type: ignore[attr-defined]
                np.testing.assert_array_equal(was, now)

    def take_up(self, after: Preserved) -> None:
        """The next kernel: every file made anew from what was read, its frames where they were, its users unplugged."""
        pfns = after.pfn_of(np.arange(0, self.pages, self.unit))
        units = np.flatnonzero(pfns >= 0)
        nodes = (pfns[units] >> 36) - 1
        lost = np.array(sorted(self.lost), np.int64)
        for design in DESIGNS:
            if self.order and design.startswith("hugetlb"):
                continue  # huge folios are refused by the format that there is for them
            file = self.files[design] = self.new_file(design)
            for first, end in after.shared.tolist():
                assert file.convert(first * 4096, (end - first) * 4096, "shared") == GOOD
            if isinstance(file, LightFile):
                memory = file.memory
                for unit, node in zip(units, nodes, strict=True):
                    memory.start[node, 0], memory.end[node, 0] = pfns[unit], pfns[unit] + self.unit
                    memory.count[node] = 1
                    assert file.insert(np.array([unit]), np.array([node])) == 1
                taken = np.concatenate(
                    (after.pfn_of(np.arange(self.pages)), (lost[:, None] + np.arange(self.unit)).ravel())
                )
                rest = light_memory(taken[taken >= 0])
                memory.start, memory.end, memory.count[:] = rest.start, rest.end, rest.count
            else:
                pages = (units[:, None] * self.unit + np.arange(self.unit)).ravel()
                assert file.insert(pages, np.repeat(nodes, self.unit)) == len(pages)
                file.lru_drain()
        self.policy = after.policy
        self.backing.pins.clear()
        self.plug_in()

    # -------------------------------------------------------------------------------------------------- invariants

    def all_pfns(self) -> np.ndarray:
        pages = np.arange(self.pages)
        first = self.light.state.unit_pfn[pages >> self.order]
        return np.where(first < 0, -1, first + (pages & (self.unit - 1)))

    @invariant()
    def same_state(self) -> None:
        for design, file in self.files.items():
            np.testing.assert_array_equal(file.is_shared(), self.shared, design)
            assert set(file.poisoned().tolist()) == self.poison, design
            assert set(file.pinned().tolist()) == set(self.backing.pins), design
            for first, end in (
                (self.pages // 3, self.pages - 1),
                (1, 1),
                (min(self.backing.pins, default=0), self.pages),
            ):
                within = range(first, end)
                assert file.pinned(first, end).tolist() == sorted(set(self.backing.pins).intersection(within)), design
                assert file.poisoned(first, end).tolist() == sorted(self.poison.intersection(within)), design
            present, home = self.units_of(design)
            np.testing.assert_array_equal(present, self.present, design)
            if home is not None:
                np.testing.assert_array_equal(home[present], self.home[present], design)

    def units_of(self, design: str) -> tuple[np.ndarray, np.ndarray | None]:
        file = self.files[design]
        if isinstance(file, LightFile):
            return file.state.unit_pfn >= 0, file.state.unit_node
        assert isinstance(file, ConversionFile)
        if design == "filemap" or self.order == 0:
            bits = np.unpackbits(file.state.present.astype("<u8").view(np.uint8), bitorder="little")[
                : self.pages
            ].astype(bool)
            units = bits.reshape(-1, self.unit)
            assert (units.all(axis=1) == units.any(axis=1)).all()
            return units.all(axis=1), file.state.node[: len(units)] if self.order else None
        return file.state.level[: len(self.present)] > folio.NONE, file.state.node[: len(self.present)]

    @invariant()
    def counters_equal_a_recount(self) -> None:
        shared, present = int(self.shared.sum()), int(self.present.sum()) << self.order
        private_units = ~self.shared.reshape(-1, self.unit).any(axis=1) & self.present
        for design, file in self.files.items():
            assert file.count("shared_pages") == shared, design
            assert file.count("present_pages") == present, design
            assert file.count("poisoned_pages") == len(self.poison), design
            if isinstance(file, LightFile):
                self.recount_light(file, int(private_units.sum()))
                continue
            assert isinstance(file, ConversionFile)
            state = file.state
            per_block = np.zeros(len(state.shared_2m) * 512, np.int64)
            per_block[: self.pages] = self.shared
            np.testing.assert_array_equal(state.shared_2m, per_block.reshape(-1, 512).sum(axis=1))
            np.testing.assert_array_equal(state.shared_1g, per_block.reshape(-1, 1 << 18).sum(axis=1))
            if design == "filemap" or self.order == 0:
                continue
            level = state.level[: len(self.present)]
            whole = level == folio.HUGE_2M
            assert file.count("mapped_2m") == int(whole.sum())
            assert (whole == private_units).all()
            pool = int(state.pool[:, 0].sum()) + int(self.present.sum())
            assert pool == NODES * (PER_NODE >> 9), "a huge page was lost or is owned twice"
            held = 7 * int((level == folio.SPLIT).sum()) if file.hvo else 0
            assert int(file.vmemmap_taken.sum()) == held == NODES * (1 << 20) - int(state.vmemmap.sum())

    def recount_light(self, file: LightFile, private_units: int) -> None:
        counts = dict(zip(light_map.COUNTERS, file.state.counts.tolist(), strict=True))
        tracked = self.shared & np.repeat(self.present, self.unit)
        tracked[sorted(self.orphans)] = True
        groups = np.add.reduceat(tracked, np.arange(0, self.pages, 64))
        assert counts["vmemmap_pages"] == int((groups > 0).sum()) == int(file.vmemmap_taken.sum())
        assert counts["mapped_2m"] == (private_units if self.order else 0)

    @invariant()
    def no_frame_is_lost_or_owned_twice(self) -> None:
        memory = self.light.memory
        owned = self.all_pfns()
        owned = owned[owned >= 0]
        rows = self.light.state.pins[: int(self.light.state.counts[light_map.N_PINS])]
        withheld = set(rows[rows[:, light_map.PIN_PFN] >= 0, light_map.PIN_PFN].tolist()) - self.lost
        owners = np.zeros((NODES, PER_NODE), np.int64)
        np.add.at(owners, frame(owned), 1)
        for pfn in [*withheld, *self.lost]:
            owners[frame(pfn)[0], frame(pfn)[1] : frame(pfn)[1] + self.unit] += 1
        for node in range(NODES):
            for row in range(int(memory.count[node])):
                owners[node, frame(memory.start[node, row])[1] : frame(memory.end[node, row] - 1)[1] + 1] += 1
        assert (owners == 1).all()

    @invariant()
    def private_map_is_exact(self) -> None:
        pfns = np.where(self.shared, -1, self.all_pfns())
        mapped = np.full(self.pages, -1, np.int64)
        for first, pages, pfn in self.light.extents():
            assert (mapped[first : first + pages] == -1).all()
            mapped[first : first + pages] = pfn + np.arange(pages)
        np.testing.assert_array_equal(mapped, pfns)

    @invariant()
    def users_are_never_stale(self) -> None:
        pfns = self.all_pfns()
        for user in self.backing.users:
            reached = translations(user.table, user.base, self.pages)
            for gfn, pfn in [*reached.items(), *user.table.cached.items()]:
                page = gfn - user.base
                assert pfn == pfns[page] and not self.shared[page] and page not in self.poison
        for page in self.backing.pins:
            assert self.shared[page]
            if page not in self.orphans:
                assert self.pinning.table.translate(page) == pfns[page]

    @invariant()
    def content_is_kept(self) -> None:
        pfns = self.all_pfns()
        held = pfns >= 0
        np.testing.assert_array_equal(self.frames[frame(pfns[held])], self.content[held])


def frame(pfn: Any) -> tuple[Any, Any]:
    """Node and number on it of pfns."""
    return (pfn >> 36) - 1, pfn & ((1 << 36) - 1)


def translations(table: PageTable, base: int, pages: int) -> dict[int, int]:
    if not any(table.leaves):
        return {}
    found = {gfn: table.translate(gfn) for gfn in range(base, base + pages)}
    return {gfn: pfn for gfn, pfn in found.items() if pfn >= 0}


class SmallPages(Machine):
    """4 KiB units: here nothing at all may differ."""

    order = folio.ORDER_4K


@pytest.mark.parametrize("machine", [Machine, SmallPages])
def test_machine(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30))


# ---------------------------------------------------------------------------------------------- it is able to fail


class DeafKvm(Machine):
    """Invalidations reach the IOMMU only."""

    def plug_in(self) -> None:
        super().plug_in()
        self.kvm.zap = lambda index, pages: None  # type: ignore[method-assign]


class NoFlush(Machine):
    """Page tables are zapped, what hardware has cached of them is not."""

    def plug_in(self) -> None:
        super().plug_in()
        for user in self.backing.users:
            user.table.flush = lambda: None  # type: ignore[method-assign]


class MovedFrames(Machine):
    """The next kernel puts two units in each other's place."""

    def take_up(self, after: Preserved) -> None:
        extents = after.extents.copy()
        if len(extents) > 1:
            extents[[0, 1], 2] = extents[[1, 0], 2]
        super().take_up(Preserved(after.pages, after.flags, extents, after.policy, after.shared))


class PrivateAgain(Machine):
    """The next kernel forgets what was shared."""

    def take_up(self, after: Preserved) -> None:
        super().take_up(Preserved(after.pages, after.flags, after.extents, after.policy))


class PreservedFramesAreFree(SmallPages):
    """The next kernel's allocator does not know that the frames are taken."""

    def take_up(self, after: Preserved) -> None:
        super().take_up(after)
        rest = light_memory()
        memory = self.light.memory
        memory.start, memory.end, memory.count[:] = rest.start, rest.end, rest.count


class PunchIsForgotten(SmallPages):
    """One design does not carry out holes."""

    def start_design(self) -> None:
        self.files["hugetlb"].punch_hole = lambda offset, length: GOOD  # type: ignore[method-assign]

    @invariant()
    def patched(self) -> None:
        self.start_design()


@pytest.mark.parametrize(
    "machine", [DeafKvm, NoFlush, MovedFrames, PrivateAgain, PreservedFramesAreFree, PunchIsForgotten]
)
def test_a_broken_machine_is_found_out(machine: type[Machine]) -> None:
    # Examples also depend on which modules are loaded, so there are many; the first that fails ends it.
    many = settings(
        max_examples=3000, stateful_step_count=30, phases=[Phase.generate], database=None, derandomize=True,
        print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=many)

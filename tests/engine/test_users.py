"""KVM and the IOMMU inside the engine: no mapping is stale, in whatever order a scenario's own calls come.

The machine draws calls of the engine and keeps a plain twin of every page: which frame backs it, who has mapped or pinned which
frame, and what each was told to drop. After every call each mapping that the engine has is looked at, and free memory is counted.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import workbench as wb
from workbench import scenario as sc
from workbench.engine.calls import apply
from workbench.engine.conversion_counts import TOLD
from workbench.engine.objects import Inode, Result
from workbench.engine.system import System
from workbench.engine.users import Mapped, Users
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile

PAGES, UNIT = 2048, 512
PLACES = (0, 1, 63, 64, 300, 511)


def system(
    design: str, page_size: str = "2 MiB", kernel: str | None = None, flags: tuple[str, ...] = ("mmap",)
) -> System:
    """A host of two nodes with one guest of 8 MiB, on which nothing has happened yet."""
    nodes = [{"id": n, "memory_bytes": "4 GiB", "cpus": [n]} for n in range(2)]
    guest = {"memory": PAGES * 4096, "page_size": page_size, "design": design, "vm_type": "sw_protected"}
    operations = [{"op": "create", "flags": list(flags)}, {"op": "iommu_map"}, {"op": "convert", "to": "private"}]
    host = {"name": "two nodes", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    more = {} if kernel is None else {"kernel_profile": kernel}
    more["metadata"] = "off"
    return System(wb.Scenario.from_mapping({"host": host, "guest": guest, "operations": operations, **more}))


def kvm_mapped(users: Users) -> np.ndarray:
    """Pages that the second stage maps, bool (pages,): from the leaves of the tracked file, or from those kept here."""
    out = np.zeros(PAGES, bool)
    if isinstance(users.file, ConversionFile):
        state = users.file.state
        leaf = np.repeat(state.marks[: PAGES // 512] & folio.LEAF_MASK, 512)
        small = np.unpackbits(state.small[: PAGES // 64].astype("<u8").view(np.uint8), bitorder="little").astype(bool)
        return (leaf > folio.LEAF_4K) | ((leaf == folio.LEAF_4K) & small[:PAGES])
    for first, pages, _, _ in users.kvm.runs().tolist():
        out[first : first + pages] = True
    return out


@dataclass
class Held:
    """A frame that left the file while somebody had it pinned: by how many, and whether by a device."""

    frame: int
    pins: int
    device: bool
    poisoned: bool


class Machine(RuleBasedStateMachine):
    design, page_size, kernel, flags = "pfn-range", "2 MiB", None, ("mmap",)
    frames = itertools.count(1)

    @initialize()
    def start(self) -> None:
        self.system = system(self.design, self.page_size, self.kernel, self.flags)
        self.small = self.page_size == "4 KiB"
        self.unit = 1 if self.small else UNIT
        self.told = self.system.design.device_access == "told"
        self.pool: list[set[int]] = []
        """Poisoned pages of each huge page that went back to its pool of hugetlb, in the order in which they came."""
        self.lost = 0
        """Pages or huge pages that are poisoned and out of the file: they are free for nobody."""
        self.total = int(self.system.free.sum())
        self.open()

    def open(self) -> None:
        assert self.call(sc.Create(flags=self.flags)).errno == 0
        self.frame = np.zeros(PAGES, np.int64)
        self.shared = np.full(PAGES, "init_shared" in self.flags)
        self.poisoned: set[int] = set()
        self.may, self.must = np.zeros(PAGES, bool), np.zeros(PAGES, bool)
        self.device: dict[int, int] = {}
        self.areas: list[tuple[int, int]] = []
        self.pins: Counter[int] = Counter()
        self.held: dict[int, list[Held]] = {}
        """Frames that were at each page, oldest first, as long as somebody holds them."""

    def call(self, operation: sc.Operation) -> Result:
        return apply(self.system, operation)

    @property
    def inode(self) -> Inode:
        return self.system.files["guest"].inode

    @property
    def users(self) -> Users:
        assert self.inode.users is not None
        return self.inode.users

    # ------------------------------------------------------------------------------------------------------ the twin

    def back(self, first: int, end: int) -> None:
        """Frames for the units of pages that have none."""
        for unit in range(first // self.unit * self.unit, end, self.unit):
            if not self.frame[unit]:
                self.frame[unit : unit + self.unit] = next(self.frames) * UNIT + np.arange(self.unit)
                usable = [bad for bad in self.pool if 0 not in bad]
                if usable:  # hugetlb hands out what came back last, but for pages that begin with a poisoned one
                    self.pool = [bad for bad in self.pool if bad is not usable[-1]]
                    self.poisoned |= {unit + page for page in usable[-1]}

    def drop(self, first: int, end: int) -> None:
        """Everybody who is told has dropped these pages; leaves of KVM that the range cuts go whole."""
        if first >= end:
            return
        self.may[first:end] = False
        self.must[first // UNIT * UNIT : -(-end // UNIT) * UNIT] = False
        if self.told:
            self.device = {page: frame for page, frame in self.device.items() if not first <= page < end}

    def head(self, page: int) -> int:
        """First page of the folio, which has its mark of poison: pages of hugetlb are in one piece while private."""
        unit = page // UNIT * UNIT
        return unit if self.system.hugetlb and not self.shared[unit : unit + UNIT].any() else page

    def bad_in(self, first: int, end: int) -> list[int]:
        """Pages of [first, end) that nobody is given."""
        return [page for page in range(first, end) if self.head(page) in self.poisoned] if self.poisoned else []

    def pinned_in(self, first: int, end: int) -> list[int]:
        """Pages of [first, end) whose frame somebody has pinned."""
        device = [] if self.told else [p for p, frame in self.device.items() if frame == self.frame[p]]
        return sorted({p for p in (*device, *self.pins) if first <= p < end})

    def unpinned(self, page: int, device: bool) -> None:
        """A pin goes, of one kind the one on the oldest frame first."""
        for held in self.held.get(page, []):
            if held.device if device else held.pins:
                held.device, held.pins = held.device and not device, held.pins - (not device)
                if not held.device and not held.pins:
                    self.held[page].remove(held)
                    self.held = {page: frames for page, frames in self.held.items() if frames}
                    self.lost += held.poisoned
                break
        else:
            self.pins[page] -= not device
            self.pins += Counter()

    def fault(self, first: int, end: int) -> None:
        """The guest maps what it touched, and may map whatever is beside it in the same state."""
        self.must[first:end] = True
        self.may[first // UNIT * UNIT : -(-end // UNIT) * UNIT] |= (
            self.frame[first // UNIT * UNIT : -(-end // UNIT) * UNIT] > 0
        )

    # ------------------------------------------------------------------------------------------------------ the calls

    places = st.builds(lambda unit, at: unit * UNIT + at, st.integers(0, PAGES // UNIT - 1), st.sampled_from(PLACES))
    lengths = st.sampled_from([1, 2, 64, 300, 512, 700, PAGES])

    @staticmethod
    def span(page: int, length: int) -> tuple[int, int, dict[str, int]]:
        end = min(PAGES, page + length)
        return page, end, {"offset": page * 4096, "length": (end - page) * 4096}

    @rule(page=places, length=lengths)
    def guest_touches(self, page: int, length: int) -> None:
        first, end, where = self.span(page, length)
        mapped = kvm_mapped(self.users) if self.poisoned or self.pool else np.zeros(PAGES, bool)
        result = self.call(sc.Fault(by="guest", **where))
        self.back(first, end)
        bad = [page for page in self.bad_in(first, end) if not mapped[page]]  # what was mapped before stays so
        assert (result.errno == 0) == (not bad)
        stop = int(result.detail["error_offset"]) // 4096 if result.errno else end
        assert stop == min([end, *bad])
        self.fault(first, stop)

    @rule(page=places, length=lengths)
    def host_touches(self, page: int, length: int) -> None:
        first, end, where = self.span(page, length)
        self.call(sc.Fault(by="host", **where))
        for index in np.flatnonzero(self.shared[first:end]).tolist():
            self.back(first + index, first + index + 1)

    @rule(unit=st.integers(0, PAGES // UNIT - 1), units=st.integers(1, 4))
    def allocate(self, unit: int, units: int) -> None:
        first, end, where = self.span(unit * UNIT, units * UNIT)
        assert self.call(sc.Fallocate(**where)).errno == 0
        self.back(first, end)

    @rule(unit=st.integers(0, PAGES // UNIT - 1), units=st.integers(1, 4), advised=st.booleans())
    def punch(self, unit: int, units: int, advised: bool) -> None:
        first, end, where = self.span(unit * UNIT, units * UNIT)
        result = self.call(sc.Madvise(advice=9, **where) if advised else sc.PunchHole(**where))
        self.drop(first, end)
        stop = end
        if not self.small:
            bad = (
                []
                if self.system.hugetlb
                else [page for page in self.poisoned if first <= page < end and self.shared[page]]
            )
            if not advised:
                assert result.errno == (errno.EAGAIN if bad or self.pinned_in(first, end) else 0)
            present = self.inode.tracked.present(first // UNIT, end // UNIT)
            for number, here in enumerate(present.tolist()):
                if not here:
                    self.leave(first + number * UNIT, first + (number + 1) * UNIT)
            return
        self.leave(first, stop)

    def leave(self, first: int, end: int) -> None:
        """Pages leave the file; who pinned them keeps their frames."""
        pinned = self.pinned_in(first, end)
        for page in pinned:
            device = not self.told and self.device.get(page) == self.frame[page]
            held = Held(int(self.frame[page]), self.pins.pop(page, 0), device, page in self.poisoned)
            self.held.setdefault(page, []).append(held)
        for unit in range(first, end, self.unit) if self.poisoned or self.system.hugetlb else ():
            bad = {page - unit for page in self.poisoned if unit <= page < unit + self.unit}
            if self.frame[unit] and self.system.hugetlb:
                self.pool.append(bad)
            else:
                self.lost += bool(bad) and unit not in pinned
        self.poisoned -= set(range(first, end))
        self.frame[first:end] = 0

    @rule(page=places, length=lengths, to=st.sampled_from(["shared", "private"]))
    def convert(self, page: int, length: int, to: str) -> None:
        first, end, where = self.span(page, length)
        before = self.inode.tracked.is_shared()
        result = self.call(sc.Convert(to=to, **where))
        np.testing.assert_array_equal(before, self.shared)
        now = self.inode.tracked.is_shared()
        bad = (
            [] if self.system.hugetlb else [page for page in self.poisoned if first <= page < end and self.shared[page]]
        )
        if to == "private" and (held := bad + [page for page in self.pinned_in(first, end) if self.shared[page]]):
            assert (result.errno, result.detail["error_offset"]) == (errno.EAGAIN, min(held) * 4096)
        else:
            assert result.errno == 0
        if not result.errno:
            assert (now[first:end] == (to == "shared")).all()
        assert (now[:first] == before[:first]).all() and (now[end:] == before[end:]).all()
        if result.errno:  # refused: users of what changed have dropped it, and may have dropped the rest
            self.must[first // UNIT * UNIT : -(-end // UNIT) * UNIT] = False
            if self.told:
                left = {p for run in self.users.iommu.intervals().tolist() for p in range(*run)}
                self.device = {p: f for p, f in self.device.items() if p in left or not first <= p < end}
        changed = np.flatnonzero(now != before)
        for run in np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1):
            if len(run):
                self.drop(int(run[0]), int(run[-1]) + 1)
        if len(changed):  # generation C zaps all of a block in which something changes
            self.must[first // UNIT * UNIT : -(-end // UNIT) * UNIT] = False
        self.shared = now

    @rule(page=places, length=lengths)
    def device_maps(self, page: int, length: int) -> None:
        first, end, where = self.span(page, length)
        result = self.call(sc.IommuMap(**where))
        if any(low < end and high > first for low, high in self.areas):
            assert result.errno == errno.EEXIST
            return
        if self.told:
            bad = [page for page in range(first, end) if not self.frame[page] or page in self.poisoned]
        else:
            bad = self.through_the_host(first, end)
        assert result.errno == (errno.EFAULT if bad else 0)
        if not bad:
            self.areas.append((first, end))
            self.device |= {p: int(self.frame[p]) for p in range(first, end)}

    @rule(which=st.integers(0, 5))
    def device_unmaps(self, which: int) -> None:
        if not self.areas:
            assert self.call(sc.IommuUnmap()).errno == errno.ENOENT
            return
        first, end = self.areas.pop(which % len(self.areas))
        assert self.call(sc.IommuUnmap(**self.span(first, end - first)[2])).errno == 0
        self.device_lets_go(first, end)

    def device_lets_go(self, first: int, end: int) -> None:
        for page in range(first, end):
            if self.device.pop(page, None) is not None and not self.told:
                self.unpinned(page, device=True)

    def through_the_host(self, first: int, end: int) -> list[int]:
        """Pages up to the first that is private or poisoned are faulted in; returns those that are not to be had."""
        bad = {*self.bad_in(first, end), *(np.flatnonzero(~self.shared[first:end]) + first).tolist()}
        for index in range(first, min(bad, default=end)):
            self.back(index, index + 1)
        return sorted(bad | set(self.bad_in(first, end)))

    @rule(page=places, length=st.sampled_from([1, 2, 64, 700]))
    def pin(self, page: int, length: int) -> None:
        first, end, where = self.span(page, length)
        result = self.call(sc.Pin(**where))
        bad = self.through_the_host(first, end)
        assert result.errno == (errno.EFAULT if bad else 0)
        if not bad:
            self.pins.update(range(first, end))

    @rule(page=places, length=st.sampled_from([1, 2, 64, 700]))
    def unpin(self, page: int, length: int) -> None:
        """What a device has pinned is nobody else's to let go."""
        first, end, where = self.span(page, length)
        result = self.call(sc.Unpin(**where))
        none = [p for p in range(first, end) if not self.pins[p] and not any(h.pins for h in self.held.get(p, []))]
        self.pins += Counter()
        if none:
            assert (result.errno, result.detail["error_offset"]) == (errno.EINVAL, none[0] * 4096)
            return
        assert result.errno == 0
        for index in range(first, end):
            self.unpinned(index, device=False)

    @rule(which=st.integers(0, 50))
    def unpin_one_that_is_there(self, which: int) -> None:
        there = sorted({*self.pins, *(page for page, all_ in self.held.items() if any(held.pins for held in all_))})
        if there:
            self.unpin(there[which % len(there)], 1)

    @rule(page=places, length=st.sampled_from([1, 512, 700]))
    def khugepaged_comes_by(self, page: int, length: int) -> None:
        """Folios are re-formed where they lie: whoever maps a page maps the same frame afterwards, as the invariants see."""
        assert self.call(sc.Collapse(**self.span(page, length)[2])).errno == 0

    @rule(page=places)
    def memory_fails(self, page: int) -> None:
        """The page leaves all page tables. Pages backed by hugetlb are only marked, stay mapped and are handed out again."""
        result = self.call(sc.Hwpoison(offset=page * 4096, length=4096))
        if not self.frame[page]:
            assert result.errno == errno.ENOENT
            return
        assert result.errno == (errno.EBUSY if self.system.hugetlb else 0)
        self.poisoned.add(self.head(page))
        if not self.system.hugetlb:
            self.drop(page, page + 1)

    @rule()
    def another_machine(self) -> None:
        """The VM is closed and another made: its second stage is gone."""
        self.call(sc.CreateVm())
        self.may[:], self.must[:] = False, False

    @rule()
    def close_and_open(self) -> None:
        """Pinned frames outlive the file until the device lets go of them."""
        inode, unit = self.inode, self.unit
        pinned = self.pinned_in(0, PAGES)
        left = {page // unit * unit for page in pinned}
        self.call(sc.Close())
        users = inode.users
        for first in range(0, PAGES, unit):
            if first not in left:
                self.leave(first, first + unit)
        if pinned or self.held:
            assert inode.tracked.withheld().tolist() == sorted({*pinned, *self.held})
        if self.device and not self.told:
            assert users is not None and users.iommu.pages == len(self.device)
        bad = {first: [page - first for page in self.poisoned if first <= page < first + unit] for first in left}
        lets_go = [sc.IommuUnmap(**self.span(first, end - first)[2]) for first, end in self.areas if not self.told]
        for page in sorted({*self.pins, *self.held}):
            pins = self.pins[page] + sum(held.pins for held in self.held.get(page, []))
            lets_go += [sc.Unpin(**self.span(page, 1)[2])] * pins
        for call in lets_go:
            assert self.call(call).errno == 0
            now = set() if inode.tracked is None else set(inode.tracked.withheld().tolist())
            for first in sorted(left):
                if not any(first <= page < first + unit for page in now):  # the last pin on any page of it is gone
                    left.remove(first)
                    if self.system.hugetlb:
                        self.pool.append(set(bad[first]))
                    self.lost += bool(bad[first]) and not self.system.hugetlb
        self.lost += sum(held.poisoned for all_ in self.held.values() for held in all_)
        assert not left and inode.users is None and inode.tracked is None
        self.open()

    # ---------------------------------------------------------------------------------------------------- looked at

    @invariant()
    def no_mapping_is_stale(self) -> None:
        if not hasattr(self, "system"):
            return
        users, file = self.users, self.inode.tracked
        there = {}
        for first, pages, frame in users.frames(0, PAGES).tolist():
            there |= dict.fromkeys(range(first, first + pages), frame)
        assert sorted(there) == np.flatnonzero(self.frame).tolist()
        # KVM: exactly frames of the file, as it is now, and nothing that anybody was told to drop.
        kvm = kvm_mapped(users)
        assert users.kvm_pages == int(kvm.sum())
        assert not (kvm & ~self.may).any(), "a mapping survived an invalidation"
        assert not (self.must & ~kvm).any()
        for first, pages, frame, _ in users.kvm.runs().tolist():
            assert all(there.get(page) == frame for page in range(first, first + pages))
        # The IOMMU: page by page the frame it was given, which is the file's or pinned.
        mapped = {}
        for first, pages, frame, _ in users.iommu.runs().tolist():
            mapped |= dict.fromkeys(range(first, first + pages), frame)
        assert sorted(mapped) == sorted(self.device)
        assert file.withheld().tolist() == sorted(self.held)
        for page, frame in mapped.items():
            still = self.device[page] == self.frame[page]
            assert (there.get(page) == frame) == still
            if not still:
                assert not self.told
                assert [held.frame for held in self.held[page] if held.device] == [self.device[page]]
        # Memory: what is neither in the file, nor held by somebody, nor lost, is free.
        lost = self.lost + sum(0 in bad for bad in self.pool)
        taken = int((self.frame[:: self.unit] > 0).sum()) + sum(len(frames) for frames in self.held.values())
        assert int(self.system.free.sum()) == self.total - taken - lost


def machine(**values: object) -> type[Machine]:
    return type("One", (Machine,), values)


BOTH = ("mmap", "init_shared")
MACHINES = {
    "filemap": machine(design="filemap", page_size="4 KiB", kernel="7.4", flags=BOTH),
    "hugetlb": machine(design="hugetlb"),
    "hugetlb all or nothing": machine(design="hugetlb", kernel="proposal-hugetlb-rfc2", flags=BOTH),
    "hugetlb-hvo": machine(design="hugetlb-hvo"),
    "pfn-range": machine(design="pfn-range"),
    "pfn-range 4 KiB": machine(design="pfn-range", page_size="4 KiB", flags=BOTH),
    "contiguous-4k": machine(design="contiguous-4k"),
    "thp": machine(design="thp"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_no_mapping_is_stale(name: str) -> None:
    run_state_machine_as_test(MACHINES[name], settings=settings(max_examples=8, stateful_step_count=20, deadline=None))


def test_an_unpin_lets_go_of_no_device_and_of_the_oldest_frame_first() -> None:
    """A page that a device and somebody else hold leaves the file; so does the next one there, which is pinned once."""
    one = system("filemap", "4 KiB", "7.4", BOTH)
    where = {"offset": 0, "length": 4096}
    free = [int(one.free.sum())]
    calls = [sc.Create(flags=BOTH), sc.IommuMap(**where), sc.Unpin(**where), sc.Pin(**where), sc.PunchHole(**where),
             sc.Pin(**where), sc.PunchHole(**where), sc.Unpin(**where), sc.Unpin(**where), sc.Unpin(**where),
             sc.IommuUnmap(**where)]  # fmt: skip
    errors = []
    for call in calls:
        errors.append(apply(one, call).errno)
        free.append(int(one.free.sum()))
    assert errors == [0, 0, errno.EINVAL, 0, 0, 0, 0, 0, 0, errno.EINVAL, 0]
    assert [before - after for before, after in itertools.pairwise(free)] == [0, 1, 0, 0, 0, 1, 0, 0, -1, 0, -1]


@pytest.mark.parametrize("name", ["pfn-range", "pfn-range 4 KiB"])
def test_users_that_are_told_nothing_are_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Users, "invalidate", lambda self, start, end, page_by_page=False: None)
    once = settings(max_examples=200, stateful_step_count=20, phases=[Phase.generate], database=None, derandomize=True,
                    deadline=None, report_multiple_bugs=False)  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(MACHINES[name], settings=once)


@pytest.mark.parametrize("private", [True, False])
def test_a_device_is_told_of_each_page_that_is_poisoned(private: bool) -> None:
    """However many of them one call names; half of them lie outside its area."""
    seen = []
    for calls in ([(0, 16)], [(page, 1) for page in range(16)]):
        one = system("pfn-range", "4 KiB")
        assert apply(one, sc.Create(flags=("mmap",))).errno == apply(one, sc.Fault(by="guest")).errno == 0
        if not private:
            assert apply(one, sc.Convert(offset=0, length=8 << 12, to="shared")).errno == 0
        assert apply(one, sc.IommuMap(offset=4 << 12, length=8 << 12)).errno == 0
        for first, pages in calls:
            assert apply(one, sc.Hwpoison(offset=first << 12, length=pages << 12)).errno == 0
        seen.append(one.conversions.rows(1)[0, TOLD:].tolist())
    assert seen == [[8, 0, 8], [8, 0, 8]]


@pytest.mark.parametrize("touched", [False, True])
def test_a_device_is_told_of_its_area_as_long_as_it_stands(touched: bool) -> None:
    """Also when nothing of it is mapped any more, and whether or not the guest has touched another page."""
    one, page = system("pfn-range", "4 KiB"), {"offset": 4 << 12, "length": 4096}
    calls = [sc.Create(flags=("mmap",)), sc.Fallocate(), sc.IommuMap(**page)]
    calls += [sc.Fault(by="guest", offset=0, length=4096)] * touched
    calls += [sc.Convert(to=to, **page) for to in ("shared", "private", "shared")]
    calls += [sc.IommuUnmap(**page), sc.Convert(to="private", **page)]
    assert [apply(one, call).errno for call in calls] == [0] * len(calls)
    assert one.conversions.rows(1)[0, TOLD:].tolist() == [3, 0, 1]


def test_runs_of_a_user_are_those_of_a_list_of_pages() -> None:
    """Mapped and zapped at random in leaves of two sizes, with more rows than there is room for at first."""
    rng = np.random.default_rng(5)
    user, twin = Mapped(), {}
    for number in range(400):
        first, pages = int(rng.integers(0, 4000)), int(rng.integers(1, 700))
        if number % 3 == 2:
            low, high = first, first + pages
            for border in (low, high - 1):
                if twin.get(border, (0, 0))[1]:
                    low, high = min(low, border // 512 * 512), max(high, (border // 512 + 1) * 512)
            gone = [page for page in twin if low <= page < high]
            assert user.zap(first, first + pages) == len(gone)
            for page in gone:
                del twin[page]
        else:
            level = number % 2
            if level:
                first, pages = first // 512 * 512, 512
            parts = [row for row in user.gaps(first, first + pages).tolist() if not level or row[1] - row[0] == 512]
            if number % 4 == 1:  # a leaf of 2 MiB comes in place of what was there
                parts = [[first, first + pages]]
            user.add(np.array([[low, high - low, number] for low, high in parts], np.int64).reshape(-1, 3), level)
            twin |= {page: (number, level) for low, high in parts for page in range(low, high)}
        assert user.pages == len(twin)
    found = {p: (frame, level) for first, n, frame, level in user.runs().tolist() for p in range(first, first + n)}
    assert found == twin
    assert sorted(twin) == [page for low, high in user.intervals().tolist() for page in range(low, high)]


def test_what_each_user_is_told_under_each_design() -> None:
    """A device maps all of a guest that shares all; the guest takes 2 MiB back and punches another 2 MiB."""
    calls = [
        sc.Create(flags=("mmap",)),
        sc.Fault(by="guest"),
        sc.Convert(to="shared"),
        sc.IommuMap(),
        sc.Convert(offset=0, length=2 << 20, to="private"),
        sc.PunchHole(offset=4 << 20, length=2 << 20),
    ]
    for design, page_size in (("filemap", "4 KiB"), ("hugetlb", "2 MiB"), ("hugetlb-hvo", "2 MiB"), ("pfn-range", "2 MiB"),
                              ("contiguous-4k", "2 MiB"), ("thp", "2 MiB")):  # fmt: skip
        one = system(design, page_size)
        errors = [apply(one, call).errno for call in calls]
        counters = one.conversions.rows(1)
        told, mapped, lost = (of[0].tolist() for of in one.conversions.of_users(counters))
        if design == "pfn-range":
            assert errors == [0] * 6
            assert (told, mapped, lost) == ([6, 2], [0, 1024], 1024)  # to shared: unit by unit
        else:
            assert errors == [0, 0, 0, 0, errno.EAGAIN, 0 if design == "filemap" else errno.EAGAIN]
            assert (mapped[1], told[1], lost) == (2048, 0, 0)
        assert told[0] == counters[0, folio.N_INVALIDATIONS]

"""Stage-2 tables against a dictionary; and that no interleaving of the protocol leaves a stale mapping."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reference import stage2
from reference.private_users import MAX_LEVELS, PageTable, PinningIommu, PrivateMemory, Steps, User, run

GIB = 1 << 18


class TableMachine(RuleBasedStateMachine):
    """Install and zap at random; translations are those of a dictionary of leaves."""

    @initialize()
    def start(self) -> None:
        self.table = PageTable()
        self.leaves: dict[int, tuple[int, int]] = {}  # first gfn -> (pages, pfn)

    def overlapping(self, gfn: int, pages: int) -> list[int]:
        return [g for g, (n, _) in self.leaves.items() if g < gfn + pages and g + n > gfn]

    @rule(block=st.integers(0, 6), level=st.integers(0, 2), pfn=st.integers(1, 9))
    def install(self, block: int, level: int, pfn: int) -> None:
        size = 1 << (9 * level)
        gfn = block * size
        self.table.install(gfn, size, pfn * GIB, gfn, gfn + size, level)
        there = self.overlapping(gfn, size)
        if any(self.leaves[g][0] >= size for g in there):
            return  # a leaf that large was there: a spurious fault
        for g in there:
            del self.leaves[g]
        self.leaves[gfn] = (size, pfn * GIB)

    @rule(gfn=st.integers(0, 2000), pages=st.sampled_from([1, 2, 512, 600, GIB]))
    def zap(self, gfn: int, pages: int) -> None:
        there = self.overlapping(gfn, pages)
        assert self.table.zap(gfn, pages) == len(there)
        for g in there:
            del self.leaves[g]

    @invariant()
    def agree(self) -> None:
        assert self.table.leaves == tuple(
            sum(1 for n, _ in self.leaves.values() if n == 1 << (9 * level)) for level in range(3)
        )
        for g, (n, pfn) in self.leaves.items():
            for at in {g, g + n // 2, g + n - 1}:
                assert self.table.translate(at) == pfn + at - g
        operations = self.table.operations
        for level in range(3):
            assert operations.mapped[level] - operations.unmapped[level] == self.table.leaves[level]


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=25, stateful_step_count=25)


def test_table_pages_of_a_gigabyte() -> None:
    """A 1 GiB leaf needs a root and a table below; 4 KiB leaves need 513 tables more."""
    table = PageTable()
    table.install(0, GIB, 0, 0, GIB, stage2.LEVEL_1G)
    assert (table.operations.table_pages, table.leaves) == (2, (0, 0, 1))
    table.zap(5, 1)
    table.install(0, GIB, 0, 0, GIB, stage2.LEVEL_4K)
    assert (table.operations.table_pages, table.leaves) == (2 + 513, (GIB, 0, 0))
    table.zap(0, GIB)
    table.install(0, GIB, 0, 0, GIB, stage2.LEVEL_1G)
    assert (table.operations.table_pages, table.leaves) == (2, (0, 0, 1))


def test_demote_keeps_every_translation() -> None:
    table = PageTable()
    table.install(0, GIB, 7 * GIB, 0, GIB, stage2.LEVEL_1G)
    table._make_room(4)
    assert stage2.demote(table._tables, table._top, 700)
    assert table.leaves == (0, 512, 0)
    assert stage2.demote(table._tables, table._top, 700)
    assert table.leaves == (512, 511, 0)
    assert not stage2.demote(table._tables, table._top, 700)
    assert [table.translate(gfn) for gfn in (0, 699, 700, 1023, GIB - 1)] == [
        7 * GIB + gfn for gfn in (0, 699, 700, 1023, GIB - 1)
    ]
    assert table.operations.table_pages == 2 + 2


@pytest.mark.parametrize(
    ("gfn", "pfn", "low", "high", "limit", "level"),
    [
        (0, 0, 0, GIB, 2, 2),
        (0, 0, 0, GIB, 1, 1),
        (0, 512, 0, GIB, 2, 1),
        (0, 1, 0, GIB, 2, 0),
        (600, 600, 512, 1024, 2, 1),
        (600, 600, 513, 1024, 2, 0),
        (600, 600, 512, 1023, 2, 0),
    ],
)
def test_largest_level_allowed(gfn: int, pfn: int, low: int, high: int, limit: int, level: int) -> None:
    assert stage2.allowed_level(gfn, pfn, low, high, limit) == level


def memory_with(users: int = 1, **options: bool) -> PrivateMemory:
    memory = PrivateMemory(2)
    memory.populate(0, 2, 100)
    for number in range(users):
        memory.add_user(User(memory, base=8 * number, name=f"user{number}", **options))
    return memory


def interleavings(
    build: Callable[[], tuple[PrivateMemory, list[Steps]]],
) -> Iterator[tuple[PrivateMemory, list[int], int]]:
    """Run every interleaving of the steps of some operations; yields the memory, return values, worst staleness.

    Exhaustive by replaying: each schedule is a list of choices, extended in depth-first order.
    """
    schedule: list[int] = []
    while True:
        memory, operations = build()
        results: dict[int, int] = {}
        choices: list[tuple[int, int]] = []
        worst = memory.stale()
        while len(results) < len(operations):
            alive = [k for k in range(len(operations)) if k not in results]
            choice = schedule[len(choices)] if len(choices) < len(schedule) else 0
            choices.append((choice, len(alive)))
            which = alive[choice]
            try:
                next(operations[which])
            except StopIteration as stop:
                results[which] = int(stop.value)
            for user in memory.users:  # the hardware runs all the time
                for index in range(memory.pages):
                    user.table.access(index + user.base)
            worst = max(worst, memory.stale())
            if len(choices) > 200:
                raise AssertionError("livelock")
        yield memory, [results[k] for k in range(len(operations))], worst
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return
        schedule = [choice for choice, _ in choices]
        schedule[-1] += 1


def limited_map(user: User, index: int, attempts: int = 2) -> Steps:
    """A fault that gives up after some retries, so that the number of interleavings is finite."""
    steps = user.map_steps(index)
    retries = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            return int(stop.value)
        yield step
        retries += step == "retry"
        if retries == attempts:
            return errno.EAGAIN


def one_by_one(*operations: Steps) -> Steps:
    """Operations that take the file's invalidate lock exclusively never overlap each other."""
    for steps in operations:
        result = yield from steps
        assert result == 0
    return 0


def started(steps: Steps) -> Steps:
    """The operation with its first step done."""
    next(steps)
    return steps


CASES: dict[str, Callable[[PrivateMemory], list[Steps]]] = {
    "fault and punch": lambda m: [limited_map(m.users[0], 1), m.punch_steps(1, 1)],
    "fault and conversion": lambda m: [limited_map(m.users[0], 1), m.convert_steps(0, 2, False)],
    "fault and memory failure": lambda m: [limited_map(m.users[0], 1), m.poison_steps(1)],
    "two faults under way and a punch": lambda m: [
        started(limited_map(m.users[0], 1, 1)), started(limited_map(m.users[0], 0, 1)), m.punch_steps(1, 1)
    ],
    "fault, punch, then conversion": lambda m: [
        limited_map(m.users[0], 1, 2), one_by_one(m.punch_steps(1, 1), m.convert_steps(0, 1, False))
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_no_interleaving_leaves_a_stale_mapping(case: str) -> None:
    def build() -> tuple[PrivateMemory, list[Steps]]:
        memory = memory_with()
        return memory, CASES[case](memory)

    schedules = 0
    mapped = 0
    for memory, results, worst in interleavings(build):
        schedules += 1
        assert worst == 0
        assert all(result in (0, errno.EFAULT, errno.EAGAIN) for result in results)
        mapped += memory.users[0].table.operations.mapped[0]
    assert schedules > 20
    assert mapped > 0  # the fault won at least once, so the check was not idle


def test_kvm_and_the_iommu_together_leave_no_stale_mapping() -> None:
    def build() -> tuple[PrivateMemory, list[Steps]]:
        memory = memory_with(users=2)
        return memory, [limited_map(memory.users[1], 1, 1), memory.punch_steps(1, 1)]

    assert max(worst for _, _, worst in interleavings(build)) == 0


def test_without_the_retry_check_a_stale_mapping_is_found() -> None:
    """The property can fail: leave out the check of the sequence and some interleaving shows it."""

    def build() -> tuple[PrivateMemory, list[Steps]]:
        memory = memory_with(checks_sequence=False)
        return memory, [limited_map(memory.users[0], 1), memory.punch_steps(1, 1)]

    assert max(worst for _, _, worst in interleavings(build)) > 0


def test_without_the_flush_a_stale_cached_translation_is_found() -> None:
    def build() -> tuple[PrivateMemory, list[Steps]]:
        memory = memory_with()
        memory.flushes_before_release = False
        memory.users[0].map(1)
        return memory, [memory.punch_steps(1, 1)]

    assert max(worst for _, _, worst in interleavings(build)) > 0


def test_a_pin_blocks_conversion_and_a_notified_iommu_does_not() -> None:
    memory = PrivateMemory(1024)
    memory.populate(0, 1024, 4096)
    assert memory.convert(0, 16, to_private=False) == 0
    today = PinningIommu(memory)
    assert today.map(100) == errno.EFAULT  # private memory cannot be reached by GUP
    assert today.map(4, 2) == 0
    assert memory.convert(0, 16, to_private=True) == errno.EAGAIN
    assert not memory.is_private[:16].any()
    assert memory.convert(6, 10, to_private=True) == 0
    assert today.unmap(4, 2) == 0
    assert today.unmap(4, 1) == errno.ENOENT
    assert memory.convert(0, 16, to_private=True) == 0

    proposed = memory.add_user(User(memory, name="iommu"))
    assert proposed.map(0, 1024) == 0
    assert proposed.table.leaves == (0, 2, 0)
    assert memory.convert(3, 1, to_private=False) == 0  # nothing blocks it: the IOMMU is told
    assert proposed.invalidations == 1
    assert proposed.table.leaves == (0, 1, 0)
    assert memory.stale() == 0
    assert proposed.map(0, 3) == 0
    assert proposed.map(3) == errno.EFAULT
    assert memory.convert(3, 1, to_private=True) == 0
    assert proposed.map(3) == 0


@pytest.mark.parametrize(("kind", "leaves"), [("none", (0, 0, 1)), ("snp", (0, 512, 0)), ("tdx", (GIB, 0, 0))])
def test_largest_leaf_per_kind_of_guest(kind: str, leaves: tuple[int, int, int]) -> None:
    memory = PrivateMemory(GIB)
    memory.private.insert(0, GIB, 5 * GIB)
    user = User(memory, max_level=MAX_LEVELS[kind])
    assert user.map(0, GIB) == 0
    assert user.table.leaves == leaves


class UsersMachine(RuleBasedStateMachine):
    """Map, unmap, convert, punch, pin and fail pages at random: both trackings and all users stay consistent."""

    PAGES = 1536

    @initialize(structure=st.sampled_from(["xarray", "maple", "ranges", "flat"]))
    def start(self, structure: str) -> None:
        self.memory = PrivateMemory(self.PAGES, structure, max_order=9)
        self.memory.populate(0, self.PAGES, 4 * self.PAGES * 4)
        self.kvm = self.memory.add_user(User(self.memory))
        self.iommu = self.memory.add_user(User(self.memory, base=512, name="iommu"))
        self.pinning = PinningIommu(self.memory, base=1 << 20)
        self.private = np.ones(self.PAGES, bool)
        self.present = np.ones(self.PAGES, bool)

    where = st.integers(0, PAGES - 1)
    length = st.sampled_from([1, 3, 64, 512, 700])

    @rule(start=where, pages=length)
    def fault(self, start: int, pages: int) -> None:
        pages = min(pages, self.PAGES - start)
        ok = bool((self.private & self.present)[start : start + pages].all())
        for user in (self.kvm, self.iommu):
            assert user.map(start, pages) == (0 if ok else errno.EFAULT)

    @rule(start=where, pages=length, to_private=st.booleans())
    def convert(self, start: int, pages: int, to_private: bool) -> None:
        pages = min(pages, self.PAGES - start)
        pinned = any(index in self.memory.pins for index in range(start, start + pages))
        result = self.memory.convert(start, pages, to_private)
        assert result == (errno.EAGAIN if to_private and pinned else 0)
        if result == 0:
            self.private[start : start + pages] = to_private

    @rule(start=where, pages=length)
    def punch(self, start: int, pages: int) -> None:
        pages = min(pages, self.PAGES - start)
        if any(index in self.memory.pins for index in range(start, start + pages)):
            return
        assert self.memory.punch(start, pages) == 0
        self.present[start : start + pages] = False

    @rule(index=where)
    def pin(self, index: int) -> None:
        if index in self.memory.pins:
            assert self.pinning.unmap(index) == 0
        else:
            ok = self.present[index] and not self.private[index]
            assert self.pinning.map(index) == (0 if ok else errno.EFAULT)

    @invariant()
    def nothing_is_stale(self) -> None:
        assert self.memory.stale() == 0
        everything = np.arange(self.PAGES)
        private = self.memory.private.lookup(everything)
        shared = self.memory.filemap.lookup(everything)
        np.testing.assert_array_equal(private >= 0, self.private & self.present)
        np.testing.assert_array_equal(shared >= 0, ~self.private & self.present)
        both = np.maximum(private, shared)
        np.testing.assert_array_equal(both[self.present], (4 * self.PAGES * 4 + everything)[self.present])


TestUsers = UsersMachine.TestCase
TestUsers.settings = settings(max_examples=12, stateful_step_count=20)


def test_run_returns_the_errno() -> None:
    memory = memory_with()
    assert run(memory.users[0].map_steps(9)) == errno.EFAULT

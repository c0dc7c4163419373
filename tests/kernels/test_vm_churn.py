"""Each allocator under machines arriving and leaving, event by event against lists of pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import vm_churn as reference
from reference.compiled import reference_count_calls
from reference.scale import AS_PEOPLE_RUN_THEM, JIT_DISABLED, examples
from workbench.kernels import buddy, pfn_range
from workbench.kernels import vm_churn as kernel

NODES, PER_NODE, ROWS = 2, 1 << 13, 1 << 12
FALLBACK = np.array([[0, 1], [1, 0]])
UNITS = np.array([512, 8, 1])
KINDS = ("first", "best", "buddy")


def stream(rng: np.random.Generator, machines: int) -> np.ndarray:
    """Machines of odd sizes that come and go while the host is about full, and some that do not fit."""
    events: list[tuple[int, int, int]] = []
    alive: list[int] = []
    for machine in range(machines):
        size = int(rng.choice([rng.integers(1, 40), rng.integers(400, 3000), 1024, 2 * 1536]))
        events.append((machine, size, int(rng.integers(0, NODES))))
        alive.append(machine)
        while alive and rng.random() < 0.45:
            events.append((alive.pop(int(rng.integers(0, len(alive)))), 0, 0))
    events += [(machine, 0, 0) for machine in alive]
    return np.array(events)


class Run:
    """Buffers of one run; every event is sampled."""

    def __init__(self, events: np.ndarray, machines: int, scratch: int = 64) -> None:
        self.events = events
        self.ranges = np.zeros((ROWS, kernel.ROW_FIELDS), np.int64)
        self.pool = np.array([0, -1])
        self.vms = np.zeros((machines, kernel.VM_FIELDS), np.int64)
        self.vms[:, kernel.VM_FIRST] = -1
        self.scratch = np.zeros((scratch, 2), np.int64)
        self.at = np.arange(len(events))
        self.samples = np.zeros((len(events), kernel.FIELDS), np.int64)
        self.counts = np.zeros(kernel.COUNTS, np.int64)
        self.order_counts = np.zeros((2, 3), np.int64)

    @property
    def held(self) -> kernel.Held:
        return kernel.Held(self.ranges, self.pool, self.vms, self.scratch)

    @property
    def sampling(self) -> kernel.Sampling:
        return kernel.Sampling(self.at, self.samples, self.counts)


def run_ranges(run: Run, kind: str, units: np.ndarray = UNITS, strict: bool = False) -> int:
    fit = KINDS.index(kind)
    start, end, count = np.zeros((NODES, 300), np.int64), np.zeros((NODES, 300), np.int64), np.zeros(NODES, np.int64)
    blocks, blocks_count = np.zeros((NODES, 14, 300), np.int64), np.zeros((NODES, 14), np.int64)
    for node in range(NODES):
        if fit == pfn_range.BUDDY:
            pfn_range.buddy_free(blocks, blocks_count, node, node * PER_NODE, PER_NODE)
        else:
            pfn_range.free(start, end, count, node, node * PER_NODE, PER_NODE)
    state = kernel.FreeRanges(start, end, count, blocks, blocks_count)
    return int(kernel.churn_ranges(run.events, FALLBACK, fit, units, strict, state, run.held, run.sampling))


def boot_zones(nodes: int, pages: int) -> tuple[buddy.Buddy, ...]:
    ends = [pages] * nodes + [0] * (kernel.BUDDIES - nodes)
    zones = tuple(buddy.new_buddy(np.zeros(1, np.int64), np.array([end])) for end in ends)
    for zone, end in zip(zones, ends, strict=True):
        buddy.release_range(zone, 0, 0, end)
    return zones


def run_buddy(run: Run) -> int:
    zones = boot_zones(NODES, PER_NODE)
    return int(kernel.churn_buddy(run.events, FALLBACK, zones, run.held, run.sampling, run.order_counts))


def run_hugetlb(run: Run, size: int) -> int:
    count = PER_NODE // size
    following = np.arange(1, NODES * count + 1, dtype=np.int32)
    following[count - 1 :: count] = -1
    head, free = np.arange(NODES) * count, np.full(NODES, count)
    areas = np.array([NODES * PER_NODE])
    return int(kernel.churn_hugetlb(run.events, FALLBACK, size, following, head, free, areas, run.vms, run.sampling))


def check(run: Run, host: object, sizes_apart: bool = False, cap: int = 1 << 18) -> None:
    """Every sample is what the reference host's pages say."""
    held: dict[int, list[reference.Piece]] = {}
    home: dict[int, int] = {}
    refused = arrived = 0
    for (machine, pages, node), sample in zip(run.events.tolist(), run.samples, strict=True):
        if pages:
            arrived += 1
            got: list[reference.Piece] = []
            if pages <= host.free_pages():  # type: ignore[attr-defined]
                got = host.take(pages, FALLBACK[node].tolist())  # type: ignore[attr-defined]
            if sum(piece[2] for piece in got) >= pages:
                held[machine], home[machine] = got, node
            else:
                host.give(got)  # type: ignore[attr-defined]
                refused += 1
        elif machine in held:
            host.give(held.pop(machine))  # type: ignore[attr-defined]
        assert sample[kernel.ARRIVED] == arrived
        assert sample[kernel.REFUSED] == refused
        assert sample[kernel.MACHINES] == len(held)
        assert sample[kernel.PAGES] == sum(piece[2] for pieces in held.values() for piece in pieces)
        assert sample[kernel.EXTENTS] == sum(len(reference.extents(pieces, sizes_apart)) for pieces in held.values())
        assert sample[kernel.LOCAL] == sum(p[2] for m, pieces in held.items() for p in pieces if p[0] == home[m])
        assert sample[kernel.FREE] == host.free_pages()  # type: ignore[attr-defined]
        expected = sum(reference.mappable(pieces, 512) for pieces in held.values()) if cap >= 512 else 0
        assert sample[kernel.MAPPABLE_2M] == expected
        assert sample[kernel.MAPPABLE_1G] == 0
    assert not held
    assert run.counts[kernel.GIVEN] == run.counts[kernel.RETURNED]


SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, strict=st.booleans())
@settings(max_examples=examples(6, without_jit=1))
def test_ranges(kind: str, seed: int, strict: bool) -> None:
    machines = 12 if JIT_DISABLED else 25
    run = Run(stream(np.random.default_rng(seed), machines), machines)
    assert run_ranges(run, kind, strict=strict) == pfn_range.OK
    check(run, reference.RangeHost(PER_NODE, NODES, kind, UNITS.tolist(), strict))


@given(seed=SEEDS)
@settings(max_examples=examples(6, without_jit=1))
def test_free_ranges_are_described_as_they_are(seed: int) -> None:
    machines = 15
    events = stream(np.random.default_rng(seed), machines)
    for kind in KINDS:
        run = Run(events, machines)
        assert run_ranges(run, kind) == pfn_range.OK
        host = reference.RangeHost(PER_NODE, NODES, kind, UNITS.tolist())
        held = {}
        for (machine, pages, node), sample in zip(events.tolist(), run.samples, strict=True):
            if pages and pages <= host.free_pages():
                held[machine] = host.take(pages, FALLBACK[node].tolist())
            elif not pages and machine in held:
                host.give(held.pop(machine))
            blocks = host.blocks()
            assert sample[kernel.FREE_BLOCKS] == len(blocks)
            assert sample[kernel.LARGEST] == max(blocks, default=0)
            runs = [run for free in host.free for run in reference.free_runs(free)]
            usable = sum(max(0, end // 512 - -(-first // 512)) * 512 for first, end in runs)
            assert sample[kernel.USABLE_2M] == usable


@given(seed=SEEDS)
@settings(max_examples=examples(8, without_jit=1))
def test_kernel_buddy(seed: int) -> None:
    machines = 10 if JIT_DISABLED else 25
    run = Run(stream(np.random.default_rng(seed), machines), machines, scratch=5)  # so small that it fills up
    assert run_buddy(run) == pfn_range.OK
    host = reference.BuddyHost(PER_NODE, NODES)
    check_buddy = run.samples[:, [kernel.LARGEST, kernel.USABLE_1G]]
    assert (check_buddy[:, 0] <= 1024).all()
    assert (check_buddy[:, 1] == 0).all()
    held: dict[int, list[reference.Piece]] = {}
    given_pages = np.zeros(3, np.int64)
    for (machine, pages, node), sample in zip(run.events.tolist(), run.samples, strict=True):
        if pages and pages <= host.free_pages():
            held[machine] = host.take(pages, FALLBACK[node].tolist())
            for _, _, size in held[machine]:
                given_pages[(1024, 512, 1).index(size)] += size
        elif not pages and machine in held:
            host.give(held.pop(machine))
        assert sample[kernel.FREE] == host.free_pages()
        assert sample[kernel.PAGES] == sum(p[2] for pieces in held.values() for p in pieces)
        # Orders 10 and 9 stay apart, and so do extents of single pages.
        assert sample[kernel.EXTENTS] == sum(len(reference.extents(pieces, True)) for pieces in held.values())
        huge = {m: [p for p in pieces if p[2] >= 512] for m, pieces in held.items()}
        assert sample[kernel.MAPPABLE_2M] == sum(reference.mappable(pieces, 512) for pieces in huge.values())
    assert run.order_counts[0].tolist() == given_pages.tolist()
    assert run.samples[-1, kernel.FREE] == NODES * PER_NODE


@pytest.mark.parametrize("size", [512, 1024])
@given(seed=SEEDS)
@settings(max_examples=examples(6, without_jit=1))
def test_hugetlb(size: int, seed: int) -> None:
    machines = 12 if JIT_DISABLED else 25
    run = Run(stream(np.random.default_rng(seed), machines), machines)
    assert run_hugetlb(run, size) == pfn_range.OK
    check(run, reference.HugetlbHost(PER_NODE, NODES, size))


def test_full_tables_say_so() -> None:
    events = np.array([[0, 3, 0], [1, 1, 0], [0, 0, 0], [2, 4, 0], [3, 2, 1]])
    run = Run(events, 4)
    run.ranges = run.ranges[:2]
    assert run_ranges(run, "first") == pfn_range.NEEDS_ROOM
    run = Run(events, 4)
    run.ranges = run.ranges[:2]
    assert run_buddy(run) == pfn_range.NEEDS_ROOM


def test_an_extent_does_not_reach_from_node_to_node() -> None:
    run = Run(np.array([[0, PER_NODE + 512, 0]]), 1)
    assert run_ranges(run, "first") == pfn_range.OK
    assert run.counts[kernel.EXTENTS] == 2
    assert run.counts[kernel.LOCAL] == PER_NODE


def test_1_gib_areas() -> None:
    """A node of 2 GiB: one 4 KiB page taken leaves one whole area, and a 1 GiB unit is mappable as such."""
    area = 1 << 18
    zones = boot_zones(1, 2 * area)
    run = Run(np.array([[0, 1, 0], [1, area, 0]]), 2)
    code = kernel.churn_buddy(run.events, np.zeros((1, 1), np.int64), zones, run.held, run.sampling, run.order_counts)
    assert code == pfn_range.OK
    assert run.samples[0, kernel.AREAS_1G] == area
    assert run.samples[1, kernel.AREAS_1G] == 0
    assert run.samples[1, kernel.MAPPABLE_1G] == 0
    run = Run(np.array([[0, 1, 0], [1, area, 0]]), 2)
    start, end, count = np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64), np.zeros(1, np.int64)
    pfn_range.free(start, end, count, 0, 0, 2 * area)
    nothing = (np.zeros((1, 1, 1), np.int64), np.zeros((1, 1), np.int64))
    units = np.array([area, 512, 1])
    state = kernel.FreeRanges(start, end, count, *nothing)
    fallback = np.zeros((1, 1), np.int64)
    code = kernel.churn_ranges(run.events, fallback, 0, units, False, state, run.held, run.sampling)
    assert code == pfn_range.OK
    assert run.samples[0, kernel.AREAS_1G] == run.samples[0, kernel.USABLE_1G] == area
    assert run.samples[1, kernel.MAPPABLE_1G] == run.samples[1, kernel.MAPPABLE_2M] == area
    assert run.samples[1, kernel.USABLE_1G] == 0


@pytest.mark.skipif(not AS_PEOPLE_RUN_THEM, reason="kernels are not compiled as people run them")
def test_kernels_count_no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(name: str, run: Callable[[], int]) -> int:
        """Run with one kernel replaced by the count of its reference-count calls."""
        real = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *arguments: reference_count_calls(monkeypatch, real, *arguments))
        return run()

    events = np.array([[0, 600, 0], [0, 0, 0]])
    assert counted("churn_ranges", lambda: run_ranges(Run(events, 1), "first")) == 0
    assert counted("churn_buddy", lambda: run_buddy(Run(events, 1))) == 0
    assert counted("churn_hugetlb", lambda: run_hugetlb(Run(events, 1), 512)) == 0

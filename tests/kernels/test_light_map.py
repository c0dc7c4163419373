"""The light map against the page-by-page reference, and its huge mappings against those of split and merged folios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from reference.light_map import LightFile
from reference.not_asked import NOT_ASKED
from reference.scale import JIT_DISABLED, examples
from workbench.kernels import light_map
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple

NODES = 2
ORDER = [[0, 1], [1, 0]]


def new_file(
    pages: int, unit_order: int, group: int, generation: int, units: int, vmemmap: int
) -> light_map.LightState:
    start, end = np.zeros((NODES, 4), np.int64), np.zeros((NODES, 4), np.int64)
    start[:, 0] = np.array([1, 2], np.int64) << 36
    end[:, 0] = start[:, 0] + (units << unit_order)
    options = np.array([pages, unit_order, group, generation], np.int64)
    return light_map.new_state(
        options,
        start,
        end,
        np.full(NODES, units > 0, np.int64),
        np.full(NODES, vmemmap, np.int64),
        np.array(ORDER),
        np.zeros(0, np.int64),
    )


def operate(state: light_map.LightState, *row: int) -> tuple[light_map.LightState, int, int]:
    errors, offsets = np.zeros(1, np.int32), np.zeros(1, np.int64)
    stream = np.array([row], np.int64)
    while light_map.run(state, stream, errors, offsets, 0) == 0:
        state = light_map.grown(state)
    return state, int(errors[0]), int(offsets[0])


def extents(state: light_map.LightState) -> list[tuple[int, int, int]]:
    found, path = np.zeros(3, np.int64), np.zeros((2, 32), np.int64)
    out, index = [], 0
    while maple.find(state.nodes, state.top, index, found, path):
        first, last, pfn = (int(value) for value in found)
        out.append((first, last + 1 - first, pfn))
        index = last + 1
    return out


class Machine(RuleBasedStateMachine):
    """Every operation on both, then everything that can be seen is compared."""

    @initialize(
        size=st.sampled_from([(0, 150), (9, 3 * 512)]),
        group=st.sampled_from([6, 7, 15]),
        generation=st.sampled_from([folio.GENERATION_B, folio.GENERATION_C]),
        units=st.integers(0, 4),
        groups=st.sampled_from([0, 1, 2, 100]),
    )
    def start(self, size: tuple[int, int], group: int, generation: int, units: int, groups: int) -> None:
        order, pages = size
        units, vmemmap = units * (50 if order == 0 else 1), groups << (group - 6)
        self.units = units
        self.state = new_file(pages, order, group, generation, units, vmemmap)
        free = [[(1 + node << 36) + (k << order) for k in range(units)] for node in range(NODES)]
        all_or_nothing = generation == folio.GENERATION_B
        self.slow = LightFile(pages, 1 << order, 1 << group, all_or_nothing, free, [vmemmap] * NODES, ORDER)
        self.total = sum(self.slow.vmemmap)

    def both(self, op: int, offset: int, length: int, argument: int, node: int, expected: tuple[int, int]) -> None:
        self.state, error, named = operate(self.state, op, offset, length, argument, node, 0)
        assert (error, named) == expected

    spans = st.tuples(st.integers(0, 1535), st.sampled_from([1, 1, 2, 5, 40, 64, 100, 512, 1024]), st.integers(0, 39))

    def span(self, span: tuple[int, int, int], *, one_state: bool = False) -> tuple[int, int]:
        """Byte offset and length: a third are whole units, some are wrong; ``one_state`` cuts where the state changes."""
        first, count, kind = span
        first %= self.slow.pages
        if kind == 0:
            return first * 4096 + 8, count * 4096
        if kind == 1:
            return (first - 4) * 4096, (count - 1) * 4096
        if kind == 2:
            return first * 4096, self.slow.pages * 4096
        if kind < 15:
            first, count = first // self.slow.unit * self.slow.unit, max(1, count // 512) * self.slow.unit
        count = min(count, self.slow.pages - first)
        if one_state:
            other = [p for p in range(first, first + count) if self.slow.shared[p] != self.slow.shared[first]]
            count = other[0] - first if other else count
        return first * 4096, count * 4096

    def some_shared(self, pick: int) -> int:
        """A shared page if there is one."""
        shared = [page for page, state in enumerate(self.slow.shared) if state]
        return shared[pick % len(shared)] if shared else pick

    @rule(span=spans, to_shared=st.booleans())
    def convert(self, span: tuple[int, int, int], to_shared: bool) -> None:
        offset, length = self.span(span)
        expected = self.slow.convert(offset, length, to_shared)
        self.both(folio.CONVERT, offset, length, int(to_shared), 0, expected)

    @rule(span=spans, node=st.integers(0, NODES - 1), wrong=st.integers(0, 9))
    def guest_fault(self, span: tuple[int, int, int], node: int, wrong: int) -> None:
        offset, length = self.span(span, one_state=True)
        page = offset // 4096
        private = (0 <= page < self.slow.pages and not self.slow.shared[page]) != (wrong == 0)
        expected = self.slow.guest_fault(offset, length, private, node)
        self.both(folio.GUEST_FAULT, offset, length, int(private), node, expected)

    @rule(pick=st.integers(0, 1535), count=st.integers(0, 3), node=st.integers(0, NODES - 1))
    def host_fault(self, pick: int, count: int, node: int) -> None:
        offset, length = self.some_shared(pick) * 4096, count * 4096
        self.both(folio.HOST_FAULT, offset, length, 0, node, self.slow.host_fault(offset, length, node))

    @rule(pick=st.integers(0, 1535), count=st.integers(0, 3), lasting=st.booleans(), node=st.integers(0, NODES - 1))
    def pin(self, pick: int, count: int, lasting: bool, node: int) -> None:
        offset, length = self.some_shared(pick) * 4096, count * 4096
        kind = folio.LONG_TERM if lasting else folio.TRANSIENT
        self.both(folio.PIN, offset, length, kind, node, self.slow.pin(offset, length, lasting, node))

    @rule(page=st.integers(0, 1535), count=st.integers(0, 3), lasting=st.booleans())
    def unpin(self, page: int, count: int, lasting: bool) -> None:
        offset, length = page * 4096, count * 4096
        kind = folio.LONG_TERM if lasting else folio.TRANSIENT
        self.both(folio.UNPIN, offset, length, kind, 0, self.slow.unpin(offset, length, lasting))

    @rule(pick=st.integers(0, 100))
    def unpin_one_that_is_there(self, pick: int) -> None:
        held = sorted({*self.slow.pins, *(page for unit in self.slow.withheld for page in unit.pins)})
        if held:
            self.unpin(held[pick % len(held)], 1, True)
        if self.slow.transient:
            self.unpin(min(self.slow.transient), 1, False)

    @rule(span=spans)
    def punch(self, span: tuple[int, int, int]) -> None:
        offset, length = self.span(span)
        self.both(folio.PUNCH, offset, length, 0, 0, self.slow.punch(offset, length))

    @rule(pick=st.integers(0, 1535))
    def poison(self, pick: int) -> None:
        present = sorted(self.slow.pfn)
        page = (
            present[pick % len(present)] * self.slow.unit + pick % self.slow.unit if present and pick % 8 == 0 else pick
        )
        self.both(folio.POISON, page * 4096, 0, 0, 0, self.slow.poison(page * 4096))

    @rule()
    def release(self) -> None:
        self.both(folio.RELEASE, 0, 0, 0, 0, (0, -1))
        self.slow.release()

    @invariant()
    def everything_seen_is_equal(self) -> None:
        if not hasattr(self, "slow"):
            return
        state, slow = self.state, self.slow
        bits = np.unpackbits(state.shared.astype("<u8").view(np.uint8), bitorder="little")[: slow.pages]
        assert bits.astype(bool).tolist() == slow.shared
        assert {u: int(p) for u, p in enumerate(state.unit_pfn) if p >= 0} == slow.pfn
        assert all(state.unit_node[unit] == node for unit, node in slow.node.items())
        assert extents(state) == slow.extents()
        assert state.vmemmap.tolist() == slow.vmemmap
        counts = dict(zip(light_map.COUNTERS, state.counts.tolist(), strict=True))
        assert (counts["mapped_1g"], counts["mapped_2m"]) == slow.mappings()
        assert counts["vmemmap_pages"] == self.total - sum(slow.vmemmap) == int((state.taken - state.freed).sum())
        assert counts["shared_pages"] == sum(slow.shared)
        assert counts["present_pages"] == sum(p // slow.unit in slow.pfn for p in range(slow.pages))
        assert counts["withheld_units"] == len(slow.withheld)
        free = [
            [pfn for low, high in zip(s[:n], e[:n], strict=True) for pfn in range(low, high, slow.unit)]
            for s, e, n in zip(state.start, state.end, state.count, strict=True)
        ]
        assert free == slow.free


def test_agrees_with_reference() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples(300, without_jit=6), stateful_step_count=30)
    )


@pytest.mark.parametrize("seed", range(examples(60, without_jit=4)))
def test_agrees_over_a_long_run(seed: int) -> None:
    """The same steps drawn evenly: small numbers are no likelier than large ones, and states build up."""
    rng = np.random.default_rng(seed)
    machine = Machine()
    size = ((0, 150), (9, 3 * 512))[seed % 2]
    generation = int(rng.integers(0, 2))
    machine.start(size, int(rng.choice([6, 7, 15])), generation, int(rng.integers(1, 5)), int(rng.choice([1, 2, 100])))
    for _ in range(60):
        span = (
            int(rng.integers(0, 1536)),
            int(rng.choice([1, 2, 5, 40, 64, 100, 512, 1024])),
            int(rng.integers(0, 40)),
        )
        pick, count, node = int(rng.integers(0, 1536)), int(rng.integers(1, 4)), int(rng.integers(0, NODES))
        match int(rng.integers(0, 16)):
            case 0 | 1 | 2 | 3:
                machine.convert(span, bool(rng.integers(0, 2)))
            case 4 | 5 | 6 | 7:
                machine.guest_fault(span, node, int(rng.integers(0, 10)))
            case 8 | 9:
                machine.host_fault(pick, count, node)
            case 10 | 11:
                machine.pin(pick, count, pick % 3 > 0, node)
            case 12:
                machine.unpin_one_that_is_there(pick)
            case 13 | 14:
                machine.punch(span)
            case 15:
                machine.poison(pick) if rng.random() < 0.3 else machine.release() if rng.random() < 0.1 else None
        machine.everything_seen_is_equal()


@pytest.mark.skipif(JIT_DISABLED, reason="262144 pages at a time are too slow as plain Python")
@pytest.mark.parametrize("unit_order", [9, 18])
@pytest.mark.parametrize("generation", [folio.GENERATION_B, folio.GENERATION_C])
def test_huge_mappings_are_those_of_folios_split_in_two_stages_and_merged_at_once(
    unit_order: int, generation: int
) -> None:
    """Two independent ways to the same counts: folios that split where they must, and no folios at all."""
    rng = np.random.default_rng(unit_order)
    pages = 3 << 18 if unit_order == 18 else 40 << 9
    light = new_file(pages, unit_order, 6, generation, 64, 1 << 30)
    options = np.zeros(folio.OPTIONS, np.int64)
    options[[folio.PAGES, folio.BACKING, folio.GENERATION]] = pages, unit_order, generation
    options[folio.SPLITTING] = folio.TWO_STAGE
    pool = np.full((NODES, 2), 64, np.int64)
    heavy = folio.new_state(options, folio.new_host(np.full(NODES, 1 << 30), np.array(ORDER), pool))
    rows = []
    for _ in range(300):
        op = rng.choice([folio.CONVERT] * 8 + [folio.GUEST_FAULT, folio.PUNCH])
        if op == folio.CONVERT:
            count = int(2 ** rng.uniform(0, 19))
            first = int(rng.integers(0, pages))
            rows.append((op, first * 4096, min(count, pages - first) * 4096, int(rng.random() < 0.4), 0, 0))
        else:
            unit = int(rng.integers(0, pages >> unit_order))
            rows.append((op, unit << (unit_order + 12), 1 << (unit_order + 12), 1, 1, 0))
    stream = np.array(rows, np.int64)
    names = ("mapped_1g", "mapped_2m", "shared_pages")
    sizes = ("1g", "2m")

    def both(name: str) -> tuple[int, int]:
        return int(light.counts[light_map.COUNTERS.index(name)]), int(heavy.counts[folio.COUNTERS.index(name)])

    seen = 0
    for row in stream:
        one, errors, offsets = row[None], np.zeros((2, 1), np.int32), np.zeros((2, 1), np.int64)
        assert folio.run(heavy, one, errors[0], offsets[0], *NOT_ASKED, 0) == 1
        while light_map.run(light, one, errors[1], offsets[1], 0) == 0:
            light = light_map.grown(light)
        assert errors[0] == errors[1]
        assert offsets[0] == offsets[1]
        for name in names:
            mine = light.counts[light_map.COUNTERS.index(name)]
            assert mine == heavy.counts[folio.COUNTERS.index(name)], (name, row)
            seen += int(mine)
        for size in sizes:  # a merged folio waits for the guest's next fault; what was not regained is not lost again
            waiting = int(heavy.counts[folio.COUNTERS.index(f"returned_{size}")])
            (lost, kept), (regained, back) = both(f"lost_{size}"), both(f"regained_{size}")
            assert kept <= lost and back + waiting <= regained
            assert kept - back - waiting >= lost - regained
    assert seen > 0

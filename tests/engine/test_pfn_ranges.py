"""Memory out of the kernel's hands: what may be taken and given back, and who serves it under which policy."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import workbench as wb
from reference.scale import examples
from workbench import policy as mp
from workbench.engine import pfn_ranges
from workbench.engine.pfn_ranges import Allocation, PfnRanges, Taken
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.topology.host import Host, Node, Zone

MIB = 1 << 8
"""4 KiB pages."""
FIRST = 1 << 20
"""First pfn of node 0: stated zones lie from 4 GiB on."""
IDS = (0, 2, 3)


def host(mib: int = 1024, ids: tuple[int, ...] = IDS) -> Host:
    zone = {"name": "Normal", "managed": mib * MIB, "free": mib * MIB, "min": 0, "low": 0, "high": 0}
    nodes = tuple(Node(id=id_, memory_bytes=mib << 20, cpus=(k,), zones=(Zone(**zone),)) for k, id_ in enumerate(ids))
    distances = tuple(tuple(10 if a == b else 20 + abs(a - b) for b in range(len(ids))) for a in range(len(ids)))
    return Host(name="small", nodes=nodes, distances=distances)


def taken(result: Taken | int) -> Taken:
    assert isinstance(result, Taken)
    return result


def allocated(result: Allocation | int) -> Allocation:
    assert isinstance(result, Allocation)
    return result


def policy(mode: int, *nodes: int, home: int | None = None) -> mp.Mempolicy:
    mask = mp.nodemask(nodes)
    return mp.Mempolicy(mode, nodes=mask, user_nodes=mask, home_node=home)


class TestTaking:
    def test_at_boot_any_page_and_struct_pages_by_section(self) -> None:
        ranges = PfnRanges(host())
        got = taken(ranges.take_at_boot(0, "300 MiB", pfn=FIRST + MIB))
        assert (got.node, got.pfn, got.pages) == (0, FIRST + MIB, 300 * MIB)
        # 1 MiB to 301 MiB: only the section from 128 to 256 MiB lies inside.
        assert ranges.struct_page_bytes_saved() == 128 * MIB * 64
        assert ranges.struct_page_bytes() == 172 * MIB * 64
        kept = taken(ranges.take_at_boot(2, "256 MiB", struct_pages=True))
        assert kept.pfn == FIRST + 1024 * MIB
        assert ranges.struct_page_bytes_saved() == 128 * MIB * 64
        assert ranges.take_at_boot(0, "2 MiB", pfn=FIRST) == errno.EBUSY
        assert ranges.take_at_boot(0, "1 GiB") == errno.ENOMEM

    def test_boot_is_over_once_the_host_runs(self) -> None:
        ranges = PfnRanges(host())
        ranges.take(0, "128 MiB")
        with pytest.raises(WorkbenchError, match="running"):
            ranges.take_at_boot(0, "128 MiB")

    @pytest.mark.parametrize(("size", "pfn"), [("4 KiB", None), ("130 MiB", None), ("128 MiB", FIRST + 64 * MIB)])
    def test_memory_blocks_are_removed_whole(self, size: str, pfn: int | None) -> None:
        ranges = PfnRanges(host())
        assert ranges.take(0, size, pfn) == errno.EINVAL
        assert ranges.taken == []

    def test_the_memory_block_of_a_large_host_is_larger(self) -> None:
        ranges = PfnRanges(host(), memory_block="512 MiB")
        assert ranges.take(0, "128 MiB") == errno.EINVAL
        assert taken(ranges.take(0, "512 MiB")).pages == 512 * MIB
        with pytest.raises(WorkbenchError, match="memory_block"):
            PfnRanges(host(), memory_block="100 MiB")

    def test_only_free_memory_can_be_had_at_run_time(self) -> None:
        ranges = PfnRanges(host())
        assert ranges.occupy(0, "4 KiB", pfn=FIRST + 200 * MIB) == 0
        assert ranges.take(0, "256 MiB", pfn=FIRST) == errno.EBUSY
        assert ranges.take(0, "256 MiB", pfn=FIRST, struct_pages=True) == errno.EBUSY
        first = taken(ranges.take(0, "256 MiB"))
        assert first.pfn == FIRST + 256 * MIB
        assert first.struct_page_bytes == 0
        assert ranges.take(0, "768 MiB") == errno.ENOMEM
        assert ranges.release(FIRST + 200 * MIB, "4 KiB") == 0
        assert ranges.release(FIRST + 200 * MIB, "4 KiB") == errno.EINVAL
        assert ranges.release(first.pfn, "4 KiB") == errno.EINVAL
        assert taken(ranges.take(0, "256 MiB", pfn=FIRST)).pfn == FIRST

    def test_contiguous_ranges_of_a_power_of_two_are_aligned(self) -> None:
        ranges = PfnRanges(host())
        ranges.occupy(0, "4 KiB")
        assert taken(ranges.take(0, "12 KiB", struct_pages=True)).pfn == FIRST + 1
        assert taken(ranges.take(0, "64 MiB", struct_pages=True)).pfn == FIRST + 64 * MIB
        assert ranges.struct_page_bytes() == (64 * MIB + 3) * 64

    @pytest.mark.parametrize("fit", pfn_ranges.FITS)
    def test_giving_back(self, fit: str) -> None:
        ranges = PfnRanges(host(), fit)
        got = taken(ranges.take(0, "512 MiB"))
        held = allocated(ranges.alloc("4 KiB", "4 KiB"))
        pfn = int(held.extents[0, 1])
        block = pfn // (128 * MIB) * 128 * MIB
        assert ranges.give_back(got.pfn, "512 MiB") == errno.EBUSY
        assert ranges.give_back(block, "128 MiB") == errno.EBUSY
        other = block + 128 * MIB
        assert ranges.give_back(other, "64 MiB") == errno.EINVAL
        assert ranges.give_back(other, "128 MiB") == 0
        assert ranges.give_back(other, "128 MiB") == errno.EINVAL
        assert sum(t.pages for t in ranges.taken) == 384 * MIB
        assert ranges.free_pages(0) == 384 * MIB - 1
        assert taken(ranges.take(0, "128 MiB", other)).pfn == other
        ranges.free(held)
        with pytest.raises(WorkbenchError, match="not all allocated"):
            ranges.free(held)
        for part in list(ranges.taken):
            assert ranges.give_back(part.pfn, part.pages * 4096) == 0
        assert ranges.taken == []
        assert taken(ranges.take(0, "1 GiB")).pages == 1024 * MIB


class TestAllocating:
    @pytest.mark.parametrize("fit", pfn_ranges.FITS)
    @pytest.mark.parametrize(("page_size", "align"), [("4 KiB", 1), ("2 MiB", 512), ("1 GiB", 1 << 18)])
    def test_page_sizes_and_odd_sizes(self, fit: str, page_size: str, align: int) -> None:
        ranges = PfnRanges(host(3072), fit)
        for node in IDS:
            ranges.take_at_boot(node, "3 GiB")
        small = allocated(ranges.alloc("12 KiB", page_size))
        size = 2 * (1 << 18) + 5 * 512 + 3
        got = allocated(ranges.alloc(size * 4096, page_size, node=0))
        assert got.pages == size
        assert got.extents[:, 0].tolist() == [0, *np.cumsum(got.extents[:, 2])[:-1]]
        whole = got.extents[got.extents[:, 2] >= align]
        assert (whole[:, 1] % align == 0).all()
        free = sum(ranges.free_pages(node) for node in IDS)
        assert free == 3 * 3072 * MIB - size - 3
        ranges.free(small)
        ranges.free(got)
        for node in IDS:
            state = ranges.fragmentation(node)
            assert state["free_bytes"] == 3 << 30
            assert state["unusable_1gib"] == 0

    def test_fragmentation(self) -> None:
        ranges = PfnRanges(host(2048), "first-fit")
        ranges.take_at_boot(0, "2 GiB")
        held = [allocated(ranges.alloc("4 KiB", "4 KiB", policy(mp.BIND, 0)))]
        held += [allocated(ranges.alloc("2 MiB", "2 MiB", policy(mp.BIND, 0)))]
        state = ranges.fragmentation(0)
        assert state["free_bytes"] == (2 << 30) - 4096 - (2 << 20)
        assert state["free_ranges"] == 2
        assert state["largest_bytes"] == (2 << 30) - (4 << 20)
        free = 2048 * MIB - 513
        assert state["unusable_2mib"] == pytest.approx(511 / free)
        assert state["unusable_1gib"] == pytest.approx(1 - (1 << 18) / free)

    def test_bind_does_not_leave_its_nodes_and_preferred_does(self) -> None:
        ranges = PfnRanges(host())
        for node in IDS:
            ranges.take_at_boot(node, "256 MiB")
        assert ranges.alloc("514 MiB", "2 MiB", policy(mp.BIND, 2, 3)) == errno.ENOMEM
        assert [ranges.free_pages(node) for node in IDS] == [256 * MIB] * 3
        both = allocated(ranges.alloc("512 MiB", "2 MiB", policy(mp.BIND, 2, 3), node=3))
        assert both.pages_per_node() == {2: 256 * MIB, 3: 256 * MIB}
        assert int(both.extents[0, 3]) == 3  # the task's node comes first
        ranges.free(both)
        spilled = allocated(ranges.alloc("300 MiB", "2 MiB", policy(mp.PREFERRED, 3)))
        assert spilled.pages_per_node() == {2: 44 * MIB, 3: 256 * MIB}
        ranges.free(spilled)
        local = allocated(ranges.alloc("2 MiB", node=2))
        assert local.pages_per_node() == {2: 512}

    @pytest.mark.parametrize("page_size", ["2 MiB", "1 GiB"])
    @pytest.mark.parametrize(
        "given",
        [
            {"mode": "bind", "nodes": "2-3"},
            {"mode": "preferred", "nodes": "2"},
            {"mode": "preferred_many", "nodes": "0,3"},
            {"mode": "interleave", "nodes": "0,2-3"},
            {"mode": "weighted_interleave", "nodes": "0,2-3"},
            {"mode": "local"},
        ],
    )
    def test_the_engine_says_the_same(self, page_size: str, given: dict[str, str]) -> None:
        """A guest of a scenario on PFN ranges lies on the same nodes, pools running dry included."""
        units, shift = (90, 9) if page_size == "2 MiB" else (12, 18)
        pools = {0: 50, 2: 30, 3: 20} if page_size == "2 MiB" else {0: 6, 2: 4, 3: 4}
        mode = mp.MODES.index(given["mode"])
        if mode == mp.BIND:
            units = pools[2] + pools[3]
        size = units * 4096 << shift
        machine = host(8192)
        scenario = Scenario.model_validate(
            {
                "host": machine.model_dump(mode="json"),
                "boot": {"hugetlb_pages": pools, "weights": {0: 3, 2: 1, 3: 2}},
                "guest": {"memory": size, "page_size": page_size, "design": "pfn-range", "vcpus": [{"node": 3}]},
                "operations": [
                    {"op": "create", "file": "ram", "size": size},
                    {"op": "set_mempolicy", **given},
                    {"op": "fallocate", "file": "ram", "offset": 0, "length": size},
                ],
            }
        )
        dataset = wb.simulate(scenario)
        runs = zip(*(dataset[name].values for name in ("run_start", "run_length", "run_node")), strict=True)
        expected = np.full(units, -1)
        for start, length, node in runs:
            expected[start : start + length] = node
        if (expected < 0).any():
            pytest.skip("the result keeps no runs for this one")
        ranges = PfnRanges(machine, weights={0: 3, 2: 1, 3: 2})
        for node, count in pools.items():
            ranges.take_at_boot(node, count * 4096 << shift)
        mask = mp.nodemask(mp.nodes_of(mp.parse_nodes(given.get("nodes"))))
        chosen = mp.Mempolicy(mode, nodes=mask, user_nodes=mask)
        got = allocated(ranges.alloc(size, page_size, chosen, node=3))
        nodes = np.repeat(got.extents[:, 3], got.extents[:, 2] >> shift)
        np.testing.assert_array_equal(nodes, expected)

    def test_weights_and_the_rotation_go_on_from_call_to_call(self) -> None:
        ranges = PfnRanges(host(), weights={0: 2, 3: 1})
        for node in IDS:
            ranges.take_at_boot(node, "128 MiB")
        chosen = policy(mp.WEIGHTED_INTERLEAVE, 0, 3)
        got = [allocated(ranges.alloc("2 MiB", "2 MiB", chosen)) for _ in range(6)]
        assert [int(g.extents[0, 3]) for g in got] == [0, 0, 3, 0, 0, 3]

    def test_an_allocation_reaches_from_range_to_range(self) -> None:
        ranges = PfnRanges(host())
        ranges.take_at_boot(0, "3 MiB")
        ranges.occupy(0, "4 KiB")
        ranges.take_at_boot(0, "3 MiB")
        assert ranges.alloc("6 MiB", "2 MiB") == errno.ENOMEM
        got = allocated(ranges.alloc("6 MiB", "4 KiB"))
        assert got.extents[:, 1:3].tolist() == [[FIRST, 3 * MIB], [FIRST + 3 * MIB + 1, 3 * MIB]]


def test_bad_input() -> None:
    ranges = PfnRanges(host())
    for call, message in (
        (lambda: PfnRanges(host(), "worst-fit"), "worst-fit"),
        (lambda: PfnRanges(host(), weights={0: 0}), "weights"),
        (lambda: PfnRanges(host(), weights={1: 1}), "node: 1"),
        (lambda: ranges.take(7, "128 MiB"), "node: 7"),
        (lambda: ranges.take(0, 100), "size"),
        (lambda: ranges.alloc(0), "size"),
        (lambda: ranges.alloc("2 MiB", "3 MiB"), "page_size"),
        (lambda: ranges.alloc("2 MiB", policy=policy(mp.BIND, 1)), "node: 1"),
        (lambda: ranges.alloc("2 MiB", policy=policy(mp.BIND, 0, home=9)), "node: 9"),
        (lambda: ranges.alloc("2 MiB", policy=policy(mp.INTERLEAVE)), "no nodes"),
        (lambda: ranges.free(Allocation(np.array([[0, FIRST, 512, 0]]))), "not taken"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            call()


KERNEL_FREE, KERNEL_USED, POOL_FREE, ALLOCATED = range(4)
SPAN = 256 * MIB


class RangesMachine(RuleBasedStateMachine):
    """Any sequence of taking, allocating, freeing and giving back: every page has one owner, and it is the right one."""

    fit = "first-fit"

    @initialize()
    def start(self) -> None:
        self.ranges = PfnRanges(host(256, (0, 1)), self.fit)
        self.owner = np.zeros(2 * SPAN, np.int8)
        self.held: list[Allocation] = []

    def change(self, pfn: int, pages: int, before: int, after: int) -> None:
        part = self.owner[pfn - FIRST : pfn - FIRST + pages]
        assert len(part) == pages
        assert (part == before).all()
        part[:] = after

    def is_owner(self, pfn: int, pages: int, owner: int) -> bool:
        return bool((self.owner[pfn - FIRST : pfn - FIRST + pages] == owner).all())

    @rule(node=st.integers(0, 1), pages=st.sampled_from([1, 7, 600, 20000]), at=st.none() | st.integers(0, SPAN - 1))
    def occupy(self, node: int, pages: int, at: int | None) -> None:
        pages = min(pages, SPAN - (at or 0))
        pfn = None if at is None else FIRST + node * SPAN + at
        before = self.owner.copy()
        code = self.ranges.occupy(node, pages * 4096, pfn)
        if pfn is not None:
            assert (code == 0) == bool((before[pfn - FIRST : pfn - FIRST + pages] == KERNEL_FREE).all())
            if code == 0:
                self.change(pfn, pages, KERNEL_FREE, KERNEL_USED)
        elif code == 0:
            mine = before[node * SPAN : (node + 1) * SPAN] == KERNEL_FREE
            lowest = next(k for k in range(SPAN - pages + 1) if mine[k : k + pages].all())
            self.change(FIRST + node * SPAN + lowest, pages, KERNEL_FREE, KERNEL_USED)

    @rule(node=st.integers(0, 1), blocks=st.integers(1, 2), at=st.none() | st.integers(0, 1))
    def take_blocks(self, node: int, blocks: int, at: int | None) -> None:
        base = FIRST + node * SPAN
        pfn = None if at is None else base + at * 128 * MIB
        got = self.ranges.take(node, blocks * (128 << 20), pfn)
        free = [self.is_owner(base + k * 128 * MIB, 128 * MIB, KERNEL_FREE) for k in range(2)]
        wanted = [at] if at is not None else [0, 1]
        starts = [k for k in wanted if k + blocks <= 2 and all(free[k : k + blocks])]
        if isinstance(got, Taken):
            assert got.pfn == base + starts[0] * 128 * MIB
            assert got.struct_page_bytes == 0
            self.change(got.pfn, got.pages, KERNEL_FREE, POOL_FREE)
        else:
            assert got == (errno.EBUSY if at is not None else errno.ENOMEM)
            assert not starts

    @rule(node=st.integers(0, 1), pages=st.sampled_from([1, 8, 512, 1000, 8192]))
    def take_contiguous(self, node: int, pages: int) -> None:
        got = self.ranges.take(node, pages * 4096, struct_pages=True)
        if isinstance(got, Taken):
            assert pages & (pages - 1) or got.pfn % pages == 0
            assert got.struct_page_bytes == pages * 64
            self.change(got.pfn, got.pages, KERNEL_FREE, POOL_FREE)

    @precondition(lambda self: self.ranges.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(self.ranges.taken))
        code = self.ranges.give_back(part.pfn, part.pages * 4096)
        assert code == (0 if self.is_owner(part.pfn, part.pages, POOL_FREE) else errno.EBUSY)
        if code == 0:
            self.change(part.pfn, part.pages, POOL_FREE, KERNEL_FREE)

    @rule(
        pages=st.sampled_from([1, 9, 512, 1500, 40000]),
        page_size=st.sampled_from(["4 KiB", "2 MiB"]),
        chosen=st.sampled_from(
            [None, policy(mp.BIND, 1), policy(mp.INTERLEAVE, 0, 1), policy(mp.WEIGHTED_INTERLEAVE, 0, 1)]
        ),
    )
    def alloc(self, pages: int, page_size: str, chosen: mp.Mempolicy | None) -> None:
        got = self.ranges.alloc(pages * 4096, page_size, chosen)
        if isinstance(got, Allocation):
            assert got.pages == pages
            for _, pfn, count, node in got.extents.tolist():
                assert (pfn - FIRST) // SPAN == node
                assert chosen is None or chosen.nodes >> node & 1 or chosen.mode != mp.BIND
                self.change(pfn, count, POOL_FREE, ALLOCATED)
            self.held.append(got)
        else:
            assert got == errno.ENOMEM

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        got = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.ranges.free(got)
        for _, pfn, count, _ in got.extents.tolist():
            self.change(pfn, count, ALLOCATED, POOL_FREE)

    @invariant()
    def counts_agree(self) -> None:
        for node in (0, 1):
            mine = self.owner[node * SPAN : (node + 1) * SPAN]
            assert self.ranges.free_pages(node) == int((mine == POOL_FREE).sum())
        pools = int(((self.owner == POOL_FREE) | (self.owner == ALLOCATED)).sum())
        assert sum(part.pages for part in self.ranges.taken) == pools


class BestFitMachine(RangesMachine):
    fit = "best-fit"


class BuddyMachine(RangesMachine):
    fit = "buddy"


TestRanges = RangesMachine.TestCase
TestBestFitRanges = BestFitMachine.TestCase
TestBuddyRanges = BuddyMachine.TestCase
for _case in (TestRanges, TestBestFitRanges, TestBuddyRanges):
    _case.settings = settings(max_examples=examples(15, without_jit=3), stateful_step_count=25)
del _case  # or it is collected again

"""The folio kernel against the page-by-page reference, and at every point where memory can run out."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from reference import folio as slow
from reference.folio_kinds import BuddyFile, SmallFile
from reference.not_asked import NOT_ASKED
from reference.scale import INDICES_CHECKED
from workbench.kernels.folios import run as fast

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT") == "1"
NODES = 2
GIB, MIB = 2**30, 2**20


def options(**values):
    defaults = {"pages": 4 * 512, "backing": 9, "generation": 1, "splitting": 0, "split_at": 0, "merging": 0, "hvo": 1}
    values = defaults | {"fallback": 0, "drain": 0, "xarray": 0} | values
    order = ["pages", "backing", "generation", "splitting", "split_at", "merging", "hvo", "fallback", "drain", "xarray"]
    return np.array([values[name] for name in order], dtype=np.int64)


def new_file(vmemmap=(10_000, 10_000), pool=((64, 8), (64, 8)), cpus=1, **values):
    return fast.new_state(options(**values), fast.new_host(vmemmap, [[0, 1], [1, 0]], pool), cpus)


class Fast:
    """One file of the kernel with one method for all operations; grows what is full."""

    def __init__(self, state):
        self.state = state
        self.huge_pages = int(state.pool.sum())

    def operate(self, op, offset=0, length=0, argument=0, node=0, cpu=0):
        stream = np.array([[op, offset, length, argument, node, cpu]], dtype=np.int64)
        errors, offsets = np.zeros(1, np.int32), np.zeros(1, np.int64)
        while fast.run(self.state, stream, errors, offsets, *NOT_ASKED, 0) == 0:
            self.state = fast.grown(self.state)
        return int(errors[0]), int(offsets[0])

    def count(self, name):
        return int(self.state.counts[fast.COUNTERS.index(name)])

    def held(self):
        state = self.state
        held = state.extra_2m.sum(axis=0) + state.extra_1g.sum(axis=0) + state.slabs_1g.sum(axis=0)
        return (held + state.pool_extra.sum(axis=(0, 1))).tolist()


def shared_bits(state):
    bytes_ = state.shared.astype("<u8").view(np.uint8)
    return np.unpackbits(bytes_, bitorder="little")[: state.options[fast.PAGES]].astype(bool)


def uptodate_bits(state):
    every = np.repeat(state.marks & fast.UPTODATE_ALL > 0, 512)
    bits = np.unpackbits(state.uptodate.astype("<u8").view(np.uint8), bitorder="little").astype(bool)
    return (every | bits)[: state.options[fast.PAGES]]


def lost_bits(state):
    bits = np.unpackbits(state.content_lost.astype("<u8").view(np.uint8), bitorder="little").astype(bool)
    return bits[: state.options[fast.PAGES]]


def check_counters(file: Fast):
    """Every counter kept in step equals a recount of the state."""
    state = file.state
    bits = shared_bits(state)
    padded = np.zeros(state.level.shape[0] * 512, bool)
    padded[: bits.shape[0]] = bits
    by_2m = padded.reshape(-1, 512).sum(axis=1)
    by_1g = padded.reshape(-1, 512 * 512).sum(axis=1)
    np.testing.assert_array_equal(state.shared_2m, by_2m)
    np.testing.assert_array_equal(state.shared_1g, by_1g)
    assert file.count("shared_pages") == bits.sum()
    if state.options[fast.FOLIOS] == fast.SMALL_FOLIOS:
        whole_1g = (state.whole_1g == 1) & (state.level[::512] == fast.SPLIT) & np.isin(by_1g, (0, 512 * 512))
        uniform = (state.level == fast.SPLIT) & np.isin(by_2m, (0, 512)) & ~np.repeat(whole_1g, 512)
        assert (file.count("mapped_2m"), file.count("mapped_1g")) == (np.sum(uniform), np.sum(whole_1g))
    else:
        assert file.count("mapped_2m") == np.sum((state.level == fast.HUGE_2M) & (by_2m == 0))
        assert file.count("mapped_1g") == np.sum((state.level[::512] == fast.HUGE_1G) & (by_1g == 0))
    base = sum(int(word).bit_count() for word in state.present[np.repeat(state.level == fast.BASE, 8)])
    assert file.count("present_pages") == 512 * np.sum(state.level >= fast.SPLIT) + base
    assert file.count("vmemmap_taken") == state.taken.sum() and file.count("vmemmap_freed") == state.freed.sum()
    rows = state.references.sum(axis=1, dtype=np.int64)
    held = rows[:, [fast.TRANSIENT, fast.LONG_TERM, fast.DEVICE]].sum(axis=1)
    np.testing.assert_array_equal(held, state.reference_total[:, 0])
    assert rows[:, [fast.ORPHAN, fast.DEVICE_ORPHAN]].sum() == file.count("orphaned_pins")
    whole = state.whole_1g.astype(bool)
    huge_2m = (state.level != fast.NONE) & (state.level != fast.BASE) & ~np.repeat(whole, 512)
    waiting = np.sum(huge_2m & (state.level == fast.LEFT)) + np.sum(whole & (state.level[::512] == fast.LEFT))
    assert file.count("pinned_huge_pages") == waiting
    withheld = file.count("withheld_huge_pages")
    assert state.pool.sum() + huge_2m.sum() + whole.sum() + withheld == file.huge_pages
    leaf = state.marks & fast.LEAF_MASK
    small = np.bitwise_count(state.small).reshape(-1, 8).sum(axis=1)
    assert not small[leaf != fast.LEAF_4K].any() and file.count("leaves_4k") == small.sum()
    assert file.count("leaves_2m") == np.sum(leaf == fast.LEAF_2M)
    assert file.count("leaves_1g") * 512 == np.sum(leaf == fast.LEAF_1G)
    for flag, size in ((fast.RETURNED_2M, "2m"), (fast.RETURNED_1G, "1g")):
        assert file.count(f"returned_{size}") == np.sum(state.marks & flag > 0) <= file.count(f"mapped_{size}")
    assert file.count("xarray_pages") == state.slabs_1g.sum()
    some = state.marks & fast.UPTODATE_SOME > 0
    assert not state.uptodate[~np.repeat(some, 8)].any() and not (some & (state.level >= fast.HUGE_2M)).any()
    assert not (state.marks[state.level == fast.NONE] & (fast.UPTODATE_ALL | fast.UPTODATE_SOME)).any()


COMPARED = (
    "splits_1g", "splits_2m", "merges_1g", "merges_2m", "unoptimised_merges", "rollbacks", "invalidations",
    "invalidated_bytes", "private_pages_lost", "spins", "zeroed_pages", "lost_1g", "lost_2m", "regained_1g", "regained_2m",
    "poisoned_to_pool", "content_lost_pages", "content_stale_pages", "collapsed_2m", "copied_pages",
)  # fmt: skip


class Conversion(RuleBasedStateMachine):
    """convert, pin, unpin, punch, fault, poison in any order: kernel and reference agree in everything."""

    backing = 9
    pages = 4 * 512
    unit = 64  # ranges start and end near multiples of this many pages
    kind = slow.File
    folios = fast.HUGETLB_FOLIOS

    @initialize(
        generation=st.sampled_from("BC"),
        stages=st.sampled_from(["one", "two", "through"]),
        at_host_fault=st.booleans(),
        merging=st.sampled_from(["eager", "eager", "lazy", "never"]),
        hvo=st.booleans(),
        fallback=st.booleans(),
        drain=st.booleans(),
        vmemmap=st.tuples(st.integers(0, 40), st.integers(0, 40)),
        pool=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        xarray=st.sampled_from(["free", "slabs", "slabs", "two levels"]),
    )
    def create(self, generation, stages, at_host_fault, merging, hvo, fallback, drain, vmemmap, pool, xarray):
        if self.kind is not slow.File:
            hvo, stages, at_host_fault, xarray = False, "one", False, "free"
        vmemmap = self.scaled(vmemmap)
        self.vmemmap = list(vmemmap)
        pools = np.array([[count, 0] for count in pool]) if self.backing == 9 else np.array([[2, c] for c in pool])
        self.fast = Fast(
            new_file(
                vmemmap, pools, cpus=2, pages=self.pages, backing=self.backing, generation="BC".index(generation),
                splitting=["one", "two", "through"].index(stages), split_at=int(at_host_fault),
                merging=["eager", "lazy", "never"].index(merging), hvo=int(hvo), fallback=int(fallback),
                drain=int(drain), xarray=["free", "slabs", "two levels"].index(xarray),
            )
        )  # fmt: skip
        self.fast.state.options[fast.FOLIOS] = self.folios
        pool_blocks = {}
        for node in range(NODES):
            for size, column in ((512, 0), (512 * 512, 1)):
                pool_blocks[node, size] = [slow.Block(-1, size, node) for _ in range(pools[node, column])]
        host = slow.Host(list(vmemmap), [[0, 1], [1, 0]], pool_blocks)
        self.slow = self.kind(
            self.pages, 1 << self.backing, generation, host, stages != "one", stages == "through", at_host_fault,
            merging, hvo, fallback, drain, 2, xarray,
        )  # fmt: skip

    def scaled(self, vmemmap):
        return vmemmap

    ranges = st.tuples(st.integers(0, 40), st.integers(-2, 2), st.integers(0, 12), st.integers(-1, 2))

    def span(self, chosen, align=False):
        start, nudge, length, extra = chosen
        offset = max(0, start * self.unit + nudge)
        count = max(1, length * self.unit + extra)
        if align:
            size = 1 << self.backing
            offset, count = offset // size * size, -(-count // size) * size
        return offset * 4096, count * 4096

    def both(self, name, op, offset, length, argument=0, node=0, cpu=0, **slow_arguments):
        got = self.fast.operate(op, offset, length, argument, node, cpu)
        expected = self.slow.operate(name, *slow_arguments.values())
        assert got == expected, (name, offset, length, slow_arguments)

    @rule(chosen=ranges, to_shared=st.booleans())
    def convert(self, chosen, to_shared):
        offset, length = self.span(chosen)
        self.both("convert", fast.CONVERT, offset, length, int(to_shared), o=offset, n=length, s=to_shared)

    @rule(chosen=ranges, long_term=st.booleans(), node=st.integers(0, 1), cpu=st.integers(0, 1))
    def pin(self, chosen, long_term, node, cpu):
        offset, length = self.span((*chosen[:2], 0, chosen[3]))
        arguments = {"o": offset, "n": length, "k": long_term, "node_": node, "cpu_": cpu}
        self.both("pin", fast.PIN, offset, length, int(long_term), node, cpu, **arguments)

    @rule(chosen=ranges, long_term=st.booleans())
    def unpin(self, chosen, long_term):
        offset, length = self.span((*chosen[:2], 0, chosen[3]))
        self.both("unpin", fast.UNPIN, offset, length, int(long_term), o=offset, n=length, k=long_term)

    @rule(chosen=ranges, node=st.integers(0, 1), cpu=st.integers(0, 1))
    def host_fault(self, chosen, node, cpu):
        offset, length = self.span(chosen)
        arguments = {"o": offset, "n": length, "node_": node, "cpu_": cpu}
        self.both("host_fault", fast.HOST_FAULT, offset, length, 0, node, cpu, **arguments)

    @rule(chosen=ranges, private=st.sampled_from([True, True, True, False, None]), node=st.integers(0, 1))
    def guest_fault(self, chosen, private, node):
        offset, length = self.span(chosen)
        arguments = {"o": offset, "n": length, "p": private, "node_": node, "cpu_": 0}
        argument = fast.AS_IT_IS if private is None else int(private)
        self.both("guest_fault", fast.GUEST_FAULT, offset, length, argument, node, 0, **arguments)

    @rule(chosen=ranges, align=st.booleans())
    def punch(self, chosen, align):
        offset, length = self.span(chosen, align)
        self.both("punch", fast.PUNCH, offset, length, o=offset, n=length)

    @rule(chosen=ranges, really=st.integers(0, 4))
    def poison(self, chosen, really):
        if really:  # seldom; an assume() here would end the run, and most runs had ended so
            return
        offset, _length = self.span(chosen)
        self.both("poison", fast.POISON, offset, 0, o=offset)

    @rule(chosen=ranges)
    def unmap_slot(self, chosen):
        offset, length = self.span(chosen)
        self.both("unmap_slot", fast.UNMAP, offset, length, o=offset, n=length)

    @rule(chosen=ranges)
    def merge(self, chosen):
        offset, length = self.span(chosen)
        self.both("merge_pass", fast.MERGE, offset, length, o=offset, n=length)

    @rule(block=st.integers(0, 4), node=st.integers(0, 1), cpu=st.integers(0, 1))
    def collapse(self, block, node, cpu):
        """Into a folio that somebody took from its node, and that goes back to a pool one day."""
        before = self.fast.count("collapsed_2m")
        offset = block * 512 * 4096
        self.both("collapse", fast.COLLAPSE, offset, 0, 0, node, cpu, o=offset, node_=node, cpu_=cpu)
        self.fast.huge_pages += self.fast.count("collapsed_2m") - before

    @rule(really=st.integers(0, 12))
    def release(self, really):
        if really:
            return
        self.both("release", fast.RELEASE, 0, 0)

    @rule()
    def drain(self):
        self.both("lru_drain", fast.LRU_DRAIN, 0, 0)

    @invariant()
    def same(self):
        if not hasattr(self, "slow"):
            return
        file, model = self.fast, self.slow
        check_counters(file)
        np.testing.assert_array_equal(shared_bits(file.state), [page.shared for page in model.pages])
        uptodate = [page.folio is not None and page.folio.uptodate for page in model.pages]
        np.testing.assert_array_equal(uptodate_bits(file.state), uptodate)
        np.testing.assert_array_equal(lost_bits(file.state), [page.content_lost for page in model.pages])
        assert {name: file.count(name) for name in COMPARED} == {name: model.total[name] for name in COMPARED}
        assert file.count("present_pages") == sum(page.folio is not None for page in model.pages)
        assert file.count("mapped_2m") == model.mappable(512) and file.count("mapped_1g") == model.mappable(512 * 512)
        assert file.count("lru_held") == model.lru_held()
        assert file.count("orphaned_pins") == sum(page.orphans for page in model.pages)
        poisoned = sorted(file.state.poison[: file.count("poisoned_pages")].tolist())
        assert poisoned == sorted(model.poisoned)
        for size, pages in (("4k", 1), ("2m", 512), ("1g", 512 * 512)):
            assert file.count(f"leaves_{size}") == model.leaves(pages)
        for size, pages in (("2m", 512), ("1g", 512 * 512)):
            assert file.count(f"returned_{size}") == sum(key[1] == pages for key in model.awaiting)
        assert file.count("pinned_huge_pages") == len(model.left)
        assert file.state.vmemmap.tolist() == model.host.vmemmap
        # no vmemmap page and no huge page is ever lost
        held = np.array(file.held())
        np.testing.assert_array_equal(file.state.vmemmap + held, self.vmemmap)
        for node in range(NODES):
            for column, size in ((0, 512), (1, 512 * 512)):
                assert file.state.pool[node, column] == len(model.host.pool[node, size])


class Conversion1G(Conversion):
    backing = 18
    pages = 2 * 512 * 512
    unit = 16384

    def scaled(self, vmemmap):
        return tuple(150 * count for count in vmemmap)

    # a reference that looks at half a million objects each time: check only now and then
    @invariant()
    def same(self):
        if hasattr(self, "slow") and self.slow.total["checks"] % 4 == 0:
            super().same()
        if hasattr(self, "slow"):
            self.slow.total["checks"] += 1

    def teardown(self):
        if hasattr(self, "slow"):
            Conversion.same(self)


class ConversionBuddy(Conversion):
    """2 MiB folios of the page allocator."""

    kind, folios = BuddyFile, fast.BUDDY_FOLIOS


class ConversionSmall(Conversion):
    """4 KiB folios that lie together in 2 MiB."""

    kind, folios = SmallFile, fast.SMALL_FOLIOS


class ConversionSmall1G(Conversion1G):
    """And in 1 GiB."""

    kind, folios = SmallFile, fast.SMALL_FOLIOS


class ConversionBase(Conversion):
    """4 KiB folios: no splits, but lru_add batches and orphaned pins."""

    backing = 0
    pages = 1500
    unit = 16


@pytest.mark.parametrize(
    ("machine", "examples", "steps"),
    [
        (Conversion, 60, 30),
        (ConversionBase, 40, 30),
        (ConversionBuddy, 40, 30),
        (ConversionSmall, 40, 30),
        (Conversion1G, 3, 10),
        (ConversionSmall1G, 2, 10),
    ],
    ids=["2M", "4K", "2M of the buddy allocator", "4K together in 2M", "1G", "4K together in 1G"],
)
def test_agrees_with_reference(machine, examples, steps):
    if INTERPRETED and issubclass(machine, Conversion1G):
        pytest.skip("minutes as plain Python; the exhaustion tests below run the 1 GiB code in this mode")
    chosen = settings.get_profile(settings._current_profile)
    if chosen.max_examples > 100:
        examples *= 20
    if INTERPRETED:
        examples = max(3, examples // 3)
    elif INDICES_CHECKED:
        examples = max(2, examples // 2)
    run_state_machine_as_test(machine, settings=settings(chosen, max_examples=examples, stateful_step_count=steps))


@pytest.mark.parametrize(
    "machine", [Conversion, ConversionBuddy, ConversionSmall, ConversionBase], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("generation", ["B", "C"])
def test_agrees_with_reference_on_files_in_use(machine, generation):
    """As above, but the guest has touched everything first and most calls are in order, so that all there is happens.

    A machine that draws its calls alone seldom gets past the first refused one: what must have happened is asked for.
    """
    happened = dict.fromkeys(
        ("converted_pages", "regained_2m", "lost_2m", "poisoned_pages", "leaves_2m", "collapsed_2m"), 0
    )
    small = machine is ConversionBuddy  # of two folios no block is left, so that 4 KiB folios stand in
    for seed in range(12):
        rng = np.random.default_rng([seed, machine.backing])
        run = machine()
        merging, drain = ["eager", "eager", "lazy", "never"][seed % 4], bool(rng.integers(2))
        pool = (2, 0) if small else (4, 4)
        run.create(generation, "one", False, merging, bool(rng.integers(2)), small, drain, (40, 40), pool, "free")
        everything = run.pages * 4096
        run.both("guest_fault", fast.GUEST_FAULT, 0, everything, 1, 0, 0, o=0, n=everything, p=True, node_=0, cpu_=0)
        for _ in range(60):
            act_in_order(run, rng)
            run.same()
            for name in happened:
                happened[name] += run.fast.count(name) > 0
    huge = ("regained_2m", "lost_2m", "leaves_2m") if machine.backing else ()
    huge += ("collapsed_2m",) * small
    assert all(happened[name] for name in ("converted_pages", "poisoned_pages", *huge)), happened


def act_in_order(run, rng):
    """One call that can succeed: whole blocks or single pages, back and forth, faults of what is there as what it is."""
    block = 512 * int(rng.integers(0, -(-run.pages // 512)))
    first = block if rng.random() < 0.4 else block + int(rng.integers(0, 6)) * 85
    count = 512 if first == block else int(rng.choice([1, 1, 2, 300]))
    first = min(first, run.pages - 1)
    count = min(count, run.pages - first)
    offset, length = first * 4096, count * 4096
    shared = run.slow.pages[first].shared
    what = rng.choice(
        ["convert"] * 5
        + ["back"] * 3
        + ["guest"] * 4
        + ["host", "pin", "unpin", "punch", "poison", "merge", "collapse"]
    )
    if what in ("convert", "back"):
        to = bool(rng.integers(2)) if what == "convert" else not shared
        run.both("convert", fast.CONVERT, offset, length, int(to), o=offset, n=length, s=to)
    elif what == "guest":
        run.both("guest_fault", fast.GUEST_FAULT, offset, length, int(not shared), 0, 0, o=offset, n=length, p=not shared,
                 node_=0, cpu_=0)  # fmt: skip
    elif what == "host":
        run.both("host_fault", fast.HOST_FAULT, offset, length, 0, 1, 1, o=offset, n=length, node_=1, cpu_=1)
    elif what in ("pin", "unpin"):
        kind = int(rng.random() < 0.5)
        more = {"node_": 0, "cpu_": 0} if what == "pin" else {}
        run.both(
            what, fast.PIN if what == "pin" else fast.UNPIN, offset, 4096, kind, o=offset, n=4096, k=kind == 1, **more
        )
    elif what == "punch":
        run.both("punch", fast.PUNCH, block * 4096, 512 * 4096, o=block * 4096, n=512 * 4096)
    elif what == "poison":
        run.both("poison", fast.POISON, offset, 0, o=offset)
    elif what == "collapse":
        run.collapse(block // 512, int(rng.integers(2)), int(rng.integers(2)))
    elif what == "merge":
        run.both("merge_pass", fast.MERGE, offset, length, o=offset, n=length)


def private_file(blocks, vmemmap, backing=9, **values):
    """A file of so many huge pages, all touched by the guest, on node 0."""
    values = {"pages": blocks << backing, "backing": backing} | values
    file = Fast(new_file(vmemmap, **values))
    assert file.operate(fast.GUEST_FAULT, 0, blocks << backing << 12, 1) == (0, -1)
    return file


def snapshot(file):
    state = file.state
    arrays = (state.shared, state.level, state.whole_1g, state.full_2m, state.full_1g, state.extra_2m, state.extra_1g)
    return [array.copy() for array in (*arrays, state.vmemmap, state.pool)]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


NEED = {(9, 0): (7, 7), (18, 0): (4095, 4095), (18, 1): (511 + 512 * 7, 511)}


@pytest.mark.parametrize("generation", [0, 1], ids="BC")
@pytest.mark.parametrize(("backing", "splitting"), list(NEED), ids=["2M", "1G", "1G two-stage"])
def test_vmemmap_exhausted_at_every_point(generation, backing, splitting):
    """Conversion of some huge pages with v vmemmap pages free, for every v: nothing is lost, the state is as said."""
    blocks = 3 if backing == 9 else 2
    whole = NEED[backing, splitting][0]
    values = range(blocks * whole + 2)
    if backing == 18:
        edges = {0, 1, 6, 7, 510, 511, 512, 517, 518, 519, 4094, 4095, 4096, 4605, 4606, 4607, 8189, 8190, 8191}
        values = sorted(edges | set(range(0, blocks * whole, 997)))
        if INTERPRETED:
            values = [0, whole - 1, whole, blocks * whole]
    for free in values:
        vmemmap = (free // 3, free - free // 3)
        file = private_file(blocks, vmemmap, backing, generation=generation, splitting=splitting)
        before = snapshot(file)
        error, offset = file.operate(fast.CONVERT, 0, blocks << backing << 12, 1)
        check_counters(file)
        assert sum(file.held()) + file.state.vmemmap.sum() == free
        if free >= blocks * whole:
            assert (error, offset) == (0, -1) and file.count("shared_pages") == blocks << backing
        elif generation == 0:
            assert (error, offset) == (errno.ENOMEM, -1) and file.count("shared_pages") == 0
            if free % whole == 0 and free > 0 and splitting == 0:
                # a merge needs one free page to start with: what was split is whole again but unoptimised
                assert file.count("unoptimised_merges") == free // whole
                assert file.count("mapped_2m") + file.count("mapped_1g") == blocks
            elif splitting == 0:
                assert same(before, snapshot(file))
        else:
            converted = free // whole
            assert (error, offset) == (errno.ENOMEM, converted << backing << 12)
            assert file.count("shared_pages") == converted << backing
        # with memory again the rest goes through, and all the way back
        file.state.vmemmap[1] += 3 * 4096
        assert file.operate(fast.CONVERT, 0, blocks << backing << 12, 1) == (0, -1)
        assert file.operate(fast.CONVERT, 0, blocks << backing << 12, 0) == (0, -1)
        assert file.held() == [0, 0] and file.count("mapped_2m") + file.count("mapped_1g") == blocks


@pytest.mark.parametrize("backing", [9, 18], ids=["2M", "1G"])
def test_split_then_merge_is_the_identity(backing):
    file = private_file(4, (20_000, 0), backing)
    before = snapshot(file)
    assert file.operate(fast.CONVERT, 5 * 4096, 3 << backing << 12, 1) == (0, -1)
    assert not same(before, snapshot(file))
    assert file.operate(fast.CONVERT, 0, 4 << backing << 12, 0) == (0, -1)
    assert same(before, snapshot(file))


def test_pages_of_a_split():
    """linux-semantics 5.7 and 6: 4095 pages in one step, 518 in two for the first 4 KiB, 7 for each further 2 MiB."""
    one = private_file(1, (10_000, 0), 18)
    one.operate(fast.CONVERT, 0, 4096, 1)
    assert one.count("vmemmap_taken") == 4095
    two = private_file(1, (10_000, 0), 18, splitting=1)
    two.operate(fast.CONVERT, 0, 4096, 1)
    assert two.count("vmemmap_taken") == 518 and two.count("mapped_2m") == 511
    two.operate(fast.CONVERT, 2 * MIB, 4096, 1)
    assert two.count("vmemmap_taken") == 525
    through = private_file(1, (4094, 0), 18, splitting=2)
    assert through.operate(fast.CONVERT, 0, 4096, 1) == (errno.ENOMEM, 0)
    assert private_file(1, (4094, 0), 18, splitting=1).operate(fast.CONVERT, 0, 4096, 1) == (0, -1)
    off = private_file(1, (0, 0), 18, hvo=0)
    assert off.operate(fast.CONVERT, 0, 4096, 1) == (0, -1)


@pytest.mark.parametrize("generation", [0, 1], ids="BC")
def test_pinned_page_names_its_offset(generation):
    """B leaves everything as it was; C leaves the blocks before the pinned one converted and merged."""
    file = private_file(3, (1000, 0), generation=generation)
    assert file.operate(fast.CONVERT, 0, 6 * MIB, 1) == (0, -1)
    assert file.operate(fast.PIN, 3 * MIB, 4096, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.CONVERT, 0, 6 * MIB, 0) == (errno.EAGAIN, 3 * MIB)
    assert file.count("shared_pages") == (1536, 1024)[generation]
    assert file.count("mapped_2m") == (0, 1)[generation]
    assert file.operate(fast.UNPIN, 3 * MIB, 4096, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.CONVERT, 0, 6 * MIB, 0) == (0, -1)
    assert file.count("mapped_2m") == 3


@pytest.mark.parametrize(
    ("offset", "length", "error"),
    [
        (0, 0, errno.EINVAL),
        (1, 4096, errno.EINVAL),
        (0, 4097, errno.EINVAL),
        (8 * MIB, 4096, errno.EINVAL),
        (8 * MIB - 4096, 8192, errno.EINVAL),
        (4096, 2**63 - 4096, errno.EINVAL),
        (-4096, 4096, errno.EINVAL),
        (8 * MIB - 4096, 4096, 0),
    ],
)
def test_ranges_the_kernel_refuses(offset, length, error):
    assert private_file(4, (1000, 0)).operate(fast.CONVERT, offset, length, 1)[0] == error


def test_fresh_folios_in_the_lru_batch():
    """31 entries: the folio that fills the batch empties it; draining before the check is what v5 added."""
    for drain, expected in ((0, (errno.EAGAIN, 0)), (1, (0, -1))):
        file = Fast(new_file(backing=0, pages=64, drain=drain))
        file.operate(fast.CONVERT, 0, 64 * 4096, 1)
        file.operate(fast.HOST_FAULT, 0, 30 * 4096)
        assert file.count("lru_held") == 30
        assert file.operate(fast.CONVERT, 0, 64 * 4096, 0) == expected
    file.operate(fast.CONVERT, 0, 64 * 4096, 1)
    file.operate(fast.HOST_FAULT, 30 * 4096, 31 * 4096)
    assert file.count("lru_held") == 0


def test_faults_on_the_wrong_side():
    file = private_file(2, (100, 0))
    assert file.operate(fast.HOST_FAULT, 4096, 4096) == (fast.SIGBUS, 4096)
    assert file.operate(fast.GUEST_FAULT, 4096, 4096, 0) == (errno.EFAULT, 4096)
    file.operate(fast.CONVERT, 0, 4096, 1)
    assert file.operate(fast.HOST_FAULT, 0, 8192) == (fast.SIGBUS, 4096)
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (errno.EFAULT, 0)
    assert file.operate(fast.HOST_FAULT, 4 * MIB, 4096) == (fast.SIGBUS, 4 * MIB)


def test_pool_exhausted():
    """Every huge page of the pool is used, then ENOMEM; a punch makes room again; fallback takes smaller folios."""
    file = Fast(new_file(pool=((2, 0), (0, 0)), pages=4 * 512))
    assert file.operate(fast.GUEST_FAULT, 0, 8 * MIB, 1) == (errno.ENOMEM, 4 * MIB)
    assert file.operate(fast.PUNCH, 0, 2 * MIB) == (0, -1)
    assert file.operate(fast.GUEST_FAULT, 6 * MIB, 4096, 1) == (0, -1)
    assert file.state.pool[0, 0] == 0
    small = Fast(new_file(pool=((1, 1), (0, 0)), pages=512 * 512 * 2, backing=18, fallback=1))
    assert small.operate(fast.GUEST_FAULT, 0, GIB + 4 * MIB, 1) == (0, -1)
    assert small.state.level[[0, 512, 513]].tolist() == [fast.HUGE_1G, fast.HUGE_2M, fast.BASE]


def test_fresh_folio_under_a_shared_page_is_split_or_given_back():
    """Generation B gives it back; in C it stays in one piece: SIGBUS for the host, until another conversion splits it."""
    file = Fast(new_file((6, 0), pool=((1, 0), (0, 0)), generation=0))
    file.operate(fast.CONVERT, 4096, 4096, 1)
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (errno.ENOMEM, 0)
    assert file.state.pool[0, 0] == 1 and file.count("present_pages") == 0 and file.held() == [0, 0]
    file.state.vmemmap[1] = 1
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (0, -1)
    assert file.state.level[0] == fast.SPLIT and file.state.vmemmap.tolist() == [0, 0]
    file = Fast(new_file((6, 0), pool=((1, 0), (0, 0))))
    file.operate(fast.CONVERT, 4096, 4096, 1)
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (errno.ENOMEM, 0)
    assert file.state.pool[0, 0] == 0 and file.count("present_pages") == 512 and file.held() == [0, 0]
    assert file.operate(fast.HOST_FAULT, 4096, 4096) == (fast.SIGBUS, 4096)
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (0, -1) and file.count("leaves_4k") == 1
    assert file.operate(fast.CONVERT, 4096, 4096, 0) == (0, -1) and file.count("mapped_2m") == 1
    check_counters(file)


def test_huge_mapping_comes_back_when_the_returned_page_is_touched():
    """Recorded: 2m-mapping-after-return, K05: pages that kept their small leaves change nothing."""
    for backing, size, rest in ((9, "2m", (511, 0, 0)), (18, "1g", (511, 511, 0))):
        file = private_file(1, (9000, 0), backing)
        leaves = [f"leaves_{name}" for name in ("4k", "2m", "1g")]
        whole = [0, int(backing == 9), int(backing == 18)]
        assert [file.count(name) for name in leaves] == whole
        assert file.operate(fast.CONVERT, 5 * 4096, 4096, 1) == (0, -1)
        assert tuple(file.count(name) for name in leaves) == rest and file.count(f"lost_{size}") == 1
        assert file.operate(fast.CONVERT, 5 * 4096, 4096, 0) == (0, -1)
        assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (0, -1)
        assert file.operate(fast.GUEST_FAULT, 6 * 4096, 500 * 4096, 1) == (0, -1)
        assert file.count(f"regained_{size}") == 0 and file.count(f"returned_{size}") == 1
        assert file.count(f"mapped_{size}") == 1 and tuple(file.count(name) for name in leaves) == rest
        assert file.operate(fast.GUEST_FAULT, 5 * 4096, 4096, 1) == (0, -1)
        assert file.count(f"regained_{size}") == 1 and file.count(f"returned_{size}") == 0
        assert [file.count(name) for name in leaves] == whole


@pytest.mark.parametrize(("generation", "first", "rest"), [(1, 511, 1), (0, 0, 1)], ids=["C", "B"])
def test_leaves_at_the_edge_of_what_becomes_shared(generation, first, rest):
    """Recorded: 2m/B13: C splits the leaf that the edge cuts, and the one that starts where the range ends; B zaps all."""
    file = private_file(2, (100, 0), generation=generation)
    assert file.operate(fast.CONVERT, 5 * 4096, 4096, 1) == (0, -1)
    assert (file.count("leaves_4k"), file.count("leaves_2m")) == (first, rest)
    assert file.operate(fast.CONVERT, 0, 2 * MIB, 1) == (0, -1)
    assert (file.count("leaves_4k"), file.count("leaves_2m")) == ((512, 0) if generation else (0, 1))


def test_huge_mapping_comes_where_small_ones_had_been():
    """The last small leaf of the file went away with a conversion: what is mapped next counts as what it is."""
    file = Fast(new_file())
    for _ in range(2):
        assert file.operate(fast.CONVERT, 0, 8192, 1) == (0, -1)
        assert file.operate(fast.GUEST_FAULT, 4096, 4096, 0) == (0, -1)
        assert (file.count("leaves_4k"), file.count("leaves_2m")) == (1, 0)
        assert file.operate(fast.CONVERT, 0, 8192, 0) == (0, -1)
        assert file.count("leaves_4k") == 0
        assert file.operate(fast.GUEST_FAULT, 8192, 4096, 1) == (0, -1)
        assert [file.count(name) for name in ("leaves_4k", "leaves_2m", "leaves_1g")] == [0, 1, 0]
        assert file.operate(fast.PUNCH, 0, 2 << 20) == (0, -1)
        assert [file.count(name) for name in ("leaves_4k", "leaves_2m", "leaves_1g")] == [0, 0, 0]


def test_poisoned_pages_of_hugetlb_come_back():
    """Recorded: poison-comes-back. EBUSY, the page stays mapped and converts; the pool hands it out again, last in first out."""
    file = private_file(2, (100, 0), pages=2 * 512, pool=((2, 0), (0, 0)))
    assert file.operate(fast.CONVERT, 0, 64 * 1024, 1) == (0, -1)
    assert file.operate(fast.POISON, 2 * 4096) == (errno.EBUSY, -1) and file.count("poisoned_pages") == 1
    assert file.operate(fast.CONVERT, 0, 64 * 1024, 0) == (0, -1) and file.count("mapped_2m") == 2
    assert file.operate(fast.PUNCH, 0, 2 * MIB) == (0, -1)
    assert (file.count("poisoned_pages"), file.count("poisoned_to_pool"), file.state.pool[0, 0]) == (0, 1, 1)
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (0, -1) and file.state.poison[0] == 2
    assert file.operate(fast.CONVERT, 2 * 4096, 4096, 1) == (0, -1)
    assert file.operate(fast.HOST_FAULT, 2 * 4096, 4096) == (fast.SIGBUS, 2 * 4096)
    assert file.operate(fast.GUEST_FAULT, 2 * 4096, 4096, 0) == (fast.EHWPOISON, 2 * 4096)


def test_a_huge_page_with_its_first_page_poisoned_is_passed_over():
    """Recorded: poison-3: the mark of a folio in one piece is its first page's. It counts as free, and is never taken."""
    file = private_file(2, (100, 0), pages=2 * 512, pool=((2, 0), (0, 0)))
    assert file.operate(fast.POISON, 5 * 4096) == (errno.EBUSY, -1) and file.state.poison[0] == 0
    assert file.operate(fast.GUEST_FAULT, 0, 4096, 1) == (0, -1)  # still mapped
    assert file.operate(fast.PUNCH, 0, 4 * MIB) == (0, -1) and file.state.pool[0, 0] == 2
    assert file.operate(fast.GUEST_FAULT, 0, 4 * MIB, 1) == (errno.ENOMEM, 2 * MIB)
    assert file.state.pool[0, 0] == 1 and file.count("poisoned_pages") == 0


@pytest.mark.parametrize(("xarray", "needed"), [(0, 4095), (1, 4095 + 596), (2, None)], ids=["free", "slabs", "stock"])
def test_memory_for_the_nodes_of_a_1g_split(xarray, needed):
    """Recorded: 4,161 nodes, 149 slabs of 16 KiB, before the vmemmap; stock 7.3 never splits 1 GiB."""
    for free in (4094, 4095, 4690, 4691):
        file = private_file(1, (free, 0), 18, xarray=xarray)
        fits = needed is not None and free >= needed
        assert file.operate(fast.CONVERT, 0, 4096, 1) == ((0, -1) if fits else (errno.ENOMEM, 0))
        assert file.state.vmemmap[0] == free - (needed or 0) * fits
        assert file.count("xarray_pages") == (596 if fits and xarray == 1 else 0)
        check_counters(file)


@pytest.mark.parametrize("generation", [0, 1], ids="BC")
def test_punch_over_a_pinned_page(generation):
    """Recorded: 2m/B10, generation-b/G04: C looks at the whole range first, B frees what lies before."""
    file = private_file(3, (100, 0), generation=generation)
    assert file.operate(fast.CONVERT, 2 * MIB, 4096, 1) == (0, -1)
    assert file.operate(fast.PIN, 2 * MIB, 4096, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.PUNCH, 0, 6 * MIB) == (errno.EAGAIN, 2 * MIB)
    assert file.count("present_pages") == (2, 3)[generation] * 512


def test_conversion_of_nothing():
    """Recorded: generation-b/G05: B has no check for a size of 0, not even at the end of the file."""
    for generation, expected in ((0, 0), (1, errno.EINVAL)):
        file = private_file(4, (1000, 0), generation=generation)
        assert [file.operate(fast.CONVERT, offset, 0, 1)[0] for offset in (0, 8 * MIB)] == [expected] * 2
        assert file.operate(fast.CONVERT, 8 * MIB + 4096, 0, 1)[0] == errno.EINVAL


def test_state_is_small_enough():
    """At most 0.2 bytes a page for the private/shared bitmap and the counters together, also with 8 nodes."""
    host = fast.new_host(np.zeros(8), np.zeros((8, 8)), np.zeros((8, 2)))
    state = fast.new_state(options(pages=1 << 24, backing=18), host)
    held = sum(a.nbytes for a in (state.shared, state.blocks, state.gigas, state.backing, state.reference_row))
    assert held / (1 << 24) <= 0.2


@pytest.mark.parametrize("splitting", [0, 1], ids=["one-step", "two-stage"])
@pytest.mark.parametrize(("backing", "poisoned"), [(9, False), (9, True), (18, False)], ids=["2M", "2M poisoned", "1G"])
def test_closed_file_leaves_pinned_huge_pages_until_the_last_pin(backing, poisoned, splitting):
    """The pinned page stays out of the pool, with its restored vmemmap, until its last pin is dropped."""
    file = private_file(3, (9000, 0), backing, splitting=splitting)
    step, size = 4096 << backing, int(backing == 18)
    assert file.operate(fast.CONVERT, step, 2 * MIB, 1) == (0, -1)
    held = sum(file.held())
    assert held == (7 if backing == 9 else 518 if splitting else 4095)
    assert file.operate(fast.PIN, step + MIB, 8192, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.PIN, step, 4096, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.PIN, step, 4096, fast.TRANSIENT) == (0, -1)
    if poisoned:
        assert file.operate(fast.POISON, step + 7 * 4096) == (errno.EBUSY, -1)
    spins, pool = file.count("spins"), file.state.pool[0, size]
    assert file.operate(fast.RELEASE) == (0, -1)
    assert file.count("present_pages") == 0 and file.count("spins") == spins + 1
    assert file.count("pinned_huge_pages") == 1 and file.state.pool[0, size] == pool + 2 and sum(file.held()) == held
    check_counters(file)
    for op in (fast.CONVERT, fast.GUEST_FAULT, fast.PUNCH, fast.POISON, fast.RELEASE):
        assert file.operate(op, step, 4096, 1) == (errno.EBADF, -1)
    assert file.operate(fast.UNPIN, step + MIB, 8192, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.UNPIN, step, 4096, fast.TRANSIENT) == (errno.EINVAL, step)
    assert file.count("pinned_huge_pages") == 1 and sum(file.held()) == held
    assert file.operate(fast.UNPIN, step, 4096, fast.LONG_TERM) == (0, -1)
    assert file.count("pinned_huge_pages") == 0 and sum(file.held()) == 0
    assert file.state.pool[0, size] == pool + 3 and file.count("poisoned_to_pool") == poisoned
    check_counters(file)


def test_closed_file_of_small_folios():
    file = private_file(1, (0, 0), 0, pages=600, drain=1)
    file.operate(fast.CONVERT, 0, 600 * 4096, 1)
    assert file.operate(fast.PIN, 511 * 4096, 8192, fast.LONG_TERM) == (0, -1)
    assert file.operate(fast.RELEASE) == (0, -1)
    assert (file.count("present_pages"), file.count("orphaned_pins"), file.count("lru_held")) == (0, 2, 0)
    assert file.operate(fast.UNPIN, 511 * 4096, 8192, fast.LONG_TERM) == (0, -1)
    assert file.count("orphaned_pins") == 0
    check_counters(file)

"""Conversions and faults with every number of free pages: the errno, what is left behind, and nothing lost."""

from __future__ import annotations

import errno
from itertools import product

import numpy as np
import pytest

from reference import folio as slow
from reference.folio_blocks import Blocks
from reference.not_asked import NOT_ASKED
from reference.scale import JIT_DISABLED
from workbench.kernels.folios import run as fast

ORDER = [[0, 1], [1, 0]]
GENERATIONS, STAGES, MERGES = "BC", ("one", "two", "through"), ("eager", "lazy", "never")
SETTINGS = list(product(GENERATIONS, STAGES, MERGES))
NAME = {fast.SPLIT: "4K", fast.HUGE_2M: "2M", fast.HUGE_1G: "1G"}
NEED = {"one": (4095, 0), "two": (511, 7), "through": (511, 7)}
"""vmemmap pages for a 1 GiB page and for each 2 MiB of it that is touched."""


class File:
    """``pages`` huge pages of one order on alternating nodes, present and private unless ``pool`` says otherwise."""

    def __init__(self, pages, backing, vmemmap, pool=None, populated=True, **chosen):
        options = np.zeros(fast.OPTIONS, np.int64)
        options[[fast.PAGES, fast.BACKING, fast.HVO]] = pages << backing, backing, chosen.get("hvo", True)
        options[fast.GENERATION] = GENERATIONS.index(chosen.get("generation", "C"))
        options[fast.SPLITTING] = STAGES.index(chosen.get("stages", "one"))
        options[fast.MERGING] = MERGES.index(chosen.get("merging", "eager"))
        each = np.zeros((2, 2), np.int64)
        each[:, int(backing == 18)] = [-(-pages // 2), pages // 2] if pool is None else pool
        self.vmemmap, self.pages, self.step = sum(vmemmap), pages, 4096 << backing
        self.huge = int(each.sum())
        self.state = fast.new_state(options, fast.new_host(vmemmap, ORDER, each))
        if populated:
            faults = [(fast.GUEST_FAULT, page * self.step, self.step, 1, page % 2) for page in range(pages)]
            assert self.run(*faults) == [(0, -1)] * pages

    def run(self, *operations):
        stream = np.zeros((len(operations), 6), np.int64)
        for row, operation in enumerate(operations):
            stream[row, : len(operation)] = operation
        errors, offsets = np.zeros(len(stream), np.int32), np.zeros(len(stream), np.int64)
        done = 0
        while done < len(stream):
            done = fast.run(self.state, stream, errors, offsets, *NOT_ASKED, done)
            self.state = self.state if done == len(stream) else fast.grown(self.state)
        return list(zip(errors.tolist(), offsets.tolist(), strict=True))

    def count(self, name):
        return int(self.state.counts[fast.COUNTERS.index(name)])

    def nothing_lost(self):
        state = self.state
        held = state.extra_2m.sum() + state.extra_1g.sum() + state.pool_extra.sum()
        assert state.vmemmap.sum() + held == self.vmemmap and (state.vmemmap >= 0).all()
        whole = state.whole_1g == 1
        small = (state.level != fast.NONE) & (state.level != fast.BASE) & ~np.repeat(whole, 512)
        assert state.pool.sum() + whole.sum() + small.sum() == self.huge
        shared = np.bitwise_count(state.shared).astype(np.int64)
        np.testing.assert_array_equal(state.shared_2m, shared.reshape(-1, 8).sum(axis=1))
        assert self.count("shared_pages") == shared.sum()
        assert self.count("mapped_2m") == np.sum((state.level == fast.HUGE_2M) & (state.shared_2m == 0))
        assert self.count("mapped_1g") == np.sum((state.level[::512] == fast.HUGE_1G) & (state.shared_1g == 0))


def split_over_nodes(free):
    """A third on node 0, the rest on node 1: conversions of pages on both nodes spill."""
    return [free // 3, free - free // 3]


# ------------------------------------------------------------------------------- 2 MiB, page by page, every number


@pytest.mark.parametrize(("generation", "stages", "merging"), SETTINGS)
def test_2m_with_every_number_of_free_vmemmap_pages(generation, stages, merging):
    """From the middle of one 2 MiB page to the middle of the third, and back: the reference page by page."""
    pages, first, last = 3, 100, 2 * 512 + 300
    values = [0, 6, 7, 14, 20, 21] if JIT_DISABLED else range(7 * pages + 2)
    for hvo, free in [(True, free) for free in values] + [(False, 0)]:
        vmemmap = split_over_nodes(free)
        chosen = {"generation": generation, "stages": stages, "merging": merging, "hvo": hvo}
        file = File(pages, 9, vmemmap, **chosen)
        pools = {(node, size): [] for node in (0, 1) for size in (512, 512 * 512)}
        for page in range(pages):
            pools[page % 2, 512].append(slow.Block(-1, 512, page % 2))
        host = slow.Host(list(vmemmap), ORDER, pools)
        model = slow.File(
            pages * 512, 512, generation, host, stages != "one", stages == "through", merging=merging, hvo=hvo
        )
        for page in range(pages):
            assert model.operate("guest_fault", page << 21, 1 << 21, True, page % 2, 0) == (0, -1)
        span = (first * 4096, (last - first) * 4096)
        for to_shared in (True, False):
            [got] = file.run((fast.CONVERT, *span, int(to_shared)))
            assert got == model.operate("convert", *span, to_shared)
            file.nothing_lost()
            bits = np.unpackbits(file.state.shared.view(np.uint8), bitorder="little")[: pages * 512]
            np.testing.assert_array_equal(bits, [page.shared for page in model.pages])
            assert file.state.vmemmap.tolist() == model.host.vmemmap
            assert file.count("mapped_2m") == model.mappable(512)
            for name in ("splits_2m", "merges_2m", "unoptimised_merges", "rollbacks", "private_pages_lost"):
                assert file.count(name) == model.total[name], (name, free)
            if to_shared:
                converted = pages if not hvo else free // 7
                if converted >= pages:
                    assert got == (0, -1) and bits.sum() == last - first
                elif generation == "B":
                    assert got == (errno.ENOMEM, -1) and bits.sum() == 0
                else:
                    assert got == (errno.ENOMEM, max(first * 4096, converted << 21))
                    assert bits.sum() == max(0, converted * 512 - first)


# ------------------------------------------------------------------------------- 1 GiB, wherever the outcome changes


def turning_points(stages, touched):
    """Numbers of free pages around which a conversion of so many 2 MiB in each 1 GiB page ends differently."""
    whole, part = NEED[stages]
    points, before = {0, 4095}, 0
    for parts in touched:
        inside = [before, before + whole]
        if part and not JIT_DISABLED:
            inside += [before + whole + part * k for k in (*range(3), *range(3, parts, 41), parts - 1, parts)]
        before += whole + part * parts
        points |= {*inside, before}
        if stages == "through":
            points.add(before + 4095)
    near = 0 if JIT_DISABLED else 1
    return sorted({max(0, point + d) for point in points for d in range(-near, near + 1)})


@pytest.mark.parametrize(("generation", "stages", "merging"), SETTINGS)
def test_1g_wherever_the_number_of_free_vmemmap_pages_matters(generation, stages, merging):
    """From the middle of one 1 GiB page to a quarter of the third, and back; the reference 2 MiB by 2 MiB."""
    first, end = 256, 1024 + 128
    touched = (256, 512, 128)
    needed = sum(NEED[stages][0] + NEED[stages][1] * parts for parts in touched)
    points = turning_points(stages, touched)
    assert points[0] == 0 and points[-1] >= needed
    for hvo, free in [(True, free) for free in points] + [(False, 0)]:
        vmemmap = split_over_nodes(free)
        chosen = {"generation": generation, "stages": stages, "merging": merging, "hvo": hvo}
        file, model = File(3, 18, vmemmap, **chosen), Blocks(512, [0, 1, 0], list(vmemmap), ORDER, **chosen)
        for to_shared in (True, False):
            [got] = file.run((fast.CONVERT, first << 21, (end - first) << 21, int(to_shared)))
            error, block = model.convert(first, end, to_shared)
            assert got == (error, -1 if block is None else block << 21), free
            file.nothing_lost()
            state = file.state
            np.testing.assert_array_equal(state.shared_2m, np.where(model.shared, 512, 0))
            assert [NAME[level] for level in state.level.tolist()] == model.level
            assert state.vmemmap.tolist() == model.vmemmap
            for name in ("splits_1g", "splits_2m", "merges_1g", "merges_2m"):
                assert file.count(name) == model.total[name], (name, free)
            assert file.count("unoptimised_merges") == model.total["unoptimised"]
            if to_shared and generation == "B":
                assert file.count("shared_pages") in (0, (end - first) * 512)
            if to_shared and stages != "through":
                assert (error == 0) == (not hvo or free >= needed)


@pytest.mark.skipif(JIT_DISABLED, reason="compiled, every number of pages takes two seconds")
@pytest.mark.parametrize("generation", GENERATIONS)
def test_1g_with_every_number_of_free_vmemmap_pages(generation):
    """One 4 KiB page in each of two 1 GiB pages: nothing happens at any number but 4095 and 8190."""
    for free in range(2 * 4095 + 2):
        file = File(2, 18, split_over_nodes(free), generation=generation)
        [got] = file.run((fast.CONVERT, (1 << 30) - 4096, 8192, 1))
        if free >= 8190:
            assert got == (0, -1) and file.count("shared_pages") == 2 and file.count("splits_1g") == 2
        elif generation == "B":
            assert got == (errno.ENOMEM, -1) and file.count("shared_pages") == 0
            # with nothing left to start with, the page that was split is whole again but unoptimised
            assert file.count("unoptimised_merges") == (free == 4095)
        else:
            done = free >= 4095
            assert got == (errno.ENOMEM, (1 << 30) - 4096 * (not done)) and file.count("shared_pages") == done
        if free % 64 == 0 or free % 4095 in (0, 1, 4094):
            file.nothing_lost()


# ------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("backing", [9, 18], ids=["2M", "1G"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_faults_with_every_number_of_pool_pages(backing, generation):
    """Pages on alternating nodes until a pool is empty; what was punched can be faulted in again."""
    pages, size = 5, int(backing == 18)
    for pool in product(range(4), range(3)):
        file = File(pages, backing, [0, 0], pool, populated=False, generation=generation)
        left, got, expected = list(pool), [], []
        for page in range(pages):
            got += file.run((fast.GUEST_FAULT, page * file.step + 4096, 4096, 1, page % 2))
            expected.append((0, -1) if left[page % 2] else (errno.ENOMEM, page * file.step + 4096))
            left[page % 2] -= left[page % 2] > 0
        assert got == expected
        assert file.state.pool[:, size].tolist() == left
        assert file.count("present_pages") == sum(error == 0 for error, _ in got) << backing
        file.nothing_lost()
        missing = [page for page in range(pages) if got[page][0]]
        for page in range(pages):
            assert file.run((fast.PUNCH, page * file.step, file.step)) == [(0, -1)]
        assert file.state.pool[:, size].tolist() == list(pool) and file.count("present_pages") == 0
        for page in missing:
            expected = (0, -1) if pool[page % 2] else (errno.ENOMEM, page * file.step)
            assert file.run((fast.GUEST_FAULT, page * file.step, 4096, 1, page % 2)) == [expected]
            file.run((fast.PUNCH, page * file.step, file.step))
        file.nothing_lost()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("backing", "stages"), [(9, "one"), (18, "one"), (18, "two"), (18, "through")])
def test_fresh_page_under_shared_memory_with_every_number_of_free_vmemmap_pages(backing, stages, generation):
    """A fault that cannot split the fresh huge page gives it back (B) or leaves it; with memory the same fault succeeds."""
    need = 7 if backing == 9 else 4095 if stages == "one" else 511 + 2 * 7
    must = 4095 if stages == "through" else need
    values = range(need + 2) if backing == 9 else [0, 1, 510, 511, 517, 518, 524, 525, 526, 4094, 4095, 4096]
    for free in values:
        file = File(1, backing, split_over_nodes(free), [0, 1], populated=False, stages=stages, generation=generation)
        parts = [0] if backing == 9 else [3 << 21, 9 << 21]
        assert file.run(*((fast.CONVERT, part + 4096, 4096, 1) for part in parts)) == [(0, -1)] * len(parts)
        [got] = file.run((fast.GUEST_FAULT, 0, 4096, 1, 1))
        file.nothing_lost()
        if free >= must:
            assert got == (0, -1) and sum(file.state.vmemmap) == free - need and file.state.pool.sum() == 0
            assert file.state.level[parts[-1] >> 21] == fast.SPLIT
        else:
            kept = generation == "C"
            assert got == (errno.ENOMEM, 0) and file.count("present_pages") == (kept << backing)
            assert file.state.pool.sum() == 1 - kept and (stages == "two" or sum(file.state.vmemmap) == free)
            file.state.vmemmap[1] += 4095
            file.vmemmap += 4095
            assert file.run((fast.GUEST_FAULT, 0, 4096, 1, 1)) == [(0, -1)]
            file.nothing_lost()


def test_unoptimised_page_of_the_pool_in_two_stages():
    """Given back with no vmemmap page free it stays unoptimised; another file splits it without taking any."""
    left_over = File(1, 18, split_over_nodes(4095))
    assert left_over.run((fast.CONVERT, 0, 4096, 1), (fast.PUNCH, 0, 1 << 30)) == [(0, -1)] * 2
    host = left_over.state.host
    assert left_over.state.pool_full.tolist() == [[0, 1], [0, 0]] and host[:, fast.FREE].sum() == 0
    file = File(1, 18, [0, 4095], populated=False, stages="two")
    file.state = file.state._replace(host=host)
    shared, private = (fast.CONVERT, 3 << 21, 4096, 1), (fast.CONVERT, 3 << 21, 4096, 0)
    assert file.run((fast.GUEST_FAULT, 0, 4096, 1), shared) == [(0, -1)] * 2
    file.nothing_lost()
    state = file.state
    assert host[:, fast.FREE].sum() == 0 and state.full_2m.all() and not state.full_1g.any()
    assert state.extra_1g.sum() == 511 and (state.extra_2m.sum(axis=1) == 7).all()
    assert file.run(private) == [(0, -1)]
    file.nothing_lost()
    assert host[:, fast.FREE].tolist() == split_over_nodes(4095) and file.count("mapped_1g") == 1

"""Runs in blocks against a dictionary of pages: every change in any order, and what can be asked in between."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.scale import examples
from workbench.engine.runs import Runs
from workbench.intervals import true_intervals
from workbench.kernels import runs as kernels

PAGES = 60


def listed(pages: dict[int, int], start: int, end: int) -> list[list[int]]:
    """Runs of one value; runs of the table may be parts of them."""
    out: list[list[int]] = []
    for page in sorted(page for page in pages if start <= page < end):
        if out and out[-1][0] + out[-1][1] == page and out[-1][2] == pages[page]:
            out[-1][1] += 1
        else:
            out.append([page, 1, pages[page]])
    return out


def merged(runs: np.ndarray) -> list[list[int]]:
    pages = {page: value for first, count, value in runs.tolist() for page in range(first, first + count)}
    assert len(pages) == runs[:, 1].sum()
    assert (np.diff(runs[:, 0]) > 0).all()
    return listed(pages, 0, PAGES)


def check(runs: Runs, pages: dict[int, int], start: int, end: int) -> None:
    assert merged(runs.all()) == listed(pages, 0, PAGES)
    assert merged(runs.cut(start, end)) == listed(pages, start, end)
    absent = [page for low, high in runs.gaps(start, end).tolist() for page in range(low, high)]
    assert absent == [page for page in range(start, end) if page not in pages]
    assert kernels.pages_in(runs.room(0), start, end) == sum(start <= page < end for page in pages)
    assert [runs.value_at(page) for page in range(PAGES + 1)] == [pages.get(page, -1) for page in range(PAGES + 1)]
    assert runs.any(start, end) == any(start <= page < end for page in pages)
    assert len(runs) == len(runs.all())
    assert runs.end() == max(pages, default=-1) + 1


SPANS = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(sorted)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["enter", "enter", "reverse", "erase"]), SPANS, SPANS), max_size=40))
def test_entered_and_erased(changes: list[tuple[str, list[int], list[int]]]) -> None:
    runs, pages, rows = Runs(), dict[int, int](), np.empty((0, 5), np.int64)
    for kind, (start, end), (low, high) in changes:
        if kind == "erase":
            assert runs.erase(start, end) == sum(start <= page < end for page in pages)
            for page in range(start, end):
                pages.pop(page, None)
        else:
            step = 1 if kind == "enter" else -1
            before = len(rows)
            for first, last in runs.gaps(start, end).tolist():
                row = len(rows)
                rows = np.concatenate((rows, [[first if step > 0 else last - 1, last - first, step, 0, 1]]))
                pages |= dict.fromkeys(range(first, last), row)
            runs.enter(rows, before, len(rows))
        check(runs, pages, low, high)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.booleans(), SPANS, SPANS), max_size=40))
def test_joined_runs_touch_no_other(changes: list[tuple[bool, list[int], list[int]]]) -> None:
    runs, pages = Runs(), dict[int, int]()
    for joins, (start, end), (low, high) in changes:
        if joins:
            assert runs.join(start, end) == sum(page not in pages for page in range(start, end))
            pages |= dict.fromkeys(range(start, end), 0)
        else:
            runs.erase(start, end)
            for page in range(start, end):
                pages.pop(page, None)
        check(runs, pages, low, high)
        assert runs.all().tolist() == listed(pages, 0, PAGES)


@pytest.mark.parametrize("order", ["up", "down", "any"])
def test_many_blocks(order: str) -> None:
    """Blocks are split, filled and set aside."""
    count = examples(4 * kernels.BLOCK)
    starts = 3 * np.arange(count)
    if order == "down":
        starts = starts[::-1]
    elif order == "any":
        starts = np.random.default_rng(1).permutation(starts)
    rows = np.column_stack((starts, np.full(count, 2), np.ones(count), np.zeros(count), np.ones(count))).astype(
        np.int64
    )
    runs = Runs()
    for row in range(count):
        runs.enter(rows, row, row + 1)
    by_start = np.argsort(starts)
    np.testing.assert_array_equal(runs.all()[:, 0], starts[by_start])
    np.testing.assert_array_equal(runs.all()[:, 2], by_start)
    assert len(runs.gaps(0, 3 * count)) == count
    middle = 3 * (count // 2)
    runs.erase(7, middle)
    assert runs.all()[:, 0].tolist() == [0, 3, 6, *range(middle, 3 * count, 3)]
    assert runs.cut(7, middle).tolist() == []
    runs.erase(0, 3 * count)
    assert len(runs) == 0 and runs.end() == 0 and runs.gaps(1, 5).tolist() == [[1, 5]]
    runs.join(4, 9)
    assert runs.all().tolist() == [[4, 5, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_many_blocks_at_random(seed: int) -> None:
    """Against a flag for each page: so many runs that changes reach over several blocks."""
    random = np.random.default_rng(seed)
    pages = examples(20 * kernels.BLOCK)
    runs, flags = Runs(), np.zeros(pages, bool)
    for page in random.permutation(pages)[: pages // 2].tolist():
        runs.join(page, page + 1)
        flags[page] = True
    for _ in range(examples(400)):
        start = int(random.integers(pages))
        end = min(pages, start + int(random.integers(1, 3 if random.random() < 0.7 else pages // 3)))
        if random.random() < 0.5:
            runs.join(start, end)
            flags[start:end] = True
        else:
            runs.erase(start, end)
            flags[start:end] = False
        where = int(random.integers(pages))
        assert runs.any(where, end) == flags[where:end].any()
        low, high = sorted(random.integers(0, pages, 2).tolist())
        np.testing.assert_array_equal(runs.cut(low, high)[:, 0], true_intervals(flags[low:high], low)[:, 0])
        np.testing.assert_array_equal(runs.gaps(low, high), true_intervals(~flags[low:high], low))
    np.testing.assert_array_equal(runs.all()[:, :2].sum(axis=1), true_intervals(flags)[:, 1])
    again = Runs()
    again.replace(runs.all())
    np.testing.assert_array_equal(again.all(), runs.all())
    again.erase(5, pages // 2)
    again.join(0, 1)
    runs.erase(5, pages // 2)
    runs.join(0, 1)
    np.testing.assert_array_equal(again.all(), runs.all())


def test_runs_of_two_threads_do_not_mix() -> None:
    """Kernels let go of the interpreter's lock: what one of them has found is nobody else's to overwrite."""
    wrong: list[list[list[int]]] = []

    def ask(first: int) -> None:
        runs = Runs()
        for page in range(40):
            runs.join(first + 2 * page, first + 2 * page + 1)
        wanted = [[first + 2 * page + 1, first + 2 * page + 2] for page in range(39)]
        for _ in range(examples(2000)):
            found = runs.gaps(first, first + 79).tolist()
            if found != wanted or runs.pages_missing(first, first + 79) != 39:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

"""The four offset -> pfn structures agree with a dictionary and with each other, and take the memory Linux's would."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numba.core import config

from reference.compiled import reference_count_calls
from reference.pagemap import DictMap, xarray_nodes
from reference.scale import AS_PEOPLE_RUN_THEM, examples
from workbench.errors import WorkbenchError
from workbench.kernels.maps import flat_table, maple, pagemap, range_table, xarray_map
from workbench.kernels.maps.xarray_map import node_count
from workbench.tracking.offset_maps import STRUCTURES, FlatMap, MapleMap, RangeMap, XarrayMap, offset_map

CONSTANTS = json.loads((Path(__file__).parents[2] / "datasets" / "linux" / "constants.json").read_text())
TRACKERS = {key: entry["value"] for key, entry in CONSTANTS["trackers"].items()}
GIB = 1 << 18
PAGES = 1 << 12


def check_xarray(tree: XarrayMap) -> None:
    """Walk every node: slot counts, sibling entries, parents, and that no node is lost or counted twice."""
    slots, header, top = tree._slots, tree._header, tree._top
    seen = 0
    entries = 0
    head = int(top[xarray_map.HEAD])
    if head & 3 == 2:
        stack = [((head >> 2) - 64, -1, 0)]
        while stack:
            node, parent, offset = stack.pop()
            seen += 1
            shift = header[node, xarray_map.SHIFT]
            assert header[node, xarray_map.PARENT] == parent
            assert parent < 0 or header[node, xarray_map.OFFSET] == offset
            used = [slot for slot in range(64) if slots[node, slot] != 0]
            assert header[node, xarray_map.COUNT] == len(used) > 0
            for slot in used:
                entry = int(slots[node, slot])
                if entry & 1:
                    entries += 1
                elif entry < 256:
                    assert entry >> 2 < slot and slots[node, entry >> 2] & 1
                else:
                    child = (entry >> 2) - 64
                    assert header[child, xarray_map.SHIFT] == shift - 6
                    stack.append((child, node, slot))
    elif head:
        entries = 1
    assert seen == top[xarray_map.NODES]
    assert entries == top[xarray_map.ENTRIES]


def check_maple(tree: MapleMap) -> None:
    """Walk every node: fill, rising pivots inside the parent's range, equal depth, maximal NULL ranges, counts."""
    nodes, top = tree._nodes, tree._top
    height = int(top[maple.HEIGHT])
    if height == 0:
        assert top[maple.NODES] == 0
        return
    seen = 0
    ranges: list[tuple[int, int, int]] = []

    def walk(node: int, level: int, low: int, high: int) -> None:
        nonlocal seen
        seen += 1
        count = int(nodes[node, 0])
        assert count <= maple.SLOTS
        assert level == 0 or count >= maple.MIN_SLOTS
        assert level > 0 or count >= 2 or height == 1
        for slot in range(count):
            last = int(nodes[node, 1 + slot]) if slot < count - 1 else high
            assert low <= last <= high
            entry = int(nodes[node, 16 + slot])
            if level == height - 1:
                ranges.append((low, last, entry))
            else:
                walk(entry, level + 1, low, last)
            low = last + 1

    walk(int(top[maple.ROOT]), 0, 0, maple.MAX_INDEX)
    assert seen == top[maple.NODES]
    assert sum(1 for _, _, entry in ranges if entry) == top[maple.ENTRIES]
    for (_, last, entry), (start, _, following) in itertools.pairwise(ranges):
        assert start == last + 1
        assert entry != 0 or following != 0
    low, high = pagemap.maple_node_bounds(len(ranges))
    assert low <= seen <= high


class MapMachine(RuleBasedStateMachine):
    """Insert, erase, split, merge at random on all four structures and a dictionary."""

    @initialize()
    def start(self) -> None:
        self.model = DictMap()
        self.maps = {name: offset_map(name, PAGES, max_order=12) for name in STRUCTURES}
        self.next_pfn = 1 << 20

    def ranges(self, data: tuple[int, int]) -> tuple[int, int]:
        start = min(data[0], PAGES - 1)
        return start, min(data[1], PAGES - start)

    RANGE = st.tuples(
        st.one_of(st.integers(0, PAGES - 1), st.integers(0, 7).map(lambda k: k * 512), st.integers(0, 40)),
        st.one_of(st.integers(1, 70), st.sampled_from([1, 64, 512, 1024, PAGES])),
    )

    @rule(where=RANGE, contiguous=st.booleans())
    def insert(self, where: tuple[int, int], contiguous: bool) -> None:
        start, pages = self.ranges(where)
        before = self.model.lookup(start - 1)
        pfn = before + 1 if contiguous and before >= 0 else self.next_pfn
        self.next_pfn += pages + 3
        self.model.insert(start, pages, pfn)
        for tree in self.maps.values():
            tree.insert(start, pages, pfn)

    @rule(where=RANGE)
    def erase(self, where: tuple[int, int]) -> None:
        start, pages = self.ranges(where)
        self.model.erase(start, pages)
        for tree in self.maps.values():
            tree.erase(start, pages)

    @precondition(lambda self: self.model.pfn)
    @rule(data=st.data(), order=st.integers(0, 9))
    def split(self, data: st.DataObject, order: int) -> None:
        index = data.draw(st.sampled_from(sorted(self.model.pfn)[:200]))
        for name, tree in self.maps.items():
            whole = tree.entry_from(index)
            assert whole is not None
            if name == "xarray":  # the only one with orders; the others cut anything
                try:
                    assert tree.split(index, order) >= 1
                except WorkbenchError:
                    continue
                assert 1 << order == next(e.pages for e in tree.entries() if e.start <= index < e.start + e.pages)
            elif name == "flat":
                assert tree.split(index, order) == 1
            else:
                end = whole.start + whole.pages
                borders = [whole.start, *range((whole.start >> order) + 1 << order, end, 1 << order), end]
                assert tree.split(index, order) == len(borders) - 1
                pieces = [e for e in tree.entries() if whole.start <= e.start < end]
                assert [e.start for e in pieces] == borders[:-1]
                assert sum(e.pages for e in pieces) == whole.pages

    @rule(start=st.integers(0, 7), order=st.integers(0, 11))
    def merge(self, start: int, order: int) -> None:
        pages = 1 << order
        first = start * 512 // pages * pages
        whole = all(
            self.model.lookup(first + k) == self.model.lookup(first) + k and self.model.lookup(first) >= 0
            for k in range(pages)
        )
        for name, tree in self.maps.items():
            if whole:
                outer = name == "xarray" and any(
                    e.start < first or e.start + e.pages > first + pages
                    for e in tree.entries()
                    if e.start < first + pages and e.start + e.pages > first
                )
                if not outer:
                    before = len([e for e in tree.entries() if e.start < first + pages and e.start + e.pages > first])
                    assert tree.merge(first, pages) == before
                    if name != "flat":
                        assert tree.entry_from(first) == (first, pages, self.model.lookup(first))
            else:
                with pytest.raises(WorkbenchError):
                    tree.merge(first, pages)

    @rule(index=st.integers(0, PAGES))
    def find(self, index: int) -> None:
        """Iteration may begin anywhere: the entry that holds the index, or the first one after it."""
        following = min((page for page in self.model.pfn if page >= index), default=-1)
        for tree in self.maps.values():
            entry = tree.entry_from(index)
            if entry is None:
                assert following == -1
                continue
            at = max(entry.start, index)
            assert at == following < entry.start + entry.pages
            assert entry.pfn + at - entry.start == self.model.lookup(at)

    @invariant()
    def agree(self) -> None:
        expected = self.model.extents()
        probes = np.unique(
            np.clip([p for s, n, _ in expected for p in (s - 1, s, s + n // 2, s + n - 1, s + n)] + [0], 0, PAGES - 1)
        )
        answers = np.array([self.model.lookup(int(p)) for p in probes])
        for tree in self.maps.values():
            assert [tuple(e) for e in tree.extents()] == expected
            np.testing.assert_array_equal(tree.lookup(probes), answers)
        xarray = self.maps["xarray"]
        assert isinstance(xarray, XarrayMap)
        check_xarray(xarray)
        entries = [(e.start, e.pages.bit_length() - 1) for e in xarray.entries()]
        assert xarray.nodes == xarray_nodes(entries)
        tree = self.maps["maple"]
        assert isinstance(tree, MapleMap)
        check_maple(tree)


TestMapMachine = MapMachine.TestCase
TestMapMachine.settings = settings(max_examples=examples(20, without_jit=3), stateful_step_count=30)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(15, without_jit=2))
def test_long_random_streams_agree(seed: int) -> None:
    """Thousands of operations, so that trees of several levels grow and shrink again."""
    rng = np.random.default_rng(seed)
    pages = 1 << (12 if config.DISABLE_JIT else 16)
    operations = 400 if config.DISABLE_JIT else 3000
    start = rng.integers(0, pages, operations)
    length = np.minimum(np.where(rng.random(operations) < 0.9, rng.integers(1, 20, operations), 3000), pages - start)
    pfn = np.where(rng.random(operations) < 0.7, rng.integers(0, 1 << 40, operations), -1)
    stream = np.stack([start, length, pfn], axis=1)
    maps = [offset_map(name, pages, max_order=9) for name in STRUCTURES]
    everything = np.arange(pages)
    expected = np.full(pages, -1)
    for part in np.array_split(stream, 5):
        for s, n, p in part:
            expected[s : s + n] = p + np.arange(n) if p >= 0 else -1
        for tree in maps:
            tree.run(part)
            np.testing.assert_array_equal(tree.lookup(everything), expected)
        check_xarray(maps[0])  # type: ignore[arg-type]
        check_maple(maps[1])  # type: ignore[arg-type]
    for tree in maps:
        tree.erase(0, pages)
        assert list(tree.entries()) == []
    assert maps[0].nodes == maps[1].nodes == maps[2].nodes == 0


@pytest.mark.parametrize(("gib", "row"), [(1, "1GiB"), (64, "64GiB"), (1024, "1TiB")])
def test_xarray_nodes_in_closed_form(gib: int, row: str) -> None:
    assert [node_count(gib * GIB, order) for order in (0, 9, 18)] == TRACKERS["xa_nodes_table"][row]


@pytest.mark.parametrize(
    ("pages", "order"), [(GIB, 0), (GIB, 9), (GIB, 18), (16 * GIB, 9), (64 * GIB, 18), (1024 * GIB, 18), (5 * 512, 9)]
)
def test_a_filled_xarray_has_that_many_nodes(pages: int, order: int) -> None:
    if config.DISABLE_JIT and pages >> order > 100000:
        pytest.skip("takes minutes as plain Python")
    tree = XarrayMap(pages, max_order=order)
    tree.insert(0, pages, 1 << 30)
    assert tree.nodes == node_count(pages, order)
    assert tree.bytes == tree.nodes * TRACKERS["xa_node_bytes"]


@pytest.mark.parametrize(("order", "depth"), [(0, 5), (9, 4), (18, 2)])
def test_xarray_depth_in_a_file_of_1_tib(order: int, depth: int) -> None:
    tree = XarrayMap(1024 * GIB, max_order=order)
    tree.insert(1023 * GIB, GIB, 1 << 30)
    assert tree.depth(1024 * GIB - 1) == depth


def test_nodes_added_by_a_split() -> None:
    added = TRACKERS["xa_split_added_nodes"]
    tree = XarrayMap(1024 * GIB, max_order=18)
    tree.insert(0, 1024 * GIB, 0)
    whole = tree.nodes
    with pytest.raises(WorkbenchError, match="xas_split"):
        tree.split(7 * GIB, 0)
    with pytest.raises(WorkbenchError, match="xas_split"):
        tree.split(7 * GIB, 9)
    assert tree.nodes == whole
    assert tree.split(7 * GIB, 12) == 64
    for block in range(64):
        assert tree.split(7 * GIB + block * 4096, 9) == 8
    assert tree.nodes - whole == added["1G_to_2M"]
    before = tree.nodes
    assert tree.split(7 * GIB, 0) == 512
    assert tree.nodes - before == added["2M_to_4K"]
    for block in range(1, 512):
        tree.split(7 * GIB + block * 512, 0)
    assert tree.nodes - whole == added["1G_to_4K"]
    assert tree.merge(7 * GIB, GIB) == GIB
    assert tree.nodes == whole


def test_worst_case_of_a_maple_tree_lies_between_its_bounds() -> None:
    """Every other 4 KiB of 1 GiB mapped elsewhere: 16384 + 1024 + 64 + 4 nodes and the root at least."""
    low, high = pagemap.maple_node_bounds(GIB)
    assert low == 16384 + 1024 + 64 + 4 + 1
    if config.DISABLE_JIT:
        pytest.skip("262,144 stores take minutes as plain Python")
    index = np.arange(0, GIB, 1)
    stream = np.stack([index, np.ones_like(index), (index % 2) * (1 << 30) + index], axis=1)
    tree = MapleMap(GIB)
    tree.run(stream)
    low, high = pagemap.maple_node_bounds(GIB + 1)  # and the NULL range behind the file
    assert low <= tree.nodes <= high
    check_maple(tree)
    assert tree.bytes == tree.nodes * TRACKERS["maple_node_bytes"]
    ranges = RangeMap(GIB)
    ranges.run(stream)
    assert ranges.bytes == 24 * GIB
    assert FlatMap(GIB).bytes == TRACKERS["flat_bytes_per_GiB_4K"]


def test_one_range_takes_one_maple_node_and_an_empty_tree_none() -> None:
    tree = MapleMap(GIB)
    assert tree.nodes == 0
    tree.insert(0, GIB, 0)
    assert (tree.nodes, tree.depth(0)) == (1, 1)
    tree.erase(0, GIB)
    assert tree.nodes == 0


@pytest.mark.parametrize("name", STRUCTURES)
def test_bad_ranges_are_refused(name: str) -> None:
    tree = offset_map(name, 64)
    for start, pages in ((-1, 2), (0, 0), (60, 5)):
        with pytest.raises(WorkbenchError, match="not inside"):
            tree.insert(start, pages, 0)
    with pytest.raises(WorkbenchError, match="negative"):
        tree.insert(0, 1, -5)
    with pytest.raises(WorkbenchError, match="contiguously"):
        tree.merge(0, 2)


def test_unknown_structure() -> None:
    with pytest.raises(WorkbenchError, match="btree"):
        offset_map("btree", 64)


def test_directory_answers_as_binary_search_does() -> None:
    rng = np.random.default_rng(3)
    tree = RangeMap(1 << 16)
    for start in range(0, 1 << 16, 37):
        if rng.random() < 0.7:
            tree.insert(start, min(int(rng.integers(1, 37)), (1 << 16) - start), int(rng.integers(0, 1 << 30)))
    directory = np.empty((1 << 16 >> range_table.DIRECTORY_SHIFT) + 1, np.int32)
    range_table.fill_directory(tree._columns[0], tree._top, directory)
    indices = rng.integers(0, 1 << 16, 5000)
    out = np.empty_like(indices)
    range_table.load_many_directory(*tree._columns, directory, indices, out)
    np.testing.assert_array_equal(out, tree.lookup(indices))


@pytest.mark.skipif(not AS_PEOPLE_RUN_THEM, reason="kernels are not compiled as people run them")
@pytest.mark.parametrize("name", STRUCTURES)
def test_kernels_count_no_references(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = offset_map(name, 64)
    tree.insert(0, 64, 100)
    stream, indices, out = np.array([[3, 2, 7]]), np.arange(4), np.empty(4, np.int64)
    calls: list[tuple[Any, ...]]
    if isinstance(tree, XarrayMap):
        nodes = (tree._slots, tree._header, tree._top)
        calls = [
            (pagemap.run_xarray, stream, 0, 9, *nodes, tree._found),
            (xarray_map.load_many, *nodes, indices, out),
            (xarray_map.split, *nodes, 0, 0, tree._found),
            (xarray_map.merge, *nodes, 0, 1, tree._found),
        ]
    elif isinstance(tree, MapleMap):
        maple_nodes = (tree._nodes, tree._top)
        calls = [
            (pagemap.run_maple, stream, 0, *maple_nodes, tree._found, tree._path),
            (maple.load_many, *maple_nodes, indices, out),
            (maple.split, *maple_nodes, 0, 0, tree._found, tree._path),
        ]
    elif isinstance(tree, RangeMap):
        directory = np.zeros(4, np.int32)
        calls = [
            (pagemap.run_ranges, stream, 0, *tree._columns, tree._top),
            (range_table.load_many, *tree._columns, tree._top, indices, out),
            (range_table.split, *tree._columns, tree._top, 0, 5),
            (range_table.load_many_directory, *tree._columns, directory, indices, out),
        ]
    else:
        assert isinstance(tree, FlatMap)
        calls = [
            (pagemap.run_flat, stream, 0, tree._table),
            (flat_table.load_many, tree._table, 0, indices, out),
        ]
    for kernel, *arguments in calls:
        assert reference_count_calls(monkeypatch, kernel, *arguments) == 0

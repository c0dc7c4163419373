"""Maple trees of guest_memfd files as metadata: how many nodes, who holds them, and that their pages come from zones."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.engine import calls
from workbench.engine.generators import expand
from workbench.engine.kernel_pages import KINDS, LIGHT_MAP, STATE_TREE
from workbench.engine.range_trees import MapleSlab, SharedNodes, nodes_of
from workbench.engine.system import System
from workbench.tracking.light_file import LightFile
from workbench.tracking.offset_maps import MapleMap
from workbench.units import PAGE_SIZE

GIB, MIB = 1 << 30, 1 << 20
HOST = {
    "name": "two",
    "nodes": [{"id": i, "memory_bytes": 2 * GIB, "cpus": [i]} for i in range(2)],
    "distances": [[10, 20], [20, 10]],
}


def scenario(operations, *, design="pfn-range", memory="64 MiB", metadata="counted", boot=None, **guest) -> wb.Scenario:
    tasks = [{"name": "t0", "cpu": 0}, {"name": "t1", "cpu": 1}]
    return wb.Scenario.from_mapping(
        {"host": HOST, "guest": {"memory": memory, "design": design, "vm_type": "snp"} | guest, "tasks": tasks,
         "metadata": metadata, "operations": operations, "boot": boot or {}}
    )  # fmt: skip


def run(given: wb.Scenario) -> System:
    """A scenario call by call, with what follows after each."""
    system = System(given)
    for operation in expand(given):
        assert not calls.apply(system, operation).errno
        assert system.metadata is not None
        system.metadata.settle(system.task(operation), None)
    return system


@pytest.mark.parametrize("holes", [False, True])
def test_nodes_are_those_of_a_tree_filled_in_ascending_order(holes):
    """A range that follows another one directly is one slot more, one behind a hole two; a hole follows the last."""
    tree, step = MapleMap(1 << 20), 1 + holes
    for number in range(1500):
        tree.insert(number * step, 1, 7 * number)
        assert tree.nodes == nodes_of((number + 1) * step + (not holes)), number


@pytest.mark.parametrize("mode", ["bind", "interleave"])
def test_a_light_map_is_counted_as_the_file_that_converts_has_it(mode):
    """Faults in pieces, holes between them, some pages of a stretch later than others."""
    faults = [(0, 8), (24, 8), (8, 4), (40, 1), (36, 3), (39, 1)]
    operations = [
        {"op": "create"},
        {"op": "set_mempolicy", "task": "t1", "mode": mode, "nodes": "0-1" if mode == "interleave" else "1"},
        *(
            {"op": "fault", "by": "guest", "task": "t1", "offset": at * MIB, "length": size * MIB}
            for at, size in faults
        ),
    ]
    known = {"op": "convert", "to": "private", "offset": 0, "length": PAGE_SIZE}
    plain = wb.simulate(scenario(operations))["metadata_pages"].sel(kind="light_map").values
    tracked = wb.simulate(scenario([*operations, known]))["metadata_pages"].sel(kind="light_map").values
    assert plain[2:, 1].all() and not plain[:, 0].any(), "by the CPU of the task that allocates"
    if mode == "bind":
        np.testing.assert_array_equal(plain, tracked[:-1])
    else:  # an extent for each page: stores into the middle leave other nodes than stores in order
        assert plain[-1, 1] > 20
        assert (np.abs(plain - tracked[:-1]) <= 0.45 * tracked[:-1] + 1).all()


def test_each_folio_that_is_punched_or_placed_later_counts_as_when_all_is_looked_at():
    """What faults add piece by piece is what the whole file has."""
    operations = [{"op": "create"}]
    pages = np.random.default_rng(3).permutation(300)
    for number, page in enumerate(pages.tolist()):
        one = {"offset": page * PAGE_SIZE, "length": PAGE_SIZE * (1 + page % 3)}
        operations.append({"op": "fault", "by": "guest", "task": "t0", **one})
        if number % 7 == 3:
            operations.append({"op": "punch_hole", **one})
        if number % 50 == 49:
            operations.append({"op": "mbind", "mode": "interleave", "nodes": "0-1", **one})
    system = run(scenario(operations))
    (inode,) = system.inodes()
    tree = system.metadata.light_map(inode)
    counted = tree.ranges
    tree.stale = True
    tree.wanted()
    assert tree.ranges == counted > 100


@pytest.mark.parametrize("design", ["hugetlb", "thp", "pfn-range"])
def test_the_state_tree_has_a_range_for_each_stretch_of_one_state(design):
    boot = {} if design == "thp" else {"hugetlb_pages": {0: 40, 1: 40}}
    stream = {"op": "convert_stream", "stream": "uniform_random", "count": 60, "every": 20, "seed": 1}
    single = [
        {"op": "convert", "to": to, "offset": at * PAGE_SIZE, "length": pages * PAGE_SIZE, "task": "t1"}
        for to, at, pages in (("shared", 0, 1), ("shared", 63, 2), ("shared", 200, 400), ("private", 256, 64))
    ]
    operations = [{"op": "create"}, {"op": "fault", "by": "guest", "task": "t1"}, *single, stream]
    system = run(scenario(operations, design=design, boot=boot, page_size="2 MiB"))
    (inode,) = system.inodes()
    state = inode.tracked.is_shared()
    tree = system.metadata.trees[inode][STATE_TREE]
    assert tree.ranges == 2 + np.count_nonzero(state[1:] != state[:-1]) > 50
    assert tree.nodes.sum() == nodes_of(tree.ranges)
    assert system.metadata.maple.parts[system.metadata.maple.kinds.index(STATE_TREE)].sum() == tree.nodes.sum()
    if design == "pfn-range":
        assert system.metadata.trees[inode][LIGHT_MAP].nodes.sum() == inode.tracked.state.top[2] > 2


def test_the_state_tree_follows_each_single_conversion():
    """Also at both ends of a file that ends within a word of 64 states, and of more pages than are looked at as a number."""
    pages = 5000 + 37
    random = np.random.default_rng(2)
    named = [{"op": "create"}, {"op": "convert", "to": "shared"}]  # a file is followed where something converts
    system = System(scenario(named, design="contiguous-4k", memory=pages * PAGE_SIZE, conversion={"mode": "in-place"}))
    given = [(0, 1), (pages - 1, 1), (0, pages), (100, 4700), (pages - 38, 38)]
    given += [
        (int(at), int(min(random.choice([1, 2, 64, 300]), pages - at))) for at in random.integers(pages, size=150)
    ]
    create = expand(system.scenario)[0]
    assert not calls.apply(system, create).errno
    system.metadata.settle(system.task(create), None)
    (inode,) = system.inodes()
    tree = system.metadata.trees[inode][STATE_TREE]
    for at, count in given:
        to = "shared" if random.integers(2) else "private"
        assert inode.tracked.convert(at * PAGE_SIZE, count * PAGE_SIZE, to).errno == 0
        tree.wanted()
        state = inode.tracked.is_shared()
        assert tree.ranges == 2 + np.count_nonzero(state[1:] != state[:-1]), (at, count, to)


@pytest.mark.parametrize("metadata", ["counted", "taken"])
def test_nodes_of_a_light_map_take_pages_of_a_zone_and_give_them_back(metadata):
    operations = [
        {"op": "create", "flags": ["mmap"]},
        {"op": "mbind", "mode": "interleave", "nodes": "0-1"},
        {"op": "fault", "by": "guest", "task": "t1"},
        {"op": "close"},
    ]
    dataset = wb.simulate(scenario(operations, metadata=metadata))
    held = dataset["metadata_pages"].sel(kind="light_map").values
    slabs = -(-nodes_of((64 * MIB >> 12) + 1) // MapleSlab.OBJECTS)
    assert held[2].tolist() == [0, slabs]
    assert held[3].tolist() == [0, 5], "five empty slabs stay with the node"
    free = dataset["free_pages"].sum("zone").values
    others = dataset["metadata_pages"].sum("node").sum("kind").values - held.sum(axis=1)
    taken = metadata == "taken"
    assert free[1] - free[2] == (64 * MIB >> 12) + taken * (slabs + others[2] - others[1])
    assert free[3] - free[2] == (64 * MIB >> 12) + taken * (slabs - 5 + others[2] - others[3])


def test_shared_memory_of_pfn_ranges_is_in_the_page_cache():
    operations = [{"op": "create", "flags": ["mmap", "init_shared"]}, {"op": "fault", "task": "t0"}]
    kinds = wb.simulate(scenario(operations, vm_type="none"))["metadata_pages"].isel(event=-1).sum("node").to_series()
    assert kinds["page_cache"] > 0 and kinds["light_map"] == 0


def test_what_a_file_without_struct_page_shares_has_nodes_in_the_page_cache():
    """Two pages of one group, one of another 17 MiB on: two nodes at the bottom, two above, the root."""
    share = [{"op": "convert", "to": "shared", "offset": at, "length": PAGE_SIZE} for at in (0, 8192, 17 * MIB)]
    back = {"op": "convert", "to": "private", "offset": 0, "length": 64 * MIB}
    operations = [{"op": "create"}, {"op": "fault", "by": "guest", "task": "t1"}, *share]
    system = run(scenario(operations))
    assert system.metadata.xarray.live.sum() == system.metadata.xarray.parts[0].sum() == 5
    assert run(scenario([*operations, back])).metadata.xarray.live.sum() == 0


def test_nodes_of_what_is_shared_are_counted_again_when_as_much_is_shared_elsewhere():
    """Two groups of one 16 MiB; then one of them and one of another."""
    file = LightFile(64 * MIB, "4 KiB")
    tree = SharedNodes(np.zeros(1, np.int64), file=file)
    file.insert(np.arange(64 * MIB // PAGE_SIZE), np.zeros(64 * MIB // PAGE_SIZE, np.int64))
    for at in (0, MIB):
        file.convert(at, PAGE_SIZE, "shared")
    assert tree.wanted() == 2 + 1 + 1
    file.convert(0, PAGE_SIZE, "private")
    file.convert(17 * MIB, PAGE_SIZE, "shared")
    assert tree.wanted() == 2 + 2 + 1


def test_struct_pages_and_tables_come_from_one_stock_beside_the_pools():
    """Without it both would take the same pages."""
    share = [{"op": "convert", "to": "shared", "offset": at << 21, "length": PAGE_SIZE} for at in range(8)]
    operations = [{"op": "create"}, {"op": "fault", "by": "guest", "task": "t1"}, *share]
    boot = {"hugetlb_pages": {0: 0, 1: 40}}
    given = scenario(operations, design="hugetlb-hvo", page_size="2 MiB", metadata="taken", boot=boot)
    system, before = System(given), None
    for operation in expand(given):
        assert not calls.apply(system, operation).errno
        vmemmap = system.conversions.count(np.empty(system.conversions.width, np.int64))
        system.metadata.settle(system.task(operation), vmemmap)
        stock = system.conversions.folios.vmemmap
        np.testing.assert_array_equal(stock, system.metadata.zones.free)
        before = stock + system.metadata.held.sum(axis=0) if before is None else before
        np.testing.assert_array_equal(stock + system.metadata.held.sum(axis=0), before)
    assert system.metadata.held[KINDS.index("vmemmap")].tolist() == [0, 8 * 7]


@pytest.mark.parametrize("metadata", ["counted", "taken"])
def test_pairs_of_pamt_pages_come_from_a_zone(metadata):
    operations = [
        {"op": "create"},
        {"op": "fault", "by": "guest", "task": "t1"},
        {"op": "convert", "to": "shared", "offset": 0, "length": 64 * MIB},
    ]
    dataset = wb.simulate(scenario(operations, design="filemap", vm_type="tdx", metadata=metadata,
                                   conversion={"mode": "in-place"}))  # fmt: skip
    held = dataset["metadata_pages"].sum("node")
    assert held.sel(kind="pamt").values.tolist() == [0, 64, 0]
    free, all_ = dataset["free_pages"].sum("zone").values, held.sum("kind").values
    assert free[1] - free[2] == (metadata == "taken") * (all_[2] - all_[1])

"""What weeks of small allocations leave whole: regions against a walk of every extent, compaction against trying every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.kernels import owned_regions
from workbench.kernels import vm_churn as kernel
from workbench.plots import designs as plots_designs
from workbench.studies import vm_churn
from workbench.studies.fragmentation import blocks_held, compacted, fragmentation, scanned_nodes
from workbench.studies.vm_churn import GIB_PAGES


def test_pages_of_regions_are_those_of_a_walk() -> None:
    churn = vm_churn.generate("16 GiB", 40, nodes=2, seed=3)
    host = vm_churn.Allocating(churn.machines, "16 GiB", 2, "kernel buddy")
    chosen = np.arange(churn.machines) % 3 == 0
    held = 0
    for part in np.array_split(churn.events, 4):
        host.run(part)
        found, expected = np.zeros((2, 16), np.int64), np.zeros((2, 16), np.int64)
        owned_regions.pages_by_region(host.held.ranges, True, host.vms, chosen, 8 * GIB_PAGES, found)
        for machine in range(churn.machines):
            row = int(host.vms[machine, kernel.VM_FIRST])
            while row >= 0:
                one = host.held.ranges[row].tolist()
                first = one[kernel.ROW_PFN] + one[kernel.ROW_NODE] * 8 * GIB_PAGES
                end = first + one[kernel.ROW_PAGES]
                for low, high in itertools.pairwise(
                    [first, *range((first // GIB_PAGES + 1) * GIB_PAGES, end, GIB_PAGES), end]
                ):
                    expected[int(chosen[machine]), low // GIB_PAGES] += high - low
                row = one[kernel.ROW_NEXT]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(blocks_held(host, chosen).reshape(2, 16, 512).sum(axis=2), found)
        assert found.sum() == host.counts[kernel.PAGES]
        held += int(found.sum())
    assert held


def test_compaction_is_the_best_of_all_choices_of_areas() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        stays = rng.integers(0, GIB_PAGES // 2, (2, 4)) * (rng.random((2, 4)) < 0.4)
        moves = rng.integers(0, GIB_PAGES // 2, (2, 4)) * (rng.random((2, 4)) < 0.8)
        free = compact = moved = packed = 0
        for one, two in zip(stays, moves, strict=True):
            best = (0, 0)
            for chosen in itertools.product((False, True), repeat=4):
                emptied = np.array(chosen)
                room = int((GIB_PAGES - one - two)[~emptied].sum())
                if not one[emptied].any() and two[emptied].sum() <= room:
                    best = max(best, (int(emptied.sum()), -int(two[emptied].sum())))
            compact, moved = compact + best[0], moved - best[1]
            free += int((one + two == 0).sum())
            packed += int(4 * GIB_PAGES - (one + two).sum()) // GIB_PAGES
        assert compacted(np.stack((stays, moves))) == (free, compact, packed, moved)


def test_compact_memory_packs_what_lies_in_broken_blocks_alone() -> None:
    """Every block half full: the lower half is emptied into the upper, which is one area of two. One that cannot move stays."""
    held = np.zeros((2, 1, 1024), np.int64)
    held[1] = 256
    assert scanned_nodes(held) == (0, 512, 1, 512 * 256)
    held[0, 0, 7], held[1, 0, 7] = 1, 0
    assert scanned_nodes(held) == (0, 511, 0, 511 * 256)
    held[:] = 0
    held[1, 0, ::2] = 512  # whole blocks, held and free by turns: nothing is a target
    assert scanned_nodes(held) == (512, 512, 0, 0)


def test_2_mib_folios_stay_and_1_gib_areas_come_back_by_moving() -> None:
    """Small unmovable allocations lie together in few page blocks; whole areas of 1 GiB they spoil."""
    made = fragmentation("16 GiB", 40, nodes=1, background=(0.0, 0.03), weeks=1, samples=8)
    there = np.isfinite(made["mappable_2mib"].values)
    assert there.any() and (there[0] == there[1]).all()
    assert (made["mappable_2mib"].values[there] > 0.99).all()
    assert (made["mappable_collapsed"].values[there] >= made["mappable_2mib"].values[there]).all()
    free, compacted_, packed = (made[name].values for name in ("areas_free", "areas_compacted", "areas_packed"))
    assert (free <= compacted_).all() and (compacted_ <= packed).all()
    assert (compacted_[0] == packed[0]).all() and (free[0] < packed[0]).any()
    assert free[1].sum() < free[0].sum() and compacted_[1].sum() < packed[1].sum()
    assert (compacted_ == free)[made["moved_pages"].values == 0].all()
    # The scanners fill no block that is wholly free: where the allocator keeps blocks together they find next to nothing.
    scanned_, blocks, packed_blocks = (made[name].values for name in ("areas_scanned", "blocks_free", "blocks_scanned"))
    assert (packed_blocks >= blocks).all() and (packed_blocks - blocks <= 2).all() and (scanned_ == free).all()
    assert (packed_blocks == blocks)[made["scanned_pages"].values == 0].all()
    figure = plots_designs.fragmentation(made)
    assert all(ax.get_title(loc="left") for ax in figure.axes)


@pytest.mark.parametrize(("values", "message"), [({"background": (0.6,)}, "background"), ({"weeks": 0}, "weeks"),
                                                  ({"memory": "16 TiB", "background": (0.4,)}, "allocations")])  # fmt: skip
def test_bad_input(values: dict[str, object], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        fragmentation(**{"memory": "16 GiB", "machines": 5, "nodes": 1, **values})  # type: ignore[arg-type]

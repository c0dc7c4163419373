"""The operation ``compact``: which pages move and which frames they fill, beside a plain twin, and what that gives back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench.engine.compaction import Frames, scanned, scanned_blocks
from workbench.errors import WorkbenchError

MIB = 1 << 20
HOST: dict[str, Any] = {
    "name": "two",
    "nodes": [{"id": n, "memory_bytes": 256 * MIB, "cpus": [n]} for n in range(2)],
    "distances": [[10, 21], [21, 10]],
}
BLOCK, BATCH = 512, 32


def twin(moves: set[int], stays: set[int], free: set[int], frames: int) -> tuple[set[int], set[int]]:
    """mm/compaction.c: compact_zone page by page: frames emptied and frames filled."""
    last = frames // BLOCK - 1
    emptied: set[int] = set()
    filled: set[int] = set()
    isolated: list[int] = []
    migrate = 0

    def isolate(wanted: int) -> None:
        nonlocal last
        while last > (migrate - 1) // BLOCK and len(isolated) < wanted:
            here = range(last * BLOCK, (last + 1) * BLOCK)
            whole = all(page in free for page in here)
            if not whole and not any(page in stays for page in here):
                for page in here:
                    if page in free and page not in filled and page not in isolated and len(isolated) < wanted:
                        isolated.append(page)
                if len(isolated) == wanted:
                    return
            last -= 1

    while migrate // BLOCK < last:
        end = (migrate // BLOCK + 1) * BLOCK
        batch = []
        while migrate < end and len(batch) < BATCH:
            if migrate in moves:
                batch.append(migrate)
            migrate += 1
        isolate(len(batch))
        for page in batch[: len(isolated)]:
            emptied.add(page)
            filled.add(isolated.pop(0))
        if len(isolated) == 0 and last <= (migrate - 1) // BLOCK:
            break
    return emptied, filled


@pytest.mark.parametrize("seed", range(24))
def test_agrees_with_the_scanners_page_by_page(seed: int) -> None:
    """Movable, unmovable and free pages in stretches, so that there are whole and mixed page blocks."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.choice(3, 160, p=rng.dirichlet((2, 0.5, 2))), rng.integers(1, 200, 160))
    kind = kind[: len(kind) // BLOCK * BLOCK]
    kind[rng.random(len(kind)) < 0.01] = 2
    moves, stays, free = (np.flatnonzero(kind == k) for k in range(3))
    source, target = scanned(Frames(moves, stays, free))
    emptied, filled = twin(*(set(frames.tolist()) for frames in (moves, stays, free)), len(kind))
    assert (set(source.tolist()), set(target.tolist())) == (emptied, filled)
    assert len(source) == len(target) == len(emptied)
    per_block = [np.bincount(frames // BLOCK, minlength=len(kind) // BLOCK) for frames in (moves, stays, free)]
    for counts, frames in zip(scanned_blocks(*per_block), (source, target), strict=True):
        np.testing.assert_array_equal(counts, np.bincount(frames // BLOCK, minlength=len(kind) // BLOCK))


def run(operations: list[dict[str, Any]], *, kernel: str = "7.4", **rest: Any) -> Any:
    scenario: dict[str, Any] = {
        "host": HOST, "guest": {"memory": 64 * MIB, "vm_type": "none", "vcpus": [{"node": 0}]}, "kernel_profile": kernel,
        "pfns": True, "output": "pages", "metadata": "off", "strict": False, "operations": operations,
    }  # fmt: skip
    return wb.simulate(wb.Scenario.from_mapping(scenario | rest))


def detail(dataset: Any, event: int = -1) -> dict[str, int]:
    found: dict[str, int] = json.loads(str(dataset["event_detail"].values[event]))
    return found


GUEST = {"op": "create", "flags": ["mmap", "init_shared"]}
HOLES = [{"op": "punch_hole", "offset": at * MIB, "length": MIB - 4096} for at in range(0, 64, 2)]
"""Every other MiB is given back but for one page: half of the memory is free, and no 2 MiB of it."""


def frames(dataset: Any) -> np.ndarray:
    found: np.ndarray = dataset["page_pfn"].values
    return found[found >= 0]


def test_what_can_move_gives_blocks_back_and_what_cannot_keeps_them() -> None:
    operations = [GUEST, {"op": "fault", "by": "host"}, *HOLES, {"op": "compact"}]
    stuck, moved = run(operations), run(operations, kernel="proposal-migratable")
    assert detail(stuck)["moved"] == 0 and detail(stuck)["blocks_2m"] == detail(stuck)["blocks_2m_before"]
    held = 64 * 256 - 32 * 255
    counts = detail(moved)
    touched, packed = (np.unique(frames(one) // BLOCK) for one in (stuck, moved))
    assert counts["blocks_2m"] - counts["blocks_2m_before"] == len(np.setdiff1d(touched, packed))
    assert len(packed) <= -(-held // BLOCK) + 1, "what is left lies together, and in the short block at the zone's end"
    assert counts["moved"] > 0
    for name in ("page_node", "free_pages"):
        np.testing.assert_array_equal(
            stuck[name].values[..., -1], moved[name].values[..., -1], "each stays in its zone"
        )
    for one in (stuck, moved):
        assert len(np.unique(frames(one))) == len(frames(one)) == held


def test_tmpfs_moves_around_pages_that_cannot() -> None:
    """A page block with a page of the guest's is no target, and stays broken up."""
    memfd = {"op": "memfd", "file": "m", "size": 16 * MIB}
    operations = [
        memfd,
        {"op": "fault", "by": "host", "file": "m", "length": 8 * MIB},
        GUEST,
        {"op": "fault", "by": "host", "length": 4096},
        {"op": "fault", "by": "host", "file": "m", "offset": 8 * MIB},
        *({"op": "punch_hole", "file": "m", "offset": at * MIB, "length": MIB // 2} for at in range(16)),
    ]
    before, after = run(operations), run([*operations, {"op": "compact"}])
    guest = list(after["file"].values).index("guest")
    assert after["page_pfn"].values[guest, 0] == before["page_pfn"].values[guest, 0]
    counts = detail(after)
    assert counts["moved"] > 0 and counts["blocks_2m"] > counts["blocks_2m_before"]
    assert len(np.unique(frames(after))) == len(frames(after)) == len(frames(before))
    preserved = run([*operations, {"op": "preserve", "file": "m", "token": 1}, {"op": "compact"}])
    assert detail(preserved)["moved"] == 0, "a live-update session holds its folios"


def test_a_second_pass_finds_nothing_and_memory_can_be_used_and_given_back_afterwards() -> None:
    operations = [GUEST, {"op": "fault", "by": "host"}, *HOLES, {"op": "compact"}]
    again = run([*operations, {"op": "compact"}], kernel="proposal-migratable")
    assert detail(again)["moved"] == 0
    filled = run([*operations, {"op": "fault", "by": "host"}], kernel="proposal-migratable")
    assert len(np.unique(frames(filled))) == len(frames(filled)) == 64 * 256
    empty = run([*operations, {"op": "punch_hole"}, {"op": "compact"}], kernel="proposal-migratable")
    fresh = run([GUEST, {"op": "compact"}], kernel="proposal-migratable")
    assert detail(empty) == detail(fresh) and not len(frames(empty))


def test_one_node_is_compacted_and_pages_under_a_device_stay() -> None:
    operations = [GUEST, {"op": "fault", "by": "host"}, *HOLES]
    kernel = "proposal-migratable"
    before = run(operations, kernel=kernel)
    other = run([*operations, {"op": "compact", "node": 1}], kernel=kernel)
    assert detail(other)["moved"] == 0
    np.testing.assert_array_equal(other["page_pfn"].values, before["page_pfn"].values)
    assert run([*operations, {"op": "compact", "node": 7}], kernel=kernel)["event_error"].values[-1] == "ENOENT"
    held = run(
        [*operations, {"op": "iommu_map", "offset": 2 * MIB - 4096, "length": 4096}, {"op": "compact"}], kernel=kernel
    )
    page = (2 * MIB - 4096) // 4096
    guest = list(held["file"].values).index("guest")
    assert held["page_pfn"].values[guest, page] == before["page_pfn"].values[guest, page]
    assert detail(held)["moved"] > 0


@pytest.mark.parametrize(("pfns", "before"), [(False, []), (True, [{"op": "hog", "node": 0, "size": MIB}])])
def test_what_has_no_frames_is_refused_in_one_line(pfns: bool, before: list[dict[str, Any]]) -> None:
    with pytest.raises(WorkbenchError, match=r"^operations\.compact: needs pfns: true and 4 KiB pages, and no hog"):
        run([GUEST, *before, {"op": "compact"}], pfns=pfns)

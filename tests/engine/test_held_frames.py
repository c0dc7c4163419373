"""Frames of pages that left a file while somebody held them are nobody else's until they are let go, poisoned ones never."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workbench.scenario import Scenario
from workbench.simulation import run

PAGE = 4096
HOST = {"name": "h", "nodes": [{"id": 0, "memory_bytes": 64 << 20, "cpus": [0]}], "distances": [[10]]}
LEAVE = {"op": "punch_hole", "offset": PAGE, "length": 2 * PAGE}
PIN, UNPIN = ({"op": op, "offset": PAGE, "length": PAGE, "kind": "long_term"} for op in ("pin", "unpin"))
POISON = {"op": "hwpoison", "offset": PAGE, "length": PAGE}


def pfns(*operations: dict[str, Any]) -> np.ndarray:
    """Pfns of a file of 16 pages whose first four were placed before these operations."""
    guest = {"memory": 16 * PAGE, "vm_type": "sw_protected", "conversion": {"mode": "in-place"}}
    before = [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fallocate", "length": 4 * PAGE}]
    answer = run(
        Scenario.from_mapping({"host": HOST, "guest": guest, "pfns": True, "operations": [*before, *operations]})
    )
    assert not np.asarray(answer["event_errno"]).any()
    return np.asarray(answer["page_pfn"])[0]


@pytest.mark.parametrize("held", [[PIN], [POISON], [PIN, POISON]], ids=str)
@pytest.mark.parametrize("let_go", [False, True])
def test_a_frame_that_somebody_holds_is_not_handed_out(held: list[dict[str, Any]], let_go: bool) -> None:
    mine = int(pfns()[1])
    again = [UNPIN] if let_go and PIN in held else []
    after = pfns(*held, LEAVE, *again, {"op": "fallocate"})
    placed = after[after >= 0]
    assert len(np.unique(placed)) == len(placed) == 16
    assert (mine in placed.tolist()) == (bool(again) and POISON not in held)


def test_a_hole_asks_only_for_what_is_held_in_it() -> None:
    """With thousands of poisoned pages elsewhere in the file each hole looked through them all: 2.5 ms."""
    scenario = Scenario.from_mapping({
        "host": {"name": "h", "nodes": [{"id": 0, "memory_bytes": "256 MiB", "cpus": [0]}], "distances": [[10]]},
        "guest": {"memory": "1 MiB", "vm_type": "sw_protected"}, "kernel_profile": "7.4",
        "operations": [{"op": "create"}, {"op": "convert", "to": "shared"}, {"op": "fallocate"},
                       {"op": "pin", "offset": 40 * 4096, "length": 4 * 4096},
                       {"op": "hwpoison", "offset": 0, "length": 30 * 4096}],
    })  # fmt: skip
    system = run(scenario).system
    (inode,) = system.inodes()
    assert system.conversions is not None
    assert inode.tracked is not None
    held = [
        system.conversions.held(inode, inode.tracked, *span)[:, [0, 2]].tolist()
        for span in ((28, 42), (30, 40), (44, 256))
    ]
    assert held == [[[28, 1], [29, 1], [40, 0], [41, 0]], [], []]

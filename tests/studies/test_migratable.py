"""A migratable guest_memfd does what tmpfs was recorded to do, page for page; under 7.4 nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.plots import designs as plots_designs
from workbench.studies.migratable import BACKINGS, migration

PAGES = 64
NODES = [{"id": n, "memory_bytes": "2 GiB", "cpus": [n]} for n in range(3)]
HOST = {"name": "three", "nodes": NODES, "distances": [[10, 20, 30], [20, 10, 20], [30, 20, 10]]}


def ran(kernel: str, tmpfs: bool, *operations: dict[str, Any], vm_type: str = "none") -> Any:
    made: dict[str, Any] = {"op": "memfd", "size": PAGES * 4096} if tmpfs else {"op": "create", "flags": ["mmap"] + (
        ["init_shared"] if vm_type == "none" else [])}  # fmt: skip
    guest = {"memory": PAGES * 4096, "vm_type": vm_type, "vcpus": [{"node": 0}, {"node": 2}]}
    on_file = [
        {**one, **({"file": "m"} if one["op"] not in ("migrate_pages", "set_mems_allowed") else {})}
        for one in operations
    ]
    return wb.simulate(
        wb.Scenario.from_mapping(
            {
                "host": HOST,
                "guest": guest,
                "kernel_profile": kernel,
                "output": "pages",
                "strict": False,
                "operations": [{"file": "m", **made}, *on_file],
            }
        )
    )


ranges = st.builds(
    lambda first, pages: {"offset": first * 4096, "length": min(pages, PAGES - first) * 4096},
    st.integers(0, PAGES - 1), st.integers(1, PAGES),
)  # fmt: skip
nodes = st.integers(0, 2)
calls = st.one_of(
    st.builds(lambda where, by: {"op": "fault", "by": by, **where}, ranges, st.sampled_from(["host", "host", "guest"])),
    st.builds(lambda where, node, mode, flags: {"op": "mbind", "mode": mode, "nodes": str(node), "flags": flags, **where},
              ranges, nodes, st.sampled_from(["bind", "preferred"]),
              st.sampled_from([["move"], ["move", "strict"], ["strict"], ["move_all"]])),
    st.builds(lambda source, target: {"op": "migrate_pages", "source": source, "target": target}, nodes, nodes),
    st.builds(lambda where, node: {"op": "move_pages", "node": node, **where}, ranges, nodes),
    st.builds(lambda where: {"op": "punch_hole", **where}, ranges),
    st.builds(lambda mems: {"op": "set_mems_allowed", "mems": mems}, st.sampled_from(["0", "0-1", "1-2", "0-2", "2"])),
)  # fmt: skip


@given(st.lists(calls, min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_it_is_tmpfs_in_what_moves(operations: list[dict[str, Any]]) -> None:
    """Answers and places, but for what differs anyway: the guest's touch brings tmpfs pages into page tables of the VMM."""
    operations = [one for one in operations if one.get("by") != "guest"]
    gmem, tmpfs = ran("proposal-migratable", False, *operations), ran("7.3", True, *operations)
    np.testing.assert_array_equal(gmem["page_node"].values, tmpfs["page_node"].values)
    assert gmem["event_errno"].values[1:].tolist() == tmpfs["event_errno"].values[1:].tolist()
    assert gmem["event_ret"].values[1:].tolist() == tmpfs["event_ret"].values[1:].tolist()


def test_what_the_calls_give_back() -> None:
    made = migration("1 MiB")
    host, guest = made["local_share"].sel(touched="host"), made["local_share"].sel(touched="guest")
    assert host.sel(backing=BACKINGS[0]).values.tolist() == [0, 0, 0]
    assert host.sel(backing=BACKINGS[1]).values.tolist() == [1, 1, 1] == host.sel(backing="tmpfs").values.tolist()
    assert guest.sel(backing=BACKINGS[1]).values.tolist() == [0, 0, 0]  # in no page table of the process
    assert guest.sel(backing="tmpfs").values.tolist() == [1, 1, 1]
    assert not made["local_before"].values.any()
    stuck = made["returned"].sel(call="migrate_pages", touched="host").values.tolist()
    assert stuck == [256, 0, 0]
    assert len(plots_designs.migration(made).axes) == 2


MOVE = {"op": "mbind", "mode": "bind", "nodes": "2", "flags": ["move"]}


def test_private_memory_and_pinned_pages_stay() -> None:
    """The series is for VMs without private memory; a device that maps pages holds them where they are."""
    touch = {"op": "fault", "by": "host"}
    private = ran("proposal-migratable", False, touch, MOVE, vm_type="sw_protected")
    assert set(private["page_node"].values.ravel().tolist()) <= {-1, 0}
    pinned = {"op": "iommu_map", "offset": 0, "length": 16 * 4096}
    one = ran("proposal-migratable", False, touch, pinned, MOVE)
    assert one["page_node"].values[0].tolist() == [0] * 16 + [2] * (PAGES - 16)
    assert one["user_mapped_pages"].sel(user="iommu").values[-1] == 16


def test_memory_that_can_move_may_lie_in_zone_movable() -> None:
    """A node that is all movable serves tmpfs and a migratable guest_memfd, and no other."""
    host = {**HOST, "nodes": [NODES[0], {**NODES[1], "kind": "cxl", "movable": True, "cpus": []}, NODES[2]]}
    bind = {"op": "mbind", "mode": "bind", "nodes": "1"}
    found = []
    for kernel in ("7.4", "proposal-migratable"):
        guest = {"memory": PAGES * 4096, "vcpus": [{"node": 0}]}
        operations = [{"op": "create", "flags": ["mmap", "init_shared"]}, bind, {"op": "fault", "by": "host"}]
        one = wb.simulate(
            wb.Scenario.from_mapping({"host": host, "guest": guest, "kernel_profile": kernel, "operations": operations,
                                      "output": "pages"})
        )  # fmt: skip
        found.append(set(one["page_node"].values.ravel().tolist()))
    assert found == [{0}, {1}]


def test_bad_input() -> None:
    with pytest.raises(WorkbenchError, match="memory: 2 GiB"):
        migration("2 GiB")

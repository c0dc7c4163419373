"""Pages that the kernel allocates beside a guest: how many of which kind, on which node, and what that does to placement."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.engine.kernel_pages import KINDS
from workbench.running import run
from workbench.scenario import Scenario

GIB = 1 << 30


def scenario(operations, *, memory="512MiB", node_gib=(4, 4), metadata="taken", **fields) -> Scenario:
    nodes = [{"id": i, "memory_bytes": gib * GIB, "cpus": [i]} for i, gib in enumerate(node_gib)]
    distances = [[10 if i == j else 20 for j in range(len(nodes))] for i in range(len(nodes))]
    return Scenario.from_mapping(
        {
            "host": {"name": "two", "nodes": nodes, "distances": distances},
            "guest": {"memory": memory} | fields.pop("guest", {}),
            "tasks": [{"name": "t0", "cpu": 0}, {"name": "t1", "cpu": 1}],
            "operations": operations,
            "metadata": metadata,
            **fields,
        }
    )


def held(dataset, event=-1) -> dict[str, list[int]]:
    return {kind: dataset["metadata_pages"].sel(kind=kind).values[event].tolist() for kind in KINDS}


@pytest.mark.parametrize("metadata", ["counted", "taken"])
def test_the_counters_of_the_measured_guest(metadata):
    """Linux 7.3.4: 131,072 pages bound to node 1, touched on node 0, then by a vCPU on node 1.

    +257 PageTables and 74 slabs (70 seen at once, 4 when the counter was folded) on node 0; +259 SecPageTables on node 1, of
    which one maps the probe's own code.
    """
    dataset = wb.simulate(
        scenario(
            [
                {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
                {"op": "mbind", "file": "g", "mode": "bind", "nodes": "1"},
                {"op": "fault", "file": "g", "task": "t0"},
                {"op": "fault", "file": "g", "task": "t1", "by": "guest"},
                {"op": "close", "file": "g"},
            ],
            metadata=metadata,
        )
    )
    touched, mapped, closed = held(dataset, 2), held(dataset, 3), held(dataset, 4)
    assert touched["page_tables"] == [257, 0]
    assert touched["second_stage"] == [0, 0]
    assert touched["page_cache"] == [300, 0]  # 2081 nodes, 28 in a slab of 4 pages
    assert mapped["second_stage"] == [0, 258]
    assert mapped["page_tables"] == [257, 0]
    assert closed["page_tables"] == [0, 0]
    assert closed["page_cache"] == [20, 0]  # five empty slabs stay with the node
    taken = metadata == "taken"
    free = dataset["free_pages"].sum("zone").values
    assert free[1] - free[2] == 131072 + taken * (257 + 300)
    assert free[2] - free[3] == taken * sum(mapped["second_stage"] + mapped["second_stage_ready"])


def test_pages_are_where_they_were_when_metadata_are_only_counted():
    operations = [
        {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
        {"op": "set_mempolicy", "task": "t0", "mode": "interleave", "nodes": "0-1"},
        {"op": "fault", "file": "g", "task": "t0", "length": "8MiB"},
        {"op": "fault", "file": "g", "task": "t1", "offset": "8MiB"},
    ]
    off, counted, taken = (wb.simulate(scenario(operations, metadata=mode)) for mode in ("off", "counted", "taken"))
    assert "metadata_pages" not in off
    assert (off["page_node"] == counted["page_node"]).all()
    assert (off["free_pages"] == counted["free_pages"]).all()
    assert not (off["page_node"] == taken["page_node"]).all()


def test_a_task_that_interleaves_spreads_its_page_tables_and_skips_a_node_at_each():
    """pte_alloc_one asks under the task's policy before the page: the rotation goes on by one at each 2 MiB."""
    dataset = wb.simulate(
        scenario(
            [
                {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
                {"op": "set_mempolicy", "task": "t0", "mode": "interleave", "nodes": "0-1"},
                {"op": "fault", "file": "g", "task": "t0"},
            ],
            memory="8MiB",
        )
    )
    nodes = dataset["page_node"].values[0]
    step = np.flatnonzero(nodes[1:] == nodes[:-1]) + 1
    assert step.tolist() == [512, 1024, 1536]
    assert sum(held(dataset)["page_tables"]) == 5
    assert dataset["pages_per_node"].values.sum() == 2048


@pytest.mark.parametrize("order", ["sequential", "reverse", "random", "strided"])
@pytest.mark.parametrize("by", ["host", "guest", "prefault"])
def test_every_order_of_touches_needs_the_same_tables(order, by):
    extra = {"stride": 7} if order == "strided" else {"seed": 5} if order == "random" else {}
    operations = [
        {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
        {"op": "set_mempolicy", "task": "t0", "mode": "interleave", "nodes": "0-1"},
        {"op": "fault", "file": "g", "task": "t0", "by": by, "order": order, **(extra if by == "host" else {})},
    ]
    if by != "host":
        operations[-1].pop("order")
    dataset = wb.simulate(scenario(operations, memory="64MiB"))
    found = held(dataset)
    assert sum(found["page_tables"]) == (33 if by == "host" else 0)
    assert sum(found["second_stage"]) == (0 if by == "host" else 34)
    free = dataset["free_pages"].sum("zone").values
    assert free[1] - free[2] == 16384 + sum(sum(pages) for pages in found.values())


def test_what_is_given_back_is_all_there_again():
    dataset = wb.simulate(
        scenario(
            [
                {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
                {"op": "fault", "file": "g", "task": "t0"},
                {"op": "punch_hole", "file": "g", "offset": "0", "length": "256MiB"},
                {"op": "munmap", "file": "g"},
                {"op": "close", "file": "g"},
            ]
        )
    )
    free = dataset["free_pages"].sum("zone").values
    assert held(dataset, 2)["page_tables"] == [257, 0]  # a hole leaves the tables
    assert held(dataset, 2)["page_cache"][0] == 4 * (-(-1041 // 28) + 5)
    assert held(dataset, 3)["page_tables"] == [0, 0]
    assert free[0] - free[4] == 20


def test_fault_on_a_full_node_stops_earlier_by_what_the_tables_take():
    operations = [
        {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
        {"op": "fault", "file": "g", "task": "t0"},
    ]
    off, taken = (
        wb.simulate(scenario(operations, memory="4608MiB", node_gib=(4, 4), metadata=mode)) for mode in ("off", "taken")
    )
    lost = int((off["pages_per_node"] - taken["pages_per_node"]).values[0, 0])
    found = held(taken)
    assert lost == found["page_tables"][0] + found["page_cache"][0]
    low = taken["zone_low"].values + taken["zone_lowmem_reserve"].values
    assert (taken["free_pages"].values[-1] >= low - 4).all()


def test_attributes_of_a_confidential_vm_cost_as_much_as_its_page_cache():
    """kvm->mem_attr_array has an entry for each private gfn."""
    dataset = wb.simulate(
        scenario(
            [
                {"op": "create", "file": "g", "flags": []},
                {"op": "memslot", "file": "g"},
                {"op": "set_memory_attributes", "file": "g", "private": True},
                {"op": "fault", "file": "g", "task": "t1", "by": "guest"},
                {"op": "set_memory_attributes", "file": "g", "private": False},
            ],
            guest={"vm_type": "sw_protected"},
        )
    )
    assert held(dataset, 2)["attributes"] == [300, 0]
    assert held(dataset, 3)["page_cache"] == [0, 300]
    assert held(dataset, 4)["attributes"] == [0, 0] or sum(held(dataset, 4)["attributes"]) <= 20


def test_huge_pages_need_tables_of_their_own_size():
    dataset = wb.simulate(
        scenario(
            [{"op": "create", "file": "g"}, {"op": "fault", "file": "g", "by": "guest"}],
            memory="2GiB",
            guest={"page_size": "2 MiB", "design": "hugetlb"},
        )
    )
    found = held(dataset)
    assert sum(found["second_stage"]) == 3  # two tables of 2 MiB entries and the one above
    assert sum(found["page_cache"]) == 20  # an entry of 2 MiB has 8 of the 64 slots of a node: 128, 2 and 1 nodes


@pytest.mark.parametrize(
    ("vm_type", "page_size", "tables"), [("snp", "1 GiB", 3), ("tdx", "2 MiB", 1027), ("none", "1 GiB", 1)]
)
def test_a_leaf_is_no_larger_than_its_vm_can_map(vm_type, page_size, tables):
    """2 GiB: SNP maps 2 MiB at most (no 1 GiB state in the RMP), TDX 4 KiB."""
    guest = {"page_size": page_size, "design": "hugetlb", "vm_type": vm_type}
    operations = [{"op": "create", "file": "g"}, {"op": "fault", "file": "g", "by": "guest"}]
    found = held(wb.simulate(scenario(operations, memory="2GiB", guest=guest, node_gib=(8, 8))))
    assert sum(found["second_stage"]) == tables


def test_threads_that_take_turns_on_one_vcpu_share_the_pages_it_keeps_for_tables():
    """The vCPU's cache is filled by who runs it first; the next thread's tables come out of it (recorded: metadata/p2eq)."""
    nodes = [{"id": n, "memory_bytes": 1 << 30, "cpus": [n]} for n in range(2)]
    host = {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    fault = {"op": "fault", "by": "prefault", "length": 8 << 20}
    tables = {}
    for names in (("t0", "t1"), ("vcpu0", "vcpu1")):
        values = {
            "host": host,
            "guest": {"memory": 64 << 20, "vcpus": [{"node": 0}, {"node": 1}]},
            "tasks": [{"name": name, "cpu": n} for n, name in enumerate(names)],
            "operations": [
                {"op": "create"},
                *({**fault, "offset": n * (8 << 20), "task": name} for n, name in enumerate(names)),
            ],
        }
        dataset = wb.simulate(Scenario.model_validate(values))
        tables[names[0]] = dataset["metadata_pages"].sel(kind="second_stage").values[-1].tolist()
    assert tables == {"t0": [10, 0], "vcpu0": [6, 4]}, "one vCPU between them, or one each"


def test_single_faults_of_a_task_that_interleaves_find_pages_for_their_tables() -> None:
    """mmu_topup_memory_caches: filled up before each fault, also where a call has one fault only."""
    given = wb.Scenario.from_mapping({
        "host": "epyc1-naples-2s", "metadata": "taken", "guest": {"memory": "1 GiB"},
        "operations": [
            {"op": "create"}, {"op": "set_mempolicy", "task": "vcpu0", "mode": "interleave", "nodes": "0-3"},
            *({"op": "fault", "by": "guest", "task": "vcpu0", "offset": number << 21, "length": 4096} for number in range(120)),
        ],
    })  # fmt: skip
    held = wb.simulate(given)["metadata_pages"].sel(kind=["second_stage", "second_stage_ready"]).sum("node").values
    assert held[2:, 0].tolist() == [3 + number for number in range(120)]
    assert ((held[2:, 1] > 1) & (held[2:, 1] <= 41)).all()


@pytest.mark.parametrize(
    ("pages", "nodes"),
    [
        ([0], [0]),  # an entry of index 0 needs no node
        ([0, 1], [0, 1]),
        ([5000], [3]),  # a new tree has the nodes on the way to its page alone
        ([5000, 0], [3, 5]),
        ([0, 100], [0, 3]),  # one above the entry of index 0, the root, and one for page 100
        ([0, 5000], [0, 5]),
        ([1, 5000], [1, 5]),
        ([1, 100, 5000], [1, 3, 6]),
        ([0, 4095, 4096, 262143, 262144], [0, 3, 6, 8, 12]),
    ],
)
def test_nodes_of_a_tree_that_grows(pages: list[int], nodes: list[int]) -> None:
    """lib/xarray.c: xas_expand puts nodes above what is there; worked out on paper."""
    calls = [{"op": "create"}, *({"op": "fallocate", "offset": 4096 * page, "length": 4096} for page in pages)]
    for number, count in enumerate(nodes, start=2):
        run_ = run(scenario(calls[:number], memory="2GiB", metadata="counted"))
        assert run_.system.metadata is not None
        assert run_.system.metadata.xarray.live.sum() == count


def test_a_machine_made_anew_has_no_tables_yet() -> None:
    """KVM_CREATE_VM: the second stage is per machine, and that of the one before lives on with its files."""
    fault = {"op": "fault", "file": "g", "by": "guest", "task": "t0", "length": 4096}
    dataset = wb.simulate(
        scenario([{"op": "create", "file": "g", "flags": ["mmap"]}, fault, fault, {"op": "create_vm"}, fault, fault])
    )
    tables = [sum(held(dataset, event)["second_stage"]) for event in range(6)]
    assert tables == [0, 3, 3, 3, 6, 6]


@pytest.mark.parametrize("by", ["host", "guest"])
@pytest.mark.parametrize("first", [0, 4096, 511 * 4096, "2MiB", "6MiB"])
def test_tables_that_are_there_say_nothing_of_others(by: str, first: int | str) -> None:
    create = {"op": "create", "file": "g", "flags": ["mmap", "init_shared"]}
    fault = {"op": "fault", "file": "g", "by": by, "task": "t0"}
    before = [{**fault, "offset": first, "length": 4096}] * 2
    found = [
        held(wb.simulate(scenario([create, *calls, fault, {**fault, "length": "4MiB"}], memory="8MiB")))
        for calls in ([], before)
    ]
    assert found[0] == found[1]
    assert sum(found[0]["page_tables" if by == "host" else "second_stage"]) == (5 if by == "host" else 6)

"""Six designs on the same run: the guest sees the same, only costs differ, and the costs are Linux's sizes."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.design import DESIGNS, HUGETLB_HVO
from workbench.designs import compare as designs
from workbench.designs import sweeps as design_sweeps
from workbench.designs.accounting import page_cache_nodes
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.plots import designs as plots_designs
from workbench.tracking.offset_maps import XarrayMap
from workbench.units import PAGE_ORDERS
from workbench.variables import DesignSharing

MIB2 = 512
GIB = 1 << 18


def with_pages(page_size: str) -> tuple[str, ...]:
    """Designs that have pages of that size."""
    return tuple(name for name, design in DESIGNS.items() if page_size in design.page_sizes)


def random_stream(
    seed: int, pages: int, unit: int, operations: int, nodes: int = 2, poison: bool = False
) -> np.ndarray:
    """Conversions, faults, long-term pins and punches anywhere, some of them wrong."""
    rng = np.random.default_rng(seed)
    kinds = [folio.CONVERT] * 5 + [folio.PIN, folio.UNPIN, folio.HOST_FAULT, folio.GUEST_FAULT, folio.PUNCH]
    kinds += [folio.POISON, folio.GUEST_FAULT, folio.GUEST_FAULT] * poison
    rows = []
    for _ in range(operations):
        op = int(rng.choice(kinds))
        start = int(rng.integers(0, pages))
        if rng.random() < 0.4:
            start = start // unit * unit
        length = int(rng.choice([1, 3, 64, 512, 700, unit]))
        if rng.random() < 0.95:
            length = max(1, min(length, pages - start))
        argument = int(rng.integers(0, 2))
        if op in (folio.PIN, folio.UNPIN):
            argument, length = folio.LONG_TERM, min(length, 3)
        if op == folio.PUNCH:
            start, length = start // unit * unit, unit
        rows.append((op, start * 4096, length * 4096, argument, int(rng.integers(0, nodes)), 0))
    return np.array(rows, np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([("4 KiB", 1024), ("2 MiB", 8 * MIB2), ("1 GiB", 2 * GIB)]),
    confidential=st.sampled_from(["none", "snp", "tdx"]),
)
@settings(max_examples=10)
def test_huge_designs_answer_alike(seed: int, size: tuple[str, int], confidential: str) -> None:
    """Random operations, errors included: same errno, same offset named, same node, same state of every page."""
    page_size, pages = size
    stream = random_stream(seed, pages, 1 << PAGE_ORDERS[page_size], 60)
    run = designs.FileWorkload(pages, page_size, (4 * pages, 4 * pages), stream, confidential)
    dataset = designs.compare(run, with_pages(page_size), samples=4)
    designs.check_same_answers(dataset)
    errors = dataset["event_errno"].values[0]
    assert (errors == 0).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([("4 KiB", 1024), ("2 MiB", 8 * MIB2), ("1 GiB", 2 * GIB)]),
)
@settings(max_examples=20)
def test_poison_changes_only_what_is_documented(seed: int, size: tuple[str, int]) -> None:
    """4 KiB: nothing. Huge: hugetlb-backed pages are only marked (EBUSY); until then and otherwise the designs agree."""
    page_size, pages = size
    order = PAGE_ORDERS[page_size]
    stream = random_stream(seed, pages, 1 << order, 60, poison=True)
    run = designs.FileWorkload(pages, page_size, (4 * pages, 4 * pages), stream)
    if order == 0:
        return designs.check_same_answers(designs.compare(run, samples=1))
    dataset = designs.compare(run, [name for name in with_pages(page_size) if name != "filemap"], samples=1)
    designs.check_same_answers(dataset.isel(design=[0, 1]))
    designs.check_same_answers(dataset.isel(design=slice(2, None)))
    errors, offsets = dataset["event_errno"].values[[0, 2]], dataset["event_error_offset"].values[[0, 2]]
    differs = np.flatnonzero((errors[0] != errors[1]) | (offsets[0] != offsets[1]))
    if len(differs) == 0:
        return designs.check_same_answers(dataset)
    at = int(differs[0])  # what follows is another history
    assert stream[at, folio.OP] == folio.POISON and errors[:, at].tolist() == [folio.EBUSY, 0]


def test_a_poisoned_huge_page_is_only_marked_a_light_map_loses_4_kib() -> None:
    """The difference, answer by answer, as recorded: what is mapped stays mapped, converts and goes back to its pool."""
    page = 4096
    rows = [
        (folio.GUEST_FAULT, 0, 4 * MIB2 * page, 1, 0, 0),
        (folio.POISON, 700 * page, 0, 0, 0, 0),
        (folio.GUEST_FAULT, 700 * page, page, 1, 0, 0),
        (folio.GUEST_FAULT, 701 * page, page, 1, 0, 0),
        (folio.GUEST_FAULT, 1024 * page, page, 1, 0, 0),
        (folio.CONVERT, 701 * page, page, 1, 0, 0),
        (folio.CONVERT, 0, 512 * page, 1, 0, 0),
        (folio.CONVERT, 0, 512 * page, 0, 0, 0),
        (folio.HOST_FAULT, 700 * page, page, 0, 0, 0),
        (folio.CONVERT, 512 * page, 512 * page, 0, 0, 0),
        (folio.PUNCH, 512 * page, 512 * page, 0, 0, 0),
        (folio.GUEST_FAULT, 512 * page, 512 * page, 1, 0, 0),  # fresh memory
    ]
    run = designs.FileWorkload(4 * MIB2, "2 MiB", (16 * MIB2,), np.array(rows, np.int64))
    kinds = ["filemap", "hugetlb", "hugetlb-hvo", "pfn-range", "contiguous-4k", "thp"]
    dataset = designs.compare(run, kinds, samples=1)
    lost, fault = folio.EHWPOISON, folio.SIGBUS
    huge, small = [0, folio.EBUSY, *[0] * 6, fault, 0, 0, 0], [0, 0, lost, 0, 0, 0, 0, 0, fault, 0, 0, 0]
    assert dataset["event_errno"].values.tolist() == [small, huge, huge, small, small, small]
    with pytest.raises(WorkbenchError, match="event_errno of hugetlb differs from filemap at 1"):
        designs.check_same_answers(dataset)
    np.testing.assert_array_equal(dataset["event_error_offset"].values[[0, 3, 4, 5], 2], 700 * page)
    assert len(set(dataset["content_order"].values.tolist())) == 1
    assert set(dataset["poisoned_pages"].values.tolist()) == {""}


@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB", "1 GiB"])
def test_all_designs_answer_alike_on_a_populated_guest(page_size: str) -> None:
    """With the file populated and pins in the way, 4 KiB folios answer as huge ones do."""
    base = designs.guest_run("2 GiB", page_size, 200, nodes=2, seed=5)
    pins = np.array(
        [
            (folio.CONVERT, 40 * 4096, 8 * 4096, 1, 0, 0),
            (folio.PIN, 42 * 4096, 4096, folio.LONG_TERM, 0, 0),
            (folio.CONVERT, 40 * 4096, 8 * 4096, 0, 0, 0),
            (folio.UNPIN, 42 * 4096, 4096, folio.LONG_TERM, 0, 0),
            (folio.CONVERT, 40 * 4096, 8 * 4096, 0, 0, 0),
            (folio.CONVERT, 3, 4096, 0, 0, 0),
        ],
        np.int64,
    )
    dataset = designs.compare(replace(base, stream=np.concatenate((base.stream, pins))), samples=8)
    designs.check_same_answers(dataset)
    assert dataset.sizes["design"] == len(DESIGNS) >= 6
    errors = dataset["event_errno"].values[:, -6:]
    np.testing.assert_array_equal(errors, [[0, 0, folio.EAGAIN, 0, 0, folio.EINVAL]] * dataset.sizes["design"])
    assert (dataset["event_error_offset"].values[:, -4] == 42 * 4096).all()
    assert len(np.unique(dataset["unit_node"].values)) == (1 if page_size == "4 KiB" else 2)


@given(seed=st.integers(0, 2**32 - 1), page_size=st.sampled_from(["2 MiB", "1 GiB"]))
@settings(max_examples=10)
def test_contiguous_folios_cost_what_filemap_does_and_map_what_is_uniform(seed: int, page_size: str) -> None:
    """Placement, metadata and conversions of ``filemap``; mappings counted here page by page from the states."""
    run = designs.guest_run("2 GiB", page_size, 60, seed=seed, nodes=2)
    dataset = designs.compare(run, ["filemap", "contiguous-4k"], samples=1)
    designs.check_same_answers(dataset)
    alike = ("struct_page_bytes", "page_cache_bytes", "state_tree_bytes", "invalidations", "invalidated_bytes", "splits",
             "handover_bytes", "vmemmap_taken_pages", "failed_operations", "pages_restructured")  # fmt: skip
    for name in alike:
        assert cost(dataset, name, "contiguous-4k") == cost(dataset, name, "filemap"), name
    shared = np.zeros(run.pages, bool)
    for op, offset, length, argument, *_ in run.stream.tolist():
        if op == folio.CONVERT:
            shared[offset // 4096 : (offset + length) // 4096] = argument == 1
    left, mapped = np.ones(run.pages // MIB2, bool), 0
    for order in [18] * (page_size == "1 GiB") + [9]:
        parts = shared.reshape(-1, 1 << order)
        uniform = (parts.all(axis=1) | ~parts.any(axis=1)) & left.reshape(-1, 1 << (order - 9)).all(axis=1)
        mapped += int(uniform.sum()) << order
        left &= ~np.repeat(uniform, 1 << (order - 9))
    assert cost(dataset, "largest_leaf_bytes", "contiguous-4k") == mapped * 4096
    assert cost(dataset, "largest_leaf_bytes", "filemap") == 0


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_thp_that_never_runs_dry_is_hugetlb_of_2_mib(seed: int) -> None:
    """Every cost of pages without vmemmap optimisation, on the same stream; only where the memory comes from differs."""
    stream = random_stream(seed, 8 * MIB2, MIB2, 80)
    run = designs.FileWorkload(8 * MIB2, "2 MiB", (32 * MIB2, 32 * MIB2), stream)
    dataset = designs.compare(run, ["hugetlb", "thp"], samples=4)
    designs.check_same_answers(dataset)
    xr.testing.assert_equal(dataset.sel(design="thp", drop=True), dataset.sel(design="hugetlb", drop=True))


def test_a_difference_is_found_and_named() -> None:
    dataset = designs.compare(designs.guest_run("1 GiB", "2 MiB", 20), samples=2)
    changed = dataset.copy(deep=True)
    changed["event_errno"][2, 7] = 12
    with pytest.raises(WorkbenchError, match="event_errno of hugetlb-hvo differs"):
        designs.check_same_answers(changed)


def cost(dataset: object, name: str, design: str) -> float:
    return float(dataset[name].sel(design=design))  # type: ignore[index]


def one_page_shared(page_size: str = "1 GiB", confidential: str = "none", gib: int = 4) -> designs.FileWorkload:
    pages = gib * GIB
    stream = np.concatenate(
        (
            gen.prefault(pages * 4096, page_size, 1),
            np.array([(folio.CONVERT, (GIB + 5) * 4096, 4096, 1, 0, 0)], np.int64),
        )
    )
    return designs.FileWorkload(pages, page_size, (2 * pages,), stream, confidential)


def test_cost_of_one_shared_page_in_a_guest_of_1_gib_pages() -> None:
    """The seed mail's worst case: one 4 KiB page shared in 4 GiB of 1 GiB pages."""
    dataset = designs.compare(one_page_shared(), samples=2)
    all_struct_pages = 4 * GIB * 64
    assert cost(dataset, "struct_page_bytes", "filemap") == all_struct_pages
    assert cost(dataset, "struct_page_bytes", "hugetlb") == all_struct_pages
    assert cost(dataset, "struct_page_bytes", "hugetlb-hvo") == (3 + 4096) * 4096
    assert cost(dataset, "vmemmap_taken_pages", "hugetlb-hvo") == 4095
    assert cost(dataset, "struct_page_bytes", "pfn-range") == 4096  # one page holds 64 struct pages
    assert cost(dataset, "vmemmap_table_bytes", "pfn-range") == 4096
    assert cost(dataset, "page_cache_bytes", "filemap") == 576 * (4 * 4161 + 1)
    assert cost(dataset, "page_cache_bytes", "hugetlb") == 576 * (4161 + 1)
    assert cost(dataset, "page_cache_bytes", "pfn-range") == 576 * 4
    assert cost(dataset, "private_map_bytes", "pfn-range") == 256
    assert int(dataset["extents"]) == 2
    small = dict.fromkeys(("pfn-range", "filemap", "contiguous-4k"), 1)
    for design, pages in ({"hugetlb": GIB, "hugetlb-hvo": GIB, "thp": MIB2} | small).items():
        assert cost(dataset, "invalidated_bytes", design) == pages * 4096
    # Root, the table below it, and: 513 per GiB at 4 KiB; 513 for the split GiB; one PMD and one PTE table.
    assert cost(dataset, "stage2_table_bytes", "filemap") == (2 + 4 * 513) * 4096
    assert cost(dataset, "stage2_table_bytes", "hugetlb") == (2 + 513) * 4096
    assert cost(dataset, "stage2_table_bytes", "pfn-range") == (2 + 2) * 4096
    assert cost(dataset, "stage2_table_bytes", "contiguous-4k") == (2 + 2) * 4096
    assert cost(dataset, "stage2_table_bytes", "thp") == (2 + 4 + 1) * 4096
    assert cost(dataset, "splits", "thp") == 1 and cost(dataset, "splits", "contiguous-4k") == 0
    for name in ("struct_page_bytes", "page_cache_bytes", "handover_bytes", "referenced_private_pages"):
        assert cost(dataset, name, "contiguous-4k") == cost(dataset, name, "filemap")
    assert cost(dataset, "referenced_private_pages", "pfn-range") == 0
    assert (dataset["gup_reachable_bytes"] == 4096).all()


@pytest.mark.parametrize(
    ("confidential", "tables"),
    [("none", [2 + 513, 2 + 2]), ("snp", [2 + 513 + 3, 2 + 4 + 1]), ("tdx", [2 + 4 * 513] * 2)],
)
def test_stage2_tables_per_kind_of_guest(confidential: str, tables: list[int]) -> None:
    dataset = designs.compare(one_page_shared(confidential=confidential), ["hugetlb", "pfn-range"], samples=1)
    assert list(dataset["stage2_table_bytes"].values // 4096) == tables


@pytest.mark.parametrize(
    ("confidential", "tables"), [("sw_protected", 2 + 513), ("snp", 2 + 513 + 3), ("tdx", 2 + 4 * 513)]
)
def test_a_scenario_and_a_run_agree_about_second_stage_tables(confidential: str, tables: int) -> None:
    """4 GiB in 1 GiB pages with one 4 KiB page shared: :func:`simulate` and :func:`designs.compare` of the same stream."""
    import workbench as wb

    memory, nodes = 4 << 30, [{"id": 0, "memory_bytes": "16 GiB", "cpus": [0]}]
    scenario = wb.Scenario.from_mapping(
        {
            "host": {"name": "one", "nodes": nodes, "distances": [[10]]},
            "guest": {"memory": memory, "page_size": "1 GiB", "design": "hugetlb", "confidential": confidential},
            "operations": [
                {"op": "create", "flags": []},
                {"op": "fault", "by": "guest"},
                {"op": "convert", "offset": (GIB + 5) * 4096, "length": 4096, "to": "shared"},
            ],
        }
    )
    names = ["hugetlb", "hugetlb-hvo", "pfn-range"]
    simulated = wb.simulate(scenario, designs=names).isel(event=-1)
    compared = designs.compare(one_page_shared(confidential=confidential), names, samples=1)
    assert simulated["stage2_tables"].values.tolist() == (compared["stage2_table_bytes"].values // 4096).tolist()
    assert int(simulated["stage2_tables"].sel(design="hugetlb")) == tables
    share = simulated["mapping_share"].sel(design="hugetlb")
    leaves = compared["largest_leaf_bytes"].sel(design="hugetlb")
    assert float(share.sel(level=["2 MiB", "1 GiB"]).sum()) * memory == int(leaves)
    largest = {"sw_protected": "1 GiB", "snp": "2 MiB", "tdx": "4 KiB"}[confidential]
    assert float(share.sel(level=largest)) == (0.75 if confidential != "tdx" else 1.0)


def test_everything_back_to_private_costs_nothing_any_more() -> None:
    run = one_page_shared()
    back = np.array([(folio.CONVERT, (GIB + 5) * 4096, 4096, 0, 0, 0)], np.int64)
    dataset = designs.compare(replace(run, stream=np.concatenate((run.stream, back))), samples=3)
    assert cost(dataset, "struct_page_bytes", "pfn-range") == 0
    assert cost(dataset, "struct_page_peak_bytes", "pfn-range") == 4096
    assert cost(dataset, "struct_page_bytes", "hugetlb-hvo") == 4 * 4096
    assert cost(dataset, "merges", "hugetlb-hvo") == 1
    assert int(dataset["extents"]) == 1


def test_without_memory_for_struct_pages_only_hvo_cannot_split() -> None:
    """100 free pages: a split of 1 GiB needs 4095 and fails with ENOMEM, the light map needs one."""
    run = replace(one_page_shared(), vmemmap_free=100)
    dataset = designs.compare(run, samples=1)
    refused = dataset["event_errno"].isel(operation=-1)
    assert int(refused.sel(design="hugetlb-hvo")) == folio.ENOMEM
    assert not refused.drop_sel(design="hugetlb-hvo").any()
    with pytest.raises(WorkbenchError, match="hugetlb-hvo differs"):
        designs.check_same_answers(dataset)


def test_group_of_128_mib() -> None:
    dataset = designs.compare(one_page_shared(), ["pfn-range"], samples=1, group="128 MiB")
    assert cost(dataset, "struct_page_bytes", "pfn-range") == 2 << 20
    assert cost(dataset, "vmemmap_table_bytes", "pfn-range") == 0


@given(data=st.data())
@settings(max_examples=30)
def test_page_cache_nodes_without_building_the_tree(data: st.DataObject) -> None:
    """Against a real XArray with entries of 4 KiB, 2 MiB and 1 GiB."""
    giga = 2
    huge_1g = np.array(data.draw(st.lists(st.booleans(), min_size=giga, max_size=giga)))
    huge_2m = np.zeros(giga * 512, bool)
    words = np.zeros(giga * 4096, bool)
    tree = XarrayMap(giga * GIB)
    for block in range(giga):
        if huge_1g[block]:
            tree.insert(block * GIB, GIB, block * GIB)
    for block in data.draw(st.sets(st.integers(0, giga * 512 - 1), max_size=12)):
        if huge_1g[block // 512]:
            continue
        if data.draw(st.booleans()):
            huge_2m[block] = True
            tree.insert(block * 512, 512, 1 << 30)
        else:
            tree.max_order = 0
            for word in data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=8)):
                words[block * 8 + word] = True
                tree.insert(block * 512 + word * 64, 64, 1 << 31)
            tree.max_order = 18
    assert page_cache_nodes(words, huge_2m, huge_1g) == tree.nodes


def test_streams_are_reproducible_and_stay_inside() -> None:
    a = gen.guest_conversions("16 GiB", 1000, seed=3)
    np.testing.assert_array_equal(a, gen.guest_conversions("16 GiB", 1000, seed=3))
    assert not np.array_equal(a, gen.guest_conversions("16 GiB", 1000, seed=4))
    assert (a[:, 1] >= 0).all()
    assert (a[:, 1] + a[:, 2] <= 16 << 30).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: designs.guest_run("1 GiB", "3 MiB"), "page_size"),
        (lambda: designs.guest_run("1.5 GiB", "1 GiB"), "whole number"),
        (lambda: designs.compare(one_page_shared(), ["memfd"]), "designs: 'memfd' is unknown"),
        (lambda: designs.compare(one_page_shared(), ["hugetlb", "hugetlb"]), "once"),
        (lambda: designs.compare(one_page_shared(), group="1 MiB"), "group"),
        (lambda: designs.compare(one_page_shared(), structure="rbtree"), "structure"),
        (lambda: gen.guest_conversions("1 GiB", -1), "count"),
    ],
)
def test_bad_input_is_one_line(call: object, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_every_variable_says_what_it_is() -> None:
    dataset = designs.compare(one_page_shared(), samples=1)
    for name, variable in dataset.data_vars.items():
        assert variable.attrs["basis"] in {"exact", "counted", "modelled"}, name
        assert "units" in variable.attrs and "long_name" in variable.attrs
        assert variable.attrs["basis"] != "modelled" or variable.attrs["source"]


@pytest.mark.parametrize("page_size", ["4 KiB", "2 MiB"])
def test_a_scenario_answers_alike_under_every_design(page_size: str) -> None:
    """Through the engine: placement by policy, faults, conversions and a refused one."""
    import workbench as wb

    scenario = wb.Scenario.from_yaml(f"""
name: designs
host: {{name: h, nodes: [{{id: 0, memory_bytes: 4294967296, cpus: [0]}}, {{id: 1, memory_bytes: 4294967296, cpus: [1]}}],
        distances: [[10, 20], [20, 10]]}}
guest: {{memory: 64 MiB, page_size: "{page_size}", design: pfn-range, policy_interface: mbind,
        vm_type: sw_protected, small_page_fallback: false}}
kernel_profile: proposal-no-struct-page
operations:
  - {{op: create}}
  - {{op: convert, to: shared}}
  - {{op: mbind, mode: interleave, nodes: "0-1"}}
  - {{op: fault, by: host}}
  - {{op: pin, offset: 4 MiB, length: 8 KiB}}
  - {{op: convert, offset: 4 MiB, length: 2 MiB, to: private}}
  - {{op: unpin, offset: 4 MiB, length: 8 KiB}}
  - {{op: convert, offset: 4 MiB, length: 2 MiB, to: private}}
""")
    names = ["filemap", "pfn-range", "contiguous-4k"] if page_size == "4 KiB" else with_pages(page_size)
    dataset = wb.simulate(scenario, designs=names)
    assert list(dataset["design"].values) == list(names)
    for answer in ("event_ret", "event_errno", "event_pages", "pages_per_node", "page_node"):  # what guest and VMM see
        assert (dataset[answer] == dataset[answer].isel(design=0)).all(), answer
    assert list(dataset["event_errno"].values[-1]) == [0, 0, 0, 0, 0, folio.EAGAIN, 0, 0]
    assert (dataset["pages_per_node"].values > 0).all()


# ------------------------------------------------------------------------------------------------------ turning points


def test_turning_point_is_where_the_ratio_reaches_one() -> None:
    steps = np.array([0.01, 0.1, 1.0])
    at, most = design_sweeps.turning_point(steps, np.array([0.5, 0.5, 2.0]))
    assert at == pytest.approx(0.1 * 10**0.5) and most == 2
    assert design_sweeps.turning_point(steps, np.array([0.5, 0.9, 0.7])) == (None, 0.9)
    assert design_sweeps.turning_point(steps, np.array([1.0, 0.9, 0.7])) == (0.01, 1.0)


def test_scattered_single_pages_turn_the_answer_clusters_do_not() -> None:
    swept = design_sweeps.sharing(["2 MiB"], (1 / 1024, 1 / 4), (4 << 10, 2 << 20))
    whole = swept["metadata_bytes"].isel(case=0)
    ratio = whole.sel(design="pfn-range") / whole.sel(design="hugetlb-hvo")
    assert float(ratio.sel(run=4 << 10, share=1 / 1024)) < 0.5 < 1 < float(ratio.sel(run=4 << 10, share=1 / 4))
    assert (ratio.sel(run=2 << 20) < 1).all()
    text = design_sweeps.answers(swept)
    assert text.loc["all metadata of hugetlb-hvo"].iloc[0, 1].startswith("never")
    assert text.loc["all metadata of hugetlb-hvo"].iloc[0, 0].split("%")[0].replace(".", "").isdigit()
    cases = [str(case) for case in swept["case"].values]
    assert len(plots_designs.turning_points(swept, cases).axes) == 4


def test_free_ranges_of_single_pages_make_every_page_an_extent() -> None:
    swept = design_sweeps.sharing(["4 KiB"], (1 / 1024,), (4 << 10,))
    per_gib = swept["extents"].values.ravel()
    assert per_gib[1] == GIB - GIB // 1024 and per_gib[0] < GIB / 400


def compared(run: designs.FileWorkload) -> dict[str, np.ndarray]:
    """What is kept of a point, read off the Dataset of a comparison: for each GiB of guest."""
    result = designs.compare(run, samples=1)
    return {
        name: result[name].values * ((1 << 30) / result.attrs["guest_bytes"])
        for name in DesignSharing.variables
    }  # fmt: skip


@given(
    case=st.sampled_from([(size, free) for size, cases in design_sweeps.CASES.items() for free in cases]),
    share=st.floats(0, 1 / 8),
    run=st.sampled_from(design_sweeps.RUNS),
    confidential=st.sampled_from(["none", "sw_protected", "snp", "tdx"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=15)
def test_cells_have_the_numbers_of_a_comparison(
    case: tuple[str, str], share: float, run: int, confidential: str, seed: int
) -> None:
    size, free = case
    wanted = compared(design_sweeps._run(size, share, run, free, confidential, seed))
    grid = pickle.loads(pickle.dumps(design_sweeps._grid([case], [share], [run], confidential, seed)))
    cells = [design_sweeps.run_cell(grid.cell((0, 0, 0, at))) for at in range(len(DESIGNS))]
    scale = (1 << 30) / design_sweeps.GUESTS[size]
    for name in DesignSharing.variables:
        found = [cell[name] * scale for cell in cells if not np.isnan(cell[name])]
        assert found == np.atleast_1d(wanted[name]).tolist(), name


def test_a_sweep_of_designs_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (["2 MiB"], (1 / 1024, 1 / 4), (4 << 10, 2 << 20))
    carried_out, cells = design_sweeps.run_cell, []

    def ends(cell: Mapping[str, object]) -> dict[str, float]:
        if len(cells) == 30:
            raise KeyboardInterrupt
        cells.append(cell)
        return carried_out(cell)

    monkeypatch.setattr(design_sweeps, "run_cell", ends)
    with pytest.raises(KeyboardInterrupt):
        design_sweeps.sharing(*grid, out=tmp_path / "s.zarr", workers=0)
    monkeypatch.setattr(design_sweeps, "run_cell", lambda cell: cells.append(cell) or carried_out(cell))
    swept = design_sweeps.sharing(*grid, out=tmp_path / "s.zarr", workers=0)
    assert len(cells) < 48 + 30  # cells that were written are not computed again
    for at, free in enumerate(design_sweeps.CASES["2 MiB"]):
        for run in grid[2]:
            for share in grid[1]:
                wanted = compared(design_sweeps._run("2 MiB", share, run, free, "none", 0))
                for name, values in wanted.items():
                    here = swept[name].isel(case=at).sel(run=run, share=share).values
                    np.testing.assert_array_equal(here, values, name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"page_sizes": ["3 KiB"]}, "^page_size: '3 KiB' is not one of"),
        ({"shares": []}, r"^sharing.shares: needs at least one"),
        ({"confidential": "sev"}, "^confidential: 'sev' is not one of"),
        ({"page_sizes": ["4 KiB"], "shares": [2.0], "runs": [4096]}, "^sharing: 12 of 12 cells failed, the first: .*share: 2"),
    ],
)  # fmt: skip
def test_a_sweep_of_designs_says_what_is_wrong(given: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        design_sweeps.sharing(**given, workers=0)


def test_structures_cross_where_extents_are_many() -> None:
    cut = design_sweeps.structures((10, 20_000), memory=1 << 30)
    depth = cut["map_depth"].to_pandas()
    assert depth.loc[10, "maple"] < depth.loc[10, "page cache"] < depth.loc[20_000, "maple"]
    assert (cut["lookup_time"] > 0).all() and len(plots_designs.structures(cut).axes) == 3
    assert 1 < design_sweeps.flat_wins_from(1 << 26) < 8


def test_a_new_design_is_an_object_and_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else has to know its name: one that is like another gives the same costs."""
    monkeypatch.setitem(DESIGNS, "like-hvo", replace(HUGETLB_HVO, name="like-hvo"))
    dataset = designs.compare(one_page_shared(), ["hugetlb-hvo", "like-hvo"], samples=2)
    xr.testing.assert_equal(dataset.sel(design="like-hvo", drop=True), dataset.sel(design="hugetlb-hvo", drop=True))


def test_the_names_of_the_designs_stand_in_one_place() -> None:
    """Code asks a design what it is like, not what it is called; the swept figures compare two of them by name."""
    root = Path(designs.__file__).parents[1]
    for path in root.rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if texts & {"hugetlb-hvo", "pfn-range"}:
            assert path.parent.name == "design" or path.name == "sweeps.py", path

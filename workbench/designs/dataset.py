"""The Dataset of a run under several designs: every variable says its unit and what it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.designs.accounting import Int64s
from workbench.designs.runs import DRAWS, Outcome
from workbench.kernels.maps import pagemap
from workbench.units import PAGE_SIZE

if TYPE_CHECKING:
    from workbench.designs.runs import Run

METADATA = ("struct_page_bytes", "vmemmap_table_bytes", "page_cache_bytes", "private_map_bytes", "state_tree_bytes",
            "stage2_table_bytes")  # fmt: skip
"""Parts of ``metadata_bytes``."""

_VARIABLES: dict[str, tuple[str, str, str]] = {
    "struct_page_bytes": ("B", "struct pages of the guest's memory at the end", "counted"),
    "struct_page_peak_bytes": ("B", "most struct pages at any sample", "counted"),
    "vmemmap_table_bytes": ("B", "page tables of a vmemmap not mapped by 2 MiB", "counted"),
    "page_cache_bytes": ("B", "XArray nodes of the page cache", "counted"),
    "private_map_bytes": ("B", "light offset -> pfn map", "counted"),
    "state_tree_bytes": ("B", "maple tree of private and shared ranges", "counted"),
    "stage2_table_bytes": ("B", "stage-2 page tables of the fully mapped guest", "counted"),
    "splits": ("1", "huge folios split", "counted"),
    "merges": ("1", "huge folios merged", "counted"),
    "pages_restructured": ("4 KiB pages", "pages of the folios split and merged", "counted"),
    "struct_pages_written": ("1", "struct pages initialised by conversions", "counted"),
    "vmemmap_taken_pages": ("4 KiB pages", "vmemmap pages allocated by conversions", "counted"),
    "vmemmap_freed_pages": ("4 KiB pages", "vmemmap pages given back", "counted"),
    "invalidations": ("1", "invalidations sent to the users of the memory", "counted"),
    "invalidated_bytes": ("B", "memory named in invalidations", "counted"),
    "map_operations": ("1", "changes of the offset -> pfn structure", "counted"),
    "failed_operations": ("1", "operations that returned an errno", "exact"),
    "lookup_nodes": ("1", "nodes a look-up of a private page touches", "counted"),
    "gup_reachable_bytes": ("B", "memory that get_user_pages can reach", "counted"),
    "handover_bytes": ("B", "metadata of a kexec handover", "counted"),
    "largest_leaf_bytes": ("B", "memory mapped by leaves of 2 MiB or more", "counted"),
    "referenced_private_pages": ("4 KiB pages", "private pages with a reference count", "counted"),
}


def dataset(run: Run, designs: Sequence[str], outcomes: list[Outcome], borders: Int64s) -> xr.Dataset:
    """What :func:`workbench.designs.compare.compare` returns."""
    variables: dict[str, Any] = {}
    for name, (units, long_name, basis) in _VARIABLES.items():
        dtype = float if name == "lookup_nodes" else np.int64
        variables[name] = _by_design([outcome.values[name] for outcome in outcomes], dtype, units, long_name, basis)
    variables["metadata_bytes"] = _by_design(
        [sum(outcome.values[name] for name in METADATA) for outcome in outcomes], np.int64, "B",
        "all metadata at the end", "counted",
    )  # fmt: skip
    variables["conversion_cycles"] = (
        ("design", "draw"),
        np.stack([outcome.cycles for outcome in outcomes]),
        {"units": "cycles", "long_name": "cycles of all conversions", "basis": "modelled",
         "source": "workbench/costs.py: conversion_fixed, split_merge_per_page, invalidation, struct_page_init"},
    )  # fmt: skip
    for name, units, long_name in (
        ("struct_page_bytes", "B", "struct pages"),
        ("splits", "1", "huge folios split so far"),
    ):
        variables[f"{name}_over_run"] = (
            ("design", "sample"),
            np.array([outcome.series[name] for outcome in outcomes], np.int64),
            {"units": units, "long_name": long_name, "basis": "counted"},
        )
    for name, values, units, long_name in (
        ("event_errno", [outcome.errors for outcome in outcomes], "1", "errno (0: success; -7: SIGBUS)"),
        ("event_error_offset", [outcome.offsets for outcome in outcomes], "B", "offset the error names (-1: none)"),
    ):
        attributes = {"units": units, "long_name": long_name, "basis": "exact"}
        variables[name] = (("design", "operation"), np.array(values, np.int64), attributes)
    nodes = "node index of the unit (-1: absent; with 4 KiB pages 0 where a 2 MiB block has any)"
    variables["unit_node"] = (
        ("design", "unit"),
        np.array([outcome.units for outcome in outcomes], np.int64),
        {"units": "1", "long_name": nodes, "basis": "exact"},
    )
    for name, texts, long_name in (
        ("content_order", [_digest(o.shared, run.pages) for o in outcomes], "digest of every page's state"),
        ("poisoned_pages", [_pages(o.poisoned) for o in outcomes], "poisoned pages"),
    ):
        variables[name] = _by_design(texts, str, "", long_name, "exact")
    if "pfn-range" in designs:
        light = outcomes[list(designs).index("pfn-range")].values
        for what, units, long_name in (
            ("bytes", "B", "light map as each structure"),
            ("depth", "1", "nodes a look-up of the middle extent touches"),
        ):
            variables[f"map_{what}"] = (
                "structure",
                np.array([light[f"map_{what}_{name}"] for name in pagemap.NAMES], np.int64),
                {"units": units, "long_name": long_name, "basis": "counted"},
            )
        variables["extents"] = (
            (),
            np.int64(light["extents"]),
            {"units": "1", "long_name": "extents of the light map", "basis": "counted"},
        )
    coordinates = {
        "design": np.array(designs, dtype=str),
        "draw": np.arange(DRAWS),
        "sample": borders[1:],
        "structure": np.array(pagemap.NAMES, dtype=str),
    }
    made = xr.Dataset(variables, coordinates)
    made["sample"].attrs.update(units="1", long_name="operations done")
    made["draw"].attrs.update(units="1", long_name="draw of the modelled costs (0: the values as given)")
    made.attrs.update(
        guest_bytes=run.pages * PAGE_SIZE,
        page_size=run.page_size,
        confidential=run.confidential,
        operations=len(run.stream),
    )
    return made


def _by_design(values: Sequence[Any], dtype: type, units: str, long_name: str, basis: str) -> tuple[Any, ...]:
    return "design", np.array(values, dtype), {"units": units, "long_name": long_name, "basis": basis}


def _digest(shared: np.ndarray, pages: int) -> str:
    return hashlib.sha256(shared[: -(-pages // 64)].tobytes()).hexdigest()[:16]


def _pages(pages: Int64s) -> str:
    return " ".join(str(page) for page in pages.tolist())

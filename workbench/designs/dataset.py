"""The Dataset of a run under several designs: every variable says its unit and what it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench import results
from workbench.design.design import Design
from workbench.designs.accounting import Int64s
from workbench.designs.runs import DRAWS, DesignOutcome
from workbench.kernels.maps import pagemap
from workbench.units import PAGE_SIZE
from workbench.variables import DesignCosts

if TYPE_CHECKING:
    from workbench.designs.runs import FileWorkload

METADATA = ("struct_page_bytes", "vmemmap_table_bytes", "page_cache_bytes", "private_map_bytes", "state_tree_bytes",
            "stage2_table_bytes")  # fmt: skip
"""Parts of ``metadata_bytes``."""

_OF_OUTCOMES = tuple(name for name, variable in DesignCosts.variables.items() if variable.dims == ("design",))
"""Variables with one value for each design: those of :attr:`DesignOutcome.values`, and a few more that follow from them."""


def dataset(
    run: FileWorkload, designs: Sequence[Design], outcomes: list[DesignOutcome], borders: Int64s, provenance: str
) -> xr.Dataset:
    """What :func:`workbench.designs.compare.compare` returns."""
    values: dict[str, object] = {}
    for name in _OF_OUTCOMES:
        if name in outcomes[0].values:
            dtype = float if name == "lookup_nodes" else np.int64
            values[name] = np.array([outcome.values[name] for outcome in outcomes], dtype)
    values["metadata_bytes"] = np.array(
        [sum(outcome.values[name] for name in METADATA) for outcome in outcomes], np.int64
    )
    values["conversion_cycles"] = np.stack([outcome.cycles for outcome in outcomes])
    for name in ("struct_page_bytes", "splits"):
        values[f"{name}_over_run"] = np.array([outcome.series[name] for outcome in outcomes], np.int64)
    values["event_errno"] = np.array([outcome.errors for outcome in outcomes], np.int64)
    values["event_error_offset"] = np.array([outcome.offsets for outcome in outcomes], np.int64)
    values["unit_node"] = np.array([outcome.units for outcome in outcomes], np.int64)
    values["content_order"] = np.array([_digest(outcome.shared, run.pages) for outcome in outcomes], str)
    values["poisoned_pages"] = np.array([_pages(outcome.poisoned) for outcome in outcomes], str)
    for light in [o.values for design, o in zip(designs, outcomes, strict=True) if design.store == "pfn map"][:1]:
        for what in ("bytes", "depth"):
            values[f"map_{what}"] = np.array([light[f"map_{what}_{name}"] for name in pagemap.NAMES], np.int64)
        values["extents"] = np.int64(light["extents"])
    return results.make(
        DesignCosts,
        values,
        {
            "design": np.array([design.name for design in designs], dtype=str),
            "draw": np.arange(DRAWS),
            "sample": borders[1:],
            "structure": np.array(pagemap.NAMES, dtype=str),
        },
        provenance=provenance,
        attributes={
            "guest_bytes": run.pages * PAGE_SIZE,
            "page_size": run.page_size,
            "confidential": run.confidential,
            "operations": len(run.stream),
        },
    )


def _digest(shared: np.ndarray, pages: int) -> str:
    return hashlib.sha256(shared[: -(-pages // 64)].tobytes()).hexdigest()[:16]


def _pages(pages: Int64s) -> str:
    return " ".join(str(page) for page in pages.tolist())

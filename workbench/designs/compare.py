"""Six ways to track the memory of a guest, compared on the same run.

================= =====================================================================================================
``filemap``       today: 4 KiB folios in the page cache, a struct page for every page
``hugetlb``       huge folios of the hugetlb series, every struct page kept (HVO off)
``hugetlb-hvo``   the same with the vmemmap optimisation: one vmemmap page per huge folio, the rest restored by a split
``pfn-range``     the seed mail's way out: private ranges in a light offset -> pfn map fed by a PFN range allocator, no
                  struct page for them; shared ranges in the page cache as before
``contiguous-4k`` 4 KiB folios in contiguous ranges, mapped as large as a range is in one state, never restructured
``thp``           2 MiB folios of the buddy allocator, split and re-formed; every struct page kept
================= =====================================================================================================

The run is the same for all: a stream of conversions, faults, pins and punches, on memory handed out in units of the
guest's page size, so that every page lies on the same node whatever the design. What the guest sees must be equal
(:func:`check_same_answers`); what it costs is what is compared. Conversions are all or nothing (generation B of the
huge-page series): block by block, how much is converted before a failure would depend on the size of the block.

Counts come from really carrying out the run (:mod:`workbench.designs.runs`) and from Linux's node sizes
(:mod:`workbench.designs.accounting`). Cycles are modelled from published measurements and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench.design import DESIGNS, choose
from workbench.designs import dataset as design_results
from workbench.designs.runs import FileWorkload, carry_out
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.kernels.maps import pagemap
from workbench.tracking.light_file import GROUPS
from workbench.tracking.tracked_file import choice
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes, parse_bytes
from workbench.variables import DesignCosts


def guest_run(
    memory: int | str,
    page_size: str = "1 GiB",
    conversions: int = 10_000,
    *,
    nodes: int = 2,
    confidential: str = "snp",
    vmemmap_free: int = 1 << 40,
    free_run: int | str = 0,
    **options: Any,
) -> FileWorkload:
    """A prefaulted guest that then converts memory; ``options`` go to :func:`generators_conversion.guest_conversions`."""
    size = parse_bytes(memory, "memory")
    unit = PAGE_SIZE << choice("page_size", page_size, PAGE_ORDERS)
    if size % unit or size == 0:
        raise WorkbenchError(f"memory: {format_bytes(size)} is not a whole number of {page_size} pages")
    pages = size // PAGE_SIZE
    stream = np.concatenate((gen.prefault(size, page_size, nodes), gen.guest_conversions(size, conversions, **options)))
    per_node = -(-pages // nodes // (1 << 18)) * (1 << 18) + (1 << 18)
    free = parse_bytes(free_run, "free_run") // PAGE_SIZE
    return FileWorkload(pages, page_size, (per_node,) * nodes, stream, confidential, vmemmap_free, free)


def compare(
    run: FileWorkload,
    designs: Sequence[str] = tuple(DESIGNS),
    *,
    structure: str = "maple",
    group: str = "256 KiB",
    samples: int = 64,
) -> xr.Dataset:
    """Carry out a run under each design; one Dataset with dimension ``design``.

    Parameters
    ----------
    structure : structure of the light map in ``private_map_bytes`` (xarray, maple, ranges, flat); all four are in
        ``map_bytes`` over dimension ``structure``
    group : pages whose struct pages come and go together in ``pfn-range``: 256 KiB (one vmemmap page) or 128 MiB
    samples : points of the series over the run (dimension ``sample``)
    """
    chosen = choose(designs)
    choice("group", group, GROUPS)
    if structure not in pagemap.NAMES:
        raise WorkbenchError(f"structure: {structure!r} is not one of {', '.join(pagemap.NAMES)}")
    borders = np.unique(np.linspace(0, len(run.stream), max(1, samples) + 1).astype(np.int64))
    outcomes = [carry_out(run, design, borders, structure, group) for design in chosen]
    provenance = results.provenance(
        command="designs.compare.compare", run=run, designs=designs, structure=structure, group=group,
        samples=samples,
    )  # fmt: skip
    return design_results.dataset(run, chosen, outcomes, borders, provenance)


def check_same_answers(dataset: xr.Dataset) -> None:
    """Raise WorkbenchError if any design answered differently: errno, its offset, node, state and poison of pages."""
    for name in ("event_errno", "event_error_offset", "unit_node", "content_order", "poisoned_pages"):
        values = dataset[name].values
        for row, design in zip(values[1:], dataset["design"].values[1:], strict=True):
            if not np.array_equal(row, values[0]):
                first = int(np.flatnonzero(np.atleast_1d(row != values[0]))[0])
                raise WorkbenchError(
                    f"designs: {name} of {design} differs from {dataset['design'].values[0]} at {first}: "
                    f"{np.atleast_1d(row)[first]} and {np.atleast_1d(values[0])[first]}"
                )


def sweep(
    memory: int | str = "64 GiB",
    *,
    page_sizes: Sequence[str] = ("2 MiB", "1 GiB"),
    conversions: Sequence[int] = (10, 100, 1_000, 10_000),
    designs: Sequence[str] = tuple(DESIGNS)[1:],
    confidential: str = "snp",
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Costs over page sizes and numbers of conversions; dimensions ``page_size``, ``conversions``, ``design``.

    ``options`` go to :func:`guest_run`.
    """
    text = results.provenance(
        command="designs.compare.sweep", memory=memory, page_sizes=page_sizes, conversions=conversions, designs=designs,
        confidential=confidential, seed=seed, **options,
    )  # fmt: skip
    rows = []
    for size in page_sizes:
        column = []
        for count in conversions:
            run = guest_run(memory, size, count, confidential=confidential, seed=seed, **options)
            dataset = compare(run, designs, samples=16)
            column.append(dataset.drop_dims(["operation", "unit", "sample", "structure"], errors="ignore"))
        rows.append(results.stack(DesignCosts, column, "conversions", list(conversions), provenance=text))
    out = results.stack(DesignCosts, rows, "page_size", list(page_sizes), provenance=text)
    out.attrs.update(guest_bytes=parse_bytes(memory, "memory"), confidential=confidential)
    return out

"""How long a conversion holds its file, step by step, under each design.

A conversion holds the invalidate lock of its file (``virt/kvm/guest_memfd.c: filemap_invalidate_lock``): a vCPU that faults
meanwhile waits. How many do follows from how often a vCPU faults, of which there is only an estimate. Steps are counted,
conversion by conversion, from the counters of the run; what a step takes is modelled (:mod:`workbench.costs`). Only split and
merge have a published figure, which holds all they do: struct pages allocated and written, xarray nodes, references frozen;
what of these can be counted is in ``inside``. Whether the kernel that was measured had HVO on is not said, so with and without it
they take the same. No conversion in place zeroes a page, which the count shows. What RMPUPDATE,
PSMASH, accepting a page or encrypting it takes nobody has published: such steps of SNP guests are counted and in no time, so
their stalls are at least what is said. All else is an estimate with a wide range: look at orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench import costs, results
from workbench.design import DESIGNS, choose
from workbench.design.design import Design
from workbench.designs.accounting import Int64s
from workbench.designs.compare import guest_run
from workbench.designs.runs import DRAWS, FileWorkload, folio_file, light_file
from workbench.errors import WorkbenchError
from workbench.kernels import light_map
from workbench.kernels.folios import run as folio
from workbench.tracking import struct_pages
from workbench.tracking.tracked_file import TrackedFile
from workbench.tracking.whole import Whole
from workbench.units import PAGE_SIZE
from workbench.variables import Stalls

STEPS = (
    "call", "invalidation", "folio checked", "page split or merged", "struct page written", "map store", "LRU drain",
    "RMPUPDATE", "PSMASH", "page zeroed",
)  # fmt: skip
UNTIMED = ("RMPUPDATE", "PSMASH")
"""Steps of which there is no published time."""
INSIDE = ("xarray nodes", "vmemmap pages allocated", "vmemmap pages freed", "vmemmap pages copied", "vmemmap flushes")
"""What steps above do besides; its time is in theirs. A flush (``mm/hugetlb_vmemmap.c: vmemmap_remap_range``) is of the
kernel's own range on all CPUs; those of guests are in ``invalidation``."""
_RESTRUCTURED = {
    folio.N_SPLITS_1G: folio.PAGES_1G, folio.N_MERGES_1G: folio.PAGES_1G, folio.N_SPLITS_2M: folio.PAGES_2M,
    folio.N_MERGES_2M: folio.PAGES_2M,
}  # fmt: skip
XARRAY_NODES_2M = 8
"""Nodes of the page cache that a split of 2 MiB into 4 KiB adds (recorded: ``datasets/recordings/conversion``)."""
MOST_CONVERSIONS = 100_000


def stalls(
    run: FileWorkload, designs: Sequence[str] = tuple(DESIGNS), *, boot: int | None = None, vcpus: int = 16
) -> xr.Dataset:
    """Carry out a run under each design and price every conversion of it.

    Parameters
    ----------
    run : the guest (:func:`workbench.designs.compare.guest_run`); at most :data:`MOST_CONVERSIONS` conversions
    designs : of :data:`workbench.design.DESIGNS`
    boot : how many of the conversions are the boot's; all if left out
    vcpus : other vCPUs, each of which faults now and then (``fault_interval``) and waits if the file is held

    Returns
    -------
    Dataset over ``design``, ``conversion``, ``step``, ``inside``, ``draw`` and ``node``; its attribute ``untimed`` names the
    steps taken that are counted and in no time
    """
    chosen = choose(designs)
    conversions = run.stream[:, folio.OP] == folio.CONVERT
    count = int(conversions.sum())
    if not 0 < count <= MOST_CONVERSIONS:
        raise WorkbenchError(f"run: {count} conversions; from 1 to {MOST_CONVERSIONS} are priced one by one")
    first = int(np.argmax(conversions))
    if vcpus < 0:
        raise WorkbenchError(f"vcpus: {vcpus}; 0 or more")
    tables, inside, headroom = zip(*(_carry_out(run, design, first) for design in chosen), strict=True)
    counted = np.stack(tables)  # (design, conversion, step)
    unit = _prices(DRAWS)
    time = np.einsum("ks,dcs->kdc", unit, counted.astype(float))
    interval = costs.sample(("fault_interval",), DRAWS)["fault_interval"][:, None, None]
    waiting = vcpus * -np.expm1(-time / interval)
    return results.make(
        Stalls,
        {
            "steps": counted,
            "to_shared": run.stream[conversions, folio.ARGUMENT],
            "stall": time,
            "boot_stall": time[..., :boot].sum(axis=2),
            "inside": np.stack(inside),
            "waiting": waiting,
            "boot_wait": (waiting * time / 2)[..., :boot].sum(axis=2),
            "headroom": np.stack(headroom),
        },
        {
            "design": np.array([design.name for design in chosen], dtype=str),
            "draw": np.arange(DRAWS),
            "conversion": np.arange(count),
            "step": np.array(STEPS, dtype=str),
            "part": np.array(INSIDE, dtype=str),
            "node": np.arange(len(run.memory)),
        },
        provenance=results.provenance(
            command="designs.stalls.stalls", run=run, designs=designs, boot=boot, vcpus=vcpus
        ),
        attributes={
            "guest_bytes": run.pages * PAGE_SIZE,
            "vcpus": vcpus,
            "page_size": run.page_size,
            "confidential": run.confidential,
            "untimed": ", ".join(step for step in UNTIMED if counted[..., STEPS.index(step)].any()),
        },
    )


def boot_run(memory: int | str, page_size: str = "1 GiB", *, confidential: str = "snp", seed: int = 0) -> FileWorkload:
    """A prefaulted guest that boots: what it shares for its virtqueues and bounce buffers, and nothing after that."""
    return guest_run(memory, page_size, 0, confidential=confidential, seed=seed)


def _prices(draws: int) -> np.ndarray:
    """Nanoseconds of one of each step, float64 (draws, steps), 0 of those of :data:`UNTIMED`; row 0 takes the parameters as
    given."""
    names = ("conversion_fixed", "invalidation", "reference_check", "split_merge_per_page", "struct_page_init", "map_store",
             "lru_drain", "clear_page")  # fmt: skip
    drawn = costs.sample((*names, "cpu_frequency"), draws)
    timed = [step for step in STEPS if step not in UNTIMED]
    prices = np.zeros((draws, len(STEPS)))
    for name, step in zip(names, timed, strict=True):
        cycles = costs.COSTS[name].unit.startswith("cycles")
        prices[:, STEPS.index(step)] = drawn[name] / (drawn["cpu_frequency"] if cycles else 1)
    return prices


def _carry_out(run: FileWorkload, design: Design, first: int) -> tuple[Int64s, Int64s, Int64s]:
    """Of every conversion the steps int64 (conversions, steps) and what is inside them; the peak of restored vmemmap by node."""
    file: TrackedFile
    if design.store == "pfn map":
        file, stream, rows, done = light_file(run), run.stream, np.arange(len(run.stream)), 0
    else:
        file, stream, rows, done = folio_file(run, design)
    begin = int(rows[first])
    if begin > done:
        file.run_stream(stream[done:begin])
    whole = Whole(file, len(run.memory)) if run.confidential == "snp" else None
    if whole is not None:
        whole.look(0, run.pages)
    out, inside, peak = [], [], np.zeros(len(run.memory), np.int64)
    before = _counters(file)
    for operation in stream[begin:]:
        entries = (0, 0) if whole is None else (whole.updates, whole.smashes)
        file.run_stream(operation[None])
        start, end = (
            operation[folio.OFFSET] // PAGE_SIZE,
            -(-(operation[folio.OFFSET] + operation[folio.LENGTH]) // PAGE_SIZE),
        )
        if whole is not None:
            whole.look(int(start), int(end))
        now = _counters(file)
        peak = np.maximum(peak, file.vmemmap_taken)
        if operation[folio.OP] == folio.CONVERT:
            steps = _steps(now - before, to_private=operation[folio.ARGUMENT] == 0, light=design.store == "pfn map")
            after = entries if whole is None else (whole.updates, whole.smashes)
            zeroed = int(now[folio.N_ZEROED] - before[folio.N_ZEROED])
            out.append([*steps, after[0] - entries[0], after[1] - entries[1], zeroed])
            inside.append(_inside(now - before, design))
        before = now
    return np.array(out, np.int64), np.array(inside, np.int64), peak


def _inside(change: Int64s, design: Design) -> list[int]:
    """:data:`INSIDE` of one conversion: nodes that splits make (recorded), and vmemmap pages that came and went.

    HVO fills each page that it restores from the one it kept (``vmemmap_restore_pte``), and flushes once for each folio that it
    restores or optimises. Struct pages of shared groups are written anew; groups that go are flushed together.
    """
    nodes = int(change[folio.N_SPLITS_1G]) * folio.XARRAY_NODES_1G + int(change[folio.N_SPLITS_2M]) * XARRAY_NODES_2M
    taken, freed = int(change[folio.N_TAKEN]), int(change[folio.N_FREED])
    copied = flushes = 0
    if design.struct_pages == "optimised":
        copied, flushes = taken, sum(int(change[counter]) for counter in _RESTRUCTURED)
    elif design.struct_pages == "shared groups":
        flushes = int(freed > 0)
    return [nodes, taken, freed, copied, flushes]


def _counters(file: TrackedFile) -> Int64s:
    """Counters of the file, and the stores into its map behind them."""
    stores = file.state.counts[light_map.N_STORES] if isinstance(file.state, light_map.LightState) else 0
    return np.append(file.counts, stores).astype(np.int64)


def _steps(change: Int64s, to_private: bool, light: bool) -> list[int]:
    """The first seven of :data:`STEPS`, from what one conversion added to the counters."""
    restructured = sum(int(change[counter]) * pages for counter, pages in _RESTRUCTURED.items())
    written = int(change[folio.N_TAKEN]) * struct_pages.PAGES_PER_VMEMMAP_PAGE if light else 0
    checked = int(change[folio.N_CONVERTED]) if to_private else 0
    return [
        1,
        int(change[folio.N_INVALIDATIONS]),
        checked,
        restructured,
        written,
        int(change[-1]),
        int(change[folio.N_DRAINS]),
    ]

"""Questions about conversions, each answered by one Dataset: boots, scattered shared pages, pinned pages.

Used by notebook 03; every function runs whole streams in the kernel and takes well under a second at its defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import costs, results
from workbench.answer import Answer
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.running import run as run_scenario
from workbench.scenario import Scenario
from workbench.topology.host import Host
from workbench.tracking import folio_file as cv
from workbench.tracking import struct_pages
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.tracked_file import Int64s, choice
from workbench.truth import published
from workbench.units import PAGE_ORDERS, PAGE_SHIFT, PAGE_SIZE
from workbench.variables import (
    BootProfile,
    BootSplits,
    ConversionModes,
    ConversionRun,
    PinnedPages,
    RecordedHvo,
    ScatteredPages,
)

GIB = 1 << 30
DESIGNS = ("split in one step", "split in two stages", "no struct page for private memory")


def _provenance(function: str, **inputs: Any) -> str:
    return results.provenance(command=f"studies.conversion_studies.{function}", **inputs)


def _private(size: int, page_size: str, **options: Any) -> ConversionFile:
    file = ConversionFile(size, page_size, **options)
    file.run_stream(cv.populate(size))
    return file


def run(
    file: ConversionFile,
    stream: Int64s,
    every: int = 1,
    *,
    samples: int | None = None,
    seed: int = 0,
    name: str = "stream",
) -> xr.Dataset:
    """Carry out a stream and return a Dataset along ``event``, one row after each ``every`` operations.

    Variables: the counters of :data:`workbench.tracking.folio_file.EVENT_COUNTERS`, ``mapping_share`` (event, level),
    ``stage2_tables`` (event), ``vmemmap_pages`` (event, node), modelled ``conversion_cycles`` ([sample,] event, part)
    and, for each operation of the stream, ``operation_errno`` (operation).
    """
    result = file.run_stream(stream, every)
    two_stage = file.state.options[folio.SPLITTING] != folio.ONE_STEP
    data = cv.variables(result.series, samples, seed, two_stage=two_stage, largest_leaf=file.largest_leaf)
    data["operation_errno"] = result.errors
    coordinates = {
        "event": np.arange(1, len(result.series) + 1) * every,
        "level": list(cv.LEVELS),
        "part": list(cv.PARTS),
        "node": np.arange(len(file.host.vmemmap)),
    }
    attributes: dict[str, str | int | float] = {"scenario": name, "page_size": file.page_size, "guest_bytes": file.size}
    provenance = _provenance("run", file=attributes, stream=stream, every=every, samples=samples, seed=seed)
    return results.make(ConversionRun, data, coordinates, provenance=provenance, attributes=attributes)


def boot_sources(guest: gen.BootGuest, backings: Sequence[str] = ("2 MiB", "1 GiB")) -> xr.Dataset:
    """Which part of the boot splits how many huge pages: ``boot_splits`` (backing, source), ``boot_pages`` (backing)."""
    stream, source = gen.boot(guest)
    splits = np.zeros((len(backings), len(gen.SOURCES)), np.int64)
    for row, backing in enumerate(backings):
        series = _private(guest.memory, backing).run_stream(stream, 1).series
        done = series[:, folio.N_SPLITS_1G] + series[:, folio.N_SPLITS_2M]
        np.add.at(splits[row], source, np.diff(done, prepend=0))
    pages = [guest.memory >> (PAGE_SHIFT + PAGE_ORDERS[backing]) for backing in backings]
    return results.make(
        BootSplits,
        {"boot_splits": splits, "boot_pages": pages},
        {"backing": list(backings), "source": list(gen.SOURCES)},
        provenance=_provenance("boot_sources", guest=guest, backings=backings),
        attributes={"scenario": f"boot of a {guest.memory >> 30} GiB SNP guest"},
    )


def boot_against_published(guest: gen.BootGuest = gen.PUBLISHED_GUEST, samples: int = 100, seed: int = 0) -> xr.Dataset:
    """The published conversion profile beside the model: ``profile_published`` and ``profile_model`` (quantity).

    Splits are counted from the boot stream; the share of time in splits and merges takes the published 652 operations
    and the one cost per 4 KiB page, over its range (``sample``; 0 is the value set by the 1 GiB column). Pages left split are
    those that were not merged back: published are 30 merged of 2 MiB and 2 of 1 GiB, in the model's boot 3 and none.
    """
    table = published.read_table("gmem_conversion_profile")
    boots = boot_sources(guest)["boot_splits"].sum("source")
    merged = {row: table.cell("merged back at run time", f"{row[0]}{row[2]} backing") for row in ("2 MiB", "1 GiB")}
    series = np.zeros((1, len(folio.COUNTERS) + 1), np.int64)
    series[0, folio.N_SPLITS_2M] = table.cell("pages split during boot", "2M backing")
    series[0, folio.N_MERGES_2M] = table.cell("merged back at run time", "2M backing")
    spent = cv.cycles(series, samples, seed)[:, 0, cv.PARTS.index("split and merge")]
    total = table.cell("cycles of all conversions (kvm_gmem_convert_execute_work)", "2M backing")
    quantities = (
        "2 MiB pages split", "1 GiB pages split", "2 MiB pages left split", "1 GiB pages left split",
        "% of cycles in 2 MiB splits and merges",
    )  # fmt: skip
    model = np.empty((samples, len(quantities)))
    left = [_left_split(guest, backing) for backing in merged]
    model[:, :4] = [*(float(boots.sel(backing=backing)) for backing in merged), *left]
    model[:, 4] = 100 * spent / total
    split = [table.cell("pages split during boot", f"{row[0]}{row[2]} backing") for row in merged]
    measured = [
        *split,
        *(done - back for done, back in zip(split, merged.values(), strict=True)),
        100 * table.cell("share spent in split/merge", "2M backing"),
    ]
    return results.make(
        BootProfile,
        {"profile_published": measured, "profile_model": model},
        {"quantity": list(quantities)},
        provenance=_provenance("boot_against_published", guest=guest, samples=samples, seed=seed),
        attributes={"scenario": "boot of a 16 GiB SNP guest"},
    )


def _left_split(guest: gen.BootGuest, backing: str) -> int:
    """Huge pages that are split at the end of the boot."""
    file = _private(guest.memory, backing)
    file.run_stream(gen.boot(guest)[0])
    return (guest.memory >> (PAGE_SHIFT + PAGE_ORDERS[backing])) - file.count(
        "mapped_2m" if backing == "2 MiB" else "mapped_1g"
    )


def scattered_pages(
    counts: Sequence[int] = (1, 2, 4, 8, 16, 64, 256, 512, 1024, 4096), seed: int = 0, confidential: str = "none"
) -> xr.Dataset:
    """Shared pages at random places of one 1 GiB page: ``added_vmemmap`` and ``added_tables`` (design, shared).

    ``confidential``: kind of guest, which limits how large the page is mapped before and after.
    """
    largest = choice("confidential", confidential, LARGEST_LEAF)
    whole = struct_pages.stage2_table_pages(folio.PAGES_1G, 1, 0, largest)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 4]))
    places = rng.permutation(folio.PAGES_1G)
    vmemmap = np.zeros((len(DESIGNS), len(counts)), np.int64)
    tables = np.zeros_like(vmemmap)
    for column, count in enumerate(counts):
        offset = places[:count].astype(np.int64) * PAGE_SIZE
        stream = cv.conversions(offset, np.full(count, PAGE_SIZE), np.ones(count))
        for row, split in enumerate(("one-step", "two-stage", "two-stage")):
            file = _private(GIB, "1 GiB", split=split)
            file.run_stream(stream)
            vmemmap[row, column] = file.held_vmemmap.sum() if row < 2 else file.shared_groups
            mapped = file.count("mapped_1g"), file.count("mapped_2m")
            tables[row, column] = struct_pages.stage2_table_pages(folio.PAGES_1G, *mapped, largest) - whole
    return results.make(
        ScatteredPages,
        {"added_vmemmap": vmemmap, "added_tables": tables},
        {"design": list(DESIGNS), "shared": list(counts)},
        provenance=_provenance("scattered_pages", counts=counts, seed=seed, confidential=confidential),
        attributes={"scenario": "one 1 GiB page"},
    )


def pinned_pages(
    memory: int = 16 * GIB,
    pins: Sequence[int] = (0, 1, 2, 4, 8, 16, 32),
    buffers: int = 2000,
    generations: Sequence[str] = ("B", "C"),
    seed: int = 0,
) -> xr.Dataset:
    """Long-term pins on single shared pages while the guest takes everything back.

    Buffers anywhere become shared, some of their pages are pinned, then all of memory is converted to private in one call
    of each generation: ``kept_shared`` pages, ``broken_pages`` 1 GiB pages not whole again, and, after user space went on
    behind every offset that failed, ``calls_needed`` (generation, pins).
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    offsets = rng.permutation(memory // (64 << 10))[:buffers].astype(np.int64) * (64 << 10)
    share = cv.conversions(offsets, np.full(buffers, 64 << 10), np.ones(buffers))
    shape = (len(generations), len(pins))
    kept, broken, calls = (np.zeros(shape, np.int64) for _ in range(3))
    for row, generation in enumerate(generations):
        for column, count in enumerate(pins):
            file = _private(memory, "1 GiB", generation=generation)
            file.run_stream(share)
            for offset in offsets[:count]:
                file.pin(int(offset), PAGE_SIZE)
            outcome = file.convert(0, memory, "private")
            kept[row, column] = file.count("shared_pages")
            broken[row, column] = (memory >> 30) - file.count("mapped_1g")
            start, needed = 0, 1
            while outcome.offset is not None:
                # user space converts what lies before the page that is held, skips it and goes on
                held = outcome.offset
                if held > start:
                    file.convert(start, held - start, "private")
                    needed += 1
                start = held + PAGE_SIZE
                if start >= memory:
                    break
                outcome = file.convert(start, memory - start, "private")
                needed += 1
            calls[row, column] = needed
    return results.make(
        PinnedPages,
        {"kept_shared": kept, "broken_pages": broken, "calls_needed": calls},
        {"generation": list(generations), "pins": list(pins)},
        provenance=_provenance(
            "pinned_pages", memory=memory, pins=pins, buffers=buffers, generations=generations, seed=seed
        ),
        attributes={"scenario": f"{memory >> 30} GiB guest, {buffers} shared buffers"},
    )


MODES = {"out of place (7.3)": "7.3", "in place (7.4)": "7.4"}
"""The two ways of converting, and the first kernel profile or the last one that has each."""


def conversion_modes(
    host: Host, memory: int = 256 << 20, buffers: int = 500, *, samples: int = 100, seed: int = 0
) -> xr.Dataset:
    """One guest, the same conversions in both modes: what moves, what is allocated, what is zapped, and the time of it.

    A guest with private memory is touched from its last node; bounce buffers (4 KiB to 2 MiB, at random places) become
    shared and private again, and a vCPU of its first node touches all of it. Placement is that of the engine, so the
    drift is what the kernel's rules give; the same with threads that interleave gives the steps that the conversions move
    their rotation by, one for each page of the guest_memfd that is allocated. Time is modelled: ``conversion_fixed`` for
    each conversion, ``invalidation`` for each range zapped, ``clear_page`` for each page allocated (in place nothing is
    allocated, and what a page held is kept).

    Parameters
    ----------
    host : at least two nodes with CPUs and memory
    memory : bytes of the guest
    buffers : how many are shared and taken back
    samples, seed : draws over the ranges of the costs
    """
    ids = [node.id for node in host.nodes if node.cpus and node.memory_bytes]
    if len(ids) < 2:
        raise WorkbenchError(f"host: {host.name!r} has {len(ids)} nodes with CPUs and memory; two are needed")
    setup = [{"op": "create"}, {"op": "fault", "by": "guest", "task": "vcpu0"}]
    stream = [{"op": "convert_stream", "stream": "bounce_buffers", "count": buffers, "seed": seed}]
    touch = [{"op": "convert", "to": "private"}, {"op": "fault", "by": "guest", "task": "vcpu1"}]
    guest = {"memory": memory, "vm_type": "sw_protected", "vcpus": [{"node": ids[-1]}, {"node": ids[0]}]}

    def answer(kernel: str, operations: list[dict[str, Any]]) -> Answer:
        values = {"host": host, "guest": guest, "operations": operations, "kernel_profile": kernel, "output": "pages"}
        return run_scenario(Scenario.model_validate(values))

    interleave = [{"op": "set_mempolicy", "mode": "interleave", "nodes": ids, "task": f"vcpu{row}"} for row in range(2)]
    rows: dict[str, list[Any]] = {
        name: []
        for name in (
            "before", "after", "drifted_pages", "peak_bytes", "allocated_pages", "refaulted_pages",
            "interleaved_drifted_pages", "rotation_steps",
        )
    }  # fmt: skip
    conversions, invalidations = [], []
    for kernel in MODES.values():
        begun, whole = answer(kernel, setup), answer(kernel, setup + stream + touch)
        first, last = begun["page_node"][0], whole["page_node"][0]
        used = whole["free_pages"][0].sum() - whole["free_pages"].sum(axis=1)
        rows["before"].append(begun["pages_per_node"][0])
        rows["after"].append(whole["pages_per_node"][0])
        rows["drifted_pages"].append(np.count_nonzero(first != last))
        rows["peak_bytes"].append(int(used.max()) * PAGE_SIZE)
        rows["allocated_pages"].append(int(whole["event_pages"][len(setup) :].sum()))
        rows["refaulted_pages"].append(_private_allocations(whole, len(setup)))
        turning = answer(kernel, interleave + setup), answer(kernel, interleave + setup + stream + touch)
        moved = turning[0]["page_node"][0] != turning[1]["page_node"][0]
        rows["interleaved_drifted_pages"].append(np.count_nonzero(moved))
        rows["rotation_steps"].append(_private_allocations(turning[1], len(interleave + setup)))
        invalidations.append(int(whole["invalidations"][-1] - whole["invalidations"][len(setup) - 1]))
        conversions.append(np.count_nonzero(np.char.startswith(whole["event_op"], "convert")))
    draws = costs.sample(("conversion_fixed", "invalidation", "clear_page", "cpu_frequency"), samples, seed)
    cycles = np.outer(draws["conversion_fixed"], conversions) + np.outer(draws["invalidation"], invalidations)
    time = cycles / draws["cpu_frequency"][:, None] + np.outer(draws["clear_page"], rows["allocated_pages"])
    return results.make(
        ConversionModes,
        rows
        | {"invalidations": invalidations, "modelled_time": time}
        | {name: begun[name] for name in ("node_cpus", "distance")},
        {"mode": list(MODES), "node": begun.node_ids, "node_to": begun.node_ids},
        provenance=_provenance(
            "conversion_modes", host=host, memory=memory, buffers=buffers, samples=samples, seed=seed
        ),
        attributes={"scenario": f"{memory >> 20} MiB guest on {host.name}, {buffers} bounce buffers"},
    )


def _private_allocations(run: Answer, setup: int) -> int:
    """Pages of the guest_memfd that were allocated after the first ``setup`` operations."""
    if "punched_pages" not in run:  # in place there is no other backend
        return int(run["event_pages"][setup:].sum())
    now, punched = run["private_backend_pages"], run["punched_pages"]
    return int(now[-1] - now[setup - 1] + punched[-1] - punched[setup - 1])


def recorded_hvo() -> xr.Dataset:
    """vmemmap pages that a real kernel counted and the model's, along ``step`` of the recorded boots."""
    steps = struct_pages.read_hvo_recording()
    return results.make(
        RecordedHvo,
        {
            "vmemmap_recorded": [step.measured_vmemmap for step in steps],
            "vmemmap_model": [step.model_vmemmap for step in steps],
            "huge_pages": [step.huge_pages for step in steps],
        },
        {"state": [f"{'HVO' if step.optimised else 'no HVO'}, {step.huge_pages} × {step.page_size}" for step in steps]},
        provenance=_provenance("recorded_hvo"),
        attributes={"scenario": "Linux 7.3.4, 6 GiB host"},
    )

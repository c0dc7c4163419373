"""A run carried out under one design: what the guest was answered, and what the design has at the end.

Huge and 4 KiB folios are :class:`workbench.tracking.folio_file.ConversionFile`, the seed mail's proposal is
:class:`workbench.tracking.light_file.LightFile`; both read the same stream.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench import costs
from workbench.design.design import Design
from workbench.designs import accounting as acc
from workbench.designs.accounting import Bools, Int64s
from workbench.errors import WorkbenchError
from workbench.kernels import bits, light_map
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple, pagemap
from workbench.tracking import struct_pages
from workbench.tracking.confidential import LARGEST_LEAF, leaves
from workbench.tracking.folio_file import CYCLE_PARAMETERS, ConversionFile, cycles
from workbench.tracking.host_memory import HostMemory, RangeMemory, spill_order
from workbench.tracking.light_file import LightFile
from workbench.tracking.tracked_file import TrackedFile, choice
from workbench.units import PAGE_ORDERS, PAGE_SIZE

DRAWS = 33
"""Draws of the modelled costs over their ranges; draw 0 takes the values as given. The same for all designs."""


@dataclass(frozen=True)
class FileWorkload:
    """One guest_memfd file and everything that happens to it.

    ``stream`` is int64 (n, 6) in the columns of :mod:`workbench.kernels.folios.run`: operation, byte offset, length,
    argument, node index for new memory, cpu. ``memory`` is what each node can give to guests, in pages.
    """

    pages: int
    page_size: str
    memory: tuple[int, ...]
    stream: np.ndarray = field(repr=False)
    confidential: str = "none"
    vmemmap_free: int = 1 << 40
    """Pages of the host that struct pages can be restored from."""
    free_run: int = 0
    """Pages of each free range that the PFN range allocator starts with, memory in use between them; 0: one range."""

    def __post_init__(self) -> None:
        choice("page_size", self.page_size, PAGE_ORDERS)
        choice("confidential", self.confidential, LARGEST_LEAF)
        unit = 1 << self.unit_order
        if self.pages <= 0 or self.pages % unit:
            raise WorkbenchError(
                f"pages: {self.pages} is not a whole number of {self.page_size} pages, as the file's size must be"
            )
        if self.stream.ndim != 2 or self.stream.shape[1] != 6:
            raise WorkbenchError(f"stream: shape {self.stream.shape} is not (operations, 6)")
        if self.free_run < 0 or self.free_run % unit:
            raise WorkbenchError(f"free_run: {self.free_run} pages are not whole {self.page_size} pages")

    @property
    def unit_order(self) -> int:
        return PAGE_ORDERS[self.page_size]


@dataclass
class DesignOutcome:
    """What one design answered and what it has at the end."""

    errors: Int64s
    offsets: Int64s
    values: dict[str, float]
    series: dict[str, list[int]]
    units: Int64s
    """Node index of each unit, -1 where none is present."""
    shared: np.ndarray
    counts: Int64s
    """Counters of the file, as :data:`workbench.kernels.folios.run.COUNTERS` names them."""
    poisoned: Int64s
    """Poisoned pages."""
    initialised: int = 0
    """Struct pages written for what became shared, beside those of folios that were split or merged."""

    @functools.cached_property
    def cycles(self) -> np.ndarray:
        """Of all conversions, float64 (DRAWS,), modelled; worked out for who asks."""
        spent = cycles(self.counts[None, :], DRAWS)[:, 0].sum(axis=1)
        if self.initialised:
            draws = costs.sample((*CYCLE_PARAMETERS, "struct_page_init"), DRAWS)  # the same draws as those of cycles()
            spent += draws["struct_page_init"] * draws["cpu_frequency"] * self.initialised
        return spent


def carry_out(
    run: FileWorkload,
    design: Design,
    borders: Int64s,
    structure: str,
    group: str,
    structures: Sequence[str] = pagemap.NAMES,
) -> DesignOutcome:
    """Carry out a run under one design; the series has a value for each of ``borders[1:]``.

    structures: those in which the light map is counted, ``structure`` among them.
    """
    if design.store == "pfn map":
        return _light(run, borders, structure, group, structures)
    return _folios(run, borders, design)


def _sampled(
    file: TrackedFile, stream: Int64s, borders: Int64s, done: int, sample: Callable[[], tuple[int, int]]
) -> tuple[Int64s, Int64s, dict[str, list[int]]]:
    """Errors and offsets of a stream whose first ``done`` operations are done, and the series."""
    errors, offsets = np.zeros(len(stream), np.int64), np.full(len(stream), -1, np.int64)
    series: dict[str, list[int]] = {"struct_page_bytes": [], "splits": []}
    for border in borders[1:]:
        if border > done:
            result = file.run_stream(stream[done:border])
            errors[done:border], offsets[done:border] = result.errors, result.offsets
            done = int(border)
        for values, value in zip(series.values(), sample(), strict=True):
            values.append(value)
    return errors, offsets, series


def _common(
    run: FileWorkload, file: TrackedFile, errors: Int64s, blocks: Bools, huge: tuple[int, int]
) -> dict[str, float]:
    """What is counted in the same way under every design."""
    shared = file.count("shared_pages")
    by_1g, by_2m = (int(count) for count in leaves(*huge, LARGEST_LEAF[run.confidential]))
    return {
        "state_tree_bytes": acc.state_tree_bytes(file.shared_ranges(), run.pages),
        "stage2_table_bytes": acc.stage2_bytes(blocks, by_1g, by_2m),
        "largest_leaf_bytes": ((by_1g << folio.ORDER_1G) + (by_2m << folio.ORDER_2M)) * PAGE_SIZE,
        "vmemmap_taken_pages": file.count("vmemmap_taken"),
        "vmemmap_freed_pages": file.count("vmemmap_freed"),
        "invalidations": file.count("invalidations"),
        "invalidated_bytes": file.count("invalidated_bytes"),
        "failed_operations": int((errors != 0).sum()),
        "gup_reachable_bytes": shared * PAGE_SIZE,
    }


# ---------------------------------------------------------------------------------------------------------- folios


def folio_file(run: FileWorkload, design: Design) -> tuple[ConversionFile, Int64s, Int64s, int]:
    """The file of a run under a design with a page cache, before anything has happened to it but what can be done at once.

    Returns the file, the stream as it has to be carried out, where in it each operation of the run is, and how many of its
    operations are done.
    """
    host = HostMemory.make(
        len(run.memory),
        vmemmap_pages=run.vmemmap_free // len(run.memory),
        pool_2m=[pages >> folio.ORDER_2M for pages in run.memory],
        pool_1g=[pages >> folio.ORDER_1G for pages in run.memory],
    )
    size = design.backing(run.page_size)
    file = ConversionFile(
        run.pages * PAGE_SIZE, size, host, generation="B", hvo=design.struct_pages == "optimised", folios=design.folios
    )
    by_unit = size != run.page_size
    stream, rows = _by_unit(run) if by_unit else (run.stream, np.arange(len(run.stream)))
    return file, stream, rows, _populated(run, file.state, stream) if by_unit else 0


def _folios(run: FileWorkload, borders: Int64s, design: Design) -> DesignOutcome:
    hvo = design.struct_pages == "optimised"
    file, stream, rows, done = folio_file(run, design)

    def sample() -> tuple[int, int]:
        if hvo and run.unit_order:
            struct_page = ((file.count("present_pages") >> run.unit_order) + int(file.vmemmap_taken.sum())) * PAGE_SIZE
        else:
            struct_page = file.count("present_pages") * struct_pages.STRUCT_PAGE
        return struct_page, file.count("splits_1g") + file.count("splits_2m")

    errors, offsets, series = _sampled(file, stream, np.append(rows, len(stream))[borders], done, sample)
    errors, offsets = errors[rows], offsets[rows]
    state, counts = file.state, file.counters()
    level = state.level
    words = (state.present != 0) | np.repeat(level == folio.SPLIT, 8)
    huge_2m, huge_1g = level == folio.HUGE_2M, (level == folio.HUGE_1G).reshape(-1, folio.BLOCKS_1G).all(axis=1)
    single = int(np.bitwise_count(state.present).sum()) + int((level == folio.SPLIT).sum()) * folio.PAGES_2M
    restructured = folio.PAGES_1G * (counts["splits_1g"] + counts["merges_1g"])
    restructured += folio.PAGES_2M * (counts["splits_2m"] + counts["merges_2m"])
    operations = sum(counts[f"{what}_{size}"] for what in ("splits", "merges") for size in ("1g", "2m"))
    present = level > folio.NONE
    values: dict[str, float] = {
        "struct_page_bytes": series["struct_page_bytes"][-1],
        "struct_page_peak_bytes": max(series["struct_page_bytes"]),
        "vmemmap_table_bytes": acc.hvo_table_bytes(counts["present_pages"], run.unit_order) if hvo else 0,
        "page_cache_bytes": acc.page_cache_bytes(words, huge_2m, huge_1g),
        "private_map_bytes": 0,
        "splits": counts["splits_1g"] + counts["splits_2m"],
        "merges": counts["merges_1g"] + counts["merges_2m"],
        "pages_restructured": restructured,
        "struct_pages_written": restructured,
        "map_operations": operations,
        "lookup_nodes": acc.page_cache_depth(run.pages, words, huge_2m, huge_1g),
        "handover_bytes": acc.folio_handover_bytes(
            {0: single, folio.ORDER_2M: int(huge_2m.sum()), folio.ORDER_1G: int(huge_1g.sum())}
        ),
        "referenced_private_pages": counts["present_pages"] - counts["shared_pages"],
        **_common(run, file, errors, present, (counts["mapped_1g"], counts["mapped_2m"])),
    }
    units = np.where(present, state.node.astype(np.int64), -1)[: -(-run.pages // folio.PAGES_2M)]
    if run.unit_order == 0:  # a node is kept per 2 MiB only: say what is present
        units = np.minimum(units, 0)
    units = units[:: max(1, (1 << run.unit_order) // folio.PAGES_2M)]
    return DesignOutcome(errors, offsets, values, series, units, state.shared, file.counts, file.poisoned())


def _by_unit(run: FileWorkload) -> tuple[Int64s, Int64s]:
    """Smaller folios under a run made for larger units: what a huge page would have brought in one fault.

    Before a fault on part of a unit comes one on all of it on the same node, whose answer nobody sees, so that memory is
    placed alike in all designs. Returns the stream and where in it each operation of the run is.
    """
    unit = PAGE_SIZE << run.unit_order
    offset, length = run.stream[:, folio.OFFSET], run.stream[:, folio.LENGTH]
    first, last = offset // unit * unit, -(-(offset + length) // unit) * unit
    partly = (run.stream[:, folio.OP] == folio.GUEST_FAULT) & ((first != offset) | (last != offset + length))
    partly &= (offset >= 0) & (length > 0) & (last <= run.pages * PAGE_SIZE)
    rows = np.arange(len(offset)) + np.cumsum(partly)
    stream = np.empty((len(offset) + int(partly.sum()), 6), np.int64)
    stream[rows] = run.stream
    before = rows[partly] - 1
    stream[before] = run.stream[partly]
    stream[before, folio.OFFSET], stream[before, folio.LENGTH] = first[partly], (last - first)[partly]
    return stream, rows


def _populated(run: FileWorkload, state: folio.FolioState, stream: Int64s) -> int:
    """Carry out the guest faults of whole, absent units at the start of a stream at once; returns how many.

    What folio by folio would leave: every page present in a folio of the file's size on its node, the per-CPU batch drained.
    """
    done = 0
    huge = state.options[folio.BACKING] == folio.ORDER_2M
    unit = PAGE_SIZE << run.unit_order
    for row in stream:
        op, offset, length, private, node, _ = row.tolist()
        if (
            op != folio.GUEST_FAULT
            or private != 1
            or length <= 0
            or offset % unit
            or length % unit
            or not 0 <= offset <= run.pages * PAGE_SIZE - length
            or not 0 <= node < len(run.memory)
        ):
            break
        low, high = offset // PAGE_SIZE, (offset + length) // PAGE_SIZE
        if state.level[low // 512 : high // 512].any():
            break
        state.level[low // 512 : high // 512] = folio.HUGE_2M if huge else folio.BASE
        state.node[low // 512 : high // 512] = node
        if huge:
            state.counts[folio.N_MAPPED_2M] += (high - low) // 512
            state.pool[node, 0] -= (high - low) // 512
        else:
            state.present[low // 64 : high // 64] = bits.ALL
        state.counts[folio.N_PRESENT] += high - low
        done += 1
    return done


# ------------------------------------------------------------------------------------------------------- light map


def _ranges(run: FileWorkload, pages: int, node: int) -> list[tuple[int, int]]:
    """Free ranges of a node: one, or as many of ``free_run`` pages as it takes, a unit in use behind each."""
    base, length = (node + 1) << 36, run.free_run or pages
    step = length + (1 << run.unit_order)
    return [(base + k * step, base + k * step + length) for k in range(-(-pages // length))]


def light_file(run: FileWorkload, group: str = "256 KiB") -> LightFile:
    """The file of a run without struct pages for private memory, before anything has happened to it."""
    nodes = len(run.memory)
    memory = RangeMemory(
        [_ranges(run, pages, node) for node, pages in enumerate(run.memory)],
        np.full(nodes, run.vmemmap_free // nodes, np.int64),
        spill_order(nodes),
    )
    return LightFile(run.pages * PAGE_SIZE, run.page_size, memory, generation="B", group=group)


def _light(run: FileWorkload, borders: Int64s, structure: str, group: str, structures: Sequence[str]) -> DesignOutcome:
    file = light_file(run, group)

    def sample() -> tuple[int, int]:
        return int(file.state.counts[light_map.N_VMEMMAP]) * PAGE_SIZE, 0

    errors, offsets, series = _sampled(file, run.stream, borders, 0, sample)
    state = file.state
    counts = dict(zip(light_map.COUNTERS, state.counts.tolist(), strict=True))
    per_unit, per_block = max(1, (1 << run.unit_order) // 512), max(1, 512 >> run.unit_order)
    blocks = acc.any_of(np.repeat(state.unit_pfn >= 0, per_unit), per_block)
    blocks = np.concatenate((blocks, np.zeros(-len(blocks) % folio.BLOCKS_1G, bool)))
    shared = np.concatenate((state.shared, np.zeros(len(blocks) * 8 - len(state.shared), np.uint64)))
    present_shared = np.where(np.repeat(blocks, 8), shared, np.uint64(0))
    words = present_shared != 0
    extents = file.extents()
    maps = {name: acc.map_size(name, run.pages, extents) for name in structures if name != "maple"}
    maps["maple"] = int(state.top[maple.NODES]) * maple.NODE_BYTES, int(state.top[maple.HEIGHT])
    values: dict[str, float] = {
        "struct_page_bytes": counts["vmemmap_pages"] * PAGE_SIZE,
        "struct_page_peak_bytes": counts["vmemmap_peak"] * PAGE_SIZE,
        "vmemmap_table_bytes": acc.group_table_bytes(words) if group == "256 KiB" else 0,
        "page_cache_bytes": acc.page_cache_bytes(words, blocks & False, acc.any_of(blocks & False, folio.BLOCKS_1G)),
        "private_map_bytes": maps[structure][0],
        "splits": 0,
        "merges": 0,
        "pages_restructured": 0,
        "struct_pages_written": counts["moved_to_filemap"],
        "map_operations": counts["map_operations"],
        "lookup_nodes": maps[structure][1],
        "handover_bytes": len(extents) * acc.EXTENT_BYTES
        + acc.folio_handover_bytes({0: int(np.bitwise_count(present_shared).sum())}),
        "referenced_private_pages": 0,
        **_common(run, file, errors, blocks, (counts["mapped_1g"], counts["mapped_2m"])),
        **{f"map_bytes_{name}": size for name, (size, _) in maps.items()},
        **{f"map_depth_{name}": depth for name, (_, depth) in maps.items()},
        "extents": len(extents),
    }
    units = np.where(state.unit_pfn >= 0, state.unit_node.astype(np.int64), -1)
    if run.unit_order == 0:
        units = np.where(blocks[: -(-run.pages // folio.PAGES_2M)], 0, -1)
    written = counts["vmemmap_taken"] * struct_pages.PAGES_PER_VMEMMAP_PAGE
    return DesignOutcome(errors, offsets, values, series, units, shared, file.counts, file.poisoned(), written)

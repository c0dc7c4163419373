"""Four ways to track the memory of a guest, compared on the same run.

=============== =====================================================================================================
``filemap``     today: 4 KiB folios in the page cache, a struct page for every page
``hugetlb``     huge folios of the hugetlb series, every struct page kept (HVO off)
``hugetlb-hvo`` the same with the vmemmap optimisation: one vmemmap page per huge folio, the rest restored by a split
``pfn-range``   the seed mail's way out: private ranges in a light offset -> pfn map fed by a PFN range allocator, no
                struct page for them; shared ranges in the page cache as before
=============== =====================================================================================================

The run is the same for all: a stream of conversions, faults, pins and punches, on memory handed out in units of the
guest's page size, so that every page lies on the same node whatever the design. What the guest sees must be equal
(:func:`check_same_answers`); what it costs is what is compared. Conversions are all or nothing (generation B of the
huge-page series): block by block, how much is converted before a failure would depend on the size of the block.

Counts come from really carrying out the run (:mod:`kernels.folio`, :mod:`kernels.light_map`) and from Linux's node
sizes. Cycles are modelled from published measurements and say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from kernels import bits, folio, kho, light_map, maple, pagemap, stage2, xarray_map
from workbench.errors import WorkbenchError
from workbench.offset_maps import MapleMap, offset_map
from workbench.units import PAGE_SIZE, format_bytes, parse_bytes

DESIGNS = ("filemap", "hugetlb", "hugetlb-hvo", "pfn-range")
UNIT_ORDER = {"4 KiB": 0, "2 MiB": 9, "1 GiB": 18}
STRUCT_PAGE = 64
VMEMMAP_PAGE = 4096
MAX_LEVEL = {"none": 2, "snp": 1, "tdx": 0}
GROUPS = {"256 KiB": light_map.GROUP_256K, "128 MiB": light_map.GROUP_128M}
ROTH = "LKML: Michael Roth, 12 Jul 2025 (16 GB SNP guest, hugetlb guest_memfd)"
CYCLES_CONVERSION = (320.0, 320.0, 320.0)
CYCLES_PER_SUBPAGE = (198.0, 177.3, 218.9)
"""Split or merge, per 4 KiB page of the block: middle, from the 1 GiB row, from the 2 MiB row of that table."""

Int64s = np.ndarray


@dataclass(frozen=True)
class Run:
    """One guest_memfd file and everything that happens to it.

    ``stream`` is int64 (n, 6) in the columns of :mod:`kernels.folio`: operation, byte offset, length, argument, node
    index for new memory, cpu. ``memory`` is what each node can give to guests, in pages.
    """

    pages: int
    page_size: str
    memory: tuple[int, ...]
    stream: np.ndarray = field(repr=False)
    confidential: str = "none"
    vmemmap_free: int = 1 << 40
    """Pages of the host that struct pages can be restored from."""

    def __post_init__(self) -> None:
        if self.page_size not in UNIT_ORDER:
            raise WorkbenchError(f"page_size: {self.page_size!r} is not one of {', '.join(UNIT_ORDER)}")
        if self.confidential not in MAX_LEVEL:
            raise WorkbenchError(f"confidential: {self.confidential!r} is not one of {', '.join(MAX_LEVEL)}")
        if self.pages <= 0 or self.pages % (1 << self.unit_order):
            raise WorkbenchError(
                f"pages: {self.pages} is not a whole number of {self.page_size} pages, as the file's size must be"
            )
        if self.stream.ndim != 2 or self.stream.shape[1] != 6:
            raise WorkbenchError(f"stream: shape {self.stream.shape} is not (operations, 6)")

    @property
    def unit_order(self) -> int:
        return UNIT_ORDER[self.page_size]


# --------------------------------------------------------------------------------------------------------- streams


def prefault(pages: int, unit_order: int, nodes: int) -> Int64s:
    """Guest faults that populate the whole file, equal parts of it on each node in turn."""
    units = pages >> unit_order
    borders = [units * k // nodes << unit_order for k in range(nodes + 1)]
    rows = [
        (folio.GUEST_FAULT, low * PAGE_SIZE, (high - low) * PAGE_SIZE, 1, node, 0)
        for node, (low, high) in enumerate(pairwise(borders))
        if high > low
    ]
    return np.array(rows, np.int64)


def swiotlb_bytes(memory: int) -> int:
    """Bounce buffer of a confidential guest: clamp(6 % of memory, 64 MiB, 1 GiB) in whole pages.

    ``arch/x86/mm/mem_encrypt.c: mem_encrypt_setup_arch``.
    """
    return min(max(memory * 6 // 100, 64 << 20), 1 << 30) // PAGE_SIZE * PAGE_SIZE


def guest_conversions(
    memory: int | str,
    conversions: int,
    *,
    seed: int = 0,
    vcpus: int = 16,
    scattered: float = 0.25,
    hot_bytes: int | str = "64 MiB",
    largest: int | str = "64 KiB",
) -> Int64s:
    """What a confidential guest converts: the bounce buffer and per-vCPU areas at boot, then buffers back and forth.

    At boot the swiotlb pool becomes shared, and for each vCPU and its queues some pages spread over memory (published:
    a 16 GB SNP guest touched 622 of 8192 2 MiB pages and 6 of 16 1 GiB pages). Afterwards drivers allocate buffers
    outside the pool: a range becomes shared, is used and returns. ``scattered`` of them lie anywhere in memory, the
    rest in a hot region. Sizes are log-uniform from 4 KiB to ``largest``.
    """
    size = parse_bytes(memory, "memory")
    pages = size // PAGE_SIZE
    hot = min(pages, max(1, parse_bytes(hot_bytes, "hot_bytes") // PAGE_SIZE))
    top = max(1, parse_bytes(largest, "largest") // PAGE_SIZE)
    if conversions < 0 or not 0 <= scattered <= 1:
        raise WorkbenchError(f"conversions: {conversions}, scattered: {scattered}; at least 0, and a share of 0 to 1")
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []
    pool = min(swiotlb_bytes(size), size // 4 // PAGE_SIZE * PAGE_SIZE)
    if pool:
        rows.append((3 * (pages // 4) * PAGE_SIZE, pool, 1))
    spots = np.unique(rng.integers(0, pages, 4 * vcpus))
    rows += [(int(page) * PAGE_SIZE, PAGE_SIZE, 1) for page in spots]
    pairs = conversions // 2
    length = np.exp2(rng.uniform(0, np.log2(top + 1), pairs)).astype(np.int64).clip(1, top)
    anywhere = rng.random(pairs) < scattered
    start = np.where(anywhere, rng.integers(0, pages, pairs), pages // 8 + rng.integers(0, hot, pairs))
    start = np.minimum(start, pages - length)
    # Some tens of buffers are in use at any time: a range returns that many conversions later.
    lag = 2 * vcpus
    events = np.concatenate((np.stack((np.arange(pairs), start, length, np.ones(pairs, np.int64)), 1),
                             np.stack((np.arange(pairs) + lag, start, length, np.zeros(pairs, np.int64)), 1)))  # fmt: skip
    events = events[np.lexsort((events[:, 3], events[:, 0]))]
    boot = np.array(rows, np.int64).reshape(-1, 3)
    offsets = np.concatenate((boot[:, 0], events[:, 1] * PAGE_SIZE))
    lengths = np.concatenate((boot[:, 1], events[:, 2] * PAGE_SIZE))
    shared = np.concatenate((boot[:, 2], events[:, 3]))
    zeros = np.zeros(len(offsets), np.int64)
    return np.stack((zeros + folio.CONVERT, offsets, lengths, shared, zeros, zeros), axis=1)


def guest_run(
    memory: int | str,
    page_size: str = "1 GiB",
    conversions: int = 10_000,
    *,
    nodes: int = 2,
    confidential: str = "snp",
    vmemmap_free: int = 1 << 40,
    **options: Any,
) -> Run:
    """A prefaulted guest that then converts memory (:func:`guest_conversions` takes the options)."""
    size = parse_bytes(memory, "memory")
    if page_size not in UNIT_ORDER:
        raise WorkbenchError(f"page_size: {page_size!r} is not one of {', '.join(UNIT_ORDER)}")
    unit = PAGE_SIZE << UNIT_ORDER[page_size]
    if size % unit or size == 0:
        raise WorkbenchError(f"memory: {format_bytes(size)} is not a whole number of {page_size} pages")
    pages = size // PAGE_SIZE
    stream = np.concatenate(
        (prefault(pages, UNIT_ORDER[page_size], nodes), guest_conversions(size, conversions, **options))
    )
    per_node = -(-pages // nodes // (1 << 18)) * (1 << 18) + (1 << 18)
    return Run(pages, page_size, (per_node,) * nodes, stream, confidential, vmemmap_free)


# ------------------------------------------------------------------------------------------------- carrying out


@dataclass
class _Outcome:
    """What one design answered and what it has at the end."""

    errors: np.ndarray
    offsets: np.ndarray
    values: dict[str, float]
    series: dict[str, list[float]]
    units: Int64s
    """Node index of each unit, -1 where none is present."""
    shared: np.ndarray


def compare(
    run: Run, designs: Sequence[str] = DESIGNS, *, structure: str = "maple", group: str = "256 KiB", samples: int = 64
) -> xr.Dataset:
    """Carry out a run under each design; one Dataset with dimension ``design``.

    Parameters
    ----------
    structure : structure of the light map in ``private_map_bytes`` (xarray, maple, ranges, flat); all four are in
        ``map_bytes`` over dimension ``structure``
    group : pages whose struct pages come and go together in ``pfn-range``: 256 KiB (one vmemmap page) or 128 MiB
    samples : points of the series over the run (dimension ``sample``)
    """
    unknown = [design for design in designs if design not in DESIGNS]
    if unknown or not designs or len(set(designs)) != len(designs):
        raise WorkbenchError(f"designs: {', '.join(unknown or designs) or 'none'}; each of {', '.join(DESIGNS)} once")
    if group not in GROUPS:
        raise WorkbenchError(f"group: {group!r} is not one of {', '.join(GROUPS)}")
    if structure not in pagemap.NAMES:
        raise WorkbenchError(f"structure: {structure!r} is not one of {', '.join(pagemap.NAMES)}")
    borders = np.unique(np.linspace(0, len(run.stream), max(1, samples) + 1).astype(np.int64))
    outcomes = [
        _light(run, borders, structure, group) if design == "pfn-range" else _folios(run, borders, design)
        for design in designs
    ]
    return _dataset(run, designs, outcomes, borders)


def _folios(run: Run, borders: Int64s, design: str) -> _Outcome:
    order = 0 if design == "filemap" else run.unit_order
    options = np.zeros(folio.OPTIONS, np.int64)
    options[folio.PAGES] = run.pages
    options[folio.BACKING] = order
    options[folio.HVO] = design == "hugetlb-hvo"
    options[folio.DRAIN] = 1
    pool = np.array([[pages >> 9, pages >> 18] for pages in run.memory], np.int64)
    state = folio.new_state(options, folio.new_host(*_vmemmap(run), pool))
    stream = _by_unit(run) if order == 0 and run.unit_order > 0 else run.stream
    errors = np.zeros(len(stream), np.int32)
    offsets = np.zeros(len(stream), np.int64)
    nothing = np.zeros((0, len(folio.COUNTERS)), np.int64)
    series: dict[str, list[float]] = {"struct_page_bytes": [], "splits": []}
    done = _populated(run, state, stream) if order == 0 and run.unit_order > 0 else 0
    offsets[:done] = -1
    for border in borders[1:]:
        while done < border:
            done = folio.run(state, stream[:border], errors[:border], offsets[:border], 0, nothing, done)
            if done < border:
                state = folio.grown(state)
        counts = state.counts
        series["struct_page_bytes"].append(_struct_pages(run, design, state, counts))
        series["splits"].append(int(counts[folio.N_SPLITS_1G] + counts[folio.N_SPLITS_2M]))
    return _folio_outcome(run, design, order, state, errors, offsets, series)


def _vmemmap(run: Run) -> tuple[Int64s, Int64s]:
    """Pages that struct pages can be restored from by node, and for each node the order in which nodes are asked."""
    nodes = len(run.memory)
    order = (np.arange(nodes)[:, None] + np.arange(nodes)) % nodes
    return np.full(nodes, run.vmemmap_free // nodes, np.int64), order


def _by_unit(run: Run) -> Int64s:
    """4 KiB folios under a run made for larger units: what a huge page would have brought in one fault.

    A fault on any page of a unit populates the unit on its node, so that memory is placed alike in all designs.
    """
    stream = run.stream.copy()
    unit = PAGE_SIZE << run.unit_order
    faults = stream[:, folio.OP] == folio.GUEST_FAULT
    first = stream[faults, folio.OFFSET] // unit * unit
    last = -(-(stream[faults, folio.OFFSET] + stream[faults, folio.LENGTH]) // unit) * unit
    inside = (stream[faults, folio.OFFSET] >= 0) & (stream[faults, folio.LENGTH] > 0) & (last <= run.pages * PAGE_SIZE)
    stream[np.flatnonzero(faults)[inside], folio.OFFSET] = first[inside]
    stream[np.flatnonzero(faults)[inside], folio.LENGTH] = (last - first)[inside]
    return stream


def _populated(run: Run, state: folio.State, stream: Int64s) -> int:
    """Carry out the guest faults of whole, absent units at the start of a stream at once; returns how many.

    What page by page would leave: every page present as a 4 KiB folio on its node, the per-CPU batch drained.
    """
    done = 0
    unit = PAGE_SIZE << run.unit_order
    for op, offset, length, private, node, _ in stream.tolist():
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
        state.level[low // 512 : high // 512] = folio.BASE
        state.node[low // 512 : high // 512] = node
        state.present[low // 64 : high // 64] = bits.ALL
        state.counts[folio.N_PRESENT] += high - low
        done += 1
    return done


def _struct_pages(run: Run, design: str, state: folio.State, counts: Int64s) -> int:
    """Bytes of struct pages the file's memory has now."""
    if design != "hugetlb-hvo" or run.unit_order == 0:
        return int(counts[folio.N_PRESENT]) * STRUCT_PAGE
    units = int(counts[folio.N_PRESENT]) >> run.unit_order
    return (units + int(state.taken.sum() - state.freed.sum())) * VMEMMAP_PAGE


def _folio_outcome(
    run: Run,
    design: str,
    order: int,
    state: folio.State,
    errors: np.ndarray,
    offsets: np.ndarray,
    series: dict[str, list[float]],
) -> _Outcome:
    counts = {name: int(value) for name, value in zip(folio.COUNTERS, state.counts, strict=True)}
    level = state.level
    words = np.zeros(len(state.shared), bool)
    words |= np.repeat(level == folio.SPLIT, 8)
    words |= state.present != 0
    huge_2m, huge_1g = level == folio.HUGE_2M, (level == folio.HUGE_1G).reshape(-1, 512).all(axis=1)
    cache = xarray_nodes(words, huge_2m, huge_1g)
    blocks = _blocks(state.shared, level != folio.NONE)
    split = counts["splits_1g"] * (1 << 18) + counts["splits_2m"] * 512
    merged = counts["merges_1g"] * (1 << 18) + counts["merges_2m"] * 512
    small = int(np.bitwise_count(state.present).sum()) + int((level == folio.SPLIT).sum()) * 512
    folios = {0: small, 9: int(huge_2m.sum()), 18: int(huge_1g.sum())}
    values: dict[str, float] = {
        "struct_page_bytes": series["struct_page_bytes"][-1],
        "struct_page_peak_bytes": max(series["struct_page_bytes"]),
        "vmemmap_table_bytes": _vmemmap_tables(run, counts["present_pages"]) if design == "hugetlb-hvo" else 0,
        "page_cache_bytes": cache * xarray_map.NODE_BYTES,
        "private_map_bytes": 0,
        "state_tree_bytes": _state_tree(state.shared, run.pages) * maple.NODE_BYTES,
        "stage2_table_bytes": _stage2_tables(run, design, blocks, level) * stage2.TABLE_BYTES,
        "splits": counts["splits_1g"] + counts["splits_2m"],
        "merges": counts["merges_1g"] + counts["merges_2m"],
        "pages_restructured": split + merged,
        "struct_pages_written": (split + merged) if order else 0,
        "vmemmap_taken_pages": counts["vmemmap_taken"],
        "vmemmap_freed_pages": counts["vmemmap_freed"],
        "invalidations": counts["invalidations"],
        "invalidated_bytes": counts["invalidated_bytes"],
        "map_operations": counts["splits_1g"] + counts["merges_1g"] + counts["splits_2m"] + counts["merges_2m"],
        "failed_operations": int((errors != 0).sum()),
        "lookup_nodes": _cache_depth(run, words, huge_1g, huge_2m),
        "gup_reachable_bytes": counts["shared_pages"] * PAGE_SIZE,
        "handover_bytes": _folio_handover(folios),
        "largest_leaf_bytes": _largest_leaf_share(run, blocks, level) if order else 0.0,
        "referenced_private_pages": 0 if design == "pfn-range" else counts["present_pages"] - counts["shared_pages"],
    }
    units = np.where(level.reshape(-1) != folio.NONE, state.node.astype(np.int64), -1)[: -(-run.pages // 512)]
    if run.unit_order == 0:  # a node is kept per 2 MiB only: say what is present
        units = np.minimum(units, 0)
    per = max(1, (1 << run.unit_order) // 512)
    return _Outcome(errors, offsets, values, series, units[::per], state.shared)


def _light(run: Run, borders: Int64s, structure: str, group: str) -> _Outcome:
    nodes = len(run.memory)
    start, end = np.zeros((nodes, 64), np.int64), np.zeros((nodes, 64), np.int64)
    for node, pages in enumerate(run.memory):
        start[node, 0] = (node + 1) << 36
        end[node, 0] = start[node, 0] + pages
    options = np.array([run.pages, run.unit_order, GROUPS[group], folio.GENERATION_B], np.int64)
    state = light_map.new_state(options, start, end, np.ones(nodes, np.int64), *_vmemmap(run))
    errors = np.zeros(len(run.stream), np.int32)
    offsets = np.zeros(len(run.stream), np.int64)
    series: dict[str, list[float]] = {"struct_page_bytes": [], "splits": []}
    done = 0
    for border in borders[1:]:
        while True:
            done = light_map.run(state, run.stream[:border], errors[:border], offsets[:border], done)
            if done == border:
                break
            state = light_map.grown(state)
        series["struct_page_bytes"].append(int(state.counts[light_map.N_VMEMMAP]) * VMEMMAP_PAGE)
        series["splits"].append(0)
    counts = {name: int(value) for name, value in zip(light_map.COUNTERS, state.counts, strict=True)}
    blocks_2m = -(-run.pages // 512)
    per = (1 << run.unit_order) / 512
    present = np.repeat(state.unit_pfn >= 0, int(per)) if per >= 1 else (
        _any_of(state.unit_pfn >= 0, 512)
    )  # fmt: skip
    level = np.where(present[:blocks_2m], folio.BASE, folio.NONE).astype(np.int8)
    level = np.concatenate((level, np.zeros(-len(level) % 512, np.int8)))
    shared = np.concatenate((state.shared, np.zeros(len(level) * 8 - len(state.shared), np.uint64)))
    present_shared = np.where(np.repeat(level != folio.NONE, 8), shared, np.uint64(0))
    cache = xarray_nodes(present_shared != 0, np.zeros(len(level), bool), np.zeros(len(level) // 512, bool))
    blocks = _blocks(shared, level != folio.NONE)
    extents = _extents(state)
    maps = {name: _map_of(name, run, extents) for name in pagemap.NAMES}
    own = (int(state.top[maple.NODES]) * maple.NODE_BYTES, int(state.top[maple.HEIGHT]))
    maps["maple"] = own
    shared_folios = int(np.bitwise_count(present_shared).sum())
    values: dict[str, float] = {
        "struct_page_bytes": counts["vmemmap_pages"] * VMEMMAP_PAGE,
        "struct_page_peak_bytes": counts["vmemmap_peak"] * VMEMMAP_PAGE,
        "vmemmap_table_bytes": int(_any_of(present_shared != 0, 512).sum()) * VMEMMAP_PAGE if group == "256 KiB" else 0,
        "page_cache_bytes": cache * xarray_map.NODE_BYTES,
        "private_map_bytes": maps[structure][0],
        "state_tree_bytes": _state_tree(shared, run.pages) * maple.NODE_BYTES,
        "stage2_table_bytes": _stage2_tables(run, "pfn-range", blocks, level) * stage2.TABLE_BYTES,
        "splits": 0,
        "merges": 0,
        "pages_restructured": 0,
        "struct_pages_written": counts["moved_to_filemap"],
        "vmemmap_taken_pages": counts["vmemmap_taken"],
        "vmemmap_freed_pages": counts["vmemmap_freed"],
        "invalidations": counts["invalidations"],
        "invalidated_bytes": counts["invalidated_bytes"],
        "map_operations": counts["map_operations"],
        "failed_operations": int((errors != 0).sum()),
        "lookup_nodes": maps[structure][1],
        "gup_reachable_bytes": counts["shared_pages"] * PAGE_SIZE,
        "handover_bytes": len(extents) * 24 + _folio_handover({0: shared_folios}),
        "largest_leaf_bytes": _largest_leaf_share(run, blocks, level),
        "referenced_private_pages": 0,
        **{f"map_bytes_{name}": size for name, (size, _) in maps.items()},
        **{f"map_depth_{name}": depth for name, (_, depth) in maps.items()},
        "extents": len(extents),
    }
    units = np.where(state.unit_pfn >= 0, state.unit_node.astype(np.int64), -1)
    if run.unit_order == 0:
        units = np.where(present[:blocks_2m], 0, -1)
    return _Outcome(errors, offsets, values, series, units, shared)


# ---------------------------------------------------------------------------------------------------- accounting


def _any_of(flags: np.ndarray, group: int) -> np.ndarray:
    padded = np.concatenate((flags, np.zeros(-len(flags) % group, bool)))
    return padded.reshape(-1, group).any(axis=1)


def xarray_nodes(words: np.ndarray, huge_2m: np.ndarray, huge_1g: np.ndarray) -> int:
    """Nodes of a page cache from where its entries are: the tree of :mod:`kernels.xarray_map` without building it.

    ``words`` bool (W,): 64-page groups with 4 KiB entries; ``huge_2m`` bool (B,), ``huge_1g`` bool (G,): larger ones.
    """
    highest = -1
    for flags, size in ((words, 64), (huge_2m, 512), (huge_1g, 1 << 18)):
        used = np.flatnonzero(flags)
        if len(used):
            highest = max(highest, (int(used[-1]) + 1) * size - 1)
    if highest < 0:
        return 0
    if highest < 64:  # only the first group; a file of one page would need no node
        return 1
    total = 0
    level, shift = words, 0
    while True:
        if shift == 6:
            level = level | _any_of(huge_2m, 8)[: len(level)]
        elif shift == 18:
            level = level | _any_of(huge_1g, 64)[: len(level)]
        total += int(level.sum())
        if highest >> shift < 64 and shift >= (18 if huge_1g.any() else 6 if huge_2m.any() else 0):
            return total
        level, shift = _any_of(level, 64), shift + 6


def _cache_depth(run: Run, words: np.ndarray, huge_1g: np.ndarray, huge_2m: np.ndarray) -> float:
    """Mean nodes a look-up in the page cache touches, over the present pages."""
    top = 0
    while (run.pages - 1) >> top >= 64:
        top += 6
    levels = {0: top // 6 + 1, 9: (top - 6) // 6 + 1, 18: (top - 18) // 6 + 1}
    weights = {0: int(words.sum()) * 64, 9: int(huge_2m.sum()) * 512, 18: int(huge_1g.sum()) << 18}
    total = sum(weights.values())
    return sum(max(1, levels[o]) * w for o, w in weights.items()) / total if total else 0.0


def _blocks(shared: np.ndarray, present: np.ndarray) -> Int64s:
    """Shared pages of each 2 MiB block (0 where absent)."""
    per_block = np.bitwise_count(shared).reshape(-1, 8).sum(axis=1).astype(np.int64)
    return np.where(present, per_block, 0)


def _state_tree(shared: np.ndarray, pages: int) -> int:
    """Nodes of the maple tree that holds private and shared ranges (equal neighbours are one range)."""
    shifted = (shared << np.uint64(1)) | np.concatenate(([np.uint64(0)], shared[:-1] >> np.uint64(63)))
    changes = shared ^ shifted
    rows = np.flatnonzero(changes)
    starts = [0]
    for row in rows:
        word = int(changes[row])
        while word:
            bit = word & -word
            position = int(row) * 64 + bit.bit_length() - 1
            if 0 < position < pages:
                starts.append(position)
            word ^= bit
    borders = np.unique(np.array(starts, np.int64))
    lengths = np.diff(np.append(borders, pages))
    # Two values that never continue each other: private 0, shared 1, at pfns far apart.
    value = (np.arange(len(borders), dtype=np.int64) & 1) << 40
    tree = MapleMap(pages)
    tree.run(np.stack((borders, lengths, value), axis=1))
    return tree.nodes


def _vmemmap_tables(run: Run, present_pages: int) -> int:
    """PTE tables where the vmemmap is no longer mapped by 2 MiB: one per 128 MiB of memory, never folded back."""
    return -(-present_pages // (1 << 15)) * VMEMMAP_PAGE if run.unit_order else 0


def _stage2_tables(run: Run, design: str, blocks: Int64s, level: np.ndarray) -> int:
    """Table pages of a fully mapped guest, with the largest leaves each design allows."""
    limit = MAX_LEVEL[run.confidential]
    present = level != folio.NONE
    giga_present = present.reshape(-1, 512).any(axis=1)
    upper = 1 + -(-len(giga_present) // 512)  # root and the tables below it
    if design == "filemap" or limit == 0 or (run.unit_order == 0 and design != "pfn-range"):
        small, no_giga = present, giga_present
    elif design == "pfn-range":
        small = present & (blocks > 0)
        whole = present.reshape(-1, 512).all(axis=1) & ~(blocks.reshape(-1, 512) > 0).any(axis=1)
        contiguous = run.unit_order == 18
        no_giga = giga_present & ~(whole & contiguous & (limit == 2))
        if run.unit_order == 0:
            small = present  # no unit larger than a page is guaranteed to be aligned
    else:
        small = present & (level <= folio.SPLIT)
        no_giga = giga_present & ~((level.reshape(-1, 512) == folio.HUGE_1G).all(axis=1) & (limit == 2))
    return upper + int(no_giga.sum()) + int(small.sum())


def _largest_leaf_share(run: Run, blocks: Int64s, level: np.ndarray) -> float:
    """Bytes that the stage-2 tables can map by leaves of 2 MiB or more."""
    if MAX_LEVEL[run.confidential] == 0 or run.unit_order == 0:
        return 0.0
    if (level > folio.BASE).any():
        return float((level >= folio.HUGE_2M).sum()) * 512 * PAGE_SIZE
    return float(((level == folio.BASE) & (blocks == 0)).sum()) * 512 * PAGE_SIZE


def _folio_handover(folios: dict[int, int]) -> int:
    """Metadata of the per-folio scheme for so many folios of each order, their trees dense at best."""
    total = sum(folios.values())
    if total == 0:
        return 0
    tree = 1 + sum(kho.dense_tree_nodes(count) - 1 for count in folios.values() if count)
    return sum(kho.folio_scheme_bytes(total, tree).values())


def _extents(state: light_map.State) -> list[tuple[int, int, int]]:
    """Extents of the private map, as stored."""
    found, path = np.zeros(3, np.int64), np.zeros((2, 32), np.int64)
    result = []
    index = 0
    while maple.find(state.nodes, state.top, index, found, path):
        first, last, pfn = (int(value) for value in found)
        result.append((first, last + 1 - first, pfn))
        index = last + 1
    return result


def _map_of(structure: str, run: Run, extents: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """Bytes and depth of a structure holding the extents."""
    rows = np.array(list(extents), np.int64).reshape(-1, 3)
    if structure == "flat":
        return run.pages * 8, 1
    tree = offset_map(structure, run.pages, max_order=18)
    if len(rows):
        tree.run(rows)
    middle = int(rows[len(rows) // 2, 0]) if len(rows) else 0
    return tree.bytes, tree.depth(middle)


# ------------------------------------------------------------------------------------------------------ Dataset

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


def _dataset(run: Run, designs: Sequence[str], outcomes: list[_Outcome], borders: Int64s) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name, (units, long_name, basis) in _VARIABLES.items():
        dtype = float if name in ("lookup_nodes", "largest_leaf_bytes") else np.int64
        values = np.array([outcome.values[name] for outcome in outcomes], dtype)
        variables[name] = ("design", values, {"units": units, "long_name": long_name, "basis": basis})
    metadata = ("struct_page_bytes", "vmemmap_table_bytes", "page_cache_bytes", "private_map_bytes",
                "state_tree_bytes", "stage2_table_bytes")  # fmt: skip
    variables["metadata_bytes"] = (
        "design",
        np.array([sum(outcome.values[name] for name in metadata) for outcome in outcomes], np.int64),
        {"units": "B", "long_name": "all metadata at the end", "basis": "counted"},
    )
    converted = int((run.stream[:, folio.OP] == folio.CONVERT).sum())
    restructured = np.array([outcome.values["pages_restructured"] for outcome in outcomes])
    cycles = np.stack(
        [converted * c + restructured * s for c, s in zip(CYCLES_CONVERSION, CYCLES_PER_SUBPAGE, strict=True)], axis=1
    )
    variables["conversion_cycles"] = (
        ("design", "bound"),
        cycles,
        {"units": "cycles", "long_name": "cycles of all conversions", "basis": "modelled",
         "source": f"{ROTH}: 320 cycles each, 177 to 219 per 4 KiB page split or merged"},
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
    variables["event_errno"] = (
        ("design", "operation"),
        np.array([outcome.errors for outcome in outcomes], np.int64),
        {"units": "1", "long_name": "errno (0: success; -7: SIGBUS)", "basis": "exact"},
    )
    variables["event_error_offset"] = (
        ("design", "operation"),
        np.array([outcome.offsets for outcome in outcomes], np.int64),
        {"units": "B", "long_name": "offset the error names (-1: none)", "basis": "exact"},
    )
    nodes = "node index of the unit (-1: absent; with 4 KiB pages 0 where a 2 MiB block has any)"
    variables["unit_node"] = (
        ("design", "unit"),
        np.array([outcome.units for outcome in outcomes], np.int64),
        {"units": "1", "long_name": nodes, "basis": "exact"},
    )
    variables["content_order"] = (
        ("design",),
        np.array([_digest(outcome.shared, run.pages) for outcome in outcomes], dtype=str),
        {"units": "", "long_name": "digest of the private/shared state of every page", "basis": "exact"},
    )
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
        "bound": np.array(["middle", "low", "high"]),
        "sample": borders[1:],
        "structure": np.array(pagemap.NAMES, dtype=str),
    }
    dataset = xr.Dataset(variables, coordinates)
    dataset["sample"].attrs.update(units="1", long_name="operations done")
    dataset.attrs.update(
        guest_bytes=run.pages * PAGE_SIZE,
        page_size=run.page_size,
        confidential=run.confidential,
        operations=len(run.stream),
    )
    return dataset


def _digest(shared: np.ndarray, pages: int) -> str:
    import hashlib

    return hashlib.sha256(shared[: -(-pages // 64)].tobytes()).hexdigest()[:16]


def check_same_answers(dataset: xr.Dataset) -> None:
    """Raise WorkbenchError if any design answered the guest differently: errno, its offset, node, page state."""
    for name in ("event_errno", "event_error_offset", "unit_node", "content_order"):
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
    designs: Sequence[str] = DESIGNS[1:],
    confidential: str = "snp",
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Costs over page sizes and numbers of conversions; dimensions ``page_size``, ``conversions``, ``design``.

    ``options`` go to :func:`guest_conversions`.
    """
    rows = []
    for size in page_sizes:
        column = []
        for count in conversions:
            run = guest_run(memory, size, count, confidential=confidential, seed=seed, **options)
            dataset = compare(run, designs, samples=16)
            column.append(dataset.drop_dims(["operation", "unit", "sample", "structure"], errors="ignore"))
        rows.append(xr.concat(column, "conversions", combine_attrs="override"))
    out = xr.concat(rows, "page_size", combine_attrs="override")
    out = out.assign_coords(page_size=list(page_sizes), conversions=list(conversions))
    out.attrs.update(guest_bytes=parse_bytes(memory, "memory"), confidential=confidential)
    return out


ANSWERS = ("event_ret", "event_errno", "event_pages", "pages_per_node", "page_node")
"""Variables of a simulated scenario that a guest or its VMM can see."""


def simulate(scenario: Any, designs: Sequence[str] = DESIGNS[1:], *, check: bool = True) -> xr.Dataset:
    """Simulate a scenario under several designs: what guest and VMM see, with dimension ``design``.

    Raises WorkbenchError if ``check`` is set and an answer differs (operations whose answer belongs to the design,
    ``kexec`` and ``iommu_map``, differ by intent: leave them out or pass ``check=False``).
    """
    from workbench.simulate import simulate as run

    parts = []
    for design in designs:
        if design not in DESIGNS:
            raise WorkbenchError(f"designs: {design!r} is not one of {', '.join(DESIGNS)}")
        guest = scenario.guest.model_copy(update={"design": design})
        dataset = run(scenario.model_copy(update={"guest": guest}))
        parts.append(dataset[[name for name in ANSWERS if name in dataset]].drop_vars("zone", errors="ignore"))
    out = xr.concat(parts, "design", combine_attrs="override").assign_coords(design=list(designs))
    for name in out.data_vars if check else ():
        values = out[name].values
        for row, design in zip(values[1:], designs[1:], strict=True):
            if not np.array_equal(row, values[0]):
                raise WorkbenchError(f"designs: {name} of {design} differs from {designs[0]}")
    return out

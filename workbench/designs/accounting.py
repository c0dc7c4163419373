"""What tracking a guest's memory takes, computed from which pages are present and shared: nodes, tables, handover.

Page cache and maple tree nodes are those that Linux's own structures would have (:mod:`workbench.kernels.maps.xarray_map`,
:mod:`workbench.kernels.maps.maple`); nothing here depends on how a run was carried out.

Blocks are 2 MiB, words are groups of 64 pages, as in :mod:`workbench.kernels.folios.state`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from workbench.kernels import kho
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple, xarray_map
from workbench.tracking import struct_pages
from workbench.tracking.offset_maps import MapleMap, offset_map
from workbench.units import PAGE_SIZE

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
EXTENT_BYTES = 24
"""Of an extent handed over: index, pages, pfn."""


def any_of(flags: Bools, group: int) -> Bools:
    """Whether any of each ``group`` neighbours is set."""
    padded = np.concatenate((flags, np.zeros(-len(flags) % group, bool)))
    return np.asarray(padded.reshape(-1, group).any(axis=1))


def page_cache_nodes(words: Bools, huge_2m: Bools, huge_1g: Bools) -> int:
    """Nodes of a page cache from where its entries are: the tree of :mod:`workbench.kernels.maps.xarray_map` without building it.

    ``words`` bool (W,): 64-page groups with 4 KiB entries; ``huge_2m`` bool (B,), ``huge_1g`` bool (G,): larger ones.
    """
    highest = -1
    for flags, size in ((words, 64), (huge_2m, folio.PAGES_2M), (huge_1g, folio.PAGES_1G)):
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
            level = level | any_of(huge_2m, 8)[: len(level)]
        elif shift == 18:
            level = level | any_of(huge_1g, 64)[: len(level)]
        total += int(level.sum())
        if highest >> shift < 64 and shift >= (18 if huge_1g.any() else 6 if huge_2m.any() else 0):
            return total
        level, shift = any_of(level, 64), shift + 6


def page_cache_bytes(words: Bools, huge_2m: Bools, huge_1g: Bools) -> int:
    """Bytes of those nodes."""
    return page_cache_nodes(words, huge_2m, huge_1g) * xarray_map.NODE_BYTES


def page_cache_depth(pages: int, words: Bools, huge_2m: Bools, huge_1g: Bools) -> float:
    """Mean nodes a look-up in the page cache of a file of ``pages`` touches, over the present pages."""
    top = 0
    while (pages - 1) >> top >= 64:
        top += 6
    nodes = (top // 6 + 1, (top - 6) // 6 + 1, (top - 18) // 6 + 1)
    present = (int(words.sum()) * 64, int(huge_2m.sum()) * folio.PAGES_2M, int(huge_1g.sum()) * folio.PAGES_1G)
    total = sum(present)
    return sum(max(1, n) * weight for n, weight in zip(nodes, present, strict=True)) / total if total else 0.0


def state_tree_bytes(shared_ranges: Int64s, pages: int) -> int:
    """Bytes of the maple tree of private and shared ranges; ``shared_ranges``: intervals int64 (n, 2) of pages."""
    return _state_tree_nodes(shared_ranges.astype(np.int64).tobytes(), pages) * maple.NODE_BYTES


@functools.lru_cache(maxsize=1)
def _state_tree_nodes(shared_ranges: bytes, pages: int) -> int:
    """The ranges are those of the run: designs that are compared ask for the same tree one after another."""
    edges = np.frombuffer(shared_ranges, np.int64)
    starts_shared = len(edges) > 0 and edges[0] == 0
    borders = edges[edges < pages] if starts_shared else np.append(0, edges[edges < pages])
    shared = (np.arange(len(borders)) + starts_shared) % 2
    tree = MapleMap(pages)
    # Two values that never continue each other: private 0, shared 1, at pfns far apart.
    tree.run(np.stack((borders, np.diff(np.append(borders, pages)), shared << 40), axis=1))
    return tree.nodes


def stage2_bytes(blocks: Bools, mapped_1g: int, mapped_2m: int) -> int:
    """Bytes of second-stage tables; ``blocks`` bool (B,): 2 MiB with a page present, leaves that the kind of guest allows."""
    gigas = any_of(blocks, folio.BLOCKS_1G)
    upper = 1 + -(-len(gigas) // 512)  # the root and the tables below it
    lower = int(gigas.sum()) - mapped_1g + int(blocks.sum()) - folio.BLOCKS_1G * mapped_1g - mapped_2m
    return (upper + lower) * PAGE_SIZE


def hvo_table_bytes(present_pages: int, order: int) -> int:
    """PTE tables where the vmemmap is no longer mapped by 2 MiB: one per 128 MiB of memory, never folded back."""
    return -(-present_pages // struct_pages.PMD_PAGES) * PAGE_SIZE if order else 0


def group_table_bytes(words: Bools) -> int:
    """Likewise where vmemmap exists for 256 KiB groups with a present shared page; ``words`` bool (W,) says which."""
    return int(any_of(words, struct_pages.PMD_PAGES // 64).sum()) * PAGE_SIZE


def folio_handover_bytes(folios: Mapping[int, int]) -> int:
    """Metadata of a handover folio by folio, so many of each order, their trees dense at best."""
    total = sum(folios.values())
    if total == 0:
        return 0
    tree = 1 + sum(kho.dense_tree_nodes(count) - 1 for count in folios.values() if count)
    return sum(kho.folio_scheme_bytes(total, tree).values())


def map_size(structure: str, pages: int, extents: Int64s) -> tuple[int, int]:
    """Bytes of a structure of :mod:`workbench.tracking.offset_maps` that holds the extents, and nodes its middle one is under."""
    if structure == "flat":
        return pages * 8, 1  # without a table of that size being made
    tree = offset_map(structure, pages, max_order=folio.ORDER_1G)
    tree.run(extents)
    return tree.bytes, tree.depth(int(extents[len(extents) // 2, 0]) if len(extents) else 0)

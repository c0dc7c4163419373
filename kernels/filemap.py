"""What one inode's mapping holds, kept as runs: which zone backs each page, without touching pages.

Linux keeps one xarray entry for each page of ``inode->i_mapping`` (``mm/filemap.c``); the answer is the same here,
kept as two tables. ``allocations`` (rows of :func:`workbench.kernels.placement.place_pieces`: first page touched, pages, step,
tile offset, period) only grows. ``runs`` int64 (runs, 3) holds first page, pages and allocation of what is present,
in ascending order; punching a hole cuts runs and never rewrites an allocation.

Page ``i`` of a run of allocation ``a`` is position ``(i - a.first) * a.step`` of the allocation and lies in zone
``tiles[a.offset + position % a.period]``.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels import runs as tables
from workbench.kernels.compile import LANE_BYTES, Int, copy_lane, kernel

FIRST, COUNT, STEP, OFFSET, PERIOD = 0, 1, 2, 3, 4
"""Columns of ``allocations``."""

_BLOCK = 1 << 12  # entries of a pattern block: small enough to stay in the first-level cache while it is copied
_LARGE = 1 << 22  # entries of an answer that does not stay in a cache until somebody reads it


@kernel
def zone_of_pages(
    pages: np.ndarray, runs: np.ndarray, allocations: np.ndarray, tiles: np.ndarray, out: np.ndarray
) -> None:
    """Look up pages: ``out`` int64 (n,) receives the zone of each page index in ``pages`` int64 (n,), or -1."""
    for position in range(pages.shape[0]):
        page = pages[position]
        low, high = 0, runs.shape[0]
        while low < high:
            middle = (low + high) // 2
            if runs[middle, 0] <= page:
                low = middle + 1
            else:
                high = middle
        out[position] = -1
        if low > 0 and page < runs[low - 1, 0] + runs[low - 1, 1]:
            out[position] = zone_of_page(page, runs[low - 1, 2], allocations, tiles)


@kernel
def zone_of_page(page: Int, row: Int, allocations: np.ndarray, tiles: np.ndarray) -> Int:
    """Zone of a page of a run."""
    place = (page - allocations[row, FIRST]) * allocations[row, STEP]
    return np.int64(tiles[allocations[row, OFFSET] + place % allocations[row, PERIOD]])


@kernel
def zone_at(runs: tables.Runs, allocations: np.ndarray, tiles: np.ndarray, page: Int) -> Int:
    """Zone of a page, or -1."""
    row = tables.value_at(runs, page)
    return zone_of_page(page, row, allocations, tiles) if row >= 0 else -1


@kernel
def erase(
    runs: tables.Runs,
    allocations: np.ndarray,
    tiles: np.ndarray,
    start: Int,
    end: Int,
    found: np.ndarray,
    freed: np.ndarray,
) -> None:
    """Remove pages [start, end), and add what was there to ``freed`` int64 (zones,). ``found``: int64 (n, 3), working space."""
    add_between(runs, allocations, tiles, start, end, found, freed)
    tables.erase(runs, start, end)


@kernel
def add_between(
    runs: tables.Runs,
    allocations: np.ndarray,
    tiles: np.ndarray,
    start: Int,
    end: Int,
    found: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add what is there of pages [start, end) to ``counts`` int64 (zones,). ``found``: int64 (n, 3), working space."""
    page = start
    while page < end:
        count = tables.cut(runs, page, end, found)
        page = end if count <= found.shape[0] else found[found.shape[0] - 1, 0] + found[found.shape[0] - 1, 1]
        for part in range(min(count, found.shape[0])):
            add_run(found[part, 0], found[part, 1], found[part, 2], allocations, tiles, counts)


@kernel
def count_zones(runs: np.ndarray, allocations: np.ndarray, tiles: np.ndarray, counts: np.ndarray) -> None:
    """Add the pages of ``runs`` to ``counts`` int64 (zones,), in closed form: the cost follows tiles, not pages."""
    for run in range(runs.shape[0]):
        add_run(runs[run, 0], runs[run, 1], runs[run, 2], allocations, tiles, counts)


@kernel
def add_run(
    first_page: Int, pages: Int, row: Int, allocations: np.ndarray, tiles: np.ndarray, counts: np.ndarray
) -> None:
    """Add the pages of one run to ``counts`` int64 (zones,)."""
    offset = allocations[row, OFFSET]
    period = allocations[row, PERIOD]
    first = (first_page - allocations[row, FIRST]) * allocations[row, STEP]
    if allocations[row, STEP] < 0:
        first -= pages - 1
    whole = pages // period
    if whole > 0:
        for position in range(period):
            counts[tiles[offset + position]] += whole
    for place in range(first, first + pages - whole * period):
        counts[tiles[offset + place % period]] += 1


@kernel
def render(
    runs: np.ndarray,
    allocations: np.ndarray,
    tiles: np.ndarray,
    zone_value: np.ndarray,
    base: Int,
    out: np.ndarray,
) -> None:
    """Write ``zone_value[zone]`` of every present page into ``out``, whose entry 0 is page ``base``.

    ``zone_value`` and ``out`` have one dtype (int8 for up to 127 nodes, int16 beyond). Entries of absent pages are left
    alone. One period is written, doubled up to a block, and the block copied, past the caches where it is much: the
    cost is that of filling memory.
    """
    for run in range(runs.shape[0]):
        row = runs[run, 2]
        offset = allocations[row, OFFSET]
        period = allocations[row, PERIOD]
        step = allocations[row, STEP]
        begin = max(runs[run, 0], base)
        end = min(runs[run, 0] + runs[run, 1], base + out.shape[0])
        if end <= begin:
            continue
        if period == 1:
            _fill(out, begin - base, end - base, zone_value[tiles[offset]])
            continue
        written = min(end - begin, period)
        place = ((begin - allocations[row, FIRST]) * step) % period
        for index in range(begin - base, begin - base + written):
            out[index] = zone_value[tiles[offset + place]]
            place += step
            if place == period:
                place = 0
            elif place < 0:
                place = period - 1
        block = period * LANE_BYTES * max(1, _BLOCK // (period * LANE_BYTES))
        near = end - begin
        if out.shape[0] > _LARGE:
            near = min(near, 2 * block)
        while written < near:
            length = min(written, block, near - written)
            _copy(out, begin - base, begin - base + written, length)
            written += length
        if written < end - begin:
            _stream(out, begin - base, end - base, block)


@kernel
def _fill(out: np.ndarray, begin: Int, end: Int, value: Int) -> None:
    for index in range(np.uint64(begin), np.uint64(end)):
        out[index] = value


@kernel
def _copy(out: np.ndarray, source: Int, target: Int, length: Int) -> None:
    start, shift = np.uint64(source), np.uint64(target - source)
    for index in range(start, start + np.uint64(length)):
        out[index + shift] = out[index]


@kernel
def _stream(out: np.ndarray, begin: Int, end: Int, block: Int) -> None:
    """Repeat ``out[begin : begin + block]`` up to ``end``; two blocks stand there already, for the target is aligned."""
    entries = LANE_BYTES // out.itemsize
    target = begin + block
    target += (-(out.ctypes.data + target * out.itemsize) % LANE_BYTES) // out.itemsize
    source = target - block
    while target < end:
        length = min(block, end - target)
        lanes = length // entries
        for lane in range(lanes):
            copy_lane(out, source + lane * entries, target + lane * entries)
        _copy(out, source + lanes * entries, target + lanes * entries, length - lanes * entries)
        target += block


@kernel
def node_runs(
    runs: np.ndarray,
    allocations: np.ndarray,
    tiles: np.ndarray,
    zone_node: np.ndarray,
    out: np.ndarray,
) -> Int:
    """Write maximal runs of one node: ``out`` int64 (rows, 3) receives first page, pages, node index.

    Returns the number of rows needed; if it is larger than ``out`` holds, only the first rows were written.
    """
    rows = 0
    last_end, last_node = -1, -1
    for run in range(runs.shape[0]):
        row = runs[run, 2]
        offset, period, step = allocations[row, OFFSET], allocations[row, PERIOD], allocations[row, STEP]
        page, end = runs[run, 0], runs[run, 0] + runs[run, 1]
        place = ((page - allocations[row, FIRST]) * step) % period
        while page < end:
            node = zone_node[tiles[offset + place]]
            length = 1
            if period == 1:
                length = end - page
            if page == last_end and node == last_node:
                if rows <= out.shape[0]:
                    out[rows - 1, 1] += length
            else:
                if rows < out.shape[0]:
                    out[rows, 0] = page
                    out[rows, 1] = length
                    out[rows, 2] = node
                rows += 1
            page += length
            place = (place + step) % period
            last_end, last_node = page, node
    return rows

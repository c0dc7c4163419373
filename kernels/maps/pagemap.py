"""The offset -> pfn structures side by side: sizes in closed form and streams of operations for each.

:mod:`workbench.kernels.maps.xarray_map` (page cache), :mod:`workbench.kernels.maps.maple`,
:mod:`workbench.kernels.maps.range_table` and
:mod:`workbench.kernels.maps.flat_table` hold the structures themselves. Here are the sizes that follow from Linux's node sizes
(``include/linux/xarray.h``, ``include/linux/maple_tree.h``) and one entry point per structure that runs a whole
stream of stores and erasures, because a call from Python costs more than an operation.

A stream is int64 (n, 3): first index, pages, pfn (-1: erase).
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel
from workbench.kernels.maps import flat_table, maple, range_table, xarray_map

XARRAY, MAPLE, RANGES, FLAT = 0, 1, 2, 3
NAMES = ("xarray", "maple", "ranges", "flat")


@kernel
def run_xarray(
    stream: np.ndarray,
    first: Int,
    max_order: Int,
    slots: np.ndarray,
    header: np.ndarray,
    top: np.ndarray,
    found: np.ndarray,
) -> Int:
    """Run ``stream`` from operation ``first`` on; returns the operation that found too few nodes, or its length."""
    for k in range(first, stream.shape[0]):
        index = stream[k, 0]
        pages = stream[k, 1]
        pfn = stream[k, 2]
        if xarray_map.room(header, top) < xarray_map.insert_nodes(pages, max_order):
            return k
        if pfn >= 0:
            xarray_map.insert(slots, header, top, index, pages, pfn, max_order, found)
        else:
            xarray_map.erase(slots, header, top, index, pages, found)
    return stream.shape[0]


@kernel
def run_maple(
    stream: np.ndarray, first: Int, nodes: np.ndarray, top: np.ndarray, found: np.ndarray, path: np.ndarray
) -> Int:
    """Run ``stream`` from operation ``first`` on; returns the operation that found too few nodes, or its length."""
    for k in range(first, stream.shape[0]):
        if maple.room(nodes, top) < maple.store_nodes(top):
            return k
        maple.store(nodes, top, stream[k, 0], stream[k, 1], stream[k, 2], found, path)
    return stream.shape[0]


@kernel
def run_ranges(
    stream: np.ndarray, first: Int, start: np.ndarray, length: np.ndarray, pfn: np.ndarray, top: np.ndarray
) -> Int:
    """Run ``stream`` from operation ``first`` on; returns the operation that found too few records, or its length."""
    for k in range(first, stream.shape[0]):
        if start.shape[0] - top[range_table.COUNT] < range_table.STORE_ROOM:
            return k
        range_table.store(start, length, pfn, top, stream[k, 0], stream[k, 1], stream[k, 2])
    return stream.shape[0]


@kernel
def run_flat(stream: np.ndarray, order: Int, table: np.ndarray) -> Int:
    """Run ``stream``; returns its length."""
    for k in range(stream.shape[0]):
        flat_table.store(table, order, stream[k, 0], stream[k, 1], stream[k, 2])
    return stream.shape[0]


def maple_node_bounds(ranges: int) -> tuple[int, int]:
    """Fewest and most nodes of a maple tree of ``ranges`` ranges (NULL ranges included): 16 and 6 slots per node."""
    if ranges <= 0:
        return 0, 0
    most = 1
    level = ranges
    while level >= 2 * maple.MIN_SLOTS:
        level //= maple.MIN_SLOTS
        most += level
    return _levels_sum(ranges, maple.SLOTS), most


def _levels_sum(ranges: int, fill: int) -> int:
    total = 0
    level = ranges
    while True:
        level = -(-level // fill)
        total += level
        if level == 1:
            return total

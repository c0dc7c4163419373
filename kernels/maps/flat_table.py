"""Offset -> pfn in a flat table: one entry of 8 bytes per page (or per block) of the file.

The simplest structure there is: depth 1, size fixed by the file, no notion of extents, so split and merge are free.

State: ``table`` int64 (blocks,), the pfn of the first page of each block of ``2**order`` pages, -1 for none.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

ENTRY_BYTES = 8


@inlined_kernel
def load(table: np.ndarray, order: Int, index: Int) -> Int:
    """Return the pfn of page ``index``, -1 if there is none."""
    block = index >> order
    if block >= table.shape[0]:
        return -1
    first = table[np.uint32(block)]
    return first + index - (block << order) if first >= 0 else -1


@kernel
def load_many(table: np.ndarray, order: Int, indices: np.ndarray, out: np.ndarray) -> None:
    """:func:`load` for each of ``indices`` (int64) into ``out`` (int64)."""
    for position in range(indices.shape[0]):
        out[position] = load(table, order, indices[position])


@kernel
def store(table: np.ndarray, order: Int, index: Int, pages: Int, pfn: Int) -> Int:
    """Map the blocks of ``[index, index + pages)`` to ``pfn`` on, or to nothing if ``pfn`` is -1.

    Both ends must be block borders. Returns the number of blocks that were mapped before.
    """
    removed = 0
    first = index >> order
    for block in range(first, first + (pages >> order)):
        if table[block] >= 0:
            removed += 1
        table[block] = pfn + ((block - first) << order) if pfn >= 0 else -1
    return removed


@kernel
def find(table: np.ndarray, order: Int, index: Int, found: np.ndarray) -> bool:
    """Find the run of contiguous blocks that holds ``index``, cut at its block, or the first run after it.

    ``found`` (int64 (3,)) receives: first index, pages, pfn.
    """
    block = index >> order
    while block < table.shape[0] and table[block] < 0:
        block += 1
    if block >= table.shape[0]:
        return False
    first = block
    while block + 1 < table.shape[0] and table[block + 1] == table[first] + ((block + 1 - first) << order):
        block += 1
    found[0] = first << order
    found[1] = (block + 1 - first) << order
    found[2] = table[first]
    return True

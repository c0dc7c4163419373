"""Kexec handover: keys of preserved blocks, the radix tree of bitmaps that holds them, and what both take.

Linux 7.3: ``kernel/liveupdate/kexec_handover.c`` (``kho_encode_radix_key``, ``kho_radix_add_key``,
``kho_preserve_pages``) and ``include/linux/kho/abi/kexec_handover.h``. Five levels of tables with 512 entries above
leaf bitmaps of 32,768 bits, every node one page of 4 KiB. Blocks of different orders have keys that differ in a high
bit, so they share the upper tables only.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

NODE_BYTES = 4096
LEAF_SHIFT = 15
TABLE_SHIFT = 9
TABLE_LEVELS = 5
KEY_WIDTH = 53
MAX_ORDER = 51
RECORD_BYTES = 16
"""One folio of a preserved memfd: pfn and flags in one word, index in the other (include/linux/kho/abi/memfd.h)."""
CHUNK_ENTRIES = 511
"""Physical addresses per chunk page of a preserved vmalloc area (KHO_VMALLOC_SIZE)."""
ERANGE = 34


@kernel
def encode_key(pfn: Int, order: Int) -> Int:
    """Key of the block of ``2**order`` pages at ``pfn``: kho_encode_radix_key. -ERANGE beyond 53 bits."""
    key = (np.int64(1) << (52 - order)) | (pfn >> order)
    if pfn >> order >= np.int64(1) << (52 - order):
        return -ERANGE
    return key


@kernel
def decode_key(key: Int, out: np.ndarray) -> None:
    """Split a key into ``out`` (int64 (2,)): pfn and order."""
    order = 52
    while key >> (53 - order) != 0:
        order -= 1
    out[1] = order
    out[0] = (key ^ (np.int64(1) << (52 - order))) << order


@kernel
def preserve_pages(pfn: Int, pages: Int, borders: np.ndarray, out: np.ndarray) -> Int:
    """Blocks that ``kho_preserve_pages`` adds for a range: greedy, aligned, none across two nodes.

    Parameters
    ----------
    borders : int64 (n,), ascending first pfns of nodes; a block lies between two of them
    out : int64 (rows, 2), receives pfn and order

    Returns
    -------
    Number of blocks, or -1 if ``out`` is too small.
    """
    rows = 0
    end = pfn + pages
    while pfn < end:
        order = 0
        while pfn & ((2 << order) - 1) == 0 and pfn + (2 << order) <= end and order + 1 < MAX_ORDER:
            order += 1
        for border in range(borders.shape[0]):
            while order > 0 and pfn < borders[border] < pfn + (1 << order):
                order -= 1
        if rows == out.shape[0]:
            return -1
        out[rows, 0] = pfn
        out[rows, 1] = order
        rows += 1
        pfn += 1 << order
    return rows


@kernel
def tree_nodes(keys: np.ndarray) -> Int:
    """Nodes of the radix tree that holds ``keys`` (int64, ascending): one per distinct prefix and level."""
    if keys.shape[0] == 0:
        return 1
    nodes = 0
    for level in range(TABLE_LEVELS + 1):
        shift = LEAF_SHIFT + TABLE_SHIFT * level
        last = -1
        for k in range(keys.shape[0]):
            prefix = keys[k] >> shift
            if prefix != last:
                nodes += 1
                last = prefix
    return nodes


def dense_tree_nodes(blocks: int) -> int:
    """Nodes for ``blocks`` neighbouring, aligned blocks of one order: the closed form."""
    level = -(-blocks // (1 << LEAF_SHIFT))
    total = level
    for _ in range(TABLE_LEVELS):
        level = max(1, -(-level // (1 << TABLE_SHIFT)))
        total += level
    return total


def folio_scheme_bytes(folios: int, tree: int) -> dict[str, int]:
    """Metadata of today's scheme: a 16-byte record per folio in a preserved vmalloc array, its chunk pages, the tree.

    The pages of the array are themselves preserved, at order 0; their keys are in ``tree`` if the caller put them in.
    """
    array_pages = -(-folios * RECORD_BYTES // NODE_BYTES)
    chunks = -(-array_pages // CHUNK_ENTRIES)
    return {"records": folios * RECORD_BYTES, "chunks": chunks * NODE_BYTES, "tree": tree * NODE_BYTES}

"""What the page cache of a tracked file looks like: folios in runs, and the nodes of its xarray.

``include/linux/pagemap.h``, ``lib/xarray.c``. An entry of order k lies in a node of shift 6 * (k // 6), of 64 slots; the
tree is as high as its last index and the largest entry that was stored ask, and an entry of order 0 at index 0 alone needs
no node. Splitting an entry leaves the levels above it.
"""

from __future__ import annotations

import numpy as np

from workbench.intervals import Int64s
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile

_CHUNK = 6  # include/linux/xarray.h: XA_CHUNK_SHIFT


def folios(file: ConversionFile) -> tuple[Int64s, Int64s]:
    """First page and order of every folio in the file, each int64 (n,), ascending."""
    state = file.state
    blocks = np.arange(len(state.level), dtype=np.int64)
    huge_1g = np.unique(blocks[state.level == folio.HUGE_1G] >> 9) << 18
    huge_2m = blocks[state.level == folio.HUGE_2M] << 9
    split = (blocks[state.level == folio.SPLIT, None] << 9) + np.arange(folio.PAGES_2M)
    single = (blocks[state.level == folio.BASE, None] << 9) + np.arange(folio.PAGES_2M)
    bits = np.unpackbits(state.present.astype("<u8").view(np.uint8), bitorder="little")
    parts = [(huge_1g, 18), (huge_2m, 9), (split.ravel(), 0), (single[bits[single] > 0].ravel(), 0)]
    first = np.concatenate([pages for pages, _ in parts])
    order = np.concatenate([np.full(len(pages), k, np.int64) for pages, k in parts])
    ascending = np.argsort(first, kind="stable")
    return first[ascending], order[ascending]


def nodes_of(file: ConversionFile) -> int:
    """Nodes of the tree that holds a file's folios; a 1 GiB page was one entry before it was split."""
    return xarray_nodes(*folios(file), stored=18 if file.state.whole_1g.any() else 0)


def xarray_nodes(first: Int64s, order: Int64s, stored: int = 0) -> int:
    """Nodes of the tree that holds entries of these orders at these first pages, each int64 (n,), pages ascending.

    ``stored``: order of the largest entry that was stored, where a split one still shows in the height.
    """
    if not len(first) or (len(first) == 1 and first[0] == 0 and order[0] == 0):
        return 0
    last = int((first + (1 << order)).max()) - 1
    root = max(int(order.max()), stored) // _CHUNK * _CHUNK
    while last >> root >= 1 << _CHUNK:
        root += _CHUNK
    nodes = 0
    for shift in range(0, root + 1, _CHUNK):
        keys = first[order < shift + _CHUNK] >> (shift + _CHUNK)
        nodes += int(len(keys) > 0) + int(np.count_nonzero(np.diff(keys)))  # ascending: np.unique would hash them all
    return nodes

"""Offset -> pfn in an XArray: 64 slots per node, multi-index entries, as the page cache keeps folios.

Linux: ``include/linux/xarray.h`` and ``lib/xarray.c`` (``xas_load``, ``xas_expand``, ``xas_create``, ``xas_store``,
``xas_delete_node``, ``xas_shrink``, ``xas_split_alloc``). An entry of order k takes ``2**(k % 6)`` neighbouring slots
of a node whose shift is ``6 * (k // 6)``: a canonical slot and sibling entries that name it. A node takes 576 bytes:
64 slots of 8, marks of 24, a header of 40.

State, passed to every function:

========== ======================= ==================================================================================
``slots``  int64 (nodes, 64)       entries, encoded as Linux does: 0 empty; ``pfn << 1 | 1`` value entry; ``2`` in the
                                   low two bits: a sibling (number of the canonical slot) below 256, else a node
``header`` int64 (nodes, 4)        shift, offset in the parent, slots in use, parent (-1 at the root); the parent
                                   field of a node not in use links the free list
``top``    int64 (5,)              head entry, nodes in use, first node of the free list (-1), nodes ever used,
                                   entries
========== ======================= ==================================================================================

The caller sees to it that :func:`room` nodes are left before it changes anything, as Linux preallocates.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

NODE_BYTES = 576
SLOTS = 64
CHUNK_SHIFT = 6
SHIFT, OFFSET, COUNT, PARENT = 0, 1, 2, 3
HEAD, NODES, FREE, EVER, ENTRIES = 0, 1, 2, 3, 4
TOP_FIELDS = 5
STORE_NODES = 24
"""Nodes one store can need at most: the path to the new entry and the levels on top of the old root."""
OK, NOT_PRESENT, REFUSED, NOT_CONTIGUOUS = 0, -2, -12, -22
"""Return codes: done; nothing there; beyond what xas_split can do (-ENOMEM); cannot be one entry."""

FOUND_START, FOUND_PAGES, FOUND_PFN, FOUND_NODE, FOUND_SLOT, FOUND_SLOTS = 0, 1, 2, 3, 4, 5
FOUND_FIELDS = 6


@kernel
def clear(top: np.ndarray) -> None:
    """Make the map empty. ``slots`` and ``header`` need no initial content."""
    top[HEAD] = 0
    top[NODES] = 0
    top[FREE] = -1
    top[EVER] = 0
    top[ENTRIES] = 0


@kernel
def room(header: np.ndarray, top: np.ndarray) -> Int:
    """Number of nodes that can still be allocated."""
    return header.shape[0] - top[NODES]


@inlined_kernel
def load(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int) -> Int:
    """Return the pfn of page ``index``, -1 if there is none (``xas_load``)."""
    entry = top[HEAD]
    if entry & 3 != 2:
        return entry >> 1 if entry != 0 and index == 0 else -1
    node = np.uint32((entry >> 2) - SLOTS)
    shift = np.int64(header[node, SHIFT])
    if index >> shift >= SLOTS:
        return -1
    while True:
        offset = (index >> shift) & 63
        entry = slots[node, np.uint32(offset)]
        if entry & 1:
            break
        if entry == 0:
            return -1
        if entry < 4 * SLOTS:
            offset = entry >> 2
            entry = slots[node, np.uint32(offset)]
            break
        node = np.uint32((entry >> 2) - SLOTS)
        shift -= CHUNK_SHIFT
    start = ((index >> (shift + CHUNK_SHIFT) << CHUNK_SHIFT) | offset) << shift
    return (entry >> 1) + index - start


@kernel
def load_many(slots: np.ndarray, header: np.ndarray, top: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """:func:`load` for each of ``indices`` (int64) into ``out`` (int64)."""
    for position in range(indices.shape[0]):
        out[position] = load(slots, header, top, indices[position])


@kernel
def depth(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int) -> Int:
    """Number of nodes touched by a look-up of ``index``; 0 if the head alone answers."""
    entry = top[HEAD]
    touched = 0
    if entry & 3 == 2 and index >> header[(entry >> 2) - SLOTS, SHIFT] >= SLOTS:
        return 1
    while entry & 3 == 2 and entry >= 4 * SLOTS:
        node = (entry >> 2) - SLOTS
        touched += 1
        entry = slots[node, (index >> header[node, SHIFT]) & 63]
    return touched


@kernel
def find(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, found: np.ndarray) -> bool:
    """Find the entry that holds ``index`` or the first one after it (``xas_find``).

    ``found`` (int64 (6,)) receives: first index, pages, pfn of the first index, node (-1: head), slot, slots.
    """
    entry = top[HEAD]
    if entry == 0:
        return False
    if entry & 1:
        if index > 0:
            return False
        found[FOUND_START] = 0
        found[FOUND_PAGES] = 1
        found[FOUND_PFN] = entry >> 1
        found[FOUND_NODE] = -1
        return True
    node = (entry >> 2) - SLOTS
    shift = np.int64(header[node, SHIFT])
    if index >> shift >= SLOTS:
        return False
    offset = (index >> shift) & 63
    while True:
        if offset == SLOTS:
            offset = np.int64(header[node, OFFSET]) + 1
            node = np.int64(header[node, PARENT])
            if node < 0:
                return False
            shift += CHUNK_SHIFT
            continue
        entry = slots[node, offset]
        if entry == 0:
            offset += 1
            index = ((index >> shift) + 1) << shift
            continue
        if entry & 3 == 2:
            if entry >= 4 * SLOTS:
                node = (entry >> 2) - SLOTS
                shift -= CHUNK_SHIFT
                offset = (index >> shift) & 63
                continue
            offset = entry >> 2
            entry = slots[node, offset]
        sibling = (offset << 2) | 2
        count = 1
        while offset + count < SLOTS and slots[node, offset + count] == sibling:
            count += 1
        found[FOUND_START] = ((index >> (shift + CHUNK_SHIFT) << CHUNK_SHIFT) | offset) << shift
        found[FOUND_PAGES] = count << shift
        found[FOUND_PFN] = entry >> 1
        found[FOUND_NODE] = node
        found[FOUND_SLOT] = offset
        found[FOUND_SLOTS] = count
        return True


@kernel
def _new_node(header: np.ndarray, slots: np.ndarray, top: np.ndarray, shift: Int, parent: Int, offset: Int) -> Int:
    if top[FREE] >= 0:
        node = top[FREE]
        top[FREE] = header[node, PARENT]
    else:
        node = top[EVER]
        top[EVER] += 1
    top[NODES] += 1
    header[node, SHIFT] = shift
    header[node, OFFSET] = offset
    header[node, COUNT] = 0
    header[node, PARENT] = parent
    for slot in range(SLOTS):
        slots[node, slot] = 0
    return node


@kernel
def _free_node(header: np.ndarray, top: np.ndarray, node: Int) -> None:
    header[node, PARENT] = top[FREE]
    top[FREE] = node
    top[NODES] -= 1


@kernel
def _expand(slots: np.ndarray, header: np.ndarray, top: np.ndarray, highest: Int) -> None:
    """Put nodes on top until the tree can hold ``highest`` (``xas_expand``)."""
    entry = top[HEAD]
    if entry == 0:
        shift = 0
        while highest >> shift >= SLOTS:
            shift += CHUNK_SHIFT
        top[HEAD] = ((_new_node(header, slots, top, shift, -1, 0) + SLOTS) << 2) | 2
        return
    if entry & 1:
        node = _new_node(header, slots, top, 0, -1, 0)
        slots[node, 0] = entry
        header[node, COUNT] = 1
        top[HEAD] = ((node + SLOTS) << 2) | 2
    while True:
        root = (top[HEAD] >> 2) - SLOTS
        if highest >> header[root, SHIFT] < SLOTS:
            return
        node = _new_node(header, slots, top, header[root, SHIFT] + CHUNK_SHIFT, -1, 0)
        slots[node, 0] = top[HEAD]
        header[node, COUNT] = 1
        header[root, PARENT] = node
        header[root, OFFSET] = 0
        top[HEAD] = ((node + SLOTS) << 2) | 2


@kernel
def store(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, order: Int, pfn: Int) -> None:
    """Store one entry of ``2**order`` pages at ``index``, which must be aligned and empty (``xas_store``)."""
    top[ENTRIES] += 1
    if order == 0 and index == 0 and top[HEAD] == 0:
        top[HEAD] = (pfn << 1) | 1
        return
    level = order // CHUNK_SHIFT * CHUNK_SHIFT
    highest = index | ((1 << order) - 1)
    if order > 0 and index == 0:
        highest += 1  # xas_max: an entry that starts at 0 still needs a node to be told from a single index
    _expand(slots, header, top, highest)
    node = (top[HEAD] >> 2) - SLOTS
    shift = np.int64(header[node, SHIFT])
    while shift > level:
        offset = (index >> shift) & 63
        shift -= CHUNK_SHIFT
        entry = slots[node, offset]
        if entry == 0:
            child = _new_node(header, slots, top, shift, node, offset)
            slots[node, offset] = ((child + SLOTS) << 2) | 2
            header[node, COUNT] += 1
            node = child
        else:
            node = (entry >> 2) - SLOTS
    offset = (index >> shift) & 63
    count = 1 << (order - level)
    slots[node, offset] = (pfn << 1) | 1
    for sibling in range(1, count):
        slots[node, offset + sibling] = (offset << 2) | 2
    header[node, COUNT] += count


@kernel
def _remove(slots: np.ndarray, header: np.ndarray, top: np.ndarray, found: np.ndarray) -> None:
    """Remove the entry that :func:`find` described; free empty nodes and lower the tree."""
    top[ENTRIES] -= 1
    node = found[FOUND_NODE]
    if node < 0:
        top[HEAD] = 0
        return
    for slot in range(found[FOUND_SLOT], found[FOUND_SLOT] + found[FOUND_SLOTS]):
        slots[node, slot] = 0
    header[node, COUNT] -= found[FOUND_SLOTS]
    while header[node, COUNT] == 0:
        parent = np.int64(header[node, PARENT])
        offset = np.int64(header[node, OFFSET])
        _free_node(header, top, node)
        if parent < 0:
            top[HEAD] = 0
            return
        slots[parent, offset] = 0
        header[parent, COUNT] -= 1
        node = parent
    while True:
        root = (top[HEAD] >> 2) - SLOTS
        entry = slots[root, 0]
        if header[root, COUNT] != 1 or entry == 0:
            return
        if entry & 1:
            if header[root, SHIFT] == 0:
                top[HEAD] = entry
                _free_node(header, top, root)
            return
        top[HEAD] = entry
        header[(entry >> 2) - SLOTS, PARENT] = -1
        _free_node(header, top, root)


@kernel
def piece_order(index: Int, pages: Int, max_order: Int) -> Int:
    """Order of the largest aligned entry that starts at ``index`` and takes at most ``pages`` pages."""
    order = 0
    while order < max_order and index & ((2 << order) - 1) == 0 and 2 << order <= pages:
        order += 1
    return order


@kernel
def _store_pieces(
    slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, pages: Int, pfn: Int, max_order: Int
) -> Int:
    """Store an empty range as aligned entries. Returns OK, or the pages left when nodes ran out."""
    while pages > 0:
        if room(header, top) < STORE_NODES:
            return pages
        order = piece_order(index, pages, max_order)
        store(slots, header, top, index, order, pfn)
        index += 1 << order
        pfn += 1 << order
        pages -= 1 << order
    return OK


@kernel
def erase(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, pages: Int, found: np.ndarray) -> Int:
    """Erase ``pages`` pages from ``index``. Entries cut by the border keep their outer part, as smaller entries.

    Linux splits the folio first and truncates its pieces; the pieces left are the largest aligned ones
    (``xas_try_split`` halves only what is cut). Returns the number of entries removed or cut. The caller
    leaves room for :func:`insert_nodes` nodes.
    """
    last = index + pages
    removed = 0
    while find(slots, header, top, index, found) and found[FOUND_START] < last:
        first = found[FOUND_START]
        end = first + found[FOUND_PAGES]
        pfn = found[FOUND_PFN]
        _remove(slots, header, top, found)
        removed += 1
        if first < index:
            _store_pieces(slots, header, top, first, index - first, pfn, 63)
        if end > last:
            _store_pieces(slots, header, top, last, end - last, pfn + last - first, 63)
        index = end
        if index >= last:
            break
    return removed


@kernel
def insert_nodes(pages: Int, max_order: Int) -> Int:
    """Nodes that :func:`insert` of ``pages`` pages can need at most; ``insert_nodes(0, 0)`` is enough to erase."""
    shift = max_order // CHUNK_SHIFT * CHUNK_SHIFT + CHUNK_SHIFT
    return 40 * STORE_NODES + (pages >> shift) + (pages >> (shift + 5))


@kernel
def insert(
    slots: np.ndarray,
    header: np.ndarray,
    top: np.ndarray,
    index: Int,
    pages: Int,
    pfn: Int,
    max_order: Int,
    found: np.ndarray,
) -> Int:
    """Map ``[index, index + pages)`` to ``pfn`` on, in aligned entries of at most ``max_order``.

    Replaces what was there. Returns OK, or the number of pages at the end of the range that found no node.
    """
    erase(slots, header, top, index, pages, found)
    return _store_pieces(slots, header, top, index, pages, pfn, max_order)


@kernel
def split(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, order: Int, found: np.ndarray) -> Int:
    """Split the entry that holds ``index`` into entries of ``order`` (``xas_split_alloc``, ``xas_split``).

    Returns the number of entries, NOT_PRESENT, or REFUSED: Linux cannot split across two levels of nodes, so
    1 GiB -> 2 MiB and 1 GiB -> 4 KiB need steps or removal and insertion (:func:`insert`).
    """
    if not find(slots, header, top, index, found) or found[FOUND_START] > index:
        return NOT_PRESENT
    pages = found[FOUND_PAGES]
    if pages < 1 << order:
        return NOT_CONTIGUOUS
    from_order = 0
    while 1 << from_order < pages:
        from_order += 1
    if order // CHUNK_SHIFT * CHUNK_SHIFT + 2 * CHUNK_SHIFT <= from_order:
        return REFUSED
    first = found[FOUND_START]
    pfn = found[FOUND_PFN]
    _remove(slots, header, top, found)
    _store_pieces(slots, header, top, first, pages, pfn, order)
    return pages >> order


@kernel
def merge(slots: np.ndarray, header: np.ndarray, top: np.ndarray, index: Int, order: Int, found: np.ndarray) -> Int:
    """Make one entry of ``2**order`` pages at the aligned ``index``; all of it must be mapped contiguously.

    Returns the number of entries merged, NOT_PRESENT or NOT_CONTIGUOUS (nothing changed).
    """
    pages = 1 << order
    if index & (pages - 1):
        return NOT_CONTIGUOUS
    position = index
    first = 0
    entries = 0
    while position < index + pages:
        if not find(slots, header, top, position, found) or found[FOUND_START] > position:
            return NOT_PRESENT
        pfn = found[FOUND_PFN] + position - found[FOUND_START]
        if position == index:
            first = pfn
        if pfn != first + position - index or found[FOUND_START] + found[FOUND_PAGES] > index + pages:
            return NOT_CONTIGUOUS
        position = found[FOUND_START] + found[FOUND_PAGES]
        entries += 1
    erase(slots, header, top, index, pages, found)
    store(slots, header, top, index, order, first)
    return entries


def node_count(pages: int, order: int) -> int:
    """Nodes of a file of ``pages`` pages filled with entries of ``order``: the closed form of the tree above."""
    shift = order // CHUNK_SHIFT * CHUNK_SHIFT
    if pages == 1 and order == 0:
        return 0
    total = 0
    first = True
    while first or 1 << shift < pages:
        total += -(-pages // (1 << (shift + CHUNK_SHIFT)))
        shift += CHUNK_SHIFT
        first = False
    return total

"""Offset -> pfn in a maple tree: ranges in nodes of 256 bytes with 16 slots and 15 pivots.

Linux: ``include/linux/maple_tree.h`` and ``lib/maple_tree.c`` (``mas_walk``, ``mas_store``, ``mas_split``,
``mas_push_data``, ``mas_rebalance``). Every index of ``0 .. 2**63 - 1`` belongs to a range; ranges without an entry
are NULL and take a slot too, neighbouring NULL ranges are one. A pivot is the last index of its slot; the last slot
of a node ends where the node ends. A node that overflows first pushes to a sibling, then splits; one with fewer
than 6 slots takes from a sibling or joins it. Linux chooses some split points differently (it builds the new nodes
of a store at once), so the number of nodes after random stores can differ by the freedom the fill limits leave; the
limits, the height and the ranges do not.

State:

========= ===================== =====================================================================================
``nodes`` int64 (nodes, 32)     256 bytes each: word 0 slots in use (Linux: parent pointer; the number of slots is in
                                the last pivot's place), words 1-15 pivots, words 16-31 slots. An entry is
                                ``pfn << 1 | 1`` of the first index of its range, 0 is NULL, inner slots are nodes
``top``   int64 (6,)            root, height (0: empty, no node), nodes in use, free list, nodes ever used, entries
``path``  int64 (2, 32)         working space: node and slot on the way to a leaf
========= ===================== =====================================================================================

The caller sees to it that :func:`store_nodes` nodes are left before a store.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

NODE_BYTES = 256
SLOTS = 16
MIN_SLOTS = 6
PUSH_TO = 14
"""Slots a sibling is filled to before a node is split (``mas_push_data`` leaves two free)."""
MAX_INDEX = 2**63 - 1
ROOT, HEIGHT, NODES, FREE, EVER, ENTRIES = 0, 1, 2, 3, 4, 5
TOP_FIELDS = 6
NODE_WORDS = 32
FIRST_SLOT = 16
MAX_HEIGHT = 31
FOUND_START, FOUND_LAST, FOUND_PFN = 0, 1, 2
ZERO, ONE, ENTRY_OF_PIVOT = np.uint64(0), np.uint64(1), np.uint64(FIRST_SLOT - 1)


@kernel
def clear(top: np.ndarray) -> None:
    """Make the map empty. ``nodes`` needs no initial content."""
    top[:] = 0
    top[FREE] = -1


@kernel
def room(nodes: np.ndarray, top: np.ndarray) -> Int:
    """Number of nodes that can still be allocated."""
    return nodes.shape[0] - top[NODES]


@kernel
def store_nodes(top: np.ndarray) -> Int:
    """Nodes that one store can need: it sets at most two borders, each may split a node per level."""
    return 2 * (top[HEIGHT] + 2)


@inlined_kernel
def load(nodes: np.ndarray, top: np.ndarray, index: Int) -> Int:
    """Return the pfn of page ``index``, -1 if there is none (``mas_walk``)."""
    levels = top[HEIGHT]
    if levels == 0:
        return -1
    node = np.uint64(top[ROOT])
    start = 0
    while True:
        words = nodes[node]
        end = np.uint64(words[ZERO])
        slot = ONE
        while slot < end and words[slot] < index:
            slot += ONE
        if slot > ONE:
            start = words[slot - ONE] + 1
        entry = words[slot + ENTRY_OF_PIVOT]
        levels -= 1
        if levels == 0:
            break
        node = np.uint64(entry)
    return (entry >> 1) + index - start if entry != 0 else -1


@kernel
def load_many(nodes: np.ndarray, top: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """:func:`load` for each of ``indices`` (int64) into ``out`` (int64)."""
    for position in range(indices.shape[0]):
        out[position] = load(nodes, top, indices[position])


@kernel
def depth(top: np.ndarray) -> Int:
    """Number of nodes touched by a look-up: the height, whatever the index."""
    return top[HEIGHT]


@kernel
def find(nodes: np.ndarray, top: np.ndarray, index: Int, found: np.ndarray, path: np.ndarray) -> bool:
    """Find the entry that holds ``index`` or the first one after it.

    ``found`` (int64 (3,)) receives: first index, last index, pfn of the first index.
    """
    if top[HEIGHT] == 0:
        return False
    while True:
        _walk(nodes, top, index, found, path)
        if found[FOUND_PFN] >= 0:
            return True
        if found[FOUND_LAST] == MAX_INDEX:
            return False
        level = top[HEIGHT] - 1
        leaf, slot = path[0, level], path[1, level] + 1
        if slot < nodes[leaf, 0] - 1:  # what follows a NULL range is an entry, and ends inside this leaf
            found[FOUND_START] = found[FOUND_LAST] + 1
            found[FOUND_LAST] = nodes[leaf, 1 + slot]
            found[FOUND_PFN] = nodes[leaf, FIRST_SLOT + slot] >> 1
            path[1, level] = slot
            return True
        index = found[FOUND_LAST] + 1


@kernel
def _walk(nodes: np.ndarray, top: np.ndarray, index: Int, found: np.ndarray, path: np.ndarray) -> None:
    """Walk to the range of ``index``; leave the way in ``path`` and the range in ``found`` (pfn -1 for NULL)."""
    levels = top[HEIGHT]
    node = top[ROOT]
    start = 0
    last = MAX_INDEX
    for level in range(levels):
        end = nodes[node, 0]
        slot = 0
        while slot < end - 1 and nodes[node, 1 + slot] < index:
            slot += 1
        if slot > 0:
            start = nodes[node, slot] + 1
        if slot < end - 1:
            last = nodes[node, 1 + slot]
        path[0, level] = node
        path[1, level] = slot
        node = nodes[node, FIRST_SLOT + slot]
    found[FOUND_START] = start
    found[FOUND_LAST] = last
    found[FOUND_PFN] = node >> 1 if node != 0 else -1


@kernel
def _new_node(nodes: np.ndarray, top: np.ndarray) -> Int:
    if top[FREE] >= 0:
        node = top[FREE]
        top[FREE] = nodes[node, 0]
    else:
        node = top[EVER]
        top[EVER] += 1
    top[NODES] += 1
    nodes[node, 0] = 0
    return node


@kernel
def _free_node(nodes: np.ndarray, top: np.ndarray, node: Int) -> None:
    nodes[node, 0] = top[FREE]
    top[FREE] = node
    top[NODES] -= 1


@kernel
def _copy_slots(nodes: np.ndarray, target: Int, at: Int, source: Int, first: Int, count: Int) -> None:
    """Copy ``count`` slots of one node and the pivots between them, low to high."""
    for k in range(count):
        nodes[target, FIRST_SLOT + at + k] = nodes[source, FIRST_SLOT + first + k]
    for k in range(count - 1):
        nodes[target, 1 + at + k] = nodes[source, 1 + first + k]


@kernel
def _move_left(nodes: np.ndarray, parent: Int, slot: Int, count: Int) -> None:
    """Move the first ``count`` slots of child ``slot + 1`` of ``parent`` to the end of child ``slot``."""
    left = nodes[parent, FIRST_SLOT + slot]
    right = nodes[parent, FIRST_SLOT + slot + 1]
    n = nodes[left, 0]
    m = nodes[right, 0]
    nodes[left, n] = nodes[parent, 1 + slot]  # pivot of what was the last slot of the left node
    _copy_slots(nodes, left, n, right, 0, count)
    if count < m:
        nodes[parent, 1 + slot] = nodes[right, count]
    _copy_slots(nodes, right, 0, right, count, m - count)
    nodes[left, 0] = n + count
    nodes[right, 0] = m - count


@kernel
def _move_right(nodes: np.ndarray, parent: Int, slot: Int, count: Int) -> None:
    """Move the last ``count`` slots of child ``slot`` of ``parent`` to the front of child ``slot + 1``."""
    left = nodes[parent, FIRST_SLOT + slot]
    right = nodes[parent, FIRST_SLOT + slot + 1]
    n = nodes[left, 0]
    m = nodes[right, 0]
    for k in range(m - 1, -1, -1):
        nodes[right, FIRST_SLOT + k + count] = nodes[right, FIRST_SLOT + k]
    for k in range(m - 2, -1, -1):
        nodes[right, 1 + k + count] = nodes[right, 1 + k]
    nodes[right, count] = nodes[parent, 1 + slot]
    _copy_slots(nodes, right, 0, left, n - count, count)
    nodes[parent, 1 + slot] = nodes[left, n - count]
    nodes[left, 0] = n - count
    nodes[right, 0] = m + count


@kernel
def _add_slot(nodes: np.ndarray, node: Int, slot: Int, last: Int, entry: Int) -> None:
    """Cut ``slot`` after index ``last``; the part behind it becomes a slot of its own with ``entry``."""
    n = nodes[node, 0]
    for k in range(n, slot + 1, -1):
        nodes[node, FIRST_SLOT + k] = nodes[node, FIRST_SLOT + k - 1]
    for k in range(n, slot + 1, -1):
        nodes[node, k] = nodes[node, k - 1]
    nodes[node, 1 + slot] = last
    nodes[node, FIRST_SLOT + slot + 1] = entry
    nodes[node, 0] = n + 1


@kernel
def _relieve(nodes: np.ndarray, top: np.ndarray, path: np.ndarray) -> None:
    """Make room in the full leaf at the end of ``path``, or in a full node above it. The path is stale afterwards."""
    level = top[HEIGHT] - 1
    while True:
        node = path[0, level]
        if level == 0:
            root = _new_node(nodes, top)
            nodes[root, 0] = 1
            nodes[root, FIRST_SLOT] = node
            top[ROOT] = root
            top[HEIGHT] += 1
            _split(nodes, top, root, 0)
            return
        parent = path[0, level - 1]
        slot = path[1, level - 1]
        if slot > 0:
            sibling = nodes[parent, FIRST_SLOT + slot - 1]
            if nodes[sibling, 0] < PUSH_TO:
                _move_left(nodes, parent, slot - 1, PUSH_TO - nodes[sibling, 0])
                return
        if slot < nodes[parent, 0] - 1:
            sibling = nodes[parent, FIRST_SLOT + slot + 1]
            if nodes[sibling, 0] < PUSH_TO:
                _move_right(nodes, parent, slot, PUSH_TO - nodes[sibling, 0])
                return
        if nodes[parent, 0] < SLOTS:
            _split(nodes, top, parent, slot)
            return
        level -= 1


@kernel
def _split(nodes: np.ndarray, top: np.ndarray, parent: Int, slot: Int) -> None:
    """Split a full child of ``parent`` into two halves."""
    node = nodes[parent, FIRST_SLOT + slot]
    fresh = _new_node(nodes, top)
    half = SLOTS // 2
    for k in range(half, SLOTS):
        nodes[fresh, FIRST_SLOT + k - half] = nodes[node, FIRST_SLOT + k]
    for k in range(half, SLOTS - 1):
        nodes[fresh, 1 + k - half] = nodes[node, 1 + k]
    nodes[fresh, 0] = SLOTS - half
    nodes[node, 0] = half
    _add_slot(nodes, parent, slot, nodes[node, half], fresh)


@kernel
def _set_border(nodes: np.ndarray, top: np.ndarray, index: Int, found: np.ndarray, path: np.ndarray) -> None:
    """Make a range start at ``index``, with the same mapping as before."""
    while True:
        _walk(nodes, top, index, found, path)
        if found[FOUND_START] == index:
            return
        leaf = path[0, top[HEIGHT] - 1]
        if nodes[leaf, 0] < SLOTS:
            entry = 0
            if found[FOUND_PFN] >= 0:
                entry = ((found[FOUND_PFN] + index - found[FOUND_START]) << 1) | 1
                top[ENTRIES] += 1
            _add_slot(nodes, leaf, path[1, top[HEIGHT] - 1], index - 1, entry)
            return
        _relieve(nodes, top, path)


@kernel
def _drop(nodes: np.ndarray, top: np.ndarray, path: np.ndarray, level: Int, low: Int, high: Int) -> None:
    """Remove slots ``low..high`` of the node at ``level`` of ``path``; the range before them takes their indices."""
    node = path[0, level]
    n = nodes[node, 0]
    while low == 0 and high == n - 1:
        _free_node(nodes, top, node)
        level -= 1
        node = path[0, level]
        n = nodes[node, 0]
        low = path[1, level]
        high = low
    if low == 0:
        above = level - 1
        while path[1, above] == 0:
            above -= 1
        nodes[path[0, above], path[1, above]] = nodes[node, 1 + high]
    elif high < n - 1:
        nodes[node, low] = nodes[node, 1 + high]
    count = high - low + 1
    for k in range(high + 1, n):
        nodes[node, FIRST_SLOT + k - count] = nodes[node, FIRST_SLOT + k]
    for k in range(high + 1, n - 1):
        nodes[node, 1 + k - count] = nodes[node, 1 + k]
    nodes[node, 0] = n - count
    _rebalance(nodes, top, path, level)


@kernel
def _rebalance(nodes: np.ndarray, top: np.ndarray, path: np.ndarray, level: Int) -> None:
    """Bring the node at ``level`` of ``path`` and those above back to at least 6 slots (``mas_rebalance``)."""
    while level > 0 and nodes[path[0, level], 0] < MIN_SLOTS:
        parent = path[0, level - 1]
        slot = path[1, level - 1]
        if nodes[parent, 0] == 1:
            break
        if slot > 0:
            slot -= 1
        left = nodes[parent, FIRST_SLOT + slot]
        right = nodes[parent, FIRST_SLOT + slot + 1]
        n = nodes[left, 0]
        m = nodes[right, 0]
        if n + m > SLOTS:
            half = (n + m) // 2
            if n < half:
                _move_left(nodes, parent, slot, half - n)
            else:
                _move_right(nodes, parent, slot, n - half)
            return
        _move_left(nodes, parent, slot, m)
        _free_node(nodes, top, right)
        k = nodes[parent, 0]
        for i in range(slot + 2, k):
            nodes[parent, FIRST_SLOT + i - 1] = nodes[parent, FIRST_SLOT + i]
        for i in range(slot + 1, k - 1):
            nodes[parent, i] = nodes[parent, i + 1]
        nodes[parent, 0] = k - 1
        level -= 1
    while top[HEIGHT] > 1 and nodes[top[ROOT], 0] == 1:
        root = top[ROOT]
        top[ROOT] = nodes[root, FIRST_SLOT]
        top[HEIGHT] -= 1
        _free_node(nodes, top, root)


@kernel
def _drop_borders(
    nodes: np.ndarray, top: np.ndarray, first: Int, last: Int, found: np.ndarray, path: np.ndarray
) -> Int:
    """Remove every range that starts in ``first + 1 .. last``; the range of ``first`` takes their indices."""
    dropped = 0
    while True:
        _walk(nodes, top, last, found, path)
        if found[FOUND_START] <= first:
            return dropped
        level = top[HEIGHT] - 1
        leaf = path[0, level]
        high = path[1, level]
        low = high
        while low > 1 and nodes[leaf, low - 1] >= first:
            low -= 1
        if low == 1:
            # Slot 0 starts where the leaf starts: the next walk sees whether that is a border to drop too.
            before = 0 if level == 0 else _node_start(nodes, path, level)
            if before > first:
                low = 0
        for k in range(low, high + 1):
            if nodes[leaf, FIRST_SLOT + k] != 0:
                top[ENTRIES] -= 1
                dropped += 1
        _drop(nodes, top, path, level, low, high)


@kernel
def _node_start(nodes: np.ndarray, path: np.ndarray, level: Int) -> Int:
    for above in range(level - 1, -1, -1):
        if path[1, above] > 0:
            return nodes[path[0, above], path[1, above]] + 1
    return 0


@kernel
def _store_inside(
    nodes: np.ndarray, top: np.ndarray, index: Int, last: Int, pfn: Int, found: np.ndarray, path: np.ndarray
) -> bool:
    """A store that lies in the one range that was ``found``, if its leaf has room: its borders are slots of that leaf."""
    level = top[HEIGHT] - 1
    leaf, slot = path[0, level], path[1, level]
    before = 1 if index > found[FOUND_START] else 0
    behind = 1 if last < found[FOUND_LAST] else 0
    if nodes[leaf, 0] + before + behind > SLOTS:
        return False
    there = found[FOUND_PFN] >= 0
    if behind > 0:
        entry = ((found[FOUND_PFN] + last + 1 - found[FOUND_START]) << 1) | 1 if there else 0
        _add_slot(nodes, leaf, slot, last, entry)
    if before > 0:
        _add_slot(nodes, leaf, slot, index - 1, 0)
        slot += 1
    nodes[leaf, FIRST_SLOT + slot] = ((pfn << 1) | 1) if pfn >= 0 else 0
    if there:
        top[ENTRIES] += before + behind - 1
    if pfn >= 0:
        top[ENTRIES] += 1
    return True


@kernel
def store(
    nodes: np.ndarray, top: np.ndarray, index: Int, pages: Int, pfn: Int, found: np.ndarray, path: np.ndarray
) -> Int:
    """Map ``[index, index + pages)`` to ``pfn`` on, or to nothing if ``pfn`` is -1 (``mas_store``).

    Replaces what was there; ranges cut at a border keep their outer part. Returns the number of entries that ended
    inside the range (removed or cut).
    """
    if top[HEIGHT] == 0:
        if pfn < 0:
            return 0
        root = _new_node(nodes, top)
        nodes[root, 0] = 1
        nodes[root, FIRST_SLOT] = 0
        top[ROOT] = root
        top[HEIGHT] = 1
    last = index + pages - 1
    _walk(nodes, top, index, found, path)
    there = 1 if found[FOUND_PFN] >= 0 else 0
    if last <= found[FOUND_LAST]:
        if pfn < 0 and there == 0:
            return 0
        # What is taken out at a border of its range may leave two NULL ranges side by side.
        if pfn >= 0 or (found[FOUND_START] < index and last < found[FOUND_LAST]):
            if _store_inside(nodes, top, index, last, pfn, found, path):
                return there
    if last < MAX_INDEX:
        _set_border(nodes, top, last + 1, found, path)
    _set_border(nodes, top, index, found, path)
    removed = _drop_borders(nodes, top, index, last, found, path)
    _walk(nodes, top, index, found, path)
    level = top[HEIGHT] - 1
    if found[FOUND_PFN] >= 0:
        top[ENTRIES] -= 1
        removed += 1
    if pfn >= 0:
        nodes[path[0, level], FIRST_SLOT + path[1, level]] = (pfn << 1) | 1
        top[ENTRIES] += 1
        return removed
    nodes[path[0, level], FIRST_SLOT + path[1, level]] = 0
    # Neighbouring NULL ranges are one range.
    if last < MAX_INDEX:
        _walk(nodes, top, last + 1, found, path)
        if found[FOUND_PFN] < 0:
            _drop_borders(nodes, top, last, last + 1, found, path)
    if index > 0:
        _walk(nodes, top, index - 1, found, path)
        if found[FOUND_PFN] < 0:
            _drop_borders(nodes, top, index - 1, index, found, path)
    if top[HEIGHT] == 1 and nodes[top[ROOT], 0] == 1 and nodes[top[ROOT], FIRST_SLOT] == 0:
        _free_node(nodes, top, top[ROOT])
        top[HEIGHT] = 0
    return removed


@kernel
def split(nodes: np.ndarray, top: np.ndarray, index: Int, order: Int, found: np.ndarray, path: np.ndarray) -> Int:
    """Cut the entry that holds ``index`` into entries of ``2**order`` pages. Returns their number, 0 if not present.

    Stops early (and says how many) when nodes run out.
    """
    if top[HEIGHT] == 0:
        return 0
    _walk(nodes, top, index, found, path)
    if found[FOUND_PFN] < 0:
        return 0
    last = found[FOUND_LAST]
    border = (found[FOUND_START] >> order) + 1 << order
    entries = 1
    while border <= last and room(nodes, top) >= store_nodes(top):
        _set_border(nodes, top, border, found, path)
        border += 1 << order
        entries += 1
    return entries

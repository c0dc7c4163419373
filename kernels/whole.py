"""What of a guest's memory stays whole, 2 MiB by 2 MiB: entries of the RMP, regions of 1 GiB and pairs of PAMT pages.

Linux: ``arch/x86/kvm/svm/sev.c`` (``sev_gmem_prepare``, ``sev_gmem_invalidate``), ``arch/x86/virt/svm/sev.c``
(``adjust_direct_map``). What each number stands for is in :mod:`workbench.tracking.whole`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, natural_kernel, record

PAGES_2M, PAGES_1G = 512, 1 << 18
UPDATES, SMASHES, LARGE, DIRECT_SPLIT, REGIONS = range(5)
"""Entries of a row, which goes on with regions that hold private memory by node, then pairs of PAMT pages by node."""
PAGES, BEFORE, UP, DOWN, CHANGED = range(5)
"""Columns of ``stretches``: pages on the node; those before them on it, when regions were laid out; by how many more, or by more
than how many fewer, a block would be in another region; whether blocks came, went or moved since."""
STRETCH_SHIFT = 9
"""log2 of the blocks of a stretch."""
_FAR = 1 << 62


@record
class Whole(NamedTuple):
    """A file of B blocks of 2 MiB on N nodes, none of which has more than M regions of it."""

    present: np.ndarray
    """int64 (B,), 4 KiB pages that are there, as somebody saw it last; so are the next two."""
    private: np.ndarray
    """int64 (B,), those of them that are private."""
    node: np.ndarray
    """int64 (B,), node index, -1 where nothing is."""
    large: np.ndarray
    """uint8 (B,), whether the block has an entry of 2 MiB."""
    direct_split: np.ndarray
    """uint8 (B,), whether the direct map of the block is split."""
    region: np.ndarray
    """int64 (B,), region that the block's first page lies in, -1 where nothing is."""
    held: np.ndarray
    """int64 (N * M,), blocks with private memory of each region, node by node."""
    stretches: np.ndarray
    """int64 (N, S, 5), columns PAGES ..., of each stretch of blocks what of it lies on each node."""
    row: np.ndarray
    """int64 (4 + 2 N,), UPDATES ... as of now."""


def nobody_asks() -> Whole:
    """Of a file of which nobody asks what stays whole: no blocks, on no node."""
    return new_whole(0, 0)._replace(row=np.zeros(0, np.int64))


def new_whole(blocks: int, nodes: int) -> Whole:
    """Of a file that nothing backs yet."""
    stretches = -(-blocks >> STRETCH_SHIFT)
    most = stretches + 1  # of 1 GiB each, but for one that another begins in
    return Whole(
        present=np.zeros(blocks, np.int64), private=np.zeros(blocks, np.int64), node=np.full(blocks, -1, np.int64),
        large=np.zeros(blocks, np.uint8), direct_split=np.zeros(blocks, np.uint8), region=np.full(blocks, -1, np.int64),
        held=np.zeros(nodes * most, np.int64), stretches=np.zeros((nodes, stretches, 5), np.int64),
        row=np.zeros(REGIONS + 2 * nodes, np.int64),
    )  # fmt: skip


@natural_kernel
def look(
    w: Whole,
    blocks: np.ndarray,
    present: np.ndarray,
    private: np.ndarray,
    node: np.ndarray,
    whole: np.ndarray,
    counts: bool,
) -> None:
    """Blocks int64 (n,), each once, are as ``present``, ``private``, ``node`` int64 (n,) and ``whole`` bool (n,) say now.

    ``whole``: one entry can stand for the block. ``counts``: entries change by it, as by one call for each block.
    """
    moved = False
    for at in range(blocks.shape[0]):
        moved |= change(w, blocks[at], present[at], private[at], node[at], whole[at], counts)
    if moved:
        lay_out(w)


@natural_kernel
def look_at_one(w: Whole, block: Int, present: Int, private: Int, node: Int, whole: bool, counts: bool) -> None:
    """:func:`look` at one block."""
    if change(w, block, present, private, node, whole, counts):
        lay_out(w)


@natural_kernel
def change(w: Whole, block: Int, present: Int, private: Int, node: Int, whole: bool, counts: bool) -> bool:
    """One block is so now; whether memory came, went or moved, so that regions have to be laid out again."""
    nodes = w.stretches.shape[0]
    before, node_before, region = w.private[block], w.node[block], w.region[block]
    moved = present != w.present[block] or node != node_before
    if not moved and private == before:
        return False
    if counts:
        _count_entries(w, block, before, private, whole)
    if moved:
        if region >= 0 and before > 0:
            _hold(w, region, -1)
        w.region[block] = -1
        _count_pages(w, node_before, block, -w.present[block])
        _count_pages(w, node, block, present)
    w.present[block], w.private[block], w.node[block] = present, private, node
    if before > 0 and node_before >= 0:
        w.row[REGIONS + nodes + node_before] -= 1
    if private > 0 and node >= 0:
        w.row[REGIONS + nodes + node] += 1
    if not moved and region >= 0 and (before > 0) != (private > 0):
        _hold(w, region, 1 if private > 0 else -1)
    return moved


@natural_kernel
def _count_entries(w: Whole, block: Int, before: Int, private: Int, whole: bool) -> None:
    """What the change of a block's private pages does to its entries of the RMP and of the direct map."""
    large = w.large[block] == 1
    made = before == 0 and private == PAGES_2M and whole
    gone = large and private == 0
    smashed = large and 0 < private < PAGES_2M
    w.row[UPDATES] += 1 if made or gone else abs(private - before)
    w.row[SMASHES] += smashed
    stays = (large and not gone and not smashed) or made
    w.row[LARGE] += np.int64(stays) - np.int64(large)
    w.large[block] = stays
    if w.direct_split[block] == 0 and (smashed or (private > before and not made)):
        w.direct_split[block] = 1
        w.row[DIRECT_SPLIT] += 1


@natural_kernel
def _hold(w: Whole, region: Int, blocks: Int) -> None:
    """So many more blocks with private memory lie in a region."""
    before = w.held[region]
    w.held[region] = before + blocks
    if (before > 0) != (before + blocks > 0):
        w.row[REGIONS + region // (w.held.shape[0] // w.stretches.shape[0])] += 1 if blocks > 0 else -1


@natural_kernel
def _count_pages(w: Whole, node: Int, block: Int, pages: Int) -> None:
    """So many more pages of a block lie on a node."""
    if node >= 0:
        stretch = w.stretches[node, block >> STRETCH_SHIFT]
        stretch[PAGES] += pages
        stretch[CHANGED] = 1


@natural_kernel
def lay_out(w: Whole) -> None:
    """Memory lies in the order of the file on its node, from the start of a region on: every block gets its region.

    Most keep the one that they have: stretches are looked at that have changed, or in which a block gets to another by what has
    come or gone before it.
    """
    for node in range(w.stretches.shape[0]):
        before = np.int64(0)
        for number in range(w.stretches.shape[1]):
            stretch = w.stretches[node, number]
            moved = before - stretch[BEFORE]
            if stretch[CHANGED] == 1 or moved >= stretch[UP] or -moved > stretch[DOWN]:
                _lay_out_stretch(w, node, number, before)
            before += stretch[PAGES]


@natural_kernel
def _lay_out_stretch(w: Whole, node: Int, number: Int, before: Int) -> None:
    most = w.held.shape[0] // w.stretches.shape[0]
    stretch = w.stretches[node, number]
    stretch[BEFORE], stretch[UP], stretch[DOWN], stretch[CHANGED] = before, _FAR, _FAR, 0
    for block in range(number << STRETCH_SHIFT, min((number + 1) << STRETCH_SHIFT, w.node.shape[0])):
        if w.node[block] != node:
            continue
        region, known = node * most + before // PAGES_1G, w.region[block]
        if region != known:
            if w.private[block] > 0 and known >= 0:
                _hold(w, known, -1)
            if w.private[block] > 0:
                _hold(w, region, 1)
            w.region[block] = region
        within = before % PAGES_1G
        stretch[UP], stretch[DOWN] = min(stretch[UP], PAGES_1G - within), min(stretch[DOWN], within)
        before += w.present[block]

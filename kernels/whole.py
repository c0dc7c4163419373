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
    before: np.ndarray
    """int64 (N,), working space."""
    row: np.ndarray
    """int64 (4 + 2 N,), UPDATES ... as of now."""


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
        moved |= _change(w, blocks[at], present[at], private[at], node[at], whole[at], counts)
    if moved:
        _lay_out(w)


@natural_kernel
def look_at_one(w: Whole, block: Int, present: Int, private: Int, node: Int, whole: bool, counts: bool) -> None:
    """:func:`look` at one block."""
    if _change(w, block, present, private, node, whole, counts):
        _lay_out(w)


@natural_kernel
def _change(w: Whole, block: Int, present: Int, private: Int, node: Int, whole: bool, counts: bool) -> bool:
    """One block is so now; whether memory came, went or moved, so that regions have to be laid out again."""
    nodes = w.before.shape[0]
    before, node_before, region = w.private[block], w.node[block], w.region[block]
    moved = present != w.present[block] or node != node_before
    if not moved and private == before:
        return False
    if counts:
        _count_entries(w, block, before, private, whole)
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
        w.row[REGIONS + region // (w.held.shape[0] // w.before.shape[0])] += 1 if blocks > 0 else -1


@natural_kernel
def _lay_out(w: Whole) -> None:
    """Memory lies in the order of the file on its node, from the start of a region on: every block gets its region."""
    nodes = w.before.shape[0]
    most = w.held.shape[0] // nodes
    for node in range(nodes):
        w.row[REGIONS + node] = w.before[node] = 0
    for region in range(w.held.shape[0]):
        w.held[region] = 0
    for block in range(w.node.shape[0]):
        node = w.node[block]
        if node < 0:
            w.region[block] = -1
            continue
        region = node * most + w.before[node] // PAGES_1G
        w.before[node] += w.present[block]
        w.region[block] = region
        if w.private[block] > 0:
            _hold(w, region, 1)

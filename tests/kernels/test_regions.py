"""Regions of 1 GiB that hold private memory, kept up as blocks change, against laying everything out again."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.kernels import whole
from workbench.kernels.whole import PAGES_1G, PAGES_2M, REGIONS, Whole

BLOCKS, NODES = 1600, 2
STATE = st.tuples(st.sampled_from([0, 1, 511, 512, 512, 512]), st.sampled_from([0, 1, 512]), st.integers(0, NODES - 1))


def laid_out(w: Whole) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Region of each block, blocks with private memory by region, and regions with any by node."""
    most = len(w.held) // NODES
    region, held = np.full(BLOCKS, -1, np.int64), np.zeros(len(w.held), np.int64)
    for node in range(NODES):
        here = np.flatnonzero(w.node == node)
        before = np.cumsum(w.present[here]) - w.present[here]
        region[here] = node * most + before // PAGES_1G
        np.add.at(held, region[here], w.private[here] > 0)
    return region, held, np.count_nonzero(held.reshape(NODES, most), axis=1).tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.sampled_from([1, 1, 2, 300, 700]), STATE, st.booleans()), max_size=20),
    st.booleans(),
)  # fmt: skip
def test_as_laid_out_anew(
    changes: list[tuple[int, int, tuple[int, int, int], bool]],
    full: bool,
) -> None:
    w = whole.new_whole(BLOCKS, NODES)
    if full:
        changes = [(0, BLOCKS, (512, 512, 0), False), *changes]
    for first, count, (present, private, node), turns in changes:
        blocks = np.arange(first, min(first + count, BLOCKS))
        shape = np.ones(len(blocks), np.int64)
        nodes = np.where(present > 0, (node + blocks * turns) % NODES, -1)
        now = present * shape, min(private, present) * shape, nodes, present * shape == PAGES_2M
        if len(blocks) == 1:
            whole.look_at_one(w, *(int(part[0]) for part in (blocks, *now[:3])), bool(now[3][0]), True)
        else:
            whole.look(w, blocks, *now, True)
        region, held, with_private = laid_out(w)
        np.testing.assert_array_equal(w.region, region)
        np.testing.assert_array_equal(w.held, held)
        assert w.row[REGIONS : REGIONS + NODES].tolist() == with_private

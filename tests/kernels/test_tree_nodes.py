"""Nodes that come and go in slabs, against :class:`workbench.engine.slabs.Slabs`: up to the change for which a slab does too."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.scale import examples
from workbench.engine.slabs import MIN_PARTIAL, Slabs, last_of
from workbench.kernels import tree_nodes as kernel

NODES, TREES = 2, 3
KINDS = ((0, 0), (1, 1), (0, 1))
"""Cache and kind of each tree."""


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.tuples(st.tuples(*[st.integers(0, 12)] * TREES), st.integers(0, NODES - 1)), min_size=1, max_size=40)
)
def test_the_same_as_one_tree_after_another(calls: list[tuple[tuple[int, ...], int]]) -> None:
    caches = [Slabs((0, 1), objects, 1, NODES, 1) for objects in (2, 3)]
    nodes = np.zeros((TREES, NODES), np.int64)
    trees = kernel.Trees(
        wanted=np.array([wanted for wanted, _ in calls], np.int64), nid=np.array([nid for _, nid in calls], np.int64),
        kinds=np.array(KINDS, np.int64), nodes=nodes.copy(), live=np.zeros((2, NODES), np.int64),
        parts=np.zeros((2, 2, NODES), np.int64), slabs=np.zeros((2, NODES), np.int64), objects=np.array([2, 3], np.int64),
        gone=np.zeros(NODES, np.int64), log=np.zeros((len(calls), 2, 2, NODES), np.int64),
    )  # fmt: skip
    end = len(calls) * TREES
    stopped = int(kernel.follow(trees, 0, end, MIN_PARTIAL))
    for change in range(end):
        row, tree = divmod(change, TREES)
        wanted, nid = calls[row]
        which, kind = KINDS[tree]
        slabs, before = caches[which], caches[which].count()
        more = wanted[tree] - int(nodes[tree].sum())
        if more < 0:
            gone = last_of(nodes[tree], -more)
            nodes[tree] -= gone
            slabs.parts[kind] -= gone
            slabs.free(gone)
        elif more:
            slabs.take(nid, np.array([max(0, slabs.wanted(nid, more))]))
            slabs.live[nid] += more
            slabs.parts[kind, nid] += more
            nodes[tree, nid] += more
        came_or_went = bool((slabs.count() != before).any())
        assert came_or_went == (change == stopped)
        if came_or_went:
            trees.nodes[:] = nodes
            for number, one in enumerate(caches):
                trees.live[number], trees.parts[number], trees.slabs[number] = one.live, one.parts, one.count()
            if tree == TREES - 1:
                trees.log[row] = trees.parts
            stopped = int(kernel.follow(trees, change + 1, end, MIN_PARTIAL))
        if tree == TREES - 1:
            np.testing.assert_array_equal(trees.log[row], [one.parts for one in caches])
    assert stopped == end
    np.testing.assert_array_equal(trees.nodes, nodes)
    np.testing.assert_array_equal(trees.live, [one.live for one in caches])

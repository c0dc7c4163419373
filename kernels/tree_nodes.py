"""Nodes of trees that come and go, one call after another, in the slabs that they are objects of.

As long as no slab has to be taken or is given back (``mm/slub.c``), calls change nothing but how full slabs are; where one is,
somebody else goes on (:mod:`workbench.engine.slabs`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record


@record
class Trees(NamedTuple):
    """T trees, whose nodes are objects of S caches of slabs, on N NUMA nodes; n calls."""

    wanted: np.ndarray
    """int64 (n, T), nodes that each tree has after each call."""
    nid: np.ndarray
    """int64 (n,), NUMA node of the task of each."""
    kinds: np.ndarray
    """int64 (T, 2), cache of each tree, and which of the two kinds of its objects the nodes are."""
    nodes: np.ndarray
    """int64 (T, N), nodes of each tree by the NUMA node of the task that stored."""
    live: np.ndarray
    """int64 (S, N), objects in use."""
    parts: np.ndarray
    """int64 (S, 2, N), objects by kind."""
    slabs: np.ndarray
    """int64 (S, N), slabs that are there."""
    objects: np.ndarray
    """int64 (S,), of a slab."""
    gone: np.ndarray
    """int64 (N,), working space."""
    log: np.ndarray
    """int64 (n, S, 2, N), ``parts`` after each call."""


@kernel
def follow(t: Trees, first: Int, end: Int, most_empty: Int) -> Int:
    """Changes [first, end), of call ``change // T`` in tree ``change % T``; returns the first that takes or gives back a slab.

    Of slabs that become empty ``most_empty`` are kept.
    """
    trees = t.nodes.shape[0]
    for change in range(first, end):
        row, tree = change // trees, change % trees
        more = t.wanted[row, tree]
        for node in range(t.gone.shape[0]):
            more -= t.nodes[tree, node]
        if more != 0 and not _change(t, tree, more, t.nid[row], most_empty):
            return change
        if tree == trees - 1:
            for cache in range(t.parts.shape[0]):
                for node in range(t.gone.shape[0]):
                    t.log[row, cache, 0, node] = t.parts[cache, 0, node]
                    t.log[row, cache, 1, node] = t.parts[cache, 1, node]
    return end


@kernel
def _change(t: Trees, tree: Int, more: Int, nid: Int, most_empty: Int) -> bool:
    """So many more nodes of a tree. False, and nothing is changed, if a slab comes or goes."""
    cache, kind = t.kinds[tree, 0], t.kinds[tree, 1]
    if more > 0:
        if more > t.slabs[cache, nid] * t.objects[cache] - t.live[cache, nid]:
            return False
        t.nodes[tree, nid] += more
        t.parts[cache, kind, nid] += more
        t.live[cache, nid] += more
        return True
    left = -more
    for node in range(t.gone.shape[0]):
        t.gone[node] = 0
    while left > 0:  # of the fullest first
        most = 0
        for node in range(1, t.gone.shape[0]):
            if t.nodes[tree, node] - t.gone[node] > t.nodes[tree, most] - t.gone[most]:
                most = node
        some = min(left, t.nodes[tree, most])
        if some == 0:
            break
        t.gone[most] = some
        left -= some
    for node in range(t.gone.shape[0]):
        used = -(-(t.live[cache, node] - t.gone[node]) // t.objects[cache])
        if t.gone[node] > 0 and t.slabs[cache, node] - used > most_empty:
            return False
    for node in range(t.gone.shape[0]):
        t.nodes[tree, node] -= t.gone[node]
        t.parts[cache, kind, node] -= t.gone[node]
        t.live[cache, node] -= t.gone[node]
    return True

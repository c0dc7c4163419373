"""What a mempolicy asks of :mod:`workbench.kernels.placement`: start node, rotation, nodemasks.

Linux: ``mm/mempolicy.c: policy_nodemask``, ``mm/page_alloc.c: prepare_alloc_pages``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench import policy as mp
from workbench.kernels import placement

Bools = npt.NDArray[np.bool_]


def mask_of(nodes: int, node_ids: npt.NDArray[np.int64]) -> Bools:
    """A bitmask of node ids as bool (nodes,)."""
    return np.array([bool(nodes >> int(node) & 1) for node in node_ids], bool)


def policy_nodemask(
    policy: mp.Mempolicy | None, nid: int, node_ids: npt.NDArray[np.int64], allowed: Bools, bindable: Bools
) -> tuple[int, int, int, Bools, Bools]:
    """Fields of one row of the request table: kind, start, passes, nodes, filters.

    Parameters
    ----------
    policy : the policy in force, None for the default
    nid : index of the node the task runs on
    node_ids : int64 (nodes,), Linux node ids
    allowed : bool (nodes,), cpuset_current_mems_allowed
    bindable : bool (nodes,), nodes that make BIND apply (``apply_policy_zone``)
    """
    filters = np.stack((allowed, allowed))
    mode = mp.LOCAL if policy is None else policy.mode
    if policy is None or mode in (mp.LOCAL, mp.DEFAULT):
        return placement.START, nid, 1, allowed, filters
    nodes = mask_of(policy.nodes, node_ids)
    home = nid if policy.home_node is None else int(np.searchsorted(node_ids, policy.home_node))
    if mode == mp.PREFERRED:
        return placement.START, int(np.flatnonzero(nodes)[0]), 1, nodes, filters
    if mode == mp.PREFERRED_MANY:
        filters[0] &= nodes
        return placement.START, home, 2, nodes, filters
    if mode == mp.BIND:
        if (nodes & bindable).any() and (nodes & allowed).any():
            filters[:] &= nodes
        return placement.START, home, 1, nodes, filters
    kind = placement.INTERLEAVE if mode == mp.INTERLEAVE else placement.WEIGHTED
    return kind, nid, 1, nodes, filters

"""The order in which nodes and zones are tried: fallback order of nodes, zones within a node, and who may use what.

Linux: ``mm/page_alloc.c`` (``build_all_zonelists``, ``build_zonelists``, ``find_next_best_node``,
``build_zonerefs_node``). Nodes are indices in ascending order of Linux node id; zones are rows of a zone table.

The lists built at boot differ from those built after memory hotplug: ``find_next_best_node`` adds a penalty to nodes
with CPUs, but at boot on x86 no CPU has been added to any node's cpumask yet, so the penalty is 0 for all of them.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE = 0, 1, 2, 3
PENALTY_FOR_NODE_WITH_CPUS = 1
"""include/linux/topology.h."""
MAX_NUMNODES = 1024
"""Shipped configuration, NODES_SHIFT=10; it scales the distance in a node's score."""


@kernel
def fallback_order(
    distance: np.ndarray, has_memory: np.ndarray, penalised: np.ndarray, node_load: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` with the fallback order of every node.

    Parameters
    ----------
    distance : int64 (nodes, nodes), SLIT distances
    has_memory : bool (nodes,), N_MEMORY
    penalised : bool (nodes,), nodes with CPUs in their cpumask when the lists are built: all False for the lists
        of an x86 boot, the nodes that have CPUs for lists rebuilt by memory hotplug
    node_load : int64 (nodes,), working space; the kernel zeroes it once and carries it from list to list
    out : int64 (nodes, nodes), row ``me`` receives node indices in the order they are tried, then -1
    """
    nodes = distance.shape[0]
    node_load[:] = 0
    out[:, :] = -1
    for me in range(nodes):
        # find_next_best_node() looks at all nodes for every place of the list. A node's load grows only when it is taken,
        # so that the scores of those left stand as the list begins: it is these in order, of equal ones the lowest first.
        filled = 0
        for node in range(nodes):
            if has_memory[node]:
                place = filled
                score = _score(me, node, distance, has_memory, penalised, node_load)
                while place > 0 and _score(me, out[me, place - 1], distance, has_memory, penalised, node_load) > score:
                    out[me, place] = out[me, place - 1]
                    place -= 1
                out[me, place] = node
                filled += 1
        previous: Int = me
        for position in range(filled):
            best = out[me, position]
            if distance[me, best] != distance[me, previous]:
                node_load[best] += 1
            previous = best


@kernel
def _score(
    me: Int, node: Int, distance: np.ndarray, has_memory: np.ndarray, penalised: np.ndarray, node_load: np.ndarray
) -> Int:
    """find_next_best_node(): the lowest is taken; a node with memory comes first in its own list."""
    if node == me and has_memory[me]:
        return np.int64(-1)
    score = distance[me, node] + (node < me) + penalised[node] * PENALTY_FOR_NODE_WITH_CPUS
    return np.int64(score * MAX_NUMNODES + node_load[node])


@kernel
def zonelists(
    order: np.ndarray,
    zone_node: np.ndarray,
    zone_type: np.ndarray,
    managed: np.ndarray,
    highest: Int,
    end: np.ndarray,
    listed: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` with the zones that a request may use, in the order they are tried.

    A guest_memfd folio is GFP_HIGHUSER, so its ``highest`` is ZONE_NORMAL and it never uses ZONE_MOVABLE; a tmpfs
    folio is GFP_HIGHUSER_MOVABLE. The list is node-major, zones of one node from high to low.

    Parameters
    ----------
    order : int64 (nodes, nodes), from :func:`fallback_order`
    zone_node, zone_type, managed : int64 (zones,), node index, ZONE_* and managed pages of each zone
    highest : highest ZONE_* of the request
    end : int64 (nodes + 1,), working space: where each node's zones end in ``listed``
    listed : int64 (zones,), working space: the zones node by node
    out : int64 (nodes, zones + 1), row ``start`` receives rows of the zone table, then -1
    """
    nodes = order.shape[0]
    end[:] = 0
    for kind in range(highest, -1, -1):
        for zone in range(zone_node.shape[0]):
            if zone_type[zone] == kind and managed[zone] > 0:
                end[zone_node[zone] + 1] += 1
    for node in range(nodes):
        end[node + 1] += end[node]
    for kind in range(highest, -1, -1):  # each node begins where the one before ends, and is moved to its own end
        for zone in range(zone_node.shape[0]):
            if zone_type[zone] == kind and managed[zone] > 0:
                listed[end[zone_node[zone]]] = zone
                end[zone_node[zone]] += 1
    out[:, :] = -1
    for start in range(nodes):
        filled = 0
        for position in range(order.shape[1]):
            node = order[start, position]
            if node < 0:
                break
            for place in range(end[node - 1] if node else 0, end[node]):
                out[start, filled] = listed[place]
                filled += 1

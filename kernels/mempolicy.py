"""Node choice of one page under an interleaving mempolicy, and the kernel's automatic interleave weights.

Linux: ``mm/mempolicy.c`` (``interleave_nodes``, ``weighted_interleave_nodes``, ``interleave_nid``,
``weighted_interleave_nid``, ``reduce_interleave_weights``) and ``mm/page_alloc.c`` for what follows the choice
(:mod:`workbench.kernels.placement`).

Nodes are indices into the host's node list in ascending order of Linux node id. A nodemask is a bool array over
them. The rotation of one task is two integers: ``il_prev``, the index of the node that the task's interleave used
last, and ``il_weight``, the pages that node has left in a weighted rotation. ``set_mempolicy`` of an interleave
mode sets ``il_prev`` to MAX_NUMNODES-1, which in index space is the last node: the next one is the lowest set bit.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

WEIGHTINESS = 32
"""Scale of automatic weights before their reduction (mm/mempolicy.c: weightiness)."""


@kernel
def next_node_in(node: Int, nodemask: np.ndarray) -> Int:
    """First set bit strictly after ``node``, wrapping round; -1 if the mask is empty (include/linux/nodemask.h)."""
    size = nodemask.shape[0]
    for step in range(1, size + 1):
        candidate = (node + step) % size
        if nodemask[candidate]:
            return candidate
    return -1


@kernel
def interleave_next(rotation: np.ndarray, nodemask: np.ndarray) -> Int:
    """Node of the next page of a stateful interleave; ``rotation`` = int64 [il_prev, il_weight] is advanced.

    Linux: mm/mempolicy.c: interleave_nodes. ``il_weight`` is left alone, as in the kernel.
    """
    node = next_node_in(rotation[0], nodemask)
    if node >= 0:
        rotation[0] = node
    return node


@kernel
def weighted_interleave_next(rotation: np.ndarray, nodemask: np.ndarray, weights: np.ndarray) -> Int:
    """Node of the next page of a stateful weighted interleave; ``rotation`` is advanced.

    Linux: mm/mempolicy.c: weighted_interleave_nodes.
    """
    node = rotation[0]
    if rotation[1] == 0 or not nodemask[node]:
        node = next_node_in(node, nodemask)
        if node < 0:
            return -1
        rotation[0] = node
        rotation[1] = weights[node]
    rotation[1] -= 1
    return node


@kernel
def interleave_nid(ilx: Int, nodemask: np.ndarray) -> Int:
    """Node of index ``ilx`` under a stateless interleave (mm/mempolicy.c: interleave_nid); -1 for an empty mask."""
    population = 0
    for node in range(nodemask.shape[0]):
        population += nodemask[node]
    if population == 0:
        return -1
    target = ilx % population
    for node in range(nodemask.shape[0]):
        if nodemask[node]:
            if target == 0:
                return node
            target -= 1
    return -1


@kernel
def weighted_interleave_nid(ilx: Int, nodemask: np.ndarray, weights: np.ndarray) -> Int:
    """Node of index ``ilx`` under a stateless weighted interleave (mm/mempolicy.c: weighted_interleave_nid)."""
    total = 0
    for node in range(nodemask.shape[0]):
        if nodemask[node]:
            total += weights[node]
    if total == 0:
        return -1
    target = ilx % total
    for node in range(nodemask.shape[0]):
        if nodemask[node]:
            if target < weights[node]:
                return node
            target -= weights[node]
    return -1


@kernel
def auto_weights(bandwidth: np.ndarray, has_memory: np.ndarray, out: np.ndarray) -> None:
    """Automatic interleave weights from bandwidth.

    Linux: mm/mempolicy.c: reduce_interleave_weights, as called by mempolicy_set_node_perf.

    Parameters
    ----------
    bandwidth : int64 (nodes,), MB/s, the smaller of read and write bandwidth of access class 1; 0 if unknown
    has_memory : bool (nodes,), N_MEMORY
    out : int64 (nodes,), receives the weights; nodes without memory get 1
    """
    total = np.int64(0)
    for node in range(bandwidth.shape[0]):
        if has_memory[node]:
            total += bandwidth[node]
    divisor: Int = np.int64(0)
    for node in range(bandwidth.shape[0]):
        out[node] = 1
        if not has_memory[node]:
            continue
        scaled = (WEIGHTINESS * bandwidth[node]) & 0xFFFFFFFF  # the kernel multiplies in 32 bits
        low_word = total & 0xFFFFFFFF  # and divides by the low word of the sum
        if bandwidth[node] != 0 and total < scaled and low_word != 0:
            out[node] = scaled // low_word
        divisor = _gcd(divisor, out[node])
    if divisor > 1:
        for node in range(bandwidth.shape[0]):
            if has_memory[node]:
                out[node] //= divisor


@kernel
def _gcd(a: Int, b: Int) -> Int:
    while b:
        a, b = b, a % b
    return a

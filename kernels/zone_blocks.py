"""Free blocks of huge memory that zones can give, in step with their free pages.

Linux: ``mm/page_alloc.c`` (``__zone_watermark_ok``, ``rmqueue_smallest``). What the rows stand for is in
:mod:`workbench.engine.zone_blocks`.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, natural_kernel


@natural_kernel
def settle(
    free: np.ndarray,
    zone_node: np.ndarray,
    kept: np.ndarray,
    most: np.ndarray,
    used: np.ndarray,
    held: np.ndarray,
    order: Int,
    broken_up: bool,
) -> None:
    """Bring the rows of ``free`` int64 (nodes + zones,), blocks by node, then pages by zone, in step with each other.

    What blocks of a node are fewer (or more) than its zones held was taken (or given back) since the last time, the highest
    zone's first.

    Parameters
    ----------
    zone_node : int64 (zones,), node index of each zone
    kept : int64 (zones,), pages that a zone keeps
    most : int64 (zones,), free blocks that a zone has when nothing is taken
    used, held : int64 (zones,), how many of them files have, and how many stand in the rows of nodes; changed
    order : of a block
    broken_up : leave all pages with the zones
    """
    zones = zone_node.shape[0]
    nodes = free.shape[0] - zones
    for node in range(nodes):
        free[node] = -free[node]
    for zone in range(zones):
        free[zone_node[zone]] += held[zone]
    for zone in range(zones - 1, -1, -1):
        taken = free[zone_node[zone]]
        here = min(taken, held[zone]) if taken > 0 else max(taken, -used[zone])
        free[zone_node[zone]] -= here
        held[zone] -= here
        used[zone] += here
    for node in range(nodes):
        free[node] = 0
    for zone in range(zones):
        pages = free[nodes + zone] + (held[zone] << order)
        held[zone] = 0 if broken_up else min(max((pages - kept[zone]) >> order, 0), most[zone] - used[zone])
        free[nodes + zone] = pages - (held[zone] << order)
        free[zone_node[zone]] += held[zone]

"""Colours of nodes, the same in figures, reports and the explorer; needs no plotting library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NODE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#4d4d4d")
"""Told apart with every form of colour blindness (Okabe and Ito 2008)."""
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#6a51a3", "#6e6e6e")
"""Hues of groups of nodes; their shades say which node of the group."""


def groups(
    distance: npt.NDArray[np.int64], cpus: npt.NDArray[np.int64] | None = None, most: int = len(_HUES)
) -> list[list[int]]:
    """Indices of nodes in groups that lie close together (sockets, blades): at most ``most`` groups.

    Nodes with CPUs are joined from the smallest distance on while more than one group is left; nodes without CPUs
    (CXL, HBM, GPU memory) go to the nearest node that has some. A host whose distances show no structure is cut into
    equal parts in the order of its nodes.
    """
    size = len(distance)
    near = np.minimum(distance, distance.T)
    anchors = np.arange(size) if cpus is None or not cpus.any() else np.flatnonzero(cpus)
    inner = near[np.ix_(anchors, anchors)]
    best = [[i] for i in range(len(anchors))]
    for limit in np.unique(inner[~np.eye(len(anchors), dtype=bool)]):
        joined = _joined(inner <= limit)
        if len(joined) > 1 or len(best) > most:
            best = joined
        if len(best) <= most:
            break
    if len(best) == 1 and len(anchors) > most:
        return [part.tolist() for part in np.array_split(np.arange(size), min(most, -(-size // 8)))]
    out = [[int(anchors[i]) for i in part] for part in best]
    for node in sorted(set(range(size)) - set(anchors.tolist())):
        nearest = int(anchors[np.argmin(near[node, anchors])])
        next(part for part in out if nearest in part).append(node)
    return [sorted(part) for part in out]


def _joined(linked: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Connected parts of a symmetric relation."""
    label = np.arange(len(linked))
    while True:
        spread = np.where(linked, label[None, :], len(linked)).min(axis=1)
        if np.array_equal(spread, label):
            return [np.flatnonzero(label == value).tolist() for value in np.unique(label)]
        label = spread


def node_colours(distance: npt.NDArray[np.int64], cpus: npt.NDArray[np.int64] | None = None) -> list[str]:
    """A colour for each node: its own hue up to 8 nodes; beyond, the hue says the group and the shade which of it."""
    size = len(distance)
    if size <= len(NODE_COLOURS):
        return list(NODE_COLOURS[:size])
    out = [""] * size
    for hue, members in zip(_HUES, groups(distance, cpus), strict=False):
        base = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        for step, member in enumerate(members):
            at = step / max(1, len(members) - 1)  # 0 dark .. 1 light
            colour = base * (0.55 + 0.45 * min(1, 2 * at)) if at < 0.5 else base + (1 - base) * (at - 0.5) * 1.3
            out[member] = "#{:02x}{:02x}{:02x}".format(*np.round(255 * colour.clip(0, 1)).astype(int))
    return out

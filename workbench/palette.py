"""Colours of nodes, the same in figures, reports and the explorer; needs no plotting library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NODE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c")
"""Told apart with every form of colour blindness (Okabe and Ito 2008)."""
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#6a51a3", "#6e6e6e")
"""Hues of groups of nodes; their shades say which node of the group."""


def groups(distance: npt.NDArray[np.int64], most: int = len(_HUES)) -> list[list[int]]:
    """Indices of nodes in groups that lie close together (sockets, blades): at most ``most`` groups.

    Nodes are joined from the smallest distance on, until few enough groups are left; a host whose distances show no
    structure is cut into equal parts in the order of its nodes.
    """
    size = len(distance)
    near = np.minimum(distance, distance.T)
    for limit in np.unique(near[~np.eye(size, dtype=bool)]) if size > 1 else []:
        label = np.arange(size)
        for _ in range(size):  # at most `size` rounds of spreading the smallest label
            spread = np.where(near <= limit, label[None, :], size).min(axis=1)
            spread = np.minimum(spread, label)
            if np.array_equal(spread, label):
                break
            label = spread
        found = [np.flatnonzero(label == value).tolist() for value in np.unique(label)]
        if len(found) <= most:
            if len(found) > 1:
                return found
            break
    return [part.tolist() for part in np.array_split(np.arange(size), min(most, -(-size // 8)))]


def node_colours(distance: npt.NDArray[np.int64]) -> list[str]:
    """A colour for each node: its own hue up to 8 nodes; beyond, the hue says the group and the shade which of it."""
    size = len(distance)
    if size <= len(NODE_COLOURS):
        return list(NODE_COLOURS[:size])
    out = [""] * size
    for hue, members in zip(_HUES, groups(distance), strict=False):
        base = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        for step, member in enumerate(members):
            at = step / max(1, len(members) - 1)  # 0 dark .. 1 light
            colour = base * (0.55 + 0.45 * min(1, 2 * at)) if at < 0.5 else base + (1 - base) * (at - 0.5) * 1.3
            out[member] = "#{:02x}{:02x}{:02x}".format(*np.round(255 * colour.clip(0, 1)).astype(int))
    return out

"""Colours of nodes, the same in figures, reports and the explorer; needs no plotting library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NODE_COLOURS = ("#0072b2", "#c98500", "#009e73", "#d376a0", "#4a97c9", "#9e3500", "#8a7214", "#4d4d4d")
"""The hues of Okabe and Ito (2008), told apart with every form of colour blindness, as dark as marks on white must be."""
METADATA_COLOUR = "#c8102e"
"""Of what the kernel allocates beside the pages of a guest: the hue of no node."""
_HUES = ("#0072b2", "#d55e00", "#009e73", "#d376a0", "#8c6d00", "#4a97c9", "#6a51a3", "#6e6e6e")
"""Hues of groups of nodes; their shades say which node of the group."""
LEAST_CONTRAST = 3.0
"""Of a mark with the white that it lies on (WCAG 2.2, 1.4.11)."""


def luminance(rgb: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Relative luminance of sRGB values 0 to 1 (WCAG 2.2)."""
    values = np.asarray(rgb, float)[:3]
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: float, other: float) -> float:
    """Contrast ratio of two luminances, 1 to 21 (WCAG 2.2)."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _lightest(base: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The lightest shade of a hue that still stands out from white."""
    low, high = -1.0, 1.0  # -1 black, 0 the hue itself, 1 white
    for _ in range(20):
        middle = (low + high) / 2
        shade = base * (1 + middle) if middle < 0 else base + (1 - base) * middle
        low, high = (middle, high) if contrast(luminance(shade), 1.0) >= LEAST_CONTRAST + 0.05 else (low, middle)
    return base * (1 + low) if low < 0 else base + (1 - base) * low


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
            colour = 0.4 * base + at * (_lightest(base) - 0.4 * base)
            out[member] = "#{:02x}{:02x}{:02x}".format(*np.round(255 * colour.clip(0, 1)).astype(int))
    return out

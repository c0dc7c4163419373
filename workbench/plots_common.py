"""What all figures share: colours of nodes, axes in bytes, and the corner note that says what is exact or modelled."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import seaborn
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.figure import Figure

NODE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#4d4d4d")
"""Told apart with every form of colour blindness (Okabe and Ito 2008)."""
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#6a51a3", "#6e6e6e")
"""Hues of groups of nodes; their shades say which node of the group."""
ABSENT = "#ffffff"
HEAT = "cividis_r"
KIND_COLOURS = {"dram": "#dbe9f4", "hbm": "#fbe3c0", "cxl": "#d5ecdf", "gpu": "#f0dbe7"}
INK = "#222222"
MUTED = "#6b6b6b"


def figure(width: float, height: float) -> Figure:
    """An empty figure in the style of all figures; no window, no state outside it."""
    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    made.patch.set_facecolor("white")
    return made


def style() -> Any:
    """Context in which axes are made: seaborn's white style, with text that stays text in SVG."""
    return matplotlib.rc_context({**seaborn.axes_style("ticks"), "svg.fonttype": "none", "font.size": 9})


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
        base = np.array(mcolors.to_rgb(hue))
        for step, member in enumerate(members):
            at = step / max(1, len(members) - 1)  # 0 dark .. 1 light
            colour = base * (0.55 + 0.45 * min(1, 2 * at)) if at < 0.5 else base + (1 - base) * (at - 0.5) * 1.3
            out[member] = mcolors.to_hex(colour.clip(0, 1))
    return out


def colours_of(dataset: xr.Dataset) -> dict[int, str]:
    """Colour by node id."""
    ids = [int(node) for node in dataset["node"].values]
    return dict(zip(ids, node_colours(dataset["distance"].values, dataset["node_cpus"].values), strict=True))


def text_colour(background: str | Sequence[float]) -> str:
    """Black or white, whichever is read better on a background."""
    red, green, blue = mcolors.to_rgb(background)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#111111"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which numbers up to ``largest`` bytes are read best: (bytes of one unit, name)."""
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 1 << power:
            return float(1 << power), name
    return 1.0, "B"


def node_list(ids: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2,5``."""
    parts: list[str] = []
    run: list[int] = []
    for node in [*sorted(ids), None]:
        if run and (node is None or node != run[-1] + 1):
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if node is not None:
            run.append(node)
    return ",".join(parts)


def basis_note(made: Figure, dataset: xr.Dataset, variables: Sequence[str], more: str = "") -> None:
    """Write into the lower right corner what a figure rests on: exact, counted or modelled (with its source)."""
    words: dict[str, list[str]] = {}
    for name in variables:
        if name in dataset:
            attrs = dataset[name].attrs
            words.setdefault(str(attrs.get("basis", "?")), []).append(str(attrs.get("source", "")))
    order = [word for word in ("exact", "counted", "modelled") if word in words]
    sources = "; ".join(dict.fromkeys(source for source in words.get("modelled", []) if source))
    text = " and ".join(order) + (f" ({sources})" if sources else "")
    scenario = str(dataset.attrs.get("scenario", ""))
    line = " · ".join(part for part in (scenario, f"basis: {text}", more) if part)
    made.supxlabel(line, x=0.995, ha="right", fontsize=7, color=MUTED)


def size_text(number: float) -> str:
    """A size for labels: ``31.3 GiB``."""
    unit, name = byte_unit(number)
    return f"{number / unit:.3g} {name}"


def errno_name(number: int) -> str:
    """The kernel's name of an errno; empty for 0. Python knows 95 by its POSIX name only."""
    return (
        "" if not number else "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
    )

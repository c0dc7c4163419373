"""What all figures share: colours of nodes, axes in bytes, and the corner note that says what is exact or modelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import seaborn
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.figure import Figure

from workbench.plots.palette import node_colours

ABSENT = "#ffffff"
HEAT = "cividis_r"
KIND_COLOURS = {"dram": "#dbe9f4", "hbm": "#fbe3c0", "cxl": "#d5ecdf", "gpu": "#f0dbe7", "nvm": "#e4e0d0"}
INK = "#222222"
MUTED = "#6b6b6b"


def figure(width: float, height: float) -> Figure:
    """An empty figure in the style of all figures; no window, no state outside it."""
    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    made.patch.set_facecolor("white")
    return made


def style() -> Any:
    """Context in which axes are made: seaborn's white style, with text that stays text in SVG."""
    return matplotlib.rc_context(
        {**seaborn.axes_style("ticks"), "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}
    )


def colours_of(dataset: xr.Dataset) -> dict[int, str]:
    """Colour by node id."""
    ids = [int(node) for node in dataset["node"].values]
    return dict(zip(ids, node_colours(dataset["distance"].values, dataset["node_cpus"].values), strict=True))


def text_colour(background: str | tuple[float, float, float]) -> str:
    """Black or white, whichever is read better on a background."""
    red, green, blue = mcolors.to_rgb(background)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#111111"


def basis_note(made: Figure, dataset: xr.Dataset, variables: Sequence[str], more: str = "") -> None:
    """Write into the lower right corner what a figure rests on: exact, counted, modelled (with its source) or measured."""
    words: dict[str, list[str]] = {}
    for name in variables:
        if name in dataset:
            attrs = dataset[name].attrs
            words.setdefault(str(attrs.get("basis", "?")), []).append(str(attrs.get("source", "")))
    order = [word for word in ("exact", "counted", "modelled", "measured") if word in words]
    sources = "; ".join(dict.fromkeys(source for source in words.get("modelled", []) if source))
    text = " and ".join(order) + (f" ({sources})" if sources else "")
    scenario = str(dataset.attrs.get("scenario", ""))
    line = " · ".join(part for part in (scenario, f"basis: {text}", more) if part)
    made.supxlabel(line, x=0.995, ha="right", fontsize=7, color=MUTED)

"""What all figures share: colours of nodes, axes in bytes, and the corner note that says what is exact or modelled."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
import seaborn
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullLocator

from workbench.plots.palette import contrast, luminance, node_colours
from workbench.scenario import Scenario
from workbench.topology.host import Host
from workbench.units import format_bytes

ABSENT = "#ffffff"
HEAT = "cividis_r"
KIND_COLOURS = {"dram": "#dbe9f4", "hbm": "#fbe3c0", "cxl": "#d5ecdf", "gpu": "#f0dbe7", "nvm": "#e4e0d0"}
INK = "#222222"
MUTED = "#6b6b6b"
# A figure is saved outside of style(), by whoever wants it: its PDF has TrueType fonts all the same, which journals ask
# for, and never Type 3.
matplotlib.rcParams["pdf.fonttype"] = matplotlib.rcParams["ps.fonttype"] = 42


def figure(width: float, height: float) -> Figure:
    """An empty figure in the style of all figures; no window, no state outside it."""
    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    made.patch.set_facecolor("white")
    return made


def style() -> Any:
    """Context in which axes are made: seaborn's white style, with text that stays text in SVG."""
    return matplotlib.rc_context({**seaborn.axes_style("ticks"), "svg.fonttype": "none", "font.size": 9})


class LogTicks(LogLocator):
    """Ticks of a logarithmic axis, as wide apart as still gives three of them: by decades, or by powers of 2 for bytes."""

    def __init__(self, *, binary: bool = False) -> None:
        super().__init__(base=32 if binary else 10)
        steps: list[tuple[int, list[float]]] = (
            [(32, [1]), (8, [1]), (4, [1]), (2, [1])]
            if binary
            else [(10, [1]), (10, [1, 3]), (10, [1, 2, 5]), (10, [1, 2, 3, 4, 5, 6, 7, 8, 9])]
        )
        self._finer = [LogLocator(base=base, subs=subs, numticks=40) for base, subs in steps]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks: Any = ()
        for locator in self._finer:
            ticks = np.asarray(locator.tick_values(vmin, vmax))
            if ((ticks >= min(vmin, vmax)) & (ticks <= max(vmin, vmax))).sum() >= 3:
                return ticks
        return MaxNLocator(5).tick_values(vmin, vmax)  # within a small part of a decade it is as good as linear


def log_scale(axes: Axes, which: Literal["x", "y"], *, binary: bool = False) -> None:
    """A logarithmic axis with at least three ticks; of ``binary`` sizes the labels are bytes with their unit."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogTicks(binary=binary))
    if binary:
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value) if value >= 1 else "0"))
    else:
        axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(4, 1.5)))


def colours_of(dataset: xr.Dataset) -> dict[int, str]:
    """Colour by node id."""
    ids = [int(node) for node in dataset["node"].values]
    return dict(zip(ids, node_colours(dataset["distance"].values, dataset["node_cpus"].values), strict=True))


def colours_of_all(*datasets: xr.Dataset) -> dict[int, str]:
    """Colour by node id for the nodes of several results: as in the first that has all of them, if one has."""
    ids = sorted({int(node) for dataset in datasets for node in dataset["node"].values})
    for dataset in datasets:
        if ids == [int(node) for node in dataset["node"].values]:
            return colours_of(dataset)
    return dict(zip(ids, node_colours(np.full((len(ids), len(ids)), 20)), strict=True))


def colours_of_host(host: Host) -> dict[int, str]:
    """Colour by node id, the same as in results of runs on the host."""
    cpus = np.array([len(node.cpus) for node in host.nodes])
    return dict(zip(host.node_ids.tolist(), node_colours(host.distance_matrix, cpus), strict=True))


def colours_of_provenance(dataset: xr.Dataset) -> dict[int, str]:
    """Likewise, of the host that a result was made on, where the result has no distances of its own."""
    made = json.loads(dataset.attrs["provenance"])
    if "scenario" in made:
        return colours_of_host(Scenario.from_mapping(made["scenario"]).host)
    return colours_of_host(Host.from_mapping(made["inputs"]["host"]))


def text_colour(background: str | tuple[float, float, float]) -> str:
    """Black or white, whichever is read better on a background."""
    behind = luminance(mcolors.to_rgb(background))
    return max(("#ffffff", "#000000"), key=lambda ink: contrast(luminance(mcolors.to_rgb(ink)), behind))


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
    corner_note(made, line)


def corner_note(made: Figure, text: str) -> None:
    """Write into the lower right corner, in as many lines as the figure is too narrow for one."""
    lines = textwrap.wrap(text, max(20, int(17 * made.get_size_inches()[0])))  # letters of 7 points an inch
    made.supxlabel("\n".join(lines), x=0.995, ha="right", fontsize=7, color=MUTED)

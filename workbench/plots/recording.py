"""Pictures of recordings beside the simulation, from the Dataset of :func:`workbench.truth.verify.side_by_side`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workbench.plots.common import colours_of_provenance, text_colour

_ABSENT = "#e8e8e8"


def strips(views: Mapping[str, xr.Dataset], pages: int = 32, by: str = "page") -> Figure:
    """One pair of strips (recorded above simulated) for each view, a cell per page, coloured by node.

    Parameters
    ----------
    views : label to a Dataset of one observation (``side_by_side(...).isel(observation=i)``)
    pages : how many pages are drawn, from page 0
    by : ``page`` draws pages in file order, ``touch`` in the order in which they were first touched
    """
    nodes = sorted({int(n) for view in views.values() for n in np.unique(view["recorded_node"].values) if n >= 0})
    known: dict[int, str] = {}
    for view in views.values():
        known |= colours_of_provenance(view)
    palette = [known[node] for node in nodes]
    colours = ListedColormap([_ABSENT, *palette])
    norm = BoundaryNorm(np.arange(len(nodes) + 2) - 0.5, len(nodes) + 1)
    figure = Figure(figsize=(10, 1.15 + 1.0 * len(views)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(views), 1))
    for ax, (label, view) in zip(axes, views.items(), strict=True):
        rows = np.stack([view["recorded_node"].values, view["simulated_node"].values])
        order = np.arange(rows.shape[1])
        if by == "touch":
            touched = view["touch_order"].values
            order = np.argsort(np.where(touched < 0, np.iinfo(np.int64).max, touched), kind="stable")
        rows = rows[:, order[:pages]]
        index = np.where(rows < 0, 0, 1 + np.searchsorted(nodes, rows))
        ax.imshow(index, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        for (row, column), node in np.ndenumerate(rows):
            if node >= 0:
                ink = text_colour(known[int(node)])
                ax.text(column, row, str(node), ha="center", va="center", fontsize=7, color=ink, weight="bold")
        ax.set_yticks([0, 1], ["real kernel", "simulated"])
        ax.set_xticks(np.arange(-0.5, rows.shape[1]), minor=True)
        ax.set_yticks([0.5], minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="minor", length=0)
        ax.set_title(label, loc="left", fontsize=10)
        ax.set_xlabel("page of the file" if by == "page" else "order of first touch")
        for spine in ax.spines.values():
            spine.set_visible(False)
    handles = [Patch(color=palette[i], label=f"node {node}") for i, node in enumerate(nodes)]
    handles.append(Patch(color=_ABSENT, label="no page"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 9), frameon=False, fontsize=9)
    return figure

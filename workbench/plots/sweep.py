"""Figures of sweeps: one panel per value of an axis, ranking tables, where the pages lie. From Datasets alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import seaborn
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.plots.common import MUTED, colours_of_host, figure, style
from workbench.plots.palette import NODE_COLOURS
from workbench.topology.host import Host

_PALETTE = "colorblind"


def _need(dataset: xr.Dataset, variable: str, dims: Sequence[str]) -> xr.DataArray:
    if variable not in dataset:
        raise WorkbenchError(f"figure: the sweep has no variable {variable!r}; it has {', '.join(map(str, dataset))}")
    for dim in dims:
        if dim not in dataset[variable].dims:
            raise WorkbenchError(f"figure: {variable!r} has no axis {dim!r}; it has {dataset[variable].dims}")
    return dataset[variable]


def _title(array: xr.DataArray) -> str:
    units = array.attrs.get("units", "")
    name = str(array.attrs.get("long_name", array.name)).split(",")[0]
    return f"{name} [{units}]" if units not in ("", "1") else name


def facets(dataset: xr.Dataset, variable: str, *, y: str, hue: str | None = None, col: str | None = None) -> Figure:
    """Bars of a metric: groups along ``y``, colours by ``hue``, one panel per value of ``col``, up to four a row.

    Other axes are averaged, with whiskers from the smallest to the largest value. Cells without a value have no bar.
    """
    array = _need(dataset, variable, [dim for dim in (y, hue, col) if dim])
    panels = [None] if col is None else list(array[col].values)
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    groups = array.sizes[y] * (array.sizes[hue] if hue else 1)
    height = 0.9 + 0.16 * groups + 0.12 * array.sizes[y]
    with style():
        made = figure(1.6 + 3.0 * across, 0.6 + height * down)
        axes = made.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for place, panel in zip(axes.flat, panels, strict=False):
            part = array if panel is None else array.sel({str(col): panel})
            table = part.to_dataframe(name="value").reset_index().dropna(subset="value")
            order = [str(value) for value in array[y].values]
            table[y] = table[y].astype(str)
            seaborn.barplot(
                table, x="value", y=y, order=order, hue=hue, hue_order=list(array[hue].values) if hue else None,
                palette=_PALETTE if hue else None, color=None if hue else NODE_COLOURS[0], orient="h",
                errorbar=("pi", 100), err_kws={"linewidth": 1, "color": MUTED}, ax=place,
                legend=bool(hue) and place is axes.flat[0],
            )  # fmt: skip
            place.set(xlabel="", ylabel="", title="" if panel is None else str(panel))
            place.grid(axis="x", color="#e6e6e6")
            place.set_axisbelow(True)
            if not len(table):
                place.text(0.5, 0.5, "no cell has a value", ha="center", transform=place.transAxes, color=MUTED)
        for place in axes.flat[len(panels) :]:
            place.remove()
        seaborn.despine(made)
        made.supxlabel(_title(array), fontsize=9)
        if hue and (legend := axes.flat[0].get_legend()) is not None:
            handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
            legend.remove()
            made.legend(handles, labels, title=hue, loc="outside upper left", ncols=min(len(labels), 6), frameon=False)
    return made


def ranks(array: xr.DataArray, over: str, *, smallest_first: bool = True) -> xr.DataArray:
    """Rank 1, 2, ... along ``over``; equal values share the better rank, missing values have none (NaN)."""
    values = array.values if smallest_first else -array.values
    axis = array.dims.index(over)
    moved = np.moveaxis(values, axis, -1)
    out = np.full(moved.shape, np.nan)
    for place in np.ndindex(moved.shape[:-1]):
        row = moved[place]
        good = np.isfinite(row)
        # a difference below any rounding is none
        rounded = np.array([float(f"{value:.9g}") for value in row[good]])
        out[place][good] = [1 + int((rounded < value).sum()) for value in rounded]
    return array.copy(data=np.moveaxis(out, -1, axis)).assign_attrs(long_name="rank", units="1")


def ranking(
    array: xr.DataArray, *, of: str, per: str, smallest_first: bool = True, missing: str = "no memory"
) -> Figure:
    """A table of ``of`` by ``per``: each field shows the rank within its column and the value; darker is better.

    Values that are missing are said to be, in words: a policy that fails is not a good or a bad one.
    """
    if set(array.dims) != {of, per}:
        raise WorkbenchError(f"figure: a ranking needs the axes {of!r} and {per!r} only, not {array.dims}")
    array = array.transpose(of, per)
    rank = ranks(array, of, smallest_first=smallest_first)
    with style():
        made = figure(max(5.0, 2.6 + 1.15 * array.sizes[per]), 1.0 + 0.42 * array.sizes[of])
        place = made.subplots()
        shown = np.where(np.isfinite(rank.values), rank.values, np.nan)
        seaborn.heatmap(
            shown, cmap=matplotlib.colormaps["cividis"], vmin=1, vmax=max(array.sizes[of], 2), cbar=False, ax=place,
            linewidths=1.5, linecolor="white", mask=~np.isfinite(shown),
        )  # fmt: skip
        middle = (1 + array.sizes[of]) / 2
        for row, column in np.ndindex(array.shape):
            number = rank.values[row, column]
            if np.isfinite(number):
                text, colour = (
                    f"{int(number)}.   {array.values[row, column]:.4g}",
                    "white" if number < middle else "black",
                )
            else:
                text, colour = missing, MUTED
            place.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
        place.set_yticks(np.arange(array.sizes[of]) + 0.5, [str(value) for value in array[of].values], rotation=0)
        labels = [str(value) for value in array[per].values]
        place.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=20, ha="right", rotation_mode="anchor")
        place.tick_params(length=0)
        place.set(xlabel="", ylabel="", title=f"rank and {_title(array)}")
    return made


def pages_by_node(array: xr.DataArray, host: Host, *, y: str) -> Figure:
    """Stacked shares of the pages on each node of ``host``, one bar per value of ``y``; the array's dims are ``y`` and node."""
    if set(array.dims) != {y, "node"}:
        raise WorkbenchError(f"figure: pages by node need the axes {y!r} and 'node' only, not {array.dims}")
    table = array.transpose(y, "node").dropna("node", how="all").fillna(0)
    total = table.sum("node")
    share = (table / total.where(total > 0)).values
    nodes = [int(node) for node in table["node"].values]
    known = colours_of_host(host)
    if not set(nodes) <= set(known):
        raise WorkbenchError(f"figure: {host.name} has no node {', '.join(map(str, sorted(set(nodes) - set(known))))}")
    colours = [known[node] for node in nodes]
    named = [node for column, node in enumerate(nodes) if len(nodes) <= 12 or np.nansum(share[:, column]) > 0]
    columns = min(len(named), 12) or 1
    with style():
        made = figure(8.0, 1.2 + 0.36 * table.sizes[y] + 0.2 * (-(-len(named) // columns) - 1))
        place = made.subplots()
        left = np.zeros(table.sizes[y])
        at = np.arange(table.sizes[y])
        for column, (node, colour) in enumerate(zip(nodes, colours, strict=True)):
            width = np.nan_to_num(share[:, column])
            label = str(node) if node in named else "_"
            place.barh(at, width, left=left, color=colour, edgecolor="white", linewidth=0.5, label=label, height=0.75)
            left += width
        for row in np.flatnonzero(~np.isfinite(share).any(axis=1)):
            place.text(0.01, float(row), "no pages: the guest was killed", va="center", color=MUTED, fontsize=8)
        place.set_yticks(at, [str(value) for value in table[y].values])
        place.invert_yaxis()
        place.set(xlim=(0, 1), xlabel="share of the guest's pages")
        place.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        place.tick_params(axis="y", length=0)
        seaborn.despine(ax=place, left=True)
        made.legend(title="node", loc="outside upper left", ncols=columns, frameon=False, handlelength=1, fontsize=8)
    return made


def tornado(dataset: xr.Dataset, output: str, *, most: int = 12) -> Figure:
    """One bar per parameter from its low to its high end, strongest on top; beside it its share of the variance.

    dataset: a result of :func:`workbench.studies.sensitivity`. Parameters that change less than a thousandth are left out.
    """
    if output not in dataset["output"].values:
        raise WorkbenchError(f"figure: no output {output!r}; there are {', '.join(map(str, dataset['output'].values))}")
    part = dataset.sel(output=output)
    base = float(part["base"])
    ends = part["one_at_a_time"].values
    width = np.maximum(ends.max(axis=1), base) - np.minimum(ends.min(axis=1), base)
    order = [int(at) for at in np.argsort(-width, kind="stable")[:most] if width[at] > 1e-3 * max(abs(base), 1e-300)]
    units = str(part["output_unit"].values)
    with style():
        made = figure(8.0, 1.3 + 0.42 * max(len(order), 2))
        place, shares = made.subplots(1, 2, width_ratios=[3, 1], sharey=True)
        rows = np.arange(len(order))
        for end, colour in ((0, NODE_COLOURS[4]), (1, NODE_COLOURS[1])):
            label = ("low", "high")[end] + " end of the range"
            place.barh(rows, ends[order, end] - base, left=base, color=colour, height=0.62, label=label)
        for row, at in enumerate(order):
            unit = str(part["unit"].values[at])
            bounds = f"{_short(part['low'].values[at])} to {_short(part['high'].values[at])} {unit * (unit != '1')}"
            place.annotate(
                bounds, (max(base, *ends[at]), row), (4, 0), textcoords="offset points", va="center", fontsize=7,
                color=MUTED,
            )  # fmt: skip
        place.axvline(base, color="black", linewidth=0.8)
        place.margins(x=0.25)
        place.set_yticks(rows, [str(part["parameter"].values[at]) for at in order])
        place.set_xlabel(f"{output} [{units}]" if units else output)
        place.legend(loc="lower right", frameon=False, fontsize=7)
        for name, colour, height in (("total", "#82909d", 0.62), ("first_order", "#4c5a67", 0.3)):
            values = np.clip(np.nan_to_num(part[name].values[order]), 0, None)
            shares.barh(rows, values, color=colour, height=height, label=name.replace("_", " "))
        shares.set_xlabel("share of the variance")
        shares.set_xlim(0, 1)
        shares.legend(loc="lower right", frameon=False, fontsize=7)
        place.invert_yaxis()
        if not order:
            place.text(0.5, 0.5, "no parameter changes this output", ha="center", transform=place.transAxes)
        seaborn.despine(made)
        for axes in (place, shares):
            axes.tick_params(axis="y", length=0)
        shares.set_title("modelled", loc="right", fontsize=7, color=MUTED)
    return made


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

"""Pictures of a result, from its Dataset alone: where pages lie, how full nodes are, what fell back, who is near.

Every function takes a Dataset of :mod:`workbench.results` and returns a :class:`matplotlib.figure.Figure`. The cost of
a picture follows its columns and the stretches of the placement, not the pages of the guest. Each carries in its
corner whether what it shows is exact, counted or modelled.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import seaborn
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workbench import amounts, results
from workbench.bitmap_lists import format_list
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.plots import common
from workbench.plots.palette import METADATA_COLOUR, NODE_COLOURS
from workbench.plots.topology import topology
from workbench.units import PAGE_SIZE, byte_unit, format_bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "compare",
    "events",
    "fallback",
    "local_remote",
    "pages_per_node",
    "placement_map",
    "placement_maps",
    "ranges",
    "topology",
]

POLICY_COLOURS = {
    "default": "#8f8f8f",
    "local": "#5f93bd",
    "preferred": "#7d88bd",
    "preferred_many": "#6f7bb5",
    "bind": "#4d004b",
    "interleave": "#b88b00",
    "weighted_interleave": "#7a5c00",
}
"""Colours of policy modes; the nodes that a policy names are written beside it."""
_STRIP = 14  # picture rows of the policy strip above a row of the map
_BAR = 60  # picture rows of the placement itself
_GAP = 22


def placement_map(
    dataset: xr.Dataset,
    file: str | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    rows: int | None = None,
    columns: int = 256,
) -> Figure:
    """Draw which node backs each part of a file's address space, line by line like text, policy ranges above each line.

    A column that holds several folios is filled with the shares of their nodes, so that interleaving shows as bands.

    Parameters
    ----------
    file : name of a file; the first one if left out
    start, stop : bytes of the file to draw; all of it if left out
    rows, columns : lines of the map (chosen if left out) and columns of a line
    """
    file = _file(dataset, file)
    folio = int(dataset["page_size"])
    folios = int(dataset["file_pages"].sel(file=file))
    low = min(start // folio, folios)
    high = folios if stop is None else min(-(-stop // folio), folios)
    if high <= low:
        raise WorkbenchError(f"start, stop: no folio of {file!r} lies in [{start}, {stop}); it has {folios}")
    columns = min(columns, high - low)
    if rows is None:
        rows = _lines((high - low) * folio, -(-(high - low) // columns))
    edges = np.unique(np.linspace(low, high, rows * columns + 1).round().astype(np.int64))
    columns = -(-(len(edges) - 1) // rows)
    counts = results.node_counts(dataset, file, edges)
    colours = common.colours_of(dataset)
    picture = _map_picture(counts, np.diff(edges), list(colours.values()), rows, columns)
    mine = ranges(dataset, file)
    pages = folio // PAGE_SIZE
    lines = [edges[min(row * columns, len(edges) - 1)] for row in range(rows + 1)]
    with common.style():
        present = counts.sum(axis=0)
        made = common.figure(9, 0.8 + 0.62 * rows + 0.75)
        axes = made.subplots()
        axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(0, 1, picture.shape[0], 0))
        for row in range(rows):
            _range_strip(axes, mine, row, lines[row] * pages, lines[row + 1] * pages)
        unit, name = byte_unit((lines[-1] - lines[0]) * folio)
        if (lines[1] - lines[0]) * folio % unit:
            unit, name = byte_unit((lines[1] - lines[0]) * folio)
        middles = [row * (_STRIP + _BAR + _GAP) + _STRIP + _BAR / 2 for row in range(rows)]
        axes.set_yticks(middles, labels=[f"{lines[row] * folio / unit:.4g} {name}" for row in range(rows)])
        wide = (lines[1] - lines[0]) * folio
        small, small_name = byte_unit(wide)
        parts = next((n for n in (8, 6, 5, 4) if wide % (n * small) == 0), 4)
        ticks = np.linspace(0, 1, parts + 1)
        axes.set_xticks(ticks, labels=[f"+{tick * wide / small:.3g}" for tick in ticks])
        axes.set_xlabel(f"offset from the start of the line ({small_name})")
        axes.set_ylabel("offset in the file")
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        _name_nodes(axes, counts, np.diff(edges), colours, rows, columns)
        total = int(counts.sum())
        absent = int(edges[-1] - edges[0]) - total
        axes.set_title(
            f"{file}: {format_bytes((high - low) * folio)} in folios of {format_bytes(folio)}; "
            + (
                "one column each"
                if len(edges) - 1 == high - low
                else f"one column for {format_bytes((high - low) * folio / (len(edges) - 1))}"
            ),
            loc="left",
        )
        handles = _node_handles(dataset, present, colours, absent, folio)
        _legend(made, handles + _mode_handles(mine))
        common.basis_note(made, dataset, ["pages_per_node", "range_mode"])
    return made


def placement_maps(
    dataset: xr.Dataset, along: str = "kernel", file: str | None = None, *, columns: int = 256
) -> Figure:
    """Which node backs each part of a file, one line for each kernel (or design) that a run was made under.

    Lines are whole files from left to right; columns are filled as in :func:`placement_map`, and the strip above a line
    is the policy that the file has there.

    Parameters
    ----------
    dataset : with a dimension ``along`` (``workbench.simulate`` with ``kernel_profiles`` or ``designs``, ``wb.history``)
    along : ``kernel`` or ``design``
    file : name of a file; the first one if left out
    columns : columns of a line
    """
    if along not in dataset.dims:
        raise WorkbenchError(
            f"along: the result has no dimension {along!r}; it has {', '.join(map(str, dataset.dims))}"
        )
    file = _file(dataset, file)
    parts = [dataset.sel({along: value}) for value in dataset[along].values]
    folio = max(int(part["page_size"]) for part in parts)
    folios = max(int(part["file_pages"].sel(file=file)) for part in parts)
    if not folios:
        raise WorkbenchError(f"file: {file!r} has no memory under any {along} of the result")
    edges = np.unique(np.linspace(0, folios, min(columns, folios) + 1).round().astype(np.int64))
    sizes, columns, rows = np.diff(edges), len(edges) - 1, len(parts)
    counts = [results.node_counts(part, file, edges) for part in parts]
    colours = common.colours_of(parts[0])
    picture = _map_picture(np.concatenate(counts), np.tile(sizes, rows), list(colours.values()), rows, columns)
    with common.style():
        made = common.figure(9, 1.35 + 0.6 * rows)
        axes = made.subplots()
        axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(0, 1, picture.shape[0], 0))
        named: list[pd.DataFrame] = []
        for row, part in enumerate(parts):
            named.append(ranges(part, file))
            _range_strip(axes, named[-1], row, 0, folios * folio // PAGE_SIZE)
            if not counts[row].any():
                middle = row * (_STRIP + _BAR + _GAP) + _STRIP + _BAR / 2
                axes.text(0.5, middle, _why_nothing(part), ha="center", va="center", fontsize=7.5, color=common.INK)
        _name_nodes(axes, np.concatenate(counts), np.tile(sizes, rows), colours, rows, columns)
        middles = [row * (_STRIP + _BAR + _GAP) + _STRIP + _BAR / 2 for row in range(rows)]
        axes.set_yticks(middles, labels=[str(value) for value in dataset[along].values])
        unit, name = byte_unit(folios * folio)
        ticks = np.linspace(0, 1, 5)
        axes.set_xticks(ticks, labels=[f"{tick * folios * folio / unit:.3g}" for tick in ticks])
        axes.set_xlabel(f"offset in the file ({name})")
        axes.set_ylabel(along)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_title(f"{file}: {format_bytes(folios * folio)}, by {along}", loc="left")
        present = np.max([count.sum(axis=0) for count in counts], axis=0)
        kinds = dict(zip(colours, (str(kind) for kind in parts[0]["node_kind"].values), strict=True))
        handles = [
            Patch(color=colour, label=f"node {node}" + ("" if kinds[node] == "dram" else f" {kinds[node]}"))
            for (node, colour), count in zip(colours.items(), present, strict=True)
            if count
        ]
        if any(int(count.sum()) < folios for count in counts):
            handles.append(Patch(color="#e9e9e9", label="absent"))
        modes = dict.fromkeys(mode for table in named for mode in table["mode"])
        handles += [Patch(color=POLICY_COLOURS.get(mode, "#999999"), label=f"policy {mode}") for mode in modes]
        _legend(made, handles)
        common.basis_note(made, dataset, ["pages_per_node", "range_mode"])
    return made


def _why_nothing(part: xr.Dataset) -> str:
    """The first call that was refused, for a line without memory."""
    refused = np.flatnonzero(part["event_errno"].values)
    if not len(refused):
        return "nothing present"
    first = int(refused[0])
    reason = json.loads(str(part["event_detail"].values[first])).get("reason")
    error = f"{part['event_op'].values[first]}: {errno_name(int(part['event_errno'].values[first]))}"
    return _brief(error + (f" ({reason})" if reason else ""), 100)


def _lines(size: int, most: int) -> int:
    """Lines of the map: at most ``most``, and so that a line is a round number of bytes where that is possible."""
    unit, _ = byte_unit(size)
    fits = [n for n in (6, 5, 4, 8) if n <= most]
    even = next((n for n in fits if size % (n * int(unit)) == 0), 4)
    return even if fits else min(6, max(1, most))


def _name_nodes(
    axes: Axes,
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    colours: dict[int, str],
    rows: int,
    columns: int,
) -> None:
    """Write the node into every stretch of a line that lies on one node and is wide enough."""
    ids = list(colours)
    owner = np.where(counts.max(axis=1) >= 0.97 * sizes, counts.argmax(axis=1), -1)
    for row in range(rows):
        mine = owner[row * columns : (row + 1) * columns]
        cuts = np.concatenate(([0], np.flatnonzero(np.diff(mine)) + 1, [len(mine)]))
        for first, last in itertools.pairwise(cuts):
            if mine[first] >= 0 and last - first >= max(1, 0.0145 * columns):
                node = ids[int(mine[first])]
                axes.text(
                    (first + last) / 2 / columns,
                    row * (_STRIP + _BAR + _GAP) + _STRIP + _BAR / 2,
                    str(node),
                    ha="center",
                    va="center",
                    fontsize=7.5 if last - first >= 0.025 * columns else 6,
                    color=common.text_colour(colours[node]),
                )


def _map_picture(
    counts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], colours: list[str], rows: int, columns: int
) -> npt.NDArray[np.float64]:
    """RGB picture (rows of the map stacked): each column is filled from the top with the shares of its nodes."""
    palette = np.array([mcolors.to_rgb(colour) for colour in [*colours, "#e9e9e9"]])
    picture = np.ones((rows * (_STRIP + _BAR + _GAP) - _GAP, columns, 3))
    ends = np.cumsum(counts, axis=1) / np.maximum(sizes, 1)[:, None]
    levels = (np.arange(_BAR) + 0.5) / _BAR
    # (column, level) -> first node whose cumulated share reaches the level; beyond the last one the folio is absent
    node = (ends[:, None, :] <= levels[None, :, None]).sum(axis=2)
    for row in range(rows):
        part = palette[node[row * columns : (row + 1) * columns]].transpose(1, 0, 2)
        top = row * (_STRIP + _BAR + _GAP) + _STRIP
        picture[top : top + _BAR, : part.shape[1]] = part
    return picture


def _range_strip(axes: Axes, mine: pd.DataFrame, row: int, first: int, last: int) -> None:
    """Policy ranges as a strip above one line of the map, named where there is room."""
    top = row * (_STRIP + _BAR + _GAP)
    inside = mine[(mine["start"] < last) & (mine["end"] > first)]
    if inside.empty:
        return
    left = (inside["start"].to_numpy().clip(first, last) - first) / (last - first)
    right = (inside["end"].to_numpy().clip(first, last) - first) / (last - first)
    colours = [POLICY_COLOURS.get(mode, "#999999") for mode in inside["mode"]]
    edge = {"edgecolor": "white", "linewidth": 0.6} if len(inside) < 100 else {"linewidth": 0}
    axes.broken_barh(list(zip(left, right - left, strict=True)), (top, _STRIP - 3), facecolors=colours, **edge)
    wide = np.flatnonzero((right - left) * 140 > inside["policy"].str.len().to_numpy())
    for index in wide:
        middle, colour = (left[index] + right[index]) / 2, common.text_colour(colours[index])
        where: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
        axes.text(middle, top + _STRIP / 2 - 1, inside["policy"].iloc[index], **where)


def ranges(dataset: xr.Dataset, file: str | None = None) -> pd.DataFrame:
    """Shared policy ranges of a file: columns start and end (4 KiB pages), mode, nodes, policy (mode and nodes)."""
    import pandas as pd

    file = _file(dataset, file)
    ids = dataset["node"].values
    mine = np.flatnonzero(dataset["range_file"].values == file)
    masks = dataset["range_nodes"].values[mine]
    nodes = [format_list([int(node) for node in ids[mask]]) for mask in masks]
    modes = [str(mode) for mode in dataset["range_mode"].values[mine]]
    return pd.DataFrame(
        {
            "start": dataset["range_start"].values[mine],
            "end": dataset["range_end"].values[mine],
            "mode": modes,
            "nodes": nodes,
            "policy": [f"{mode} {nodes_}".strip() for mode, nodes_ in zip(modes, nodes, strict=True)],
        }
    )


# ------------------------------------------------------------------------------------------------ pages per node


def pages_per_node(dataset: xr.Dataset, *, by: Literal["policy", "file"] = "policy") -> Figure:
    """Memory of each node that files take, stacked by the policy of their ranges or by file, against its capacity.

    On top, in a colour of its own, what the kernel allocates beside them (drawn 1.2 % of the axis high at least).
    """
    stacked = _by_policy(dataset) if by == "policy" else _by_file(dataset)
    ids = [int(node) for node in dataset["node"].values]
    memory = dataset["node_memory"].values.astype(float)
    totals = np.sum(list(stacked.values()), axis=0) if stacked else np.zeros(len(ids))
    unit, name = byte_unit(float(totals.max()) or max(float(memory.max()), 1.0))
    with common.style():
        made = common.figure(max(6.5, min(11.5, 2.5 + 0.42 * len(ids))), 4.2)
        axes = made.subplots()
        x = np.arange(len(ids))
        axes.bar(
            x, memory / unit, width=0.86, facecolor="#f4f4f4", edgecolor="#9a9a9a", linewidth=0.8, label="capacity"
        )
        floor = np.zeros(len(ids))
        for colour, (label, amount) in zip(_policy_palette(list(stacked)), stacked.items(), strict=True):
            axes.bar(
                x,
                amount / unit,
                bottom=floor / unit,
                width=0.7,
                label=_brief(label, 32),
                color=colour,
                edgecolor="white",
                linewidth=0.4,
            )
            floor += amount
        beside = amounts.metadata_of_nodes(dataset).astype(float)
        heights = np.zeros(len(ids))
        if beside.any():
            # A few thousandths of a guest still show as a line.
            least = 0.012 * (float(totals.max()) if 0 < totals.max() < 0.06 * memory.max() else float(memory.max()))
            heights = np.where(beside > 0, np.maximum(beside, least), 0)
            axes.bar(
                x,
                heights / unit,
                bottom=floor / unit,
                width=0.7,
                label=_metadata_label(dataset, int(beside.sum())),
                color=METADATA_COLOUR,
                zorder=3,
            )
        top = max(float(memory.max()), 1.0) / unit
        zoomed = 0 < totals.max() < 0.06 * memory.max()
        if zoomed:
            top = float(totals.max()) / unit
        axes.set_ylim(0, top * 1.14 or 1)
        shares = len(ids) <= 12  # of more nodes they would lie on each other
        for position, total in enumerate(totals):
            if total and shares:
                share = _percent(total / memory[position]) if memory[position] else ""
                axes.text(
                    position,
                    (total + heights[position]) / unit + top * 0.015,
                    share,
                    ha="center",
                    fontsize=7.5,
                    color=common.INK,
                )
        kinds = [str(kind) for kind in dataset["node_kind"].values]
        marked = len(set(kinds)) > 1 and len(ids) <= 24
        axes.set_xticks(x, labels=[f"{i}\n{kind}" if marked else str(i) for i, kind in zip(ids, kinds, strict=True)])
        if len(ids) > 24:
            axes.tick_params(axis="x", labelsize=6.5, labelrotation=90)
        axes.set_xlabel("node")
        axes.set_ylabel(f"memory ({name})")
        more = "\n(capacities lie beyond the axis)" if zoomed else ""
        title = f"Memory of files by {by}" + (", and share of the node's memory" if shares else "")
        axes.set_title(title + more, loc="left", fontsize=10)
        seaborn.despine(ax=axes)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        common.basis_note(made, dataset, ["pages_per_node", *(["metadata_pages"] if beside.any() else [])])
    return made


def _metadata_label(dataset: xr.Dataset, total: int) -> str:
    label, modelled = f"page tables and other metadata ({format_bytes(total)})", amounts.modelled_metadata(dataset)
    return f"{label},\n{format_bytes(modelled)} of it modelled" if modelled else label


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.05 %"


def _by_file(dataset: xr.Dataset) -> dict[str, npt.NDArray[np.float64]]:
    rows = amounts.bytes_per_node(dataset).astype(float)
    once = amounts.one_name_each(dataset)
    return dict(zip(map(str, dataset["file"].values[once]), rows[once], strict=True))


def _by_policy(dataset: xr.Dataset) -> dict[str, npt.NDArray[np.float64]]:
    """Bytes on each node (node,) by the policy under which a range of a file lies now."""
    folio = int(dataset["page_size"])
    out: dict[str, npt.NDArray[np.float64]] = {}
    for file in map(str, dataset["file"].values[amounts.one_name_each(dataset)]):
        mine = ranges(dataset, file).sort_values("start")
        folios = int(dataset["file_pages"].sel(file=file))
        cuts = np.concatenate(([0, folios], mine["start"] * PAGE_SIZE // folio, mine["end"] * PAGE_SIZE // folio))
        edges = np.unique(cuts.clip(0, folios).astype(np.int64))
        counts = results.node_counts(dataset, file, edges) * float(folio)
        at = np.searchsorted(mine["start"].to_numpy() * PAGE_SIZE // folio, edges[:-1], side="right") - 1
        for first, row, amount in zip(edges[:-1], at, counts, strict=True):
            covered = row >= 0 and first < mine["end"].iloc[row] * PAGE_SIZE // folio
            label = str(mine["policy"].iloc[row]) if covered else "no policy of the file"
            out[label] = out.get(label, np.zeros(counts.shape[1])) + amount
    out = {label: amount for label, amount in out.items() if amount.any()}
    if len(out) > 10:  # too many to tell apart: by mode, without the nodes
        by_mode: dict[str, npt.NDArray[np.float64]] = {}
        for label, amount in out.items():
            mode = label if label.startswith("no ") else label.split(" ")[0]
            by_mode[mode] = by_mode.get(mode, np.zeros(len(amount))) + amount
        out = by_mode
    return out


def _policy_palette(labels: list[str]) -> list[str]:
    return [
        "#8c8c8c" if label.startswith("no ") else colour for label, colour in zip(labels, _cycle(labels), strict=True)
    ]


def _cycle(labels: list[str]) -> list[str]:
    return [NODE_COLOURS[i % 7] for i in range(len(labels))]


# ---------------------------------------------------------------------------------------------- fallback over time


def fallback(dataset: xr.Dataset) -> Figure:
    """What each event placed on which node, and the free memory of the nodes with their watermarks, event by event."""
    placed = amounts.placed_bytes(dataset).astype(float)
    events_ = dataset.sizes["event"]
    ids = [int(node) for node in dataset["node"].values]
    colours = common.colours_of(dataset)
    free, reserve = _free_bytes(dataset)
    moved = [i for i in range(len(ids)) if events_ and (np.ptp(free[:, i]) > 0 or placed[:, i].any())]
    with common.style():
        made = common.figure(max(8, min(15, 5 + 0.32 * events_)), 6.4)
        upper, lower = made.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
        x = np.arange(events_)
        unit, name = byte_unit(max(float(placed.sum(axis=1).max(initial=0.0)), 1.0))
        floor = np.zeros(events_)
        for index in moved:
            hit = placed[:, index] > 0
            if hit.any():
                upper.bar(
                    x[hit], placed[hit, index] / unit, 0.8, bottom=floor[hit] / unit, color=colours[ids[index]], lw=0
                )
                floor += placed[:, index]
        upper.set_ylim(0, max(float(floor.max(initial=0.0)) / unit * 1.06, 1e-9))
        upper.set_ylabel(f"placed by the event ({name})")
        upper.set_title("What each event placed, by node", loc="left", fontsize=10)
        most = max([float(free[:, i].max()) for i in moved], default=1.0)
        unit, name = byte_unit(most)
        for index in moved:
            lower.plot(x, free[:, index] / unit, drawstyle="steps-mid", color=colours[ids[index]], lw=1.8)
            if 0 < free[:, index].min() < 4 * reserve[index]:
                lower.axhline(reserve[index] / unit, color=colours[ids[index]], lw=0.9, ls=(0, (4, 3)), alpha=0.8)
        least = min([float(free[:, i].min()) for i in moved], default=most)
        if 0 < least < most / 20:
            common.log_scale(lower, "y")
        else:
            lower.set_ylim(0, None)
        lower.set_ylabel(f"free memory of the node ({name})")
        near = any(free[:, i].min() < 4 * reserve[i] for i in moved)
        watermark = "\n(dashed: low watermarks and reserves of nodes that came near them)" if near else ""
        lower.set_title(f"Free memory after the event{watermark}", loc="left", fontsize=10)
        _event_ticks(lower, dataset)
        for axes in (upper, lower):
            seaborn.despine(ax=axes)
        whole = placed.sum(axis=0)
        shown = [i for i in moved if i in np.argsort(-whole)[:24]]
        handles = [Patch(color=colours[ids[i]], label=f"node {ids[i]}") for i in shown]
        if len(moved) > len(shown):
            handles.append(Patch(color="white", label=f"and {len(moved) - len(shown)} more nodes"))
        _legend(made, handles)
        common.basis_note(made, dataset, ["event_pages", "free_pages"])
    return made


def _free_bytes(dataset: xr.Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Free bytes (event, node) and the bytes at which a node is left (node,): low marks and reserves of its zones."""
    owner = dataset["zone_node"].values[:, None] == dataset["node"].values
    # A pool of huge pages has no marks.
    kept = dataset["zone_low"].values + dataset["zone_lowmem_reserve"].values
    # The reserve against a higher zone may be more than a small zone has: then all of it is kept, and no more.
    kept = np.minimum(kept, dataset["zone_managed"].values) * float(PAGE_SIZE)
    usable = np.array([not str(zone).endswith("/Movable") for zone in dataset["zone"].values])
    return amounts.free_bytes(dataset).astype(float), (kept * usable) @ owner


def _event_ticks(axes: Axes, dataset: xr.Dataset) -> None:
    events_ = dataset.sizes["event"]
    ops = [str(op) for op in dataset["event_op"].values]
    refused = dataset["event_errno"].values
    if events_ <= 40:
        labels = [
            f"{number} {op}" + (f" {errno_name(int(error))}" if error else "")
            for number, (op, error) in enumerate(zip(ops, refused, strict=True))
        ]
        axes.set_xticks(np.arange(events_), labels=labels, rotation=40, ha="right", fontsize=7.5)
        for tick, error in zip(axes.get_xticklabels(), refused, strict=True):
            tick.set_color("#a63603" if error else common.INK)
    else:
        axes.set_xlabel("event")


# ------------------------------------------------------------------------------------------------ near and far


def local_remote(dataset: xr.Dataset) -> Figure:
    """How far the guest's memory is from each node that runs its vCPUs: shares by SLIT distance."""
    counts = amounts.bytes_of_all_files(dataset).astype(float)
    matrix = dataset["distance"].values
    ids = [int(node) for node in dataset["node"].values]
    vcpu_nodes, vcpus = np.unique(dataset["vcpu_node"].values, return_counts=True)
    of_node = matrix[np.searchsorted(ids, vcpu_nodes)]
    classes = np.unique(of_node)
    palette = matplotlib.colormaps[common.HEAT](np.linspace(0.05, 0.95, max(2, len(classes))))
    total = max(counts.sum(), 1.0)
    shares = np.array([[100 * counts[row == value].sum() / total for value in classes] for row in of_node])
    # nodes that see the same are one bar
    bars, bar_of = np.unique(shares.round(6), axis=0, return_inverse=True)
    order = sorted(range(len(bars)), key=lambda bar: int(np.flatnonzero(bar_of.ravel() == bar)[0]))
    with common.style():
        made = common.figure(8.5, max(2.2, min(14, 1.3 + 0.34 * len(bars))))
        axes = made.subplots()
        labels = []
        for row, bar in enumerate(order):
            members = np.flatnonzero(bar_of.ravel() == bar)
            left = 0.0
            for colour, share in zip(palette, bars[bar], strict=False):
                if share:
                    axes.barh(row, share, left=left, color=colour, height=0.74, edgecolor="white", linewidth=0.5)
                    if share >= 6:
                        dark = common.text_colour(colour)
                        where: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": dark}
                        axes.text(left + share / 2, row, f"{share:.0f} %", **where)
                left += share
            if not counts.any():
                axes.text(1, row, "nothing present", va="center", fontsize=8, color=common.MUTED)
            if counts.sum():
                axes.text(101, row, f"mean {bars[bar] @ classes / 100:.1f}", va="center", fontsize=8, color=common.INK)
            here = int(vcpus[members].sum())
            names = format_list([int(vcpu_nodes[member]) for member in members])
            label = f"node{'s' if len(members) > 1 else ''} {names}" if len(names) < 24 else f"{len(members)} nodes"
            labels.append(f"{label} ({here} vCPU{'s' if here > 1 else ''})")
        axes.set_yticks(np.arange(len(bars)), labels=labels)
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.set_xlim(0, 100)
        axes.invert_yaxis()
        axes.set_xlabel("share of the guest's present memory (%)")
        axes.set_title("Distance from the vCPUs to the memory", loc="left", fontsize=10)
        seaborn.despine(ax=axes)
        handles = [
            Patch(color=colour, label=f"{value} (local)" if value == 10 else str(value))
            for colour, value in zip(palette, classes, strict=False)
        ]
        _legend(made, handles, "SLIT distance")
        common.basis_note(made, dataset, ["local_share", "mean_distance"])
    return made


def compare(datasets: Mapping[str, xr.Dataset]) -> Figure:
    """The same guest several times: share of its memory on each node, one bar for each result.

    On hosts of different nodes, nodes of one number have one colour.
    """
    if not datasets:
        raise WorkbenchError("compare: give at least one result")
    colours = common.colours_of_all(*datasets.values())
    ids = list(colours)
    present = np.zeros(len(ids))
    with common.style():
        made = common.figure(9.5, 1.5 + 0.42 * len(datasets))
        axes = made.subplots()
        for row, dataset in enumerate(datasets.values()):
            counts = np.zeros(len(ids))
            counts[np.searchsorted(ids, dataset["node"].values)] = amounts.bytes_of_all_files(dataset)
            present += counts
            total = max(counts.sum(), 1.0)
            left = 0.0
            for node, count in zip(ids, counts, strict=True):
                share = 100 * count / total
                axes.barh(row, share, left=left, color=colours[node], height=0.76, edgecolor="white", linewidth=0.4)
                if share >= 1.45:
                    where: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8 if share >= 4 else 6}
                    axes.text(left + share / 2, row, str(node), color=common.text_colour(colours[node]), **where)
                left += share
            if not counts.any():
                axes.text(1, row, "nothing present", va="center", fontsize=8, color=common.MUTED)
        axes.set_yticks(np.arange(len(datasets)), labels=list(datasets))
        axes.set_xlim(0, 100)
        axes.invert_yaxis()
        axes.set_xlabel("share of present memory (%); numbers in the bars are nodes")
        axes.set_title("Memory by node", loc="left", fontsize=10)
        seaborn.despine(ax=axes)
        handles = [Patch(color=colours[node], label=str(node)) for node, any_ in zip(ids, present, strict=True) if any_]
        _legend(made, handles, "node")
        common.basis_note(made, next(iter(datasets.values())), ["pages_per_node"])
    return made


# --------------------------------------------------------------------------------------------------------- table


def events(dataset: xr.Dataset) -> pd.DataFrame:
    """The calls of a run in order: operation, task, file, what it returned, errno by name, folios placed by node."""
    import pandas as pd

    ids = [int(node) for node in dataset["node"].values]
    rows: list[dict[str, Any]] = []
    for index in range(dataset.sizes["event"]):
        error = int(dataset["event_errno"].values[index])
        detail = json.loads(str(dataset["event_detail"].values[index]))
        counts = dataset["event_pages"].values[index]
        rows.append(
            {
                "operation": str(dataset["event_op"].values[index]),
                "task": str(dataset["event_task"].values[index]),
                "file": str(dataset["event_file"].values[index]),
                "result": int(dataset["event_ret"].values[index]),
                "errno": errno_name(error),
                "placed (node: folios)": _by_count(ids, counts),
                "detail": ", ".join(f"{key}={_brief(value)}" for key, value in detail.items()),
            }
        )
    columns = ["operation", "task", "file", "result", "errno", "placed (node: folios)", "detail"]
    return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(len(rows), name="event"))


def _by_count(ids: list[int], counts: npt.NDArray[np.int64]) -> str:
    """``0-3: 64 each, 5: 7``: nodes in ascending order, those with equal counts together."""
    alike: dict[int, list[int]] = {}
    for node, count in zip(ids, counts, strict=True):
        if count:
            alike.setdefault(int(count), []).append(node)
    return ", ".join(
        f"{format_list(nodes)}: {count:,}" + (" each" if len(nodes) > 1 else "") for count, nodes in alike.items()
    )


def _brief(value: Any, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 4] + " ..."


# -------------------------------------------------------------------------------------------------------- shared


def _file(dataset: xr.Dataset, file: str | None) -> str:
    names = [str(name) for name in dataset["file"].values]
    if not names:
        raise WorkbenchError("file: this result has no file to draw")
    if file is None:
        return "guest" if "guest" in names else names[0]
    if file not in names:
        raise WorkbenchError(f"file: {file!r} is not in this result ({', '.join(names)})")
    return file


def _node_handles(
    dataset: xr.Dataset, counts: npt.NDArray[np.int64], colours: dict[int, str], absent: int, folio: int
) -> list[Patch]:
    kinds = dict(zip(colours, (str(kind) for kind in dataset["node_kind"].values), strict=True))
    handles = []
    for (node, colour), count in zip(colours.items(), counts, strict=True):
        if count:
            kind = "" if kinds[node] == "dram" else f" {kinds[node]}"
            label = f"node {node}{kind}: {format_bytes(int(count) * folio)}"
            handles.append(Patch(color=colour, label=label))
    if absent:
        handles.append(Patch(color="#e9e9e9", label=f"absent: {format_bytes(absent * folio)}"))
    return handles


def _mode_handles(mine: pd.DataFrame) -> list[Patch]:
    return [
        Patch(color=POLICY_COLOURS.get(mode, "#999999"), label=f"policy {mode}") for mode in dict.fromkeys(mine["mode"])
    ]


def _legend(made: Figure, handles: list[Patch], title: str | None = None) -> None:
    """A legend to the right of the axes; the figure grows by the columns that it needs to stay readable."""
    if not handles:
        return
    width, height = made.get_size_inches()
    size = 7.5 if len(handles) <= 18 else 6.5
    line = size / 72 * 1.45
    columns = min(4, -(-len(handles) // max(1, int((height - 0.6) / line))))
    longest = max(len(str(handle.get_label())) for handle in handles)
    made.set_size_inches(
        width + (columns - 1) * (longest * size * 0.6 + 26) / 72, max(height, 0.6 + line * -(-len(handles) // columns))
    )
    made.legend(
        handles=handles,
        title=title,
        title_fontsize=8,
        loc="outside right upper",
        fontsize=size,
        frameon=False,
        ncols=columns,
        handlelength=1.1,
        labelspacing=0.35,
        columnspacing=1.2,
    )

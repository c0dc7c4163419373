"""A host as a picture: its nodes with memory, CPUs and kind, and the matrix of distances; readable at 64 nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib import colors as mcolors
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from workbench import results
from workbench.plots import common
from workbench.plots.palette import groups
from workbench.units import format_bytes
from workbench.variables import HostNodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from workbench.topology.host import Host

_ANNOTATED = 40
"""Up to so many nodes each cell of the matrix carries its number."""


def host_dataset(host: Host) -> xr.Dataset:
    """The variables of a result that describe the host alone: all that :func:`topology` needs."""
    from workbench.topology.zones import ZONE_NAMES, default_zones

    zones = default_zones(host)
    nodes = host.nodes
    labels = [
        f"{int(host.node_ids[node])}/{ZONE_NAMES[kind]}"
        for node, kind in zip(zones.zone_node, zones.zone_type, strict=True)
    ]
    return results.make(
        HostNodes,
        {
            "node_kind": np.array([node.kind for node in nodes], dtype=str),
            "node_memory": np.array([node.memory_bytes for node in nodes], np.int64),
            "node_cpus": np.array([len(node.cpus) for node in nodes], np.int64),
            "distance": host.distance_matrix,
            "zone_node": host.node_ids[zones.zone_node],
        },
        {"node": host.node_ids, "node_to": host.node_ids, "zone": np.array(labels, dtype=str)},
        provenance=results.provenance(command="plots.topology.host_dataset", host=host),
        attributes={"scenario": host.name},
    )


def movable_nodes(dataset: xr.Dataset) -> set[int]:
    """Ids of nodes all of whose memory is in ZONE_MOVABLE."""
    if "zone_node" not in dataset:
        return set()
    kinds: dict[int, set[str]] = {}
    for label, node in zip(dataset["zone"].values, dataset["zone_node"].values, strict=True):
        kinds.setdefault(int(node), set()).add(str(label).rpartition("/")[2])
    return {node for node, names in kinds.items() if names == {"Movable"}}


def topology(dataset: xr.Dataset, *, title: str = "", assumed: str = "") -> Figure:
    """Draw the host of a result: boxes of nodes, grouped by distance, and the distance matrix.

    Parameters
    ----------
    dataset : needs ``node_kind``, ``node_memory``, ``node_cpus`` (node,) and ``distance`` (node, node_to)
    assumed : what of the host is an assumption and not read from its source; shown in the corner
    """
    size = dataset.sizes["node"]
    parts = groups(dataset["distance"].values, dataset["node_cpus"].values)
    large = size > 20
    columns = _columns(parts, 16 if large else 8)
    rows = sum(-(-len(part) // columns) for part in parts)
    with common.style():
        if large:  # the boxes above the matrix: both as wide as a page
            above = (rows + 0.25 * len(parts)) * 0.72
            made = common.figure(10.5, above + 10.6)
            boxes, heat = made.subplots(2, 1, height_ratios=[above, 9.6])
            _boxes(boxes, dataset, parts, columns, 0, assumed)
        else:
            side, wide = 3.6 if size <= 8 else 6.0, max(2.2, float(columns))
            height = max(side, (rows + 0.25 * len(parts)) * 0.95)
            made = common.figure(wide + side + 1.6, height + 0.7)
            boxes, heat = made.subplots(1, 2, width_ratios=[wide, side + 0.9])
            _boxes(boxes, dataset, parts, columns, height / 0.95, assumed)
        _matrix(heat, dataset)
        made.suptitle(title or str(dataset.attrs.get("scenario", "")), x=0.01, ha="left", fontsize=12)
        note = f"assumed, not in its source: {assumed}" if assumed else ""
        common.basis_note(made, dataset, ["distance"], note)
    return made


def _columns(parts: list[list[int]], most: int) -> int:
    """Boxes side by side: a whole group if it is not too long, else equal lines."""
    longest = max(map(len, parts))
    return longest if longest <= most + 1 else -(-longest // -(-longest // most))


def _boxes(axes: Axes, dataset: xr.Dataset, parts: list[list[int]], columns: int, room: float, assumed: str) -> None:
    ids = dataset["node"].values
    memory, cpus = dataset["node_memory"].values, dataset["node_cpus"].values
    kinds = [str(kind) for kind in dataset["node_kind"].values]
    movable = movable_nodes(dataset)
    colours = common.colours_of(dataset)
    largest = max(1, int(memory.max()))
    small = len(ids) > 20
    y = 0.0
    for part in parts:
        for position, index in enumerate(part):
            row, column = divmod(position, columns)
            node = int(ids[index])
            at = (column + 0.05, y + row + 0.06)
            axes.add_patch(
                FancyBboxPatch(
                    at,
                    0.9,
                    0.86,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=common.KIND_COLOURS.get(kinds[index], "#eeeeee"),
                    edgecolor=colours[node],
                    linewidth=2,
                    linestyle="-" if memory[index] else (0, (3, 2)),
                )
            )
            # a strip along the lower edge: memory of the node against the largest one
            strip = (at[0] + 0.07, at[1] + 0.74)
            axes.add_patch(matplotlib.patches.Rectangle(strip, 0.76, 0.05, facecolor="white", linewidth=0))
            axes.add_patch(
                matplotlib.patches.Rectangle(strip, 0.76 * memory[index] / largest, 0.05, facecolor=colours[node])
            )
            middle = at[0] + 0.45
            kind = kinds[index].upper() + (" movable" if node in movable else "")
            axes.text(
                middle, at[1] + 0.14, str(node), ha="center", va="center", fontsize=8 if small else 10, weight="bold"
            )
            lines = [
                format_bytes(memory[index]) if memory[index] else "no memory",
                _cpus_text(int(cpus[index]), "cpus" in assumed),
                kind,
            ]
            for number, line in enumerate(lines):
                axes.text(
                    middle,
                    at[1] + 0.31 + 0.15 * number,
                    line,
                    ha="center",
                    va="center",
                    fontsize=5.5 if small else 7.5,
                    color=common.INK,
                )
        y += -(-len(part) // columns) + 0.25
    axes.set_xlim(-0.02, max(columns, 2) + 0.02)
    axes.set_ylim(max(y - 0.2, room), -0.05)
    axes.set_aspect("auto")
    axes.axis("off")
    axes.set_title("nodes, grouped by distance; strip: memory", fontsize=9, loc="left")


def _cpus_text(count: int, assumed: bool) -> str:
    if count == 0:
        return "no CPUs"
    return f"{count} CPU{'s' if count > 1 else ''}" + ("?" if assumed else "")


def _matrix(axes: Axes, dataset: xr.Dataset) -> None:
    matrix: npt.NDArray[np.int64] = dataset["distance"].values
    ids = dataset["node"].values
    size = len(ids)
    values = np.unique(matrix)
    palette = matplotlib.colormaps[common.HEAT]
    if len(values) <= 12:
        norm: mcolors.Normalize = mcolors.BoundaryNorm(np.arange(len(values) + 1) - 0.5, len(values))
        shown = np.searchsorted(values, matrix)
        heat: mcolors.Colormap = mcolors.ListedColormap(palette(np.linspace(0.02, 0.98, len(values))))
    else:
        norm, shown, heat = mcolors.Normalize(values[0], values[-1]), matrix, palette
    image = axes.imshow(shown, cmap=heat, norm=norm, interpolation="nearest", aspect="equal")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("SLIT distance (10 = local)", fontsize=8)
    if len(values) <= 12:
        bar.set_ticks(range(len(values)), labels=[str(value) for value in values])
    bar.ax.tick_params(labelsize=7)
    if size <= _ANNOTATED:
        font = 9 if size <= 12 else 7 if size <= 20 else 5.6
        for i in range(size):
            for j in range(size):
                colour = common.text_colour(heat(norm(shown[i, j])))
                axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=font, color=colour)
    step = 1 if size <= _ANNOTATED else 2
    font = 8 if size <= 20 else 6.5
    axes.set_xticks(np.arange(0, size, step), labels=[str(node) for node in ids[::step]], fontsize=font)
    axes.set_yticks(np.arange(0, size, step), labels=[str(node) for node in ids[::step]], fontsize=font)
    axes.tick_params(length=2)
    for edge in _group_edges(matrix, dataset["node_cpus"].values):
        axes.axhline(edge - 0.5, color="white", linewidth=1.4)
        axes.axvline(edge - 0.5, color="white", linewidth=1.4)
    if size > 20:
        axes.tick_params(axis="x", labeltop=True, labelrotation=90)
        axes.tick_params(axis="y", labelright=False)
    axes.set_xlabel("to node")
    axes.set_ylabel("from node")
    axes.set_title("distances", fontsize=9, loc="left")


def _group_edges(matrix: npt.NDArray[np.int64], cpus: npt.NDArray[np.int64]) -> list[int]:
    """Where one group ends and the next begins, if groups are runs of the node order."""
    parts = groups(matrix, cpus)
    if any(part != list(range(part[0], part[-1] + 1)) for part in parts) or len(parts) < 2:
        return []
    return sorted(part[0] for part in parts if part[0])

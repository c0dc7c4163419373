"""Figures of the cost model: published against modelled, policies on machines, weights, views, walks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.ticker import MaxNLocator

from workbench.cost.weights import sentence
from workbench.plots import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = "colorblind"
_ROLE_COLOURS = {
    "derived": "#009e73", "formula": "#4a97c9", "predicted": "#0072b2", "calibrated": "#c98500", "set": "#8c8c8c"
}  # fmt: skip


def _note(made: Figure, text: str) -> None:
    common.corner_note(made, text)


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def deviations(dataset: xr.Dataset, goal: tuple[float, float] = (10.0, 25.0)) -> Figure:
    """Deviation of every compared value, one line of dots per table, with the goal as bands.

    dataset: of :func:`workbench.truth.published.reproduce_all`.
    """
    frame = dataset[["table", "role", "deviation"]].to_dataframe()
    frame = frame[(frame["role"] != "unmodelled") & np.isfinite(frame["deviation"])]
    tables = list(dict.fromkeys(frame["table"]))
    with common.style():
        made = common.figure(8.0, 0.6 + 0.3 * len(tables) + 1.0)
        ax = made.add_subplot()
        median, worst = goal
        ax.axvspan(-worst, worst, color="#56b4e9", alpha=0.12, lw=0)
        ax.axvspan(-median, median, color="#56b4e9", alpha=0.18, lw=0)
        sns.stripplot(
            frame, x="deviation", y="table", hue="role", order=tables, hue_order=list(_ROLE_COLOURS),
            palette=_ROLE_COLOURS, ax=ax, jitter=0.22, size=4.5, alpha=0.75, linewidth=0,
        )  # fmt: skip
        ax.set(xlabel="deviation of the model from the published value, %", ylabel="")
        ax.set_title("Published values beside the model: every dot is one value")
        ax.axvline(0, color=common.INK, lw=0.8)
        ax.grid(axis="y", color="#eeeeee")
        ax.set_axisbelow(True)
        sns.move_legend(ax, "lower left", title="", frameon=True)
        _note(made, f"bands: goal for predicted values, median ±{median:g} %, worst ±{worst:g} %")
    return made


def comparison(
    dataset: xr.Dataset, quantities: Sequence[str] | None = None, title: str = "", log: bool = False
) -> Figure:
    """Published and modelled bars of one table, a panel for each row of the table.

    dataset: of :func:`workbench.truth.published.reproduce`. quantities: columns to show, in this order. log: for values that
    span orders of magnitude, points on a logarithmic axis instead of bars.
    """
    frame = dataset[["label", "quantity", "unit", "published", "modelled", "role"]].to_dataframe()
    frame = frame[frame["role"] != "unmodelled"]
    if quantities is not None:
        frame = frame[frame["quantity"].isin(quantities)]
    labels = list(dict.fromkeys(frame["label"]))
    columns = list(quantities or dict.fromkeys(frame["quantity"]))
    across = 2 if len(labels) in (2, 4) else min(3, len(labels))
    down = -(-len(labels) // across)
    with common.style():
        made = common.figure(9.0, 0.9 + (0.34 * len(columns) + 0.6) * down)
        grid = made.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, label in zip(grid.flat, labels, strict=False):
            mine = frame[frame["label"] == label]
            long = mine.melt(["quantity", "role"], ["published", "modelled"], "which", "value")
            options: dict[str, Any] = {
                "y": "quantity", "x": "value", "hue": "which", "order": columns, "palette": ["#8c8c8c", "#0072b2"],
                "ax": ax, "legend": bool(ax is grid.flat[0]),
            }  # fmt: skip
            if log:
                common.log_scale(ax, "x")
                sns.stripplot(long, dodge=True, jitter=False, size=6, **options)
                ax.grid(color="#eeeeee")
            else:
                sns.barplot(long, **options)
                ax.xaxis.set_major_locator(MaxNLocator(5))
                ax.ticklabel_format(axis="x", style="plain")
            for place, column in enumerate(columns):
                row = mine[mine["quantity"] == column]
                if len(row) and row["role"].iloc[0] == "set":
                    ax.text(1.01, place, "set", transform=ax.get_yaxis_transform(), ha="left", va="center", fontsize=7)
            ax.set(title=str(label), ylabel="", xlabel=str(mine["unit"].iloc[0]))
        for ax in list(grid.flat)[len(labels) :]:
            ax.remove()
        handles, texts = grid.flat[0].get_legend_handles_labels()
        grid.flat[0].get_legend().remove()
        made.legend(handles[:2], texts[:2], loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        made.suptitle(_short(title or str(dataset.attrs.get("title", "")), 80), x=0.01, ha="left", fontsize=10)
        _note(made, f"source: {_short(str(dataset.attrs.get('source', '')))}")
    return made


def contention(dataset: xr.Dataset, title: str = "Page allocator under contention") -> Figure:
    """Time of an operation against cores, published as points and modelled as lines, one panel per allocator.

    dataset: of ``reproduce("buddy_vs_llfree_cores")``.
    """
    frame = dataset[["label", "quantity", "published", "modelled", "role"]].to_dataframe()
    frame["cores"] = [int(str(label).split()[0]) for label in frame["label"]]
    frame["allocator"] = [str(text).split()[0] for text in frame["quantity"]]
    allocators = list(dict.fromkeys(frame["allocator"]))
    with common.style():
        made = common.figure(9.0, 3.6)
        axes = np.atleast_1d(made.subplots(1, len(allocators), sharey=True))
        for ax, allocator in zip(axes, allocators, strict=True):
            mine = frame[frame["allocator"] == allocator]
            for colour, (name, rows) in zip(
                sns.color_palette(PALETTE), mine.groupby("quantity", sort=False), strict=False
            ):
                ax.plot(rows["cores"], rows["modelled"], color=colour, label=str(name).removeprefix(f"{allocator} "))
                for role, filled in (("set", False), ("calibrated", True)):
                    part = rows[rows["role"] == role]
                    ax.plot(
                        part["cores"], part["published"], "o", color=colour, mfc=colour if filled else "white", ms=5
                    )
            ax.set(xscale="log", yscale="log", xlabel="cores", title=allocator)
            ax.set_xticks([1, 2, 4, 8, 16, 26], ["1", "2", "4", "8", "16", "26"])
            ax.minorticks_off()
            ax.legend(fontsize=7, frameon=False)
        axes[0].set_ylabel("ns per operation")
        made.suptitle(title, fontsize=10)
        _note(made, "points: published (hollow ones set the parameters); lines: one queue for the lock, exact MVA")
    return made


def generic_curves() -> Figure:
    """The measured bandwidth-latency curves as the model uses them."""
    from workbench.cost import curves

    names = {
        "dram": "DRAM (Skylake, 6 x DDR4)",
        "hbm": "HBM (A64FX)",
        "cxl": "CXL device",
        "link": "link to the other socket",
    }
    with common.style():
        made = common.figure(6.5, 3.6)
        ax = made.add_subplot()
        families = curves.generic()
        for colour, style, use in zip(sns.color_palette(PALETTE), ("-", "--", "-.", ":"), names, strict=False):
            ax.plot(100 * curves.LOADS, families[use].delays[-1], style, color=colour, label=names[use], lw=1.8)
        ax.set(xlabel="used part of the highest bandwidth, %", ylabel="delay over idle latency, ns", ylim=(0, 450))
        ax.set_title("What a loaded node or link adds to every access")
        ax.legend(frameon=False)
        _note(made, "measured by Mess (BSC): datasets/curves/bandwidth-latency.yaml")
    return made


def policies(results: Mapping[str, xr.Dataset], variable: str = "bandwidth") -> Figure:
    """One guest under every policy, a panel per machine; whiskers span 90 % of the samples where there are any.

    results: name of the machine -> Dataset of :func:`workbench.studies.placement_cost.policy_costs`.
    variable: ``bandwidth`` or ``latency``.
    """
    from workbench.studies.placement_cost import winners

    scale, unit = (1e-3, "GB/s") if variable == "bandwidth" else (1.0, "ns")
    count = max(dataset.sizes["policy"] for dataset in results.values())
    with common.style():
        made = common.figure(max(6.0, 3.1 * len(results) + 1.4), 0.28 * count + 1.5)
        axes = np.atleast_1d(made.subplots(1, len(results), sharey=True))
        for ax, (name, dataset) in zip(axes, results.items(), strict=True):
            values = dataset[variable] * scale
            middle = (
                values.isel(sample=slice(1, None)).median("sample") if values.sizes.get("sample", 1) > 1 else values
            )
            best = set(winners(dataset))
            names = [str(policy) for policy in dataset["policy"].values]
            colours = ["#0072b2" if policy in best else "#7898b2" for policy in names]
            ax.barh(range(len(names)), middle.values, color=colours, height=0.72)
            if "sample" in values.dims:
                low, high = (values.quantile(q, "sample").values for q in (0.05, 0.95))
                ax.hlines(range(len(names)), low, high, color=common.INK, lw=1.0)
            ax.set_yticks(range(len(names)), names)
            ax.invert_yaxis()
            ax.set(xlabel=f"{variable}, {unit}", title=name)
            ax.set_xlim(left=0)
        first = next(iter(results.values()))
        made.suptitle(
            f"{first.attrs['pattern'].replace('_', ' ')}, each vCPU node touches {first.attrs['sharing']}", fontsize=10
        )
        note = "dark: best within 2 %"
        if "sample" in first.dims:
            note = (
                "dark: within 2 % of the best in half of the draws or more; bars: median of the draws; lines: 5 to 95 %"
            )
        _note(made, f"{note} · basis: modelled, estimates where the host reports no figures")
    return made


def verdicts(cases: Mapping[str, Mapping[str, xr.Dataset]]) -> Figure:
    """How often each policy wins over the draws: a row of panels for each case, a panel for each machine.

    cases: name of the case -> name of the machine -> Dataset of :func:`workbench.studies.placement_cost.policy_costs`
    with samples.
    """
    from workbench.studies.placement_cost import verdict

    machines = list(next(iter(cases.values())))
    count = max(dataset.sizes["policy"] for results in cases.values() for dataset in results.values())
    with common.style():
        made = common.figure(max(7.0, 3.1 * len(machines) + 1.4), (0.24 * count + 0.75) * len(cases) + 0.5)
        grid = made.subplots(len(cases), len(machines), squeeze=False, sharey=True, sharex=True)
        for number, (row, (case, results)) in enumerate(zip(grid, cases.items(), strict=True)):
            for ax, name in zip(row, machines, strict=True):
                names = [str(policy) for policy in results[name]["policy"].values]
                found = verdict(results[name]).sel(policy=names)
                ax.barh(
                    range(len(names)),
                    100 * found["close"],
                    color="#7898b2",
                    height=0.72,
                    label="within 2 % of the best",
                )
                ax.barh(range(len(names)), 100 * found["wins"], color="#0072b2", height=0.4, label="best")
                ax.set_yticks(range(len(names)), names)
                ax.set(xlim=(0, 100))
                best = found.isel(policy=int(found["wins"].values.argmax()))
                decides = f"decides: {best['decides'].item()}"
                ax.set_title(f"{name}\n{decides}" if number == 0 else decides, fontsize=7.5)
            row[0].set_ylabel(case)
            row[0].set_ylim(count - 0.5, -0.5)
        for ax in grid[-1]:
            ax.set_xlabel("part of the draws, %")
        handles, texts = grid[0, 0].get_legend_handles_labels()
        made.legend(handles, texts, loc="outside upper right", ncols=2, frameon=False, fontsize=7)
        made.suptitle("Which policy wins, over the draws", x=0.01, ha="left", fontsize=10)
        _note(
            made,
            "policies that cost the same win together · decides: parameter with the greatest rank correlation · modelled",
        )
    return made


def speedups(dataset: xr.DataArray, title: str, xlabel: str) -> Figure:
    """Distribution of a ratio over samples, a box for each position of the other dimension."""
    position = next(str(name) for name in dataset.dims if name != "sample")
    dataset = dataset.transpose(position, "sample")
    with common.style():
        made = common.figure(7.0, 0.6 * dataset.sizes[position] + 1.5)
        ax = made.add_subplot()
        rows = range(dataset.sizes[position])
        drawn = ax.boxplot(
            [dataset.isel({position: row}).values for row in rows], positions=list(rows), orientation="horizontal",
            whis=(5, 95), widths=0.55, showfliers=False, patch_artist=True, medianprops={"color": common.INK},
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set(facecolor="#7898b2", edgecolor=common.MUTED)
        ax.set_yticks(list(rows), [str(name) for name in dataset[position].values])
        ax.invert_yaxis()
        ax.plot(
            dataset.isel(sample=0), range(dataset.sizes[position]), "D", color="#d55e00", ms=6, label="parameter values"
        )
        ax.axvline(1.0, color=common.INK, lw=0.8, ls="--")
        ax.set(xlabel=xlabel, ylabel="")
        ax.set_title(title)
        ax.legend(frameon=False, loc="lower right")
        _note(made, "box: quartiles, whiskers 5 to 95 % over the ranges of the cost parameters · basis: modelled")
    return made


def weights(dataset: xr.Dataset, title: str = "Interleave weights: the kernel's and the best") -> Figure:
    """Share of pages per node and bandwidth for the policies of :func:`workbench.cost.weights.best_weights`.

    Lines go from 5 to 95 % of the draws, of which the words below say what they give each node.
    """
    names = [str(policy) for policy in dataset["policy"].values]
    share = dataset["weight"] / dataset["weight"].sum("node")
    known = common.colours_of_provenance(dataset)
    colours = [known[int(node)] for node in dataset["node"].values]
    with common.style():
        made = common.figure(8.5, 0.42 * len(names) + 1.5)
        left, right = made.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
        begin = np.zeros(len(names))
        for k, node in enumerate(dataset["node"].values):
            part = share.isel(node=k).values
            left.barh(range(len(names)), part, left=begin, color=colours[k], height=0.7, label=f"node {node}")
            for row, (at, width) in enumerate(zip(begin, part, strict=True)):
                if width > 0.06:
                    text = str(int(dataset["weight"].values[row, k]))
                    left.text(at + width / 2, row, text, ha="center", va="center", fontsize=8,
                              color=common.text_colour(colours[k]))  # fmt: skip
            begin += part
        left.set(xlabel="share of the pages (numbers: weights)", xlim=(0, 1))
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        if dataset.sizes["node"] <= 8:
            left.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        speed = dataset["bandwidth"] / 1000
        drawn = _ends(dataset, "bandwidth")
        if "sample" in speed.dims:
            speed = speed.median("sample")
        if drawn is not None:
            low, high = (end.values / 1000 for end in drawn)
            right.hlines(range(len(names)), low, high, color=common.INK, lw=1.0, zorder=3)
        right.barh(range(len(names)), speed, color="#0072b2", height=0.7)
        if "wins" in dataset:
            for row, wins in enumerate(dataset["wins"].values):
                right.text(
                    1.02,
                    row,
                    f"best in {100 * wins:.0f} %",
                    transform=right.get_yaxis_transform(),
                    va="center",
                    fontsize=8,
                )
        right.set(xlabel="bandwidth of all vCPUs, GB/s")
        made.suptitle(f"{title} ({dataset.attrs['pattern'].replace('_', ' ')})", fontsize=10)
        source = f"weights from: {_short(str(dataset.attrs['automatic_from']), 110)}"
        if "wins" in dataset:
            _note(made, f"{_short(sentence(dataset), 300)}. Automatic {source}")
        else:
            _note(made, f"automatic {source}")
    return made


def _ends(dataset: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray] | None:
    """5 and 95 % of the draws of a variable, if there are any."""
    if f"{name}_low" in dataset:
        return dataset[f"{name}_low"], dataset[f"{name}_high"]
    if "sample" not in dataset[name].dims:
        return None
    drawn = dataset[name].isel(sample=slice(1, None))  # the first has the parameters' own values and is no draw
    low, high = (drawn.quantile(part, "sample") for part in (0.05, 0.95))
    return low, high


def views(dataset: xr.Dataset, title: str = "What a wrong view of NUMA costs the guest") -> Figure:
    """Local accesses and latency of each virtual node under each view, of :func:`workbench.studies.vnuma.cost`.

    With draws over ``sample``, bars of the latency are of their medians and lines from 5 to 95 % of them.
    """
    with common.style():
        made = common.figure(8.5, 3.4)
        axes: Sequence[Axes] = made.subplots(1, 2)
        for ax, (name, scale, label) in zip(
            axes,
            (("local_share", 100.0, "accesses on the vCPU's own node, %"), ("latency", 1.0, "loaded latency, ns")),
            strict=True,
        ):
            values = dataset[name] * scale
            drawn = "sample" in values.dims
            if drawn:  # the first has the parameters' own values and is no draw
                values = values.isel(sample=slice(1, None))
            sns.barplot(
                values.to_dataframe(name=name).reset_index(), x="view", y=name, hue="cell", palette=PALETTE, ax=ax,
                legend=bool(ax is axes[0]), estimator="median", errorbar=("pi", 90) if drawn else None,
                err_kws={"color": common.INK, "linewidth": 1.0},
            )  # fmt: skip
            ax.set(xlabel="what the guest is told", ylabel=label)
        handles, texts = axes[0].get_legend_handles_labels()
        if (legend := axes[0].get_legend()) is not None:
            legend.remove()
        labels = [f"virtual node {text}" for text in texts]
        made.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=7)
        made.suptitle(title, x=0.01, ha="left", fontsize=10)
        lines = "; bars: median of the draws, lines: 5 to 95 %" if "sample" in dataset.dims else ""
        _note(made, f"left: counted; right: modelled (workbench/cost/traffic.py){lines}")
    return made


def walks(dataset: xr.Dataset, x: str, xlabel: str, hue: str | None = None, title: str = "") -> Figure:
    """Time in page walks against something that varies, one line for each value of another dimension.

    dataset: with ``walk`` (ns) over ``x`` and, if given, ``hue``; with draws over ``sample`` too, lines are of their medians and
        bands from 5 to 95 % of them.
    """
    frame: Any = dataset[["walk"]].to_dataframe().reset_index()
    if "sample" in dataset.dims:  # the first has the parameters' own values and is no draw
        frame = frame[frame["sample"] > 0]
    with common.style():
        made = common.figure(6.8, 3.6)
        ax = made.add_subplot()
        sns.lineplot(
            frame, x=x, y="walk", hue=hue, style=hue, markers=True, dashes=hue is not None,
            palette=PALETTE if hue else None, ax=ax, estimator="median",
            errorbar=("pi", 90) if "sample" in dataset.dims else None,
        )  # fmt: skip
        ax.set(xlabel=xlabel, ylabel="page walks, ns per access", title=title or "Page walks", ylim=(0, None))
        common.basis_note(made, dataset, ["walk"])
    return made

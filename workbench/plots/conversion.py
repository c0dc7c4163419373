"""Pictures of conversions: largest mappings left, where splits come from, what struct pages cost, what a pin costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from workbench.plots import common
from workbench.units import PAGE_SIZE

LEVEL_COLOURS = {"1 GiB": "#00507a", "2 MiB": "#4a97c9", "4 KiB": "#c98500"}
SERIES = ("#0072b2", "#d55e00", "#009e73", "#d376a0")
MARKERS = "osD^"


def mapping_share(runs: Mapping[str, xr.Dataset]) -> Figure:
    """Share of the guest by the largest mapping still possible, along the operations; one panel for each run."""
    columns = len(runs) if len(runs) <= 3 else 2
    rows = -(-len(runs) // columns)
    with common.style():
        made = common.figure(9.4 if columns > 1 else 5.0, 0.6 + 2.5 * rows)
        panels = made.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (label, dataset) in zip(panels, runs.items(), strict=False):
            share = 100 * dataset["mapping_share"]
            panel.stackplot(
                dataset["event"].values,
                *(share.sel(level=level).values for level in LEVEL_COLOURS),
                colors=list(LEVEL_COLOURS.values()),
                labels=list(LEVEL_COLOURS),
                step="post",
                linewidth=0,
            )
            panel.set_title(label, fontsize=9, loc="left")
            panel.set_ylim(0, 100)
            panel.margins(x=0)
        for panel in panels[len(runs) :]:
            panel.set_visible(False)
        for panel in panels[::columns]:
            panel.set_ylabel("share of the guest (%)")
        for panel in panels[max(0, len(runs) - columns) : len(runs)]:
            panel.set_xlabel("operations")
        handles, labels = panels[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, title=None, fontsize=8)
        made.suptitle("Largest mapping possible", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, next(iter(runs.values())), ["mapping_share"])
    return made


def boot_sources(dataset: xr.Dataset, published: xr.Dataset | None = None) -> Figure:
    """Huge pages split by each part of a boot; the published total as a line."""
    splits = dataset["boot_splits"]
    sources = [str(name) for name in dataset["source"].values if int(splits.sel(source=name).sum())]
    with common.style():
        made = common.figure(9.4, 0.9 + 0.36 * len(sources) + 0.6)
        panels = made.subplots(1, dataset.sizes["backing"], sharey=True, squeeze=False)[0]
        for panel, backing in zip(panels, dataset["backing"].values, strict=True):
            values = splits.sel(backing=backing, source=sources).values
            panel.barh(sources, values, color=SERIES[0])
            total, pages = int(values.sum()), int(dataset["boot_pages"].sel(backing=backing))
            for row, value in enumerate(values):
                panel.text(value, row, f" {value}", va="center", fontsize=8)
            title = f"{backing} backing: {total} of {pages} split ({100 * total / pages:.1f} %)"
            if published is not None:
                title += f"; published {float(published.sel(quantity=f'{backing} pages split')):.0f}"
            panel.set_title(title, fontsize=9, loc="left")
            panel.set_xlabel("pages split")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.margins(x=0.12)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].invert_yaxis()
        made.suptitle("Where the splits of a boot come from", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, dataset, ["boot_splits"])
    return made


def scattered_pages(dataset: xr.Dataset) -> Figure:
    """vmemmap pages and page tables that shared pages at random places of a 1 GiB page cost, for each design."""
    with common.style():
        made = common.figure(9.4, 3.6)
        left, right = made.subplots(1, 2, sharex=True)
        for axes, name in ((left, "added_vmemmap"), (right, "added_tables")):
            for colour, marker, design in zip(SERIES, MARKERS, dataset["design"].values, strict=False):
                if name == "added_tables" and design == dataset["design"].values[-1]:
                    continue
                values = dataset[name].sel(design=design).values
                axes.plot(dataset["shared"], values, color=colour, marker=marker, markersize=4, label=str(design))
            axes.set_xscale("log", base=2)
            axes.set_xlabel("4 KiB pages shared, at random places of the 1 GiB page")
            axes.set_ylabel(dataset[name].attrs["long_name"])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.spines[["top", "right"]].set_visible(False)
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.axhline(4096, color=common.MUTED, linestyle=":", linewidth=1)
        left.annotate("512 × 512 struct pages", (1, 4096), xytext=(0, 4), textcoords="offset points",
                      fontsize=8, color=common.MUTED)  # fmt: skip
        left.legend(frameon=False, fontsize=8, loc="lower right")
        right.legend(frameon=False, fontsize=8, loc="lower right")
        made.suptitle("What scattered shared pages cost in one 1 GiB page", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, dataset, ["added_vmemmap", "added_tables"])
    return made


def conversion_modes(dataset: xr.Dataset) -> Figure:
    """The same conversions in both modes: where the pages are before and after, what it took, and the modelled time."""
    modes = [str(mode) for mode in dataset["mode"].values]
    used = [
        n
        for n in dataset["node"].values
        if int(dataset["before"].sel(node=n).sum() + dataset["after"].sel(node=n).sum())
    ]
    colours = common.colours_of(dataset)
    with common.style():
        made = common.figure(10.4, 3.4)
        places, work, time = made.subplots(1, 3, width_ratios=(1.2, 1.5, 0.8))
        labels = []
        for row, (mode, moment) in enumerate((mode, moment) for mode in modes for moment in ("before", "after")):
            left = 0.0
            for node in used:
                amount = float(dataset[moment].sel(mode=mode, node=node)) * PAGE_SIZE / 2**20
                places.barh(row, amount, left=left, color=colours[int(node)], label=f"node {node}" if not row else None)
                left += amount
            labels.append(f"{mode.split(' (')[0]},\n{moment}")
        places.set_yticks(range(len(labels)), labels, fontsize=8)
        places.invert_yaxis()
        places.set_xlabel("memory of the guest (MiB)")
        places.legend(frameon=False, fontsize=8, loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1.0))
        names = {
            "drifted_pages": "drifted", "allocated_pages": "allocated", "refaulted_pages": "faulted\nagain",
            "rotation_steps": "rotation\nsteps", "invalidations": "ranges\nzapped",
        }  # fmt: skip
        for column, (mode, colour) in enumerate(zip(modes, SERIES, strict=False)):
            at = np.arange(len(names)) + 0.4 * column - 0.2
            bars = work.bar(at, [int(dataset[name].sel(mode=mode)) for name in names], 0.38, color=colour, label=mode)
            work.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=1)
            draws = dataset["modelled_time"].sel(mode=mode).values / 1e6
            low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95))
            time.bar(
                column,
                middle,
                0.6,
                color=colour,
                yerr=[[middle - low], [high - middle]],
                ecolor=common.MUTED,
                capsize=3,
            )
        work.set_xticks(range(len(names)), list(names.values()), fontsize=8)
        work.set_ylabel("4 KiB pages, steps, calls")
        work.set_ylim(0, 1.25 * max(int(dataset[name].max()) for name in names) or 1)
        work.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        time.set_xticks(range(len(modes)), [mode.split(" (")[0] for mode in modes], fontsize=8)
        time.set_ylabel("modelled time (ms), 5 to 95 % of draws")
        for axes in (places, work, time):
            axes.spines[["top", "right"]].set_visible(False)
        common.basis_note(made, dataset, ["before", "invalidations", "modelled_time"])
    return made


def vmemmap_over_time(runs: Mapping[str, xr.Dataset]) -> Figure:
    """vmemmap pages held by splits along the operations, one line for each run."""
    with common.style():
        made = common.figure(8.6, 3.2)
        axes = made.subplots()
        for colour, (label, dataset) in zip(SERIES, runs.items(), strict=False):
            held = dataset["vmemmap_pages"].sum("node") * PAGE_SIZE / 2**20
            axes.step(dataset["event"], held, where="post", color=colour, label=label, linewidth=1.4)
        axes.set_xlabel("operations")
        axes.set_ylabel("vmemmap restored (MiB)")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        made.suptitle("Memory that splits take for struct pages", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, next(iter(runs.values())), ["vmemmap_pages"])
    return made


def pinned_pages(dataset: xr.Dataset) -> Figure:
    """What long-term pins do to one conversion of the whole guest, by generation."""
    panels_of = ("kept_shared", "broken_pages", "calls_needed")
    with common.style():
        made = common.figure(9.6, 3.1)
        panels = made.subplots(1, 3)
        positions = np.arange(dataset.sizes["pins"])
        for panel, name in zip(panels, panels_of, strict=True):
            for colour, marker, generation in zip(SERIES, MARKERS, dataset["generation"].values, strict=False):
                values = dataset[name].sel(generation=generation).values
                label = f"generation {generation}"
                panel.plot(positions, values, color=colour, marker=marker, markersize=4, label=label)
            panel.set_xticks(positions, [str(value) for value in dataset["pins"].values])
            panel.set_title(dataset[name].attrs["long_name"], fontsize=9, loc="left")
            panel.set_xlabel("pages pinned")
            panel.set_ylabel(dataset[name].attrs["units"])
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=8)
        made.suptitle("The cost of a pinned page", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, dataset, list(panels_of))
    return made


def profile(dataset: xr.Dataset) -> Figure:
    """The published conversion profile beside the model; whiskers are the range of the parameters."""
    quantities = [str(name) for name in dataset["quantity"].values]
    with common.style():
        made = common.figure(2.6 * len(quantities), 2.9)
        panels = made.subplots(1, len(quantities))
        for panel, quantity in zip(panels, quantities, strict=True):
            measured = float(dataset["profile_published"].sel(quantity=quantity))
            model = dataset["profile_model"].sel(quantity=quantity).values
            spread = [[model[0] - model.min()], [model.max() - model[0]]]
            panel.bar(["published"], [measured], color=common.MUTED, width=0.6)
            panel.bar(["model"], [model[0]], color=SERIES[0], width=0.6,
                      yerr=spread if model.max() > model.min() else None, capsize=4)  # fmt: skip
            panel.text(0, measured, f"{measured:.3g}", ha="center", va="bottom", fontsize=8)
            deviation = 100 * (model[0] - measured) / measured
            panel.text(1, model.max(), f"{model[0]:.3g} ({deviation:+.0f} %)", ha="center", va="bottom", fontsize=8)
            panel.set_title(quantity.replace(" in 2 MiB", "\nin 2 MiB"), fontsize=9, loc="left")
            panel.margins(y=0.16)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("pages, or per cent")
        made.suptitle("The published profile of a 16 GiB SNP guest", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, dataset, ["profile_published", "profile_model"])
    return made


def recorded_hvo(dataset: xr.Dataset) -> Figure:
    """vmemmap pages a real kernel counted, state by state, and the model's as crosses."""
    with common.style():
        made = common.figure(8.6, 1.0 + 0.2 * dataset.sizes["state"])
        axes = made.subplots()
        rows = np.arange(dataset.sizes["state"])
        axes.barh(rows, dataset["vmemmap_recorded"], color="#7898b2", label="recorded")
        axes.plot(dataset["vmemmap_model"], rows, "x", color=SERIES[1], markersize=5, label="model")
        axes.set_yticks(rows, [str(name) for name in dataset["state"].values], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(left=0, right=float(dataset["vmemmap_recorded"].max()) * 1.18)
        axes.set_xlabel("vmemmap pages of the host (4 KiB)")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        made.suptitle("Struct pages of a real kernel, with huge pages in the pool", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, dataset, ["vmemmap_recorded", "vmemmap_model"])
    return made


def cycles(runs: Mapping[str, xr.Dataset]) -> Figure:
    """Modelled cycles by part for each run; whiskers are the range of the total over the parameters."""
    with common.style():
        made = common.figure(8.6, 0.9 + 0.5 * len(runs))
        axes = made.subplots()
        labels = list(runs)
        parts = [str(part) for part in next(iter(runs.values()))["part"].values]
        left = np.zeros(len(runs))
        final = [dataset["conversion_cycles"].isel(event=-1) for dataset in runs.values()]
        first = [data.isel(sample=0) if "sample" in data.dims else data for data in final]
        for colour, part in zip(SERIES, parts, strict=False):
            values = np.array([float(data.sel(part=part)) for data in first]) / 1e6
            if values.any():
                axes.barh(labels, values, left=left, color=colour, label=part, height=0.6)
            left += values
        totals = [data.sum("part").values / 1e6 for data in final]
        spread = np.array([[row - np.min(t), np.max(t) - row] for row, t in zip(left, totals, strict=True)]).T
        axes.errorbar(left, labels, xerr=np.maximum(spread, 0), fmt="none", ecolor=common.INK, capsize=3, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel("million cycles")
        made.legend(loc="outside upper right", ncols=4, frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        made.suptitle("Time that conversions take", x=0.01, ha="left", fontsize=11)
        common.basis_note(made, next(iter(runs.values())), ["conversion_cycles"])
    return made

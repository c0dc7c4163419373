"""Figures of :mod:`workbench.designs.compare` and :mod:`workbench.studies.vm_churn`, costs on log axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench import amounts
from workbench.design import DESIGNS
from workbench.errors import WorkbenchError
from workbench.plots import common
from workbench.plots.common import INK, MUTED, figure, style
from workbench.plots.palette import NODE_COLOURS
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes

COLOURS = {name: design.colour for name, design in DESIGNS.items()}
MARKERS = {name: design.marker for name, design in DESIGNS.items()}
_ALLOCATOR_COLOURS = {
    "first-fit": "#0072b2",
    "best-fit": "#4a97c9",
    "buddy in ranges": "#009e73",
    "kernel buddy": "#000000",
    "hugetlb 2 MiB": "#d55e00",
    "hugetlb 1 GiB": "#c98500",
}
_ALLOCATOR_LINES = {"best-fit": "--", "kernel buddy": "-", "hugetlb 2 MiB": (0, (4, 2)), "hugetlb 1 GiB": "-."}

MEMORY_PARTS = {
    "metadata_bytes": "all metadata",
    "struct_page_bytes": "struct pages",
    "vmemmap_table_bytes": "vmemmap page tables",
    "page_cache_bytes": "page cache (XArray)",
    "private_map_bytes": "light map",
    "state_tree_bytes": "private/shared state",
    "stage2_table_bytes": "stage-2 tables",
    "handover_bytes": "kexec handover",
}
WORK = {
    "splits": "huge folios split",
    "merges": "huge folios merged",
    "struct_pages_written": "struct pages written",
    "vmemmap_taken_pages": "vmemmap pages allocated",
    "map_operations": "offset -> pfn map changes",
    "invalidations": "invalidations",
}


def _dots(ax: Axes, dataset: xr.Dataset, rows: dict[str, str], size: bool) -> None:
    """One row per variable, one mark per design; a log axis that keeps 0 at its left edge."""
    designs = [str(design) for design in dataset["design"].values]
    for row, (name, _) in enumerate(rows.items()):
        values = dataset[name].values.astype(float)
        ax.plot([max(values.min(), 0.3), max(values.max(), 0.3)], [row, row], color="#d9d9d9", lw=2, zorder=1)
        for k, (design, value) in enumerate(zip(designs, values, strict=True)):
            shift = (k - (len(designs) - 1) / 2) * 0.13
            ax.plot(
                max(value, 0.3), row + shift, MARKERS.get(design, "o"), color=COLOURS.get(design, INK), ms=6.5,
                zorder=2, markerfacecolor="white" if value == 0 else None,
            )  # fmt: skip
    for design in designs:
        ax.plot([], [], MARKERS.get(design, "o"), color=COLOURS.get(design, INK), ms=6.5, label=design)
    common.log_scale(ax, "x", binary=size)
    ax.set_yticks(range(len(rows)), list(rows.values()))
    ax.invert_yaxis()
    ax.grid(axis="x", color="#eeeeee")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    largest = max(float(dataset[name].max()) for name in rows)
    ax.set_xlim(0.2, max(10.0, largest) * 3)


def _title(dataset: xr.Dataset) -> str:
    return (
        f"{format_bytes(dataset.attrs['guest_bytes'])} guest, {dataset.attrs['page_size']} pages, "
        f"{dataset.attrs['operations']:,} operations, confidential: {dataset.attrs['confidential']}"
    )


def _legend(made: Figure, ax: Axes, columns: int = 3) -> None:
    handles, labels = ax.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def memory(dataset: xr.Dataset) -> Figure:
    """Metadata of each design by part, on a log axis; open marks at the left edge are 0."""
    axis = "bytes (log scale; open mark: none). Counted from node sizes."
    return _dot_figure(dataset, MEMORY_PARTS, True, 5.8, axis, "What each design keeps beside the guest's memory")


def work(dataset: xr.Dataset) -> Figure:
    """Operations each design carries out for the same run, on a log axis."""
    axis = "count over the run (log scale; open mark: none). Counted."
    return _dot_figure(dataset, WORK, False, 4.8, axis, "What each design does for the same conversions")


def _dot_figure(dataset: xr.Dataset, parts: dict[str, str], size: bool, height: float, axis: str, title: str) -> Figure:
    made = figure(8.5, height)
    with style():
        ax = made.add_subplot()
        _dots(ax, dataset, parts, size=size)
        ax.set_xlabel(axis)
        ax.set_title(f"{title}\n{_title(dataset)}", loc="left")
        _legend(made, ax)
    return made


def over_run(dataset: xr.Dataset) -> Figure:
    """Struct pages and folios split as the run goes on."""
    made = figure(9, 3.6)
    with style():
        for place, (name, label) in enumerate(
            (("struct_page_bytes_over_run", "struct pages"), ("splits_over_run", "huge folios split so far"))
        ):
            ax = made.add_subplot(1, 2, place + 1)
            for design in dataset["design"].values:
                values = dataset[name].sel(design=design).values.astype(float)
                if name.startswith("splits") and not values.any():
                    continue
                ax.plot(
                    dataset["sample"].values, np.maximum(values, 1), color=COLOURS.get(str(design), INK), lw=1.8,
                    label=str(design), ls=DESIGNS[str(design)].line,
                )  # fmt: skip
            ax.set_xlabel("operations done")
            ax.set_ylabel(label)
            ax.spines[["top", "right"]].set_visible(False)
            if place == 0:
                common.log_scale(ax, "y", binary=True)
                first = ax
            else:
                ax.set_ylim(bottom=0)
        made.suptitle(f"Over the run: {_title(dataset)}", fontsize=9.5, x=0.01, ha="left")
        _legend(made, first)
    return made


WHOLE = {
    "large_share": "memory under 2 MiB and 1 GiB mappings",
    "rmp_entries_2m": "2 MiB entries of the RMP",
    "direct_map_splits": "2 MiB of the direct map split",
    "rmpopt_regions": "1 GiB regions without SNP memory",
}


def whole(dataset: xr.Dataset) -> Figure:
    """What stays whole while an SNP guest converts, of a simulation under several designs: four counts along its calls."""
    if "rmpopt_regions" not in dataset or "design" not in dataset.dims:
        raise WorkbenchError("whole: a simulation of an SNP guest that converts, with designs, has what is drawn")
    made = figure(9, 5.6)
    lines = {name: dataset[name] for name in WHOLE if name in dataset}
    lines["rmpopt_regions"] = dataset["rmpopt_regions"].sum("node")
    lines["large_share"] = dataset["mapping_share"].sel(level=["2 MiB", "1 GiB"]).sum("level")
    with style():
        for place, (name, label) in enumerate(WHOLE.items()):
            ax = made.add_subplot(2, 2, place + 1)
            for k, design in enumerate(dataset["design"].values):
                values = lines[name].sel(design=design).values
                every = slice(k * len(values) // 40, None, max(1, len(values) // 6))
                ax.plot(
                    dataset["event"].values, values, color=COLOURS.get(str(design), INK), lw=1.6, label=str(design),
                    ls=DESIGNS[str(design)].line, marker=MARKERS[str(design)], ms=4.5, markevery=every,
                )  # fmt: skip
            ax.set_title(f"{label} ({dataset[name].basis})" if name in dataset else label, loc="left", fontsize=9)
            ax.set_xlabel("calls")
            ax.set_ylabel("share of memory" if name == "large_share" else "count")
            ax.set_ylim(bottom=0)
            ax.spines[["top", "right"]].set_visible(False)
        _legend(made, ax)
    return made


def mappings(dataset: xr.Dataset, confidential: xr.Dataset) -> Figure:
    """What KVM and a device keep mapped large while a guest converts, by size, and of a TDX guest the PAMT pages of each node.

    Two simulations under several designs: one of a guest that a device maps, on 1 GiB pages; one of a TDX guest on two nodes.
    """
    if "device_leaves" not in dataset or "dynamic_pamt_bytes" not in confidential:
        raise WorkbenchError(
            "mappings: simulations of a guest that a device maps and of a TDX guest have what is drawn"
        )
    made = figure(9.5, 5.6)
    memory = float(amounts.size_of_all_files(dataset).max())
    kept = {level: 100 * dataset["mapping_share"].sel(level=level) for level in ("1 GiB", "2 MiB")}
    device = {
        level: dataset["device_leaves"].sel(level=level) * (100 * (PAGE_SIZE << PAGE_ORDERS[level]) / memory)
        for level in kept
    }
    pamt = confidential["dynamic_pamt_bytes"] / (1 << 20)
    panels = [(f"KVM could map by {level} (% of memory)", kept[level]) for level in kept]
    panels += [(f"the IOMMU maps by {level} (% of memory)", device[level]) for level in device]
    panels += [
        (f"dynamic PAMT on node {int(node)}, TDX (MiB)", pamt.sel(node=node)) for node in pamt["node"].values[:2]
    ]
    with style():
        for number, (label, lines) in enumerate(panels):
            ax = made.add_subplot(2, 3, number // 2 + 1 + 3 * (number % 2))
            for k, design in enumerate(lines["design"].values):
                values = lines.sel(design=design).values
                every = slice(k * len(values) // 40, None, max(1, len(values) // 6))
                ax.plot(
                    np.arange(len(values)), values, color=COLOURS.get(str(design), INK), lw=1.6, label=str(design),
                    ls=DESIGNS[str(design)].line, marker=MARKERS[str(design)], ms=4.5, markevery=every,
                )  # fmt: skip
            ax.set_title(label, loc="left", fontsize=9)
            ax.set_xlabel("calls. Counted.")
            ax.set_ylim(0, 104 if "%" in label else None)
            ax.spines[["top", "right"]].set_visible(False)
        handles = {str(handle.get_label()): handle for axes in made.axes for handle in axes.get_lines()}
        made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return made


def stalls(dataset: xr.Dataset) -> Figure:
    """How long a conversion holds its file, all of a boot, what vCPUs lose by it that fault meanwhile (bands are draws), and the
    free memory of each node that restored struct pages take at their peak."""
    made = figure(9.5, 6.6)
    with style():
        ax, boot, wait, room = (made.add_subplot(2, 2, place) for place in (1, 2, 3, 4))
        share = (np.arange(dataset.sizes["conversion"]) + 1) / dataset.sizes["conversion"]
        for row, design in enumerate(dataset["design"].values):
            colour, one = COLOURS.get(str(design), INK), dataset.sel(design=design)
            times = np.sort(one["stall"].values, axis=1) / 1e3
            ax.fill_betweenx(share, times.min(axis=0), times.max(axis=0), color=colour, alpha=0.07, lw=0)
            ax.plot(times[0], share, color=colour, lw=1.7, ls=DESIGNS[str(design)].line, label=str(design))
            for panel, name in ((boot, "boot_stall"), (wait, "boot_wait")):
                total = one[name].values / 1e6
                panel.plot([total.min(), total.max()], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
                panel.plot(total[0], row, MARKERS.get(str(design), "o"), color=colour, ms=7)
        ax.set_xlabel("one conversion, µs (log scale). Modelled.")
        ax.set_ylabel("share of conversions")
        boot.set_xlabel("all conversions of the boot,\nms (log scale). Modelled.")
        wait.set_xlabel(f"{dataset.attrs['vcpus']} vCPUs wait together,\nms (log scale). Modelled.")
        _headroom(room, dataset)
        for panel in (boot, wait, room):
            panel.set_yticks(range(dataset.sizes["design"]), [str(design) for design in dataset["design"].values])
            panel.invert_yaxis()
        for each in (ax, boot, wait):
            each.set_xscale("log")
        for each in (ax, boot, wait, room):
            each.spines[["top", "right"]].set_visible(False)
        made.suptitle(
            f"Stalls of a {format_bytes(dataset.attrs['guest_bytes'])} guest on {dataset.attrs['page_size']} pages "
            f"({dataset.attrs['confidential']}); bands: all draws{_untimed(dataset)}",
            fontsize=9.5, x=0.01, ha="left",
        )  # fmt: skip
        _legend(made, ax)
    return made


def _untimed(dataset: xr.Dataset) -> str:
    """Which steps are in no time, if any."""
    steps = dataset.attrs["untimed"]
    return f".\nWithout {steps}, of which no time is published" if steps else ""


def boot_stalls(dataset: xr.Dataset) -> Figure:
    """Boots of many guests (:func:`workbench.studies.boot_stalls.boot_stalls`): the share of them that end below a value."""
    made = figure(9.5, 6.6)
    panels = (
        ("longest_stall", 1e6, "longest conversion, ms.\nModelled."),
        ("boot_stall", 1e6, "all conversions of a boot, ms.\nModelled."),
        ("boot_wait", 1e6, "the guest's other vCPUs wait together,\nms. Modelled."),
        ("boot_headroom", 256.0, "free memory that restored struct\npages take at the peak, MiB. Counted."),
    )
    share = (np.arange(dataset.sizes["guest"]) + 1) / dataset.sizes["guest"]
    with style():
        for place, (name, scale, label) in enumerate(panels):
            ax = made.add_subplot(2, 2, place + 1)
            for design in dataset["design"].values:
                colour, values = COLOURS.get(str(design), INK), dataset[name].sel(design=design).values / scale
                first = values
                if values.ndim == 2:
                    ranked = np.sort(values, axis=1)
                    ax.fill_betweenx(share, ranked.min(axis=0), ranked.max(axis=0), color=colour, alpha=0.07, lw=0)
                    first = values[0]
                ax.plot(np.sort(first), share, color=colour, lw=1.7, ls=DESIGNS[str(design)].line, label=str(design))
            if place < 3:
                ax.set_xscale(
                    "symlog" if name == "boot_wait" else "log", **({"linthresh": 0.01} if name == "boot_wait" else {})
                )
            ax.set_xlabel(label)
            ax.spines[["top", "right"]].set_visible(False)
            if place % 2 == 0:
                ax.set_ylabel("share of boots")
        made.suptitle(
            f"Boots of {dataset.sizes['guest']} guests on {dataset.attrs['page_size']} pages "
            f"({dataset.attrs['confidential']}), from {int(dataset['guest_gib'].min())} to "
            f"{int(dataset['guest_gib'].max())} GiB; bands: all draws{_untimed(dataset)}",
            fontsize=9.5, x=0.01, ha="left",
        )  # fmt: skip
        _legend(made, made.axes[0])
    return made


def _headroom(ax: Axes, dataset: xr.Dataset) -> None:
    """Free memory for struct pages at the peak, node by node on one another, with the sum as a word."""
    left = np.zeros(dataset.sizes["design"])
    for number, node in enumerate(dataset["node"].values):
        pages = dataset["headroom"].sel(node=node).values * 4096 / (1 << 20)
        ax.barh(
            range(len(pages)),
            pages,
            left=left,
            color=NODE_COLOURS[number % len(NODE_COLOURS)],
            height=0.6,
            label=f"node {node}",
        )
        left += pages
    for row, total in enumerate(left.tolist()):
        ax.text(total, row, f" {format_bytes(int(total * (1 << 20)))}", va="center", color=INK, fontsize=7)
    ax.set_xlim(0, max(1.0, left.max() * 1.45))
    ax.set_xlabel("free memory that restored struct\npages take at the peak, MiB. Counted.")
    ax.legend(fontsize=7, loc="lower right", frameon=False)


def maps(dataset: xr.Dataset) -> Figure:
    """The light map as each of the four structures: bytes and depth."""
    if "map_bytes" not in dataset:
        raise WorkbenchError("designs: the light map is in results that compare pfn-range")
    made = figure(8.5, 2.8)
    with style():
        names = [str(name) for name in dataset["structure"].values]
        for place, (variable, label) in enumerate((("map_bytes", "bytes"), ("map_depth", "nodes or records touched"))):
            ax = made.add_subplot(1, 2, place + 1)
            values = dataset[variable].values.astype(float)
            ax.barh(names, values, color="#0072b2", height=0.6)
            for row, value in enumerate(values):
                text = format_bytes(value) if place == 0 else f"{value:.0f}"
                ax.text(value, row, f" {text}", va="center", color=INK)
            if place == 0:
                common.log_scale(ax, "x", binary=True)
                ax.set_xlim(100, values.max() * 60)
            else:
                ax.set_xlim(0, values.max() * 1.2)
            ax.set_xlabel(label)
            ax.invert_yaxis()
            ax.spines[["top", "right"]].set_visible(False)
        made.suptitle(
            f"{int(dataset['extents']):,} private extents in four structures: memory, and what a look-up touches",
            fontsize=9.5, x=0.01, ha="left",
        )  # fmt: skip
    return made


def sensitivity(
    dataset: xr.Dataset, variables: Sequence[str] = ("struct_page_peak_bytes", "conversion_cycles")
) -> Figure:
    """Cost of each design over the swept conditions: columns are page sizes, lines are designs.

    ``dataset`` comes from :func:`workbench.designs.compare.sweep`.
    """
    sizes = [str(size) for size in dataset["page_size"].values]
    made = figure(3.4 * len(sizes) + 1.2, 2.7 * len(variables) + 0.6)
    with style():
        first = None
        for row, name in enumerate(variables):
            shared = None
            for column, size in enumerate(sizes):
                ax = made.add_subplot(len(variables), len(sizes), row * len(sizes) + column + 1, sharey=shared)
                shared = shared or ax
                first = first or ax
                part = dataset[name].sel(page_size=size)
                for design in dataset["design"].values:
                    line = part.sel(design=design)
                    middle = line.isel(draw=0) if "draw" in line.dims else line
                    ax.plot(
                        dataset["conversions"].values, np.maximum(middle.values.astype(float), 1),
                        marker=MARKERS.get(str(design), "o"), ms=4.5, lw=1.6, color=COLOURS.get(str(design), INK),
                        label=str(design),
                    )  # fmt: skip
                    if "draw" in line.dims:
                        low, high = line.min("draw").values, line.max("draw").values
                        ax.fill_between(
                            dataset["conversions"].values, np.maximum(low, 1), np.maximum(high, 1), alpha=0.15,
                            color=COLOURS.get(str(design), INK), lw=0,
                        )  # fmt: skip
                common.log_scale(ax, "x")
                common.log_scale(ax, "y", binary=name.endswith("bytes"))
                if row == 0:
                    ax.set_title(f"{size} pages", loc="left")
                if row == len(variables) - 1:
                    ax.set_xlabel("conversions in the run")
                if column == 0:
                    basis = dataset[name].attrs["basis"]
                    ax.set_ylabel(f"{dataset[name].attrs['long_name']}\n({dataset[name].attrs['units']}, {basis})")
                else:
                    ax.tick_params(labelleft=False)
                ax.grid(color="#eeeeee")
                ax.spines[["top", "right"]].set_visible(False)
        assert first is not None
        _legend(made, first)
    return made


def turning_points(dataset: xr.Dataset, cases: Sequence[str]) -> Figure:
    """All metadata over the share of memory that is shared: rows are lengths of its runs, columns are cases.

    ``dataset`` comes from :func:`workbench.designs.sweeps.sharing`.
    """
    runs = dataset["run"].values
    made = figure(3.1 * len(cases) + 0.8, 2.2 * len(runs) + 0.8)
    with style():
        panels = made.subplots(len(runs), len(cases), sharex=True, sharey=True, squeeze=False)
        for row, length in enumerate(runs):
            for ax, case in zip(panels[row], cases, strict=True):
                for design in dataset["design"].values:
                    values = dataset["metadata_bytes"].sel(case=case, run=length, design=design).values
                    ax.plot(
                        100 * dataset["share"].values, values, marker=MARKERS[str(design)], ms=4, lw=1.6,
                        color=COLOURS[str(design)], label=str(design), ls=DESIGNS[str(design)].line,
                    )  # fmt: skip
                common.log_scale(ax, "x")
                ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                common.log_scale(ax, "y", binary=True)
                ax.grid(color="#eeeeee")
                ax.spines[["top", "right"]].set_visible(False)
                if row == 0:
                    ax.set_title(case.replace(", free", ",\nfree"), loc="left", fontsize=9)
            panels[row][0].set_ylabel(f"runs of {format_bytes(int(length))}:\nmetadata per GiB (counted)")
        for ax in panels[-1]:
            ax.set_xlabel("memory shared (%)")
        made.suptitle("All metadata over the share of memory that is shared", fontsize=9.5, x=0.01, ha="left")
        _legend(made, panels[0][0])
    return made


def structures(dataset: xr.Dataset) -> Figure:
    """Bytes, nodes touched and time of a look-up over the number of extents (:func:`design_sweeps.structures`)."""
    colours = {"maple": "#0072b2", "ranges": "#009e73", "flat": "#d376a0", "page cache": COLOURS["filemap"]}
    made = figure(9.5, 3.2)
    with style():
        panels = made.subplots(1, 3)
        for ax, (name, label) in zip(
            panels,
            (("map_bytes", "size (counted)"), ("map_depth", "nodes touched (counted)"),
             ("lookup_time", "ns per look-up (measured)")),
            strict=True,
        ):  # fmt: skip
            for structure, colour in colours.items():
                line = dataset[name].sel(structure=structure)
                ax.plot(dataset["extents"].values, line.values, marker="o", ms=4, color=colour, label=structure)
            common.log_scale(ax, "x")
            if name != "map_depth":
                common.log_scale(ax, "y", binary=name == "map_bytes")
            if name != "map_bytes":
                ax.set_ylim(bottom=0.5)
            ax.set_xlabel("extents of the map")
            ax.set_ylabel(label)
            ax.grid(color="#eeeeee")
            ax.spines[["top", "right"]].set_visible(False)
        size = format_bytes(dataset.attrs["guest_bytes"])
        made.suptitle(f"The map of {size} as it is cut into more extents", fontsize=9.5, x=0.01, ha="left")
        _legend(made, panels[0])
    return made


def churn(dataset: xr.Dataset) -> Figure:
    """Four measures of the allocators of :func:`workbench.studies.vm_churn.serve` while machines arrive and leave."""
    made = figure(9.5, 6.2)
    panels = (
        ("largest_free_pages", "Largest block that can be handed out", 4096.0),
        ("unusable_1gib", "Free memory that cannot serve 1 GiB (%)", 100.0),
        ("extents_per_machine", "Contiguous extents per machine", 1.0),
        ("mappable_1gib", "Machines' memory that 1 GiB mappings can cover (%)", 100.0),
    )
    with style():
        days = dataset["day"].values
        for place, (name, label, scale) in enumerate(panels):
            ax = made.add_subplot(2, 2, place + 1)
            for number, allocator in enumerate(dataset["allocator"].values):
                ax.plot(
                    days, dataset[name].sel(allocator=allocator).values * scale, lw=1.6,
                    color=_ALLOCATOR_COLOURS.get(str(allocator), INK), label=str(allocator),
                    ls=_ALLOCATOR_LINES.get(str(allocator), "-"), zorder=2 + number,
                )  # fmt: skip
            ax.set_title(label, loc="left")
            if scale == 100.0:
                ax.set_ylim(-4, 104)
            else:
                common.log_scale(ax, "y", binary=name == "largest_free_pages")
            ax.set_xlim(0, days[-1])
            if place >= 2:
                ax.set_xlabel("days")
            ax.grid(axis="y", color="#eeeeee")
            ax.spines[["top", "right"]].set_visible(False)
        made.suptitle(
            f"{int(dataset['arrivals'][0]):,} machines arrive at {format_bytes(dataset.attrs['host_bytes'])} on "
            f"{dataset.attrs['nodes']} nodes and leave: how each way of handing out memory fares",
            fontsize=9.5, x=0.01, ha="left", color=MUTED,
        )  # fmt: skip
        _legend(made, ax, 3)
    return made


def fragmentation(dataset: xr.Dataset) -> Figure:
    """What small allocations of the kernel leave whole over weeks, and what comes back where guests may move."""
    made = figure(9.5, 3.6)
    days, shares = dataset["day"].values, dataset["background"].values
    colours = NODE_COLOURS[: len(shares)]
    with style():
        left, right = made.add_subplot(1, 2, 1), made.add_subplot(1, 2, 2)
        for share, colour in zip(shares, colours, strict=False):
            one = dataset.sel(background=share)
            left.plot(days, 100 - 100 * one["mappable_2mib"].values, color=colour, lw=1.6, label=f"{100 * share:g} %")
            left.plot(days, 100 - 100 * one["mappable_collapsed"].values, color=colour, lw=1.2, ls=":")
        left.set_title("Guests' memory that is not in 2 MiB folios (%)", loc="left")
        title = "held by the kernel; dotted: after khugepaged,\nif guests may move"
        left.legend(title=title, fontsize=7, title_fontsize=7)
        left.set_ylim(top=max(1.0, 120 - 120 * float(dataset["mappable_2mib"].min())))
        worst = dataset.isel(background=-1)
        for name, label, colour, line in (
            ("areas_free", "free as they are", "#6e6e6e", "-"),
            ("areas_scanned", "after compact_memory, if guests may move", "#d55e00", (0, (3, 5))),
            ("areas_compacted", "emptied when asked for, if guests may move", "#0072b2", "-"),
            ("areas_packed", "if everything moved", "#0072b2", ":"),
        ):
            right.plot(days, worst[name].values, color=colour, ls=line, lw=1.6, label=label)
        right.set_title(f"1 GiB areas with {100 * shares[-1]:g} % held by the kernel", loc="left")
        right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        for ax in (left, right):
            ax.set_xlim(0, days[-1])
            ax.set_ylim(bottom=0)
            ax.set_xlabel("days. Counted; the kernel's share is assumed.")
            ax.grid(axis="y", color="#eeeeee")
            ax.spines[["top", "right"]].set_visible(False)
    return made


def snp_regions(dataset: xr.Dataset) -> Figure:
    """Regions free of SNP memory on hosts that mix SNP and other machines: over days, and node by node late in the run."""
    made = figure(9.5, 6.4)
    total = dataset.attrs["host_bytes"] >> 30
    late = dataset.isel(sample=slice(dataset.sizes["sample"] // 2, None)).mean("sample")
    with style():
        for column, way in enumerate(dataset["way"].values):
            over, nodes = made.add_subplot(2, 2, column + 1), made.add_subplot(2, 2, column + 3)
            for k, allocator in enumerate(dataset["allocator"].values):
                one = dataset.sel(allocator=allocator, way=way)
                colour = _ALLOCATOR_COLOURS.get(str(allocator), INK)
                line = _ALLOCATOR_LINES.get(str(allocator), "-")
                over.plot(
                    dataset["day"].values, 100 / total * one["regions_without_snp"].sum("node").values, lw=1.6, color=colour,
                    ls=line, label=str(allocator), zorder=3 + k,
                )  # fmt: skip
                nodes.plot(
                    dataset["node"].values, late["regions_without_snp"].sel(allocator=allocator, way=way).values,
                    marker="o", ms=4, lw=1, color=colour, ls=line, zorder=3 + k,
                )  # fmt: skip
            packed = total - dataset["regions_needed"].sel(way=way).isel(allocator=0).sum("node").values
            over.plot(dataset["day"].values, 100 / total * packed, lw=1, color=MUTED, ls=":", label="if packed")
            over.set_title(f"SNP machines start: {way}", loc="left")
            over.set_ylabel("regions without SNP memory (%)" if column == 0 else "")
            over.set_ylim(0, 104)
            over.set_xlabel("days")
            nodes.set_xlabel("NUMA node")
            nodes.set_ylabel("GiB on the node, second half" if column == 0 else "")
            nodes.set_xticks(dataset["node"].values)
            nodes.set_ylim(0, 1.04 * total / dataset.sizes["node"])
            for ax in (over, nodes):
                ax.grid(axis="y", color="#eeeeee")
                ax.spines[["top", "right"]].set_visible(False)
        made.suptitle(
            f"{format_bytes(dataset.attrs['host_bytes'])} on {dataset.attrs['nodes']} nodes, "
            f"{dataset.attrs['snp_share']:.0%} of the machines are SNP guests: 1 GiB regions whose RMP checks can be skipped. "
            "Counted.",
            fontsize=9.5, x=0.01, ha="left", color=MUTED,
        )  # fmt: skip
        _legend(made, over, 4)
    return made


def device_users(dataset: xr.Dataset) -> Figure:
    """What a device that maps guest memory costs: conversions refused, and notices to KVM and the IOMMU, by design."""
    made = figure(9.5, 3.6)
    rows = np.arange(dataset.sizes["design"])
    designs = [str(name) for name in dataset["design"].values]
    with style():
        for place, way in enumerate(dataset["way"].values):
            ax, one = made.add_subplot(1, dataset.sizes["way"], place + 1), dataset.sel(way=way)
            bars = (
                ("conversions refused", one["refused"].values, "#d55e00"),
                ("KVM told", one["told"].sel(user="kvm").values, MUTED),
                ("IOMMU told", one["told"].sel(user="iommu").values, "#0072b2"),
            )
            for k, (label, values, colour) in enumerate(bars):
                ax.barh(rows + 0.27 * (k - 1), values, 0.25, color=colour, label=label)
            ax.set_yticks(rows, designs if place == 0 else [""] * len(designs))
            for row, pages in enumerate(one["device_mapped_pages"].values.tolist()):
                if not pages:
                    ax.annotate("device: EFAULT", (0, row - 0.42), xytext=(3, 0), textcoords="offset points", fontsize=7,
                                color=MUTED, va="center")  # fmt: skip
            ax.invert_yaxis()
            ax.set_title(str(way), loc="left", fontsize=9)
            ax.set_xlabel("calls. Counted.")
            ax.spines[["top", "right"]].set_visible(False)
        made.suptitle(
            f"What the device maps of {format_bytes(dataset.attrs['guest_bytes'])}, and what that does to conversions of 64 KiB",
            fontsize=9.5, x=0.01, ha="left", color=MUTED,
        )  # fmt: skip
        _legend(made, ax, 3)
    return made


def migration(dataset: xr.Dataset) -> Figure:
    """Where a guest's memory lies after it was asked to come to the guest's node: guest_memfd of two kernels beside tmpfs."""
    made = figure(9, 2.9)
    rows = np.arange(dataset.sizes["call"])
    colours = dict(zip(dataset["backing"].values, ("#6e6e6e", "#0072b2", "#e69f00"), strict=True))
    with style():
        for place, touched in enumerate(dataset["touched"].values):
            ax, one = made.add_subplot(1, 2, place + 1), dataset.sel(touched=touched)
            for k, (backing, colour) in enumerate(colours.items()):
                values = 100 * one["local_share"].sel(backing=backing).values
                ax.barh(rows + 0.27 * (k - 1), values, 0.25, color=colour, label=str(backing))
                for row, value in zip(rows, values, strict=True):
                    ax.annotate(f"{value:.0f}", (value, row + 0.27 * (k - 1)), xytext=(3, 0), textcoords="offset points",
                                fontsize=7, va="center")  # fmt: skip
            ax.set_yticks(rows, [str(call) for call in dataset["call"].values] if place == 0 else [""] * len(rows))
            ax.invert_yaxis()
            ax.set_xlim(0, 110)
            ax.set_title(f"first touched by the {touched}", loc="left")
            ax.set_xlabel("memory on the guest's own node\nafterwards (%). Exact.")
            ax.spines[["top", "right"]].set_visible(False)
        _legend(made, ax, 3)
    return made

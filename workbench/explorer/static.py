"""The explorer without JavaScript: its picture and table, for reports and for readers without a kernel."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np

from workbench.explorer import pictures
from workbench.explorer.controller import Run
from workbench.units import format_bytes

_TABLE_STYLE = (
    "<style>.wb-table{border-collapse:collapse;font:12px system-ui,sans-serif;margin:4px 0 8px}"
    ".wb-table th,.wb-table td{border-bottom:1px solid #bbb;padding:2px 8px;text-align:left}"
    ".wb-numbers td{text-align:right}</style>"
)


def picture(run: Run, pinned: Run | None = None) -> bytes:
    """PNG: the address space by node (A above B when a run is pinned) and memory on each node against capacity."""
    from matplotlib.figure import Figure

    pairs = [("A", pinned), ("B", run)] if pinned else [("", run)]
    shown = pictures.nodes(run.dataset, *([pinned.dataset] if pinned else []))
    ids, palette = [node["id"] for node in shown], [node["color"] for node in shown]
    figure = Figure(figsize=(9, 3.4 + 0.7 * (len(pairs) - 1)), dpi=110, layout="constrained")
    axes = figure.subplots(len(pairs) + 1, 1, height_ratios=[*[0.8] * len(pairs), 1.6])
    for axis, (name, each) in zip(axes, pairs, strict=False):
        _strip(axis, each, ids, palette)
        axis.set_title(
            f"{name + ': ' if name else ''}{each.scenario.name}: address space by node", fontsize=9, loc="left"
        )
    axes[len(pairs) - 1].set_xlabel("offset in the guest's memory")
    _bars(axes[-1], run, pinned, palette)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _strip(axis: Any, run: Run, ids: list[int], palette: list[str]) -> None:
    from matplotlib.ticker import FuncFormatter

    file = pictures.guest_file(run.dataset)
    axis.set_yticks([])
    if file is None:
        return
    total = int(run.dataset["file_pages"].sel(file=file)) * int(run.dataset["page_size"])
    share = pictures.shares(run.dataset, ids, 0, total, 300).astype(float) / 255
    edges = np.linspace(0, total, len(share) + 1)
    low = np.zeros(len(share))
    for column, colour in enumerate(palette):
        high = low + share[:, column]
        if share[:, column].any():
            axis.stairs(high, edges, baseline=low, fill=True, color=colour, linewidth=0.3)
        low = high
    axis.set(xlim=(0, total), ylim=(0, 1))
    axis.set_xticks(np.linspace(0, total, 5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axis.tick_params(labelsize=8)


def _bars(axis: Any, run: Run, pinned: Run | None, palette: list[str]) -> None:
    data = pictures.host(run, pinned, 0)["nodes"]
    place, gib = np.arange(len(data)), float(1 << 30)
    axis.bar(place, [n["memory"] / gib for n in data], 0.8, fill=False, edgecolor="#777", label="capacity")
    other = np.array([min(n["other"], n["memory"]) for n in data]) / gib
    axis.bar(place, other, 0.8, color="#c8c8c8", label="other use and reserves")
    colours = [n["color"] for n in data]
    if pinned:
        axis.bar(
            place - 0.2, [n["guest_a"] / gib for n in data], 0.4, other, color=colours, alpha=0.4, label="guest, A"
        )
    width, shift = (0.4, 0.2) if pinned else (0.8, 0.0)
    axis.bar(
        place + shift,
        [n["guest"] / gib for n in data],
        width,
        other,
        color=colours,
        label="guest, B" if pinned else "guest",
    )
    every = max(1, len(data) // 24)
    axis.set_xticks(place[::every], [str(n["id"]) for n in data][::every], fontsize=8)
    axis.set(xlabel="NUMA node", ylabel="memory (GiB)")
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _body(run: Run | None, pinned: Run | None) -> tuple[str, bytes]:
    if run is None:
        return "<p>The explorer has no result yet.</p>", b""
    png = picture(run, pinned)
    text = html.escape(f"{run.scenario.name}. {pictures.summary(run.dataset)}")
    table = pictures.nodes_table(run, pinned) + (pictures.differences(run, pinned) if pinned else "")
    image = f'<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return f"{_TABLE_STYLE}<figure style='margin:0'>{image}<figcaption>{text}</figcaption></figure>{table}", png


def bundle(run: Run | None, pinned: Run | None = None) -> dict[str, Any]:
    """MIME types that stand in for the live widget: text/html, image/png, text/plain."""
    body, png = _body(run, pinned)
    plain = "Explorer" if run is None else f"Explorer({run.scenario.name!r}): {pictures.summary(run.dataset)}"
    data: dict[str, Any] = {"text/plain": plain, "text/html": body}
    if png:
        data["image/png"] = base64.b64encode(png).decode()
    return data


def page(run: Run | None, pinned: Run | None = None) -> str:
    """A page that opens without a network: picture, table, calls and the scenario."""
    body, _ = _body(run, pinned)
    calls = scenario = ""
    name = "explorer"
    if run is not None:
        name = html.escape(run.scenario.name)
        calls = f"<h2>Calls</h2>{pictures.events_table(run.dataset)}"
        scenario = f"<h2>Scenario</h2><pre>{html.escape(run.scenario.to_yaml())}</pre>"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title></head>'
        "<body style='font-family:system-ui,sans-serif;max-width:980px;margin:2em auto'>"
        f"<h1>{name}</h1>{body}{calls}{scenario}</body></html>"
    )

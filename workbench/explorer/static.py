"""The explorer without JavaScript: its picture (SVG) and table, for reports and for readers without a kernel.

Drawn as text, because a plotting library would take longer to import than the whole first display may take.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from workbench.explorer import pictures
from workbench.explorer.controller import ShownRun
from workbench.plots.palette import METADATA_COLOUR
from workbench.units import format_bytes

_STYLE = (
    "<style>.wb-static{max-width:900px;font:12px system-ui,sans-serif}.wb-static svg{width:100%;height:auto}"
    ".wb-static text{font:11px system-ui,sans-serif;fill:currentColor}"
    ".wb-table{border-collapse:collapse;margin:4px 0 8px}"
    ".wb-table th,.wb-table td{border-bottom:1px solid #bbb;padding:2px 8px;text-align:left}"
    ".wb-numbers td{text-align:right}</style>"
)
_WIDTH, _LEFT, _STRIP, _BARS = 900, 70, 44, 150


def picture(run: ShownRun, pinned: ShownRun | None = None) -> str:
    """SVG: the address space by node (A above B when a run is pinned) and memory on each node against capacity."""
    pairs = [("A", pinned), ("B", run)] if pinned else [("", run)]
    shown = pictures.nodes(run.dataset, *([pinned.dataset] if pinned else []))
    parts: list[str] = []
    y = 18
    for name, each in pairs:
        parts.append(_text(_LEFT, y - 5, f"{name + ': ' if name else ''}{each.scenario.name}: address space by node"))
        parts += _strip(each, shown, y)
        y += _STRIP + 22
    total = pictures.guest_total(run.dataset)
    for i in range(5):
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        parts.append(_text(_LEFT + i * (_WIDTH - _LEFT - 10) / 4, y - 8, format_bytes(total * i / 4), anchor))
    parts += _bars(pictures.host(run, pinned, 0)["nodes"], y + 22, pinned is not None)
    height = y + _BARS + 60
    label = html.escape(f"{run.scenario.name}. {pictures.summary(run.dataset)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{max(0, height):.2f}" fill="{fill}"{more}/>'


def _strip(run: ShownRun, shown: Sequence[dict[str, Any]], y: float) -> list[str]:
    inner = _WIDTH - _LEFT - 10
    parts = [_rect(_LEFT, y, inner, _STRIP, "#e8e8e8")]
    total = pictures.guest_total(run.dataset)
    columns = pictures.shares(run.dataset, [node["id"] for node in shown], 0, total, 200)
    if not len(columns):
        return parts
    # Equal columns beside each other are one rectangle for each node.
    first = 0
    for column in range(1, len(columns) + 1):
        if column < len(columns) and (columns[column] == columns[first]).all():
            continue
        x, width = _LEFT + inner * first / len(columns), inner * (column - first) / len(columns)
        top = y
        for share, node in zip(columns[first], shown, strict=False):
            if share:
                height = _STRIP * int(share) / 255
                parts.append(_rect(x, top, width + 0.3, height + 0.3, node["color"]))
                top += height
        first = column
    return parts


def _bars(nodes: Sequence[dict[str, Any]], y: float, compare: bool) -> list[str]:
    largest = max(1, *(node["memory"] for node in nodes))
    step = (_WIDTH - _LEFT - 10) / len(nodes)
    parts = [
        _text(
            _LEFT,
            y - 6,
            "memory on each node; outline: capacity, grey: other use and reserves, colour: the guest, red: its metadata",
        )
    ]
    parts += [_text(_LEFT - 6, y + _BARS * (1 - i / 2) + 4, format_bytes(largest * i / 2), "end") for i in range(3)]
    every = max(1, len(nodes) // 32)

    def bar(x: float, width: float, low: float, amount: float, fill: str, more: str = "") -> str:
        height = _BARS * amount / largest
        return _rect(x, y + _BARS * (1 - low / largest) - height, width, height, fill, more)

    for i, node in enumerate(nodes):
        x, width = _LEFT + (i + 0.1) * step, 0.8 * step
        other = min(node["other"], node["memory"])
        parts.append(bar(x, width, 0, node["memory"], "none", ' stroke="#777"'))
        parts.append(bar(x, width, 0, other, "#c0c0c0"))
        if compare:
            parts.append(bar(x, width / 2, other, node["guest_a"], node["color"], ' opacity="0.45"'))
        half = width / 2 if compare else 0
        parts.append(bar(x + half, width - half, other, node["guest"], node["color"]))
        if node["metadata"]:
            beside = max(node["metadata"], 2 * largest // _BARS)  # two points at least
            parts.append(bar(x + half, width - half, other + node["guest"], beside, METADATA_COLOUR))
        if i % every == 0:
            parts.append(_text(x + width / 2, y + _BARS + 14, str(node["id"]), "middle"))
    parts.append(_text(_LEFT + (_WIDTH - _LEFT) / 2, y + _BARS + 30, "NUMA node", "middle"))
    return parts


def body(run: ShownRun | None, pinned: ShownRun | None = None) -> str:
    """Picture and table as an HTML fragment."""
    if run is None:
        return '<p class="wb-static">The explorer has no result yet.</p>'
    caption = html.escape(f"{run.scenario.name}. {pictures.summary(run.dataset)}")
    table = pictures.nodes_table(run, pinned) + (pictures.differences(run, pinned) if pinned else "")
    figure = f'<figure style="margin:0">{picture(run, pinned)}<figcaption>{caption}</figcaption></figure>'
    return f'{_STYLE}<div class="wb-static">{figure}{table}</div>'


def bundle(run: ShownRun | None, pinned: ShownRun | None = None) -> dict[str, Any]:
    """MIME types that stand in for the live widget."""
    plain = "Explorer" if run is None else f"Explorer({run.scenario.name!r}): {pictures.summary(run.dataset)}"
    return {"text/plain": plain, "text/html": body(run, pinned)}


def page(run: ShownRun | None, pinned: ShownRun | None = None) -> str:
    """A page that opens without a network: picture, table, calls and the scenario."""
    calls = scenario = ""
    name = "explorer"
    if run is not None:
        name = html.escape(run.scenario.name)
        calls = f"<h2>Calls</h2>{pictures.events_table(run.dataset)}"
        scenario = f"<h2>Scenario</h2><pre>{html.escape(run.scenario.to_yaml())}</pre>"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title></head>'
        "<body style='font-family:system-ui,sans-serif;max-width:980px;margin:2em auto'>"
        f"<h1>{name}</h1>{body(run, pinned)}{calls}{scenario}</body></html>"
    )

"""What a paper or a mail takes from the explorer: its figures as SVG, PDF or PNG, its tables as CSV.

Figures are drawn anew by the plots that reports use, so that they have axes, units and a note of what they rest on.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench import amounts
from workbench.errors import WorkbenchError
from workbench.explorer import pictures
from workbench.explorer.controller import ShownRun

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

FORMATS: dict[str, dict[str, Any]] = {"svg": {}, "pdf": {}, "png": {"dpi": 300}}
"""Formats of figures, and what matplotlib is told for each."""


def _map(dataset: xr.Dataset) -> Figure:
    from workbench.plots import placement

    return placement.placement_map(dataset)


def _nodes(dataset: xr.Dataset) -> Figure:
    from workbench.plots import placement

    return placement.pages_per_node(dataset)


def _vcpus(dataset: xr.Dataset) -> Figure:
    from workbench.plots import placement

    return placement.local_remote(dataset)


def _time(dataset: xr.Dataset) -> Figure:
    from workbench.plots import placement

    return placement.fallback(dataset)


def _topology(dataset: xr.Dataset) -> Figure:
    from workbench.plots import topology

    return topology.topology(dataset)


def _compare(dataset: xr.Dataset, pinned: xr.Dataset) -> Figure:
    from workbench.plots import placement

    return placement.compare({"A (pinned)": pinned, "B": dataset})


COMPARE = "Compare"
"""The view of the pinned run beside the present one: a figure of two Datasets, which :data:`FIGURES` are not."""
FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "address space": _map,
    "Nodes": _nodes,
    "vCPUs": _vcpus,
    "Over time": _time,
    "host": _topology,
}
"""Figures of one run by the name of the view that shows the same."""
NAMES = (*FIGURES, COMPARE)
"""All figures that can be asked for."""


def figure(run: ShownRun, name: str, kind: str, pinned: ShownRun | None = None) -> bytes:
    """The file of a figure of :data:`NAMES` in a format of :data:`FORMATS`."""
    if name not in NAMES or kind not in FORMATS:
        raise WorkbenchError(f"figure: {name!r} as {kind!r}; there are {', '.join(NAMES)} as {', '.join(FORMATS)}")
    from workbench.plots import common

    buffer = io.BytesIO()
    with common.style():
        made = _compare(run.dataset, _a(pinned).dataset) if name == COMPARE else FIGURES[name](run.dataset)
        made.savefig(buffer, format=kind, bbox_inches="tight", **FORMATS[kind])
    return buffer.getvalue()


def _a(pinned: ShownRun | None) -> ShownRun:
    if pinned is None:
        raise WorkbenchError(f"{COMPARE}: pin a run as A first")
    return pinned


def table(run: ShownRun, name: str, pinned: ShownRun | None = None, pattern: str = "streaming") -> bytes:
    """The numbers behind a view as CSV, sizes in bytes: nodes, vCPUs, free memory over time, the calls, or A and B."""
    if name == COMPARE:
        frame = _compare_frame(run, _a(pinned), pattern)
    elif name == "vCPUs":
        frame = _vcpu_frame(run, pattern)
    elif name == "Over time":
        frame = _time_frame(run.dataset)
    elif name == "Calls":
        from workbench.plots import placement

        frame = placement.events(run.dataset)
    else:
        frame = _node_frame(run, pinned)
    return frame.to_csv().encode()


def _node_frame(run: ShownRun, pinned: ShownRun | None) -> pd.DataFrame:
    import pandas as pd

    dataset = run.dataset
    now, free = pictures.guest_bytes(dataset), pictures.free_bytes(dataset)
    columns: dict[str, Any] = {
        "kind": dict(zip(now, dataset["node_kind"].values.tolist(), strict=True)),
        "memory (B)": dict(zip(now, dataset["node_memory"].values.tolist(), strict=True)),
        "guest (B)": now,
        "free (B)": free,
    }
    if pinned is not None:
        columns["guest in A (B)"] = pictures.guest_bytes(pinned.dataset)
    return pd.DataFrame(columns).rename_axis("node")


def _vcpu_frame(run: ShownRun, pattern: str) -> pd.DataFrame:
    import pandas as pd

    dataset = run.dataset
    costs = pictures.costs(run, pattern)
    frame = pd.DataFrame(
        {
            "node": dataset["vcpu_node"].values,
            "local share": dataset["local_share"].values,
            "mean distance": dataset["mean_distance"].values,
        },
        index=pd.Index(dataset["vcpu"].values.astype(str), name="vcpu"),
    )
    for name, what in (("latency", "latency (ns"), ("bandwidth", "bandwidth of all vCPUs on the node (MB/s")):
        for end, which in (("value", ""), ("low", ", 5 % of draws below"), ("high", ", 5 % of draws above")):
            column = {node: getattr(getattr(cost, name), end) for node, cost in costs.items()}
            frame[f"{what}, modelled, {pattern}{which})"] = frame["node"].map(column)
    return frame


def _time_frame(dataset: xr.Dataset) -> pd.DataFrame:
    import pandas as pd

    columns = [f"free on node {int(node)} (B)" for node in dataset["node"].values]
    frame = pd.DataFrame(amounts.free_bytes(dataset), columns=columns).rename_axis("operation")
    frame.insert(0, "call", dataset["event_op"].values.astype(str))
    return frame


def _compare_frame(run: ShownRun, pinned: ShownRun, pattern: str) -> pd.DataFrame:
    """What the view says of A and B, number by number; settings that differ come last, as text."""
    import pandas as pd

    both = (pinned, run)
    rows: list[tuple[Any, ...]] = []  # quantity, unit, basis, A, B
    amount = [pictures.guest_bytes(each.dataset) for each in both]
    for node in sorted({*amount[0], *amount[1]}):
        rows.append((f"guest on node {node}", "B", "exact", *(each.get(node, 0) for each in amount)))
    for name, what in (("local_share", "local share, mean over vCPUs"), ("mean_distance", "mean distance")):
        rows.append((what, "1", "exact", *(pictures.mean(each, name) for each in both)))
    paid = [pictures.present_costs(each, pattern) for each in both]
    for what, unit in (("latency", "ns"), ("bandwidth", "MB/s")):
        for node in sorted({*paid[0], *paid[1]}):
            for end, which in (("value", ""), ("low", ", 5 % of draws below"), ("high", ", 5 % of draws above")):
                heading = f"{what} of the vCPUs on node {node}, {pattern}{which}"
                both_ends = (getattr(getattr(each[node], what), end) if node in each else None for each in paid)
                rows.append((heading, unit, "modelled", *both_ends))
    records = [(*row, None if None in row else row[4] - row[3]) for row in rows]
    records += [(path, "", "setting", old, new, None) for path, old, new in pictures.changed_settings(pinned, run)]
    columns = ["quantity", "unit", "basis", "A", "B", "B - A"]
    return pd.DataFrame(records, columns=columns, dtype=object).set_index("quantity")

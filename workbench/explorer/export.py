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


FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "address space": _map,
    "Nodes": _nodes,
    "vCPUs": _vcpus,
    "Over time": _time,
    "host": _topology,
}
"""Figures by the name of the view that shows the same."""


def figure(run: ShownRun, name: str, kind: str) -> bytes:
    """The file of a figure of :data:`FIGURES` in a format of :data:`FORMATS`."""
    if name not in FIGURES or kind not in FORMATS:
        raise WorkbenchError(f"figure: {name!r} as {kind!r}; there are {', '.join(FIGURES)} as {', '.join(FORMATS)}")
    from workbench.plots import common

    buffer = io.BytesIO()
    with common.style():
        FIGURES[name](run.dataset).savefig(buffer, format=kind, bbox_inches="tight", **FORMATS[kind])
    return buffer.getvalue()


def table(run: ShownRun, name: str, pinned: ShownRun | None = None, pattern: str = "streaming") -> bytes:
    """The numbers behind a view as CSV, sizes in bytes: nodes, vCPUs, free memory over time, or the calls."""
    if name == "vCPUs":
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
    latency, bandwidth = ({node: pair[k] for node, pair in costs.items()} for k in (0, 1))
    frame = pd.DataFrame(
        {
            "node": dataset["vcpu_node"].values,
            "local share": dataset["local_share"].values,
            "mean distance": dataset["mean_distance"].values,
        },
        index=pd.Index(dataset["vcpu"].values.astype(str), name="vcpu"),
    )
    frame[f"latency (ns, modelled, {pattern})"] = frame["node"].map(latency)
    frame[f"bandwidth of all vCPUs on the node (MB/s, modelled, {pattern})"] = frame["node"].map(bandwidth)
    return frame


def _time_frame(dataset: xr.Dataset) -> pd.DataFrame:
    import pandas as pd

    columns = [f"free on node {int(node)} (B)" for node in dataset["node"].values]
    frame = pd.DataFrame(amounts.free_bytes(dataset), columns=columns).rename_axis("operation")
    frame.insert(0, "call", dataset["event_op"].values.astype(str))
    return frame

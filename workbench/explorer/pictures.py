"""From a run to the plain data that the views draw: nothing here knows a widget, everything is read from Datasets.

Shares of nodes are bytes (255 = all pages of a column), so that a change costs kilobytes on the wire, not megabytes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import xarray as xr

from workbench import amounts, results
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.explorer.controller import ShownRun
from workbench.explorer.edits import SIZES, policy_nodes
from workbench.intervals import equal_intervals
from workbench.plots.palette import node_colours
from workbench.scenario import Create, Scenario
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.units import PAGE_SIZE, exact_bytes, format_bytes, parse_bytes

COLUMNS = 400
"""Columns of the address space at most."""
STATE_COLOURS = {
    "private": ("#4b3f72", "#ffffff"),
    "shared": ("#b8ad6e", "#222222"),
    "4 KiB": ("#9aa5b1", "#222222"),
    "2 MiB": ("#5f7182", "#ffffff"),
    "1 GiB": ("#2f4050", "#ffffff"),
}


def colours(ids: Sequence[int], *datasets: xr.Dataset) -> list[str]:
    """A colour for each node, from the first dataset that has all of them."""
    for dataset in datasets:
        if list(ids) == [int(node) for node in dataset.variables["node"].values]:
            return node_colours(dataset.variables["distance"].values, dataset.variables["node_cpus"].values)
    return node_colours(np.full((len(ids), len(ids)), 20))


def guest_file(dataset: xr.Dataset) -> str | None:
    """The guest's file, or the first one, or None when nothing was created."""
    names = [str(name) for name in dataset.variables["file"].values]
    return "guest" if "guest" in names else names[0] if names else None


def _folios(dataset: xr.Dataset, file: str) -> int:
    """Of a file. Read past xarray, as all pictures are: one ``sel`` takes as long as all that a picture reads so."""
    return int(dataset.variables["file_pages"].values[dataset.variables["file"].values.tolist().index(file)])


def guest_total(dataset: xr.Dataset) -> int:
    """Bytes of the guest's file; 1 when there is none."""
    file = guest_file(dataset)
    return 1 if file is None else _folios(dataset, file) * int(dataset.variables["page_size"])


def node_ids(*datasets: xr.Dataset) -> list[int]:
    """Node ids of all datasets together, ascending."""
    return sorted({int(node) for dataset in datasets for node in dataset.variables["node"].values})


def _edges(start: int, stop: int, folio: int, folios: int, columns: int) -> npt.NDArray[np.int64]:
    first, last = start // folio, min(folios, -(-stop // folio))
    last = max(last, first + 1)
    return np.unique(np.linspace(first, last, min(columns, last - first) + 1).round().astype(np.int64))


def shares(
    dataset: xr.Dataset, ids: Sequence[int], start: int, stop: int, columns: int = COLUMNS
) -> npt.NDArray[np.uint8]:
    """Share of each node and, last, of absent pages in columns of [start, stop) bytes: uint8 (columns, nodes + 1)."""
    file = guest_file(dataset)
    if file is None:
        return np.zeros((0, len(ids) + 1), np.uint8)
    folio, folios = int(dataset.variables["page_size"]), _folios(dataset, file)
    edges = _edges(start, stop, folio, folios, columns)
    counts = results.node_counts(dataset, file, edges)
    size = np.diff(edges)[:, None]
    out = np.zeros((len(size), len(ids) + 1))
    out[:, np.searchsorted(ids, dataset.variables["node"].values)] = counts / size
    out[:, -1] = np.clip(1 - out[:, :-1].sum(axis=1), 0, 1)
    return np.round(255 * out).astype(np.uint8)


def view_of(dataset: xr.Dataset, start: int, stop: int) -> tuple[int, int]:
    """[start, stop) widened to whole folios, which is what the columns of :func:`shares` cover."""
    file = guest_file(dataset)
    if file is None:
        return 0, 1
    folio, folios = int(dataset.variables["page_size"]), _folios(dataset, file)
    edges = _edges(start, stop, folio, folios, 1)
    return int(edges[0]) * folio, int(edges[-1]) * folio


def nodes(dataset: xr.Dataset, *others: xr.Dataset) -> list[dict[str, Any]]:
    """Id, colour and kind of each node."""
    ids = node_ids(dataset, *others)
    kinds = {
        int(n): str(k)
        for d in (*others, dataset)
        for n, k in zip(d.variables["node"].values, d.variables["node_kind"].values, strict=True)
    }
    return [
        {"id": i, "color": colour, "kind": kinds[i]}
        for i, colour in zip(ids, colours(ids, dataset, *others), strict=True)
    ]


def guest_bytes(dataset: xr.Dataset) -> dict[int, int]:
    """Bytes of all files on each node."""
    amount = amounts.bytes_of_all_files(dataset.variables)
    return {int(node): int(value) for node, value in zip(dataset.variables["node"].values, amount, strict=True)}


def free_bytes(dataset: xr.Dataset, event: int = -1) -> dict[int, int]:
    """Free bytes of each node after an event."""
    nodes = [int(node) for node in dataset.variables["node"].values]
    if not dataset.sizes["event"]:
        return dict.fromkeys(nodes, 0)
    return dict(zip(nodes, amounts.free_bytes(dataset.variables)[event].tolist(), strict=True))


def summary(dataset: xr.Dataset) -> str:
    """One sentence: how much of the guest lies where."""
    file = guest_file(dataset)
    if file is None:
        return f"No file was created{_first_refusal(dataset)}."
    amount = guest_bytes(dataset)
    total = sum(amount.values())
    whole = _folios(dataset, file) * int(dataset.variables["page_size"])
    if not total:
        return f"None of {format_bytes(whole)} is present{_first_refusal(dataset)}."
    largest = sorted(amount.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{100 * value / total:.3g} % on node {node}" for node, value in largest[:4] if value)
    more = sum(value > 0 for _, value in largest[4:])
    return f"{format_bytes(total)} present: {shown}{f' and {more} more' if more else ''}."


def _first_refusal(dataset: xr.Dataset) -> str:
    """The first refused call that says why; nothing where none does."""
    read = dataset.variables
    for error, detail in zip(read["event_error"].values, read["event_detail"].values, strict=True):
        reason = json.loads(str(detail) or "{}").get("reason") if error else None
        if reason:
            return f": {error}, {reason}"
    return ""


def warnings(dataset: xr.Dataset) -> list[str]:
    """What people should know before they read the picture: policies that do not reach private memory."""
    return str(dataset.attrs.get("warnings", "")).splitlines()


def ranges(scenario: Scenario, shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The guest's policy ranges, in the order in which they are set; ``shown`` are the nodes with their colours."""
    memory = scenario.guest.memory
    palette = {node["id"]: node["color"] for node in shown}
    found = []
    for index, policy in enumerate(scenario.guest.policies):
        label = f"{str(policy.mode).replace('_', ' ')} {policy.nodes}".strip()
        found.append(
            {
                "index": index,
                "start": policy.offset,
                "end": memory if policy.length is None else min(memory, policy.offset + policy.length),
                "label": label + (f" ({', '.join(policy.mode_flags)})" if policy.mode_flags else ""),
                "colors": [palette.get(node, "#888888") for node in policy_nodes({"nodes": policy.nodes})],
            }
        )
    return found


def _part(start: int, end: int, label: str) -> dict[str, Any]:
    color, ink = STATE_COLOURS.get(label, ("#888888", "#ffffff"))
    return {"start": start, "end": end, "label": label, "color": color, "ink": ink}


_SUMMARIES: WeakKeyDictionary[ShownRun, str] = WeakKeyDictionary()
_STATES: WeakKeyDictionary[ShownRun, list[dict[str, Any]]] = WeakKeyDictionary()


def summary_of(run: ShownRun) -> str:
    """:func:`summary` of a run, worked out once: the map, the host and the status line all say it."""
    if run not in _SUMMARIES:
        _SUMMARIES[run] = summary(run.dataset)
    return _SUMMARIES[run]


def states(run: ShownRun) -> list[dict[str, Any]]:
    """Bands under the placement: private or shared, and the size pages are mapped at; worked out once for each run."""
    if run not in _STATES:
        _STATES[run] = _states(run)
    return _STATES[run]


def _states(run: ShownRun) -> list[dict[str, Any]]:
    dataset, guest = run.dataset, run.scenario.guest
    if guest_file(dataset) is None:
        return []
    total = guest_total(dataset)
    shared = _sharing(run, total)
    page_size = parse_bytes(guest.page_size)
    sizes: list[tuple[int, int, str]] = [(0, total, guest.page_size)]
    if page_size > PAGE_SIZE and run.scenario.generation != "two-stage":
        # A folio with a shared page in it is split to 4 KiB; with eager merging it is whole again afterwards.
        split = np.zeros(-(-total // page_size), bool)
        for low, high, state in _touched(run, total) if guest.conversion.merge != "eager" else shared:
            if state == "shared":
                split[low // page_size : -(-high // page_size)] = True
        sizes = [
            (low * page_size, min(total, high * page_size), "4 KiB" if split[low] else guest.page_size)
            for low, high in equal_intervals(split).tolist()
        ]
    largest = LARGEST_LEAF[guest.vm_type]  # private memory is mapped no larger; shared pages are 4 KiB anyhow
    sizes = [(low, high, min(size, largest, key=parse_bytes)) for low, high, size in sizes]
    bands = (("private or shared", shared), ("page size", sizes))
    return [{"name": name, "parts": [_part(*part) for part in parts]} for name, parts in bands]


def _touched(run: ShownRun, total: int) -> list[tuple[int, int, str]]:
    """Conversions that succeeded, in order: first and last byte, and the new state."""
    dataset = run.dataset
    read = dataset.variables
    done = np.flatnonzero((read["event_op"].values == "convert") & (read["event_errno"].values == 0))
    if not len(done):
        return []
    from workbench.engine.generators import expand

    operations: list[Any] = expand(run.scenario)
    found = []
    for operation in (operations[event] for event in done if event < len(operations)):
        end = total if operation.length is None else min(total, operation.offset + operation.length)
        found.append((operation.offset, end, operation.to))
    return found


def _sharing(run: ShownRun, total: int) -> list[tuple[int, int, str]]:
    """Private and shared stretches after all conversions."""
    created = [o.flags for o in run.scenario.operations if isinstance(o, Create) and o.flags is not None]
    conversions = _touched(run, total)
    edges = np.unique([0, total, *(edge for low, high, _ in conversions for edge in (low, high))])
    shared = np.full(len(edges) - 1, "init_shared" in created[0] if created else not run.scenario.guest.private_memory)
    for low, high, state in conversions:
        shared[np.searchsorted(edges, low) : np.searchsorted(edges, high)] = state == "shared"
    return [
        (int(edges[a]), int(edges[b]), "shared" if shared[a] else "private")
        for a, b in equal_intervals(shared).tolist()
    ]


def space(
    run: ShownRun,
    pinned: ShownRun | None,
    scenario: Scenario,
    start: int,
    stop: int,
    serial: int,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """What the address space widget shows: its ``frame`` and the bytes of ``shares`` and ``shares_a``.

    The ranges are those of ``scenario``, which may be newer than the run's.
    """
    dataset = run.dataset
    file = guest_file(dataset)
    if file is None:
        return {"frame": {}, "shares": b"", "shares_a": b""}
    folio = int(dataset.variables["page_size"])
    total = _folios(dataset, file) * folio
    others = [pinned.dataset] if pinned else []
    start, stop = view_of(dataset, max(0, min(start, total - folio)), min(max(stop, start + folio), total))
    shown = nodes(dataset, *others)
    ids = [node["id"] for node in shown]
    frame = {
        "file": file,
        "total": total,
        "page": folio,
        "start": start,
        "stop": stop,
        "nodes": shown,
        "ranges": ranges(scenario, shown),
        "states": states(run),
        "summary": summary_of(run),
        "compare": pinned is not None,
        "force": force,
        "serial": serial,
    }
    return {
        "frame": frame,
        "shares": shares(dataset, ids, start, stop).tobytes(),
        "shares_a": _shares_at(pinned.dataset, ids, start, stop).tobytes() if pinned else b"",
    }


def _shares_at(dataset: xr.Dataset, ids: Sequence[int], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Columns of another run for the same bytes; beyond its end nothing is present."""
    file = guest_file(dataset)
    absent = np.zeros((COLUMNS, len(ids) + 1), np.uint8)
    absent[:, -1] = 255
    if file is None:
        return absent
    folio, folios = int(dataset.variables["page_size"]), _folios(dataset, file)
    edges = np.linspace(start, stop, min(COLUMNS, max(1, (stop - start) // min(folio, stop - start))) + 1)
    low = np.minimum(edges[:-1] // folio, folios).astype(np.int64)
    high = np.minimum(np.maximum(-(-edges[1:] // folio), low + 1), folios).astype(np.int64)
    out = absent[: len(low)]
    for column, (first, last) in enumerate(zip(low, high, strict=True)):
        if last > first:
            counts = results.node_counts(dataset, file, [int(first), int(last)])[0] / (last - first)
            out[column, :] = 0
            out[column, np.searchsorted(ids, dataset.variables["node"].values)] = np.round(255 * counts)
            out[column, -1] = 255 - min(255, int(out[column, :-1].sum()))
    return out


def host(run: ShownRun, pinned: ShownRun | None, serial: int) -> dict[str, Any]:
    """Nodes with their fill level, and distances; for the host picture and the bars."""
    dataset = run.dataset
    amount, free = guest_bytes(dataset), free_bytes(dataset)
    before = guest_bytes(pinned.dataset) if pinned else {}
    palette = {node["id"]: node["color"] for node in nodes(dataset, *([pinned.dataset] if pinned else []))}
    shown = []
    metadata, taken = amounts.metadata_of_nodes(dataset.variables).tolist(), run.scenario.metadata == "taken"
    names = {"memory": "memory", "memory_bytes": "memory", "cpus": "cpus"}
    of_host = {names[field] for field in run.scenario.host.assumed if field in names}
    assumed = {node.id: sorted(of_host | set(node.assumed)) for node in run.scenario.host.nodes}
    read = dataset.variables
    sizes, cpus, kinds = (read[f"node_{name}"].values.tolist() for name in ("memory", "cpus", "kind"))
    for i, node in enumerate(read["node"].values.tolist()):
        memory, mine = sizes[i], amount[node]
        beside = metadata[i] if taken else 0  # what was only counted is still free
        other = max(0, memory - free[node] - mine - beside) if dataset.sizes["event"] else 0
        text = (
            f"node {node} ({kinds[i]}), {cpus[i]} CPUs: {format_bytes(memory)}, "
            f"guest {format_bytes(mine)}, its page tables and other metadata {format_bytes(metadata[i])}, "
            f"other use and reserves {format_bytes(other)}, free {format_bytes(free[node])}"
        )
        if assumed.get(node):
            text += f"; assumed (?): {', '.join(assumed[node])}"
        if pinned:
            text += f"; A had {format_bytes(before.get(node, 0))}"
        shown.append(
            {
                "id": node,
                "kind": kinds[i],
                "memory": memory,
                "assumed": assumed.get(node, []),
                "cpus": cpus[i],
                "guest": mine,
                "guest_a": before.get(node, 0),
                "metadata": metadata[i],
                "other": other,
                "color": palette[node],
                "title": text,
            }
        )
    return {
        "nodes": shown,
        "distances": dataset.variables["distance"].values.tolist(),
        "assumed": sorted(run.scenario.host.assumed),
        "compare": pinned is not None,
        "summary": summary_of(run),
        "serial": serial,
    }


def vcpus(run: ShownRun, serial: int, pattern: str = "streaming", *, ends: bool = True) -> dict[str, Any]:
    """For each node that runs vCPUs: the share of memory on every node, and what the model says it costs."""
    dataset = run.dataset
    amount = guest_bytes(dataset)
    total = sum(amount.values()) or 1
    palette = {node["id"]: node["color"] for node in nodes(dataset)}
    numbers = dataset.variables["vcpu_node"].values
    modelled = {
        node: f"{cost.latency.text()} ns, {cost.bandwidth.text(1000)} GB/s (modelled)"
        for node, cost in costs(run, pattern, ends=ends).items()
    }
    rows: list[dict[str, Any]] = []
    for node in sorted({int(n) for n in numbers}):
        mine = np.flatnonzero(numbers == node)
        local = float(dataset.variables["local_share"].values[mine[0]])
        distance = float(dataset.variables["mean_distance"].values[mine[0]])
        order = sorted(amount, key=lambda other: (other != node, -amount[other]))
        parts = [
            {"share": amount[n] / total, "color": palette[n], "label": f"node {n}", "local": n == node}
            for n in order
            if amount[n]
        ]
        note = f"distance {distance:.1f}" if any(amount.values()) else "nothing present"
        note += f"; {modelled[node]}" if node in modelled else ""
        rows.append(
            {
                "node": node,
                "name": f"{len(mine)} vCPU{'s' if len(mine) > 1 else ''} on {node}",
                "local": local,
                "parts": parts,
                "numbers": f"{100 * local:.1f} % local",
                "note": note,
                "title": f"vCPUs on node {node}: {100 * local:.1f} % of the guest's memory is local, mean {note}",
            }
        )
    spoken = "; ".join(row["title"] for row in rows)
    return {"rows": rows, "summary": spoken or "This guest has no vCPUs.", "serial": serial}


class Modelled(NamedTuple):
    """A modelled number, and where nine in ten draws of the parameters have it."""

    value: float
    low: float
    high: float

    def text(self, scale: float = 1.0) -> str:
        """With its range, such as ``92 [74, 180]``."""
        value, low, high = (_three_digits(number / scale) for number in self)
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


class Cost(NamedTuple):
    """What the vCPUs of a node get: ns and MB/s."""

    latency: Modelled
    bandwidth: Modelled


def draws_at_hand(run: ShownRun) -> bool:
    """Whether the run's host was drawn before, which takes longer than to use the draws."""
    from workbench.cost import machine

    return machine.at_hand(run.scenario.host)


def costs(run: ShownRun, pattern: str, *, ends: bool = True) -> dict[int, Cost]:
    """Modelled latency and bandwidth of the vCPUs of each node; empty where the model cannot tell.

    Without ``ends``, the ends of the ranges are NaN.
    """
    from workbench.cost import traffic

    try:
        cost = traffic.access_cost(run.dataset, run.scenario.host, pattern, samples=None if ends else 1).variables
    except (WorkbenchError, ValueError):
        return {}
    found = {}
    for at, node in enumerate(cost["initiator"].values.tolist()):
        pair = Cost(
            *(
                Modelled(
                    *(
                        float(cost[name + end].values[at]) if name + end in cost else np.nan
                        for end in ("", "_low", "_high")
                    )
                )
                for name in Cost._fields
            )
        )
        if np.isfinite([part.value for part in pair]).all():
            found[node] = pair
    return found


def timeline(run: ShownRun, at: int, serial: int) -> dict[str, Any]:
    """Free memory by node and, in a run with conversions, splits, merges and struct page memory over the operations."""
    dataset = run.dataset
    events = dataset.sizes["event"]
    if not events:
        return {"summary": "Nothing happened.", "panels": [], "events": 0, "at": 0, "now": "", "serial": serial}
    ids = [int(n) for n in dataset.variables["node"].values]
    free = amounts.free_bytes(dataset.variables).astype(float)
    palette = colours(ids, dataset)
    panels = [
        {
            "title": "free memory by node",
            "unit": "B",
            "lines": [
                {"name": f"node {node}", "color": palette[i], "values": free[:, i].tolist()}
                for i, node in enumerate(ids)
            ],
        }
    ]
    panels += _conversion_panels(dataset)
    op = str(dataset.variables["event_op"].values[at])
    return {
        "panels": panels,
        "events": events,
        "at": at,
        "now": f"{at}: {op}",
        "summary": f"{events} operations; after operation {at} ({op}).",
        "serial": serial,
    }


def _conversion_panels(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """Splits and merges so far, and struct page memory that splits hold; nothing for a run without conversions."""
    if "splits_1g" not in dataset:
        return []
    lines = []
    for name, colour in (("splits", "#d55e00"), ("merges", "#0072b2")):
        values = dataset[f"{name}_1g"].values + dataset[f"{name}_2m"].values
        lines.append({"name": name, "color": colour, "values": values.tolist()})
    held = (dataset["vmemmap_pages"].sum("node").values * PAGE_SIZE).tolist()
    shared = (dataset.variables["shared_pages"].values * PAGE_SIZE).tolist()
    return [
        {"title": "folios split (orange) and merged (blue) so far", "unit": "", "lines": lines},
        {"title": "struct page memory held by splits", "unit": "B", "lines": [_line("struct pages", "#009e73", held)]},
        {"title": "shared memory", "unit": "B", "lines": [_line("shared", "#8c6d00", shared)]},
    ]


def _line(name: str, colour: str, values: list[int]) -> dict[str, Any]:
    return {"name": name, "color": colour, "values": values}


def events_table(dataset: xr.Dataset, at: int | None = None, most: int = 300) -> str:
    """The system calls with their results as an HTML table."""
    count = dataset.sizes["event"]
    first = max(0, min((at if at is not None else count) - most // 2, count - most))
    columns = {name: dataset[f"event_{name}"].values for name in ("op", "task", "file", "ret", "errno", "detail")}
    placed = amounts.placed_bytes(dataset.variables).sum(axis=1)
    rows = []
    for i in range(first, min(count, first + most)):
        error = int(columns["errno"][i])
        detail = json.loads(str(columns["detail"][i]) or "{}")
        words = ", ".join(f"{key} {value}" for key, value in detail.items())
        cells = [
            str(i),
            html.escape(str(columns["op"][i])),
            html.escape(str(columns["task"][i])),
            html.escape(str(columns["file"][i])),
            f"{int(columns['ret'][i]):,}",
            f'<b class="wb-errno">{errno_name(error)}</b>' if error else "ok",
            format_bytes(int(placed[i])) if placed[i] else "",
            html.escape(words[:120]),
        ]
        mark = ' class="wb-here" aria-current="step"' if i == at else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = (
        f"<p>Operations {first} to {first + len(rows) - 1} of {count}, counted from 0.</p>" if len(rows) < count else ""
    )
    heads = ("", "call", "task", "file", "returns", "errno", "memory placed", "detail")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f'{note}<table class="wb-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def nodes_table(run: ShownRun, pinned: ShownRun | None = None) -> str:
    """Memory of the guest by node, with A and the difference when a run is pinned, as an HTML table."""
    now, before = guest_bytes(run.dataset), guest_bytes(pinned.dataset) if pinned else {}
    total, total_before = sum(now.values()) or 1, sum(before.values()) or 1
    free = free_bytes(run.dataset)
    ids = [int(node) for node in run.dataset.variables["node"].values]
    beside = dict(zip(ids, amounts.metadata_of_nodes(run.dataset.variables).tolist(), strict=True))
    heads = ["node", *(["A", "B", "B − A"] if pinned else ["guest", "share", "metadata", "in all", "free"])]
    rows = []
    for node in sorted({*now, *before}):
        mine, old = now.get(node, 0), before.get(node, 0)
        if pinned:
            difference = mine - old
            sign = "+" if difference > 0 else "−" if difference < 0 else ""
            cells = [
                f"{format_bytes(old)} ({100 * old / total_before:.1f} %)",
                f"{format_bytes(mine)} ({100 * mine / total:.1f} %)",
                f"{sign}{format_bytes(abs(difference))}" if difference else "0",
            ]
        else:
            metadata = beside.get(node, 0)
            cells = [format_bytes(mine), f"{100 * mine / total:.1f} %"]
            cells += [format_bytes(amount) for amount in (metadata, mine + metadata, free.get(node, 0))]
        rows.append(f'<tr><th scope="row">{node}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f'<table class="wb-table wb-numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def differences(run: ShownRun, pinned: ShownRun, pattern: str = "streaming") -> str:
    """What else differs between A and B: changed fields, the share of local memory, latency and bandwidth."""
    rows: list[tuple[str, str, str]] = []
    rows += changed_settings(pinned, run)
    for name, heading in (("local_share", "local share, mean over vCPUs"), ("mean_distance", "mean distance")):
        a, b = (NOTHING if each is None else f"{each:.3f}" for each in (mean(pinned, name), mean(run, name)))
        rows.append((heading, a, b))
    rows += _cost_rows(pinned, run, pattern)
    body = "".join(
        f'<tr><th scope="row">{html.escape(a)}</th><td>{html.escape(b)}</td><td>{html.escape(c)}</td></tr>'
        for a, b, c in rows
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("", "A", "B"))
    return f'<table class="wb-table"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


NOTHING = "– (nothing present)"


def mean(run: ShownRun, name: str) -> float | None:
    """Of a variable of vCPUs; None where nothing is present, or there is no vCPU."""
    values = run.dataset[name]
    return float(values.mean()) if values.size and sum(guest_bytes(run.dataset).values()) else None


def changed_settings(pinned: ShownRun, run: ShownRun) -> list[tuple[str, str, str]]:
    """Fields of the scenario that differ between A and B, with both values in words."""
    changed = changed_fields(_named_host(pinned), _named_host(run))
    return [(path, _short(old, path), _short(new, path)) for path, old, new in changed]


def present_costs(run: ShownRun, pattern: str) -> dict[int, Cost]:
    """What :func:`costs` says of a run; nothing where nothing is present."""
    return costs(run, pattern) if sum(guest_bytes(run.dataset).values()) else {}


def _cost_rows(pinned: ShownRun, run: ShownRun, pattern: str, most: int = 8) -> list[tuple[str, str, str]]:
    """Modelled latency and bandwidth of A and B, by node of the vCPUs or, of many, from the least to the most."""
    present = [present_costs(each, pattern) for each in (pinned, run)]
    places = sorted({*present[0], *present[1]})
    rows: list[tuple[str, str, str]] = []
    for what, scale, unit in (("latency", 1, "ns"), ("bandwidth", 1000, "GB/s")):
        heading = f"{what} of the vCPUs on node {{}} ({pattern.replace('_', ' ')}, modelled)"
        every = [{node: getattr(cost, what) for node, cost in each.items()} for each in present]
        if len(places) <= most:
            for node in places:
                cells = [f"{each[node].text(scale)} {unit}" if node in each else NOTHING for each in every]
                rows.append((heading.format(node), cells[0], cells[1]))
        else:
            cells = []
            for each in every:
                values, lows, highs = zip(*each.values(), strict=True) if each else ((), (), ())
                ends = [one / scale for one in (min(values), max(values), min(lows), max(highs))] if values else []
                least, most_, low, high = map(_three_digits, ends) if ends else [""] * 4
                cells.append(f"{least} to {most_} [{low}, {high}] {unit}" if ends else NOTHING)
            rows.append((heading.format(f"{places[0]} to {places[-1]}"), cells[0], cells[1]))
    return rows


def _named_host(run: ShownRun) -> dict[str, Any]:
    """The scenario's mapping with the host by its name: two machines differ in more than a table can hold."""
    mapping = run.scenario.to_mapping()
    mapping["host"] = run.scenario.host.name
    return mapping


def changed_fields(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Paths at which two mappings differ, with both values; a list that differs in length counts as one field."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            c for key in keys for c in changed_fields(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and len(old) <= 16:
        return [c for i, pair in enumerate(zip(old, new, strict=True)) for c in changed_fields(*pair, f"{path}.{i}")]
    return [] if old == new else [(path, old, new)]


def _short(value: object, path: str = "") -> str:
    if value is None:
        return "default"
    if isinstance(value, int) and path.rpartition(".")[2] in SIZES:
        return exact_bytes(value)
    if isinstance(value, (list, dict)) and len(str(value)) > 60:
        return f"{len(value)} entries"
    return str(value)

"""What a run found, in the words and tables of the command line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from workbench.amounts import bytes_of_all_files, bytes_per_node, metadata_bytes, metadata_of_nodes
from workbench.commands.terminal import console
from workbench.errnos import errno_name
from workbench.units import format_bytes


def summarise(run: Any) -> dict[str, Any]:
    """The main figures of a run, an :class:`workbench.answer.Answer` or its Dataset, as plain numbers."""
    nodes, files, vcpus = ([str(label) for label in np.asarray(run[name])] for name in ("node", "file", "vcpu"))
    ops, errors, details = (np.asarray(run[f"event_{name}"]) for name in ("op", "errno", "detail"))
    refused = [
        {"event": event, "op": str(ops[event]), "errno": int(errors[event])} | why_refused(details[event])
        for event in np.flatnonzero(errors).tolist()
    ]

    def table(rows: list[str], values: np.ndarray) -> dict[str, dict[str, int]]:
        return {row: dict(zip(nodes, amounts, strict=True)) for row, amounts in zip(rows, values.tolist(), strict=True)}

    kinds = [str(kind) for kind in np.asarray(run["kind"])] if "metadata_pages" in run else []
    return {
        "scenario": run.attrs["scenario"],
        "page_size": int(run["page_size"]),
        "pages_per_node": table(files, np.asarray(run["pages_per_node"])),
        "bytes_per_node": table(files, bytes_per_node(run)),
        "metadata_bytes_per_node": table(kinds, metadata_bytes(run)),
        "bytes_in_all_per_node": dict(
            zip(nodes, (bytes_of_all_files(run) + metadata_of_nodes(run)).tolist(), strict=True)
        ),
        "local_share": dict(zip(vcpus, np.asarray(run["local_share"]).tolist(), strict=True)),
        "kernel_profile": str(np.asarray(run["kernel"])) if "kernel" in run.coords else run.attrs["kernel_profile"],
        "vm_type": run.attrs["vm_type"],
        "vmm_profile": run.attrs["vmm_profile"],
        "events": len(np.asarray(run["event"])),
        "warnings": _lines_of(run, "warnings"),
        "assumed": _lines_of(run, "assumed"),
        "refused": refused,
        **({"streams": found} if (found := streams(run)) else {}),
    }


def why_refused(detail: Any) -> dict[str, str]:
    """``reason`` of a call's detail, such as where what this kernel does not have exists; empty where it says none."""
    return {"reason": str(told)} if (told := json.loads(str(detail) or "{}").get("reason")) else {}


def _lines_of(run: Any, name: str) -> list[str]:
    """Lines of an attribute; of one run of several only its own (:func:`workbench.simulation.simulate` names whose they are)."""
    lines = str(run.attrs.get(name, "")).splitlines()
    for along in ("kernel", "design"):
        if along in run.coords and not np.ndim(run[along]):
            mine = f"{along} {run[along].item()}: "
            lines = [
                line.removeprefix(mine) for line in lines if line.startswith(mine) or not line.startswith(f"{along} ")
            ]
    return lines


def streams(run: Any) -> list[dict[str, float]]:
    """What the vCPUs of each node got from each ``access`` of a run, modelled, with the ends of nine in ten draws."""
    if "stream_bandwidth" not in run:
        return []
    columns = {
        "event": "stream_event", "node": "stream_node", "vcpus": "stream_vcpus",
        **{f"memory_fraction{end}": f"stream_memory_fraction{end}" for end in _ENDS},
        **{f"{name}_{unit}{end}": f"stream_{name}{end}" for name, unit in _FIGURES for end in _ENDS},
    }  # fmt: skip
    values = {name: np.asarray(run[of]).tolist() for name, of in columns.items()}
    return [
        {
            name: round(value, 4 if name.startswith("memory_fraction") else 1)
            for name, value in zip(values, row, strict=True)
        }
        for row in zip(*values.values(), strict=True)
    ]


_FIGURES = (("latency", "ns"), ("bandwidth", "mb_s"))
_ENDS = ("", "_low", "_high")


def accesses(run: Any, host: Any) -> dict[str, dict[str, float]]:
    """Modelled latency (ns) and bandwidth (MB/s) that the vCPUs of each node get from where the pages of a Dataset lie.

    ``low`` and ``high`` hold the values and nine in ten draws of the machine's parameters.
    """
    from workbench.cost.traffic import access_cost

    if not np.asarray(run["vcpu_node"]).size or not np.asarray(run["pages_per_node"]).any():
        return {}
    cost = access_cost(run, host, PATTERN)
    out: dict[str, dict[str, float]] = {}
    for index, node in enumerate(cost["initiator"].values.tolist()):
        row = out[str(node)] = {}
        for name, unit in _FIGURES:
            for end in _ENDS:
                row[f"{name}_{unit}{end}"] = round(float(cost[name + end].values[index]), 1)
    return out


PATTERN = "streaming"
"""Accesses whose cost is printed beside a measured profile."""


def metadata_of(kinds: dict[str, dict[str, int]]) -> dict[str, int]:
    """Bytes of all metadata by kind."""
    return {kind: sum(row.values()) for kind, row in kinds.items()}


_CONVERTED = ("splits_1g", "splits_2m", "merges_1g", "merges_2m", "invalidations", "failed_conversions", "stage2_tables",
              "vmemmap_pages")  # fmt: skip


def comparison(dataset: Any, along: str) -> dict[str, dict[str, int]]:
    """What conversions cost under each design (or kernel) by the end of a run: variable -> name -> count.

    Empty when the run had no conversions.
    """
    if not dataset.sizes["event"] or any(name not in dataset for name in _CONVERTED):
        return {}
    last = dataset.isel(event=-1)
    names = [str(name) for name in dataset[along].values]
    return {one: {name: int(last[one].sel({along: name}).sum()) for name in names} for one in _CONVERTED}


def print_comparison(dataset: Any, along: str) -> None:
    """What the conversions of a run cost under each design or kernel, as far as the run had any."""
    found = comparison(dataset, along)
    if not found:
        if along == "design":
            typer.echo("no conversions: the designs differ in nothing that this run shows")
        return
    table = Table(along, *(dataset[name].attrs["long_name"] for name in found))
    for name in map(str, dataset[along].values):
        table.add_row(name, *(f"{counts[name]:,}" for counts in found.values()))
    console().print(table)


def list_calls(run: Any) -> list[dict[str, Any]]:
    """Every call of a run in order: its number from 0, who made it, on which file, and what Linux returned."""
    columns = {
        name: np.asarray(run[f"event_{name}"]).tolist() for name in ("op", "task", "file", "ret", "error", "detail")
    }
    nodes, placed = np.asarray(run["node"]).tolist(), np.asarray(run["event_pages"]).tolist()
    return [
        {
            "event": event,
            **{name: values[event] for name, values in columns.items() if name != "detail"},
            "pages": {str(node): count for node, count in zip(nodes, placed[event], strict=True) if count},
            "detail": json.loads(columns["detail"][event] or "{}"),
        }
        for event in range(len(placed))
    ]


def print_calls(calls: list[dict[str, Any]]) -> None:
    """The calls of a run as a table."""
    table = Table("", "task", "call", "file", "returns", "pages placed", "besides", title="calls")
    for one in calls:
        returned = one["error"] or f"{one['ret']:,}"
        placed = ", ".join(f"{count:,} on {node}" for node, count in one["pages"].items())
        besides = ", ".join(f"{key} {value}" for key, value in one["detail"].items())
        table.add_row(str(one["event"]), *map(Text, (one["task"], one["op"], one["file"], returned, placed, besides)))
    console().print(table)


_SHOWN = 20
"""Rows of accesses that are printed."""


def _with_ends(cost: dict[str, float]) -> tuple[str, str]:
    """Latency and bandwidth with the ends of their ranges."""
    low, value, high = (cost[f"latency_ns{end}"] for end in ("_low", "", "_high"))
    slow, rate, fast = (cost[f"bandwidth_mb_s{end}"] / 1000 for end in ("_low", "", "_high"))
    return f"{value:.4g} ns ({low:.4g} to {high:.4g})", f"{rate:.3g} GB/s ({slow:.3g} to {fast:.3g})"


def print_summary(summary: dict[str, Any], design: str = "") -> None:
    """Tables for people."""
    for line in summary["warnings"]:
        typer.echo(f"warning: {line}")
    for file, nodes in summary["pages_per_node"].items():
        amounts = summary["bytes_per_node"][file]
        total = sum(amounts.values())
        table = Table(
            "node", "pages", "memory", "share", title=f"{summary['scenario']}: {file}{design and ', ' + design}"
        )
        for node, pages in nodes.items():
            share = f"{amounts[node] / total:.1%}" if total else "-"
            table.add_row(node, f"{pages:,}", format_bytes(amounts[node]), share)
        console().print(table)
    kinds = {kind: row for kind, row in summary["metadata_bytes_per_node"].items() if any(row.values())}
    if kinds:
        all_pages = sum(summary["bytes_in_all_per_node"].values()) - sum(metadata_of(kinds).values())
        table = Table(
            "node",
            *(kind.replace("_", " ") for kind in kinds),
            "all of it",
            "to the pages",
            "the guest in all",
            title=f"{summary['scenario']}: what the kernel needs beside the pages",
        )
        in_all = summary["bytes_in_all_per_node"]
        for node in summary["bytes_per_node"][next(iter(summary["bytes_per_node"]))]:
            total = sum(row[node] for row in kinds.values())
            share = f"{total / all_pages:.2%}" if all_pages else "-"
            amounts = [*(row[node] for row in kinds.values()), total]
            table.add_row(node, *map(format_bytes, amounts), share, format_bytes(in_all[node]))
        total, all_of_it = (sum(values.values()) for values in (metadata_of(kinds), in_all))
        console().print(table)
        typer.echo(f"what the guest costs in all: {format_bytes(all_of_it)}, {format_bytes(total)} of it metadata")
    for line in summary["assumed"]:
        typer.echo(f"assumed: {line}")
    for profile, costs in summary.get("accesses", {}).items():
        table = Table(
            "vCPUs on node",
            "latency",
            "bandwidth of all of them",
            title=f"{PATTERN} accesses, modelled (nine in ten draws)",
        )
        for node, cost in costs.items():
            table.add_row(node, *_with_ends(cost))
        console().print(table)
        typer.echo(f"measured profile: {profile}")
    if got := summary.get("streams"):
        table = Table(
            "access",
            "vCPUs on node",
            "latency",
            "bandwidth of all of them",
            "reach memory",
            title="accesses, modelled (nine in ten draws)",
            caption="latency and bandwidth are those of accesses that no cache serves",
        )
        for one in got[:_SHOWN]:
            part, low, high = (100 * one[f"memory_fraction{end}"] for end in _ENDS)
            reach = f"{part:.1f}% ({low:.3g} to {high:.3g})"
            table.add_row(f"event {one['event']}", str(one["node"]), *_with_ends(one), reach)
        console().print(table)
        if len(got) > _SHOWN:
            typer.echo(f"and {len(got) - _SHOWN} more; --json has all")
    if "calls" in summary:
        print_calls(summary["calls"])
    for refusal in summary["refused"][:10]:
        why = f" ({refusal['reason']})" if "reason" in refusal else ""
        typer.echo(f"event {refusal['event']} ({refusal['op']}) was refused: {errno_name(refusal['errno'])}{why}")

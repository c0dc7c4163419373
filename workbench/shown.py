"""What Jupyter shows of a host, a scenario and a result: tables that a person reads, in the page's own colours.

Every text is escaped; nothing here is script. A result's own listing, as xarray prints it, follows below its table.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from workbench.errnos import errno_name
from workbench.units import PAGE_SIZE, exact_bytes, format_bytes

_MOST_NODES, _MOST_LINES = 32, 12
_CELL = "text-align:right;padding:2px 10px;white-space:nowrap"
_BYTES = ("offset", "length", "size", "leave_free")


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "right") -> str:
    """A table of cells that are HTML already; the first of each row is its heading."""
    cell = _CELL.replace("right", align)
    head = "".join(f'<th scope="col" style="{cell}">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row" style="{cell}">{first}</th>'
        + "".join(f'<td style="{cell}">{one}</td>' for one in rest)
        + "</tr>"
        for first, *rest in rows
    )
    title = f'<caption style="text-align:left;caption-side:top;white-space:nowrap"><b>{caption}</b></caption>'
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _lines(label: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "".join(f"<div><b>{label}:</b> {_text(line)}</div>" for line in [*lines[:_MOST_LINES], *more])


def _field(name: str, value: object) -> str:
    """A field of an operation as a person writes it."""
    if name in _BYTES and isinstance(value, int):
        return exact_bytes(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def host(value: Any) -> str:
    """Nodes with kind, memory and CPUs, and the distances; of a host with many nodes the first."""
    from workbench.bitmap_lists import format_list

    ids = [node.id for node in value.nodes][:_MOST_NODES]
    rows = []
    known = any(node.free_bytes is not None for node in value.nodes)
    for node, distances in zip(value.nodes[:_MOST_NODES], value.distances, strict=False):
        cpus = format_list(node.cpus) if node.cpus else "none"
        kind = node.kind + (" movable" if node.movable else "")
        free = [format_bytes(node.free_bytes) if node.free_bytes is not None else ""] if known else []
        cells = [str(node.id), _text(kind), format_bytes(node.memory_bytes), *free, _text(cpus[:60])]
        rows.append([*cells, *(str(distance) for distance in distances[:_MOST_NODES])])
    heads = ["node", "kind", "memory", *(["free"] if known else []), "CPUs", *(f"to {node}" for node in ids)]
    what = f"{len(value.nodes)} nodes, {format_bytes(value.memory_bytes)}"
    caption = f"{_text(value.title or value.name)}: {what}, and the distances between them"
    cut = [f"nodes after the first {_MOST_NODES} are not listed"] if len(value.nodes) > _MOST_NODES else []
    return f"<div>{_table(caption, heads, rows)}{_lines('assumed', value.assumptions())}{_lines('note', cut)}</div>"


def scenario(value: Any) -> str:
    """What is asked: the guest, its policies, where its vCPUs run, and the operations as they are written."""
    guest = value.guest
    vcpus = ", ".join(f"node {v.node}" if v.node is not None else f"CPU {v.cpu}" for v in guest.vcpus[:16])
    policies = [f"{p.mode} {p.nodes}".strip() for p in guest.policies]
    facts = [
        ("host", f"{value.host.title or value.host.name}, {len(value.host.nodes)} nodes"),
        ("guest", f"{format_bytes(guest.memory)} of {guest.page_size} pages, {guest.design}, VM type {guest.vm_type}"),
        ("vCPUs", (vcpus or "one on the first node with CPUs") + (" ..." if len(guest.vcpus) > 16 else "")),
        ("policies", "; ".join(policies[:_MOST_LINES]) or "none"),
        ("kernel", f"{value.kernel.name}: {value.kernel.text}"),
    ]
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{name}</th><td style="text-align:left">{_text(text)}</td></tr>'
        for name, text in facts
    )
    steps = []
    for number, operation in enumerate(value.operations[:_MOST_LINES]):
        fields = operation.model_dump(mode="json", exclude_defaults=True)
        words = ", ".join(f"{name} {_field(name, field)}" for name, field in fields.items() if name != "op")
        steps.append([str(number), _text(operation.op), _text(words[:200])])
    more = len(value.operations) - _MOST_LINES
    table = _table("operations", ["", "call", "fields"], steps, "left") if steps else "<div>no operations</div>"
    rest = f"<div>and {more} more</div>" if more > 0 else ""
    comment = f"<div>{_text(value.comment)}</div>" if value.comment else ""
    return f"<div><b>{_text(value.name)}</b>{comment}<table>{rows}</table>{table}{rest}</div>"


def is_run(dataset: Any) -> bool:
    """Whether a Dataset is the result of one run."""
    return (
        "pages_per_node" in dataset
        and dataset["pages_per_node"].dims == ("file", "node")
        and "scenario" in dataset.attrs
    )


def result(dataset: Any) -> str:
    """Where the pages landed, by file and node, what was refused, and whose rules held; then xarray's own listing."""
    rows = []
    pages, sizes = dataset["pages_per_node"].values, dataset["file_page_size"].values
    small = dataset["small_pages_per_node"].values if "small_pages_per_node" in dataset else None
    for at, name in enumerate(dataset["file"].values):
        amounts = pages[at] * int(sizes[at]) + (small[at] * PAGE_SIZE if small is not None else 0)
        total = int(amounts.sum())
        for node, count, amount in zip(dataset["node"].values, pages[at], amounts, strict=True):
            share = f"{int(amount) / total:.1%}" if total else "-"
            rows.append([_text(name), str(int(node)), f"{int(count):,}", format_bytes(int(amount)), share])
    heads = ["file", "node", "pages", "memory", "share"]
    caption = f"{_text(dataset.attrs['scenario'])}: where the pages are"
    errors = dataset["event_errno"].values
    refused = []
    for at in errors.nonzero()[0].tolist():
        why = json.loads(str(dataset["event_detail"].values[at]) or "{}").get("reason")
        told = f" ({why})" if why else ""
        refused.append(f"{at}: {dataset['event_op'].values[at]}: {errno_name(int(errors[at]))}{told}")
    vmm = f", VMM {dataset.attrs['vmm_profile']}" if dataset.attrs.get("vmm_profile") else ""
    rules = f"{dataset.attrs['kernel_profile']}, VM type {dataset.attrs['vm_type']}{vmm}; {len(errors)} calls"
    said = _lines("warning", dataset.attrs.get("warnings", "").splitlines()) + _lines("refused", refused)
    return f"<div>{_table(caption, heads, rows[:64])}{said}{_lines('rules of kernel', [rules])}</div>"


def listing(dataset: Any) -> str:
    """xarray's own listing of a result, its attributes folded: provenance is pages of JSON."""
    from xarray import set_options

    with set_options(display_expand_attrs=False):
        return str(dataset._repr_html_())


def _formatted(dataset: Any) -> str:
    return result(dataset) + listing(dataset) if is_run(dataset) else str(dataset._repr_html_())


def in_notebooks() -> None:
    """From now on a notebook that shows a result shows :func:`result` above xarray's listing; once in a session."""
    if "IPython" in sys.modules:
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None:
            shell.display_formatter.formatters["text/html"].for_type("xarray.core.dataset.Dataset", _formatted)

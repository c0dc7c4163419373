"""``workbench machines``: the hosts that come with the workbench, and any other one, listed and drawn.

``workbench snapshot`` collects what the readers want of the machine it runs on.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench import replacing
from workbench.commands import measure
from workbench.errors import WorkbenchError
from workbench.limits import PICTURE_BYTES

if TYPE_CHECKING:
    from workbench.topology.host import Host, Node

_SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOCAL = "·"


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    group = typer.Typer(help="List real machines and draw them.", rich_markup_mode=None)

    @group.callback(invoke_without_command=True)
    def machines(
        context: typer.Context, json_: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False
    ) -> None:
        """List the machines that scenarios can name, or draw one with `show`."""
        if context.invoked_subcommand is None:
            _list(json_)

    @group.command()
    def show(
        name: Annotated[
            str,
            typer.Argument(
                metavar="NAME|FILE",
                help="a machine, `this`, or a file: snapshot (.tar.gz), directory with a copy of sysfs, output of "
                "numactl --hardware, hwloc or virsh capabilities XML, kernel log, YAML",
            ),
        ],
        out: Annotated[Path | None, typer.Option("-o", "--out", help="draw into this .svg, .png or .pdf file")] = None,
        force: Annotated[bool, typer.Option("--force", help="let -o replace what is no such picture")] = False,
        costs: Annotated[
            bool, typer.Option("--costs", help="list what the cost model takes of it, and what of that is an estimate")
        ] = False,
    ) -> None:
        """Show nodes and distances of one machine in the terminal, or draw them into a file."""
        from workbench.topology.host import Host

        if out is not None:
            check_replaceable(out, force)
        host = Host.from_machine(name)
        if out is not None:
            draw(host, out, force=force)
            typer.echo(str(out))
        else:
            _show(host)
        if costs:
            _costs(host)

    measure.add_calibrate(group)
    app.add_typer(group, name="machines")

    @app.command()
    def snapshot(
        output: Annotated[Path, typer.Option("-o", "--output", help="write this .tar.gz")] = Path("host.tar.gz"),
        force: Annotated[bool, typer.Option("--force", help="let -o replace what is no snapshot")] = False,
    ) -> None:
        """Collect what decides placement on this machine: nodes, distances, free memory, pools; nothing personal.

        Every command that takes a machine takes the file.
        """
        from workbench.topology.snapshot import collect

        paths = collect(output, force=force)
        typer.echo(f"{output}: {len(paths)} files")
        if "proc/pagetypeinfo" not in paths:
            typer.echo("without /proc/pagetypeinfo, which only root can read", err=True)


_MARK = "workbench machines show, picture of a host"
_PICTURES = {"svg": {"Creator": _MARK}, "png": {"Software": _MARK}, "pdf": {"Creator": _MARK}}
"""Formats, and where each says who made it (metadata of matplotlib's savefig)."""


def check_replaceable(out: Path, force: bool) -> None:
    """Whether a picture may be written here: nothing is there, or one that :func:`draw` made. Raises WorkbenchError if not."""
    if _format(out) not in _PICTURES:
        raise WorkbenchError(f"-o: {out.name!a} must end in .svg, .png or .pdf")
    replacing.check(
        out, lambda path: replacing.begins(path, _MARK.encode(), PICTURE_BYTES), "picture of a host", force=force
    )


def _format(out: Path) -> str:
    return out.suffix.removeprefix(".").lower()


def draw(host: Host, out: Path, *, force: bool = False) -> None:
    """Draw a host into a picture file; the format is that of the file's ending."""
    from workbench.files import whole_file
    from workbench.plots.topology import host_dataset, topology

    check_replaceable(out, force)
    kind = _format(out)
    figure = topology(host_dataset(host), title=host.title or host.name, assumed=", ".join(host.assumed))
    with whole_file(out) as temporary:
        content = io.BytesIO()  # what writes PDF stumbles over a full disk
        figure.savefig(content, format=kind, metadata=_PICTURES[kind])
        temporary.write_bytes(content.getbuffer())


def _list(as_json: bool) -> None:
    from workbench.topology.host import Host, machine_names

    hosts = [Host.from_machine(name) for name in machine_names()]
    if as_json:
        typer.echo(json.dumps([_row(host) for host in hosts], indent=1))
        return
    from rich.table import Table

    from workbench.commands.terminal import console
    from workbench.units import format_bytes

    table = Table("name", "machine", box=None, pad_edge=False, header_style="bold")
    for column in ("nodes", "memory", "CPUs"):
        table.add_column(column, justify="right")
    table.add_column("kinds")
    table.add_column("distances")
    table.add_column("assumed")
    for row in map(_row, hosts):
        cpus = "?" if "cpus" in row["assumed"] else str(row["cpus"])
        memory = format_bytes(row["memory_bytes"]) + ("?" if "memory_bytes" in row["assumed"] else "")
        distances = "10" if row["farthest"] == 10 else f"10-{row['farthest']}"
        assumed = ", ".join(row["assumed"])
        table.add_row(row["name"], row["title"], str(row["nodes"]), memory, cpus, row["kinds"], distances, assumed)
    console().print(table)


def _row(host: Host) -> dict[str, Any]:
    kinds = Counter(node.kind for node in host.nodes)
    return {
        "name": host.name,
        "title": host.title,
        "nodes": len(host.nodes),
        "memory_bytes": host.memory_bytes,
        "cpus": sum(len(node.cpus) for node in host.nodes),
        "kinds": " ".join(f"{count} {kind}" for kind, count in kinds.items()),
        "farthest": max(map(max, host.distances)),
        "assumed": list(host.assumed),
        "source": host.source,
    }


def _show(host: Host) -> None:
    from rich.table import Table
    from rich.text import Text

    from workbench.bitmap_lists import format_list
    from workbench.commands.terminal import console
    from workbench.units import format_bytes

    screen = console()
    screen.print(Text(host.title or host.name, style="bold"))
    for label, text in (("source", host.source), ("note", host.note), ("assumed", ", ".join(host.assumed))):
        if text:
            screen.print(Text(f"{label}: {text}", style="dim"), soft_wrap=True)
    for line in host.assumptions():
        screen.print(Text(f"  {line}", style="dim"), soft_wrap=True)
    nodes = Table("node", "kind", box=None, pad_edge=False, header_style="bold")
    nodes.add_column("memory", justify="right")
    nodes.add_column("free", justify="right")
    pools = any(node.hugetlb for node in host.nodes)
    if pools:
        nodes.add_column("huge pages free", justify="right")
    nodes.add_column("CPUs")
    for members in _alike(host):
        node = host.nodes[members[0]]
        cpus = [cpu for index in members for cpu in host.nodes[index].cpus]
        shown = "-" if not cpus else _short(format_list(cpus)) if len(members) == 1 else f"{len(node.cpus)} each"
        free = format_bytes(node.free_bytes) if node.free_bytes is not None and len(members) == 1 else ""
        kind = node.kind + (" movable" if node.movable else "")
        memory = format_bytes(node.memory_bytes) if node.memory_bytes else "none"
        label = format_list([host.nodes[index].id for index in members])
        row = [label, kind, memory + (" each" if len(members) > 1 else ""), free]
        nodes.add_row(*row, *([_pools(node)] if pools else []), shown)
    screen.print(nodes)
    screen.print()
    for line in matrix_lines(host, screen.width):
        screen.print(line, soft_wrap=True)
    if host.access:
        screen.print()
        screen.print(_access_table(host))


def _costs(host: Host) -> None:
    """Parameters of memory and links as far as they are known for this host, each with its range and who says so."""
    from workbench.cost import machine, profile

    known, of_class = machine.parameters(host), machine.class_of(host)
    title = "no class is known" if of_class is None else f"class {of_class.name}: {of_class.title}"
    typer.echo(f"\ncost of memory ({title}); modelled, value and range:")
    measured = profile.profile_of(host.name)
    if measured is not None:
        typer.echo(f"  measured figures of profile {measured.name} go before these")
    absent = {"hbm", "cxl", "gpu", "nvm"} - {node.kind for node in host.nodes}
    for name in machine.SAMPLED:
        if name.partition("_")[0] in absent:
            continue
        cost = known[name]
        source = cost.source if of_class is None else cost.source.replace(f"{of_class.title}: ", "")
        mark = "estimate" if source.startswith("estimate") or "used part: estimate" in source else "published"
        numbers = f"{cost.value:>9.4g}  {cost.low:>9.4g} to {cost.high:<9.4g} {cost.unit:<6}"
        typer.echo(f"  {name:<23}{numbers} {mark:<10}{source.removeprefix('estimate').lstrip(': ')}")


def _pools(node: Node) -> str:
    """``0 of 16 x 1 GiB``, a pool after another; empty pools are left out, none where all are."""
    from workbench.units import format_bytes

    return (
        ", ".join(f"{p.free:,} of {p.total:,} x {format_bytes(p.page_bytes)}" for p in node.hugetlb if p.total)
        or "none"
    )


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _look(node: Node) -> tuple[object, ...]:
    from workbench.units import format_bytes

    return node.kind, format_bytes(node.memory_bytes), node.movable, len(node.cpus), node.hugetlb


def _alike(host: Host) -> list[list[int]]:
    """Runs of nodes that look the same but for their id and which CPUs they have; only on hosts with many nodes."""
    runs: list[list[int]] = []
    for index, node in enumerate(host.nodes):
        before = host.nodes[runs[-1][0]] if runs else None
        if before is not None and _look(node) == _look(before) and len(host.nodes) > 16:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def matrix_lines(host: Host, width: int) -> list[Any]:
    """The distance matrix as lines of coloured text that fit into ``width`` columns.

    Numbers where there is room; else one or two columns for each node with a symbol for each distance and a legend.
    """
    from rich.text import Text

    ids = [str(node.id) for node in host.nodes]
    label = max(map(len, ids))
    values = sorted({value for row in host.distances for value in row})
    wide = max(len(str(values[-1])), label) + 1
    if label + 1 + wide * len(ids) <= width and len(ids) <= 40:
        lines = [Text(" " * (label + 1) + "".join(node.rjust(wide) for node in ids), style="bold")]
        for node, row in zip(ids, host.distances, strict=True):
            line = Text(node.rjust(label) + " ", style="bold")
            for value in row:
                line.append(str(value).rjust(wide), style=_heat(values.index(value), len(values)))
            lines.append(line)
        return [Text("distances (row: from, column: to)"), *lines]
    symbols = {value: _symbol(position, values) for position, value in enumerate(values)}
    gap = 2 if label + 2 + 2 * len(ids) <= width else 1
    lines = [Text("distances (row: from, column: to), one symbol for each distance:")]
    legend = Text()
    for value in values:
        legend.append(f" {symbols[value]} ", style=_heat(values.index(value), len(values)))
        legend.append(f" {value}  ")
    lines.append(legend)
    for digit in range(label):  # column headings are read from top to bottom
        heading = "".join(node.rjust(label)[digit].rjust(gap) for node in ids)
        lines.append(Text(" " * (label + 1) + heading, style="bold"))
    for node, row in zip(ids, host.distances, strict=True):
        line = Text(node.rjust(label) + " ", style="bold")
        for value in row:
            line.append(symbols[value].rjust(gap), style=_heat(values.index(value), len(values)))
        lines.append(line)
    return lines


def _symbol(position: int, values: list[int]) -> str:
    if values[position] == 10:
        return _LOCAL
    # With more distances than symbols neighbouring distances share one; the legend shows which.
    return _SYMBOLS[position if len(values) <= len(_SYMBOLS) else position * len(_SYMBOLS) // len(values)]


def _heat(position: int, count: int) -> str:
    """Background from light (near) to dark (far), with a text colour that is read on it."""
    import matplotlib

    from workbench.plots.common import HEAT, text_colour

    shade = matplotlib.colormaps[HEAT](0.02 + 0.96 * position / max(1, count - 1))
    background = matplotlib.colors.to_hex(shade)
    return f"{text_colour(background)} on {background}"


def _access_table(host: Host) -> Any:
    from rich.table import Table

    table = Table("initiator", "target", box=None, pad_edge=False, header_style="bold")
    fields = ("read_bandwidth", "write_bandwidth", "read_latency", "write_latency")
    for field in fields:
        unit = "MB/s" if "bandwidth" in field else "ns"
        table.add_column(f"{re.sub('_', ' ', field)} ({unit})", justify="right")
    for access in host.access:
        numbers = [getattr(access, field) for field in fields]
        shown = ["-" if number is None else f"{number:,.0f}" for number in numbers]
        table.add_row(str(access.initiator), str(access.target), *shown)
    return table

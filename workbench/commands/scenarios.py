"""The commands ``scenarios`` and ``compare``: what can be asked at once, and several answers side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.scenario import Scenario


def scenarios(json_: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False) -> None:
    """List the ready scenarios with their questions; `run`, `compare`, `history` and `explore` take their names."""
    from rich.table import Table
    from rich.text import Text

    from workbench.commands.terminal import console
    from workbench.ready import ready_scenarios

    found = ready_scenarios()
    if json_:
        rows = [{"name": one.name, "question": one.question, "look_at": one.look_at} for one in found]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table("scenario", "question", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    for one in found:
        table.add_row(Text(one.name), Text(one.question))
    console().print(table)


def compare(
    scenarios: Annotated[list[str], typer.Argument(help="scenario files or names of ready ones")],
    interfaces: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="each scenario with these policy interfaces: none, create, ..."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field in all of them")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Run scenarios, or one under several policy interfaces, and put their figures side by side."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from workbench.commands.cli import progress_bar
    from workbench.commands.summary import summarise
    from workbench.commands.terminal import console
    from workbench.running import run

    chosen = _variants(scenarios, interfaces, set_ or [])
    summaries: dict[str, dict[str, Any]] = {}
    with progress_bar("scenarios") as progress:
        for number, (name, value) in enumerate(chosen.items()):
            summaries[name] = summarise(run(value))
            progress(number + 1, len(chosen))
    if json_:
        typer.echo(json.dumps(summaries, indent=1))
        return
    table = Table("", *map(escape, summaries))
    for label, cells in _rows(summaries):
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    console().print(table)
    for name, summary in summaries.items():
        for line in summary["warnings"]:
            typer.echo(f"warning: {name}: {line}")
        for told in (one for one in summary["refused"][:5] if "reason" in one):
            typer.echo(f"refused: {name}: {told['event']} {told['op']}: {told['reason']}")


def _variants(sources: list[str], interfaces: str | None, changes: list[str]) -> dict[str, Scenario]:
    """What is compared, by the name that its column has: each scenario, under each interface if some are named."""
    from workbench.commands.cli import read_scenario
    from workbench.names import unknown
    from workbench.scenario import Guest

    known = get_args(Guest.model_fields["policy_interface"].annotation)
    wanted = [name.strip() for name in interfaces.split(",")] if interfaces is not None else []
    if len(set(wanted)) < len(wanted):
        raise WorkbenchError(f"--interfaces: {', '.join(wanted)}; each of them once")
    for name in wanted:
        if name not in known:
            raise WorkbenchError(f"--interfaces: {unknown(name, known)}")
    out: dict[str, Scenario] = {}
    for source in sources:
        value: Scenario = read_scenario(source, changes)
        parts = {value.name: value}
        if wanted:
            prefix = f"{value.name}: " if len(sources) > 1 else ""
            parts = {f"{prefix}{name}": value.replace(**{"guest.policy_interface": name}) for name in wanted}
        for name, part in parts.items():
            if name in out:
                raise WorkbenchError(
                    f"compare: {name!r} is there twice; scenarios that are compared differ in their names"
                )
            out[name] = part
    if len(out) < 2:
        raise WorkbenchError("compare: one scenario; name two or more, or --interfaces")
    return out


def _rows(summaries: Mapping[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The table: memory of each file by node, what the vCPUs get, what was refused, whose rules held."""
    from workbench.errnos import errno_name
    from workbench.units import format_bytes

    every = list(summaries.values())
    files = list(dict.fromkeys(file for one in every for file in one["bytes_per_node"]))
    nodes = sorted({int(node) for one in every for amounts in one["bytes_per_node"].values() for node in amounts})
    rows: list[tuple[str, list[str]]] = []
    for file in files:
        for node in nodes:
            cells = []
            for one in every:
                amounts = one["bytes_per_node"].get(file, {})
                amount, total = amounts.get(str(node)), sum(amounts.values())
                cells.append("-" if amount is None else f"{format_bytes(amount)} ({amount / (total or 1):.0%})")
            if any(cell[0] not in "-0" for cell in cells):
                rows.append((f"{file}: node {node}", cells))
    vcpus = list(dict.fromkeys(vcpu for one in every for vcpu in one["local_share"]))
    for vcpu in vcpus[:16]:
        shares = [one["local_share"].get(vcpu) for one in every]
        rows.append((f"{vcpu}: local", ["-" if share is None else f"{share:.0%}" for share in shares]))
    refused = [[f"{r['event']} {r['op']}: {errno_name(r['errno'])}" for r in one["refused"]] for one in every]
    if any(refused):
        rows.append(
            ("refused calls", ["\n".join(lines[:5]) + "\n..." * (len(lines) > 5) or "none" for lines in refused])
        )
    rows.append(("calls", [str(one["events"]) for one in every]))
    rows.append(("rules of kernel", [one["kernel_profile"] for one in every]))
    rows.append(("VM type", [one["vm_type"] for one in every]))
    if any(one["vmm_profile"] for one in every):
        rows.append(("VMM", [one["vmm_profile"] or "-" for one in every]))
    return rows


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command()(scenarios)
    app.command()(compare)

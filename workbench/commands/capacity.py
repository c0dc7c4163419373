"""``workbench capacity``: the largest guest that a host can hold, under each policy, and what the rest went to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.design import DESIGNS
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import xarray as xr

_MOST_NODES = 4  # columns of nodes that can be read beside the others


def capacity(
    host: Annotated[
        str,
        typer.Argument(metavar="HOST|FILE|all", help="a machine, `this`, a snapshot or other file, or `all` machines"),
    ],
    page_size: Annotated[str, typer.Option(metavar="SIZE", help="4KiB, 2MiB or 1GiB")] = "4KiB",
    policy: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="e.g. bind,interleave; every mode if left out")
    ] = None,
    kho: Annotated[str, typer.Option(metavar="on|off", help="scratch areas for kexec handover")] = "off",
    confidential: Annotated[bool, typer.Option("--confidential", help="an SNP guest with private memory")] = False,
    by: Annotated[str, typer.Option(metavar="guest|host", help="who populates the memory")] = "guest",
    design: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"what backs the guest: {', '.join(DESIGNS)}")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write .zarr, .zarr.zip or .nc")] = None,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no result")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """The largest guest under each policy before ENOMEM or the OOM killer, by node, with what is lost to what."""
    from workbench import results
    from workbench.commands.cli import progress_bar
    from workbench.studies import capacity as study
    from workbench.topology.host import Host, machine_names

    sizes = {"4KiB": "4 KiB", "2MiB": "2 MiB", "1GiB": "1 GiB"}
    chosen = sizes.get(page_size.replace(" ", ""))
    if chosen is None:
        raise WorkbenchError(f"--page-size: {page_size!r}; one of {', '.join(sizes)}")
    for option, given, allowed in (("--kho", kho, ("on", "off")), ("--by", by, ("guest", "host"))):
        if given not in allowed:
            raise WorkbenchError(f"{option}: {given!r}; one of {', '.join(allowed)}")
    if host == "all" and output is not None:
        raise WorkbenchError("--output: of one host, not of all")
    if output is not None:
        results.check_replaceable(output, force=force)
    names = machine_names() if host == "all" else [host]
    policies = None if policy is None else [name.strip() for name in policy.split(",")]
    found = []
    with progress_bar("policies") as progress:
        for name in names:
            found.append(
                study.capacity(
                    Host.from_machine(name), page_size=chosen, policies=policies, kho=kho == "on",
                    confidential=confidential, by=by, design=design, progress=progress,
                )
            )  # fmt: skip
    if output is not None:
        results.save(found[0], output, force=force)
    for line in dict.fromkeys(str(one.attrs["warnings"]) for one in found if "warnings" in one.attrs):
        typer.echo(f"warning: {line}", err=json_)
    if json_:
        rows = {str(dataset.attrs["scenario"]): study.table(dataset) for dataset in found}
        typer.echo(json.dumps(rows if host == "all" else next(iter(rows.values())), indent=1))
        return
    if host == "all":
        _print_all(found)
        return
    _print(found[0])


def _print(dataset: xr.Dataset) -> None:
    """One host: a row for each policy, with a column for each node as long as they can be read."""
    from rich.table import Table

    from workbench.commands.terminal import console
    from workbench.studies import capacity as study
    from workbench.units import format_bytes

    rows = study.table(dataset)
    lost = [name for name in study.LOSSES if any(row["lost"][name] for row in rows)]
    nodes = list(rows[0]["per_node"]) if len(rows[0]["per_node"]) <= _MOST_NODES else []
    title = (
        f"{dataset.attrs['scenario']}: largest guest of {dataset.attrs['page_size']} pages, {dataset.attrs['design']}"
    )
    shown = Table("policy", "largest guest", *(f"node {node}" for node in nodes), *lost, "a larger one ends with",
                  title=title)  # fmt: skip
    for row in rows:
        shown.add_row(
            row["policy"],
            format_bytes(row["capacity"]),
            *(format_bytes(row["per_node"][node]) for node in nodes),
            *(format_bytes(row["lost"][name]) for name in lost),
            row["ends_with"],
        )
    console().print(shown)
    if not nodes:
        console().print(f"{len(rows[0]['per_node'])} nodes: what lies on each is in --json and in the file of -o")


def _print_all(found: list[xr.Dataset]) -> None:
    """All machines: a row for each, with the largest guest by kind of policy, and what is lost to what under the first one."""
    from rich.table import Table

    from workbench.commands.terminal import console
    from workbench.studies import capacity as study
    from workbench.units import format_bytes

    machines = [study.table(dataset) for dataset in found]
    columns: dict[tuple[str, ...], list[str]] = {}
    for kind in dict.fromkeys(study.kind_of(row["policy"]) for rows in machines for row in rows):
        sizes = [[row["capacity"] for row in rows if study.kind_of(row["policy"]) == kind] for rows in machines]
        if kind == "bind to all":  # one node is all that there is
            sizes = [some or [rows[0]["capacity"]] for some, rows in zip(sizes, machines, strict=True)]
        ends = (dict.fromkeys(map(format_bytes, (min(some), max(some)))) for some in sizes)
        columns.setdefault(tuple(" to ".join(both) for both in ends), []).append(kind)
    lost = [name for name in study.LOSSES if any(rows[0]["lost"][name] for rows in machines)]
    title = f"largest guest of {found[0].attrs['page_size']} pages, and what is lost under {machines[0][0]['policy']}"
    shown = Table(title=title)
    shown.add_column("machine", overflow="fold")
    for name in ("nodes", "free", *(", ".join(kinds) for kinds in columns.values()), *lost):
        shown.add_column(name)
    for number, (dataset, rows) in enumerate(zip(found, machines, strict=True)):
        shown.add_row(
            str(dataset.attrs["scenario"]),
            str(len(rows[0]["per_node"])),
            format_bytes(sum(rows[0]["free_at_start"].values())),
            *(cells[number] for cells in columns),
            *(format_bytes(rows[0]["lost"][name]) for name in lost),
        )
    console().print(shown)
    console().print("by node, and what is lost under each policy: workbench capacity MACHINE, or --json")


def register(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(capacity)

"""``workbench history``: what one scenario is answered by one kernel after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def history(
    scenario: Annotated[str, typer.Argument(help="scenario file (YAML), a name in datasets/scenarios, or - for stdin")],
    kernels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="kernel profiles; every released one if left out")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, e.g. guest.memory=8GiB")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write .zarr, .zarr.zip or .nc")] = None,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no result")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Run a scenario under the rules of each kernel: a table of calls and answers, marked where an answer changes."""
    from rich.table import Table
    from rich.text import Text

    from workbench import profiles, results
    from workbench.commands.cli import progress_bar, read_scenario
    from workbench.commands.terminal import console
    from workbench.studies import history as study

    if output is not None:
        results.check_replaceable(output, force=force)
    chosen = None if kernels is None else [name.strip() for name in kernels.split(",")]
    with progress_bar("operations") as progress:
        dataset = study.history(read_scenario(scenario, set_ or []), chosen, progress=progress)
    if output is not None:
        results.save(dataset, output, force=force)
    rows, names = study.table(dataset), [str(name) for name in dataset["kernel"].values]
    refusals = study.first_refusal(dataset)
    warnings = str(dataset.attrs.get("warnings", "")).splitlines()
    if json_:
        typer.echo(json.dumps({"rows": rows, "refusals": refusals, "warnings": warnings}, indent=1))
        return
    for line in warnings:
        typer.echo(f"warning: {line}")
    shown = Table("event", "call", *names, title=str(dataset.attrs["scenario"]))
    for row in rows:
        changes = row["changes"]
        assert isinstance(changes, list)
        answers = [Text(("* " if name in changes else "") + str(row[name])) for name in names]
        shown.add_row(str(row["event"]), str(row["call"]), *answers)
    console().print(shown)
    typer.echo("* the answer is another than on the kernel before")
    for name, why in refusals.items():
        typer.echo(f"{name} refuses what others take: {why}")
    for name in names:
        shipped = profiles.KERNEL_PROFILES[name].distributions
        if shipped:
            typer.echo(f"{name}: {', '.join(shipped)}")


def register(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(history)

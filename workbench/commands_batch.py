"""The commands ``report``, ``batch``, ``gallery`` and ``sweep``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from workbench.errors import WorkbenchError


class PairCommand(TyperCommand):
    """Takes ``-p NAME VALUE`` (papermill's form) as well as ``-p NAME=VALUE``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                joined += [word, *rest]
                break
            joined.append(word)
            if word in ("-p", "--parameter") and rest:
                name = rest.pop(0)
                if "=" not in name:
                    if not rest:
                        raise WorkbenchError(f"-p {name}: a value is missing")
                    name = f"{name}={rest.pop(0)}"
                joined.append(name)
        return super().parse_args(ctx, joined)


def _pairs(words: list[str] | None) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words or [])


def _read_values(path: Path) -> dict[str, object]:
    from workbench.safe_yaml import load

    values = load(path, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise WorkbenchError(f"{path}: parameters are a mapping of names to values")
    return values


def report(
    notebook: Annotated[Path, typer.Argument(help="A notebook; with --check, a report made from one.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="A parameter of the notebook (repeat for more)."),
    ] = None,
    parameter_file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Parameters from a YAML file; -p wins over it.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The HTML file; NOTEBOOK's name by default.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Make the report again and say whether the figures' data agree.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--notebook", help="With --check: where the notebook is now.")
    ] = None,
    show: Annotated[bool, typer.Option("--parameters", help="List the notebook's parameters and stop.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds one cell may take.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Run a notebook and write one HTML file that opens anywhere, without a network."""
    from workbench.report import NotebookFailed, check_report, make_report

    try:
        if show:
            _show_parameters(notebook)
            return
        if check:
            if parameter or parameter_file or out:
                raise WorkbenchError("--check takes the report's own parameters; leave -p, -f and -o out")
            comparison = check_report(notebook, source, progress=not quiet, timeout=timeout)
            for number, kind, then, now in comparison.rows:
                verdict = "agrees" if then == now else f"DIFFERS: {then[:12]} then, {now[:12]} now"
                typer.echo(f"figure {number} ({kind}): {verdict}")
            for note in comparison.notes:
                typer.echo(f"note: {note}", err=True)
            total = len(comparison.rows)
            typer.echo(f"{notebook}: {'all' if comparison.agrees else 'not all'} {total} figures agree")
            if not comparison.agrees:
                raise typer.Exit(1)
            return
        values = _read_values(parameter_file) if parameter_file else {}
        made = make_report(
            notebook, out, parameters=values, texts=_pairs(parameter), progress=not quiet, timeout=timeout
        )
    except NotebookFailed as error:
        typer.echo(f"workbench: {error}", err=True)
        raise typer.Exit(1) from error
    if not quiet:
        for table in made.summaries:
            _print_table(table["title"], table["columns"], table["rows"])
        size = f"{made.bytes / 1e6:.2f} MB, {len(made.figures)} figures, {made.seconds:.1f} s"
        typer.echo(f"{made.title}: {size}", err=True)
    typer.echo(str(made.path))


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from workbench.cli import console

    table = Table(*(Text(column) for column in columns), title=Text(title) if title else None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a value are no markup
    console().print(table)


def _show_parameters(notebook: Path) -> None:
    from workbench.notebook_parameters import read_notebook, read_parameters

    for item in read_parameters(read_notebook(notebook), notebook.name).values():
        typer.echo(f"{item.name}: {item.annotation} = {item.default}" + (f"  # {item.help}" if item.help else ""))


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command(cls=PairCommand)(report)


def main() -> None:
    """Run these commands alone: ``python -m workbench.commands_batch``."""
    app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
    app.callback()(lambda: None)
    register(app)
    try:
        app()
    except WorkbenchError as error:
        typer.echo(f"workbench: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

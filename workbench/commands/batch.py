"""The commands ``report``, ``batch``, ``gallery`` and ``sweep``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from workbench.commands import interrupts
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.sweeps.grid import Grid


class PairCommand(TyperCommand):
    """Takes ``-p NAME VALUE`` (papermill's form) as well as ``-p NAME=VALUE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
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
    pairs: dict[str, str] = {}
    for word in words or []:
        name, _, text = word.partition("=")
        if name in pairs:
            raise WorkbenchError(f"-p {name}: is there twice, as {pairs[name][:60]!r} and {text[:60]!r}")
        pairs[name] = text
    return pairs


def _read_values(path: Path) -> dict[str, object]:
    from workbench.safe_yaml import load

    values = load(path, "parameters")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise WorkbenchError(f"{path}: parameters are a mapping of names to values")
    return values


def report(
    notebook: Annotated[Path, typer.Argument(help="A notebook, or a ready one's name; with --check, a report.")],
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
    source: Annotated[Path | None, typer.Option("--notebook", help="With --check: where the notebook is now.")] = None,
    show: Annotated[bool, typer.Option("--parameters", help="List the notebook's parameters and stop.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds one cell may take.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let -o replace what is no report.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Run a notebook and write one HTML file that opens anywhere, without a network."""
    from workbench.reports.report import NotebookFailed, check_report, make_report

    shown = not quiet and sys.stderr.isatty()  # a pipe gets the one line that says what is wrong
    try:
        if show:
            _show_parameters(notebook)
            return
        if check:
            if parameter or parameter_file or out:
                raise WorkbenchError("--check takes the report's own parameters; leave -p, -f and -o out")
            comparison = check_report(notebook, source, progress=shown, timeout=timeout)
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
            notebook,
            out,
            parameters=values,
            texts=_pairs(parameter),
            progress=shown,
            timeout=timeout,
            force=force,
        )
    except NotebookFailed as error:
        typer.echo(f"workbench: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise interrupts.tell("no report was written") from None
    if not quiet:
        for table in made.summaries:
            _print_table(table["title"], table["columns"], table["rows"])
        size = f"{made.bytes / 1e6:.2f} MB, {len(made.figures)} figures, {made.seconds:.1f} s"
        typer.echo(f"{made.title}: {size}", err=True)
    typer.echo(str(made.path))


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from workbench.commands.terminal import console

    if title:
        typer.echo(title)
    table = Table()
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a value are no markup
    console().print(table)


def _show_parameters(notebook: Path) -> None:
    from workbench.reports.notebook_parameters import find_notebook, read_notebook, read_parameters

    notebook = find_notebook(notebook)
    for item in read_parameters(read_notebook(notebook), notebook.name).values():
        typer.echo(f"{item.name}: {item.annotation} = {item.default}" + (f"  # {item.help}" if item.help else ""))


def batch(
    jobs: Annotated[Path, typer.Argument(help="Jobs (YAML): notebooks with parameters.")],
    workers: Annotated[int, typer.Option("-j", "--workers", min=1, help="Notebooks that run at the same time.")] = 2,
    out_dir: Annotated[Path | None, typer.Option("-d", "--out-dir", help="Where reports and logs go.")] = None,
    gallery_page: Annotated[bool, typer.Option("--gallery", help="End with an index page of the reports.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is no report, log or gallery.")] = False,
) -> None:
    """Make many reports, several at a time, each with a log. Exit code 1 if any of them failed."""
    from workbench.reports.gallery import check_replaceable, make_gallery
    from workbench.sweeps.batch import JobOutcome, read_jobs, run_batch

    found = read_jobs(jobs, out_dir)
    index = found[0].out.parent / "index.html"
    if gallery_page:
        check_replaceable(index, force)
    done = 0

    def finished(outcome: JobOutcome) -> None:
        nonlocal done
        done += 1
        typer.echo(f"{done}/{len(found)} {outcome.job.name}: {outcome.state} ({outcome.seconds:.1f} s)", err=True)

    try:
        outcomes = run_batch(found, workers, force=force, finished=finished)
    except KeyboardInterrupt:
        raise interrupts.tell(f"{done} of {len(found)} jobs had ended, the others were stopped") from None
    rows = [
        [item.job.name, item.state, f"{item.seconds:.1f}", str(item.job.out if item.state == "ok" else item.job.log),
         item.message]
        for item in outcomes
    ]  # fmt: skip
    failed = sum(item.state != "ok" for item in outcomes)
    _print_table("", ["job", "state", "seconds", "report, or log", "why"], rows)
    typer.echo(f"{len(outcomes)} jobs, {failed} failed")
    if gallery_page and failed < len(outcomes):
        page, _ = make_gallery(index.parent, index, force=force)
        typer.echo(str(page))
    if failed:
        raise typer.Exit(1)


def gallery(
    folder: Annotated[Path, typer.Argument(help="A directory with reports in it, at any depth.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; index.html there by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let -o replace what is no gallery.")] = False,
) -> None:
    """Build an index page over many reports: pictures, search, parameters as columns."""
    from workbench.reports.gallery import make_gallery

    page, count = make_gallery(folder, out, force=force)
    typer.echo(f"{count} reports", err=True)
    typer.echo(str(page))


def sweep(
    grid: Annotated[Path, typer.Argument(help="The grid (YAML): a base scenario and axes.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The Zarr store; when it is there, the rest is computed.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, as tcp://host:8786.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; 0 computes in this one. Default: one per processor.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many cells, how long, how much memory.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Compute failed cells again.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Simulate every cell of a grid into one Zarr store. Killed at any moment, the same command does the rest."""
    import numpy as np

    from workbench.sweeps.grid import Grid
    from workbench.sweeps.store import FAILED
    from workbench.sweeps.sweep import sweep as run_sweep

    if not grid.exists():
        raise WorkbenchError(f"grid {str(grid)!r}: no such file")
    value = Grid.from_yaml(grid)
    if dry_run:
        _dry_run(value, out, workers)
        return
    if out is None:
        raise WorkbenchError("-o: a sweep needs the name of its store; only --dry-run goes without")
    try:
        dataset = run_sweep(
            value,
            out=out,
            workers=workers,
            scheduler=scheduler,
            retry_failed=retry_failed,
            progress=None if not quiet else False,
        )
    except KeyboardInterrupt:
        raise interrupts.tell(f"{out} is whole, and the same command does the rest") from None
    status, errors = dataset["status"].values, dataset["error"].values
    failed = np.argwhere(status == FAILED)
    typer.echo(f"{out}: {status.size} cells, {len(failed)} failed")
    for index in failed[:5]:
        typer.echo(f"failed: {_cell_name(value, index)}: {errors[tuple(index)]}", err=True)
    if len(failed) > 5:
        typer.echo(f"... and {len(failed) - 5} more; 'error' in the store has them all", err=True)
    for line in str(dataset.attrs.get("warnings", "")).splitlines():
        typer.echo(f"warning: {line}", err=True)
    if len(failed):
        raise typer.Exit(1)


def _cell_name(grid: Grid, index: Sequence[int]) -> str:
    return ", ".join(f"{axis.name}={axis.labels[at]}" for axis, at in zip(grid.axes, index, strict=True))


def _dry_run(grid: Grid, out: Path | None, workers: int | None) -> None:
    import os

    from workbench.sweeps.sweep import estimate
    from workbench.units import format_bytes

    found = estimate(grid, out)
    count = (os.cpu_count() or 1) if workers is None else max(workers, 1)
    shape = " x ".join(f"{axis.name} {len(axis)}" for axis in grid.axes)
    typer.echo(f"{grid.name}: {found.cells:,} cells ({shape}), {found.pending:,} to do, {found.chunks:,} chunks")
    each = f"{found.cell_seconds * 1e3:.3g} ms a cell"
    typer.echo(
        f"time: about {_duration(found.seconds(count))} on {count} processes ({each}, measured on {found.tried} cells)"
    )
    typer.echo(f"memory: about {format_bytes(found.process_bytes)} a process")
    typer.echo(f"store: at most {format_bytes(found.store_bytes)}, less when compressed; nothing was written")
    for index, error in found.failed.items():
        typer.echo(f"would fail: {_cell_name(grid, index)}: {error}", err=True)
    if len(found.failed) == found.tried:
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command(cls=PairCommand)(report)
    app.command()(batch)
    app.command()(gallery)
    app.command()(sweep)


def main() -> None:
    """Run these commands alone: ``python -m workbench.commands.batch``."""
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

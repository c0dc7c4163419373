"""The ``workbench`` command: thin commands over the package.

Exit code 0, 1 if something disagrees or failed, 2 for bad input, 70 for a fault of the workbench itself (EX_SOFTWARE of
sysexits.h), 130 after Ctrl-C. Every error is one line on standard error; of a fault of ours it names a file with what a
report of it needs. ``-`` stands for standard input or output where it fits.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from workbench.commands import interrupts
from workbench.design import DESIGNS
from workbench.errors import WorkbenchError
from workbench.kernels import first_use
from workbench.limits import YAML_BYTES

app = typer.Typer(
    name="workbench",
    help="Where Linux places the memory of virtual machines backed by guest_memfd.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        import workbench

        typer.echo(f"workbench {workbench.__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="scenario file (YAML), a name in datasets/scenarios, or - for stdin")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, e.g. guest.memory=8GiB")
    ] = None,
    designs: Annotated[
        str | None, typer.Option(metavar="A,B,...", help=f"compare designs: {', '.join(DESIGNS)}")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="measured profile of the machine, for what accesses cost")
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option("--kernel-profile", metavar="A,B,...", help="whose rules hold, e.g. 7.3; several are compared"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write .zarr, .zarr.zip or .nc")] = None,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no result of a run")] = False,
    calls: Annotated[bool, typer.Option("--calls", help="print every call with what Linux returns")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Simulate a scenario: print where its pages land, and keep the Dataset if asked to."""
    from workbench.commands.summary import accesses, comparison, list_calls, print_comparison, print_summary, summarise

    if output is not None:
        from workbench import results

        results.check_replaceable(output, force=force)
    value = read_scenario(scenario, set_ or [])
    if profile is not None:
        from workbench.cost.profile import with_profile

        value = value.model_copy(update={"host": with_profile(value.host, profile)})
    with progress_bar("operations") as progress:
        chosen = None if designs is None else [name.strip() for name in designs.split(",")]
        profiles = None if kernels is None else [name.strip() for name in kernels.split(",")]
        if profiles is not None and len(profiles) == 1:
            value, profiles = value.replace(kernel_profile=profiles[0]), None
        # Who neither keeps nor compares, nor asks for costs, needs no Dataset.
        if output is None and chosen is None and profiles is None and profile is None:
            from workbench.running import run as run_alone

            found: Any = run_alone(value, progress=progress)
        else:
            from workbench.simulation import simulate

            found = simulate(value, designs=chosen, kernel_profiles=profiles, progress=progress)
    if output is not None:
        results.save(found, output, force=force)
    if chosen is not None:
        summaries = {name: summarise(found.sel(design=name)) for name in chosen}
    elif profiles is not None:
        summaries = {name: summarise(found.sel(kernel=name)) for name in profiles}
    else:
        summaries = {"": summarise(found)}
    along = "design" if chosen is not None else "kernel" if profiles is not None else ""
    if profile is not None:
        for name, summary in summaries.items():
            summary["accesses"] = {profile: accesses(found.sel({along: name}) if along else found, value.host)}
    if calls:
        for name, summary in summaries.items():
            summary["calls"] = list_calls(found.sel({along: name}) if along else found)
    if json_:
        compared = {"comparison": comparison(found, along)} if along else {}
        typer.echo(json.dumps(summaries.get("", summaries | compared), indent=1))
    else:
        distinct: list[tuple[list[str], dict[str, Any]]] = []
        for name, summary in summaries.items():
            same = [names for names, other in distinct if other == summary]
            if same:
                same[0].append(name)
            else:
                distinct.append(([name], summary))
        for names, summary in distinct:
            print_summary(summary, ", ".join(names))
        if along:
            print_comparison(found, along)
        else:
            vmm = f", VMM {found.attrs['vmm_profile']}" if found.attrs["vmm_profile"] else ""
            typer.echo(f"rules of kernel {found.attrs['kernel_profile']}, VM type {found.attrs['vm_type']}{vmm}")
    if output is not None:
        typer.echo(f"result: {output}", err=json_)


@app.command()
def verify(
    files: Annotated[
        list[Path], typer.Argument(help="recordings (.json or .json.gz), or names of shipped ones (t2eq)")
    ],
    json_: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    most: Annotated[int, typer.Option(min=0, help="mismatches to print")] = 20,
) -> None:
    """Replay recordings of a real kernel and compare every return value, errno and page. Exit code 0 only if all agree."""
    from workbench.truth.verify import verify as replay

    with progress_bar("scripts") as progress:
        reports = replay(files, progress=progress)
    if json_:
        typer.echo(json.dumps([report.as_mapping() for report in reports], indent=1))
    else:
        _print_reports(reports, most)
    raise typer.Exit(0 if all(report.agrees for report in reports) else 1)


def _print_reports(reports: list[Any], most: int) -> None:
    from rich.table import Table

    from workbench.commands.terminal import console

    columns = (
        "scripts",
        "operations",
        "judged",
        "pages",
        "mismatches",
        "not judged",
        "pages not judged",
        "pages apart",
    )
    table = Table("recording", "topology", *columns)
    for report in reports:
        totals = [str(value) for value in report.totals().values()]
        table.add_row(Path(report.path).name, report.topology, *totals)
    console().print(table)
    for report in reports:
        if report.note:
            typer.echo(f"{Path(report.path).name}: {report.note}")
    reasons: dict[str, int] = {}
    for report in reports:
        for scenario in report.scenarios:
            for reason, count in scenario.not_judged.items():
                reasons[reason] = reasons.get(reason, 0) + count
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        typer.echo(f"not judged: {count} operations: {reason}")
    apart = [(report, script) for report in reports for script in report.scenarios if script.deviation]
    for report, script in apart:
        typer.echo(
            f"pages apart: {report.topology}/{script.name}: {script.deviation} pages lie on another node than recorded, "
            f"{script.slack} may"
        )
    if apart:
        typer.echo(
            "These scripts use up all memory of a node. At which page Linux then goes on to the next node depends on memory "
            "that the kernel itself takes and gives back meanwhile; the recording shows how much that was, and so many "
            "pages may lie elsewhere, on the same nodes in the same order. Only pages beyond that count as mismatches; "
            "everywhere else every page must agree."
        )
    shown = 0
    for report in reports:
        for scenario in report.scenarios:
            for miss in scenario.mismatches:
                shown += 1
                if shown <= most:
                    typer.echo(
                        f"MISMATCH {report.topology}/{miss.scenario} operation {miss.operation} ({miss.text}) "
                        f"[task {miss.task}, last policy call: {miss.policy}]: {miss.what}: "
                        f"recorded {miss.expected}, simulated {miss.simulated}"
                    )
    if shown > most:
        typer.echo(f"... and {shown - most} more mismatches (--most, --json)")


# ------------------------------------------------------------------------------------------------------- shared


class progress_bar:
    """A bar on standard error while work is done, nothing in a pipe."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def __enter__(self) -> Any:
        if sys.stderr.isatty():  # else who only writes into a pipe imports it for nothing
            from tqdm import tqdm

            self._bar = tqdm(unit=f" {self._unit}", leave=False)

        def update(done: int, total: int) -> None:
            if self._bar is not None:
                self._bar.total = total
                self._bar.update(done - self._bar.n)

        return update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def read_stdin(field: str) -> str:
    """Standard input as text, of at most as many bytes as a file may have. Raises WorkbenchError."""
    content = sys.stdin.buffer.read(YAML_BYTES + 1)
    if len(content) > YAML_BYTES:
        raise WorkbenchError(f"{field}: more than {YAML_BYTES >> 20} MiB on standard input; no more are read")
    try:
        return content.decode("utf-8") + "\n"
    except UnicodeDecodeError:
        raise WorkbenchError(f"{field}: standard input is not UTF-8 text") from None


def read_scenario(source: str, changes: list[str]) -> Any:
    """A scenario from a file, a ready one by name, or standard input (``-``), with ``KEY=VALUE`` changes applied."""
    from workbench.ready import find_scenario
    from workbench.safe_yaml import load, load_text, named
    from workbench.scenario import Scenario, set_path

    given = read_stdin("scenario") if source == "-" else find_scenario(source)
    done: dict[str, str] = {}
    values: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise WorkbenchError(f"--set: {change!r} is not KEY=VALUE")
        lost = next((earlier for earlier in done if earlier == key or earlier.startswith(f"{key}.")), None)
        if lost is not None:
            raise WorkbenchError(f"--set: {change[:100]!r} undoes {done[lost][:100]!r}")
        done[key] = change
        values[key] = load(f"value: {value}\n", "--set")["value"]
    with named(given, "scenario", tuple(done)) as text:
        mapping = dict(load_text(text, "scenario"))
        for key, new in values.items():
            set_path(mapping, key, new)
        return Scenario.from_mapping(mapping)


_HERE = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
"""Commands that need none of the other modules."""


@functools.cache
def _register_all() -> None:
    for module in (
        "machines",
        "importing",
        "measure",
        "batch",
        "record",
        "oracle",
        "reproduce",
        "explore",
        "history",
        "scenarios",
        "capacity",
        "docs",
    ):
        importlib.import_module(f"workbench.commands.{module}").register(app)


def _start_quickly() -> None:
    """What a short run would wait for and does not need."""
    gc.set_threshold(200_000, 20, 100)  # importing makes a million objects and no garbage
    atexit.register(gc.freeze)  # nor need they be looked through when the process ends
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would look through all that is installed
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here needs more, and they spin beside the imports
    sys.modules.setdefault("coverage", None)  # type: ignore[arg-type]  # Numba would extend what it reports
    if not _HERE.intersection(sys.argv[1:2]):
        _register_all()


def one_line(error: BaseException | str) -> str:
    """What an error says, as one line that a terminal shows and takes no orders from."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main() -> None:
    """Entry point: run the command, turn bad input into one line and exit code 2, a fault of ours into one and 70."""
    first_use.listeners.append(first_use.Line())
    try:
        _start_quickly()
        code = app(standalone_mode=False, prog_name="workbench")
        if code == interrupts.EXIT_CODE:
            interrupts.tell("nothing was written")
        raise SystemExit(code if isinstance(code, int) else 0)
    except TyperException as error:
        from workbench.commands.usage import usage_line

        line = usage_line(error)
        typer.echo(error.format_message() if line is None else one_line(line), err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        interrupts.tell("nothing was written")
        raise SystemExit(interrupts.EXIT_CODE) from None
    except WorkbenchError as error:
        if interrupts.came:
            interrupts.tell("nothing was written")
            raise SystemExit(interrupts.EXIT_CODE) from None
        typer.echo(f"workbench: {one_line(error)}", err=True)
        raise SystemExit(2) from None
    except MemoryError:
        typer.echo(
            "workbench: what was asked for needs more memory than this machine gives; nothing was written", err=True
        )
        raise SystemExit(2) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except Exception as error:
        if interrupts.came:
            interrupts.tell("nothing was written")
            raise SystemExit(interrupts.EXIT_CODE) from None
        if isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None:  # a closed terminal
            sys.stderr.close()
            raise SystemExit(1) from None
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)
            typer.echo(f"workbench: {one_line(ValueError(name[:60]))}...: no file has so long a name", err=True)
            raise SystemExit(2) from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            typer.echo(f"workbench: {one_line(str(error.filename or 'output'))[:200]}: {error.strerror}", err=True)
            raise SystemExit(2) from None
        from workbench.commands.fault_log import write

        kept = write(error)
        place = f"; please attach {kept} to a report of it" if kept else ""
        typer.echo(f"workbench: a fault of the workbench ({type(error).__name__}){place}", err=True)
        raise SystemExit(70) from None


if __name__ == "__main__":
    main()

"""The ``workbench`` command: thin commands over the package.

Exit code 0, 1 if something disagrees or failed, 2 for bad input, 70 for a fault of the workbench itself (EX_SOFTWARE of
sysexits.h), 130 after Ctrl-C. Every error is one line on standard error; of a fault of ours it names a file with what a
report of it needs. ``-`` stands for standard input or output where it fits.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.design import DESIGNS
from workbench.errnos import errno_name
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
    from workbench import results
    from workbench.simulation import simulate

    if output is not None:
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
        dataset = simulate(value, designs=chosen, kernel_profiles=profiles, progress=progress)
    if output is not None:
        results.save(dataset, output, force=force)
    if chosen is not None:
        summaries = {name: summarise(dataset.sel(design=name)) for name in chosen}
    elif profiles is not None:
        summaries = {name: summarise(dataset.sel(kernel=name)) for name in profiles}
    else:
        summaries = {"": summarise(dataset)}
    along = "design" if chosen is not None else "kernel" if profiles is not None else ""
    if calls:
        for name, summary in summaries.items():
            summary["calls"] = list_calls(dataset.sel({along: name}) if along else dataset)
    if json_:
        compared = {"comparison": comparison(dataset, along)} if along else {}
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
            print_comparison(dataset, along)
        else:
            typer.echo(f"rules of kernel {dataset.attrs['kernel_profile']}, VM type {dataset.attrs['vm_type']}")
    if output is not None:
        typer.echo(f"result: {output}", err=json_)


@app.command()
def verify(
    files: Annotated[
        list[Path], typer.Argument(help="recordings (.json or .json.gz), or names of shipped ones (t2eq)")
    ],
    json_: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    most: Annotated[int, typer.Option(help="mismatches to print")] = 20,
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


def console() -> Any:
    """A console on standard output that neither colours nor cuts lines in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


class progress_bar:
    """A bar on standard error while work is done, nothing in a pipe."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def __enter__(self) -> Any:
        from tqdm import tqdm

        self._bar = tqdm(unit=f" {self._unit}", disable=not sys.stderr.isatty(), leave=False)

        def update(done: int, total: int) -> None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

        return update

    def __exit__(self, *_: object) -> None:
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
    from workbench.safe_yaml import load
    from workbench.scenario import Scenario, set_path

    text = read_stdin("scenario") if source == "-" else find_scenario(source)
    mapping = dict(load(text, "scenario"))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise WorkbenchError(f"--set: {change!r} is not KEY=VALUE")
        set_path(mapping, key, load(f"value: {value}\n", "--set")["value"])
    return Scenario.from_mapping(mapping)


def summarise(dataset: Any) -> dict[str, Any]:
    """The main figures of a result as plain numbers."""
    from workbench.results import bytes_per_node, metadata_bytes

    pages = dataset["pages_per_node"]
    nodes = [str(int(node)) for node in dataset["node"].values]
    amounts = bytes_per_node(dataset).tolist()
    refused = [
        {"event": int(event), "op": str(op), "errno": int(error)}
        for event, op, error in zip(
            dataset["event"].values, dataset["event_op"].values, dataset["event_errno"].values, strict=True
        )
        if error
    ]
    return {
        "scenario": dataset.attrs["scenario"],
        "page_size": int(dataset["page_size"]),
        "pages_per_node": {
            str(file): {str(int(node)): int(pages.sel(file=file, node=node)) for node in dataset["node"].values}
            for file in dataset["file"].values
        },
        "bytes_per_node": {
            str(file): dict(zip(nodes, row, strict=True))
            for file, row in zip(dataset["file"].values, amounts, strict=True)
        },
        "metadata_bytes_per_node": {
            str(kind): dict(zip(nodes, row, strict=True))
            for kind, row in zip(dataset["kind"].values, metadata_bytes(dataset).tolist(), strict=True)
        }
        if "metadata_pages" in dataset
        else {},
        "local_share": {str(vcpu): float(dataset["local_share"].sel(vcpu=vcpu)) for vcpu in dataset["vcpu"].values},
        "kernel_profile": str(dataset["kernel"].values)
        if "kernel" in dataset.coords
        else dataset.attrs["kernel_profile"],
        "vm_type": dataset.attrs["vm_type"],
        "events": dataset.sizes["event"],
        "warnings": dataset.attrs.get("warnings", "").splitlines(),
        "assumed": dataset.attrs.get("assumed", "").splitlines(),
        "refused": refused,
    }


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
    from rich.table import Table

    found = comparison(dataset, along)
    if not found:
        if along == "design":
            typer.echo("no conversions: the designs differ in nothing that this run shows")
        return
    table = Table(along, *(dataset[name].attrs["long_name"] for name in found))
    for name in map(str, dataset[along].values):
        table.add_row(name, *(f"{counts[name]:,}" for counts in found.values()))
    console().print(table)


def list_calls(dataset: Any) -> list[dict[str, Any]]:
    """Every call of a run in order: its number from 0, who made it, on which file, and what Linux returned."""
    columns = {
        name: dataset[f"event_{name}"].values.tolist() for name in ("op", "task", "file", "ret", "error", "detail")
    }
    placed = dataset["event_pages"].values.tolist()
    nodes = dataset["node"].values.tolist()
    return [
        {
            "event": int(event),
            **{name: values[at] for name, values in columns.items() if name != "detail"},
            "pages": {str(node): count for node, count in zip(nodes, placed[at], strict=True) if count},
            "detail": json.loads(columns["detail"][at] or "{}"),
        }
        for at, event in enumerate(dataset["event"].values.tolist())
    ]


def print_calls(calls: list[dict[str, Any]]) -> None:
    """The calls of a run as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "task", "call", "file", "returns", "pages placed", "besides", title="calls")
    for one in calls:
        returned = one["error"] or f"{one['ret']:,}"
        placed = ", ".join(f"{count:,} on {node}" for node, count in one["pages"].items())
        besides = ", ".join(f"{key} {value}" for key, value in one["detail"].items())
        table.add_row(str(one["event"]), *map(Text, (one["task"], one["op"], one["file"], returned, placed, besides)))
    console().print(table)


def print_summary(summary: dict[str, Any], design: str = "") -> None:
    """Tables for people."""
    from rich.table import Table

    from workbench.units import format_bytes

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
        all_pages = sum(sum(amounts.values()) for amounts in summary["bytes_per_node"].values())
        table = Table(
            "node",
            *(kind.replace("_", " ") for kind in kinds),
            "all",
            "beside the pages",
            title=f"{summary['scenario']}: what the kernel needs for it",
        )
        for node in summary["bytes_per_node"][next(iter(summary["bytes_per_node"]))]:
            total = sum(row[node] for row in kinds.values())
            share = f"{total / all_pages:.2%}" if all_pages else "-"
            table.add_row(node, *(format_bytes(row[node]) for row in kinds.values()), format_bytes(total), share)
        console().print(table)
    for line in summary["assumed"]:
        typer.echo(f"assumed: {line}")
    if "calls" in summary:
        print_calls(summary["calls"])
    for refusal in summary["refused"][:10]:
        typer.echo(f"event {refusal['event']} ({refusal['op']}) was refused: {errno_name(refusal['errno'])}")


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
    ):
        importlib.import_module(f"workbench.commands.{module}").register(app)
    first_use.listeners.append(first_use.Line())


def one_line(error: BaseException) -> str:
    """What an error says, as one line that a terminal shows and takes no orders from."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main() -> None:
    """Entry point: run the command, turn bad input into one line and exit code 2, a fault of ours into one and 70."""
    _register_all()
    gc.set_threshold(200_000, 20, 100)  # importing makes a million objects and no garbage: a sixth of a short run
    try:
        app()
    except WorkbenchError as error:
        typer.echo(f"workbench: {one_line(error)}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("workbench: interrupted; nothing was written", err=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except Exception as error:
        from workbench.commands.fault_log import write

        kept = write(error)
        place = f"; please attach {kept} to a report of it" if kept else ""
        typer.echo(f"workbench: a fault of the workbench ({type(error).__name__}){place}", err=True)
        raise SystemExit(70) from None


if __name__ == "__main__":
    main()

"""``workbench measure`` and ``workbench machines calibrate``: profiles of machines, measured or read from other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.cost.profile import Profile


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command()
    def measure(
        output: Annotated[Path, typer.Option("-o", "--output", help="the profile to write (.yaml)")] = Path(
            "machine-profile.yaml"
        ),
        name: Annotated[str | None, typer.Option(help="name of the profile; that of the file if left out")] = None,
        budget: Annotated[float, typer.Option(help="seconds to spend, about")] = 60.0,
        buffer: Annotated[
            str | None, typer.Option(help="memory of each thread, e.g. 256MiB; by the caches if left out")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="let -o replace what is no profile, or was edited")
        ] = False,
        json_: Annotated[bool, typer.Option("--json", help="print the profile as JSON")] = False,
    ) -> None:
        """Measure this machine: latency and bandwidth of every node from every node, threads, first touches."""
        from tqdm import tqdm

        from workbench.cost.measure import measure as measure_machine
        from workbench.cost.profile import check_replaceable, profile_text
        from workbench.files import whole_file
        from workbench.units import parse_bytes

        check_replaceable(output, force)
        size = None if buffer is None else parse_bytes(buffer, "--buffer")
        with whole_file(output) as temporary:  # a place nobody may write to is refused before the time is spent
            with tqdm(total=100, unit="%", disable=None, leave=False) as bar:

                def told(label: str, part: float) -> None:
                    bar.set_description(label, refresh=False)
                    bar.update(round(100 * part) - bar.n)

                made = measure_machine(budget=budget, name=name or output.stem, buffer_bytes=size, progress=told)
            temporary.write_text(profile_text(made), encoding="utf-8")
        _tell(made, output, json_)


def add_calibrate(group: typer.Typer) -> None:
    """Add ``calibrate`` to the group of ``workbench machines``."""

    @group.command()
    def calibrate(
        file: Annotated[Path, typer.Argument(help="memory_curves.csv of Mess, or the text that Intel MLC printed")],
        output: Annotated[
            Path | None, typer.Option("-o", "--output", help="the profile to write (.yaml); beside FILE if left out")
        ] = None,
        name: Annotated[str | None, typer.Option(help="name of the profile; that of FILE if left out")] = None,
        kind: Annotated[str, typer.Option(help="kind of memory measured: dram, hbm, cxl or gpu")] = "dram",
        force: Annotated[
            bool, typer.Option("--force", help="let -o replace what is no profile, or was edited")
        ] = False,
        json_: Annotated[bool, typer.Option("--json", help="print the profile as JSON")] = False,
    ) -> None:
        """Make a profile of a machine from what another benchmark measured on it."""
        from workbench.cost.calibrate import calibrate as read
        from workbench.cost.profile import check_replaceable, write_profile

        if output is not None:
            check_replaceable(output, force)
        made = read(file, name, kind)
        if output is None:  # beside a file that was read, so it has a name
            output = file.with_suffix(".profile.yaml")
            check_replaceable(output, force)
        write_profile(made, output)
        _tell(made, output, json_)


def _tell(made: Profile, output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(made.model_dump_json(exclude_defaults=True, indent=1))
    else:
        for line in lines(made):
            typer.echo(line)
    typer.echo(f"profile: {output}", err=as_json)


def lines(made: Profile) -> list[str]:
    """A profile in words: one line for each memory, link and gap."""
    from workbench.cost.profile import Link, Memory

    out = []
    entries: list[Memory | Link] = [*made.memories, *made.links]
    for entry in entries:
        if isinstance(entry, Link):
            between = f"{entry.initiator} -> {entry.target}"
            where = f"node {between}" if entry.distance is None else f"distance {entry.distance}"
        else:
            where = "all nodes" if entry.nodes is None else "node " + ", ".join(map(str, entry.nodes))
            where = f"{entry.kind} of {where}"
        parts = []
        family = entry.family()
        idle = entry.idle_latency or (family.idle if family is not None else None)
        if idle is not None:
            spread = f" ± {100 * entry.spread:.1f} %" if entry.spread is not None else ""
            parts.append(f"{idle:.1f} ns idle{spread}")
        if family is not None:
            shares = ", ".join(f"{100 * share:.0f}" for share in family.measured[:8])
            more = " ..." if len(family.measured) > 8 else ""
            parts.append(f"{family.peaks.max() / 1000:.1f} GB/s at most, curves at {shares}{more} % reads")
        if entry.peaks:
            parts.append("peaks " + ", ".join(f"{v / 1000:.1f} GB/s at {s:.0f} %" for s, v in entry.peaks.items()))
        elif entry.bandwidth is not None:
            parts.append(f"{entry.bandwidth / 1000:.1f} GB/s")
        out.append(f"{where}: {'; '.join(parts)}")
    if made.cores is not None and made.cores.lines_streaming is not None:
        ramp = ", ".join(f"{n}: {v / 1000:.1f}" for n, v in made.cores.by_threads.items())
        out.append(f"one core: {made.cores.lines_streaming:.1f} lines streaming; GB/s by threads {ramp or '-'}")
    if made.first_touch:
        out.append("first touch, ns per 4 KiB: " + ", ".join(f"{p} {v:.0f}" for p, v in made.first_touch.items()))
    out += [f"not measured: {text}" for text in made.not_measured]
    return out

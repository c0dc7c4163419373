"""The command ``record``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench import replacing
from workbench.errors import WorkbenchError
from workbench.files import read_file
from workbench.limits import TEXT_BYTES


def record(
    scenario: Annotated[
        str, typer.Argument(help="scenario (YAML, ready name, or - for stdin), or a script of the recorder (.txt)")
    ],
    kernel: Annotated[
        list[Path],
        typer.Option(
            "--kernel",
            metavar="PATH",
            help="bzImage, Debian package, or directory with image, modules or both (repeatable)",
        ),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, e.g. guest.memory=64MiB")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="recording to write (.json or .json.gz)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no recording")] = False,
    host: Annotated[str | None, typer.Option(help="machine name or host file (YAML); needed for a script")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="replay the recording and compare at once")] = False,
    budget: Annotated[str, typer.Option(help="memory of the emulated host")] = "2 GiB",
    timeout: Annotated[float, typer.Option(help="seconds after which the emulated host is stopped")] = 1800.0,
    qemu: Annotated[str, typer.Option(help="QEMU to use")] = "qemu-system-x86_64",
    append: Annotated[str, typer.Option(help="more words for the kernel's command line, e.g. kho=on")] = "",
) -> None:
    """Run a scenario on a real Linux kernel in QEMU and write down what it did.

    Needs the Debian packages qemu-system-x86, gcc and libc6-dev, and a kernel: one made by `oracle build`, a bzImage of
    your own (with a directory of modules, if KVM is not built in), or a distribution's packages, such as Debian's
    linux-binary-VERSION and linux-modules-VERSION (downloaded or unpacked, not installed). No special hardware. What
    the kernel can do is asked of it at the boot.
    """
    import tempfile

    from workbench.commands.cli import progress_bar, read_scenario
    from workbench.recorder import kernel_package
    from workbench.recorder.record import record as run
    from workbench.units import parse_bytes

    if output is None and not verify:
        raise WorkbenchError("-o: missing; say where to write the recording, or use --verify")
    if output is not None:
        if not output.name.endswith((".json", ".json.gz")):
            raise WorkbenchError(f"--output: {output.name!a} must end in .json or .json.gz")
        replacing.check(output, _is_recording, "recording", force=force, field="--output")
    if scenario.endswith(".txt"):
        value = read_file(Path(scenario), TEXT_BYTES, "scenario").decode("utf-8", "backslashreplace")
        if host is None:
            raise WorkbenchError("--host: missing; a script does not say on which host it runs")
    else:
        value = read_scenario(scenario, set_ or [])
    emulated = _host(host)
    kernel_package.check(kernel)
    with tempfile.TemporaryDirectory() as directory:
        target = output if output is not None else Path(directory) / "recording.json.gz"
        with progress_bar("scripts") as progress:
            result = run(value, emulated, kernel, target, progress=progress, timeout=timeout, qemu=qemu,
                         budget_mib=max(1, int(parse_bytes(budget)) >> 20), kernel_arguments=append)  # fmt: skip
        operations = sum(len(entry["ops"]) for entry in result["scenarios"])
        typer.echo(f"{len(result['scenarios'])} scripts, {operations} operations on {result['kernel'].split(' (')[0]}")
        if output is not None:
            typer.echo(f"recording: {output}")
        if verify:
            _verify(target)


def _host(name: str | None):  # type: ignore[no-untyped-def]
    from workbench.topology.host import Host

    if name is None:
        return None
    return Host.from_machine(name)


def _is_recording(path: Path) -> bool:
    from workbench.truth import recording

    try:
        recording.read(path)
    except WorkbenchError:
        return False
    return True


def _verify(path: Path) -> None:
    from workbench.commands.cli import _print_reports
    from workbench.truth.verify import verify as replay

    reports = replay([path])
    _print_reports(reports, 20)
    if not all(report.agrees for report in reports):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(record)

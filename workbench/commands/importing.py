"""``workbench import``: a scenario from what people run, and the answer they came for: which setting reaches which pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import WorkbenchError
from workbench.limits import YAML_BYTES


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="a QEMU command line (script, log, /proc/PID/cmdline), libvirt domain XML, Firecracker machine "
            "configuration, kubevirt VirtualMachine or kata configuration"
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="NAME|FILE", help="the machine it is to run on: a name, a snapshot, `this`")
    ] = "this",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write the scenario (.yaml)")] = None,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no import, or was edited")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the answer as JSON")] = False,
) -> None:
    """Make a scenario of a virtual machine's configuration, run it, and say which setting reaches which pages."""
    from workbench import replacing
    from workbench.commands.summary import print_summary, summarise
    from workbench.files import whole_file
    from workbench.simulation import simulate
    from workbench.topology.host import Host
    from workbench.vmconfig.placement import scenario_of
    from workbench.vmconfig.reach import reach
    from workbench.vmconfig.readers import read

    if output is not None:
        if output.suffix not in (".yaml", ".yml"):
            raise WorkbenchError(f"--output: {output.name!a} must end in .yaml")
        replacing.check(output, lambda path: replacing.is_signed(path, "import", YAML_BYTES),
                        "scenario as import wrote it", force=force, field="--output")  # fmt: skip
    machine = Host.from_machine(host)
    vm = read(file, [node.id for node in machine.nodes])
    scenario = scenario_of(vm, machine)
    result = simulate(scenario)
    found = reach(vm, result)
    if output is not None:
        with whole_file(output) as temporary:
            temporary.write_text(replacing.signed("import", scenario.to_yaml()), encoding="utf-8")
    if json_:
        answer: dict[str, Any] = {
            "reach": [vars(line) for line in found],
            "not_understood": vm.unknown,
            "notes": vm.notes,
            **summarise(result),
        }
        typer.echo(json.dumps(answer, indent=1))
        return
    for line in found:
        typer.echo(f"{'warning: ' if line.warning else ''}{line.line()}")
    for word in vm.unknown:
        typer.echo(f"not understood: {_shown(word)}")
    for note in vm.notes:
        typer.echo(f"note: {_shown(note)}")
    print_summary(summarise(result) | {"warnings": []})  # they are among the first lines, in the configuration's words
    if output is not None:
        typer.echo(f"scenario: {output}")


def _shown(text: str) -> str:
    """Without control characters, which a configuration may hold."""
    return "".join(character if character.isprintable() else "?" for character in text)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="import")(import_)

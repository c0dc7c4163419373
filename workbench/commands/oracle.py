"""The commands ``oracle build``, ``oracle fetch`` and ``oracle verbs``: what recording on a real kernel needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

oracle = typer.Typer(
    help="What `record` needs: a kernel of our own, packages of others, the script language.", no_args_is_help=True
)


@oracle.command()
def build(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="directory for bzImage, config, build.json, build.log")
    ],
    source: Annotated[
        Path | None,
        typer.Option(help="linux-source-*.deb, tarball or tree of a kernel; left out, Debian's package is fetched"),
    ] = None,
    fragment: Annotated[Path | None, typer.Option(help="options over tinyconfig instead of our own")] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", help="compilers at once; all CPUs if left out")] = None,
    keep_tree: Annotated[bool, typer.Option("--keep-tree", help="leave source and objects in the output")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace files of those names that no build made")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over where a build was interrupted")] = False,
) -> None:
    """Build a kernel that has private memory and kexec handover, for `record --kernel DIRECTORY/bzImage`.

    Takes about 25 minutes of one core and 3 GiB of disk. Needs the Debian packages gcc, make, binutils, flex, bison, bc,
    xz-utils and libelf-dev. A patched tree of your own builds as well (--source TREE). One that was interrupted goes on
    where it was when the same command is given again.
    """
    from workbench.commands import interrupts
    from workbench.commands.cli import progress_bar
    from workbench.recorder import kernel_build

    try:
        with progress_bar("objects") as progress:
            built = kernel_build.build(
                output,
                source,
                fragment=fragment or kernel_build.FRAGMENT,
                jobs=jobs,
                progress=progress,
                say=lambda line: typer.echo(line, err=True),
                keep_tree=keep_tree,
                fresh=fresh,
                force=force,
            )
    except KeyboardInterrupt:
        if not (output / kernel_build.UNFINISHED).is_dir():
            raise
        raise interrupts.tell("the same command goes on where it was") from None
    for option in built.refused:
        typer.echo(f"not taken by this source: {option}")
    typer.echo(f"Linux {built.version} in {built.seconds:.0f} s: {built.image}")


@oracle.command()
def fetch(
    packages: Annotated[list[str], typer.Argument(help="Debian packages, e.g. linux-image-6.18.15+deb13-amd64")],
    directory: Annotated[Path, typer.Option("-o", "--output", help="where to put them")],
    force: Annotated[bool, typer.Option("--force", help="replace other files of the packages' names")] = False,
    suite: Annotated[
        list[str] | None, typer.Option(help="Debian suite (repeatable); left out, the newest ones")
    ] = None,
) -> None:
    """Download Debian packages of kernels from suites beside the system's own; nothing is installed."""
    from workbench.recorder import kernel_build

    kernel_build.make_directory(directory)
    for path in kernel_build.fetch(packages, directory, suite or kernel_build.SUITES, force=force):
        typer.echo(str(path))


@oracle.command()
def verbs() -> None:
    """List the verbs of the recorder's script language."""
    from workbench.recorder.language import usage

    for line in usage():
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(oracle, name="oracle")

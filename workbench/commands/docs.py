"""The command ``docs``: the documentation in a browser, made on this machine from what is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def docs(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="make it in this directory; in the cache if left out")
    ] = None,
    notebooks: Annotated[bool, typer.Option("--notebooks", help="run the notebooks too (minutes, once)")] = False,
    force: Annotated[bool, typer.Option("--force", help="let -o replace what is no documentation of ours")] = False,
    browser: Annotated[bool, typer.Option(help="open a browser tab")] = True,
) -> None:
    """Open the documentation: tutorial, how-tos, explanations and the reference, made once and without a network."""
    from workbench.docs import site
    from workbench.kernels.code_cache import cache_directory

    cache = cache_directory()
    base = cache.parent if cache is not None else Path.cwd()
    target = out if out is not None else site.cached(base, notebooks)
    page = target / "index.html"
    if out is not None or not page.exists():
        page = site.build(
            target,
            typer.main.get_command(_root()),
            kept=base / "notebooks",
            run=notebooks,
            force=force,
            say=lambda line: typer.echo(f"documentation: {line}", err=True),
        )
    typer.echo(str(page))
    if browser and (sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))):
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _root() -> typer.Typer:
    from workbench.commands.cli import app

    return app


def register(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(docs)

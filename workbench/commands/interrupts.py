"""Ctrl-C is one line on standard error and exit code 130, whatever was under way."""

from __future__ import annotations

import typer

EXIT_CODE = 130
_told: list[str] = []


def tell(what: str) -> typer.Exit:
    """Say once that Ctrl-C ended the command, and what there is; returns what the command then raises."""
    if not _told:
        typer.echo(f"workbench: interrupted; {what}", err=True)
        _told.append(what)
    return typer.Exit(EXIT_CODE)

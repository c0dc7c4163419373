"""Ctrl-C is one line on standard error and exit code 130, whatever was under way."""

from __future__ import annotations

import contextlib

import typer

EXIT_CODE = 130
_told: list[str] = []


def tell(what: str) -> typer.Exit:
    """Say once that Ctrl-C ended the command, and what there is; returns what the command then raises."""
    if not _told:
        _told.append(what)
        with contextlib.suppress(OSError):  # of a terminal that was closed
            typer.echo(f"workbench: interrupted; {what}", err=True)
    return typer.Exit(EXIT_CODE)

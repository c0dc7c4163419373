"""The terminal that the commands print to."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console on standard output that neither colours nor cuts lines in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)

"""The terminal that the commands print to."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console on standard output that neither colours nor cuts lines in a pipe."""
    seen = sys.stdout.isatty()
    # ":1:" in a name is a name, and what nobody sees needs no colours.
    return Console(width=None if seen else 160, emoji=False, highlight=seen)

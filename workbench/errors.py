"""The one exception that means: the input is wrong, and here is the line that says so."""

from __future__ import annotations


class WorkbenchError(ValueError):
    """Bad input. ``str(error)`` is one line that names the field, the value and what is allowed."""

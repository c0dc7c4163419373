"""Exceptions with a meaning of their own: the input is wrong, and here is the line that says so; or nobody wants the answer."""

from __future__ import annotations


class WorkbenchError(ValueError):
    """Bad input. ``str(error)`` is one line that names the field, the value and what is allowed."""


class Cancelled(Exception):
    """Whoever asked for a run wants it no longer. Nothing is wrong with the input, and Ctrl-C is something else."""

"""Where the data that belongs to the project is."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import WorkbenchError


def datasets_path(*parts: str) -> Path:
    """A path below ``datasets/`` of the checkout."""
    path = Path(__file__).resolve().parent.parent / "datasets" / Path(*parts)
    if not path.exists():
        raise WorkbenchError(f"datasets: {'/'.join(parts)} is not there; run from a checkout of the project")
    return path

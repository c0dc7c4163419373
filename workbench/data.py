"""Where the data that belongs to the project is: resources of the package, in a checkout and in a wheel alike."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from workbench.errors import WorkbenchError


def datasets_path(*parts: str) -> Path:
    """A path below ``datasets/``; one that is not there is an error that names it."""
    path = root("datasets").joinpath(*parts)
    if not path.exists():
        raise WorkbenchError(f"datasets: {'/'.join(parts)} is not there")
    return path


def notebooks_path() -> Path:
    """The folder of the ready notebooks."""
    return root("notebooks")


def root(package: str) -> Path:
    """The folder of a data package of ``workbench``; packages are installed as plain files."""
    return Path(str(resources.files(f"workbench.{package}")))

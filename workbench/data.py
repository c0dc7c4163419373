"""Where the data that belongs to the project is: resources of the package, in a checkout and in a wheel alike."""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.names import near, unknown


def datasets_path(*parts: str) -> Path:
    """A path below ``datasets/``; one that is not there is an error that names it, and what is there."""
    path = root("datasets")
    for part in parts:
        within, path = path, path / part
        if not os.path.exists(path):  # which, unlike Path.exists, takes names that are too long
            there = sorted(
                one.name for one in within.iterdir() if one.suffix not in (".md", ".py") and one.name[0] != "_"
            )
            raise WorkbenchError(f"{within.name}: {unknown(part, there)}")
    return path


def notebooks_path() -> Path:
    """The folder of the ready notebooks."""
    return root("notebooks")


def shipped(given: str | Path, folder: Path, endings: tuple[str, ...], what: str) -> Path:
    """A file as given, or else the one of that name that comes with the project (endings may be left out).

    Raises WorkbenchError with near names when neither is there; any other fault of the file is its reader's to tell.
    """
    path = Path(given)
    if os.path.exists(path) or path.name != str(given):  # which, unlike Path.exists, takes names that are too long
        return path
    names = sorted(file.name for ending in endings for file in folder.glob(f"*{ending}"))
    for name in names:
        if name == path.name or any(name == path.name + ending for ending in endings):
            return folder / name
    stems = sorted({name.removesuffix(ending) for name in names for ending in endings if name.endswith(ending)})
    raise WorkbenchError(
        f"{what} {str(given)[:60]!r}: no such file; {near(path.name, stems)}ready ones: {', '.join(stems)}"
    )


@functools.cache
def root(package: str) -> Path:
    """The folder of a data package of ``workbench``; packages are installed as plain files."""
    return Path(str(resources.files(f"workbench.{package}")))

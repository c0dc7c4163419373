"""What the repository contains: nothing else at the top, the same dependencies in both files, clean notebooks."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "workbench", "notebooks", "datasets", "kernels", "tests", "environment.yml",
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "LICENSE", "pyproject.toml",
    "Makefile", "requirements.lock",
}  # fmt: skip


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_top_level_holds_only_what_is_agreed() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in top if not name.startswith(".")} <= ALLOWED


def normalised(requirement: str) -> set[str]:
    """``h5netcdf[h5py]>=1.4`` is two packages for conda: ``h5netcdf>=1.4`` and ``h5py``."""
    match = re.fullmatch(r"([\w.-]+)(?:\[([\w,.-]+)\])?\s*(.*)", requirement)
    assert match is not None, requirement
    name, extras, bounds = match.groups()
    return {name.lower() + bounds} | {extra.lower() for extra in (extras or "").split(",") if extra}


def test_environment_yml_states_the_dependencies_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"python" + project["requires-python"], "pip"}
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        wanted |= normalised(requirement)
    stated = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {entry for entry in stated if isinstance(entry, str)} == wanted
    assert [entry for entry in stated if not isinstance(entry, str)] == [{"pip": ["-e ."]}]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code):
        assert cell["outputs"] == [], f"code cell {number} has outputs"
        assert cell["execution_count"] is None, f"code cell {number} has an execution count"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert "widgets" not in notebook["metadata"]


def test_no_file_names_a_package_index() -> None:
    # Written in halves, so that this file does not name one.
    hosts = re.compile(
        "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "anaconda" + r"\.org/", "index-" + "url [h]"])
    )
    for path in tracked_files():
        text = path.read_bytes()
        if b"\0" not in text[:1024]:
            found = hosts.search(text.decode("utf-8", "replace"))
            assert found is None, f"{path.relative_to(ROOT)} names {found and found[0]}"

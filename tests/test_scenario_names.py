"""Every function that takes a scenario takes a ready one's name, a file, its YAML text and the Scenario itself alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.explorer.app import Explorer
from workbench.ready import scenario as read_ready
from workbench.recorder import record
from workbench.recorder.emulated_hosts import all_hosts
from workbench.studies.sensitivity import sensitivity
from workbench.sweeps.grid import Grid

NAME = "conversion-drifts"
FILE = datasets_path("scenarios") / f"{NAME}.yaml"
GIVEN = {
    "name": NAME, "name with its ending": f"{NAME}.yaml", "path": FILE, "text path": str(FILE),
    "YAML text": FILE.read_text(encoding="utf-8"), "Scenario": read_ready(NAME),
}  # fmt: skip


def explored(given: Any) -> str:
    explorer = wb.explore(given)
    explorer.scenario = given
    name = explorer.scenario.name
    explorer.close()
    return name


def recorded(given: Any) -> str:
    """As far as the one operation of this scenario that no machine records. A text of several lines is a script there."""
    given = read_ready(given) if isinstance(given, str) and "\n" in given else given
    with pytest.raises(WorkbenchError, match=r"operation 3 \(observe\): cannot be recorded"):
        record.record(given, None, "no-kernel")
    return NAME


def swept(given: Any) -> str:
    base = given if isinstance(given, Path) or "\n" not in str(given) else read_ready(given)
    grid = Grid.from_mapping({"base": base, "axes": {"seed": [1]}})
    return str(grid.base["name"])


ENTRIES: dict[str, Callable[[Any], str]] = {
    "ready.scenario": lambda given: read_ready(given).name,
    "simulate": lambda given: str(wb.simulate(given).attrs["scenario"]),
    "history": lambda given: str(wb.history(given, ["7.3"]).attrs["scenario"]),
    "sensitivity": lambda given: str(sensitivity(given, ("latency",), samples=0).attrs["scenario"]),
    "explore": explored,
    "record": recorded,
    "sweep": swept,
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("entry", ENTRIES)
def test_all_take_all(entry: str, kind: str) -> None:
    assert ENTRIES[entry](GIVEN[kind]) == NAME


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_name_that_is_none_is_said_with_near_ones(entry: str) -> None:
    ask = ENTRIES[entry] if entry != "record" else lambda given: record.record(given, None, "no-kernel")
    with pytest.raises(WorkbenchError, match=r"'conversion-drift': no such file; .*conversion-drifts"):
        ask("conversion-drift")


def test_what_is_none_at_all() -> None:
    for given in (3, None, ["conversion-drifts"], {"name": "x"}):
        with pytest.raises(WorkbenchError, match="is none; a Scenario, a ready one's name or a file is"):
            read_ready(given)  # type: ignore[arg-type]
    with pytest.raises(WorkbenchError, match="is none; a Scenario"):
        Explorer({"guest": {}})  # type: ignore[arg-type]


def test_a_grid_takes_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what lies in the working directory, and a ready scenario last."""
    shutil.copy(FILE, tmp_path / "mine.yaml")
    (tmp_path / "grid.yaml").write_text("base: mine.yaml\naxes: {seed: [1]}\n")
    assert Grid.from_yaml(tmp_path / "grid.yaml").base["name"] == NAME
    monkeypatch.chdir(tmp_path)
    assert Grid.from_mapping({"base": "mine.yaml", "axes": {"seed": [1]}}).base["name"] == NAME


def test_a_script_is_no_name() -> None:
    with pytest.raises(WorkbenchError, match="host: missing; a script needs a host"):
        record.record("scenario a\ncreate g0 4 0\n")
    with pytest.raises(WorkbenchError, match="first line must be 'scenario"):
        record.record("", all_hosts()["m1single"])

"""What is refused of a scenario, grid or trace names the file, the line in it and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.commands import cli
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.sweeps.grid import Grid
from workbench.tracking import traces
from workbench.truth import recording

HEAD = "name: x\nhost: epyc1-naples-2s\nguest: {memory: 1 GiB}\noperations:\n"
LONG = "  - {op: fault, offset: 0, length: 4096}\n" * 200
SCENARIOS = {
    "flow": (HEAD + "  - {op: create}\n  - {op: fault,\n     length: -5}\n", "line 7: operations.1.fault.length: "),
    "block": (HEAD + "- op: create\n- op: hog\n  node: 0\n  size: 1\n  leave: 2\n", "line 9: operations.1.hog.leave: there"),
    "of a long list": (HEAD + LONG + "  - {op: fault, order: x}\n" + LONG, "line 205: operations.200.fault.order: "),
    "kind": (HEAD + "  - {op: falt}\n", "line 5: operations.0.op: 'falt' is unknown"),
    "together": (HEAD + "  - op: create\n  - op: hog\n    node: 0\n", "line 6: operations.1.hog: give either"),
    "against the host": (HEAD + "  - {op: create}\n  - {op: mbind, mode: bind,\n  nodes: 99}\n", "line 7: operations.1..nodes"),
    "missing": ("name: x\n", "line 1: host: Field required"),
    "host": ("name: x\nhost: nowhere\n", "line 2: host: machine: 'nowhere' is not known"),
    "twice": ("name: x\nseed: 1\nname: y\n", "not valid YAML in line 3, column 1: 'name' is there twice, in lines 1 and 3"),
    "no list": ("- 1\n", "scenario: must be a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario(name: str, tmp_path: Path) -> None:
    text, said = SCENARIOS[name]
    path = tmp_path / "my.yaml"
    path.write_text(text)
    for read in (Scenario.from_yaml, lambda path: cli.read_scenario(str(path), [])):
        with pytest.raises(WorkbenchError, match=f"^my.yaml: .*{said.replace('..', '.{1,2}')}"):
            read(path)


def test_what_the_file_does_not_say_is_not_said_of_it(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(HEAD + "  - {op: fault, length: 4096}\n")
    with pytest.raises(WorkbenchError, match=r"^operations.0.fault.length: "):
        cli.read_scenario(str(path), ["operations.0.length=-4"])
    with pytest.raises(WorkbenchError, match=r"^scenario: .*: No such file"):
        Scenario.from_yaml(tmp_path / "none.yaml")


def test_grids_and_traces(tmp_path: Path) -> None:
    grid, trace = tmp_path / "g.yaml", tmp_path / "t.csv"
    grid.write_text("base: {host: epyc1-naples-2s}\naxes:\n  seed: [1, 2]\n  guest.memory: [4 KiB, 4 KiB]\n")
    with pytest.raises(WorkbenchError, match=r"^g.yaml: line 4: grid.axes.guest.memory: the same value is there twice"):
        Grid.from_yaml(grid)
    for text, said in (
        ("offset,length,to\n\n0,4096,shared\n0,100,shared\n", "line 4: trace.length: row 2: 100 is not a multiple"),
        ("offset,length,to\n0,4096,shared,9\n", "line 2: trace: row 1 has 4 fields"),
        ("offset,length,away\n", "line 1: trace: column 'away'"),
        ('offset,length,to\n"0"x,4096,shared\n', "line 2: trace: "),
    ):
        trace.write_text(text)
        with pytest.raises(WorkbenchError, match=f"^t.csv: {said}"):
            traces.read_trace(trace)


def test_columns_of_a_trace_are_looked_at_once_each(tmp_path: Path) -> None:
    """200,000 of them would be 2 x 10^10 comparisons."""
    path = tmp_path / "t.csv"
    path.write_text(",".join(f"c{column}" for column in range(200_000)))
    with pytest.raises(WorkbenchError, match="column 'c0' is unknown"):
        traces.read_trace(path)


def test_a_directory_in_the_place_of_a_recording_is_named() -> None:
    with pytest.raises(WorkbenchError, match=r"^\.: '\.': Is a directory$"):
        recording.load(Path("."))


def test_no_message_is_longer_than_is_read_or_takes_over_a_terminal() -> None:
    """Whoever raises shows the value as it was given: here is the one place that all pass."""
    assert str(WorkbenchError("f: 'x' is not 1")) == "f: 'x' is not 1"
    said = str(WorkbenchError(f"field: {'x' * 5000} is not one of a, b"))
    assert (
        said.startswith("field: xxx") and said.endswith("is not one of a, b") and " [...] " in said and len(said) < 900
    )
    said = str(WorkbenchError("f: \x1b[2J\u202e\ud800\ttext\nnext"))
    assert said == r"f: \x1b[2J\u202e\ud800\ttext next"
    assert len(str(WorkbenchError("\x1b" * 5000))) < 2000

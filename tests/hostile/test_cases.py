"""Inputs that once crashed, hung or deceived: each does what its line in ``cases/MANIFEST.json`` expects."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench import results
from workbench.commands import cli
from workbench.scenario import Scenario
from workbench.simulation import simulate

CASES = Path(__file__).parent / "cases"
MANIFEST = {case["file"]: case for case in json.loads((CASES / "MANIFEST.json").read_text())}
REPORTS = [name for name in MANIFEST if name.endswith(".ipynb")]
"""Notebooks: what they display is tested in tests/reports/test_hostile_outputs.py, without a Jupyter kernel."""
SIMULATED = {
    "munmap-second-mapping.yaml": ["", "", "", ""],
    "close-second-mapping.yaml": ["", "", "", ""],
    "segv-tmpfs-grows-pfns.yaml": ["", "", ""],
    "tmpfs-grows.yaml": ["", ""],
    "fault-8PiB.yaml": ["", ""],
    "offset-2p63.yaml": ["", "EINVAL"],
    "hwpoison-past-end.yaml": ["", "ENOENT"],
    "hog-unknown-node.yaml": ["", "EINVAL"],
    "fbind-empty.yaml": ["", ""],
}
"""Scenarios that run, and the errno of each call."""
NAMES = {
    "memfd-inode-2p64.yaml": "inode",
    "bandwidth-1e308.yaml": "read_bandwidth",
    "hog-negative-node.yaml": "operations.1.hog.node",
    "nodes-float.yaml": "operations.0.set_mempolicy.nodes",
    "tag-timestamp.yaml": "line 2",
    "hexint.yaml": "line 2",
    "figures-self.yaml": "alias",
    "figures-binary.yaml": "binary",
    "dupkey.yaml": "'guest' is there twice, in lines 2 and 3",
    "name-escape.yaml": "name: '\\x1b[31mRED",
    "nul-in-name.yaml": "name: 'a\\x00b'",
    "zones-free-over-managed.yaml": "zones",
    "two-nodes-one-index.xml": "0",
}
"""What the line that refuses a case says."""


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A case that hangs fails instead."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run ``workbench`` with these arguments: exit code and standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (0 if code is None else int(code)), capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", [name for name in MANIFEST if name not in {*SIMULATED, *REPORTS}])
def test_refused_in_one_line(name: str, command: Callable[..., tuple[int, str]]) -> None:
    words = MANIFEST[name]["command"].split()[1:]
    code, said = command(*(str(CASES / name) if word == "FILE" else word for word in words))
    assert code == 2, said
    assert said.startswith("workbench: ") and said.count("\n") == 1 and said[:-1].isprintable()
    assert NAMES.get(name, "") in said


@pytest.mark.parametrize("name", SIMULATED)
def test_runs_and_its_dataset_agrees_with_itself(name: str) -> None:
    dataset = simulate(Scenario.from_yaml(CASES / name))
    assert [str(error) for error in dataset["event_error"].values] == SIMULATED[name]
    for file in dataset["file"].values:
        placed = int(dataset["pages_per_node"].sel(file=file).sum())
        assert placed <= int(dataset["file_pages"].sel(file=file))
        assert int((results.page_nodes(dataset, file) >= 0).sum()) == placed
    assert (dataset["range_start"] < dataset["range_end"]).all()
    assert (dataset["free_pages"] >= 0).all()


def test_tmpfs_grows_by_fallocate() -> None:
    """mm/shmem.c: shmem_fallocate: i_size is the end of the range; with KEEP_SIZE the pages lie beyond it."""
    dataset = simulate(Scenario.from_yaml(CASES / "segv-tmpfs-grows-pfns.yaml"))
    assert int(dataset["file_pages"].sel(file="t1")) == 262145
    nodes = [{"id": 0, "memory_bytes": "1 GiB", "cpus": "0"}]
    scenario = {
        "host": {"name": "h", "nodes": nodes, "distances": [[10]]},
        "operations": [
            {"op": "memfd", "file": "t", "size": "6 KiB"},
            {"op": "fallocate", "file": "t", "offset": "8 KiB", "length": "8 KiB", "mode": 1},
            {"op": "fault", "file": "t", "length": "16 KiB"},
        ],
    }
    kept = simulate(Scenario.from_mapping(scenario))
    assert kept["event_errno"].values.tolist() == [0, 0, 0]
    assert json.loads(str(kept["event_detail"].values[2])) == {"bad": 2, "first": 2}, "beyond i_size is SIGBUS"
    assert int(kept["pages_per_node"].sum()) == int(kept["file_pages"][0]) == 4
    scenario["operations"][1] |= {"mode": 0}  # the file grows, its old mapping does not
    grown = simulate(Scenario.from_mapping(scenario))
    assert json.loads(str(grown["event_detail"].values[2])) == {"bad": 2, "first": 2}


def test_a_fault_of_ours_is_one_line_with_a_file_to_attach(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "read_scenario", lambda *_: 1 // 0)
    code, said = command("run", "anything")
    assert code == 70 and said.count("\n") == 1 and "ZeroDivisionError" in said
    (kept,) = tmp_path.glob("workbench-fault-*.txt")
    assert str(kept) in said and kept.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in kept.read_text() and "anything" in kept.read_text()

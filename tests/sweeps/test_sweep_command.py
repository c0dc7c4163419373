"""The ``sweep`` command, and the ready grids under datasets/."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sweeps.cells import SMALL_BASE

from workbench.sweeps.grid import Grid
from workbench.sweeps.store import PENDING, read_store

ROOT = Path(__file__).resolve().parents[2]
GRIDS = sorted((ROOT / "datasets" / "sweeps").glob("*.yaml"))
SMALL = f"""\
{SMALL_BASE}axes:
  guest.memory: [1 MiB, 2 MiB]
  nodes: {{field: operations.2.nodes, values: ["0", "3", "9"]}}
"""


def command(*words: str, **more) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.commands.cli", "sweep", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}, **more,
    )  # fmt: skip


def run(*words: str, **more) -> tuple[int, str, str]:
    process = command(*words, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_dry_run_then_the_run_then_nothing_to_do(tmp_path):
    (tmp_path / "grid.yaml").write_text(SMALL)
    code, out, err = run("grid.yaml", "--dry-run", cwd=tmp_path)
    assert code == 0, err
    assert "6 cells (guest.memory 2 x nodes 3), 6 to do" in out
    for line in ("time: about ", "memory: about ", "nothing was written"):
        assert line in out
    assert re.search(r"^would fail: guest\.memory=2 MiB, nodes=9: WorkbenchError: .*9 is not on this host", err, re.M)
    assert err.count("would fail") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.yaml"]
    code, out, err = run("grid.yaml", "-o", "s.zarr", cwd=tmp_path)
    assert code == 1  # two cells name a node that is not there
    assert out == "s.zarr: 6 cells, 2 failed\n"
    assert re.search(r"failed: guest\.memory=1 MiB, nodes=9: WorkbenchError: .*9 is not on this host", err)
    assert "Traceback" not in err
    dataset = read_store(tmp_path / "s.zarr")
    assert float(dataset["pages_per_node"].sel({"guest.memory": "2 MiB", "nodes": "3", "node": 3})) == 512
    code, out, _ = run("grid.yaml", "-o", "s.zarr", "--dry-run", cwd=tmp_path)
    assert "0 to do" in out


def test_a_dry_run_of_cells_that_all_fail_fails(tmp_path):
    (tmp_path / "grid.yaml").write_text(SMALL.replace("[1 MiB, 2 MiB]", "[5, 6, 7]"))
    code, _, err = run("grid.yaml", "--dry-run", cwd=tmp_path)
    assert code == 1
    assert err.count("would fail") == 3 and "guest.memory: 5 bytes; must be a multiple of 4 KiB" in err


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (None, (), "grid.yaml"),
        ("axes: {seed: [1]}", (), "grid.base"),
        (SMALL.replace("guest.memory:", "guest.memroy:"), (), "no field 'memroy'"),
        (SMALL, ("--scheduler", "tcp://127.0.0.1:1"), "no scheduler answers"),
        (SMALL, ("--workers", "-1"), "workers"),
        (": : :", (), "grid"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, text, words, says):
    if text is not None:
        (tmp_path / "grid.yaml").write_text(text)
    code, _, err = run("grid.yaml", "-o", "s.zarr", *words, cwd=tmp_path)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(tmp_path):
    (tmp_path / "grid.yaml").write_text(SMALL.replace("[1 MiB, 2 MiB]", "{range: [1 MiB, 2 GiB, 1 MiB]}"))
    process = command("grid.yaml", "-o", "s.zarr", "--workers", "0", cwd=tmp_path, start_new_session=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("s.zarr/status/c/*/*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().endswith("s.zarr is whole, and the same command does the rest")
    assert "Traceback" not in err
    status = read_store(tmp_path / "s.zarr")["status"].values
    assert 0 < (status == PENDING).sum() < status.size


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_ready_grids_have_cells_that_run(path):
    from workbench.sweeps.sweep import sweep

    grid = Grid.from_yaml(path)
    assert path.read_text().startswith("# ")
    first = yaml.safe_load(path.read_text())
    for axis in first["axes"].values():  # the first and last value of each axis
        for key in ("values", "labels"):
            if key in axis:
                axis[key] = [axis[key][0], axis[key][-1]]
    dataset = sweep({**first, "name": grid.name}, workers=0)
    assert not (dataset["error"].values != "").any(), dataset["error"].values

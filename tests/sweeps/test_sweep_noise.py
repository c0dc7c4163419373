"""What goes wrong around a sweep is exactly one line and the exit code that says whose fault it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps.cells import SMALL_BASE

from workbench.sweeps.grid import MAX_CHUNK

GRID = f"""\
{SMALL_BASE}axes:
  guest.memory: {{range: [1 MiB, 40 MiB, 1 MiB]}}
chunk: 8
"""
INTERRUPT = """\
import os, signal, sys
found = False
def at(event, arguments, name=sys.argv.pop(1)):
    global found
    if event == "import" and arguments[0] == name and not found:
        found = True
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(at)
from workbench.__main__ import main
main()
"""
"""Ctrl-C at the moment when a module is imported."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


def ended(
    folder: Path, *words: str, code: str = "from workbench.__main__ import main; main()"
) -> tuple[int, list[str]]:
    """Exit code and lines on standard error of a command in a process of its own, but for those of an empty cache."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    said = done.stderr.splitlines()
    return done.returncode, [line for line in said if not line.startswith("compiling kernels, once for this machine")]


@pytest.mark.parametrize("module", ["typer", "pydantic", "yaml", "workbench.sweeps.grid", "zarr"])
def test_ctrl_c_while_something_is_imported(module: str, folder: Path) -> None:
    code, lines = ended(folder, module, "sweep", "grid.yaml", "-o", "s.zarr", "--workers", "0", code=INTERRUPT)
    assert (code, len(lines)) == (130, 1), (code, lines)
    assert lines[0].startswith("workbench: interrupted; ")
    assert {path.name for path in folder.iterdir()} <= {"grid.yaml", "s.zarr"}


@pytest.mark.slow
def test_ctrl_c_while_workers_start(folder: Path) -> None:
    """``distributed`` is imported when cells are about to be handed to processes: never fewer than a chunk are left, however
    fast cells are.
    """
    many = GRID.replace("[1 MiB, 40 MiB, 1 MiB]", f"[64 KiB, {2 * MAX_CHUNK * 64} KiB, 64 KiB]").replace(
        "chunk: 8", "chunk: 64"
    )
    (folder / "grid.yaml").write_text(many)
    code, lines = ended(
        folder, "distributed", "sweep", "grid.yaml", "-o", "s.zarr", "--workers", "2", "-q", code=INTERRUPT
    )
    assert (code, len(lines)) == (130, 1), (code, lines)
    code, lines = ended(folder, "sweep", "grid.yaml", "-o", "s.zarr", "--workers", "0", "-q")
    assert (code, lines) == (0, []), lines


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "empty": lambda path: path.write_bytes(b""),
    "of another shape": lambda path: path.write_bytes(path.read_bytes() * 2),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


def test_damaged_chunks_and_arrays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each way a chunk may be damaged, and an array of another type or none: one line each, and nothing is lost."""
    from workbench.commands import cli

    def sweep() -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["workbench", "sweep", "grid.yaml", "-o", "s.zarr", "--workers", "0", "-q"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err.splitlines()

    monkeypatch.chdir(folder)
    assert sweep() == (0, [])
    store = folder / "s.zarr"
    chunks = sorted(path for path in store.glob("status/c/**/*") if path.is_file())
    assert len(chunks) == 5
    for kind, damage in DAMAGE.items():
        whole = chunks[1].read_bytes()
        damage(chunks[1])
        code, lines = sweep()
        assert (code, len(lines)) == (2, 1) and "is damaged" in lines[0], (kind, code, lines)
        chunks[1].rmdir() if chunks[1].is_dir() else chunks[1].unlink()
        chunks[1].write_bytes(whole)
    facts = json.loads((store / "status" / "zarr.json").read_text())
    for name, value in (
        ("data_type", "float64"),
        ("shape", [7]),
        ("node_type", "group"),
        ("codecs", [{"name": "none"}]),
    ):
        (store / "status" / "zarr.json").write_text(json.dumps({**facts, name: value}))
        code, lines = sweep()
        assert code == 2 and len(lines) == 1, (name, code, lines)
    (store / "status" / "zarr.json").unlink()
    code, lines = sweep()
    assert code == 2 and len(lines) == 1, (code, lines)
    (store / "status" / "zarr.json").write_text(json.dumps(facts))
    chunks[1].unlink()  # a chunk that is missing is computed again
    assert sweep() == (0, []) and chunks[1].exists()


@pytest.mark.slow
def test_a_scheduler_that_is_killed(folder: Path) -> None:
    """It answers, takes work and is gone: one line, and the store goes on afterwards."""
    killing = """\
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from workbench.__main__ import main
if __name__ == "__main__":
    from workbench.sweeps import sweep as sweeps
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = Path("scheduler.json")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(place)]
    scheduler = subprocess.Popen(dask, **quiet)
    while not place.exists():
        assert scheduler.poll() is None
        time.sleep(0.05)
    import json
    address = json.loads(place.read_text())["address"]
    worker = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"],
                              **quiet)
    def kill():
        while not list(Path("s.zarr").glob("status/c/*")):
            time.sleep(0.01)
        scheduler.kill()
    threading.Thread(target=kill, daemon=True).start()
    sys.argv = ["workbench", "sweep", "long.yaml", "-o", "s.zarr", "-q", "--scheduler", address]
    try:
        main()
    finally:
        scheduler.kill(); worker.kill()
"""
    (folder / "long.yaml").write_text(GRID.replace("40 MiB", "8 GiB"))
    code, lines = ended(folder, code=killing)
    assert (code, len(lines)) == (2, 1), (code, lines)
    assert "scheduler" in lines[0]

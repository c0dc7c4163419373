"""The wheel alone, in an environment outside any checkout: everything a user calls is in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("workbench", "kernels", "datasets", "notebooks", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(copy)], check=True, capture_output=True, text=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin/`` of an environment with the wheel; the libraries it needs are this environment's, the workbench is not."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scheme = {name: sysconfig.get_path(name, "venv", {"base": str(folder), "platbase": str(folder)}) for name in
              ("purelib", "scripts")}  # fmt: skip
    libraries = sysconfig.get_path("purelib")
    Path(scheme["purelib"], "libraries.pth").write_text(libraries + "\n")
    python = Path(scheme["scripts"], "python")
    command = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", str(wheel)], check=True, capture_output=True, text=True)
    return Path(scheme["scripts"])


def environment() -> dict[str, str]:
    """Jupyter's own templates and specifications are files of the environment that has the libraries."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}


def run(installed: Path, folder: Path, *words: str) -> str:
    command = [str(installed / "workbench"), *words]
    reply = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), timeout=600)
    assert reply.returncode == 0, reply.stderr
    return reply.stdout


def test_only_workbench_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"workbench"}
    assert {"workbench/py.typed", "workbench/kernels/placement.py", "workbench/recorder/probe.c"} <= set(names)
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "datasets").rglob("*") if path.is_file()}
    shipped |= {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    missing = {name for name in shipped if f"workbench/{name}" not in names and "__pycache__" not in name}
    assert not missing


def test_the_workbench_that_runs_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    code = "import workbench, workbench.kernels.compile as k; print(workbench.__file__, k.__file__, sep='\\n')"
    command = [str(installed / "python"), "-c", code]
    reply = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=True)
    assert all(Path(line).is_relative_to(installed.parent) for line in reply.stdout.split())


def test_commands_work_from_any_directory(installed: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"workbench \d+\.\d+\.\d+\S*\n", run(installed, tmp_path, "--version"))
    assert "epyc1-naples-2s" in run(installed, tmp_path, "machines")
    summary = json.loads(run(installed, tmp_path, "run", "weighted-interleave-cxl", "--json"))
    assert sum(summary["pages_per_node"]["guest"].values()) == (8 << 30) >> 12
    verdict = json.loads(run(installed, tmp_path, "verify", "facts-X_corner", "--json"))
    assert sum(len(scenario["mismatches"]) for report in verdict for scenario in report["scenarios"]) == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_documentation_is_made_of_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    reply = run(installed, tmp_path, "docs", "--no-browser", "-o", "site")
    assert reply.strip() == "site/index.html"
    assert "Ten minutes from a question" in (tmp_path / "site/index.html").read_text()
    assert "policy-after-allocation" in (tmp_path / "site/reference/ready.html").read_text()


@pytest.mark.slow
def test_a_ready_notebook_becomes_a_report(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "report", "01_placement", "-o", "x.html")
    assert "datasets/machines/epyc1-naples-2s.yaml" in (tmp_path / "x.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.slow
def test_the_explorer_is_served(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "workbench"), "explore", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            end = time.monotonic() + 120
            while True:
                try:
                    page = urllib.request.urlopen(address[0], timeout=60).read().decode()
                    break
                except OSError:  # not listening yet
                    assert time.monotonic() < end
                    time.sleep(0.2)
        finally:
            server.send_signal(signal.SIGINT)
    assert "wb-" in page


GRID = """\
base: {name: small, host: epyc1-naples-2s, guest: {memory: 1 MiB}}
axes: {guest.memory: [1 MiB, 2 MiB, 3 MiB], guest.design: [filemap]}
"""


def test_a_sweep_on_a_scheduler_and_workers_that_others_started(installed: Path, tmp_path: Path) -> None:
    """``dask scheduler`` and ``dask worker`` of the wheel's environment; one of another version is named in one line."""
    (tmp_path / "grid.yaml").write_text(GRID)
    run(installed, tmp_path, "sweep", "grid.yaml", "-o", "here.zarr", "--workers", "0")
    other = tmp_path / "other" / "guest_memfd_workbench-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-memfd-workbench\nVersion: 0.0.1\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [str(installed / "python"), "-m", "dask"]
    worker = [*dask, "worker", address, "--no-dashboard", "--no-nanny", "--nthreads", "1", "--death-timeout", "60"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    command = [str(installed / "workbench"), "sweep", "grid.yaml", "--scheduler", address, "-q"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    processes = [subprocess.Popen(scheduler, env=environment(), **quiet)]
    try:
        processes.append(subprocess.Popen([*worker, "--name", "same"], env=environment(), **quiet))
        run(installed, tmp_path, *command[1:], "-o", "there.zarr")
        files = {path.relative_to(tmp_path / "here.zarr") for path in (tmp_path / "here.zarr").rglob("*")}
        chunks = [path for path in files if "c" in path.parts and (tmp_path / "here.zarr" / path).is_file()]
        assert chunks
        for path in chunks:
            assert (tmp_path / "here.zarr" / path).read_bytes() == (tmp_path / "there.zarr" / path).read_bytes()
        processes.append(subprocess.Popen(worker, env=environment() | {"PYTHONPATH": str(other.parent)}, **quiet))
        for number in range(40):  # until it has joined
            reply = subprocess.run(
                [*command, "-o", f"{number}.zarr"],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment(),
                check=False,
            )
            if reply.returncode:
                break
        assert reply.returncode == 2, reply.stderr
        assert re.fullmatch(
            r"workbench: sweep: worker \S+ has guest-memfd-workbench 0\.0\.1 \(here \S+\); install the same versions there\n",
            reply.stderr,
        ), reply.stderr
    finally:
        for process in processes:
            process.kill()
            process.wait()

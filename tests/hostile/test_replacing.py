"""Only our own results are replaced, and what was there stays until the new one is whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from workbench import results
from workbench.errors import WorkbenchError
from workbench.files import folder_beside, whole_file
from workbench.reports.report import make_report
from workbench.scenario import Scenario
from workbench.simulation import simulate

SUFFIXES = [".zarr", ".zarr.zip", ".nc"]


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    nodes = [{"id": 0, "memory_bytes": "1 GiB", "cpus": "0"}]
    host = {"name": "h", "nodes": nodes, "distances": [[10]]}
    return simulate(
        Scenario.from_mapping({"host": host, "guest": {"memory": "8 KiB"}, "operations": [{"op": "create"}]})
    )


def test_what_a_thread_still_writes_after_an_interrupt_goes_too(tmp_path: Path) -> None:
    """Zarr writes in a thread of its own, which makes directories anew."""

    def late(folder: Path) -> None:
        for number in range(10):
            (folder / "c" / str(number)).mkdir(parents=True)
            time.sleep(0.01)

    def interrupted() -> None:
        with folder_beside(tmp_path / "made" / "x.zarr") as folder:
            threading.Thread(target=late, args=(folder,)).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("beside", ["whole_file", "folder_beside"])
def test_what_a_thread_was_writing_when_its_process_ended_goes(beside: str, tmp_path: Path) -> None:
    """As a report of the explorer's whose tab is closed."""
    code = f"""
import threading, time
from pathlib import Path
from workbench.files import {beside}
there = threading.Event()
def write():
    with {beside}(Path("x.zarr")) as made:
        (made / "part" if made.is_dir() else made).write_text("half")
        there.set()
        time.sleep(600)
threading.Thread(target=write, daemon=True).start()
there.wait()
assert list(Path(".").iterdir())
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("beside", "made"), [(whole_file, "open"), (folder_beside, "mkdir")])
def test_what_was_just_made_when_an_interrupt_came_goes_too(
    beside: Callable[[Path], AbstractContextManager[Path]], made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody was told its name."""
    make, seen = getattr(os, made), []

    def makes(place: Any, *more: Any, **options: Any) -> Any:
        make(place, *more, **options)
        seen.append(os.path.basename(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, made, makes)
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "x"):
        pass
    monkeypatch.undo()
    assert seen and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_result_replaces_a_result(dataset: xr.Dataset, tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"x{suffix}"
    results.save(dataset, place)
    results.save(dataset.assign_attrs(comment="second"), place)
    assert results.load(place).attrs["comment"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("foreign", ["directory", "file", "store", "link"])
def test_what_is_not_ours_is_kept(dataset: xr.Dataset, tmp_path: Path, suffix: str, foreign: str) -> None:
    place, precious = tmp_path / f"x{suffix}", tmp_path / f"x{suffix}" / "precious"
    if foreign == "directory":
        place.mkdir()
        precious.write_text("years of work")
    elif foreign == "file":
        place.write_text("years of work")
    elif foreign == "store":  # a sweep's, by the schema that it names
        place.mkdir()
        (place / "zarr.json").write_text('{"attributes": {"schema": "sweep", "provenance": "{\\"software\\": {}}"}}')
        precious = place / "zarr.json"
    else:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkbenchError, match=r"--force|is a link"):
        results.save(dataset, place)
    assert place.is_symlink() or place.is_file() or precious.exists()
    if foreign == "link":
        with pytest.raises(WorkbenchError, match="is a link"):
            results.save(dataset, place, force=True)
    else:
        results.save(dataset, place, force=True)
        assert results.load(place).attrs["scenario"] == "scenario"


@pytest.mark.parametrize("name", ["a\x1b[31m", "two\nlines", "\u202ecn.x"])
def test_no_output_has_a_control_character_in_its_name(dataset: xr.Dataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkbenchError, match=r"^output: .* has a .* names have none$"):
        results.save(dataset, tmp_path / f"{name}.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(dataset: xr.Dataset, tmp_path: Path, suffix: str) -> None:
    """A limit of the file size stands for the disk's: writes fail in the same way, with an errno."""
    place = tmp_path / f"x{suffix}"
    results.save(dataset, place)
    code = (
        "import sys; from workbench import results; from workbench.errors import WorkbenchError\n"
        "made = results.load(sys.argv[1])\n"
        "try: results.save(made.assign_attrs(comment='second'), sys.argv[1])\n"
        "except WorkbenchError as error: print(error); sys.exit(2)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))

    ended = subprocess.run(
        [sys.executable, "-B", "-c", code, str(place)], capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout.startswith("output: cannot write") and ended.stdout.count("\n") == 1
    assert "comment" not in results.load(place).attrs
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_a_report_replaces_a_report_only(tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    page.write_text("<p>mine</p>")
    with pytest.raises(WorkbenchError, match="no report; --force"):
        make_report("01_placement", page)
    assert page.read_text() == "<p>mine</p>"
    with pytest.raises(WorkbenchError, match=r"must end in \.html"):
        make_report("01_placement", tmp_path / "x.ipynb")

"""Commands that take files and words do not reach exit code 70, which is for faults of the workbench, whatever they are.

Not here: what starts a server or a measurement, and what asks an archive for packages (explore, docs, measure, oracle fetch).
"""

from __future__ import annotations

import errno
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from workbench import files
from workbench.commands import cli
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.reports import report
from workbench.topology import trees

cli._register_all()
ROOT = typer.main.get_command(cli.app)

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "null.yaml": b"null\n",
    "list.yaml": b"[1, 2]\n",
    "number.json": b"1e999",
    "text.txt": b"\x1b[31mhello\nworld\n",
    "binary": bytes(range(256)) * 16,
    "deep.json": b"[" * 5000,
    "mapping.json": b'{"host": null, "guest": [], "operations": {"op": 1}, "nodes": "x", "scenarios": 7, "jobs": 1}',
    "notebook.ipynb": b'{"cells": [{"cell_type": "code"}], "metadata": 3, "nbformat": "four"}',
    "numactl.txt": b"available: 2 nodes (0-1)\nnode 0 cpus: 0 99999999999999999999\nnode distances:\n",
    "mlc.txt": b"Inject Latency Bandwidth\nDelay (ns) MB/sec\n==========\n 00000 nan inf\n",
    "cut.json.gz": gzip.compress(b"{}")[:-6],
    "cut.tar.gz": gzip.compress(b"x" * 700),
}
WORDS = (
    "", "\x00", "\x1b[31m", "nan", "-1", "9" * 400, "../../etc/passwd", "💥", "a,b,,", "{", "1e309", "=", "guest.memory=",
    "guest.memory=9e99 TiB", "guest.memory=-1", "host=null", "operations=[1]", "a.b.c.d.e=1", "guest=*x", "boot.kho=2",
    "inf", "1e308", str(1 << 31), str(1 << 64),
)  # fmt: skip

GRID = datasets_path("sweeps") / "policies.yaml"
JOBS = Path("jobs.yaml")

FILES: dict[str, Callable[[str, str], list[str]]] = {
    "run": lambda file, out: ["run", file],
    "run profile": lambda file, out: ["run", "full-node", "--profile", file],
    "run output": lambda file, out: ["run", "full-node", "-o", file],
    "verify": lambda file, out: ["verify", file],
    "import": lambda file, out: ["import", file],
    "import host": lambda file, out: ["import", file, "--host", file],
    "report": lambda file, out: ["report", file, "-o", f"{out}.html"],
    "batch": lambda file, out: ["batch", file, "--out-dir", out],
    "gallery": lambda file, out: ["gallery", file, "-o", f"{out}.html"],
    "sweep": lambda file, out: ["sweep", file, "--dry-run"],
    "record": lambda file, out: ["record", file, "--kernel", file, "-o", out],
    "history": lambda file, out: ["history", file],
    "compare": lambda file, out: ["compare", file, "full-node"],
    "capacity": lambda file, out: ["capacity", file],
    "show": lambda file, out: ["machines", "show", file],
    "calibrate": lambda file, out: ["machines", "calibrate", file, "-o", out],
    "reproduce": lambda file, out: ["reproduce", file],
    "oracle build": lambda file, out: ["oracle", "build", "-o", out, "--source", file],
    "snapshot": lambda file, out: ["snapshot", "-o", file],
}
OPTIONS: dict[str, Callable[[str], list[str]]] = {
    "run": lambda word: ["run", word],
    "set": lambda word: ["run", "full-node", "--set", word],
    "designs": lambda word: ["run", "full-node", "--designs", word],
    "profile": lambda word: ["run", "full-node", "--profile", word],
    "kernel profile": lambda word: ["run", "full-node", "--kernel-profile", word],
    "output": lambda word: ["run", "full-node", "-o", word],
    "history kernels": lambda word: ["history", "full-node", "--kernels", word],
    "compare interfaces": lambda word: ["compare", "full-node", "--interfaces", word],
    "capacity": lambda word: ["capacity", word],
    "capacity policy": lambda word: ["capacity", "xeon-e5-2680-2s", "--policy", word],
    "capacity page size": lambda word: ["capacity", "xeon-e5-2680-2s", "--page-size", word],
    "capacity by": lambda word: ["capacity", "xeon-e5-2680-2s", "--by", word],
    "show": lambda word: ["machines", "show", word],
    "calibrate kind": lambda word: ["machines", "calibrate", "nothing", "--kind", word],
    "reproduce": lambda word: ["reproduce", word],
    "report parameter": lambda word: ["report", "01_placement", "-p", "nonesuch", word, "-o", "x.html"],
    "report timeout": lambda word: ["report", "01_placement", "--timeout", word, "-o", "x.html"],
    "verify most": lambda word: ["verify", "nothing", "--most", word],
    "measure budget": lambda word: ["measure", "--budget", word],
    "record timeout": lambda word: ["record", "full-node", "--kernel", "nothing", "-o", "x.json", "--timeout", word],
    "record budget": lambda word: ["record", "full-node", "--kernel", "nothing", "-o", "x.json", "--budget", word],
    "oracle build jobs": lambda word: ["oracle", "build", "-o", "x", "--source", "nothing", "-j", word],
    "batch workers": lambda word: ["batch", str(JOBS), "-j", word],
    "sweep workers": lambda word: ["sweep", str(GRID), "-o", "x.zarr", "--workers", word],
    "explore port": lambda word: ["explore", "--port", word],
    "sweep scheduler": lambda word: ["sweep", "nothing", "-o", "x.zarr", "--scheduler", word],
    "import": lambda word: ["import", word],
    "verify": lambda word: ["verify", word],
    "gallery": lambda word: ["gallery", word],
    "batch": lambda word: ["batch", word],
}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., int]:
    """The exit code of a command line, which is no fault's; bad input is one line."""
    monkeypatch.setattr(cli, "app", ROOT)
    monkeypatch.chdir(tmp_path)

    def code(words: list[str]) -> int:
        monkeypatch.setattr("sys.argv", ["workbench", *words])
        try:
            cli.main()
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
        shown = capsys.readouterr()
        assert ended in (0, 1, 2) and "Traceback" not in shown.out + shown.err, (words, ended, shown.err[-800:])
        if ended == 2:
            lines = shown.err.splitlines()
            assert lines[-1].startswith("workbench") and "\x1b" not in shown.err, (words, shown.err)
            assert len(lines) == 1 or words[0] == "oracle", (words, shown.err)  # which says each step before
        return ended

    return code


@pytest.mark.parametrize("command", FILES)
def test_files_of_every_kind(command: str, ends: Callable[..., int], tmp_path: Path) -> None:
    given = tmp_path / "given"
    (given / "folder").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (given / name).write_bytes(content)
    os.mkfifo(given / "fifo")
    (given / "circle").symlink_to("circle")
    (given / "endless").symlink_to("/dev/zero")
    codes = [ends(FILES[command](str(path), "out")) for path in sorted(given.iterdir())]
    assert 2 in codes and ends(FILES[command](str(given / "missing" / "file"), "out")) in (1, 2)
    assert all((given / name).read_bytes() == content for name, content in CONTENTS.items()), "a file was overwritten"


@pytest.mark.parametrize("option", OPTIONS)
def test_words_of_every_kind(option: str, ends: Callable[..., int]) -> None:
    JOBS.write_text("jobs: [{notebook: nothing}]\n")
    assert 2 in [ends(OPTIONS[option](word)) for word in WORDS]


def test_a_file_that_waits_for_more_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/proc/kmsg is a regular file, and may have nothing to say."""

    class Waits(io.FileIO):
        def read(self, size: int | None = -1, /) -> None:  # type: ignore[override]
            return None

    (tmp_path / "x").touch()
    monkeypatch.setattr(files, "open", Waits, raising=False)
    with pytest.raises(WorkbenchError, match=r"^scenario: '.*/x' has nothing to be read now$"):
        files.read_file(tmp_path / "x", 10, "scenario")


def test_a_gallery_beside_links_that_lead_round_in_a_circle(ends: Callable[..., int], tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "fuzz/corpus/gallery/report.html"
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "r.html").write_bytes(page.read_bytes())
    (tmp_path / "circle").symlink_to("circle")
    assert ends(["gallery", "reports", "-o", "circle/x.html"]) == 2


@pytest.mark.parametrize("command", ["capacity", "show", "import host"])
def test_a_directory_in_which_nobody_may_look_is_one_line(
    command: str, ends: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may, so that the system is asked to refuse."""

    def refused(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(trees, "folder_tree", refused)
    monkeypatch.setattr(report, "_files_below", refused)
    (tmp_path / "hidden").mkdir()
    assert ends(FILES[command](str(tmp_path / "hidden"), "out")) == 2
    assert report.hash_path(tmp_path / "hidden") == "not computed (Permission denied)"

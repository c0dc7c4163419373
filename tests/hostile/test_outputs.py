"""Every command with an output replaces what it made itself, by rename; the rest stays byte for byte unless ``--force`` is given.

The commands are read off the application: one that is new, and not told here how it is run, fails. What takes long in a
command (a kernel's build, a notebook's run) is left out; all that touches the output is as it is.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer
from recorder.test_kernel_build import FRAGMENT, tarball

from workbench.__main__ import main as entry
from workbench.commands import cli
from workbench.data import datasets_path

cli._register_all()
ROOT = typer.main.get_command(cli.app)
OPTIONS = {"-o", "--output", "--out", "-d", "--out-dir"}
RECORDING = datasets_path("recordings") / "facts-X_corner.json.gz"
NODE = "{id: 0, memory_bytes: 1 GiB, cpus: [0]}"
SCENARIO = (
    f"host: {{name: h, nodes: [{NODE}], distances: [[10]]}}\nguest: {{memory: 8 KiB}}\noperations: [{{op: create}}]\n"
)
PRECIOUS = b"years of work\n"


def _notebook() -> str:
    cells = [nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]})]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells))


def _tar(name: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return raw.getvalue()


@dataclass(frozen=True)
class Output:
    """How a command is run on the files of :func:`given`, and what its output is called."""

    words: tuple[str, ...]
    name: str
    inside: str = ""
    """The output is a directory for this file, which is replaced by itself."""
    folder: bool = False
    """What it makes is a directory."""
    force: bool = True
    """It has ``--force``; a sweep goes on in its own store and replaces nothing."""
    alike: bytes = PRECIOUS
    """A file of the same format that the command did not make."""


COMMANDS = {
    "run": Output(("run", "s.yaml", "-o"), "x.zarr", folder=True),
    "run .nc": Output(("run", "s.yaml", "-o"), "x.nc", alike=b"\x89HDF\r\n\x1a\n"),
    "run .zip": Output(("run", "s.yaml", "-o"), "x.zarr.zip", alike=b"PK\x05\x06" + bytes(18)),
    "capacity": Output(("capacity", "h.yaml", "--policy", "bind", "-o"), "x.nc"),
    "history": Output(("history", "s.yaml", "--kernels", "7.3", "-o"), "x.nc"),
    "import": Output(("import", "vm.sh", "--host", "h.yaml", "-o"), "x.yaml", alike=SCENARIO.encode()),
    "measure": Output(("measure", "-o"), "x.yaml", alike=b"# made by workbench import\nname: p\n"),
    "machines calibrate": Output(("machines", "calibrate", "memory_curves.csv", "-o"), "x.yaml", alike=b"name: mine\n"),
    "machines show": Output(("machines", "show", "h.yaml", "-o"), "x.svg", alike=b"<svg><!-- mine --></svg>"),
    "machines show .png": Output(("machines", "show", "h.yaml", "-o"), "x.png", alike=b"\x89PNG\r\n\x1a\n"),
    "machines show .pdf": Output(("machines", "show", "h.yaml", "-o"), "x.pdf", alike=b"%PDF-1.4\n"),
    "snapshot": Output(("snapshot", "-o"), "x.tar.gz", alike=_tar("thesis/chapter-1")),
    "record": Output(("record", "s.yaml", "--kernel", "k", "-o"), "x.json", alike=b'{"scenarios": 1}'),
    "record .gz": Output(("record", "s.yaml", "--kernel", "k", "-o"), "x.json.gz", alike=gzip.compress(b"[]")),
    "report": Output(("report", "n.ipynb", "-q", "-o"), "x.html", alike=b"<p>mine</p>"),
    "gallery": Output(("gallery", "reports", "-o"), "x.html", alike=b"<p>mine</p>"),
    "batch": Output(("batch", "jobs.yaml", "-d"), "x", "n.html", alike=b"<p>mine</p>"),
    "batch log": Output(("batch", "jobs.yaml", "-d"), "x", "n.html.log"),
    "batch gallery": Output(("batch", "jobs.yaml", "--gallery", "-d"), "x", "index.html"),
    "docs": Output(("docs", "--no-browser", "-o"), "x", folder=True),
    "oracle build": Output(("oracle", "build", "--source", "l.tar.xz", "--fragment", "f", "-j1", "-o"), "x", "bzImage"),
    "oracle build log": Output(("oracle", "build", "--source", "l.tar.xz", "--fragment", "f", "-j1", "-o"), "x", "build.log"),
    "oracle build facts": Output(
        ("oracle", "build", "--source", "l.tar.xz", "--fragment", "f", "-j1", "-o"), "x", "build.json", alike=b"{}"
    ),
    "oracle build config": Output(("oracle", "build", "--source", "l.tar.xz", "--fragment", "f", "-j1", "-o"), "x", "config"),
    "oracle fetch": Output(("oracle", "fetch", "linux-image", "-o"), "x", "linux-image_1_amd64.deb"),
    "sweep": Output(("sweep", "grid.yaml", "-q", "--workers", "0", "-o"), "x.zarr", folder=True, force=False),
}  # fmt: skip
"""By the command's words; a further word tells formats and files of one command apart."""


def _with_outputs(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _with_outputs(below, (*words, name))
    if any(OPTIONS & set(param.opts) for param in command.params):
        yield " ".join(words)


def test_every_command_with_an_output_is_here() -> None:
    found = set(_with_outputs(ROOT))
    assert len(found) > 12
    assert found == {" ".join(word for word in output.words[:2] if word in known.split())
                     for known, output in COMMANDS.items()}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with inputs for every command, and stand-ins for what takes long."""
    from workbench.cost import calibrate, measure
    from workbench.docs import notebooks, reference, site
    from workbench.recorder import kernel_build, kernel_package, record
    from workbench.reports import report
    from workbench.reports.html import embedded_json
    from workbench.sweeps import batch

    (tmp_path / "reports").mkdir()
    embedded = embedded_json({"schema": "workbench-report/1", "title": "good"})
    texts = {
        "s.yaml": SCENARIO, "h.yaml": f"name: h\nnodes: [{NODE}]\ndistances: [[10]]\n", "n.ipynb": _notebook(), "k": "",
        "vm.sh": "qemu-system-x86_64 -m 64M", "jobs.yaml": "jobs: [{notebook: n.ipynb, name: n}]", "f": FRAGMENT,
        "grid.yaml": f"base:\n  {SCENARIO.replace(chr(10), chr(10) + '  ')}\naxes: {{guest.memory: [8 KiB, 16 KiB]}}",
        "memory_curves.csv": (datasets_path("profiles") / "epyc-7742-8ch-ddr4-3200-local.csv").read_text(),
        "reports/r.html": f'<script type="application/json" id="wb-report">{embedded}</script>',
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    tarball(tmp_path / "l.tar.xz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(measure, "measure", lambda **_: calibrate.calibrate(tmp_path / "memory_curves.csv"))
    monkeypatch.setattr(report, "execute", lambda source, *_, **__: source)
    monkeypatch.setattr(record, "require_tools", lambda *_: None)
    monkeypatch.setattr(record, "_run", lambda *_: json.loads(gzip.decompress(RECORDING.read_bytes())))
    monkeypatch.setattr(kernel_package, "load", lambda parts: kernel_package.KernelImage(b"image", "7.3"))
    monkeypatch.setattr(kernel_build, "require_tools", lambda: None)
    monkeypatch.setattr(kernel_build, "BYTES_NEEDED", 1)

    def download(packages: list[str], directory: Path, _: Any) -> list[Path]:
        made = directory / f"{packages[0]}_1_amd64.deb"
        made.write_bytes(b"!<arch>\n")
        return [made]

    monkeypatch.setattr(kernel_build, "_download", download)

    def sphinx(_: Path, target: Path, __: Path) -> None:
        target.mkdir()
        (target / "index.html").write_text("first page")
        (target / "objects.inv").write_bytes(f"# Sphinx inventory version 2\n# Project: {site.TITLE}\n".encode())

    monkeypatch.setattr(site, "sphinx", sphinx)
    monkeypatch.setattr(reference, "write", lambda *_: None)
    monkeypatch.setattr(notebooks, "write", lambda *_, **__: None)

    class Child:
        """Stands for the process of a job."""

        def __init__(self, *_: Any, stdout: Any, **__: Any) -> None:
            self.log, self.returncode = stdout, 0

        def communicate(self, order: str) -> None:
            asked = json.loads(order)
            print(f"{batch._LOG_BEGINS}{asked['notebook']}", file=self.log)
            report.make_report(asked["notebook"], asked["out"], force=asked["force"])

    monkeypatch.setattr(batch, "subprocess", types.SimpleNamespace(Popen=Child, PIPE=None, STDOUT=None))
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``workbench`` with these words: exit code and standard error."""

    def run(*words: str) -> tuple[int, str]:
        if words[0] != "docs":  # which describes the application
            monkeypatch.setattr(cli, "app", ROOT)
        monkeypatch.setattr(sys, "argv", ["workbench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def tree(place: Path) -> dict[str, Any]:
    """What is at a place, byte for byte; links and FIFOs by what they are."""
    if place.is_symlink():
        return {"": ("link", os.readlink(place))}
    if place.is_dir():
        return {f"{path.name}/{key}": value for path in sorted(place.iterdir()) for key, value in tree(path).items()}
    return {"": place.read_bytes() if place.is_file() else place.stat().st_mode} if place.exists() else {}


def made_before(
    output: Output, given: Path, command: Callable[..., tuple[int, str]]
) -> tuple[tuple[str, ...], set[str], dict[str, Any]]:
    """The command has made its output: how to make it again, what lies in its directory, and what it is."""
    words = (*output.words, output.name, "--force")
    command(*words)
    return words, {path.name for path in given.iterdir()}, tree(given / output.name)


def foreign(output: Output, place: Path) -> Iterator[str]:
    """Put one thing after another that no command made where the output would go, or a file of it."""
    target = place / output.inside if output.inside else place
    target.parent.mkdir(exist_ok=True)
    elsewhere = target.parent / "elsewhere"
    for kind, content in (("alike", output.alike), ("text", PRECIOUS), ("binary", bytes(range(256)) * 20)):
        target.write_bytes(content)
        yield kind
        target.unlink()
    target.mkdir()
    (target / "precious").write_bytes(PRECIOUS)
    yield "directory"
    (target / "zarr.json").write_text('{"attributes": {"schema": "mine", "provenance": "{}"}}')
    yield "store"
    os.rename(target, elsewhere)
    target.symlink_to(elsewhere)
    yield "link to a directory"
    target.unlink()
    target.symlink_to(elsewhere / "precious")
    yield "link to a file"
    target.unlink()
    target.symlink_to(target.parent / "nowhere")
    yield "link to nowhere"
    target.unlink()
    os.mkfifo(target)
    yield "FIFO"
    target.unlink()


@pytest.mark.parametrize("name", COMMANDS)
def test_what_no_command_made_stays(name: str, given: Path, command: Callable[..., tuple[int, str]]) -> None:
    output = COMMANDS[name]
    place = given / output.name
    signal.alarm(60)  # a FIFO that is opened waits for its writer
    for kind in foreign(output, place):
        before = tree(given)
        code, said = command(*output.words, output.name)
        lines = said.splitlines()
        assert code == 2 and lines and lines[-1].startswith("workbench"), (kind, code, said)
        assert len(lines) == 1 or name.startswith(("oracle", "docs")), (kind, said)
        assert tree(given) == before, kind
        if kind in ("alike", "text", "binary") and output.force:
            assert "--force replaces it" in said, (kind, said)
        if kind.startswith("link") and output.force:
            assert "is a link" in said, (kind, said)
            assert command(*output.words, output.name, "--force")[0] == 2 and tree(given) == before, kind
    signal.alarm(0)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_command_made_is_replaced_and_the_rest_by_force(
    name: str, given: Path, command: Callable[..., tuple[int, str]]
) -> None:
    output = COMMANDS[name]
    place = given / output.name
    target = place / output.inside if output.inside else place
    assert command(*output.words, output.name)[0] == 0
    around = {path.name for path in given.iterdir()}
    assert target.exists()
    code, said = command(*output.words, output.name)
    assert code == 0, said
    assert {path.name for path in given.iterdir()} == around, "nothing is left beside it"
    if target.suffix == ".yaml":
        target.write_text(target.read_text().replace("h", "hh"))
        edited = target.read_bytes()
        code, said = command(*output.words, output.name)
        assert code == 2 and "--force" in said and target.read_bytes() == edited, "edited since"
    if output.force:
        for path in [target, *target.rglob("*")][::-1]:
            path.rmdir() if path.is_dir() else path.unlink()
        target.write_bytes(PRECIOUS) if not output.folder else (target.mkdir(), (target / "a").write_bytes(PRECIOUS))
        code, said = command(*output.words, output.name, "--force")
        assert code == 0 and not (target / "a").exists() and (target.is_dir() or target.read_bytes() != PRECIOUS), said
        assert {path.name for path in given.iterdir()} == around


EVENTS = {"os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open", "ctypes.dlsym"}


def _killed(words: tuple[str, ...], near: str, at: int, how: signal.Signals = signal.SIGKILL) -> int | None:
    """Run a command in a fork that is killed before its ``at``-th step near its output; the steps it took if it was not."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        taken = 0

        def step(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal taken
            if event not in EVENTS or not (event == "ctypes.dlsym" or any(near in str(part) for part in arguments[:2])):
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            if event == "ctypes.dlsym" and arguments[1] != "renameat2":
                return
            taken += 1
            if taken == at + 1 or (how == signal.SIGHUP and taken == at + 2):  # by the terminal, and by its shell
                os.kill(os.getpid(), how)

        try:
            signal.alarm(60)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            sys.argv = ["workbench", *words]
            sys.addaudithook(step)
            entry()
        finally:
            os.write(writes, str(taken).encode())
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return int(said) if said else None


@pytest.mark.parametrize("name", [name for name, output in COMMANDS.items() if output.force])
def test_killed_in_between_the_old_is_there_or_the_new(
    name: str, given: Path, command: Callable[..., tuple[int, str]]
) -> None:
    output = COMMANDS[name]
    target = given / output.name / output.inside
    words = (*output.words, output.name, "--force")
    command(*words)  # what is imported and compiled is no part of it
    steps = _killed(words, str(given), 1 << 30)
    assert steps, "it writes"
    for at in sorted({steps // 2, steps - 2, steps - 1} & set(range(steps))):
        for path in [target, *target.rglob("*")][::-1]:
            path.rmdir() if path.is_dir() else path.unlink()
        target.write_bytes(PRECIOUS) if not output.folder else (target.mkdir(), (target / "a").write_bytes(PRECIOUS))
        shutil.rmtree(given / output.name / "unfinished", ignore_errors=True)  # where a killed build goes on
        old = tree(target)
        assert _killed(words, str(given), at) is None, "it was killed"
        if tree(target) != old:
            code, said = command(*output.words, output.name)  # what is not whole is not known as its own
            assert code == 0, (at, steps, said)


@pytest.mark.parametrize("name", ["run", "run .nc", "import", "report", "docs"])
def test_asked_to_end_in_between_nothing_half_made_stays(
    name: str, given: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """SIGTERM, as schedulers and ``timeout`` send it, and SIGHUP, as a closed terminal does, are Ctrl-C.

    Python would end without a word and leave the directories.
    """
    words, around, old = made_before(COMMANDS[name], given, command)
    steps = _killed(words, str(given), 1 << 30)
    assert steps, "it writes"
    moments = sorted({steps // 2, steps - 2} & set(range(steps)))
    for at, how in zip(moments, (signal.SIGHUP, signal.SIGTERM), strict=False):
        assert (_killed(words, str(given), at, how) or steps) > at, "it ended in its own way"
        assert {path.name for path in given.iterdir()} == around
        assert set(tree(given / COMMANDS[name].name)) == set(old)


@pytest.mark.parametrize(
    "name",
    ["docs", "machines show .pdf", "machines calibrate", "oracle fetch", "snapshot", "record .gz", "import", "report"],
)
def test_a_disk_without_room_is_one_line_and_leaves_what_was_there(
    name: str, given: Path, command: Callable[..., tuple[int, str]]
) -> None:
    words, around, old = made_before(COMMANDS[name], given, command)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # every file, as if so much were left
    try:
        code, said = command(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and said.count("\n") == 1 and "File too large" in said, said
    assert {path.name for path in given.iterdir()} == around and tree(given / COMMANDS[name].name) == old


def test_no_command_makes_a_name_that_a_terminal_takes_orders_from(
    given: Path, command: Callable[..., tuple[int, str]]
) -> None:
    around = {path.name for path in given.iterdir()}
    for name, output in sorted(COMMANDS.items(), key=lambda item: item[0] != "docs"):
        for place in (f"\x1b[2J{output.name}", f"\u202e/{output.name}"):
            code, said = command(*output.words, place)
            assert code == 2 and "names have none" in said and said[:-1].isprintable(), (name, said)
            assert {path.name for path in given.iterdir()} == around, name

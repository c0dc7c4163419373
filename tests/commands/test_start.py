"""What a short command does not wait for."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

import workbench
from workbench.commands import interrupts
from workbench.commands.terminal import console

LOADED = """
import contextlib, io, sys
from workbench.commands.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    sys.argv = ["workbench", *sys.argv[1:]]
    main()
print(*sys.modules)
"""


@pytest.mark.parametrize("scenario", ["weighted-interleave-cxl", "snp-guest-boots"])
def test_a_run_that_is_only_printed_imports_no_xarray(scenario: str) -> None:
    """xarray and pandas are half of such a command's time; the tables come from the run's plain arrays."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "run", scenario],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ.copy(),
    )
    loaded = set(done.stdout.split())
    assert "workbench.running" in loaded
    assert not loaded & {"xarray", "pandas"}
    assert not loaded & {"coverage.control", "numpy.ma", "tqdm", "webbrowser", "workbench.commands.docs"}


def test_who_only_loads_machine_code_imports_nothing_of_what_compiles_arrays() -> None:
    """It is a twentieth of a short run; Numba's runtime that counts references is another, and no kernel needs it."""
    script = """
import sys, workbench.running, workbench.studies.capacity
from numba.core.runtime import rtsys
print("numba.np.arrayobj" in sys.modules, rtsys._init)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_signal_that_comes_in_a_callback_is_an_interrupt_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is raised in one, as importing a module has, Python prints and goes on."""
    monkeypatch.setattr(sys, "unraisablehook", interrupts.swallowed)
    monkeypatch.setattr(interrupts, "came", [])
    before = signal.signal(signal.SIGTERM, interrupts.heard)
    try:
        ends = io.StringIO()
        kept = weakref.ref(ends, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            del ends
            assert kept() is None
            time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "" and len(interrupts.came) == 1


def test_a_name_between_colons_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("node:100: of :warning:", "[bold]epyc:1:[/bold]")
    assert capsys.readouterr().out == "node:100: of :warning: epyc:1:\n"


def test_bytecode_is_made_with_the_environment() -> None:
    """A process that may write none compiles every source anew: 0.4 s of CPU of each command."""
    top = Path(workbench.__file__).resolve().parents[1]
    planned = subprocess.run(
        ["make", "--dry-run", "-W", "requirements.lock", "env"], cwd=top, capture_output=True, text=True, check=True
    ).stdout
    (command,) = (line for line in planned.splitlines() if "compileall" in line)
    assert command.index("compileall") < command.index("workbench.kernels.warm")
    assert set(command.partition("&&")[0].split()) >= {"workbench", "kernels"}


def test_an_interrupt_that_a_library_makes_another_error_of_is_one() -> None:
    """pydantic answers Ctrl-C with a SchemaError while it builds a model: that was a fault of ours, with a file to send."""
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'workbench.topology.host':\n"
        "            try: os.kill(os.getpid(), signal.SIGHUP)\n"
        "            except KeyboardInterrupt as error: raise ValueError(error) from None\n"
        "sys.meta_path.insert(0, Interrupting())\nsys.argv = ['workbench', 'machines']\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom workbench.__main__ import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "workbench: interrupted; nothing was written\n")


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("<&-", 2, "workbench: scenario: must be a mapping"),
        (">&-", 2, "workbench: scenario: must be a mapping"),
        ("2>&-", 2, ""),
        ("<&- >&- 2>&-", 2, ""),
    ],
)
def test_closed_streams_are_empty_ones(closed: str, code: int, said: str) -> None:
    """Each was a fault of ours: Python has no stream there, and the next file that is opened gets its number."""
    command = f'exec "$0" -m workbench run - {closed}'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said) and ended.stderr.count("\n") == bool(said)

"""Damaged files given to whole commands: exit code 0, 1 or 2, never 70, and what is refused is one line without controls.

Readers have targets of their own; here is what a command makes of what they let through.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

import pytest
import typer
from fuzz import damage
from fuzz.test_topologies import HOSTS
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.commands import cli
from workbench.cost import calibrate, measure
from workbench.cost.profile import profile_text
from workbench.data import datasets_path

cli._register_all()
ROOT = typer.main.get_command(cli.app)
SCENARIOS = [(path.name, path.read_bytes()) for path in sorted(datasets_path("scenarios").glob("*.yaml"))]
MACHINES = [(path.name, path.read_bytes()) for path in sorted(datasets_path("machines").glob("*.yaml"))]
MADE = calibrate.calibrate(datasets_path("profiles") / "epyc-7742-8ch-ddr4-3200-local.csv")
PROFILES = [("made.yaml", profile_text(MADE).encode())]
COMMANDS: dict[str, tuple[list[tuple[str, bytes]], Callable[[str], list[str]]]] = {
    "history": (SCENARIOS, lambda file: ["history", file, "--kernels", "7.2,7.3"]),
    "compare": (SCENARIOS, lambda file: ["compare", file, "--interfaces", "none,create,fbind"]),
    "capacity": (MACHINES + HOSTS, lambda file: ["capacity", file, "--page-size", "2MiB", "--kho", "on"]),
    "machines show": (MACHINES + HOSTS, lambda file: ["machines", "show", file, "--costs"]),
    "measure": (PROFILES, lambda file: ["measure", "-o", file]),
}


def ended(words: list[str]) -> tuple[int, str]:
    """The exit code of a command line, and what it said on standard error."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["workbench", *words])
        with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0), said.getvalue()


@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_files(name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, words = COMMANDS[name]
    folder = tmp_path_factory.mktemp("given")
    monkeypatch.setattr(measure, "measure", lambda **_: MADE)
    monkeypatch.setattr(cli, "app", ROOT)

    @settings(max_examples=max(8, damage.EXAMPLES // 5))
    @given(at=st.integers(0, len(seeds) - 1), seed=st.integers(0, 1 << 40))
    def harm(at: int, seed: int) -> None:
        file, content = seeds[at]
        place = folder / file
        place.write_bytes((damage.changed if file.endswith(".yaml") and seed % 3 else damage.damaged)(content, seed))
        code, said = ended(words(str(place)))
        lines = [line for line in said.splitlines() if not line.startswith("compiling kernels")]
        assert code in (0, 1, 2) and "Traceback" not in said, (place.read_bytes(), said)
        if code == 2:
            (line,) = lines
            assert line.startswith("workbench") and line.isprintable() and len(line) < 1500, line
        damage.ENDED["refused" if code == 2 else "answered"] += 1

    if name == "measure":  # else nothing would be replaced: one byte more, and it is somebody's work
        (folder / "made.yaml").write_bytes(seeds[0][1])
        assert ended(words(str(folder / "made.yaml")))[0] == 0
    harm()

"""workbench.kernels.interpreted: kernels as plain Python for a first answer, and how a call is undone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from reference.scale import JIT_DISABLED
from workbench.kernels import code_cache, first_use, interpreted, warm
from workbench.kernels.compile import kernel, record
from workbench.kernels.filemap import zone_of_pages
from workbench.kernels.folios import run

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="everything is plain Python")
ROOT = Path(__file__).parents[2]


@record
class Table(NamedTuple):
    rows: np.ndarray
    words: np.ndarray


@kernel
def add_to(table: Table, row: int, value: int) -> int:
    """Every way in which kernels write into arrays."""
    table.rows[row, 0] = table.rows[row, 1] = value
    table.rows[row, 1] += 2 * value
    table.rows[row, 2], table.words[row], kept = value, np.uint64(value), 7
    table.words[row] |= np.uint64(1)
    table.rows[row, 3:] = kept
    table.rows[row, -1] -= 1
    return kept + value


@kernel
def fill(table: Table, rows: int) -> int:
    total = 0
    row = 0
    while row < rows:
        for times in range(2):
            total += add_to(table, row, 10 * row + times)
        row += 1
    return total


def table(rows: int) -> Table:
    return Table(np.arange(5 * rows).reshape(rows, 5), np.zeros(rows, np.uint64))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing was interpreted so far; afterwards the process is what it was."""
    monkeypatch.setattr(interpreted, "_steps", {"process": 0, "call": 0})
    monkeypatch.setattr(interpreted, "_steps_of", {})
    monkeypatch.setattr(interpreted, "_limit_of", {})
    monkeypatch.setattr(interpreted, "_state", {"allowed": False})
    return monkeypatch


def test_interpreted_is_compiled(steps: pytest.MonkeyPatch) -> None:
    as_python, compiled = table(20), table(20)
    assert interpreted.call(fill, as_python, 20) == fill(compiled, 20)
    assert type(interpreted.call(fill, as_python, 20)) is int
    assert [a.tolist() for a in as_python] == [a.tolist() for a in compiled]
    assert interpreted._steps_of == {fill.name: 2 * 3 * 20}  # passes of both loops, two calls


def test_a_call_that_takes_too_long_is_undone(steps: pytest.MonkeyPatch) -> None:
    steps.setattr(interpreted, "STEPS_OF_A_KERNEL", 30)
    steps.setattr(interpreted, "STEPS_OF_A_BYTE", 0)
    begun = table(20)
    seen = []

    class Compiled:
        """In place of the kernel: notes what it finds when it is called after all."""

        name, py_func = fill.name, fill.py_func

        def __call__(self, found: Table, rows: int) -> str:
            seen.extend(array.copy() for array in found)
            return "compiled"

    assert interpreted.call(Compiled(), begun, 20) == "compiled"
    interpreted.allow()
    assert [array.tolist() for array in seen] == [array.tolist() for array in table(20)]
    assert not interpreted.permitted(fill.name)
    assert interpreted.permitted(add_to.name)
    assert interpreted.call(fill, begun, 20) == 2 * (7 * 20) + 10 * 20 * 19 + 20  # compiled now


def test_a_process_interprets_only_so_much(steps: pytest.MonkeyPatch) -> None:
    steps.setattr(interpreted, "STEPS", 60)
    assert interpreted.call(fill, table(10), 10) == fill(table(10), 10)
    interpreted.allow()
    assert interpreted.permitted()
    assert interpreted.call(fill, table(11), 11) == 2 * (7 * 11) + 10 * 11 * 10 + 11
    assert not interpreted.permitted() and not interpreted.permitted(add_to.name)


def test_a_kernel_that_takes_longer_to_compile_may_take_more_steps() -> None:
    sizes = interpreted._bytes_below(fill)
    assert sizes.keys() == {"fill", "add_to"}
    assert sizes["add_to"] == len(add_to.py_func.__code__.co_code)
    assert sum(interpreted._bytes_below(run.run).values()) > 50 * sum(interpreted._bytes_below(zone_of_pages).values())


def test_an_error_of_a_call_passes(steps: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndexError):
        interpreted.call(fill, table(3), 4)
    assert not interpreted._written
    assert interpreted.call(fill, table(3), 3) == fill(table(3), 3)


FIRST = """
import sys
import time
from pathlib import Path
import numpy as np
from workbench.kernels import dispatch, interpreted, warm
from workbench.kernels.compile import cache_directory
from workbench.scenario import Scenario
from workbench.simulation import simulate
if sys.argv[1] == "interpret":
    interpreted.STEPS = interpreted.STEPS_OF_A_KERNEL = 10**9
    warm._begin = lambda missing: None
else:
    interpreted.allow = lambda: None
for name in sys.argv[2:]:
    scenario = Scenario.from_yaml(Path(f"datasets/scenarios/{name}.yaml"))
    found = simulate(scenario.replace(output="counts"))
    for variable in found.variables:
        print(name, variable, hash(np.asarray(found[variable].values).astype(str).tobytes()))
if sys.argv[1] == "interpret":
    print(len(list(cache_directory().glob("[!.]*"))), "compiled", file=sys.stderr)
"""
TRIED = ("weighted-interleave-cxl", "snp-guest-boots", "conversion-drifts", "manager-prefault")


@pytest.mark.slow
def test_an_empty_cache_gives_the_same_answers(tmp_path: Path) -> None:
    """Every variable of runs in which nothing at all is compiled, against runs as they are otherwise."""
    environment = os.environ | {"PYTHONHASHSEED": "0"}

    def answers(how: str, **more: str) -> tuple[str, str]:
        command = [sys.executable, "-c", FIRST, how, *TRIED]
        reply = subprocess.run(command, env=environment | more, cwd=ROOT, capture_output=True, text=True)
        assert reply.returncode == 0, reply.stderr
        return reply.stdout, reply.stderr

    interpreting, said = answers("interpret", WORKBENCH_CACHE_DIR=str(tmp_path))
    assert said.splitlines()[-1] == "0 compiled"
    assert len(interpreting.splitlines()) > 100 * len(TRIED) / 5
    assert interpreting == answers("otherwise")[0]


def test_who_tells_goes_on_when_the_directory_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, bool]] = []
    monkeypatch.setattr(first_use, "listeners", [lambda *how_far: told.append(how_far)])
    entries = warm.listed()["zonelist"]
    with warm._telling(entries, beside=True):
        monkeypatch.setattr(code_cache, "cache_directory", lambda: None)
    assert [(total, beside) for _, total, beside in told] == [(len(entries), True)] * 2


def test_helpers_end_with_the_entry_in_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_DIR", str(tmp_path))
    entries = [entry for entry in warm.listed()["zonelist"] if entry.kernel == "zonelist.fallback_order"]
    helper = warm._start(entries * 50)
    assert helper is not None and helper.stdin is not None
    helper.stdin.close()
    assert helper.wait(timeout=120) == 0
    assert len([path for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."]) <= 1


def test_a_directory_that_was_removed_does_not_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    helper = warm._start(list(reversed(warm.listed()["zonelist"])))
    assert helper is not None and helper.stdin is not None
    while not list(tmp_path.glob("cache/kernels-*/.lock")):
        assert helper.poll() is None
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert helper.wait(timeout=120) == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

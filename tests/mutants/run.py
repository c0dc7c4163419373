"""Faults put into the code one by one, each of which a test must find (``make mutants``).

The list is ``mutants.toml``. A copy of the checkout gets one mutant at a time; two copies are at work. ``--part K/N`` runs
every N-th mutant from the K-th on, ``--part today/N`` another of the N parts each day. The end is 1 if a mutant lives, or if
what it replaces is not there any more.
"""

from __future__ import annotations

import argparse
import datetime
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("workbench", "kernels", "datasets", "notebooks", "tests", "pyproject.toml")
COPIES = 2
TIMEOUT = 600.0
"""Seconds; a mutant that hangs is found."""


@dataclass(frozen=True)
class Mutant:
    """One fault: ``old``, once in ``file``, becomes ``new``; ``tests`` are asked. ``plain``: kernels as plain Python."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]
    plain: bool = False


def mutants() -> list[Mutant]:
    """The list."""
    found = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in found["mutant"]]


def part_of(listed: list[Mutant], part: str) -> list[Mutant]:
    """Every N-th of them from the K-th on, for ``K/N`` or ``today/N``."""
    which, _, parts = part.partition("/")
    first = datetime.date.today().toordinal() if which == "today" else int(which) - 1
    return listed[first % int(parts) :: int(parts)]


def make_copy(directory: Path) -> Path:
    """A checkout in which ``workbench`` is whole: what lies beside it is below it, as the wheel has it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    for name in ("kernels", "datasets", "notebooks"):
        (directory / "workbench" / name).symlink_to(directory / name, target_is_directory=True)
    return directory


def judge(mutant: Mutant, directory: Path) -> str:
    """Empty if a test finds the mutant, else what is wrong."""
    path = directory / mutant.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return f"what it replaces stands {original.count(mutant.old)} times in {mutant.file}"
    environment = os.environ | {
        "PYTHONPATH": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "ci",
    }
    if mutant.plain:
        environment["NUMBA_DISABLE_JIT"] = "1"
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    finally:
        path.write_text(original, encoding="utf-8")
    if done.returncode == 0:
        return f"it lives: {' '.join(mutant.tests)} passed"
    if done.returncode not in (1, 2):  # 2: a module could not be collected; else none ran
        return f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"
    return ""


def main() -> int:
    """Run a part, or all, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="K/N or today/N")
    parser.add_argument("--only", default="", help="mutants with this word in their name")
    chosen = parser.parse_args()
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    picked = [mutant for mutant in part_of(mutants(), chosen.part) if chosen.only in mutant.name]
    for mutant in picked:
        waiting.put(mutant)
    wrong: list[str] = []

    def work() -> None:
        with tempfile.TemporaryDirectory() as name:
            directory = make_copy(Path(name))
            while True:
                try:
                    mutant = waiting.get_nowait()
                except queue.Empty:
                    return
                began = time.monotonic()
                fault = judge(mutant, directory)
                print(f"{'LIVES' if fault else 'found'} {time.monotonic() - began:5.0f} s  {mutant.name}", flush=True)
                if fault:
                    wrong.append(f"{mutant.name}: {fault}")

    workers = [threading.Thread(target=work) for _ in range(min(COPIES, len(picked)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"{len(picked)} mutants, {len(wrong)} not found")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

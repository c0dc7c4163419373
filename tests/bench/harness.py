"""What the benchmarks share: C compiled on the spot, interleaved repetitions, and tables of ratios.

The machine may be busy and noisy, so the results are ratios. Variants are run in turn, one repetition of each per
round, and compared within the round, so that a slow moment hits all of them; what is printed is the median over the
rounds. Time is the process's own CPU time.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

C_FLAGS = ["-O3", "-march=native", "-fPIC", "-shared"]
NO_COMPILER = "no gcc on this machine: the comparison with C is skipped"


def compile_c(source: str) -> ctypes.CDLL | None:
    """Shared library built from ``source`` by ``gcc -O3 -march=native``, or None when there is no gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        code, library = Path(directory, "port.c"), Path(directory, "port.so")
        code.write_text(source)
        subprocess.run([gcc, *C_FLAGS, str(code), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The array's data as a C argument. The caller keeps the array alive."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@dataclass(frozen=True)
class Variant:
    """One way to do the work. ``prepare`` runs before every repetition and is not timed."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    inner: int = 1
    """Calls per repetition, for work that is too short for the clock."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call of each variant in each round."""

    rounds: dict[str, list[float]]

    def __getitem__(self, name: str) -> float:
        """Median seconds of one variant."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of one variant as a multiple of another."""
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[base], strict=True))


def measure(variants: dict[str, Variant], repetitions: int = 7) -> Times:
    """Run all variants ``repetitions`` times in turn, after one round to warm up."""
    rounds: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    try:
        for repetition in range(repetitions + 1):
            for name, variant in variants.items():
                if variant.prepare is not None:
                    variant.prepare()
                begin = time.process_time()
                for _ in range(variant.inner):
                    variant.run()
                seconds = (time.process_time() - begin) / variant.inner
                if repetition > 0:
                    rounds[name].append(seconds)
    finally:
        gc.enable()
    return Times(rounds)


def duration(seconds: float) -> str:
    """``seconds`` with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def verdict(value: float, limit: float | None) -> str:
    """Whether a goal is met or missed; nothing when there is none."""
    return "" if limit is None else ("met" if value <= limit else "missed")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, which is also how it stands in the README."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)

"""workbench.kernels.compile: where machine code is kept, and the switches that make kernels fast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reference.scale import JIT_DISABLED
from workbench.kernels import compile as compile_module

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
ROOT = Path(__file__).parents[2]
FILL = """
import numpy as np
from workbench.kernels.compile import cache_directory
from workbench.kernels.mempolicy import auto_weights
bandwidth = np.array([100, 50], np.int64)
weights = np.zeros(2, np.int64)
auto_weights(bandwidth, np.ones(2, np.bool_), weights)
print(cache_directory(), list(weights))
"""


@pytest.fixture(autouse=True)
def _forget_directory():
    compile_module.cache_directory.cache_clear()
    yield
    compile_module.cache_directory.cache_clear()


def test_cache_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_DIR", str(tmp_path / "chosen"))
    directory = compile_module.cache_directory()
    assert directory is not None
    assert directory.parent == tmp_path / "chosen"
    assert compile_module.source_digest() in directory.name


def test_next_directory_is_taken_when_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file where the directory should be: unwritable for root too.
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(compile_module, "_candidate_directories", lambda: [blocked, tmp_path / "second"])
    assert compile_module.cache_directory() == tmp_path / "second" / f"kernels-{compile_module.source_digest()}"


def test_kernels_work_without_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(compile_module, "_candidate_directories", lambda: [blocked])
    assert compile_module.cache_directory() is None
    assert "every process compiles" in caplog.text

    @compile_module.kernel
    def double(values: np.ndarray) -> None:
        for i in range(values.size):
            values[i] *= 2

    values = np.arange(3)
    double(values)
    assert values.tolist() == [0, 2, 4]


def test_a_kernel_counts_no_references() -> None:
    @compile_module.kernel
    def helper(values: np.ndarray, i: int) -> int:
        return values[i]

    @compile_module.kernel
    def caller(values: np.ndarray) -> int:
        total = 0
        for i in range(values.size):
            total += helper(values, i)
        return total

    assert caller(np.arange(10)) == 45
    assert compile_module.reference_count_calls(caller) == 0


def test_a_numba_without_the_switch_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """``_nrt`` is not public in Numba; should it go, kernels must not silently become slow."""
    real = compile_module.numba.njit

    def njit_of_a_numba_without_nrt(**options: object) -> object:
        if "_nrt" in options:
            raise KeyError("unrecognized options: '_nrt'")
        return real(**options)

    monkeypatch.setattr(compile_module.numba, "njit", njit_of_a_numba_without_nrt)
    with pytest.raises(KeyError, match="_nrt"):
        compile_module.kernel(lambda values: None)


def test_numba_refuses_options_it_does_not_know() -> None:
    """So a Numba that drops ``_nrt`` raises instead of ignoring it."""
    import numba

    with pytest.raises(KeyError, match=r"(?i)unrecognized"):
        numba.njit(_no_such_option=True)(lambda values: None)(np.zeros(1))


def test_processes_that_start_at_once_share_an_empty_cache(tmp_path: Path) -> None:
    environment = os.environ | {"WORKBENCH_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", FILL], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(answers) == 1
    assert list(tmp_path.glob("kernels-*/*.nbi"))

"""workbench.kernels.compile: where machine code is kept, and the switches that make kernels fast."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import workbench
from reference.scale import JIT_DISABLED
from workbench.kernels import code_cache, dispatch, warm
from workbench.kernels import compile as compile_module
from workbench.kernels.compile import record

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
ROOT = Path(__file__).parents[2]
FILL = """
import numpy as np
from workbench.kernels.compile import cache_directory
from workbench.kernels.mempolicy import auto_weights
bandwidth = np.array([100, 50], np.int64)
weights = np.zeros(2, np.int64)
auto_weights(bandwidth, np.ones(2, np.bool_), weights)
print(cache_directory(), weights.tolist())
"""


@record
class Pair(NamedTuple):
    weights: np.ndarray
    table: np.ndarray


class Plain(NamedTuple):
    first: np.ndarray
    second: np.ndarray


@pytest.fixture(autouse=True)
def _forget_directory():
    code_cache.cache_directory.cache_clear()
    yield
    code_cache.cache_directory.cache_clear()


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
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [blocked, tmp_path / "second"])
    assert compile_module.cache_directory() == tmp_path / "second" / f"kernels-{compile_module.source_digest()}"


def test_kernels_work_without_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [blocked])
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


def test_numba_refuses_options_it_does_not_know() -> None:
    """So a Numba that drops ``_nrt``, which is not public, raises: kernels must not silently become slow."""
    assert not dispatch.Kernel(lambda values: None, _nrt=False)._flags().nrt
    with pytest.raises(KeyError, match=r"(?i)unrecognized"):
        dispatch.Kernel(lambda values: None, _no_such_option=True)(np.zeros(1))


def test_a_natural_kernel_takes_no_index_from_the_end() -> None:
    """Checked, it raises; the kernel beside it, and one that is inlined into it, count from the end as ever."""

    @compile_module.inlined_kernel
    def last(values: np.ndarray) -> int:
        return values[-1]

    def entry(values: np.ndarray, at: int) -> int:
        return values[at] + 100 * last(values)

    values = np.arange(10)
    natural = dispatch.Kernel(entry, _nrt=False, boundscheck=True, natural=True)
    assert natural(values, 3) == 903
    with pytest.raises(IndexError):
        natural(values, -3)
    with pytest.raises(IndexError):
        natural(values, 10)
    assert dispatch.Kernel(entry, _nrt=False, boundscheck=True)(values, -3) == 907


def _first(values: np.ndarray) -> int:
    return values[0]


def test_a_direct_call_is_one_of_the_machine_code_for_the_only_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.config, "BOUNDSCHECK", None)
    kernel = dispatch.Kernel(_first, _nrt=False)
    assert kernel.direct is kernel
    assert kernel.direct(np.array([7])) == 7
    assert kernel.direct is next(iter(kernel.overloads.values())).entry_point
    assert kernel.direct(np.array([8])) == 8
    assert kernel(np.array([0.5])) == 0.5
    assert kernel.direct is kernel  # which looks at the types
    assert kernel.direct(np.array([9])) == 9
    assert kernel.direct(np.array([1.5])) == 1.5


def test_types_of_a_direct_call_are_looked_at_where_indices_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.config, "BOUNDSCHECK", 1)
    kernel = dispatch.Kernel(_first, _nrt=False)
    assert kernel.direct(np.array([7])) == 7
    assert kernel.direct(np.array([8])) == 8
    for other in (np.array([0.5]), np.array([[7]]), np.arange(8)[::2]):
        with pytest.raises(TypeError, match="_first: called directly with arguments of other types"):
            kernel.direct(other)


def test_what_is_called_directly_is_called_with_the_same_types_by_everybody() -> None:
    called: set[str] = set()
    for path in Path(workbench.__file__).parent.rglob("*.py"):
        called.update(re.findall(r"(\w+)\.direct\(", path.read_text()))
    listed = [entry.kernel for entries in warm.listed().values() for entry in entries]
    listed = [kernel for kernel in listed if kernel.rpartition(".")[2] in called]
    assert called == {kernel.rpartition(".")[2] for kernel in listed}
    assert len(listed) == len(set(listed))


def test_bits_are_counted() -> None:
    count = compile_module.kernel(lambda word: compile_module.popcount(word))
    words = [0, 1, 2**63, 2**64 - 1, 0x8000_0000_0000_0001, 0xF0F0_F0F0_F0F0_F0F0, 0x0123_4567_89AB_CDEF]
    assert [count(np.uint64(word)) for word in words] == [word.bit_count() for word in words]


def test_processes_that_start_at_once_share_an_empty_cache(tmp_path: Path) -> None:
    environment = os.environ | {"WORKBENCH_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", FILL], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 8
    assert len(answers) == 1
    assert answers.pop().endswith("[21, 10]\n")
    assert [path.name.partition("-")[0] for path in tmp_path.glob("kernels-*/[!.]*")] == ["mempolicy.auto_weights"]


def fill(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"WORKBENCH_CACHE_DIR": str(directory)}
    return subprocess.run([sys.executable, "-c", FILL], env=environment, cwd=ROOT, capture_output=True, text=True)


def test_what_is_kept_and_damaged_is_compiled_anew(tmp_path: Path) -> None:
    def answer() -> str:
        reply = fill(tmp_path)
        assert reply.returncode == 0, reply.stderr
        assert len(reply.stderr.splitlines()) <= 1
        return reply.stdout.partition(" ")[2]

    assert answer() == "[21, 10]\n"
    (kept,) = tmp_path.glob("kernels-*/[!.]*")
    whole = kept.read_bytes()
    for damaged in (b"", b"garbage", whole[:-1], whole[:40], b"\0" * len(whole)):
        kept.write_bytes(damaged)
        assert answer() == "[21, 10]\n"
        assert kept.read_bytes()[32:] and code_cache.read(kept) is not None
    kept.unlink()
    kept.mkdir()
    (kept.parent / "stranger").write_bytes(os.urandom(100))
    assert answer() == "[21, 10]\n"
    assert kept.is_file()


def test_what_is_kept_is_not_read_through_a_link_or_when_others_could_write_it(tmp_path: Path) -> None:
    path, link = tmp_path / "code", tmp_path / "link"
    code_cache.write(path, b"data")
    link.symlink_to(path)
    assert code_cache.read(path) == b"data"
    assert code_cache.read(link) is None
    path.chmod(0o622)
    assert code_cache.read(path) is None
    os.mkfifo(tmp_path / "pipe")
    assert code_cache.read(tmp_path / "pipe") is None


@pytest.mark.parametrize("place", ["base", "inside"])
@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_directory_that_others_can_exchange_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    name = f"kernels-{code_cache.source_digest()}"
    base = tmp_path / "first"
    bad = base if place == "base" else base / name
    bad.parent.mkdir(exist_ok=True)
    if kind == "open":
        bad.mkdir()
        bad.chmod(0o777)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        bad.symlink_to(tmp_path / "elsewhere")
    else:
        bad.write_text("")
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [base, tmp_path / "second"])
    assert code_cache.cache_directory() == tmp_path / "second" / name


def test_somebody_elses_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [tmp_path / "first"])
    monkeypatch.setattr(code_cache.os, "geteuid", lambda: 4711)
    (tmp_path / "first").mkdir()
    assert code_cache.cache_directory() is None


def test_directories_are_ours_alone_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [tmp_path / "new"])
    before = os.umask(0)
    try:
        directory = code_cache.cache_directory()
        assert directory is not None
        code_cache.write(directory / "code", b"data")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (directory.parent, directory, directory / "code")] == [
        0o700,
        0o700,
        0o600,
    ]


def test_directories_of_older_sources_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_candidate_directories", lambda: [tmp_path])
    for age in range(12):
        old = tmp_path / f"kernels-{age:016x}"
        old.mkdir()
        (old / "code").write_bytes(b"")
        os.utime(old, (1e9 - age, 1e9 - age))
    (tmp_path / "mine").mkdir()
    code_cache.cache_directory()
    left = {path.name for path in tmp_path.iterdir()}
    kept = {f"kernels-{age:016x}" for age in range(code_cache.KEPT)}
    assert left == kept | {"mine", f"kernels-{code_cache.source_digest()}"}


def test_a_full_disk_is_a_line_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_cache.tempfile, "mkstemp", full)
    code_cache.write(tmp_path / "code", b"data")
    assert "No space left" in caplog.text


def test_a_record_is_read_as_the_tuple_that_it_is() -> None:
    @compile_module.kernel
    def total(pair: Pair, rows: int) -> int:
        value = 0
        for row in range(rows):
            value += pair.weights[row] * np.int64(pair.table[row, 1])
            pair.weights[row] = value
        return value

    pair = Pair(np.array([1, 2, 3]), np.array([[0, 4], [0, 5], [0, 6]], np.int8))
    assert total(pair, 3) == 32
    assert pair.weights.tolist() == [4, 14, 32]
    assert total(pair._replace(table=pair.table[::-1]), 3) == 4 * 6 + 14 * 5 + 32 * 4
    assert compile_module.reference_count_calls(total) == 0


def test_the_names_of_types_can_be_read_back() -> None:
    from numba import typeof
    from numba.core import types

    pair = Pair(np.zeros(3, np.int64), np.zeros((3, 2), np.int8)[::-1])
    read_only = np.zeros(2)
    read_only.flags.writeable = False
    by_value = Plain(np.zeros(2), np.zeros(2, np.int8))
    assert dispatch.code(typeof(by_value)).endswith(".Plain{f8:1C,i1:1C}")
    for value in (
        by_value,
        1,
        1.5,
        True,
        np.zeros(2, np.bool_),
        np.zeros((2, 3), np.uint32).T,
        read_only,
        pair,
        (pair, pair),
    ):
        assert dispatch.type_of(dispatch.code(typeof(value))) == typeof(value)
    assert dispatch.type_of(dispatch.code(types.Omitted(1e-6))) == types.Omitted(1e-6)


def test_every_entry_of_the_list_is_there() -> None:
    for module, entries in warm.listed().items():
        for entry in entries:
            function = getattr(importlib.import_module(f"workbench.kernels.{module}"), entry.kernel.rpartition(".")[2])
            assert function.name == entry.kernel
            assert [dispatch.code(dispatch.type_of(text)) for text in entry.signature] == list(entry.signature)


READY = """
import sys
from pathlib import Path
from workbench.kernels import dispatch, interpreted, warm
from workbench.scenario import Scenario
from workbench.running import kernels_needed
from workbench.simulation import simulate
interpreted.allow = lambda: None
for path in sorted(Path("datasets/scenarios").glob("*.yaml")):
    scenario = Scenario.from_yaml(path)
    listed = {entry for module in kernels_needed(scenario) for entry in warm.listed()[module]}
    simulate(scenario)
    for name, module in sorted(sys.modules.items()):
        if name.startswith("workbench.kernels."):
            for kernel in vars(module).values():
                if isinstance(kernel, dispatch.Kernel) and kernel.__module__ == name:
                    for signature in kernel.overloads:
                        if (kernel.name, tuple(map(dispatch.code, signature))) not in listed:
                            print(path.stem, kernel.name, [dispatch.code(argument) for argument in signature])
                    kernel._reset_overloads()
"""


def test_ready_scenarios_need_no_entry_that_is_not_prepared() -> None:
    """Otherwise the first run compiles it alone, after the others. ``python -m workbench.kernels.warm --list`` lists anew."""
    reply = subprocess.run([sys.executable, "-c", READY], cwd=ROOT, capture_output=True, text=True)
    assert (reply.stdout, reply.returncode) == ("", 0), reply.stderr

"""Conversions against a C port of the same algorithm, and a guest of 16 TiB in little memory.

``BENCH_FOLIO_ROWS`` names the rows to measure (a part of the name, several with commas), for one that is looked into;
``BENCH_FOLIO_CONVERSIONS`` how many conversions each makes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.harness import NO_COMPILER, Variant, compile_c, duration, measure, pointer, print_table, verdict
from reference.not_asked import NOT_ASKED
from workbench.kernels.folios import run as folio

GIB, TIB = 1 << 30, 1 << 40
COUNT = int(os.environ.get("BENCH_FOLIO_CONVERSIONS", "10000000"))
SMALL_GUEST = 512 << 30
ROWS = os.environ.get("BENCH_FOLIO_ROWS", "")
LIMIT_OF_C = 1.25
LIMIT_BYTES_PER_PAGE = 0.2
LIMIT_MEMORY = 4 * GIB
FIELDS = ("shared", "blocks", "gigas", "backing", "marks", "small", "pages", "host", "options", "numbers")


class CState(ctypes.Structure):
    """``struct state`` of the port, on the arrays of a :class:`workbench.kernels.folios.run.FolioState`."""

    _fields_ = [(name, ctypes.c_void_p) for name in FIELDS] + [("nodes", ctypes.c_int64), ("blocks_2m", ctypes.c_int64)]


def new_guest(size: int, order: int, generation: int, folios: int = folio.HUGETLB_FOLIOS) -> folio.FolioState:
    """All private and populated, on two nodes with memory enough; no small folio waits in a batch."""
    options = np.zeros(folio.OPTIONS, np.int64)
    options[:3] = size >> 12, order, generation
    options[folio.HVO], options[folio.FOLIOS] = folios == folio.HUGETLB_FOLIOS, folios
    host = folio.new_host(np.full(2, 1 << 40), np.array([[0, 1], [1, 0]]), np.full((2, 2), 1 << 40))
    state = folio.new_state(options, host)
    stream = np.array([[folio.GUEST_FAULT, 0, size, 1, 0, 0], [folio.LRU_DRAIN, *[0] * 5]])
    run(state, stream, np.zeros(2, np.int32), np.zeros(2, np.int64))
    return state


def small_guest(size: int) -> folio.FolioState:
    """Without a pool: all private, a run of 4 KiB folios of any length in each 2 MiB. ``new_guest`` has no such folios."""
    options = np.zeros(folio.OPTIONS, np.int64)
    options[:3] = size >> 12, folio.ORDER_2M, folio.GENERATION_C
    options[folio.FOLIOS], options[folio.FALLBACK] = folio.BUDDY_FOLIOS, 1
    host = folio.new_host(np.full(2, 1 << 40), np.array([[0, 1], [1, 0]]), np.zeros((2, 2), np.int64))
    state = folio.new_state(options, host)
    rng = np.random.default_rng(2)
    blocks = size >> 21
    first = rng.integers(0, 512, blocks)
    stream = np.zeros((blocks + 1, 6), np.int64)
    stream[:blocks, folio.OP], stream[blocks, folio.OP] = folio.GUEST_FAULT, folio.LRU_DRAIN
    stream[:blocks, folio.OFFSET] = (np.arange(blocks) << 21) + (first << 12)
    stream[:blocks, folio.LENGTH] = rng.integers(1, 513 - first) << 12
    stream[:blocks, folio.ARGUMENT] = 1
    run(state, stream, np.zeros(blocks + 1, np.int32), np.zeros(blocks + 1, np.int64))
    return state


def collapses(size: int) -> np.ndarray:
    """Every 2 MiB once, in any order, int64 (n, 6)."""
    blocks = np.random.default_rng(3).permutation(size >> 21)
    stream = np.zeros((len(blocks), 6), np.int64)
    stream[:, folio.OP], stream[:, folio.OFFSET], stream[:, folio.NODE] = folio.COLLAPSE, blocks << 21, blocks & 1
    return stream


def copied(state: folio.FolioState) -> folio.FolioState:
    """An independent copy."""
    return folio.FolioState(*(array.copy() for array in state))


def random_stream(size: int, count: int, largest: int = 512) -> np.ndarray:
    """Conversions of 4 KiB to 2 MiB, log-uniform, in both directions."""
    rng = np.random.default_rng(1)
    pages = np.minimum(np.exp(rng.uniform(0, np.log(largest + 1), count)).astype(np.int64), largest)
    first = (rng.random(count) * ((size >> 12) - pages + 1)).astype(np.int64)
    return conversions(first << 12, pages << 12, rng.integers(0, 2, count))


def conversions(offset: np.ndarray, length: np.ndarray, to_shared: np.ndarray) -> np.ndarray:
    """A stream of them, int64 (n, 6)."""
    stream = np.zeros((len(offset), 6), np.int64)
    stream[:, folio.OP] = folio.CONVERT
    stream[:, folio.OFFSET], stream[:, folio.LENGTH], stream[:, folio.ARGUMENT] = offset, length, to_shared
    return stream


def run(state: folio.FolioState, stream: np.ndarray, errors: np.ndarray, offsets: np.ndarray) -> None:
    """All of a stream of conversions, which need no more room."""
    assert folio.run(state, stream, errors, offsets, *NOT_ASKED, 0) == len(stream)


def state_bytes(state: folio.FolioState) -> int:
    """Bitmap and counters."""
    return sum(array.nbytes for array in (state.shared, state.blocks, state.gigas, state.backing, state.reference_row))


def large_guest() -> None:
    """16 TiB, a million conversions: prints seconds and peak memory. Runs in its own process."""
    size = 16 * TIB
    stream = random_stream(size, 1_000_000)
    begin = time.perf_counter()
    state = new_guest(size, folio.ORDER_1G, folio.GENERATION_C)
    errors, offsets = np.zeros(1_000_000, np.int32), np.zeros(1_000_000, np.int64)
    run(state, stream, errors, offsets)
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def compared(library: ctypes.CDLL, name: str, fresh: folio.FolioState, stream: np.ndarray) -> list[str]:
    """A row of the table: the port and this on one state, whose every array and answer must be the same afterwards."""
    count = len(stream)
    errors, offsets = np.zeros(count, np.int32), np.zeros(count, np.int64)
    c_errors, c_offsets = errors.copy(), offsets.copy()
    work = copied(fresh)  # one for both: where memory lies, in huge pages or not, is part of the time
    port = CState(
        **{field: pointer(getattr(work, field)) for field in FIELDS}, nodes=2, blocks_2m=len(work.reference_row)
    )

    def reset() -> None:
        for array, content in zip(work, fresh, strict=True):
            array[...] = content

    def run_c() -> None:
        library.run(ctypes.byref(port), pointer(stream), ctypes.c_int64(count), pointer(c_errors), pointer(c_offsets))

    def run_mine() -> None:
        run(work, stream, errors, offsets)

    times = measure({"C": Variant(run_c, reset), "Numba": Variant(run_mine, reset)}, repetitions=5)
    mine = copied(work)
    reset()
    run_c()
    for field in FIELDS:
        assert np.array_equal(getattr(mine, field), getattr(work, field)), field
    assert np.array_equal(errors, c_errors) and np.array_equal(offsets, c_offsets)
    ratio = times.ratio("Numba", "C")
    each = (duration(times[what] / count) for what in ("C", "Numba"))
    return [name, *each, f"{ratio:.3g} ×", f"{LIMIT_OF_C:g} ×", verdict(ratio, LIMIT_OF_C)]


def main() -> None:
    """Print the tables."""
    library = compile_c(Path(__file__).with_name("folio_port.c").read_text())
    rows = []
    if library is None:
        print(NO_COMPILER)
    else:
        library.run.restype = ctypes.c_int64
        stream = random_stream(TIB, COUNT)
        for name, order, generation, folios in (
            ("1 GiB folios, generation C", 18, folio.GENERATION_C, folio.HUGETLB_FOLIOS),
            ("1 GiB folios, generation B", 18, folio.GENERATION_B, folio.HUGETLB_FOLIOS),
            ("2 MiB folios, generation C", 9, folio.GENERATION_C, folio.HUGETLB_FOLIOS),
            ("4 KiB folios together in 1 GiB", 18, folio.GENERATION_C, folio.SMALL_FOLIOS),
            ("4 KiB folios together in 2 MiB", 9, folio.GENERATION_C, folio.SMALL_FOLIOS),
            ("2 MiB folios of the page allocator", 9, folio.GENERATION_C, folio.BUDDY_FOLIOS),
        ):
            if not any(part in name for part in ROWS.split(",")):
                continue
            fresh = new_guest(TIB, order, generation, folios)
            rows.append(compared(library, name, fresh, stream))
        header = ["1 TiB, 4 KiB to 2 MiB log-uniform", "C", "this", "ratio", "goal", ""]
        if rows:
            print_table(f"{COUNT:,} random conversions: each", header, rows)
        name = "4 KiB folios, 1 to 512 of them, into one of 2 MiB"
        if any(part in name for part in ROWS.split(",")):
            row = compared(library, name, small_guest(SMALL_GUEST), collapses(SMALL_GUEST))
            header[0] = f"{SMALL_GUEST // GIB} GiB, ranges in any order"
            print_table(f"khugepaged, {SMALL_GUEST >> 21:,} ranges of 2 MiB: each", header, [row])
    if ROWS:
        return

    per_page = state_bytes(new_guest(TIB, 18, 1)) / (TIB >> 12)
    subprocess.run([sys.executable, __file__, "large"], check=True, stdout=subprocess.DEVNULL)  # compiles
    output = subprocess.run([sys.executable, __file__, "large"], check=True, capture_output=True, text=True).stdout
    seconds, memory = (float(word) for word in output.split())
    limits = [
        ["bitmap and counters, bytes per 4 KiB page", f"{per_page:.3f}", f"{LIMIT_BYTES_PER_PAGE}",
         verdict(per_page, LIMIT_BYTES_PER_PAGE)],
        ["16 TiB, 10^6 conversions: seconds", f"{seconds:.2f}", "10", verdict(seconds, 10)],
        ["16 TiB, 10^6 conversions: peak memory, GiB", f"{memory / GIB:.2f}", f"{LIMIT_MEMORY / GIB:g}",
         verdict(memory, LIMIT_MEMORY)],
    ]  # fmt: skip
    print_table("Size of the state", ["what", "value", "at most", ""], limits)


if __name__ == "__main__":
    large_guest() if "large" in sys.argv[1:] else main()

"""Look-ups in the four offset -> pfn structures and churn of the range allocator, beside the same code in C.

Goals: look-ups with 10^3 to 10^6 extents and churn at most 1.25 times C; a host of 16 TiB with 10^5 machines arriving
and leaving in under a minute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.harness import NO_COMPILER, Variant, compile_c, duration, measure, pointer, print_table, verdict
from workbench.kernels import pfn_range
from workbench.kernels import vm_churn as kernel
from workbench.kernels.maps import flat_table, maple, range_table, xarray_map
from workbench.studies import vm_churn
from workbench.tracking.offset_maps import FlatMap, MapleMap, RangeMap, XarrayMap

LIMIT = 1.25
LOOKUPS = 200_000
EXTENTS = (1_000, 10_000, 100_000, 1_000_000)
PAGES_PER_EXTENT = 4
FLAT_PAGES = 1 << 24


def extents(count: int, rng: np.random.Generator) -> np.ndarray:
    """Neighbouring extents of 4 pages that do not continue each other, stored in random order."""
    start = np.arange(count, dtype=np.int64) * PAGES_PER_EXTENT
    pfn = rng.permutation(count) * (2 * PAGES_PER_EXTENT)
    return np.stack((start, np.full(count, PAGES_PER_EXTENT), pfn), axis=1)


def lookups(library: ctypes.CDLL | None) -> list[list[str]]:
    """Rows of the table of look-ups."""
    rng = np.random.default_rng(1)
    rows: list[list[str]] = []
    for count in EXTENTS:
        stream = extents(count, rng)
        pages = count * PAGES_PER_EXTENT
        indices = rng.integers(0, pages, LOOKUPS)
        out, out_c = np.empty(LOOKUPS, np.int64), np.empty(LOOKUPS, np.int64)
        xarray, tree, table, flat = XarrayMap(pages, 2), MapleMap(pages), RangeMap(pages), FlatMap(pages)
        for structure in (xarray, tree, table, flat):
            structure.run(stream if structure is table else stream[rng.permutation(count)])
        directory = np.empty((pages >> range_table.DIRECTORY_SHIFT) + 2, np.int32)
        range_table.fill_directory(table._columns[0], table._top, directory)
        columns = [np.ascontiguousarray(column) for column in table._columns]
        n = ctypes.c_int64(LOOKUPS)
        where, there = pointer(indices), pointer(out_c)
        x = (xarray._slots, xarray._header, xarray._top)
        m = (tree._nodes, tree._top)
        cases: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
            "xarray": (
                lambda x=x: xarray_map.load_many(*x, indices, out),
                library and (lambda x=x: library.xarray_many(*map(pointer, x), where, n, there)),
            ),
            "maple": (
                lambda m=m: maple.load_many(*m, indices, out),
                library and (lambda m=m: library.maple_many(*map(pointer, m), where, n, there)),
            ),
            "ranges": (
                lambda c=columns, t=table: range_table.load_many(*c, t._top, indices, out),
                library
                and (lambda c=columns: library.ranges_many(*map(pointer, c), ctypes.c_int64(len(c[0]) and count), where, n, there)),
            ),
            "ranges, directory": (
                lambda c=columns, d=directory: range_table.load_many_directory(*c, d, indices, out),
                None,
            ),
            "flat": (
                lambda f=flat: flat_table.load_many(f._table, 0, indices, out),
                library
                and (lambda f=flat: library.flat_many(pointer(f._table), ctypes.c_int64(len(f._table)), ctypes.c_int64(0), where, n, there)),
            ),
        }  # fmt: skip
        for name, (ours, theirs) in cases.items():
            inner = max(1, 1_000_000 // LOOKUPS)
            variants = {"ours": Variant(ours, inner=inner)}
            if theirs is not None:
                variants["C"] = Variant(theirs, inner=inner)
            times = measure(variants)
            row = [name, f"{count:,}", duration(times["ours"] / LOOKUPS)]
            if theirs is not None:
                assert np.array_equal(out, out_c), name
                ratio = times.ratio("ours", "C")
                row += [duration(times["C"] / LOOKUPS), f"{ratio:.2f}", verdict(ratio, LIMIT)]
            else:
                row += ["-", "-", ""]
            rows.append(row)
    return rows


def churn(library: ctypes.CDLL | None) -> list[list[str]]:
    """Rows of the table of allocator churn: 16 TiB, 10^5 machines."""
    nodes, capacity, total = 8, 1 << 14, 1 << 19
    stream = vm_churn.generate("16 TiB", 100_000, nodes=nodes)
    pages = (16 << 40) // 4096
    fallback = vm_churn.fallback(nodes)
    units = np.array([1 << 18, 1 << 9, 1])
    rows: list[list[str]] = []
    for name in ("first-fit", "best-fit", "buddy in ranges"):
        kind = vm_churn.RANGE_FITS[name]
        fresh = vm_churn.free_ranges(pages, nodes, kind, capacity)
        free = tuple(array.copy() for array in fresh)
        start, end, count = free[:3]
        ranges, pool = np.zeros((total, kernel.ROW_FIELDS), np.int64), np.zeros(2, np.int64)
        vms = np.zeros((stream.machines, kernel.VM_FIELDS), np.int64)
        scratch, counts = np.zeros((capacity, 2), np.int64), np.zeros(kernel.COUNTS, np.int64)
        no_samples = (np.zeros(0, np.int64), np.zeros((0, kernel.FIELDS), np.int64))
        outcome: dict[str, np.ndarray] = {}

        def prepare() -> None:
            for array, initial in zip(free, fresh, strict=True):
                array[...] = initial
            pool[:] = 0, -1
            vms[:], vms[:, kernel.VM_FIRST], counts[:] = 0, -1, 0

        def ours() -> None:
            code = kernel.churn_ranges(
                stream.events, fallback, kind, units, False, kernel.FreeRanges(*free),
                kernel.Held(ranges, pool, vms, scratch), kernel.Sampling(*no_samples, counts),
            )  # fmt: skip
            assert code == 0
            outcome["ours"] = counts.copy()

        def theirs() -> None:
            assert library is not None
            i = ctypes.c_int64
            code = library.churn(
                pointer(stream.events), i(len(stream.events)), pointer(fallback), i(nodes), i(kind), pointer(units),
                i(len(units)), i(0), pointer(start), pointer(end), pointer(count), i(capacity), pointer(ranges), i(total),
                pointer(pool), pointer(vms), pointer(scratch), i(capacity), pointer(counts),
            )  # fmt: skip
            assert code == 0
            outcome["C"] = counts.copy()

        variants = {"ours": Variant(ours, prepare)}
        if library is not None and kind != pfn_range.BUDDY:
            variants["C"] = Variant(theirs, prepare)
        times = measure(variants)
        row = [name, f"{len(stream.events):,}", duration(times["ours"]), verdict(times["ours"], 60)]
        if "C" in variants:
            assert np.array_equal(outcome["ours"], outcome["C"]), name
            ratio = times.ratio("ours", "C")
            row += [duration(times["C"]), f"{ratio:.2f}", verdict(ratio, LIMIT)]
        else:
            row += ["-", "-", ""]
        rows.append(row)
    for name in ("kernel buddy", "hugetlb 2 MiB", "hugetlb 1 GiB"):
        seconds = float(vm_churn.serve(stream, "16 TiB", nodes, (name,), samples=1)["seconds"][0])
        rows.append([name, f"{len(stream.events):,}", duration(seconds), verdict(seconds, 60), "-", "-", ""])
    return rows


def main() -> None:
    """Print both tables."""
    library = compile_c(Path(__file__).with_name("pagemap_port.c").read_text())
    if library is None:
        print(NO_COMPILER)
    print_table(
        "Random look-ups, each",
        ["structure", "extents", "Numba", "C", "x C", f"goal {LIMIT}"],
        lookups(library),
    )
    print_table(
        "16 TiB host, 100,000 machines arriving and leaving",
        ["allocator", "events", "Numba", "goal 60 s", "C", "x C", f"goal {LIMIT}"],
        churn(library),
    )


if __name__ == "__main__":
    main()

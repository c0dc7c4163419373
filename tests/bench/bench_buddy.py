"""Buddy allocator against its C port: one by one, in random order, mixed orders, and in bulk by extents."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from bench.harness import NO_COMPILER, Times, Variant, compile_c, duration, measure, pointer, print_table, verdict
from workbench.kernels import buddy as kernel_buddy
from workbench.kernels.buddy import MAX_PAGE_ORDER, UNMOVABLE, Buddy, new_buddy, release_range

PAGES = 1 << int(os.environ.get("BENCH_BUDDY_LOG2_PAGES", "24"))
CHURN_STEPS = PAGES // 4
LIMIT_OF_C = 1.25
LIMIT_BULK = 0.1


class CState(ctypes.Structure):
    """``struct buddy`` of the port, on the arrays of a :class:`Buddy`."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("links", "state", "block_type", "zone_start", "zone_end", "free_blocks", "free_pages")
    ] + [("pages", ctypes.c_int64), ("entries", ctypes.c_int64)]


def c_state(buddy: Buddy) -> CState:
    """The same arrays for C."""
    arrays = {name: pointer(getattr(buddy, name)) for name, _ in CState._fields_[:-2]}
    return CState(**arrays, pages=len(buddy.block_type) << 9, entries=len(buddy.state))


def fresh() -> Buddy:
    """One zone as after boot."""
    buddy = new_buddy(np.array([0]), np.array([PAGES]))
    release_range(buddy, 0, 0, PAGES)
    return buddy


def restore(buddy: Buddy, saved: Buddy) -> None:
    """Bring all arrays back to a saved state, in place."""
    for array, content in zip(buddy, saved, strict=True):
        array[...] = content


def copy(buddy: Buddy) -> Buddy:
    """An independent copy."""
    return Buddy(*(array.copy() for array in buddy))


def same(mine: Buddy, theirs: Buddy) -> bool:
    """Equal but for the links, which stay as they were when a block is taken off its list."""
    return all(np.array_equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))


def mixed_load(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Slots and orders of a load of orders 0, 9 and 10 that keeps some 65 % of the zone in use."""
    rng = np.random.default_rng(seed)
    share = {0: 0.9996, 9: 0.0003, 10: 0.0001}
    mean_pages = sum(part * (1 << order) for order, part in share.items())
    slots = int(0.65 * PAGES / mean_pages)
    fill = np.arange(slots)
    chosen = np.concatenate([fill, rng.integers(0, slots, CHURN_STEPS)]).astype(np.int32)
    orders = rng.choice(list(share), size=len(chosen), p=list(share.values())).astype(np.int8)
    return chosen, orders, slots


def main() -> None:
    """Print the table."""
    library = compile_c(Path(__file__).with_name("buddy_port.c").read_text())
    if library is None:
        print(NO_COMPILER)
        return
    library.allocate_blocks.restype = library.churn.restype = ctypes.c_int64
    i64 = ctypes.c_int64
    numba_buddy, c_buddy = fresh(), fresh()
    port = ctypes.byref(c_state(c_buddy))
    out_numba, out_c = np.empty(PAGES, np.int64), np.empty(PAGES, np.int64)
    extents, progress = np.empty((PAGES >> MAX_PAGE_ORDER, 2), np.int64), np.zeros(2, np.int64)
    order = np.random.default_rng(1).permutation(PAGES)
    full = copy(numba_buddy)
    rows = []

    def drain_numba() -> object:
        return kernel_buddy.allocate_blocks(numba_buddy, 0, 0, UNMOVABLE, False, PAGES, out_numba)

    def drain_c() -> object:
        return library.allocate_blocks(port, i64(0), i64(0), i64(UNMOVABLE), i64(PAGES), pointer(out_c))

    def drain_bulk() -> object:
        return kernel_buddy.allocate_extents(numba_buddy, 0, 0, UNMOVABLE, False, PAGES, extents, progress)

    def fill_numba() -> object:
        progress[:] = 0
        return restore(numba_buddy, full)

    def row(name: str, times: Times, which: str, count: int, limit: float) -> None:
        ratio = times.ratio(which, "C")
        rows.append(
            [
                name,
                duration(times["C"] / count),
                duration(times[which] / count),
                f"{ratio:.3g} ×",
                f"{limit:g} ×",
                verdict(ratio, limit),
            ]
        )

    drain = {
        "C": Variant(drain_c, lambda: restore(c_buddy, full)),
        "Numba": Variant(drain_numba, fill_numba),
        "bulk": Variant(drain_bulk, fill_numba),
    }
    times = measure(drain)
    pfns = np.concatenate([np.arange(first, first + pages) for first, pages in extents[: progress[0]]])
    assert np.array_equal(out_numba, out_c) and np.array_equal(pfns, out_c)
    row("drain order 0 one by one", times, "Numba", PAGES, LIMIT_OF_C)
    row("drain order 0 in bulk, fresh zone", times, "bulk", PAGES, LIMIT_BULK)

    # Fragmented: half of the pages, scattered in runs, so that blocks of all orders lie about in random order.
    restore(numba_buddy, full)
    drain_numba()
    starts = np.random.default_rng(2).permutation(PAGES // 64)[: PAGES // 128]
    some = (starts[:, None] * 64 + np.arange(64)).ravel()
    kernel_buddy.free_blocks(numba_buddy, 0, some, 0)
    fragmented = copy(numba_buddy)
    extents = np.empty((len(some), 2), np.int64)

    def fragment_numba() -> None:
        progress[:] = 0
        restore(numba_buddy, fragmented)

    times = measure(
        {
            "C": Variant(drain_c, lambda: restore(c_buddy, fragmented)),
            "Numba": Variant(drain_numba, fragment_numba),
            "bulk": Variant(drain_bulk, fragment_numba),
        }
    )
    pfns = np.concatenate([np.arange(first, first + pages) for first, pages in extents[: progress[0]]])
    assert np.array_equal(out_numba, out_c) and np.array_equal(pfns, out_c[: len(some)])
    row("drain order 0 one by one, 64-page runs free", times, "Numba", len(some), LIMIT_OF_C)
    row("drain order 0 in bulk, 64-page runs free", times, "bulk", len(some), LIMIT_BULK)

    restore(numba_buddy, full)
    drain_numba()
    drained = copy(numba_buddy)
    times = measure(
        {
            "C": Variant(
                lambda: library.free_blocks(port, i64(0), pointer(order), i64(PAGES), i64(0)),
                lambda: restore(c_buddy, drained),
            ),
            "Numba": Variant(
                lambda: kernel_buddy.free_blocks(numba_buddy, 0, order, 0), lambda: restore(numba_buddy, drained)
            ),
        }
    )
    assert same(numba_buddy, c_buddy)
    row("free all in random order", times, "Numba", PAGES, LIMIT_OF_C)

    slots, orders, count = mixed_load(3)
    held_numba, held_c = np.full(count, -1), np.full(count, -1)
    held_order_numba, held_order_c = np.zeros(count, np.int8), np.zeros(count, np.int8)

    def churn_numba() -> object:
        return kernel_buddy.churn(numba_buddy, 0, UNMOVABLE, slots, orders, held_numba, held_order_numba)

    def churn_c() -> object:
        return library.churn(
            port, i64(0), i64(UNMOVABLE), pointer(slots), pointer(orders), i64(len(slots)), pointer(held_c),
            pointer(held_order_c),
        )  # fmt: skip

    def reset_numba() -> None:
        restore(numba_buddy, full)
        held_numba[:] = -1

    def reset_c() -> None:
        restore(c_buddy, full)
        held_c[:] = -1

    times = measure({"C": Variant(churn_c, reset_c), "Numba": Variant(churn_numba, reset_numba)})
    assert np.array_equal(held_numba, held_c)
    assert same(numba_buddy, c_buddy)
    row("mixed orders 0, 9, 10; 65 % in use", times, "Numba", len(slots), LIMIT_OF_C)

    print_table(
        f"Buddy allocator, {PAGES:,} pages: per page or operation",
        ["work", "C one by one", "this", "ratio", "goal", ""],
        rows,
    )


if __name__ == "__main__":
    main()

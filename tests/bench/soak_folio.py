"""A billion conversions, recounted as they go: ``python tests/bench/soak_folio.py [conversions]``. Not part of CI.

Three guests take turns: 1 GiB folios of generation B, 1 GiB of generation C in two stages, 2 MiB of generation C; each
with so little free vmemmap that conversions fail now and then. After every part all counters must equal a recount of
the state and no vmemmap page may be missing.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from bench.bench_folio import new_guest
from kernels import folio

PART = 2_000_000
GUEST = 64 << 30
FREE = 60_000
SETTINGS = ((18, folio.GENERATION_B, folio.ONE_STEP), (18, folio.GENERATION_C, folio.TWO_STAGE),
            (9, folio.GENERATION_C, folio.ONE_STEP))  # fmt: skip


def recount(state: folio.State, free: int) -> None:
    """AssertionError if a counter and the state differ."""
    bits = np.bitwise_count(state.shared).astype(np.int64)
    by_2m = bits.reshape(-1, 8).sum(axis=1)
    by_1g = by_2m.reshape(-1, 512).sum(axis=1)
    counts = dict(zip(folio.COUNTERS, state.counts.tolist(), strict=True))
    np.testing.assert_array_equal(state.shared_2m, by_2m)
    np.testing.assert_array_equal(state.shared_1g, by_1g)
    assert counts["shared_pages"] == bits.sum()
    assert counts["mapped_2m"] == np.sum((state.level == folio.HUGE_2M) & (by_2m == 0))
    assert counts["mapped_1g"] == np.sum((state.level[::512] == folio.HUGE_1G) & (by_1g == 0))
    assert counts["present_pages"] == GUEST >> 12
    held = state.extra_1g.sum(dtype=np.int64) + state.extra_2m.sum(dtype=np.int64)
    assert state.vmemmap.sum() + held == free
    assert counts["vmemmap_taken"] - counts["vmemmap_freed"] == held


def main(total: int) -> None:
    """Print a line now and then, and the totals."""
    guests = []
    for order, generation, splitting in SETTINGS:
        state = new_guest(GUEST, order, generation)
        state.options[folio.SPLITTING] = splitting
        state.vmemmap[:] = FREE // 2
        guests.append(state)
    rng = np.random.default_rng(2026)
    errors, offsets = np.zeros(PART, np.int32), np.zeros(PART, np.int64)
    begin, done, failed = time.perf_counter(), 0, 0
    while done < total:
        state = guests[done // PART % len(guests)]
        pages = np.exp(rng.uniform(0, np.log(4097), PART)).astype(np.int64)
        # most of it in a hot part, so that blocks become private again and merge
        span = np.where(rng.random(PART) < 0.7, 1 << 14, GUEST >> 12)
        first = (rng.random(PART) * (span - pages)).astype(np.int64)
        to_shared = (rng.random(PART) < 0.35).astype(np.int8)
        failed += folio.convert_many(state, first << 12, pages << 12, to_shared, errors, offsets)
        recount(state, FREE)
        done += PART
        if done % (PART * 50) == 0:
            print(f"{done:,} conversions, {failed:,} failed, {time.perf_counter() - begin:.0f} s", flush=True)
    for (order, generation, splitting), state in zip(SETTINGS, guests, strict=True):
        counts = dict(zip(folio.COUNTERS, state.counts.tolist(), strict=True))
        kept = (
            "splits_1g",
            "splits_2m",
            "merges_1g",
            "merges_2m",
            "rollbacks",
            "failed_conversions",
            "converted_pages",
        )
        print(order, "BC"[generation], splitting, {name: counts[name] for name in kept})
    print(f"{done:,} conversions: every recount agreed")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_000)

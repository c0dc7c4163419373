"""A billion conversions, recounted as they go: ``python tests/bench/soak_folio.py [conversions]``. Not part of CI.

Guests take turns, each with so little free vmemmap that conversions fail now and then. Three of them convert ranges of 4
KiB to 16 MiB, most of it in a hot 64 MiB: 1 GiB folios of generation B, of generation C in two stages, 2 MiB folios of
generation C. In three more a whole 1 GiB often returns to private (a balloon deflated, a device reset), so that 1 GiB
folios split and merge all the time: generations B and C and two stages. After every part all counters must equal a
recount of the state and no vmemmap page may be missing.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from bench.bench_folio import conversions, new_guest, run
from workbench.kernels.folios import run as folio

PART = 2_000_000
GUEST = 64 << 30
SETTINGS = (
    (18, folio.GENERATION_B, folio.ONE_STEP, False, 60_000),
    (18, folio.GENERATION_C, folio.TWO_STAGE, False, 60_000),
    (9, folio.GENERATION_C, folio.ONE_STEP, False, 60_000),
    (18, folio.GENERATION_B, folio.ONE_STEP, True, 60_000),
    (18, folio.GENERATION_C, folio.ONE_STEP, True, 60_000),
    (18, folio.GENERATION_C, folio.TWO_STAGE, True, 12_000),
)
"""Order, generation, split, whether whole 1 GiB blocks return to private, free vmemmap pages."""
BLOCKS, RETURNING = 20, 0.06
"""1 GiB blocks in use where they return; at most 14 can be split in one step at a time. Share of such conversions."""


def hot_part(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pages, page counts and directions: most of it in a hot part, so that 2 MiB become private again."""
    pages = np.exp(rng.uniform(0, np.log(4097), PART)).astype(np.int64)
    span = np.where(rng.random(PART) < 0.7, 1 << 14, GUEST >> 12)
    first = (rng.random(PART) * (span - pages)).astype(np.int64)
    return first, pages, (rng.random(PART) < 0.35).astype(np.int8)


def returning_blocks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Likewise: small conversions inside a few 1 GiB blocks, each of which is private as a whole now and then."""
    pages = np.exp(rng.uniform(0, np.log(4097), PART)).astype(np.int64)
    block = rng.integers(0, BLOCKS, PART)
    first = (rng.random(PART) * (folio.PAGES_1G - pages)).astype(np.int64)
    whole = rng.random(PART) < RETURNING
    pages, first = np.where(whole, folio.PAGES_1G, pages), np.where(whole, 0, first)
    to_shared = (rng.random(PART) < 0.6) & ~whole
    return block * folio.PAGES_1G + first, pages, to_shared.astype(np.int8)


def recount(state: folio.FolioState, free: int) -> None:
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
    for order, generation, splitting, _returning, free in SETTINGS:
        state = new_guest(GUEST, order, generation)
        state.options[folio.SPLITTING] = splitting
        state.vmemmap[:] = free // 2
        guests.append(state)
    rng = np.random.default_rng(2026)
    errors, offsets = np.zeros(PART, np.int32), np.zeros(PART, np.int64)
    begin, done, failed = time.perf_counter(), 0, 0
    while done < total:
        turn = done // PART % len(guests)
        state = guests[turn]
        first, pages, to_shared = returning_blocks(rng) if SETTINGS[turn][3] else hot_part(rng)
        run(state, conversions(first << 12, pages << 12, to_shared), errors, offsets)
        failed += np.count_nonzero(errors)
        recount(state, SETTINGS[turn][4])
        done += PART
        if done % (PART * 50) == 0:
            print(f"{done:,} conversions, {failed:,} failed, {time.perf_counter() - begin:.0f} s", flush=True)
    for (order, generation, splitting, returning, _free), state in zip(SETTINGS, guests, strict=True):
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
        print(order, "BC"[generation], splitting, returning, {name: counts[name] for name in kept})
    print(f"{done:,} conversions: every recount agreed")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_000)

"""workbench.kernels.filemap.render writes long stretches by copying: longer than a block, cut anywhere, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from reference.scale import examples
from workbench.kernels import filemap

LONGEST = 5 * filemap._BLOCK + 123


@pytest.mark.parametrize("seed", range(examples(300, without_jit=4)))
def test_stretches_longer_than_a_block(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.int8, np.int16])
    rows = int(rng.integers(1, 4))
    periods = rng.choice([1, 2, 3, 7, 64, 255, 2040, filemap._BLOCK - 1, filemap._BLOCK, filemap._BLOCK + 9], rows)
    tiles = rng.integers(0, 100, periods.sum()).astype(np.int16)
    offsets = np.cumsum(periods) - periods
    zone_value = rng.permutation(100).astype(dtype)
    base = int(rng.integers(0, 50))
    out = np.full(int(rng.integers(1, rows * LONGEST)), -1, dtype)
    expected = out.copy()

    runs, allocations, page = [], [], int(rng.integers(0, 60))
    for row in range(rows):
        count, step = int(rng.integers(1, LONGEST)), int(rng.choice([1, -1]))
        first = page if step > 0 else page + count - 1
        allocations.append((first, count, step, offsets[row], periods[row]))
        low = page + int(rng.integers(0, count))  # a hole was punched at its beginning
        runs.append((low, page + count - low, row))
        pages = np.arange(low, page + count)
        zones = tiles[offsets[row] + (pages - first) * step % periods[row]]
        inside = (pages >= base) & (pages < base + len(out))
        expected[pages[inside] - base] = zone_value[zones[inside]]
        page += count + int(rng.integers(0, 30))
    filemap.render(np.array(runs), np.array(allocations), tiles, zone_value, base, out)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize(("period", "step", "shift"), [(3, 1, 1), (333, -1, 5), (filemap._BLOCK + 9, 1, 2)])
def test_an_answer_too_large_for_the_caches_is_written_beside_them(
    dtype: type, period: int, step: int, shift: int
) -> None:
    """Only there are lanes copied, to targets that are aligned, whatever the first entry is."""
    pages = filemap._LARGE + 1000
    out = np.full(pages + shift, -1, dtype)[shift:]
    tiles = np.random.default_rng(period).permutation(100)[np.arange(period) % 97].astype(np.int16)
    first, base = 7, 40
    count = pages - 70
    allocation = (first if step > 0 else first + count - 1, count, step, 0, period)
    filemap.render(np.array([(first, count, 0)]), np.array([allocation]), tiles, np.arange(100, dtype=dtype), base, out)
    place = np.arange(base, first + count) - allocation[0]
    assert np.array_equal(out[: len(place)], tiles[place * step % period])
    assert (out[len(place) :] == -1).all()

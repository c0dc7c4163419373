"""Pfns handed out as extents against one stack of single pfns for each zone."""

from __future__ import annotations

import numpy as np
import pytest

from reference.scale import examples
from workbench.engine.filemap import FileMap
from workbench.engine.pfns import FreePfns


class Reference:
    """Each zone is a list of free pfns whose last element is handed out next."""

    def __init__(self, starts, free):
        self.free = [list(range(s, s + n))[::-1] for s, n in zip(starts, free, strict=True)]
        self.pages = {}

    def place(self, page, zone):
        self.pages[page] = (zone, self.free[zone].pop())

    def punch(self, start, end):
        for page in sorted(p for p in self.pages if start <= p < end):
            zone, pfn = self.pages.pop(page)
            self.free[zone].append(pfn)


def append(map_, first, count, step, tile):
    """An allocation row, as the placement kernel writes it."""
    row, offset = int(map_.progress[2]), int(map_.progress[3])
    map_.grow(1, len(tile))
    map_.allocations[row] = (first, count, step, offset, len(tile))
    map_.tiles[offset : offset + len(tile)] = tile
    map_.progress[2] += 1
    map_.progress[3] += len(tile)
    map_.add_new_allocations(row)
    return row


@pytest.mark.parametrize("seed", range(examples(400)))
def test_against_single_pfns(seed):
    rng = np.random.default_rng(seed)
    zones, size = int(rng.integers(1, 4)), 60
    starts, free = np.arange(zones) * 1000, np.full(zones, 400)
    pfns, expected, map_ = FreePfns(starts, free), Reference(starts, free), FileMap()
    book = pfns.new_file()
    for _ in range(int(rng.integers(1, 12))):
        start, end = sorted(rng.integers(0, size + 1, 2).tolist())
        kind = int(rng.integers(0, 4))
        if kind == 0:
            pfns.release(map_, book, map_.cut(start, end))
            map_.erase(start, end, zones)
            expected.punch(start, end)
            continue
        for low, high in map_.absent(start, end):
            low, high = int(low), int(high)
            if kind == 3:
                order = low + rng.permutation(high - low)
                zone = rng.integers(0, zones, high - low).astype(np.int16)
                out = np.empty(high - low, np.int64)
                pfns.hand_out_list(zone, order, low, out)
                by_index = np.empty(high - low, np.int16)
                by_index[order - low] = zone
                row = int(map_.progress[2])
                map_.add_list(np.array([[low, high]]), by_index, low)
                book.listed[row] = out
                for page, z in zip(order.tolist(), zone.tolist(), strict=True):
                    expected.place(page, z)
                continue
            tile = rng.integers(0, zones, int(rng.integers(1, 6))).astype(np.int16)[: high - low]
            step = 1 if kind == 1 else -1
            first = low if step > 0 else high - 1
            row = append(map_, first, high - low, step, tile)
            pfns.hand_out(map_, book, row)
            for i in range(high - low):
                expected.place(first + step * i, int(tile[i % len(tile)]))
        listed = pfns.of_file(map_, book, size)
        assert listed.tolist() == [expected.pages.get(page, (0, -1))[1] for page in range(size)]
    owned = [pfn for pfn in pfns.of_file(map_, book, size) if pfn >= 0]
    assert len(owned) == len(set(owned)), "no pfn is owned twice"
    left = []
    for zone in range(zones):
        row, in_zone = int(pfns.top[zone]), []
        while row >= 0:
            pfn, count, step, row = (int(v) for v in pfns.stack[row])
            in_zone += [pfn + step * i for i in range(count)]
        assert in_zone == expected.free[zone][::-1]
        left += in_zone
    assert sorted(owned + left) == sorted(p for s, n in zip(starts, free, strict=True) for p in range(s, s + n))

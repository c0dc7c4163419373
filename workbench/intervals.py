"""Sets of pages as intervals: int64 (n, 2), rows ``[start, end)``, sorted and disjoint.

The one way in which ranges of pages are kept outside the kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


_NOTHING: Int64s = np.empty((0, 2), np.int64)


def no_intervals() -> Int64s:
    """The empty set of intervals: one array for all, for nothing can be written to it."""
    return _NOTHING


def equal_intervals(values: npt.NDArray[np.generic], base: int = 0) -> Int64s:
    """Maximal stretches of equal neighbours in ``values`` (n,), whose first index is ``base``."""
    if not len(values):
        return no_intervals()
    if len(values) == 1:  # of a single page, as most often
        return np.array([[base, base + 1]], np.int64)
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    out = np.empty((len(edges) + 1, 2), np.int64)
    out[0, 0], out[-1, 1] = 0, len(values)
    out[1:, 0] = out[:-1, 1] = edges
    return out + base


def true_intervals(flags: npt.NDArray[np.bool_], base: int = 0) -> Int64s:
    """Maximal stretches in which ``flags`` bool (n,) is set; its first index is ``base``."""
    if len(flags) == 1:  # of a single page, as most often
        return np.array([[base, base + 1]], np.int64) if flags[0] else no_intervals()
    padded = np.zeros(len(flags) + 2, np.int8)
    padded[1:-1] = flags
    edges = np.diff(padded)
    return np.column_stack((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1))) + base


def stretches(ascending: Int64s) -> Int64s:
    """Ascending different numbers as the intervals that they form, int64 (n, 2)."""
    if not len(ascending):
        return no_intervals()
    parts = equal_intervals(ascending - np.arange(len(ascending)))
    return np.column_stack((ascending[parts[:, 0]], ascending[parts[:, 1] - 1] + 1))


def set_intervals(words: npt.NDArray[np.uint64], end: int) -> Int64s:
    """Maximal stretches of set bits below ``end`` in a bitmap of 64-bit words, lowest bit first.

    Only words in which a stretch begins or ends are looked at bit by bit.
    """
    words = words[: -(-end >> 6)]
    before = np.zeros_like(words)
    before[1:] = words[:-1] >> np.uint64(63)
    edges = words ^ (words << np.uint64(1) | before)  # a bit that is not as the one below it
    at = np.flatnonzero(edges)
    row, bit = np.nonzero(
        np.unpackbits(edges[at].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    )
    places = (at[row] << 6) + bit
    places = places[places < end]
    if len(places) % 2:
        places = np.append(places, end)
    return places.astype(np.int64).reshape(-1, 2)


def ranges_text(intervals: Int64s, most: int = 1000) -> str:
    """Pages of intervals for people, as the kernel lists CPUs: ``"0-3,7"``; how many ranges more there are after ``most``."""
    parts = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in intervals[:most].tolist()]
    more = len(intervals) - most
    return ",".join([*parts, f"and {more} ranges more"] if more > 0 else parts)


def intervals_minus(start: int, end: int, intervals: Int64s) -> Int64s:
    """The parts of ``[start, end)`` outside sorted disjoint ``intervals`` int64 (n, 2): int64 (m, 2)."""
    first = intervals[:, 1].searchsorted(start, side="right")
    last = intervals[:, 0].searchsorted(end, side="left")
    if first >= last:  # as most often
        return np.array([[start, end]], np.int64) if start < end else no_intervals()
    inside = intervals[first:last]
    edges = np.concatenate(([start], inside.ravel(), [end])).reshape(-1, 2)
    edges = np.clip(edges, start, end)
    return edges[edges[:, 0] < edges[:, 1]]


def intervals_in(start: int, end: int, intervals: Int64s) -> Int64s:
    """The parts of sorted disjoint ``intervals`` int64 (n, 2) inside ``[start, end)``."""
    first = intervals[:, 1].searchsorted(start, side="right")
    last = intervals[:, 0].searchsorted(end, side="left")
    return np.clip(intervals[first:last], start, end) if first < last else no_intervals()


def intervals_add(start: int, end: int, intervals: Int64s) -> Int64s:
    """Sorted disjoint intervals with ``[start, end)`` added; touching ones are joined."""
    if end <= start:
        return intervals
    first = intervals[:, 1].searchsorted(start, side="left")
    last = intervals[:, 0].searchsorted(end, side="right")
    joined = intervals[first:last]
    if len(joined):
        start, end = min(start, int(joined[0, 0])), max(end, int(joined[-1, 1]))
    return np.concatenate((intervals[:first], [[start, end]], intervals[last:]))


def in_intervals(pages: Int64s, intervals: Int64s) -> npt.NDArray[np.bool_]:
    """Whether each page lies in one of the sorted disjoint intervals: bool (n,)."""
    position = np.searchsorted(intervals[:, 0], pages, side="right") - 1
    ends = np.concatenate((intervals[:, 1], [np.iinfo(np.int64).min]))
    return pages < ends[position]


def pages_of(first: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """The pages of ranges [first, end), int64 (n,) each, one range after the other: row of each page, and the page."""
    length = end - first
    row = np.repeat(np.arange(len(first)), length)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length) + first[row]

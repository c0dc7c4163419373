"""Many conversions in place at once: one call of the tracked file's kernel, and once after it what each call would have done.

A conversion in place allocates nothing that the engine places, so what else it does can follow: entries of the host's page
tables, leaves of a light map's guest (those of other files are the kernel's own), and for SNP and TDX what stays whole. What
maps pages meanwhile there is none, so a page is taken away if any conversion of the stream changed it, and the first that
names the other side finds it as it was at the start.
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.errors import Cancelled
from workbench.intervals import Int64s, pages_of
from workbench.kernels.folios import run as folio
from workbench.tracking.tracked_file import TrackedFile
from workbench.tracking.whole import WATCHED, WIDE, Whole
from workbench.units import PAGE_SIZE

Bools = npt.NDArray[np.bool_]
ROWS_AT_ONCE = 1 << 16
"""Rows of a stream in one call of the kernel; between calls a run can be cancelled."""
_FEW = 8
"""Rows that are sooner looked at one by one than together."""


def possible(system: System, inode: Inode, stream: Int64s) -> bool:
    """Whether a stream can run at once, but for what :func:`alone` names: conversions alone, of a kernel that has them.

    They take no memory beside the pages: that metadata is taken out of the zones changes nothing.
    """
    scenario, tracked = system.scenario, inode.tracked
    if tracked is None or inode.evicted or scenario.conversion_mode != "in-place" or not scenario.guest.private_memory:
        return False
    return "in-place" in scenario.kernel.conversion and bool((stream[:, folio.OP] == folio.CONVERT).all())


def alone(system: System, inode: Inode, stream: Int64s) -> Bools:
    """Rows bool (n,) whose effect depends on the state that they find: each has to be a call of its own.

    A device that is told of invalidations counts them; in generation B a refused conversion unmaps up to the end of what was
    shared. Only rows that touch an area of a device, or what the host has mapped, can do either.
    """
    seen = [np.zeros((0, 2), np.int64)]
    if inode.users is not None and inode.users.told:
        seen.append(inode.device_areas)
    if system.rules.kernel == "B" and inode.order:
        seen += [mapping.mapped() for mapping in inode.mappings]
    ranges = np.concatenate(seen)
    areas, unit = union(ranges[:, 0], ranges[:, 1]), max(inode.order, folio.ORDER_2M)
    first = stream[:, folio.OFFSET] // PAGE_SIZE >> unit << unit
    end = -(-(stream[:, folio.OFFSET] + stream[:, folio.LENGTH]) // PAGE_SIZE >> unit) << unit
    below = np.searchsorted(areas[:, 0], end, side="left") - 1
    return (below >= 0) & (areas[np.maximum(below, 0), 1] > first) if len(areas) else np.zeros(len(stream), bool)


def run(system: System, inode: Inode, stream: Int64s) -> Int64s:
    """Carry out a stream int64 (n, 6) of conversions and return the errno of each row."""
    tracked = inode.tracked
    assert tracked is not None and system.conversions is not None
    watched = system.scenario.guest.vm_type in WATCHED
    guest = inode.users.kvm if inode.users is not None and inode.users.light is not None else None
    shared = tracked.shared_ranges() if guest is not None and guest.pages else None
    errors, offsets = np.zeros(len(stream), np.int64), np.zeros(len(stream), np.int64)
    for low in range(0, len(stream), ROWS_AT_ONCE):
        part = slice(low, low + ROWS_AT_ONCE)
        errors[part], offsets[part] = (
            _watched(system, inode, stream[part]) if watched else _at_once(tracked, stream[part])
        )
        if system.cancelled():
            raise Cancelled
    first = stream[:, folio.OFFSET] // PAGE_SIZE
    stop = first + stream[:, folio.LENGTH] // PAGE_SIZE
    to_shared = stream[:, folio.ARGUMENT] == 1
    block_by_block = system.rules.kernel == "C" and inode.order > 0
    unit = offsets // PAGE_SIZE >> inode.order
    for mapping in inode.mappings:
        # What the host had mapped goes up to the end of the unit that somebody holds.
        held = np.minimum(stop, (unit + 1) << inode.order) if block_by_block else stop
        unmapped = np.where(errors == 0, stop, np.where(errors == errno.EAGAIN, held, first))
        gone = union(first[~to_shared], unmapped[~to_shared])
        for start, end in _overlapping(gone, mapping.mapped()).tolist():
            mapping.zap(start, end)
    if shared is not None and inode.users is not None:
        private = _outside(shared, inode.pages)
        # What was announced goes, in generation C up to the unit that refused; if it is all or nothing, all of it.
        refused = unit << inode.order if block_by_block else stop
        unnamed = stop if block_by_block else first
        announced = np.where(errors == 0, stop, np.where(offsets >= 0, refused, unnamed))
        announced[errors == errno.EINVAL] = 0
        for side, were in ((to_shared, private), (~to_shared, shared)):
            for start, end in _overlapping(were, union(first[side], announced[side])).tolist():
                inode.users.invalidate(start, end)
    return errors


def _at_once(tracked: TrackedFile, stream: Int64s) -> tuple[Int64s, Int64s]:
    result = tracked.run_stream(np.ascontiguousarray(stream, np.int64))
    return result.errors.astype(np.int64), result.offsets


def _watched(system: System, inode: Inode, stream: Int64s) -> tuple[Int64s, Int64s]:
    """As :func:`_at_once`, and what each row did to the entries of the RMP; of pairs of PAMT pages what they are for last."""
    tracked, conversions = inode.tracked, system.conversions
    assert tracked is not None and conversions is not None
    whole, size = conversions.whole(inode), len(stream)
    start = np.clip(stream[:, folio.OFFSET] // PAGE_SIZE, 0, inode.pages)
    end = np.clip((stream[:, folio.OFFSET] + stream[:, folio.LENGTH]) // PAGE_SIZE, start, inode.pages)
    if system.scenario.guest.vm_type != "snp":
        errors, offsets = _at_once(tracked, stream)
        whole.look_after(_blocks(start, end))
        return errors, offsets
    if not tracked.stays_whole and tracked.may_refuse():
        return _in_batches(whole, tracked, stream, start, end)
    errors, offsets = np.zeros(size, np.int64), np.zeros(size, np.int64)
    wide = np.append(np.flatnonzero((end - start) >> folio.ORDER_2M > WIDE), size)
    low = 0
    while low < size:
        high = int(wide[np.searchsorted(wide, low)])  # a wide row is looked at after it alone
        blocks = _blocks(start[low:high], end[low:high])
        bits, to_shared = tracked.bits(blocks), stream[low:high, folio.ARGUMENT] == 1
        if tracked.stays_whole:
            errors[low:high], offsets[low:high] = _at_once(tracked, stream[low:high])
            stop = _changed_to(system, inode, start[low:high], end[low:high], errors[low:high], offsets[low:high])
            whole.follow(start[low:high], stop, to_shared, bits)
        else:
            high = low + whole.follow(start[low:high], end[low:high], to_shared, bits)
            errors[low:high], offsets[low:high] = _at_once(tracked, stream[low:high])
        whole.look_after(blocks)
        if high < size:
            row = slice(high, high + 1)
            errors[row], offsets[row] = _at_once(tracked, stream[row])
            whole.look(int(start[high]), int(end[high]))
        low = high + 1
    return errors, offsets


def _changed_to(system: System, inode: Inode, start: Int64s, end: Int64s, errors: Int64s, offsets: Int64s) -> Int64s:
    """Where what each row [start, end) has converted ends: of refused ones, in generation C, before the unit that refused."""
    by_unit = system.rules.kernel == "C" and inode.order > 0
    reached = offsets // PAGE_SIZE >> inode.order << inode.order if by_unit else start
    return np.where(errors == 0, end, np.where(errors == errno.EINVAL, start, np.clip(reached, start, end)))


def _blocks(start: Int64s, end: Int64s) -> Int64s:
    """Blocks of 2 MiB that rows of pages [start, end) touch, each once, ascending."""
    touched = union(start >> folio.ORDER_2M, np.where(end > start, -(-end >> folio.ORDER_2M), 0))
    return pages_of(touched[:, 0], touched[:, 1])[1]


def _in_batches(
    whole: Whole, tracked: TrackedFile, stream: Int64s, start: Int64s, end: Int64s
) -> tuple[Int64s, Int64s]:
    """Rows that have no unit in common at once, and then each block that they name is looked at: it saw one call."""
    errors, offsets = np.zeros(len(stream), np.int64), np.zeros(len(stream), np.int64)
    unit = max(tracked.order, folio.ORDER_2M)
    for low, high in _apart(start >> unit, -(-end >> unit)):
        rows = slice(low, high)
        errors[rows], offsets[rows] = _at_once(tracked, stream[rows])
        if high - low <= _FEW:
            for first, last in zip(start[rows].tolist(), end[rows].tolist(), strict=True):
                whole.look(first, last)
            continue
        whole.look_at(_blocks(start[rows], end[rows]))
    return errors, offsets


def _apart(first: Int64s, end: Int64s) -> list[tuple[int, int]]:
    """Rows [low, high), one such stretch after the other, of which no two have a unit of [first, end) in common."""
    seen = np.full(int(end.max(initial=0)) + 1, -1, np.int64)
    out, low = [], 0
    for row, (one, last) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        if one < last and (seen[one] if last - one == 1 else seen[one:last].max()) >= low:
            out.append((low, row))
            low = row
        seen[one:last] = row
    return [*out, (low, len(first))] if len(first) else out


def union(first: Int64s, end: Int64s) -> Int64s:
    """Ranges [first, end), each int64 (n,) and empty where end is not larger, as disjoint ascending intervals int64 (m, 2)."""
    keep = end > first
    order = np.argsort(first[keep], kind="stable")
    first, last = first[keep][order], np.maximum.accumulate(end[keep][order])
    if not len(first):
        return np.zeros((0, 2), np.int64)
    begins = np.append(True, first[1:] > last[:-1])
    return np.column_stack((first[begins], last[np.append(begins[1:], True)]))


def _overlapping(one: Int64s, other: Int64s) -> Int64s:
    """What two sets of disjoint ascending intervals have in common, int64 (n, 2)."""
    if not len(one) or not len(other):
        return np.zeros((0, 2), np.int64)
    low = np.searchsorted(other[:, 1], one[:, 0], side="right")
    count = np.searchsorted(other[:, 0], one[:, 1], side="left") - low
    mine = np.repeat(np.arange(len(one)), count)
    theirs = np.arange(len(mine)) - np.repeat(np.cumsum(count) - count, count) + low[mine]
    return np.column_stack((np.maximum(one[mine, 0], other[theirs, 0]), np.minimum(one[mine, 1], other[theirs, 1])))


def _outside(intervals: Int64s, pages: int) -> Int64s:
    """What of [0, pages) lies in none of disjoint ascending intervals."""
    edges = np.concatenate(([0], intervals.ravel(), [pages])).reshape(-1, 2)
    return edges[edges[:, 0] < edges[:, 1]]

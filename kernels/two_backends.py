"""Conversions out of place, a whole stream in one call: attributes, holes in one file, pages of another, faults.

Two files of 4 KiB pages back one guest, its guest_memfd (``PRIVATE``) and an ordinary one (``SHARED``); the attribute of
each gfn says which. What a conversion does is in :mod:`workbench.engine.attributes`. Linux: ``virt/kvm/kvm_main.c``
(``kvm_vm_set_mem_attributes``), ``virt/kvm/guest_memfd.c`` (``kvm_gmem_punch_hole``), ``arch/x86/kvm/mmu/mmu.c``
(``kvm_mmu_faultin_pfn``); QEMU's ``kvm_convert_memory`` makes the calls in this order.

Six maps are maple trees (:mod:`workbench.kernels.maps.maple`) over page index: which allocation row backs each page of
either file (a page's zone follows from the row, :mod:`workbench.kernels.filemap`), which gfns are shared, which private
pages a hole has freed and nobody touched since, which row backed each page when it was first freed, and which pages of the
guest_memfd are poisoned: those are not freed when they leave it (``mm/memory-failure.c``). An entry is
``row << ROW_SHIFT | page``, so that entries cut at a border stay right; sets hold row 0. The cost follows ranges, not pages.

A call ends early with NEEDS_ROOM; called again with longer arrays it goes on where it was. For that, what is half done is
written down: the pages of the shared file that are yet to be touched, and the allocation rows that the maps have.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import Int, kernel, record
from workbench.kernels.filemap import add_run, zone_of_page
from workbench.kernels.folios.state import ARGUMENT, CONVERT, CPU, EINVAL, LENGTH, OFFSET, OP, POISON, PUNCH
from workbench.kernels.maps import maple
from workbench.kernels.placement import (
    ALLOCATIONS,
    DONE,
    IN_PIECE,
    NEEDS_ROOM,
    PIECE,
    Interleaving,
    Output,
    Requests,
    Zones,
    place_pieces,
)

PRIVATE, SHARED, ATTRIBUTES, PUNCHED, ORIGINS, POISONED = range(6)
"""The maps."""
MAPS = 6
ROW_SHIFT = 33
NO_ROW = (1 << 28) - 1
"""In ORIGINS: a page that nothing backed when the hole was made."""
COUNTERS = (
    "conversions",
    "failed_conversions",
    "converted_pages",
    "shared_pages",
    "invalidations",
    "punched_pages",
    "discarded_pages",
    "refaulted_pages",
    "private_backend_pages",
    "shared_backend_pages",
)
"""``shared_pages`` and the pages of the backends are those of the moment, the rest sums."""
(
    CONVERSIONS,
    FAILED,
    CONVERTED,
    SHARED_NOW,
    INVALIDATIONS,
    PUNCHED_SUM,
    DISCARDED,
    REFAULTED,
    PRIVATE_NOW,
    SHARED_BACKEND_NOW,
) = range(len(COUNTERS))
SET_ATTRIBUTES, ALLOCATE, LOOK = range(64, 67)
"""Operations beside those of :mod:`workbench.kernels.folios.run`: the gfns of the range are shared (ARGUMENT 1) or private from
now on, and nothing else happens; the guest_memfd has all pages of the range, whatever its gfns are; nothing changes."""
AT, PENDING_LOW, PENDING_END, ENTERED_PRIVATE, ENTERED_SHARED, BACKING = range(6)
"""Fields of ``where``: row of the stream, pages of the shared file yet to be touched, rows entered in the maps, and what backs
gfns that are shared."""
OTHER_FILE, NOTHING, SAME_FILE = range(3)
_PAGE_SHIFT = 12
_MARGIN = 16
"""Stores that every map has room for before something is begun that cannot be repeated."""


@record
class Backends(NamedTuple):
    """The state of one guest's two files."""

    nodes: np.ndarray
    """int64 (MAPS, nodes, 32), of the maple trees."""
    tops: np.ndarray
    """int64 (MAPS, 6)."""
    found: np.ndarray
    """int64 (3,), working space."""
    path: np.ndarray
    """int64 (2, 32), working space."""
    counts: np.ndarray
    """int64 (counters,)."""
    where: np.ndarray
    """int64 (6,)."""
    placed: np.ndarray
    """int64 (zones,), receives pages placed."""
    piece: np.ndarray
    """int64 (1, 4), working space."""


@record
class Asking(NamedTuple):
    """Whose policy decides for the pages of one file."""

    ranges: np.ndarray
    """int64 (n, 2), pages with a policy of the file, ascending."""
    row_of: np.ndarray
    """int64 (tasks, n + 1), request of each task and range; the last column is for all other pages."""


@kernel
def _room(b: Backends, which: Int, stores: Int) -> bool:
    return bool(maple.room(b.nodes[which], b.tops[which]) > stores * maple.store_nodes(b.tops[which]))


@kernel
def _store(b: Backends, which: Int, start: Int, end: Int, row: Int) -> None:
    entry = -1 if row < 0 else (row << ROW_SHIFT) | start
    maple.store(b.nodes[which], b.tops[which], start, end - start, entry, b.found, b.path)


@kernel
def find(b: Backends, which: Int, start: Int, end: Int) -> bool:
    """Whether a map has an entry in [start, end); ``found`` then has the first: first page, last page, entry."""
    if start >= end or not maple.find(b.nodes[which], b.tops[which], start, b.found, b.path):
        return False
    if b.found[0] < end:
        return True
    return False


@kernel
def end_of_set(b: Backends, which: Int, start: Int, end: Int) -> Int:
    """End of the stretch of a set that ``start`` is in, at most ``end``."""
    while start < end and find(b, which, start, end) and b.found[0] <= start:
        start = b.found[1] + 1
    return min(start, end)


@kernel
def load(b: Backends, which: Int, runs: np.ndarray) -> None:
    """Fill an empty map from runs int64 (n, 3): first page, pages, row. The caller sees to the room."""
    for run in range(runs.shape[0]):
        _store(b, which, runs[run, 0], runs[run, 0] + runs[run, 1], runs[run, 2])


@kernel
def list_runs(b: Backends, which: Int, out: np.ndarray) -> Int:
    """Entries of a map as runs into ``out`` int64 (n, 3), neighbours with one row joined; how many there are."""
    count, page, last_row = 0, 0, -1
    while maple.find(b.nodes[which], b.tops[which], page, b.found, b.path):
        first, page = max(b.found[0], page), b.found[1] + 1
        row = b.found[2] >> ROW_SHIFT
        if count > 0 and row == last_row and out[count - 1, 0] + out[count - 1, 1] == first:
            out[count - 1, 1] += page - first
        else:
            if count < out.shape[0]:
                out[count, 0], out[count, 1], out[count, 2] = first, page - first, row
            count += 1
        last_row = row
    return count


@kernel
def _next(b: Backends, which: Int, page: Int) -> None:
    """The first entry of a map at or after a page, into ``found``; beyond any page if there is none."""
    if not maple.find(b.nodes[which], b.tops[which], page, b.found, b.path):
        b.found[0] = b.found[1] = maple.MAX_INDEX


@kernel
def holds(b: Backends, which: Int, numbers: np.ndarray, shift: Int, pages: Int, out: np.ndarray) -> None:
    """Whether each range of ``1 << shift`` pages, int64 (n,) by ascending number, has an entry of a map, into uint8 (n,).

    Of ATTRIBUTES, whether any of its gfns below ``pages`` is private: those that are shared are in the map.
    """
    for i in range(numbers.shape[0]):
        page = numbers[i] << shift
        end = min(page + (np.int64(1) << shift), pages)
        # Often the entry that the range before ended at is the next one of this range too.
        if i == 0 or b.found[1] < page:
            _next(b, which, page)
        if which == ATTRIBUTES:
            while b.found[0] <= page and b.found[1] < end - 1:
                page = b.found[1] + 1
                _next(b, which, page)
            out[i] = b.found[0] > page and page < end
        else:
            out[i] = b.found[0] < end


@kernel
def _present(b: Backends, which: Int, start: Int, end: Int) -> Int:
    """Pages of [start, end) that a map has."""
    pages, page = 0, start
    while find(b, which, page, end):
        low, page = max(b.found[0], page), min(b.found[1] + 1, end)
        pages += page - low
    return pages


@kernel
def _erase(b: Backends, which: Int, start: Int, end: Int, file: Output, zones: Zones) -> Int:
    """Free the pages of [start, end), but for poisoned ones; how many there were."""
    if which == PRIVATE:
        _forget_poison(b, start, end, file, zones)
    page, pages = start, 0
    while find(b, which, page, end):
        low, page = max(b.found[0], page), min(b.found[1] + 1, end)
        add_run(low, page - low, b.found[2] >> ROW_SHIFT, file.allocations, file.tiles, zones.free)
        pages += page - low
    b.counts[PRIVATE_NOW if which == PRIVATE else SHARED_BACKEND_NOW] -= pages
    if pages > 0:
        _store(b, which, start, end, -1)
    return pages


@kernel
def _forget_poison(b: Backends, start: Int, end: Int, file: Output, zones: Zones) -> None:
    """Poisoned pages of [start, end), which are about to be freed, stay taken."""
    page = start
    while find(b, POISONED, page, end):
        low, page = max(b.found[0], page), min(b.found[1] + 1, end)
        for bad in range(low, page):
            find(b, PRIVATE, bad, bad + 1)
            zones.free[zone_of_page(bad, b.found[2] >> ROW_SHIFT, file.allocations, file.tiles)] -= 1
    if page > start:
        _store(b, POISONED, start, end, -1)


@kernel
def _poison(b: Backends, start: Int, end: Int) -> Int:
    """Memory failure on what is there of pages [start, end) of the guest_memfd."""
    page = start
    while find(b, PRIVATE, page, end):
        low, page = max(b.found[0], page), min(b.found[1] + 1, end)
        if not _room(b, POISONED, _MARGIN):
            return NEEDS_ROOM
        _store(b, POISONED, low, page, 0)
    return DONE


@kernel
def _enter(b: Backends, which: Int, file: Output) -> Int:
    """Bring allocation rows that the map does not have yet into it."""
    field = ENTERED_PRIVATE if which == PRIVATE else ENTERED_SHARED
    while b.where[field] < file.progress[ALLOCATIONS]:
        if not _room(b, which, _MARGIN):
            return NEEDS_ROOM
        row = b.where[field]
        first, count = file.allocations[row, 0], file.allocations[row, 1]
        _store(b, which, first, first + count, row)
        b.counts[PRIVATE_NOW if which == PRIVATE else SHARED_BACKEND_NOW] += count
        b.where[field] += 1
    return DONE


@kernel
def _touch(
    b: Backends,
    which: Int,
    start: Int,
    end: Int,
    task: Int,
    asking: Asking,
    requests: Requests,
    file: Output,
    turns: Interleaving,
    zones: Zones,
) -> Int:
    """Make pages [start, end) of a file present in ascending order; DONE, NEEDS_ROOM or OUT_OF_MEMORY.

    Called again, it passes over what is there.
    """
    status = _enter(b, which, file)
    page = start
    while status == DONE and page < end:
        hole_end = end
        if find(b, which, page, end):
            if b.found[0] <= page:
                page = b.found[1] + 1
                continue
            hole_end = b.found[0]
        # Up to the next border of a policy.
        low, high = 0, asking.ranges.shape[0]
        while low < high:
            middle = (low + high) // 2
            if asking.ranges[middle, 1] <= page:
                low = middle + 1
            else:
                high = middle
        column = asking.ranges.shape[0]
        if low < asking.ranges.shape[0]:
            if asking.ranges[low, 0] <= page:
                column = low
                hole_end = min(hole_end, asking.ranges[low, 1])
            else:
                hole_end = min(hole_end, asking.ranges[low, 0])
        b.piece[0, 0], b.piece[0, 1], b.piece[0, 2] = page, hole_end - page, 1
        b.piece[0, 3] = asking.row_of[task, column]
        file.progress[PIECE], file.progress[IN_PIECE] = 0, 0
        for zone in range(b.placed.shape[0]):
            b.placed[zone] += zones.free[zone]
        status = place_pieces(b.piece, requests, turns, zones, file)
        for zone in range(b.placed.shape[0]):
            b.placed[zone] -= zones.free[zone]
        entered = _enter(b, which, file)
        if status == DONE:
            status = entered
        page = hole_end
    return status


@kernel
def _note_hole(b: Backends, start: Int, end: Int) -> Int:
    """Before private pages are freed: remember which row backed them, the first time."""
    page = start
    while page < end:
        if not _room(b, ORIGINS, _MARGIN):
            return NEEDS_ROOM
        if find(b, ORIGINS, page, end):
            if b.found[0] <= page:
                page = b.found[1] + 1
                continue
            gap_end = b.found[0]
        else:
            gap_end = end
        if find(b, PRIVATE, page, gap_end):
            row = b.found[2] >> ROW_SHIFT
            if b.found[0] <= page:
                gap_end = min(gap_end, b.found[1] + 1)
            else:
                row = NO_ROW
                gap_end = b.found[0]
        else:
            row = NO_ROW
        _store(b, ORIGINS, page, gap_end, row)
        page = gap_end
    return DONE


@kernel
def _begin_to_shared(b: Backends, start: Int, end: Int, file: Output, zones: Zones) -> Int:
    """All but the touch of the shared file, for private gfns [start, end)."""
    for which in (PRIVATE, ATTRIBUTES, PUNCHED, POISONED):
        if not _room(b, which, _MARGIN):
            return NEEDS_ROOM
    status = _note_hole(b, start, end)
    if status != DONE:
        return status
    b.counts[CONVERTED] += end - start
    b.counts[SHARED_NOW] += end - start
    b.counts[INVALIDATIONS] += 2  # by the attribute, and by the hole
    _store(b, ATTRIBUTES, start, end, 0)
    _store(b, PUNCHED, start, end, 0)
    b.counts[PUNCHED_SUM] += _erase(b, PRIVATE, start, end, file, zones)
    b.where[PENDING_LOW], b.where[PENDING_END] = start, end
    return DONE


@kernel
def _punch(b: Backends, start: Int, end: Int, file: Output, zones: Zones) -> Int:
    """kvm_gmem_punch_hole alone, under gfns of either kind."""
    for which in (PRIVATE, PUNCHED, POISONED):
        if not _room(b, which, _MARGIN):
            return NEEDS_ROOM
    status = _note_hole(b, start, end)
    if status == DONE:
        _store(b, PUNCHED, start, end, 0)
        _erase(b, PRIVATE, start, end, file, zones)
    return status


@kernel
def _to_private(b: Backends, start: Int, end: Int, shared: Output, zones: Zones) -> Int:
    """Shared gfns [start, end) become private: the shared file is discarded, and nothing backs them until they are touched."""
    if not _room(b, SHARED, _MARGIN) or not _room(b, ATTRIBUTES, _MARGIN):
        return NEEDS_ROOM
    b.counts[CONVERTED] += end - start
    b.counts[SHARED_NOW] -= end - start
    b.counts[INVALIDATIONS] += 1
    _store(b, ATTRIBUTES, start, end, -1)
    b.counts[DISCARDED] += _erase(b, SHARED, start, end, shared, zones)
    return DONE


@kernel
def _set_attributes(b: Backends, start: Int, end: Int, shared: bool) -> Int:
    """kvm_vm_set_mem_attributes alone, of gfns of either kind."""
    if not _room(b, ATTRIBUTES, _MARGIN):
        return NEEDS_ROOM
    before = _present(b, ATTRIBUTES, start, end)
    if shared:
        b.counts[SHARED_NOW] += end - start - before
        _store(b, ATTRIBUTES, start, end, 0)
    elif before > 0:
        b.counts[SHARED_NOW] -= before
        _store(b, ATTRIBUTES, start, end, -1)
    return DONE


@kernel
def _guest_touch(
    b: Backends,
    start: Int,
    end: Int,
    task: Int,
    private: Output,
    shared: Output,
    asking_private: Asking,
    asking_shared: Asking,
    requests_private: Requests,
    requests_shared: Requests,
    zones_private: Zones,
    zones_shared: Zones,
    turns: Interleaving,
) -> Int:
    """A vCPU touches [start, end): the attribute of each gfn says which file has the page, if there are two."""
    page, one_file = start, b.where[BACKING] == SAME_FILE
    while page < end:
        part_end = page if one_file else end_of_set(b, ATTRIBUTES, page, end)
        if part_end > page:
            status = _touch(
                b, SHARED, page, part_end, task, asking_shared, requests_shared, shared, turns, zones_shared
            )
        else:
            part_end = b.found[0] if not one_file and find(b, ATTRIBUTES, page, end) else end
            if not _room(b, PUNCHED, _MARGIN):
                return NEEDS_ROOM
            status = _touch(
                b, PRIVATE, page, part_end, task, asking_private, requests_private, private, turns, zones_private
            )
            if status == DONE:
                b.counts[REFAULTED] += _present(b, PUNCHED, page, part_end)
                _store(b, PUNCHED, page, part_end, -1)
        if status != DONE:
            return status
        page = part_end
    return DONE


@kernel
def run(
    stream: np.ndarray,
    errors: np.ndarray,
    pages: Int,
    b: Backends,
    private: Output,
    shared: Output,
    asking_private: Asking,
    asking_shared: Asking,
    requests_private: Requests,
    requests_shared: Requests,
    zones_private: Zones,
    zones_shared: Zones,
    turns: Interleaving,
) -> Int:
    """Carry out conversions, guest faults, holes and whatever else of the kind on a guest of ``pages`` pages.

    Parameters
    ----------
    stream : int64 (n, 6), operations as :mod:`workbench.kernels.folios.run` has them (CONVERT, GUEST_FAULT, PUNCH and POISON) and
        those from SET_ATTRIBUTES on, of whole pages; CPU is the task that makes the call
    errors : int32 (n,), receives errnos: EINVAL for a length of 0 or what is not aligned

    Returns
    -------
    DONE, NEEDS_ROOM (lengthen what is short and call again) or OUT_OF_MEMORY (``where`` says at which row).
    """
    while b.where[AT] < stream.shape[0]:
        row = b.where[AT]
        task = stream[row, CPU]
        if b.where[PENDING_LOW] < b.where[PENDING_END]:
            status = _touch(
                b,
                SHARED,
                b.where[PENDING_LOW],
                b.where[PENDING_END],
                task,
                asking_shared,
                requests_shared,
                shared,
                turns,
                zones_shared,
            )
            if status != DONE:
                return status
            b.where[PENDING_LOW] = b.where[PENDING_END]
        offset, length = stream[row, OFFSET], stream[row, LENGTH]
        start, end = offset >> _PAGE_SHIFT, min(pages, (offset + length) >> _PAGE_SHIFT)
        if stream[row, OP] == SET_ATTRIBUTES:
            status = _set_attributes(b, start, end, stream[row, ARGUMENT] != 0)
        elif stream[row, OP] == PUNCH:
            status = _punch(b, start, end, private, zones_private)
        elif stream[row, OP] == ALLOCATE:
            status = _touch(
                b, PRIVATE, start, end, task, asking_private, requests_private, private, turns, zones_private
            )
        elif stream[row, OP] == POISON:
            status = _poison(b, start, end)
        elif stream[row, OP] == LOOK:
            status = DONE
        elif stream[row, OP] != CONVERT:
            status = _guest_touch(
                b,
                start,
                end,
                task,
                private,
                shared,
                asking_private,
                asking_shared,
                requests_private,
                requests_shared,
                zones_private,
                zones_shared,
                turns,
            )
        elif length <= 0 or (offset | length) & ((1 << _PAGE_SHIFT) - 1):
            errors[row] = EINVAL
            b.counts[FAILED] += 1
            status = DONE
        elif stream[row, ARGUMENT]:
            status, page = DONE, start
            while page < end:
                part_end = end
                if find(b, ATTRIBUTES, page, end):
                    if b.found[0] <= page:
                        page = b.found[1] + 1
                        continue
                    part_end = b.found[0]
                status = _begin_to_shared(b, page, part_end, private, zones_private)
                if status != DONE:
                    break
                status = _touch(
                    b, SHARED, page, part_end, task, asking_shared, requests_shared, shared, turns, zones_shared
                )
                if status != DONE:
                    break
                b.where[PENDING_LOW] = b.where[PENDING_END]
                page = part_end
        else:
            status, page = DONE, start
            while find(b, ATTRIBUTES, page, end):
                page = max(page, b.found[0])
                part_end = end_of_set(b, ATTRIBUTES, page, end)
                status = _to_private(b, page, part_end, shared, zones_shared)
                if status != DONE:
                    break
                page = part_end
        if stream[row, OP] == CONVERT and status != NEEDS_ROOM:
            b.counts[CONVERSIONS] += 1
        if status != DONE:
            return status
        b.where[AT] += 1
    return DONE


@kernel
def drifted(
    before: np.ndarray,
    now: np.ndarray,
    allocations: np.ndarray,
    tiles: np.ndarray,
    zone_node: np.ndarray,
) -> Int:
    """Pages that lie on another node than at first.

    before, now : int64 (n, 3), runs of first page, pages, row (NO_ROW: nothing), ascending
    allocations, tiles : as in :mod:`workbench.kernels.filemap`
    zone_node : int64 (zones,)
    """
    moved, other = 0, 0
    for run in range(before.shape[0]):
        old = before[run, 2]
        if old == NO_ROW:
            continue
        start, end = before[run, 0], before[run, 0] + before[run, 1]
        while other < now.shape[0] and now[other, 0] + now[other, 1] <= start:
            other += 1
        at = other
        while at < now.shape[0] and now[at, 0] < end:
            low, high = max(start, now[at, 0]), min(end, now[at, 0] + now[at, 1])
            new = now[at, 2]
            if new != old:
                for page in range(low, high):
                    place = (page - allocations[old, 0]) * allocations[old, 2]
                    first = tiles[allocations[old, 3] + place % allocations[old, 4]]
                    place = (page - allocations[new, 0]) * allocations[new, 2]
                    second = tiles[allocations[new, 3] + place % allocations[new, 4]]
                    moved += zone_node[first] != zone_node[second]
            at += 1
    return moved

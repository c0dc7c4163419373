"""Huge folios of one guest_memfd file under private/shared conversion: split, merge, pins, punch, vmemmap.

None of this is in Linux 7.3. It follows the proposals in the order they were posted:

* generation B, "1G page support for guest_memfd" RFC v2 (May 2025; ``kvm_gmem_convert_range``): a conversion is all or
  nothing, a failure in the middle is rolled back;
* generation C, the in-place conversion series v4 to v7 and the 1 GiB rebase on it (2026; ``kvm_gmem_set_attributes``):
  block by block, the blocks before a failure stay converted;
* 4 KiB folios that lie together (``SMALL_FOLIOS``) and huge folios of the page allocator (``BUDDY_FOLIOS``) are designs
  under discussion: the first convert as 4 KiB folios do and are never restructured, the second as 2 MiB pages;
* the two-stage split 1 GiB -> 2 MiB -> 4 KiB and the split on the first host fault are what-ifs: discussed, in neither.

Invariant of B and C: a block (aligned huge page of the file) is one huge folio iff all of it is private; otherwise all
of it is 4 KiB folios (but for a fresh one that C could not split). A split restores the vmemmap pages that HVO had freed
(``mm/hugetlb_vmemmap.c: hugetlb_vmemmap_restore_folio``: all or nothing, preferred node of the folio, may spill) and a
merge gives them back (one page must be free to start with, otherwise the folio stays unoptimised).

Here are the entry points and the conversions; the rest is in :mod:`workbench.kernels.folios.state` (codes and arrays, all of them
names of this module too), :mod:`workbench.kernels.folios.split`, :mod:`workbench.kernels.folios.references`,
:mod:`workbench.kernels.folios.poison`, :mod:`workbench.kernels.folios.second_stage` and
:mod:`workbench.kernels.folios.access`.

A whole stream of operations is one call of :func:`run`.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import ALL, ONE, ZERO, mask, popcount
from workbench.kernels.compile import Int, inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.access import (
    access,
    collapse_small,
    is_present,
    merge_pass,
    poison_page,
    populate,
    punch_hole,
    release,
    unmap_slot,
    unpin,
)
from workbench.kernels.folios.poison import lacks_room_for_poison, never_handed_out
from workbench.kernels.folios.references import first_referenced, lru_drain
from workbench.kernels.folios.second_stage import (
    any_leaf,
    forget_returned,
    forget_returned_blocks,
    note_change,
    returned,
    split_leaf,
    uniform_1g,
    uniform_2m,
    unmap_differing,
    unmap_range,
)
from workbench.kernels.folios.split import merge_range, split_range
from workbench.kernels.folios.state import *
from workbench.kernels.whole import Whole, change, lay_out

_TOP = np.uint64(63)


@natural_kernel
def run(
    state: FolioState,
    stream: np.ndarray,
    errors: np.ndarray,
    offsets: np.ndarray,
    ends: np.ndarray,
    series: np.ndarray,
    watched: Whole,
    rows: np.ndarray,
    start: int,
) -> int:
    """Carry out operations ``start`` ... of a stream.

    Parameters
    ----------
    stream : int64 (n, 6), columns OP ... CPU; offsets and lengths in bytes, NODE a node index for new folios
    errors : int32 (n,), receives 0, an errno, or SIGBUS
    offsets : int64 (n,), receives the byte offset the error names, or -1
    ends : int64 (c,), ascending: how many operations are done when each row of ``series`` is written
    series : int64 (c, COUNTERS + N), receives the counters, then the vmemmap pages held by node
    watched : what stays whole, looked at where operations since the row before have been
    rows : int64 (c, 4 + 2 N), receives its row; (0, ...): nobody asks

    Returns
    -------
    Number of operations done; less than n if the room for references or poisoned pages must grow first (the error there
    is NEEDS_ROOM), or where an INSERT failed.
    """
    at = np.int64(0)  # rows of ``series`` that are written
    while at < ends.shape[0] and (ends[at] < start or (start > 0 and ends[at] == start)):
        at += 1
    while at < ends.shape[0] and ends[at] == start:
        _sample(state, series[at], watched, rows, at)
        at += 1
    for i in range(start, stream.shape[0]):
        if lacks_room_for_poison(state):
            errors[i] = NEEDS_ROOM
            return i
        state.numbers[AT] = -1
        row = stream[i]
        op, offset, length, argument = row[OP], row[OFFSET], row[LENGTH], row[ARGUMENT]
        error = np.int64(EINVAL)
        if state.numbers[RELEASED] == 1 and op != UNPIN and op != LRU_DRAIN:
            error = EBADF
        elif op == CONVERT:
            error = _convert(state, offset, length, argument == 1)
        elif op == PIN or op == HOST_FAULT or op == GUEST_FAULT:
            error = access(state, op, offset, length, argument, row[NODE], row[CPU])
        elif op == UNPIN:
            error = unpin(state, offset, length, argument)
        elif op == PUNCH:
            error = punch_hole(state, offset, length)
        elif op == POISON:
            error = poison_page(state, offset)
        elif op == MERGE:
            error = merge_pass(state, offset, length)
        elif op == LRU_DRAIN:
            error = lru_drain(state)
        elif op == RELEASE:
            error = release(state)
        elif op == UNMAP:
            error = unmap_slot(state, offset, length)
        elif op == INSERT:
            error = _insert(state, offset >> 12, row[NODE], row[CPU])
        elif op == COLLAPSE:
            error = collapse_small(state, offset, row[NODE], row[CPU])
        errors[i] = error
        if error == NEEDS_ROOM or (op == INSERT and error != 0):
            return i
        offsets[i] = state.numbers[AT] * 4096 if error != 0 and state.numbers[AT] >= 0 else -1
        if at < ends.shape[0] and ends[at] == i + 1:
            if rows.shape[0] > 0:
                _look(state, watched, stream, ends[at - 1] if at > 0 else 0, i + 1)
            while at < ends.shape[0] and ends[at] == i + 1:
                _sample(state, series[at], watched, rows, at)
                at += 1
    return stream.shape[0]


@natural_kernel
def _sample(state: FolioState, row: np.ndarray, watched: Whole, rows: np.ndarray, at: int) -> None:
    count(state.numbers, state.host.shape[0], row)
    if rows.shape[0] > 0:
        for entry in range(watched.row.shape[0]):
            rows[at, entry] = watched.row[entry]


@natural_kernel
def count(numbers: np.ndarray, nodes: Int, row: np.ndarray) -> None:
    """Counters, then vmemmap pages by node that are taken, of the numbers of a file, into the beginning of ``row`` int64."""
    for counter in range(AT):
        row[counter] = numbers[counter]
    for node in range(nodes):
        row[AT + node] = numbers[TAKEN + node] - numbers[TAKEN + nodes + node]


@natural_kernel
def _look(s: FolioState, watched: Whole, stream: np.ndarray, begin: int, end: int) -> None:
    """Look at 2 MiB blocks of units, from the first to the last that operations [begin, end) were about."""
    order = s.options[BACKING]
    low, high = s.options[PAGES], np.int64(0)
    for i in range(begin, end):
        low = min(low, stream[i, OFFSET] >> 12 >> order << order)
        high = max(high, (stream[i, OFFSET] + max(stream[i, LENGTH], 1) - 1) >> 12 >> order << order)
    small = s.options[FOLIOS] == SMALL_FOLIOS
    look_at(s.blocks, s.pages, s.shared, s.backing, small, watched, low >> 9, ((high + (1 << order) - 1) >> 9) + 1)


@natural_kernel
def look_at(
    blocks: np.ndarray,
    pages: np.ndarray,
    shared: np.ndarray,
    backing: np.ndarray,
    small: bool,
    watched: Whole,
    low: Int,
    end: Int,
) -> None:
    """2 MiB blocks [low, end) of a file are as these arrays of its state say (``small``: small folios lie together)."""
    moved = False
    for block in range(low, min(end, watched.private.shape[0])):
        level = blocks[block, LEVEL]
        present, private = np.int64(0), np.int64(0)
        if level > BASE:
            present, private = np.int64(PAGES_2M), np.int64(PAGES_2M - blocks[block, SHARED])
        elif level == BASE:
            for word in range(block << 3, (block + 1) << 3):
                there = pages[word, PRESENT]
                present += popcount(there)
                private += popcount(there & (shared[word] ^ ALL))
        node = np.int64(backing[block, HOME] if present > 0 else -1)
        moved |= change(watched, block, present, private, node, level >= HUGE_2M or (level == SPLIT and small), True)
    if moved:
        lay_out(watched)


@natural_kernel
def _insert(state: FolioState, page: int, node: int, cpu: int) -> int:
    """Put a folio of the file's size, taken from its node by somebody else, where the file has none.

    A fresh folio under a shared page has to be split at once; where that fails it is in the file all the same in
    generation C, and not in B.
    """
    order = state.options[BACKING]
    if order == 0:
        return populate(state, page, node, cpu)
    size = 1 if order == ORDER_1G else 0
    state.host[node, POOL + size] += 1 + never_handed_out(state, node, size)
    error = populate(state, page, node, cpu)
    state.host[node, POOL + size] -= never_handed_out(state, node, size)
    if error != 0 and not is_present(state, page):
        state.host[node, POOL + size] -= 1
    return error


@inlined_natural_kernel
def _convert(s: FolioState, offset: int, length: int, to_shared: bool) -> int:
    """All at once or nothing in generation B, and with 4 KiB folios; otherwise each block in turn, up to a failure."""
    size = s.options[PAGES] * 4096
    s.numbers[N_CONVERSIONS] += 1
    order = s.options[BACKING]
    together = s.options[FOLIOS] == SMALL_FOLIOS  # never restructured
    small = order == ORDER_4K or together
    all_or_nothing = s.options[GENERATION] == GENERATION_B and not small
    smallest = 0 if all_or_nothing else 1  # B has no check for a size of 0 (recorded)
    if offset < 0 or length < smallest or (offset | length) & 4095 != 0 or offset > size or length > size - offset:
        s.numbers[N_FAILED] += 1
        return EINVAL
    at_once = all_or_nothing or small
    first, pages = offset >> 12, np.int64(1) << order
    end = first + (length >> 12)
    worked = False
    error = np.int64(0)
    start = first
    while first < end and error == 0:
        stop = end if at_once else min(end, (first // pages + 1) * pages)
        differing, runs, block_runs = _scan(s, first, stop, to_shared)
        mapped = any_leaf(s)
        if differing == 0 and worked and mapped:
            unmap_range(s, first, stop)
        if differing > 0:
            if mapped and not worked and start < first:
                unmap_range(s, start, first)  # C zaps all of a range in which something changes, up to a failure
            worked = True
            held = -1 if to_shared else first_referenced(s, first, stop, at_once)
            if mapped and held < 0 and all_or_nothing:
                unmap_differing(s, first, stop, to_shared)
            elif mapped and held < 0:
                if to_shared:
                    split_leaf(s, first)
                    split_leaf(s, stop)
                unmap_range(s, first, stop)
            if at_once:
                s.numbers[N_INVALIDATIONS] += runs
                s.numbers[N_INVALIDATED] += (differing if small else block_runs << order) << 12
            elif held < 0:
                s.numbers[N_INVALIDATIONS] += 1
                s.numbers[N_INVALIDATED] += (stop - first) << 12
            if held >= 0:
                error = EAGAIN
                s.numbers[AT] = held
            elif to_shared:
                error = split_range(s, first, stop)
                if error != 0:
                    # Generation B undoes the sub-ranges carried out before; guest mappings are gone all the same.
                    s.numbers[N_LOST_PRIVATE] += differing
                    s.numbers[N_ROLLBACKS] += at_once
                    s.numbers[AT] = -1 if at_once else first
            if error == 0:
                if together and stop - first >= PAGES_1G:
                    _set_state_of_gib(s, first, stop, to_shared)
                else:
                    _set_state(s, first, stop, to_shared, together)
            if s.options[MERGING] == EAGER and held < 0 and to_shared == (error != 0) and not together:
                merge_range(s, first, stop)
        first = stop
    if not worked:
        s.numbers[N_WITHOUT_WORK] += 1
    if error != 0:
        s.numbers[N_FAILED] += 1
    return error


@inlined_natural_kernel
def _scan(s: FolioState, first: int, end: int, to_shared: bool) -> tuple[int, int, int]:
    """Pages of [first, end) in the other state, the runs they form, and the same runs cut at block borders."""
    wanted = PAGES_2M if to_shared else 0
    flip = ALL if to_shared else ZERO
    boundary = s.options[BACKING] == ORDER_1G
    differing = 0
    runs = 0
    extra = 0
    carry = ZERO
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        low = max(first, block << 9)
        high = min(end, (block + 1) << 9)
        here = np.int64(s.blocks[block, SHARED])
        at_border = not boundary or (block & 511) == 0
        if here == wanted:
            carry = ZERO
            continue
        if here == PAGES_2M - wanted:
            differing += high - low
            if carry == ZERO:
                runs += 1
            elif at_border:
                extra += 1
            carry = ONE
            continue
        for word in range(low >> 6, ((high - 1) >> 6) + 1):
            bits = (s.shared[word] ^ flip) & mask(word, low, high)
            if at_border and (word & 7) == 0 and carry != ZERO and (bits & ONE) != ZERO:
                extra += 1
            if bits != ZERO:
                differing += popcount(bits)
                runs += popcount(bits & (((bits << ONE) | carry) ^ ALL))
            carry = bits >> _TOP
    return differing, runs, runs + extra


@inlined_natural_kernel
def _set_state(s: FolioState, first: int, end: int, to_shared: bool, note: bool) -> None:
    """Store the new state and keep the counters and the huge mappings possible in step.

    ``note``: those of 4 KiB folios that lie together, where what is in one state can be mapped huge, private or shared.
    """
    wanted = PAGES_2M if to_shared else 0
    value = ALL if to_shared else ZERO
    sign = 1 if to_shared else -1
    counts = s.numbers
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        before = np.int64(s.blocks[block, SHARED])
        if before == wanted:
            continue
        low = max(first, block << 9)
        high = min(end, (block + 1) << 9)
        if high - low == PAGES_2M:
            changed = PAGES_2M - before if to_shared else before
            for word in range(block << 3, (block + 1) << 3):
                s.shared[word] = value
        else:
            changed = 0
            for word in range(low >> 6, ((high - 1) >> 6) + 1):
                bits = (s.shared[word] ^ value) & mask(word, low, high)
                if bits != ZERO:
                    changed += popcount(bits)
                    s.shared[word] = s.shared[word] ^ bits
        if changed == 0:
            continue
        level = s.blocks[block, LEVEL]
        giga = block >> 9
        before_1g = np.int64(s.gigas[giga, SHARED])
        after_1g = before_1g + sign * changed
        after = before + sign * changed
        s.blocks[block, SHARED] = after
        s.gigas[giga, SHARED] = after_1g
        counts[N_SHARED] += sign * changed
        counts[N_CONVERTED] += changed
        if level == HUGE_2M:
            if before == 0:
                counts[N_MAPPED_2M] -= 1
                counts[N_LOST_2M] += not forget_returned(s, block, False)
            elif after == 0:
                counts[N_MAPPED_2M] += 1
                returned(s, block, False)
        elif level == HUGE_1G:
            if before_1g == 0:
                counts[N_MAPPED_1G] -= 1
                counts[N_LOST_1G] += not forget_returned(s, giga << 9, True)
            elif after_1g == 0:
                counts[N_MAPPED_1G] += 1
                returned(s, giga << 9, True)
        elif note and level == SPLIT:
            was_2m = before == 0 or before == PAGES_2M
            was_1g = s.gigas[giga, LEVEL] == 1 and (before_1g == 0 or before_1g == PAGES_1G)
            # Most changes leave what was mixed as it was: the call, which takes the whole state along, is for the others.
            if was_2m or was_1g or after == 0 or after == PAGES_2M:
                note_change(s, block, was_2m, was_1g)


@natural_kernel
def _set_state_of_gib(s: FolioState, first: int, end: int, to_shared: bool) -> None:
    """:func:`_set_state` of 4 KiB folios that lie together, of ranges that may hold whole 1 GiB."""
    while first < end:
        block = first >> 9
        whole = first & (PAGES_1G - 1) == 0 and end - first >= PAGES_1G and s.gigas[block >> 9, LEVEL] == 1
        stop = first + PAGES_1G if whole else min(end, (block + 1) << 9)
        if whole and not uniform_1g(s, block >> 9):
            for other in range(block, block + BLOCKS_1G):
                s.numbers[N_MAPPED_2M] -= uniform_2m(s, other)
            s.numbers[N_MAPPED_1G] += 1
            forget_returned_blocks(s, block, BLOCKS_1G)
            returned(s, block, True)
        _set_state(s, first, stop, to_shared, not whole)
        first = stop

"""Huge folios of one guest_memfd file under private/shared conversion: split, merge, pins, punch, vmemmap.

None of this is in Linux 7.3. It follows the proposals in the order they were posted:

* generation B, "1G page support for guest_memfd" RFC v2 (May 2025; ``kvm_gmem_convert_range``): a conversion is all or
  nothing, a failure in the middle is rolled back;
* generation C, the in-place conversion series v4 to v7 and the 1 GiB rebase on it (2026; ``kvm_gmem_set_attributes``):
  block by block, the blocks before a failure stay converted;
* the two-stage split 1 GiB -> 2 MiB -> 4 KiB and the split on the first host fault are what-ifs: discussed, in neither.

Invariant of B and C: a block (aligned huge page of the file) is one huge folio iff all of it is private; otherwise all
of it is 4 KiB folios. A split restores the vmemmap pages that HVO had freed
(``mm/hugetlb_vmemmap.c: hugetlb_vmemmap_restore_folio``: all or nothing, preferred node of the folio, may spill) and a
merge gives them back (one page must be free to start with, otherwise the folio stays unoptimised).

State is 1 bit per 4 KiB page (set = shared) with counters per 2 MiB and per 1 GiB, so that a conversion costs what it
touches; :class:`State` lists the arrays. Pages present need no bits of their own except where 4 KiB folios were
allocated one by one (``BASE``). References are kept only for 2 MiB ranges in which a page was ever referenced.

A whole stream of operations is one call of :func:`run`.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import numpy as np

from kernels.bits import ALL, ONE, ZERO, mask, popcount, test_bit
from kernels.compile import inlined_kernel, kernel

EAGAIN, EFAULT, EINVAL, ENOENT, ENOMEM = errno.EAGAIN, errno.EFAULT, errno.EINVAL, errno.ENOENT, errno.ENOMEM
EHWPOISON = 133  # include/uapi/asm-generic/errno.h; Python's errno has no name for it
SIGBUS = -7
"""A host fault that raises the signal instead of returning: minus its number."""
NEEDS_ROOM = -1000
"""``references`` or ``poison`` is full; nothing was done for this operation: grow it and go on."""

PAGES_2M, PAGES_1G, BLOCKS_1G = 512, 262144, 512
"""4 KiB pages per 2 MiB and per 1 GiB; 2 MiB blocks per 1 GiB."""
ORDER_4K, ORDER_2M, ORDER_1G = 0, 9, 18
RESTORE_2M, RESTORE_1G, HEADS_1G = 7, 4095, 511
"""vmemmap pages a split needs: 2 MiB, 1 GiB at once, and 1 GiB into 512 optimised 2 MiB folios."""

NONE, BASE, SPLIT, HUGE_2M, HUGE_1G = 0, 1, 2, 3, 4
"""``level`` of a 2 MiB range: no folio; 4 KiB folios allocated singly; a split huge folio; (part of) a huge folio."""

# options
PAGES, BACKING, GENERATION, SPLITTING, SPLIT_AT, MERGING, HVO, FALLBACK, DRAIN = range(9)
OPTIONS = 9
GENERATION_B, GENERATION_C = 0, 1
ONE_STEP, TWO_STAGE, TWO_STAGE_FULL = 0, 1, 2
"""TWO_STAGE_FULL: the first stage passes through the fully restored state, so 4095 pages must be free for a moment."""
AT_CONVERSION, AT_HOST_FAULT = 0, 1
EAGER, LAZY, NEVER = 0, 1, 2
"""LAZY merges at the next guest fault on the block or by the MERGE operation."""

# operations
CONVERT, PIN, UNPIN, HOST_FAULT, GUEST_FAULT, PUNCH, POISON, MERGE, LRU_DRAIN = range(9)
OP, OFFSET, LENGTH, ARGUMENT, NODE, CPU = range(6)
"""Columns of a stream. ARGUMENT: CONVERT 1 = to shared; PIN, UNPIN kind; GUEST_FAULT 1 = as private."""
TRANSIENT, LONG_TERM, ORPHAN = 0, 1, 2
"""Kinds of references; ORPHAN: a pin on a page that was punched out of a file of 4 KiB folios meanwhile."""

COUNTERS = (
    "shared_pages",  # now
    "present_pages",
    "mapped_1g",  # huge mappings possible now: folio whole and all private
    "mapped_2m",
    "lost_1g",  # so far
    "lost_2m",
    "regained_1g",
    "regained_2m",
    "splits_1g",
    "splits_2m",
    "merges_1g",
    "merges_2m",
    "unoptimised_merges",
    "conversions",
    "converted_pages",
    "conversions_without_work",
    "failed_conversions",
    "rollbacks",
    "invalidations",
    "invalidated_bytes",
    "private_pages_lost",
    "spins",
    "lru_drains",
    "zeroed_pages",
    "vmemmap_taken",
    "vmemmap_freed",
    "vmemmap_spilled",
    "vmemmap_peak",
    "orphaned_pins",  # now
    "lru_held",  # now
    "poisoned_pages",  # now
    "reference_rows",  # rows of ``references`` in use
    "withheld_huge_pages",  # poisoned huge pages that left the file: not given back to the pool
)
(
    N_SHARED,
    N_PRESENT,
    N_MAPPED_1G,
    N_MAPPED_2M,
    N_LOST_1G,
    N_LOST_2M,
    N_REGAINED_1G,
    N_REGAINED_2M,
    N_SPLITS_1G,
    N_SPLITS_2M,
    N_MERGES_1G,
    N_MERGES_2M,
    N_UNOPTIMISED,
    N_CONVERSIONS,
    N_CONVERTED,
    N_WITHOUT_WORK,
    N_FAILED,
    N_ROLLBACKS,
    N_INVALIDATIONS,
    N_INVALIDATED,
    N_LOST_PRIVATE,
    N_SPINS,
    N_DRAINS,
    N_ZEROED,
    N_TAKEN,
    N_FREED,
    N_SPILLED,
    N_PEAK,
    N_ORPHANED,
    N_LRU,
    N_POISONED,
    N_ROWS,
    N_WITHHELD,
) = range(33)

BATCH = 31
"""include/linux/folio_batch.h: FOLIO_BATCH_SIZE."""

_TOP = np.uint64(63)


class State(NamedTuple):
    """Arrays of one file; B1, B2 = blocks of 1 GiB, of 2 MiB, W = 64-page words, N = nodes.

    ``vmemmap``, ``vmemmap_order``, ``pool``, ``pool_full`` and ``pool_extra`` belong to the host and may be shared
    between files; everything else is the file's.
    """

    shared: np.ndarray
    """uint64 (W,), bit set = page shared."""
    shared_2m: np.ndarray
    """int16 (B2,), shared pages of each 2 MiB."""
    shared_1g: np.ndarray
    """int32 (B1,), shared pages of each 1 GiB."""
    level: np.ndarray
    """int8 (B2,), NONE ... HUGE_1G."""
    whole_1g: np.ndarray
    """int8 (B1,), 1 where one 1 GiB page of the pool backs the block, in whatever state."""
    full_2m: np.ndarray
    """int8 (B2,), 1 where the vmemmap of the 2 MiB folio is restored."""
    full_1g: np.ndarray
    """int8 (B1,), likewise for 1 GiB folios split in one step."""
    extra_2m: np.ndarray
    """int16 (B2, N), vmemmap pages held by node beyond the one an optimised folio keeps."""
    extra_1g: np.ndarray
    """int16 (B1, N), likewise."""
    node: np.ndarray
    """int16 (B2,), node index of the folio."""
    present: np.ndarray
    """uint64 (W,), pages present, only where level is BASE."""
    reference_row: np.ndarray
    """int32 (B2,), row of ``references``, 0 = no reference yet."""
    references: np.ndarray
    """int32 (rows, 512, 3), references per page and kind; row 0 unused."""
    reference_total: np.ndarray
    """int64 (rows, 2), sums of each row: transient and long-term; orphans."""
    poison: np.ndarray
    """int64 (rows,), poisoned pages, the first ``poisoned_pages`` entries."""
    batch: np.ndarray
    """int64 (cpus, 31), pages in each CPU's lru_add batch, -1 for a page that left the file."""
    batch_length: np.ndarray
    """int64 (cpus,)."""
    vmemmap: np.ndarray
    """int64 (N,), free pages that vmemmap can be restored from."""
    vmemmap_order: np.ndarray
    """int64 (N, N), row n: nodes tried in this order for memory wanted on n."""
    pool: np.ndarray
    """int64 (N, 2), free 2 MiB and 1 GiB pages."""
    pool_full: np.ndarray
    """int64 (N, 2), how many of them are not vmemmap-optimised (they are taken first)."""
    pool_extra: np.ndarray
    """int64 (N, 2, N), the vmemmap pages those hold, by node."""
    taken: np.ndarray
    """int64 (N,), vmemmap pages this file took from each node so far."""
    freed: np.ndarray
    """int64 (N,), and gave back."""
    options: np.ndarray
    """int64 (OPTIONS,)."""
    counts: np.ndarray
    """int64 (COUNTERS,)."""
    scratch: np.ndarray
    """int64 (4,), working space."""


def new_state(
    options: np.ndarray,
    vmemmap: np.ndarray,
    vmemmap_order: np.ndarray,
    pool: np.ndarray,
    pool_full: np.ndarray,
    pool_extra: np.ndarray,
    cpus: int = 1,
) -> State:
    """An empty, all-private file with the given options; the other arguments are the host's (:class:`State`).

    Bits past the end of the file stay 0, and arrays cover whole 1 GiB blocks.
    """
    nodes = vmemmap.shape[0]
    blocks_1g = -(-int(options[PAGES]) // PAGES_1G)
    blocks_2m = blocks_1g * BLOCKS_1G
    return State(
        shared=np.zeros(blocks_2m * 8, np.uint64),
        shared_2m=np.zeros(blocks_2m, np.int16),
        shared_1g=np.zeros(blocks_1g, np.int32),
        level=np.zeros(blocks_2m, np.int8),
        whole_1g=np.zeros(blocks_1g, np.int8),
        full_2m=np.zeros(blocks_2m, np.int8),
        full_1g=np.zeros(blocks_1g, np.int8),
        extra_2m=np.zeros((blocks_2m, nodes), np.int16),
        extra_1g=np.zeros((blocks_1g, nodes), np.int16),
        node=np.zeros(blocks_2m, np.int16),
        present=np.zeros(blocks_2m * 8, np.uint64),
        reference_row=np.zeros(blocks_2m, np.int32),
        references=np.zeros((8, PAGES_2M, 3), np.int32),
        reference_total=np.zeros((8, 2), np.int64),
        poison=np.zeros(8, np.int64),
        batch=np.zeros((cpus, BATCH), np.int64),
        batch_length=np.zeros(cpus, np.int64),
        vmemmap=vmemmap,
        vmemmap_order=vmemmap_order,
        pool=pool,
        pool_full=pool_full,
        pool_extra=pool_extra,
        taken=np.zeros(nodes, np.int64),
        freed=np.zeros(nodes, np.int64),
        options=options,
        counts=np.zeros(len(COUNTERS), np.int64),
        scratch=np.zeros(4, np.int64),
    )


def grown(state: State) -> State:
    """The same state with twice the room for references and poisoned pages (after NEEDS_ROOM)."""

    def twice(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros_like(array)])

    return state._replace(
        references=twice(state.references), reference_total=twice(state.reference_total), poison=twice(state.poison)
    )


@kernel
def run(
    state: State,
    stream: np.ndarray,
    errors: np.ndarray,
    offsets: np.ndarray,
    every: int,
    series: np.ndarray,
    start: int,
) -> int:
    """Carry out operations ``start`` ... of a stream.

    Parameters
    ----------
    stream : int64 (n, 6), columns OP ... CPU; offsets and lengths in bytes, NODE a node index for new folios
    errors : int32 (n,), receives 0, an errno, or SIGBUS
    offsets : int64 (n,), receives the byte offset the error names, or -1
    every : int, a row of ``series`` is written after each ``every`` operations; 0 = never
    series : int64 (n // every, COUNTERS + N), receives the counters, then the vmemmap pages held by node

    Returns
    -------
    Number of operations done; less than n if ``references`` or ``poison`` must grow first.
    """
    for i in range(start, stream.shape[0]):
        state.scratch[2] = -1
        row = stream[i]
        error = _operate(state, row[OP], row[OFFSET], row[LENGTH], row[ARGUMENT], row[NODE], row[CPU])
        if error == NEEDS_ROOM:
            return i
        errors[i] = error
        offsets[i] = state.scratch[2] * 4096 if error != 0 and state.scratch[2] >= 0 else -1
        if every > 0 and (i + 1) % every == 0:
            _sample(state, series[i // every])
    return stream.shape[0]


@kernel
def _sample(state: State, row: np.ndarray) -> None:
    counters = state.counts.shape[0]
    for counter in range(counters):
        row[counter] = state.counts[counter]
    for node in range(state.taken.shape[0]):
        row[counters + node] = state.taken[node] - state.freed[node]


@kernel
def insert_many(state: State, folios: np.ndarray, nodes: np.ndarray, cpu: int) -> int:
    """Put folios of the file's size, taken from their nodes by somebody else, where the file has none.

    ``folios`` int64 (n,) are indices counted in folios, ``nodes`` int64 (n,) node indices. Returns how many went in: a
    fresh folio under a shared page has to be split at once, and the first for which that fails ends it.
    """
    order = state.options[BACKING]
    for i in range(folios.shape[0]):
        error = 0
        if order == ORDER_1G:
            state.pool[nodes[i], 1] += 1
            error = _insert_1g(state, folios[i], nodes[i], cpu)
            state.pool[nodes[i], 1] -= error != 0
        elif order == ORDER_2M:
            state.pool[nodes[i], 0] += 1
            error = _insert_2m(state, folios[i], nodes[i], cpu)
            state.pool[nodes[i], 0] -= error != 0
        else:
            _populate(state, folios[i], nodes[i], cpu)
        if error != 0:
            return i
    return folios.shape[0]


@kernel
def convert_many(
    state: State, offset: np.ndarray, length: np.ndarray, to_shared: np.ndarray, errors: np.ndarray, offsets: np.ndarray
) -> int:
    """Carry out conversions only: ``offset``, ``length`` int64 (n,) bytes, ``to_shared`` int8 (n,).

    ``errors`` int32 (n,) and ``offsets`` int64 (n,) as for :func:`run`. Returns the number that failed.
    """
    failed = 0
    for i in range(offset.shape[0]):
        state.scratch[2] = -1
        error = _convert(state, offset[i], length[i], to_shared[i] != 0)
        errors[i] = error
        offsets[i] = state.scratch[2] * 4096 if error != 0 and state.scratch[2] >= 0 else -1
        failed += error != 0
    return failed


@kernel
def _operate(s: State, op: int, offset: int, length: int, argument: int, node: int, cpu: int) -> int:
    if op == CONVERT:
        return _convert(s, offset, length, argument == 1)
    if op == PIN:
        return _pin(s, offset, length, argument, node, cpu)
    if op == UNPIN:
        return _unpin(s, offset, length, argument)
    if op == HOST_FAULT:
        return _host_fault(s, offset, length, node, cpu)
    if op == GUEST_FAULT:
        return _guest_fault(s, offset, length, argument == 1, node, cpu)
    if op == PUNCH:
        return _punch(s, offset, length)
    if op == POISON:
        return _poison(s, offset)
    if op == MERGE:
        return _merge_pass(s, offset, length)
    if op == LRU_DRAIN:
        _drain(s)
        return 0
    return EINVAL


# ---------------------------------------------------------------------------------------------------- conversion


@inlined_kernel
def _convert(s: State, offset: int, length: int, to_shared: bool) -> int:
    size = s.options[PAGES] * 4096
    s.counts[N_CONVERSIONS] += 1
    if offset < 0 or length <= 0 or (offset | length) & 4095 != 0 or offset > size or length > size - offset:
        s.counts[N_FAILED] += 1
        return EINVAL
    first = offset >> 12
    end = first + (length >> 12)
    if s.options[GENERATION] == GENERATION_B or s.options[BACKING] == ORDER_4K:
        error = _convert_range(s, first, end, to_shared)
    else:
        error = _convert_blocks(s, first, end, to_shared)
    if error != 0:
        s.counts[N_FAILED] += 1
    return error


@inlined_kernel
def _convert_range(s: State, first: int, end: int, to_shared: bool) -> int:
    """Generation B, and base pages in either generation: all or nothing."""
    differing, runs, block_runs = _scan(s, first, end, to_shared)
    if differing == 0:
        s.counts[N_WITHOUT_WORK] += 1
        return 0
    order = s.options[BACKING]
    s.counts[N_INVALIDATIONS] += runs
    s.counts[N_INVALIDATED] += (differing if order == ORDER_4K else block_runs << order) << 12
    if to_shared:
        error = _split_range(s, first, end)
        if error != 0:
            # The sub-ranges carried out before are undone in order; guest mappings are gone all the same.
            s.counts[N_ROLLBACKS] += 1
            s.counts[N_LOST_PRIVATE] += differing
            if s.options[MERGING] == EAGER:
                _merge_range(s, first, end)
            s.scratch[2] = -1
            return error
    else:
        page = _first_referenced(s, first, end, True)
        if page >= 0:
            s.scratch[2] = page
            return EAGAIN
    _set_state(s, first, end, to_shared)
    if not to_shared and s.options[MERGING] == EAGER:
        _merge_range(s, first, end)
    return 0


@inlined_kernel
def _convert_blocks(s: State, first: int, end: int, to_shared: bool) -> int:
    """Generation C: each block in turn; a failure leaves the blocks before it converted."""
    pages = np.int64(1) << s.options[BACKING]
    worked = False
    while first < end:
        stop = min(end, (first // pages + 1) * pages)
        differing, _runs, _block_runs = _scan(s, first, stop, to_shared)
        if differing > 0:
            worked = True
            if not to_shared:
                page = _first_referenced(s, first, stop, False)
                if page >= 0:
                    s.scratch[2] = page
                    return EAGAIN
            s.counts[N_INVALIDATIONS] += 1
            s.counts[N_INVALIDATED] += (stop - first) << 12
            if to_shared:
                error = _split_range(s, first, stop)
                if error != 0:
                    s.counts[N_LOST_PRIVATE] += differing
                    if s.options[MERGING] == EAGER:
                        _merge_range(s, first, stop)
                    s.scratch[2] = first
                    return error
            _set_state(s, first, stop, to_shared)
            if not to_shared and s.options[MERGING] == EAGER:
                _merge_range(s, first, stop)
        first = stop
    if not worked:
        s.counts[N_WITHOUT_WORK] += 1
    return 0


@inlined_kernel
def _scan(s: State, first: int, end: int, to_shared: bool) -> tuple[int, int, int]:
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
        here = np.int64(s.shared_2m[block])
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


@inlined_kernel
def _set_state(s: State, first: int, end: int, to_shared: bool) -> None:
    """Store the new state and keep the counters and the huge mappings possible in step."""
    wanted = PAGES_2M if to_shared else 0
    value = ALL if to_shared else ZERO
    sign = 1 if to_shared else -1
    counts = s.counts
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        before = np.int64(s.shared_2m[block])
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
        level = s.level[block]
        giga = block >> 9
        before_1g = np.int64(s.shared_1g[giga])
        after_1g = before_1g + sign * changed
        after = before + sign * changed
        s.shared_2m[block] = after
        s.shared_1g[giga] = after_1g
        counts[N_SHARED] += sign * changed
        counts[N_CONVERTED] += changed
        if level == HUGE_2M:
            if before == 0:
                counts[N_MAPPED_2M] -= 1
                counts[N_LOST_2M] += 1
            elif after == 0:
                counts[N_MAPPED_2M] += 1
                counts[N_REGAINED_2M] += 1
        elif level == HUGE_1G:
            if before_1g == 0:
                counts[N_MAPPED_1G] -= 1
                counts[N_LOST_1G] += 1
            elif after_1g == 0:
                counts[N_MAPPED_1G] += 1
                counts[N_REGAINED_1G] += 1


# ---------------------------------------------------------------------------------------------------- split, merge


@kernel
def _split_range(s: State, first: int, end: int) -> int:
    """Split the huge folios of the blocks touched, unless that waits for the first host fault."""
    if s.options[SPLIT_AT] == AT_HOST_FAULT:
        return 0
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        if s.level[block] >= HUGE_2M:
            error = _split_at(s, block)
            if error != 0:
                return error
    return 0


@kernel
def _split_at(s: State, block: int) -> int:
    """Split whatever huge folio covers a 2 MiB block until the block is 4 KiB folios."""
    if s.level[block] == HUGE_1G:
        error = _split_1g(s, block >> 9)
        if error != 0:
            return error
    if s.level[block] == HUGE_2M:
        return _split_2m(s, block)
    return 0


@kernel
def _split_1g(s: State, giga: int) -> int:
    first_block = giga << 9
    if _any_poison(s, first_block << 9, (first_block + BLOCKS_1G) << 9):
        return EHWPOISON
    two_stage = s.options[SPLITTING] != ONE_STEP
    if s.options[HVO] != 0 and s.full_1g[giga] == 0:
        if s.options[SPLITTING] == TWO_STAGE_FULL:
            if s.vmemmap.sum() < RESTORE_1G:
                return ENOMEM
            s.counts[N_PEAK] = max(s.counts[N_PEAK], RESTORE_1G)
        if not _take(s, s.node[first_block], HEADS_1G if two_stage else RESTORE_1G, s.extra_1g[giga]):
            return ENOMEM
        if not two_stage:
            s.full_1g[giga] = 1
    _spin(s, first_block, first_block + BLOCKS_1G)
    mapped = 0
    for block in range(first_block, first_block + BLOCKS_1G):
        s.level[block] = HUGE_2M if two_stage else SPLIT
        mapped += s.shared_2m[block] == 0
    s.counts[N_SPLITS_1G] += 1
    if two_stage:
        s.counts[N_MAPPED_2M] += mapped
    if s.shared_1g[giga] == 0:
        s.counts[N_MAPPED_1G] -= 1
        s.counts[N_LOST_1G] += 1
    return 0


@kernel
def _split_2m(s: State, block: int) -> int:
    if _any_poison(s, block << 9, (block + 1) << 9):
        return EHWPOISON
    if s.options[HVO] != 0 and s.full_2m[block] == 0:
        if not _take(s, s.node[block], RESTORE_2M, s.extra_2m[block]):
            return ENOMEM
        s.full_2m[block] = 1
    _spin(s, block, block + 1)
    s.level[block] = SPLIT
    s.counts[N_SPLITS_2M] += 1
    if s.shared_2m[block] == 0:
        s.counts[N_MAPPED_2M] -= 1
        s.counts[N_LOST_2M] += 1
    return 0


@kernel
def _merge_range(s: State, first: int, end: int) -> int:
    """Merge every block touched that is wholly private again; returns the number of merges."""
    merges = 0
    two_stage = s.options[SPLITTING] != ONE_STEP
    last = (end - 1) >> 9
    block = first >> 9
    while block <= last:
        giga = block >> 9
        if s.whole_1g[giga] == 1 and not two_stage:
            if s.shared_1g[giga] == 0:
                merges += _merge_1g(s, giga)
            block = (giga + 1) << 9
            continue
        if s.shared_2m[block] == 0 and s.level[block] == SPLIT:
            merges += _merge_2m(s, block)
        if s.whole_1g[giga] == 1 and s.shared_1g[giga] == 0 and (block == last or (block & 511) == 511):
            merges += _merge_1g(s, giga)
        block += 1
    return merges


@kernel
def _merge_2m(s: State, block: int) -> int:
    if _any_poison(s, block << 9, (block + 1) << 9):
        return 0
    _spin(s, block, block + 1)
    if s.full_2m[block] == 1:
        if s.vmemmap.sum() > 0:
            _give_back(s, s.extra_2m[block])
            s.full_2m[block] = 0
        else:
            s.counts[N_UNOPTIMISED] += 1
    s.level[block] = HUGE_2M
    s.counts[N_MERGES_2M] += 1
    s.counts[N_MAPPED_2M] += 1
    s.counts[N_REGAINED_2M] += 1
    return 1


@kernel
def _merge_1g(s: State, giga: int) -> int:
    first_block = giga << 9
    expected = SPLIT if s.options[SPLITTING] == ONE_STEP else HUGE_2M
    for block in range(first_block, first_block + BLOCKS_1G):
        if s.level[block] != expected:
            return 0
    if _any_poison(s, first_block << 9, (first_block + BLOCKS_1G) << 9):
        return 0
    _spin(s, first_block, first_block + BLOCKS_1G)
    if expected == HUGE_2M:
        # One of the 512 head pages serves the whole, so nothing has to be allocated first.
        s.counts[N_MAPPED_2M] -= BLOCKS_1G
        _give_back(s, s.extra_1g[giga])
        for block in range(first_block, first_block + BLOCKS_1G):
            if s.full_2m[block] == 1:
                _give_back(s, s.extra_2m[block])
                s.full_2m[block] = 0
    elif s.full_1g[giga] == 1:
        if s.vmemmap.sum() > 0:
            _give_back(s, s.extra_1g[giga])
            s.full_1g[giga] = 0
        else:
            s.counts[N_UNOPTIMISED] += 1
    for block in range(first_block, first_block + BLOCKS_1G):
        s.level[block] = HUGE_1G
    s.counts[N_MERGES_1G] += 1
    s.counts[N_MAPPED_1G] += 1
    s.counts[N_REGAINED_1G] += 1
    return 1


@kernel
def _merge_pass(s: State, offset: int, length: int) -> int:
    """The worker of a lazy policy; merges whatever can be merged, whatever the policy."""
    first, end = offset >> 12, min(s.options[PAGES], (offset + length + 4095) >> 12)
    if offset < 0 or length <= 0:
        return EINVAL
    if first < end:
        _merge_range(s, first, end)
    return 0


@kernel
def _take(s: State, home: int, pages: int, holder: np.ndarray) -> bool:
    """Take vmemmap pages, from the folio's node first; all or nothing."""
    if s.vmemmap.sum() < pages:
        return False
    left = np.int64(pages)
    for position in range(s.vmemmap.shape[0]):
        node = s.vmemmap_order[home, position]
        here = min(left, s.vmemmap[node])
        if here <= 0:
            continue
        s.vmemmap[node] -= here
        s.taken[node] += here
        holder[node] += here
        left -= here
        if node != home:
            s.counts[N_SPILLED] += here
        if left == 0:
            break
    s.counts[N_TAKEN] += pages
    return True


@kernel
def _give_back(s: State, holder: np.ndarray) -> None:
    for node in range(holder.shape[0]):
        here = np.int64(holder[node])
        s.vmemmap[node] += here
        s.freed[node] += here
        s.counts[N_FREED] += here
        holder[node] = 0


# ---------------------------------------------------------------------------------------------------- references


@kernel
def _spin(s: State, first_block: int, last_block: int) -> None:
    """Freezing waits for transient references to go; each one waited for is counted and gone afterwards."""
    if s.counts[N_ROWS] == 0:
        return
    for block in range(first_block, last_block):
        row = s.reference_row[block]
        if row == 0 or s.reference_total[row, 0] == 0:
            continue
        for page in range(PAGES_2M):
            waited = np.int64(s.references[row, page, TRANSIENT])
            s.counts[N_SPINS] += waited
            s.reference_total[row, 0] -= waited
            s.references[row, page, TRANSIENT] = 0


@inlined_kernel
def _first_referenced(s: State, first: int, end: int, shared_only: bool) -> int:
    """First page of [first, end) with references the conversion does not expect, or -1.

    ``shared_only``: look at pages that are to change (generation B), not at every folio of the range (C).
    """
    if s.counts[N_ROWS] == 0 and s.counts[N_LRU] == 0 and s.counts[N_POISONED] == 0:
        return -1
    page = _first_referenced_now(s, first, end, shared_only)
    if page >= 0 and s.options[DRAIN] == 1 and s.counts[N_LRU] > 0:
        _drain(s)
        page = _first_referenced_now(s, first, end, shared_only)
    return page


@kernel
def _first_referenced_now(s: State, first: int, end: int, shared_only: bool) -> int:
    found = end
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        row = s.reference_row[block]
        if row == 0 or s.reference_total[row, 0] == 0:
            continue
        for page in range(max(first, block << 9), min(end, (block + 1) << 9)):
            if s.references[row, page & 511, TRANSIENT] + s.references[row, page & 511, LONG_TERM] > 0 and (
                not shared_only or test_bit(s.shared, page)
            ):
                found = page
                break
        if found < end:
            break
    # A poisoned page keeps the reference memory_failure() took; a page in an lru_add batch keeps the batch's.
    for row in range(s.counts[N_POISONED]):
        page = s.poison[row]
        if first <= page < found and (not shared_only or test_bit(s.shared, page)):
            found = page
    if s.counts[N_LRU] > 0:
        for cpu in range(s.batch.shape[0]):
            for slot in range(s.batch_length[cpu]):
                page = s.batch[cpu, slot]
                if first <= page < found and (not shared_only or test_bit(s.shared, page)):
                    found = page
    return found if found < end else -1


@kernel
def _row(s: State, block: int) -> int:
    """Row of ``references`` for a 2 MiB block, 0 if there is no room for another."""
    if s.reference_row[block] == 0 and s.counts[N_ROWS] + 1 < s.references.shape[0]:
        s.counts[N_ROWS] += 1
        s.reference_row[block] = s.counts[N_ROWS]
    return s.reference_row[block]


@kernel
def _pin(s: State, offset: int, length: int, kind: int, node: int, cpu: int) -> int:
    """Long-term: pin_user_pages() of the host mapping, so shared pages only (EFAULT). Transient: any folio present."""
    if offset < 0 or length <= 0 or (kind != TRANSIENT and kind != LONG_TERM):
        return EINVAL
    first, end = offset >> 12, (offset + length + 4095) >> 12
    limit = min(end, s.options[PAGES])
    for block in range(first >> 9, ((limit - 1) >> 9) + 1):
        if _row(s, block) == 0:
            return NEEDS_ROOM
    for page in range(first, end):
        if kind == TRANSIENT:
            error = 0 if page < s.options[PAGES] and _is_present(s, page) else ENOENT
        else:
            error = _host_fault_page(s, page, node, cpu)
            if error == SIGBUS:
                error = EFAULT
        if error != 0:
            s.scratch[2] = page
            return error
    for page in range(first, end):
        row = s.reference_row[page >> 9]
        s.references[row, page & 511, kind] += 1
        s.reference_total[row, 0] += 1
    return 0


@kernel
def _unpin(s: State, offset: int, length: int, kind: int) -> int:
    """EINVAL if a page of the range is not pinned in this way; nothing is changed then."""
    first, end = offset >> 12, (offset + length + 4095) >> 12
    if offset < 0 or length <= 0 or end > s.options[PAGES] or (kind != TRANSIENT and kind != LONG_TERM):
        return EINVAL
    for page in range(first, end):
        row = s.reference_row[page >> 9]
        held = np.int64(s.references[row, page & 511, kind]) if row != 0 else 0
        if row != 0 and kind == LONG_TERM:
            held += s.references[row, page & 511, ORPHAN]
        if held == 0:
            s.scratch[2] = page
            return EINVAL
    for page in range(first, end):
        row = s.reference_row[page >> 9]
        if kind == LONG_TERM and s.references[row, page & 511, ORPHAN] > 0:
            s.references[row, page & 511, ORPHAN] -= 1
            s.reference_total[row, 1] -= 1
            s.counts[N_ORPHANED] -= 1
        else:
            s.references[row, page & 511, kind] -= 1
            s.reference_total[row, 0] -= 1
    return 0


@kernel
def _drain(s: State) -> None:
    """lru_add_drain_all()."""
    s.counts[N_DRAINS] += 1
    s.counts[N_LRU] = 0
    s.batch_length[:] = 0


@kernel
def _any_poison(s: State, first: int, end: int) -> bool:
    for row in range(s.counts[N_POISONED]):
        if first <= s.poison[row] < end:
            return True
    return False


# ---------------------------------------------------------------------------------------------------- faults


@kernel
def _is_present(s: State, page: int) -> bool:
    level = s.level[page >> 9]
    return level >= SPLIT or (level == BASE and test_bit(s.present, page))


@kernel
def _populate(s: State, page: int, node: int, cpu: int) -> int:
    """Give the page a folio of the file's size, or of the next smaller size where that is allowed."""
    block = page >> 9
    giga = block >> 9
    if _is_present(s, page):
        return 0
    if node < 0 or node >= s.vmemmap.shape[0]:
        return EINVAL
    fallback = s.options[FALLBACK] == 1
    if s.options[BACKING] == ORDER_1G and s.level[block] == NONE:
        free_block = True
        if fallback:
            for other in range(giga << 9, (giga + 1) << 9):
                free_block = free_block and s.level[other] == NONE
        if free_block and s.pool[node, 1] > 0:
            return _insert_1g(s, giga, node, cpu)
        if not fallback:
            return ENOMEM
    if s.options[BACKING] >= ORDER_2M and s.level[block] == NONE:
        if s.pool[node, 0] > 0:
            return _insert_2m(s, block, node, cpu)
        if not fallback:
            return ENOMEM
    s.level[block] = BASE
    s.node[block] = node
    s.present[page >> 6] |= ONE << np.uint64(page & 63)
    s.counts[N_PRESENT] += 1
    _lru_add(s, page, cpu)
    return 0


@kernel
def _lru_add(s: State, page: int, cpu: int) -> None:
    """mm/swap.c: folio_add_lru(). A small folio waits in the batch; a full batch or a large folio (-1) empties it."""
    if page >= 0:
        s.batch[cpu, s.batch_length[cpu]] = page
        s.batch_length[cpu] += 1
        s.counts[N_LRU] += 1
    if page < 0 or s.batch_length[cpu] == BATCH:
        for slot in range(s.batch_length[cpu]):
            s.counts[N_LRU] -= s.batch[cpu, slot] >= 0
        s.batch_length[cpu] = 0


@kernel
def _insert_1g(s: State, giga: int, node: int, cpu: int) -> int:
    first_block = giga << 9
    s.pool[node, 1] -= 1
    s.whole_1g[giga] = 1
    s.full_1g[giga] = _leave_pool(s, node, 1, RESTORE_1G, s.extra_1g[giga])
    for block in range(first_block, first_block + BLOCKS_1G):
        s.level[block] = HUGE_1G
        s.node[block] = node
    s.counts[N_PRESENT] += PAGES_1G
    _lru_add(s, -1, cpu)
    if s.shared_1g[giga] == 0:
        s.counts[N_MAPPED_1G] += 1
        return 0
    if s.options[SPLIT_AT] == AT_HOST_FAULT:
        return 0
    for block in range(first_block, first_block + BLOCKS_1G):
        if s.shared_2m[block] > 0:
            error = _split_at(s, block)
            if error != 0:
                _free_1g(s, giga)
                return error
    return 0


@kernel
def _insert_2m(s: State, block: int, node: int, cpu: int) -> int:
    s.pool[node, 0] -= 1
    s.full_2m[block] = _leave_pool(s, node, 0, RESTORE_2M, s.extra_2m[block])
    s.level[block] = HUGE_2M
    s.node[block] = node
    s.counts[N_PRESENT] += PAGES_2M
    _lru_add(s, -1, cpu)
    if s.shared_2m[block] == 0:
        s.counts[N_MAPPED_2M] += 1
        return 0
    if s.options[SPLIT_AT] == AT_HOST_FAULT:
        return 0
    error = _split_2m(s, block)
    if error != 0:
        _free_2m(s, block)
    return error


@kernel
def _leave_pool(s: State, home: int, size: int, pages: int, holder: np.ndarray) -> int:
    """Take over the vmemmap pages of an unoptimised pool page, if the node has one; returns 1 then."""
    if s.pool_full[home, size] == 0:
        return 0
    s.pool_full[home, size] -= 1
    left = np.int64(pages)
    for node in range(holder.shape[0]):
        here = min(left, s.pool_extra[home, size, node])
        s.pool_extra[home, size, node] -= here
        holder[node] += here
        left -= here
    return 1


@kernel
def _enter_pool(s: State, home: int, size: int, full: bool, poisoned: bool, holder: np.ndarray) -> None:
    """Give a huge page back, optimised if a vmemmap page is free to start with; a poisoned one is withheld."""
    if poisoned:
        s.counts[N_WITHHELD] += 1
        _give_back(s, holder)
        return
    s.pool[home, size] += 1
    if not full or s.vmemmap.sum() > 0:
        _give_back(s, holder)
        return
    s.counts[N_UNOPTIMISED] += 1
    s.pool_full[home, size] += 1
    for node in range(holder.shape[0]):
        s.pool_extra[home, size, node] += holder[node]
        holder[node] = 0


@kernel
def _free_1g(s: State, giga: int) -> None:
    """Merge whatever is left of a 1 GiB folio and give it back to the pool."""
    first_block = giga << 9
    if s.shared_1g[giga] == 0 and s.level[first_block] == HUGE_1G:
        s.counts[N_MAPPED_1G] -= 1
    for block in range(first_block, first_block + BLOCKS_1G):
        if s.level[block] == HUGE_2M and s.shared_2m[block] == 0:
            s.counts[N_MAPPED_2M] -= 1
        if s.full_2m[block] == 1:
            _give_back(s, s.extra_2m[block])
            s.full_2m[block] = 0
        s.level[block] = NONE
    s.counts[N_PRESENT] -= PAGES_1G
    s.whole_1g[giga] = 0
    poisoned = _forget_poison(s, first_block << 9, (first_block + BLOCKS_1G) << 9)
    _enter_pool(s, s.node[first_block], 1, s.full_1g[giga] == 1, poisoned, s.extra_1g[giga])
    s.full_1g[giga] = 0


@kernel
def _free_2m(s: State, block: int) -> None:
    if s.level[block] == HUGE_2M and s.shared_2m[block] == 0:
        s.counts[N_MAPPED_2M] -= 1
    s.level[block] = NONE
    s.counts[N_PRESENT] -= PAGES_2M
    poisoned = _forget_poison(s, block << 9, (block + 1) << 9)
    _enter_pool(s, s.node[block], 0, s.full_2m[block] == 1, poisoned, s.extra_2m[block])
    s.full_2m[block] = 0


@kernel
def _forget_poison(s: State, first: int, end: int) -> bool:
    before = s.counts[N_POISONED]
    row = 0
    while row < s.counts[N_POISONED]:
        if first <= s.poison[row] < end:
            s.counts[N_POISONED] -= 1
            s.poison[row] = s.poison[s.counts[N_POISONED]]
        else:
            row += 1
    return s.counts[N_POISONED] < before


@kernel
def _is_poisoned(s: State, page: int) -> bool:
    """Whether the folio of the page is poisoned: all of a huge folio is, with any page of it."""
    if s.counts[N_POISONED] == 0:
        return False
    level = s.level[page >> 9]
    pages = PAGES_1G if level == HUGE_1G else PAGES_2M if level == HUGE_2M else 1
    first = page // pages * pages
    return _any_poison(s, first, first + pages)


@kernel
def _host_fault_page(s: State, page: int, node: int, cpu: int) -> int:
    if page >= s.options[PAGES] or not test_bit(s.shared, page):
        return SIGBUS
    error = _populate(s, page, node, cpu)
    if error != 0:
        return error
    if _is_poisoned(s, page):
        return SIGBUS
    if s.level[page >> 9] >= HUGE_2M:
        return _split_at(s, page >> 9)
    return 0


@kernel
def _host_fault(s: State, offset: int, length: int, node: int, cpu: int) -> int:
    """Touch each page through the host mapping; the first that fails ends it."""
    if offset < 0 or length <= 0:
        return EINVAL
    page, end = offset >> 12, (offset + length + 4095) >> 12
    while page < end:
        error = _host_fault_page(s, page, node, cpu)
        if error != 0:
            s.scratch[2] = page
            return error
        if s.counts[N_POISONED] == 0 and s.shared_2m[page >> 9] == PAGES_2M and s.level[page >> 9] == SPLIT:
            page = ((page >> 9) + 1) << 9
        else:
            page += 1
    return 0


@kernel
def _guest_fault(s: State, offset: int, length: int, private: bool, node: int, cpu: int) -> int:
    """Touch each page from the guest. EFAULT: the guest's idea of the page differs, KVM_EXIT_MEMORY_FAULT."""
    if offset < 0 or length <= 0:
        return EINVAL
    page, end = offset >> 12, (offset + length + 4095) >> 12
    while page < end:
        s.scratch[2] = page
        if page >= s.options[PAGES] or test_bit(s.shared, page) == private:
            return EFAULT
        error = _populate(s, page, node, cpu)
        if error != 0:
            return error
        if _is_poisoned(s, page):
            return EHWPOISON
        block = page >> 9
        if s.options[MERGING] == LAZY and s.level[block] == SPLIT and s.shared_2m[block] == 0:
            _merge_range(s, page, page + 1)
        if s.counts[N_POISONED] == 0 and s.level[block] >= SPLIT and s.shared_2m[block] == (0 if private else PAGES_2M):
            page = (block + 1) << 9
        else:
            page += 1
    return 0


@kernel
def _poison(s: State, offset: int) -> int:
    """memory_failure(): the folio's range is invalidated and stays in the file; ENOENT if there is no page."""
    page = offset >> 12
    if offset < 0 or page >= s.options[PAGES] or not _is_present(s, page):
        return ENOENT
    if _any_poison(s, page, page + 1):
        return 0
    if s.counts[N_POISONED] == s.poison.shape[0]:
        return NEEDS_ROOM
    s.poison[s.counts[N_POISONED]] = page
    s.counts[N_POISONED] += 1
    level = s.level[page >> 9]
    s.counts[N_INVALIDATIONS] += 1
    s.counts[N_INVALIDATED] += (PAGES_1G if level == HUGE_1G else PAGES_2M if level == HUGE_2M else 1) << 12
    return 0


# ---------------------------------------------------------------------------------------------------- punch


@kernel
def _punch(s: State, offset: int, length: int) -> int:
    """fallocate(PUNCH_HOLE). The private/shared state stays; what lies past the end is ignored."""
    if offset < 0 or length <= 0 or (offset | length) & 4095 != 0:
        return EINVAL
    pages = np.int64(1) << s.options[BACKING]
    if s.options[GENERATION] == GENERATION_C and (offset | length) & (pages * 4096 - 1) != 0:
        return EINVAL
    page, end = offset >> 12, min(s.options[PAGES], (offset + length) >> 12)
    if page >= end:
        return 0
    s.counts[N_INVALIDATIONS] += 1
    s.counts[N_INVALIDATED] += (end - page) << 12
    while page < end:
        block = page >> 9
        level = s.level[block]
        size = PAGES_1G if s.whole_1g[block >> 9] == 1 else PAGES_2M
        stop = min(end, (page // size + 1) * size)
        if level == BASE:
            _punch_base(s, page, stop)
        elif level != NONE and stop - page < size:
            s.counts[N_ZEROED] += stop - page
        elif level != NONE:
            wholly_private = s.shared_1g[block >> 9] == 0 if size == PAGES_1G else s.shared_2m[block] == 0
            if s.options[GENERATION] == GENERATION_C or not wholly_private:
                held = _first_referenced(s, page, stop, False)
                if held >= 0:
                    s.scratch[2] = held
                    return EAGAIN
            _spin(s, block, stop >> 9)
            if size == PAGES_1G:
                _free_1g(s, block >> 9)
            else:
                _free_2m(s, block)
        page = stop
    return 0


@kernel
def _punch_base(s: State, first: int, end: int) -> None:
    """4 KiB folios leave the file whoever holds them; a pinned page stays allocated until it is unpinned."""
    block = first >> 9
    for page in range(first, end):
        if not test_bit(s.present, page):
            continue
        s.present[page >> 6] &= ALL ^ (ONE << np.uint64(page & 63))
        s.counts[N_PRESENT] -= 1
        row = s.reference_row[block]
        if row != 0 and s.reference_total[row, 0] > 0:
            transient = np.int64(s.references[row, page & 511, TRANSIENT])
            pins = np.int64(s.references[row, page & 511, LONG_TERM])
            s.references[row, page & 511, TRANSIENT] = 0
            s.references[row, page & 511, LONG_TERM] = 0
            s.references[row, page & 511, ORPHAN] += pins
            s.reference_total[row, 0] -= transient + pins
            s.reference_total[row, 1] += pins
            s.counts[N_ORPHANED] += pins
        for cpu in range(s.batch.shape[0]):
            for slot in range(s.batch_length[cpu]):
                if s.batch[cpu, slot] == page:
                    s.batch[cpu, slot] = -1
                    s.counts[N_LRU] -= 1
    _forget_poison(s, first, end)
    for word in range(block << 3, min((block + 1) << 3, s.present.shape[0])):
        if s.present[word] != ZERO:
            return
    s.level[block] = NONE

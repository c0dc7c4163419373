"""Huge folios of a guest_memfd file that split and merge as memory is converted in place (proposals, not in Linux 7.3).

:class:`ConversionFile` wraps :mod:`workbench.kernels.folios.run` for one file. :meth:`ConversionFile.run_stream`
carries out a whole stream in one kernel call; :func:`variables` names what it counted. Nothing here depends on the engine.
"""

from __future__ import annotations

import functools
import struct

import numpy as np
import numpy.typing as npt

from workbench import costs
from workbench.intervals import set_intervals
from workbench.kernels.folios import references
from workbench.kernels.folios import run as folio
from workbench.kernels.whole import Whole, nobody_asks
from workbench.tracking import collapse_times, struct_pages
from workbench.tracking.host_memory import HostMemory
from workbench.tracking.tracked_file import (
    DONE,
    GENERATIONS,
    Blocks,
    Int64s,
    Outcome,
    StreamResult,
    TrackedFile,
    ascending_within,
    bits_at,
    choice,
    mapping_share,
)
from workbench.units import PAGE_ORDERS, PAGE_SIZE
from workbench.variables import ConversionCounts

SPLITS = {"one-step": folio.ONE_STEP, "two-stage": folio.TWO_STAGE, "two-stage-restored": folio.TWO_STAGE_FULL}
SPLIT_ON = {"conversion": folio.AT_CONVERSION, "host_fault": folio.AT_HOST_FAULT}
MERGES = {"eager": folio.EAGER, "lazy": folio.LAZY, "never": folio.NEVER}
XARRAYS = {"not counted": folio.XARRAY_FREE, "slabs": folio.XARRAY_SLABS, "two levels": folio.XARRAY_TWO_LEVELS}
LEAVES = {"1 GiB": folio.LEAF_ANY, "2 MiB": folio.LEAF_2M_AT_MOST, "4 KiB": folio.LEAF_4K_ONLY}
FOLIOS = {"hugetlb": folio.HUGETLB_FOLIOS, "buddy": folio.BUDDY_FOLIOS, "small": folio.SMALL_FOLIOS}
LEVELS = tuple(PAGE_ORDERS)
NOBODY, NO_ROWS = nobody_asks(), np.zeros((0, 0), np.int64)
"""Nobody asks what stays whole."""
_ROW = struct.Struct("=6q")
_NO_ENDS = _NO_PAGES = np.zeros(0, np.int64)
_LASTING, _LEFT = (folio.LONG_TERM, folio.DEVICE), (folio.ORPHAN, folio.DEVICE_ORPHAN)
"""Kinds of pins on pages of the file, and the same on pages that left it."""
_ROOM = 64  # pages that an answer has room for at first


def _bits(*kinds: int) -> int:
    return sum(1 << kind for kind in kinds)


_ANY = _bits(folio.TRANSIENT, *_LASTING)


class ConversionFile(TrackedFile):
    """The folios of one guest_memfd file.

    Parameters
    ----------
    size : bytes, a multiple of ``page_size``
    page_size : "4 KiB", "2 MiB" or "1 GiB"
    host : what splits and allocations draw on; unlimited memory on one node if left out
    generation : "B" (all or nothing) or "C" (block by block)
    split : "one-step"; what-if "two-stage" or, through the fully restored state, "two-stage-restored"
    split_on : "conversion" or, a what-if, the first "host_fault"
    merge : "eager", "lazy" (at the next guest fault or :meth:`merge`) or "never"
    hvo : huge pages are vmemmap-optimised
    fallback : take smaller folios where a pool is empty
    drain_lru : drain the lru_add batches before giving up (in-place conversion v5 on)
    cpus : CPUs with an lru_add batch
    shared : the whole file starts shared (INIT_SHARED)
    confidential : kind of guest, "none", "snp" or "tdx": it limits second-stage mappings
    xarray : memory for the page cache's nodes when 1 GiB splits: "not counted", "slabs" (taken before the vmemmap) or
        "two levels" (never enough: ``xas_split`` of stock 7.3)
    folios : what the memory is: "hugetlb"; "buddy", huge folios of the page allocator; "small", 4 KiB folios that lie together
        in units of ``page_size``
    """

    state: folio.FolioState

    def __init__(
        self,
        size: int,
        page_size: str = "2 MiB",
        host: HostMemory | None = None,
        *,
        generation: str = "C",
        split: str = "one-step",
        split_on: str = "conversion",
        merge: str = "eager",
        hvo: bool = True,
        fallback: bool = False,
        drain_lru: bool = True,
        cpus: int = 1,
        shared: bool = False,
        confidential: str = "none",
        xarray: str = "not counted",
        folios: str = "hugetlb",
    ) -> None:
        super().__init__(size, page_size, confidential)
        self.hvo = hvo
        self.host = HostMemory.make() if host is None else host
        options = np.zeros(folio.OPTIONS, np.int64)
        options[folio.PAGES] = size // PAGE_SIZE
        options[folio.BACKING] = self.order
        options[folio.GENERATION] = choice("generation", generation, GENERATIONS)
        options[folio.SPLITTING] = choice("split", split, SPLITS)
        options[folio.SPLIT_AT] = choice("split_on", split_on, SPLIT_ON)
        options[folio.MERGING] = choice("merge", merge, MERGES)
        options[folio.HVO], options[folio.FALLBACK], options[folio.DRAIN] = hvo, fallback, drain_lru
        options[folio.XARRAY] = choice("xarray", xarray, XARRAYS)
        options[folio.LEAF_CAP] = LEAVES[self.largest_leaf]
        options[folio.FOLIOS] = choice("folios", folios, FOLIOS)
        self.nodes, self.cpus = len(self.host.vmemmap), cpus
        self._row = np.zeros((1, 6), np.int64), np.zeros(1, np.int32), np.zeros(1, np.int64)
        """A stream of one operation, its error, and the byte offset that the error names."""
        self.state = folio.new_state(options, self.host.array, cpus, self.host.pool_poison)
        if shared:
            self.convert(0, size, "shared")
            self.state.counts[:] = np.where(np.arange(len(folio.COUNTERS)) == folio.N_SHARED, size // PAGE_SIZE, 0)

    # --------------------------------------------------------------------------------------------- operations

    def carry_out(self, stream: Int64s, every: int = 0) -> StreamResult:
        ends = np.arange(every, len(stream) + 1, every) if every else _NO_ENDS
        return self.carry_out_calls(stream, ends)

    def carry_out_calls(
        self, stream: Int64s, ends: Int64s, watched: Whole = NOBODY, rows: Int64s = NO_ROWS
    ) -> StreamResult:
        """:meth:`carry_out`, with counters after calls that end at rows int64 (c,) of the stream, ascending.

        ``watched``: what of the file stays whole, whose row after each call goes to ``rows`` int64 (c, entries).
        """
        count = len(stream)
        errors, offsets = np.zeros(count, np.int32), np.zeros(count, np.int64)
        series = np.zeros((len(ends), len(folio.COUNTERS) + self.nodes), np.int64)
        assert len(rows) in (0, len(ends)) and rows.shape[1] == len(watched.row)
        self._refresh()
        done = int(folio.run.direct(self.state, stream, errors, offsets, ends, series, watched, rows, 0))
        while done < count and errors[done] == folio.NEEDS_ROOM:
            self._grow()
            done = int(folio.run.direct(self.state, stream, errors, offsets, ends, series, watched, rows, done))
        return StreamResult(errors, offsets, series)

    def _carry_out_one(self, op: int, offset: int, length: int, argument: int, node: int, cpu: int) -> Outcome:
        """In arrays that are kept."""
        stream, errors, offsets = self._row
        _ROW.pack_into(stream.data, 0, op, offset, length, argument, node, cpu)
        offsets[0] = -1
        self._refresh()
        while (
            not folio.run.direct(self.state, stream, errors, offsets, _NO_ENDS, NO_ROWS, NOBODY, NO_ROWS, 0)
            and errors[0] == folio.NEEDS_ROOM
        ):
            self._grow()
        error: int = errors.item()
        if not error:
            return DONE
        named: int = offsets.item()
        return Outcome(error, named if named >= 0 else None)

    def _refresh(self) -> None:
        """Another file may have made the host's table of poisoned pages in pools longer."""
        if self.state.pool_poison is not self.host.pool_poison:
            self.state = self.state._replace(pool_poison=self.host.pool_poison)

    def _grow(self) -> None:
        self.state = folio.grown(self.state)
        self.host.pool_poison = self.state.pool_poison

    def release(self) -> None:
        """The file is closed: a huge page with a long-term pin stays out of the pool until :meth:`unpin` drops the last.

        ``pinned_huge_pages`` counts these. Every operation but :meth:`unpin` is EBADF from then on.
        """
        self._one(folio.RELEASE, 0, 0)

    def insert(self, folios: Int64s, nodes: Int64s, cpu: int = 0) -> int:
        """Put folios of the file's size, already taken from their nodes elsewhere, at these folio indices.

        Returns the number inserted: less than all when a fresh folio under a shared page could not be split for want
        of memory (ENOMEM). That one is in the file in generation C, whole, and not in B; the rest are not.
        """
        if len(folios) == 1:
            at = int(folios[0]) * (PAGE_SIZE << self.order)
            return int(not self._one(folio.INSERT, at, 0, node=int(nodes[0]), cpu=cpu).errno)
        stream = np.zeros((len(folios), 6), np.int64)
        stream[:, folio.OP], stream[:, folio.CPU] = folio.INSERT, cpu
        stream[:, folio.OFFSET], stream[:, folio.NODE] = folios * (PAGE_SIZE << self.order), nodes
        errors = self.run_stream(stream).errors
        return int(np.argmax(errors != 0)) if errors.any() else len(folios)

    def collapse(self, offset: int, node: int, cpu: int = 0) -> Outcome:
        """Copy the 4 KiB folios of the 2 MiB at ``offset`` into a folio that the caller took from ``node``; they are his to free.

        EINVAL where no such folios lie or some page is shared, EAGAIN with the offset of a page that somebody holds.
        """
        return self._one(folio.COLLAPSE, offset, 0, node=node, cpu=cpu)

    def small_blocks(self, first: int, end: int) -> Int64s:
        """2 MiB blocks of [first, end) in which 4 KiB folios stand in for a huge one and no page is shared."""
        state = self.state
        return first + np.flatnonzero((state.level[first:end] == folio.BASE) & (state.shared_2m[first:end] == 0))

    def insert_small(self, pages: Int64s, nodes: Int64s) -> None:
        """Put 4 KiB folios, already taken elsewhere, where no huge page was to be had; needs ``fallback``."""
        stream = np.zeros((len(pages), 6), np.int64)
        stream[:, folio.OP] = folio.GUEST_FAULT
        stream[:, folio.OFFSET], stream[:, folio.LENGTH] = pages * PAGE_SIZE, PAGE_SIZE
        stream[:, folio.ARGUMENT] = ~self.pages_shared(pages)  # faulted as what they are
        stream[:, folio.NODE] = nodes
        self.run_stream(stream)
        # Nobody has touched them yet: whoever does is told of below.
        first = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
        if not len(first):
            return
        last = np.append(first[1:], len(pages)) - 1
        unmapped = np.zeros((len(first), 6), np.int64)
        unmapped[:, folio.OP], unmapped[:, folio.OFFSET] = folio.UNMAP, pages[first] * PAGE_SIZE
        unmapped[:, folio.LENGTH] = (pages[last] + 1 - pages[first]) * PAGE_SIZE
        self.run_stream(unmapped)

    def set_slot(self, offset: int, length: int, largest_leaf: str = "1 GiB") -> None:
        """A memslot maps this range of the file; it can have leaves of up to this size, and none that reach out of it."""
        options = self.state.options
        options[folio.SLOT_FIRST], options[folio.SLOT_END] = offset // PAGE_SIZE, (offset + length) // PAGE_SIZE
        options[folio.LEAF_CAP] = choice("largest_leaf", largest_leaf, LEAVES)

    def optimised(self, pages: Int64s) -> npt.NDArray[np.bool_]:
        """Whether the vmemmap of the huge folio of each page is given up: bool (n,)."""
        state = self.state
        whole = state.whole_1g[pages >> 18] == 1
        return self.hvo & ~np.where(whole, state.full_1g[pages >> 18], state.full_2m[pages >> 9]).astype(bool)

    def uptodate(self, pages: Int64s) -> npt.NDArray[np.bool_]:
        """Whether the folio of each page is up to date, so that the next touch keeps what is in it: bool (n,)."""
        marks = self.state.marks[pages >> 9]
        return (marks & folio.UPTODATE_ALL > 0) | bits_at(self.state.uptodate, pages)

    def uptodate_words(self, first: int, end: int) -> npt.NDArray[np.uint64]:
        if not self.order or first >= end:
            return np.zeros(0, np.uint64)
        low, high = self.first_word(first), self.first_word(end - 1) + (1 << self.order >> 6)
        words = self.state.uptodate[low:high].copy()
        words.reshape(-1, 8)[self.state.marks[low >> 3 : high >> 3] & folio.UPTODATE_ALL > 0] = ~np.uint64(0)
        return words

    def content_lost(self) -> Int64s:
        """Pages whose content a merge gave up, as intervals, int64 (n, 2)."""
        return set_intervals(self.state.content_lost, self.size // PAGE_SIZE)

    def unmap_guest(self, offset: int = 0, length: int | None = None) -> Outcome:
        """The memslot of the range is deleted: the second stage maps nothing of it any more."""
        return self._one(folio.UNMAP, offset, self.size - offset if length is None else length)

    def returned(self) -> Int64s:
        """What the pools got since the last call; for a caller who hands the folios out himself they are empty before."""
        size = 0 if self.order <= folio.ORDER_2M else 1
        out = self.host.pool[:, size].copy()
        self.host.pool[:, size] = 0
        return out

    # ----------------------------------------------------------------------------------------------- counting

    @property
    def counts(self) -> Int64s:
        """A view of the counters."""
        return self.state.counts

    def count_into(self, row: Int64s) -> None:
        """One array of the kernel has them all."""
        folio.count.direct(self.state.numbers, self.nodes, row)

    def present(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Huge folios [first, last) that are in the file, whole or split."""
        step = 1 << (self.order - folio.ORDER_2M)
        return self.state.level[first * step : last * step : step] > folio.NONE

    def blocks(self, first: int, end: int) -> Blocks:
        """A split folio lies together, and small entries stand for it."""
        return self._blocks(slice(first, end), slice(first * 8, end * 8))

    def blocks_at(self, index: Int64s) -> Blocks:
        """See :meth:`blocks`."""
        return self._blocks(index, (index[:, None] * 8 + np.arange(8)).ravel())

    def _blocks(self, at: slice | Int64s, words: slice | Int64s) -> Blocks:
        state = self.state
        level = state.level[at]
        there, shared = state.present[words], state.shared[words]
        single = np.bitwise_count(there).reshape(-1, 8).sum(axis=1, dtype=np.int64)
        kept = np.bitwise_count(there & ~shared).reshape(-1, 8).sum(axis=1, dtype=np.int64)
        base = level == folio.BASE
        present = np.where(base, single, np.where(level > folio.BASE, folio.PAGES_2M, 0))
        private = np.where(base, kept, np.where(level > folio.BASE, folio.PAGES_2M - state.shared_2m[at], 0))
        node = np.where(present > 0, state.node[at], -1).astype(np.int64)
        small = state.options[folio.FOLIOS] == folio.SMALL_FOLIOS
        whole = (level >= folio.HUGE_2M) | ((level == folio.SPLIT) & bool(small))
        return Blocks(present.astype(np.int64), private.astype(np.int64), node, level > folio.BASE, whole)

    def look_at(self, watched: Whole, low: int, end: int) -> None:
        """The kernel looks itself."""
        s, small = self.state, bool(self.state.options[folio.FOLIOS] == folio.SMALL_FOLIOS)
        folio.look_at.direct(s.blocks, s.pages, s.shared, s.backing, small, watched, low, end)

    def present_words(self, blocks: Int64s) -> npt.NDArray[np.uint64]:
        """See :meth:`blocks`."""
        level, words = np.repeat(self.state.level[blocks], 8), (blocks[:, None] * 8 + np.arange(8)).ravel()
        whole = np.where(level > folio.BASE, ~np.uint64(0), np.uint64(0))
        return np.where(level == folio.BASE, self.state.present[words], whole)

    @property
    def stays_whole(self) -> bool:
        """4 KiB pages in no unit never are, units of small folios always."""
        return not self.order or bool(self.state.options[folio.FOLIOS] == folio.SMALL_FOLIOS)

    def may_refuse(self) -> bool:
        """Somebody holds a page, or struct pages or nodes of the page cache may run out."""
        options = self.state.options
        if len(self.pinned()) or self.count("poisoned_pages") or self.count("lru_held"):
            return True
        if not self.order:
            return False
        if options[folio.XARRAY] == folio.XARRAY_TWO_LEVELS and self.order == folio.ORDER_1G:
            return True
        # As much again covers slabs and what is restored in passing.
        wanted = 2 * struct_pages.full(self.order) * (self.size // (PAGE_SIZE << self.order))
        return int(self.host.vmemmap.sum()) < wanted

    def pinned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Pages with references of any kind."""
        if self.released:
            return _NO_PAGES
        return self._referenced(_ANY, first, end)

    def referenced(self, pages: Int64s) -> npt.NDArray[np.bool_]:
        """Whether each page has references of any kind: bool (n,)."""
        state = self.state
        rows = state.references[state.reference_row[pages >> folio.ORDER_2M], pages & (folio.PAGES_2M - 1)]
        found: npt.NDArray[np.bool_] = rows[:, [folio.TRANSIENT, *_LASTING]].any(axis=1)
        return found

    def withheld(self) -> Int64s:
        """Pages that left the file and are still pinned: of 4 KiB folios, and of huge pages once it is closed."""
        return self._referenced(_bits(*_LEFT, *(_LASTING if self.released else ())), 0, None)

    def references(self, pages: Int64s, left_file: bool) -> Int64s:
        """Kept by kind."""
        state, out = self.state, np.empty((len(pages), 2), np.int64)
        kinds = _LEFT if left_file else _LASTING
        references.references_on.direct(state.reference_row, state.reference_counts, pages, *kinds, out)
        return out

    @property
    def released(self) -> bool:
        """The file is closed."""
        return bool(self.state.numbers[folio.RELEASED])

    def _referenced(self, kinds: int, first: int, end: int | None) -> Int64s:
        """Pages of [first, end) with references of kinds whose bits are set, ascending."""
        state = self.state
        end = min(folio.PAGES_2M * len(state.reference_row), self.size // PAGE_SIZE if end is None else end)
        if first >= end or not state.numbers[folio.N_ROWS]:  # as in most files
            return _NO_PAGES
        room = min(end - first, _ROOM)
        while True:
            pages = np.empty(room, np.int64)
            found = references.pages_referenced.direct(
                state.reference_row, state.reference_counts, first, end, kinds, pages
            )
            if found <= room:
                return pages[:found]
            room = found

    def poisoned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Poisoned pages."""
        if not self.state.numbers[folio.N_POISONED]:  # as in most files
            return _NO_PAGES
        return ascending_within(self.state.poison[: self.count("poisoned_pages")], first, end)

    @property
    def held_vmemmap(self) -> Int64s:
        """int64 (nodes,), vmemmap pages held beyond one for each optimised folio."""
        state = self.state
        held = state.extra_1g.sum(axis=0, dtype=np.int64)
        return held + state.extra_2m.sum(axis=0, dtype=np.int64)

    @property
    def shared_groups(self) -> int:
        """256 KiB groups with a shared page: the vmemmap pages of a design without struct pages for private memory."""
        return int(np.count_nonzero(self.state.shared))

    def state_bytes(self) -> int:
        """Bytes of the private/shared bitmap and the counters together."""
        state = self.state
        return sum(a.nbytes for a in (state.shared, state.blocks, state.gigas, state.backing, state.reference_row))


# ------------------------------------------------------------------------------------------------------ streams


def conversions(offset: Int64s, length: Int64s, to_shared: npt.ArrayLike) -> Int64s:
    """A stream of conversions: bytes, bytes, bool, each (n,)."""
    stream = np.zeros((len(offset), 6), np.int64)
    stream[:, folio.OP] = folio.CONVERT
    stream[:, folio.OFFSET], stream[:, folio.LENGTH] = offset, length
    stream[:, folio.ARGUMENT] = np.asarray(to_shared)
    return stream


def populate(size: int, node: int = 0) -> Int64s:
    """A stream of one guest fault over the whole file, as private."""
    return np.array([[folio.GUEST_FAULT, 0, size, 1, node, 0]], np.int64)


# ------------------------------------------------------------------------------------------------------- Dataset

PARTS = ("conversion", "split and merge", "invalidation", "zeroing", "collapse")
CYCLE_PARAMETERS = (
    "conversion_fixed", "split_merge_per_page", "invalidation", "clear_page", "cpu_frequency", *collapse_times.PARAMETERS,
)  # fmt: skip


@functools.lru_cache(4)
def _draws(samples: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Draws of the parameters, which nobody changes: a comparison of designs asks for the same of each."""
    return costs.sample(CYCLE_PARAMETERS, samples, seed)


def cycles(series: Int64s, samples: int = 1, seed: int = 0, *, two_stage: bool = False) -> npt.NDArray[np.float64]:
    """Modelled cycles so far by part, float64 (samples, rows, parts); sample 0 takes the parameters as given.

    Every conversion costs ``conversion_fixed``; every folio that a split makes or a merge takes up
    ``split_merge_per_page``, whatever the size of the whole: 262144 for 1 GiB, 512 for 2 MiB and (``two_stage``, where no
    measurement exists) 512 for 1 GiB into 2 MiB; every invalidation ``invalidation``; every page zeroed by a punch
    ``clear_page``; what khugepaged collapses, :func:`workbench.tracking.collapse_times.busy`.
    """
    draws = _draws(costs.whole("samples", samples), costs.whole("seed", seed, 0))
    parts = [np.outer(each, number) for each, number in _cycles_each(series, draws, two_stage)]
    parts.append(_collapsing(series[:, folio.N_COLLAPSED], series[:, folio.N_COPIED], draws))
    return np.stack(parts, axis=-1)


def cycle_ends(
    series: Int64s, *, two_stage: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Value, low and high end of :func:`cycles`, float64 (rows, parts) each; of parts that only grow with a count, the ends of
    what one takes are enough, and of many rows most have the same collapses."""
    draws = _draws(costs.DRAWS, 0)
    linear = _cycles_each(series, draws, two_stage)
    found: list[list[npt.NDArray[np.float64]]] = [[], [], []]
    for each, number in linear:
        for parts, end in zip(found, (each[0], *costs.ends(each)), strict=True):
            parts.append(end * number)
    rows, where = np.unique(series[:, [folio.N_COLLAPSED, folio.N_COPIED]], axis=0, return_inverse=True)
    every = _collapsing(rows[:, 0], rows[:, 1], draws)
    for parts, end in zip(found, (every[0], *costs.ends(every)), strict=True):
        parts.append(end[where.ravel()])
    value, low, high = (np.stack(parts, axis=-1) for parts in found)
    return value, low, high


def _cycles_each(
    series: Int64s, draws: dict[str, npt.NDArray[np.float64]], two_stage: bool
) -> list[tuple[npt.NDArray[np.float64], Int64s]]:
    """Of every part but the last what one takes, float64 (draws,), and how many there were, int64 (rows,)."""
    pieces = folio.BLOCKS_1G if two_stage else folio.PAGES_1G
    pages = pieces * (series[:, folio.N_SPLITS_1G] + series[:, folio.N_MERGES_1G])
    pages = pages + folio.PAGES_2M * (series[:, folio.N_SPLITS_2M] + series[:, folio.N_MERGES_2M])
    return [
        (draws["conversion_fixed"], series[:, folio.N_CONVERSIONS]),
        (draws["split_merge_per_page"], pages),
        (draws["invalidation"], series[:, folio.N_INVALIDATIONS]),
        (draws["clear_page"] * draws["cpu_frequency"], series[:, folio.N_ZEROED]),
    ]


def _collapsing(folios: Int64s, copied: Int64s, draws: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Cycles of khugepaged, float64 (draws, rows)."""
    return draws["cpu_frequency"][:, None] * collapse_times.busy(folios, copied, draws)


EVENT_COUNTERS = tuple(name for name in ConversionCounts.variables if name in folio.COUNTERS)
"""Counters that a Dataset keeps along ``event``."""
NAMES = (*EVENT_COUNTERS, "mapping_share", "stage2_tables", "vmemmap_pages",
         "conversion_cycles", "conversion_cycles_low", "conversion_cycles_high")  # fmt: skip
"""What :func:`variables` gives of a run."""


def variables(
    series: Int64s,
    samples: int | None = None,
    seed: int = 0,
    *,
    two_stage: bool = False,
    largest_leaf: str = "1 GiB",
) -> dict[str, object]:
    """Values of :class:`workbench.variables.ConversionCounts`, from counters and vmemmap pages by node.

    ``largest_leaf``: largest second-stage mapping of this kind of guest. ``samples``: draws of the cycles; their value and ends
    if left out.
    """
    out: dict[str, object] = {name: series[:, folio.COUNTERS.index(name)] for name in EVENT_COUNTERS}
    out["mapping_share"] = mapping_share(series, largest_leaf)
    out["stage2_tables"] = struct_pages.stage2_tables(
        series[:, folio.N_PRESENT], series[:, folio.N_MAPPED_1G], series[:, folio.N_MAPPED_2M], largest_leaf
    )
    out["vmemmap_pages"] = series[:, len(folio.COUNTERS) :]
    if samples is None:
        value, low, high = cycle_ends(series, two_stage=two_stage)
        return out | {"conversion_cycles": value, "conversion_cycles_low": low, "conversion_cycles_high": high}
    modelled = cycles(series, samples, seed, two_stage=two_stage)
    out["conversion_cycles"] = modelled if samples > 1 else modelled[0]
    return out

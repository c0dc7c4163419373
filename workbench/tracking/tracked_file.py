"""One guest_memfd file whose pages change sides between private and shared, however its memory is tracked.

:class:`TrackedFile` has one method for each operation; each returns what the call would, ``(errno, offset the error names
or None)``. :class:`workbench.tracking.folio_file.ConversionFile` tracks huge folios that split and merge,
:class:`workbench.tracking.light_file.LightFile` private ranges without struct page. Nothing here depends on the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from workbench.errors import WorkbenchError
from workbench.intervals import equal_intervals, set_intervals
from workbench.kernels import light_map
from workbench.kernels.folios import run as folio
from workbench.kernels.whole import Whole
from workbench.tracking.confidential import LARGEST_LEAF, leaves
from workbench.units import PAGE_ORDERS, PAGE_SIZE

Int64s = npt.NDArray[np.int64]
Meaning = TypeVar("Meaning")
GENERATIONS = {"B": folio.GENERATION_B, "C": folio.GENERATION_C}
KINDS = {"transient": folio.TRANSIENT, "long_term": folio.LONG_TERM, "device": folio.DEVICE}
OPERATIONS = {
    "convert": folio.CONVERT,
    "pin": folio.PIN,
    "unpin": folio.UNPIN,
    "host_fault": folio.HOST_FAULT,
    "guest_fault": folio.GUEST_FAULT,
    "punch_hole": folio.PUNCH,
    "hwpoison": folio.POISON,
    "merge": folio.MERGE,
    "lru_drain": folio.LRU_DRAIN,
    "release": folio.RELEASE,
    "unmap_slot": folio.UNMAP,
}
SIGBUS = folio.SIGBUS


class Outcome(NamedTuple):
    """What a call returned: 0, an errno or SIGBUS, and the byte offset it names (None: none)."""

    errno: int
    offset: int | None


DONE = Outcome(0, None)
"""It did what it was asked to."""


class Blocks(NamedTuple):
    """Blocks of 2 MiB, int64 (n,) and bool (n,)."""

    present: Int64s
    private: Int64s
    node: Int64s
    """Node index, -1: nothing is there."""
    together: npt.NDArray[np.bool_]
    """Its memory lies together physically."""
    whole: npt.NDArray[np.bool_]
    """And one entry can stand for it: it is in a folio (or a range that needs none) of at least that size."""


class StreamResult(NamedTuple):
    """Errors int32 (n,); byte offsets they name int64 (n,), -1 = none; int64 (rows, counters + nodes).

    The last columns of ``series`` are the vmemmap pages held by node.
    """

    errors: npt.NDArray[np.int32]
    offsets: Int64s
    series: Int64s


class TrackedFile(ABC):
    """The pages of one file: ``size`` bytes in folios or units of ``page_size``, order ``order``, on ``nodes`` nodes."""

    state: folio.FolioState | light_map.LightState
    nodes: int
    cpus: int
    converted: list[Int64s] | None = None
    """Rows of conversions that were asked for, int64 (n, 6) each, where somebody wants to know and clears it."""

    def __init__(self, size: int, page_size: str, confidential: str = "none") -> None:
        self.order = choice("page_size", page_size, PAGE_ORDERS)
        if size <= 0 or size % (PAGE_SIZE << self.order):
            raise WorkbenchError(f"size: {size} bytes is not a positive multiple of {page_size}")
        self.size, self.page_size = size, page_size
        self.largest_leaf = choice("confidential", confidential, LARGEST_LEAF)

    def run_stream(self, stream: Int64s, every: int = 0) -> StreamResult:
        """Carry out a stream, int64 (n, 6) as :data:`workbench.kernels.folios.run.OP` ... CPU; counters after each ``every``."""
        self._check_stream(stream)
        return self.carry_out(stream, every)

    @abstractmethod
    def carry_out(self, stream: Int64s, every: int = 0) -> StreamResult:
        """:meth:`run_stream` of operations that are valid, by somebody who follows conversions himself."""

    @abstractmethod
    def _carry_out_one(self, op: int, offset: int, length: int, argument: int, node: int, cpu: int) -> Outcome:
        """:meth:`carry_out` of one operation."""

    @abstractmethod
    def insert(self, folios: Int64s, nodes: Int64s) -> int:
        """Put folios of the file's size, taken from their nodes by the caller, at these folio indices.

        Returns the number inserted: less than all when struct pages for shared pages of the next one found no memory
        (ENOMEM); that one and the rest are not in the file.
        """

    @abstractmethod
    def present(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Whether each of the folio indices [first, last) is in the file in whatever state."""

    @abstractmethod
    def blocks(self, first: int, end: int) -> Blocks:
        """What 2 MiB blocks [first, end) of the file hold."""

    def blocks_at(self, index: Int64s) -> Blocks:
        """What 2 MiB blocks of the file hold, by index, int64 (n,)."""
        if not len(index):
            return self.blocks(0, 0)
        parts = [self.blocks(at, at + 1) for at in index.tolist()]
        return Blocks(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @abstractmethod
    def look_at(self, watched: Whole, low: int, end: int) -> None:
        """Note in ``watched`` what 2 MiB blocks [low, end) hold now, as one call has left them."""

    def bits(self, blocks: Int64s) -> dict[int, tuple[int, int]]:
        """Which pages of 2 MiB blocks (n,) are there, and which of those are private, a bit for each page, by block."""
        there = self.present_words(blocks)
        private = there & ~self.state.shared[(blocks[:, None] * 8 + np.arange(8)).ravel()]
        texts = [words.astype("<u8").tobytes() for words in (there, private)]
        size = folio.PAGES_2M // 8
        return {
            block: (
                int.from_bytes(texts[0][at : at + size], "little"),
                int.from_bytes(texts[1][at : at + size], "little"),
            )
            for block, at in zip(blocks.tolist(), range(0, size * len(blocks), size), strict=True)
        }

    @abstractmethod
    def present_words(self, blocks: Int64s) -> npt.NDArray[np.uint64]:
        """Pages of 2 MiB blocks (n,) that are there, a bit for each, uint64 (8 n,)."""

    @property
    @abstractmethod
    def stays_whole(self) -> bool:
        """Whether one entry can stand for a 2 MiB block as long as its pages stay, or never; False: folios split and merge."""

    def may_refuse(self) -> bool:
        """Whether some conversion of valid pages may be refused; False: none will."""
        return True

    @abstractmethod
    def returned(self) -> Int64s:
        """Folios of the file's size, int64 (nodes,), that went back to each node since the last call."""

    @abstractmethod
    def release(self) -> None:
        """The file is closed for the last time: everything leaves, pinned pages when their last pin is dropped."""

    @abstractmethod
    def pinned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Pages of the file that are pinned or otherwise referenced, those of [first, end), ascending."""

    @abstractmethod
    def withheld(self) -> Int64s:
        """Pages that left the file and are still pinned, ascending."""

    @abstractmethod
    def references(self, pages: Int64s, left_file: bool) -> Int64s:
        """Lasting pins on pages int64 (n,), ascending: int64 (n, 2), those of devices apart.

        On what was at these pages and has left the file, or (``left_file`` False) on what is there.
        """

    @abstractmethod
    def poisoned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Poisoned pages of the file, those of [first, end), ascending."""

    def first_word(self, first: int) -> int:
        """Word of 64 pages in which the folio of the file's size begins that page ``first`` is in."""
        return first >> self.order << self.order >> 6

    def uptodate_words(self, first: int, end: int) -> npt.NDArray[np.uint64]:
        """A bit for each page from :meth:`first_word` on, to the end of the last folio of [first, end): the folio is up to date.

        Empty where folios do not merge, so that no content is lost.
        """
        return np.zeros(0, np.uint64)

    def content_lost(self) -> Int64s:
        """Pages whose content a merge gave up, as intervals, int64 (n, 2)."""
        return np.zeros((0, 2), np.int64)

    @property
    @abstractmethod
    def counts(self) -> Int64s:
        """Counters, int64, by position in :data:`workbench.kernels.folios.run.COUNTERS`."""

    # --------------------------------------------------------------------------------------------- operations

    def _check_stream(self, stream: Int64s) -> None:
        if stream.ndim != 2 or stream.shape[1] != 6:
            raise WorkbenchError(f"stream: shape {stream.shape}; must be (operations, 6)")
        columns = (
            ("op", folio.OP, folio.COLLAPSE + 1),
            ("node", folio.NODE, self.nodes),
            ("cpu", folio.CPU, self.cpus),
        )
        values = stream if len(stream) else np.zeros((1, 6), np.int64)
        low, high = values.min(axis=0), values.max(axis=0)
        wrong = [(name, limit) for name, column, limit in columns if low[column] < 0 or high[column] >= limit]
        for name, limit in wrong:
            raise WorkbenchError(f"stream: a value of column {name} is outside 0 to {limit - 1}")
        if self.converted is not None:
            conversions = stream[stream[:, folio.OP] == folio.CONVERT]
            if len(conversions):
                self.converted.append(conversions)

    def _one(self, op: int, offset: int, length: int, argument: int = 0, node: int = 0, cpu: int = 0) -> Outcome:
        """One operation: checked without reductions, for most calls are one."""
        if not (0 <= node < self.nodes and 0 <= cpu < self.cpus):
            self._check_stream(np.array([[op, offset, length, argument, node, cpu]], np.int64))
        if op == folio.CONVERT and self.converted is not None:
            self.converted.append(np.array([[op, offset, length, argument, node, cpu]], np.int64))
        return self._carry_out_one(op, offset, length, argument, node, cpu)

    def convert(self, offset: int, length: int, to: str) -> Outcome:
        """KVM_GMEM_CONVERT_SHARED / _PRIVATE. EINVAL for a bad range, EAGAIN with the offset of a held page, ENOMEM."""
        if to not in ("private", "shared"):
            raise WorkbenchError(f"to: {to!r} is not private or shared")
        return self._one(folio.CONVERT, offset, length, int(to == "shared"))

    def pin(self, offset: int, length: int, kind: str = "long_term", node: int = 0, cpu: int = 0) -> Outcome:
        """References on each page: long-term through the host mapping (EFAULT where private), or transient on any."""
        return self._one(folio.PIN, offset, length, choice("kind", kind, KINDS), node, cpu)

    def unpin(self, offset: int, length: int, kind: str = "long_term") -> Outcome:
        """Drop those of this kind; EINVAL names the first page that has none."""
        return self._one(folio.UNPIN, offset, length, choice("kind", kind, KINDS))

    def host_fault(self, offset: int, length: int = PAGE_SIZE, node: int = 0, cpu: int = 0) -> Outcome:
        """Touch pages through the host mapping: SIGBUS where private, poisoned or past the end."""
        return self._one(folio.HOST_FAULT, offset, length, 0, node, cpu)

    def guest_fault(
        self, offset: int, length: int = PAGE_SIZE, private: bool = True, node: int = 0, cpu: int = 0
    ) -> Outcome:
        """Touch pages from the guest: EFAULT (exit to user space) where the state is the other one."""
        return self._one(folio.GUEST_FAULT, offset, length, int(private), node, cpu)

    def punch_hole(self, offset: int, length: int) -> Outcome:
        """fallocate(PUNCH_HOLE): whole huge pages go back to the pool, EAGAIN while somebody holds a page."""
        return self._one(folio.PUNCH, offset, length)

    def hwpoison(self, offset: int) -> Outcome:
        """Memory failure of one page; ENOENT if there is none."""
        return self._one(folio.POISON, offset, 0)

    def merge(self, offset: int = 0, length: int | None = None) -> Outcome:
        """The background merge of a lazy policy."""
        return self._one(folio.MERGE, offset, self.size - offset if length is None else length)

    def lru_drain(self) -> Outcome:
        """lru_add_drain_all()."""
        return self._one(folio.LRU_DRAIN, 0, 0)

    # ----------------------------------------------------------------------------------------------- counting

    def counters(self) -> dict[str, int]:
        """All counters by name (:data:`workbench.kernels.folios.run.COUNTERS`)."""
        return dict(zip(folio.COUNTERS, self.counts.tolist(), strict=True))

    def count(self, name: str) -> int:
        """One counter."""
        return int(self.counts[folio.COUNTERS.index(name)])

    @property
    def vmemmap_taken(self) -> Int64s:
        """vmemmap pages by node, int64 (nodes,), that conversions brought back and that are not given back yet."""
        return self.state.taken - self.state.freed

    @abstractmethod
    def count_into(self, row: Int64s) -> None:
        """:attr:`counts`, then :attr:`vmemmap_taken`, into the beginning of ``row``."""

    @property
    def mapping_share(self) -> npt.NDArray[np.float64]:
        """Share of the present pages that can be mapped at 4 KiB, 2 MiB and 1 GiB, for a guest of this kind."""
        return mapping_share(self.counts[None, :], self.largest_leaf)[0]

    def is_shared(self, first: int = 0, end: int | None = None) -> npt.NDArray[np.bool_]:
        """State of pages [first, end): True = shared."""
        end = self.size // PAGE_SIZE if end is None else end
        if end - first == 1:  # of a single page, as most often
            return np.array([self.shares(first)])
        words = self.state.shared[first >> 6 : -(-end >> 6)].astype("<u8").view(np.uint8)
        low = first & 63
        return np.unpackbits(words, bitorder="little")[low : low + end - first].astype(bool)

    def shares(self, page: int) -> bool:
        """Whether a page is shared."""
        return bool(int(self.state.shared[page >> 6]) >> (page & 63) & 1)

    def states(self, first: int, end: int) -> list[tuple[int, int, bool]]:
        """Pages [first, end) as stretches of one state, and whether each is shared; a page alone makes no array."""
        if end - first == 1:
            return [(first, end, self.shares(first))]
        if first >= end:
            return []
        words = self.state.shared[first >> 6 : -(-end >> 6)].astype("<u8").tobytes()
        bits = int.from_bytes(words, "little") >> (first & 63) & ((1 << (end - first)) - 1)
        if not bits or bits.bit_count() == end - first:  # of one state, as most often
            return [(first, end, bool(bits))]
        shared = self.is_shared(first, end)
        return [(low, high, bool(shared[low - first])) for low, high in equal_intervals(shared, first).tolist()]

    def in_state(self, first: int, end: int, shared: bool) -> list[tuple[int, int]]:
        """Those of :meth:`states` that are shared, or not."""
        return [(low, high) for low, high, is_shared in self.states(first, end) if is_shared == shared]

    def pages_shared(self, pages: Int64s) -> npt.NDArray[np.bool_]:
        """State of single pages (n,): True = shared."""
        return bits_at(self.state.shared, pages)

    def shared_ranges(self) -> Int64s:
        """Shared pages as intervals, int64 (n, 2)."""
        return set_intervals(self.state.shared, self.size // PAGE_SIZE)


def bits_at(words: npt.NDArray[np.uint64], pages: Int64s) -> npt.NDArray[np.bool_]:
    """Bits of single pages (n,) in ``words``, uint64 (W,), bool (n,)."""
    return (words[pages >> 6] >> (pages & 63).astype(np.uint64) & np.uint64(1)).astype(bool)


def ascending_within(pages: Int64s, first: int, end: int | None) -> Int64s:
    """Those of ascending pages (n,) that lie in [first, end), a copy."""
    if end is None:
        return pages[pages.searchsorted(first) :].copy()
    low, high = pages.searchsorted((first, end)).tolist()
    return pages[low:high].copy()


def choice(field: str, value: str, allowed: Mapping[str, Meaning]) -> Meaning:
    """What a value given by name means; WorkbenchError naming the field and what is allowed."""
    if value not in allowed:
        raise WorkbenchError(f"{field}: {value!r} is not one of {', '.join(allowed)}")
    return allowed[value]


def mapping_share(series: Int64s, largest: str = "1 GiB") -> npt.NDArray[np.float64]:
    """Shares float64 (rows, 3) of present memory by largest mapping possible, from counters int64 (rows, counters).

    ``largest``: what the kind of guest allows (:data:`workbench.tracking.confidential.LARGEST_LEAF`).
    """
    present = np.maximum(series[:, folio.N_PRESENT], 1)
    mapped_1g, mapped_2m = leaves(series[:, folio.N_MAPPED_1G], series[:, folio.N_MAPPED_2M], largest)
    by_1g = mapped_1g * float(folio.PAGES_1G) / present
    by_2m = mapped_2m * float(folio.PAGES_2M) / present
    return np.stack((np.where(series[:, folio.N_PRESENT] > 0, 1 - by_1g - by_2m, 0.0), by_2m, by_1g), axis=1)

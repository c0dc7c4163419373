"""A guest_memfd file without struct page for its private ranges: :mod:`workbench.kernels.light_map` for one file.

The seed mail's proposal, not in Linux. A conversion moves pages between the light offset -> pfn map and the page cache;
nothing is split or merged. Frames come from :class:`workbench.tracking.host_memory.RangeMemory`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from workbench.kernels import light_map, light_rows
from workbench.kernels import placement as placing
from workbench.kernels.faults import Faults, Nodes
from workbench.kernels.folios import run as folio
from workbench.kernels.maps import maple
from workbench.kernels.runs import Runs
from workbench.kernels.whole import Whole
from workbench.tracking.host_memory import RangeMemory
from workbench.tracking.tracked_file import (
    DONE,
    GENERATIONS,
    Blocks,
    Int64s,
    Outcome,
    StreamResult,
    TrackedFile,
    ascending_within,
    choice,
)
from workbench.units import PAGE_SIZE

GROUPS = {"256 KiB": light_map.GROUP_256K, "128 MiB": light_map.GROUP_128M}
_BOTH = np.array([name in light_map.COUNTERS for name in folio.COUNTERS], np.int64)
_HERE = np.array(
    [light_map.COUNTERS.index(name) if name in light_map.COUNTERS else 0 for name in folio.COUNTERS], np.int64
)
"""Of each counter of folios whether the map has it, and where."""
_FEW = 16
"""Pages that are looked up one by one sooner than among all pins."""


class LightFile(TrackedFile):
    """The units of one guest_memfd file.

    Parameters
    ----------
    size : bytes, a multiple of ``page_size``
    page_size : "4 KiB", "2 MiB" or "1 GiB": the unit in which memory is allocated
    memory : what units and struct pages come from; unlimited memory on one node if left out
    generation : "B" (a conversion is all or nothing) or "C" (unit by unit)
    group : pages whose struct pages come and go together: "256 KiB" (one vmemmap page) or "128 MiB"
    shared : the whole file starts shared (INIT_SHARED)
    confidential : kind of guest, "none", "snp" or "tdx": it limits second-stage mappings
    """

    state: light_map.LightState

    def __init__(
        self,
        size: int,
        page_size: str = "2 MiB",
        memory: RangeMemory | None = None,
        *,
        generation: str = "C",
        group: str = "256 KiB",
        shared: bool = False,
        confidential: str = "none",
    ) -> None:
        super().__init__(size, page_size, confidential)
        self.memory = RangeMemory.make() if memory is None else memory
        self.nodes, self.cpus = len(self.memory.count), 1
        options = np.zeros(light_map.OPTIONS, np.int64)
        options[light_map.PAGES], options[light_map.UNIT_ORDER] = size // PAGE_SIZE, self.order
        options[light_map.GROUP_SHIFT] = choice("group", group, GROUPS)
        options[light_map.GENERATION] = choice("generation", generation, GENERATIONS)
        m = self.memory
        self.state = light_map.new_state(options, m.start, m.end, m.count, m.vmemmap, m.order, m.given_back)
        if shared:
            self.convert(0, size, "shared")
            self.state.counts[:] = np.where(
                np.arange(len(light_map.COUNTERS)) == light_map.N_SHARED, size // PAGE_SIZE, 0
            )

    # --------------------------------------------------------------------------------------------- operations

    def _refresh(self) -> None:
        """Another file may have made the host's table of free ranges longer."""
        if self.state.start is self.memory.start:
            return
        self.state = self.state._replace(start=self.memory.start, end=self.memory.end)

    def _grow(self) -> None:
        self.state = light_map.grown(self.state)
        self.memory.start, self.memory.end = self.state.start, self.state.end

    def _carry_out_one(self, op: int, offset: int, length: int, argument: int, node: int, cpu: int) -> Outcome:
        """No array is made for one row."""
        self._refresh()
        error = int(light_map.one.direct(self.state, op, offset, length, argument, node))
        while error == folio.NEEDS_ROOM:
            self._grow()
            error = int(light_map.one.direct(self.state, op, offset, length, argument, node))
        if not error:
            return DONE
        page = int(self.state.scratch[light_map.NAMED])
        return Outcome(error, page * PAGE_SIZE if page >= 0 else None)

    def carry_out(self, stream: Int64s, every: int = 0) -> StreamResult:
        self._refresh()
        count = len(stream)
        errors, offsets = np.zeros(count, np.int32), np.zeros(count, np.int64)
        series = np.zeros((count // every if every else 0, len(folio.COUNTERS) + self.nodes), np.int64)
        done = 0
        while done < count:
            end = min(count, (done // every + 1) * every) if every else count
            done = int(light_map.run.direct(self.state, stream[:end], errors[:end], offsets[:end], done))
            if done < end:
                if errors[done] != folio.NEEDS_ROOM:
                    break
                self._grow()
            elif every and done % every == 0:
                series[done // every - 1] = [*self.counts, *self.vmemmap_taken]
        return StreamResult(errors, offsets, series)

    def carry_out_rows(
        self,
        given: light_rows.Rows,
        tables: tuple[
            Runs,
            Runs,
            Whole,
            Runs,
            Runs,
            Faults,
            Nodes,
            placing.Requests,
            placing.Interleaving,
            placing.Zones,
            placing.Output,
        ],
    ) -> int:
        """Calls one by one, and what follows from each (:func:`workbench.kernels.light_rows.run`), until some table is too short
        that is not the file's own."""
        self._refresh()
        status = light_rows.LACKS_STATE
        while status == light_rows.LACKS_STATE:
            status = int(light_rows.run.direct(given, self.state, *tables))
            if status == light_rows.LACKS_STATE:
                self._grow()
        return status

    def insert(self, folios: Int64s, nodes: Int64s) -> int:
        """Back units on their nodes from the ranges there; ENOMEM, for want of struct pages, ends it."""
        if len(folios) == 1:  # as most calls have it
            unit, node = int(folios[0]), int(nodes[0])
            absent = self.state.unit_pfn[unit] < 0
            done = not self._one(folio.INSERT, unit * (PAGE_SIZE << self.order), 0, node=node).errno
            if done and absent:
                self.memory.known[node] -= 1 << self.order
            return int(done)
        stream = np.zeros((len(folios), 6), np.int64)
        stream[:, folio.OP], stream[:, folio.OFFSET] = folio.INSERT, folios * (PAGE_SIZE << self.order)
        stream[:, folio.NODE] = nodes
        before = self.memory.free_pages
        errors = self.run_stream(stream).errors
        self.memory.known += self.memory.free_pages - before
        return int(np.argmax(errors != 0)) if errors.any() else len(folios)

    def release(self) -> None:
        """Units go back to their ranges, those with a pinned page when the last pin is dropped."""
        self._one(folio.RELEASE, 0, 0)

    def stay_taken(self, pages: Int64s) -> npt.NDArray[np.bool_]:
        """Which pages int64 (n, 2), each with its zone, that have just left a file of 4 KiB pages somebody holds, bool (n,).

        They are in ``memory.given_back`` once nobody does.
        """
        stays = np.zeros(len(pages), bool)
        light_map.stay_taken(self.state, np.ascontiguousarray(pages), stays)
        return stays

    def returned(self) -> Int64s:
        """Units by node that the ranges got since the last call, of any file."""
        now = self.memory.free_pages
        units = (now - self.memory.known) >> self.order
        self.memory.known = now
        return units

    # ----------------------------------------------------------------------------------------------- counting

    @property
    def counts(self) -> Int64s:
        """The counters that the two kernels share; those of split and merge stay 0, for nothing is."""
        return self.counts_of(self.state.counts)

    def count_into(self, row: Int64s) -> None:
        """Where files of folios have theirs."""
        s = self.state
        light_map.count.direct(s.counts, s.taken, s.freed, _HERE, _BOTH, row)

    @staticmethod
    def counts_of(own: Int64s) -> Int64s:
        """:attr:`counts` from the map's own counters, int64 (..., counters)."""
        counts: Int64s = own.take(_HERE, axis=-1) * _BOTH
        return counts

    def present(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Units [first, last) that are in the file."""
        return self.state.unit_pfn[first:last] >= 0

    def blocks(self, first: int, end: int) -> Blocks:
        """Units of 2 MiB and 1 GiB lie together."""
        if self.order:
            return self.blocks_at(np.arange(first, end))
        state, blocks = self.state, end - first
        pages = np.zeros((2, blocks * folio.PAGES_2M), bool)
        last = min(end * folio.PAGES_2M, len(state.unit_pfn))
        pages[0, : last - first * folio.PAGES_2M] = state.unit_pfn[first * folio.PAGES_2M : last] >= 0
        pages[1, : last - first * folio.PAGES_2M] = ~self.is_shared(first * folio.PAGES_2M, last)
        present, private = (part.reshape(blocks, -1).sum(axis=1) for part in (pages[0], pages[0] & pages[1]))
        node = np.full(blocks, -1, np.int64)
        for block in np.flatnonzero(present).tolist():
            at = (first + block) * folio.PAGES_2M + int(np.argmax(pages[0].reshape(blocks, -1)[block]))
            node[block] = state.unit_node[at]
        nowhere = np.zeros(blocks, bool)
        return Blocks(present.astype(np.int64), private.astype(np.int64), node, nowhere, nowhere)

    def blocks_at(self, index: Int64s) -> Blocks:
        """See :meth:`blocks`."""
        if not self.order:
            return super().blocks_at(index)
        state = self.state
        unit = index >> (self.order - folio.ORDER_2M)
        there = state.unit_pfn[unit] >= 0
        present = np.where(there, folio.PAGES_2M, 0).astype(np.int64)
        private = np.where(there, folio.PAGES_2M - state.shared_2m[index], 0).astype(np.int64)
        node = np.where(there, state.unit_node[unit], -1).astype(np.int64)
        return Blocks(present, private, node, there, there)

    def look_at(self, watched: Whole, low: int, end: int) -> None:
        self._refresh()
        light_rows.look_at.direct(self.state, watched, low, end)

    def present_words(self, blocks: Int64s) -> npt.NDArray[np.uint64]:
        """See :meth:`blocks`."""
        if self.order:
            there = self.state.unit_pfn[blocks >> (self.order - folio.ORDER_2M)] >= 0
            return np.repeat(np.where(there, ~np.uint64(0), np.uint64(0)), 8)
        pages = (blocks[:, None] * folio.PAGES_2M + np.arange(folio.PAGES_2M)).ravel()
        there = (pages < len(self.state.unit_pfn)) & (
            self.state.unit_pfn[np.minimum(pages, len(self.state.unit_pfn) - 1)] >= 0
        )
        return np.packbits(there, bitorder="little").view("<u8").astype(np.uint64)

    @property
    def stays_whole(self) -> bool:
        """Units need no folios."""
        return True

    def _pins(self, left_file: bool) -> Int64s:
        rows = self.state.pins[: int(self.state.counts[light_map.N_PINS])]
        return np.unique(rows[(rows[:, light_map.PIN_PFN] >= 0) == left_file, light_map.PIN_PAGE])

    def pinned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Shared pages with references of either kind; private pages have nothing to refer to."""
        if end is not None and self._few(end - first):
            return np.array([page for page in range(first, end) if any(self._rows_of(page, False))], np.int64)
        return ascending_within(self._pins(False), first, end)

    def _few(self, pages: int) -> bool:
        """Whether so many pages are looked up one by one."""
        return not pages or (pages <= _FEW and self.state.pin_heads[0] != light_map.UNHASHED)

    def _rows_of(self, page: int, left_file: bool) -> Iterator[list[int]]:
        """Rows of pins on one page of the file, or on what was there and left it."""
        pins, heads = self.state.pins, self.state.pin_heads
        at = int(heads[page & (len(heads) - 1)])
        while at >= 0:
            row = pins[at].tolist()
            if row[light_map.PIN_PAGE] == page and (row[light_map.PIN_PFN] >= 0) == left_file:
                yield row
            at = row[light_map.PIN_NEXT]

    def withheld(self) -> Int64s:
        """Pages that left the file and are still pinned."""
        return self._pins(True)

    def references(self, pages: Int64s, left_file: bool) -> Int64s:
        """Nothing is pinned for a device."""
        out = np.zeros((len(pages), 2), np.int64)
        if self._few(len(pages)):
            for number, page in enumerate(pages.tolist()):
                for row in self._rows_of(page, left_file):
                    if row[light_map.PIN_KIND] == folio.LONG_TERM:
                        out[number, 0] += row[light_map.PIN_COUNT]
            return out
        rows = self.state.pins[: int(self.state.counts[light_map.N_PINS])]
        lasting = rows[:, light_map.PIN_KIND] == folio.LONG_TERM
        rows = rows[lasting & ((rows[:, light_map.PIN_PFN] >= 0) == left_file)]
        at = np.minimum(np.searchsorted(pages, rows[:, light_map.PIN_PAGE]), len(pages) - 1)
        here = pages[at] == rows[:, light_map.PIN_PAGE]
        np.add.at(out[:, 0], at[here], rows[here, light_map.PIN_COUNT])
        return out

    def poisoned(self, first: int = 0, end: int | None = None) -> Int64s:
        """Poisoned pages."""
        return ascending_within(self.state.poison[: int(self.state.counts[light_map.N_POISONED])], first, end)

    def extents(self) -> Int64s:
        """Extents of the private map as stored, int64 (n, 3): first page, pages, pfn."""
        found, path = np.zeros(3, np.int64), np.zeros((2, 32), np.int64)
        rows, index = [], 0
        while maple.find(self.state.nodes, self.state.top, index, found, path):
            rows.append((found[0], found[1] + 1 - found[0], found[2]))
            index = int(found[1]) + 1
        return np.array(rows, np.int64).reshape(-1, 3)

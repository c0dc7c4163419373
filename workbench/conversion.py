"""One guest_memfd file whose memory is converted in place between private and shared (proposals, not in Linux 7.3).

:class:`ConversionFile` wraps :mod:`kernels.folio` for one file: each method is one operation and returns what the call
would, ``(errno, offset the error names or None)``. :class:`HostMemory` is what files share: free memory that vmemmap
can be restored from, and pools of huge pages. :func:`run` carries out a whole stream in one kernel call and returns a
Dataset along its steps. Nothing here depends on the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from kernels import folio
from workbench import costs, results, struct_pages
from workbench.errors import WorkbenchError
from workbench.units import PAGE_SIZE, parse_bytes

Int64s = npt.NDArray[np.int64]
GENERATIONS = {"B": folio.GENERATION_B, "C": folio.GENERATION_C}
SPLITS = {"one-step": folio.ONE_STEP, "two-stage": folio.TWO_STAGE, "two-stage-restored": folio.TWO_STAGE_FULL}
SPLIT_ON = {"conversion": folio.AT_CONVERSION, "host_fault": folio.AT_HOST_FAULT}
MERGES = {"eager": folio.EAGER, "lazy": folio.LAZY, "never": folio.NEVER}
KINDS = {"transient": folio.TRANSIENT, "long_term": folio.LONG_TERM}
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
}
LEVELS = ("4 KiB", "2 MiB", "1 GiB")
SIGBUS = folio.SIGBUS
UNLIMITED = 1 << 40


@dataclass
class HostMemory:
    """Memory of the host that conversions draw on; arrays are shared with the files made on it.

    vmemmap : int64 (nodes,), free 4 KiB pages
    order : int64 (nodes, nodes), nodes tried for memory wanted on each node
    pool : int64 (nodes, 2), free 2 MiB and 1 GiB pages
    """

    vmemmap: Int64s
    order: Int64s
    pool: Int64s

    def __post_init__(self) -> None:
        nodes = len(self.vmemmap)
        self.pool_full = np.zeros((nodes, 2), np.int64)
        self.pool_extra = np.zeros((nodes, 2, nodes), np.int64)
        self.reserved = np.zeros(2, np.int64)

    @classmethod
    def make(
        cls,
        nodes: int = 1,
        *,
        vmemmap_pages: int | Sequence[int] = UNLIMITED,
        pool_2m: int | Sequence[int] = UNLIMITED,
        pool_1g: int | Sequence[int] = UNLIMITED,
        order: Int64s | None = None,
    ) -> HostMemory:
        """Host memory by plain numbers (one for all nodes, or one each); nodes spill to the next higher, then wrap."""
        if order is None:
            order = (np.arange(nodes)[:, None] + np.arange(nodes)) % nodes
        pool = np.empty((nodes, 2), np.int64)
        pool[:, 0], pool[:, 1] = pool_2m, pool_1g
        return cls(np.array(np.broadcast_to(vmemmap_pages, nodes), np.int64), np.asarray(order, np.int64), pool)

    def reserve(self, order: int, count: int) -> bool:
        """Reserve huge pages for a new file (mm/hugetlb.c: hugetlb_acct_memory); False: the pool is short, ENOMEM."""
        size = 0 if order == folio.ORDER_2M else 1
        if self.reserved[size] + count > self.pool[:, size].sum():
            return False
        self.reserved[size] += count
        return True


class Outcome(NamedTuple):
    """What a call returned: 0, an errno or SIGBUS, and the byte offset it names (None: none)."""

    errno: int
    offset: int | None


class StreamResult(NamedTuple):
    """Errors int32 (n,); byte offsets they name int64 (n,), -1 = none; int64 (rows, counters + nodes).

    The last columns of ``series`` are the vmemmap pages held by node.
    """

    errors: npt.NDArray[np.int32]
    offsets: Int64s
    series: Int64s


class ConversionFile:
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
    """

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
    ) -> None:
        order = _choice("page_size", page_size, struct_pages.ORDERS)
        if size <= 0 or size % (PAGE_SIZE << order):
            raise WorkbenchError(f"size: {size} bytes is not a positive multiple of {page_size}")
        self.size, self.page_size, self.order, self.hvo = size, page_size, order, hvo
        self.host = HostMemory.make() if host is None else host
        options = np.zeros(folio.OPTIONS, np.int64)
        options[folio.PAGES] = size // PAGE_SIZE
        options[folio.BACKING] = order
        options[folio.GENERATION] = _choice("generation", generation, GENERATIONS)
        options[folio.SPLITTING] = _choice("split", split, SPLITS)
        options[folio.SPLIT_AT] = _choice("split_on", split_on, SPLIT_ON)
        options[folio.MERGING] = _choice("merge", merge, MERGES)
        options[folio.HVO], options[folio.FALLBACK], options[folio.DRAIN] = hvo, fallback, drain_lru
        memory = self.host
        self.state = folio.new_state(
            options, memory.vmemmap, memory.order, memory.pool, memory.pool_full, memory.pool_extra, cpus
        )
        if shared:
            self.convert(0, size, "shared")
            self.state.counts[:] = np.where(np.arange(len(folio.COUNTERS)) == folio.N_SHARED, size // PAGE_SIZE, 0)

    # --------------------------------------------------------------------------------------------- operations

    def run_stream(self, stream: Int64s, every: int = 0) -> StreamResult:
        """Carry out a stream, int64 (n, 6) as :data:`kernels.folio.OP` ... CPU; counters after each ``every``."""
        if stream.ndim != 2 or stream.shape[1] != 6:
            raise WorkbenchError(f"stream: shape {stream.shape}; must be (operations, 6)")
        self._check_stream(stream)
        count = len(stream)
        errors, offsets = np.zeros(count, np.int32), np.zeros(count, np.int64)
        series = np.zeros((count // every if every else 0, len(folio.COUNTERS) + len(self.host.vmemmap)), np.int64)
        done = 0
        while done < count:
            done = int(folio.run(self.state, stream, errors, offsets, every, series, done))
            if done < count:
                self.state = folio.grown(self.state)
        return StreamResult(errors, offsets, series)

    def _check_stream(self, stream: Int64s) -> None:
        cpus, nodes = len(self.state.batch_length), len(self.host.vmemmap)
        for column, name, limit in ((folio.OP, "op", 9), (folio.NODE, "node", nodes), (folio.CPU, "cpu", cpus)):
            if len(stream) and not (stream[:, column].min() >= 0 and stream[:, column].max() < limit):
                raise WorkbenchError(f"stream: a value of column {name} is outside 0 to {limit - 1}")

    def _one(self, op: int, offset: int, length: int, argument: int = 0, node: int = 0, cpu: int = 0) -> Outcome:
        errors, offsets, _ = self.run_stream(np.array([[op, offset, length, argument, node, cpu]], np.int64))
        return Outcome(int(errors[0]), int(offsets[0]) if offsets[0] >= 0 else None)

    def convert(self, offset: int, length: int, to: str) -> Outcome:
        """KVM_GMEM_CONVERT_SHARED / _PRIVATE. EINVAL for a bad range, EAGAIN with the offset of a held page, ENOMEM."""
        if to not in ("private", "shared"):
            raise WorkbenchError(f"to: {to!r} is not private or shared")
        return self._one(folio.CONVERT, offset, length, int(to == "shared"))

    def pin(self, offset: int, length: int, kind: str = "long_term", node: int = 0, cpu: int = 0) -> Outcome:
        """References on each page: long-term through the host mapping (EFAULT where private), transient on any."""
        return self._one(folio.PIN, offset, length, _choice("kind", kind, KINDS), node, cpu)

    def unpin(self, offset: int, length: int, kind: str = "long_term") -> Outcome:
        """Drop them; EINVAL names the first page that has none."""
        return self._one(folio.UNPIN, offset, length, _choice("kind", kind, KINDS))

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

    def insert(self, folios: Int64s, nodes: Int64s, cpu: int = 0) -> int:
        """Put folios of the file's size, already taken from their nodes elsewhere, at these folio indices.

        Returns the number inserted: less than all when a fresh folio under a shared page could not be split for want
        of vmemmap (ENOMEM); that one and the rest are not in the file.
        """
        return int(folio.insert_many(self.state, folios, nodes, cpu))

    # ----------------------------------------------------------------------------------------------- counting

    def counters(self) -> dict[str, int]:
        """All counters by name (:data:`kernels.folio.COUNTERS`)."""
        return dict(zip(folio.COUNTERS, self.state.counts.tolist(), strict=True))

    def count(self, name: str) -> int:
        """One counter."""
        return int(self.state.counts[folio.COUNTERS.index(name)])

    @property
    def held_vmemmap(self) -> Int64s:
        """int64 (nodes,), vmemmap pages held beyond one for each optimised folio."""
        state = self.state
        held = state.extra_1g.sum(axis=0, dtype=np.int64)
        return held + state.extra_2m.sum(axis=0, dtype=np.int64)

    @property
    def mapping_share(self) -> npt.NDArray[np.float64]:
        """Share of the present pages that can be mapped at 4 KiB, 2 MiB and 1 GiB."""
        return mapping_share(self.state.counts[None, :])[0]

    @property
    def shared_groups(self) -> int:
        """256 KiB groups with a shared page: the vmemmap pages of a design without struct pages for private memory."""
        return int(np.count_nonzero(self.state.shared))

    def is_shared(self, first: int = 0, end: int | None = None) -> npt.NDArray[np.bool_]:
        """State of pages [first, end): True = shared."""
        end = self.size // PAGE_SIZE if end is None else end
        words = self.state.shared[first >> 6 : -(-end >> 6)].astype("<u8").view(np.uint8)
        low = first & 63
        return np.unpackbits(words, bitorder="little")[low : low + end - first].astype(bool)

    def state_bytes(self) -> int:
        """Bytes of the private/shared bitmap and the counters together."""
        state = self.state
        arrays = (state.shared, state.shared_2m, state.shared_1g, state.level, state.whole_1g, state.full_2m)
        return sum(a.nbytes for a in (*arrays, state.full_1g, state.extra_2m, state.extra_1g, state.node))


def _choice(field: str, value: str, allowed: Mapping[str, int]) -> int:
    if value not in allowed:
        raise WorkbenchError(f"{field}: {value!r} is not one of {', '.join(allowed)}")
    return allowed[value]


def mapping_share(series: Int64s) -> npt.NDArray[np.float64]:
    """Shares float64 (rows, 3) of present memory by largest mapping possible, from counters int64 (rows, counters)."""
    present = np.maximum(series[:, folio.N_PRESENT], 1)
    by_1g = series[:, folio.N_MAPPED_1G] * float(folio.PAGES_1G) / present
    by_2m = series[:, folio.N_MAPPED_2M] * float(folio.PAGES_2M) / present
    return np.stack((np.where(series[:, folio.N_PRESENT] > 0, 1 - by_1g - by_2m, 0.0), by_2m, by_1g), axis=1)


# ------------------------------------------------------------------------------------------------------ streams


def stream_of(operations: Sequence[tuple[str, int, int, int]]) -> Int64s:
    """A stream from (operation, offset, length, argument) tuples; see :data:`OPERATIONS`."""
    rows = [
        (_choice("op", op, OPERATIONS), offset, length, argument, 0, 0) for op, offset, length, argument in operations
    ]
    return np.array(rows, np.int64).reshape(-1, 6)


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


def read_trace(path: str | Path) -> Int64s:
    """A stream from a CSV or Parquet file.

    Columns: ``op`` (convert, pin, unpin, host_fault, guest_fault, punch_hole, hwpoison, merge, lru_drain; ``convert`` if
    the column is missing), ``offset`` and ``length`` in bytes or texts such as "2 MiB", ``to`` (private or shared, for
    convert and guest_fault) or ``kind`` (transient or long_term, for pin and unpin), optionally ``node`` and ``cpu``.
    """
    import pandas as pd

    source = Path(path)
    try:
        frame = pd.read_parquet(source) if source.suffix == ".parquet" else pd.read_csv(source)
    except (OSError, ValueError, ImportError) as error:
        raise WorkbenchError(f"trace: {source.name} cannot be read: {str(error).splitlines()[0]}") from None
    for column in ("offset", "length"):
        if column not in frame:
            raise WorkbenchError(f"trace: {source.name} has no column {column!r}")
        if not pd.api.types.is_integer_dtype(frame[column]):
            frame[column] = [parse_bytes(_size(value), f"trace.{column}") for value in frame[column]]
    stream = np.zeros((len(frame), 6), np.int64)
    names = frame["op"] if "op" in frame else pd.Series(["convert"] * len(frame))
    stream[:, folio.OP] = [_choice("trace.op", str(name), OPERATIONS) for name in names]
    stream[:, folio.OFFSET], stream[:, folio.LENGTH] = frame["offset"], frame["length"]
    missing = [None] * len(frame)
    directions, kinds = frame.get("to", missing), frame.get("kind", missing)
    for row, (name, to, kind) in enumerate(zip(names, directions, kinds, strict=True)):
        if name == "convert":
            stream[row, folio.ARGUMENT] = _choice("trace.to", str(to), {"private": 0, "shared": 1})
        elif name == "guest_fault":
            stream[row, folio.ARGUMENT] = _choice("trace.to", str(to), {"private": 1, "shared": 0})
        elif name in ("pin", "unpin"):
            stream[row, folio.ARGUMENT] = _choice("trace.kind", str(kind), KINDS)
    for column, name in ((folio.NODE, "node"), (folio.CPU, "cpu")):
        if name in frame:
            stream[:, column] = frame[name]
    return stream


def _size(value: object) -> int | str:
    return int(value) if isinstance(value, (int, float, np.integer)) else str(value)


# ------------------------------------------------------------------------------------------------------- Dataset

PARTS = ("conversion", "split and merge", "invalidation", "zeroing")
_PARAMETERS = ("conversion_fixed", "split_merge_per_page", "invalidation", "clear_page", "cpu_frequency")


def cycles(series: Int64s, samples: int = 1, seed: int = 0, *, two_stage: bool = False) -> npt.NDArray[np.float64]:
    """Modelled cycles so far by part, float64 (samples, rows, parts); sample 0 takes the parameters as given.

    Every conversion costs ``conversion_fixed``; every folio that a split makes or a merge takes up
    ``split_merge_per_page``, whatever the size of the whole: 262144 for 1 GiB, 512 for 2 MiB and (``two_stage``, where no
    measurement exists) 512 for 1 GiB into 2 MiB; every invalidation ``invalidation``; every page zeroed by a punch
    ``clear_page``.
    """
    draws = costs.sample(_PARAMETERS, samples, seed)
    pieces = folio.BLOCKS_1G if two_stage else folio.PAGES_1G
    pages = pieces * (series[:, folio.N_SPLITS_1G] + series[:, folio.N_MERGES_1G])
    pages = pages + folio.PAGES_2M * (series[:, folio.N_SPLITS_2M] + series[:, folio.N_MERGES_2M])
    parts = (
        np.outer(draws["conversion_fixed"], series[:, folio.N_CONVERSIONS]),
        np.outer(draws["split_merge_per_page"], pages),
        np.outer(draws["invalidation"], series[:, folio.N_INVALIDATIONS]),
        np.outer(draws["clear_page"] * draws["cpu_frequency"], series[:, folio.N_ZEROED]),
    )
    return np.stack(parts, axis=-1)


EVENT_COUNTERS = (
    ("splits_1g", "folios", "1 GiB folios split"),
    ("splits_2m", "folios", "2 MiB folios split"),
    ("merges_1g", "folios", "1 GiB folios merged"),
    ("merges_2m", "folios", "2 MiB folios merged"),
    ("mapped_1g", "mappings", "1 GiB mappings possible now"),
    ("mapped_2m", "mappings", "2 MiB mappings possible now"),
    ("lost_1g", "mappings", "1 GiB mappings lost"),
    ("lost_2m", "mappings", "2 MiB mappings lost"),
    ("regained_1g", "mappings", "1 GiB mappings regained"),
    ("regained_2m", "mappings", "2 MiB mappings regained"),
    ("conversions", "calls", "conversions asked for"),
    ("failed_conversions", "calls", "conversions refused"),
    ("rollbacks", "calls", "conversions rolled back"),
    ("converted_pages", "4 KiB pages", "pages converted"),
    ("shared_pages", "4 KiB pages", "pages shared now"),
    ("invalidations", "calls", "invalidations sent to KVM and the IOMMU"),
    ("invalidated_bytes", "B", "memory named by invalidations"),
    ("vmemmap_taken", "4 KiB pages", "vmemmap pages restored by splits"),
    ("vmemmap_freed", "4 KiB pages", "vmemmap pages given back by merges"),
    ("spins", "references", "transient references waited for"),
)
"""Counters that a Dataset keeps along ``event``: name, unit, long name. Those not "now" are sums since the start."""


def variables(
    series: Int64s, samples: int = 1, seed: int = 0, *, two_stage: bool = False
) -> dict[str, tuple[tuple[str, ...], object]]:
    """Variables of a result along ``event``, from counters and vmemmap pages by node (:class:`StreamResult`)."""
    out: dict[str, tuple[tuple[str, ...], object]] = {}
    for counter, _units, _long_name in EVENT_COUNTERS:
        out[counter] = (("event",), series[:, folio.COUNTERS.index(counter)])
    out["mapping_share"] = (("event", "level"), mapping_share(series))
    out["stage2_tables"] = (
        ("event",),
        struct_pages.stage2_table_pages(
            series[:, folio.N_PRESENT], series[:, folio.N_MAPPED_1G], series[:, folio.N_MAPPED_2M]
        ),
    )
    out["vmemmap_pages"] = (("event", "node"), series[:, len(folio.COUNTERS) :])
    modelled = cycles(series, samples, seed, two_stage=two_stage)
    dims = ("sample", "event", "part") if samples > 1 else ("event", "part")
    out["conversion_cycles"] = (dims, modelled if samples > 1 else modelled[0])
    return out


def run(
    file: ConversionFile, stream: Int64s, every: int = 1, *, samples: int = 1, seed: int = 0, name: str = "stream"
) -> xr.Dataset:
    """Carry out a stream and return a Dataset along ``event``, one row after each ``every`` operations.

    Variables: the counters of :data:`EVENT_COUNTERS`, ``mapping_share`` (event, level), ``stage2_tables`` (event),
    ``vmemmap_pages`` (event, node), modelled ``conversion_cycles`` ([sample,] event, part) and, for each operation of
    the stream, ``operation_errno`` (operation).
    """
    result = file.run_stream(stream, every)
    data = variables(result.series, samples, seed, two_stage=file.state.options[folio.SPLITTING] != folio.ONE_STEP)
    data["operation_errno"] = (("operation",), result.errors)
    coordinates = {
        "event": np.arange(1, len(result.series) + 1) * every,
        "level": list(LEVELS),
        "part": list(PARTS),
        "node": np.arange(len(file.host.vmemmap)),
    }
    dataset = results.annotate(xr.Dataset(data, coordinates))
    dataset.attrs.update(scenario=name, page_size=file.page_size, guest_bytes=file.size)
    return dataset


def _declare() -> None:
    declare, counted = results.declare, "counted"
    for counter, units, long_name in EVENT_COUNTERS:
        declare(counter, ("event",), units, long_name, counted)
    declare("mapping_share", ("event", "level"), "1", "share of present memory by largest mapping possible", counted)
    declare("stage2_tables", ("event",), "4 KiB pages", "second-stage tables, mapped as large as possible", counted)
    declare("vmemmap_pages", ("event", "node"), "4 KiB pages", "vmemmap pages held by splits", counted)
    declare("operation_errno", ("operation",), "1", "errno (-7: SIGBUS)", counted)
    source = f"{costs.ROTH_2025}; invalidation and zeroing: workbench/costs.py"
    declare("conversion_cycles", ("event", "part"), "cycles", "time spent by conversions so far", "modelled", source)


_declare()

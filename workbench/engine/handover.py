"""Kexec handover of private memory and its policy: written to real bytes, read back, the same map and policies again.

Two formats of one file, both with a digest over everything:

``kho``
    handover as Linux 7.3 has it for memfds (``mm/memfd_luo.c``, ``kernel/liveupdate/kexec_handover.c``): a record of
    16 bytes per folio ``{pfn:52, flags:12, index:64}``, a radix tree of 4 KiB nodes with one bit per preserved block,
    chunk pages that list the record array. It needs struct pages: the next kernel finds each block by its head page.
``pfn-ranges``
    what the light map allows: 24 bytes per extent ``{index, pages, pfn}``.

Linux does not hand over the NUMA policy; here both formats carry it, 8-byte header words and one record per range, and
the sizes say so separately (``policy``). What cannot be preserved is refused with a reason and nothing is written.
A file that is corrupted or truncated is refused and nothing is restored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from workbench.errnos import EHWPOISON
from workbench.errors import WorkbenchError
from workbench.files import whole_file
from workbench.kernels import kho
from workbench.units import PAGE_SIZE

MAGIC = b"GMEMKHO1"
FORMATS = ("kho", "pfn-ranges")
Format = Literal["kho", "pfn-ranges"]
FLAG_UPTODATE = 1
MAX_FILE = 1 << 36
_HEADER = struct.Struct("<8s4sIQQQQQ")
"""Magic, format, flags of the file, pages, extents or records, tree bytes, policy bytes, body bytes."""
_DIGEST = 32
KNOWN_FLAGS = 1 | 2
"""GUEST_MEMFD_FLAG_MMAP and INIT_SHARED: what the preservation series accepts."""


class CannotPreserve(WorkbenchError):
    """Something about the file cannot be handed over; ``errno`` is what the preserve call returns."""

    def __init__(self, reason: str, error: int = errno.EOPNOTSUPP) -> None:
        super().__init__(f"kexec: {reason}")
        self.errno = error


@dataclass(frozen=True)
class PolicyRange:
    """A shared-policy range of the file: pages ``start .. end``, mode and its flags, node ids, home node (-1: none).

    ``user_nodes``: what the caller of mbind() gave, kept by the static and relative flags only.
    """

    start: int
    end: int
    mode: int
    flags: int
    nodes: tuple[int, ...]
    home_node: int = -1
    user_nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Preserved:
    """What a kernel hands to the next: one file's private memory and policy.

    ``extents`` is int64 (n, 4), ascending: first page, pages, pfn, order of the folios it consists of.
    """

    pages: int
    flags: int
    extents: np.ndarray = field(repr=False)
    policy: tuple[PolicyRange, ...] = ()
    shared: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64), repr=False)
    """Intervals int64 (m, 2) of the file's pages that are shared."""

    def pfn_of(self, index: np.ndarray) -> np.ndarray:
        """Pfns of page indices, -1 where nothing is present."""
        index = np.asarray(index, np.int64)
        rows = np.searchsorted(self.extents[:, 0], index, side="right") - 1
        out = np.full(index.shape, -1, np.int64)
        valid = rows >= 0
        extent = self.extents[rows[valid]]
        within = index[valid] - extent[:, 0]
        out[valid] = np.where(within < extent[:, 1], extent[:, 2] + within, -1)
        return out

    def same_as(self, other: Preserved) -> bool:
        """Same offset -> pfn map page for page, same policies, same state."""
        return (
            self.pages == other.pages
            and self.flags == other.flags
            and self.policy == other.policy
            and np.array_equal(_maximal(self.extents), _maximal(other.extents))
            and np.array_equal(self.shared, other.shared)
        )


def check_preservable(
    state: Preserved,
    *,
    pinned: Iterable[int] = (),
    poisoned: Iterable[int] = (),
    mapped_by_device: Iterable[int] = (),
    scratch: Sequence[tuple[int, int]] = (),
    confidential: str = "none",
    format: Format = "kho",
    huge: bool = False,
) -> None:
    """Raise :class:`CannotPreserve` with the reason if the file cannot be handed over.

    ``pinned``, ``poisoned``, ``mapped_by_device`` are page indices; ``scratch`` are pfn ranges (first, end).
    """
    if state.flags & ~KNOWN_FLAGS:
        raise CannotPreserve(f"file flags {state.flags:#x}; only MMAP and INIT_SHARED files can be preserved")
    for index in sorted(poisoned):
        raise CannotPreserve(f"page {index} is poisoned; it must not be handed to the next kernel", EHWPOISON)
    for index in sorted(pinned):
        raise CannotPreserve(f"page {index} is pinned by another user, whose reference would not survive", errno.EBUSY)
    for index in sorted(mapped_by_device):
        raise CannotPreserve(f"page {index} is mapped by a device; unmap it or hand the device over too", errno.EBUSY)
    for first, end in scratch:
        inside = (state.extents[:, 2] < end) & (state.extents[:, 2] + state.extents[:, 1] > first)
        if inside.any():
            row = state.extents[np.flatnonzero(inside)[0]]
            raise CannotPreserve(f"page {int(row[0])} lies in scratch memory [{first}, {end})", errno.EINVAL)
    if huge and format == "kho":
        raise CannotPreserve("the preservation series handles files of 4 KiB folios; this one has huge folios")
    if confidential == "tdx":
        raise CannotPreserve("private memory of a TD belongs to the TDX module, which does not survive kexec")
    limit = state.extents[:, 2] + state.extents[:, 1]
    if len(limit) and int(limit.max()) >= 1 << 52:
        raise CannotPreserve("a pfn does not fit the record's 52 bits", errno.ERANGE)


def sizes(state: Preserved, format: Format) -> dict[str, int]:
    """Bytes of each part of the metadata, as Linux would keep it in memory, and of the policy."""
    policy = len(_pack_policy(state.policy))
    if format == "pfn-ranges":
        return {"records": 24 * len(_maximal(state.extents)), "chunks": 0, "tree": 0, "policy": policy}
    if format != "kho":
        raise WorkbenchError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    folios = _folio_count(state)
    array_pages = -(-folios * kho.RECORD_BYTES // kho.NODE_BYTES)
    parts = kho.folio_scheme_bytes(folios, _tree_nodes(state))
    return {**parts, "array_pages": array_pages, "policy": policy}


def _folio_count(state: Preserved) -> int:
    return int((state.extents[:, 1] >> state.extents[:, 3]).sum()) if len(state.extents) else 0


def _tree_nodes(state: Preserved) -> int:
    """Nodes of the radix tree, from intervals of keys: distinct prefixes at each level."""
    order = state.extents[:, 3]
    low = (np.int64(1) << (52 - order)) | (state.extents[:, 2] >> order)
    high = low + (state.extents[:, 1] >> order) - 1
    by_key = np.argsort(low)
    low, high = low[by_key], high[by_key]
    if not len(low):
        return 1
    total = 0
    for level in range(kho.TABLE_LEVELS + 1):
        shift = kho.LEAF_SHIFT + kho.TABLE_SHIFT * level
        first, last = low >> shift, high >> shift
        seen = np.concatenate(([-1], np.maximum.accumulate(last)[:-1]))
        total += int(np.maximum(0, last - np.maximum(first, seen + 1) + 1).sum())
    return total


def _keys(state: Preserved) -> np.ndarray:
    """One key per folio, ascending. A folio is aligned and lies on one node, so it is one block."""
    first, pages, pfn, order = state.extents.T
    inside = (np.int64(1) << order) - 1
    if (crooked := np.flatnonzero((pfn & inside) | (pages & inside))).size:
        at = int(crooked[0])
        raise CannotPreserve(
            f"page {int(first[at])}: pfn {int(pfn[at])} is not aligned to its order {int(order[at])}", errno.EINVAL
        )
    row, step = _each_folio(state)
    keys: np.ndarray = np.sort(((pfn >> order)[row] + step) | (np.int64(1) << (52 - order))[row])
    return keys


def _each_folio(state: Preserved) -> tuple[np.ndarray, np.ndarray]:
    """The extent that each folio is in, and its place there: int64 (folios,) each."""
    count = state.extents[:, 1] >> state.extents[:, 3]
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)


def _maximal(extents: np.ndarray) -> np.ndarray:
    """Extents with contiguous neighbours joined, int64 (n, 3)."""
    if not len(extents):
        return np.empty((0, 3), np.int64)
    joins = (extents[1:, 0] == extents[:-1, 0] + extents[:-1, 1]) & (
        extents[1:, 2] == extents[:-1, 2] + extents[:-1, 1]
    )
    first = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    last = np.concatenate((first[1:], [len(extents)])) - 1
    pages = extents[last, 0] + extents[last, 1] - extents[first, 0]
    return np.stack((extents[first, 0], pages, extents[first, 2]), axis=1)


# --------------------------------------------------------------------------------------------------------- writing


_POLICY = struct.Struct("<QQHHiHH")
"""Start, end, mode, flags, home node, bytes of the nodemask, bytes of the user's nodemask."""


def _pack_policy(policy: Sequence[PolicyRange]) -> bytes:
    out = bytearray()
    for r in policy:
        nodes, user_nodes = _mask_words(r.nodes), _mask_words(r.user_nodes)
        out += _POLICY.pack(r.start, r.end, r.mode, r.flags, r.home_node, len(nodes), len(user_nodes))
        out += nodes + user_nodes
    return bytes(out)


def _mask_words(nodes: Sequence[int]) -> bytes:
    """A nodemask in as many 64-bit words as it needs."""
    mask = sum(1 << node for node in set(nodes))
    return mask.to_bytes(-(-mask.bit_length() // 64) * 8, "little")


def _unpack_policy(data: bytes) -> tuple[PolicyRange, ...]:
    ranges = []
    at = 0
    while at < len(data):
        start, end, mode, flags, home, length, user_length = _POLICY.unpack_from(data, at)
        at += _POLICY.size
        masks = []
        for size in (length, user_length):
            mask = int.from_bytes(data[at : at + size], "little")
            masks.append(tuple(node for node in range(mask.bit_length()) if mask >> node & 1))
            at += size
        ranges.append(PolicyRange(start, end, mode, flags, masks[0], home, masks[1]))
    return tuple(ranges)


def _tree_bytes(keys: np.ndarray) -> bytes:
    """Pages of the radix tree: leaf bitmaps, then tables of 8-byte entries (number of the page below, +1), root last."""
    prefixes, first = np.unique(keys >> kho.LEAF_SHIFT, return_index=True)
    pages: list[bytes] = []
    numbers: dict[int, int] = {}
    for prefix, inside in zip(prefixes.tolist(), np.split(keys, first[1:]), strict=False):
        bits = np.zeros(1 << kho.LEAF_SHIFT, np.uint8)
        bits[inside & ((1 << kho.LEAF_SHIFT) - 1)] = 1
        numbers[prefix] = len(pages) + 1
        pages.append(np.packbits(bits, bitorder="little").tobytes())
    for _ in range(kho.TABLE_LEVELS):
        tables: dict[int, np.ndarray] = {}
        for prefix, number in numbers.items():
            table = tables.setdefault(prefix >> kho.TABLE_SHIFT, np.zeros(1 << kho.TABLE_SHIFT, "<u8"))
            table[prefix & ((1 << kho.TABLE_SHIFT) - 1)] = number
        numbers = {}
        for prefix in sorted(tables):
            numbers[prefix] = len(pages) + 1
            pages.append(tables[prefix].tobytes())
    return b"".join(pages)


def _tree_keys(data: bytes) -> np.ndarray:
    """Keys of a radix tree written by :func:`_tree_bytes`."""
    count = len(data) // kho.NODE_BYTES
    level = [(0, count)] if count else []
    for _ in range(kho.TABLE_LEVELS):
        below = []
        for prefix, number in level:
            table = np.frombuffer(data, "<u8", 512, (number - 1) * kho.NODE_BYTES)
            for entry in np.flatnonzero(table):
                child = int(table[entry])
                if child >= number or child < 1:
                    raise WorkbenchError(f"handover file: table {number} points to page {child}")
                below.append(((prefix << kho.TABLE_SHIFT) | int(entry), child))
        level = below
    keys = []
    for prefix, number in level:
        bits = np.unpackbits(
            np.frombuffer(data, np.uint8, kho.NODE_BYTES, (number - 1) * kho.NODE_BYTES), bitorder="little"
        )
        keys.append((prefix << kho.LEAF_SHIFT) + np.flatnonzero(bits))
    return np.concatenate(keys) if keys else np.empty(0, np.int64)


def serialise(state: Preserved, format: Format) -> bytes:
    """The file as bytes: header, records, tree, policy, shared ranges, SHA-256 over all of it."""
    if format not in FORMATS:
        raise WorkbenchError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    if format == "kho":
        first, _, pfn, order = state.extents.T
        row, place = _each_folio(state)
        step = place << order[row]
        records = np.empty((len(row), 2), "<u8")
        records[:, 0] = ((pfn[row] + step) << 12) | FLAG_UPTODATE
        records[:, 1] = first[row] + step
        body = records.tobytes()
        tree = _tree_bytes(_keys(state))
        count = len(records)
    else:
        extents = _maximal(state.extents)
        body = np.ascontiguousarray(extents, "<i8").tobytes()
        tree = b""
        count = len(extents)
    policy = _pack_policy(state.policy)
    shared = np.ascontiguousarray(state.shared, "<i8").tobytes()
    header = _HEADER.pack(
        MAGIC, {"kho": b"KHO ", "pfn-ranges": b"PFNR"}[format], state.flags, state.pages, count, len(tree), len(policy),
        len(shared),
    )  # fmt: skip
    content = header + body + tree + policy + shared
    return content + hashlib.sha256(content).digest()


def deserialise(data: bytes) -> Preserved:
    """Read a file back. Raises WorkbenchError, and restores nothing, if a byte of it is wrong or missing."""
    if len(data) < _HEADER.size + _DIGEST:
        raise WorkbenchError(f"handover file: {len(data)} bytes are too few; it is truncated")
    content, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise WorkbenchError("handover file: the digest does not match; it is corrupted or truncated")
    magic, kind, flags, pages, count, tree_size, policy_size, shared_size = _HEADER.unpack_from(content)
    if magic != MAGIC:
        raise WorkbenchError(f"handover file: magic {magic!r} is not {MAGIC!r}")
    at = _HEADER.size
    if kind == b"KHO ":
        body_size = count * kho.RECORD_BYTES
    elif kind == b"PFNR":
        body_size = count * 24
    else:
        raise WorkbenchError(f"handover file: format {kind!r} is not known")
    if at + body_size + tree_size + policy_size + shared_size != len(content):
        raise WorkbenchError("handover file: the parts do not add up to its size")
    if kind == b"PFNR":
        rows = np.frombuffer(content, "<i8", count * 3, at).reshape(-1, 3).astype(np.int64)
        extents = np.column_stack((rows, np.zeros(len(rows), np.int64)))
    else:
        records = np.frombuffer(content, "<u8", count * 2, at).reshape(-1, 2)
        keys = _tree_keys(content[at + body_size : at + body_size + tree_size])
        extents = _from_records(records, keys)
    at += body_size + tree_size
    policy = _unpack_policy(content[at : at + policy_size])
    shared = np.frombuffer(content, "<i8", shared_size // 8, at + policy_size).reshape(-1, 2).astype(np.int64)
    return Preserved(pages, flags, extents, policy, shared)


def _from_records(records: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Extents from folio records; the order of each folio is that of its key, as the next kernel learns it."""
    pfn = (records[:, 0] >> np.uint64(12)).astype(np.int64)
    index = records[:, 1].astype(np.int64)
    order = np.full(len(pfn), -1, np.int64)
    by_order: dict[int, np.ndarray] = {}
    for candidate in range(52):
        low, high = 1 << (52 - candidate), 2 << (52 - candidate)
        mine = keys[(keys >= low) & (keys < high)]
        if len(mine):
            by_order[candidate] = (mine ^ low) << candidate
    for candidate, blocks in by_order.items():
        position = np.minimum(np.searchsorted(blocks, pfn), len(blocks) - 1)
        order[blocks[position] == pfn] = candidate
    if (order < 0).any():
        raise WorkbenchError(
            f"handover file: pfn {int(pfn[np.flatnonzero(order < 0)[0]])} is not among the preserved blocks"
        )
    pages = np.int64(1) << order
    joins = (index[1:] == index[:-1] + pages[:-1]) & (pfn[1:] == pfn[:-1] + pages[:-1]) & (order[1:] == order[:-1])
    first = np.concatenate(([0], np.flatnonzero(~joins) + 1)) if len(pfn) else np.empty(0, np.int64)
    last = np.concatenate((first[1:], [len(pfn)])) - 1 if len(pfn) else first
    return np.stack((index[first], index[last] + pages[last] - index[first], pfn[first], order[first]), axis=1)


def preserve(path: str | os.PathLike[str], state: Preserved, format: Format = "pfn-ranges", **holders: object) -> int:
    """Write the handover file; returns its size. Refuses (:func:`check_preservable`) before a byte is written."""
    check_preservable(state, format=format, **holders)  # type: ignore[arg-type]
    data = serialise(state, format)
    with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data)


def restore(path: str | os.PathLike[str]) -> Preserved:
    """Read a handover file back, all of it or nothing."""
    source = Path(path)
    try:
        if source.stat().st_size > MAX_FILE:
            raise WorkbenchError(f"handover file: {source.name} is larger than {MAX_FILE} bytes")
        data = source.read_bytes()
    except OSError as error:
        raise WorkbenchError(f"handover file: {source.name}: {error.strerror}") from error
    return deserialise(data)


def nodes_of(state: Preserved, borders: Sequence[int]) -> np.ndarray:
    """Node index of each present page's extent: borders are the ascending first pfns of the nodes."""
    return np.searchsorted(np.asarray(borders, np.int64), state.extents[:, 2], side="right") - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m workbench.engine.handover FILE``: what the next kernel does first; prints what it restored as JSON."""
    names = list(sys.argv[1:] if arguments is None else arguments)
    if len(names) != 1:
        sys.stderr.write("usage: python -m workbench.engine.handover FILE\n")
        return 2
    try:
        state = restore(names[0])
    except WorkbenchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    extents = _maximal(state.extents)
    summary = {
        "pages": state.pages,
        "flags": state.flags,
        "bytes_restored": int(extents[:, 1].sum()) * PAGE_SIZE,
        "extents": len(extents),
        "map_digest": hashlib.sha256(np.ascontiguousarray(extents, "<i8").tobytes()).hexdigest(),
        "policy": [[r.start, r.end, r.mode, r.flags, list(r.nodes), r.home_node] for r in state.policy],
        "shared": state.shared.tolist(),
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

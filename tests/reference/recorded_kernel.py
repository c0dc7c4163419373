"""A kernel with in-place conversion, the slow way: it runs the recorder's operations and writes what a recording has.

Folios, states, pins and the second stage are :mod:`reference.folio`, one object per 4 KiB page; here are the calls around it:
descriptors, mappings of the host, policies page by page, pools with their reservations, and the state after every operation,
recounted from the pages. Written from the rules in ``datasets/recordings/conversion/README.md`` and of Linux 7.3; nothing of
:mod:`workbench.engine` is used. 1 GiB pages and a host without memory are not here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from reference.folio import PAGES_2M, SIGBUS, Block, Failure, File, Folio, Host
from reference.pagemap import xarray_nodes

HUGETLB, UPTODATE, LRU_FLAG, POISON, MAPPED, PINNED, OPTIMISED = 1, 2, 4, 16, 32, 64, 128
PIN_WEIGHT = 1024
PIPE_PAGES = 16
VMEMMAP = 20_000
Policy = tuple[str, tuple[int, ...]]


@dataclass
class Opened:
    """A file by its name: the pages, its descriptor and mapping, and the policy of each page."""

    file: File
    flags: int
    order: int
    mapping: bool = False
    slot: bool = False
    open: bool = True
    in_tables: set[int] = field(default_factory=set)
    policies: dict[int, Policy] = field(default_factory=dict)
    bytes: dict[int, int | None] = field(default_factory=dict)


@dataclass
class Pinned:
    name: str
    opened: Opened
    first: int
    count: int
    weight: int
    inside: set[int]


class RecordedKernel:
    """``pool``: huge pages of 2 MiB by node; ``distances`` decide whose memory comes next."""

    def __init__(self, generation: str, pool: list[int], distances: list[list[int]]) -> None:
        self.generation, self.nr = generation, pool
        nodes = range(len(pool))
        self.nearest = [sorted(nodes, key=lambda other: (distances[node][other], other)) for node in nodes]
        blocks = {(node, PAGES_2M): [Block(0, PAGES_2M, node) for _ in range(pool[node])] for node in nodes}
        self.host = Host([VMEMMAP] * len(pool), self.nearest, blocks)
        self.files: dict[str, Opened] = {}
        self.closed: list[Opened] = []
        self.pins: dict[str, Pinned] = {}
        self.cpu, self.task, self.previous = 0, ("default", ()), len(pool) - 1
        self.guest_code = False

    # ------------------------------------------------------------------------------------------- what is seen

    def state(self) -> dict[str, Any]:
        free = [len(self.host.pool[node, PAGES_2M]) for node in range(len(self.nr))]
        everything = [opened.file for opened in [*self.files.values(), *self.closed]]
        held = sum(sum(file.held_vmemmap().values()) for file in everything)
        held += sum(len(block.extra) for file in everything for block in file.left)
        held += sum(len(block.extra) for blocks in self.host.pool.values() for block in blocks)
        leaves = [sum(file.leaves(pages) for file in everything) for pages in (1, PAGES_2M)]
        pools = {"2048": {"resv": self.reserved(), "surplus": 0, "nr": self.nr, "free": free}}
        pools["1048576"] = {"resv": 0, "surplus": 0, "nr": [0] * len(self.nr), "free": [0] * len(self.nr)}
        return {
            "pools": pools,
            "vmemmap_pages": VMEMMAP + held,
            "kvm_pages": [leaves[0] + self.guest_code, leaves[1], 0],
            "free_pages": [0] * len(self.nr),
            "files": {name: self.file_state(opened) for name, opened in self.files.items() if opened.open},
        }

    def reserved(self) -> int:
        """A subpool lives until the last of its pages is back."""
        alive = [made for made in [*self.files.values(), *self.closed] if made.order]
        alive = [made for made in alive if not made.file.released or made.file.left]
        return sum(made.file.pages_total // PAGES_2M - len(self.blocks(made)) - len(made.file.left) for made in alive)

    def blocks(self, opened: Opened) -> list[Block]:
        found = {id(folio.block): folio.block for folio in opened.file.folios() if folio.block is not None}
        return list(found.values())

    def file_state(self, opened: Opened) -> dict[str, Any]:
        file = opened.file
        folios = sorted(file.folios(), key=lambda folio: folio.first)
        shared = [page.shared for page in file.pages]
        borders = [0, *(i for i in range(1, len(shared)) if shared[i] != shared[i - 1]), len(shared)]
        pairs = list(pairwise(borders))
        state = [[low, high - 1, "shared" if shared[low] else "private"] for low, high in pairs]
        return {
            "pages": sum(folio.pages for folio in folios),
            "xarray_nodes": xarray_nodes([(folio.first, folio.pages.bit_length() - 1) for folio in folios]),
            "folio_runs": len(folios),
            "state_ranges": len(state),
            "folios": [self.folio_state(opened, folio) for folio in folios],
            "state": state,
        }

    def folio_state(self, opened: Opened, folio: Folio) -> dict[str, int]:
        first, huge = folio.first, folio.pages > 1
        mapped = first in opened.in_tables and not huge
        pinned = sum(pin.weight for pin in self.pins.values() if pin.opened is opened and first in pin.inside)
        flags = UPTODATE * folio.uptodate + MAPPED * mapped + PINNED * (pinned >= PIN_WEIGHT)
        flags += HUGETLB + OPTIMISED * (not folio.block.restored) if huge else 0
        flags += LRU_FLAG if not opened.order else 0
        poisoned = first in opened.file.poisoned
        flags += POISON * poisoned
        node = folio.block.node if folio.block is not None else self.small_nodes[id(folio)]
        references = folio.pages + mapped + pinned + (poisoned and not opened.order)
        order = folio.pages.bit_length() - 1
        return {"first": first, "pfn": first, "order": order, "count": 1, "references": references,
                "flags": flags, "node": node}  # fmt: skip

    small_nodes: dict[int, int]

    # ------------------------------------------------------------------------------------------- placement

    def place(self, opened: Opened, index: int) -> None:
        """Take a folio for this page where the policy says; ENOMEM where it names nodes that have none."""
        if opened.file.pages[index].folio is not None:
            return
        old = opened.order and self.generation == "B"
        mode, nodes = self.task if old or index not in opened.policies else opened.policies[index]
        here, allowed = self.cpu, list(range(len(self.nr)))
        order = self.nearest[here]
        if mode == "bind":
            order = [node for node in order if node in nodes]
        elif mode == "preferred":
            order = self.nearest[nodes[0]]
        elif mode == "preferred_many":
            order = [node for node in order if node in nodes] + [node for node in order if node not in nodes]
        elif mode == "interleave":
            later = [node for node in allowed if node > self.previous and node in nodes]
            self.previous = later[0] if later else min(nodes)
            order = self.nearest[self.previous]
        for node in order:
            if not opened.order:
                opened.file.populate(index, node, self.cpu)
                self.small_nodes[id(opened.file.pages[index].folio)] = node
                self.kept.append(opened.file.pages[index].folio)
                return
            if any(0 not in block.poison for block in self.host.pool[node, PAGES_2M]):
                opened.file.populate(index, node, self.cpu)
                return
        raise Failure(errno.ENOMEM)

    # ------------------------------------------------------------------------------------------- operations

    def run(self, lines: list[str]) -> Iterator[dict[str, Any]]:
        """Each operation as a recording has it."""
        self.small_nodes, self.kept = {}, []
        for line in lines:
            words = line.split()
            call: Callable[..., dict[str, Any]] = getattr(self, f"_{words[0]}")
            answer = call(*words[1:])
            for opened in [*self.files.values(), *self.closed]:
                opened.file.lru_drain()  # this host's batches are drained at every conversion
            yield {"op": line, **answer, "after": self.state()}

    def _create(self, name: str, size: str, flags: str, order: str = "order=0") -> dict[str, Any]:
        length, word, shift = (int(text.split("=")[1]) for text in (size, flags, order))
        pages = length // 4096
        if length <= 0 or length % (4096 << shift) or (shift and word & 2):
            return _refused(errno.EINVAL)
        free = sum(len(self.host.pool[node, PAGES_2M]) for node in range(len(self.nr)))
        if shift and pages // PAGES_2M > free - self.reserved():
            return _refused(errno.ENOMEM)
        file = File(pages, 1 << shift, self.generation if shift else "C", self.host, drain=True, cpus=len(self.nr))
        for page in file.pages:
            page.shared = bool(word & 2)
        self.files[name] = Opened(file, word, shift)
        return _done()

    def _map(self, name: str) -> dict[str, Any]:
        if not self.files[name].flags & 1:
            return _refused(errno.ENODEV)
        self.files[name].mapping = True
        return _done()

    def _unmap(self, name: str) -> dict[str, Any]:
        opened = self.files[name]
        opened.mapping, opened.in_tables = False, set()
        return _done()

    def _close(self, name: str) -> dict[str, Any]:
        opened = self.files.pop(name)
        opened.open = False
        opened.file.release()
        self.closed.append(opened)
        return _done()

    def _cpu(self, number: str) -> dict[str, Any]:
        self.cpu = int(number)
        return _done()

    def _setpol(self, mode: str, nodes: str = "") -> dict[str, Any]:
        self.task = (mode, _nodes(nodes))
        return _done()

    def _mbind(self, name: str, offset: str, length: str, mode: str, nodes: str = "") -> dict[str, Any]:
        for page in _pages(offset, length):
            self.files[name].policies.pop(page, None)
            if mode != "default":
                self.files[name].policies[page] = (mode, _nodes(nodes))
        return _done()

    def _slot(self, name: str, _gpa: str) -> dict[str, Any]:
        self.files[name].slot = True
        return _done()

    def _slotdel(self, name: str) -> dict[str, Any]:
        self.files[name].slot = False
        self.files[name].file.unmap_slot(0, self.files[name].file.pages_total * 4096)
        return _done()

    def _falloc(self, name: str, offset: str, length: str) -> dict[str, Any]:
        opened = self.files[name]
        start, end, unit = int(offset), int(offset) + int(length), 4096 << opened.order
        old = opened.order and self.generation == "B"
        if (start % 4096 or int(length) % 4096) if old else (start % unit or int(length) % unit):
            return _refused(errno.EINVAL)
        if int(length) <= 0 or end > opened.file.pages_total * 4096:
            return _refused(errno.EINVAL)
        for index in range(start // unit, end // unit):
            try:
                self.place(opened, index << opened.order)
            except Failure as failure:
                return _refused(failure.error)
        return _done()

    def _punch(self, name: str, offset: str, length: str) -> dict[str, Any]:
        opened, before = self.files[name], {}
        for index, page in enumerate(opened.file.pages):
            before[index] = page.folio
        error, at = opened.file.operate("punch", int(offset), int(length))
        gone = [
            index for index, page in enumerate(opened.file.pages) if page.folio is None and before[index] is not None
        ]
        unmapped = _pages(offset, length)
        if opened.order and self.generation == "B":  # whole huge pages, one after another up to the one that is held
            blocks = range(-(-unmapped.start // PAGES_2M), unmapped.stop // PAGES_2M)
            stop = blocks.stop if not error else min(blocks.stop, at // 4096 // PAGES_2M + 1)
            unmapped = range(blocks.start * PAGES_2M, stop * PAGES_2M)
        if error != errno.EINVAL:
            opened.in_tables -= set(unmapped)
        for pin in self.pins.values():
            if pin.opened is opened:
                pin.inside -= set(gone)
        return _refused(error) if error else _done()

    def _conv(self, name: str, offset: str, length: str, to: str) -> dict[str, Any]:
        opened, backing = self.files[name], 1 << self.files[name].order
        before = [page.shared for page in opened.file.pages]
        error, at = opened.file.operate("convert", int(offset), int(length), to == "shared")
        if error == errno.EINVAL:
            return _refused(error)
        if to == "private":
            first, end = int(offset) // 4096, (int(offset) + int(length)) // 4096
            if error and backing > 1 and self.generation == "C":
                end = min(end, (at // 4096 // backing + 1) * backing)
            elif error and backing > 1:  # run of shared pages by run, up to that of the page that is held
                end = at // 4096
                while end < len(before) and before[end]:
                    end += 1
                end = min(end, (int(offset) + int(length)) // 4096)
            opened.in_tables -= set(range(first, end))
        return {"ret": -1, "errno": error, "error_offset": at} if error else _done()

    def _touch(self, name: str, offset: str, count: str, step: str = "4096") -> dict[str, Any]:
        return self.host_pages(self.files[name], _touched(offset, count, step))

    def host_pages(self, opened: Opened, pages: list[int], byte: int | None = None) -> dict[str, Any]:
        for done, index in enumerate(pages):
            if index >= opened.file.pages_total or not opened.file.pages[index].shared:
                return {"done": done, "signal": 7}
            try:
                self.place(opened, index)
                self.forget(opened, index)
                opened.file.host_touch(index, 0, self.cpu)
            except Failure as failure:
                return {"done": done, "signal": 7 if failure.error == SIGBUS else 14}
            opened.in_tables.add(index)
            opened.bytes[index] = byte
        return {"done": len(pages), "signal": 0}

    def forget(self, opened: Opened, index: int) -> None:
        """A folio that is not up to date is zeroed before anybody sees it."""
        folio = opened.file.pages[index].folio
        if not folio.uptodate:
            for page in range(folio.first, folio.first + folio.pages):
                opened.bytes.pop(page, None)

    def _write(self, name: str, offset: str, byte: str) -> dict[str, Any]:
        return self.host_pages(self.files[name], [int(offset) // 4096], int(byte))

    def _read(self, name: str, offset: str) -> dict[str, Any]:
        opened, index = self.files[name], int(offset) // 4096
        there = dict(opened.bytes)
        known = opened.file.pages[index].folio is not None and opened.file.pages[index].folio.uptodate
        answer = self.host_pages(opened, [index])
        if answer["signal"]:
            return {"value": -1, "signal": answer["signal"]}
        value = there.get(index, 0) if known else 0
        opened.bytes[index] = value
        stale = opened.file.total["content_stale_pages"]
        return {"signal": 0} if value is None or stale else {"value": value, "signal": 0}

    def _hwpoison(self, name: str, offset: str) -> dict[str, Any]:
        """madvise faults the page in and marks it; one of hugetlb stays mapped (EBUSY)."""
        opened, index = self.files[name], int(offset) // 4096
        if self.host_pages(opened, [index])["signal"]:
            return {**_refused(errno.EFAULT), "signal": 0}
        error, _ = opened.file.operate("poison", int(offset))
        if error:
            return {**_refused(error), "signal": 0}
        opened.in_tables.discard(index)
        return {"ret": -1, "errno": 0, "signal": 7}

    def _vtouch(self, name: str, offset: str, count: str, step: str = "4096") -> dict[str, Any]:
        self.guest_code = True
        return self.guest_pages(self.files[name], _touched(offset, count, step))

    def guest_pages(self, opened: Opened, pages: list[int]) -> dict[str, Any]:
        for done, index in enumerate(pages):
            if not opened.slot or index >= opened.file.pages_total:
                return {"ret": 0, "errno": 0, "done": done, "exit": 6}
            private = not opened.file.pages[index].shared
            try:
                self.place(opened, index)
                self.forget(opened, index)
                opened.file.guest_fault(index * 4096, 4096, private, 0, self.cpu)
            except Failure as failure:
                return {"ret": -1, "errno": failure.error, "done": done, "exit": 39, "mf_flags": 8 * private}
            opened.bytes[index] = 1
        return {"ret": 0, "errno": 0, "done": len(pages), "exit": 5}

    def _prefault(self, name: str, offset: str, length: str) -> dict[str, Any]:
        opened = self.files[name]
        there = dict(opened.bytes)
        answer = self.guest_pages(opened, list(_pages(offset, length)))
        for page in _pages(offset, length):  # maps, and writes nothing
            if page in there and page in opened.bytes:
                opened.bytes[page] = there[page]
            else:
                opened.bytes.pop(page, None)
        error = answer["errno"] or (errno.ENOENT if answer["exit"] == 6 else 0)
        left = int(length) - answer["done"] * 4096
        return {**(_done() if answer["done"] else _refused(error)), "left": left}

    def _pin(self, name: str, number: str, kind: str, offset: str, length: str) -> dict[str, Any]:
        opened, first, count = self.files[name], int(offset) // 4096, int(length) // 4096
        if kind == "splice":
            count = min(count, PIPE_PAGES)
        answer = self.host_pages(opened, list(range(first, first + count)))
        if answer["signal"] and (kind == "uring" or not answer["done"]):
            return _refused(errno.EFAULT)
        count, weight = answer["done"], 1 if kind == "splice" else PIN_WEIGHT
        opened.file.pin(first * 4096, count * 4096, True, 0, self.cpu)
        self.pins[number] = Pinned(name, opened, first, count, weight, set(range(first, first + count)))
        return {"errno": 0, "ret": count * 4096 if kind == "splice" else 0}

    def _unpin(self, number: str) -> dict[str, Any]:
        pin = self.pins.pop(number, None)
        if pin is None:
            return _refused(errno.ENOENT)
        pin.opened.file.unpin(pin.first * 4096, pin.count * 4096, True)
        return _done()


def _done() -> dict[str, Any]:
    return {"ret": 0, "errno": 0}


def _refused(error: int) -> dict[str, Any]:
    return {"ret": -1, "errno": error}


def _pages(offset: str, length: str) -> range:
    return range(int(offset) // 4096, (int(offset) + int(length)) // 4096)


def _touched(offset: str, count: str, step: str) -> list[int]:
    return [(int(offset) + int(step) * number) // 4096 for number in range(int(count))]


def _nodes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)

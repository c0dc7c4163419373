"""Replay recordings of in-place conversion through the engine, and compare everything after every operation.

Equal must be: what the call returned (errno, error_offset, signal, exit reason, pages done, the byte that a read finds), the
state of every page, order, node, references and flags of every folio (whether it is up to date among them), pools and
reservations by node, vmemmap pages, xarray nodes, and second-stage leaves.

Taken from the recording, because they depend on what else ran: how many vmemmap pages there are at the start, how much
memory a squeezed host had left, and whether a fresh 4 KiB folio is on its LRU already (the batch it waits in also holds
pages of the recorder; while it waits it has one reference more). Physical frame numbers and free memory are not judged.

The recorded process runs on one host with pools of both sizes; here one engine for each size of folio stands for it. They
share the task: its policy is set in each, its rotation is one array.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench import scenario as sc
from workbench.bitmap_lists import format_list, is_whole
from workbench.design.filemap import FILEMAP
from workbench.design.hugetlb import HUGETLB
from workbench.design.hugetlb_hvo import HUGETLB_HVO
from workbench.engine import calls
from workbench.engine.objects import Inode, OpenFile, Result
from workbench.engine.placing import check_listed
from workbench.engine.system import System
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s
from workbench.probe_words import c_number
from workbench.profiles import KERNEL_PROFILES
from workbench.tracking import page_cache
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.generations import GENERATIONS, Generation
from workbench.truth.conversion_recording import (
    ConversionRecording,
    FileState,
    PoolSize,
    RecordedConversions,
    RecordedHost,
    RecordedOperation,
    parse,
    size,
)
from workbench.truth.recording import find_recording, load
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes

PAGE_SIZES = {order: name for name, order in PAGE_ORDERS.items()}
POOLS: dict[PoolSize, int] = {"2048": 9, "1048576": 18}
GIB = 1 << 30
SIGBUS, SIGALRM = 7, 14
KVM_EXIT_HLT, KVM_EXIT_MMIO, KVM_EXIT_MEMORY_FAULT = 5, 6, 39
KVM_MEMORY_EXIT_FLAG_PRIVATE = 8
GUP_PIN_COUNTING_BIAS = 1024
FLAG_MMAP, FLAG_INIT_SHARED, FLAG_HUGETLB = 1, 2, 4
PG_HUGETLB, PG_UPTODATE, PG_LRU, PG_POISON, PG_MAPPED, PG_PINNED, PG_OPTIMISED = 1, 2, 4, 16, 32, 64, 128
PIPE_PAGES = 16
GUEST_BYTE = 1
"""What the recorder's guest writes to each page that it touches (recorded: ``read`` finds it)."""
MODES = {"weighted": "weighted_interleave"}


@dataclass
class Difference:
    """One thing that is not equal."""

    what: str
    recorded: str
    simulated: str


@dataclass
class _Slot:
    """A memslot: gpa, offset into the file and length in bytes, and how far the user address is off its alignment."""

    gpa: int
    offset: int
    length: int
    skew: int

    @property
    def largest_leaf(self) -> str:
        """arch/x86/kvm/x86.c: kvm_alloc_memslot_metadata; virt/kvm: guest frame and file index must be aligned alike."""
        off = (self.gpa - self.offset) | self.skew
        return "4 KiB" if off % (1 << 21) else "2 MiB" if off % GIB else "1 GiB"


@dataclass
class _Pin:
    file: str
    inode: Inode
    first: int
    end: int
    weight: int
    inside: Int64s
    """Pages of it that have not left the file since."""


@dataclass
class _File:
    """What the recorder knows a file by; ``slots`` by number."""

    system: System
    name: str
    order: int
    slots: dict[int, _Slot] = field(default_factory=dict)
    open: bool = True
    bytes: dict[int, int | None] = field(default_factory=dict)
    """First byte of the pages that were written, None: of unknown value; where the kernel has zeroed a page since, it is 0."""

    @property
    def of(self) -> OpenFile:
        return self.system.files[self.name]

    @property
    def inode(self) -> Inode:
        return self.of.inode

    @property
    def tracked(self) -> ConversionFile:
        assert isinstance(self.inode.tracked, ConversionFile)
        return self.inode.tracked

    @property
    def pages(self) -> int:
        return self.inode.pages

    def forget_zeroed(self) -> None:
        """Pages that are not up to date, or not there, read as 0."""
        known = np.array(list(self.bytes), np.int64)
        for page in known[~self.tracked.uptodate(known)].tolist():
            del self.bytes[page]


Answer = dict[str, Any]


class Replay:
    """One scenario of a recording."""

    def __init__(self, recording: ConversionRecording, recorded: RecordedConversions) -> None:
        self.recording, self.recorded = recording, recorded
        name = "C-stock-xarray" if recording.stock_xarray else recording.generation
        self.rules: Generation = GENERATIONS[name]
        self.kernel = next(
            made.name for made in KERNEL_PROFILES.values() if made.huge_pages and made.generation == name
        )
        self.systems: dict[int, System] = {}
        self.vm_type = 1
        self.files: dict[str, _File] = {}
        self.pins: dict[str, _Pin] = {}
        self.history: list[sc.Operation] = []  # policy, CPU and weights, for a system that is needed later
        self.guest_code = False
        self.reads = any(operation.words[0] == "read" for operation in recorded.ops)
        self.answer: Answer = {}
        self.base_vmemmap = recorded.start.vmemmap_pages
        self.handlers: dict[str, Callable[[list[str], RecordedOperation], Answer]] = {
            "create": self._create, "map": self._map, "unmap": self._unmap, "close": self._close, "mbind": self._mbind,
            "setpol": self._setpol, "cpu": self._cpu, "falloc": self._falloc, "punch": self._punch, "conv": self._conv,
            "convold": self._convold, "touch": self._touch, "write": self._write, "read": self._read, "slot": self._slot,
            "slotdel": self._slotdel, "vtouch": self._vtouch, "prefault": self._prefault, "pin": self._pin,
            "unpin": self._unpin, "odirect": self._odirect, "hwpoison": self._hwpoison, "poisonpfn": self._hwpoison,
            "squeeze": self._squeeze, "release": self._release, "sysfs": self._sysfs, "vm": self._vm, "cap": self._cap,
        }  # fmt: skip

        self._system(0)

    def run(self) -> Iterator[tuple[RecordedOperation, list[Difference]]]:
        """Every operation and what differs after it."""
        for operation in self.recorded.ops:
            words = operation.words
            handler = self.handlers.get(words[0])
            self.answer = handler(words[1:], operation) if handler is not None else {}
            yield operation, [*_compare_answer(operation, self.answer), *self._compare_state(operation.after)]

    def free_huge_pages(self) -> str:
        """Free huge pages of each size by node, for people: 2 MiB, then 1 GiB."""
        return _free_text({key: self._free(key) for key in self.recorded.start.pools})

    def uptodate_pages(self) -> dict[str, int]:
        """Pages of each open file whose folio is up to date."""
        out = {}
        for name, file in self.files.items():
            if file.open:
                first, order = page_cache.folios(file.tracked)
                out[name] = int((1 << order)[file.tracked.uptodate(first)].sum())
        return out

    def _free(self, key: PoolSize) -> list[int]:
        system = self.systems.get(POOLS[key])
        if system is None or system.conversions is None:
            return self.recorded.start.pools[key].free
        free: list[int] = (system.free[: system.nodes] + system.conversions.unusable).tolist()
        return free

    # ------------------------------------------------------------------------------------------------ systems

    def _system(self, order: int) -> System:
        if order not in self.systems:
            system = System(self._scenario(order))
            for other in self.systems.values():
                system.rotations = other.rotations
            for operation in self.history:
                calls.apply(system, operation)
            self.systems[order] = system
        return self.systems[order]

    def _scenario(self, order: int) -> sc.Scenario:
        host, pool = self.recording.host, self.recorded.start.pools
        key = next((key for key, value in POOLS.items() if value == order), None)
        first_cpu = min(cpu for node in host.nodes for cpu in node.cpus)
        huge = {int(node): count for node, count in zip(host.node_ids, pool[key].nr, strict=True)} if key else None
        return sc.Scenario(
            name=self.recorded.name,
            host=host,
            kernel_profile=self.kernel if order else "7.4",
            boot=sc.Boot(hugetlb_pages=huge),
            guest=sc.Guest(
                memory=PAGE_SIZE << order,
                page_size=PAGE_SIZES[order],
                design=(FILEMAP if order == 0 else HUGETLB_HVO if self.recording.hvo else HUGETLB).name,
                vm_type="sw_protected",
                conversion=sc.Conversion(mode="in-place", generation=self.rules.name if order else "C"),
            ),
            tasks=(sc.Task(name="probe", cpu=first_cpu),),
            operations=(sc.Convert(to="private"),),
            strict=False,
        )

    def _all(self, operation: sc.Operation) -> Result:
        """A call that concerns the task or the host, in every system that there is or will be."""
        self.history.append(operation)
        first, *_ = [calls.apply(system, operation) for system in self.systems.values()]
        return first

    def _apply(self, file: _File, operation: sc.Operation) -> Result:
        return calls.apply(file.system, operation)

    # -------------------------------------------------------------------------------------- files and mappings

    def _create(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """Which combinations of flags and order are refused is checked here; sizes and pools are the engine's."""
        name, given = words[0], _named(words[1:])
        flags, order = c_number(given.get("flags", "0")), c_number(given.get("order", "0"))
        length = size(given.get("size", "0"))
        if flags & ~(FLAG_MMAP | FLAG_INIT_SHARED | FLAG_HUGETLB) or length >= 1 << 63:
            return _refused(errno.EINVAL)
        if bool(flags & FLAG_HUGETLB) != (order in POOLS.values()) or (order and order not in POOLS.values()):
            return _refused(errno.EINVAL)
        system, unique = self._system(order), f"{name}.{len(self.history)}.{len(self.files)}"
        raw = flags & ~FLAG_HUGETLB
        file = _File(system, unique, order)
        result = self._apply(file, sc.Create(file=unique, size=length, raw_flags=raw))
        if result.errno:
            return _refused(result.errno)
        self._apply(file, sc.Munmap(file=unique))
        self.files[name] = file
        return _done()

    def _map(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file = self.files[words[0]]
        return _of(self._apply(file, sc.Mmap(file=file.name)))

    def _unmap(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file = self.files[words[0]]
        return _of(self._apply(file, sc.Munmap(file=file.name)))

    def _close(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file = self.files[words[0]]
        file.open = False
        return _of(self._apply(file, sc.Close(file=file.name, unmap=False)))

    def _falloc(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file, (offset, length) = self.files[words[0]], _span(words[1:3])
        mode = c_number(words[3]) if len(words) > 3 else 1
        if mode == 3:
            return self._punch(words, _operation)
        if mode != 1 and length > 0:
            return _refused(errno.EOPNOTSUPP)
        if max(offset, length, offset + length) >= 1 << 63:
            return _refused(errno.EINVAL)
        return _of(self._apply(file, sc.Fallocate(file=file.name, offset=offset, length=length)))

    def _punch(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file, (offset, length) = self.files[words[0]], _span(words[1:3])
        if max(offset, length, offset + length) >= 1 << 63:
            return _refused(errno.EINVAL)
        result = self._apply(file, sc.PunchHole(file=file.name, offset=offset, length=length))
        return {**_of(result), "error_offset": None}

    # ------------------------------------------------------------------------------------------------- policy

    def _mbind(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file, (offset, length) = self.files[words[0]], _span(words[1:3])
        return _of(self._apply(file, sc.Mbind(file=file.name, offset=offset, length=length, **_policy(words[3:]))))

    def _setpol(self, words: list[str], _operation: RecordedOperation) -> Answer:
        return _of(self._all(sc.SetMempolicy(**_policy(words))))

    def _cpu(self, words: list[str], _operation: RecordedOperation) -> Answer:
        return _of(self._all(sc.SchedSetaffinity(cpu=c_number(words[0]))))

    def _sysfs(self, words: list[str], _operation: RecordedOperation) -> Answer:
        node = words[0].rpartition("/node")[2]
        if "weighted_interleave" in words[0] and is_whole(node) and is_whole(words[1]) and 1 <= int(words[1]) <= 255:
            return _of(self._all(sc.SetWeights(weights={int(node): int(words[1])})))
        return {}

    # --------------------------------------------------------------------------------------------- conversion

    def _conv(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """KVM_SET_MEMORY_ATTRIBUTES2: the fields that scenarios do not have are checked here."""
        file, (offset, length) = self.files[words[0]], _span(words[1:3])
        given = _named(words[4:])
        attributes = {"private": 8, "shared": 0}.get(words[3])
        attributes = c_number(words[3]) if attributes is None else attributes
        if not file.open:
            return _refused(errno.EBADF)
        if "ptr" in given:
            return _refused(errno.EFAULT)
        old = file.order > 0 and self.rules.kernel == "B"
        wrong = any(c_number(given.get(name, "0")) for name in ("flags", "reserved", *(["eoff"] if old else [])))
        if wrong or attributes not in (0, 8) or self.vm_type == 0 or max(offset, length, offset + length) >= 1 << 63:
            return _refused(errno.EINVAL)
        to = "private" if attributes == 8 else "shared"
        return _of(self._apply(file, sc.Convert(file=file.name, offset=offset, length=length, to=to)))

    def _convold(self, _words: list[str], _operation: RecordedOperation) -> Answer:
        """With in-place conversion on, KVM_SET_MEMORY_ATTRIBUTES of the VM is not there."""
        return _refused(errno.ENOTTY)

    def _vm(self, words: list[str], _operation: RecordedOperation) -> Answer:
        self.vm_type = c_number(words[0])
        return {"errno": 0}

    def _cap(self, _words: list[str], _operation: RecordedOperation) -> Answer:
        return {}

    # ------------------------------------------------------------------------------------------------- touches

    def _touch(self, words: list[str], _operation: RecordedOperation) -> Answer:
        return self._write_pages(words[0], _touched(words[1:]), None)

    def _write_pages(self, name: str, pages: Int64s, byte: int | None) -> Answer:
        """Host writes, one a page, up to the first that raises a signal."""
        file = self.files[name]
        self._forget_zeroed(file)
        answer = self._host_pages(file, pages)
        self._note(file, pages[: answer["done"]], byte)
        return answer

    def _forget_zeroed(self, file: _File) -> None:
        if self.reads and file.inode.tracked is not None:
            file.forget_zeroed()

    def _note(self, file: _File, pages: Int64s, byte: int | None) -> None:
        if self.reads:
            file.bytes |= dict.fromkeys(pages.tolist(), byte)

    def _host_pages(self, file: _File, pages: Int64s) -> Answer:
        done = 0
        for first, count in self._runs_alike(file, pages):
            result = self._apply(file, sc.Fault(file=file.name, offset=first * PAGE_SIZE, length=count * PAGE_SIZE))
            if result.detail.get("bad", 0):
                done += int(result.detail["first"]) - first
                return {"done": done, "signal": SIGALRM if "retried" in result.detail else SIGBUS}
            done += count
        return {"done": done, "signal": 0}

    def _runs_alike(self, file: _File, pages: Int64s) -> Iterator[tuple[int, int]]:
        """Neighbours of ``pages`` that are in one folio of the file and in one state: first page and count.

        Poisoned pages are runs of their own: what touches one goes no further.
        """
        poisoned, at = set(file.tracked.poisoned().tolist()) if file.inode.tracked is not None else set(), 0
        while at < len(pages):
            first = int(pages[at])
            end = ((first >> file.order) + 1 << file.order) if file.order else first + (1 << 30)
            inside = first < file.pages
            limit = min(end, file.pages) if inside else end
            state = file.tracked.is_shared(first, first + 1)[0] if inside else False
            count = 1
            while at + count < len(pages):
                page = int(pages[at + count])
                if page != first + count or page >= limit or not poisoned.isdisjoint((page, page - 1)):
                    break
                if inside and file.tracked.is_shared(page, page + 1)[0] != state:
                    break
                count += 1
            yield first, count
            at += count

    def _write(self, words: list[str], _operation: RecordedOperation) -> Answer:
        return self._write_pages(words[0], np.array([size(words[1]) // PAGE_SIZE]), c_number(words[2]))

    def _read(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """The byte that was written there last, 0 where the page was zeroed since, -1 with a signal.

        Not judged where a merge counts pages as zeroed that nothing has zeroed.
        """
        file, page = self.files[words[0]], size(words[1]) // PAGE_SIZE
        self._forget_zeroed(file)
        answer = self._host_pages(file, np.array([page]))
        unwritten = None if file.tracked.count("content_stale_pages") else 0
        value = file.bytes.get(page, unwritten) if answer["done"] else -1
        return {"signal": answer["signal"], **({} if value is None else {"value": value})}

    def _odirect(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """A direct read into the pages: get_user_pages touches them first, and fails at once if the first is not to be had."""
        _, length = _span(words[1:3])
        touched = self._touch([words[0], words[1], str(-(-length // PAGE_SIZE))], _operation)
        if touched["signal"]:
            return _refused(errno.EFAULT) if not touched["done"] else {}
        return {"errno": 0, "ret": length}

    def _hwpoison(self, words: list[str], operation: RecordedOperation) -> Answer:
        """madvise(MADV_HWPOISON) faults the page in; debugfs takes the page that is there."""
        file, offset = self.files[words[0]], size(words[1])
        by_address = operation.words[0] == "hwpoison"
        if by_address and self._touch([words[0], words[1], "1"], operation)["signal"]:
            return _refused(errno.EFAULT)
        result = self._apply(file, sc.Hwpoison(file=file.name, offset=offset, length=PAGE_SIZE))
        if result.errno:
            return {**_refused(result.errno), "signal": 0}
        return {"errno": 0, "signal": SIGBUS if by_address else 0}

    # ------------------------------------------------------------------------------------------------ the guest

    def _slot(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file, given = self.files[words[0]], _named(words[1:])
        offset = size(given.get("off", "0"))
        length = size(given["len"]) if "len" in given else file.pages * PAGE_SIZE - offset
        slot = _Slot(size(given.get("gpa", "1G")), offset, length, size(given.get("uskew", "0")))
        if (
            slot.gpa % PAGE_SIZE
            or offset % PAGE_SIZE
            or slot.skew % PAGE_SIZE
            or offset + length > file.pages * PAGE_SIZE
        ):
            return _refused(errno.EINVAL)
        file.slots[int(given.get("id", "0"))] = slot
        file.tracked.set_slot(offset, length, slot.largest_leaf)
        return _done()

    def _slotdel(self, words: list[str], _operation: RecordedOperation) -> Answer:
        file = self.files[words[0]]
        for slot in file.slots.values():
            file.tracked.unmap_guest(slot.offset, slot.length)
        file.slots.clear()
        return _done()

    def _slot_of(self, file: _File, page: int) -> _Slot | None:
        inside = [s for s in file.slots.values() if s.offset <= page * PAGE_SIZE < s.offset + s.length]
        return inside[0] if inside and file.open else None

    def _vtouch(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """The guest writes, one a page, until something makes it exit."""
        self.guest_code = True
        file = self.files[words[0]]
        pages = _touched(words[1:])
        self._forget_zeroed(file)
        answer = self._guest_pages(file, pages, "guest")
        self._note(file, pages[: answer["done"]], GUEST_BYTE)
        if "errno" in answer:
            return answer
        return {"ret": 0, "errno": 0, **answer}

    def _prefault(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """virt/kvm/kvm_main.c: kvm_vcpu_pre_fault_memory: what is done is success; ENOENT where no memslot is."""
        file, (offset, length) = self.files[words[0]], _span(words[1:3])
        if offset % PAGE_SIZE or length % PAGE_SIZE or not length:
            return _refused(errno.EINVAL)
        pages = np.arange(offset // PAGE_SIZE, (offset + length) // PAGE_SIZE, dtype=np.int64)
        self._forget_zeroed(file)
        answer = self._guest_pages(file, pages, "prefault")
        none = errno.ENOENT if answer["exit"] == KVM_EXIT_MMIO else 0
        left = length - answer["done"] * PAGE_SIZE
        return {"errno": 0 if answer["done"] else answer.get("errno", none), "left": left}

    def _guest_pages(self, file: _File, pages: Int64s, by: str) -> Answer:
        done = 0
        for first, count in self._runs_alike(file, pages) if file.open else [(int(pages[0]), 1)]:
            slot = self._slot_of(file, first)
            last = first + count
            if slot is not None:
                last = min(last, (slot.offset + slot.length) // PAGE_SIZE)
                touch = sc.Fault(
                    file=file.name,
                    offset=first * PAGE_SIZE,
                    length=(last - first) * PAGE_SIZE,
                    by=by,
                )
                result = self._apply(file, touch)
                if result.errno:
                    failed = result.detail.get("error_offset", first * PAGE_SIZE) // PAGE_SIZE
                    private = not bool(file.tracked.is_shared(failed, failed + 1)[0])
                    return {
                        "ret": -1, "errno": result.errno, "done": done + failed - first, "exit": KVM_EXIT_MEMORY_FAULT,
                        "mf_flags": KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0,
                        "mf_gpa": slot.gpa + failed * PAGE_SIZE - slot.offset, "mf_size": PAGE_SIZE,
                    }  # fmt: skip
                done += last - first
            if slot is None or last < first + count:
                return {"done": done, "exit": KVM_EXIT_MMIO}
        return {"done": done, "exit": KVM_EXIT_HLT}

    # ----------------------------------------------------------------------------------------------------- pins

    def _pin(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """io_uring's registered buffers are long-term pins; vmsplice takes plain references, as long as its pipe has room."""
        file, number, kind = self.files[words[0]], words[1], words[2]
        offset, length = _span(words[3:5])
        spliced = kind == "splice"
        if spliced:
            length = min(length, PIPE_PAGES * PAGE_SIZE)
            pages = np.arange(offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE), dtype=np.int64)
            first, count = next(iter(self._shared_runs(file, pages)), (0, 0))
            if count and first == pages[0]:
                length = min(length, count * PAGE_SIZE)
        result = self._apply(file, sc.Pin(file=file.name, offset=offset, length=length))
        if result.errno:
            return _refused(result.errno)
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        self.pins[number] = _Pin(
            file.name, file.inode, first, end, 1 if spliced else GUP_PIN_COUNTING_BIAS, np.arange(first, end)
        )
        return {"errno": 0, "ret": length if spliced else 0}

    def _shared_runs(self, file: _File, pages: Int64s) -> Iterator[tuple[int, int]]:
        inside = pages[pages < file.pages]
        shared = file.tracked.is_shared(int(inside[0]), int(inside[-1]) + 1) if len(inside) else np.zeros(0, bool)
        if len(shared) and shared[0]:
            yield int(inside[0]), int(np.argmin(shared)) if not shared.all() else len(shared)

    def _unpin(self, words: list[str], _operation: RecordedOperation) -> Answer:
        pin = self.pins.pop(words[0], None)
        if pin is None:
            return _refused(errno.ENOENT)
        system = next(system for system in self.systems.values() if pin.file in system.files)
        unpin = sc.Unpin(file=pin.file, offset=pin.first * PAGE_SIZE, length=(pin.end - pin.first) * PAGE_SIZE)
        return _of(calls.apply(system, unpin))

    # --------------------------------------------------------------------------------------------- memory pressure

    def _squeeze(self, words: list[str], _operation: RecordedOperation) -> Answer:
        """From now on only so many pages are to be had, on the node or on all together (taken from the first)."""
        node = c_number(words[1]) if len(words) > 1 else 0
        for system in self.systems.values():
            assert system.conversions is not None
            free = system.conversions.folios.vmemmap
            self.before_squeeze = free.copy()
            free[:] = 0
            free[node] = c_number(words[0])
        return {}

    def _release(self, _words: list[str], _operation: RecordedOperation) -> Answer:
        for system in self.systems.values():
            assert system.conversions is not None
            system.conversions.folios.vmemmap[:] += self.before_squeeze
        return {}

    # ----------------------------------------------------------------------------------------------- comparison

    def _compare_state(self, after: RecordedHost) -> Iterator[Difference]:
        for key, pool in after.pools.items():
            system = self.systems.get(POOLS[key])
            yield from _differs(f"pools.{key}.free", pool.free, self._free(key))
            yield from _differs(f"pools.{key}.resv", pool.resv, system.reserved_huge_pages() if system else 0)
            yield from _differs(f"pools.{key}.nr", pool.nr, self.recorded.start.pools[key].nr)
        tracked = [
            file for system in self.systems.values() if system.conversions for file in system.conversions.files()
        ]
        files = [file for file in tracked if isinstance(file, ConversionFile)]
        pools = [system.conversions.folios for system in self.systems.values() if system.conversions]
        vmemmap = sum(int(file.held_vmemmap.sum()) for file in files) + sum(int(pool.held_vmemmap) for pool in pools)
        yield from _differs("vmemmap_pages", after.vmemmap_pages, self.base_vmemmap + vmemmap)
        leaves = [sum(file.count(name) for file in files) for name in ("leaves_4k", "leaves_2m", "leaves_1g")]
        leaves[0] += self.guest_code
        yield from _differs("kvm_pages", after.kvm_pages, leaves)
        there = {name for name, file in self.files.items() if file.open}
        yield from _differs("files", sorted(after.files), sorted(there))
        for name in there & after.files.keys():
            for difference in self._compare_file(self.files[name], after.files[name]):
                yield Difference(f"{name}.{difference.what}", difference.recorded, difference.simulated)

    def _compare_file(self, file: _File, seen: FileState) -> Iterator[Difference]:
        first, order = page_cache.folios(file.tracked)
        for pin in self.pins.values():
            if pin.inode is file.inode:
                pin.inside = pin.inside[np.isin(pin.inside, first)]
        yield from _differs("pages", seen.pages, int((1 << order).sum()))
        yield from _differs("xarray_nodes", seen.xarray_nodes, page_cache.nodes_of(file.tracked))
        if seen.state is not None:
            shared = np.zeros(file.pages, bool)
            for low, high, which in seen.state:
                shared[low : high + 1] = which == "shared"
            yield from _pages_differ("state", shared, file.tracked.is_shared())
            yield from _differs("state_ranges", seen.state_ranges, _runs_in(file.tracked.is_shared()))
        if seen.folios is None:
            return
        runs = seen.folios
        counts = np.array([run.count for run in runs], np.int64)
        orders = np.repeat(np.array([run.order for run in runs], np.int64), counts)
        starts = np.repeat(np.array([run.first for run in runs], np.int64), counts)
        within = np.arange(len(orders)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = starts + (within << orders)
        if len(starts) != len(first) or (starts != first).any() or (orders != order).any():
            yield Difference("folios", _folio_text(starts, orders), _folio_text(first, order))
            return
        flags = np.repeat(np.array([run.flags for run in runs], np.int64), counts)
        nodes = np.repeat(np.array([run.node for run in runs], np.int64), counts)
        references = np.repeat(np.array([run.references for run in runs], np.int64), counts)
        zones = file.inode.zones_of(first)
        ours = np.where(zones >= 0, file.system.node_ids[file.system.zone_node[zones]], -1)
        yield from _pages_differ("node", nodes, ours, first)
        mapped, pinned = self._mapped(file, first, order), self._pinned(file, first)
        poisoned = np.isin(first, file.tracked.poisoned())
        waiting = (flags & PG_LRU == 0) & ~poisoned if file.order == 0 else np.zeros(len(first), bool)
        held = poisoned if file.order == 0 else np.zeros(len(first), bool)
        ours = (1 << order) + mapped + pinned + waiting + held
        yield from _pages_differ("references", references, ours, first)
        marks = {
            PG_HUGETLB: order > 0, PG_UPTODATE: file.tracked.uptodate(first), PG_POISON: poisoned,
            PG_MAPPED: mapped > 0, PG_PINNED: pinned >= GUP_PIN_COUNTING_BIAS,
            PG_OPTIMISED: (order > 0) & file.tracked.optimised(first),
        }  # fmt: skip
        for mark, expected in marks.items():
            yield from _pages_differ(f"flag {mark}", flags & mark > 0, expected, first)

    def _mapped(self, file: _File, first: Int64s, order: Int64s) -> Int64s:
        """Mappings of the host that have the first page of each folio in their page tables."""
        out = np.zeros(len(first), np.int64)
        for mapping in file.inode.mappings:
            for low, high in mapping.mapped().tolist():
                out += (first >= low) & (first < high) & (order == 0)
        return out

    def _pinned(self, file: _File, first: Int64s) -> Int64s:
        """References that pins hold on the folios; those on pages that left the file meanwhile do not count."""
        out = np.zeros(len(first), np.int64)
        for pin in self.pins.values():
            if pin.inode is file.inode:
                out += pin.weight * np.isin(first, pin.inside)
        return out


def side_by_side(path: str | Path, name: str) -> list[dict[str, str]]:
    """What a scenario's operations returned and left behind, recorded beside simulated.

    ``path``: a file or the name of a shipped recording.

    Keys: ``operation``, ``recorded``, ``simulated``, ``free, recorded`` and ``free, simulated``; and, of the pages of each
    file, how many have a folio that is up to date, ``up to date, recorded`` and ``up to date, simulated``.
    """
    found = find_recording(path)
    recording = parse(found, load(found))
    known = {recorded.name: recorded for recorded in recording.scenarios}
    if name not in known:
        raise WorkbenchError(f"scenario: {name!r} is not in this recording; it has {', '.join(sorted(known))}")
    replay, rows = Replay(recording, known[name]), []
    for operation, _ in replay.run():
        free: dict[str, list[int]] = {key: pool.free for key, pool in operation.after.pools.items()}
        seen = _recorded_uptodate(operation.after)
        ours = {name: pages for name, pages in replay.uptodate_pages().items() if name in seen}
        rows.append({
            "operation": operation.op,
            "recorded": _answer_text(operation.returned),
            "simulated": _answer_text(replay.answer),
            "free, recorded": _free_text(free),
            "free, simulated": replay.free_huge_pages(),
            "up to date, recorded": _uptodate_text(seen),
            "up to date, simulated": _uptodate_text(ours),
        })  # fmt: skip
    return rows


def _answer_text(answer: Mapping[str, Any]) -> str:
    parts = [errno_name(int(answer["errno"]))] if answer.get("errno") else []
    if answer.get("signal"):
        parts.append({SIGBUS: "SIGBUS", SIGALRM: "retried for ever"}.get(int(answer["signal"]), str(answer["signal"])))
    if answer.get("done") is not None:
        parts.append(f"{answer['done']} page" + "s" * (answer["done"] != 1))
    if answer.get("value", -1) >= 0:
        parts.append(f"byte {answer['value']}")
    return ", ".join(parts) or "done"


def _recorded_uptodate(after: RecordedHost) -> dict[str, int]:
    return {
        name: sum(run.count << run.order for run in file.folios if run.flags & PG_UPTODATE)
        for name, file in after.files.items()
        if file.folios is not None
    }


def _uptodate_text(pages: Mapping[str, int]) -> str:
    return "; ".join(f"{name}: {count}" for name, count in sorted(pages.items()))


def _free_text(free: Mapping[str, list[int]]) -> str:
    return "; ".join(" + ".join(map(str, pages)) + f" of {format_bytes(int(key) << 10)}" for key, pages in free.items())


def _compare_answer(operation: RecordedOperation, answer: Answer) -> Iterator[Difference]:
    returned = operation.returned
    for name in ("errno", "done", "signal", "value", "exit", "mf_flags", "mf_gpa", "mf_size", "left"):
        if name in answer and returned.get(name) is not None:
            yield from _differs(name, returned[name], answer[name])
    if "ret" in answer and returned.get("ret") is not None and answer["ret"] >= 0 <= int(returned["ret"]):
        yield from _differs("ret", returned["ret"], answer["ret"])
    if operation.words[0] == "conv" and "error_offset" in answer:
        yield from _differs("error_offset", returned.get("error_offset"), answer["error_offset"])


def _done() -> Answer:
    return {"ret": 0, "errno": 0}


def _refused(error: int) -> Answer:
    return {"ret": -1, "errno": error, "error_offset": None}


def _of(result: Result) -> Answer:
    """A result as the recorder writes it; descriptors are 0 there."""
    return {"ret": -1 if result.errno else 0, "errno": result.errno, "error_offset": result.detail.get("error_offset")}


def _named(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _span(words: list[str]) -> tuple[int, int]:
    return size(words[0]), size(words[1])


def _touched(words: list[str]) -> Int64s:
    """Pages of ``OFF N [STEP]``."""
    step, count = size(words[2]) if len(words) > 2 else PAGE_SIZE, c_number(words[1])
    check_listed(count, "a line's touches")
    return (size(words[0]) + step * np.arange(count, dtype=np.int64)) // PAGE_SIZE


def _policy(words: list[str]) -> dict[str, Any]:
    mode = MODES.get(words[0], words[0])
    return {"mode": mode, "nodes": words[1] if len(words) > 1 else ""}


def _differs(what: str, recorded: object, simulated: object) -> Iterator[Difference]:
    if recorded != simulated:
        yield Difference(what, str(recorded), str(simulated))


def _pages_differ(
    what: str, recorded: np.ndarray, simulated: np.ndarray, first: Int64s | None = None
) -> Iterator[Difference]:
    wrong = np.flatnonzero(recorded != simulated)
    if len(wrong):
        pages = wrong if first is None else first[wrong]
        where = f"{what} of page{'s' if len(pages) > 1 else ''} {format_list(pages[:64].tolist())}"
        yield Difference(where, str(recorded[wrong[0]]), str(simulated[wrong[0]]))


def _runs_in(values: np.ndarray) -> int:
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


def _folio_text(first: Int64s, order: Int64s) -> str:
    if not len(first):
        return "none"
    edges = np.flatnonzero((np.diff(order) != 0) | (np.diff(first) != 1 << order[:-1])) + 1
    parts = np.split(np.arange(len(first)), edges)
    return ", ".join(f"{len(part)} of order {order[part[0]]} from page {first[part[0]]}" for part in parts[:6])

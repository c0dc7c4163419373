"""Streams of conversions as guests make them, from a few parameters and a seed.

All return streams for :mod:`workbench.kernels.folios.run` (int64 (n, 6), see :data:`workbench.kernels.folios.run.OP`);
:func:`operations` turns one into operations of a scenario. Where a number comes from published code it is named; where
the code does not decide (which address the guest's own allocator picks) the choice is stated and nothing is tuned to a
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from workbench import scenario as sc
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import conversions
from workbench.tracking.tracked_file import KINDS, OPERATIONS, choice
from workbench.units import PAGE_ORDERS, PAGE_SIZE, parse_bytes

Int64s = npt.NDArray[np.int64]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

ACCEPT_CHUNK = 4 * MIB
"""Unit of lazy acceptance (QEMU commit 4cdc489e; drivers/firmware/efi/unaccepted_memory.c takes larger units too)."""
PSC_ENTRIES = 64
"""Entries of one page-state-change request (arch/x86/include/asm/sev.h); KVM joins neighbours into one conversion."""
FIRMWARE_BUFFERS = ((4, 4 * KIB), (8, 32 * KIB), (2, 128 * KIB), (1, MIB), (2, 2 * MIB))
"""Shared DMA buffers that OVMF keeps, count and size, each after a private header page (OvmfPkg/IoMmuDxe/IoMmuBuffer.c)."""
SOURCES = ("firmware", "acceptance", "swiotlb", "per-CPU data", "GHCB", "DMA pools", "virtio rings", "kernel image")


def swiotlb_request(memory: int) -> int:
    """arch/x86/mm/mem_encrypt.c: mem_encrypt_setup_arch(): 6 % of memory, at least 64 MiB, at most 1 GiB."""
    return min(max(memory * 6 // 100, 64 * MIB), GIB)


def swiotlb_bytes(memory: int) -> int:
    """That in whole slots of 256 KiB (kernel/dma/swiotlb.c: swiotlb_adjust_size())."""
    return -(-swiotlb_request(memory) // (256 * KIB)) * (256 * KIB)


def swiotlb_pool(memory: int, possible_cpus: int) -> int:
    """Bytes of the pool that is allocated: the next power of two, at least 256 KiB for each area, an area per CPU.

    kernel/dma/swiotlb.c: swiotlb_init_remap() calls swiotlb_adjust_nareas(num_possible_cpus()), which rounds the size up
    (round_up_default_nslabs(); since the lock was split into areas, Linux 6.0).
    """
    areas = 1 << (possible_cpus - 1).bit_length()
    return 1 << (max(swiotlb_bytes(memory), areas * 256 * KIB) - 1).bit_length()


@dataclass(frozen=True)
class BootGuest:
    """A guest as QEMU's q35 machine, OVMF and Linux set it up.

    memory : bytes
    possible_cpus : vCPUs the guest prepares for (QEMU -smp maxcpus), each with per-CPU data and GHCB
    queues : virtqueues of all devices together (multi-queue block and network devices: about two or three each vCPU)
    queue_pages : 4 KiB pages of one ring; 256 entries take 3, allocated as 4 (drivers/virtio/virtio_ring.c)
    percpu_unit : distance of two CPUs' per-CPU areas (mm/percpu.c: 2 MiB divided until an area just fits). Debian's 7.3.4
        prints 63 pages, which makes 256 KiB; with CONFIG_RANDOM_KMALLOC_CACHES the dynamic part is 112 instead of 28 KiB
        (include/linux/percpu.h: PERCPU_DYNAMIC_RESERVE) and a unit 512 KiB
    reserved_top : bytes that firmware keeps at the end of low memory (ACPI tables, runtime services)
    """

    memory: int = 16 * GIB
    possible_cpus: int = 16
    queues: int = 40
    queue_pages: int = 4
    percpu_unit: int = 256 * KIB
    reserved_top: int = 16 * MIB

    @property
    def low_memory(self) -> int:
        """Memory below 4 GiB: 2 GiB if there is more than 2.75 GiB in all, else everything (hw/i386/pc_q35.c)."""
        return 2 * GIB if self.memory >= 2816 * MIB else self.memory


PUBLISHED_GUEST = BootGuest(memory=16 * GIB, possible_cpus=255, queues=37)
"""The 16 GiB SNP guest of datasets/published/gmem_conversion_profile.yaml, as far as it is known.

The memory is published with the profile. ``-smp 32,maxcpus=255`` on q35 is the command line its author posted with the
QEMU SNP series (RFC v4 cover letter, "A basic command-line invocation for SNP"). Devices are not stated anywhere; taken
here: virtio-scsi with a queue for each of 32 vCPUs and two more, and virtio-net with one pair and a control queue.
"""


def boot(guest: BootGuest = BootGuest()) -> tuple[Int64s, npt.NDArray[np.int8]]:
    """Conversions of one boot, and the index in :data:`SOURCES` that each comes from: (n, 6) and (n,).

    The file starts all private and populated, as launch leaves it. Addresses follow the allocators: firmware takes memory
    downwards from the top of low memory and gives its DMA buffers back; swiotlb lies below that (memblock, top down, below
    4 GiB); per-CPU areas and GHCBs at the top of all memory (memblock, top down); pools and rings in the lowest free block
    of the highest zone, one after another, as unmovable allocations cluster.
    """
    if guest.memory < 256 * MIB or guest.memory % (2 * MIB):
        raise WorkbenchError(f"memory: {guest.memory} bytes; a boot needs a multiple of 2 MiB from 256 MiB")
    rows: list[tuple[int, int, int, str]] = []

    def share(offset: int, length: int, source: str, to_shared: bool = True) -> None:
        if length > 0:
            rows.append((offset, length, int(to_shared), source))

    low, top = guest.low_memory, guest.memory
    # Firmware: the reset code's GHCB, one GHCB for each CPU, the DMA buffers (returned before the kernel starts).
    share(8 * MIB, PAGE_SIZE, "firmware")
    position = low - guest.reserved_top
    for _cpu in range(guest.possible_cpus):
        position -= 2 * PAGE_SIZE
        share(position, PAGE_SIZE, "firmware")
    buffers = []
    for count, size in FIRMWARE_BUFFERS:
        for _ in range(count):
            position -= size
            buffers.append((position, size))
            position -= PAGE_SIZE
    for offset, size in buffers:
        share(offset, size, "firmware")
    for offset, size in buffers:
        share(offset, size, "firmware", False)
    # Kernel: .bss..decrypted is 2 MiB aligned in the image, loaded at 16 MiB.
    share(48 * MIB, 2 * MIB, "kernel image")
    # swiotlb, decrypted in requests of up to 64 entries of 2 MiB.
    size = min(swiotlb_pool(guest.memory, guest.possible_cpus), low // 2)  # halved until it fits
    start = (position - size) // PAGE_SIZE * PAGE_SIZE
    end = start + size
    while start < end:
        step = min(end, (start // (2 * MIB) + PSC_ENTRIES) * 2 * MIB) - start
        share(start, step, "swiotlb")
        start += step
    # Per-CPU data (apf_reason, steal_time, kvm_apic_eoi: one page of each unit), then GHCBs (two pages and flags each).
    first_unit = (top - guest.possible_cpus * guest.percpu_unit) // (2 * MIB) * (2 * MIB)
    for cpu in range(guest.possible_cpus):
        share(first_unit + cpu * guest.percpu_unit, PAGE_SIZE, "per-CPU data")
    for cpu in range(guest.possible_cpus):
        share(first_unit - (cpu + 1) * 3 * PAGE_SIZE, PAGE_SIZE, "GHCB")
    # Lazy acceptance in chunks; everything is private already, so this asks for nothing new.
    before_acceptance = len(rows)
    accepted = np.arange(low if top > low else 0, first_unit // (4 * MIB) * (4 * MIB) - 4 * MIB, ACCEPT_CHUNK)
    # kernel/dma/pool.c: three pools of 128 KiB for each GiB, at most one 4 MiB block; then the rings.
    pool = min(max(guest.memory // GIB * 128 * KIB, 128 * KIB), 4 * MIB)
    pool = 1 << (pool.bit_length() - 1)
    share(12 * MIB, min(pool, 2 * MIB), "DMA pools")
    share(64 * MIB, pool, "DMA pools")
    base = low if top > low else 96 * MIB
    share(base, pool, "DMA pools")
    ring = base + pool
    for _queue in range(guest.queues):
        share(ring, guest.queue_pages * PAGE_SIZE, "virtio rings")
        ring += guest.queue_pages * PAGE_SIZE
    table = np.array([row[:3] for row in rows], np.int64)
    sources = np.array([SOURCES.index(row[3]) for row in rows], np.int8)
    stream = np.zeros(
        (len(rows) + len(accepted), 6), np.int64
    )  # at 16 TiB nearly all of it is acceptance: filled in place
    stream[:, folio.OP] = folio.CONVERT
    for part, of in (
        (slice(before_acceptance), slice(before_acceptance)),
        (slice(before_acceptance + len(accepted), None), slice(before_acceptance, None)),
    ):
        stream[part, folio.OFFSET], stream[part, folio.LENGTH] = table[of, 0], table[of, 1]
        stream[part, folio.ARGUMENT] = table[of, 2]
    middle = slice(before_acceptance, before_acceptance + len(accepted))
    stream[middle, folio.OFFSET], stream[middle, folio.LENGTH] = accepted, ACCEPT_CHUNK
    return stream, np.insert(sources, before_acceptance, np.full(len(accepted), SOURCES.index("acceptance"), np.int8))


def bounce_buffers(
    memory: int,
    count: int,
    *,
    in_flight: int = 64,
    sizes: tuple[int, ...] = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB),
    region: int | None = None,
    scattered: float = 0.0,
    seed: int = 0,
) -> Int64s:
    """Steady I/O whose buffers are converted back and forth: each is shared, and private again ``in_flight`` later.

    Buffers lie anywhere in ``region`` bytes at the end of memory (all of it if left out), aligned to their size; a
    share of ``scattered`` lies anywhere in memory instead.
    """
    region = memory if region is None else min(region, memory)
    _positive("count", count)
    if not 0 <= scattered <= 1:
        raise WorkbenchError(f"scattered: {scattered}; a share of 0 to 1")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    size = np.asarray(sizes, np.int64)[rng.integers(0, len(sizes), count)]
    place = rng.random(count)
    span = np.where(rng.random(count) < scattered, memory, region)
    offset = (memory - span) // size * size + (place * (span // size)).astype(np.int64) * size
    order = np.concatenate((np.arange(count), np.arange(count) + in_flight - 0.5))
    which = np.argsort(order, kind="stable")
    return conversions(np.tile(offset, 2)[which], np.tile(size, 2)[which], np.repeat([1, 0], count)[which])


def prefault(memory: int, page_size: str, nodes: int) -> Int64s:
    """Guest faults that populate the whole file, an equal part of it on each node in turn."""
    unit = PAGE_SIZE << choice("page_size", page_size, PAGE_ORDERS)
    borders = [memory // unit * node // nodes * unit for node in range(nodes + 1)]
    rows = [
        (folio.GUEST_FAULT, low, high - low, 1, node, 0)
        for node, (low, high) in enumerate(pairwise(borders))
        if high > low
    ]
    return np.array(rows, np.int64)


def guest_conversions(
    memory: int | str,
    count: int,
    *,
    vcpus: int = 16,
    scattered: float = 0.25,
    hot_bytes: int | str = 64 * MIB,
    seed: int = 0,
) -> Int64s:
    """What a confidential guest converts: its boot, then ``count`` conversions of I/O buffers, half of them back.

    :func:`boot` without the acceptance of memory, which is private already, and :func:`bounce_buffers` in ``hot_bytes``
    at the end of memory but for a share of ``scattered``, two buffers in flight for each vCPU. Of virtqueues there are
    five for two vCPUs.
    """
    size = parse_bytes(memory, "memory")
    if count < 0 or vcpus < 1:
        raise WorkbenchError(f"count: {count}, vcpus: {vcpus}; at least 0 conversions and 1 vCPU")
    started, source = boot(BootGuest(size, vcpus, queues=5 * vcpus // 2))
    stream = started[source != SOURCES.index("acceptance")]
    if count < 2:
        return stream
    hot = parse_bytes(hot_bytes, "hot_bytes")
    steady = bounce_buffers(size, count // 2, in_flight=2 * vcpus, region=hot, scattered=scattered, seed=seed)
    return np.concatenate((stream, steady))


def shared_for_good(memory: int, share: float, run: int, *, seed: int = 0) -> Int64s:
    """A share of memory that becomes shared and stays so, in runs of ``run`` bytes, aligned to it, anywhere."""
    if not 0 <= share <= 1 or run < PAGE_SIZE or run % PAGE_SIZE or memory % run:
        raise WorkbenchError(
            f"share: {share}, run: {run}; a share of 0 to 1 and runs of whole pages that divide memory"
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 4]))
    offset = rng.permutation(memory // run)[: max(share > 0, round(memory // run * share))].astype(np.int64) * run
    return conversions(offset, np.full(len(offset), run), np.ones(len(offset), np.int64))


def ballooning(memory: int, fraction: float = 0.25, *, chunk: int = 2 * MIB, seed: int = 0) -> Int64s:
    """A balloon takes ``fraction`` of memory in chunks anywhere (punched), then gives it back (guest faults)."""
    _positive("chunk", chunk)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    taken = rng.permutation(memory // chunk)[: int(memory // chunk * fraction)].astype(np.int64)
    stream = np.zeros((2 * len(taken), 6), np.int64)
    stream[: len(taken), folio.OP], stream[len(taken) :, folio.OP] = folio.PUNCH, folio.GUEST_FAULT
    stream[:, folio.OFFSET], stream[:, folio.LENGTH] = np.concatenate((taken, taken[::-1])) * chunk, chunk
    stream[len(taken) :, folio.ARGUMENT] = 1
    return stream


def bad_guest(count: int, offset: int = 0) -> Int64s:
    """A hostile guest that flips one page back and forth."""
    _positive("count", count)
    return conversions(np.full(count, offset), np.full(count, PAGE_SIZE), np.arange(count) % 2 == 0)


def uniform_random(
    memory: int, count: int, *, smallest: int = 4 * KIB, largest: int = 2 * MIB, seed: int = 0
) -> Int64s:
    """Conversions anywhere, sizes log-uniform between two bounds, to either side with equal chance."""
    _positive("count", count)
    if not PAGE_SIZE <= smallest <= largest <= memory:
        raise WorkbenchError(f"largest: {largest}; sizes go from 4 KiB over smallest to largest, up to the memory")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    low, high = np.log(smallest // PAGE_SIZE), np.log(largest // PAGE_SIZE + 1)
    pages = np.minimum(np.exp(rng.uniform(low, high, count)).astype(np.int64), largest // PAGE_SIZE)
    first = (rng.random(count) * (memory // PAGE_SIZE - pages + 1)).astype(np.int64)
    return conversions(first * PAGE_SIZE, pages * PAGE_SIZE, rng.integers(0, 2, count))


def _positive(field: str, value: int) -> None:
    if value < 1:
        raise WorkbenchError(f"{field}: {value!r} must be 1 or more")


def operations(stream: Int64s, file: str = "guest", task: str | None = None) -> list[sc.Operation]:
    """A stream as operations of a scenario, by one task."""
    out: list[sc.Operation] = []
    names = {number: name for name, number in OPERATIONS.items()}
    kinds = {number: kind for kind, number in KINDS.items()}
    for op, offset, length, argument, _node, _cpu in stream.tolist():
        name, span = names[op], {"file": file, "task": task, "offset": offset, "length": length}
        if name == "convert":
            out.append(sc.Convert(**span, to="shared" if argument else "private"))
        elif name == "pin":
            out.append(sc.Pin(**span, kind=kinds[argument]))
        elif name == "unpin":
            out.append(sc.Unpin(**span, kind=kinds[argument]))
        elif name == "host_fault":
            out.append(sc.Fault(**span, by="host"))
        elif name == "guest_fault":
            out.append(sc.Fault(**span, by="guest"))
        elif name == "punch_hole":
            out.append(sc.PunchHole(**span))
        elif name == "hwpoison":
            out.append(sc.Hwpoison(file=file, task=task, offset=offset, length=PAGE_SIZE))
        elif name == "merge":
            out.append(sc.Collapse(**span))
        else:
            raise WorkbenchError(f"stream: {name} has no operation in a scenario")
    return out

"""Measure the machine this runs on and write a profile of it.

For every pair of a node with CPUs and a node with memory: idle latency by chasing pointers through memory that no cache
holds, and a family of bandwidth-latency curves by share of reads, with one CPU chasing while the others load the memory
more and more (the method of the Mess benchmark). Besides: bandwidth by number of threads, independent random reads of
one core, and the time of first touches by page size.

Memory is bound with ``mbind`` and checked with ``move_pages``; threads are pinned with ``sched_setaffinity``. What could
not be bound, pinned or repeated until it was steady is listed in the profile under ``not_measured`` and has no figure.
Every figure is the median of repeated measurements, with their relative spread. One thread's work is timed by its own CPU
time, so that other work on the machine does not count as latency; how much there was is said.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from workbench import costs as cost_table
from workbench.cost.profile import Profile, from_mapping
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.topology.host import Host
from workbench.units import PAGE_SIZE, check_seconds, format_bytes

LINE = 64
MPOL_BIND = 2
CALLS = {"x86_64": {"mbind": 237, "move_pages": 279}, "aarch64": {"mbind": 235, "move_pages": 239}}
"""Numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h."""
STORED_OF_8 = (0, 4, 8)
"""Lines of eight that are stored to: 100, 67 and 50 % reads."""
PAUSES = (2000, 600, 250, 120, 60, 30, 15, 6, 0)
"""Steps of arithmetic after eight lines, from hardly any traffic to all there is."""
REPEATS = (3, 9)
"""Fewest and most repetitions of one figure."""
BUSY = 0.05
"""Part of a thread's time that other work may take before it is said."""
STEADY = 0.05
"""Relative spread (median absolute deviation, scaled) at which repetitions stop."""
CHUNK_LINES = 1 << 15
LEAST_BUFFER, MOST_BUFFER = 64 << 20, 1 << 30
SMALLEST_BUFFER, BUFFER_STEP = 8 << 20, 2 << 20
PAGE_WORDS = {"4 KiB": PAGE_SIZE // 8, "2 MiB": (2 << 20) // 8}


class Progress(Protocol):
    """What is told about the progress: a label and the part done, 0 to 1."""

    def __call__(self, label: str, part: float) -> None: ...


@dataclass(frozen=True)
class MeasuredFigure:
    """Median of repeated measurements, relative spread (scaled median absolute deviation), and how many there were."""

    value: float
    spread: float
    repeats: int


@dataclass
class NotMeasured:
    """What was not measured, and why."""

    missing: list[str] = field(default_factory=list)


def repeated(once: Callable[[], float], until: float) -> MeasuredFigure:
    """Repeat a measurement until it is steady or the time is up, at least :data:`REPEATS`[0] times."""
    values: list[float] = []
    while True:
        values.append(once())
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(np.array(values) - middle))) / middle if middle else 0.0
        enough = len(values) >= REPEATS[0] and (spread <= STEADY or time.monotonic() >= until)
        if enough or len(values) >= REPEATS[1]:
            return MeasuredFigure(middle, spread, len(values))


# --------------------------------------------------------------------------------------------- memory and CPUs


def _syscall(name: str, *arguments: Any) -> None:
    number = CALLS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(38, f"{name}: system call number not known for {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {errno_name(error)}")


class Buffer:
    """Anonymous memory as int64 words, bound to a node where that can be done.

    node : Linux node id, or None to leave the memory to the task's policy
    huge : ask for huge pages (True), refuse them (False)
    """

    def __init__(self, size: int, node: int | None = None, huge: bool = True) -> None:
        self._map = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(self._map, np.int64)
        skip = -whole.ctypes.data % (2 << 20) // 8
        self.words: np.ndarray = whole[skip : skip + size // 8]
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        if node is not None:
            self._bind(node, size)

    def _bind(self, node: int, size: int) -> None:
        mask = (ctypes.c_ulong * 16)()
        mask[node // 64] = 1 << node % 64
        _syscall(
            "mbind", ctypes.c_void_p(self.words.ctypes.data), ctypes.c_ulong(size), ctypes.c_int(MPOL_BIND),
            ctypes.byref(mask), ctypes.c_ulong(16 * 64), ctypes.c_uint(0),
        )  # fmt: skip

    def nodes(self, samples: int = 64) -> set[int]:
        """Nodes of some of the pages that are present, as the kernel says."""
        size = self.words.nbytes
        count = min(samples, max(1, size // PAGE_SIZE))
        places = [self.words.ctypes.data + k * (size // count) // PAGE_SIZE * PAGE_SIZE for k in range(count)]
        pages = (ctypes.c_void_p * count)(*places)
        status = (ctypes.c_int * count)()
        _syscall(
            "move_pages", ctypes.c_int(0), ctypes.c_ulong(count), ctypes.byref(pages), None, ctypes.byref(status),
            ctypes.c_int(0),
        )  # fmt: skip
        return {int(value) for value in status if value >= 0}

    def close(self) -> None:
        """Give the memory back."""
        self.words = np.zeros(0, np.int64)
        with contextlib.suppress(BufferError):
            self._map.close()


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Run the calling thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bound_buffer(size: int, node: int, alone: bool) -> Buffer:
    """A touched buffer on a node. Raises OSError if the kernel does not put it there.

    alone : the machine has no other node with memory, so that nothing needs binding
    """
    buffer = Buffer(size, None if alone else node)
    buffer.words[:: PAGE_SIZE // 8] = 1
    if not alone and buffer.nodes() != {node}:
        found = sorted(buffer.nodes())
        buffer.close()
        raise OSError(5, f"pages asked for on node {node} lie on {found}")
    return buffer


def last_level_cache() -> int:
    """Bytes of the largest cache of this machine's first CPU; 32 MiB if it does not say."""
    largest = 0
    for index in range(8):
        try:
            with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size", encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            break
        largest = max(largest, int(text[:-1]) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0))
    return largest or 32 << 20


def free_memory(node: int | None = None) -> int:
    """Free bytes of a node, or of the machine."""
    path = "/proc/meminfo" if node is None else f"/sys/devices/system/node/node{node}/meminfo"
    word = "MemAvailable:" if node is None else "MemFree:"
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                if word in line:
                    return int(line.split()[-2]) << 10
    except OSError:
        pass
    return 0


# --------------------------------------------------------------------------------------------- loads


class Load:
    """Threads that stream through their own buffers, each on its CPU, until they are stopped.

    Raises OSError from :meth:`start` if a thread cannot be pinned.
    """

    def __init__(self, buffers: Sequence[Buffer], cpus: Sequence[int], stored: int, pause: int) -> None:
        self._stop = threading.Event()
        self._lines = np.zeros((len(cpus), 8), np.int64)  # a line of its own for each
        self._errors: list[OSError] = []
        ready = threading.Barrier(len(cpus) + 1)
        self._threads = [
            threading.Thread(target=self._run, args=(k, buffer.words, cpu, stored, pause, ready), daemon=True)
            for k, (buffer, cpu) in enumerate(zip(buffers, cpus, strict=False))
        ]
        self._ready = ready
        self._factor = (8 + stored) / 8.0

    def _run(self, number: int, words: np.ndarray, cpu: int, stored: int, pause: int, ready: threading.Barrier) -> None:
        from workbench.kernels import measure

        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            self._errors.append(error)
        ready.wait()
        lines = len(words) // measure.WORDS
        at = 0
        while not self._stop.is_set() and not self._errors:
            last = min(lines, at + CHUNK_LINES)
            begin = time.thread_time_ns()
            measure.stream(words, at, last, stored, pause)
            self._lines[number, 1] += time.thread_time_ns() - begin
            self._lines[number, 0] += last - at
            at = last if last < lines else 0

    def start(self) -> None:
        """Start all threads and wait until each runs on its CPU."""
        for thread in self._threads:
            thread.start()
        self._ready.wait()
        if self._errors:
            self.stop()
            raise self._errors[0]

    def traffic(self) -> float:
        """Bytes moved so far, write-backs included."""
        return float(self._lines[:, 0].sum()) * LINE * self._factor

    def own_time(self) -> np.ndarray:
        """Lines moved and ns of CPU time of each thread so far, int64 (threads, 2)."""
        return self._lines[:, :2].copy()

    def stop(self) -> None:
        """Stop all threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def chain_of(buffer: Buffer, seed: int = 0) -> int:
    """Make a buffer one random cycle of lines; returns how many."""
    from workbench.kernels import measure

    lines = len(buffer.words) // measure.WORDS
    measure.link_lines(np.random.default_rng(seed).permutation(lines), buffer.words)
    return lines


def chase_ns(buffer: Buffer, steps: int, start: int = 0) -> tuple[float, int]:
    """ns of CPU time of one dependent read, and where the chase ended."""
    from workbench.kernels import measure

    begin = time.thread_time_ns()
    place = int(measure.chase(buffer.words, start, steps))
    return (time.thread_time_ns() - begin) / steps, place


class Clock:
    """CPU time of the calling thread beside the time that passed: what other work took from it."""

    def __init__(self) -> None:
        self._wall, self._own = time.perf_counter_ns(), time.thread_time_ns()

    def taken(self) -> float:
        """Part of the time since the clock was made in which the thread did not run, 0 to 1."""
        wall = time.perf_counter_ns() - self._wall
        return max(0.0, 1.0 - (time.thread_time_ns() - self._own) / wall) if wall else 0.0


# --------------------------------------------------------------------------------------------- the whole machine


def measure(
    host: Host | None = None,
    budget: float = 60.0,
    name: str = "measured",
    buffer_bytes: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure this machine.

    Parameters
    ----------
    host : its topology; read from ``/sys`` if left out
    budget : seconds to spend, about; parts that find no time left are listed as not measured
    name : of the profile
    buffer_bytes : memory of each thread; four times the last-level cache, within limits, if left out
    progress : told about the progress
    """
    check_seconds(budget, "measure.budget")
    if platform.system() != "Linux":
        raise WorkbenchError(f"measure: needs Linux, not {platform.system()}")
    from_mapping({"name": name, "source": "-", "queue_lines": 1.0}, "measure.name")  # refused before the time is spent
    host = Host.from_sysfs() if host is None else host
    allowed = os.sched_getaffinity(0)
    cpus = {node.id: sorted(set(node.cpus) & allowed) for node in host.nodes}
    initiators = [node for node, mine in cpus.items() if mine]
    targets = [node.id for node in host.nodes if node.memory_bytes]
    if not initiators:
        raise WorkbenchError("measure: this process may run on no CPU of the machine's nodes")
    size = _buffer_bytes(buffer_bytes, max(len(mine) for mine in cpus.values()), targets)
    told = progress or (lambda label, part: None)
    report = NotMeasured()
    for node in host.nodes:
        if node.cpus and not cpus[node.id]:
            report.missing.append(f"node {node.id}: this process may not run on its CPUs")
    pairs = [(source, target) for source in initiators for target in targets]
    _warm_up()
    begin = time.monotonic()
    told("compiled", 0.02)
    share = 0.75 * budget / len(pairs)
    memories: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for number, (source, target) in enumerate(pairs):
        told(f"CPUs of node {source}, memory of node {target}", 0.02 + 0.75 * number / len(pairs))
        until = begin + share * (number + 1)
        entry = _pair(cpus[source], source, target, len(targets) == 1, size, until, report)
        if not entry:
            continue
        own = source == target or not cpus.get(target)
        if own and not any(m["nodes"] == [target] for m in memories):
            kind = next(node.kind for node in host.nodes if node.id == target)
            memories.append({"kind": kind, "nodes": [target], **entry})
        else:
            links.append({"initiator": source, "target": target, **entry})
    told("one core", 0.8)
    cores = _cores(cpus[initiators[0]], size, memories, begin + 0.88 * budget, report)
    _beyond_the_curves(memories, initiators[0], cores, report)
    told("first touch", 0.9)
    first_touch = _first_touch(cpus[initiators[0]][0], begin + budget, report)
    told("done", 1.0)
    if not (memories or links or cores or first_touch):
        raise WorkbenchError(f"measure: nothing could be measured: {'; '.join(report.missing)}")
    document: dict[str, Any] = {
        "name": name,
        "title": f"{len(initiators)} node(s) with CPUs, {len(targets)} with memory, {sum(map(len, cpus.values()))} CPUs",
        "source": f"measured on the machine itself by the workbench in {time.monotonic() - begin:.0f} s",
        "memories": memories,
        "links": links,
        "cores": cores,
        "first_touch": first_touch,
        "not_measured": report.missing,
    }
    return from_mapping({key: value for key, value in document.items() if value}, name)


def _buffer_bytes(given: int | None, threads: int, targets: Sequence[int]) -> int:
    free = min([free_memory(), *(free_memory(target) or free_memory() for target in targets)])
    most = free // 2 // (threads + 1) // BUFFER_STEP * BUFFER_STEP
    if most < SMALLEST_BUFFER:
        raise WorkbenchError(
            f"measure: {free >> 20} MiB are free; {(threads + 1) * 2 * SMALLEST_BUFFER >> 20} are needed"
        )
    if given is None:
        return min(most, MOST_BUFFER, max(LEAST_BUFFER, 4 * last_level_cache() // BUFFER_STEP * BUFFER_STEP))
    size = cost_table.whole("measure.buffer", given, 0) // BUFFER_STEP * BUFFER_STEP
    if not SMALLEST_BUFFER <= size <= most:
        raise WorkbenchError(
            f"measure.buffer: {format_bytes(given)} for each of {threads} threads; from {format_bytes(SMALLEST_BUFFER)} to "
            f"{format_bytes(most)}, half of the memory that is free, are allowed"
        )
    return size


def _warm_up() -> None:
    """Compile all loops before anything is timed."""
    from workbench.kernels import measure

    words = np.zeros(1 << 12, np.int64)
    measure.link_lines(np.arange(len(words) // measure.WORDS), words)
    measure.chase(words, 0, 8)
    measure.stream(words, 0, 16, 1, 1)
    measure.gather(words, 1, 8)
    measure.touch(words, 64)


def _pair(
    cpus: Sequence[int], source: int, target: int, alone: bool, size: int, until: float, report: NotMeasured
) -> dict[str, Any]:
    """Idle latency and curves of one pair of nodes."""
    where = f"CPUs of node {source}, memory of node {target}"
    buffers: list[Buffer] = []
    try:
        with pinned(cpus[0]):
            buffers = [bound_buffer(size, target, alone) for _ in range(len(cpus))]
            lines = chain_of(buffers[0])
            steps = min(lines, 1 << 19)
            place = 0

            def once() -> float:
                nonlocal place
                ns, place = chase_ns(buffers[0], steps, place)
                return ns

            clock = Clock()
            idle = repeated(once, until)
            if clock.taken() > BUSY:
                taken = f"other work took {100 * clock.taken():.0f} % of the CPU's time"
                report.missing.append(f"{where}: {taken}: the idle latency is no more than an upper bound")
            entry: dict[str, Any] = {"idle_latency": round(idle.value, 2), "spread": max(round(idle.spread, 4), 1e-4)}
            if idle.spread > STEADY:
                report.missing.append(f"{where}: idle latency is not steady, spread {100 * idle.spread:.0f} %")
            if len(cpus) < 2:
                report.missing.append(f"{where}: loaded latencies need a second CPU on node {source}")
                return entry
            curves = _curves(buffers, cpus, idle.value, until, where, report)
            if curves:
                entry["curves"] = curves
            return entry
    except OSError as error:
        report.missing.append(f"{where}: {error.strerror or error}")
        return {}
    finally:
        for buffer in buffers:
            buffer.close()


def _curves(
    buffers: Sequence[Buffer], cpus: Sequence[int], idle: float, until: float, where: str, report: NotMeasured
) -> dict[float, list[tuple[float, float]]]:
    """Points (MB/s, ns) by share of reads: one CPU chases, the others stream with shorter and shorter pauses."""
    found: dict[float, list[tuple[float, float]]] = {}
    step_time = max(0.02, (until - time.monotonic()) / (len(STORED_OF_8) * len(PAUSES) * REPEATS[0]))
    for stored in STORED_OF_8:
        share = 100.0 * 8 / (8 + stored)
        points = [(0.0, round(idle, 2))]
        for pause in PAUSES:
            if time.monotonic() >= until:
                report.missing.append(f"{where}: {share:.0f} % reads: no time left for pauses from {pause} on")
                break
            load = Load(buffers[1:], cpus[1:], stored, pause)
            load.start()
            try:
                speeds, latencies = [], []
                place = 0
                for _ in range(REPEATS[0]):
                    begun, moved, steps, spent, own = time.perf_counter_ns(), load.traffic(), 0, 0.0, 0.0
                    while spent < step_time * 1e9:
                        ns, place = chase_ns(buffers[0], 20_000, place)
                        own += 20_000 * ns
                        steps += 20_000
                        spent = time.perf_counter_ns() - begun
                    latencies.append(own / steps)
                    # The chase moves a line each step, too.
                    speeds.append(1000.0 * (load.traffic() - moved + steps * LINE) / spent)
            finally:
                load.stop()
            points.append((round(float(np.median(speeds)), 1), round(float(np.median(latencies)), 2)))
        points = [points[0], *sorted(points[1:])]
        if len(points) > 2:
            found[round(share, 2)] = points
    return found


def _cores(
    cpus: Sequence[int], size: int, memories: Sequence[dict[str, Any]], until: float, report: NotMeasured
) -> dict[str, Any]:
    """What one core and 1, 2, 4, ... cores of the first node pull from memory, in lines in flight and MB/s."""
    from workbench.kernels import measure as loops

    idle = next((memory["idle_latency"] for memory in memories), None)
    buffers: list[Buffer] = []
    try:
        for _ in cpus:
            buffers.append(Buffer(size))
        for buffer in buffers:
            buffer.words[:: PAGE_SIZE // 8] = 1
        with pinned(cpus[0]):

            def random_reads() -> float:
                steps = 1 << 18
                begin = time.thread_time_ns()
                loops.gather(buffers[0].words, begin & 0xFFFF, steps)
                return 1000.0 * steps * LINE / (time.thread_time_ns() - begin)

            random = repeated(random_reads, until)
        ramp: dict[int, MeasuredFigure] = {}
        count = 1
        while count <= len(cpus):
            load = Load(buffers[:count], cpus[:count], 0, 0)
            load.start()

            def speed(load: Load = load) -> float:
                before = load.own_time()
                while ((load.own_time() - before)[:, 1] == 0).any():
                    time.sleep(0.05)
                lines, spent = (load.own_time() - before).T
                return float((1000.0 * LINE * lines / spent).sum())

            try:
                speed()
                ramp[count] = repeated(speed, until)
            finally:
                load.stop()
            count = len(cpus) if count < len(cpus) < 2 * count else 2 * count
    except OSError as error:
        report.missing.append(f"threads: {error.strerror or error}")
        return {}
    finally:
        for buffer in buffers:
            buffer.close()
    if idle is None:
        report.missing.append("lines in flight: need an idle latency")
        return {}
    return {
        "lines_streaming": round(max(1.0, ramp[1].value * idle / 1000.0 / LINE), 2),
        "lines_random": round(max(1.0, random.value * idle / 1000.0 / LINE), 2),
        "by_threads": {threads: round(figure.value, 1) for threads, figure in ramp.items()},
    }


def _beyond_the_curves(
    memories: Sequence[dict[str, Any]], node: int, cores: Mapping[str, Any], report: NotMeasured
) -> None:
    """What all threads pull from their own node is its bandwidth, where the curves end below: one CPU only chases there."""
    most = max(cores.get("by_threads", {}).values(), default=0.0)
    for memory in memories:
        reads = memory.get("curves", {}).get(100.0)
        if reads and memory.get("nodes") == [node]:
            peak = max(speed for speed, _ in reads)
            if most > peak * (1.0 + STEADY):
                memory["bandwidth"] = most
                ends = f"the curves end at {peak / 1000:.1f} GB/s of {most / 1000:.1f}"
                report.missing.append(f"node {node}: {ends}: too few CPUs load the memory while one of them chases")


def _first_touch(cpu: int, until: float, report: NotMeasured) -> dict[str, float]:
    """ns per 4 KiB of making fresh memory present, by page size: a fault, clearing, and the mapping."""
    from workbench.kernels import measure as loops

    out = {}
    for page, words in PAGE_WORDS.items():
        size = 64 << 20

        def once(page: str = page, words: int = words, size: int = size) -> float:
            buffer = Buffer(size, huge=page != "4 KiB")
            begin = time.thread_time_ns()
            loops.touch(buffer.words, words)
            spent = time.thread_time_ns() - begin
            if page != "4 KiB" and not _has_huge(buffer):
                buffer.close()
                raise OSError(95, "the kernel gives no huge pages here")
            buffer.close()
            return spent / (size / PAGE_SIZE)

        try:
            with pinned(cpu):
                out[page] = round(repeated(once, until).value, 2)
        except OSError as error:
            report.missing.append(f"first touch of {page} pages: {error.strerror or error}")
    report.missing.append("first touch of 1 GiB pages: needs reserved hugetlb pages, none are asked for")
    return out


def _has_huge(buffer: Buffer) -> bool:
    """Whether the mapping that holds the buffer has huge pages."""
    place, inside = buffer.words.ctypes.data, False
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
            for line in file:
                head = line.split(" ", 1)[0]
                if "-" in head and ":" not in head:
                    low, high = (int(part, 16) for part in head.split("-"))
                    inside = low <= place < high
                elif inside and line.startswith("AnonHugePages:"):
                    return int(line.split()[1]) > 0
    except (OSError, ValueError):
        return False
    return False

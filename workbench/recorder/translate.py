"""A Scenario as a script in the recorder's language.

Files are of 4 KiB folios, or of 2 MiB pages of a pool where the scenario's kernel has such guest_memfds (series of 2026);
policies are set by mbind on a mapping. What the probe or the emulated machine cannot do is refused with a line that says which
operation and why; what a kernel cannot do the kernel says itself: of the VM types ``sw_protected`` runs without special
hardware, where it was built in, and conversions are the calls that a VMM makes in the scenario's mode.

Nodes and CPUs are named by the numbers that Linux gives the emulated ones. Where that changes the order of nodes (one
without CPUs comes last on x86), a rotation walks them in the new order: compare the recording with a simulation of the
recording's own host, as ``verify`` does, not with one of the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from workbench import policy as mempolicy
from workbench import scenario as sc
from workbench.design import DESIGNS
from workbench.engine import attributes
from workbench.engine.calls_files import flags_word
from workbench.engine.generators import expand, in_turns, shared_turns
from workbench.engine.objects import GUEST_MEMFD_FLAG_MMAP
from workbench.errors import WorkbenchError
from workbench.probe_words import ORDERS, TOUCHES
from workbench.recorder.qemu import Emulation
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes

MAX_FILES = 8
MAX_TASKS = 8
MAX_FILE_PAGES = 1 << 17
MAX_LINES = 20_000
_HUGE = {"2 MiB": "2M"}
"""Page sizes of a guest that fits the emulated machine, as the script has them."""
_HANDOVER = "a handover is recorded from a script (`workbench record SCRIPT.txt`)"
_NOT_ON_LINUX = {
    "fbind": "v3 of the series only; Linux 7.3 has mbind",
    "hwpoison": "the probe does not inject memory errors",
    "iommu_map": "the emulated machine has no IOMMU user",
    "iommu_unmap": "the emulated machine has no IOMMU user",
    "access": "accesses have no result that could be recorded",
    "preserve": _HANDOVER,
    "kexec": _HANDOVER,
    "retrieve": _HANDOVER,
    "finish": _HANDOVER,
    "close_session": _HANDOVER,
    "pass_fd": "the probe is one process",
    "read": "the probe reads through mappings only",
    "write": "the probe writes through mappings only",
    "fstat": "the probe does not ask for the size of a file",
}


def to_script(scenario: sc.Scenario, emulation: Emulation) -> str:
    """The script of one scenario. Raises WorkbenchError for what cannot be recorded."""
    return _Translator(scenario, emulation).script()


def script_name(name: str) -> str:
    """A scenario's name as one word."""
    return re.sub(r"[^\w.-]+", "_", name.rsplit("/", 1)[-1]).strip("_") or "scenario"


class _Translator:
    def __init__(self, scenario: sc.Scenario, emulation: Emulation) -> None:
        _refuse_guest(scenario)
        self.scenario, self.emulation, self.host = scenario, emulation, scenario.host
        self.files: dict[str, str] = {}
        self.pages: dict[str, int] = {}
        self.unmapped: set[str] = set()  # guest_memfds that nobody can map: their pages are found by taking them out
        self.pinned: dict[str, list[tuple[int, int]]] = {}
        self.lines: list[str] = []
        self.operations = expand(scenario)
        self.tasks = self._tasks()
        self.numbers = {task.name: number for number, task in enumerate(self.tasks)}

    def script(self) -> str:
        """Header, the tasks' CPUs, the operations, and at the end where every page of every file is."""
        for number, task in enumerate(self.tasks):
            self._add(number, f"setcpu {self._cpu(task)}")
        if self.scenario.guest.private_memory:
            self._add(0, f"vm {self.scenario.guest.vm_type}")
        self.lines += self._pools()
        for position, operation in enumerate(self.operations):
            try:
                self._operation(operation)
            except WorkbenchError as error:
                name = operation.op  # type: ignore[attr-defined]  # each kind of operation has it, with its own value
                raise WorkbenchError(f"operation {position} ({name}): {error}") from None
        self.lines += [
            f"{'reveal' if file in self.unmapped else 'place'} {name}"
            for file, name in self.files.items()
            if self.pages[file]
        ]
        header = f"scenario {script_name(self.scenario.name)} tasks={len(self.tasks)}"
        return "\n".join([header, *self.lines]) + "\n"

    # .......................................................................................... who runs where

    def _tasks(self) -> list[sc.Task]:
        """The tasks that do something; the first is also the one that is meant when none is named."""
        with_cpus = [node.id for node in self.host.nodes if node.cpus]
        if not with_cpus:
            raise WorkbenchError("host: has no CPU, so nothing can run on it")
        vcpus = self.scenario.guest.vcpus or (sc.Vcpu(node=with_cpus[0]),)
        known = list(self.scenario.tasks) or [sc.Task(name="vmm", cpu=vcpus[0].cpu, node=vcpus[0].node)]
        names = {task.name for task in known}
        known += [
            sc.Task(name=f"vcpu{i}", cpu=vcpu.cpu, node=vcpu.node)
            for i, vcpu in enumerate(vcpus)
            if f"vcpu{i}" not in names
        ]
        used: set[str | None] = {operation.task for operation in self.operations}
        if any(isinstance(operation, sc.FirstTouch) for operation in self.operations):
            used |= {f"vcpu{i}" for i in range(len(vcpus))}
        unknown = sorted(name for name in used - {task.name for task in known} if name is not None)
        if unknown:
            raise WorkbenchError(f"task {unknown[0]!r}: is not a task of this scenario")
        tasks = [task for number, task in enumerate(known) if task.name in used or (number == 0 and None in used)]
        for task in tasks:
            if (task.il_prev, task.il_weight) != (1023, 0):
                raise WorkbenchError(f"task {task.name!r}: a recording starts with il_prev 1023 and il_weight 0")
        if len(tasks) > MAX_TASKS:
            raise WorkbenchError(f"{len(tasks)} tasks do something; at most {MAX_TASKS} can be recorded")
        return tasks or known[:1]

    def _cpu(self, task: sc.Task) -> int:
        if task.cpu is not None:
            return self.emulation.of_cpu(task.cpu)
        cpus = next((node.cpus for node in self.host.nodes if node.id == task.node), ())
        if task.node is None:
            cpus = next(node.cpus for node in self.host.nodes if node.cpus)
        if not cpus:
            raise WorkbenchError(f"task {task.name!r}: node {task.node} has no CPU to run on")
        return self.emulation.of_cpu(cpus[0])

    # .......................................................................................... operations

    def _add(self, task: int, text: str) -> None:
        self.lines.append(f"t{task} {text}" if len(self.tasks) > 1 else text)

    def _operation(self, operation: Any) -> None:
        if operation.op in _NOT_ON_LINUX:
            raise WorkbenchError(f"cannot be recorded: {_NOT_ON_LINUX[operation.op]}")
        task = 0 if operation.task is None else self.numbers[operation.task]
        handlers: dict[type, Callable[[Any, int], None]] = {
            sc.Create: self._create,
            sc.Memfd: self._memfd,
            sc.Alias: self._alias,
            sc.Fault: self._fault,
            sc.FirstTouch: self._turns,
            sc.Hog: self._hog,
            sc.GetMempolicy: self._get_mempolicy,
            sc.Convert: self._convert,
            sc.Pin: self._pin,
            sc.Unpin: self._unpin,
        }
        handler = handlers.get(type(operation))
        if handler is not None:
            handler(operation, task)
        elif isinstance(operation, sc.Observe):
            if operation.file in self.unmapped:
                raise WorkbenchError("cannot be recorded: to look at a file that cannot be mapped takes its pages out")
            first, count = self._page_range(operation)
            self.lines.append(f"place {self._file(operation.file)} {first} {count}")
        elif isinstance(operation, (sc.Zones, sc.Unhog)):
            self.lines.append("zones" if isinstance(operation, sc.Zones) else "uneat")
        else:
            self._add(task, self._simple(operation))

    def _simple(self, op: Any) -> str:
        if isinstance(op, (sc.Mmap, sc.Munmap, sc.Close)):
            if getattr(op, "unnamed", False):
                raise WorkbenchError("cannot be recorded: munmap of mappings that no name is left of")
            verb = {"mmap": "mmap", "munmap": "unmap", "close": "close"}[op.op]
            return f"{verb} {self._file(op.file)}" + (" private" if getattr(op, "private", False) else "")
        if getattr(op, "maxnode", None) is not None:
            raise WorkbenchError("cannot be recorded: maxnode, of which the probe has its own")
        if isinstance(op, (sc.Mbind, sc.SetPolicy)):
            flags = "|".join(flag.upper() for flag in getattr(op, "flags", ()))
            raw = getattr(op, "raw_flags", None)
            last = f" {raw}" if raw is not None else f" {flags}" if flags else ""
            return f"mbind {self._byte_range(op)} {_mode(op)} {self._nodes(op)}{last}"
        if isinstance(op, sc.SetMempolicy):
            return f"setpol {_mode(op)} {self._nodes(op)}"
        if isinstance(op, sc.ResetRotation):
            return "reset"
        if isinstance(op, sc.SetMempolicyHomeNode):
            return f"home {self._byte_range(op)} {self.emulation.of_node(op.home_node)}"
        if isinstance(op, sc.SetWeights):
            if op.weights is None:
                return "weights default"
            pairs = (f"{self.emulation.of_node(node)}:{weight}" for node, weight in op.weights.items())
            return "weights " + ",".join(pairs)
        if isinstance(op, sc.SetAutoWeights):
            return f"write /sys/kernel/mm/mempolicy/weighted_interleave/auto {op.value or 0}"
        if isinstance(op, sc.SchedSetaffinity):
            return f"setcpu {op.cpu if op.cpu < 0 else self.emulation.of_cpu(op.cpu)}"
        if isinstance(op, sc.SetMemsAllowed):
            return "cpuset " + (self._list(op.mems) if op.mems else "off")
        if isinstance(op, sc.Fallocate):
            return f"falloc {self._byte_range(op)}" + (f" {op.mode}" if op.mode is not None else "")
        if isinstance(op, sc.PunchHole):
            return f"punch {self._byte_range(op)}"
        if isinstance(op, sc.CheckExtension):
            return f"kvmcap {op.capability.upper()}"
        if isinstance(op, sc.CreateVm):
            return f"vm {self.scenario.guest.vm_type}"
        if isinstance(op, sc.Memslot):
            return f"slot {self._file(op.file)}" + ("" if op.backend is None else f" {self._file(op.backend)}")
        if isinstance(op, sc.SetMemoryAttributes):
            named = "private" if op.private else "shared"
            flags = f" {op.raw_flags}" if op.raw_flags else ""
            return f"attr {self._byte_range(op)} {named if op.raw_attributes is None else op.raw_attributes}{flags}"
        if isinstance(op, sc.MovePages):
            first, count = self._page_range(op)
            node = self.emulation.of_node(op.node)
            return f"movepages {self._file(op.file)} {first} {count} {node}" + (" MOVE_ALL" if op.move_all else "")
        if isinstance(op, sc.MigratePages):
            return f"migrate {self.emulation.of_node(op.source)} {self.emulation.of_node(op.target)}"
        if isinstance(op, sc.Madvise):
            first, count = self._page_range(op)
            return f"madv {self._file(op.file)} {first} {count} {op.advice}"
        raise WorkbenchError("cannot be recorded: the probe has no such operation")

    def _create(self, op: sc.Create, task: int) -> None:
        if op.nodes or op.mode not in ("default", 0):
            raise WorkbenchError("cannot be recorded: Linux 7.3 takes no policy at creation")
        name = self._new_file(op.file, self.scenario.guest.memory if op.size is None else op.size)
        names = {"mmap": "MMAP", "init_shared": "SHARED"}
        asked = ("mmap", "init_shared") if op.flags is None else op.flags
        flags = str(op.raw_flags) if op.raw_flags is not None else "|".join(names[flag] for flag in asked) or "0"
        if self.scenario.guest.private_memory:
            word = flags_word(self.scenario, op)
            flags = str(word)
            (self.unmapped.discard if word & GUEST_MEMFD_FLAG_MMAP else self.unmapped.add)(op.file)
        if huge := _HUGE.get(op.page_size or self.scenario.guest.page_size):
            flags = f"HUGETLB_{huge}" if flags == "0" else f"{flags}|HUGETLB_{huge}"
        self._add(task, f"create {name} {self.pages[op.file]} {flags}")
        if op.file in self.unmapped and self.scenario.conversion_mode == "out-of-place":
            self._private_from_the_start(op.file, task)

    def _pools(self) -> list[str]:
        """Pools for a guest of huge pages: as the scenario has them at boot, or on each node enough for all of the guest."""
        guest = self.scenario.guest
        if not PAGE_ORDERS[guest.page_size]:
            return []
        whole = -(-guest.memory // (PAGE_SIZE << PAGE_ORDERS[guest.page_size]))
        stated = self.scenario.boot.hugetlb_pages
        pages = dict.fromkeys((node.id for node in self.host.nodes), whole) if stated is None else stated
        return [f"pool {_HUGE[guest.page_size]} {self.emulation.of_node(node)} {n}" for node, n in pages.items() if n]

    def _private_from_the_start(self, file: str, task: int) -> None:
        """What a VMM does with memory that it cannot map, unless the scenario makes the memslot itself: all of it is private."""
        if any(isinstance(operation, sc.Memslot) and operation.file == file for operation in self.operations):
            return
        name, backend = self.files[file], ""
        if attributes.wanted(self.scenario):
            backend = " " + self._new_file(attributes.backend_name(file), self.pages[file] * PAGE_SIZE)
            self._add(task, f"memfd{backend} {self.pages[file]}")
        self._add(task, f"slot {name}{backend}")
        self._add(task, f"attr {name} 0 {self.pages[file]} private")

    def _convert(self, op: sc.Convert, task: int) -> None:
        """In place one call on the descriptor; out of place those of :mod:`workbench.engine.attributes`."""
        span = self._byte_range(op)
        if self.scenario.conversion_mode == "in-place":
            self._add(task, f"convert {span} {op.to}")
            return
        backend = self.files.get(attributes.backend_name(op.file))
        self._add(task, f"attr {span} {op.to}")
        if backend is None:
            return
        first, count = self._page_range(op)
        if op.to == "private":
            self._add(task, f"punch {backend} {first} {count}")
            return
        self._add(task, f"punch {self.files[op.file]} {first} {count}")
        self._add(task, f"touch {backend} {first} {count} seq")

    def _pin(self, op: sc.Pin, task: int) -> None:
        first, count = self._page_range(op)
        self.pinned.setdefault(op.file, []).append((first, count))
        how = "uring" if op.kind == "long_term" else "splice"
        self._add(task, f"pin {self._file(op.file)} {first} {count} {how}")

    def _unpin(self, op: sc.Unpin, task: int) -> None:
        """The probe gives back all pins of a file at once."""
        first, count = self._page_range(op)
        if any(low < first or low + pages > first + count for low, pages in self.pinned.pop(op.file, [])):
            raise WorkbenchError(
                "cannot be recorded: the probe gives back all pins of a file at once, not those of a range"
            )
        self._add(task, f"unpin {self._file(op.file)}")

    def _memfd(self, op: sc.Memfd, task: int) -> None:
        # An inode number that is asked for is not handed on: the kernel chooses, and verify infers what it chose.
        name = self._new_file(op.file, op.size)
        huge = f" {self.scenario.guest.page_size[:3].replace(' ', '')}" if op.hugetlb else ""
        self._add(task, f"memfd {name} {self.pages[op.file]}{huge}")

    def _alias(self, op: sc.Alias, task: int) -> None:
        of = self._file(op.of)
        name = self._new_file(op.file, self.pages[op.of] * PAGE_SIZE)
        self._add(task, f"alias {name} {of}")

    def _fault(self, op: sc.Fault, task: int) -> None:
        first, count = self._page_range(op)
        where = f"{self._file(op.file)} {first} {count}"
        if op.by != "host":
            if op.order != "sequential":
                raise WorkbenchError(f"order {op.order!r} by {op.by!r} cannot be recorded; sequential can")
            self._add(task, f"{'vtouch' if op.by == 'guest' else 'prefault'} {where}")
            return
        parameter = {"random": f" {op.seed}", "strided": f" {op.stride}"}.get(op.order, "")
        self._add(task, f"{'touch' if op.write else 'rtouch'} {where} {ORDERS[op.order]}{parameter}")

    def _turns(self, op: sc.FirstTouch, task: int) -> None:
        """First touch in turns: one line for each turn of a vCPU."""
        if op.order != "sequential":
            raise WorkbenchError(f"order {op.order!r} in turns cannot be recorded; sequential can")
        first, count = self._page_range(op)
        vcpus = len(self.scenario.guest.vcpus) or 1
        turns = shared_turns if op.shared else in_turns
        verb = TOUCHES[op.by]
        for pages, owners in turns(first, first + count, vcpus, op.turn):
            breaks = np.flatnonzero((np.diff(owners) != 0) | (np.diff(pages) != 1)) + 1
            for run, owner in zip(np.split(pages, breaks), np.split(owners, breaks), strict=True):
                number = self.numbers[f"vcpu{owner[0]}"]
                self._add(number, f"{verb} {self._file(op.file)} {run[0]} {len(run)}")
            if len(self.lines) > MAX_LINES:
                raise WorkbenchError(f"needs more than {MAX_LINES} turns; take longer ones")

    def _hog(self, op: sc.Hog, task: int) -> None:
        verb, amount = ("eat", op.size) if op.size is not None else ("eatto", op.leave_free)
        assert amount is not None
        pages = round(amount * self.emulation.scale) // PAGE_SIZE
        self.lines.append(f"{verb} {self.emulation.of_node(op.node)} {pages}" + (" bind" if op.bind else ""))

    def _get_mempolicy(self, op: sc.GetMempolicy, task: int) -> None:
        if op.file is None:
            self._add(task, "getil" if op.node else "gettask")
        else:
            self._add(task, f"{'getnode' if op.node else 'getpol'} {self._file(op.file)} {op.offset // PAGE_SIZE}")

    # .......................................................................................... words

    def _file(self, name: str) -> str:
        if name not in self.files:
            raise WorkbenchError(f"file {name!r}: is not there yet; create it first")
        return self.files[name]

    def _new_file(self, name: str, size: int) -> str:
        if size % PAGE_SIZE or size // PAGE_SIZE > MAX_FILE_PAGES:
            most = format_bytes(MAX_FILE_PAGES * PAGE_SIZE)
            raise WorkbenchError(
                f"size {format_bytes(size)}: must be whole pages and at most {most} to be recorded "
                f"(make it smaller, for example with --set guest.memory=64MiB)"
            )
        if name not in self.files and len(self.files) == MAX_FILES:
            raise WorkbenchError(f"file {name!r}: at most {MAX_FILES} files can be recorded")
        self.files.setdefault(name, f"g{len(self.files)}")
        self.pages[name] = size // PAGE_SIZE
        return self.files[name]

    def _length(self, op: Any) -> int:
        return int(op.length) if op.length is not None else max(0, self.pages[op.file] * PAGE_SIZE - op.offset)

    def _byte_range(self, op: Any) -> str:
        return f"{self._file(op.file)} {_amount(op.offset)} {_amount(self._length(op))}"

    def _page_range(self, op: Any) -> tuple[int, int]:
        self._file(op.file)
        length = self._length(op)
        if op.offset % PAGE_SIZE or length % PAGE_SIZE:
            raise WorkbenchError("offset and length must be multiples of 4 KiB to be recorded")
        return op.offset // PAGE_SIZE, length // PAGE_SIZE

    def _nodes(self, op: Any) -> str:
        if op.nodes:
            return self._list(op.nodes)
        return "-" if op.mode in ("default", "local", 0, 4) else "none"

    def _list(self, nodes: str) -> str:
        listed = mempolicy.nodes_of(mempolicy.parse_nodes(nodes))
        return mempolicy.format_nodes(mempolicy.nodemask(self.emulation.of_node(node) for node in listed))


def _mode(op: Any) -> str:
    name = str(op.mode) if isinstance(op.mode, int) else op.mode.upper()
    return "|".join([name, *(flag.upper() for flag in op.mode_flags)])


def _amount(value: int) -> str:
    """Pages, or bytes with a ``b`` where that is not a whole number of pages."""
    return f"{value}b" if value % PAGE_SIZE else str(value // PAGE_SIZE)


def _refuse_guest(scenario: sc.Scenario) -> None:
    huge = scenario.kernel.huge_pages
    in_pools = [one.name for one in DESIGNS.values() if one.store == "page cache" and one.folios == "hugetlb"]
    allowed: dict[str, tuple[str, ...]] = {
        "page_size": ("4 KiB", *_HUGE) if huge else ("4 KiB",),
        "design": tuple(in_pools) if huge else ("filemap",),
        "policy_interface": ("mbind",),
        "vm_type": ("none", "sw_protected"),
    }
    for field, values in allowed.items():
        if getattr(scenario.guest, field) not in values:
            has = " and ".join(map(repr, values))
            raise WorkbenchError(
                f"guest.{field}: {getattr(scenario.guest, field)!r} cannot be recorded; the emulated machine has {has}"
                + (f" under kernel_profile {scenario.kernel.name}" if field in ("page_size", "design") else "")
            )

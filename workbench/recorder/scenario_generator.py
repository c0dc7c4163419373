"""Families of scripts for the recorder, made from a host and a seed: the same seed gives the same text.

``grid_*`` walk policy mode x way of faulting systematically; ``mix`` and ``all`` mix calls at random; the other
families each look at one thing (see ``FAMILIES``). Scripts use the node and CPU numbers that Linux gives the host.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workbench.recorder.qemu import EmulatedHost

MODES = ("DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE")
INTERLEAVING = ("INTERLEAVE", "WEIGHTED_INTERLEAVE")
POPULATE_READ, POPULATE_WRITE, DONTNEED, REMOVE = 22, 23, 4, 9


@dataclass(frozen=True)
class Place:
    """What a script may name: nodes with memory, all nodes, CPUs, node of each CPU, pages of each node."""

    name: str
    memory_nodes: tuple[int, ...]
    nodes: tuple[int, ...]
    cpus: tuple[int, ...]
    cpu_node: dict[int, int]
    pages: dict[int, int]
    movable: tuple[int, ...]

    @classmethod
    def of(cls, host: EmulatedHost) -> Place:
        """The Linux view of an emulated host."""
        ids = host.linux_ids
        seen = sorted((linux, node) for linux, node in zip(ids, host.nodes, strict=True) if linux >= 0)
        return cls(
            host.name,
            tuple(linux for linux, node in seen if node.memory_mib),
            tuple(linux for linux, _ in seen),
            tuple(sorted(cpu for _, node in seen for cpu in node.cpus)),
            {cpu: linux for linux, node in seen for cpu in node.cpus},
            {linux: node.memory_mib * 256 for linux, node in seen},
            tuple(linux for linux, node in seen if node.hotplug),
        )


class Script:
    """Lines of one scenario under construction."""

    def __init__(self, place: Place, name: str, rng: random.Random, tasks: int = 1, *, reset: bool = True) -> None:
        self.place, self.rng, self.tasks = place, rng, tasks
        self.lines = [f"scenario {name} tasks={tasks}" + ("" if reset else " noreset")]
        self.files: dict[str, int] = {}

    def __call__(self, line: str, task: int | None = None) -> None:
        self.lines.append(line if task is None or self.tasks == 1 else f"t{task} {line}")

    def text(self) -> str:
        """The script."""
        return "\n".join(self.lines) + "\n"

    def create(self, pages: int, kind: str = "create", flags: str = "MMAP|SHARED") -> str:
        """Open the next file."""
        name = f"g{len(self.files)}"
        self.files[name] = pages
        self(f"create {name} {pages} {flags}" if kind == "create" else f"memfd {name} {pages}")
        return name

    def task(self) -> int:
        """Any task."""
        return self.rng.randrange(self.tasks)

    def file(self) -> str:
        """Any file."""
        return self.rng.choice(list(self.files))

    def stretch(self, file: str, most: int | None = None) -> tuple[int, int]:
        """Any part of a file: first page and number of pages."""
        pages = self.files[file]
        start = self.rng.randrange(pages)
        return start, self.rng.randint(1, max(1, min(pages - start, most or pages)))

    def cpu(self) -> int:
        """Any CPU."""
        return self.rng.choice(self.place.cpus)

    def nodes(self, fewest: int = 1) -> str:
        """Any set of nodes with memory."""
        known = self.place.memory_nodes
        count = self.rng.randint(min(fewest, len(known)), len(known))
        return ",".join(map(str, sorted(self.rng.sample(known, count))))

    def node(self) -> int:
        """Any node with memory."""
        return self.rng.choice(self.place.memory_nodes)

    def nodes_for(self, mode: str) -> str:
        """Nodes that suit a mode."""
        if mode in ("DEFAULT", "LOCAL"):
            return "-"
        return str(self.node()) if mode == "PREFERRED" else self.nodes()

    def order(self) -> str:
        """Any order of touching."""
        kind = self.rng.choice(("seq", "rev", "rand", "stride"))
        parameter = {"rand": f" {self.rng.randrange(1, 1 << 30)}", "stride": f" {self.rng.randint(2, 9)}"}
        return kind + parameter.get(kind, "")

    def weights(self, highest: int = 9) -> None:
        """New weights for all nodes."""
        pairs = (f"{node}:{self.rng.randint(1, highest)}" for node in self.place.memory_nodes)
        self("weights " + ",".join(pairs))

    def mbind(self, file: str, mode: str | None = None, flags: str = "", task: int | None = None) -> None:
        """A policy for any part of a file."""
        start, count = self.stretch(file)
        mode = mode or self.rng.choice(MODES)
        self(f"mbind {file} {start} {count} {mode} {self.nodes_for(mode)}{flags}", task)

    def place_all(self) -> None:
        """Look at every file."""
        for file in self.files:
            self(f"place {file}")


Family = Callable[[Place, str, random.Random], Script]


WAYS_OF_FAULTING = (
    "touch {f} {o} {n} seq", "touch {f} {o} {n} rev", "touch {f} {o} {n} rand 12345", "touch {f} {o} {n} stride 3",
    "rtouch {f} {o} {n} seq", "falloc {f} {o} {n}", "madv {f} {o} {n} 23", "madv {f} {o} {n} 22", "getnode {f} {o}",
    "rtouch {f} {o} {n} rand 99", "rtouch {f} {o} {n} rev", "rtouch {f} {o} {n} stride 2", "prefault {f} {o} {n}",
    "vtouch {f} {o} {n}",
)  # fmt: skip


def _fault_all_ways(s: Script, file: str, step: int) -> None:
    """Every way of faulting on its own stretch of ``step`` pages, tasks in turn."""
    for number, way in enumerate(WAYS_OF_FAULTING):
        if number % 3 == 0:
            s(f"setcpu {s.cpu()}", number % s.tasks)
        s(way.format(f=file, o=number * step, n=step), number % s.tasks)


def grid_shared(mode: str) -> Family:
    """A shared policy of one mode on the whole file, faulted in every way."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 4))
        pages = len(WAYS_OF_FAULTING) * 11
        file = s.create(pages)
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights()
        s(f"mbind {file} 0 {pages} {mode} {s.nodes_for(mode)}")
        s(f"getpol {file} 7")
        _fault_all_ways(s, file, 11)
        s.place_all()
        return s

    return make


def grid_task(mode: str) -> Family:
    """A task policy of one mode, faulted in every way; a part at the end has a shared policy."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 4))
        pages = len(WAYS_OF_FAULTING) * 9
        file = s.create(pages + 12)
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights()
        s(f"mbind {file} {pages} 12 PREFERRED {s.node()}")
        for task in range(s.tasks):
            s(f"setpol {mode} {s.nodes_for(mode)}", task)
            s("gettask", task)
        _fault_all_ways(s, file, 9)
        s(f"touch {file} {pages} 12 seq", 0)
        s.place_all()
        return s

    return make


def grid_memfd(mode: str) -> Family:
    """The same on tmpfs, by shared policy on one file and by task policy on another."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 3))
        pages = len(WAYS_OF_FAULTING) * 8
        bound, plain = s.create(pages, "memfd"), s.create(pages, "memfd")
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights(5)
        nodes = s.nodes_for(mode)
        s(f"mbind {bound} 0 {pages} {mode} {nodes}")
        _fault_all_ways(s, bound, 8)
        # On large hosts one rotation for all: whoever infers the inode number from it has few candidates then.
        large = len(place.memory_nodes) > 8
        for task in range(s.tasks):
            s(f"setpol {mode} {nodes if large else s.nodes_for(mode)}", task)
        _fault_all_ways(s, plain, 8)
        s.place_all()
        return s

    return make


def mix(place: Place, name: str, rng: random.Random) -> Script:
    """Policies, faults and holes by up to four tasks on up to three files."""
    s = Script(place, name, rng, tasks=rng.randint(1, 4))
    for _ in range(rng.randint(1, 3)):
        s.create(rng.choice((64, 100, 256, 777)))
    for task in range(s.tasks):
        s(f"setcpu {s.cpu()}", task)
    for _ in range(rng.randint(25, 45)):
        file, task = s.file(), s.task()
        start, count = s.stretch(file)
        choice = rng.random()
        if choice < 0.25:
            s.mbind(file, task=task)
        elif choice < 0.45:
            s(f"touch {file} {start} {min(count, 130)} {s.order()}", task)
        elif choice < 0.6:
            s(f"falloc {file} {start} {count}", task)
        elif choice < 0.75:
            s(f"punch {file} {start} {count}", task)
        elif choice < 0.82:
            s(f"setcpu {s.cpu()}", task)
        elif choice < 0.88:
            s(f"getpol {file} {start}", task)
        elif choice < 0.93:
            s.weights()
        else:
            s(f"place {file}")
    s.place_all()
    return s


def everything(place: Place, name: str, rng: random.Random) -> Script:
    """Every call there is, on guest_memfd, tmpfs and second mappings."""
    s = Script(place, name, rng, tasks=rng.randint(2, 4))
    s.create(200)
    s.create(90, "memfd")
    s("alias g2 g0")
    s.files["g2"] = 200
    calls: list[Callable[[str, int, int, int], None]] = [
        lambda f, o, n, t: s.mbind(f, task=t),
        lambda f, o, n, t: s.mbind(f, flags=rng.choice((" STRICT", " MOVE", " MOVE|STRICT", " MOVE_ALL")), task=t),
        lambda f, o, n, t: s(f"touch {f} {o} {n} {s.order()}", t),
        lambda f, o, n, t: s(f"rtouch {f} {o} {n} {s.order()}", t),
        lambda f, o, n, t: s(f"falloc {f} {o} {n}", t),
        lambda f, o, n, t: s(f"punch {f} {o} {n}", t),
        lambda f, o, n, t: s(f"madv {f} {o} {n} {rng.choice((DONTNEED, REMOVE, POPULATE_READ, POPULATE_WRITE))}", t),
        lambda f, o, n, t: s(f"home {f} {o} {n} {s.node()}", t),
        lambda f, o, n, t: s(f"movepages {f} {o} {n} {s.node()}{rng.choice(('', ' MOVE_ALL'))}", t),
        lambda f, o, n, t: s(f"getpol {f} {o}", t),
        lambda f, o, n, t: s(f"setcpu {s.cpu()}", t),
        lambda f, o, n, t: s(f"place {f}"),
    ]
    plain = [mode for mode in MODES if mode not in INTERLEAVING]
    for _ in range(40):
        file = s.file()
        if rng.random() < 0.06:
            s.weights()
        elif rng.random() < 0.08:
            mode = rng.choice(plain)
            s(f"setpol {mode} {s.nodes_for(mode)}", s.task())
        else:
            rng.choice(calls)(file, *s.stretch(file, 70), s.task())
    s.place_all()
    return s


def rotation(mode: str) -> Family:
    """Overlapping interleave ranges on two files, up to four tasks: who shares which rotation."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 4))
        s.create(300)
        s.create(300)
        s.weights(40 if rng.random() < 0.3 else 6)
        for _ in range(4):
            s.mbind(s.file(), mode if rng.random() < 0.7 else rng.choice(INTERLEAVING))
        for _ in range(16):
            file, task = s.file(), s.task()
            start, count = s.stretch(file, 45)
            verb = rng.choice(("touch", "touch", "falloc", "punch", "rtouch"))
            s(f"{verb} {file} {start} {count}" + (f" {s.order()}" if "touch" in verb else ""), task)
            if rng.random() < 0.15:
                s.weights()
        s.place_all()
        return s

    return make


def split(place: Place, name: str, rng: random.Random) -> Script:
    """Ranges that overlap, split and merge, some not aligned to pages."""
    s = Script(place, name, rng)
    file = s.create(128)
    s(f"setcpu {s.cpu()}")
    for _ in range(14):
        start, count = s.stretch(file)
        mode = rng.choice(MODES)
        offset = f"{start * 4096 + rng.randrange(4096)}b" if rng.random() < 0.1 else start
        length = f"{count * 4096 - rng.randrange(4096)}b" if rng.random() < 0.2 else count
        s(f"mbind {file} {offset} {length} {mode} {s.nodes_for(mode)}")
    for page in range(0, 128, 16):
        s(f"getpol {file} {page}")
    s(f"touch {file} 0 128 seq")
    s.place_all()
    return s


def strict(kind: str) -> Family:
    """STRICT, MOVE and MOVE_ALL over pages that are mapped, only allocated, or not there."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 2))
        file = s.create(128, kind)
        for _ in range(12):
            start, count = s.stretch(file, 40)
            verb = rng.choice(("touch", "touch", "falloc", "punch"))
            s(f"{verb} {file} {start} {count}", s.task())
            flags = rng.choice((" STRICT", " MOVE", " MOVE_ALL", " MOVE|STRICT", " MOVE_ALL|STRICT"))
            s.mbind(file, flags=flags, task=s.task())
            s(f"getpol {file} {rng.randrange(128)}", s.task())
            if rng.random() < 0.3:
                s.place_all()
        s(f"movepages {file} 0 64 {s.node()}")
        s(f"movepages {file} 64 64 {s.node()} MOVE_ALL")
        s(f"migrate {s.node()} {s.node()}")
        s.place_all()
        return s

    return make


def taskpol(place: Place, name: str, rng: random.Random) -> Script:
    """Task policies against shared ones; modes whose placement is reproducible."""
    s = Script(place, name, rng, tasks=rng.randint(1, 4))
    file = s.create(256)
    s.mbind(file)
    plain = [mode for mode in MODES if mode not in INTERLEAVING]
    for _ in range(9):
        task = s.task()
        mode = rng.choice(plain)
        s(f"setpol {mode}{rng.choice(('', '', '|STATIC', '|RELATIVE') if mode in plain[1:3] else ('',))} "
          f"{s.nodes_for(mode)}", task)  # fmt: skip
        s("gettask", task)
        s(f"setcpu {s.cpu()}", task)
        start, count = s.stretch(file, 50)
        s(f"{rng.choice(('falloc', 'touch', 'rtouch'))} {file} {start} {count}", task)
        s("getil", task)
    s.place_all()
    return s


def guest_faults(place: Place, name: str, rng: random.Random) -> Script:
    """Faults by the guest and KVM_PRE_FAULT_MEMORY from several threads, with task policies."""
    s = Script(place, name, rng, tasks=rng.randint(1, 3))
    s.create(200)
    s.create(80)
    s.weights()
    for _ in range(2):
        s.mbind(s.file())
    for task in range(s.tasks):
        mode = rng.choice(("DEFAULT", "BIND", "PREFERRED", "PREFERRED_MANY", "LOCAL"))
        s(f"setpol {mode} {s.nodes_for(mode)}", task)
        s(f"setcpu {s.cpu()}", task)
    for _ in range(12):
        file = s.file()
        start, count = s.stretch(file, 40)
        s(f"{rng.choice(('vtouch', 'prefault', 'touch', 'punch'))} {file} {start} {count}", s.task())
    s.place_all()
    return s


def full(mode: str, filled: int = 1) -> Family:
    """Nodes that run full while a file of one mode grows."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng)
        usable = [node for node in place.memory_nodes if node not in place.movable]
        chosen = sorted(rng.sample(usable, min(filled, len(usable))))
        s(f"setcpu {s.cpu()}")
        for node in chosen:
            s(f"eatto {node} 2500")
        s("zones")
        file = s.create(6000)
        nodes = "-" if mode in ("LOCAL", "DEFAULT") else str(chosen[0]) if mode == "PREFERRED" else None
        if nodes is None:
            nodes = ",".join(map(str, sorted({*chosen, s.node()})))
        if mode != "DEFAULT":
            s(f"mbind {file} 0 6000 {mode} {nodes}")
        s(rng.choice((f"touch {file} 0 6000 seq", f"falloc {file} 0 6000")))
        s(f"counts {file}")
        s.place_all()
        s("zones")
        return s

    return make


def watermark(mode: str) -> Family:
    """The same in small steps, so that free pages are known near the mark."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng)
        node = rng.choice([node for node in place.memory_nodes if node not in place.movable])
        s(f"eatto {node} 1000")
        s("zones")
        file = s.create(1500)
        s(f"mbind {file} 0 1500 {mode} {node}")
        for start in range(0, 1000, 40):
            s(f"touch {file} {start} 40 seq")
            s("zones")
        s.place_all()
        return s

    return make


def large(mode: str) -> Family:
    """A file of 64 MiB, allocated, punched and touched again."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=2)
        file = s.create(16384)
        s(f"mbind {file} 0 16384 {mode} {s.nodes_for(mode)}", 0)
        s(f"falloc {file} 0 16384", 0)
        s(f"counts {file}")
        s(f"punch {file} 1000 9000", 1)
        s(f"touch {file} 0 16384 rand 77", 1)
        s(f"counts {file}")
        s(f"place {file}")
        s("zones")
        return s

    return make


def alias(place: Place, name: str, rng: random.Random) -> Script:
    """Three mappings of one file, each with policies of its own."""
    s = Script(place, name, rng)
    s.create(96)
    s("alias g1 g0")
    s("alias g2 g0")
    s.files |= {"g1": 96, "g2": 96}
    for _ in range(10):
        file = s.file()
        s.mbind(file, flags=rng.choice(("", "", " MOVE", " STRICT", " MOVE_ALL|STRICT")))
        start, count = s.stretch(file, 20)
        s(f"{rng.choice(('touch', 'falloc', 'punch'))} {s.file()} {start} {count}")
        for other in s.files:
            s(f"getpol {other} {start}")
    s("unmap g1")
    s(f"mbind g2 0 96 BIND {s.node()} MOVE_ALL|STRICT")
    s("mmap g1")
    s("mbind g1 0 96 DEFAULT -")
    s("getpol g1 0")
    s("touch g2 0 96 seq")
    s("place g0")
    return s


def move_mapped_twice(place: Place, name: str, rng: random.Random) -> Script:
    """MOVE and MOVE_ALL over pages that two mappings hold, page by page different."""
    s = Script(place, name, rng, tasks=2)
    kind = rng.choice(("create", "memfd"))
    s.create(48, kind)
    s("alias g1 g0")
    s.files["g1"] = 48
    s(f"mbind g0 0 48 BIND {place.memory_nodes[0]}")
    s("touch g0 0 48 seq", 0)
    s("touch g1 0 16 seq", 1)
    for flags in ("MOVE", "MOVE|STRICT", "STRICT", "MOVE_ALL", "MOVE_ALL|STRICT"):
        start, count = s.stretch("g0", 30)
        node = s.node()
        s(f"mbind g0 {start} {count} BIND {node} {flags}", s.task())
        s(f"getpol g0 {start}", 0)
        s(f"getpol g1 {start}", 1)
        s("place g0")
    s("punch g0 8 16", 1)
    s("touch g1 8 16 rev", 1)
    s(f"mbind g1 0 48 PREFERRED {s.node()} MOVE|STRICT", 1)
    s(f"migrate {place.memory_nodes[0]} {place.memory_nodes[-1]}", 0)
    s("place g0")
    return s


def madvise(place: Place, name: str, rng: random.Random) -> Script:
    """Advice of every kind on pages that are there and pages that are not."""
    s = Script(place, name, rng)
    kind = rng.choice(("create", "create", "memfd"))
    file = s.create(64, kind)
    s(f"mbind {file} 0 64 BIND {s.node()}")
    s(f"touch {file} 0 16 seq")
    for advice in (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 99):
        s(f"madv {file} {rng.randrange(60)} 4 {advice}")
    s(f"mbind {file} 30 34 INTERLEAVE {s.nodes()}")
    s(f"madv {file} 28 8 {POPULATE_READ}")
    s(f"madv {file} 40 8 {POPULATE_WRITE}")
    s(f"madv {file} 60 8 {POPULATE_WRITE}")
    s(f"madv {file} 28 4 {REMOVE}")
    s(f"madv {file} 32 4 {DONTNEED}")
    s(f"mbind {file} 32 4 BIND {s.node()} STRICT")
    s.place_all()
    return s


def punch_and_change(place: Place, name: str, rng: random.Random) -> Script:
    """Holes punched and filled again while policies, CPUs and weights change under way."""
    s = Script(place, name, rng, tasks=rng.randint(2, 4))
    file = s.create(160)
    for _ in range(10):
        mode = rng.choice(("INTERLEAVE", "WEIGHTED_INTERLEAVE", "BIND", "PREFERRED_MANY", "DEFAULT"))
        s.mbind(file, mode, task=s.task())
        start, count = s.stretch(file, 60)
        s(f"falloc {file} {start} {count}", s.task())
        if rng.random() < 0.4:
            s.weights()
        s(f"setcpu {s.cpu()}", s.task())
        start, count = s.stretch(file, 60)
        s(f"punch {file} {start} {count}", s.task())
        s(f"touch {file} {start} {count} {s.order()}", s.task())
        if rng.random() < 0.3:
            s.place_all()
    s.place_all()
    return s


def weights_in_use(place: Place, name: str, rng: random.Random) -> Script:
    """Weights that change in the middle of a node's turn, with stale credit and plain steps between."""
    s = Script(place, name, rng, tasks=rng.randint(1, 2))
    file = s.create(400)
    s(f"mbind {file} 0 300 WEIGHTED_INTERLEAVE {s.nodes(2)}")
    s(f"mbind {file} 300 50 INTERLEAVE {s.nodes(2)}")
    s(f"mbind {file} 350 50 WEIGHTED_INTERLEAVE {s.nodes()}")
    position = 0
    for number in range(12):
        if number % 2 == 0:
            s.weights(255 if rng.random() < 0.2 else 7)
        count = rng.randint(1, 20)
        s(f"touch {file} {position} {count} seq", s.task())
        position += count
        if rng.random() < 0.4:
            s(f"touch {file} {300 + number * 4} {rng.randint(1, 3)} seq", s.task())
        if rng.random() < 0.4:
            s(f"falloc {file} {350 + number * 4} {rng.randint(1, 3)}", s.task())
    s("weights default")
    s(f"touch {file} {position} 20 seq", s.task())
    s.place_all()
    return s


def home(place: Place, name: str, rng: random.Random) -> Script:
    """Home nodes under BIND and PREFERRED_MANY, inside and outside of the mask; refused for the rest."""
    s = Script(place, name, rng)
    file = s.create(120)
    s(f"home {file} 0 120 {s.node()}")
    position = 0
    for mode in ("BIND", "PREFERRED_MANY", rng.choice(MODES), "PREFERRED_MANY", "BIND"):
        s(f"mbind {file} 0 120 {mode} {s.nodes_for(mode)}")
        for _ in range(2):
            s(f"home {file} {rng.choice((0, 0, position))} {rng.choice((120, 120 - position))} {s.node()}")
            s(f"setcpu {s.cpu()}")
            s(f"{rng.choice(('touch', 'falloc'))} {file} {position} 8")
            position += 8
    s(f"home {file} 0 120 63")
    s(f"home {file} 100b 1 {s.node()}")
    s(f"home {file} 0 0 {s.node()}")
    s(f"getpol {file} 3")
    s.place_all()
    return s


def cpuset(place: Place, name: str, rng: random.Random) -> Script:
    """Memory nodes of the cpuset change under policies with and without STATIC and RELATIVE."""
    s = Script(place, name, rng, tasks=rng.randint(1, 2))
    file = s.create(160)
    flags = ("", "|STATIC", "|RELATIVE")
    for number, mode in enumerate(("BIND", "INTERLEAVE", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE", "PREFERRED")):
        s(f"mbind {file} {number * 32} 24 {mode}{rng.choice(flags)} {s.nodes_for(mode)}")
    mode = rng.choice(("BIND", "PREFERRED", "PREFERRED_MANY"))
    s(f"setpol {mode}{rng.choice(flags)} {s.nodes_for(mode)}", 0)
    for step in range(3):
        s(f"cpuset {s.nodes()}")
        s("gettask", 0)
        for number in range(5):
            s(f"touch {file} {number * 32 + step * 8} 6 seq", s.task())
            s(f"getpol {file} {number * 32}", 0)
        s(f"touch {file} {24 + step * 2} 2 seq", 0)
        s(f"mbind {file} {number * 32} 24 {rng.choice(('BIND', 'INTERLEAVE'))}{rng.choice(flags)} {s.nodes()}", 0)
    s.place_all()
    s("cpuset off")
    s(f"touch {file} 0 160 rev", 0)
    s.place_all()
    return s


def files(place: Place, name: str, rng: random.Random) -> Script:
    """Six files in turn by four tasks: one rotation for each task, whatever the file."""
    s = Script(place, name, rng, tasks=4)
    for number in range(6):
        s.create(40, "memfd" if number == 3 else "create")
    for file in s.files:
        mode = rng.choice(("INTERLEAVE", "WEIGHTED_INTERLEAVE", "BIND"))
        s(f"mbind {file} 0 40 {mode} {s.nodes()}")
    for _ in range(24):
        file = s.file()
        start, count = s.stretch(file, 9)
        s(f"{rng.choice(('touch', 'touch', 'falloc', 'punch'))} {file} {start} {count}", s.task())
    s("close g1")
    s("create g1 40 MMAP|SHARED")
    s("getpol g1 0")
    s("touch g1 0 10 seq", 1)
    s.place_all()
    return s


def turns(place: Place, name: str, rng: random.Random) -> Script:
    """Four tasks on different CPUs touch one file in turn, a few pages each."""
    s = Script(place, name, rng, tasks=4)
    file = s.create(240)
    mode = rng.choice(("INTERLEAVE", "WEIGHTED_INTERLEAVE", "LOCAL", "PREFERRED_MANY", "BIND"))
    s.weights()
    s(f"mbind {file} 0 200 {mode} {s.nodes_for(mode)}")
    for task in range(4):
        s(f"setcpu {s.cpu()}", task)
    turn = rng.randint(1, 5)
    verb = rng.choice(("touch", "falloc", "vtouch", "prefault"))
    for number in range(200 // turn):
        s(f"{verb} {file} {number * turn} {turn}", number % 4)
    s.place_all()
    return s


def private(place: Place, name: str, rng: random.Random) -> Script:
    """Files that cannot be mapped or touched: only fallocate places their pages, and free memory shows where."""
    s = Script(place, name, rng)
    s.create(3000, flags="0")
    s.create(3000, flags="MMAP")
    s("mmap g0")
    s("mmap g1 private")
    s("zones")
    s(f"mbind g1 0 3000 BIND {s.node()}")
    s("falloc g1 0 3000")
    s("zones")
    s("touch g1 0 4 seq")
    s("getnode g1 2")
    s(f"madv g1 0 8 {POPULATE_WRITE}")
    s(f"setpol BIND {s.node()}")
    s("falloc g0 0 3000")
    s("zones")
    s("punch g0 10 2000")
    s("place g0")
    s("place g1")
    return s


def persist(place: Place, name: str, rng: random.Random) -> Script:
    """Policies and pages outlive the mapping; a new mapping knows them and mbind's DEFAULT through it does nothing."""
    s = Script(place, name, rng)
    file = s.create(96)
    for _ in range(3):
        s.mbind(file)
    s(f"touch {file} 0 20 rand 5")
    s(f"unmap {file}")
    s(f"falloc {file} 20 20")
    s(f"mmap {file}")
    s(f"getpol {file} 50")
    s(f"mbind {file} 0 96 DEFAULT -")
    s(f"getpol {file} 50")
    s(f"mbind {file} 48 8 LOCAL -")
    s(f"mbind {file} 40 30 DEFAULT -")
    s(f"home {file} 0 96 {s.node()}")
    s(f"touch {file} 40 56 {s.order()}")
    s(f"getnode {file} 95")
    s.place_all()
    return s


def inherit(place: Place, name: str, rng: random.Random) -> Script:
    """The rotation as the boot left it, in every task."""
    s = Script(place, name, rng, tasks=3, reset=False)
    file = s.create(64)
    s(f"mbind {file} 0 64 INTERLEAVE {','.join(map(str, place.memory_nodes))}")
    for task in range(3):
        s(f"touch {file} {task * 9} 5 seq", task)
    s("reset", 1)
    s(f"touch {file} 40 5 seq", 1)
    s(f"touch {file} 50 5 seq", 0)
    s.place_all()
    return s


def invalid(place: Place, name: str, rng: random.Random) -> Script:
    """Arguments that are refused, in the order in which the kernel checks them."""
    s = Script(place, name, rng)
    file = s.create(64)
    inside, outside = place.memory_nodes[-1], len(place.nodes) + rng.randint(0, 3)
    memoryless = next((node for node in place.nodes if node not in place.memory_nodes), outside)
    for mode in MODES:
        for nodes in ("-", "none", str(inside), str(outside), f"{inside},{outside}", str(memoryless)):
            s(f"mbind {file} {rng.choice((0, 8))} 8 {mode}{rng.choice(('', '', '|STATIC', '|RELATIVE'))} {nodes}")
    for call in (
        "7 1", "-1 1", f"BIND|STATIC|RELATIVE {inside}", f"BIND|NUMA_BALANCING {inside}",
        f"PREFERRED_MANY|NUMA_BALANCING {inside}", f"INTERLEAVE|NUMA_BALANCING {inside}", f"BIND {inside} 8",
        f"BIND {inside} 16", f"BIND {inside} MOVE|MOVE_ALL", "LOCAL|STATIC -", "DEFAULT|STATIC -", "DEFAULT - STRICT",
    ):  # fmt: skip
        s(f"mbind {file} 0 64 {call}")
    for mode in MODES:
        s(f"setpol {mode} {rng.choice(('-', 'none', str(inside), str(outside)))}")
        s("gettask")
    s("setpol DEFAULT -")
    s(f"mbind {file} 60 8 BIND {inside}")
    s(f"mbind {file} 60 8 DEFAULT -")
    s(f"mbind {file} 64 1 BIND {inside}")
    s(f"mbind {file} 0 0 BIND none")
    s(f"mbind {file} 100b 1 BIND {inside}")
    s(f"mbind {file} 0 {1 << 50} BIND {inside}")
    for line in (
        "create g1 0 MMAP", "create g1 16 4", "create g1 16 SHARED", "mmap g1", "create g2 8 MMAP|SHARED",
        "falloc g0 60 8", "falloc g0 100b 4096b", "falloc g0 0 100b", "falloc g0 0 4 0", "falloc g0 0 4 16",
        "falloc g0 0 0", "punch g0 60 8", "punch g0 100b 4096b", "punch g0 0 0", "touch g0 60 8 seq", "getpol g0 64",
        "getnode g0 70", "movepages g0 0 4 63", f"movepages g0 60 8 {inside}", "migrate 0 63", "setcpu 63", "getil",
        "weights 0:0,0:256,0:3", "falloc g0 0 64", "prefault g0 60 8", "vtouch g0 62 4",
    ):  # fmt: skip
        s(line)
    s.place_all()
    return s


def memfd_move(place: Place, name: str, rng: random.Random) -> Script:
    """tmpfs pages do move: mbind with MOVE, move_pages and migrate_pages beside the same calls on guest_memfd."""
    s = Script(place, name, rng)
    s.create(32, "memfd")
    s.create(32)
    for file in ("g0", "g1"):
        s(f"mbind {file} 0 32 BIND {place.memory_nodes[0]}")
        s(f"touch {file} 0 24 seq")
        s(f"mbind {file} 0 16 PREFERRED {s.node()} MOVE")
        s(f"place {file}")
        s(f"mbind {file} 8 16 INTERLEAVE {s.nodes()} MOVE|STRICT")
        s(f"place {file}")
        s(f"mbind {file} 0 32 WEIGHTED_INTERLEAVE {s.nodes()} MOVE_ALL")
        s(f"movepages {file} 0 12 {s.node()}")
        s(f"movepages {file} 4 28 {s.node()} MOVE_ALL")
        s(f"mbind {file} 0 32 BIND {s.nodes()} STRICT")
        s(f"place {file}")
    return s


def movable(place: Place, name: str, rng: random.Random) -> Script:
    """Policies that name a node whose memory is all movable: guest_memfd cannot use it, tmpfs can."""
    s = Script(place, name, rng, tasks=2)
    node = place.movable[0] if place.movable else place.memory_nodes[-1]
    s.create(96)
    s.create(96, "memfd")
    other = place.memory_nodes[0]
    for number, (mode, nodes) in enumerate(
        (("BIND", f"{node}"), ("BIND", f"{other},{node}"), ("PREFERRED", f"{node}"), ("INTERLEAVE", f"{other},{node}"),
         ("PREFERRED_MANY", f"{node}"), ("WEIGHTED_INTERLEAVE", ",".join(map(str, place.memory_nodes))))
    ):  # fmt: skip
        for file in ("g0", "g1"):
            s(f"mbind {file} {number * 16} 16 {mode} {nodes}")
            s(f"setcpu {s.cpu()}", number % 2)
            s(f"touch {file} {number * 16} 8 {s.order()}", number % 2)
            s(f"falloc {file} {number * 16 + 8} 4", number % 2)
            s(f"home {file} {number * 16} 16 {node}", number % 2)
            s(f"touch {file} {number * 16 + 12} 4 seq", number % 2)
    s.place_all()
    return s


FAMILIES: dict[str, tuple[Family, int]] = {
    **{f"grid_{mode.lower()}": (grid_shared(mode), 1) for mode in MODES},
    **{f"gridtask_{mode.lower()}": (grid_task(mode), 1) for mode in MODES},
    **{f"gridmemfd_{mode.lower()}": (grid_memfd(mode), 1) for mode in MODES},
    "mix": (mix, 3),
    "all": (everything, 3),
    "ilv": (rotation("INTERLEAVE"), 2),
    "wil": (rotation("WEIGHTED_INTERLEAVE"), 2),
    "split": (split, 2),
    "strict": (strict("create"), 2),
    "memfd_strict": (strict("memfd"), 1),
    "memfd_move": (memfd_move, 1),
    "taskpol": (taskpol, 2),
    "vcpu": (guest_faults, 2),
    "alias": (alias, 1),
    "move_twice": (move_mapped_twice, 2),
    "madvise": (madvise, 2),
    "punch_change": (punch_and_change, 2),
    "weights_use": (weights_in_use, 2),
    "home": (home, 2),
    "cpuset": (cpuset, 2),
    "files": (files, 1),
    "turns": (turns, 2),
    "private": (private, 1),
    "persist": (persist, 1),
    "inherit": (inherit, 1),
    "invalid": (invalid, 2),
    "movable": (movable, 1),
    "full_local": (full("LOCAL"), 1),
    "full_pref": (full("PREFERRED"), 1),
    "full_pmany": (full("PREFERRED_MANY", 2), 1),
    "full_ilv": (full("INTERLEAVE", 2), 1),
    "full_wil": (full("WEIGHTED_INTERLEAVE"), 1),
    "wm_pref": (watermark("PREFERRED"), 1),
    "wm_pmany": (watermark("PREFERRED_MANY"), 1),
    "large_ilv": (large("INTERLEAVE"), 1),
    "large_bind": (large("BIND"), 1),
}
"""Name, maker and how many of each for one host."""


_NEEDS_TWO_NODES = ("full", "wm", "large", "movable", "cpuset")
"""A host with one node that is full dies; the others have nothing to show there."""


def generate(host: EmulatedHost, seed: int = 1, families: tuple[str, ...] | None = None) -> str:
    """The scripts of all families (or those named) for one host, as one text to be run in one boot."""
    chosen = {name: family for name, family in FAMILIES.items() if families is None or name in families}
    return generate_families(host, chosen, seed)


def generate_families(host: EmulatedHost, families: Mapping[str, tuple[Family, int]], seed: int) -> str:
    """The scripts of these families, each with its own stream of random numbers."""
    place = Place.of(host)
    texts: list[str] = []
    for family, (make, count) in families.items():
        if family.startswith(_NEEDS_TWO_NODES) and len(place.memory_nodes) < 2:
            continue
        for number in range(count):
            name = f"{family}{number}" if count > 1 else family
            rng = random.Random(f"{host.name}/{seed}/{family}/{number}")
            texts.append(make(place, name, rng).text())
    return "".join(texts)

"""Families of scripts on guests with private memory (VM type sw_protected), made from a host and a seed.

What every released VMM does on such guests: a guest_memfd for private pages, an ordinary backend (memfd or anonymous) for
shared ones, KVM_SET_MEMORY_ATTRIBUTES to say which, hole punching on the side that is given up (conversion out of place).
The pages of a private file cannot be mapped; each script ends with ``reveal``, which finds them by taking them out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from workbench.recorder.qemu import EmulatedHost, EmulatedNode
from workbench.recorder.scenario_generator import INTERLEAVING, MODES, Family, Place, Script, generate_families

VM_TYPES = ("none", "sw_protected", "sev", "sev_es", "snp", "tdx", "6")
CAPABILITIES = ("GUEST_MEMFD", "GUEST_MEMFD_FLAGS", "MEMORY_ATTRIBUTES", "VM_TYPES", "PRE_FAULT_MEMORY")
DONTNEED = 4
WAYS = ("prefault {f} {o} {n}", "vtouch {f} {o} {n}", "falloc {f} {o} {n}")
"""How a private page comes into being."""


def _private_guest(s: Script, pages: int, flags: str, backend: str = "memfd") -> tuple[str, str]:
    """A guest of type sw_protected with one memslot: its guest_memfd and the backend of its shared pages."""
    s("vm sw_protected")
    private = s.create(pages, flags=flags)
    shared = f"g{len(s.files)}"
    s.files[shared] = pages
    s(f"{backend} {shared} {pages}")
    s(f"slot {private} {shared}")
    return private, shared


def _end(s: Script, private: str, shared: str | None = None) -> Script:
    if shared is not None:
        s(f"place {shared}")
    s(f"reveal {private}")
    return s


def vm_types(place: Place, name: str, rng: random.Random) -> Script:
    """The table of VM types: capabilities, creation flags, mappings, policies, attributes, host and guest faults."""
    s = Script(place, name, rng)
    for vm_type in VM_TYPES:
        s(f"vm {vm_type}")
        if vm_type not in VM_TYPES[:2]:
            continue  # the machine stays the one before when a type is refused
        for capability in CAPABILITIES:
            s(f"kvmcap {capability}")
        for flags in range(5):
            s(f"create g{flags} 16 {flags}")
            s(f"mmap g{flags}")
            s(f"mbind g{flags} 0 16 BIND {place.memory_nodes[-1]}")
            s(f"touch g{flags} 0 2 seq")
            s(f"vtouch g{flags} 4 2")
            s(f"prefault g{flags} 8 2")
            s(f"attr g{flags} 0 16 private")
            s(f"convert g{flags} 0 16 private")
            s(f"vtouch g{flags} 12 2")
            s(f"touch g{flags} 14 1 seq")
            s(f"reveal g{flags}")
            s(f"close g{flags}")
    return s


def by_policy(mode: str) -> Family:
    """A policy on the mapping of a private file (MMAP): private pages obey it, however they come."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 3))
        pages = 72
        private, shared = _private_guest(s, pages, "MMAP")
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights(5)
        s(f"mbind {private} 0 {pages} {mode} {s.nodes_for(mode)}")
        s(f"mbind {shared} 0 {pages} BIND {s.node()}")
        s(f"attr {private} 0 {pages} private")
        for number in range(9):
            task = number % s.tasks
            if number % 3 == 0:
                s(f"setcpu {s.cpu()}", task)
            s(WAYS[number % 3].format(f=private, o=number * 8, n=8), task)
        s(f"getpol {private} 3")
        return _end(s, private, shared)

    return make


def by_task_policy(mode: str) -> Family:
    """What QEMU 11 does for SNP and TDX: flags 0, no mapping, so only policy and CPU of the touching thread count."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 3))
        private, shared = _private_guest(s, 72, "0", rng.choice(("memfd", "anon")))
        s(f"mbind {private} 0 72 BIND {s.node()}")
        s(f"mbind {shared} 0 72 BIND {s.node()}")
        s(f"attr {private} 0 72 private")
        for task in range(s.tasks):
            s(f"setpol {mode} {s.nodes_for(mode)}", task)
            s(f"setcpu {s.cpu()}", task)
        for number in range(9):
            s(WAYS[number % 3].format(f=private, o=number * 8, n=8), number % s.tasks)
            s("gettask", number % s.tasks)
        return _end(s, private, shared)

    return make


def first_touch(place: Place, name: str, rng: random.Random) -> Script:
    """No policy anywhere: each page lies with the vCPU thread that touched it first."""
    s = Script(place, name, rng, tasks=rng.randint(2, 4))
    private, shared = _private_guest(s, 96, rng.choice(("0", "MMAP")), rng.choice(("memfd", "anon")))
    s(f"attr {private} 0 96 private")
    for _ in range(14):
        task = s.task()
        s(f"setcpu {s.cpu()}", task)
        start, count = s.stretch(private, 24)
        s(rng.choice(WAYS).format(f=private, o=start, n=count), task)
    s(f"punch {private} 20 30", 0)
    s(f"setcpu {s.cpu()}", 1)
    s(f"vtouch {private} 10 50", 1)
    return _end(s, private, shared)


def out_of_place(backend: str, flags: str | None = None) -> Family:
    """A stream of conversions: attributes, the given-up side punched or discarded, the other touched by whoever is next."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=rng.randint(1, 3))
        pages = rng.choice((64, 96, 128))
        private, shared = _private_guest(s, pages, flags or rng.choice(("0", "MMAP", "MMAP")), backend)
        for file in (private, shared):
            if rng.random() < 0.6:
                mode = rng.choice(MODES)
                if mode == "WEIGHTED_INTERLEAVE":
                    s.weights(4)
                s(f"mbind {file} 0 {pages} {mode} {s.nodes_for(mode)}")
        for task in range(s.tasks):
            s(f"setcpu {s.cpu()}", task)
        s(f"attr {private} 0 {pages} private")
        s(f"{rng.choice(('vtouch', 'prefault'))} {private} 0 {pages}", s.task())
        for _ in range(rng.randint(5, 9)):
            start, count = s.stretch(private, pages // 3)
            to_shared(s, private, shared, start, count, backend)
            if rng.random() < 0.8:
                to_private(s, private, shared, start, count, backend)
        s("nodestat")
        return _end(s, private, shared)

    return make


def to_shared(s: Script, private: str, shared: str, start: int, count: int, backend: str) -> None:
    """The guest gives a range up: attributes, a hole in the guest_memfd, the host or the guest touches the backend."""
    s(f"attr {private} {start} {count} shared", 0)
    s(f"punch {private} {start} {count}", 0)
    touched = s.rng.choice((f"touch {shared} {start} {count} seq", f"vtouch {private} {start} {count}"))
    if s.rng.random() < 0.3:
        s(f"setcpu {s.cpu()}", s.tasks - 1)
    s(touched, s.tasks - 1)


def to_private(s: Script, private: str, shared: str, start: int, count: int, backend: str) -> None:
    """The guest takes it back: attributes, the backend's pages discarded, the next vCPU to touch allocates."""
    s(f"attr {private} {start} {count} private", 0)
    discard = f"punch {shared} {start} {count}" if backend == "memfd" else f"madv {shared} {start} {count} {DONTNEED}"
    s(discard, 0)
    if s.rng.random() < 0.6:
        task = s.task()
        if s.rng.random() < 0.5:
            s(f"setcpu {s.cpu()}", task)
        s(f"{s.rng.choice(('vtouch', 'prefault'))} {private} {start} {count}", task)


def drift(bound: bool) -> Family:
    """One quarter of a guest shared and taken back, touched from elsewhere: 8 MiB, counted by node before and after."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng)
        private, shared = _private_guest(s, 2048, "MMAP" if bound else "0", "memfd")
        first, last = place.memory_nodes[0], place.memory_nodes[-1]
        near = {node: cpu for cpu, node in reversed(place.cpu_node.items())}
        cpus = sorted(near[node] for node in near)
        s(f"mbind {shared} 0 2048 BIND {first}")
        if bound:
            s(f"mbind {private} 0 2048 BIND {first if rng.random() < 0.5 else last}")
        s(f"attr {private} 0 2048 private")
        s("nodestat")
        s(f"setcpu {cpus[-1]}")
        s(f"prefault {private} 0 2048")
        s("nodestat")
        s(f"attr {private} 0 512 shared")
        s(f"punch {private} 0 512")
        s(f"setcpu {cpus[0]}")
        s(f"touch {shared} 0 512 seq")
        s("nodestat")
        s(f"attr {private} 0 512 private")
        s(f"punch {shared} 0 512")
        s(f"prefault {private} 0 512")
        s("nodestat")
        s(f"reveal {private} 480 64")
        return s

    return make


def refusals(place: Place, name: str, rng: random.Random) -> Script:
    """Arguments and states that are refused: attributes, slots, flags, faults on the wrong side."""
    s = Script(place, name, rng)
    s("vm sw_protected")
    s("create g0 32 MMAP|SHARED")
    s("create g0 32 SHARED")
    s("create g0 32 MMAP")
    for line in (
        "attr g0 0 0 private", "attr g0 100b 4096b private", "attr g0 0 100b private", "attr g0 0 4 1", "attr g0 0 4 9",
        "attr g0 0 4 private 1", "attr g0 0 16 private", "attr g0 0 16 private", "attr g0 8 16 shared",
        "convert g0 0 16 private", "convert g0 0 16 shared", "convert g0 0 0 private",
        "touch g0 0 2 seq", "rtouch g0 2 2 seq", "madv g0 0 4 23", "getnode g0 0", "vtouch g0 0 4", "vtouch g0 6 4",
        "vtouch g0 8 2", "prefault g0 4 2", "prefault g0 12 4", "prefault g0 30 4", "vtouch g0 31 2",
        "memfd g1 32", "slot g0 g1", "close g0", "create g0 32 0", "slot g0 g1", "vtouch g0 0 2", "attr g0 0 8 private",
        "vtouch g0 0 12", "punch g0 0 4", "vtouch g0 0 8", "attr g1 0 8 private", "vtouch g1 0 4", "vtouch g1 8 4",
        "mbind g0 0 8 BIND 0", "getpol g0 0", "falloc g0 28 8", "falloc g0 100b 4096b", "punch g0 0 0",
        "movepages g0 0 4 0", "place g1",
    ):  # fmt: skip
        s(line)
    s("reveal g0")
    return s


def host_access(place: Place, name: str, rng: random.Random) -> Script:
    """The host reaches for pages of a private file that it has mapped, before and after the guest made them."""
    s = Script(place, name, rng, tasks=2)
    private, shared = _private_guest(s, 48, "MMAP", rng.choice(("memfd", "anon")))
    s.mbind(private)
    s(f"attr {private} 0 48 private")
    s(f"falloc {private} 0 12")
    s(f"vtouch {private} 12 12")
    for verb in ("touch {f} {o} 4 seq", "rtouch {f} {o} 4 rev", "madv {f} {o} 4 22", "madv {f} {o} 4 23", "getnode {f} {o}",
                 "madv {f} {o} 4 4", "madv {f} {o} 4 9"):  # fmt: skip
        for offset in (2, 14, 30):
            s(verb.format(f=private, o=offset), rng.randrange(2))
    s(f"mbind {private} 0 24 BIND {s.node()} MOVE|STRICT")
    s(f"movepages {private} 0 24 {s.node()} MOVE_ALL")
    s(f"getpol {private} 0")
    s(f"alias g2 {private}")
    s("touch g2 0 2 seq")
    s("close g2")
    return _end(s, private, shared)


def mix(place: Place, name: str, rng: random.Random) -> Script:
    """Every call on a private guest with one or two slots, in any order."""
    s = Script(place, name, rng, tasks=rng.randint(1, 4))
    backend = rng.choice(("memfd", "anon"))
    private, shared = _private_guest(s, rng.choice((64, 100)), rng.choice(("0", "MMAP", "MMAP")), backend)
    pages = s.files[private]
    s(f"attr {private} 0 {pages} private")
    calls: list[Callable[[int, int, int], None]] = [
        lambda o, n, t: s.mbind(private, task=t),
        lambda o, n, t: s.mbind(shared, task=t),
        lambda o, n, t: s(f"vtouch {private} {o} {n}", t),
        lambda o, n, t: s(f"vtouch {private} {o} {n}", t),
        lambda o, n, t: s(f"prefault {private} {o} {n}", t),
        lambda o, n, t: s(f"falloc {private} {o} {n}", t),
        lambda o, n, t: s(f"punch {private} {o} {n}", t),
        lambda o, n, t: s(f"touch {shared} {o} {n} {s.order()}", t),
        lambda o, n, t: s(f"attr {private} {o} {n} {rng.choice(('private', 'shared'))}", t),
        lambda o, n, t: s(f"setcpu {s.cpu()}", t),
        lambda o, n, t: s(f"getpol {private} {o}", t),
        lambda o, n, t: s(f"place {shared}"),
    ]
    plain = [mode for mode in MODES if mode not in INTERLEAVING]
    for _ in range(28):
        if rng.random() < 0.06:
            s.weights()
        elif rng.random() < 0.08:
            mode = rng.choice(plain)
            s(f"setpol {mode} {s.nodes_for(mode)}", s.task())
        else:
            rng.choice(calls)(*s.stretch(private, 30), s.task())
    return _end(s, private, shared)


def two_guests(place: Place, name: str, rng: random.Random) -> Script:
    """Two memslots in turn under one rotation; one file is closed and another takes its slot."""
    s = Script(place, name, rng, tasks=2)
    s("vm sw_protected")
    for file in ("g0", "g1"):
        s(f"create {file} 48 MMAP")
        mode = rng.choice(("INTERLEAVE", "WEIGHTED_INTERLEAVE", "PREFERRED_MANY"))
        s(f"mbind {file} 0 48 {mode} {s.nodes()}")
        s(f"attr {file} 0 48 private")
    for number in range(8):
        start = rng.randrange(40)
        s(f"{rng.choice(('vtouch', 'prefault', 'punch'))} g{number % 2} {start} {rng.randint(1, 8)}", s.task())
    s("reveal g0")
    s("close g0")
    s("create g0 48 MMAP")
    s("getpol g0 0")
    s(f"vtouch g0 0 {rng.randint(8, 20)}", 1)
    s("reveal g0")
    s("reveal g1")
    return s


def cpuset(place: Place, name: str, rng: random.Random) -> Script:
    """Memory nodes of a cpuset: guest faults under them, with and without a policy, before and after a change."""
    s = Script(place, name, rng, tasks=2)
    private, shared = _private_guest(s, 96, "MMAP")
    s(f"attr {private} 0 96 private")
    s(f"mbind {private} 0 32 BIND {s.nodes()}")
    s(f"mbind {private} 32 32 INTERLEAVE {s.nodes()}")
    for number, mems in enumerate((s.nodes(), s.nodes(), "off")):
        s(f"cpuset {mems}")
        for base in (0, 32, 64):
            s(f"{rng.choice(('vtouch', 'prefault'))} {private} {base + number * 10} 10", s.task())
        s(f"getpol {private} 0")
    return _end(s, private, shared)


def policy_change(place: Place, name: str, rng: random.Random) -> Script:
    """Policies that change between conversions; home nodes, weights in use, ranges split and joined."""
    s = Script(place, name, rng, tasks=2)
    private, shared = _private_guest(s, 80, "MMAP", rng.choice(("memfd", "anon")))
    backend = "memfd" if any(line.startswith(f"memfd {shared}") for line in s.lines) else "anon"
    s(f"attr {private} 0 80 private")
    for _ in range(5):
        s.mbind(private)
        if rng.random() < 0.5:
            s.weights(4)
        if rng.random() < 0.5:
            start, count = s.stretch(private)
            s(f"home {private} {start} {count} {s.node()}")
        start, count = s.stretch(private, 20)
        s(f"vtouch {private} {start} {count}", s.task())
        start, count = s.stretch(private, 20)
        to_shared(s, private, shared, start, count, backend)
        to_private(s, private, shared, start, count, backend)
    for page in range(0, 80, 16):
        s(f"getpol {private} {page}")
    return _end(s, private, shared)


def tables(place: Place, name: str, rng: random.Random) -> Script:
    """What a placement costs beside its pages: tables and slab by node, touched by the host and by the guest."""
    s = Script(place, name, rng, tasks=2)
    s("create g0 8192 MMAP|SHARED")
    s(f"mbind g0 0 8192 BIND {place.memory_nodes[-1]}")
    s(f"setcpu {min(place.cpus)}", 0)
    s(f"setcpu {max(place.cpus)}", 1)
    s("nodestat")
    s("touch g0 0 8192 seq", 0)
    s("nodestat")
    s("prefault g0 0 8192", 1)
    s("nodestat")
    s("punch g0 0 8192", 0)
    s("nodestat")
    s("vm sw_protected")
    s("create g1 8192 MMAP")
    s(f"mbind g1 0 8192 BIND {place.memory_nodes[-1]}")
    s("attr g1 0 8192 private")
    s("nodestat")
    s("prefault g1 0 8192", 1)
    s("nodestat")
    s("attr g1 0 4096 shared")
    s("nodestat")
    s("punch g1 0 4096", 0)
    s("nodestat")
    return s


FAMILIES: dict[str, tuple[Family, int]] = {
    "vm_types": (vm_types, 1),
    "refusals": (refusals, 1),
    **{f"policy_{mode.lower()}": (by_policy(mode), 1) for mode in MODES},
    **{f"task_{mode.lower()}": (by_task_policy(mode), 1) for mode in MODES},
    "drift": (drift(bound=False), 1),
    "drift_bound": (drift(bound=True), 1),
    "tables": (tables, 1),
    "memfd": (out_of_place("memfd"), 9),
    "anon": (out_of_place("anon"), 9),
    "unbound": (out_of_place("memfd", "0"), 3),
    "first_touch": (first_touch, 4),
    "host_access": (host_access, 2),
    "two_guests": (two_guests, 3),
    "cpuset": (cpuset, 3),
    "policy_change": (policy_change, 4),
    "mix": (mix, 20),
}
"""Name, maker and how many of each for one host."""


def generate(host: EmulatedHost, seed: int = 1) -> str:
    """The scripts of all families for one host, as one text to be run in one boot."""
    return generate_families(host, FAMILIES, seed)


def capacity(host: EmulatedHost, seed: int = 1) -> str:
    """How much memory a policy gives until nothing is left: each node, guest_memfd and tmpfs, by every binding mode.

    Meant for two boots, with ``kho=off`` and ``kho=on``: areas set aside for kexec handover are CMA, which pages that
    cannot move do not get.
    """
    place = Place.of(host)
    texts = ["scenario areas\nkho\nzones\nnodestat\ncat /proc/pagetypeinfo\n"]
    for kind in ("create", "memfd"):
        for node in place.memory_nodes:
            pages = place.pages[node]
            s = Script(place, f"fill_{kind}_{node}", random.Random(seed))
            if kind == "create":
                s("vm sw_protected")
            file = s.create(pages, kind, flags="MMAP")
            s(f"mbind {file} 0 {pages} BIND {node}")
            s("nodestat")
            s(f"fill {file} 256")
            s("meminfo")
            texts.append(s.text())
    return "".join(texts)


def handover_hosts() -> dict[str, EmulatedHost]:
    """Hosts of the boots with kexec handover: all memory below 4 GiB, where one of the areas has to lie."""
    two = (EmulatedNode(512, (0, 1)), EmulatedNode(512, (2, 3)))
    three = (EmulatedNode(512, (0,)), EmulatedNode(320, (1,)), EmulatedNode(448))
    four = (EmulatedNode(448, (0, 1)), EmulatedNode(320, (2,)), EmulatedNode(256, (3,)), EmulatedNode(384))
    return {
        "k2eq": EmulatedHost("k2eq", two, ((10, 20), (20, 10))),
        "k3uneq": EmulatedHost("k3uneq", three, ((10, 17, 28), (17, 10, 22), (28, 22, 10))),
        "k4asym": EmulatedHost(
            "k4asym", four, ((10, 14, 22, 28), (16, 10, 19, 25), (22, 18, 10, 17), (28, 25, 17, 10))
        ),
    }


def hosts() -> dict[str, EmulatedHost]:
    """Hosts of these recordings by name: two nodes, four with a far one and asymmetric distances, CXL with an HMAT, six."""
    from workbench.recorder.emulated_hosts import all_hosts

    asymmetric = (
        (10, 14, 22, 28),
        (16, 10, 19, 25),
        (22, 18, 10, 17),
        (28, 25, 17, 10),
    )
    four = (EmulatedNode(320, (0, 1)), EmulatedNode(256, (2,)), EmulatedNode(192, (3,)), EmulatedNode(256))
    two = (EmulatedNode(512, (0, 1)), EmulatedNode(512, (2, 3)))
    known = all_hosts()
    out = [
        EmulatedHost("p2eq", two, ((10, 20), (20, 10)), lowmem_mib=128),
        EmulatedHost("p4asym", four, asymmetric, lowmem_mib=128),
        known["m3hmat"],
        known["m6memfirst"],
    ]
    return {host.name: host for host in out}

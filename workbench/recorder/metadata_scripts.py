"""Families of scripts about what a placement costs beside its pages: tables of both kinds and slabs, by node.

Every step stands between two looks at the counters of all nodes (``nodestat``), so that it is judged alone. Files are
large (64 MiB), since one page of tables stands for 2 MiB and one slab for 1,792 pages in the page cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.recorder.private_scripts import hosts as private_hosts
from workbench.recorder.qemu import EmulatedHost
from workbench.recorder.scenario_generator import MODES, Family, Place, Script, generate_families

PAGES = 16384
ORDERS = ("seq", "rev", "rand 20261126", "stride 512", "stride 3")


def _look(s: Script, line: str, task: int | None = None) -> None:
    s(line, task)
    s("nodestat")


def _begin(s: Script, tasks_cpus: bool = True) -> None:
    """Each task on a CPU of another node, as far as there are some; no slab free but in part; the first look.

    Without the shrinking, nodes that the script before gave back stand ready: ten sheaves of each node and three of each CPU
    (mm/slub.c: MAX_FULL_SHEAVES), and the first 64 MiB take no slab at all.
    """
    if tasks_cpus:
        for task, cpu in zip(range(s.tasks), _cpus_apart(s), strict=False):
            s(f"setcpu {cpu}", task)
    s("sleep 200")
    s("write /sys/kernel/slab/radix_tree_node/shrink 1")
    s("nodestat")


def _cpus_apart(s: Script) -> Iterator[int]:
    """CPUs, those of different nodes first, again and again."""
    first: dict[int, int] = {}
    for cpu in s.place.cpus:
        first.setdefault(s.place.cpu_node[cpu], cpu)
    while True:
        yield from first.values()


def by_task(mode: str) -> Family:
    """Tables of the host and of the guest, and slabs, under each mode of the task that touches."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=2)
        file = s.create(PAGES)
        s(f"mbind {file} 0 {PAGES} BIND {place.memory_nodes[-1]}")
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights(5)
        for task in range(2):
            s(f"setpol {mode} {s.nodes_for(mode)}", task)
        _begin(s)
        half = PAGES // 2
        _look(s, f"touch {file} 0 {half} {rng.choice(ORDERS)}", 0)
        _look(s, f"falloc {file} {half} {half // 2}", 0)
        _look(s, f"touch {file} {half} {half // 2} seq", 1)
        _look(s, f"prefault {file} 0 {half}", 1)
        _look(s, f"vtouch {file} {half} {half}", 0)
        s(f"place {file}")
        return s

    return make


def guest(way: str) -> Family:
    """The guest makes the pages: no tables of the host, those of the second stage with the thread that runs."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=3)
        file = s.create(PAGES)
        if rng.random() < 0.6:
            mode = rng.choice(MODES)
            s(f"mbind {file} 0 {PAGES} {mode} {s.nodes_for(mode)}")
        _begin(s)
        part = PAGES // 4
        for number in rng.sample(range(4), 4):
            _look(s, f"{way} {file} {number * part} {part}", number % 3)
        _look(s, f"punch {file} {part // 2} {2 * part}", 1)
        _look(s, f"{way} {file} {part // 2} {part}", 2)
        s(f"place {file}")
        return s

    return make


def fallocated(place: Place, name: str, rng: random.Random) -> Script:
    """fallocate takes slabs alone; tables come with the touch; a hole gives slabs back, tables stay."""
    s = Script(place, name, rng, tasks=2)
    file = s.create(PAGES)
    s.mbind(file)
    _begin(s)
    _look(s, f"falloc {file} 0 {PAGES}", 1)
    _look(s, f"rtouch {file} 0 {PAGES // 2} seq", 0)
    _look(s, f"punch {file} 0 {PAGES // 4}", 1)
    _look(s, f"falloc {file} 0 {PAGES // 8}", 0)
    _look(s, f"punch {file} 0 {PAGES}", 0)
    _look(s, f"touch {file} 100 {PAGES - 200} seq", 1)
    s(f"place {file}")
    return s


def holes(place: Place, name: str, rng: random.Random) -> Script:
    """Holes large and small, and what is touched again after them."""
    s = Script(place, name, rng, tasks=2)
    file = s.create(PAGES)
    s(f"mbind {file} 0 {PAGES} INTERLEAVE {s.nodes(2)}")
    _begin(s)
    _look(s, f"touch {file} 0 {PAGES} seq", 0)
    for _ in range(5):
        start, count = s.stretch(file, PAGES // 3)
        _look(s, f"punch {file} {start} {count}", s.task())
        start, count = s.stretch(file, PAGES // 4)
        _look(s, f"{rng.choice(('touch', 'rtouch'))} {file} {start} {count} {s.order()}", s.task())
    s(f"place {file}")
    return s


def unmapped(place: Place, name: str, rng: random.Random) -> Script:
    """munmap gives tables back, close the slabs; a second mapping has tables of its own."""
    s = Script(place, name, rng, tasks=2)
    file = s.create(PAGES)
    s.mbind(file)
    _begin(s)
    _look(s, f"touch {file} 0 {PAGES} seq", 0)
    s(f"alias g1 {file}")
    s.files["g1"] = PAGES
    _look(s, f"touch g1 0 {PAGES // 2} {s.order()}", 1)
    _look(s, "unmap g1", 1)
    _look(s, f"unmap {file}", 0)
    _look(s, f"mmap {file}", 1)
    _look(s, f"rtouch {file} 0 {PAGES // 4} seq", 1)
    _look(s, "close g1", 0)
    _look(s, f"close {file}", 0)
    return s


def order(kind: str) -> Family:
    """Touches of a large file in one order: nodes of the page cache and tables come in that order."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=2)
        file = s.create(2 * PAGES)
        mode = rng.choice(("INTERLEAVE", "WEIGHTED_INTERLEAVE", "LOCAL"))
        s(f"mbind {file} 0 {2 * PAGES} {mode} {s.nodes_for(mode)}")
        _begin(s)
        _look(s, f"touch {file} 0 {PAGES} {kind}", 0)
        _look(s, f"rtouch {file} {PAGES} {PAGES} {kind}", 1)
        _look(s, f"prefault {file} 0 {2 * PAGES}", 0)
        s(f"place {file}")
        return s

    return make


def several(place: Place, name: str, rng: random.Random) -> Script:
    """Four tasks in turn, each on its node and some with policies of their own, on two files."""
    s = Script(place, name, rng, tasks=4)
    files = [s.create(PAGES // 2), s.create(PAGES // 2)]
    for file in files:
        s.mbind(file)
    plain = [mode for mode in MODES if "INTERLEAVE" not in mode]
    for task in range(0, 4, 2):
        mode = rng.choice(plain)
        s(f"setpol {mode} {s.nodes_for(mode)}", task)
    _begin(s)
    for number in range(12):
        file = rng.choice(files)
        start, count = s.stretch(file, PAGES // 6)
        way = rng.choice(
            (f"touch {file} {start} {count} {s.order()}", f"falloc {file} {start} {count}",
             f"prefault {file} {start} {count}", f"vtouch {file} {start} {count}")
        )  # fmt: skip
        _look(s, way, number % 4)
    s.place_all()
    return s


def files(place: Place, name: str, rng: random.Random) -> Script:
    """tmpfs beside guest_memfd: its tables and its slabs are the same."""
    s = Script(place, name, rng, tasks=2)
    private, ordinary = s.create(PAGES), s.create(PAGES, "memfd")
    s(f"mbind {ordinary} 0 {PAGES} BIND {s.node()}")
    _begin(s)
    _look(s, f"touch {ordinary} 0 {PAGES} seq", 0)
    _look(s, f"touch {private} 0 {PAGES} seq", 1)
    _look(s, f"punch {ordinary} 0 {PAGES // 2}", 1)
    _look(s, f"close {ordinary}", 0)
    return s


FAMILIES: dict[str, tuple[Family, int]] = {
    **{f"task_{mode.lower()}": (by_task(mode), 2) for mode in MODES},
    "vtouch": (guest("vtouch"), 2),
    "prefault": (guest("prefault"), 2),
    "fallocated": (fallocated, 2),
    "holes": (holes, 2),
    "unmapped": (unmapped, 2),
    **{f"order_{kind.split()[0]}{index}": (order(kind), 1) for index, kind in enumerate(ORDERS)},
    "several": (several, 4),
    "files": (files, 1),
}
"""Name, maker and how many of each for one host."""


def generate(host: EmulatedHost, seed: int = 1) -> str:
    """The scripts of all families for one host, as one text to be run in one boot."""
    return generate_families(host, FAMILIES, seed)


def hosts() -> dict[str, EmulatedHost]:
    """Two equal nodes; four, one without CPUs, asymmetric; three unequal ones with an HMAT."""
    known = private_hosts()
    return {name: known[name] for name in ("p2eq", "p4asym", "m3hmat")}

"""Families of scripts about pages that others hold: buffers of io_uring, pages in a pipe, direct reads of a disk.

On 7.3 a pin hinders nobody: it faults pages in like a touch of the task that pins, under the same policies; a hole takes
pinned pages out of the file, and who touches there next gets others; attributes change under it. What in-place conversion
makes of pins is in ``datasets/recordings/conversion``.
"""

from __future__ import annotations

import random

from workbench.recorder.private_scripts import hosts as private_hosts
from workbench.recorder.qemu import EmulatedHost
from workbench.recorder.scenario_generator import MODES, Family, Place, Script, generate_families

KINDS = ("uring", "splice", "odirect")
LASTING = KINDS[:2]
"""Those that last until they are given back."""
PAGES = 96


def take(kind: str, file: str, start: int, count: int) -> str:
    """The line that pins."""
    return f"odirect {file} {start} {count}" if kind == "odirect" else f"pin {file} {start} {count} {kind}"


def by_policy(mode: str) -> Family:
    """A policy of the file and then of the task: pages that a pin brings obey it."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng, tasks=2)
        file, other = s.create(PAGES), s.create(PAGES, rng.choice(("create", "memfd")))
        if mode == "WEIGHTED_INTERLEAVE":
            s.weights(5)
        s(f"mbind {file} 0 {PAGES} {mode} {s.nodes_for(mode)}")
        s(f"setpol {mode} {s.nodes_for(mode)}", 1)
        for number, kind in enumerate(rng.sample(KINDS, len(KINDS))):
            s(f"setcpu {s.cpu()}", number % 2)
            s(take(kind, file, number * 24, 24), number % 2)
            s(take(kind, other, number * 24, 12 + number), 1)
            s("gettask", 1)
        s(f"touch {file} 70 26 seq", 0)
        s.place_all()
        s(f"unpin {file}", 0)
        s(f"unpin {other}", 1)
        s.place_all()
        return s

    return make


def holes(place: Place, name: str, rng: random.Random) -> Script:
    """A hole under a pin: the page leaves the file, another takes its place, the pin keeps what it had."""
    s = Script(place, name, rng, tasks=2)
    file = s.create(PAGES)
    s.mbind(file)
    for _ in range(6):
        start, count = s.stretch(file, 30)
        s(take(rng.choice(KINDS), file, start, count), s.task())
        start, count = s.stretch(file, 30)
        s(f"punch {file} {start} {count}", s.task())
        s(f"setcpu {s.cpu()}", s.task())
        start, count = s.stretch(file, 30)
        s(f"{rng.choice(('touch', 'rtouch'))} {file} {start} {count} {s.order()}", s.task())
        s(f"place {file}")
    s(f"unpin {file}", s.task())
    s(f"place {file}")
    s(f"unpin {file}", s.task())
    s(f"close {file}")
    return s


def refused(place: Place, name: str, rng: random.Random) -> Script:
    """Pages that the host may not touch, ranges that run over the end, files that are gone."""
    s = Script(place, name, rng)
    for flags in ("MMAP", "0", "MMAP|SHARED"):
        file = s.create(32, flags=flags)
        for kind in KINDS:
            s(take(kind, file, 4, 8))
        s(f"counts {file}")
    for kind in KINDS:
        s(take(kind, "g2", 24, 16))
        s("place g2 24 8")
    s("unpin g0")
    s("unpin g2")
    s("close g2")
    s(take("uring", "g2", 0, 1))
    return s


def conversion(place: Place, name: str, rng: random.Random) -> Script:
    """A guest with private memory: pins on the shared backend while ranges change sides and the backend is punched."""
    s = Script(place, name, rng, tasks=2)
    s("vm sw_protected")
    private = s.create(PAGES, flags="0")
    shared = s.create(PAGES, "memfd")
    s(f"slot {private} {shared}")
    s(f"mbind {shared} 0 {PAGES} BIND {s.node()}")
    s(f"touch {shared} 0 48 seq", 0)
    for _ in range(4):
        start, count = s.stretch(shared, 32)
        s(take(rng.choice(LASTING), shared, start, count), s.task())
        s(f"attr {private} {start} {count} private", 0)
        s(f"setcpu {s.cpu()}", 1)
        s(f"vtouch {private} {start} {count}", 1)
        if rng.random() < 0.5:
            s(f"attr {private} {start} {count} shared", 0)
            s(f"punch {private} {start} {count}", 0)
    s(f"place {shared}")
    s(f"unpin {shared}", 0)
    s(f"reveal {private}")
    return s


def several(place: Place, name: str, rng: random.Random) -> Script:
    """Pins over one another, by several tasks, given back in one go."""
    s = Script(place, name, rng, tasks=3)
    files = [s.create(PAGES), s.create(PAGES)]
    for file in files:
        s.mbind(file)
    for _ in range(10):
        file = rng.choice(files)
        start, count = s.stretch(file, 20)
        if rng.random() < 0.3:
            s(f"falloc {file} {start} {count}", s.task())
        s(take(rng.choice(KINDS), file, start, count), s.task())
        if rng.random() < 0.3:
            s.mbind(file, flags=rng.choice(("", " MOVE", " STRICT")))
        if rng.random() < 0.3:
            s(f"setcpu {s.cpu()}", s.task())
    s.place_all()
    s(f"unpin {files[0]}", 0)
    s(f"punch {files[1]} 0 {PAGES}", 1)
    s(f"touch {files[1]} 0 40 seq", 2)
    s.place_all()
    return s


FAMILIES: dict[str, tuple[Family, int]] = {
    **{f"pin_{mode.lower()}": (by_policy(mode), 1) for mode in MODES},
    "holes": (holes, 4),
    "refused": (refused, 1),
    "several": (several, 4),
}
"""Name, maker and how many of each for one host."""
PRIVATE: dict[str, tuple[Family, int]] = {"conversion": (conversion, 6)}
"""Those that need a kernel with guests of type sw_protected."""


def generate(host: EmulatedHost, seed: int = 1) -> str:
    """The scripts of all families for one host, as one text to be run in one boot."""
    return generate_families(host, FAMILIES, seed)


def generate_private(host: EmulatedHost, seed: int = 1) -> str:
    """The same of the families with private memory."""
    return generate_families(host, PRIVATE, seed)


def hosts() -> dict[str, EmulatedHost]:
    """Two equal nodes; four, one without CPUs, asymmetric; three unequal ones with an HMAT."""
    known = private_hosts()
    return {name: known[name] for name in ("p2eq", "p4asym", "m3hmat")}

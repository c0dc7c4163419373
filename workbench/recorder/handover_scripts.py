"""Scripts that go through a kexec: memfds in a live-update session, what they lose and what they keep.

One kexec a boot, so each of these is a boot of its own. Needs a kernel of ``workbench oracle build`` and the words
``kho=on liveupdate=on`` on its command line.
"""

from __future__ import annotations

import random

from workbench.recorder.private_scripts import handover_hosts
from workbench.recorder.qemu import EmulatedHost
from workbench.recorder.scenario_generator import MODES, Place, Script

WORDS = "kho=on liveupdate=on"
BOOTS = (("k2eq", 1), ("k2eq", 2), ("k3uneq", 3), ("k3uneq", 4))
"""Host and seed of each boot."""
SESSIONS = (("k2eq", 1), ("k2eq", 2), ("k3uneq", 3), ("k3uneq", 4))
"""Of each that goes through a kexec to see what a session holds."""


def generate(host: EmulatedHost, seed: int = 1) -> str:
    """Files with policies are filled in part, preserved, frozen, handed over, retrieved and changed."""
    place = Place.of(host)
    rng = random.Random(f"{host.name}/{seed}/handover")
    s = Script(place, f"handover{seed}", rng, tasks=2)
    s("kho")
    files = [s.create(rng.choice((64, 300, 1000)), "memfd") for _ in range(3)]
    if rng.random() < 0.5:
        s.weights(5)
    for file in files:
        for _ in range(rng.randint(0, 3)):
            s.mbind(file)
        start, count = s.stretch(file)
        s(f"setcpu {s.cpu()}", s.task())
        s(f"touch {file} {start} {count} {s.order()}", s.task())
        s(f"place {file}")
    if rng.random() < 0.5:
        mode = rng.choice([mode for mode in MODES if "INTERLEAVE" not in mode])
        s(f"setpol {mode} {s.nodes_for(mode)}", 1)
    s("create g7 64 MMAP|SHARED")
    s("touch g7 0 16 seq", 0)
    s("preserve g7 9", 0)
    s("close g7")
    s(f"preserve {files[0]} 1", 1)
    s(f"preserve {files[0]} 2", 0)
    s(f"preserve {files[1]} 1", 0)
    s(f"preserve {files[1]} 2", 0)
    for line in ("falloc {f} 0 8", "punch {f} 0 8", "touch {f} 0 8 seq", "mbind {f} 0 16 BIND {n}", "getpol {f} 3"):
        s(line.format(f=files[0], n=place.memory_nodes[-1]), s.task())
    s.place_all()
    s("meminfo")
    s("kexec")
    s("meminfo")
    s(f"setcpu {s.cpu()}", 1)
    s(f"retrieve {files[0]} 1", 1)
    s("retrieve g5 7", 0)
    s(f"retrieve {files[1]} 2", 0)
    s("retrieve g6 2", 0)
    s.files.pop(files[2])
    s.place_all()
    for file in list(s.files):
        s(f"getpol {file} 0")
        start, count = s.stretch(file)
        s(f"punch {file} {start} {count}", 0)
        s(f"touch {file} {start} {count} {s.order()}", 1)
        s.mbind(file)
        s(f"place {file}")
    s("gettask", 1)
    fresh = s.create(64, "memfd")
    s(f"touch {fresh} 0 64 seq", 0)
    s(f"place {fresh}")
    s("finish")
    s("kho")
    return s.text()


def sessions(host: EmulatedHost, seed: int = 1) -> str:
    """Which call a session of which kernel takes, what it holds, and who still has a file once it is finished or closed."""
    place = Place.of(host)
    rng = random.Random(f"{host.name}/{seed}/sessions")
    s = Script(place, f"sessions{seed}", rng, tasks=2)
    for line in rng.sample(("finish", "retrieve g6 1", "close_session"), 3):
        s(line, 0)
    files = [s.create(rng.choice((40, 200)), "memfd") for _ in range(4)]
    for file in files:
        start, count = s.stretch(file)
        s(f"touch {file} {start} {count} {s.order()}", s.task())
    for number, file in enumerate(files[:2]):
        s(f"preserve {file} {number}", s.task())
    for line in rng.sample(("finish", "retrieve g6 1", f"punch {files[0]} 0 8", f"close {files[1]}"), 4):
        s(line, s.task())
    s("close_session", 1)
    s(f"punch {files[0]} 0 8", 0)
    s.create(64, "memfd")
    s.files.pop(files[1])
    kept = [files[0], *files[2:]]
    for number, file in enumerate(kept):
        s(f"preserve {file} {number + 4}", s.task())
    s.place_all()
    s("meminfo")
    s("kexec")
    s("meminfo")
    if rng.random() < 0.5:
        s("close_session", 0)
    s(f"retrieve {kept[0]} 4", 0)
    s(f"preserve {kept[0]} 9", 1)
    s(f"close {kept[0]}", 0)
    s(f"retrieve {kept[0]} 4", 1)
    s(f"place {kept[0]}")
    s("retrieve g6 5", 0)
    s("place g6")
    if rng.random() < 0.5:
        s("close g6", 1)
    for line in rng.sample(("finish", "close_session"), rng.randint(1, 2)):
        s(line, s.task())
    s("meminfo")
    for line in rng.sample(
        ("finish", "retrieve g7 6", f"preserve {kept[0]} 9", f"punch {kept[0]} 0 8", "close_session"), 5
    ):
        s(line, s.task())
    s(f"place {kept[0]}")
    s("memfd g5 16", 0)
    s("preserve g5 1", 0)
    s("meminfo")
    return s.text()


HELD = """\
scenario held
memfd g0 30000
memfd g1 20000
preserve g0 1
preserve g1 2
meminfo
kexec
meminfo
retrieve g0 1
close g0
meminfo
finish
meminfo
close_session
memfd g0 30000
preserve g0 3
close g0
meminfo
close_session
meminfo
"""
"""Files so large that free memory shows who holds them: one retrieved and closed, one forgotten, one in a session alone."""


def boots() -> list[tuple[str, EmulatedHost, str]]:
    """Name, host and script of each boot."""
    known = handover_hosts()
    through = [(f"{name}-{seed}", known[name], generate(known[name], seed)) for name, seed in BOOTS]
    kept = [(f"{name}-sessions{seed}", known[name], sessions(known[name], seed)) for name, seed in SESSIONS]
    return [*through, *kept, ("k2eq-held", known["k2eq"], HELD)]

"""The scripts that every version of the kernel runs: hand-written facts, and random ones from the common families.

Nothing here depends on what a version has: a call that is not there answers with its errno, and that is the recording.
"""

from __future__ import annotations

import random

from workbench.recorder.private_scripts import CAPABILITIES, VM_TYPES
from workbench.recorder.qemu import EmulatedHost, EmulatedNode
from workbench.recorder.scenario_generator import (
    FAMILIES,
    INTERLEAVING,
    MODES,
    Family,
    Place,
    Script,
    generate_families,
)

WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave"


def interface(place: Place, name: str, rng: random.Random) -> Script:
    """Which calls and flags there are: capabilities, creation flags, mappings, machine types, ioctls."""
    s = Script(place, name, rng)
    for capability in CAPABILITIES:
        s(f"kvmcap {capability}")
    for flags in range(5):
        s(f"create g{flags} 8 {flags}")
        s(f"mmap g{flags}")
        s(f"mmap g{flags} private")
        s(f"falloc g{flags} 0 4")
        s(f"mbind g{flags} 0 8 BIND {place.memory_nodes[-1]}")
        s(f"touch g{flags} 4 2 seq")
        s(f"place g{flags}")
        s(f"attr g{flags} 0 8 private")
        s(f"convert g{flags} 0 8 private")
        s(f"close g{flags}")
    s("create g0 0 0")
    s("create g0 8 8")
    for vm_type in VM_TYPES:
        s(f"vm {vm_type}")
    return s


def shared_policy(mode: str) -> Family:
    """One mode on the mapping of a guest_memfd beside the same on tmpfs: touched from two nodes, allocated, asked for."""

    def make(place: Place, name: str, rng: random.Random) -> Script:
        s = Script(place, name, rng)
        first, last = min(place.cpus), max(place.cpus)
        nodes = "-" if mode in ("DEFAULT", "LOCAL") else ",".join(map(str, place.memory_nodes))
        if mode == "PREFERRED":
            nodes = str(place.memory_nodes[-1])
        s.create(96)
        s.create(96, "memfd")
        for file in s.files:
            s(f"mbind {file} 0 96 {mode} {nodes}")
            s(f"getpol {file} 5")
            s(f"setcpu {first}")
            s(f"touch {file} 0 32 seq")
            s(f"setcpu {last}")
            s(f"touch {file} 32 32 seq")
            s(f"falloc {file} 64 16")
            s(f"getnode {file} 90")
            s(f"prefault {file} 80 8")
            s(f"place {file}")
        return s

    return make


def task_policy(place: Place, name: str, rng: random.Random) -> Script:
    """The task's policy on guest_memfd with and without a mapping, and on tmpfs."""
    s = Script(place, name, rng)
    s.create(64)
    s.create(64, "memfd")
    s.create(64, flags="0")
    for mode in (mode for mode in MODES if mode not in INTERLEAVING):
        nodes = "-" if mode in ("DEFAULT", "LOCAL") else str(place.memory_nodes[-1])
        s(f"setpol {mode} {nodes}")
        s("gettask")
        for file in s.files:
            s(f"falloc {file} 0 16")
            s(f"touch {file} 16 16 seq")
            s(f"place {file}")
            s(f"punch {file} 0 64")
    s("falloc g2 0 64")
    s("reveal g2")
    return s


def far_node(place: Place, name: str, rng: random.Random) -> Script:
    """Memory without CPUs: bound to it, preferred, interleaved with it, as home node, and never by default."""
    s = Script(place, name, rng)
    near = place.memory_nodes[0]
    far = next((node for node in place.memory_nodes if node not in place.cpu_node.values()), place.memory_nodes[-1])
    s.create(96)
    s.create(96, "memfd")
    for number, policy in enumerate(
        (f"BIND {far}", f"PREFERRED {far}", f"INTERLEAVE {near},{far}", f"PREFERRED_MANY {far}", f"BIND {near},{far}")
    ):
        for file in s.files:
            s(f"mbind {file} {number * 16} 16 {policy}")
            if number == 4:
                s(f"home {file} {number * 16} 16 {far}")
            s(f"touch {file} {number * 16} 16 seq")
    for file in s.files:
        s(f"touch {file} 80 16 seq")
    s.place_all()
    s(f"cat /sys/devices/system/node/node{far}/access0/initiators/read_bandwidth")
    return s


def weights(place: Place, name: str, rng: random.Random) -> Script:
    """Weights of weighted interleave: those found, set one by one, automatic again."""
    s = Script(place, name, rng)
    nodes = ",".join(map(str, place.memory_nodes))
    s.create(120)
    s.create(120, "memfd")
    s(f"cat {WEIGHTS}/auto")
    for node in place.memory_nodes:
        s(f"cat {WEIGHTS}/node{node}")
    for file in s.files:
        s(f"mbind {file} 0 120 WEIGHTED_INTERLEAVE {nodes}")
        s(f"touch {file} 0 40 seq")
    s("weights " + ",".join(f"{node}:{2 + number}" for number, node in enumerate(place.memory_nodes)))
    for file in s.files:
        s(f"touch {file} 40 40 seq")
    s(f"cat {WEIGHTS}/auto")
    s(f"write {WEIGHTS}/node{place.memory_nodes[0]} 0")
    s(f"write {WEIGHTS}/node{place.memory_nodes[0]} 256")
    s("weights default")
    for file in s.files:
        s(f"touch {file} 80 40 seq")
    s.place_all()
    return s


def cpuset(place: Place, name: str, rng: random.Random) -> Script:
    """A cpuset's memory nodes against policies of guest_memfd and of tmpfs, set before and after."""
    s = Script(place, name, rng)
    first, last = place.memory_nodes[0], place.memory_nodes[-1]
    s.create(96)
    s.create(96, "memfd")
    for file in s.files:
        s(f"mbind {file} 0 32 BIND {last}")
        s(f"mbind {file} 32 32 INTERLEAVE {','.join(map(str, place.memory_nodes))}")
    for number, mems in enumerate((str(first), str(last), "off")):
        s(f"cpuset {mems}")
        for file in s.files:
            for base in (0, 32, 64):
                s(f"touch {file} {base + number * 10} 10 seq")
            s(f"mbind {file} 64 32 PREFERRED {last}")
            s(f"getpol {file} 0")
    s.place_all()
    return s


def hugetlb(place: Place, name: str, rng: random.Random) -> Script:
    """A hugetlb memfd beside a guest_memfd: pools of two nodes, policies, what is left in the pools."""
    s = Script(place, name, rng)
    first, last = place.memory_nodes[0], place.memory_nodes[-1]
    s(f"pool 2M {first} 4")
    s(f"pool 2M {last} 4")
    s("pools")
    s("memfd g0 4096 2M")
    s("pools")
    s(f"mbind g0 0 1024 BIND {last}")
    s(f"mbind g0 1024 1024 INTERLEAVE {first},{last}")
    s("touch g0 0 512 stride 512")
    s("touch g0 1024 1024 stride 512")
    s("touch g0 2048 512 seq")
    s("counts g0")
    s("pools")
    s("falloc g0 2560 512 0")
    s("punch g0 0 512")
    s("pools")
    s("close g0")
    s("pools")
    s("create g1 1024 MMAP|SHARED")
    s(f"mbind g1 0 1024 BIND {last}")
    s("touch g1 0 64 seq")
    s("place g1 0 64")
    s("pools")
    return s


def moves(place: Place, name: str, rng: random.Random) -> Script:
    """What moves pages: tmpfs and anonymous memory do, guest_memfd does not."""
    s = Script(place, name, rng)
    first, last = place.memory_nodes[0], place.memory_nodes[-1]
    s.create(32)
    s.create(32, "memfd")
    s("anon g2 32")
    s.files["g2"] = 32
    for file in s.files:
        s(f"mbind {file} 0 32 BIND {first}")
        s(f"touch {file} 0 32 seq")
        s(f"mbind {file} 0 16 BIND {last} MOVE")
        s(f"mbind {file} 0 16 BIND {last} MOVE|STRICT")
        s(f"place {file}")
        s(f"movepages {file} 16 8 {last}")
        s(f"place {file}")
        s(f"migrate {first} {last}")
        s(f"place {file}")
    return s


def private_memory(place: Place, name: str, rng: random.Random) -> Script:
    """A guest with private memory, if this kernel makes one: attributes, policy, guest faults, conversion out of place."""
    s = Script(place, name, rng)
    last = place.memory_nodes[-1]
    s("vm sw_protected")
    s("create g0 64 MMAP")
    s("create g2 64 0")
    s("memfd g1 64")
    for file in ("g0", "g2"):
        s(f"slot {file} g1")
        s(f"mbind {file} 0 64 BIND {last}")
        s(f"attr {file} 0 64 private")
        s(f"setcpu {min(place.cpus)}")
        s(f"prefault {file} 0 16")
        s(f"vtouch {file} 16 16")
        s(f"falloc {file} 32 16")
        s(f"attr {file} 0 16 shared")
        s(f"punch {file} 0 16")
        s(f"vtouch {file} 0 16")
        s(f"attr {file} 0 16 private")
        s("punch g1 0 16")
        s(f"vtouch {file} 0 8")
        s("place g1")
        s(f"reveal {file}")
    return s


def counters(place: Place, name: str, rng: random.Random) -> Script:
    """Pages of each node by use, around the touch of a guest_memfd by the host and by the guest."""
    s = Script(place, name, rng)
    s("create g0 4096 MMAP|SHARED")
    s("nodestat")
    s("touch g0 0 4096 seq")
    s("nodestat")
    s("prefault g0 0 4096")
    s("nodestat")
    s("punch g0 0 4096")
    s("nodestat")
    s("kho")
    return s


FACTS: dict[str, tuple[Family, int]] = {
    "fact_interface": (interface, 1),
    **{f"fact_{mode.lower()}": (shared_policy(mode), 1) for mode in MODES},
    "fact_task": (task_policy, 1),
    "fact_far": (far_node, 1),
    "fact_weights": (weights, 1),
    "fact_cpuset": (cpuset, 1),
    "fact_hugetlb": (hugetlb, 1),
    "fact_moves": (moves, 1),
    "fact_private": (private_memory, 1),
    "fact_counters": (counters, 1),
}
"""Hand-written, one question each."""

_TOO_LONG = ("full", "wm", "large", "movable")
RANDOM = {name: family for name, family in FAMILIES.items() if not name.startswith(_TOO_LONG)}
"""The common families without those that fill nodes."""


def generate(host: EmulatedHost, seed: int = 7) -> str:
    """Facts and random scripts for one host."""
    return generate_families(host, FACTS, seed) + generate_families(host, RANDOM, seed)


def hosts() -> dict[str, EmulatedHost]:
    """Two hosts: CXL memory with an HMAT behind two sockets, and four nodes, one without CPUs, asymmetric distances."""
    latency = {(0, 0): 100, (0, 1): 160, (0, 2): 280, (1, 0): 160, (1, 1): 100, (1, 2): 250}
    bandwidth = {(0, 0): 200, (0, 1): 90, (0, 2): 30, (1, 0): 90, (1, 1): 200, (1, 2): 32}
    hmat: list[str] = []
    for (initiator, target), nanoseconds in latency.items():
        where = f"initiator={initiator},target={target},hierarchy=memory"
        hmat.append(f"{where},data-type=access-latency,latency={nanoseconds}")
        hmat.append(f"{where},data-type=access-bandwidth,bandwidth={bandwidth[initiator, target]}G")
    cxl = (EmulatedNode(448, (0, 1)), EmulatedNode(320, (2, 3)), EmulatedNode(320, (), 1))
    four = (EmulatedNode(384, (0,)), EmulatedNode(256, (1, 2)), EmulatedNode(256, (3,)), EmulatedNode(256))
    distances = ((10, 13, 21, 27), (15, 10, 18, 24), (21, 17, 10, 16), (27, 24, 16, 10))
    out = [
        EmulatedHost("h3cxl", cxl, ((10, 21, 30), (21, 10, 27), (30, 27, 10)), lowmem_mib=128, hmat=tuple(hmat)),
        EmulatedHost("h4asym", four, distances, lowmem_mib=128),
    ]
    return {host.name: host for host in out}

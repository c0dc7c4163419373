"""The emulated hosts of our own recordings: topology features that the published ones do not have."""

from __future__ import annotations

from workbench.recorder.qemu import EmulatedHost, EmulatedNode


def _ring(nodes: int, near: int = 12, step: int = 4) -> tuple[tuple[int, ...], ...]:
    """Distances on a ring: ``near`` to a neighbour, ``step`` more for each further hop."""
    return tuple(
        tuple(10 if a == b else near + step * (min((a - b) % nodes, (b - a) % nodes) - 1) for b in range(nodes))
        for a in range(nodes)
    )


def _memory_first() -> EmulatedHost:
    """Six domains, the first two without CPUs: Linux numbers them last (4 and 5)."""
    nodes = (
        EmulatedNode(320),
        EmulatedNode(192),
        EmulatedNode(192, (0,)),
        EmulatedNode(160, (1,)),
        EmulatedNode(160, (2,)),
        EmulatedNode(160, (3,)),
    )
    distances = (
        (10, 17, 14, 17, 24, 28),
        (17, 10, 24, 14, 17, 28),
        (14, 24, 10, 20, 21, 22),
        (17, 14, 20, 10, 20, 21),
        (24, 17, 21, 20, 10, 12),
        (28, 28, 22, 21, 12, 10),
    )
    return EmulatedHost("m6memfirst", nodes, distances, lowmem_mib=128)


def _many() -> EmulatedHost:
    """Fourteen nodes on a ring, six of them with CPUs in mixed order, and two domains that hold nothing."""
    cpus: dict[int, tuple[int, ...]] = {1: (0,), 3: (5,), 6: (1,), 8: (4,), 11: (2,), 15: (3,)}
    sizes = {0: 256, 4: 0, 13: 0}
    nodes = tuple(EmulatedNode(sizes.get(index, 96), cpus.get(index, ())) for index in range(16))
    return EmulatedHost("m14sparse", nodes, _ring(16), lowmem_mib=128)


def _bandwidths() -> EmulatedHost:
    """Three unequal nodes with an HMAT: weights follow the bandwidths (fast, slow, very slow)."""
    nodes = (EmulatedNode(448, (0, 1)), EmulatedNode(192, (2,)), EmulatedNode(320, (), 1))
    latency = {(0, 0): 90, (0, 1): 150, (0, 2): 260, (1, 0): 150, (1, 1): 110, (1, 2): 240}
    bandwidth = {(0, 0): 230, (0, 1): 70, (0, 2): 26, (1, 0): 75, (1, 1): 115, (1, 2): 28}
    hmat: list[str] = []
    for (initiator, target), nanoseconds in latency.items():
        where = f"initiator={initiator},target={target},hierarchy=memory"
        hmat.append(f"{where},data-type=access-latency,latency={nanoseconds}")
        hmat.append(f"{where},data-type=access-bandwidth,bandwidth={bandwidth[initiator, target]}G")
    distances = ((10, 16, 29), (16, 10, 26), (29, 26, 10))
    return EmulatedHost("m3hmat", nodes, distances, lowmem_mib=192, hmat=tuple(hmat))


def _far() -> EmulatedHost:
    """One node with CPUs and one without, no part of memory above 4 GiB."""
    return EmulatedHost("m2far", (EmulatedNode(320, (0, 1, 2)), EmulatedNode(384)), ((10, 27), (27, 10)))


def _memoryless() -> EmulatedHost:
    """Two nodes have CPUs and no memory."""
    nodes = (EmulatedNode(384, (0,)), EmulatedNode(0, (1,)), EmulatedNode(256, (2,)), EmulatedNode(0, (3,)))
    distances = ((10, 21, 31, 21), (21, 10, 16, 22), (31, 16, 10, 14), (21, 22, 14, 10))
    return EmulatedHost("m4memoryless", nodes, distances, lowmem_mib=192)


def _movable() -> EmulatedHost:
    """A third node whose memory is plugged in after boot and all movable; zonelists are built again then."""
    nodes = (EmulatedNode(384, (0, 1)), EmulatedNode(256, (2,)), EmulatedNode(256, (), hotplug=True))
    return EmulatedHost("m3movable", nodes, ((10, 20, 20), (20, 10, 20), (20, 20, 10)), lowmem_mib=192)


def _one() -> EmulatedHost:
    """A single node: policies have nothing to choose from."""
    return EmulatedHost("m1single", (EmulatedNode(384, (0, 1)),), lowmem_mib=128)


def _defaults() -> EmulatedHost:
    """Five nodes with asymmetric distances under the default per-CPU lists and watermark boost."""
    nodes = (
        EmulatedNode(320, (0,)),
        EmulatedNode(192, (1, 2)),
        EmulatedNode(256, (3,)),
        EmulatedNode(192, (4,)),
        EmulatedNode(224),
    )
    distances = (
        (10, 13, 22, 25, 31),
        (15, 10, 17, 22, 28),
        (22, 19, 10, 12, 18),
        (26, 22, 14, 10, 24),
        (31, 28, 17, 23, 10),
    )
    return EmulatedHost("m5defaults", nodes, distances, lowmem_mib=128, kernel_arguments="pcpdefault boostdefault")


def all_hosts() -> dict[str, EmulatedHost]:
    """By name."""
    hosts = (_memory_first(), _many(), _bandwidths(), _far(), _memoryless(), _movable(), _one(), _defaults())
    return {host.name: host for host in hosts}

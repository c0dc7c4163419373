"""Command line and numbering of emulated hosts, against what recordings of real boots say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.qemu import EmulatedHost, EmulatedNode, emulate, mebibytes
from workbench.topology.host import Host, Node

RECORDED = sorted(path for path in datasets_path("recordings").glob("*.json.gz") if path.name != "hvo.json.gz")


def load(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def host(*nodes, distances=None):
    count = len(nodes)
    distances = distances or tuple(tuple(10 if i == j else 20 for j in range(count)) for i in range(count))
    return Host(name="h", nodes=nodes, distances=distances)


def pairs(arguments, option):
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == option]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_linux_numbered_nodes_as_foreseen(path):
    data = load(path)
    emulated = EmulatedHost.from_topology(data["topology"])
    derived = data.get("derived")
    if derived is None:
        pytest.skip("this recording does not say what Linux derived")
    of_domain = {int(domain): node for domain, node in derived["pxm_to_node"].items()}
    assert of_domain == {d: n for d, n in enumerate(emulated.linux_ids) if n >= 0}
    # The distances that Linux read are the declared ones, permuted the same way.
    for domain, node in of_domain.items():
        for other, other_node in of_domain.items():
            if emulated.distances:
                assert derived["distance"][str(node)][other_node] == emulated.distances[domain][other]
    for domain, node in of_domain.items():
        cpus = emulated.nodes[domain].cpus
        assert derived["cpulist"][str(node)] == (f"{cpus[0]}-{cpus[-1]}" if len(cpus) > 1 else "".join(map(str, cpus)))


def test_nodes_without_cpus_come_last():
    nodes = (
        EmulatedNode(256),
        EmulatedNode(256, (1,)),
        EmulatedNode(0),
        EmulatedNode(256, (0,)),
        EmulatedNode(0, (2,)),
    )
    assert EmulatedHost("x", nodes).linux_ids == (3, 1, -1, 0, 2)


@pytest.mark.parametrize("name", sorted(all_hosts()))
def test_topology_round_trip(name):
    emulated = all_hosts()[name]
    assert EmulatedHost.from_topology(json.loads(json.dumps(emulated.topology()))) == emulated


@pytest.mark.parametrize("name", sorted(all_hosts()))
def test_command_declares_every_node(name):
    emulated = all_hosts()[name]
    command = emulated.command("qemu", Path("k"), Path("i"), Path("o"), Path("c"))
    declared = [text for text in pairs(command, "-numa") if text.startswith("node,")]
    assert len(declared) == len(emulated.nodes)
    assert sum(text.count(",cpus=") for text in declared) == sum(len(node.cpus) for node in emulated.nodes)
    boot = sum(node.memory_mib for node in emulated.nodes if not node.hotplug)
    assert pairs(command, "-m")[0].split(",")[0] == f"{boot}M", "QEMU refuses nodes that do not add up to -m"
    count = len(emulated.nodes)
    assert sum(text.startswith("dist,") for text in pairs(command, "-numa")) == (
        count * (count - 1) if count > 1 else 0
    )
    assert pairs(command, "-accel") == ["tcg,thread=single"]
    assert pairs(command, "-append") == [emulated.command_line]


def test_movable_memory_is_a_dimm_onlined_movable():
    command = all_hosts()["m3movable"].arguments()
    assert "pc-dimm,id=dimm2,memdev=ram2,node=2" in pairs(command, "-device")
    assert "node,nodeid=2" in pairs(command, "-numa")
    assert pairs(command, "-m") == ["640M,slots=1,maxmem=896M"]
    assert "memhp_default_state=online_movable" in all_hosts()["m3movable"].command_line


def test_hmat_lines_and_initiators():
    numa = pairs(all_hosts()["m3hmat"].arguments(), "-numa")
    assert "node,nodeid=2,memdev=ram2,initiator=1" in numa
    assert sum(text.startswith("hmat-lb,") for text in numa) == 12


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((EmulatedNode(256),), "CPUs"),
        ((EmulatedNode(256, (0, 2)),), "without a gap"),
        ((EmulatedNode(256, (0,)), EmulatedNode(128, hotplug=True), EmulatedNode(128)), "last node"),
        ((EmulatedNode(256, (0,)), EmulatedNode(100, hotplug=True)), "multiple of 128 MiB"),
        ((), "0 nodes"),
    ],
)
def test_hosts_that_cannot_be_emulated(nodes, message):
    with pytest.raises(WorkbenchError, match=message):
        EmulatedHost("x", nodes)


def test_host_is_scaled_down_and_renumbered():
    big = host(
        Node(id=0, memory_bytes=512 << 30, cpus=(), kind="cxl"),
        Node(id=4, memory_bytes=256 << 30, cpus=tuple(range(64)), kind="dram"),
        Node(id=9, memory_bytes=256 << 30, cpus=tuple(range(64, 128)), kind="dram"),
        distances=((10, 30, 40), (30, 10, 21), (40, 21, 10)),
    )
    emulation = emulate(big, 2048)
    assert [node.memory_mib for node in emulation.host.nodes] == [1024, 512, 512]
    assert emulation.node == {4: 0, 9: 1, 0: 2}
    assert emulation.of_node(77) == 77, "an unknown node is left to the kernel to refuse"
    assert len(emulation.host.nodes[1].cpus) == 8
    assert emulation.of_cpu(0) == 0 and emulation.of_cpu(64) == 8 and emulation.of_cpu(72) == 8
    assert emulation.host.distances == big.distances
    with pytest.raises(WorkbenchError, match="cpu 500"):
        emulation.of_cpu(500)


def test_small_host_keeps_its_sizes():
    emulation = emulate(host(Node(id=0, memory_bytes=512 << 20, cpus=(0, 1), kind="dram")))
    assert emulation.host.nodes[0].memory_mib == 512 and emulation.scale == 1.0


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=12), st.integers(0, 11))
def test_any_host_can_be_emulated(sizes, with_cpus):
    nodes = tuple(
        Node(id=i, memory_bytes=size & ~4095, cpus=(i,) if i == with_cpus % len(sizes) else (), kind="dram")
        for i, size in enumerate(sizes)
    )
    if not any(node.memory_bytes for node in nodes):
        return
    emulation = emulate(host(*nodes))
    for node, small in zip(nodes, emulation.host.nodes, strict=True):
        assert bool(node.memory_bytes) == bool(small.memory_mib)
    command = emulation.host.arguments()
    assert "-numa" in command


def test_distances_that_a_slit_cannot_hold():
    nodes = [Node(id=i, memory_bytes=1 << 30, cpus=(i,), kind="dram") for i in range(2)]
    with pytest.raises(WorkbenchError, match="distance 0 -> 1 is 255"):
        emulate(host(*nodes, distances=((10, 255), (20, 10))))


@pytest.mark.parametrize(("text", "value"), [("512M", 512), ("2G", 2048), ("262144K", 256), (96, 96)])
def test_mebibytes(text, value):
    assert mebibytes(text) == value


def test_mebibytes_of_nonsense():
    with pytest.raises(WorkbenchError, match="'12Q'"):
        mebibytes("12Q")

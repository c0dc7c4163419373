"""Every reader against what people have: the cases with their expected values, and hostile input of each kind."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from workbench.bitmap_lists import parse_list, parse_mask
from workbench.commands import machines as commands_machines
from workbench.costs import COSTS
from workbench.errors import WorkbenchError
from workbench.topology import snapshot
from workbench.topology.host import Host, Kind

CASES = Path(__file__).parent / "cases"
EXPECTED = json.loads((CASES / "expected.json").read_text())
ROOT = Path(__file__).parents[2]


def refused(source: Path | str) -> str:
    """The one line that refuses a source, in less than five seconds of this process."""
    begun = time.process_time()
    with pytest.raises(WorkbenchError) as caught:
        Host.from_numactl(source) if isinstance(source, str) else Host.from_file(source)
    assert time.process_time() - begun < 5
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def two_nodes(**more: str) -> dict[str, str]:
    """Node 0 with CPUs, node 1 with memory alone."""
    files = {
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal: 4194304 kB\nNode 0 MemFree: 2097152 kB\n",
        "sys/devices/system/node/node0/cpulist": "0-3\n",
        "sys/devices/system/node/node0/distance": "10 20\n",
        "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal: 4194304 kB\nNode 1 MemFree: 4194304 kB\n",
        "sys/devices/system/node/node1/cpulist": "\n",
        "sys/devices/system/node/node1/distance": "20 10\n",
    }
    return files | more


# ----------------------------------------------------------------------------------------------------------- cases


@pytest.mark.parametrize("name", EXPECTED)
def test_cases(name: str, tmp_path: Path) -> None:
    expected, path = EXPECTED[name], CASES / name
    if expected["reader"] == "sysfs":
        path = tree(tmp_path / "machine/sys", json.loads(path.read_text()))
    if expected.get("error"):
        refused(path)
        return
    host = Host.from_file(path)
    found = {
        "ids": host.node_ids.tolist(),
        "memory_mib": [node.memory_bytes >> 20 for node in host.nodes],
        "cpus_per_node": [len(node.cpus) for node in host.nodes],
        "kinds": [node.kind for node in host.nodes],
        "movable": [node.movable for node in host.nodes],
    }
    for field, value in expected.get("host", {}).items():
        assert found[field] == value, field
    if "distances" in expected:
        assert [list(row) for row in host.distances] == expected["distances"]
    figures = {(a.initiator, a.target): (a.read_bandwidth, a.read_latency) for a in host.access}
    for initiator, target, bandwidth, latency in expected.get("access", ()):
        assert figures[initiator, target] == (bandwidth, latency)
    for node, kind in expected.get("kinds_not", {}).items():
        assert host.nodes[host.index_of(int(node))].kind != kind
    assert set(expected.get("assumed_has", ())) <= set(host.assumed)


def test_every_case_file_is_tested() -> None:
    files = {
        str(path.relative_to(CASES)) for folder in ("numactl", "hwloc", "sysfs") for path in (CASES / folder).iterdir()
    }
    assert files == set(EXPECTED)


def test_hwloc_1_knows_mcdram() -> None:
    host = Host.from_file(CASES / "hwloc/v1-knl-snc4-flat.xml")
    assert [node.kind for node in host.nodes] == ["dram"] * 4 + ["hbm"] * 4
    assert "distances" in host.assumed


def test_what_is_assumed_is_said() -> None:
    host = Host.from_file(CASES / "numactl/hbm-flat.txt")
    assert [node.assumed for node in host.nodes] == [(), (), ("kind", "movable"), ("kind", "movable")]
    (line,) = host.assumptions()
    assert line.startswith("kind and movable of nodes 2-3: memory without CPUs")
    assert Host.from_mapping(host.model_dump(mode="json")) == host


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_memory_has_its_cost(kind: str) -> None:
    assert {f"{kind}_latency", f"{kind}_bandwidth"} <= set(COSTS)


HOSTILE = {
    "redos.numactl.txt": "line 8: numactl: '0:  1111111111111111111111111111x' is no row of 2 distances",
    "digits.numactl.txt": "is not a size in MB",
    "dist-nan.xml": "'nan' is not a number",
    "two-nodes-one-index.xml": "two NUMANode objects have os_index=0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cases(name: str) -> None:
    assert HOSTILE[name] in refused(CASES / "hostile" / name)


def test_a_cpuset_without_end(tmp_path: Path) -> None:
    path = tmp_path / "cpuset-huge.xml"
    node = f'<object type="NUMANode" os_index="0" cpuset="0x{"f" * 200_000}" local_memory="4096"/>'
    path.write_text(f'<topology version="2.0"><object type="Machine">{node}</object></topology>')
    assert "has more than 65536 bits" in refused(path)


# --------------------------------------------------------------------------------------------------------- numactl

PLAIN = (CASES / "numactl/wrapped-power9.txt").read_text()
POWER9 = Host.from_numactl(PLAIN)


@pytest.mark.parametrize(
    "prefix",
    ["> ", ">> ", "# ", "| ", " * ", "// ", "[   12.345678] ", "Nov 26 05:38:26 host numactl[4711]: ", "INFO: ",
     "2026-11-26T05:38:26 stdout: "],
)  # fmt: skip
def test_prefixes_are_passed_over(prefix: str) -> None:
    lines = PLAIN.splitlines()[1:]
    text = "\n".join(prefix + line for line in lines)
    assert Host.from_numactl(text) == POWER9
    assert Host.from_numactl(f"$ numactl -H\n{text}\nuser@host:~$ ") == POWER9
    assert Host.from_numactl(text.replace("\n", "\r\n")) == POWER9


@given(st.integers(1, 71), st.integers(1, 8))
def test_wrapping_never_changes_the_answer(width: int, nodes: int) -> None:
    """Also the matrix and its header are wrapped."""
    cpus = [list(range(node, 40 * nodes, nodes)) for node in range(nodes)]

    def wrapped(line: str, tail: list[int]) -> list[str]:
        out = [line]
        for word in map(str, tail):
            if len(out[-1]) + len(word) >= max(width, 8):
                out.append(word)
            else:
                out[-1] += f" {word}"
        return out

    lines: list[str] = []
    for node in range(nodes):
        lines += [*wrapped(f"node {node} cpus:", cpus[node]), f"node {node} size: {1000 + node} MB"]
    lines += ["node distances:", *wrapped("node", list(range(nodes)))]
    for a in range(nodes):
        lines += wrapped(f"{a}:", [10 if a == b else 20 + a + b for b in range(nodes)])
    host = Host.from_numactl("\n".join(lines))
    assert [list(node.cpus) for node in host.nodes] == cpus
    assert host.distances == tuple(tuple(10 if a == b else 20 + a + b for b in range(nodes)) for a in range(nodes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("25 26 27", "twenty 26 27"), "line 4: 'twenty 26 27"),
        (("node 0 free: 123199 MB\n", "oops\n"), "line 7: 'oops' stands between the nodes"),
        (("node 8 size: 130811 MB", "node 0 size: 130811 MB"), "line 6 and line 11 both give the size of node 0"),
        (("node 8 cpus:", "node 0 cpus:"), "line 3 and line 8 both give the cpus of node 0"),
        (("node distances:", "node distances:\nnode distances:"), "both say 'node distances:'"),
        (("node 252 size: 0 MB\n", ""), "node 252 has no 'size:' line"),
        (("node 252 cpus:\n", ""), "node 252 has no 'cpus:' line"),
        (("  8:   40  10", "  0:   40  10"), "both give the distances of node 0"),
        (("  8:   40  10  80  80  80  80", "  8:   40  10  80  80  80"), "node 8 has 5 distances for 6 nodes"),
        (("126801 MB", "1268017126801712680171268017 MB"), "is not a size in MB"),
        (("node 0 cpus: 0 1", "node 0 cpus: 99999999999999999999 1"), "is not a list of CPUs"),
        (("node 0 cpus: 0 1", "node 0 cpus: 0-65536 1"), "is not a list of CPUs"),
        (("node 0 cpus: 0 1", "node 0 cpus: 0 70000"), "is not a list of CPUs"),
        (("25 26 27", "70000 26 27"), "CPU 70000 is not allowed"),
        (("node 255", "node 1024"), "ids are 0 to 1023"),
        (("node 255", "node 99999999999999999999"), ""),
    ],
)
def test_numactl_is_never_half_read(change: tuple[str, str], message: str) -> None:
    assert change[0] in PLAIN
    assert message in refused(PLAIN.replace(*change))


@pytest.mark.parametrize("cut", range(1, len(PLAIN.splitlines())))
def test_truncated_numactl_is_refused(cut: int) -> None:
    refused("\n".join(PLAIN.splitlines()[:-cut]))


@pytest.mark.parametrize(
    "text",
    [
        "node 0 cpus: 0\nnode 0 size: 1 MB\nnode distances:\nnode 0\n0: " + "1" * 2_000_000 + "x",
        "node 0 cpus: 0\nnode 0 size: 1 MB\nnode distances:\nnode 0\n0: 10x" + " 1" * 1_000_000,
        "node 0 cpus: " + "0-65535 " * 100_000,
        "node 0 cpus: " + "0-65535," * 100_000,
        "node 0 cpus: 0\n" + "1\n" * 1_000_000,
        "node 0 cpus: 0\n" + "1\n" * 90_000,
        "node 0 size: 1 MB\nnode distances:\nnode 0 1\n" + "\n" * 90_000 + "x",
        "node 0 size: 1 MB\nnode 1 size: 1 MB\nnode distances:\nnode 0 1\n0: 10\n" + "1\n" * 90_000,
        "> " * 1_000_000 + "node 0 size: 1 MB",
        "".join(f"node {n} size: 1 MB\n" for n in range(1000)) * 50,
        "node 0 size: 1 MB\n" + "a" * 3_000_000,
    ],
)
def test_long_texts_are_refused_in_time(text: str) -> None:
    refused(text)


def test_ranges_and_their_count() -> None:
    text = "node 0 cpus: 0-3, 8-11 (8)\nnode 0 size: 100 MB\nNo distance information available.\n"
    assert Host.from_numactl(text).nodes[0].cpus == (0, 1, 2, 3, 8, 9, 10, 11)
    assert "8 are listed, (9" in refused(text.replace("(8)", "(9)"))


def test_a_caller_in_a_cpuset_sees_fewer_nodes_than_the_matrix() -> None:
    """numactl.c prints lines for numa_all_nodes_ptr and the matrix for numa_nodes_ptr."""
    text = (
        "available: 2 nodes (0,2)\nnode 0 cpus: 0 1\nnode 0 size: 100 MB\nnode 2 cpus: 4 5\nnode 2 size: 100 MB\n"
        "node distances:\nnode   0   1   2 \n  0:  10  20  30 \n  1:  20  10  40 \n  2:  30  40  10 \n$ "
    )
    host = Host.from_numactl(text)
    assert host.distances == ((10, 30), (30, 10))
    assert host.note == "without nodes 1: numactl's caller may not use them"
    assert "distances are given for nodes [0, 1, 2], memory for [0, 2]" in refused(
        text.replace("2 nodes (0,2)", "3 nodes (0-2)")
    )


def test_several_nodes_without_distances() -> None:
    text = PLAIN[: PLAIN.index("node distances")] + "No distance information available.\n"
    host = Host.from_numactl(text)
    assert "distances" in host.assumed
    assert host.distances[0] == (10, 20, 20, 20, 20, 20)


# ----------------------------------------------------------------------------------------------------------- lscpu


@pytest.mark.parametrize("form", ["json", "text"])
def test_lscpu_with_numactl(form: str, tmp_path: Path) -> None:
    fields = {"Architecture:": "x86_64", "NUMA node(s):": "2", "NUMA node0 CPU(s):": "0-1,4", "NUMA node1 CPU(s):": ""}
    if form == "json":
        head = json.dumps({"lscpu": [{"field": f, "data": d} for f, d in fields.items()]}, indent=1)
    else:
        head = "\n".join(f"{f:24} {d}" for f, d in fields.items())
    numactl = "node 0 size: 100 MB\nnode 1 size: 200 MB\nnode distances:\nnode 0 1\n0: 10 20\n1: 20 10\n"
    path = tmp_path / "both.txt"
    path.write_text(f"{head}\n{numactl}")
    host = Host.from_file(path)
    assert [node.cpus for node in host.nodes] == [(0, 1, 4), ()]
    assert "cpus" not in host.assumed
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/lscpu.txt").write_text(head)
    (tmp_path / "parts/numactl.txt").write_text(numactl)
    assert Host.from_file(tmp_path / "parts").nodes == host.nodes
    path.write_text(head)
    assert "says nothing of memory" in refused(path)
    path.write_text(f"{head}\n{numactl}".replace("node1", "node7"))
    assert "node 7 is not among the nodes of numactl" in refused(path)


# ----------------------------------------------------------------------------------------------------------- virsh

CAPABILITIES = """<capabilities><host><topology><cells num='2'>
<cell id='0'><memory unit='KiB'>4194304</memory><pages unit='KiB' size='4'>524288</pages>
<pages unit='KiB' size='2048'>512</pages><pages unit='KiB' size='1048576'>1</pages>
<distances><sibling id='0' value='10'/><sibling id='1' value='14'/></distances>
<cpus num='2'><cpu id='0' socket_id='0' core_id='0' siblings='0'/>
<cpu id='1' socket_id='0' core_id='1' siblings='1'/></cpus></cell>
<cell id='1'><memory unit='KiB'>8388608</memory><distances><sibling id='0' value='14'/><sibling id='1' value='10'/></distances>
<cpus num='0'></cpus></cell></cells>
<interconnects><latency initiator='0' target='0' type='read' value='80'/>
<latency initiator='0' target='1' type='access' value='250'/>
<bandwidth initiator='0' target='0' type='read' value='97656250' unit='KiB'/>
<bandwidth initiator='0' target='1' type='read' value='19531250' unit='KiB'/></interconnects>
</topology></host></capabilities>
"""


def test_virsh_capabilities(tmp_path: Path) -> None:
    path = tmp_path / "capabilities.xml"
    path.write_text(CAPABILITIES)
    host = Host.from_file(path)
    assert host.distances == ((10, 14), (14, 10))
    assert host.nodes[0].cpus == (0, 1)
    assert [(pool.page_bytes, pool.total) for pool in host.nodes[0].hugetlb] == [(2 << 20, 512), (1 << 30, 1)]
    assert [(a.read_latency, a.write_latency, a.read_bandwidth) for a in host.access] == [
        (80, None, 100_000), (250, 250, 20_000)]  # fmt: skip
    assert host.nodes[1].kind == "cxl"
    assert host.nodes[1].assumed == ("kind", "movable")
    for change, message in (
        (("id='1'><memory", "id='0'><memory"), "two cells have id=0"),
        (("4194304", "lots"), "'lots' is not a number"),
        (("unit='KiB'>4194304", "unit='furlong'>4194304"), "unit 'furlong'"),
        (("<sibling id='1' value='14'/>", ""), "cell 0 has no distance to cell 1"),
    ):
        path.write_text(CAPABILITIES.replace(*change))
        assert message in refused(path)
    path.write_text("<domain type='kvm'/>")
    assert "workbench import" in refused(path)


# ----------------------------------------------------------------------------------------------------------- dmesg

DMESG = """[    0.000000] Linux version 7.3.4
[    0.004000] ACPI: SRAT: PXM 0 -> APIC 0x00 -> Node 0
[    0.004000] SRAT: PXM 0 -> APIC 0x01 -> Node 0
[    0.004000] SRAT: PXM 1 -> APIC 0x02 -> Node 1
[    0.004000] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]
[    0.004000] ACPI: SRAT: Node 0 PXM 0 [mem 0x100000000-0x17fffffff]
[    0.004000] ACPI: SRAT: Node 1 PXM 1 [mem 0x180000000-0x27fffffff]
[    0.004000] ACPI: SRAT: Node 2 PXM 2 [mem 0x280000000-0x37fffffff] hotplug
[    0.319074] smp: Bringing up secondary CPUs ...
[    0.319813] .... node  #1, CPUs:      #1
[    0.319813] .... node  #0, CPUs:   #2
[    0.324032] acpi/hmat: HMAT: Memory Flags:0001 Processor Domain:0 Memory Domain:0
[    0.325594] acpi/hmat: HMAT: Locality: Flags:00 Type:Read Latency Initiator Domains:2 Target Domains:3 Base:1000
[    0.326632] acpi/hmat:   Initiator-Target[0-0]:80 nsec
[    0.327138] acpi/hmat:   Initiator-Target[0-2]:250 nsec
[    0.327654] acpi/hmat: HMAT: Locality: Flags:00 Type:Access Bandwidth Initiator Domains:2 Target Domains:3 Base:4
[    0.328723] acpi/hmat:   Initiator-Target[0-0]:100000 MB/s
[    0.329250] acpi/hmat:   Initiator-Target[0-2]:25000 MB/s
[    0.329775] acpi/hmat: HMAT: Cache: Domain:0 Size:16384 Attrs:00081111 SMBIOS Handles:0
"""


@pytest.mark.parametrize("prefix", ["", "> ", "Nov 26 05:38:26 host kernel: "])
def test_kernel_log(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "boot.txt"
    path.write_text("".join(prefix + line for line in DMESG.splitlines(keepends=True)))
    host = Host.from_file(path)
    assert [node.memory_bytes >> 30 for node in host.nodes] == [4, 4, 4]
    assert [node.cpus for node in host.nodes] == [(0, 2), (1,), ()]
    assert [node.kind for node in host.nodes] == ["dram", "dram", "cxl"]
    assert host.assumed == ("memory", "distances", "kind", "movable")
    assert [(a.initiator, a.target, a.read_latency, a.write_bandwidth) for a in host.access] == [
        (0, 0, 80, 100_000), (0, 2, 250, 25_000)]  # fmt: skip


def test_kernel_log_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "boot.txt"
    for change, message in (
        (("[mem 0x00000000-0x7fffffff]", "[mem 0x80000000-0x7fffffff]"), "ends before it starts"),
        (("-> Node 1", "-> Node 1024"), "ids are 0 to 1023"),
        (("[mem", "(mem"), "no line 'SRAT: Node"),
    ):
        path.write_text(DMESG.replace(*change))
        assert message in refused(path)
    path.write_text("SRAT: " + "x" * 3_000_000)
    refused(path)


# ---------------------------------------------------------------------------------------------------- sysfs kinds


def kinds_of(root: Path) -> list[str]:
    return [node.kind for node in Host.from_file(root).nodes]


@pytest.mark.parametrize(
    ("files", "kind", "assumed"),
    [
        ({}, "dram", ("kind", "movable")),
        ({"sys/bus/dax/devices/dax0.0/target_node": "1\n", "sys/bus/cxl/devices/region0/size": "0x1\n"}, "cxl", ("movable",)),
        ({"sys/devices/platform/ACPI0017:00/root0/region0/dax_region0/dax0.0/target_node": "1\n"}, "cxl", ("movable",)),
        ({"sys/devices/LNXSYSTM:00/ndbus0/region0/dax0.1/dax0.0/target_node": "1\n"}, "nvm", ("movable",)),
        ({"sys/devices/platform/hmem.0/dax0.0/target_node": "1\n"}, "cxl", ("kind", "movable")),
        ({"sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0\n",
          "sys/devices/virtual/memory_tiering/memory_tier22/nodelist": "1\n"}, "cxl", ("kind", "movable")),
        ({"sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0\n",
          "sys/devices/virtual/memory_tiering/memory_tier2/nodelist": "1\n"}, "hbm", ("movable",)),
        ({"sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0-1\n"}, "dram", ("kind", "movable")),
        ({"proc/driver/nvidia/gpus/0000:09:00.0/numa_status": "Node: 1\nStatus: online\n"}, "gpu", ("movable",)),
        ({f"sys/devices/system/node/node{n}/access1/initiators/{name}": value
          for n, speed in ((0, "100000"), (1, "400000")) for name, value in (("read_bandwidth", speed), ("node0/x", ""))},
         "hbm", ("movable",)),
        ({"sys/devices/system/node/has_memory": "0-1\n", "sys/devices/system/node/has_normal_memory": "0\n"}, "dram", ("kind",)),
    ],
)  # fmt: skip
def test_kind_is_what_linux_exposes(files: dict[str, str], kind: str, assumed: tuple[str, ...], tmp_path: Path) -> None:
    node = Host.from_file(tree(tmp_path / "m", two_nodes(**files))).nodes[1]
    assert (node.kind, node.assumed) == (kind, assumed)


def test_without_a_slit(tmp_path: Path) -> None:
    files = {path: text for path, text in two_nodes().items() if not path.endswith("distance")}
    host = Host.from_file(tree(tmp_path / "m", files))
    assert host.distances == ((10, 20), (20, 10))
    assert "distances" in host.assumed


# --------------------------------------------------------------------------------------------------- free memory

ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 489928
  pages free     3840
        boost    0
        min      27
        low      33
        high     39
        spanned  4095
        present  3999
        managed  3840
        cma      0
        protection: (0, 1, 2, 3, 4)
      nr_free_pages 3840
      nr_free_cma  0
  pagesets
    cpu: 0
              count:    0
              high:     0
              batch:    1
Node 0, zone   Normal
  pages free     500000
        min      1000
        low      2000
        high     3000
        managed  1044736
      nr_free_cma  1024
Node 0, zone  Movable
  pages free     0
        min      0
        low      0
        high     0
        managed  0
Node 1, zone  Movable
  pages free     1048576
        min      32
        low      64
        high     96
        managed  1048576
"""
BUDDYINFO = "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3\n" + (
    "Node 0, zone   Normal    633   2147   1462    794    462    124      8      3      2      4     23 \n"
)
PAGETYPEINFO = """Page block order: 9
Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10
Node    0, zone   Normal, type    Unmovable    632 >100000   1462    792    458    123      8      2      2      0      0
Node    0, zone   Normal, type      Movable      0      1      0      1      0      1      0      0      0      4     23
Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate
Node 0, zone      DMA            1            7            0            0            0
"""


def busy_host() -> dict[str, str]:
    pools = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB"
    return two_nodes(**{
        "proc/zoneinfo": ZONEINFO, "proc/buddyinfo": BUDDYINFO, "proc/pagetypeinfo": PAGETYPEINFO,
        f"{pools}/nr_hugepages": "2\n", f"{pools}/free_hugepages": "1\n", f"{pools}/surplus_hugepages": "0\n",
    })  # fmt: skip


def test_the_host_as_it_is_now(tmp_path: Path) -> None:
    host = Host.from_file(tree(tmp_path / "m", busy_host()))
    dma, normal = host.nodes[0].zones or ()
    assert (dma.name, dma.managed, dma.free, dma.min, dma.high) == ("DMA", 3840, 3840, 27, 39)
    assert dma.free_blocks == (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3)
    assert (normal.free, normal.free_cma) == (500_000, 1024)
    assert normal.free_by_type is not None
    assert normal.free_by_type["Unmovable"][1] == 100_000
    assert normal.free_by_type["Movable"][-1] == 23
    assert [(p.page_bytes, p.total, p.free) for p in host.nodes[0].hugetlb] == [(1 << 30, 2, 1)]
    assert [node.movable for node in host.nodes] == [False, True]
    assert host.nodes[1].assumed == ("kind",)
    assert Host.from_mapping(json.loads(host.model_dump_json())) == host


@pytest.mark.parametrize("pages", [4, 16])
def test_larger_base_pages_are_counted_in_4_kib(pages: int, tmp_path: Path) -> None:
    files = busy_host()
    for node in range(2):
        meminfo = f"Node {node} MemTotal: {4194304 * pages} kB\nNode {node} MemFree: 2097152 kB\n"
        files[f"sys/devices/system/node/node{node}/meminfo"] = meminfo
    host = Host.from_file(tree(tmp_path / "m", files))
    assert [zone.managed for zone in host.nodes[0].zones or ()] == [3840 * pages, 1044736 * pages]
    assert all(zone.free_blocks is None for zone in host.nodes[0].zones or ())


def test_zones_that_do_not_add_up_are_left_out(tmp_path: Path) -> None:
    files = busy_host() | {"proc/zoneinfo": ZONEINFO.replace("1044736", "2044736")}
    assert Host.from_file(tree(tmp_path / "m", files)).nodes[0].zones is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Node 0, zone   Normal", "Node 0, zone      DMA"), "zoneinfo: line 21: zone 'DMA' of node 0 is there twice"),
        (("free     500000", "free     many"), "zoneinfo: line 22"),
        (("managed  1044736", f"managed  {'9' * 5000}"), "is not a count"),
    ],
)
def test_bad_zoneinfo_is_one_line(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert message in refused(tree(tmp_path / "m", busy_host() | {"proc/zoneinfo": ZONEINFO.replace(*change)}))


# ------------------------------------------------------------------------------------------- snapshots and archives


def archive(path: Path, files: dict[str, str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            out.addfile(member, io.BytesIO(content.encode()))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./", "bonobo/", "sosreport/x/"])
def test_archives(mode: str, prefix: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "bonobo.tar", {prefix + name: text for name, text in busy_host().items()}, mode)
    host = Host.from_file(path)
    plain = Host.from_file(tree(tmp_path / "bonobo", busy_host()))
    assert host == plain
    assert host.name == "bonobo"


def test_directory_parent_and_node_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "bonobo", busy_host())
    hosts = [Host.from_file(path) for path in (root, root / "sys")]
    assert hosts[0] == hosts[1]
    assert hosts[0].name == "bonobo"
    (tmp_path / "up").mkdir()
    root.rename(tmp_path / "up/bonobo")
    assert Host.from_file(tmp_path / "up") == hosts[0]
    alone = Host.from_file(tmp_path / "up/bonobo/sys/devices/system/node")
    assert alone.distances == hosts[0].distances
    tree(tmp_path / "up/second", two_nodes())
    assert "more than one machine: 'bonobo' and 'second'" in refused(tmp_path / "up")


@pytest.mark.parametrize("as_archive", [True, False])
def test_a_kernel_so_old_that_it_lists_no_cpus(as_archive: bool, tmp_path: Path) -> None:
    files = {f"alpha/sys/devices/system/cpu/cpu{cpu}/topology/core_id": "0\n" for cpu in range(3)}
    files["alpha/proc/meminfo"] = "MemTotal:        1030056 kB\nMemFree:          897464 kB\n"
    path = archive(tmp_path / "alpha.tar.gz", files) if as_archive else tree(tmp_path, files) / "alpha"
    host = Host.from_file(path)
    assert [(node.cpus, node.memory_bytes >> 20) for node in host.nodes] == [((0, 1, 2), 1005)]


def test_hwloc_before_1(tmp_path: Path) -> None:
    path = tmp_path / "old.xml"
    path.write_text(
        '<topology><object type="Machine" os_index="0" cpuset="0x3">'
        '<object type="Node" os_index="0" memory_kB="4096" cpuset="0x1"/>'
        '<object type="Node" os_index="1" memory_kB="8192" cpuset="0x2"/></object></topology>'
    )
    host = Host.from_file(path)
    assert [(node.memory_bytes >> 20, node.cpus) for node in host.nodes] == [(4, (0,)), (8, (1,))]


def test_numactl_in_an_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "sos.tar.gz", {"sos/sos_commands/numa/numactl_--hardware": PLAIN, "sos/etc/fstab": "x"})
    assert Host.from_file(path).nodes == POWER9.nodes
    assert "holds neither" in refused(archive(tmp_path / "other.tar.gz", {"readme": "x"}))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def device(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("sys/devices/system/node/node0/meminfo")
    member.type = kind
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (link("m/sys/devices/system/node/node0", "/etc"), "leads out of the archive"),
        (link("m/sys/devices/system/node/node0", "../../../../../../etc"), "leads out of the archive"),
        (link("m/x", "/etc/passwd", tarfile.LNKTYPE), "leads out of the archive"),
        (tarfile.TarInfo("/etc/passwd"), "leads out of the archive"),
        (tarfile.TarInfo("m/../../etc/passwd"), "leads out of the archive"),
        (device(tarfile.CHRTYPE), "is a device or FIFO"),
        (device(tarfile.FIFOTYPE), "is a device or FIFO"),
        (link("sys/devices/system/node/node0", "node0"), "holds neither"),
    ],
)
def test_hostile_members(member: tarfile.TarInfo, message: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as out:
        out.addfile(member)
    assert message in refused(path)


def test_links_within_an_archive_are_followed(tmp_path: Path) -> None:
    files = two_nodes(**{"sys/devices/platform/ACPI0017:00/region0/dax_region0/dax0.0/target_node": "1\n"})
    path = tmp_path / "linked.tar"
    archive(path, files, "w")
    with tarfile.open(path, "a") as out:
        out.addfile(
            link("sys/bus/dax/devices/dax0.0", "../../../devices/platform/ACPI0017:00/region0/dax_region0/dax0.0")
        )
    assert Host.from_file(path).nodes[1].kind == "cxl"


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_bombs(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("sys/devices/system/node/node0/meminfo")
    member.size = 2 << 20
    with tarfile.open(path, mode) as out:
        out.addfile(member, io.BytesIO(b"\0" * member.size))
    assert "has 2,048 KiB; at most 1,024 are read" in refused(path)


def test_an_unpacked_size_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("other")
    member.size = 300 << 20
    with tarfile.open(path, "w:gz", compresslevel=1) as out:
        out.addfile(member, open("/dev/zero", "rb"))  # noqa: SIM115  # copies member.size bytes
    assert "unpacks to more than 256 MiB" in refused(path)


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    """A pax header is read into memory by its own size."""
    path = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 7 << 30
    head = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(head + b"\0" * 10240)
    refused(path)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(260):
            file.write(bytes(1 << 20))
    assert "unpacks to more than 256 MiB" in refused(tmp_path / "bomb.tar.gz")


def test_damaged_archives(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.tar.gz", busy_host()).read_bytes()
    path = tmp_path / "cut.tar.gz"
    for size in (2, 20, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 0xFF]) + whole[101:])
    refused(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), Path("/dev/null")):
        assert "is not a regular file" in refused(path)
    root = tree(tmp_path / "m", two_nodes())
    meminfo = root / "sys/devices/system/node/node0/meminfo"
    for target in (fifo, Path("/dev/zero")):
        meminfo.unlink()
        meminfo.symlink_to(target)
        assert "is not a regular file" in refused(root)


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 262,144 KiB" in refused(path)


# ---------------------------------------------------------------------------------------------- workbench snapshot


@pytest.fixture(scope="module")
def app() -> Any:
    import typer

    made = typer.Typer()
    made.callback()(lambda: None)
    commands_machines.register(made)
    return made


def without_counts(host: Host) -> Any:
    """What of a host does not change from one moment to the next."""
    nodes = [(node.id, node.cpus, node.kind, [zone.name for zone in node.zones or ()],
              [pool.page_bytes for pool in node.hugetlb], node.assumed) for node in host.nodes]  # fmt: skip
    return nodes, host.distances, host.assumed


def test_snapshot_command(app: Any, tmp_path: Path) -> None:
    if not Path("/sys/devices/system/node/node0").is_dir():
        pytest.skip("no NUMA information in /sys")
    out = tmp_path / "host.tar.gz"
    assert CliRunner().invoke(app, ["snapshot", "-o", str(out)]).exit_code == 0
    assert without_counts(Host.from_file(out)) == without_counts(Host.from_sysfs())
    assert CliRunner().invoke(app, ["machines", "show", str(out)]).exit_code == 0
    with tarfile.open(out) as opened:
        names = opened.getnames()
    assert not [
        name for name in names if any(part in name for part in ("hostname", "cmdline", "version", "dmi", "net"))
    ]


def test_snapshot_of_a_tree_says_the_same(tmp_path: Path) -> None:
    root = tree(tmp_path / "m", busy_host() | {"sys/devices/platform/hmem.0/dax0.0/target_node": "1\n"})
    (root / "sys/bus/dax/devices").mkdir(parents=True)
    (root / "sys/bus/dax/devices/dax0.0").symlink_to("../../../devices/platform/hmem.0/dax0.0")
    paths = snapshot.collect(tmp_path / "m.tar.gz", root)
    assert "sys/devices/platform/hmem.0/dax0.0/target_node" in paths
    assert all(snapshot.wanted(path) for path in paths)
    assert Host.from_file(tmp_path / "m.tar.gz") == Host.from_file(root)
    first = (tmp_path / "m.tar.gz").read_bytes()
    snapshot.collect(tmp_path / "m.tar.gz", root)
    assert (tmp_path / "m.tar.gz").read_bytes() == first


def test_snapshot_refuses(app: Any, tmp_path: Path) -> None:
    for out in (tmp_path / "host.zip", tmp_path / "no\0thing.tar.gz"):
        with pytest.raises((WorkbenchError, ValueError)):
            snapshot.collect(out)
    with pytest.raises(WorkbenchError, match="has neither"):
        snapshot.collect(tmp_path / "x.tar.gz", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_script_of_the_readme_collects_the_same(tmp_path: Path) -> None:
    if not Path("/sys/devices/system/node/node0").is_dir():
        pytest.skip("no NUMA information in /sys")
    text = (ROOT / "README.md").read_text()
    script = text[text.index("#!/bin/sh") : text.index("```", text.index("#!/bin/sh"))]
    subprocess.run(["sh"], input=script, text=True, cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["host.tar.gz"]
    assert without_counts(Host.from_file(tmp_path / "host.tar.gz")) == without_counts(Host.from_sysfs())
    listed = {part for part in script.split() if "/" in part}
    node = "sys/devices/system/node"
    for pattern in snapshot.COLLECTED:
        short = pattern.replace(node, "$node").replace("memory_tier*", "*")
        assert short in listed, pattern


# ----------------------------------------------------------------------------------------------------- bitmap lists


@given(st.sets(st.integers(0, 4000), max_size=60))
def test_masks_read_back(cpus: set[int]) -> None:
    bits = f"{sum(1 << cpu for cpu in cpus):x}"
    padded = bits.rjust(-(-len(bits) // 8) * 8, "0")
    words = [padded[i : i + 8] for i in range(0, len(padded), 8)]
    assert parse_mask(",".join(words)) == tuple(sorted(cpus))
    assert parse_mask(",".join(f"0x{word}" for word in words)) == tuple(sorted(cpus))


@pytest.mark.parametrize("text", ["0-" * 100_000, "0-65535," * 50_000, "9" * 1_000_000, "\u0663", "1-0", "65536", "-1"])
def test_lists_are_bounded(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"range|number|ids"):
        parse_list(text)
    assert time.process_time() - begun < 1


def test_masks_are_bounded() -> None:
    for text in ("f" * 1_000_000, "0x1," * 100_000, "x", "1" + "0" * 20_000):
        with pytest.raises(ValueError, match="bit"):
            parse_mask(text)


@pytest.mark.parametrize("quote", ["", "> ", "  # "])
def test_xml_within_a_mail_or_a_terminal_is_read(quote: str, tmp_path: Path) -> None:
    xml = (
        "<capabilities><host><topology><cells num='1'><cell id='0'>\n<memory unit='KiB'>8388608</memory>\n"
        "<cpus num='1'><cpu id='0'/></cpus></cell></cells>\n</topology></host>\n</capabilities>"
    )
    text = f"root@box:~# virsh capabilities\n{xml}\nroot@box:~# exit"
    path = tmp_path / "mail.txt"
    path.write_text("".join(f"{quote}{line}\n" for line in text.splitlines()))
    host = Host.from_file(path)
    assert [(node.memory_bytes, node.cpus) for node in host.nodes] == [(8 << 30, (0,))]


def test_what_the_host_has_set_now_is_read(tmp_path: Path) -> None:
    """Transparent huge pages, interleave weights, promised huge pages; pools of a kernel without NUMA too."""
    kernel = tmp_path / "sys/kernel/mm"
    for path, text in {
        "transparent_hugepage/enabled": "always [madvise] never\n",
        "mempolicy/weighted_interleave/node0": "5\n",
        "hugepages/hugepages-2048kB/resv_hugepages": "3\n",
        "hugepages/hugepages-2048kB/nr_hugepages": "8\n",
        "hugepages/hugepages-2048kB/free_hugepages": "7\n",
    }.items():
        (kernel / path).parent.mkdir(parents=True, exist_ok=True)
        (kernel / path).write_text(text)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8388608 kB\n")
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-3\n")
    flat = Host.from_file(tmp_path)
    assert (flat.transparent_hugepages, flat.hugetlb_promised) == ("madvise", {2 << 20: 3})
    assert [(pool.total, pool.free) for pool in flat.nodes[0].hugetlb] == [(8, 7)]
    node = tmp_path / "sys/devices/system/node/node0"
    node.mkdir(parents=True)
    (node / "meminfo").write_text("Node 0 MemTotal:  8388608 kB\n")
    (node / "cpulist").write_text("0-3\n")
    assert [of.weight for of in Host.from_file(tmp_path).nodes] == [5]
    (kernel / "hugepages/hugepages-2048kB/resv_hugepages").write_text("many\n")
    with pytest.raises(WorkbenchError, match="hugepages-2048kB/resv_hugepages: 'many' is not a count"):
        Host.from_file(tmp_path)


def test_a_host_that_cannot_be_is_refused_with_the_name_of_its_file(tmp_path: Path) -> None:
    node = tmp_path / "box/sys/devices/system/node/node0"
    node.mkdir(parents=True)
    (node / "meminfo").write_text("Node 0 MemTotal:  8388608 kB\n")
    (node / "distance").write_text("11\n")
    with pytest.raises(
        WorkbenchError, match=r"box: host: distances\[0\]\[0\]: 11; the distance of a node to itself is 10"
    ):
        Host.from_file(tmp_path / "box")

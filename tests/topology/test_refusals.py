"""What is refused of a host or a VM's configuration is one line: the file, the line in it, what is there, what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.topology.host import Host
from workbench.vmconfig.placement import scenario_of
from workbench.vmconfig.readers import read

NUMACTL = (
    "available: 2 nodes (0-1)\nnode 0 cpus: 0 1\nnode 0 size: 10 MB\nnode 0 free: 5 MB\nnode 1 cpus: 2 3\nnode 1 size: 10 MB\n"
    "node 1 free: 5 MB\nnode distances:\nnode   0   1\n  0:  10  20\n  1:  20  10\n"
)
YAML = "name: h\nnodes:\n- id: 0\n  memory_bytes: 1 GiB\n- id: 1\n  memory_bytes: 1 GiB\ndistances:\n- [10, 20]\n- [20, 10]\n"
HWLOC = (
    '<topology version="2.0">\n<object type="Machine">\n'
    '<object type="NUMANode" os_index="0" cpuset="0x1" local_memory="4096"/>\n</object>\n</topology>'
)
CELLS = (
    "<capabilities>\n<host>\n<topology>\n<cells num='1'>\n<cell id='0'>\n<memory unit='KiB'>4096</memory>\n</cell>\n"
    "</cells>\n</topology>\n</host>\n</capabilities>"
)
SRAT = "ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]\nACPI: SRAT: Node 1 PXM 1 [mem 0x80000000-0xffffffff]\n"
LSCPU = (
    '{"lscpu": [\n{"field": "NUMA node0 CPU(s):", "data": "0-1"},\n{"field": "NUMA node1 CPU(s):", "data": "2-3"}\n]}\n'
)
HOSTS = {
    "distance": ("a.txt", NUMACTL.replace("20  10", "20   9"), 11, "distances are 10 to 255"),
    "size": ("a.txt", NUMACTL.replace("size: 10 MB\nnode 1", "size: x MB\nnode 1"), 6, ""),
    "truncated": ("a.txt", NUMACTL.partition("node distances")[0], 7, "no 'node distances:'"),
    "available": ("a.txt", NUMACTL.replace("2 nodes", "3 nodes"), 1, "lists 2 nodes"),
    "after lscpu": ("a.txt", LSCPU + NUMACTL.replace("node 1 size: 10", "node 1 size: x"), 10, "is not a size in MB"),
    "lscpu": ("a.txt", LSCPU.replace("2-3", "2-y") + NUMACTL, 3, "neither a number nor a range"),
    "field": ("a.yaml", YAML.replace("id: 1\n  memory_bytes: 1 GiB", "id: 1\n  memory_bytes: 3"), 6, "multiple of the page size"),
    "matrix": ("a.yaml", YAML.replace("- [20, 10]", "- [20, 11]"), 9, "to itself is 10"),
    "missing field": ("a.yaml", YAML.replace("distances", "distance"), 1, "distances: Field required"),
    "JSON": ("a.json", '{"name": "x",\n"nodes": [{"id": 0, "memory_bytes": 8}],\n"distances": [[10]]}', 2, "multiple"),
    "capabilities": ("a.xml", CELLS.replace("KiB", "XiB"), 5, "is none of b, bytes"),
    "hwloc": ("a.xml", HWLOC.replace('os_index="0"', 'os_index="none"'), 3, "is not a number"),
    "hwloc in a mail": ("a.txt", "Hello,\n\n$ lstopo\n" + HWLOC.replace('"0"', '"x"') + "\nBye\n", 6, "a number"),
    "not XML": ("a.xml", HWLOC.replace("</object>", "</objects>"), 4, "XML that can be read"),
    "entity": ("a.xml", '<!DOCTYPE t [\n<!ENTITY a "a">\n]>\n<topology>&a;</topology>', 2, "XML that can be read"),
    "SRAT": ("a.log", SRAT.replace("Node 1", "Node 2000"), 2, "ids are 0 to 1023"),
    "ranges": ("a.log", SRAT.replace("0x7ff", "0x8ff"), 2, "is memory of node 0 and of node 1"),
}  # fmt: skip
QEMU = "#!/bin/sh\nexec taskset -c 1 \\\nqemu-system-x86_64 -m 1G \\\n -smp 2 \\\n"
BACKEND = " -object memory-backend-ram,id=a,size=1G,policy=bind,host-nodes={} \\\n -numa node,memdev={}\n"
DOMAIN = (
    "<domain type='kvm'>\n<name>x</name>\n<memory unit='GiB'>2</memory>\n<vcpu>2</vcpu>\n<cputune>\n"
    "<vcpupin vcpu='0' cpuset='1'/>\n</cputune>\n<numatune>\n<memory mode='strict' nodeset='0'/>\n</numatune>\n</domain>"
)
KUBEVIRT = (
    "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  domain:\n    cpu:\n      cores: 2\n    memory:\n"
    "      guest: 1Gi\n"
)
MACHINES = {
    "-smp": ("a.sh", QEMU.replace("-smp 2", "-smp 0"), 4, "1 to 4096 are expected"),
    "host-nodes": ("a.sh", QEMU + BACKEND.format(7, "a"), 5, "which has nodes [0, 1]"),
    "memdev": ("a.sh", QEMU + BACKEND.format(1, "b"), 6, "names no memory backend"),
    "taskset": ("a.sh", QEMU.replace("-c 1", "-c 99"), 2, "at least one is expected"),
    "quote": ("a.sh", QEMU + " -name 'x\n", 5, "is not closed"),
    "configuration file": ("a.cfg", '[memory]\n  size = "1G"\n[smp-opts]\n  cpus = "none"\n', 3, "is not a number"),
    "vcpupin": ("a.xml", DOMAIN.replace("cpuset='1'", "cpuset='55'"), 6, "which has 0-7"),
    "unit": ("a.xml", DOMAIN.replace("GiB", "parsec"), 3, "is none of b, bytes"),
    "mode": ("a.xml", DOMAIN.replace("strict", "odd"), 9, "libvirt has strict"),
    "nodeset": ("a.xml", DOMAIN.replace("nodeset='0'", "nodeset='4'"), 9, "which has nodes [0, 1]"),
    "domain in a mail": ("a.txt", f"Hello,\n{DOMAIN.replace('GiB', 'parsec')}\nBye\n", 4, "is none of b, bytes"),
    "Firecracker": (
        "a.json",
        '{\n"machine-config": {\n "vcpu_count": 2,\n "mem_size_mib": "x"\n}}',
        4,
        "is not a number",
    ),
    "cores": ("a.yaml", KUBEVIRT.replace("cores: 2", "cores: many"), 6, "is not a number"),
    "guest": ("a.yaml", KUBEVIRT.replace("1Gi", "1Zi"), 8, "is not a quantity such as 4Gi"),
    "kind": ("a.yaml", KUBEVIRT.replace("VirtualMachineInstance", "Service"), 2, "is expected"),
    "key twice": ("a.yaml", KUBEVIRT + "kind: Pod\n", 9, "is there twice"),
    "kata": ("a.toml", "[hypervisor.qemu]\npath = 'x'\ndefault_vcpus = -1\n", 3, "give their number"),
    "TOML": ("a.toml", "[hypervisor.qemu]\ndefault_memory = \n", 2, "not valid TOML"),
}


def refused(file: str, text: str, path: Path, host: Host | None) -> str:
    (path / file).write_text(text)
    with pytest.raises(WorkbenchError) as caught:
        Host.from_file(path / file) if host is None else scenario_of(read(path / file, [0, 1]), host)
    return str(caught.value)


@pytest.mark.parametrize("name", [*HOSTS, *MACHINES])
def test_names_file_line_and_what_is_expected(name: str, tmp_path: Path) -> None:
    host = Host.from_mapping(
        {
            "name": "h",
            "nodes": [{"id": node, "memory_bytes": "8 GiB", "cpus": f"{4 * node}-{4 * node + 3}"} for node in (0, 1)],
            "distances": [[10, 20], [20, 10]],
        }
    )
    file, text, line, expected = {**HOSTS, **MACHINES}[name]
    said = refused(file, text, tmp_path, None if name in HOSTS else host)
    assert said.startswith(f"{file}: ") and "\n" not in said and said.isprintable()
    assert str(line) in re.findall(r"\blines? ([0-9]+)", said), said
    assert said.count(file) == 1 and expected in said


@pytest.mark.parametrize("end", [" user@host:~$", " [root@host ~]# ls", "user@host:~$ exit", " $"])
def test_a_prompt_after_the_last_distance_is_no_distance(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(NUMACTL.rstrip() + end)
    assert Host.from_file(tmp_path / "a.txt").distances == ((10, 20), (20, 10))
    assert "is no row of 2 distances" in refused("a.txt", NUMACTL.rstrip() + " oops", tmp_path, None)
    assert "no row" in refused("a.txt", NUMACTL.replace("10  20\n", f"10  20{end}\n"), tmp_path, None)


def test_cpus_that_two_nodes_list_are_assumed_to_be_of_the_lower(tmp_path: Path) -> None:
    """numa=fake (arch/x86/mm/numa_emulation.c) gives its CPUs to every node made of one; numa_node_id() names the lowest."""
    (tmp_path / "a.txt").write_text(NUMACTL.replace("node 1 cpus: 2 3", "node 1 cpus: 1 2 3"))
    host = Host.from_file(tmp_path / "a.txt")
    assert [node.cpus for node in host.nodes] == [(0, 1), (2, 3)]
    assert [node.assumed for node in host.nodes] == [(), ("cpus",)] and host.assumed == ("cpus",)
    (line,) = host.assumptions()
    assert line.startswith("cpus of node 1: a lower node lists some of them, too")
    assert Host.from_mapping(host.model_dump(mode="json")) == host

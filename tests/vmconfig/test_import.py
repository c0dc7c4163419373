"""Configurations of virtual machines: what is read of them, the scenario they become, and which setting reaches what."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import workbench as wb
from workbench.amounts import bytes_per_node
from workbench.commands import importing
from workbench.errors import WorkbenchError
from workbench.topology.host import Host
from workbench.vmconfig import words
from workbench.vmconfig.machine import VirtualMachine
from workbench.vmconfig.placement import bounce_bytes, scenario_of
from workbench.vmconfig.reach import Reach, reach
from workbench.vmconfig.readers import read, read_text

CASES = Path(__file__).parent / "cases"
GIB = 1 << 30
TWO = Host.from_mapping(
    {
        "name": "two",
        "nodes": [
            {"id": 0, "memory_bytes": "64 GiB", "cpus": "0-7"},
            {"id": 1, "memory_bytes": "64 GiB", "cpus": "8-15"},
        ],
        "distances": [[10, 20], [20, 10]],
    }
)


def machine(text: str) -> VirtualMachine:
    return read_text(text, "command line", [0, 1])


def answer(vm: VirtualMachine) -> tuple[dict[str, list[int]], list[Reach]]:
    """Bytes by file on both nodes, and the reach of each setting."""
    result = wb.simulate(scenario_of(vm, TWO))
    assert not result.event_errno.values.any()
    amounts = dict(zip(map(str, result.file.values), bytes_per_node(result).tolist(), strict=True))
    return amounts, reach(vm, result)


def refused(text: str) -> str:
    begun = time.process_time()
    with pytest.raises(WorkbenchError) as caught:
        scenario_of(machine(text), TWO)
    assert time.process_time() - begun < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ QEMU

SNP = "-machine q35,confidential-guest-support=sev0 -object sev-snp-guest,id=sev0 "
BOUND = "-object memory-backend-memfd,id=ram,size=4G,share=on,host-nodes=1,policy=bind -numa node,memdev=ram "


def test_bind_of_a_backend_does_not_reach_private_memory() -> None:
    """What people expect is node 1; with QEMU 11 private memory lies where the vCPUs run."""
    amounts, lines = answer(machine(f"taskset -c 0-7 qemu-system-x86_64 -smp 4 -m 4G {SNP}{BOUND}"))
    assert amounts["ram"] == [0, bounce_bytes(4 * GIB)]
    assert amounts["ram-private"] == [4 * GIB - bounce_bytes(4 * GIB), 0]
    (line,) = lines
    assert line.warning
    assert line.pages == "shared"
    assert line.line().startswith(
        "ram: policy=bind, host-nodes=1: reaches the shared backend only; "
        "private memory (94 % of the guest) follows the vCPU threads: 100 % on node 0; to bind private memory: pin"
    )


def test_the_same_without_private_memory_is_bound() -> None:
    amounts, lines = answer(machine(f"taskset -c 0-7 qemu-system-x86_64 -smp 4 -m 4G {BOUND}"))
    assert amounts == {"ram": [0, 4 * GIB]}
    assert [(line.pages, line.warning) for line in lines] == [("all", False)]


@pytest.mark.parametrize(
    ("around", "private"),
    [
        ("numactl --membind=1", (0, 1)),
        ("numactl -m1 -N0", (0, 1)),
        ("numactl --interleave=all", (0.5, 0.5)),
        ("numactl -i !0", (0, 1)),
        ("numactl --preferred=1", (0, 1)),
        ("numactl --preferred-many=+1", (0, 1)),
        ("numactl --cpunodebind=1", (0, 1)),
        ("numactl -C 0-3", (1, 0)),
        ("numactl --localalloc --physcpubind=8-9", (0, 1)),
        ("taskset ff00", (0, 1)),
        ("sudo -u vm env A=b nice -n 5 taskset -c 8", (0, 1)),
        ("", (0.5, 0.5)),
    ],
)
def test_what_stands_around_qemu_reaches_private_memory(around: str, private: tuple[float, float]) -> None:
    vm = machine(f"{around} qemu-system-x86_64 -smp 4 -m 4G {SNP}")
    assert vm.unknown == []
    amounts, _ = answer(vm)
    total = sum(amounts["ram-private"])
    assert [amount / total for amount in amounts["ram-private"]] == pytest.approx(private, abs=1e-4)


def test_backends_of_virtual_nodes() -> None:
    vm = read(CASES / "snp-two-backends.sh", [0, 1])
    assert [(b.name, b.size, b.policy and b.policy.nodes, b.preallocated, b.vcpus) for b in vm.backends] == [
        ("ram0", 4 * GIB, (0,), False, (0, 1, 2, 3)), ("ram1", 4 * GIB, (1,), True, (4, 5, 6, 7))]  # fmt: skip
    assert (vm.confidential, vm.vcpus, vm.cpu_nodes) == ("snp", 8, (0, 1))
    assert vm.unknown == ["-strange-option 7"]
    amounts, lines = answer(vm)
    assert amounts["ram1"] == [0, 4 * GIB], "prealloc fills the whole shared backend"
    assert sum(amounts["ram1-private"]) == 4 * GIB
    assert [(line.setting, line.warning) for line in lines] == [
        ("ram0: policy=bind, host-nodes=0", True),
        ("ram1: policy=bind, host-nodes=1", True),
        ("ram1: prealloc", True),
    ]


def test_bind_reaches_a_guest_memfd_that_is_mapped() -> None:
    amounts, _ = answer(machine(f"qemu-system-x86_64 -m 4G {BOUND.replace('memfd', 'guest-memfd')}"))
    assert amounts == {"ram": [0, 4 * GIB]}


def test_qemu_asks_for_preferred_many() -> None:
    vm = machine(
        "qemu-system-x86_64 -m 1G -object memory-backend-ram,id=m,size=1G,policy=preferred,host-nodes=0-1 -numa node,memdev=m"
    )
    assert vm.backends[0].policy is not None
    assert vm.backends[0].policy.mode == "preferred_many"


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (
            '-object \'{"qom-type":"memory-backend-ram","id":"m","size":1073741824,"host-nodes":[0,1],"policy":"bind"}\'',
            None,
        ),
        (
            '-object {"qom-type":"memory-backend-ram","id":"m","size":1073741824,"host-nodes":[0,1],"policy":"bind"}',
            None,
        ),
        ("-object memory-backend-ram,id=m,size=1G,host-nodes=0,host-nodes=1,policy=bind", None),
        ("-object memory-backend-ram,id=m,size=0x40000000,host-nodes=0-1,policy=bind", None),
        ("-object \\\n 'memory-backend-ram,id=m',size=1024M,\"host-nodes=0-1\",policy=bind", None),
        ("--object memory-backend-ram,id=m,size=1.0G,host-nodes=0-1,policy=bind", None),
    ],
)
def test_ways_to_write_a_backend(written: str, plain: None) -> None:
    vm = machine(f"/usr/bin/qemu-kvm -name guest=a,,b,debug-threads=on {written} -machine memory-backend=m")
    (backend,) = vm.backends
    assert (backend.name, backend.size) == ("m", GIB)
    assert backend.policy is not None
    assert backend.policy.nodes == (0, 1)
    assert (vm.name, vm.unknown) == ("a,b", [])


def test_cmdline_of_a_running_process(tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_text("\0".join(["qemu-system-x86_64", "-m", "2048", "-smp", "2", "-name", "with space"]) + "\0")
    vm = read(path, [0])
    assert (vm.memory, vm.vcpus, vm.name) == (2 * GIB, 2, "with space")


@pytest.mark.parametrize(
    ("option", "count"),
    [("4", 4), ("cpus=4,maxcpus=8", 4), ("sockets=2,cores=4,threads=2", 16), ("maxcpus=6", 6), ("2,sockets=1", 2)],
)
def test_smp(option: str, count: int) -> None:
    assert machine(f"qemu-system-x86_64 -smp {option}").vcpus == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cloud-hypervisor --memory size=4G qemu", "no qemu-system-"),
        ("nothing", "a QEMU command line or configuration file, a libvirt domain"),
        ("qemu-system-x86_64 -m lots", "-m: 'lots' is not a size"),
        ("qemu-system-x86_64 -m 99999999999T", "more than an exbibyte"),
        ("qemu-system-x86_64 -m 2000T", "guest.memory"),
        ("qemu-system-x86_64 -smp 0", "1 to 4096 are expected"),
        ("qemu-system-x86_64 -smp 4097", "1 to 4096 are expected"),
        ("qemu-system-x86_64 -smp x", "-smp cpus: 'x' is not a number"),
        ("qemu-system-x86_64 -m", "-m needs a value"),
        ("qemu-system-x86_64 -name 'open", "quote ' is not closed"),
        ("qemu-system-x86_64 -object memory-backend-ram,size=1G", "has no id"),
        ("qemu-system-x86_64 -object memory-backend-ram,id=m -machine memory-backend=m", "m: size=0"),
        ("qemu-system-x86_64 -machine memory-backend=m", "names no memory backend"),
        ("qemu-system-x86_64 -machine confidential-guest-support=s", "names no object"),
        (f"qemu-system-x86_64 {BOUND}{BOUND}", "two objects have id=ram"),
        (f"qemu-system-x86_64 {BOUND}-machine memory-backend=ram", "memory backend ram is used twice"),
        (f"qemu-system-x86_64 {BOUND.replace('nodes=1', 'nodes=2')}", "node 2 is not on this host"),
        (f"qemu-system-x86_64 {BOUND.replace('=bind', '=weighted')}", "policy=weighted; QEMU has"),
        (f"qemu-system-x86_64 {BOUND.replace('nodes=1', 'nodes=x')}", "neither a number nor a range"),
        ("qemu-system-x86_64 -object {\"qom-type\":", "is not JSON"),
        ("numactl -m 5 qemu-system-x86_64", "node 5 is not on this host"),
        ("numactl -m 0 -i 1 qemu-system-x86_64", "numactl takes one policy"),
        ("numactl -p 0,1 qemu-system-x86_64", "one node is expected"),
        ("numactl -C 99 qemu-system-x86_64", "no CPU of this host is left"),
        ("taskset zz qemu-system-x86_64", "is not a bitmap"),
        ("qemu-system-x86_64 " + "x " * 30_000, "one command line is expected"),
        ("qemu-system-x86_64 -name " + "'a'" * 200_000, ""),
    ],
)  # fmt: skip
def test_bad_command_lines_are_one_line(text: str, message: str) -> None:
    if message:
        assert message in refused(text)
    else:
        machine(text)


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=12), max_size=6))
def test_words_are_those_of_a_shell(parts: list[str]) -> None:
    import shlex

    assert words.split(shlex.join(parts)) == parts


# --------------------------------------------------------------------------------------------------------- libvirt


def domain(inner: str, memory: str = "<memory unit='GiB'>4</memory>", vcpu: str = "<vcpu>4</vcpu>") -> str:
    return f"<domain type='kvm'><name>d</name>{memory}{vcpu}{inner}</domain>"


SEV = "<launchSecurity type='sev-snp'/>"


@pytest.mark.parametrize(
    ("tune", "private", "warned"),
    [
        ("<numatune><memory mode='strict' nodeset='1'/></numatune>", (0, 1), True),
        ("<numatune><memory mode='restrictive' nodeset='1'/></numatune>", (0, 1), False),
        ("<numatune><memory mode='interleave' nodeset='1'/></numatune>", (0.5, 0.5), True),
        ("<numatune><memory mode='preferred' nodeset='1'/></numatune>", (0.5, 0.5), True),
        ("<numatune><memnode cellid='0' mode='strict' nodeset='1'/></numatune>"
         "<cpu><numa><cell id='0' cpus='0-3' memory='4' unit='GiB'/></numa></cpu>", (0.5, 0.5), True),
        ("<cputune><vcpupin vcpu='0' cpuset='8-15'/><vcpupin vcpu='1' cpuset='8-15'/><vcpupin vcpu='2' cpuset='8-15,^9'/>"
         "<vcpupin vcpu='3' cpuset='9'/></cputune>", (0, 1), False),
    ],
)  # fmt: skip
def test_numatune(tune: str, private: tuple[float, float], warned: bool) -> None:
    vm = machine(domain(tune + SEV))
    assert vm.unknown == []
    amounts, lines = answer(vm)
    found = next(amount for name, amount in amounts.items() if name.endswith("-private"))
    assert [amount / sum(found) for amount in found] == pytest.approx(private, abs=1e-4)
    assert any(line.warning for line in lines) == warned


def test_domain_of_a_file() -> None:
    vm = read(CASES / "domain-snp.xml", [0, 1])
    assert (vm.name, vm.confidential, vm.vcpus, vm.memory) == ("db", "snp", 4, 4 * GIB)
    assert vm.vcpu_pins == {0: (0,), 1: (1,), 2: (2, 3), 3: (2, 3)}
    assert vm.emulator_cpus == (4, 5)
    assert vm.unknown == ["<surprise>"]
    scenario = scenario_of(vm, TWO)
    assert [vcpu.cpu for vcpu in scenario.guest.vcpus] == [0, 1, None, None]
    assert wb.Scenario.from_yaml(scenario.to_yaml()) == scenario


def test_more_of_a_domain() -> None:
    vm = machine(
        domain(
            "<memoryBacking><hugepages><page size='1' unit='GiB'/></hugepages><allocation mode='immediate'/></memoryBacking>"
            "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-odd'/>"
            "<qemu:arg value='thing'/></qemu:commandline>",
            vcpu="<vcpu cpuset='8-15'>4</vcpu>",
        )
    )
    assert (vm.backends[0].page_bytes, vm.backends[0].preallocated) == (GIB, True)
    assert vm.unknown == ["qemu:commandline: -odd thing"]
    amounts, _ = answer(vm)
    assert amounts == {"pc.ram": [0, 4 * GIB]}


def test_huge_pages_of_ordinary_backends_come_from_the_hosts_pools() -> None:
    vm = machine(
        "qemu-system-x86_64 -m 4G -smp 2 -object memory-backend-memfd,id=ram,size=4G,hugetlb=on,hugetlbsize=2M,"
        "host-nodes=0-1,policy=interleave -machine memory-backend=ram"
    )
    scenario = scenario_of(vm, TWO)
    assert (scenario.guest.page_size, scenario.kernel.name) == ("2 MiB", "7.3")
    assert not any("placed as pages of 4 KiB" in note for note in vm.notes)
    result = wb.simulate(scenario)
    assert int(result["page_size"]) == 2 << 20 and result["pages_per_node"].values.tolist() == [[1024, 1024]]
    dry = wb.simulate(scenario.replace(**{"boot.hugetlb_pages": {0: 2000, 1: 4}}))
    assert int(dry["event_errno"].values[0]) == 12, "the pools cannot promise so many"


def page_sizes(vm: VirtualMachine, host: Host = TWO) -> dict[str, int]:
    result = wb.simulate(scenario_of(vm, host))
    assert not result["event_errno"].any()
    return dict(zip(result["file"].values.tolist(), result["file_page_size"].values.tolist(), strict=True))


def test_backends_have_pages_of_different_sizes() -> None:
    """What is hugetlb comes from pools beside the 4 KiB pages of others, private memory included; one huge size in a run."""
    two = "-numa node,memdev=a -numa node,memdev=b"
    huge = "-object memory-backend-memfd,id=a,size=2G,hugetlb=on"
    small = "-object memory-backend-memfd,id=b,size=1G"
    assert page_sizes(machine(f"qemu-system-x86_64 -m 3G -smp 2 {huge} {small} {two}")) == {"a": 2 << 20, "b": 4096}
    private = "-object sev-snp-guest,id=s -machine confidential-guest-support=s,memory-backend=a"
    vm = machine(f"qemu-system-x86_64 -m 2G -smp 2 {huge},prealloc=on,host-nodes=1,policy=bind {private}")
    assert page_sizes(vm) == {"a": 2 << 20, "a-private": 4096}
    assert any("pools of huge pages: the host's are not known" in note for note in vm.notes)
    amounts, _ = answer(vm)
    assert amounts["a"] == [0, 2 * GIB]
    larger = "-object memory-backend-memfd,id=b,size=1G,hugetlb=on,hugetlbsize=1G"
    vm = machine(f"qemu-system-x86_64 -m 3G -smp 2 {huge} {larger} {two}")
    assert page_sizes(vm) == {"a": 2 << 20, "b": 4096}
    assert any("b: pages of 1 GiB are placed as pages of 4 KiB" in note for note in vm.notes)


def test_ordinary_memory_comes_in_transparent_huge_pages_unless_the_host_says_never() -> None:
    text = "qemu-system-x86_64 -m 2G -smp 2"
    vm = machine(text)
    assert page_sizes(vm) == {"ram": 2 << 20}
    assert any("transparent huge pages: the host's setting is not known" in note for note in vm.notes)
    for said, size in (("always", 2 << 20), ("madvise", 2 << 20), ("never", 4096)):
        host = TWO.model_copy(update={"transparent_hugepages": said})
        vm = machine(text)
        assert page_sizes(vm, host) == {"ram": size}
        assert scenario_of(vm, host).boot.transparent_hugepages == (said != "never")
        assert not any("not known" in note for note in vm.notes)
    shared = machine(f"{text} -object memory-backend-ram,id=m,size=2G,share=on -machine memory-backend=m")
    assert page_sizes(shared) == {"m": 4096}
    assert page_sizes(machine(f"{text[:-7]} -m 2049 -smp 2")) == {"ram": 4096}, "not whole 2 MiB"


def test_hugepages_of_a_domain_are_by_virtual_node() -> None:
    """docs/formatdomain.rst: nodeset names the guest's nodes; a page without one is for the others."""
    cells = (
        "<cpu><numa>"
        + "".join(f"<cell id='{i}' cpus='{i}' memory='1' unit='GiB'/>" for i in range(3))
        + "</numa></cpu>"
    )
    pages = (
        "<memoryBacking><hugepages><page size='1' unit='G' nodeset='2'/><page size='2048' nodeset='0'/></hugepages>"
        "</memoryBacking>"
    )
    vm = machine(domain(pages + cells))
    assert [backend.page_bytes for backend in vm.backends] == [2 << 20, 4096, GIB]
    assert [backend.anonymous for backend in vm.backends] == [False, True, False]
    rest = machine(domain(pages.replace(" nodeset='0'", "") + cells))
    assert [backend.page_bytes for backend in rest.backends] == [2 << 20, 2 << 20, GIB]
    assert "the domain has 3 virtual nodes" in refused(domain(pages.replace("'2'", "'7'") + cells))
    assert "two page sizes for virtual node 2" in refused(domain(pages.replace("'0'", "'2'") + cells))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<network/>", "the top element is not 'domain'"),
        ("<domain", "is not XML that can be read"),
        ('<!DOCTYPE d [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><domain>&b;</domain>', "is not XML that can be read"),
        (domain("", memory=""), "the domain has no memory"),
        (domain("", memory="<memory unit='stone'>4</memory>"), "unit 'stone'"),
        (domain("", memory="<memory>many</memory>"), "'many' is not a number"),
        (domain("", vcpu="<vcpu>0</vcpu>"), "1 to 4096 are expected"),
        (domain("<numatune><memory mode='hard' nodeset='0'/></numatune>"), "mode='hard'; libvirt has strict"),
        (domain("<numatune><memory mode='strict' nodeset='3'/></numatune>"), "node 3 is not on this host"),
        (domain("<numatune><memory mode='strict' nodeset=''/></numatune>"), "nodeset is empty"),
        (domain("<numatune><memnode cellid='0' nodeset='0'/></numatune>"), "memnode 0 needs a cell"),
        (
            domain("<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='0' cpuset='1'/></cputune>"),
            "two vcpupin elements",
        ),
        (domain("<cputune><vcpupin vcpu='0' cpuset='99'/></cputune>"), "CPU 99 is not on this host"),
        (domain("<cputune><vcpupin vcpu='0' cpuset='a'/></cputune>"), "neither a number nor a range"),
        (domain("<cpu><numa><cell id='0' memory='1'/><cell id='0' memory='1'/></numa></cpu>"), "two cells have id=0"),
    ],
)
def test_bad_domains_are_one_line(text: str, message: str) -> None:
    assert message in refused(text)


# ------------------------------------------------------------------------------------------------------------ specs


def test_firecracker() -> None:
    vm = read(CASES / "firecracker.json", [0, 1])
    assert (vm.vmm, vm.vcpus, vm.memory, vm.unknown) == ("firecracker", 2, GIB, ["novelty"])
    scenario = scenario_of(vm, TWO)
    assert (scenario.guest.vm_type, scenario.guest.vmm_profile) == ("none", "firecracker")
    assert [operation.op for operation in scenario.operations] == ["create", "fault", "fault"]


def test_firecracker_with_huge_pages() -> None:
    """src/vmm/src/vstate/memory.rs: huge_pages 2M is MAP_HUGETLB with 2 MiB: memory out of the host's pools, no guest_memfd."""
    text = (CASES / "firecracker.json").read_text().replace('"None"', '"2M"')
    scenario = scenario_of(read_text(text, "machine.json", [0, 1]), TWO)
    assert (scenario.guest.page_size, scenario.guest.design) == ("2 MiB", "hugetlb")
    assert [operation.op for operation in scenario.operations] == ["memfd", "fault", "fault"]
    result = wb.simulate(scenario)
    assert result["event_error"].values.tolist() == ["", "", ""]
    assert int(result["pages_per_node"].sum()) == GIB >> 21


def test_kubevirt() -> None:
    vm = read(CASES / "kubevirt.yaml", [0, 1])
    assert (vm.name, vm.confidential, vm.vcpus, vm.memory, vm.unknown) == ("web", "snp", 4, 2 * GIB, [])
    assert vm.backends[0].page_bytes == 2 << 20
    assert vm.dedicated_cpus and vm.guest_nodes_follow and not vm.notes


def four_nodes(*free: str) -> Host:
    nodes = [
        {"id": n, "memory_bytes": "16 GiB", "free_bytes": free[n], "cpus": f"{2 * n}-{2 * n + 1}"} for n in range(4)
    ]
    distances = [[10 if a == b else 12 if a // 2 == b // 2 else 30 for b in range(4)] for a in range(4)]
    return Host.from_mapping({"name": "four", "nodes": nodes, "distances": distances})


def test_dedicated_cpus_fill_nodes_and_virtual_nodes_follow() -> None:
    """kubelet: takeByTopologyNUMAPacked: node 0 whole, the third vCPU on node 1; kubevirt halves the memory."""
    text = (CASES / "kubevirt.yaml").read_text().replace("cores: 2, sockets: 2", "cores: 3, sockets: 1")
    vm = read_text(text.replace("snp", "other"), "vm.yaml", [0, 1, 2, 3])
    scenario = scenario_of(vm, four_nodes(*["15 GiB"] * 4))
    assert vm.vcpu_pins == {0: (0,), 1: (1,), 2: (2,)} and vm.emulator_cpus == (0, 1, 2)
    assert [(b.size, b.vcpus, b.policy.nodes if b.policy else ()) for b in vm.backends] == [
        (GIB, (0, 1), (0,)),
        (GIB, (2,), (1,)),
    ]
    result = wb.simulate(scenario)
    assert bytes_per_node(result).sum(axis=0).tolist() == [GIB, GIB, 0, 0]
    with pytest.raises(WorkbenchError, match="9 vCPUs, each on a CPU of its own; this host has 8"):
        scenario_of(read_text(text.replace("cores: 3", "cores: 9"), "vm.yaml", [0]), four_nodes(*["15 GiB"] * 4))
    with pytest.raises(WorkbenchError, match=r"^vm.yaml: line [0-9]+: .*needs dedicatedCpuPlacement"):
        read_text(text.replace("dedicatedCpuPlacement: true", "dedicatedCpuPlacement: false"), "vm.yaml", [0])


@pytest.mark.parametrize(
    ("settings", "cpu_nodes", "mems", "policy"),
    [
        ("<vcpu placement='auto'>3</vcpu>", (2, 3), (2, 3), "bind"),
        ("<vcpu placement='auto'>3</vcpu><numatune><memory mode='interleave'/></numatune>", (2, 3), None, "interleave"),
        (
            "<vcpu placement='auto'>3</vcpu><numatune><memory mode='strict' nodeset='0'/></numatune>",
            (2, 3),
            (0,),
            "bind",
        ),
        ("<vcpu>2</vcpu><numatune><memory placement='auto'/></numatune>", (), (2,), "bind"),
        ("<vcpu>2</vcpu><numatune><memory mode='restrictive' placement='auto'/></numatune>", (), (2,), None),
    ],
)
def test_placement_auto_is_what_numad_would_name(
    settings: str, cpu_nodes: tuple[int, ...], mems: tuple[int, ...] | None, policy: str | None
) -> None:
    """numad.c: pick_numa_nodes: the most CPUs times free memory first, then what is near it."""
    text = f"<domain type='kvm'><name>d</name><memory unit='GiB'>2</memory>{settings}</domain>"
    vm = read_text(text, "d.xml", [0, 1, 2, 3])
    scenario = scenario_of(vm, four_nodes("8 GiB", "9 GiB", "12 GiB", "4 GiB"))
    assert vm.cpu_nodes == cpu_nodes
    assert (vm.cpuset_mems.nodes if vm.cpuset_mems else None) == mems
    assert (vm.backends[0].policy.mode if vm.backends[0].policy else None) == policy
    assert any(note.startswith("placement='auto': numad chooses at start; taken as nodes 2") for note in vm.notes)
    assert not wb.simulate(scenario)["event_errno"].values.any()


def test_kata() -> None:
    vm = read(CASES / "kata.toml", [0, 1])
    assert (vm.confidential, vm.vcpus, vm.memory, vm.backends[0].preallocated) == ("snp", 2, 2 * GIB, True)
    assert vm.unknown == ["hypervisor.novelty"]
    pod = read(CASES / "kata-pod.yaml", [0, 1])
    assert (pod.confidential, pod.vcpus, pod.memory) == ("none", 3, GIB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"machine-config": {"vcpu_count": 0}}', "1 to 4096 vCPUs"),
        ('{"machine-config": {"vcpu_count": "x"}}', "'x' is not a number"),
        ('{"machine-config": {"mem_size_mib": 0}}', "at least 1"),
        ('{"machine-config": {"huge_pages": "1G"}}', "Firecracker has None and 2M"),
        ('{"machine-config": []}', "is not a mapping"),
        ('{"machine-config": ', "not valid JSON"),
        ("{" * 100_000, "not valid JSON"),
        ("apiVersion: v1\nkind: Service\n", "kind 'Service'"),
        ("apiVersion: v1\nkind: Pod\n", "no annotation io.katacontainers"),
        ("apiVersion: v1\nkind: VirtualMachine\nspec: {}\n", "neither domain.memory.guest"),
        ("apiVersion: v1\nkind: VirtualMachineInstance\nspec: {domain: {memory: {guest: 1Zi}}}\n", "is not a quantity"),
        ("apiVersion: v1\nkind: VirtualMachineInstance\nspec: {domain: {cpu: {cores: 5000}}}\n", "domain.cpu.cores"),
        ("[hypervisor.qemu]\ndefault_memory = 0\n", "at least 1"),
        ("[hypervisor.qemu]\ndefault_memory = \n", "not valid TOML"),
        ("[hypervisor.qemu]\n[hypervisor.clh]\n", "one is expected"),
    ],
)
def test_bad_specs_are_one_line(text: str, message: str) -> None:
    assert message in refused(text)


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def app() -> Any:
    import typer

    made = typer.Typer()
    made.callback()(lambda: None)
    importing.register(made)
    return made


def test_the_first_lines_are_what_people_came_for(app: Any, tmp_path: Path) -> None:
    out = tmp_path / "scenario.yaml"
    arguments = ["import", str(CASES / "snp-two-backends.sh"), "--host", "xeon-e5-2680-2s", "-o", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    first, *rest = result.output.splitlines()
    assert first.startswith(
        "warning: ram0: policy=bind, host-nodes=0: reaches the shared backend only; private memory (94 %"
    )
    assert "not understood: -strange-option 7" in rest
    scenario = wb.Scenario.from_yaml(out)
    assert (scenario.guest.vm_type, scenario.guest.vmm_profile) == ("snp", "qemu-11")
    document = json.loads(CliRunner().invoke(app, [*arguments[:4], "--json"]).output)
    assert document["reach"][0]["pages"] == "shared"
    assert document["not_understood"] == ["-strange-option 7"]


def test_every_case_is_imported(app: Any) -> None:
    for case in sorted(CASES.iterdir()):
        result = CliRunner().invoke(app, ["import", str(case), "--host", "xeon-e5-2680-2s"])
        assert result.exit_code == 0, (case, result.output)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"qemu-system-x86_64 " * 100_000)
    for path, message in ((tmp_path / "fifo", "not a regular file"), (Path("/dev/zero"), "not a regular file"),
                          (tmp_path / "long", "more than 1,024 KiB"), (tmp_path / "none", "No such file")):  # fmt: skip
        with pytest.raises(WorkbenchError, match=message):
            read(path, [0])


def test_a_domain_with_a_prompt_around_it_is_read() -> None:
    xml = domain("<features/>").replace("><", ">\n<")
    assert machine(f"root@box:~# virsh dumpxml d\n{xml}\nroot@box:~#\n").memory == 4 * GIB
    quoted = "".join(f"> {line}\n" for line in xml.splitlines())
    assert machine(f"Hello,\n{quoted}bye\n").memory == 4 * GIB


def test_memory_devices_are_placed_where_their_source_says() -> None:
    """docs/formatdomain.rst: memory counts DIMMs in; of virtio-mem the guest has what was requested."""
    dimm = (
        "<devices><memory model='dimm'><source><pagesize unit='KiB'>2048</pagesize><nodemask>1</nodemask></source>"
        "<target><size unit='GiB'>1</size><node>0</node></target></memory>"
        "<memory model='virtio-mem'><target><size unit='GiB'>8</size><requested unit='MiB'>512</requested></target></memory>"
        "<memory model='nvdimm'><source><path>/n</path></source><target><size unit='GiB'>1</size></target></memory></devices>"
    )
    vm = machine(domain(dimm))
    assert [(b.name, b.size, b.page_bytes) for b in vm.backends] == [
        ("pc.ram", 4 * GIB - GIB - (512 << 20), 4096), ("mem0", GIB, 2 << 20), ("mem1", 512 << 20, 4096),
    ]  # fmt: skip
    assert vm.backends[1].policy is not None and vm.backends[1].policy.nodes == (1,)
    assert any("nvdimm" in note for note in vm.notes)
    assert "node 7 is not on this host" in refused(domain(dimm.replace("<nodemask>1", "<nodemask>7")))
    line = (
        "qemu-system-x86_64 -m 1G,maxmem=32G -object memory-backend-memfd,id=v,size=8G -object "
        "memory-backend-file,id=n,size=1G,mem-path=/dev/dax0.0 -device virtio-mem-pci,memdev=v{} -device nvdimm,memdev=n"
    )
    assert machine(line.format(",requested-size=2G")).memory == 3 * GIB
    assert (machine(line.format("")).memory, machine(line.format("")).unknown) == (GIB, [])


def test_more_ways_in_which_a_machine_is_kept() -> None:
    assert machine(f"<domainsnapshot>{domain('')}</domainsnapshot>").memory == 4 * GIB
    assert "unit 'stone'" in refused(domain("<cpu><numa><cell id='0' memory='1' unit='stone'/></numa></cpu>"))
    one = "{kind: VirtualMachineInstance, spec: {domain: {memory: {guest: 1Gi}}}}"
    assert machine(f"apiVersion: v1\nkind: List\nitems: [{one}]\n").memory == GIB
    assert "a list of 2; one machine is expected" in refused(f"apiVersion: v1\nkind: List\nitems: [{one}, {one}]\n")
    assert machine("[hypervisor.qemu]\ndefault_vcpus = 1.5\n").vcpus == 2
    assert "all CPUs of the machine" in refused("[hypervisor.qemu]\ndefault_vcpus = -1\n")

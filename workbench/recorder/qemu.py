"""An emulated machine with the NUMA topology of a Host, and the command line that starts it.

Linux numbers nodes in the order in which their proximity domains first appear in the ACPI SRAT, and it reads the
entries of CPUs before those of memory (drivers/acpi/numa/srat.c: acpi_numa_init, acpi_map_pxm_to_node). A node without
CPUs therefore gets a higher number than every node with CPUs, wherever it was declared; ``linux_ids`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.topology.host import Host

MAX_CPUS = 16
"""With software emulation in one thread, more CPUs only make the boot longer."""
MAX_NODES = 64
FIRST_NODE_MIB = 256
"""The first node also holds the kernel, its initial RAM file system and the DMA zone."""
SMALLEST_NODE_MIB = 96
BLOCK_MIB = 128
"""Memory is hot-plugged in blocks of this size on x86."""
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=4 nokaslr panic=-1 numa_balancing=disable transparent_hugepage=never"


@dataclass(frozen=True)
class EmulatedNode:
    """One proximity domain. ``hotplug``: its memory is a DIMM that Linux onlines as ZONE_MOVABLE."""

    memory_mib: int
    cpus: tuple[int, ...] = ()
    initiator: int | None = None
    hotplug: bool = False


@dataclass(frozen=True)
class EmulatedHost:
    """What QEMU emulates. Distances and HMAT lines refer to the order of ``nodes``, which are the proximity domains."""

    name: str
    nodes: tuple[EmulatedNode, ...]
    distances: tuple[tuple[int, ...], ...] = ()
    lowmem_mib: int | None = None
    hmat: tuple[str, ...] = ()
    kernel_arguments: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise WorkbenchError(f"{self.name}: {len(self.nodes)} nodes; 1 to {MAX_NODES} can be emulated")
        cpus = sorted(cpu for node in self.nodes for cpu in node.cpus)
        if cpus != list(range(len(cpus))) or not cpus:
            raise WorkbenchError(f"{self.name}: CPUs {cpus}; must be 0, 1, 2, ... without a gap, each once")
        if any(node.hotplug for node in self.nodes[:-1]):
            raise WorkbenchError(f"{self.name}: only the memory of the last node can be movable when emulated")
        if self.nodes[-1].hotplug and self.nodes[-1].memory_mib % BLOCK_MIB:
            raise WorkbenchError(f"{self.name}: movable memory must be a multiple of {BLOCK_MIB} MiB")
        if self.distances and any(len(row) != len(self.nodes) for row in (self.distances, *self.distances)):
            raise WorkbenchError(f"{self.name}: distances must be {len(self.nodes)} x {len(self.nodes)}")

    @property
    def linux_ids(self) -> tuple[int, ...]:
        """The Linux node id of each declared node; -1 for one with neither CPUs nor memory, which Linux never sees."""
        by_cpu = sorted((min(node.cpus), index) for index, node in enumerate(self.nodes) if node.cpus)
        order = [index for _, index in by_cpu]
        order += [index for index, node in enumerate(self.nodes) if not node.cpus and node.memory_mib]
        ids = [-1] * len(self.nodes)
        for linux, index in enumerate(order):
            ids[index] = linux
        return tuple(ids)

    def topology(self) -> dict[str, Any]:
        """The declaration as recordings hold it."""
        nodes: list[dict[str, Any]] = []
        for node in self.nodes:
            entry: dict[str, Any] = {"mem": f"{node.memory_mib}M", "cpus": list(node.cpus)}
            if node.initiator is not None:
                entry["initiator"] = node.initiator
            if node.hotplug:
                entry["hotplug"] = True
            nodes.append(entry)
        out: dict[str, Any] = {"name": self.name, "nodes": nodes}
        if self.lowmem_mib:
            out["lowmem"] = f"{self.lowmem_mib}M"
        if self.distances:
            out["distances"] = [list(row) for row in self.distances]
        if self.hmat:
            out["hmat"] = list(self.hmat)
        if self.kernel_arguments:
            out["kernel_arguments"] = self.kernel_arguments
        return out

    @classmethod
    def from_topology(cls, topology: Mapping[str, Any]) -> EmulatedHost:
        """The inverse of ``topology``."""
        nodes = tuple(
            EmulatedNode(
                mebibytes(node["mem"]), tuple(node.get("cpus", ())), node.get("initiator"), bool(node.get("hotplug"))
            )
            for node in topology["nodes"]
        )
        return cls(
            str(topology["name"]),
            nodes,
            tuple(tuple(row) for row in topology.get("distances", ())),
            mebibytes(topology["lowmem"]) if topology.get("lowmem") else None,
            tuple(topology.get("hmat", ())),
            str(topology.get("kernel_arguments", "")),
        )

    def arguments(self) -> list[str]:
        """QEMU's options for memory, CPUs and NUMA."""
        boot_memory = sum(node.memory_mib for node in self.nodes if not node.hotplug)
        hot_memory = sum(node.memory_mib for node in self.nodes if node.hotplug)
        cpus = sum(len(node.cpus) for node in self.nodes)
        machine = "q35" + (",hmat=on" if self.hmat else "")
        if self.lowmem_mib:
            machine += f",max-ram-below-4g={self.lowmem_mib << 20}"
        memory = f"{boot_memory}M" + (f",slots=1,maxmem={boot_memory + hot_memory}M" if hot_memory else "")
        out = ["-machine", machine, "-smp", f"{cpus},sockets={cpus},cores=1,threads=1", "-m", memory]
        for index, node in enumerate(self.nodes):
            out += self._node_arguments(index, node)
        for source, row in enumerate(self.distances):
            for target, distance in enumerate(row):
                if source != target:
                    out += ["-numa", f"dist,src={source},dst={target},val={distance}"]
        for line in self.hmat:
            out += ["-numa", f"hmat-lb,{line}"]
        return out

    def _node_arguments(self, index: int, node: EmulatedNode) -> list[str]:
        backend = ["-object", f"memory-backend-ram,id=ram{index},size={node.memory_mib}M"] if node.memory_mib else []
        declaration = f"node,nodeid={index}" + (f",memdev=ram{index}" if node.memory_mib and not node.hotplug else "")
        declaration += "".join(f",cpus={cpu}" for cpu in node.cpus)
        if self.hmat:
            first = next(i for i, other in enumerate(self.nodes) if other.cpus)
            declared = node.initiator if node.initiator is not None else first
            declaration += f",initiator={index if node.cpus else declared}"
        out = [*backend, "-numa", declaration]
        if node.hotplug:
            out += ["-device", f"pc-dimm,id=dimm{index},memdev=ram{index},node={index}"]
        return out

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        movable = "memhp_default_state=online_movable" if any(node.hotplug for node in self.nodes) else ""
        return " ".join(part for part in (KERNEL_ARGUMENTS, movable, self.kernel_arguments) if part)

    def command(self, qemu: str, kernel: Path, initrd: Path, output: Path, console: Path) -> list[str]:
        """The whole command. Software emulation in one thread: with several, one of two boots dies.

        The probe writes to the virtio port, or to the second serial line where the kernel has no driver for that; what
        comes there is ``output`` with ``.serial`` behind it.
        """
        return [
            qemu, "-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt,+pdpe1gb",
            *self.arguments(),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(kernel), "-initrd", str(initrd), "-append", self.command_line,
            "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
            "-chardev", f"file,id=second,path={output}.serial", "-serial", "chardev:second",
            "-device", "virtio-serial-pci",
            "-chardev", f"file,id=probe,path={output}", "-device", "virtserialport,chardev=probe,name=probe",
        ]  # fmt: skip


def mebibytes(value: object) -> int:
    """``512M``, ``2G``, ``262144K`` or a number of MiB as MiB."""
    text = str(value)
    scale = {"K": 1 / 1024, "M": 1, "G": 1024}.get(text[-1:], 0)
    try:
        return int(int(text[:-1]) * scale) if scale else int(text)
    except ValueError:
        raise WorkbenchError(f"memory {text!r}; must be a size such as 512M") from None


@dataclass(frozen=True)
class Emulation:
    """A Host made small enough to emulate: which Linux node and which CPU there stand for those of the host."""

    host: EmulatedHost
    node: Mapping[int, int]
    cpu: Mapping[int, int]
    scale: float

    def of_node(self, node: int) -> int:
        """Linux id in the recording of a node of the host; an unknown one keeps its number and is refused."""
        return self.node.get(node, node)

    def of_cpu(self, cpu: int) -> int:
        """CPU in the recording."""
        if cpu not in self.cpu:
            raise WorkbenchError(f"cpu {cpu}: is not a CPU of this host")
        return self.cpu[cpu]


def emulate(host: Host, budget_mib: int = 2048) -> Emulation:
    """The emulated machine for a Host: sizes scaled down to ``budget_mib`` in all, fewer CPUs, same distances.

    Node sizes keep their proportions as far as the smallest node that Linux can live with allows. Access
    characteristics become an HMAT if they are there for every pair of a node with CPUs and a node with memory.
    """
    # QEMU's first domain gets the lowest memory, so a node with memory has to be there; movable memory comes last.
    order = sorted(range(len(host.nodes)), key=lambda index: (host.nodes[index].movable, index))
    nodes = [host.nodes[index] for index in order]
    total = sum(node.memory_bytes for node in nodes) / (1 << 20)
    scale = min(1.0, budget_mib / total) if total else 1.0
    per_node = max(1, MAX_CPUS // max(1, sum(bool(node.cpus) for node in nodes)))
    cpu_map: dict[int, int] = {}
    emulated: list[EmulatedNode] = []
    for position, node in enumerate(nodes):
        first = sum(len(other.cpus) for other in emulated)
        kept = tuple(range(first, first + min(per_node, len(node.cpus))))
        cpu_map.update({cpu: kept[i % len(kept)] for i, cpu in enumerate(node.cpus)})
        memory = _scaled(node.memory_bytes, scale, position == 0, node.movable)
        emulated.append(EmulatedNode(memory, kept, None, node.movable))
    distances = tuple(tuple(int(host.distances[a][b]) for b in order) for a in order) if len(nodes) > 1 else ()
    _check_distances(host.name, distances)
    machine = EmulatedHost(host.name, tuple(emulated), distances, _lowmem(emulated))
    machine = replace(machine, hmat=_hmat(host, [node.id for node in nodes], machine))
    ids = dict(zip((node.id for node in nodes), machine.linux_ids, strict=True))
    return Emulation(machine, ids, cpu_map, scale)


def _scaled(memory_bytes: int, scale: float, first: bool, movable: bool) -> int:
    if not memory_bytes:
        return 0
    mib = memory_bytes * scale / (1 << 20)
    if movable:
        return max(BLOCK_MIB, round(mib / BLOCK_MIB) * BLOCK_MIB)
    return max(FIRST_NODE_MIB if first else SMALLEST_NODE_MIB, round(mib / 32) * 32)


def _lowmem(nodes: Sequence[EmulatedNode]) -> int | None:
    """Keep a ZONE_NORMAL on the first node: only part of it lies below 4 GiB."""
    first = next((node.memory_mib for node in nodes if node.memory_mib), 0)
    return 128 if first > 192 else None


def _check_distances(name: str, distances: tuple[tuple[int, ...], ...]) -> None:
    for source, row in enumerate(distances):
        for target, distance in enumerate(row):
            allowed = distance == 10 if source == target else 10 < distance < 255
            if not allowed:
                raise WorkbenchError(
                    f"{name}: distance {source} -> {target} is {distance}; an ACPI SLIT allows 10 for a node to itself "
                    f"and 11 to 254 for others"
                )


def _hmat(host: Host, ids: list[int], machine: EmulatedHost) -> tuple[str, ...]:
    """One latency and one bandwidth line for every initiator and target, or nothing if any is unknown."""
    known = {(access.initiator, access.target): access for access in host.access}
    lines: list[str] = []
    for source, source_id in enumerate(ids):
        for target, target_id in enumerate(ids):
            if not machine.nodes[source].cpus or not machine.nodes[target].memory_mib:
                continue
            access = known.get((source_id, target_id))
            if access is None or not access.read_latency or not access.read_bandwidth:
                return ()
            where = f"initiator={source},target={target},hierarchy=memory"
            bandwidth = min(access.read_bandwidth, access.write_bandwidth or access.read_bandwidth)
            lines.append(f"{where},data-type=access-latency,latency={round(access.read_latency)}")
            lines.append(f"{where},data-type=access-bandwidth,bandwidth={round(bandwidth)}M")
    return tuple(lines)

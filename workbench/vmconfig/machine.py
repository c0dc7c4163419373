"""A virtual machine as its configuration describes it, whatever tool it is written for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from workbench.units import PAGE_SIZE

Mode = Literal["default", "bind", "interleave", "preferred", "preferred_many", "weighted_interleave", "local"]
Confidential = Literal["none", "snp", "tdx"]
Vmm = Literal["qemu-11", "firecracker", "own"]


@dataclass(frozen=True)
class NodePolicy:
    """A memory policy and the text of the setting it comes from."""

    setting: str
    mode: Mode
    nodes: tuple[int, ...] = ()


@dataclass
class Backend:
    """Memory that the VMM maps: in a guest with private memory the shared part of it."""

    name: str
    size: int
    policy: NodePolicy | None = None
    page_bytes: int = PAGE_SIZE
    preallocated: bool = False
    guest_memfd: bool = False
    """A guest_memfd of its own (QEMU: memory-backend-guest-memfd), not memory of the VMM."""
    anonymous: bool = False
    """Memory of the VMM's process without a file, for which it asks transparent huge pages (MADV_HUGEPAGE)."""
    vcpus: tuple[int, ...] = ()
    """vCPUs of the virtual node that this memory is of; none: all."""


@dataclass(frozen=True)
class Numad:
    """What libvirt asks numad for at start: nodes for the threads, or for memory too."""

    cpus: bool
    setting: str = ""
    """Of numatune, if memory follows the advice."""
    mode: Mode | None = None
    confines: bool = False
    """Whether the threads' cpuset has these nodes alone."""


@dataclass
class VirtualMachine:
    """What counts for placement. ``unknown`` lists what was not understood, ``notes`` what was, but is not modelled."""

    source: str
    vmm: Vmm
    name: str = "guest"
    confidential: Confidential = "none"
    vcpus: int = 1
    backends: list[Backend] = field(default_factory=list)
    task_policy: NodePolicy | None = None
    """Of all threads: ``numactl`` around the VMM."""
    cpuset_mems: NodePolicy | None = None
    """The cpuset that the threads are in; ``nodes`` are its mems."""
    cpus: tuple[int, ...] = ()
    """Host CPUs that any thread may use; none: all."""
    cpu_nodes: tuple[int, ...] = ()
    """Host nodes on whose CPUs threads may run; none: all."""
    vcpu_pins: dict[int, tuple[int, ...]] = field(default_factory=dict)
    emulator_cpus: tuple[int, ...] = ()
    asks_numad: Numad | None = None
    dedicated_cpus: bool = False
    """Each vCPU gets a CPU of its own, which the kubelet chooses."""
    guest_nodes_follow: bool = False
    """Virtual nodes are those that the dedicated CPUs are on."""
    locked: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    """Where in the source settings stand that only the host can refuse."""
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Bytes of all backends."""
        return sum(backend.size for backend in self.backends)

"""What is chosen only when a machine starts, as those who choose do it on this host as it is: numad and the kubelet.

numad (numad.c: pick_numa_nodes) is asked by libvirt for nodes with so many CPUs and so much memory (src/util/virnuma.c:
virNumaGetAutoPlacementAdvice). The kubelet's static policy gives a pod whole nodes first, from the lowest on
(pkg/kubelet/cm/cpumanager/cpu_assignment.go: takeByTopologyNUMAPacked), and kubevirt pins one vCPU to each CPU, and makes
a virtual node of each node that they are on, with an equal share of memory (pkg/virt-launcher: converter/vcpu).
The load of the moment, and CPUs that others hold, are not known: ``notes`` say so.
"""

from __future__ import annotations

from workbench.bitmap_lists import format_list
from workbench.errors import WorkbenchError
from workbench.topology.host import Host, Node
from workbench.vmconfig.machine import Backend, NodePolicy, VirtualMachine


def choose(vm: VirtualMachine, host: Host) -> None:
    """Put what is chosen on this host into ``vm``."""
    if vm.asks_numad is not None:
        _by_numad(vm, host)
    if vm.dedicated_cpus:
        _by_kubelet(vm, host)


def _free(node: Node) -> int:
    return node.memory_bytes if node.free_bytes is None else node.free_bytes


def advice(host: Host, cpus: int, memory: int) -> tuple[int, ...]:
    """Nodes that numad would name: the best by CPUs times free memory, nearer ones first, until both are enough."""
    left = [node for node in host.nodes if node.cpus and _free(node)]
    position = {node.id: at for at, node in enumerate(host.nodes)}
    chosen: list[Node] = []
    while left and (cpus > 0 or memory > 0):

        def rank(node: Node) -> tuple[int, int, int]:
            far = sum(host.distances[position[other.id]][position[node.id]] for other in chosen)
            return far, -len(node.cpus) * _free(node), node.id

        best = min(left, key=rank)
        left.remove(best)
        chosen.append(best)
        cpus -= len(best.cpus)
        memory -= _free(best)
    return tuple(sorted(node.id for node in chosen))


def _by_numad(vm: VirtualMachine, host: Host) -> None:
    asked = vm.asks_numad
    assert asked is not None
    nodes = advice(host, vm.vcpus, vm.memory)
    if not nodes:
        raise WorkbenchError("placement='auto': no node of this host has CPUs and free memory; one is expected")
    vm.notes.append(
        f"placement='auto': numad chooses at start; taken as nodes {format_list(nodes)}, the best by CPUs times free memory "
        "on this host as it is; the load of the moment is not known"
    )
    if asked.cpus:
        vm.cpu_nodes, vm.cpus = nodes, ()
    if asked.setting:
        if asked.mode is not None:
            for backend in vm.backends:
                backend.policy = backend.policy or NodePolicy(asked.setting, asked.mode, nodes)
        if asked.confines:
            vm.cpuset_mems = NodePolicy(asked.setting, "bind", nodes)


def _by_kubelet(vm: VirtualMachine, host: Host) -> None:
    of_node = {cpu: node.id for node in host.nodes for cpu in node.cpus}
    cpus = list(of_node)[: vm.vcpus]
    if len(cpus) < vm.vcpus:
        raise WorkbenchError(
            f"domain.cpu.dedicatedCpuPlacement: {vm.vcpus} vCPUs, each on a CPU of its own; this host has {len(of_node)}"
        )
    vm.vcpu_pins = {vcpu: (cpu,) for vcpu, cpu in enumerate(cpus)}
    vm.emulator_cpus = tuple(cpus)
    vm.notes.append(
        f"dedicatedCpuPlacement: the kubelet pins vCPUs when the pod starts; taken as CPUs {format_list(cpus)}, whole nodes "
        "from the lowest on, as on a host without other pods and reserved CPUs"
    )
    if not vm.guest_nodes_follow:
        return
    nodes = list(dict.fromkeys(of_node[cpu] for cpu in cpus))
    (whole,) = vm.backends
    pages, rest = divmod(whole.size // whole.page_bytes, len(nodes))
    vm.backends = []
    for cell, node in enumerate(nodes):
        policy = NodePolicy(f"guestMappingPassthrough: memnode {cell}: mode=strict, nodeset={node}", "bind", (node,))
        size = (pages + (cell < rest)) * whole.page_bytes
        own = tuple(vcpu for vcpu, cpu in enumerate(cpus) if of_node[cpu] == node)
        part = Backend(f"ram-node{cell}", size, policy, whole.page_bytes, whole.preallocated, whole.guest_memfd,
                       whole.anonymous, own)  # fmt: skip
        vm.backends.append(part)
    vm.cpuset_mems = NodePolicy(
        f"guestMappingPassthrough: mode=strict, nodeset={format_list(nodes)}", "bind", tuple(nodes)
    )

"""The scenario of a virtual machine on a host: its threads, its files, the calls its VMM makes, and who touches what first.

How a VMM backs its guest is its profile (:mod:`workbench.profiles`): QEMU 11 gives a guest with private memory a
guest_memfd that nobody can map for each memory backend, beside the backend itself, which becomes the shared part; other
guests have the backends alone. Firecracker and others map the guest_memfd of ordinary guests.
"""

from __future__ import annotations

from typing import Any

from workbench import profiles
from workbench.bitmap_lists import format_list
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.topology.host import Host
from workbench.units import PAGE_SIZE, format_bytes
from workbench.vmconfig.machine import Backend, NodePolicy, VirtualMachine

BOUNCE_SHARE, BOUNCE_LEAST, BOUNCE_MOST = 6, 64 << 20, 1 << 30
"""arch/x86/mm/mem_encrypt.c: mem_encrypt_setup_arch: per cent of memory that a guest sets aside as bounce buffers."""


def private_file(name: str) -> str:
    """The guest_memfd beside a memory backend."""
    return f"{name}-private"


def file_name(backend: Backend, position: int) -> str:
    """The name of a backend as a file of the scenario."""
    plain = "".join(c for c in backend.name if c.isascii() and (c.isalnum() or c in "._:-"))[:40]
    return plain if plain == backend.name and plain else f"backend{position}"


def bounce_bytes(memory: int) -> int:
    """What a guest with encrypted memory shares from boot on: its bounce buffers."""
    wanted = min(max(memory * BOUNCE_SHARE // 100, BOUNCE_LEAST), BOUNCE_MOST)
    return min(wanted, memory) // PAGE_SIZE * PAGE_SIZE


def has_private_memory(vm: VirtualMachine) -> bool:
    """Whether pages lie in a guest_memfd that the VMM cannot map."""
    flags = profiles.VMM_PROFILES[vm.vmm].private_flags
    return profiles.VM_TYPES[vm.confidential].private_memory and flags is not None and "mmap" not in flags


def scenario_of(vm: VirtualMachine, host: Host) -> Scenario:
    """The scenario. What it assumes beyond the configuration goes to ``vm.notes``."""
    if not vm.backends:
        raise WorkbenchError(f"{vm.source}: no memory")
    vcpus = _places(vm, host)
    huge = _huge_pages(vm)
    operations = [*_task_settings(vm), *_files(vm, huge)]
    guest: dict[str, Any] = {
        "memory": sum(_whole_pages(backend.size) for backend in vm.backends),
        "vm_type": vm.confidential,
        "vmm_profile": vm.vmm,
        "vcpus": vcpus,
    }
    if huge:
        guest |= {"page_size": _HUGE[huge], "design": "hugetlb"}
    vm.notes.append("first touch: every vCPU an equal share of the memory of its virtual node, one vCPU after another")
    return Scenario.from_mapping(
        {
            "name": _printable(vm.name),
            "comment": f"imported from {_printable(vm.source)}",
            "host": host.model_dump(mode="json", exclude_defaults=True),
            "guest": guest,
            "tasks": [{"name": "vmm", **_place(_emulator_cpus(vm, host), host)}],
            "operations": operations,
            "output": "runs",
        }
    )


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:100] or "guest"


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


# ---------------------------------------------------------------------------------------------------------- threads


def _allowed(vm: VirtualMachine, host: Host) -> tuple[int, ...]:
    """Host CPUs that the threads may use."""
    cpus = {cpu for node in host.nodes for cpu in node.cpus if not vm.cpu_nodes or node.id in vm.cpu_nodes}
    if vm.cpus:
        cpus &= set(vm.cpus)
    if not cpus:
        raise WorkbenchError(f"{vm.source}: no CPU of this host is left for the VMM's threads")
    return tuple(sorted(cpus))


def _emulator_cpus(vm: VirtualMachine, host: Host) -> tuple[int, ...]:
    return _known(vm.emulator_cpus, host, "emulatorpin", vm.source) if vm.emulator_cpus else _allowed(vm, host)


def _known(cpus: tuple[int, ...], host: Host, what: str, source: str) -> tuple[int, ...]:
    known = {cpu for node in host.nodes for cpu in node.cpus}
    outside = sorted(set(cpus) - known)
    if outside:
        raise WorkbenchError(f"{source}: {what}: CPU {outside[0]} is not on this host")
    return cpus


def _place(cpus: tuple[int, ...], host: Host) -> dict[str, int]:
    """One CPU, or the node that has most of some CPUs."""
    if len(cpus) == 1:
        return {"cpu": cpus[0]}
    return {"node": max(_shares(cpus, host).items(), key=lambda item: (item[1], -item[0]))[0]}


def _shares(cpus: tuple[int, ...], host: Host) -> dict[int, int]:
    """How many of some CPUs each node has."""
    wanted = set(cpus)
    counts = {node.id: len(wanted.intersection(node.cpus)) for node in host.nodes}
    return {node: count for node, count in counts.items() if count}


def _places(vm: VirtualMachine, host: Host) -> list[dict[str, int]]:
    """Where each vCPU runs: its pin; threads that may run on several nodes are spread by the CPUs these have."""
    allowed = _allowed(vm, host)
    used: dict[tuple[int, ...], dict[int, int]] = {}
    places: list[dict[str, int]] = []
    loose = 0
    for vcpu in range(vm.vcpus):
        pin = vm.vcpu_pins.get(vcpu)
        cpus = allowed if pin is None else _known(pin, host, f"vcpupin {vcpu}", vm.source)
        shares = _shares(cpus, host)
        if not shares:
            raise WorkbenchError(f"{vm.source}: vCPU {vcpu} has no CPU of this host")
        if len(cpus) == 1:
            places.append({"cpu": cpus[0]})
            continue
        loose += len(shares) > 1
        taken = used.setdefault(cpus, dict.fromkeys(shares, 0))
        node = min(shares, key=lambda node: ((taken[node] + 1) / shares[node], node))
        taken[node] += 1
        places.append({"node": node})
    if loose:
        nodes = format_list(_shares(allowed, host))
        vm.notes.append(
            f"{loose} of {vm.vcpus} vCPU threads may run on several nodes ({nodes}): taken as spread by the CPUs of each; "
            "the scheduler may move them"
        )
    return places


def _task_settings(vm: VirtualMachine) -> list[dict[str, Any]]:
    operations: list[dict[str, Any]] = []
    if vm.cpuset_mems is not None:
        operations.append({"op": "set_mems_allowed", "mems": format_list(vm.cpuset_mems.nodes)})
    if vm.task_policy is not None:
        policy = _policy(vm.task_policy)
        tasks = ["vmm", *(f"vcpu{vcpu}" for vcpu in range(vm.vcpus))]
        operations += [{"op": "set_mempolicy", "task": task, **policy} for task in tasks]
    return operations


def _policy(policy: NodePolicy) -> dict[str, Any]:
    return {"mode": policy.mode, "nodes": format_list(policy.nodes)}


# ------------------------------------------------------------------------------------------------------------ files


_HUGE = {2 << 20: "2 MiB", 1 << 30: "1 GiB"}


def _huge_pages(vm: VirtualMachine) -> int:
    """Size of the huge pages that all of the guest's memory has, out of the pools of the host; 0 if it has not."""
    sizes = {backend.page_bytes for backend in vm.backends}
    size = next(iter(sizes))
    whole = all(backend.size % size == 0 and not backend.guest_memfd for backend in vm.backends)
    return (
        size
        if len(sizes) == 1 and size in _HUGE and whole and vm.vmm == "qemu-11" and not has_private_memory(vm)
        else 0
    )


def _files(vm: VirtualMachine, huge: int) -> list[dict[str, Any]]:
    private = has_private_memory(vm)
    shared_left = bounce_bytes(vm.memory) if private else 0
    made: list[dict[str, Any]] = []
    touched: list[dict[str, Any]] = []
    if private:
        vm.notes.append(
            f"shared memory: {format_bytes(shared_left)} of bounce buffers, set up at boot by vCPU 0 "
            "(arch/x86/mm/mem_encrypt.c); what the guest shares beyond is not known"
        )
    for position, backend in enumerate(vm.backends):
        name, size = file_name(backend, position), _whole_pages(backend.size)
        if vm.vmm != "qemu-11" or (backend.guest_memfd and not private):
            made.append({"op": "create", "file": name, "size": size})
        else:
            made.append({"op": "memfd", "file": name, "size": size} | ({"hugetlb": True} if huge else {}))
        if backend.policy is not None:
            made.append({"op": "mbind", "file": name, **_policy(backend.policy), "flags": ["strict", "move"]})
        if backend.page_bytes != PAGE_SIZE and not huge:
            vm.notes.append(f"{name}: pages of {format_bytes(backend.page_bytes)} are placed as pages of 4 KiB")
        if backend.preallocated:
            made.append({"op": "fault", "file": name, "by": "host", "task": "vmm"})
        users = backend.vcpus or tuple(range(vm.vcpus))
        if private:
            made.append({"op": "create", "file": private_file(name), "size": size})
            shared = min(shared_left, size)
            shared_left -= shared
            if shared and not backend.preallocated:
                touched.append({"op": "fault", "file": name, "by": "guest", "task": "vcpu0", "length": shared})
            touched += _first_touch(private_file(name), shared, size, users)
        elif not backend.preallocated:
            touched += _first_touch(name, 0, size, users, huge or PAGE_SIZE)
    return made + touched


def _first_touch(
    name: str, start: int, size: int, users: tuple[int, ...], unit: int = PAGE_SIZE
) -> list[dict[str, Any]]:
    pages = (size - start) // unit
    bounds = [start + pages * number // len(users) * unit for number in range(len(users) + 1)]
    return [
        {"op": "fault", "file": name, "by": "guest", "task": f"vcpu{vcpu}", "offset": low, "length": high - low}
        for vcpu, low, high in zip(users, bounds, bounds[1:], strict=False)
        if high > low
    ]

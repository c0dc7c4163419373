"""The scenario of a virtual machine on a host: its threads, its files, the calls its VMM makes, and who touches what first.

How a VMM backs its guest is its profile (:mod:`workbench.profiles`): QEMU 11 gives a guest with private memory a
guest_memfd that nobody can map for each memory backend, beside the backend itself, which becomes the shared part; other
guests have the backends alone. Firecracker and others map the guest_memfd of ordinary guests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench import profiles
from workbench.bitmap_lists import format_list
from workbench.errors import WorkbenchError, of_file
from workbench.scenario import Scenario
from workbench.topology.host import Host
from workbench.units import PAGE_SIZE, format_bytes
from workbench.vmconfig.automatic import choose
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
    with of_file(vm.source):
        return _scenario_of(vm, host)


def _scenario_of(vm: VirtualMachine, host: Host) -> Scenario:
    if not vm.backends:
        raise WorkbenchError("no memory; at least one page is expected")
    choose(vm, host)
    vcpus = _places(vm, host)
    huge = _huge_pages(vm, host)
    operations = [*_task_settings(vm), *_files(vm, huge)]
    guest: dict[str, Any] = {
        "memory": _whole_pages(sum(_whole_pages(backend.size) for backend in vm.backends), huge.bytes),
        "vm_type": vm.confidential,
        "vmm_profile": vm.vmm,
        "vcpus": vcpus,
    }
    boot: dict[str, Any] = {"transparent_hugepages": host.transparent_hugepages != "never"}
    if huge.design == "hugetlb":
        boot |= _pools(vm, huge, host)
    if huge.design:
        guest |= {"page_size": _HUGE[huge.bytes], "design": huge.design}
    vm.notes.append("first touch: every vCPU an equal share of the memory of its virtual node, one vCPU after another")
    return Scenario.from_mapping(
        {
            "name": _printable(vm.name),
            "comment": f"imported from {_printable(vm.source)}",
            "host": host.model_dump(mode="json", exclude_defaults=True),
            "guest": guest,
            "boot": boot,
            "tasks": [{"name": "vmm", **_place(_emulator_cpus(vm, host), host)}],
            "operations": operations,
            "output": "runs",
        }
    )


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:100] or "guest"


def _whole_pages(size: int, page: int = PAGE_SIZE) -> int:
    return -(-size // page) * page


# ---------------------------------------------------------------------------------------------------------- threads


def _allowed(vm: VirtualMachine, host: Host) -> tuple[int, ...]:
    """Host CPUs that the threads may use."""
    cpus = {cpu for node in host.nodes for cpu in node.cpus if not vm.cpu_nodes or node.id in vm.cpu_nodes}
    if vm.cpus:
        cpus &= set(vm.cpus)
    if not cpus:
        said = "no CPU of this host is left for the VMM's threads; at least one is expected"
        raise WorkbenchError(said, vm.lines.get("cpus", 0))
    return tuple(sorted(cpus))


def _emulator_cpus(vm: VirtualMachine, host: Host) -> tuple[int, ...]:
    return _known(vm.emulator_cpus, host, "emulatorpin", vm) if vm.emulator_cpus else _allowed(vm, host)


def _known(cpus: tuple[int, ...], host: Host, what: str, vm: VirtualMachine) -> tuple[int, ...]:
    known = {cpu for node in host.nodes for cpu in node.cpus}
    outside = sorted(set(cpus) - known)
    if outside:
        said = f"{what}: CPU {outside[0]} is not on this host, which has {format_list(known)}"
        raise WorkbenchError(said, vm.lines.get(what, 0))
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
        cpus = allowed if pin is None else _known(pin, host, f"vcpupin {vcpu}", vm)
        shares = _shares(cpus, host)
        if not shares:
            raise WorkbenchError(f"vCPU {vcpu} has no CPU of this host; at least one is expected")
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
_TRANSPARENT = 2 << 20
_POOL_SHARE = 14
"""Sixteenths of a node's free memory that pools and other memory of the guest may take together."""


@dataclass(frozen=True)
class _HugePages:
    """The one size of huge pages that a run has, and which backends have them; no design: none have."""

    bytes: int = PAGE_SIZE
    design: str = ""
    backends: tuple[str, ...] = ()


def _huge_pages(vm: VirtualMachine, host: Host) -> _HugePages:
    """Out of the pools of the host, where a backend asks for that; else transparent ones of anonymous memory."""
    pooled: dict[int, list[Backend]] = {}
    for backend in vm.backends:
        if backend.page_bytes in _HUGE and backend.size % backend.page_bytes == 0 and not backend.guest_memfd:
            pooled.setdefault(backend.page_bytes, []).append(backend)
    if pooled:
        size = max(pooled, key=lambda size: sum(backend.size for backend in pooled[size]))
        return _HugePages(size, "hugetlb", tuple(backend.name for backend in pooled[size]))
    anonymous = [backend for backend in vm.backends if backend.anonymous]
    if (
        vm.vmm != "qemu-11"
        or not anonymous
        or host.transparent_hugepages == "never"
        or any(b.size % _TRANSPARENT for b in anonymous)
    ):
        return _HugePages()
    if host.transparent_hugepages is None:
        vm.notes.append("transparent huge pages: the host's setting is not known; taken as madvise, which VMMs do")
    return _HugePages(_TRANSPARENT, "thp", tuple(backend.name for backend in anonymous))


def _pools(vm: VirtualMachine, huge: _HugePages, host: Host) -> dict[str, Any]:
    """Pools of a host that says nothing of them, where other memory needs room beside: all that the guest asks, on each node."""
    others = sum(backend.size for backend in vm.backends if backend.name not in huge.backends)
    if has_private_memory(vm):
        others += vm.memory
    if not others or any(node.hugetlb for node in host.nodes):
        return {}
    wanted = sum(backend.size for backend in vm.backends if backend.name in huge.backends) // huge.bytes
    pools = {}
    for node in host.nodes:
        free = node.memory_bytes if node.free_bytes is None else node.free_bytes
        room = max(0, free * _POOL_SHARE // 16 - others) if not node.movable else 0
        pools[node.id] = min(wanted, room // huge.bytes)
    vm.notes.append(
        "pools of huge pages: the host's are not known; taken as all the guest asks on each node that has room"
    )
    return {"hugetlb_pages": pools}


def _files(vm: VirtualMachine, huge: _HugePages) -> list[dict[str, Any]]:
    private = has_private_memory(vm)
    shared_left = bounce_bytes(vm.memory) if private else 0
    made: list[dict[str, Any]] = []
    touched: list[dict[str, Any]] = []
    small = {"page_size": "4 KiB"} if huge.design else {}
    if private:
        vm.notes.append(
            f"shared memory: {format_bytes(shared_left)} of bounce buffers, set up at boot by vCPU 0 "
            "(arch/x86/mm/mem_encrypt.c); what the guest shares beyond is not known"
        )
    for position, backend in enumerate(vm.backends):
        name, size = file_name(backend, position), _whole_pages(backend.size)
        has_huge = backend.name in huge.backends
        if (vm.vmm != "qemu-11" and not has_huge) or (backend.guest_memfd and not private):
            made.append({"op": "create", "file": name, "size": size, **small})
        else:
            kind = {"anonymous": True} if backend.anonymous else {"hugetlb": True} if has_huge else {}
            made.append({"op": "memfd", "file": name, "size": size, **kind})
        if backend.policy is not None:
            made.append({"op": "mbind", "file": name, **_policy(backend.policy), "flags": ["strict", "move"]})
        if backend.page_bytes != PAGE_SIZE and not has_huge:
            vm.notes.append(f"{name}: pages of {format_bytes(backend.page_bytes)} are placed as pages of 4 KiB")
        if backend.anonymous and not has_huge and huge.design:
            vm.notes.append(f"{name}: transparent huge pages beside pools are placed as pages of 4 KiB")
        if backend.preallocated:
            made.append({"op": "fault", "file": name, "by": "host", "task": "vmm"})
        users = backend.vcpus or tuple(range(vm.vcpus))
        if private:
            made.append({"op": "create", "file": private_file(name), "size": size, **small})
            shared = min(shared_left, size)
            shared_left -= shared
            if shared and not backend.preallocated:
                touched.append({"op": "fault", "file": name, "by": "guest", "task": "vcpu0", "length": shared})
            touched += _first_touch(private_file(name), shared, size, users)
        elif not backend.preallocated:
            touched += _first_touch(name, 0, size, users, huge.bytes if has_huge else PAGE_SIZE)
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

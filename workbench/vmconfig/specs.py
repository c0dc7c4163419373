"""Virtual machines from JSON, YAML and TOML: Firecracker's machine configuration, kubevirt, kata-containers."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workbench.errors import WorkbenchError, reason
from workbench.limits import MAX_VCPUS
from workbench.units import PAGE_SIZE
from workbench.vmconfig import words
from workbench.vmconfig.machine import Backend, VirtualMachine

_FIRECRACKER = {"boot-source", "drives", "network-interfaces", "balloon", "vsock", "logger", "metrics", "mmds-config", "entropy",
                "cpu-config", "serial", "pmem", "memory-hotplug"}  # fmt: skip


@contextmanager
def at_field(text: str) -> Iterator[None]:
    """What is refused inside stands where the fields that it names first stand in the text."""
    try:
        yield
    except WorkbenchError as error:
        error.at = error.at or _line_of(text, str(error))
        raise


def _line_of(text: str, message: str) -> int:
    """The line of the last key of ``a.b: c: what`` that comes after the ones before it; 0 if none is there."""
    position, line = 0, 0
    for part in message.split(": ")[:3]:
        for key in re.findall(r"[A-Za-z][\w-]{1,60}", part)[:8]:
            found = re.compile(rf"(?<![\w-])[\"']?{re.escape(key)}[\"'\]]?\s{{0,9}}[:=\]]").search(text, position)
            if found is not None:
                position, line = found.end(), text.count("\n", 0, found.end()) + 1
    return line


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WorkbenchError(f"{what}: {str(value)[:30]!r} is not a mapping")
    return value


def _vcpus(value: Any, what: str) -> int:
    count = words.whole(value, what, MAX_VCPUS)
    if count < 1:
        raise WorkbenchError(f"{what}: {count}; 1 to {MAX_VCPUS} vCPUs are expected")
    return count


# ----------------------------------------------------------------------------------------------------- Firecracker


def read_firecracker(value: Mapping[str, Any], source: str) -> VirtualMachine:
    """``machine-config`` of Firecracker (docs/api_requests, src/vmm/src/vmm_config/machine_config.rs).

    It has no NUMA settings; its guest's memory is a guest_memfd that it maps (MMAP, INIT_SHARED), or memory of its own.
    """
    config = _mapping(value.get("machine-config", value), "machine-config")
    vm = VirtualMachine(source=source, vmm="firecracker")
    vm.vcpus = _vcpus(config.get("vcpu_count", 1), "machine-config: vcpu_count")
    pages = config.get("huge_pages", "None")
    if pages not in ("None", "2M"):
        raise WorkbenchError(f"machine-config: huge_pages={str(pages)[:20]!r}; Firecracker has None and 2M")
    mib = words.whole(config.get("mem_size_mib", 128), "machine-config: mem_size_mib", 1 << 26)
    vm.backends = [Backend("guest", mib << 20, page_bytes=2 << 20 if pages == "2M" else PAGE_SIZE)]
    if not mib:
        raise WorkbenchError("machine-config: mem_size_mib: 0; at least 1 is expected")
    known = {"vcpu_count", "mem_size_mib", "smt", "track_dirty_pages", "huge_pages", "cpu_template", "secret_free"}
    vm.unknown += [f"machine-config: {key}"[:120] for key in config if key not in known]
    if "machine-config" in value:
        vm.unknown += [str(key)[:120] for key in value if key not in _FIRECRACKER | {"machine-config"}]
    return vm


# --------------------------------------------------------------------------------------------------------- kubevirt


def read_kubevirt(value: Mapping[str, Any], source: str) -> VirtualMachine:
    """A VirtualMachine or VirtualMachineInstance of kubevirt (staging/src/kubevirt.io/api/core/v1/schema.go).

    virt-launcher makes a libvirt domain of it: memory follows the pod's cpuset and, with guestMappingPassthrough, is
    bound by virtual node to the nodes of the pinned CPUs, which are chosen when the pod starts
    (:mod:`workbench.vmconfig.automatic`).
    """
    spec = _mapping(value.get("spec"), "spec")
    if value.get("kind") != "VirtualMachineInstance":
        spec = _mapping(_mapping(spec.get("template"), "spec.template").get("spec"), "spec.template.spec")
    domain = _mapping(spec.get("domain"), "domain")
    vm = VirtualMachine(source=source, vmm="qemu-11")
    vm.name = str(_mapping(value.get("metadata"), "metadata").get("name", "guest"))[:100]
    cpu = _mapping(domain.get("cpu"), "domain.cpu")
    for key in ("sockets", "cores", "threads"):
        vm.vcpus *= _vcpus(cpu.get(key, 1), f"domain.cpu.{key}")
    if vm.vcpus > MAX_VCPUS:
        raise WorkbenchError(f"domain.cpu: {vm.vcpus} vCPUs; 1 to {MAX_VCPUS} are expected")
    memory = _mapping(domain.get("memory"), "domain.memory")
    requests = _mapping(
        _mapping(domain.get("resources"), "domain.resources").get("requests"), "domain.resources.requests"
    )
    amount = memory.get("guest", requests.get("memory"))
    if amount is None:
        raise WorkbenchError(
            "neither domain.memory.guest nor domain.resources.requests.memory is there; one is expected"
        )
    page = PAGE_SIZE
    if "hugepages" in memory:
        page = _quantity(_mapping(memory["hugepages"], "hugepages").get("pageSize"), "domain.memory.hugepages.pageSize")
    vm.backends = [
        Backend("pc.ram", _quantity(amount, "domain.memory.guest"), page_bytes=page, anonymous=page == PAGE_SIZE)
    ]
    security = _mapping(domain.get("launchSecurity"), "domain.launchSecurity")
    for key, kind in (("snp", "snp"), ("tdx", "tdx")):
        if key in security:
            vm.confidential = kind  # type: ignore[assignment]
    vm.unknown += [f"domain.launchSecurity.{key}"[:120] for key in security if key not in ("snp", "tdx")]
    vm.dedicated_cpus = _true(cpu.get("dedicatedCpuPlacement"))
    numa = _mapping(cpu.get("numa"), "domain.cpu.numa")
    vm.guest_nodes_follow = "guestMappingPassthrough" in numa
    if vm.guest_nodes_follow and not vm.dedicated_cpus:
        raise WorkbenchError("domain.cpu.numa: guestMappingPassthrough needs dedicatedCpuPlacement, as kubevirt says")
    vm.unknown += [f"domain.cpu.numa.{key}"[:120] for key in numa if key != "guestMappingPassthrough"]
    known_cpu = {"sockets", "cores", "threads", "maxSockets", "model", "features", "dedicatedCpuPlacement", "numa",
                 "isolateEmulatorThread", "realtime"}  # fmt: skip
    vm.unknown += [f"domain.cpu.{key}"[:120] for key in cpu if key not in known_cpu]
    vm.unknown += [f"domain.memory.{key}"[:120] for key in memory if key not in ("guest", "hugepages", "maxGuest")]
    known = {"cpu", "memory", "resources", "launchSecurity", "devices", "machine", "firmware", "features", "clock", "chassis",
             "ioThreadsPolicy", "ioThreads"}  # fmt: skip
    vm.unknown += [f"domain.{key}"[:120] for key in domain if key not in known]
    return vm


_QUANTITIES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


def _quantity(value: Any, what: str) -> int:
    """A Kubernetes quantity: ``4Gi``, ``512M``, ``1.5Gi``."""
    text = str(value).strip()[:64]
    number = text.rstrip("kKMGTi")
    unit = text[len(number) :]
    whole, _, part = number.partition(".")
    valid = (
        whole.isascii()
        and whole.isdecimal()
        and len(whole) < 16
        and (not part or (part.isascii() and part.isdecimal()))
    )
    if not valid or unit not in _QUANTITIES:
        raise WorkbenchError(f"{what}: {text[:30]!r} is not a quantity such as 4Gi")
    return int(float(number) * _QUANTITIES[unit]) if part else int(whole) * _QUANTITIES[unit]


# ------------------------------------------------------------------------------------------------------------- kata


_KATA = "io.katacontainers.config.hypervisor."


_KATA_KNOWN = """
    default_vcpus default_memory enable_hugepages enable_mem_prealloc confidential_guest sev_snp_guest enable_numa
    numa_mapping enable_vcpus_pinning
"""
_KATA_IRRELEVANT = """
    path kernel image initrd rootfs_type machine_type machine_accelerators enable_annotations valid_hypervisor_paths
    valid_jailer_paths jailer_path kernel_params kernel_verity_params firmware firmware_volume cpu_features
    seccompsandbox default_maxvcpus default_maxmemory default_bridges memory_slots shared_fs virtio_fs_daemon
    valid_virtio_fs_daemon_paths virtio_fs_cache virtio_fs_cache_size virtio_fs_extra_args virtio_fs_queue_size
    block_device_driver block_device_aio block_device_cache_set block_device_cache_direct block_device_cache_noflush
    disable_block_device_use enable_iothreads indep_iothreads valid_entropy_sources entropy_source enable_debug
    guest_hook_path disable_image_nvdimm hotplug_vfio cold_plug_vfio hot_plug_vfio pcie_root_port pcie_switch_port
    disable_vhost_net rx_rate_limiter_max_rate tx_rate_limiter_max_rate enable_guest_swap guest_swap_path use_legacy_serial
    disable_selinux disable_guest_selinux snp_guest_policy tdx_quote_generation_service_socket_port rootless
    extra_monitor_socket msize_9p pflashes reclaim_guest_freed_memory static_sandbox_resource_mgmt disable_nesting_checks
"""


def read_kata(value: Mapping[str, Any], source: str) -> VirtualMachine:
    """The ``[hypervisor.*]`` table of a configuration.toml, or annotations ``io.katacontainers.config.hypervisor.*``."""
    if "hypervisor" in value:
        tables = _mapping(value["hypervisor"], "hypervisor")
        if len(tables) != 1:
            raise WorkbenchError(
                f"hypervisor: [hypervisor.*] is {', '.join(map(str, tables))[:60] or 'none'}; one is expected"
            )
        hypervisor, settings = next(iter(tables.items()))
    else:
        annotations = _mapping(_mapping(value.get("metadata"), "metadata").get("annotations"), "metadata.annotations")
        hypervisor = "qemu"
        settings = {
            str(key).removeprefix(_KATA): item for key, item in annotations.items() if str(key).startswith(_KATA)
        }
        if not settings:
            raise WorkbenchError(f"metadata: no annotation {_KATA}*; a pod without them has no settings of its VM")
    settings = _mapping(settings, f"hypervisor.{hypervisor}")
    vm = VirtualMachine(source=source, vmm="firecracker" if hypervisor == "firecracker" else "qemu-11", name="kata")
    if hypervisor not in ("qemu", "firecracker"):
        vm.vmm = "own"
        vm.notes.append(f"hypervisor {str(hypervisor)[:40]}: taken as a VMM that maps its guest_memfd")
    vm.vcpus = _vcpus(
        max(1, words.whole(_kata_vcpus(settings.get("default_vcpus", 1)), "default_vcpus", MAX_VCPUS)), "default_vcpus"
    )
    mib = words.whole(_plain(settings.get("default_memory", 2048)), "default_memory", 1 << 26)
    if not mib:
        raise WorkbenchError("default_memory: 0 MiB; at least 1 is expected")
    page = 2 << 20 if _true(settings.get("enable_hugepages")) else PAGE_SIZE
    # With virtio-fs, its default, kata keeps memory in a file of /dev/shm.
    anonymous = page == PAGE_SIZE and settings.get("shared_fs") in ("none", "virtio-9p")
    prealloc = _true(settings.get("enable_mem_prealloc"))
    vm.backends = [Backend("dimm1", mib << 20, page_bytes=page, preallocated=prealloc, anonymous=anonymous)]
    if _true(settings.get("confidential_guest")):
        vm.confidential = "snp" if _true(settings.get("sev_snp_guest")) else "tdx"
        if "sev_snp_guest" not in settings:
            vm.notes.append("confidential_guest without sev_snp_guest: taken as TDX, as kata does on such CPUs")
    known = {*_KATA_KNOWN.split(), *_KATA_IRRELEVANT.split()}
    vm.unknown += [f"hypervisor.{key}"[:120] for key in settings if key not in known]
    for key in ("enable_numa", "numa_mapping", "enable_vcpus_pinning"):
        if settings.get(key) not in (None, False, [], ""):
            vm.notes.append(f"{key}: kata places vCPUs when the sandbox starts; not modelled")
    return vm


def _kata_vcpus(value: Any) -> Any:
    """Fractions are rounded up; below 0 stands for all CPUs of the host (src/runtime/config, default_vcpus)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        raise WorkbenchError(
            f"default_vcpus: {value} stands for all CPUs of the machine that kata runs on; give their number"
        )
    return math.ceil(value) if isinstance(value, float) and math.isfinite(value) else value


def _true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def from_toml(text: str) -> Mapping[str, Any]:
    """TOML as a mapping; errors are one line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"not valid TOML: {reason(error)}") from None


def from_json(text: str) -> Mapping[str, Any]:
    """A JSON object as a mapping; errors are one line."""
    try:
        return _mapping(json.loads(text), "import")
    except (ValueError, RecursionError) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(f"not valid JSON: {reason(error)}") from None

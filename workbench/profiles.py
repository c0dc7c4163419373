"""Which rules hold: the kernel, the type of the VM and the VMM, each rule keyed by them here with its evidence.

A *kernel profile* is what one Linux (or one posted series) does, a *VM type* what KVM_CREATE_VM was given, a *VMM profile*
what a released VMM really calls. Evidence is ``recorded`` (seen on that running kernel), ``source`` (read in its source),
``mail`` (a posted series or its discussion) or ``assumed``. Nothing else in the project compares names of profiles: the
engine asks the records below.

Linux: ``virt/kvm/guest_memfd.c`` (``kvm_gmem_create``, ``__kvm_gmem_set_attributes``), ``arch/x86/kvm/x86.c``
(``kvm_arch_supports_gmem_init_shared``, ``kvm_arch_has_private_mem``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from workbench.errors import WorkbenchError
from workbench.names import unknown

Evidence = Literal["recorded", "source", "mail", "assumed"]
ConversionMode = Literal["out-of-place", "in-place"]


@dataclass(frozen=True)
class Rule:
    """A rule in words, and how it is known."""

    text: str
    evidence: Evidence
    source: str


# ---------------------------------------------------------------------------------------------------- VM types


@dataclass(frozen=True)
class VmType:
    """What KVM_CREATE_VM makes. ``number`` is its argument on x86; ``private_memory`` is kvm_arch_has_private_mem.

    ``largest_leaf``: the largest second-stage mapping of its private memory. SNP: the RMP has no 1 GiB state
    (``arch/x86/kvm/svm/sev.c: sev_gmem_max_mapping_level``); TDX: Linux 7.3 maps 4 KiB only
    (``arch/x86/kvm/vmx/tdx.c: tdx_sept_map_leaf_spte``).
    """

    name: str
    number: int
    private_memory: bool
    largest_leaf: str
    text: str


VM_TYPES = {
    made.name: made
    for made in (
        VmType("none", 0, False, "1 GiB", "an ordinary VM (KVM_X86_DEFAULT_VM)"),
        VmType(
            "sw_protected",
            1,
            True,
            "1 GiB",
            "KVM_X86_SW_PROTECTED_VM: private memory without hardware, for development",
        ),
        VmType("snp", 4, True, "2 MiB", "KVM_X86_SNP_VM: AMD SEV-SNP"),
        VmType("tdx", 5, True, "4 KiB", "KVM_X86_TDX_VM: Intel TDX"),
    )
}


# ----------------------------------------------------------------------------------------------------- kernels


@dataclass(frozen=True)
class KernelProfile:
    """What guest_memfd can do on one kernel.

    ``conversion`` lists the modes it has, the one that people use first. ``huge_pages``: a file may be backed by 2 MiB and
    1 GiB pages. ``generation`` names the rules of conversion in place (:mod:`workbench.tracking.generations`), empty where
    the kernel has none. ``private_init_shared``: INIT_SHARED is allowed for types with private memory too.
    ``preserves_policy``: a file handed over by kexec keeps its mempolicy. ``preserves_guest_memfd``: a live-update session takes
    one, and a kexec keeps those of the session alone. ``maps`` (from 6.18 on): a file may be created
    with MMAP and INIT_SHARED, and a VM without private memory may use one. ``file_policy`` (from 6.19 on): mbind through a
    mapping sets the policy of the file; where it is False the VMA keeps it and no allocation of the file looks there.
    ``auto_weights`` (from 6.16 on): interleave weights follow the bandwidths that firmware tells.
    ``slabs_by_policy`` (until 6.19): a new slab comes from where the task's policy says, not from the CPU's node
    (``mm/slub.c`` before all caches had sheaves). ``reclaims_tables`` (from 6.14 on): MADV_DONTNEED frees PTE tables that it
    empties (``mm/pt_reclaim.c``). ``migratable``: pages of a file of a VM without private memory move when asked to
    (MPOL_MF_MOVE, migrate_pages, cpusets, compaction) and may lie in ZONE_MOVABLE and CMA. ``distributions`` are those that
    ship it or say that they carry its rules; ``(assumed)`` where only the base version is known.
    """

    name: str
    text: str
    conversion: tuple[ConversionMode, ...]
    huge_pages: bool = False
    generation: str = ""
    private_init_shared: bool = False
    preserves_policy: bool = False
    preserves_guest_memfd: bool = False
    maps: bool = True
    file_policy: bool = True
    auto_weights: bool = True
    slabs_by_policy: bool = False
    reclaims_tables: bool = True
    migratable: bool = False
    distributions: tuple[str, ...] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)


_SECTION = "guest_memfd on 7.3.4"
_IN_PLACE = "series 'guest_memfd in-place conversion' v13 (2026-09-10), applied for 7.4"
_HUGE = "work in progress of 2026 on 1 GiB pages, as carried by the public trees AMDESE/linux-kvm and intel/tdx"
_RFC = "RFC v2 'New KVM ioctl to convert guest_memfd' (May 2025)"

_PRESERVATION = "series 'guest_memfd preservation' v4 (2026-07-28)"
_MIGRATABLE = "series 'migratable guest_memfd' of 2026-06-11, 3 patches"

_HISTORY = "datasets/linux/history.yaml"
_NO_MAPPING = {
    "create": Rule("flags 0 only: MMAP and INIT_SHARED are EINVAL", "recorded", _HISTORY),
    "mbind": Rule("there is no mapping to call it on: the policy of the task decides", "recorded", _HISTORY),
    "convert": Rule("KVM_SET_MEMORY_ATTRIBUTES on the VM; EINVAL without private memory", "recorded", _HISTORY),
}
_FILE_POLICY = Rule("the policy of the file decides", "recorded", _HISTORY)
_FILE_POLICY_READ = Rule("the policy of the file decides", "source", "virt/kvm/guest_memfd.c: kvm_gmem_set_policy")

KERNEL_PROFILES = {
    made.name: made
    for made in (
        KernelProfile(
            "6.12",
            "Linux 6.12: private memory only, never mapped; interleave weights are 1 until somebody sets them",
            ("out-of-place",),
            maps=False,
            file_policy=False,
            auto_weights=False,
            distributions=("Debian 13", "RHEL 10 (assumed)", "SLES 16 (assumed)"),
            slabs_by_policy=True,
            reclaims_tables=False,
            rules=_NO_MAPPING,
        ),
        KernelProfile(
            "6.16",
            "Linux 6.16: as 6.12; interleave weights follow the bandwidths that firmware tells",
            ("out-of-place",),
            maps=False,
            file_policy=False,
            slabs_by_policy=True,
            rules=_NO_MAPPING,
        ),
        KernelProfile(
            "6.17",
            "Linux 6.17: as 6.16",
            ("out-of-place",),
            maps=False,
            file_policy=False,
            slabs_by_policy=True,
            rules=_NO_MAPPING,
        ),
        KernelProfile(
            "6.18",
            "Linux 6.18: mapping and INIT_SHARED for ordinary VMs; mbind is accepted and has no effect on placement",
            ("out-of-place",),
            file_policy=False,
            slabs_by_policy=True,
            rules={
                "mbind": Rule(
                    "0; the VMA keeps the policy, which no allocation of the file looks at", "recorded", _HISTORY
                )
            },
        ),
        KernelProfile(
            "6.19",
            "Linux 6.19: the file has a policy of its own",
            ("out-of-place",),
            slabs_by_policy=True,
            rules={"mbind": _FILE_POLICY_READ},
        ),
        KernelProfile(
            "7.0",
            "Linux 7.0: as 6.19",
            ("out-of-place",),
            distributions=("Ubuntu 26.04 (assumed)",),
            rules={"mbind": _FILE_POLICY_READ},
        ),
        KernelProfile("7.1", "Linux 7.1: as 7.0", ("out-of-place",), rules={"mbind": _FILE_POLICY_READ}),
        KernelProfile("7.2", "Linux 7.2: as 7.1", ("out-of-place",), rules={"mbind": _FILE_POLICY}),
        KernelProfile(
            "7.3",
            "Linux 7.3: policy per inode, private memory by attributes of the VM and a second backend for what is shared",
            ("out-of-place",),
            rules={
                "init_shared": Rule("EINVAL for types with private memory", "recorded", _SECTION),
                "convert": Rule(
                    "KVM_SET_MEMORY_ATTRIBUTES on the VM; EINVAL without private memory", "recorded", _SECTION
                ),
                "convert_in_place": Rule("ENOTTY: the file has no such ioctl", "source", "virt/kvm/guest_memfd.c"),
                "kexec": Rule(
                    "posted, not merged: folios are preserved, the mempolicy is not",
                    "mail",
                    "series 'guest_memfd preservation' v4 (2026-07-28); mm/memfd_luo.c likewise",
                ),
            },
        ),
        KernelProfile(
            "7.4",
            "Linux 7.4: as 7.3, and conversion in place (module parameter kvm.gmem_in_place_conversion)",
            ("in-place", "out-of-place"),
            generation="C",
            private_init_shared=True,
            rules={
                "init_shared": Rule("allowed for every type while conversion in place is on", "source", _IN_PLACE),
                "convert_in_place": Rule(
                    "EINVAL without private memory, EAGAIN with error_offset while a folio is held", "source", _IN_PLACE
                ),
                "set_memory_attributes": Rule(
                    "ENOTTY, and KVM_CAP_MEMORY_ATTRIBUTES 0, while conversion in place is on", "source", _IN_PLACE
                ),
            },
        ),
        KernelProfile(
            "proposal-hugetlb",
            "proposed: hugetlb pages split and merged block by block as memory is converted in place (generation C)",
            ("in-place",),
            huge_pages=True,
            generation="C",
            private_init_shared=True,
            rules={
                "convert_in_place": Rule("block by block; what lies before a refusal is converted", "recorded", _HUGE),
                "init_shared": Rule(
                    "with huge pages: EINVAL; an ordinary VM's file whose flags are left out starts shared (assumed)",
                    "recorded",
                    _HUGE,
                ),
            },
        ),
        KernelProfile(
            "proposal-hugetlb-stock-xarray",
            "as proposal-hugetlb on the lib/xarray.c of 7.3: a page-cache entry of 1 GiB cannot be split (ENOMEM)",
            ("in-place",),
            huge_pages=True,
            generation="C-stock-xarray",
            private_init_shared=True,
            rules={"convert_in_place": Rule("1 GiB to 4 KiB: ENOMEM", "recorded", "stock-xarray/S01 to S05")},
        ),
        KernelProfile(
            "proposal-hugetlb-rfc2",
            "proposed in May 2025: hugetlb pages, a conversion is all or nothing (generation B)",
            ("in-place",),
            huge_pages=True,
            generation="B",
            private_init_shared=True,
            rules={"convert_in_place": Rule("all or nothing", "recorded", _RFC)},
        ),
        KernelProfile(
            "proposal-two-stage",
            "idea: as proposal-hugetlb, a 1 GiB page is split into 2 MiB pages first and only the touched one further",
            ("in-place",),
            huge_pages=True,
            generation="two-stage",
            private_init_shared=True,
            rules={
                "convert_in_place": Rule(
                    "as generation C, splits in two stages", "mail", "LPC 2025 guest_memfd session"
                )
            },
        ),
        KernelProfile(
            "proposal-no-struct-page",
            "proposed: private memory without struct page, offset -> pfn map fed by a PFN range allocator",
            ("in-place",),
            preserves_policy=True,
            huge_pages=True,
            generation="C",
            private_init_shared=True,
            rules={
                "convert_in_place": Rule("extents change maps, nothing is split", "mail", "kvm list, March 2025"),
                "kexec": Rule("the map and the policy are handed over", "assumed", "a format of this project"),
            },
        ),
        KernelProfile(
            "proposal-contiguous",
            "idea: 4 KiB folios in contiguous ranges, mapped as large as a range is in one state; nothing is restructured",
            ("in-place",),
            huge_pages=True,
            generation="C",
            private_init_shared=True,
            rules={
                "convert_in_place": Rule("as 4 KiB folios: all of the range or nothing", "assumed", _IN_PLACE),
                "punch_hole": Rule("whole ranges only, so that they stay whole", "assumed", _HUGE),
            },
        ),
        KernelProfile(
            "proposal-thp",
            "idea: 2 MiB folios of the buddy allocator without a pool, split and re-formed as memory is converted in place",
            ("in-place",),
            huge_pages=True,
            generation="C",
            private_init_shared=True,
            rules={
                "convert_in_place": Rule("block by block, as generation C", "assumed", _HUGE),
                "punch_hole": Rule("whole 2 MiB only", "assumed", _HUGE),
            },
        ),
        KernelProfile(
            "proposal-migratable",
            "proposed: as 7.4, and pages of VMs without private memory move (MPOL_MF_MOVE, migrate_pages, cpusets, compaction)",
            ("in-place", "out-of-place"),
            generation="C",
            private_init_shared=True,
            migratable=True,
            rules={
                "mbind": Rule("MPOL_MF_MOVE moves pages, but for pinned ones", "mail", _MIGRATABLE),
                "migrate_pages": Rule("moves pages, as those of tmpfs", "mail", _MIGRATABLE),
            },
        ),
        KernelProfile(
            "proposal-preservation",
            "proposed: as 7.4, and a live-update session takes guest_memfds that are wholly shared through a kexec",
            ("in-place", "out-of-place"),
            generation="C",
            private_init_shared=True,
            preserves_guest_memfd=True,
            rules={
                "preserve": Rule(
                    "wholly shared, 4 KiB folios; then fallocate and new faults: EPERM", "mail", _PRESERVATION
                ),
                "kexec": Rule(
                    "folios of files in the session are preserved, the mempolicy is not", "mail", _PRESERVATION
                ),
            },
        ),
    )
}
"""Kernels by name, oldest first."""


# -------------------------------------------------------------------------------------------------------- VMMs


@dataclass(frozen=True)
class VmmProfile:
    """What a VMM calls: ``flags`` of its guest_memfd for ordinary VMs and for those with private memory (None: it has no
    such VM), and where it puts what is shared under conversion out of place."""

    name: str
    text: str
    ordinary_flags: tuple[str, ...] | None
    private_flags: tuple[str, ...] | None
    shared_backend: Literal["memfd", "anonymous"]
    source: str


VMM_PROFILES = {
    made.name: made
    for made in (
        VmmProfile(
            "qemu-11",
            "QEMU 11: a private guest_memfd is never mapped, so that mbind cannot reach it; host-nodes= and policy= bind the "
            "shared backend only",
            ("mmap", "init_shared"),
            (),
            "memfd",
            "QEMU 11.1: system/physmem.c ram_block_add (flags 0); docs/system, backend guest-memfd (September 2026)",
        ),
        VmmProfile(
            "firecracker",
            "Firecracker: the guest_memfd of an ordinary VM is mapped, so that mbind reaches it; no confidential VMs",
            ("mmap", "init_shared"),
            None,
            "anonymous",
            "Firecracker's guest_memfd support for secret-free VMs",
        ),
        VmmProfile(
            "own",
            "a VMM that maps the guest_memfd wherever the kernel lets it",
            ("mmap", "init_shared"),
            ("mmap",),
            "memfd",
            "the kernel's own limits",
        ),
    )
}

WAY_TO_BIND_PRIVATE_MEMORY = (
    "to bind private memory: pin the vCPUs, numactl around the VMM, a cpuset (libvirt: numatune memory mode='strict' or "
    "'restrictive'), or a VMM that maps the guest_memfd"
)
"""For people whose policy does not reach it (QEMU 11; kata-containers 12948, 12125; kubevirt VEP 135)."""

_Record = TypeVar("_Record", VmType, KernelProfile, VmmProfile)


def look_up(records: Mapping[str, _Record], name: str, what: str) -> _Record:
    """The record of that name; else one line with the names that there are."""
    if name in records:
        return records[name]
    raise WorkbenchError(f"{what}: {unknown(name, records)}")


def of_version(text: str) -> tuple[KernelProfile, bool]:
    """The profile of a kernel by its version line, and whether it is that very version (else the nearest older one).

    Raises WorkbenchError where no version is named.

    >>> profile, same = of_version("Linux version 6.13.7 (builder@host)")
    >>> profile.name, same
    ('6.12', False)
    """
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None:
        raise WorkbenchError(f"kernel: {text[:60]!r} names no version")
    wanted = (int(found[1]), int(found[2]))
    released = {tuple(int(part) for part in name.split(".")): name for name in KERNEL_PROFILES if name[0].isdecimal()}
    nearest = max((version for version in released if version <= wanted), default=min(released))
    return KERNEL_PROFILES[released[nearest]], nearest == wanted


def having(needed: Iterable[KernelProfile | VmType]) -> str:
    """Names for a message that says where something exists."""
    return ", ".join(profile.name for profile in needed) or "no profile"


def with_attributes() -> list[KernelProfile]:
    """Kernels on which the VM has memory attributes, so that memory converts out of place."""
    return [profile for profile in KERNEL_PROFILES.values() if "out-of-place" in profile.conversion]


def with_private_memory() -> list[VmType]:
    """VM types that have private memory."""
    return [made for made in VM_TYPES.values() if made.private_memory]


def without_private_memory(name: str) -> str:
    """Why a VM of this type converts nothing, for a message."""
    return f"VM type {name} has no private memory; {having(with_private_memory())} have"


def with_private_init_shared() -> list[KernelProfile]:
    """Kernels on which a file of a VM with private memory may start shared, while pages convert in place."""
    return [profile for profile in KERNEL_PROFILES.values() if profile.private_init_shared]


def with_in_place_conversion() -> list[KernelProfile]:
    """Kernels on which a file's pages change sides in place."""
    return [profile for profile in KERNEL_PROFILES.values() if "in-place" in profile.conversion]


def with_huge_pages() -> list[KernelProfile]:
    """Kernels whose guest_memfd may be backed by huge pages."""
    return [profile for profile in KERNEL_PROFILES.values() if profile.huge_pages]

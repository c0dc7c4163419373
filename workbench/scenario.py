"""A scenario is a value: a host, a guest and the operations on it, read from YAML or built in Python and validated.

The widget edits it, the notebook is parameterised by it, a sweep varies it, the recorder replays it on a real kernel
and the report prints it. Sizes and offsets are bytes, written as integers or as texts such as ``"2 MiB"``; nodes are
Linux node ids, written as ``"0-3,8"`` or as lists.

With ``strict: true`` (the default) a nodemask outside the host or empty where nodes are needed is an input error; with
``strict: false`` it goes to the simulated kernel, which answers with an errno as Linux does.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from workbench import garbage, profiles, shown
from workbench import policy as mempolicy
from workbench.design import DESIGNS
from workbench.errors import WorkbenchError
from workbench.limits import (
    FILE_BYTES,
    FILE_NUMBER,
    MAX_NUMNODES,
    MAX_OPERATIONS,
    MAX_TASKS,
    MAX_VCPUS,
    NODE_PAGES,
    RATE,
    WORD,
)
from workbench.safe_yaml import dump, load_text
from workbench.safe_yaml import named as named_yaml
from workbench.texts import Name, Prose
from workbench.topology.host import Host
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes, page_size_name, parse_bytes
from workbench.validation import first_line, number_only, truth_only

SCHEMA_VERSION = 1


_DIGITS = re.compile("[-+]?[0-9]{1,25}")


def _no_truth(value: object) -> object:
    """``true`` is no number, though Python counts it as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not a truth value")
    if isinstance(value, str) and not _DIGITS.fullmatch(value):  # pydantic takes 4_096 and digits of other scripts
        raise ValueError(f"must be a whole number, not the text {ascii(value)[:60]}")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(number_only)]
Truth = Annotated[bool, BeforeValidator(truth_only)]
Bytes = Annotated[int, Field(lt=WORD), BeforeValidator(parse_bytes)]
FileBytes = Annotated[int, Field(le=FILE_BYTES), BeforeValidator(parse_bytes)]
Word = Annotated[Whole, Field(ge=-WORD // 2, lt=WORD)]
"""A system call's argument."""
Int = Annotated[Whole, Field(ge=-(1 << 31), lt=1 << 31)]
"""A node or CPU as a call takes it, which may be none of the host."""
NodeId = Annotated[Whole, Field(ge=0, lt=MAX_NUMNODES)]
Pages = Annotated[Whole, Field(ge=0, le=NODE_PAGES)]
Count = Annotated[Whole, Field(ge=1, le=FILE_BYTES // PAGE_SIZE)]
Seed = Annotated[Whole, Field(ge=0, lt=WORD)]


@functools.lru_cache(1024)
def _nodes_in_order(text: str) -> str:
    return mempolicy.format_nodes(mempolicy.parse_nodes(text))


def _nodes(value: Any) -> str:
    """A list of nodes as Linux prints it; the few of a long scenario are read once."""
    if isinstance(value, str):
        return _nodes_in_order(value)
    return mempolicy.format_nodes(mempolicy.parse_nodes(value))


Nodes = Annotated[str, BeforeValidator(_nodes)]
Mode = Literal["default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave"]
ModeFlag = Literal["static", "relative", "numa_balancing"]
MaxNode = Annotated[
    int | None,
    Field(
        ge=0,
        lt=1 << 64,
        description="the system call's argument as it is, which reads one bit less; enough if left out",
    ),
]
MbindFlag = Literal["strict", "move", "move_all"]
PageSize = Annotated[Literal["4 KiB", "2 MiB", "1 GiB"], BeforeValidator(page_size_name)]
if TYPE_CHECKING:
    Design = str
else:
    Design = Literal[tuple(DESIGNS)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


# ------------------------------------------------------------------------------------------------ operations


class Operation(_Model):
    """One call. ``task`` names the thread that makes it; the first task if it is left out."""

    task: Name | None = None


class _OnRange(Operation):
    file: Name = "guest"
    offset: Bytes = 0
    length: Bytes | None = Field(None, description="bytes; to the end of the file if left out")


class _WithPolicy(_Model):
    mode: Mode | Word = Field("default", description="MPOL_*; an integer is passed to the kernel as it is")
    mode_flags: tuple[ModeFlag, ...] = ()
    nodes: Nodes = ""

    @property
    def mode_word(self) -> int:
        """Mode and mode flags in one word, as the system call takes them."""
        word = self.mode if isinstance(self.mode, int) else mempolicy.MODES.index(self.mode)
        for flag in self.mode_flags:
            word |= mempolicy.MODE_FLAGS[flag]
        return word


class Policy(_WithPolicy):
    """A policy for a range of the guest, set through the guest's policy interface before memory is touched."""

    offset: Bytes = 0
    length: Bytes | None = None
    home_node: Int | None = None


class Create(Operation, _WithPolicy):
    """KVM_CREATE_GUEST_MEMFD, then mmap of the whole file if it has the flag. The policy counts for ``create`` only."""

    op: Literal["create"] = "create"
    file: Name = "guest"
    size: FileBytes | None = Field(None, description="bytes; the guest's memory if left out")
    flags: tuple[Literal["mmap", "init_shared"], ...] | None = Field(
        None, description="what the VMM asks for if left out: private memory starts private, ordinary memory shared"
    )
    raw_flags: Word | None = Field(None, description="flags word passed as it is, instead of `flags`")
    page_size: Literal["4 KiB"] | None = Field(
        None, description="4 KiB: no huge pages, though others of the guest have them; guest.page_size if left out"
    )


class Memfd(Operation):
    """memfd_create, ftruncate and mmap: tmpfs, or with ``hugetlb`` a file of the pools of ``guest.page_size``.

    ``anonymous``: mmap without a file, as VMMs take ordinary memory; with ``design: thp`` in transparent huge pages.
    """

    op: Literal["memfd"] = "memfd"
    file: Name
    size: FileBytes
    inode: Whole | None = Field(
        None, ge=0, lt=FILE_NUMBER, description="inode number, which shifts its interleave; counted if left out"
    )
    hugetlb: Truth = Field(False, description="MFD_HUGETLB: pages of guest.page_size out of the pools of hugetlb")
    anonymous: Truth = Field(
        False,
        description="MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE: no descriptor and no page cache, 2 MiB where it can be",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Memfd:
        if self.anonymous and (self.hugetlb or self.inode is not None):
            raise ValueError("anonymous memory has neither an inode nor pages of hugetlb; use one of the two")
        return self


class Alias(Operation):
    """A second shared mapping (and descriptor) of a file, under its own name."""

    op: Literal["alias"] = "alias"
    file: Name
    of: Name


class PassFd(Operation):
    """SCM_RIGHTS: another process, such as a second VMM, gets a descriptor of a file and maps it itself.

    Its threads are tasks as all others; what is done under the new name is done through its descriptor. Cpuset and OOM
    killer remain those of the first process.
    """

    op: Literal["pass_fd"] = "pass_fd"
    file: Name
    of: Name
    process: Name = Field("vmm2", min_length=1, max_length=64)


class Mmap(Operation):
    """mmap of the whole file. Of a file that is mapped it makes one more, which nothing but ``munmap`` with ``unnamed`` names."""

    op: Literal["mmap"] = "mmap"
    file: Name = "guest"
    private: Truth = False


class Munmap(Operation):
    """munmap of the file's mapping."""

    op: Literal["munmap"] = "munmap"
    file: Name = "guest"
    unnamed: Truth = Field(False, description="true: those that further mmap calls of the file made, too")


class Close(Operation):
    """munmap, delete the memslot and close the descriptor."""

    op: Literal["close"] = "close"
    file: Name = "guest"
    unmap: Truth = Field(True, description="false: the mapping stays, and with it the file until munmap")


class Mbind(_OnRange, _WithPolicy):
    """mbind of a range of the file's mapping."""

    op: Literal["mbind"] = "mbind"
    flags: tuple[MbindFlag, ...] = ()
    raw_flags: Word | None = None
    maxnode: MaxNode = None


class Fbind(_OnRange, _WithPolicy):
    """fbind (v3 of the series): a range policy on the descriptor; ENOSYS under the other interfaces."""

    op: Literal["fbind"] = "fbind"


class SetPolicy(_OnRange, _WithPolicy):
    """Set a range policy through whatever interface the guest has."""

    op: Literal["policy"] = "policy"


class SetMempolicy(Operation, _WithPolicy):
    """set_mempolicy: the task's own policy."""

    op: Literal["set_mempolicy"] = "set_mempolicy"
    maxnode: MaxNode = None


class ResetRotation(Operation):
    """set_mempolicy(INTERLEAVE, all nodes) then set_mempolicy(DEFAULT): il_prev = 1023, il_weight = 0."""

    op: Literal["reset_rotation"] = "reset_rotation"


class GetMempolicy(Operation):
    """get_mempolicy: of an address (``file``, ``offset``) or of the task; ``node`` asks with MPOL_F_NODE."""

    op: Literal["get_mempolicy"] = "get_mempolicy"
    file: Name | None = None
    offset: Bytes = 0
    node: Truth = False


class SetMempolicyHomeNode(_OnRange):
    """set_mempolicy_home_node."""

    op: Literal["set_mempolicy_home_node"] = "set_mempolicy_home_node"
    home_node: Int


class SetWeights(Operation):
    """Write /sys/kernel/mm/mempolicy/weighted_interleave/nodeN; ``weights: null`` restores those found at boot."""

    op: Literal["set_weights"] = "set_weights"
    weights: dict[Int, Int] | None = None


class SetAutoWeights(Operation):
    """Write ``value`` to /sys/kernel/mm/mempolicy/weighted_interleave/auto: whether weights follow the bandwidths (6.16)."""

    op: Literal["set_auto_weights"] = "set_auto_weights"
    value: str = Field("1", max_length=64)


class SchedSetaffinity(Operation):
    """sched_setaffinity of the task to one CPU; -1 allows all."""

    op: Literal["sched_setaffinity"] = "sched_setaffinity"
    cpu: Int


class SetMemsAllowed(Operation):
    """Move the process into a cpuset with these mems; null moves it back to the root cpuset."""

    op: Literal["set_mems_allowed"] = "set_mems_allowed"
    mems: Nodes | None = None


class Fallocate(_OnRange):
    """fallocate; ``mode`` is FALLOC_FL_KEEP_SIZE for guest_memfd and 0 for memfd if left out."""

    op: Literal["fallocate"] = "fallocate"
    mode: Int | None = None


class PunchHole(_OnRange):
    """fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)."""

    op: Literal["punch_hole"] = "punch_hole"


class Fault(_OnRange):
    """Touch pages: through the host mapping, as the guest (KVM_RUN), or by KVM_PRE_FAULT_MEMORY.

    Random order is Fisher-Yates from the last index down, driven by a 64-bit xorshift (13, 7, 17) started at ``seed``.
    """

    op: Literal["fault"] = "fault"
    by: Literal["host", "guest", "prefault"] = "host"
    write: Truth = True
    order: Literal["sequential", "reverse", "strided", "random"] = "sequential"
    stride: Count = Field(1, description="pages, for the strided order")
    seed: Seed = Field(0, description="start of the random order; 0 means a fixed constant")


class Read(Operation):
    """read of a guest_memfd's descriptor; with ``at`` pread. No kernel has it: EINVAL, or ESPIPE."""

    op: Literal["read"] = "read"
    file: Name = "guest"
    at: Bytes | None = Field(None, description="offset in bytes")


class Write(Operation):
    """write to a guest_memfd's descriptor; with ``at`` pwrite. No kernel has it: EINVAL, or ESPIPE."""

    op: Literal["write"] = "write"
    file: Name = "guest"
    at: Bytes | None = Field(None, description="offset in bytes")


class Fstat(Operation):
    """fstat of a guest_memfd: its size in bytes, and that of a block where pages are 4 KiB."""

    op: Literal["fstat"] = "fstat"
    file: Name = "guest"


class FirstTouch(Operation):
    """Generator: every vCPU touches its equal share of a range, one after another or in turn.

    ``turn: 0`` lets each vCPU finish its share; otherwise vCPUs take turns of so many pages, each on its own share,
    or all on one share if ``shared`` is set (consecutive turns then take consecutive pages).
    """

    op: Literal["first_touch"] = "first_touch"
    file: Name = "guest"
    offset: Bytes = 0
    length: Bytes | None = None
    by: Literal["host", "guest", "prefault"] = "guest"
    order: Literal["sequential", "reverse", "strided", "random"] = "sequential"
    stride: Count = 1
    turn: Whole = Field(0, ge=0, le=FILE_BYTES // PAGE_SIZE, description="pages of a turn")
    shared: Truth = False


class Prefault(Operation):
    """Generator: one manager task populates the whole file by fallocate."""

    op: Literal["prefault"] = "prefault"
    file: Name = "guest"


class MovePages(_OnRange):
    """move_pages of every page of a range to one node."""

    op: Literal["move_pages"] = "move_pages"
    node: Int
    move_all: Truth = False


class MigratePages(Operation):
    """migrate_pages of the process from one node to another."""

    op: Literal["migrate_pages"] = "migrate_pages"
    source: Int
    target: Int


class Compact(Operation):
    """Write to a node's ``compact`` file: pages that can move go up in their zone, so that free blocks form below."""

    op: Literal["compact"] = "compact"
    node: Int | None = Field(None, description="all nodes if left out (/proc/sys/vm/compact_memory)")


class Madvise(_OnRange):
    """madvise; ``advice`` is the number (4 DONTNEED, 9 REMOVE, 22 POPULATE_READ, 23 POPULATE_WRITE, ...)."""

    op: Literal["madvise"] = "madvise"
    advice: Int


class Hog(Operation):
    """Other memory use on a node: take ``size`` bytes, or all but ``leave_free`` bytes."""

    op: Literal["hog"] = "hog"
    node: NodeId
    size: Bytes | None = None
    leave_free: Bytes | None = None
    bind: Truth = False

    @model_validator(mode="after")
    def _one_amount(self) -> Hog:
        if (self.size is None) == (self.leave_free is None):
            raise ValueError("give either size or leave_free")
        return self


class Unhog(Operation):
    """Give all hogged memory back."""

    op: Literal["unhog"] = "unhog"


class ZoneState(_Model):
    """Pages of one zone as /proc/zoneinfo prints them."""

    free: Pages
    min: Pages
    low: Pages
    high: Pages
    managed: Pages


class Zones(Operation):
    """Read the zones; with ``observed`` (label such as ``0/Normal`` to pages) take the counters of a real kernel over."""

    op: Literal["zones"] = "zones"
    observed: dict[Name, ZoneState] | None = None


class Observe(_OnRange):
    """Record which node backs each page of a range at this moment."""

    op: Literal["observe"] = "observe"


class CheckExtension(Operation):
    """KVM_CHECK_EXTENSION on the VM: what guest_memfd can do on this kernel for this type of VM, as a number of flags.

    KVM_CAP_VM_TYPES is none of them: its answer is the machine's and the kernel configuration's.
    """

    op: Literal["check_extension"] = "check_extension"
    capability: Literal[
        "guest_memfd", "guest_memfd_flags", "guest_memfd_memory_attributes", "memory_attributes", "pre_fault_memory"
    ]


class CreateVm(Operation):
    """KVM_CREATE_VM: a machine of the guest's type (``guest.vm_type``) in place of the one before."""

    op: Literal["create_vm"] = "create_vm"


class Memslot(Operation):
    """KVM_SET_USER_MEMORY_REGION2: the file backs private memory of the VM; ``backend`` what is shared, if there is one.

    All gfns start shared. Without this call the VMM is taken to have made its memory private at the start.
    """

    op: Literal["memslot"] = "memslot"
    file: str = "guest"
    backend: str | None = Field(None, description="a memfd; left out: memory of the host that is not simulated")


class SetMemoryAttributes(_OnRange):
    """KVM_SET_MEMORY_ATTRIBUTES on the VM: the gfns of a range of the file become private or shared."""

    op: Literal["set_memory_attributes"] = "set_memory_attributes"
    private: Truth = True
    raw_attributes: Whole | None = Field(None, description="attributes word passed as it is, instead of `private`")
    raw_flags: Whole = 0


class Convert(_OnRange):
    """Convert a range between private and shared, in place or out of place as the scenario's conversion mode has it."""

    op: Literal["convert"] = "convert"
    to: Literal["private", "shared"]


class ConvertStream(Operation):
    """Generator: what a guest converts, from a few parameters and a seed; see workbench.engine.conversion_streams."""

    op: Literal["convert_stream"] = "convert_stream"
    file: Name = "guest"
    stream: Literal["boot", "bounce_buffers", "ballooning", "bad_guest", "uniform_random"] = "boot"
    count: Whole = Field(1000, ge=1, le=4_000_000, description="buffers, flips or conversions; boot has its own number")
    every: Whole | None = Field(
        None, ge=1, description="conversions that are one event; left out: 1 up to 4096 of them, in place up to 100,000"
    )
    fraction: Number = Field(0.25, gt=0, le=1, description="share of memory that a balloon takes")
    seed: Whole | None = Field(None, ge=0, lt=1 << 63, description="the scenario's if left out")


class Pin(_OnRange):
    """Take extra references on the shared pages of a range."""

    op: Literal["pin"] = "pin"
    kind: Literal["transient", "long_term"] = "long_term"


class Unpin(_OnRange):
    """Drop extra references."""

    op: Literal["unpin"] = "unpin"
    kind: Literal["transient", "long_term"] = "long_term"


class Hwpoison(_OnRange):
    """Memory failure on the pages of a range."""

    op: Literal["hwpoison"] = "hwpoison"


class Collapse(_OnRange):
    """A pass of khugepaged: huge folios that were split, lie in one piece and are private again are re-formed in place.

    4 KiB folios that stood in for huge ones are copied into one that is free now, of VMs whose memory the host can read.
    """

    op: Literal["collapse"] = "collapse"
    max_ptes_none: int = Field(
        511,
        ge=0,
        le=511,
        description="pages that may be missing of the 512 that are copied, as khugepaged/max_ptes_none",
    )


class IommuMap(_OnRange):
    """Map a range for a device: today through the host mapping, which pins; proposed: ask and be notified."""

    op: Literal["iommu_map"] = "iommu_map"


class IommuUnmap(_OnRange):
    """Remove a device mapping."""

    op: Literal["iommu_unmap"] = "iommu_unmap"


class Access(_OnRange):
    """Who touches what, how much: demand on the memory of a range by the vCPUs of some nodes (modelled cost)."""

    op: Literal["access"] = "access"
    initiators: Nodes | None = Field(None, description="nodes whose vCPUs access; all vCPU nodes if left out")
    pattern: Literal["uniform", "zipf", "streaming", "pointer_chasing"] = "uniform"
    write_fraction: Number = Field(0.0, ge=0, le=1)
    demand_mbps: Number | None = Field(
        None, gt=0, le=RATE, description="MB/s of each initiator; as much as it gets if left out"
    )


class Preserve(Operation):
    """LIVEUPDATE_SESSION_PRESERVE_FD: a memfd goes into the live-update session. Its holes are filled, then it is frozen.

    A guest_memfd too under the kernel profile ``proposal-preservation``; its holes stay.
    """

    op: Literal["preserve"] = "preserve"
    file: Name
    token: Whole = Field(ge=0, lt=1 << 63, description="by which the next kernel's process asks for it")
    vm: Truth = Field(True, description="the VM of a guest_memfd goes into the session too; without it the kexec fails")


class Kexec(Operation):
    """Hand the guest's memory over a kexec and restore it. Of memfds, those of the session wait to be retrieved.

    Pages stay where they are; policies of files go only where the kernel profile hands them over, else a warning names them.
    """

    op: Literal["kexec"] = "kexec"


class Retrieve(Operation):
    """LIVEUPDATE_SESSION_RETRIEVE_FD and mmap: a memfd of the kernel before, without the policy it had there.

    The session holds the file beside whoever retrieved it, until ``finish`` or ``close_session``.
    """

    op: Literal["retrieve"] = "retrieve"
    file: Name
    token: Whole = Field(ge=0, lt=1 << 63)
    inode: Whole | None = Field(
        None, ge=0, lt=FILE_NUMBER, description="inode number, which shifts its interleave; counted if left out"
    )


class Finish(Operation):
    """LIVEUPDATE_SESSION_FINISH: the session of the kernel before gives its files up. Those that nobody retrieved are gone."""

    op: Literal["finish"] = "finish"


class CloseSession(Operation):
    """close of the live-update session: one of the kernel before is finished; of this kernel's own all files are thawed.

    The next ``preserve`` makes a new one. A session that a ``kexec`` is to hand over must be open.
    """

    op: Literal["close_session"] = "close_session"


AnyOperation = Annotated[
    Create
    | Memfd
    | Alias
    | PassFd
    | Mmap
    | Munmap
    | Close
    | Mbind
    | Fbind
    | SetPolicy
    | SetMempolicy
    | ResetRotation
    | GetMempolicy
    | SetMempolicyHomeNode
    | SetWeights
    | SetAutoWeights
    | SchedSetaffinity
    | SetMemsAllowed
    | Fallocate
    | PunchHole
    | Fault
    | Read
    | Write
    | Fstat
    | FirstTouch
    | Prefault
    | MovePages
    | MigratePages
    | Compact
    | Madvise
    | Hog
    | Unhog
    | Zones
    | Observe
    | CheckExtension
    | CreateVm
    | Memslot
    | SetMemoryAttributes
    | Convert
    | ConvertStream
    | Pin
    | Unpin
    | Hwpoison
    | Collapse
    | IommuMap
    | IommuUnmap
    | Access
    | Preserve
    | Kexec
    | Retrieve
    | Finish
    | CloseSession,
    Field(discriminator="op"),
]


# ------------------------------------------------------------------------------------------- guest and scenario


class Vcpu(_Model):
    """Where one vCPU thread runs: on a CPU of the host, or anywhere on a node."""

    cpu: Int | None = None
    node: Int | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Vcpu:
        if (self.cpu is None) == (self.node is None):
            raise ValueError("give either cpu or node")
        return self


class Task(_Model):
    """A thread: where it runs and the rotation it starts with."""

    name: Name = Field(min_length=1, max_length=64)
    cpu: Int | None = None
    node: Int | None = None
    il_prev: Whole = Field(mempolicy.MAX_NUMNODES - 1, ge=0, lt=mempolicy.MAX_NUMNODES)
    il_weight: Whole = Field(0, ge=0, le=255)


class Conversion(_Model):
    """How memory changes sides between private and shared."""

    mode: Literal["in-place", "out-of-place"] | None = Field(
        None, description="what the kernel profile has first if left out: 7.3 has out-of-place only"
    )
    generation: Literal["B", "C", "C-stock-xarray", "two-stage"] | None = Field(
        None, description="rules of conversion in place; those of the kernel profile if left out"
    )
    merge: Literal["eager", "lazy", "never"] = "eager"
    split_on: Literal["conversion", "host_fault"] = "conversion"
    drain_lru: Truth = Field(
        True, description="drain the per-CPU lru_add batches before giving up, as in-place conversion v5 on does"
    )


class Guest(_Model):
    """The guest and how the host backs it."""

    memory: FileBytes = 1 << 30
    page_size: PageSize = "4 KiB"
    design: Design = "filemap"
    policy_interface: Literal["none", "create", "fbind", "mbind"] = "mbind"
    vm_type: Literal["none", "sw_protected", "snp", "tdx"] = Field(
        "none", description="what KVM_CREATE_VM makes; also called confidential"
    )
    vmm_profile: str | None = Field(None, description="which VMM's calls are made: qemu-11, firecracker or own")
    vcpus: tuple[Vcpu, ...] = Field((), max_length=MAX_VCPUS, description="one on the first node with CPUs if left out")
    policies: tuple[Policy, ...] = Field((), max_length=MAX_OPERATIONS)
    conversion: Conversion = Conversion()
    small_page_fallback: Truth = Field(False, description="use 4 KiB folios where the huge page pool is empty")

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, given: Any) -> Any:
        """``confidential`` is the former name of ``vm_type``."""
        if isinstance(given, Mapping) and "confidential" in given:
            if given.get("vm_type", given["confidential"]) != given["confidential"]:
                raise ValueError(
                    f"vm_type {given['vm_type']!r} and confidential {given['confidential']!r} differ; they are one field"
                )
            return {key: value for key, value in given.items() if key != "confidential"} | {
                "vm_type": given["confidential"]
            }
        return given

    @property
    def small_pages(self) -> bool:
        """Whether 4 KiB pages stand in where no huge one is left: as said, and always where there is no pool to run dry."""
        return self.small_page_fallback or (self.page_size != "4 KiB" and DESIGNS[self.design].folios == "buddy")

    @property
    def private_memory(self) -> bool:
        """Whether the VM's type has private memory (kvm_arch_has_private_mem)."""
        return profiles.VM_TYPES[self.vm_type].private_memory

    @field_validator("vmm_profile")
    @classmethod
    def _known_vmm(cls, value: str | None) -> str | None:
        if value is not None:
            _known(profiles.VMM_PROFILES, value)
        return value

    @field_validator("memory")
    @classmethod
    def _whole_pages(cls, value: int) -> int:
        if value == 0 or value % PAGE_SIZE or value > FILE_BYTES:
            raise ValueError(f"{value} bytes; must be a multiple of 4 KiB from 4 KiB to {format_bytes(FILE_BYTES)}")
        return value

    @model_validator(mode="after")
    def _whole_huge_pages(self) -> Guest:
        if self.memory % (PAGE_SIZE << PAGE_ORDERS[self.page_size]):
            raise ValueError(f"memory {self.memory} is not a multiple of the page size {self.page_size}")
        if self.page_size not in DESIGNS[self.design].page_sizes:
            raise ValueError(
                f"design {self.design!r} has {' and '.join(DESIGNS[self.design].page_sizes)} pages only, not "
                f"{self.page_size}; use {' or '.join(n for n, d in DESIGNS.items() if self.page_size in d.page_sizes)}"
            )
        if self.vmm_profile is not None and self.private_memory:
            if profiles.VMM_PROFILES[self.vmm_profile].private_flags is None:
                raise ValueError(f"vmm_profile {self.vmm_profile!r} has no VMs of type {self.vm_type!r}")
        if self.small_page_fallback and not DESIGNS[self.design].small_fallback:
            raise ValueError(f"small_page_fallback needs a pool to be empty: a hugetlb design, not {self.design}")
        return self


class Boot(_Model):
    """What the host's boot decided."""

    lowmem: Bytes | None = Field(None, description="memory below 4 GiB; 2 GiB if left out")
    transparent_hugepages: Truth = Field(
        False, description="khugepaged raises the watermarks, as it does on systems where THP is enabled at boot"
    )
    zonelists: Literal["boot", "hotplug"] = Field(
        "boot", description="hotplug: rebuilt since boot, CPU penalty applies"
    )
    hugetlb_pages: dict[NodeId, Pages] | None = Field(
        None,
        description="huge pages of the guest's size per node id; designs that take them from the zones have no pool",
    )
    movable_gigantic_pages: Truth = Field(
        False,
        description="vm.movable_gigantic_pages: 1 GiB pages may come from ZONE_MOVABLE, as 2 MiB pages always may",
    )
    kho: Truth = Field(
        False, description="kexec handover: scratch areas are set aside, which pages that cannot move never get"
    )
    vmemmap_pages: dict[NodeId, Pages] | None = Field(
        None,
        description="4 KiB pages per node id that splits can restore vmemmap from; what the pools leave if left out",
    )
    weights: dict[NodeId, Int] | None = Field(
        None, description="interleave weights; automatic from bandwidth if left out"
    )


_SAID_OVER = 4
"""Lines about ranges over others."""


_HOSTS: deque[Host] = deque(maxlen=4)
"""Hosts that were found consistent last: to look again is a tenth of a short run."""


class Scenario(_Model):
    """Host, guest and operations; the unit that everything else takes."""

    name: Name = Field("scenario", max_length=200)
    comment: Prose = ""
    host: Host
    kernel_profile: str | None = Field(
        None, description="which kernel's rules hold; the oldest that has what the scenario asks for if left out"
    )
    boot: Boot = Boot()
    guest: Guest = Guest()
    tasks: tuple[Task, ...] = Field((), max_length=MAX_TASKS)
    operations: tuple[AnyOperation, ...] = Field((), max_length=MAX_OPERATIONS)
    seed: Whole = Field(0, ge=0, lt=1 << 63)
    output: Literal["auto", "counts", "runs", "pages"] = "auto"
    pfns: Truth = Field(
        False, description="also keep the pfn of every folio (modelled: what the boot left free is not known)"
    )
    metadata: Literal["off", "counted", "taken"] = Field(
        "counted",
        description="page tables, tables of KVM, page-cache nodes: counted by node, or also taken from the zones",
    )
    strict: Truth = True

    def _repr_html_(self) -> str:
        return shown.scenario(self)

    @field_validator("kernel_profile", mode="before")
    @classmethod
    def _known_kernel(cls, value: object) -> object:
        if value is None:
            return None
        return _known(profiles.KERNEL_PROFILES, str(value) if isinstance(value, (int, float)) else value)

    @functools.cached_property
    def kernel(self) -> profiles.KernelProfile:
        """The kernel whose rules hold: the one named, or the oldest that has what the scenario asks for."""
        return profiles.KERNEL_PROFILES[self.kernel_profile or self._needed_kernel()]

    @functools.cached_property
    def kinds(self) -> frozenset[type[Operation]]:
        """Which operations are listed: what is asked of all of them is asked of these first."""
        return frozenset(map(type, self.operations))

    def _needed_kernel(self) -> str:
        guest = self.guest
        listed = self.operations if Memfd in self.kinds else ()
        ordinary = any(isinstance(made, Memfd) and (made.hugetlb or made.anonymous) for made in listed)
        if ordinary and not any(isinstance(made, Create) and made.page_size is None for made in self.operations):
            return "7.3"  # huge pages of ordinary memory need no proposal
        if DESIGNS[guest.design].kernel and (guest.page_size != "4 KiB" or DESIGNS[guest.design].store == "pfn map"):
            return DESIGNS[guest.design].kernel
        stated = guest.conversion.generation
        if stated is not None and stated != "C":
            return next(made.name for made in profiles.KERNEL_PROFILES.values() if made.generation == stated)
        if guest.page_size != "4 KiB":
            return "proposal-hugetlb"
        converts = not self.kinds.isdisjoint((Convert, ConvertStream))
        in_place = guest.conversion.mode == "in-place" or (guest.conversion.mode is None and converts)
        return "7.4" if in_place else "7.3"

    @property
    def conversion_mode(self) -> profiles.ConversionMode:
        """How this scenario's conversions are done."""
        return self.guest.conversion.mode or self.kernel.conversion[0]

    @property
    def in_place(self) -> bool:
        """Whether files convert: module parameter kvm.gmem_in_place_conversion on a kernel that has it."""
        return self.conversion_mode == "in-place" and "in-place" in self.kernel.conversion

    @property
    def vm_attributes(self) -> bool:
        """Whether the VM has memory attributes: not while files have them (7.4), and not where they alone do (posted series)."""
        return "out-of-place" in self.kernel.conversion and not self.in_place

    @property
    def init_shared_allowed(self) -> bool:
        """arch/x86/kvm/x86.c: kvm_arch_supports_gmem_init_shared: 6.18 to 7.3 types without private memory, from 7.4 on every
        type while pages convert in place."""
        if not self.guest.private_memory:
            return True
        return self.kernel.private_init_shared and self.conversion_mode == "in-place"

    @property
    def generation(self) -> str:
        """Rules of conversion in place, by their name in :mod:`workbench.tracking.generations`."""
        return self.guest.conversion.generation or self.kernel.generation or "C"

    @field_validator("host", mode="wrap")
    @classmethod
    def _host(cls, value: object, validate: ValidatorFunctionWrapHandler) -> Host:
        if isinstance(value, str):
            value = Host.from_machine(value)
        elif isinstance(value, Mapping) and set(value) == {"machine"}:
            value = Host.from_machine(str(value["machine"]))
        elif isinstance(value, Mapping) and set(value) == {"file"}:
            value = Host.from_file(Path(str(value["file"])))
        if any(passed is value for passed in list(_HOSTS)):
            return value  # type: ignore[return-value]
        host: Host = validate(value)
        _HOSTS.append(host)
        return host

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        names = [task.name for task in self.tasks]
        for name, times in Counter(names).items():
            if times > 1:
                raise ValueError(f"tasks: {name!r} is there twice; names must differ")
        known = {node.id for node in self.host.nodes}
        cpus = {cpu for node in self.host.nodes for cpu in node.cpus}
        places: list[tuple[str, Any]] = [(f"guest.vcpus[{i}]", vcpu) for i, vcpu in enumerate(self.guest.vcpus)]
        places += [(f"tasks[{i}]", task) for i, task in enumerate(self.tasks)]
        for field, place in places:
            if place.node is not None and place.node not in known:
                raise ValueError(f"{field}.node: {place.node} is not a node of this host ({self._allowed()})")
            if place.cpu is not None and place.cpu not in cpus:
                raise ValueError(f"{field}.cpu: {place.cpu} is not a CPU of this host")
        if self.strict:
            self._check_nodes()
        return self

    def _allowed(self) -> str:
        return "nodes " + mempolicy.format_nodes(mempolicy.nodemask(node.id for node in self.host.nodes))

    def _check_nodes(self) -> None:
        known = mempolicy.nodemask(node.id for node in self.host.nodes)
        masks: dict[str, int] = {}
        places: list[tuple[str, Sequence[_Model]]] = [
            ("guest.policies", self.guest.policies),
            ("operations", self.operations),
        ]
        for field, holder in ((f"{place}[{i}]", holder) for place, all_ in places for i, holder in enumerate(all_)):
            if isinstance(holder, _WithPolicy):
                if holder.nodes not in masks:
                    masks[holder.nodes] = mempolicy.parse_nodes(holder.nodes)
                mask = masks[holder.nodes]
                if mask & ~known and "relative" not in holder.mode_flags:
                    outside = mempolicy.format_nodes(mask & ~known)
                    raise ValueError(f"{field}.nodes: {outside} is not on this host ({self._allowed()})")
                if not mask and holder.mode not in ("default", "local", "preferred", 0, 1, 4):
                    raise ValueError(f"{field}.nodes: empty; {holder.mode} needs at least one of {self._allowed()}")
            elif isinstance(holder, (Hog, MovePages)) and (holder.node < 0 or not known >> holder.node & 1):
                raise ValueError(f"{field}.node: {holder.node} is not on this host ({self._allowed()})")
            elif isinstance(holder, SetWeights):
                for weight_node, weight in (holder.weights or {}).items():
                    if not 1 <= weight <= 255 or weight_node < 0 or not known >> weight_node & 1:
                        raise ValueError(
                            f"{field}.weights: {weight_node}: {weight} is not allowed; "
                            f"weights are 1 to 255 for {self._allowed()}"
                        )

    def policies_over_others(self) -> list[str]:
        """A line for a range of ``guest.policies`` that lies over an earlier one: the later holds there, as with mbind."""
        memory = self.guest.memory
        parts = sorted(
            (policy.offset, memory if policy.length is None else policy.offset + policy.length, index)
            for index, policy in enumerate(self.guest.policies)
        )
        reached, over = (0, -1), []
        for start, end, index in parts:
            if start < min(reached[0], end):
                first, last = sorted((index, reached[1]))
                over.append(f"guest.policies[{last}] lies over guest.policies[{first}] from {format_bytes(start)} to "
                            f"{format_bytes(min(end, reached[0]))}: the later one holds there, as with mbind")  # fmt: skip
            reached = max(reached, (end, index))
        more = len(over) - _SAID_OVER
        return over if more <= 0 else [*over[:_SAID_OVER], f"guest.policies: {more} more ranges lie over others"]

    @classmethod
    def from_yaml(cls, source: str | Path) -> Scenario:
        """Read a scenario from a path, or from YAML text (anything that contains a line break).

        Errors name the file, the line and the field.
        """
        with named_yaml(source, "scenario") as text:
            return cls.from_mapping(load_text(text, "scenario"))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Scenario:
        """Validate a mapping; errors are one line that names the field."""
        try:
            with garbage.seldom():
                return cls.model_validate(mapping)
        except ValidationError as error:
            raise WorkbenchError(first_line(error, cls)) from None

    def replace(self, **changes: Any) -> Scenario:
        """A validated copy. Keys are field names or dotted paths: ``replace(**{"guest.memory": "4 GiB"})``."""
        mapping = self.to_mapping()
        for path, value in changes.items():
            set_path(mapping, path, value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
        return type(self).from_mapping(mapping)

    def to_yaml(self) -> str:
        """The scenario as YAML text; ``from_yaml`` reads it back to an equal scenario."""
        return dump(self.to_mapping(), allow_unicode=True, width=100)

    def to_mapping(self) -> dict[str, Any]:
        """The scenario as plain mappings, lists, numbers and texts; fields that have their default are left out."""
        with garbage.seldom():
            mapping = self.model_dump(mode="json", exclude_defaults=True)
            if self.operations:  # `op` is each operation's default and yet must be named
                mapping["operations"] = [
                    {"op": operation.op, **dumped}
                    for operation, dumped in zip(self.operations, mapping["operations"], strict=True)
                ]
        return mapping


def _known(records: Mapping[str, Any], name: object) -> str:
    """A name of one of the records, or an error that lists them."""
    try:
        profiles.look_up(records, str(name), "name")
    except WorkbenchError as error:
        raise ValueError(str(error).removeprefix("name: ")) from None
    return str(name)


def set_path(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set ``a.b.0.c`` in nested mappings and lists; missing mappings are made. Raises WorkbenchError on a bad path."""
    target: Any = mapping
    if path in ("guest.confidential", "guest.vm_type") and isinstance(mapping.get("guest"), dict):
        path = "guest.vm_type"  # the present name of the field
        mapping["guest"].pop("confidential", None)
    *parents, last = path.split(".")
    for number, key in enumerate(parents):
        if isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                raise WorkbenchError(f"{path}: {'.'.join(parents[: number + 1])} is not in the list of {len(target)}")
            target = target[int(key)]
        elif isinstance(target, dict):
            target = target.setdefault(key, [] if ([*parents, last])[number + 1].isdecimal() else {})
        else:
            raise WorkbenchError(f"{path}: {'.'.join(parents[:number])} is {target!r} and has no fields")
    if isinstance(target, list):
        if not last.isdecimal() or int(last) > len(target):
            raise WorkbenchError(f"{path}: {last} is not an index of a list of {len(target)}")
        if int(last) == len(target):
            target.append(value)
        else:
            target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise WorkbenchError(f"{path}: {'.'.join(parents)} is {target!r} and has no fields")

"""What a simulated system is made of: threads, inodes, open files, and the result of a call.

Linux: ``include/linux/sched.h`` (``task_struct``), ``virt/kvm/guest_memfd.c`` (``gmem_inode``), ``include/linux/fs.h``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench import policy as mp
from workbench.filemap import FileMap
from workbench.mappings import Mapping
from workbench.pfns import FilePfns

GUEST_MEMFD_FLAG_MMAP, GUEST_MEMFD_FLAG_INIT_SHARED = 1, 2


@dataclass
class Result:
    """What a call returned: ``ret`` (-1 with a positive ``errno`` on failure) and what it wrote besides."""

    ret: int = 0
    errno: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


def failed(error: int, **detail: Any) -> Result:
    """The result of a refused call."""
    return Result(-1, error, detail)


@dataclass
class Thread:
    """``struct task_struct``: ``index`` is its row in the table of rotations, ``nid`` the node index it runs on."""

    name: str
    index: int
    nid: int
    policy: mp.Mempolicy | None = None


@dataclass
class Inode:
    """A guest_memfd or tmpfs inode. Sizes and policy ranges are in 4 KiB pages, ``map`` in folios of ``order``."""

    name: str
    pages: int
    kind: str  # "guest_memfd" or "memfd"
    flags: int = 0
    order: int = 0
    ilx_base: int = 0
    shared_policy: mp.SharedPolicy = field(default_factory=mp.SharedPolicy)
    map: FileMap = field(default_factory=FileMap)
    pfns: FilePfns | None = None
    mappings: list[Mapping] = field(default_factory=list)

    @property
    def private(self) -> bool:
        """In 7.3 the whole inode is private unless it was created with INIT_SHARED."""
        return self.kind == "guest_memfd" and not self.flags & GUEST_MEMFD_FLAG_INIT_SHARED


@dataclass
class OpenFile:
    """A name of the scenario: an inode, its descriptor (None when closed) and its mapping (None when unmapped)."""

    inode: Inode
    descriptor: int | None
    mapping: Mapping | None

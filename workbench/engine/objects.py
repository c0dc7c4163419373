"""What a simulated system is made of: threads, inodes, open files, and the result of a call.

Linux: ``include/linux/sched.h`` (``task_struct``), ``virt/kvm/guest_memfd.c`` (``gmem_inode``), ``include/linux/fs.h``.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench.engine.attributes import Attributes
from workbench.engine.device_areas import DeviceAreas
from workbench.engine.filemap import FileMap
from workbench.engine.kept_frames import KeptFrames
from workbench.engine.mappings import Mapping
from workbench.engine.pfns import FilePfns
from workbench.engine.users import Users
from workbench.intervals import Int64s
from workbench.tracking.tracked_file import TrackedFile

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


def allocated(placed: bool) -> Result:
    """The result of a call that had folios placed: ENOMEM unless every one found memory."""
    return Result() if placed else failed(errno.ENOMEM)


@dataclass
class Thread:
    """``struct task_struct``: ``index`` is its row in the table of rotations, ``nid`` the node index it runs on."""

    name: str
    index: int
    nid: int
    policy: mp.Mempolicy | None = None


@dataclass(eq=False)
class Inode:
    """A guest_memfd or tmpfs inode. Sizes and policy ranges are in 4 KiB pages, ``map`` in folios of ``order``.

    Two inodes are equal if they are the same one. ``pages`` is i_size, rounded up; a tmpfs file may hold pages beyond it
    (fallocate with KEEP_SIZE), which ``extent`` counts too.

    ``small``: 4 KiB pages that back a file of huge folios where the pool was empty; None where that is not allowed.
    ``tracked``: the state of single pages, in scenarios that need it (:mod:`workbench.engine.conversions`), with ``entered``:
    allocation rows of ``map`` and ``small`` that it has seen, and ``kept``: 4 KiB pages that left the file while
    pinned. ``evicted``: the file is gone, its pinned pages are not.
    ``attributes``: which pages of its VM are shared, where conversions are out of place; ``backend``: what backs those,
    and ``backs``: guest_memfds of which this file is it.
    ``reserve``: huge pages that the file's subpool keeps for it from its creation to its end; 0: it has none.
    ``anonymous``: no file at all but memory of the process, which has no page cache and no descriptor.
    ``descriptors``: how many refer to the inode; ``names``: how many names of the scenario.
    ``migratable``: a guest_memfd whose pages can move (a posted series). ``frozen``: it is in a live-update session, which
    lets nobody allocate or punch it, nor fault pages of a guest_memfd in.
    ``areas``: what is mapped for devices. ``users``: KVM and the IOMMU,
    of a tracked file.
    """

    name: str
    pages: int
    kind: str  # "guest_memfd" or "memfd"
    flags: int = 0
    order: int = 0
    ilx_base: int = 0
    shared_policy: mp.SharedPolicy = field(default_factory=mp.SharedPolicy)
    map: FileMap = field(default_factory=FileMap)
    small: FileMap | None = None
    pfns: FilePfns | None = None
    mappings: list[Mapping] = field(default_factory=list)
    descriptors: int = 0
    names: int = 0
    frozen: bool = False
    tracked: TrackedFile | None = None
    entered: list[int] = field(default_factory=lambda: [0, 0])
    kept: KeptFrames = field(default_factory=KeptFrames)
    evicted: bool = False
    attributes: Attributes | None = None
    backend: Inode | None = None
    backs: list[Inode] = field(default_factory=list)
    reserve: int = 0
    migratable: bool = False
    anonymous: bool = False
    areas: DeviceAreas = field(default_factory=DeviceAreas)
    users: Users | None = None

    def give_backend(self, backend: Inode) -> None:
        """What is shared of this guest_memfd comes from that file."""
        self.backend = backend
        backend.backs.append(self)

    @property
    def extent(self) -> int:
        """4 KiB pages up to the end of the file, or of its last page if that lies beyond."""
        return max(self.pages, self.map.end << self.order)

    @property
    def device_areas(self) -> Int64s:
        """First page and end of what is mapped for devices, int64 (n, 2), ascending."""
        return self.areas.intervals()

    @property
    def base_map(self) -> FileMap | None:
        """The map of 4 KiB folios."""
        return self.map if self.order == 0 else self.small

    def zones_of(self, pages: Int64s) -> Int64s:
        """Zone of 4 KiB pages by index, -1 if absent."""
        zones = self.map.zone_of(pages >> self.order)
        return zones if self.small is None else np.where(zones >= 0, zones, self.small.zone_of(pages))

    def folios_by_zone(self, zones: int, first: int, last: int) -> np.ndarray:
        """What of folios [first, last) lies in each zone, in folios of the file (zones,); 4 KiB pages are parts of one."""
        counts = self.map.counts(zones, first, last)
        if self.small is None:
            return counts
        return counts + self.small.counts(zones, first << self.order, last << self.order) / (1 << self.order)

    @property
    def movable(self) -> bool:
        """Its pages may lie in ZONE_MOVABLE and CMA and can be migrated, as those of tmpfs."""
        return self.kind == "memfd" or self.migratable

    @property
    def private(self) -> bool:
        """In 7.3 the whole inode is private unless it was created with INIT_SHARED."""
        return self.kind == "guest_memfd" and not self.flags & GUEST_MEMFD_FLAG_INIT_SHARED


@dataclass(eq=False)
class OpenFile:
    """A name of the scenario: an inode, its descriptor (None when closed) and its mapping (None when unmapped).

    ``process``: another one that the descriptor was passed to; empty for the scenario's own.
    """

    inode: Inode
    descriptor: int | None
    mapping: Mapping | None
    process: str = ""

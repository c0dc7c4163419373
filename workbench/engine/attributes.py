"""Private and shared memory of a VM whose conversions are out of place: memory attributes and a second backend.

Until conversion in place (7.4) private pages come from the guest_memfd and shared ones from an ordinary mapping of the
memslot; the attribute of each gfn says which. A VMM converts in steps of its own (QEMU: ``kvm_convert_memory``):

to shared    KVM_SET_MEMORY_ATTRIBUTES(0), a hole in the guest_memfd, and the host touches the ordinary backend;
to private   KVM_SET_MEMORY_ATTRIBUTES(PRIVATE), the ordinary backend is discarded, and the next vCPU that touches the range
             allocates fresh pages of the guest_memfd, under its policy or, without one, under the vCPU's own.

Two backends need a guest_memfd that cannot be mapped: one made with MMAP serves its memslot alone, shared accesses too.
So no policy reaches private memory, and nothing stays where it was: every round trip places pages anew. The guest's
physical address is taken to be the file's offset. Linux: ``virt/kvm/kvm_main.c`` (``kvm_vm_set_mem_attributes``),
``virt/kvm/guest_memfd.c`` (``kvm_gmem_punch_hole``), ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_faultin_pfn``). The second
backend is a memfd; memory of an anonymous mapping is placed alike but for interleave by offset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from workbench import scenario as sc
from workbench.intervals import Int64s, intervals_add, intervals_in, intervals_minus, intervals_remove, no_intervals

COUNTERS = (
    "conversions",
    "failed_conversions",
    "converted_pages",
    "shared_pages",
    "invalidations",
    "punched_pages",
    "discarded_pages",
    "refaulted_pages",
    "private_backend_pages",
    "shared_backend_pages",
)
"""Variables along ``event``; shared_pages and the pages of the backends are those of the moment, the rest sums."""


Zones = Callable[[Int64s], Int64s]
"""The zone of each page of a file, -1 where there is none (:meth:`workbench.engine.objects.Inode.zones_of`)."""


@dataclass(eq=False)
class Attributes:
    """Which gfns are shared, and what conversions did so far.

    ``elsewhere``: shared pages come from memory of the host that is not simulated.
    ``shared`` int64 (n, 2): intervals of 4 KiB pages without the attribute PRIVATE. ``punched``: private pages that a hole
    freed and nobody has touched since. ``origins``: 4 KiB pages that were ever freed, with the zone that backed each first.
    """

    elsewhere: bool = False
    shared: Int64s = field(default_factory=no_intervals)
    punched: Int64s = field(default_factory=no_intervals)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    origins: list[tuple[Int64s, Int64s]] = field(default_factory=list)
    known: Int64s = field(default_factory=no_intervals)

    def private_parts(self, start: int, end: int) -> Int64s:
        """Intervals of [start, end) with the attribute PRIVATE."""
        return intervals_minus(start, end, self.shared)

    def shared_parts(self, start: int, end: int) -> Int64s:
        """Intervals of [start, end) without it."""
        return intervals_in(start, end, self.shared)

    def set_shared(self, start: int, end: int) -> None:
        """kvm_vm_set_mem_attributes: the attribute is cleared."""
        self.shared = intervals_add(start, end, self.shared)

    def set_private(self, start: int, end: int) -> None:
        """kvm_vm_set_mem_attributes: the attribute is set."""
        self.shared = intervals_remove(start, end, self.shared)

    def note_hole(self, zones_of: Zones, start: int, end: int) -> None:
        """Before private pages [start, end) are freed: remember where they lay, the first time."""
        for low, high in intervals_minus(start, end, self.known).tolist():
            pages = np.arange(low, high, dtype=np.int64)
            zones = zones_of(pages)
            self.origins.append((pages[zones >= 0], zones[zones >= 0]))
        self.known = intervals_add(start, end, self.known)
        self.punched = intervals_add(start, end, self.punched)

    def note_fault(self, start: int, end: int) -> None:
        """Private pages [start, end) are there now; those that a hole had freed were allocated again."""
        again = intervals_in(start, end, self.punched)
        self.counts["refaulted_pages"] += int((again[:, 1] - again[:, 0]).sum())
        self.punched = intervals_remove(start, end, self.punched)

    def drifted(self, zones_of: Zones, zone_node: Int64s) -> int:
        """Pages present now on another node than the one that backed them first."""
        moved = 0
        for pages, zones in self.origins:
            now = zones_of(pages)
            moved += int((zone_node[now[now >= 0]] != zone_node[zones[now >= 0]]).sum())
        return moved


def wanted(scenario: sc.Scenario) -> bool:
    """Whether the scenario's files need a second backend: conversions, out of place, of a VM that can."""
    converts = any(isinstance(operation, (sc.Convert, sc.ConvertStream)) for operation in scenario.operations)
    return converts and scenario.guest.private_memory and scenario.conversion_mode == "out-of-place"


def backend_name(file: str) -> str:
    """Name of the file that backs what is shared of a guest_memfd."""
    return f"{file}.shared"

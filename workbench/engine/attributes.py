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

from dataclasses import dataclass, field

import numpy as np

from workbench import scenario as sc
from workbench.engine.filemap import FileMap
from workbench.engine.runs import PageSet
from workbench.intervals import Int64s
from workbench.kernels import two_backends

COUNTERS = two_backends.COUNTERS
"""Variables along ``event``; shared_pages and the pages of the backends are those of the moment, the rest sums."""


@dataclass(eq=False)
class Attributes:
    """Which gfns are shared, and what conversions did so far.

    ``elsewhere``: shared pages come from memory of the host that is not simulated.
    ``shared``: 4 KiB pages without the attribute PRIVATE. ``punched``: private pages that a hole
    freed and nobody has touched since. ``known``: folios that were ever freed, and ``origins`` int64 (n, 3) what backed each
    first: first folio, folios, allocation row of the file's map (rows of a map stay what they are). ``changed``: ranges whose
    attribute was set or cleared since somebody asked, and whether it was cleared; ``looked_at``: whether anybody did ask.
    """

    elsewhere: bool = False
    shared: PageSet = field(default_factory=PageSet)
    punched: PageSet = field(default_factory=PageSet)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    known: PageSet = field(default_factory=PageSet)
    origins: list[Int64s] = field(default_factory=list)
    changed: list[tuple[int, int, bool]] = field(default_factory=list)
    looked_at: bool = False

    def take_changed(self, pages: int) -> list[tuple[int, int, bool]]:
        """Parts of a file of so many pages that were set or cleared since this was asked last, and whether they are shared."""
        changed, self.changed = self.changed, []
        if len(changed) == 1 and self.looked_at:
            start, end, shared = changed[0]
            return [(start, min(end, pages), shared)] if start < min(end, pages) else []
        ranges = [(start, min(end, pages)) for start, end, _ in changed] if self.looked_at else [(0, pages)]
        self.looked_at = True
        return [
            (low, high, shared)
            for start, end in ranges
            for shared in (True, False)
            for low, high in self.parts(start, end, shared)
        ]

    @property
    def run_count(self) -> int:
        """How many runs the sets have."""
        return self.shared.run_count + self.punched.run_count + self.known.run_count

    def was_followed(self) -> None:
        """What changed is known elsewhere."""
        self.changed, self.looked_at = [], True

    def private_parts(self, start: int, end: int) -> Int64s:
        """Intervals of [start, end) with the attribute PRIVATE."""
        return self.shared.outside(start, end)

    def shared_parts(self, start: int, end: int) -> Int64s:
        """Intervals of [start, end) without it."""
        return self.shared.inside(start, end)

    def parts(self, start: int, end: int, shared: bool) -> list[list[int]]:
        """:meth:`shared_parts` or :meth:`private_parts` as numbers: a page alone, as most calls have it, makes no array."""
        if end - start == 1:
            return [[start, end]] if self.shared.holds(start, end) == shared else []
        found: list[list[int]] = (self.shared_parts if shared else self.private_parts)(start, end).tolist()
        return found

    def states(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """Parts of [start, end) that are shared or not, ascending, and whether each is."""
        if end - start == 1:
            return [(start, end, self.shared.holds(start, end))]
        parts = [(low, high, True) for low, high in self.shared_parts(start, end).tolist()]
        return sorted(parts + [(low, high, False) for low, high in self.private_parts(start, end).tolist()])

    def set_state(self, start: int, end: int, shared: bool) -> int:
        """kvm_vm_set_mem_attributes: the attribute is cleared (``shared``) or set. Returns of how many gfns that is new."""
        changed = (self.shared.add if shared else self.shared.remove)(start, end)
        if self.looked_at:  # who looks for the first time looks at everything
            self.changed.append((start, end, shared))
        return changed

    def note_hole(self, map_: FileMap, order: int, start: int, end: int) -> None:
        """Before private pages [start, end) are freed: remember what backed them, the first time."""
        first, last = start >> order, end >> order
        unknown: list[list[int]] = []
        if not self.known.holds(first, last):
            unknown = [[first, last]] if last - first == 1 else self.known.outside(first, last).tolist()
        for low, high in unknown:
            self.origins.append(map_.cut(low, high))
            self.known.add(low, high)
        self.punched.add(start, end)

    def known_runs(self, nothing: int) -> Int64s:
        """Folios that were ever freed as runs int64 (n, 3), with row ``nothing`` where nothing backed them."""
        backed, known = self.origin_runs(), self.known.intervals()
        # What is backed lies inside what is known: each gap begins where one of the two does, and ends likewise.
        starts = np.sort(np.concatenate((known[:, 0], backed[:, 0] + backed[:, 1])))
        ends = np.sort(np.concatenate((backed[:, 0], known[:, 1])))
        gaps = starts < ends
        bare = np.column_stack((starts, ends - starts, np.full(len(starts), nothing)))[gaps]
        runs = np.concatenate((backed, bare))
        return runs[np.argsort(runs[:, 0], kind="stable")]

    def keep_known(self, runs: Int64s, nothing: int) -> None:
        """Take over what :meth:`known_runs` gives."""
        self.origins = [runs[runs[:, 2] != nothing]]
        known = np.column_stack((runs[:, 0], runs[:, 0] + runs[:, 1]))
        begins = np.append(True, known[1:, 0] != known[:-1, 1])[: len(known)]
        self.known = PageSet(np.column_stack((known[begins, 0], known[np.append(begins[1:], True)[: len(known)], 1])))

    def origin_runs(self) -> Int64s:
        """What backed freed folios first, ascending: int64 (n, 3)."""
        runs = np.concatenate((np.empty((0, 3), np.int64), *self.origins))
        return runs[np.argsort(runs[:, 0], kind="stable")]

    def note_fault(self, start: int, end: int) -> None:
        """Private pages [start, end) are there now; those that a hole had freed were allocated again."""
        self.counts["refaulted_pages"] += self.punched.remove(start, end)

    def drifted(self, map_: FileMap, zone_node: Int64s) -> int:
        """Folios present now on another node than the one that backed them first."""
        before = self.origin_runs()
        if not len(before):
            return 0
        return int(two_backends.drifted(before, map_.runs, map_.allocations, map_.tiles, zone_node))


def wanted(scenario: sc.Scenario) -> bool:
    """Whether the scenario's files need a second backend: conversions, out of place, of a VM that can."""
    converts = not scenario.kinds.isdisjoint((sc.Convert, sc.ConvertStream))
    return converts and scenario.guest.private_memory and scenario.conversion_mode == "out-of-place"


def backend_name(file: str) -> str:
    """Name of the file that backs what is shared of a guest_memfd."""
    return f"{file}.shared"

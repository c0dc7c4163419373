"""Metadata of confidential memory: AMD's reverse map table (RMP), Intel's PAMT, and what conversions do to both.

SEV-SNP: ``arch/x86/virt/svm/sev.c`` and ``arch/x86/kvm/svm/sev.c``. 16 bytes per 4 KiB of the host and 16 KiB of
bookkeeping. Entries are of 4 KiB or 2 MiB; there is no 1 GiB state. PSMASH turns a 2 MiB entry into 512 of 4 KiB and
there is no way back except to make all 512 shared and private again. What a guest's conversions do to both along a run is
:mod:`workbench.tracking.whole`.

TDX: ``arch/x86/virt/vmx/tdx/tdx.c`` (``tdmr_get_pamt_sz``) and the Dynamic PAMT and huge-page series, which are not in
Linux 7.3. The size of a PAMT entry comes from the TDX module; 16 bytes is what published totals agree with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workbench.errors import WorkbenchError
from workbench.profiles import VM_TYPES
from workbench.units import PAGE_SHIFT, PAGE_SIZE

Counts = int | npt.NDArray[np.int64]
RMP_ENTRY = 16
RMP_BOOKKEEPING = 0x4000
PAMT_ENTRY = 16
DPAMT_PAGES_PER_2M = 2
PAGES_2M = 512
PSC_MAX_ENTRIES = 253
"""Entries of a page-state-change request in the GHCB buffer (VMGEXIT_PSC_MAX_COUNT)."""
ACCEPT_CHUNK = 4 << 20
"""Memory a guest accepts at a time when it does so lazily."""

ENCRYPTED = ("snp", "tdx")
"""VM types whose private memory nobody on the host can read, or copy to another frame."""

LARGEST_LEAF = {name: made.largest_leaf for name, made in VM_TYPES.items()}


def leaves(mapped_1g: Counts, mapped_2m: Counts, largest: str) -> tuple[Counts, Counts]:
    """Leaves of 1 GiB and of 2 MiB where so many whole private blocks could have one, and none is above ``largest``."""
    if largest == "1 GiB":
        return mapped_1g, mapped_2m
    return 0 * mapped_1g, mapped_2m + PAGES_2M * mapped_1g if largest == "2 MiB" else 0 * mapped_2m


def rmp_bytes(memory: int) -> int:
    """Size of a contiguous RMP for ``memory`` bytes of host memory (``setup_contiguous_rmptable``)."""
    return (memory // PAGE_SIZE << 4) + RMP_BOOKKEEPING


def rmp_reserved(first: int, size: int) -> tuple[int, int]:
    """What the kernel reserves of a table at byte ``first``: start and end rounded out to 2 MiB."""
    huge = PAGES_2M * PAGE_SIZE
    return first // huge * huge, -(-(first + size) // huge) * huge


def rmp_segments(memory: int, segment: int) -> tuple[int, int]:
    """Number of segments and bytes of all their tables for the segmented RMP; ``segment`` is a power of two of GiB."""
    if segment < 1 << 30 or segment & (segment - 1):
        raise WorkbenchError(f"segment: {segment} is not a power of two of at least 1 GiB")
    count = -(-memory // segment)
    return count, memory // PAGE_SIZE * RMP_ENTRY


def pamt_bytes(regions: Sequence[int], entry: int = PAMT_ENTRY) -> int:
    """Static PAMT for TDMRs of the given sizes in bytes: arrays for 4 KiB, 2 MiB and 1 GiB, each in whole pages."""
    return sum(-(-((size >> shift) * entry) // PAGE_SIZE) * PAGE_SIZE for size in regions for shift in (12, 21, 30))


def dynamic_pamt_bytes(memory: int, private_2m: int, sept_pages: int = 0, entry: int = PAMT_ENTRY) -> tuple[int, int]:
    """Dynamic PAMT: bytes always there and bytes given on demand.

    Parameters
    ----------
    memory : bytes of the host in TDMRs. Always there: the 2 MiB and 1 GiB arrays and one bit per 4 KiB page
    private_2m : 2 MiB ranges held privately at 4 KiB, each of which needs a pair of pages
    sept_pages : pages of secure page tables, whose 2 MiB ranges need a pair too (counted as given, 512 at best)
    """
    always = (
        sum(-(-((memory >> shift) * entry) // PAGE_SIZE) * PAGE_SIZE for shift in (21, 30))
        + (memory >> PAGE_SHIFT) // 8
    )
    ranges = private_2m + -(-sept_pages // PAGES_2M)
    return always, ranges * DPAMT_PAGES_PER_2M * PAGE_SIZE


def accept_exits(page_size: int, chunk: int = ACCEPT_CHUNK, prefaulted: bool = False) -> float:
    """Extra exits while a guest accepts one chunk of memory: one per page that backs it, none if it was prefaulted.

    Below 1 when the page is larger than the chunk: one exit serves several chunks.
    """
    return 0.0 if prefaulted else chunk / page_size


def psc_requests(ranges: int) -> int:
    """Exits needed to name ``ranges`` ranges (4 KiB or 2 MiB each) in page-state-change requests."""
    return -(-ranges // PSC_MAX_ENTRIES)

"""What keeping a guest's memory costs in struct pages, vmemmap pages and page tables, exactly, for every design.

x86-64: a struct page is 64 bytes, so one 4 KiB page of vmemmap holds those of 64 pages (256 KiB of memory). Designs:

=============== ======================================================================================================
``filemap``     4 KiB folios of the page cache: every struct page exists
``hugetlb``     huge pages without vmemmap optimisation: every struct page exists, a split needs none
``hugetlb-hvo`` huge pages with HVO (``mm/hugetlb_vmemmap.c``): one vmemmap page for each, all again once split
``pfn-range``   no struct page for private memory: vmemmap only for 256 KiB groups with a shared page
=============== ======================================================================================================

``contiguous-4k`` and ``thp`` are as ``hugetlb``: every struct page exists.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workbench import design as designs
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.tracking.confidential import Counts, leaves
from workbench.units import PAGE_ORDERS, PAGE_SIZE

STRUCT_PAGE = 64
PAGES_PER_VMEMMAP_PAGE = PAGE_SIZE // STRUCT_PAGE
PMD_PAGES = 512 * PAGES_PER_VMEMMAP_PAGE
"""4 KiB pages whose struct pages one 2 MiB mapping of vmemmap holds (128 MiB of memory)."""


class VmemmapPages(NamedTuple):
    """4 KiB pages spent on the struct pages of a guest."""

    vmemmap: int
    """Pages holding struct pages."""
    tables: int
    """Page-table pages that exist because vmemmap is no longer mapped by 2 MiB entries."""
    shared_tails: int
    """Tail pages shared by all optimised folios, one per zone and order."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def full(order: int) -> int:
    """vmemmap pages of a folio whose struct pages all exist; orders below 6 share a page and count as 1."""
    return max(1, (1 << order) // PAGES_PER_VMEMMAP_PAGE)


def restored_by_split(order: int, to_order: int = 0) -> int:
    """vmemmap pages to add when an optimised folio is split: 7 and 4095 to 4 KiB, 511 for 1 GiB into 2 MiB."""
    if not 0 <= to_order < order:
        raise WorkbenchError(f"to_order: {to_order} is not below the folio's order {order}")
    if to_order < 7:  # VMEMMAP_TAIL_MIN_ORDER: nothing to optimise below two vmemmap pages
        return full(order) - 1
    return (1 << (order - to_order)) - 1


def vmemmap_pages(
    design: str,
    memory: int,
    page_size: str = "4 KiB",
    *,
    split: int = 0,
    shared_groups: int = 0,
    zones: int = 1,
    restored: int | None = None,
) -> VmemmapPages:
    """Pages spent on struct pages by one guest.

    Parameters
    ----------
    design : one of :data:`workbench.design.DESIGNS`
    memory : guest memory in bytes, all of it present
    page_size : huge page backing it
    split : huge pages now split to 4 KiB (hugetlb-hvo)
    shared_groups : 256 KiB groups with at least one shared page (pfn-range)
    zones : zones the huge pages come from
    restored : vmemmap pages held beyond one for each huge page, where a simulation counted them; overrides ``split``
    """
    kept = designs.find(design).struct_pages
    if page_size not in PAGE_ORDERS:
        raise WorkbenchError(f"page_size: {page_size!r} is not one of {', '.join(PAGE_ORDERS)}")
    pages = memory // PAGE_SIZE
    if kept == "all":
        return VmemmapPages(-(-pages // PAGES_PER_VMEMMAP_PAGE), 0, 0)
    if kept == "shared groups":
        return VmemmapPages(shared_groups, 0, 0)
    order = PAGE_ORDERS[page_size]
    if order == 0:
        raise WorkbenchError(f"page_size: {design} needs 2 MiB or 1 GiB pages")
    folios = pages >> order
    extra = split * (full(order) - 1) if restored is None else restored
    return VmemmapPages(folios + extra, -(-pages // PMD_PAGES), zones)


def stage2_table_pages(present_pages: Counts, mapped_1g: Counts, mapped_2m: Counts, largest: str = "1 GiB") -> Counts:
    """Second-stage page-table pages below the 1 GiB level, all present memory mapped as large as it can be.

    A 1 GiB range that no 1 GiB entry maps needs one table of 2 MiB entries, and each 2 MiB in it that no 2 MiB entry
    maps one of 4 KiB entries: 513 for a 1 GiB page split to the end. ``largest`` caps the level
    (:data:`workbench.tracking.confidential.LARGEST_LEAF`).
    """
    by_1g, by_2m = leaves(mapped_1g, mapped_2m, largest)
    return -(-present_pages // (1 << 18)) - by_1g + -(-present_pages // (1 << 9)) - 512 * by_1g - by_2m


def stage2_tables(present_pages: Counts, mapped_1g: Counts, mapped_2m: Counts, largest: str = "1 GiB") -> Counts:
    """All second-stage page-table pages: those of :func:`stage2_table_pages`, the root, and a table for each 512 GiB."""
    root = 1 * (present_pages > 0)
    upper = root - (-present_pages // (1 << 27))
    return upper + stage2_table_pages(present_pages, mapped_1g, mapped_2m, largest)


# ------------------------------------------------------------------------------------------ a real kernel's HVO


@dataclass(frozen=True)
class HvoStep:
    """One state of a recorded boot: huge pages in the pool, vmemmap pages the kernel counted, and what we say."""

    case: str
    page_size: str
    optimised: bool
    huge_pages: int
    measured_vmemmap: int
    measured_tables: int
    """Page-table pages beyond those before the first huge page of the boot; -1 where the boot came with a pool."""
    model_vmemmap: int


def read_hvo_recording(path: str | Path | None = None) -> list[HvoStep]:
    """The recording ``hvo.json.gz``: pools of huge pages allocated and freed with HVO on and off (Linux 7.3.4).

    The kernel counts struct page memory in nr_memmap_boot_pages and nr_memmap_pages (/proc/vmstat); the model takes
    the 6 GiB of the host and the pages in the pool, nothing else.
    """
    source = Path(path) if path is not None else datasets_path("recordings", "hvo.json.gz")
    try:
        document: dict[str, Any] = json.loads(gzip.decompress(source.read_bytes()))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"recording: {source.name} cannot be read: {error}") from None
    return hvo_steps(document, source.name)


def hvo_steps(document: Mapping[str, Any], name: str) -> list[HvoStep]:
    """The states in the document of such a recording; WorkbenchError naming the file if it is not whole."""
    try:
        return _hvo_steps(document)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise WorkbenchError(f"{name}: not a whole recording of struct pages: {type(error).__name__} {error}") from None


def _hvo_steps(document: Mapping[str, Any]) -> list[HvoStep]:
    memory = sum(int(node["mem"].removesuffix("M")) << 20 for node in document["topology"]["nodes"])
    steps = []
    for name, case in document["cases"].items():
        order = 18 if "1G" in name else 9
        optimised = "=on" in case["append"]
        first_tables = case["snaps"][0]["vmstat"]["nr_page_table_pages"]
        for number, snap in enumerate(case["snaps"]):
            meminfo, vmstat = snap["meminfo"], snap["vmstat"]
            huge = meminfo["Hugetlb"] // (4 << order)
            saved = huge * (full(order) - 1) if optimised else 0
            steps.append(
                HvoStep(
                    case=f"{name}/{number}",
                    page_size="1 GiB" if order == 18 else "2 MiB",
                    optimised=optimised,
                    huge_pages=huge,
                    measured_vmemmap=vmstat["nr_memmap_pages"] + vmstat["nr_memmap_boot_pages"],
                    measured_tables=vmstat["nr_page_table_pages"] - first_tables if len(case["snaps"]) > 1 else -1,
                    model_vmemmap=memory // PAGE_SIZE // PAGES_PER_VMEMMAP_PAGE - saved,
                )
            )
    return steps

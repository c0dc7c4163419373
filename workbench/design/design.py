"""What a way to track guest memory is made of: everything in which one design differs from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.units import PAGE_ORDERS


@dataclass(frozen=True)
class Design:
    """One way to track the memory of a guest.

    name : what a scenario calls it
    title : how people call it, in lists to choose from
    store : where the pfn of a private page is found: the page cache, or a light offset -> pfn map
    page_sizes : page sizes of a guest that it can back
    folios : what huge memory in the page cache is: pages of hugetlb; huge folios of the page allocator, without a pool; or 4 KiB
        folios that lie together
    struct_pages : which struct pages exist: all; one vmemmap page of a huge folio, the rest restored by a split (HVO); or
        those of shared groups only, restored by the conversion to shared
    small_fallback : 4 KiB pages may stand in for huge ones where the pool is empty
    device_access : a device that maps guest memory pins its pages, or is told when they go
    handover : format in which a file goes through kexec (:mod:`workbench.engine.handover`)
    pool : what the pools of its huge pages are called
    colour, marker, line : how figures draw it
    kernel : the kernel that has its huge pages, or its map (:mod:`workbench.profiles`), if the page size does not say which
    """

    name: str
    title: str
    store: Literal["page cache", "pfn map"]
    page_sizes: tuple[str, ...]
    struct_pages: Literal["all", "optimised", "shared groups"]
    small_fallback: bool
    device_access: Literal["pinned", "told"]
    handover: Literal["kho", "pfn-ranges"]
    pool: str
    colour: str
    marker: str
    line: str = "-"
    kernel: str = ""
    folios: Literal["hugetlb", "buddy", "small"] = "hugetlb"

    @property
    def small_only(self) -> bool:
        """Whether it has 4 KiB pages only."""
        return self.page_sizes == ("4 KiB",)

    def backing(self, page_size: str) -> str:
        """The size of its folios where a guest wants pages of ``page_size``: that, or the largest it has below."""
        return [
            size for size in PAGE_ORDERS if size in self.page_sizes and PAGE_ORDERS[size] <= PAGE_ORDERS[page_size]
        ][-1]

    @property
    def from_zones(self) -> bool:
        """Whether its huge memory comes from the zones that 4 KiB pages come from, not from pools filled at boot."""
        return self.store == "page cache" and self.folios != "hugetlb"

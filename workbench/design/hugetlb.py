"""Huge folios of the hugetlb series in the page cache, every struct page kept (HVO off): a split restores nothing."""

from workbench.design.design import Design

HUGETLB = Design(
    name="hugetlb",
    title="hugetlb",
    store="page cache",
    page_sizes=("4 KiB", "2 MiB", "1 GiB"),
    struct_pages="all",
    small_fallback=True,
    device_access="pinned",
    handover="kho",
    pool="hugetlb",
    colour="#d55e00",
    marker="^",
    line="--",
)

"""Linux 7.3: 4 KiB folios in the page cache (``virt/kvm/guest_memfd.c``), a struct page for every page."""

from workbench.design.design import Design

FILEMAP = Design(
    name="filemap",
    title="filemap (Linux 7.3)",
    store="page cache",
    page_sizes=("4 KiB",),
    struct_pages="all",
    small_fallback=False,
    device_access="pinned",
    handover="kho",
    pool="hugetlb",
    colour="#6e6e6e",
    marker="s",
)

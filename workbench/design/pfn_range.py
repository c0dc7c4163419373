"""No struct page for private memory: a light offset -> pfn map fed by a PFN range allocator (the seed mail's way out).

Shared groups are in the page cache as before; the conversion to shared restores their struct pages.
"""

from workbench.design.design import Design

PFN_RANGE = Design(
    name="pfn-range",
    title="PFN ranges, no struct page",
    store="pfn map",
    page_sizes=("4 KiB", "2 MiB", "1 GiB"),
    struct_pages="shared groups",
    small_fallback=False,
    device_access="told",
    handover="pfn-ranges",
    pool="range",
    colour="#0072b2",
    marker="o",
    kernel="proposal-no-struct-page",
)

"""4 KiB folios kept physically contiguous: the size of a mapping no longer follows from the size of a folio.

The memory of a file comes in contiguous ranges of the guest's page size and is in the page cache as order-0 folios from the
first fault on. KVM and the IOMMU map as much with one entry as lies together and is in one state, private or shared. A
conversion restructures nothing: it checks references, zaps, and the next fault maps what is whole. Every struct page, LRU
entry and xarray node of 4 KiB folios is there (no HVO), and a hole gives back whole ranges only, so that they stay whole.
Asked for 4 KiB at a time it is ``filemap``. On the list: mapping size decoupled from folio size; in no tree.
"""

from workbench.design.design import Design

CONTIGUOUS_4K = Design(
    name="contiguous-4k",
    title="contiguous 4 KiB folios",
    store="page cache",
    page_sizes=("4 KiB", "2 MiB", "1 GiB"),
    folios="small",
    struct_pages="all",
    small_fallback=False,
    device_access="pinned",
    handover="kho",
    pool="contiguous",
    colour="#009e73",
    marker="D",
    kernel="proposal-contiguous",
)

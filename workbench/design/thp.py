"""2 MiB folios of the buddy allocator: no pool, 4 KiB where none is left, split on conversion, re-formed when private again.

A folio comes from the zones that 4 KiB pages come from (unmovable, never ZONE_MOVABLE), in the order of the zonelist and above
the watermarks (``mm/page_alloc.c: zone_watermark_ok``); where no node of the policy has one left, 4 KiB folios stand in.
Every struct page exists, so that a split needs xarray nodes only and cannot fail for want of struct pages. A split folio
stays in one piece physically: it is re-formed in place, by the conversion itself (``merge: eager``), when the guest touches it
(``lazy``) or when khugepaged comes by (operation ``collapse``). 4 KiB folios that stood in are copied by it into a block that is
free then (:mod:`workbench.engine.khugepaged`), of guests whose memory the host can read; those of SNP and TDX guests stay small.
In no tree.
"""

from workbench.design.design import Design

THP = Design(
    name="thp",
    title="THP from the buddy allocator",
    store="page cache",
    page_sizes=("4 KiB", "2 MiB"),
    folios="buddy",
    struct_pages="all",
    small_fallback=True,
    device_access="pinned",
    handover="kho",
    pool="buddy",
    colour="#cc79a7",
    marker="P",
    line="-.",
    kernel="proposal-thp",
)

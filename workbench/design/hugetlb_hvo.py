"""``hugetlb`` with the vmemmap optimisation (``mm/hugetlb_vmemmap.c``): a split restores the struct pages of its folio."""

from dataclasses import replace

from workbench.design.hugetlb import HUGETLB

HUGETLB_HVO = replace(
    HUGETLB,
    name="hugetlb-hvo",
    title="hugetlb, vmemmap optimised",
    struct_pages="optimised",
    colour="#e69f00",
    marker="v",
    line="-",
)

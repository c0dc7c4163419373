"""Struct page accounting: the closed forms of vmemmap_dedup.rst, and a real kernel that allocated huge pages."""

from __future__ import annotations

import pytest

from workbench.errors import WorkbenchError
from workbench.tracking.struct_pages import (
    full,
    read_hvo_recording,
    restored_by_split,
    stage2_table_pages,
    vmemmap_pages,
)

GIB = 1 << 30


def test_recorded_kernel_agrees_to_the_page():
    """Linux 7.3.4 counts the vmemmap pages that the model predicts, with HVO on and off, before, during and after."""
    steps = read_hvo_recording()
    assert len(steps) == 21
    assert [step.measured_vmemmap for step in steps] == [step.model_vmemmap for step in steps]
    saved = {step.case: 24576 - step.measured_vmemmap for step in steps}
    assert saved["rt1G_on/1"] == 4095, "one 1 GiB page gives back all but one of its 4096 vmemmap pages"
    assert saved["boot1G_2_on/0"] == 2 * 4095 and saved["rt2M_on/2"] == 512 * 7
    assert saved["rt1G_on/3"] == 0, "freeing the huge page restores them"


def test_recorded_page_tables_of_a_1g_page():
    """A 1 GiB page needs 8 page tables for its 16 MiB of vmemmap, and they stay when it is freed."""
    tables = {step.case: step.measured_tables for step in read_hvo_recording()}
    assert tables["rt1G_on/1"] == 8 and tables["rt1G_on/3"] == 8


def test_pages_of_a_folio():
    assert (full(9), full(18)) == (8, 4096)
    assert (restored_by_split(9), restored_by_split(18), restored_by_split(18, 9)) == (7, 4095, 511)
    # two stages to one 4 KiB page: all heads of the first, then one 2 MiB folio (linux-semantics 5.7)
    assert restored_by_split(18, 9) + restored_by_split(9) == 518
    with pytest.raises(WorkbenchError, match="to_order"):
        restored_by_split(9, 9)


@pytest.mark.parametrize(
    ("design", "page_size", "more", "pages", "tables", "tails"),
    [
        ("filemap", "4 KiB", {}, 16 * 4096, 0, 0),
        ("hugetlb", "1 GiB", {}, 16 * 4096, 0, 0),
        ("hugetlb-hvo", "1 GiB", {}, 16, 16 * 8, 1),
        ("hugetlb-hvo", "1 GiB", {"split": 6}, 10 + 6 * 4096, 16 * 8, 1),
        ("hugetlb-hvo", "2 MiB", {"split": 622}, 8192 + 622 * 7, 16 * 8, 1),
        ("hugetlb-hvo", "2 MiB", {"restored": 14, "zones": 2}, 8192 + 14, 16 * 8, 2),
        ("pfn-range", "1 GiB", {}, 0, 0, 0),
        ("pfn-range", "1 GiB", {"shared_groups": 3932}, 3932, 0, 0),
    ],
)
def test_vmemmap_of_a_16_gib_guest(design, page_size, more, pages, tables, tails):
    spent = vmemmap_pages(design, 16 * GIB, page_size, **more)
    assert (spent.vmemmap, spent.tables, spent.shared_tails) == (pages, tables, tails)
    assert spent.total == pages + tables + tails


def test_relative_overhead_is_the_published_one():
    """1.5625 % without HVO; the seed's 512 x 512 pages of one 1 GiB split are 4096 vmemmap pages."""
    assert vmemmap_pages("filemap", GIB).vmemmap * 4096 / GIB == 0.015625
    assert full(18) * 4096 == 512 * 512 * 64


@pytest.mark.parametrize(
    ("mapped_1g", "mapped_2m", "largest", "tables"),
    [
        (2, 0, "1 GiB", 0),
        (1, 0, "1 GiB", 513),
        (1, 511, "1 GiB", 2),
        (2, 0, "2 MiB", 2),
        (2, 0, "4 KiB", 2 * 513),
        (0, 1024, "1 GiB", 2),
    ],
)
def test_second_stage_tables(mapped_1g, mapped_2m, largest, tables):
    assert stage2_table_pages(2 << 18, mapped_1g, mapped_2m, largest) == tables


@pytest.mark.parametrize(("design", "page_size"), [("slab", "1 GiB"), ("filemap", "3 MiB"), ("hugetlb-hvo", "4 KiB")])
def test_unknown_names_are_refused(design, page_size):
    with pytest.raises(WorkbenchError):
        vmemmap_pages(design, GIB, page_size)


def test_a_begun_2_mib_of_vmemmap_needs_a_whole_page_table() -> None:
    """One table of 512 entries maps the vmemmap of 32,768 pages (128 MiB); the guest of 129 MiB needs a second."""
    tables = [vmemmap_pages("hugetlb-hvo", size << 20, "2 MiB").tables for size in (2, 128, 130, 256, 258)]
    assert tables == [1, 1, 2, 2, 3]

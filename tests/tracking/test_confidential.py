"""RMP, PAMT and S-EPT against the published tables and against a page-by-page model."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import confidential as slow
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.tracking import confidential as c
from workbench.tracking.folio_file import ConversionFile
from workbench.tracking.host_memory import HostMemory
from workbench.tracking.whole import Whole

TIB = 1 << 40
GIB = 1 << 30


@pytest.mark.parametrize(("memory", "published"), [(1, 4294983680), (2, 8589950976), (12, 51539623936)])
def test_rmp_size_is_the_published_one(memory: int, published: int) -> None:
    """snp_rmp: Documentation/arch/x86/amd-memory-encryption.rst."""
    assert c.rmp_bytes(memory * TIB) == published
    assert round(100 * published / (memory * TIB), 4) == 0.3906


def test_rmp_reservation_and_segments() -> None:
    assert c.rmp_reserved(0x1000, 0x1000) == (0, 2 << 20)
    assert c.rmp_segments(5 * TIB // 4, TIB) == (2, 5 * TIB // 4 // 256)
    with pytest.raises(WorkbenchError, match="power of two"):
        c.rmp_segments(TIB, 3 << 30)


def test_pamt_static_and_dynamic_are_the_published_ones() -> None:
    """tdx_pamt: 4.1 GiB (0.4 %) static; 0.004 % and 8 KiB per 2 MiB dynamic."""
    assert c.pamt_bytes([GIB]) == 4_194_304 + 8_192 + 4096  # 16 bytes of the last array fill a page
    static = c.pamt_bytes([TIB])
    assert round(100 * static / TIB, 1) == 0.4
    assert 4.0 < static / GIB < 4.1
    always, demand = c.dynamic_pamt_bytes(TIB, 1)
    assert round(100 * always / TIB, 3) == 0.004
    assert 40 < always / (1 << 20) < 44
    assert demand == 8192
    assert round(100 * demand / (2 << 20), 4) == 0.3906
    assert c.dynamic_pamt_bytes(TIB, 10, sept_pages=513)[1] == 12 * 8192


@pytest.mark.parametrize(("page", "exits"), [(4096, 1024), (2 << 20, 2), (GIB, 1 / 256)])
def test_exits_of_lazy_acceptance(page: int, exits: float) -> None:
    """accept_exits: QEMU commit 4cdc489e; none after KVM_PRE_FAULT_MEMORY."""
    assert c.accept_exits(page) == exits
    assert c.accept_exits(page, prefaulted=True) == 0


def test_requests_hold_253_entries() -> None:
    assert [c.psc_requests(n) for n in (1, 253, 254, 512)] == [1, 1, 2, 3]


def test_cost_of_converting_part_of_a_2m_entry() -> None:
    """One PSMASH the first time and an update per page; a whole entry is one update."""
    rmp = slow.Rmp(1024)
    rmp.make_private(0, 1024)
    assert (rmp.counts.rmpupdate, rmp.entries_2m) == (2, 2)
    rmp.make_shared(5, 3)
    assert (rmp.counts.psmash, rmp.counts.rmpupdate) == (1, 5)
    rmp.make_shared(9, 1)
    assert (rmp.counts.psmash, rmp.counts.rmpupdate) == (1, 6)
    rmp.make_shared(512, 512)
    assert (rmp.counts.psmash, rmp.counts.rmpupdate) == (1, 7)
    assert rmp.max_mapping_level(0) == 0


def test_a_smashed_entry_comes_back_only_through_all_shared() -> None:
    rmp = slow.Rmp(512)
    rmp.make_private(0, 512)
    rmp.make_shared(0, 1)
    rmp.make_private(0, 1)
    assert (rmp.entries_2m, rmp.max_mapping_level(7)) == (0, 0)
    rmp.make_private(0, 512)
    assert rmp.entries_2m == 0
    rmp.make_shared(0, 512)
    rmp.make_private(0, 512)
    assert (rmp.entries_2m, rmp.max_mapping_level(7)) == (1, 1)
    assert rmp.direct_map_tables == 2


def test_small_folios_never_get_a_2m_entry() -> None:
    """Linux 7.3 always passes one page."""
    rmp = slow.Rmp(512)
    rmp.make_private(0, 512, folio_pages=1)
    assert (rmp.entries_2m, rmp.counts.rmpupdate) == (0, 512)


def test_an_rmp_fault_smashes() -> None:
    rmp = slow.Rmp(512)
    rmp.make_private(0, 512)
    rmp.guest_access(3, mapped_2m=True)
    assert rmp.counts.faults == 0
    rmp.guest_access(3, mapped_2m=False)
    assert (rmp.counts.faults, rmp.counts.psmash) == (1, 1)
    with pytest.raises(WorkbenchError, match="no 2 MiB entry"):
        rmp.psmash(0)


def test_direct_map_tables_of_a_gigabyte_at_worst() -> None:
    rmp = slow.Rmp(1 << 18)
    rmp.make_private(0, 1 << 18, folio_pages=1)
    assert rmp.direct_map_tables == 513


OPERATIONS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 2047), st.sampled_from([1, 2, 100, 512, 513, 1024])), max_size=30
)


@given(operations=OPERATIONS)
def test_rmp_is_a_page_by_page_model(operations: list[tuple[bool, int, int]]) -> None:
    rmp = slow.Rmp(2048)
    size = [0] * 2048  # pages of the entry that covers each page: 0, 1 or 512
    updates = smashes = 0
    for private, start, pages in operations:
        pages = min(pages, 2048 - start)
        (rmp.make_private if private else rmp.make_shared)(start, pages)
        for block in range(4):
            touched = [p for p in range(block * 512, block * 512 + 512) if start <= p < start + pages]
            if not touched:
                continue
            if private:
                if len(touched) == 512 and not any(size[p] for p in touched):
                    updates += 1
                    for p in touched:
                        size[p] = 512
                else:
                    for p in touched:
                        updates += size[p] == 0
                        size[p] = size[p] or 1
            elif size[touched[0]] == 512 and len(touched) == 512:
                updates += 1
                for p in touched:
                    size[p] = 0
            else:
                if size[touched[0]] == 512:
                    smashes += 1
                    for p in range(block * 512, block * 512 + 512):
                        size[p] = 1
                for p in touched:
                    updates += size[p] > 0
                    size[p] = 0
    assert (rmp.counts.rmpupdate, rmp.counts.psmash) == (updates, smashes)
    np.testing.assert_array_equal(rmp.state, [{0: 0, 1: 1, 512: 2}[s] for s in size])


def test_secure_ept_of_7_3_maps_everything_at_4k() -> None:
    tables = slow.SecureEpt(1024)
    tables.add(0, 1024)
    assert (tables.sept_pages, tables.demotes, tables.accepted_pages) == (2, 0, 1024)
    tables.remove(0, 512)
    assert (tables.sept_pages, tables.removed_pages) == (1, 512)


def test_demote_takes_a_table_and_under_dynamic_pamt_a_pair_of_pages() -> None:
    tables = slow.SecureEpt(1024, huge=True, dynamic_pamt=True)
    tables.add(0, 1024)
    assert (tables.sept_pages, tables.pamt_pages, tables.demotes) == (0, 0, 0)
    tables.remove(600, 1)
    assert (tables.sept_pages, tables.pamt_pages, tables.demotes) == (1, 2, 1)
    tables.remove(601, 1)
    tables.add(600, 2)
    assert (tables.sept_pages, tables.demotes) == (1, 1)  # nothing promotes it again
    assert tables.promote(1) == errno.EOPNOTSUPP
    assert tables.removed_pages == 2
    tables.remove(0, 1024)
    assert (tables.sept_pages, tables.pamt_pages) == (0, 0)


@pytest.mark.parametrize("cls", [slow.Rmp, slow.SecureEpt])
def test_sizes_are_whole_blocks(cls: type) -> None:
    with pytest.raises(WorkbenchError, match="2 MiB"):
        cls(100)


def test_ranges_outside_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="not inside"):
        slow.Rmp(512).make_private(500, 20)


@given(operations=OPERATIONS, size=st.sampled_from(["4 KiB", "2 MiB", "1 GiB"]), small=st.booleans())
def test_a_file_along_events_is_the_page_by_page_model(
    operations: list[tuple[bool, int, int]], size: str, small: bool
) -> None:
    """Entries of the RMP, updates, smashes, tables of the direct map, and pairs of dynamic PAMT pages, after each call."""
    pages = 2048 if size != "1 GiB" else 1 << 18
    file = ConversionFile(pages * 4096, size, generation="B", hvo=False, folios="small" if small else "hugetlb")
    whole = Whole(file, 1)
    file.guest_fault(0, pages * 4096)
    whole.look(0, pages)
    rmp, tables = slow.Rmp(pages), slow.SecureEpt(pages, dynamic_pamt=True)
    rmp.make_private(0, pages, folio_pages=1 if size == "4 KiB" else 512)
    tables.add(0, pages)
    for private, start, count in operations:
        count = min(count, 2048 - start)
        assert file.convert(start * 4096, count * 4096, "private" if private else "shared").errno == 0
        together = small and size != "4 KiB"
        if private:
            tables.add(start, count)
        else:
            tables.remove(start, count)
        for low in range(start, start + count):
            low = low if low == start or low % 512 == 0 else -1
            if low >= 0:
                high = min(start + count, low // 512 * 512 + 512)
                huge = together or file.state.level[low // 512] >= folio.HUGE_2M
                if private:
                    rmp.make_private(low, high - low, folio_pages=512 if huge else 1)
                else:
                    rmp.make_shared(low, high - low)
        whole.look(start, start + count)
        assert (whole.updates, whole.smashes) == (rmp.counts.rmpupdate, rmp.counts.psmash)
        assert whole.row()[2:4].tolist() == [rmp.entries_2m, len(rmp.direct_map_split)]
        assert whole.row()[5:].tolist() == [4096 * tables.pamt_pages]


def test_regions_without_private_memory() -> None:
    """4 GiB in 2 MiB pages on two nodes, in turns: the first 2 GiB of the file fill region 0 of both."""
    file = ConversionFile(4 << 30, "2 MiB", HostMemory.make(2), hvo=False)
    for block in range(2048):
        file.guest_fault(block << 21, 2 << 20, node=block % 2)
    whole = Whole(file, 2)
    whole.look(0, 1 << 20)
    assert whole.row()[4:6].tolist() == [2, 2]
    file.convert(0, 2 << 30, "shared")
    whole.look(0, 1 << 19)
    assert whole.row()[4:6].tolist() == [1, 1]
    file.convert(5 << 21, 4096, "private")  # block 5 lies on node 1
    whole.look(5 * 512, 5 * 512 + 1)
    assert whole.row()[4:6].tolist() == [1, 2]

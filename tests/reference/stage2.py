"""Page tables of those who use private memory: KVM stage 2 (EPT, NPT) and the IOMMU's second stage.

Linux: ``arch/x86/kvm/mmu/tdp_mmu.c`` (``kvm_tdp_mmu_map``, ``tdp_mmu_zap_leafs``), ``arch/x86/kvm/mmu/mmu.c``
(``kvm_mmu_max_mapping_level``), ``drivers/iommu`` for the same format. Four levels of 512 entries; leaves of 4 KiB
(level 0), 2 MiB (1) and 1 GiB (2). A leaf that a range to be unmapped touches goes away whole, as KVM zaps it; the
rest comes back by faults. Tables stay when their leaves are zapped and are freed when a larger leaf replaces them.

State:

========== ====================== ===================================================================================
``tables`` int64 (tables, 512)    4 KiB each; 0: not present; ``pfn << 2 | 3``: a leaf; ``table << 2 | 1``: a table
``top``    int64 (10,)            tables in use, free list, tables ever used, then what was counted: leaves installed
                                  of each level, leaves zapped of each level, flushes
========== ====================== ===================================================================================

Addresses are guest (or device) frame numbers, ``gfn``, of 4 KiB. The caller leaves room for 3 tables per leaf mapped.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, inlined_kernel, kernel

TABLE_BYTES = 4096
LEVELS = 4
ENTRY_SHIFT = 9
TABLES, FREE, EVER, MAPPED, ZAPPED, FLUSHES = 0, 1, 2, 3, 6, 9
TOP_FIELDS = 10
TABLES_PER_LEAF = 3
LEVEL_4K, LEVEL_2M, LEVEL_1G = 0, 1, 2


@kernel
def clear(tables: np.ndarray, top: np.ndarray) -> None:
    """Start with an empty root table, which is table 0 and always there."""
    top[:] = 0
    top[TABLES] = 1
    top[FREE] = -1
    top[EVER] = 1
    tables[0, :] = 0


@kernel
def room(tables: np.ndarray, top: np.ndarray) -> Int:
    """Number of tables that can still be allocated."""
    return tables.shape[0] - top[TABLES]


@kernel
def _new_table(tables: np.ndarray, top: np.ndarray) -> Int:
    if top[FREE] >= 0:
        table = top[FREE]
        top[FREE] = tables[table, 0]
    else:
        table = top[EVER]
        top[EVER] += 1
    top[TABLES] += 1
    for k in range(1 << ENTRY_SHIFT):
        tables[table, k] = 0
    return table


@inlined_kernel
def _walk(tables: np.ndarray, gfn: Int) -> tuple[Int, Int]:
    """The entry that maps ``gfn``, 0 if none does, and its level."""
    table = np.int64(0)
    level = LEVELS - 1
    while True:
        entry = tables[table, (gfn >> (ENTRY_SHIFT * level)) & 511]
        if entry == 0 or entry & 2:
            return entry, level
        table = entry >> 2
        level -= 1


@kernel
def translate(tables: np.ndarray, gfn: Int) -> Int:
    """Return the pfn that ``gfn`` is mapped to, -1 if it is not."""
    entry, level = _walk(tables, gfn)
    return (entry >> 2) + (gfn & ((1 << (ENTRY_SHIFT * level)) - 1)) if entry else -1


@kernel
def level_of(tables: np.ndarray, gfn: Int) -> Int:
    """Level of the leaf that maps ``gfn``, -1 if there is none."""
    entry, level = _walk(tables, gfn)
    return level if entry else -1


@kernel
def allowed_level(gfn: Int, pfn: Int, low: Int, high: Int, max_level: Int) -> Int:
    """Largest level at which ``gfn`` may map to ``pfn``.

    The aligned block must lie in ``[low, high)``, where memory is contiguous, private throughout and inside the
    memslot, and ``gfn`` and ``pfn`` must be aligned alike (``kvm_mmu_max_mapping_level``, ``hugepage_has_attrs``).
    """
    level = max_level
    while level > 0:
        mask = (1 << (ENTRY_SHIFT * level)) - 1
        first = gfn & ~mask
        if (gfn ^ pfn) & mask == 0 and first >= low and first + mask < high:
            return level
        level -= 1
    return 0


@kernel
def _free_below(tables: np.ndarray, top: np.ndarray, table: Int, level: Int) -> None:
    """Free ``table``, whose entries are of ``level``, and the tables below it; count the leaves it held as zapped."""
    for k in range(1 << ENTRY_SHIFT):
        entry = tables[table, k]
        if entry & 2:
            top[ZAPPED + level] += 1
        elif entry != 0:
            below = entry >> 2
            for j in range(1 << ENTRY_SHIFT):
                if tables[below, j] != 0:
                    top[ZAPPED + level - 1] += 1
            tables[below, 0] = top[FREE]
            top[FREE] = below
            top[TABLES] -= 1
    tables[table, 0] = top[FREE]
    top[FREE] = table
    top[TABLES] -= 1


@kernel
def install(tables: np.ndarray, top: np.ndarray, gfn: Int, pfn: Int, level: Int) -> bool:
    """Install the leaf of ``level`` that holds ``gfn``. False if a leaf is there already (a spurious fault).

    ``pfn`` is that of ``gfn``. Tables below a new larger leaf are freed and their leaves flushed.
    """
    table: Int = np.int64(0)
    at = LEVELS - 1
    while at > level:
        slot = (gfn >> (ENTRY_SHIFT * at)) & 511
        entry = tables[table, slot]
        if entry & 2:
            return False
        if entry == 0:
            below = _new_table(tables, top)
            tables[table, slot] = (below << 2) | 1
            table = below
        else:
            table = entry >> 2
        at -= 1
    slot = (gfn >> (ENTRY_SHIFT * level)) & 511
    entry = tables[table, slot]
    if entry & 2:
        return False
    mask = (1 << (ENTRY_SHIFT * level)) - 1
    if entry != 0:
        _free_below(tables, top, entry >> 2, level - 1)
        top[FLUSHES] += 1
    tables[table, slot] = ((pfn - (gfn & mask)) << 2) | 3
    top[MAPPED + level] += 1
    return True


@kernel
def install_range(
    tables: np.ndarray, top: np.ndarray, gfn: Int, pages: Int, pfn: Int, low: Int, high: Int, max_level: Int
) -> Int:
    """Map ``pages`` contiguous pages with the largest leaves allowed, as a prefault does.

    Returns the pages done; fewer than ``pages`` when tables ran out.
    """
    done = 0
    while done < pages:
        if room(tables, top) < TABLES_PER_LEAF:
            return done
        level = allowed_level(gfn + done, pfn + done, low, high, max_level)
        install(tables, top, gfn + done, pfn + done, level)
        size = 1 << (ENTRY_SHIFT * level)
        done += size - ((gfn + done) & (size - 1))
    return pages


@kernel
def zap(tables: np.ndarray, top: np.ndarray, gfn: Int, pages: Int) -> Int:
    """Remove every leaf that touches ``[gfn, gfn + pages)``. Returns the number of leaves; one flush if any."""
    end = gfn + pages
    zapped = 0
    while gfn < end:
        table = np.int64(0)
        level = LEVELS - 1
        while True:
            slot = (gfn >> (ENTRY_SHIFT * level)) & 511
            entry = tables[table, slot]
            if entry == 0:
                break
            if entry & 2:
                tables[table, slot] = 0
                top[ZAPPED + level] += 1
                zapped += 1
                break
            table = entry >> 2
            level -= 1
        size = 1 << (ENTRY_SHIFT * level)
        gfn = (gfn | (size - 1)) + 1
    if zapped > 0:
        top[FLUSHES] += 1
    return zapped


@kernel
def demote(tables: np.ndarray, top: np.ndarray, gfn: Int) -> bool:
    """Replace the leaf that holds ``gfn`` by a table of 512 leaves one level lower (TDH.MEM.PAGE.DEMOTE).

    False if there is no leaf or it is of 4 KiB. One table is added and one flush is needed.
    """
    table = np.int64(0)
    level = LEVELS - 1
    while True:
        slot = (gfn >> (ENTRY_SHIFT * level)) & 511
        entry = tables[table, slot]
        if entry == 0:
            return False
        if entry & 2:
            break
        table = entry >> 2
        level -= 1
    if level == 0:
        return False
    below = _new_table(tables, top)
    step = 1 << (ENTRY_SHIFT * (level - 1))
    for k in range(1 << ENTRY_SHIFT):
        tables[below, k] = (((entry >> 2) + k * step) << 2) | 3
    tables[table, slot] = (below << 2) | 1
    top[MAPPED + level - 1] += 1 << ENTRY_SHIFT
    top[ZAPPED + level] += 1
    top[FLUSHES] += 1
    return True


@kernel
def count_leaves(tables: np.ndarray, out: np.ndarray) -> None:
    """Count present leaves of each level into ``out`` (int64 (3,))."""
    out[:] = 0
    for a in range(512):
        one = tables[0, a]
        if one == 0:
            continue
        for b in range(512):
            two = tables[one >> 2, b]
            if two & 2:
                out[2] += 1
            elif two != 0:
                for c in range(512):
                    three = tables[two >> 2, c]
                    if three & 2:
                        out[1] += 1
                    elif three != 0:
                        for d in range(512):
                            if tables[three >> 2, d] != 0:
                                out[0] += 1

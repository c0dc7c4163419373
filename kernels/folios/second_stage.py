"""What the second stage (EPT, NPT) maps of a file: leaves that faults install and that conversions and holes take away.

``arch/x86/kvm/mmu/tdp_mmu.c``: a fault installs the largest leaf that the folio and the file's state allow
(``kvm_mmu_max_mapping_level``), in place of the smaller ones below it; a range that is zapped takes away the leaves in it.
A huge leaf that the edge of the range cuts goes away whole, but generation C splits it before it zaps what becomes shared
(``kvm_split_cross_boundary_leafs``), the leaf that starts where the range ends too (recorded). After a merge the small
leaves stay: the huge one comes back when the guest next faults a page that has none, the one that was converted (recorded).

One VM maps the file at aligned addresses in one memslot. Tables above the leaves are counted elsewhere.
"""

# ruff: noqa: F403, F405  (the codes and columns of folio_state are the vocabulary of these modules)

from __future__ import annotations

import numpy as np

from workbench.kernels.bits import ALL, ONE, ZERO, mask, popcount, test_bit
from workbench.kernels.compile import inlined_natural_kernel, natural_kernel
from workbench.kernels.folios.poison import any_poison
from workbench.kernels.folios.state import *

_NO_LEAF = np.uint8(0xFF ^ LEAF_MASK)


@inlined_natural_kernel
def any_leaf(s: FolioState) -> bool:
    return s.numbers[N_LEAVES_4K] + s.numbers[N_LEAVES_2M] + s.numbers[N_LEAVES_1G] > 0


@natural_kernel
def is_mapped(s: FolioState, page: int) -> bool:
    """Whether the second stage has a leaf for the page: the guest reaches it without a fault."""
    leaf = s.marks[page >> 9] & LEAF_MASK
    return leaf > LEAF_4K or (leaf == LEAF_4K and test_bit(s.small, page))


@natural_kernel
def _in_slot(s: FolioState, first: int, end: int) -> bool:
    return s.options[SLOT_END] == 0 or (s.options[SLOT_FIRST] <= first and end <= s.options[SLOT_END])


@inlined_natural_kernel
def uniform_1g(s: FolioState, giga: int) -> bool:
    """Whether 4 KiB folios that lie together fill 1 GiB, all private or all shared."""
    return s.gigas[giga, LEVEL] == 1 and (s.gigas[giga, SHARED] == 0 or s.gigas[giga, SHARED] == PAGES_1G)


@inlined_natural_kernel
def uniform_2m(s: FolioState, block: int) -> bool:
    """Whether the pages of 2 MiB are all private or all shared."""
    return s.blocks[block, SHARED] == 0 or s.blocks[block, SHARED] == PAGES_2M


@inlined_natural_kernel
def _poisoned_in(s: FolioState, first: int, pages: int) -> bool:
    """Whether a huge leaf would reach over a 4 KiB folio that is poisoned."""
    return s.numbers[N_POISONED] > 0 and any_poison(s, first, first + pages)


@natural_kernel
def _whole_1g(s: FolioState, block: int) -> bool:
    if s.options[FOLIOS] == SMALL_FOLIOS:
        giga = block >> 9
        return s.blocks[block, LEVEL] == SPLIT and uniform_1g(s, giga) and not _poisoned_in(s, giga << 18, PAGES_1G)
    return s.blocks[block, LEVEL] == HUGE_1G and s.gigas[block >> 9, SHARED] == 0


@natural_kernel
def _whole_2m(s: FolioState, block: int) -> bool:
    if s.options[FOLIOS] == SMALL_FOLIOS:
        return s.blocks[block, LEVEL] == SPLIT and uniform_2m(s, block) and not _poisoned_in(s, block << 9, PAGES_2M)
    return _whole_1g(s, block) or (s.blocks[block, LEVEL] == HUGE_2M and s.blocks[block, SHARED] == 0)


@natural_kernel
def has_huge_leaf(s: FolioState, block: int) -> bool:
    """Whether a fault in the 2 MiB range installs a leaf of at least that size."""
    within = _in_slot(s, block << 9, (block + 1) << 9)
    return within and s.options[LEAF_CAP] <= LEAF_2M_AT_MOST and _whole_2m(s, block)


@natural_kernel
def map_page(s: FolioState, page: int) -> None:
    """The guest faults on a page that is there; whole and private folios that were returned get their huge mapping back."""
    if is_mapped(s, page):
        return
    block, giga = page >> 9, page >> 18
    whole_1g, whole_2m = _whole_1g(s, block), _whole_2m(s, block)
    if whole_1g and s.marks[giga << 9] & RETURNED_1G != 0:
        s.marks[giga << 9] ^= np.uint8(RETURNED_1G)
        s.numbers[N_RETURNED_1G] -= 1
        s.numbers[N_REGAINED_1G] += 1
    elif whole_2m and s.marks[block] & RETURNED_2M != 0:
        s.marks[block] ^= np.uint8(RETURNED_2M)
        s.numbers[N_RETURNED_2M] -= 1
        s.numbers[N_REGAINED_2M] += 1
    if whole_1g and s.options[LEAF_CAP] == LEAF_ANY and _in_slot(s, giga << 18, (giga + 1) << 18):
        unmap_range(s, giga << 18, (giga + 1) << 18)
        for other in range(giga << 9, (giga + 1) << 9):
            s.marks[other] |= np.uint8(LEAF_1G)
        s.numbers[N_LEAVES_1G] += 1
    elif has_huge_leaf(s, block):
        unmap_range(s, block << 9, (block + 1) << 9)
        s.marks[block] = (s.marks[block] & _NO_LEAF) | np.uint8(LEAF_2M)  # a mark without leaves may be left
        s.numbers[N_LEAVES_2M] += 1
    else:
        s.marks[block] |= np.uint8(LEAF_4K)
        s.small[page >> 6] |= ONE << np.uint64(page & 63)
        s.numbers[N_LEAVES_4K] += 1


@natural_kernel
def map_alike(s: FolioState, first: int, end: int) -> None:
    """The guest faults on pages of one 2 MiB range of which the first is mapped and all are in one state."""
    if s.marks[first >> 9] & LEAF_MASK != LEAF_4K:
        return
    for word in range(first >> 6, ((end - 1) >> 6) + 1):
        bits = (s.small[word] ^ ALL) & mask(word, first, end)
        s.numbers[N_LEAVES_4K] += popcount(bits)
        s.small[word] |= bits


@natural_kernel
def unmap_range(s: FolioState, first: int, end: int) -> None:
    """Zap the leaves of pages [first, end), with all of a huge one of which only a part is in the range."""
    if not any_leaf(s):
        return
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        leaf = s.marks[block] & LEAF_MASK
        if leaf == LEAF_NONE:
            continue
        if leaf == LEAF_1G:
            s.numbers[N_LEAVES_1G] -= 1
            for other in range(block & -BLOCKS_1G, (block & -BLOCKS_1G) + BLOCKS_1G):
                s.marks[other] &= _NO_LEAF
            continue
        if leaf == LEAF_2M:
            s.numbers[N_LEAVES_2M] -= 1
            s.marks[block] &= _NO_LEAF
            continue
        low, high = max(first, block << 9), min(end, (block + 1) << 9)
        gone, small = np.int64(0), s.small  # in registers: a store could be to any array
        for word in range(low >> 6, ((high - 1) >> 6) + 1):
            bits = small[word] & mask(word, low, high)
            gone += popcount(bits)
            small[word] ^= bits
        s.numbers[N_LEAVES_4K] -= gone
        if high - low == PAGES_2M:
            s.marks[block] &= _NO_LEAF


@natural_kernel
def split_leaf(s: FolioState, page: int) -> None:
    """The huge leaf that maps a page becomes smaller ones, down to 4 KiB around the page."""
    block = page >> 9
    if page >= s.options[PAGES] or s.marks[block] & LEAF_MASK <= LEAF_4K:
        return
    if s.marks[block] & LEAF_MASK == LEAF_1G:
        s.numbers[N_LEAVES_1G] -= 1
        s.numbers[N_LEAVES_2M] += BLOCKS_1G
        for other in range(block & -BLOCKS_1G, (block & -BLOCKS_1G) + BLOCKS_1G):
            s.marks[other] = (s.marks[other] & _NO_LEAF) | np.uint8(LEAF_2M)
    s.numbers[N_LEAVES_2M] -= 1
    s.numbers[N_LEAVES_4K] += PAGES_2M
    s.marks[block] = (s.marks[block] & _NO_LEAF) | np.uint8(LEAF_4K)
    for word in range(block << 3, (block + 1) << 3):
        s.small[word] = ALL


@inlined_natural_kernel
def unmap_differing(s: FolioState, first: int, end: int, to_shared: bool) -> None:
    """Generation B zaps only what a conversion of [first, end) changes; of a huge leaf that has such a page, all."""
    if not any_leaf(s):
        return
    flip = ALL if to_shared else ZERO
    for block in range(first >> 9, ((end - 1) >> 9) + 1):
        low, high = max(first, block << 9), min(end, (block + 1) << 9)
        for word in range(low >> 6, ((high - 1) >> 6) + 1):
            leaf = s.marks[block] & LEAF_MASK
            if leaf == LEAF_NONE:
                break
            bits = (s.shared[word] ^ flip) & mask(word, low, high)
            if leaf > LEAF_4K:
                if bits != ZERO:
                    unmap_range(s, block << 9, (block + 1) << 9)
            elif bits & s.small[word] != ZERO:
                bits = bits & s.small[word]
                s.numbers[N_LEAVES_4K] -= popcount(bits)
                s.small[word] ^= bits


@natural_kernel
def count_uniform(s: FolioState, first_block: int, blocks: int, sign: int) -> None:
    """4 KiB folios that lie together come (``sign`` 1) or go (-1), and the huge mappings that they allow with them."""
    if sign < 0:
        if blocks == BLOCKS_1G:
            forget_returned(s, first_block, True)
        forget_returned_blocks(s, first_block, blocks)
    if blocks == BLOCKS_1G and uniform_1g(s, first_block >> 9):
        s.numbers[N_MAPPED_1G] += sign
        return
    for block in range(first_block, first_block + blocks):
        s.numbers[N_MAPPED_2M] += sign * uniform_2m(s, block)


@natural_kernel
def note_change(s: FolioState, block: int, was_2m: bool, was_1g: bool) -> None:
    """Pages of a 2 MiB of such folios have changed sides; what it and its 1 GiB could be mapped with before is given."""
    giga = block >> 9
    is_2m, is_1g = uniform_2m(s, block), uniform_1g(s, giga)
    if is_1g:
        s.numbers[N_MAPPED_1G] += 1
        s.numbers[N_MAPPED_2M] -= BLOCKS_1G - 1 + was_2m
        forget_returned_blocks(s, giga << 9, BLOCKS_1G)
        returned(s, giga << 9, True)
        return
    if was_1g:
        s.numbers[N_MAPPED_1G] -= 1
        s.numbers[N_LOST_1G] += not forget_returned(s, giga << 9, True)
        s.numbers[N_MAPPED_2M] += BLOCKS_1G
        was_2m = True
    if was_2m and not is_2m:
        s.numbers[N_MAPPED_2M] -= 1
        s.numbers[N_LOST_2M] += not forget_returned(s, block, False)
    elif is_2m and not was_2m:
        s.numbers[N_MAPPED_2M] += 1
        returned(s, block, False)


@natural_kernel
def forget_returned_blocks(s: FolioState, first_block: int, blocks: int) -> None:
    """None of these 2 MiB waits for a huge mapping of its own any more."""
    if s.numbers[N_RETURNED_2M] > 0:
        for block in range(first_block, first_block + blocks):
            forget_returned(s, block, False)


@natural_kernel
def returned(s: FolioState, block: int, giga_page: bool) -> None:
    """A merged folio waits for the guest's next fault on the page that was returned before it is mapped huge again."""
    if giga_page:
        s.marks[block] |= np.uint8(RETURNED_1G)
        s.numbers[N_RETURNED_1G] += 1
    else:
        s.marks[block] |= np.uint8(RETURNED_2M)
        s.numbers[N_RETURNED_2M] += 1


@natural_kernel
def forget_returned(s: FolioState, block: int, giga_page: bool) -> bool:
    """The folio is split or leaves the file. True: its huge mapping was still to come back."""
    flag = np.uint8(RETURNED_1G if giga_page else RETURNED_2M)
    if s.marks[block] & flag == 0:
        return False
    s.marks[block] ^= flag
    s.numbers[N_RETURNED_1G if giga_page else N_RETURNED_2M] -= 1
    return True

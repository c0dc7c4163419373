"""What :mod:`workbench.kernels.folios.run` keeps for one file: codes of operations, options, levels and counters, and the arrays.

State is 1 bit per 4 KiB page (set = shared) with one row of small integers per 2 MiB and per 1 GiB, so that a conversion
costs what it touches. Pages present need no bits of their own except where 4 KiB folios were allocated one by one
(``BASE``). References are kept only for 2 MiB ranges in which a page was ever referenced.

There are few arrays on purpose: the state is passed by value between compiled functions, and what compiling them costs
grows with the number of arrays in it. :class:`FolioState` gives Python code each quantity by its own name, as a view.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import numpy as np

from workbench.kernels.compile import record

EAGAIN, EBADF, EBUSY, EFAULT, EINVAL = errno.EAGAIN, errno.EBADF, errno.EBUSY, errno.EFAULT, errno.EINVAL
ENOENT, ENOMEM = errno.ENOENT, errno.ENOMEM
EHWPOISON = 133  # include/uapi/asm-generic/errno.h; Python's errno has no name for it
SIGBUS = -7
"""A host fault that raises the signal instead of returning: minus its number."""
NEEDS_ROOM = -1000
"""The room for references or poisoned pages is full; nothing was done for this operation: grow it and go on from there."""

PAGES_2M, PAGES_1G, BLOCKS_1G = 512, 262144, 512
"""4 KiB pages per 2 MiB and per 1 GiB; 2 MiB blocks per 1 GiB."""
ORDER_4K, ORDER_2M, ORDER_1G = 0, 9, 18
RESTORE_2M, RESTORE_1G, HEADS_1G = 7, 4095, 511
"""vmemmap pages a split needs: 2 MiB, 1 GiB at once, and 1 GiB into 512 optimised 2 MiB folios."""
XARRAY_NODES_1G, XARRAY_PAGES_1G = 4161, 596
"""Nodes of the page cache's xarray that a split of 1 GiB to 4 KiB adds, and the 4 KiB pages of their 149 slabs (16 KiB
with 28 nodes each), taken before the vmemmap (recorded)."""

NONE, BASE, SPLIT, HUGE_2M, HUGE_1G = 0, 1, 2, 3, 4
"""``level`` of a 2 MiB range: no folio; 4 KiB folios allocated singly; a split huge folio, or 4 KiB folios that lie together;
(part of) a huge folio."""
LEFT = -1
"""Likewise: (part of) a huge page that the closed file no longer has, kept from the pool by a long-term pin."""

# options
(
    PAGES,
    BACKING,
    GENERATION,
    SPLITTING,
    SPLIT_AT,
    MERGING,
    HVO,
    FALLBACK,
    DRAIN,
    XARRAY,
    LEAF_CAP,
    SLOT_FIRST,
    SLOT_END,
    FOLIOS,
) = range(14)
OPTIONS = 14
HUGETLB_FOLIOS, BUDDY_FOLIOS, SMALL_FOLIOS = 0, 1, 2
"""What the file's memory is: pages of hugetlb; huge folios of the page allocator, whose poisoned page is split off; 4 KiB
folios that lie together in units of the file's size and are never anything else."""
XARRAY_FREE, XARRAY_SLABS, XARRAY_TWO_LEVELS = 0, 1, 2
"""Nodes for a 1 GiB split: not counted; taken from memory before the vmemmap; never to be had, because ``xas_split`` of
stock 7.3 goes down two levels at most (ENOMEM)."""
LEAF_ANY, LEAF_2M_AT_MOST, LEAF_4K_ONLY = 0, 1, 2
"""Largest second-stage leaf: what the folio allows; 2 MiB (SNP); 4 KiB (TDX, slots that are not aligned). SLOT_FIRST,
SLOT_END: pages of the file in the memslot, outside of which no leaf may reach; SLOT_END 0: all of it."""
GENERATION_B, GENERATION_C = 0, 1
ONE_STEP, TWO_STAGE, TWO_STAGE_FULL = 0, 1, 2
"""TWO_STAGE_FULL: the first stage passes through the fully restored state, so 4095 pages must be free for a moment."""
AT_CONVERSION, AT_HOST_FAULT = 0, 1
EAGER, LAZY, NEVER = 0, 1, 2
"""LAZY merges at the next guest fault on the block or by the MERGE operation."""

# operations
(
    CONVERT,
    PIN,
    UNPIN,
    HOST_FAULT,
    GUEST_FAULT,
    PUNCH,
    POISON,
    MERGE,
    LRU_DRAIN,
    RELEASE,
    UNMAP,
    INSERT,
    COLLAPSE,
) = range(13)
OP, OFFSET, LENGTH, ARGUMENT, NODE, CPU = range(6)
"""Columns of a stream. ARGUMENT: CONVERT 1 = to shared; PIN, UNPIN kind (TRANSIENT, LONG_TERM, DEVICE); GUEST_FAULT 1 = as
private, AS_IT_IS = as each page is. UNMAP: the memslot of the range is deleted. INSERT: a folio of the file's size, taken from
its node by somebody else, is put in. COLLAPSE: the 4 KiB folios of the 2 MiB at OFFSET are copied into such a folio of NODE."""
AS_IT_IS = 2
TRANSIENT, LONG_TERM, DEVICE, ORPHAN, DEVICE_ORPHAN = range(5)
KINDS = 5
"""Kinds of references. DEVICE: the long-term pin of a device, which nobody else can drop; at most one for a page, of the file or
what was there before. ORPHAN, DEVICE_ORPHAN: such a pin on a page that was punched out of a file of 4 KiB folios meanwhile."""

COUNTERS = (
    "shared_pages",  # now
    "present_pages",
    "mapped_1g",  # huge mappings possible now: folio whole and all private, or 4 KiB folios together and all in one state
    "mapped_2m",
    "lost_1g",  # so far
    "lost_2m",
    "regained_1g",
    "regained_2m",
    "splits_1g",
    "splits_2m",
    "merges_1g",
    "merges_2m",
    "unoptimised_merges",
    "conversions",
    "converted_pages",
    "conversions_without_work",
    "failed_conversions",
    "rollbacks",
    "invalidations",
    "invalidated_bytes",
    "private_pages_lost",
    "spins",
    "lru_drains",
    "zeroed_pages",
    "vmemmap_taken",
    "vmemmap_freed",
    "vmemmap_spilled",
    "vmemmap_peak",
    "orphaned_pins",  # now
    "lru_held",  # now
    "poisoned_pages",  # now
    "reference_rows",  # rows of ``reference_counts`` in use
    "withheld_huge_pages",  # designs that keep poisoned units from their pool; hugetlb hands them out again
    "pinned_huge_pages",  # now; huge pages of a closed file that go back to the pool with their last pin
    "returned_1g",  # now; whole and private again, mapped small until the guest next faults the returned page
    "returned_2m",
    "leaves_4k",  # now; second-stage leaves
    "leaves_2m",
    "leaves_1g",
    "poisoned_to_pool",  # huge pages that went back to their pool with a poisoned page in them
    "xarray_pages",  # now; 4 KiB pages of the slabs that xarray nodes of split 1 GiB pages take
    "content_lost_pages",  # so far; pages with content in a merged huge page that is not up to date: zeroed at the next touch
    "content_stale_pages",  # so far; pages that nothing had zeroed in a merged huge page that is up to date
    "collapsed_2m",  # so far; 2 MiB folios into which 4 KiB folios were copied
    "copied_pages",  # so far; by that
)
(
    N_SHARED,
    N_PRESENT,
    N_MAPPED_1G,
    N_MAPPED_2M,
    N_LOST_1G,
    N_LOST_2M,
    N_REGAINED_1G,
    N_REGAINED_2M,
    N_SPLITS_1G,
    N_SPLITS_2M,
    N_MERGES_1G,
    N_MERGES_2M,
    N_UNOPTIMISED,
    N_CONVERSIONS,
    N_CONVERTED,
    N_WITHOUT_WORK,
    N_FAILED,
    N_ROLLBACKS,
    N_INVALIDATIONS,
    N_INVALIDATED,
    N_LOST_PRIVATE,
    N_SPINS,
    N_DRAINS,
    N_ZEROED,
    N_TAKEN,
    N_FREED,
    N_SPILLED,
    N_PEAK,
    N_ORPHANED,
    N_LRU,
    N_POISONED,
    N_ROWS,
    N_WITHHELD,
    N_PINNED,
    N_RETURNED_1G,
    N_RETURNED_2M,
    N_LEAVES_4K,
    N_LEAVES_2M,
    N_LEAVES_1G,
    N_POISONED_TO_POOL,
    N_XARRAY_PAGES,
    N_CONTENT_LOST,
    N_CONTENT_STALE,
    N_COLLAPSED,
    N_COPIED,
) = range(45)

BATCH = 31
"""include/linux/folio_batch.h: FOLIO_BATCH_SIZE."""


# columns of ``blocks`` and ``gigas``
SHARED, LEVEL, SLABS = 0, 1, 2
"""LEVEL of a 1 GiB block: 1 where one 1 GiB page of the pool backs it, in whatever state. SLABS, of a 1 GiB block only: the
first of one column per node, pages that xarray nodes take while it is split."""
# columns of ``backing``
FULL, HOME, EXTRA = 0, 1, 2
"""EXTRA: the first of one column per node."""
# values and flags of ``marks``
LEAF_NONE, LEAF_4K, LEAF_2M, LEAF_1G, LEAF_MASK = 0, 1, 2, 3, 3
RETURNED_2M, RETURNED_1G = 4, 8
"""RETURNED_1G is set at the first 2 MiB of a 1 GiB page."""
UPTODATE_ALL, UPTODATE_SOME = 16, 32
"""Every folio of the 2 MiB is up to date: the guest or the host has touched it, and it was zeroed before; some are, which
bits tell. Neither: none is."""
# columns of ``pages``
PRESENT, UPTODATE, CONTENT_LOST = 0, 1, 2
"""PRESENT only where level is BASE; UPTODATE only where the mark is UPTODATE_SOME; CONTENT_LOST: a merge gave the page's
content up, until the page leaves the file."""
# columns of ``pool_poison``
POISON_NODE, POISON_SIZE, POISON_DEPTH, POISON_PAGE = range(4)
# columns of ``host``
FREE, POOL, POOL_FULL, POISONED, ORDER = 0, 1, 3, 5, 6
"""POOL, POOL_FULL: 2 MiB, then 1 GiB; POISONED: pages in all files and pools, in the first row; ORDER: the first of one column
per node; after them twice as many, POOL_EXTRA."""
# entries of ``numbers`` after the counters
AT, RELEASED, TAKEN = len(COUNTERS), len(COUNTERS) + 1, len(COUNTERS) + 2
"""AT: page named by the error of the operation, or -1; TAKEN: one entry per node, then as many for pages given back."""


class _Arrays(NamedTuple):
    shared: np.ndarray
    """uint64 (W,), bit set = page shared."""
    pages: np.ndarray
    """uint64 (W, 3), a bit for each page in columns PRESENT, UPTODATE and CONTENT_LOST."""
    blocks: np.ndarray
    """int16 (B2, 2), columns SHARED and LEVEL: what every conversion looks at."""
    gigas: np.ndarray
    """int32 (B1, 2 + N), likewise, then SLABS."""
    backing: np.ndarray
    """int16 (B2 + B1, 2 + N), a row for each 2 MiB, then for each 1 GiB; columns FULL, HOME, EXTRA."""
    marks: np.ndarray
    """uint8 (B2,), what the second stage maps the 2 MiB with, whether its huge mapping is still to come back, and whether its
    folios are up to date."""
    small: np.ndarray
    """uint64 (W,), bit set = the second stage maps the page with a 4 KiB leaf; only where the mark is LEAF_4K."""
    reference_row: np.ndarray
    """int32 (B2,), row of ``reference_counts``, 0 = no reference yet."""
    reference_counts: np.ndarray
    """int32 (rows, 513, KINDS), references per page and kind; last "page": in TRANSIENT the sum of those on pages of the file, in
    ORPHAN of the others, 0 else. Row 0 is unused."""
    poison: np.ndarray
    """int64 (rows,), poisoned pages, the first ``poisoned_pages`` entries, ascending."""
    batch: np.ndarray
    """int64 (cpus, 32), pages in each CPU's lru_add batch, -1 for a page that left the file; last column: how many."""
    host: np.ndarray
    """int64 (N, ORDER + 3 N), :func:`new_host`; with ``pool_poison`` the only array that is not the file's own."""
    pool_poison: np.ndarray
    """int64 (rows, 4), poisoned pages inside huge pages that are in a pool: node, size, how many huge pages were given
    back after it (pools are LIFO, ``mm/hugetlb.c: enqueue_hugetlb_folio``), page in it; node -1: row is free."""
    options: np.ndarray
    """int64 (OPTIONS,)."""
    numbers: np.ndarray
    """int64 (COUNTERS + 2 + 2 N,), counters, then AT, RELEASED, TAKEN."""


@record
class FolioState(_Arrays):
    """One file; B1, B2 = blocks of 1 GiB, of 2 MiB, W = 64-page words, N = nodes.

    The properties are views of the arrays, by what they mean.
    """

    __slots__ = ()

    @property
    def counts(self) -> np.ndarray:
        """int64 (COUNTERS,)."""
        return self.numbers[: len(COUNTERS)]

    @property
    def taken(self) -> np.ndarray:
        """int64 (N,), vmemmap pages this file took from each node so far."""
        return self.numbers[TAKEN : TAKEN + len(self.host)]

    @property
    def freed(self) -> np.ndarray:
        """int64 (N,), and gave back."""
        return self.numbers[TAKEN + len(self.host) :]

    @property
    def present(self) -> np.ndarray:
        """uint64 (W,), pages present, only where level is BASE."""
        return self.pages[:, PRESENT]

    @property
    def uptodate(self) -> np.ndarray:
        """uint64 (W,), pages whose folio is up to date, only where the mark is UPTODATE_SOME."""
        return self.pages[:, UPTODATE]

    @property
    def content_lost(self) -> np.ndarray:
        """uint64 (W,), pages of the file whose content a merge gave up."""
        return self.pages[:, CONTENT_LOST]

    @property
    def shared_2m(self) -> np.ndarray:
        """int16 (B2,), shared pages of each 2 MiB."""
        return self.blocks[:, SHARED]

    @property
    def shared_1g(self) -> np.ndarray:
        """int32 (B1,), likewise of each 1 GiB."""
        return self.gigas[:, SHARED]

    @property
    def level(self) -> np.ndarray:
        """int16 (B2,), LEFT, NONE ... HUGE_1G."""
        return self.blocks[:, LEVEL]

    @property
    def whole_1g(self) -> np.ndarray:
        """int32 (B1,), 1 where one 1 GiB page of the pool backs the block, in whatever state."""
        return self.gigas[:, LEVEL]

    @property
    def full_2m(self) -> np.ndarray:
        """int16 (B2,), 1 where the vmemmap of the 2 MiB folio is restored."""
        return self.backing[: len(self.blocks), FULL]

    @property
    def full_1g(self) -> np.ndarray:
        """int16 (B1,), likewise for 1 GiB folios split in one step."""
        return self.backing[len(self.blocks) :, FULL]

    @property
    def extra_2m(self) -> np.ndarray:
        """int16 (B2, N), vmemmap pages held by node beyond the one an optimised folio keeps."""
        return self.backing[: len(self.blocks), EXTRA:]

    @property
    def extra_1g(self) -> np.ndarray:
        """int16 (B1, N), likewise."""
        return self.backing[len(self.blocks) :, EXTRA:]

    @property
    def slabs_1g(self) -> np.ndarray:
        """int32 (B1, N), pages that xarray nodes take."""
        return self.gigas[:, SLABS:]

    @property
    def node(self) -> np.ndarray:
        """int16 (B2,), node index of the folio."""
        return self.backing[: len(self.blocks), HOME]

    @property
    def references(self) -> np.ndarray:
        """int32 (rows, 512, KINDS), references per page and kind; row 0 unused."""
        return self.reference_counts[:, :PAGES_2M]

    @property
    def reference_total(self) -> np.ndarray:
        """int32 (rows, 2), sums of each row: on pages of the file; orphans."""
        return self.reference_counts[:, PAGES_2M, [TRANSIENT, ORPHAN]]

    @property
    def vmemmap(self) -> np.ndarray:
        """int64 (N,), free pages of the host that vmemmap can be restored from."""
        return self.host[:, FREE]

    @property
    def pool(self) -> np.ndarray:
        """int64 (N, 2), free 2 MiB and 1 GiB pages of the host."""
        return self.host[:, POOL:POOL_FULL]

    @property
    def pool_full(self) -> np.ndarray:
        """int64 (N, 2), how many of them are not vmemmap-optimised (they are taken first)."""
        return self.host[:, POOL_FULL:POISONED]

    @property
    def pool_extra(self) -> np.ndarray:
        """int64 (N, 2, N), the vmemmap pages those hold, by node."""
        nodes = len(self.host)
        return self.host[:, ORDER + nodes :].reshape(nodes, 2, nodes)


def new_host(vmemmap: np.ndarray, order: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The host's part of :class:`FolioState`, which files may share.

    Parameters
    ----------
    vmemmap : int64 (N,), free pages that vmemmap can be restored from
    order : int64 (N, N), row n: nodes tried in this order for memory wanted on n
    pool : int64 (N, 2), free 2 MiB and 1 GiB pages, all of them vmemmap-optimised
    """
    nodes = len(vmemmap)
    host = np.zeros((nodes, ORDER + 3 * nodes), np.int64)
    host[:, FREE], host[:, POOL:POOL_FULL], host[:, ORDER : ORDER + nodes] = vmemmap, pool, order
    return host


def new_pool_poison() -> np.ndarray:
    """No poisoned page in any pool, room for 16 of them."""
    return np.full((16, 4), -1, np.int64)


def new_state(
    options: np.ndarray, host: np.ndarray, cpus: int = 1, pool_poison: np.ndarray | None = None
) -> FolioState:
    """An empty, all-private file with options int64 (OPTIONS,) on a host of :func:`new_host`.

    Bits past the end of the file stay 0, and arrays cover whole 1 GiB blocks.
    """
    nodes = len(host)
    blocks_1g = -(-int(options[PAGES]) // PAGES_1G)
    blocks_2m = blocks_1g * BLOCKS_1G
    return FolioState(
        shared=np.zeros(blocks_2m * 8, np.uint64),
        pages=np.zeros((blocks_2m * 8, 3), np.uint64),
        blocks=np.zeros((blocks_2m, 2), np.int16),
        gigas=np.zeros((blocks_1g, SLABS + nodes), np.int32),
        backing=np.zeros((blocks_2m + blocks_1g, EXTRA + nodes), np.int16),
        marks=np.zeros(blocks_2m, np.uint8),
        small=np.zeros(blocks_2m * 8, np.uint64),
        reference_row=np.zeros(blocks_2m, np.int32),
        reference_counts=np.zeros((8, PAGES_2M + 1, KINDS), np.int32),
        poison=np.zeros(8, np.int64),
        batch=np.zeros((cpus, BATCH + 1), np.int64),
        host=host,
        pool_poison=new_pool_poison() if pool_poison is None else pool_poison,
        options=np.concatenate((options, np.zeros(OPTIONS - len(options), np.int64))),
        numbers=np.zeros(TAKEN + 2 * nodes, np.int64),
    )


def grown(state: FolioState) -> FolioState:
    """The same state with twice the room for what the last operation lacked room for (after NEEDS_ROOM): poisoned pages, or
    else references.

    Files that share a host must share the new ``pool_poison`` too; what one file pins must not make it longer.
    """

    def twice(array: np.ndarray, value: int = 0) -> np.ndarray:
        return np.concatenate([array, np.full_like(array, value)])

    poisoned = state.host[0, POISONED]
    if poisoned >= len(state.poison):
        return state._replace(poison=twice(state.poison))
    if poisoned >= len(state.pool_poison):
        return state._replace(pool_poison=twice(state.pool_poison, -1))
    return state._replace(reference_counts=twice(state.reference_counts))

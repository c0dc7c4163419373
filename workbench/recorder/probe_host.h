// SPDX-License-Identifier: Apache-2.0
/*
 * What the supervisor looks at of the host beside the pages of a file: counters of each node, huge page pools, areas set
 * aside for kexec handover, and where the pages of a file are that nobody can map. Part of probe.c.
 */

static bool node_vmstat(int node)
{
	char path[96];
	snprintf(path, sizeof path, "/sys/devices/system/node/node%d/vmstat", node);
	return read_file(path, big, sizeof big) >= 0;
}

/* The value of a counter in the text read last; -1 if this kernel does not have it. */
static long counter(const char *name)
{
	size_t length = strlen(name);
	for (char *line = big; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, length) && line[length] == ' ')
			return atol(line + length);
	}
	return -1;
}

/*
 * Page tables and nodes of the page cache are freed after a grace period of RCU. Two of them, and time for what runs then;
 * a kernel without membarrier() has to wait longer.
 */
static void let_frees_happen(void)
{
	const int global = 1;                           /* MEMBARRIER_CMD_GLOBAL */
	long waited = syscall(CALL_MEMBARRIER, global, 0, 0) | syscall(CALL_MEMBARRIER, global, 0, 0);
	usleep(waited ? 200000 : 30000);
}

/* Pages of each node by use. Counters that are kept per CPU are folded first, so the numbers are whole. */
static void report_node_counters(void)
{
	static const struct { const char *shown, *name; } counters[] = {
		{ "MemFree", "nr_free_pages" }, { "CmaFree", "nr_free_cma" }, { "FilePages", "nr_file_pages" },
		{ "Shmem", "nr_shmem" }, { "AnonPages", "nr_anon_pages" }, { "PageTables", "nr_page_table_pages" },
		{ "SecPageTables", "nr_sec_page_table_pages" }, { "SReclaimable", "nr_slab_reclaimable" },
		{ "SUnreclaim", "nr_slab_unreclaimable" }, { "Unevictable", "nr_unevictable" },
	};
	let_frees_happen();
	refresh_counters();
	key("counters");
	put("{");
	for (int node = 0; node < node_count; node++) {
		put("%s\"%d\":{", node ? "," : "", node);
		if (node_vmstat(node))
			for (size_t i = 0, shown = 0; i < sizeof counters / sizeof *counters; i++) {
				long pages = counter(counters[i].name);
				if (pages >= 0)
					put("%s\"%s\":%ld", shown++ ? "," : "", counters[i].shown, pages);
			}
		put("}");
	}
	put("}");
}

/* ................................................................................................. huge page pools */

#define POOLS "/sys/devices/system/node/node%d/hugepages/hugepages-%skB/%s"
static const char *const pool_sizes[] = { "2048", "1048576" };

static int write_pool(const char *size, int node, const char *pages)
{
	char path[128];
	snprintf(path, sizeof path, POOLS, node, size, "nr_hugepages");
	return write_file(path, pages);
}

/* pool 2M|1G NODE PAGES: result of the write, and how many there are then. */
static void set_pool(const char *size, int node, const char *pages)
{
	char path[128], value[32] = "";
	const char *kilobytes = strcmp(size, "1G") ? pool_sizes[0] : pool_sizes[1];
	int result = write_pool(kilobytes, node, pages);
	snprintf(path, sizeof path, POOLS, node, kilobytes, "nr_hugepages");
	read_file(path, value, sizeof value);
	number("ret", result < 0 ? -1 : 0);
	number("errno", result < 0 ? -result : 0);
	number("pages", atol(value));
}

static void report_pools(void)
{
	static const char *const fields[] = { "nr_hugepages", "free_hugepages", "surplus_hugepages" };
	char path[128], value[32];
	int sizes = 0;
	key("pools");
	put("{");
	for (size_t size = 0; size < 2; size++) {
		snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%skB/resv_hugepages", pool_sizes[size]);
		if (read_file(path, value, sizeof value) < 0)
			continue;
		put("%s\"%s\":{\"resv\":%ld", sizes++ ? "," : "", pool_sizes[size], atol(value));
		for (int node = 0; node < node_count; node++) {
			put(",\"%d\":{", node);
			for (size_t i = 0, shown = 0; i < sizeof fields / sizeof *fields; i++) {
				snprintf(path, sizeof path, POOLS, node, pool_sizes[size], fields[i]);
				if (read_file(path, value, sizeof value) > 0)
					put("%s\"%.*s\":%ld", shown++ ? "," : "", (int)strcspn(fields[i], "_"), fields[i], atol(value));
			}
			put("}");
		}
		put("}");
	}
	put("}");
}

static void empty_pools(void)
{
	for (size_t size = 0; size < 2; size++)
		for (int node = 0; node < node_count; node++)
			write_pool(pool_sizes[size], node, "0");
}

/* ................................................................................................. kexec handover */

/* The node whose zone spans a frame. */
static int node_of_frame(unsigned long frame)
{
	char *rest;
	unsigned long spanned = 0, start;
	int node = -1;
	if (read_file("/proc/zoneinfo", big, sizeof big) < 0)
		return -1;
	for (char *line = strtok_r(big, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		sscanf(line, "Node %d,", &node);
		sscanf(line, " spanned %lu", &spanned);
		if (sscanf(line, " start_pfn: %lu", &start) == 1 && frame >= start && frame < start + spanned)
			return node;
	}
	return -1;
}

/* The areas that were set aside (first frame, pages, node) and whether the devices of live update are there. */
static void report_handover(void)
{
	char starts[2048] = "", lengths[2048] = "", *next_start = starts, *next_length = lengths;
	int areas = 0;
	long present_ = read_file("/sys/kernel/debug/kho/out/scratch_phys", starts, sizeof starts);
	read_file("/sys/kernel/debug/kho/out/scratch_len", lengths, sizeof lengths);
	key("kho");
	put("{\"present\":%d,\"liveupdate\":%d,\"scratch\":[", present_ >= 0, access("/dev/liveupdate", F_OK) == 0);
	while (*next_start == '0' && *next_length == '0') {
		unsigned long start = strtoul(next_start, &next_start, 16) / PAGE;
		unsigned long pages = strtoul(next_length, &next_length, 16) / PAGE;
		put("%s[%lu,%lu,%d]", areas++ ? "," : "", start, pages, node_of_frame(start));
		next_start += *next_start == '\n';
		next_length += *next_length == '\n';
	}
	put("]}");
}

/* ............................................................................. pages that cannot be mapped by anybody */

/*
 * Where the pages of a private file are: take one after the other out of the file and see on which node the pages of
 * the page cache become fewer. The pages are gone then.
 */
static void reveal(int file, long start, long count)
{
	long before[MAX_NODES], found = 0;
	int fd = syscall(CALL_PIDFD_GETFD, process_fd, box->files[file].fd, 0);
	if (fd < 0 || start < 0 || count < 0 || start + count > MAX_PAGES || (count && !find_present(fd, start, count))) {
		place_error("place ERR reveal %ld+%ld", start, count);
		if (fd >= 0)
			close(fd);
		return;
	}
	refresh_counters();
	for (int node = 0; node < node_count; node++)
		before[node] = node_vmstat(node) ? counter("nr_file_pages") : 0;
	for (long i = 0; i < count; i++) {
		int where = -1;
		if (!present[start + i])
			continue;
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (start + i) * PAGE, PAGE))
			continue;
		refresh_counters();
		for (int node = 0; node < node_count; node++) {
			long now = node_vmstat(node) ? counter("nr_file_pages") : 0;
			if (now < before[node])
				where = node;
			before[node] = now;
		}
		present_index[found] = i;
		observed_node[found++] = where;
	}
	report_found("place", start, count, found);
	close(fd);
}

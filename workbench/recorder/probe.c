// SPDX-License-Identifier: Apache-2.0
/*
 * PID 1 of the emulated host: runs a script of system calls on guest_memfd files and reports what happened.
 *
 * Three kinds of threads:
 *   supervisor   this process; reads /script.txt, observes, writes one JSON object per line to the virtio port
 *   tasks        a fresh process per script with one thread per task; each waits in futex() on a mailbox in shared
 *                memory, makes exactly one call per command and goes back to sleep. Everything a task touches besides
 *                the call itself is touched beforehand, so a task allocates no other memory than the call needs.
 *   hogs         processes that hold memory on a node until they are told to give it back
 *
 * Which page of a file is on which node is read by the supervisor, never by a task: cachestat(2) says which pages
 * exist (mincore(2) would miss fallocated ones), a mapping of the supervisor's own and move_pages(2) without target
 * nodes say where they are.
 *
 * probe_private.h has the calls on private memory, probe_host.h what is looked at of the host, probe_interfaces.h the
 * kernel's interfaces by number. Every verb of a script is described in language.py.
 *
 * Built by record.py: gcc -O2 -static -pthread -o probe probe.c
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/uio.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "probe_interfaces.h"

enum { MODE_DEFAULT, MODE_PREFERRED, MODE_BIND, MODE_INTERLEAVE };

#define PAGE 4096L
#define MAX_FILES 8
#define MAX_TASKS 8
#define MAX_NODES 64
#define MAX_PAGES (1 << 17)
#define MAX_WORDS 16
#define MASK_LONGS 16           /* 1024 node bits, as many as the kernel is built for */
#define MASK_BITS (MASK_LONGS * 64 + 1) /* the kernel looks at one bit less than it is told */
#define CALL_TIMEOUT_US 120000000L
#define GUARD (64 * PAGE)

enum file_kind { FILE_NONE, FILE_GUEST_MEMFD, FILE_MEMFD, FILE_HUGETLB, FILE_ANONYMOUS };

struct file {
	int fd;                     /* -1 for anonymous memory, which is none */
	enum file_kind kind;
	long pages;
	char *address;              /* the tasks' mapping, NULL if there is none */
};

/* One command to one task and its answer; also the files, which both sides need to know. Shared memory. */
struct mailbox {
	volatile int turn;          /* 0: supervisor; 1 + n: task n */
	volatile int ready;         /* tasks that are up */
	const struct verb *verb;    /* the same address in all processes: they are forked */
	int file;
	long argument[8];
	uint64_t mask[MASK_LONGS];
	long mask_bits;             /* 0 passes a NULL mask */
	long result;
	int error;
	long extra[6];
	uint64_t mask_out[MASK_LONGS];
	struct file files[MAX_FILES];
	uint32_t order[MAX_PAGES];
	void *page_address[MAX_PAGES];
	int page_node[MAX_PAGES], page_status[MAX_PAGES];
};

static struct mailbox *box;
static int node_count = 1;
static uint64_t nodes_with_memory = 1;
static char boot_weight[MAX_NODES][8];

static long now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static long futex(volatile int *word, int operation, int value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

/* ------------------------------------------------------------------------------------------------- output as JSON lines */

static int port = 1;
static char buffer[1 << 16];
static size_t buffered;
static bool first_key;

static void flush(void)
{
	for (size_t done = 0; done < buffered;) {
		ssize_t n = write(port, buffer + done, buffered - done);
		if (n <= 0)
			break;
		done += n;
	}
	buffered = 0;
}

static void put(const char *format, ...)
{
	va_list arguments;
	if (buffered > sizeof buffer - 4096)
		flush();
	va_start(arguments, format);
	int n = vsnprintf(buffer + buffered, 4096, format, arguments);
	va_end(arguments);
	buffered += n < 4096 ? n : 4095;
}

static void put_text(const char *text)
{
	put("\"");
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			put("\\%c", *c);
		else if (*c < ' ' || *c > '~')
			put("\\u%04x", *c);
		else
			put("%c", *c);
	}
	put("\"");
}

static void begin(void)
{
	put("{");
	first_key = true;
}

static void key(const char *name)
{
	put(first_key ? "" : ",");
	first_key = false;
	put_text(name);
	put(":");
}

static void number(const char *name, long value)
{
	key(name);
	put("%ld", value);
}

static void text(const char *name, const char *value)
{
	key(name);
	put_text(value);
}

static void end(void)
{
	put("}\n");
	flush();
}

static long read_file(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	size_t length = 0;
	for (ssize_t n; length < size - 1 && (n = read(fd, to + length, size - 1 - length)) > 0;)
		length += n;
	to[length] = 0;
	close(fd);
	return length;
}

/* 0, or the errno of open or write, negative. */
static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	int error = write(fd, value, strlen(value)) < 0 ? -errno : 0;
	close(fd);
	return error;
}

static void put_lines(char *content)
{
	char *rest, *line = strtok_r(content, "\n", &rest);
	put("[");
	for (bool first = true; line; line = strtok_r(NULL, "\n", &rest), first = false) {
		put(first ? "" : ",");
		put_text(line);
	}
	put("]");
}

static char big[1 << 20];

static void dump(const char *path)
{
	if (read_file(path, big, sizeof big) < 0)
		return;
	begin();
	text("file", path);
	key("lines");
	put_lines(big);
	end();
}

static void dump_kernel_log(const char *name)
{
	int length = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, big, sizeof big - 1);
	if (length <= 0)
		return;
	big[length] = 0;
	begin();
	text("file", name);
	key("lines");
	put_lines(big);
	end();
}

/* ----------------------------------------------------------------------------------------------------- reading words */

static long length_in_bytes(const char *word)
{
	char *suffix;
	long value = strtol(word, &suffix, 0);
	return *suffix == 'b' ? value : value * PAGE;
}

static int file_number(const char *word)
{
	return (*word == 'g' ? atoi(word + 1) : atoi(word)) & (MAX_FILES - 1);
}

struct name {
	const char *name;
	long value;
};

static const struct name mode_names[] = {
	{ "DEFAULT", MODE_DEFAULT }, { "PREFERRED", MODE_PREFERRED }, { "BIND", MODE_BIND },
	{ "INTERLEAVE", MODE_INTERLEAVE }, { "LOCAL", 4 }, { "PREFERRED_MANY", 5 }, { "WEIGHTED_INTERLEAVE", 6 },
	{ "STATIC", 1 << 15 }, { "RELATIVE", 1 << 14 }, { "NUMA_BALANCING", 1 << 13 }, { NULL, 0 },
};
static const struct name mbind_names[] = { { "STRICT", 1 }, { "MOVE", 2 }, { "MOVE_ALL", 4 }, { NULL, 0 } };
static const struct name huge_names[] = { { "2M", 21 }, { "1G", 30 }, { NULL, 0 } };
static const struct name vm_names[] = {
	{ "none", 0 }, { "sw_protected", 1 }, { "sev", 2 }, { "sev_es", 3 }, { "snp", 4 }, { "tdx", 5 }, { NULL, 0 },
};
static const struct name attribute_names[] = { { "private", ATTRIBUTE_PRIVATE }, { "shared", 0 }, { NULL, 0 } };
static const struct name capability_names[] = {
	{ "MEMORY_ATTRIBUTES", CAP_MEMORY_ATTRIBUTES }, { "GUEST_MEMFD", CAP_GUEST_MEMFD }, { "VM_TYPES", CAP_VM_TYPES },
	{ "PRE_FAULT_MEMORY", CAP_PRE_FAULT_MEMORY }, { "GUEST_MEMFD_FLAGS", CAP_GUEST_MEMFD_FLAGS },
	{ "GUEST_MEMFD_MEMORY_ATTRIBUTES", CAP_OF_FILE_ATTRIBUTES }, { NULL, 0 },
};
static const struct name create_names[] = {
	{ "MMAP", 1 }, { "SHARED", 2 }, { "HUGETLB_2M", FLAG_HUGETLB }, { "HUGETLB_1G", FLAG_HUGETLB }, { NULL, 0 },
};

/* Names or numbers joined by |. */
static long flags_of(const char *word, const struct name *names)
{
	char copy[128], *rest;
	long flags = 0;
	snprintf(copy, sizeof copy, "%s", word);
	for (char *part = strtok_r(copy, "|", &rest); part; part = strtok_r(NULL, "|", &rest)) {
		const struct name *known = names;
		while (known->name && strcmp(known->name, part))
			known++;
		flags |= known->name ? known->value : strtol(part, NULL, 0);
	}
	return flags;
}

static void set_mask(const char *word)
{
	char copy[256], *rest;
	memset(box->mask, 0, sizeof box->mask);
	box->mask_bits = strcmp(word, "-") ? MASK_BITS : 0;
	if (!box->mask_bits || !strcmp(word, "none"))
		return;
	snprintf(copy, sizeof copy, "%s", word);
	for (char *part = strtok_r(copy, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
		int low, high, found = sscanf(part, "%d-%d", &low, &high);
		for (int node = found > 0 ? low : 0; found > 0 && node <= (found == 2 ? high : low); node++)
			box->mask[node / 64 % MASK_LONGS] |= 1ULL << node % 64;
	}
}

static uint64_t random_state;

static uint64_t xorshift(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* The order in which a touch visits count pages: seq, rev, rand SEED or stride K. */
static void set_order(long count, const char *kind, uint64_t parameter)
{
	uint32_t *order = box->order;
	bool reverse = !strcmp(kind, "rev");
	for (long i = 0; i < count; i++)
		order[i] = reverse ? count - 1 - i : i;
	if (!strcmp(kind, "rand")) {
		random_state = parameter ? parameter : 0x9E3779B97F4A7C15ULL;
		for (long i = count - 1; i > 0; i--) {
			long other = xorshift() % (i + 1);
			uint32_t kept = order[i];
			order[i] = order[other];
			order[other] = kept;
		}
	} else if (!strcmp(kind, "stride")) {
		long step = parameter ? parameter : 1, filled = 0;
		for (long start = 0; start < step; start++)
			for (long i = start; i < count; i += step)
				order[filled++] = i;
	}
}

/* ------------------------------------------------------------------------------------------------------ the tasks' side */

static __thread sigjmp_buf after_fault;
static __thread volatile bool fault_expected;

static void on_fault(int signal)
{
	if (!fault_expected)
		_exit(99);
	siglongjmp(after_fault, signal);
}

static void catch_faults(void)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

static bool touch_page(volatile char *address, bool write)
{
	bool reached = false;
	fault_expected = true;
	if (!sigsetjmp(after_fault, 1)) {
		if (write)
			*address = 1;
		else
			(void)*address;
		reached = true;
	}
	fault_expected = false;
	return reached;
}

/* Map a whole file between two holes, so that a range which runs over an end of it meets no other mapping. */
static char *map_file(int fd, long pages)
{
	size_t size = pages * PAGE;
	char *room = mmap(NULL, size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return NULL;
	char *mapped = mmap(room + GUARD, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	int error = errno;
	if (mapped == MAP_FAILED) {
		munmap(room, size + 2 * GUARD);
		mapped = NULL;
	} else {
		munmap(room, GUARD);
		munmap(room + GUARD + size, GUARD);
	}
	errno = error;
	return mapped;
}

/* Huge pages must lie at their own alignment, which only the kernel's choice of address gives. */
static char *map_huge(int fd, long pages)
{
	char *mapped = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	return mapped == MAP_FAILED ? NULL : mapped;
}

/* The virtual machine of the script: one vCPU, one memslot per file, made when first needed. */
static int kvm = -1, vm = -1, vcpu = -1;
static struct kvm_run *run_page;
static bool has_slot[MAX_FILES];

#define GUEST_CODE 0x1000UL
#define GUEST_FILE(file) (0x10000000UL + (file) * 0x1c000000UL)

static int make_vcpu(void)
{
	/* 32-bit, flat: write a byte to each of ecx pages from edi on, then halt. */
	static const unsigned char code[] = {
		0x88, 0x07,                                     /* again: mov [edi], al */
		0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,             /* add edi, 4096 */
		0xe2, 0xf6,                                     /* loop again */
		0xf4,                                           /* hlt */
	};
	size_t size = 16 * PAGE;
	if (vcpu >= 0)
		return 0;
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return -1;
	run_page = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	char *low = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (run_page == MAP_FAILED || low == MAP_FAILED)
		return -1;
	memcpy(low + GUEST_CODE, code, sizeof code);
	struct kvm_userspace_memory_region slot = {
		.slot = MAX_FILES, .guest_phys_addr = 0, .memory_size = size, .userspace_addr = (uintptr_t)low,
	};
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

/* The memslot of a file; shared accesses go to a mapping, which may be that of another file. */
static int set_slot(int number_, const char *shared)
{
	struct file *file = &box->files[number_];
	bool private = file->kind == FILE_GUEST_MEMFD;
	struct kvm_userspace_memory_region2 slot = {
		.slot = number_,
		.flags = private ? MEMSLOT_GUEST_MEMFD : 0,
		.guest_phys_addr = GUEST_FILE(number_),
		.memory_size = file->pages * PAGE,
		.userspace_addr = (uintptr_t)shared,
		.guest_memfd = private ? file->fd : 0,
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &slot))
		return -1;
	has_slot[number_] = true;
	return 0;
}

static int make_slot(int number_)
{
	return has_slot[number_] ? 0 : set_slot(number_, box->files[number_].address);
}

/* KVM_EXIT_MEMORY_FAULT: the flags (8 if the access was private) and the page of the file. */
static void note_memory_fault(int file)
{
	const uint64_t *fault = (const uint64_t *)((const char *)run_page + 32);        /* flags, gpa, size */
	box->extra[1] = EXIT_MEMORY_FAULT;
	box->extra[3] = fault[0];
	box->extra[4] = ((long)fault[1] - (long)GUEST_FILE(file)) / PAGE;
}

/* Let the guest write to count pages. 0 if it halted, 1000 + exit reason, or a negative step that failed. */
static long guest_touch(int file, long page, long count)
{
	struct kvm_sregs system;
	struct kvm_regs registers = {
		.rip = GUEST_CODE, .rflags = 2, .rdi = GUEST_FILE(file) + page * PAGE, .rcx = count, .rax = 1,
	};
	struct kvm_segment flat = {
		.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	if (ioctl(vcpu, KVM_GET_SREGS, &system))
		return -1;
	system.ds = system.es = system.ss = system.fs = system.gs = flat;
	flat.selector = 8;
	flat.type = 11;
	system.cs = flat;
	system.cr0 |= 1;
	if (ioctl(vcpu, KVM_SET_SREGS, &system))
		return -2;
	if (ioctl(vcpu, KVM_SET_REGS, &registers))
		return -3;
	long failed = ioctl(vcpu, KVM_RUN, 0);
	int error = errno;
	ioctl(vcpu, KVM_GET_REGS, &registers);
	box->extra[0] = count - (long)registers.rcx;
	errno = error;
	if (failed) {
		if (run_page->exit_reason == EXIT_MEMORY_FAULT)
			note_memory_fault(file);
		errno = error;
		return -4;
	}
	box->extra[1] = run_page->exit_reason;
	return run_page->exit_reason == KVM_EXIT_HLT ? 0 : 1000 + run_page->exit_reason;
}

#define FILE_OF_CALL (&box->files[box->file])
#define ARGUMENT(n) (box->argument[n])
#define NOWHERE ((char *)0x100000000000UL)

/* The file's mapping, or addresses where nothing is mapped: near NULL, a long file would reach the program itself. */
static char *address_of_call(void)
{
	return FILE_OF_CALL->address ? FILE_OF_CALL->address : NOWHERE;
}

/*
 * Whether files of this machine convert in place, asked of a file: a conversion of nothing is EINVAL where the call is there
 * and changes nothing, and ENOTTY elsewhere, be it for the kernel's version or for kvm.gmem_in_place_conversion.
 */
static bool converts_in_place(int machine)
{
	struct kvm_create_guest_memfd wanted = { .size = PAGE };
	struct attributes_of_file nothing = { .attributes = 0 };
	int fd = ioctl(machine, KVM_CREATE_GUEST_MEMFD, &wanted);
	if (fd < 0)
		return false;
	bool there = !ioctl(fd, SET_ATTRIBUTES_OF_FILE, &nothing) || errno == EINVAL;
	close(fd);
	return there;
}

/* KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: which attributes a file takes; and the number under which the kernel says so. */
static long file_attributes(int machine, long *number_)
{
	if (!converts_in_place(machine))
		return 0;
	for (long capability = CAP_OF_FILE_FIRST; capability <= CAP_OF_FILE_LAST; capability++) {
		long answer = ioctl(machine, KVM_CHECK_EXTENSION, capability);
		if (answer == ATTRIBUTE_PRIVATE) {
			*number_ = capability;
			return answer;
		}
	}
	return 0;
}

/* extra[1]: huge pages were asked for by name and are none of this kernel's flags; what it says to them stands, too. */
static long do_create(void)
{
	struct file *file = FILE_OF_CALL;
	struct create_with_order wanted = {
		.size = ARGUMENT(0) * PAGE, .flags = ARGUMENT(1), .page_order = ARGUMENT(2),
	};
	if (ARGUMENT(2)) {
		long flags = ioctl(vm, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_FLAGS);
		box->extra[1] = flags < 0 || !(flags & FLAG_HUGETLB);
	}
	if (box->extra[1])
		wanted.page_order = 0;
	long fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &wanted);
	int error = errno;
	*file = (struct file){ .fd = fd, .kind = FILE_GUEST_MEMFD, .pages = ARGUMENT(0) };
	if (fd >= 0 && (ARGUMENT(1) & 1)) {
		file->address = map_file(fd, file->pages);
		box->extra[0] = file->address ? 0 : -errno;
	}
	errno = error;
	return fd;
}

static long do_memfd(void)
{
	struct file *file = FILE_OF_CALL;
	struct stat status = { 0 };
	unsigned int flags = ARGUMENT(1) ? MFD_HUGETLB | (unsigned int)ARGUMENT(1) << MFD_HUGE_SHIFT : 0;
	long fd = syscall(SYS_memfd_create, "recorder", flags);
	*file = (struct file){ .fd = fd, .kind = flags ? FILE_HUGETLB : FILE_MEMFD, .pages = ARGUMENT(0) };
	if (fd >= 0 && !ftruncate(fd, file->pages * PAGE)) {
		file->address = flags ? map_huge(fd, file->pages) : map_file(fd, file->pages);
		if (file->address && !flags)
			madvise(file->address, file->pages * PAGE, MADV_NOHUGEPAGE);
		fstat(fd, &status);
		box->extra[0] = status.st_ino;
	}
	return fd;
}

static long do_alias(void)
{
	struct file *of = &box->files[ARGUMENT(0)];
	char *address = map_file(of->fd, of->pages);
	if (!address)
		return -1;
	*FILE_OF_CALL = (struct file){ dup(of->fd), of->kind, of->pages, address };
	return 0;
}

static long do_mmap(void)
{
	struct file *file = FILE_OF_CALL;
	char *address;
	if (ARGUMENT(0)) {
		address = mmap(NULL, file->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file->fd, 0);
		address = address == MAP_FAILED ? NULL : address;
	} else {
		address = map_file(file->fd, file->pages);
	}
	if (address && !file->address)
		file->address = address;
	return address ? 0 : -1;
}

static long do_unmap(void)
{
	char *address = address_of_call();
	FILE_OF_CALL->address = NULL;
	return munmap(address, FILE_OF_CALL->pages * PAGE);
}

static long do_close(void)
{
	struct file *file = FILE_OF_CALL;
	if (file->address)
		munmap(file->address, file->pages * PAGE);
	if (has_slot[box->file]) {
		struct kvm_userspace_memory_region nothing = { .slot = box->file };
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &nothing);
		has_slot[box->file] = false;
	}
	long result = file->kind == FILE_ANONYMOUS ? 0 : close(file->fd);
	*file = (struct file){ .fd = -1 };
	return result;
}

static long do_mbind(void)
{
	return syscall(SYS_mbind, address_of_call() + ARGUMENT(0), ARGUMENT(1), ARGUMENT(2),
		       box->mask_bits ? box->mask : NULL, box->mask_bits, ARGUMENT(3));
}

static long do_setpol(void)
{
	return syscall(SYS_set_mempolicy, ARGUMENT(0), box->mask_bits ? box->mask : NULL, box->mask_bits);
}

/*
 * Puts the rotation in a known state, il_prev = MAX_NUMNODES - 1 and il_weight = 0, and leaves no policy. The second call
 * may allocate under the policy of the first; with the highest node alone that leaves a state which goes on just so.
 */
static long do_reset(void)
{
	uint64_t mask[MASK_LONGS] = { 1ULL << (63 - __builtin_clzll(nodes_with_memory)) };
	return syscall(SYS_set_mempolicy, MODE_INTERLEAVE, mask, MASK_BITS) | syscall(SYS_set_mempolicy, MODE_DEFAULT, NULL, 0);
}

static long do_setcpu(void)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (ARGUMENT(0) < 0 || cpu == ARGUMENT(0))
			CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof set, &set);
}

static long do_home(void)
{
	return syscall(CALL_HOME_NODE, address_of_call() + ARGUMENT(0), ARGUMENT(1), ARGUMENT(2), 0);
}

static long do_fallocate(void)
{
	return syscall(SYS_fallocate, FILE_OF_CALL->fd, (int)ARGUMENT(2), ARGUMENT(0), ARGUMENT(1));
}

static long do_touch(void)
{
	long reached = 0;
	box->extra[0] = 0;
	box->extra[1] = -1;
	for (long i = 0; i < ARGUMENT(1); i++) {
		long page = ARGUMENT(0) + box->order[i];
		if (touch_page(address_of_call() + page * PAGE, ARGUMENT(2)))
			reached++;
		else if (!box->extra[0]++)
			box->extra[1] = page;
	}
	return reached;
}

static long do_prefault(void)
{
	if (make_vcpu() || make_slot(box->file)) {
		box->extra[1] = 1;
		return -1;
	}
	struct kvm_pre_fault_memory range = {
		.gpa = GUEST_FILE(box->file) + ARGUMENT(0) * PAGE, .size = ARGUMENT(1) * PAGE,
	};
	long result;
	do
		result = ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	while (result < 0 && errno == EINTR);
	box->extra[0] = range.size / PAGE;
	return result;
}

static long do_vtouch(void)
{
	if (make_vcpu() || make_slot(box->file)) {
		box->extra[2] = 1;
		return -1;
	}
	return guest_touch(box->file, ARGUMENT(0), ARGUMENT(1));
}

/* get_mempolicy: arguments are the page (or -1 for the task) and whether to ask for a node (MPOL_F_NODE). */
static long do_get_mempolicy(void)
{
	bool at_address = ARGUMENT(0) >= 0, node = ARGUMENT(1);
	int mode = -1;
	memset(box->mask_out, 0, sizeof box->mask_out);
	long result = syscall(SYS_get_mempolicy, &mode, node ? NULL : box->mask_out, node ? 0 : MASK_BITS,
			      at_address ? address_of_call() + ARGUMENT(0) * PAGE : NULL, node | at_address << 1);
	box->extra[0] = mode;
	return result;
}

static long do_movepages(void)
{
	long count = ARGUMENT(1), same = 0;
	for (long i = 0; i < count; i++) {
		box->page_address[i] = address_of_call() + (ARGUMENT(0) + i) * PAGE;
		box->page_node[i] = ARGUMENT(2);
		box->page_status[i] = -9999;
	}
	long result = syscall(SYS_move_pages, 0, count, box->page_address, box->page_node, box->page_status, (int)ARGUMENT(3));
	int error = errno;
	for (long i = 0; i < count; i++)
		same += box->page_status[i] == box->page_status[0];
	box->extra[0] = box->page_status[0];
	box->extra[1] = box->page_status[count - 1];
	box->extra[2] = same;
	errno = error;
	return result;
}

static long do_migrate(void)
{
	uint64_t from[MASK_LONGS] = { 1ULL << ARGUMENT(0) }, to[MASK_LONGS] = { 1ULL << ARGUMENT(1) };
	return syscall(SYS_migrate_pages, 0, MASK_BITS, from, to);
}

static long do_madvise(void)
{
	return madvise(address_of_call() + ARGUMENT(0) * PAGE, ARGUMENT(1) * PAGE, ARGUMENT(2));
}

static long do_capability(void)
{
	return ARGUMENT(0) == CAP_OF_FILE_ATTRIBUTES ? file_attributes(vm, &box->extra[0])
						     : ioctl(vm, KVM_CHECK_EXTENSION, ARGUMENT(0));
}

#include "probe_private.h"
#include "probe_handover.h"

/* --------------------------------------------------------------------------------------- verbs: words in, results out */

struct verb {
	const char *name;
	long (*call)(void);                             /* runs in the task */
	void (*read)(char *const *word, int words);     /* fills the mailbox; word[0] is the verb */
	void (*report)(void);                           /* adds what the call returned besides ret and errno */
};

static void read_file_word(char *const *w)
{
	box->file = file_number(w[1]);
}

static void read_pages(char *const *w, int words)
{
	(void)words;
	read_file_word(w);
	for (int i = 0; i < 3; i++)
		ARGUMENT(i) = atol(w[2 + i]);
}

static void read_bytes(char *const *w)
{
	read_file_word(w);
	ARGUMENT(0) = length_in_bytes(w[2]);
	ARGUMENT(1) = length_in_bytes(w[3]);
}

static void read_only_file(char *const *w, int words)
{
	(void)words;
	read_file_word(w);
}

static void read_create(char *const *w, int words)
{
	read_pages(w, words);
	ARGUMENT(1) = flags_of(w[3], create_names);
	ARGUMENT(2) = strstr(w[3], "HUGETLB_2M") ? 9 : strstr(w[3], "HUGETLB_1G") ? 18 : 0;
}

static void read_memfd(char *const *w, int words)
{
	read_pages(w, words);
	ARGUMENT(1) = flags_of(w[3], huge_names);
}

static void read_vm(char *const *w, int words)
{
	(void)words;
	ARGUMENT(0) = flags_of(w[1], vm_names);
}

static void read_capability(char *const *w, int words)
{
	(void)words;
	ARGUMENT(0) = flags_of(w[1], capability_names);
}

static void read_slot(char *const *w, int words)
{
	read_file_word(w);
	ARGUMENT(0) = words > 2 && strcmp(w[2], "-") ? file_number(w[2]) : -1;
}

static void read_attributes(char *const *w, int words)
{
	(void)words;
	read_bytes(w);
	ARGUMENT(2) = flags_of(w[4], attribute_names);
	ARGUMENT(3) = strtol(w[5], NULL, 0);
}

static void read_pin(char *const *w, int words)
{
	read_pages(w, words);
	ARGUMENT(2) = !strcmp(w[4], "splice");
}

static void read_alias(char *const *w, int words)
{
	(void)words;
	read_file_word(w);
	ARGUMENT(0) = file_number(w[2]);
}

static void read_mmap(char *const *w, int words)
{
	(void)words;
	read_file_word(w);
	ARGUMENT(0) = !strcmp(w[2], "private");
}

static void read_mbind(char *const *w, int words)
{
	(void)words;
	read_bytes(w);
	ARGUMENT(2) = flags_of(w[4], mode_names);
	set_mask(w[5]);
	ARGUMENT(3) = flags_of(w[6], mbind_names);
}

static void read_setpol(char *const *w, int words)
{
	(void)words;
	ARGUMENT(0) = flags_of(w[1], mode_names);
	set_mask(w[2]);
}

static void read_number(char *const *w, int words)
{
	(void)words;
	ARGUMENT(0) = atol(w[1]);
	ARGUMENT(1) = atol(w[2]);
}

static void read_home(char *const *w, int words)
{
	(void)words;
	read_bytes(w);
	ARGUMENT(2) = atol(w[4]);
}

static void read_falloc(char *const *w, int words)
{
	read_bytes(w);
	ARGUMENT(2) = words > 4 ? strtol(w[4], NULL, 0) : FILE_OF_CALL->kind == FILE_MEMFD ? 0 : FALLOC_FL_KEEP_SIZE;
}

static void read_punch(char *const *w, int words)
{
	(void)words;
	read_bytes(w);
	ARGUMENT(2) = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
}

static void read_touch(char *const *w, int words)
{
	read_pages(w, words);
	ARGUMENT(2) = w[0][0] == 't';
	set_order(ARGUMENT(1), w[4], strtoull(w[5], NULL, 0));
}

static void read_getpol(char *const *w, int words)
{
	(void)words;
	read_file_word(w);
	ARGUMENT(0) = atol(w[2]);
	ARGUMENT(1) = !strcmp(w[0], "getnode");
}

static void read_gettask(char *const *w, int words)
{
	(void)words;
	ARGUMENT(0) = -1;
	ARGUMENT(1) = !strcmp(w[0], "getil");
}

static void read_movepages(char *const *w, int words)
{
	read_pages(w, words);
	ARGUMENT(3) = words > 5 ? flags_of(w[5], mbind_names) : 2;
}

static void read_nothing(char *const *w, int words)
{
	(void)w;
	(void)words;
}

static void report_create(void)
{
	if (ARGUMENT(1) & 1)
		number("mmap", box->extra[0]);
	if (box->extra[1])
		text("lacks", "GUEST_MEMFD_FLAG_HUGETLB");
}

/* The number that the capability has in this kernel, where that differs from series to series. */
static void report_capability(void)
{
	if (box->extra[0])
		number("capability", box->extra[0]);
}

/* The inode number shifts the interleave of tmpfs (mm/shmem.c: shmem_get_pgoff_policy). */
static void report_memfd(void)
{
	number("ino", box->extra[0]);
}

static void report_retrieve(void)
{
	number("pages", box->extra[0]);
	number("ino", box->extra[1]);
}

/* error_offset only if the call wrote it. */
static void report_convert(void)
{
	if (box->extra[1])
		number("error_offset", box->extra[0]);
}

static void report_fill(void)
{
	number("pages", box->extra[5]);
}

static void report_touch(void)
{
	number("bad", box->extra[0]);
	number("first", box->extra[1]);
}

static void report_prefault(void)
{
	number("left", box->extra[0]);
	number("setup", box->extra[1]);
}

static void report_vtouch(void)
{
	number("done", box->extra[0]);
	number("exit", box->extra[1]);
	number("setup", box->extra[2]);
	if (box->extra[1] == EXIT_MEMORY_FAULT) {
		number("fault_flags", box->extra[3]);
		number("fault_page", box->extra[4]);
	}
}

static void report_node(void)
{
	number("node", box->extra[0]);
}

/* "-" for no node, a number for one, a text such as "0,2" for several. */
static void report_policy(void)
{
	int nodes = 0, last = 0;
	number("mode", box->extra[0]);
	key("nodes");
	for (int node = 0; node < MASK_LONGS * 64; node++) {
		if (box->mask_out[node / 64] >> node % 64 & 1) {
			nodes++;
			last = node;
		}
	}
	if (nodes < 2) {
		put(nodes ? "%d" : "\"-\"", last);
		return;
	}
	put("\"");
	for (int node = 0, listed = 0; node < MASK_LONGS * 64; node++)
		if (box->mask_out[node / 64] >> node % 64 & 1)
			put(listed++ ? ",%d" : "%d", node);
	put("\"");
}

static void report_movepages(void)
{
	number("st0", box->extra[0]);
	number("stN", box->extra[1]);
	number("same", box->extra[2]);
}

static void report_nothing(void)
{
}

static const struct verb verb_reset = { "reset", do_reset, read_nothing, report_nothing };
static const struct verb verb_setcpu = { "setcpu", do_setcpu, read_number, report_nothing };
static const struct verb verb_exit = { "", NULL, read_nothing, report_nothing };

static const struct verb verbs[] = {
	{ "create", do_create, read_create, report_create },
	{ "memfd", do_memfd, read_memfd, report_memfd },
	{ "anon", do_anonymous, read_pages, report_nothing },
	{ "vm", do_vm, read_vm, report_nothing },
	{ "slot", do_slot, read_slot, report_nothing },
	{ "attr", do_attributes, read_attributes, report_nothing },
	{ "convert", do_convert, read_attributes, report_convert },
	{ "pin", do_pin, read_pin, report_nothing },
	{ "unpin", do_unpin, read_only_file, report_nothing },
	{ "odirect", do_direct, read_pages, report_nothing },
	{ "preserve", do_preserve, read_pages, report_nothing },
	{ "retrieve", do_retrieve, read_pages, report_retrieve },
	{ "finish", do_finish, read_nothing, report_nothing },
	{ "close_session", do_close_session, read_nothing, report_nothing },
	{ "fill", do_fill, read_pages, report_fill },
	{ "alias", do_alias, read_alias, report_nothing },
	{ "mmap", do_mmap, read_mmap, report_nothing },
	{ "unmap", do_unmap, read_only_file, report_nothing },
	{ "close", do_close, read_only_file, report_nothing },
	{ "mbind", do_mbind, read_mbind, report_nothing },
	{ "setpol", do_setpol, read_setpol, report_nothing },
	{ "home", do_home, read_home, report_nothing },
	{ "falloc", do_fallocate, read_falloc, report_nothing },
	{ "punch", do_fallocate, read_punch, report_nothing },
	{ "touch", do_touch, read_touch, report_touch },
	{ "rtouch", do_touch, read_touch, report_touch },
	{ "prefault", do_prefault, read_pages, report_prefault },
	{ "vtouch", do_vtouch, read_pages, report_vtouch },
	{ "getpol", do_get_mempolicy, read_getpol, report_policy },
	{ "getnode", do_get_mempolicy, read_getpol, report_node },
	{ "gettask", do_get_mempolicy, read_gettask, report_policy },
	{ "getil", do_get_mempolicy, read_gettask, report_node },
	{ "movepages", do_movepages, read_movepages, report_movepages },
	{ "migrate", do_migrate, read_number, report_nothing },
	{ "madv", do_madvise, read_pages, report_nothing },
	{ "kvmcap", do_capability, read_capability, report_capability },
};

/* ---------------------------------------------------------------------------------------------------- process of a script */

static void prepare_memory(void)
{
	volatile char stack[1 << 15];
	for (size_t i = 0; i < sizeof stack; i += 64)
		stack[i] = 0;
}

static void serve(int task)
{
	__sync_fetch_and_add(&box->ready, 1);
	for (;;) {
		int turn = box->turn;
		if (turn != task + 1) {
			futex(&box->turn, FUTEX_WAIT, turn, NULL);
			continue;
		}
		if (box->verb == &verb_exit)
			_exit(0);
		errno = 0;
		memset(box->extra, 0, sizeof box->extra);
		box->result = box->verb->call();
		box->error = box->result < 0 ? errno : 0;
		__sync_synchronize();
		box->turn = 0;
		futex(&box->turn, FUTEX_WAKE, INT32_MAX, NULL);
	}
}

static void *thread_main(void *task)
{
	prepare_memory();
	serve((int)(intptr_t)task);
	return NULL;
}

static void process_main(int tasks)
{
	volatile char *bytes = (volatile char *)box;
	prepare_memory();
	for (size_t i = 0; i < sizeof *box; i += PAGE)
		bytes[i] = bytes[i];
	catch_faults();
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm >= 0)
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
	for (intptr_t task = 1; task < tasks; task++) {
		pthread_t thread;
		pthread_create(&thread, NULL, thread_main, (void *)task);
	}
	serve(0);
}

/* ---------------------------------------------------------------------------------------------------------- supervisor */

static pid_t process;
static int process_fd = -1;
static bool process_gone = true;
static char death[40];

static bool reap(void)
{
	int status;
	if (process_gone)
		return true;
	if (waitpid(process, &status, WNOHANG) != process)
		return false;
	process_gone = true;
	snprintf(death, sizeof death, "DEAD %s %d", WIFSIGNALED(status) ? "signal" : "exit",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	return true;
}

/* Let a task make the call that the mailbox holds. False if the process did not survive it. */
static bool command(int task, const struct verb *verb)
{
	struct timespec tick = { 0, 20000000 };
	long deadline = now_us() + CALL_TIMEOUT_US;
	if (process_gone)
		return false;
	box->verb = verb;
	__sync_synchronize();
	box->turn = task + 1;
	futex(&box->turn, FUTEX_WAKE, INT32_MAX, NULL);
	while (box->turn) {
		futex(&box->turn, FUTEX_WAIT, task + 1, &tick);
		if (box->turn && reap())
			return false;
		if (now_us() > deadline) {
			kill(process, SIGKILL);
			waitpid(process, NULL, 0);
			process_gone = true;
			snprintf(death, sizeof death, "TIMEOUT");
			return false;
		}
	}
	return true;
}

static void start_process(int tasks, bool reset)
{
	memset(box, 0, sizeof *box);
	for (int i = 0; i < MAX_FILES; i++)
		box->files[i].fd = -1;
	death[0] = 0;
	process_gone = false;
	process = fork();
	if (!process) {
		process_main(tasks);
		_exit(0);
	}
	process_fd = syscall(CALL_PIDFD_OPEN, process, 0);
	while (box->ready < tasks && !reap())
		usleep(1000);
	for (int task = 0; task < tasks; task++) {
		ARGUMENT(0) = 0;
		command(task, &verb_setcpu);
		if (reset)
			command(task, &verb_reset);
	}
}

/* ............................................................................................................ hogs */

static pid_t hogs[64];
static int hog_count;

static long node_free_pages(int node)
{
	char path[96], *found;
	snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
	if (read_file(path, big, sizeof big) < 0 || !(found = strstr(big, "MemFree:")))
		return -1;
	return atol(found + strlen("MemFree:")) / 4;
}

/* In the hog's process: take pages one by one until there are enough or, unless bound, until they come from elsewhere. */
static long take_pages(int node, long wanted, bool bound)
{
	uint64_t mask[MASK_LONGS] = { 1ULL << node };
	write_file("/proc/self/oom_score_adj", "-1000");
	char *memory = mmap(NULL, wanted * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	madvise(memory, wanted * PAGE, MADV_NOHUGEPAGE);
	if (syscall(SYS_mbind, memory, wanted * PAGE, bound ? MODE_BIND : MODE_PREFERRED, mask, MASK_BITS, 0))
		return -errno;
	for (long i = 0; i < wanted; i++) {
		void *page = memory + i * PAGE;
		int where = -1;
		*(volatile char *)page = 1;
		if (bound || i % 8 != 7)
			continue;
		syscall(SYS_move_pages, 0, 1, &page, NULL, &where, 0);
		if (where != node) {
			madvise(memory + (i - 7) * PAGE, 8 * PAGE, MADV_DONTNEED);
			return i - 7;
		}
	}
	return wanted;
}

static void hog(int node, long pages, bool bound)
{
	int channel[2];
	long got = -1;
	if (pipe(channel))
		return;
	pid_t pid = fork();
	if (!pid) {
		got = take_pages(node, pages, bound);
		if (write(channel[1], &got, sizeof got) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	close(channel[1]);
	if (read(channel[0], &got, sizeof got) != sizeof got)
		got = -1;
	close(channel[0]);
	if (hog_count == 64) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	} else {
		hogs[hog_count++] = pid;
	}
	number("node", node);
	number("got", got);
	number("free", node_free_pages(node));
}

static void release_hogs(void)
{
	while (hog_count) {
		kill(hogs[--hog_count], SIGKILL);
		waitpid(hogs[hog_count], NULL, 0);
	}
}

/* ..................................................................................................... looking at pages */

struct range {
	uint64_t offset, length;
};
struct cache_statistics {
	uint64_t present, dirty, writeback, evicted, recently_evicted;
};

static char present[MAX_PAGES];
static uint32_t present_index[MAX_PAGES];
static void *observed_address[MAX_PAGES];
static int observed_node[MAX_PAGES];

/* Marks the pages that exist in [start, start + count), halving ranges that are neither empty nor full. */
static bool find_present(int fd, long start, long count)
{
	struct range range = { start * PAGE, count * PAGE };
	struct cache_statistics statistics;
	if (syscall(CALL_CACHESTAT, fd, &range, &statistics, 0))
		return false;
	if (statistics.present == 0 || statistics.present == (uint64_t)count) {
		memset(present + start, statistics.present != 0, count);
		return true;
	}
	return find_present(fd, start, count / 2) && find_present(fd, start + count / 2, count - count / 2);
}

static void place_error(const char *format, ...)
{
	char message[80];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	text("place_error", message);
}

static void report_runs(long count, long found)
{
	int run_node = 0, runs = 0;
	long run_length = 0, next = 0;
	put("\"");
	for (long i = 0; i <= count; i++) {
		int node = i == count ? INT32_MIN : -1;
		if (next < found && present_index[next] == i)
			node = observed_node[next++];
		if (run_length && node != run_node) {
			put(runs++ ? "," : "");
			put(run_node == -1 ? ".*%ld" : "%2$d*%1$ld", run_length, run_node);
			run_length = 0;
		}
		run_node = node;
		run_length++;
	}
	put("\"");
}

static void report_counts(long found)
{
	long pages[MAX_NODES] = { 0 };
	for (long i = 0; i < found; i++)
		if (observed_node[i] >= 0 && observed_node[i] < MAX_NODES)
			pages[observed_node[i]]++;
	put("{");
	for (int node = 0; node < node_count; node++)
		put("%s\"%d\":%ld", node ? "," : "", node, pages[node]);
	put("}");
}

/* Physical frames as START:PFN*COUNT runs, from /proc/self/pagemap. */
static void report_frames(long start, long found)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	uint64_t first = 0, previous = 0;
	long run_start = 0, length = 0, runs = 0;
	put("\"");
	for (long i = 0; i <= found; i++) {
		uint64_t entry = 0, frame = 0;
		if (i < found && pread(pagemap, &entry, 8, (uintptr_t)observed_address[i] / PAGE * 8) == 8)
			frame = entry & ((1ULL << 55) - 1);
		bool follows = length && i < found && frame == previous + 1 && present_index[i] == present_index[i - 1] + 1;
		if (!follows) {
			if (length)
				put("%s%ld:%lx*%ld", runs++ ? "," : "", run_start, first, length);
			first = frame;
			run_start = i < found ? start + present_index[i] : 0;
			length = 0;
		}
		previous = frame;
		length++;
	}
	put("\"");
	close(pagemap);
}

static void report_found(const char *what, long start, long count, long found)
{
	key(what);
	if (!strcmp(what, "counts"))
		report_counts(found);
	else if (!strcmp(what, "pfns"))
		report_frames(start, found);
	else
		report_runs(count, found);
	if (!strcmp(what, "place")) {
		key("range");
		put("\"%ld+%ld\"", start, count);
	}
}

/* Pages that only the tasks' own mapping knows: anonymous memory, and huge pages, which cachestat(2) does not count. */
static void observe_mapping(const char *what, const struct file *file, long start, long count)
{
	long found = 0;
	if (!file->address || start < 0 || count < 0 || start + count > MAX_PAGES) {
		place_error("place ERR range %ld+%ld", start, count);
		return;
	}
	for (long i = 0; i < count; i++)
		observed_address[i] = file->address + (start + i) * PAGE;
	if (count && syscall(SYS_move_pages, process, count, observed_address, NULL, observed_node, 0)) {
		place_error("place ERR move_pages %d", errno);
		return;
	}
	for (long i = 0; i < count; i++) {
		if (observed_node[i] < 0)
			continue;
		present_index[found] = i;
		observed_node[found++] = observed_node[i];
	}
	report_found(what, start, count, found);
}

static void observe(const char *what, int file, long start, long count)
{
	if (box->files[file].kind == FILE_ANONYMOUS || box->files[file].kind == FILE_HUGETLB) {
		observe_mapping(what, &box->files[file], start, count);
		return;
	}
	int fd = syscall(CALL_PIDFD_GETFD, process_fd, box->files[file].fd, 0);
	long found = 0;
	if (fd < 0) {
		place_error("place ERR getfd %d", errno);
		return;
	}
	if (start < 0 || count < 0 || start + count > MAX_PAGES) {
		place_error("place ERR range %ld+%ld", start, count);
		close(fd);
		return;
	}
	memset(present, 0, start + count);
	if (count && !find_present(fd, start, count)) {
		place_error("place ERR cachestat %d", errno);
		close(fd);
		return;
	}
	char *mapping = mmap(NULL, (start + count) * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED) {
		for (long i = 0; i < count; i++)
			found += present[start + i];
		place_error("place UNMAPPABLE present=%ld errno=%d", found, errno);
		close(fd);
		return;
	}
	for (long i = 0; i < count; i++) {
		char *address = mapping + (start + i) * PAGE;
		if (present[start + i] && touch_page(address, false)) {
			present_index[found] = i;
			observed_address[found++] = address;
		}
	}
	if (found && syscall(SYS_move_pages, 0, found, observed_address, NULL, observed_node, 0))
		place_error("place ERR move_pages %d", errno);
	else
		report_found(what, start, count, found);
	munmap(mapping, (start + count) * PAGE);
	close(fd);
}

/* .............................................................................................. looking at the host */

static void refresh_counters(void)
{
	write_file("/proc/sys/vm/stat_refresh", "1");
}

/* Of each zone its free pages and marks, and how many pages the lists of each CPU hold. */
static void report_zones(void)
{
	static const char *const names[] = { "min", "low", "high" };
	char zone[32] = "", *rest;
	long value, free_pages = 0, mark[3] = { 0 };
	int node = 0, zones = 0, open_zone = 0, lists = 0;
	refresh_counters();
	key("zones");
	put("{");
	if (read_file("/proc/zoneinfo", big, sizeof big) < 0)
		big[0] = 0;
	for (char *line = strtok_r(big, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "Node %d, zone %31s", &node, zone) == 2) {
			if (open_zone)
				put("]}");
			open_zone = lists = 0;
			continue;
		}
		if (sscanf(line, " pages free %ld", &value) == 1)
			free_pages = value;
		for (int i = 0; i < 3; i++) {
			char found[16];
			if (sscanf(line, " %15s %ld", found, &value) == 2 && !strcmp(found, names[i]))
				mark[i] = value;
		}
		if (sscanf(line, " managed %ld", &value) == 1 && value) {
			put("%s\"%d/%s\":{\"free\":%ld,\"min\":%ld,\"low\":%ld,\"high\":%ld,\"managed\":%ld,\"lists\":[",
			    zones++ ? "," : "", node, zone, free_pages, mark[0], mark[1], mark[2], value);
			open_zone = 1;
		}
		if (open_zone && sscanf(line, " count: %ld", &value) == 1)
			put("%s%ld", lists++ ? "," : "", value);
	}
	if (open_zone)
		put("]}");
	put("}");
}

static void report_meminfo(void)
{
	refresh_counters();
	key("free");
	put("{");
	for (int node = 0; node < node_count; node++)
		put("%s\"%d\":%ld", node ? "," : "", node, node_free_pages(node));
	put("}");
}

static void report_numastat(void)
{
	key("numastat");
	put("{");
	for (int node = 0; node < node_count; node++) {
		char path[96], name[64], *rest;
		long value;
		int counters = 0;
		snprintf(path, sizeof path, "/sys/devices/system/node/node%d/numastat", node);
		if (read_file(path, big, sizeof big) < 0)
			big[0] = 0;
		put("%s\"%d\":{", node ? "," : "", node);
		for (char *line = strtok_r(big, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
			if (sscanf(line, "%63s %ld", name, &value) == 2)
				put("%s\"%s\":%ld", counters++ ? "," : "", name, value);
		put("}");
	}
	put("}");
}

#include "probe_host.h"

#define WEIGHTS "/sys/kernel/mm/mempolicy/weighted_interleave/"

static void read_weight(int node, char *weight, size_t size)
{
	char path[96];
	snprintf(path, sizeof path, WEIGHTS "node%d", node);
	if (read_file(path, weight, size) < 0)
		weight[0] = 0;
	weight[strcspn(weight, "\n")] = 0;
}

/*
 * The weights found at boot. Switching back to automatic is enough where the firmware told bandwidths; elsewhere the
 * kernel would keep the last manual ones, so they are written back first.
 */
static void default_weights(void)
{
	char path[96];
	for (int node = 0; node < node_count; node++) {
		snprintf(path, sizeof path, WEIGHTS "node%d", node);
		write_file(path, boot_weight[node]);
	}
	write_file(WEIGHTS "auto", "true");
}

/* NODE:WEIGHT,...: the text of the result says what each write returned and what the weights are then. */
static void set_weights(const char *pairs)
{
	char copy[512], path[96], value[32], *rest;
	char result[2048];
	size_t used = snprintf(result, sizeof result, "weights");
	snprintf(copy, sizeof copy, "%s", pairs);
	for (char *part = strtok_r(copy, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
		int node = 0, weight = 0;
		sscanf(part, "%d:%d", &node, &weight);
		snprintf(path, sizeof path, WEIGHTS "node%d", node);
		snprintf(value, sizeof value, "%d", weight);
		used += snprintf(result + used, sizeof result - used, " %d:%d=%d", node, weight, write_file(path, value));
	}
	used += snprintf(result + used, sizeof result - used, " ->");
	for (int node = 0; node < node_count; node++) {
		read_weight(node, value, sizeof value);
		if (value[0])
			used += snprintf(result + used, sizeof result - used, " %d:%d", node, atoi(value));
	}
	text("text", result);
}

/* Move the process of the script into a cpuset with these memory nodes, or back ("off"). */
static void set_cpuset(const char *mems)
{
	static bool mounted;
	char pid[32];
	int mount_result = 0, mems_result = 0, procs_result;
	if (!mounted) {
		mkdir("/cgroup", 0755);
		mount_result = mount("cgroup2", "/cgroup", "cgroup2", 0, NULL);
		write_file("/cgroup/cgroup.subtree_control", "+cpuset");
		mkdir("/cgroup/script", 0755);
		mounted = true;
	}
	snprintf(pid, sizeof pid, "%d", process);
	if (strcmp(mems, "off")) {
		mems_result = write_file("/cgroup/script/cpuset.mems", mems);
		procs_result = write_file("/cgroup/script/cgroup.procs", pid);
	} else {
		procs_result = write_file("/cgroup/cgroup.procs", pid);
	}
	number("mount", mount_result);
	number("mems", mems_result);
	number("procs", procs_result);
}

/* ............................................................................................... reading the script */

/* Operations of the supervisor itself. False if the verb is none of them. */
static bool supervise(char *const *w, int words)
{
	const char *verb = w[0];
	if (!strcmp(verb, "place") || !strcmp(verb, "pfns") || !strcmp(verb, "counts")) {
		int file = file_number(w[1]);
		long start = words > 2 ? atol(w[2]) : 0;
		observe(verb, file, start, words > 3 ? atol(w[3]) : box->files[file].pages - start);
	} else if (!strcmp(verb, "reveal")) {
		int file = file_number(w[1]);
		long start = words > 2 ? atol(w[2]) : 0;
		reveal(file, start, words > 3 ? atol(w[3]) : box->files[file].pages - start);
	} else if (!strcmp(verb, "nodestat")) {
		report_node_counters();
	} else if (!strcmp(verb, "pool")) {
		set_pool(w[1], atoi(w[2]), w[3]);
	} else if (!strcmp(verb, "pools")) {
		report_pools();
	} else if (!strcmp(verb, "kho")) {
		report_handover();
	} else if (!strcmp(verb, "zones")) {
		report_zones();
	} else if (!strcmp(verb, "meminfo")) {
		report_meminfo();
	} else if (!strcmp(verb, "numastat")) {
		report_numastat();
	} else if (!strcmp(verb, "cat")) {
		long length = read_file(w[1], big, sizeof big);
		if (length < 0)
			big[0] = 0;
		key("file");
		put_lines(big);
		if (length < 0)
			number("error", -length);
	} else if (!strcmp(verb, "write")) {
		char result[32];
		snprintf(result, sizeof result, "write %d", write_file(w[1], w[2]));
		text("text", result);
	} else if (!strcmp(verb, "sleep")) {
		usleep(atol(w[1]) * 1000);
		text("text", "sleep");
	} else if (!strcmp(verb, "eat")) {
		hog(atoi(w[1]), atol(w[2]), !strcmp(w[3], "bind"));
	} else if (!strcmp(verb, "eatto")) {
		long pages = node_free_pages(atoi(w[1])) - atol(w[2]);
		if (pages > 0)
			hog(atoi(w[1]), pages, !strcmp(w[3], "bind"));
		else
			text("text", "eat skip");
	} else if (!strcmp(verb, "uneat")) {
		release_hogs();
		text("text", "uneat");
	} else if (!strcmp(verb, "weights") && !strcmp(w[1], "default")) {
		default_weights();
		text("text", "weights default");
	} else if (!strcmp(verb, "weights")) {
		set_weights(w[1]);
	} else if (!strcmp(verb, "cpuset")) {
		set_cpuset(w[1]);
	} else {
		return false;
	}
	return true;
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return !strcmp(name, "reset") ? &verb_reset : !strcmp(name, "setcpu") ? &verb_setcpu : NULL;
}

static void report_dead(void)
{
	if (death[0]) {
		text("dead", death);
		if (box->extra[5])
			report_fill();
	}
	death[0] = 0;
	number("ret", -1);
	text("errno", "dead");
}

static void run_line(const char *line)
{
	char copy[1024], *words[MAX_WORDS], **w = words, *rest;
	int count = 0, task = 0;
	snprintf(copy, sizeof copy, "%s", line);
	for (char *word = strtok_r(copy, " \t", &rest); word && count < MAX_WORDS; word = strtok_r(NULL, " \t", &rest))
		words[count++] = word;
	for (int i = count; i < MAX_WORDS; i++)
		words[i] = "0";
	if (count > 1 && w[0][0] == 't' && isdigit(w[0][1]) && !w[0][2]) {
		task = w[0][1] - '0';
		w++;
		count--;
	}
	begin();
	text("op", line);
	const struct verb *verb = find_verb(w[0]);
	if (process_gone && strcmp(w[0], "meminfo")) {
		report_dead();
	} else if (verb && task < MAX_TASKS) {
		memset(box->argument, 0, sizeof box->argument);
		verb->read(w, count);
		long start = now_us();
		if (command(task, verb)) {
			number("ret", box->result);
			number("errno", box->error);
			number("us", now_us() - start);
			verb->report();
		} else {
			report_dead();
		}
	} else if (!supervise(w, count)) {
		text("text", "ERR unknown op");
	}
	end();
}

static void end_script(long started)
{
	if (!process_gone) {
		kill(process, SIGKILL);
		waitpid(process, NULL, 0);
		process_gone = true;
	}
	close(process_fd);
	release_hogs();
	empty_pools();
	begin();
	number("end", now_us() - started);
	end();
}

/* Goes on in the next kernel, if all is well: then this one never gets past the call. */
static void run_kexec(const char *line, int line_number)
{
	begin();
	text("op", line);
	long result = load_next_kernel(line_number);
	number("ret", result);
	number("errno", result ? errno : 0);
	end();
	if (result)
		return;
	fsync(port);
	usleep(100000);
	reboot(RB_KEXEC);
	begin();
	number("kexec_errno", errno);
	end();
}

static void start_script(const char *line)
{
	const char *tasks = strstr(line, " tasks=");
	default_weights();
	start_process(tasks ? atoi(tasks + 7) : 1, !strstr(line, " noreset"));
}

/* Lines up to the one at which the kernel before this one ended are passed over. */
static void run_script(int done)
{
	static char script[8 << 20];
	const char *header = NULL;
	char *rest;
	long started = -1;
	int number_ = 0;
	if (read_file("/script.txt", script, sizeof script) < 0)
		return;
	for (char *line = strtok_r(script, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		line += strspn(line, " \t");
		if (!*line || *line == '#')
			continue;
		const char *verb = line;                /* one that takes no words is all of its line */
		bool begins = !strncmp(line, "scenario ", 9);
		header = begins ? line : header;
		if (++number_ <= done) {
			if (number_ == done) {
				started = now_us();
				start_script(header);
			}
		} else if (begins) {
			if (started >= 0)
				end_script(started);
			started = now_us();
			begin();
			text("scenario", line + 9);
			end();
			start_script(line);
		} else if (started >= 0 && !strcmp(verb, "kexec")) {
			run_kexec(line, number_);
		} else if (started >= 0) {
			run_line(line);
		}
	}
	if (started >= 0)
		end_script(started);
}

/* ------------------------------------------------------------------------------------------------------------- boot */

/* The words MODULE.NAME=VALUE of the kernel's command line, which only modules that are built in get from the kernel. */
static void module_parameters(const char *name, char *to, size_t size)
{
	char line[4096] = "", wanted[64], *rest;
	size_t used = 0;
	read_file("/proc/cmdline", line, sizeof line);
	snprintf(wanted, sizeof wanted, "%s.", name);
	for (char *c = wanted; *c; c++)
		*c = *c == '-' ? '_' : *c;
	to[0] = 0;
	for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest))
		if (!strncmp(word, wanted, strlen(wanted)) && used < size)
			used += snprintf(to + used, size - used, "%s ", word + strlen(wanted));
}

static void load_module(const char *name)
{
	char path[96], parameters[1024];
	snprintf(path, sizeof path, "/modules/%s.ko", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return;
	module_parameters(name, parameters, sizeof parameters);
	long result = syscall(SYS_finit_module, fd, parameters, 0);
	int error = result ? errno : 0;
	close(fd);
	begin();
	text("module", path);
	number("ret", result);
	number("errno", error);
	end();
}

/* In the order of a list that the recorder wrote. */
static void load_modules(void)
{
	char names[4096], *rest;
	if (read_file("/modules/order", names, sizeof names) < 0)
		return;
	for (char *name = strtok_r(names, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest))
		load_module(name);
}

/* What this kernel's KVM offers: all of it asked of the kernel. */
static void describe_kvm(void)
{
	static const struct { const char *name; long capability; } asked[] = {
		{ "vm_types", CAP_VM_TYPES }, { "guest_memfd", CAP_GUEST_MEMFD },
		{ "guest_memfd_flags", CAP_GUEST_MEMFD_FLAGS }, { "memory_attributes", CAP_MEMORY_ATTRIBUTES },
		{ "pre_fault_memory", CAP_PRE_FAULT_MEMORY },
	};
	begin();
	key("kvm");
	put("{\"us\":\"%ld\",\"present\":\"%d\"", now_us(), access("/dev/kvm", F_OK) == 0);
	int device = open("/dev/kvm", O_RDWR);
	if (device >= 0) {
		int machine = ioctl(device, KVM_CREATE_VM, 0);
		put(",\"create_vm\":%d", machine < 0 ? errno : 0);
		for (size_t i = 0; machine >= 0 && i < sizeof asked / sizeof *asked; i++)
			put(",\"%s\":%d", asked[i].name, ioctl(machine, KVM_CHECK_EXTENSION, asked[i].capability));
		if (machine >= 0) {
			put(",\"converts_in_place\":%d", converts_in_place(machine));
			close(machine);
		}
		close(device);
	}
	put("}");
	end();
}

static void find_nodes(void)
{
	char list[256], path[64];
	for (node_count = 0; node_count < MAX_NODES; node_count++) {
		snprintf(path, sizeof path, "/sys/devices/system/node/node%d", node_count);
		if (access(path, F_OK))
			break;
		read_weight(node_count, boot_weight[node_count], sizeof boot_weight[0]);
	}
	if (read_file("/sys/devices/system/node/has_memory", list, sizeof list) > 0) {
		list[strcspn(list, "\n")] = 0;
		set_mask(list);
		nodes_with_memory = box->mask[0];
	}
}

/* Small per-CPU lists and no watermark boost make the page at which a node is left reproducible; two words on the
 * kernel's command line keep the defaults. */
static void settle(void)
{
	char line[4096] = "";
	read_file("/proc/cmdline", line, sizeof line);
	if (!strstr(line, "pcpdefault"))
		write_file("/proc/sys/vm/percpu_pagelist_high_fraction", "100000");
	if (!strstr(line, "boostdefault"))
		write_file("/proc/sys/vm/watermark_boost_factor", "0");
}

static void describe_host(void)
{
	static const char *const host_files[] = {
		"/proc/version", "/proc/cmdline", "/proc/zoneinfo", "/proc/buddyinfo", "/proc/meminfo",
		"/sys/devices/system/node/online", "/sys/devices/system/node/has_cpu", "/sys/devices/system/node/has_memory",
		"/sys/devices/system/node/has_normal_memory", "/proc/sys/vm/min_free_kbytes",
		"/proc/sys/vm/watermark_scale_factor", "/proc/sys/vm/zone_reclaim_mode", "/proc/sys/vm/lowmem_reserve_ratio",
		WEIGHTS "auto", "/sys/kernel/mm/numa/demotion_enabled", "/sys/devices/system/memory/auto_online_blocks",
	};
	static const char *const node_files[] = {
		"distance", "cpulist", "meminfo", "access0/initiators/read_bandwidth", "access0/initiators/write_bandwidth",
		"access0/initiators/read_latency", "access1/initiators/read_bandwidth",
	};
	char path[128];
	for (size_t i = 0; i < sizeof host_files / sizeof *host_files; i++)
		dump(host_files[i]);
	for (int node = 0; node < node_count; node++) {
		for (size_t i = 0; i < sizeof node_files / sizeof *node_files; i++) {
			snprintf(path, sizeof path, "/sys/devices/system/node/node%d/%s", node, node_files[i]);
			dump(path);
		}
		snprintf(path, sizeof path, WEIGHTS "node%d", node);
		dump(path);
	}
	dump_kernel_log("dmesg");
}

/* The virtio port if the kernel has a driver for it, else the second serial line, which every kernel knows. */
static void open_port(void)
{
	struct termios raw;
	int console = open("/dev/console", O_RDWR);
	if (console >= 0)
		for (int fd = 0; fd < 3; fd++)
			dup2(console, fd);
	for (int attempt = 0; attempt < 40; attempt++) {
		int fd = open("/dev/vport0p1", O_WRONLY);
		if (fd >= 0) {
			port = fd;
			return;
		}
		usleep(50000);
	}
	int line = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	if (line >= 0 && !tcgetattr(line, &raw)) {
		cfmakeraw(&raw);
		tcsetattr(line, TCSANOW, &raw);
		port = line;
	}
}

int main(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	open_port();
	int done = line_to_go_on();
	begin();
	number(done ? "next_kernel_us" : "boot_us", now_us());
	end();
	load_modules();
	if (!done)
		describe_kvm();
	box = mmap(NULL, sizeof *box, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(box, 0, sizeof *box);
	catch_faults();
	find_nodes();
	settle();
	if (!done)
		describe_host();
	run_script(done);
	begin();
	number("done_us", now_us());
	end();
	fsync(port);
	sync();
	usleep(100000);
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

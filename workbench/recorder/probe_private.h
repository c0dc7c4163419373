// SPDX-License-Identifier: Apache-2.0
/*
 * Calls on guests with private memory: virtual machines of other types, memslots with a second, ordinary backend,
 * memory attributes, in-place conversion, pins. Part of probe.c; every function here runs in a task.
 */

/* A virtual machine of another type in place of the present one. The type may be one that this kernel lacks. */
static long do_vm(void)
{
	int made = ioctl(kvm, KVM_CREATE_VM, ARGUMENT(0));
	int error = errno;
	if (made >= 0) {
		if (vcpu >= 0)
			close(vcpu);
		if (vm >= 0)
			close(vm);
		vm = made;
		vcpu = -1;
		memset(has_slot, 0, sizeof has_slot);
	}
	errno = error;
	return made < 0 ? -1 : 0;
}

/* Anonymous memory, the commonest backend for the shared pages of a guest. */
static long do_anonymous(void)
{
	size_t size = ARGUMENT(0) * PAGE;
	char *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (address == MAP_FAILED)
		return -1;
	madvise(address, size, MADV_NOHUGEPAGE);
	*FILE_OF_CALL = (struct file){ .fd = -1, .kind = FILE_ANONYMOUS, .pages = ARGUMENT(0), .address = address };
	return 0;
}

static long do_slot(void)
{
	const struct file *shared = ARGUMENT(0) < 0 ? FILE_OF_CALL : &box->files[ARGUMENT(0)];
	return set_slot(box->file, shared->address);
}

/* KVM_SET_MEMORY_ATTRIBUTES on the guest addresses of the file's memslot. */
static long do_attributes(void)
{
	struct kvm_memory_attributes wanted = {
		.address = GUEST_FILE(box->file) + ARGUMENT(0), .size = ARGUMENT(1),
		.attributes = ARGUMENT(2), .flags = ARGUMENT(3),
	};
	return ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &wanted);
}

/* In-place conversion on the descriptor. error_offset is not read by the kernel, so a value shows whether it wrote. */
static long do_convert(void)
{
	const uint64_t untouched = 0x5eed5eed5eed5eedUL;
	struct attributes_of_file wanted = {
		.offset = ARGUMENT(0), .size = ARGUMENT(1), .attributes = ARGUMENT(2), .flags = ARGUMENT(3),
		.error_offset = untouched,
	};
	long result = ioctl(FILE_OF_CALL->fd, SET_ATTRIBUTES_OF_FILE, &wanted);
	box->extra[0] = wanted.error_offset;
	box->extra[1] = wanted.error_offset != untouched;
	return result;
}

/* ......................................................................................................... pins */

#define MAX_PINS 16
static struct {
	int file, descriptor[2];
} pins[MAX_PINS];
static int pin_count;

/* Pages given to a pipe: plain references, until the pipe is closed. */
static long pin_by_pipe(struct iovec range, int descriptor[2])
{
	if (pipe(descriptor))
		return -1;
	fcntl(descriptor[1], F_SETPIPE_SZ, (int)(range.iov_len * 2));
	fcntl(descriptor[1], F_SETFL, O_NONBLOCK);
	for (size_t done = 0; done < range.iov_len;) {
		struct iovec rest = { (char *)range.iov_base + done, range.iov_len - done };
		ssize_t given = vmsplice(descriptor[1], &rest, 1, 0);
		if (given <= 0)
			return -1;
		done += given;
	}
	return 0;
}

/* A buffer registered with io_uring: long-term DMA pins, until the ring is closed. */
static long pin_by_ring(struct iovec range, int descriptor[2])
{
	char parameters[120] = { 0 };           /* struct io_uring_params, all of it optional */
	descriptor[1] = -1;
	descriptor[0] = syscall(CALL_IO_URING_SETUP, 1, parameters);
	return descriptor[0] < 0 ? -1 : syscall(CALL_IO_URING_REGISTER, descriptor[0], 0, &range, 1);
}

static void release_pin(int number_)
{
	for (int end = 0; end < 2; end++)
		if (pins[number_].descriptor[end] >= 0)
			close(pins[number_].descriptor[end]);
	pins[number_] = pins[--pin_count];
}

static long do_pin(void)
{
	struct iovec range = { address_of_call() + ARGUMENT(0) * PAGE, ARGUMENT(1) * PAGE };
	if (pin_count == MAX_PINS) {
		errno = EMFILE;
		return -1;
	}
	int number_ = pin_count++;
	pins[number_].file = box->file;
	pins[number_].descriptor[0] = pins[number_].descriptor[1] = -1;
	long result = (ARGUMENT(2) ? pin_by_pipe : pin_by_ring)(range, pins[number_].descriptor);
	int error = errno;
	if (result < 0)
		release_pin(number_);
	errno = error;
	return result;
}

/* A direct read of a RAM disk into the pages: pinned while it lasts, as any O_DIRECT transfer pins them. */
static long do_direct(void)
{
	int disk = open("/dev/ram0", O_RDONLY | O_DIRECT);
	if (disk < 0)
		return -1;
	long bytes = pread(disk, address_of_call() + ARGUMENT(0) * PAGE, ARGUMENT(1) * PAGE, 0);
	int error = errno;
	close(disk);
	errno = error;
	return bytes < 0 ? -1 : bytes / PAGE;
}

static long do_unpin(void)
{
	long released = 0;
	for (int i = pin_count - 1; i >= 0; i--) {
		if (pins[i].file == box->file) {
			release_pin(i);
			released++;
		}
	}
	return released;
}

/* ......................................................................................... how much a policy gives */

/* Allocate in steps until that fails; the OOM killer may end it, so the pages so far stand where the supervisor looks. */
static long do_fill(void)
{
	struct file *file = FILE_OF_CALL;
	int mode = file->kind == FILE_GUEST_MEMFD ? FALLOC_FL_KEEP_SIZE : 0;
	long step = ARGUMENT(0) > 0 ? ARGUMENT(0) : 1;
	box->extra[5] = 0;
	for (long page = 0; page < file->pages; page += step) {
		long count = file->pages - page < step ? file->pages - page : step;
		if (syscall(SYS_fallocate, file->fd, mode, page * PAGE, count * PAGE))
			return -1;
		box->extra[5] = page + count;
	}
	return 0;
}

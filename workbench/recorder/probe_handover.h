// SPDX-License-Identifier: Apache-2.0
/*
 * Files that go from one kernel to the next: a live-update session (/dev/liveupdate), and the kexec itself. Part of
 * probe.c; the calls on a session run in a task, the rest in the supervisor.
 */

#define SESSION_NAME "recording"

static int session = -1;

/* Makes the session, or takes up that of the kernel before. */
static int open_session(unsigned long request)
{
	struct session_of_name wanted = { .size = sizeof wanted, .fd = -1, .name = SESSION_NAME };
	if (session >= 0)
		return 0;
	int device = open("/dev/liveupdate", O_RDWR);
	if (device < 0)
		return -1;
	long result = ioctl(device, request, &wanted);
	int error = errno;
	close(device);
	errno = error;
	if (result)
		return -1;
	session = wanted.fd;
	return 0;
}

static long do_preserve(void)
{
	struct file_of_session wanted = { .size = sizeof wanted, .fd = FILE_OF_CALL->fd, .token = ARGUMENT(0) };
	return open_session(CREATE_SESSION) ? -1 : ioctl(session, SESSION_PRESERVE, &wanted);
}

static long do_retrieve(void)
{
	struct file_of_session wanted = { .size = sizeof wanted, .fd = -1, .token = ARGUMENT(0) };
	struct stat status = { 0 };
	if (open_session(RETRIEVE_SESSION) || ioctl(session, SESSION_RETRIEVE, &wanted))
		return -1;
	fstat(wanted.fd, &status);
	long pages = status.st_size / PAGE;
	*FILE_OF_CALL = (struct file){ wanted.fd, FILE_MEMFD, pages, map_file(wanted.fd, pages) };
	box->extra[0] = pages;
	box->extra[1] = status.st_ino;
	return wanted.fd;
}

static long do_finish(void)
{
	struct end_of_session wanted = { .size = sizeof wanted };
	return open_session(RETRIEVE_SESSION) ? -1 : ioctl(session, SESSION_FINISH, &wanted);
}

static long do_close_session(void)
{
	long result = close(session);
	session = -1;
	return result;
}

/* Load the next kernel: the same image and initial file system, which goes on behind this line of the script. */
static long load_next_kernel(int line)
{
	char words[4096] = "", wanted[4300];
	int image = open("/kexec/kernel", O_RDONLY), initrd = open("/kexec/initrd", O_RDONLY);
	read_file("/proc/cmdline", words, sizeof words);
	words[strcspn(words, "\n")] = 0;
	snprintf(wanted, sizeof wanted, "%s script_line=%d", words, line);
	long result = syscall(CALL_KEXEC_FILE_LOAD, image, initrd, strlen(wanted) + 1, wanted, 0);
	int error = errno;
	close(image);
	close(initrd);
	errno = error;
	return result;
}

/* Which line the kernel before this one stopped behind; 0 if there was none. */
static int line_to_go_on(void)
{
	char words[4096] = "", *found;
	read_file("/proc/cmdline", words, sizeof words);
	found = strstr(words, "script_line=");
	return found ? atoi(found + strlen("script_line=")) : 0;
}

"""What the probe asks of kernels that nobody here has: its own source, compiled against a KVM that answers as told.

The stand-in is the ``ioctl`` of that program. It answers KVM_CHECK_EXTENSION from a table, notes what a create is asked for,
and gives files that convert in place or do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from workbench.recorder.record import PROBE

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (gcc, libc6-dev)")

STAND_IN = """\
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/ioctl.h>

static long told_flags, told_capability, told_answer, told_in_place;
static unsigned char asked[64];
static int stand_in(int fd, unsigned long request, ...);
#define ioctl stand_in
#define main probe_main
#undef _GNU_SOURCE
#include "probe.c"
#undef main

static int stand_in(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	unsigned long argument = va_arg(arguments, unsigned long);
	va_end(arguments);
	(void)fd;
	if (request == KVM_CHECK_EXTENSION)
		return argument == CAP_GUEST_MEMFD_FLAGS ? told_flags : (long)argument == told_capability ? told_answer : 0;
	if (request == KVM_CREATE_GUEST_MEMFD) {
		memcpy(asked, (void *)argument, sizeof asked);
		if (((uint64_t *)asked)[1] & ~told_flags) {
			errno = EINVAL;
			return -1;
		}
		return open("/dev/null", O_RDWR);
	}
	errno = request == SET_ATTRIBUTES_OF_FILE && told_in_place ? EINVAL : ENOTTY;
	return -1;
}

int main(int count, char **word)
{
	static struct mailbox mail;
	(void)count;
	box = &mail;
	told_flags = atol(word[1]);
	told_capability = atol(word[2]);
	told_answer = atol(word[3]);
	told_in_place = atol(word[4]);
	char *line[MAX_WORDS];
	for (int i = 0; i < MAX_WORDS; i++)
		line[i] = i + 5 < count ? word[i + 5] : "0";
	const struct verb *verb = find_verb(line[0]);
	begin();
	verb->read(line, count - 5);
	number("ret", verb->call() < 0 ? -1 : 0);
	number("answer", !strcmp(line[0], "kvmcap") ? verb->call() : 0);
	number("size", ((uint64_t *)asked)[0]);
	number("flags", ((uint64_t *)asked)[1]);
	number("order", asked[16]);
	long rest = 0;
	for (int i = 17; i < 64; i++)
		rest |= asked[i];
	number("rest", rest);
	verb->report();
	end();
	return 0;
}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs one line on a kernel with these flags, this capability and answer, and files that convert in place or not."""
    directory = tmp_path_factory.mktemp("probe")
    (directory / "stand_in.c").write_text(STAND_IN)
    command = ["gcc", "-O0", "-I", str(PROBE.parent), "-pthread", "-o", "stand_in", "stand_in.c"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)

    def asked(line: str, flags: int = 3, capability: int = 0, answer: int = 0, in_place: bool = False):
        words = [str(number) for number in (flags, capability, answer, int(in_place))]
        done = subprocess.run(
            [directory / "stand_in", *words, *line.split()], capture_output=True, check=True, text=True
        )
        return json.loads(done.stdout)

    return asked


@pytest.mark.parametrize(("name", "pages", "order"), [("HUGETLB_2M", 512, 9), ("HUGETLB_1G", 1 << 18, 18)])
def test_huge_pages_where_the_kernel_has_them(ask, name, pages, order):
    seen = ask(f"create g0 {pages} {name}", flags=7)
    assert (seen["ret"], seen["size"], seen["flags"], seen["order"], seen["rest"]) == (0, pages * 4096, 4, order, 0)
    assert "lacks" not in seen


@pytest.mark.parametrize("flags", [0, 1, 3, 3 | 8])
def test_huge_pages_where_it_has_none(ask, flags):
    """The kernel's own refusal is recorded, and the word that says what of; nothing goes into a reserved field."""
    seen = ask("create g0 512 HUGETLB_2M", flags=flags)
    assert seen["ret"] == -1 and seen["lacks"] == "GUEST_MEMFD_FLAG_HUGETLB"
    assert (seen["flags"], seen["order"], seen["rest"]) == (4, 0, 0)


@pytest.mark.parametrize("word", ["0", "4", "0x5400000000000004"])
def test_numbers_are_handed_on_as_they_are(ask, word):
    """Also the highest bits, where RFC v2 of 2025 has the size of its huge pages."""
    seen = ask(f"create g0 512 {word}", flags=3)
    assert (seen["flags"], seen["order"], seen["rest"]) == (int(word, 0), 0, 0) and "lacks" not in seen


@pytest.mark.parametrize("number", [246, 248, 250, 252])
def test_attributes_of_files_under_the_number_that_they_have(ask, number):
    seen = ask("kvmcap GUEST_MEMFD_MEMORY_ATTRIBUTES", capability=number, answer=8, in_place=True)
    assert (seen["answer"], seen["capability"]) == (8, number)


@pytest.mark.parametrize(
    ("capability", "answer", "in_place"),
    [(250, 8, False), (250, 1, True), (233, 8, True), (0, 0, True)],
    ids=["another thing's number", "not an attribute", "attributes of the VM", "no private memory"],
)
def test_attributes_of_files_where_there_are_none(ask, capability, answer, in_place):
    seen = ask("kvmcap GUEST_MEMFD_MEMORY_ATTRIBUTES", capability=capability, answer=answer, in_place=in_place)
    assert seen["answer"] == 0 and "capability" not in seen


def test_capabilities_with_one_number_are_asked_by_it(ask):
    seen = ask("kvmcap GUEST_MEMFD_FLAGS", flags=7)
    assert seen["answer"] == 7 and "capability" not in seen

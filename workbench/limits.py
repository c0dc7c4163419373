"""How much is read of what comes from outside, in one place; more is refused in one line, before memory is taken."""

from __future__ import annotations

MAX_NUMNODES = 1024
"""Largest number of NUMA nodes Linux can be built for (CONFIG_NODES_SHIFT 10)."""
MAX_CPUS = 1 << 16
"""CPU numbers; the largest NR_CPUS of any architecture is 8192 (CONFIG_MAXSMP)."""
MAX_DIGITS = 18
"""Of one number in a text; what is longer does not fit 64 bits."""

TEXT_BYTES = 4 << 20
"""A text such as the output of ``numactl --hardware``; a kernel log."""
TEXT_LINES = 100_000
"""Of such a text."""
XML_BYTES = 16 << 20
"""hwloc, libvirt; machines with a thousand CPUs need 3 MiB."""
KERNEL_FILE_BYTES = 1 << 20
"""One file of sysfs or procfs; /proc/zoneinfo with a thousand CPUs needs 400 KiB."""
ARCHIVE_BYTES = 256 << 20
"""An archive, unpacked; and packed."""
ARCHIVE_MEMBERS = 200_000
"""Files of one archive; a snapshot of sysfs with a thousand CPUs has 60,000."""
CONFIGURATION_BYTES = 1 << 20
"""The configuration of a virtual machine."""
YAML_BYTES = 10 << 20
"""A scenario, a host, a grid; standard input too."""
NOTEBOOK_BYTES = 64 << 20
"""A notebook with its outputs."""
REPORT_BYTES = 256 << 20
"""A rendered report."""
PICTURE_BYTES = 16 << 20
"""A drawing of a host; how much of a picture is searched for who made it."""
PROFILE_BYTES = 64 << 20
"""Costs of a machine: a profile, curves, what other benchmarks print."""
TRACE_BYTES = 256 << 20
"""A trace of conversions, CSV or Parquet."""
TRACE_UNPACKED = 1 << 30
"""Of its columns: what is listed in it, and what comes of that."""
TRACE_ROWS = 4_000_000
"""Operations of a trace; a stream that is drawn has as many at most."""

WORD = 1 << 64
"""Arguments of system calls are unsigned long at most."""
FILE_BYTES = 1 << 50
"""Of a guest or a file: 1 PiB is beyond any machine, and its pages fit int64 with room for arithmetic."""
FILE_NUMBER = 1 << 62
"""Inode numbers are below; page indices are added to them."""
NODE_PAGES = 1 << 40
"""4 KiB pages of a zone, a pool or a node: 4 PiB."""
RATE = 1e9
"""Largest bandwidth in MB/s (1 PB/s) and latency in ns (1 s) of one node."""
MAX_VCPUS = 4096
"""KVM_MAX_VCPUS (arch/x86/include/asm/kvm_host.h: CONFIG_KVM_MAX_NR_VCPUS)."""
MAX_TASKS = 4096
"""Threads of a scenario."""
MAX_OPERATIONS = 1_000_000
"""Operations and policy ranges of a scenario."""
OBSERVED_RUNS = 1 << 24
"""Runs of one node that the observations of a scenario list in all: some 400 MB."""
SECONDS = 366 * 24 * 3600
"""Of a time limit: timers of the system overflow, and nobody waits longer than a year."""
PROCESSES = 1024
"""Workers, notebooks or compilers that one command starts at once on this machine."""
LISTED_PAGES = 1 << 28
"""Pages that one operation may list one by one, as a random order does: 1 TiB of 4 KiB pages, some 6 GiB of arrays."""
TRACKED_FOLIOS = 1 << 28
"""Folios of one file whose state is kept one by one where pages are converted, pinned or poisoned: 1 TiB of 4 KiB ones."""
TRACKED_PAGES = 1 << 33
"""Pages of such a file: 32 TiB, of which the states take up to 5.3 GiB."""

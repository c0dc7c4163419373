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

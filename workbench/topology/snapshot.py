"""What is collected of a machine for others to read: the files that decide where memory lands, and nothing personal.

No names, addresses, serial numbers, processes or command lines: nodes, distances, CPUs, free memory, pools, tiers.
The README has the same list as a shell script of ten lines for machines without Python.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import tarfile
import zlib
from pathlib import Path

from workbench import replacing
from workbench.errors import WorkbenchError
from workbench.files import read_file, whole_file
from workbench.limits import ARCHIVE_BYTES, KERNEL_FILE_BYTES

COLLECTED = (
    "sys/devices/system/node/has_*",
    "sys/devices/system/node/node*/meminfo",
    "sys/devices/system/node/node*/cpulist",
    "sys/devices/system/node/node*/distance",
    "sys/devices/system/node/node*/hugepages/*/*_hugepages",
    "sys/devices/system/node/node*/access*/initiators/*_*",
    "sys/devices/system/node/node*/access*/initiators/node*/distance",  # which nodes these are: links to them
    "sys/devices/system/cpu/online",
    "sys/devices/virtual/memory_tiering/memory_tier*/nodelist",
    "sys/bus/cxl/devices/region*/size",
    "sys/kernel/mm/hugepages/*/*_hugepages",
    "sys/kernel/mm/mempolicy/weighted_interleave/*",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "proc/meminfo",
    "proc/zoneinfo",
    "proc/buddyinfo",
    "proc/pagetypeinfo",
    "proc/driver/nvidia/gpus/*/numa_status",
)
"""Patterns below the root. Besides them every ``target_node`` of a dax device, at its place below /sys/devices."""
_FILES = {pattern.rpartition("/")[2] for pattern in COLLECTED if "*" not in pattern.rpartition("/")[2]}
_ALSO_READ = {"target_node", "cpumap"}
_PARTS = ("_hugepages", "_bandwidth", "_latency", "has_", "numactl", "lscpu")


def wanted(path: str) -> bool:
    """Whether a member of an archive is worth keeping: by its last name what is collected, or a numactl or lscpu text."""
    folder, _, last = path.rpartition("/")
    return (
        last in _FILES
        or last in _ALSO_READ
        or any(part in last for part in _PARTS)
        or folder.endswith(("weighted_interleave", "bus/cxl/devices"))
        or "/initiators/node" in path
    )


def collect(out: Path, root: Path = Path("/"), *, force: bool = False) -> list[str]:
    """Write the files of a machine into ``out`` (.tar.gz); returns their paths.

    A file that may not be read (/proc/pagetypeinfo asks for root) is left out. Times, owners and the order of members
    are the same in every run. Raises WorkbenchError if there is nothing to collect or ``out`` cannot be written.
    """
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise WorkbenchError(f"--output: {out.name!r} must end in .tar.gz")
    replacing.check(out, _is_snapshot, "snapshot", force=force, field="--output")
    contents: dict[str, bytes] = {}
    for path in _paths(root):
        try:
            contents[path] = read_file(root / path, KERNEL_FILE_BYTES, "snapshot")
        except WorkbenchError:
            continue
    if not any(path.startswith(("sys/devices/system/node/node", "proc/meminfo")) for path in contents):
        raise WorkbenchError(f"snapshot: {str(root)!r} has neither sys/devices/system/node nor proc/meminfo")
    folder = out.name.removesuffix(".tgz").removesuffix(".tar.gz")
    with (
        whole_file(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path, content in sorted(contents.items()):
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sorted(contents)


def _is_snapshot(path: Path) -> bool:
    """Whether a file was made by :func:`collect`, as far as its first member tells."""
    try:
        with tarfile.open(fileobj=io.BytesIO(read_file(path, ARCHIVE_BYTES, "--output"))) as archive:
            first = archive.next()
    except (WorkbenchError, tarfile.TarError, OSError, EOFError, zlib.error):
        return False
    return first is not None and first.name.split("/")[1:2] in (["proc"], ["sys"])


def _paths(root: Path) -> list[str]:
    found = {path for pattern in COLLECTED for path in glob.glob(pattern, root_dir=root)}
    for device in glob.glob("sys/bus/dax/devices/*/target_node", root_dir=root):
        found.add(os.path.relpath(os.path.realpath(root / device), os.path.realpath(root)))
    return sorted(path for path in found if not path.startswith(".."))

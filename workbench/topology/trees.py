"""Trees of sysfs and procfs files: of this machine, of a directory, or of an archive that is never unpacked to disk.

A tree answers for paths below three mounts: ``sys`` (/sys), ``proc`` (/proc) and ``node`` (/sys/devices/system/node,
which people also send alone). An archive is read once, as a stream; of its members only the files that
:mod:`workbench.topology.snapshot` would collect are kept. Nothing is followed out of it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from workbench.errors import WorkbenchError, reason
from workbench.files import read_file
from workbench.limits import ARCHIVE_BYTES, ARCHIVE_MEMBERS, KERNEL_FILE_BYTES, MAX_NUMNODES

_LINKS_DEEP = 16
_CPU = re.compile(r"(devices/system/cpu/cpu[0-9]{1,6})(?:/|$)")
_NO_DEVICES = ("pci", "system", "virtual", "pnp", "tracepoint", "breakpoint", "software", "uprobe", "kprobe")
"""Folders of /sys/devices that are long and hold no dax device."""


class Tree(Protocol):
    """What a reader asks of a tree. Paths start with a mount and use ``/``."""

    name: str

    def text(self, path: str) -> str | None:
        """The text of a file without the line end; None if it is not there."""

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none if it is not there."""

    def place(self, path: str) -> str:
        """The path with links resolved, which says what a device hangs off."""

    def found(self, name: str) -> list[str]:
        """Paths below sys/devices of the files of this name."""


# -------------------------------------------------------------------------------------------------------- folders


class FolderTree:
    """A tree in the file system."""

    def __init__(self, name: str, mounts: dict[str, Path]) -> None:
        self.name = name
        self._mounts = mounts

    def _path(self, path: str) -> Path | None:
        mount, _, rest = path.partition("/")
        base = self._mounts.get(mount)
        return None if base is None else base / rest

    def text(self, path: str) -> str | None:
        """See :class:`Tree`. A file that is no regular one is refused, one that cannot be read is not there."""
        file = self._path(path)
        if file is None or not file.exists():
            return None
        try:
            content = read_file(file, KERNEL_FILE_BYTES, "snapshot")
        except WorkbenchError:
            if file.is_file() and not os.access(file, os.R_OK):
                return None
            raise
        return _decoded(content)

    def names(self, folder: str) -> list[str]:
        """See :class:`Tree`."""
        path = self._path(folder)
        try:
            return sorted(os.listdir(path)) if path is not None else []
        except OSError:
            return []

    def place(self, path: str) -> str:
        """See :class:`Tree`."""
        file = self._path(path)
        return path if file is None else os.path.realpath(file)

    def found(self, name: str) -> list[str]:
        """See :class:`Tree`."""
        base = self._mounts.get("sys")
        if base is None:
            return []
        out: list[str] = []
        for folder, folders, files in os.walk(base / "devices"):
            folders[:] = sorted(child for child in folders if not child.startswith(_NO_DEVICES))
            if name in files:
                out.append("sys/" + os.path.relpath(os.path.join(folder, name), base))
        return out


def folder_tree(root: Path) -> FolderTree:
    """The tree of a directory: /sys, a copy of it, the directory that holds such a copy, or copies of the node folder."""
    here = _mounts(root)
    if here is not None:
        return FolderTree(_folder_name(root), here)
    try:
        children = [child for child in sorted(root.iterdir()) if child.is_dir()]
    except OSError as error:
        raise WorkbenchError(f"snapshot: {str(root)[:200]!r}: {error.strerror}") from None
    inside = [(child, mounts) for child in children[:MAX_NUMNODES] if (mounts := _mounts(child)) is not None]
    if len(inside) > 1:
        raise WorkbenchError(
            f"snapshot: {str(root)[:200]!r} holds more than one machine: {inside[0][0].name!r} and {inside[1][0].name!r}"
        )
    if not inside:
        raise WorkbenchError(
            f"sysfs: {str(root)[:200]!r} has no devices/system/node; give the directory that holds devices/, or its parent"
        )
    return FolderTree(inside[0][0].name, inside[0][1])


def _mounts(root: Path) -> dict[str, Path] | None:
    for sys in (root, root / "sys"):
        if (sys / "devices/system").is_dir():
            return {"sys": sys, "node": sys / "devices/system/node", "proc": sys.parent / "proc"}
    if any((root / f"node{number}/meminfo").exists() for number in range(2)):
        return {"node": root}
    return None


def _folder_name(root: Path) -> str:
    full = Path(os.path.abspath(root))
    return (full.parent if full.name == "sys" else full).name or "snapshot"


# ------------------------------------------------------------------------------------------------------- archives


class ArchiveTree:
    """The files of an archive by their path in it, in memory."""

    def __init__(self, name: str, files: dict[str, bytes], links: dict[str, str]) -> None:
        self.name = name
        self.files = files
        self._links = links
        self._folders: dict[str, set[str]] = {}
        for path in (*files, *links):
            while path:
                folder, _, last = path.rpartition("/")
                children = self._folders.setdefault(folder, set())
                if last in children:
                    break
                children.add(last)
                path = folder
        self._mounts = self._find_mounts()

    def _find_mounts(self) -> dict[str, str]:
        nodes = {path.rpartition("/node")[0] for path in self.files if _is_meminfo(path)}
        if not nodes:  # a kernel without NUMA
            cpus = "devices/system/cpu"
            folders = [path for path in self._folders if path == cpus or path.endswith(f"/{cpus}")]
            nodes = {f"{path.removesuffix(cpus)}devices/system/node" for path in folders}
        # The initiators of access classes are links to nodes, which some archivers follow.
        nodes = {folder for folder in nodes if "/initiators" not in folder}
        if len(nodes) > 1:
            first, second = sorted(nodes)[:2]
            raise WorkbenchError(f"snapshot: more than one machine: {first[:80]!r} and {second[:80]!r}")
        if not nodes:
            return {}
        node = nodes.pop()
        mounts = {"node": node}
        if node.endswith("devices/system/node"):
            sys = node.removesuffix("devices/system/node").rstrip("/")
            mounts["sys"] = sys
            if sys:
                mounts["proc"] = f"{sys.rpartition('/')[0]}/proc".lstrip("/")
        return mounts

    @property
    def has_machine(self) -> bool:
        """Whether there is a sysfs tree in it."""
        return bool(self._mounts)

    def _path(self, path: str) -> str | None:
        mount, _, rest = path.partition("/")
        base = self._mounts.get(mount)
        return None if base is None else self._resolved("/".join(part for part in (base, rest) if part))

    def _resolved(self, path: str) -> str:
        for _ in range(_LINKS_DEEP):
            parts = path.split("/")
            for count in range(1, len(parts) + 1):
                head = "/".join(parts[:count])
                if head in self._links:
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(head), self._links[head]))
                    path = "/".join([target, *parts[count:]])
                    break
            else:
                return path
        return path

    def text(self, path: str) -> str | None:
        """See :class:`Tree`."""
        inside = self._path(path)
        content = None if inside is None else self.files.get(inside)
        return None if content is None else _decoded(content)

    def names(self, folder: str) -> list[str]:
        """See :class:`Tree`."""
        inside = self._path(folder)
        return sorted(self._folders.get(inside, ())) if inside is not None else []

    def place(self, path: str) -> str:
        """See :class:`Tree`."""
        return self._path(path) or path

    def found(self, name: str) -> list[str]:
        """See :class:`Tree`."""
        base = self._mounts.get("sys")
        if base is None:
            return []
        start = f"{base}/devices/".lstrip("/")
        return [f"sys/devices/{path.removeprefix(start)}" for path in self.files
                if path.startswith(start) and path.endswith(f"/{name}")]  # fmt: skip


def _is_meminfo(path: str) -> bool:
    folder, _, last = path.rpartition("/")
    parent = folder.rpartition("/")[2]
    return last == "meminfo" and parent.startswith("node") and parent.removeprefix("node").isdecimal()


def is_archive(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are those of a tar archive, packed or not."""
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or head[257:262] == b"ustar"


def archive_tree(path: Path, wanted: Callable[[str], bool]) -> ArchiveTree:
    """Read the members of a tar archive (plain, gzip, bzip2 or xz) whose paths are ``wanted``.

    Raises WorkbenchError for members that lead out of the archive (absolute paths, ``..``, links), for devices, and
    for archives beyond the limits of :mod:`workbench.limits`.
    """
    name = path.name
    packed = io.BytesIO(read_file(path, ARCHIVE_BYTES, "snapshot"))
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    try:
        stream = _Limited(_unpacked(packed))
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
            for member in _members(archive):
                _keep(archive, member, wanted, files, links)
        while stream.read(1 << 20):  # to the checksum at the end
            pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, MemoryError) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(f"snapshot: not a tar archive that can be read: {reason(error)}") from None
    short = name
    for ending in (".gz", ".bz2", ".xz", ".tgz", ".tbz2", ".txz", ".tar"):
        short = short.removesuffix(ending)
    return ArchiveTree(short or "snapshot", files, links)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(archive):
        if count >= ARCHIVE_MEMBERS:
            raise WorkbenchError(f"snapshot: more than {ARCHIVE_MEMBERS} members; no more are read")
        vars(archive)["members"] = []  # tarfile keeps them all otherwise
        yield member


def _keep(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    wanted: Callable[[str], bool],
    files: dict[str, bytes],
    links: dict[str, str],
) -> None:
    path = posixpath.normpath(member.name)
    shown = repr(member.name[:80])
    if path.startswith(("/", "../")) or path == ".." or "\x00" in path:
        raise WorkbenchError(f"snapshot: member {shown} leads out of the archive; relative paths are expected")
    if (cpu := _CPU.search(path)) is not None:
        files.setdefault(f"{path[: cpu.end(1)]}/", b"")  # the folder alone says that the CPU is there
    if member.issym() or member.islnk():
        base = posixpath.dirname(path) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(base, member.linkname))
        if target.startswith(("/", "../")) or target == "..":
            raise WorkbenchError(f"snapshot: link {shown} leads out of the archive")
        if member.islnk() and target in files:
            files[path] = files[target]
        elif member.issym():
            links[path] = member.linkname
    elif member.isreg():
        if not wanted(path):
            return
        if member.size > KERNEL_FILE_BYTES:
            raise WorkbenchError(
                f"snapshot: member {shown} has {member.size >> 10:,} KiB; at most {KERNEL_FILE_BYTES >> 10:,} are read"
            )
        if path in files:
            raise WorkbenchError(f"snapshot: member {shown} is there twice")
        opened = archive.extractfile(member)
        files[path] = b"" if opened is None else opened.read()
    elif not member.isdir():
        raise WorkbenchError(f"snapshot: member {shown} is a device or FIFO; files, folders and links are expected")


def _unpacked(packed: io.BytesIO) -> IO[bytes]:
    head = packed.getbuffer()[:6].tobytes()
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(packed)
    return packed


class _Limited:
    """A stream that refuses to go on after ARCHIVE_BYTES, whatever the headers inside it say."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner
        self._read = 0

    def read(self, size: int) -> bytes:
        content = self._inner.read(min(size, 1 << 20))
        self._read += len(content)
        if self._read > ARCHIVE_BYTES:
            raise WorkbenchError(f"snapshot: unpacks to more than {ARCHIVE_BYTES >> 20} MiB; a snapshot has a few")
        return content


def _decoded(content: bytes) -> str:
    return content.decode("ascii", errors="replace").strip("\x00\n ")

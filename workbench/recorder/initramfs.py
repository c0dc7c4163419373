"""Builds the initial RAM file system: a cpio archive in the "newc" format that the kernel unpacks at boot.

The format is described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: each entry is a
header of thirteen 8-digit hexadecimal numbers behind the magic 070701, the name with its NUL, and the data; name and
data are each padded to a multiple of four bytes, and an entry named TRAILER!!! ends the archive.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class CpioEntry:
    """One file, directory or device node. ``mode`` holds type and permissions as in stat(2)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> CpioEntry:
    """A directory that everybody may read."""
    return CpioEntry(name, stat.S_IFDIR | 0o755)


def regular(name: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """A file."""
    return CpioEntry(name, stat.S_IFREG | permissions, data)


def character_device(name: str, major: int, minor: int) -> CpioEntry:
    """A character device node."""
    return CpioEntry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def build(entries: Iterable[CpioEntry]) -> bytes:
    """The archive; directories must come before what is in them. The same entries give the same bytes."""
    archive = bytearray()
    for inode, entry in enumerate(entries, 1):
        _append(archive, inode, entry)
    _append(archive, 0, CpioEntry(TRAILER, 0))
    return bytes(archive)


def _append(archive: bytearray, inode: int, entry: CpioEntry) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    owner = group = modified = checksum = 0
    held_by = (0, 0)
    fields = (
        inode,
        entry.mode,
        owner,
        group,
        links,
        modified,
        len(entry.data),
        *held_by,
        *entry.device,
        len(name),
        checksum,
    )
    archive += b"070701" + b"".join(b"%08X" % field for field in fields)
    for part in (name, entry.data):
        archive += part
        archive += bytes(-len(archive) % 4)


def host_image(
    probe: bytes, script: str, modules: Iterable[tuple[str, bytes]], next_kernel: bytes | None = None
) -> bytes:
    """The file system of a recording: the probe as /init, the script, the kernel modules and their order, a console.

    ``next_kernel``: the image that a ``kexec`` line starts; it gets the same file system, without an image.
    """
    modules = list(modules)
    entries = [
        directory("dev"),
        directory("modules"),
        character_device("dev/console", 5, 1),
        regular("init", probe, 0o755),
        regular("script.txt", script.encode()),
        regular("modules/order", "".join(f"{name}\n" for name, _ in modules).encode()),
    ]
    entries += [regular(f"modules/{name}.ko", data) for name, data in modules]
    if next_kernel is not None:
        entries += [
            directory("kexec"),
            regular("kexec/kernel", next_kernel),
            regular("kexec/initrd", host_image(probe, script, modules)),
        ]
    return build(entries)

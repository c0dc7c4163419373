"""The kernel image and the KVM modules, read from Debian packages or from a directory they were unpacked to."""

from __future__ import annotations

import lzma
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from workbench.errors import WorkbenchError

MODULES = ("irqbypass", "kvm", "ccp", "kvm-amd")
"""In the order in which they are loaded. The emulated CPU is an AMD one, so kvm-amd it is; it needs ccp."""
PACKAGES = "linux-binary-7.3.4+deb13-amd64 and linux-modules-7.3.4+deb13-amd64 (Debian trixie-backports)"
_IMAGE = re.compile(r"(^|/)(modules/[^/]+/vmlinuz|vmlinuz(-[^/]+)?)$")
_MODULE = re.compile(r"/(" + "|".join(MODULES) + r")\.ko(\.xz)?$")
_VERSION = re.compile(r"(?:modules/|vmlinuz-)([0-9][^/]*)")


@dataclass
class Kernel:
    """An image that QEMU can boot and the modules by name."""

    image: bytes = b""
    version: str = ""
    modules: dict[str, bytes] = field(default_factory=dict)

    def ordered_modules(self) -> list[tuple[str, bytes]]:
        """Name and content in loading order."""
        return [(name, self.modules[name]) for name in MODULES if name in self.modules]


def load(paths: Sequence[str | Path]) -> Kernel:
    """Read image and modules from ``.deb`` files, directories of them, or directories they were unpacked to.

    Raises WorkbenchError that says which part is missing and which packages hold it.
    """
    kernel = Kernel()
    shown = ", ".join(str(path) for path in paths)
    for path in map(Path, paths):
        if path.is_dir():
            packages = sorted(path.glob("*.deb"))
            found = (member for package in packages for member in _package(package)) if packages else _directory(path)
        elif path.suffix == ".deb" and path.is_file():
            found = _package(path)
        else:
            raise WorkbenchError(f"--kernel {path}: is neither a directory nor a .deb file; needed are {PACKAGES}")
        for name, data in found:
            _take(kernel, name, data)
            if kernel.image and len(kernel.modules) == len(MODULES):
                return kernel
    if not kernel.image:
        raise WorkbenchError(
            f"--kernel {shown}: no kernel image (vmlinuz); it is in linux-binary-*; needed are {PACKAGES}"
        )
    missing = [name for name in MODULES if name not in kernel.modules and name != "ccp"]
    if missing:
        raise WorkbenchError(
            f"--kernel {shown}: no module {missing[-1]}; it is in linux-modules-*; needed are {PACKAGES}"
        )
    return kernel


def _take(kernel: Kernel, name: str, data: bytes) -> None:
    module = _MODULE.search(name)
    if module:
        kernel.modules.setdefault(module.group(1), lzma.decompress(data) if module.group(2) else data)
    elif not kernel.image:
        kernel.image = data
        version = _VERSION.search(name)
        kernel.version = version.group(1) if version else ""


def _wanted(name: str) -> bool:
    return bool(_IMAGE.search(name) or _MODULE.search(name))


def _directory(path: Path) -> Iterator[tuple[str, bytes]]:
    for found in sorted(path.rglob("*")):
        if _wanted("/" + str(found.relative_to(path))) and found.is_file() and not found.is_symlink():
            yield str(found), found.read_bytes()


def _package(path: Path) -> Iterator[tuple[str, bytes]]:
    """Members of a Debian package that matter: an ar archive whose data.tar.* holds the files."""
    openers = {"data.tar.xz": "xz", "data.tar.gz": "gz", "data.tar.bz2": "bz2", "data.tar": ""}
    with path.open("rb") as archive:
        if archive.read(8) != b"!<arch>\n":
            raise WorkbenchError(f"--kernel {path}: is not a Debian package")
        for name, size in _ar_members(archive):
            if name in openers:
                data = _Part(archive, size)
                try:
                    with tarfile.open(fileobj=data, mode=f"r|{openers[name]}") as tar:  # type: ignore[call-overload]
                        for member in tar:
                            if member.isreg() and _wanted("/" + member.name):
                                content = tar.extractfile(member)
                                assert content is not None
                                yield member.name, content.read()
                except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
                    raise WorkbenchError(f"--kernel {path}: is damaged ({error})") from None
                return
            if name.startswith("data.tar"):
                raise WorkbenchError(f"--kernel {path}: {name} cannot be read here; unpack it with dpkg-deb -x first")
            archive.seek(size + size % 2, 1)
    raise WorkbenchError(f"--kernel {path}: is damaged (no data.tar in it)")


def _ar_members(archive: IO[bytes]) -> Iterator[tuple[str, int]]:
    while len(header := archive.read(60)) == 60:
        yield header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])


class _Part:
    """The next ``size`` bytes of a file, as a file that can only be read forward."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes."""
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        self._left -= len(data)
        return data

"""A kernel to boot: an image that somebody built, or a distribution's packages, with the KVM modules if it has any.

Nothing is assumed of a version or of what is built in: the image is recognised by its boot header (Linux
Documentation/arch/x86/boot.rst), modules by their names, and the modules they need by what they say themselves
(``depends=`` in the section ``.modinfo``). Whether it all works is seen at the boot.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from workbench import children
from workbench.errors import WorkbenchError

RAM_DISK = "brd"
MODULES = ("kvm", "kvm-amd", RAM_DISK)
"""What is wanted beside the image, unless it is built in. The emulated CPU is an AMD one, so kvm-amd it is. The RAM disk is
loaded for scripts that read it directly."""
PACKAGES = (
    "a bzImage, or Debian's linux-binary-VERSION and linux-modules-VERSION (up to 6.18 linux-image-VERSION), "
    "packed or unpacked"
)
_LIKELY = ("irqbypass", "ccp")
"""What those usually need; looked for at once, since a packed package takes long to read through."""
LARGEST_IMAGE = 1 << 28
_IMAGE = re.compile(r"(^|/)(vmlinuz(-[^/]+)?|bzImage)$")
_MODULE = re.compile(r"(?:^|/)([^/]+)\.ko(\.xz|\.gz|\.zst)?$")
_Wanted = Callable[[str], bool]
_MAGIC = (0x202, b"HdrS")
_VERSION_POINTER = 0x20E
_LOAD_FLAGS = 0x236
_64_BIT = 1


@dataclass
class KernelImage:
    """An image that QEMU can boot and the modules by name; ``source`` is what the user named."""

    image: bytes = b""
    version: str = ""
    modules: dict[str, bytes] = field(default_factory=dict)
    source: str = ""

    def ordered_modules(self) -> list[tuple[str, bytes]]:
        """Name and content in loading order: each after those that it needs."""
        ordered: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in self.modules and name not in ordered:
                for needed in dependencies(self.modules[name]):
                    add(needed)
                ordered[name] = self.modules[name]

        for name in MODULES:
            add(name)
        return list(ordered.items())


def check(paths: Sequence[str | Path]) -> None:
    """Raise WorkbenchError for the first path at which there is nothing."""
    for path in map(Path, paths):
        if not path.exists():
            raise WorkbenchError(f"--kernel {path}: no such file or directory; needed are {PACKAGES}")


def load(paths: Sequence[str | Path]) -> KernelImage:
    """Read image and modules from images, ``.deb`` files, directories of them, module directories or build trees.

    Raises WorkbenchError that says what is wrong with which path.
    """
    shown = ", ".join(str(path) for path in paths)
    kernel = KernelImage(source=shown)
    check(paths)
    for path in map(Path, paths):
        if path.is_file() and path.suffix != ".deb":
            _take_image(kernel, str(path), _image_of(path))
    # A module may need others, which its own text names: look again until nothing new is wanted.
    wanted, seen = {*MODULES, *_LIKELY}, set[str]()
    while wanted - seen:
        for path in map(Path, paths):
            for name, data in _members(path, wanted - seen, image=True):
                _take(kernel, name, data)
        seen |= wanted
        for name in list(wanted):
            wanted |= set(dependencies(kernel.modules.get(name, b"")))
    if not kernel.image:
        raise WorkbenchError(f"--kernel {shown}: no kernel image (vmlinuz or bzImage) in it; needed are {PACKAGES}")
    return kernel


def _members(path: Path, modules: set[str], *, image: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content of what is wanted in one of the paths."""

    def wanted(name: str) -> bool:
        module = _MODULE.search(name)
        return (image and bool(_IMAGE.search(name))) or bool(module and _module_name(module.group(1)) in modules)

    if path.is_dir():
        packages = sorted(path.glob("*.deb"))
        for package in packages:
            yield from _package(package, wanted)
        if not packages:
            yield from _directory(path, wanted)
    elif path.suffix == ".deb":
        yield from _package(path, wanted)


def _take(kernel: KernelImage, name: str, data: bytes) -> None:
    module = _MODULE.search(name)
    if module:
        kernel.modules.setdefault(_module_name(module.group(1)), _unpacked(name, data, module.group(2)))
    elif data != kernel.image:
        _take_image(kernel, name, data)


def _take_image(kernel: KernelImage, name: str, data: bytes) -> None:
    """Check the boot header and read the version from it."""
    if data[_MAGIC[0] : _MAGIC[0] + 4] != _MAGIC[1]:
        kind = "a vmlinux; take arch/x86/boot/bzImage" if data[:4] == b"\x7fELF" else "no Linux image for x86"
        raise WorkbenchError(f"--kernel {name}: is {kind}; needed are {PACKAGES}")
    if not int.from_bytes(data[_LOAD_FLAGS : _LOAD_FLAGS + 2], "little") & _64_BIT:
        raise WorkbenchError(f"--kernel {name}: is a 32-bit kernel; the emulated host needs one for x86-64")
    start = int.from_bytes(data[_VERSION_POINTER : _VERSION_POINTER + 2], "little") + 0x200
    version = data[start : start + 256].split(b"\0")[0].decode("ascii", "replace").split(" ")[0]
    if kernel.image:
        raise WorkbenchError(f"--kernel {kernel.source}: holds two kernels, {kernel.version} and {version}; name one")
    kernel.image, kernel.version = data, version


def _image_of(path: Path) -> bytes:
    """A file that should be an image; a disk or an archive is not read whole."""
    if not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
        raise WorkbenchError(f"--kernel {path}: is no Linux image for x86; needed are {PACKAGES}")
    return path.read_bytes()


def _module_name(name: str) -> str:
    """File names and ``depends=`` write the same module with a dash or an underscore."""
    return "kvm-amd" if name in ("kvm-amd", "kvm_amd") else name.replace("-", "_")


def dependencies(module: bytes) -> list[str]:
    """The modules that a module says it needs."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return (
        [_module_name(name) for name in found.group(1).decode("ascii", "replace").split(",") if name] if found else []
    )


def _unpacked(name: str, data: bytes, suffix: str | None) -> bytes:
    try:
        if suffix == ".xz":
            return lzma.decompress(data)
        if suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise WorkbenchError(f"--kernel {name}: is damaged ({error})") from None
    if suffix == ".zst":
        if shutil.which("zstd") is None:
            raise WorkbenchError(f"--kernel {name}: zstd not found; install the Debian package zstd")
        done = children.run(["zstd", "-dc"], input=data, capture_output=True)
        if done.returncode:
            raise WorkbenchError(f"--kernel {name}: is damaged (zstd cannot unpack it)")
        return done.stdout
    return data


def _directory(path: Path, wanted: _Wanted) -> Iterator[tuple[str, bytes]]:
    for found in sorted(path.rglob("*")):
        if wanted("/" + str(found.relative_to(path))) and found.is_file() and not found.is_symlink():
            yield str(found), found.read_bytes()


def _package(path: Path, wanted: _Wanted) -> Iterator[tuple[str, bytes]]:
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
                            if member.isreg() and wanted("/" + member.name):
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

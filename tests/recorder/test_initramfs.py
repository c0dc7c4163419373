"""The archive is what the kernel's unpacker and cpio(1) expect: read back by an independent reader of the format."""

from __future__ import annotations

import stat
import subprocess
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.recorder import initramfs

FIELDS = (
    "ino",
    "mode",
    "uid",
    "gid",
    "nlink",
    "mtime",
    "size",
    "major",
    "minor",
    "rmajor",
    "rminor",
    "namesize",
    "check",
)


def read_newc(archive: bytes) -> list[tuple[dict[str, int], str, bytes]]:
    """All members before the trailer, the way buffer-format.rst describes them."""
    members, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701", f"no header at {at}"
        header = archive[at + 6 : at + 110]
        values = {name: int(header[8 * i : 8 * i + 8], 16) for i, name in enumerate(FIELDS)}
        name_end = at + 110 + values["namesize"]
        assert archive[name_end - 1] == 0
        name = archive[at + 110 : name_end - 1].decode()
        start = (name_end + 3) // 4 * 4
        at = (start + values["size"] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(archive)
            return members
        members.append((values, name, archive[start : start + values["size"]]))


NAMES = st.text("abcdefgh/._-", min_size=1, max_size=40)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=70), st.sampled_from([0o644, 0o755]))))
def test_members_come_back(files):
    entries = [initramfs.regular(name, data, permissions) for name, data, permissions in files]
    members = read_newc(initramfs.build(entries))
    assert [(name, data, stat.S_IMODE(values["mode"])) for values, name, data in members] == files
    inodes = [values["ino"] for values, _, _ in members]
    assert len(set(inodes)) == len(inodes), "equal inode numbers would be read as hard links"


def test_kinds_of_entries():
    entries = [
        initramfs.directory("dev"),
        initramfs.character_device("dev/console", 5, 1),
        initramfs.regular("init", b"x"),
    ]
    members = {name: values for values, name, _ in read_newc(initramfs.build(entries))}
    assert stat.S_ISDIR(members["dev"]["mode"]) and members["dev"]["nlink"] == 2
    assert stat.S_ISCHR(members["dev/console"]["mode"])
    assert (members["dev/console"]["rmajor"], members["dev/console"]["rminor"]) == (5, 1)
    assert stat.S_ISREG(members["init"]["mode"])


def test_image_of_a_recording():
    image = initramfs.host_image(b"\x7fELF", "scenario a\n", [("kvm", b"module")])
    members = {name: (values, data) for values, name, data in read_newc(image)}
    assert list(members) == ["dev", "modules", "dev/console", "init", "script.txt", "modules/order", "modules/kvm.ko"]
    assert stat.S_IMODE(members["init"][0]["mode"]) == 0o755 and members["init"][1] == b"\x7fELF"
    assert members["script.txt"][1] == b"scenario a\n"
    assert image == initramfs.host_image(b"\x7fELF", "scenario a\n", [("kvm", b"module")])


@pytest.mark.skipif(which("cpio") is None, reason="cpio is not installed")
def test_cpio_lists_it():
    image = initramfs.host_image(b"probe", "scenario a\n", [])
    listed = subprocess.run(["cpio", "-it", "--quiet"], input=image, capture_output=True, check=True)
    assert listed.stdout.decode().split() == ["dev", "modules", "dev/console", "init", "script.txt", "modules/order"]

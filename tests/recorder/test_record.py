"""What is missing is said in one line with the Debian package that has it; nothing is left running or half written."""

from __future__ import annotations

import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from workbench.errors import WorkbenchError
from workbench.recorder import kernel_package, record
from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.qemu import EmulatedHost, EmulatedNode

ONE = EmulatedHost("one", (EmulatedNode(256, (0,)),))
SCRIPT = "scenario a\ncreate g0 4 MMAP|SHARED\nplace g0\n"
LIB = "usr/lib/modules/7.3.4+deb13-amd64"
MODULES = {
    "irqbypass": "virt/lib/irqbypass.ko.xz",
    "kvm": "arch/x86/kvm/kvm.ko.xz",
    "ccp": "drivers/crypto/ccp/ccp.ko",
    "kvm-amd": "arch/x86/kvm/kvm-amd.ko.xz",
}


def deb(path, files, kind="xz"):
    """A Debian package with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{kind}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), (f"data.tar.{kind}", data.getvalue())):
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    path.write_bytes(archive)
    return path


def packed(name):
    return lzma.compress(name.encode()) if MODULES[name].endswith(".xz") else name.encode()


@pytest.fixture
def packages(tmp_path):
    binary = deb(tmp_path / "linux-binary.deb", {f"{LIB}/vmlinuz": b"image", "usr/share/doc/x": b"doc"})
    files = {f"{LIB}/kernel/{place}": packed(name) for name, place in MODULES.items()}
    return binary, deb(tmp_path / "linux-modules.deb", files)


def test_kernel_from_packages(packages):
    for paths in (packages, [packages[0].parent]):
        kernel = kernel_package.load(paths)
        assert kernel.image == b"image" and kernel.version == "7.3.4+deb13-amd64"
        assert kernel.ordered_modules() == [(name, name.encode()) for name in ("irqbypass", "kvm", "ccp", "kvm-amd")]


def test_kernel_from_an_unpacked_directory(tmp_path):
    for name, place in MODULES.items():
        target = tmp_path / LIB / "kernel" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed(name))
    (tmp_path / LIB / "vmlinuz").write_bytes(b"image")
    kernel = kernel_package.load([tmp_path])
    assert kernel.image == b"image" and set(kernel.modules) == set(MODULES)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"usr/share/doc/x": b""}, "no kernel image .*linux-binary-7"),
        ({f"{LIB}/vmlinuz": b"i"}, "no module kvm-amd.*linux-modules"),
        (
            {f"{LIB}/vmlinuz": b"i", f"{LIB}/kernel/{MODULES['kvm-amd']}": packed("kvm-amd")},
            "no module kvm;.*linux-modules",
        ),
    ],
)
def test_missing_parts_of_the_kernel(tmp_path, files, message):
    with pytest.raises(WorkbenchError, match=message):
        kernel_package.load([deb(tmp_path / "a.deb", files)])


def test_damaged_and_foreign_packages(tmp_path, packages):
    cut = tmp_path / "cut.deb"
    cut.write_bytes(packages[1].read_bytes()[:400])
    with pytest.raises(WorkbenchError, match="damaged"):
        kernel_package.load([cut])
    (tmp_path / "not.deb").write_bytes(b"PK something")
    with pytest.raises(WorkbenchError, match="not a Debian package"):
        kernel_package.load([tmp_path / "not.deb"])
    with pytest.raises(WorkbenchError, match=r"neither a directory nor a \.deb"):
        kernel_package.load([tmp_path / "nothing"])


def test_missing_qemu():
    with pytest.raises(WorkbenchError, match="qemu-nothing: not found; install the Debian package qemu-system-x86"):
        record.record(SCRIPT, ONE, "kernel", qemu="qemu-nothing")


def test_missing_gcc(monkeypatch):
    monkeypatch.setattr(record.shutil, "which", lambda name: None if name == "gcc" else "/bin/" + name)
    with pytest.raises(WorkbenchError, match="gcc: not found; install the Debian packages gcc and libc6-dev"):
        record.require_tools()


def fake_tool(directory, name, text):
    tool = directory / name
    tool.write_text("#!/bin/sh\n" + text)
    tool.chmod(0o755)
    return tool


def test_missing_static_libc(tmp_path, monkeypatch):
    fake_tool(tmp_path, "gcc", 'echo "ld: cannot find -lpthread: No such file" >&2; exit 1\n')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(WorkbenchError, match="install the Debian package libc6-dev"):
        record.build_probe(tmp_path)


@pytest.fixture
def tools(tmp_path, packages, monkeypatch):
    """Stand-ins for gcc and QEMU; the latter runs a shell text with $OUT set to the probe's output."""
    directory = tmp_path / "bin"
    directory.mkdir()
    fake_tool(directory, "gcc", 'while [ "$1" != -o ]; do shift; done; echo probe > "$2"\n')
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)

    def install(text):
        find = 'for word in "$@"; do case $word in file,id=probe,path=*) OUT=${word#file,id=probe,path=};; esac; done\n'
        fake_tool(directory, "qemu-fake", find + text)
        return list(packages)

    return install


DONE = r"""
cat > "$OUT" <<'END'
{"boot_us":1}
{"kvm":{"us":"2","present":"1"}}
{"file":"/proc/version","lines":["Linux version 7.3.4"]}
{"scenario":"a"}
{"op":"create g0 4 MMAP|SHARED","ret":7,"errno":0,"us":1,"mmap":0}
{"op":"place g0","place":".*4","range":"0+4"}
{"end":5}
{"done_us":9}
END
"""


def test_recording_is_written_whole(tools, tmp_path):
    kernel = tools(DONE)
    seen = []
    out = tmp_path / "r.json.gz"
    value = record.record(SCRIPT, ONE, kernel, out, qemu="qemu-fake", progress=lambda *a: seen.append(a))
    assert value["scenarios"][0]["ops"][1]["place"] == ".*4"
    assert value["topology"] == ONE.topology() and value["scenario_text"] == SCRIPT
    first = out.read_bytes()
    assert seen and seen[-1][1] == 1
    assert os.listdir(tmp_path / "bin") and not list(tmp_path.glob(".r.json*"))
    record.record(SCRIPT, ONE, kernel, out, qemu="qemu-fake")
    assert abs(len(out.read_bytes()) - len(first)) < 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'qemu: -numa: bad' >&2; exit 1", "did not boot: qemu: -numa: bad"),
        ("""printf '{"boot_us":1}\\n{"scenario":"a"}\\n{"op":"x","re' > "$OUT\"""", "died in a"),
        (DONE.replace('"present":"1"', '"present":"0"'), "no /dev/kvm"),
        ("sleep 30", "timeout: the emulated machine was not done after 0.5 s"),
    ],
)
def test_machine_that_fails_writes_nothing(tools, tmp_path, text, message):
    kernel = tools(text)
    out = tmp_path / "r.json"
    started = time.monotonic()
    with pytest.raises(WorkbenchError, match=message):
        record.record(SCRIPT, ONE, kernel, out, qemu="qemu-fake", timeout=0.5 if "sleep" in text else 20)
    assert time.monotonic() - started < 15
    assert not out.exists() and not list(tmp_path.glob(".r.json*"))


def test_interrupt_ends_the_machine(tools, tmp_path):
    marker = tmp_path / "pid"
    kernel = tools(f"echo $$ > {marker}; exec sleep 60\n")
    code = (
        "from workbench.recorder import record\nfrom workbench.recorder.qemu import EmulatedHost, EmulatedNode\n"
        f"record.record({SCRIPT!r}, EmulatedHost('one', (EmulatedNode(256, (0,)),)), "
        f"{[str(path) for path in kernel]!r}, {str(tmp_path / 'r.json')!r}, qemu='qemu-fake')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not marker.exists() or not marker.read_text().strip():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    machine = int(marker.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(machine, 0)
    assert not (tmp_path / "r.json").exists() and not list(tmp_path.glob(".r.json*"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "first line"),
        ("create g0 4 0\n", "first line"),
        ("scenario a\nscenario a\n", "'a' is empty or there twice"),
        ("# note\nscenario\n", "'' is empty"),
    ],
)
def test_scripts_that_are_refused(script, message):
    with pytest.raises(WorkbenchError, match=message):
        record.record(script, ONE, "kernel")


def test_script_without_a_host():
    with pytest.raises(WorkbenchError, match="host: missing"):
        record.record(SCRIPT, None, "kernel")


@pytest.mark.skipif(
    record.shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed (Debian package qemu-system-x86)"
)
@pytest.mark.parametrize("name", sorted(all_hosts()))
def test_qemu_accepts_every_host(name, tmp_path):
    """QEMU checks nodes, distances and HMAT before it looks for the kernel, which is not there."""
    command = all_hosts()[name].command(
        "qemu-system-x86_64", tmp_path / "no-kernel", tmp_path / "i", tmp_path / "o", tmp_path / "c"
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "no-kernel" in done.stderr, done.stderr

"""What is missing is said in one line with the Debian package that has it; nothing is left running or half written."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

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


NEEDS = {"kvm": "irqbypass", "kvm-amd": "ccp,kvm"}


def image(version="7.3.4+deb13-amd64", magic=b"HdrS", flags=1):
    """The boot header of a bzImage and nothing behind it (Documentation/arch/x86/boot.rst)."""
    data = bytearray(0x600)
    data[0x202:0x206] = magic
    data[0x20E:0x210] = (0x300).to_bytes(2, "little")
    data[0x236:0x238] = flags.to_bytes(2, "little")
    text = f"{version} (user@host) #1\0".encode()
    data[0x500 : 0x500 + len(text)] = text
    return bytes(data)


def module(name):
    """The part of a module that says what it needs."""
    return f"ELF\0name={name}\0depends={NEEDS.get(name, '')}\0".encode()


def packed(name):
    return lzma.compress(module(name)) if MODULES[name].endswith(".xz") else module(name)


@pytest.fixture
def packages(tmp_path):
    binary = deb(tmp_path / "linux-binary.deb", {f"{LIB}/vmlinuz": image(), "usr/share/doc/x": b"doc"})
    files = {f"{LIB}/kernel/{place}": packed(name) for name, place in MODULES.items()}
    return binary, deb(tmp_path / "linux-modules.deb", files)


def test_kernel_from_packages(packages):
    for paths in (packages, [packages[0].parent]):
        kernel = kernel_package.load(paths)
        assert kernel.image == image() and kernel.version == "7.3.4+deb13-amd64"
        assert kernel.ordered_modules() == [(name, module(name)) for name in ("irqbypass", "kvm", "ccp", "kvm-amd")]


def test_kernel_from_an_unpacked_directory(tmp_path):
    for name, place in MODULES.items():
        target = tmp_path / LIB / "kernel" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed(name))
    (tmp_path / LIB / "vmlinuz").write_bytes(image())
    kernel = kernel_package.load([tmp_path])
    assert kernel.image == image() and set(kernel.modules) == set(MODULES)


def test_kernel_that_somebody_built(tmp_path):
    """An image alone holds KVM or lacks it, which the boot shows; modules may lie beside it, in a tree or packed."""
    built = tmp_path / "bzImage"
    built.write_bytes(image("7.4.0-rc3-mine"))
    kernel = kernel_package.load([built])
    assert kernel.version == "7.4.0-rc3-mine" and not kernel.ordered_modules()
    modules = tmp_path / "lib/modules/7.4.0-rc3-mine/kernel"
    modules.mkdir(parents=True)
    (modules / "kvm-amd.ko").write_bytes(b"\0depends=kvm\0")
    (modules / "kvm.ko.gz").write_bytes(gzip.compress(b"\0depends=some-thing\0"))
    (modules / "some_thing.ko").write_bytes(b"\0depends=\0")
    kernel = kernel_package.load([built, tmp_path / "lib"])
    assert [name for name, _ in kernel.ordered_modules()] == ["some_thing", "kvm", "kvm-amd"]
    tree = tmp_path / "tree/arch/x86/boot"
    tree.mkdir(parents=True)
    (tree / "bzImage").write_bytes(image("6.18.1"))
    assert kernel_package.load([tmp_path / "tree"]).version == "6.18.1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x7fELF and more", "is a vmlinux; take arch/x86/boot/bzImage"),
        (b"text", "is no Linux image for x86"),
        (b"", "is no Linux image for x86"),
        (image(flags=0), "is a 32-bit kernel"),
    ],
)
def test_files_that_are_no_kernel(tmp_path, content, message):
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(WorkbenchError, match=message):
        kernel_package.load([tmp_path / "k"])


def test_two_kernels_are_refused(tmp_path):
    deb(tmp_path / "a.deb", {f"{LIB}/vmlinuz": image()})
    deb(tmp_path / "b.deb", {"usr/lib/modules/7.2.12/vmlinuz": image("7.2.12")})
    with pytest.raises(WorkbenchError, match=r"holds two kernels, 7.3.4\+deb13-amd64 and 7.2.12; name one"):
        kernel_package.load([tmp_path])


def test_package_without_a_kernel(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no kernel image .*linux-binary-VERSION"):
        kernel_package.load([deb(tmp_path / "a.deb", {"usr/share/doc/x": b""})])


def test_damaged_and_foreign_packages(tmp_path, packages):
    cut = tmp_path / "cut.deb"
    cut.write_bytes(packages[1].read_bytes()[:400])
    with pytest.raises(WorkbenchError, match="damaged"):
        kernel_package.load([cut])
    (tmp_path / "not.deb").write_bytes(b"PK something")
    with pytest.raises(WorkbenchError, match="not a Debian package"):
        kernel_package.load([tmp_path / "not.deb"])
    with pytest.raises(WorkbenchError, match="no such file or directory; needed are a bzImage"):
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
    assert seen[-1] == (1, 1)  # also of a machine that is done before anybody looks
    assert os.listdir(tmp_path / "bin") and not list(tmp_path.glob(".r.json*"))
    record.record(SCRIPT, ONE, kernel, out, qemu="qemu-fake")
    assert abs(len(out.read_bytes()) - len(first)) < 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'qemu: -numa: bad' >&2; exit 1", "did not boot .kernel 7.3.4.*: qemu: -numa: bad"),
        ("""printf '{"boot_us":1}\\n{"scenario":"a"}\\n{"op":"x","re' > "$OUT\"""", "died in a"),
        (DONE.replace('"present":"1"', '"present":"0"'), r"7.3.4\+deb13-amd64 boots without KVM .*modules irqbypass"),
        (
            DONE.replace('{"kvm":{"us":"2","present":"1"}}', '{"module":"/modules/kvm.ko","ret":-1,"errno":8}'),
            "boots without KVM .*module kvm: errno 8",
        ),
        (DONE.replace('"present":"1"', '"present":"1","create_vm":95'), "cannot make a virtual machine .errno 95"),
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


CONSOLE = 'for word in "$@"; do case $word in file,id=console,path=*) echo > ${word#file,id=console,path=} "$SAID";; esac; done\n'


def test_a_failed_boot_leaves_the_end_of_its_console(tools, tmp_path):
    said = "line\n" * 500 + "Kernel panic - not syncing: No working init found.\nend"
    kernel = tools(f"SAID='{said}'\n" + CONSOLE + "exit 0")
    with pytest.raises(WorkbenchError, match=r"did not boot .*Kernel panic - not syncing: No working init") as caught:
        record.record(SCRIPT, ONE, kernel, tmp_path / "r.json", qemu="qemu-fake")
    assert "\n" not in str(caught.value)
    (kept,) = tmp_path.glob("r-*.console.txt")
    assert str(kept) in str(caught.value)
    lines = kept.read_text().splitlines()
    assert len(lines) == record.CONSOLE_LINES and lines[-1] == "end"


def test_a_boot_that_hangs_is_stopped_before_the_timeout(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BOOT_TIMEOUT", 0.5)
    kernel = tools("sleep 30")
    with pytest.raises(WorkbenchError, match=r"did not boot in 0.5 s; its console stayed empty"):
        record.record(SCRIPT, ONE, kernel, tmp_path / "r.json", qemu="qemu-fake")


def test_a_kernel_without_virtio_speaks_over_the_serial_line(tools, tmp_path):
    kernel = tools(DONE.replace('> "$OUT"', '| sed "s/$/\\r/" > "$OUT.serial"'))
    value = record.record(SCRIPT, ONE, kernel, qemu="qemu-fake")
    assert value["done"] and value["scenarios"][0]["ops"][1]["place"] == ".*4"


MOMENTS = {
    "while it runs": "",
    "before Popen knows it": """
import os, signal, subprocess, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # whom the system may interrupt instead
inner = subprocess.Popen._execute_child
def started(self, args, *rest, **more):
    inner(self, args, *rest, **more)
    if args[0] == "qemu-fake":
        wait_for_machine()
        os.kill(os.getpid(), signal.HOW)
        for _ in range(1000): pass
subprocess.Popen._execute_child = started
""",
    "twice": """
import os, signal, subprocess
inner = subprocess.Popen.kill
def kill(self):
    os.kill(os.getpid(), signal.HOW)
    inner(self)
subprocess.Popen.kill = kill
""",
}


@pytest.mark.parametrize(
    ("how", "moment"),
    [
        (signal.SIGINT, "before Popen knows it"),
        (signal.SIGKILL, "before Popen knows it"),
        (signal.SIGTERM, "while it runs"),
        (signal.SIGHUP, "twice"),
    ],
)
def test_interrupt_ends_the_machine(how, moment, tools, tmp_path):
    """Whatever ends the command ends the machine, also while it is being started and while it is being ended."""
    marker = tmp_path / "pid"
    kernel = tools(f"echo $$ > {marker}; exec sleep 60\n")
    code = (
        "import pathlib, signal, time\nfrom workbench.recorder import record\n"
        "from workbench.recorder.qemu import EmulatedHost, EmulatedNode\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(number, signal.default_int_handler)\n"
        "def wait_for_machine():\n"
        f"    while not (pathlib.Path({str(marker)!r}).exists() and pathlib.Path({str(marker)!r}).read_text().strip()):\n"
        f"        time.sleep(0.01)\n{MOMENTS[moment].replace('HOW', how.name)}\n"
        f"record.record({SCRIPT!r}, EmulatedHost('one', (EmulatedNode(256, (0,)),)), "
        f"{[str(path) for path in kernel]!r}, {str(tmp_path / 'r.json')!r}, qemu='qemu-fake')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not marker.exists() or not marker.read_text().strip():
        assert child.poll() is None
        time.sleep(0.05)
    if moment != "before Popen knows it":
        child.send_signal(how)
    assert child.wait(20) != 0
    machine = Path(f"/proc/{marker.read_text().strip()}/stat")
    for _ in range(100):  # whose parent is killed ends a moment later
        if not machine.exists() or machine.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(int(marker.read_text()), signal.SIGKILL)
        pytest.fail("the machine lives on")
    assert not (tmp_path / "r.json").exists()
    assert how == signal.SIGKILL or not list(tmp_path.glob(".r.json*"))


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


@pytest.mark.parametrize(
    ("mode", "errnos", "message"),
    [
        ("in-place", (25, 25), "converts nothing in place .ENOTTY.; Linux from 7.4 on does, with `--append kvm.gmem"),
        ("out-of-place", (25,), "VMs have no attributes .ENOTTY. as long as .*guest.conversion.mode: in-place"),
        ("in-place", (25, 11), ""),
        ("out-of-place", (22,), ""),
        ("in-place", (), ""),
    ],
)
def test_conversions_that_a_kernel_has_not(mode, errnos, message):
    """Each mode is a call of its own, which one kernel has at a time; a single refusal of another kind is an answer."""
    verb = {"in-place": "convert", "out-of-place": "attr"}[mode]
    lines = [{"op": f"t1 {verb} g0 0 4 private", "ret": -1, "errno": errno} for errno in errnos]
    result = {"scenarios": [{"ops": [{"op": "create g0 4 0", "errno": 0}, *lines]}]}
    if message:
        with pytest.raises(WorkbenchError, match=message):
            record.check_conversion(result, mode)
    else:
        record.check_conversion(result, mode)

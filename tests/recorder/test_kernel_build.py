"""``workbench oracle build``: what is missing is said in one line, a failed build leaves nothing but its log, and an
interrupted one goes on.

The source here is a small stand-in with the targets and the layout of the kernel's; the real one takes half an hour.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.recorder import kernel_build
from workbench.recorder.kernel_package import load

MAKEFILE = """\
tinyconfig:
\t@echo CONFIG_TINY=y > .config
olddefconfig:
\t@grep -v -e CONFIG_REFUSED -e CONFIG_NEWER .config > .settled; mv .settled .config
bzImage:
\t@grep -q CONFIG_64BIT=y .config
\t@echo "  CC      a.o"; echo "  AS      b.o"; echo "  CC      c.o"
\t@echo $(KBUILD_BUILD_USER)@$(KBUILD_BUILD_HOST) $(KBUILD_BUILD_TIMESTAMP)
\tCOMMAND
"""
MERGE = "cat $3 >> .config\n"
KCONFIG = "config 64BIT\nconfig NUMA\nconfig KVM\nconfig KVM_AMD\nconfig REFUSED\n\tbool\n"
FRAGMENT = "# note\nCONFIG_64BIT=y\nCONFIG_NUMA=y\nCONFIG_KVM=y\nCONFIG_KVM_AMD=y\nCONFIG_REFUSED=y\nCONFIG_NEWER=y\n"


def header(version="7.3.4"):
    """The boot header of a bzImage (Documentation/arch/x86/boot.rst)."""
    data = bytearray(0x600)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x300).to_bytes(2, "little")
    data[0x236] = 1
    data[0x500 : 0x500 + len(version) + 1] = version.encode() + b"\0"
    return bytes(data)


def tarball(path, command="cp header arch/x86/boot/bzImage", skip=""):
    """A packed stand-in for a kernel's source."""
    files = {
        "Kbuild": b"", "Makefile": MAKEFILE.replace("COMMAND", command).encode(), "arch/x86/Kconfig": KCONFIG.encode(),
        "arch/x86/boot/x": b"", "scripts/kconfig/merge_config.sh": MERGE.encode(), "header": header(),
    }  # fmt: skip
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            if name != skip:
                member = tarfile.TarInfo(f"linux-7.3/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Only the tools that the stand-in needs, on any disk."""
    monkeypatch.setattr(kernel_build, "TOOLS", {"make": "make"})
    monkeypatch.setattr(kernel_build, "HEADERS", {})
    monkeypatch.setattr(kernel_build, "BYTES_NEEDED", 1)
    if shutil.which("make") is None:
        pytest.skip("make is not installed")


@pytest.fixture
def fragment(tmp_path):
    """Options, one of which the source knows and refuses, one of which it does not know."""
    path = tmp_path / "fragment"
    path.write_text(FRAGMENT)
    return path


def test_image_and_what_it_was_made_of(tmp_path, fragment):
    out, seen = tmp_path / "out", []
    source = tarball(tmp_path / "linux.tar.xz")
    built = kernel_build.build(out, source, fragment=fragment, jobs=1, progress=lambda *a: seen.append(a))
    assert load([out / "bzImage"]).version == built.version == "7.3.4"
    assert built.refused == ("CONFIG_REFUSED=y",)
    assert built.source == "linux.tar.xz" and built.fragment_sha256 == hashlib.sha256(FRAGMENT.encode()).hexdigest()
    assert json.loads((out / "build.json").read_text())["refused"] == ["CONFIG_REFUSED=y"]
    assert "CONFIG_KVM=y" in (out / "config").read_text()
    assert "workbench@recorder 1970-01-01" in (out / "build.log").read_text()
    assert seen and seen[-1][0] == 3
    assert sorted(os.listdir(out)) == ["build.json", "build.log", "bzImage", "config"]


def test_a_tree_is_built_in_a_copy(tmp_path, fragment):
    with tarfile.open(tarball(tmp_path / "linux.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    tree = tmp_path / "linux-7.3"
    (tree / "old.o").write_text("stale")
    before = sorted(path.name for path in tree.rglob("*"))
    kernel_build.build(tmp_path / "out", tree, fragment=fragment, jobs=1)
    assert sorted(path.name for path in tree.rglob("*")) == before


def test_a_failed_build_keeps_the_image_from_before(tmp_path, fragment):
    out = tmp_path / "out"
    out.mkdir()
    (out / "bzImage").write_bytes(b"old")
    source = tarball(tmp_path / "linux.tar.xz", "@echo 'a.c:3:1: error: no such thing'; exit 1")
    with pytest.raises(WorkbenchError, match=r"make -j1 bzImage: a.c:3:1: error: no such thing \(see .*build.log\)"):
        kernel_build.build(out, source, fragment=fragment, jobs=1, force=True)  # no build made it
    assert (out / "bzImage").read_bytes() == b"old" and sorted(os.listdir(out)) == ["build.log", "bzImage"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CONFIG_KVM\n", "line 1: 'CONFIG_KVM'; must be CONFIG_NAME=VALUE"),
        ("\nsomething=y\n", "line 2: 'something=y'"),
    ],
)
def test_fragments_that_are_none(tmp_path, text, message):
    (tmp_path / "f").write_text(text)
    with pytest.raises(WorkbenchError, match=message):
        kernel_build.build(tmp_path / "out", tmp_path, fragment=tmp_path / "f")
    assert not (tmp_path / "out").exists()


def test_our_own_fragment_is_read():
    options = kernel_build.read_fragment(kernel_build.FRAGMENT)
    for name in ("KVM_SW_PROTECTED_VM", "KEXEC_HANDOVER", "NUMA", "HUGETLB_PAGE_OPTIMIZE_VMEMMAP", "VIRTIO_CONSOLE"):
        assert options[f"CONFIG_{name}"] == "y"


def test_an_option_that_is_needed_and_refused(tmp_path, fragment):
    source = tarball(tmp_path / "linux.tar.xz")
    fragment.write_text(FRAGMENT.replace("CONFIG_KVM_AMD=y\n", "CONFIG_KVM_AMD=n\n"))
    with pytest.raises(WorkbenchError, match=r"fragment: with it this source is built without CONFIG_KVM_AMD"):
        kernel_build.build(tmp_path / "out", source, fragment=fragment, jobs=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "nothing: no such file"),
        (lambda path: (path / "empty").mkdir() or path / "empty", "is no kernel source .no Makefile"),
        (lambda path: tarball(path / "t.tar.xz", skip="Kbuild"), "holds no kernel source"),
        (lambda path: tarball(path / "t.tar.xz", skip="arch/x86/Kconfig"), "no arch/x86/Kconfig in it"),
    ],
)
def test_sources_that_are_none(tmp_path, fragment, make, message):
    with pytest.raises(WorkbenchError, match=message):
        kernel_build.build(tmp_path / "out", make(tmp_path), fragment=fragment)
    assert not [name for name in os.listdir(tmp_path / "out") if name == "unfinished"]


def test_damaged_tarball(tmp_path, fragment):
    (tmp_path / "t.tar.xz").write_bytes(b"\xfd7zXZ\0 and no more")
    with pytest.raises(WorkbenchError, match=r"t.tar.xz: cannot be unpacked"):
        kernel_build.build(tmp_path / "out", tmp_path / "t.tar.xz", fragment=fragment)


def test_a_tool_a_header_and_room_that_are_missing(tmp_path, fragment, monkeypatch):
    monkeypatch.setattr(kernel_build, "TOOLS", {"no-such-tool": "some-package"})
    with pytest.raises(WorkbenchError, match="no-such-tool: not found; install the Debian package some-package"):
        kernel_build.build(tmp_path / "out", tmp_path, fragment=fragment)
    monkeypatch.setattr(kernel_build, "TOOLS", {})
    monkeypatch.setattr(kernel_build, "BYTES_NEEDED", 1 << 62)
    with pytest.raises(WorkbenchError, match=r"MiB free; a build needs"):
        kernel_build.build(tmp_path / "out", tmp_path, fragment=fragment)
    if shutil.which("gcc"):
        monkeypatch.setattr(kernel_build, "HEADERS", {"no/such/header.h": "some-dev"})
        with pytest.raises(WorkbenchError, match=r"no/such/header.h: not found; install the Debian package some-dev"):
            kernel_build.build(tmp_path / "out", tmp_path, fragment=fragment)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, fragment):
    """Half an hour of compiling is not thrown away: the tree stays, and the same command uses it."""
    marker = tmp_path / "pid"
    source = tarball(tmp_path / "linux.tar.xz", f"@echo $$$$ > {marker}; exec sleep 60")
    code = (
        "from workbench.recorder import kernel_build as b\nb.TOOLS = {}; b.HEADERS = {}; b.BYTES_NEEDED = 1\n"
        f"b.build({str(tmp_path / 'out')!r}, {str(source)!r}, fragment={str(fragment)!r}, jobs=1)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not marker.exists() or not marker.read_text().strip():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    for _ in range(50):
        try:
            os.kill(int(marker.read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the compiler lives on")
    out, said = tmp_path / "out", []
    assert sorted(os.listdir(out)) == ["build.log", "unfinished"]
    tree = next((out / "unfinished" / "source").iterdir())
    (tree / "Makefile").write_text(MAKEFILE.replace("COMMAND", "cp header arch/x86/boot/bzImage; touch again.o"))
    (tree / "early.o").write_text("")
    seen = []
    kernel_build.build(out, source, fragment=fragment, jobs=1, say=said.append, progress=lambda *a: seen.append(a))
    assert said[0].startswith("going on with the build that was interrupted")
    assert seen[-1][0] == 1 + 3, "what was compiled before counts too"
    assert sorted(os.listdir(out)) == ["build.json", "build.log", "bzImage", "config"]
    assert json.loads((out / "build.json").read_text())["source"] == "linux.tar.xz"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_a_compiler_started_ends_with_the_command(tmp_path, how):
    """make ends the compilers that it knows; what these have started went on until it was done."""
    (tmp_path / "Makefile").write_text("all:\n\t@sleep 60 & echo $$! > pid.new; mv pid.new pid; wait\n")
    (tmp_path / "log").touch()
    code = (
        "from pathlib import Path\nfrom workbench.recorder import kernel_build as b\n"
        f"b._make(Path({str(tmp_path)!r}), ['all'], Path({str(tmp_path / 'log')!r}), 1, None)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(how)
    child.wait(20)
    started = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            if not Path(f"/proc/{started}/cmdline").read_bytes():  # it ended, and nobody has asked how
                return
        except OSError:
            return
        time.sleep(0.1)
    os.kill(started, signal.SIGKILL)
    pytest.fail("what the compiler started lives on")


def test_another_source_and_a_fresh_start_use_no_tree_from_before(tmp_path, fragment):
    out = tmp_path / "out"
    first, second = tarball(tmp_path / "a.tar.xz"), tarball(tmp_path / "b.tar.xz")
    kernel_build.build(out, first, fragment=fragment, jobs=1, keep_tree=True)
    for source, fresh, again in ((first, False, True), (first, True, False), (second, False, False)):
        said = []
        kernel_build.build(out, source, fragment=fragment, jobs=1, keep_tree=True, fresh=fresh, say=said.append)
        assert any(line.startswith("going on") for line in said) is again
        assert any(line.startswith("unpacking") for line in said) is not again


def test_a_stamp_that_no_build_wrote_starts_over(tmp_path):
    """And nothing outside the output is ever built in."""
    work, source, mine = tmp_path / "unfinished", tarball(tmp_path / "a.tar.xz"), tmp_path / "mine"
    mine.mkdir()
    (mine / "Makefile").touch()
    kernel_build._source(work, source, lambda _: None, False)
    whole = (work / "source.json").read_text()
    changes = [{"tree": tree} for tree in ("../mine", str(mine), None, 1, "\0", "x" * 5000, "/", "\ud800")]
    changes += [{"identity": []}, {"identity": float("nan")}]
    texts = ["null", "{", "\ud800", "[" * 100_000, "1" * 5000, '{"tree": 1, "tree": 2}']
    for text in (*(json.dumps(json.loads(whole) | change) for change in changes), *texts):
        (work / "source.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        said = []
        tree, _ = kernel_build._source(work, source, said.append, False)
        assert said == ["unpacking a.tar.xz"] and tree.is_relative_to(work), text[:200]
    said = []
    kernel_build._source(work, source, said.append, False)
    assert len(said) == 1 and said[0].startswith("going on")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "-o", "OUT", "--source", "nowhere.deb"], "nowhere.deb: no such file"),
        (["build", "-o", "OUT", "--jobs", "0"], "--jobs: 0 at once; 1 to 1,024 are allowed"),
        (["build", "-o", "FILE"], "FILE"),
        (["build", "-o", "OUT", "--fragment", "none"], "--fragment none: no such file"),
    ],
)
def test_errors_of_the_command_are_one_line(tmp_path, arguments, message):
    (tmp_path / "FILE").write_text("x")
    tools = "".join(f"b.{name} = {value}\n" for name, value in (("TOOLS", {}), ("HEADERS", {}), ("BYTES_NEEDED", 1)))
    code = f"from workbench.recorder import kernel_build as b\n{tools}from workbench.commands.cli import main\nmain()"
    words = [str(tmp_path / word) if word in ("OUT", "FILE") else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, "oracle", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("workbench: ") and message in line


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get of Debian")
def test_an_archive_that_nobody_signed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sends would be built, and a Makefile is code; whoever stands on the way can send anything."""
    suite = tmp_path / "archive" / "dists" / "suite"
    (suite / "main" / "binary-amd64").mkdir(parents=True)
    packages = suite / "main" / "binary-amd64" / "Packages"
    packages.write_text("Package: linux-source\nVersion: 1\nArchitecture: all\nFilename: x_1_all.deb\nSize: 1\n")
    digest = hashlib.sha256(packages.read_bytes()).hexdigest()
    (suite / "Release").write_text(
        "Suite: suite\nCodename: suite\nComponents: main\nArchitectures: amd64\n"
        f"SHA256:\n {digest} {packages.stat().st_size} main/binary-amd64/Packages\n"
    )
    monkeypatch.setattr(kernel_build, "_archive", lambda: f"file://{tmp_path}/archive")
    with pytest.raises(WorkbenchError, match=r"^apt-get update: E: .* is not signed"):
        kernel_build.fetch(["linux-source"], tmp_path / "out", ["suite"])
    assert not list((tmp_path / "out").iterdir())

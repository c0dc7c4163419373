"""Builds a kernel that the recorder boots: a distribution's source, our options (``kernel.config``) over tinyconfig.

Debian's own kernels lack what some recordings are about (KVM_SW_PROTECTED_VM, KEXEC_HANDOVER). The source is Debian's
package ``linux-source-VERSION``, an upstream or Debian tarball, or a tree that the user has already; a patched one builds
as well. The image holds everything, no modules. Time, user and host of the build are fixed, so the same source and the
same compiler give the same image, and its version line names no machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from workbench import children, replacing
from workbench.errors import WorkbenchError
from workbench.files import folder_beside, is_file, read_file, real_path, whole_file
from workbench.limits import TEXT_BYTES
from workbench.recorder import kernel_package
from workbench.units import check_processes

FRAGMENT = Path(__file__).with_name("kernel.config")
PACKAGE = "linux-source-7.3"
SUITES = ("trixie-backports", "experimental")
"""Debian suites that hold the newest source, tried in this order."""
KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
"""Keys of Debian's archive; what it sends is built and run, so that what they did not sign is refused."""
EXPECTED_OBJECTS = 1267
"""Objects that the fragment compiles of 7.3.4; other versions differ a little. For the progress bar only."""
UNFINISHED = "unfinished"
"""Where an interrupted build leaves its tree, for the same command to go on from there."""
BYTES_NEEDED = 3 << 30
"""Unpacked source and objects (measured on 7.3.4: 2.0 GiB), and the packed source beside it."""
TOOLS = {
    "make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils", "tar": "tar",
}  # fmt: skip
HEADERS = {"libelf.h": "libelf-dev"}
_IDENTITY = {
    "KBUILD_BUILD_USER": "workbench",
    "KBUILD_BUILD_HOST": "recorder",
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01 00:00:00 UTC",
    "KBUILD_BUILD_VERSION": "1",
}
_COMPILED = re.compile(r"^\s+(CC|AS)\s", re.MULTILINE)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What was built of what: the image's path, its version, where the source came from, options the tree refused."""

    image: str
    version: str
    source: str
    fragment_sha256: str
    compiler: str
    refused: tuple[str, ...]
    seconds: float


def build(
    output: str | Path,
    source: str | Path | None = None,
    *,
    fragment: str | Path = FRAGMENT,
    jobs: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    keep_tree: bool = False,
    fresh: bool = False,
    force: bool = False,
) -> Built:
    """Build ``output/bzImage`` and say in ``output/build.json`` what it was made of; ``output/build.log`` holds the log.

    Parameters
    ----------
    output:
        Directory, made if it is not there. An image from before is replaced only by a finished one.
    source:
        ``linux-source-*.deb``, a tarball, or a tree (then built in a copy of its own files). Left out: the package
        ``linux-source-7.3`` is fetched with apt-get from the suites that hold it.
    fragment:
        Options over tinyconfig, one ``CONFIG_NAME=VALUE`` a line.
    jobs:
        Compilers at once; as many as the process may use if left out.
    progress:
        Called with (objects compiled, objects expected).
    say:
        Called with a line at each step: what is fetched, unpacked, configured, compiled.
    keep_tree:
        Leave source and objects in ``output/unfinished`` when all is done, too.
    fresh:
        Start over even if an interrupted build of the same source is there.
    force:
        Replace files and a directory of the names above that no build made.

    Raises
    ------
    WorkbenchError
        A tool, header or package is missing (the line names the Debian package), the disk is too small, or the build
        failed (the line holds the first error and names the log).
    """
    output, fragment = Path(output), Path(fragment)
    if not fragment.is_file():
        raise WorkbenchError(f"--fragment {fragment}: no such file")
    options = read_fragment(fragment)
    require_tools()
    if jobs is not None:
        check_processes(jobs, "--jobs")
    check_replaceable(output, force)
    make_directory(output)
    _require_room(output)
    started = time.monotonic()
    work = output / UNFINISHED
    keep = keep_tree
    try:
        tree, packed = _source(work, None if source is None else Path(source), say, fresh)
        log = output / "build.log"
        say("configuring: tinyconfig and " + fragment.name)
        refused = configure(tree, fragment, options, log)
        say(f"compiling (log: {log})")
        _make(tree, ["bzImage"], log, jobs or len(os.sched_getaffinity(0)), progress)
        image = tree / "arch/x86/boot/bzImage"
        kernel = kernel_package.load([image])
        with whole_file(output / "bzImage") as temporary:
            temporary.write_bytes(kernel.image)
        with whole_file(output / "config") as temporary:
            shutil.copyfile(tree / ".config", temporary)
        built = Built(
            str(output / "bzImage"), kernel.version, packed, hashlib.sha256(fragment.read_bytes()).hexdigest(),
            _first_line(["gcc", "--version"]), refused, round(time.monotonic() - started, 1),
        )  # fmt: skip
        with whole_file(output / "build.json") as temporary:
            temporary.write_text(json.dumps(asdict(built), indent=1) + "\n")
        return built
    except KeyboardInterrupt:
        keep = (work / _STAMP).is_file()
        raise
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def check_replaceable(output: Path, force: bool) -> None:
    """Whether a build may write into a directory: what has the names of its files was made by one. Raises WorkbenchError."""

    def finished(_: Path) -> bool:
        try:
            facts = json.loads(read_file(output / "build.json", TEXT_BYTES, "-o"))
        except (WorkbenchError, ValueError, RecursionError):
            return unfinished(output / UNFINISHED)
        return isinstance(facts, dict) and set(facts) == {field.name for field in fields(Built)}

    def unfinished(work: Path) -> bool:
        return (work / _MARK).is_file()

    for name in ("bzImage", "config", "build.json"):
        replacing.check(output / name, finished, "file of a build", force=force)
    replacing.check(
        output / "build.log", lambda log: replacing.begins(log, _LOG_BEGINS.encode()), "log of a build", force=force
    )
    replacing.check(output / UNFINISHED, unfinished, "unfinished build", force=force, folder=True)


_MARK = "made-by-workbench"
"""A file in the directory of an unfinished build: what has none is not removed."""
_LOG_BEGINS = "workbench oracle build\n"
_STAMP = "source.json"
"""Written when a tree is whole: of what it was made, where it is."""


def _source(work: Path, source: Path | None, say: Callable[[str], None], fresh: bool) -> tuple[Path, str]:
    """The tree to build and the name of what it came from: that of an interrupted build of the same source, or a new one.

    A tree of the user's may have changed meanwhile, so a copy of it is never gone on with.
    """
    if source is not None and not source.exists():
        raise WorkbenchError(f"--source {source}: no such file or directory")
    if source is not None and not (source.is_file() or source.is_dir()):
        raise WorkbenchError(f"--source {source}: neither a regular file nor a directory")
    known = _identity(source)
    stamp = work / _STAMP
    if not fresh and known is not None and stamp.is_file():
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            before = json.loads(stamp.read_text())
            tree = work / before["tree"]
            inside = real_path(tree).is_relative_to(real_path(work))  # a build writes into its tree
            if before["identity"] == known and inside and is_file(tree / "Makefile"):
                say(f"going on with the build that was interrupted ({work}; --fresh starts over)")
                return tree, str(before["packed"])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / _MARK).touch()
    if source is None:
        say(f"fetching {PACKAGE} from the Debian suites {', '.join(SUITES)}")
    packed = source if source is not None else fetch([PACKAGE], work)[0]
    say(f"unpacking {packed.name}")
    tree = unpack(packed, work)
    if known is not None:
        with whole_file(stamp) as temporary:
            temporary.write_text(
                json.dumps({"identity": known, "tree": str(tree.relative_to(work)), "packed": packed.name})
            )
    return tree, packed.name


def _identity(source: Path | None) -> list[str | int] | None:
    """What tells one packed source from another; None for a tree."""
    if source is None:
        return [PACKAGE, *SUITES]
    if not source.is_file():
        return None
    status = source.stat()
    return [str(real_path(source)), status.st_size, status.st_mtime_ns]


# ------------------------------------------------------------------------------------------------------- what is needed


def require_tools() -> None:
    """Raise WorkbenchError for the first tool or header that is missing."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise WorkbenchError(f"{tool}: not found; install the Debian package {package}")
    for header, package in HEADERS.items():
        asked = children.run(
            ["gcc", "-E", "-xc", "-", "-o", os.devnull], input=f"#include <{header}>\n", capture_output=True, text=True
        )
        if asked.returncode:
            raise WorkbenchError(f"{header}: not found; install the Debian package {package}")


def _require_room(output: Path) -> None:
    free = shutil.disk_usage(output).free
    if free < BYTES_NEEDED:
        raise WorkbenchError(f"-o {output}: {free >> 20} MiB free; a build needs {BYTES_NEEDED >> 20} MiB")


def make_directory(path: Path) -> None:
    """Make a directory for results; raises WorkbenchError where that cannot be."""
    replacing.check_names(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkbenchError(f"-o {path}: {error.strerror or error}") from None
    if not os.access(path, os.W_OK):
        raise WorkbenchError(f"-o {path}: nobody may write there")


def read_fragment(path: Path) -> dict[str, str]:
    """Options by name; raises WorkbenchError for a line that is none."""
    options: dict[str, str] = {}
    for number, line in enumerate(read_file(path, TEXT_BYTES, "--fragment").decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = re.fullmatch(r"(CONFIG_\w+)=(.+)", text)
        if not found:
            raise WorkbenchError(f"--fragment {path} line {number}: {text[:60]!r}; must be CONFIG_NAME=VALUE")
        options[found.group(1)] = found.group(2)
    return options


# ------------------------------------------------------------------------------------------------------------ the source


def fetch(
    packages: Sequence[str], directory: Path, suites: Iterable[str] = SUITES, *, force: bool = False
) -> list[Path]:
    """Download packages from Debian suites beside the system's own, which stay as they are; returns the files.

    The archive is the one that the system's own sources name, and what comes from it is signed by Debian. A file of a package's
    name that is another is replaced with ``force`` only.
    """
    for what, words, pattern in (
        ("package", packages, r"[a-z0-9][a-z0-9+.-]*"),
        ("suite", suites, r"[a-z0-9][\w./-]*"),
    ):
        for word in words:
            if not re.fullmatch(pattern, word):
                raise WorkbenchError(f"{what}: {word[:100]!a} is not the name of one")
    if shutil.which("apt-get") is None:
        raise WorkbenchError(f"apt-get: not found; give a source with --source ({packages[0]} of Debian, or a tarball)")
    directory = real_path(directory)
    files = []
    with folder_beside(directory / "fetch") as temporary:
        for path in _download(packages, temporary, suites):
            target = directory / path.name
            content = path.read_bytes()
            replacing.check(target, partial(_same, content), "such package", force=force)
            os.replace(path, target)
            files.append(target)
    return files


def _same(content: bytes, path: Path) -> bool:
    return path.read_bytes() == content


def _download(packages: Sequence[str], directory: Path, suites: Iterable[str]) -> list[Path]:
    """Download into a directory that holds nothing else."""
    (directory / "lists" / "partial").mkdir(parents=True)
    (directory / "cache" / "archives" / "partial").mkdir(parents=True)
    archive, sources = _archive(), directory / "sources.list"
    signed = next(
        (f"[signed-by={path}] " for path in map(Path, KEYRINGS) if path.is_file()), ""
    )  # else by those apt trusts
    sources.write_text("".join(f"deb {signed}{archive} {suite} main\n" for suite in suites))
    options = [
        "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::Lists={directory / 'lists'}", "-o", f"Dir::Cache={directory / 'cache'}",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    for command in (["update"], ["download", *packages]):
        done = children.run(["apt-get", "-q", *options, *command], cwd=directory, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if line.startswith("E:")), done.stderr[:200])
            raise WorkbenchError(f"apt-get {command[0]}: {reason.strip()} (suites {', '.join(suites)})")
    return [next(directory.glob(f"{package}_*.deb")) for package in packages]


def _archive() -> str:
    """The URI of the system's own Debian archive."""
    etc = Path("/etc/apt")
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            found = re.match(r"(?:deb\s+(?:\[[^\]]*\]\s+)?|URIs:\s*)(\S+)", line)
            if found and found.group(1).rstrip("/").endswith("/debian"):
                return found.group(1)
    raise WorkbenchError("apt-get: the system's sources name no Debian archive; give a source with --source")


def unpack(source: Path, work: Path) -> Path:
    """The source tree inside ``work``. A tree of the user's is copied without its objects, so that it stays as it was."""
    if source.is_dir():
        _require_tree(source, source)
        target = work / "linux"
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(".git", "*.o", "*.a", "*.cmd"))
        return target
    if source.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise WorkbenchError(
                "dpkg-deb: not found; install the Debian package dpkg, or give the tarball of the source"
            )
        done = children.run(["dpkg-deb", "-x", source, work / "package"], capture_output=True, text=True)
        tarballs = sorted((work / "package").rglob("linux-source-*.tar.*"))
        if done.returncode or not tarballs:
            raise WorkbenchError(f"--source {source}: is no package linux-source-* of Debian, or damaged")
        source = tarballs[0]
    (work / "source").mkdir()
    done = children.run(
        ["tar", "-xf", source, "-C", work / "source", "--no-same-owner"], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[0]
        raise WorkbenchError(f"--source {source.name}: cannot be unpacked ({reason})")
    shutil.rmtree(work / "package", ignore_errors=True)
    trees = [path.parent for path in (work / "source").glob("*/Kbuild")]
    if not trees:
        raise WorkbenchError(f"--source {source.name}: holds no kernel source (no Kbuild in it)")
    _require_tree(trees[0], source)
    return trees[0]


def _require_tree(tree: Path, source: Path) -> None:
    for part in ("Makefile", "arch/x86/Kconfig", "scripts/kconfig/merge_config.sh"):
        if not (tree / part).is_file():
            raise WorkbenchError(f"--source {source}: is no kernel source (no {part} in it)")


# ------------------------------------------------------------------------------------------------------------- the build


def configure(tree: Path, fragment: Path, options: dict[str, str], log: Path) -> tuple[str, ...]:
    """tinyconfig, the fragment over it, and what Kconfig makes of both. Returns the options that the tree refused.

    An option that the tree does not know at all is of another version; one that it knows and did not take is refused.
    """
    with whole_file(log) as temporary:
        temporary.write_text(_LOG_BEGINS)
    _make(tree, ["tinyconfig"], log, 1, None)
    _run(["sh", "scripts/kconfig/merge_config.sh", "-m", ".config", str(real_path(fragment))], tree, log)
    _make(tree, ["olddefconfig"], log, 1, None)
    taken = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", (tree / ".config").read_text(), re.MULTILINE))
    missing = {name: value for name, value in options.items() if taken.get(name, "n") != value}
    known = _known_options(tree) if missing else set[str]()
    refused = tuple(f"{name}={value}" for name, value in missing.items() if name.removeprefix("CONFIG_") in known)
    for essential in ("CONFIG_64BIT", "CONFIG_NUMA", "CONFIG_KVM", "CONFIG_KVM_AMD"):
        if taken.get(essential) != "y":
            raise WorkbenchError(
                f"--fragment {fragment}: with it this source is built without {essential}, which a recording needs"
            )
    return refused


def _known_options(tree: Path) -> set[str]:
    """Every option that a Kconfig file of the tree defines."""
    known: set[str] = set()
    for path in tree.rglob("Kconfig*"):
        if path.is_file():
            known |= set(re.findall(r"^\s*(?:menu)?config\s+(\w+)", path.read_text(errors="replace"), re.MULTILINE))
    return known


def _make(tree: Path, targets: list[str], log: Path, jobs: int, progress: Progress | None) -> None:
    _run(["make", f"-j{jobs}", *targets], tree, log, progress)


_GROUP = """trap 'trap "" TERM; kill -TERM 0; wait; exit 143' TERM; "$@" & wait $!"""
"""Runs its words, and when it is asked to end all that they started: make ends its children, not what these have started, and a
compiler is a child of the one that make knows."""


def _run(command: list[str], tree: Path, log: Path, progress: Progress | None = None) -> None:
    """Run in the tree with its output in the log; nothing of it outlives this call. Raises for a failure."""
    start = log.stat().st_size
    already = sum(1 for _ in tree.rglob("*.o")) if progress is not None else 0
    with log.open("a") as file, children.interrupts_wait() as waiting:
        process = subprocess.Popen(
            ["sh", "-c", _GROUP, "sh", *command], cwd=tree, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **_IDENTITY, "LC_ALL": "C"}, start_new_session=True,
            preexec_fn=children.tied(signal.SIGTERM),
        )  # fmt: skip
        try:
            while process.poll() is None and not waiting.arrived:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
                if progress is not None:
                    done = len(_COMPILED.findall(log.read_text(errors="replace")[start:]))
                    progress(min(already + done, EXPECTED_OBJECTS), EXPECTED_OBJECTS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode:
        said = log.read_text(errors="replace")[start:].splitlines()
        error = next((line for line in said if re.search(r"\b(error|No space left|not found)\b", line)), "")
        last = error or next((line for line in reversed(said) if line.strip()), "no message")
        raise WorkbenchError(f"{' '.join(command[:2])} {command[-1]}: {last.strip()[:200]} (see {log})")


def _first_line(command: list[str]) -> str:
    done = children.run(command, capture_output=True, text=True)
    return (done.stdout.splitlines() or [""])[0]

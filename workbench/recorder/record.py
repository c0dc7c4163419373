"""Record a script or a Scenario: boot the kernel on the emulated host, let the probe run it, write what it saw.

Needed are, on Debian: ``qemu-system-x86`` (QEMU), ``gcc`` and ``libc6-dev`` (the probe is linked statically), and the
kernel packages named in ``kernel_package.PACKAGES``, unpacked or not. No special hardware and no privileges.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files import whole_file
from workbench.recorder import initramfs, kernel_package, probe_output
from workbench.recorder.qemu import EmulatedHost, emulate
from workbench.recorder.translate import to_script
from workbench.scenario import Scenario
from workbench.topology.host import Host

PROBE = Path(__file__).with_name("probe.c")
TIMEOUT = 1800.0
Progress = Callable[[int, int], None]


def record(
    scenario: Scenario | str,
    host: Host | EmulatedHost | None = None,
    kernel: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
    qemu: str = "qemu-system-x86_64",
    budget_mib: int = 2048,
    kernel_arguments: str = "",
) -> dict[str, Any]:
    """Run on a real kernel and return the recording; write it to ``out`` (``.json`` or ``.json.gz``) if given.

    Parameters
    ----------
    scenario:
        A Scenario, or the text of a script in the recorder's language (several scenarios in one boot).
    host:
        What to emulate; the Scenario's own host if left out. A Host is scaled down to ``budget_mib`` MiB.
    kernel:
        Debian packages or directories with the kernel image and modules.
    progress:
        Called with (scenarios finished, scenarios in all).
    timeout:
        Seconds after which the emulated machine is stopped.

    Raises
    ------
    WorkbenchError
        Something is missing (the line says which Debian package has it), the scenario cannot be recorded, or the
        machine died. Nothing is written then.
    """
    if isinstance(scenario, Scenario):
        emulation = emulate(host if isinstance(host, Host) else scenario.host, budget_mib)
        machine, script = emulation.host, to_script(scenario, emulation)
    elif host is None:
        raise WorkbenchError("host: missing; a script needs a host to run on")
    else:
        machine, script = host if isinstance(host, EmulatedHost) else emulate(host, budget_mib).host, scenario
    if kernel_arguments:
        machine = EmulatedHost.from_topology({**machine.topology(), "kernel_arguments": kernel_arguments})
    check_script(script)
    require_tools(qemu)
    parts = kernel_package.load([kernel] if isinstance(kernel, (str, Path)) else kernel)
    if out is None:
        return _run(machine, script, parts, qemu, timeout, progress)
    with whole_file(Path(out)) as temporary:
        result = _run(machine, script, parts, qemu, timeout, progress)
        text = json.dumps(result, separators=(",", ":")).encode()
        temporary.write_bytes(gzip.compress(text, mtime=0) if str(out).endswith(".gz") else text)
    return result


def check_script(script: str) -> None:
    """A script starts with a ``scenario`` line and has names that differ."""
    lines = [line.split() for line in script.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines or lines[0][0] != "scenario":
        raise WorkbenchError("script: the first line must be 'scenario NAME [tasks=N] [noreset]'")
    names = [words[1] if len(words) > 1 else "" for words in lines if words[0] == "scenario"]
    for name in names:
        if not name or names.count(name) > 1:
            raise WorkbenchError(f"script: scenario name {name!r} is empty or there twice; names must differ")


def require_tools(qemu: str = "qemu-system-x86_64") -> None:
    """Raise WorkbenchError for the first tool that is missing."""
    if shutil.which(qemu) is None:
        raise WorkbenchError(f"{qemu}: not found; install the Debian package qemu-system-x86")
    if shutil.which("gcc") is None:
        raise WorkbenchError("gcc: not found; install the Debian packages gcc and libc6-dev")


def build_probe(directory: Path) -> Path:
    """Compile the probe into a directory and return its path."""
    target = directory / "probe"
    command = ["gcc", "-O2", "-static", "-pthread", "-o", str(target), str(PROBE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line), "")
        if "cannot find -l" in done.stderr or "No such file or directory" in done.stderr:
            raise WorkbenchError(f"gcc: no static C library; install the Debian package libc6-dev ({reason.strip()})")
        raise WorkbenchError(f"gcc: cannot compile the probe: {reason.strip() or done.stderr.strip()[:200]}")
    return target


def _run(
    machine: EmulatedHost,
    script: str,
    kernel: kernel_package.Kernel,
    qemu: str,
    timeout: float,
    progress: Progress | None,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="workbench-record-") as name:
        directory = Path(name)
        image, initrd = directory / "vmlinuz", directory / "initrd.cpio"
        output, console = directory / "probe.out", directory / "console.txt"
        probe = build_probe(directory).read_bytes()
        image.write_bytes(kernel.image)
        initrd.write_bytes(initramfs.host_image(probe, script, kernel.ordered_modules()))
        output.touch()
        started = time.monotonic()
        command = machine.command(qemu, image, initrd, output, console)
        message = _wait(command, output, script, timeout, progress)
        parsed = probe_output.parse(output.read_text(errors="replace"))
        _check(parsed, message, console)
        return probe_output.recording(parsed, machine, script, time.monotonic() - started)


def _wait(command: list[str], output: Path, script: str, timeout: float, progress: Progress | None) -> str:
    """Run QEMU to its end; it never outlives this call, whatever ends it. Returns what it printed."""
    total = sum(line.split()[:1] == ["scenario"] for line in script.splitlines())
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if progress is not None:
                    progress(output.read_bytes().count(b'\n{"end":'), total)
                if time.monotonic() > deadline:
                    raise WorkbenchError(f"timeout: the emulated machine was not done after {timeout:g} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        messages.seek(0)
        return messages.read().strip()


def _check(parsed: dict[str, Any], message: str, console: Path) -> None:
    if not parsed["done"]:
        tail = console.read_text(errors="replace").splitlines() if console.exists() else []
        reasons = [line for line in [*message.splitlines(), *tail] if line.strip()]
        panic = next((line for line in reasons if "Kernel panic" in line), reasons[-1] if reasons else "")
        if "boot_us" not in parsed:
            raise WorkbenchError(f"the emulated machine did not boot: {panic.strip() or 'no message'}")
        at = parsed["scenarios"][-1]["name"] if parsed["scenarios"] else "boot"
        raise WorkbenchError(f"the emulated machine died in {at}: {panic.strip() or 'no message'}")
    if parsed.get("kvm", {}).get("present") != "1":
        raise WorkbenchError(f"the kernel has no /dev/kvm; modules: {'; '.join(parsed['mods']) or 'none loaded'}")

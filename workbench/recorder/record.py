"""Record a script or a Scenario: boot the kernel on the emulated host, let the probe run it, write what it saw.

Needed are, on Debian: ``qemu-system-x86`` (QEMU), ``gcc`` and ``libc6-dev`` (the probe is linked statically), and a
kernel: one that ``kernel_build`` or the user built, or a distribution's packages (``kernel_package.PACKAGES``). No special
hardware and no privileges. What the kernel can do is asked of it at the boot.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench import children
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.files import whole_file
from workbench.ready import scenario as read_ready
from workbench.recorder import initramfs, kernel_package, language, probe_output
from workbench.recorder.kernel_package import RAM_DISK
from workbench.recorder.qemu import EmulatedHost, emulate
from workbench.recorder.translate import to_script
from workbench.scenario import Scenario
from workbench.topology.host import Host
from workbench.units import check_seconds

PROBE = Path(__file__).with_name("probe.c")
TIMEOUT = 1800.0
BOOT_TIMEOUT = 300.0
"""Seconds in which the probe must have said its first word; a boot takes 3 to 10 of them on an idle machine."""
CONSOLE_LINES = 200
"""Lines of the console that are kept when a boot fails."""
Progress = Callable[[int, int], None]


def record(
    scenario: Scenario | str | Path,
    host: Host | EmulatedHost | None = None,
    kernel: kernel_package.KernelImage | str | Path | Sequence[str | Path] = (),
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
        A Scenario, a ready one's name or a file of one; or the text of a script in the recorder's language, which has a
        line for each call (several scenarios in one boot).
    host:
        What to emulate; the Scenario's own host if left out. A Host is scaled down to ``budget_mib`` MiB.
    kernel:
        A bzImage, Debian packages, or directories with an image, modules or both; or what was loaded from such.
    progress:
        Called with (scenarios finished, scenarios in all).
    timeout:
        Seconds after which the emulated machine is stopped.
    kernel_arguments:
        More words for the kernel's command line, such as ``kho=on`` or ``kvm.PARAMETER=VALUE``.

    Raises
    ------
    WorkbenchError
        Something is missing (the line says which Debian package has it), the scenario cannot be recorded, or the
        machine died: then the line names a file with the last lines of its console. No recording is written.
    """
    check_seconds(timeout, "timeout")
    if isinstance(scenario, Path) or (isinstance(scenario, str) and scenario and "\n" not in scenario):
        scenario = read_ready(scenario)
    if isinstance(scenario, Scenario):
        emulation = emulate(host if isinstance(host, Host) else scenario.host, budget_mib)
        machine, script = emulation.host, to_script(scenario, emulation)
    elif host is None:
        raise WorkbenchError("host: missing; a script needs a host to run on")
    else:
        machine, script = host if isinstance(host, EmulatedHost) else emulate(host, budget_mib).host, scenario
    if kernel_arguments:
        machine = EmulatedHost.from_topology(
            {**machine.topology(), "kernel_arguments": f"{machine.kernel_arguments} {kernel_arguments}".strip()}
        )
    language.check(script)
    require_tools(qemu)
    if isinstance(kernel, (str, Path)):
        kernel = [kernel]
    parts = kernel if isinstance(kernel, kernel_package.KernelImage) else kernel_package.load(kernel)
    if out is None:
        result = _run(machine, script, parts, qemu, timeout, progress, Path(tempfile.gettempdir()) / "recording")
        _check_kernel(result, scenario)
        return result
    with whole_file(Path(out)) as temporary:
        result = _run(machine, script, parts, qemu, timeout, progress, Path(out))
        _check_kernel(result, scenario)
        text = json.dumps(result, separators=(",", ":")).encode()
        temporary.write_bytes(gzip.compress(text, mtime=0) if str(out).endswith(".gz") else text)
    return result


def check_vm_type(result: dict[str, Any], vm_type: str) -> None:
    """Raise WorkbenchError where the kernel was asked for the guest's type of virtual machine and has none."""
    asked = [op for scenario in result["scenarios"] for op in scenario["ops"] if op["op"].endswith(f"vm {vm_type}")]
    refused = next((op["errno"] for op in asked if op.get("errno")), 0)
    if refused:
        raise WorkbenchError(
            f"guest.vm_type: this kernel makes no virtual machine of type {vm_type!r} ({errno_name(refused)}); one that "
            f"`workbench oracle build` makes does, or any with CONFIG_KVM_SW_PROTECTED_VM"
        )


def check_conversion(result: dict[str, Any], mode: str) -> None:
    """Raise WorkbenchError where all conversions of a scenario are calls that this kernel has not: ENOTTY, and no page moved."""
    verb = {"in-place": "convert", "out-of-place": "attr"}[mode]
    lines = [op for scenario in result["scenarios"] for op in scenario["ops"] if verb in op["op"].split()[:2]]
    if not lines or any(op.get("errno") != errno.ENOTTY for op in lines):
        return
    if mode == "in-place":
        raise WorkbenchError(
            "conversion: this kernel's guest_memfd converts nothing in place (ENOTTY); Linux from 7.4 on does, with "
            "`--append kvm.gmem_in_place_conversion=1`; every other one takes guest.conversion.mode: out-of-place"
        )
    raise WorkbenchError(
        "conversion: this kernel's VMs have no attributes (ENOTTY) as long as its guest_memfds convert in place "
        "(kvm.gmem_in_place_conversion); it takes guest.conversion.mode: in-place"
    )


def _check_kernel(result: dict[str, Any], scenario: Scenario | str) -> None:
    """What a scenario asks for and the kernel has not; a script may ask just that."""
    if isinstance(scenario, Scenario):
        check_vm_type(result, scenario.guest.vm_type)
        check_conversion(result, scenario.conversion_mode)


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
    # What the compiler keeps for itself goes with the directory: an interrupt ends it too quickly to remove it.
    done = children.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(directory)})
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line), "")
        if "cannot find -l" in done.stderr or "No such file or directory" in done.stderr:
            raise WorkbenchError(f"gcc: no static C library; install the Debian package libc6-dev ({reason.strip()})")
        raise WorkbenchError(f"gcc: cannot compile the probe: {reason.strip() or done.stderr.strip()[:200]}")
    return target


def _run(
    machine: EmulatedHost,
    script: str,
    kernel: kernel_package.KernelImage,
    qemu: str,
    timeout: float,
    progress: Progress | None,
    named: Path,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="workbench-record-") as name:
        directory = Path(name)
        image, initrd = directory / "vmlinuz", directory / "initrd.cpio"
        output, console = directory / "probe.out", directory / "console.txt"
        probe = build_probe(directory).read_bytes()
        image.write_bytes(kernel.image)
        next_kernel = kernel.image if "kexec" in map(str.strip, script.splitlines()) else None
        modules = [
            (name, data) for name, data in kernel.ordered_modules() if name != RAM_DISK or "odirect" in script.split()
        ]
        initrd.write_bytes(initramfs.host_image(probe, script, modules, next_kernel))
        output.touch()
        started = time.monotonic()
        command = machine.command(qemu, image, initrd, output, console)
        try:
            message = _wait(command, output, script, timeout, progress)
            parsed = probe_output.parse(_said(output))
            _check(parsed, message, console, kernel)
        except WorkbenchError as error:
            raise WorkbenchError(f"{error}{_kept_console(console, named)}") from None
        return probe_output.recording(parsed, machine, script, time.monotonic() - started)


def _said(output: Path) -> str:
    """What the probe wrote: to the virtio port, or to the serial line of a kernel that has no driver for it."""
    serial = output.with_name(output.name + ".serial")
    text = output.read_text(errors="replace")
    return text if text or not serial.exists() else serial.read_text(errors="replace").replace("\r\n", "\n")


def _wait(command: list[str], output: Path, script: str, timeout: float, progress: Progress | None) -> str:
    """Run QEMU to its end; it never outlives this call, whatever ends it. Returns what it printed."""
    total = sum(line.split()[:1] == ["scenario"] for line in script.splitlines())
    started = time.monotonic()
    booted = False
    with tempfile.TemporaryFile("w+") as messages, children.interrupts_wait() as waiting:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=messages, stderr=subprocess.STDOUT, preexec_fn=children.tied()
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise WorkbenchError(f"{command[0]}: {getattr(error, 'strerror', None) or error}") from None
        try:
            while process.poll() is None and not waiting.arrived:
                time.sleep(0.2)
                if progress is not None:
                    progress(_said(output).count('\n{"end":'), total)
                booted = booted or bool(_said(output))
                passed = time.monotonic() - started
                if passed > timeout:
                    raise WorkbenchError(f"timeout: the emulated machine was not done after {timeout:g} s")
                if not booted and passed > BOOT_TIMEOUT:
                    raise WorkbenchError(f"timeout: the emulated machine did not boot in {BOOT_TIMEOUT:g} s")
            if progress is not None:
                progress(_said(output).count('\n{"end":'), total)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        messages.seek(0)
        return messages.read().strip()


def _check(parsed: dict[str, Any], message: str, console: Path, kernel: kernel_package.KernelImage) -> None:
    version = kernel.version or "without a version"
    kvm = parsed.get("kvm", {})
    if parsed["done"]:
        refused = [line for line in parsed["mods"] if line.split()[1] != "0"]
        if kvm.get("present") != "1":
            loaded = [name for name, _ in kernel.ordered_modules()]
            why = "; ".join(f"module {Path(line.split()[0]).stem}: errno {line.split()[2]}" for line in refused)
            why = why or (f"modules {', '.join(loaded)} did not make one" if loaded else "no modules were given")
            raise WorkbenchError(f"kernel {version} boots without KVM (no /dev/kvm): {why}")
        if kvm.get("create_vm"):
            raise WorkbenchError(f"kernel {version}: KVM cannot make a virtual machine (errno {kvm['create_vm']})")
        return
    tail = console.read_text(errors="replace").splitlines() if console.exists() else []
    reasons = [line.strip() for line in [*message.splitlines(), *tail] if line.strip() and ": warning: " not in line]
    reason = next(
        (line for line in reasons if "Kernel panic" in line), reasons[-1] if reasons else "it stopped without a word"
    )
    if "boot_us" not in parsed:
        raise WorkbenchError(f"the emulated machine did not boot (kernel {version}): {reason}")
    at = parsed["scenarios"][-1]["name"] if parsed["scenarios"] else "boot"
    raise WorkbenchError(f"the emulated machine died in {at} (kernel {version}): {reason}")


def _kept_console(console: Path, named: Path) -> str:
    """Keep the last lines of the console beside the recording that was not made; returns the words that say where."""
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    if not lines:
        return "; its console stayed empty"
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"{named.name.split('.')[0]}-", suffix=".console.txt", dir=named.parent, delete=False
    ) as file:
        file.write("\n".join(lines[-CONSOLE_LINES:]) + "\n")
    return f"; the last lines of its console are in {file.name}"

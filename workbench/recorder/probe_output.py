"""What the probe printed, one JSON object per line, as a recording.

Lines are told apart by their first key: ``boot_us``, ``module``, ``kvm``, ``file``, ``scenario``, ``op``, ``end``,
``next_kernel_us`` (behind a ``kexec``) and ``done_us``. A recording without the last one is incomplete and says so
(``done: false``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from workbench.errors import WorkbenchError
from workbench.recorder.qemu import EmulatedHost

FORMAT_VERSION = 1
_ZONE_LINE = re.compile(r"Node \d|\s+(pages free|boost|min|low|high|spanned|present|managed)\s|\s+protection:")
_KEPT_FILES = (
    "/proc/zoneinfo",
    "/proc/sys/vm/min_free_kbytes",
    "/proc/sys/vm/lowmem_reserve_ratio",
    "/sys/devices/system/node/has_memory",
    "/sys/devices/system/node/has_normal_memory",
    "/sys/devices/system/node/has_cpu",
)


def parse(text: str) -> dict[str, Any]:
    """The probe's output as a mapping: files, scenarios, modules, whether it reached its end.

    Raises WorkbenchError naming the line that is not understood; a last line without its end is left out instead, as
    that is what a machine that died leaves behind.
    """
    out: dict[str, Any] = {"files": {}, "scenarios": [], "mods": [], "done": False}
    lines = text.split("\n")
    complete, last = lines[:-1], lines[-1]
    for number, line in enumerate(complete, 1):
        if line:
            _add(out, _object(line, number), number)
    if last:
        try:
            _add(out, _object(last, len(lines)), len(lines))
        except WorkbenchError:
            out["truncated"] = last[:80]
    return out


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise WorkbenchError(f"probe output line {number}: {line[:60]!r} is not a JSON object") from None
    if not isinstance(value, dict) or not value:
        raise WorkbenchError(f"probe output line {number}: {line[:60]!r} is not a JSON object")
    return value


def _add(out: dict[str, Any], value: dict[str, Any], number: int) -> None:
    kind = next(iter(value))
    if kind == "op":
        if not out["scenarios"] or "us" in out["scenarios"][-1]:
            raise WorkbenchError(f"probe output line {number}: operation {value['op']!r} outside of a scenario")
        out["scenarios"][-1]["ops"].append(value)
    elif kind == "scenario":
        header = str(value["scenario"])
        out["scenarios"].append({"header": header, "name": header.split()[0], "ops": []})
    elif kind == "end":
        out["scenarios"][-1]["us"] = value["end"]
    elif kind == "file":
        out["files"][value["file"]] = value["lines"]
    elif kind == "module":
        out["mods"].append(f"{value['module']} {value['ret']} {value['errno']}")
    elif kind in ("boot_us", "next_kernel_us"):
        out[kind] = value[kind]
    elif kind == "kexec_errno":
        raise WorkbenchError(f"kexec: the kernel would not go: errno {value[kind]}")
    elif kind == "kvm":
        out["kvm"] = value["kvm"]
    elif kind == "done_us":
        out["done"], out["done_us"] = True, value["done_us"]
    else:
        raise WorkbenchError(f"probe output line {number}: {kind!r} is not known")


def derive(files: Mapping[str, list[str]], host: EmulatedHost) -> dict[str, Any]:
    """What Linux made of the topology: fallback order, distances, CPUs, weights, proximity domain to node."""
    out: dict[str, Any] = {"fallback_order": {}, "distance": {}, "cpulist": {}, "wi_weights": {}, "dmesg_numa": []}
    for line in files.get("dmesg", ()):
        order = re.search(r"Fallback order for Node (\d+): ([\d ]+)", line)
        if order:
            # Lists that were built anew after hot-plug come later in the log and replace the first ones.
            out["fallback_order"][order.group(1)] = [int(node) for node in order.group(2).split()]
        if re.search(r"SRAT|SLIT|HMAT|NUMA|NODE_DATA|Fallback order|Built \d+ zonelists|Policy zone|node +\d+:", line):
            out["dmesg_numa"].append(line)
    for name, lines in files.items():
        found = re.match(r"/sys/devices/system/node/node(\d+)/(distance|cpulist)$", name)
        if found and found.group(2) == "distance":
            out["distance"][found.group(1)] = [int(value) for value in lines[0].split()]
        elif found:
            out["cpulist"][found.group(1)] = lines[0] if lines else ""
        found = re.match(r"/sys/kernel/mm/mempolicy/weighted_interleave/node(\d+)$", name)
        if found and lines:
            out["wi_weights"][found.group(1)] = int(lines[0])
    out["pxm_to_node"] = {str(domain): node for domain, node in enumerate(host.linux_ids) if node >= 0}
    rebuilt = sum("Fallback order for Node 0" in line for line in files.get("dmesg", ())) > 1
    out["zonelists"] = "hotplug" if rebuilt or any(node.hotplug for node in host.nodes) else "boot"
    return out


def recording(output: Mapping[str, Any], host: EmulatedHost, script: str, seconds: float) -> dict[str, Any]:
    """The recording of one boot, in the format of ``datasets/recordings/README.md``."""
    files = output["files"]
    kept = {name: lines for name, lines in files.items() if name in _KEPT_FILES}
    if "/proc/zoneinfo" in kept:
        kept["/proc/zoneinfo"] = [line for line in kept["/proc/zoneinfo"] if _ZONE_LINE.match(line)]
    return {
        "format_version": FORMAT_VERSION,
        **{key: value for key, value in output.items() if key != "files"},
        "files": kept,
        "wall_s": round(seconds, 2),
        "topology": host.topology(),
        "cmdline": host.command_line,
        "kernel": (files.get("/proc/version") or [""])[0],
        "derived": derive(files, host),
        "scenario_text": script,
    }

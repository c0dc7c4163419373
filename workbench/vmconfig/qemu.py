"""A virtual machine from a QEMU command line (qemu-options.hx; backends/hostmem.c, hw/core/numa.c, target/i386)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.bitmap_lists import parse_list
from workbench.errors import WorkbenchError, at_line
from workbench.limits import MAX_VCPUS
from workbench.units import PAGE_SIZE
from workbench.vmconfig import words
from workbench.vmconfig.around import read_around
from workbench.vmconfig.machine import Backend, NodePolicy, VirtualMachine

DEFAULT_MEMORY = 128 << 20
"""What QEMU gives a PC without -m (hw/core/machine.c)."""
_HUGEPAGE = 2 << 20
_ON = ("on", "yes", "true", "y", True)
# Options that take a value, and those that take none, which have nothing to do with where memory lands.
_IRRELEVANT = """
    name uuid accel cpu boot drive blockdev device netdev net nic display vga vnc spice monitor qmp mon chardev
    serial parallel kernel initrd append bios pflash rtc global k L d D pidfile runas chroot usbdevice fsdev
    virtfs smbios hda hdb hdc hdd cdrom fda fdb sandbox msg incoming trace watchdog watchdog-action audio
    audiodev action icount add-fd debugcon gdb loadvm option-rom plugin prom-env semihosting-config set sd
    mtdblock tpmdev rotate compat fw_cfg tb-size seed acpitable dtb iscsi preconfig-file qtest qtest-log
"""
_FLAGS = """
    enable-kvm nographic daemonize no-user-config nodefaults no-reboot no-shutdown S s snapshot usb no-acpi
    no-hpet preconfig no-fd-bootchk full-screen curses sdl only-migratable only-tcg xen-domid win2k-hack version
"""
_BACKENDS = ("memory-backend-ram", "memory-backend-memfd", "memory-backend-file", "memory-backend-epc",
             "memory-backend-shm", "memory-backend-guest-memfd")  # fmt: skip
_CONFIDENTIAL = {"sev-snp-guest": "snp", "tdx-guest": "tdx"}
_MODES = {"default": "default", "bind": "bind", "interleave": "interleave", "preferred": "preferred_many"}
"""QEMU asks for MPOL_PREFERRED_MANY where the kernel has it (backends/hostmem.c)."""
_BACKEND_KEYS = {"id", "size", "host-nodes", "policy", "prealloc", "prealloc-threads", "share", "dump", "merge", "reserve",
                 "hugetlb", "hugetlbsize", "seal", "mem-path", "align", "pmem", "discard-data", "readonly", "rom", "offset",
                 "prealloc-context", "x-use-canonical-path-for-ramblock-id"}  # fmt: skip


_LISTED = re.compile(r"host-nodes\.[0-9]{1,4}")
"""One node of the list, as configuration files have it."""


@dataclass
class _Line:
    """What the options say, before it is put together."""

    vm: VirtualMachine
    online: list[int]
    objects: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    memory: int = DEFAULT_MEMORY
    most_vcpus: int = 1
    topology: tuple[tuple[str, int], ...] = ()
    """Parts of a vCPU's place and how many of each there are in the one above, the outermost first."""
    placed: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    """Virtual node and place (some of its parts) of vCPUs, from ``-numa cpu``."""
    memory_backend: str | None = None
    confidential_object: str | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    dimms: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Backends whose memory is not that of the host."""
    plugged: dict[str, int] = field(default_factory=dict)
    """Bytes of backends of virtio-mem that the guest has."""
    at: int = 0
    """The line of the option that is read."""
    lines: dict[str, int] = field(default_factory=dict)
    """The lines of objects by their names, of what names a backend by its words, and of -numa."""
    prealloc: bool = False
    path: str | None = None


def read_command_line(text: str, source: str, online: Iterable[int]) -> VirtualMachine:
    """The machine of a command line; ``online`` are the node ids of the host it is to run on."""
    parts = words.split(text)
    start = next((n for n, word in enumerate(parts) if _is_qemu(word)), None)
    if start is None:
        raise WorkbenchError("no qemu-system-... or qemu-kvm in it; a command line of QEMU is expected")
    vm = VirtualMachine(source=source, vmm="qemu-11")
    read_around(parts[:start], vm, online)
    with at_line(parts[start].line):
        read_arguments(parts[start + 1 :], vm, online)
    return vm


# What each group of a configuration file is called on the command line, and the key of its name in quotes.
_GROUPS = {"memory": "m", "smp-opts": "smp", "machine": "machine", "object": "object", "numa": "numa", "device": "device",
           "overcommit": "overcommit", "name": "name"}  # fmt: skip
_HEAD = re.compile(r'\[([a-z][a-z0-9-]{0,40})(?:\s{1,8}"([^"]{0,200})")?\]')
_SETTING = re.compile(r'([A-Za-z][A-Za-z0-9._-]{0,80})\s{0,8}=\s{0,8}"([^"]{0,4000})"')


def is_config(text: str) -> bool:
    """Whether a text is a file for -readconfig: its first line that says something is a group's head."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return _HEAD.fullmatch(line.strip()) is not None
    return False


def read_config(text: str, source: str, online: Iterable[int]) -> VirtualMachine:
    """The machine of a file for -readconfig (util/qemu-config.c: qemu_config_foreach)."""
    groups: list[tuple[words.Word, list[tuple[str, str]]]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        head, setting = _HEAD.fullmatch(line), _SETTING.fullmatch(line)
        if head is not None:
            groups.append((words.Word(head[1], number), [] if head[2] is None else [("id", head[2])]))
        elif setting is not None and groups:
            groups[-1][1].append((setting[1], setting[2]))
        else:
            raise WorkbenchError(f'{line[:60]!r}; [group "id"] or key = "value" is expected', number)
        if len(groups) > words.MAX_WORDS:
            raise WorkbenchError(f"more than {words.MAX_WORDS} groups; one machine is expected", number)
    vm = VirtualMachine(source=source, vmm="qemu-11")
    arguments: list[words.Word] = []
    for group, pairs in groups:
        option = _GROUPS.get(group)
        if option is None:
            vm.unknown += [] if group in _IRRELEVANT_GROUPS else [f"[{group}]"]
            continue
        value = ",".join(f"{key}={item.replace(',', ',,')}" for key, item in pairs)
        arguments += [words.Word(f"-{option}", group.line), words.Word(value, group.line)]
    read_arguments(arguments, vm, online)
    return vm


_IRRELEVANT_GROUPS = {
    *_IRRELEVANT.split(),
    "boot-opts",
    "rtc",
    "realtime",
    "accel",
    "trace",
    "option-rom",
    "global",
    "fw_cfg",
}


def _is_qemu(word: str) -> bool:
    tool = word.rpartition("/")[2]
    return tool.startswith(("qemu-system-", "qemu-kvm")) or tool == "kvm"


def read_arguments(parts: Sequence[str], vm: VirtualMachine, online: Iterable[int]) -> None:
    """Take QEMU's own options into ``vm``."""
    line = _Line(vm, sorted(online))
    position = 0
    while position < len(parts):
        word = parts[position]
        position += 1
        if word in ("&", "&&", ";", "|", ">", "2>&1") or word.startswith((">", "2>")):
            break
        if not word.startswith("-"):
            if len(word) < 200 and not word.endswith((".img", ".qcow2", ".iso", ".raw")):
                vm.unknown.append(word)
            continue
        option = word.lstrip("-")
        if option in _FLAGS.split() or option == "mem-prealloc":
            line.prealloc |= option == "mem-prealloc"
            continue
        if position >= len(parts) and option not in _READERS:
            vm.unknown.append(word)
            continue
        if position >= len(parts):
            raise WorkbenchError(f"{word} needs a value", words.line_of(word))
        value = parts[position]
        position += 1
        reader = _READERS.get(option)
        if reader is not None:
            line.at = words.line_of(word)
            with at_line(line.at):
                reader(line, value)
        elif option not in _IRRELEVANT.split():
            vm.unknown.append(f"{word} {value}"[:120])
            if value.startswith("-"):
                position -= 1
    _finish(line)


# --------------------------------------------------------------------------------------------------------- options


def _pairs(line: _Line, value: str, first: str, what: str) -> list[tuple[str, Any]]:
    """Keys and values of an option, written as ``key=value`` or as JSON."""
    if not value.startswith("{"):
        return list(words.key_values(value, first))
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        raise WorkbenchError(f"{what} {value[:40]!r} is not JSON that can be read") from None
    return [(str(key), item) for key, item in decoded.items()]


def _object(line: _Line, value: str) -> None:
    pairs = _pairs(line, value, "qom-type", "-object")
    kind = str(dict(pairs).get("qom-type", ""))
    name = str(dict(pairs).get("id", ""))
    if not name:
        raise WorkbenchError(f"-object {kind[:40]} has no id")
    if name in line.objects:
        raise WorkbenchError(f"two objects have id={name[:40]}")
    properties: dict[str, Any] = {}
    for key, item in pairs:
        key = "host-nodes" if _LISTED.fullmatch(key) else key
        if key == "host-nodes":  # may be there several times
            properties["host-nodes"] = [*properties.get("host-nodes", []), *_ids(item, f"{name}: host-nodes={item}")]
        else:
            properties[key] = item
    if kind in _BACKENDS:
        extra = sorted(set(properties) - _BACKEND_KEYS - {"qom-type"})
        line.vm.unknown.extend(f"-object {kind},id={name}: {key}" for key in extra)
    elif kind == "sev-guest":
        line.vm.notes.append(
            "sev-guest: SEV without SNP pins its memory in the ordinary backend; taken as a guest without private memory"
        )
    elif kind not in _CONFIDENTIAL and kind not in (
        "iothread", "secret", "tls-creds-x509", "rng-random", "rng-builtin", "thread-context", "input-linux", "authz-list",
        "throttle-group", "main-loop", "cryptodev-backend-builtin", "filter-dump", "qtest"):  # fmt: skip
        line.vm.unknown.append(f"-object {kind}"[:120])
    line.objects[name] = kind, properties
    line.lines[name] = line.at


def _ids(item: Any, what: str) -> list[int]:
    if isinstance(item, list):
        return [words.whole(node, what, 1023) for node in item]
    try:
        return list(parse_list(str(item)))
    except ValueError as error:
        raise WorkbenchError(f"{what}: {error}") from None


def _memory(line: _Line, value: str) -> None:
    pairs = dict(_pairs(line, value, "size", "-m"))
    if "size" in pairs:
        line.memory = words.size(pairs["size"], "-m", "m")


def _smp(line: _Line, value: str) -> None:
    pairs = dict(_pairs(line, value, "cpus", "-smp"))
    counts = {key: words.whole(item, f"-smp {key}", 1 << 16) for key, item in pairs.items()}
    if "cpus" in counts:
        line.vm.vcpus = counts["cpus"]
    else:
        line.vm.vcpus = counts.get("maxcpus", 0)
        if not line.vm.vcpus:
            line.vm.vcpus = 1
            for key in ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"):
                line.vm.vcpus *= max(1, counts.get(key, 1))
    line.most_vcpus = counts.get("maxcpus", line.vm.vcpus)
    line.topology = _topology(counts, line.most_vcpus)
    if not 1 <= line.vm.vcpus <= MAX_VCPUS:
        raise WorkbenchError(f"-smp {value[:40]!r}: {line.vm.vcpus} vCPUs; 1 to {MAX_VCPUS} are expected")


_LEVELS = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")


def _topology(counts: dict[str, int], most: int) -> tuple[tuple[str, int], ...]:
    """What -smp leaves out: cores before sockets, threads last (hw/core/machine-smp.c: machine_parse_smp_config)."""
    given = {name: counts.get(name, 0) for name in _LEVELS}
    between = 1
    for name in ("drawers", "books", "dies", "clusters", "modules"):
        given[name] = max(1, given[name])
        between *= given[name]
    if not given["cores"]:
        given["sockets"], given["threads"] = max(1, given["sockets"]), max(1, given["threads"])
        given["cores"] = max(1, most // (given["sockets"] * between * given["threads"]))
    elif not given["sockets"]:
        given["threads"] = max(1, given["threads"])
        given["sockets"] = max(1, most // (between * given["cores"] * given["threads"]))
    if not given["threads"]:
        given["threads"] = max(1, most // (given["sockets"] * between * given["cores"]))
    return tuple((name.removesuffix("s"), given[name]) for name in _LEVELS)


def _place_of(vcpu: int, topology: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Socket, die, ... thread of a vCPU by its index (include/hw/i386/topology.h: x86_topo_ids_from_idx)."""
    place = {}
    for part, count in reversed(topology):
        vcpu, place[part] = divmod(vcpu, count)
    return place


def _machine(line: _Line, value: str) -> None:
    for key, item in _pairs(line, value, "type", "-machine"):
        if key == "memory-backend":
            line.memory_backend = str(item)
            line.lines[f"-machine memory-backend={item}"] = line.at
        elif key in ("confidential-guest-support", "memory-encryption"):
            line.confidential_object = str(item)
            line.lines["confidential-guest-support"] = line.at


def _numa(line: _Line, value: str) -> None:
    line.lines["-numa"] = line.at
    pairs = _pairs(line, value, "type", "-numa")
    kind = str(dict(pairs).get("type", "node"))
    if kind == "node":
        cpus = [cpu for key, item in pairs if key == "cpus" for cpu in _ids(item, f"-numa cpus={item}")]
        line.nodes.append({**{key: item for key, item in pairs if key != "cpus"}, "cpus": cpus})
        line.lines[f"-numa memdev={dict(pairs).get('memdev')}"] = line.at
    elif kind == "cpu":
        named = {str(key): item for key, item in pairs}
        if "node-id" not in named:
            raise WorkbenchError(f"-numa {value[:60]}: node-id is missing")
        place = {part: words.whole(item, f"-numa cpu {key}") for key, item in named.items()
                 if (part := key.removesuffix("-id")) != key and part != "node"}  # fmt: skip
        line.placed.append((words.whole(named["node-id"], "-numa cpu node-id", 1023), place))
    elif kind not in ("dist", "hmat-lb", "hmat-cache"):
        line.vm.unknown.append(f"-numa {value}"[:120])


def _place_vcpus(line: _Line) -> None:
    """``-numa cpu`` to the vCPUs of virtual nodes (hw/core/numa.c: parse_numa_node, machine_set_cpu_numa_node)."""
    most = max(line.most_vcpus, line.vm.vcpus)
    topology = line.topology or _topology({}, most)
    ids = {
        words.whole(node.get("nodeid", number), "-numa nodeid", 1023): node for number, node in enumerate(line.nodes)
    }
    places = [_place_of(vcpu, topology) for vcpu in range(most)]
    for node_id, wanted in line.placed:
        if node_id not in ids:
            raise WorkbenchError(f"-numa cpu,node-id={node_id}: there is no such -numa node")
        cpus = [vcpu for vcpu, place in enumerate(places) if all(place.get(part) == n for part, n in wanted.items())]
        if not cpus:
            shown = ",".join(f"{part}-id={n}" for part, n in wanted.items())
            raise WorkbenchError(f"-numa cpu,{shown[:60]}: no vCPU of -smp is there")
        ids[node_id]["cpus"] += cpus


def _device(line: _Line, value: str) -> None:
    pairs = dict(_pairs(line, value, "driver", "-device"))
    driver = str(pairs.get("driver", ""))
    if driver == "nvdimm":
        line.others.append(str(pairs.get("memdev", "")))
        line.vm.notes.append("nvdimm: a file or a device of its own holds its memory; not placed")
    elif "memdev" in pairs:
        line.dimms.append(str(pairs["memdev"]))
        line.lines[f"-device memdev={pairs['memdev']}"] = line.at
        if driver.startswith("virtio-mem"):
            line.plugged[str(pairs["memdev"])] = words.size(pairs.get("requested-size", 0), f"{driver} requested-size")
    if driver.startswith("vfio-"):
        line.vm.notes.append(f"{driver}: the device pins the memory that the VMM maps; not modelled")
        line.vm.locked = True


def _overcommit(line: _Line, value: str) -> None:
    if dict(_pairs(line, value, "mem-lock", "-overcommit")).get("mem-lock") in ("on", "on-fault"):
        line.vm.locked = True
        line.vm.notes.append("-overcommit mem-lock: mlockall does not allocate private memory")


def _mem_path(line: _Line, value: str) -> None:
    line.path = value


def _name(line: _Line, value: str) -> None:
    pairs = dict(_pairs(line, value, "guest", "-name"))
    line.vm.name = str(pairs.get("guest", "guest"))[:100]


def _readconfig(line: _Line, value: str) -> None:
    line.vm.unknown.append(f"-readconfig {value[:60]}: import that file itself")


_READERS = {"object": _object, "m": _memory, "smp": _smp, "machine": _machine, "M": _machine, "numa": _numa, "device": _device,
            "overcommit": _overcommit, "readconfig": _readconfig, "mem-path": _mem_path, "name": _name}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- together


def _finish(line: _Line) -> None:
    vm = line.vm
    if line.confidential_object is not None:
        kind = line.objects.get(line.confidential_object, ("", {}))[0]
        if not kind:
            raise WorkbenchError(
                f"-machine confidential-guest-support={line.confidential_object[:40]} names no object",
                line.lines["confidential-guest-support"],
            )
        vm.confidential = _CONFIDENTIAL.get(kind, "none")  # type: ignore[assignment]
    backends: dict[str, Backend] = {}
    for identity, found in line.objects.items():
        if found[0] in _BACKENDS:
            with at_line(line.lines[identity]):
                backends[identity] = _backend(line, identity, *found)
    if line.placed:
        with at_line(line.lines["-numa"]):
            _place_vcpus(line)
    used: list[Backend] = []
    for number, node in enumerate(line.nodes):
        name = node.get("memdev")
        if name is None:
            memory = node.get("mem")
            if memory is not None:
                plain = Backend(
                    f"node{number}", words.size(memory, "-numa mem", "m"), preallocated=line.prealloc, anonymous=True
                )
                used.append(plain)
                plain.vcpus = tuple(node["cpus"])
            continue
        used.append(_named(backends, str(name), f"-numa memdev={name}", line))
        used[-1].vcpus = tuple(node["cpus"])
    if line.memory_backend is not None:
        used.append(_named(backends, line.memory_backend, f"-machine memory-backend={line.memory_backend}", line))
    if not used:
        page = _HUGEPAGE if line.path and "huge" in line.path else PAGE_SIZE
        used.append(
            Backend("ram", line.memory, page_bytes=page, preallocated=line.prealloc, anonymous=line.path is None)
        )
    for name in line.dimms:
        backend = _named(backends, name, f"-device memdev={name}", line)
        if name in line.plugged:
            vm.notes.append(f"{name}: virtio-mem; the guest has {line.plugged[name] >> 20} MiB of it")
            backend.size = min(backend.size, line.plugged[name])
        if backend.size:
            used.append(backend)
    line.others += [name for name in line.dimms if not backends[name].size]
    if len({backend.name for backend in used}) < len(used):
        twice = next(backend.name for backend in used if [other.name for other in used].count(backend.name) > 1)
        raise WorkbenchError(f"memory backend {twice[:40]} is used twice; once is expected", line.lines.get(twice, 0))
    vm.unknown += [f"-object {kind},id={name} is used by nothing" for name, (kind, _) in line.objects.items()
                   if kind in _BACKENDS and name not in {*line.others, *(backend.name for backend in used)}]  # fmt: skip
    if line.nodes and any(backend.vcpus for backend in used):
        _check_vcpus(line, used)
    elif len(line.nodes) > 1:  # hw/core/numa.c: without cpus= they go round the nodes
        nodes = len(line.nodes)
        for number, backend in enumerate(used[:nodes]):
            backend.vcpus = tuple(range(number, vm.vcpus, nodes))
    vm.backends = used


def _check_vcpus(line: _Line, used: list[Backend]) -> None:
    """vCPUs of virtual nodes may be some that are not plugged in yet, up to maxcpus; those touch nothing."""
    highest = max(cpu for backend in used for cpu in backend.vcpus)
    if highest >= max(line.most_vcpus, line.vm.vcpus):
        most = max(line.most_vcpus, line.vm.vcpus)
        said = f"-numa cpus: vCPU {highest} is not there; -smp has {most}"
        raise WorkbenchError(said, line.lines.get("-numa", 0))
    for backend in used:
        backend.vcpus = tuple(cpu for cpu in backend.vcpus if cpu < line.vm.vcpus)


def _named(backends: dict[str, Backend], name: str, what: str, line: _Line) -> Backend:
    if name not in backends:
        raise WorkbenchError(f"{what[:60]} names no memory backend", line.lines.get(what, 0))
    return backends[name]


def _backend(line: _Line, name: str, kind: str, properties: dict[str, Any]) -> Backend:
    size = words.size(properties.get("size", 0), f"{name}: size")
    mode = str(properties.get("policy", "default"))
    nodes = tuple(sorted(set(properties.get("host-nodes", []))))
    if mode not in _MODES:
        raise WorkbenchError(f"{name}: policy={mode[:20]}; QEMU has {', '.join(_MODES)}")
    if nodes and mode == "default":
        raise WorkbenchError(
            f"{name}: host-nodes must be empty for policy default, or another policy be given, as QEMU says"
        )
    if not nodes and mode != "default":
        raise WorkbenchError(f"{name}: host-nodes must be set for policy {mode}, as QEMU says")
    outside = sorted(set(nodes) - set(line.online))
    if outside:
        raise WorkbenchError(
            f"{name}: host-nodes: node {outside[0]} is not on this host, which has nodes {line.online}"
        )
    if not size:
        raise WorkbenchError(f"{name}: size=0; a memory backend needs its size")
    page = PAGE_SIZE
    if properties.get("hugetlb") in _ON or "hugetlbsize" in properties:
        page = words.size(properties.get("hugetlbsize", "2M"), f"{name}: hugetlbsize")
    elif kind == "memory-backend-file" and "huge" in str(properties.get("mem-path", "")):
        page = 1 << 30 if any(text in str(properties["mem-path"]).lower() for text in ("1g", "1048576")) else _HUGEPAGE
    policy = None
    if nodes:
        listed = ",".join(map(str, nodes))
        policy = NodePolicy(f"{name}: policy={mode}, host-nodes={listed}", _MODES[mode], nodes)  # type: ignore[arg-type]
    prealloc = properties.get("prealloc") in _ON or (line.prealloc and "prealloc" not in properties)
    anonymous = kind == "memory-backend-ram" and properties.get("share") not in _ON
    return Backend(name, size, policy, page, prealloc, kind == "memory-backend-guest-memfd", anonymous)

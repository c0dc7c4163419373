"""A virtual machine from a libvirt domain (docs/formatdomain.rst; src/qemu/qemu_command.c, qemu_process.c).

``numatune`` becomes two things: ``policy`` and ``host-nodes`` of the memory backends (all modes but restrictive), and,
for strict and restrictive with a ``memory`` element, the cpuset of the VMM's threads (qemuProcessSetupPid), which
private memory follows too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.bitmap_lists import parse_list
from workbench.errors import WorkbenchError, at_line
from workbench.limits import MAX_VCPUS
from workbench.units import PAGE_SIZE
from workbench.vmconfig import words
from workbench.vmconfig.machine import Backend, Mode, NodePolicy, Numad, VirtualMachine
from workbench.vmconfig.qemu import read_arguments

_UNITS = {"b": 1, "bytes": 1, "kb": 10**3, "k": 1 << 10, "kib": 1 << 10, "mb": 10**6, "m": 1 << 20, "mib": 1 << 20,
          "gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40, "tib": 1 << 40}  # fmt: skip
_MODES: dict[str, Mode | None] = {
    "strict": "bind",
    "interleave": "interleave",
    "preferred": "preferred_many",
    "restrictive": None,
}
_CONFIDENTIAL = {"sev-snp": "snp", "tdx": "tdx"}
_IRRELEVANT = """
    name uuid genid title description metadata maxMemory currentMemory iothreads iothreadids defaultiothread
    resource os bootloader features clock on_poweroff on_reboot on_crash on_lockfailure pm perf devices seclabel
    keywrap sysinfo blkiotune memtune throttlegroups id
"""
_TUNE_IRRELEVANT = """
    shares global_period global_quota period quota emulator_period emulator_quota iothread_period iothread_quota
    vcpusched emulatorsched iothreadsched cachetune memorytune iothreadpin
"""
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"


def read_domain(root: Any, source: str, online: Iterable[int]) -> VirtualMachine:
    """The machine of a ``domain`` element; ``online`` are the node ids of the host it is to run on."""
    with at_line(root.line):
        return _read_domain(root, source, online)


def _read_domain(root: Any, source: str, online: Iterable[int]) -> VirtualMachine:
    vm = VirtualMachine(source=source, vmm="qemu-11", name=(root.findtext("name") or "guest")[:100])
    nodes = sorted(online)
    if root.get("type") not in ("kvm", "qemu", None):
        vm.notes.append(f"domain type {root.get('type')}: placed as a KVM guest is")
    vcpu = root.find("vcpu")
    with at_line(0 if vcpu is None else vcpu.line):
        stated = ((vcpu.get("current") or vcpu.text) if vcpu is not None else "1") or "1"
        vm.vcpus = words.whole(stated, "vcpu", MAX_VCPUS)
        if vm.vcpus < 1:
            raise WorkbenchError(f"vcpu: 0; 1 to {MAX_VCPUS} are expected")
        if vcpu is not None and vcpu.get("cpuset"):
            vm.cpus = _list(vcpu.get("cpuset"), "vcpu cpuset")
    _automatic(root, vcpu is not None and vcpu.get("placement") == "auto", vm)
    memory = root.find("memory")
    total = _memory(memory, "memory") if memory is not None else 0
    security = root.find("launchSecurity")
    if security is not None:
        kind = security.get("type") or ""
        vm.confidential = _CONFIDENTIAL.get(kind, "none")  # type: ignore[assignment]
        if kind == "sev":
            vm.notes.append("launchSecurity sev: SEV without SNP has no private memory of its own")
        elif kind not in _CONFIDENTIAL:
            vm.unknown.append(f"launchSecurity type={kind[:40]!r}")
    _cputune(root, vm)
    cells = root.findall("./cpu/numa/cell")
    plugged = _devices(root, vm, nodes)
    if not cells:  # <memory> counts what is plugged, too
        total = max(0, total - sum(backend.size for backend in plugged))
    vm.backends = [*_backends(root, cells, total, vm, nodes), *plugged]
    if not vm.backends or vm.memory == 0:
        raise WorkbenchError("the domain has no memory; <memory unit='GiB'>4</memory> is expected")
    extra = root.find(_QEMU)
    if extra is not None:
        inner = VirtualMachine(source=f"{source}: qemu:commandline", vmm="qemu-11")
        read_arguments([element.get("value") or "" for element in extra if element.tag.endswith("}arg")], inner, nodes)
        vm.unknown += [f"qemu:commandline: {word}" for word in inner.unknown]
        vm.notes += inner.notes
        if inner.confidential != "none":
            vm.confidential = inner.confidential
    known = {"vcpu", "vcpus", "memory", "memoryBacking", "numatune", "cputune", "cpu", "launchSecurity", _QEMU}
    known |= set(_IRRELEVANT.split())
    vm.unknown += [f"<{child.tag}>"[:120] for child in root if isinstance(child.tag, str) and child.tag not in known]
    return vm


def _automatic(root: Any, threads: bool, vm: VirtualMachine) -> None:
    """``placement='auto'`` of vcpu and of numatune's memory, which follows vcpu if it says nothing, strict if it is not there.

    src/conf/numa_conf.c: virDomainNumatuneSet, virDomainNumatuneParseXML.
    """
    element = root.find("./numatune/memory")
    said = None if element is None else element.get("placement") or ("static" if element.get("nodeset") else None)
    memory = threads if said is None else said == "auto"
    if not threads and not memory:
        return
    mode = (None if element is None else element.get("mode")) or "strict"
    if mode not in _MODES:
        raise WorkbenchError(f"memory: mode={mode[:20]!r}; libvirt has {', '.join(_MODES)}", element.line)
    setting = f"numatune memory: mode={mode}, placement=auto" if memory else ""
    confines = memory and mode in ("strict", "restrictive")
    vm.asks_numad = Numad(threads, setting, _MODES[mode] if memory else None, confines)


def _list(text: str | None, what: str) -> tuple[int, ...]:
    """A list as libvirt has it: ``0-7,^3`` leaves 3 out."""
    kept: list[int] = []
    for part in (text or "").split(","):
        try:
            ids = parse_list(part.strip().removeprefix("^"))
        except ValueError as error:
            raise WorkbenchError(f"{what}: {error}") from None
        kept = [cpu for cpu in kept if cpu not in ids] if part.strip().startswith("^") else [*kept, *ids]
    return tuple(sorted(set(kept)))


def _memory(element: Any, what: str) -> int:
    with at_line(element.line):
        return words.whole(element.text, what, 1 << 60) * _unit(element, what)


def _unit(element: Any, what: str) -> int:
    """Bytes of an element's unit."""
    unit = (element.get("unit") or "KiB").lower()
    if unit not in _UNITS:
        raise WorkbenchError(f"{what}: unit {unit[:20]!r} is none of {', '.join(_UNITS)}")
    return _UNITS[unit]


def _devices(root: Any, vm: VirtualMachine, nodes: list[int]) -> list[Backend]:
    """Memory devices: DIMMs, and of virtio-mem what is plugged; on their source's nodes, bound as numatune says.

    src/qemu/qemu_command.c: qemuBuildMemoryDimmBackendStr: nodemask is host-nodes, with the mode of numatune's memory.
    """
    everywhere = root.find("./numatune/memory")
    mode = (everywhere.get("mode") if everywhere is not None else None) or "strict"
    out = []
    for position, element in enumerate(root.findall("./devices/memory")):
        model = element.get("model") or ""
        what = f"memory device {position} ({model[:20]})"
        size = element.find("./target/requested" if model == "virtio-mem" else "./target/size")
        if model not in ("dimm", "virtio-mem") or size is None:
            vm.notes.append(f"{what}: its memory is not that of the host; not placed")
            continue
        page = element.find("./source/pagesize")
        backend = Backend(
            f"mem{position}", _memory(size, what), page_bytes=PAGE_SIZE if page is None else _memory(page, what)
        )
        mask = element.find("./source/nodemask")
        if mask is not None:
            with at_line(mask.line):
                listed = _list(mask.text, f"{what} nodemask")
            outside = sorted(set(listed) - set(nodes))
            if outside:
                raise WorkbenchError(
                    f"{what}: nodemask: node {outside[0]} is not on this host, which has nodes {nodes}", mask.line
                )
            policy = _MODES.get(mode)
            if policy is not None:
                backend.policy = NodePolicy(f"{what}: nodemask={mask.text}, mode={mode}", policy, listed)
        backend.anonymous = backend.page_bytes == PAGE_SIZE
        if backend.size:
            out.append(backend)
    return out


def _cputune(root: Any, vm: VirtualMachine) -> None:
    for element in root.findall("./cputune/*"):
        with at_line(element.line):
            _tune(element, vm)


def _tune(element: Any, vm: VirtualMachine) -> None:
    if element.tag == "vcpupin":
        number = words.whole(element.get("vcpu"), "vcpupin vcpu", MAX_VCPUS - 1)
        if number in vm.vcpu_pins:
            raise WorkbenchError(f"two vcpupin elements for vCPU {number}; one is expected")
        if number >= vm.vcpus:
            vm.notes.append(f"vcpupin vcpu={number}: the domain has {vm.vcpus} vCPUs")
            return
        vm.vcpu_pins[number] = _list(element.get("cpuset"), f"vcpupin {number} cpuset")
        vm.lines[f"vcpupin {number}"] = element.line
    elif element.tag == "emulatorpin":
        if vm.emulator_cpus:
            raise WorkbenchError("two emulatorpin elements; one is expected")
        vm.emulator_cpus = _list(element.get("cpuset"), "emulatorpin cpuset")
        vm.lines["emulatorpin"] = element.line
    elif element.tag not in _TUNE_IRRELEVANT.split():
        vm.unknown.append(f"cputune/{element.tag}"[:120])


def _nodeset(element: Any, what: str, nodes: list[int]) -> tuple[int, ...]:
    with at_line(element.line):
        listed = _list(element.get("nodeset"), f"{what} nodeset")
        outside = sorted(set(listed) - set(nodes))
        if outside:
            raise WorkbenchError(f"{what}: nodeset: node {outside[0]} is not on this host, which has nodes {nodes}")
        if not listed:
            raise WorkbenchError(f"{what}: nodeset is empty; nodes {nodes} are on this host")
        return listed


def _tuned(element: Any, what: str, nodes: list[int]) -> tuple[str, NodePolicy | None]:
    mode = element.get("mode") or "strict"
    if mode not in _MODES:
        raise WorkbenchError(f"{what}: mode={mode[:20]!r}; libvirt has {', '.join(_MODES)}", element.line)
    listed = _nodeset(element, what, nodes)
    setting = f"numatune {what}: mode={mode}, nodeset={element.get('nodeset')}"
    policy = _MODES[mode]
    return mode, None if policy is None else NodePolicy(setting, policy, listed)


def _backends(root: Any, cells: list[Any], total: int, vm: VirtualMachine, nodes: list[int]) -> list[Backend]:
    everywhere: NodePolicy | None = None
    for element in root.findall("./numatune/memory"):
        if element.get("nodeset") is None or element.get("placement") == "auto":
            continue
        mode, everywhere = _tuned(element, "memory", nodes)
        if mode in ("strict", "restrictive"):
            listed = _nodeset(element, "memory", nodes)
            vm.cpuset_mems = NodePolicy(
                f"numatune memory: mode={mode}, nodeset={element.get('nodeset')}", "bind", listed
            )
    per_cell: dict[int, NodePolicy | None] = {}
    lines: dict[int, int] = {}
    for element in root.findall("./numatune/memnode"):
        with at_line(element.line):
            cell = words.whole(element.get("cellid"), "memnode cellid", 1023)
        if cell in per_cell:
            raise WorkbenchError(f"two memnode elements for cell {cell}; one is expected", element.line)
        lines[cell] = element.line
        per_cell[cell] = _tuned(element, f"memnode {cell}", nodes)[1]
    immediate = any(
        (element.get("mode") or "") == "immediate" for element in root.findall("./memoryBacking/allocation")
    )
    if root.find("./memoryBacking/locked") is not None:
        vm.locked = True
    pages = _page_bytes(root, len(cells))
    source, access = root.find("./memoryBacking/source"), root.find("./memoryBacking/access")
    in_file = (source is not None and source.get("type") in ("file", "memfd")) or (
        access is not None and access.get("mode") == "shared"
    )
    if not cells:
        if per_cell:
            raise WorkbenchError(f"memnode {min(per_cell)} needs a cell of cpu/numa", lines[min(per_cell)])
        page = pages.get(0, pages[None])
        return [Backend("pc.ram", total, everywhere, page, immediate, anonymous=page == PAGE_SIZE and not in_file)]
    out = []
    ids: set[int] = set()
    for position, element in enumerate(cells):
        with at_line(element.line):
            cell = words.whole(element.get("id") or str(position), "cell id", 1023)
            if cell in ids:
                raise WorkbenchError(f"two cells have id={cell}; one of each is expected")
            ids.add(cell)
            size = words.whole(element.get("memory"), f"cell {cell} memory", 1 << 60) * _unit(
                element, f"cell {cell} memory"
            )
            page = pages.get(cell, pages[None])
            shared = in_file or element.get("memAccess") == "shared"
            backend = Backend(f"ram-node{cell}", size, per_cell.get(cell, everywhere), page, immediate)
            backend.anonymous = page == PAGE_SIZE and not shared
            backend.vcpus = tuple(
                cpu for cpu in _list(element.get("cpus") or "", f"cell {cell} cpus") if cpu < vm.vcpus
            )
            out.append(backend)
    missing = sorted(set(per_cell) - ids)
    if missing:
        raise WorkbenchError(
            f"memnode {missing[0]}: cpu/numa has no such cell; it has {sorted(ids)}", lines[missing[0]]
        )
    return out


def _page_bytes(root: Any, cells: int) -> dict[int | None, int]:
    """Page size by virtual node; that of None is for the others (qemu_command.c: qemuBuildMemoryBackendProps)."""
    sizes: dict[int | None, int] = {None: PAGE_SIZE}
    huge = root.find("./memoryBacking/hugepages")
    if huge is None:
        return sizes
    pages = huge.findall("page")
    if not pages:
        sizes[None] = 2 << 20
    for page in pages:
        with at_line(page.line):
            unit = (page.get("unit") or "KiB").lower()
            if unit not in _UNITS:
                raise WorkbenchError(f"hugepages: unit {unit[:20]!r} is none of {', '.join(_UNITS)}")
            size = words.whole(page.get("size"), "hugepages page size", 1 << 40) * _UNITS[unit]
            if not size:
                raise WorkbenchError("hugepages: page size=0; 2048 or 1048576 (KiB) are expected")
            nodeset = page.get("nodeset")
            listed: tuple[int | None, ...] = (None,) if nodeset is None else _list(nodeset, "hugepages nodeset")
            for cell in listed:
                if cell is not None and cell >= max(cells, 1):
                    raise WorkbenchError(
                        f"hugepages: nodeset: {cell}; the domain has {max(cells, 1)} virtual nodes, from 0 on"
                    )
                if cell is not None and cell in sizes:
                    raise WorkbenchError(f"hugepages: two page sizes for virtual node {cell}")
                sizes[cell] = size
    return sizes

"""Recordings of a real kernel: reading them, checking that they are whole, and turning them into scenarios.

A recording is one boot of one emulated host: what Linux made of the topology, a script of system calls, and for each
the return value, the errno and what could be seen. The format is described in ``datasets/recordings/README.md``.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from workbench import policy as mp
from workbench import scenario as sc
from workbench.bitmap_lists import is_whole
from workbench.data import datasets_path, shipped
from workbench.errors import WorkbenchError, reason
from workbench.files import is_there, read_file
from workbench.probe_words import ORDERS, c_number
from workbench.profiles import of_version
from workbench.topology.host import Host, Node, Zone
from workbench.truth.document import validated
from workbench.units import PAGE_SIZE

FORMAT_VERSION = 1
MAX_BYTES = 1 << 28
"""An unpacked recording larger than this is refused."""
_TASK = re.compile(r"^t([0-9])$")
_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")
_LABEL = re.compile(r"^([0-9]+)/(DMA|DMA32|Normal|Movable)$")


@dataclass(frozen=True)
class Recorded:
    """One operation as it was recorded: its words without the task, and what was seen."""

    text: str
    task: int
    words: tuple[str, ...]
    seen: Mapping[str, Any]

    @property
    def dead(self) -> bool:
        """The process had been killed (or was, by this operation)."""
        return self.seen.get("errno") == "dead"


@dataclass(frozen=True)
class RecordedScenario:
    """One script: name, number of tasks, whether il_prev was reset first, and its operations."""

    name: str
    tasks: int
    reset: bool
    operations: tuple[Recorded, ...]


@dataclass(frozen=True)
class Recording:
    """A whole file: the host as Linux saw it and the scripts that ran on it."""

    path: Path
    topology: str
    kernel: str
    host: Host
    weights: dict[int, int]
    scenarios: tuple[RecordedScenario, ...]
    default_pcp: bool
    zonelists: str = "boot"

    def rules(self) -> tuple[str, str]:
        """The kernel profile by whose rules the recording is judged, and a line if it is not that very version's.

        Empty where the recording names no kernel: then a replay takes the oldest profile that has what it uses.
        """
        if not self.kernel:
            return "", ""
        profile, exact = of_version(self.kernel)
        if exact:
            return profile.name, ""
        version = _VERSION.search(self.kernel)
        recorded = version.group() if version else self.kernel
        return (
            profile.name,
            f"recorded on Linux {recorded}, which has no profile: judged by {profile.name}, the nearest",
        )


def find_recording(given: str | Path) -> Path:
    """A recording file, or a shipped recording by name (``t2eq``)."""
    inside = datasets_path("recordings", "conversion") / f"{given}.json.gz"
    if not Path(given).suffix and is_there(inside):
        return inside
    return shipped(given, datasets_path("recordings"), (".json.gz",), "recording")


def read(path: str | Path) -> Recording:
    """Read a ``.json`` or ``.json.gz`` recording; anything not whole is refused with one line."""
    path = Path(path)
    data = load(path)
    version = data.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise WorkbenchError(
            f"{path.name}: format version {version!r} is not known; this reads version {FORMAT_VERSION}"
        )
    for key, kind in (("topology", dict), ("scenarios", list)):
        if not isinstance(data.get(key), kind):
            raise WorkbenchError(f"{path.name}: no {key!r}; this is not a placement recording")
    if data.get("done") is not True:
        raise WorkbenchError(f"{path.name}: truncated: the recorder did not reach its end")
    validated(path.name, data)
    scenarios = tuple(_scenario(path, number, entry) for number, entry in enumerate(data["scenarios"]))
    if not scenarios:
        raise WorkbenchError(f"{path.name}: holds no scenario")
    stated = data.get("scenario_text")
    if isinstance(stated, str):
        announced = sum(line.split()[:1] == ["scenario"] for line in stated.splitlines())
        if announced != len(scenarios):
            raise WorkbenchError(f"{path.name}: truncated: {len(scenarios)} of {announced} scenarios are there")
    host, weights = _host(path, data)
    _check_nodes(path, host, scenarios)
    return Recording(
        path,
        str(data["topology"].get("name", path.name)),
        str(data.get("kernel", "")),
        host,
        weights,
        scenarios,
        "pcpdefault" in str(data.get("cmdline", "")),
        str((data.get("derived") or {}).get("zonelists", "boot")),
    )


def load(path: Path) -> dict[str, Any]:
    """The document of a ``.json`` or ``.json.gz`` file; anything that is not a whole mapping is refused with one line."""
    try:
        raw = read_file(path, MAX_BYTES, path.name or str(path))
        if path.name.endswith(".gz"):
            unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            unpacked = unpacker.decompress(raw, MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise WorkbenchError(f"{path.name}: larger than {MAX_BYTES >> 20} MiB when unpacked")
            if not unpacker.eof:
                raise WorkbenchError(f"{path.name}: truncated: the compressed data ends early")
            raw = unpacked
        data = json.loads(raw)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise WorkbenchError(f"{path.name}: not a gzip file, or damaged ({error})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(f"{path.name}: not JSON, or truncated ({reason(error)})") from None
    if not isinstance(data, dict):
        raise WorkbenchError(f"{path.name}: not a recording (the top level is not a mapping)")
    return data


def _scenario(path: Path, number: int, entry: Any) -> RecordedScenario:
    if not isinstance(entry, dict) or not isinstance(entry.get("ops"), list) or not isinstance(entry.get("name"), str):
        raise WorkbenchError(f"{path.name}: scenario {number} has no name or no operations")
    header = str(entry.get("header", entry["name"])).split()
    tasks = next((word[6:] for word in header if word.startswith("tasks=")), "1")
    if not is_whole(tasks) or not 1 <= int(tasks) <= 64:
        raise WorkbenchError(f"{path.name}: {entry['name']}: tasks={tasks} is not a number of tasks")
    operations = tuple(_operation(path, entry["name"], position, op) for position, op in enumerate(entry["ops"]))
    return RecordedScenario(entry["name"], int(tasks), "noreset" not in header, operations)


def _operation(path: Path, scenario: str, position: int, entry: Any) -> Recorded:
    where = f"{path.name}: {scenario}: operation {position}"
    if not isinstance(entry, dict) or not isinstance(entry.get("op"), str) or not entry["op"].split():
        raise WorkbenchError(f"{where} has no text")
    words = entry["op"].split()
    task = 0
    matched = _TASK.match(words[0])
    if matched and len(words) > 1:
        task, words = int(matched.group(1)), words[1:]
    if not set(entry) - {"op", "us"}:
        raise WorkbenchError(f"{where} ({entry['op']}) has no result; the recording is truncated")
    ret, errno = entry.get("ret"), entry.get("errno")
    if isinstance(ret, int) and isinstance(errno, int) and (ret >= 0) != (errno == 0) and words[0] != "vtouch":
        raise WorkbenchError(f"{where} ({entry['op']}) contradicts itself: ret {ret} with errno {errno}")
    if "place" in entry:
        _start, total = _range(where, entry)
        if total != sum(count for _, count in unpack_place(entry["place"], where)):
            raise WorkbenchError(f"{where} ({entry['op']}): the runs of pages do not add up to its range")
    return Recorded(entry["op"], task, tuple(words), entry)


def _range(where: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    start, plus, count = str(entry.get("range", "")).partition("+")
    if not plus or not is_whole(start) or not is_whole(count):
        raise WorkbenchError(f"{where}: {entry.get('range')!r} is not a range of pages")
    return int(start), int(count)


def unpack_place(text: str, where: str = "place") -> list[tuple[int | None, int]]:
    """Runs of ``node*count`` (``.`` for absent pages) as (node or None, pages)."""
    runs: list[tuple[int | None, int]] = []
    for part in text.split(","):
        if not part:
            continue
        value, star, count = part.partition("*")
        if (value != "." and not is_whole(value.removeprefix("-"))) or (star and not is_whole(count)):
            raise WorkbenchError(f"{where}: {part!r} is not a run of pages")
        runs.append((None if value == "." else int(value), int(count) if star else 1))
    return runs


def _check_nodes(path: Path, host: Host, scenarios: tuple[RecordedScenario, ...]) -> None:
    known = {node.id for node in host.nodes}
    for scenario in scenarios:
        for operation in scenario.operations:
            if "place" in operation.seen:
                for node, _ in unpack_place(operation.seen["place"]):
                    if node is not None and node not in known and node >= 0:
                        raise WorkbenchError(
                            f"{path.name}: {scenario.name}: {operation.text}: page on node {node}, "
                            f"which the host does not have"
                        )


# ---------------------------------------------------------------------------------------------------------- host


def _host(path: Path, data: Mapping[str, Any]) -> tuple[Host, dict[int, int]]:
    """The host as Linux numbered it, and the interleave weights that firmware's bandwidths gave it at boot."""
    derived = data.get("derived") or {}
    files = data.get("files") or {}
    distances = {int(node): list(row) for node, row in (derived.get("distance") or {}).items()}
    cpulists = {int(node): str(text) for node, text in (derived.get("cpulist") or {}).items()}
    weights = {int(node): int(weight) for node, weight in (derived.get("wi_weights") or {}).items()}
    for name, lines in files.items():
        matched = re.match(r"/sys/devices/system/node/node([0-9]{1,4})/(distance|cpulist)$", name)
        if matched and lines:
            node, text = int(matched.group(1)), str(lines[0])
            if matched.group(2) == "distance":
                distances.setdefault(node, _decimals(path, name, text))
            else:
                cpulists.setdefault(node, text)
        matched = re.match(r"/sys/kernel/mm/mempolicy/weighted_interleave/node([0-9]{1,4})$", name)
        if matched and lines:
            for weight in _decimals(path, name, str(lines[0]))[:1]:
                weights.setdefault(int(matched.group(1)), weight)
    declared = data["topology"].get("nodes") or []
    if not distances:
        raise WorkbenchError(f"{path.name}: does not say which distances Linux found")
    ids = sorted(distances)
    if any(len(row) != len(ids) for row in distances.values()):
        raise WorkbenchError(f"{path.name}: the distance matrix is not square")
    memory = _memory(path, ids, declared, derived)
    zones = _first_zones(data)
    try:
        nodes = tuple(
            Node(
                id=node,
                memory_bytes=memory[node],
                cpus=tuple(_cpus(cpulists.get(node, ""))),
                kind="dram",
                zones=tuple(zones[node]) if node in zones else None,
            )
            for node in ids
        )
        host = Host(
            name=str(data["topology"].get("name", "recording")),
            nodes=nodes,
            distances=tuple(tuple(distances[node]) for node in ids),
            source=f"recording {path.name}",
        )
    except (ValueError, TypeError) as error:
        line = str(error).splitlines()[-1].strip()
        raise WorkbenchError(f"{path.name}: topology: {line}") from None
    weights = {node: weight for node, weight in weights.items() if 1 <= weight <= 255}
    told = bool(data["topology"].get("hmat")) or any(weight > 1 for weight in weights.values())
    return host, weights if told else {}


def _decimals(path: Path, name: str, text: str) -> list[int]:
    """The numbers of a line of a file of the kernel's."""
    words = text.split()
    for word in words:
        if not is_whole(word):
            raise WorkbenchError(f"{path.name}: {name}: {word[:30]!a} is no number")
    return [int(word) for word in words]


def _memory(path: Path, ids: list[int], declared: list[Any], derived: Mapping[str, Any]) -> dict[int, int]:
    """Bytes of each Linux node. Proximity domains are numbered CPUs first (drivers/acpi/numa/srat.c)."""
    to_node = {int(pxm): int(node) for pxm, node in (derived.get("pxm_to_node") or {}).items()}
    if not to_node:
        order = sorted(range(len(declared)), key=lambda i: (not declared[i].get("cpus"), i))
        to_node = {pxm: node for node, pxm in enumerate(order)}
    memory = dict.fromkeys(ids, 0)
    for number, node in enumerate(declared):
        linux = to_node.get(int(node.get("pxm", number)), number)
        if linux not in memory:
            raise WorkbenchError(f"{path.name}: topology declares node {number}, which Linux does not have")
        memory[linux] = _size(path, node.get("mem", 0))
    return memory


def _size(path: Path, text: Any) -> int:
    matched = re.fullmatch(r"([0-9]{1,18})([KMG]?)", str(text))
    if not matched:
        raise WorkbenchError(f"{path.name}: topology: {text!r} is not a memory size such as 512M")
    return int(matched.group(1)) << {"K": 10, "M": 20, "G": 30, "": 20}[matched.group(2)]


def _cpus(text: str) -> list[int]:
    return mp.nodes_of(mp.parse_nodes(text.strip(), "cpulist")) if text.strip() else []


def _first_zones(data: Mapping[str, Any]) -> dict[int, list[Zone]]:
    """Zones at boot: from zoneinfo if it was kept, else each zone as it stood when the scripts saw most of it free."""
    counters = parse_zoneinfo((data.get("files") or {}).get("/proc/zoneinfo") or [])
    if not counters:
        for scenario in data["scenarios"]:
            for entry in scenario.get("ops", ()):
                for label, state in (entry.get("zones") or {}).items() if isinstance(entry, dict) else ():
                    if label not in counters or state["free"] > counters[label]["free"]:
                        counters[label] = state
    by_node: dict[int, list[Zone]] = {}
    scratch = _scratch(data)
    for label, state in counters.items():
        matched = _LABEL.match(label)
        if matched and state.get("managed"):
            values = {key: int(state[key]) for key in ("managed", "free", "min", "low", "high")}
            cma = int(state.get("cma", scratch.get(label, 0)))
            values["free_cma"] = min(cma, values["free"])
            by_node.setdefault(int(matched.group(1)), []).append(Zone(name=matched.group(2), **values))
    return by_node


def _scratch(data: Mapping[str, Any]) -> dict[str, int]:
    """Pages of the areas for kexec handover that a ``kho`` line saw, by zone: CMA, whatever zoneinfo was kept."""
    areas: list[Any] = []
    for scenario in data["scenarios"]:
        for entry in scenario.get("ops", ()):
            seen = entry.get("kho") if isinstance(entry, dict) else None
            if not areas and isinstance(seen, dict) and isinstance(seen.get("scratch"), list):
                areas = seen["scratch"]
    found: Counter[str] = Counter()
    for area in areas:
        if isinstance(area, list) and len(area) == 3 and all(isinstance(value, int) for value in area):
            first, pages, node = area
            found[f"{node}/{'DMA32' if first + pages <= _FOUR_GIB_PFN else 'Normal'}"] += pages
    return found


_FOUR_GIB_PFN = (4 << 30) // PAGE_SIZE


def parse_zoneinfo(lines: list[str]) -> dict[str, dict[str, int]]:
    """Counters of every populated zone from /proc/zoneinfo: label such as ``0/Normal`` to free, min, low, high, managed."""
    zones: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in lines:
        matched = re.match(r"Node ([0-9]+), zone\s+(\w+)", line)
        if matched:
            current = zones.setdefault(f"{matched.group(1)}/{matched.group(2)}", {})
            continue
        matched = re.match(r"\s+(?:pages |nr_free_)?(free|min|low|high|managed|cma)\s+([0-9]+)$", line)
        if matched:
            current.setdefault(matched.group(1), int(matched.group(2)))
    return {label: state for label, state in zones.items() if state.get("managed") and len(state) >= 5}


# ----------------------------------------------------------------------------------------------------- translation


class Unknown(Exception):
    """An operation that the workbench does not simulate; its text is the reason."""


@dataclass
class _Replay:
    """What a script has done so far that later lines depend on: sizes of files, and what is not simulated."""

    sizes: dict[str, int] = field(default_factory=dict)
    unknown_files: dict[str, str] = field(default_factory=dict)
    unknown_machine: str = ""
    vm_type: str = "none"
    created: bool = False
    memfds: set[str] = field(default_factory=set)
    pins: dict[str, list[sc.Pin]] = field(default_factory=dict)
    """What is pinned of each guest_memfd, in the order of the calls."""

    def require(self, entry: Recorded) -> None:
        """Raise Unknown for a line about something that is not simulated."""
        if self.unknown_machine and entry.words[0] not in _WITHOUT_MACHINE:
            raise Unknown(self.unknown_machine)
        about = entry.words[2:3] if entry.words[0] in _OPENS else entry.words[1:2]
        for word in about:
            if word in self.unknown_files:
                raise Unknown(self.unknown_files[word])

    def note(self, entry: Recorded) -> None:
        """Remember what a line that is not simulated has opened."""
        verb, words, done = entry.words[0], entry.words, entry.seen.get("errno") == 0
        if verb in _OPENS and len(words) > 1 and done:
            self.unknown_files[words[1]] = _NOT_SIMULATED.get(verb, f"{words[1]} is a file that is not simulated")
        if verb == "vm" and len(words) > 1 and done:
            self.unknown_machine = f"virtual machines of type {words[1]} are not replayed"


_OPENS = ("create", "memfd", "anon", "alias")
NODE_MEMINFO = re.compile(r"/sys/devices/system/node/node([0-9]+)/meminfo$")
_WITHOUT_MACHINE = (
    "setpol",
    "gettask",
    "getil",
    "setcpu",
    "weights",
    "cpuset",
    "reset",
    "zones",
    "eat",
    "eatto",
    "uneat",
)
_WEIGHT_FILE = re.compile(r"/sys/kernel/mm/mempolicy/weighted_interleave/node([0-9]+)$")
_AUTO_WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave/auto"
_NOT_SIMULATED = {
    "create": "a guest_memfd of huge pages: recordings of conversion (datasets/recordings/conversion) are replayed with those",
    "anon": "anonymous memory of the host is not simulated",
    "memfd": "hugetlb files of the host are not simulated",
    "alias": "the file is not simulated",
    "unpin": "nothing that is simulated was pinned",
    "fill": "where memory ends depends on the background's use",
    "kvmcap": "VM_TYPES, the machine's answer, and capabilities given by number are not judged",
    "pool": "changes the host behind the files",
    "pools": "looks at the host",
    "numastat": "counters include the background's use",
    "meminfo": "free pages include the background's use",
    "kho": "looks at the host",
    "cat": "reads a file of the host",
    "pfns": "physical frame numbers depend on the boot",
    "sleep": "returns nothing",
}
"""Verbs of the recorder's language that a replay leaves out, and why; in every other line it is the verb itself."""


def to_scenario(
    recording: Recording, recorded: RecordedScenario, reasons: dict[int, str] | None = None
) -> tuple[sc.Scenario, list[int | None]]:
    """A scenario that replays a script, and for each recorded operation the number of ours (None: not simulated).

    ``reasons`` gets, by the number of a recorded operation that is not simulated, why it is not.
    """
    operations: list[sc.Operation] = []
    numbers: list[int | None] = []
    script = _Replay()
    for position, entry in enumerate(recorded.operations):
        try:
            script.require(entry)
            if entry.words[0] == "unpin" and entry.words[1] not in script.pins:
                raise Unknown(_NOT_SIMULATED["unpin"])
            operation = _translate(entry, script.sizes, recording)
            if isinstance(operation, sc.Pin) and entry.words[1] in script.memfds:
                # The engine holds pages of guest_memfd alone; of others a pin is the touch that it begins with.
                operation = sc.Fault(
                    **operation.model_dump(include={"task", "file", "offset", "length"}), by="host", write=True
                )
        except Unknown as unknown:
            script.note(entry)
            numbers.append(None)
            if reasons is not None:
                reasons[position] = str(unknown)
            continue
        except (ValueError, IndexError) as error:
            raise WorkbenchError(f"{recording.path.name}: {recorded.name}: {entry.text!r}: {error}") from None
        if isinstance(operation, (sc.Create, sc.CreateVm)):
            changed = isinstance(operation, sc.CreateVm) and entry.words[1] != script.vm_type
            if changed and script.created:
                script.unknown_machine = "a script whose virtual machine changes its type is replayed up to there"
            elif changed:
                script.vm_type = entry.words[1]
            script.created |= isinstance(operation, sc.Create)
        if isinstance(operation, (sc.Create, sc.Memfd)):
            (script.memfds.add if isinstance(operation, sc.Memfd) else script.memfds.discard)(entry.words[1])
        if isinstance(operation, sc.Pin) and entry.seen.get("errno") == 0:
            script.pins.setdefault(entry.words[1], []).append(operation)
        if isinstance(operation, sc.Memslot) and operation.backend in script.unknown_files:
            operation = operation.model_copy(update={"backend": None})
        numbers.append(len(operations))
        operations.append(operation)
        if entry.words[0] == "unpin":
            pins = script.pins.pop(entry.words[1])
            span = [{"file": pin.file, "offset": pin.offset, "length": pin.length} for pin in pins]
            operations[-1:] = [sc.Unpin(task=operation.task, **one) for one in span]
        if entry.words[0] == "reveal" and isinstance(operation, sc.Observe):
            # Whoever looks in this way takes the pages out.
            operations.append(sc.PunchHole(file=operation.file, offset=operation.offset, length=operation.length))
    first_cpu = min((cpu for node in recording.host.nodes for cpu in node.cpus), default=None)
    place = {"cpu": first_cpu} if first_cpu is not None else {"node": recording.host.nodes[0].id}
    tasks = tuple(sc.Task(name=f"t{number}", **place) for number in range(recorded.tasks))
    # The recorder's `convert` is the call on the descriptor, whatever a VMM would do on that kernel.
    in_place = any(isinstance(operation, sc.Convert) for operation in operations)
    scenario = sc.Scenario(
        name=f"{recording.topology}/{recorded.name}",
        host=recording.host,
        kernel_profile=recording.rules()[0] or None,
        boot=sc.Boot(weights=recording.weights or None, zonelists=recording.zonelists),
        guest=sc.Guest(
            memory=PAGE_SIZE, vm_type=script.vm_type, conversion=sc.Conversion(mode="in-place" if in_place else None)
        ),
        tasks=tasks,
        operations=tuple(operations) or (sc.Zones(),),
        output="runs",
        metadata="taken",
        strict=False,
    )
    return scenario, numbers


def _bytes(word: str) -> int:
    value = c_number(word[:-1]) if word.endswith("b") else c_number(word) * PAGE_SIZE
    return value & (2**64 - 1)  # the calls take unsigned long


def _policy(mode: str, nodes: str) -> dict[str, Any]:
    name, *flags = mode.split("|")
    known = [flag.lower() for flag in flags if flag.lower() in mp.MODE_FLAGS]
    if len(known) != len(flags):
        raise Unknown(f"mode flags {flags}")
    value: str | int = name.lower() if name.lower() in mp.MODES else c_number(name)
    return {"mode": value, "mode_flags": tuple(known), "nodes": "" if nodes in ("-", "none", "0x0") else nodes}


def _flags(word: str, names: Mapping[str, int]) -> int:
    return sum(names[part.lower()] if part.lower() in names else c_number(part) for part in set(word.split("|")))


_GMEM_FLAGS = {"mmap": 1, "shared": 2, "hugetlb_2m": 4, "hugetlb_1g": 4}
_ORDERS = {word: order for order, word in ORDERS.items()}


_COUNTERS = ("PageTables", "SecPageTables", "SReclaimable", "SUnreclaim")


def counters_of(entry: Recorded) -> dict[int, dict[str, int]]:
    """Pages by use that a ``nodestat``, or a ``cat`` of a node's meminfo, saw: by node, then by the kernel's name."""
    listed = entry.seen.get("counters")
    if isinstance(listed, dict):
        return {int(node): {name: int(values.get(name, 0)) for name in _COUNTERS} for node, values in listed.items()}
    matched = NODE_MEMINFO.match(entry.words[1]) if len(entry.words) > 1 else None
    found: dict[str, int] = {}
    for line in entry.seen.get("file") or ():
        words = str(line).split()
        if len(words) >= 4 and words[2].rstrip(":") in _COUNTERS and is_whole(words[3]):
            found[words[2].rstrip(":")] = int(words[3]) * 1024 // PAGE_SIZE
    return {int(matched.group(1)): found} if matched and len(found) == len(_COUNTERS) else {}


def created_shared(entry: Recorded) -> bool:
    """Whether a ``create`` line asks for pages that the host may touch (GUEST_MEMFD_FLAG_INIT_SHARED)."""
    return len(entry.words) > 3 and bool(_flags(entry.words[3], _GMEM_FLAGS) & _GMEM_FLAGS["shared"])


def _translate(entry: Recorded, sizes: dict[str, int], recording: Recording) -> sc.Operation:
    verb, *rest = entry.words
    arguments = [*rest, *["0"] * 8]
    common: dict[str, Any] = {"task": f"t{entry.task}"}
    on = {**common, "file": arguments[0]}
    if verb == "create" and "HUGETLB" in arguments[2] and "lacks" not in entry.seen:
        raise Unknown(_NOT_SIMULATED["create"])  # a kernel that has no such pages refused the flag, which is judged
    if verb == "create":
        sizes[arguments[0]] = c_number(arguments[1])
        return sc.Create(**on, size=c_number(arguments[1]) * PAGE_SIZE, raw_flags=_flags(arguments[2], _GMEM_FLAGS))
    if verb == "memfd" and len(rest) > 2:
        raise Unknown(_NOT_SIMULATED["memfd"])
    if verb == "vm":
        if entry.seen.get("errno") == 0 and rest[0] in ("none", "sw_protected"):
            return sc.CreateVm(**common)
        raise Unknown(f"virtual machines of type {rest[0]} are not replayed")
    if verb == "kvmcap" and rest[0].lower() in get_args(sc.CheckExtension.model_fields["capability"].annotation):
        return sc.CheckExtension(**common, capability=rest[0].lower())
    if verb == "slot":
        return sc.Memslot(**on, backend=arguments[1] if len(rest) > 1 else None)
    if verb == "attr":
        word = arguments[3]
        given: dict[str, Any] = {"private": word == "private"} if word in ("private", "shared") else {}
        raw = {} if given else {"raw_attributes": _number(word)}
        flags = {"raw_flags": _number(arguments[4])} if len(rest) > 4 else {}
        return sc.SetMemoryAttributes(
            **on, offset=_bytes(arguments[1]), length=_bytes(arguments[2]), **given, **raw, **flags
        )
    if verb == "convert":
        return sc.Convert(
            **on, offset=_bytes(arguments[1]), length=_bytes(arguments[2]),
            to="private" if arguments[3] == "private" else "shared",
        )  # fmt: skip
    if verb == "memfd":
        sizes[arguments[0]] = c_number(arguments[1])
        number = entry.seen.get("ino")
        return sc.Memfd(
            **on, size=c_number(arguments[1]) * PAGE_SIZE, inode=number if isinstance(number, int) else None
        )
    if verb == "preserve":
        return sc.Preserve(**on, token=c_number(arguments[1]))
    if verb == "kexec":
        return sc.Kexec(**common)
    if verb in ("finish", "close_session"):
        return sc.Finish(**common) if verb == "finish" else sc.CloseSession(**common)
    if verb == "retrieve":
        sizes[arguments[0]] = int(entry.seen.get("pages", 0))
        number = entry.seen.get("ino") or None
        return sc.Retrieve(**on, token=c_number(arguments[1]), inode=number if isinstance(number, int) else None)
    if verb == "alias":
        sizes[arguments[0]] = sizes.get(arguments[1], 0) if entry.seen.get("ret", 0) != -1 else 0
        return sc.Alias(**on, of=arguments[1])
    if verb == "mmap":
        return sc.Mmap(**on, private=arguments[1] == "private")
    if verb == "unmap" and not sizes.get(arguments[0]):
        raise Unknown("the probe unmaps a file that nobody ever made: a length of 0")
    if verb == "unmap":
        return sc.Munmap(**on)
    if verb == "close":
        return sc.Close(**on)
    if verb == "setpol":
        return sc.SetMempolicy(**common, **_policy(arguments[0], arguments[1]))
    if verb == "setcpu":
        return sc.SchedSetaffinity(**common, cpu=c_number(arguments[0]))
    if verb == "reset":
        return sc.ResetRotation(**common)
    if verb == "gettask":
        return sc.GetMempolicy(**common)
    if verb == "getil":
        return sc.GetMempolicy(**common, node=True)
    if verb == "cpuset":
        return sc.SetMemsAllowed(**common, mems=None if arguments[0] == "off" else arguments[0])
    if verb == "weights":
        if arguments[0] == "default":
            return sc.SetWeights(**common)
        pairs = [part.split(":") for part in arguments[0].split(",")]
        return sc.SetWeights(**common, weights={c_number(node): c_number(weight) for node, weight in pairs})
    if verb == "write" and (weight := _WEIGHT_FILE.match(arguments[0])):
        return sc.SetWeights(**common, weights={int(weight.group(1)): _number(arguments[1])})
    if verb == "write" and arguments[0] == _AUTO_WEIGHTS:
        return sc.SetAutoWeights(**common, value=arguments[1][:64])
    if verb == "migrate":
        return sc.MigratePages(**common, source=c_number(arguments[0]), target=c_number(arguments[1]))
    if verb in ("eat", "eatto"):
        amount = {"size" if verb == "eat" else "leave_free": c_number(arguments[1]) * PAGE_SIZE}
        return sc.Hog(**common, node=c_number(arguments[0]), bind=arguments[2] == "bind", **amount)
    if verb == "uneat":
        return sc.Unhog(**common)
    if verb == "zones":
        observed = entry.seen.get("zones")
        if not isinstance(observed, dict):
            return sc.Zones(**common)
        known = {label: {name: state[name] for name in sc.ZoneState.model_fields} for label, state in observed.items()}
        return sc.Zones(**common, observed=known)
    if verb == "nodestat" or (verb == "cat" and NODE_MEMINFO.match(arguments[0])):
        return sc.Zones(**common)  # looks at counters, which are compared
    if verb in ("place", "counts", "reveal"):
        start = c_number(arguments[1]) if len(rest) > 1 else 0
        count = c_number(arguments[2]) if len(rest) > 2 else sizes.get(arguments[0], 0) - start
        return sc.Observe(**on, offset=start * PAGE_SIZE, length=max(0, count) * PAGE_SIZE)
    if verb in ("getpol", "getnode"):
        return sc.GetMempolicy(**on, offset=c_number(arguments[1]) * PAGE_SIZE, node=verb == "getnode")
    if verb == "write":
        raise Unknown(f"{arguments[0]} is a file of the host that is not simulated")
    if verb == "unpin":
        return sc.Unpin(**on)
    if verb in _NOT_SIMULATED:
        raise Unknown(_NOT_SIMULATED[verb])
    if verb not in _RANGES:
        raise Unknown(f"{verb} is no verb that a replay knows")
    return _translate_range(verb, on, arguments, len(rest))


_RANGES = (
    "mbind", "home", "falloc", "punch", "touch", "rtouch", "prefault", "vtouch", "movepages", "madv", "pin", "odirect",
)  # fmt: skip


def _number(word: str) -> int:
    """A number as kstrtou8 reads it; -1 for a text that is none, which no weight is."""
    try:
        return int(word, 8) if re.fullmatch("[+]?0[0-7]{1,22}", word) else c_number(word)
    except ValueError:
        return -1


def _translate_range(verb: str, on: dict[str, Any], arguments: list[str], given: int) -> sc.Operation:
    where = {**on, "offset": _bytes(arguments[1]), "length": _bytes(arguments[2])}
    if verb == "mbind":
        return sc.Mbind(**where, **_policy(arguments[3], arguments[4]), raw_flags=_flags(arguments[5], mp.MBIND_FLAGS))
    if verb == "home":
        return sc.SetMempolicyHomeNode(**where, home_node=c_number(arguments[3]))
    if verb == "falloc":
        return sc.Fallocate(**where, mode=c_number(arguments[3]) if given > 3 else None)
    if verb == "punch":
        return sc.PunchHole(**where)
    if verb in ("touch", "rtouch"):
        order = _ORDERS.get(arguments[3], "sequential")
        extra: dict[str, Any] = {"seed": c_number(arguments[4])} if order == "random" else {}
        if order == "strided":
            extra = {"stride": max(1, c_number(arguments[4]))}
        return sc.Fault(**where, by="host", write=verb == "touch", order=order, **extra)
    if verb == "pin":
        return sc.Pin(**where)  # a pipe's references and those of io_uring are the same here: both fault the pages in
    if verb == "odirect":
        return sc.Fault(**where, by="host", write=True)
    if verb in ("prefault", "vtouch"):
        return sc.Fault(**where, by="prefault" if verb == "prefault" else "guest")
    if verb == "movepages":
        flags = _flags(arguments[4], mp.MBIND_FLAGS) if given > 4 else mp.MF_MOVE
        return sc.MovePages(**where, node=c_number(arguments[3]), move_all=bool(flags & mp.MF_MOVE_ALL))
    if verb == "madv":
        return sc.Madvise(**where, advice=c_number(arguments[3]))
    raise Unknown(verb)

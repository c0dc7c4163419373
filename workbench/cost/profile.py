"""Profiles of machines: measured curves, links, cores and queues; and classes, what is known of a generation.

A profile is one YAML file, written by hand from a publication, by ``workbench measure`` on the machine itself, or by
``workbench machines calibrate`` from the output of Mess or Intel MLC. Those in ``datasets/profiles`` are found by name,
and by the machine that they name. A class says what is known of a machine whose curves nobody has measured: values and
ranges of cost parameters for a processor generation, each with its sources (``datasets/profiles/classes.yaml``).
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from workbench import costs as cost_table
from workbench import replacing, safe_yaml
from workbench.bitmap_lists import parse_list
from workbench.cost import curves
from workbench.cost.curves import Family
from workbench.data import datasets_path
from workbench.errors import WorkbenchError, of_file
from workbench.files import is_file, read_file, real_path, whole_file
from workbench.limits import PROFILE_BYTES
from workbench.names import near, unknown
from workbench.texts import Name, Prose
from workbench.topology.host import Hardware, Kind, machine_names
from workbench.topology.known import generations, profile_names
from workbench.units import parse_number
from workbench.validation import first_line, no_truth, number_only, whole_only

if TYPE_CHECKING:
    from workbench.topology.host import Host


Number = Annotated[float, BeforeValidator(number_only)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, BeforeValidator(no_truth), Field(ge=0, le=100)]
"""A key: written as JSON has it, it is a text."""
Whole = Annotated[int, BeforeValidator(whole_only)]
Count = Annotated[Whole, Field(ge=1)]
NodeId = Annotated[Whole, Field(ge=0)]
Peaks = dict[Percent, Positive]
"""Share of reads in per cent -> MB/s."""
CSV_COLUMNS = ("read_percent", "bandwidth_gb_per_s", "latency_ns")


def _nodes(value: object) -> object:
    return tuple(parse_list(value)) if isinstance(value, str) else (value,) if isinstance(value, int) else value


Nodes = Annotated[tuple[Whole, ...], BeforeValidator(_nodes)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ENDS_BELOW = 1.02
"""Curves end below the bandwidth where that is more than this times their peak."""


class _Curved(_Model):
    """What memories and links have in common.

    ``curves``: share of reads in per cent -> points (MB/s, ns) in the order of growing traffic; ``curves_file``: the same
    as CSV beside the profile.
    """

    idle_latency: Positive | None = Field(None, description="ns of an access without load")
    bandwidth: Positive | None = Field(None, description="MB/s of reads alone")
    peaks: Peaks = Field({}, description="highest MB/s by share of reads in per cent")
    curves: dict[Percent, tuple[tuple[Number, Number], ...]] = {}
    curves_file: str | None = None
    spread: Positive | None = Field(None, le=1, description="relative standard deviation of repeated measurements")

    @model_validator(mode="after")
    def _says_something(self) -> _Curved:
        if self.idle_latency is None and self.bandwidth is None and not self.peaks and not self.curves:
            if self.curves_file is None:
                raise ValueError("needs idle_latency, bandwidth, peaks, curves or curves_file")
        return self

    def family(self) -> Family | None:
        """Its curves, if it has some; up to its bandwidth, where they end below."""
        if not self.curves:
            return None
        found = curves.family(self.curves)
        short = self.bandwidth is not None and self.bandwidth > ENDS_BELOW * found.peaks[-1]
        return found.beyond(self.bandwidth) if short and self.bandwidth is not None else found


class Memory(_Curved):
    """Memory of some nodes, or of all of a kind, as the nearest CPUs see it."""

    kind: Kind = "dram"
    nodes: Nodes | None = None

    @model_validator(mode="after")
    def _names_nodes(self) -> Memory:
        if self.nodes is not None:
            if not self.nodes:
                raise ValueError("nodes: none; leave it out for all nodes of the kind")
            if min(self.nodes) < 0:
                raise ValueError(f"nodes: {min(self.nodes)} is no node; ids are 0 or more")
            if len(set(self.nodes)) < len(self.nodes):
                raise ValueError(f"nodes: {', '.join(map(str, self.nodes))} names a node twice")
        return self


class Link(_Curved):
    """The way from CPUs of one node to memory of another, or of all pairs at one SLIT distance."""

    distance: Whole | None = Field(None, ge=10, le=255)
    initiator: NodeId | None = None
    target: NodeId | None = None

    @model_validator(mode="after")
    def _names_pairs(self) -> Link:
        if (self.distance is None) == (self.initiator is None or self.target is None):
            raise ValueError("needs either distance, or initiator and target")
        if self.initiator is not None and self.initiator == self.target:
            raise ValueError(f"target: {self.target} is the initiator; its own memory is described under memories")
        return self


class Cores(_Model):
    """What the cores of a node can ask for."""

    lines_streaming: Positive | None = Field(None, description="64-byte lines one core keeps in flight when it streams")
    lines_random: Positive | None = Field(None, description="lines in flight of independent random accesses")
    group: Count | None = Field(None, description="cores of a group with a common cap (CCD, half of a sub-cluster)")
    threads: Count = Field(1, description="CPUs of a core")
    group_peaks: Peaks = {}
    by_threads: dict[Annotated[int, BeforeValidator(no_truth), Field(ge=1)], Positive] = Field(
        {}, description="MB/s of reads by number of threads"
    )

    @model_validator(mode="after")
    def _group_has_cap(self) -> Cores:
        if (self.group is None) != (not self.group_peaks):
            raise ValueError("group and group_peaks come together")
        if not self.model_dump(exclude_defaults=True):
            raise ValueError(f"says nothing; it needs one of {', '.join(type(self).model_fields)}")
        return self


def _once(described: dict[object, str], what: str, where: str) -> None:
    if what in described:
        raise ValueError(f"{where}: {what} is described twice, first by {described[what]}")
    described[what] = where


_DESCRIBING = ("memories", "links", "cores", "port_bandwidth", "queue_lines", "first_touch", "costs")


class Profile(_Model):
    """Measured figures of one machine. MB/s are 10^6 bytes per second."""

    name: Name = Field(min_length=1, max_length=200)
    title: Name = ""
    source: Prose = Field(min_length=1)
    note: Prose = ""
    machines: tuple[Name, ...] = Field((), description="machines in datasets/machines that it describes")
    memories: tuple[Memory, ...] = ()
    links: tuple[Link, ...] = ()
    cores: Cores | None = None
    port_bandwidth: Positive | None = Field(None, description="MB/s of all links of a node together")
    queue_lines: Positive | None = Field(None, description="requests of a socket to all memories that fit in its queue")
    first_touch: dict[Literal["4 KiB", "2 MiB", "1 GiB"], Positive] = Field(
        {}, description="ns per 4 KiB made present, by page size"
    )
    costs: dict[str, Positive] = Field({}, description="other parameters of workbench.costs measured on the machine")
    not_measured: tuple[Name, ...] = Field((), description="what could not be bound, pinned or repeated, and why")

    @model_validator(mode="after")
    def _describes_something(self) -> Profile:
        if not any(getattr(self, part) for part in _DESCRIBING):
            raise ValueError(f"describes nothing; it needs one of {', '.join(_DESCRIBING)}")
        return self

    @field_validator("machines")
    @classmethod
    def _known_machines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in machine_names():
                raise ValueError(unknown(name, machine_names()))
            if value.count(name) > 1:
                raise ValueError(f"{name} is named twice")
        return value

    @model_validator(mode="after")
    def _known_costs(self) -> Profile:
        for name in self.costs:
            if name not in cost_table.COSTS:
                raise ValueError(f"costs: {name!r} is unknown; known are {', '.join(cost_table.COSTS)}")
        return self

    @model_validator(mode="after")
    def _says_it_once(self) -> Profile:
        described: dict[object, str] = {}
        for at, memory in enumerate(self.memories):
            for what in [f"all {memory.kind} nodes"] if memory.nodes is None else [f"node {n}" for n in memory.nodes]:
                _once(described, what, f"memories.{at}")
        for at, link in enumerate(self.links):
            pair = f"the way from node {link.initiator} to node {link.target}"
            _once(described, pair if link.distance is None else f"distance {link.distance}", f"links.{at}")
        return self


def peaks_of(peaks: Mapping[float, float], shape: np.ndarray) -> tuple[float, np.ndarray]:
    """Bandwidth of reads alone and the shape over :data:`curves.MIXES` from highest MB/s by share of reads.

    Parameters
    ----------
    shape : float64 (mixes,), what to follow beyond the measured shares
    """
    at = np.array(sorted(peaks)) / 100.0
    values = np.array([peaks[share] for share in sorted(peaks)], float)
    factor = np.interp(curves.MIXES, at, values / np.interp(at, curves.MIXES, shape))
    out = factor * shape
    return float(out[-1]), out / out[-1]


def _text(path: Path, field: str) -> str:
    try:
        return read_file(path, PROFILE_BYTES, field).decode("utf-8")
    except UnicodeDecodeError:
        raise WorkbenchError(f"{field}: {path} is not text") from None


@contextlib.contextmanager
def _no_csv(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise WorkbenchError(f"curves: {path}: no CSV: {error}") from None


def read_curves(path: Path) -> dict[float, list[tuple[float, float]]]:
    """Curves of a CSV with columns read_percent, bandwidth_gb_per_s, latency_ns: share -> (MB/s, ns)."""
    found: dict[float, list[tuple[float, float]]] = {}
    with io.StringIO(_text(path, "curves"), newline="") as file, _no_csv(path):
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not set(CSV_COLUMNS) <= set(reader.fieldnames):
            raise WorkbenchError(f"curves: {path}: line 1: columns must be {', '.join(CSV_COLUMNS)}")
        for number, row in enumerate(reader, 2):
            try:
                share, speed, latency = (parse_number(row[name].strip()) for name in CSV_COLUMNS)
            except (AttributeError, ValueError):
                raise WorkbenchError(f"curves: {path}: line {number}: three numbers are expected") from None
            found.setdefault(share, []).append((1000.0 * speed, latency))
    return found


def write_curves(path: Path, points: Mapping[float, Any]) -> None:
    """Write curves as :func:`read_curves` reads them."""
    lines = [",".join(CSV_COLUMNS)]
    for share in sorted(points):
        lines += [f"{share:g},{speed / 1000.0:.6g},{latency:.6g}" for speed, latency in points[share]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_COMMAND = "measure or machines calibrate"


def write_profile(made: Profile, path: Path) -> None:
    """Write a profile as YAML, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(profile_text(made), encoding="utf-8")


def profile_text(made: Profile) -> str:
    """A profile as YAML, signed, so that it can be told from one that was edited."""
    text = safe_yaml.dump(
        made.model_dump(mode="json", exclude_defaults=True), allow_unicode=True, width=120, default_flow_style=None,
    )  # fmt: skip
    return replacing.signed(_COMMAND, text)


def check_replaceable(path: Path, force: bool) -> None:
    """Whether a profile may be written here: nothing is there, or one that nobody has edited. Raises WorkbenchError if not."""
    if path.suffix not in (".yaml", ".yml"):
        raise WorkbenchError(f"--output: {path.name!a} must end in .yaml")
    replacing.check(path, lambda place: replacing.is_signed(place, _COMMAND, PROFILE_BYTES),
                    "profile as it was written", force=force, field="--output")  # fmt: skip


def from_mapping(document: object, name: str = "profile", folder: Path | None = None) -> Profile:
    """A profile from its fields; ``curves_file`` entries are read from ``folder``."""
    if not isinstance(document, dict):
        raise WorkbenchError(f"profile: {name} holds no mapping")
    document = {**document}
    for part in ("memories", "links"):
        given = document.get(part)
        entries = []
        for entry in given if isinstance(given, list | tuple) else ():
            if isinstance(entry, dict) and entry.get("curves_file") and folder is not None:
                path = folder / str(entry["curves_file"])
                if not is_file(path):
                    raise WorkbenchError(f"profile: {name}: {part}.curves_file: {path} does not exist")
                entry = {**entry, "curves": read_curves(path)}
            entries.append(entry)
        if entries:
            document[part] = entries
    try:
        made = Profile.model_validate(document)
    except ValidationError as error:
        raise WorkbenchError(f"profile: {name}: {first_line(error, Profile)}") from None
    for part in ("memories", "links"):
        for at, entry in enumerate(getattr(made, part)):
            try:
                entry.family()
            except WorkbenchError as error:
                raise WorkbenchError(f"profile: {name}: {part}.{at}: {error}") from None
    return made


@functools.lru_cache(maxsize=64)
def _from_file(path: Path, _changed: int) -> Profile:
    text = _text(path, "profile")
    with of_file(path.name):
        try:
            return from_mapping(safe_yaml.load(f"{text}\n", "profile"), path.name, path.parent)
        except WorkbenchError as error:
            said = str(error).replace(f"profile: {path.name}: ", "profile: ", 1)
            raise WorkbenchError(
                said, error.at or safe_yaml.line_of(text, re.findall(r"\w+", said[:200])[1:])
            ) from None


def read_profile(name: str | Path) -> Profile:
    """A profile by name, or from a YAML file."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not is_file(path):
            raise WorkbenchError(f"profile: {path} does not exist")
    elif str(name) in profile_names():
        path = datasets_path("profiles", f"{name}.yaml")
    else:
        raise WorkbenchError(
            f"profile: {str(name)[:60]!r} is not known, nor is it a file (*.yaml); {near(str(name), profile_names())}"
            f"there are {', '.join(profile_names())}"
        )
    return _from_file(path, path.stat().st_mtime_ns)


def with_profile(host: Host, name: str | Path) -> Host:
    """The host with a profile by name or file, which the cost model then uses; it must exist."""
    read_profile(name)
    path = Path(name)
    kept = str(real_path(path)) if path.suffix in (".yaml", ".yml") else str(name)
    known = host.hardware or Hardware()
    return host.model_copy(update={"hardware": known.model_copy(update={"profile": kept})})


def profile_of(machine: str) -> Profile | None:
    """The profile that names this machine, if there is one."""
    name = _profile_by_machine().get(machine)
    if not name:
        return None
    path = datasets_path("profiles", f"{name}.yaml")
    return _from_file(path, path.stat().st_mtime_ns)


@functools.cache
def _profile_by_machine() -> dict[str, str]:
    return {machine: name for name in profile_names() for machine in read_profile(name).machines}


# --------------------------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class MachineClass:
    """What is known of a generation of machines.

    channels, mts : memory channels of a socket and MT/s; None where not known
    core_group, threads : cores of a group with a common cap (None: no cap), CPUs of a core
    costs : parameters with the ranges of this class
    family : curves of a machine of this class
    buffered : whether its memory is behind buffers
    usual_channels, usual_mts : from and to, where a class has neither but others like it do
    """

    name: str
    title: str
    channels: int | None
    mts: float | None
    core_group: int | None
    threads: int
    costs: Mapping[str, cost_table.Cost]
    family: curves.Family | None
    buffered: bool
    usual_channels: tuple[float, float] | None = None
    usual_mts: tuple[float, float] | None = None

    def parameters(
        self, sockets: int, dram_nodes: int, channels: int | None = None, mts: float | None = None
    ) -> dict[str, cost_table.Cost]:
        """All cost parameters, those of the class in place of the general ones.

        Parameters
        ----------
        sockets, dram_nodes : of the host; channels are shared evenly by the DRAM nodes of a socket
        channels, mts : of a socket of the host, where they are known
        """
        out = {**cost_table.COSTS, **self.costs}
        wide = _ends(channels or self.channels, self.usual_channels)
        fast = _ends(mts or self.mts, self.usual_mts)
        if wide and fast:
            use, one = out["channel_efficiency"], 8.0 * sockets / max(1, dram_nodes)
            low, high = (one * wide[end] * fast[end] for end in (0, 1))
            out["dram_bandwidth"] = cost_table.Cost(
                "dram_bandwidth", float(np.sqrt(low * high)) * use.value, "MB/s", low * use.low, high * use.high,
                f"{_range(wide)} channels of {_range(fast)} MT/s a socket; used part: {use.source}",
            )  # fmt: skip
        return out


def _ends(known: float | None, usual: tuple[float, float] | None) -> tuple[float, float] | None:
    return (float(known), float(known)) if known else usual


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"


@functools.cache
def classes() -> dict[str, MachineClass]:
    """Classes by name."""
    found = {}
    for name, entry in generations().items():
        overlay = {}
        for parameter, (value, low, high, source) in entry.get("costs", {}).items():
            general = cost_table.COSTS[parameter]
            overlay[parameter] = cost_table.Cost(
                parameter, float(value), general.unit, float(low), float(high), f"{entry['title']}: {source}"
            )
        like = entry.get("curves_of")
        family = read_profile(like).memories[0].family() if like else None
        found[name] = MachineClass(
            name, entry["title"], entry.get("channels"), entry.get("mts"), entry.get("core_group"),
            int(entry.get("threads", 2)), overlay, family, bool(entry.get("buffered")),
        )  # fmt: skip
    return found


KINDS_OF_DRAM = (
    ("DDR2 or older", 0.0, 1000.0), ("DDR3", 1000.0, 2000.0), ("DDR4", 2000.0, 3600.0), ("DDR5 or newer", 3600.0, np.inf),
)  # fmt: skip
"""Kind of memory, and the MT/s from which and below which it is of that kind."""
OF_MEMORY = ("dram_latency", "channel_efficiency", "remote_latency_ratio", "mixed_bandwidth")
"""Parameters that are known of memory whose generation of processor is not."""


@functools.lru_cache(maxsize=64)
def class_of_memory(channels: int | None, mts: float | None) -> MachineClass | None:
    """What is known of DRAM whose processor nobody names: what classes have in common that use the same kind of it.

    The kind follows from the speed; where only the number of channels is known, classes with as many stand for it. The value
    is the mean of theirs in the logarithm, the range goes from the least to the greatest of theirs. None where no class has
    such memory. Memory behind buffers (``buffered``) is slower than its kind and left out.
    """
    direct = [one for one in classes().values() if one.channels and one.mts and not one.buffered]
    if mts is not None:
        name, least, beyond = next((kind for kind in KINDS_OF_DRAM if kind[1] <= mts < kind[2]), ("", 0.0, 0.0))
        like = [one for one in direct if one.mts is not None and least <= one.mts < beyond]
    else:
        name, like = f"{channels} channels", [one for one in direct if one.channels == channels]
    if not like:
        return None
    overlay = {}
    for parameter in OF_MEMORY:
        mine = [one.costs[parameter] for one in like if parameter in one.costs]
        if not mine:
            continue
        value = float(np.exp(np.mean([np.log(cost.value) for cost in mine])))
        low, high = min(cost.low for cost in mine), max(cost.high for cost in mine)
        source = f"estimate: {len(mine)} classes of processors with {name}"
        overlay[parameter] = cost_table.Cost(parameter, value, mine[0].unit, low, high, source)
    ends = [(float(one.channels or 0), float(one.mts or 0)) for one in like]
    return MachineClass(
        name, f"memory: {name}", None, None, None, 2, overlay, None, False,
        usual_channels=(min(c for c, _ in ends), max(c for c, _ in ends)),
        usual_mts=(min(m for _, m in ends), max(m for _, m in ends)),
    )  # fmt: skip


@functools.cache
def _class_of_machine() -> dict[str, str]:
    return {machine: name for name, entry in generations().items() for machine in entry.get("machines", ())}


def class_of(name: str, machine: str = "") -> MachineClass | None:
    """A class by name, or that of a machine in ``datasets/machines``; None if there is none."""
    if name:
        if name not in classes():
            raise WorkbenchError(f"class: {name!r} is unknown; known are {', '.join(classes())}")
        return classes()[name]
    listed = _class_of_machine().get(machine)
    return classes()[listed] if listed else None

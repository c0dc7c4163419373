"""The host: NUMA nodes with their memory and CPUs, SLIT distances, and what is known of bandwidth and latency.

Node ids are Linux's: they may be sparse, nodes may have no memory or no CPUs, and distances may be asymmetric. Linux
itself has them in ``/sys/devices/system/node``; the readers are in :mod:`workbench.topology.readers`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench import shown
from workbench.bitmap_lists import format_list, parse_list
from workbench.data import datasets_path
from workbench.errors import WorkbenchError, of_file
from workbench.files import is_there, read_file
from workbench.limits import MAX_CPUS, MAX_NUMNODES, NODE_PAGES, RATE, XML_BYTES
from workbench.names import near, unknown
from workbench.texts import Name, Prose
from workbench.topology import known, readers, trees
from workbench.topology.common import LOCAL_DISTANCE, Described
from workbench.topology.sysfs import read_tree
from workbench.units import PAGE_SIZE, parse_bytes
from workbench.validation import each_once, first_line, number_only, truth_only, whole_only

Kind = Literal["dram", "hbm", "cxl", "nvm", "gpu"]
MigrateType = Literal["Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate"]


Whole = Annotated[int, BeforeValidator(whole_only)]
Pages = Annotated[Whole, Field(ge=0, le=NODE_PAGES)]
Measured = Annotated[float, BeforeValidator(number_only), Field(gt=0, le=RATE)]
"""A figure of memory that is there: what firmware does not know it prints as 0, and readers of its tables leave out."""


def _from_to(value: object) -> object:
    """A number, or a list of two, the lower one first."""
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2:
        raise ValueError(f"must be a number, or from and to, not {len(ends)} values")
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int | float) or not 0 < end <= RATE:
            raise ValueError(f"must be a number above 0, or from and to, not {ascii(end)[:60]}")
    if ends[0] > ends[1]:
        raise ValueError(f"{ends[0]} to {ends[1]} runs backwards; the lower figure comes first")
    return value


Figure = Annotated[float | tuple[float, float], BeforeValidator(_from_to)]
"""One number, or from and to."""
FreeBlocks = Annotated[tuple[Pages, ...], Field(max_length=16)]


def _cpus(value: object) -> object:
    """A list as Linux writes it, or nothing; sequences pass through."""
    return () if value is None else parse_list(value) if isinstance(value, str) else value


Cpus = Annotated[tuple[Whole, ...], BeforeValidator(_cpus)]


def _whole_distances(value: object) -> object:
    """All of a matrix in one pass: large ones have a million of them."""
    for i, row in enumerate(value if isinstance(value, list | tuple) else ()):
        for j, one in enumerate(row if isinstance(row, list | tuple) else ()):
            if isinstance(one, bool | str | float):
                raise ValueError(f"[{i}][{j}]: must be a whole number, not {ascii(one)[:60]}; distances are 10 to 255")
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Zone(_Model):
    """One zone of a node, in pages, as /proc/zoneinfo prints it."""

    name: Literal["DMA", "DMA32", "Normal", "Movable"]
    managed: Pages
    free: Pages
    min: Pages
    low: Pages
    high: Pages
    free_cma: Pages = Field(0, description="of free, what unmovable allocations never get (nr_free_cma)")
    free_blocks: FreeBlocks | None = Field(None, description="free blocks of 2^n pages, as /proc/buddyinfo counts them")
    free_by_type: dict[MigrateType, FreeBlocks] | None = Field(None, description="the same by /proc/pagetypeinfo")

    def pages_of_type(self, kind: MigrateType) -> int:
        """Free pages in blocks of a migrate type; 0 where /proc/pagetypeinfo was not read."""
        return sum(count << order for order, count in enumerate((self.free_by_type or {}).get(kind, ())))

    @model_validator(mode="after")
    def _free_fits(self) -> Zone:
        if self.free > self.managed:
            raise ValueError(f"zone {self.name}: free {self.free} is more than managed {self.managed}")
        if self.free_cma > self.free:
            raise ValueError(f"zone {self.name}: free_cma {self.free_cma} is more than free {self.free}")
        return self


class HugetlbPool(_Model):
    """The pool of one huge page size on a node, in pages of that size (nodeN/hugepages)."""

    page_bytes: Whole = Field(ge=PAGE_SIZE, le=1 << 40)
    total: Pages
    free: Pages
    surplus: Pages = 0

    @model_validator(mode="after")
    def _free_fits(self) -> HugetlbPool:
        if self.free > self.total:
            raise ValueError(f"free {self.free} is more than total {self.total}")
        return self


class Node(_Model):
    """One NUMA node. ``movable``: all its memory was onlined as ZONE_MOVABLE, which guest_memfd cannot use."""

    id: Whole = Field(ge=0, lt=MAX_NUMNODES)
    memory_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(description="bytes, whole 4 KiB pages")
    cpus: Cpus = ()
    kind: Kind = "dram"
    movable: Annotated[bool, BeforeValidator(truth_only)] = False
    free_bytes: Annotated[int, BeforeValidator(parse_bytes)] | None = None
    zones: tuple[Zone, ...] | None = None
    hugetlb: tuple[HugetlbPool, ...] = Field((), description="huge page pools of the host as it is")
    weight: Whole | None = Field(None, ge=1, le=255, description="of weighted interleaving, as the host has it now")
    assumed: Annotated[tuple[Literal["kind", "movable", "cpus"], ...], AfterValidator(each_once)] = Field(
        (), description="of memory without CPUs, what its source does not say; cpus: a lower node lists them, too"
    )

    @field_validator("cpus")
    @classmethod
    def _cpu_numbers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for cpu in value:
            if not 0 <= cpu < MAX_CPUS:
                raise ValueError(f"CPU {cpu} is not allowed; CPUs are 0 to {MAX_CPUS - 1}")
        return value

    @field_validator("memory_bytes")
    @classmethod
    def _whole_pages(cls, value: int) -> int:
        if value % PAGE_SIZE:
            raise ValueError(f"{value} is not a multiple of the page size {PAGE_SIZE}")
        if value > 1 << 52:
            raise ValueError(f"{value} bytes is more than 4 PiB")
        return value

    @model_validator(mode="after")
    def _free_fits(self) -> Node:
        if self.free_bytes is not None and self.free_bytes > self.memory_bytes:
            raise ValueError(f"free_bytes {self.free_bytes} is more than memory_bytes {self.memory_bytes}")
        names = [zone.name for zone in self.zones or ()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"zones: {name} is there twice")
        managed = sum(zone.managed for zone in self.zones or ())
        if managed * PAGE_SIZE > self.memory_bytes + (self.memory_bytes >> 6):
            raise ValueError(f"zones: {managed} managed pages are more than memory_bytes {self.memory_bytes}")
        return self


_FIGURES = ("read_bandwidth", "write_bandwidth", "read_latency", "write_latency")


class AccessCoordinate(_Model):
    """Bandwidth and latency of one target as an initiator sees it (HMAT, access class 1: CPUs)."""

    initiator: Whole
    target: Whole
    read_bandwidth: Measured | None = Field(None, description="MB/s")
    write_bandwidth: Measured | None = Field(None, description="MB/s")
    read_latency: Measured | None = Field(None, description="ns")
    write_latency: Measured | None = Field(None, description="ns")


class Hardware(_Model):
    """What narrows the estimates of the cost model (:mod:`workbench.cost.machine`).

    ``generation`` is a class of ``datasets/profiles/classes.yaml``; ``profile`` a measured profile, by name or file.
    """

    generation: str | None = Field(None, max_length=100)
    channels: Annotated[Whole, Field(ge=1, le=64)] | None = Field(
        None, description="memory channels of a socket that hold memory"
    )
    mts: Annotated[float, BeforeValidator(number_only), Field(gt=0, le=100_000)] | None = Field(
        None, description="MT/s of the memory"
    )
    profile: str | None = Field(None, max_length=4096)

    @field_validator("generation")
    @classmethod
    def _known_generation(cls, value: str | None) -> str | None:
        if value is not None and value not in known.generations():
            raise ValueError(unknown(value, known.generations()))
        return value

    @field_validator("profile")
    @classmethod
    def _known_profile(cls, value: str | None) -> str | None:
        """Files are looked for where they are read: a result travels to where they are not."""
        if value is not None and not value.endswith((".yaml", ".yml")) and value not in known.profile_names():
            raise ValueError(unknown(value, known.profile_names(), "it is no file (*.yaml), and there are"))
        return value


class Host(_Model):
    """A machine: nodes in ascending order of id and the distances between them in that order."""

    name: Name = Field(max_length=200)
    nodes: tuple[Node, ...] = Field(min_length=1, max_length=MAX_NUMNODES)
    distances: Annotated[tuple[tuple[int, ...], ...], BeforeValidator(_whole_distances)]
    title: Name = ""
    source: Prose | None = None
    note: Prose | None = None
    assumed: Annotated[tuple[Name, ...], AfterValidator(each_once)] = Field(
        (), description="fields that the source does not give and we assume"
    )
    access: tuple[AccessCoordinate, ...] = ()
    transparent_hugepages: Literal["always", "madvise", "never"] | None = Field(
        None, description="of anonymous memory, as the host has it now (transparent_hugepage/enabled)"
    )
    hugetlb_promised: dict[Annotated[int, Field(ge=PAGE_SIZE, le=1 << 40)], Pages] = Field(
        {}, description="huge pages by their bytes that are free and promised to somebody (resv_hugepages)"
    )
    hardware: Hardware | None = Field(
        None, description="what is known of the processor and its memory, for the cost model"
    )
    figures: dict[Literal["bandwidth", "latency"], dict[Name, Figure]] = Field(
        {}, description="published bandwidth (GB/s) and latency (ns) of the whole machine; shown, not used"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Host:
        ids = [node.id for node in self.nodes]
        for before, node in zip(sorted(ids), sorted(ids)[1:], strict=False):
            if before == node:
                raise ValueError(f"nodes: id {node} is there twice")
        size = len(ids)
        if len(self.distances) != size or any(len(row) != size for row in self.distances):
            shape = f"{len(self.distances)} rows of {sorted({len(row) for row in self.distances})}"
            raise ValueError(f"distances: {shape} for {size} nodes; the matrix must be square, {size} x {size}")
        for i, row in enumerate(self.distances):
            for j, value in enumerate(row):
                if not LOCAL_DISTANCE <= value <= 255:
                    raise ValueError(f"distances[{i}][{j}]: {value} is not allowed; distances are 10 to 255")
            if row[i] != LOCAL_DISTANCE:
                raise ValueError(f"distances[{i}][{i}]: {row[i]}; the distance of a node to itself is 10")
        seen: dict[int, int] = {}
        for node_ in self.nodes:
            for cpu in node_.cpus:
                if cpu in seen:
                    raise ValueError(f"nodes: CPU {cpu} is on node {seen[cpu]} and on node {node_.id}")
                seen[cpu] = node_.id
        if not any(node_.memory_bytes for node_ in self.nodes):
            raise ValueError("nodes: none has memory")
        there = set(ids)
        pairs: set[tuple[int, int]] = set()
        for access in self.access:
            if (access.initiator, access.target) in pairs:
                raise ValueError(f"access: nodes {access.initiator} -> {access.target} are there twice")
            pairs.add((access.initiator, access.target))
            if access.initiator not in there or access.target not in there:
                raise ValueError(f"access: nodes {access.initiator} -> {access.target} are not both on this host")
            if not any(getattr(access, field) for field in _FIGURES):
                raise ValueError(f"access: nodes {access.initiator} -> {access.target}: needs {' or '.join(_FIGURES)}")
        if ids != sorted(ids):  # nodes and matrix are kept in ascending order of id, as Linux walks them
            order = sorted(range(size), key=ids.__getitem__)
            object.__setattr__(self, "nodes", tuple(self.nodes[i] for i in order))
            object.__setattr__(self, "distances", tuple(tuple(self.distances[i][j] for j in order) for i in order))
        guessed = [field for node_ in self.nodes for field in node_.assumed]
        object.__setattr__(self, "assumed", tuple(dict.fromkeys([*self.assumed, *guessed])))
        return self

    def assumptions(self) -> list[str]:
        """One line for each thing that the source does not say and that counts for placement or cost."""
        lines = []
        if "distances" in self.assumed:
            lines.append("distances: not in the source; 10 to itself and 20 to every other node, as Linux takes them")
        shared = [node.id for node in self.nodes if "cpus" in node.assumed]
        missing = [
            field for field in ("cpus", "memory_bytes") if field in self.assumed and not (field == "cpus" and shared)
        ]
        lines += [f"{field}: not in the source" for field in missing]
        if shared:
            lines.append(
                f"cpus of node{'s' * (len(shared) > 1)} {format_list(shared)}: a lower node lists some of them, too, and "
                "has them alone, as numa_node_id() answers with numa=fake"
            )
        if "memory" in self.assumed:
            lines.append("memory: what firmware reports; the kernel's own part is not taken off")
        alike: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for node in self.nodes:
            if unsaid := tuple(field for field in node.assumed if field != "cpus"):
                alike.setdefault((node.kind, unsaid), []).append(node.id)
        for (kind, fields), nodes in alike.items():
            taken = {"kind": f"taken as {kind}", "movable": "memory taken as not movable"}
            if any(node.movable for node in self.nodes if node.id in nodes):
                taken["movable"] = "memory taken as movable"
            lines.append(
                f"{' and '.join(fields)} of node{'s' * (len(nodes) > 1)} {format_list(nodes)}: memory without CPUs of "
                f"which the source does not say it; {', '.join(taken[field] for field in fields)}"
            )
        return lines

    def _repr_html_(self) -> str:
        return shown.host(self)

    @property
    def node_ids(self) -> npt.NDArray[np.int64]:
        """Linux node ids, int64 (nodes,), ascending."""
        return np.array([node.id for node in self.nodes], np.int64)

    @property
    def distance_matrix(self) -> npt.NDArray[np.int64]:
        """SLIT distances, int64 (nodes, nodes), in the order of ``nodes``."""
        return np.array(self.distances, np.int64)

    def index_of(self, node_id: int) -> int:
        """Position of a node id in ``nodes``."""
        for index, node in enumerate(self.nodes):
            if node.id == node_id:
                return index
        raise WorkbenchError(f"node {node_id} is not on this host; it has {[node.id for node in self.nodes]}")

    def node_of_cpu(self, cpu: int) -> int:
        """Id of the node that a CPU belongs to."""
        for node in self.nodes:
            if cpu in node.cpus:
                return node.id
        raise WorkbenchError(f"CPU {cpu} is not on this host")

    @property
    def memory_bytes(self) -> int:
        """Memory of all nodes together."""
        return sum(node.memory_bytes for node in self.nodes)

    @classmethod
    def from_mapping(cls, mapping: object, field: str = "host") -> Host:
        """Validate a mapping; errors are one line that names the field."""
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            said = first_line(error, cls, field)
            found = re.match(r"(?:: |[.])?([\w.[\]]+)", said.removeprefix(field))
            keys = re.findall(r"\w+", found[1]) if found else []
            raise WorkbenchError(said, mapping.line_of(keys) if isinstance(mapping, Described) else 0) from None

    @classmethod
    def from_machine(cls, name: str) -> Host:
        """A machine of ``datasets/machines`` by name, ``this`` machine, or whatever file or directory has this name."""
        if name in machine_names():
            return cls.from_yaml(datasets_path("machines") / f"{name}.yaml")
        if name == "this":
            return cls.from_sysfs()
        if is_there(name):
            return cls.from_file(name)
        names = machine_names()
        raise WorkbenchError(
            f"machine: {name[:60]!r} is not known, nor is it a file; {near(name, names)}`workbench machines` lists "
            f"{len(names)}"
        )

    @classmethod
    def from_file(cls, source: str | Path) -> Host:
        """Whatever people have: see :mod:`workbench.topology.readers`."""
        path = Path(source)
        found = readers.read(path)
        with of_file(path.name or str(path)):
            return cls.from_mapping(found, "host")

    @classmethod
    def from_yaml(cls, source: str | Path) -> Host:
        """A host from a YAML file or text with the fields of this class."""
        from workbench.safe_yaml import load

        return cls.from_mapping(load(source, "host"))

    @classmethod
    def from_sysfs(cls, root: str | Path = "/sys") -> Host:
        """This machine, or a copy: ``root`` is the directory that holds ``devices/``, or its parent."""
        with of_file(str(root)):
            return cls.from_mapping(read_tree(trees.folder_tree(Path(root))), "sysfs")

    @classmethod
    def from_numactl(cls, text: str) -> Host:
        """The output of ``numactl --hardware``, with that of ``lscpu`` if it is there."""
        with of_file("numactl"):
            return cls.from_mapping(readers.read_numactl_text(text), "host")

    @classmethod
    def from_hwloc_xml(cls, source: str | Path) -> Host:
        """A file written by ``lstopo --of xml``."""
        path = Path(source)
        content = read_file(path, XML_BYTES, "hwloc")
        with of_file(path.name):
            return cls.from_mapping(readers.read_xml(content, path.name), "host")


def machine_names() -> list[str]:
    """Names of the machines in ``datasets/machines``."""
    return sorted(path.stem for path in datasets_path("machines").glob("*.yaml"))

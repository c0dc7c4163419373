"""Recordings of in-place conversion on a running kernel: what every operation returned and the whole state after it.

The format is described in ``datasets/recordings/conversion/README.md``; here it is read and checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workbench.bitmap_lists import parse_list
from workbench.errors import WorkbenchError
from workbench.topology.host import Host, Node
from workbench.validation import first_line

FORMAT = "guest_memfd conversion recording 1"
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TERM = re.compile(r"([+-]?)(0x[0-9a-fA-F]+|[0-9]+)([KMG]?)")
Count = Annotated[int, Field(ge=0)]
PoolSize = Literal["2048", "1048576"]
"""KiB of a huge page, as /sys/kernel/mm/hugepages names its pools."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(_Model):
    """Huge pages of one size: reserved and surplus on the whole host, all and free ones by node."""

    resv: Count
    surplus: Count
    nr: list[Count]
    free: list[int]


class Folios(_Model):
    """Neighbours that are equal in everything: ``count`` folios of ``order`` from page ``first`` on."""

    first: Count
    pfn: Count
    order: Annotated[int, Field(ge=0, le=18)]
    count: Annotated[int, Field(ge=1)]
    references: Count
    flags: Count
    node: Count


class FileState(_Model):
    """One file; ``folios`` and ``state`` are left out where they are long. ``state``: first page, last page, which."""

    pages: Count
    xarray_nodes: Count
    folio_runs: Count
    state_ranges: Count
    folios: list[Folios] | None = None
    state: list[tuple[Count, Count, Literal["private", "shared"]]] | None = None

    @model_validator(mode="after")
    def _state_covers_the_file(self) -> FileState:
        page = 0
        for first, last, _ in self.state or ():
            if first != page or last < first:
                raise ValueError(f"state: the range [{first}, {last}] does not follow page {page - 1}")
            page = last + 1
        return self


class RecordedHost(_Model):
    """The host after an operation."""

    pools: dict[PoolSize, Pool]
    vmemmap_pages: Count
    kvm_pages: Annotated[list[Count], Field(min_length=3, max_length=3)]
    free_pages: list[Count]
    files: dict[str, FileState] = {}


class RecordedOperation(BaseModel):
    """One operation: its text, what came back (``returned``), and the state after it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    op: Annotated[str, Field(min_length=1, max_length=500)]
    after: RecordedHost

    @property
    def returned(self) -> Mapping[str, Any]:
        """``ret``, ``errno``, ``done`` and whatever else the recorder wrote."""
        return self.model_extra or {}

    @property
    def words(self) -> list[str]:
        return self.op.split()


class RecordedConversions(_Model):
    """One scenario: a process of its own."""

    name: str
    start: RecordedHost
    ops: list[RecordedOperation]
    exit_status: int
    end: RecordedHost


class _Node(_Model):
    id: Count
    memory_mib: Annotated[int, Field(gt=0, le=1 << 30)]
    cpus: str


class _Topology(_Model):
    nodes: Annotated[list[_Node], Field(min_length=1)]
    distances: list[list[int]]


class ConversionRecording(BaseModel):
    """One boot of one kernel on one emulated host."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal["guest_memfd conversion recording 1"]
    kernel: str
    base: str = ""
    series: str
    generation: Literal["B", "C"]
    topology: _Topology
    cmdline: str
    scenarios: Annotated[list[RecordedConversions], Field(min_length=1)]

    @model_validator(mode="after")
    def _nodes_are_those_of_the_topology(self) -> ConversionRecording:
        count = len(self.topology.nodes)
        for scenario in self.scenarios:
            for state in (scenario.start, *(operation.after for operation in scenario.ops)):
                for size, pool in state.pools.items():
                    if len(pool.nr) != count or len(pool.free) != count:
                        raise ValueError(f"{scenario.name}: pools.{size} is not a list of {count} nodes")
                for name, file in state.files.items():
                    if any(run.node >= count for run in file.folios or ()):
                        raise ValueError(f"{scenario.name}: files.{name}.folios names a node that is not there")
        return self

    @property
    def host(self) -> Host:
        """The host as the recorder declared it."""
        nodes = [
            Node(id=node.id, memory_bytes=node.memory_mib << 20, cpus=tuple(parse_list(node.cpus)))
            for node in self.topology.nodes
        ]
        return Host(name="recorded", nodes=tuple(nodes), distances=tuple(map(tuple, self.topology.distances)))

    @property
    def stock_xarray(self) -> bool:
        """``lib/xarray.c`` was that of 7.3."""
        return "xas_split of stock" in self.series

    @property
    def hvo(self) -> bool:
        """Huge pages were vmemmap-optimised: the last word of the command line on it counts."""
        said = re.findall(r"hugetlb_free_vmemmap=(\w+)", self.cmdline)
        return bool(said) and said[-1] == "on"


def is_conversion_recording(document: Mapping[str, Any]) -> bool:
    """Whether a document is one of these, whole or not."""
    return str(document.get("format", "")).startswith("guest_memfd conversion recording")


def parse(path: Path, document: Mapping[str, Any]) -> ConversionRecording:
    """The recording in a document; WorkbenchError in one line if it is not whole."""
    try:
        return ConversionRecording.model_validate(document)
    except ValidationError as error:
        raise WorkbenchError(f"{path.name}: {first_line(error, ConversionRecording)}") from None


def size(word: str) -> int:
    """Bytes of ``64K``, ``1M+4K`` or ``0x1000``, modulo 2**64 as the calls take them; ValueError if it is none."""
    position, total = 0, 0
    while position < len(word):
        term = _TERM.match(word, position)
        if term is None or (position > 0 and not term[1]):
            raise ValueError(f"{word!r} is not a size")
        total += (-1 if term[1] == "-" else 1) * int(term[2], 0) * _SUFFIXES[term[3]]
        position = term.end()
    if not word:
        raise ValueError("an empty word is not a size")
    return total % (1 << 64)

"""What a recording's JSON must be: every field that is read has its type here, and a foreign one is refused by name.

The format is described in ``datasets/recordings/README.md``. Fields that nothing reads pass as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import WorkbenchError
from workbench.limits import MAX_CPUS, MAX_NUMNODES, MAX_OPERATIONS, NODE_PAGES, WORD
from workbench.texts import Name, Prose
from workbench.validation import first_line

Number = Annotated[int, Field(strict=True, ge=-WORD // 2, lt=WORD)]
Pages = Annotated[int, Field(strict=True, ge=0, le=NODE_PAGES)]
Text = Annotated[str, Field(strict=True, max_length=1 << 20)]
NodeKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,3})$")]
Distance = Annotated[int, Field(strict=True, ge=0, le=255)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Counters(_Model):
    """A zone as a ``zones`` line saw it, in pages."""

    free: Pages
    min: Pages
    low: Pages
    high: Pages
    managed: Pages
    lists: list[Pages] = []
    """Pages on the lists of each CPU."""


class RecordedLine(_Model):
    """One line of a script and what was seen: results by name, numbers unless said otherwise."""

    model_config = ConfigDict(extra="allow", frozen=True)

    op: Name = Field(min_length=1, max_length=4096)
    errno: Number | Literal["dead"] = 0
    ret: Number = 0
    mode: Number = 0
    nodes: Text | Annotated[int, Field(strict=True, ge=0)] = ""
    node: Number = 0
    mems: Number = 0
    procs: Number = 0
    bad: Number = 0
    first: Number = 0
    done: Number = 0
    exit: Number = 0
    left: Number = 0
    got: Number = 0
    free: Number | dict[NodeKey, Pages] = {}
    st0: Number = 0
    stN: Number = 0
    same: Number = 0
    ino: Number = 0
    mmap: Number = 0
    text: Text = ""
    place: Annotated[str, Field(strict=True, max_length=1 << 26)] = ""
    range: Text = ""
    place_error: Text = ""
    dead: Text = ""
    counts: dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,4}$")], Pages] = {}
    zones: dict[Name, Counters] = {}


class RecordedScript(_Model):
    """A script that ran."""

    name: Name
    header: Name | None = None
    ops: list[RecordedLine] = Field(max_length=MAX_OPERATIONS)


class DeclaredNode(_Model):
    """A node as it was asked of QEMU."""

    pxm: Annotated[int, Field(strict=True, ge=0, lt=MAX_NUMNODES)] | None = None
    mem: str | Annotated[int, Field(ge=0, le=1 << 32)] = 0
    cpus: list[Annotated[int, Field(ge=0, lt=MAX_CPUS)]] | None = None


class Topology(_Model):
    """The machine that was asked of QEMU."""

    name: Name | None = None
    nodes: list[DeclaredNode] | None = Field(None, max_length=MAX_NUMNODES)


class Derived(_Model):
    """What the recorder read out of the guest's files."""

    distance: dict[NodeKey, list[Distance]] | None = None
    cpulist: dict[NodeKey, Text] | None = None
    wi_weights: dict[NodeKey, Number] | None = None
    pxm_to_node: dict[NodeKey, Annotated[int, Field(strict=True, ge=0, lt=MAX_NUMNODES)]] | None = None
    zonelists: Literal["boot", "hotplug"] | None = None


class Document(_Model):
    """A whole recording."""

    topology: Topology
    scenarios: list[RecordedScript]
    derived: Derived | None = None
    files: dict[str, list[Text]] | None = None
    kernel: Name = ""
    cmdline: Prose = ""
    scenario_text: Text | None = None


def validated(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The same mapping, of which every field that is read has its type. Raises WorkbenchError that names the field."""
    try:
        Document.model_validate(data)
    except ValidationError as error:
        raise WorkbenchError(f"{name}: {first_line(error, Document)}") from None
    return data

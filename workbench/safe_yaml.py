"""YAML from people nobody knows: size, nesting and aliases are bounded before anything is built.

What is read are mappings, lists, texts, numbers and truth values: no dates, no binary, no other tags. A key that is there
twice is an error, as is an alias inside what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import WorkbenchError
from workbench.files import read_file
from workbench.limits import YAML_BYTES

MAX_ALIASES = 64
MAX_DEPTH = 32
MAX_NUMBER = 40
"""Characters of a number."""
# The C loader is some ten times faster, which a scenario of a thousand ranges feels.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader of what JSON has."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            line, name = key.start_mark.line + 1, str(self.construct_object(key))  # 0, 0x0 and '0' name one thing
            if name in lines:
                twice = f"{key.value[:40]!r} is there twice, in lines {lines[name]} and {line}"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            lines[name] = line
        return dict(super().construct_mapping(node, deep))

    def number(self, node: yaml.ScalarNode) -> int | float:
        """``!!int`` or ``!!float``, of no more digits than anything has."""
        if len(node.value) > MAX_NUMBER:
            shown = f"{node.value[:20]}... has {len(node.value)} characters; numbers have at most {MAX_NUMBER}"
            raise yaml.constructor.ConstructorError(None, None, shown, node.start_mark)
        made = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        try:
            return made(node)
        except (ValueError, OverflowError, IndexError):
            shown = f"{node.value[:20]!r} is no number"
            raise yaml.constructor.ConstructorError(None, None, shown, node.start_mark) from None

    def text(self, node: yaml.ScalarNode) -> str:
        """What looks like a date is the text that was written; a tag that says so is refused."""
        return str(self.construct_scalar(node))


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.text)
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")} | {"!"}


def load(source: str | Path, field: str) -> Mapping[str, Any]:
    """Read a mapping from a path, or from YAML text (a string that contains a line break)."""
    text = source if isinstance(source, str) and "\n" in source else _read(Path(source), field)
    if len(text) > YAML_BYTES:
        raise WorkbenchError(f"{field}: {len(text) >> 20} MiB of YAML; at most {YAML_BYTES >> 20} MiB are read")
    try:
        _check_shape(text, field)
        value = yaml.load(text, Loader=_Loader)  # _Loader is a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, WorkbenchError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or ["cannot be read"])[0]
        raise WorkbenchError(f"{field}: not valid YAML{where}: {reason}") from None
    if not isinstance(value, Mapping):
        raise WorkbenchError(f"{field}: must be a mapping of fields, not {type(value).__name__}")
    if any(not isinstance(key, str) for key in value):
        raise WorkbenchError(f"{field}: field names must be texts")
    return value


def _read(path: Path, field: str) -> str:
    try:
        return read_file(path, YAML_BYTES, field).decode("utf-8")
    except UnicodeDecodeError:
        raise WorkbenchError(f"{field}: {str(path)[:200]!a}: not UTF-8 text") from None


def _check_shape(text: str, field: str) -> None:
    """Count aliases and nesting from the parser's events, and look at tags and anchors, before any of it is built."""
    aliases = depth = 0
    open_anchors: list[str | None] = []
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        tag = getattr(event, "tag", None)
        if tag not in (None, *_TAGS):
            raise WorkbenchError(f"{field}: line {line}: tag {ascii(tag)[:60]} is not read; write plain values")
        if isinstance(event, yaml.AliasEvent) and event.anchor in open_anchors:
            raise WorkbenchError(
                f"{field}: line {line}: alias {ascii(event.anchor)[:60]} lies inside what it stands for"
            )
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            open_anchors.append(event.anchor)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
            open_anchors.pop()
        if aliases > MAX_ALIASES or depth > MAX_DEPTH:
            what = f"more than {MAX_ALIASES} aliases" if aliases > MAX_ALIASES else f"nested deeper than {MAX_DEPTH}"
            raise WorkbenchError(f"{field}: {what}; such YAML is not read")

"""YAML from people nobody knows: size, nesting and aliases are bounded before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import WorkbenchError

MAX_BYTES = 10 << 20
MAX_ALIASES = 64
MAX_DEPTH = 32
# The C loader is some ten times faster, which a scenario of a thousand ranges feels.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(source: str | Path, field: str) -> Mapping[str, Any]:
    """Read a mapping from a path, or from YAML text (a string that contains a line break)."""
    text = source if isinstance(source, str) and "\n" in source else _read(Path(source), field)
    if len(text) > MAX_BYTES:
        raise WorkbenchError(f"{field}: {len(text) >> 20} MiB of YAML; at most {MAX_BYTES >> 20} MiB are read")
    try:
        _check_shape(text, field)
        value = yaml.load(text, Loader=_Loader)  # _Loader is a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, WorkbenchError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise WorkbenchError(f"{field}: not valid YAML{where}: {reason}") from None
    if not isinstance(value, Mapping):
        raise WorkbenchError(f"{field}: must be a mapping of fields, not {type(value).__name__}")
    if any(not isinstance(key, str) for key in value):
        raise WorkbenchError(f"{field}: field names must be texts")
    return value


def _read(path: Path, field: str) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WorkbenchError(f"{field}: {path} has {size >> 20} MiB; at most {MAX_BYTES >> 20} MiB are read")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, WorkbenchError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise WorkbenchError(f"{field}: {str(path)[:200]}: {reason}") from None


def _check_shape(text: str, field: str) -> None:
    """Count aliases and nesting from the parser's events, before any of it is built."""
    aliases = depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if aliases > MAX_ALIASES or depth > MAX_DEPTH:
            what = f"more than {MAX_ALIASES} aliases" if aliases > MAX_ALIASES else f"nested deeper than {MAX_DEPTH}"
            raise WorkbenchError(f"{field}: {what}; such YAML is not read")

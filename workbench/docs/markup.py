"""Docstrings and plain texts as Markdown that MyST reads as it is meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(``[^`]+``|:[\w:]+:`[^`]+`|`[^`]+`)")
_ENTRY = re.compile(r"^(\*{0,2}[A-Za-z][\w, *]*?) : (.+)$")
_MEANS = {ord(character): f"\\{character}" for character in "*_[]<>{}|#$~"}


def escaped(text: str) -> str:
    """A text without markup of its own."""
    return text.translate(_MEANS)


def inline(text: str) -> str:
    """A text of a docstring: double backticks and roles become code, all else is as it stands."""
    parts = []
    for part in _CODE.split(text):
        if part.startswith("``"):
            parts.append(f"`{part[2:-2]}`")
        elif part.startswith(":") and part.endswith("`") and "`" in part[:-1]:
            target = part.split("`")[1]
            parts.append(f"`{target.rpartition('.')[2] if target.startswith('~') else target}`")
        elif part.startswith("`") and part.endswith("`") and len(part) > 2:
            parts.append(part)
        else:
            parts.append(escaped(part))
    return "".join(parts)


def cell(text: object) -> str:
    """A text in one cell of a table."""
    return inline(" ".join(str(text).split())).replace("\n", " ")


def code_cell(text: object) -> str:
    """A word as code in a cell, where a bar would end it."""
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def docstring(text: str | None) -> str:
    """A docstring as Markdown: paragraphs, lists, indented examples, and the sections that NumPy's style has."""
    lines = inspect.cleandoc(text or "").splitlines()
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        following = lines[at + 1] if at + 1 < len(lines) else ""
        if line and re.fullmatch(r"-{3,}", following.strip()):
            out += ["", f"**{escaped(line.strip())}**", ""]
            at += 2
            continue
        if entry := _ENTRY.match(line):
            out.append(f"- `{entry[1]}`: {inline(entry[2])}")
            at += 1
            while at < len(lines) and lines[at].startswith(" "):
                out.append("  " + inline(lines[at].strip()))
                at += 1
            continue
        if line.endswith("::") or line.startswith("    ") or line.startswith(">>>"):
            if line.endswith("::"):
                out.append(inline(line[:-1]))
                at += 1
            block: list[str] = []
            while at < len(lines) and (not lines[at] or lines[at].startswith(("    ", ">>>", "..."))):
                block.append(lines[at])
                at += 1
            out += ["", "```text", *inspect.cleandoc("\n".join(["", *block])).splitlines(), "```", ""]
            continue
        bullet = re.match(r"^(\s*[*-] )(.*)$", line)
        out.append(bullet[1].replace("*", "-") + inline(bullet[2]) if bullet else inline(line))
        at += 1
    return "\n".join(out).strip() + "\n"

"""Long lists of flat mappings in YAML, as operations are written, read line by line: the parser sees a mark in their place.

A parser's event for every word is what reading 10^5 operations costs. A line ``- {op: fault, offset: 0}``, or the lines
``- op: fault`` and ``  offset: 0`` below one another, is a whole element of the list that the line before it is in, whatever
comes next. So a run of them is taken out, one mapping of the same form is left in its place, and if that turns out to be an
element of a list, the run goes where it is. All else (words with a meaning, quotes inside quotes, anchors, comments) is no
such line, and a text that is refused is read again as a whole, so that errors name the lines it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

MARK = "_lines_taken_out"
LEAST = 64
"""Elements that are worth it."""
_DEEPEST = 4
"""Lists inside so many others are looked at."""
_PLAIN = r"(?:[\w./+]|-\d)[\w./+-]*+(?: [\w./+-]++)*+"
_QUOTED = r"'[ -&(-~]*+'|\"[ !#-\[\]-~]*+\""
_SCALAR = rf"(?:{_PLAIN}|{_QUOTED})"
_KEY, _VALUE = r"[A-Za-z_]\w*+", rf"(?:\[{_SCALAR}(?:, *+{_SCALAR})*+\]|{_SCALAR})"
_PAIR = rf"({_KEY}): ++({_VALUE})"
_PAIRS = re.compile(_PAIR, re.ASCII)
_SCALARS = re.compile(_SCALAR, re.ASCII)
_FLOW = re.compile(rf"( *+)- ++\{{ *+{_KEY}: ++{_VALUE}(?:, *+{_KEY}: ++{_VALUE})*+ *+\}} *+", re.ASCII)
_FIRST = re.compile(rf"( *+)- {_PAIR} *+", re.ASCII)
_NEXT = re.compile(rf"( *+){_PAIR} *+", re.ASCII)
_CLOSED_BY = {"'": "'", '"': '"', "[": "]"}


class NotFlat(Exception):
    """The text has to be read in the ordinary way."""


class Taken(NamedTuple):
    """A text without its long lists, and those lists: the elements that each mark stands for."""

    text: str
    runs: list[list[dict[str, Any]]]


class _Values(dict[str, Any]):
    """What scalars and lists of them are, as they are written."""

    def __init__(self, plain: Callable[[str], Any]) -> None:
        super().__init__()
        self.plain = plain

    def __missing__(self, written: str) -> Any:
        first = written[0]
        if first == "[":
            return [self[one] for one in _SCALARS.findall(written)]
        if written.isdigit() and (first != "0" or written == "0") and len(written) < 19:
            return int(written)  # most are met once
        made = self[written] = written[1:-1] if first in "'\"" else self.plain(written)
        return made


class _Run:
    """Elements at one indent, one after another."""

    def __init__(self, indent: int, flow: bool) -> None:
        self.indent, self.flow = indent, flow
        self.elements: list[dict[str, Any]] = []
        self.last = 0
        """The line at which the last one begins."""


def take_out(text: str, plain: Callable[[str], Any]) -> Taken | None:
    """Take long lists of flat mappings out of a text; None if it has none.

    ``plain``: what a plain scalar means. Raises whatever it does, and NotFlat.
    """
    if text.count("\n") < LEAST or MARK in text:
        return None
    lines = text.split("\n")
    values = _Values(plain)
    kept: list[str] = []
    runs: list[list[dict[str, Any]]] = []
    begun, run = 0, _Run(-1, flow=True)

    def end(at: int) -> None:
        """Lines of the run that ends before ``at``: a mark and the last element, or what they are."""
        if len(run.elements) > LEAST:
            mark = f"{MARK}: {len(runs)}"
            kept.append(" " * run.indent + (f"- {{{mark}}}" if run.flow else f"- {mark}"))
            runs.append(run.elements[:-1])
            kept.extend(lines[run.last : at])
        else:
            kept.extend(lines[begun:at])

    for number, line in enumerate(lines):
        found = _FLOW.fullmatch(line)
        flow = found is not None
        if found is None and run.indent >= 0 and not run.flow:
            more = _NEXT.fullmatch(line)
            if more is not None and len(more[1]) == run.indent + 2:
                _put(run.elements[-1], more[2], values[more[3]])
                continue
        found = found or _FIRST.fullmatch(line)
        if found is None or len(found[1]) != run.indent or flow != run.flow:
            end(number)
            begun, run = number, _Run(-1 if found is None else len(found[1]), flow)
        if found is not None:
            run.last = number
            run.elements.append(_element(line, values) if flow else {found[2]: values[found[3]]})
    end(len(lines))
    return Taken("\n".join(kept), runs) if runs else None


def _element(line: str, values: _Values) -> dict[str, Any]:
    """What a line says; splitting at commas is faster than matching, where none is inside a value."""
    made: dict[str, Any] = {}
    for part in line[line.index("{") + 1 : line.rindex("}")].split(","):
        key, _, written = part.partition(": ")
        written = written.strip(" ")
        if not written or (written[0] in _CLOSED_BY and (written[-1] != _CLOSED_BY[written[0]] or len(written) == 1)):
            break
        _put(made, key.strip(" "), values[written])
    else:
        return made
    made = {}
    for key, written in _PAIRS.findall(line):
        _put(made, key, values[written])
    return made


def _put(made: dict[str, Any], key: str, value: Any) -> None:
    if key in made:
        raise NotFlat
    made[key] = value


def put_back(value: Any, taken: Taken, plain: Callable[[str], Any]) -> None:
    """Put the runs where their marks are in what was read. Raises NotFlat if a mark is not an element of a list."""
    if any(plain(key) != key for key in {key for run in taken.runs for element in run for key in element}):
        raise NotFlat  # as `null`, which is no text
    found: list[int] = []
    _fill(value, taken.runs, found, _DEEPEST)
    if sorted(found) != list(range(len(taken.runs))):
        raise NotFlat


def _fill(value: Any, runs: list[list[dict[str, Any]]], found: list[int], deep: int) -> None:
    if not deep:
        return
    if isinstance(value, dict):
        for inner in value.values():
            _fill(inner, runs, found, deep - 1)
    elif isinstance(value, list):
        made: list[Any] = []
        for element in value:
            if isinstance(element, dict) and MARK in element:
                found.append(element[MARK])
                made += runs[element[MARK]]
            else:
                made.append(element)
                _fill(element, runs, found, deep - 1)
        value[:] = made

"""YAML from people nobody knows: size, nesting and aliases are bounded before anything is built.

What is read are mappings, lists, texts, numbers and truth values: no dates, no binary, no other tags. Plain words mean what
they do in the core schema of YAML 1.2, not 1.1: ``true`` and ``false`` are truth values; ``yes``, ``no``, ``on`` and ``off`` are
texts. ``0o17``, ``0x1f`` and ``1e5`` are numbers; ``4_096``, ``0b1`` and ``1:30`` are texts, which no field for a number takes.
``017``, of which the two make different things, is refused. A key that is there twice is an error, as is an alias inside
what it stands for.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from workbench import garbage, yaml_lists
from workbench.errors import WorkbenchError, of_file
from workbench.files import read_file
from workbench.limits import YAML_BYTES

MAX_ALIASES = 64
MAX_DEPTH = 32
MAX_NUMBER = 40
"""Characters of a number."""
# The C parser is some ten times faster, which a scenario of a thousand ranges feels.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile("true|True|TRUE|false|False|FALSE")
_NULL = re.compile("null|Null|NULL|~|")
"""Plain scalars of the core schema (yaml.org/spec/1.2.2, 10.3.2); whatever matches none of them is a text."""
_FIELD = re.compile(r"([\w.\[\]]+): ")
"""What a message begins with that names a field."""
_TAG = "tag:yaml.org,2002:"
_NODES = {yaml.ScalarEvent: "single value", yaml.MappingStartEvent: "mapping", yaml.SequenceStartEvent: "list"}
_TAGS = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")} | {"!"}


class _Scalars(_Base):  # type: ignore[misc]
    """What a safe loader makes of single scalars of what JSON has."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def __init__(self) -> None:
        super().__init__("")
        self._known: dict[Any, object] = {}

    def value(self, event: Any) -> object:
        """The scalar as Python has it; equal ones are made once."""
        key = (event.value, event.tag, event.implicit)
        if key in self._known:
            return self._known[key]
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.resolve(yaml.ScalarNode, event.value, event.implicit)
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        made: object = self.construct_object(node)
        self._known[key] = made
        return made

    def number(self, node: yaml.ScalarNode) -> int | float | str:
        """``!!int`` or ``!!float``, of no more digits than anything has, and of one value to every reader."""
        text, whole = node.value, node.tag.endswith(":int")
        if not (_INT if whole else _FLOAT).fullmatch(text):
            raise _refused(node, f"{text[:20]!r} is no number")
        if len(text) > MAX_NUMBER:
            raise _refused(node, f"{text[:20]}... has {len(text)} characters; numbers have at most {MAX_NUMBER}")
        if not whole:
            named = text[-1] in "fFnN"
            made = float(text.replace(".", "", 1) if named else text)
            if math.isinf(made) and not named:
                raise _refused(node, f"{text[:20]} is beyond the largest number")
            return made
        if _LEADING_ZERO.fullmatch(text) and (other := _in_yaml_1_1(text)) != str(int(text)):
            raise _refused(node, f"{text[:20]} is {other} to some and {int(text)} to others; write it without the 0")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def truth(self, node: yaml.ScalarNode) -> bool:
        """``!!bool``."""
        if not _BOOL.fullmatch(node.value):
            raise _refused(node, f"{node.value[:20]!r} is neither true nor false")
        return bool(node.value.lower() == "true")


def _refused(node: yaml.ScalarNode, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _in_yaml_1_1(text: str) -> str:
    """What digits behind a 0 are there: a number to the base of 8, or no number at all."""
    return "a text" if set(text) & {"8", "9"} else str(int(text, 8))


for _kind, _made in (("int", _Scalars.number), ("float", _Scalars.number), ("bool", _Scalars.truth)):
    _Scalars.add_constructor(f"{_TAG}{_kind}", _made)
for _kind, _form, _first in (
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Scalars.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_form.pattern})\Z"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Texts that are numbers to one of the two versions are in quotes."""


_Dumper.add_implicit_resolver(
    f"{_TAG}float", re.compile(rf"(?:{_FLOAT.pattern}|{_INT.pattern})\Z"), list("-+.0123456789")
)


def dump(value: object, **options: Any) -> str:
    """YAML text that :func:`load` reads back, and readers of version 1.1 alike; options are those of ``yaml.dump``."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options))


def load(source: str | Path, field: str) -> Mapping[str, Any]:
    """Read a mapping from a path, or from YAML text (a string that contains a line break)."""
    with named(source, field) as text:
        return load_text(text, field)


@contextlib.contextmanager
def named(source: str | Path, field: str, changed: Sequence[str] = ()) -> Iterator[str]:
    """The text of a path (or a text itself). What is refused inside names the file and, if it is a field, its line.

    ``changed``: dotted fields that are not as the file has them.
    """
    if isinstance(source, str) and "\n" in source:
        yield source
        return
    path = Path(source)
    text = _read(path, field)
    try:
        yield text
    except WorkbenchError as error:
        field_of = _FIELD.match(str(error))
        keys = re.findall(r"\w+", field_of[1]) if field_of else []
        if any(_leads_to(one.split("."), keys) for one in changed):
            raise  # the file does not say so
        if keys and not error.at:
            error.at = line_of(text, keys)
        with of_file(path.name):
            raise


def _leads_to(path: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether keys begin with a path, apart from names that are of no field."""
    left = iter(keys)
    return all(key in left for key in path)


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line, from 1 on, of the field that ``keys`` lead to, or of what is there of the way; 0 if that is unknown.

    Keys of lists are their numbers; keys that the text does not have are passed over.

    >>> line_of("a: 1\\nb:\\n  - c: 2\\n  - c: 3\\n", ["b", "1", "c"])
    4
    """
    left = list(keys)
    try:
        while True:
            there, line = _follow(text, left)
            if there == len(left):
                return line
            del left[there]
    except (yaml.YAMLError, ValueError, RecursionError, StopIteration):
        return 0


def _follow(text: str, keys: Sequence[str]) -> tuple[int, int]:
    """How many of the keys lead somewhere one after another, and the line of that."""
    events: Iterator[Any] = iter(yaml.parse(text, Loader=_Base))
    event = next(events)
    while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
        event = next(events)
    line = event.start_mark.line + 1
    there = 0
    while there < len(keys):
        if isinstance(event, yaml.MappingStartEvent):
            left = [".".join(keys[there:end]) for end in range(there + 1, len(keys) + 1)]  # a key may have dots itself
            name = next(events)
            while getattr(name, "value", None) not in left:
                if isinstance(name, yaml.MappingEndEvent):
                    return there, line
                _pass_over(name, events)
                _pass_over(next(events), events)
                name = next(events)
            line, event = name.start_mark.line + 1, next(events)
            there += left.index(name.value) + 1
        elif isinstance(event, yaml.SequenceStartEvent) and keys[there].isdecimal():
            event = next(events)
            for _ in range(int(keys[there])):
                if isinstance(event, yaml.SequenceEndEvent):
                    break
                _pass_over(event, events)
                event = next(events)
            if isinstance(event, yaml.SequenceEndEvent):
                return there, line
            line = event.start_mark.line + 1
            there += 1
        else:
            return there, line
    return there, line


def _pass_over(event: Any, events: Iterator[Any]) -> None:
    """Go to the end of the node that an event begins."""
    deep = int(isinstance(event, yaml.CollectionStartEvent))
    while deep:
        event = next(events)
        deep += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)


def load_text(text: str, field: str) -> Mapping[str, Any]:
    """Read a mapping from YAML text."""
    if len(text) > YAML_BYTES:
        raise WorkbenchError(f"{field}: {len(text) >> 20} MiB of YAML; at most {YAML_BYTES >> 20} MiB are read")
    try:
        with garbage.seldom():
            value = _build(text, field)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, WorkbenchError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or ["cannot be read"])[0]
        raise WorkbenchError(f"{field}: not valid YAML{where}: {reason}", mark.line + 1 if mark else 0) from None
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


class _Open:
    """A list or mapping whose end has not come yet."""

    def __init__(self, event: Any) -> None:
        self.anchor, self.mark = event.anchor, event.start_mark
        self.made: dict[Any, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.key: Any = self
        """The key whose value comes next; itself where a key comes next."""
        self.lines: dict[str, int] = {}
        """Of each key the line it is in."""

    def put(self, value: Any, mark: Any, written: str = "") -> None:
        """Take an element, or a key, ``written`` so, or the value of one."""
        if isinstance(self.made, list):
            self.made.append(value)
        elif self.key is not self:
            self.made[self.key] = value
            self.key = self
        else:
            if isinstance(value, (dict, list)):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", mark)
            line = mark.line + 1
            name = value if type(value) is str else str(value)  # 0, 0x0 and '0' name one thing
            if name in self.lines:
                twice = f"{(written or name)[:40]!r} is there twice, in lines {self.lines[name]} and {line}"
                raise yaml.constructor.ConstructorError(None, None, twice, mark)
            self.lines[name] = line
            self.key = value


def _build(text: str, field: str) -> Any:
    """The one document of a text; long lists of flat mappings are read without the parser."""
    scalars = _Scalars()

    def plain(written: str) -> object:
        return scalars.value(yaml.ScalarEvent(None, None, (True, False), written))

    try:
        if text.lstrip().startswith("{"):
            return _from_json(text, plain)
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # a flow mapping, or JSON with something to say about
    try:
        taken = yaml_lists.take_out(text, plain)
        if taken is not None:
            value = _parse(taken.text, field)
            yaml_lists.put_back(value, taken, plain)
            return value
    except (yaml_lists.NotFlat, yaml.YAMLError, ValueError, RecursionError):
        pass  # whatever is wrong is said of the text as it is
    return _parse(text, field)


def _from_json(text: str, plain: Callable[[str], object]) -> Any:
    """JSON, which is YAML, some ten times faster. Raises ValueError for all that YAML reads otherwise."""
    if not text.isascii() or "\\" in text or "\x7f" in text:
        raise ValueError("characters that are written otherwise, or may not be there")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a key is there twice")
        return made

    value = json.loads(text, parse_int=plain, parse_float=plain, parse_constant=_no_json, object_pairs_hook=mapping)
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [each for many in inside for each in many if isinstance(each, (dict, list))]
    if level:
        raise ValueError("nested deeper than is read")
    return value


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is a text in YAML")


def _parse(text: str, field: str) -> Any:
    """The one document of a text, built as the parser goes, so that no more is made than what is looked at."""
    scalars = _Scalars()
    found: list[Any] = []
    open_: list[_Open] = []
    anchors: dict[str, Any] = {}
    aliases = documents = 0
    into: _Open | None = None
    events: Iterable[Any] = yaml.parse(text, Loader=_Base)
    for event in events:
        kind = type(event)
        written = ""
        if kind is yaml.ScalarEvent:
            written, mark = event.value, event.start_mark
            if event.tag is not None:
                _check_tag(event, field)
            value = scalars.value(event)
            if event.anchor is not None:
                _keep_anchor(anchors, event, value)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if event.tag is not None:
                _check_tag(event, field)
            if event.anchor is not None:
                _keep_anchor(anchors, event, None)
            into = _Open(event)
            open_.append(into)
            if len(open_) > MAX_DEPTH:
                raise WorkbenchError(f"{field}: nested deeper than {MAX_DEPTH}; such YAML is not read")
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            done = open_.pop()
            value, mark = done.made, done.mark
            if done.anchor is not None:
                anchors[done.anchor] = value
            into = open_[-1] if open_ else None
        elif kind is yaml.AliasEvent:
            aliases += 1
            mark = event.start_mark
            if any(event.anchor == one.anchor for one in open_):
                shown = ascii(event.anchor)[:60]
                raise WorkbenchError(f"{field}: line {mark.line + 1}: alias {shown} lies inside what it stands for")
            if aliases > MAX_ALIASES:
                raise WorkbenchError(f"{field}: more than {MAX_ALIASES} aliases; such YAML is not read")
            if event.anchor not in anchors:
                what = f"found undefined alias {ascii(event.anchor)[:60]}"
                raise yaml.composer.ComposerError(None, None, what, mark)
            value = anchors[event.anchor]
        else:
            documents += kind is yaml.DocumentStartEvent
            if documents > 1:
                what = "expected a single document in the stream"
                raise yaml.composer.ComposerError(None, None, what, event.start_mark)
            continue
        if into is None:
            found.append(value)
        else:
            into.put(value, mark, written)
    return found[0] if found else None


def _check_tag(event: Any, field: str) -> None:
    """A tag that stands in the text is of what JSON has, and of this kind of node."""
    if event.tag not in _TAGS:
        line = event.start_mark.line + 1
        raise WorkbenchError(f"{field}: line {line}: tag {ascii(event.tag)[:60]} is not read; write plain values")
    its_own = {yaml.MappingStartEvent: "map", yaml.SequenceStartEvent: "seq"}.get(type(event))
    kind = event.tag.removeprefix(_TAG)
    if event.tag != "!" and (kind in ("map", "seq") or its_own) and kind != its_own:
        what = f"the tag {event.tag} is not for a {_NODES[type(event)]}"
        raise yaml.constructor.ConstructorError(None, None, what, event.start_mark)


def _keep_anchor(anchors: dict[str, Any], event: Any, value: object) -> None:
    if event.anchor in anchors:
        what = f"found duplicate anchor {ascii(event.anchor)[:60]}"
        raise yaml.composer.ComposerError(None, None, what, event.start_mark)
    anchors[event.anchor] = value

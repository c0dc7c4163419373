"""Where in a YAML (or JSON) text a field stands: looked up only when something is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

MOST_CHARACTERS = 1 << 20
"""Of a text that is composed again for the sake of a line's number."""


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line, from 1 on, of the field that ``keys`` lead to, or of what is there of the way; 0 if that is unknown.

    Keys of lists are their numbers; keys that the text does not have are passed over.

    >>> line_of("a: 1\\nb:\\n  - c: 2\\n  - c: 3\\n", ["b", "1", "c"])
    4
    """
    if len(text) > MOST_CHARACTERS:
        return 0
    try:
        node: Any = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return 0
    line = 0 if node is None else node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if getattr(pair[0], "value", None) == key), None)
            if found is not None:
                line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
    return line

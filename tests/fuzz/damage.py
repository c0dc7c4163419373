"""Damage to files, the same for the same seed, and what every reader of files owes: an answer or one line."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from typing import Any

import yaml

from workbench.errors import WorkbenchError

LONG = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
ENDED = {"answered": 0, "refused": 0}
"""Inputs so far."""
PIECES = [
    b"", b"-1", b"0", b"9" * 25, b"nan", b"1e9", b"\0", b"\xff\xfe", b"<", b">", b"&amp;", b"'", b'"', b"{", b"}", b",",
    b"=", b"0-99999", b"node 0 cpus:", b"node distances:", b"available:", b"\xd9\xa3", b"all", b"!0", b"../", b"\n",
    b" ", b"4G", b"-object", b"policy=bind",
]  # fmt: skip


def damaged(content: bytes, seed: int) -> bytes:
    """A few pieces cut out, doubled, exchanged or put in."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 1, 2, 5, 20, 100)))
        way = rng.randrange(5)
        if way == 0:
            content = content[:at] + content[end:]
        elif way == 1:
            content = content[:at] + content[at:end] * 2 + content[end:]
        elif way == 2:
            content = content[:at] + rng.choice(PIECES) + content[end:]
        elif way == 3:
            content = content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 3))) + content[end:]
        else:
            lines = content.split(b"\n")
            first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[first], lines[second] = lines[second], lines[rng.choice((first, second))]
            content = b"\n".join(lines)
    return content


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, -0.0, 1e308, float("nan"), float("inf"), 1 << 31, 1 << 62, 1 << 63, 1 << 64, 10**400,
    "", " ", "0", "-1", "nan",
    "1e400", "0x10", "1_000", "yes", "\x1b[2J", "\u202eabc", "a\u0000b", "\ud800", "\u0663", "x" * 3000,
    "a\nb", "../../x", "/dev/zero", "0-99999999", "9" * 30, "1 GiB", "8 EiB", [], {}, [[]], [None], {"": None}, {"x": {}},
    {0: 1}, {1.5: 2}, {None: 1}, ["a"] * 300, "{}", "!!python/object:x", "2024-01-01", "bind", "all", "!0", "=0",
]  # fmt: skip
"""What stands nowhere, or not there: numbers from the edges, texts that take over a terminal, other types."""


def _inside(value: Any) -> list[Any]:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if parts else []) + [found for part in parts for found in _inside(part)]


def changed(content: bytes, seed: int) -> bytes:
    """A YAML or JSON text of which one to three values are another: odd, doubled, gone, renamed, exchanged or nested."""
    rng = random.Random(seed)
    root = [yaml.safe_load(content)]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(_inside(root))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        way = rng.randrange(8)
        if way <= 2:
            place[key] = copy.deepcopy(rng.choice(ODD))
        elif way == 3:
            other = rng.choice(_inside(root))
            place[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
        elif way == 4:
            value = place[key]
            place[key] = rng.choice([str(value), [value], [value, value], {"x": value}, {str(value)[:50]: 1}])
        elif way == 5 and isinstance(place, dict):
            place[rng.choice(["x", "op", 0, None, "\x1b", "a" * 500, *keys])] = place.pop(key)
        elif way == 6 and place is not root:
            del place[key]
        elif way == 7 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
            place[key] = rng.choice([-1, 0, 0.5, 2, 7, 1 << 20, 1 << 40, 1 << 60]) * place[key]
        if not root or not _inside(root):
            break
    text = json.dumps(root[0], default=str, skipkeys=True) if root else ""
    return (
        text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.8
        else text.replace('"', "'").encode("utf-8", "replace")
    )


def answers(ask: Callable[[], Any], content: object) -> Any:
    """The answer, or None for what is refused in one line. ``content`` is shown when neither comes."""
    try:
        answer = ask()
    except WorkbenchError as error:
        said = str(error)
    else:
        ENDED["answered"] += 1
        return answer
    ENDED["refused"] += 1
    assert "\n" not in said, content
    assert len(said) < 1000, content
    return None

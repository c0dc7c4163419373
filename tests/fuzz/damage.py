"""Damage to files, the same for the same seed, and what every reader of files owes: an answer or one line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from workbench.errors import WorkbenchError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
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


def answers(ask: Callable[[], object], content: bytes) -> None:
    try:
        ask()
    except WorkbenchError as error:
        said = str(error)
    else:
        return
    assert "\n" not in said, content
    assert len(said) < 1000, content

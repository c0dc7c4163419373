"""Words of the probe's scripts and recordings that both who writes and who reads them must know alike."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})")

ORDERS = {"sequential": "seq", "reverse": "rev", "random": "rand", "strided": "stride"}
"""Order in which a scenario's fault touches pages -> its word in a script."""
TOUCHES = {"host": "touch", "guest": "vtouch", "prefault": "prefault"}
"""Who touches in a scenario's fault -> the verb of a script (reads through the host mapping are ``rtouch``)."""


def c_number(word: str) -> int:
    """A number of a script, as strtoll and atoi both read it. Raises ValueError for what they read in part or in two ways.

    >>> c_number("-0x10")
    -16
    """
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{word[:30]!a} is no number")
    return int(word, 0)

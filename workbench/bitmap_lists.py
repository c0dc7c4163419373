"""Sets of CPUs or nodes as Linux writes them: lists ``"0-3,8"`` and masks ``"000000ff,ffffffff"`` (lib/bitmap-str.c)."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from workbench.limits import MAX_CPUS, MAX_DIGITS

LARGEST = MAX_CPUS - 1


@functools.lru_cache(maxsize=1024)
def parse_list(text: str) -> tuple[int, ...]:
    """``"0-3,8"`` to (0, 1, 2, 3, 8), in the order written; empty parts count for nothing.

    Raises ValueError, naming the part, for anything else, for ids above :data:`LARGEST` and for more ids than that.
    """
    ids: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        low, dash, high = part.partition("-")
        if not is_whole(low) or (dash and not is_whole(high)):
            raise ValueError(f"{part[:20]!r} is neither a number nor a range such as '0-3'")
        first, last = int(low), int(high if dash else low)
        if not first <= last <= LARGEST:
            raise ValueError(f"{part[:40]!r} is not a range low-high up to {LARGEST}")
        if len(ids) + last - first >= MAX_CPUS:
            raise ValueError(f"{text[:20]!r}... names more than {MAX_CPUS} ids")
        ids.extend(range(first, last + 1))
    return tuple(ids)


def parse_mask(text: str) -> tuple[int, ...]:
    """Words of 32 bits in hexadecimal, highest first, to the positions of their bits, ascending.

    sysfs writes ``000000ff,ffffffff``, hwloc ``0x000000ff,0xffffffff`` and nothing for a word of zeros. Raises
    ValueError for anything else and for more than ``MAX_CPUS`` bits.
    """
    words = text.split(",")
    if len(text) > MAX_CPUS or len(words) > MAX_CPUS // 32:
        raise ValueError(f"{text[:20]!r}... has more than {MAX_CPUS} bits")
    digits = []
    for word in words:
        plain = word.strip().removeprefix("0x").removeprefix("0X")
        if not all(character in "0123456789abcdefABCDEF" for character in plain):
            raise ValueError(f"{text[:40]!r} is not a bitmap in hexadecimal")
        digits.append(plain.rjust(8, "0"))
    bits = int("".join(digits), 16)
    if bits.bit_length() > MAX_CPUS:
        raise ValueError(f"{text[:20]!r}... has more than {MAX_CPUS} bits")
    raw = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
    return tuple(np.flatnonzero(np.unpackbits(raw, bitorder="little")).tolist())


def is_whole(word: str) -> bool:
    """Whether a word is a number without sign, of ASCII digits, that fits 64 bits."""
    return word.isascii() and word.isdecimal() and len(word) <= MAX_DIGITS


def format_list(ids: Iterable[int]) -> str:
    """The inverse, in ascending order.

    >>> format_list([5, 0, 1, 2])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)

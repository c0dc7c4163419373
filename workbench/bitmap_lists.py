"""Lists of CPUs or nodes as Linux writes them, ``"0-3,8"`` (lib/bitmap-str.c: bitmap_parselist, ``%*pbl``)."""

from __future__ import annotations

from collections.abc import Iterable

LARGEST = 1 << 20


def parse_list(text: str) -> tuple[int, ...]:
    """``"0-3,8"`` to (0, 1, 2, 3, 8), in the order written; empty parts count for nothing.

    Raises ValueError, naming the part, for anything else and for ids above :data:`LARGEST`.
    """
    ids: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or len(part) > 16:
            raise ValueError(f"{part[:20]!r} is neither a number nor a range such as '0-3'")
        first, last = int(low), int(high if dash else low)
        if not first <= last <= LARGEST:
            raise ValueError(f"{part!r} is not a range low-high up to {LARGEST}")
        ids.extend(range(first, last + 1))
    return tuple(ids)


def format_list(ids: Iterable[int]) -> str:
    """The inverse, in ascending order: ``[5, 0, 1, 2]`` to ``"0-2,5"``."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)

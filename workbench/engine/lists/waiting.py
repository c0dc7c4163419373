"""When a list is asked for again after one that was too short: where one operation after another ends one, later each time."""

from __future__ import annotations

LONGEST = 128
"""Operations."""
_PATIENCE = 4
"""Lists that may be too short one after another before the next one waits for longer."""


class Wait:
    """Of one kind of list."""

    def __init__(self) -> None:
        self._short = 0

    def longer(self) -> int:
        """So many operations are done one by one first; twice as many each time once it has lasted."""
        length = 1 << max(0, self._short - _PATIENCE)
        self._short += length < LONGEST
        return length

    def over(self) -> None:
        """A list was long enough."""
        self._short = 0

"""When a list is asked for again after one that was too short: where one operation after another ends one, later each time."""

from __future__ import annotations

LONGEST = 32
"""Operations."""


class Wait:
    """Of one kind of list."""

    def __init__(self) -> None:
        self._length = 1

    def longer(self) -> int:
        """So many operations are done one by one first; twice as many the next time."""
        length, self._length = self._length, min(2 * self._length, LONGEST)
        return length

    def over(self) -> None:
        """A list was long enough."""
        self._length = 1

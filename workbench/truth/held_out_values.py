"""What is asked of the cost model on machines that are left out, and one answer to it (:mod:`workbench.truth.held_out`)."""

from __future__ import annotations

from dataclasses import dataclass

SPREAD = 1.1
"""Factor by which ranges that a few machines span are widened to both sides."""


@dataclass(frozen=True)
class Question:
    """What is asked, of what is known, and how well it is to be answered.

    goal : median deviation in per cent, nan if there is none
    inside : part of the published values that are to lie in their range, nan if there is no goal
    signs : whether values are changes in per cent, of which the sign is asked
    """

    name: str
    given: str
    goal: float = float("nan")
    inside: float = float("nan")
    signs: bool = False


@dataclass(frozen=True)
class HeldOut:
    """One published value and what is predicted without its machine."""

    question: str
    machine: str
    quantity: str
    published: float
    predicted: float
    low: float
    high: float

    @property
    def deviation(self) -> float:
        """Per cent of the published value."""
        return 100.0 * (self.predicted / self.published - 1.0)

    @property
    def inside(self) -> bool:
        """Whether the published value is in the range."""
        slack = 1e-9 * abs(self.published)
        return self.low - slack <= self.published <= self.high + slack

    @property
    def sign_right(self) -> bool:
        """Whether both are gains or both are losses."""
        return (self.predicted > 0) == (self.published > 0)

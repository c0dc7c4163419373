"""Which calls a list may have at all."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from workbench import scenario as sc

Kind = TypeVar("Kind", bound=sc.Operation)


def is_among(operation: sc.Operation, kinds: frozenset[type[Kind]]) -> TypeGuard[Kind]:
    """Whether a call is of one of these kinds, by its type: to ask what it is an instance of takes as long as a short call."""
    return type(operation) in kinds

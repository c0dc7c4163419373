"""What all tests of the engine have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from workbench.engine.lists import backends, devices, faults, light, light_faults, look_ahead, present, tracked


@pytest.fixture(scope="module", autouse=True)
def short_lists() -> Iterator[None]:
    """Fewer calls are worth a list: whether it is does not change an answer, and scenarios of tests are short."""
    with contextlib.ExitStack() as shorter:
        for module in (backends, devices, faults, light, light_faults, look_ahead, present, tracked):
            shorter.enter_context(mock.patch.object(module, "LEAST", 16))
        yield

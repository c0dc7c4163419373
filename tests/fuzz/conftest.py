"""What a long run says at its end: of every target how many inputs were answered, and how many refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fuzz import damage

_COUNTED = "fuzz inputs"


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    before = dict(damage.ENDED)
    yield
    ended = {how: count - before[how] for how, count in damage.ENDED.items()}
    if any(ended.values()):
        request.node.user_properties.append((_COUNTED, ended))  # which workers hand on with the report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not damage.LONG:
        return
    found: dict[str, dict[str, int]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for what, ended in getattr(report, "user_properties", ()):
            if what == _COUNTED:
                found[report.nodeid] = ended
    terminalreporter.section("inputs of each target")
    for name, ended in sorted(found.items()):
        target = name.partition("::")[2]
        terminalreporter.line(f"{sum(ended.values()):8,}  {ended['refused']:8,} refused  {target}")
    every = [sum(ended[how] for ended in found.values()) for how in ("answered", "refused")]
    terminalreporter.line(f"{sum(every):8,}  {every[1]:8,} refused  in all; what failed comes first in the next run")

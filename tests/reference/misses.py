"""What ``verify`` found otherwise than recorded, for people."""

from __future__ import annotations

from typing import Any


def misses(report: Any) -> list[str]:
    """A line for each mismatch of one file's report."""
    return [
        f"{m.scenario} #{m.operation} {m.text}: {m.what}: {m.expected} != {m.simulated}"
        for s in report.scenarios
        for m in s.mismatches
    ]

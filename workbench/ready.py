"""The scenarios that come with the workbench, each with the question that it answers.

A ready scenario is a file of ``datasets/scenarios``. Its first comment says ``Question: ...`` and ``Look at: ...``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.data import datasets_path, shipped
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario

_PART = re.compile(r"^(Question|Look at|Interface here): ")


@dataclass(frozen=True)
class Ready:
    """A ready scenario: its name, what it asks, what to look at in the answer, and where it is."""

    name: str
    question: str
    look_at: str
    path: Path


def ready_scenarios() -> list[Ready]:
    """The ready scenarios, by name."""
    return sorted(map(_of, datasets_path("scenarios").glob("*.yaml")), key=lambda one: one.name)


def _of(path: Path) -> Ready:
    """What the comment at the top of a file says, one line for each of its parts."""
    parts: dict[str, list[str]] = {"Question": [], "Look at": [], "Interface here": []}
    part = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ")
        if begins := _PART.match(text):
            part = begins[1]
            text = text[begins.end() :]
        if part is not None:
            parts[part].append(text)
    return Ready(path.stem, " ".join(parts["Question"]), " ".join(parts["Look at"]), path)


def find_scenario(given: str | Path) -> Path:
    """A scenario file, or a ready scenario by name. Raises WorkbenchError with near names."""
    return shipped(given, datasets_path("scenarios"), (".yaml",), "scenario")


def scenario(given: Scenario | str | Path) -> Scenario:
    """The scenario itself, the ready one of that name, or one in a file or as YAML text of several lines.

    What every function of the workbench does with the scenario that it is given. Raises WorkbenchError.

    >>> scenario("weighted-interleave-cxl").replace(**{"guest.memory": "4 GiB"}).guest.memory >> 30
    4
    """
    if isinstance(given, Scenario):
        return given
    if not isinstance(given, (str, Path)):
        raise WorkbenchError(f"scenario: {type(given).__name__} is none; a Scenario, a ready one's name or a file is")
    return Scenario.from_yaml(given if isinstance(given, str) and "\n" in given else find_scenario(given))

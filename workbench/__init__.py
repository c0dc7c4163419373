"""The guest_memfd NUMA workbench: where Linux places the memory of virtual machines, simulated exactly and checked.

``import workbench as wb`` is quick: names are loaded when they are first used, and nothing is compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.scenario import Scenario as Scenario
    from workbench.simulation import simulate as simulate
    from workbench.topology.host import Host as Host

_WHERE = {
    "Host": "topology.host",
    "Node": "topology.host",
    "Scenario": "scenario",
    "WorkbenchError": "errors",
    "history": "studies.history",
    "simulate": "simulation",
    "verify": "truth.verify",
    "sweep": "sweeps.sweep",
    "sensitivity": "studies.sensitivity",
    "explore": "explorer",
    "best_weights": "cost.weights",
    "ready_scenarios": "ready",
}
"""Public names and the module that each lives in."""

_MODULES = (
    "answer", "cost", "costs", "data", "design", "designs", "plots", "policy", "profiles", "ready", "recorder", "reports",
    "results", "scenario", "studies", "sweeps", "topology", "truth", "units", "variables", "vmconfig",
)  # fmt: skip
"""What else of the workbench a user has a use for, as ``wb.plots``."""

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("guest-memfd-workbench")
    if name in _WHERE:
        return getattr(importlib.import_module(f"workbench.{_WHERE[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"workbench.{name}") is not None:
        return importlib.import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__", "__doc__", "__name__", "__file__", "__path__"})

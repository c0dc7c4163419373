"""What a host may say of its hardware by name: generations of processors and measured profiles, in ``datasets/profiles``."""

from __future__ import annotations

import functools
from typing import Any

from workbench import safe_yaml
from workbench.data import datasets_path


def profile_names() -> list[str]:
    """Names of the profiles in ``datasets/profiles``."""
    return sorted(path.stem for path in datasets_path("profiles").glob("*.yaml") if path.stem != "classes")


@functools.cache
def generations() -> dict[str, Any]:
    """Generations of processors by name, as ``datasets/profiles/classes.yaml`` has them."""
    text = datasets_path("profiles", "classes.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = safe_yaml.load(text, "classes.yaml")["classes"]
    return found

"""axe-core (MPL-2.0) on a page; it comes with axe-playwright-python and is run in the page: nothing is fetched."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

SERIOUS = ("serious", "critical")


def faults(page: Page) -> list[str]:
    """What axe calls serious or critical: rule, what to do, and the first elements."""
    found: list[Any] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: " + "; ".join(node["html"][:150] for node in one["nodes"][:3])
        for one in found
        if one["impact"] in SERIOUS
    ]

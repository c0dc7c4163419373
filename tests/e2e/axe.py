"""axe-core (MPL-2.0) on a page; it comes with axe-playwright-python and is run in the page: nothing is fetched."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

SERIOUS = ("serious", "critical")
OF_COLOUR = ["color-contrast", "link-in-text-block"]
STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"
"""Colours are there at once when the scheme changes, not on their way."""


def faults(page: Page, *, dark: bool = True) -> list[str]:
    """What axe calls serious or critical, in the light and in the dark: rule, what to do, and the first elements.

    In the dark it is the same page in other colours, so only these are judged again; ``dark`` says whether.
    """
    page.emulate_media(color_scheme="light")
    page.add_style_tag(content=STILL)
    found = _violations(page)
    if not dark:
        return found
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("matchMedia('(prefers-color-scheme: dark)').matches")
    return [
        *found,
        *(f"dark: {fault}" for fault in _violations(page, runOnly={"type": "rule", "values": OF_COLOUR})),
    ]


def _violations(page: Page, **options: Any) -> list[str]:
    found: list[Any] = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"{one['id']}: {one['help']}: " + "; ".join(node["html"][:150] for node in one["nodes"][:3])
        for one in found
        if one["impact"] in SERIOUS
    ]

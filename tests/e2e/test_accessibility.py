"""axe-core finds nothing serious in what people open: a report, the gallery, the explorer (documentation: tests/docs)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from e2e.axe import faults
from workbench.reports.gallery import make_gallery
from workbench.reports.report import make_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1250, "height": 900}, bypass_csp=True)
    yield context.new_page()
    context.close()


def test_axe_finds_what_is_wrong(page: Page) -> None:
    page.set_content(
        """<html lang="en"><title>t</title><style>@media (prefers-color-scheme: dark) {p {color: #ddd}}</style>
        <main><h1>A</h1><img src="x.png"><p style="background: white">text</p></main>"""
    )
    without_words, dim = faults(page)
    assert without_words.startswith("image-alt: ") and dim.startswith("dark: color-contrast: ")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return make_report(
        ROOT / "notebooks/06_report_template.ipynb", folder / "a.html", parameters={"memory": "1 GiB"}
    ).path


@pytest.mark.slow
def test_a_report(report: Path, page: Page) -> None:
    page.goto(report.as_uri())
    assert faults(page) == []


@pytest.mark.slow
def test_the_gallery(report: Path, page: Page) -> None:
    index, count = make_gallery(report.parent)
    assert count == 1
    page.goto(index.as_uri())
    assert faults(page) == []


@pytest.mark.slow
def test_the_explorer(address: str, page: Page) -> None:
    page.goto(address)
    expect(page.locator("[data-kind=host] [data-node='7']")).to_be_visible(timeout=120_000)
    assert faults(page) == []
    for name in ("vCPUs", "Calls", "Compare", "Share"):
        page.get_by_role("tab", name=name, exact=True).click()
        assert faults(page) == [], name

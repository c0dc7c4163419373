"""axe-core finds nothing serious in what people open: a report, the gallery, the documentation, the explorer.

axe-core (MPL-2.0) comes with axe-playwright-python; it is run in the page, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from e2e import servers
from workbench.commands import cli
from workbench.docs import site
from workbench.reports.gallery import make_gallery
from workbench.reports.report import make_report

ROOT = Path(__file__).resolve().parents[2]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with servers.chromium() as chromium:
        yield chromium


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1250, "height": 900}, color_scheme=request.param, bypass_csp=True)
    yield context.new_page()
    context.close()


def faults(page: Page) -> list[str]:
    """What axe calls serious or critical: rule, what to do, and the first elements."""
    found: list[Any] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: " + "; ".join(node["html"][:150] for node in one["nodes"][:3])
        for one in found
        if one["impact"] in SERIOUS
    ]


def test_axe_finds_what_is_wrong(page: Page) -> None:
    page.set_content(
        '<html lang="en"><title>t</title><main><h1>A</h1><img src="x.png"><p style="color:#ccc">text</p></main>'
    )
    assert {fault.split(":")[0] for fault in faults(page)} >= {"image-alt"}


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


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cli._register_all()
    return site.build(tmp_path_factory.mktemp("docs") / "site", typer.main.get_command(cli.app)).parent


@pytest.mark.slow
def test_the_documentation(documentation: Path, page: Page) -> None:
    names = ("index", "tutorial/ten-minutes", "explanation/interfaces", "reference/cli", "reference/scenario",
             "reference/kernels", "reference/machines", "reference/api-runs", "notebooks/01_placement", "search")  # fmt: skip
    for name in names:
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((documentation / f"{name}.html").as_uri())
        assert faults(page) == [], name
        assert all(url.startswith(("file:", "data:")) for url in asked), name


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.explorer_app(tmp_path_factory.mktemp("explorer")) as found:
        yield found


@pytest.mark.slow
def test_the_explorer(address: str, page: Page) -> None:
    page.goto(address)
    expect(page.locator("[data-kind=host] [data-node='7']")).to_be_visible(timeout=120_000)
    assert faults(page) == []
    for name in ("vCPUs", "Calls", "Compare", "Share"):
        page.get_by_role("tab", name=name, exact=True).click()
        assert faults(page) == [], name

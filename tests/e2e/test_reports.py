"""Every notebook of the project as a report, opened in a real browser with the network cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page

from workbench.docs import notebooks
from workbench.kernels.code_cache import cache_directory
from workbench.reports import report
from workbench.reports.gallery import make_gallery
from workbench.reports.report import Report, make_report

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 5_000_000
_made: dict[str, Report] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


def report_of(notebook: Path, folder: Path) -> Report:
    """The report of a notebook, made once, of the same quick run that the documentation shows (``make docs``)."""
    if notebook.stem not in _made:
        cache = cache_directory()
        kept = cache.parent / "notebooks" if cache is not None else folder
        ran = notebooks.executed(notebook, notebooks.digest(), kept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "execute", lambda *_, **__: ran)
            parameters = notebooks.QUICK.get(notebook.stem, {})
            _made[notebook.stem] = report.make_report(notebook, folder / f"{notebook.stem}.html", parameters=parameters)
    return _made[notebook.stem]


@pytest.fixture
def offline(browser: Browser) -> Iterator[tuple[Page, list[str], list[str]]]:
    """A page without a network, what it asked for, and what it complained about."""
    context = browser.new_context(viewport={"width": 1250, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page, asked, complaints
    context.close()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_in_git(notebook: Path):
    nb = nbformat.read(notebook, as_version=4)
    nbformat.validate(nb)
    assert nb.nbformat_minor >= 5
    tagged = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in nb.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert cell.outputs == []
        assert set(cell.metadata) <= {"tags"}, cell.metadata
    for line in tagged[0].source.splitlines():
        assert re.match(r"(\w+: .+ = .+  # \w|from (typing|pathlib) import |$)", line), (
            f"not typed, or without help: {line!r}"
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_report_opens_without_a_network(notebook, folder, offline, record_property, capsys):
    made = report_of(notebook, folder)
    record_property("report_bytes", made.bytes)
    with capsys.disabled():
        print(f"\n{notebook.stem}: {made.bytes / 1e6:.2f} MB, {len(made.figures)} figures, {made.seconds:.1f} s")
    assert made.bytes < LARGEST
    page, asked, complaints = offline
    page.goto(made.path.as_uri())
    page.wait_for_load_state("networkidle")
    assert asked == [made.path.as_uri()]
    assert complaints == []
    text = made.path.read_text()
    assert not re.search(r"(?i)\b(https?|ftp|wss?):", text)
    assert made.figures, "a report without figures"
    pictures = page.locator("figure img")
    assert pictures.count() == len(made.figures)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the window"
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(f"[id='{target[1:]}']").count() == 1
    button = page.get_by_role("button", name="Show all code")
    assert page.locator("details.code[open]").count() == 0
    button.click()
    assert page.locator("details.code:not([open])").count() == 0


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_report_prints_on_paper_and_fits_a_telephone(notebook, folder, offline):
    page, _, _ = offline
    page.goto(report_of(notebook, folder).path.as_uri())
    pdf = page.pdf(prefer_css_page_size=True)
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", pdf)
    assert (round(float(box[1])), round(float(box[2]))) == (595, 842)  # A4
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 672, "height": 970})  # the paper between its margins
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "cut off on paper"
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than a telephone"


def test_the_gallery_finds_sorts_and_links(folder, offline):
    for notebook in NOTEBOOKS:
        report_of(notebook, folder)
    index, count = make_gallery(folder)
    assert count == len(NOTEBOOKS)
    page, asked, complaints = offline
    page.goto(index.as_uri())
    rows = page.locator("tbody tr")
    assert rows.count() == count
    assert page.locator("tbody img").count() == count
    for width in (1400, 520):  # of mixed notebooks too: nothing beside the window, and no column of a few letters
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(
            "document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"
        )
        narrow = "[...document.querySelectorAll('tbody td')].filter(cell => cell.textContent && cell.clientWidth < 80).length"
        assert page.evaluate(narrow) == 0
    page.set_viewport_size({"width": 1250, "height": 900})
    page.get_by_label("Search").fill("question of your own")
    assert rows.locator("visible=true").count() == 1
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="report", exact=True).click()
    titles = page.locator("a.title").all_text_contents()
    assert titles == sorted(titles, key=str.lower)
    assert asked == [index.as_uri()]
    assert complaints == []
    page.locator("a.title").first.click()
    page.wait_for_load_state()
    assert page.locator("#wb-provenance").count() == 1


def test_a_hostile_notebook_does_nothing(folder, offline, tmp_path):
    from reports.notebooks import write

    name = "<script>window.pwned=9</script><img src=x onerror=window.pwned=8>"
    made = make_report(write(tmp_path / "n.ipynb"), tmp_path / "n.html", parameters={"machine": name})
    make_gallery(tmp_path)
    page, asked, complaints = offline
    for path in (made.path, tmp_path / "index.html"):
        page.goto(path.as_uri())
        assert page.evaluate("window.pwned") is None
        assert name in page.locator("body").inner_text()
    assert asked == [made.path.as_uri(), (tmp_path / "index.html").as_uri()]
    assert complaints == []


HOSTILE = (
    "<img src='http:/host/b'><img src='//host/c' srcset='//host/d 2x'><iframe src='http://host/e'></iframe>"
    "<link rel=stylesheet href='//host/f'><script>window.pwned = 1</script><img src=x: onerror='window.pwned = 2'>"
    "<style>@import '//host/g'; .a { background: u\\72l('//host/h') }</style>"
    "<div class=a style='background:url(//host/i)'>a</div>"
    "<svg><script>window.pwned = 3</script><image href='//host/j'/></svg><object data='//host/k'></object>"
)
REFRESH = "<meta http-equiv=refresh content='0;url=http:/host/a'>"
COVERING = (
    "<style>/**/ ~ * { display: none } .a { body:has(&) #own { display: none } } body, #own { visibility: hidden }"
    " .b { position: absolute; inset: 0; top: -900px; height: 3000px; background: red; z-index: 99 }"
    " .c { margin: -2000px; padding: 4000px; background: red; box-shadow: 0 0 0 9999px red; transform: scale(99) }</style>"
    "<div class=a>a</div><div class=b>b</div><div class=c>c</div>"
)


def _shown(page: Page, tmp_path: Path, head: str, body: str) -> str:
    """A page with a heading of its own above and below an output, opened; its address."""
    from workbench.reports.html import TEMPLATES

    css = (TEMPLATES / "report" / "report.css").read_text()
    made = tmp_path / "wall.html"
    made.write_text(
        f"<!DOCTYPE html><html><head><meta charset=utf-8>{head}<style>{css}</style></head><body><main>"
        f"<h2 id=own>own</h2><div class=output>{body}</div><h2 id=after>after</h2></main></body></html>"
    )
    page.goto(made.as_uri())
    page.wait_for_load_state("networkidle")
    return made.as_uri()


def test_each_wall_holds_with_the_others_removed(offline, tmp_path, monkeypatch):
    """The allow-list without a policy, the policy without an allow-list, and images decoded anew without either."""
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    from workbench.errors import WorkbenchError
    from workbench.reports import html

    page, asked, _ = offline
    blocked: dict[str, str | None] = {}
    page.on("requestfailed", lambda request: blocked.update({request.url: request.failure}))
    alone = _shown(page, tmp_path, "", html.clean(REFRESH + HOSTILE))
    assert asked == [alone] and page.evaluate("window.pwned") is None
    asked.clear()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{html.content_policy("")}">'
    assert _shown(page, tmp_path, policy, HOSTILE) == alone  # a policy says nothing of a refresh
    assert {blocked.get(url) for url in asked if url != alone} == {"csp"}, (
        "what is asked for does not leave the browser"
    )
    assert page.evaluate("window.pwned") is None
    asked.clear()
    assert _shown(page, tmp_path, "", HOSTILE) == alone and len(asked) > 4, "without walls it does what it wants"
    assert page.evaluate("window.pwned") is not None
    monkeypatch.setattr(html, "clean", lambda markup, *_: markup)
    output = new_output("display_data", data={"image/png": f'iVBORw0KGgo="/>{REFRESH}'})
    with pytest.raises(WorkbenchError, match="report: "):
        html.build_page(new_notebook(cells=[new_code_cell("", outputs=[output])]))


def test_styles_of_outputs_neither_hide_nor_cover_the_report(offline, tmp_path):
    from workbench.reports import html

    page, _, _ = offline
    _shown(page, tmp_path, "", html.clean(COVERING))
    for media in ("print", "screen"):
        page.emulate_media(media=media)
        for name in ("own", "after"):
            page.locator(f"#{name}").scroll_into_view_if_needed()
            seen = page.evaluate(
                "name => { const e = document.getElementById(name), r = e.getBoundingClientRect();"
                " return [r.height > 0, getComputedStyle(e).visibility,"
                " document.elementFromPoint(r.x + 5, r.y + r.height / 2)?.id] }",
                name,
            )
            assert seen == [True, "visible", name], media

"""What a hostile notebook displays does not reach the page, and what is broken is one line."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import bs4
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.errors import WorkbenchError
from workbench.reports.gallery import make_gallery
from workbench.reports.html import build_page, clean, embedded_json, without_hosts

CASES = Path(__file__).parents[1] / "hostile" / "cases"
PNG = b"\x89PNG\r\n\x1a\n"


def displayed(name: str, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """A case's notebook with the outputs that its code displays."""
    import IPython.display

    notebook = nbformat.read(CASES / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":

            def display(data: dict[str, Any], raw: bool, metadata: Any = None, into: Any = cell) -> None:
                assert raw
                into.outputs.append(new_output("display_data", data=data, metadata=metadata or {}))

            monkeypatch.setattr(IPython.display, "display", display)
            exec(cell.source, {})
    assert any(cell.get("outputs") for cell in notebook.cells)
    return notebook


@pytest.mark.parametrize("name", ["evil-png.ipynb", "bad-png.ipynb", "meta.ipynb"])
def test_cases_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkbenchError) as caught:
        build_page(displayed(name, monkeypatch))
    assert str(caught.value).startswith("report: ") and str(caught.value).isprintable()


@pytest.mark.parametrize("info", [5, {"width": "x"}, {"basis": 5}, {"width": -1}, {"caption": []}, {"sha256": 0}])
def test_metadata_have_types(info: Any) -> None:
    data = {"image/png": base64.b64encode(PNG).decode()}
    output = new_output("display_data", data=data, metadata={"workbench": {"figure": info}})
    with pytest.raises(WorkbenchError, match="metadata of a figure"):
        build_page(new_notebook(cells=[new_code_cell("", outputs=[output])]))


def test_image_data_are_encoded_anew() -> None:
    data = {"image/png": base64.encodebytes(PNG + bytes(100)).decode()}
    page = build_page(new_notebook(cells=[new_code_cell("", outputs=[new_output("display_data", data=data)])]))
    image = bs4.BeautifulSoup("".join(page.parts), "html.parser").img
    assert image is not None
    assert image["src"] == "data:image/png;base64," + base64.b64encode(PNG + bytes(100)).decode()


@pytest.mark.parametrize(
    "attachments", [None, {}, [], {"a.png": {}}, {"a.png": "x"}, {"b.png": {"image/png": "iVBORw0KGgo="}}]
)
def test_a_picture_whose_attachment_is_lost_says_so(attachments: object) -> None:
    notebook = new_notebook(cells=[new_markdown_cell("![a <b>plot</b>](attachment:a.png)")])
    if attachments is not None:
        notebook.cells[0]["attachments"] = attachments
    page = "".join(build_page(notebook).parts)
    assert "no attachment a.png" in page
    assert "<img" not in page


@pytest.mark.parametrize("address", ["http:/host/x", "https:\\\\host", "HTTP:///host", "ws:/host", "http://host"])
def test_addresses_with_any_slashes_are_none_any_more(address: str) -> None:
    assert ":" not in without_hosts(address)
    assert "href" not in clean(f'<a href="{address}">x</a>')


@pytest.mark.parametrize(
    "css",
    [
        "background: u\\72l(http:x)", "background: \\75 rl('//x')", "background: u/**/rl(//x)",
        "background: image-set('//x' 1x)", "position: fixed; inset: 0", "pos\\69tion: fixed", "position:/**/sticky",
        "@\\69mport '//x'",
    ],
)  # fmt: skip
def test_css_is_read_as_browsers_read_it(css: str) -> None:
    assert "style" not in clean(f'<div style="{html.escape(css)}">x</div>')
    assert "style" not in clean(f"<style>.a {{ {css} }}</style>")


@pytest.mark.parametrize(
    "css",
    [
        "body { display: none }", "figure { display: none }", "* { visibility: hidden }", "~ figure { display: none }",
        "html, body { display: none }", ":root { display: none }", "a { } } body { display: none }",
        "@media all { body { display: none } }", "/**/ ~ figure { display: none }", "a, /* x */ + main { display: none }",
        ".a { color: red; body:has(&) main { display: none } }", ".a { @media all { :root & { display: none } } }",
    ],
)  # fmt: skip
def test_styles_do_not_reach_out_of_outputs(css: str) -> None:
    import tinycss2

    sheet = bs4.BeautifulSoup(clean(f"<style>{css}</style>"), "html.parser").get_text()
    rules = list(tinycss2.parse_stylesheet(sheet, skip_whitespace=True))
    for rule in list(rules):
        if rule.type == "at-rule":
            rules += tinycss2.parse_rule_list(rule.content, skip_whitespace=True)
    for rule in rules:
        if rule.type == "qualified-rule":
            assert "{" not in tinycss2.serialize(rule.content), "a rule in a rule, whose selector reaches anywhere"
            assert "~" not in sheet and "+" not in sheet
            for selector in tinycss2.serialize(rule.prelude).split(","):
                assert selector.strip().startswith(".output ") and not selector.strip().startswith(".output ~")


def test_styles_of_known_libraries_keep_their_variables() -> None:
    made = clean("<style>:root { --a: 1px; } html[theme=dark] { --a: 2px } .xr-a { width: var(--a) }</style>")
    assert ".output{--a: 1px}" in made and "html[theme=dark] .output{--a: 2px }" in made and ".output .xr-a{" in made


def test_a_hostile_report_does_not_stop_a_gallery(tmp_path: Path) -> None:
    def report(name: str, **facts: Any) -> None:
        embedded = embedded_json({"schema": "workbench-report/1", **facts})
        text = f'<script type="application/json" id="wb-report">{embedded}</script>'
        (tmp_path / name).write_text(text)

    report("good.html", title="good")
    for number, facts in enumerate(
        [{"parameters": 5}, {"notebook": []}, {"figures": 7}, {"declared": "x"}, {"title": {}, "made": []}]
    ):
        report(f"bad{number}.html", **facts)
    made, count = make_gallery(tmp_path)
    assert count == 2 and "good" in made.read_text()


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", True),
        ("data:image/svg+xml;utf8,%3Csvg%3E", True),
        ("data:text/html;base64,PHNjcmlwdD4=", False),
        ("data:application/javascript,alert(1)", False),
        ("data:,", False),
    ],
)
def test_a_picture_is_a_picture(source: str, kept: bool) -> None:
    found = bs4.BeautifulSoup(clean(f'<img src="{source}">'), "html.parser").find("img")
    assert (found is not None and found.get("src") == source) == kept

"""An executed notebook to one HTML file that asks nobody for anything.

Three walls stand between what a notebook prints and the reader's browser, each enough by itself: every HTML output goes
through an allow-list of elements and attributes; addresses of other hosts are taken out; and the page carries a
content security policy under which nothing is loaded and no script runs but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import nbformat

TEMPLATES = Path(__file__).parent / "templates"
METADATA_KEY = "workbench"
HIDDEN_TAG = "workbench-hidden"
_RAW_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAGS = _words(
    "a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3"
    " h4 h5 h6 hr i img input ins kbd label li mark ol p pre q s samp section small span strong style sub summary sup"
    " table tbody td tfoot th thead time tr u ul var wbr"
    " svg g path rect circle ellipse line polyline polygon text tspan defs symbol use clippath lineargradient"
    " radialgradient stop pattern title desc marker"
    " math mi mn mo ms mtext mrow mfrac msqrt mroot mstyle merror mpadded mphantom msub msup msubsup munder mover"
    " munderover mmultiscripts mtable mtr mtd mspace semantics annotation"
)
_DROP_WITH_CONTENT = _words(
    "script iframe object embed applet frame frameset noscript template form button select textarea link meta base"
    " audio video source track portal foreignobject animate animatetransform set"
)
_URL_ATTRIBUTES = _words(
    "action background cite classid codebase data dynsrc formaction href longdesc lowsrc manifest ping poster src"
    " srcdoc srcset usemap xlink:href"
)
_BAD_CSS = re.compile(
    r"(?i)@import|@namespace|expression\s*\(|url\s*\(\s*['\"]?(?!#)|javascript:|behavior\s*:|-moz-binding"
    r"|image-set\s*\(|\b(?:image|src|cross-fade|element)\s*\(|position\s*:\s*(?:fixed|sticky)"
)
_CSS_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|(.))", re.DOTALL)
_OUTER = re.compile(r":root|(?:html|body)(?:\[[^\]]*\]|\.[\w-]+)*")
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Browsers take one slash, or a backslash, for two.
_SCHEME = re.compile(r"(?i)\b(?:https?|ftps?|wss?):[/\\]+")
_SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF8"}
_FIGURE_PARAGRAPH = re.compile(r"^\s*Figure\s+(\d+)\b")


def clean(markup: str, heading: Callable[[Any], None] | None = None) -> str:
    """Return the markup with nothing in it that runs, loads or names another host; `heading` sees each h1-h3."""
    import bs4

    soup = bs4.BeautifulSoup(markup, "html.parser")
    for node in soup.find_all(string=lambda text: isinstance(text, bs4.element.PreformattedString)):
        if not isinstance(node, bs4.element.Stylesheet | bs4.element.Script):
            node.extract()  # comments, doctypes, processing instructions
    for tag in soup.find_all(True):
        if tag.decomposed:
            continue
        name = tag.name.lower()
        if name in _DROP_WITH_CONTENT:
            tag.decompose()
        elif name not in _TAGS:
            tag.unwrap()
        else:
            _clean_tag(tag, name)
    if heading is not None:
        for tag in soup.find_all(["h1", "h2", "h3"]):
            heading(tag)
    return str(soup)


def _clean_tag(tag: Any, name: str) -> None:
    if name == "style":
        rules = "" if _bad_css(tag.get_text()) or "<" in tag.get_text() else _scoped(tag.get_text())
        if rules:
            tag.string = rules
        else:
            tag.decompose()
        return
    if name == "input" and tag.get("type") != "checkbox":
        tag.decompose()
        return
    target = tag.get("href") if name == "a" else None
    for attribute in list(tag.attrs):
        value = tag.attrs[attribute]
        text = " ".join(value) if isinstance(value, list) else str(value)
        key = attribute.lower()
        if key.startswith(("on", "xmlns")) or (key == "id" and text.startswith("wb-")):
            del tag.attrs[attribute]
        elif key in _URL_ATTRIBUTES:
            inside = text.startswith("#") or (name == "img" and key == "src" and _is_data_image(text))
            if not inside:
                del tag.attrs[attribute]
        elif _bad_css(text) and key not in ("alt", "title"):
            del tag.attrs[attribute]
    if target is not None and "href" not in tag.attrs:
        # a citation: what it is called, and where it is, as text
        tag.name = "cite"
        tag.attrs.clear()
        bare = _SCHEME.sub("", str(target)).rstrip("/")
        shown = tag.get_text()
        if _SCHEME.search(str(target)) and bare not in shown:
            tag.append(f" ({bare})")


def _bad_css(text: str) -> bool:
    """Whether CSS loads something or leaves its place; escapes such as ``\\75rl(`` are read as browsers read them."""

    def character(found: re.Match[str]) -> str:
        code = int(found[1], 16) if found[1] else 0
        return found[2] or (chr(code) if 0 < code < 0x110000 else "\ufffd")

    plain = _CSS_COMMENT.sub("", text)
    return any(_BAD_CSS.search(form) for form in (text, plain, _CSS_ESCAPE.sub(character, plain)))


def _scoped(text: str) -> str:
    """A style sheet whose rules reach outputs only: every selector is put below ``.output``; other rules are dropped."""
    import tinycss2

    kept = []
    for rule in tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True):
        if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports") and rule.content is not None:
            inner = _scoped(tinycss2.serialize(rule.content))
            kept.append(f"@{rule.lower_at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword == "keyframes" and rule.content is not None:
            kept.append(f"@keyframes{tinycss2.serialize(rule.prelude)}{{{tinycss2.serialize(rule.content)}}}")
        elif rule.type == "qualified-rule":
            selectors: list[list[Any]] = [[]]
            for token in rule.prelude:
                if token.type == "comment":  # before a combinator it would hide that
                    continue
                if token.type == "literal" and token.value == ",":
                    selectors.append([])
                else:
                    selectors[-1].append(token)
            names = [tinycss2.serialize(selector).strip() for selector in selectors]
            content = _declarations(rule.content)
            if any(_OUTER.fullmatch(name) for name in names):  # themes set variables there; nothing else reaches so far
                content = ";".join(part for part in content.split(";") if part.strip().startswith("--"))
            below = [_below_output(name) for name in names if name and name[0] not in "+~>|"]
            if below and content.strip():
                kept.append(f"{','.join(below)}{{{content}}}")
    return "\n".join(kept)


def _declarations(content: Any) -> str:
    """What a rule declares; rules nested in it are dropped, whose selectors reach anywhere (``body:has(&) main``)."""
    import tinycss2

    parts = tinycss2.parse_blocks_contents(content, skip_comments=True, skip_whitespace=True)
    return ";".join(part.serialize() for part in parts if part.type == "declaration")


def _below_output(selector: str) -> str:
    """``:root`` becomes the output itself, ``html[...]`` and ``body[...]`` stay above it, all others come below."""
    if selector == ":root":
        return ".output"
    if _OUTER.fullmatch(selector):
        return f"{selector} .output"
    return f".output {selector}"


def _is_data_image(text: str) -> bool:
    if re.fullmatch(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/]+={0,2}", text):
        return True
    return re.fullmatch(r"data:image/svg\+xml[;,][^\"'<>\s]*", text) is not None


def without_hosts(page: str) -> str:
    """Take the scheme off every address in the text: it stays readable and is no address any more."""
    return _SCHEME.sub("", page)


@dataclass
class Figure:
    """A numbered figure of a report."""

    number: int
    caption: str
    kind: str
    """``data`` when the digest is of the Dataset behind it, ``picture`` when of the pixels."""
    sha256: str

    @property
    def short(self) -> str:
        """The first sentence of the caption, for the list of figures."""
        first = re.split(r"(?<=[.:;])\s", self.caption, maxsplit=1)[0].rstrip(".:;")
        return first if len(first) <= 70 else first[:67].rsplit(" ", 1)[0] + " …"


@dataclass
class Page:
    """What the body of a report is made of."""

    title: str = ""
    parts: list[str] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def collect_figures(notebook: nbformat.NotebookNode) -> list[Figure]:
    """Return the figures of an executed notebook, numbered, with the digest that --check compares."""
    return build_page(notebook).figures


def build_page(notebook: nbformat.NotebookNode, title: str = "") -> Page:
    """Turn cells and outputs into cleaned HTML parts, numbering figures and headings on the way."""
    page = Page(title=title)
    own_title = not title
    latest = {"heading": ""}
    numbers = itertools.count(1)

    def heading(tag: Any) -> None:
        nonlocal own_title
        text = tag.get_text().strip()
        latest["heading"] = text
        level = int(tag.name[1])
        tag.attrs = {"id": f"wb-section-{next(numbers)}"}
        if level == 1 and own_title:
            page.title, own_title = text, False
        elif text:
            page.contents.append({"id": tag.attrs["id"], "text": text, "level": max(level, 2)})
        if level == 1 and page.contents and page.contents[-1]["id"] == tag.attrs["id"]:
            tag.name = "h2"

    cells = [cell for cell in notebook.cells if HIDDEN_TAG not in cell.metadata.get("tags", [])]
    code_number = 0
    for index, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            page.parts.append(_markdown(cell.source, heading, cell.get("attachments", {})))
        elif cell.cell_type == "code":
            code_number += 1
            if cell.source.strip():
                page.parts.append(_code(cell, code_number))
            following = cells[index + 1] if index + 1 < len(cells) else None
            written = _written_number(following)
            for output in cell.outputs:
                page.parts.append(_output(output, page, latest["heading"], written))
    page.parts = [part for part in page.parts if part]
    page.title = page.title or "Report"
    return page


def _written_number(cell: Any) -> int | None:
    """Return N when the text right below the code starts a paragraph with "Figure N": its author captioned it."""
    if cell is None or cell.cell_type != "markdown":
        return None
    found = re.match(r"\s*[*_]*Figure\s+(\d+)\b", cell.source)
    return int(found.group(1)) if found else None


def _code(cell: Any, number: int) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    tags = cell.metadata.get("tags", [])
    name = "Parameters given" if "injected-parameters" in tags else "Parameters" if "parameters" in tags else "Code"
    body = highlight(cell.source, PythonLexer(), HtmlFormatter())
    return f'<details class="code"><summary>{name} [{number}]</summary>{body}</details>'


def _markdown(
    source: str, heading: Callable[[Any], None] | None, attachments: dict[str, Any], *, literal: bool = False
) -> str:
    """Markdown with TeX as cleaned HTML; `literal` shows tags in it as text (captions carry users' values)."""
    import bs4
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """TeX becomes MathML here: browsers draw it without a script."""

        def inline_math(self, body: str) -> str:
            return _math(body, "inline")

        def block_math(self, body: str) -> str:
            return _math(body, "block")

        def latex_environment(self, name: str, body: str) -> str:
            return _math(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

        def image(self, text: str, url: str, title: str | None = None) -> str:
            name = url.removeprefix("attachment:")
            kept = attachments.get(name) if isinstance(attachments, Mapping) else None
            if name != url and not (isinstance(kept, Mapping) and kept):
                return f"<code>{html.escape(text)}: no attachment {html.escape(name)}</code>"
            return super().image(text, url, title)

    def _math(body: str, display: str) -> str:
        try:
            return convert(body, display=display)
        except Exception:  # latex2mathml raises many kinds; the TeX itself is still readable
            return f"<code>{html.escape(body)}</code>"

    renderer = Renderer(escape=literal, attachments=attachments, exclude_anchor_links=True)
    markup = clean(MarkdownWithMath(renderer=renderer).render(source), heading)
    soup = bs4.BeautifulSoup(markup, "html.parser")
    for paragraph in soup.find_all("p"):
        if _FIGURE_PARAGRAPH.match(paragraph.get_text()):
            paragraph["class"] = "caption"
    return str(soup)


def _output(output: Any, page: Page, section: str, written: int | None) -> str:
    if output.output_type == "stream":
        text = _last_of_carriage_returns(output.text)
        if not text.strip():
            return ""
        return f'<div class="output {html.escape(output.name)}"><pre>{_ansi(text)}</pre></div>'
    if output.output_type == "error":
        text = "\n".join(output.get("traceback", []))
        return f'<div class="output stderr"><pre>{_ansi(text)}</pre></div>'
    data = output.get("data", {})
    info = output.get("metadata", {}).get(METADATA_KEY, {})
    if not isinstance(info, dict):
        raise WorkbenchError(f"report: metadata {METADATA_KEY!r} of an output are {type(info).__name__}, not a mapping")
    for mime in ("image/svg+xml", *_RAW_IMAGES) if "figure" in info else _RAW_IMAGES:
        if mime in data and ("figure" in info or "text/html" not in data):
            preview = data.get("image/png") if mime == "image/svg+xml" and not page.figures else None
            return _picture(data[mime], mime, page, section, info.get("figure", {}), written, preview)
    if "text/html" in data:
        return f'<div class="output">{clean(_text(data["text/html"]))}</div>'
    if "text/markdown" in data:
        return f'<div class="output">{_markdown(_text(data["text/markdown"]), None, {})}</div>'
    if "text/latex" in data:
        return f'<div class="output">{_markdown(_text(data["text/latex"]), None, {})}</div>'
    if any("widget-view" in mime for mime in data):
        return '<p class="note">An interactive control stood here; it works when the notebook is opened.</p>'
    if "text/plain" in data:
        return f'<div class="output"><pre>{_ansi(_text(data["text/plain"]))}</pre></div>'
    return ""


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _ansi(text: str) -> str:
    from nbconvert.filters.ansi import ansi2html

    return str(ansi2html(text))


def _last_of_carriage_returns(text: str) -> str:
    """A progress bar rewrites its line; keep what stood there last."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _decoded(text: str, mime: str) -> bytes:
    """The bytes of an image output. Raises WorkbenchError for what is not base64, or not such an image."""
    try:
        raw = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raw = b""
    if not raw.startswith(_SIGNATURES[mime]):
        raise WorkbenchError(f"report: an output says {mime} and is none: {text[:40]!a}")
    return raw


_INFO = {"caption": str, "alt": str, "sha256": str, "width": int, "basis": list, "csv": str}


def _figure_info(info: Any) -> dict[str, Any]:
    """What a figure's metadata say about it. Raises WorkbenchError for metadata of another type."""
    if not isinstance(info, dict):
        raise WorkbenchError(f"report: metadata of a figure are {type(info).__name__}, not a mapping")
    for name, kind in _INFO.items():
        value = info.get(name)
        if value is not None and not (isinstance(value, kind) and not isinstance(value, bool)):
            raise WorkbenchError(f"report: metadata of a figure: {name} is {ascii(value)[:40]}, not {kind.__name__}")
    if not 0 <= (info.get("width") or 0) <= 1 << 14:
        raise WorkbenchError(f"report: metadata of a figure: width {info['width']} is not 0 to {1 << 14} pixels")
    return info


def _picture(
    value: Any, mime: str, page: Page, section: str, info: dict[str, Any], written: int | None, preview: Any = None
) -> str:
    text = _text(value)
    if mime == "image/svg+xml":
        raw = text.encode()
    else:
        raw = _decoded(text, mime)
    encoded = base64.b64encode(raw).decode()
    number = len(page.figures) + 1
    info = _figure_info(info)
    caption = str(info.get("caption") or "")
    captioned_below = not caption and written is not None
    if "sha256" in info:
        kind, sha256 = "data", str(info["sha256"])
    else:
        kind, sha256 = "picture", hashlib.sha256(raw).hexdigest()
    shown = caption or section
    page.figures.append(Figure(number, shown, kind, sha256))
    alt = html.escape(str(info.get("alt") or shown or f"Figure {number}"), quote=True)
    width = f' width="{int(info["width"])}"' if info.get("width") else ""
    basis = ", ".join(str(item) for item in info.get("basis", []))
    note = f"{html.escape(basis)} · " if basis else ""
    digest = f'<span class="digest">{note}{kind} {sha256[:12]}</span>'
    if captioned_below:
        below = ""
    else:
        inside = html.escape(section)
        if caption:
            inside = _markdown(caption, None, {}, literal=True).strip().removeprefix("<p>").removesuffix("</p>")
        below = f"<figcaption><b>Figure {number}.</b> {inside} {_csv_link(info, number)}{digest}</figcaption>"
    # The gallery shows the first figure small, and cannot draw SVG.
    small = f' data-preview="{base64.b64encode(_decoded(_text(preview), "image/png")).decode()}"' if preview else ""
    image = f'<img src="data:{mime};base64,{encoded}" alt="{alt}"{width}{small}>'
    return f'<figure id="wb-figure-{number}">{image}{below}</figure>'


def _csv_link(info: dict[str, Any], number: int) -> str:
    """A link to the figure's data, which are in the file itself."""
    if not info.get("csv"):
        return ""
    encoded = base64.b64encode(str(info["csv"]).encode()).decode()
    return f'<a class="data" download="figure-{number}.csv" href="data:text/csv;base64,{encoded}">data (CSV)</a> '


def embedded_json(value: object) -> str:
    """Return JSON that may stand in a script element: no tag can end it and no address is in it."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("/", "\\/")


def read_embedded(page: str) -> dict[str, Any] | None:
    """Return what :func:`embedded_json` put into a report, or None when the page is none of ours."""
    start = '<script type="application/json" id="wb-report">'
    at = page.rfind(start)
    if at < 0:
        return None
    try:
        found = json.loads(page[at + len(start) : page.index("</script>", at)])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def content_policy(script: str) -> str:
    """Nothing is fetched, embedded or sent; only this one script runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def render(notebook: nbformat.NotebookNode, page: Page, facts: dict[str, Any]) -> str:
    """Render a report through nbconvert with the workbench's own template (``templates/report``).

    facts: version, parameters, command, check, facts, versions, scenarios, inputs, embedded (see the template).
    """
    from markupsafe import Markup
    from nbconvert import TemplateExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    folder = TEMPLATES / "report"
    script = (folder / "report.js").read_text(encoding="utf-8")
    css = (folder / "report.css").read_text(encoding="utf-8") + HtmlFormatter().get_style_defs(".highlight")
    # not HTMLExporter, which parses the page once more and writes it differently
    exporter = TemplateExporter(
        config=Config(),
        template_name="report",
        template_file="index.html.j2",
        extra_template_basedirs=[str(TEMPLATES)],
    )
    context = {
        **facts,
        "title": page.title,
        "parts": [Markup(part) for part in page.parts],
        "contents": page.contents,
        "figures": page.figures,
        "css": Markup(css),
        "script": Markup(script),
        "csp": content_policy(script),
        "embedded": Markup(facts["embedded"]),
    }
    body, _ = exporter.from_notebook_node(notebook, resources={"report": context})
    return without_hosts(body)

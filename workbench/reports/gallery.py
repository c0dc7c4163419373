"""An index page over many reports: a picture of each, their parameters as columns, and a search."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workbench import replacing
from workbench.errors import WorkbenchError
from workbench.files import read_file, real_path
from workbench.limits import REPORT_BYTES

MARK = '<meta name="generator" content="workbench gallery">'
"""Tells a gallery from other pages."""
THUMBNAIL = (360, 240)
"""Pixels of the largest thumbnail."""
_PICTURE = re.compile(
    r'<figure id="wb-figure-\d+">'
    r'<img (?:src="data:image/(?:png|jpeg);base64,|[^>]*? data-preview=")([A-Za-z0-9+/=]+)"'
)


@dataclass(frozen=True)
class FoundReport:
    """One report in the gallery."""

    link: str
    title: str
    notebook: str
    made: str
    figures: int
    thumbnail: str
    """A data address, or empty when the report has no picture."""
    parameters: dict[str, str]


def find_reports(folder: Path) -> list[FoundReport]:
    """Return the reports below a directory, newest first; other HTML files are left out."""
    from workbench.reports.html import read_embedded

    if not folder.is_dir():
        raise WorkbenchError(f"gallery: {str(folder)!r} is not a directory")
    entries = []
    for path in sorted(folder.rglob("*.html")):
        try:
            text = read_file(path, REPORT_BYTES, "gallery").decode("utf-8")
        except (WorkbenchError, UnicodeDecodeError):
            continue
        facts = read_embedded(text)
        if facts and str(facts.get("schema", "")).startswith("workbench-report/"):
            entry = _entry(path.relative_to(folder), text, facts)
            if entry is not None:
                entries.append(entry)
    return sorted(entries, key=lambda entry: entry.made, reverse=True)


def _entry(path: Path, text: str, facts: dict[str, Any]) -> FoundReport | None:
    """A report's row; None if its facts are not of the types that ours have."""
    given, declared = facts.get("parameters", {}), facts.get("declared", {})
    book, figures = facts.get("notebook", {}), facts.get("figures", [])
    if not all(isinstance(part, dict) for part in (given, declared, book)) or not isinstance(figures, list):
        return None
    parameters = {str(name): str(default).strip("'\"") for name, default in declared.items()}
    parameters |= {str(name): str(value) for name, value in given.items()}
    found = _PICTURE.search(text)
    return FoundReport(
        link=quote(path.as_posix()),
        title=str(facts.get("title") or path.stem),
        notebook=str(book.get("name", "")),
        made=str(facts.get("made", ""))[:16].replace("T", " "),
        figures=len(figures),
        thumbnail=_thumbnail(found.group(1)) if found else "",
        parameters=parameters,
    )


def _thumbnail(encoded: str) -> str:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # a picture that cannot be read is left out, not the report
        return ""
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    buffer = io.BytesIO()
    paper.quantize(64).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def columns_of(entries: list[FoundReport]) -> tuple[dict[str, str], list[str]]:
    """What all reports share, said once; and the parameters that are columns: which differ, and most reports have.

    What only reports of one notebook among others have stands in their own rows: forty columns that are mostly empty
    can be read by nobody.
    """
    names = dict.fromkeys(name for entry in entries for name in entry.parameters)
    values = {name: [entry.parameters[name] for entry in entries if name in entry.parameters] for name in names}
    everywhere = [name for name in names if len(values[name]) == len(entries)]
    same = {name: values[name][0] for name in everywhere if len(entries) > 1 and len(set(values[name])) == 1}
    columns = [name for name in names if name not in same and 2 * len(values[name]) > len(entries)]
    return same, columns


def check_replaceable(out: Path, force: bool) -> None:
    """Whether a gallery may be written here: nothing is there, or a gallery. Raises WorkbenchError if not."""
    if out.suffix.lower() not in (".html", ".htm") and not out.is_dir():
        raise WorkbenchError(f"out: {out.name!a} must end in .html")
    replacing.check(out, lambda path: replacing.begins(path, MARK.encode()), "gallery", force=force, field="out")


def make_gallery(folder: Path, out: Path | None = None, *, force: bool = False) -> tuple[Path, int]:
    """Write the index page of the reports below a directory; return its path and how many it lists.

    out: ``index.html`` in the directory by default. Links are relative, so the directory can be moved or sent.
    force: replace whatever file is there; otherwise only a gallery is.
    """
    import os

    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    from workbench.files import whole_file
    from workbench.reports.html import TEMPLATES, content_policy, without_hosts

    out = out or folder / "index.html"
    check_replaceable(out, force)
    entries = find_reports(folder)
    if not entries:
        raise WorkbenchError(f"gallery: no reports below {str(folder)!r}")
    prefix = quote(os.path.relpath(folder, out.parent) + "/") if real_path(out.parent) != real_path(folder) else ""
    same, columns = columns_of(entries)
    own = {
        entry.link: {
            name: value for name, value in entry.parameters.items() if name not in same and name not in columns
        }
        for entry in entries
    }
    source = TEMPLATES / "gallery"
    script = (source / "gallery.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(source), autoescape=True)
    page = environment.get_template("index.html.j2").render(
        entries=entries,
        columns=columns,
        same=same,
        own=own,
        prefix=prefix,
        css=Markup((source / "gallery.css").read_text(encoding="utf-8")),
        script=Markup(script),
        csp=content_policy(script),
        mark=Markup(MARK),
    )
    with whole_file(out) as temporary:
        temporary.write_text(without_hosts(page), encoding="utf-8")
    return out, len(entries)

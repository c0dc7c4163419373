"""The site: sources, reference and notebooks put together in a temporary folder and given to Sphinx."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench import replacing
from workbench.data import root
from workbench.docs import notebooks, reference
from workbench.errors import WorkbenchError
from workbench.files import folder_beside

TITLE = "guest_memfd NUMA workbench"
SETTINGS: dict[str, Any] = {
    "project": TITLE,
    "author": "the authors of the workbench",
    "html_title": TITLE,
    "language": "en",
    "extensions": ["myst_nb"],
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_css_files": ["workbench.css"],
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "html_show_sphinx": False,
    "pygments_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "myst_enable_extensions": ["colon_fence"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},  # would be fetched from elsewhere
    "nb_merge_streams": True,
    "toc_object_entries": False,
}
_NETWORK = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["'](?:https?:)?//""")


def build(
    target: Path,
    command: Any,
    *,
    kept: Path | None = None,
    run: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make the site in ``target`` and return the path of its first page.

    Parameters
    ----------
    target : a directory, which is replaced if it holds a site of ours
    command : root of the command line, for its reference
    kept : directory with the outputs of notebooks that were run before
    run : run the notebooks that have none there
    force : replace the directory whatever it holds
    say : called with a line about what is done

    Raises
    ------
    WorkbenchError
        Sphinx warned about something, a notebook failed, or ``target`` is not ours. Nothing is replaced then.
    """
    check_replaceable(target, force)
    try:
        with folder_beside(target) as temporary:
            source, made = temporary / "source", temporary / "site"
            shutil.copytree(root("docs"), source, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))
            say("writing the reference")
            reference.write(source / "reference", command)
            notebooks.write(source / "notebooks", kept, run=run, say=say)
            with contextlib.suppress(WorkbenchError, OSError):
                shutil.copytree(root("notebooks") / "images", source / "images", dirs_exist_ok=True)
            say("making the pages")
            sphinx(source, made, temporary / "doctrees")
            replacing.exchange(made, target)
    except OSError as error:
        why = str(error.args[0][0][2]) if isinstance(error, shutil.Error) else error.strerror or str(error)
        why = re.sub(
            r"^\[Errno \d+\] ([^:]+):.*", r"\1", why, flags=re.DOTALL
        )  # shutil's has the names of its own places
        raise WorkbenchError(f"-o: cannot write {str(target)!a}: {why}") from error
    return target / "index.html"


_HEADING = 'class="caption" role="heading"'
"""Captions of tables of contents, to which Sphinx gives no level: readers of the screen want one."""


def check_replaceable(target: Path, force: bool) -> None:
    """Refuse what is there and is no site of ours. Raises WorkbenchError."""
    replacing.check(target, _is_site, "documentation of ours", force=force, folder=True)


def _is_site(target: Path) -> bool:
    project = f"# Project: {TITLE}".encode()
    return target.is_dir() and (not any(target.iterdir()) or replacing.begins(target / "objects.inv", project, 200))


def sphinx(source: Path, target: Path, doctrees: Path) -> None:
    """Run Sphinx. Raises WorkbenchError with its first warnings, and for a page that would fetch something."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    said = io.StringIO()
    settings = SETTINGS | {"release": metadata.version("guest-memfd-workbench")}
    with _unchanged_environment(), patch_docutils(source), docutils_namespace():
        # As a file and not as overrides, which come before the theme has said what it takes.
        (source / "conf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
        application = Sphinx(source, source, target, doctrees, "html", status=None, warning=said, freshenv=True)
        application.build(force_all=True)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in said.getvalue().splitlines() if line.strip()]
    if lines:
        first = lines[0].replace(f"{source}/", "")
        raise WorkbenchError(f"documentation: {first}" + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""))
    for page in target.rglob("*.html"):
        text = page.read_text(encoding="utf-8").replace(_HEADING, f'{_HEADING} aria-level="2"')
        text = text.replace("<pre>", '<pre tabindex="0">')  # what is wide scrolls, by keys too
        page.write_text(text, encoding="utf-8")
        found = _NETWORK.search(text)
        if found is not None:
            raise WorkbenchError(f"documentation: {page.name} would fetch {found[0][:80]}")


@contextlib.contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Sphinx sets the locale, and its extensions use what its next version will not have: neither is anybody's matter."""
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def cached(base: Path, run: bool) -> Path:
    """Where the site of these sources is kept below ``base``; one with outputs of notebooks is another."""
    made = hashlib.sha256(notebooks.digest().encode())
    for folder in (root("docs"), root("notebooks")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in (".md", ".css", ".png", ".ipynb"):
                made.update(path.name.encode() + path.read_bytes())
    return base / f"docs-{made.hexdigest()[:16]}{'-run' if run else ''}"

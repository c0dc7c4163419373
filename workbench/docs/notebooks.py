"""The ready notebooks as pages: with the outputs of a quick run where one was made, else as they are.

Running them takes minutes, so it is asked for (``workbench docs --notebooks``, ``make docs``) and its results are kept:
under a name that says which notebook, which parameters and which sources of the workbench they came from.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data import notebooks_path, root

if TYPE_CHECKING:
    from nbformat import NotebookNode

QUICK: dict[str, dict[str, Any]] = {
    "01_placement": {"memory": "8 GiB"},
    "03_conversion": {"memory": "4 GiB", "buffers": 400, "samples": 20},
    "04_without_struct_page": {
        "memory": "64 GiB",
        "conversions": 1000,
        "churn_memory": "256 GiB",
        "churn_machines": 1000,
    },
    "05_policy_sweep": {"machines": ["epyc1-naples-2s", "spr-8468v-cxl"], "memory": ["4 GiB"]},
    "06_report_template": {"memory": "1 GiB"},
    "08_cost_of_placement": {"machines": ["spr-8468v-cxl"], "memory": "4 GiB", "samples": 20},
}
"""Parameters of the quick run; a notebook that is not here runs with its own."""
_WIDGETS = ("00_explorer",)
"""Notebooks that are nothing without a kernel: shown as they are."""
_MATH = re.compile(r"\$([^$]+)\$")


def write(folder: Path, kept: Path | None, *, run: bool, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Write every ready notebook into ``folder`` and return their names; with ``run``, those without outputs are run.

    ``kept`` is where outputs of earlier runs are. Raises WorkbenchError for a notebook that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(notebooks_path().glob("*.ipynb"))
    sources = digest()
    wanted = [path for path in paths if path.stem not in _WIDGETS]
    if run and kept is not None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda path: executed(path, sources, kept, say), wanted))
    for path in paths:
        _page(path, _kept_at(path, sources, kept), folder / path.name)
    return [path.stem for path in paths]


def digest() -> str:
    """Digest of what outputs depend on: every source of the workbench, and its datasets by name and size."""
    made = hashlib.sha256()
    package = root("docs").parent
    for folder, pattern in ((package, "*.py"), (root("kernels"), "*.py"), (root("datasets"), "*")):
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                made.update(path.relative_to(folder).as_posix().encode())
                made.update(path.read_bytes() if pattern == "*.py" else str(path.stat().st_size).encode())
    return made.hexdigest()


def _kept_at(path: Path, sources: str, kept: Path | None) -> Path | None:
    if kept is None:
        return None
    what = json.dumps([sources, QUICK.get(path.stem, {})], sort_keys=True).encode() + path.read_bytes()
    return kept / f"{path.stem}-{hashlib.sha256(what).hexdigest()[:16]}.ipynb"


def executed(
    path: Path, sources: str, kept: Path | None, say: Callable[[str], None] = lambda line: None
) -> NotebookNode:
    """A notebook after its quick run: as it is kept, else run now and kept. Raises WorkbenchError if it fails."""
    import nbformat

    from workbench.files import whole_file
    from workbench.reports.notebook_parameters import read_notebook
    from workbench.reports.report import execute

    place = _kept_at(path, sources, kept)
    if place is not None and place.exists():
        return nbformat.read(place, as_version=4)
    say(f"running {path.stem}")
    made = execute(read_notebook(path), QUICK.get(path.stem, {}), path.stem)
    if place is not None:
        with whole_file(place) as temporary:
            nbformat.write(made, temporary)
    return made


def _page(path: Path, place: Path | None, out: Path) -> None:
    """One page: the notebook without the cells that are only for reports, with a note on what was run."""
    import nbformat
    from nbformat.v4 import new_markdown_cell

    from workbench.reports.report import executed_source

    ran = place is not None and place.exists()
    made: NotebookNode = nbformat.read(place if ran else path, as_version=4)
    cells = executed_source(made).cells if ran else made.cells
    page = copy.copy(made)
    page.metadata = {key: value for key, value in made.metadata.items() if key in ("kernelspec", "language_info")}
    changed = ", ".join(f"`{name}` {value}" for name, value in QUICK.get(path.stem, {}).items())
    if ran:
        note = (
            f"Run with {changed}, so that it is quick, and otherwise as it stands." if changed else "Run as it stands."
        )
    else:
        note = "Shown without outputs."
    note += f" `workbench report {path.stem}` makes a page of it with your parameters; `make lab` opens it."
    page.cells = [*(_shown(cell) for cell in cells[:1]), new_markdown_cell(note), *(_shown(cell) for cell in cells[1:])]
    page.nbformat_minor = 5
    nbformat.write(page, out)


def _shown(cell: NotebookNode) -> NotebookNode:
    """A cell as a page can show it: formulas as MathML, outputs without scripts or widgets."""
    from latex2mathml.converter import convert
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

    if cell.cell_type != "code":
        return new_markdown_cell(_MATH.sub(lambda found: convert(found[1]), cell.source))
    outputs = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            continue  # progress
        data = {mime: value for mime, value in output.get("data", {}).items() if "javascript" not in mime and
                "widget" not in mime and "vnd" not in mime}  # fmt: skip
        if "text/html" in data and "<script" in str(data["text/html"]):
            data.pop("text/html")
        if "text/html" in data:  # a wide table scrolls, by keys too
            data["text/html"] = str(data["text/html"]).replace("<table", '<table tabindex="0"')
        if data:
            outputs.append(new_output("display_data", data=data, metadata={}))
    tags = ["hide-input"] if len(cell.source.splitlines()) > 8 else []
    return new_code_cell(cell.source, outputs=outputs, metadata={"tags": tags})

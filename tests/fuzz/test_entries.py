"""Damaged files at every other entry: traces, grids, jobs, notebooks, reports in a gallery, stores, profiles, tables.

Each target begins with the files of its folder in ``corpus/``, or with a store made here; what was found once lies there too.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bs4
import pytest
from fuzz.damage import EXAMPLES, answers, changed, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import results
from workbench.cost import calibrate, profile
from workbench.errors import WorkbenchError
from workbench.reports import gallery, html, notebook_parameters
from workbench.reports.report import read_report
from workbench.running import run
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.sweeps import batch, store
from workbench.sweeps.grid import Grid
from workbench.sweeps.sweep import sweep
from workbench.topology.host import Host
from workbench.tracking import traces
from workbench.truth import published

CORPUS = Path(__file__).parent / "corpus"
SMALL = CORPUS / "notebook" / "small.ipynb"
TABLE = "<style>.a { color: red }</style><table><tr><td style='color: red'>1</td></tr></table>"
SHOWN: list[dict[str, str]] = [
    {"text/html": TABLE, "text/plain": "1"},
    {"image/png": "iVBORw0KGgo="},
    {"image/svg+xml": "<svg viewBox='0 0 1 1'><path d='M0 0'/></svg>"},
    {"text/markdown": "*x* <i>y</i>", "text/latex": "$y$"},
]
FIGURE = {"workbench": {"figure": {"width": 10, "caption": "A figure.", "basis": ["counted"]}}}
OUTPUTS: list[dict[str, Any]] = [
    {"output_type": "stream", "name": "stdout", "text": "\x1b[31mred\x1b[0m\n10%\r20%"},
    *(
        {"output_type": "display_data", "metadata": FIGURE if "image/png" in data else {}, "data": data}
        for data in SHOWN
    ),
    {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[1mx"]},
]
"""Outputs of every kind for the last cell of a notebook: in git it has none."""


def seed_of(path: Path) -> bytes:
    """A file of the corpus as a target begins with it."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    book = json.loads(path.read_bytes())
    book["cells"][-1]["outputs"] = OUTPUTS
    return json.dumps(book).encode()


FACTS = ("parameters", "facts", "versions", "scenarios", "inputs")


def notebook(path: Path) -> None:
    """What a report reads of a notebook, and what it shows of its outputs; walls hold whatever they are."""
    book = notebook_parameters.read_notebook(path)
    declared = notebook_parameters.read_parameters(book, path.name)
    notebook_parameters.check_values(declared, {}, {"sizes": "[1]", "share": "nan"}, path.name)
    made = html.build_page(book)
    page = "".join(made.parts)
    assert not any(word in page.lower() for word in ("<script", "<iframe", "<meta", "<link"))
    for tag in bs4.BeautifulSoup(page, "html.parser").find_all(True):  # an address in a text is a text
        said = [*map(str, tag.attrs.values()), tag.text if tag.name == "style" else ""]
        assert not any(re.search("https?:/|javascript:", text, re.IGNORECASE) for text in said), str(tag)[:500]
        assert not any(name.lower().startswith("on") for name in tag.attrs), str(tag)[:500]
    html.render(book, made, dict.fromkeys(("version", "command", "check", "embedded"), "") | dict.fromkeys(FACTS, ()))


def reports(path: Path) -> None:
    """A gallery over it, and the report read for ``--check``."""
    (path.parent / "index.html").unlink(missing_ok=True)
    answers(lambda: gallery.make_gallery(path.parent, path.parent / "made.html", force=True), path.read_bytes())
    (path.parent / "made.html").unlink(missing_ok=True)
    read_report(path)


def first_cell(path: Path) -> dict[str, Any]:
    grid = Grid.from_yaml(path)
    return grid.cell([0] * len(grid.axes))


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "scenario": lambda path: run(Scenario.from_yaml(path)),
    "trace": traces.read_trace,
    "grid": first_cell,
    "jobs": batch.read_jobs,
    "notebook": notebook,
    "gallery": reports,
    "profile": lambda path: profile.read_profile(str(path)),
    "calibration": calibrate.calibrate,
    "published": lambda path: published.reproduce(str(path)),
}
SEEDS = [(entry, path) for entry in ENTRIES for path in sorted((CORPUS / entry).iterdir())]


def test_every_folder_of_the_corpus_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(ENTRIES)


def test_notebooks_of_the_corpus_are_clean() -> None:
    for path in CORPUS.rglob("*.ipynb"):
        assert not any(
            cell.get("outputs") or cell.get("execution_count") for cell in json.loads(path.read_bytes())["cells"]
        )


@pytest.mark.parametrize(
    "cell", [{"metadata": {"tags": 1.5}}, {"metadata": {"tags": ["a", 1]}}, {"source": "\ud800"}, {"id": "\ud800"}]
)
def test_cells_that_are_none_are_one_line(cell: dict[str, Any], tmp_path: Path) -> None:
    book = json.loads(SMALL.read_bytes())
    book["cells"][-1] |= cell
    (tmp_path / "x.ipynb").write_text(json.dumps(book))
    with pytest.raises(WorkbenchError, match="not a Jupyter notebook"):
        notebook(tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    "metadata",
    [{"kernelspec": {"x": 1}}, {"kernelspec": {"name": 1, "display_name": "x"}}, {"title": 1}, {"authors": {}}],
)
def test_what_is_said_of_a_notebook_and_is_none_is_one_line(metadata: dict[str, Any], tmp_path: Path) -> None:
    """Whatever would be refused when the notebook has been run is refused before."""
    book = json.loads(SMALL.read_bytes())
    book["metadata"] |= metadata
    (tmp_path / "x.ipynb").write_text(json.dumps(book))
    with pytest.raises(WorkbenchError, match="not a Jupyter notebook"):
        notebook(tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    "output",
    [
        {}, [], {"output_type": 1}, {"output_type": "stream", "name": "stdout"}, {"output_type": "display_data", "data": []},
        {"output_type": "display_data", "data": {"image/png": [None]}, "metadata": {}},
        {"output_type": "display_data", "data": {"text/plain": {"x": 1}}, "metadata": {}},
        {"output_type": "stream", "name": 1, "text": "x"}, {"output_type": "error", "traceback": [1]},
    ],
)  # fmt: skip
def test_outputs_that_are_none_are_one_line(output: Any, tmp_path: Path) -> None:
    book = json.loads(SMALL.read_bytes())
    book["cells"][-1]["outputs"] = [output]
    (tmp_path / "x.ipynb").write_text(json.dumps(book))
    with pytest.raises(WorkbenchError, match="not a Jupyter notebook"):
        notebook(tmp_path / "x.ipynb")


STRUCTURED = (".yaml", ".ipynb")


@pytest.mark.parametrize(("entry", "path"), SEEDS, ids=[f"{entry}-{path.name}" for entry, path in SEEDS])
def test_damaged_files(entry: str, path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content, place = seed_of(path), tmp_path_factory.mktemp(entry) / path.name

    @settings(max_examples=EXAMPLES)
    @given(seed=st.integers(0, 1 << 40))
    def damage(seed: int) -> None:
        place.write_bytes((changed if structured and seed % 2 else damaged)(content, seed))
        answers(lambda: ENTRIES[entry](place), place.read_bytes())

    structured = path.suffix in STRUCTURED
    place.write_bytes(content)
    ENTRIES[entry](place)  # what is refused whole leads no further than to what refuses it
    damage()


# ---------------------------------------------------------------------------------------------------------- stores

HOST = {"name": "h", "nodes": [{"id": 0, "memory_bytes": "64 MiB", "cpus": [0]}], "distances": [[10]]}
SCENARIO = {"host": HOST, "guest": {"memory": "8 KiB"}, "operations": [{"op": "create"}, {"op": "fallocate"}]}
GRID = {"base": SCENARIO, "axes": {"guest.memory": ["8 KiB", "16 KiB"], "seed": [0, 1, 2]}, "chunk": 2}


def harm(place: Path, seed: int) -> str:
    """Damage one file of a store, cut it short, empty it, remove it, or put something else in its place."""
    rng = random.Random(seed)
    files = sorted(path for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file())
    path, way = rng.choice(files), rng.randrange(7)
    content = path.read_bytes()
    path.unlink()
    if way == 0:
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif way == 1:
        path.write_bytes(b"")
    elif way == 2:
        path.mkdir()
    elif way == 3 and len(files) > 1:
        other = rng.choice(files)
        path.write_bytes(other.read_bytes() if other.exists() else b"{}")
    elif way == 4:
        path.write_bytes(
            content.replace(b"float64", b"int8").replace(b'"int8"', b'"float64"').replace(b"int64", b"<f2")
        )
    elif way == 5:
        pass
    else:
        path.write_bytes(damaged(content, seed))
    return f"{way} {path.relative_to(place.parent)}"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result in each format, and the store of a sweep."""
    folder = tmp_path_factory.mktemp("kept")
    dataset = simulate(Scenario.from_mapping(SCENARIO))
    for suffix in (".zarr", ".zarr.zip", ".nc"):
        results.save(dataset, folder / f"result{suffix}")
    sweep(GRID, out=folder / "sweep.zarr", workers=0, progress=False)
    assert Host.model_validate(HOST).name == "h"
    return folder


def copied(kept: Path, name: str, seed: int) -> tuple[Path, str]:
    place = kept.parent / f"harmed-{name}"
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    shutil.copytree(kept / name, place) if (kept / name).is_dir() else shutil.copyfile(kept / name, place)
    return place, harm(place, seed)


@pytest.mark.parametrize("name", ["result.zarr", "result.zarr.zip", "result.nc"])
def test_damaged_results(name: str, kept: Path) -> None:
    @settings(max_examples=max(5, EXAMPLES // 5))
    @given(seed=st.integers(0, 1 << 40))
    def damage(seed: int) -> None:
        place, what = copied(kept, name, seed)
        answers(lambda: results.load(place), what.encode())

    damage()


def test_damaged_stores_of_sweeps(kept: Path) -> None:
    """The store is read, and gone on with: what is damaged is said in one line or computed again, never taken for good."""

    @settings(max_examples=max(5, EXAMPLES // 5))
    @given(seed=st.integers(0, 1 << 40))
    def damage(seed: int) -> None:
        place, what = copied(kept, "sweep.zarr", seed)
        answers(lambda: store.read_store(place), what.encode())
        answers(lambda: sweep(GRID, out=place, workers=0, progress=False), what.encode())

    damage()

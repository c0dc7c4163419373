"""The documentation: complete, made without warnings or a network, and true where a machine can tell."""

from __future__ import annotations

import html
import os
import re
import shlex
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import distributed
import pytest
import typer

import workbench as wb
from e2e import servers
from e2e.axe import faults
from workbench.commands import cli
from workbench.docs import markup, notebooks, site
from workbench.errors import WorkbenchError
from workbench.ready import ready_scenarios
from workbench.sweeps.store import DONE, read_store
from workbench.topology.host import machine_names
from workbench.variables import Simulation

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "workbench/docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def root() -> Any:
    cli._register_all()
    return typer.main.get_command(cli.app)


@pytest.fixture(scope="module")
def built(root: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, which is only there if Sphinx had nothing to warn of: the one of ``make docs`` in WORKBENCH_SITE, with the
    outputs of notebooks, else one without them."""
    if made := os.environ.get("WORKBENCH_SITE"):
        return Path(made)
    return site.build(tmp_path_factory.mktemp("docs") / "site", root).parent


def text_of(page: Path) -> str:
    body = re.sub(r"(?s)<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"))
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


@pytest.mark.slow
def test_the_reference_is_complete(built: Path, root: Any) -> None:
    said = text_of(built / "reference/cli.html")
    assert all(f"workbench {name}" in said for name in root.commands) and "--kernel-profile" in said
    said = text_of(built / "reference/variables.html")
    assert all(name in said for name in Simulation.variables)
    said = text_of(built / "reference/scenario.html")
    assert (
        all(name in said for name in wb.Scenario.model_fields) and "hwpoison" in said and "small_page_fallback" in said
    )
    said = text_of(built / "reference/machines.html")
    assert all(name in said for name in machine_names())
    assert len(list((built / "_images").glob("*.svg"))) == len(machine_names())
    said = text_of(built / "reference/ready.html")
    assert all(one.question.split()[0] in said and one.name in said for one in ready_scenarios())
    assert "workbench.simulation. simulate" in " ".join(text_of(built / "reference/api-runs.html").split())


@pytest.mark.slow
def test_every_page_is_linked_and_nothing_is_fetched(built: Path) -> None:
    pages = {path.relative_to(built).as_posix() for path in built.rglob("*.html")} - {"genindex.html", "search.html"}
    home = (built / "index.html").read_text()
    linked = {name for name in pages if f'href="{name}"' in home}
    assert {name for name in pages - linked if "/api-" not in name} == {"index.html"}
    for path in built.rglob("*.html"):
        assert site._NETWORK.search(path.read_text()) is None, path
    for target in re.findall(r'(?:href|src)="([^"#:?]+)[#?"]', home):
        assert (built / target).exists(), target


@pytest.mark.slow
def test_notebooks_are_pages(built: Path) -> None:
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.stem for path in (built / "notebooks").glob("*.html")} == names
    said = text_of(built / "notebooks/01_placement.html")
    assert ("Run with" in said) if "WORKBENCH_SITE" in os.environ else ("Shown without outputs" in said)
    assert "<math" in (built / "notebooks/05_policy_sweep.html").read_text()


LONG = ("reference/scenario", "reference/api-runs", "notebooks/07_published")
"""Pages whose colours in the dark are those of the command line's and of another notebook: each takes 10 s to judge."""


@pytest.mark.slow
def test_axe_finds_nothing_serious(built: Path) -> None:
    names = ("index", "tutorial/ten-minutes", "explanation/interfaces", "reference/cli", "reference/scenario", "search",
             "notebooks/07_published", "reference/machines", "reference/api-runs", "notebooks/01_placement")  # fmt: skip
    with servers.chromium() as browser:
        view = {"width": 1250, "height": 900}
        page = browser.new_context(viewport=view, bypass_csp=True).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in names:
            page.goto((built / f"{name}.html").as_uri())
            dark = name not in LONG
            assert faults(page, dark=dark) == [], name
            red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
            assert (red < 64) == dark, name
        assert asked and all(url.startswith(("file:", "data:")) for url in asked)


def test_outputs_of_notebooks_are_kept_under_what_they_came_from(tmp_path: Path) -> None:
    path = ROOT / "notebooks/07_published.ipynb"
    place = notebooks._kept_at(path, "digest", tmp_path)
    assert place is not None and place != notebooks._kept_at(path, "another", tmp_path)
    place.write_text(path.read_text().replace('"outputs": []', '"outputs": [{"name": "stdout", "output_type": "stream", "text": '
                                              '"progress"}, {"data": {"text/html": "<b>kept</b>"}, "metadata": {}, '
                                              '"output_type": "display_data"}]', 1))  # fmt: skip
    notebooks._page(path, place, tmp_path / "page.ipynb")
    shown = (tmp_path / "page.ipynb").read_text()
    assert "<b>kept</b>" in shown and "progress" not in shown and "Run as it stands." in shown


def test_only_documentation_of_ours_is_replaced(root: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("mine", "file"):
        with pytest.raises(WorkbenchError, match=r"^-o: "):
            site.build(tmp_path / name, root)
    assert (tmp_path / "mine/letter").read_text() == (tmp_path / "file").read_text() == "dear"
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/objects.inv").write_bytes(f"# Sphinx inventory version 2\n# Project: {site.TITLE}\n".encode())
    site.check_replaceable(tmp_path / "ours", force=False)


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source/_static").mkdir(parents=True)
    (tmp_path / "source/index.md").write_text("# A page\n\n[nowhere](nowhere.md)\n")
    with pytest.raises(WorkbenchError, match=r"^documentation: .*nowhere"):
        site.sphinx(tmp_path / "source", tmp_path / "made", tmp_path / "trees")
    (tmp_path / "source/index.md").write_text('# A page\n\n<img src="https://example.org/x.png" alt="">\n')
    with pytest.raises(WorkbenchError, match=r"index\.html would fetch"):
        site.sphinx(tmp_path / "source", tmp_path / "made", tmp_path / "trees")


def test_docstrings_become_markdown() -> None:
    said = markup.docstring(
        """Draw ``a*b`` as :func:`~workbench.plots.x.draw` does; 1 < 2, a_b*.

        Parameters
        ----------
        start, stop : bytes of
            the ``file``
        """
    )
    assert said.splitlines() == [
        "Draw `a*b` as `draw` does; 1 \\< 2, a\\_b\\*.", "", "", "**Parameters**", "", "- `start, stop`: bytes of",
        "  the `file`",
    ]  # fmt: skip
    assert markup.cell("a | b") == "a \\| b" and markup.code_cell("A|B") == "`A\\|B`"


def commands(page: Path) -> list[list[str]]:
    """Every command line of ours that a page shows: in blocks, and as code in its text."""
    text = page.read_text()
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    lines += re.findall(r"`(workbench [^`]+)`", text)
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"workbench [a-z]", line) and " = " not in line
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_are_shown_exist(page: Path, root: Any) -> None:
    for words in commands(page):
        one, name = root, []
        rest = words[1:]
        while hasattr(one, "commands") and rest and not rest[0].startswith("-"):
            name.append(rest.pop(0))
            if name[-1] not in one.commands and name[-1].isupper():
                break  # a placeholder
            assert name[-1] in one.commands, f"{page.name}: {' '.join(words)}"
            one = one.commands[name[-1]]
        known = {option for parameter in one.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        given = {word.split("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)}
        assert given <= known, f"{page.name}: {' '.join(words)}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_python_that_is_shown_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?s)```python\n(.*?)```", page.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    if page.stem == "cluster":
        stand_in_for_clusters(monkeypatch)
        Path("grid.yaml").write_text("{base: {host: epyc1-naples-2s}, axes: {guest.memory: [1 MiB, 2 MiB, 3 MiB]}}")
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)
            store = read_store("results.zarr")
            assert (store["status"].values == DONE).all()
            assert store["pages_per_node"].sum("node").values.tolist() == [256, 512, 768]
            shutil.rmtree("results.zarr")
        assert STARTED == ["SLURMCluster", "KubeCluster", "LocalCluster"]
        return
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


STARTED: list[str] = []


def stand_in_for_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """``LocalCluster``, in threads, where batch systems have theirs; each takes the arguments that its page shows."""

    class LocalCluster(distributed.LocalCluster):
        def __init__(self, n_workers: int = 1, threads_per_worker: int = 1) -> None:
            STARTED.append(type(self).__name__)
            super().__init__(
                n_workers=n_workers,
                threads_per_worker=threads_per_worker,
                processes=False,
                dashboard_address="127.0.0.1:0",
            )

    class SLURMCluster(LocalCluster):
        def __init__(
            self, *, queue: str, cores: int, processes: int, memory: str, walltime: str, job_script_prologue: list[str]
        ) -> None:
            super().__init__(0)

        def adapt(self, maximum_jobs: int) -> None:  # type: ignore[override]
            self.scale(min(2, maximum_jobs))

    class KubeCluster(LocalCluster):
        def __init__(self, *, name: str, image: str, n_workers: int, resources: Any, worker_command: list[str]) -> None:
            super().__init__(min(2, n_workers))

    jobqueue, kubernetes, operator = map(
        types.ModuleType, ("dask_jobqueue", "dask_kubernetes", "dask_kubernetes.operator")
    )
    jobqueue.SLURMCluster, operator.KubeCluster = SLURMCluster, KubeCluster  # type: ignore[attr-defined]
    for module in (jobqueue, kubernetes, operator):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(distributed, "LocalCluster", LocalCluster)


def test_the_tutorial_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "workbench/docs/tutorial/ten-minutes.md").read_text()
    monkeypatch.chdir(tmp_path)
    spread = re.search(r"(?s)```yaml\n(.*?)```", page)
    assert spread is not None
    Path("spread.yaml").write_text(spread[1])
    bound = re.search(r"`(\{mode: bind[^`]*\})`", page)
    assert bound is not None
    Path("bound.yaml").write_text(re.sub(r"\{mode.*\}", bound[1], spread[1]).replace("name: spread", "name: bound"))

    def output(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["workbench", *words])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr()
        return str(said.out + said.err)

    (table,) = re.findall(r"(?s)```text\n(│.*?)```", page)
    said = output("run", "spread.yaml")
    assert all(line in said for line in table.splitlines())
    said = output("run", "spread.yaml", "--set", "guest.policies.0.mode=weigthed")
    assert "did you mean 'weighted_interleave'?" in said and said.startswith(
        "workbench: guest.policies.0.mode: Input should be"
    )
    said = output("compare", "spread.yaml", "bound.yaml")
    assert re.search(r"vcpu0: local +│ 25% +│ 50%", said)

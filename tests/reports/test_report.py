"""Reports: what is in them, that nothing of them reaches out or runs, and that a new run can be held against them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import bs4
import nbformat
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from reports.notebooks import write

from workbench.errors import WorkbenchError
from workbench.reports.gallery import FoundReport, columns_of, make_gallery
from workbench.reports.html import clean, embedded_json, without_hosts
from workbench.reports.notebook_parameters import read_notebook
from workbench.reports.report import NotebookFailed, check_report, digest, execute, make_report, read_report
from workbench.sweeps.batch import read_jobs, run_batch

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>window.pwned=9</script><img src=x onerror=window.pwned=8>"


def workbench(*words: str, **more) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "workbench.commands.cli", *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path}, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A directory with the test notebook and one report of it, made with a hostile machine."""
    folder = tmp_path_factory.mktemp("reports")
    write(folder / "small.ipynb")
    ran = workbench(
        "report", "small.ipynb", "-p", "machine", HOSTILE, "-p", "pages", "6", "-o", "out/one.html", cwd=folder
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().splitlines()[-1] == "out/one.html"
    assert "first [bold]pages" in ran.stdout
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "out" / "one.html").read_text()


ADDRESSES = {"src", "href", "xlink:href", "action", "formaction", "data", "poster", "srcset", "background", "cite"}


def test_no_address_of_another_host(page):
    assert not re.search(r"(?i)\b(https?|ftp|wss?):", page)
    for tag in bs4.BeautifulSoup(page, "html.parser").find_all(True):
        for name in ADDRESSES & set(tag.attrs):
            assert tag[name].startswith(("data:", "#")), tag
        assert not any(name.startswith("xmlns") for name in tag.attrs), tag
        assert not re.search(r"url\((?!#)", str(tag.get("style", ""))), tag
        if tag.name == "style":
            assert not re.search(r"url\((?!#)|@import", tag.get_text())
    assert "example.org/paper" in page  # the source is still named, as text


def test_nothing_of_the_notebook_runs(page):
    soup = bs4.BeautifulSoup(page, "html.parser")
    assert not soup.find_all(["iframe", "object", "embed", "form", "base"])
    assert [tag.get("id") for tag in soup.find_all("script")] == [None, "wb-report"]  # its own, and its data
    for tag in soup.find_all(True):
        assert not any(name.startswith("on") for name in tag.attrs), tag
        assert "javascript:" not in str(tag.get("href", ""))
    assert re.search(r"script-src &#39;sha256-[A-Za-z0-9+/=]+&#39;", page)
    assert "&lt;script&gt;window.pwned=9" in page  # the machine's name is shown as it is written


def test_what_a_report_says(page, folder):
    facts = read_report(folder / "out" / "one.html")
    assert facts["parameters"] == {"machine": HOSTILE, "pages": 6}
    assert facts["title"] == "Where pages land"
    assert [figure["kind"] for figure in facts["figures"]] == ["data"]
    assert facts["figures"][0]["sha256"] == digest(xr.Dataset({"pages": ("node", np.arange(6) ** 2)}))
    for text in ("Figure 1.", "Contents", "<math", "Make it again", "which machine", "numba", "made on: processor"):
        assert text in page
    assert "exact · data" in page
    assert '<details class="code"><summary>' in page  # folded: not open
    assert "<details open" not in page
    assert "An interactive control stood here" in page
    assert re.search(r'<a href="#wb-section-\d+">Values of users</a>', page)
    assert "@page" in page
    assert str(folder) not in page  # no path of the one who made it


def test_the_command_in_the_report_makes_it_again(page):
    command = re.search(r"<h3>Make it again</h3>\s*<pre>(.*?)</pre>", page, re.DOTALL).group(1)
    import html
    import shlex

    words = shlex.split(html.unescape(command))
    assert words[:2] == ["workbench", "report"]
    assert words[words.index("machine") + 1] == HOSTILE


def test_check_agrees_and_then_not(folder):
    comparison = check_report(folder / "out" / "one.html", folder / "small.ipynb")
    assert comparison.agrees
    assert len(comparison.rows) == 1
    changed = folder / "changed" / "small.ipynb"
    changed.parent.mkdir()
    changed.write_text((folder / "small.ipynb").read_text().replace("** 2", "** 3"))
    ran = workbench("report", "--check", "out/one.html", "--notebook", str(changed), "-q", cwd=folder)
    assert ran.returncode == 1
    assert "figure 1 (data): DIFFERS" in ran.stdout
    assert "has changed since" in ran.stderr


def test_check_of_what_is_no_report(tmp_path):
    (tmp_path / "x.html").write_text("<html></html>")
    for path in (tmp_path / "x.html", tmp_path / "none.html", tmp_path):
        with pytest.raises(WorkbenchError, match="report: '"):
            check_report(path)
    (tmp_path / "gone.html").write_text(
        '<script type="application/json" id="wb-report">'
        + embedded_json({"schema": "workbench-report/1", "notebook": {"path": "gone.ipynb", "sha256": ""}})
        + "</script>"
    )
    with pytest.raises(WorkbenchError, match=r"gone\.ipynb' is not here"):
        check_report(tmp_path / "gone.html")


@pytest.mark.parametrize("given", [
    {"notebook": {}}, {"notebook": {"path": 1, "sha256": ""}}, {"figures": None}, {"figures": [1]}, {"versions": []},
    {"figures": [{"number": "1", "kind": "data", "sha256": ""}]}, {"parameters": [[[]]]}, {"versions": {"numpy": 2}},
])  # fmt: skip
def test_facts_of_other_types_are_one_line_that_names_the_field(given, tmp_path):
    facts = {"schema": "workbench-report/1", "notebook": {"path": "gone.ipynb", "sha256": ""}} | given
    page = f'<script type="application/json" id="wb-report">{embedded_json(facts)}</script>'
    (tmp_path / "x.html").write_text(page)
    with pytest.raises(WorkbenchError, match=rf"report: '.*x\.html': {next(iter(given))}") as refused:
        check_report(tmp_path / "x.html")
    assert "\n" not in str(refused.value)


def test_facts_of_a_hundred_thousand_levels_are_no_report(tmp_path):
    """json.loads says RecursionError, and no ValueError, of them."""
    (tmp_path / "x.html").write_text(f'<script type="application/json" id="wb-report">{"[" * 100_000}</script>')
    with pytest.raises(WorkbenchError, match="not a report"):
        check_report(tmp_path / "x.html")
    with pytest.raises(WorkbenchError, match="no reports"):
        make_gallery(tmp_path, tmp_path / "gallery.html")


def test_a_failing_cell_is_named_and_nothing_is_written(folder):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(NotebookFailed) as caught:
        make_report(folder / "small.ipynb", folder / "failed.html", parameters={"fail": True})
    assert "cell 7 of 10 ('if fail:') failed: ValueError: boom second line" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "raise ValueError" in caught.value.trace
    assert sorted(path.name for path in folder.iterdir()) == before


def test_bad_input_is_refused_before_anything_runs(folder):
    for words, says in [
        (["-p", "pages", "many"], "parameter 'pages' is int"),
        (["-p", "machin", "x"], "did you mean 'machine'"),
        (["-f", "none.yaml"], "none.yaml"),
        (["-o", "/proc/nowhere/x.html"], "cannot write"),
        (["-o", "."], "it is a directory"),
        (["-p", "pages"], "a value is missing"),
    ]:
        ran = workbench("report", "small.ipynb", *words, cwd=folder)
        assert ran.returncode == 2, (words, ran.stderr)
        assert says in ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1


def test_a_parameter_file_and_what_wins(folder):
    (folder / "p.yaml").write_text("machine: rome\nmodes: [a, b]\npages: 4\n")
    ran = workbench("report", "small.ipynb", "-f", "p.yaml", "-p", "pages=5", "-o", "p.html", "-q", cwd=folder)
    assert (ran.returncode, ran.stdout) == (0, "p.html\n"), ran.stderr
    assert read_report(folder / "p.html")["parameters"] == {"machine": "rome", "modes": ["a", "b"], "pages": 5}


def test_a_full_disk(folder, monkeypatch):
    import errno

    def full(self, *arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    from workbench.reports import report

    monkeypatch.setattr(report, "execute", lambda source, *rest, **more: source)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WorkbenchError, match="No space left on device"):
        make_report(folder / "small.ipynb", folder / "full.html")
    assert not list(folder.glob("*full.html*"))


def test_a_disk_that_is_full_before(folder, monkeypatch):
    """Nobody waits for a notebook whose report has no room."""
    import errno

    from workbench.reports import report

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "execute", lambda *rest, **more: pytest.fail("it was run"))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WorkbenchError, match="No space left on device"):
        make_report(folder / "small.ipynb", folder / "full.html")
    assert not list(folder.glob("*full.html*"))


def test_half_seconds_are_whole_ones_to_the_library(folder, monkeypatch):
    import papermill

    seen = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *rest, **more: seen.append(more["execution_timeout"]))
    for limit in (0.5, 2.5, 3, None):
        execute(read_notebook(folder / "small.ipynb"), {}, "small.ipynb", timeout=limit)
    assert seen == [1, 3, 3, None]


def test_batch_runs_all_and_says_which_failed(folder):
    jobs = folder / "jobs.yaml"
    jobs.write_text(
        "out_dir: batch\ndefaults: {notebook: small.ipynb, parameters: {pages: 4}}\n"
        "jobs:\n- {name: fails, parameters: {fail: true}}\n- {name: genoa, parameters: {machine: genoa}}\n"
        f"- {{name: '{HOSTILE}', out: hostile.html, parameters: {{machine: '{HOSTILE}'}}}}\n"
    )
    ran = workbench("batch", "jobs.yaml", "--gallery", cwd=folder)
    assert ran.returncode == 1, ran.stderr
    assert "3 jobs, 1 failed" in ran.stdout
    assert "ValueError: boom" in ran.stdout
    made = folder / "batch"
    assert {path.name for path in made.iterdir()} == {
        "fails.html.log", "genoa.html", "genoa.html.log", "hostile.html", "hostile.html.log", "index.html",
    }  # fmt: skip
    assert "raise ValueError" in (made / "fails.html.log").read_text()
    index = (made / "index.html").read_text()
    assert HOSTILE not in index
    assert "&lt;script&gt;window.pwned=9" in index
    assert index.count("data:image/png;base64,") == 2
    assert 'href="genoa.html"' in index
    assert '<button type="button">machine</button>' in index
    assert "<b>pages</b> 4" in index  # the same in all: said once


def test_a_batch_that_is_killed_takes_its_jobs_along(tmp_path):
    """Nobody can answer SIGKILL, so that the jobs hear of it from the kernel, and their notebooks from them."""
    begun = tmp_path / "begun"
    source = f"import os, time\nopen({str(begun)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}')\ntime.sleep(100)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(book, tmp_path / "n.ipynb")
    (tmp_path / "jobs.yaml").write_text("jobs: [{notebook: n.ipynb}]\n")
    with subprocess.Popen(
        [sys.executable, "-m", "workbench", "batch", "jobs.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as batch:
        while not (begun.exists() and begun.read_text()):
            assert batch.poll() is None
            time.sleep(0.1)
        batch.kill()
    left = [Path(f"/proc/{pid}/stat") for pid in begun.read_text().split()]
    for _ in range(200):
        if all(not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z" for stat in left):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a job lives on")
    assert not (tmp_path / "n-1.html").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"jobs: [{{notebook: {'x' * 300}}}]", "no such file"),
        ("", "mapping"),
        ("jobs: []", "'jobs' needs a list"),
        ("jobs: [1]", "job 1: 1 is not a mapping"),
        ("jobs: [{notebook: none.ipynb}]", "job 1: notebook 'none.ipynb': no such file"),
        ("jobs: [{parameters: {}}]", "job 1: 'notebook' is missing"),
        ("jobs: [{notebook: small.ipynb, parameters: {page: 1}}]", "job 1: small.ipynb: no parameter 'page'"),
        ("jobs: [{notebook: small.ipynb, params: {}}]", "no key 'params'"),
        ("jobs: [{notebook: small.ipynb, timeout: -1}]", "timeout: -1"),
        ("jobs: [{notebook: small.ipynb, timeout: .inf}]", "timeout: inf"),
        ("defaults: {timeout: 1.0e+308}\njobs: [{notebook: small.ipynb}]", "timeout: 1e+308"),
        ("jobs: [{notebook: small.ipynb, out: a}, {notebook: small.ipynb, out: a}]", "job 2: out"),
        ("job: []", "'jobs' needs a list"),
    ],
)
def test_jobs_are_checked_before_any_runs(folder, text, says):
    path = folder / "bad.yaml"
    path.write_text(text)
    with pytest.raises(WorkbenchError) as caught:
        read_jobs(path)
    assert says in str(caught.value)


def test_a_batch_needs_a_worker():
    with pytest.raises(WorkbenchError, match="workers"):
        run_batch([], 0)


def test_columns_of_a_gallery_are_what_most_reports_have():
    def entry(**parameters):
        return FoundReport("a.html", "A", "n.ipynb", "", 1, "", parameters)

    mixed = [
        entry(machine="a", seed="0", memory="1"),
        entry(machine="b", seed="0", memory="2"),
        entry(seed="0", tables="x"),
    ]
    assert columns_of(mixed) == ({"seed": "0"}, ["machine", "memory"])
    assert columns_of(mixed[:1]) == ({}, ["machine", "seed", "memory"])
    assert columns_of([entry(a="1"), entry(b="1"), entry(c="1")]) == ({}, [])


def test_a_gallery_of_nothing(tmp_path):
    with pytest.raises(WorkbenchError, match="no reports below"):
        make_gallery(tmp_path)
    with pytest.raises(WorkbenchError, match="not a directory"):
        make_gallery(tmp_path / "none")


@pytest.mark.parametrize(
    ("markup", "kept"),
    [
        ("<b onclick=x()>a</b>", "<b>a</b>"),
        ("<script>alert(1)</script>a", "a"),
        ("<ScRiPt>alert(1)</sCrIpT>a", "a"),
        ("<svg xmlns='http://www.w3.org/2000/svg' onload=x()><circle r='1'/></svg>", '<svg><circle r="1"></circle></svg>'),
        ("<svg><script>x</script><use href='//e.org/a#b'/></svg>", "<svg><use></use></svg>"),
        ("<img src=data:image/png;base64,AA onerror=x>", '<img src="data:image/png;base64,AA"/>'),
        ("<img src=data:text/html,x>", "<img/>"),
        ("<a href='#there'>a</a>", '<a href="#there">a</a>'),
        ("<a href='https://e.org/x'>a</a>", "<cite>a (e.org/x)</cite>"),
        ("<a href=' javascript:x()'>a</a>", "<cite>a</cite>"),
        ("<form action=x><input type=text></form>a", "a"),
        ("<p style='background:url(//e.org)'>a</p>", "<p>a</p>"),
        ("<p style='color:red'>a</p>", '<p style="color:red">a</p>'),
        ("<style>p{background:url(//e.org)}</style>a", "a"),
        ("<!-- c -->a<!DOCTYPE x>", "a"),
        ("<blink>a</blink>", "a"),
        ("<div id='wb-report'>a</div>", "<div>a</div>"),
        ("<math><mtext><script>x</script></mtext></math>", "<math><mtext></mtext></math>"),
        ("<object data=x><embed src=y></object>a", "a"),
        ("<details open><summary>s</summary>a</details>", '<details open=""><summary>s</summary>a</details>'),
    ],
)  # fmt: skip
def test_cleaning(markup, kept):
    assert clean(markup) == kept


def test_embedded_json_cannot_end_its_element():
    value = {"a": "</script><!--", "b": "https://e.org", "c": "\u2028"}
    text = embedded_json(value)
    assert "<" not in text
    assert "://" not in text
    assert json.loads(text) == value
    assert without_hosts("see HTTPS://e.org/a") == "see e.org/a"


def test_digests_see_values_and_nothing_else():
    base = xr.Dataset({"a": ("x", [1.0, 2.0]), "t": ("x", ["p", "q"])}, {"x": [0, 1]})
    same = base.assign_attrs(date="today").copy(deep=True)[["t", "a"]]
    same["a"].attrs["units"] = "B"
    assert digest(base) == digest(same)
    others = [
        base.assign(a=("x", [1.0, 2.5])),
        base.assign(a=("x", np.array([1, 2]))),
        base.assign(t=("x", ["pq", ""])),
        base.assign_coords(x=[0, 2]),
        base.rename(a="b"),
        base.rename_dims(x="y") if "y" not in base.dims else base,
        base["a"],
        base.to_dataframe(),
        [base, base],
        {"k": base},
        "text", 1, 1.0, None,
    ]  # fmt: skip
    found = [digest(other) for other in others]
    assert len({digest(base), *found}) == len(found) + 1
    assert digest(pd.Series([1, 2])) == digest(np.array([1, 2]))
    assert digest(np.array([1, 2], ">i8")) == digest(np.array([1, 2], "<i8"))

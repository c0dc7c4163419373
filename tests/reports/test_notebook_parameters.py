"""Typed parameters: what the cell declares, what is accepted, and that refusals say what is allowed."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from reports.notebooks import notebook

from workbench.data import datasets_path, notebooks_path
from workbench.errors import WorkbenchError
from workbench.reports import report
from workbench.reports.notebook_parameters import Parameter, check_values, read_notebook, read_parameters


@pytest.fixture(scope="module")
def declared():
    return read_parameters(notebook())


def test_the_cell_is_read(declared):
    assert list(declared) == ["machine", "pages", "rate", "modes", "pair", "kind", "limit", "fail", "plain"]
    assert declared["machine"].help == "which machine"
    assert declared["machine"].default == "'naples'"
    assert declared["modes"].annotation == "list[str]"
    assert declared["plain"].annotation == "int"
    assert declared["pair"].help == ""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("machine", "genoa", "genoa"),
        ("machine", "3", "3"),
        ("machine", "null", "null"),
        ("machine", "", ""),
        ("machine", "<script>", "<script>"),
        ("pages", "12", 12),
        ("pages", "-3", -3),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("modes", "[bind, interleave]", ["bind", "interleave"]),
        ("modes", "[]", []),
        ("pair", "[3, 4]", [3, 4]),
        ("kind", "b", "b"),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("fail", "true", True),
        ("plain", "4", 4),
    ],
)
def test_texts_of_the_command_line(declared, name, text, value):
    found = check_values(declared, {}, {name: text})
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("rate", 2, 2),
        ("pair", [5, 6], [5, 6]),
        ("pair", (5, 6), [5, 6]),
        ("limit", None, None),
        ("modes", ["a"], ["a"]),
        ("fail", False, False),
    ],
)
def test_values_of_files(declared, name, value, result):
    assert check_values(declared, {name: value}) == {name: result}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("machine", 5), ("pages", "12"), ("pages", 1.5), ("pages", True), ("rate", "fast"), ("modes", "bind"),
        ("modes", [1]), ("pair", [1]), ("kind", "c"), ("limit", "x"), ("fail", 1), ("machine", None), ("pages", {}),
    ],
)  # fmt: skip
def test_values_of_files_are_held_to_their_type(declared, name, value):
    with pytest.raises(WorkbenchError) as caught:
        check_values(declared, {name: value}, None, "n.ipynb")
    message = str(caught.value)
    assert message.startswith(f"n.ipynb: parameter '{name}' is ")
    assert "it takes machine: str, pages: int" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text"),
    [("pages", "many"), ("pages", "1.5"), ("rate", "x"), ("kind", "c"), ("fail", "perhaps"), ("modes", "bind"),
     ("pair", "[1]"), ("modes", "[a"), ("pages", "&a [*a]"), ("pages", "x" * 10_000)],
)  # fmt: skip
def test_texts_are_held_to_their_type(declared, name, text):
    with pytest.raises(WorkbenchError) as caught:
        check_values(declared, {}, {name: text})
    assert f"'{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_unknown_name_is_refused_with_the_nearest(declared):
    with pytest.raises(
        WorkbenchError, match=r"no parameter 'machin' \(did you mean 'machine'\?\); it takes machine: str"
    ):
        check_values(declared, {"machin": "x"})
    with pytest.raises(WorkbenchError, match="no parameter 'zzz'; it takes"):
        check_values(declared, {}, {"zzz": "1"})


def test_a_notebook_without_the_cell_takes_none():
    declared = read_parameters(new_notebook(cells=[new_code_cell("x = 1")]))
    assert declared == {}
    with pytest.raises(WorkbenchError, match="it takes no parameters"):
        check_values(declared, {"x": 1})


def test_a_cell_that_is_no_python():
    broken = new_notebook(cells=[new_code_cell("x = = 1", metadata={"tags": ["parameters"]})])
    with pytest.raises(WorkbenchError, match="not Python"):
        read_parameters(broken)


def test_names_that_do_not_exist_are_refused_with_those_that_do():
    """Before a kernel starts: whatever a ready notebook calls a kind of guest, a design or a rule. Data sets likewise."""
    asked = 0
    for path in sorted(notebooks_path().glob("*.ipynb")):
        declared = read_parameters(read_notebook(path))
        for name, parameter in declared.items():
            if parameter.annotation.startswith("Literal["):
                with pytest.raises(WorkbenchError, match=re.escape(f"parameter '{name}' is {parameter.annotation}")):
                    check_values(declared, {}, {name: "nonsense"}, path.name)
                asked += 1
            assert name not in ("confidential", "vm_type", "page_size", "design") or parameter.annotation.startswith(
                "L"
            ), path
    assert asked > 8
    for folder, known in (("recordings", "tuneq.json.gz"), ("published", "snp_rmp.yaml")):
        with pytest.raises(WorkbenchError, match=f"{folder}: 'nonsense' is unknown; .*{known}"):
            datasets_path(folder, "nonsense")


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"cells": 3, "nbformat": 4}'])
def test_files_that_are_no_notebook(tmp_path, content):
    path = tmp_path / "n.ipynb"
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"n\.ipynb") as caught:
        read_notebook(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkbenchError, match="No such file"):
        read_notebook(tmp_path / "none.ipynb")


@pytest.mark.parametrize(
    ("annotation", "is_path"),
    [("Path", True), ("Path | None", True), ("pathlib.Path", True), ("Optional[Path]", True), ("str", False),
     ("Literal['Pathological']", False), ("str | None", False)],
)  # fmt: skip
def test_a_path_is_what_the_notebook_calls_one(annotation, is_path):
    assert Parameter("x", annotation, "None", "", Any).is_path == is_path


def test_a_text_that_is_also_a_directory_is_not_hashed(tmp_path, monkeypatch):
    """``-p title /`` hashed the whole file system."""
    declared = {"title": Parameter("title", "str", "''", "", str), "store": Parameter("store", "Path", "''", "", str)}
    (tmp_path / "a").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    asked = []
    hashed = report.hash_path

    def hash_path(path):
        asked.append(path)
        return hashed(path)

    monkeypatch.setattr(report, "hash_path", hash_path)
    (found,) = report._given_files(declared, {"title": "/", "store": str(tmp_path)})
    assert asked == [tmp_path] and len(found["sha256"]) == 64
    monkeypatch.setattr(report, "_MOST_HASHED", 0)
    assert hashed(tmp_path).startswith("not computed")

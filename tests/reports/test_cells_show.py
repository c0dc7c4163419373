"""What a cell of a notebook makes for the reader is shown: by the cell's last line, by ``display``, or by who calls it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def lost(source: str) -> list[str]:
    """Lines of a cell that make a figure or a table and drop it."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))
    dropped = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and node is not tree.body[-1]]
    calls = [node.value for node in dropped if isinstance(node.value, ast.Call)]
    return [
        ast.unparse(call)[:60]
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("figure", "summary")
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "report"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_is_made_is_dropped(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    found = [line for cell in cells if cell["cell_type"] == "code" for line in lost("".join(cell["source"]))]
    assert not found


def test_what_is_dropped_is_found() -> None:
    assert lost("report.figure(a)\nreport.summary(b)") == ["report.figure(a)"]
    assert lost("def f():\n    report.summary(a)\nf()") == ["report.summary(a)"]
    assert not lost("display(report.figure(a))\nx = report.summary(b)\nreport.summary(c)")

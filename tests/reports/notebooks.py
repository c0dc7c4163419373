"""A small notebook for the tests of reports: every kind of cell and output, and users' values in all of them."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
from typing import Literal

machine: str = "naples"  # which machine
pages: int = 10  # how many
rate: float = 0.5  # per second
modes: list[str] = ["bind"]  # policies
pair: tuple[int, int] = (1, 2)
kind: Literal["a", "b"] = "a"
limit: int | None = None
fail: bool = False  # raise in the middle
plain = 3
"""

MARKDOWN = """\
# Where pages land

Text with $x = \\frac{a}{b}$, [a source](https://example.org/paper) and <https://example.com/other>.

<script>window.pwned = 1</script><img src="https://example.net/x.png" onerror="window.pwned = 2">
"""

SETUP = """\
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from workbench.reports import report

data = xr.Dataset({"pages": ("node", np.arange(pages) ** 2, {"basis": "exact"})}, attrs={"of": machine})
"""

FIGURE = """\
figure = Figure(figsize=(4, 2))
figure.subplots().plot(data["pages"])
report.figure(figure, data=data, caption=f"Pages of {machine}: grows as $n^2$.")
"""

HOSTILE = """\
from IPython.display import HTML, SVG, Markdown, display
display(HTML(f"<h4>{machine}</h4><iframe src='//example.org'></iframe><style>@import url(//example.org/a.css);</style>"
             f"<a href='javascript:window.pwned=3'>x</a><div style='background:url(//example.org/b)'>y</div>"))
display(Markdown(machine))
print(machine, "https://example.org/in/text")
data
"""


def notebook(*more: str) -> nbformat.NotebookNode:
    """The notebook, with more code cells at its end."""
    cells = [
        new_markdown_cell(MARKDOWN),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(SETUP),
        new_markdown_cell("## Figures\n\nLook at the slope."),
        new_code_cell(FIGURE),
        new_code_cell("report.summary(data.to_dataframe().reset_index().head(3), title='first [bold]pages')"),
        new_code_cell("if fail:\n    raise ValueError('boom\\nsecond line')"),
        new_markdown_cell("## Values of users"),
        new_code_cell(HOSTILE),
        new_code_cell("import ipywidgets\nipywidgets.IntSlider()"),
        *[new_code_cell(source) for source in more],
    ]
    made = new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def write(path: Path, *more: str) -> Path:
    """Write the notebook to a file."""
    nbformat.write(notebook(*more), path)
    return path

"""Notebooks that take a machine run on every machine we ship, with small guests, and no figure is empty or cut.

Those without a machine run once. Cells run in this process, as nothing of a kernel or a report is looked at. A few
machines and one of the others are taken each week, others the next; ``NOTEBOOK_MACHINES=all`` takes all of them.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from workbench.plots.common import log_scale
from workbench.reports import report
from workbench.topology.host import machine_names

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "00_explorer": {},
    "01_placement": {"memory": "48 MiB"},
    "05_policy_sweep": {"memory": ["8 MiB", "16 MiB"]},
    "06_report_template": {"memory": "32 MiB"},
    "08_cost_of_placement": {"memory": "64 MiB", "vcpus": 8, "samples": 4},
}
"""Parameters of a quick run of the notebooks that take a machine, which is added."""
SHARE = {"00_explorer": 1, "01_placement": 2, "05_policy_sweep": 2, "06_report_template": 3, "08_cost_of_placement": 1}
"""Machines in a week."""
ALONE: dict[str, dict[str, Any]] = {
    "02_real_kernel": {},
    "03_conversion": {"memory": "2 GiB", "buffers": 100, "samples": 4},
    "04_without_struct_page": {
        "memory": "16 GiB",
        "conversions": 200,
        "churn_memory": "128 GiB",
        "churn_machines": 300,
    },
    "07_published": {},
    "10_struct_page_question": {
        "memory": "8 GiB",
        "conversions": 200,
        "boot_memory": "4 GiB",
        "churn_memory": "128 GiB",
        "churn_machines": 300,
    },
}
"""Likewise, of those that take none."""
ALL = os.environ.get("NOTEBOOK_MACHINES") == "all"
WEEK = datetime.date.today().isocalendar().week


def on_machines() -> list[Any]:
    names = machine_names()
    found = []
    for number, (notebook, count) in enumerate(SHARE.items()):
        chosen = names if ALL else [names[(WEEK * count + 7 * number + k) % len(names)] for k in range(count)]
        found += [pytest.param(notebook, machine, id=f"{notebook[:2]}-{machine}") for machine in chosen]
    return found


def alone() -> list[str]:
    return list(ALONE) if ALL else [list(ALONE)[WEEK % len(ALONE)]]


def run(notebook: str, parameters: dict[str, Any]) -> None:
    """Carry out the code cells with other parameters."""
    space: dict[str, Any] = {"display": lambda *shown: None, "__name__": "__main__"}
    for cell in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook}.ipynb", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) <= set(space)
                space.update(parameters)


def faults(figure: Figure) -> list[str]:
    """What is cut at the figure's edge, and axes without anything in them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, width, height = figure.get_tightbbox(canvas.get_renderer()), *figure.get_size_inches()  # type: ignore[attr-defined]
    slack = 0.02  # inches: a pixel or two of letters' edges
    found = []
    if min(box.x0, box.y0) < -slack or box.x1 > width + slack or box.y1 > height + slack:
        found.append(
            f"drawn {box.x0:.2f} to {box.x1:.2f} and {box.y0:.2f} to {box.y1:.2f} of {width} x {height} inches"
        )
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and axes.get_visible() and axis.get_visible():
                low, high = sorted(axis.get_view_interval())
                ticks = [place for place in axis.get_majorticklocs() if low <= place <= high]
                if len(ticks) < 3:
                    found.append(f"a logarithmic axis has {len(ticks)} ticks: {ticks} of {low} to {high}")
        shown = axes.get_visible() and (axes.axison or axes.has_data())
        if shown and not (axes.has_data() or axes.texts or axes.tables or axes.artists):
            found.append(f"axes {axes.get_title(loc='left') or axes.get_title()!r} are empty")
    return found + overlaps(figure, canvas)


def overlaps(figure: Figure, canvas: FigureCanvasAgg) -> list[str]:
    """Names of axes and titles that lie on each other, and numbers of one axis that do."""
    names: list[tuple[str, Any]] = []
    found = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        words = [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
        shown = [text for text in words if text.get_visible() and text.get_text().strip()]
        names += [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = (
                [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high] if axis.get_visible() else []
            )
            labels = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            upright = [label for label in labels if label.get_rotation() % 90 == 0]
            boxes = [(label.get_text(), label.get_window_extent(canvas.get_renderer())) for label in upright]
            found += [
                f"{a!r} lies on {b!r}" for (a, one), (b, other) in itertools.pairwise(boxes) if common(one, other)
            ]
    pairs = itertools.combinations(names, 2)
    return found + [f"{a!r} lies on {b!r}" for (a, one), (b, other) in pairs if common(one, other)]


def common(one: Any, other: Any) -> bool:
    """Whether two boxes share more than the pixel or two of letters' edges."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    return bool(width > 1.5 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1.5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Captions of the figures that are shown; in the end each must be whole."""
    wrong: list[str] = []
    shown: list[str] = []

    def figure(fig: Any, *, data: Any = None, caption: str = "", **more: Any) -> str:
        fig = getattr(fig, "figure", fig)
        shown.append(caption)
        wrong.extend(f"{caption}: {fault}" for fault in faults(fig))
        return caption

    monkeypatch.setattr(report, "figure", figure)
    yield shown
    pyplot.close("all")
    assert not wrong


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {*SMALL, *ALONE}
    assert set(SHARE) == set(SMALL)


@pytest.mark.parametrize(("notebook", "machine"), on_machines())
def test_it_runs_and_no_figure_is_empty_or_cut(notebook: str, machine: str, seen: list[str], tmp_path: Path) -> None:
    small = {"host": machine, "guest": {"memory": "32 MiB"}}
    touched = {"operations": [{"op": "create"}, {"op": "fault"}]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small | touched))
    where: dict[str, Any] = {
        "00_explorer": {"scenario": str(tmp_path / "small.yaml")},
        "05_policy_sweep": {"machines": [machine], "shown": machine},
        "08_cost_of_placement": {"machines": [machine]},
    }.get(notebook, {"machine": machine})
    run(notebook, SMALL[notebook] | where)
    assert seen


@pytest.mark.parametrize("notebook", alone())
def test_those_without_a_machine_show_whole_figures(notebook: str, seen: list[str]) -> None:
    run(notebook, ALONE[notebook])
    assert seen


@pytest.mark.parametrize(("low", "high"), [(1, 9e6), (3, 40), (20, 29), (1e3, 1.1e3)])
@pytest.mark.parametrize("binary", [False, True])
def test_log_axes_have_three_ticks(low: float, high: float, binary: bool) -> None:
    axes = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    axes.plot([low, high * (16 if binary else 1)], [1, 2])
    log_scale(axes, "x", binary=binary)
    left, right = axes.get_xlim()
    assert sum(left <= tick <= right for tick in axes.get_xticks()) >= 3


def test_a_cut_figure_and_an_empty_one_are_found() -> None:
    made = Figure(figsize=(3, 2), layout="constrained")
    axes = made.add_subplot()
    assert faults(made) == ["axes '' are empty"]
    axes.plot([0, 1], [0, 1])
    assert faults(made) == []
    axes.set_ylabel("a label that is far too long for a figure of this height, by a lot")
    assert len(faults(made)) == 1


def test_words_on_each_other_are_found() -> None:
    made = Figure(figsize=(4, 2), layout="constrained")
    for axes in made.subplots(1, 2):
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("half as wide")
    assert faults(made) == []
    for axes in made.axes:
        axes.set_xlabel("a name that is wider than one half")
    assert [fault for fault in faults(made) if "lies on" in fault]
    axes.set_xlabel("")
    axes.set_xticks(np.linspace(0, 1, 40))
    assert [fault for fault in faults(made) if "lies on" in fault]

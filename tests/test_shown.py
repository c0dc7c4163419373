"""What Jupyter shows of a host, a scenario and a result, and what ``wb.<TAB>`` offers."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser

import workbench as wb
from workbench import shown

HOSTILE = '<script>alert(1)</script>"&'


class Cells(HTMLParser):
    """Texts of the table cells, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


def test_a_host_shows_its_nodes_and_distances() -> None:
    host = wb.Host.from_machine("spr-8468v-cxl")
    cells = Cells(host._repr_html_()).cells
    assert cells[:8] == ["node", "kind", "memory", "CPUs", "to 0", "to 1", "to 2", "to 3"]
    assert cells[8:16] == ["0", "dram", "64 GiB", "0-47,96-143", "10", "21", "24", "24"]
    # What is free has a column where the source says it of a node at least.
    nodes = (host.nodes[0].model_copy(update={"free_bytes": 1 << 30}), *host.nodes[1:])
    cells = Cells(host.model_copy(update={"nodes": nodes})._repr_html_()).cells
    assert cells[3] == "free" and cells[12] == "1 GiB" and cells[21] == ""
    assert "nodes after the first 32 are not listed" in wb.Host.from_machine("altix-ia64-64n")._repr_html_()
    for name in wb.topology.host.machine_names():
        assert "<table" in wb.Host.from_machine(name)._repr_html_()


def test_a_scenario_shows_what_is_asked() -> None:
    text = wb.ready.scenario("policy-after-allocation")._repr_html_()
    assert "4 GiB of 4 KiB pages" in text and "mode interleave, nodes 0-1, flags move" in text
    assert "offset 1 GiB, length 1 GiB" in text
    for one in wb.ready_scenarios():
        assert one.name in wb.ready.scenario(one.name)._repr_html_()


def test_a_result_shows_where_the_pages_are() -> None:
    result = wb.simulate("policy-after-allocation")
    assert shown.is_run(result) and not shown.is_run(result[["node_memory"]])
    cells = Cells(shown.result(result)).cells
    assert cells[5:15] == ["guest", "0", "786,432", "3 GiB", "75.0%", "guest", "1", "262,144", "1 GiB", "25.0%"]
    assert "5: mbind: EIO" in shown.result(result)
    both = wb.simulate("interface-mbind", designs=["filemap", "hugetlb"])
    assert not shown.is_run(both)


def test_texts_of_others_are_no_markup() -> None:
    value = wb.ready.scenario("policy-after-allocation").replace(name=HOSTILE, comment=HOSTILE)
    host = value.host.model_copy(update={"title": HOSTILE})
    for text in (value._repr_html_(), shown.result(wb.simulate(value)), host._repr_html_()):
        assert "<script" not in text and "script" not in Cells(text).tags


def test_a_notebook_shows_results_so_and_other_datasets_as_ever() -> None:
    code = """
import re
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import workbench as wb, xarray as xr
show = shell.display_formatter.format
data, _ = show(wb.simulate("policy-after-allocation"))
assert "where the pages are" in data["text/html"] and "xr-wrap" in data["text/html"]
folded = re.findall(r"<input id='section-[^>]*>(?=<label[^>]*>Attributes)", data["text/html"])
assert len(folded) == 1 and "checked" not in folded[0], folded
data, _ = show(xr.Dataset({"a": 1}))
assert "where the pages are" not in data["text/html"] and "xr-wrap" in data["text/html"]
"""
    reply = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert reply.returncode == 0, reply.stderr


def test_all_that_tab_offers_is_there() -> None:
    names = dir(wb)
    assert set(wb.__all__) <= set(names) and {"plots", "results", "simulate", "studies", "__version__"} <= set(names)
    for name in names:
        assert getattr(wb, name) is not None or name in ("__doc__", "__file__")

"""The explorer in a real JupyterLab: what the page shows after each thing a person does."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from e2e import servers

# As on a slow machine, or with kernels still to compile: the page shows the explorer before there is a result.
CELL = """
import time
from workbench.explorer.app import Explorer, default_scenario
from workbench.simulation import simulate

waits = [2.0]

def slow_at_first(scenario, **options):
    if waits:
        time.sleep(waits.pop())
    return simulate(scenario, **options)

explorer = Explorer(default_scenario(), simulate=slow_at_first)
explorer
"""


@pytest.fixture(scope="module")
def watch_and_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.Watch, Page]]:
    directory = tmp_path_factory.mktemp("lab")
    servers.notebook(directory / "explorer.ipynb", CELL)
    with servers.lab(directory, "explorer.ipynb") as address, servers.chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        watch = servers.Watch(page)
        servers.run_all(page, address)
        # The first run of a fresh checkout compiles the kernels.
        page.wait_for_selector(".wb-chart svg", timeout=120_000)
        page.evaluate("document.querySelector('.wb-explorer').scrollIntoView()")
        yield watch, page


@pytest.fixture
def page(watch_and_page: tuple[servers.Watch, Page]) -> Page:
    return watch_and_page[1]


def status(page: Page, text: str) -> None:
    expect(page.locator(".wb-status")).to_contain_text(text, timeout=15_000)


def editor(page: Page, name: str) -> None:
    page.locator(".wb-editors .lm-TabBar-tab", has_text=name).click()


def view(page: Page, name: str) -> None:
    page.locator(".wb-views .lm-TabBar-tab", has_text=name).click()


def field(page: Page, label: str, kind: str = "select") -> Locator:
    """The input that stands beside a label, in the editor that is open."""
    row = page.locator(".wb-editors .jupyter-widgets", has=page.locator(f"> label:text-is('{label}')"))
    return row.locator(kind).locator("visible=true").first


def test_lab_is_the_version_we_mean(page: Page) -> None:
    assert int(page.evaluate("() => window.jupyterapp.version").split(".")[0]) >= 4


def test_choose_another_kernel(page: Page) -> None:
    """6.18 takes the policy and places by the vCPUs; 6.12 has no mapping, and says so; from 6.19 on the policy decides."""
    status(page, "25 % on node 0")
    editor(page, "Guest")
    kernel = field(page, "kernel")
    assert kernel.locator("option").all_text_contents()[1:6] == ["6.12", "6.16", "6.17", "6.18", "6.19"]
    kernel.select_option("6.18")
    status(page, "12.5 % on node 0")
    kernel.select_option("6.12")
    status(page, "None of 64 GiB is present: EFAULT, a guest_memfd has no mapping on 6.12; from 6.18 on.")
    kernel.select_option("7.2")
    status(page, "25 % on node 0")
    kernel.select_option("oldest that has it")


def test_choose_another_machine(page: Page) -> None:
    status(page, "25 % on node 0")
    editor(page, "Machine")
    field(page, "machine").select_option("power9-ac922-6gpu")
    expect(page.locator("[data-kind=host] [data-node]")).to_have_count(8)
    expect(page.locator("[data-kind=host] [data-node='252']")).to_be_visible()
    field(page, "machine").select_option("epyc1-naples-2s")
    expect(page.locator("[data-kind=host] [data-node='7']")).to_be_visible()
    status(page, "node 0")


def test_change_the_policy(page: Page) -> None:
    editor(page, "Policy")
    field(page, "mode").select_option("bind")
    for node in (1, 2, 3):
        page.locator(f".wb-nodes:visible button[data-node='{node}']").click()
    page.locator(".wb-nodes:visible button[data-node='5']").click()
    expect(page.locator(".wb-nodes:visible button[data-node='5']")).to_have_attribute("aria-checked", "true")
    status(page, "on node 5")
    share = page.locator("[data-kind=bars] [data-node='5']")
    expect(share).not_to_have_attribute("data-guest", "0")


def test_drag_a_weight(page: Page) -> None:
    editor(page, "Policy")
    field(page, "mode").select_option("weighted interleave")
    slider = page.locator(".wb-weight input[type=range][data-node='5']")
    expect(slider).to_be_visible()
    before = page.locator("[data-kind=bars] [data-node='5']").get_attribute("data-guest")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    expect(page.locator("[data-kind=bars] [data-node='5']")).not_to_have_attribute("data-guest", before or "")
    assert int(slider.input_value()) > 8


def test_zoom_to_a_page(page: Page) -> None:
    space = page.locator(".wb-space")
    canvas = page.get_by_test_id("address-space")
    page.locator("[data-tool=whole]").click()
    canvas.focus()
    canvas.press("+")
    canvas.press("+")
    expect(space).to_have_attribute("data-exact", "true")
    assert _span(page) == (64 << 30) // 4
    page.locator("[data-tool=page]").click()
    expect(space).to_have_attribute("data-exact", "true")
    assert _span(page) == 4096
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 70)
    expect(page.locator(".wb-readout")).to_contain_text(re.compile(r"page [\d,]+: node [05] "))
    canvas.press("Home")
    expect(space).to_have_attribute("data-exact", "true")
    assert _span(page) == 64 << 30


def _span(page: Page) -> int:
    return page.evaluate("() => { const d = document.querySelector('.wb-space').dataset; return d.stop - d.start; }")


def test_draw_a_range(page: Page) -> None:
    editor(page, "Policy")
    canvas = page.get_by_test_id("address-space")
    field(page, "to", "input").fill("32 GiB")
    field(page, "to", "input").press("Enter")
    expect(page.locator(".wb-space")).to_have_attribute("data-ranges", f"0-{32 << 30}")
    box = canvas.bounding_box()
    assert box is not None
    y = box["y"] + 24
    page.mouse.move(box["x"] + box["width"] * 0.75, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, y, steps=5)
    page.mouse.up()
    expect(field(page, "range").locator("option")).to_have_count(2)
    expect(field(page, "range").locator("option:checked")).to_contain_text("2: interleave 0-7")


def test_invalid_input_is_explained(page: Page) -> None:
    editor(page, "Guest")
    memory = field(page, "memory", "input")
    memory.fill("12 parsecs")
    memory.press("Enter")
    expect(page.locator(".wb-error [role=alert]").first).to_contain_text("12 parsecs")
    expect(page.locator("[data-kind=bars] svg")).to_be_visible()
    memory.fill("32 GiB")
    memory.press("Enter")
    expect(page.locator(".wb-error [role=alert]")).to_have_count(0)
    status(page, "32 GiB present")


def test_undo(page: Page) -> None:
    page.get_by_role("button", name="undo").click()
    status(page, "64 GiB present")
    page.get_by_role("button", name="redo").click()
    status(page, "32 GiB present")


def test_compare(page: Page) -> None:
    page.get_by_role("button", name="pin as A").click()
    view(page, "Compare")
    editor(page, "Policy")
    field(page, "mode").select_option("local")
    expect(page.locator(".wb-views table").first).to_contain_text("B − A")
    expect(page.locator(".wb-views")).to_contain_text("guest.policies.0.mode")
    view(page, "Nodes")
    expect(page.locator("[data-kind=bars] rect[stroke-dasharray]").first).to_be_attached()


@contextmanager
def slowed_down(page: Page, factor: int) -> Iterator[None]:
    """The page on a machine that is ``factor`` times slower."""
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": factor})
    try:
        yield
    finally:
        session.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        session.detach()


@pytest.mark.parametrize("factor", [1, 8])
def test_time_slider_moves_the_views(page: Page, factor: int) -> None:
    with slowed_down(page, factor):
        _move_through_time(page)


def _move_through_time(page: Page) -> None:
    view(page, "Over time")
    expect(page.locator("[data-kind=time] path").first).to_be_attached()
    handle = page.locator(".wb-time input[type=range]")
    handle.focus()
    handle.press("Home")
    expect(page.locator("[data-kind=time]")).to_contain_text("0: create")
    view(page, "Calls")
    expect(page.locator("tr[aria-current=step]")).to_contain_text("create")
    last = page.locator(".wb-time").get_attribute("data-max")
    assert int(last or 0) > 1
    handle.press("End")
    expect(page.locator("tr[aria-current=step]")).to_contain_text("fault")
    expect(page.locator("tr[aria-current=step] td").first).to_have_text(last or "")
    expect(page.locator(".wb-time input[type=number]")).to_have_value(last or "")
    expect(page.locator(".wb-views.wb-old")).to_have_count(0)


def test_export(page: Page, tmp_path: Path) -> None:
    view(page, "Share")
    expect(page.locator(".wb-share textarea")).to_have_value(re.compile("import workbench as wb"))
    with page.expect_download() as info:
        page.locator("[data-tool=zip]").click()
    target = tmp_path / info.value.suggested_filename
    info.value.save_as(target)
    assert target.name == "explorer.zarr.zip"
    assert any(name.startswith("pages_per_node/") for name in zipfile.ZipFile(target).namelist())
    view(page, "Dataset")
    expect(page.locator(".xr-wrap, .xr-header").first).to_be_attached()


def test_a_report_is_made(page: Page, watch_and_page: tuple[servers.Watch, Page]) -> None:
    """The button runs the report notebook on the scenario that is shown and says where the page is."""
    view(page, "Share")
    button = page.get_by_role("button", name="make a report")
    button.click()
    expect(button).to_be_disabled()
    note = page.locator(".wb-report")
    expect(note).to_contain_text("explorer.html", timeout=120_000)
    made = Path(re.sub("^report: ", "", note.inner_text().strip()))
    assert "<svg" in made.read_text() or "data:image/png" in made.read_text()
    assert "epyc1-naples-2s" in made.read_text()
    expect(button).to_be_enabled()


def test_setting_the_scenario_from_the_next_cell_moves_the_widgets(page: Page) -> None:
    view(page, "Nodes")
    editor(page, "Guest")
    page.evaluate(
        """() => { void window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute(
             {code: "explorer.scenario = explorer.scenario.replace(**{'guest.memory': '8 GiB'})"}); }"""
    )
    status(page, "8 GiB present")
    expect(field(page, "memory", "input")).to_have_value("8 GiB")


def test_keyboard_reaches_every_control(page: Page) -> None:
    editor(page, "Policy")
    page.get_by_test_id("address-space").focus()
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("() => document.activeElement.tagName + ' ' + (document.activeElement.className || '')"))
    assert any(name.startswith("INPUT") for name in seen)
    assert any(name.startswith("INPUT wb-time-range") for name in seen)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('.wb-explorer button, .wb-explorer canvas, .wb-chart svg')]
             .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.title)).length"""
    )
    assert unnamed == 0


def test_nothing_went_wrong_and_no_other_host_was_asked(watch_and_page: tuple[servers.Watch, Page]) -> None:
    watch, page = watch_and_page
    assert watch.problems == []
    assert watch.hosts == {"127.0.0.1"}
    expect(page.locator(".wb-status .wb-bad")).to_have_count(0)

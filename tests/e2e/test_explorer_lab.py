"""The explorer in a real JupyterLab: what the page shows after each thing a person does."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from e2e import servers

expect.set_options(timeout=20_000)  # of a machine that is busy with other tests
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
def watch_and_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.Watch, Page]]:
    directory = tmp_path_factory.mktemp("lab")
    servers.notebook(directory / "explorer.ipynb", CELL)
    with (
        servers.lab(directory, "explorer.ipynb") as address,
        browser.new_page(viewport={"width": 1280, "height": 800}) as page,
    ):
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


def test_the_map_comes_back_after_go_to(page: Page) -> None:
    """The whole guest is shown again, though it was the view asked for last: nothing stays as if it were absent."""
    space, error = page.locator(".wb-space"), page.locator(".wb-error", has_text="beyond the guest")
    whole = page.locator("[data-tool=whole]")
    whole.click()
    expect(space).to_have_attribute("data-exact", "true")
    goto = page.get_by_placeholder("12 GiB")
    goto.fill("99 GiB")
    goto.press("Enter")
    expect(error).to_be_visible()
    goto.fill("33 GiB")
    goto.press("Enter")
    expect(error).to_be_hidden()
    expect(page.locator(".wb-where")).to_contain_text("64 KiB of")
    before = space.get_attribute("data-serial")
    whole.click()
    # Until the columns are there, the map says that it is loading them.
    expect(space).to_have_attribute("data-loaded", "true")
    expect(space).to_have_attribute("data-exact", "true")
    assert space.get_attribute("data-serial") != before
    assert _span(page) == 64 << 30


def test_what_is_under_the_pointer_follows_the_time(page: Page) -> None:
    box = page.get_by_test_id("address-space").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 70)
    expect(page.locator(".wb-readout")).to_contain_text("node")
    slider = page.locator(".wb-time input[type=range]")
    slider.press("Home")
    expect(page.locator(".wb-readout")).to_contain_text("not present")
    slider.press("End")
    expect(page.locator(".wb-readout")).not_to_contain_text("not present")
    page.mouse.move(5, 5)
    expect(page.locator(".wb-readout")).to_have_text("")


def test_drag_in_a_range_of_the_whole_guest(page: Page) -> None:
    editor(page, "Policy")
    expect(page.locator(".wb-space")).to_have_attribute("data-ranges", f"0-{64 << 30}")
    box = page.get_by_test_id("address-space").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 24)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 24, steps=5)
    page.mouse.up()
    expect(field(page, "range").locator("option")).to_have_count(2)
    page.get_by_role("button", name="undo").click()
    expect(page.locator(".wb-space")).to_have_attribute("data-ranges", f"0-{64 << 30}")


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
    expect(page.locator(".wb-views")).to_contain_text("latency of the vCPUs on node 0 (streaming, modelled)")
    editor(page, "Guest")
    field(page, "memory", "input").fill("16 GiB")
    field(page, "memory", "input").press("Enter")
    row = page.locator("tr", has=page.locator("th:text-is('guest.memory')"))
    expect(row.locator("td")).to_have_text(["32 GiB", "16 GiB"])
    page.get_by_role("button", name="undo").click()
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
    expect(page.locator(".wb-old .wb-views")).to_have_count(0)


@pytest.mark.parametrize("number", ["0", "100000"])
def test_a_number_of_vcpus_is_refused_not_changed(page: Page, number: str) -> None:
    editor(page, "Guest")
    vcpus = field(page, "vCPUs", "input")
    vcpus.fill(number)
    vcpus.press("Enter")
    expect(page.locator(".wb-error [role=alert]").first).to_contain_text(f"{number} vCPUs; must be 1 to 1024")
    expect(vcpus).to_have_value(number)
    vcpus.fill("8")
    vcpus.press("Enter")
    expect(page.locator(".wb-error [role=alert]")).to_have_count(0)


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


def test_the_scenario_makes_the_round_trip(page: Page, tmp_path: Path) -> None:
    """What the YAML button gives brings the explorer back to where it was, byte for byte."""

    def downloaded(name: str) -> Path:
        with page.expect_download() as info:
            page.locator("[data-tool=yaml]").click()
        info.value.save_as(tmp_path / name)
        assert info.value.suggested_filename == "explorer.yaml"
        return tmp_path / name

    view(page, "Share")
    page.get_by_role("button", name="YAML", exact=True).click()
    first = downloaded("first.yaml")
    shown = page.locator(".wb-share textarea").first
    expect(shown).to_have_value(first.read_text())
    _execute(page, "explorer.scenario = explorer.scenario.replace(**{'guest.memory': '3 GiB'})")
    expect(shown).to_have_value(re.compile("memory: 3 GiB"))
    _execute(page, f"explorer.scenario = type(explorer.scenario).from_yaml({str(first)!r})")
    expect(shown).to_have_value(first.read_text())
    assert downloaded("second.yaml").read_bytes() == first.read_bytes()
    page.get_by_role("button", name="Python", exact=True).click()


def test_the_figure_and_its_table_are_exported(page: Page, tmp_path: Path) -> None:
    view(page, "vCPUs")
    view(page, "Share")
    for tool, name, start in (
        ("figure svg", "explorer-vcpus.svg", b"<?xml"),
        ("figure pdf", "explorer-vcpus.pdf", b"%PDF"),
        ("figure png", "explorer-vcpus.png", b"\x89PNG"),
        ("table csv", "explorer-vcpus.csv", b"vcpu,node"),
    ):
        with page.expect_download() as info:
            page.locator(f"[data-tool='{tool}']").click()
        target = tmp_path / info.value.suggested_filename
        info.value.save_as(target)
        assert target.name == name
        assert target.read_bytes().startswith(start)


def test_the_policies_are_ranked(page: Page) -> None:
    view(page, "Best policy")
    page.get_by_role("button", name="rank the policies").click()
    expect(page.locator(".wb-ranking tbody tr")).to_have_count(11, timeout=90_000)
    expect(page.locator(".wb-ranking tbody th").first).to_contain_text("1. ")
    expect(page.locator(".wb-views")).to_contain_text("hypothetical")
    with page.expect_download() as info:
        page.locator("[data-tool='ranking csv']").click()
    assert info.value.suggested_filename == "explorer-ranking.csv"


def test_a_report_is_made(page: Page, watch_and_page: tuple[servers.Watch, Page]) -> None:
    """The button runs the report notebook on the scenario that is shown and says where the page is."""
    view(page, "Share")
    button = page.get_by_role("button", name="make a report")
    button.click()
    expect(button).to_be_disabled()
    note = page.locator(".wb-report")
    expect(note).to_contain_text("explorer.html", timeout=120_000)
    made = Path(re.sub("^report: ", "", note.inner_text().strip()))
    assert "data:image/svg+xml;base64," in made.read_text()
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


def _execute(page: Page, code: str) -> None:
    page.evaluate(
        """(code) => { void window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code}); }""",
        code,
    )


def test_an_old_picture_is_marked_while_a_run_goes_on(page: Page) -> None:
    _execute(page, "waits.append(3.0)")
    editor(page, "Guest")
    field(page, "memory", "input").fill("4 GiB")
    field(page, "memory", "input").press("Enter")
    expect(page.locator(".wb-busy")).to_be_visible()
    expect(page.locator(".wb-old .wb-views")).to_have_count(1)
    status(page, "4 GiB present")
    expect(page.locator(".wb-busy")).to_be_hidden()
    expect(page.locator(".wb-old .wb-views")).to_have_count(0)


def test_many_operations_are_said_to_be_locked(page: Page) -> None:
    editor(page, "Workload")
    _execute(
        page,
        "touch = [{'op': 'fault', 'offset': 4096 * i, 'length': 4096} for i in range(500)]\n"
        "explorer.scenario = explorer.scenario.replace(operations=[{'op': 'create'}, {'op': 'mmap'}, *touch])",
    )
    expect(page.locator(".wb-editors")).to_contain_text(
        "502 operations: the first 400 are shown and cannot be edited here"
    )
    expect(page.locator(".wb-code textarea")).to_be_disabled()
    expect(page.locator(".wb-time input[type=number]")).to_have_value("501")
    page.get_by_role("button", name="undo").click()
    expect(page.locator(".wb-code textarea")).to_be_enabled()


@contextmanager
def narrow(page: Page) -> Iterator[None]:
    """520 pixels for the explorer."""
    page.evaluate("document.querySelector('.wb-explorer').style.maxWidth = '520px'")
    try:
        page.wait_for_timeout(300)  # observers of sizes
        yield
    finally:
        page.evaluate("document.querySelector('.wb-explorer').style.maxWidth = ''")


CUT_CHOICES = """() => [...document.querySelectorAll('.wb-explorer select')].filter((e) => e.offsetParent).flatMap((e) => {
  const pen = document.createElement('canvas').getContext('2d'), style = getComputedStyle(e);
  pen.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return [...e.options].map((option) => option.text).filter((text) => pen.measureText(text).width > room);
})"""


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_names_of_choices_are_whole(page: Page, width: str) -> None:
    with narrow(page) if width == "narrow" else nullcontext():
        for name in ("Machine", "Guest", "Workload", "Policy"):
            editor(page, name)
            assert page.evaluate(CUT_CHOICES) == [], name


def test_words_in_the_boxes_of_nodes_are_on_plates(page: Page) -> None:
    """No edge of a fill level runs through them: a plate lies above the fill, and the words within it."""
    view(page, "Nodes")
    expect(page.locator("[data-kind=host] [data-node] text").first).to_be_visible()
    bare = page.evaluate(
        """() => [...document.querySelectorAll('[data-kind=host] [data-node] text')].filter((text) => {
             const box = text.getBBox(), all = [...text.parentElement.children];
             return !all.some((e, i) => e.matches('.wb-plate') && i > all.findLastIndex((p) => p.dataset.part)
               && e.getBBox().x <= box.x + 1 && e.getBBox().x + e.getBBox().width >= box.x + box.width - 1
               && e.getBBox().y <= box.y + 2 && e.getBBox().y + e.getBBox().height >= box.y + box.height - 2);
           }).map((e) => e.textContent)"""
    )
    assert bare == []


def test_what_is_assumed_is_marked(page: Page) -> None:
    """The source of this machine does not say which CPUs a node has."""
    view(page, "Nodes")
    editor(page, "Machine")
    expect(page.locator(".wb-editors")).to_contain_text("Assumed (?): cpus")
    marks = page.locator(
        "[data-kind=host] [data-node='0'] text", has_text="?"
    )  # at the CPUs, or at the node in a small box
    expect(marks).to_have_count(1)
    field(page, "machine").select_option("epyc4-genoa-2s-nps1")
    expect(page.locator("[data-kind=host] [data-node]")).to_have_count(2)
    expect(marks).to_have_count(0)
    page.get_by_role("button", name="undo").click()
    expect(page.locator("[data-kind=host] [data-node='7']")).to_be_visible()


def test_strips_below_the_map_say_what_they_are(page: Page) -> None:
    box = page.get_by_test_id("address-space").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 70)
    expect(page.locator(".wb-readout")).to_contain_text("private or shared: shared · page size: 4 KiB")
    page.mouse.move(5, 5)


def test_an_empty_run_has_no_distance(page: Page) -> None:
    page.get_by_role("button", name="pin as A").click()
    view(page, "Compare")
    editor(page, "Workload")
    field(page, "workload").select_option("nothing is touched")
    status(page, "None of")
    row = page.locator(".wb-views tr", has=page.locator("th:text-is('mean distance')"))
    expect(row.locator("td").nth(1)).to_have_text("– (nothing present)")
    page.get_by_role("button", name="undo").click()
    page.get_by_role("button", name="unpin").click()
    status(page, "present: ")


def test_what_the_mouse_finds_by_hovering_the_keyboard_finds_too(page: Page) -> None:
    """Tabs by arrow keys, parts of a picture by arrow keys with their words below, the middle of the map by its keys."""
    view(page, "vCPUs")
    page.locator(".wb-views .lm-TabBar-tab[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator(".wb-views .lm-mod-current")).to_have_text("Nodes")
    said = page.locator("[data-kind=host] .wb-said")
    page.keyboard.press("Tab")
    expect(said).to_contain_text("node 0 (dram)")
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("node 1 (dram)")
    page.keyboard.press("Tab")
    expect(said).to_have_text("")
    expect(page.locator("[data-kind=bars] .wb-said")).to_contain_text("node 0 (dram)")
    canvas = page.get_by_test_id("address-space")
    canvas.focus()
    canvas.press("+")
    expect(page.locator(".wb-readout")).to_contain_text("private or shared")
    canvas.press("Home")


def test_a_range_is_drawn_and_moved_with_keys_alone(page: Page) -> None:
    editor(page, "Policy")
    count = field(page, "range").locator("option").count()
    page.locator(".wb-editors button:visible", has_text="add").focus()
    page.keyboard.press("Enter")
    expect(field(page, "range").locator("option")).to_have_count(count + 1)
    for label, text in (("from", "1 GiB"), ("to", "2 GiB")):
        field(page, label, "input").focus()
        page.keyboard.press("Control+a")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
    expect(page.locator(".wb-space")).to_have_attribute("data-ranges", re.compile(f"{1 << 30}-{2 << 30}$"))
    page.locator(".wb-editors button:visible", has_text="remove").focus()
    page.keyboard.press("Enter")
    expect(field(page, "range").locator("option")).to_have_count(count)


def test_nothing_is_cut_in_a_narrow_window(page: Page) -> None:
    """520 pixels: names of tabs and the status are whole, and so are the words beside and in the pictures."""
    with narrow(page):
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.wb-explorer .lm-TabBar-tabLabel, .wb-explorer .wb-status')]
                 .filter((e) => e.offsetParent && (e.scrollWidth > e.clientWidth + 1 || outside(e)))
                 .map((e) => e.textContent);
               function outside(e) {
                 const box = e.getBoundingClientRect();
                 for (let up = e.parentElement; up && !up.matches('.wb-explorer'); up = up.parentElement) {
                   const it = up.getBoundingClientRect(), hidden = getComputedStyle(up).overflowX !== 'visible';
                   if (hidden && (box.right > it.right + 1 || box.bottom > it.bottom + 1)) return true;
                 }
                 return false;
               }"""
        )
        assert cut == []
        for name, kind in (("vCPUs", "vcpus"), ("Over time", "time"), ("Nodes", "bars"), ("Nodes", "host")):
            view(page, name)
            picture = page.locator(f"[data-kind={kind}]:visible > svg")
            expect(picture).to_be_visible()
            cut = picture.evaluate(
                """(svg) => [...svg.querySelectorAll('text')].filter((text) => {
                     const box = text.getBBox();
                     return box.x < -1 || box.x + box.width > svg.clientWidth + 1;
                   }).map((text) => text.textContent)"""
            )
            assert cut == [], name
        # The boxes of nodes are as wide as what is in them wants, not numbers alone.
        expect(page.locator("[data-kind=host] [data-node='0'] text")).to_contain_text(["0", "GiB", "CPUs"])


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

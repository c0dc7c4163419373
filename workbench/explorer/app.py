"""The explorer: editors on the left, linked views on the right, one controller behind them."""

from __future__ import annotations

import html
import logging
import math
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as w
import xarray as xr

from workbench import children, results, shown
from workbench.data import notebooks_path
from workbench.errors import WorkbenchError
from workbench.explorer import edits, export, pictures, ranking, static
from workbench.explorer.controller import Controller, Event, ShownRun, Simulate, _engine
from workbench.explorer.editors import Editor, GuestEditor, MachineEditor, PolicyEditor, WorkloadEditor
from workbench.explorer.widgets import GESTURE, STYLE, AddressSpace, Chart, Share, TimeSlider
from workbench.kernels import first_use
from workbench.ready import scenario as read_ready
from workbench.scenario import Scenario
from workbench.units import format_bytes, parse_bytes

logger = logging.getLogger(__name__)
SHOW_PROGRESS_AFTER = 0.3
"""Seconds after which a run shows its progress; shorter ones would only flicker."""
BREATH = 0.05
"""Seconds that an edit waits for its run: what is shown by then needs no mark of being worked out."""
GIVE_WAY = 0.0002
"""Seconds that who sends the map gives Python's lock to the thread that carries it to the browser, which otherwise gets it
when the other views are worked out too."""
WAIT_FOR_FIRST = 1.0
"""Seconds that the first display waits for the first result."""
LARGEST_DOWNLOAD = 64 << 20
"""Bytes of a Dataset that go through the browser; larger ones are saved to a file by ``workbench run``."""
VIEWS = ("Nodes", "vCPUs", "Over time", "Calls", "Compare", "Dataset", "Share", "Best policy")


def _aid(text: str) -> w.HTML:
    return w.HTML(f'<div class="wb-aid">{text}</div>')


class Explorer:
    """An instrument for one scenario (or the name of a ready one, or a file). Show it as the last expression of a cell.

    ``scenario`` and ``result`` are what the editors describe and what the engine answered; setting ``scenario`` moves
    the widgets. ``close()`` ends its thread and its widgets.
    """

    def __init__(self, scenario: Scenario | str | Path, *, simulate: Simulate = _engine) -> None:
        scenario = read_ready(scenario)
        self._lock = threading.RLock()
        self.controller = Controller(scenario, simulate=simulate, breath=BREATH, notify=self._notify)
        # A second one replays the beginning of the run for the time slider.
        self._replay = Controller(scenario, simulate=simulate, notify=self._notify_replay)
        self._serial = 0
        self._viewport: tuple[int, int] | None = None
        self._started = 0.0
        self._stale: set[int] = set()
        self._painted: ShownRun | None = None
        self._handles: list[Any] = []
        self.machine = MachineEditor(self.controller)
        self.guest = GuestEditor(self.controller)
        self.policy = PolicyEditor(self.controller)
        self.workload = WorkloadEditor(self.controller)
        self.editors: tuple[Editor, ...] = (self.machine, self.guest, self.policy, self.workload)
        self._build_header()
        self._build_views()
        tabs = w.Tab([editor.widget for editor in self.editors], titles=["Machine", "Guest", "Policy", "Workload"])
        tabs.selected_index = 2
        tabs.add_class("wb-editors")
        self.editor_tabs = tabs
        body = w.HBox([tabs, self.views])
        body.add_class("wb-body")
        self.root = w.VBox([w.HTML(f"<style>{STYLE}</style>"), self.header, body])
        self.root.add_class("wb-explorer")
        self._compiling: str | None = None
        first_use.listeners.append(self._tell_compiling)
        self._load_editors()
        # Mostly the first result is there at once. If kernels must be compiled first, the instrument shows and says so.
        self.controller.start()
        self.controller.wait(WAIT_FOR_FIRST)

    # ------------------------------------------------------------------------------------------------ interface

    @property
    def scenario(self) -> Scenario:
        """The scenario that the editors describe (the last valid one). Setting it moves the widgets."""
        return self.controller.scenario

    @scenario.setter
    def scenario(self, scenario: Scenario | str | Path) -> None:
        self.controller.scenario = read_ready(scenario)
        self._update_static()

    @property
    def result(self) -> xr.Dataset:
        """The Dataset of the present scenario; waits for a run that is under way."""
        self.controller.wait()
        if self.controller.failure:
            raise WorkbenchError(self.controller.failure)
        if self.controller.run is None:
            raise WorkbenchError("result: there is none yet")
        return self.controller.run.dataset

    def close(self) -> None:
        """End the worker threads and close every widget."""
        if self._tell_compiling in first_use.listeners:
            first_use.listeners.remove(self._tell_compiling)
        self.controller.close()
        self._replay.close()
        for widget in _family(self.root):
            widget.close()

    @property
    def shown(self) -> ShownRun | None:
        """The run that the views show: the whole one, or its beginning when the time slider says so."""
        run = self.controller.run
        if run is not None and self.time.value < self.time.max and self._replay.run is not None:
            return self._replay.run
        return run

    @property
    def _replaying(self) -> bool:
        """Whether the views wait for the beginning of the run that the time slider asks for."""
        beginning = self._replay.run
        return self.time.value < self.time.max and (
            beginning is None or beginning.scenario is not self._replay.scenario
        )

    # --------------------------------------------------------------------------------------------------- layout

    def _build_header(self) -> None:
        self.title = w.HTML()
        self.status = w.HTML()
        self.undo = self._button("undo", "Take the last edit back", lambda: self.controller.undo())
        self.redo = self._button("redo", "Make it again", lambda: self.controller.redo())
        self.pin = self._button("pin as A", "Keep this run as A and compare what follows with it", self._pin)
        self.unpin = self._button("unpin", "Stop comparing", lambda: self.controller.unpin())
        self.cancel = self._button("cancel", "Stop the run; the last result stays", lambda: self.controller.cancel())
        self.bar = w.IntProgress(min=0, max=1, layout=w.Layout(width="90px", display="none"))
        self.title.layout = w.Layout(flex="0 1 auto", min_width="60px", overflow="hidden")
        self.status.layout = w.Layout(flex="1 1 0", min_width="60px", overflow="hidden")
        # Its style decides when it shows: at once would flicker, and Python may be at work when it should.
        self.busy = w.HTML('<span class="wb-busy">computing …</span>')
        self.busy.add_class("wb-beside")
        self.header = w.HBox(
            [self.title, self.status, self.busy, self.bar, self.cancel, self.undo, self.redo, self.pin, self.unpin]
        )
        self.header.add_class("wb-header")

    def _button(self, text: str, tip: str, action: Callable[[], None]) -> w.Button:
        button = w.Button(description=text, tooltip=tip, layout=w.Layout(width="auto"))
        button.on_click(lambda _: action())
        return button

    def _build_views(self) -> None:
        self.space = AddressSpace()
        self.space.observe(lambda change: self._zoomed(change["new"]), "viewport")
        self.space.observe(lambda change: self._gesture(change["new"]), "gesture")
        self.space.observe(lambda change: self._range_chosen(change["new"]), "selected")
        self.policy.on_select = lambda index: setattr(self.space, "selected", index)
        self.time = TimeSlider(layout=w.Layout(flex="1 1 auto", min_width="180px"))
        self.time.observe(lambda change: self._time_moved(), "value")
        self.goto = w.Text(
            placeholder="12 GiB", description="go to", continuous_update=False, style={"description_width": "40px"}
        )
        self.goto.layout = w.Layout(width="150px")
        self.goto.observe(lambda change: self._go_to(change["new"]), "value")
        self.goto_error = w.HTML(layout=w.Layout(display="none"))
        self.goto_error.add_class("wb-error")
        self.host_chart = Chart(kind="host", height=250)
        self.bars_chart = Chart(kind="bars", height=250, source=self.host_chart)
        self.vcpu_chart = Chart(kind="vcpus")
        self.time_chart = Chart(kind="time", height=300)
        self.pattern = w.Dropdown(
            options=["streaming", "uniform", "zipf", "pointer_chasing"],
            description="accesses",
            style={"description_width": "60px"},
            layout=w.Layout(width="220px"),
        )
        self.pattern.observe(lambda _: self._again("vCPUs", "Compare"), "value")
        self.calls = w.HTML()
        self.compare = w.HTML()
        self.dataset = w.HTML()
        self.share = Share(
            downloads=[
                {"name": "yaml", "label": "scenario (YAML)"},
                {"name": "zip", "label": "Dataset (Zarr zip)"},
                {"name": "nc", "label": "Dataset (netCDF)"},
                {"name": "html", "label": "picture and table (HTML)"},
            ]
        )
        self.share.on_msg(lambda _widget, message, _buffers: self._download(message))
        self.share_kind = w.ToggleButtons(
            options=["Python", "YAML", "report command", "papermill command"], style={"button_width": "auto"}
        )
        self.share_kind.observe(lambda _: self._show_share(), "value")
        self.report = self._button(
            "make a report", "Run notebooks/00_explorer.ipynb on this scenario", self._make_report
        )
        self.report_note = w.HTML()
        self.figure = w.Dropdown(
            options=list(export.NAMES), description="figure", style={"description_width": "44px"},
            layout=w.Layout(width="200px"),
        )  # fmt: skip
        self.figure_files = Share(
            plain=True,
            downloads=[
                *({"name": f"figure {kind}", "label": kind.upper()} for kind in ("svg", "pdf")),
                {"name": "figure png", "label": "PNG, 300 dpi"},
                {"name": "table csv", "label": "its numbers (CSV)"},
                {"name": "calls csv", "label": "calls (CSV)"},
            ],
        )
        self.figure_files.on_msg(lambda widget, message, _buffers: self._download(message, widget))
        self.rank_pattern = w.Dropdown(
            options=self.pattern.options, description="accesses", style={"description_width": "60px"},
            layout=w.Layout(width="220px"),
        )  # fmt: skip
        self.rank_parts = w.Checkbox(
            description="each node's vCPUs use their own part", indent=False, layout=w.Layout(width="auto")
        )
        self.rank_button = self._button(
            "rank the policies", "Simulate this guest under every policy and compare what its vCPUs get", self._rank
        )
        self.ranking = w.HTML()
        self.ranking.add_class("wb-scroll")
        self._ranked: Scenario | None = None
        self._ranking: xr.Dataset | None = None
        self.rank_files = Share(plain=True, downloads=[{"name": "ranking csv", "label": "ranking (CSV)"}])
        self.rank_files.on_msg(lambda widget, message, _buffers: self._download(message, widget))
        self.rank_files.layout.display = "none"
        half = w.Layout(width="50%", min_width="0")
        for chart in (self.host_chart, self.bars_chart):
            chart.layout = half
        pair = w.HBox([self.host_chart, self.bars_chart])
        pair.add_class("wb-pair")
        for table in (self.calls, self.dataset, self.compare):
            table.add_class("wb-scroll")
        self.tabs = w.Tab(
            [
                w.VBox(
                    [
                        _aid(
                            "Boxes: fill level; nearer nodes have thicker links; a ? marks what is assumed. Bars: the guest "
                            "against capacity."
                        ),
                        pair,
                    ]
                ),
                w.VBox(
                    [
                        _aid(
                            "The memory each group of vCPUs uses; full colour is local. Distance is SLIT, 10 is local. [ ] holds "
                            "nine in ten draws of the cost parameters."
                        ),
                        self.pattern,
                        self.vcpu_chart,
                    ]
                ),
                w.VBox(
                    [_aid("Counters after every operation; move the slider above to see any moment."), self.time_chart]
                ),
                w.VBox([_aid("Each call with what Linux returns; a refused call is a result."), self.calls]),
                w.VBox([_aid("A is the pinned run, B the present one; [ ] holds nine in ten draws."), self.compare]),
                w.VBox([_aid("The whole result as an xarray.Dataset: <code>explorer.result</code>."), self.dataset]),
                w.VBox(
                    [
                        self.share_kind,
                        self.share,
                        w.HBox([self.figure, self.figure_files]),
                        w.HBox([self.report, self.report_note]),
                    ],
                ),
                w.VBox(
                    [
                        _aid(
                            "This guest on this host under every policy, ranked by what its vCPUs get; the workload "
                            "is the access pattern chosen here."
                        ),
                        w.HBox(
                            [self.rank_pattern, self.rank_parts, self.rank_button, self.rank_files],
                            layout=w.Layout(flex_flow="row wrap"),
                        ),
                        self.ranking,
                    ]
                ),
            ],
            titles=list(VIEWS),
        )
        self.tabs.observe(lambda change: self._view_chosen(), "selected_index")
        self.views = w.VBox(
            [
                _aid(
                    "Columns show the nodes behind the pages. Drag in the band above them to draw a policy range; drag a "
                    "range to move it, its edges to resize it."
                ),
                self.space,
                w.HBox([self.goto, self.time]),
                self.goto_error,
                self.tabs,
            ]
        )
        self.views.add_class("wb-views")

    # ------------------------------------------------------------------------------------------ what has changed

    def _notify(self, event: Event) -> None:
        """Called by the controller, also from its thread."""
        try:
            with self._lock:
                {
                    "scenario": self._load_editors,
                    "errors": self._show_errors,
                    "running": self._show_running,
                    "progress": self._show_progress,
                    "result": self._show_result,
                    "failed": self._show_running,
                    "pinned": self._show_result,
                }[event]()
        except Exception:  # an error of a view belongs on the screen, and must not end the worker
            logger.exception("explorer: %s", event)
            self.status.value = (
                f'<span class="wb-bad" role="alert">{html.escape(traceback.format_exc(limit=-2))}</span>'
            )

    def _notify_replay(self, event: Event) -> None:
        if event == "result":
            self._notify("pinned")

    def _tell_compiling(self, done: int, total: int, beside: bool) -> None:
        """Called by whoever compiles kernels, which may be a view that holds the lock."""
        self._compiling = None if done == total else first_use.say(done, total, beside)
        if self._lock.acquire(blocking=False):
            try:
                self._show_running()
            finally:
                self._lock.release()

    def _load_editors(self) -> None:
        self.goto_error.layout.display = "none"
        scenario = self.controller.scenario
        self.title.value = (
            f'<span class="wb-title" title="{html.escape(scenario.comment)}">{html.escape(scenario.name)}</span>'
        )
        for editor in self.editors:
            editor.load(scenario)
        self.undo.disabled = not self.controller.can_undo
        self.redo.disabled = not self.controller.can_redo
        if self.controller.run is not None:
            # Ranges follow the edit at once; the pages follow when the run is done.
            self._show_ranges()
        if VIEWS[self.tabs.selected_index or 0] == "Share":
            self._show_share()

    def _show_ranges(self) -> None:
        run = self.controller.run
        if run is None or not self.space.frame:
            return
        shown = pictures.ranges(self.controller.scenario, self.space.frame["nodes"])
        if shown != self.space.frame["ranges"]:  # mostly the run was over first, and its picture has them
            self.space.frame = {**self.space.frame, "force": False, "ranges": shown}
        self.space.selected = self.policy.selected

    def _show_errors(self) -> None:
        for editor in self.editors:
            editor.show_errors(self.controller.errors)

    def _mark_old(self) -> bool:
        """Dim a picture that is not of the present settings; returns whether the last run is not of them either.

        A picture is of the run that was painted last, which is older than the last run while views are being worked out.
        """
        run, painted, scenario = self.controller.run, self._painted, self.controller.scenario
        waiting = painted is not None and painted.scenario is not scenario and not self.controller.awaited
        if waiting or self._replaying:
            self.root.add_class("wb-old")
        else:
            self.root.remove_class("wb-old")
        return run is not None and run.scenario is not scenario

    def _show_progress(self) -> None:
        """Most runs are over before their progress is worth a message to the browser."""
        if self._started and time.monotonic() - self._started > SHOW_PROGRESS_AFTER:
            self._show_running()

    def _show_running(self) -> None:
        old = self._mark_old()
        controller = self.controller
        running = controller.running or controller.run is None
        if not running:
            self._started = 0.0
        elif not self._started and not controller.awaited:
            self._started = time.monotonic()
            later = threading.Timer(1.1 * SHOW_PROGRESS_AFTER, lambda: self._notify("progress"))
            later.daemon = True
            later.start()
        slow = running and self._started > 0 and time.monotonic() - self._started > SHOW_PROGRESS_AFTER
        done, total = controller.progress
        if slow:
            self.bar.max, self.bar.value = max(1, total), done
        self.bar.layout.display = "" if slow else "none"
        self.cancel.layout.display = "" if slow else "none"
        if slow and self._compiling is not None:
            self.status.value = f'<span class="wb-status" role="status">{self._compiling}</span>'
        elif slow:
            self.status.value = f'<span class="wb-status" role="status">operation {done} of {total}</span>'
        elif controller.failure:
            text = f"{html.escape(controller.failure)}. The picture shows the last result that was good."
            self.status.value = f'<span class="wb-status" role="alert"><span class="wb-bad">{text}</span></span>'
        elif old and not running:
            text = "Stopped. The picture shows the settings of the last run that ended."
            self.status.value = f'<span class="wb-status" role="status">{text}</span>'
        elif controller.run is not None:
            run = controller.run
            refused = int((run.dataset.variables["event_errno"].values != 0).sum())
            text = pictures.summary_of(run)
            if refused:
                text += f' <span class="wb-bad">{refused} of {run.dataset.sizes["event"]} calls refused.</span>'
            for line in pictures.warnings(run.dataset):
                text += f'<span class="wb-bad wb-warning">Warning: {html.escape(line)}</span>'
            self.status.value = (
                f'<span class="wb-status" role="status" title="{1000 * run.seconds:.0f} ms">{text}</span>'
            )

    def _show_result(self) -> None:
        run = self.controller.run
        if run is None:
            return
        last = max(0, run.dataset.sizes["event"] - 1)
        if self.time.max != last or self._replay_of is not run:
            at_end = self.time.value >= self.time.max
            self._moving = True
            with self.time.hold_sync():  # one message: a value beyond the end would be cut in the browser
                self.time.max = last
                if at_end or self.time.value > last:
                    self.time.value = last
            self._moving = False
            self._replay_of = run
            if self.time.value < last:
                self._replay_beginning(run)
        self._show_space(force=False)
        time.sleep(GIVE_WAY)
        self.unpin.layout.display = "" if self.controller.pinned else "none"
        self._stale = set(range(len(VIEWS)))
        self._tab_opened()
        self._painted = run
        self._show_running()

    _replay_of: ShownRun | None = None
    _moving = False

    def _show_space(self, *, force: bool) -> None:
        run = self.shown
        if run is None:
            return
        total = pictures.guest_total(run.dataset)
        old = self.space.frame.get("total")
        if self._viewport is None or old != total:
            self._viewport, force = (0, total), True
        self._serial += 1
        data = pictures.space(
            run, self.controller.pinned, self.controller.scenario, *self._viewport, self._serial, force=force
        )
        with self.space.hold_sync():
            self.space.frame = data["frame"]
            self.space.shares = data["shares"]
            self.space.shares_a = data["shares_a"]
            self.space.selected = self.policy.selected

    def _view_chosen(self) -> None:
        name = VIEWS[self.tabs.selected_index or 0]
        if name in export.NAMES:  # what was looked at last is what is exported first
            self.figure.value = name
        with self._lock:
            self._tab_opened()

    def _tab_opened(self) -> None:
        """Draw the view that is open, if it is not drawn yet. Under the lock: who draws an older run ends first."""
        index = self.tabs.selected_index or 0
        run = self.shown
        if index not in self._stale or run is None:
            return
        self._stale.discard(index)
        name, pinned = VIEWS[index], self.controller.pinned
        self._serial += 1
        if name == "Nodes":
            self.host_chart.data = pictures.host(
                run, pinned, self._serial
            )  # and of the bars, which it is the source of
        elif name == "vCPUs":
            if not pictures.draws_at_hand(run):  # of a host just edited; the ends follow the values
                self.vcpu_chart.data = pictures.vcpus(run, self._serial, self.pattern.value, ends=False)
                self._serial += 1
            self.vcpu_chart.data = pictures.vcpus(run, self._serial, self.pattern.value)
        elif name == "Over time":
            whole = self.controller.run
            assert whole is not None
            self.time_chart.data = pictures.timeline(whole, min(self.time.value, self.time.max), self._serial)
        elif name == "Calls":
            whole = self.controller.run
            assert whole is not None
            self.calls.value = pictures.events_table(whole.dataset, self.time.value)
        elif name == "Compare":
            if pinned is None:
                self.compare.value = (
                    "Press “pin as A” above, then change something: A and B are shown beside each other."
                )
            else:
                self.compare.value = pictures.nodes_table(run, pinned) + pictures.differences(
                    run, pinned, str(self.pattern.value)
                )
        elif name == "Dataset":
            self.dataset.value = shown.listing(run.dataset)
        elif name == "Share":
            self._show_share()
        elif name == "Best policy" and self._ranked is not None and self._ranked is not self.controller.scenario:
            self._ranked = self._ranking = None
            self.rank_files.layout.display = "none"
            self.ranking.value = "The settings have changed since: rank the policies again."

    def _again(self, *names: str) -> None:
        with self._lock:
            self._stale.update(VIEWS.index(name) for name in names)
            self._tab_opened()

    # ------------------------------------------------------------------------------------------------- gestures

    def _pin(self) -> None:
        self.controller.pin()

    def _zoomed(self, viewport: list[float]) -> None:
        with self._lock:
            if len(viewport) >= 2 and 0 <= viewport[0] < viewport[1] < math.inf:
                self.goto_error.layout.display = "none"  # it spoke of a place that is no longer asked for
                self._viewport = (int(viewport[0]), int(viewport[1]))
                self._show_space(force=False)

    def _go_to(self, text: str) -> None:
        run = self.shown
        if not text.strip() or run is None:
            self.goto_error.layout.display = "none"
            return
        try:
            offset, total = parse_bytes(text.strip(), "go to"), pictures.guest_total(run.dataset)
            if offset >= total:
                raise WorkbenchError(f"go to: {text.strip()} is beyond the guest's {format_bytes(total)}")
        except WorkbenchError as error:
            self.goto_error.value, self.goto_error.layout.display = html.escape(str(error)), ""
            return
        self.goto_error.layout.display = "none"
        with self._lock:
            size = 16 * int(run.dataset["page_size"])
            start = max(0, min(offset - size // 2, total - size))
            self._viewport = (start, min(total, start + size))
            self._show_space(force=True)

    def _gesture(self, gesture: dict[str, Any]) -> None:
        if any(name not in gesture for name in GESTURE):
            return
        _, index, start, end = (gesture[name] for name in GESTURE)
        if index < 0:
            self.policy.add_range(start, end)
        else:
            self.policy.move_range(index, start, end)

    def _range_chosen(self, index: int) -> None:
        with self._lock:
            if index != self.policy.selected and 0 <= index < len(self.controller.scenario.guest.policies):
                self.policy.select(index)

    def _time_moved(self) -> None:
        with self._lock:
            run = self.controller.run
            if run is None or self._moving:
                return
            if self.time.value < self.time.max:
                # What is read from the whole run moves at once; the rest is dimmed until the beginning has been
                # replayed, which it has been already when the slider comes back to where it stood.
                self._replay_beginning(run)
            self._notify("pinned")

    def _replay_beginning(self, run: ShownRun) -> None:
        from workbench.engine.generators import expand

        operations = expand(run.scenario)[: self.time.value + 1]
        self._replay.scenario = run.scenario.model_copy(update={"operations": tuple(operations)})

    # ---------------------------------------------------------------------------------------------------- share

    def _show_share(self) -> None:
        with self._lock:
            self.share.text = self._share_text(self.controller.scenario, str(self.share_kind.value))

    def _share_text(self, scenario: Scenario, kind: str) -> str:
        text = edits.short_yaml(scenario)
        if kind == "Python":
            text = f'import workbench as wb\n\nscenario = wb.Scenario.from_yaml("""\n{text}""")\n'
            text += "result = wb.simulate(scenario)\n"
        elif kind == "report command":
            text = f"{_heredoc(text)}\nworkbench report {NOTEBOOK} -p scenario scenario.yaml -o explorer.html\n"
        elif kind == "papermill command":
            text = (
                f"{_heredoc(text)}\npapermill notebooks/{NOTEBOOK}.ipynb explorer-run.ipynb -p scenario scenario.yaml\n"
            )
        return text

    def _download(self, message: object, widget: Share | None = None) -> None:
        widget = widget or self.share
        try:
            name, content = self.file(str(message.get("download")) if isinstance(message, dict) else "")
        except (WorkbenchError, OSError) as error:
            widget.send({"error": str(error)})
            return
        widget.send({"name": name}, buffers=[content])

    def file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of a file to download: ``yaml``, ``zip`` (Zarr), ``nc``, ``html``; ``figure svg``,
        ``figure pdf``, ``figure png`` and ``table csv`` of the chosen figure, ``calls csv`` or ``ranking csv``."""
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.scenario.name) or "scenario"
        if kind == "yaml":
            return f"{stem}.yaml", edits.short_yaml(self.scenario).encode()
        if kind == "html":
            return f"{stem}.html", static.page(self.controller.run, self.controller.pinned).encode()
        what, _, suffix_ = kind.partition(" ")
        if kind == "ranking csv":
            if self._ranking is None:
                raise WorkbenchError("download: rank the policies first")
            return f"{stem}-ranking.csv", ranking.frame(self._ranking).to_csv().encode()
        if suffix_ in (*export.FORMATS, "csv") and what in ("figure", "table", "calls"):
            run = self.shown
            if run is None:
                raise WorkbenchError("download: there is no result yet")
            view = "Calls" if what == "calls" else str(self.figure.value)
            content = (
                export.figure(run, view, suffix_, self.controller.pinned)
                if what == "figure"
                else export.table(run, view, self.controller.pinned, str(self.pattern.value))
            )
            return f"{stem}-{view.lower().replace(' ', '-')}.{suffix_}", content
        suffix = {"zip": ".zarr.zip", "nc": ".nc"}.get(kind)
        if suffix is None:
            raise WorkbenchError(f"download: {kind!r} is not one of yaml, zip, nc, html")
        dataset = self.result
        if dataset.nbytes > LARGEST_DOWNLOAD:
            raise WorkbenchError(
                f"download: the Dataset has {format_bytes(dataset.nbytes)}, too much for a browser; "
                "save it with workbench.results.save(explorer.result, path)"
            )
        with tempfile.TemporaryDirectory() as directory:
            path = results.save(dataset, Path(directory) / (stem + suffix))
            return path.name, path.read_bytes()

    def _rank(self) -> None:
        self.rank_button.disabled = True
        self.ranking.value = '<span class="wb-note" role="status">simulating every policy …</span>'
        arguments = (self.scenario, str(self.rank_pattern.value), bool(self.rank_parts.value))
        threading.Thread(target=self._run_ranking, args=arguments, daemon=True).start()

    def _run_ranking(self, scenario: Scenario, pattern: str, partitioned: bool) -> None:
        found = None
        try:
            found = ranking.rank(scenario, pattern, partitioned=partitioned)
            text = ranking.table(found, scenario)
        except WorkbenchError as error:
            text = f'<span class="wb-bad" role="alert">{html.escape(str(error))}</span>'
        except Exception as error:  # a fault must show here, not vanish in a thread
            logger.exception("explorer: ranking")
            text = f'<span class="wb-bad" role="alert">{html.escape(f"{type(error).__name__}: {error}")}</span>'
        with self._lock:
            self._ranked, self._ranking = scenario, found
            self.rank_files.layout.display = "" if found is not None else "none"
            self.ranking.value = text
            self.rank_button.disabled = False

    def _make_report(self) -> None:
        self.report.disabled = True
        self.report_note.value = '<span class="wb-note wb-report" role="status">running the notebook …</span>'
        threading.Thread(target=self._run_report, args=(self.scenario,), daemon=True).start()

    def _run_report(self, scenario: Scenario) -> None:
        import signal
        import sys

        target = Path.cwd() / "explorer.html"
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "scenario.yaml"
            path.write_text(scenario.to_yaml())
            command = [
                sys.executable,
                "-m",
                "workbench.commands.cli",
                "report",
                str(notebook()),
                "-p",
                "scenario",
                str(path),
            ]
            reply = children.run([*command, "-o", str(target)], signal.SIGTERM, capture_output=True, text=True)
        if reply.returncode == 0:
            note = f"report: {html.escape(str(target))}"
        else:
            lines = (reply.stderr.strip() or "the report failed").splitlines()
            note = f'<span class="wb-bad" role="alert">{html.escape(lines[-1])}</span>'
        self.report_note.value = f'<span class="wb-note wb-report">{note}</span>'
        self.report.disabled = False

    # --------------------------------------------------------------------------------------------------- static

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live widget, and beside it what a report without JavaScript shows: last picture and table."""
        bundle = self.root._repr_mimebundle_(**kwargs)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
        data.update(static.bundle(self.controller.run, self.controller.pinned))
        return data, {}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        handle = display(data, metadata=metadata, raw=True, display_id=True)
        if handle is not None:
            self._handles = [handle]

    def _update_static(self) -> None:
        """After a change from code, a notebook that nobody looks at (papermill) must keep the last picture."""
        if not self._handles or self.space.viewport:
            return  # a browser is there, and shows the change itself
        self.controller.wait()
        data, metadata = self._repr_mimebundle_()
        for handle in self._handles:
            handle.update(data, metadata=metadata, raw=True)


NOTEBOOK = "00_explorer"


def notebook() -> Path:
    """The notebook that reports are made of."""
    return notebooks_path() / f"{NOTEBOOK}.ipynb"


def _heredoc(text: str) -> str:
    return f"cat > scenario.yaml <<'EOF'\n{text}EOF"


def _family(widget: w.Widget) -> list[w.Widget]:
    found = [widget]
    for child in getattr(widget, "children", ()):
        found += _family(child)
    return found


def default_scenario() -> Scenario:
    """What an explorer starts with: a 64 GiB guest interleaved over a real two-socket machine."""
    return Scenario.from_mapping(
        {
            "name": "explorer",
            "host": "epyc1-naples-2s",
            "guest": {
                "memory": "64 GiB",
                "vcpus": [{"node": node} for node in range(8)],
                "policies": [{"mode": "interleave", "nodes": "0-3"}],
            },
        }
    )


def explore(scenario: Scenario | str | Path | None = None) -> Explorer:
    """Open the explorer on a scenario, a ready one by name, a scenario file, or a guest on a real two-socket machine.

    ``explore("conversion-drifts")`` opens what ``workbench explore conversion-drifts`` does.

    Show it as the last expression of a notebook cell. Keep it in a name to go on with ``explorer.scenario`` and
    ``explorer.result``.
    """
    return Explorer(default_scenario() if scenario is None else read_ready(scenario))

"""What the explorer knows, without a widget: the scenario being edited, its history, runs and their last good result.

Edits come in as functions on the scenario's mapping. A valid edit becomes the scenario and is run in one worker thread
after a short pause; a newer edit cancels the run of an older one, so that nothing is computed twice for one edit. An
invalid edit is kept as *pending* with its message beside the field, and the last good scenario and result stay.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import xarray as xr

from workbench.errors import Cancelled, WorkbenchError
from workbench.scenario import Scenario

Edit = Callable[[dict[str, Any]], None]
"""Changes a scenario's mapping in place; raises WorkbenchError for a value that has no place in it."""
Event = Literal["scenario", "errors", "running", "progress", "result", "failed", "pinned"]
ONE_STEP = 0.8
"""Seconds within which edits of one field are one step of undo, as those of a drag are."""
DRAG = 0.1
"""Seconds between two edits of a drag, at most: a browser sends some twenty a second."""
HISTORY = 200
"""Steps that undo can take back."""


class Simulate(Protocol):
    """The engine: :func:`workbench.simulate.simulate`."""

    def __call__(
        self, scenario: Scenario, *, progress: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> xr.Dataset: ...


@dataclass(frozen=True, eq=False)
class ShownRun:
    """A scenario with its result and how long the engine took, in seconds."""

    scenario: Scenario
    dataset: xr.Dataset
    seconds: float


def _engine(scenario: Scenario, **options: Any) -> xr.Dataset:
    from workbench.simulation import simulate

    return simulate(scenario, **options)


class Controller:
    """State of one explorer.

    Parameters
    ----------
    scenario : what to start with
    simulate : the engine
    pause : seconds that an edit waits for a newer one before it is run, if it came as soon after the one before: a drag.
        An edit by itself is run at once
    breath : seconds that the thread of such an edit waits for its run, which is mostly over by then: what that thread does
        next, editors and messages to the browser, would take Python's lock and the browser's attention from it
    notify : called with the name of what changed. Calls come from the thread that edits and, for ``running``,
        ``progress``, ``result`` and ``failed``, from the worker thread.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        simulate: Simulate = _engine,
        pause: float = 0.03,
        breath: float = 0.0,
        notify: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._simulate = simulate
        self._pause, self._breath = pause, breath
        self.notify = notify
        self._scenario = scenario
        self._undo: list[Scenario] = []
        self._redo: list[Scenario] = []
        self._merge_key: tuple[str, float] = ("", 0.0)
        self._pending: dict[str, Edit] = {}
        self.errors: dict[str, str] = {}
        self.run: ShownRun | None = None
        self.pinned: ShownRun | None = None
        self.failure: str = ""
        self.progress: tuple[int, int] = (0, 0)
        self.runs_started = 0
        # The worker: `_wanted` counts requests, `_done` is the request that the worker finished last.
        self._condition = threading.Condition()
        self._wanted = 0
        self._done = 0
        self._asked = (-math.inf, -math.inf)
        """When the last two requests came."""
        self._awaited = False
        self._request: Scenario | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------------- scenario

    @property
    def scenario(self) -> Scenario:
        """The last valid scenario. Setting it is an edit like any other."""
        return self._scenario

    @scenario.setter
    def scenario(self, scenario: Scenario) -> None:
        self._pending.clear()
        self.errors.clear()
        self._commit(scenario, "")
        self.notify("errors")

    @property
    def mapping(self) -> dict[str, Any]:
        """A copy of the scenario as plain mappings and lists."""
        return self._scenario.to_mapping()

    def edit(self, field: str, change: Edit) -> bool:
        """Apply a change made at ``field``; True if it (with what was pending) gives a valid scenario."""
        pending = {name: edit for name, edit in self._pending.items() if name != field}
        # First with everything that is pending: two changes may be valid only together.
        for edits in ({**pending, field: change}, {field: change}):
            mapping = self.mapping
            try:
                for edit in edits.values():
                    edit(mapping)
                host = self._scenario.host
                if mapping.get("host") == host.model_dump(mode="json", exclude_defaults=True):
                    mapping["host"] = host  # mostly: it is what takes longest to check again
                scenario = Scenario.from_mapping(mapping)
            except WorkbenchError as error:
                message = str(error)
                continue
            self._pending = {name: edit for name, edit in pending.items() if name not in edits}
            self.errors = {name: text for name, text in self.errors.items() if name in self._pending}
            self.notify("errors")
            self._commit(scenario, field)
            return True
        self._pending = {**pending, field: change}
        self.errors[field] = message
        self.notify("errors")
        return False

    def refuse(self, field: str, message: str) -> None:
        """Note an input that cannot even be tried, such as an unreadable file."""
        self.errors[field] = message
        self.notify("errors")

    def _commit(self, scenario: Scenario, field: str) -> None:
        if scenario == self._scenario:
            return
        # Steps of one drag are one step of undo.
        now = time.monotonic()
        same = field and self._merge_key[0] == field and now - self._merge_key[1] < ONE_STEP
        if not same:
            self._undo = [*self._undo[-(HISTORY - 1) :], self._scenario]
        self._redo.clear()
        self._merge_key = (field, now)
        self._become(scenario)

    def _become(self, scenario: Scenario) -> None:
        """The run first, and what shows the settings after it: the picture is what somebody waits for."""
        self._scenario = scenario
        self._ask()
        self.notify("scenario")
        self._tell_of_run()

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def undo(self) -> None:
        """Take the last edit back; anything invalid and pending is dropped too."""
        self._step(self._undo, self._redo)

    def redo(self) -> None:
        """Make the edit again that was taken back last."""
        self._step(self._redo, self._undo)

    def _step(self, source: list[Scenario], target: list[Scenario]) -> None:
        if self._pending or self.errors:
            self._pending.clear()
            self.errors.clear()
            self.notify("errors")
        self._merge_key = ("", 0.0)
        if source:
            target.append(self._scenario)
            self._become(source.pop())
        else:
            self.notify("scenario")

    # ----------------------------------------------------------------------------------------------------- runs

    @property
    def running(self) -> bool:
        """Whether a run is wanted or under way."""
        return self._done < self._wanted

    @property
    def awaited(self) -> bool:
        """Whether the edit's thread still waits for its run; nobody has been told of it by then."""
        return self._awaited and self.running

    @property
    def _dragged(self) -> bool:
        """Whether the last request came so soon after the one before that more may come."""
        return self._asked[1] - self._asked[0] < DRAG

    def start(self) -> None:
        """Ask for a run of the present scenario; a run of an older one is cancelled."""
        self._ask()
        self._tell_of_run()

    def _ask(self) -> None:
        with self._condition:
            if self._closed:
                return
            self._wanted += 1
            self._request = self._scenario
            self._asked = (self._asked[1], time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="workbench explorer", daemon=True)
                self._thread.start()
            self._awaited = bool(self._breath) and not self._dragged and threading.current_thread() is not self._thread
            self._condition.notify_all()
            if self._awaited:
                self._condition.wait_for(lambda: not self.running, self._breath)
                self._awaited = False

    def _tell_of_run(self) -> None:
        """A run that its edit no longer waits for is told of."""
        if self._breath and self.running:
            self.notify("running")

    def cancel(self) -> None:
        """Stop the run under way; the last good result stays."""
        with self._condition:
            if not self.running:
                return
            self._wanted += 1
            self._request = None
            self._condition.notify_all()

    def close(self) -> None:
        """End the worker thread."""
        with self._condition:
            self._closed = True
            self._wanted += 1
            self._request = None
            self._condition.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no run is wanted; False after ``timeout`` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self.running, timeout)

    def run_now(self) -> None:
        """Run in the calling thread; for the first display."""
        self._execute(self._scenario, lambda: False)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self.running or self._closed)
                if self._closed:
                    return
                number, request = self._wanted, self._request
                # In a drag, a newer edit within the pause takes the place of this one.
                patient = request is not None and self._dragged
                if patient and self._condition.wait_for(lambda: self._wanted != number, self._pause):  # noqa: B023
                    continue
            if request is not None:
                self._execute(request, lambda: self._wanted != number)  # noqa: B023
            with self._condition:
                self._done = number
                self._condition.notify_all()
            if not self.running:
                self.notify("running")

    def _execute(self, scenario: Scenario, cancelled: Callable[[], bool]) -> None:
        def report(done: int, total: int) -> None:
            self.progress = (done, total)
            self.notify("progress")

        self.runs_started += 1
        self.progress = (0, 0)
        self.notify("running")
        started = time.perf_counter()
        try:
            dataset = self._simulate(scenario, progress=report, cancelled=cancelled)
        except Cancelled:
            return
        except WorkbenchError as error:
            self.failure = str(error)
            self.notify("failed")
            return
        except Exception as error:  # a fault of the engine must show beside the picture, not vanish in a thread
            self.failure = f"{type(error).__name__}: {error}"
            self.notify("failed")
            return
        if cancelled():
            return
        self.failure = ""
        self.run = ShownRun(scenario, dataset, time.perf_counter() - started)
        self.notify("result")

    # -------------------------------------------------------------------------------------------------- compare

    def pin(self) -> None:
        """Keep the present run as A, to compare later runs with."""
        self.pinned = self.run
        self.notify("pinned")

    def unpin(self) -> None:
        """Forget A."""
        self.pinned = None
        self.notify("pinned")


def set_value(path: str, value: object) -> Edit:
    """An edit that sets one dotted path."""
    from workbench.scenario import set_path

    return lambda mapping: set_path(mapping, path, copy.deepcopy(value))


def update(changes: Mapping[str, object]) -> Edit:
    """An edit that sets several dotted paths at once."""
    from workbench.scenario import set_path

    def change(mapping: dict[str, Any]) -> None:
        for path, value in changes.items():
            set_path(mapping, path, copy.deepcopy(value))

    return change

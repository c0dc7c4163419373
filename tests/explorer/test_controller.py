"""The controller without a browser and without the real engine: history, errors, newest wins, cancel, compare."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import xarray as xr

from workbench.errors import Cancelled, WorkbenchError
from workbench.explorer.controller import Controller, set_value, update
from workbench.scenario import Scenario

SCENARIO = Scenario.from_mapping({"name": "test", "host": "epyc1-naples-2s", "guest": {"memory": "1 GiB"}})


class Engine:
    """Stands in for simulate: remembers what it was asked, and can be made to wait, fail or report progress."""

    def __init__(self) -> None:
        self.asked: list[Scenario] = []
        self.finished: list[Scenario] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def __call__(
        self, scenario: Scenario, *, progress: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> xr.Dataset:
        self.asked.append(scenario)
        progress(1, 2)
        while not self.gate.wait(0.002):
            if cancelled():
                raise Cancelled
        if cancelled():
            raise Cancelled
        if self.error is not None:
            raise self.error
        self.finished.append(scenario)
        return xr.Dataset(attrs={"memory": scenario.guest.memory})


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def controller(engine: Engine) -> Iterator[Controller]:
    made = Controller(SCENARIO, simulate=engine, pause=0.01)
    made.run_now()
    yield made
    made.close()
    assert made._thread is None or not made._thread.is_alive()


def test_an_edit_is_run_once(controller: Controller, engine: Engine) -> None:
    assert controller.edit("guest.memory", set_value("guest.memory", "2 GiB"))
    assert controller.wait(5)
    assert controller.run is not None
    assert controller.run.dataset.attrs["memory"] == 2 << 30
    assert len(engine.asked) == 2  # the first display and this edit


def test_an_edit_that_changes_nothing_is_not_run(controller: Controller, engine: Engine) -> None:
    assert controller.edit("guest.memory", set_value("guest.memory", "1 GiB"))
    controller.wait(5)
    assert len(engine.asked) == 1
    assert not controller.can_undo


def test_a_result_that_nobody_wants_any_more_is_not_shown(controller: Controller, engine: Engine) -> None:
    """An engine that looks at ``cancelled`` for the last time before the edit hands in its answer nevertheless."""
    before, entered, go_on = controller.run, threading.Event(), threading.Event()

    def late(scenario: Scenario, *, progress: object, cancelled: object) -> xr.Dataset:
        entered.set()
        assert go_on.wait(5)
        return xr.Dataset(attrs={"memory": scenario.guest.memory})

    controller._simulate = late
    controller.edit("guest.memory", set_value("guest.memory", "2 GiB"))
    assert entered.wait(5)
    controller.cancel()
    go_on.set()
    assert controller.wait(5)
    deadline = time.monotonic() + 5
    while controller._done != controller._wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    assert controller.run is before


def test_a_host_is_checked_again_only_when_an_edit_changes_it(controller: Controller) -> None:
    assert controller.edit("seed", set_value("seed", 7))
    assert controller.scenario.host is SCENARIO.host
    assert controller.edit("host.node", set_value("host.nodes.0.memory_bytes", "8 GiB"))
    assert controller.scenario.host.nodes[0].memory_bytes == 8 << 30 and controller.scenario.seed == 7
    assert not controller.edit("host.node", set_value("host.nodes.0.memory_bytes", -1))


def test_quick_edits_run_only_the_newest(controller: Controller, engine: Engine) -> None:
    for size in range(1, 40):
        controller.edit("guest.memory", set_value("guest.memory", f"{size} MiB"))
    assert controller.wait(5)
    assert controller.run is not None
    assert controller.run.scenario.guest.memory == 39 << 20
    assert len(engine.asked) < 10


def test_an_edit_by_itself_waits_for_nothing_and_a_drag_runs_few_of_its_steps(engine: Engine) -> None:
    controller = Controller(SCENARIO, simulate=engine, pause=5.0)
    controller.run_now()
    try:
        controller.edit("seed", set_value("seed", 1))
        assert controller.wait(4)
        assert [scenario.seed for scenario in engine.finished][-1] == 1
        controller._pause = 0.3
        ran = len(engine.asked)
        for seed in range(2, 30):
            controller.edit("seed", set_value("seed", seed))
            time.sleep(0.005)
        assert controller.wait(5)
        assert [scenario.seed for scenario in engine.finished][-1] == 29
        assert len(engine.asked) - ran <= 6
    finally:
        controller.close()


def test_a_newer_edit_cancels_a_run_under_way(controller: Controller, engine: Engine) -> None:
    engine.gate.clear()
    controller.edit("guest.memory", set_value("guest.memory", "2 GiB"))
    _until(lambda: len(engine.asked) == 2)
    controller.edit("guest.memory", set_value("guest.memory", "3 GiB"))
    _until(lambda: len(engine.asked) == 3)
    engine.gate.set()
    assert controller.wait(5)
    assert [scenario.guest.memory >> 30 for scenario in engine.finished] == [1, 3]


def test_cancel_keeps_the_last_result(controller: Controller, engine: Engine) -> None:
    engine.gate.clear()
    controller.edit("guest.memory", set_value("guest.memory", "2 GiB"))
    _until(lambda: len(engine.asked) == 2)
    assert controller.running
    controller.cancel()
    assert controller.wait(5)
    assert controller.run is not None
    assert controller.run.scenario == SCENARIO
    # The next edit runs again.
    engine.gate.set()
    controller.edit("guest.memory", set_value("guest.memory", "4 GiB"))
    controller.wait(5)
    assert controller.run.scenario.guest.memory == 4 << 30


def test_invalid_input_keeps_scenario_and_result(controller: Controller, engine: Engine) -> None:
    assert not controller.edit("guest.memory", set_value("guest.memory", "4097"))
    assert "4 KiB" in controller.errors["guest.memory"]
    assert controller.scenario == SCENARIO
    assert controller.run is not None
    assert len(engine.asked) == 1
    assert controller.edit("guest.memory", set_value("guest.memory", "2 GiB"))
    assert not controller.errors


def test_two_edits_that_are_valid_only_together(controller: Controller) -> None:
    assert not controller.edit("guest.page_size", set_value("guest.page_size", "2 MiB"))
    assert "filemap" in controller.errors["guest.page_size"]
    assert controller.edit("guest.design", set_value("guest.design", "hugetlb"))
    assert controller.scenario.guest.page_size == "2 MiB"
    assert not controller.errors


def test_an_invalid_field_does_not_block_the_others(controller: Controller) -> None:
    controller.edit("guest.memory", set_value("guest.memory", "nonsense"))
    assert controller.edit("seed", set_value("seed", 7))
    assert controller.scenario.seed == 7
    assert set(controller.errors) == {"guest.memory"}


def test_undo_and_redo(controller: Controller) -> None:
    for number, field in enumerate(("a", "b", "c"), 1):
        controller.edit(field, set_value("seed", number))
    controller.undo()
    assert controller.scenario.seed == 2
    controller.undo()
    controller.undo()
    assert controller.scenario == SCENARIO
    assert not controller.can_undo
    controller.redo()
    controller.redo()
    assert controller.scenario.seed == 2
    controller.edit("d", set_value("seed", 9))
    assert not controller.can_redo
    controller.wait(5)
    assert controller.run is not None
    assert controller.run.scenario.seed == 9


def test_undo_drops_what_is_invalid(controller: Controller) -> None:
    controller.edit("guest.memory", set_value("guest.memory", "nonsense"))
    controller.undo()
    assert not controller.errors
    assert controller.edit("seed", set_value("seed", 1))
    assert controller.scenario.guest.memory == 1 << 30


def test_steps_of_one_drag_are_one_step_of_undo(controller: Controller) -> None:
    for number in range(1, 20):
        controller.edit("seed", set_value("seed", number))
    controller.undo()
    assert controller.scenario == SCENARIO


def test_a_fault_of_the_engine_is_shown_and_the_next_run_works(controller: Controller, engine: Engine) -> None:
    for error, text in ((WorkbenchError("too large"), "too large"), (RuntimeError("boom"), "RuntimeError: boom")):
        engine.error = error
        controller.edit(text, update({"seed": len(text)}))
        controller.wait(5)
        assert controller.failure == text
        assert controller.run is not None
        assert controller.run.scenario == SCENARIO
    engine.error = None
    controller.edit("x", set_value("seed", 3))
    controller.wait(5)
    assert controller.failure == ""
    assert controller.run.scenario.seed == 3


def test_pin_keeps_a_run(controller: Controller) -> None:
    controller.pin()
    controller.edit("seed", set_value("seed", 3))
    controller.wait(5)
    assert controller.pinned is not None
    assert controller.pinned.scenario.seed == 0
    controller.unpin()
    assert controller.pinned is None


def test_events_arrive(engine: Engine) -> None:
    events: list[str] = []
    controller = Controller(SCENARIO, simulate=engine, pause=0, notify=events.append)
    controller.run_now()
    controller.edit("seed", set_value("seed", 3))
    controller.wait(5)
    _until(lambda: events[-1] == "running")
    controller.close()
    assert events[:3] == ["running", "progress", "result"]
    assert {"errors", "scenario"} <= set(events)


def _until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_thread_of_an_edit_waits_for_a_run_that_is_over_at_once(engine: Engine) -> None:
    told: list[tuple[str, str, bool]] = []
    made = Controller(SCENARIO, simulate=engine, breath=30.0)
    made.notify = lambda event: told.append((event, threading.current_thread().name, made.awaited))
    try:
        assert made.edit("guest.memory", set_value("guest.memory", "2 GiB"))
        assert made.run is not None and made.run.scenario.guest.memory == 2 << 30, "no need to wait for it"
        mine = [event for event, thread, _ in told if thread == threading.current_thread().name]
        assert mine == ["errors", "scenario"]
        assert [event for event, _, _ in told if event in ("result", "scenario")] == ["result", "scenario"], (
            "the picture first"
        )
        assert ("running", "workbench explorer", True) in told, "its beginning is nothing to show"
        engine.error = WorkbenchError("no")
        assert made.edit("guest.memory", set_value("guest.memory", "3 GiB"))
        assert made.wait(5) and made.failure == "no" and not made.awaited
    finally:
        made.close()


def test_a_run_that_takes_longer_is_told_of_and_not_waited_for(engine: Engine) -> None:
    engine.gate.clear()
    told: list[tuple[str, str, bool]] = []
    made = Controller(SCENARIO, simulate=engine, breath=0.02)
    made.notify = lambda event: told.append((event, threading.current_thread().name, made.awaited))
    try:
        assert made.edit("guest.memory", set_value("guest.memory", "2 GiB"))
        assert made.running and not made.awaited
        assert told[-1] == ("running", threading.current_thread().name, False)
        assert made.edit("guest.memory", set_value("guest.memory", "3 GiB")), "one of a drag, and at once"
        assert told[-1] == ("running", threading.current_thread().name, False)
        engine.gate.set()
        assert made.wait(5) and made.run is not None and made.run.scenario.guest.memory == 3 << 30
    finally:
        made.close()

"""Messages of a browser that the explorer never sends: each is refused by the type of its field, or answered.

What is said of a widget's value, a range drawn, a zoom, a file asked for. Then the explorer still computes what it shows.
"""

from __future__ import annotations

import math
import random
import sys
from typing import Any

import ipywidgets
import pytest
import traitlets
from fuzz.damage import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets.widgets import widget as library

from workbench.explorer import explore
from workbench.explorer.app import _family
from workbench.explorer.widgets import AddressSpace, Matrix, NodePicker, Share, TimeSlider
from workbench.scenario import Scenario
from workbench.simulation import simulate

SETS: dict[type[ipywidgets.Widget], tuple[str, ...]] = {
    AddressSpace: ("selected", "viewport", "gesture"),
    TimeSlider: ("value",),
    NodePicker: ("selected", "weights"),
    Matrix: ("values",),
    ipywidgets.Dropdown: ("index",),
    ipywidgets.Text: ("value",),
    ipywidgets.Checkbox: ("value",),
    ipywidgets.IntText: ("value",),
    ipywidgets.ToggleButtons: ("index",),
}
"""What browsers may set."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 5, 1 << 63, 1.5, math.nan, math.inf, -1e308, "", "x", "\x00", "\x1b[31m", "0-3", "4 MiB", "9e99 TiB",
    "-1", "<script>", "a" * 5000, [], [0], [1, 2, 3], [-1], ["a"], [0.0, 1e18], [math.nan, 1.0], [0.0, math.inf], [[1]],
    [1 << 40, 1 << 50, 3], {}, {"serial": 1}, {"serial": 2, "index": -1, "start": 0, "end": 4096},
    {"serial": 3, "index": 0, "start": 5, "end": 1}, {"serial": 4, "index": 7, "start": -4096, "end": 1 << 60},
    {"serial": 5, "index": -1, "start": math.inf, "end": math.nan}, {"serial": 6, "index": "x", "start": None, "end": []},
    {"0": 1, "1": 300}, {"a": "b"}, {"-1": 4}, {"download": "yaml"}, {"download": "../x"}, {"download": 7},
)  # fmt: skip


class Shell:
    """Stands for the kernel of a notebook, which would print the traceback of what a message raised."""

    faults: list[BaseException | None] = []

    def showtraceback(self) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, traitlets.TraitError):
            self.faults.append(error)


def test_messages_that_no_browser_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell()
    monkeypatch.setattr(library, "get_ipython", lambda: shell)
    explorer = explore(simple())
    family = _family(explorer.root)
    targets = [
        (one, field) for one in family for kind, fields in SETS.items() if isinstance(one, kind) for field in fields
    ]
    targets += [(one, "") for one in family if isinstance(one, Share)]
    assert all(any(isinstance(one, kind) for one, _ in targets) for kind in (*SETS, Share))

    @settings(max_examples=max(3, EXAMPLES // 20))
    @given(seed=st.integers(0, 1 << 40))
    def harm(seed: int) -> None:
        explorer.scenario = simple()
        choice = random.Random(seed)
        for _ in range(40):
            one, field = choice.choice(targets)
            value = choice.choice(VALUES)
            data = {"method": "update", "state": {field: value}, "buffer_paths": []}
            one._handle_msg(
                {"content": {"data": data if field else {"method": "custom", "content": value}}, "buffers": []}
            )
            assert not shell.faults, (type(one).__name__, field, value, shell.faults)
        assert explorer.controller.wait(60)
        if not explorer.controller.failure:
            assert simulate(explorer.scenario).identical(explorer.result)

    harm()
    explorer.close()


def simple() -> Scenario:
    policy = {"mode": "interleave", "nodes": "0-3"}
    guest = {"memory": "64 MiB", "vcpus": [{"node": 0}, {"node": 4}], "policies": [policy]}
    return Scenario.from_mapping({"name": "small", "host": "epyc1-naples-2s", "guest": guest})

"""What free memory of the recorded kernels says of a live-update session; calls and places: tests/truth/test_recordings.py."""

from __future__ import annotations

import gzip
import json

import numpy as np

from workbench.data import datasets_path
from workbench.recorder import handover_scripts
from workbench.simulation import simulate
from workbench.truth import recording

BACKGROUND = 600
"""Pages that the machine itself takes or gives back between two looks at a node's free memory; the files have thousands."""


def test_a_session_holds_its_files_until_it_is_finished_or_closed():
    """The free pages of each look, against the first one of the same kernel, in the recording and in its replay."""
    path = datasets_path("recordings", "handover") / "k2eq-held.json.gz"
    whole = recording.read(path)
    (script,) = whole.scenarios
    scenario, numbers = recording.to_scenario(whole, script)
    free = simulate(scenario.replace(metadata="off"))["free_pages"].sum("zone").values
    seen, simulated, last = [], [], 0
    for entry, number in zip(script.operations, numbers, strict=True):
        last = last if number is None else number
        if entry.words[0] == "meminfo":
            seen.append(sum(entry.seen["free"].values()))
            simulated.append(int(free[last]))
    assert np.abs(np.diff(seen[1:]) - np.diff(simulated[1:])).max() < BACKGROUND
    assert np.diff(simulated[1:]).tolist() == [0, 50_000, -30_000, 30_000]


def test_recorded_scripts_are_those_of_the_generator():
    for name, host, script in handover_scripts.boots():
        data = json.loads(gzip.decompress((datasets_path("recordings", "handover") / f"{name}.json.gz").read_bytes()))
        assert data["scenario_text"] == script and data["topology"]["name"] == host.name

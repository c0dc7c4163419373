"""Pages that a task's own rotation places: the kernel moves it on for its own allocations too, which are known but for slabs."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from workbench.data import datasets_path
from workbench.truth.recording import load, read
from workbench.truth.verify import _edits, verify_scenario


def plain_edits(first, second):
    """Entries to take out and put in, by the textbook's table."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, 1):
        below = [number]
        for at, other in enumerate(second):
            below.append(row[at] if one == other else 1 + min(row[at + 1], below[at]))
        row = below
    return row[-1]


def test_edits_are_counted_as_the_textbook_does():
    rng = random.Random(3)
    for _ in range(300):
        first, second = ([rng.randrange(3) for _ in range(rng.randrange(12))] for _ in "ab")
        most = rng.randrange(14)
        found = _edits(np.array(first, np.int64), np.array(second, np.int64), most)
        assert found == min(plain_edits(first, second), most + 1), (first, second, most)


def judged(path, name):
    recording = read(path)
    return verify_scenario(recording, next(one for one in recording.scenarios if one.name == name))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("m3movable", "gridtask_interleave"),
        ("m4memoryless", "gridtask_interleave"),
        ("m14sparse", "gridtask_weighted_interleave"),
    ],
)
def test_pages_of_an_own_rotation_are_judged(file, name, tmp_path):
    """They agree but for a step that a slab took; with as many pages on each node in another order they do not."""
    path = datasets_path("recordings") / f"{file}.json.gz"
    report = judged(path, name)
    assert not report.mismatches and not report.pages_not_judged
    document = load(path)
    (script,) = (one for one in document["scenarios"] if one["name"] == name)
    document["scenarios"], document["scenario_text"] = [script], f"scenario {name}\n"
    place = [entry for entry in script["ops"] if "place" in entry][-1]
    runs = [(part.partition("*")[0], int(part.partition("*")[2] or 1)) for part in place["place"].split(",")]
    nodes = [node for node, count in runs for _ in range(count)]
    there = sorted(node for node in nodes if node != ".")  # as many on each node, in another order
    place["place"] = ",".join(node if node == "." else there.pop() for node in nodes)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document))
    assert any("rotation" in miss.what for miss in judged(changed, name).mismatches)

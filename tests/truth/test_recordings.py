"""Every recording of the real kernel agrees with the simulation, and a recording that was altered does not."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.commands.cli import app
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.truth import verify as verify_module
from workbench.truth.recording import read, unpack_place
from workbench.truth.verify import verify

HISTORY = datasets_path("recordings", "history")
RECORDINGS = [
    *sorted(datasets_path("recordings").glob("*.json.gz")),
    *sorted(HISTORY.glob("*.json.gz")),
    *sorted(datasets_path("recordings", "private").glob("*.json.gz")),
    *sorted(datasets_path("recordings", "handover").glob("*.json.gz")),
    *sorted(datasets_path("recordings", "metadata").glob("*.json.gz")),
    *sorted(datasets_path("recordings", "pins").glob("*.json.gz")),
]
"""Each is judged by the rules of the kernel that its own version line names."""


def test_recordings_are_there():
    assert len(RECORDINGS) >= 12


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_recording_agrees(path):
    (report,) = verify([path])
    misses = [
        f"{m.scenario}: {m.text}: {m.what}: {m.expected} != {m.simulated}"
        for s in report.scenarios
        for m in s.mismatches
    ]
    assert not misses, "\n".join(misses[:10])
    totals = report.totals()
    assert totals["judged"] + sum(sum(s.not_judged.values()) for s in report.scenarios) == totals["operations"]
    for scenario in report.scenarios:
        assert scenario.deviation <= scenario.slack
        assert scenario.slack == 0 or scenario.name.startswith(("full_", "wm_")), "only filling nodes have a tolerance"


@pytest.fixture
def recording(tmp_path):
    """A small recording as plain data, and a function that writes it back and verifies it."""
    data = json.loads(gzip.decompress((datasets_path("recordings") / "facts-F_semantics.json.gz").read_bytes()))
    data["scenarios"] = [s for s in data["scenarios"] if s["name"].startswith(("F01", "F08", "F17", "F22", "F24"))]

    def check(changed):
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(changed))
        return verify([path])[0]

    return data, check


def test_unaltered_part_agrees(recording):
    data, check = recording
    assert check(data).agrees


@pytest.mark.parametrize(
    ("line", "profile", "note"),
    [
        ("Linux version 7.3.4-amd64 (debian-kernel@lists.debian.org)", "7.3", ""),
        ("Linux version 7.5.1 (x)", "7.4", "recorded on Linux 7.5.1, which has no profile: judged by 7.4, the nearest"),
        ("", "", ""),
    ],
)
def test_whose_rules_a_recording_is_held_against(recording, line, profile, note):
    data, check = recording
    report = check(data | {"kernel": line, "scenarios": data["scenarios"][:1]})
    assert (report.profile, report.note) == (profile, note)
    assert report.as_mapping()["note"] == note


def test_a_version_in_between_says_so_on_the_command_line(recording, tmp_path):
    data, _ = recording
    path = write(tmp_path, data | {"kernel": "Linux version 7.9.0", "scenarios": data["scenarios"][:1]})
    reply = CliRunner().invoke(app, ["verify", str(path)])
    assert "r.json: recorded on Linux 7.9.0, which has no profile: judged by 7.4, the nearest" in reply.stdout


def test_a_kernel_that_keeps_other_struct_pages_is_found(tmp_path):
    """The recording of struct pages is judged too: one vmemmap page more in one state is one mismatch."""
    data = json.loads(gzip.decompress((datasets_path("recordings") / "hvo.json.gz").read_bytes()))
    case = next(name for name in data["cases"] if len(data["cases"][name]["snaps"]) > 1)
    data["cases"][case]["snaps"][1]["vmstat"]["nr_memmap_pages"] += 1
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(data))
    (report,) = verify([path])
    assert [miss.scenario for scenario in report.scenarios for miss in scenario.mismatches] == [case]
    del data["cases"][case]["snaps"][1]["vmstat"]
    path.write_text(json.dumps(data))
    with pytest.raises(WorkbenchError, match=r"changed\.json: not a whole recording of struct pages"):
        verify([path])


def operations(data, verb):
    return [op for s in data["scenarios"] for op in s["ops"] if verb in op["op"].split()[:2]]


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        ("place", lambda op: op.update(place="1*" + op["place"][2:])),
        ("touch", lambda op: op.update(ret=op["ret"] - 1)),
        ("mbind", lambda op: op.update(ret=-1, errno=22)),
        ("getpol", lambda op: op.update(mode=op["mode"] + 1)),
        ("getpol", lambda op: op.update(nodes="0,1,2,3" if op["nodes"] != "0,1,2,3" else "0")),
        ("movepages", lambda op: op.update(st0=7)),
        ("migrate", lambda op: op.update(ret=op["ret"] + 1)),
        ("weights", lambda op: op.update(text=op["text"].replace("-> 0:3", "-> 0:4"))),
    ],
)
def test_altered_value_is_found(recording, verb, change):
    data, check = recording
    changed = copy.deepcopy(data)
    change(operations(changed, verb)[0])
    report = check(changed)
    assert not report.agrees
    miss = next(m for s in report.scenarios for m in s.mismatches)
    assert miss.text and miss.expected != miss.simulated


def write(tmp_path: Path, data: object, name: str = "r.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


def test_truncated_recordings_are_refused(recording, tmp_path):
    data, _ = recording
    whole = (datasets_path("recordings") / "t2eq.json.gz").read_bytes()
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    half = tmp_path / "half.json"
    half.write_text(json.dumps(data)[:5000])
    fewer = json.loads(gzip.decompress(whole))
    fewer["scenarios"].pop()
    resultless = copy.deepcopy(data)
    resultless["scenarios"][0]["ops"][-1] = {"op": resultless["scenarios"][0]["ops"][-1]["op"]}
    for path in (cut, half, write(tmp_path, fewer, "fewer.json"), write(tmp_path, resultless, "resultless.json"),
                 write(tmp_path, {**data, "done": False}, "undone.json")):  # fmt: skip
        with pytest.raises(WorkbenchError, match="truncated") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_other_formats_and_contradictions_are_refused(recording, tmp_path):
    data, _ = recording
    contradiction = copy.deepcopy(data)
    operations(contradiction, "touch")[0].update(ret=5, errno=14)
    runs = copy.deepcopy(data)
    operations(runs, "place")[0].update(place="0*3")
    foreign = copy.deepcopy(data)
    place = operations(foreign, "place")[0]
    place["place"] = "9" + place["place"][1:]
    crooked = copy.deepcopy(data)
    crooked["files"]["/sys/devices/system/node/node0/distance"] = ["10 20"]
    for name, bad, what in (
        ("version", {**data, "format_version": 99}, "version 99"),
        ("list", [1, 2], "not a recording"),
        ("empty", {}, "not a placement recording"),
        ("contradiction", contradiction, "contradicts itself"),
        ("runs", runs, "do not add up"),
        ("foreign", foreign, "node 9"),
        ("crooked", crooked, "not square"),
    ):
        with pytest.raises(WorkbenchError, match=what) as caught:
            verify([write(tmp_path, bad, f"{name}.json")])
        assert "\n" not in str(caught.value)
    with pytest.raises(WorkbenchError, match="No such file"):
        read(tmp_path / "absent.json")
    with pytest.raises(WorkbenchError, match="not a placement recording"):
        read(datasets_path("recordings") / "hvo.json.gz")


def test_unpack_place():
    assert unpack_place("0*2,.*3,1") == [(0, 2), (None, 3), (1, 1)]
    with pytest.raises(WorkbenchError, match="not a run"):
        unpack_place("0*x")


def test_a_report_can_be_written_as_json() -> None:
    (report,) = verify(["facts-X_corner"])
    (written,) = json.loads(json.dumps([report.as_mapping()]))
    assert [one["not_judged"] for one in written["scenarios"]] == [dict(one.not_judged) for one in report.scenarios]
    assert any(one["not_judged"] for one in written["scenarios"])


@pytest.mark.parametrize(
    ("simulated", "agrees", "deviation"),
    [
        ([90, 110], True, 10),  # pages on nodes 0 and 1 where the kernel has 100 and 100
        ([89, 111], False, 11),
        ([111, 89], False, 11),
        ([0, 200], False, 100),
    ],
)
def test_where_a_node_fills_pages_may_differ_by_the_slack_and_no_more(
    simulated: list[int], agrees: bool, deviation: int
) -> None:
    comparison = object.__new__(verify_module._Comparison)
    comparison.report = verify_module.ScenarioReport("fills", slack=10)
    expected = np.repeat([0, 1], [100, 100])
    assert comparison._within_slack(expected, np.repeat([0, 1], simulated)) == agrees
    assert comparison.report.deviation == deviation
    assert not comparison._within_slack(expected, np.repeat([1, 0], [100, 100]))  # in the other order

"""In-place conversion on a running kernel: every recording agrees in the whole state, and one that was altered does not."""

from __future__ import annotations

import copy
import gzip
import json

import pytest
from typer.testing import CliRunner

from reference.misses import misses
from workbench.commands.cli import app
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.tracking.generations import GENERATIONS, RECORDED
from workbench.truth.conversion_recording import size
from workbench.truth.verify import verify

FOLDER = datasets_path("recordings", "conversion")
RECORDINGS = sorted(FOLDER.glob("*.json.gz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_recording_agrees(path):
    (report,) = verify([path])
    assert not misses(report), "\n".join(misses(report)[:10])
    assert all(s.judged == s.operations and not s.not_judged for s in report.scenarios)


def test_all_of_them_are_there():
    documents = [json.loads(gzip.decompress(path.read_bytes())) for path in RECORDINGS]
    scenarios = [scenario for document in documents for scenario in document["scenarios"]]
    assert (len(scenarios), sum(len(scenario["ops"]) for scenario in scenarios)) == (371, 14411)


@pytest.fixture
def recording(tmp_path):
    """A small recording as plain data, and a function that writes it and verifies it."""
    data = json.loads(gzip.decompress((FOLDER / "2m.json.gz").read_bytes()))
    data["scenarios"] = [s for s in data["scenarios"] if s["name"].startswith(("B08", "B13"))]

    def check(changed):
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(changed))
        return verify([path])[0]

    return data, check


def operation(data, text):
    return next(op for s in data["scenarios"] for op in s["ops"] if op["op"] == text)


def test_unaltered_it_agrees(recording):
    data, check = recording
    assert check(data).agrees


ALTERED = {
    "errno": lambda data: operation(data, "conv a 0 64K private").update(errno=12),
    "error_offset": lambda data: operation(data, "conv a 0 64K private").update(error_offset=24576),
    "done": lambda data: operation(data, "vtouch a 0 512").update(done=511),
    "signal": lambda data: operation(data, "touch a 0 16").update(signal=7),
    "state": lambda data: operation(data, "conv a 0 64K shared")["after"]["files"]["a"]["state"][0].__setitem__(
        2, "private"
    ),
    "order": lambda data: operation(data, "falloc a 0 4M")["after"]["files"]["a"]["folios"][0].update(order=8),
    "node": lambda data: operation(data, "falloc a 0 4M")["after"]["files"]["a"]["folios"][0].update(flags=1),
    "up to date": lambda data: operation(data, "falloc a 0 4M")["after"]["files"]["a"]["folios"][0].update(flags=131),
    "references": lambda data: operation(data, "unpin p")["after"]["files"]["a"]["folios"][0].update(references=2),
    "pools": lambda data: operation(data, "map a")["after"]["pools"]["2048"].update(resv=1),
    "free": lambda data: operation(data, "falloc a 0 4M")["after"]["pools"]["2048"].update(free=[31]),
    "vmemmap": lambda data: operation(data, "conv a 0 64K shared")["after"].update(vmemmap_pages=20263),
    "xarray": lambda data: operation(data, "falloc a 0 4M")["after"]["files"]["a"].update(xarray_nodes=2),
    "leaves": lambda data: operation(data, "conv a 20K 4K private")["after"].update(kvm_pages=[1, 2, 0]),
}


@pytest.mark.parametrize("what", ALTERED)
def test_every_altered_fact_is_found(recording, what):
    data, check = recording
    changed = copy.deepcopy(data)
    ALTERED[what](changed)
    assert changed != data
    report = check(changed)
    assert not report.agrees
    miss = next(m for s in report.scenarios for m in s.mismatches)
    assert miss.text and miss.expected != miss.simulated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="guest_memfd conversion recording 2"), "format: Input should be"),
        (lambda data: data.update(generation="D"), "generation: Input should be 'B' or 'C'"),
        (lambda data: data["scenarios"][0]["ops"][0].pop("after"), "after: Field required"),
        (
            lambda data: data["scenarios"][0]["start"]["pools"]["2048"].update(free=[1, 2]),
            "pools.2048 is not a list of 1",
        ),
        (
            lambda data: operation(data, "map a")["after"]["files"]["a"].update(
                state=[[0, 5, "shared"], [5, 9, "private"]]
            ),
            "the range .5, 9. does not follow page 5",
        ),
        (lambda data: data["scenarios"].clear(), "scenarios: List should have at least 1 item"),
        (
            lambda data: data["topology"]["nodes"][0].update(memory_mib="much"),
            "memory_mib: Input should be a valid integer",
        ),
    ],
)
def test_recordings_that_are_not_whole_are_one_line(recording, change, message):
    data, check = recording
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(WorkbenchError, match=message) as caught:
        check(changed)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("changed.json: ")


def test_a_script_that_makes_no_sense_is_a_mismatch(recording):
    data, check = recording
    changed = copy.deepcopy(data)
    changed["scenarios"][0]["ops"][1]["op"] = "conv nobody 0 4K shared"
    report = check(changed)
    assert [m.what for s in report.scenarios for m in s.mismatches] == ["replay"]


def test_on_the_command_line(recording, tmp_path):
    result = CliRunner().invoke(app, ["verify", "poison-1"])
    assert result.exit_code == 0 and "generation C" in result.stdout


@pytest.mark.parametrize(
    ("word", "value"),
    [("64K", 1 << 16), ("1M+4K", (1 << 20) + 4096), ("1G-8K", (1 << 30) - 8192), ("0xfffffffffffff000", 2**64 - 4096)],
)
def test_sizes(word, value):
    assert size(word) == value


@pytest.mark.parametrize("word", ["", "4Q", "K", "1M4K", "-"])
def test_sizes_that_are_none(word):
    with pytest.raises(ValueError, match="not a size"):
        size(word)


def test_every_rule_says_how_it_is_known():
    for generation in GENERATIONS.values():
        assert {"kernel", "file_policy", "fallocate_rounds_down", "xarray"} <= generation.evidence.keys()
        assert sum(kind == RECORDED for kind, _ in generation.evidence.values()) >= 4

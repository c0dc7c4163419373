"""What the probe prints becomes a recording; what it could not finish printing is told apart from damage."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.recorder import probe_output
from workbench.recorder.emulated_hosts import all_hosts
from workbench.truth.recording import read

OUTPUT = "\n".join(
    json.dumps(line)
    for line in [
        {"boot_us": 3000000},
        {"module": "/modules/kvm.ko", "ret": 0, "errno": 0},
        {"kvm": {"us": "4000000", "present": "1"}},
        {"file": "/proc/version", "lines": ["Linux version 7.3.4"]},
        {"file": "/sys/devices/system/node/node0/distance", "lines": ["10 20 20"]},
        {"file": "/sys/devices/system/node/node1/distance", "lines": ["20 10 20"]},
        {"file": "/sys/devices/system/node/node2/distance", "lines": ["20 20 10"]},
        {"file": "/sys/devices/system/node/node0/cpulist", "lines": ["0-1"]},
        {"file": "/sys/devices/system/node/node1/cpulist", "lines": ["2"]},
        {"file": "/sys/devices/system/node/node2/cpulist", "lines": []},
        {"file": "/sys/kernel/mm/mempolicy/weighted_interleave/node0", "lines": ["13"]},
        {"file": "/proc/zoneinfo", "lines": [
            "Node 0, zone   Normal", "  pages free     100", "    cpu: 0", "        min      10",
        ]},
        {"file": "dmesg", "lines": ["Fallback order for Node 0: 0 1 2 ", "ACPI: x", "Fallback order for Node 0: 0 2 1 "]},
        {"scenario": "first tasks=2"},
        {"op": "create g0 4 MMAP|SHARED", "ret": 7, "errno": 0, "us": 12, "mmap": 0},
        {"op": "t1 touch g0 0 4 seq", "ret": 4, "errno": 0, "us": 3, "bad": 0, "first": -1},
        {"op": "place g0", "place": "0*2,1*2", "range": "0+4"},
        {"end": 500},
        {"scenario": "second"},
        {"op": "zones", "zones": {"0/Normal": {"free": 5, "min": 1, "low": 2, "high": 3, "managed": 9}}},
        {"op": "touch g0 0 1", "dead": "DEAD signal 9", "ret": -1, "errno": "dead"},
        {"end": 10},
        {"done_us": 6000000},
    ]
) + "\n"  # fmt: skip


def test_whole_output():
    parsed = probe_output.parse(OUTPUT)
    assert parsed["done"] and parsed["done_us"] == 6000000 and parsed["boot_us"] == 3000000
    assert [s["name"] for s in parsed["scenarios"]] == ["first", "second"]
    assert parsed["scenarios"][0]["header"] == "first tasks=2" and parsed["scenarios"][0]["us"] == 500
    assert parsed["scenarios"][0]["ops"][2] == {"op": "place g0", "place": "0*2,1*2", "range": "0+4"}
    assert parsed["scenarios"][1]["ops"][1]["dead"] == "DEAD signal 9"
    assert parsed["mods"] == ["/modules/kvm.ko 0 0"]
    assert "truncated" not in parsed


def test_what_linux_derived():
    derived = probe_output.derive(probe_output.parse(OUTPUT)["files"], all_hosts()["m3movable"])
    assert derived["fallback_order"] == {"0": [0, 2, 1]}, "lists that were built again count"
    assert derived["zonelists"] == "hotplug"
    assert derived["distance"] == {"0": [10, 20, 20], "1": [20, 10, 20], "2": [20, 20, 10]}
    assert derived["cpulist"] == {"0": "0-1", "1": "2", "2": ""}
    assert derived["wi_weights"] == {"0": 13}
    assert derived["pxm_to_node"] == {"0": 0, "1": 1, "2": 2}
    assert derived["dmesg_numa"] == ["Fallback order for Node 0: 0 1 2 ", "Fallback order for Node 0: 0 2 1 "]


def test_recording_is_read_by_verify(tmp_path):
    script = "scenario first tasks=2\nscenario second\n"
    value = probe_output.recording(probe_output.parse(OUTPUT), all_hosts()["m3movable"], script, 1.5)
    assert value["files"]["/proc/zoneinfo"] == ["Node 0, zone   Normal", "  pages free     100", "        min      10"]
    assert value["kernel"] == "Linux version 7.3.4" and value["wall_s"] == 1.5
    assert "dmesg" not in value["files"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(value))
    recording = read(path)
    assert recording.topology == "m3movable" and len(recording.scenarios) == 2
    assert recording.scenarios[0].tasks == 2 and recording.scenarios[0].operations[1].task == 1


@given(st.integers(1, len(OUTPUT) - 2))
def test_output_cut_anywhere(length):
    parsed = probe_output.parse(OUTPUT[:length])
    assert not parsed["done"] or length >= OUTPUT.rindex("{")
    whole = probe_output.parse(OUTPUT)
    for cut, full in zip(parsed["scenarios"], whole["scenarios"], strict=False):
        assert full["ops"][: len(cut["ops"])] == cut["ops"], "an operation is either whole or not there"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("garbage\n", "line 1: 'garbage'"),
        ('{"op": "touch"}\n', "outside of a scenario"),
        ('{"boot_us": 1}\n[]\n', "line 2"),
        ('{"other": 1}\n', "'other' is not known"),
        ('{"scenario": "a"}\n{"end": 1}\n{"op": "late"}\n', "line 3: operation 'late' outside"),
    ],
)
def test_damaged_output(text, message):
    with pytest.raises(WorkbenchError, match=message):
        probe_output.parse(text)

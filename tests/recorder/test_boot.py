"""The whole way on a real kernel; needs QEMU, gcc and the kernel, whose place WORKBENCH_KERNEL names."""

from __future__ import annotations

import os
import shutil

import pytest

from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.kernel_package import PACKAGES
from workbench.recorder.record import record
from workbench.scenario import Scenario
from workbench.truth.verify import verify

KERNEL = os.environ.get("WORKBENCH_KERNEL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not KERNEL, reason=f"WORKBENCH_KERNEL does not name {PACKAGES}"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed (qemu-system-x86)"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (gcc, libc6-dev)"),
]

SCRIPT = """\
# BIND to memory that is all movable is ignored by guest_memfd and obeyed by tmpfs
scenario movable tasks=2
create g0 32 MMAP|SHARED
memfd g1 32
mbind g0 0 16 BIND 2
mbind g1 0 16 BIND 2
mbind g0 16 16 INTERLEAVE 0-1
t1 touch g0 0 16 rev
touch g1 0 16 seq
touch g0 16 8 rand 5
t1 touch g0 24 8 stride 3
place g0
place g1
scenario refused
create g0 4 0
mmap g0
falloc g0 0 4
place g0
sleep 1
"""


def test_script_on_a_movable_node(tmp_path):
    out = tmp_path / "r.json.gz"
    value = record(SCRIPT, all_hosts()["m3movable"], KERNEL.split(":"), out, timeout=300)
    assert value["done"] and value["derived"]["zonelists"] == "hotplug"
    first, second = value["scenarios"]
    places = [entry["place"] for entry in first["ops"] if "place" in entry]
    assert places[0].startswith("0*16,") and places[1] == "2*16,.*16"
    assert second["ops"][1] == {**second["ops"][1], "ret": -1, "errno": 19}
    assert second["ops"][3]["place_error"] == "place UNMAPPABLE present=4 errno=19"
    assert second["ops"][4]["text"] == "sleep"
    report = verify([out])[0]
    assert not report.scenarios[0].mismatches and report.scenarios[0].pages == 64


def test_scenario_of_ours_agrees_with_the_kernel(tmp_path):
    scenario = Scenario.from_yaml("""\
name: turns
host:
  name: two
  nodes:
  - {id: 0, memory_bytes: 64 GiB, cpus: [0, 1], kind: dram}
  - {id: 1, memory_bytes: 32 GiB, cpus: [2, 3], kind: dram}
  distances: [[10, 21], [21, 10]]
guest:
  memory: 2 MiB
  vcpus: [{node: 0}, {node: 1}]
  policies: [{mode: weighted_interleave, nodes: 0-1}]
operations:
- {op: set_weights, weights: {0: 3, 1: 2}}
- {op: first_touch, turn: 7, shared: true}
""")
    out = tmp_path / "r.json"
    record(scenario, None, KERNEL.split(":"), out, timeout=300)
    (report,) = verify([out])
    assert report.agrees and report.totals()["pages"] == 512

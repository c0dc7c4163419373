"""One scenario under one kernel after another: the answers that the recordings of each version gave."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import workbench as wb
from workbench import profiles
from workbench.ready import scenario as ready_scenario
from workbench.studies import history as study

HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 4 << 30, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}
SCENARIO = {
    "host": HOST,
    "guest": {"memory": "256 KiB", "vcpus": [{"node": 0}]},
    "operations": [
        {"op": "create", "flags": ["mmap", "init_shared"]},
        {"op": "mbind", "mode": "interleave", "nodes": "0-1"},
        {"op": "fault", "by": "host"},
    ],
}


def test_the_table_that_people_ask_for() -> None:
    """6.12 and 6.16 refuse the mapping, 6.18 takes a policy that does nothing, from 6.19 on it places."""
    dataset = study.history(wb.Scenario.from_mapping(SCENARIO))
    assert dataset["kernel"].values.tolist() == [
        "6.12",
        "6.16",
        "6.17",
        "6.18",
        "6.19",
        "7.0",
        "7.1",
        "7.2",
        "7.3",
        "7.4",
    ]
    create, mbind, fault = study.table(dataset)
    assert [create[name] for name in ("6.12", "6.17", "6.18")] == ["EINVAL", "EINVAL", "ok"]
    assert create["changes"] == ["6.18"]
    assert [mbind[name] for name in ("6.12", "6.18", "7.2")] == ["EFAULT", "ok", "ok"]
    assert [fault[name] for name in ("6.18", "6.19", "7.2", "7.3")] == ["ok: 64 on 0"] + ["ok: 32 each on 0-1"] * 3
    refused = "event 0 (create): EINVAL: mapping and init_shared: not on 6.12; from 6.18 on"
    assert study.first_refusal(dataset)["6.12"] == refused
    assert "6.18" not in study.first_refusal(dataset)


def test_what_a_call_asked_for_is_its_answer() -> None:
    """Each kernel's number of a capability, and the policy that it reads back: on 6.18 the VMA's, which places nothing."""
    asked = {"op": "get_mempolicy", "offset": 0, "file": "guest"}
    operations = [
        {"op": "check_extension", "capability": "guest_memfd_flags"},
        *SCENARIO["operations"][:1],
        {"op": "mbind", "mode": "interleave", "mode_flags": ["static"], "nodes": "0-1"},
        asked,
        {"op": "set_mempolicy", "mode": "bind", "nodes": "1"},
        {"op": "get_mempolicy"},
        asked | {"node": True},
    ]
    scenario = wb.Scenario.from_mapping(SCENARIO | {"operations": operations})
    kernels = ["6.17", "6.18", "7.3"]
    rows = study.table(study.history(scenario, kernels))
    assert rows[0]["call"] == "check_extension guest_memfd_flags" and rows[3]["call"] == "get_mempolicy guest"
    assert [rows[0][name] for name in kernels] == ["ok: 0", "ok: 3", "ok: 3"] and rows[0]["changes"] == ["6.18"]
    assert [rows[3][name] for name in kernels] == ["EFAULT", *["ok: interleave 0-1 (static)"] * 2]
    assert rows[5]["7.3"] == "ok: bind 1"
    assert [rows[6][name] for name in kernels] == ["EFAULT", "ok: node 1", "ok: node 0"]


@pytest.mark.parametrize(
    ("text", "name", "exact"),
    [
        ("Linux version 6.12.118+deb13-amd64 (debian-kernel@...) ", "6.12", True),
        ("7.3.4", "7.3", True),
        ("6.14.2", "6.12", False),
        ("6.1.0", "6.12", False),
        ("8.0.1", "7.4", False),
    ],
)
def test_a_version_in_between_takes_the_nearest_and_says_so(text: str, name: str, exact: bool) -> None:
    profile, same = profiles.of_version(text)
    assert (profile.name, same) == (name, exact)


def test_the_command_prints_it(tmp_path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(wb.Scenario.from_mapping(SCENARIO).to_yaml())
    command = [sys.executable, "-m", "workbench.commands.cli", "history", str(path), "--kernels", "6.12,6.18,7.2"]
    reply = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [row["changes"] for row in json.loads(reply.stdout)["rows"]] == [["6.18"], ["6.18"], ["6.18", "7.2"]]
    wrong = subprocess.run([*command[:-1], "5.15"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "6.12" in wrong.stderr


def test_a_policy_of_a_backend_that_a_kernel_has_not_says_why() -> None:
    """7.4 converts in place: there is no second file to bind."""
    scenario = ready_scenario("conversion-drifts")
    said = study.first_refusal(wb.simulate(scenario, kernel_profiles=["7.3", "7.4"]))
    assert list(said) == ["7.4"]
    assert "guest.shared is not mapped: converted in place" in said["7.4"]

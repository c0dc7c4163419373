"""The kernel's own selftest for NUMA on guest_memfd holds in the simulation and on the recorded kernel.

The assertions are those of test_mbind and test_numa_allocation in tools/testing/selftests/kvm/guest_memfd_test.c.
"""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

from workbench import policy as mempolicy
from workbench.data import datasets_path
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.truth.recording import read, to_scenario


def ready(name):
    return simulate(Scenario.from_yaml(datasets_path("scenarios") / f"kernel-selftest-{name}.yaml"))


def recorded(name):
    recording = read(datasets_path("recordings") / "selftest.json.gz")
    return next(s for s in recording.scenarios if s.name == f"kernel-selftest-{name}")


def observed(dataset):
    """Nodes of the file's pages at each observation."""
    out = []
    for event in np.unique(dataset["observed_run_event"].values):
        mine = dataset["observed_run_event"].values == event
        nodes, lengths = dataset["observed_run_node"].values[mine], dataset["observed_run_length"].values[mine]
        out.append(np.repeat(nodes, lengths).tolist())
    return out


def test_numa_allocation():
    dataset = ready("numa-allocation")
    assert not dataset["event_errno"].values.any(), "every call succeeds"
    assert observed(dataset) == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_numa_allocation_on_the_real_kernel():
    operations = recorded("numa-allocation").operations
    assert not any(operation.seen.get("errno") for operation in operations)
    places = [operation.seen["place"] for operation in operations if operation.words[0] == "place"]
    assert places[:2] == ["1*2,0*2", "0*2,1*2"]


EXPECTED = [("interleave", {0}), ("bind", {0}), ("default", set())]


@pytest.mark.parametrize("name", ["mbind", "mbind-private"])
def test_mbind(name):
    dataset = ready(name)
    operations = dataset["event_op"].values.tolist()
    errors = dataset["event_errno"].values.tolist()
    assert [e for op, e in zip(operations, errors, strict=True) if op == "mbind"] == [0, 0, 0, errno.EINVAL]
    details = [json.loads(text) for text in dataset["event_detail"].values]
    answers = [d for op, d in zip(operations, details, strict=True) if op == "get_mempolicy"]
    assert len(answers) == 3
    for answer, (mode, nodes) in zip(answers, EXPECTED, strict=True):
        assert mempolicy.MODES[answer["mode"]] == mode, answer
        assert set(mempolicy.nodes_of(mempolicy.parse_nodes(answer["nodes"]))) == nodes, answer


@pytest.mark.parametrize("name", ["mbind", "mbind-private"])
def test_mbind_on_the_real_kernel(name):
    operations = recorded(name).operations
    assert [op.seen["errno"] for op in operations if op.words[0] == "mbind"] == [0, 0, 0, errno.EINVAL]
    answers = [op.seen for op in operations if op.words[0] == "getpol"]
    assert [(answer["mode"], answer["nodes"]) for answer in answers] == [(3, 0), (2, 0), (0, "-")]


def test_recorded_script_is_the_ready_scenario():
    """What was recorded is what the YAML says: the same calls in the same order."""
    recording = read(datasets_path("recordings") / "selftest.json.gz")
    for script in recording.scenarios:
        path = datasets_path("scenarios") / f"{script.name}.yaml"
        wanted = [operation.op for operation in Scenario.from_yaml(path).operations]
        back, _ = to_scenario(recording, script)
        assert [operation.op for operation in back.operations[1:-1]] == wanted

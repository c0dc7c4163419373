"""Errno names are the kernel's, the same wherever they are shown."""

from __future__ import annotations

import errno

import pytest

from workbench import errnos
from workbench.kernels.folios import state
from workbench.scenario import Scenario
from workbench.simulation import simulate


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, ""), (11, "EAGAIN"), (12, "ENOMEM"), (35, "EDEADLK"), (95, "EOPNOTSUPP"), (133, "EHWPOISON"), (4095, "4095")],
)
def test_names(number: int, name: str) -> None:
    assert errnos.errno_name(number) == name


def test_the_kernels_have_the_same_number() -> None:
    assert errnos.EHWPOISON == state.EHWPOISON


def test_a_result_names_them_so() -> None:
    """A policy on a file whose policy was fixed at create, and a guest's access to a poisoned page."""
    host = {"name": "one", "nodes": [{"id": 0, "memory_bytes": "1 GiB", "cpus": [0]}], "distances": [[10]]}
    scenario = {
        "host": host,
        "guest": {"memory": "1 MiB", "policy_interface": "create"},
        "operations": [
            {"op": "create"},
            {"op": "policy", "mode": "bind", "nodes": "0"},
            {"op": "fault", "by": "host"},
            {"op": "hwpoison", "length": 4096},
            {"op": "fault", "by": "guest", "length": 4096},
        ],
    }
    dataset = simulate(Scenario.from_mapping(scenario))
    assert dataset["event_error"].values.tolist() == ["", "EOPNOTSUPP", "", "", "EHWPOISON"]
    assert dataset["event_errno"].values.tolist() == [0, errno.EOPNOTSUPP, 0, 0, errnos.EHWPOISON]

"""What someone who mistyped is told: one line with the field as they wrote it, what is allowed, and what they may have meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import workbench as wb
from workbench.design import DESIGNS
from workbench.names import near, unknown

GUEST = {"memory": "1 MiB"}
CASES = [
    ({"gest": {}}, "gest: there is no such field; did you mean 'guest'? allowed are name, .*guest, .*operations"),
    ({"guest": {"pagesize": 4096}}, "guest.pagesize: there is no such field; did you mean 'page_size'? allowed are memory"),
    ({"guest": {"page_size": "2 MB"}}, "guest.page_size: .*'4 KiB', '2 MiB' or '1 GiB'; did you mean '2 MiB'.*given: '2 MB'"),
    ({"guest": {"policies": [{"mode": "interleaved"}]}}, "guest.policies.0.mode: .*'bind'.* or an integer; did you mean 'inter"),
    ({"guest": {"policies": [{"mode": 1.5}]}}, "guest.policies.0.mode: .*'weighted_interleave' or an integer .*1.5"),
    ({"guest": {"policies": [{"mode": 1 << 70}]}}, "guest.policies.0.mode: .* or an integer of 64 bits"),
    ({"guest": {"policies": [{"mode_flags": ["statc"]}]}}, "guest.policies.0.mode_flags.0: .*did you mean 'static'"),
    ({"guest": {"confidential": "snpp"}}, "guest.vm_type: .*did you mean 'snp'"),
    ({"operations": [{"op": "faul"}]}, "operations.0.op: 'faul' is unknown; did you mean 'fault'? there are create, .*kexec"),
    ({"operations": [{"offset": 0}]}, "operations.0.op: Field required; there are create, .*kexec"),
    ({"operations": [{"op": "fault", "ordr": "x"}]}, "operations.0.fault.ordr: .*did you mean 'order'? allowed are task"),
    ({"operations": [{"op": "fault", "order": "revers"}]}, "operations.0.fault.order: .*did you mean 'reverse'"),
    ({"operations": [7]}, "operations.0: must be a mapping of fields .given: 7"),
    ({"operations": [{"op": "set_weights", "weights": {"a": 1}}]}, "operations.0.set_weights.weights.a: .* not the text .a."),
    ({"operations": [{"op": "access", "write_fraction": True}]}, "operations.0.access.write_fraction: .* number, not true"),
    ({"operations": [{"op": "access", "demand_mbps": "9"}]}, "operations.0.access.demand_mbps: .* not the text '9'$"),
    ({"operations": [{"op": "fault", "write": 1}]}, "operations.0.fault.write: must be true or false, not 1$"),
    ({"strict": "no"}, "strict: must be true or false, not 'no'$"),
    ({"host": "epyc1-naple"}, "host: machine: 'epyc1-naple' .*did you mean 'epyc1-naples-2s'"),
    ({"host": {"name": "a", "nods": []}}, "host.nodes: Field required"),
    ({"kernel_profile": "7.33"}, "kernel_profile: '7.33' is unknown; did you mean '7.3'"),
    ({"guest": {"vmm_profile": "firecraker"}}, "guest.vmm_profile: .*did you mean 'firecracker'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "said"), CASES, ids=[said.split(":")[0] + str(i) for i, (_, said) in enumerate(CASES)]
)
def test_what_is_said_of_a_scenario(part: Mapping[str, Any], said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match="^" + said.replace("?", r"\?")) as caught:
        wb.Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": GUEST} | dict(part))
    line = str(caught.value)
    assert "\n" not in line and "literal[" not in line and "function-" not in line and "constrained" not in line


def test_a_union_counts_as_one_fault() -> None:
    with pytest.raises(wb.WorkbenchError) as caught:
        wb.Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": {"policies": [{"mode": "bnd"}]}})
    assert "more)" not in str(caught.value)


def test_page_sizes_are_written_like_every_other_size() -> None:
    for written in ("2MiB", "2 MiB", "2048KiB", " 2 MiB ", 2 << 20, "2097152"):
        guest = {"memory": "4 MiB", "page_size": written, "design": "hugetlb"}
        value = wb.Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": guest})
        assert value.guest.page_size == "2 MiB"
    for written in ("8 KiB", 0, -1, True, None, [], "two"):
        with pytest.raises(wb.WorkbenchError, match=r"^guest.page_size: "):
            wb.Scenario.from_mapping({"host": "epyc1-naples-2s", "guest": {"page_size": written}})


def test_names_that_are_nearly_right() -> None:
    assert near("hugtlb", DESIGNS) == "did you mean 'hugetlb'? "
    assert near("naples", ["epyc1-naples-2s", "power7-8n"]) == "did you mean 'epyc1-naples-2s'? "  # a part of it
    assert near("weigthed", ["local", "weighted_interleave"]) == "did you mean 'weighted_interleave'? "
    assert near("FAULT", ["fault"]) == "did you mean 'fault'? "
    assert near("quite-different", DESIGNS) == ""
    assert unknown("y" * 500, ["a", "b"]) == f"'{'y' * 60}' is unknown; there are a, b"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wieghted-interleave-cxl", "did you mean 'weighted-interleave-cxl'"),
        ("no/such/file.yaml", "No such file"),
        ("x" * 5000, "no such file"),
        (7, "scenario: int is none"),
    ],
)
def test_what_simulate_takes(given: Any, said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.simulate(given)
    assert wb.simulate("kernel-selftest-mbind").attrs["scenario"] == "kernel-selftest-mbind"

"""Policies that do not reach private memory, or that a kexec loses, are said in the Dataset and first in every output."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

import workbench as wb
from workbench import simulation
from workbench.commands import history
from workbench.commands.cli import app
from workbench.commands.summary import summarise
from workbench.reports import report

BIND = {"op": "mbind", "file": "ram", "mode": "bind", "nodes": "1"}


def scenario(*policies: dict[str, Any], **guest: Any) -> wb.Scenario:
    return wb.Scenario.from_mapping({
        "host": "xeon-e5-2680-2s",
        "guest": {"memory": "64 MiB", "vm_type": "snp", "vmm_profile": "qemu-11", "vcpus": [{"node": 0}], **guest},
        "operations": [
            {"op": "create", "file": "private"}, {"op": "memfd", "file": "ram", "size": "64 MiB"}, *policies,
            {"op": "fault", "file": "private", "by": "guest", "task": "vcpu0", "length": "48 MiB"},
            {"op": "fault", "file": "ram", "by": "guest", "task": "vcpu0", "length": "16 MiB"},
        ],
    })  # fmt: skip


def warnings(*policies: dict[str, Any], **guest: Any) -> list[str]:
    return wb.simulate(scenario(*policies, **guest)).attrs.get("warnings", "").splitlines()


def test_a_policy_of_the_shared_backend() -> None:
    (line,) = warnings(BIND)
    assert line.startswith(
        "policy bind 1 of ram: reaches ram only; private memory (75 % of what is allocated) follows the threads that "
        "touch it: 100 % on node 0; to bind private memory: pin the vCPUs, numactl around the VMM"
    )


@pytest.mark.parametrize("other", [{"op": "alias", "of": "ram"}, {"op": "pass_fd", "of": "private"}])
def test_a_second_name_changes_no_share(other: dict[str, Any]) -> None:
    """A file of several names is one: it is counted, and its policy said, once."""
    assert warnings(other | {"file": "again"}, BIND) == warnings(BIND)


def test_a_policy_of_the_file_that_nobody_can_map() -> None:
    (line,) = warnings({**BIND, "file": "private"})
    assert line.startswith("mbind bind 1 of private: refused, its VMM cannot map it; its memory follows")


def test_policies_of_the_guest_beside_a_create_of_its_own() -> None:
    """They are set only where the workbench makes the guest's file; who makes it alone is told."""
    policies = [{"mode": "bind", "nodes": "1"}]
    (line,) = warnings(policies=policies)
    assert line.startswith("guest.policies: not set, because the operations make the guest's memory themselves")


def handed_over(kernel: str, *before: dict[str, Any], design: str = "filemap") -> wb.Scenario:
    huge = design == "pfn-range"
    return wb.Scenario.from_mapping({
        "host": "xeon-e5-2680-2s", "kernel_profile": kernel,
        "guest": {"memory": "16 MiB", "vm_type": "sw_protected", "design": design, "vcpus": [{"node": 0}]}
        | ({"page_size": "2 MiB"} if huge else {}),
        "operations": [{"op": "create", "file": "ram", "flags": ["mmap"]}, *before, {"op": "kexec"}],
    })  # fmt: skip


def bind(file: str = "ram", **more: Any) -> dict[str, Any]:
    return BIND | {"file": file} | more


def test_policies_that_a_kexec_loses() -> None:
    """One line for each file, with its policies; none where there was none, or where the format hands them over."""
    other = {"op": "memfd", "file": "shm", "size": "1 MiB"}
    both = [bind(), bind(length="4 MiB", mode="interleave", nodes="0-1"), other, bind("shm")]
    lines = (
        wb.simulate(handed_over("7.4", *both, {"op": "preserve", "file": "shm", "token": 1}))
        .attrs["warnings"]
        .splitlines()
    )
    assert [line.split(": its pages")[0] for line in lines] == [
        "kexec: ram is handed over without its policy (interleave 0-1, bind 1)",
        "kexec: shm is handed over without its policy (bind 1)",
    ]
    assert all(
        "set the policy again after the kexec (handed over under kernel_profile proposal-no-s" in line for line in lines
    )
    many = [bind(offset=f"{n} MiB", length="1 MiB", nodes=str(n % 2), mode=("bind", "preferred", "interleave")[n // 2])
            for n in range(6)]  # fmt: skip
    (line,) = wb.simulate(handed_over("7.4", *many)).attrs["warnings"].splitlines()
    assert "(bind 0, bind 1, preferred 0 and 3 more)" in line
    for none in (handed_over("7.4"), handed_over("proposal-no-struct-page", bind(), design="pfn-range")):
        assert "warnings" not in wb.simulate(none).attrs


def test_run_says_what_a_kexec_loses_first(tmp_path: Any) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(handed_over("7.4", bind()).to_yaml())
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.output.startswith(
        "warning: kexec: ram is handed over without its policy (bind 1): its pages stay where they"
    )


def test_nothing_to_warn_of() -> None:
    assert warnings() == []
    assert warnings(BIND, vmm_profile="own") == []
    assert warnings({**BIND, "file": "private"}, vmm_profile="own") == []


def test_the_policies_of_the_guest_itself() -> None:
    """Without operations of its own: the workbench creates the file and asks for the policy, as the VMM would."""
    guest = {"memory": "64 MiB", "vm_type": "snp", "vmm_profile": "qemu-11", "policy_interface": "mbind"}
    guest |= {"vcpus": [{"node": 0}], "policies": [{"mode": "bind", "nodes": "1"}]}
    dataset = wb.simulate(wb.Scenario.from_mapping({"host": "xeon-e5-2680-2s", "guest": guest}))
    (line,) = dataset.attrs["warnings"].splitlines()
    assert "refused, its VMM cannot map it; its memory follows" in line and "100 % on node 0" in line


def test_several_kernels_say_what_is_so_under_each() -> None:
    dataset = wb.simulate(scenario(BIND), kernel_profiles=["7.3", "7.4"])
    assert dataset.attrs["kernel_profile"] == "7.3, 7.4"
    assert len(dataset.attrs["warnings"].splitlines()) == 1  # the same under both, said once
    first = {"kernel_profile": "7.4", "scenario": "s", "warnings": "both"}
    second = {"kernel_profile": "7.3", "scenario": "s", "warnings": "both\nonly here", "assumed": "a"}
    assert simulation._attributes([first, second], "kernel", ["7.4", "7.3"]) == {
        "kernel_profile": "7.4, 7.3", "scenario": "s", "warnings": "both\nkernel 7.3: only here", "assumed": "kernel 7.3: a",
    }  # fmt: skip
    made = dataset.assign_attrs(warnings="both\nkernel 7.3: only here")
    assert summarise(made.sel(kernel="7.3"))["warnings"] == ["both", "only here"]
    assert summarise(made.sel(kernel="7.4"))["warnings"] == ["both"]


def test_run_says_it_first(tmp_path: Any) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario(BIND).to_yaml())
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.output.startswith("warning: policy bind 1 of ram: reaches ram only")


def test_history_says_it_first(tmp_path: Any) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario(BIND).to_yaml())
    history.register(app := typer.Typer())
    result = CliRunner().invoke(app, [str(path), "--kernels", "7.2,7.3"])
    assert result.output.startswith("warning: policy bind 1 of ram: reaches ram only")


def test_run_says_what_is_assumed_of_the_host(tmp_path: Any) -> None:
    host = {
        "name": "h", "distances": [[10, 20], [20, 10]],
        "nodes": [{"id": 0, "memory_bytes": "1 GiB", "cpus": "0"},
                  {"id": 1, "memory_bytes": "1 GiB", "assumed": ["kind", "movable"]}],
    }  # fmt: skip
    path = tmp_path / "scenario.yaml"
    path.write_text(wb.Scenario.from_mapping({"host": host, "guest": {"memory": "1 MiB"}}).to_yaml())
    assert (
        "assumed: kind and movable of node 1: memory without CPUs" in CliRunner().invoke(app, ["run", str(path)]).output
    )


def test_a_report_says_it_once() -> None:
    result = wb.simulate(scenario(BIND, memory="32 MiB"))
    captions = [report.figure(Figure(), data=result, caption="Map.").caption for _ in range(2)]
    assert captions[0].startswith("Map. Warning: policy bind 1 of ram: reaches ram only")
    assert captions[1] == "Map."


@pytest.mark.parametrize("policies", [(), (BIND,)])
def test_the_explorer_shows_it(policies: tuple[dict[str, Any], ...]) -> None:
    from workbench.explorer import pictures

    assert len(pictures.warnings(wb.simulate(scenario(*policies)))) == len(policies)

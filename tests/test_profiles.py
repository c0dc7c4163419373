"""Which kernel, VM type and VMM allows what: the table of section "VM types", and what a scenario is taken to mean."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence

import pytest
import xarray as xr

import workbench as wb
from workbench import profiles
from workbench.scenario import set_path

HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 4 << 30, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}
PRIVATE = [name for name, made in profiles.VM_TYPES.items() if made.private_memory]


def run(operations: Sequence[dict[str, object]], *, kernel: str | None = None, **guest: object) -> xr.Dataset:
    values = {"host": HOST, "kernel_profile": kernel, "operations": list(operations)}
    return wb.simulate(wb.Scenario.from_mapping(values | {"guest": {"memory": 1 << 20} | guest}))


def errnos(dataset: xr.Dataset) -> list[int]:
    return [int(value) for value in dataset["event_errno"].values]


@pytest.mark.parametrize("vm_type", profiles.VM_TYPES)
@pytest.mark.parametrize(
    ("flags", "ordinary", "private"),
    [((), 0, 0), (("mmap",), 0, 0), (("mmap", "init_shared"), 0, errno.EINVAL), (("init_shared",), 0, errno.EINVAL)],
)
def test_create_flags_on_7_3(vm_type: str, flags: Sequence[str], ordinary: int, private: int) -> None:
    """Recorded: INIT_SHARED, with or without MMAP, is for types without private memory."""
    dataset = run([{"op": "create", "flags": list(flags)}], kernel="7.3", vm_type=vm_type)
    assert errnos(dataset) == [private if vm_type in PRIVATE else ordinary]


@pytest.mark.parametrize("vm_type", profiles.VM_TYPES)
def test_init_shared_is_for_every_type_where_conversion_is_in_place(vm_type: str) -> None:
    shared = {"op": "create", "flags": ["mmap", "init_shared"]}
    assert errnos(run([shared], kernel="7.4", vm_type=vm_type)) == [0]
    # without the module parameter 7.4 is as 7.3
    without = run([shared], kernel="7.4", vm_type=vm_type, conversion={"mode": "out-of-place"})
    assert errnos(without) == [errno.EINVAL if vm_type in PRIVATE else 0]


@pytest.mark.parametrize("vm_type", profiles.VM_TYPES)
def test_mmap_mbind_and_faults_by_type(vm_type: str) -> None:
    """mbind is taken on every mapping; whether a page can be touched is another matter."""
    dataset = run(
        [
            {"op": "create"},
            {"op": "mbind", "mode": "bind", "nodes": [1]},
            {"op": "fault", "by": "host", "length": 4096},
            {"op": "fault", "by": "guest", "length": 8192},
        ],
        kernel="7.3",
        vm_type=vm_type,
    )
    private = vm_type in PRIVATE
    assert errnos(dataset) == [0, 0, 0, 0]
    bad = json.loads(str(dataset["event_detail"].values[2]))["bad"]
    assert bad == int(private)  # SIGBUS: the file is private as a whole
    assert dataset["event_pages"].values[3].tolist() == [0, 2 if private else 1]  # bound to node 1 all the same


def test_flags_0_cannot_be_mapped_so_no_policy_reaches_the_file() -> None:
    dataset = run(
        [
            {"op": "mmap"},
            {"op": "mbind", "mode": "bind", "nodes": [1]},
            {"op": "fault", "by": "guest", "length": 8192},
        ],
        kernel="7.3",
        vm_type="snp",
        vmm_profile="qemu-11",
    )
    assert errnos(dataset) == [0, errno.ENODEV, errno.EFAULT, 0]
    assert dataset["pages_per_node"].values.tolist() == [[2, 0]]


def test_conversion_in_place_needs_the_kernel_and_private_memory() -> None:
    convert = [{"op": "create"}, {"op": "convert", "to": "shared"}]
    in_place = {"mode": "in-place"}
    old = run(convert, kernel="7.3", vm_type="snp", conversion=in_place)
    assert errnos(old) == [0, errno.ENOTTY]
    assert "on 7.4, proposal-hugetlb" in json.loads(str(old["event_detail"].values[1]))["reason"]
    for kernel in ("7.4", "proposal-hugetlb"):
        assert errnos(run(convert, kernel=kernel, conversion=in_place)) == [0, errno.EINVAL]
        assert errnos(run(convert, kernel=kernel, conversion=in_place, vm_type="sw_protected")) == [0, 0]


@pytest.mark.parametrize(
    ("kernel", "operation", "guest", "error", "reason"),
    [
        ("7.3", {"op": "create", "flags": ["init_shared"]}, {"vm_type": "snp"}, "EINVAL",
         "init_shared: not for VM type snp on 7.3; in place on 7.4, proposal-hugetlb"),
        ("proposal-hugetlb", {"op": "create", "flags": ["mmap", "init_shared"]},
         {"vm_type": "snp", "page_size": "2 MiB", "design": "hugetlb", "memory": 4 << 20}, "EINVAL",
         "init_shared: not with huge pages on proposal-hugetlb; on proposal-hugetlb-rfc2"),
        ("proposal-hugetlb", {"op": "create", "flags": ["mmap", "init_shared"]},
         {"page_size": "2 MiB", "design": "hugetlb", "memory": 4 << 20}, "EINVAL",
         "init_shared: not with huge pages on proposal-hugetlb; on proposal-hugetlb-rfc2"),
        ("7.3", {"op": "convert", "to": "shared"}, {}, "EINVAL",
         "VM type none has no private memory; sw_protected, snp, tdx have"),
        ("7.4", {"op": "convert", "to": "shared"}, {}, "EINVAL",
         "VM type none has no private memory; sw_protected, snp, tdx have"),
        ("proposal-hugetlb", {"op": "set_memory_attributes"}, {"vm_type": "snp", "page_size": "2 MiB", "design": "hugetlb",
         "memory": 4 << 20}, "ENOTTY",
         "memory attributes of the VM: not on proposal-hugetlb; on 6.12, 6.16, 6.17, 6.18, 6.19, 7.0, 7.1, 7.2, 7.3, 7.4"),
        ("7.4", {"op": "set_memory_attributes"}, {"vm_type": "snp"}, "ENOTTY",
         "memory attributes of the VM: not on 7.4 while guest.conversion.mode is in-place; with out-of-place"),
        ("6.12", {"op": "create", "flags": ["mmap"]}, {}, "EINVAL", "mapping and init_shared: not on 6.12; from 6.18 on"),
    ],
)  # fmt: skip
def test_a_refusal_says_where_there_is_what_was_asked_for(
    kernel: str, operation: dict[str, object], guest: dict[str, object], error: str, reason: str
) -> None:
    operations = [operation] if operation["op"] == "create" else [{"op": "create"}, operation]
    dataset = run(operations, kernel=kernel, **guest)
    assert str(dataset["event_error"].values[-1]) == error
    assert json.loads(str(dataset["event_detail"].values[-1]))["reason"].startswith(reason)


def test_huge_pages_are_refused_by_kernels_that_have_none() -> None:
    huge = {"page_size": "2 MiB", "memory": 4 << 20, "design": "hugetlb", "vm_type": "snp"}
    assert errnos(run([{"op": "create"}], **huge)) == [0]
    refused = run([{"op": "create"}], kernel="7.3", **huge)
    assert errnos(refused) == [errno.EINVAL]
    assert "proposal-hugetlb" in json.loads(str(refused["event_detail"].values[0]))["reason"]


@pytest.mark.parametrize(
    ("guest", "operations", "kernel", "mode"),
    [
        ({}, [], "7.3", "out-of-place"),
        ({"vm_type": "snp"}, [{"op": "convert", "to": "shared"}], "7.4", "in-place"),
        ({"vm_type": "snp", "conversion": {"mode": "out-of-place"}}, [{"op": "convert", "to": "shared"}], "7.3",
         "out-of-place"),
        ({"design": "hugetlb", "page_size": "2 MiB", "memory": 4 << 20}, [], "proposal-hugetlb", "in-place"),
        ({"vm_type": "snp", "conversion": {"generation": "B"}}, [], "proposal-hugetlb-rfc2", "in-place"),
        ({"design": "pfn-range"}, [], "proposal-no-struct-page", "in-place"),
    ],
)  # fmt: skip
def test_the_oldest_kernel_that_has_what_is_asked_for(
    guest: dict[str, object], operations: list[dict[str, object]], kernel: str, mode: str
) -> None:
    values = {"host": HOST, "guest": {"memory": 1 << 20} | guest, "operations": operations}
    scenario = wb.Scenario.from_mapping(values)
    assert (scenario.kernel.name, scenario.conversion_mode) == (kernel, mode)
    if not operations:
        attributes = wb.simulate(scenario).attrs
        assert attributes["kernel_profile"] == kernel
        assert attributes["vm_type"] == scenario.guest.vm_type


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_profile": "7.33"}, "kernel_profile: .*7.33.*did you mean '7.3'.*7.4"),
        ({"kernel_profile": [7]}, "kernel_profile"),
        ({"guest": {"vm_type": "sev"}}, "guest.vm_type: .*none.*sw_protected.*snp.*tdx"),
        ({"guest": {"vmm_profile": "qemu"}}, "guest.vmm_profile: .*did you mean 'qemu-11'.*own"),
        ({"guest": {"vmm_profile": "firecracker", "vm_type": "snp"}}, "no VMs of type 'snp'"),
        ({"guest": {"vm_type": "snp", "confidential": "tdx"}}, "differ; they are one field"),
    ],
)
def test_what_does_not_exist_is_one_line_with_the_names_that_do(values: dict[str, object], message: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=message) as caught:
        wb.Scenario.from_mapping({"host": HOST} | values)
    assert "\n" not in str(caught.value)


def test_a_kernel_may_be_written_as_a_number_and_confidential_is_the_former_name() -> None:
    scenario = wb.Scenario.from_mapping({"host": HOST, "kernel_profile": 7.3, "guest": {"confidential": "snp"}})
    assert scenario.kernel.name == "7.3"
    assert scenario.guest.vm_type == "snp"
    assert scenario.replace(**{"guest.confidential": "tdx"}).guest.vm_type == "tdx"
    assert "confidential" not in scenario.to_yaml()


def test_every_rule_names_its_evidence_and_source() -> None:
    for profile in profiles.KERNEL_PROFILES.values():
        assert profile.rules
        assert all(rule.text and rule.source for rule in profile.rules.values())
        assert profile.conversion


def test_setting_the_vm_type_replaces_what_was_written_under_either_name() -> None:
    for written in ("confidential", "vm_type"):
        for name in ("confidential", "vm_type"):
            mapping: dict[str, object] = {"host": HOST, "guest": {written: "snp"}}
            set_path(mapping, f"guest.{name}", "tdx")
            assert wb.Scenario.from_mapping(mapping).guest.vm_type == "tdx"


CAPABILITIES = (
    "guest_memfd", "guest_memfd_flags", "memory_attributes", "pre_fault_memory", "guest_memfd_memory_attributes",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "vm_type", "answers"),
    [
        ("6.12", "none", (0, 0, 0, 1, 0)), ("6.17", "none", (0, 0, 0, 1, 0)), ("6.18", "none", (1, 3, 0, 1, 0)),
        ("7.3", "none", (1, 3, 0, 1, 0)), ("7.3", "sw_protected", (1, 1, 8, 1, 0)),  # recorded up to here
        ("6.17", "snp", (1, 0, 8, 1, 0)), ("7.4", "none", (1, 3, 0, 1, 0)), ("7.4", "tdx", (1, 3, 0, 1, 8)),
        ("proposal-hugetlb", "snp", (1, 3, 0, 1, 8)),
    ],
)  # fmt: skip
def test_what_a_vm_says_that_it_can(kernel: str, vm_type: str, answers: tuple[int, ...]) -> None:
    """KVM_CHECK_EXTENSION, and that the calls keep what it says."""
    flags = answers[1]
    asked = [{"op": "check_extension", "capability": name} for name in CAPABILITIES]
    tried: list[dict[str, object]] = [{"op": "create", "file": f"f{word}", "raw_flags": word} for word in range(5)]
    tried += [
        {"op": "set_memory_attributes", "file": "f0", "length": 4096, "private": private} for private in (True, False)
    ]
    guest = {"memory": "1 MiB", "vm_type": vm_type, "vcpus": [{"node": 0}]}
    scenario = {"host": "epyc1-naples-2s", "kernel_profile": kernel, "guest": guest, "operations": [*asked, *tried]}
    found = wb.simulate(wb.Scenario.from_mapping(scenario))
    assert found["event_ret"].values[:5].tolist() == list(answers)
    assert (found["event_errno"].values[5:10] == 0).tolist() == [not word & ~flags for word in range(5)]
    of_files = kernel == "proposal-hugetlb" or kernel == "7.4"  # then the VM has none, whatever its type
    refused = [errno.ENOTTY] * 2 if of_files else [0 if answers[2] else errno.EINVAL, 0]
    assert found["event_errno"].values[10:].tolist() == refused
    if vm_type != "none":
        mode = "out-of-place" if answers[2] else "in-place"
        assert found.attrs["conversion_mode"] == mode


def test_a_machine_that_converts_out_of_place_has_attributes() -> None:
    """7.4 has both ways: which one it is decides what the VM says."""
    guest = {"memory": "1 MiB", "vm_type": "snp", "vcpus": [{"node": 0}], "conversion": {"mode": "out-of-place"}}
    asked = [{"op": "check_extension", "capability": name} for name in CAPABILITIES]
    scenario = {"host": "epyc1-naples-2s", "kernel_profile": "7.4", "guest": guest, "operations": asked}
    assert wb.simulate(wb.Scenario.from_mapping(scenario))["event_ret"].values.tolist() == [1, 1, 8, 1, 0]

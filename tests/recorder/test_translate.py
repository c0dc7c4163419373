"""A Scenario in the recorder's language means the same to the reader of recordings; what cannot be recorded is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench import scenario as sc
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.recorder.qemu import emulate
from workbench.recorder.record import check_vm_type
from workbench.recorder.translate import script_name, to_script
from workbench.scenario import Scenario
from workbench.simulation import simulate

HOST = {
    "name": "three",
    "nodes": [
        {"id": 0, "memory_bytes": "512 MiB", "cpus": [], "kind": "cxl"},
        {"id": 2, "memory_bytes": "512 MiB", "cpus": [0, 1], "kind": "dram"},
        {"id": 5, "memory_bytes": "512 MiB", "cpus": [8, 9], "kind": "dram"},
    ],
    "distances": [[10, 25, 30], [25, 10, 20], [30, 20, 10]],
}


def scenario(*operations, **fields):
    guest = {"memory": "256 KiB", "vcpus": [{"node": 2}, {"cpu": 9}]} | fields.pop("guest", {})
    mapping = {"name": "a/b c", "host": HOST, "guest": guest, "operations": list(operations)}
    return Scenario.from_mapping(mapping | fields)


def lines(value):
    return to_script(value, emulate(value.host)).splitlines()


def test_nodes_and_cpus_are_those_of_linux():
    """The CPU-less node 0 becomes Linux node 2, nodes 2 and 5 become 0 and 1."""
    out = lines(scenario(
        {"op": "create"},
        {"op": "mbind", "length": "64 KiB", "mode": "interleave", "mode_flags": ["static"], "nodes": "0,2"},
        {"op": "set_mempolicy_home_node", "home_node": 0},
        {"op": "sched_setaffinity", "cpu": 9},
        {"op": "set_weights", "weights": {0: 3, 5: 7}},
        {"op": "set_mems_allowed", "mems": "2,5"},
        {"op": "hog", "node": 5, "leave_free": "4 MiB"},
        {"op": "move_pages", "length": "8 KiB", "node": 2, "move_all": True},
    ))  # fmt: skip
    assert out == [
        "scenario b_c tasks=1", "setcpu 0", "create g0 64 MMAP|SHARED", "mbind g0 0 16 INTERLEAVE|STATIC 0,2",
        "home g0 0 64 2", "setcpu 3", "weights 2:3,1:7", "cpuset 0-1", "eatto 1 1024", "movepages g0 0 2 0 MOVE_ALL",
        "place g0",
    ]  # fmt: skip


def test_every_operation_that_linux_has():
    out = lines(scenario(
        {"op": "create", "flags": ["mmap"]},
        {"op": "memfd", "file": "m", "size": "16 KiB"},
        {"op": "alias", "file": "second", "of": "m"},
        {"op": "mmap"}, {"op": "mmap", "private": True}, {"op": "munmap"}, {"op": "close", "file": "second"},
        {"op": "mbind", "mode": "default", "flags": ["move", "strict"]},
        {"op": "mbind", "offset": 100, "length": 5000, "mode": 7, "nodes": "2"},
        {"op": "set_mempolicy", "mode": "bind", "nodes": "5"}, {"op": "set_mempolicy", "mode": "local"},
        {"op": "get_mempolicy"}, {"op": "get_mempolicy", "node": True},
        {"op": "get_mempolicy", "file": "m", "offset": 8192}, {"op": "get_mempolicy", "file": "m", "node": True},
        {"op": "fallocate", "length": "8 KiB"}, {"op": "fallocate", "length": 100, "mode": 0},
        {"op": "punch_hole", "offset": "4 KiB", "length": "4 KiB"},
        {"op": "fault", "length": "8 KiB", "order": "random", "seed": 9},
        {"op": "fault", "length": "8 KiB", "order": "strided", "stride": 3, "write": False},
        {"op": "fault", "length": "8 KiB", "order": "reverse"},
        {"op": "fault", "length": "8 KiB", "by": "guest"}, {"op": "fault", "length": "8 KiB", "by": "prefault"},
        {"op": "migrate_pages", "source": 2, "target": 5}, {"op": "madvise", "length": "4 KiB", "advice": 9},
        {"op": "hog", "node": 2, "size": "1 MiB", "bind": True}, {"op": "unhog"}, {"op": "zones"},
        {"op": "reset_rotation"}, {"op": "set_weights"}, {"op": "set_mems_allowed"}, {"op": "observe", "length": "8 KiB"},
        {"op": "prefault"}, {"op": "check_extension", "capability": "guest_memfd_flags"},
        strict=False,
    ))  # fmt: skip
    assert out[2:-2] == [
        "create g0 64 MMAP", "memfd g1 4", "alias g2 g1", "mmap g0", "mmap g0 private", "unmap g0", "close g2",
        "mbind g0 0 64 DEFAULT - MOVE|STRICT", "mbind g0 100b 5000b 7 0", "setpol BIND 1", "setpol LOCAL -",
        "gettask", "getil", "getpol g1 2", "getnode g1 0", "falloc g0 0 2", "falloc g0 0 100b 0", "punch g0 1 1",
        "touch g0 0 2 rand 9", "rtouch g0 0 2 stride 3", "touch g0 0 2 rev", "vtouch g0 0 2", "prefault g0 0 2",
        "migrate 0 1", "madv g0 0 1 9", "eat 0 256 bind", "uneat", "zones", "reset", "weights default", "cpuset off",
        "place g0 0 2", "falloc g0 0 64", "kvmcap GUEST_MEMFD_FLAGS", "place g0",
    ]  # fmt: skip


def test_guest_policies_and_first_touch_by_each_vcpu():
    out = lines(scenario(guest={"policies": [{"length": "64 KiB", "mode": "bind", "nodes": "0,5", "home_node": 5}]}))
    assert out == [
        "scenario b_c tasks=3", "t0 setcpu 0", "t1 setcpu 0", "t2 setcpu 3", "t0 create g0 64 MMAP|SHARED",
        "t0 mbind g0 0 16 BIND 1-2", "t0 home g0 0 16 1", "t1 vtouch g0 0 32", "t2 vtouch g0 32 32", "place g0",
    ]  # fmt: skip


def test_turns_become_one_call_each():
    out = lines(scenario({"op": "first_touch", "turn": 16, "shared": True, "by": "host"}))
    assert [line for line in out if "touch" in line] == [
        "t1 touch g0 0 16", "t2 touch g0 16 16", "t1 touch g0 32 16", "t2 touch g0 48 16"
    ]  # fmt: skip
    out = lines(scenario({"op": "first_touch", "turn": 16}))
    assert [line for line in out if "touch" in line] == [
        "t1 vtouch g0 0 16", "t2 vtouch g0 32 16", "t1 vtouch g0 16 16", "t2 vtouch g0 48 16"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("operations", "fields", "message"),
    [
        ([{"op": "create"}, {"op": "hwpoison"}], {}, r"operation 1 \(hwpoison\): .*does not inject"),
        (
            [{"op": "create"}, {"op": "pin"}, {"op": "unpin", "length": "4 KiB"}],
            {},
            "gives back all pins of a file at once",
        ),
        (
            [{"op": "create"}, {"op": "observe"}],
            {"guest": {"vm_type": "sw_protected", "vmm_profile": "qemu-11"}},
            "takes its pages out",
        ),
        ([{"op": "fbind", "mode": "bind", "nodes": "2"}], {}, "v3 of the series"),
        ([{"op": "access"}], {}, "no result that could be recorded"),
        ([{"op": "create", "mode": "bind", "nodes": "2"}], {}, "takes no policy at creation"),
        ([{"op": "fault", "file": "x"}], {}, "'x': is not there yet"),
        ([{"op": "create", "size": "1 GiB"}], {}, "at most 512 MiB"),
        ([{"op": "create", "size": 5000}], {}, "whole pages"),
        ([{"op": "create"}, {"op": "fault", "by": "guest", "order": "random"}], {}, "order 'random' by 'guest'"),
        ([{"op": "create"}, {"op": "observe", "offset": 5}], {}, "multiples of 4 KiB"),
        ([{"op": "create", "task": "nobody"}], {}, "task 'nobody'"),
        ([{"op": "create"}, {"op": "munmap", "unnamed": True}], {}, "mappings that no name is left of"),
        ([], {"guest": {"policy_interface": "fbind"}}, "guest.policy_interface: 'fbind' cannot be recorded"),
        ([], {"guest": {"memory": "1 GiB", "page_size": "1 GiB", "design": "hugetlb"}}, "guest.page_size"),
        ([], {"guest": {"confidential": "snp"}}, "'snp' cannot be recorded; .* has 'none' and 'sw_protected'"),
        ([{"op": "create"}], {"tasks": [{"name": "a", "node": 2, "il_prev": 3}]}, "il_prev 1023"),
        ([], {"guest": {"vcpus": [{"node": 2}] * 9}}, "at most 8"),
    ],
)
def test_refusals(operations, fields, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        lines(scenario(*operations, **fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernel", ["proposal-hugetlb", "proposal-hugetlb-rfc2"])
def test_huge_pages_are_asked_for_where_the_kernel_of_the_scenario_has_them(kernel):
    """Pools first: as they are stated, or for all of the guest on each node; and what stays of 4 KiB."""
    guest = {"memory": "8 MiB", "page_size": "2 MiB", "design": "hugetlb-hvo", "vm_type": "sw_protected"}
    operations = [{"op": "create"}, {"op": "create", "file": "small", "page_size": "4 KiB", "size": "64 KiB"},
                  {"op": "fault", "by": "guest"}]  # fmt: skip
    given = scenario(*operations, guest=guest, kernel_profile=kernel)
    out = lines(given)
    pools = [line.split() for line in out if line.startswith("pool")]
    assert len(pools) == len(given.host.nodes) and {(pool[1], pool[3]) for pool in pools} == {("2M", "4")}
    flags = [line.split()[3] for line in out if line.startswith("create")]
    assert flags[0].split("|")[-1] == "HUGETLB_2M" and "HUGETLB" not in flags[1]
    assert out.index(" ".join(pools[-1])) < out.index(f"create g0 2048 {flags[0]}")
    node = given.host.nodes[-1].id
    stated = lines(given.replace(**{"boot.hugetlb_pages": {str(node): 5}}))
    assert [line.split()[1::2] for line in stated if line.startswith("pool")] == [["2M", "5"]]


def test_private_memory_is_the_kernels_to_refuse():
    """Out of place the calls of a VMM, in place the call on the descriptor; a kernel without the type says so."""
    operations = [
        {"op": "create"}, {"op": "fault", "by": "guest", "length": "64 KiB"},
        {"op": "convert", "to": "shared", "offset": "16 KiB", "length": "16 KiB"},
        {"op": "convert", "to": "private", "offset": "16 KiB", "length": "8 KiB"},
    ]  # fmt: skip
    private = {"vm_type": "sw_protected"}
    assert lines(scenario(*operations, guest=private, kernel_profile="7.3"))[2:] == [
        "vm sw_protected", "create g0 64 0", "memfd g1 64", "slot g0 g1", "attr g0 0 64 private", "vtouch g0 0 16",
        "attr g0 4 4 shared", "punch g0 4 4", "touch g1 4 4 seq", "attr g0 4 2 private", "punch g1 4 2",
        "reveal g0", "place g1",
    ]  # fmt: skip
    pins = [{"op": "pin", "length": "8 KiB"}, {"op": "pin", "length": "4 KiB", "kind": "transient"}, {"op": "unpin"}]
    assert lines(scenario(*operations, *pins, guest=private, kernel_profile="7.4"))[2:] == [
        "vm sw_protected", "create g0 64 1", "vtouch g0 0 16", "convert g0 4 4 shared", "convert g0 4 2 private",
        "pin g0 0 2 uring", "pin g0 0 1 splice", "unpin g0", "place g0",
    ]  # fmt: skip
    answer = {"scenarios": [{"ops": [{"op": "t0 vm sw_protected", "ret": -1, "errno": 22}]}]}
    with pytest.raises(WorkbenchError, match=r"guest.vm_type: this kernel makes no .* 'sw_protected' \(EINVAL\)"):
        check_vm_type(answer, "sw_protected")
    check_vm_type({"scenarios": [{"ops": [{"op": "vm sw_protected", "ret": 0, "errno": 0}]}]}, "sw_protected")


@pytest.mark.parametrize(("name", "word"), [("a/b c", "b_c"), ("ü!", "ü"), ("//", "scenario"), ("x" * 5, "xxxxx")])
def test_script_name(name, word):
    assert script_name(name) == word


READY = sorted(path for path in datasets_path("scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_scenarios_translate_or_say_why_not(path):
    value = Scenario.from_yaml(path)
    guest = value.guest
    huge = value.kernel.huge_pages and guest.design.startswith("hugetlb") and guest.page_size == "2 MiB"
    can_be_recorded = guest.policy_interface == "mbind" and guest.vm_type not in ("snp", "tdx")
    can_be_recorded &= guest.design == "filemap" or huge
    can_be_recorded &= not guest.private_memory or sc.Observe not in value.kinds  # out of place nobody can look
    if not can_be_recorded:
        with pytest.raises(WorkbenchError, match="cannot be recorded"):
            to_script(value, emulate(value.host))
        return
    if any(isinstance(operation, sc.Memfd) and operation.size > 1 << 29 for operation in value.operations):
        with pytest.raises(WorkbenchError, match="at most 512 MiB"):
            to_script(value, emulate(value.host))
        return
    value = value.replace(**{"guest.memory": min(value.guest.memory, 64 << 20)})
    script = to_script(value, emulate(value.host))
    assert script.startswith("scenario ") and script.rstrip().splitlines()[-1].startswith("place ")


def test_script_read_back_simulates_to_the_same_pages(tmp_path):
    """Scenario -> script -> recording reader -> scenario: every page lands on the node that stands for the same one."""
    from workbench.recorder.probe_output import recording
    from workbench.truth.recording import read, to_scenario

    nodes = [{**node, "id": index} for node, index in zip(HOST["nodes"], (8, 2, 5), strict=True)]
    nodes = [nodes[1], nodes[2], nodes[0]]  # an order that Linux keeps: nodes without CPUs last
    value = scenario(
        {"op": "create"},
        {"op": "mbind", "length": "128 KiB", "mode": "weighted_interleave", "nodes": "2,5,8"},
        {"op": "mbind", "offset": "128 KiB", "mode": "preferred", "nodes": "5"},
        {"op": "set_weights", "weights": {8: 2, 2: 3, 5: 1}},
        {"op": "fault", "task": "vcpu1", "order": "random", "seed": 4},
        {"op": "punch_hole", "offset": "16 KiB", "length": "64 KiB"},
        {"op": "fault", "task": "vcpu0", "order": "reverse"},
        {"op": "observe"},
        host={**HOST, "nodes": nodes},
    )
    emulation = emulate(value.host)
    script = to_script(value, emulation)
    header, *body = script.splitlines()
    ids, distances = emulation.host.linux_ids, emulation.host.distances
    order = sorted(range(len(ids)), key=lambda index: ids[index])
    files = {
        f"/sys/devices/system/node/node{ids[i]}/distance": [" ".join(str(distances[i][j]) for j in order)]
        for i in order
    }
    for i in order:
        cpus = emulation.host.nodes[i].cpus
        files[f"/sys/devices/system/node/node{ids[i]}/cpulist"] = [",".join(map(str, cpus))] if cpus else []
    output = {
        "files": files, "mods": [], "done": True,
        "scenarios": [{"header": header[9:], "name": header.split()[1], "ops": [
            {"op": line, "ret": 0, "errno": 0} for line in body if "place" not in line
        ] + [{"op": "place g0", "place": ".*64", "range": "0+64"}]}],
    }  # fmt: skip
    path = tmp_path / "r.json"
    path.write_text(json.dumps(recording(output, emulation.host, script, 0.0)))
    read_back = read(path)
    again, _ = to_scenario(read_back, read_back.scenarios[0])

    def placed(dataset):
        last = dataset["observed_run_event"].values == dataset["observed_run_event"].values.max()
        return np.repeat(dataset["observed_run_node"].values[last], dataset["observed_run_length"].values[last])

    first, second = placed(simulate(value)), placed(simulate(again))
    assert len(first) == 64 and len(set(first.tolist())) == 3
    assert [emulation.of_node(int(node)) for node in first] == second.tolist()
    assert isinstance(again.operations[0], sc.SchedSetaffinity)

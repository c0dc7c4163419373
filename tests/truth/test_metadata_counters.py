"""Counters of a real kernel's nodes against the metadata that the engine takes."""

from __future__ import annotations

import copy

import pytest

from workbench.data import datasets_path
from workbench.truth import recording
from workbench.truth.verify import verify, verify_scenario

LOOKS = [
    ("meta2", "meta_local", 4),
    ("private/p4asym", "tables", 7),
    ("private/m6memfirst", "drift_bound", 3),
    ("history/7.3.4-h3cxl", "fact_counters", 3),
]


def script(name, which):
    read = recording.read(datasets_path("recordings") / f"{name}.json.gz")
    return read, next(one for one in read.scenarios if one.name == which)


@pytest.mark.parametrize(("name", "which", "looks"), LOOKS)
def test_tables_and_slabs_are_on_the_nodes_where_linux_has_them(name, which, looks):
    read, recorded = script(name, which)
    report = verify_scenario(read, recorded)
    assert not report.mismatches
    seen = [entry for entry in recorded.operations if recording.counters_of(entry)]
    nodes = max(len(recording.counters_of(entry)) for entry in seen)
    assert len(seen) - report.not_judged["the first look at a node's counters, or one after something that is not simulated"] >= (
        looks - 1 if nodes > 1 else looks
    )  # fmt: skip


@pytest.mark.parametrize(("counter", "pages"), [("PageTables", 40), ("SecPageTables", 40), ("SReclaimable", 200)])
def test_a_counter_that_is_wrong_is_a_mismatch(counter, pages):
    read, recorded = script("history/7.3.4-h3cxl", "fact_counters")
    operations = list(recorded.operations)
    last = max(position for position, entry in enumerate(operations) if "counters" in entry.seen)
    seen = copy.deepcopy(dict(operations[last].seen))
    seen["counters"]["1"][counter] += pages
    operations[last] = type(operations[last])(
        operations[last].text, operations[last].task, operations[last].words, seen
    )
    changed = type(recorded)(recorded.name, recorded.tasks, recorded.reset, tuple(operations))
    report = verify_scenario(read, changed)
    assert [miss.what.split()[0] for miss in report.mismatches] == [counter]


def test_the_measured_guest_agrees_whole():
    (report,) = verify(["meta2"])
    assert report.agrees
    assert report.totals()["judged"] == 12


def test_areas_of_a_handover_kernel_are_the_hosts_cma():
    read = recording.read(datasets_path("recordings", "private") / "k2eq-kho-on.json.gz")
    assert [sum(zone.free_cma for zone in node.zones) for node in read.host.nodes] == [10240, 20480]


def test_threads_that_run_one_vcpu_share_what_it_keeps_ready():
    """Linux 7.3.4, two nodes: a thread of node 1 runs the vCPU after one of node 0 had filled its pages for tables."""
    read, recorded = script("meta2", "meta_local")
    lines = [
        ("create g0 16384 MMAP|SHARED", {"ret": 7, "errno": 0, "mmap": 0}),
        ("t0 setcpu 0", {"ret": 0, "errno": 0}), ("t1 setcpu 1", {"ret": 0, "errno": 0}),
        ("nodestat", {"counters": {"0": counters(0, 0), "1": counters(0, 0)}}),
        ("t0 vtouch g0 12288 4096", {"ret": 0, "errno": 0, "done": 4096, "exit": 5}),
        ("nodestat", {"counters": {"0": counters(1, 11), "1": counters(0, 0)}}),
        ("t1 vtouch g0 4096 4096", {"ret": 0, "errno": 0, "done": 4096, "exit": 5}),
        ("nodestat", {"counters": {"0": counters(1, 19), "1": counters(0, 0)}}),
    ]  # fmt: skip
    operations = tuple(
        recording._operation(read.path, "x", n, {"op": op, **seen}) for n, (op, seen) in enumerate(lines)
    )
    report = verify_scenario(read, type(recorded)("vtouch", 2, True, operations))
    assert not report.mismatches and report.judged == len(lines) - 1
    lines[-1] = ("nodestat", {"counters": {"0": counters(1, 11), "1": counters(0, 8)}})
    operations = tuple(
        recording._operation(read.path, "x", n, {"op": op, **seen}) for n, (op, seen) in enumerate(lines)
    )
    report = verify_scenario(read, type(recorded)("vtouch", 2, True, operations))
    assert [miss.what for miss in report.mismatches] == ["SecPageTables of node 0", "SecPageTables of node 1"]


def counters(tables, second_stage):
    """Slabs are not looked at: with SLUB_TINY the counter is 0."""
    return {"PageTables": tables, "SecPageTables": second_stage, "SReclaimable": 0, "SUnreclaim": 0}


def test_tables_of_a_task_that_interleaves_are_judged_by_their_sum_and_within_one_turn():
    read, recorded = script("meta2", "meta_local")

    def replay(first, second):
        lines = [
            ("create g0 8192 MMAP|SHARED", {"ret": 7, "errno": 0, "mmap": 0}),
            ("t0 setpol INTERLEAVE 0,1", {"ret": 0, "errno": 0}),
            ("nodestat", {"counters": {"0": counters(0, 0), "1": counters(0, 0)}}),
            ("t0 prefault g0 0 8192", {"ret": 0, "errno": 0, "left": 0}),
            ("nodestat", {"counters": {"0": counters(0, first), "1": counters(0, second)}}),
        ]
        entries = [recording._operation(read.path, "x", n, {"op": op, **seen}) for n, (op, seen) in enumerate(lines)]
        return verify_scenario(read, type(recorded)("x", 1, True, tuple(entries)))

    assert not replay(9, 9).mismatches and not replay(10, 8).mismatches
    assert [miss.what for miss in replay(11, 10).mismatches] == ["SecPageTables of all nodes"]
    assert replay(15, 3).mismatches and replay(0, 18).mismatches

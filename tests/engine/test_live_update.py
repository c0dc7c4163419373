"""memfds in a live-update session and through a kexec; the same on a real kernel: datasets/recordings/handover."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

import workbench as wb
from workbench.errnos import EHWPOISON

PAGE = 4096
DEFAULT, EVERY = "default", {"offset": 0, "length": 64 * PAGE}


def run(*operations, **scenario):
    """Two nodes with a task on each; the file g has 64 pages."""
    nodes = [{"id": n, "memory_bytes": 1 << 30, "cpus": [n]} for n in range(2)]
    host = {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    tasks = [{"name": "t0", "cpu": 0}, {"name": "t1", "cpu": 1}]
    values = {"host": host, "tasks": tasks, "output": "runs", "metadata": "off", "strict": False} | scenario
    memfd = {"op": "memfd", "file": "g", "size": 64 * PAGE}
    dataset = wb.simulate(wb.Scenario.model_validate(values | {"operations": [memfd, *operations]}))
    return dataset, dataset["event_errno"].values.tolist()


def nodes_at(dataset, event, pages=64):
    """Node of each page that an observation saw, -1 where there is none."""
    out = np.full(pages, -1)
    for number in np.flatnonzero(dataset["observed_run_event"].values == event):
        start, length = (int(dataset[f"observed_run_{name}"].values[number]) for name in ("start", "length"))
        out[start : start + length] = dataset["observed_run_node"].values[number]
    return out.tolist()


def preserve(file="g", token=1, task="t0"):
    return {"op": "preserve", "file": file, "token": token, "task": task}


def look(file="g"):
    return {"op": "observe", "file": file, **EVERY}


def test_holes_are_filled_by_the_calling_task_under_the_policy_of_the_file():
    dataset, errors = run(
        {"op": "mbind", "file": "g", "offset": 0, "length": 32 * PAGE, "mode": "bind", "nodes": "0"},
        {"op": "fault", "file": "g", "offset": 40 * PAGE, "length": 8 * PAGE, "by": "host", "task": "t0"},
        preserve(task="t1"),
        look(),
    )
    assert not any(errors)
    assert nodes_at(dataset, 4) == [0] * 32 + [1] * 8 + [0] * 8 + [1] * 16


def test_what_a_session_refuses():
    _, errors = run(
        preserve(),
        preserve(token=2),  # the file is in it
        {"op": "memfd", "file": "other", "size": PAGE},
        preserve("other", 1),  # the token is
        {"op": "create", "file": "guest", "size": 64 * PAGE},
        preserve("guest", 3),
        preserve("nobody", 4),
    )
    assert errors == [0, 0, errno.EBUSY, 0, errno.EEXIST, 0, errno.ENOENT, errno.EBADF]


def test_a_preserved_file_is_frozen_until_it_is_retrieved():
    change = ({"op": "fallocate", "file": "g", **EVERY}, {"op": "punch_hole", "file": "g", **EVERY})
    touch = {"op": "fault", "file": "g", **EVERY, "by": "host"}
    _, errors = run(preserve(), *change, touch, {"op": "kexec"}, {"op": "retrieve", "file": "g", "token": 1}, *change)
    assert errors == [0, 0, errno.EPERM, errno.EPERM, 0, 0, 0, 0, 0]


def test_pages_stay_and_policies_go():
    dataset, errors = run(
        {"op": "mbind", "file": "g", **EVERY, "mode": "interleave", "nodes": "0-1"},
        preserve(),
        look(),
        {"op": "kexec"},
        {"op": "retrieve", "file": "again", "token": 1},
        look("again"),
        {"op": "get_mempolicy", "file": "again", "offset": 0},
        {"op": "punch_hole", "file": "again", "offset": 0, "length": 16 * PAGE},
        {"op": "fault", "file": "again", "offset": 0, "length": 16 * PAGE, "by": "host", "task": "t1"},
        look("again"),
    )
    assert not any(errors)
    before, after = nodes_at(dataset, 3), nodes_at(dataset, 6)
    assert sorted(set(before)) == [0, 1] and before == after
    assert json.loads(str(dataset["event_detail"].values[7]))["mode"] == 0
    assert nodes_at(dataset, 10) == [1] * 16 + before[16:]


@pytest.mark.parametrize("again", [(), ({"op": "memfd", "file": "g", "size": PAGE},)])
def test_a_session_holds_a_file_that_nobody_else_has(again):
    """kernel/liveupdate/luo_file.c: luo_preserve_file takes a reference (fget). The name may mean another file by then."""
    dataset, errors = run(
        {"op": "mbind", "file": "g", **EVERY, "mode": "interleave", "nodes": "0-1"},
        preserve(),
        look(),
        {"op": "close", "file": "g"},
        *again,
        {"op": "kexec"},
        {"op": "retrieve", "file": "again", "token": 1},
        look("again"),
        {"op": "get_mempolicy", "file": "again", "offset": 0},
        {"op": "close", "file": "again"},
    )
    assert not any(errors)
    assert nodes_at(dataset, 3) == nodes_at(dataset, len(errors) - 3) == [1, 0] * 32
    assert json.loads(str(dataset["event_detail"].values[-2]))["mode"] == 0
    assert json.loads(str(dataset["event_detail"].values[-5]))["policy_lost"] == {"g": ["interleave 0-1"]}
    free = dataset["free_pages"].sum("zone").values
    assert free[0] - free[-2] == 64 and free[0] == free[-1]


def test_unknown_tokens_and_files_that_are_asked_for_twice():
    dataset, errors = run(
        preserve(),
        {"op": "retrieve", "file": "early", "token": 1},  # this kernel has taken nothing over
        {"op": "kexec"},
        {"op": "retrieve", "file": "a", "token": 7},
        {"op": "retrieve", "file": "b", "token": 1},
        {"op": "retrieve", "file": "c", "token": 1},
        look("c"),
    )
    assert errors == [0, 0, errno.ENOENT, 0, errno.ENOENT, 0, 0, 0]
    assert nodes_at(dataset, 7) == [0] * 64


def test_no_page_is_lost_whoever_retrieves_or_forgets():
    """One file retrieved and closed, one that was in no session: all memory is free again."""
    dataset, errors = run(
        {"op": "memfd", "file": "lost", "size": 64 * PAGE},
        {"op": "fault", "file": "lost", **EVERY, "by": "host"},
        preserve(),
        {"op": "kexec"},
        {"op": "retrieve", "file": "g", "token": 1},
        {"op": "close", "file": "g"},
    )
    free = dataset["free_pages"].sum("zone").values
    assert not any(errors)
    assert free[0] - free[3] == 128 and free[0] - free[4] == 64 and free[0] == free[-1]


def test_new_processes_run_where_the_old_ones_began():
    dataset, errors = run(
        {"op": "sched_setaffinity", "task": "t0", "cpu": 1},
        {"op": "kexec"},
        {"op": "memfd", "file": "new", "size": 64 * PAGE},
        {"op": "fault", "file": "new", **EVERY, "by": "host", "task": "t0"},
        look("new"),
    )
    assert not any(errors)
    assert nodes_at(dataset, 5) == [0] * 64


PRESERVED = {"kernel_profile": "proposal-preservation"}
SHARED_FILE = {"op": "create", "file": "m", "size": 64 * PAGE, "flags": ["mmap", "init_shared"]}


def on(file, op, first=0, pages=64, **more):
    return {"op": op, "file": file, "offset": first * PAGE, "length": pages * PAGE, **more}


def test_a_guest_memfd_in_a_session_is_frozen_and_keeps_its_holes():
    """The series of July 2026: what is there can be touched, nothing comes in; afterwards the policy is gone."""
    dataset, errors = run(
        SHARED_FILE,
        on("m", "mbind", mode="interleave", nodes="0-1"),
        on("m", "fault", 0, 32, by="host"),
        preserve("m"),
        on("m", "fallocate"),
        on("m", "punch_hole"),
        on("m", "fault", 16, 32, by="host"),
        on("m", "fault", 16, 32, by="guest"),
        on("m", "fault", 0, 32, by="guest"),
        look("m"),
        {"op": "kexec"},
        {"op": "retrieve", "file": "n", "token": 1},
        {"op": "get_mempolicy", "file": "n", "offset": 0},
        look("n"),
        on("n", "fault", by="guest", task="t1"),
        look("n"),
        **PRESERVED,
    )
    assert errors == [0, 0, 0, 0, 0, errno.EPERM, errno.EPERM, 0, errno.EPERM, *[0] * 8]
    details = [json.loads(str(detail)) for detail in dataset["event_detail"].values]
    assert (details[7]["bad"], details[7]["first"]) == (16, 32)
    assert details[8]["done"] == 16
    assert details[13]["mode"] == 0
    before = nodes_at(dataset, 10)
    assert before == nodes_at(dataset, 14) and sorted(set(before)) == [-1, 0, 1] and before.count(-1) == 32
    after = nodes_at(dataset, 16)
    assert after[:32] == before[:32] and len(set(after[32:])) == 1


def test_a_kexec_fails_while_a_guest_memfd_is_in_the_session_without_its_vm():
    """Nothing changes by the failure: the file is there and frozen. Once the VM is in the session too the kexec works."""
    dataset, errors = run(
        SHARED_FILE,
        {**SHARED_FILE, "file": "o"},
        on("m", "fault", by="host"),
        preserve("m") | {"vm": False},
        {"op": "kexec"},
        on("m", "punch_hole"),
        on("m", "fault", by="host"),
        preserve("o", 2),
        {"op": "kexec"},
        {"op": "retrieve", "file": "n", "token": 1},
        look("n"),
        **PRESERVED,
    )
    assert errors == [0, 0, 0, 0, 0, errno.ENOENT, errno.EPERM, 0, 0, 0, 0, 0]
    assert "without its VM" in str(dataset["event_detail"].values[5])
    assert nodes_at(dataset, 11) == [0] * 64
    _, errors = run(preserve(), {"op": "kexec"})  # a memfd has none
    assert errors == [0, 0, 0]


def test_what_a_session_takes_of_guest_memfds():
    """Wholly shared ones; those in no session are gone with the kernel that knew them."""
    private = {"op": "create", "file": "p", "size": 64 * PAGE, "flags": ["mmap"]}
    _, errors = run(
        SHARED_FILE,
        private,
        preserve("p", 3),
        preserve("m", 1),
        preserve("m", 2),
        {**SHARED_FILE, "file": "o"},
        {"op": "kexec"},
        on("o", "fallocate"),
        {"op": "retrieve", "file": "m", "token": 1},
        on("m", "fallocate"),
        **PRESERVED,
    )
    assert errors == [0, 0, 0, errno.ENOENT, 0, errno.EBUSY, 0, 0, errno.EBADF, 0, 0]


def test_a_session_takes_no_guest_memfd_with_a_poisoned_folio_nor_one_of_a_vm_with_private_memory():
    """kvm_gmem_luo_walk_folios, kvm_gmem_luo_can_preserve: it is not frozen either."""
    operations = [
        SHARED_FILE,
        on("m", "fault", by="host"),
        on("m", "hwpoison", 3, 1),
        preserve("m"),
        on("m", "fallocate"),
    ]
    _, errors = run(*operations, **PRESERVED)
    assert errors == [0, 0, 0, 0, EHWPOISON, 0]
    inside = {"guest": {"memory": 64 * PAGE, "vm_type": "sw_protected"}}
    _, errors = run({**SHARED_FILE, "flags": ["mmap"]}, preserve("m"), **PRESERVED, **inside)
    assert errors == [0, 0, errno.ENOENT]

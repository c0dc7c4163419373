"""memfds in a live-update session and through a kexec; the same on a real kernel: datasets/recordings/handover."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        {"op": "finish"},
    )
    assert not any(errors)
    assert nodes_at(dataset, 3) == nodes_at(dataset, len(errors) - 4) == [1, 0] * 32
    assert json.loads(str(dataset["event_detail"].values[-3]))["mode"] == 0
    assert json.loads(str(dataset["event_detail"].values[-6]))["policy_lost"] == {"g": ["interleave 0-1"]}
    free = dataset["free_pages"].sum("zone").values
    assert free[0] - free[-2] == 64 and free[0] == free[-1]


def test_unknown_tokens_and_files_that_are_asked_for_twice():
    dataset, errors = run(
        {"op": "retrieve", "file": "early", "token": 1},  # this kernel has taken nothing over
        preserve(),
        {"op": "retrieve", "file": "early", "token": 1},  # nor has its own session
        {"op": "kexec"},
        {"op": "retrieve", "file": "a", "token": 7},
        {"op": "retrieve", "file": "b", "token": 1},
        {"op": "retrieve", "file": "c", "token": 1},
        look("c"),
    )
    assert errors == [0, errno.ENOENT, 0, errno.EINVAL, 0, errno.ENOENT, 0, 0, 0]
    assert nodes_at(dataset, 8) == [0] * 64


def test_no_page_is_lost_whoever_retrieves_or_forgets():
    """One file retrieved and closed, one that was in no session: all memory is free again."""
    dataset, errors = run(
        {"op": "memfd", "file": "lost", "size": 64 * PAGE},
        {"op": "fault", "file": "lost", **EVERY, "by": "host"},
        preserve(),
        {"op": "kexec"},
        {"op": "retrieve", "file": "g", "token": 1},
        {"op": "close", "file": "g"},
        {"op": "finish"},
    )
    free = dataset["free_pages"].sum("zone").values
    assert not any(errors)
    assert free[0] - free[3] == 128 and free[0] - free[4] == free[0] - free[-2] == 64 and free[0] == free[-1]


FINISH, CLOSE_SESSION, KEXEC = {"op": "finish"}, {"op": "close_session"}, {"op": "kexec"}


def retrieve(file="g", token=1):
    return {"op": "retrieve", "file": file, "token": token}


def close(file="g"):
    return {"op": "close", "file": file}


def lost(dataset):
    """Pages that are taken, against the start, after each operation behind the memfd."""
    free = dataset["free_pages"].sum("zone").values
    return (free[0] - free[1:]).tolist()


@pytest.mark.parametrize("end", [FINISH, CLOSE_SESSION], ids=["finish", "close"])
def test_a_session_holds_what_was_retrieved_until_it_is_finished(end):
    """luo_retrieve_file: "keep this file in LUO until finish". Whoever closed it can ask again."""
    look_again = (retrieve("again"), look("again"), close("again"))
    dataset, errors = run(preserve(), KEXEC, retrieve(), close(), *look_again, end, retrieve("late"))
    assert errors == [*[0] * 9, errno.ENOENT]
    assert nodes_at(dataset, 6) == [0] * 64
    assert lost(dataset) == [*[64] * 7, 0, 0]


@pytest.mark.parametrize("end", [FINISH, CLOSE_SESSION], ids=["finish", "close"])
def test_what_nobody_retrieved_is_gone_with_the_session(end):
    """memfd_luo_finish: memfd_luo_discard_folios. A file that somebody has stays with him, and is his alone."""
    other = {"op": "memfd", "file": "o", "size": 16 * PAGE}
    dataset, errors = run(other, preserve(), preserve("o", 2), KEXEC, retrieve("o", 2), end, look("o"), close("o"))
    assert not any(errors)
    assert lost(dataset) == [0, 64, 80, 80, 80, 16, 16, 0]


def test_calls_are_for_sessions_of_their_kind():
    """luo_session.c: luo_ioctl_type_valid; luo_session_retrieve. Only a new session takes files, only an old one gives them."""
    here = run(FINISH, CLOSE_SESSION, preserve(), FINISH, retrieve("x"), CLOSE_SESSION, CLOSE_SESSION)[1]
    assert here == [0, errno.ENOENT, errno.EBADF, 0, errno.EINVAL, errno.EINVAL, 0, errno.EBADF]
    there = (preserve(), KEXEC, retrieve(), preserve("g", 2), FINISH, FINISH, preserve("g", 2), retrieve("x"))
    _, errors = run(*there, CLOSE_SESSION, retrieve("x"), preserve("g", 2), FINISH)
    assert errors == [*[0] * 4, errno.EINVAL, 0, 0, errno.EINVAL, errno.ENOENT, 0, errno.ENOENT, 0, errno.EINVAL]


def test_a_new_session_that_is_closed_gives_its_files_back():
    """luo_file_unpreserve_files, memfd_luo_unpreserve: thawed, and freed where the session alone had them; nothing goes over."""
    other = {"op": "memfd", "file": "o", "size": 16 * PAGE}
    punch = {"op": "punch_hole", "file": "g", **EVERY}
    dataset, errors = run(other, preserve(), preserve("o", 2), close("o"), punch, CLOSE_SESSION, look(), punch)
    assert errors == [*[0] * 5, errno.EPERM, 0, 0, 0]
    assert lost(dataset) == [0, 64, 80, 80, 80, 64, 64, 0]
    _, errors = run(preserve(), CLOSE_SESSION, KEXEC, retrieve("x"), look())
    assert errors == [0, 0, 0, 0, errno.ENOENT, errno.EBADF]


def test_a_file_goes_through_two_kexecs_and_forgotten_ones_through_one():
    """A session that nobody finished is not handed over again."""
    other = {"op": "memfd", "file": "o", "size": 16 * PAGE}
    again = (retrieve("g"), CLOSE_SESSION, preserve("g", 3), KEXEC, retrieve("n", 3), look("n"), CLOSE_SESSION)
    dataset, errors = run(other, preserve(), KEXEC, *again)
    assert not any(errors)
    assert nodes_at(dataset, 9) == [0] * 64 and lost(dataset)[-1] == 64
    forgotten = (preserve(), preserve("o", 2), KEXEC, retrieve("o", 2), close("o"), KEXEC, retrieve("x", 2))
    dataset, errors = run(other, *forgotten)
    assert errors == [*[0] * 8, errno.ENOENT]
    assert lost(dataset) == [0, 64, 80, 80, 80, 80, 0, 0]
    dataset, errors = run(preserve(), KEXEC, {**other, "file": "g"}, KEXEC)  # the name means another file by then
    assert not any(errors) and lost(dataset) == [64, 64, 64, 0]


CALLS = st.one_of(
    *(st.just(call) for call in (KEXEC, FINISH, CLOSE_SESSION)),
    st.builds(preserve, st.sampled_from("gog"), st.integers(1, 3)),
    st.builds(retrieve, st.sampled_from("gox"), st.integers(1, 3)),
    st.builds(close, st.sampled_from("gox")),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(CALLS, max_size=14))
def test_no_page_is_lost_in_any_order_of_calls(calls):
    """And none is free while somebody has its file: what can be looked at is whole."""
    other = {"op": "memfd", "file": "o", "size": 64 * PAGE}
    filled = [on(name, "fault", by="host") for name in "go"]
    every = [look(name) for name in "gox"]
    end = [CLOSE_SESSION, KEXEC, FINISH, KEXEC]
    dataset, errors = run(other, *filled, *calls, *every, *map(close, "gox"), *end)
    assert not any(errors[:4]) and set(errors) <= {
        0,
        errno.EINVAL,
        errno.ENOENT,
        errno.EEXIST,
        errno.EBUSY,
        errno.EBADF,
    }
    assert lost(dataset)[-1] == 0
    for position in range(len(calls) + 4, len(calls) + 7):
        assert errors[position] or nodes_at(dataset, position) == [0] * 64


def test_descriptors_of_a_session_are_there_while_it_is_open():
    """The lowest free one: a retrieve where there is nothing to retrieve leaves none behind."""
    files = [{"op": "memfd", "file": name, "size": PAGE} for name in "nm"]
    for before, taken in ([retrieve("x")], [1, 2]), ([preserve()], [1, 3]), ([preserve(), CLOSE_SESSION], [1, 2]):
        numbers = run(*before, *files)[0]["event_ret"].values
        assert (numbers[-2:] - numbers[0]).tolist() == taken  # the device was open first, and is closed again


def test_a_guest_memfd_of_the_series_is_held_and_given_up_as_a_memfd_is():
    dataset, errors = run(
        {**SHARED_FILE, "file": "o"}, SHARED_FILE, on("m", "fault", by="host"), on("o", "fault", by="host"), preserve("m"),
        preserve("o", 2), KEXEC, retrieve("n"), close("n"), retrieve("n"), look("n"), close("n"), FINISH, retrieve("n"),
        **PRESERVED,
    )  # fmt: skip
    assert errors == [*[0] * 14, errno.ENOENT]
    assert nodes_at(dataset, 11) == [0] * 64
    assert lost(dataset)[-3:] == [128, 0, 0]


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

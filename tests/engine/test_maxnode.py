"""The raw ``maxnode`` of mbind and set_mempolicy, compared with the kernel that runs here; descriptors that are passed on."""

from __future__ import annotations

import ctypes
import errno
import platform
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import policy as mp

SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}.get(platform.machine())
WORDS = 1024


def asked(mask: int, maxnode: int) -> int:
    """errno of set_mempolicy(MPOL_BIND) on the running kernel; the policy of this thread is put back at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_uint64 * WORDS)(*((mask >> 64 * word) & (1 << 64) - 1 for word in range(WORDS)))
    result = libc.syscall(SET_MEMPOLICY, mp.BIND, buffer, ctypes.c_ulong(maxnode))
    error = ctypes.get_errno() if result else 0
    libc.syscall(SET_MEMPOLICY, mp.DEFAULT, None, ctypes.c_ulong(0))
    return error


@pytest.fixture(scope="module")
def max_numnodes() -> int:
    """MAX_NUMNODES of the running kernel: the lowest bit beside node 0 that it refuses."""
    if SET_MEMPOLICY is None or asked(1, 65) in (errno.ENOSYS, errno.EPERM):
        pytest.skip("set_mempolicy is not there, or not allowed")
    return next(1 << shift for shift in range(1, 11) if shift == 10 or asked(1 | 1 << (1 << shift), 8192))


CASES = [
    (mask, maxnode)
    for mask in (0, 1, 1 | 1 << 1, 1 | 1 << 63, 1 | 1 << 1023, 1 | 1 << 1024, 1 | 1 << 1100, 1 | 1 << 1151, 1 | 1 << 1152)
    for maxnode in (0, 1, 2, 3, 63, 64, 65, 128, 1023, 1024, 1025, 1026, 1088, 1089, 1101, 1152, 1153, 1154, 4096,
                    32768, 32769, 32770, 1 << 32, (1 << 64) - 1)
]  # fmt: skip


@pytest.mark.parametrize(("mask", "maxnode"), CASES)
def test_masks_are_read_as_the_running_kernel_reads_them(mask: int, maxnode: int, max_numnodes: int) -> None:
    nodes, error = mp.get_nodes(mask, maxnode, max_numnodes)
    if not error:  # mpol_new and mpol_set_nodemask on a host where node 0 has memory
        error = 0 if nodes & 1 else errno.EINVAL
    assert error == asked(mask, maxnode)


@given(st.integers(0, (1 << 1024) - 1), st.integers(1, 1024))
def test_maxnode_reads_one_bit_less(mask: int, maxnode: int) -> None:
    assert mp.get_nodes(mask, maxnode) == (mask & (1 << maxnode - 1) - 1, 0)


def run(*operations: dict[str, Any]) -> Any:
    host = {
        "name": "two",
        "nodes": [{"id": n, "memory_bytes": "1 GiB", "cpus": [n]} for n in range(2)],
        "distances": [[10, 20], [20, 10]],
    }
    return wb.simulate(
        wb.Scenario.from_mapping({"host": host, "guest": {"memory": "1 MiB"}, "operations": list(operations)})
    )


CREATE = {"op": "create", "flags": ["mmap", "init_shared"]}


@pytest.mark.parametrize(
    ("maxnode", "error", "pages"),
    [
        (None, 0, [0, 256]),
        (64, 0, [0, 256]),
        (3, 0, [0, 256]),
        (2, errno.EINVAL, [256, 0]),
        (0, errno.EINVAL, [256, 0]),
    ],
)
def test_an_off_by_one_loses_the_highest_node(maxnode: int | None, error: int, pages: list[int]) -> None:
    """Bound to node 1 with maxnode = highest node + 1: the kernel reads one bit, the mask is empty."""
    for operation in ("mbind", "set_mempolicy"):
        result = run(CREATE, {"op": operation, "mode": "bind", "nodes": "1", "maxnode": maxnode}, {"op": "fault"})
        assert result.event_errno.values.tolist() == [0, error, 0]
        assert result.pages_per_node.values.tolist() == [pages]


def test_interleave_loses_a_node_without_a_word() -> None:
    result = run(CREATE, {"op": "mbind", "mode": "interleave", "nodes": "0-1", "maxnode": 2}, {"op": "fault"})
    assert result.event_errno.values.tolist() == [0, 0, 0]
    assert result.pages_per_node.values.tolist() == [[256, 0]]


# ---------------------------------------------------------------------------------------------- passed descriptors


def test_a_policy_of_the_receiver_counts_for_the_file() -> None:
    """Policies of a guest_memfd are the inode's: what the second VMM binds, the first one's guest gets."""
    result = run(
        CREATE, {"op": "pass_fd", "file": "there", "of": "guest"}, {"op": "mbind", "file": "there", "mode": "bind", "nodes": "1"},
        {"op": "mmap", "file": "there"}, {"op": "mbind", "file": "there", "mode": "bind", "nodes": "1"},
        {"op": "fault", "by": "guest"},
    )  # fmt: skip
    assert result.event_errno.values.tolist() == [0, 0, errno.EFAULT, 0, 0, 0]
    assert result.pages_per_node.sel(file="guest").values.tolist() == [0, 256]


def test_another_vm_cannot_run_on_it() -> None:
    result = run(
        CREATE, {"op": "pass_fd", "file": "there", "of": "guest"}, {"op": "fault", "file": "there", "by": "guest"}
    )
    assert result.event_errno.values.tolist() == [0, 0, errno.EINVAL]


def test_the_file_lives_until_both_have_closed_it() -> None:
    result = run(
        CREATE, {"op": "fault"}, {"op": "pass_fd", "file": "there", "of": "guest"}, {"op": "close"},
        {"op": "mmap", "file": "there"},
        {"op": "fault", "file": "there"}, {"op": "close", "file": "there"}, {"op": "pass_fd", "file": "x", "of": "there"},
    )  # fmt: skip
    assert result.event_errno.values.tolist() == [0, 0, 0, 0, 0, 0, 0, errno.EBADF]
    free = result.free_pages.sum("zone").values
    assert free[3] == free[1], "the receiver's descriptor keeps the pages"
    assert free[6] == free[0], "the last close frees them"


def test_each_process_counts_its_own_descriptors() -> None:
    result = run(CREATE, {"op": "pass_fd", "file": "a", "of": "guest"}, {"op": "pass_fd", "file": "b", "of": "guest"},
                 {"op": "pass_fd", "file": "c", "of": "guest", "process": "third"})  # fmt: skip
    assert result.event_ret.values.tolist() == [3, 3, 4, 3]

"""mempolicy checks and the shared policy tree against the tables of the kernel's source and an obvious reference."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import policy as mp
from workbench.errors import WorkbenchError


@pytest.mark.parametrize(
    ("mode", "flags", "nodes", "expected"),
    [
        (mp.DEFAULT, 0, 0b1, errno.EINVAL),
        (mp.PREFERRED, mp.STATIC_NODES, 0, errno.EINVAL),
        (mp.LOCAL, 0, 0b1, errno.EINVAL),
        (mp.LOCAL, mp.RELATIVE_NODES, 0, errno.EINVAL),
        (mp.BIND, 0, 0, errno.EINVAL),
        (mp.INTERLEAVE, 0, 0, errno.EINVAL),
        (mp.PREFERRED_MANY, 0, 0, errno.EINVAL),
        (mp.WEIGHTED_INTERLEAVE, 0, 0, errno.EINVAL),
        (mp.BIND, 0, 0b10, 0),
        (mp.LOCAL, 0, 0, 0),
    ],
)
def test_mode_against_nodes(mode, flags, nodes, expected):
    assert mp.mpol_new(mode, flags, nodes)[1] == expected


def test_preferred_without_nodes_becomes_local_and_default_becomes_nothing():
    assert mp.mpol_new(mp.PREFERRED, 0, 0)[0].mode == mp.LOCAL
    assert mp.mpol_new(mp.DEFAULT, 0, 0) == (None, 0)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (7, errno.EINVAL),
        (mp.BIND | mp.STATIC_NODES | mp.RELATIVE_NODES, errno.EINVAL),
        (mp.INTERLEAVE | mp.NUMA_BALANCING, errno.EINVAL),
        (mp.BIND | mp.NUMA_BALANCING, 0),
        (mp.PREFERRED_MANY | mp.NUMA_BALANCING, 0),
    ],
)
def test_mode_flags(word, expected):
    assert mp.sanitize_mpol_flags(word)[2] == expected


def set_nodes(mode, flags, nodes, allowed):
    policy, error = mp.mpol_new(mode, flags, nodes)
    assert not error
    return mp.mpol_set_nodemask(policy, allowed)


def test_contextualisation():
    assert set_nodes(mp.BIND, 0, 0b0011, 0b0110)[0].nodes == 0b0010
    assert set_nodes(mp.BIND, 0, 0b1000, 0b0110)[1] == errno.EINVAL
    assert set_nodes(mp.PREFERRED, 0, 0b1110, 0b1100)[0].nodes == 0b0100, "only the lowest node is kept"
    assert set_nodes(mp.BIND, mp.RELATIVE_NODES, 1 << 5, 0b1010)[0].nodes == 0b1000, "folded modulo, then mapped"
    assert set_nodes(mp.BIND, mp.STATIC_NODES, 0b0011, 0b0110)[0].reported_nodes == 0b0011


def test_rebind_to_another_cpuset():
    plain = set_nodes(mp.INTERLEAVE, 0, 0b1111, 0b1111)[0]
    assert mp.mpol_rebind(plain, 0b0011).nodes == 0b0011
    static = set_nodes(mp.BIND, mp.STATIC_NODES, 0b0001, 0b1111)[0]
    assert mp.mpol_rebind(static, 0b0110).nodes == 0b0110, "an empty result becomes the whole new mask"
    relative = set_nodes(mp.BIND, mp.RELATIVE_NODES, 0b0001, 0b0110)[0]
    assert mp.mpol_rebind(relative, 0b1100).nodes == 0b0100
    preferred = set_nodes(mp.PREFERRED, 0, 0b0100, 0b1111)[0]
    assert mp.mpol_rebind(preferred, 0b0011).nodes == 0b0100, "PREFERRED keeps its node"


def policy(number: int) -> mp.Mempolicy:
    return mp.Mempolicy(mp.BIND, nodes=1 << number)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.one_of(st.none(), st.integers(0, 4))), max_size=25)
)
def test_shared_policy_is_a_dictionary_of_pages(calls):
    tree, pages = mp.SharedPolicy(), {}
    for start, length, number in calls:
        tree.set(start, start + length, None if number is None else policy(number))
        for page in range(start, start + length):
            pages[page] = None if number is None else policy(number)
    assert [tree.lookup(page) for page in range(64)] == [pages.get(page) for page in range(64)]
    ranges = list(tree)
    assert all(start < end for start, end, _ in ranges)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges)), "ranges never overlap"


def test_equal_neighbours_stay_apart():
    tree = mp.SharedPolicy()
    tree.set(0, 4, policy(1))
    tree.set(4, 8, policy(1))
    assert len(tree) == 2


@given(st.sets(st.integers(0, 1023), max_size=30))
def test_nodes_round_trip(nodes):
    mask = mp.nodemask(nodes)
    assert mp.parse_nodes(mp.format_nodes(mask)) == mask
    assert mp.nodes_of(mask) == sorted(nodes)


@pytest.mark.parametrize("bad", ["0-", "x", "3-1", "-1", "1,,a", 1.5, [True], "0-999999999"])
def test_bad_nodes_are_one_line(bad):
    with pytest.raises((WorkbenchError, TypeError)) as caught:
        mp.parse_nodes(bad)
    assert "\n" not in str(caught.value)

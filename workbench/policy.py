"""mempolicy objects: argument checks, contextualisation, rebinding, and the shared policy of an inode.

Linux: ``mm/mempolicy.c`` (``sanitize_mpol_flags``, ``mpol_new``, ``mpol_set_nodemask``, ``mpol_rebind_policy``,
``sp_lookup``, ``shared_policy_replace``). A nodemask is a Python int with bit ``n`` for Linux node id ``n``.
Functions that stand for a system call's checks return a positive errno instead of raising: a refused call is a result.
"""

from __future__ import annotations

import bisect
import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from workbench.bitmap_lists import format_list, parse_list
from workbench.errors import WorkbenchError
from workbench.limits import MAX_NUMNODES

MODES = ("default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave")
"""Names of MPOL_* in numerical order (include/uapi/linux/mempolicy.h)."""
DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED_INTERLEAVE = range(7)
STATIC_NODES, RELATIVE_NODES, NUMA_BALANCING = 1 << 15, 1 << 14, 1 << 13
MODE_FLAGS = {"static": STATIC_NODES, "relative": RELATIVE_NODES, "numa_balancing": NUMA_BALANCING}
MBIND_FLAGS = {"strict": 1, "move": 2, "move_all": 4}
_BITS_PER_LONG, _MAX_BITS = 64, 8 * 4096
"""A mask has at most as many bits as a page."""
MF_STRICT, MF_MOVE, MF_MOVE_ALL = 1, 2, 4


def nodemask(nodes: Iterable[int]) -> int:
    """Bitmask of node ids."""
    mask = 0
    for node in nodes:
        mask |= 1 << node
    return mask


def nodes_of(mask: int) -> list[int]:
    """Node ids of a bitmask, ascending."""
    return [node for node in range(mask.bit_length()) if mask >> node & 1]


def parse_nodes(value: str | int | Iterable[int] | None, field: str = "nodes") -> int:
    """Bitmask from ``"0-3,8"``, a node id, a list of ids, or None / ``""`` / ``"none"`` for the empty mask.

    >>> bin(parse_nodes("0-3,8")), parse_nodes([1, 2]), parse_nodes(None)
    ('0b100001111', 6, 0)
    """
    if value is None:
        return 0
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, (str, Iterable)):
        raise WorkbenchError(f"{field}: {value!r} is no list of nodes; a list of nodes is written '0-3,8'")
    try:
        ids = list(value) if not isinstance(value, str) else [] if value == "none" else list(parse_list(value))
    except ValueError as error:
        raise WorkbenchError(f"{field}: {error}; a list of nodes is written '0-3,8'") from None
    for node in ids:
        if not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < 1 << 15:
            raise WorkbenchError(f"{field}: {node!r} is not a node id; ids are 0 to {MAX_NUMNODES - 1}")
    mask = nodemask(ids)
    if mask.bit_count() != len(ids):
        twice = next(node for at, node in enumerate(ids) if node in ids[:at])
        raise WorkbenchError(f"{field}: node {twice} is there twice; each node once is expected")
    return mask


def format_nodes(mask: int) -> str:
    """``"0-3,8"`` for a bitmask, the form of ``/sys/devices/system/node/online``."""
    return format_list(nodes_of(mask))


@dataclass(frozen=True)
class Mempolicy:
    """``struct mempolicy``: what one range, VMA or task asks for.

    ``nodes`` is the contextualised nodemask, ``user_nodes`` what the caller gave; ``mems`` the mems_allowed that
    ``nodes`` was made from, used when a cpuset is rebound.
    """

    mode: int
    flags: int = 0
    nodes: int = 0
    user_nodes: int = 0
    mems: int = 0
    home_node: int | None = None

    @property
    def keeps_user_nodes(self) -> bool:
        """STATIC or RELATIVE: get_mempolicy reports the user's mask and a rebind starts from it."""
        return bool(self.flags & (STATIC_NODES | RELATIVE_NODES))

    @property
    def mode_word(self) -> int:
        """Mode and flags as get_mempolicy returns them."""
        return self.mode | self.flags

    @property
    def reported_nodes(self) -> int:
        """Nodemask as get_mempolicy returns it."""
        if self.mode in (DEFAULT, LOCAL):
            return 0
        return self.user_nodes if self.keeps_user_nodes else self.nodes

    @property
    def interleaves(self) -> bool:
        """Whether the policy spreads pages by a rotation."""
        return self.mode in (INTERLEAVE, WEIGHTED_INTERLEAVE)

    def describe(self) -> str:
        """For people: ``interleave 0-3 (static)``."""
        flags = [name for name, bit in MODE_FLAGS.items() if self.flags & bit]
        text = MODES[self.mode] + (f" {format_nodes(self.nodes)}" if self.nodes else "")
        return text + (f" ({', '.join(flags)})" if flags else "")


def mpol_equal(a: Mempolicy | None, b: Mempolicy | None) -> bool:
    """mm/mempolicy.c: __mpol_equal."""
    if a is None or b is None or a is b:
        return a is b
    if (a.mode, a.flags, a.home_node) != (b.mode, b.flags, b.home_node):
        return False
    if a.keeps_user_nodes and a.user_nodes != b.user_nodes:
        return False
    return a.mode == LOCAL or a.nodes == b.nodes


def sanitize_mpol_flags(mode_word: int) -> tuple[int, int, int]:
    """Split a mode word into (mode, flags, errno); errno is 0 when the word is legal."""
    flags = mode_word & (STATIC_NODES | RELATIVE_NODES | NUMA_BALANCING)
    mode = mode_word & ~flags
    if not 0 <= mode < len(MODES):
        return mode, flags, errno.EINVAL
    if flags & STATIC_NODES and flags & RELATIVE_NODES:
        return mode, flags, errno.EINVAL
    if flags & NUMA_BALANCING and mode not in (BIND, PREFERRED_MANY):
        return mode, flags, errno.EINVAL
    return mode, flags, 0


def get_nodes(mask: int, maxnode: int | None = None, max_numnodes: int = MAX_NUMNODES) -> tuple[int, int]:
    """(nodemask, errno) of mm/mempolicy.c: get_nodes: what the kernel reads of a caller's mask.

    ``maxnode`` is the system call's argument as it is; None means large enough for the mask. The kernel takes one off
    it, so that ``maxnode=n`` reads n - 1 bits: the reason why masks lose their highest node. Bits at or above
    ``max_numnodes`` must be clear, in whole words of 64; 0 wraps around and is refused.
    """
    if maxnode is None:
        return mask, errno.EINVAL if mask >> max_numnodes else 0
    left = (maxnode - 1) % (1 << _BITS_PER_LONG)
    if left > _MAX_BITS:
        return 0, errno.EINVAL
    while left > max_numnodes:
        word = mask >> (left - 1) // _BITS_PER_LONG * _BITS_PER_LONG & (1 << _BITS_PER_LONG) - 1
        if left - _BITS_PER_LONG >= max_numnodes:
            left -= _BITS_PER_LONG
        else:
            left = max_numnodes
            word &= ~((1 << max_numnodes % _BITS_PER_LONG) - 1)
        if word:
            return 0, errno.EINVAL
    return mask & (1 << left) - 1, 0


def mpol_new(mode: int, flags: int, nodes: int) -> tuple[Mempolicy | None, int]:
    """(policy, errno). The policy is None for DEFAULT: there is nothing to attach."""
    if mode == DEFAULT:
        return None, errno.EINVAL if nodes else 0
    if mode == PREFERRED and not nodes:
        if flags & (STATIC_NODES | RELATIVE_NODES):
            return None, errno.EINVAL
        mode = LOCAL
    elif mode == LOCAL:
        if nodes or flags & (STATIC_NODES | RELATIVE_NODES):
            return None, errno.EINVAL
    elif not nodes:
        return None, errno.EINVAL
    return Mempolicy(mode, flags, user_nodes=nodes), 0


def mpol_set_nodemask(policy: Mempolicy | None, allowed: int) -> tuple[Mempolicy | None, int]:
    """Contextualise: (policy with ``nodes``, errno). ``allowed`` = the caller's mems_allowed and N_MEMORY."""
    if policy is None or policy.mode == LOCAL:
        return policy, 0
    if policy.flags & RELATIVE_NODES:
        nodes = _relative(policy.user_nodes, allowed)
    else:
        nodes = policy.user_nodes & allowed
    if not nodes:
        return None, errno.EINVAL
    if policy.mode == PREFERRED:
        nodes &= -nodes  # only the lowest-numbered node is kept
    return Mempolicy(policy.mode, policy.flags, nodes, policy.user_nodes, allowed, policy.home_node), 0


def mpol_rebind(policy: Mempolicy | None, allowed: int) -> Mempolicy | None:
    """The policy after its cpuset's mems became ``allowed`` (mpol_rebind_policy and its table of operations)."""
    if policy is None or policy.mode in (DEFAULT, LOCAL):
        return policy
    if not policy.keeps_user_nodes and policy.mems == allowed:
        return policy
    if policy.mode in (PREFERRED, PREFERRED_MANY):
        # mpol_rebind_preferred writes w.cpuset_mems_allowed, which shares its place with w.user_nodemask: with STATIC or
        # RELATIVE the user's mask is lost, and get_mempolicy then reports the new mems.
        return replace(policy, mems=allowed, user_nodes=allowed if policy.keeps_user_nodes else policy.user_nodes)
    if policy.flags & STATIC_NODES:
        nodes = policy.user_nodes & allowed
    elif policy.flags & RELATIVE_NODES:
        nodes = _relative(policy.user_nodes, allowed)
    else:
        nodes = _remap(policy.nodes, policy.mems, allowed)
        policy = replace(policy, mems=allowed)
    return replace(policy, nodes=nodes or allowed)


def _relative(user: int, allowed: int) -> int:
    """nodes_fold then nodes_onto: bit k (modulo the weight of ``allowed``) becomes the k-th set bit of ``allowed``."""
    targets = nodes_of(allowed)
    return nodemask(targets[node % len(targets)] for node in nodes_of(user)) if targets else 0


def _remap(nodes: int, old: int, new: int) -> int:
    """lib/bitmap.c: bitmap_remap: by position in ``old`` to the same position in ``new``, others unchanged."""
    positions, targets = nodes_of(old), nodes_of(new)
    if not targets:
        return nodes
    return nodemask(
        targets[positions.index(node) % len(targets)] if node in positions else node for node in nodes_of(nodes)
    )


class SharedPolicy:
    """``struct shared_policy`` of an inode: disjoint ranges of 4 KiB page offsets, each with a policy.

    Linux keeps an rb-tree; the answer is that of a sorted list. Adjacent ranges with equal policies stay apart, as in
    the kernel, because each costs its own ``sp_node``.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._policies: list[Mempolicy] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, Mempolicy]]:
        return iter(zip(self._starts, self._ends, self._policies, strict=True))

    def copy(self) -> SharedPolicy:
        """The same ranges, which change apart."""
        made = SharedPolicy()
        made._starts, made._ends, made._policies = self._starts.copy(), self._ends.copy(), self._policies.copy()
        return made

    def between(self, start: int, end: int) -> list[tuple[int, int, Mempolicy]]:
        """Ranges that reach into ``[start, end)``."""
        near = slice(bisect.bisect_right(self._ends, start), bisect.bisect_left(self._starts, end))
        return list(zip(self._starts[near], self._ends[near], self._policies[near], strict=True))

    def lookup(self, index: int) -> Mempolicy | None:
        """Policy at page offset ``index``, or None."""
        position = bisect.bisect_right(self._starts, index) - 1
        return self._policies[position] if position >= 0 and index < self._ends[position] else None

    def set(self, start: int, end: int, policy: Mempolicy | None) -> None:
        """Replace ``[start, end)`` by ``policy``; None deletes (mm/mempolicy.c: shared_policy_replace).

        An empty range changes nothing: mbind and fbind return 0 before they get here.
        """
        if start >= end:
            return
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        pieces: list[tuple[int, int, Mempolicy]] = []
        for position in range(first, last):
            low, high, kept = self._starts[position], self._ends[position], self._policies[position]
            if low < start:
                pieces.append((low, start, kept))
            if high > end:
                pieces.append((end, high, kept))
        if policy is not None:
            pieces.append((start, end, policy))
        pieces.sort(key=lambda piece: piece[0])
        self._starts[first:last] = [piece[0] for piece in pieces]
        self._ends[first:last] = [piece[1] for piece in pieces]
        self._policies[first:last] = [piece[2] for piece in pieces]

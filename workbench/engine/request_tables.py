"""What the pages of a file ask of the placement kernel: policies in force, as rows of a request table.

Linux: ``mm/mempolicy.c: policy_nodemask, mpol_shared_policy_lookup``; the rows are :class:`workbench.kernels.placement.Requests`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine.booted_host import BootedHost
from workbench.engine.objects import Inode, Thread
from workbench.engine.policy_request import policy_nodemask
from workbench.intervals import Int64s, in_intervals, no_intervals
from workbench.kernels import placement

_SMALL, _REMEMBERED = 16, 256  # rows of request tables that are remembered, and how many tables are

Row = tuple[int, int, int, np.ndarray, np.ndarray]
"""What a request asks: kind, start node, passes, nodes, filters (:class:`workbench.kernels.placement.Requests`)."""


class RequestTables(BootedHost):
    """The host with the requests that were asked of it, remembered."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(scenario, cancelled)
        self._asked: dict[tuple[Any, ...], tuple[placement.Requests, Int64s]] = {}

    def policy_ranges(
        self, inode: Inode, order: int, holes: Int64s, span: tuple[int, int] | None = None, step: int = 1
    ) -> tuple[Int64s, list[mp.Mempolicy | None]]:
        """Shared policy ranges near ``holes`` in folios, int64 (n, 2), and their policies; the last one is None, for the rest.

        A huge folio gets the policy of the 4 KiB page of it that is touched first: its first one, or upwards the first of
        ``span``, downwards (``step`` -1) its last one or the last of ``span``.
        """
        if not inode.shared_policy or (order and inode.kind != "memfd" and not self.rules.file_policy):
            return no_intervals(), [None]
        extents = inode.shared_policy.between(int(holes[0, 0]) << order, int(holes[-1, 1]) << order)
        policies = [*(policy for _, _, policy in extents), None]
        pages = np.array([(start, end) for start, end, _ in extents], np.int64).reshape(-1, 2)
        if not order or not extents:
            return pages, policies
        ranges = -(-pages >> order) if step > 0 else pages >> order
        if span is None:
            return ranges, policies
        touched = span[0] if step > 0 else span[1] - 1
        if touched & ((1 << order) - 1) == (0 if step > 0 else (1 << order) - 1):
            return ranges, policies
        return _with_folio_of(ranges, touched >> order, covering(np.array([touched]), pages)[0], policies)

    def requests(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[placement.Requests, Int64s]:
        """The request table for these tasks and policies, and int64 (tasks, policies) rows of it.

        Remembered: faults one after another mostly ask for the same.
        """
        if len(tasks) * len(policies) > _SMALL:
            return self._new_requests(inode, tasks, policies, order)
        key = (
            inode.ilx_base if inode.kind == "memfd" else -1, inode.movable, order > 0, self.cpusets_enabled, self.mems_allowed,
            *policies, *((task.index, task.nid, task.policy) for task in tasks),
        )  # fmt: skip
        if key not in self._asked:
            if len(self._asked) > _REMEMBERED:
                self._asked.clear()
            self._asked[key] = self._new_requests(inode, tasks, policies, order)
        return self._asked[key]

    def _new_requests(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[placement.Requests, Int64s]:
        rows, row_of = self._request_rows(inode, tasks, policies, order)
        return self.request_table(rows), row_of

    def _request_rows(
        self, inode: Inode, tasks: list[Thread], policies: list[mp.Mempolicy | None], order: int
    ) -> tuple[list[tuple[int, int, Row]], Int64s]:
        """Rows for :meth:`request_table`, and int64 (tasks, policies) which of them each pair has.

        Equal policies share a row, so that a thousand ranges with one policy are one request.
        """
        distinct: dict[tuple[int, int, mp.Mempolicy | None], int] = {}
        row_of = np.empty((len(tasks), len(policies)), np.int64)
        rows: list[tuple[int, int, Row]] = []
        base = inode.ilx_base if inode.kind == "memfd" else -1
        for t, task in enumerate(tasks):
            for p, policy in enumerate(policies):
                effective = policy if policy is not None else task.policy
                key = (task.index, task.nid, effective)
                if key not in distinct:
                    distinct[key] = len(rows)
                    rows.append((task.index, base, self._policy_nodemask(effective, task.nid, inode, order)))
                row_of[t, p] = distinct[key]
        return rows, row_of

    def request_table(self, rows: list[tuple[int, int, Row]]) -> placement.Requests:
        """The request table of rows: row of the rotation, base of the interleave index (-1: the rotation), what is asked."""
        if len(rows) == 1:
            ((task, index_base, one),) = rows
            ints = np.array([*one[:3], task, index_base], np.int64).reshape(5, 1)
            return placement.Requests(
                ints[0], ints[1], one[3][None].copy(), one[4][None].copy(), ints[2], ints[3], ints[4]
            )
        kind, start, passes, task_row, base = (np.zeros(len(rows), np.int64) for _ in range(5))
        nodes, filters = np.zeros((len(rows), self.nodes), bool), np.zeros((len(rows), 2, self.nodes), bool)
        for row, (task, index_base, asked) in enumerate(rows):
            task_row[row], base[row] = task, index_base
            kind[row], start[row], passes[row], nodes[row], filters[row] = asked
        return placement.Requests(kind, start, nodes, filters, passes, task_row, base)

    def kernel_requests(self, task: Thread, by_policy: bool) -> placement.Requests:
        """The request table of :meth:`kernel_request` alone, remembered."""
        key = (
            task.index,
            task.nid,
            task.policy if by_policy else None,
            by_policy,
            self.cpusets_enabled,
            self.mems_allowed,
        )
        if key not in self._asked:
            requests = self.request_table([(task.index, -1, self.kernel_request(task, by_policy))])
            self._asked[key] = requests, np.zeros((1, 1), np.int64)
        return self._asked[key][0]

    def kernel_request(self, task: Thread, by_policy: bool) -> Row:
        """What pages ask that the kernel allocates for itself in a call of ``task``: by its policy, or on its own node.

        mm/mempolicy.c: alloc_pages_noprof; with a node given (mm/slub.c: new_slab) no policy counts.
        """
        allowed = self.mask(self.mems_allowed) if self.cpusets_enabled and by_policy else np.ones(self.nodes, bool)
        policy = task.policy if by_policy else None
        return policy_nodemask(policy, task.nid, self.node_ids, allowed, self.has_normal_memory.astype(bool))

    def _policy_nodemask(
        self, policy: mp.Mempolicy | None, nid: int, inode: Inode, order: int
    ) -> tuple[int, int, int, np.ndarray, np.ndarray]:
        """What a policy asks of the engine for a folio of this inode: (kind, start, passes, nodes, filters)."""
        allowed = self.mask(self.mems_allowed) if self.cpusets_enabled else np.ones(self.nodes, bool)
        # apply_policy_zone: BIND to nodes whose memory is all ZONE_MOVABLE is ignored for guest_memfd.
        everywhere = inode.movable or (order > 0 and not self.design.from_zones)
        bindable: np.ndarray = np.ones(self.nodes, bool) if everywhere else self.has_normal_memory
        return policy_nodemask(policy, nid, self.node_ids, allowed, bindable)


def _with_folio_of(
    ranges: Int64s, index: int, row: int, policies: list[mp.Mempolicy | None]
) -> tuple[Int64s, list[mp.Mempolicy | None]]:
    """The same ranges and policies, but folio ``index`` under the policy of ``row`` alone (the last: none)."""
    out, chosen = [], []
    for position, (low, high) in enumerate(ranges.tolist()):
        for part in ((low, min(high, index)), (max(low, index + 1), high)):
            if part[0] < part[1]:
                out.append(part)
                chosen.append(policies[position])
    if row < len(ranges):
        out.append((index, index + 1))
        chosen.append(policies[row])
    order = np.argsort([low for low, _ in out], kind="stable") if out else np.empty(0, np.int64)
    sorted_ranges = np.array([out[k] for k in order], np.int64).reshape(-1, 2)
    return sorted_ranges, [*(chosen[k] for k in order), policies[-1]]


def covering(pages: Int64s, ranges: Int64s) -> Int64s:
    """Index of the range that covers each page; ``len(ranges)`` where none does."""
    position = np.searchsorted(ranges[:, 0], pages, side="right") - 1
    ends = np.concatenate((ranges[:, 1], [np.iinfo(np.int64).min]))
    return np.where(pages < ends[position], position, len(ranges))


def split_at(holes: Int64s, ranges: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Cut holes where policy ranges begin and end: (start, end, index of the covering range), ascending."""
    if not len(ranges):
        return holes[:, 0], holes[:, 1], np.zeros(len(holes), np.int64)
    if len(ranges) == 1 and ranges[0, 0] <= holes[0, 0] and holes[-1, 1] <= ranges[0, 1]:
        return holes[:, 0], holes[:, 1], np.zeros(len(holes), np.int64)
    near = ranges[(ranges[:, 1] > holes[0, 0]) & (ranges[:, 0] < holes[-1, 1])]
    edges = np.unique(np.concatenate((holes.ravel(), near.ravel())))
    low, high = edges[:-1], edges[1:]
    keep = in_intervals(low, holes)
    return low[keep], high[keep], covering(low[keep], ranges)

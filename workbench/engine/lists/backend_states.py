"""Single pages of a guest_memfd whose conversions are out of place, while a list of calls runs in the kernel.

Where pages are looked at one by one (pins, poison, devices) the tracked file has to be told what the list has done: which pages
came, which left, what KVM maps. The host reaches no page of such a file, so that who pins, or maps for a device, is refused. All
that is one stream of the tracked file (:mod:`workbench.engine.lists.tracked_faults`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench import scenario as sc
from workbench.engine.lists.tracked_faults import (
    POISONED_PAGES,
    States,
    after_each,
    page_by_page,
    row_of_call,
    row_of_poison,
)
from workbench.engine.objects import Inode
from workbench.engine.system import System
from workbench.intervals import Int64s
from workbench.kernels import backend_nodes as kernel
from workbench.kernels.folios import run as folio
from workbench.kernels.two_backends import LOOK, PRIVATE, SET_ATTRIBUTES, SHARED_NOW
from workbench.tracking.folio_file import ConversionFile
from workbench.units import PAGE_SIZE

CALLS = (sc.Pin, sc.Unpin, sc.Hwpoison, sc.IommuMap, sc.IommuUnmap)
"""Calls on single pages, which leave both files as they are."""
Call = sc.Pin | sc.Unpin | sc.Hwpoison | sc.IommuMap | sc.IommuUnmap
Row = tuple[int, int, int, int, int, int]


class Outcomes(NamedTuple):
    """What came of n calls."""

    errors: list[int]
    offsets: list[int]
    """Byte offsets that errors name; -1: none."""
    marked: list[int]
    """Pages that memory failure marked."""
    states: States


def possible(system: System, inode: Inode) -> bool:
    """Whether calls on single pages of a file are refused, or poison them: nobody can map it, and nobody holds a page."""
    tracked = inode.tracked
    if system.conversions is None:
        return True
    if not isinstance(tracked, ConversionFile) or inode.evicted or inode.flags or inode.kept or inode.areas:
        return False
    return system.design.device_access == "pinned" and not len(tracked.pinned())


def row_of(call: Call, inode: Inode) -> Row | None:
    """A call on single pages as a row of a stream of the tracked file, which it only reads or poisons; None: it does more."""
    if isinstance(call, sc.Hwpoison):
        return row_of_poison(call, inode, POISONED_PAGES)
    if isinstance(call, sc.IommuMap):
        return folio.PIN, call.offset, call.length or 0, folio.DEVICE, 0, 0
    if isinstance(call, sc.IommuUnmap):  # of which there is nothing
        return folio.UNPIN, call.offset, 0, folio.DEVICE, 0, 0
    return None if call.kind == "transient" else row_of_call(call, inode)


def carry_out(
    system: System, inode: Inode, given: kernel.Calls, rows: Int64s, shared: int, done: int, begun: bool
) -> Outcomes:
    """Tell the tracked file of the first ``done`` calls, and of one more that was begun before memory ran out.

    ``rows`` int64 (n, 6): of calls on single pages. ``shared``: gfns that were shared before.
    """
    first = inode.entered[0]
    last = int(given.parts[done - 1, kernel.PART_ROWS]) if done else first
    allocation, page, zone = inode.map.placed_by(first, last)
    put = np.zeros((len(page), 6), np.int64)
    put[:, folio.OP], put[:, folio.OFFSET], put[:, folio.NODE] = folio.INSERT, page * PAGE_SIZE, system.zone_node[zone]
    of_put = np.searchsorted(given.parts[:done, kernel.PART_ROWS], first + allocation, side="right")
    inode.entered[0] = last
    parts = [(put, of_put)]
    count = done + begun
    op, part = given.stream[:count, folio.OP], given.parts[:count]
    was = np.append(shared, given.counts[: count - 1, SHARED_NOW])[:count]
    some = part[:, kernel.PART_HIGH] > part[:, kernel.PART_LOW]
    converts = some & (op == folio.CONVERT)
    sets = converts | ((op == SET_ATTRIBUTES) & (given.counts[:count, SHARED_NOW] != was))
    unmap = given.stream[:count][sets]
    unmap[:, folio.OP], unmap[:, folio.ARGUMENT] = folio.UNMAP, 0
    parts.append((unmap, np.flatnonzero(sets)))
    leaves = (op == folio.PUNCH) | (converts & (given.stream[:count, folio.ARGUMENT] == 1))
    touches = (op == folio.GUEST_FAULT) & (part[:, kernel.PART_TREE] == PRIVATE) & (np.arange(count) < done)
    for which, name, argument in ((leaves, folio.PUNCH, 0), (touches, folio.GUEST_FAULT, folio.AS_IT_IS)):
        of = np.zeros((int(which.sum()), 6), np.int64)
        low, high = part[which, kernel.PART_LOW], part[which, kernel.PART_HIGH]
        of[:, folio.OP], of[:, folio.ARGUMENT] = name, argument
        of[:, folio.OFFSET], of[:, folio.LENGTH] = low * PAGE_SIZE, (high - low) * PAGE_SIZE
        parts.append((of, np.flatnonzero(which)))
    alone = np.flatnonzero(((op == LOOK) | (op == folio.POISON)) & (rows[:count, folio.LENGTH] > 0))
    parts.append(page_by_page(rows[alone], alone))
    call = np.concatenate([of for _, of in parts])
    order = np.argsort(call, kind="stable")
    stream, call = np.concatenate([rows for rows, _ in parts])[order], call[order]
    end = np.searchsorted(call, np.arange(done), side="right")
    errors, offsets, marked, states = after_each(system, inode, stream, end)
    return Outcomes(errors.tolist(), offsets.tolist(), marked.tolist(), states)

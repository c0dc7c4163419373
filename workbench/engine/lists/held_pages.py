"""Who holds each page of a tracked file while a list of calls goes on, and the frames of pages that left it meanwhile.

A pinned page that leaves the file stays taken until the last pin on it is dropped (``mm/gup.c: unpin_user_pages``); of the pins
of one kind those on what left first go first (:func:`workbench.kernels.folios.access.unpin`). Pages are cells, as
:class:`workbench.engine.lists.tracked_faults.TrackedFaults` has them; of a cell of several pages it is known only whether
somebody may hold one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from workbench.engine.kept_frames import NO_FRAME, NOWHERE
from workbench.engine.objects import Inode
from workbench.intervals import Int64s
from workbench.kernels import faults as kernel
from workbench.kernels.folios import run as folio
from workbench.tracking.folio_file import ConversionFile

_At = tuple[int, int]
"""A row of the list, and which part of it."""
Part = tuple[int, int, int | _At, int]
"""What a row of the kernel does, which is the last: first page, end, and where the frame comes from that it gives back."""


class _Frame(NamedTuple):
    """A page that left the file while held."""

    pins: int
    by_device: int
    origin: int | _At
    """Its zone, :data:`NOWHERE` if it is poisoned, or by what it left the file in this list."""


class HeldPages:
    """Of each cell, how many pins it has of each kind, and whether that is certain."""

    def __init__(self, inode: Inode, tracked: ConversionFile, edges: Int64s, single: np.ndarray, long: bool) -> None:
        """``single`` bool (n,): cells of one page; ``long``: rows are about cells of several pages, too."""
        count, state = len(edges), tracked.state
        self._inode = inode
        of_pages = np.zeros((3, count), np.int64)
        unsure = np.zeros(count, bool)
        if state.numbers[folio.N_ROWS]:
            page = edges[single]
            rows = state.reference_row[page >> folio.ORDER_2M], page & (folio.PAGES_2M - 1)
            of_pages[:, single] = state.references[rows][:, [folio.TRANSIENT, folio.LONG_TERM, folio.DEVICE]].T
            if long:
                unsure = np.append(np.diff(np.searchsorted(tracked.pinned(), edges)) > 0, False) & ~single
        self.pins: list[list[int]] = of_pages.tolist()
        """[3][cells], by kind; not more than there are where it is not certain."""
        self.unsure = bytearray(unsure.astype(np.uint8).tobytes())
        self._left: dict[int, list[_Frame]] = {}
        self._steps: list[tuple[int, int, _Frame | int]] = []
        """Row, page, and the frame that left the file, or the kind of a pin that was dropped on the oldest that has one."""

    def any(self, cell: int) -> bool:
        """Whether somebody certainly holds a page of a cell."""
        transient, pins, devices = self.pins
        return bool(pins[cell] or transient[cell] or devices[cell])

    def pin(self, low: int, high: int, kind: int, certain: bool) -> None:
        """All pages of cells are pinned, if that is ``certain``."""
        if not certain:
            self.unsure[low:high] = b"\1" * (high - low)
            return
        counts = self.pins[kind]
        for cell in range(low, high):
            counts[cell] += 1

    def drop(self, row: int, first: int, low: int, high: int, kind: int) -> list[Part] | None:
        """A row drops a pin of each page of cells [low, high), from page ``first`` on: none if one of them has none.

        Returns parts that give frames back; None: it is not known what it drops.
        """
        counts, unsure = self.pins[kind], False
        drops = [self._oldest(first + cell - low, kind) for cell in range(low, high)]
        for cell, at in zip(range(low, high), drops, strict=True):
            if at is None and not counts[cell]:
                if not self.unsure[cell]:
                    return []
                unsure = True
        if unsure:
            return None if any(at is not None for at in drops) else self._may_drop(low, high, kind)
        parts: list[Part] = []
        for cell, at in zip(range(low, high), drops, strict=True):
            if at is None:
                counts[cell] -= 1
            else:
                parts += self._drop_frame(row, first + cell - low, at, kind)
        return parts

    def _may_drop(self, low: int, high: int, kind: int) -> list[Part]:
        self.unsure[low:high] = b"\1" * (high - low)
        self.pins[kind][low:high] = [0] * (high - low)
        return []

    def drop_among(self, first: int, end: int, low: int, high: int, kind: int) -> bool:
        """As :meth:`drop`, of pages [first, end) in cells of any size; False: one has left the file while held."""
        left = [page for page, frames in self._left.items() if frames]
        if kind != folio.TRANSIENT and (
            any(first <= page < end for page in left) or len(self._inode.kept.between(first, end))
        ):
            return False
        self._may_drop(low, high, kind)
        return True

    def leave(self, row: int, first: int, low: int, high: int, poisoned: bytearray) -> list[Part]:
        """What a hole of cells of a page each does: what is poisoned stays taken, and so does what is held but in passing."""
        _, pinned, of_device = self.pins
        parts: list[Part] = []
        for page, cell in enumerate(range(low, high), first):
            is_bad, is_held = bool(poisoned[cell]), bool(pinned[cell] or of_device[cell])
            if is_held:
                frame = _Frame(pinned[cell], of_device[cell], NOWHERE if is_bad else (row, len(parts)))
                self._steps.append((row, page, frame))
                self.frames(page).append(frame)
            if is_held or is_bad:
                parts.append((page, page + 1, 1, kernel.LEAVES))
            elif parts and parts[-1][3] == kernel.HOLE:
                parts[-1] = (parts[-1][0], page + 1, 1, kernel.HOLE)
            else:
                parts.append((page, page + 1, 1, kernel.HOLE))
        return parts

    def forget(self, low: int, high: int) -> None:
        """Pages of cells have left the file."""
        for counts in self.pins:
            counts[low:high] = [0] * (high - low)

    def frames(self, page: int) -> list[_Frame]:
        """Of a page, what left the file while held, the oldest first."""
        found = self._left.get(page)
        if found is None:
            found = self._left[page] = [
                _Frame(pins, by_device, zone) for _, zone, pins, by_device, _ in self._inode.kept.of(page).tolist()
            ]
        return found

    def _oldest(self, page: int, kind: int) -> int | None:
        """The oldest frame that left a page and has a pin of a kind."""
        if kind == folio.TRANSIENT or (page not in self._left and page not in self._inode.kept):
            return None
        return next((at for at, frame in enumerate(self.frames(page)) if frame[kind - 1]), None)

    def _drop_frame(self, row: int, page: int, at: int, kind: int) -> list[Part]:
        frames = self.frames(page)
        pins, by_device, origin = frames[at]
        frames[at] = _Frame(pins - (kind == folio.LONG_TERM), by_device - (kind == folio.DEVICE), origin)
        self._steps.append((row, page, kind))
        if frames[at].pins or frames[at].by_device:
            return []
        del frames[at]
        if origin == NOWHERE:
            return []
        return [(0, 0, -1 - origin if isinstance(origin, int) else origin, kernel.GIVES_BACK)]

    def carry_out(self, done: int, zone_of: Callable[[_At], int]) -> None:
        """Enter what the first ``done`` rows of the list have taken out of the file, and what they have dropped.

        ``zone_of``: of what left the file.
        """
        kept = self._inode.kept
        for row, page, what in self._steps:
            if row >= done:
                return
            if isinstance(what, _Frame):
                zone = what.origin if isinstance(what.origin, int) else zone_of(what.origin)
                kept.keep(np.array([[page, zone, what.pins, what.by_device, NO_FRAME]]))
            else:
                kept.drop(page, what)

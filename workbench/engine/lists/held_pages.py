"""Who holds each page of a tracked file while a list of calls goes on, and the frames of pages that left it meanwhile.

A pinned page that leaves the file stays taken until the last pin on it is dropped (``mm/gup.c: unpin_user_pages``); of the pins
of one kind those on what left first go first (:func:`workbench.kernels.folios.access.unpin`). Pages are cells, as
:class:`workbench.engine.lists.cells.Cells` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from workbench.engine.kept_frames import NO_FRAME, NOWHERE, PAGE
from workbench.engine.objects import Inode
from workbench.intervals import Int64s
from workbench.kernels import faults as kernel
from workbench.kernels.folios import run as folio

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

    def __init__(self, inode: Inode, first: list[int], pins: Int64s) -> None:
        """``first``: the first page of each cell; ``pins`` int64 (3, cells)."""
        self._inode, self._first = inode, first
        self.pins: list[list[int]] = pins.tolist()
        """[3][cells], by kind; not more than there are where it is not certain."""
        self.unsure = bytearray(len(first))
        self._before = _before(inode, first)
        self._left = {page: list(frames) for page, frames in self._before.items()}
        """By page, the oldest first."""
        self._steps: list[tuple[int, int, _Frame | int]] = []
        """Row, page, and the frame that left the file, or the kind of a pin that was dropped on the oldest that has one."""

    def any(self, low: int, high: int) -> bool:
        """Whether somebody may hold a page of cells [low, high)."""
        return self.unsure.find(1, low, high) >= 0 or any(any(counts[low:high]) for counts in self.pins)

    def pin(self, low: int, high: int, kind: int, certain: bool) -> None:
        """All pages of cells are pinned, if that is ``certain``."""
        if not certain:
            self.unsure[low:high] = b"\1" * (high - low)
            return
        counts = self.pins[kind]
        for cell in range(low, high):
            counts[cell] += 1

    def drop(self, row: int, low: int, high: int, kind: int) -> list[Part] | None:
        """A row drops a pin of each page of cells [low, high): none if one of them has none.

        Returns parts that give frames back; None: it is not known what it drops.
        """
        counts, first, unsure = self.pins[kind], self._first, False
        drops = [self._oldest(first[cell], kind) for cell in range(low, high)]
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
                continue
            for page in range(first[cell], first[cell + 1]):
                parts += self._drop_frame(row, page, at, kind)
        return parts

    def _may_drop(self, low: int, high: int, kind: int) -> list[Part]:
        self.unsure[low:high] = b"\1" * (high - low)
        self.pins[kind][low:high] = [0] * (high - low)
        return []

    def leave(self, row: int, low: int, high: int, poisoned: bytearray) -> list[Part]:
        """What a hole of cells does: what is poisoned stays taken, and so does what is held but in passing."""
        _, pinned, of_device = self.pins
        parts: list[Part] = []
        for cell in range(low, high):
            first, end = self._first[cell], self._first[cell + 1]
            is_bad, is_held = bool(poisoned[cell]), bool(pinned[cell] or of_device[cell])
            if not (is_held or is_bad) and parts and parts[-1][3] == kernel.HOLE:
                parts[-1] = (parts[-1][0], end, 1, kernel.HOLE)
            elif not is_held:
                parts.append((first, end, 1, kernel.LEAVES if is_bad else kernel.HOLE))
            for page in range(first, end) if is_held else ():
                frame = _Frame(pinned[cell], of_device[cell], NOWHERE if is_bad else (row, len(parts)))
                self._steps.append((row, page, frame))
                self._left.setdefault(page, []).append(frame)
                parts.append((page, page + 1, 1, kernel.LEAVES))
        return parts

    def forget(self, low: int, high: int) -> None:
        """Pages of cells have left the file."""
        for counts in self.pins:
            counts[low:high] = [0] * (high - low)

    def _oldest(self, page: int, kind: int) -> int | None:
        """The oldest frame that left a page and has a pin of a kind."""
        frames = self._left.get(page)
        if not frames or kind == folio.TRANSIENT:
            return None
        return next((at for at, frame in enumerate(frames) if frame[kind - 1]), None)

    def _drop_frame(self, row: int, page: int, at: int, kind: int) -> list[Part]:
        self._steps.append((row, page, kind))
        origin = _drop(self._left[page], at, kind)
        if origin is None or origin == NOWHERE:
            return []
        return [(0, 0, -1 - origin if isinstance(origin, int) else origin, kernel.GIVES_BACK)]

    def carry_out(self, done: int, zone_of: Callable[[_At], int]) -> None:
        """Enter what the first ``done`` rows of the list have taken out of the file, and what they have dropped.

        ``zone_of``: of what left the file.
        """
        now: dict[int, list[_Frame]] = {}
        for row, page, what in self._steps:
            if row >= done:
                break
            if page not in now:
                now[page] = self._before.get(page, [])
            if isinstance(what, _Frame):
                zone = what.origin if isinstance(what.origin, int) else zone_of(what.origin)
                now[page].append(what._replace(origin=zone))
            else:
                frames = now[page]
                _drop(frames, next(at for at, frame in enumerate(frames) if frame[what - 1]), what)
        rows = [
            (page, frame.origin, frame.pins, frame.by_device, NO_FRAME) for page in sorted(now) for frame in now[page]
        ]
        self._inode.kept.replace(np.array(sorted(now), np.int64), np.array(rows, np.int64).reshape(-1, 5))


def _before(inode: Inode, first: list[int]) -> dict[int, list[_Frame]]:
    """What left the file before, of pages with which cells begin: no others are asked for."""
    out: dict[int, list[_Frame]] = {}
    rows = inode.kept.between(first[0], first[-1])
    cells = np.array(first)
    begins = cells[np.searchsorted(cells, rows[:, PAGE], side="right") - 1] == rows[:, PAGE]
    for page, zone, pins, by_device, _ in rows[begins].tolist():
        out.setdefault(page, []).append(_Frame(pins, by_device, zone))
    return out


def _drop(frames: list[_Frame], at: int, kind: int) -> int | _At | None:
    """Drop a pin of a kind on one of the frames; where it came from if nobody holds it any more."""
    pins, by_device, origin = frames[at]
    frames[at] = _Frame(pins - (kind == folio.LONG_TERM), by_device - (kind == folio.DEVICE), origin)
    if frames[at].pins or frames[at].by_device:
        return None
    del frames[at]
    return origin

"""Families of bandwidth-latency curves: how long an access takes at a given load, for every share of reads.

A family is what the Mess benchmark measures of one memory: a latency curve over used bandwidth for each share of reads
in the traffic. Here it is held on two fixed grids, shares of reads (:data:`MIXES`) and loads (:data:`LOADS`, used part
of the highest bandwidth at that share), so that kernels read it without a search.

Measured curves bend back: past saturation bandwidth falls while latency rises. A family ends at its highest bandwidth;
beyond it latency follows from the bytes in flight (Little's law), without a step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench import costs as cost_table
from workbench import safe_yaml
from workbench.data import datasets_path
from workbench.errors import WorkbenchError

MIXES = np.linspace(0.0, 1.0, 21)
"""Shares of reads at which peaks and curves are held."""
LOADS = np.concatenate((np.arange(18) * 0.05, (0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 1.0)))
"""Used parts of the peak at which delays are held."""
NO_IDLE = 0.5
"""A curve that falls below this part of its first latency was not idle there; less is noise of the measurement."""
Points = Sequence[tuple[float, float]]
"""(MB/s, ns) in the order of growing traffic."""


@dataclass(frozen=True)
class Family:
    """One memory or link under every mix of reads and writes.

    idle : ns of an access without load
    peaks : float64 (mixes,), MB/s at :data:`MIXES`; what was not measured is as the nearest measured share
    delays : float64 (mixes, loads), ns over idle at :data:`LOADS`
    measured : shares of reads that were measured, ascending
    source : who measured it
    """

    idle: float
    peaks: np.ndarray
    delays: np.ndarray
    measured: tuple[float, ...]
    source: str = ""

    @property
    def shape(self) -> np.ndarray:
        """float64 (mixes,), peaks relative to that of reads alone."""
        return self.peaks / self.peaks[-1]

    def beyond(self, bandwidth: float) -> Family:
        """The same latencies for memory that delivers ``bandwidth`` MB/s to reads alone; flat beyond the end of the curves."""
        ratio = bandwidth / float(self.peaks[-1])
        delays = np.array([np.interp(np.minimum(LOADS * ratio, 1.0), LOADS, row) for row in self.delays])
        return replace(self, peaks=self.peaks * ratio, delays=delays)

    def latency(self, bandwidth: float, read_share: float) -> float:
        """ns at a used bandwidth in MB/s and a share of reads; inf beyond the peak."""
        peak = float(np.interp(read_share, MIXES, self.peaks))
        if bandwidth > peak:
            return float("inf")
        at_load = [float(np.interp(bandwidth / peak, LOADS, row)) for row in self.delays]
        return self.idle + float(np.interp(read_share, MIXES, at_load))


def _curve(points: Points) -> tuple[float, float, np.ndarray]:
    """Idle latency, peak, and delays at :data:`LOADS` of one measured curve."""
    bandwidth, latency = np.array(points, float).T
    last = int(bandwidth.argmax())
    rising = [0]
    for index in range(1, last + 1):
        if bandwidth[index] > bandwidth[rising[-1]]:
            rising.append(index)
    peak = float(bandwidth[last])
    load = np.concatenate(([0.0], bandwidth[rising] / peak))
    delay = np.maximum.accumulate(np.concatenate(([0.0], latency[rising] - latency[0])))
    return float(latency[0]), peak, np.interp(LOADS, load, delay)


def family(curves: Mapping[float, Points], source: str = "") -> Family:
    """A family from measured points, by share of reads in per cent.

    A curve begins with its point of least traffic, whose latency counts as idle, and needs a second one. Errors name
    the curve.
    """
    if not curves:
        raise WorkbenchError("curves: none; a family needs at least one share of reads")
    for percent in curves:
        if not cost_table.is_number(percent) or not 0 <= percent <= 100:
            raise WorkbenchError(f"curves at {percent} % reads: a share of reads is 0 to 100 %")
    idles, peaks, delays, shares = [], [], [], sorted(curves)
    for percent in shares:
        name = f"curves at {percent:g} % reads"
        try:
            points = np.array(curves[percent], float)
        except (TypeError, ValueError):
            raise WorkbenchError(f"{name}: {repr(curves[percent])[:60]} are no points (MB/s, ns)") from None
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
            raise WorkbenchError(f"{name}: needs two points (MB/s, ns) or more")
        if not np.isfinite(points).all() or (points[:, 0] < 0).any() or (points[:, 1] <= 0).any():
            raise WorkbenchError(f"{name}: bandwidths are numbers from 0 on, latencies above 0")
        if points[:, 0].max() <= 0:
            raise WorkbenchError(f"{name}: no bandwidth above 0")
        last = int(points[:, 0].argmax())
        if last == 0:
            raise WorkbenchError(
                f"{name}: begins with its highest bandwidth; points are in the order of growing traffic"
            )
        if points[: last + 1, 1].min() < NO_IDLE * points[0, 1]:
            raise WorkbenchError(
                f"{name}: {points[0, 1]:g} ns without load and {points[: last + 1, 1].min():g} under it; latency grows"
            )
        idle, peak, delay = _curve([(float(b), float(ns)) for b, ns in points])
        idles.append(idle)
        peaks.append(peak)
        delays.append(delay)
    at = np.array(shares) / 100.0
    grid = np.array([np.interp(MIXES, at, column) for column in np.array(delays).T]).T
    return Family(float(np.median(idles)), np.interp(MIXES, at, peaks), grid, tuple(float(s) for s in at), source)


def duplex_shape(mixed: float | np.ndarray) -> np.ndarray:
    """float64 (mixes,), bandwidth by share of reads relative to reads alone, of a link that carries both ways at once.

    Parameters
    ----------
    mixed : bandwidth at equal reads and writes over that of reads alone; of (n, 1) the shapes are (n, mixes)
    Reads fill one direction and writes the other, so the total is ``1 / max(reads, writes)`` of one direction, twice as much at
    equal reads and writes; requests, headers and what coherence adds to writes take part of it, or more (below 1).
    """
    return np.asarray(np.maximum(MIXES, 1.0 - MIXES) ** -np.log2(mixed))


def bus_shape(mixed: float | np.ndarray) -> np.ndarray:
    """float64 (mixes,), bandwidth by share of reads relative to reads alone, of a bus that turns round for writes.

    Parameters
    ----------
    mixed : bandwidth at equal reads and writes over that of reads alone; of (n, 1) the shapes are (n, mixes)
    The first writes cost most: half of the loss is there at one write in ten (Mess, Xeon 8460Y and Grace).
    """
    lost = np.interp(MIXES, (0.0, 0.5, 0.67, 0.75, 0.9, 1.0), (1.0, 1.0, 0.85, 0.75, 0.5, 0.0))
    return np.asarray(1.0 - (1.0 - mixed) * lost)


@functools.cache
def generic() -> dict[str, Family]:
    """Families by use (dram, hbm, cxl, link) that stand in where a machine has none of its own."""
    document = safe_yaml.load(datasets_path("curves", "bandwidth-latency.yaml"), "curves")
    found = {}
    for entry in document["curves"].values():
        if entry["use"] != "none":
            points = [(float(bandwidth), float(ns)) for bandwidth, ns in entry["points"]]
            found[entry["use"]] = family({float(entry["read_share_percent"]): points}, entry["source"])
    return found

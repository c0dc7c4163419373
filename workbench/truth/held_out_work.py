"""Work on memory that the cost model is asked to predict of machines it was not set on: kernel times, threads, streams.

*kernel times*  clearing huge pages (of 2 MiB or 1 GiB, page by page or at once) and initialising struct pages, one thread: the
mean of the other machines, within what they span; *alike*: of those of the same maker, or of kernels as old
*threads*  the time of one thread is the machine's own; what more of them gain follows from the bandwidth and the curves of its
generation, none of which was set by these times (:func:`workbench.cost.kernel_times.seconds`)
*signs*  STREAM over DRAM and CXL: whether weights of 9:1 gain over DRAM alone, given what each memory delivers alone. Copy and
Scale make the same traffic, and so do Add and Triad; where their published signs differ no model of traffic has both

All of it is modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import costs as cost_table
from workbench.cost import kernel_times, traffic
from workbench.cost.machine import Machine, machine, sampled, with_figures
from workbench.topology.host import Hardware, Host, Node
from workbench.truth import published
from workbench.truth.held_out_values import SPREAD, HeldOut
from workbench.units import PAGE_SIZE

_DRAWS = 48
_WORKS = {"GB/s": lambda value: PAGE_SIZE / value, "ns": lambda value: value}
"""ns of 4 KiB by the unit of a published value."""


@dataclass(frozen=True)
class _Time:
    """One row of ``datasets/published/kernel_times.yaml``: ns of 4 KiB."""

    machine: str
    work: str
    ns: float
    text: str
    maker: str
    age: str

    @property
    def kind(self) -> str:
        """Clearing, or initialising struct pages."""
        return "clear" if self.work.startswith("clear") else self.work

    @property
    def narrow(self) -> tuple[str, str]:
        """What makes times alike: who made a processor that clears, how old the kernel is that initialises."""
        return self.kind, self.maker if self.kind == "clear" else self.age


def _times() -> list[_Time]:
    return [
        _Time(name, work, _WORKS[unit](value), text, maker, age)
        for name, work, value, unit, text, maker, age in _rows("kernel_times")
    ]


def _logs_of_others(row: _Time, alike: Callable[[_Time], object]) -> list[list[float]]:
    """Logarithms of the times of all other machines that are alike, machine by machine."""
    others: dict[str, list[float]] = {}
    for other in _times():
        if other.machine != row.machine and alike(other) == alike(row):
            others.setdefault(other.machine, []).append(math.log(other.ns))
    return list(others.values())


def kernel_work() -> Iterator[HeldOut]:
    """Every time of ``datasets/published/kernel_times.yaml`` from those of the other machines, within what they span."""
    for row in _times():
        others = _logs_of_others(row, lambda one: one.kind)
        every = [log for logs in others for log in logs]
        yield HeldOut(
            "kernel times", row.machine, f"{row.work}: {row.text}", row.ns, math.exp(_mean(others)),
            math.exp(min(every)) / SPREAD, math.exp(max(every)) * SPREAD,
        )  # fmt: skip


def kernel_work_of_a_maker() -> Iterator[HeldOut]:
    """The same from machines of the same maker (clearing) and kernels as old (struct pages).

    The range is as wide to both sides as nine in ten of the other machines' times lie beside what their own others say: what the
    few that are alike span is too narrow, three in five are in it.
    """
    found = [(row, others) for row in _times() if (others := _logs_of_others(row, lambda one: one.narrow))]
    for row, others in found:
        beside = [
            abs(_mean(theirs) - math.log(other.ns))
            for other, theirs in found
            if other.kind == row.kind and other.machine != row.machine
        ]
        wide = math.exp(float(np.quantile(beside, 0.9)))
        middle = math.exp(_mean(others))
        yield HeldOut(
            "kernel times alike", row.machine, f"{row.work}: {row.text}", row.ns, middle, middle / wide, middle * wide
        )


def _mean(machines: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(logs) for logs in machines]))


def thread_ramps() -> Iterator[HeldOut]:
    """Times of ``datasets/published/struct_page_threads.yaml`` with two threads and more, and clearing in ``hugetlb_runtime``."""
    yield from _clearing_ramp()
    moved = cost_table.sample(("struct_page_bytes_moved",), _DRAWS)["struct_page_bytes_moved"]
    alone: dict[str, float] = {}
    for name, generation, channels, mts, cpus, gib, threads, ms in _rows("struct_page_threads"):
        if threads == 1:
            alone[name] = ms
            continue
        pages = gib << 18
        node = Node(id=0, memory_bytes=gib << 30, cpus=tuple(range(cpus)))
        hardware = Hardware(generation=generation, channels=channels, mts=mts)
        host = Host(name=name, nodes=(node,), distances=((10,),), hardware=hardware)
        machines, _ = sampled(host, _DRAWS)
        times = [
            1e3 * kernel_times.seconds(1e6 * alone[name] / pages, pages, threads, bytes_, one, 0, 0)
            for one, bytes_ in zip(machines, moved.tolist(), strict=True)
        ]
        low, high = np.quantile(times[1:], published.RANGE)
        yield HeldOut(
            "threads", name, f"struct pages, {threads} threads", ms, times[0],
            min(float(low), times[0]) * (1 - published.REPEATED), max(float(high), times[0]) * (1 + published.REPEATED),
        )  # fmt: skip


def _clearing_ramp() -> Iterator[HeldOut]:
    """What several threads take for the memory of one node, of a machine of which nothing but the time of one is known."""
    ramp = {row[5]: (row[4], row[6]) for row in _rows("hugetlb_runtime") if row[:2] == _ONE_NODE and row[4] == 100}
    host = Host(name=_ONE_NODE[0], nodes=(Node(id=0, memory_bytes=1 << 37, cpus=tuple(range(36))),), distances=((10,),))
    machines, _ = sampled(host, _DRAWS)
    gib, alone = ramp[1]
    pages = gib << 18
    for threads, (_, seconds) in ramp.items():
        if threads > 1:
            times = [
                kernel_times.seconds(
                    1e9 * alone / pages, pages, threads, kernel_times.CLEAR_BYTES * PAGE_SIZE, one, 0, 0
                )
                for one in machines
            ]
            low, high = np.quantile(times[1:], published.RANGE)
            yield HeldOut(
                "threads", _ONE_NODE[0], f"clearing {gib} GiB, {threads} threads", seconds, times[0],
                min(float(low), times[0]) * (1 - published.REPEATED), max(float(high), times[0]) * (1 + published.REPEATED),
            )  # fmt: skip


_ONE_NODE = ("E7-8895 v3", "1 GiB")


def stream_signs() -> Iterator[HeldOut]:
    """What 9:1 over DRAM and CXL gains over DRAM alone in ``datasets/published/wi_stream.yaml``, in per cent."""
    table = published.read_table("wi_stream")
    threads = int(table.model["threads"])
    nodes = (
        Node(id=0, memory_bytes=1 << 38, cpus=tuple(range(threads)), kind="dram"),
        Node(id=1, memory_bytes=1 << 38, cpus=(), kind="cxl"),
    )
    host = Host(name=table.id, nodes=nodes, distances=((10, 24), (24, 10)))
    draws = cost_table.sample(tuple(cost_table.COSTS), _DRAWS)
    bases = [machine(host)]
    for k in range(1, _DRAWS):
        with cost_table.drawn({name: float(values[k]) for name, values in draws.items()}):
            bases.append(machine(host))
    weighted = [name for name, weights in table.model["columns"].items() if weights == [9, 1]]
    for row in table.rows:
        cell = dict(zip(table.columns, row, strict=True))
        own = {0: float(cell["DRAM only"]), 1: float(cell["CXL only"])}
        gains = [_gain(with_figures(base, own), threads) for base in bases]
        low, high = np.quantile(gains[1:], published.RANGE)
        for column in weighted:
            gain = 100.0 * (cell[column] / cell["DRAM only"] - 1.0)
            yield HeldOut(
                "signs", str(row[0]), column, gain, gains[0], min(float(low), gains[0]), max(float(high), gains[0])
            )


SAME_TRAFFIC = (("Copy", "Scale"), ("Add", "Triad"))
"""Kernels of STREAM that move the same bytes in the same way."""


def signs_possible(rows: Sequence[HeldOut]) -> int:
    """How many signs of :func:`stream_signs` a model can have right that gives the same traffic the same answer."""
    gains: dict[tuple[tuple[str, str], str], list[bool]] = {}
    for row in rows:
        alike = next(pair for pair in SAME_TRAFFIC if row.machine in pair)
        gains.setdefault((alike, row.quantity), []).append(row.published > 0)
    return sum(max(sum(signs), len(signs) - sum(signs)) for signs in gains.values())


def _gain(made: Machine, threads: int) -> float:
    """Per cent that pages spread 9:1 over both nodes gain over all on the first."""
    spread, alone = (
        float(traffic.solve(made, traffic.streams(made, np.array(shares), {0: threads}, "streaming")).bandwidth.sum())
        for shares in ((0.9, 0.1), (1.0, 0.0))
    )
    return 100.0 * (spread / alone - 1.0)


def _rows(name: str) -> tuple[tuple[Any, ...], ...]:
    return published.read_table(name).rows

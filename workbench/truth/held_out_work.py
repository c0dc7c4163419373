"""Work on memory that the cost model is asked to predict of machines it was not set on: kernel times, threads, streams.

*kernel times*  clearing huge pages (of 2 MiB or 1 GiB, page by page or at once) and initialising struct pages, one thread: the
mean of the other machines, within what they span
*threads*  the time of one thread is the machine's own; what more of them gain follows from the bandwidth and the curves of its
generation, none of which was set by these times (:func:`workbench.cost.kernel_times.seconds`)
*signs*  STREAM over DRAM and CXL: whether weights of 9:1 gain over DRAM alone, given what each memory delivers alone. Copy and
Scale make the same traffic, and so do Add and Triad; where their published signs differ no model of traffic has both

All of it is modelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def kernel_work() -> Iterator[HeldOut]:
    """Every time of ``datasets/published/kernel_times.yaml`` from those of the other machines."""
    rows = [(name, work, _WORKS[unit](value), text) for name, work, value, unit, text in _rows("kernel_times")]
    for name, work, ns, text in rows:
        others: dict[str, list[float]] = {}
        for other, same, value, _ in rows:
            if other != name and _kind(same) == _kind(work):
                others.setdefault(other, []).append(value)
        means = [float(np.mean(np.log(values))) for values in others.values()]
        every = [value for values in others.values() for value in values]
        yield HeldOut(
            "kernel times", name, f"{work}: {text}", ns, math.exp(float(np.mean(means))), min(every) / SPREAD,
            max(every) * SPREAD,
        )  # fmt: skip


def thread_ramps() -> Iterator[HeldOut]:
    """Times of ``datasets/published/struct_page_threads.yaml`` with two threads and more."""
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


def _kind(work: str) -> str:
    """Clearing, or initialising struct pages."""
    return "clear" if work.startswith("clear") else work


def _rows(name: str) -> tuple[tuple[Any, ...], ...]:
    return published.read_table(name).rows

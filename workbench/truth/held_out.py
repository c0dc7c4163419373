"""How good the cost model is on what it has not seen: each machine in turn is left out and predicted from the others.

Four questions, with the goals of the model beside them (:data:`QUESTIONS`). Of a machine that is left out no curve, no figure
of its class and no figure of its generation is used:

*loaded latency*  idle latency and peak are its own, the shape of the delay is that of another machine's curves
*peak by mix*  the peak of reads alone is its own, what writes cost is the mean of the other measured families
*remote given local*  its local figure is its own, the ratio is that of the nearest generations of its maker
*generation*  nothing is its own: latency and share of the theoretical peak are those of the nearest generations of its maker

Ranges are what the others span: all of their curves, or as much to both sides as the worst of the other generations lies beside
what its own neighbours say (:func:`neighbour_factors`). Published values are those of
``datasets/profiles`` and of the tables of loaded latency in ``datasets/published``; parameters whose source is an estimate are
neither predicted nor used. All of it is modelled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench import costs as cost_table
from workbench.cost import curves
from workbench.cost import profile as profiles
from workbench.costs import Cost
from workbench.truth import published

LINES = (
    ("nehalem", "sandybridge", "haswell", "broadwell", "skylake", "cascadelake", "icelake", "sapphire-rapids",
     "emerald-rapids", "granite-rapids", "sierra-forest"),
    ("naples", "rome", "milan", "genoa", "turin"),
    ("graviton2", "graviton3", "graviton4", "altra"),
)  # fmt: skip
"""Generations of each maker, in the order in which they came. Nehalem-EX is beside none: its memory is behind buffers."""
FAMILIES = ("epyc-7742", "xeon-8460y", "grace", "skylake-6ch-ddr4")
"""Profiles with measured curves of DRAM."""
SPREAD = 1.1
"""Factor by which ranges that two machines span are widened to both sides."""
_SHARES = frozenset(range(0, 101, 10))
"""Shares of reads, in per cent, at which families are compared."""


@dataclass(frozen=True)
class Question:
    """What is asked, of what is known, and how well it is to be answered (median deviation in per cent)."""

    name: str
    given: str
    goal: float


QUESTIONS = (
    Question("loaded latency", "idle latency and peak", 5.0),
    Question("peak by mix", "peak of reads", 10.0),
    Question("remote given local", "local figure", 10.0),
    Question("generation", "nothing but the generations beside it", 20.0),
)


@dataclass(frozen=True)
class HeldOut:
    """One published value and what is predicted without its machine."""

    question: str
    machine: str
    quantity: str
    published: float
    predicted: float
    low: float
    high: float

    @property
    def deviation(self) -> float:
        """Per cent of the published value."""
        return 100.0 * (self.predicted / self.published - 1.0)

    @property
    def inside(self) -> bool:
        """Whether the published value is in the range."""
        return self.low * (1 - 1e-9) <= self.published <= self.high * (1 + 1e-9)


@functools.cache
def held_out() -> tuple[HeldOut, ...]:
    """Every value that can be predicted without its own machine. Times of the kernel are not among them: each has one source."""
    return (*_loaded_latencies(), *_peaks_by_mix(), *_neighbours())


# ----------------------------------------------------------------------------------------------------- curves


def _families() -> dict[str, curves.Family]:
    out = {}
    for name in FAMILIES:
        family = profiles.read_profile(name).memories[0].family()
        if family is not None:
            out[name] = family
    return out


def _donor(name: str, others: dict[str, curves.Family]) -> str:
    """Whose curves stand in: Xeons for each other, and the Zen machine for everything else, as it does for EPYC."""
    wanted = {"xeon-8460y": "skylake-6ch-ddr4", "skylake-6ch-ddr4": "xeon-8460y"}.get(name, "epyc-7742")
    return wanted if wanted in others else "xeon-8460y"


def _loaded_latencies() -> Iterator[HeldOut]:
    families, scale = _families(), cost_table.COSTS["curve_delay_scale"]
    for name, family in families.items():
        others = {other: one for other, one in families.items() if other != name}
        for share in family.measured:
            peak = float(np.interp(share, curves.MIXES, family.peaks))
            if name != "skylake-6ch-ddr4" and round(share * 100) not in _SHARES:
                continue
            for load in curves.LOADS[(curves.LOADS > 0) & (curves.LOADS < published.SATURATED)][1::2]:
                measured = family.latency(load * peak, share)
                delays = {other: _delay(one, load, share) for other, one in others.items()}
                low = family.idle + scale.low * min(delays.values())
                high = family.idle + scale.high * max(delays.values())
                yield HeldOut(
                    "loaded latency", name, f"{share * 100:.0f} % reads at {load * 100:.0f} % of the peak", measured,
                    family.idle + delays[_donor(name, others)], low * (1 - published.REPEATED), high * (1 + published.REPEATED),
                )  # fmt: skip
    for name in published.table_names():
        table = published.read_table(name)
        if table.model["kind"] != "loaded_latency":
            continue
        for row in published.rows_with_ranges(table):
            if row.role == "predicted":
                yield HeldOut("loaded latency", name, row.label, row.published, row.modelled, row.low, row.high)


def _delay(family: curves.Family, load: float, share: float) -> float:
    peak = float(np.interp(share, curves.MIXES, family.peaks))
    return family.latency(min(load, 1.0) * peak, share) - family.idle


def _peaks_by_mix() -> Iterator[HeldOut]:
    families = {name: family for name, family in _families().items() if len(family.measured) > 2}
    for name, family in families.items():
        others = [one for other, one in families.items() if other != name]
        for share in family.measured:
            if share > 0.99:
                continue
            reads = float(family.peaks[-1])
            shapes = [float(np.interp(share, curves.MIXES, one.shape)) for one in others]
            yield HeldOut(
                "peak by mix", name, f"peak at {share * 100:.0f} % reads",
                float(np.interp(share, curves.MIXES, family.peaks)), reads * float(np.mean(shapes)),
                reads * min(shapes) / SPREAD, reads * max(shapes) * SPREAD,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------ generations

_ASKED = {
    "remote_latency_ratio": "remote given local",
    "remote_bandwidth_ratio": "remote given local",
    "dram_latency": "generation",
    "channel_efficiency": "generation",
}


@dataclass(frozen=True)
class _Beside:
    """A published figure of a generation and the mean of the nearest published ones of its maker."""

    generation: str
    parameter: str
    published: float
    mean: float

    @property
    def factor(self) -> float:
        """How far apart they are, above 1."""
        return math.exp(abs(math.log(self.mean / self.published)))


def _pairs() -> list[_Beside]:
    classes, out = profiles.classes(), []
    for line in LINES:
        for at, name in enumerate(line):
            for parameter in _ASKED:
                here = _published(classes[name], parameter)
                before = next((c for c in (_published(classes[n], parameter) for n in line[:at][::-1]) if c), None)
                after = next((c for c in (_published(classes[n], parameter) for n in line[at + 1 :]) if c), None)
                found = [c.value for c in (before, after) if c is not None]
                if here is not None and found:
                    out.append(_Beside(name, parameter, here.value, math.exp(float(np.mean(np.log(found))))))
    return out


def neighbour_factors() -> dict[str, float]:
    """By parameter: the factor within which nine in ten published figures lie beside the mean of their neighbours.

    Estimates from neighbouring generations in ``datasets/profiles/classes.yaml`` are to have ranges as wide to both sides.
    """
    pairs = _pairs()
    return {
        parameter: math.exp(float(np.quantile([math.log(p.factor) for p in pairs if p.parameter == parameter], 0.9)))
        for parameter in _ASKED
    }


def _neighbours() -> Iterator[HeldOut]:
    pairs = _pairs()
    for pair in pairs:
        others = [p.factor for p in pairs if p.parameter == pair.parameter and p is not pair]
        wide = max(others)
        yield HeldOut(
            _ASKED[pair.parameter],
            pair.generation,
            pair.parameter,
            pair.published,
            pair.mean,
            pair.mean / wide,
            pair.mean * wide,
        )


def _published(of_class: profiles.MachineClass, parameter: str) -> Cost | None:
    cost = of_class.costs.get(parameter)
    return None if cost is None or is_estimate(of_class, cost) else cost


def is_estimate(of_class: profiles.MachineClass, cost: Cost) -> bool:
    """Whether nobody published the value: it is what we make of the generations beside it."""
    return cost.source.removeprefix(f"{of_class.title}: ").startswith("estimate")


# ---------------------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class HeldOutSummary:
    """One question: values, median and worst deviation in per cent, how many lie in their range and how wide that is."""

    question: Question
    values: int
    median: float
    worst: float
    inside: int
    width: float

    @property
    def reached(self) -> bool:
        """Whether the goal of the median deviation is reached."""
        return self.median <= self.question.goal


def summaries(rows: Sequence[HeldOut]) -> list[HeldOutSummary]:
    """How each question was answered."""
    out = []
    for question in QUESTIONS:
        mine = [row for row in rows if row.question == question.name]
        off = np.abs([row.deviation for row in mine])
        width = float(np.median([row.high / row.low for row in mine]))
        inside = sum(row.inside for row in mine)
        out.append(HeldOutSummary(question, len(mine), float(np.median(off)), float(off.max()), inside, width))
    return out

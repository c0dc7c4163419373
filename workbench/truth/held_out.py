"""How good the cost model is on what it has not seen: each machine in turn is left out and predicted from the others.

The questions, with the goals of the model beside them (:data:`QUESTIONS`). Of a machine that is left out no curve and no figure
is used but what is said to be given:

*loaded latency*  idle latency and peak are its own, the shape of the delay is that of another machine's curves
*peak by mix*  the peak of reads alone is its own, what writes cost is the mean of the other machines. Where reads alone use much
less of the channels than those of other machines do, it may be the way to memory that limits them, and writes come on top of
them: the range then goes up to all that the other direction of a full-duplex link carries, and the middle is predicted
*remote given local*  its local figure is its own, the ratio is that of the nearest generations of its maker, or of its class
*generation*  nothing is its own: latency and share of the theoretical peak are those of the nearest generations of its maker
*class*  nothing is its own but the name of its generation: figures of the class, which other machines gave
*kernel times*, *alike*, *threads*, *signs*  see :mod:`workbench.truth.held_out_work`

Ranges are what the others span: all of their curves, or as much to both sides as the worst of the other generations lies beside
what its own neighbours say (:func:`neighbour_factors`). Published values are those of
``datasets/profiles`` and of the tables in ``datasets/published``; parameters whose source is an estimate are neither predicted
nor used, but those of a class that a machine is asked of. All of it is modelled.
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
from workbench.truth import held_out_work as work
from workbench.truth import published
from workbench.truth.held_out_values import SPREAD, HeldOut, Question

LINES = (
    ("nehalem", "sandybridge", "haswell", "broadwell", "skylake", "cascadelake", "icelake", "sapphire-rapids",
     "emerald-rapids", "granite-rapids", "sierra-forest"),
    ("naples", "rome", "milan", "genoa", "turin"),
    ("graviton2", "graviton3", "graviton4", "altra"),
)  # fmt: skip
"""Generations of each maker, in the order in which they came. Nehalem-EX is beside none: its memory is behind buffers."""
FAMILIES = ("epyc-7742", "xeon-8460y", "grace", "skylake-6ch-ddr4")
"""Profiles with measured curves of DRAM."""
NOMINAL = {"epyc-7742": 204.8, "xeon-8460y": 307.2, "grace": 512.0}
"""GB/s of the channels of the machines whose families have several shares of reads."""
_SHARES = frozenset(range(0, 101, 10))
"""Shares of reads, in per cent, at which families are compared."""


QUESTIONS = (
    Question("loaded latency", "idle latency and peak", goal=5.0),
    Question("peak by mix", "peak of reads", goal=10.0),
    Question("remote given local", "local figure", goal=10.0),
    Question("generation", "nothing but the generations beside it", goal=20.0, inside=0.9),
    Question("class", "nothing but its generation", goal=20.0, inside=0.9),
    Question("kernel times", "nothing but other machines", inside=0.8),
    Question("kernel times alike", "machines of its maker, or kernels as old", inside=0.8),
    Question("threads", "the time of one thread"),
    Question("signs", "DRAM and CXL alone", signs=True),
)


@functools.cache
def held_out() -> tuple[HeldOut, ...]:
    """Every value that can be predicted without its own machine. Times of conversions are not among them: one machine has any."""
    return (
        *_loaded_latencies(), *_peaks_by_mix(), *_neighbours(), *_of_a_class(), *work.kernel_work(),
        *work.kernel_work_of_a_maker(), *work.thread_ramps(), *work.stream_signs(),
    )  # fmt: skip


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


@dataclass(frozen=True)
class _Mixes:
    """Peaks of one machine: share of reads -> GB/s; ``nominal`` GB/s of its channels, nan where nobody says."""

    machine: str
    nominal: float
    peaks: dict[float, float]

    def over_reads(self, share: float) -> float:
        """Peak at a share of reads over that of reads alone, between published shares on a line."""
        at = sorted(self.peaks)
        return float(np.interp(share, at, [self.peaks[s] for s in at])) / self.peaks[1.0]


def _mixes() -> list[_Mixes]:
    """Machines with peaks at several shares of reads: measured families, and outputs of MLC and ASCT."""
    out = []
    for name, family in _families().items():
        if len(family.measured) > 2:
            peaks = {s: float(np.interp(s, curves.MIXES, family.peaks)) / 1e3 for s in (*family.measured, 1.0)}
            out.append(_Mixes(name, NOMINAL[name], peaks))
    for name, _, nominal, reads, *mixed, _ in published.read_table("peaks_by_mix").rows:
        peaks = {1.0: reads, **dict(zip((3 / 4, 2 / 3, 1 / 2), mixed, strict=True))}
        out.append(_Mixes(name, nominal or float("nan"), peaks))
    return out


def _peaks_by_mix() -> Iterator[HeldOut]:
    every = _mixes()
    for one in every:
        others = [
            other for other in every if other is not one and other.over_reads(0.5) < 1.0
        ]  # memory limits: writes cost
        used = [other.peaks[1.0] / other.nominal for other in others if np.isfinite(other.nominal)]
        elsewhere = one.peaks[1.0] / one.nominal < np.median(used) / SPREAD
        for share in sorted(set(one.peaks) - {1.0}):
            shapes = [other.over_reads(share) for other in others]
            predicted, low, high = float(np.mean(shapes)), min(shapes) / SPREAD, max(shapes) * SPREAD
            if elsewhere:
                full = min(1.0 / max(share, 1.0 - share), one.nominal / one.peaks[1.0] * max(used) * max(shapes))
                predicted, high = math.sqrt(predicted * full), max(high, full * SPREAD)
            reads, peak = one.peaks[1.0], one.peaks[share]
            yield HeldOut(
                "peak by mix", one.machine, f"peak at {share * 100:.0f} % reads", peak, reads * predicted, reads * low,
                reads * high,
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


def _of_a_class() -> Iterator[HeldOut]:
    """Machines of ``datasets/published/machines_by_generation.yaml``, none of which gave its class the figure that is asked."""
    for name, of, channels, mts, local, far, reads, far_reads, _ in published.read_table("machines_by_generation").rows:
        known = profiles.classes()[of].costs
        nominal = channels * mts * 8 / 1e3 if channels else None
        asked = (
            ("class", "dram_latency", local, 1.0),
            ("class", "channel_efficiency", reads, nominal),
            ("remote given local", "remote_latency_ratio", far, local),
            ("remote given local", "remote_bandwidth_ratio", far_reads, reads),
        )
        for question, parameter, value, scale in asked:
            if value is not None and scale is not None:
                cost = known[parameter]
                yield HeldOut(question, name, parameter, value, cost.value * scale, cost.low * scale, cost.high * scale)


# ---------------------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class HeldOutSummary:
    """One question: values, median and worst deviation in per cent, how many lie in their range and how wide that is.

    Deviations and widths are nan where changes are asked, of which ``signs`` are right; ``signs_possible`` of them can be, if
    what makes the same traffic is to have the same sign.
    """

    question: Question
    values: int
    median: float
    worst: float
    inside: int
    width: float
    signs: int
    signs_possible: int

    @property
    def reached(self) -> bool:
        """Whether the goals are reached: of the median deviation, of the part inside, of all signs that can be right."""
        question = self.question
        return (
            not self.median > question.goal
            and not self.inside < question.inside * self.values
            and self.signs >= self.signs_possible
        )


def summaries(rows: Sequence[HeldOut]) -> list[HeldOutSummary]:
    """How each question was answered."""
    out = []
    for question in QUESTIONS:
        mine = [row for row in rows if row.question == question.name]
        inside = sum(row.inside for row in mine)
        if question.signs:
            right, nan = sum(row.sign_right for row in mine), float("nan")
            out.append(HeldOutSummary(question, len(mine), nan, nan, inside, nan, right, work.signs_possible(mine)))
            continue
        off = np.abs([row.deviation for row in mine])
        width = float(np.median([row.high / row.low for row in mine]))
        out.append(HeldOutSummary(question, len(mine), float(np.median(off)), float(off.max()), inside, width, 0, 0))
    return out

"""How much modelled numbers depend on the parameters of the cost model, over the ranges that the registry states.

The placement is exact and is simulated once; only what is modelled on top of it is computed again. Two views: one
parameter at a time from the low to the high end of its range (a tornado), and shares of the variance when all vary at
once, uniform in the logarithm (Sobol indices: first order by the estimator of Saltelli et al., Computer Physics
Communications 181 (2010), total by that of Jansen, Computer Physics Communications 117 (1999)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results
from workbench.cost import curves
from workbench.errors import WorkbenchError
from workbench.ready import scenario as read_ready
from workbench.variables import Sensitivity

if TYPE_CHECKING:
    from pathlib import Path

    from workbench.scenario import Scenario

Model = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Parameter values by name in, outputs by name out."""

OUTPUTS: dict[str, tuple[str, str, str]] = {
    "latency": ("ns", "loaded latency of a memory access, mean of vCPU nodes", "mean"),
    "bandwidth": ("MB/s", "memory bandwidth of all vCPUs", "sum"),
    "idle_latency": ("ns", "latency on an idle host, mean of vCPU nodes", "mean"),
    "node_load": ("1", "used part of the busiest node's memory bandwidth", "max"),
}
"""Outputs by name: variables of :func:`workbench.cost.traffic.access_cost` as one number each."""


def sensitivity(
    scenario: Scenario | str | Path,
    outputs: Sequence[str] = ("latency", "bandwidth"),
    parameters: Sequence[str] | Mapping[str, tuple[float, float]] | None = None,
    *,
    access: Any = None,
    samples: int = 64,
    seed: int = 0,
    model: Model | None = None,
) -> xr.Dataset:
    """Say which parameters of the cost model a scenario's modelled outputs depend on, and how much.

    Parameters
    ----------
    scenario : a scenario, the name of a ready one or a file; simulated once, and its placement is what is priced
    outputs : names in :data:`OUTPUTS`, or of what ``model`` returns
    parameters : names in :data:`workbench.costs.COSTS`, varied over their ranges, or names with (low, high);
        all that the traffic model samples if left out
    access : access pattern, as :func:`workbench.cost.traffic.access_cost` takes it
    samples : base samples of the variance shares, which take samples x (parameters + 2) evaluations; 0 leaves them out
    seed : of the samples
    model : another function of the parameters to examine, instead of the cost of access

    Returns
    -------
    Dataset over ``output`` and ``parameter`` (strongest first for the first output): ``base`` (output,);
    ``one_at_a_time`` (output, parameter, end) with ``end`` low and high; ``first_order`` and ``total``; and for the
    parameters ``value``, ``low`` and ``high``. All modelled.
    """
    scenario = read_ready(scenario) if scenario is not None else scenario
    names, low, high, value = _ranges(parameters)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise WorkbenchError(f"sensitivity.samples: {samples!r} is not an integer from 0 on")
    if model is None:
        for output in outputs:
            if output not in OUTPUTS:
                raise WorkbenchError(f"sensitivity.outputs: {output!r} is unknown; known are {', '.join(OUTPUTS)}")
    priced = _AccessModel(scenario, access) if model is None else model
    read: set[str] = set() if model is None else set(names)

    def evaluate(rows: np.ndarray) -> np.ndarray:
        if isinstance(priced, _AccessModel):
            found = priced.rows(dict(zip(names, np.ascontiguousarray(rows.T), strict=True)), len(rows), read)
            return np.stack([found[output] for output in outputs], axis=1)
        return np.array([one(dict(zip(names, row, strict=True))) for row in rows.tolist()])

    def one(values: Mapping[str, float]) -> list[float]:
        found = priced(values)
        missing = [output for output in outputs if output not in found]
        if missing:
            raise WorkbenchError(f"sensitivity.outputs: the model has no {missing[0]!r}; it has {', '.join(found)}")
        return [float(found[output]) for output in outputs]

    at_once = np.repeat(value[None], 1 + 2 * len(names), axis=0)
    at_once[1::2][range(len(names)), range(len(names))] = low
    at_once[2::2][range(len(names)), range(len(names))] = high
    base, *changed = evaluate(at_once)
    ends = np.array(changed).reshape(len(names), 2, len(outputs)).transpose(2, 0, 1)
    first, total = sobol(
        lambda unit: evaluate(low * (high / low) ** unit), len(names), samples, seed, len(outputs),
        read=lambda at: names[at] in read,
    )  # fmt: skip
    order = np.argsort(-np.ptp(np.concatenate((ends, base[:, None, None] + 0 * ends[..., :1]), axis=2), axis=2)[0])
    known = cost_table.COSTS
    chosen = [names[at] for at in order]
    inputs = {
        "outputs": outputs, "parameters": dict(zip(names, zip(low, high, strict=True), strict=True)), "access": access,
        "samples": samples, "seed": seed,
    }  # fmt: skip
    return results.make(
        Sensitivity,
        {
            "base": base,
            "one_at_a_time": ends[:, order],
            "first_order": first[:, order],
            "total": total[:, order],
            "value": value[order],
            "low": low[order],
            "high": high[order],
        },
        {
            "output": list(outputs),
            "output_unit": ("output", np.array([OUTPUTS.get(o, ("",))[0] for o in outputs], dtype=np.str_)),
            "parameter": chosen,
            "unit": ("parameter", np.array([known[n].unit if n in known else "" for n in chosen], dtype=np.str_)),
            "end": ["low", "high"],
        },
        provenance=results.provenance(scenario, "studies.sensitivity.sensitivity", **inputs),
        attributes={"samples": samples, "seed": seed} | ({"scenario": scenario.name} if scenario is not None else {}),
    )


def _ranges(
    parameters: Sequence[str] | Mapping[str, tuple[float, float]] | None,
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    if parameters is None:
        from workbench.cost.machine import SAMPLED

        parameters = SAMPLED
    if isinstance(parameters, str):
        parameters = [parameters]
    names = [str(name) for name in parameters]
    if not names or len(set(names)) < len(names):
        raise WorkbenchError("sensitivity.parameters: needs names of parameters, each once")
    low, high, value = [], [], []
    for name in names:
        known = cost_table.COSTS.get(name)
        if isinstance(parameters, Mapping):
            bounds = parameters[name]
            if len(tuple(bounds)) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise WorkbenchError(f"sensitivity.parameters.{name}: {bounds!r} is not (low, high) above 0")
            ends = (float(bounds[0]), float(bounds[1]))
        elif known is None:
            raise WorkbenchError(
                f"sensitivity.parameters: {name!r} is unknown; known are {', '.join(cost_table.COSTS)}"
            )
        else:
            ends = (known.low, known.high)
        low.append(ends[0])
        high.append(ends[1])
        middle = (ends[0] * ends[1]) ** 0.5 if known is None else known.value
        value.append(min(max(middle, ends[0]), ends[1]))
    return names, np.array(low), np.array(high), np.array(value)


class _AccessModel:
    """Prices the placement as :func:`workbench.cost.traffic.access_cost` does, without its Dataset."""

    def __init__(self, scenario: Scenario, access: Any) -> None:
        from workbench.cost import traffic
        from workbench.simulation import simulate

        self._host = scenario.host
        self._placed = simulate(scenario)
        self._access = traffic.access_pattern(access)
        found, number = np.unique(self._placed["vcpu_node"].values, return_counts=True)
        vcpus = {int(n): float(k) for n, k in zip(found, number, strict=True)}
        self._vcpus = traffic.initiators_of(self._access, vcpus)
        self._shares = traffic.SharesBeside(self._placed, self._access) if self._access.pattern == "zipf" else None
        cache = cost_table.value("cache_bytes")
        self._share = traffic.reach(self._placed, self._access, cache).of(np.array([cache]))[0][0]
        self._kept: dict[bytes, np.ndarray] = {}
        nodes = len(self._host.nodes)
        self._at_once = max(1, min(1024, _ROOM // (8 * len(curves.MIXES) * (nodes * nodes + 3 * nodes))))

    def __call__(self, values: Mapping[str, float]) -> dict[str, float]:
        """Outputs under one choice of parameters."""
        found = self.rows({name: np.array([one], float) for name, one in values.items()}, 1, set())
        return {name: float(one[0]) for name, one in found.items()}

    def rows(self, values: Mapping[str, np.ndarray], count: int, read: set[str]) -> dict[str, np.ndarray]:
        """Outputs, float64 (count,) each, under as many choices; the parameters that were looked at are added to ``read``."""
        parts = []
        for begin in range(0, count, self._at_once):
            some = {name: column[begin : begin + self._at_once] for name, column in values.items()}
            parts.append(self._solved(_Noted(some, read), min(self._at_once, count - begin)))
        return dict(zip(OUTPUTS, np.concatenate(parts).T, strict=True))

    def _solved(self, values: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """float64 (count, outputs). Choices of which the accesses meet the same are solved once."""
        from workbench.cost import machine, traffic

        machines = machine.machines(self._host, values) if values else machine.machine(self._host).alone
        share: np.ndarray | None = None
        if self._shares is not None and "cache_bytes" in values:  # what the caches hold depends on their size
            share = self._shares.of(values["cache_bytes"])
        lines = traffic.LINES[self._access.pattern]
        own = traffic.lines_in_flight(machines, self._access.pattern)
        drawn = values[lines] if lines in values else np.broadcast_to(own, count)
        demand = traffic.streams(machines[0], self._share, self._vcpus, self._access).drawn(drawn, share)
        keys = traffic.met(machines, demand)
        out = [self._kept.get(key) for key in keys]
        new = list({key: at for at, key in enumerate(keys) if out[at] is None}.values())
        if new:
            solution = traffic.solve_draws(machines.some(np.array(new)), demand.some(np.array(new)))
            columns = [getattr(np, how)(getattr(solution, name), axis=1) for name, (_, _, how) in OUTPUTS.items()]
            now = dict(zip([keys[at] for at in new], np.stack(columns, axis=1), strict=True))
            if len(self._kept) < _KEPT:
                self._kept |= now
            out = [now[key] if found is None else found for key, found in zip(keys, out, strict=True)]
        return np.array(out)


_KEPT = 1 << 16
"""Solutions that are kept for choices that differ in what does not matter."""
_ROOM = 1 << 25
"""Bytes of the arrays of machines that are solved at once."""


class _Noted(dict[str, np.ndarray]):
    """Parameter values that note which of them the cost model looks at; to check them all is no look."""

    def __init__(self, values: Mapping[str, np.ndarray], read: set[str]) -> None:
        super().__init__(values)
        self._read = read

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> np.ndarray:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


def sobol(
    function: Callable[[np.ndarray], np.ndarray],
    parameters: int,
    samples: int,
    seed: int = 0,
    outputs: int = 1,
    read: Callable[[int], bool] = lambda at: True,
) -> tuple[np.ndarray, np.ndarray]:
    """Sobol indices of a function of the unit cube: first order and total, float64 (outputs, parameters).

    Parameters
    ----------
    function : of points, float64 (n, parameters), to float64 (n, outputs)
    read : whether anybody has looked at a parameter; to change the others changes nothing

    NaN where the function does not vary or ``samples`` is 0. Takes samples x (parameters + 2) points, less those for parameters
    that nobody has looked at.
    """
    if not samples:
        nothing = np.full((outputs, parameters), np.nan)
        return nothing, nothing.copy()
    random = np.random.default_rng(np.random.SeedSequence([seed, 0x50B01]))
    # Latin hypercube in both matrices: less noise than plain draws, for the same number
    a, b = (
        (np.argsort(random.random((samples, parameters)), axis=0) + random.random((samples, parameters))) / samples
        for _ in range(2)
    )
    of_a, of_b = function(a), function(b)
    spread = np.concatenate((of_a, of_b)).var(axis=0)
    first, total = np.empty((2, of_a.shape[1], parameters))
    for at in range(parameters):
        mixed = a.copy()
        mixed[:, at] = b[:, at]
        of_mixed = function(mixed) if read(at) else of_a
        with np.errstate(divide="ignore", invalid="ignore"):
            first[:, at] = ((of_b - of_b.mean(axis=0)) * (of_mixed - of_a)).mean(axis=0) / spread
            total[:, at] = 0.5 * ((of_a - of_mixed) ** 2).mean(axis=0) / spread
    still = spread <= 1e-24 * np.maximum(of_a.mean(axis=0) ** 2, 1e-300)
    first[still] = total[still] = np.nan
    return first, total

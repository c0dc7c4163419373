"""The grid of a sweep: a base scenario, axes over its fields, and what is kept of every cell.

A grid is a value like a scenario: the same grid gives the same cells in the same order on every machine, whoever
computes them, which is what lets a sweep be killed and continued.
"""

from __future__ import annotations

import copy
import functools
import json
import marshal
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import amounts
from workbench.errors import WorkbenchError
from workbench.texts import without_controls
from workbench.units import parse_bytes
from workbench.variables import Simulation

if TYPE_CHECKING:
    from workbench.answer import Answer

MAX_CELLS = 10_000_000
MAX_AXIS = 1_000_000
MAX_CHUNK = 256
"""Cells of a chunk, if a grid does not say: writing one costs little beside so many, and memory holds few."""
_REDUCTIONS = ("mean", "sum", "min", "max", "last")
_DISTRIBUTIONS = ("uniform", "loguniform", "normal", "integers", "choice")


@dataclass(frozen=True)
class Metric:
    """One number, or one per node, kept of every cell: a variable of the result, reduced over its dimensions."""

    name: str
    variable: str
    reduce: str
    per_node: bool = False
    long_name: str = ""

    def attributes(self) -> dict[str, str]:
        """Units, long name, basis and source in a Dataset: those of the variable, if a run has it."""
        long_name = self.long_name or f"{self.reduce} of {self.variable}"
        found = Simulation.variables.get(self.variable)
        if found is None:  # of a run that makes Datasets of its own
            return {"units": "1", "long_name": long_name, "basis": "modelled", "source": "the run given to the sweep"}
        units = "1" if self.reduce == "count" else found.units
        source = {"source": found.source} if found.source else {}
        return {"units": units, "long_name": long_name, "basis": found.basis, **source}


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pages_per_node", "pages_per_node", "sum", True, "folios on the node, all files"),
        Metric("local_share", "local_share", "mean", False, "share of memory on the vCPU's own node, mean of vCPUs"),
        Metric("mean_distance", "mean_distance", "mean", False, "SLIT distance from vCPU to memory, mean of vCPUs"),
        Metric("errors", "event_errno", "count", False, "operations that the kernel refuses"),
    )
}
DEFAULT_METRICS = ("pages_per_node", "local_share", "errors")


@dataclass(frozen=True)
class Axis:
    """One dimension of the store. ``settings[i]`` is what cell i along it changes: dotted field to value."""

    name: str
    fields: tuple[str, ...]
    settings: tuple[tuple[Any, ...], ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.settings)


@dataclass(frozen=True)
class Grid:
    """A validated grid. ``base`` is the scenario as plain mappings; see :meth:`from_mapping` for the YAML."""

    name: str
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    metrics: tuple[Metric, ...]
    chunk: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def cells(self) -> int:
        """Cells in all."""
        return math.prod(self.shape)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Cells of a chunk along each axis: neighbouring cells, at most ``chunk`` or 256, in chunks of about equal size.

        It follows from the grid alone, so that stores made in different ways have the same files.
        """
        room = self.chunk or MAX_CHUNK
        shape = [1] * len(self.axes)
        for axis in reversed(range(len(self.axes))):
            length = len(self.axes[axis])
            shape[axis] = -(-length // -(-length // room))  # the chunks along an axis are as equal as they can be
            if shape[axis] < length:
                break
            room //= length
        return tuple(shape)

    def cell(self, index: Sequence[int]) -> dict[str, Any]:
        """The scenario of one cell as plain mappings, for ``Scenario.from_mapping``; who takes it may change it."""
        from workbench.scenario import set_path

        mapping = marshal.loads(self._base_bytes)
        for axis, position in zip(self.axes, index, strict=True):
            for field, value in zip(axis.fields, axis.settings[position], strict=True):
                set_path(mapping, field, copy.deepcopy(value) if isinstance(value, (dict, list)) else value)
        return mapping

    @functools.cached_property
    def _base_bytes(self) -> bytes:
        """``base`` as bytes: a copy of plain values is read from them in a tenth of the time of ``deepcopy``."""
        return marshal.dumps(dict(self.base))

    def part(self, place: Sequence[slice]) -> Grid:
        """The grid of a block of its cells: what has to travel to who computes them."""
        axes = tuple(
            replace(axis, settings=axis.settings[cut], labels=tuple(axis.labels[cut]))
            for axis, cut in zip(self.axes, place, strict=True)
        )
        return replace(self, axes=axes)

    def chunks(self, steps: Sequence[int] | None = None) -> Iterator[tuple[slice, ...]]:
        """The cells as blocks that are chunks of the store (one with chunks of another shape gives it), in order."""
        steps = steps or self.chunk_shape
        counts = [-(-length // step) for length, step in zip(self.shape, steps, strict=True)]
        for place in np.ndindex(*counts):
            yield tuple(
                slice(at * step, min((at + 1) * step, length))
                for at, step, length in zip(place, steps, self.shape, strict=True)
            )

    def to_mapping(self) -> dict[str, Any]:
        """Everything that decides the cells, as plain values; two grids are the same sweep when this is equal."""
        return {
            "name": self.name,
            "base": self.base,
            "axes": [
                {"name": axis.name, "fields": list(axis.fields), "settings": [list(row) for row in axis.settings]}
                for axis in self.axes
            ],
            "metrics": [[metric.name, metric.variable, metric.reduce, metric.per_node] for metric in self.metrics],
            "chunk": self.chunk,
        }

    def node_ids(self) -> list[int]:
        """Nodes of all hosts in the grid."""
        from workbench.scenario import Scenario

        hosts = [self.base.get("host")]
        for axis in self.axes:
            for position, field in enumerate(axis.fields):
                if field == "host":
                    hosts += [row[position] for row in axis.settings]
        nodes: set[int] = set()
        for host in {json.dumps(host, sort_keys=True): host for host in hosts if host is not None}.values():
            nodes |= {int(node.id) for node in Scenario.from_mapping({"host": host}).host.nodes}
        return sorted(nodes)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Grid:
        """Read a grid from a YAML file, or from YAML text with a line break in it."""
        from workbench.safe_yaml import load_text, named

        folder = Path(path).parent if isinstance(path, Path) or "\n" not in path else Path()
        with named(path, "grid") as text:
            return cls.from_mapping(load_text(text, "grid"), folder)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], folder: Path = Path()) -> Grid:
        """Validate a grid.

        Keys: ``base`` (a Scenario or its mapping, a path, or the name of a ready scenario), ``axes``, and optionally
        ``name``, ``metrics`` and ``chunk`` (cells written at a time; smaller loses less when killed).

        ``axes`` maps a name to one of
        a list: values of the field of that dotted name, as ``guest.memory: [1 GiB, 2 GiB]``;
        ``{field:, values:, labels:}``: the same under another name;
        ``{field:, range: [first, end, step]}`` (end excluded), ``{linspace: [first, last, count]}``,
        ``{geomspace: [first, last, count]}``, ``{spawn: count}`` (independent seeds);
        ``{zip: {field: [...], field: [...]}, labels: [...]}``: fields that change together, one dimension;
        ``{sample: {field: {uniform: [low, high]}, ...}, count:, seed:}``: Latin hypercube, one dimension;
        distributions are uniform, loguniform, normal [mean, deviation], integers [low, high), choice [...].

        Raises WorkbenchError naming the axis.
        """
        if not isinstance(mapping, Mapping):
            raise WorkbenchError(f"grid: {type(mapping).__name__} given; a grid is a mapping with 'base' and 'axes'")
        unknown = set(mapping) - {"name", "base", "axes", "metrics", "chunk", "comment"}
        if unknown:
            raise WorkbenchError(
                f"grid: no key {sorted(map(str, unknown))[0]!r}; a grid has name, comment, base, axes, metrics, chunk"
            )
        if mapping.get("name") is not None:
            _shown("grid.name", str(mapping["name"]))
        base = _base(mapping.get("base"), folder)
        axes_given = mapping.get("axes")
        if not isinstance(axes_given, Mapping) or not axes_given:
            raise WorkbenchError("grid.axes: needs at least one axis, as 'guest.memory: [1 GiB, 2 GiB]'")
        axes = tuple(_axis(str(name), given) for name, given in axes_given.items())
        _check_fields(axes)
        metrics = _metrics(mapping.get("metrics"))
        chunk = mapping.get("chunk")
        if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
            raise WorkbenchError(f"grid.chunk: {chunk!r} is not a number of cells from 1 on")
        grid = cls(str(mapping.get("name") or base.get("name") or "sweep"), base, axes, metrics, chunk)
        if grid.cells > MAX_CELLS:
            raise WorkbenchError(f"grid: {grid.cells:,} cells; at most {MAX_CELLS:,} go into one store")
        return grid


def _base(given: object, folder: Path) -> dict[str, Any]:
    from workbench.safe_yaml import load

    if isinstance(given, Mapping):
        base: object = dict(given)
    elif isinstance(given, (str, Path)) and "\n" not in str(given):
        from workbench.ready import find_scenario

        beside = folder / given
        try:
            base = load(beside if beside.is_file() and not Path(given).is_file() else find_scenario(given), "grid.base")
        except OSError as error:
            raise WorkbenchError(f"grid.base: {str(given)[:60]!r}: {error.strerror}") from None
    elif hasattr(given, "to_mapping"):
        base = given.to_mapping()
    else:
        raise WorkbenchError("grid.base: needs a scenario: a mapping, a path or the name of a ready one")
    if not isinstance(base, dict):
        raise WorkbenchError("grid.base: is not a scenario (a mapping)")
    return json.loads(json.dumps(base))


def _axis(name: str, given: object) -> Axis:
    _shown("grid.axes", name)
    where = f"grid.axes.{name}"
    if not name or "/" in name or len(name) > 100:
        raise WorkbenchError(f"{where}: a name of 1 to 100 characters without '/' is needed")
    if isinstance(given, (list, tuple)):
        given = {"field": name, "values": list(given)}
    if not isinstance(given, Mapping):
        raise WorkbenchError(f"{where}: {given!r} is not a list of values, or a mapping with values, range, zip, ...")
    kinds = [key for key in ("values", "range", "linspace", "geomspace", "spawn", "zip", "sample") if key in given]
    if len(kinds) != 1:
        raise WorkbenchError(f"{where}: give exactly one of values, range, linspace, geomspace, spawn, zip, sample")
    kind = kinds[0]
    allowed = {kind, "labels"} | ({"count", "seed"} if kind == "sample" else {"field"} if kind != "zip" else set())
    for key in given:
        if key not in allowed:
            raise WorkbenchError(f"{where}: no key {str(key)!r} beside {kind!r}; allowed: {', '.join(sorted(allowed))}")
    if kind == "zip":
        fields, settings = _zipped(given["zip"], where)
    elif kind == "sample":
        fields, settings = _sampled(given, where)
    else:
        fields = (str(given.get("field", name)),)
        settings = tuple((value,) for value in _values(kind, given[kind], where))
    if not settings:
        raise WorkbenchError(f"{where}: has no values")
    if len(settings) > MAX_AXIS:
        raise WorkbenchError(f"{where}: {len(settings):,} values; at most {MAX_AXIS:,}")
    settings = tuple(tuple(json.loads(json.dumps(row))) for row in settings)
    return Axis(name, fields, settings, _labels(given.get("labels"), fields, settings, where))


def _values(kind: str, given: object, where: str) -> list[Any]:
    if kind == "values":
        if not isinstance(given, (list, tuple)):
            raise WorkbenchError(f"{where}.values: {given!r} is not a list")
        return list(given)
    if kind == "spawn":
        count = _count(given, f"{where}.spawn")
        words = np.random.SeedSequence(0).generate_state(count, np.uint64)
        return [int(word >> np.uint64(1)) for word in words]
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= 3:
        raise WorkbenchError(f"{where}.{kind}: {given!r} is not a list of up to three numbers")
    numbers = [_number(item, f"{where}.{kind}") for item in given]
    if kind == "range":
        first, end, step = [0, *numbers, 1] if len(numbers) == 1 else [*numbers, 1][:3]
        if step == 0 or (end - first) / step > MAX_AXIS:
            raise WorkbenchError(f"{where}.range: {given!r} has no end, or more than {MAX_AXIS:,} values")
        return [first + step * at for at in range(max(math.ceil((end - first) / step), 0))]
    if len(numbers) != 3:
        raise WorkbenchError(f"{where}.{kind}: {given!r} is not [first, last, count]")
    count = _count(given[2], f"{where}.{kind}")
    if kind == "geomspace" and min(numbers[:2]) <= 0:
        raise WorkbenchError(f"{where}.geomspace: {given!r}: both ends must be above 0")
    points = (np.geomspace if kind == "geomspace" else np.linspace)(float(numbers[0]), float(numbers[1]), count)
    return [float(point) for point in points]


def _number(value: object, where: str) -> int | float:
    if isinstance(value, str):
        return parse_bytes(value, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WorkbenchError(f"{where}: {value!r} is not a number or a size")
    return value


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AXIS:
        raise WorkbenchError(f"{where}: {value!r} is not a count from 1 to {MAX_AXIS:,}")
    return value


def _zipped(given: object, where: str) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    if not isinstance(given, Mapping) or not given or not all(isinstance(v, (list, tuple)) for v in given.values()):
        raise WorkbenchError(f"{where}.zip: needs a mapping of fields to lists of the same length")
    lengths = {str(field): len(values) for field, values in given.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{field}: {length}" for field, length in lengths.items())
        raise WorkbenchError(f"{where}.zip: lists differ in length ({shown})")
    return tuple(map(str, given)), tuple(zip(*given.values(), strict=True))


def _sampled(given: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Latin hypercube: every field's range is cut into ``count`` equally likely parts, each used once."""
    fields = given["sample"]
    if not isinstance(fields, Mapping) or not fields:
        raise WorkbenchError(f"{where}.sample: needs a mapping of fields to distributions")
    count = _count(given.get("count"), f"{where}.count")
    seed = given.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise WorkbenchError(f"{where}.seed: {seed!r} is not an integer from 0 on")
    random = np.random.default_rng(seed)
    columns = []
    for field, distribution in fields.items():
        at = f"{where}.sample.{field}"
        if not isinstance(distribution, Mapping) or len(distribution) != 1:
            raise WorkbenchError(f"{at}: needs one of {', '.join(_DISTRIBUTIONS)}")
        ((kind, arguments),) = distribution.items()
        if kind not in _DISTRIBUTIONS or not isinstance(arguments, (list, tuple)) or not arguments:
            raise WorkbenchError(f"{at}: needs one of {', '.join(_DISTRIBUTIONS)} with a list")
        level = (random.permutation(count) + random.random(count)) / count
        columns.append(_quantiles(str(kind), list(arguments), level, at))
    return tuple(map(str, fields)), tuple(zip(*columns, strict=True))


def _quantiles(kind: str, arguments: list[Any], level: np.ndarray, where: str) -> list[Any]:
    if kind == "choice":
        return [arguments[int(at * len(arguments))] for at in level]
    if len(arguments) != 2:
        raise WorkbenchError(f"{where}.{kind}: {arguments!r} is not a list of two numbers")
    low, high = (_number(item, f"{where}.{kind}") for item in arguments)
    if kind == "normal":
        from statistics import NormalDist

        if high <= 0:
            raise WorkbenchError(f"{where}.normal: deviation {high!r} is not above 0")
        return [NormalDist(low, high).inv_cdf(min(max(float(at), 1e-12), 1 - 1e-12)) for at in level]
    if low >= high or (kind == "loguniform" and low <= 0):
        raise WorkbenchError(f"{where}.{kind}: {arguments!r} is not a range{' above 0' * (kind == 'loguniform')}")
    if kind == "integers":
        return [int(low + int(at * (high - low))) for at in level]
    if kind == "loguniform":
        return [float(low * (high / low) ** at) for at in level]
    return [float(low + at * (high - low)) for at in level]


def _labels(
    given: object, fields: tuple[str, ...], settings: tuple[tuple[Any, ...], ...], where: str
) -> tuple[Any, ...]:
    """Coordinates of an axis: numbers stay numbers, all else is text; places in a zip or sample without labels."""
    if given is not None:
        if not isinstance(given, (list, tuple)) or len(given) != len(settings):
            raise WorkbenchError(f"{where}.labels: needs {len(settings)} labels, one for each value")
        values = list(given)
    elif len(fields) > 1:
        values = list(range(len(settings)))
    else:
        values = [row[0] for row in settings]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not numbers:
        values = [value if isinstance(value, str) else _label_of(value) for value in values]
        for value in values:
            _shown(f"{where}.{'values' if given is None else 'labels'}", value)
    if len(set(values)) < len(values):
        raise WorkbenchError(f"{where}: the same value is there twice; values of an axis must differ (or give labels)")
    return tuple(values)


def _shown(where: str, text: str) -> None:
    """Refuse a text that names cells, in the store and on terminals, if it has characters that these take as commands."""
    try:
        without_controls(text, "\n\t")
    except ValueError as error:
        raise WorkbenchError(f"{where}: {error}") from None


def _label_of(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    return json.dumps(value, sort_keys=True)


def _check_fields(axes: tuple[Axis, ...]) -> None:
    """Names must differ, no two axes may set the same field, and a field must be one of a scenario's."""
    from workbench.scenario import Guest, Scenario

    names = [axis.name for axis in axes]
    fields = [field for axis in axes for field in axis.fields]
    reserved = {"node", "status", "error", "warnings"} | set(METRICS)
    for axis in axes:
        if axis.name in reserved:
            raise WorkbenchError(f"grid.axes.{axis.name}: this name is taken by the store; use another with 'field:'")
        for field in axis.fields:
            where = f"grid.axes.{axis.name}"
            if fields.count(field) > 1:
                raise WorkbenchError(f"{where}: {field!r} is set by two axes")
            above = next((other for other in fields if field.startswith(f"{other}.")), None)
            if above is not None:
                raise WorkbenchError(f"{where}: {field!r} is set by two axes: it is a part of {above!r}")
            first, _, rest = field.partition(".")
            if first not in Scenario.model_fields:
                raise WorkbenchError(f"{where}: a scenario has no field {first!r}; it has {_names(Scenario)}")
            if first == "guest" and rest and rest.split(".")[0] not in Guest.model_fields:
                raise WorkbenchError(f"{where}: guest has no field {rest.split('.')[0]!r}; it has {_names(Guest)}")
    if len(set(names)) < len(names):
        raise WorkbenchError("grid.axes: two axes have the same name")


def _names(model: Any) -> str:
    return ", ".join(model.model_fields)


def _metrics(given: object) -> tuple[Metric, ...]:
    """``[name, ...]`` of built-in ones or variables, or a mapping ``name: {variable:, reduce:, per_node:}``."""
    if given is None:
        return tuple(METRICS[name] for name in DEFAULT_METRICS)
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)):
        given = {str(name): None for name in given}
    if not isinstance(given, Mapping) or not given:
        raise WorkbenchError(f"grid.metrics: {given!r} is neither a list of names nor a mapping")
    found = []
    for name, spec in given.items():
        _shown("grid.metrics", str(name))
        where = f"grid.metrics.{name}"
        if spec is None:
            found.append(METRICS.get(str(name)) or Metric(str(name), str(name), "mean"))
            continue
        if isinstance(spec, str):
            spec = {"variable": spec}
        if not isinstance(spec, Mapping) or set(spec) - {"variable", "reduce", "per_node"}:
            raise WorkbenchError(f"{where}: {spec!r} is not {{variable:, reduce:, per_node:}}")
        reduce = str(spec.get("reduce", "mean"))
        if reduce not in _REDUCTIONS:
            raise WorkbenchError(f"{where}.reduce: {reduce!r} is not one of {', '.join(_REDUCTIONS)}")
        found.append(Metric(str(name), str(spec.get("variable", name)), reduce, bool(spec.get("per_node", False))))
    return tuple(found)


def measure(metric: Metric, found: Answer | xr.Dataset | dict[str, float], nodes: Sequence[int]) -> np.ndarray:
    """One metric of what a cell found: float64 (), or (len(nodes),) with NaN for nodes the cell's host lacks.

    A dict has the numbers themselves.
    """
    if metric.variable not in found:
        names = found if isinstance(found, dict) else found.data_vars if isinstance(found, xr.Dataset) else found.names
        raise WorkbenchError(
            f"metric {metric.name!r}: the result has no variable {metric.variable!r}; it has "
            + ", ".join(sorted(str(name) for name in names))
        )
    dims: tuple[str, ...]
    if isinstance(found, dict):
        return np.float64(found[metric.variable])  # type: ignore[return-value]
    if isinstance(found, xr.Dataset):
        variable = found[metric.variable]
        values, dims = variable.values, tuple(map(str, variable.dims))
    else:
        values, dims = found[metric.variable], Simulation.variables[metric.variable].dims
    if "file" in dims and "file_inode" in found:  # a file of several names is one
        values = np.compress(amounts.one_name_each(found), values, dims.index("file"))
    if metric.reduce == "count":
        return np.float64(np.count_nonzero(values))  # type: ignore[return-value]
    if not metric.per_node:
        return np.float64(_reduced(values, metric.reduce, tuple(range(values.ndim))))  # type: ignore[return-value]
    if "node" not in dims:
        raise WorkbenchError(f"metric {metric.name!r}: {metric.variable!r} has no values by node; leave per_node out")
    ids = found["node"].values if isinstance(found, xr.Dataset) else found.node_ids
    out = np.full(len(nodes), np.nan)
    gone = tuple(at for at, dim in enumerate(dims) if dim != "node")
    out[_places(np.asarray(ids, np.int64).tobytes(), tuple(nodes))] = _reduced(values, metric.reduce, gone)
    return out


@functools.lru_cache(maxsize=64)
def _places(ids: bytes, nodes: tuple[int, ...]) -> np.ndarray:
    """Where the nodes of a host (int64 as bytes) are among those of the grid."""
    where = {node: at for at, node in enumerate(nodes)}
    found = np.frombuffer(ids, np.int64).tolist()
    if unknown := [node for node in found if node not in where]:
        raise WorkbenchError(f"metrics by node: the cell's host has node {unknown[0]}, which no host of the grid has")
    return np.array([where[node] for node in found], np.intp)


def _reduced(values: np.ndarray, reduce: str, axes: tuple[int, ...]) -> np.ndarray:
    if reduce == "last":
        at = tuple(-1 if axis in axes else slice(None) for axis in range(values.ndim))
        return np.asarray(values[at], np.float64)
    numbers = np.asarray(values, np.float64)
    if not numbers.size:
        return np.zeros([size for axis, size in enumerate(numbers.shape) if axis not in axes])
    return np.asarray(getattr(numbers, reduce)(axis=axes))

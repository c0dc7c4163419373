"""Published tables beside what the model says, row by row: ``workbench reproduce``.

``datasets/published/*.yaml`` holds one table each, with its source and a section ``model`` that names the part of the
workbench which answers it and what that part needs to know. A table of your own works the same way:
``reproduce("my-table.yaml")``.

Every row has a class that says what its agreement proves (:data:`CLASSES`):

*set* values gave a parameter and prove nothing; *formula* values are published as, or by, the same formula or constant
that we use, and prove that we copied it right; *derived* values are counts that the engine works out from other inputs
and must agree to the last digit; *calibrated* values come from parameters set on other rows of the same table or of the
same experiment, and test the shape of the model only; *predicted* values come from parameters set by other experiments,
and their deviation is what the model is worth. *Unmodelled* rows say why. They are counted apart. Predicted and
calibrated values have a range, 5 to 95 % of the draws over the parameters' ranges; calibrated ones are widened by the
table's own scatter around the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench import costs as cost_table
from workbench import results, safe_yaml
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.files import is_file
from workbench.units import PAGE_SIZE
from workbench.variables import Published

Role = Literal["set", "formula", "derived", "calibrated", "predicted", "unmodelled"]
CLASSES: dict[str, str] = {
    "derived": "worked out by the engine from other inputs; must agree to the digit",
    "formula": "the same formula or constant as published; must agree to the digit",
    "predicted": "from parameters set by other experiments",
    "calibrated": "from parameters set on other rows of this table or experiment",
    "set": "gave a parameter",
    "unmodelled": "no model, and why",
}
EXACT: tuple[Role, ...] = ("derived", "formula")
RANGED: tuple[Role, ...] = ("predicted", "calibrated")
DRAWS = 48
"""Draws over the ranges of the parameters behind the range of every predicted or calibrated value."""
RANGE = (0.05, 0.95)
SATURATED = 0.97
"""Part of a peak from which on a published latency says more of the injecting threads than of the memory."""
REPEATED = 0.02
"""By how much the same measurement differs from one time to the next; every range is at least that wide to both sides."""
NORMAL_RANGE = 1.645
"""Standard deviations that 5 to 95 % of a normal distribution lie within."""
GIB = 1 << 30
PREDICTED_GOAL = (10.0, 25.0)
"""Median and greatest deviation of predicted rows, in per cent, that the model aims at."""


@dataclass(frozen=True)
class Table:
    """One published table. ``rows`` are as printed; ``model`` says what answers it."""

    id: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    model: dict[str, Any]
    note: str = ""

    def column(self, name: str) -> list[Any]:
        """Values of a column."""
        if name not in self.columns:
            raise WorkbenchError(f"table {self.id}: column {name!r} is not there ({', '.join(self.columns)})")
        return [row[self.columns.index(name)] for row in self.rows]

    def cell(self, label: Any, column: str) -> Any:
        """Value of the row that starts with ``label``."""
        for row in self.rows:
            if row[0] == label:
                return row[self.columns.index(column)]
        raise WorkbenchError(f"table {self.id}: row {label!r} is not there")


@dataclass(frozen=True)
class Row:
    """One value: where it stands, what was published, what the model says."""

    label: str
    quantity: str
    unit: str
    published: float
    modelled: float
    role: Role
    note: str = ""
    low: float = float("nan")
    high: float = float("nan")

    @property
    def deviation(self) -> float:
        """Per cent of the published value; nan where there is nothing to compare."""
        if np.isnan(self.modelled) or np.isnan(self.published):
            return float("nan")
        if self.published == 0:
            return 0.0 if self.modelled == 0 else float("inf")
        return 100.0 * (self.modelled - self.published) / self.published


@dataclass
class _Rows:
    """Collects the rows of one table."""

    rows: list[Row] = field(default_factory=list)

    def add(
        self, label: object, quantity: str, unit: str, published: Any, modelled: float, role: Role, note: str = ""
    ) -> None:
        value = float("nan") if published is None or isinstance(published, str) else float(published)
        self.rows.append(Row(str(label), quantity, unit, value, float(modelled), role, note))

    def unmodelled(self, label: object, quantity: str, published: Any, why: str) -> None:
        self.add(label, quantity, "", published, float("nan"), "unmodelled", why)


Model = Callable[[Table], list[Row]]
MODELS: dict[str, Model] = {}
"""Kinds that a table's ``model`` section may name."""
DESCRIPTIONS: dict[str, str] = {}
"""What each kind answers and the fields it reads from the ``model`` section."""


def _model(kind: str) -> Callable[[Callable[[Table, _Rows], None]], Callable[[Table, _Rows], None]]:
    def register(function: Callable[[Table, _Rows], None]) -> Callable[[Table, _Rows], None]:
        def rows(table: Table) -> list[Row]:
            collected = _Rows()
            function(table, collected)
            return collected.rows

        MODELS[kind] = rows
        DESCRIPTIONS[kind] = " ".join((function.__doc__ or "").replace("``", "").split())
        return function

    return register


# --------------------------------------------------------------------------------------------- tables


def table_names() -> list[str]:
    """Ids of the tables in ``datasets/published``."""
    return sorted(path.stem for path in datasets_path("published").glob("*.yaml"))


def read_table(name: str | Path) -> Table:
    """A table by id, or from a YAML file."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not is_file(path):
            raise WorkbenchError(f"table: {path} does not exist")
    elif str(name) in table_names():
        path = datasets_path("published", f"{name}.yaml")
    else:
        raise WorkbenchError(f"table: {str(name)!r} is unknown; known are {', '.join(table_names())}")
    document = safe_yaml.load(path, f"table {path.name}")
    if not isinstance(document, dict):
        raise WorkbenchError(f"table: {path} holds no mapping")
    missing = [key for key in ("id", "title", "source", "columns", "rows", "model") if key not in document]
    if missing:
        raise WorkbenchError(f"table: {path}: {missing[0]!r} is missing")
    for key in ("columns", "rows"):
        if not isinstance(document[key], list):
            raise WorkbenchError(f"table: {path}: {key}: {document[key]!r} is not a list")
    columns = tuple(str(column) for column in document["columns"])
    for row in document["rows"]:
        if not isinstance(row, list) or not all(value is None or isinstance(value, (str, int, float)) for value in row):
            raise WorkbenchError(f"table: {path}: rows: {row!r} is not a list of numbers and texts")
    rows = tuple(tuple(row) for row in document["rows"])
    for row in rows:
        if len(row) != len(columns):
            raise WorkbenchError(f"table: {path}: a row has {len(row)} values for {len(columns)} columns")
    model = document["model"]
    if not isinstance(model, dict) or model.get("kind") not in (*MODELS, "none"):
        raise WorkbenchError(f"table: {path}: model.kind must be one of none, {', '.join(MODELS)}")
    return Table(
        str(document["id"]), str(document["title"]), str(document["source"]), columns, rows, model,
        str(document.get("note", "")),
    )  # fmt: skip


def reproduce(name: str | Path) -> xr.Dataset:
    """A published table beside the model: :class:`workbench.variables.Published`; attributes name the source."""
    table = read_table(name)
    if table.model["kind"] == "none":
        why = str(table.model.get("why", ""))
        rows = [Row(table.id, "all", "", float("nan"), float("nan"), "unmodelled", why)]
    else:
        try:
            with np.errstate(divide="raise", invalid="raise", over="raise"):  # else warnings, and figures that are none
                rows = rows_with_ranges(table)
        except WorkbenchError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise WorkbenchError(f"table {table.id}: model section or columns do not fit: {error!r}") from error
    return as_dataset(rows, table)


def rows_with_ranges(table: Table) -> list[Row]:
    """What the model says of a table, with the range of every predicted or calibrated value."""
    return _with_ranges(table, MODELS[table.model["kind"]](table))


def _with_ranges(table: Table, rows: list[Row]) -> list[Row]:
    """Rows with the range of every predicted or calibrated value."""
    ranged = [k for k, row in enumerate(rows) if row.role in RANGED]
    if not ranged:
        return rows
    draws = cost_table.sample(tuple(cost_table.COSTS), DRAWS + 1, seed=0)
    drawn = np.empty((DRAWS, len(rows)))
    for k in range(DRAWS):
        with cost_table.drawn({name: float(values[k + 1]) for name, values in draws.items()}):
            drawn[k] = [row.modelled for row in MODELS[table.model["kind"]](table)]
    low, high = np.nanquantile(drawn[:, ranged], RANGE, axis=0)
    scatter = [row.deviation for row in rows if row.role == "calibrated" and np.isfinite(row.deviation)]
    wide = NORMAL_RANGE * float(np.sqrt(np.mean(np.square(scatter)))) / 100.0 if scatter else 0.0
    out = list(rows)
    for at, k in enumerate(ranged):
        row = rows[k]
        below, above = min(low[at], row.modelled), max(high[at], row.modelled)
        if row.role == "calibrated":
            below, above = min(below, row.modelled * (1.0 - wide)), max(above, row.modelled * (1.0 + wide))
        below, above = min(below, row.modelled * (1.0 - REPEATED)), max(above, row.modelled * (1.0 + REPEATED))
        out[k] = replace(row, low=float(max(0.0, below)), high=float(above))
    return out


def reproduce_all(names: Sequence[str] | None = None) -> xr.Dataset:
    """All tables (or those named) in one Dataset, with ``table`` saying which row belongs to which."""
    return combine(reproduce_each(names))


def reproduce_each(names: Sequence[str] | None = None) -> list[xr.Dataset]:
    """All tables (or those named, each once)."""
    wanted = list(names or table_names())
    ids = [read_table(name).id for name in wanted]
    for at, one in enumerate(ids):
        if one in ids[:at]:
            raise WorkbenchError(
                f"table: {wanted[ids.index(one)]!r} and {wanted[at]!r} are both {one!r}; each of them once"
            )
    return [reproduce(name) for name in wanted]


def combine(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Several tables in one Dataset."""
    tables = [name for dataset in datasets for name in results.read_provenance(dataset)["inputs"]["tables"]]
    text = results.provenance(command="truth.published.reproduce_all", tables=tables)
    return results.stack(Published, [dataset.drop_attrs(deep=False) for dataset in datasets], "row", provenance=text)


def as_dataset(rows: Sequence[Row], table: Table) -> xr.Dataset:
    """Rows as a Dataset."""
    values: dict[str, Any] = {"table": np.array([table.id] * len(rows))}
    for name in ("label", "quantity", "unit", "role", "note"):
        values[name] = np.array([getattr(row, name) for row in rows], dtype=str)
    for name in ("published", "modelled", "deviation", "low", "high"):
        values[name] = np.array([getattr(row, name) for row in rows], float)
    return results.make(
        Published,
        values,
        {},
        provenance=results.provenance(command="truth.published.reproduce", tables=[table.id]),
        attributes={"table": table.id, "title": table.title, "source": table.source},
    )


def summary(dataset: xr.Dataset) -> dict[str, float]:
    """How good the model is: counts per class; median and worst deviation and how many lie in their range, for predicted
    and calibrated rows apart; and how many derived or formula values miss (``exact`` counts both)."""
    role = dataset["role"].values
    deviation = np.abs(dataset["deviation"].values)
    exact = deviation[np.isin(role, EXACT)]
    published = dataset["published"].values
    inside = (published >= dataset["low"].values * (1 - 1e-9)) & (published <= dataset["high"].values * (1 + 1e-9))
    out: dict[str, float] = {name: int((role == name).sum()) for name in CLASSES}
    out.update(exact=len(exact), exact_misses=int((exact > 1e-9).sum()))
    for name in RANGED:
        mine = (role == name) & np.isfinite(deviation)
        out[f"{name}_median"] = float(np.median(deviation[mine])) if mine.any() else float("nan")
        out[f"{name}_worst"] = float(deviation[mine].max()) if mine.any() else float("nan")
        out[f"{name}_beyond_goal"] = int((deviation[mine] > PREDICTED_GOAL[1]).sum())
        out[f"{name}_inside"] = int(inside[mine].sum())
    return out


# --------------------------------------------------------------------------------------------- bandwidth, weights


@_model("interleave_bandwidth")
def _interleave_bandwidth(table: Table, out: _Rows) -> None:
    """Streaming threads over pages spread by weights. ``columns``: weights per node; ``set``: columns that give the
    bandwidth of a node alone; ``nodes``: kinds; ``threads``; ``unit``."""
    from workbench.cost import traffic
    from workbench.cost.machine import with_figures
    from workbench.topology.host import Host, Node

    model = table.model
    kinds, threads = model["nodes"], int(model["threads"])
    nodes = tuple(
        Node(id=i, memory_bytes=1 << 38, cpus=tuple(range(threads)) if i == 0 else (), kind=kind)
        for i, kind in enumerate(kinds)
    )
    distances = tuple(tuple(10 if i == j else 24 for j in range(len(kinds))) for i in range(len(kinds)))
    base = traffic.machine(Host(name=table.id, nodes=nodes, distances=distances))
    for row in table.rows:
        alone = {c: row[table.columns.index(c)] for c in model["set"]}
        figures = {int(np.argmax(model["columns"][c])): value for c, value in alone.items()}
        machine = with_figures(base, figures, source=table.source)
        for column, weights in model["columns"].items():
            shares = np.array(weights, float) / sum(weights)
            streams = traffic.streams(machine, shares, {0: threads}, "streaming")
            value = float(traffic.solve(machine, streams).bandwidth.sum())
            role: Role = "set" if column in model["set"] else "calibrated"
            out.add(row[0], column, model["unit"], row[table.columns.index(column)], value, role)


@_model("loaded_latency")
def _loaded_latency(table: Table, out: _Rows) -> None:
    """Latency under load. Columns: ``bandwidth`` (MB/s) and ``latency`` (ns); ``shape``: the profile whose curves give the
    shape; ``reads``: share of reads in per cent. The row of least traffic sets the idle latency and the highest bandwidth
    the peak; rows at 97 % of it or more have no model. ``remark``: what is odd about this machine's latencies."""
    from workbench.cost import profile

    model = table.model
    family = profile.read_profile(model["shape"]).memories[0].family()
    if family is None:
        raise WorkbenchError(f"table {table.id}: profile {model['shape']!r} has no curves")
    share = float(model.get("reads", 100)) / 100.0
    speeds, latencies = (np.array(table.column(model[name]), float) for name in ("bandwidth", "latency"))
    least, peak = int(speeds.argmin()), float(speeds.max())
    own = float(np.interp(share, curves_mixes(), family.peaks))
    for k, (speed, latency) in enumerate(zip(speeds, latencies, strict=True)):
        label = f"{speed / 1000:.1f} GB/s"
        if k == least:
            out.add(label, "latency", "ns", latency, latency, "set", "idle latency")
        elif speed >= SATURATED * peak:
            why = "beyond saturation the wait is what the injecting threads have in flight, which is not published"
            out.unmodelled(label, "latency", latency, why)
        else:
            delay = family.latency(speed / peak * own, share) - family.idle
            delay *= cost_table.value("curve_delay_scale")
            out.add(label, "latency", "ns", latency, latencies[least] + delay, "predicted", model.get("remark", ""))


def curves_mixes() -> np.ndarray:
    """Shares of reads at which families are held."""
    from workbench.cost import curves

    return curves.MIXES


@_model("page_counts")
def _page_counts(table: Table, out: _Rows) -> None:
    """Pages a task's weighted rotation places over successive mappings. ``weights``, ``pages``: columns; ``nodes``:
    columns of the counts. Successive rows with the same weights are mappings of one task."""
    from workbench.scenario import Scenario
    from workbench.simulation import simulate

    model = table.model
    weights_at, pages_at = table.columns.index(model["weights"]), table.columns.index(model["pages"])
    counts_at = [table.columns.index(name) for name in model["nodes"]]
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for row in table.rows:
        groups.setdefault(str(row[weights_at]), []).append(row)
    for weights, rows in groups.items():
        number = [int(w) for w in weights.split(":")]
        operations: list[dict[str, Any]] = [
            {"op": "set_weights", "weights": dict(enumerate(number))},
            {"op": "set_mempolicy", "mode": "weighted_interleave", "nodes": f"0-{len(number) - 1}"},
        ]
        for k, row in enumerate(rows):
            operations.append({"op": "create", "file": f"vma{k}", "size": int(row[pages_at]) * PAGE_SIZE})
            operations.append({"op": "fault", "file": f"vma{k}"})
        memory = PAGE_SIZE * sum(int(row[pages_at]) for row in rows)
        nodes = [{"id": i, "memory_bytes": 4 * memory + GIB, "cpus": [i]} for i in range(len(number))]
        distances = [[10 if i == j else 20 for j in range(len(number))] for i in range(len(number))]
        scenario = Scenario.model_validate(
            {"name": table.id, "host": {"name": table.id, "nodes": nodes, "distances": distances},
             "guest": {"memory": PAGE_SIZE}, "operations": operations}
        )  # fmt: skip
        placed = simulate(scenario)["pages_per_node"]
        for k, row in enumerate(rows):
            for node, at in enumerate(counts_at):
                value = int(placed.sel(file=f"vma{k}", node=node))
                out.add(f"{weights}, {row[pages_at]} pages", table.columns[at], "pages", row[at], value, "derived")


@_model("automatic_weights")
def _automatic_weights(table: Table, out: _Rows) -> None:
    """The kernel's automatic weights. ``cases``: label, bandwidth per node, published weights."""
    from workbench.kernels import mempolicy

    for case in table.model["cases"]:
        bandwidth = np.array([round(1000 * float(b)) for b in case["bandwidth"]], np.int64)
        weights = np.zeros(len(bandwidth), np.int64)
        mempolicy.auto_weights(bandwidth, np.ones(len(bandwidth), bool), weights)
        for node, (published, weight) in enumerate(zip(case["published"], weights, strict=True)):
            note = table.model.get("assumed", "")
            out.add(case["label"], f"weight of node {node}", "1", published, float(weight), "formula", note)
    if "unpublished" in table.model:
        for row in table.rows:
            if row[0] not in {case["label"] for case in table.model["cases"]}:
                out.unmodelled(row[0], "bandwidth matrix", row[1], "an input of the RFC's illustration")


# --------------------------------------------------------------------------------------------- locks


def contended(users: int, own: float, locked: float) -> float:
    """Mean time of an operation when ``users`` cores repeat it: own work, then a section under one common lock.

    Exact mean-value analysis of a closed network with one queue (machine repairman); any time unit.
    """
    waiting, time = 0.0, own + locked
    for n in range(1, users + 1):
        inside = locked * (1.0 + waiting)
        time = own + inside
        waiting = n * inside / time
    return time


def lock_parameters(few: tuple[int, float], many: tuple[int, float]) -> tuple[float, float]:
    """Own and locked time of an operation from its times at two numbers of cores, the first of them uncontended."""
    users, target = many
    total = few[1]
    low, high = 0.0, total
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if contended(users, total - middle, middle) < target else (low, middle)
    # More than one lock holder's worth per operation (batches): the section grows with the users, as measured.
    locked = max(low, target / users) if target > users * total else low
    return max(0.0, total - locked), locked


def _lock_columns(table: Table) -> dict[str, tuple[float, float]]:
    users = [int(u) for u in table.column(table.model["users"])]
    first, last = (users.index(u) for u in table.model["set"])
    return {
        column: lock_parameters((users[first], table.column(column)[first]), (users[last], table.column(column)[last]))
        for column in table.columns
        if column != table.model["users"]
    }


@_model("lock_contention")
def _lock_contention(table: Table, out: _Rows) -> None:
    """Time of an operation against cores. ``users``: column of the cores; ``set``: two numbers of cores; ``unit``."""
    parameters = _lock_columns(table)
    for row in table.rows:
        users = int(row[table.columns.index(table.model["users"])])
        for column, (own, locked) in parameters.items():
            role: Role = "set" if users in table.model["set"] else "calibrated"
            value = contended(users, own, locked)
            out.add(f"{users} cores", column, table.model["unit"], row[table.columns.index(column)], value, role)


@_model("lock_contention_orders")
def _lock_contention_orders(table: Table, out: _Rows) -> None:
    """Times per order at a fixed number of cores, from the parameters of another table. ``parameters``: its id;
    ``users``; ``orders``: order -> its name there."""
    parameters = _lock_columns(read_table(table.model["parameters"]))
    orders = {int(order): name for order, name in table.model["orders"].items()}
    for row in table.rows:
        for column, published in zip(table.columns[1:], row[1:], strict=True):
            allocator, operation = column.split()
            label = f"order {row[0]}"
            if row[0] not in orders:
                out.unmodelled(label, column, published, table.model["why"])
                continue
            own, locked = parameters[f"{allocator} {orders[row[0]]} {operation}"]
            value = contended(int(table.model["users"]), own, locked)
            out.add(label, column, table.model["unit"], published, value, "calibrated", "same benchmark, same machine")


# --------------------------------------------------------------------------------------------- translation


@_model("nested_walks")
def _nested_walks(table: Table, out: _Rows) -> None:
    """References of a nested walk. Columns: guest page, host page, g, h, refs."""
    from workbench.kernels import translation

    for guest, host, g, h, refs in table.rows:
        value = translation.nested_walk_references(int(g), int(h))
        out.add(f"guest {guest}, host {host}", table.columns[4], "references", refs, int(value), "formula")


@_model("page_table_placement")
def _page_table_placement(table: Table, out: _Rows) -> None:
    """Run times with guest and second-stage page tables local or remote (vMitosis).

    A workload's local time and the time either remote table adds describe the workload; they are read from the columns
    in ``set``. The remote node's extra latency under STREAM is that of the curves: remote minus local idle latency,
    plus the local curve's delay at its highest bandwidth (Mess on a Skylake; the table is of a Cascade Lake).
    """
    from workbench.cost import profile

    machine = profile.read_profile("skylake-6ch-ddr4")
    memory, link = machine.memories[0].family(), machine.links[0].family()
    assert memory is not None and link is not None
    local, extra = memory.idle, link.idle - memory.idle
    busy = (extra + memory.delays[-1, -1]) / extra
    for row in table.rows:
        cell = dict(zip(table.columns, row, strict=True))
        base, host, guest = cell["LL"], cell["LR"] - cell["LL"], cell["RL"] - cell["LL"]
        walks = (host + guest) / (extra / local)
        values = {
            "RR": base + host + guest, "LRI": base + busy * host, "RLI": base + busy * guest,
            "RRI": base + busy * (host + guest), "RRIM": base, "TLL": base - walks,
        }  # fmt: skip
        notes = {
            "RRIM": "tables migrated: as local",
            "TLL": "huge pages leave no leaf reference in memory: a bound where the TLB still misses",
        }
        for column in table.columns[1:]:
            if cell[column] is None:
                continue
            if column in table.model["set"]:
                out.add(row[0], column, "s", cell[column], cell[column], "set", "describes the workload")
            elif column in values:
                out.add(row[0], column, "s", cell[column], values[column], "calibrated", notes.get(column, ""))
            else:
                out.unmodelled(row[0], column, cell[column], table.model["why"])


# --------------------------------------------------------------------------------------------- resizing, faults


def _resize_costs() -> dict[str, float]:
    """Costs in ns per 2 MiB and per 4 KiB page, from the registry."""
    cost = cost_table.value
    fault_2m = cost("ept_fault") + 512 * cost("clear_page")
    return {
        "fault_4k": cost("ept_fault") + cost("clear_page"),
        "fault_2m": fault_2m,
        "touch": cost("touch_page"),
        "iommu": cost("iommu_unmap_2m"),
        "populate_vfio": fault_2m + cost("iommu_unmap_2m"),
    }


@_model("resize_times")
def _resize_times(table: Table, out: _Rows) -> None:
    """Times of shrinking and growing a guest, and of touching its pages (hyperalloc-bench out.csv).

    ``gib``: memory resized. What a mechanism without VFIO takes is the mechanism's own cost and marked as set; what
    VFIO adds is predicted from one cost of an IOMMU unmapping, and touching from one cost of a fault and of clearing.
    """
    costs, blocks = _resize_costs(), int(table.model["gib"]) * 512
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    sets = {("base-manual", "fault cost ns/page"), ("huge-manual", "fault cost ns/page"),
            ("huge-manual", "second touch ns/page"), ("huge-manual", "first touch ns/page"),
            ("virtio-mem-movable-vfio", "shrink 18 GiB ms"), ("virtio-mem-movable-vfio", "fault cost ns/page"),
            ("virtio-mem-movable-vfio", "first touch ns/page")}  # fmt: skip
    for mode, cell in cells.items():
        without = mode.removesuffix("-vfio")
        vfio = mode != without
        populated = vfio and "virtio-mem" in mode
        fault = costs["fault_4k"] if mode == "base-manual" else costs["fault_2m"] / 512
        if populated:
            fault = cost_table.value("map_populated_2m") / 512
        values = {
            "shrink 18 GiB ms": cells[without]["shrink 18 GiB ms"] + vfio * blocks * costs["iommu"] / 1e6,
            "grow ms": cells[without]["grow ms"] + populated * blocks * costs["populate_vfio"] / 1e6,
            "second touch ns/page": costs["touch"],
            "fault cost ns/page": fault,
            "first touch ns/page": fault + costs["touch"],
        }
        for column, value in values.items():
            own = not vfio and ("shrink" in column or "grow" in column)
            role: Role = "set" if own or (mode, column) in sets else "calibrated"
            note = "the mechanism's own cost" if own else ""
            if populated and "fault" in column:
                note = "populated at plug time; only the mapping of 2 MiB pages is left"
            if mode == "base-manual" and column == "second touch ns/page":
                note = "4 KiB second-stage mappings miss the TLB on every page, which the cost of a touch leaves out"
            if role == "calibrated" and mode == "llfree-manual-vfio" and column == "grow ms":
                note = "nothing is populated at plug time"
            unit = "ms" if column.endswith("ms") else "ns"
            out.add(mode, column, unit, cell[column], value, role, note)


@_model("resize_rates")
def _resize_rates(table: Table, out: _Rows) -> None:
    """GiB/s of the same mechanisms. Rates without VFIO are the mechanism's own; the rest follows from those costs."""
    costs = _resize_costs()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    per_2m = (2 << 20) / GIB * 1e9  # ns per 2 MiB at 1 GiB/s
    per_4k = PAGE_SIZE / GIB * 1e9
    for mode, cell in rows.items():
        own = rows[mode.removesuffix("+VFIO")]
        vfio = mode.endswith("+VFIO")
        populated = vfio and "virtio-mem" in mode
        fault = costs["fault_4k"] if mode == "virtio-balloon" else costs["fault_2m"] / 512
        if populated:
            fault = cost_table.value("map_populated_2m") / 512
        install = per_4k / (fault + costs["touch"])
        values = {}
        for column in ("reclaim touched", "reclaim untouched", "return"):
            time = per_2m / own[column]
            if vfio and column == "reclaim touched":
                time += costs["iommu"]
            elif populated:
                time += costs["iommu"] if column == "reclaim untouched" else costs["populate_vfio"]
            values[column] = per_2m / time
        values["install (first touch)"] = install
        values["return+install"] = 1.0 / (1.0 / values["return"] + 1.0 / install)
        for column, value in values.items():
            mechanism = not vfio and column in ("reclaim touched", "reclaim untouched", "return")
            note = "the mechanism's own cost" if mechanism else ""
            if populated and column == "install (first touch)":
                note = "populated at plug time; only the mapping of 2 MiB pages is left"
            out.add(mode, column, "GiB/s", cell[column], value, "set" if mechanism else "calibrated", note)


# --------------------------------------------------------------------------------------------- counts


@_model("conversion_profile")
def _conversion_profile(table: Table, out: _Rows) -> None:
    """Cycles of conversions that split or merge, linear in the 4 KiB pages of the folio.

    The cost of a 4 KiB page was set by the 1 GiB column; the 2 MiB one is predicted. ``total``, ``share``, ``splits``,
    ``merges``, ``one``, ``plain``, ``ratio``: rows.
    """
    model = table.model
    large, small = "1G backing", "2M backing"
    cycles = cost_table.value("split_merge_per_page")
    out.add(model["one"], large, "cycles", table.cell(model["one"], large), cycles * (GIB // PAGE_SIZE), "set")
    operations = table.cell(model["splits"], small) + table.cell(model["merges"], small)
    total = table.cell(model["total"], small)
    note = "whether splits before boot are among the 622 is not published"
    share = operations * 512 * cycles / total
    out.add(model["share"], small, "1", table.cell(model["share"], small), share, "calibrated", note)
    plain = cost_table.value("conversion_fixed")
    for column, pages in ((small, 512), (large, GIB // PAGE_SIZE)):
        text = str(table.cell(model["ratio"], column))
        ratio = pages * cycles / plain
        why = f"published as {text}; the mean conversion it is compared with is not; over a plain one it is {ratio:.0f}"
        out.unmodelled(model["ratio"], column, text, why)


@_model("khugepaged_collapse")
def _khugepaged_collapse(table: Table, out: _Rows) -> None:
    """Time that khugepaged holds a range of 2 MiB of which so many pages are missing. ``alloc``: row of taking the huge folio;
    ``least_cleared_before``: missing pages from which on the last column clears before."""
    from workbench.tracking import collapse_times

    plain, before = table.columns[1:]
    alloc = table.model["alloc"]
    draws = {name: cost_table.value(name) for name in collapse_times.PARAMETERS}
    cleared = {**draws, "clear_page_2m": 0.0}
    for missing, waits, waits_less in table.rows:
        if missing == alloc:
            out.add(alloc, plain, "us", waits, draws["collapse_alloc"] / 1e3, "set")
            pages = 512 * draws["clear_page_2m"] / 1e3
            note = "clearing on other machines, page by page; here 97 us for all of it says 21 GB/s, which a cache may give"
            out.add(alloc, before, "us", waits_less, draws["collapse_alloc"] / 1e3 + pages, "calibrated", note)
            continue
        copied = 512 - missing
        value = collapse_times.held(1, copied, draws)[0, 0] / 1e3
        note = "copies and the fixed part from the last column, clearing from other machines"
        out.add(missing, plain, "us", waits, value, "calibrated", note)
        early = missing >= int(table.model["least_cleared_before"])
        value = collapse_times.held(1, copied, cleared if early else draws)[0, 0] / 1e3
        out.add(missing, before, "us", waits_less, value, "set" if missing in (511, 256) else "calibrated")


@_model("vmemmap")
def _vmemmap(table: Table, out: _Rows) -> None:
    """struct page bytes and vmemmap pages of a folio, with and without HVO."""
    from workbench.tracking import struct_pages

    orders = {"4K": 0, "2M": 9, "1G": 18}
    for row in table.rows:
        order = orders[row[0]]
        pages = 1 << order
        size = pages * struct_pages.STRUCT_PAGE
        full = struct_pages.full(order) if order else 0
        kept = size - PAGE_SIZE * struct_pages.restored_by_split(order) if order else size
        values = (pages, size, full or float("nan"), kept, (size - kept) // PAGE_SIZE, 100 * size / (pages * PAGE_SIZE),
                  100 * kept / (pages * PAGE_SIZE))  # fmt: skip
        units = ("pages", "B", "pages", "B", "pages", "%", "%")
        for column, published, value, unit in zip(table.columns[1:], row[1:], values, units, strict=True):
            if published is not None:
                digits = 6 if unit == "%" else 0
                out.add(row[0], column, unit, published, round(value, digits), "formula")


@_model("vmemmap_split")
def _vmemmap_split(table: Table, out: _Rows) -> None:
    """struct pages and vmemmap pages that a split of an HVO folio brings back."""
    from workbench.tracking import struct_pages

    splits = {"1G -> 4K": (18, 0), "1G -> 512x2M, each HVO": (18, 9), "2M -> 4K": (9, 0)}
    for row in table.rows:
        order, into = splits[row[0]]
        allocated = struct_pages.restored_by_split(order, into)
        values = (float(1 << order), allocated, allocated * PAGE_SIZE)
        for column, published, value in zip(table.columns[1:], row[1:], values, strict=True):
            if published is not None:
                out.add(row[0], column, "B" if column == "bytes" else "pages", published, value, "formula")


@_model("rmp")
def _rmp(table: Table, out: _Rows) -> None:
    """Bytes of the reverse map table."""
    from workbench.tracking.confidential import rmp_bytes

    for size, published, share in table.rows:
        ram = int(size.split()[0]) << 40
        value = rmp_bytes(ram)
        out.add(size, table.columns[1], "B", published, value, "formula")
        out.add(size, table.columns[2], "%", share, round(100 * value / ram, 4), "formula")


@_model("pamt")
def _pamt(table: Table, out: _Rows) -> None:
    """TDX physical address metadata: static table, and what dynamic PAMT adds per 2 MiB."""
    from workbench.tracking.confidential import dynamic_pamt_bytes, pamt_bytes

    tib = 1 << 40
    static, dynamic = pamt_bytes([tib]), dynamic_pamt_bytes(tib, 0)[0]
    for mode, share, per_tib, _ in table.rows:
        size = dynamic if mode.startswith("Dynamic") else static
        digits = 3 if mode.startswith("Dynamic") else 1
        out.add(mode, table.columns[1], "%", share, round(100 * size / tib, digits), "formula", "rounded as published")
        scale, unit = (1 << 20, "MiB") if "MiB" in per_tib else (GIB, "GiB")
        published = float(per_tib.strip("~").split()[0])
        digits = 1 if unit == "GiB" else 0
        why = f"{size / scale:.6g} rounded as published" if round(size / scale, digits) == published else (
            f"published as {per_tib}, to two digits; the formula gives {size / scale:.4g}"
        )  # fmt: skip
        if round(size / scale, digits) == published:
            out.add(mode, table.columns[2], unit, published, round(size / scale, digits), "formula", why)
        else:
            out.unmodelled(mode, table.columns[2], per_tib, why)


@_model("accept_exits")
def _accept_exits(table: Table, out: _Rows) -> None:
    """Exits for accepting a chunk: one fault per backing page. ``chunk_bytes``."""
    from workbench.tracking.confidential import accept_exits

    pages = {"4K": PAGE_SIZE, "2M": 2 << 20, "1G": 1 << 30}
    for row in table.rows:
        value = accept_exits(pages[str(row[0]).split()[0]], int(table.model["chunk_bytes"]))
        if isinstance(row[1], str):
            why = f"published as {row[1]}, a bound; one fault for each page makes {np.ceil(value):.0f} of a first chunk"
            out.unmodelled(row[0], table.columns[1], row[1], why)
        else:
            out.add(row[0], table.columns[1], "exits", row[1], value, "formula")
        out.unmodelled(row[0], table.columns[2], row[2], "0 by definition: every page is mapped before the guest runs")


@_model("swiotlb")
def _swiotlb(table: Table, out: _Rows) -> None:
    """Bounce buffer of an SEV or TDX guest: clamp(6 % of memory, 64 MiB, 1 GiB) (mem_encrypt_setup_arch)."""
    from workbench.engine.conversion_streams import swiotlb_request

    for guest, mib, _, large, small in table.rows:
        size = swiotlb_request(int(guest) * GIB)
        label = f"{guest} GiB"
        out.add(label, table.columns[1], "MiB", mib, size >> 20, "formula")
        out.add(label, table.columns[3], "pages", large, size >> 21, "formula")
        out.add(label, table.columns[4], "pages", small, (size >> 20) << 8, "formula", "whole MiB, as in the table")


@_model("struct_page_initialisation")
def _struct_page_initialisation(table: Table, out: _Rows) -> None:
    """Boot time with and without initialising the tail struct pages of 1 GiB pages. ``pages``: 1 GiB pages.

    The time that has nothing to do with it is read from the first row.
    """
    # one vmemmap page, 64 struct pages, is initialised anyhow
    tails = int(table.model["pages"]) * (GIB // PAGE_SIZE - 63)
    extra = tails * cost_table.value("struct_page_init") / 1e9
    for variant, seconds in table.rows:
        if variant == "skip tail init, HVO on":
            out.add(variant, "seconds", "s", seconds, seconds, "set", "boot time of the machine")
        elif variant == "old, HVO on":
            out.add(
                variant,
                "seconds",
                "s",
                seconds,
                table.rows[0][1] + extra,
                "predicted",
                "time of a struct page from another machine, the rest of the boot from the first row",
            )
        else:
            why = "without HVO the struct pages are initialised either way, only at another time; when is not published"
            out.unmodelled(variant, "seconds", seconds, why)


# --------------------------------------------------------------------------------------------- printing


def lines(dataset: xr.Dataset) -> Iterator[str]:
    """The Dataset of :func:`reproduce` as lines of text."""
    yield f"{dataset.attrs['table']}: {dataset.attrs['title']}"
    yield f"  source: {dataset.attrs['source']}"
    width = max(len(text) for text in dataset["label"].values)
    middle = max(len(text) for text in dataset["quantity"].values)
    shown: dict[str, int] = {}
    for k in range(dataset.sizes["row"]):
        at = dataset.isel(row=k)
        role, note = str(at["role"].values), str(at["note"].values)
        published, modelled, deviation = (float(at[n]) for n in ("published", "modelled", "deviation"))
        numbers = f"{_number(published):>14} {_number(modelled):>14} {_percent(deviation):>9}"
        low, high = float(at["low"]), float(at["high"])
        numbers += f"  {_number(low) + ' to ' + _number(high) if np.isfinite(low) else '':<24}"
        mark = f" [{shown.setdefault(note, len(shown) + 1)}]" if note else ""
        yield f"  {at['label'].values!s:<{width}}  {at['quantity'].values!s:<{middle}} {numbers}  {role}{mark}"
    for note, number in shown.items():
        yield f"  [{number}] {note}"


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.1f} %"


HEADING = "published, modelled, deviation, range of the model (5 to 95 %), and what agreement proves:\n" + "\n".join(
    f"  {name}: {text}" for name, text in CLASSES.items()
)

"""The schema of a result: every variable of the Dataset is declared once here, and stored without loss.

``SPECS`` says for each variable its dimensions, units, long name and basis: ``exact`` (checked against recordings of the
real kernel), ``counted`` (follows from exact ones by counting) or ``modelled`` (with a source). Other modules add their
variables with :func:`declare`. Attributes are texts and numbers only, so that Zarr and netCDF both keep them.

Where a guest is too large to list every page, placement is kept as *stretches*: the page at ``start + i`` of a stretch
lies on ``tile_node[offset + (phase + i * step) mod period]``. :func:`page_nodes` and :func:`node_counts` read them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.units import PAGE_SIZE

if TYPE_CHECKING:
    from workbench.scenario import Scenario

SCHEMA_VERSION = 1
Basis = Literal["exact", "counted", "modelled"]


@dataclass(frozen=True)
class Spec:
    """One variable of the Dataset."""

    dims: tuple[str, ...]
    units: str
    long_name: str
    basis: Basis
    source: str = ""


SPECS: dict[str, Spec] = {}


def declare(name: str, dims: Sequence[str], units: str, long_name: str, basis: Basis, source: str = "") -> None:
    """Add a variable to the schema. A modelled one needs the source of its model."""
    if basis == "modelled" and not source:
        raise ValueError(f"{name}: a modelled variable needs a source")
    SPECS[name] = Spec(tuple(dims), units, long_name, basis, source)


def _declare_all() -> None:
    exact: Basis = "exact"
    counted: Basis = "counted"
    declare("node_kind", ("node",), "", "kind of memory", exact)
    declare("node_memory", ("node",), "B", "memory of the node", exact)
    declare("node_cpus", ("node",), "1", "CPUs of the node", exact)
    declare("distance", ("node", "node_to"), "1", "SLIT distance (10 = local)", exact)
    declare("fallback_order", ("node", "rank"), "1", "fallback order of nodes (-1: none)", exact)
    declare("zone_node", ("zone",), "1", "node of the zone", exact)
    declare("zone_managed", ("zone",), "pages", "pages managed by the zone", counted)
    for mark in ("min", "low", "high"):
        declare(f"zone_{mark}", ("zone",), "pages", f"{mark} watermark", counted)
    declare("zone_lowmem_reserve", ("zone",), "pages", "pages kept from requests that could use a higher zone", counted)
    declare("event_op", ("event",), "", "operation", exact)
    declare("event_task", ("event",), "", "task that made the call", exact)
    declare("event_file", ("event",), "", "file", exact)
    declare("event_ret", ("event",), "1", "return value", exact)
    declare("event_errno", ("event",), "1", "errno (0: success)", exact)
    declare("event_error", ("event",), "", "errno by name (empty: success)", exact)
    declare("event_detail", ("event",), "", "what the call wrote besides, as JSON", exact)
    declare("event_pages", ("event", "node"), "folios", "folios placed by the event", exact)
    declare("free_pages", ("event", "zone"), "folios", "free folios of the zone after the event", counted)
    declare("pages_per_node", ("file", "node"), "folios", "folios of the file on the node", exact)
    declare("file_pages", ("file",), "folios", "size of the file", exact)
    declare("page_size", (), "B", "bytes of one folio of the guest", exact)
    declare("file_page_size", ("file",), "B", "bytes of one folio of the file", exact)
    declare("zone_page_size", ("zone",), "B", "bytes of one folio of the zone", exact)
    declare("event_small_pages", ("event", "node"), "4 KiB pages", "4 KiB pages placed beside huge folios", exact)
    declare("small_pages_per_node", ("file", "node"), "4 KiB pages", "4 KiB pages where no huge page was left", exact)
    for table, folios in (("run", "folio"), ("observed_run", "folio"), ("small_run", "4 KiB page")):
        declare(f"{table}_file", (table,), "", "file", exact)
        declare(f"{table}_start", (table,), f"{folios}s", f"first {folios} of the run", exact)
        declare(f"{table}_length", (table,), f"{folios}s", f"{folios}s in the run", exact)
        declare(f"{table}_node", (table,), "1", "node that backs the run", exact)
    declare("observed_run_event", ("observed_run",), "1", "event that observed the run", exact)
    for table, folio in (("stretch", "folio"), ("small_stretch", "4 KiB page")):
        declare(f"{table}_file", (table,), "", "file", exact)
        for name, long_name in (
            ("start", f"first {folio} of the stretch"),
            ("length", f"{folio}s of the stretch"),
            ("offset", "first entry of its tile"),
            ("period", "entries of its tile"),
            ("phase", f"entry of the tile for its first {folio}"),
            ("step", "direction in which the tile is read"),
        ):
            declare(f"{table}_{name}", (table,), "1", long_name, exact)
    declare("tile_node", ("tile_entry",), "1", "node", exact)
    declare("page_node", ("file", "page"), "1", "node that backs the folio (-1: absent, or 4 KiB pages)", exact)
    declare(
        "page_pfn",
        ("file", "page"),
        "folios",
        "pfn of the folio, counted in folios (-1: absent)",
        "modelled",
        "ascending from the start of each zone, freed folios last in, first out (mm/page_alloc.c); see kernels/pfns.py",
    )
    declare("range_file", ("range",), "", "file", exact)
    declare("range_start", ("range",), "4 KiB pages", "first page of the shared policy range", exact)
    declare("range_end", ("range",), "4 KiB pages", "end of the shared policy range", exact)
    declare("range_mode", ("range",), "", "mode of the policy", exact)
    declare("range_nodes", ("range", "node"), "1", "nodes of the policy", exact)
    declare("vcpu_node", ("vcpu",), "1", "node that the vCPU runs on", exact)
    declare("local_share", ("vcpu",), "1", "share of the guest's memory on the vCPU's node", counted)
    declare("mean_distance", ("vcpu",), "1", "mean SLIT distance from the vCPU to the guest's memory", counted)


_declare_all()


def annotate(dataset: xr.Dataset) -> xr.Dataset:
    """Give every variable its attributes from ``SPECS``; an undeclared variable or wrong dimensions is an error."""
    for name, variable in dataset.data_vars.items():
        spec = SPECS.get(str(name))
        if spec is None:
            raise ValueError(f"{name} is not declared in the result schema")
        allowed = set(spec.dims) | {"design", "sample"}
        if not set(map(str, variable.dims)) <= allowed:
            raise ValueError(f"{name} has dimensions {variable.dims}, declared {spec.dims}")
        variable.attrs.update(units=spec.units, long_name=spec.long_name, basis=spec.basis)
        if spec.source:
            variable.attrs["source"] = spec.source
    for name, (units, long_name) in _COORDINATES.items():
        if name in dataset.coords:
            dataset.coords[name].attrs.update(units=units, long_name=long_name)
    return dataset


_COORDINATES = {
    "node": ("1", "NUMA node id"),
    "node_to": ("1", "NUMA node id"),
    "zone": ("", "zone (node/type)"),
    "file": ("", "file"),
    "event": ("1", "event number"),
    "vcpu": ("", "vCPU"),
    "rank": ("1", "position in the fallback order"),
}


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of this package and of those that results depend on."""
    versions = {}
    for package in ("guest-memfd-workbench", "numpy", "numba", "xarray"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # running from a plain checkout
            versions[package] = "checkout"
    return versions


def provenance(scenario: Scenario, command: str = "") -> str:
    """JSON text: schema and software versions, the scenario and its seed; what is needed to make the result again."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "software": software_versions(),
            "python": platform.python_version(),
            "kernel_of_record": "Linux 7.3",
            "seed": scenario.seed,
            "scenario": scenario.to_mapping(),
            "command": command,
        },
        sort_keys=True,
    )


# ----------------------------------------------------------------------------------------------------- reading


def bytes_per_node(dataset: xr.Dataset) -> np.ndarray:
    """Bytes of each file on each node, int64 (file, node), whatever the size of their folios."""
    amount = dataset["pages_per_node"].values * dataset["file_page_size"].values[:, None]
    return amount + PAGE_SIZE * dataset["small_pages_per_node"].values if "small_pages_per_node" in dataset else amount


def placed_bytes(dataset: xr.Dataset) -> np.ndarray:
    """Bytes newly placed by each event on each node, int64 (event, node)."""
    amount = dataset["event_pages"].values * int(dataset["page_size"])
    return amount + PAGE_SIZE * dataset["event_small_pages"].values if "event_small_pages" in dataset else amount


def free_bytes(dataset: xr.Dataset) -> np.ndarray:
    """Free bytes of each node after each event, int64 (event, node)."""
    owner = dataset["zone_node"].values[:, None] == dataset["node"].values
    return (dataset["free_pages"].values * dataset["zone_page_size"].values) @ owner.astype(np.int64)


def _stretches(dataset: xr.Dataset, file: str, table: str) -> np.ndarray:
    """int64 (n, 6) rows of one file: start, length, offset, period, phase, step."""
    mine = dataset[f"{table}_file"].values == file
    names = ("start", "length", "offset", "period", "phase", "step")
    return np.column_stack([dataset[f"{table}_{name}"].values[mine] for name in names]).astype(np.int64)


def _as_tables(dataset: xr.Dataset, file: str, table: str = "stretch") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tables of :mod:`workbench.kernels.filemap` for one file; tile entries are node indices."""
    rows = _stretches(dataset, file, table)
    index = np.arange(len(rows))
    runs = np.column_stack((rows[:, 0], rows[:, 1], index)).astype(np.int64)
    # A stretch is position `phase` of an allocation that began `phase` folios earlier in its direction.
    first = rows[:, 0] - rows[:, 4] * rows[:, 5]
    allocations = np.column_stack((first, rows[:, 1], rows[:, 5], rows[:, 2], rows[:, 3])).astype(np.int64)
    ids = dataset["node"].values
    tiles = np.searchsorted(ids, dataset["tile_node"].values).astype(np.int16)
    return runs, allocations, tiles


def _known_file(dataset: xr.Dataset, file: str | None) -> str:
    names = [str(name) for name in dataset["file"].values]
    if file is None:
        if not names:
            raise WorkbenchError("file: this result has no file")
        return names[0]
    if file not in names:
        raise WorkbenchError(f"file: {file!r} is not in this result ({', '.join(names)})")
    return file


def page_nodes(dataset: xr.Dataset, file: str | None = None, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Node id of each folio of ``[start, stop)``: int8 (or int16 beyond node 127), -1 where none is present."""
    from workbench.kernels import filemap

    file = _known_file(dataset, file)
    size = int(dataset["file_pages"].sel(file=file))
    stop = size if stop is None else min(stop, size)
    ids = dataset["node"].values
    dtype = np.int8 if ids.max() < 128 else np.int16
    out = np.full(max(0, stop - start), -1, dtype)
    filemap.render(*_as_tables(dataset, file), ids.astype(dtype), start, out)
    return out


def node_counts(dataset: xr.Dataset, file: str | None = None, edges: np.ndarray | Sequence[int] = ()) -> np.ndarray:
    """Folios of each node between consecutive ``edges`` (folio indices): int64 (len(edges) - 1, nodes).

    Where 4 KiB pages stand in for huge folios, they count as parts of one, and the result is float64. The cost follows
    stretches and edges, not folios: this is what pictures of a terabyte guest are drawn from.
    """
    file = _known_file(dataset, file)
    if len(edges) == 0:
        edges = [0, int(dataset["file_pages"].sel(file=file))]
    counts = _counts(dataset, _as_tables(dataset, file), edges)
    if "small_stretch_file" not in dataset or not (dataset["small_stretch_file"].values == file).any():
        return counts
    pages = int(dataset["file_page_size"].sel(file=file)) // PAGE_SIZE
    small = _counts(dataset, _as_tables(dataset, file, "small_stretch"), np.asarray(edges) * pages)
    return counts + small / pages


def _counts(
    dataset: xr.Dataset, tables: tuple[np.ndarray, np.ndarray, np.ndarray], edges: np.ndarray | Sequence[int]
) -> np.ndarray:
    from workbench.kernels import filemap

    runs, allocations, tiles = tables
    ends = runs[:, 0] + runs[:, 1]
    out = np.zeros((len(edges) - 1, dataset.sizes["node"]), np.int64)
    for row, (low, high) in enumerate(itertools.pairwise(edges)):
        first, last = np.searchsorted(ends, low, side="right"), np.searchsorted(runs[:, 0], high, side="left")
        part = runs[first:last].copy()
        begin = np.maximum(part[:, 0], low)
        part[:, 1] = np.minimum(part[:, 0] + part[:, 1], high) - begin
        part[:, 0] = begin
        filemap.count_zones(part, allocations, tiles, out[row])
    return out


# ----------------------------------------------------------------------------------------------------- storage


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write to ``*.zarr``, ``*.zarr.zip`` or ``*.nc``; a temporary name is renamed, so no half-written result is left."""
    target = Path(path)
    name = target.name
    if not name.endswith((".zarr", ".zarr.zip", ".nc")):
        raise WorkbenchError(f"output: {name!r} must end in .zarr, .zarr.zip or .nc")
    stored = dataset.copy()
    for variable in stored.variables.values():
        variable.encoding = {}
    if not name.endswith(".nc"):  # Zarr has no portable form for texts of fixed length
        stored = _with_texts(stored, np.dtypes.StringDType())
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
        made = temporary / name
        if name.endswith(".nc"):
            stored.to_netcdf(made, engine="h5netcdf")
        elif name.endswith(".zip"):
            # Zipped afterwards: writing into an archive would keep every version of each metadata file.
            stored.to_zarr(temporary / "store", mode="w", consolidated=False)
            archive = shutil.make_archive(str(temporary / "archive"), "zip", temporary / "store")
            os.replace(archive, made)
        else:
            stored.to_zarr(made, mode="w", consolidated=False)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(made, target)
    except OSError as error:
        raise WorkbenchError(f"output: cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _with_texts(dataset: xr.Dataset, dtype: Any) -> xr.Dataset:
    """The dataset with all its texts in another numpy type (by way of objects: numpy has no direct cast)."""
    texts = {
        name: (variable.dims, variable.values.astype(object).astype(dtype), variable.attrs)
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "UT"
    }
    coordinates = {name: value for name, value in texts.items() if name in dataset.coords}
    data = {name: value for name, value in texts.items() if name not in dataset.coords}
    return dataset.assign_coords(coordinates).assign(data)


def load(path: str | Path) -> xr.Dataset:
    """Read a stored result into memory."""
    source = Path(path)
    if not source.exists():
        raise WorkbenchError(f"result: {source} does not exist")
    try:
        if source.name.endswith(".nc"):
            dataset = xr.load_dataset(source, engine="h5netcdf")
        elif source.name.endswith(".zip"):
            import zarr

            with zarr.storage.ZipStore(source, mode="r") as store:
                dataset = xr.open_zarr(store, consolidated=False).load()
        else:
            dataset = xr.open_zarr(source, consolidated=False).load()
    except Exception as error:  # the storage libraries raise many kinds for a damaged file
        raise WorkbenchError(f"result: {source} cannot be read as a result: {str(error).splitlines()[0]}") from error
    dataset = _with_texts(dataset, str)
    if "provenance" not in dataset.attrs:
        raise WorkbenchError(f"result: {source} is not a result of this workbench (no provenance)")
    return dataset


def read_provenance(dataset: xr.Dataset) -> dict[str, Any]:
    """The provenance: the scenario as a mapping, its seed and the versions it was simulated with."""
    return json.loads(dataset.attrs["provenance"])  # type: ignore[no-any-return]

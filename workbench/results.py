"""Results: every Dataset is made here, says where it comes from, and is stored without loss.

:func:`make` builds a Dataset from the variables that :mod:`workbench.variables` declares: no other module does. Every
variable has units, a long name and a basis, every coordinate units and a long name, every Dataset a provenance.
Attributes are texts and numbers only, so that Zarr and netCDF both keep them.

Where a guest is too large to list every page, placement is kept as *stretches*: the page at ``start + i`` of a stretch
lies on ``tile_node[offset + (phase + i * step) mod period]``. :func:`page_nodes` and :func:`node_counts` read them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shutil
import sys
import traceback
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.indexes import PandasIndex

from workbench import duck_arrays, replacing, shown
from workbench.errors import WorkbenchError, reason
from workbench.files import folder_beside
from workbench.units import PAGE_SIZE
from workbench.variables import Schema

if TYPE_CHECKING:
    from workbench.scenario import Scenario

duck_arrays.ask_without_importing()
shown.in_notebooks()

SCHEMA_VERSION = 1
_PACKAGE = "guest-memfd-workbench"

# ------------------------------------------------------------------------------------------------------ making


def make(
    schema: type[Schema],
    values: Mapping[str, object],
    coordinates: Mapping[str, object],
    *,
    provenance: str,
    source: str = "",
    attributes: Mapping[str, str | int | float] = {},
) -> xr.Dataset:
    """Build the Dataset of a kind: the only place where one is built.

    Parameters
    ----------
    schema : its kind; a name that the kind does not have is an error (ValueError), as are other dimensions
    values : name -> array in the declared dimensions; an array with one dimension more begins with ``sample``
    coordinates : name -> values along the dimension of that name, or (dimension, values)
    provenance : of :func:`provenance`
    source : said behind the source of every variable that has one
    attributes : of the Dataset
    """
    made: dict[Hashable, xr.Variable] = {}
    for name, given in values.items():
        variable = schema.variables.get(name)
        if variable is None:
            raise ValueError(f"{name} is not a variable of {schema.__name__}")
        array = np.asarray(given)
        dims = variable.dims if array.ndim == len(variable.dims) else ("sample", *variable.dims)
        if array.ndim != len(dims):
            raise ValueError(f"{name} has {array.ndim} dimensions, declared are {variable.dims}")
        attrs = {"units": variable.units, "long_name": variable.long_name, "basis": variable.basis}
        if variable.source:
            attrs["source"] = f"{variable.source}; {source}" if source else variable.source
        made[name] = xr.Variable(dims, array, attrs, fastpath=True)
    return _assemble(
        made,
        {name: coordinate(schema, name, given) for name, given in coordinates.items()},
        {"provenance": provenance, **attributes},
    )


def _assemble(
    variables: dict[Hashable, xr.Variable],
    coordinates: Mapping[str, tuple[str, np.ndarray, dict[str, str]]],
    attributes: dict[str, Any],
) -> xr.Dataset:
    """``xr.Dataset(variables, coordinates, attributes)`` of parts that are known to fit, in a third of its time.

    Its constructor aligns and merges what could come from anywhere. Here everything was just made: sizes are checked, and
    the Dataset is put together as its own ``copy`` does it (a test compares the two ways).
    """
    indexes: dict[Hashable, xr.Index] = {}
    for name, (dim, values, attrs) in coordinates.items():
        if dim != name:
            variables[name] = xr.Variable((dim,), values, attrs)
            continue
        index = _index(name, values.dtype.str, values.shape, values.tobytes()) if values.size <= _LISTED else None
        along = {name: xr.Variable((dim,), values, attrs, fastpath=True)}
        indexes[name] = index or PandasIndex.from_variables(along, options={})
        variables |= indexes[name].create_variables(along)
    sizes: dict[Hashable, int] = {}
    for held, variable in variables.items():
        for along_dim, size in zip(variable.dims, variable.shape, strict=True):
            if sizes.setdefault(along_dim, size) != size:
                raise ValueError(f"{held} has {size} along {along_dim}, others have {sizes[along_dim]}")
    return xr.Dataset._construct_direct(variables, set(coordinates), sizes, attributes, indexes)


@functools.lru_cache(maxsize=256)
def _index(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> xr.Index:
    """An index, which nobody changes, made once: to make one takes longer than a variable, and runs are mostly alike."""
    values = np.frombuffer(content, dtype).reshape(shape)
    return PandasIndex.from_variables({name: xr.Variable((name,), values)}, options={})


def coordinate(schema: type[Schema], name: str, given: object) -> tuple[str, np.ndarray, dict[str, str]]:
    """A declared coordinate as xarray takes it: dimension, values, attributes."""
    declared = schema.coordinates.get(name)
    if declared is None:
        raise ValueError(f"{name} is not a coordinate of {schema.__name__}")
    dim, values = given if isinstance(given, tuple) else (name, given)
    return dim, np.asarray(values), {"units": declared.units, "long_name": declared.long_name}


def stack(
    schema: type[Schema], parts: Sequence[xr.Dataset], name: str, values: object = None, *, provenance: str
) -> xr.Dataset:
    """Datasets of one kind one after another along ``name``: a new dimension with a coordinate of the kind, or theirs.

    Along a new dimension everything varies, what has no dimensions too. Attributes are those of the first.
    """
    out = xr.concat(list(parts), name, data_vars="all", coords="minimal", compat="override", combine_attrs="override")
    if values is not None:
        out = out.assign_coords({name: coordinate(schema, name, values)})
    return out.assign_attrs(provenance=provenance)


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of this package and of those that results depend on."""
    versions = {}
    for package in (_PACKAGE, "numpy", "numba", "xarray"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # running from a plain checkout
            versions[package] = "checkout"
    return versions


def provenance(scenario: Scenario | None = None, command: str = "", **inputs: object) -> str:
    """JSON text: what is needed to make a result again.

    Schema and software versions; of a simulation the scenario and its seed; of anything else ``command``, what was
    called, and its ``inputs``. A Dataset among these is named by its own provenance.
    """
    made = {
        "schema_version": SCHEMA_VERSION,
        "software": software_versions(),
        "python": platform.python_version(),
        "kernel_of_record": "Linux 7.3",
        "command": command,
    }
    if scenario is not None:
        made |= {"seed": scenario.seed, "scenario": scenario.to_mapping()}
    if inputs:
        made["inputs"] = {name: _plain(value) for name, value in inputs.items()}
    return json.dumps(made, sort_keys=True)


_LISTED = 256
"""Arrays of up to so many numbers stand in a provenance; of larger ones the digest does."""


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, xr.Dataset):
        return json.loads(value.attrs.get("provenance", "{}"))
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= _LISTED else f"SHA-256 {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_defaults=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


# ----------------------------------------------------------------------------------------------------- reading


def _stretches(dataset: xr.Dataset, file: str, table: str) -> np.ndarray:
    """int64 (n, 6) rows of one file: start, length, offset, period, phase, step."""
    mine = dataset.variables[f"{table}_file"].values == file
    names = ("start", "length", "offset", "period", "phase", "step")
    return np.column_stack([dataset.variables[f"{table}_{name}"].values[mine] for name in names]).astype(np.int64)


def _as_tables(dataset: xr.Dataset, file: str, table: str = "stretch") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tables of :mod:`workbench.kernels.filemap` for one file; tile entries are node indices."""
    rows = _stretches(dataset, file, table)
    index = np.arange(len(rows))
    runs = np.column_stack((rows[:, 0], rows[:, 1], index)).astype(np.int64)
    # A stretch is position `phase` of an allocation that began `phase` folios earlier in its direction.
    first = rows[:, 0] - rows[:, 4] * rows[:, 5]
    allocations = np.column_stack((first, rows[:, 1], rows[:, 5], rows[:, 2], rows[:, 3])).astype(np.int64)
    ids = dataset.variables["node"].values
    tiles = np.searchsorted(ids, dataset.variables["tile_node"].values).astype(np.int16)
    return runs, allocations, tiles


def _known_file(dataset: xr.Dataset, file: str | None) -> str:
    names = [str(name) for name in dataset.variables["file"].values]
    if file is None:
        if not names:
            raise WorkbenchError("file: this result has no file")
        return names[0]
    if file not in names:
        raise WorkbenchError(f"file: {file!r} is not in this result ({', '.join(names)})")
    return file


def _of_file(dataset: xr.Dataset, name: str, file: str) -> int:
    """One file's value of a variable along ``file``; pictures ask often, and ``sel`` takes a millisecond."""
    return int(dataset.variables[name].values[dataset.variables["file"].values.tolist().index(file)])


def page_nodes(dataset: xr.Dataset, file: str | None = None, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Node id of each folio of ``[start, stop)``: int8 (or int16 beyond node 127), -1 where none is present."""
    from workbench.kernels import filemap

    file = _known_file(dataset, file)
    size = _of_file(dataset, "file_pages", file)
    stop = size if stop is None else min(stop, size)
    ids = dataset.variables["node"].values
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
        edges = [0, _of_file(dataset, "file_pages", file)]
    counts = _counts(dataset, _as_tables(dataset, file), edges)
    if "small_stretch_file" not in dataset or not (dataset.variables["small_stretch_file"].values == file).any():
        return counts
    pages = _of_file(dataset, "file_page_size", file) // PAGE_SIZE
    small = _counts(dataset, _as_tables(dataset, file, "small_stretch"), np.asarray(edges) * pages)
    return counts + small / pages


def _counts(
    dataset: xr.Dataset, tables: tuple[np.ndarray, np.ndarray, np.ndarray], edges: np.ndarray | Sequence[int]
) -> np.ndarray:
    from workbench.kernels import filemap

    runs, allocations, tiles = tables
    if max(len(tiles), len(runs) + len(edges)) * dataset.sizes["node"] <= _ADDED_UP:
        return _counts_by_difference(dataset, tables, np.asarray(edges))
    ends = runs[:, 0] + runs[:, 1]
    out = np.zeros((len(edges) - 1, dataset.sizes["node"]), np.int64)
    firsts = np.searchsorted(ends, np.asarray(edges)[:-1], side="right").tolist()
    lasts = np.searchsorted(runs[:, 0], np.asarray(edges)[1:], side="left").tolist()
    for row, (low, high) in enumerate(itertools.pairwise(np.asarray(edges).tolist())):
        if firsts[row] >= lasts[row]:
            continue
        part = runs[firsts[row] : lasts[row]].copy()
        if part[0, 0] < low:  # the first begins before, the last ends after
            part[0, 1] -= low - part[0, 0]
            part[0, 0] = low
        part[-1, 1] = min(part[-1, 1], high - part[-1, 0])
        filemap.count_zones(part, allocations, tiles, out[row])
    return out


_ADDED_UP = 1 << 16
"""Entries times nodes up to which parts are counted all at once: half a megabyte for each array."""


def _counts_by_difference(
    dataset: xr.Dataset, tables: tuple[np.ndarray, np.ndarray, np.ndarray], edges: np.ndarray
) -> np.ndarray:
    """The counts of all parts at once, in a sixth of the time: what lies before a part's end less what lies before it."""
    runs, allocations, tiles = tables
    lows, highs = edges[:-1], edges[1:]
    out = np.zeros((len(lows), dataset.sizes["node"]), np.int64)
    # Each part of each run that meets it.
    first = np.searchsorted(runs[:, 0] + runs[:, 1], lows, side="right")
    met = np.searchsorted(runs[:, 0], highs, side="left") - first
    part = np.repeat(np.arange(len(lows)), met)
    run = np.arange(len(part)) - np.repeat(np.cumsum(met) - met - first, met)
    begin, _, step, offset, period = allocations[runs[run, 2]].T
    start = (np.maximum(runs[run, 0], lows[part]) - begin) * step
    stop = (np.minimum(runs[run, 0] + runs[run, 1], highs[part]) - begin) * step
    start, stop = np.where(step < 0, (stop + 1, start + 1), (start, stop))
    before = np.zeros((len(tiles) + 1, out.shape[1]), np.int64)
    before[np.arange(1, len(tiles) + 1), tiles] = 1
    np.cumsum(before, axis=0, out=before)
    whole = (stop // period - start // period)[:, None] * (before[offset + period] - before[offset])
    np.add.at(out, part, whole + before[offset + stop % period] - before[offset + start % period])
    return out


# ----------------------------------------------------------------------------------------------------- storage


def check_replaceable(path: str | Path, *, force: bool = False) -> None:
    """Whether :func:`save` may write here: nothing is there, or a result that it wrote. Raises WorkbenchError if not.

    force : whatever file or directory is there may be replaced, a link may not
    """
    target = Path(path)
    if not target.name.endswith((".zarr", ".zarr.zip", ".nc")):
        raise WorkbenchError(f"output: {str(path)[-60:]!a} must end in .zarr, .zarr.zip or .nc")
    replacing.check(target, _is_result, "result of a run", force=force, field="output", folder=True)


def _is_result(path: Path) -> bool:
    """Whether :func:`save` wrote this; a sweep's store says another schema of itself."""
    try:
        if path.name.endswith(".nc"):
            attributes = dict(_load_netcdf(path).attrs)
        elif path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                attributes = json.loads(archive.read("zarr.json"))["attributes"]
        else:
            attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
        return "schema" not in attributes and "software" in json.loads(attributes["provenance"])
    except Exception:  # the storage libraries raise many kinds; whatever it is, it is not ours
        return False


def save(dataset: xr.Dataset, path: str | Path, *, force: bool = False) -> Path:
    """Write to ``*.zarr``, ``*.zarr.zip`` or ``*.nc``; a temporary name is renamed, so no half-written result is left.

    Only what this function wrote before is replaced, or with ``force`` whatever is there. Raises WorkbenchError.
    """
    target = Path(path)
    name = target.name
    check_replaceable(target, force=force)
    stored = dataset.copy()
    for variable in stored.variables.values():
        variable.encoding = {}
    if not name.endswith(".nc"):  # Zarr has no portable form for texts of fixed length
        stored = _with_texts(stored, np.dtypes.StringDType())
    try:
        with folder_beside(target) as temporary:
            made = temporary / name
            if name.endswith(".nc"):
                # By way of memory: HDF5 ends the process when the disk is full.
                content = io.BytesIO()
                stored.to_netcdf(content, engine="h5netcdf")
                made.write_bytes(content.getbuffer())
            elif name.endswith(".zip"):
                # Zipped afterwards: writing into an archive would keep every version of each metadata file.
                stored.to_zarr(temporary / "store", mode="w", consolidated=False)
                archive = shutil.make_archive(str(temporary / "archive"), "zip", temporary / "store")
                os.replace(archive, made)
            else:
                stored.to_zarr(made, mode="w", consolidated=False)
            replacing.exchange(made, target)
    except OSError as error:
        raise WorkbenchError(f"output: cannot write {target}: {error.strerror or error}") from error
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


def _load_netcdf(path: Path) -> xr.Dataset:
    """Read a netCDF file into memory. Raises OSError.

    What h5netcdf could not open complains once more when it is collected, with a traceback that nobody can catch: it is
    collected here, where nobody is told.
    """
    told, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        try:
            return xr.load_dataset(path, engine="h5netcdf")
        except Exception as error:
            said = reason(error, 300)
            step: BaseException | None = error
            while step is not None:
                traceback.clear_frames(step.__traceback__)
                step = step.__context__
        raise OSError(said)
    finally:
        sys.unraisablehook = told


def load(path: str | Path) -> xr.Dataset:
    """Read a stored result into memory. Raises WorkbenchError for what is none, is damaged, or has another schema."""
    source = Path(path)
    if not source.exists():
        raise WorkbenchError(f"result: {source} does not exist")
    try:
        if source.name.endswith(".nc"):
            dataset = _load_netcdf(source)
        elif source.name.endswith(".zip"):
            import zarr

            with zarr.storage.ZipStore(source, mode="r") as store:
                dataset = xr.open_zarr(store, consolidated=False).load()
        else:
            dataset = xr.open_zarr(source, consolidated=False).load()
    except Exception as error:  # the storage libraries raise many kinds for a damaged file
        raise WorkbenchError(f"result: {source} cannot be read as a result: {reason(error, 300)}") from error
    _check_provenance(source, dataset.attrs.get("provenance"))
    return _with_texts(dataset, str)


def _check_provenance(source: Path, text: object) -> None:
    """Whether a result says of itself that we made it, by the schema that we read. Raises WorkbenchError."""
    try:
        made = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise WorkbenchError(f"result: {source} is not a result of this workbench (no provenance)")
    if (version := made.get("schema_version")) != SCHEMA_VERSION:
        software = made.get("software")
        by = software.get(_PACKAGE) if isinstance(software, dict) else None
        raise WorkbenchError(
            f"result: {source} has schema version {version!r:.40}, written by {_PACKAGE} {by!s:.40}; this one, "
            f"{software_versions()[_PACKAGE]}, reads version {SCHEMA_VERSION}"
        )


def read_provenance(dataset: xr.Dataset) -> dict[str, Any]:
    """The provenance: the scenario as a mapping, its seed and the versions it was simulated with."""
    return json.loads(dataset.attrs["provenance"])
